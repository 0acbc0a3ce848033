//! Token buckets: four for each caller, one a class of routes, together in the caller's cell.
//!
//! The decision is [`bucket`]'s; here are the settings, and who is not asked at all: trusted callers, and classes without
//! a bucket. By default that is followers who sync, so that nothing stands between a follower and its blocks.

pub mod bucket;
mod first_form;

use serde::Deserialize;
use tenon_sdk::Plugin;
use tenon_sdk::rate_limit::{Allowance, Cell, Denial, Migrate, Policy, Request, RouteClass, Throttled, Trust, Verdict};

use crate::bucket::{Bucket, Buckets, Spent, Taken, UNITS_MAX};

/// The plugin.
pub struct TokenBucket {
    buckets: Buckets,
    trusts_loopback: bool,
    trusts_peers: bool,
}

/// A bucket for each class, and who needs none.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// For heads and ranges; none by default.
    pub sync: Option<Rate>,
    /// For reading one thing.
    pub read: Option<Rate>,
    /// For handing in transactions.
    pub write: Option<Rate>,
    /// For handing in blocks.
    pub import: Option<Rate>,
    /// Callers who are never throttled.
    pub trusted: Vec<Trusted>,
}

/// A bucket as it is configured.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// The most that can be spent at once, in units of cost.
    pub capacity: u32,
    /// What comes back, in units of cost a second.
    pub refill_per_second: u32,
}

/// Whom the node can tell from anybody.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
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
            read: rate(2000, 1000),
            write: rate(200, 100),
            import: rate(2000, 1000),
            trusted: vec![Trusted::Loopback, Trusted::Peer],
        }
    }
}

impl Plugin for TokenBucket {
    type Settings = Settings;

    const SCHEMA: &'static str = include_str!("../schema.json");
    // 2: what was spent; 1: when the bucket is full.
    const MEMORY_VERSION: u32 = 2;

    fn new(settings: Settings) -> Result<Self, String> {
        let Settings { sync, read, write, import, trusted } = settings;
        for (class, rate) in [("sync", sync), ("read", read), ("write", write), ("import", import)] {
            let Some(rate) = rate else { continue };
            for (name, value) in [("capacity", rate.capacity), ("refill_per_second", rate.refill_per_second)] {
                if !(1..=UNITS_MAX).contains(&value) {
                    return Err(format!("{class}.{name} is {value}: it must be 1 to {UNITS_MAX}"));
                }
            }
        }
        let bucket = |Rate { capacity, refill_per_second }| Bucket { capacity, refill_per_second };
        Ok(Self {
            buckets: [sync, read, write, import].map(|rate| rate.map(bucket)),
            trusts_loopback: trusted.contains(&Trusted::Loopback),
            trusts_peers: trusted.contains(&Trusted::Peer),
        })
    }
}

impl TokenBucket {
    fn trusts(&self, trust: Trust) -> bool {
        match trust {
            Trust::Public => false,
            Trust::Peer => self.trusts_peers,
            Trust::Loopback => self.trusts_loopback,
        }
    }
}

impl Policy for TokenBucket {
    fn check(&self, request: &Request, cell: Cell) -> (Verdict, Cell) {
        let class = index(request.class);
        let Some(bucket) = self.buckets[class].filter(|_| !self.trusts(request.trust)) else {
            return (Verdict::Allow(Allowance::UNLIMITED), cell);
        };
        let (taken, spent) = Spent::unpack(cell.into()).take(&self.buckets, class, request.cost, request.now);
        let limit = u64::from(bucket.capacity);
        let verdict = match taken {
            Taken::Granted { remaining, reset_ms } => Verdict::Allow(Allowance { limit, remaining, reset_ms }),
            Taken::TooSoon { retry_after_ms } => Verdict::Throttle(Throttled { limit, retry_after_ms }),
            Taken::TooExpensive => Verdict::Deny(Denial::TooExpensive),
        };
        (verdict, spent.pack().into())
    }
}

impl Migrate for TokenBucket {
    fn upgrade(&self, from_version: u32, cell: Cell) -> Result<Cell, String> {
        match from_version {
            1 => Ok(first_form::read(&self.buckets, cell.into()).pack().into()),
            other => tenon_sdk::unknown_version(other),
        }
    }

    fn downgrade(&self, to_version: u32, cell: Cell) -> Result<Cell, String> {
        match to_version {
            1 => Ok(first_form::write(&self.buckets, Spent::unpack(cell.into())).into()),
            other => tenon_sdk::unknown_version(other),
        }
    }
}

/// The class's place in the cell.
fn index(class: RouteClass) -> usize {
    match class {
        RouteClass::Sync => 0,
        RouteClass::Read => 1,
        RouteClass::Write => 2,
        RouteClass::Import => 3,
    }
}

