//! Two valid branches: which one a node ends on, by its policy.

use std::cmp::Reverse;

use proptest::prelude::*;

use super::super::{Command, Engine, Fetched, JobDone, Look, Wake};
use super::network::START;
use super::network::{Branch, Fork, Model, Nature, Network, Plans, hash};
use super::{config, model};
use crate::chain::{BlockError, Hash, Head, Height, VerifiedBlock, verify};
use crate::sample::Sample;
use crate::sync::opinion::SCORE_MAX;
use crate::sync::peers::Origin;
use crate::sync::source::SourceInfo;
use crate::sync::{OnDivergence, SyncConfig, SyncState};

const MAIN: Height = 400;

/// A node at the head of the main chain, and a peer with a fork that leaves it `depth` below and has `more` blocks more.
fn forked(seed: u64, config: SyncConfig, nature: fn(Branch) -> Nature, depth: Height, more: i64) -> Network {
    let mut network = Network::new(seed, MAIN, Plans::OnePeer, config);
    network.forks.push(Fork { after: MAIN - depth, height: MAIN.checked_add_signed(more).unwrap() });
    network.join(0, model("main", Nature::Honest));
    assert!(network.run(60_000, |network| network.engine.head().height == MAIN));
    network.leave(0, "main");
    network.run(1, |_| false);
    network.join(0, model("fork", nature(1)));
    network
}

fn on(policy: OnDivergence) -> SyncConfig {
    SyncConfig { on_divergence: policy, ..config() }
}

fn ends_at(network: &mut Network, height: Height, branch: Branch) -> bool {
    let (height, hash) = (height, hash(height, branch));
    network.run(120_000, |network| {
        let head = network.engine.head();
        (head.height, head.hash) == (height, hash) && network.is_idle()
    })
}

#[test]
fn a_longer_branch_is_taken_and_followed_to_its_head() {
    for (depth, more) in [(1, 1), (1, 500), (20, 1), (100, 300), (256, 3)] {
        let mut network = forked(1, on(OnDivergence::Reorg), Nature::Forked, depth, more);
        assert!(ends_at(&mut network, MAIN + more as u64, 1), "{depth} {more}: {:#?}", network.status);
        assert_eq!(network.switches, 1, "{depth} {more}");
        assert!(network.run(10_000, |network| network.status.state == SyncState::Live), "{:#?}", network.status);
        let status = &network.status;
        assert_eq!((&status.diverged, status.diverged_since, &status.problem), (&None, None, &None));
        assert_eq!((status.peers[0].score, status.failed_requests), (SCORE_MAX, 0), "{status:#?}");
        assert_eq!(network.engine.budget().used(), 0);
    }
}

#[test]
fn a_race_at_the_head_is_settled_at_once() {
    for announced in [false, true] {
        let mut network = forked(9, on(OnDivergence::Reorg), Nature::Forked, 1, if announced { -1 } else { 1 });
        if announced {
            network.run(10_000, |_| false);
            network.forks[0].height = MAIN + 1;
            let peer = network.engine.peers().iter().next().unwrap().id;
            network.announce(peer, (MAIN + 1, hash(MAIN + 1, 1)));
        }
        let since = network.now;
        assert!(ends_at(&mut network, MAIN + 1, 1), "{:#?}", network.status);
        let ms = network.now.ms_since(since);
        assert!(ms < 2_000, "{ms} ms");
    }
}

#[test]
fn of_two_branches_that_are_equally_long_the_one_with_the_lower_hash_is_taken_by_all() {
    let lower = u8::from(hash(MAIN, 1) < hash(MAIN, 0));
    let mut network = forked(2, on(OnDivergence::Reorg), Nature::Forked, 5, 0);
    network.run(60_000, |_| false);
    assert_eq!(network.ledger[MAIN as usize], lower, "{:#?}", network.status);
    // Coming from the other one, the same.
    let mut network = Network::new(2, MAIN, Plans::OnePeer, on(OnDivergence::Reorg));
    network.forks.push(Fork { after: MAIN - 5, height: MAIN });
    network.join(0, model("fork", Nature::Forked(1)));
    assert!(ends_at(&mut network, MAIN, 1));
    network.join(0, model("main", Nature::Honest));
    network.run(60_000, |_| false);
    assert_eq!(network.ledger[MAIN as usize], lower, "{:#?}", network.status);
}

