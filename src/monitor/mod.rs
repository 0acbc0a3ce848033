//! The node looks at itself: whether requests should come here, and what its operator should be told.
//!
//! [`observe`] puts together what is known, as one plain [`Observation`]. From there on everything is pure, with the
//! time as an argument: [`ready`] says whether the node is ready and why not, [`rules`] which conditions hold, and
//! [`alert`] when a condition has held for long enough to be an alert and has been over for long enough to be none.
//! [`task`] looks once a second, and carries what changes to the log, the events and the [`webhook`].

pub mod alert;
mod observe;
pub mod ready;
pub mod rules;
mod task;
pub mod webhook;

use std::collections::BTreeMap;

use crate::chain::{Height, Time};
use crate::sync::{Diverged, RefusedReorg, SyncState};

pub use observe::{Observed, Observer, QueueProbe};
pub use ready::{Readiness, readiness};
pub use rules::Thresholds;
pub use task::{Alerts, Monitor, MonitorParts};

/// All that alerts and readiness are decided from, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// When.
    pub now: Time,
    /// Whether the node makes blocks.
    pub is_authority: bool,
    /// The local head's height.
    pub height: Height,
    /// How old the local head is, in milliseconds.
    pub head_age_ms: u64,
    /// How long no block has been added, in milliseconds; at most since the start.
    pub import_age_ms: u64,
    /// How it stands against its sources.
    pub sync: SyncFacts,
    /// Whether the last commit failed: a full disk, as a rule. Nothing is stored until one succeeds.
    pub is_storage_failing: bool,
    /// The disk that the database is on; none where it cannot be asked.
    pub disk: Option<Disk>,
    /// The last reorganisation that was refused since it goes too deep.
    pub refused_reorg: Option<RefusedReorg>,
    /// The last verification of the whole state; none where there was none.
    pub verification: Option<Verification>,
    /// How old that may get, in milliseconds; none where the node does not verify by itself.
    pub verification_age_max_ms: Option<u64>,
    /// Slots whose plugin is in trouble.
    pub plugins: Vec<PluginTrouble>,
    /// What each agent has set aside; empty as long as nobody has looked.
    pub agents: Vec<Parked>,
    /// Slots that are not served by what is wanted of them, and why.
    pub refused_plugins: Vec<PluginTrouble>,
    /// What waits where, and how much may.
    pub queues: Vec<Queue>,
    /// Transactions that wait for a block.
    pub pending: u64,
}

/// How the node stands against its sources.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SyncFacts {
    /// In one word.
    pub state: SyncState,
    /// The best head that a usable source reported; the local one where none did.
    pub best_height: Height,
    /// Blocks that the local head lies below it.
    pub lag_blocks: u64,
    /// How old the local head is while it is below it, in seconds; else 0.
    pub lag_seconds: u64,
    /// Sources by standing: `unknown`, `up`, `down`, `refused`, `diverged`.
    pub standings: BTreeMap<String, u64>,
    /// Why sources are not used: address and reason.
    pub unused: Vec<(String, String)>,
    /// Two valid blocks at one height, if a source has another one.
    pub diverged: Option<Diverged>,
    /// What keeps sync from going on.
    pub problem: Option<String>,
    /// Whether sync has ended while the node runs, which is a fault of ours.
    pub has_ended: bool,
}

/// How full a disk is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// What this process may still write.
    pub free: u64,
    /// Its size.
    pub total: u64,
}

/// A verification of the whole state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// When it ended.
    pub at: Time,
    /// The block whose state it was.
    pub height: Height,
    /// What does not hold; none: all does.
    pub problem: Option<String>,
}

/// A slot whose plugin is in trouble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginTrouble {
    /// The slot.
    pub slot: String,
    /// What happened, in a few words.
    pub text: String,
}

/// What an agent has set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// The agent.
    pub agent: String,
    /// How many events.
    pub parked: u64,
    /// Of these, those that wait for a handler.
    pub unheard: u64,
}

/// Something that can fill up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: &'static str,
    /// How much is in it.
    pub depth: u64,
    /// How much there may be; none where being full is its ordinary work, as it is of the buffers of a catch-up.
    pub limit: Option<u64>,
}
