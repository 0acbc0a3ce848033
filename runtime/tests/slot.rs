//! A slot's calls: who answers, with which memory, on which generation.

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;
use serde_json::json;
use support::{Answer, Bed, Counter, Echo, Mode, Request, Text, add, drain, echo_builtin, mode, names};
use tenon_runtime::{By, Change, Condition, Failure, Limits, MemoryId, PluginConfig, Refusal};

#[test]
fn without_a_plugin_the_builtin_answers_and_remembers() {
    let bed = Bed::new();
    let slot = bed.counter(PluginConfig::default());
    bed.host.open();
    assert_eq!(slot.decide(&1, &add(1, 5)), Answer::Total { sum: 5, build: 0 });
    assert_eq!(slot.decide(&1, &add(1, 5)), Answer::Total { sum: 10, build: 0 });
    assert_eq!(slot.decide(&2, &add(2, 1)), Answer::Total { sum: 1, build: 0 });
    assert_eq!(slot.generation(), 0);
    assert_eq!(bed.status().status, Condition::Builtin);
}

#[test]
fn a_plugin_answers_with_the_memory_that_the_host_keeps_for_each_key() {
    let bed = Bed::new();
    let slot = bed.serving(&Text::new("adder", 7), PluginConfig::plugin("adder"));
    assert_eq!(slot.decide(&1, &add(1, 5)), Answer::Total { sum: 5, build: 7 });
    assert_eq!(slot.decide(&2, &add(2, 1)), Answer::Total { sum: 1, build: 7 });
    let decision = slot.ask(&1, &add(1, 5));
    assert_eq!(decision.answer, Answer::Total { sum: 10, build: 7 });
    assert_eq!(decision.by, By::Generation(1));
    assert_eq!(decision.failure, None);
    let status = bed.status();
    assert_eq!((status.plugin.as_deref(), status.version.as_deref()), (Some("adder"), Some("1.7.0")));
    assert_eq!((status.calls, status.failures, status.memory_keys), (3, 0, 2));
    assert_eq!(status.status, Condition::Live);
    let json = serde_json::to_value(&status).expect("a status is JSON");
    assert_eq!(json["slot"], "counter");
    assert_eq!(json["status"], "live");
}

#[test]
fn the_new_version_answers_after_a_swap_and_says_so() {
    let bed = Bed::new();
    let slot = bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    assert_eq!(slot.decide(&1, &add(1, 5)), Answer::Total { sum: 5, build: 1 });
    bed.put("adder.wasm", &Text::new("adder", 2).counter());
    let status = bed.host.reload("counter").expect("the new version is sound");
    assert_eq!(status.generation, slot.generation());
    let decision = slot.ask(&1, &add(1, 5));
    assert_eq!(decision.by, By::Generation(status.generation));
    assert_eq!(decision.answer, Answer::Total { sum: 10, build: 2 }, "memory is handed on");
}

#[test]
fn memory_of_another_version_starts_anew_with_an_event() {
    let bed = Bed::new();
    let slot = bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    slot.decide(&1, &add(1, 5));
    let mut events = bed.host.events();
    let text = Text { memory_version: 2, ..Text::new("adder", 2) };
    bed.put("adder.wasm", &text.counter());
    bed.host.reload("counter").expect("the new version is sound");
    assert_eq!(slot.decide(&1, &add(1, 5)), Answer::Total { sum: 5, build: 2 });
    let reset = drain(&mut events).into_iter().find_map(|event| match event.change {
        Change::MemoryReset { from, to, .. } => Some((event.slot, from, to)),
        _ => None,
    });
    let (from, to) = ("adder/1".into(), "adder/2".into());
    assert_eq!(reset, Some((Some("counter".into()), from, to)));
}

#[test]
fn memory_survives_a_time_with_the_builtin() {
    let bed = Bed::new();
    let slot = bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    slot.decide(&1, &add(1, 5));
    bed.host.use_plugin("counter", None).expect("the built-in serves");
    assert_eq!(slot.decide(&1, &add(1, 100)), Answer::Total { sum: 100, build: 0 });
    bed.host.use_plugin("counter", Some("adder")).expect("the plugin serves again");
    assert_eq!(slot.decide(&1, &add(1, 5)), Answer::Total { sum: 10, build: 1 });
}

