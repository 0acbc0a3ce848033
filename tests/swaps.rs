//! A strategy is swapped at every event of a sync, for every other, however bad: the node comes to the same head,
//! imports no block twice, downloads again at most what was under way, and never stands still for long. On the node's
//! own engine, in virtual time; the built-in natively, the shipped ones as the components that they are.

#[path = "support/strategies.rs"]
mod strategies;

use serde_json::{Value, json};
use strategies::{Hostile, hostile};
use tenon::bindings::Lab;
use tenon::simulate::{Native, Outcome, Planner, Scenario, Simulation, Size};

/// Three peers that are not alike, one of which now and then does not answer; 2,000 blocks in small ranges, so that
/// there is something under way at every event.
const SYNC: &str = "
    [scenario]
    end_ms = 600_000
    [chain]
    blocks = 2_000
    [sync]
    range_blocks_max = 100
    window_blocks = 800
    watchdog_ms = 200
    [[peers]]
    name = \"near\"
    count = 1
    distance_ms = 3
    bandwidth = 2_000_000
    [[peers]]
    name = \"far\"
    count = 1
    distance_ms = 40
    bandwidth = 4_000_000
    [[peers]]
    name = \"shaky\"
    distance_ms = 15
    bandwidth = 1_000_000
    fails_percent = 10
";
const BLOCK_BYTES: u64 = 400;

/// The longest that a sync of so few blocks may take, whoever plans: the watchdog asks for a hundred blocks every fifth of a
/// second where nobody else does, and of a second peer after two.
const BOUND_MS: u64 = 20_000;

/// Strategies by turns: the first one begins, each other takes over after so many events.
struct Relay<'a> {
    first: Maker<'a>,
    then: Vec<(u64, Maker<'a>)>,
}

/// Makes a fresh strategy.
type Maker<'a> = &'a dyn Fn() -> Box<dyn Planner>;

impl Relay<'_> {
    fn run(&self) -> Outcome {
        let scenario = Scenario::parse(SYNC, "sync").unwrap();
        let size = Size { peers: Some(3), blocks: None };
        let mut simulation = Simulation::new(&scenario, size, 3, (self.first)()).unwrap();
        for (events, planner) in &self.then {
            simulation.swap_after(*events, planner());
        }
        let outcome = simulation.run();
        let place = || format!("{:?}", self.then.iter().map(|(events, _)| events).collect::<Vec<_>>());
        assert!(outcome.as_expected, "{}, {}: {} of {}", outcome.strategy, place(), outcome.head, outcome.goal);
        assert_eq!((outcome.head, outcome.imported_twice), (2_000, 0), "{}, {}", outcome.strategy, place());
        assert!(outcome.ended_ms <= BOUND_MS, "{}, {}: {} ms", outcome.strategy, place(), outcome.ended_ms);
        outcome
    }
}

/// The bytes that were asked for and under way when a strategy took over.
fn under_way(outcome: &Outcome) -> u64 {
    let timeline = &outcome.timeline;
    let at = |bar: &&tenon::simulate::Bar| timeline.swaps.iter().any(|swap| bar.from <= *swap && *swap <= bar.to);
    timeline.bars.iter().filter(at).map(|bar| bar.blocks * BLOCK_BYTES).sum()
}

fn builtin() -> Box<dyn Planner> {
    Box::new(Native::builtin())
}

/// What one strategy's events are when nobody takes over.
fn events(first: Maker<'_>) -> (u64, Outcome) {
    let outcome = Relay { first, then: Vec::new() }.run();
    (outcome.events, outcome)
}

#[test]
fn the_builtin_takes_over_from_itself_at_every_event_and_nothing_is_fetched_twice() {
    let (count, alone) = events(&builtin);
    assert!(count > 100, "{count} events");
    let (mut swaps, mut wasted) = (0, 0);
    for event in 1..=count {
        let outcome = Relay { first: &builtin, then: vec![(event, &builtin)] }.run();
        assert!(outcome.wasted_bytes <= alone.wasted_bytes + under_way(&outcome), "event {event}: {outcome:?}");
        swaps += outcome.timeline.swaps.len();
        wasted += outcome.wasted_bytes;
    }
    println!(
        "{count} events, a sync for each, {swaps} swaps: {wasted} bytes wasted, {} without a swap",
        alone.wasted_bytes
    );
}

#[test]
fn whoever_takes_over_at_whatever_event_the_head_is_reached() {
    let (count, _) = events(&builtin);
    let mut syncs = 0;
    for hostile @ Hostile { name, .. } in hostile() {
        let hostile = || hostile.planner();
        let mut longest = 0;
        for event in 1..=count {
            let away = Relay { first: &builtin, then: vec![(event, &hostile)] }.run();
            longest = longest.max(away.ended_ms);
            syncs += 1;
        }
        println!("{name}: {count} syncs, the longest took {longest} ms");
    }
    println!("{syncs} syncs in all");
}

