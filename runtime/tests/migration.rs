//! Memory across versions that keep it in different forms: upgraded and downgraded a key at a time, checked before.

mod support;

use proptest::prelude::*;
use serde_json::json;
use support::{
    Answer, Bed, Counter, Echo, Mode, Request, Steering, TRAPPING, Text, UNWILLING, add, await_event, builtin, drain,
    echo_builtin, mode, names,
};
use tenon_runtime::{
    By, Change, Divergence, Event, Failure, Kind, Limits, MemoryId, PluginConfig, Probation, Rollout, Slot, Stage,
    Status,
};

/// A counter slot on one shard, and so on one instance, served by a version in form 1 that does not migrate.
fn serving(adjust: impl FnOnce(&mut PluginConfig)) -> (Bed, Slot<Counter>) {
    let bed = Bed::with(|config| config.shards = 1);
    let mut config = PluginConfig::plugin("adder");
    adjust(&mut config);
    let slot = bed.serving(&Text::new("adder", 1), config);
    (bed, slot)
}

fn swap(bed: &Bed, text: &Text) -> Status {
    bed.put("adder.wasm", &text.counter());
    bed.host.reload("counter").expect("a sound version")
}

fn total(sum: u64, build: u32) -> Answer {
    Answer::Total { sum, build }
}

/// What the version that serves answers when asked for `what` with the memory of `client`.
fn told(slot: &Slot<Counter>, client: u64, what: Mode) -> u64 {
    match slot.decide(&client, &mode(what)) {
        Answer::Total { sum, .. } => sum,
        answer => panic!("{answer:?}"),
    }
}

/// Whose memory began anew, and for whom.
fn resets(events: &[Event]) -> Vec<(&str, &str)> {
    fn reset(event: &Event) -> Option<(&str, &str)> {
        match &event.change {
            Change::MemoryReset { from, to, .. } => Some((from, to)),
            _ => None,
        }
    }
    events.iter().filter_map(reset).collect()
}

fn shadow(calls: u64) -> Rollout {
    Rollout::Shadow { calls: Some(calls), seconds: None, max_divergence: 0.0, max_slowdown: 1e6 }
}

fn id(version: u32) -> MemoryId {
    MemoryId { plugin: Some("adder".into()), version }
}

#[test]
fn memory_is_upgraded_a_key_at_a_time_and_once() {
    let (bed, slot) = serving(|_| {});
    for client in 1..=3 {
        slot.decide(&client, &add(client, 10 * client));
    }
    let mut events = bed.host.events();
    swap(&bed, &Text::migrating("adder", 2, 2));
    assert_eq!(slot.decide(&1, &add(1, 5)), total(15, 2));
    assert_eq!(slot.decide(&1, &add(1, 5)), total(20, 2));
    assert_eq!(told(&slot, 1, Mode::Upgrades), 1);
    assert_eq!(slot.decide(&4, &add(4, 1)), total(1, 2), "a new key has nothing to be upgraded");
    assert_eq!(told(&slot, 4, Mode::Upgrades), 0);
    // Over a version that this one does not know: each step is the next version's own.
    swap(&bed, &Text::migrating("adder", 3, 3));
    assert_eq!(slot.decide(&1, &add(1, 1)), total(21, 3));
    assert_eq!(slot.decide(&2, &add(2, 1)), total(21, 3), "from form 1 at once");
    assert_eq!((told(&slot, 1, Mode::Upgrades), told(&slot, 2, Mode::Upgrades)), (2, 1));
    assert_eq!(resets(&drain(&mut events)), []);
    assert_eq!(bed.status().memories_lost, 0);
}