#[test]
fn no_opinion_is_answered_by_the_builtin_with_its_own_memory() {
    let bed = Bed::new();
    let slot = bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    slot.decide(&1, &add(1, 5));
    let pass = Request { add: 3, ..mode(Mode::Pass) };
    let decision = slot.ask(&1, &pass);
    assert_eq!((decision.answer, decision.by), (Answer::Total { sum: 3, build: 0 }, By::Builtin));
    // The plugin's memory went on beside it.
    assert_eq!(slot.decide(&1, &add(1, 5)), Answer::Total { sum: 13, build: 1 });
    assert_eq!(bed.status().failures, 0);
}

#[test]
fn a_caller_that_keeps_its_memory_is_told_whose_it_is() {
    let bed = Bed::new();
    let slot = bed.host.slot::<Echo>("echo", PluginConfig::plugin("parrot"), echo_builtin).expect("a slot");
    bed.put("parrot.wasm", &Text::new("parrot", 1).echo());
    bed.host.open();
    let one = slot.step(&"hello".into(), &Vec::new());
    assert_eq!((one.answer, &one.memory), (Vec::new(), &b"hello".to_vec()));
    assert_eq!((one.by, one.memory_id.to_string()), (By::Generation(1), "parrot/1".into()));
    let two = slot.step_from(&"you".into(), &one.memory, &one.memory_id);
    assert_eq!((two.answer, two.memory), (b"hello".to_vec(), b"you".to_vec()));

    // The built-in must not write a plugin's memory, and the plugin gets it back as it was.
    bed.host.use_plugin("echo", None).expect("the built-in serves");
    let three = slot.step_from(&"there".into(), &one.memory, &one.memory_id);
    assert_eq!((three.answer, three.by), (b"built-in".to_vec(), By::Builtin));
    assert_eq!((three.memory, three.memory_id), (one.memory.clone(), one.memory_id.clone()));
    let own = slot.step_from(&"there".into(), &Vec::new(), &MemoryId::BUILTIN);
    assert_eq!((own.memory, own.memory_id), (b"b".to_vec(), MemoryId::BUILTIN));

    // Another memory-version begins empty.
    let mut events = bed.host.events();
    bed.put("parrot.wasm", &Text { memory_version: 2, ..Text::new("parrot", 2) }.echo());
    bed.host.use_plugin("echo", Some("parrot")).expect("as before");
    bed.host.reload("echo").expect("the new version");
    let four = slot.step_from(&"again".into(), &one.memory, &one.memory_id);
    assert_eq!((four.answer, four.memory_id.to_string()), (Vec::new(), "parrot/2".into()));
    assert!(names(&drain(&mut events)).contains(&"memory-reset"));
}

#[test]
fn settings_and_plugin_switch_together_or_not_at_all() {
    let bed = Bed::new();
    let text = Text {
        schema: json!({"type": "object", "properties": {"burst": {"type": "integer", "minimum": 1}}}).to_string(),
        ..Text::new("adder", 1)
    };
    let config = PluginConfig { settings: json!({"burst": 2}), ..PluginConfig::plugin("adder") };
    let slot = bed.serving(&text, config);
    let error = bed.host.configure("counter", json!({"burst": 0})).expect_err("out of range");
    assert!(error.to_string().contains("/burst"), "{error}");
    let status = bed.status();
    assert_eq!((status.generation, &status.settings), (1, &json!({"burst": 2})));
    assert!(status.candidate.is_some_and(|rejection| rejection.reason.contains("/burst")));
    assert_eq!(slot.decide(&1, &add(1, 5)), Answer::Total { sum: 5, build: 1 });

    // A version whose schema the settings do not fit is not taken either.
    let strict = Text { schema: json!({"required": ["rate"]}).to_string(), ..Text::new("adder", 2) };
    bed.put("adder.wasm", &strict.counter());
    bed.host.reload("counter").expect_err("the settings lack `rate`");
    assert_eq!(slot.decide(&1, &add(1, 5)), Answer::Total { sum: 10, build: 1 });
    bed.host.configure("counter", json!({"rate": 1})).expect("both fit now");
    assert_eq!(slot.decide(&1, &add(1, 5)), Answer::Total { sum: 15, build: 2 });
    assert_eq!(bed.status().settings, json!({"rate": 1}));
    assert_eq!(bed.status().candidate, None);
}

