//! Every limit with a guest that really hits it, and what becomes of slot, instance and caller.

mod support;

use std::time::{Duration, Instant};

use support::{
    Answer, Bed, COUNTER_WIT, Counter, Echo, Mode, Request, Text, add, await_event, builtin, component, drain,
    echo_builtin, mode, names,
};
use tenon_runtime::{By, Change, Condition, Failure, Kind as _, Limits, OnFailure, PluginConfig, Slot};

fn serving(bed: &Bed, limits: Limits) -> Slot<Counter> {
    let config = PluginConfig { limits, ..PluginConfig::plugin("adder") };
    bed.serving(&Text::new("adder", 1), config)
}

/// The built-in answers, the failure is `expected`'s, the memory stays, and the next call finds a fresh instance.
fn check_fault(fault: Mode, limits: Limits, expected: impl Fn(&Failure) -> bool) {
    let bed = Bed::new();
    let slot = serving(&bed, limits);
    slot.decide(&1, &add(1, 5));
    let mut events = bed.host.events();
    let request = Request { add: 2, ..mode(fault) };
    let decision = slot.ask(&1, &request);
    let failure = decision.failure.expect("the plugin failed");
    assert!(expected(&failure), "{failure:?}");
    assert_eq!((decision.answer, decision.by), (Answer::Total { sum: 2, build: 0 }, By::Builtin));
    let fresh = Request { add: 1, ..mode(Mode::OnlyOnce) };
    assert_eq!(slot.decide(&1, &fresh), Answer::Total { sum: 6, build: 1 });
    let events = drain(&mut events);
    assert_eq!(names(&events), ["failed"]);
    assert_eq!((events[0].slot.as_deref(), events[0].generation), (Some("counter"), 1));
    let status = bed.status();
    assert_eq!((status.failures, status.fallbacks), (1, 1));
    assert_eq!(status.failures_by_cause.get(failure.cause()), Some(&1));
    assert_eq!(status.last_error, Some(failure.to_string()));
}

#[test]
fn a_trap_is_answered_by_the_builtin() {
    check_fault(
        Mode::Trap,
        Limits::default(),
        |failure| matches!(failure, Failure::Trap { message } if message.contains("unreachable")),
    );
}

#[test]
fn an_endless_loop_ends_at_its_deadline() {
    let limits = Limits { deadline_ms: 50, ..Limits::default() };
    let start = Instant::now();
    check_fault(Mode::Spin, limits, |failure| *failure == Failure::Deadline { limit_ms: 50 });
    assert!(start.elapsed() >= Duration::from_millis(50), "no call gets less than its deadline");
}

#[test]
fn a_hoarder_is_stopped_at_its_memory_limit() {
    let limits = Limits { memory_max_bytes: 2 << 20, ..Limits::default() };
    check_fault(
        Mode::Hoard,
        limits,
        |failure| matches!(failure, Failure::MemoryLimit { wanted_bytes, limit_bytes } if *limit_bytes == 2 << 20 && wanted_bytes > limit_bytes),
    );
}

#[test]
fn memory_within_the_limit_is_given() {
    let bed = Bed::new();
    let slot = serving(&bed, Limits { memory_max_bytes: 2 << 20, ..Limits::default() });
    let decision = slot.ask(&1, &mode(Mode::GrowOnce));
    assert_eq!(decision.by, By::Generation(1));
}

#[test]
fn endless_recursion_uses_up_its_stack_only() {
    check_fault(Mode::Recurse, Limits::default(), |failure| *failure == Failure::Stack);
}

#[test]
fn an_answer_against_the_rules_is_refused_and_counted() {
    let bed = Bed::new();
    let slot = serving(&bed, Limits::default());
    let request = |add| Request { add, limit: 10, ..Request::default() };
    assert_eq!(slot.ask(&1, &request(10)).by, By::Generation(1));
    let decision = slot.ask(&1, &request(1));
    assert_eq!(decision.failure, Some(Failure::Refused { reason: "sum 11 is above 10".into() }));
    assert_eq!(decision.by, By::Builtin);
    assert_eq!(slot.decide(&1, &add(1, 0)), Answer::Total { sum: 10, build: 1 }, "the memory stays");
}

#[test]
fn an_answer_larger_than_allowed_is_refused_before_it_is_copied() {
    let bed = Bed::new();
    let limits = Limits { answer_max_bytes: 64 << 10, ..Limits::default() };
    let config = PluginConfig { limits, ..PluginConfig::plugin("parrot") };
    let slot = bed.host.slot::<Echo>("echo", config, echo_builtin).expect("a slot");
    let text = Text { pages: 16, ..Text::new("parrot", 1) };
    bed.put("parrot.wasm", &text.echo());
    assert_eq!(bed.host.open().rejected, []);
    assert_eq!(slot.step(&"a word".into(), &vec![b'x'; 40 << 10]).by, By::Generation(1));
    let step = slot.step(&"flood".into(), &b"kept".to_vec());
    assert_eq!(step.failure, Some(Failure::Oversized { limit_bytes: 64 << 10 }));
    assert_eq!((step.answer, step.memory), (b"built-in".to_vec(), b"kept".to_vec()));
    // Just within what is copied, just beyond what is kept: answer and memory count together.
    let step = slot.step(&"x".repeat(40 << 10), &vec![b'x'; 40 << 10]);
    assert_eq!(step.failure, Some(Failure::Oversized { limit_bytes: 64 << 10 }));
}

