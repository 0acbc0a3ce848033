//! The four token buckets of one caller in the four words of its cell. No part of the SDK: the node's built-in keeps its
//! buckets by the same arithmetic.
//!
//! A bucket holds up to `capacity` units of cost and gains `refill_per_second`. What is remembered is **what was spent**,
//! in millionths of a unit, and when that was so; never when the bucket will be full, which another configuration would
//! read as another amount. Whoever reads the cell applies its own capacity and refill from then on:
//!
//! ```text
//! passed = max(now − at, 0)                                        µs
//! spent  = max(min(spent, capacity × 10⁶) − refill × passed, 0)    a unit a second is a millionth in a microsecond
//! at     = now, if at − now > 10⁶, else max(at, now)
//! ```
//!
//! A request of `cost` > `capacity` is too expensive and changes nothing. Else it passes if
//! `spent + cost × 10⁶` ≤ `capacity × 10⁶`, and the sum is the new `spent`; else it would pass as soon as the excess over
//! the capacity is refilled. All of this is whole numbers: nothing is rounded, so nothing is gained or lost by asking
//! often, and in any stretch of time a caller gets at most `capacity + refill × seconds` units, to the millionth.
//!
//! - Another configuration: what was spent counts on, up to the new capacity. A larger capacity or refill lets everything
//!   pass that the old one would have, and who was silent for as long as the new bucket takes to fill has all of it.
//! - No limit for a class is a bucket that is always full: nothing counts as spent in it.
//! - Clocks set back by more than a second: what was spent stays so, and is refilled from the new time on. By less, as
//!   between requests that overtake one another, no time passes until the clock is where it was: else the same microseconds
//!   would be refilled twice.
//!
//! The four buckets share one `at`, all being settled whenever one is asked. 4 × 50 bits hold what was spent (10⁹ units are
//! less than 2⁵⁰ millionths), and 56 bits the time, to the year 4253, where it begins anew as if set back:
//!
//! ```text
//! word i = bits 14i to 14i + 13 of at, above 50 bits of what was spent of bucket i
//! ```

/// The largest capacity and refill.
pub const UNITS_MAX: u32 = 1_000_000_000;

const MILLIONTHS: u64 = 1_000_000;
const US_PER_MS: u64 = 1_000;
/// Clocks that are set back by more than this, in microseconds, are believed.
const BACK_MAX_US: u64 = 1_000_000;

const SPENT_BITS: u32 = 50;
const SPENT_MASK: u64 = (1 << SPENT_BITS) - 1;
const AT_BITS: u32 = u64::BITS - SPENT_BITS;
const AT_MASK: u64 = (1 << (4 * AT_BITS)) - 1;

/// The size of a bucket and how fast it fills. Both 1 to [`UNITS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The most that can be spent at once, in units of cost.
    pub capacity: u32,
    /// What it gains, in units of cost a second.
    pub refill_per_second: u32,
}

/// The bucket of each class; none: no limit.
pub type Buckets = [Option<Bucket>; 4];

/// What is remembered of one caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// When it was so, in microseconds since 1970; less than 2⁵⁶.
    pub at: u64,
    /// What was spent of each bucket and not refilled, in millionths of a unit; less than 2⁵⁰.
    pub amounts: [u64; 4],
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
    /// The capacity in millionths of a unit: at most 10¹⁵.
    pub fn full(self) -> u64 {
        u64::from(self.capacity) * MILLIONTHS
    }

    /// What is still spent of `amount` after so many microseconds.
    fn settled(self, amount: u64, passed_us: u64) -> u64 {
        let refill = u64::from(self.refill_per_second);
        // Else the product is at least 2⁶³, more than any bucket holds. `saturating_mul` is 128 bits wide, in Wasm a call.
        let is_narrow = refill.leading_zeros() + passed_us.leading_zeros() >= u64::BITS;
        let refilled = if is_narrow { refill * passed_us } else { u64::MAX };
        amount.min(self.full()).saturating_sub(refilled)
    }

    /// The time to gain `amount` millionths of a unit, in microseconds, rounded up.
    pub fn time_us(self, amount: u64) -> u64 {
        amount.div_ceil(u64::from(self.refill_per_second))
    }
}

impl Spent {
    /// Takes `cost` units at `now_us` (microseconds since 1970) from the bucket of `class`. Gives what became of it, and
    /// what is to be remembered.
    pub fn take(self, buckets: &Buckets, class: usize, cost: u64, now_us: u64) -> (Taken, Self) {
        let Some(bucket) = buckets[class] else {
            return (Taken::Granted { remaining: u64::MAX, reset_ms: 0 }, self);
        };
        if cost > u64::from(bucket.capacity) {
            return (Taken::TooExpensive, self);
        }
        let now = now_us & AT_MASK;
        let mut next = self.settled(buckets, now);
        // Not 0 only where the clock is a little behind.
        let behind_us = next.at - now;
        let in_ms = |amount| (behind_us + bucket.time_us(amount)).div_ceil(US_PER_MS);
        let after = next.amounts[class] + cost * MILLIONTHS;
        let full = bucket.full();
        if after > full {
            return (Taken::TooSoon { retry_after_ms: in_ms(after - full) }, next);
        }
        next.amounts[class] = after;
        let reset_ms = if after == 0 { 0 } else { in_ms(after) };
        (Taken::Granted { remaining: (full - after) / MILLIONTHS, reset_ms }, next)
    }

    /// The same, as it is at `now`, which is less than 2⁵⁶; its `at` is not before that.
    fn settled(self, buckets: &Buckets, now: u64) -> Self {
        let passed_us = now.saturating_sub(self.at);
        let is_set_back = self.at.saturating_sub(now) > BACK_MAX_US;
        let at = if is_set_back { now } else { self.at.max(now) };
        let amount = |class: usize| buckets[class].map_or(0, |bucket| bucket.settled(self.amounts[class], passed_us));
        Self { at, amounts: [amount(0), amount(1), amount(2), amount(3)] }
    }

    /// Out of the words of a cell; any words are something.
    pub fn unpack(words: [u64; 4]) -> Self {
        let part = |class: usize| (words[class] >> SPENT_BITS) << (AT_BITS * class as u32);
        let amount = |class: usize| words[class] & SPENT_MASK;
        Self { at: part(0) | part(1) | part(2) | part(3), amounts: [amount(0), amount(1), amount(2), amount(3)] }
    }

    /// The words of a cell.
    pub fn pack(self) -> [u64; 4] {
        let word = |class: usize| (self.at >> (AT_BITS * class as u32)) << SPENT_BITS | self.amounts[class];
        [word(0), word(1), word(2), word(3)]
    }
}

#[cfg(test)]
mod tests;