#[test]
fn each_plugin_keeps_its_own_settings_in_a_slot() {
    let bed = Bed::new();
    let schema = |name: &str| json!({"additionalProperties": false, "properties": {name: {}}}).to_string();
    let one = Text { schema: schema("one"), ..Text::new("one", 1) };
    let two = Text { schema: schema("two"), ..Text::new("two", 2) };
    bed.put("two.wasm", &two.counter());
    let config = PluginConfig { settings: json!({"one": 1}), ..PluginConfig::plugin("one") };
    let slot = bed.serving(&one, config);
    let status = bed.host.use_plugin("counter", Some("two")).expect("with `{}`");
    assert_eq!(status.settings, json!({}));
    bed.host.configure("counter", json!({"two": 2})).expect("its own settings");
    assert_eq!(bed.host.use_plugin("counter", Some("one")).expect("back").settings, json!({"one": 1}));
    assert_eq!(bed.host.use_plugin("counter", Some("two")).expect("forth").settings, json!({"two": 2}));
    assert_eq!(slot.generation(), 5);
}

#[test]
fn orders_for_unknown_slots_and_plugins_name_the_known_ones() {
    let bed = Bed::new();
    bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    let error = bed.host.reload("nothing").expect_err("no such slot");
    assert_eq!(error.to_string(), "unknown slot \"nothing\", known: counter");
    let error = bed.host.use_plugin("counter", Some("adler")).expect_err("no such plugin");
    assert_eq!(error.to_string(), "unknown counter plugin \"adler\", known: adder");
    bed.host.stop();
    let error = bed.host.reload("counter").expect_err("stopped");
    assert_eq!(error.to_string(), "the plugin host has been stopped");
}

