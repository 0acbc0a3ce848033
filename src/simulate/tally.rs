//! What is counted while a simulation runs.

use std::collections::BTreeMap;

use super::chain::START;
use super::report::{Outcome, Spread, Timeline, fairness, percent};
use super::simulation::Simulation;
use crate::chain::{Height, Time};
use crate::sync::{Action, HeightRange, PeerId, RequestId, SyncStatus};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// Its blocks came; whether they are of use is another question.
    Came,
    /// It was given up, by the strategy or since others were faster.
    GivenUp,
    /// The peer asked to be left alone.
    Limited,
    /// It was not answered, or not with blocks.
    Failed,
}

/// A request, for the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Whom it asked.
    pub peer: PeerId,
    /// For how many blocks.
    pub blocks: u64,
    /// When it left.
    pub from: Time,
    /// When it ended; at the end of the simulation, where it had not.
    pub to: Time,
    /// How.
    pub end: End,
}

/// What is counted of a peer.
#[derive(Clone, Debug, Default)]
struct PeerTally {
    name: String,
    requests: u64,
    looks: u64,
    received: u64,
    useful: u64,
}

/// See the module.
pub(super) struct Tally {
    start: Height,
    peers: BTreeMap<PeerId, PeerTally>,
    bars: Vec<Bar>,
    /// The bars of requests under way.
    open: BTreeMap<RequestId, usize>,
    heads: Vec<(Time, Height)>,
    rescues: Vec<Time>,
    pub(super) swaps: Vec<Time>,
    pub(super) synced_at: Option<Time>,
    pub(super) imported_twice: u64,
    pub(super) reorganised: u64,
    pub(super) snapshot_height: Height,
    calls: u64,
    fuel: u64,
    fuel_most: u64,
    failed_calls: u64,
    failure: Option<String>,
    refusals: BTreeMap<&'static str, (u64, String)>,
}

impl Tally {
    /// Nothing counted yet. `start`: the local head.
    pub(super) fn new(peers: impl Iterator<Item = (PeerId, String)>, start: Height) -> Self {
        let peer = |(id, name)| (id, PeerTally { name, ..PeerTally::default() });
        Self {
            start,
            peers: peers.map(peer).collect(),
            bars: Vec::new(),
            open: BTreeMap::new(),
            heads: vec![(START, start)],
            rescues: Vec::new(),
            swaps: Vec::new(),
            synced_at: None,
            imported_twice: 0,
            reorganised: 0,
            snapshot_height: 0,
            calls: 0,
            fuel: 0,
            fuel_most: 0,
            failed_calls: 0,
            failure: None,
            refusals: BTreeMap::new(),
        }
    }

    fn peer(&mut self, id: PeerId) -> &mut PeerTally {
        self.peers.get_mut(&id).expect("every peer is counted")
    }

    pub(super) fn looked(&mut self, peer: PeerId) {
        self.peer(peer).looks += 1;
    }

    pub(super) fn asked(&mut self, id: RequestId, peer: PeerId, range: HeightRange, now: Time) {
        self.peer(peer).requests += 1;
        self.open.insert(id, self.bars.len());
        self.bars.push(Bar { peer, blocks: range.count(), from: now, to: now, end: End::Came });
    }

    pub(super) fn ended(&mut self, id: RequestId, end: End, now: Time) {
        let bar = self.open.remove(&id).expect("asked before it ended");
        (self.bars[bar].to, self.bars[bar].end) = (now, end);
    }

    pub(super) fn received(&mut self, peer: PeerId, bytes: u64) {
        self.peer(peer).received += bytes;
    }

    pub(super) fn useful(&mut self, peer: PeerId, bytes: u64) {
        self.peer(peer).useful += bytes;
    }

    pub(super) fn grew(&mut self, now: Time, head: Height) {
        self.heads.push((now, head));
    }

    pub(super) fn called(&mut self, fuel: u64) {
        self.calls += 1;
        self.fuel += fuel;
        self.fuel_most = self.fuel_most.max(fuel);
    }

