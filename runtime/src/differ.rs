//! In which fields two answers differ: what a shadow and a replay tell.

use serde_json::Value;

/// The fields in which two values differ, as paths: `allow.remaining`, `[].peer`; all items of a list are one. An empty
/// path, shown as `.`, is the whole.
pub(crate) fn differences(before: &Value, after: &Value) -> Vec<String> {
    let mut found = Vec::new();
    differ("", before, after, &mut found);
    found.sort();
    found.dedup();
    found
}

fn differ(path: &str, before: &Value, after: &Value, found: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) if before.keys().eq(after.keys()) => {
            let dot = if path.is_empty() { "" } else { "." };
            for ((name, before), after) in before.iter().zip(after.values()) {
                differ(&format!("{path}{dot}{name}"), before, after, found);
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (before, after) in before.iter().zip(after) {
                differ(&format!("{path}[]"), before, after, found);
            }
        }
        _ if before == after => {}
        _ => found.push(if path.is_empty() { ".".to_owned() } else { path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_fields_that_differ_are_named() {
        let allow = |limit: u64, remaining: u64| json!({ "allow": { "limit": limit, "remaining": remaining } });
        let cases = [
            (allow(5, 4), allow(5, 4), vec![]),
            (allow(5, 4), allow(5, 3), vec!["allow.remaining"]),
            (allow(5, 4), allow(6, 3), vec!["allow.limit", "allow.remaining"]),
            (allow(5, 4), json!({ "deny": "forbidden" }), vec!["."]),
            (json!("pass"), allow(5, 4), vec!["."]),
            (
                json!([{ "a": 1, "b": 1 }, { "a": 1, "b": 1 }]),
                json!([{ "a": 2, "b": 1 }, { "a": 3, "b": 1 }]),
                vec!["[].a"],
            ),
            (json!({ "list": [1] }), json!({ "list": [1, 2] }), vec!["list"]),
        ];
        for (before, after, expected) in cases {
            assert_eq!(differences(&before, &after), expected, "{before} {after}");
        }
    }
}