#[test]
fn a_swap_of_a_hundred_thousand_keys_migrates_none_of_them() {
    let (keys, sample) = (100_000, 64);
    let (bed, slot) = serving(|config| config.limits = Limits { memory_keys_max: 300_000, ..Limits::default() });
    for client in 1..=keys {
        slot.decide(&client, &add(client, 1_000 + client));
    }
    assert_eq!(bed.status().memory_keys as u64, keys);
    swap(&bed, &Text::migrating("adder", 2, 2));
    // A key without a memory: what its answer counts is the instance's own.
    assert_eq!(told(&slot, 0, Mode::Migrations), sample, "the check before the swap, and nothing else");
    for client in 1..=1_000 {
        assert_eq!(slot.decide(&client, &add(client, 1)), total(1_001 + client, 2));
        assert_eq!(told(&slot, 0, Mode::Migrations), sample + client);
    }
    assert_eq!(told(&slot, keys, Mode::Upgrades), 1);
    assert_eq!(told(&slot, 0, Mode::Migrations), sample + 1_001);
}

#[test]
fn a_rollback_turns_back_what_was_touched_and_nothing_else() {
    let (bed, slot) = serving(|_| {});
    for client in 1..=3 {
        slot.decide(&client, &add(client, 10));
    }
    swap(&bed, &Text::migrating("adder", 2, 2));
    for client in [1, 3] {
        assert_eq!(slot.decide(&client, &add(client, 5)), total(15, 2));
    }
    let mut events = bed.host.events();
    bed.host.roll_back("counter").expect("the version before");
    assert_eq!(slot.decide(&1, &add(1, 1)), total(16, 1));
    assert_eq!((told(&slot, 1, Mode::Upgrades), told(&slot, 1, Mode::Downgrades)), (1, 1));
    assert_eq!(slot.decide(&2, &add(2, 1)), total(11, 1));
    assert_eq!((told(&slot, 2, Mode::Upgrades), told(&slot, 2, Mode::Downgrades)), (0, 0));
    // Whatever comes later in the old form, the one that went back is kept for what it left.
    for build in 3..=5 {
        swap(&bed, &Text::new("adder", build));
    }
    assert_eq!(slot.decide(&3, &add(3, 1)), total(16, 5));
    assert_eq!(told(&slot, 3, Mode::Downgrades), 1);
    assert_eq!(resets(&drain(&mut events)), []);
    assert_eq!(bed.status().memories_lost, 0);
    bed.host.stop();
    assert_eq!(bed.host.instances(), 0);
}

#[test]
fn an_older_version_swapped_in_gets_its_form_back() {
    let (bed, slot) = serving(|_| {});
    swap(&bed, &Text::migrating("adder", 2, 2));
    for client in 1..=2 {
        slot.decide(&client, &add(client, 5));
    }
    swap(&bed, &Text::new("adder", 1));
    assert_eq!(slot.decide(&1, &add(1, 1)), total(6, 1));
    bed.host.configure("counter", json!({ "n": 1 })).expect("a swap");
    assert_eq!(slot.decide(&2, &add(2, 1)), total(6, 1));
    assert_eq!(bed.status().memories_lost, 0);
}

#[test]
fn the_newest_version_turns_back_what_an_earlier_one_left() {
    let (bed, slot) = serving(|_| {});
    swap(&bed, &Text::migrating("adder", 2, 2));
    slot.decide(&1, &add(1, 5));
    bed.host.roll_back("counter").expect("the version before");
    swap(&bed, &Text::migrating("adder", 3, 3));
    bed.host.roll_back("counter").expect("the version before");
    assert_eq!(slot.decide(&1, &add(1, 1)), total(6, 1));
    assert_eq!((told(&slot, 1, Mode::Upgrades), told(&slot, 1, Mode::Downgrades)), (1, 1));
}

