//! `tenon:rate-limit` <-> [`crate::rate_limit`].

use tenon_runtime::wasmtime::{self, Store};
use tenon_runtime::{Context, Kind, Limits, Refusal, Slot, world};

use crate::rate_limit::{Cell, Class, Denial, Policy, Request, Trust, Verdict};

mod wit {
    tenon_runtime::wasmtime::component::bindgen!({
        path: ["wit/host", "wit/rate-limit"],
        world: "tenon:rate-limit/rate-limit-policy",
        wasmtime_crate: tenon_runtime::wasmtime,
    });
}
use wit::exports::tenon::rate_limit::policy;

/// The kind of plugin that limits rates.
pub struct RateLimit;

/// A caller is told to wait an hour at most; a policy that says more means "for long".
const RETRY_AFTER_MAX_MS: u64 = 3_600_000;

impl Kind for RateLimit {
    const NAME: &'static str = "rate-limit";
    const INTERFACE: &'static str = "tenon:rate-limit/policy@0.1.0";
    const WORLD: &'static str = "tenon:rate-limit/rate-limit-policy@0.1.0";
    const WIT: &'static [&'static str] = &[include_str!("../../wit/rate-limit/policy.wit")];

    type Key = u64;
    type Request = Request;
    type Answer = Verdict;
    type Memory = Cell;
    type Wire = (u64, u64, u64, u64);
    const MIGRATION: Option<&'static str> = Some("tenon:rate-limit/migration@0.1.0");
    world!(wit::RateLimitPolicy, wit::RateLimitPolicyIndices);

    fn step(
        world: &Self::World,
        store: &mut Store<Context>,
        request: &Request,
        memory: &Cell,
    ) -> wasmtime::Result<(Verdict, Cell)> {
        let cell = Self::to_wire(memory);
        let (verdict, cell) = world.tenon_rate_limit_policy().call_check(store, request.into(), cell)?;
        Ok((verdict.into(), Self::from_wire(cell)))
    }

    fn check(_: &Request, verdict: &Verdict, _: &Limits) -> Result<(), Refusal> {
        match verdict {
            Verdict::Throttle { retry_after_ms: 0, .. } => Err(Refusal::new("throttled, but retry-after-ms is 0")),
            Verdict::Allow { limit, remaining, .. } if remaining > limit => {
                Err(Refusal::new(format!("remaining {remaining} is above the limit {limit}")))
            }
            _ => Ok(()),
        }
    }

    fn to_wire(cell: &Cell) -> Self::Wire {
        (cell[0], cell[1], cell[2], cell[3])
    }

    fn from_wire(cell: Self::Wire) -> Cell {
        [cell.0, cell.1, cell.2, cell.3]
    }

    fn label(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Allow { .. } => "allow",
            Verdict::Throttle { .. } => "throttle",
            Verdict::Deny(_) => "deny",
            Verdict::Pass => "pass",
        }
    }

    /// Another limit is another number in every answer; what a client notices is another verdict.
    fn diverges(live: &Verdict, candidate: &Verdict) -> bool {
        Self::label(live) != Self::label(candidate)
    }

    fn labels() -> &'static [&'static str] {
        &["allow", "throttle", "deny", "pass"]
    }

    fn class(request: &Request) -> &'static str {
        match request.class {
            Class::Sync => "sync",
            Class::Read => "read",
            Class::Write => "write",
            Class::Import => "import",
        }
    }

    fn subject(request: &Request) -> Option<u64> {
        Some(request.client)
    }

    fn passes(verdict: &Verdict) -> bool {
        *verdict == Verdict::Pass
    }

    fn open(_: &Request) -> Option<Verdict> {
        Some(Verdict::Allow { limit: 0, remaining: 0, reset_ms: 0 })
    }

    fn closed(_: &Request) -> Option<Verdict> {
        Some(Verdict::Throttle { limit: 0, retry_after_ms: 1_000 })
    }

    fn probe() -> Option<Request> {
        let (class, trust) = (Class::Read, Trust::Public);
        Some(Request { client: 0, route: 0, class, trust, cost: 1, now: 1_735_689_600_000_000 })
    }

    fn now_us(request: &Request) -> u64 {
        request.now
    }
}

impl Policy for Slot<RateLimit> {
    fn check_recorded(&self, request: &Request) -> (Verdict, Option<String>) {
        let decision = self.ask(&request.client, request);
        let refused = matches!(decision.answer, Verdict::Throttle { .. } | Verdict::Deny(_));
        (decision.answer, decision.record.filter(|_| refused).map(|record| record.to_string()))
    }
}

impl From<&Request> for policy::Request {
    fn from(request: &Request) -> Self {
        Self {
            client: request.client,
            route: request.route,
            class: match request.class {
                Class::Sync => policy::RouteClass::Sync,
                Class::Read => policy::RouteClass::Read,
                Class::Write => policy::RouteClass::Write,
                Class::Import => policy::RouteClass::Import,
            },
            trust: match request.trust {
                Trust::Public => policy::Trust::Public,
                Trust::Peer => policy::Trust::Peer,
                Trust::Loopback => policy::Trust::Loopback,
            },
            cost: request.cost,
            now: request.now,
        }
    }
}

impl From<policy::Verdict> for Verdict {
    fn from(verdict: policy::Verdict) -> Self {
        match verdict {
            policy::Verdict::Allow(policy::Allowance { limit, remaining, reset_ms }) => {
                Self::Allow { limit, remaining, reset_ms }
            }
            policy::Verdict::Throttle(policy::Throttled { limit, retry_after_ms }) => {
                Self::Throttle { limit, retry_after_ms: retry_after_ms.min(RETRY_AFTER_MAX_MS) }
            }
            policy::Verdict::Deny(policy::Denial::Forbidden) => Self::Deny(Denial::Forbidden),
            policy::Verdict::Deny(policy::Denial::TooExpensive) => Self::Deny(Denial::TooExpensive),
            policy::Verdict::Pass => Self::Pass,
        }
    }
}