#[test]
fn ten_thousand_swaps_under_load_fail_no_call_and_leave_no_instance() {
    let bed = Bed::new();
    let slot = bed.serving(&Text::new("adder", 1), support::patient("adder"));
    let (done, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    let flat = std::thread::scope(|scope| {
        for client in 0..2_u64 {
            let (slot, done, calls) = (slot.clone(), &done, &calls);
            scope.spawn(move || {
                let mut sum = 0;
                let mut generation = 0;
                while !done.load(Ordering::Relaxed) {
                    sum += 1;
                    let decision = slot.ask(&client, &add(client, 1));
                    assert_eq!(decision.answer, Answer::Total { sum, build: 1 });
                    let By::Generation(by) = decision.by else {
                        panic!("a plugin serves throughout");
                    };
                    assert!(by >= generation, "a key never goes back to an older generation");
                    generation = by;
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut flat = true;
        for burst in 0..10_000_u64 {
            bed.host.configure("counter", json!({"n": burst})).expect("a swap");
            // Two shards: the live generation, the one before, the candidate, and what a call or a round of looking after
            // probations still holds.
            flat &= bed.host.instances() <= 12;
        }
        done.store(true, Ordering::Relaxed);
        flat
    });
    assert!(flat);
    let status = bed.status();
    assert_eq!((status.generation, status.failures, status.fallbacks), (10_001, 0, 0));
    assert_eq!(status.calls, calls.load(Ordering::Relaxed));
    // The generation before is kept warm, with one.
    while bed.host.instances() > 3 {
        std::thread::yield_now();
    }
    bed.host.stop();
    assert_eq!(bed.host.instances(), 0);
}

#[test]
fn a_call_under_way_ends_on_the_old_generation_while_the_new_one_serves() {
    let bed = Bed::with(|config| config.shards = 8);
    let limits = Limits { deadline_ms: 2_000, ..Limits::default() };
    let config = PluginConfig { limits, ..PluginConfig::plugin("adder") };
    let slot = bed.serving(&Text::new("adder", 1), config);
    let mut events = bed.host.events();
    let (slot, over) = (&slot, &AtomicBool::new(false));
    std::thread::scope(|scope| {
        let spinning = scope.spawn(|| {
            let decision = slot.ask(&0, &mode(Mode::Spin));
            over.store(true, Ordering::Relaxed);
            decision
        });
        while bed.status().calls == 0 {
            std::thread::yield_now();
        }
        bed.host.configure("counter", json!({})).expect("a swap");
        // Some key lies on another shard than the one that is busy; those on the same wait for it.
        let ask = |client| (slot.ask(&client, &add(client, 1)).by, over.load(Ordering::Relaxed));
        let asked: Vec<_> = (1..=32).map(|client| scope.spawn(move || ask(client))).collect();
        let answers: Vec<_> = asked.into_iter().map(|asked| asked.join().expect("no panic")).collect();
        assert!(answers.iter().all(|(by, _)| *by == By::Generation(2)), "{answers:?}");
        assert!(answers.iter().any(|(_, late)| !late), "the swap waited for no call");
        let decision = spinning.join().expect("no panic");
        assert_eq!(decision.failure, Some(Failure::Deadline { limit_ms: 2_000 }));
    });
    let failed = drain(&mut events).into_iter().find(|event| matches!(event.change, Change::Failed { .. }));
    assert_eq!(failed.map(|event| event.generation), Some(1));
    // One for each shard, and one of the generation before.
    assert!(bed.host.instances() <= 9, "the old generation is freed but for one: {}", bed.host.instances());
}

#[test]
fn calls_go_on_while_a_candidate_takes_its_time() {
    let bed = Bed::new();
    let limits = Limits { start_deadline_ms: 500, ..Limits::default() };
    let config = PluginConfig { limits, ..PluginConfig::plugin("adder") };
    let slot = bed.serving(&Text::new("adder", 1), config);
    bed.put("adder.wasm", &Text { configure: 3, ..Text::new("adder", 2) }.counter());
    std::thread::scope(|scope| {
        let reloading = scope.spawn(|| bed.host.reload("counter"));
        let mut answered = 0;
        while !reloading.is_finished() {
            answered += 1;
            let expected = Answer::Total { sum: answered, build: 1 };
            assert_eq!(slot.decide(&1, &add(1, 1)), expected);
            // Looking at the slots waits for nothing either.
            assert_eq!(bed.status().generation, 1);
        }
        assert!(answered > 100, "{answered} calls while the candidate was spinning");
        reloading.join().expect("no panic").expect_err("it never came to an end");
    });
}

#[test]
fn memory_stays_within_its_keys() {
    let bed = Bed::new();
    let limits = Limits { memory_keys_max: 64, ..Limits::default() };
    let slot = bed.serving(&Text::new("adder", 1), PluginConfig { limits, ..PluginConfig::plugin("adder") });
    for client in 0..1_000 {
        slot.decide(&client, &add(client, 1));
        slot.decide(&0, &add(0, 1));
    }
    assert!(bed.status().memory_keys <= 64);
    assert_eq!(slot.decide(&0, &add(0, 0)), Answer::Total { sum: 1_001, build: 1 }, "a key in use is kept");
}

#[test]
fn a_refusal_found_while_acting_counts_against_its_generation_alone() {
    let bed = Bed::new();
    let limits = Limits { strikes_max: 2, ..Limits::default() };
    let slot = bed.serving(&Text::new("adder", 1), PluginConfig { limits, ..PluginConfig::plugin("adder") });
    slot.refused(7, Refusal::new("of a generation long gone"));
    assert_eq!(bed.status().failures, 0);
    slot.refused(1, Refusal::new("unknown peer"));
    slot.refused(1, Refusal::new("unknown peer"));
    let status = bed.status();
    assert_eq!(status.failures_by_cause.get("refused"), Some(&2));
    assert_eq!(status.status, Condition::Quarantined);
    assert_eq!(status.last_error, Some(Failure::Refused { reason: "unknown peer".into() }.to_string()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn swaps_and_faults_never_lose_or_double_what_was_counted(
        steps in proptest::collection::vec((0..6_u8, 0..4_u64, 1..10_u64), 1..60),
    ) {
        let bed = Bed::new();
        let limits = Limits { strikes_max: 1_000, ..Limits::default() };
        let slot = bed.serving(
            &Text::new("adder", 1),
            PluginConfig { limits, ..PluginConfig::plugin("adder") },
        );
        let mut sums = [0_u64; 4];
        for (step, (what, client, amount)) in steps.into_iter().enumerate() {
            match what {
                0 => {
                    // A configuration that failed is not taken again: each is another one.
                    bed.host.configure("counter", json!({"n": step})).expect("a swap");
                }
                1 => {
                    let decision = slot.ask(&client, &mode(Mode::Trap));
                    prop_assert_eq!(decision.by, By::Builtin);
                }
                _ => {
                    sums[client as usize] += amount;
                    let sum = sums[client as usize];
                    let answer = slot.decide(&client, &add(client, amount));
                    prop_assert_eq!(answer, Answer::Total { sum, build: 1 });
                }
            }
        }
    }
}

#[test]
fn the_kind_of_a_slot_is_part_of_its_type() {
    // Compiles only while a handle can be cloned and sent where calls are made.
    fn takes<T: Clone + Send + Sync>(_: &T) {}
    let bed = Bed::new();
    takes(&bed.counter(PluginConfig::default()));
    takes(&bed.host);
    let error = bed.host.slot::<Counter>("counter", PluginConfig::default(), support::builtin);
    assert!(error.is_err_and(|error| error.to_string().contains("exists already")));
}
