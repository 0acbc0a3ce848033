//! Replay: another component, or another configuration, on recorded calls; the same result every time.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::{Answer, Counter, Mode, Request, TRAPPING, Text, UNWILLING, add, component, foreign};
use tenon_runtime::{
    Digest, Failure, Limits, MemoryId,
    journal::{GenerationInfo, Journal, JournalConfig, Outcome, Reader, RecordId, Source},
    replay::{Against, Budgets, MemoryMode, Options, Replay, Report},
};

/// A journal of calls that component `text` would have answered.
struct Recording {
    dir: tempfile::TempDir,
    source: Source,
    ids: Vec<RecordId>,
}

fn about(number: u64, text: &Text, settings: Value) -> GenerationInfo {
    GenerationInfo {
        number,
        plugin: text.name.clone(),
        version: text.version.clone(),
        digest: Digest::of(&text.counter()),
        settings,
        memory: MemoryId { plugin: Some(text.name.clone()), version: text.memory_version },
    }
}

/// Sixty calls of three clients; one in ten fails.
fn record(text: &Text, settings: Value) -> Recording {
    record_requests(text, settings, (0..60_u64).map(|call| add(call % 3, call)))
}

fn record_requests(text: &Text, settings: Value, requests: impl Iterator<Item = Request>) -> Recording {
    record_under(None, text, settings, requests)
}

/// In a slot with these limits; none: by a version that did not say.
fn record_under(
    limits: Option<&Limits>,
    text: &Text,
    settings: Value,
    requests: impl Iterator<Item = Request>,
) -> Recording {
    let dir = tempfile::tempdir().expect("a directory");
    let mut journal = Journal::open::<Counter>(dir.path(), "counter", JournalConfig::default()).expect("a journal");
    if let Some(limits) = limits {
        journal = journal.under(limits);
    }
    journal.generation(about(1, text, settings));
    let mut recorder = journal.recorder::<Counter>(0);
    let mut memories = std::collections::BTreeMap::<u64, ((u64, u64, u64, u64), u32)>::new();
    let mut ids = Vec::new();
    for (call, request) in requests.enumerate() {
        let (memory, known) = memories.entry(request.client).or_default();
        let before = *memory;
        let after = (before.0 + request.add, before.1 + 1, before.2, before.3);
        let answer = Answer::Total { sum: after.0, build: text.build };
        let failure = Failure::Deadline { limit_ms: 100 };
        let outcome = if call % 10 == 9 {
            Outcome::Failed(&failure)
        } else {
            *memory = after;
            Outcome::Answered { answer: &answer, memory: &after }
        };
        ids.push(recorder.record(1, &request.client, known, &request, &before, outcome).expect("room"));
    }
    while let Some(chunk) = recorder.take() {
        journal.write(chunk).expect("written");
    }
    let source = Source::open(journal.dir()).expect("a journal");
    Recording { dir, source, ids }
}

impl Recording {
    fn replay(&self, candidate: &[u8], against: Against<'_>, options: &Options) -> anyhow::Result<Report> {
        Replay::<Counter>::new(&self.dir.path().join("scratch"))?.run(&self.source, candidate, against, options)
    }

    /// Against the recorded answers alone.
    fn run(&self, candidate: &[u8], options: &Options) -> Report {
        self.replay(candidate, Against::Journal(&|_| None), options).expect("a replay")
    }
}

/// A report without what the clock and the temporary directory say.
fn timeless(mut report: Report) -> Report {
    report.candidate_ns = None;
    report.against_ns = None;
    report
}

