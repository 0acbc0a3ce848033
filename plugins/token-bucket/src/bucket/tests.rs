//! The buckets against numbers without bounds, and what callers and operators may count on.

use proptest::prelude::*;

use super::*;

const SECOND_US: u64 = 1_000_000;
/// Some day in 2026.
const DAY_US: u64 = 1_790_000_000 * SECOND_US;
/// The class that the tests of one bucket ask.
const READ: usize = 1;

fn bucket(capacity: u32, refill_per_second: u32) -> Bucket {
    Bucket { capacity, refill_per_second }
}

/// A caller of one bucket.
fn take(bucket: Bucket, spent: Spent, cost: u64, now_us: u64) -> (Taken, Spent) {
    spent.take(&[None, Some(bucket), None, None], READ, cost, now_us)
}

fn passes(taken: Taken) -> bool {
    matches!(taken, Taken::Granted { .. })
}

#[test]
fn a_new_bucket_is_full_and_empties() {
    let bucket = bucket(3, 1);
    let mut spent = Spent::default();
    for remaining in [2, 1, 0] {
        let (taken, next) = take(bucket, spent, 1, DAY_US);
        assert_eq!(taken, Taken::Granted { remaining, reset_ms: (3 - remaining) * 1000 });
        spent = next;
    }
    assert_eq!(take(bucket, spent, 1, DAY_US), (Taken::TooSoon { retry_after_ms: 1000 }, spent));
}

#[test]
fn it_fills_at_its_rate() {
    let bucket = bucket(10, 2);
    let (_, spent) = take(bucket, Spent::default(), 10, DAY_US);
    assert_eq!(take(bucket, spent, 1, DAY_US + SECOND_US / 2 - 1).0, Taken::TooSoon { retry_after_ms: 1 });
    let (taken, _) = take(bucket, spent, 1, DAY_US + SECOND_US / 2);
    assert_eq!(taken, Taken::Granted { remaining: 0, reset_ms: 5000 });
    let (taken, _) = take(bucket, spent, 1, DAY_US + 60 * SECOND_US);
    assert_eq!(taken, Taken::Granted { remaining: 9, reset_ms: 500 });
}

#[test]
fn more_than_the_capacity_is_too_expensive_and_costs_nothing() {
    let spent = Spent { at: 77, amounts: [1, 2, 3, 4] };
    assert_eq!(take(bucket(3, 1), spent, 4, DAY_US), (Taken::TooExpensive, spent));
    assert_eq!(take(bucket(3, 1), spent, u64::MAX, DAY_US), (Taken::TooExpensive, spent));
    assert!(passes(take(bucket(3, 1), Spent::default(), 3, DAY_US).0));
}

#[test]
fn a_clock_set_back_locks_nobody_out_and_spends_nothing() {
    let bucket = bucket(2, 1);
    let (_, spent) = take(bucket, Spent::default(), 2, DAY_US);
    let earlier = DAY_US - 3600 * SECOND_US;
    let (taken, spent) = take(bucket, spent, 1, earlier);
    assert_eq!(taken, Taken::TooSoon { retry_after_ms: 1000 });
    assert!(passes(take(bucket, spent, 1, earlier + SECOND_US).0));
    let (_, spent) = take(bucket, Spent::default(), 1, DAY_US);
    assert_eq!(take(bucket, spent, 1, earlier).0, Taken::Granted { remaining: 0, reset_ms: 2000 });
}

#[test]
fn requests_that_overtake_one_another_are_refilled_once() {
    let bucket = bucket(10, 1000);
    let (_, mut spent) = take(bucket, Spent::default(), 10, DAY_US);
    // Each millisecond comes twice, and brings one unit.
    let mut granted = 0;
    for ms in 1..=20 {
        for now in [DAY_US + ms * 1000, DAY_US + (ms - 1) * 1000] {
            let (taken, next) = take(bucket, spent, 1, now);
            spent = next;
            granted += u64::from(passes(taken));
        }
    }
    assert_eq!(granted, 20);
    // Who is told to wait is told the time until the clock is where it was as well.
    assert_eq!(take(bucket, spent, 1, DAY_US + 10_000).0, Taken::TooSoon { retry_after_ms: 11 });
}

