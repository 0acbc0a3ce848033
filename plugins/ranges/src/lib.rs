//! Many ranges in flight, over all peers that can be asked, the lowest missing height first. A library, for the
//! strategies that fetch so: `parallel-range`, and `snapshot-first` above its snapshot.
//!
//! How much is asked of a peer at once follows what it has shown: a range is as long as it sends within a size and a
//! time, and there are more of them while all are answered. What a peer failed to give is asked of another one, and the
//! peer rests for a while. The lowest range, which everything above waits for, is asked of a second peer when it takes
//! long; at the end, when nothing is left to ask for, so are the ranges that a slow peer still holds, of idle faster
//! ones.
//!
//! Everything that matters is in the view. The memory only makes the next decision better, so a strategy that takes
//! over in the middle of a sync, or whose memory is lost, goes on where the other stopped.

mod memory;
mod plan;

pub use memory::Memory;

use serde::Deserialize;
use tenon_sdk::sync::{Action, Event, View};

/// JSON Schema of [`Settings`].
#[macro_export]
macro_rules! schema {
    () => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../ranges/schema.json"))
    };
}

/// How eagerly to ask.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Blocks in the first range asked of a peer, and at least in any later one where nothing else forbids it.
    pub start_blocks: u32,
    /// How many bytes a range should bring.
    pub target_bytes: u64,
    /// How long a range should take, in milliseconds; of a peer far away, twice its latency.
    pub target_ms: u64,
    /// How long the lowest range may take, in milliseconds and at least, before another peer is asked as well; 0 for
    /// never.
    pub hedge_ms: u64,
    /// Requests under way to one peer; the node's own limit holds besides.
    pub requests_per_peer: u32,
    /// What blocks that are not valid cost a peer, in points of its score, 1 to 100.
    pub penalty: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            start_blocks: 128,
            target_bytes: 1 << 20,
            target_ms: 250,
            hedge_ms: 2000,
            requests_per_peer: 16,
            penalty: 50,
        }
    }
}

impl Settings {
    /// Whether every number is in range. Errors: the first that is not.
    pub fn check(&self) -> Result<(), String> {
        let at_least_one = [
            ("start_blocks", u64::from(self.start_blocks)),
            ("target_bytes", self.target_bytes),
            ("target_ms", self.target_ms),
            ("requests_per_peer", u64::from(self.requests_per_peer)),
        ];
        for (name, value) in at_least_one {
            if value == 0 {
                return Err(format!("{name} is 0: it must be at least 1"));
            }
        }
        if !(1..=100).contains(&self.penalty) {
            return Err(format!("penalty is {}: it must be 1 to 100", self.penalty));
        }
        Ok(())
    }
}

/// Decides what to do next: one step of a strategy.
pub fn next(settings: &Settings, view: &View, events: &[Event], memory: &mut Memory) -> Vec<Action> {
    let mut plan = plan::Plan::new(settings, view, memory);
    for event in events {
        plan.learn(event);
    }
    plan.tidy();
    plan.fetch_unasked();
    plan.hedge_lowest();
    plan.relieve_the_slow();
    plan.finish()
}
