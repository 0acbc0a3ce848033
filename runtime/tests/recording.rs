//! Recording, switched on and off while calls go on: what is recorded is whole, and what is not is not missed.

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use support::{Answer, Bed, Counter, Text, add, drain, names};
use tenon_runtime::{
    Change, ControlError, PluginConfig, Slot,
    journal::{Call, JournalConfig, Reader, RecordId, Recorded, Source},
};

/// Room for all that a test asks.
fn roomy() -> JournalConfig {
    JournalConfig { segments: 10_000, segment_bytes: 64 << 10, buffer_bytes: 16 << 20, ..JournalConfig::default() }
}

/// All calls of the journal. Nothing of it may be missing.
fn read(bed: &Bed) -> Vec<Call<Counter>> {
    let dir = bed.host.journal("counter").expect("a slot").expect("a journal").dir;
    let mut reader = Reader::<Counter>::new(&Source::open(&dir).expect("a journal")).expect("of this kind");
    let calls = reader.by_ref().collect::<Result<Vec<_>, _>>().expect("no fault");
    let summary = reader.summary();
    assert_eq!((summary.missing, summary.skipped, summary.cut.len()), (0, 0, 0));
    calls
}

fn sum(answer: &Answer) -> u64 {
    match answer {
        Answer::Total { sum, .. } => *sum,
        answer => panic!("{answer:?}"),
    }
}

fn recorded(slot: &Slot<Counter>, client: u64, more: u64) -> Option<RecordId> {
    slot.ask(&client, &add(client, more)).record
}

#[test]
fn switched_under_load_the_journal_holds_exactly_the_calls_that_say_so() {
    const CLIENTS: u64 = 4;
    const ROUNDS: usize = 12;
    let bed = Bed::with(|config| config.shards = 3);
    let slot = bed.serving(&Text::new("tally", 1), PluginConfig::plugin("tally"));
    let mut events = bed.host.events();
    let is_over = AtomicBool::new(false);
    let told = Mutex::new(BTreeMap::<RecordId, (u64, u64)>::new());
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (slot, is_over, told) = (&slot, &is_over, &told);
            scope.spawn(move || {
                let mut mine = Vec::new();
                let mut expected = 0;
                while !is_over.load(Ordering::Acquire) {
                    let decision = slot.ask(&client, &add(client, 1));
                    expected += 1;
                    assert_eq!(sum(&decision.answer), expected, "no call is lost or done twice by a switch");
                    mine.extend(decision.record.map(|id| (id, (client, expected))));
                }
                told.lock().expect("no panic").extend(mine);
            });
        }
        for round in 0..ROUNDS {
            let status = bed.host.record("counter", Some(roomy())).expect("in range").expect("a journal");
            assert!(status.recording);
            if round % 3 == 1 {
                // Another way of recording is another segment, too.
                let config = JournalConfig { segment_bytes: 8 << 10, ..roomy() };
                bed.host.record("counter", Some(config)).expect("in range");
            }
            // By an own client, so that the others' sums are theirs.
            let id = recorded(&slot, CLIENTS, 1).expect("it records");
            told.lock().expect("no panic").insert(id, (CLIENTS, round as u64 + 1));
            let before = bed.host.journal("counter").expect("a slot").expect("a journal").records;
            let since = std::time::Instant::now();
            while bed.host.journal("counter").expect("a slot").expect("a journal").records < before + 50 {
                assert!(since.elapsed() < support::PATIENCE, "nothing is recorded any more");
                std::thread::yield_now();
            }
            let status = bed.host.stop_recording("counter").expect("a slot").expect("a journal");
            assert!(!status.recording);
            assert_eq!(recorded(&slot, CLIENTS + 1, 1), None);
        }
        is_over.store(true, Ordering::Release);
    });
    let status = bed.host.journal("counter").expect("a slot").expect("a journal");
    let told = told.into_inner().expect("no panic");
    assert_eq!((status.records, status.dropped), (told.len() as u64, 0));
    let found: BTreeMap<RecordId, (u64, u64)> = read(&bed)
        .into_iter()
        .map(|call| {
            let Recorded::Answered { answer, memory } = &call.outcome else { panic!("it answers") };
            assert_eq!((call.before.0 + 1, sum(answer)), (memory.0, memory.0), "the memory that there really was");
            assert_eq!(call.about.as_ref().expect("described").plugin, "tally");
            (call.id, (call.key, sum(answer)))
        })
        .collect();
    assert_eq!(found, told);
    let told = drain(&mut events);
    let told: Vec<&str> = names(&told).into_iter().filter(|name| name.starts_with("recording")).collect();
    assert_eq!(told.len(), 2 * (ROUNDS + ROUNDS / 3));
    assert!(told.chunks(2).all(|pair| pair == ["recording-started", "recording-stopped"]), "{told:?}");
}

