//! `plugins/README.md` says of every shipped plugin what it takes: each setting with its range and default, held against
//! the plugin's own schema and code.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use tenon::rate_limit::token_bucket::Settings as OfBuiltin;
use tenon_sdk::Plugin;

/// A table's rows by their first cell, a setting: the other cells.
type Table = BTreeMap<String, Vec<String>>;

/// The tables below each heading that names a plugin.
fn sections() -> BTreeMap<String, Vec<Table>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins/README.md");
    let mut sections = BTreeMap::<String, Vec<Table>>::new();
    let mut section = None;
    for line in fs::read_to_string(path).unwrap().lines() {
        if line.starts_with('#') {
            let plugin = line.strip_prefix("## `").and_then(|rest| rest.strip_suffix('`'));
            section = plugin.map(|plugin| sections.entry(plugin.to_owned()).or_default());
        }
        let (Some(tables), Some(row)) = (&mut section, line.strip_prefix("| ")) else { continue };
        let cells: Vec<String> = row.trim_end_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
        match cells[0].strip_prefix('`').and_then(|rest| rest.strip_suffix('`')) {
            None => tables.push(Table::new()),
            Some(setting) => {
                let former = tables.last_mut().unwrap().insert(setting.to_owned(), cells[1..].to_vec());
                assert_eq!(former, None, "{setting} stands there twice");
            }
        }
    }
    sections
}

/// What a setting takes, in the words of the tables.
fn takes(schema: &Value, property: &Value) -> String {
    if let Some(place) = property["$ref"].as_str() {
        return takes(schema, schema.pointer(place.strip_prefix('#').unwrap()).unwrap());
    }
    let kinds = match &property["type"] {
        Value::Array(kinds) => kinds.clone(),
        kind => vec![kind.clone()],
    };
    let words = match kinds[0].as_str().unwrap() {
        "integer" => format!("{} to {}", property["minimum"], property["maximum"]),
        "string" => format!("text, at most {} characters", property["maxLength"]),
        "array" => {
            let values = property["items"]["enum"].as_array().unwrap().iter();
            let values: Vec<String> = values.map(|value| format!("`{}`", value.as_str().unwrap())).collect();
            format!("a list of {}", values.join(", "))
        }
        "object" if property["properties"]["capacity"].is_object() => "a bucket".to_owned(),
        "object" if *property == schema_of::<parallel_range::ParallelRange>() => {
            "the settings of `parallel-range`".to_owned()
        }
        other => panic!("{other}: {property}"),
    };
    if kinds.contains(&json!("null")) { words + ", or `null`" } else { words }
}

fn schema_of<P: Plugin>() -> Value {
    serde_json::from_str(P::SCHEMA).unwrap()
}

/// What `configure` does.
fn configured<P: Plugin>(settings: &Value) -> Result<P, String> {
    P::new(serde_json::from_value(settings.clone()).map_err(|error| error.to_string())?)
}

/// Holds a table against the plugin; answers all its defaults.
fn check<P: Plugin>(name: &str, tables: &[Table]) -> Value {
    let schema = schema_of::<P>();
    let none = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&none);
    let empty = Table::new();
    let table = tables.first().unwrap_or(&empty);
    assert_eq!(table.keys().collect::<Vec<_>>(), sorted(properties), "{name}");
    let mut defaults = Map::new();
    for (setting, cells) in table {
        let [said, default, meaning] = cells.as_slice() else { panic!("{name}.{setting}: {cells:?}") };
        assert_eq!(*said, takes(&schema, &properties[setting]), "{name}.{setting}");
        assert!(!meaning.is_empty(), "{name}.{setting} has no meaning");
        let default: Value = serde_json::from_str(default.trim_matches('`')).unwrap();
        let alone = configured::<P>(&json!({ setting: default })).map(drop);
        assert_eq!(alone, Ok(()), "{name}.{setting}");
        for end in ["minimum", "maximum"] {
            if let Some(number) = properties[setting].get(end) {
                let taken = configured::<P>(&json!({ setting: number })).map(drop);
                assert_eq!(taken, Ok(()), "{name}.{setting}, the {end}");
            }
        }
        defaults.insert(setting.clone(), default);
    }
    assert_eq!(schema["additionalProperties"], false, "{name}");
    let unknown = configured::<P>(&json!({ "unheard_of": 1 })).err().unwrap_or_else(|| panic!("{name} takes anything"));
    assert!(unknown.contains("unknown field `unheard_of`"), "{name}: {unknown}");
    Value::Object(defaults)
}

fn sorted(map: &Map<String, Value>) -> Vec<&String> {
    let mut keys: Vec<&String> = map.keys().collect();
    keys.sort();
    keys
}

/// The same, and the defaults are the plugin's own.
fn check_with_defaults<P: Plugin>(name: &str, tables: &[Table]) -> Value
where
    P::Settings: Default + Debug,
{
    let defaults = check::<P>(name, tables);
    let read: P::Settings = serde_json::from_value(defaults.clone()).unwrap();
    assert_eq!(format!("{read:?}"), format!("{:?}", P::Settings::default()), "{name}");
    defaults
}

#[test]
fn the_tables_say_what_each_plugin_takes_and_does_by_default() {
    let sections = sections();
    let of = |name: &str| sections[name].as_slice();
    let of_bucket = check_with_defaults::<token_bucket::TokenBucket>("token-bucket", of("token-bucket"));
    check_with_defaults::<sliding_window::SlidingWindow>("sliding-window", of("sliding-window"));
    check::<allow_all::AllowAll>("allow-all", of("allow-all"));
    check_with_defaults::<parallel_range::ParallelRange>("parallel-range", of("parallel-range"));
    check_with_defaults::<sequential::Sequential>("sequential", of("sequential"));
    check_with_defaults::<snapshot_first::SnapshotFirst>("snapshot-first", of("snapshot-first"));
    check_with_defaults::<polite::Polite>("polite", of("polite"));
    check_with_defaults::<ping_pong::PingPong>("ping-pong", of("ping-pong"));
    assert_eq!(sections.len(), 8, "{:?}", sections.keys());

    // The built-in of the rate limit is the plugin's twin.
    assert_eq!(serde_json::from_value::<OfBuiltin>(of_bucket).unwrap(), OfBuiltin::default());
    let unknown = serde_json::from_value::<OfBuiltin>(json!({ "unheard_of": 1 })).unwrap_err();
    assert!(unknown.to_string().contains("unknown field `unheard_of`"), "{unknown}");

    let schema = schema_of::<token_bucket::TokenBucket>();
    let bucket = &schema["$defs"]["bucket"];
    let table = &of("token-bucket")[1];
    let fields = bucket["properties"].as_object().unwrap();
    assert_eq!(table.keys().collect::<Vec<_>>(), sorted(fields));
    assert_eq!(bucket["required"], json!(table.keys().collect::<Vec<_>>()));
    for (field, cells) in table {
        assert_eq!(cells[0], takes(&schema, &fields[field]), "{field}");
    }
}

#[test]
fn the_readme_leads_to_them() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    assert!(readme.contains("(plugins/README.md)"));
}