    pub(super) fn call_failed(&mut self, reason: String) {
        self.calls += 1;
        self.failed_calls += 1;
        self.failure = Some(reason);
    }

    pub(super) fn refused(&mut self, action: &Action, reason: String) {
        let kind = match action {
            Action::FetchRange { .. } => "fetch-range",
            Action::Cancel(_) => "cancel",
            Action::FetchSnapshot { .. } => "fetch-snapshot",
            Action::Penalise { .. } => "penalise",
            Action::DropPeer(_) => "drop-peer",
            Action::WaitUntil(_) => "wait-until",
            Action::Report(_) => "report",
        };
        self.refusals.entry(kind).or_insert((0, reason)).0 += 1;
    }

    pub(super) fn observe(&mut self, now: Time, status: &SyncStatus) {
        while (self.rescues.len() as u64) < status.rescues {
            self.rescues.push(now);
        }
    }

    /// What has come of it so far; requests under way count as they are.
    pub(super) fn outcome(&self, strategy: &str, status: &SyncStatus, simulation: &Simulation) -> Outcome {
        let now = simulation.now;
        let of = |count: fn(&PeerTally) -> u64| self.peers.values().map(count).sum::<u64>();
        let (received, useful) = (of(|peer| peer.received), of(|peer| peer.useful));
        let ends = |end: End| self.bars.iter().filter(|bar| bar.end == end).count() as u64;
        let honest = simulation.peers.iter().filter(|(_, peer)| peer.source.is_honest()).map(|(id, _)| id);
        let elapsed_ms = self.synced_at.unwrap_or(now).ms_since(START);
        let blocks = simulation.local.1.saturating_sub(self.start);
        let mut bars = self.bars.clone();
        for &open in self.open.values() {
            bars[open].to = now;
        }
        Outcome {
            strategy: strategy.to_owned(),
            state: status.state,
            as_expected: status.state == simulation.scenario.about.expect && simulation.has_all(),
            head: simulation.local.1,
            goal: simulation.goal(),
            ended_ms: now.ms_since(START),
            synced_ms: self.synced_at.map(|at| at.ms_since(START)),
            blocks_per_second: blocks.saturating_mul(1_000) / elapsed_ms.max(1),
            requests: of(|peer| peer.requests),
            failed: ends(End::Failed),
            limited: ends(End::Limited),
            given_up: ends(End::GivenUp),
            looks: of(|peer| peer.looks),
            received_bytes: received,
            wasted_bytes: received.saturating_sub(useful),
            wasted_percent: percent(received.saturating_sub(useful), received),
            peers: self.peers.len() as u64,
            peers_asked: self.peers.values().filter(|peer| peer.requests > 0).count() as u64,
            requests_a_peer: Spread::of(self.peers.values().map(|peer| peer.requests)),
            fairness: fairness(honest.map(|id| self.peers[id].received)),
            rescues: status.rescues,
            refused: status.refused_actions,
            refusals: self
                .refusals
                .iter()
                .map(|(&kind, (count, why))| (kind.to_owned(), *count, why.clone()))
                .collect(),
            calls: self.calls,
            failed_calls: self.failed_calls,
            failure: self.failure.clone(),
            fuel: self.fuel,
            fuel_a_call: self.fuel.checked_div(self.calls - self.failed_calls).unwrap_or(0),
            fuel_most: self.fuel_most,
            events: simulation.events(),
            imported_twice: self.imported_twice,
            reorganised: self.reorganised,
            snapshot_height: self.snapshot_height,
            snapshots_failed: status.snapshots_failed,
            problem: status.problem.clone(),
            timeline: Timeline {
                ends_at: now,
                heads: self.heads.clone(),
                bars,
                rescues: self.rescues.clone(),
                swaps: self.swaps.clone(),
                names: self.peers.iter().map(|(&id, peer)| (id, peer.name.clone())).collect(),
            },
        }
    }
}
