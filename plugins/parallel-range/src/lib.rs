//! Many ranges in flight, over all peers that can be asked, the lowest missing height first.
//!
//! How much is asked for at once follows what arrives: ranges grow while they come in below a size and a time, and shrink
//! when they do not. What a peer failed to give is asked of another one, and the peer rests for a while; the lowest
//! range, which everything above waits for, is asked of a second peer when it takes long.
//!
//! Everything that matters is in the view. The memory only makes the next decision better, so a strategy that takes over
//! in the middle of a sync, or whose memory is lost, goes on where the other stopped.

mod gaps;
mod memory;
mod plan;

pub use memory::Memory;

use serde::Deserialize;
use tenon_sdk::Plugin;
use tenon_sdk::sync::{Action, Event, Strategy, View};

use crate::plan::Plan;

/// The plugin.
pub struct ParallelRange {
    settings: Settings,
}

/// How eagerly it asks.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Blocks in the first range asked of a peer.
    pub start_blocks: u32,
    /// How many bytes a range should bring.
    pub target_bytes: u64,
    /// How long a range should take, in milliseconds.
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
            start_blocks: 32,
            target_bytes: 1 << 20,
            target_ms: 500,
            hedge_ms: 2000,
            requests_per_peer: 16,
            penalty: 50,
        }
    }
}

impl Plugin for ParallelRange {
    type Settings = Settings;

    const SCHEMA: &'static str = include_str!("../schema.json");

    fn new(settings: Settings) -> Result<Self, String> {
        let at_least_one = [
            ("start_blocks", u64::from(settings.start_blocks)),
            ("target_bytes", settings.target_bytes),
            ("target_ms", settings.target_ms),
            ("requests_per_peer", u64::from(settings.requests_per_peer)),
        ];
        for (name, value) in at_least_one {
            if value == 0 {
                return Err(format!("{name} is 0: it must be at least 1"));
            }
        }
        if !(1..=100).contains(&settings.penalty) {
            return Err(format!("penalty is {}: it must be 1 to 100", settings.penalty));
        }
        Ok(Self { settings })
    }
}

impl Strategy for ParallelRange {
    type Memory = Memory;

    fn next(&self, view: &View, events: &[Event], memory: &mut Memory) -> Vec<Action> {
        let mut plan = Plan::new(&self.settings, view, memory);
        for event in events {
            plan.learn(event);
        }
        plan.tidy();
        plan.cancel_overtaken();
        plan.fetch_missing();
        plan.hedge_lowest();
        plan.finish()
    }
}

tenon_sdk::export_strategy!(ParallelRange);
