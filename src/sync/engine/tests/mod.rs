//! The engine in virtual time, in a modelled network that is late, lies, breaks, comes and goes.

mod forks;
mod network;
mod snapshots;

use network::{BLOCK_BYTES, Model, Nature, Network, Plans, START};
use proptest::prelude::*;

use crate::chain::Height;
use crate::sync::opinion::SCORE_MAX;
use crate::sync::{Event, SyncConfig, SyncState};

fn config() -> SyncConfig {
    SyncConfig { range_blocks_max: 40, in_flight_max: 8, in_flight_per_peer_max: 3, ..SyncConfig::default() }
}

fn model(name: impl Into<String>, nature: Nature) -> Model {
    Model { name: name.into(), nature, delay_ms: 50, lag: 0 }
}

/// By how much the budget may be exceeded: see [`crate::sync::budget`]. A modelled block always finds its room.
const OVERSHOOT: u64 = 7 * (4 << 10);

#[test]
fn an_honest_peer_is_followed_to_its_head_and_beyond_without_a_block_too_many() {
    for plans in [Plans::OnePeer, Plans::Swapped] {
        let mut network = Network::new(1, 5_000, plans, config());
        network.join(0, model("a", Nature::Honest));
        assert!(network.run(60_000, |network| network.status.state == SyncState::Live), "{:#?}", network.status);
        network.grow(10, 1);
        assert!(network.run(5_000, |network| network.engine.head().height == 5_001));
        assert!(network.run(60_000, |network| network.status.head_height == 5_001));
        let status = &network.status;
        assert_eq!((status.imported_blocks, status.failed_requests, status.rescues), (5_001, 0, 0), "{status:#?}");
        assert_eq!((status.buffered_bytes, status.waiting, network.refused), (0, 0, 0));
        assert_eq!(status.peers[0].bytes, 5_001 * BLOCK_BYTES, "nothing is fetched twice");
    }
}

#[test]
fn at_the_head_there_is_little_to_do() {
    let mut network = Network::new(2, 10, Plans::OnePeer, config());
    network.join(0, model("a", Nature::Honest));
    network.run(5_000, |_| false);
    let (rounds, questions) = (network.rounds, network.questions);
    network.run(100_000, |_| false);
    assert!(network.rounds - rounds < 100 * 30, "{} rounds in 100 seconds", network.rounds - rounds);
    assert!(network.questions - questions < 100 * 2, "{} questions", network.questions - questions);
}

#[test]
fn a_peer_that_goes_takes_its_requests_along_and_no_blame() {
    let mut network = Network::new(3, 1_000, Plans::OnePeer, config());
    network.join(0, model("slow", Nature::Stalls));
    assert!(network.run(5_000, |network| !network.is_idle()));
    let asked = network.engine.peers().iter().next().unwrap().id;
    network.leave(1, "slow");
    network.join(10, model("good", Nature::Honest));
    assert!(network.run(60_000, |network| network.engine.head().height == 1_000));
    let down = network.events.iter().position(|event| *event == Event::PeerDown(asked)).expect("it is told");
    let failed = network.events.iter().filter(|event| matches!(event, Event::RangeFailed(f) if f.peer == asked));
    assert_eq!(failed.count(), 3, "each of its requests");
    assert!(network.events[..down].contains(&Event::PeerUp(asked)));
    assert_eq!(network.status.failed_requests, 0);
    network.join(0, model("slow", Nature::Honest));
    network.run(1_000, |_| false);
    let back = network.engine.peers().iter().find(|peer| peer.name == "slow").unwrap();
    assert_eq!((back.score(), back.failures()), (SCORE_MAX, 0));
    assert_eq!(back.id, 2, "numbers are not used again");
}

#[test]
fn a_bad_score_is_still_there_after_coming_back_under_the_same_name() {
    let mut network = Network::new(4, 1_000, Plans::OnePeer, config());
    network.join(0, model("liar", Nature::Forged));
    assert!(network.run(60_000, |network| network.engine.peers().iter().any(|peer| peer.score() <= 0)));
    network.leave(0, "liar");
    network.run(10, |_| false);
    network.join(0, model("liar", Nature::Forged));
    assert!(network.run(1_000, |network| network.engine.peers().iter().any(|peer| peer.is_up())));
    assert!(network.engine.peers().iter().all(|peer| peer.score() <= 0));
    // It has changed, and gets its chance after the same time as if it had stayed.
    network.leave(0, "liar");
    network.run(10, |_| false);
    network.join(0, model("liar", Nature::Honest));
    assert!(network.run(120_000, |network| network.engine.head().height == 1_000), "{:#?}", network.status);
}

