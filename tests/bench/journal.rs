//! What the journal of a slot costs: to record a rate-limit decision, to keep it, to make it again on a component.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use serde_json::json;
use tenon::bindings::{RateLimit, builtin};
use tenon::rate_limit::{Cell, Class, Request, Trust, Verdict, token_bucket};
use tenon_runtime::journal::{GenerationInfo, Journal, JournalConfig, Outcome, Source};
use tenon_runtime::replay::{Against, Options, Replay};
use tenon_runtime::{Builtin as _, Digest, MemoryId};

use crate::report::{Report, median};
use crate::traffic;

/// Callers that take turns.
const CLIENTS: u64 = 1_024;
/// Calls in one sample.
const CALLS: u64 = 200_000;
/// Times that the calls are recorded, of which the last is measured: the first one grows the buffer, as the first seconds
/// of a node do.
const ROUNDS: u64 = 2;
/// Samples, of which the median counts.
const SAMPLES: usize = 9;
/// Mutants that are tried at most.
const MUTANTS: usize = 200;
/// Calls that each of them makes again.
const TRAFFIC: usize = 20_000;

/// A decision as a slot would record it.
struct Decided {
    request: Request,
    before: Cell,
    verdict: Verdict,
    after: Cell,
}

/// Adds the figures to `report`.
pub fn run(dir: &Path, report: &mut Report) {
    let calls = decided();
    let mut ns = Vec::new();
    let mut bytes = 0.0;
    for sample in 0..SAMPLES {
        let (journal, took) = record(&dir.join(sample.to_string()), &calls);
        ns.push(took);
        let files = std::fs::read_dir(journal.dir()).expect("the journal").flatten();
        bytes =
            files.map(|file| file.metadata().expect("a segment").len()).sum::<u64>() as f64 / (ROUNDS * CALLS) as f64;
    }
    report.at_most("a rate-limit decision recorded", median(ns), "ns", 300.0, None);
    report.at_most("bytes of a recorded rate-limit decision", bytes, "bytes", 64.0, None);
    replay(&dir.join("0"), &dir.join("scratch"), report);
    mutants(&dir.join("mutants"), report);
}

fn replay(journal: &Path, scratch: &Path, report: &mut Report) {
    let source = Source::open(&Journal::dir_of(journal, "rate-limit")).expect("a journal");
    let replay = Replay::<RateLimit>::new(scratch).expect("an engine");
    let component = std::fs::read(tenon_build::path("token-bucket")).expect("the plugin is built");
    let mut rates = Vec::new();
    for _ in 0..SAMPLES {
        let started = Instant::now();
        let result = replay.run(&source, &component, Against::Journal(&|_| None), &Options::default());
        let result = result.expect("a replay");
        rates.push((ROUNDS * CALLS) as f64 / started.elapsed().as_secs_f64());
        assert_eq!(
            (result.calls, result.changed, result.faults_total),
            (ROUNDS * CALLS, 0, 0),
            "it decides as the built-in"
        );
    }
    report.at_least("rate-limit decisions replayed, one core", median(rates), "1/s", 1_000_000.0, None);
}

/// How many slips of an author a replay of recorded traffic shows, and whether it cries wolf.
fn mutants(dir: &Path, report: &mut Report) {
    let source = traffic::journal(dir, &traffic::decisions(TRAFFIC));
    let replay = Replay::<RateLimit>::new(&dir.join("scratch")).expect("an engine");
    let component = std::fs::read(tenon_build::path("token-bucket")).expect("the plugin is built");
    let run = |bytes: &[u8]| replay.run(&source, bytes, Against::Journal(&|_| None), &Options::default());
    let same = run(&tenon_build::restamp(&component, "compiled again")).expect("the same policy");
    report.at_most(
        "answers that a recompiled, identical policy is said to change",
        same.changed as f64,
        "answers",
        0.0,
        None,
    );
    let mutants = tenon_build::mutants(&component, "tenon:rate-limit/policy@0.1.0#check", 1, MUTANTS);
    let mutants = mutants.expect("a component");
    let shown = |mutant: &Vec<u8>| match run(mutant) {
        Ok(result) => result.changed > 0 || result.failures.values().sum::<u64>() > 0,
        // It does not even load.
        Err(_) => true,
    };
    let detected = mutants.iter().filter(|mutant| shown(mutant)).count();
    report.note(
        format!("mutants of token-bucket's check, of {}, that a replay of recorded calls shows", mutants.len()),
        detected as f64 / mutants.len() as f64,
        "share",
    );
}

/// Nanoseconds a call of recording `calls` in one shard, and their journal.
fn record(dir: &Path, calls: &[Decided]) -> (Journal, f64) {
    // All of it at once: what the thread that writes does is not on the path of a call.
    let config = JournalConfig { buffer_bytes: 16 << 20, segment_bytes: 64 << 20, ..JournalConfig::default() };
    let mut journal = Journal::open::<RateLimit>(dir, "rate-limit", config).expect("a journal");
    journal.generation(GenerationInfo {
        number: 1,
        plugin: "token-bucket".into(),
        version: "0.1.0".into(),
        digest: Digest::of(b"token-bucket"),
        settings: json!({}),
        memory: MemoryId { plugin: Some("token-bucket".into()), version: 2 },
    });
    let mut recorder = journal.recorder::<RateLimit>(0);
    let mut known = vec![0; usize::try_from(CLIENTS).expect("few")];
    let mut took = 0.0;
    for _ in 0..ROUNDS {
        known.fill(0);
        let started = Instant::now();
        for (call, decided) in calls.iter().enumerate() {
            let Decided { request, before, verdict, after } = decided;
            let known = &mut known[call % CLIENTS as usize];
            let outcome = Outcome::Answered { answer: verdict, memory: after };
            black_box(recorder.record(1, &request.client, known, request, before, outcome)).expect("there is room");
        }
        took = started.elapsed().as_nanos() as f64 / calls.len() as f64;
        if let Some(chunk) = recorder.take() {
            journal.write(chunk).expect("a temporary directory");
        }
    }
    (journal, took)
}

fn decided() -> Vec<Decided> {
    let builtin = builtin::TokenBucket::new(token_bucket::Settings::default()).expect("settings in range");
    let mut memories = BTreeMap::new();
    let decide = |call: u64| {
        // Keyed hashes of addresses, as the node has them, and microseconds that are not round.
        let client = (call % CLIENTS + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let now = 1_735_689_600_000_000 + call * 997 + (call * 7_919) % 500;
        let class = if call.is_multiple_of(5) { Class::Write } else { Class::Read };
        let request = Request { client, route: 3, class, trust: Trust::Public, cost: 1, now };
        let memory: &mut Cell = memories.entry(client).or_default();
        let before = *memory;
        let (verdict, after) = builtin.step(&request, &before);
        *memory = after;
        Decided { request, before, verdict, after }
    };
    (0..CALLS).map(decide).collect()
}
