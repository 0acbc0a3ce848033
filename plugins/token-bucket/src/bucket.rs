//! One token bucket in one word. No part of the SDK: the node's built-in keeps its buckets by the same arithmetic.
//!
//! A bucket holds up to `capacity` units of cost and gains `refill_per_second`. What is remembered of it is the moment
//! when it will be **full again**, in nanoseconds since 1970; a moment that has passed, and so the 0 of the beginning,
//! means that it is full now. (This is the "generic cell rate algorithm": the same decisions as with a level and a time,
//! out of one word, and nothing has to be refilled.) With
//!
//! ```text
//! ns(units) = ⌈units × 10⁹ / refill_per_second⌉     time to gain so many units, rounded up
//! now       = now_us × 1000                         saturating, as is every sum below
//! full_at   = min(max(full_at, now), now + ns(capacity))
//! after     = full_at + ns(cost)
//! ```
//!
//! a request of `cost` > `capacity` is too expensive; else it passes if `after` ≤ `now + ns(capacity)`, and `after` is
//! remembered; else it would pass `after − (now + ns(capacity))` nanoseconds later, and the word stays `full_at`.
//!
//! The `min` is for clocks set back: the bucket is then empty at worst, never locked for as long as the clock went back.
//! The `max` is for clocks set forward: the bucket is full, never more. Rounding up a nanosecond a request errs on the
//! side of the node. In any stretch of time a caller gets at most `capacity + refill_per_second × seconds` units, and
//! less than one more for the rounding of the capacity.

/// The largest capacity and refill: ten digits of units at nanosecond steps still fit a word.
pub const UNITS_MAX: u32 = 1_000_000_000;

const NS_PER_SECOND: u64 = 1_000_000_000;
const NS_PER_MS: u64 = 1_000_000;
const NS_PER_US: u64 = 1_000;

/// The size of a bucket and how fast it fills. Both 1 to [`UNITS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The most that can be spent at once, in units of cost.
    pub capacity: u32,
    /// What it gains, in units of cost a second.
    pub refill_per_second: u32,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Its cost was taken.
    Granted {
        /// Whole units that are left.
        remaining: u64,
        /// When the bucket is full again, in milliseconds from now, rounded up.
        reset_ms: u64,
    },
    /// Not yet.
    TooSoon {
        /// When there will be enough, in milliseconds from now, rounded up; at least 1.
        retry_after_ms: u64,
    },
    /// The bucket can never hold that much.
    TooExpensive,
}

impl Bucket {
    /// Takes `cost` units at `now_us` (microseconds since 1970) from the bucket that is full again at `full_at`
    /// (nanoseconds since 1970; 0 at first). Gives what became of it, and the new `full_at`.
    pub fn take(self, full_at: u64, cost: u64, now_us: u64) -> (Taken, u64) {
        if cost > u64::from(self.capacity) {
            return (Taken::TooExpensive, full_at);
        }
        let now = now_us.saturating_mul(NS_PER_US);
        let empty = now.saturating_add(self.ns(u64::from(self.capacity)));
        let full_at = full_at.max(now).min(empty);
        let after = full_at.saturating_add(self.ns(cost));
        if after > empty {
            return (Taken::TooSoon { retry_after_ms: (after - empty).div_ceil(NS_PER_MS) }, full_at);
        }
        let remaining = (empty - after) * u64::from(self.refill_per_second) / NS_PER_SECOND;
        // Rounded up, the capacity's time may hold a unit more than the capacity.
        let remaining = remaining.min(u64::from(self.capacity));
        (Taken::Granted { remaining, reset_ms: (after - now).div_ceil(NS_PER_MS) }, after)
    }

