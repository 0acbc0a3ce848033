//! Every state that a machine can be in, and the steps from each.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::*;

fn digest(letter: u8) -> Digest {
    Digest::of(&[letter])
}

fn probed(letter: u8, mode: Rollout, forced: bool) -> Input {
    configured(letter, 0, mode, forced)
}

/// The same component with one of several configurations.
fn configured(letter: u8, number: u8, mode: Rollout, forced: bool) -> Input {
    Input::Probed { plugin: "p".to_owned(), digest: digest(letter), settings: settings(number), mode, forced }
}

fn settings(number: u8) -> ConfigDigest {
    ConfigDigest::of(&serde_json::json!({ "n": number }))
}

fn shadow() -> Rollout {
    Rollout::Shadow { calls: Some(10), seconds: None, max_divergence: 0.1, max_slowdown: 2.0 }
}

fn canary() -> Rollout {
    Rollout::Canary { steps: vec![10, 100], calls: 10, seconds: 0, max_slowdown: 2.0 }
}

fn evidence(calls: u64, divergent: u64, slowdown: Option<f64>) -> Evidence {
    Evidence { calls, divergent, failures: 0, slowdown }
}

fn tick(trial: Evidence, live: Evidence) -> Input {
    Input::Tick { trial, live }
}

/// Everything that can happen to a machine: these candidates in each mode, by force or not; every verdict of a trial and
/// of a probation; failures of whoever there is; orders.
fn inputs(machine: &Machine, candidates: &[(u8, u8)]) -> Vec<Input> {
    let mut inputs = Vec::new();
    for &(letter, number) in candidates {
        for mode in [Rollout::Immediate, shadow(), canary()] {
            inputs.push(configured(letter, number, mode.clone(), false));
            inputs.push(configured(letter, number, mode, true));
        }
    }
    let none = Evidence::default();
    for trial in [none, evidence(1_000, 0, None), evidence(1_000, 500, None), evidence(1_000, 0, Some(3.0))] {
        inputs.push(tick(trial, none));
    }
    inputs.push(tick(none, evidence(1_000, 0, Some(100.0))));
    let picture = machine.picture();
    let numbers = [picture.live, picture.previous, picture.trial.map(Trial::generation), Some(0)];
    inputs.extend(numbers.into_iter().flatten().map(|generation| Input::Failed { generation }));
    inputs.push(Input::Promote);
    inputs.push(Input::Rollback { reason: "asked".to_owned() });
    inputs.push(Input::Condemn { reason: "harm".to_owned() });
    inputs.push(Input::Remove { reason: "gone".to_owned() });
    inputs
}

/// What of a machine decides how it goes on: numbers and times only as far as they do.
fn essence(machine: &Machine, now_ms: u64) -> String {
    let running = |running: &Running| {
        let watched = running.watched.map(|watched| (watched.failures, now_ms < watched.until_ms));
        (running.digest, running.settings, watched)
    };
    let trial = machine.trial.as_ref().map(|trial| {
        let mode = matches!(trial.mode, Rollout::Shadow { .. });
        (trial.running.digest, trial.running.settings, mode, trial.step, trial.failures, trial.calls_before > 0)
    });
    let quarantined: BTreeSet<_> = machine.quarantined.keys().collect();
    let (live, previous) = (machine.live.as_ref().map(running), machine.previous.as_ref().map(running));
    let configurations: BTreeSet<_> = machine.configurations.iter().map(|one| (one.digest, one.settings)).collect();
    format!("{live:?} {previous:?} {trial:?} {quarantined:?} {configurations:?}")
}

/// The ways that one number may go.
fn may_follow(before: Option<Phase>, after: Phase) -> bool {
    use Phase::*;
    match before {
        None => matches!(after, Shadow | Canary | Live),
        Some(Shadow) => matches!(after, Live | Rejected | Quarantined),
        Some(Canary) => matches!(after, Canary | Live | Rejected | Quarantined),
        Some(Live) => matches!(after, Previous | Retired | Rejected | Quarantined),
        Some(Previous) => matches!(after, Live | Retired | Quarantined),
        Some(_) => false,
    }
}

