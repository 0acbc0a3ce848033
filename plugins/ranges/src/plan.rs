//! One answer: learn from what happened, ask for what nobody was asked for, double what takes too long.

use tenon_sdk::sync::{Action, Draft, Event, Failure, Height, InFlight, Peer, PeerId, Time, View, len};

use crate::{Memory, Settings};

/// A range counts as slow when it takes this many times what it should.
const SLOW: u64 = 3;

/// A range that a slow peer holds is asked of an idle one that would be done in this part of the time.
const FASTER: u64 = 2;

/// A range should take this many times the latency of its peer: else the way there and back is what is paid for.
const LATENCIES: u64 = 2;

/// With so many peers at hand whose speed is known, only one request at a time goes to a peer whose speed is not.
const KNOWN_ENOUGH: usize = 4;

/// The answer, and what it is decided by.
pub struct Plan<'a> {
    settings: &'a Settings,
    view: &'a View,
    memory: &'a mut Memory,
    draft: Draft<'a>,
    /// What the memory has of each peer, in the view's order: looking it up for each of a thousand peers, once for each
    /// request, would be most of the work.
    known: Vec<Known>,
}

/// What is remembered of a peer.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// Requests at once, if fewer than are allowed.
    at_once: Option<u32>,
    /// Until when it is left alone; 0 if it is not.
    rests_until: Time,
}

/// A peer, and what is remembered of it.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    peer: &'a Peer,
    known: Known,
}

impl<'a> Plan<'a> {
    /// An empty answer.
    pub fn new(settings: &'a Settings, view: &'a View, memory: &'a mut Memory) -> Self {
        Self { settings, view, memory, draft: Draft::new(view), known: Vec::new() }
    }

