//! The plugins as they are built, run in an engine without a node around it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::{fs, slice};

use tenon_build::fixture::{self, Description};
use wasmtime::component::{Component, Instance, Linker, Val};
use wasmtime::{Engine, Store};

const SHIPPED: [&str; 8] = [
    "allow-all",
    "parallel-range",
    "ping-pong",
    "polite",
    "sequential",
    "sliding-window",
    "snapshot-first",
    "token-bucket",
];
const FAULTS: [&str; 3] = ["faults", "faults-agent", "faults-sync"];

/// Lines that a component has written: level and text.
type Log = Arc<Mutex<Vec<(String, String)>>>;

/// One instance, with nothing but the log to call.
struct Guest {
    store: Store<Log>,
    instance: Instance,
}

impl Guest {
    fn new(bytes: &[u8]) -> Self {
        let engine = Engine::default();
        let component = Component::from_binary(&engine, bytes).unwrap();
        let mut linker = Linker::<Log>::new(&engine);
        let mut log = linker.instance("tenon:host/log@0.1.0").unwrap();
        log.func_new("write", |store, _, arguments, _| {
            let [Val::Enum(level), Val::String(message)] = arguments else {
                panic!("not the arguments of the log: {arguments:?}");
            };
            store.data().lock().unwrap().push((level.clone(), message.clone()));
            Ok(())
        })
        .unwrap();
        let mut store = Store::new(&engine, Log::default());
        let instance = linker.instantiate(&mut store, &component).unwrap();
        Self { store, instance }
    }

    fn of(name: &str) -> Self {
        Self::new(&fs::read(tenon_build::path(name)).unwrap())
    }

    fn call(&mut self, interface: &str, function: &str, arguments: &[Val]) -> wasmtime::Result<Val> {
        let interface = self.instance.get_export_index(&mut self.store, None, interface).unwrap();
        let index = self.instance.get_export_index(&mut self.store, Some(&interface), function).unwrap();
        let function = self.instance.get_func(&mut self.store, index).unwrap();
        let mut result = Val::Bool(false);
        function.call(&mut self.store, arguments, slice::from_mut(&mut result))?;
        Ok(result)
    }

    fn describe(&mut self) -> Vec<(String, Val)> {
        let description = self.call("tenon:host/lifecycle@0.1.0", "describe", &[]).unwrap();
        let Val::Record(fields) = description else { panic!("not a record: {description:?}") };
        fields
    }

    fn configure(&mut self, config: &str) -> Result<(), String> {
        match self.call("tenon:host/lifecycle@0.1.0", "configure", &[Val::String(config.to_owned())]).unwrap() {
            Val::Result(Ok(None)) => Ok(()),
            Val::Result(Err(Some(error))) => match *error {
                Val::String(text) => Err(text),
                other => panic!("not a text: {other:?}"),
            },
            other => panic!("not a result: {other:?}"),
        }
    }

    /// One read by a stranger at the beginning of time, by a caller with this cell.
    fn check(&mut self, cell: &Val) -> wasmtime::Result<(Val, Val)> {
        let number = |name: &str, value| (name.to_owned(), Val::U64(value));
        let choice = |name: &str, value: &str| (name.to_owned(), Val::Enum(value.to_owned()));
        let request = Val::Record(vec![
            number("client", 1),
            ("route".to_owned(), Val::U32(0)),
            choice("class", "read"),
            choice("trust", "public"),
            number("cost", 1),
            number("now", 1_790_000_000_000_000),
        ]);
        match self.call("tenon:rate-limit/policy@0.1.0", "check", &[request, cell.clone()])? {
            Val::Tuple(mut pair) if pair.len() == 2 => {
                let cell = pair.pop().unwrap();
                Ok((pair.pop().unwrap(), cell))
            }
            other => panic!("not a verdict and a cell: {other:?}"),
        }
    }
}

fn empty_cell() -> Val {
    Val::Tuple(vec![Val::U64(0); 4])
}

fn text(fields: &[(String, Val)], name: &str) -> String {
    match fields.iter().find(|(field, _)| field == name) {
        Some((_, Val::String(text))) => text.clone(),
        other => panic!("no text {name}: {other:?}"),
    }
}

