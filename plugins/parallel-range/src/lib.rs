//! Many ranges in flight, over all peers that can be asked, the lowest missing height first: [`ranges`], and nothing
//! else.

use ranges::{Memory, Settings};
use tenon_sdk::Plugin;
use tenon_sdk::sync::{Action, Event, Strategy, View};

/// The plugin.
pub struct ParallelRange {
    settings: Settings,
}

impl Plugin for ParallelRange {
    type Settings = Settings;

    const SCHEMA: &'static str = ranges::schema!();

    fn new(settings: Settings) -> Result<Self, String> {
        settings.check()?;
        Ok(Self { settings })
    }
}

impl Strategy for ParallelRange {
    type Memory = Memory;

    fn next(&self, view: &View, events: &[Event], memory: &mut Memory) -> Vec<Action> {
        ranges::next(&self.settings, view, events, memory)
    }
}

tenon_sdk::export_strategy!(ParallelRange);
