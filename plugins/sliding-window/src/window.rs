//! An approximate sliding window: exact counts for the window under way and the one before, and for the stretch that the
//! sliding window covers of the one before, the share of its count that falls there if its requests came evenly.
//!
//! ```text
//! index   = now / window            the windows are aligned to the clock
//! elapsed = now mod window
//! spent   = ⌈before × (window − elapsed) / window⌉ + current
//! ```
//!
//! A request of `cost` passes if `spent + cost` ≤ `limit`. The answer is never more than `limit` within one aligned
//! window, and within any other stretch of that length as much as the even spread is wrong: at worst almost twice.

/// How much in how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its length in microseconds; at least 1.
    pub length_us: u64,
    /// The most that can be spent in it, in units of cost.
    pub limit: u32,
}

/// What is remembered of one class: two counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Units spent in the window before the one under way.
    pub before: u32,
    /// Units spent in the one under way.
    pub current: u32,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// Its cost was counted.
    Granted {
        /// Whole units that are left.
        remaining: u64,
        /// When all of them are back, in milliseconds from now.
        reset_ms: u64,
    },
    /// Not yet.
    TooSoon {
        /// When it would pass, in milliseconds from now; at least 1.
        retry_after_ms: u64,
    },
    /// The window never holds that much.
    TooExpensive,
}

impl Counts {
    /// The counts as they are in window `index`, when they were written in window `written`, both modulo 2³².
    pub fn moved(self, written: u32, index: u32) -> Self {
        match index.wrapping_sub(written).cast_signed() {
            // A clock set back: what was spent stays spent, for a window or two and no longer.
            ..=0 => self,
            1 => Self { before: self.current, current: 0 },
            _ => Self::default(),
        }
    }

    /// What counts as spent at `now_us`, in windows of this length; more than a count holds is as much as it holds.
    pub fn weight(self, length_us: u64, now_us: u64) -> u32 {
        let left_us = length_us - now_us % length_us;
        let spent = share(u64::from(self.before), left_us, length_us) + u64::from(self.current);
        u32::try_from(spent).unwrap_or(u32::MAX)
    }
}

/// ⌈count × stretch / length⌉
fn share(count: u64, stretch_us: u64, length_us: u64) -> u64 {
    (u128::from(count) * u128::from(stretch_us)).div_ceil(u128::from(length_us)) as u64
}

impl Window {
    /// Spends `cost` units at `now_us`, out of `counts`, which are those of the window that `now_us` lies in.
    pub fn spend(self, counts: Counts, cost: u64, now_us: u64) -> (Spent, Counts) {
        let limit = u64::from(self.limit);
        if cost > limit {
            return (Spent::TooExpensive, counts);
        }
        let left_us = self.length_us - now_us % self.length_us;
        let before = u64::from(counts.before);
        let current = u64::from(counts.current);
        let spent = share(before, left_us, self.length_us) + current;
        if spent + cost > limit {
            let wait_us = self.wait_us(counts, limit - cost, left_us);
            return (Spent::TooSoon { retry_after_ms: wait_us.div_ceil(1000).max(1) }, counts);
        }
        // `cost` is at most `limit`, and `current + cost` too: both fit.
        let current = (current + cost) as u32;
        // What is spent now weighs until the end of the next window; what was spent before, until the end of this one.
        let reset_us = match (current, counts.before) {
            (0, 0) => 0,
            (0, _) => left_us,
            _ => left_us.saturating_add(self.length_us),
        };
        let remaining = limit - spent - cost;
        (Spent::Granted { remaining, reset_ms: reset_us.div_ceil(1000) }, Counts { current, ..counts })
    }

    /// How long until no more than `allowed` units weigh.
    fn wait_us(self, counts: Counts, allowed: u64, left_us: u64) -> u64 {
        let current = u64::from(counts.current);
        if current <= allowed {
            // Within this window, when enough of the one before has slid out.
            left_us.saturating_sub(self.stretch(u64::from(counts.before), allowed - current))
        } else {
            // Not before the next one, where what is current now slides out.
            left_us.saturating_add(self.length_us - self.stretch(current, allowed).min(self.length_us))
        }
    }

