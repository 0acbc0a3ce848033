//! The engine of a follower: all that it knows and all that it decides. It does no I/O, starts nothing and reads no clock:
//! what happens comes in as a [`Wake`] with the time, what is to be done comes out as [`Command`]s. So a follower drives
//! it over real connections ([`super::follower`]), and a simulation drives the same one in virtual time.
//!
//! Whoever drives it hands in each thing that happens with [`Engine::handle`], then asks for a [`Turn`]: carries out its
//! commands, hands back what comes of each, and takes the next turn as soon as something has happened, at
//! [`Turn::until`] at the latest. Every command but those that end another one has exactly one wake for an answer, unless
//! it was ended; a snapshot has several, the last of which says how it ended.
//!
//! `looks` keeps up with peers as they come and go, `round` asks the strategy, `ranges` asks for what it wants, `imports`
//! brings that onto the chain, `branch` replaces it by a better one, `snapshots` begins it with a snapshot, `report` says
//! what the world sees.

mod blocks;
mod branch;
mod imports;
mod looks;
mod order;
mod ranges;
mod report;
mod round;
mod snapshots;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub use blocks::Blocks;
pub use branch::{Switch, SwitchError};
pub use order::{Job, JobDone, Order, Segment};
pub use snapshots::{ATTEMPTS_MAX, SnapshotFault, SnapshotNews};

use branch::Branch;
use snapshots::Snapshots;

use super::budget::{Budget, Reservation};
use super::compare::Comparison;
use super::peers::{Origin, PeerBook};
use super::pipeline::RangeFault;
use super::plan::Watchdog;
use super::source::{SourceError, SourceInfo};
use super::{
    Action, Diverged, Event, HeightRange, PeerId, RefusedReorg, RequestId, SyncConfig, SyncState, SyncStatus,
    Tolerance, View,
};
use crate::chain::{BlockError, Hash, Head, Height, Time};
use crate::snapshot::source::Offer;

/// Blocks that a ledger takes back at most, unless it says otherwise.
pub const MAX_REORG_DEPTH: u64 = 256;

/// Something that happened.
pub enum Wake<B: Blocks> {
    /// The local head is another one. Handed in before the [`Wake::Stored`] of what moved it.
    Head(Head),
    /// Another strategy serves from now on, by the number of its generation.
    Strategy(u64),
    /// A peer says by itself that this is its head now.
    Announced(PeerId, (Height, Hash)),
    /// What a look at a peer shows.
    Looked(PeerId, Result<Look, SourceError>),
    /// How a peer's chain compares with ours.
    Compared(PeerId, Result<Comparison, SourceError>),
    /// A range, or why not.
    Fetched(RequestId, Result<Fetched<B::Body>, SourceError>),
    /// A range's blocks, or what is wrong with them.
    Verified(RequestId, Result<B, RangeFault>),
    /// What became of an import.
    Stored(JobDone),
    /// Whether a branch was taken in place of ours.
    Switched(Result<(), SwitchError>),
    /// What happens to the snapshot with this number.
    Snapshot(u64, SnapshotNews),
    /// What the strategy wants.
    Planned(Vec<Action>),
}

/// Something to be done.
pub enum Command<B: Blocks> {
    /// Ask a peer for its head. Answered by [`Wake::Looked`].
    Look {
        /// Whom.
        peer: PeerId,
        /// Whether to ask first who it is.
        introduce: bool,
    },
    /// Find out where a peer's chain leaves ours. Answered by [`Wake::Compared`].
    Compare {
        /// Whose.
        peer: PeerId,
        /// A height up to which it has blocks.
        height: Height,
        /// Where they differed last time.
        known: Option<Diverged>,
    },
    /// End the look at a peer, or the comparison with it.
    EndLook(PeerId),
    /// Ask a peer for a range. Answered by [`Wake::Fetched`].
    Fetch {
        /// The request's number.
        id: RequestId,
        /// Whom.
        peer: PeerId,
        /// What.
        range: HeightRange,
        /// The bytes that the answer may take, unless it can get more.
        room: Reservation,
    },
    /// End a request. An answer that came in the meantime is not heard.
    Abort(RequestId),
    /// Verify what came for a range. Answered by [`Wake::Verified`].
    Verify {
        /// The request's number.
        id: RequestId,
        /// The height that its first block has to have.
        first: Height,
        /// What came.
        body: B::Body,
    },
    /// Put blocks on the chain, after those of the jobs before. Answered by [`Wake::Stored`], in the same order.
    Import(Job<B>),
    /// Take another branch in place of ours, where it is better. Answered by [`Wake::Switched`]; until then nothing is
    /// imported.
    Switch(Switch<B>),
    /// Download a snapshot and begin the chain with it. Answered by [`Wake::Snapshot`], the last time with
    /// [`SnapshotNews::Ended`]; until then nothing is imported.
    FetchSnapshot {
        /// Its number, never twice the same.
        number: u64,
        /// Which.
        offer: Offer,
        /// Who offers it.
        peers: Vec<PeerId>,
    },
    /// End the download of a snapshot. What is here of it is kept for the next attempt.
    EndSnapshot(u64),
    /// Ask the strategy. Answered by [`Wake::Planned`]; not asked again before.
    Ask {
        /// All that is known.
        view: Arc<View>,
        /// What happened since it was last asked.
        events: Vec<Event>,
    },
    /// Tell the strategy that an action of its was not carried out.
    Refused {
        /// Which.
        action: Action,
        /// Why.
        reason: String,
    },
}