    /// The time to gain `units`, at most [`UNITS_MAX`], in nanoseconds, rounded up: at most 10¹⁸.
    fn ns(self, units: u64) -> u64 {
        (units * NS_PER_SECOND).div_ceil(u64::from(self.refill_per_second))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND_US: u64 = 1_000_000;
    /// Some day in 2026.
    const DAY_US: u64 = 1_790_000_000 * SECOND_US;

    fn bucket(capacity: u32, refill_per_second: u32) -> Bucket {
        Bucket { capacity, refill_per_second }
    }

    #[test]
    fn a_new_bucket_is_full_and_empties() {
        let bucket = bucket(3, 1);
        let mut word = 0;
        for remaining in [2, 1, 0] {
            let (taken, next) = bucket.take(word, 1, DAY_US);
            assert_eq!(taken, Taken::Granted { remaining, reset_ms: (3 - remaining) * 1000 });
            word = next;
        }
        assert_eq!(bucket.take(word, 1, DAY_US), (Taken::TooSoon { retry_after_ms: 1000 }, word));
    }

    #[test]
    fn it_fills_at_its_rate() {
        let bucket = bucket(10, 2);
        let (_, word) = bucket.take(0, 10, DAY_US);
        assert_eq!(bucket.take(word, 1, DAY_US + SECOND_US / 2 - 1).0, Taken::TooSoon { retry_after_ms: 1 });
        let (taken, _) = bucket.take(word, 1, DAY_US + SECOND_US / 2);
        assert_eq!(taken, Taken::Granted { remaining: 0, reset_ms: 5000 });
        let (taken, _) = bucket.take(word, 1, DAY_US + 60 * SECOND_US);
        assert_eq!(taken, Taken::Granted { remaining: 9, reset_ms: 500 });
    }

    #[test]
    fn more_than_the_capacity_is_too_expensive_and_costs_nothing() {
        assert_eq!(bucket(3, 1).take(77, 4, DAY_US), (Taken::TooExpensive, 77));
        assert!(matches!(bucket(3, 1).take(0, 3, DAY_US).0, Taken::Granted { .. }));
        assert_eq!(bucket(3, 1).take(0, u64::MAX, DAY_US).0, Taken::TooExpensive);
    }

    #[test]
    fn a_clock_set_back_locks_nobody_out() {
        let bucket = bucket(2, 1);
        let (_, word) = bucket.take(0, 2, DAY_US);
        let earlier = DAY_US - 3600 * SECOND_US;
        let (taken, word) = bucket.take(word, 1, earlier);
        assert_eq!(taken, Taken::TooSoon { retry_after_ms: 1000 });
        assert!(matches!(bucket.take(word, 1, earlier + SECOND_US).0, Taken::Granted { .. }));
    }

    /// Takes as long as time passes, and the most that a level counted in fractions of a unit would have granted.
    #[derive(Clone, Debug)]
    struct Step {
        cost: u64,
        wait_us: u64,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = (0..50_u64, prop_oneof![Just(0), 0..2000_u64, 0..5_000_000_u64])
            .prop_map(|(cost, wait_us)| Step { cost, wait_us });
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        #[test]
        fn nobody_gets_more_than_capacity_and_refill(
            capacity in 1..200_u32,
            refill in prop_oneof![1..50_u32, 1..=UNITS_MAX],
            steps in steps(),
        ) {
            let bucket = bucket(capacity, refill);
            let (mut word, mut now, mut granted) = (0, DAY_US, 0_u128);
            for step in steps {
                now += step.wait_us;
                let (taken, next) = bucket.take(word, step.cost, now);
                word = next;
                if let Taken::Granted { .. } = taken {
                    granted += u128::from(step.cost);
                }
                // In billionths of a unit: capacity + refill × time + the rounding of the capacity.
                let gained = u128::from(refill) * u128::from(now - DAY_US) * 1000;
                let bound = u128::from(capacity) * 1_000_000_000 + gained + u128::from(refill);
                prop_assert!(granted * 1_000_000_000 <= bound);
            }
        }

        /// The textbook bucket, with a level in millionths and the time of the last request. Rates that divide 10⁹ make
        /// no rounding, so the two have to agree to the unit.
        #[test]
        fn it_decides_as_a_level_and_a_time_do(
            capacity in 1..200_u32,
            refill in prop::sample::select(vec![1_u32, 2, 5, 10, 100, 1000, 100_000]),
            steps in steps(),
        ) {
            let bucket = bucket(capacity, refill);
            let full = u64::from(capacity) * 1_000_000;
            let (mut word, mut level, mut now) = (0, full, DAY_US);
            for step in steps {
                now += step.wait_us;
                level = (level + step.wait_us * u64::from(refill)).min(full);
                let need = step.cost * 1_000_000;
                let expected = if need > full {
                    Taken::TooExpensive
                } else if need <= level {
                    level -= need;
                    let reset_ms = (full - level).div_ceil(u64::from(refill)).div_ceil(1000);
                    Taken::Granted { remaining: level / 1_000_000, reset_ms }
                } else {
                    let wait_us = (need - level).div_ceil(u64::from(refill));
                    Taken::TooSoon { retry_after_ms: wait_us.div_ceil(1000) }
                };
                let (taken, next) = bucket.take(word, step.cost, now);
                word = next;
                prop_assert_eq!(taken, expected);
            }
        }

        #[test]
        fn who_waits_as_told_passes(
            capacity in 1..1000_u32,
            refill in 1..=UNITS_MAX,
            word: u64,
            cost in 0..1000_u64,
            now in 0..2 * DAY_US,
        ) {
            let bucket = bucket(capacity, refill);
            if let (Taken::TooSoon { retry_after_ms }, next) = bucket.take(word, cost, now) {
                prop_assert!(retry_after_ms >= 1);
                let later = now + retry_after_ms * 1000;
                let (taken, _) = bucket.take(next, cost, later);
                prop_assert!(matches!(taken, Taken::Granted { .. }), "{:?}", taken);
                // And not told to wait a millisecond too long.
                let sooner = now + (retry_after_ms - 1) * 1000;
                let (taken, _) = bucket.take(next, cost, sooner);
                prop_assert!(matches!(taken, Taken::TooSoon { .. }), "{:?}", taken);
            }
        }

        #[test]
        fn any_word_and_any_clock_do_no_harm(
            capacity in 1..=UNITS_MAX,
            refill in 1..=UNITS_MAX,
            word: u64,
            cost: u64,
            now: u64,
            after: u64,
        ) {
            let bucket = bucket(capacity, refill);
            let (_, word) = bucket.take(word, cost, now);
            if let (Taken::Granted { remaining, .. }, _) = bucket.take(word, 1, after) {
                prop_assert!(remaining <= u64::from(capacity));
            }
            // However wrong the word, nobody waits longer than an empty bucket takes to fill.
            if let (Taken::TooSoon { retry_after_ms }, _) = bucket.take(word, u64::from(capacity), after) {
                let fill_ms = (u64::from(capacity) * 1000).div_ceil(u64::from(refill));
                prop_assert!(retry_after_ms <= fill_ms + 1);
            }
        }
    }
}