    /// Takes in what happened.
    pub fn learn(&mut self, event: &Event) {
        match event {
            Event::RangeArrived(arrival) => self.memory.arrived(arrival, self.requests_max()),
            Event::RangeFailed(failure) => self.failed(failure),
            Event::RangeInvalid(failure) => {
                self.failed(failure);
                self.draft.penalise(failure.peer, self.settings.penalty);
            }
            // The view has it all; and blocks are wanted here, not snapshots.
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
        // The host ends a request whose blocks have come from elsewhere: nobody failed.
        if self.draft.absent(failure.range).is_empty() {
            return;
        }
        let (failures, requests) = self.draft.peer(failure.peer).map_or((0, 0), |peer| (peer.failures, peer.in_flight));
        self.memory.failed(failure.peer, &failure.range, failures, requests.saturating_add(1), self.view.now);
    }

    /// Forgets what is over, and looks up the rest.
    pub fn tidy(&mut self) {
        let draft = &self.draft;
        self.memory.tidy(self.view.now, self.view.head.height, |id| draft.position(id).is_some());
        self.known = vec![Known::default(); self.view.peers.len()];
        for (peer, at_once) in self.memory.paces() {
            draft.position(peer).into_iter().for_each(|at| self.known[at].at_once = Some(at_once));
        }
        for (peer, until) in self.memory.rests() {
            draft.position(peer).into_iter().for_each(|at| self.known[at].rests_until = until);
        }
    }

    fn candidates(&self) -> impl Iterator<Item = Candidate<'a>> + '_ {
        let view = self.view;
        view.peers.iter().zip(&self.known).map(|(peer, &known)| Candidate { peer, known })
    }

    /// Asks for what nobody was asked for, from the bottom.
    pub fn fetch_unasked(&mut self) {
        for mut gap in self.draft.unasked() {
            while self.draft.may_ask() {
                let Some(chosen) = self.choose(gap.first, None) else { break };
                let (peer, blocks) = (chosen.peer, self.blocks_at(chosen));
                let mut range = gap;
                range.last = gap.last.min(gap.first.saturating_add(blocks - 1));
                let Some(asked) = self.draft.fetch(peer, range) else { break };
                if is_stranger(peer) {
                    self.memory.met(peer.id);
                }
                if asked.last >= gap.last {
                    break;
                }
                gap.first = asked.last + 1;
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
            return self.draft.wake_at(slow_at);
        }
        // What has come of it meanwhile needs no asking.
        let Some(range) = self.draft.absent(lowest.range).into_iter().next() else { return };
        if let Some(chosen) = self.choose(range.first, Some(lowest.peer)) {
            self.draft.fetch(chosen.peer, range);
        }
    }

    /// Where nothing is left to ask for, asks idle peers for what slower ones still hold.
    pub fn relieve_the_slow(&mut self) {
        if self.settings.hedge_ms == 0 || !self.draft.unasked().is_empty() {
            return;
        }
        // Nobody can be faster than all of them together: most requests need no look at each.
        let idle = self.able(0).filter(|able| self.draft.asked_of(able.peer) == 0 && !is_stranger(able.peer));
        let each = |best: Option<(u64, u64)>, Candidate { peer, .. }: Candidate<'_>| {
            let (latency_us, throughput) = best.unwrap_or((u64::MAX, 0));
            Some((latency_us.min(peer.latency_us), throughput.max(peer.throughput)))
        };
        let Some((latency_us, throughput)) = idle.fold(None, each) else { return };
        for request in &self.view.in_flight {
            let Some(left_us) = self.left_us(request) else { continue };
            let Some(range) = self.draft.absent(request.range).into_iter().next() else { continue };
            let is_soon = |takes_us: u64| takes_us.saturating_mul(FASTER) <= left_us;
            if !self.transfer_us(throughput, len(&range)).is_some_and(|us| is_soon(us.saturating_add(latency_us))) {
                continue;
            }
            let would_take = |peer: &Peer| self.expected_us(peer, len(&range));
            let idle = |peer: &&Peer| peer.id != request.peer && self.draft.asked_of(peer) == 0;
            let able = self.able(range.first).map(|able| able.peer).filter(idle);
            let fastest = able.filter_map(|peer| Some((would_take(peer)?, peer)));
            let Some((takes_us, peer)) = fastest.min_by_key(|(takes_us, peer)| (*takes_us, peer.id)) else { continue };
            if !is_soon(takes_us) {
                continue;
            }
            match self.draft.may_double_at(request) {
                Some(at) if at > self.view.now => self.draft.wake_at(at),
                Some(_) => _ = self.draft.fetch(peer, range),
                None => {}
            }
        }
    }

    /// The answer.
    pub fn finish(mut self) -> Vec<Action> {
        if let Some(wanted) = self.draft.wanted() {
            let rest = self.candidates().filter(|candidate| candidate.peer.score > 0).map(free_at);
            let next = rest.filter(|at| *at > self.view.now).min();
            next.into_iter().for_each(|at| self.draft.wake_at(at));
            if self.draft.request_count() == 0 {
                self.draft.report(format!("no peer can be asked now for {} to {}", wanted.first, wanted.last));
            }
        }
        self.draft.finish()
    }

    /// The request that the import waits for, unless it has been doubled already.
    fn lowest(&self) -> Option<&'a InFlight> {
        let awaited = self.draft.absent(self.draft.wanted()?).first()?.first;
        let holds = |request: &&InFlight| (request.range.first..=request.range.last).contains(&awaited);
        let request = self.view.in_flight.iter().find(holds)?;
        self.draft.may_double_at(request).map(|_| request)
    }

    /// How long the lowest range may take before it is slow.
    fn patience_us(&self, request: &InFlight) -> u64 {
        let least = self.settings.hedge_ms.saturating_mul(1000);
        least.max(self.all_of_it_us(request).unwrap_or(0).saturating_mul(SLOW))
    }

    /// How much longer a request will take; as long as all of it, where it should be done already. None: nothing is
    /// known of its peer.
    fn left_us(&self, request: &InFlight) -> Option<u64> {
        let all = self.all_of_it_us(request)?;
        let age = self.view.now.saturating_sub(request.since);
        Some(all.checked_sub(age).filter(|left| *left > 0).unwrap_or(all))
    }

    fn all_of_it_us(&self, request: &InFlight) -> Option<u64> {
        self.expected_us(self.draft.peer(request.peer)?, len(&request.range))
    }

