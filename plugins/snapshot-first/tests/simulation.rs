//! In virtual time: snapshots that come, fail and are not worth it, and the blocks above them.

use proptest::prelude::*;
use snapshot_first::{Memory, Settings, SnapshotFirst};
use tenon_sdk::Plugin;
use tenon_sdk::sync::testbed::{Nature, SECOND_US, START_US, Testbed, drawn_limits, id, limits};
use tenon_sdk::sync::{Action, Event, Head, Limits, Peer, Snapshot, Strategy, View};

const HEAD: u64 = 60_000;

fn settings() -> Settings {
    Settings { min_blocks: 10_000, max_age_blocks: 5_000, ..Settings::default() }
}

fn bed(natures: Vec<Nature>) -> Testbed<SnapshotFirst> {
    of(settings(), natures, limits(), 1)
}

fn of(settings: Settings, natures: Vec<Nature>, limits: Limits, seed: u64) -> Testbed<SnapshotFirst> {
    Testbed::new(SnapshotFirst::new(settings).unwrap(), natures, limits, seed)
}

fn offers(height: u64) -> Nature {
    Nature { snapshot: Some(height), ..Nature::good(HEAD) }
}

#[test]
fn far_behind_a_snapshot_comes_first_and_then_the_blocks_above_it() {
    let mut bed = bed(vec![Nature::good(HEAD), offers(58_000), offers(59_000)]);
    let took_us = bed.run(0);
    assert_eq!((bed.snapshots_asked.as_slice(), bed.snapshot_height), ([id(2)].as_slice(), 59_000));
    assert_eq!(bed.asked_blocks.values().sum::<u64>(), 1_000, "{:?}", bed.asked_blocks);
    assert!(took_us < 3 * SECOND_US, "{took_us}");
}

#[test]
fn a_snapshot_that_is_not_worth_it_is_not_taken() {
    let near = || Nature { snapshot: Some(9_999), ..Nature::good(12_000) };
    let old = || offers(HEAD - 5_001);
    for natures in [vec![near()], vec![old()], vec![Nature::good(HEAD)]] {
        let mut bed = bed(natures);
        bed.run(0);
        assert!(bed.snapshots_asked.is_empty());
    }
    let mut just = bed(vec![Nature { snapshot: Some(10_000), ..Nature::good(12_000) }, offers(HEAD - 5_000)]);
    just.run(0);
    assert_eq!(just.snapshot_height, HEAD - 5_000);
}

#[test]
fn one_that_fails_is_asked_of_another_peer_and_in_the_end_the_blocks_are_fetched() {
    let failing = |height| Nature { snapshot_fails: true, ..offers(height) };
    let mut helped = bed(vec![failing(59_000), offers(58_000)]);
    helped.run(0);
    assert_eq!((helped.snapshots_asked.as_slice(), helped.snapshot_height), ([id(0), id(1)].as_slice(), 58_000));

    let mut failed = bed(vec![failing(59_000), failing(58_900), failing(58_800), failing(58_700)]);
    failed.run(0);
    assert_eq!((failed.snapshots_asked.as_slice(), failed.snapshot_height), ([id(0), id(1), id(2)].as_slice(), 0));
    assert!(failed.asked_blocks.values().sum::<u64>() >= HEAD);
}

fn view(now: u64, head: u64, peers: Vec<Peer>) -> View {
    let head = Head { height: head, hash: vec![0; 32] };
    View { now, head, best_height: HEAD, limits: limits(), peers, in_flight: Vec::new(), waiting: Vec::new() }
}

fn peer(id: u32, snapshot: Option<u64>) -> Peer {
    Peer {
        id,
        head: Some(Head { height: HEAD, hash: vec![0; 32] }),
        latency_us: 0,
        throughput: 0,
        failures: 0,
        score: 100,
        in_flight: 0,
        not_before: 0,
        snapshot,
    }
}

#[test]
fn one_that_does_not_come_in_time_or_whose_peer_goes_is_given_up() {
    let strategy = SnapshotFirst::new(Settings { patience_ms: 5_000, ..settings() }).unwrap();
    let peers = || vec![peer(1, Some(59_000)), peer(2, Some(58_000))];
    let mut memory = Memory::default();
    let mut next = |view: &View| strategy.next(view, &[Event::Tick], &mut memory);
    let late = START_US + 5 * SECOND_US;
    let first = [Action::FetchSnapshot(Snapshot { peer: 1, height: 59_000 }), Action::WaitUntil(late)];
    assert_eq!(next(&view(START_US, 0, peers())), first);
    assert_eq!(next(&view(late - 1, 0, peers())), [Action::WaitUntil(late)], "nothing else meanwhile");
    let second = Action::FetchSnapshot(Snapshot { peer: 2, height: 58_000 });
    assert_eq!(next(&view(late, 0, peers()))[0], second);
    let without_it = vec![peer(1, Some(59_000)), peer(3, None)];
    let fetches = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::FetchRange(_)));
    assert!(fetches(&next(&view(late + 1, 0, without_it))), "nobody else has one");
}