#[test]
fn a_component_that_starts_with_too_much_memory_is_rejected() {
    let bed = Bed::new();
    bed.put("adder.wasm", &Text { pages: 64, ..Text::new("adder", 1) }.counter());
    let limits = Limits { memory_max_bytes: 1 << 20, ..Limits::default() };
    bed.counter(PluginConfig { limits, ..PluginConfig::plugin("adder") });
    let report = bed.host.open();
    assert!(report.rejected[0].reason.contains("bytes of memory"), "{:?}", report.rejected);
}

#[test]
fn a_component_with_too_large_a_table_or_too_many_instances_is_rejected() {
    let check = |limits: Limits, sound: bool| {
        let bed = Bed::new();
        let core =
            Text::new("adder", 1).counter_core().replacen("(global $heap", "(table 9000 funcref) (global $heap", 1);
        bed.put("adder.wasm", &component(&core, &[COUNTER_WIT], Counter::WORLD));
        bed.counter(PluginConfig { limits, ..PluginConfig::plugin("adder") });
        assert_eq!(bed.host.open().rejected.is_empty(), sound);
    };
    let limits = |table_max_elements, instances_max| Limits { table_max_elements, instances_max, ..Limits::default() };
    check(limits(9_000, 64), true);
    check(limits(8_999, 64), false);
    // The module itself, and the two that wire its imports.
    check(limits(9_000, 3), true);
    check(limits(9_000, 1), false);
}

#[test]
fn every_call_gets_its_whole_deadline() {
    let bed = Bed::new();
    let slot = serving(&bed, Limits { deadline_ms: 50, ..Limits::default() });
    let start = Instant::now();
    // Far beyond the deadline of the first call, on the same instances.
    while start.elapsed() < Duration::from_millis(300) {
        slot.decide(&1, &add(1, 1));
    }
    assert_eq!(bed.status().failures, 0);
}

#[test]
fn an_instance_stopped_at_its_deadline_is_gone_with_its_work() {
    let bed = Bed::new();
    let slot = serving(&bed, Limits { deadline_ms: 50, ..Limits::default() });
    assert_eq!(bed.host.instances(), 1);
    let failure = slot.ask(&1, &mode(Mode::Spin)).failure;
    assert_eq!(failure.map(|failure| failure.cause()), Some("deadline"));
    assert!(bed.host.instances() <= 1, "only the other shard's is left");
}

#[test]
fn more_instances_than_the_host_has_fall_back_and_recover() {
    let bed = Bed::with(|config| config.instances_max = 1);
    // However many clients of the other shard come first, they must not put the plugin into quarantine.
    let limits = Limits { strikes_max: 1_000, deadline_ms: 10_000, ..Limits::default() };
    let slot = serving(&bed, limits);
    // The candidate's first instance is the only one: one shard has it, the other gets none.
    let by: Vec<By> = (0..64).map(|client| slot.ask(&client, &add(client, 1)).by).collect();
    assert!(by.contains(&By::Generation(1)), "{by:?} {:?}", bed.status());
    assert!(by.contains(&By::Builtin));
    assert!(bed.status().failures_by_cause.contains_key("instance"));
}

#[test]
fn a_slot_that_fails_open_or_closed_gives_that_answer() {
    for (on_failure, expected) in [(OnFailure::Open, Answer::Open), (OnFailure::Closed, Answer::Closed)] {
        let bed = Bed::new();
        let config = PluginConfig { on_failure, ..PluginConfig::plugin("adder") };
        let slot = bed.serving(&Text::new("adder", 1), config);
        let decision = slot.ask(&1, &mode(Mode::Trap));
        assert_eq!((decision.answer, decision.by), (expected, By::Policy));
        assert_eq!(slot.step(&mode(Mode::Trap), &Default::default()).answer, expected);
    }
}

#[test]
fn repeated_failures_lead_to_quarantine_and_a_good_trial_ends_it() {
    let bed = Bed::new();
    let limits = Limits { strikes_max: 3, backoff_min_ms: 1, backoff_max_ms: 1, ..Limits::default() };
    let slot = serving(&bed, limits);
    let mut events = bed.host.events();
    for _ in 0..3 {
        slot.decide(&1, &mode(Mode::Trap));
    }
    let quarantined = await_event(&mut events, |event| matches!(event.change, Change::Quarantined { .. }));
    assert_eq!(quarantined.change, Change::Quarantined { pause_ms: 1 });
    // The trial comes with the first call after the pause, however long this thread was away.
    while slot.ask(&1, &add(1, 1)).by != By::Generation(1) {
        std::thread::yield_now();
    }
    await_event(&mut events, |event| event.change == Change::Recovered);
    assert_eq!(bed.status().status, Condition::Live);
}

