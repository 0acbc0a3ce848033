//! The built-in policy: a token bucket for each caller and class. The slot falls back to it, so it decides exactly as the
//! shipped plugin of the same name does; `tests/contract.rs` holds them against each other.
//!
//! A bucket holds up to `capacity` units of cost and gains `refill_per_second`. The cell remembers **what was spent**, in
//! millionths of a unit, and when that was so, `at`, in microseconds since 1970; a new configuration applies its capacity
//! and refill from then on, so that a larger one throttles nobody whom the smaller one would have let pass:
//!
//! ```text
//! passed = max(now − at, 0)
//! spent  = max(min(spent, capacity × 10⁶) − refill × passed, 0)    a unit a second is a millionth in a microsecond
//! at     = now, if at − now > 10⁶, else max(at, now)
//! ```
//!
//! A request passes if `spent + cost × 10⁶` ≤ `capacity × 10⁶`, and the sum is the new `spent`; else it would pass when the
//! excess over the capacity is refilled. Nothing is rounded. What was spent stays so when a clock is set back, and is
//! refilled from the new time on; a clock that is less than a second behind is one of two requests that overtook one
//! another, and no microsecond is to be refilled twice. No limit is a bucket that is always full.
//!
//! The buckets share one `at` of 56 bits; 50 bits hold what was spent of 10⁹ units:
//!
//! ```text
//! word i = bits 14i to 14i + 13 of at, above 50 bits of what was spent of bucket i
//! ```

use serde::{Deserialize, Serialize};

use super::{Cell, Class, Denial, Request, Trust, Verdict};

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
        let names = ["sync", "read", "write", "import"];
        for (class, rate) in names.into_iter().zip(self.rates()).filter_map(|(class, rate)| Some((class, rate?))) {
            for (name, value) in [("capacity", rate.capacity), ("refill_per_second", rate.refill_per_second)] {
                if !(1..=UNITS_MAX).contains(&value) {
                    return Err(format!("{class}.{name} is {value}: it must be 1 to {UNITS_MAX}"));
                }
            }
        }
        Ok(())
    }

    /// In the order of the cell.
    fn rates(&self) -> [Option<Rate>; 4] {
        [self.sync, self.read, self.write, self.import]
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
    let class = match request.class {
        Class::Sync => 0,
        Class::Read => 1,
        Class::Write => 2,
        Class::Import => 3,
    };
    let rates = settings.rates();
    let Some(rate) = rates[class].filter(|_| !settings.trusts(request.trust)) else {
        return (UNLIMITED, *cell);
    };
    let limit = u64::from(rate.capacity);
    if request.cost > limit {
        return (Verdict::Deny(Denial::TooExpensive), *cell);
    }
    let now = request.now & AT_MASK;
    let mut spent = Spent::unpack(cell).settled(&rates, now);
    // Not 0 only where the clock is a little behind.
    let behind_us = spent.at - now;
    let in_ms = |amount: u64| (behind_us + amount.div_ceil(u64::from(rate.refill_per_second))).div_ceil(US_PER_MS);
    let after = spent.amounts[class] + request.cost * MILLIONTHS;
    if after > rate.full() {
        return (Verdict::Throttle { limit, retry_after_ms: in_ms(after - rate.full()) }, spent.pack());
    }
    spent.amounts[class] = after;
    let reset_ms = if after == 0 { 0 } else { in_ms(after) };
    (Verdict::Allow { limit, remaining: (rate.full() - after) / MILLIONTHS, reset_ms }, spent.pack())
}

/// For a caller who has no limit.
const UNLIMITED: Verdict = Verdict::Allow { limit: u64::MAX, remaining: u64::MAX, reset_ms: 0 };

impl Rate {
    /// The capacity in millionths of a unit: at most 10¹⁵.
    fn full(self) -> u64 {
        u64::from(self.capacity) * MILLIONTHS
    }
}

/// A cell, unpacked: what was spent of each bucket, in millionths of a unit, and when that was so.
#[derive(Clone, Copy)]
struct Spent {
    at: u64,
    amounts: [u64; 4],
}

impl Spent {
    /// The same, as it is at `now`, which is less than 2⁵⁶; its `at` is not before that.
    fn settled(self, rates: &[Option<Rate>; 4], now: u64) -> Self {
        let passed_us = now.saturating_sub(self.at);
        let is_set_back = self.at.saturating_sub(now) > BACK_MAX_US;
        let at = if is_set_back { now } else { self.at.max(now) };
        let amount = |class: usize| {
            rates[class].map_or(0, |rate| {
                let refilled = u64::from(rate.refill_per_second).saturating_mul(passed_us);
                self.amounts[class].min(rate.full()).saturating_sub(refilled)
            })
        };
        Self { at, amounts: std::array::from_fn(amount) }
    }

