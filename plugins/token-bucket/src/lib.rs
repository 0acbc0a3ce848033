//! Token buckets: four for each caller, one a class of routes, each in one word of the caller's cell.
//!
//! The decision is [`bucket`]'s; here are the settings, and who is not asked at all: trusted callers, and classes without
//! a bucket. By default that is followers who sync, so that nothing stands between a follower and its blocks.

pub mod bucket;

use serde::Deserialize;
use tenon_sdk::Plugin;
use tenon_sdk::rate_limit::{Allowance, Cell, Denial, Policy, Request, RouteClass, Throttled, Trust, Verdict};

use crate::bucket::{Bucket, Taken, UNITS_MAX};

/// The plugin.
pub struct TokenBucket {
    settings: Settings,
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

impl Settings {
    fn rate(&self, class: RouteClass) -> Option<Rate> {
        match class {
            RouteClass::Sync => self.sync,
            RouteClass::Read => self.read,
            RouteClass::Write => self.write,
            RouteClass::Import => self.import,
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

impl Plugin for TokenBucket {
    type Settings = Settings;

    const SCHEMA: &'static str = include_str!("../schema.json");

    fn new(settings: Settings) -> Result<Self, String> {
        let Settings { sync, read, write, import, .. } = &settings;
        for (class, rate) in [("sync", sync), ("read", read), ("write", write), ("import", import)] {
            let Some(rate) = rate else { continue };
            for (name, value) in [("capacity", rate.capacity), ("refill_per_second", rate.refill_per_second)] {
                if !(1..=UNITS_MAX).contains(&value) {
                    return Err(format!("{class}.{name} is {value}: it must be 1 to {UNITS_MAX}"));
                }
            }
        }
        Ok(Self { settings })
    }
}

impl Policy for TokenBucket {
    fn check(&self, request: &Request, mut cell: Cell) -> (Verdict, Cell) {
        let Some(Rate { capacity, refill_per_second }) = self.settings.rate(request.class) else {
            return (Verdict::Allow(Allowance::UNLIMITED), cell);
        };
        if self.settings.trusts(request.trust) {
            return (Verdict::Allow(Allowance::UNLIMITED), cell);
        }
        let bucket = Bucket { capacity, refill_per_second };
        let word = word(&mut cell, request.class);
        let (taken, full_at) = bucket.take(*word, request.cost, request.now);
        *word = full_at;
        let limit = u64::from(capacity);
        let verdict = match taken {
            Taken::Granted { remaining, reset_ms } => Verdict::Allow(Allowance { limit, remaining, reset_ms }),
            Taken::TooSoon { retry_after_ms } => Verdict::Throttle(Throttled { limit, retry_after_ms }),
            Taken::TooExpensive => Verdict::Deny(Denial::TooExpensive),
        };
        (verdict, cell)
    }
}

/// The class's word of the cell.
fn word(cell: &mut Cell, class: RouteClass) -> &mut u64 {
    match class {
        RouteClass::Sync => &mut cell.0,
        RouteClass::Read => &mut cell.1,
        RouteClass::Write => &mut cell.2,
        RouteClass::Import => &mut cell.3,
    }
}

tenon_sdk::export_policy!(TokenBucket);

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
    fn wrong_settings_are_named() {
        let zero = r#"{"write": {"capacity": 0, "refill_per_second": 1}}"#;
        let error = TokenBucket::new(tenon_sdk::settings::<TokenBucket>(zero).unwrap()).err().unwrap();
        assert_eq!(error, "write.capacity is 0: it must be 1 to 1000000000");
        for text in [r#"{"reed": null}"#, r#"{"read": {"capacity": 1}}"#, r#"{"read": 5}"#, r#"{"trusted": ["me"]}"#] {
            assert!(tenon_sdk::settings::<TokenBucket>(text).is_err(), "{text}");
        }
    }
}
