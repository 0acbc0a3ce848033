//! The way of a new version to live and back, with components that run.

mod support;

use serde_json::json;
use support::{Answer, Bed, Mode, Request, Text, add, await_event, builtin, drain, names};
use tenon_runtime::{
    By, Change, Condition, Event, HostConfig, Limits, Phase, PluginConfig, Probation, Role, Rollout, Slot, Stage,
};
use tokio::sync::broadcast;

/// A version of the counter that is like any other but for its version and what goes wrong with it.
fn version(number: u32, fault: Mode) -> Text {
    Text { version: format!("1.{number}.0"), mode: fault as u32, ..Text::new("adder", 1) }
}

fn shadow(calls: u64, max_divergence: f64) -> Rollout {
    Rollout::Shadow { calls: Some(calls), seconds: None, max_divergence, max_slowdown: 1e6 }
}

fn canary(steps: &[u8], calls: u64) -> Rollout {
    Rollout::Canary { steps: steps.to_vec(), calls, seconds: 0, max_slowdown: 1e6 }
}

fn config(rollout: Rollout) -> PluginConfig {
    let probation = Probation { max_slowdown: 1e6, ..Probation::default() };
    PluginConfig { rollout, probation, ..support::patient("adder") }
}

/// New bytes of the plugin, taken by a look at the directory.
fn offer(bed: &Bed, text: &Text) {
    bed.put("adder.wasm", &text.counter());
    let _ = bed.host.reload("counter");
}

/// Asks for clients in turns until an event comes that ends it; each answer must be `expected` for its sum.
fn ask_until(
    slot: &Slot<support::Counter>,
    sums: &mut [u64],
    events: &mut broadcast::Receiver<Event>,
    mut ends: impl FnMut(&Change) -> bool,
) -> Vec<Event> {
    let mut seen = Vec::new();
    for turn in 0_u64.. {
        let client = turn % sums.len() as u64;
        sums[client as usize] += 1;
        let sum = sums[client as usize];
        let answer = slot.ask(&client, &add(client, 1)).answer;
        assert_eq!(answer, Answer::Total { sum, build: 1 }, "client {client}");
        let new = drain(events);
        let over = new.iter().any(|event| ends(&event.change));
        seen.extend(new);
        if over {
            break;
        }
    }
    seen
}

fn phases(bed: &Bed) -> Vec<(u64, Phase)> {
    let history = bed.host.history("counter").expect("the slot");
    history.iter().map(|step| (step.generation, step.phase)).collect()
}

#[test]
fn a_shadow_that_agrees_goes_live_and_nobody_notices() {
    let bed = Bed::new();
    let slot = bed.serving(&version(1, Mode::Count), config(shadow(500, 0.0)));
    let mut events = bed.host.events();
    offer(&bed, &version(2, Mode::Count));
    assert_eq!(slot.generation(), 1, "it decides nothing yet");
    assert_eq!(bed.status().generations.iter().map(|one| one.role).collect::<Vec<_>>(), [Role::Live, Role::Shadow]);
    let seen = ask_until(&slot, &mut [0; 20], &mut events, |change| matches!(change, Change::Live { .. }));
    assert_eq!(names(&seen), ["shadow", "live"]);
    let shown = bed.host.shadow("counter").expect("the slot").expect("what it came to");
    assert!(shown.compared >= 500, "{shown:?}");
    assert_eq!((shown.divergent, shown.failures, shown.groups.len()), (0, 0, 0));
    assert_eq!(slot.generation(), 2);
    assert_eq!(phases(&bed), [(1, Phase::Live), (2, Phase::Shadow), (1, Phase::Previous), (2, Phase::Live)]);
}

