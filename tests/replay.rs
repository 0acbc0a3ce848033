//! `tenon plugin replay` and `tenon plugin explain`, on a journal of the real token bucket.

#[path = "support/traffic.rs"]
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;
use tenon::bindings::{RateLimit, builtin};
use tenon::rate_limit::{Cell, Class, Request, Trust, Verdict, token_bucket};
use tenon_runtime::journal::{GenerationInfo, Journal, JournalConfig, Outcome};
use tenon_runtime::replay::{Against, MemoryMode, Options, Replay};
use tenon_runtime::{By, Host, HostConfig, PluginConfig};

/// Calls that each client makes, a millisecond apart.
const CALLS: u64 = 60;
const CLIENTS: u64 = 4;

/// A node's directory `node` with the component of the recorded calls, and their journal.
struct Recorded {
    dir: TempDir,
    journal: PathBuf,
}

/// Forty requests at once for each client, then what comes back in time.
fn settings() -> Value {
    json!({ "read": { "capacity": 40, "refill_per_second": 10 } })
}

fn recorded() -> Recorded {
    recorded_with(settings())
}

fn recorded_with(settings: Value) -> Recorded {
    let dir = tempfile::tempdir().unwrap();
    let plugins = dir.path().join("plugins");
    fs::create_dir_all(&plugins).unwrap();
    fs::copy(tenon_build::path("token-bucket"), plugins.join("token-bucket.wasm")).unwrap();
    let host = Host::new(HostConfig::new(&plugins, dir.path().join("node/data/plugins"))).unwrap();
    let plugin = PluginConfig { settings, ..PluginConfig::plugin("token-bucket") };
    let builtin = builtin::TokenBucket::new(token_bucket::Settings::default()).unwrap();
    let slot = host.slot::<RateLimit>("rate-limit", plugin, builtin).unwrap();
    assert_eq!(host.open().rejected, []);
    let status = slot.status();
    let root = dir.path().join("journal");
    let mut journal = Journal::open::<RateLimit>(&root, "rate-limit", JournalConfig::default()).unwrap();
    let mut recorder = journal.recorder::<RateLimit>(0);
    let mut memories: BTreeMap<u64, (Cell, u32)> = BTreeMap::new();
    let mut memory_id = None;
    for call in 0..CALLS * CLIENTS {
        let client = call % CLIENTS;
        let now = 1_735_689_600_000_000 + call * 1_000;
        let request = Request { client, route: 3, class: Class::Read, trust: Trust::Public, cost: 1, now };
        let (memory, known) = memories.entry(client).or_default();
        let step = slot.step(&request, memory);
        assert_eq!(step.by, By::Generation(1));
        let outcome = Outcome::Answered { answer: &step.answer, memory: &step.memory };
        recorder.record(1, &client, known, &request, memory, outcome).unwrap();
        *memory = step.memory;
        memory_id = Some(step.memory_id);
    }
    journal.generation(GenerationInfo {
        number: 1,
        plugin: status.plugin.unwrap(),
        version: status.version.unwrap(),
        digest: status.digest.unwrap(),
        settings: status.settings,
        memory: memory_id.unwrap(),
    });
    while let Some(chunk) = recorder.take() {
        journal.write(chunk).unwrap();
    }
    host.stop();
    Recorded { journal: journal.dir().to_owned(), dir }
}

impl Recorded {
    /// The component under another name, as other bytes.
    fn other(&self) -> PathBuf {
        let path = self.dir.path().join("other.wasm");
        let component = fs::read(tenon_build::path("token-bucket")).unwrap();
        fs::write(&path, tenon_build::restamp(&component, "another build")).unwrap();
        path
    }

