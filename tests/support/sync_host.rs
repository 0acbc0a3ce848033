//! The follower's rules around a strategy, with answers that come after some rounds or get lost: a host in small, whose
//! time is counted in rounds of 50 ms. What it carries out is decided by the node's own [`plan::check`].

use tenon::chain::{Hash, Time};
use tenon::sync::{Action, Event, HeightRange, InFlight, Limits, Peer, RangeFailure, RequestId, Strategy, View, plan};

/// The highest block.
pub const LAST: u64 = 700;
/// Rounds after which a sync stands still.
const ROUNDS_MAX: usize = 10_000;
const ROUND_US: u64 = 50_000;

/// Numbers below a bound, the same for the same seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

/// The host.
pub struct SyncHost {
    view: View,
    events: Vec<Event>,
    next_id: RequestId,
    have: Vec<bool>,
    dice: Dice,
    /// Rounds so far.
    pub rounds: usize,
}

impl SyncHost {
    /// At block 0, with so many peers, numbered from 1, that have all blocks.
    pub fn new(peers: u32, seed: u64) -> Self {
        let peer = |id| Peer {
            id,
            head: Some((LAST, Hash::of(&[b"head"]))),
            latency_us: 500,
            throughput: 1 << 20,
            failures: 0,
            score: 100,
            in_flight: 0,
            not_before: Time(0),
            snapshot: None,
        };
        let view = View {
            now: Time(1_735_689_600_000_000),
            head: (0, Hash::of(&[b"genesis"])),
            best_height: LAST,
            limits: Limits {
                range_blocks_max: 64,
                in_flight_max: 6,
                in_flight_per_peer_max: 3,
                window_blocks: 400,
                actions_max: 64,
            },
            peers: (1..=peers).map(peer).collect(),
            in_flight: Vec::new(),
            waiting: Vec::new(),
        };
        let mut have = vec![false; LAST as usize + 1];
        have[0] = true;
        Self { view, events: vec![Event::Started], next_id: 1, have, dice: Dice::new(seed), rounds: 0 }
    }

    /// Whether all blocks are here.
    pub fn is_done(&self) -> bool {
        self.view.head.0 == LAST
    }

    /// Another strategy takes over.
    pub fn take_over(&mut self) {
        self.events.insert(0, Event::TakenOver);
    }

    /// Lets the strategy sync to the end.
    pub fn run(&mut self, strategy: &dyn Strategy) {
        while !self.is_done() {
            self.round(strategy);
        }
    }

    /// Asks the strategy once, and lets 50 ms pass, in which one request ends.
    ///
    /// # Panics
    /// An action is one that the node refuses, or the sync stands still.
    pub fn round(&mut self, strategy: &dyn Strategy) {
        self.rounds += 1;
        assert!(self.rounds < ROUNDS_MAX, "stands still: {:?}", self.view);
        let events = std::mem::replace(&mut self.events, vec![Event::Tick]);
        let actions = strategy.next(&self.view, &events);
        carry_out(&mut self.view, &actions, &mut self.next_id).unwrap();
        self.view.now = Time(self.view.now.0 + ROUND_US);
        if !self.view.in_flight.is_empty() {
            let at = self.dice.below(self.view.in_flight.len() as u64) as usize;
            let ended = self.view.in_flight.remove(at);
            self.end(ended);
        }
        self.import();
    }

    fn end(&mut self, request: InFlight) {
        let InFlight { id, peer, range, since } = request;
        let known = self.view.peers.iter_mut().find(|known| known.id == peer).expect("a known peer");
        known.in_flight -= 1;
        if self.dice.below(5) == 0 {
            known.failures += 1;
            let reason = "lost".to_owned();
            self.events.push(Event::RangeFailed(RangeFailure { id, peer, range, reason }));
        } else {
            known.failures = 0;
            let (bytes, duration_us) = (range.count() * 300, self.view.now.0 - since.0);
            self.events.push(Event::RangeArrived { id, peer, range, bytes, duration_us });
            (range.first..=range.last).for_each(|height| self.have[height as usize] = true);
        }
    }

    fn import(&mut self) {
        let head = self.have.iter().position(|here| !here).unwrap_or(self.have.len()) as u64 - 1;
        if head > self.view.head.0 {
            self.events.push(Event::Imported(HeightRange { first: self.view.head.0 + 1, last: head }));
            self.view.head = (head, Hash::of(&[&head.to_be_bytes()]));
        }
        let waiting = (head + 1..=LAST).filter(|&height| self.have[height as usize]);
        self.view.waiting = waiting.fold(Vec::new(), |mut ranges: Vec<HeightRange>, height| {
            match ranges.last_mut() {
                Some(range) if range.last + 1 == height => range.last = height,
                _ => ranges.push(HeightRange { first: height, last: height }),
            }
            ranges
        });
    }
}

/// Checks one answer by the node's own rules, and keeps `view` true from action to action.
///
/// Errors: the node refuses one of them.
pub fn carry_out(view: &mut View, actions: &[Action], next_id: &mut RequestId) -> Result<(), String> {
    for (index, action) in actions.iter().enumerate() {
        plan::check(action, index, view, &[]).map_err(|reason| format!("{action:?}: {reason}; {view:?}"))?;
        match action {
            Action::FetchRange { peer, range } => {
                view.in_flight.push(InFlight { id: *next_id, peer: *peer, range: *range, since: view.now });
                *next_id += 1;
                view.peers.iter_mut().find(|known| known.id == *peer).expect("checked").in_flight += 1;
            }
            Action::Cancel(id) => {
                let at = view.in_flight.iter().position(|request| request.id == *id).expect("checked");
                let request = view.in_flight.remove(at);
                view.peers.iter_mut().filter(|peer| peer.id == request.peer).for_each(|peer| peer.in_flight -= 1);
            }
            _ => {}
        }
    }
    Ok(())
}