#[test]
fn a_known_set_of_disagreements_is_what_is_reported() {
    let bed = Bed::new();
    let slot = bed.serving(&version(1, Mode::Count), config(shadow(1_000_000, 1.0)));
    offer(&bed, &version(2, Mode::Disagree));
    for _ in 0..10 {
        for client in 0..50 {
            slot.decide(&client, &add(client, 1));
        }
    }
    // All that was asked is compared, or was dropped and counted.
    let shown = loop {
        let shown = bed.host.shadow("counter").expect("the slot").expect("a shadow");
        if shown.compared + shown.dropped == 500 {
            break shown;
        }
        std::thread::yield_now();
    };
    assert_eq!((shown.dropped, shown.divergent, shown.failures), (0, 30, 0));
    let [group] = &shown.groups[..] else { panic!("one way to differ: {shown:?}") };
    assert_eq!((group.live.as_str(), group.candidate.as_str(), group.count, group.keys), ("total", "total", 30, 3));
    assert_eq!(
        group.fields.iter().map(|(field, count)| (field.as_str(), *count)).collect::<Vec<_>>(),
        [("Total.sum", 30)]
    );
    let keys: Vec<u64> = group.examples.iter().filter_map(|example| example.key.as_u64()).collect();
    assert!(!keys.is_empty() && keys.iter().all(|key| (7..=9).contains(key)), "{keys:?}");
}

#[test]
fn a_shadow_that_differs_too_often_is_called_off_and_not_taken_again() {
    let bed = Bed::new();
    let slot = bed.serving(&version(1, Mode::Count), config(shadow(200, 0.01)));
    let (mut events, mut sums) = (bed.host.events(), [0; 20]);
    let bad = version(2, Mode::Disagree);
    offer(&bed, &bad);
    let seen = ask_until(&slot, &mut sums, &mut events, |change| matches!(change, Change::Condemned { .. }));
    assert_eq!(names(&seen), ["shadow", "condemned"]);
    assert_eq!(slot.generation(), 1);
    let rejection = bed.host.reload("counter").expect_err("the same bytes").to_string();
    assert!(rejection.contains("quarantine") && rejection.contains("answers differ"), "{rejection}");
    // Its bytes change, and it gets its chance.
    offer(&bed, &version(3, Mode::Count));
    ask_until(&slot, &mut sums, &mut events, |change| matches!(change, Change::Live { .. }));
    assert_eq!(bed.status().version.as_deref(), Some("1.3.0"));
    // An operator who insists is obeyed.
    offer(&bed, &bad);
    assert_eq!(bed.status().version.as_deref(), Some("1.3.0"));
    bed.host.promote("counter", true).expect("by force");
    assert_eq!(bed.status().version.as_deref(), Some("1.2.0"));
    assert_eq!(slot.ask(&7, &add(7, 0)).answer, Answer::Total { sum: sums[7] + 1, build: 1 }, "as it is");
}

#[test]
fn a_shadow_that_traps_hurts_nobody() {
    let bed = Bed::new();
    let slot = bed.serving(&version(1, Mode::Count), config(shadow(100_000, 1.0)));
    let mut events = bed.host.events();
    offer(&bed, &version(2, Mode::TrapOnSeven));
    let seen = ask_until(&slot, &mut [0; 20], &mut events, |change| matches!(change, Change::Condemned { .. }));
    assert_eq!(names(&seen), ["shadow", "condemned"]);
    let status = bed.status();
    assert_eq!((status.generation, status.failures, status.fallbacks), (1, 0, 0));
}