#[test]
fn ten_thousand_peers_come_and_go_and_leave_nothing_behind() {
    let mut network = Network::new(5, 300, Plans::OnePeer, config());
    let natures = [Nature::Honest, Nature::Forged, Nature::Silent, Nature::Empty, Nature::Stranger, Nature::Stalls];
    for at in 0..10_000_u64 {
        let name = format!("peer {at}");
        network.join(at * 10, model(name.clone(), natures[at as usize % natures.len()]));
        network.leave(at * 10 + 5 + at % 400, &name);
    }
    for at in 0..100 {
        network.grow(at * 1_000, 10);
    }
    let mut most = 0;
    network.run(105_000, |network| {
        most = most.max(network.engine.peers().records());
        false
    });
    assert!(most <= 1_024 + 100, "{most} records at once");
    assert_eq!(network.engine.peers().iter().count(), 0);
    assert_eq!(network.engine.head().height, 1_300, "they were good for something");
    assert_eq!(network.status.state, SyncState::Authority);
    assert_eq!(network.engine.budget().used(), 0);
    network.run(601_000, |_| false);
    assert_eq!(network.engine.peers().records(), 0);
}

#[test]
fn an_announced_head_is_gone_for_at_once_and_spares_looks() {
    let config = SyncConfig { poll_ms: 60_000, ..config() };
    let mut network = Network::new(6, 100, Plans::OnePeer, config);
    network.join(0, model("a", Nature::Honest));
    assert!(network.run(5_000, |network| network.engine.head().height == 100));
    network.grow(0, 1);
    network.run(1_000, |_| false);
    assert_eq!(network.engine.head().height, 100, "nobody looks that often");
    let (height, hash) = network.best();
    network.announce(0, (height, hash));
    assert!(network.run(500, |network| network.engine.head().height == 101));
    let next = network.engine.peers().get(0).unwrap().next_poll;
    assert!(next.ms_since(network.now) > 60_000, "a look is spared");
    // Another block at our own head's height is looked into.
    network.announce(0, (height, crate::chain::Hash([1; 32])));
    assert!(network.run(500, |network| network.engine.peers().get(0).unwrap().busy));
}

#[test]
fn who_announces_all_the_time_makes_nobody_spin() {
    let mut network = Network::new(7, 100, Plans::OnePeer, config());
    network.join(0, model("a", Nature::Honest));
    network.join(0, model("b", Nature::Chatty));
    network.run(10_000, |_| false);
    assert_eq!(network.engine.head().height, 100);
    assert!(network.questions < 10 * 60, "{} questions in 10 seconds", network.questions);
}

#[test]
fn who_sends_a_refused_block_as_others_do_pays_once_another_version_is_valid() {
    let mut network = Network::new(8, 100, Plans::OnePeer, config());
    for name in ["first", "second", "third"] {
        network.join(0, model(name, Nature::Mistaken(50)));
    }
    let agreed = "block 50 is not valid: field `state_root`";
    assert!(
        network.run(60_000, |network| {
            network
                .status
                .problem
                .as_ref()
                .is_some_and(|text| text.contains(agreed) && text.contains("3 peers send the same"))
        }),
        "{:#?}",
        network.status
    );
    assert_eq!(network.engine.head().height, 49);
    let scores =
        |network: &Network| network.engine.peers().iter().map(crate::sync::peers::Record::score).collect::<Vec<_>>();
    network.run(120_000, |_| false);
    assert_eq!(scores(&network), [SCORE_MAX; 3], "it may be our fault, so nobody is kept away for long");
    network.join(0, model("right", Nature::Honest));
    assert!(network.run(60_000, |network| network.engine.head().height == 100), "{:#?}", network.status);
    let scores = scores(&network);
    assert_eq!(scores.iter().filter(|&&score| score < SCORE_MAX).count(), 2, "the first one has paid: {scores:?}");
    assert_eq!(scores[3], SCORE_MAX);
    assert_eq!(network.status.problem, None);
}

