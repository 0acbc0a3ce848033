//! A node in virtual time, for tests of strategies: peers that are slow, fail, lie, stop short, limit or never answer,
//! and the strategy through the same door as in the node, with its memory as bytes. Every rule of the contract is
//! asserted.
//!
//! Not the node itself: `tenon plugin simulate` runs a component under the node's own rules.

mod nature;

use std::collections::BTreeMap;

use super::draft::{DOUBLE_AFTER_US, head_of, len, overlap};
use super::{
    Action, Arrival, Event, Failure, Fetch, Head, HeightRange, InFlight, Limits, Peer, PeerId, Snapshot, Strategy,
    Time, View, missing, step,
};

use nature::xorshift;

pub use nature::Nature;

/// A second, in the unit of [`Time`].
pub const SECOND_US: u64 = 1_000_000;
/// When it begins.
pub const START_US: Time = 1_790_000_000 * SECOND_US;
/// How large a block is.
pub const BLOCK_BYTES: u64 = 400;

/// The host gives up a request after this long.
const PATIENCE_US: u64 = 20 * SECOND_US;
/// How long a snapshot takes.
const SNAPSHOT_US: u64 = 2 * SECOND_US;
/// How long a peer without points is left alone.
const RESTORED_US: u64 = 5 * SECOND_US;
/// Steps after which a sync counts as endless.
const STEPS_MAX: u32 = 50_000;
/// The name that seals the memory.
const NAME: &str = "on-the-testbed";

/// What a node allows, in small.
pub fn limits() -> Limits {
    Limits {
        range_blocks_max: 1000,
        in_flight_max: 16,
        in_flight_per_peer_max: 4,
        window_blocks: 20_000,
        actions_max: 32,
    }
}

/// Any limits that a node may have, down to the tightest, drawn from `seed`.
pub fn drawn_limits(seed: u64) -> Limits {
    let mut random = seed | 1;
    let mut upto = |most: u64| 1 + xorshift(&mut random) % most;
    Limits {
        range_blocks_max: upto(500) as u32,
        in_flight_max: upto(20) as u32,
        in_flight_per_peer_max: upto(6) as u32,
        window_blocks: upto(5_000),
        actions_max: upto(40) as u32,
    }
}

/// The number of the peer with the `index`th nature: not the index, so that the two cannot be mistaken.
pub fn id(index: usize) -> PeerId {
    index as PeerId * 7 + 3
}

/// A request as the host sees it.
#[derive(Clone, Debug)]
struct Pending {
    request: InFlight,
    due: u64,
    /// More than the peer answers.
    refused: bool,
}

/// The node, and what it has counted.
pub struct Testbed<S> {
    strategy: S,
    memory: Vec<u8>,
    limits: Limits,
    natures: Vec<Nature>,
    restored_at: BTreeMap<PeerId, u64>,
    /// What each peer may still answer, in millionths of a request, and when that was so.
    allowance: BTreeMap<PeerId, (u64, u64)>,
    pending: Vec<Pending>,
    snapshot: Option<(Snapshot, u64)>,
    waiting: Vec<HeightRange>,
    events: Vec<Event>,
    random: u64,
    /// Now.
    pub now: Time,
    /// The local head.
    pub head: u64,
    /// The peers as the strategy sees them.
    pub peers: Vec<Peer>,
    /// When the strategy wants to be called at the latest.
    pub wake_at: Option<Time>,
    /// Requests so far.
    pub requests: u64,
    /// Of those, to whom.
    pub asked: BTreeMap<PeerId, u64>,
    /// The blocks that each was asked for, as often as it was.
    pub asked_blocks: BTreeMap<PeerId, u64>,
    /// The highest block below which a snapshot stood in for blocks; 0 where none did.
    pub snapshot_height: u64,
    /// Snapshots that were asked for, and of whom.
    pub snapshots_asked: Vec<PeerId>,
    /// Requests beyond what a peer answers.
    pub limited: u64,
    /// Lines for the operator.
    pub reports: Vec<String>,
}

