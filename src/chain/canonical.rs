//! JSON in one spelling: sorted keys, no spaces, everything beyond ASCII escaped, numbers as they were written.
//!
//! It is what Python's `json.dumps(…, sort_keys=True, separators=(",", ":"))` gives for text that `json.dumps` made,
//! which is what existing wallets sign. Numbers are kept digit by digit, since no two languages print them alike.

use std::fmt::Write as _;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// How deep objects and arrays may lie in each other.
const DEPTH_MAX: usize = 64;

/// The fields of a JSON object in the order they came, values as their text. A name that comes twice is an error: two
/// readers of such an object would see two things.
pub(super) struct Object(pub Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut fields: Vec<(String, Box<RawValue>)> = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    if !seen.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format_args!("field `{name}` comes twice")));
                    }
                    fields.push((name, value));
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// The one spelling of `json`, which is valid JSON already. Errors: a name that comes twice, more than 64 levels.
pub(super) fn canonical(json: &str) -> Result<String, String> {
    let mut out = String::with_capacity(json.len());
    write_value(json.trim(), &mut out, 0)?;
    Ok(out)
}

fn write_value(json: &str, out: &mut String, depth: usize) -> Result<(), String> {
    if depth > DEPTH_MAX {
        return Err(format!("more than {DEPTH_MAX} levels"));
    }
    let reason = |error: serde_json::Error| error.to_string();
    match json.as_bytes().first() {
        Some(b'{') => {
            let Object(mut fields) = serde_json::from_str(json).map_err(reason)?;
            fields.sort_by(|(a, _), (b, _)| a.cmp(b));
            out.push('{');
            for (index, (name, value)) in fields.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_text(name, out);
                out.push(':');
                write_value(value.get(), out, depth + 1)?;
            }
            out.push('}');
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(json).map_err(reason)?;
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_value(item.get(), out, depth + 1)?;
            }
            out.push(']');
        }
        Some(b'"') => write_text(&serde_json::from_str::<String>(json).map_err(reason)?, out),
        _ => out.push_str(json),
    }
    Ok(())
}

/// `text` as a JSON string in ASCII.
pub(super) fn write_text(text: &str, out: &mut String) {
    out.push('"');
    let mut plain = 0;
    for (at, c) in text.char_indices() {
        if matches!(c, ' '..='~') && c != '"' && c != '\\' {
            continue;
        }
        out.push_str(&text[plain..at]);
        plain = at + c.len_utf8();
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").expect("a String takes everything");
                }
            }
        }
    }
    out.push_str(&text[plain..]);
    out.push('"');
}

/// The spelling with `", "` and `": "` of a canonical text: Python's default separators, used in what is signed.
pub(super) fn write_spaced(canonical: &str, out: &mut String) {
    let (mut quoted, mut escaped) = (false, false);
    for c in canonical.chars() {
        out.push(c);
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            ',' | ':' if !quoted => out.push(' '),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_spelling_is_pythons() {
        let json = r#" {"b": [1, 2.50, {"z":null,"a":true}], "a" : "gr\u00fc\u00dfe 🚀\u007f\/\n", "ä":-0} "#;
        let compact = canonical(json).unwrap();
        assert_eq!(
            compact,
            r#"{"a":"gr\u00fc\u00dfe \ud83d\ude80\u007f/\n","b":[1,2.50,{"a":true,"z":null}],"\u00e4":-0}"#
        );
        let mut spaced = String::new();
        write_spaced(&compact, &mut spaced);
        assert_eq!(
            spaced,
            r#"{"a": "gr\u00fc\u00dfe \ud83d\ude80\u007f/\n", "b": [1, 2.50, {"a": true, "z": null}], "\u00e4": -0}"#
        );
    }

    #[test]
    fn doubled_names_and_deep_nesting_are_refused() {
        assert!(canonical(r#"{"a":{"b":1,"b":2}}"#).unwrap_err().contains("`b` comes twice"));
        let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(canonical(&deep(65)).is_ok());
        assert!(canonical(&deep(66)).unwrap_err().contains("64 levels"));
        assert!(canonical(&deep(30_000)).is_err());
    }

    proptest! {
        #[test]
        fn a_text_keeps_its_meaning(text in any::<String>()) {
            let mut out = String::new();
            write_text(&text, &mut out);
            prop_assert!(out.is_ascii());
            prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text.clone());
            let object = serde_json::json!({ text.clone(): [text.clone(), {"k": text}] });
            let compact = canonical(&object.to_string()).unwrap();
            prop_assert_eq!(&canonical(&compact).unwrap(), &compact);
            let mut spaced = String::new();
            write_spaced(&compact, &mut spaced);
            prop_assert_eq!(canonical(&spaced).unwrap(), compact);
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&spaced).unwrap(), object);
        }
    }
}