#[test]
fn the_same_component_answers_the_same() {
    let text = Text::new("tally", 1);
    let recording = record(&text, json!({}));
    let bytes = text.counter();
    let bytes_of = |digest| (digest == Digest::of(&bytes)).then(|| bytes.clone());
    let report = recording.replay(&bytes, Against::Journal(&bytes_of), &Options::default()).expect("a replay");
    assert_eq!((report.calls, report.faults_total, report.undescribed), (60, 0, 0));
    // The six that failed when they were recorded were stopped by the clock, and do not fail here.
    assert_eq!((report.changed, report.unfaithful), (6, Some(0)));
    assert_eq!((report.groups.len(), report.groups[0].before.as_str()), (1, "failed"));
    assert_eq!(report.labels["total"].before, 54);
    assert_eq!(report.labels["total"].after, 60);
    let fuel = report.fuel.expect("calls were made");
    assert!(fuel.candidate > 1.0 && fuel.against == Some(fuel.candidate) && fuel.change_percent == Some(0.0));
    assert!(report.candidate_ns.is_some_and(|ns| ns > 0));

    let again = recording.replay(&bytes, Against::Journal(&bytes_of), &Options::default()).expect("a replay");
    assert_eq!(timeless(again), timeless(report));
}

#[test]
fn another_version_differs_by_field_group_and_example() {
    let recording = record(&Text::new("tally", 1), json!({}));
    let options = Options { examples: 2, ..Options::default() };
    let report = recording.run(&Text::new("tally", 2).counter(), &options);
    assert_eq!(report.changed, 60);
    let group = &report.groups[0];
    assert_eq!((group.before.as_str(), group.after.as_str(), group.calls), ("total", "total", 54));
    // The sum is the same, because it has the recorded memory.
    assert_eq!(group.fields.iter().collect::<Vec<_>>(), [(&"Total.build".to_owned(), &54)]);
    assert_eq!(group.examples.len(), 2);
    let example = &group.examples[0];
    assert_eq!(example.call, recording.ids[0]);
    assert_eq!(example.before, json!({ "Total": { "sum": 0, "build": 1 } }));
    assert_eq!(example.after, json!({ "Total": { "sum": 0, "build": 2 } }));
}

#[test]
fn memory_is_the_recorded_one_only_where_it_is_the_candidates() {
    let recording = record(&Text::new("tally", 1), json!({}));
    let same = Text { build: 1, ..Text::new("tally", 9) };
    let other_version = Text { memory_version: 2, build: 1, ..same.clone() };
    let other_name = Text { name: "abacus".into(), ..same.clone() };
    for (text, asked, expected) in [
        (&same, None, "recorded"),
        (&same, Some(MemoryMode::Own), "own"),
        (&other_version, None, "own"),
        (&other_version, Some(MemoryMode::Recorded), "recorded"),
        (&other_name, None, "own"),
    ] {
        let report = recording.run(&text.counter(), &Options { memory: asked, ..Options::default() });
        assert_eq!(serde_json::to_value(report.memory).expect("a word"), expected);
        // With its own memory it also counts what failed when it was recorded, and is ahead from then on.
        let sums: u64 = report.groups.iter().filter_map(|group| group.fields.get("Total.sum")).sum();
        assert_eq!(sums > 0, expected == "own", "{text:?} {asked:?}");
    }
}

#[test]
fn an_older_memory_is_turned_into_the_candidates_form_as_a_slot_does() {
    let recording = record(&Text::new("tally", 1), json!({}));
    let newer = Text::migrating("tally", 1, 2);
    let report = recording.run(&newer.counter(), &Options::default());
    // Only those six differ that the clock stopped when they were recorded; a memory read in the wrong form would show.
    assert_eq!((serde_json::to_value(report.memory).expect("a word"), report.changed), (json!("recorded"), 6));
    // The first calls of the three clients had none.
    assert_eq!((report.memories_upgraded, report.memories_lost), (57, 0));
    let replay = Replay::<Counter>::new(&recording.dir.path().join("explained")).expect("an engine");
    let bytes = newer.counter();
    let explained = replay
        .explain(&recording.source, recording.ids[30], |_| Ok(Some(bytes)), &Options::default())
        .expect("the call");
    assert!(explained.again.expect("made again").is_same);

    // One that it will not turn, or traps on, begins anew, as it would in the slot.
    let requests = [add(1, UNWILLING), add(1, TRAPPING - UNWILLING), add(1, 2), add(1, 1)].into_iter();
    let recording = record_requests(&Text::new("tally", 1), json!({}), requests);
    let report = recording.run(&newer.counter(), &Options::default());
    assert_eq!((report.memories_upgraded, report.memories_lost, report.changed), (1, 2, 2));
    assert_eq!(report.groups[0].examples[0].after, json!({ "Total": { "sum": 1, "build": 1 } }));
}