/// Every state that any order of events leads to, and every step from each of them.
#[test]
fn whatever_happens_exactly_one_generation_answers_and_the_way_back_is_open() {
    every_state(&[(b'a', 0), (b'b', 0), (b'c', 0)]);
}

#[test]
fn so_it_is_with_several_configurations_of_the_same_bytes() {
    every_state(&[(b'a', 0), (b'a', 1), (b'b', 0)]);
}

/// From every state that these components, each with its configuration, lead to.
fn every_state(candidates: &[(u8, u8)]) {
    let mut seen = HashSet::new();
    let mut open = vec![(Machine::new(Probation { seconds: 60, failures: 2, max_slowdown: 10.0 }), 0_u64)];
    let (mut steps_taken, mut rollbacks, mut promotions, mut undone_again) = (0, 0, 0, 0);
    while let Some((machine, now_ms)) = open.pop() {
        if !seen.insert(essence(&machine, now_ms)) {
            continue;
        }
        restarts(&machine, now_ms);
        for input in inputs(&machine, candidates) {
            // At once, and after every probation is over.
            for later_ms in [0, 61_000] {
                let (before, now_ms) = (machine.picture(), now_ms + later_ms);
                let mut after = machine.clone();
                let phases: HashMap<u64, Phase> =
                    machine.history.iter().map(|step| (step.generation, step.phase)).collect();
                let steps = after.apply(input.clone(), now_ms);
                steps_taken += 1;
                let told = || format!("{input:?} after {later_ms} ms on {machine:?}");
                let Ok(steps) = steps else {
                    assert_eq!(after.picture(), before, "refused, so nothing changed: {}", told());
                    continue;
                };
                let picture = after.picture();
                let numbers = [picture.live, picture.previous, picture.trial.map(Trial::generation)];
                let numbers: Vec<u64> = numbers.into_iter().flatten().collect();
                assert_eq!(numbers.iter().collect::<HashSet<_>>().len(), numbers.len(), "one role each: {}", told());
                if before.live.is_some() && !matches!(input, Input::Remove { .. }) {
                    assert!(picture.live.is_some(), "somebody answers on: {}", told());
                }
                assert!(picture.previous.is_none() || picture.live.is_some(), "{}", told());
                let watched = after.live.as_ref().is_some_and(|live| live.watched.is_some());
                assert!(!watched || picture.previous.is_some(), "watched, with nothing to go back to: {}", told());
                let on_trial = after.trial.as_ref().map(|trial| &trial.running);
                for running in [&after.live, &after.previous].into_iter().flatten().chain(on_trial) {
                    let refused = after.config_quarantine(running.digest, running.settings);
                    assert_eq!(refused, None, "its configuration is quarantined: {}", told());
                    assert!(!after.quarantined.contains_key(&running.digest), "quarantined and serving: {}", told());
                }
                if let Input::Failed { generation } = input {
                    if before.live == Some(generation) && picture.live != before.live {
                        assert_eq!(picture.live, before.previous, "back to what was before: {}", told());
                        rollbacks += 1;
                    }
                    assert!(steps.len() <= 3, "{}", told());
                }
                if matches!(input, Input::Promote) {
                    assert_eq!(picture.live, before.trial.map(Trial::generation), "{}", told());
                    assert_eq!(picture.previous, before.live, "the way back is open: {}", told());
                    promotions += 1;
                }
                assert_eq!(picture == before, steps.is_empty(), "whatever changes is told: {}", told());
                let mut phases = phases;
                for step in &steps {
                    let former = phases.insert(step.generation, step.phase);
                    assert!(may_follow(former, step.phase), "{former:?} to {:?}: {}", step.phase, told());
                }
                // What is told and what is so agree.
                for number in &numbers {
                    let expected: &[Phase] = match () {
                        () if picture.live == Some(*number) => &[Phase::Live],
                        () if picture.previous == Some(*number) => &[Phase::Previous],
                        () => &[Phase::Shadow, Phase::Canary],
                    };
                    assert!(expected.contains(&phases[number]), "{number} is {:?}: {}", phases[number], told());
                }
                // What was rolled back or called off is not taken again as it was, but by force.
                let undone = match input {
                    Input::Rollback { .. } => {
                        let before = machine.trial.as_ref().map(|trial| &trial.running).or(machine.live.as_ref());
                        before.map(|bad| (bad.digest, bad.settings))
                    }
                    _ => None,
                };
                let serves = |(digest, settings)| {
                    let is_same = |running: &Running| (running.digest, running.settings) == (digest, settings);
                    [&after.live, &after.previous].into_iter().flatten().any(is_same)
                };
                if let Some((digest, settings)) = undone.filter(|pair| !serves(*pair)) {
                    let again = |forced| Input::Probed {
                        plugin: "p".to_owned(),
                        digest,
                        settings,
                        mode: Rollout::Immediate,
                        forced,
                    };
                    assert!(after.clone().apply(again(false), now_ms).is_err(), "taken again: {}", told());
                    assert!(after.clone().apply(again(true), now_ms).is_ok(), "{}", told());
                    undone_again += 1;
                }
                // Long runs must not push what serves out of the history.
                if after.history.len() > 40 {
                    let keep: HashSet<u64> = numbers.iter().copied().collect();
                    after.history.retain(|step| keep.contains(&step.generation));
                }
                open.push((after, now_ms));
            }
        }
    }
    assert!(seen.len() > 500 && rollbacks > 50 && promotions > 50, "{} states, {steps_taken} steps", seen.len());
    assert!(undone_again > 50, "{undone_again}");
}