    fn tenon(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenon"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TENON_") {
                command.env_remove(&name);
            }
        }
        command.current_dir(self.dir.path()).args(arguments).output().unwrap()
    }

    /// Runs `tenon plugin COMMAND FIRST --journal …`; what it printed, after making sure that it ended with `code`.
    #[track_caller]
    fn run(&self, command: &str, first: &str, more: &[&str], code: i32) -> String {
        let journal = self.journal.to_str().unwrap();
        let arguments = [&["plugin", command, first, "--journal", journal], more].concat();
        let output = self.tenon(&arguments);
        let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{out}\n{err}");
        if code == 2 { err } else { out + &err }
    }

    #[track_caller]
    fn json(&self, command: &str, first: &str, more: &[&str], code: i32) -> Value {
        let text = self.run(command, first, &[more, &["--output", "json"]].concat(), code);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

fn component(name: &str) -> String {
    tenon_build::path(name).to_str().unwrap().to_owned()
}

#[test]
fn another_build_of_the_same_decides_the_same_and_costs_the_same() {
    let recorded = recorded();
    let other = recorded.other();
    let report = recorded.json("replay", other.to_str().unwrap(), &["--dir", "node", "--budget", "changed+0%"], 0);
    assert_eq!(report["calls"], CALLS * CLIENTS);
    assert_eq!((&report["changed"], &report["unfaithful"]), (&json!(0), &json!(0)), "{report}");
    assert_eq!(report["memory"], "recorded");
    assert_eq!(report["labels"]["allow"]["before"], 168, "{report}");
    assert_eq!(report["labels"]["throttle"]["after"], 72);
    assert_eq!(report["fuel"]["change_percent"], 0.0);
    // Without the node's directory there is nothing to compare the cost with.
    let report = recorded.json("replay", other.to_str().unwrap(), &[], 0);
    assert_eq!((&report["fuel"]["against"], &report["unfaithful"]), (&Value::Null, &Value::Null));
    assert!(report["candidate_ns"].as_u64() > Some(0));
}

#[test]
fn another_configuration_differs_and_budgets_tell() {
    let recorded = recorded();
    let candidate = component("token-bucket");
    let strict = r#"{"read":{"capacity":20,"refill_per_second":10}}"#;
    let args = |budget: &'static str| ["--config", strict, "--memory", "own", "--budget", budget];
    let report = recorded.json("replay", &candidate, &args("throttle+0%,deny+0%"), 1);
    assert_eq!(report["memory"], "own");
    assert_eq!(report["labels"]["throttle"], json!({ "before": 72, "after": 152 }), "{report}");
    let broken: Vec<&Value> = report["budgets"].as_array().unwrap().iter().map(|budget| &budget["broken"]).collect();
    assert_eq!(broken, [&json!(true), &json!(false)]);
    let groups = report["groups"].as_array().unwrap();
    let group = groups.iter().find(|group| group["before"] != group["after"]).unwrap();
    assert_eq!(
        (&group["class"], &group["before"], &group["after"]),
        (&json!("read"), &json!("allow"), &json!("throttle"))
    );
    assert_eq!((&group["calls"], group["examples"].as_array().unwrap().len()), (&json!(80), 3));
    recorded.json("replay", &candidate, &args("throttle+33.4%"), 0);

    // The same from a file, for people.
    fs::write(recorded.dir.path().join("strict.json"), strict).unwrap();
    let args = ["--config", "strict.json", "--memory", "own", "--examples", "1", "--budget", "throttle+1%"];
    let text = recorded.run("replay", &candidate, &args, 1);
    for part in [
        "against the recorded answers: 240 calls of slot rate-limit",
        "throttle  72      152    30.000%       63.333%",
        "read   allow     throttle  80     all (80)",
        "budget throttle+1%: 30.000% before, 63.333% after: BROKEN",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
}

#[test]
fn a_relaxation_throttles_nobody_on_the_recorded_memory() {
    let recorded = recorded_with(json!({ "read": { "capacity": 5, "refill_per_second": 1 } }));
    let relaxed = r#"{"read":{"capacity":500,"refill_per_second":250}}"#;
    let args = ["--config", relaxed, "--budget", "throttle+0.1%,failed+0%"];
    let report = recorded.json("replay", &component("token-bucket"), &args, 0);
    assert_eq!(report["memory"], "recorded");
    assert_eq!(report["labels"]["throttle"], json!({ "before": CALLS * CLIENTS - 20, "after": 0 }), "{report}");
    assert_eq!(report["labels"]["allow"]["after"], CALLS * CLIENTS, "{report}");

    // And a restriction throttles those who had spent more than it lets them.
    let strict = r#"{"read":{"capacity":2,"refill_per_second":1}}"#;
    let report = recorded.json("replay", &component("token-bucket"), &["--config", strict], 0);
    assert_eq!(report["memory"], "recorded");
    assert_eq!(report["labels"]["allow"], json!({ "before": 20, "after": 8 }), "{report}");
}

#[test]
fn another_plugin_runs_on_its_own_memory_and_can_be_the_measure() {
    let recorded = recorded();
    let (token_bucket, sliding_window) = (component("token-bucket"), component("sliding-window"));
    let report = recorded.json("replay", &sliding_window, &[], 0);
    assert_eq!(report["memory"], "own");
    let report = recorded.json("replay", &sliding_window, &["--against", &sliding_window], 0);
    assert_eq!((&report["changed"], &report["against"]["plugin"]), (&json!(0), &json!("sliding-window")));
    let report = recorded.json("replay", &token_bucket, &["--against", &sliding_window], 0);
    assert!(report["changed"].as_u64() > Some(0));
    assert!(report["fuel"]["change_percent"].is_f64());
}

#[test]
fn what_makes_no_sense_is_usage() {
    let recorded = recorded();
    let candidate = component("token-bucket");
    for (more, expected) in [
        (&["--budget", "refuse+1%"][..], "known: allow, throttle, deny, pass, failed, changed"),
        (&["--budget", "deny"], "is no budget, expected LABEL+POINTS%"),
        (&["--config", "{"], "EOF while parsing"),
        (&["--config", "nowhere.json"], "reading nowhere.json"),
        (&["--memory", "none"], "possible values: recorded, own"),
    ] {
        let text = recorded.run("replay", &candidate, more, 2);
        assert!(text.contains(expected), "{expected}:\n{text}");
    }
    let text = recorded.run("explain", "1.2", &[], 2);
    assert!(text.contains("names no call, expected segment.shard.n"), "{text}");
    let text = recorded.run("replay", &component("parallel-range"), &[], 1);
    assert!(text.contains("rate-limit"), "a component of another kind: {text}");
    let text = recorded.run("replay", &candidate, &["--config", r#"{"read":7}"#], 1);
    assert!(text.contains("settings: /read"), "{text}");
    let root = recorded.journal.parent().unwrap().to_str().unwrap();
    let output = recorded.tenon(&["plugin", "replay", &candidate, "--journal", root]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("has the journals of several slots, name one: rate-limit"), "{text}");
}

#[test]
fn a_slot_that_has_recorded_nothing_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("node");
    let recorded = Recorded { journal: PathBuf::new(), dir };
    let said = |command: &str, first: &str, more: &[&str]| {
        let output = recorded.tenon(&[&["plugin", command, first, "--dir", "node"], more].concat());
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let candidate = component("token-bucket");
    let commands = [("replay", candidate.as_str()), ("explain", "1.0.0")];
    for (command, first) in commands {
        let text = said(command, first, &[]);
        assert!(text.contains("node is not a node's directory: --dir names one"), "{text}");
    }

    fs::create_dir(&node).unwrap();
    let agent = "[[agents]]\nname = \"bob\"\nwallet = \"bob.json\"\n";
    fs::write(node.join("tenon.toml"), agent).unwrap();
    for (command, first) in commands {
        for (slot, section) in [
            ("rate-limit", "[plugins.rate-limit]"),
            ("sync", "[plugins.sync]"),
            ("agent/bob", "its [[agents]] section"),
        ] {
            let text = said(command, first, &["--slot", slot]);
            let expected = format!(
                "slot {slot} has recorded nothing: its calls are recorded from the node's next start on with \
                 `journal = {{}}` in {section} of node/tenon.toml, or from now on with `tenon plugin journal {slot} --on`"
            );
            assert!(text.contains(&expected), "{expected}:\n{text}");
        }
        let text = said(command, first, &["--slot", "agent/eve"]);
        assert!(text.contains("has no slot agent/eve, known: rate-limit, sync, agent/bob"), "{text}");
    }

    // It records, and has not been asked.
    fs::write(node.join("tenon.toml"), "[plugins.rate-limit]\njournal = {}\n").unwrap();
    let journal =
        Journal::open::<RateLimit>(&node.join("data/plugins/journal"), "rate-limit", JournalConfig::default());
    let place = journal.unwrap().dir().to_owned();
    for (command, first) in commands {
        let text = said(command, first, &[]);
        assert!(text.contains("slot rate-limit has recorded nothing yet: no call since"), "{text}");
        assert!(text.contains("node/data/plugins/journal/rate-limit yet"), "the place itself: {text}");
        // A journal that was named is not the node's.
        let text = said(command, first, &["--journal", place.to_str().unwrap()]);
        assert_eq!(text, format!("error: nothing has been recorded in {} yet\n", place.display()));
    }
}

#[test]
fn a_damaged_journal_fails_unless_that_is_allowed() {
    let recorded = recorded();
    let candidate = component("token-bucket");
    let segment = recorded.journal.join("00000001.journal");
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.len() - 5;
    bytes[at] ^= 0x10;
    fs::write(&segment, bytes).unwrap();
    let text = recorded.run("replay", &candidate, &[], 1);
    assert!(text.contains(&format!("fault: {}, byte ", segment.display())), "{text}");
    assert!(text.contains("call 1.0.239: the checksum does not hold"), "{text}");
    let report = recorded.json("replay", &candidate, &["--allow-faults"], 0);
    assert_eq!((&report["calls"], &report["faults_total"]), (&json!(239), &json!(1)));
    let text = recorded.run("explain", "1.0.239", &[], 1);
    assert!(text.contains("the checksum does not hold"), "{text}");
}

#[test]
fn one_call_is_explained() {
    let recorded = recorded();
    let shown = recorded.json("explain", "1.0.239", &["--dir", "node"], 0);
    assert_eq!(shown["about"]["settings"], settings());
    assert_eq!((&shown["slot"], &shown["key"]), (&json!("rate-limit"), &json!(3)));
    assert!(shown["answer"]["throttle"].is_object(), "{shown}");
    assert_eq!((&shown["again"]["is_same"], &shown["again"]["answer"]), (&json!(true), &shown["answer"]));

    // Without its component it is only shown.
    let text = recorded.run("explain", "1.0.239", &[], 0);
    assert!(text.contains("made again     no: its component is not at hand"), "{text}");
    assert!(text.contains(&format!("digest         {}", shown["about"]["digest"].as_str().unwrap())), "{text}");

    let lavish = r#"{"read":{"capacity":4000,"refill_per_second":10}}"#;
    let args = ["--dir", "node", "--config", lavish, "--memory", "own"];
    let again = recorded.json("explain", "1.0.239", &args, 0)["again"].take();
    assert_eq!((&again["is_same"], &again["fields"]), (&json!(false), &json!(["."])));
    assert_eq!(again["answer"]["allow"]["remaining"], 4_000 - CALLS + 2, "{again}");

    let other = recorded.other();
    let text = recorded.run("explain", "1.0.0", &["--with", other.to_str().unwrap()], 0);
    assert!(text.contains("same answer      yes"), "{text}");
}

#[test]
fn one_file_is_a_journal_too() {
    let recorded = recorded();
    let segment = fs::read(recorded.journal.join("00000001.journal")).unwrap();
    let joined = recorded.dir.path().join("joined.journal");
    fs::write(&joined, [&segment[..segment.len() - 7], &segment].concat()).unwrap();
    let output = recorded.tenon(&[
        "plugin",
        "replay",
        &component("token-bucket"),
        "--journal",
        text(&joined),
        "--output",
        "json",
    ]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["calls"], &report["faults_total"]), (&json!(2 * CALLS * CLIENTS - 1), &json!(0)), "{report}");
    assert_eq!(report["journal"]["cut"].as_array().map(Vec::len), Some(1));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Slips that are tried. Compiling each takes most of the time.
const MUTANTS: usize = 40;

#[test]
fn slips_of_an_author_show_in_the_replay_of_a_busy_hour() {
    let dir = tempfile::tempdir().unwrap();
    let source = traffic::journal(dir.path(), &traffic::decisions(3_000));
    let replay = Replay::<RateLimit>::new(&dir.path().join("scratch")).unwrap();
    let component = fs::read(component("token-bucket")).unwrap();
    // On the recorded memory a slip in an answer shows; one in what is remembered only shows in later answers.
    let changes = |bytes: &[u8]| {
        let changed = |memory| {
            let options = Options { memory: Some(memory), ..Options::default() };
            let report = replay.run(&source, bytes, Against::Journal(&|_| None), &options);
            // One that does not even load shows, too.
            report.map_or(u64::MAX, |report| report.changed + report.failures.values().sum::<u64>())
        };
        changed(MemoryMode::Recorded).max(changed(MemoryMode::Own))
    };
    assert_eq!(changes(&tenon_build::restamp(&component, "compiled again")), 0);
    let mutants = tenon_build::mutants(&component, "tenon:rate-limit/policy@0.1.0#check", 1, MUTANTS).unwrap();
    assert_eq!(mutants.len(), MUTANTS);
    let shown = mutants.iter().filter(|mutant| changes(mutant) > 0).count();
    println!("{shown} of {MUTANTS} mutants show");
    assert!(
        shown * 10 >= MUTANTS * 7,
        "{shown} of {MUTANTS} show: the traffic passes rules by, or the places are elsewhere"
    );
}

#[test]
fn a_busy_hour_meets_every_rule() {
    let decisions = traffic::decisions(6_000);
    let mut seen = BTreeSet::new();
    let mut left: BTreeMap<(u64, String), (u64, u64)> = BTreeMap::new();
    for traffic::Decided { request, verdict, before, after } in &decisions {
        let what = match verdict {
            Verdict::Allow { limit: u64::MAX, .. } => "unlimited",
            Verdict::Allow { remaining: 0, .. } => "the last",
            Verdict::Allow { .. } => "allow",
            Verdict::Throttle { .. } => "throttle",
            Verdict::Deny(_) => "deny",
            Verdict::Pass => "pass",
        };
        seen.insert(format!("{:?} {:?} {what}", request.class, request.trust));
        if matches!(verdict, Verdict::Deny(_)) {
            assert_eq!(before, after);
        }
        let Verdict::Allow { remaining, limit: 1..=1_000, .. } = *verdict else { continue };
        let last = left.insert((request.client, format!("{:?}", request.class)), (remaining, request.now));
        if let Some((last, then)) = last {
            let way = match then.saturating_sub(request.now) {
                0 => "on",
                1..=1_000_000 => "overtaken",
                _ => "set back",
            };
            let level = if remaining + request.cost > last { "filled" } else { "taken" };
            seen.insert(format!("clock {way}: {level}"));
        }
    }
    let mut rules: Vec<String> = ["on", "overtaken", "set back"]
        .iter()
        .flat_map(|way| ["filled", "taken"].map(|level| format!("clock {way}: {level}")))
        .collect();
    for class in ["Sync", "Read", "Write"] {
        rules.push(format!("{class} Peer unlimited"));
        rules.push(format!("{class} Public the last"));
        for trust in ["Public", "Loopback"] {
            rules.extend(["allow", "throttle", "deny"].map(|what| format!("{class} {trust} {what}")));
        }
    }
    rules.extend(["Public", "Peer", "Loopback"].map(|trust| format!("Import {trust} unlimited")));
    let missing: Vec<&String> = rules.iter().filter(|rule| !seen.contains(*rule)).collect();
    assert!(missing.is_empty(), "{missing:?}: {seen:?}");
}