#[test]
fn a_candidate_on_trial_is_promoted_or_called_off_by_hand() {
    let bed = Bed::new();
    let slot = bed.serving(&version(1, Mode::Count), config(shadow(1_000_000, 0.0)));
    let mut events = bed.host.events();
    assert!(bed.host.promote("counter", false).expect_err("nothing there").to_string().contains("nothing is on trial"));
    assert!(bed.host.roll_back("counter").expect_err("nothing there").to_string().contains("no earlier generation"));
    offer(&bed, &version(2, Mode::Count));
    assert_eq!(bed.host.promote("counter", false).expect("on trial").generation, 2);
    offer(&bed, &version(3, Mode::Count));
    assert_eq!(
        bed.host.roll_back("counter").expect("on trial").generation,
        2,
        "the candidate goes, the live one stays"
    );
    assert_eq!(bed.status().generations.iter().map(|one| one.role).collect::<Vec<_>>(), [Role::Live, Role::Previous]);
    assert_eq!(bed.host.roll_back("counter").expect("a step back").generation, 1);
    assert_eq!(slot.generation(), 1);
    // Both steps back are known for what an operator ordered: nobody need be told.
    assert!(bed.status().by_hand);
    let mut by_hand = Vec::new();
    while let Ok(event) = events.try_recv() {
        by_hand.extend(match event.change {
            Change::RolledBack { by_hand, .. } => Some(("rolled-back", by_hand)),
            Change::Condemned { by_hand, .. } => Some(("condemned", by_hand)),
            _ => None,
        });
    }
    by_hand.sort_unstable();
    by_hand.dedup();
    assert_eq!(by_hand, [("condemned", true), ("rolled-back", true)]);
}

#[test]
fn a_canary_answers_its_share_of_the_keys_and_then_all() {
    let bed = Bed::new();
    let slot = bed.serving(&version(1, Mode::Count), config(canary(&[20, 60], 300)));
    let mut events = bed.host.events();
    offer(&bed, &version(2, Mode::Count));
    let mut sums = [0; 100];
    let by = |slot: &Slot<support::Counter>, sums: &mut [u64; 100]| -> Vec<bool> {
        let mut ask = |client: u64| {
            sums[client as usize] += 1;
            slot.ask(&client, &add(client, 1)).by == By::Generation(2)
        };
        (0..100).map(&mut ask).collect()
    };
    let first = by(&slot, &mut sums);
    let share = first.iter().filter(|canary| **canary).count();
    assert!((5..40).contains(&share), "{share} of 100 keys at 20 %");
    assert_eq!(by(&slot, &mut sums), first, "a key stays where it is");
    ask_until(&slot, &mut sums, &mut events, |change| *change == Change::Canary { percent: 60 });
    let second = by(&slot, &mut sums);
    assert!(first.iter().zip(&second).all(|(before, after)| !before || *after), "who was among them stays so");
    ask_until(&slot, &mut sums, &mut events, |change| matches!(change, Change::Live { .. }));
    assert!(by(&slot, &mut sums).iter().all(|new| *new));
}

#[test]
fn a_canary_that_traps_goes_and_every_call_is_answered_by_the_live_one() {
    let bed = Bed::new();
    let slot = bed.serving(&version(1, Mode::Count), config(canary(&[50], 1_000_000)));
    let mut events = bed.host.events();
    offer(&bed, &version(2, Mode::TrapFromTen));
    ask_until(&slot, &mut [0; 20], &mut events, |change| matches!(change, Change::Condemned { .. }));
    let status = bed.status();
    assert_eq!((status.generation, status.fallbacks), (1, 0));
    assert_eq!((status.failures, status.rescues), (2, 2), "each failed call was answered by the live generation");
}

/// A version goes live at once and turns out to be bad; callers see nothing of it.
fn rolled_back(fault: Mode) {
    let bed = Bed::new();
    let slot = bed.serving(&version(1, Mode::Count), config(Rollout::Immediate));
    let mut events = bed.host.events();
    let mut sums = [0; 20];
    for client in 0..20 {
        slot.decide(&client, &add(client, 5));
        sums[client as usize] = 5;
    }
    let bad = version(2, fault);
    offer(&bed, &bad);
    assert_eq!(slot.generation(), 2);
    let seen = ask_until(&slot, &mut sums, &mut events, |change| matches!(change, Change::RolledBack { .. }));
    assert!(names(&seen).starts_with(&["live"]), "{:?}", names(&seen));
    let status = bed.status();
    assert_eq!((status.generation, status.fallbacks), (1, 0), "no call fell back to the built-in");
    assert_eq!((status.failures, status.rescues), (2, 2), "within two failed calls, each answered by the one before");
    let steps = phases(&bed);
    assert!(steps.ends_with(&[(2, Phase::Quarantined), (1, Phase::Live)]), "{steps:?}");
    // Still there after a restart, and what served well stands in for what lies in the directory.
    let dirs = bed.shut_down();
    let bed = Bed::again(dirs, |_| {});
    let slot = bed.counter(config(Rollout::Immediate));
    let report = bed.host.open();
    assert_eq!(report.rejected.iter().map(|rejection| rejection.stage).collect::<Vec<_>>(), [Stage::Quarantine]);
    assert_eq!(slot.ask(&1, &add(1, 1)).by, By::Generation(1));
    assert_eq!(bed.status().version.as_deref(), Some("1.1.0"));
    assert!(phases(&bed).contains(&(2, Phase::Quarantined)), "its history is there, too");
}