    /// The peer to ask for `height`, other than `other_than`; none where nobody can be asked now.
    ///
    /// Who failed to give this height comes after all others, but is asked when nobody else is free: it has rested, and
    /// the others may be busy for ever.
    fn choose(&self, height: Height, other_than: Option<PeerId>) -> Option<Candidate<'a>> {
        let curious = self.may_try_a_stranger();
        let free = self.able(height).filter(|able| Some(able.peer.id) != other_than);
        let order = |able: &Candidate<'_>| {
            let Candidate { peer, .. } = able;
            // All that nothing is known of cost the same; who failed may have been forgotten, the host has counted it.
            (self.memory.has_refused(peer.id, height), self.cost(peer, curious), peer.failures, peer.id)
        };
        free.min_by_key(order)
    }

    /// The peers that may get one more request for `height` now.
    fn able(&self, height: Height) -> impl Iterator<Item = Candidate<'a>> + '_ {
        let is_free = move |candidate: &Candidate<'_>| {
            let Candidate { peer, .. } = candidate;
            self.draft.can_ask(peer, height)
                && free_at(*candidate) <= self.view.now
                && self.draft.asked_of(peer) < self.most(*candidate)
        };
        self.candidates().filter(is_free)
    }

    /// Requests that may be under way to this peer, as far as this strategy is concerned; at least 1.
    fn most(&self, Candidate { peer, known }: Candidate<'_>) -> u32 {
        // A peer that nothing is known of, or that failed last, first has to answer one request.
        let few = is_stranger(peer) || peer.failures > 0;
        if few { 1 } else { known.at_once.unwrap_or(u32::MAX).min(self.requests_max()).max(1) }
    }

    /// Requests to one peer at once, where it stands them.
    fn requests_max(&self) -> u32 {
        self.settings.requests_per_peer.min(self.view.limits.in_flight_per_peer_max)
    }

    /// Whether it is worth finding out how fast one more peer is: not for the lowest range, and while many are known,
    /// one at a time.
    fn may_try_a_stranger(&self) -> bool {
        if self.draft.request_count() == 0 {
            return false;
        }
        let known = self.view.peers.iter().filter(|peer| !is_stranger(peer) && peer.failures == 0 && peer.score > 0);
        if known.take(KNOWN_ENOUGH).count() < KNOWN_ENOUGH {
            return true;
        }
        !self.draft.requests().any(|(peer, _)| self.draft.peer(peer).is_some_and(is_stranger))
    }

    /// Orders peers, best first: who would be done soonest with one more range on top of what it has. `curious`: peers
    /// that nothing is known of come first, else last, as do those that have given nothing but failures.
    fn cost(&self, peer: &Peer, curious: bool) -> u64 {
        let blocks = u64::from(self.blocks(peer)).saturating_mul(u64::from(self.draft.asked_of(peer)) + 1);
        let unknown = if curious && peer.failures == 0 { 0 } else { u64::MAX };
        self.expected_us(peer, blocks).unwrap_or(unknown).saturating_mul(u64::from(peer.failures) + 1)
    }

    /// How long `blocks` take from a peer; none before its first answer.
    fn expected_us(&self, peer: &Peer, blocks: u64) -> Option<u64> {
        Some(peer.latency_us.saturating_add(self.transfer_us(peer.throughput, blocks)?))
    }

    /// How long they take on the line alone; none where it has no speed.
    fn transfer_us(&self, throughput: u64, blocks: u64) -> Option<u64> {
        let bytes = blocks.saturating_mul(self.memory.block_bytes());
        bytes.saturating_mul(1_000_000).checked_div(throughput)
    }

    /// How many blocks the next request has. The first ones are shorter: answers share a line, and those that are as long
    /// as each other would all end at once, after which the line stands still until the next begin.
    fn blocks_at(&self, chosen: Candidate<'_>) -> u64 {
        let (most, asked) = (u64::from(self.most(chosen)), self.draft.asked_of(chosen.peer));
        let part = u64::from(asked).saturating_add(1).min(most);
        (u64::from(self.blocks(chosen.peer)) * part).div_ceil(most).max(1)
    }

    /// How many blocks to ask of a peer at once: what it sends in the time that a range should take. At least 1.
    fn blocks(&self, peer: &Peer) -> u32 {
        let start = self.settings.start_blocks;
        let blocks = if is_stranger(peer) {
            start
        } else {
            let target_us = self.settings.target_ms.saturating_mul(1000).max(peer.latency_us.saturating_mul(LATENCIES));
            let by_time = peer.throughput.saturating_mul(target_us) / 1_000_000 / self.memory.block_bytes();
            let by_bytes = self.settings.target_bytes / self.memory.block_bytes();
            // A slow line is no reason to ask for single blocks: the way there and back would be all that is paid for.
            u32::try_from(by_time.max(u64::from(start)).min(by_bytes)).unwrap_or(u32::MAX)
        };
        blocks.clamp(1, self.view.limits.range_blocks_max.max(1))
    }
}

/// When a peer may be asked again: it said so, or has to rest.
fn free_at(Candidate { peer, known }: Candidate<'_>) -> Time {
    peer.not_before.max(known.rests_until)
}

/// Whether nothing is known of a peer's speed.
fn is_stranger(peer: &Peer) -> bool {
    peer.throughput == 0
}
