//! What keeps the house in order: who may use whom, and that everything public says what it is.

use std::path::{Path, PathBuf};

fn files(dir: &str, extension: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "no .{extension} below {dir}");
    found.sort();
    found
}

/// A module, and words that its code must not have.
const WALLS: &[(&str, &[&str])] = &[
    ("runtime/src", &["rusqlite", "axum", "use tenon::", "crate::chain", "reqwest"]),
    (
        "src/chain",
        &[
            "tokio",
            "rusqlite",
            "tenon_runtime",
            "axum",
            "reqwest",
            "crate::storage",
            "crate::ledger",
            "crate::rpc",
            "crate::sync",
            "crate::agent",
            "crate::rate_limit",
            "crate::bindings",
        ],
    ),
    (
        "src/storage",
        &[
            "tenon_runtime",
            "axum",
            "reqwest",
            "crate::rpc",
            "crate::sync",
            "crate::bindings",
            "crate::ledger",
            "crate::rate_limit",
            "crate::mempool",
        ],
    ),
    ("src/rate_limit", &["tenon_runtime", "wasmtime", "crate::bindings", "crate::rpc", "axum", "rusqlite"]),
    ("src/sync", &["tenon_runtime", "wasmtime", "crate::bindings", "crate::rpc", "axum", "rusqlite"]),
    (
        "src/simulate",
        &[
            "tenon_runtime",
            "wasmtime",
            "tokio",
            "axum",
            "rusqlite",
            "reqwest",
            "crate::bindings",
            "crate::rpc",
            "crate::storage",
            "crate::mempool",
            "Time::now",
            "Instant",
            "HashMap",
        ],
    ),
    ("src/sync/engine", &["tokio", "Instant", "Time::now", "std::thread", "reqwest", "rayon", "Ledger", "SystemTime"]),
    ("src/agent", &["tenon_runtime", "wasmtime", "crate::bindings", "crate::rpc", "axum", "rusqlite"]),
    ("src/p2p", &["tenon_runtime", "wasmtime", "crate::bindings", "crate::rpc", "axum", "rusqlite"]),
    ("src/rehearsal.rs", &["crate::rpc", "crate::storage", "crate::ledger", "axum", "rusqlite", "tokio", "wasmtime"]),
    ("src/bindings", &["crate::rpc", "crate::storage", "crate::ledger", "axum", "rusqlite", "tokio"]),
    ("src/ledger", &["tenon_runtime", "crate::rpc", "crate::sync", "crate::agent", "crate::bindings", "rusqlite"]),
    ("src/mempool", &["tenon_runtime", "crate::rpc", "crate::sync", "crate::agent", "crate::bindings", "rusqlite"]),
    ("src/producer.rs", &["tenon_runtime", "crate::rpc", "crate::sync", "crate::agent", "crate::bindings", "rusqlite"]),
    ("src/events", &["tenon_runtime", "wasmtime", "crate::rpc", "crate::sync", "crate::bindings", "axum", "rusqlite"]),
    ("src/monitor", &["wasmtime", "crate::rpc", "crate::bindings", "axum", "rusqlite"]),
    ("src/rpc", &["wasmtime", "crate::bindings", "rusqlite"]),
    ("src/cli", &["wasmtime", "crate::bindings", "rusqlite", "crate::rpc", "crate::storage", "tenon::storage"]),
    (
        "src/snapshot",
        &["tenon_runtime", "axum", "rusqlite", "crate::rpc", "crate::sync", "crate::ledger", "crate::maintenance"],
    ),
    ("src/maintenance", &["tenon_runtime", "axum", "reqwest", "rusqlite", "crate::rpc", "crate::bindings"]),
    ("plugins/token-bucket/src", &["tenon_runtime", "tenon::", "wasmtime"]),
];

#[test]
fn modules_use_only_what_lies_below_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    for (place, words) in WALLS {
        let path = root.join(place);
        let sources = if path.is_dir() {
            files(place, "rs")
        } else {
            vec![(path.clone(), std::fs::read_to_string(&path).unwrap())]
        };
        for (path, text) in sources {
            for (number, line) in (1..).zip(text.lines()) {
                let code = line.trim_start();
                if code.starts_with("//") {
                    continue;
                }
                for word in words.iter().filter(|word| code.contains(*word)) {
                    wrong.push(format!("{}:{number}: {place} must not know {word}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_item_of_the_wit_contract_is_documented_and_dated() {
    let items = ["interface ", "record ", "variant ", "enum ", "type ", "world ", "flags "];
    for (path, text) in files("wit", "wit") {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let mut depth = 0_usize;
        for (number, line) in lines.iter().enumerate() {
            let place = || format!("{}:{}: {line}", path.display(), number + 1);
            let above = |skip: usize| number.checked_sub(skip).map_or("", |at| lines[at]);
            let item = items.iter().any(|item| line.starts_with(item)) || line.contains(": func(");
            let member = depth >= 2 && !line.is_empty() && !line.starts_with("//") && *line != "}";
            if item {
                assert!(above(1).starts_with("@since"), "{}: no @since", place());
                assert!(above(2).starts_with("///"), "{}: no doc comment", place());
            } else if member || line.starts_with("package ") {
                assert!(above(1).starts_with("///"), "{}: no doc comment", place());
            }
            let comment = line.starts_with("//");
            depth += if comment { 0 } else { line.matches('{').count() };
            depth -= if comment { 0 } else { line.matches('}').count() };
        }
    }
}

#[test]
fn every_source_file_says_what_it_is_for() {
    for dir in ["src", "runtime/src", "plugins", "tests"] {
        for (path, text) in files(dir, "rs") {
            if path.components().any(|part| part.as_os_str() == "target") {
                continue;
            }
            assert!(text.starts_with("//!"), "{}: no `//!` at the top", path.display());
        }
    }
}

#[test]
fn nothing_is_left_to_do_later() {
    // Spelt apart, so that this file does not find itself.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
    ];
    for dir in ["src", "runtime", "plugins", "wit", "tests"] {
        for (path, text) in files(dir, if dir == "wit" { "wit" } else { "rs" }) {
            for (number, line) in (1..).zip(text.lines()) {
                assert!(!words.iter().any(|word| line.contains(word)), "{}:{number}: {line}", path.display());
            }
        }
    }
}

/// A table that promises a test for each of its lines is worth as much as the tests are there.
#[test]
fn every_test_that_is_named_as_a_promise_is_there() {
    let sources = ["tests", "runtime", "src"].map(|dir| files(dir, "rs")).concat();
    let promises = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/README.md")).unwrap();
    let rows = promises.lines().filter(|line| line.starts_with("| ") && !line.contains("shown by |"));
    let mut promised = 0;
    for row in rows {
        let shown_by = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let names: Vec<_> = shown_by.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test is named in {row}");
        for name in names {
            let definition = format!("fn {name}(");
            assert!(sources.iter().any(|(_, text)| text.contains(&definition)), "there is no test {name}: {row}");
            promised += 1;
        }
    }
    assert!(promised > 50, "{promised}");
}