#[test]
fn a_replay_goes_by_the_recorded_slots_limits_or_by_those_it_is_given() {
    let (tight, wide) = (Limits { memory_max_bytes: 128 << 10, ..Limits::default() }, Limits::default());
    let text = Text::new("tally", 1);
    let requests = || (0..6).map(|call| add(1, call));
    // 2 MiB, which the slot would not let it have.
    let large = Text { pages: 32, ..text.clone() }.counter();
    let recording = record_under(Some(&tight), &text, json!({}), requests());
    let refused = recording.replay(&large, Against::Journal(&|_| None), &Options::default());
    let refused = format!("{:#}", refused.expect_err("it is too large"));
    assert!(refused.contains("at most 131072 are allowed"), "{refused}");
    let options = Options { limits: Some(wide.clone()), ..Options::default() };
    assert_eq!(recording.run(&large, &options).limits, Some(wide.clone()));
    assert_eq!(recording.run(&text.counter(), &Options::default()).limits, Some(tight));
    let untold = record_under(None, &text, json!({}), requests());
    assert_eq!(untold.run(&large, &Options::default()).limits, None);

    let spin = || [Request { client: 1, mode: Mode::Spin, ..Request::default() }].into_iter();
    let little = Limits { fuel_max: 200_000, ..wide.clone() };
    let report = record_under(Some(&little), &text, json!({}), spin()).run(&text.counter(), &Options::default());
    assert_eq!(report.failures.into_iter().collect::<Vec<_>>(), [("fuel".to_owned(), 1)]);
    assert_eq!(report.fuel.expect("a call").candidate, 200_000.0);

    // More memory than a replay has by itself.
    let huge = Limits { memory_max_bytes: 128 << 20, ..wide };
    let recording = record_under(Some(&huge), &text, json!({}), requests());
    let against = || Against::Journal(&|_| None);
    let refused = recording.replay(&large, against(), &Options::default()).expect_err("no room");
    assert_eq!(refused.root_cause().to_string(), "memory_max_bytes is 134217728, there is room for 67108864");
    let roomy = Replay::<Counter>::with_room(&recording.dir.path().join("roomy"), &huge).expect("an engine");
    let report = roomy.run(&recording.source, &large, against(), &Options::default()).expect("a replay");
    assert_eq!((report.calls, report.changed), (6, 0));
}

#[test]
fn a_second_component_is_the_measure_when_it_is_given() {
    let recording = record(&Text::new("tally", 1), json!({}));
    let (one, two) = (Text::new("tally", 1).counter(), Text::new("tally", 2).counter());
    let report = recording.replay(&one, Against::Component(&one), &Options::default()).expect("a replay");
    assert_eq!((report.changed, report.unfaithful), (0, None));
    let report = recording.replay(&two, Against::Component(&one), &Options::default()).expect("a replay");
    assert_eq!(report.changed, 60);
    assert_eq!(report.against.map(|side| side.digest), Some(Digest::of(&one)));
    assert_eq!(report.fuel.and_then(|fuel| fuel.change_percent), Some(0.0));
}

#[test]
fn failures_are_counted_by_cause_and_a_call_without_end_ends() {
    let modes = [(Mode::Trap, "trap"), (Mode::Spin, "fuel"), (Mode::Hoard, "memory-limit"), (Mode::Recurse, "stack")];
    let requests = modes.into_iter().map(|(mode, _)| Request { client: 1, mode, ..Request::default() });
    let recording = record_requests(&Text::new("tally", 1), json!({}), requests);
    let options = Options { limits: Some(Limits { fuel_max: 1_000_000, ..Limits::default() }), ..Options::default() };
    let report = recording.run(&Text::new("tally", 1).counter(), &options);
    let mut expected: Vec<_> = modes.iter().map(|(_, cause)| ((*cause).to_owned(), 1)).collect();
    expected.sort();
    assert_eq!(report.failures.into_iter().collect::<Vec<_>>(), expected);
    assert_eq!((report.labels["failed"].before, report.labels["failed"].after), (0, 4));
}

