//! One answer in the making: the view as it will be once the actions so far are carried out.

use tenon_sdk::sync::{
    Action, Event, Failure, Fetch, Height, HeightRange, InFlight, Peer, PeerId, Penalty, Time, View,
};

use crate::gaps::{len, missing, overlap};
use crate::{Memory, Settings};

/// A range counts as slow when it takes this many times what it should.
const SLOW: u64 = 3;

/// The answer, and what it is decided by.
pub struct Plan<'a> {
    settings: &'a Settings,
    view: &'a View,
    memory: &'a mut Memory,
    /// Requests under way, those of this answer included.
    in_flight: Vec<Request>,
    actions: Vec<Action>,
    /// When something is due though nothing happens.
    wake_at: Option<Time>,
}

#[derive(Clone, Debug)]
struct Request {
    peer: PeerId,
    range: HeightRange,
}

impl<'a> Plan<'a> {
    /// An empty answer.
    pub fn new(settings: &'a Settings, view: &'a View, memory: &'a mut Memory) -> Self {
        let request = |request: &InFlight| Request { peer: request.peer, range: request.range };
        let in_flight = view.in_flight.iter().map(request).collect();
        Self { settings, view, memory, in_flight, actions: Vec::new(), wake_at: None }
    }

    /// Takes in what happened.
    pub fn learn(&mut self, event: &Event) {
        match event {
            Event::RangeArrived(arrival) => self.memory.arrived(self.settings, arrival),
            Event::RangeFailed(failure) => self.failed(failure),
            Event::RangeInvalid(failure) => {
                self.failed(failure);
                if self.has_room() && self.peer(failure.peer).is_some() {
                    self.actions.push(Action::Penalise(Penalty { peer: failure.peer, points: self.settings.penalty }));
                }
            }
            // The view has it all; and this strategy wants blocks, not snapshots.
            Event::Started
            | Event::Tick
            | Event::PeerUp(_)
            | Event::PeerDown(_)
            | Event::HeadAnnounced(_)
            | Event::Imported(_)
            | Event::ForkFound(_)
            | Event::SnapshotOffered(_)
            | Event::SnapshotFailed(_)
            | Event::TakenOver => {}
        }
    }

    fn failed(&mut self, failure: &Failure) {
        let failures = self.peer(failure.peer).map_or(0, |peer| peer.failures);
        self.memory.failed(failure.peer, &failure.range, failures, self.view.now);
    }

    /// Forgets what is over.
    pub fn tidy(&mut self) {
        let view = self.view;
        let known = |id| view.peers.iter().any(|peer| peer.id == id);
        self.memory.tidy(view.now, view.head.height, known);
    }

    /// Gives up requests for what has come from elsewhere meanwhile: the slower half of a hedge.
    pub fn cancel_overtaken(&mut self) {
        for request in &self.view.in_flight {
            if self.still_missing(&request.range).is_empty() && self.has_room() {
                self.actions.push(Action::Cancel(request.id));
            }
        }
        // A cancelled request may still count as under way until the host has carried it out: it is left in the list.
    }

    /// Asks for what nobody was asked for, from the bottom.
    pub fn fetch_missing(&mut self) {
        let Some((first, last)) = self.wanted() else {
            return;
        };
        let taken = self.in_flight.iter().map(|request| request.range).chain(self.view.waiting.iter().copied());
        for gap in missing(first, last, taken) {
            let mut next = gap.first;
            while next <= gap.last {
                if !self.may_ask() {
                    return;
                }
                let Some(peer) = self.choose(next, None) else {
                    break;
                };
                let blocks = u64::from(self.blocks(peer));
                let last = (next.saturating_add(blocks - 1)).min(gap.last).min(head_of(peer));
                self.ask(peer.id, HeightRange { first: next, last });
                match last.checked_add(1) {
                    Some(above) => next = above,
                    None => break,
                }
            }
        }
    }

    /// Asks a second peer for the lowest range when it takes long: everything above waits for it.
    pub fn hedge_lowest(&mut self) {
        if self.settings.hedge_ms == 0 {
            return;
        }
        let Some(lowest) = self.lowest() else { return };
        let slow_at = lowest.since.saturating_add(self.patience_us(lowest));
        if slow_at > self.view.now {
            self.wake(slow_at);
            return;
        }
        if !self.may_ask() {
            return;
        }
        // What has come of it meanwhile needs no asking.
        let Some(range) = self.still_missing(&lowest.range).into_iter().next() else {
            return;
        };
        let Some(peer) = self.choose(range.first, Some(lowest.peer)) else {
            return;
        };
        let blocks = u64::from(self.view.limits.range_blocks_max);
        let last = range.last.min(range.first.saturating_add(blocks - 1)).min(head_of(peer));
        self.ask(peer.id, HeightRange { first: range.first, last });
    }

    /// The answer.
    pub fn finish(mut self) -> Vec<Action> {
        if let Some((first, last)) = self.wanted() {
            for peer in &self.view.peers {
                let free_at = self.free_at(peer);
                if free_at > self.view.now && peer.score > 0 {
                    self.wake(free_at);
                }
            }
            if self.in_flight.is_empty() && self.has_room() {
                self.actions.push(Action::Report(format!("no peer can be asked now for {first} to {last}")));
            }
        }
        if let Some(at) = self.wake_at
            && self.actions.len() < self.view.limits.actions_max as usize
        {
            self.actions.push(Action::WaitUntil(at));
        }
        self.actions
    }