    /// The longest stretch whose share of `count` is at most `units`.
    fn stretch(self, count: u64, units: u64) -> u64 {
        match u128::from(units) * u128::from(self.length_us) {
            _ if count == 0 => self.length_us,
            product => u64::try_from(product / u128::from(count)).unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LENGTH_US: u64 = 1_000_000;
    /// The beginning of a window on some day in 2026.
    const DAY_US: u64 = 1_790_000_000 * LENGTH_US;

    fn window(limit: u32) -> Window {
        Window { length_us: LENGTH_US, limit }
    }

    #[test]
    fn a_window_holds_its_limit() {
        let mut counts = Counts::default();
        for remaining in [1, 0] {
            let (spent, next) = window(2).spend(counts, 1, DAY_US);
            assert_eq!(spent, Spent::Granted { remaining, reset_ms: 2000 });
            counts = next;
        }
        let (spent, next) = window(2).spend(counts, 1, DAY_US);
        assert_eq!(spent, Spent::TooSoon { retry_after_ms: 1500 }, "when half of them slid out");
        assert_eq!(next, counts);
    }

    #[test]
    fn the_window_before_slides_out() {
        let counts = Counts { before: 10, current: 0 };
        let at = |us| window(10).spend(counts, 1, DAY_US + us).0;
        assert_eq!(at(0), Spent::TooSoon { retry_after_ms: 100 });
        assert_eq!(at(99_999), Spent::TooSoon { retry_after_ms: 1 });
        assert!(matches!(at(100_000), Spent::Granted { remaining: 0, .. }));
        assert!(matches!(at(900_000), Spent::Granted { remaining: 8, .. }));
    }

    #[test]
    fn counts_move_with_the_clock_and_stay_when_it_is_set_back() {
        let counts = Counts { before: 1, current: 2 };
        assert_eq!(counts.moved(7, 7), counts);
        assert_eq!(counts.moved(7, 8), Counts { before: 2, current: 0 });
        assert_eq!(counts.moved(7, 9), Counts::default());
        assert_eq!(counts.moved(7, 3), counts);
        // Numbers begin anew at 2³².
        assert_eq!(counts.moved(u32::MAX, 0), Counts { before: 2, current: 0 });
        assert_eq!(counts.moved(u32::MAX, 1), Counts::default());
    }

    #[test]
    fn what_weighs_is_the_share_of_the_window_before_and_all_of_this_one() {
        let counts = Counts { before: 10, current: 3 };
        assert_eq!([0, 250_000, 999_999].map(|us| counts.weight(LENGTH_US, DAY_US + us)), [13, 11, 4]);
        assert_eq!(Counts { before: u32::MAX, current: 1 }.weight(LENGTH_US, DAY_US), u32::MAX);
    }

    #[test]
    fn more_than_the_limit_is_too_expensive() {
        assert_eq!(window(3).spend(Counts::default(), 4, DAY_US), (Spent::TooExpensive, Counts::default()));
    }

    proptest! {
        /// Counted by hand: no aligned window holds more than the limit, no stretch of its length more than twice.
        #[test]
        fn no_stretch_holds_much_more_than_the_limit(
            limit in 1..50_u32,
            steps in prop::collection::vec((0..20_u64, 0..300_000_u64), 1..200),
        ) {
            let window = window(limit);
            let (mut counts, mut written, mut now) = (Counts::default(), 0, DAY_US);
            let mut granted: Vec<(u64, u64)> = Vec::new();
            for (cost, wait_us) in steps {
                now += wait_us;
                let index = now / LENGTH_US;
                let (spent, next) = window.spend(counts.moved(written as u32, index as u32), cost, now);
                (counts, written) = (next, index);
                if let Spent::Granted { .. } = spent {
                    granted.push((now, cost));
                }
                let sum = |from: u64| -> u64 {
                    granted.iter().filter(|(at, _)| *at >= from).map(|(_, cost)| cost).sum()
                };
                prop_assert!(sum(index * LENGTH_US) <= u64::from(limit));
                prop_assert!(sum(now + 1 - LENGTH_US) <= 2 * u64::from(limit));
            }
        }

        #[test]
        fn who_waits_as_told_passes(
            limit in 1..100_u32,
            before in 0..200_u32,
            current in 0..200_u32,
            cost in 0..100_u64,
            now in DAY_US..DAY_US + LENGTH_US,
        ) {
            let window = window(limit);
            let counts = Counts { before, current };
            if let (Spent::TooSoon { retry_after_ms }, counts) = window.spend(counts, cost, now) {
                let later = now + retry_after_ms * 1000;
                let counts = counts.moved((now / LENGTH_US) as u32, (later / LENGTH_US) as u32);
                let (spent, _) = window.spend(counts, cost, later);
                prop_assert!(matches!(spent, Spent::Granted { .. }), "{:?}", spent);
            }
        }

        #[test]
        fn any_counts_and_any_clock_do_no_harm(
            length_us in 1..=u64::MAX,
            limit: u32,
            before: u32,
            current: u32,
            cost: u64,
            now: u64,
        ) {
            let window = Window { length_us, limit };
            if let (Spent::Granted { remaining, .. }, _) = window.spend(Counts { before, current }, cost, now) {
                prop_assert!(remaining <= u64::from(limit));
            }
        }
    }
}