    fn unpack(cell: &Cell) -> Self {
        let part = |class: usize| (cell[class] >> SPENT_BITS) << (AT_BITS * class as u32);
        Self { at: (0..4).fold(0, |at, class| at | part(class)), amounts: cell.map(|word| word & SPENT_MASK) }
    }

    fn pack(self) -> Cell {
        std::array::from_fn(|class| (self.at >> (AT_BITS * class as u32)) << SPENT_BITS | self.amounts[class])
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

    /// A cell of which `amount` millionths of reads were spent at `at`.
    fn cell(at: u64, amount: u64) -> Cell {
        Spent { at, amounts: [0, amount, 0, 0] }.pack()
    }

    #[test]
    fn what_was_spent_counts_under_another_configuration() {
        let ask = request(Class::Read, Trust::Public, 1, DAY_US);
        let remaining = |settings: &Settings, cell: &Cell| match step(settings, &ask, cell) {
            (Verdict::Allow { remaining, .. }, next) => (remaining, next),
            (verdict, _) => panic!("{verdict:?}"),
        };
        // 46 of 60 are spent. A larger bucket has that much less than all, a smaller one nothing.
        let (left, next) = remaining(&reads(60, 1), &cell(DAY_US, 45_000_000));
        assert_eq!(left, 14);
        assert_eq!(remaining(&reads(500, 250), &next).0, 453);
        assert_eq!(remaining(&reads(47, 1), &next).0, 0);
        assert_eq!(step(&reads(46, 1), &ask, &next).0, Verdict::Throttle { limit: 46, retry_after_ms: 1_000 });
        assert_eq!(step(&reads(5, 1), &ask, &next).0, Verdict::Throttle { limit: 5, retry_after_ms: 1_000 });
        // Without a limit nothing is spent, once another class of the caller was asked for.
        let free = Settings { read: None, ..Settings::default() };
        let (_, next) = step(&free, &request(Class::Write, Trust::Public, 1, DAY_US), &next);
        assert_eq!(remaining(&reads(60, 1), &next).0, 59);
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
        /// The model keeps a level in millionths of a unit and the time of the last request. Neither
        /// rounds, so both have to agree to the unit.
        #[test]
        fn it_decides_as_a_level_and_a_time_do(
            capacity in 1..200_u32,
            refill in prop_oneof![1..20_u32, 1..=100_000_u32],
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
            capacity in 1..1_000_u32, refill in prop_oneof![1..5_000_u32, 1..=UNITS_MAX], amount in 0..1_u64 << 50,
            cost in 0..1_000_u64, spent_at in DAY_US..DAY_US + 3_000_000, now in DAY_US..DAY_US + 3_000_000,
        ) {
            let settings = reads(capacity, refill);
            let at = |now| request(Class::Read, Trust::Public, cost, now);
            let cell = cell(spent_at, amount);
            if let (Verdict::Throttle { retry_after_ms, .. }, next) = step(&settings, &at(now), &cell) {
                let passes = |ms: u64| matches!(step(&settings, &at(now + ms * 1_000), &next).0, Verdict::Allow { .. });
                prop_assert!(passes(retry_after_ms));
                prop_assert!(!passes(retry_after_ms - 1));
            }
        }

        #[test]
        fn any_cell_and_any_clock_do_no_harm(
            capacity in 1..=UNITS_MAX, refill in 1..=UNITS_MAX, cell: Cell, cost in 0..2 * u64::from(UNITS_MAX),
            now: u64,
        ) {
            let settings = reads(capacity, refill);
            let request = request(Class::Read, Trust::Public, cost, now);
            match step(&settings, &request, &cell).0 {
                Verdict::Allow { remaining, .. } => prop_assert!(remaining <= u64::from(capacity)),
                Verdict::Throttle { retry_after_ms, .. } => {
                    let fill_ms = (u64::from(capacity) * 1_000).div_ceil(u64::from(refill));
                    // And the second that the clock may be behind.
                    prop_assert!((1..=fill_ms + 1_000).contains(&retry_after_ms));
                }
                verdict => prop_assert_eq!(verdict, Verdict::Deny(Denial::TooExpensive)),
            }
        }
    }
}
