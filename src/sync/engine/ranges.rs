//! Ranges on their way: asked for, answered, verified; and what a failure costs.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Blocks, Command, Engine, Fetched, Request, Segment, Verifying};
use crate::sync::pipeline::RangeFault;
use crate::sync::source::SourceError;
use crate::sync::{Event, HeightRange, PeerId, RangeFailure, RequestId, gaps, plan};

/// What a range should come to, in encoded bytes: large enough to cost few round trips, small enough that several are
/// under way within the budget and none holds up verification for long.
pub(super) const RANGE_BYTES: u64 = 1 << 20;

/// What a block is taken to be large before any has come: rather too much, since the first answer corrects it.
const BLOCK_BYTES_FIRST: u64 = 8 << 10;

/// The least that is set aside for an answer.
pub(super) const ROOM_MIN: u64 = 4 << 10;

/// Points for a range with a wrong block in it.
pub(super) const POINTS_INVALID: u32 = 50;

/// Points for a head that is reported and whose blocks are not there.
pub(super) const POINTS_EMPTY: u32 = 5;

impl<B: Blocks> Engine<B> {
    /// Sends a request; none where there is no room for its answer, or nobody to ask.
    pub(super) fn fetch(&mut self, peer: PeerId, range: HeightRange, rescue: bool) -> Option<RequestId> {
        self.peers.get(peer)?;
        let expected = self.block_bytes().saturating_mul(range.count()).max(ROOM_MIN);
        let room = match self.budget.reserve(expected) {
            Some(room) => room,
            // Without it nothing that waits could go on.
            None if range.first == self.head.height + 1 => self.budget.reserve_beyond(ROOM_MIN),
            None => return None,
        };
        let id = self.next_request;
        self.next_request += 1;
        self.requests.insert(id, Request { peer, range, since: self.now, rescue });
        self.commands.push(Command::Fetch { id, peer, range, room });
        Some(id)
    }

    /// Ends a request that is no longer wanted. Costs its peer nothing.
    pub(super) fn give_up(&mut self, id: RequestId, reason: &str) {
        if let Some(Request { peer, range, .. }) = self.cancel(id) {
            self.events.push(Event::RangeFailed(RangeFailure { id, peer, range, reason: reason.into() }));
        }
    }

    /// Ends a request.
    pub(super) fn cancel(&mut self, id: RequestId) -> Option<Request> {
        let request = self.requests.remove(&id)?;
        self.commands.push(Command::Abort(id));
        Some(request)
    }

    pub(super) fn fetched(&mut self, id: RequestId, fetched: Result<Fetched<B::Body>, SourceError>) {
        // One that was given up may have been answered already.
        let Some(Request { peer, range, .. }) = self.requests.remove(&id) else {
            return self.branch_fetched(id, fetched);
        };
        self.watchdog.ended(range, self.now);
        let Fetched { body, blocks, room, head, first_byte_us, duration_us } = match fetched {
            Ok(fetched) => fetched,
            Err(error) => {
                let points = error.points();
                return self.failed(id, peer, range, points, error.to_string(), error.retry_after_ms());
            }
        };
        let bytes = room.bytes();
        self.peers.answered(peer, first_byte_us, duration_us, bytes);
        if let Some(head) = head
            && self.peers.reported(peer, Some(head), self.now)
        {
            self.head_announced(peer);
        }
        if blocks == 0 {
            self.peers.doubt(peer, range.first, self.now);
            let reason = format!("it has no block {}", range.first);
            return self.failed(id, peer, range, POINTS_EMPTY, reason, None);
        }
        // Up at once, down slowly: the budget is for the large ones.
        let mean = (bytes / blocks).max(1);
        self.block_bytes = Some(self.block_bytes.map_or(mean, |known| mean.max(known - known / 4 + mean / 4)));
        let came = HeightRange { first: range.first, last: range.first + (blocks - 1) };
        self.events.push(Event::RangeArrived { id, peer, range: came, bytes, duration_us });
        self.verifying.insert(id, Verifying { peer, asked: range, range: came, room });
        self.commands.push(Command::Verify { id, first: range.first, body });
    }

