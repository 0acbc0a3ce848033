//! The limits of a plugin as a section: `[plugins.sync.limits]`. Names, ranges and meanings are the plugin host's.

use serde_json::{Map, Value};
use tenon_runtime::{Limit, Limits};

use super::section::{self, Key, Knob};
use super::{Given, Problem};

impl Knob for Limits {
    fn expected() -> String {
        "a table of limits, like { deadline_ms = 100 }".into()
    }

    fn check(&self) -> Result<(), String> {
        Self::check(self)
    }

    fn keys(section: &str) -> Option<Vec<Key>> {
        let default = defaults();
        let key = |limit: &Limit| {
            let range = section::range(Some(&(limit.low..=limit.high)));
            section::key(format!("{section}.{}", limit.name), &value(&default, limit), range, limit.meaning)
        };
        Some(Self::ALL.iter().map(key).collect())
    }

    fn read_section(given: &Given, section: &str, problems: &mut Vec<Problem>) -> Option<Self> {
        let names: Vec<&str> = Self::ALL.iter().map(|limit| limit.name).collect();
        section::unknown(given, section, &names, &[], problems);
        let mut values = defaults();
        for limit in Self::ALL {
            let mut number = value(&values, limit);
            section::take(given, section, limit.name, Some(&(limit.low..=limit.high)), &mut number, problems);
            values.insert(limit.name.to_owned(), number.into());
        }
        let limits: Self = serde_json::from_value(values.into()).expect("each number is within its limit's range");
        // What is left is how two of them stand to each other; the line of either will do.
        if let Err(why) = limits.check() {
            let place = ["backoff_max_ms", "backoff_min_ms"].into_iter().find_map(|name| given.get(name));
            let key = format!("{section}.backoff_max_ms");
            problems.push(Problem::error(&place.unwrap_or(given).origin, &key, why));
        }
        Some(limits)
    }
}

fn defaults() -> Map<String, Value> {
    match serde_json::to_value(Limits::default()) {
        Ok(Value::Object(limits)) => limits,
        other => unreachable!("limits are a record of numbers, not {other:?}"),
    }
}

fn value(values: &Map<String, Value>, limit: &Limit) -> u64 {
    values.get(limit.name).and_then(Value::as_u64).expect("every limit is a whole number")
}