#[test]
fn a_candidate_that_cannot_take_over_a_live_memory_is_rejected() {
    let check = |sum: u64, reason: &str| {
        let (bed, slot) = serving(|_| {});
        slot.decide(&1, &add(1, 1));
        slot.decide(&2, &add(2, sum));
        let mut events = bed.host.events();
        bed.put("adder.wasm", &Text::migrating("adder", 2, 2).counter());
        bed.host.reload("counter").expect_err("a memory that it cannot take over");
        let rejection = bed.status().candidate.expect("a rejected candidate");
        assert_eq!(rejection.stage, Stage::Migrate);
        assert!(rejection.reason.contains("a live memory of adder/1: "), "{rejection}");
        assert!(rejection.reason.contains(reason), "{rejection}");
        assert_eq!(names(&drain(&mut events)), ["rejected"]);
        assert_eq!(slot.ask(&2, &add(2, 1)).by, By::Generation(1));
        assert_eq!(slot.decide(&2, &add(2, 1)), total(sum + 2, 1), "the former serves on");
        let status = bed.status();
        assert_eq!((status.failures, status.memories_lost), (0, 0));
        assert_eq!(bed.host.instances(), 1, "nothing is left of the candidate");
        // What it could not take over is gone: the same bytes may come again.
        bed.host.reload("counter").expect("the memory has moved on");
        assert_eq!(slot.decide(&2, &add(2, 1)), total(sum + 3, 2));
    };
    check(UNWILLING, "no, thank you");
    check(TRAPPING, "unreachable");
}

#[test]
fn without_migration_memory_starts_anew_with_one_event_naming_both() {
    let (bed, slot) = serving(|_| {});
    for client in 1..=3 {
        slot.decide(&client, &add(client, 5));
    }
    let mut events = bed.host.events();
    swap(&bed, &Text { migrates: false, ..Text::migrating("adder", 2, 2) });
    for client in 1..=2 {
        assert_eq!(slot.decide(&client, &add(client, 1)), total(1, 2));
    }
    assert_eq!(resets(&drain(&mut events)), [("adder/1", "adder/2")]);
    assert_eq!(bed.status().memories_lost, 2);
    bed.host.roll_back("counter").expect("the version before");
    assert_eq!(slot.decide(&1, &add(1, 1)), total(1, 1));
    assert_eq!(slot.decide(&3, &add(3, 1)), total(6, 1), "never touched in between");
    assert_eq!(resets(&drain(&mut events)), [("adder/2", "adder/1")]);
}

#[test]
fn the_older_versions_migration_is_of_no_use_to_a_newer_one_without() {
    let bed = Bed::new();
    let slot = bed.serving(&Text::migrating("adder", 1, 1), PluginConfig::plugin("adder"));
    slot.decide(&1, &add(1, 5));
    let mut events = bed.host.events();
    swap(&bed, &Text { migrates: false, ..Text::migrating("adder", 2, 2) });
    assert_eq!(resets(&drain(&mut events)), [("adder/1", "adder/2")], "at the swap, before anybody misses it");
    assert_eq!(slot.decide(&1, &add(1, 1)), total(1, 2));
    assert_eq!(resets(&drain(&mut events)), []);
}

#[test]
fn a_memory_that_the_caller_keeps_is_migrated_both_ways() {
    let (bed, slot) = serving(|_| {});
    let one = slot.step(&add(1, 5), &(0, 0, 0, 0));
    assert_eq!((one.memory, &one.memory_id), ((5, 1, 0, 0), &id(1)));
    swap(&bed, &Text::migrating("adder", 2, 2));
    let two = slot.step_from(&add(1, 1), &one.memory, &one.memory_id);
    assert_eq!((two.answer, two.memory, &two.memory_id), (total(6, 2), (12, 2, 1, 0), &id(2)));
    bed.host.roll_back("counter").expect("the version before");
    let three = slot.step_from(&add(1, 1), &two.memory, &two.memory_id);
    assert_eq!((three.answer, three.memory, three.memory_id), (total(7, 1), (7, 3, 1, 1), id(1)));
    assert_eq!(bed.status().memories_lost, 0);
}

