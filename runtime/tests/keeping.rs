//! A kind that never forgets: a memory that a version cannot read stays as it was, until one that can is back or an operator
//! gives it up.

mod support;

use support::{Answer, Bed, Keeper, Mode, TRAPPING, Text, UNWILLING, add, await_event, builtin, drain, mode, names};
use tenon_runtime::{
    By, Change, ControlError, Failure, Limits, MemoryId, OnFailure, PluginConfig, Probation, Rollout, Slot, Step,
};

type Cell = (u64, u64, u64, u64);

fn slot(bed: &Bed, adjust: impl FnOnce(&mut PluginConfig)) -> Slot<Keeper> {
    let mut config = PluginConfig::plugin("adder");
    adjust(&mut config);
    let slot = bed.host.slot::<Keeper>("counter", config, builtin).expect("a slot");
    bed.host.open();
    slot
}

/// A version in a newer form that nobody told how to read the older one.
fn forgetful(build: u32) -> Text {
    Text { memory_version: 2, form: 2, ..Text::new("adder", build) }
}

fn swap(bed: &Bed, text: &Text) {
    bed.put("adder.wasm", &text.counter());
    bed.host.reload("counter").expect("a sound version");
}

fn id(version: u32) -> MemoryId {
    MemoryId { plugin: Some("adder".into()), version }
}

fn total(sum: u64, build: u32) -> Answer {
    Answer::Total { sum, build }
}

/// One more, for the memory that the caller keeps and its owner.
fn step(slot: &Slot<Keeper>, kept: &mut (Cell, MemoryId)) -> Step<Keeper> {
    let step = slot.step_from(&add(1, 1), &kept.0, &kept.1);
    *kept = (step.memory, step.memory_id.clone());
    step
}

fn unreadable(of: &str, reason: &str) -> Failure {
    Failure::Unreadable { of: of.into(), reason: reason.into() }
}

const NO_MIGRATION: &str = "the newer version does not export the migration interface";
const NOBODY: &str = "no version that knows it and exports the migration interface is left";

#[test]
fn what_a_new_version_cannot_read_the_one_before_answers_until_it_is_back() {
    let bed = Bed::new();
    bed.put("adder.wasm", &Text::new("adder", 1).counter());
    let slot = slot(&bed, |config| config.probation = Probation { failures: 2, ..Probation::default() });
    let mut kept = ((41, 3, 0, 0), id(1));
    assert_eq!(step(&slot, &mut kept).answer, total(42, 1));
    let mut events = bed.host.events();
    swap(&bed, &forgetful(2));
    let told = drain(&mut events);
    assert_eq!(names(&told), ["live", "memory-kept"]);
    let kept_of = Change::MemoryKept { from: "adder/1".into(), to: "adder/2".into(), reason: NO_MIGRATION.into() };
    assert_eq!(told[1].change, kept_of);
    let first = step(&slot, &mut kept);
    assert_eq!((first.answer, first.by), (total(43, 1), By::Generation(1)));
    assert_eq!(first.failure, Some(unreadable("adder/1", NO_MIGRATION)));
    // It is asked where there is nothing to lose: an empty memory, and none of its own plugin.
    assert_eq!(slot.step_from(&add(1, 7), &Cell::default(), &id(1)).answer, total(7, 2));
    assert_eq!(slot.step_from(&add(1, 7), &Cell::default(), &MemoryId::BUILTIN).answer, total(7, 2));
    assert_eq!(slot.generation(), 2);
    // The second such call is the end of its probation.
    assert_eq!(step(&slot, &mut kept).answer, total(44, 1));
    assert_eq!(slot.generation(), 1);
    let third = step(&slot, &mut kept);
    assert_eq!((third.answer, third.failure, kept.1), (total(45, 1), None, id(1)));
    let status = bed.status();
    assert_eq!((status.memories_lost, status.failures, status.rescues), (0, 2, 2));
    assert_eq!(status.failures_by_cause.get("unreadable"), Some(&2));
    assert!(matches!(bed.host.reload("counter"), Err(ControlError::Rejected(_))), "its bytes are condemned");
}

#[test]
fn where_no_version_can_read_it_the_builtin_stands_in_and_the_memory_stays_until_it_is_given_up() {
    let bed = Bed::new();
    bed.put("adder.wasm", &forgetful(2).counter());
    let slot = slot(&bed, |_| {});
    let mut kept = ((41, 3, 0, 0), id(1));
    let before = kept.clone();
    for calls in 1..=20 {
        let step = step(&slot, &mut kept);
        assert_eq!((step.answer, step.by), (total(1, 0), By::Builtin));
        assert_eq!(step.failure, Some(unreadable("adder/1", NO_MIGRATION)));
        assert!(slot.is_attended() && !step.unattended, "there is a plugin, though not for this memory");
        assert_eq!(kept, before);
        assert_eq!((bed.status().generation_failures, bed.status().memories_lost), (calls, 0));
    }
    // It has done no wrong: it is not paused, and serves what it can read.
    assert_eq!(slot.step_from(&add(1, 2), &(10, 0, 0, 0), &id(2)).answer, total(7, 2));

    let mut events = bed.host.events();
    bed.host.promote("counter", true).expect("the operator gives it up");
    let step = step(&slot, &mut kept);
    assert_eq!((step.answer, step.by, step.failure), (total(1, 2), By::Generation(2), None));
    assert_eq!(kept.1, id(2));
    assert_eq!(bed.status().memories_lost, 1);
    assert!(names(&drain(&mut events)).contains(&"memory-reset"));
}