/// After a stop and after a crash: what is quarantined stays so, and the history only grows. At most the generation that
/// was live gets a line of its own, and the start one.
fn restarts(machine: &Machine, now_ms: u64) {
    for stops in [true, false] {
        let mut stopped = machine.clone();
        if stops {
            stopped.stop(now_ms);
            // What the built-ins then take over is not told.
            stopped.apply(Input::Remove { reason: "stopped".to_owned() }, now_ms).unwrap();
        }
        let mut restarted = Machine::new(machine.probation.clone());
        restarted.restore(&stopped.kept(), now_ms + 1);
        assert_eq!(restarted.quarantined, machine.quarantined);
        assert_eq!(restarted.configurations, machine.configurations);
        let steps: Vec<_> = restarted.history().collect();
        let added = &steps[machine.history.len()..];
        assert!(machine.history.iter().eq(steps[..machine.history.len()].iter().copied()), "rewritten");
        let told: Vec<_> = added.iter().map(|step| (step.generation, step.phase, step.at_ms)).collect();
        let ended_ms = if stops { now_ms } else { now_ms + 1 };
        let ended = machine.picture().live.map(|live| (live, Phase::Retired, ended_ms));
        let started = (!steps.is_empty()).then_some((0, Phase::Started, now_ms + 1));
        assert_eq!(told, ended.into_iter().chain(started).collect::<Vec<_>>());
    }
}

#[test]
fn a_stop_ends_what_serves_however_long_ago_it_went_live() {
    let mut machine = Machine::new(Probation::default());
    machine.apply(probed(b'a', Rollout::Immediate, false), 0).unwrap();
    for at_ms in 0..2 * HISTORY_MAX as u64 {
        machine.rejected("p", digest(b'b'), Phase::Compiled, "no answer".to_owned(), at_ms);
    }
    machine.stop(9_000);
    let last = machine.history().last().unwrap();
    assert_eq!((last.generation, last.phase, last.at_ms), (1, Phase::Retired, 9_000));
    assert_eq!(machine.history().count(), HISTORY_MAX);
}