/// What a look at a peer shows.
#[derive(Clone, Debug)]
pub struct Look {
    /// Who it is, where that was asked.
    pub info: Option<SourceInfo>,
    /// Its head; none where it has no block yet.
    pub head: Option<(Height, Hash)>,
    /// Our block at its head's height, if there is one.
    pub ours: Option<Hash>,
    /// The newest snapshot that it serves.
    pub snapshot: Option<Offer>,
}

/// A range that came.
#[derive(Debug)]
pub struct Fetched<Body> {
    /// What came.
    pub body: Body,
    /// How many blocks that is.
    pub blocks: u64,
    /// Holds as many bytes of the budget as came.
    pub room: Reservation,
    /// The head that the peer reported along with it.
    pub head: Option<(Height, Hash)>,
    /// From the request to the first byte, in microseconds.
    pub first_byte_us: u64,
    /// From the request to the last byte, in microseconds.
    pub duration_us: u64,
}

/// What comes of a turn.
pub struct Turn<B: Blocks> {
    /// What is to be done, in this order.
    pub commands: Vec<Command<B>>,
    /// What the world is told, where it is time to.
    pub status: Option<SyncStatus>,
    /// Until when nothing happens by itself.
    pub until: Time,
}

/// A request under way.
struct Request {
    peer: PeerId,
    range: HeightRange,
    since: Time,
    /// Made by the watchdog: no strategy cancels it.
    rescue: bool,
}

/// A range that is being verified.
struct Verifying {
    peer: PeerId,
    asked: HeightRange,
    range: HeightRange,
    room: Reservation,
}

/// Peers whose version of a block was refused for the same reason.
struct Refusal {
    height: Height,
    error: BlockError,
    /// The first one has paid for it.
    peers: Vec<PeerId>,
}

/// A question that the strategy has not answered yet.
struct Asked {
    view: Arc<View>,
    /// Nothing else has happened since: what it saw is how things are.
    current: bool,
}

#[derive(Default)]
struct Counters {
    imported: u64,
    rescues: u64,
    refused: u64,
    failed: u64,
    report: Option<String>,
    problem: Option<String>,
    refused_reorg: Option<RefusedReorg>,
}

/// See the module.
pub struct Engine<B: Blocks> {
    us: SourceInfo,
    config: SyncConfig,
    tolerance: Tolerance,
    /// Blocks that the ledger takes back at most.
    max_reorg_depth: u64,
    budget: Budget,
    /// The time of the call that is under way; never goes back.
    now: Time,
    commands: Vec<Command<B>>,

    head: Head,
    /// When the head last moved.
    head_at: Time,
    /// When no peer was last known to have more than we.
    level_at: Time,
    peers: PeerBook,
    /// Who is being compared.
    comparing: BTreeSet<PeerId>,
    requests: BTreeMap<RequestId, Request>,
    next_request: RequestId,
    verifying: BTreeMap<RequestId, Verifying>,
    order: Order<B>,
    importing: VecDeque<HeightRange>,
    /// An import failed: those that follow it have to come back before the next one starts.
    failed_import: bool,
    imports_paused_until: Time,
    /// Versions of the lowest missing block that the ledger refused.
    refusals: Vec<Refusal>,
    branch: Option<Branch<B>>,
    snapshots: Snapshots,
    /// Bytes of a block, as they lately came; none before any did.
    block_bytes: Option<u64>,
    watchdog: Watchdog,
    over: bool,