#[test]
fn a_version_that_traps_from_some_call_on_is_rolled_back() {
    rolled_back(Mode::TrapFromTen);
}

#[test]
fn a_version_that_traps_on_one_key_is_rolled_back() {
    rolled_back(Mode::TrapOnSeven);
}

#[test]
fn a_version_that_leaks_memory_is_rolled_back() {
    rolled_back(Mode::Leak);
}

#[test]
fn a_version_that_stood_its_probation_is_not_rolled_back_but_one_subject_is_set_aside() {
    let bed = Bed::new();
    let mut config = config(Rollout::Immediate);
    config.probation.seconds = 0;
    let slot = bed.serving(&version(1, Mode::Count), config);
    let mut events = bed.host.events();
    offer(&bed, &version(2, Mode::TrapOnSeven));
    let mut sums = [0; 20];
    ask_until(&slot, &mut sums, &mut events, |change| matches!(change, Change::SetAside { subject: 7, .. }));
    let failures = bed.status().failures;
    assert_eq!((bed.status().generation, failures), (2, 2));
    for _ in 0..50 {
        for client in 0..20 {
            sums[client as usize] += 1;
            let decision = slot.ask(&client, &add(client, 1));
            let by = if client == 7 { By::Generation(1) } else { By::Generation(2) };
            assert_eq!(decision.answer, Answer::Total { sum: sums[client as usize], build: 1 });
            assert_eq!((decision.by, decision.failure), (by, None), "client {client}");
        }
    }
    assert_eq!(bed.status().failures, failures, "it is not even asked");
    assert_eq!(bed.status().generations[0].subjects_aside, 1);
}

#[test]
fn a_sweep_of_poison_keys_trips_the_plugin_and_not_the_keys() {
    let bed = Bed::new();
    let limits = Limits {
        subjects_aside_max: 8,
        strikes_max: 1_000_000,
        backoff_min_ms: 3_600_000,
        backoff_max_ms: 3_600_000,
        ..Limits::default()
    };
    let slot = bed.serving(&version(1, Mode::TrapFromHundred), PluginConfig { limits, ..config(Rollout::Immediate) });
    let mut asked = 0;
    for client in 100.. {
        for _ in 0..2 {
            assert_eq!(slot.ask(&client, &add(client, 1)).by, By::Builtin);
            // Others are well.
            if bed.status().status == Condition::Live {
                assert_eq!(slot.ask(&1, &add(1, 1)).by, By::Generation(1));
            }
        }
        asked += 1;
        if bed.status().status == Condition::Quarantined {
            break;
        }
    }
    assert_eq!(asked, 9, "one subject more than may be set aside");
    assert_eq!(slot.ask(&1, &add(1, 1)).by, By::Builtin);
}

#[test]
fn a_configuration_that_does_harm_does_not_condemn_the_bytes() {
    let bed = Bed::new();
    let slot = bed.serving(&version(1, Mode::Count), config(shadow(1_000_000, 0.0)));
    bed.host.configure("counter", json!({"n": 1})).expect("on trial");
    bed.host.roll_back("counter").expect("called off");
    bed.host.configure("counter", json!({"n": 2})).expect("the same bytes may try again");
    assert_eq!(bed.host.promote("counter", false).expect("on trial").settings, json!({"n": 2}));
    assert_eq!(slot.generation(), 3);
}