#[test]
fn a_configuration_that_was_rolled_back_is_not_taken_again_with_the_same_bytes() {
    let mut machine = Machine::new(Probation::default());
    machine.apply(configured(b'a', 1, Rollout::Immediate, false), 0).unwrap();
    machine.apply(configured(b'a', 2, Rollout::Immediate, false), 1).unwrap();
    machine.apply(Input::Rollback { reason: "asked".to_owned() }, 2).unwrap();
    assert_eq!(machine.picture().live, Some(1));
    let kept = serde_json::to_string(&machine.kept()).unwrap();
    let mut machine = Machine::new(Probation::default());
    machine.restore(&serde_json::from_str(&kept).unwrap(), 3);
    let refused = machine.apply(configured(b'a', 2, Rollout::Immediate, false), 4).unwrap_err();
    assert_eq!(refused, Refused::ConfigQuarantined("asked".to_owned()));
    // Other bytes, another configuration, or an operator who insists.
    for (letter, number, forced) in [(b'b', 2, false), (b'a', 3, false), (b'a', 2, true), (b'a', 2, false)] {
        machine.apply(configured(letter, number, Rollout::Immediate, forced), 5).unwrap();
    }
}

#[test]
fn what_an_older_version_kept_is_read() {
    let digest = digest(b'a');
    let kept = format!(
        r#"{{"quarantined":{{"{digest}":"harm"}},"history":[{{"generation":1,"plugin":"p","digest":"{digest}",
            "phase":"live","reason":null,"at_ms":5}}]}}"#
    );
    let kept: Kept = serde_json::from_str(&kept).unwrap();
    assert_eq!((kept.history[0].digest, kept.history[0].configuration), (Some(digest), None));
    assert_eq!(kept.quarantined.len(), 1);
}

#[test]
fn what_an_operator_took_back_is_known_as_that_by_what_was_kept_of_any_version() {
    let settings = |number: u8| ConfigDigest::of(&serde_json::json!({ "n": number }));
    let kept = |reason: &str| {
        let (bytes, other) = (digest(b'a'), digest(b'b'));
        let (of_config, configuration) = (digest(b'c'), serde_json::to_value(settings(1)).unwrap());
        let kept = serde_json::json!({
            "quarantined": { bytes.to_string(): reason, other.to_string(): "an operator took it back to harm" },
            "configurations": [{ "digest": of_config, "settings": configuration, "reason": reason }],
        });
        serde_json::from_value::<Kept>(kept).unwrap()
    };
    let is_taken_back = |kept: &Kept| {
        let mut machine = Machine::new(Probation::default());
        machine.restore(kept, 1);
        let known = [(b'a', 1), (b'c', 1), (b'b', 1), (b'c', 2), (b'd', 1)]
            .map(|(letter, number)| machine.is_taken_back(digest(letter), settings(number)));
        (known, machine.kept())
    };
    let by_hand = [true, true, false, false, false];
    for reason in [BY_HAND, "an operator took it back"] {
        let (known, again) = is_taken_back(&kept(reason));
        assert_eq!(known, by_hand, "{reason}");
        // And from what is kept now, whatever the words.
        let text = serde_json::to_string(&again).unwrap().replace(reason, "words");
        assert_eq!(is_taken_back(&serde_json::from_str(&text).unwrap()).0, by_hand, "{text}");
    }
    assert_eq!(is_taken_back(&kept("it failed")).0, [false; 5]);
}

