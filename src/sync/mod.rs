//! Block sync: the nouns, and the trait that plans. The host downloads, verifies, orders and stores; a [`Strategy`] only
//! says what to ask of whom.
//!
//! [`engine`] decides: it keeps what it knows of its peers in [`peers`], with an [`opinion`] of each, asks the strategy,
//! lets [`plan`] check each answer, keeps within a [`budget`] of bytes, and says in a [`status`] what the world sees. It
//! does no I/O. [`follower`] is the loop that does: it fetches through [`source`], verifies and imports through
//! [`pipeline`], begins the chain with a [`snapshot`], and finds where a source's chain leaves ours with [`compare`].
//! [`forward`] hands pending transactions on.

pub mod budget;
pub mod compare;
mod config;
pub mod engine;
pub mod follower;
pub mod forward;
pub mod http;
pub mod one_peer;
pub mod opinion;
pub mod peers;
pub mod pipeline;
pub mod plan;
mod snapshot;
pub mod source;
pub mod status;
pub mod tasks;

use crate::chain::{Hash, Height, Time};

pub use config::{OnDivergence, SyncConfig};
pub use status::{Diverged, PeerStatus, RefusedReorg, SnapshotStage, SnapshotStatus, SyncState, SyncStatus, Tolerance};

/// A peer, numbered for as long as it is known.
pub type PeerId = u32;
/// A request, never twice the same number.
pub type RequestId = u64;

/// Heights from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct HeightRange {
    /// The lowest height.
    pub first: Height,
    /// The highest height; not below `first`.
    pub last: Height,
}

impl HeightRange {
    /// How many heights it holds; 0 where `last` is below `first`.
    pub fn count(&self) -> u64 {
        if self.last < self.first { 0 } else { (self.last - self.first).saturating_add(1) }
    }

    /// Whether a height lies in it.
    pub fn contains(&self, height: Height) -> bool {
        (self.first..=self.last).contains(&height)
    }

    /// Whether a height lies in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// What the host knows of a peer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Peer {
    /// Its number.
    pub id: PeerId,
    /// The head it last reported.
    pub head: Option<(Height, Hash)>,
    /// Smoothed time until the first byte, in microseconds; 0 at first.
    pub latency_us: u64,
    /// Smoothed rate, in bytes a second; 0 at first.
    pub throughput: u64,
    /// Requests in a row that failed.
    pub failures: u32,
    /// The host's opinion: 100 at best; 0 and less is left alone for a while.
    pub score: i32,
    /// Requests under way to it.
    pub in_flight: u32,
    /// No request before this moment.
    pub not_before: Time,
    /// Height of the snapshot that it offers, while this node could take one.
    pub snapshot: Option<Height>,
}

/// A request under way.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct InFlight {
    /// Its number.
    pub id: RequestId,
    /// Whom it asks.
    pub peer: PeerId,
    /// What it asks for.
    pub range: HeightRange,
    /// When it left.
    pub since: Time,
}

/// What the host will carry out.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// Blocks in one request.
    pub range_blocks_max: u32,
    /// Requests under way in all.
    pub in_flight_max: u32,
    /// Requests under way to one peer.
    pub in_flight_per_peer_max: u32,
    /// How far above the local head a range may end.
    pub window_blocks: u64,
    /// Actions in one answer.
    pub actions_max: u32,
}

/// All that the host knows, complete at every call.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct View {
    /// Now.
    pub now: Time,
    /// The local head's height and hash.
    pub head: (Height, Hash),
    /// The highest head that a peer reported.
    pub best_height: Height,
    /// What is allowed.
    pub limits: Limits,
    /// The peers.
    pub peers: Vec<Peer>,
    /// The requests under way, oldest first.
    pub in_flight: Vec<InFlight>,
    /// Ranges that are here and wait for a lower one, lowest first.
    pub waiting: Vec<HeightRange>,
}

/// What happened since the last call.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The node has started.
    Started,
    /// Time passed.
    Tick,
    /// A peer is there.
    PeerUp(PeerId),
    /// A peer is gone.
    PeerDown(PeerId),
    /// A peer reported a head.
    HeadAnnounced(PeerId),
    /// A request was answered.
    RangeArrived {
        /// Which.
        id: RequestId,
        /// Who answered.
        peer: PeerId,
        /// What came.
        range: HeightRange,
        /// Bytes received.
        bytes: u64,
        /// From request to last byte, in microseconds.
        duration_us: u64,
    },
    /// A request was not answered, or refused.
    RangeFailed(RangeFailure),
    /// A request was answered with blocks that are not valid.
    RangeInvalid(RangeFailure),
    /// Blocks became part of the local chain.
    Imported(HeightRange),
    /// A peer is on another branch.
    ForkFound {
        /// Who.
        peer: PeerId,
        /// Where it was noticed.
        height: Height,
    },
    /// A peer offers a snapshot.
    SnapshotOffered {
        /// Who.
        peer: PeerId,
        /// Of which block.
        height: Height,
    },
    /// A snapshot could not be used.
    SnapshotFailed {
        /// Whose.
        peer: PeerId,
        /// Of which block.
        height: Height,
    },
    /// This strategy takes over from another one.
    TakenOver,
}

impl View {
    /// Heights above the local head, up to `last`, that are neither here nor asked for; lowest first.
    pub fn gaps(&self, last: Height) -> Vec<HeightRange> {
        let mut taken: Vec<_> = self.in_flight.iter().map(|request| request.range).collect();
        taken.extend_from_slice(&self.waiting);
        gaps(self.head.0 + 1, last, taken)
    }
}

/// The heights from `first` to `last` that are in none of `taken`; lowest first.
pub fn gaps(first: Height, last: Height, mut taken: Vec<HeightRange>) -> Vec<HeightRange> {
    taken.sort_unstable();
    let (mut gaps, mut next) = (Vec::new(), first);
    for range in taken {
        if range.first > last {
            break;
        }
        if range.first > next {
            gaps.push(HeightRange { first: next, last: range.first - 1 });
        }
        next = next.max(range.last.saturating_add(1));
    }
    if next <= last {
        gaps.push(HeightRange { first: next, last });
    }
    gaps
}

/// An answer that was not usable.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RangeFailure {
    /// Which request.
    pub id: RequestId,
    /// Whom it asked.
    pub peer: PeerId,
    /// What it asked for.
    pub range: HeightRange,
    /// What went wrong.
    pub reason: String,
}

/// What to do. The follower checks each.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Ask for a range.
    FetchRange {
        /// Whom.
        peer: PeerId,
        /// What.
        range: HeightRange,
    },
    /// Give up a request.
    Cancel(RequestId),
    /// Take a snapshot in place of blocks.
    FetchSnapshot {
        /// Whose.
        peer: PeerId,
        /// Of which block.
        height: Height,
    },
    /// Lower a peer's score by 1 to 100 points.
    Penalise {
        /// Whose.
        peer: PeerId,
        /// By how much.
        points: u32,
    },
    /// Leave a peer alone for a while.
    DropPeer(PeerId),
    /// Call again at this moment at the latest.
    WaitUntil(Time),
    /// A line for the operator.
    Report(String),
}

/// Who plans. Cannot fail: a strategy that does is answered for by the built-in.
pub trait Strategy: Send + Sync {
    /// Decides what to do next, after `events`, in order.
    fn next(&self, view: &View, events: &[Event]) -> Vec<Action>;

    /// A number that changes when another strategy has taken over; the follower then sends [`Event::TakenOver`].
    fn generation(&self) -> u64;

    /// Counts an action that the follower refused, against the generation that asked for it.
    fn refused(&self, action: &Action, reason: &str);
}
