//! How long calls take: a histogram of fixed size with buckets an eighth apart, written without locks.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Buckets for each doubling.
const PARTS: u32 = 8;
/// Doublings: up to 2^36 ns, more than a minute.
const DOUBLINGS: u32 = 36;
const BUCKETS: usize = (DOUBLINGS * PARTS) as usize;

/// One in this many calls is timed: reading the clock twice costs a third of a small call.
pub(crate) const TIMED_EVERY: u64 = 16;

/// Times of calls.
pub(crate) struct Latency(Box<[AtomicU32; BUCKETS]>);

/// What a [`Latency`] has counted, in nanoseconds; timed calls are a sample of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    /// Calls that were timed.
    pub timed: u64,
    /// The median; at most an eighth above the true one.
    pub p50_ns: u64,
    /// The 90th percentile.
    pub p90_ns: u64,
    /// The 99th percentile.
    pub p99_ns: u64,
    /// The slowest.
    pub max_ns: u64,
}

impl Default for Latency {
    fn default() -> Latency {
        Latency(Box::new([const { AtomicU32::new(0) }; BUCKETS]))
    }
}

impl Latency {
    pub(crate) fn add(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0[bucket(ns)].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn times(&self) -> Times {
        let counts: Vec<u64> = self.0.iter().map(|count| count.load(Ordering::Relaxed).into()).collect();
        let timed: u64 = counts.iter().sum();
        if timed == 0 {
            return Times::default();
        }
        let at = |share: u64| {
            let rank = (timed * share).div_ceil(1_000).max(1);
            let mut before = 0;
            let found = counts.iter().position(|count| {
                before += count;
                before >= rank
            });
            upper(found.unwrap_or(BUCKETS - 1))
        };
        Times { timed, p50_ns: at(500), p90_ns: at(900), p99_ns: at(990), max_ns: at(1_000) }
    }
}

/// Below `PARTS` each value has its bucket; from there on each doubling has `PARTS`.
fn bucket(ns: u64) -> usize {
    let parts = u64::from(PARTS);
    if ns < parts {
        return ns as usize;
    }
    let doubling = ns.ilog2() - PARTS.ilog2();
    let within = (ns >> doubling) - parts;
    ((u64::from(doubling + 1) * parts + within) as usize).min(BUCKETS - 1)
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let parts = PARTS as usize;
    if bucket < parts {
        return bucket as u64;
    }
    let (doubling, within) = (bucket / parts - 1, bucket % parts);
    (((parts + within + 1) as u64) << doubling) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn percentiles_are_at_most_an_eighth_above_the_true_ones(
            mut ns in proptest::collection::vec(0..1_u64 << 35, 1..300),
        ) {
            let latency = Latency::default();
            for ns in &ns {
                latency.add(Duration::from_nanos(*ns));
            }
            ns.sort_unstable();
            let times = latency.times();
            for (share, told) in [(500, times.p50_ns), (900, times.p90_ns), (990, times.p99_ns), (1_000, times.max_ns)] {
                let rank = (ns.len() * share).div_ceil(1_000).max(1);
                let truth = ns[rank - 1];
                prop_assert!(told >= truth && told <= truth + truth / 8 + 1, "{told} for {truth}");
            }
            prop_assert_eq!(times.timed, ns.len() as u64);
        }
    }
}
