//! The built-in policy: a token bucket for each caller and class. The slot falls back to it, so it decides exactly as the
//! shipped plugin of the same name does; `tests/contract.rs` holds them against each other.
//!
//! A bucket holds up to `capacity` units of cost and gains `refill_per_second`. One word remembers it: the moment when it
//! will be full again, in nanoseconds since 1970; a moment that has passed means full. With
//!
//! ```text
//! ns(units) = ⌈units × 10⁹ / refill_per_second⌉
//! empty     = now + ns(capacity)                     the latest moment that the word can be
//! full_at   = min(max(full_at, now), empty)
//! after     = full_at + ns(cost)
//! ```
//!
//! a request passes if `after ≤ empty`, and `after` is the new word; else it would pass `after − empty` nanoseconds later,
//! and `full_at` is the new word. All sums saturate. The `min` keeps a clock that was set back from locking anybody out.

use serde::{Deserialize, Serialize};

use super::{Cell, Class, Denial, Request, Trust, Verdict};

/// The largest capacity and refill: as many units at nanosecond steps still fit a word.
pub const UNITS_MAX: u32 = 1_000_000_000;

const NS_PER_SECOND: u64 = 1_000_000_000;
const NS_PER_MS: u64 = 1_000_000;
const NS_PER_US: u64 = 1_000;

/// A bucket for each class (none: no limit), and who needs none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// For heads and ranges. Default: none, so that nothing stands between a follower and its blocks.
    pub sync: Option<Rate>,
    /// For reading one thing. Default: 2,000 at once, 1,000 a second.
    pub read: Option<Rate>,
    /// For handing in transactions. Default: 200 at once, 100 a second.
    pub write: Option<Rate>,
    /// For handing in blocks. Default: 2,000 at once, 1,000 a second.
    pub import: Option<Rate>,
    /// Callers who are never throttled. Default: both.
    pub trusted: Vec<Trusted>,
}

/// How large a bucket is and how fast it fills; both 1 to [`UNITS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// The most that can be spent at once, in units of cost.
    pub capacity: u32,
    /// What comes back, in units of cost a second.
    pub refill_per_second: u32,
}

/// Whom the node can tell from anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trusted {
    /// The same machine.
    Loopback,
    /// An address that the operator named as a peer.
    Peer,
}

impl Default for Settings {
    fn default() -> Self {
        let rate = |capacity, refill_per_second| Some(Rate { capacity, refill_per_second });
        Self {
            sync: None,
            read: rate(2_000, 1_000),
            write: rate(200, 100),
            import: rate(2_000, 1_000),
            trusted: vec![Trusted::Loopback, Trusted::Peer],
        }
    }
}

impl Settings {
    /// Whether every number is within its range. Errors: the first that is not, by name.
    pub fn check(&self) -> Result<(), String> {
        let rates = [("sync", self.sync), ("read", self.read), ("write", self.write), ("import", self.import)];
        for (class, rate) in rates.into_iter().filter_map(|(class, rate)| Some((class, rate?))) {
            for (name, value) in [("capacity", rate.capacity), ("refill_per_second", rate.refill_per_second)] {
                if !(1..=UNITS_MAX).contains(&value) {
                    return Err(format!("{class}.{name} is {value}: it must be 1 to {UNITS_MAX}"));
                }
            }
        }
        Ok(())
    }

    fn rate(&self, class: Class) -> Option<Rate> {
        match class {
            Class::Sync => self.sync,
            Class::Read => self.read,
            Class::Write => self.write,
            Class::Import => self.import,
        }
    }

    fn trusts(&self, trust: Trust) -> bool {
        match trust {
            Trust::Public => false,
            Trust::Peer => self.trusted.contains(&Trusted::Peer),
            Trust::Loopback => self.trusted.contains(&Trusted::Loopback),
        }
    }
}