    /// A request that was not answered as it should: costs the peer points.
    pub(super) fn failed(
        &mut self,
        id: RequestId,
        peer: PeerId,
        range: HeightRange,
        points: u32,
        reason: String,
        retry_after_ms: Option<u64>,
    ) {
        let (source, HeightRange { first, last }) = (self.peers.name(peer), range);
        tracing::debug!(source, first, last, reason, "range failed");
        self.counters.failed += 1;
        self.peers.failed(peer, points, reason.clone(), retry_after_ms, self.now);
        self.events.push(Event::RangeFailed(RangeFailure { id, peer, range, reason }));
    }

    pub(super) fn verified(&mut self, id: RequestId, verified: Result<B, RangeFault>) {
        let Some(Verifying { peer, asked, range, room }) = self.verifying.remove(&id) else {
            return self.branch_verified(id, verified);
        };
        match verified {
            Ok(blocks) if blocks.count() > 0 => {
                self.order.insert(Segment { peer, blocks, room: Arc::new(room) });
                self.end_spare_requests(range);
            }
            Ok(_) => self.failed(id, peer, asked, POINTS_INVALID, "an answer without blocks".into(), None),
            Err(fault) => self.invalid(id, peer, asked, fault.to_string()),
        }
    }

    /// Who was asked for what is here now need not send it any more. One that the watchdog had found stuck was as good as
    /// silent, and pays for that.
    fn end_spare_requests(&mut self, came: HeightRange) {
        let next = self.order.next();
        let here: Vec<_> = self.order.ranges().collect();
        let known = |asked: HeightRange| gaps(asked.first.max(next), asked.last, here.clone()).is_empty();
        let spare = |request: &Request| request.range.overlaps(&came) && known(request.range);
        let spare: Vec<_> = self.requests.iter().filter(|(_, request)| spare(request)).map(|(&id, _)| id).collect();
        for id in spare {
            let Some(Request { peer, range, since, .. }) = self.cancel(id) else { continue };
            let ms = self.now.ms_since(since);
            if ms >= plan::STUCK_PATIENCES * self.config.watchdog_ms {
                let silence = SourceError::Timeout { ms };
                self.failed(id, peer, range, silence.points(), silence.to_string(), None);
            } else {
                let reason = "another peer was faster".into();
                self.events.push(Event::RangeFailed(RangeFailure { id, peer, range, reason }));
            }
        }
    }

    /// Blocks that are not valid: costs the peer who sent them. What else it was asked for is asked of others.
    pub(super) fn invalid(&mut self, id: RequestId, peer: PeerId, range: HeightRange, reason: String) {
        self.charge(id, peer, range, POINTS_INVALID, reason);
        self.give_up_all(peer, "the peer sent blocks that are not valid");
    }

    /// Blocks that are not valid, and what that costs who sent them.
    pub(super) fn charge(&mut self, id: RequestId, peer: PeerId, range: HeightRange, points: u32, reason: String) {
        let source = self.peers.name(peer);
        tracing::warn!(source, reason, "invalid blocks");
        self.counters.failed += 1;
        self.counters.problem = Some(format!("{source}: {reason}"));
        self.peers.failed(peer, points, reason.clone(), None, self.now);
        self.events.push(Event::RangeInvalid(RangeFailure { id, peer, range, reason }));
    }

    /// Ends all requests to a peer. Costs it nothing.
    pub(super) fn give_up_all(&mut self, peer: PeerId, reason: &str) {
        let asked = self.requests.iter().filter(|(_, request)| request.peer == peer);
        for id in asked.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.give_up(id, reason);
        }
    }

    pub(super) fn block_bytes(&self) -> u64 {
        self.block_bytes.unwrap_or(BLOCK_BYTES_FIRST)
    }

    /// How many requests are under way to a peer. Counted once, here: there may be a thousand peers to be asked about.
    pub(super) fn in_flight(&self) -> impl Fn(PeerId) -> u32 + use<B> {
        let mut counts = HashMap::<PeerId, u32>::new();
        self.requests.values().for_each(|request| *counts.entry(request.peer).or_default() += 1);
        move |peer| counts.get(&peer).copied().unwrap_or(0)
    }
}