    events: Vec<Event>,
    asked: Option<Asked>,
    /// The strategy's generation, once there is one.
    generation: Option<u64>,
    /// When it was last asked, and when it is asked again at the latest.
    asked_at: Time,
    next_call: Time,

    state: SyncState,
    published_at: Time,
    counters: Counters,
    rates: VecDeque<(Time, u64)>,
}

impl<B: Blocks> Engine<B> {
    /// An engine without peers. `us` says who this node is, by which it knows itself and its chain among the peers;
    /// `config` has been checked; `head` is the local one.
    pub fn new(us: SourceInfo, config: SyncConfig, head: Head, now: Time) -> Self {
        Self {
            budget: Budget::new(config.buffer_bytes_max),
            peers: PeerBook::new(&config),
            watchdog: Watchdog::new(config.watchdog_ms, now),
            order: Order::new(head.height + 1),
            us,
            config,
            tolerance: Tolerance::default(),
            max_reorg_depth: MAX_REORG_DEPTH,
            now,
            commands: Vec::new(),
            head,
            head_at: now,
            level_at: now,
            comparing: BTreeSet::new(),
            requests: BTreeMap::new(),
            next_request: 1,
            verifying: BTreeMap::new(),
            importing: VecDeque::new(),
            failed_import: false,
            imports_paused_until: Time(0),
            refusals: Vec::new(),
            branch: None,
            snapshots: Snapshots::new(),
            block_bytes: None,
            over: false,
            events: Vec::new(),
            asked: None,
            generation: None,
            asked_at: Time(0),
            next_call: now,
            state: SyncState::Starting,
            published_at: Time(0),
            counters: Counters::default(),
            rates: VecDeque::new(),
        }
    }

    /// Live and behind by another measure than the usual one.
    pub fn tolerate(&mut self, tolerance: Tolerance) {
        self.tolerance = tolerance;
    }

    /// Blocks that may be taken back for a better branch, where that is not [`MAX_REORG_DEPTH`].
    pub fn limit_reorgs(&mut self, blocks: u64) {
        self.max_reorg_depth = blocks;
    }

    /// The bytes that are taken: for whoever compares chains, and whoever wants to know.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The local head, as it was last told.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Who is there, and what is known of them.
    pub fn peers(&self) -> &PeerBook {
        &self.peers
    }

    /// Whether the ledger has stopped, and with it all there is to do.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Takes in a peer. Errors: one of this name is there, or too many are.
    pub fn join(&mut self, now: Time, name: String, origin: Origin) -> Result<PeerId, String> {
        self.happened(now);
        self.peers.join(name, origin, self.now)
    }

    /// A peer is gone. What was asked of it is given up and costs it nothing.
    pub fn leave(&mut self, now: Time, peer: PeerId) {
        self.happened(now);
        self.left(peer);
    }

    /// Takes in what happened. What it leads to is part of the next turn.
    pub fn handle(&mut self, now: Time, wake: Wake<B>) {
        if let Wake::Planned(actions) = wake {
            self.now = self.now.max(now);
            return self.planned(actions);
        }
        self.happened(now);
        match wake {
            Wake::Head(head) => self.head_moved(head),
            Wake::Strategy(generation) => self.serves(generation),
            Wake::Announced(peer, head) => self.announced(peer, head),
            Wake::Looked(peer, look) => self.looked(peer, look),
            Wake::Compared(peer, comparison) => self.compared(peer, comparison),
            Wake::Fetched(id, fetched) => self.fetched(id, fetched),
            Wake::Verified(id, verified) => self.verified(id, verified),
            Wake::Stored(done) => self.stored(done),
            Wake::Switched(switched) => self.switched(switched),
            Wake::Snapshot(number, news) => self.snapshot_news(number, news),
            Wake::Planned(_) => unreachable!("taken above"),
        }
    }

    /// Does what is due: imports, looks at peers, a question to the strategy, the watchdog, the status.
    pub fn turn(&mut self, now: Time) -> Turn<B> {
        self.now = self.now.max(now);
        self.peers.settle(self.now);
        self.expire_snapshot();
        self.begin_snapshot();
        self.start_switch();
        self.start_imports();
        self.start_looks();
        self.ask();
        self.watch();
        let status = self.publish();
        Turn { commands: std::mem::take(&mut self.commands), status, until: self.rest() }
    }

    fn happened(&mut self, now: Time) {
        self.now = self.now.max(now);
        if let Some(asked) = &mut self.asked {
            asked.current = false;
        }
    }
}

#[cfg(test)]
mod tests;