impl<S: Strategy> Testbed<S> {
    /// At block 0, with peers numbered by [`id`].
    pub fn new(strategy: S, natures: Vec<Nature>, limits: Limits, seed: u64) -> Self {
        let peer = |(index, nature): (usize, &Nature)| Peer {
            id: id(index),
            head: Some(head(nature.head)),
            latency_us: 0,
            throughput: 0,
            failures: 0,
            score: 100,
            in_flight: 0,
            not_before: 0,
            snapshot: nature.snapshot,
        };
        Self {
            strategy,
            memory: Vec::new(),
            limits,
            peers: natures.iter().enumerate().map(peer).collect(),
            natures,
            restored_at: BTreeMap::new(),
            allowance: BTreeMap::new(),
            pending: Vec::new(),
            snapshot: None,
            waiting: Vec::new(),
            events: vec![Event::Started],
            random: seed | 1,
            now: START_US,
            head: 0,
            wake_at: None,
            requests: 0,
            asked: BTreeMap::new(),
            asked_blocks: BTreeMap::new(),
            snapshot_height: 0,
            snapshots_asked: Vec::new(),
            limited: 0,
            reports: Vec::new(),
        }
    }

    /// Runs until the head is the best known one. The strategy forgets everything, or gets bytes that it never wrote,
    /// in `forgets_percent` of the calls. Gives the virtual time it took, in microseconds.
    ///
    /// # Panics
    /// A rule of the contract is broken, or there is no end in sight.
    pub fn run(&mut self, forgets_percent: u64) -> u64 {
        for _ in 0..STEPS_MAX {
            if self.percent() < forgets_percent {
                self.memory = if self.percent() < 50 { Vec::new() } else { vec![0xab; 40] };
                self.events.push(Event::TakenOver);
            }
            self.ask();
            if self.head == self.best() {
                return self.now - START_US;
            }
            self.pass_time();
        }
        panic!("no end in sight: at {} of {}, {:?}", self.head, self.best(), self.view());
    }

    fn best(&self) -> u64 {
        self.natures.iter().map(|nature| nature.head).max().unwrap_or(0)
    }

    fn view(&self) -> View {
        View {
            now: self.now,
            head: head(self.head),
            best_height: self.best(),
            limits: self.limits,
            peers: self.peers.clone(),
            in_flight: self.pending.iter().map(|pending| pending.request).collect(),
            waiting: self.waiting.clone(),
        }
    }

    /// Requests under way.
    pub fn under_way(&self) -> usize {
        self.pending.len()
    }

    /// One call, whose actions are checked and carried out.
    ///
    /// # Panics
    /// A rule of the contract is broken.
    pub fn ask(&mut self) {
        let view = self.view();
        let events = std::mem::take(&mut self.events);
        let (actions, memory) = step(&self.strategy, NAME, &view, &events, &self.memory);
        assert!(actions.len() <= self.limits.actions_max as usize, "{} actions", actions.len());
        assert!(memory.len() <= 1 << 20);
        self.memory = memory;
        self.wake_at = None;
        for action in actions {
            match action {
                Action::FetchRange(fetch) => self.fetch(&fetch),
                Action::Cancel(id) => {
                    let before = self.pending.len();
                    self.pending.retain(|pending| pending.request.id != id);
                    assert_eq!(self.pending.len() + 1, before, "cancelled what is not under way");
                }
                Action::Penalise(penalty) => {
                    assert!((1..=100).contains(&penalty.points));
                    self.peer(penalty.peer).score -= penalty.points as i32;
                    self.restored_at.insert(penalty.peer, self.now + RESTORED_US);
                }
                Action::WaitUntil(at) => self.wake_at = Some(at),
                Action::Report(line) => {
                    assert!(line.len() <= 200);
                    self.reports.push(line);
                }
                Action::FetchSnapshot(snapshot) => self.fetch_snapshot(snapshot),
                Action::DropPeer(peer) => self.peer(peer).not_before = self.now + RESTORED_US,
            }
        }
        self.count();
    }

