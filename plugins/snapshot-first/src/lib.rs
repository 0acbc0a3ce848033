//! A snapshot first, where the node is far behind and a peer offers one near its head; the blocks above it as
//! `parallel-range` fetches them. What cannot be had as a snapshot comes as blocks.
//!
//! Who offers one shows only when the peers have answered, and a node that has blocks takes none: so before the first
//! block it waits a little for an offer.
//!
//! One snapshot at a time. One that fails, does not come in time, or whose peer goes is asked of another peer; after so
//! many of them the blocks are fetched.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};
use tenon_sdk::Plugin;
use tenon_sdk::sync::{Action, Draft, Event, Peer, PeerId, Snapshot, Strategy, Time, View, head_of};

/// The plugin.
pub struct SnapshotFirst {
    settings: Settings,
}

/// When a snapshot is worth its while.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Blocks that a snapshot has to spare the node.
    pub min_blocks: u64,
    /// How far below its peer's head it may be, in blocks.
    pub max_age_blocks: u64,
    /// How long it may take, in milliseconds.
    pub patience_ms: u64,
    /// How long to wait for somebody to offer one, in milliseconds, before the first block is asked for.
    pub offer_ms: u64,
    /// How many may fail before the blocks are fetched instead; 0: none is tried.
    pub attempts: u32,
    /// How blocks are fetched.
    pub ranges: ranges::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            min_blocks: 50_000,
            max_age_blocks: 50_000,
            patience_ms: 600_000,
            offer_ms: 1_000,
            attempts: 3,
            ranges: ranges::Settings::default(),
        }
    }
}

/// What is remembered from call to call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The snapshot that was asked for.
    awaited: Option<Awaited>,
    /// Whose snapshots were of no use, one after the other; none after one that was.
    failed: Vec<PeerId>,
    /// When it first was far behind without a block.
    began: Option<Time>,
    ranges: ranges::Memory,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Awaited {
    peer: PeerId,
    height: u64,
    since: Time,
}

impl Plugin for SnapshotFirst {
    type Settings = Settings;

    const MEMORY_VERSION: u32 = 2;

    const SCHEMA: &'static str = concat!(
        r#"{ "type": "object", "additionalProperties": false, "properties": {
  "min_blocks": { "type": "integer", "minimum": 1, "maximum": 9007199254740991,
    "description": "blocks that a snapshot has to spare; 50000 unless given" },
  "max_age_blocks": { "type": "integer", "minimum": 0, "maximum": 9007199254740991,
    "description": "how far below its peer's head it may be; 50000 unless given" },
  "patience_ms": { "type": "integer", "minimum": 1, "maximum": 86400000,
    "description": "how long it may take; 600000 unless given" },
  "offer_ms": { "type": "integer", "minimum": 0, "maximum": 60000,
    "description": "how long to wait for an offer before the first block is asked for; 1000 unless given" },
  "attempts": { "type": "integer", "minimum": 0, "maximum": 100,
    "description": "how many may fail before blocks are fetched instead; 3 unless given" },
  "ranges": "#,
        ranges::schema!(),
        "} }"
    );

    fn new(settings: Settings) -> Result<Self, String> {
        settings.ranges.check()?;
        for (name, value) in [("min_blocks", settings.min_blocks), ("patience_ms", settings.patience_ms)] {
            if value == 0 {
                return Err(format!("{name} is 0: it must be at least 1"));
            }
        }
        Ok(Self { settings })
    }
}

impl Strategy for SnapshotFirst {
    type Memory = Memory;