/// Decides one request; gives what is to be remembered of the caller. `settings` have been checked.
pub fn step(settings: &Settings, request: &Request, cell: &Cell) -> (Verdict, Cell) {
    let Some(rate) = settings.rate(request.class).filter(|_| !settings.trusts(request.trust)) else {
        return (UNLIMITED, *cell);
    };
    let limit = u64::from(rate.capacity);
    if request.cost > limit {
        return (Verdict::Deny(Denial::TooExpensive), *cell);
    }
    let word = match request.class {
        Class::Sync => 0,
        Class::Read => 1,
        Class::Write => 2,
        Class::Import => 3,
    };
    let now = request.now.saturating_mul(NS_PER_US);
    let empty = now.saturating_add(rate.ns(limit));
    let full_at = cell[word].max(now).min(empty);
    let after = full_at.saturating_add(rate.ns(request.cost));
    let mut cell = *cell;
    if after > empty {
        cell[word] = full_at;
        return (Verdict::Throttle { limit, retry_after_ms: (after - empty).div_ceil(NS_PER_MS) }, cell);
    }
    cell[word] = after;
    // `empty - after` is at most ns(capacity): times the refill that is the capacity in billionths, and the rounding.
    let remaining = (empty - after) * u64::from(rate.refill_per_second) / NS_PER_SECOND;
    let reset_ms = (after - now).div_ceil(NS_PER_MS);
    (Verdict::Allow { limit, remaining: remaining.min(limit), reset_ms }, cell)
}

/// For a caller who has no limit.
const UNLIMITED: Verdict = Verdict::Allow { limit: u64::MAX, remaining: u64::MAX, reset_ms: 0 };