/// The configuration `{"n": number}`, in a slot with this rollout.
fn configured(number: u64, rollout: &Rollout) -> PluginConfig {
    PluginConfig { settings: json!({ "n": number }), ..config(rollout.clone()) }
}

#[test]
fn a_configuration_that_was_rolled_back_is_not_taken_at_the_next_start_either() {
    for rollout in [Rollout::Immediate, shadow(1_000_000, 0.0)] {
        let bed = Bed::new();
        bed.serving(&version(1, Mode::Count), configured(1, &rollout));
        bed.host.configure("counter", json!({ "n": 2 })).expect("both fit");
        if rollout != Rollout::Immediate {
            bed.host.promote("counter", false).expect("on trial");
        }
        let status = bed.host.roll_back("counter").expect("a step back");
        assert_eq!(status.settings, json!({ "n": 1 }));
        let again = bed.host.configure("counter", json!({ "n": 2 })).expect_err("it was rolled back").to_string();
        assert!(again.contains("quarantine") && again.contains("change its configuration"), "{again}");
        let bed = Bed::again(bed.shut_down(), |_| {});
        bed.counter(configured(2, &rollout));
        let stages: Vec<_> = bed.host.open().rejected.iter().map(|rejection| rejection.stage).collect();
        assert_eq!(stages, [Stage::Quarantine], "{rollout:?}");
        let status = bed.status();
        assert_eq!((status.settings, status.generations.len()), (json!({ "n": 1 }), 1), "{rollout:?}");
        assert!(status.refused.is_some_and(|reason| reason.contains("an operator took it back")));
        assert!(bed.host.roll_back("counter").is_err(), "never back to what was rolled back");
        // Until an operator insists.
        assert_eq!(bed.host.promote("counter", true).expect("by force").settings, json!({ "n": 2 }));
        assert_eq!(bed.status().refused, None);
    }
}

#[test]
fn what_an_operator_took_back_under_an_older_version_is_no_fault_of_the_plugin() {
    // New bytes, and a new configuration of the same.
    for new in [None, Some(version(2, Mode::Count))] {
        let number = if new.is_some() { 1 } else { 2 };
        let bed = Bed::new();
        bed.serving(&version(1, Mode::Count), configured(1, &Rollout::Immediate));
        match &new {
            Some(text) => offer(&bed, text),
            None => drop(bed.host.configure("counter", json!({ "n": 2 })).expect("both fit")),
        }
        bed.host.roll_back("counter").expect("a step back");
        let dirs = bed.shut_down();
        let path = dirs.path().join("state/record.json");
        let text = std::fs::read_to_string(&path).expect("the record");
        let mut record: serde_json::Value =
            serde_json::from_str(&text.replace(" back by hand", " back")).expect("JSON");
        let machine = record["slots"]["counter"]["machine"].as_object_mut().expect("the machine");
        machine.remove("by_hand").expect("a field of this version");
        for configuration in machine["configurations"].as_array_mut().expect("a list") {
            configuration.as_object_mut().expect("one").remove("by_hand").expect("a field of this version");
        }
        std::fs::write(&path, record.to_string()).expect("writing");
        let bed = Bed::again(dirs, |_| {});
        bed.counter(configured(number, &Rollout::Immediate));
        bed.host.open();
        let status = bed.status();
        assert!(status.refused.is_some_and(|reason| reason.contains("an operator took it back;")));
        assert!(status.by_hand);
    }
}