tenon_sdk::export_policy!(TokenBucket, migrating);

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(settings: &str) -> TokenBucket {
        TokenBucket::new(tenon_sdk::settings::<TokenBucket>(settings).unwrap()).unwrap()
    }

    fn request(class: RouteClass, trust: Trust) -> Request {
        Request { client: 1, route: 0, class, trust, cost: 1, now: 1_790_000_000_000_000 }
    }

    #[test]
    fn the_defaults_never_throttle_sync_or_trusted_callers() {
        let policy = policy("{}");
        let mut cell = (0, 0, 0, 0);
        for _ in 0..10_000 {
            for (class, trust) in [
                (RouteClass::Sync, Trust::Public),
                (RouteClass::Import, Trust::Peer),
                (RouteClass::Write, Trust::Loopback),
            ] {
                let (verdict, next) = policy.check(&request(class, trust), cell);
                assert_eq!(verdict, Verdict::Allow(Allowance::UNLIMITED));
                cell = next;
            }
        }
        assert_eq!(cell, (0, 0, 0, 0));
    }

    #[test]
    fn each_class_has_its_own_bucket() {
        let policy = policy(
            r#"{"sync": {"capacity": 1, "refill_per_second": 1}, "read": {"capacity": 1, "refill_per_second": 1},
                "write": {"capacity": 1, "refill_per_second": 1}, "import": {"capacity": 1, "refill_per_second": 1}}"#,
        );
        let classes = [RouteClass::Sync, RouteClass::Read, RouteClass::Write, RouteClass::Import];
        let mut cell = (0, 0, 0, 0);
        for class in classes {
            let (verdict, next) = policy.check(&request(class, Trust::Public), cell);
            assert_eq!(verdict, Verdict::Allow(Allowance { limit: 1, remaining: 0, reset_ms: 1000 }));
            cell = next;
        }
        for class in classes {
            let (verdict, _) = policy.check(&request(class, Trust::Public), cell);
            assert_eq!(verdict, Verdict::Throttle(Throttled { limit: 1, retry_after_ms: 1000 }));
        }
    }

    #[test]
    fn what_can_never_pass_is_denied() {
        let policy = policy(r#"{"read": {"capacity": 5, "refill_per_second": 1}}"#);
        let dear = Request { cost: 6, ..request(RouteClass::Read, Trust::Public) };
        assert_eq!(policy.check(&dear, (0, 0, 0, 0)), (Verdict::Deny(Denial::TooExpensive), (0, 0, 0, 0)));
    }

    #[test]
    fn null_takes_a_limit_away_and_trust_can_be_withdrawn() {
        let policy = policy(r#"{"read": null, "write": {"capacity": 1, "refill_per_second": 1}, "trusted": []}"#);
        let (verdict, _) = policy.check(&request(RouteClass::Read, Trust::Public), (0, 0, 0, 0));
        assert_eq!(verdict, Verdict::Allow(Allowance::UNLIMITED));
        let (_, cell) = policy.check(&request(RouteClass::Write, Trust::Loopback), (0, 0, 0, 0));
        let (verdict, _) = policy.check(&request(RouteClass::Write, Trust::Loopback), cell);
        assert!(matches!(verdict, Verdict::Throttle(_)));
    }

    #[test]
    fn cells_of_the_first_version_count_on_and_come_back() {
        let policy = policy(r#"{"read": {"capacity": 5, "refill_per_second": 1}}"#);
        let ask = request(RouteClass::Read, Trust::Public);
        // Full again in three seconds: three units are spent.
        let first = (0, (ask.now + 3_000_000) * 1000, 0, 0);
        let cell = policy.upgrade(1, first).unwrap();
        let (verdict, cell) = policy.check(&ask, cell);
        assert_eq!(verdict, Verdict::Allow(Allowance { limit: 5, remaining: 1, reset_ms: 4000 }));
        assert_eq!(policy.downgrade(1, cell).unwrap(), (0, (ask.now + 4_000_000) * 1000, 0, 0));
        assert!(policy.upgrade(0, first).is_err() && policy.downgrade(3, cell).is_err());
    }

    #[test]
    fn wrong_settings_are_named() {
        let zero = r#"{"write": {"capacity": 0, "refill_per_second": 1}}"#;
        let error = TokenBucket::new(tenon_sdk::settings::<TokenBucket>(zero).unwrap()).err().unwrap();
        assert_eq!(error, "write.capacity is 0: it must be 1 to 1000000000");
        for text in [r#"{"reed": null}"#, r#"{"read": {"capacity": 1}}"#, r#"{"read": 5}"#, r#"{"trusted": ["me"]}"#] {
            assert!(tenon_sdk::settings::<TokenBucket>(text).is_err(), "{text}");
        }
    }
}