impl Rate {
    /// The time to gain `units`, at most [`UNITS_MAX`], in nanoseconds, rounded up: at most 10¹⁸.
    fn ns(self, units: u64) -> u64 {
        (units * NS_PER_SECOND).div_ceil(u64::from(self.refill_per_second))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Some day in 2026.
    const DAY_US: u64 = 1_790_000_000_000_000;

    fn request(class: Class, trust: Trust, cost: u64, now: u64) -> Request {
        Request { client: 1, route: 0, class, trust, cost, now }
    }

    fn reads(capacity: u32, refill_per_second: u32) -> Settings {
        Settings { read: Some(Rate { capacity, refill_per_second }), ..Settings::default() }
    }

    #[test]
    fn followers_and_trusted_callers_have_no_limit_by_default() {
        let settings = Settings::default();
        for (class, trust) in
            [(Class::Sync, Trust::Public), (Class::Import, Trust::Peer), (Class::Write, Trust::Loopback)]
        {
            let dear = request(class, trust, u64::MAX, DAY_US);
            assert_eq!(step(&settings, &dear, &[7; 4]), (UNLIMITED, [7; 4]));
        }
    }

    #[test]
    fn each_class_has_its_own_bucket() {
        let rate = Some(Rate { capacity: 1, refill_per_second: 1 });
        let settings = Settings { sync: rate, read: rate, write: rate, import: rate, trusted: Vec::new() };
        let mut cell = Cell::default();
        let classes = [Class::Sync, Class::Read, Class::Write, Class::Import];
        for class in classes {
            let (verdict, next) = step(&settings, &request(class, Trust::Loopback, 1, DAY_US), &cell);
            assert_eq!(verdict, Verdict::Allow { limit: 1, remaining: 0, reset_ms: 1_000 });
            cell = next;
        }
        for class in classes {
            let (verdict, next) = step(&settings, &request(class, Trust::Loopback, 1, DAY_US), &cell);
            assert_eq!((verdict, next), (Verdict::Throttle { limit: 1, retry_after_ms: 1_000 }, cell));
        }
    }

    #[test]
    fn what_can_never_pass_is_denied_and_costs_nothing() {
        let settings = reads(5, 1);
        let dear = request(Class::Read, Trust::Public, 6, DAY_US);
        assert_eq!(step(&settings, &dear, &[0, 9, 0, 0]), (Verdict::Deny(Denial::TooExpensive), [0, 9, 0, 0]));
        let all = request(Class::Read, Trust::Public, 5, DAY_US);
        assert_eq!(step(&settings, &all, &[0; 4]).0, Verdict::Allow { limit: 5, remaining: 0, reset_ms: 5_000 });
    }

    #[test]
    fn a_clock_set_back_locks_nobody_out() {
        let settings = reads(2, 1);
        let at = |now| request(Class::Read, Trust::Public, 1, now);
        let (_, cell) = step(&settings, &request(Class::Read, Trust::Public, 2, DAY_US), &[0; 4]);
        let earlier = DAY_US - 3_600_000_000;
        let (verdict, cell) = step(&settings, &at(earlier), &cell);
        assert_eq!(verdict, Verdict::Throttle { limit: 2, retry_after_ms: 1_000 });
        assert!(matches!(step(&settings, &at(earlier + 1_000_000), &cell).0, Verdict::Allow { .. }));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        assert_eq!(Settings::default().check(), Ok(()));
        assert_eq!(reads(UNITS_MAX, UNITS_MAX).check(), Ok(()));
        assert_eq!(reads(1, 0).check().unwrap_err(), "read.refill_per_second is 0: it must be 1 to 1000000000");
        assert!(reads(UNITS_MAX + 1, 1).check().unwrap_err().starts_with("read.capacity"));
        assert!(serde_json::from_str::<Settings>(r#"{"reed": null}"#).is_err());
        assert_eq!(serde_json::from_str::<Settings>(r#"{"read": null}"#).unwrap().read, None);
    }

    fn requests() -> impl Strategy<Value = Vec<(u64, u64)>> {
        let wait_us = prop_oneof![Just(0), 0..2_000_u64, 0..5_000_000_u64];
        prop::collection::vec((0..50_u64, wait_us), 1..200)
    }

    proptest! {
        /// The model keeps a level in millionths of a unit and the time of the last request. Refills that divide 10⁹
        /// leave nothing to round, so both have to agree to the unit.
        #[test]
        fn it_decides_as_a_level_and_a_time_do(
            capacity in 1..200_u32,
            refill in prop::sample::select(vec![1_u32, 2, 5, 10, 100, 1_000, 100_000]),
            requests in requests(),
        ) {
            let settings = reads(capacity, refill);
            let (limit, full) = (u64::from(capacity), u64::from(capacity) * 1_000_000);
            let (mut cell, mut level, mut now) = (Cell::default(), full, DAY_US);
            for (cost, wait_us) in requests {
                now += wait_us;
                level = full.min(level + wait_us * u64::from(refill));
                let need = cost * 1_000_000;
                let ms = |millionths: u64| millionths.div_ceil(u64::from(refill)).div_ceil(1_000);
                let expected = if need > full {
                    Verdict::Deny(Denial::TooExpensive)
                } else if need > level {
                    Verdict::Throttle { limit, retry_after_ms: ms(need - level) }
                } else {
                    level -= need;
                    Verdict::Allow { limit, remaining: level / 1_000_000, reset_ms: ms(full - level) }
                };
                let (verdict, next) = step(&settings, &request(Class::Read, Trust::Public, cost, now), &cell);
                prop_assert_eq!(verdict, expected);
                cell = next;
            }
        }

        #[test]
        fn who_waits_as_told_passes_and_sooner_does_not(
            capacity in 1..1_000_u32, refill in 1..=UNITS_MAX, word: u64, cost in 0..1_000_u64, now in 0..2 * DAY_US,
        ) {
            let settings = reads(capacity, refill);
            let at = |now| request(Class::Read, Trust::Public, cost, now);
            if let (Verdict::Throttle { retry_after_ms, .. }, next) = step(&settings, &at(now), &[0, word, 0, 0]) {
                let passes = |ms: u64| matches!(step(&settings, &at(now + ms * 1_000), &next).0, Verdict::Allow { .. });
                prop_assert!(passes(retry_after_ms));
                prop_assert!(!passes(retry_after_ms - 1));
            }
        }

        #[test]
        fn any_cell_and_any_clock_do_no_harm(
            capacity in 1..=UNITS_MAX, refill in 1..=UNITS_MAX, word: u64, cost: u64, now: u64,
        ) {
            let settings = reads(capacity, refill);
            let request = request(Class::Read, Trust::Public, cost, now);
            match step(&settings, &request, &[0, word, 0, 0]).0 {
                Verdict::Allow { remaining, .. } => prop_assert!(remaining <= u64::from(capacity)),
                Verdict::Throttle { retry_after_ms, .. } => {
                    let fill_ms = (u64::from(capacity) * 1_000).div_ceil(u64::from(refill));
                    prop_assert!((1..=fill_ms + 1).contains(&retry_after_ms));
                }
                verdict => prop_assert_eq!(verdict, Verdict::Deny(Denial::TooExpensive)),
            }
        }
    }
}