    /// Checks a request by the rules of the contract, and sends it.
    fn fetch(&mut self, fetch: &Fetch) {
        let Fetch { peer, range } = *fetch;
        self.count();
        let (now, limits, local) = (self.now, self.limits, self.head);
        assert!(range.first <= range.last && range.first > local, "{range:?} at {local}");
        assert!(len(&range) <= u64::from(limits.range_blocks_max), "{range:?} is too long");
        assert!(range.last <= local + limits.window_blocks, "{range:?} is beyond the window");
        assert!(self.pending.len() < limits.in_flight_max as usize, "too many requests");
        assert!(!self.waiting.iter().any(|here| overlap(here, &range)), "{range:?} is here already");
        let lowest = missing(local + 1, u64::MAX, self.waiting.iter().copied())[0].first;
        let same: Vec<InFlight> =
            self.pending.iter().map(|other| other.request).filter(|other| overlap(&other.range, &range)).collect();
        match same.as_slice() {
            [] => {}
            [one] => {
                assert_ne!(one.peer, peer, "asked the same of the same peer");
                let holds_lowest = (one.range.first..=one.range.last).contains(&lowest);
                assert!(holds_lowest || now - one.since >= DOUBLE_AFTER_US, "{range:?} is doubled too soon: {one:?}");
            }
            more => panic!("{range:?} is asked for {} times already", more.len()),
        }
        let asked = self.peer(peer);
        assert!(asked.score > 0 && asked.not_before <= now, "{asked:?} is not to be asked");
        assert!(head_of(asked) >= range.last, "{asked:?} has no {range:?}");
        assert!(asked.in_flight < limits.in_flight_per_peer_max, "too many requests to {asked:?}");
        self.requests += 1;
        *self.asked_blocks.entry(peer).or_default() += len(&range);
        *self.asked.entry(peer).or_default() += 1;
        let nature = &self.natures[self.index(peer)];
        let (silent, latency_us, rate) = (nature.silent, nature.latency_us, nature.bytes_per_second);
        let limit = nature.requests_per_second;
        let refused = limit.is_some_and(|most| !self.allow(peer, most));
        let bytes = len(&range) * BLOCK_BYTES;
        // A peer serves one request after the other, and refuses at once.
        let queue = self.pending.iter().filter(|other| other.request.peer == peer).map(|other| other.due).max();
        let begins = queue.unwrap_or(now).max(now);
        let due = match () {
            () if silent => now + PATIENCE_US,
            () if refused => now + latency_us,
            () => (begins + latency_us + bytes * SECOND_US / rate).min(now + PATIENCE_US),
        };
        let request = InFlight { id: self.requests, peer, range, since: now };
        self.pending.push(Pending { request, due, refused });
    }

    /// Whether a peer that answers `most` requests a second answers one more.
    fn allow(&mut self, peer: PeerId, most: u64) -> bool {
        let full = most * SECOND_US;
        let (left, at) = self.allowance.get(&peer).copied().unwrap_or((full, self.now));
        let left = left.saturating_add((self.now - at).saturating_mul(most)).min(full);
        let allowed = left >= SECOND_US;
        self.allowance.insert(peer, (if allowed { left - SECOND_US } else { left }, self.now));
        allowed
    }

    fn fetch_snapshot(&mut self, snapshot: Snapshot) {
        let offered = self.peer(snapshot.peer).snapshot;
        assert_eq!(offered, Some(snapshot.height), "takes a snapshot that is not offered");
        // One at a time: who has forgotten that one is under way changes nothing.
        if self.snapshot.is_none() {
            self.snapshots_asked.push(snapshot.peer);
            self.snapshot = Some((snapshot, self.now + SNAPSHOT_US));
        }
    }

    /// Goes to the next moment at which something happens.
    fn pass_time(&mut self) {
        let tick = self.now + SECOND_US;
        let due = self.pending.iter().map(|pending| pending.due).min();
        let snapshot_due = self.snapshot.map(|(_, due)| due);
        let next = [Some(tick), due, snapshot_due, self.wake_at].into_iter().flatten().min().unwrap();
        self.now = next.max(self.now);
        let (now, before) = (self.now, self.events.len());
        for peer in &mut self.peers {
            if self.restored_at.get(&peer.id).is_some_and(|at| *at <= now) {
                peer.score = 100;
                self.restored_at.remove(&peer.id);
            }
        }
        if let Some((snapshot, _)) = self.snapshot.take_if(|(_, due)| *due <= now) {
            self.snapshot_came(snapshot);
        }
        let done: Vec<Pending> = self.pending.extract_if(.., |pending| pending.due <= now).collect();
        for pending in done {
            match pending.refused {
                true => self.refuse(pending.request),
                false => self.answer(pending.request),
            }
        }
        if self.events.len() == before {
            self.events.push(Event::Tick);
        }
        self.count();
    }