#[test]
fn seven_liars_take_at_most_half_of_the_rate() {
    let config = SyncConfig { range_blocks_max: 200, ..config() };
    let time = |seed: u64, liars: &[Nature]| {
        let mut network = Network::new(seed, 200_000, Plans::OnePeer, config.clone());
        for (at, nature) in liars.iter().enumerate() {
            network.join(0, model(format!("liar {at}"), *nature));
        }
        network.join(0, model("honest", Nature::Honest));
        assert!(network.run(3_600_000, |network| network.engine.head().height == 200_000), "{:#?}", network.status);
        assert!(network.honest_score_min > 50, "{}", network.honest_score_min);
        network.now.ms_since(START)
    };
    // Who sends less than it was asked for tells no lie, and the built-in, which asks one peer only, stays with it.
    let vices: Vec<_> = Nature::VICES.into_iter().filter(|nature| *nature != Nature::Short).collect();
    for seed in 0..8 {
        let alone = time(seed, &[]);
        let liars: Vec<_> = (0..7).map(|at| vices[(seed as usize * 3 + at * 7) % vices.len()]).collect();
        let among = time(seed, &liars);
        println!("{alone} ms alone, {among} ms among {liars:?}");
        assert!(among <= 2 * alone, "{alone} ms alone, {among} ms among {liars:?}");
    }
}

fn any_nature() -> impl Strategy<Value = Nature> {
    prop_oneof![
        3 => prop::sample::select(Nature::VICES.to_vec()),
        1 => (1..60_u32).prop_map(Nature::Flaky),
        1 => Just(Nature::Honest),
    ]
}

#[derive(Clone, Debug)]
struct Visit {
    nature: Nature,
    delay_ms: u64,
    lag: Height,
    from_ms: u64,
    for_ms: Option<u64>,
}

fn any_visit() -> impl Strategy<Value = Visit> {
    (any_nature(), 1..500_u64, 0..200_u64, 0..20_000_u64, prop::option::of(1..20_000_u64))
        .prop_map(|(nature, delay_ms, lag, from_ms, for_ms)| Visit { nature, delay_ms, lag, from_ms, for_ms })
}

fn any_plans() -> impl Strategy<Value = Plans> {
    prop::sample::select(vec![Plans::OnePeer, Plans::OnePeer, Plans::Swapped, Plans::Mad, Plans::Idle])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn with_one_honest_peer_the_best_head_is_always_reached(
        seed: u64,
        plans in any_plans(),
        visits in prop::collection::vec(any_visit(), 0..8),
        height in 1..1_500_u64,
        grows in prop::collection::vec((0..30_000_u64, 1..20_u64), 0..10),
        storage_faults in prop_oneof![Just(0_u32), 1..20_u32],
        buffer_kib in prop_oneof![Just(1_024_u64), 1_024..32_768_u64],
        honest_delay_ms in 1..400_u64,
        snapshot_at in prop::option::of(1..1_500_u64),
    ) {
        let config = SyncConfig { buffer_bytes_max: buffer_kib << 10, ..config() };
        let bound = config.buffer_bytes_max + OVERSHOOT;
        let mut network = Network::new(seed, height, plans, config);
        network.storage_faults = storage_faults;
        network.offer_snapshots(snapshot_at);
        network.join(0, Model { delay_ms: honest_delay_ms, ..model("honest", Nature::Honest) });
        for (at, visit) in visits.iter().enumerate() {
            let Visit { nature, delay_ms, lag, from_ms, for_ms } = *visit;
            network.join(from_ms, Model { name: format!("visitor {at}"), nature, delay_ms, lag });
            if let Some(for_ms) = for_ms {
                network.leave(from_ms + for_ms, &format!("visitor {at}"));
            }
        }
        for (in_ms, blocks) in grows {
            network.grow(in_ms, blocks);
        }
        network.run(40_000, |_| false);
        // Nobody comes or goes from now on, and the chain rests. The worst strategies leave all to the watchdog, which
        // asks for one range in a few seconds.
        let done = network.run(3_600_000, |network| network.engine.head().height == network.height);
        prop_assert!(done, "{:#?}", network.status);
        let head = network.engine.head();
        prop_assert_eq!((head.height, head.hash), network.best());
        prop_assert!(network.engine.budget().peak() <= bound, "{} bytes, {} allowed", network.engine.budget().peak(), bound);
        if plans != Plans::Mad {
            prop_assert!(network.honest_score_min > 0, "an honest peer was banned");
        }
        // No more rounds than things happen, and a few a second for what is due.
        let seconds = network.now.ms_since(START) / 1_000 + 1;
        let idle = network.rounds.saturating_sub(network.happenings);
        prop_assert!(idle <= 70 * seconds, "{} rounds of their own in {} seconds", idle, seconds);
        // What was taken comes back once nothing is under way.
        network.storage_faults = 0;
        network.run(60_000, |network| network.is_idle() && network.engine.budget().used() == 0);
        prop_assert_eq!(network.engine.budget().used(), 0);
    }
}
