//! For sources that stand little: in any interval of time a peer gets no more requests, and is asked for no more
//! blocks, than its budget allows; one request at a time; and who asks to be left alone is, for as long as it says.
//!
//! What was asked of whom when is taken from the view, request by request: those that the node itself made count as
//! well, and a strategy that takes over counts what is under way.

mod ledger;

pub use ledger::Ledger;

use serde::Deserialize;
use tenon_sdk::Plugin;
use tenon_sdk::sync::{Action, Draft, Event, HeightRange, Peer, Strategy, View, head_of};

/// The plugin.
pub struct Polite {
    settings: Settings,
}

/// What a peer stands.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Requests to one peer in any interval.
    pub requests_max: u32,
    /// Blocks asked of one peer in any interval; each of its requests has an equal part.
    pub blocks_max: u32,
    /// How long an interval is, in milliseconds.
    pub interval_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { requests_max: 1, blocks_max: 1000, interval_ms: 1000 }
    }
}

impl Settings {
    fn interval_us(&self) -> u64 {
        self.interval_ms.saturating_mul(1000)
    }

    /// Blocks in one request.
    fn blocks(&self) -> u64 {
        u64::from((self.blocks_max / self.requests_max).max(1))
    }
}

impl Plugin for Polite {
    type Settings = Settings;

    const SCHEMA: &'static str = include_str!("../schema.json");

    fn new(settings: Settings) -> Result<Self, String> {
        let at_least_one = [
            ("requests_max", u64::from(settings.requests_max)),
            ("blocks_max", u64::from(settings.blocks_max)),
            ("interval_ms", settings.interval_ms),
        ];
        match at_least_one.into_iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(format!("{name} is 0: it must be at least 1")),
            None => Ok(Self { settings }),
        }
    }
}

impl Strategy for Polite {
    type Memory = Ledger;

    fn next(&self, view: &View, events: &[Event], ledger: &mut Ledger) -> Vec<Action> {
        ledger.enter(view, events, self.settings.interval_us());
        let mut draft = Draft::new(view);
        for mut gap in draft.unasked() {
            while let Some(peer) = self.choose(view, &draft, ledger, gap.first) {
                let last = gap.last.min(gap.first.saturating_add(self.settings.blocks() - 1));
                let Some(asked) = draft.fetch(peer, HeightRange { first: gap.first, last }) else { break };
                if asked.last >= gap.last {
                    break;
                }
                gap.first = asked.last + 1;
            }
        }
        if let Some(next) = draft.unasked().first() {
            for peer in view.peers.iter().filter(|peer| peer.score > 0 && head_of(peer) >= next.first) {
                let at = peer.not_before.max(self.free_at(peer, ledger));
                if at > view.now {
                    draft.wake_at(at);
                }
            }
        }
        draft.finish()
    }
}

impl Polite {
    /// The best peer that may be asked for `height` now.
    fn choose<'a>(&self, view: &'a View, draft: &Draft<'a>, ledger: &Ledger, height: u64) -> Option<&'a Peer> {
        let may = |peer: &&Peer| {
            draft.can_ask(peer, height) && draft.asked_of(peer) == 0 && self.free_at(peer, ledger) <= view.now
        };
        let order = |peer: &&Peer| (peer.failures, -i64::from(peer.score), u64::MAX - peer.throughput, peer.id);
        view.peers.iter().filter(may).min_by_key(order)
    }

    /// When the budget of a peer has room for one more request.
    fn free_at(&self, peer: &Peer, ledger: &Ledger) -> u64 {
        let Settings { requests_max, blocks_max, .. } = self.settings;
        ledger.room_at(
            peer.id,
            requests_max,
            u64::from(blocks_max),
            self.settings.blocks(),
            self.settings.interval_us(),
        )
    }
}

tenon_sdk::export_strategy!(Polite);