#[test]
fn the_raise_of_a_limit_throttles_nobody() {
    let (before, after) = (bucket(60, 1), bucket(500, 250));
    let mut spent = Spent::default();
    for _ in 0..46 {
        spent = take(before, spent, 1, DAY_US).1;
    }
    for remaining in (445..454).rev() {
        let (taken, next) = take(after, spent, 1, DAY_US);
        assert!(matches!(taken, Taken::Granted { remaining: left, .. } if left == remaining), "{taken:?}");
        spent = next;
    }
}

#[test]
fn a_lower_limit_holds_at_once_and_locks_nobody_out() {
    let (_, spent) = take(bucket(500, 250), Spent::default(), 400, DAY_US);
    assert_eq!(take(bucket(5, 1), spent, 1, DAY_US).0, Taken::TooSoon { retry_after_ms: 1000 });
    assert_eq!(take(bucket(402, 1), spent, 3, DAY_US).0, Taken::TooSoon { retry_after_ms: 1000 });
    assert!(passes(take(bucket(402, 1), spent, 2, DAY_US).0));
    // Who was silent for as long as the new bucket takes to fill has all of it.
    let (taken, _) = take(bucket(5, 1), spent, 5, DAY_US + 5 * SECOND_US);
    assert_eq!(taken, Taken::Granted { remaining: 0, reset_ms: 5000 });
}

#[test]
fn no_limit_leaves_nothing_spent() {
    let limited = Some(bucket(1, 1));
    let (_, spent) = Spent::default().take(&[limited; 4], 0, 1, DAY_US);
    let some = [None, limited, limited, limited];
    assert_eq!(spent.take(&some, 0, u64::MAX, DAY_US), (Taken::Granted { remaining: u64::MAX, reset_ms: 0 }, spent));
    let (_, spent) = spent.take(&some, READ, 1, DAY_US);
    assert_eq!(spent.amounts, [0, 1_000_000, 0, 0]);
}

/// The same in numbers without bounds: what is left of each bucket, in millionths of a unit, and when, and which buckets.
struct Model {
    buckets: [Bucket; 4],
    left: [i128; 4],
    at: u64,
}

impl Model {
    /// Whether it passes; none: never, and nothing has happened.
    fn take(&mut self, buckets: [Bucket; 4], class: usize, cost: u64, now: u64) -> Option<bool> {
        let full = buckets.map(|bucket| i128::from(bucket.capacity) * 1_000_000);
        let need = i128::from(cost) * 1_000_000;
        if need > full[class] {
            return None;
        }
        if now + 1_000_000 < self.at {
            self.at = now;
        }
        let passed = i128::from(now.saturating_sub(self.at));
        for class in 0..4 {
            // What a bucket lacks, a bucket of another size lacks as well, unless it is smaller than that.
            let was_full = i128::from(self.buckets[class].capacity) * 1_000_000;
            let left = (full[class] - (was_full - self.left[class])).max(0);
            self.left[class] = (left + passed * i128::from(buckets[class].refill_per_second)).min(full[class]);
        }
        self.at = self.at.max(now);
        self.buckets = buckets;
        let passes = need <= self.left[class];
        self.left[class] -= if passes { need } else { 0 };
        Some(passes)
    }
}

fn any_bucket() -> impl Strategy<Value = Bucket> {
    let size = || prop_oneof![1..50_u32, 1..5_000_u32, 1..=UNITS_MAX];
    (size(), size()).prop_map(|(capacity, refill)| bucket(capacity, refill))
}

fn any_buckets() -> impl Strategy<Value = [Bucket; 4]> {
    [any_bucket(), any_bucket(), any_bucket(), any_bucket()]
}

fn any_wait_us() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0..20_u64, 0..2000_u64, 0..5_000_000_u64]
}