#[test]
fn a_worse_branch_is_left_alone_until_it_is_the_better_one() {
    let mut network = forked(3, on(OnDivergence::Reorg), Nature::Forked, 30, -10);
    assert!(network.run(60_000, |network| network.status.state == SyncState::Diverged));
    let (at, since) = (network.status.diverged.clone().unwrap(), network.status.diverged_since.unwrap());
    assert_eq!((at.height, at.ours, at.theirs), (MAIN - 29, hash(MAIN - 29, 0), hash(MAIN - 29, 1)));
    assert_eq!(at.peer, "fork");
    network.run(60_000, |_| false);
    assert_eq!((network.engine.head().height, network.switches), (MAIN, 0));
    assert_eq!(network.status.diverged_since, Some(since), "since it was first seen");
    network.forks[0].height = MAIN + 1;
    assert!(ends_at(&mut network, MAIN + 1, 1), "{:#?}", network.status);
}

#[test]
fn a_chain_goes_back_and_forth_with_whoever_is_longer() {
    let mut network = forked(4, on(OnDivergence::Reorg), Nature::Forked, 30, 5);
    network.join(0, model("main", Nature::Honest));
    assert!(ends_at(&mut network, MAIN + 5, 1), "{:#?}", network.status);
    network.grow(0, 100);
    assert!(ends_at(&mut network, MAIN + 100, 0), "{:#?}", network.status);
    network.forks[0].height = MAIN + 130;
    assert!(ends_at(&mut network, MAIN + 130, 1), "{:#?}", network.status);
    assert_eq!(network.switches, 3);
    let scores = network.engine.peers().iter().map(crate::sync::peers::Record::score);
    assert!(scores.min() > Some(0), "nobody is to blame");
}

#[test]
fn a_branch_that_is_too_deep_is_raised_and_taken_only_where_the_operator_says_so() {
    let mut network = forked(5, on(OnDivergence::Reorg), Nature::Forked, 51, 10);
    network.limit_reorgs(50);
    network.run(60_000, |_| false);
    assert_eq!((network.engine.head().height, network.switches), (MAIN, 0));
    assert_eq!(network.status.state, SyncState::Diverged);
    let problem = network.status.problem.clone().unwrap();
    assert!(problem.contains("51 below our head; at most 50") && problem.contains("fork"), "{problem}");
    let mut network = forked(5, on(OnDivergence::Reorg), Nature::Forked, 51, 10);
    network.limit_reorgs(51);
    assert!(ends_at(&mut network, MAIN + 10, 1), "{:#?}", network.status);
    let mut network = forked(5, on(OnDivergence::Resync), Nature::Forked, 390, 10);
    network.limit_reorgs(50);
    assert!(ends_at(&mut network, MAIN + 10, 1), "{:#?}", network.status);
}

#[test]
fn who_halts_imports_nothing_more_from_anybody() {
    let mut network = forked(6, on(OnDivergence::Halt), Nature::Forked, 10, 50);
    network.join(0, model("main", Nature::Honest));
    assert!(network.run(60_000, |network| network.status.state == SyncState::Diverged));
    network.grow(0, 500);
    network.run(120_000, |_| false);
    assert_eq!((network.engine.head().height, network.switches), (MAIN, 0));
    assert_eq!((network.status.state, network.status.in_flight), (SyncState::Diverged, 0));
    // Once the other one is gone, it goes on.
    network.leave(0, "fork");
    assert!(ends_at(&mut network, MAIN + 500, 0), "{:#?}", network.status);
}

#[test]
fn who_halts_on_the_way_leaves_what_waits_where_it_is() {
    let mut network = Network::new(11, 20_000, Plans::OnePeer, on(OnDivergence::Halt));
    network.forks.push(Fork { after: 50, height: 60 });
    network.import_ms = 2_000;
    network.join(0, model("main", Nature::Honest));
    assert!(network.run(60_000, |network| network.engine.head().height > 100));
    network.join(0, model("fork", Nature::Forked(1)));
    assert!(network.run(60_000, |network| network.status.state == SyncState::Diverged));
    let under_way = network.engine.head().height + network.importing.len() as u64;
    assert!(network.engine.here().iter().any(|range| range.last > under_way), "something waits");
    network.run(60_000, |_| false);
    assert_eq!(network.engine.head().height, under_way);
    network.leave(0, "fork");
    assert!(ends_at(&mut network, 20_000, 0), "{:#?}", network.status);
}