#[test]
fn a_memory_of_bytes_is_migrated_both_ways() {
    let bed = Bed::new();
    let slot = bed.host.slot::<Echo>("echo", PluginConfig::plugin("parrot"), echo_builtin).expect("a slot");
    bed.put("parrot.wasm", &Text::new("parrot", 1).echo());
    bed.host.open();
    slot.decide(&(), &"hello".into());
    bed.put("parrot.wasm", &Text::migrating("parrot", 2, 2).echo());
    bed.host.reload("echo").expect("the new version");
    assert_eq!(slot.decide(&(), &"world".into()), b"2ello");
    bed.host.roll_back("echo").expect("the version before");
    assert_eq!(slot.decide(&(), &"again".into()), b"1orld");
    assert_eq!(bed.status().memories_lost, 0);
}

#[test]
fn a_memory_on_which_the_downgrade_traps_begins_anew() {
    let (bed, slot) = serving(|_| {});
    for client in 1..=2 {
        slot.decide(&client, &add(client, 600));
    }
    swap(&bed, &Text::migrating("adder", 2, 2));
    slot.decide(&1, &add(1, TRAPPING - 600));
    slot.decide(&2, &add(2, 1));
    bed.host.roll_back("counter").expect("the version before");
    let mut events = bed.host.events();
    let decision = slot.ask(&1, &add(1, 7));
    assert_eq!((decision.answer, decision.by, decision.failure), (total(7, 1), By::Generation(1), None));
    let status = bed.status();
    assert_eq!((status.memories_lost, status.failures, status.generation_failures), (1, 1, 0));
    assert_eq!(resets(&drain(&mut events)), [("adder/2", "adder/1")]);
    assert_eq!(slot.decide(&2, &add(2, 1)), total(602, 1), "of one key, not of all");
    assert_eq!(slot.decide(&1, &add(1, 1)), total(8, 1));
}

#[test]
fn upgrades_that_fail_while_it_serves_cost_a_version_its_place() {
    let (bed, slot) = serving(|config| config.probation = Probation { failures: 2, ..Probation::default() });
    swap(&bed, &Text::migrating("adder", 2, 2));
    let mut events = bed.host.events();
    // What a caller keeps is in no sample.
    let foreign = (TRAPPING, 1, 0, 0);
    let one = slot.step_from(&add(1, 7), &foreign, &id(1));
    assert_eq!((one.answer, one.memory_id, one.failure), (total(7, 2), id(2), None));
    assert_eq!(bed.status().failures_by_cause.get("trap"), Some(&1));
    let refused = slot.step_from(&add(1, 7), &(UNWILLING, 1, 0, 0), &id(1));
    assert_eq!(refused.answer, total(7, 2));
    assert_eq!((bed.status().memories_lost, bed.status().failures), (2, 1), "to say no is not to fail");
    slot.step_from(&add(1, 7), &foreign, &id(1));
    let events = drain(&mut events);
    assert_eq!(resets(&events), [("adder/1", "adder/2")]);
    assert!(names(&events).contains(&"rolled-back"), "{:?}", names(&events));
    assert_eq!(slot.step_from(&add(1, 1), &foreign, &id(1)).answer, total(TRAPPING + 1, 1));
}

/// A slot with 100 keys, of which a sample is taken, and three with `sum` that are not in it: they were used last.
fn with_hidden(sum: u64, adjust: impl FnOnce(&mut PluginConfig)) -> (Bed, Slot<Counter>) {
    let (bed, slot) = serving(|config| {
        config.limits = Limits { memory_keys_max: 200, ..Limits::default() };
        adjust(config);
    });
    for client in 1..=100 {
        slot.decide(&client, &add(client, 1));
    }
    for client in 101..=103 {
        slot.decide(&client, &add(client, sum));
    }
    (bed, slot)
}

#[test]
fn keys_that_the_sample_missed_go_back_with_the_version_that_traps_on_them() {
    let (bed, slot) = with_hidden(TRAPPING, |_| {});
    swap(&bed, &Text::migrating("adder", 2, 2));
    assert_eq!(slot.ask(&1, &add(1, 1)).answer, total(2, 2));
    for client in 101..=102 {
        assert_eq!(slot.decide(&client, &add(client, 1)), total(1, 2), "its memory is lost");
    }
    // Two failures are the probation's end; whoever was not asked has lost nothing.
    assert_eq!(slot.decide(&103, &add(103, 1)), total(TRAPPING + 1, 1));
    assert_eq!(slot.decide(&1, &add(1, 1)), total(3, 1));
    assert_eq!(bed.status().memories_lost, 2);
}

