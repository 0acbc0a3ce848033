//! Strategies in virtual time, on the node's own engine: the shipped scenarios, and what must hold in any.

use std::path::{Path, PathBuf};

use serde_json::json;
use tenon::bindings::Lab;
use tenon::simulate::{Native, Outcome, Planner, Scenario, Simulation, Size, picture};
use tenon::sync::SyncState;

const SHIPPED: [&str; 4] = ["parallel-range", "sequential", "snapshot-first", "polite"];
const NO_SIZE: Size = Size { peers: None, blocks: None };

fn scenario(text: &str) -> Scenario {
    Scenario::parse(text, "test.toml").unwrap()
}

fn run(scenario: &Scenario, size: Size, seed: u64, planner: Box<dyn Planner>) -> Outcome {
    Simulation::new(scenario, size, seed, planner).unwrap().run()
}

fn builtin() -> Box<dyn Planner> {
    Box::new(Native::builtin())
}

fn component(lab: &Lab, name: &str) -> Box<dyn Planner> {
    Box::new(lab.planner(&std::fs::read(tenon_build::path(name)).unwrap(), &json!({})).unwrap())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/scenarios")
}

fn shipped(name: &str) -> Scenario {
    let path = folder().join(format!("{name}.toml"));
    Scenario::parse(&std::fs::read_to_string(&path).unwrap(), name).unwrap()
}