#[test]
fn a_switch_waits_for_the_imports_under_way_and_lets_go_of_what_waits() {
    let mut network = Network::new(10, 20_000, Plans::OnePeer, on(OnDivergence::Resync));
    network.forks.push(Fork { after: 50, height: 60 });
    network.import_ms = 2_000;
    network.join(0, Model { delay_ms: 400, ..model("main", Nature::Honest) });
    assert!(network.run(60_000, |network| network.engine.head().height > 100));
    network.join(0, Model { delay_ms: 5, ..model("fork", Nature::Forked(1)) });
    assert!(network.run(60_000, |network| network.status.diverged.is_some()));
    network.forks[0].height = 30_000;
    let (mut busy, mut waited) = (false, false);
    assert!(network.run(60_000, |network| {
        busy |= network.engine.is_switching() && !network.importing.is_empty();
        waited |= network.engine.is_switching() && !network.engine.here().is_empty();
        network.switches == 1
    }));
    assert!(busy && waited, "there was something to wait for, and to let go of");
    assert!(network.engine.here().is_empty());
    assert!(ends_at(&mut network, 30_000, 1), "{:#?}", network.status);
}

#[test]
fn a_better_branch_that_is_not_valid_costs_who_has_it_and_nothing_else() {
    let mut network = forked(7, on(OnDivergence::Reorg), Nature::Warped, 10, 50);
    network.join(0, model("main", Nature::Honest));
    network.grow(5_000, 20);
    assert!(ends_at(&mut network, MAIN + 20, 0), "{:#?}", network.status);
    assert_eq!(network.switches, 0);
    let warped = network.engine.peers().iter().find(|peer| peer.name == "fork").unwrap();
    assert!(warped.score() < SCORE_MAX && warped.failures() > 0);
    let asked = network.requests_of("fork");
    network.run(120_000, |_| false);
    let more = network.requests_of("fork") - asked;
    assert!((1..30).contains(&more), "it is asked again, but not all the time: {more} times in two minutes");
}

#[test]
fn a_branch_that_is_larger_than_the_buffers_is_not_fetched_to_its_end() {
    let config = SyncConfig { buffer_bytes_max: 1 << 20, ..on(OnDivergence::Resync) };
    let mut network = Network::new(8, 3_000, Plans::OnePeer, config);
    network.forks.push(Fork { after: 1_000, height: 3_500 });
    network.join(0, model("main", Nature::Honest));
    assert!(network.run(120_000, |network| network.engine.head().height == 3_000));
    network.join(0, model("fork", Nature::Forked(1)));
    network.run(60_000, |_| false);
    assert_eq!((network.engine.head().height, network.switches), (3_000, 0));
    let problem = network.status.problem.clone().unwrap();
    assert!(problem.contains("more than 1048576 bytes"), "{problem}");
    network.leave(0, "fork");
    network.run(10_000, |_| false);
    assert_eq!(network.engine.budget().used(), 0);
    assert_eq!(network.status.problem, None, "{:#?}", network.status);
}

