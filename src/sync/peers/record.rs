//! What is known of one peer.

use super::super::opinion::Opinion;
use super::super::{Diverged, PeerId};
use crate::chain::{Hash, Height, Time};
use crate::snapshot::source::Offer;

/// Whether a peer can be asked for blocks, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has not said yet who it is.
    Unknown,
    /// On our chain, as far as is known.
    Up,
    /// It does not answer.
    Down,
    /// It must not be used: it is this node, or another chain's.
    Refused(String),
    /// It has another block than we.
    Diverged(Diverged),
}

/// Why a peer is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The operator named it as a source: whether the node is up to date is measured by it.
    Configured,
    /// It was met on the way: good for blocks, and no measure of ours.
    Met,
}

/// What is known of one peer.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its number.
    pub id: PeerId,
    /// What people know it by; no two peers have the same.
    pub name: String,
    /// Why it is there.
    pub origin: Origin,
    /// Whether it can be asked.
    pub standing: Standing,
    /// The head it last reported.
    pub head: Option<(Height, Hash)>,
    /// The newest snapshot that it serves.
    pub snapshot: Option<Offer>,
    /// When it reported its head.
    pub head_at: Time,
    /// What its last failure was.
    pub last_error: Option<String>,
    /// Blocks of the chain that came from it.
    pub blocks: u64,
    /// Bytes that came from it.
    pub bytes: u64,
    /// When it is to be looked at next.
    pub next_poll: Time,
    /// Whether a look, or a comparison, is under way.
    pub busy: bool,
    /// Up to which height it is to be compared, as soon as the look at it is over.
    pub suspect: Option<Height>,
    /// Since when it has another block than we, while it has.
    pub diverged_at: Option<Time>,
    /// Its branch is not asked for before this moment: it could not be taken the last time.
    pub branch_not_before: Time,
    pub(super) opinion: Opinion,
    pub(super) latency_us: u64,
    pub(super) throughput: u64,
    pub(super) poll_failures: u32,
    /// The highest block that it is taken to have, and until when.
    pub(super) doubt: Option<(Height, Time)>,
}

impl Record {
    /// Of a peer that has just come, and is thought of like this.
    pub(super) fn new(id: PeerId, name: String, origin: Origin, opinion: Opinion, now: Time) -> Self {
        Self {
            id,
            name,
            origin,
            standing: Standing::Unknown,
            head: None,
            snapshot: None,
            head_at: Time(0),
            last_error: None,
            blocks: 0,
            bytes: 0,
            next_poll: now,
            busy: false,
            suspect: None,
            diverged_at: None,
            branch_not_before: Time(0),
            opinion,
            latency_us: 0,
            throughput: 0,
            poll_failures: 0,
            doubt: None,
        }
    }

    /// The reported head, as far as it is believed.
    pub fn proven_head(&self) -> Option<(Height, Hash)> {
        let head = self.head?;
        match self.doubt {
            Some((height, _)) if height < head.0 => Some((height, Hash::ZERO)),
            _ => Some(head),
        }
    }

    /// Whether it can be asked.
    pub fn is_up(&self) -> bool {
        self.standing == Standing::Up
    }

    /// The host's opinion.
    pub fn score(&self) -> i32 {
        self.opinion.score
    }

    /// Smoothed time until the first byte, in microseconds.
    pub fn latency_us(&self) -> u64 {
        self.latency_us
    }

    /// Smoothed rate, in bytes a second.
    pub fn throughput(&self) -> u64 {
        self.throughput
    }

    /// Requests in a row that failed.
    pub fn failures(&self) -> u32 {
        self.opinion.failures
    }
}
