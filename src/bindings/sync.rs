//! `tenon:sync` <-> [`crate::sync`].

use serde::{Deserialize, Serialize};
use tenon_runtime::wasmtime::{self, Store};
use tenon_runtime::{Context, Kind, Limits, Refusal, Slot, world};

use crate::chain::Time;
use crate::sync::{self, Action, Event, HeightRange, RangeFailure, Strategy, View};

mod wit {
    tenon_runtime::wasmtime::component::bindgen!({
        path: ["wit/host", "wit/chain", "wit/sync"],
        world: "tenon:sync/sync-strategy",
        wasmtime_crate: tenon_runtime::wasmtime,
    });
}
use wit::exports::tenon::sync::strategy;
use wit::tenon::chain::types;

/// The kind of plugin that plans block sync.
pub struct SyncStrategy;

/// What a strategy is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// All that the host knows.
    pub view: View,
    /// What happened since the last call.
    pub events: Vec<Event>,
}

/// What a strategy may remember, in bytes.
const MEMORY_MAX_BYTES: usize = 1 << 20;
/// How long a report may be, in bytes; more is cut.
const REPORT_MAX_BYTES: usize = 200;

impl Kind for SyncStrategy {
    const NAME: &'static str = "sync";
    const INTERFACE: &'static str = "tenon:sync/strategy@0.1.0";
    const WORLD: &'static str = "tenon:sync/sync-strategy@0.1.0";
    const WIT: &'static [&'static str] = &[super::CHAIN_WIT, include_str!("../../wit/sync/strategy.wit")];

    type Key = ();
    type Request = Question;
    type Answer = Vec<Action>;
    type Memory = Vec<u8>;
    type Wire = Vec<u8>;
    const MIGRATION: Option<&'static str> = Some("tenon:sync/migration@0.1.0");
    world!(wit::SyncStrategy, wit::SyncStrategyIndices);

    /// Blocks come because they were asked for.
    const STEERS: bool = true;

    fn step(
        world: &Self::World,
        store: &mut Store<Context>,
        question: &Question,
        memory: &Vec<u8>,
    ) -> wasmtime::Result<(Vec<Action>, Vec<u8>)> {
        let events: Vec<_> = question.events.iter().map(strategy::Event::from).collect();
        let view = strategy::View::from(&question.view);
        let (actions, memory) = world.tenon_sync_strategy().call_next(store, &view, &events, memory)?;
        Ok((actions.into_iter().map(Action::from).collect(), memory))
    }

    fn step_key() -> Option<()> {
        Some(())
    }

    fn to_wire(memory: &Vec<u8>) -> Vec<u8> {
        memory.clone()
    }

    fn from_wire(memory: Vec<u8>) -> Vec<u8> {
        memory
    }

    /// The most that it does: fetches before anything else, since they are what a strategy is for.
    fn label(actions: &Vec<Action>) -> &'static str {
        let has = |wanted: fn(&Action) -> bool| actions.iter().any(wanted);
        if has(|action| matches!(action, Action::FetchRange { .. })) {
            "fetch"
        } else if actions.is_empty() {
            "nothing"
        } else {
            "other"
        }
    }

    fn labels() -> &'static [&'static str] {
        &["fetch", "nothing", "other"]
    }

    fn check(question: &Question, actions: &Vec<Action>, _: &Limits) -> Result<(), Refusal> {
        let max = question.view.limits.actions_max as usize;
        if actions.len() > max {
            return Err(Refusal::new(format!("{} actions, at most {max} are allowed", actions.len())));
        }
        Ok(())
    }

    fn size_bytes(actions: &Vec<Action>, memory: &Vec<u8>) -> usize {
        // A memory beyond its own bound counts as an answer beyond every bound.
        if memory.len() > MEMORY_MAX_BYTES {
            return usize::MAX;
        }
        memory.len() + size_of_val(actions.as_slice())
    }

    fn now_us(question: &Question) -> u64 {
        question.view.now.0
    }
}

impl Strategy for Slot<SyncStrategy> {
    fn next(&self, view: &View, events: &[Event]) -> Vec<Action> {
        self.decide(&(), &Question { view: view.clone(), events: events.to_vec() })
    }

    fn generation(&self) -> u64 {
        Slot::generation(self)
    }

    fn refused(&self, action: &Action, reason: &str) {
        Slot::refused(self, Slot::generation(self), Refusal::new(format!("{action:?}: {reason}")));
    }
}