#[test]
fn what_differs_between_machines_is_the_same_here() {
    let recording = record(&Text::new("tally", 1), json!({}));
    // The sign and the payload of a NaN are left open by WebAssembly.
    let nan = "(i64.reinterpret_f64 (f64.add (f64.div (f64.const 0) (f64.const 0)) (f64.reinterpret_i64 (i64.or \
               (i64.const 0x7ff0000000000001) (local.get $calls)))))";
    let core = Text::new("tally", 1)
        .counter_core()
        .replace("(local.set $sum (i64.add (local.get $sum) (local.get $add)))", &format!("(local.set $sum {nan})"));
    let with_nan = component(&core, &[support::COUNTER_WIT], <Counter as tenon_runtime::Kind>::WORLD);
    let report = recording.run(&with_nan, &Options::default());
    let canonical = 0x7ff8_0000_0000_0000_u64;
    assert_eq!(report.groups[0].examples[0].after, json!({ "Total": { "sum": canonical, "build": 1 } }));

    for sum in ["(call $random)", "(call $clock)"] {
        let foreign = foreign(sum);
        let once = timeless(recording.run(&foreign, &Options::default()));
        assert_eq!((once.calls, once.failures.len()), (60, 0));
        assert_eq!(timeless(recording.run(&foreign, &Options::default())), once, "{sum}");
    }
}

#[test]
fn budgets_hold_or_break_and_name_only_what_there_is() {
    let recording = record(&Text::new("tally", 1), json!({}));
    let run = |budget: &str| {
        let budgets: Budgets = budget.parse().expect("a budget");
        let options = Options { budgets, ..Options::default() };
        recording.replay(&Text::new("tally", 2).counter(), Against::Journal(&|_| None), &options)
    };
    assert!(run("failed+0%,total+10%,changed+100%").expect("a replay").is_within_budget());
    let report = run("total+9.9%,changed+99%,failed+0%").expect("a replay");
    assert!(!report.is_within_budget());
    assert_eq!(report.budgets.iter().map(|budget| budget.broken).collect::<Vec<_>>(), [true, true, false]);
    let error = run("deny+1%").expect_err("no such answer").to_string();
    assert_eq!(error, "a budget for \"deny\", which no answer is, known: total, failed, changed");
}

#[test]
fn a_configuration_that_is_not_taken_is_an_error() {
    let schema = r#"{"type":"object","required":["limit"],"properties":{"limit":{"type":"integer"}}}"#;
    let text = Text { schema: schema.into(), ..Text::new("tally", 1) };
    let bytes = text.counter();
    let recording = record(&text, json!({ "limit": 5 }));
    assert_eq!(recording.run(&bytes, &Options::default()).calls, 60, "the recorded one is");
    let options = Options { settings: Some(json!({ "limit": "x" })), ..Options::default() };
    let error = recording.replay(&bytes, Against::Journal(&|_| None), &options).expect_err("not taken");
    assert!(format!("{error:#}").contains("settings: /limit"), "{error:#}");
    // A plugin of another name gets none.
    let other = Text { name: "abacus".into(), ..text };
    recording.replay(&other.counter(), Against::Journal(&|_| None), &Options::default()).expect_err("none is given");
}