#[test]
fn what_was_changed_while_the_node_was_down_proves_itself_as_any_other() {
    for (number, text) in [(2, version(1, Mode::Count)), (1, version(2, Mode::Count)), (2, version(2, Mode::Count))] {
        let rollout = shadow(1_000_000, 0.0);
        let bed = Bed::new();
        bed.serving(&version(1, Mode::Count), configured(1, &rollout));
        let dirs = bed.shut_down();
        let bed = Bed::again(dirs, |_| {});
        bed.put("adder.wasm", &text.counter());
        bed.counter(configured(number, &rollout));
        assert_eq!(bed.host.open().rejected, []);
        let status = bed.status();
        assert_eq!(status.generations.iter().map(|one| one.role).collect::<Vec<_>>(), [Role::Live, Role::Shadow]);
        assert_eq!((status.version.as_deref(), status.settings), (Some("1.1.0"), json!({ "n": 1 })));
        assert_eq!(status.refused, None, "it is on its way");
        let status = bed.host.promote("counter", false).expect("on trial");
        let wanted = format!("1.{}.0", if text.version == "1.1.0" { 1 } else { 2 });
        assert_eq!((status.version, status.settings), (Some(wanted), json!({ "n": number })));
    }
    // Where everything goes live at once, this does.
    let bed = Bed::new();
    bed.serving(&version(1, Mode::Count), configured(1, &Rollout::Immediate));
    let bed = Bed::again(bed.shut_down(), |_| {});
    bed.counter(configured(2, &Rollout::Immediate));
    bed.host.open();
    assert_eq!((bed.status().settings, bed.status().generation), (json!({ "n": 2 }), 1));
}

#[test]
fn a_record_without_configurations_is_one_of_an_older_version() {
    let rollout = shadow(1_000_000, 0.0);
    let bed = Bed::new();
    bed.serving(&version(1, Mode::Count), configured(1, &rollout));
    let dirs = bed.shut_down();
    let path = dirs.path().join("state/record.json");
    let mut record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).expect("the record")).expect("JSON");
    let slot = &mut record["slots"]["counter"];
    let forgotten = slot["good"].as_object_mut().expect("what served").remove("settings");
    assert_eq!(forgotten, Some(json!({ "n": 1 })));
    slot["machine"].as_object_mut().expect("the machine").remove("configurations");
    std::fs::write(&path, record.to_string()).expect("writing");
    let bed = Bed::again(dirs, |_| {});
    bed.counter(configured(2, &rollout));
    assert_eq!(bed.host.open().rejected, []);
    // What it served with is not known: what is wanted is taken to be that.
    let status = bed.status();
    assert_eq!((status.settings, status.generations.len()), (json!({ "n": 2 }), 1));
}

#[test]
fn the_history_goes_on_below_a_restart() {
    let bed = Bed::new();
    bed.serving(&version(1, Mode::Count), config(Rollout::Immediate));
    offer(&bed, &version(2, Mode::Count));
    bed.host.configure("counter", json!({ "n": 2 })).expect("a swap");
    let before = bed.host.history("counter").expect("the slot");
    assert_eq!(before.iter().map(|step| step.phase).filter(|phase| *phase == Phase::Live).count(), 3);
    let configurations: Vec<String> = before.iter().filter_map(|step| Some(step.configuration?.to_string())).collect();
    assert_eq!((configurations[0].as_str(), configurations.len()), ("default", before.len()));
    assert_ne!(configurations[before.len() - 1], "default");
    let bed = Bed::again(bed.shut_down(), |_| {});
    bed.counter(config(Rollout::Immediate));
    bed.host.open();
    let after = bed.host.history("counter").expect("the slot");
    assert_eq!(after[..before.len()], before, "nothing is rewritten");
    let new: Vec<_> = after[before.len()..].iter().map(|step| (step.generation, step.phase)).collect();
    assert_eq!(new, [(3, Phase::Retired), (0, Phase::Started), (1, Phase::Live)]);
    assert_eq!(after[before.len()].reason.as_deref(), Some("the node stopped"));
}

