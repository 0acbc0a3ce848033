//! A sync strategy that misbehaves on demand: for tests of the host.
//!
//! The configuration says how, and from which call on. Until then it asks one peer for the lowest missing range. The
//! calls are counted in its memory; one that traps is not counted, and the next one traps again.

#[path = "../../faults/src/harm.rs"]
mod harm;

use serde::{Deserialize, Serialize};
use tenon_sdk::Plugin;
use tenon_sdk::sync::{Action, Event, Fetch, HeightRange, Peer, PeerId, Penalty, Snapshot, Strategy, View};

/// Actions of a flood: more than any host takes.
pub const FLOOD: usize = 100_000;
/// Bytes of a memory that is too large.
pub const HUGE_MEMORY_BYTES: usize = 2 << 20;
/// A peer that no host has.
pub const NOBODY: PeerId = u32::MAX;

/// The plugin.
pub struct Faults {
    settings: Settings,
}

/// What goes wrong, and when.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What goes wrong.
    pub mode: Mode,
    /// The first call for which it does; 0 and 1 are the first.
    pub from_call: u64,
}

/// What can go wrong.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Nothing: one peer, one range at a time.
    #[default]
    OnePeer,
    /// Never asks for anything.
    Idle,
    /// Says that it need not be called again before the end of time.
    WaitForEver,
    /// A panic, and so a trap.
    Panic,
    /// An endless loop.
    Spin,
    /// Memory without end.
    Hoard,
    /// Recursion without end.
    Recurse,
    /// Asks a peer that does not exist.
    UnknownPeer,
    /// Asks for more blocks than a request may have.
    TooLong,
    /// Asks for blocks above the window.
    BeyondWindow,
    /// Asks for blocks that are there.
    BelowHead,
    /// A range whose last height is below its first.
    Reversed,
    /// The whole of the heights there are.
    Everything,
    /// Asks every peer for the same range, more often than is allowed.
    Repeat,
    /// 100,000 actions at once.
    Flood,
    /// Gives up a request that nobody made.
    CancelUnknown,
    /// Gives up every request, at every call.
    CancelAll,
    /// Fines of 0 and of four billion points, and one for nobody.
    PenaltyHuge,
    /// Leaves every peer alone.
    DropAll,
    /// Takes a snapshot that nobody offers.
    UnknownSnapshot,
    /// A report of a mebibyte.
    ReportHuge,
    /// A memory of two mebibytes.
    MemoryHuge,
    /// 20,000 lines of log, then as it should be.
    FloodLog,
    /// `configure` returns an error.
    ConfigureError,
}

/// What it remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Calls so far.
    pub calls: u64,
    ballast: Vec<u8>,
}

impl Plugin for Faults {
    type Settings = Settings;

    const SCHEMA: &'static str = include_str!("../schema.json");

    fn new(settings: Settings) -> Result<Self, String> {
        match settings.mode {
            Mode::ConfigureError => Err("refused, as the configuration demands".to_owned()),
            _ => Ok(Self { settings }),
        }
    }
}

impl Strategy for Faults {
    type Memory = Memory;

    fn next(&self, view: &View, _: &[Event], memory: &mut Memory) -> Vec<Action> {
        memory.calls = memory.calls.saturating_add(1);
        if memory.calls < self.settings.from_call {
            return one_peer(view);
        }
        if self.settings.mode == Mode::MemoryHuge {
            memory.ballast = vec![1; HUGE_MEMORY_BYTES];
        }
        actions(self.settings.mode, view)
    }
}

/// The lowest missing range from the first peer that has it, when nothing is under way.
fn one_peer(view: &View) -> Vec<Action> {
    let range = lowest(view);
    let able = |peer: &&Peer| {
        peer.score > 0
            && peer.not_before <= view.now
            && peer.head.as_ref().is_some_and(|head| head.height >= range.last)
    };
    match view.peers.iter().find(able) {
        Some(peer) if view.in_flight.is_empty() && range.first <= range.last => {
            vec![fetch(peer.id, range)]
        }
        _ => Vec::new(),
    }
}

fn lowest(view: &View) -> HeightRange {
    let first = view.head.height.saturating_add(1);
    let blocks = u64::from(view.limits.range_blocks_max).min(view.limits.window_blocks);
    HeightRange { first, last: view.head.height.saturating_add(blocks).min(view.best_height) }
}

fn fetch(peer: PeerId, range: HeightRange) -> Action {
    Action::FetchRange(Fetch { peer, range })
}

