//! What the host thinks of a peer, and when it may be asked again. Kept apart from the rest of what is known of it, since
//! it outlives the peer for a while. Pure: the time is an argument.

use crate::chain::Time;

/// The best score, and the first one.
pub const SCORE_MAX: i32 = 100;

/// What a peer starts again with after its score had fallen to nothing and it was left alone for a while.
pub const SCORE_AGAIN: i32 = 25;

/// Points that come back a second.
const POINTS_PER_SECOND: u64 = 1;

/// Points for a range that became part of the chain.
const POINTS_IMPORTED: i32 = 5;

/// The pause after a first failure; it doubles with each further one in a row.
pub const BACKOFF_FIRST_MS: u64 = 200;

/// How long the reported head of a peer that did not have what it reported says nothing about how far the node is
/// behind, if another peer can be asked.
const DISTRUST_MS: u64 = 60_000;

/// Score, failures and pauses of one peer.
#[derive(Clone, Debug)]
pub struct Opinion {
    /// 100 at best; at 0 and below the peer is left alone for a while.
    pub score: i32,
    /// Requests in a row that failed.
    pub failures: u32,
    /// No request before this moment.
    pub not_before: Time,
    scored_at: Time,
    distrusted_until: Time,
}

impl Opinion {
    /// Of a peer that nothing is known of.
    pub fn new(now: Time) -> Self {
        Self { score: SCORE_MAX, failures: 0, not_before: Time(0), scored_at: now, distrusted_until: Time(0) }
    }

    /// Lets time pass: points come back, and who was left alone long enough has another chance.
    pub fn settle(&mut self, now: Time) {
        let seconds = now.ms_since(self.scored_at) / 1_000;
        if seconds > 0 {
            let back = i32::try_from(seconds * POINTS_PER_SECOND).unwrap_or(SCORE_MAX);
            if self.score > 0 {
                self.score = self.score.saturating_add(back).min(SCORE_MAX);
            }
            self.scored_at = self.scored_at.plus_ms(seconds * 1_000);
        }
        if self.score <= 0 && self.not_before <= now {
            self.score = SCORE_AGAIN;
        }
        if self.distrusted_until <= now {
            self.distrusted_until = Time(0);
        }
    }

    /// A range that it sent became part of the chain: what it reports is there.
    pub fn imported(&mut self) {
        self.failures = 0;
        self.distrusted_until = Time(0);
        self.score = (self.score + POINTS_IMPORTED).min(SCORE_MAX);
    }

    /// A request that failed: costs points, and a pause that doubles with each failure in a row.
    pub fn failed(&mut self, points: u32, retry_after_ms: Option<u64>, backoff_max_ms: u64, now: Time) {
        self.failures = self.failures.saturating_add(1);
        let pause = doubled(BACKOFF_FIRST_MS, self.failures).min(backoff_max_ms);
        self.not_before = self.not_before.max(now.plus_ms(retry_after_ms.unwrap_or(0).max(pause)));
        self.penalise(points, backoff_max_ms, now);
    }

    /// Takes points off. At nothing, the peer is left alone for a while.
    pub fn penalise(&mut self, points: u32, backoff_max_ms: u64, now: Time) {
        self.score = self.score.saturating_sub_unsigned(points).max(-SCORE_MAX);
        if self.score <= 0 {
            self.leave_alone(backoff_max_ms, now);
        }
    }

    /// No request for a while.
    pub fn leave_alone(&mut self, ms: u64, now: Time) {
        self.not_before = self.not_before.max(now.plus_ms(ms));
    }

    /// It did not have what it reported.
    pub fn distrust(&mut self, now: Time) {
        self.distrusted_until = now.plus_ms(DISTRUST_MS);
    }

    /// Whether it lately had what it reported, as far as is known.
    pub fn is_trusted(&self) -> bool {
        self.distrusted_until == Time(0)
    }
}

/// `first` for one failure, doubled for each further one.
pub fn doubled(first: u64, failures: u32) -> u64 {
    first.saturating_mul(1 << failures.saturating_sub(1).min(20))
}