    fn next(&self, view: &View, events: &[Event], memory: &mut Memory) -> Vec<Action> {
        self.learn(view, events, memory);
        let mut draft = Draft::new(view);
        if memory.awaited.is_none()
            && let Some(snapshot) = self.choose(view, memory)
            && draft.has_room()
        {
            memory.awaited = Some(Awaited { peer: snapshot.peer, height: snapshot.height, since: view.now });
            draft.fetch_snapshot(snapshot);
        }
        let wait_until = match memory.awaited {
            Some(awaited) => Some(awaited.since.saturating_add(self.patience_us())),
            None => self.waits_for_offer(view, memory),
        };
        match wait_until {
            Some(until) => {
                draft.wake_at(until);
                draft.finish()
            }
            None => ranges::next(&self.settings.ranges, view, events, &mut memory.ranges),
        }
    }
}

impl SnapshotFirst {
    fn patience_us(&self) -> u64 {
        self.settings.patience_ms.saturating_mul(1000)
    }

    /// What became of the snapshot that was asked for.
    fn learn(&self, view: &View, events: &[Event], memory: &mut Memory) {
        for event in events {
            // Whichever it was: the node works on one at a time, so another one is not under way either.
            if let Event::SnapshotFailed(snapshot) = event {
                memory.awaited = None;
                self.note_failure(snapshot.peer, memory);
            }
        }
        let Some(awaited) = &mut memory.awaited else { return };
        if view.head.height >= awaited.height {
            memory.awaited = None;
            memory.failed.clear();
            return;
        }
        // A clock that was set back must not make the wait longer.
        awaited.since = awaited.since.min(view.now);
        let Awaited { peer, since, .. } = *awaited;
        let is_late = view.now - since >= self.patience_us();
        if is_late || !view.peers.iter().any(|known| known.id == peer) {
            memory.awaited = None;
            self.note_failure(peer, memory);
        }
    }

    fn note_failure(&self, peer: PeerId, memory: &mut Memory) {
        if memory.failed.len() < self.settings.attempts as usize {
            memory.failed.push(peer);
        }
    }

    /// Until when somebody may still offer a snapshot that is worth it, if nothing has begun yet.
    fn waits_for_offer(&self, view: &View, memory: &mut Memory) -> Option<Time> {
        let is_far = view.best_height.saturating_sub(view.head.height) >= self.settings.min_blocks;
        let is_fresh = view.head.height == 0 && view.in_flight.is_empty() && view.waiting.is_empty();
        if !is_far || !is_fresh || !memory.failed.is_empty() || self.settings.attempts == 0 {
            return None;
        }
        // A clock that was set back must not make the wait longer.
        let began = memory.began.map_or(view.now, |began| began.min(view.now));
        memory.began = Some(began);
        let until = began.saturating_add(self.settings.offer_ms.saturating_mul(1000));
        (view.now < until).then_some(until)
    }

    /// The snapshot to take: the highest, of the best peer. None: it would not spare enough, or too many have failed.
    fn choose(&self, view: &View, memory: &Memory) -> Option<Snapshot> {
        if memory.failed.len() >= self.settings.attempts as usize {
            return None;
        }
        let order = |(height, peer): &(u64, &Peer)| {
            (*height, Reverse(peer.failures), peer.score, peer.throughput, Reverse(peer.id))
        };
        let (height, peer) =
            view.peers.iter().filter_map(|peer| Some((self.worth(peer, view, memory)?, peer))).max_by_key(order)?;
        Some(Snapshot { peer: peer.id, height })
    }

    /// The height of the snapshot of `peer`, if it can be had and is worth it.
    fn worth(&self, peer: &Peer, view: &View, memory: &Memory) -> Option<u64> {
        let height = peer.snapshot?;
        let spared = height.saturating_sub(view.head.height);
        // The host takes none that one request could stand in for.
        let spares = spared >= self.settings.min_blocks && spared > u64::from(view.limits.range_blocks_max);
        let is_near = head_of(peer).checked_sub(height).is_some_and(|age| age <= self.settings.max_age_blocks);
        let may_ask = peer.score > 0 && peer.not_before <= view.now && !memory.failed.contains(&peer.id);
        (spares && is_near && may_ask).then_some(height)
    }
}

tenon_sdk::export_strategy!(SnapshotFirst);
