//! A host in virtual time: random peers that are slow, fail, lie, stop short or never answer, and the strategy through the
//! same door as in the node, with its memory as bytes. Whatever they do, every height is fetched and no rule is broken.

use std::collections::BTreeMap;

use parallel_range::{ParallelRange, Settings};
use proptest::prelude::*;
use tenon_sdk::Plugin;
use tenon_sdk::sync::{
    Action, Arrival, Event, Failure, Fetch, Head, HeightRange, InFlight, Limits, Peer, PeerId, View, step,
};

const SECOND_US: u64 = 1_000_000;
const START_US: u64 = 1_790_000_000 * SECOND_US;
const BLOCK_BYTES: u64 = 400;

/// How a peer behaves.
#[derive(Clone, Debug)]
struct Nature {
    head: u64,
    latency_us: u64,
    bytes_per_second: u64,
    fails_percent: u64,
    lies_percent: u64,
    stops_short_percent: u64,
    /// Takes requests and never answers.
    silent: bool,
}

impl Nature {
    fn good(head: u64) -> Self {
        Self {
            head,
            latency_us: 20_000,
            bytes_per_second: 1_000_000,
            fails_percent: 0,
            lies_percent: 0,
            stops_short_percent: 0,
            silent: false,
        }
    }
}

/// The host gives up a request after this long.
const PATIENCE_US: u64 = 20 * SECOND_US;

/// A request as the host sees it.
#[derive(Clone, Debug)]
struct Pending {
    request: InFlight,
    due: u64,
}

struct Host {
    strategy: ParallelRange,
    memory: Vec<u8>,
    now: u64,
    head: u64,
    limits: Limits,
    natures: Vec<Nature>,
    peers: Vec<Peer>,
    restored_at: BTreeMap<PeerId, u64>,
    pending: Vec<Pending>,
    waiting: Vec<HeightRange>,
    events: Vec<Event>,
    wake_at: Option<u64>,
    requests: u64,
    asked: BTreeMap<PeerId, u64>,
    random: u64,
}

impl Host {
    fn new(natures: Vec<Nature>, limits: Limits, seed: u64) -> Self {
        let peer = |(index, nature): (usize, &Nature)| Peer {
            id: index as u32 * 7 + 3,
            head: Some(head(nature.head)),
            latency_us: 0,
            throughput: 0,
            failures: 0,
            score: 100,
            in_flight: 0,
            not_before: 0,
            snapshot: None,
        };
        Self {
            strategy: ParallelRange::new(Settings::default()).unwrap(),
            memory: Vec::new(),
            now: START_US,
            head: 0,
            limits,
            peers: natures.iter().enumerate().map(peer).collect(),
            natures,
            restored_at: BTreeMap::new(),
            pending: Vec::new(),
            waiting: Vec::new(),
            events: vec![Event::Started],
            wake_at: None,
            requests: 0,
            asked: BTreeMap::new(),
            random: seed | 1,
        }
    }