#[test]
fn what_a_hostile_strategy_leaves_behind_keeps_nobody_from_going_on() {
    let mut syncs = 0;
    for hostile @ Hostile { name, .. } in hostile() {
        let hostile = || hostile.planner();
        let (count, alone) = events(&hostile);
        let mut after = Vec::new();
        for event in (1..count).step_by(usize::try_from(count / 60 + 1).unwrap()) {
            let outcome = Relay { first: &hostile, then: vec![(event, &builtin)] }.run();
            let took_over_ms = outcome.timeline.swaps[0].ms_since(tenon::simulate::START);
            after.push(outcome.ended_ms - took_over_ms);
            syncs += 1;
        }
        let longest = after.iter().max().unwrap();
        println!("{name}: alone {} ms; {} syncs, the longest {longest} ms after the swap", alone.ended_ms, after.len());
        // It may have cost every peer its points, and those are left alone for half a minute.
        assert!(*longest <= 60_000, "{name}: {longest}");
    }
    println!("{syncs} syncs in all");
}

#[test]
fn two_swaps_anywhere_are_no_worse_than_one() {
    let (count, _) = events(&builtin);
    let (mut dice, mut syncs) = (7_u64, 0);
    let mut below = |most: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % most
    };
    for _ in 0..300 {
        let (one, other) = (1 + below(count), 1 + below(count));
        let hostile = hostile()[usize::try_from(below(7)).unwrap()];
        let hostile = || hostile.planner();
        let then: Vec<(u64, Maker<'_>)> = vec![(one.min(other), &hostile), (one.max(other), &builtin)];
        Relay { first: &builtin, then }.run();
        syncs += 1;
    }
    println!("{syncs} syncs with two swaps each");
}

/// A component of ours by name, with a configuration.
fn component(lab: &Lab, name: &str, settings: &Value) -> Box<dyn Planner> {
    Box::new(lab.planner(&std::fs::read(tenon_build::path(name)).unwrap(), settings).unwrap())
}

#[test]
fn the_shipped_components_take_over_from_each_other_at_sampled_events() {
    let lab = Lab::new().unwrap();
    let names = ["parallel-range", "sequential", "snapshot-first", "polite"];
    let mut syncs = 0;
    for from in names {
        let first = || component(&lab, from, &json!({}));
        let (count, alone) = events(&first);
        for to in names {
            let second = || component(&lab, to, &json!({}));
            for event in (1..count).step_by(usize::try_from(count / 8 + 1).unwrap()) {
                let outcome = Relay { first: &first, then: vec![(event, &second)] }.run();
                assert_eq!((outcome.failed_calls, outcome.refused), (0, 0), "{from} to {to}: {:?}", outcome.refusals);
                // The lowest range, and what a slow peer still holds in the end, may be asked of a second one.
                let hedged = 2 * 100 * BLOCK_BYTES;
                let most = alone.wasted_bytes + under_way(&outcome) + hedged;
                assert!(outcome.wasted_bytes <= most, "{from} to {to} at {event}: {}", outcome.wasted_bytes);
                syncs += 1;
            }
        }
    }
    println!("{syncs} syncs, each with a component taken over from by another");
}

#[test]
fn components_that_trap_spin_flood_and_lie_take_over_at_sampled_events() {
    let lab = Lab::new().unwrap();
    let modes = [
        ("idle", 12),
        ("wait-for-ever", 4),
        ("panic", 12),
        ("spin", 2),
        ("hoard", 2),
        ("recurse", 3),
        ("unknown-peer", 4),
        ("too-long", 4),
        ("beyond-window", 4),
        ("below-head", 4),
        ("reversed", 4),
        ("everything", 4),
        ("repeat", 6),
        ("flood", 3),
        ("cancel-unknown", 4),
        ("cancel-all", 8),
        ("penalty-huge", 4),
        ("drop-all", 8),
        ("unknown-snapshot", 4),
        ("report-huge", 3),
        ("memory-huge", 3),
        ("flood-log", 2),
    ];
    let (count, _) = events(&builtin);
    let mut syncs = 0;
    for (mode, samples) in modes {
        let faulty = || component(&lab, "faults-sync", &json!({ "mode": mode }));
        let mut longest = 0;
        for sample in 0..samples {
            let outcome = Relay { first: &builtin, then: vec![(1 + sample * count / samples, &faulty)] }.run();
            longest = longest.max(outcome.ended_ms);
            syncs += 1;
        }
        println!("{mode}: {samples} syncs, the longest took {longest} ms");
    }
    println!("{syncs} syncs in all");
}