fn shipped_names() -> Vec<String> {
    let files = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let scenarios = files.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
    let mut names: Vec<_> = scenarios.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// As it is, but for the number of blocks and peers where that is large.
fn small(scenario: &Scenario) -> Size {
    let blocks = scenario.chain.blocks.min(8_000).max(scenario.node.start_blocks + 3_000);
    Size {
        blocks: (scenario.about.expect == SyncState::Live).then_some(blocks),
        peers: Some(scenario.about.peers.min(40)),
    }
}

#[test]
fn every_strategy_ends_each_shipped_scenario_as_it_should() {
    let lab = Lab::new().unwrap();
    let names = shipped_names();
    assert!(names.len() >= 12, "{names:?}");
    for name in names {
        let scenario = shipped(&name);
        assert!(!scenario.about.description.is_empty(), "{name}");
        let planners = SHIPPED.iter().map(|strategy| component(&lab, strategy)).chain([builtin()]);
        for planner in planners {
            let outcome = run(&scenario, small(&scenario), 1, planner);
            let Outcome { strategy, state, head, goal, problem, .. } = &outcome;
            assert!(outcome.as_expected, "{name}, {strategy}: {state:?} at {head} of {goal}, {problem:?}");
            assert_eq!((outcome.imported_twice, outcome.failed_calls), (0, 0), "{name}, {strategy}");
            assert_eq!(outcome.refused, 0, "{name}, {strategy}: {:?}", outcome.refusals);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_result_to_the_byte_and_another_one_does_not() {
    let lab = Lab::new().unwrap();
    let scenario = shipped("churn");
    let said = |seed: u64| {
        let size = Size { blocks: Some(30_000), peers: None };
        let outcomes =
            [run(&scenario, size, seed, component(&lab, "parallel-range")), run(&scenario, size, seed, builtin())];
        (serde_json::to_string(&outcomes).unwrap(), picture::draw(&outcomes, "churn"))
    };
    let once = said(7);
    assert_eq!(said(7), once);
    let other = said(8);
    assert!(other.0 != once.0 && other.1 != once.1);
}

#[test]
fn a_slow_peer_and_a_liar_take_little_from_two_good_ones() {
    let lab = Lab::new().unwrap();
    let all = shipped("slow");
    let mut good = all.clone();
    good.groups.retain(|group| group.name == "good");
    for seed in 1..=3 {
        let rate = |scenario: &Scenario, peers| {
            let outcome =
                run(scenario, Size { peers: Some(peers), blocks: None }, seed, component(&lab, "parallel-range"));
            assert!(outcome.as_expected);
            outcome.blocks_per_second as f64
        };
        let share = rate(&all, 4) / rate(&good, 2);
        println!("seed {seed}: {share:.3} of the rate of two good peers alone");
        assert!(share >= 0.9, "{share}");
    }
}

/// `snapshot-first`, for short chains.
fn eager(lab: &Lab) -> Box<dyn Planner> {
    let settings = json!({ "min_blocks": 2_000, "max_age_blocks": 5_000 });
    Box::new(lab.planner(&std::fs::read(tenon_build::path("snapshot-first")).unwrap(), &settings).unwrap())
}

#[test]
fn a_snapshot_takes_the_place_of_blocks_also_among_liars_and_blocks_come_where_it_fails() {
    let lab = Lab::new().unwrap();
    let size = Size { peers: None, blocks: Some(60_000) };
    let shipped = shipped("snapshots");
    for seed in 1..=5 {
        let with = run(&shipped, size, seed, eager(&lab));
        assert!(with.as_expected, "{seed}: {:?} at {} of {}", with.state, with.head, with.goal);
        assert_eq!(
            (with.snapshot_height, with.snapshots_failed, with.refused),
            (58_000, 0, 0),
            "{seed}: {:?}",
            with.problem
        );
        // Blocks above the snapshot, and chunks: not those below it.
        assert!(with.received_bytes < 50_000_000 * 2 + 2_000 * 400 * 3, "{}", with.received_bytes);
        assert_eq!((with.rescues, with.imported_twice), (0, 0), "{seed}");
        let without = run(&shipped, size, seed, builtin());
        assert_eq!((without.snapshot_height, without.as_expected), (0, true), "the built-in wants none");
    }
    let mut lying = shipped.clone();
    lying.groups.iter_mut().for_each(|group| group.snapshot_lies_percent = 100);
    let fails = run(&lying, size, 1, eager(&lab));
    assert!(fails.as_expected && fails.snapshots_failed >= 1, "{:?}: {:?}", fails.state, fails.problem);
    assert_eq!((fails.snapshot_height, fails.refused), (0, 0), "{:?}", fails.refusals);
}

#[test]
fn whoever_takes_over_while_a_snapshot_comes_in_it_is_taken() {
    let lab = Lab::new().unwrap();
    let scenario = shipped("snapshots");
    let size = Size { peers: None, blocks: Some(60_000) };
    let mut simulation = Simulation::new(&scenario, size, 1, eager(&lab)).unwrap();
    let mut taken_over = 0;
    for events in [30, 40, 50, 60] {
        simulation.swap_after(events, builtin());
        simulation.swap_after(events + 5, eager(&lab));
        taken_over += 2;
    }
    let outcome = simulation.run();
    assert!(outcome.as_expected, "{:?} at {} of {}", outcome.state, outcome.head, outcome.goal);
    assert_eq!((outcome.snapshot_height, outcome.refused), (58_000, 0), "{:?}", outcome.refusals);
    assert_eq!((outcome.timeline.swaps.len(), outcome.imported_twice), (taken_over, 0));
}

#[test]
fn what_the_old_system_did_wrong_is_seen() {
    let lab = Lab::new().unwrap();
    let ends = |name: &str| {
        let scenario = shipped(name);
        run(&scenario, small(&scenario), 1, component(&lab, "parallel-range"))
    };
    let wrong_way = ends("wrong-way");
    assert_eq!((wrong_way.state, wrong_way.requests, wrong_way.head), (SyncState::Ahead, 0, 5_000));
    let branch = ends("branch");
    assert_eq!((branch.state, branch.head, branch.reorganised), (SyncState::Diverged, 30_000, 0));
    let reorg = ends("reorg");
    assert_eq!((reorg.state, reorg.reorganised), (SyncState::Live, 1));
    let empty = ends("empty-ranges");
    assert!(empty.state == SyncState::Live && empty.failed > 0 && empty.wasted_bytes > 0);
    let throttled = shipped("throttled");
    let polite = run(&throttled, NO_SIZE, 1, component(&lab, "polite"));
    assert_eq!((polite.limited, polite.rescues), (0, 0));
    let greedy = run(&throttled, NO_SIZE, 1, builtin());
    assert!(greedy.limited > 0 && greedy.synced_ms > polite.synced_ms, "{:?}", greedy.synced_ms);
}

#[test]
fn a_scenario_that_cannot_be_met_ends_and_says_so() {
    let nobody = scenario("[scenario]\nend_ms = 30_000\n[chain]\nblocks = 100\n[[peers]]\nmute_at_ms = 0");
    let outcome = run(&nobody, NO_SIZE, 1, builtin());
    assert!(!outcome.as_expected && outcome.head == 0);
    assert_eq!((outcome.state, outcome.ended_ms / 1_000), (SyncState::NoSource, 30));
    for (text, peers, word) in [("[[peers]]\ncount = 9", 8, "only 8"), ("", 2_000, "one too many")] {
        let size = Size { peers: Some(peers), blocks: None };
        let error = Simulation::new(&scenario(text), size, 1, builtin()).err().unwrap();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn each_figure_of_a_sync_is_the_one_that_can_be_worked_out() {
    // One peer, 100 blocks of 1,000 bytes, one at a time on a line of 100,000 bytes a second.
    let text = "[chain]\nblocks = 100\nblock_bytes = 1_000\n[[peers]]\ncount = 1\ndistance_ms = 0\nthink_ms = 0\n\
                bandwidth = 100_000\n[sync]\nrange_blocks_max = 10\nin_flight_per_peer_max = 1";
    let outcome = run(&scenario(text), Size { peers: Some(1), blocks: None }, 1, builtin());
    assert_eq!((outcome.requests, outcome.received_bytes, outcome.wasted_bytes), (10, 100_000, 0));
    let ms = outcome.synced_ms.unwrap();
    assert!((1_000..1_100).contains(&ms), "{ms}: a second, and ten times the way");
    assert_eq!((outcome.fairness, outcome.peers_asked, outcome.requests_a_peer.median), (1.0, 1, 10));
}