impl From<&View> for strategy::View {
    fn from(view: &View) -> Self {
        Self {
            now: view.now.0,
            head: head(&view.head),
            best_height: view.best_height,
            limits: strategy::Limits {
                range_blocks_max: view.limits.range_blocks_max,
                in_flight_max: view.limits.in_flight_max,
                in_flight_per_peer_max: view.limits.in_flight_per_peer_max,
                window_blocks: view.limits.window_blocks,
                actions_max: view.limits.actions_max,
            },
            peers: view.peers.iter().map(strategy::Peer::from).collect(),
            in_flight: view.in_flight.iter().map(strategy::InFlight::from).collect(),
            waiting: view.waiting.iter().map(range).collect(),
        }
    }
}

impl From<&sync::Peer> for strategy::Peer {
    fn from(peer: &sync::Peer) -> Self {
        Self {
            id: peer.id,
            head: peer.head.as_ref().map(head),
            latency_us: peer.latency_us,
            throughput: peer.throughput,
            failures: peer.failures,
            score: peer.score,
            in_flight: peer.in_flight,
            not_before: peer.not_before.0,
            snapshot: peer.snapshot,
        }
    }
}

impl From<&sync::InFlight> for strategy::InFlight {
    fn from(request: &sync::InFlight) -> Self {
        Self { id: request.id, peer: request.peer, range: range(&request.range), since: request.since.0 }
    }
}

impl From<&Event> for strategy::Event {
    fn from(event: &Event) -> Self {
        match event {
            Event::Started => Self::Started,
            Event::Tick => Self::Tick,
            Event::PeerUp(peer) => Self::PeerUp(*peer),
            Event::PeerDown(peer) => Self::PeerDown(*peer),
            Event::HeadAnnounced(peer) => Self::HeadAnnounced(*peer),
            Event::RangeArrived { id, peer, range: came, bytes, duration_us } => {
                let (id, peer, bytes, duration_us) = (*id, *peer, *bytes, *duration_us);
                Self::RangeArrived(strategy::Arrival { id, peer, range: range(came), bytes, duration_us })
            }
            Event::RangeFailed(failed) => Self::RangeFailed(failure(failed)),
            Event::RangeInvalid(failed) => Self::RangeInvalid(failure(failed)),
            Event::Imported(imported) => Self::Imported(range(imported)),
            Event::ForkFound { peer, height } => Self::ForkFound(strategy::Fork { peer: *peer, height: *height }),
            Event::SnapshotOffered { peer, height } => {
                Self::SnapshotOffered(strategy::Snapshot { peer: *peer, height: *height })
            }
            Event::SnapshotFailed { peer, height } => {
                Self::SnapshotFailed(strategy::Snapshot { peer: *peer, height: *height })
            }
            Event::TakenOver => Self::TakenOver,
        }
    }
}

impl From<strategy::Action> for Action {
    fn from(action: strategy::Action) -> Self {
        match action {
            strategy::Action::FetchRange(fetch) => {
                let range = HeightRange { first: fetch.range.first, last: fetch.range.last };
                Self::FetchRange { peer: fetch.peer, range }
            }
            strategy::Action::Cancel(id) => Self::Cancel(id),
            strategy::Action::FetchSnapshot(snapshot) => {
                Self::FetchSnapshot { peer: snapshot.peer, height: snapshot.height }
            }
            strategy::Action::Penalise(penalty) => Self::Penalise { peer: penalty.peer, points: penalty.points },
            strategy::Action::DropPeer(peer) => Self::DropPeer(peer),
            strategy::Action::WaitUntil(time) => Self::WaitUntil(Time(time)),
            strategy::Action::Report(mut text) => {
                text.truncate(text.floor_char_boundary(REPORT_MAX_BYTES));
                Self::Report(text)
            }
        }
    }
}

fn head((height, hash): &(crate::chain::Height, crate::chain::Hash)) -> types::Head {
    types::Head { height: *height, hash: hash.0.to_vec() }
}

fn range(range: &HeightRange) -> types::HeightRange {
    types::HeightRange { first: range.first, last: range.last }
}

fn failure(failure: &RangeFailure) -> strategy::Failure {
    let RangeFailure { id, peer, range: asked, reason } = failure;
    strategy::Failure { id: *id, peer: *peer, range: range(asked), reason: reason.clone() }
}