/// Which of all chains that somebody has every node has to end on.
fn best(network: &Network) -> (Height, Hash) {
    let forks = (1..).zip(&network.forks).map(|(branch, fork)| (fork.height, hash(fork.height, branch)));
    let all = forks.chain([(network.height, hash(network.height, 0))]);
    all.max_by_key(|(height, hash)| (*height, Reverse(*hash))).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_branches_there_are_the_best_one_is_reached(
        seed: u64,
        main in 1..600_u64,
        forks in prop::collection::vec((0..250_u64, 1..300_u64, 0..20_000_u64, 1..300_u64), 1..4),
        vices in prop::collection::vec(prop::sample::select(Nature::VICES.to_vec()), 0..3),
        plans in prop::sample::select(vec![Plans::OnePeer, Plans::Swapped, Plans::Mad]),
        storage_faults in 0..10_u32,
    ) {
        let mut network = Network::new(seed, main, plans, on(OnDivergence::Reorg));
        network.limit_reorgs(1_024);
        network.storage_faults = storage_faults;
        network.join(0, model("main", Nature::Honest));
        for (branch, &(below, length, from_ms, delay_ms)) in (1..).zip(&forks) {
            let after = main.saturating_sub(below);
            network.forks.push(Fork { after, height: after + length });
            let name = format!("fork {branch}");
            network.join(from_ms, Model { name, nature: Nature::Forked(branch), delay_ms, lag: 0 });
        }
        for (at, nature) in vices.into_iter().enumerate() {
            network.join(0, model(format!("vice {at}"), nature));
        }
        network.run(20_000, |_| false);
        let best = best(&network);
        let done = network.run(1_800_000, |network| {
            let head = network.engine.head();
            (head.height, head.hash) == best
        });
        prop_assert!(done, "{best:?}: {:#?}", network.status);
        let switches = network.switches;
        network.storage_faults = 0;
        network.run(60_000, |_| false);
        prop_assert_eq!(network.switches, switches, "there it stays");
        prop_assert_eq!(network.engine.budget().used(), 0);
    }
}

/// A look does not show that a peer is on another branch where its head is above ours; and at a peer far away one is
/// under way nearly always.
#[test]
fn a_comparison_that_is_wanted_during_a_look_is_made_after_it() {
    let mut sample = Sample::new(1, 1);
    let blocks = verify::verify_all(sample.blocks(2, 0), sample.genesis()).into_iter().map(Result::unwrap).collect();
    let (us, now) = (SourceInfo { chain_id: "c".into(), genesis_hash: Hash::ZERO, node_id: "us".into() }, START);
    let head = Head::from(&sample.genesis().block().header);
    let mut engine: Engine<Vec<VerifiedBlock>> = Engine::new(us.clone(), config(), head, now);
    let peer = engine.join(now, "far".into(), Origin::Configured).unwrap();
    let look = || {
        let info = Some(SourceInfo { node_id: "far".into(), ..us.clone() });
        Wake::Looked(peer, Ok(Look { info, head: Some((2, Hash([9; 32]))), ours: None, snapshot: None }))
    };
    // Nobody plans; the watchdog asks, when it has seen for long enough that nothing is under way.
    let mut asked = None;
    for ms in [0, 20, 4_000, 4_010] {
        let now = now.plus_ms(ms);
        for command in engine.turn(now).commands {
            match command {
                Command::Ask { .. } => engine.handle(now, Wake::Planned(Vec::new())),
                Command::Fetch { id, range, room, .. } => asked = Some((id, range, room)),
                Command::Look { .. } => {}
                _ => panic!("nothing else is to be done"),
            }
        }
        if ms == 0 {
            engine.handle(now, look());
        }
    }
    let (id, range, room) = asked.expect("the lowest missing blocks are asked for");
    assert!(engine.peers().get(peer).unwrap().busy, "a look is under way");
    let now = now.plus_ms(4_100);
    let fetched = Fetched { body: Vec::new(), blocks: 2, room, head: None, first_byte_us: 1, duration_us: 2 };
    engine.handle(now, Wake::Fetched(id, Ok(fetched)));
    engine.handle(now, Wake::Verified(id, Ok(blocks)));
    let imports = |command: &Command<_>| matches!(command, Command::Import(_));
    assert!(engine.turn(now).commands.iter().any(imports));
    let error = BlockError::Parent { height: 1, expected: Hash::ZERO, got: Hash([9; 32]) };
    engine.handle(now, Wake::Stored(JobDone { parts: vec![(peer, range)], imported: 0, error: Some(error.into()) }));
    let compares = |command: &Command<_>| matches!(command, Command::Compare { height: 1, .. });
    assert!(!engine.turn(now.plus_ms(20)).commands.iter().any(compares), "the look is still under way");
    engine.handle(now.plus_ms(40), look());
    assert!(engine.turn(now.plus_ms(40)).commands.iter().any(compares), "now it is over");
}