    fn snapshot_came(&mut self, snapshot: Snapshot) {
        if self.natures[self.index(snapshot.peer)].snapshot_fails {
            return self.events.push(Event::SnapshotFailed(snapshot));
        }
        if snapshot.height > self.head {
            self.head = snapshot.height;
            self.snapshot_height = snapshot.height;
            self.waiting.retain(|here| here.last > snapshot.height);
            if let Some(here) = self.waiting.first_mut() {
                here.first = here.first.max(snapshot.height + 1);
            }
            self.import();
        }
    }

    fn refuse(&mut self, request: InFlight) {
        let InFlight { id, peer, range, .. } = request;
        let not_before = self.now + SECOND_US;
        self.limited += 1;
        let asked = self.peer(peer);
        asked.failures += 1;
        asked.not_before = not_before;
        let reason = "asks to be left alone".to_owned();
        self.events.push(Event::RangeFailed(Failure { id, peer, range, reason }));
    }

    fn answer(&mut self, request: InFlight) {
        let now = self.now;
        let nature = self.natures[self.index(request.peer)].clone();
        let failure = Failure { id: request.id, peer: request.peer, range: request.range, reason: "down".to_owned() };
        let late = now - request.since >= PATIENCE_US;
        if late || self.percent() < nature.fails_percent {
            let asks_for_rest = self.percent() < 30;
            let peer = self.peer(request.peer);
            peer.failures += 1;
            if asks_for_rest {
                peer.not_before = now + SECOND_US;
            }
            return self.events.push(Event::RangeFailed(failure));
        }
        if self.percent() < nature.lies_percent {
            self.peer(request.peer).failures += 1;
            return self.events.push(Event::RangeInvalid(failure));
        }
        let mut range = request.range;
        if self.percent() < nature.stops_short_percent {
            range.last = range.first + (range.last - range.first) / 2;
        }
        let peer = self.peer(request.peer);
        peer.failures = 0;
        peer.latency_us = nature.latency_us;
        peer.throughput = nature.bytes_per_second;
        let (bytes, duration_us) = (len(&range) * BLOCK_BYTES, now - request.since);
        let InFlight { id, peer, .. } = request;
        self.events.push(Event::RangeArrived(Arrival { id, peer, range, bytes, duration_us }));
        self.store(range);
    }

    /// Keeps what is new of an answer, and imports what is next.
    fn store(&mut self, range: HeightRange) {
        let first = self.head + 1;
        if range.last >= first {
            let known =
                |asked: HeightRange| missing(asked.first.max(first), asked.last, [range].into_iter()).is_empty();
            let spare: Vec<Pending> = self.pending.extract_if(.., |other| known(other.request.range)).collect();
            for InFlight { id, peer, range, .. } in spare.into_iter().map(|pending| pending.request) {
                let reason = "another peer was faster".to_owned();
                self.events.push(Event::RangeFailed(Failure { id, peer, range, reason }));
            }
            self.waiting.push(HeightRange { first: range.first.max(first), last: range.last });
            self.waiting.sort_by_key(|here| here.first);
            self.waiting = merged(&self.waiting);
        }
        self.import();
    }

    fn import(&mut self) {
        let first = self.head + 1;
        if self.waiting.first().is_some_and(|here| here.first == first) {
            self.head = self.waiting.remove(0).last;
            self.events.push(Event::Imported(HeightRange { first, last: self.head }));
        }
    }

    fn count(&mut self) {
        for peer in &mut self.peers {
            peer.in_flight = self.pending.iter().filter(|pending| pending.request.peer == peer.id).count() as u32;
        }
    }

    fn index(&self, id: PeerId) -> usize {
        self.peers.iter().position(|peer| peer.id == id).unwrap_or_else(|| panic!("no peer {id}"))
    }

    fn peer(&mut self, id: PeerId) -> &mut Peer {
        let index = self.index(id);
        &mut self.peers[index]
    }

    /// 0 to 99.
    fn percent(&mut self) -> u64 {
        xorshift(&mut self.random) % 100
    }
}

fn head(height: u64) -> Head {
    Head { height, hash: vec![7; 32] }
}

fn merged(ranges: &[HeightRange]) -> Vec<HeightRange> {
    let mut merged: Vec<HeightRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(below) if range.first <= below.last + 1 => below.last = below.last.max(range.last),
            _ => merged.push(*range),
        }
    }
    merged
}