    /// The request that the import waits for, unless it has been doubled already.
    fn lowest(&self) -> Option<&'a InFlight> {
        let (first, last) = self.wanted()?;
        let awaited = self.still_missing(&HeightRange { first, last }).first()?.first;
        let holds = |request: &&InFlight| (request.range.first..=request.range.last).contains(&awaited);
        let request = self.view.in_flight.iter().find(holds)?;
        let asked = self.in_flight.iter().filter(|other| overlap(&other.range, &request.range)).count();
        (asked == 1).then_some(request)
    }

    /// What of a range is neither imported nor here.
    fn still_missing(&self, range: &HeightRange) -> Vec<HeightRange> {
        let imported = HeightRange { first: 0, last: self.view.head.height };
        missing(range.first, range.last, self.view.waiting.iter().copied().chain([imported]))
    }

    /// How long a request may take before it is slow.
    fn patience_us(&self, request: &InFlight) -> u64 {
        let least = self.settings.hedge_ms.saturating_mul(1000);
        let peer = self.peer(request.peer);
        let expected = peer.and_then(|peer| self.expected_us(peer, len(&request.range))).unwrap_or(0);
        least.max(expected.saturating_mul(SLOW))
    }

    /// The heights that are missing above the local head and within the window, if there are any.
    fn wanted(&self) -> Option<(Height, Height)> {
        let first = self.view.head.height.checked_add(1)?;
        let window = self.view.head.height.saturating_add(self.view.limits.window_blocks);
        let last = self.view.best_height.min(window);
        (first <= last).then_some((first, last))
    }

    /// The peer to ask for `height`, other than `other_than`; none where nobody can be asked now.
    ///
    /// Who failed to give this height comes after all others, but is asked when nobody else is free: it has rested, and
    /// the others may be busy for ever.
    fn choose(&self, height: Height, other_than: Option<PeerId>) -> Option<&'a Peer> {
        let able = |peer: &&Peer| peer.score > 0 && head_of(peer) >= height && Some(peer.id) != other_than;
        let free = self.view.peers.iter().filter(able).filter(|peer| self.is_free(peer));
        free.min_by_key(|peer| (self.memory.has_refused(peer.id, height), self.cost(peer)))
    }

    /// Whether one more request may go to this peer now.
    fn is_free(&self, peer: &Peer) -> bool {
        let most = self.view.limits.in_flight_per_peer_max.min(self.settings.requests_per_peer);
        // A peer that nothing is known of, or that failed last, first has to answer one request.
        let most = if peer.throughput == 0 || peer.failures > 0 { most.min(1) } else { most };
        self.free_at(peer) <= self.view.now && self.asked_of(peer) < most as usize
    }

    /// When a peer may be asked again: it said so, or has to rest.
    fn free_at(&self, peer: &Peer) -> Time {
        peer.not_before.max(self.memory.rests_until(peer.id))
    }

    fn asked_of(&self, peer: &Peer) -> usize {
        let planned = self.in_flight.iter().filter(|request| request.peer == peer.id).count();
        planned.max(peer.in_flight as usize)
    }

    /// Orders peers, best first: who would be done soonest with one more range on top of what it has. Peers that nothing
    /// is known of come last for the lowest range, and first for those above, where finding out costs little.
    fn cost(&self, peer: &Peer) -> (u64, u32) {
        let blocks = u64::from(self.blocks(peer)).saturating_mul(self.asked_of(peer) as u64 + 1);
        let unknown = if self.in_flight.is_empty() { u64::MAX } else { 0 };
        let expected = self.expected_us(peer, blocks).unwrap_or(unknown);
        (expected.saturating_mul(u64::from(peer.failures) + 1), peer.id)
    }

    /// How long `blocks` take from a peer; none before its first answer.
    fn expected_us(&self, peer: &Peer, blocks: u64) -> Option<u64> {
        let bytes = blocks.saturating_mul(self.memory.block_bytes());
        let transfer_us = u128::from(bytes) * 1_000_000 / u128::from((peer.throughput > 0).then_some(peer.throughput)?);
        Some(peer.latency_us.saturating_add(u64::try_from(transfer_us).unwrap_or(u64::MAX)))
    }

    /// How many blocks to ask of a peer at once; at least 1.
    fn blocks(&self, peer: &Peer) -> u32 {
        let learned = self.memory.blocks(self.settings);
        let blocks = if peer.throughput == 0 { learned.min(self.settings.start_blocks) } else { learned };
        blocks.clamp(1, self.view.limits.range_blocks_max.max(1))
    }

    /// Whether the limits leave room for another request at all.
    fn may_ask(&self) -> bool {
        let limits = &self.view.limits;
        self.has_room() && limits.range_blocks_max > 0 && self.in_flight.len() < limits.in_flight_max as usize
    }

    /// Whether another action fits, and the `wait-until` at the end.
    fn has_room(&self) -> bool {
        let most = self.view.limits.actions_max as usize;
        self.actions.len() < most.saturating_sub(1).max(most.min(1))
    }

    fn ask(&mut self, peer: PeerId, range: HeightRange) {
        self.in_flight.push(Request { peer, range });
        self.actions.push(Action::FetchRange(Fetch { peer, range }));
    }

    fn wake(&mut self, at: Time) {
        self.wake_at = Some(self.wake_at.map_or(at, |before| before.min(at)));
    }

    fn peer(&self, id: PeerId) -> Option<&'a Peer> {
        self.view.peers.iter().find(|peer| peer.id == id)
    }
}

/// The highest block that a peer is known to have; 0, which nobody asks for, where none is known.
fn head_of(peer: &Peer) -> Height {
    peer.head.as_ref().map_or(0, |head| head.height)
}