#[test]
fn configurations_are_told_apart_whatever_the_order_of_their_keys() {
    let of = |text: &str| ConfigDigest::of(&serde_json::from_str(text).unwrap());
    assert_eq!(of(r#"{"a":1,"b":{"d":2,"c":3}}"#), of(r#"{ "b": {"c":3, "d":2}, "a": 1 }"#));
    assert_ne!(of(r#"{"a":1}"#), of(r#"{"a":2}"#));
    assert_eq!((of("{}").to_string(), of("null").to_string()), ("default".to_owned(), "default".to_owned()));
    for digest in [of("{}"), of(r#"{"a":1}"#)] {
        let text = serde_json::to_string(&digest).unwrap();
        assert_eq!(serde_json::from_str::<ConfigDigest>(&text).unwrap(), digest);
    }
}

#[test]
fn a_shadow_that_agrees_goes_live_and_one_that_differs_is_quarantined() {
    let mut machine = Machine::new(Probation::default());
    machine.apply(probed(b'a', Rollout::Immediate, false), 0).unwrap();
    machine.apply(probed(b'b', shadow(), false), 1).unwrap();
    assert_eq!(machine.picture().trial, Some(Trial::Shadow(2)));
    let none = Evidence::default();
    assert!(machine.apply(tick(evidence(9, 0, None), none), 2).unwrap().is_empty(), "not yet");
    machine.apply(tick(evidence(10, 1, None), none), 3).unwrap();
    assert_eq!(machine.picture(), Picture { live: Some(2), previous: Some(1), trial: None });
    machine.apply(probed(b'c', shadow(), false), 4).unwrap();
    // More than it could make good: no need to wait for the rest.
    machine.apply(tick(evidence(5, 2, None), none), 5).unwrap();
    assert_eq!(machine.picture().trial, None);
    assert_eq!(machine.quarantine(digest(b'c')), Some("2 of 5 answers differ"));
    let refused = machine.apply(probed(b'c', shadow(), false), 6).unwrap_err();
    assert!(refused.to_string().contains("2 of 5 answers differ"));
    machine.apply(probed(b'c', Rollout::Immediate, true), 7).unwrap();
    assert_eq!((machine.picture().live, machine.quarantine(digest(b'c'))), (Some(4), None));
}

#[test]
fn a_canary_takes_every_step_and_each_takes_its_calls() {
    let mut machine = Machine::new(Probation::default());
    machine.apply(probed(b'a', Rollout::Immediate, false), 0).unwrap();
    machine.apply(probed(b'b', canary(), false), 0).unwrap();
    let none = Evidence::default();
    assert_eq!(machine.picture().trial, Some(Trial::Canary(2, 10)));
    machine.apply(tick(evidence(10, 0, None), none), 1).unwrap();
    assert_eq!(machine.picture().trial, Some(Trial::Canary(2, 100)));
    assert!(machine.apply(tick(evidence(19, 0, None), none), 2).unwrap().is_empty());
    machine.apply(tick(evidence(20, 0, None), none), 3).unwrap();
    assert_eq!(machine.picture(), Picture { live: Some(2), previous: Some(1), trial: None });
}

#[test]
fn numbers_out_of_range_are_named() {
    let canary = |steps: &[u8], calls| Rollout::Canary { steps: steps.to_vec(), calls, seconds: 0, max_slowdown: 2.0 };
    for (rollout, named) in [
        (canary(&[], 1), "steps"),
        (canary(&[10, 1], 1), "steps"),
        (canary(&[0], 1), "steps"),
        (canary(&[101], 1), "steps"),
        (canary(&[1], 0), "calls"),
        (Rollout::Shadow { calls: Some(0), seconds: None, max_divergence: 0.0, max_slowdown: 2.0 }, "calls"),
        (Rollout::Shadow { calls: None, seconds: None, max_divergence: 1.1, max_slowdown: 2.0 }, "max_divergence"),
        (Rollout::Shadow { calls: None, seconds: None, max_divergence: 0.0, max_slowdown: 0.5 }, "max_slowdown"),
    ] {
        assert!(rollout.check().unwrap_err().contains(named), "{rollout:?}");
    }
    assert!(canary(&[1, 10, 100], 1).check().is_ok());
    assert!(Probation { failures: 0, ..Probation::default() }.check().unwrap_err().contains("failures"));
}
