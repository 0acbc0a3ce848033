//! No limits: every request passes, whoever asks.

use serde::Deserialize;
use tenon_sdk::Plugin;
use tenon_sdk::rate_limit::{Allowance, Cell, Policy, Request, Verdict};

/// The plugin.
pub struct AllowAll;

/// There is nothing to set.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {}

impl Plugin for AllowAll {
    type Settings = Settings;

    const SCHEMA: &'static str = r#"{ "type": "object", "additionalProperties": false }"#;

    fn new(_: Settings) -> Result<Self, String> {
        Ok(Self)
    }
}

impl Policy for AllowAll {
    fn check(&self, _: &Request, cell: Cell) -> (Verdict, Cell) {
        (Verdict::Allow(Allowance::UNLIMITED), cell)
    }
}

tenon_sdk::export_policy!(AllowAll);

#[cfg(test)]
mod tests {
    use tenon_sdk::rate_limit::{RouteClass, Trust};

    use super::*;

    #[test]
    fn everything_passes_and_nothing_is_remembered() {
        let policy = AllowAll::new(tenon_sdk::settings::<AllowAll>("{}").unwrap()).unwrap();
        let request =
            Request { client: 1, route: 0, class: RouteClass::Write, trust: Trust::Public, cost: u64::MAX, now: 0 };
        let (verdict, cell) = policy.check(&request, (1, 2, 3, 4));
        assert_eq!(verdict, Verdict::Allow(Allowance::UNLIMITED));
        assert_eq!(cell, (1, 2, 3, 4));
    }

    #[test]
    fn a_setting_is_refused() {
        assert!(tenon_sdk::settings::<AllowAll>(r#"{"read": 1}"#).is_err());
    }
}