#[test]
fn one_memory_that_will_not_turn_stays_and_the_others_go_on() {
    let bed = Bed::new();
    bed.put("adder.wasm", &Text::migrating("adder", 2, 2).counter());
    let slot = slot(&bed, |_| {});
    for (sum, reason) in [(UNWILLING, "no, thank you"), (TRAPPING, "unreachable")] {
        let mut kept = ((sum, 1, 0, 0), id(1));
        let refused = step(&slot, &mut kept);
        assert_eq!((refused.by, &kept), (By::Builtin, &((sum, 1, 0, 0), id(1))));
        let failure = refused.failure.expect("it cannot be read");
        assert_eq!(failure.cause(), "unreadable");
        assert!(failure.to_string().contains(reason), "{failure}");
        let mut other = ((5, 1, 0, 0), id(1));
        assert_eq!((step(&slot, &mut other).answer, other.1), (total(6, 2), id(2)));
    }
    // A trap is counted as what it is, and once.
    let status = bed.status();
    assert_eq!((status.failures, status.failures_by_cause.get("trap")), (2, Some(&1)));
    assert_eq!(status.failures_by_cause.get("unreadable"), Some(&1));
}

#[test]
fn an_older_version_that_cannot_be_given_a_newer_memory_back_leaves_it() {
    let bed = Bed::new();
    bed.put("adder.wasm", &Text::new("adder", 1).counter());
    let slot = slot(&bed, |_| {});
    let mut kept = ((41, 3, 0, 0), id(2));
    let step = step(&slot, &mut kept);
    assert_eq!((step.by, step.failure), (By::Builtin, Some(unreadable("adder/2", NOBODY))));
    assert_eq!(kept, ((41, 3, 0, 0), id(2)));
    // Its own version comes back.
    swap(&bed, &Text::migrating("adder", 2, 2));
    assert_eq!(slot.step_from(&add(1, 1), &(40, 3, 0, 0), &id(2)).answer, total(21, 2));
}

#[test]
fn another_plugin_begins_anew_as_it_was_asked_to() {
    let bed = Bed::new();
    bed.put("adder.wasm", &Text::new("adder", 1).counter());
    bed.put("other.wasm", &Text::new("other", 5).counter());
    let slot = slot(&bed, |_| {});
    let mut kept = ((41, 3, 0, 0), id(1));
    step(&slot, &mut kept);
    bed.host.use_plugin("counter", None).expect("the built-in");
    assert!(!slot.is_attended() && step(&slot, &mut kept).unattended);
    bed.host.use_plugin("counter", Some("other")).expect("another plugin");
    assert!(slot.is_attended());
    let step = step(&slot, &mut kept);
    assert_eq!((step.answer, step.failure, bed.status().memories_lost), (total(1, 5), None, 1));
}

#[test]
fn a_candidate_that_cannot_read_the_memory_never_goes_live() {
    let trials = [
        Rollout::Shadow { calls: Some(1_000_000), seconds: None, max_divergence: 1.0, max_slowdown: 1e6 },
        Rollout::Canary { steps: vec![50, 100], calls: 1_000_000, seconds: 600, max_slowdown: 1e6 },
    ];
    for rollout in trials {
        let bed = Bed::new();
        bed.put("adder.wasm", &Text::new("adder", 1).counter());
        let slot = slot(&bed, |config| config.rollout = rollout.clone());
        let mut kept = ((41, 3, 0, 0), id(1));
        let mut events = bed.host.events();
        swap(&bed, &forgetful(2));
        for calls in 1..=40 {
            let step = step(&slot, &mut kept);
            assert_eq!((step.answer, step.by), (total(41 + calls, 1), By::Generation(1)), "{rollout:?}");
        }
        await_event(&mut events, |event| matches!(event.change, Change::Condemned { .. }));
        assert_eq!((slot.generation(), bed.status().memories_lost), (1, 0), "{rollout:?}");
        assert!(bed.status().last_error.is_some_and(|error| error.contains(NO_MIGRATION)), "{rollout:?}");
    }
}

#[test]
fn a_candidate_that_is_promoted_by_force_begins_anew() {
    let bed = Bed::new();
    bed.put("adder.wasm", &Text::new("adder", 1).counter());
    let rollout = Rollout::Shadow { calls: Some(1_000_000), seconds: None, max_divergence: 1.0, max_slowdown: 1e6 };
    let slot = slot(&bed, |config| config.rollout = rollout);
    swap(&bed, &forgetful(2));
    bed.host.promote("counter", true).expect("it is on trial");
    let mut kept = ((41, 3, 0, 0), id(1));
    assert_eq!((step(&slot, &mut kept).answer, kept.1), (total(1, 2), id(2)));
    assert_eq!((slot.generation(), bed.status().memories_lost), (2, 1));
}

#[test]
fn a_key_whose_memory_the_slot_keeps_is_kept_as_well() {
    let bed = Bed::new();
    bed.put("adder.wasm", &Text::new("adder", 1).counter());
    let slot = slot(&bed, |config| {
        config.on_failure = OnFailure::Closed;
        config.limits = Limits { strikes_max: 1, ..Limits::default() };
        config.probation = Probation { failures: 100, ..Probation::default() };
    });
    slot.decide(&1, &add(1, 5));
    swap(&bed, &forgetful(2));
    for sum in 6..10 {
        let decision = slot.ask(&1, &add(1, 1));
        assert_eq!((decision.answer, decision.by), (total(sum, 1), By::Generation(1)));
        assert_eq!(decision.failure, Some(unreadable("adder/1", NO_MIGRATION)));
    }
    assert_eq!(slot.ask(&2, &add(2, 1)).answer, total(1, 2), "a key that is new");
    assert_eq!(slot.ask(&1, &mode(Mode::Trap)).by, By::Policy, "neither can answer that");
    assert_eq!(bed.status().memories_lost, 0);
}