fn actions(mode: Mode, view: &View) -> Vec<Action> {
    let peer = view.peers.first().map_or(NOBODY, |peer| peer.id);
    let HeightRange { first, last } = lowest(view);
    let window = view.limits.window_blocks;
    match mode {
        Mode::OnePeer | Mode::MemoryHuge | Mode::ConfigureError => one_peer(view),
        Mode::Idle => Vec::new(),
        Mode::WaitForEver => vec![Action::WaitUntil(u64::MAX)],
        Mode::Panic => panic!("a panic, as the configuration demands"),
        Mode::Spin => harm::spin(),
        Mode::Hoard => harm::hoard(),
        Mode::Recurse => vec![Action::WaitUntil(harm::recurse(0))],
        Mode::UnknownPeer => vec![fetch(NOBODY, HeightRange { first, last })],
        Mode::TooLong => {
            let last = first.saturating_add(u64::from(view.limits.range_blocks_max));
            vec![fetch(peer, HeightRange { first, last })]
        }
        Mode::BeyondWindow => {
            let above = first.saturating_add(window);
            vec![fetch(peer, HeightRange { first: above, last: above })]
        }
        Mode::BelowHead => vec![fetch(peer, HeightRange { first: view.head.height, last: view.head.height })],
        Mode::Reversed => vec![fetch(peer, HeightRange { first: last.saturating_add(1), last: first })],
        Mode::Everything => vec![fetch(peer, HeightRange { first: 0, last: u64::MAX })],
        Mode::Repeat => {
            let every = view.peers.iter().map(|peer| fetch(peer.id, HeightRange { first, last }));
            every.cycle().take(view.limits.actions_max as usize).collect()
        }
        Mode::Flood => vec![fetch(peer, HeightRange { first, last: first }); FLOOD],
        Mode::CancelUnknown => vec![Action::Cancel(u64::MAX)],
        Mode::CancelAll => view.in_flight.iter().map(|request| Action::Cancel(request.id)).collect(),
        Mode::PenaltyHuge => {
            let penalty = |peer, points| Action::Penalise(Penalty { peer, points });
            vec![penalty(peer, 0), penalty(peer, u32::MAX), penalty(NOBODY, 1)]
        }
        Mode::DropAll => view.peers.iter().map(|peer| Action::DropPeer(peer.id)).collect(),
        Mode::UnknownSnapshot => {
            vec![
                Action::FetchSnapshot(Snapshot { peer, height: u64::MAX }),
                Action::FetchSnapshot(Snapshot { peer: NOBODY, height: first }),
            ]
        }
        Mode::ReportHuge => vec![Action::Report("report ".repeat(150_000))],
        Mode::FloodLog => {
            harm::flood_log();
            one_peer(view)
        }
    }
}

tenon_sdk::export_strategy!(Faults);

#[cfg(test)]
mod tests {
    use tenon_sdk::sync::{Head, Limits};

    use super::*;

    fn view() -> View {
        let head = |height| Head { height, hash: vec![0; 32] };
        let peer = Peer {
            id: 3,
            head: Some(head(100)),
            latency_us: 0,
            throughput: 0,
            failures: 0,
            score: 100,
            in_flight: 0,
            not_before: 0,
            snapshot: None,
        };
        View {
            now: 0,
            head: head(0),
            best_height: 100,
            limits: Limits {
                range_blocks_max: 10,
                in_flight_max: 4,
                in_flight_per_peer_max: 2,
                window_blocks: 50,
                actions_max: 8,
            },
            peers: vec![peer],
            in_flight: Vec::new(),
            waiting: Vec::new(),
        }
    }

    fn strategy(settings: &str) -> Faults {
        Faults::new(tenon_sdk::settings::<Faults>(settings).unwrap()).unwrap()
    }

    #[test]
    fn it_behaves_until_the_call_it_was_told() {
        let strategy = strategy(r#"{"mode": "unknown-peer", "from_call": 2}"#);
        let mut memory = Memory::default();
        let good = vec![fetch(3, HeightRange { first: 1, last: 10 })];
        assert_eq!(strategy.next(&view(), &[Event::Started], &mut memory), good);
        let bad = vec![fetch(NOBODY, HeightRange { first: 1, last: 10 })];
        assert_eq!(strategy.next(&view(), &[Event::Tick], &mut memory), bad);
    }

    #[test]
    fn each_breach_is_one() {
        let actions =
            |mode: &str| strategy(&format!(r#"{{"mode": "{mode}"}}"#)).next(&view(), &[], &mut Memory::default());
        assert_eq!(actions("idle"), []);
        assert_eq!(actions("too-long"), [fetch(3, HeightRange { first: 1, last: 11 })]);
        assert_eq!(actions("beyond-window"), [fetch(3, HeightRange { first: 51, last: 51 })]);
        assert_eq!(actions("below-head"), [fetch(3, HeightRange { first: 0, last: 0 })]);
        assert_eq!(actions("reversed"), [fetch(3, HeightRange { first: 11, last: 1 })]);
        assert_eq!(actions("repeat").len(), 8);
        assert_eq!(actions("flood").len(), FLOOD);
    }

    #[test]
    fn a_huge_memory_is_huge() {
        let strategy = strategy(r#"{"mode": "memory-huge"}"#);
        let (_, memory) = tenon_sdk::sync::step(&strategy, "faults-sync", &view(), &[], &[]);
        assert!(memory.len() > HUGE_MEMORY_BYTES);
    }
}