#[test]
fn a_shadow_upgrades_what_it_compares_with() {
    let (bed, slot) = serving(|config| config.rollout = shadow(100));
    for client in 1..=10 {
        slot.decide(&client, &add(client, 10));
    }
    let mut events = bed.host.events();
    swap(&bed, &Text { build: 1, ..Text::migrating("adder", 2, 2) });
    let mut sum = 10;
    let mut seen = Vec::new();
    while !seen.contains(&"live") {
        sum += 1;
        for client in 1..=10 {
            assert_eq!(slot.decide(&client, &add(client, 1)), total(sum, 1));
        }
        seen.extend(names(&drain(&mut events)));
    }
    assert_eq!(seen, ["shadow", "live"]);
    assert_eq!(told(&slot, 1, Mode::Upgrades), 1, "the live memory, once; the shadow had its own");
    assert_eq!(bed.status().memories_lost, 0);
}

/// What the shadow of a slot has shown of `candidate`, in twenty calls whose memory the caller changes in between, as the
/// world does that a strategy's answers act on.
fn steered<K>(candidate: &Text) -> Divergence
where
    K: Kind<Key = u64, Request = Request, Answer = Answer, Memory = (u64, u64, u64, u64)>,
{
    let bed = Bed::new();
    bed.put("adder.wasm", &Text::new("adder", 1).counter());
    let never = Rollout::Shadow { calls: Some(1_000_000), seconds: None, max_divergence: 1.0, max_slowdown: 1e6 };
    let config = PluginConfig { rollout: never, ..PluginConfig::plugin("adder") };
    let slot = bed.host.slot::<K>("counter", config, builtin).expect("a slot");
    let is_another = candidate.name != "adder";
    if is_another {
        bed.put("other.wasm", &candidate.counter());
    }
    bed.host.open();
    if is_another {
        bed.host.use_plugin("counter", Some(&candidate.name)).expect("a plugin");
    } else {
        bed.put("adder.wasm", &candidate.counter());
        bed.host.reload("counter").expect("a sound version");
    }
    let mut divergence = Divergence::default();
    for call in 0..20 {
        slot.step(&add(1, 1), &(1_000 * call, 0, 0, 0));
        // One after the other: what is compared is what was asked.
        let since = std::time::Instant::now();
        while divergence.compared <= call {
            assert!(since.elapsed() < support::PATIENCE, "call {call} is not compared: {divergence:?}");
            std::thread::yield_now();
            divergence = bed.host.shadow("counter").expect("a slot").expect("a shadow");
        }
    }
    divergence
}

#[test]
fn where_answers_lead_to_what_is_asked_next_a_shadow_goes_by_the_live_memory() {
    let seen = |divergence: Divergence| (divergence.compared, divergence.divergent, divergence.by_own_memory);
    let same = Text { build: 1, version: "1.9.0".into(), ..Text::new("adder", 1) };
    assert_eq!(seen(steered::<Steering>(&same)), (20, 0, 0));
    let newer = Text { build: 1, ..Text::migrating("adder", 2, 2) };
    assert_eq!(seen(steered::<Steering>(&newer)), (20, 0, 0), "turned into its own form each time");
    // Elsewhere it goes its own way from the first call on.
    assert_eq!(seen(steered::<Counter>(&same)), (20, 19, 19));
    // What it cannot read it cannot go by, and that is said.
    let other = Text { build: 1, ..Text::new("abacus", 1) };
    assert_eq!(seen(steered::<Steering>(&other)), (20, 19, 20));
}

