//! A rate-limit policy that misbehaves on demand: for tests of the host.
//!
//! The configuration says how, from which call of a client on, and for which client. Until then it lets everybody
//! through. The calls are counted in the client's own cell, so the count does not depend on which instance answers; a
//! call that traps is not counted, and the next one traps again.

pub mod harm;

use serde::Deserialize;
use tenon_sdk::Plugin;
use tenon_sdk::rate_limit::{Allowance, Cell, Denial, Policy, Request, Throttled, Verdict};

/// The plugin.
pub struct Faults {
    settings: Settings,
}

/// What goes wrong, and when.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What goes wrong.
    pub mode: Mode,
    /// The first call of a client for which it does; 0 and 1 are the first.
    pub from_call: u64,
    /// The only client for which it does; all unless given.
    pub client: Option<u64>,
}

/// What can go wrong.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Nothing: everybody passes, with a limit of 1,000 and 999 left.
    #[default]
    Allow,
    /// Nobody passes, ever.
    DenyAll,
    /// Nobody passes now; a second later, perhaps.
    ThrottleAll,
    /// No opinion.
    Pass,
    /// A panic, and so a trap.
    Panic,
    /// An endless loop.
    Spin,
    /// Memory without end.
    Hoard,
    /// Recursion without end.
    Recurse,
    /// "Come back in 0 ms", which is too soon to be a time.
    RetryZero,
    /// "Come back in half a billion years".
    RetryHuge,
    /// More left than the limit.
    RemainingAboveLimit,
    /// 20,000 lines of log, then everybody passes.
    FloodLog,
    /// `configure` returns an error.
    ConfigureError,
    /// `configure` panics.
    ConfigurePanic,
    /// `configure` does not return.
    ConfigureSpin,
}

impl Plugin for Faults {
    type Settings = Settings;

    const SCHEMA: &'static str = include_str!("../schema.json");

    fn new(settings: Settings) -> Result<Self, String> {
        match settings.mode {
            Mode::ConfigureError => Err("refused, as the configuration demands".to_owned()),
            Mode::ConfigurePanic => panic!("a panic in configure, as the configuration demands"),
            Mode::ConfigureSpin => harm::spin(),
            _ => Ok(Self { settings }),
        }
    }
}

impl Policy for Faults {
    fn check(&self, request: &Request, mut cell: Cell) -> (Verdict, Cell) {
        cell.0 = cell.0.saturating_add(1);
        let is_meant = self.settings.client.is_none_or(|client| client == request.client);
        let mode = if is_meant && cell.0 >= self.settings.from_call { self.settings.mode } else { Mode::Allow };
        (verdict(mode), cell)
    }
}

fn verdict(mode: Mode) -> Verdict {
    const LIMIT: u64 = 1000;
    let allow = Verdict::Allow(Allowance { limit: LIMIT, remaining: LIMIT - 1, reset_ms: 1 });
    let throttle = |retry_after_ms| Verdict::Throttle(Throttled { limit: LIMIT, retry_after_ms });
    match mode {
        Mode::Allow | Mode::ConfigureError | Mode::ConfigurePanic | Mode::ConfigureSpin => allow,
        Mode::DenyAll => Verdict::Deny(Denial::Forbidden),
        Mode::ThrottleAll => throttle(1000),
        Mode::Pass => Verdict::Pass,
        Mode::Panic => panic!("a panic, as the configuration demands"),
        Mode::Spin => harm::spin(),
        Mode::Hoard => harm::hoard(),
        Mode::Recurse => throttle(harm::recurse(0)),
        Mode::RetryZero => throttle(0),
        Mode::RetryHuge => throttle(u64::MAX),
        Mode::RemainingAboveLimit => Verdict::Allow(Allowance { limit: 1, remaining: u64::MAX, reset_ms: u64::MAX }),
        Mode::FloodLog => {
            harm::flood_log();
            allow
        }
    }
}

tenon_sdk::export_policy!(Faults);

#[cfg(test)]
mod tests {
    use tenon_sdk::rate_limit::{RouteClass, Trust};

    use super::*;

    fn policy(settings: &str) -> Result<Faults, String> {
        Faults::new(tenon_sdk::settings::<Faults>(settings)?)
    }

    fn request(client: u64) -> Request {
        Request { client, route: 0, class: RouteClass::Read, trust: Trust::Public, cost: 1, now: 0 }
    }

    #[test]
    fn it_misbehaves_from_the_call_and_for_the_client_it_was_told() {
        let policy = policy(r#"{"mode": "deny-all", "from_call": 3, "client": 7}"#).unwrap();
        let denied = |client| {
            let mut cell = (0, 0, 0, 0);
            let calls = (0..4).map(|_| {
                let (verdict, next) = policy.check(&request(client), cell);
                cell = next;
                verdict == Verdict::Deny(Denial::Forbidden)
            });
            calls.collect::<Vec<_>>()
        };
        assert_eq!(denied(7), [false, false, true, true]);
        assert_eq!(denied(8), [false; 4]);
    }

    #[test]
    fn without_settings_it_behaves() {
        let (verdict, _) = policy("{}").unwrap().check(&request(1), (0, 0, 0, 0));
        assert!(matches!(verdict, Verdict::Allow(_)));
    }

    #[test]
    fn it_refuses_its_configuration_when_it_is_told_to() {
        assert!(policy(r#"{"mode": "configure-error"}"#).is_err());
        assert!(policy(r#"{"mode": "no-such-mode"}"#).is_err());
    }
}
