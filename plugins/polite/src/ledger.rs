//! What was asked of whom, lately.

use serde::{Deserialize, Serialize};
use tenon_sdk::sync::{Event, HeightRange, PeerId, RequestId, Time, View, len};

/// Requests remembered at once: some 50 KiB. With more in one interval, the oldest are forgotten.
const ENTRIES_MAX: usize = 4096;

/// The requests of the last interval.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// By time.
    entries: Vec<Entry>,
    /// The highest number of a request that was entered: they ascend.
    highest: RequestId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    peer: PeerId,
    at: Time,
    blocks: u64,
}

impl Ledger {
    /// Enters the requests that are new since the last time, and forgets those that are older than `interval_us`.
    pub fn enter(&mut self, view: &View, events: &[Event], interval_us: u64) {
        let now = view.now;
        // A clock that was set back must not make an interval of hours.
        self.entries.retain(|entry| entry.at <= now && now - entry.at < interval_us);
        let under_way = view.in_flight.iter().map(|request| (request.id, request.peer, request.range, request.since));
        let ended = events.iter().filter_map(|event| ended(event, now));
        let mut new: Vec<RequestId> = Vec::new();
        for (id, peer, range, since) in under_way.chain(ended) {
            // A request may have more than one event.
            if id <= self.highest || new.contains(&id) {
                continue;
            }
            new.push(id);
            let at = since.min(now);
            if now - at < interval_us {
                let place = self.entries.partition_point(|entry| entry.at <= at);
                self.entries.insert(place, Entry { peer, at, blocks: len(&range) });
            }
        }
        self.highest = new.into_iter().fold(self.highest, RequestId::max);
        let too_many = self.entries.len().saturating_sub(ENTRIES_MAX);
        self.entries.drain(..too_many);
    }

    /// When `peer` may be asked for `blocks` more: from then on it has, within `interval_us`, had fewer than
    /// `requests_max` requests and at most `blocks_max` blocks with them. 0: now.
    pub fn room_at(&self, peer: PeerId, requests_max: u32, blocks_max: u64, blocks: u64, interval_us: u64) -> Time {
        let (mut requests, mut asked) = (0, 0_u64);
        // From the newest back: the first one that must have left the interval.
        for entry in self.entries.iter().rev().filter(|entry| entry.peer == peer) {
            requests += 1;
            asked = asked.saturating_add(entry.blocks);
            if requests >= requests_max || asked.saturating_add(blocks) > blocks_max {
                return entry.at.saturating_add(interval_us);
            }
        }
        0
    }
}

/// Which request an event ends, and when that left; one that failed may not have been sent before `now`, as far as is
/// known.
fn ended(event: &Event, now: Time) -> Option<(RequestId, PeerId, HeightRange, Time)> {
    match event {
        Event::RangeArrived(arrival) => {
            Some((arrival.id, arrival.peer, arrival.range, now.saturating_sub(arrival.duration_us)))
        }
        Event::RangeFailed(failure) | Event::RangeInvalid(failure) => {
            Some((failure.id, failure.peer, failure.range, now))
        }
        _ => None,
    }
}