#[test]
fn one_call_is_explained_and_made_again() {
    let text = Text::new("tally", 1);
    let recording = record(&text, json!({}));
    let replay = Replay::<Counter>::new(&recording.dir.path().join("scratch")).expect("an engine");
    let explain =
        |id, bytes: Option<Vec<u8>>| replay.explain(&recording.source, id, |_| Ok(bytes), &Options::default());
    let id = recording.ids[7];
    let shown = explain(id, None).expect("a call");
    assert_eq!((shown.call, shown.key, shown.again), (id, json!(1), None));
    assert_eq!((shown.memory_before, shown.memory_after), (json!([5, 2, 0, 0]), json!([12, 3, 0, 0])));
    assert_eq!(shown.answer, json!({ "Total": { "sum": 12, "build": 1 } }));

    let again = explain(id, Some(text.counter())).expect("a call").again.expect("made again");
    assert!(again.is_same && again.fields.is_empty() && again.fuel > 0);
    let again = explain(id, Some(Text::new("tally", 2).counter())).expect("a call").again.expect("made again");
    assert_eq!((again.is_same, again.fields), (false, vec!["Total.build".to_owned()]));
    // Its own memory is the one after its earlier calls for that key.
    let other = Text { memory_version: 2, ..text };
    let again = explain(id, Some(other.counter())).expect("a call").again.expect("made again");
    assert_eq!((again.memory, again.memory_before), (MemoryMode::Own, Some(json!([5, 2, 0, 0]))));

    let failed = explain(recording.ids[9], None).expect("a call");
    assert_eq!(failed.answer, json!({ "failed": "deadline", "message": "still running after 100 ms" }));
    let error = explain("1.0.999".parse().expect("an id"), None).expect_err("no such call").to_string();
    assert_eq!(
        error,
        "the journal has no call 1.0.999; it has 60 that can be read, and 0 that cannot (without a call, `explain` lists the latest)"
    );
}

#[test]
fn a_broken_call_is_told_of_and_the_rest_is_replayed() {
    let recording = record(&Text::new("tally", 1), json!({}));
    let file = std::fs::read_dir(recording.dir.path().join("counter")).expect("the journal").next();
    let path = file.expect("a segment").expect("a segment").path();
    let mut bytes = std::fs::read(&path).expect("a segment");
    let at = bytes.len() - 3;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).expect("writing");
    let report = recording.run(&Text::new("tally", 1).counter(), &Options::default());
    assert_eq!((report.calls, report.faults_total), (59, 1));
    assert_eq!(report.faults[0].call, recording.ids.last().copied());
    let _: &Path = &report.faults[0].file;
    assert_eq!(Reader::<Counter>::new(&recording.source).expect("a journal").filter(Result::is_err).count(), 1);
}

#[test]
fn a_component_is_asked_directly_with_the_memory_that_the_caller_keeps() {
    let dir = tempfile::tempdir().expect("a directory");
    let replay = Replay::<Counter>::new(dir.path()).expect("an engine");
    let fuel_max = Limits::default().fuel_max;
    let mut stepper = replay.stepper(&Text::new("tally", 3).counter(), &json!({}), fuel_max).expect("taken");
    assert_eq!(stepper.side().plugin, "tally");
    let first = stepper.step(&add(1, 5), &Default::default());
    let (answer, memory) = first.answer.clone().expect("an answer");
    assert_eq!((answer, memory.0, memory.1), (Answer::Total { sum: 5, build: 3 }, 5, 1));
    assert!(first.fuel > 1);
    let second = stepper.step(&add(1, 5), &memory);
    assert_eq!(second.answer.expect("an answer").0, Answer::Total { sum: 10, build: 3 });
    assert_eq!(stepper.step(&add(1, 5), &Default::default()), first, "the same call");
    for (mode, word) in [(Mode::Trap, "trap"), (Mode::Spin, "fuel")] {
        let failed = stepper.step(&support::mode(mode), &memory).answer.expect_err("no answer");
        assert!(failed.contains(word), "{failed}");
        assert_eq!(stepper.step(&add(1, 5), &Default::default()), first, "as it was at first");
    }
    let refused = Text { configure: 1, ..Text::new("tally", 3) };
    assert!(replay.stepper(&refused.counter(), &json!({}), fuel_max).is_err());
}
