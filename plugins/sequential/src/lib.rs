//! One request at a time, from the best peer. As simple as a strategy can be: what others are measured against, and the
//! way to sync from a source that stands no more.

use std::cmp::Reverse;

use serde::Deserialize;
use tenon_sdk::Plugin;
use tenon_sdk::sync::{Action, Draft, Event, HeightRange, Peer, Strategy, View, len};

/// The plugin.
pub struct Sequential {
    settings: Settings,
}

/// How much it asks for.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Blocks in one request; the node's own limit holds besides.
    pub blocks: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { blocks: 1000 }
    }
}

impl Plugin for Sequential {
    type Settings = Settings;

    const SCHEMA: &'static str = include_str!("../schema.json");

    fn new(settings: Settings) -> Result<Self, String> {
        match settings.blocks {
            0 => Err("blocks is 0: it must be at least 1".to_owned()),
            _ => Ok(Self { settings }),
        }
    }
}

impl Strategy for Sequential {
    type Memory = ();

    fn next(&self, view: &View, _: &[Event], (): &mut ()) -> Vec<Action> {
        let mut draft = Draft::new(view);
        if draft.request_count() == 0
            && let Some(gap) = draft.unasked().first()
        {
            let HeightRange { first, mut last } = *gap;
            if len(gap) > u64::from(self.settings.blocks) {
                last = first + u64::from(self.settings.blocks) - 1;
            }
            // Who failed comes after all others: it may be that it has not got the block.
            let order = |peer: &&Peer| (Reverse(peer.failures), peer.score, peer.throughput, Reverse(peer.id));
            match view.peers.iter().filter(|peer| draft.can_ask(peer, first)).max_by_key(order) {
                Some(peer) => _ = draft.fetch(peer, HeightRange { first, last }),
                None => view.peers.iter().map(|peer| peer.not_before).filter(|at| *at > view.now).for_each(|at| {
                    draft.wake_at(at);
                }),
            }
        }
        draft.finish()
    }
}

tenon_sdk::export_strategy!(Sequential);