#[test]
fn what_happened_while_nothing_was_recorded_is_in_the_memory_of_the_next_call() {
    let bed = Bed::new();
    let slot = bed.serving(&Text::new("tally", 1), PluginConfig::plugin("tally"));
    assert_eq!((bed.host.journal("counter"), recorded(&slot, 1, 3)), (Ok(None), None));
    let on = || bed.host.record("counter", None).expect("the default").expect("a journal");
    let first = on();
    assert!(recorded(&slot, 1, 5).is_some());
    bed.host.stop_recording("counter").expect("a slot");
    assert_eq!(recorded(&slot, 1, 7), None);
    // Another version came meanwhile, and then the built-in.
    bed.put("tally.wasm", &Text::new("tally", 2).counter());
    bed.host.reload("counter").expect("a sound version");
    let second = on();
    assert!(second.segment > first.segment);
    assert!(recorded(&slot, 1, 1).is_some());
    assert!(recorded(&slot, 1, 1).is_some());
    bed.host.stop_recording("counter").expect("a slot");
    bed.host.use_plugin("counter", None).expect("the built-in");
    on();
    assert!(recorded(&slot, 1, 1).is_some());
    bed.host.stop_recording("counter").expect("a slot");
    let calls = read(&bed);
    let seen: Vec<_> = calls
        .iter()
        .map(|call| {
            let about = call.about.as_ref().expect("described");
            (call.before.0, call.generation, about.plugin.as_str(), about.version.as_str())
        })
        .collect();
    let expected =
        [(3, 1, "tally", "1.1.0"), (15, 2, "tally", "1.2.0"), (16, 2, "tally", "1.2.0"), (0, 0, "built-in", "")];
    assert_eq!(seen, expected);
}

#[test]
fn a_recording_goes_on_as_it_was_and_a_wrong_order_changes_nothing() {
    let bed = Bed::new();
    let config = PluginConfig {
        journal: Some(JournalConfig { sample: 0.25, ..JournalConfig::default() }),
        ..PluginConfig::plugin("tally")
    };
    let slot = bed.serving(&Text::new("tally", 1), config);
    let status = |bed: &Bed| bed.host.journal("counter").expect("a slot").expect("a journal");
    assert_eq!((status(&bed).recording, status(&bed).config.sample), (true, 0.25));
    let mut events = bed.host.events();
    let wrong = Some(JournalConfig { sample: 2.0, ..JournalConfig::default() });
    let refused = bed.host.record("counter", wrong).expect_err("out of range");
    assert!(matches!(refused, ControlError::Journal { .. }), "{refused:?}");
    assert_eq!(refused.to_string(), "journal of slot counter: sample is 2, expected 0 to 1");
    assert!(bed.host.record("counter", None).expect("as it is").expect("a journal").recording);
    assert_eq!(drain(&mut events), [], "it goes on, and nothing has begun");
    let sampled = (0..400).filter(|client| recorded(&slot, *client, 1).is_some()).count();
    assert!((40..=160).contains(&sampled), "a quarter of the clients: {sampled}");

    bed.host.stop_recording("counter").expect("a slot");
    bed.host.stop_recording("counter").expect("it is over already");
    let told = drain(&mut events);
    assert_eq!(names(&told), ["recording-stopped"]);
    assert_eq!(told[0].change, Change::RecordingStopped { records: sampled as u64 });
    assert_eq!((told[0].slot.as_deref(), told[0].plugin.as_deref()), (Some("counter"), Some("tally")));
    let again = bed.host.record("counter", None).expect("as it was").expect("a journal");
    assert_eq!((again.recording, again.config.sample), (true, 0.25));
    assert!(matches!(bed.host.record("nowhere", None), Err(ControlError::UnknownSlot { .. })));
}