#[test]
fn every_plugin_is_there_and_says_who_it_is() {
    let built = tenon_build::build_all().unwrap();
    let names: Vec<&str> = built.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect();
    let mut expected = [SHIPPED.as_slice(), FAULTS.as_slice()].concat();
    expected.sort_unstable();
    assert_eq!(names, expected);
    for name in names {
        let mut guest = Guest::of(name);
        let description = guest.describe();
        assert_eq!(text(&description, "name"), name);
        assert_eq!(text(&description, "version"), env!("CARGO_PKG_VERSION"));
        assert!((1..=200).contains(&text(&description, "summary").len()), "{description:?}");
        let schema: serde_json::Value = serde_json::from_str(&text(&description, "config-schema")).unwrap();
        assert_eq!(schema["type"], "object", "{name}");
        assert_eq!(guest.configure("{}"), Ok(()), "{name}: its defaults have to do");
        assert!(Guest::of(name).configure(r#"{"no such setting": 1}"#).is_err(), "{name}");
    }
}

#[test]
fn a_policy_decides_and_remembers_in_its_cell() {
    let mut guest = Guest::of("token-bucket");
    guest.configure(r#"{"read": {"capacity": 1, "refill_per_second": 1}}"#).unwrap();
    let (verdict, cell) = guest.check(&empty_cell()).unwrap();
    assert!(matches!(&verdict, Val::Variant(case, _) if case == "allow"), "{verdict:?}");
    let (verdict, _) = guest.check(&cell).unwrap();
    assert!(matches!(&verdict, Val::Variant(case, _) if case == "throttle"), "{verdict:?}");
}

#[test]
fn a_panic_traps_and_its_text_is_in_the_log() {
    let mut guest = Guest::of("faults");
    guest.configure(r#"{"mode": "panic"}"#).unwrap();
    assert!(guest.check(&empty_cell()).is_err());
    let log = guest.store.data().lock().unwrap().clone();
    let [(level, line)] = log.as_slice() else { panic!("not one line: {log:?}") };
    assert_eq!(level, "error");
    assert!(line.contains("a panic, as the configuration demands"), "{line}");
    assert!(line.contains("src/lib.rs"), "{line}");
}

#[test]
fn a_component_holds_no_path_of_the_machine_that_built_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    for path in tenon_build::build_all().unwrap() {
        let bytes = fs::read(&path).unwrap();
        for secret in [root.as_path(), &std::env::home_dir().unwrap().join(".cargo")] {
            let secret = secret.to_str().unwrap().as_bytes();
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{}", path.display());
        }
    }
}

#[test]
fn a_restamped_component_still_runs() {
    let bytes = fs::read(tenon_build::path("allow-all")).unwrap();
    let stamped = tenon_build::restamp(&bytes, "again");
    assert_ne!(stamped, bytes);
    let mut guest = Guest::new(&stamped);
    guest.configure("{}").unwrap();
    let (verdict, _) = guest.check(&empty_cell()).unwrap();
    assert!(matches!(&verdict, Val::Variant(case, _) if case == "allow"), "{verdict:?}");
}

#[test]
fn a_fixture_says_what_it_is_told() {
    let long = "{\"$comment\": \"".to_owned() + &"x".repeat(100_000) + "\"}";
    let description = Description {
        name: "Not A Name!".to_owned(),
        config_schema: long,
        memory_version: 9,
        ..Description::default()
    };
    let mut guest = Guest::new(&fixture::describing(&description).unwrap());
    let said = guest.describe();
    assert_eq!(text(&said, "name"), description.name);
    assert_eq!(text(&said, "version"), description.version);
    assert_eq!(text(&said, "summary"), description.summary);
    assert_eq!(text(&said, "config-schema"), description.config_schema);
    assert!(said.contains(&("memory-version".to_owned(), Val::U32(9))));
    assert_eq!(guest.configure(&"y".repeat(300_000)), Ok(()));
    assert_eq!(guest.describe(), said, "a configuration overwrote it");
    let cell = Val::Tuple(vec![Val::U64(1), Val::U64(2), Val::U64(3), Val::U64(u64::MAX)]);
    assert_eq!(guest.check(&cell).unwrap(), (Val::Variant("pass".to_owned(), None), cell));
}

/// A crate of this name, version 2.3.4, with this `src/lib.rs`, outside the repository.
fn authors_crate(name: &str, source: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let manifest = format!(
        r#"
[package]
name = "{name}"
version = "2.3.4"
edition = "2024"
description = "Leaves every decision to the built-in"

[lib]
crate-type = ["cdylib"]

[dependencies]
tenon-sdk = {{ path = "{}" }}
"#,
        repository.join("plugins/sdk").display()
    );
    fs::create_dir(dir.path().join("src")).unwrap();
    fs::write(dir.path().join("Cargo.toml"), manifest).unwrap();
    fs::write(dir.path().join("src/lib.rs"), source).unwrap();
    // The versions of the repository: what is compiled for its guests is used again.
    fs::copy(repository.join("Cargo.lock"), dir.path().join("Cargo.lock")).unwrap();
    tenon_build::path("allow-all");
    dir
}

#[test]
fn a_policy_exports_its_migration_and_any_cell_comes_back_from_it() {
    let source = r#"
use tenon_sdk::rate_limit::{Cell, Migrate, Policy, Request, Verdict};
use tenon_sdk::serde::de::IgnoredAny;
use tenon_sdk::Plugin;

pub struct NoOpinion;

impl Plugin for NoOpinion {
    type Settings = IgnoredAny;
    const MEMORY_VERSION: u32 = 2;

    fn new(_: IgnoredAny) -> Result<Self, String> {
        Ok(Self)
    }
}

impl Policy for NoOpinion {
    fn check(&self, _: &Request, cell: Cell) -> (Verdict, Cell) {
        (Verdict::Pass, cell)
    }
}

impl Migrate for NoOpinion {
    fn upgrade(&self, from_version: u32, (a, b, c, d): Cell) -> Result<Cell, String> {
        match from_version {
            1 => Ok((d, a, b, c.wrapping_mul(3))),
            other => tenon_sdk::unknown_version(other),
        }
    }

    fn downgrade(&self, to_version: u32, (d, a, b, c): Cell) -> Result<Cell, String> {
        match to_version {
            // The inverse of 3 modulo 2 to the 64.
            1 => Ok((a, b, c.wrapping_mul(0xaaaa_aaaa_aaaa_aaab), d)),
            other => tenon_sdk::unknown_version(other),
        }
    }
}

tenon_sdk::export_policy!(NoOpinion, migrating);
"#;
    let dir = authors_crate("two-forms", source);
    let out = tenon_build::build_dir(dir.path(), dir.path()).unwrap();
    let guest = &mut Guest::new(&fs::read(out).unwrap());
    guest.configure("{}").unwrap();
    let mut ask = |function: &str, version: u32, cell: &Val| {
        let interface = "tenon:rate-limit/migration@0.1.0";
        match guest.call(interface, function, &[Val::U32(version), cell.clone()]).unwrap() {
            Val::Result(Ok(Some(cell))) => Ok(*cell),
            Val::Result(Err(Some(reason))) => Err(*reason),
            other => panic!("not a result: {other:?}"),
        }
    };
    let cell = |words: [u64; 4]| Val::Tuple(words.map(Val::U64).to_vec());
    for words in [[0; 4], [1, 2, 3, 4], [u64::MAX; 4], [u64::MAX, 0, 1 << 63, 7]] {
        let [a, b, c, d] = words;
        let upgraded = ask("upgrade", 1, &cell(words)).unwrap();
        assert_eq!(upgraded, cell([d, a, b, c.wrapping_mul(3)]));
        assert_eq!(ask("downgrade", 1, &upgraded), Ok(cell(words)));
    }
    let unknown = Err(Val::String("memory-version 9 is not known".to_owned()));
    assert_eq!(ask("upgrade", 9, &cell([0; 4])), unknown);
    assert_eq!(ask("downgrade", 9, &cell([0; 4])), unknown);
}

#[test]
fn an_authors_crate_outside_the_repository_becomes_a_component() {
    let source = r#"
use tenon_sdk::rate_limit::{Cell, Policy, Request, Verdict};
use tenon_sdk::serde::de::IgnoredAny;
use tenon_sdk::Plugin;

pub struct NoOpinion;

impl Plugin for NoOpinion {
    type Settings = IgnoredAny;

    fn new(_: IgnoredAny) -> Result<Self, String> {
        Ok(Self)
    }
}

impl Policy for NoOpinion {
    fn check(&self, _: &Request, cell: Cell) -> (Verdict, Cell) {
        (Verdict::Pass, cell)
    }
}

tenon_sdk::export_policy!(NoOpinion);
"#;
    let dir = authors_crate("no-opinion", source);

    let out = tenon_build::build_dir(dir.path(), dir.path()).unwrap();
    assert_eq!(out, dir.path().join("no-opinion.wasm"));
    let mut guest = Guest::new(&fs::read(out).unwrap());
    let description = guest.describe();
    assert_eq!(text(&description, "name"), "no-opinion");
    assert_eq!(text(&description, "version"), "2.3.4");
    guest.configure("{}").unwrap();
    let (verdict, _) = guest.check(&empty_cell()).unwrap();
    assert_eq!(verdict, Val::Variant("pass".to_owned(), None));

    fs::write(dir.path().join("src/lib.rs"), "this is not Rust").unwrap();
    let error = tenon_build::build_dir(dir.path(), dir.path()).unwrap_err();
    assert!(error.to_string().contains("could not build"), "{error}");
    let error = tenon_build::build_dir(&dir.path().join("src"), dir.path()).unwrap_err();
    assert!(error.to_string().contains("no Cargo.toml"), "{error}");
}

/// A policy without an opinion that remembers `mark`.
fn remembering(mark: u64) -> String {
    format!(
        r#"
use tenon_sdk::rate_limit::{{Cell, Policy, Request, Verdict}};
use tenon_sdk::serde::de::IgnoredAny;
use tenon_sdk::Plugin;

pub struct Marks;

impl Plugin for Marks {{
    type Settings = IgnoredAny;

    fn new(_: IgnoredAny) -> Result<Self, String> {{
        Ok(Self)
    }}
}}

impl Policy for Marks {{
    fn check(&self, _: &Request, _: Cell) -> (Verdict, Cell) {{
        (Verdict::Pass, ({mark}, 0, 0, 0))
    }}
}}

tenon_sdk::export_policy!(Marks);
"#
    )
}

/// The folder of the repository where the crate in `dir` is compiled.
fn room_of(dir: &Path) -> PathBuf {
    let wasm = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/wasm");
    let folders = |path: &Path| fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut rooms = folders(&wasm).flat_map(|compiler| folders(&compiler.join("crates")).collect::<Vec<_>>());
    let dir = dir.canonicalize().unwrap();
    let is_its = |room: &PathBuf| fs::read_to_string(room.join("crate")).is_ok_and(|of| Path::new(&of) == dir);
    rooms.find(is_its).unwrap_or_else(|| panic!("no room of {} in {}", dir.display(), wasm.display()))
}

#[test]
fn crates_of_one_name_are_never_taken_for_each_other() {
    // All sources are older than all that is built of them.
    let (one, other) = (authors_crate("a-name", &remembering(1)), authors_crate("a-name", &remembering(2)));
    let marked = |dir: &tempfile::TempDir| {
        let built = tenon_build::build_dir(dir.path(), dir.path()).unwrap();
        let mut guest = Guest::new(&fs::read(&built).unwrap());
        guest.configure("{}").unwrap();
        let (_, cell) = guest.check(&empty_cell()).unwrap();
        match cell {
            Val::Tuple(words) => words[0].clone(),
            other => panic!("no cell: {other:?}"),
        }
    };
    for _ in 0..2 {
        assert_eq!(marked(&one), Val::U64(1));
        assert_eq!(marked(&other), Val::U64(2));
    }
    fs::write(one.path().join("src/lib.rs"), remembering(3)).unwrap();
    assert_eq!(marked(&other), Val::U64(2));
    assert_eq!(marked(&one), Val::U64(3));

    // What both use was compiled for neither of them.
    for dir in [&one, &other] {
        let room = room_of(dir.path());
        let libraries = room.join("wasm32-unknown-unknown/guest/deps");
        let serde = fs::read_dir(&libraries).unwrap().map(|entry| entry.unwrap().path()).find(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with("libserde_core-") && name.ends_with(".rlib")
        });
        let serde = serde.expect("the SDK uses serde");
        let shared = room.join("../../guests").join(serde.strip_prefix(&room).unwrap());
        let built = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
        assert_eq!(built(&serde), built(&shared), "{}", serde.display());
    }
}