    /// Runs until the head is the best known one. Gives the virtual time it took, in microseconds.
    fn run(&mut self, forgets_percent: u64) -> u64 {
        for _ in 0..50_000 {
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

    fn ask(&mut self) {
        let view = self.view();
        let events = std::mem::take(&mut self.events);
        let (actions, memory) = step(&self.strategy, "parallel-range", &view, &events, &self.memory);
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
                    let peer = self.peer(penalty.peer);
                    peer.score -= penalty.points as i32;
                    let restored_at = self.now + 5 * SECOND_US;
                    self.restored_at.insert(penalty.peer, restored_at);
                }
                Action::WaitUntil(at) => self.wake_at = Some(at),
                Action::Report(line) => assert!(line.len() <= 200),
                Action::DropPeer(_) | Action::FetchSnapshot(_) => {
                    panic!("never asked for: {action:?}")
                }
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
        assert!(range.last - range.first < u64::from(limits.range_blocks_max), "{range:?} is too long");
        assert!(range.last <= local + limits.window_blocks, "{range:?} is beyond the window");
        assert!(self.pending.len() < limits.in_flight_max as usize, "too many requests");
        assert!(!self.waiting.iter().any(|here| overlap(here, &range)), "{range:?} is here already");
        let lowest_missing = self.lowest_missing();
        let same: Vec<&Pending> = self.pending.iter().filter(|other| overlap(&other.request.range, &range)).collect();
        match same.as_slice() {
            [] => {}
            [one] => {
                let hedged = one.request;
                assert_ne!(hedged.peer, peer, "asked the same of the same peer");
                assert_eq!(range.first, lowest_missing, "{range:?} is a duplicate, and not of the lowest");
                assert!(range.last <= hedged.range.last, "{range:?} is more than the hedge of {hedged:?}");
                assert!(now - hedged.since >= 2 * SECOND_US, "hedged too soon");
            }
            more => panic!("{range:?} is asked for {} times already", more.len()),
        }
        let asked = self.peer(peer);
        assert!(asked.score > 0 && asked.not_before <= now, "{asked:?} is not to be asked");
        assert!(asked.head.as_ref().unwrap().height >= range.last, "{asked:?} has no {range:?}");
        assert!(asked.in_flight < limits.in_flight_per_peer_max, "too many requests to {asked:?}");
        self.requests += 1;
        *self.asked.entry(peer).or_default() += 1;
        let index = self.index(peer);
        let nature = self.natures[index].clone();
        let bytes = (range.last - range.first + 1) * BLOCK_BYTES;
        // A peer serves one request after the other.
        let queue = self.pending.iter().filter(|other| other.request.peer == peer).map(|other| other.due).max();
        let begins = queue.unwrap_or(now).max(now);
        let due = begins + nature.latency_us + bytes * SECOND_US / nature.bytes_per_second;
        let due = if nature.silent { now + PATIENCE_US } else { due.min(now + PATIENCE_US) };
        let request = InFlight { id: self.requests, peer, range, since: now };
        self.pending.push(Pending { request, due });
    }

    /// Goes to the next moment at which something happens.
    fn pass_time(&mut self) {
        let tick = self.now + SECOND_US;
        let due = self.pending.iter().map(|pending| pending.due).min();
        let next = [Some(tick), due, self.wake_at].into_iter().flatten().min().unwrap();
        self.now = next.max(self.now);
        let (now, before) = (self.now, self.events.len());
        for peer in &mut self.peers {
            if self.restored_at.get(&peer.id).is_some_and(|at| *at <= now) {
                peer.score = 100;
                self.restored_at.remove(&peer.id);
            }
        }
        let done: Vec<Pending> = self.pending.extract_if(.., |pending| pending.due <= now).collect();
        for pending in done {
            self.answer(pending.request);
        }
        if self.events.len() == before {
            self.events.push(Event::Tick);
        }
        self.count();
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
        let bytes = (range.last - range.first + 1) * BLOCK_BYTES;
        let duration_us = now - request.since;
        self.events.push(Event::RangeArrived(Arrival {
            id: request.id,
            peer: request.peer,
            range,
            bytes,
            duration_us,
        }));
        self.store(range);
    }

    /// Keeps what is new of an answer, and imports what is next.
    fn store(&mut self, range: HeightRange) {
        let first = self.head + 1;
        if range.last >= first {
            self.waiting.push(HeightRange { first: range.first.max(first), last: range.last });
            self.waiting.sort_by_key(|here| here.first);
            self.waiting = merged(&self.waiting);
        }
        if self.waiting.first().is_some_and(|here| here.first == first) {
            self.head = self.waiting.remove(0).last;
            self.events.push(Event::Imported(HeightRange { first, last: self.head }));
        }
    }

    fn lowest_missing(&self) -> u64 {
        // Waiting ranges are merged, and never begin right above the head.
        self.head + 1
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

    /// 0 to 99; xorshift.
    fn percent(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 100
    }
}

fn head(height: u64) -> Head {
    Head { height, hash: vec![7; 32] }
}

fn overlap(one: &HeightRange, other: &HeightRange) -> bool {
    one.first <= other.last && other.first <= one.last
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

fn limits() -> Limits {
    Limits {
        range_blocks_max: 1000,
        in_flight_max: 16,
        in_flight_per_peer_max: 4,
        window_blocks: 20_000,
        actions_max: 32,
    }
}

#[test]
fn one_good_peer_is_enough() {
    let mut host = Host::new(vec![Nature::good(20_000)], limits(), 1);
    let took_us = host.run(0);
    // 8 MB at 1 MB/s, and what the first small ranges and the waits for an answer cost.
    assert!(took_us < 10 * SECOND_US, "{took_us}");
}

#[test]
fn four_peers_are_nearly_four_times_as_fast() {
    let one = Host::new(vec![Nature::good(40_000)], limits(), 1).run(0);
    let mut host = Host::new(vec![Nature::good(40_000); 4], limits(), 1);
    let four = host.run(0);
    assert!(four * 3 < one, "{four} against {one}");
    assert_eq!(host.asked.len(), 4, "each was asked: {:?}", host.asked);
}

#[test]
fn a_fast_peer_gets_more_than_a_slow_one() {
    let slow = Nature { bytes_per_second: 100_000, ..Nature::good(40_000) };
    let mut host = Host::new(vec![slow, Nature::good(40_000)], limits(), 1);
    host.run(0);
    assert!(host.asked[&10] > 3 * host.asked[&3], "{:?}", host.asked);
}

#[test]
fn a_silent_peer_costs_a_hedge_and_no_more() {
    let silent = Nature { silent: true, ..Nature::good(10_000) };
    for natures in [vec![silent.clone(), Nature::good(10_000)], vec![Nature::good(10_000), silent]] {
        let took_us = Host::new(natures, limits(), 1).run(0);
        assert!(took_us < 12 * SECOND_US, "{took_us}");
    }
}

#[test]
fn a_liar_is_penalised_and_the_blocks_come_from_another() {
    let liar = Nature { lies_percent: 100, latency_us: 1, bytes_per_second: 1 << 30, ..Nature::good(5_000) };
    let mut host = Host::new(vec![liar, Nature::good(5_000)], limits(), 1);
    host.run(0);
    assert!(host.asked[&3] < 50, "{:?}", host.asked);
}

#[test]
fn a_peer_asked_to_be_left_alone_is() {
    let mut host = Host::new(vec![Nature::good(100)], limits(), 1);
    host.peers[0].not_before = START_US + 3 * SECOND_US;
    host.ask();
    assert!(host.pending.is_empty());
    assert_eq!(host.wake_at, Some(START_US + 3 * SECOND_US));
}

#[test]
fn nothing_is_asked_when_nothing_is_missing() {
    for natures in [vec![], vec![Nature::good(0)]] {
        let mut host = Host::new(natures, limits(), 1);
        host.ask();
        assert!(host.pending.is_empty());
        assert_eq!(host.wake_at, None);
    }
}

fn nature(best: u64) -> impl Strategy<Value = Nature> {
    (0..=best, 1_000..500_000_u64, 20_000..5_000_000_u64, 0..100_u64, 0..60_u64, 0..100_u64, prop::bool::weighted(0.15))
        .prop_map(|(head, latency_us, bytes_per_second, fails, lies, stops_short, silent)| Nature {
            head,
            latency_us,
            bytes_per_second,
            fails_percent: fails,
            lies_percent: lies,
            stops_short_percent: stops_short,
            silent,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_height_is_fetched_and_every_rule_is_kept(
        natures in prop::collection::vec(nature(3_000), 0..6),
        fails_percent in 0..40_u64,
        limits in (1..500_u32, 1..20_u32, 1..6_u32, 1..5_000_u64, 1..40_u32).prop_map(
            |(range_blocks_max, in_flight_max, in_flight_per_peer_max, window_blocks, actions_max)| Limits {
                range_blocks_max, in_flight_max, in_flight_per_peer_max, window_blocks, actions_max,
            }
        ),
        forgets_percent in prop::sample::select(vec![0_u64, 0, 2, 20]),
        seed: u64,
    ) {
        let mut natures = natures;
        // Somebody has to have the blocks, and give them now and then.
        natures.push(Nature { fails_percent, ..Nature::good(3_000) });
        let mut host = Host::new(natures, limits, seed);
        host.run(forgets_percent);
    }
}
