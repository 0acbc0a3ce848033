//! What the world sees, and how long there is nothing to do.

use super::{Blocks, Engine};
use crate::chain::Time;
use crate::sync::status::{self, Moments};
use crate::sync::{HeightRange, SyncState, SyncStatus, plan};

/// The least time between two published statuses without a change of state.
const PUBLISH_MS: u64 = 100;

/// The time over which the rate of blocks is taken.
const RATE_MS: u64 = 3_000;

/// The least time until the next turn, where nothing happens: whatever is due and cannot be done now makes nobody spin.
const REST_MIN_US: u64 = 5_000;

impl<B: Blocks> Engine<B> {
    /// The status, where it is time to publish it: when the state changed, and every so often.
    pub(super) fn publish(&mut self) -> Option<SyncStatus> {
        if self.peers.best().is_none_or(|best| best.0 <= self.head.height) {
            self.level_at = self.now;
        }
        // A snapshot that comes in is as good as blocks.
        let head_at = self.snapshots.news_at().map_or(self.head_at, |at| at.max(self.head_at));
        let moments = Moments { now: self.now, head_at, level_at: self.level_at };
        let mut state = status::state(&self.peers, self.head.height, moments, self.tolerance);
        if self.is_halted() {
            state = SyncState::Diverged;
        }
        let before = std::mem::replace(&mut self.state, state);
        if state == before && self.now < self.published_at.plus_ms(PUBLISH_MS) {
            return None;
        }
        let status = self.status();
        if state != before {
            tracing::info!(from = ?before, to = ?state, height = status.head_height, lag = status.lag_blocks, "sync");
        }
        self.published_at = self.now;
        Some(status)
    }

    /// What there is to say, as of the last turn.
    pub fn status(&mut self) -> SyncStatus {
        self.rates.push_back((self.now, self.counters.imported));
        while self.rates.len() > 2 && self.now.ms_since(self.rates[1].0) >= RATE_MS {
            self.rates.pop_front();
        }
        let (since, before) = self.rates[0];
        let ms = self.now.ms_since(since);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let blocks_per_second =
            if ms == 0 { 0.0 } else { ((self.counters.imported - before) as f64 * 1_000.0 / ms as f64).round() };
        let head = self.head.height;
        let best_height = self.peers.best().map_or(head, |best| best.0);
        let lag_blocks = best_height.saturating_sub(head);
        let diverged = status::diverged(&self.peers);
        SyncStatus {
            state: self.state,
            head_height: head,
            head_hash: self.head.hash,
            best_height,
            lag_blocks,
            lag_seconds: if lag_blocks == 0 { 0 } else { self.now.ms_since(self.head.timestamp) / 1_000 },
            peers: status::peers(&self.peers, self.in_flight()),
            in_flight: u32::try_from(self.requests.len() + usize::from(self.is_fetching_branch())).unwrap_or(u32::MAX),
            waiting: merged(self.here()).iter().map(HeightRange::count).sum(),
            verifying: self.verifying.values().map(|verifying| verifying.range.count()).sum(),
            buffered_bytes: self.budget.used(),
            buffered_bytes_peak: self.budget.peak(),
            blocks_per_second,
            imported_blocks: self.counters.imported,
            requests: self.next_request - 1,
            rescues: self.counters.rescues,
            refused_actions: self.counters.refused,
            failed_requests: self.counters.failed,
            snapshot: self.snapshots.status(),
            snapshots_taken: self.snapshots.taken,
            snapshots_failed: self.snapshots.failed,
            // At the head it would speak of what is over.
            report: self.counters.report.clone().filter(|_| lag_blocks > 0),
            diverged_since: diverged.map(|(_, since)| since),
            refused_reorg: self.counters.refused_reorg.clone(),
            diverged: diverged.map(|(diverged, _)| diverged.clone()),
            problem: self.counters.problem.clone().filter(|_| lag_blocks > 0 || diverged.is_some()),
        }
    }

    /// Until when nothing happens by itself.
    pub(super) fn rest(&self) -> Time {
        let mut until = self.now.plus_ms(plan::TICK_MS).min(self.published_at.plus_ms(PUBLISH_MS));
        let patience = if self.asked.is_some() { self.asked_at.plus_ms(self.config.watchdog_ms) } else { Time(0) };
        if self.asked.is_none() && !self.peers.is_empty() {
            until = until.min(self.next_call);
        }
        let looks = self.peers.iter().filter(|peer| !peer.busy).map(|peer| peer.next_poll);
        until = looks.fold(until, Ord::min);
        until = self.snapshot_deadline().map_or(until, |deadline| deadline.min(until));
        if !self.snapshots.is_under_way() && self.peers.best().is_some_and(|best| best.0 > self.head.height) {
            until = until.min(self.watchdog.next_look(&self.view()).max(patience));
        }
        until.max(Time(self.now.0.saturating_add(REST_MIN_US)))
    }
}

/// The same heights without overlap, lowest first.
pub(super) fn merged(mut ranges: Vec<HeightRange>) -> Vec<HeightRange> {
    ranges.sort_unstable();
    let mut merged: Vec<HeightRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.first <= last.last => last.last = last.last.max(range.last),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_ranges_hold_the_same_heights_once() {
        let range = |first, last| HeightRange { first, last };
        let got = merged(vec![range(5, 9), range(1, 2), range(8, 12), range(6, 7), range(13, 13)]);
        assert_eq!(got, [range(1, 2), range(5, 12), range(13, 13)]);
    }
}