#[test]
fn what_is_wanted_and_does_not_serve_is_told_until_it_does() {
    let bed = Bed::new();
    bed.put("adder.wasm", b"nonsense");
    bed.counter(config(shadow(1_000_000, 0.0)));
    bed.host.open();
    let told = |part: &str| {
        let refused = bed.status().refused.expect("it does not serve");
        assert!(refused.contains(part), "{part}: {refused}");
    };
    told("adder.wasm is refused: ");
    let bad = Text { configure: 1, ..version(1, Mode::Count) };
    offer(&bed, &bad);
    told("configure");
    offer(&bed, &version(1, Mode::Count));
    assert_eq!((bed.status().generation, bed.status().refused), (1, None));
    // A candidate that is called off; what serves is then not what is wanted.
    offer(&bed, &version(2, Mode::Count));
    assert_eq!(bed.status().refused, None, "on its way");
    bed.host.roll_back("counter").expect("called off");
    told("an operator took it back");
    // An order that is refused changes nothing about that: what was there before is wanted again, and serves.
    offer(&bed, &version(1, Mode::Count));
    assert_eq!(bed.status().refused, None);
    assert!(bed.host.use_plugin("counter", Some("no-such")).is_err());
    assert_eq!(bed.status().refused, None);
    bed.put("other.wasm", &Text { configure: 1, ..Text::new("other", 1) }.counter());
    bed.host.reload("counter").expect("sound");
    assert!(bed.host.use_plugin("counter", Some("other")).is_err());
    assert_eq!(bed.status().refused, None);
}

#[test]
fn an_order_that_is_refused_says_nothing_about_what_is_wanted() {
    let bed = Bed::new();
    bed.put("other.wasm", &Text { configure: 1, ..Text::new("other", 1) }.counter());
    let slot = bed.serving(&version(1, Mode::Count), config(Rollout::Immediate));
    // What is wanted and does not serve stays told, in its own words, and by whose hand.
    bed.host.configure("counter", json!({ "n": 2 })).expect("sound");
    bed.host.roll_back("counter").expect("a step back");
    let before = bed.status();
    assert!(before.by_hand && before.refused.is_some());
    assert!(bed.host.use_plugin("counter", Some("other")).is_err());
    assert_eq!((bed.status().refused, bed.status().by_hand), (before.refused, true));
    // What is wanted serves: a configuration that is not taken, another plugin and one that is not there change nothing.
    let generation = bed.host.configure("counter", json!({ "n": 3 })).expect("sound").generation;
    assert_eq!(bed.status().refused, None);
    assert!(bed.host.configure("counter", json!({ "n": 2 })).is_err());
    assert_eq!(bed.status().refused, None);
    assert!(bed.status().candidate.is_some(), "what became of the order is there to see");
    assert!(bed.host.use_plugin("counter", Some("other")).is_err());
    assert!(bed.host.use_plugin("counter", Some("no-such")).is_err());
    assert_eq!((bed.status().refused, slot.generation()), (None, generation));
    // Where the built-in is wanted, it serves.
    bed.host.use_plugin("counter", None).expect("the built-in");
    assert!(bed.host.use_plugin("counter", Some("other")).is_err());
    assert_eq!((bed.status().refused, slot.generation()), (None, 0));
}

#[test]
fn what_an_operator_wants_in_vain_is_told_until_something_is_taken_or_it_is_wanted_no_more() {
    let bed = Bed::new();
    bed.serving(&version(1, Mode::Count), config(Rollout::Immediate));
    let wants = |reason: Option<&str>| bed.host.wanted_in_vain("counter", reason.map(str::to_owned)).expect("the slot");
    wants(Some("no such plugin"));
    assert_eq!(bed.status().refused.as_deref(), Some("no such plugin"));
    assert!(bed.host.use_plugin("counter", Some("other")).is_err(), "it changes nothing");
    assert_eq!(bed.status().refused.as_deref(), Some("no such plugin"));
    wants(None);
    assert_eq!(bed.status().refused, None);
    wants(Some("no such plugin"));
    bed.host.configure("counter", json!({ "n": 2 })).expect("sound");
    assert_eq!(bed.status().refused, None);
    // It hides what was to tell before, and by whose hand, and no more than that.
    bed.host.roll_back("counter").expect("a step back");
    wants(Some("no such plugin"));
    assert!(!bed.status().by_hand);
    wants(None);
    assert!(bed.status().by_hand && bed.status().refused.is_some());
    assert!(bed.host.wanted_in_vain("no-such", None).is_err());
}