/// A class, what [`cost_of`] makes a cost of, and the wait before it.
fn any_requests() -> impl Strategy<Value = Vec<(usize, u64, u64)>> {
    prop::collection::vec((0..4_usize, 0..2000_u64, any_wait_us()), 1..120)
}

/// Small costs as they are; others as a share of the capacity, a few above it.
fn cost_of(bucket: Bucket, dice: u64) -> u64 {
    if dice < 1000 { dice % 8 } else { u64::from(bucket.capacity) * (dice - 1000) / 990 }
}

proptest! {
    /// Across configurations and clocks that are set, to the millionth of a unit.
    #[test]
    fn it_decides_as_unbounded_numbers_do(
        stages in prop::collection::vec((any_buckets(), any_requests(), 0..8_000_000_u64), 1..5),
    ) {
        let (mut spent, mut now) = (Spent::default(), DAY_US);
        let buckets = stages[0].0;
        let mut model = Model { buckets, left: buckets.map(|bucket| i128::from(bucket.full())), at: 0 };
        for (buckets, requests, set_back_us) in stages {
            for (class, dice, wait_us) in requests {
                now += wait_us;
                let cost = cost_of(buckets[class], dice);
                let expected = model.take(buckets, class, cost, now);
                let (taken, next) = spent.take(&buckets.map(Some), class, cost, now);
                match taken {
                    Taken::TooExpensive => prop_assert_eq!((expected, next), (None, spent)),
                    Taken::TooSoon { .. } => prop_assert_eq!(expected, Some(false)),
                    Taken::Granted { remaining, .. } => {
                        prop_assert_eq!(expected, Some(true));
                        prop_assert_eq!(i128::from(remaining), model.left[class] / 1_000_000);
                    }
                }
                prop_assert_eq!(Spent::unpack(next.pack()), next);
                spent = next;
            }
            now -= set_back_us;
        }
    }

    #[test]
    fn nobody_gets_more_than_capacity_and_refill(bucket in any_bucket(), requests in any_requests()) {
        let (mut spent, mut now) = (Spent::default(), DAY_US);
        let mut granted: Vec<(u64, u128)> = Vec::new();
        for (_, dice, wait_us) in requests {
            now += wait_us;
            let cost = cost_of(bucket, dice);
            let (taken, next) = take(bucket, spent, cost, now);
            spent = next;
            if !passes(taken) {
                continue;
            }
            granted.push((now, u128::from(cost)));
            // Every stretch of time that ends now.
            let mut sum = 0;
            for (from, cost) in granted.iter().rev() {
                sum += cost;
                let gained = u128::from(bucket.refill_per_second) * u128::from(now - from);
                prop_assert!(sum * 1_000_000 <= u128::from(bucket.capacity) * 1_000_000 + gained);
            }
        }
    }

    /// What the old configuration lets pass, a larger one lets pass, whenever it takes over: asked at each moment of the
    /// old one's life, and for all that the old one goes on to let pass.
    #[test]
    fn a_raise_throttles_nobody_whom_the_old_limit_lets_pass(
        old in any_bucket(),
        more in (0..=UNITS_MAX, 0..=UNITS_MAX),
        requests in any_requests(),
        at in 0..120_usize,
        is_set_back: bool,
    ) {
        let new = bucket(
            (old.capacity + more.0).min(UNITS_MAX),
            (old.refill_per_second + more.1).min(UNITS_MAX),
        );
        let (mut under_old, mut under_new, mut now) = (Spent::default(), Spent::default(), DAY_US);
        for (number, (_, dice, wait_us)) in requests.into_iter().enumerate() {
            now += wait_us;
            if number == at {
                now -= if is_set_back { 3600 * SECOND_US } else { 0 };
                // Both see a clock that was set back at the same request, also where the old one refuses that.
                under_new = take(new, under_old, 0, now).1;
            }
            let cost = cost_of(old, dice);
            let (taken, next) = take(old, under_old, cost, now);
            if passes(taken) {
                prop_assert!(passes(take(new, under_old, cost, now).0), "at request {}", number);
                if number >= at {
                    let (taken, next) = take(new, under_new, cost, now);
                    prop_assert!(passes(taken), "at request {}: {:?}", number, taken);
                    under_new = next;
                }
            }
            under_old = next;
        }
    }

    #[test]
    fn what_was_spent_counts_after_a_change(
        old in any_bucket(), new in any_bucket(), dice in 1000..1990_u64, wait_us in any_wait_us(),
    ) {
        let cost = cost_of(old, dice);
        let (taken, spent) = take(old, Spent::default(), cost, DAY_US);
        prop_assert!(passes(taken));
        let (capacity, refill) = (u128::from(new.capacity), u128::from(new.refill_per_second));
        let lacking = (u128::from(cost).min(capacity) * 1_000_000).saturating_sub(refill * u128::from(wait_us));
        let left = u64::try_from((capacity * 1_000_000 - lacking) / 1_000_000).unwrap();
        prop_assert!(passes(take(new, spent, left, DAY_US + wait_us).0));
        if left < u64::from(new.capacity) {
            let all_and_one = take(new, spent, left + 1, DAY_US + wait_us).0;
            prop_assert!(matches!(all_and_one, Taken::TooSoon { .. }), "{:?}", all_and_one);
        }
    }

    /// The time that the four share makes none feel the others.
    #[test]
    fn each_bucket_is_alone(buckets in any_buckets(), requests in any_requests()) {
        let (mut shared, mut alone, mut now) = (Spent::default(), [Spent::default(); 4], DAY_US);
        for (class, dice, wait_us) in requests {
            now += wait_us;
            let cost = cost_of(buckets[class], dice);
            let (taken, next) = shared.take(&buckets.map(Some), class, cost, now);
            shared = next;
            let (expected, next) = alone[class].take(&buckets.map(Some), class, cost, now);
            alone[class] = next;
            prop_assert_eq!(taken, expected);
        }
    }

    #[test]
    fn who_waits_as_told_passes(
        bucket in any_bucket(),
        amount in 0..1_u64 << 50,
        cost in 0..1000_u64,
        at in DAY_US..DAY_US + 3 * SECOND_US,
        now in DAY_US..DAY_US + 3 * SECOND_US,
    ) {
        let spent = Spent { at, amounts: [0, amount, 0, 0] };
        if let (Taken::TooSoon { retry_after_ms }, next) = take(bucket, spent, cost, now) {
            prop_assert!(retry_after_ms >= 1);
            prop_assert!(passes(take(bucket, next, cost, now + retry_after_ms * 1000).0));
            // And not told to wait a millisecond too long.
            let (taken, _) = take(bucket, next, cost, now + (retry_after_ms - 1) * 1000);
            prop_assert!(matches!(taken, Taken::TooSoon { .. }), "{:?}", taken);
        }
    }

    #[test]
    fn any_cell_and_any_clock_do_no_harm(
        bucket in any_bucket(), words: [u64; 4], cost: u64, now: u64, after in prop_oneof![any::<u64>(), 0..1_u64 << 51],
    ) {
        let (_, spent) = take(bucket, Spent::unpack(words), cost, now);
        if let (Taken::Granted { remaining, .. }, _) = take(bucket, spent, 1, after) {
            prop_assert!(remaining <= u64::from(bucket.capacity));
        }
        // However wrong the cell, nobody waits longer than an empty bucket takes to fill, and the second that a clock may
        // be behind; who waits that long has all of it.
        let all = u64::from(bucket.capacity);
        let (taken, spent) = take(bucket, spent, all, after);
        if let Taken::TooSoon { retry_after_ms } = taken {
            prop_assert!(retry_after_ms <= (all * 1000).div_ceil(u64::from(bucket.refill_per_second)) + 1000);
            let later = (after & AT_MASK) + retry_after_ms * 1000;
            prop_assert!(later > AT_MASK || passes(take(bucket, spent, all, later).0));
        }
    }

    #[test]
    fn a_cell_survives_packing(words: [u64; 4]) {
        prop_assert_eq!(Spent::unpack(words).pack(), words);
    }
}
