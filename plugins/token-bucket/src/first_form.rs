//! What memory-version 1 remembered: in each word the moment when that bucket would be full again, in nanoseconds since
//! 1970, under the configuration of then; 0 for full.
//!
//! Such a word is a line, not a point: so much is spent now, a refill less each microsecond later. [`Spent`] is a point on
//! it, and any point does, as long as no bucket has more than its capacity spent there. The earliest that does for all
//! four is where the last of them would have been empty, which lies in the past, as no bucket was ever more than empty.

use crate::bucket::{Bucket, Buckets, Spent};

const NS_PER_US: u64 = 1_000;

/// What the words of the first form say, under `buckets`; to the microsecond, rounded up.
pub fn read(buckets: &Buckets, words: [u64; 4]) -> Spent {
    let full_at = words.map(|word| word.div_ceil(NS_PER_US));
    let empty_at = |(bucket, full_at): (&Option<Bucket>, u64)| {
        bucket.map_or(0, |bucket| full_at.saturating_sub(bucket.time_us(bucket.full())))
    };
    let at = buckets.iter().zip(full_at).map(empty_at).max().unwrap_or(0);
    let amount = |class: usize| {
        buckets[class].map_or(0, |bucket| {
            let refill = u64::from(bucket.refill_per_second);
            refill.saturating_mul(full_at[class].saturating_sub(at)).min(bucket.full())
        })
    };
    Spent { at, amounts: [amount(0), amount(1), amount(2), amount(3)] }
}

/// The words of the first form for `spent`, under `buckets`; to the nanosecond, rounded up.
pub fn write(buckets: &Buckets, spent: Spent) -> [u64; 4] {
    let word = |class: usize| match (buckets[class], spent.amounts[class]) {
        (None, _) | (_, 0) => 0,
        (Some(bucket), amount) => {
            let more_ns = (amount.min(bucket.full()) * NS_PER_US).div_ceil(u64::from(bucket.refill_per_second));
            spent.at.saturating_mul(NS_PER_US).saturating_add(more_ns)
        }
    };
    [word(0), word(1), word(2), word(3)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bucket::Taken;

    /// The first form's decision: whether the cost was taken, and the word after.
    fn first_take(bucket: Bucket, full_at: u64, cost: u64, now_us: u64) -> (bool, u64) {
        let ns = |units: u64| (units * 1_000_000_000).div_ceil(u64::from(bucket.refill_per_second));
        let now = now_us * NS_PER_US;
        let empty = now + ns(u64::from(bucket.capacity));
        let full_at = full_at.max(now).min(empty);
        let after = full_at + ns(cost);
        if after > empty { (false, full_at) } else { (true, after) }
    }

    /// Refills that leave no part of a microsecond a unit.
    fn buckets() -> impl Strategy<Value = Buckets> {
        let bucket = (1..100_u32, prop::sample::select(vec![1_u32, 2, 5, 100, 10_000]))
            .prop_map(|(capacity, refill_per_second)| Some(Bucket { capacity, refill_per_second }));
        [bucket.clone(), bucket.clone(), bucket.clone(), bucket]
    }

    proptest! {
        /// One caller under either form, turned into the other at every step: all answers are the same.
        #[test]
        fn a_cell_means_the_same_in_either_form(
            buckets in buckets(),
            requests in prop::collection::vec((0..4_usize, 0..60_u64, 0..5_000_000_u64, any::<bool>()), 1..100),
        ) {
            let (mut first, mut spent, mut now) = ([0; 4], Spent::default(), 1_790_000_000_000_000);
            for (class, cost, wait_us, turn) in requests {
                now += wait_us;
                let cost = cost.min(u64::from(buckets[class].unwrap().capacity));
                if turn {
                    let words = write(&buckets, spent);
                    spent = read(&buckets, first);
                    first = words;
                }
                let (passes, word) = first_take(buckets[class].unwrap(), first[class], cost, now);
                first[class] = word;
                let (taken, next) = spent.take(&buckets, class, cost, now);
                spent = next;
                prop_assert_eq!(matches!(taken, Taken::Granted { .. }), passes, "{:?}", taken);
            }
        }

        /// Whatever the words are, also those of another configuration: nobody waits longer than an empty bucket.
        #[test]
        fn no_word_of_the_first_form_locks_anybody_out(
            buckets in buckets(), words: [u64; 4], now in 0..1_u64 << 52, class in 0..4_usize,
        ) {
            let bucket = buckets[class].unwrap();
            let spent = read(&buckets, words);
            prop_assert_eq!(Spent::unpack(spent.pack()), spent);
            if let (Taken::TooSoon { retry_after_ms }, _) = spent.take(&buckets, class, u64::from(bucket.capacity), now) {
                // And a second, by which a clock may be behind.
                prop_assert!(retry_after_ms <= bucket.time_us(bucket.full()).div_ceil(1_000) + 1_000);
            }
        }
    }

    #[test]
    fn a_class_without_a_limit_has_nothing_spent() {
        let buckets = [None, Some(Bucket { capacity: 2, refill_per_second: 1 }), None, None];
        let spent = read(&buckets, [u64::MAX, 12_000_000_000, 7, 7]);
        assert_eq!(spent, Spent { at: 10_000_000, amounts: [0, 2_000_000, 0, 0] });
        assert_eq!(write(&buckets, Spent { amounts: [5, 1_000_000, 5, 5], ..spent }), [0, 11_000_000_000, 0, 0]);
        assert_eq!(read(&buckets, [0; 4]), Spent::default());
    }
}