#[test]
fn what_lies_damaged_on_disk_is_put_aside_and_the_host_starts() {
    let bed = Bed::new();
    bed.serving(&version(1, Mode::Count), config(Rollout::Immediate));
    let mut dirs = bed.shut_down();
    let record = dirs.path().join("state/record.json");
    let whole = std::fs::read(&record).expect("the record");
    for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&record, &whole[..cut]).expect("cutting");
        let bed = Bed::again(dirs, |_| {});
        let slot = bed.counter(config(Rollout::Immediate));
        assert_eq!(bed.host.open().rejected, []);
        assert_eq!(slot.generation(), 1);
        assert!(bed.state().join("record.json.damaged").exists());
        dirs = bed.shut_down();
    }
    // One with a field missing is one of an older version.
    std::fs::write(&record, "{\"slots\":{\"counter\":{}}}").expect("writing");
    let bed = Bed::again(dirs, |_| {});
    bed.counter(config(Rollout::Immediate));
    assert_eq!(bed.host.open().rejected, []);
}

/// Two slots whose plugins switch together.
fn set_bed() -> (Bed, Slot<support::Counter>, Slot<support::Counter>) {
    let bed = Bed::with(|config: &mut HostConfig| {
        config.sets = vec![vec!["left".to_owned(), "right".to_owned()]];
    });
    bed.put("left.wasm", &Text::new("left", 1).counter());
    bed.put("right.wasm", &Text::new("right", 1).counter());
    let slot = |name: &str| bed.host.slot(name, support::patient(name), builtin).expect("a slot");
    let (left, right) = (slot("left"), slot("right"));
    assert_eq!(bed.host.open().rejected, []);
    (bed, left, right)
}

fn build(slot: &Slot<support::Counter>, client: u64) -> u32 {
    match slot.ask(&client, &Request { client, ..Request::default() }).answer {
        Answer::Total { build, .. } => build,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_set_goes_live_at_one_instant() {
    let (bed, left, right) = set_bed();
    std::thread::scope(|scope| {
        // Reads right before left: whoever sees the new right must see the new left.
        let reader = scope.spawn(|| {
            let mut seen = 1;
            while seen < 40 {
                let (second, first) = (build(&right, 1), build(&left, 1));
                assert!(first >= second, "right is {second} while left still is {first}");
                seen = second;
            }
        });
        for number in 2..=40 {
            bed.put("left.wasm", &Text::new("left", number).counter());
            bed.put("right.wasm", &Text::new("right", number).counter());
            // One look at both, whichever slot is named.
            bed.host.reload(if number % 2 == 0 { "left" } else { "right" }).expect("both are good");
        }
        reader.join().expect("never one without the other");
    });
}

#[test]
fn none_of_a_set_goes_live_when_one_is_bad() {
    let (bed, left, right) = set_bed();
    bed.put("left.wasm", &Text::new("left", 2).counter());
    bed.put("right.wasm", &Text { configure: 1, ..Text::new("right", 2) }.counter());
    let mut events = bed.host.events();
    bed.host.watch().expect("a watch");
    let rejected = |event: &Event| matches!(event.change, Change::Rejected { .. });
    let both = [await_event(&mut events, rejected), await_event(&mut events, rejected)];
    let mut stages: Vec<_> = both
        .iter()
        .map(|event| match &event.change {
            Change::Rejected { stage, reason, .. } => (event.slot.clone().unwrap_or_default(), *stage, reason.clone()),
            other => panic!("{other:?}"),
        })
        .collect();
    stages.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!((stages[0].0.as_str(), stages[0].1), ("left", Stage::Set));
    assert!(stages[0].2.contains("right"), "{stages:?}");
    assert_eq!((stages[1].0.as_str(), stages[1].1), ("right", Stage::Configure));
    assert_eq!((build(&left, 1), build(&right, 1)), (1, 1));
}