#[test]
fn before_the_first_block_it_waits_a_little_for_an_offer() {
    let strategy = SnapshotFirst::new(settings()).unwrap();
    let fetches = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::FetchRange(_)));
    let until = START_US + SECOND_US;
    let mut memory = Memory::default();
    let none = || vec![peer(1, None)];
    assert_eq!(strategy.next(&view(START_US, 0, none()), &[Event::Started], &mut memory), [Action::WaitUntil(until)]);
    let mut other = memory.clone();
    let late = vec![peer(1, None), peer(2, Some(59_000))];
    let taken = strategy.next(&view(until - 1, 0, late.clone()), &[Event::PeerUp(2)], &mut other);
    assert_eq!(taken[0], Action::FetchSnapshot(Snapshot { peer: 2, height: 59_000 }));
    assert!(fetches(&strategy.next(&view(until, 0, none()), &[Event::Tick], &mut memory)), "long enough");
    // Where there is nothing to wait for, it does not: blocks are here, few are missing, or none is tried.
    let at_once = |strategy: &SnapshotFirst, view: View| {
        fetches(&strategy.next(&view, &[Event::Started], &mut Memory::default()))
    };
    assert!(at_once(&strategy, view(START_US, 1, none())));
    assert!(at_once(&strategy, View { best_height: 9_999, ..view(START_US, 0, none()) }));
    let never = SnapshotFirst::new(Settings { attempts: 0, ..settings() }).unwrap();
    assert!(at_once(&never, view(START_US, 0, none())));
}

#[test]
fn one_that_came_ends_the_wait_and_forgets_the_failures() {
    let strategy = SnapshotFirst::new(Settings { attempts: 1, ..settings() }).unwrap();
    let mut memory = Memory::default();
    let snapshot = |action: &Action| match action {
        Action::FetchSnapshot(snapshot) => Some(snapshot.height),
        _ => None,
    };
    let mut next = |head, best: u64, event| {
        let mut peer = peer(1, Some(best - 1_000));
        peer.head = Some(Head { height: best, hash: vec![0; 32] });
        let view = View { best_height: best, ..view(START_US, head, vec![peer]) };
        strategy.next(&view, &[event], &mut memory).iter().find_map(snapshot)
    };
    assert_eq!(next(0, HEAD, Event::Started), Some(59_000));
    assert_eq!(next(59_000, HEAD, Event::Tick), None);
    assert_eq!(next(60_000, 90_000, Event::Tick), Some(89_000), "far behind once more");
    let failed = Event::SnapshotFailed(Snapshot { peer: 1, height: 89_000 });
    assert_eq!(next(60_000, 90_000, failed), None, "one attempt is all there is");
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let ranges = ranges::Settings { penalty: 0, ..ranges::Settings::default() };
    let refused: [(&str, Settings); 3] = [
        ("min_blocks", Settings { min_blocks: 0, ..Settings::default() }),
        ("patience_ms", Settings { patience_ms: 0, ..Settings::default() }),
        ("penalty", Settings { ranges, ..Settings::default() }),
    ];
    for (name, settings) in refused {
        assert!(SnapshotFirst::new(settings).err().unwrap().contains(name), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn every_height_is_reached_and_every_rule_is_kept(
        natures in prop::collection::vec(any::<u64>(), 0..6),
        limits: u64,
        (min_blocks, max_age_blocks, attempts) in (1..2_000_u64, 0..2_000_u64, 0..4_u32),
        forgets_percent in prop::sample::select(vec![0_u64, 0, 2, 20]),
        seed: u64,
    ) {
        let mut natures: Vec<_> = natures.into_iter().map(|seed| Nature::drawn(3_000, seed)).collect();
        natures.push(Nature::good(3_000));
        let settings = Settings { min_blocks, max_age_blocks, attempts, ..Settings::default() };
        of(settings, natures, drawn_limits(limits), seed).run(forgets_percent);
    }
}