#[test]
fn a_shadow_that_cannot_upgrade_is_called_off_and_nothing_is_lost() {
    let (bed, slot) = with_hidden(UNWILLING, |config| config.rollout = shadow(1_000_000));
    let mut events = bed.host.events();
    swap(&bed, &Text { build: 1, ..Text::migrating("adder", 2, 2) });
    for client in 101..=103 {
        assert_eq!(slot.decide(&client, &add(client, 1)), total(UNWILLING + 1, 1));
    }
    await_event(&mut events, |event| matches!(event.change, Change::Condemned { .. }));
    let status = bed.status();
    assert_eq!((status.generation, status.memories_lost), (1, 0));
    assert_eq!(status.last_error.as_deref(), Some("a live memory of adder/1: no, thank you"));
}

#[test]
fn a_call_that_fails_leaves_the_memory_in_the_form_it_had() {
    let (bed, slot) = serving(|_| {});
    slot.decide(&7, &add(7, 5));
    swap(&bed, &Text { mode: Mode::TrapOnSeven as u32, ..Text::migrating("adder", 2, 2) });
    let decision = slot.ask(&7, &add(7, 1));
    assert!(matches!(decision.failure, Some(Failure::Trap { .. })), "{:?}", decision.failure);
    assert_eq!((decision.answer, decision.by), (total(6, 1), By::Generation(1)), "the one before finds its own");
    bed.host.roll_back("counter").expect("the version before");
    assert_eq!((told(&slot, 7, Mode::Upgrades), told(&slot, 7, Mode::Downgrades)), (0, 0));
    assert_eq!(slot.decide(&7, &add(7, 1)), total(7, 1));
}

#[test]
fn a_canary_that_goes_back_leaves_every_key_its_memory() {
    let steps = vec![50];
    let rollout = Rollout::Canary { steps, calls: 1_000_000, seconds: 0, max_slowdown: 1e6 };
    let (bed, slot) = serving(|config| config.rollout = rollout);
    let clients = 1..=40;
    for client in clients.clone() {
        slot.decide(&client, &add(client, client));
    }
    swap(&bed, &Text::migrating("adder", 2, 2));
    let mut upgraded = 0;
    for client in clients.clone() {
        let Answer::Total { sum, build } = slot.decide(&client, &add(client, 1)) else { panic!("a sum") };
        assert_eq!(sum, client + 1);
        upgraded += u32::from(build == 2);
    }
    assert!((1..40).contains(&upgraded), "{upgraded} of 40 keys");
    bed.host.roll_back("counter").expect("a trial to end");
    let mut downgraded = 0;
    for client in clients {
        assert_eq!(slot.decide(&client, &add(client, 1)), total(client + 2, 1));
        downgraded += u32::try_from(told(&slot, client, Mode::Downgrades)).expect("few");
    }
    assert_eq!(downgraded, upgraded);
    assert_eq!(bed.status().memories_lost, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_order_of_swaps_and_rollbacks_loses_what_was_counted(
        steps in proptest::collection::vec((0..8_u8, 0..4_u64, 1..10_u64), 1..60),
    ) {
        let bed = Bed::new();
        let slot = bed.serving(&Text::migrating("adder", 1, 1), PluginConfig::plugin("adder"));
        let mut sums = [0_u64; 4];
        let mut build = 1;
        for (what, client, amount) in steps {
            match what {
                0 => {
                    build += 1;
                    // Older forms come again as well.
                    swap(&bed, &Text::migrating("adder", build, 1 + (amount % 3) as u32));
                }
                // There may be nothing to go back to.
                1 => drop(bed.host.roll_back("counter")),
                _ => {
                    let sum = &mut sums[client as usize];
                    *sum += amount;
                    let Answer::Total { sum: told, .. } = slot.decide(&client, &add(client, amount)) else {
                        panic!("a sum")
                    };
                    prop_assert_eq!(told, *sum);
                }
            }
        }
        prop_assert_eq!(bed.status().memories_lost, 0);
    }
}