#[test]
fn a_quarantined_plugin_is_not_asked() {
    let bed = Bed::new();
    let limits = Limits { strikes_max: 3, backoff_min_ms: 3_600_000, backoff_max_ms: 3_600_000, ..Limits::default() };
    let slot = serving(&bed, limits);
    for _ in 0..10 {
        slot.decide(&1, &mode(Mode::Trap));
    }
    let status = bed.status();
    assert_eq!((status.calls, status.failures, status.fallbacks), (3, 3, 10));
    assert_eq!(status.status, Condition::Quarantined);
    assert_eq!(slot.ask(&1, &add(1, 1)).failure, None, "the plugin did not fail: it was not asked");
    assert!(!slot.is_attended() && slot.step(&add(1, 1), &Default::default()).unattended);
    // New bytes, or a new configuration, get a new chance.
    bed.host.reload("counter").expect("a new generation");
    assert!(slot.is_attended() && !slot.step(&add(1, 1), &Default::default()).unattended);
    assert_eq!(slot.ask(&1, &add(1, 1)).by, By::Generation(2));
}

#[test]
fn one_poison_key_among_a_million_sends_nobody_else_to_the_builtin() {
    const KEYS: u64 = 1_000_000;
    let bed = Bed::new();
    let slot = serving(&bed, Limits { deadline_ms: 10_000, memory_keys_max: 2_000_000, ..Limits::default() });
    let mut poisoned = 0;
    for client in 0..KEYS {
        if client % 1_000 == 0 {
            assert_eq!(slot.ask(&KEYS, &mode(Mode::Trap)).by, By::Builtin);
            poisoned += 1;
        }
        assert_eq!(slot.decide(&client, &add(client, 1)), Answer::Total { sum: 1, build: 1 });
    }
    // They count on: nobody's memory went with an instance that trapped.
    for client in 0..KEYS / 1_000 {
        assert_eq!(slot.decide(&client, &add(client, 1)), Answer::Total { sum: 2, build: 1 });
    }
    assert_eq!(bed.status().fallbacks, poisoned);
}

#[test]
fn failures_of_a_storm_come_as_few_events_that_count_the_rest() {
    let bed = Bed::new();
    let slot = serving(&bed, Limits { strikes_max: 1_000_000, ..Limits::default() });
    let mut events = bed.host.events();
    let start = Instant::now();
    for _ in 0..500 {
        slot.decide(&1, &mode(Mode::Trap));
    }
    let seconds = start.elapsed().as_secs() + 1;
    assert!(drain(&mut events).len() as u64 <= seconds);
    assert_eq!(bed.status().failures, 500);
}

#[test]
fn a_panic_in_the_hosts_own_step_leaves_the_slot_usable() {
    let bed = Bed::new();
    bed.host.open();
    let slot = bed
        .host
        .slot::<Counter>("fragile", PluginConfig::default(), |request: &Request, cell: &_| {
            assert!(request.add != 13, "a broken built-in");
            builtin(request, cell)
        })
        .expect("a slot");
    let panicking = slot.clone();
    let panicked = std::thread::spawn(move || panicking.decide(&1, &add(1, 13))).join();
    assert!(panicked.is_err());
    assert_eq!(slot.decide(&1, &add(1, 1)), Answer::Total { sum: 1, build: 0 });
}

#[test]
fn a_limit_out_of_range_is_refused_by_name() {
    let check = |adjust: fn(&mut Limits), expected: &str| {
        let mut limits = Limits::default();
        adjust(&mut limits);
        let bed = Bed::new();
        let config = PluginConfig { limits, ..PluginConfig::default() };
        let error = bed.host.slot::<Counter>("counter", config, builtin).err().expect("out of range");
        assert!(error.to_string().contains(expected), "{error}");
    };
    check(|limits| limits.deadline_ms = 49, "deadline_ms is 49, expected 50 to 60000");
    check(|limits| limits.strikes_max = 0, "strikes_max is 0");
    check(|limits| limits.backoff_max_ms = 999, "backoff_max_ms is 999, expected 1000");
    check(|limits| limits.memory_max_bytes = 65 << 20, "the host reserves 67108864");
}

#[test]
fn configuration_with_an_unknown_key_is_an_error() {
    let good = serde_json::json!({"plugin": "adder", "on_failure": "closed", "limits": {"deadline_ms": 60}});
    let config: PluginConfig = serde_json::from_value(good).expect("known keys");
    assert_eq!((config.on_failure, config.limits.deadline_ms), (OnFailure::Closed, 60));
    assert_eq!(config.limits.strikes_max, Limits::default().strikes_max);
    let bad = serde_json::json!({"limits": {"deadline": 60}});
    let error = serde_json::from_value::<PluginConfig>(bad).expect_err("an unknown key");
    assert!(error.to_string().contains("deadline"), "{error}");
}
