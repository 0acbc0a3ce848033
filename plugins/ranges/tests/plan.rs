//! Single answers: what is asked of whom, given what is known.

use ranges::{Memory, Settings};
use tenon_sdk::sync::testbed::limits;
use tenon_sdk::sync::{Action, Arrival, Event, Failure, Fetch, Head, HeightRange, InFlight, Peer, PeerId, View};

const NOW: u64 = 1_790_000_000_000_000;

fn peer(id: PeerId, throughput: u64) -> Peer {
    Peer {
        id,
        head: Some(Head { height: 100_000, hash: vec![0; 32] }),
        latency_us: if throughput == 0 { 0 } else { 20_000 },
        throughput,
        failures: 0,
        score: 100,
        in_flight: 0,
        not_before: 0,
        snapshot: None,
    }
}

fn view(head: u64, peers: Vec<Peer>) -> View {
    View {
        now: NOW,
        head: Head { height: head, hash: vec![0; 32] },
        best_height: 100_000,
        limits: limits(),
        peers,
        in_flight: Vec::new(),
        waiting: Vec::new(),
    }
}

fn range(first: u64, last: u64) -> HeightRange {
    HeightRange { first, last }
}

fn under_way(view: &mut View, peer: PeerId, range: HeightRange, age_us: u64) {
    let id = view.in_flight.len() as u64 + 1;
    view.in_flight.push(InFlight { id, peer, range, since: NOW - age_us });
    view.peers.iter_mut().find(|known| known.id == peer).unwrap().in_flight += 1;
}

/// What is asked of whom by a strategy that knows that blocks have 400 bytes.
fn fetches(view: &View) -> Vec<(PeerId, u64, u64)> {
    actions(view).into_iter().filter_map(fetch).collect()
}

fn fetch(action: Action) -> Option<(PeerId, u64, u64)> {
    let Action::FetchRange(Fetch { peer, range }) = action else { return None };
    Some((peer, range.first, range.last))
}

fn actions(view: &View) -> Vec<Action> {
    let mut memory = Memory::default();
    let learned = Arrival { id: 0, peer: 1, range: range(1, 1), bytes: 400, duration_us: 1_000 };
    ranges::next(&Settings::default(), view, &[Event::RangeArrived(learned)], &mut memory)
}

#[test]
fn each_peer_is_asked_for_what_it_sends_in_a_quarter_of_a_second() {
    // 400 kB/s are 250 blocks of 400 bytes in 250 ms, 4 kB/s only 2: but never less than the first range.
    let last = |view: &View| *fetches(view).last().unwrap();
    for (throughput, blocks) in [(400_000, 250), (800_000, 500), (4_000, 128), (1 << 30, 1_000), (0, 128)] {
        let (_, first, last) = last(&view(0, vec![peer(1, throughput)]));
        assert_eq!(last - first + 1, blocks, "{throughput}");
    }
    let mut far = view(0, vec![peer(1, 400_000)]);
    far.peers[0].latency_us = 250_000;
    let (_, first, last) = last(&far);
    assert_eq!(last - first + 1, 500, "half a second for one that is a quarter of a second away");
}

#[test]
fn answers_that_share_a_line_do_not_all_end_at_once() {
    let peer = peer(1, 400_000);
    let most = limits().in_flight_per_peer_max;
    let asked = fetches(&view(0, vec![peer.clone()]));
    let blocks: Vec<u64> = asked.iter().map(|(_, first, last)| last - first + 1).collect();
    let expected: Vec<u64> = (1..=u64::from(most)).map(|part| (250 * part).div_ceil(most.into())).collect();
    assert_eq!(blocks, expected);
    // Whoever is kept busy is asked for whole ranges from then on.
    let mut busy = view(0, vec![peer]);
    (1..u64::from(most)).for_each(|at| under_way(&mut busy, 1, range(at * 100 - 99, at * 100), 10_000));
    let next = 100 * (u64::from(most) - 1) + 1;
    assert_eq!(fetches(&busy), [(1, next, next + 249)]);
}

#[test]
fn strangers_are_tried_beside_the_known_and_one_at_a_time_where_many_are_known() {
    let strangers = |known: u32| {
        let mut peers: Vec<Peer> = (1..=known).map(|id| peer(id, 1_000_000)).collect();
        peers.extend((100..110).map(|id| peer(id, 0)));
        fetches(&view(0, peers)).iter().filter(|(peer, ..)| *peer >= 100).count()
    };
    assert_eq!(strangers(0), 10);
    assert!(strangers(2) > 3);
    assert_eq!(strangers(4), 1);
    let first = fetches(&view(0, vec![peer(1, 1_000_000), peer(100, 0)]))[0];
    assert_eq!(first.0, 1, "the lowest range goes to one that is known");
}

#[test]
fn who_failed_before_it_ever_answered_comes_after_the_others() {
    // What the strategy remembered of the failures is gone; the host has counted them.
    let failed = Peer { failures: 3, ..peer(2, 0) };
    let asked = |other: Peer| fetches(&view(0, vec![failed.clone(), other])).into_iter().map(|(peer, ..)| peer);
    assert_eq!(asked(peer(3, 0)).next(), Some(3), "of two that never answered");
    let beside_a_known = asked(peer(3, 400_000)).collect::<Vec<_>>();
    assert_eq!(beside_a_known[..2], [3, 3], "nobody is curious about it");
    assert_eq!(
        beside_a_known.iter().filter(|peer| **peer == 2).count(),
        1,
        "it is tried when the known ones have enough"
    );
}

#[test]
fn at_the_end_an_idle_faster_peer_is_asked_for_what_a_slow_one_holds() {
    // 40 blocks of 400 bytes at 2 kB/s take 8 s.
    let ending = |age_us: u64, idle: u64| {
        let mut view = view(99_900, vec![peer(1, 2_000), peer(2, idle), peer(3, 1_000_000)]);
        under_way(&mut view, 3, range(99_901, 99_960), 10_000);
        under_way(&mut view, 1, range(99_961, 100_000), age_us);
        view
    };
    assert_eq!(fetches(&ending(1_000_000, 1_000_000)), [(2, 99_961, 100_000)]);
    assert_eq!(fetches(&ending(999_999, 1_000_000)), [], "the host would refuse it");
    assert_eq!(actions(&ending(999_999, 1_000_000)), [Action::WaitUntil(NOW + 1)]);
    assert_eq!(fetches(&ending(1_000_000, 4_000)), [], "it would not be done sooner by much");
    assert_eq!(fetches(&ending(7_980_000, 1_000_000)), [], "it is all but done");
    assert_eq!(fetches(&ending(9_000_000, 1_000_000)), [(2, 99_961, 100_000)], "it should have been done long ago");

    let mut lowest = ending(500_000, 1_000_000);
    lowest.in_flight.remove(0);
    lowest.peers[2].in_flight = 0;
    lowest.waiting = vec![range(99_901, 99_960)];
    assert_eq!(fetches(&lowest), [(2, 99_961, 100_000)], "at once where it is the lowest");
    lowest.peers.push(peer(4, 1_000_000));
    under_way(&mut lowest, 2, range(99_961, 100_000), 0);
    assert_eq!(fetches(&lowest), [], "twice is enough");
}

#[test]
fn nothing_is_doubled_while_there_is_something_to_ask_for() {
    let mut view = view(0, vec![peer(1, 2_000), peer(2, 1_000_000)]);
    view.limits.in_flight_max = 2;
    under_way(&mut view, 1, range(1, 40), 1_500_000);
    assert_eq!(fetches(&view).iter().map(|(peer, first, _)| (*peer, *first)).collect::<Vec<_>>(), [(2, 41)]);
}

#[test]
fn the_lowest_range_is_asked_of_a_second_peer_when_it_takes_long() {
    let slow = |age_us| {
        let mut view = view(0, vec![peer(1, 0), peer(2, 400_000)]);
        view.waiting = vec![range(33, 19_999)];
        view.limits.in_flight_max = 3;
        under_way(&mut view, 1, range(1, 32), age_us);
        under_way(&mut view, 2, range(20_000, 20_000), 0);
        view
    };
    assert_eq!(fetches(&slow(2_000_000)), [(2, 1, 32)]);
    assert_eq!(fetches(&slow(1_900_000)), []);
    assert!(actions(&slow(1_900_000)).contains(&Action::WaitUntil(NOW + 100_000)));
}

#[test]
fn what_a_peer_failed_to_give_is_asked_of_another_and_it_rests() {
    let view = view(0, vec![peer(1, 1_000_000), peer(2, 500_000)]);
    let failure = Failure { id: 1, peer: 1, range: range(1, 10), reason: "gone".to_owned() };
    let mut memory = Memory::default();
    let actions = ranges::next(&Settings::default(), &view, &[Event::RangeInvalid(failure)], &mut memory);
    assert!(matches!(actions[0], Action::Penalise(penalty) if penalty.peer == 1 && penalty.points == 50));
    let asked: Vec<_> = actions.into_iter().filter_map(fetch).collect();
    assert!(!asked.is_empty() && asked.iter().all(|(peer, ..)| *peer == 2), "{asked:?}");
}

#[test]
fn who_was_overtaken_by_another_peer_has_not_failed() {
    let mut view = view(0, vec![peer(1, 1_000_000)]);
    view.waiting = vec![range(2, 60)];
    let failed = |range| Event::RangeFailed(Failure { id: 1, peer: 1, range, reason: "faster".to_owned() });
    let asks = |range| {
        let actions = ranges::next(&Settings::default(), &view, &[failed(range)], &mut Memory::default());
        actions.into_iter().filter_map(fetch).count() > 0
    };
    assert!(asks(range(10, 60)), "all of it is here");
    assert!(!asks(range(10, 61)), "the peer rests");
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let base = Settings::default;
    assert_eq!(base().check(), Ok(()));
    let refused = [
        ("start_blocks", Settings { start_blocks: 0, ..base() }),
        ("target_bytes", Settings { target_bytes: 0, ..base() }),
        ("target_ms", Settings { target_ms: 0, ..base() }),
        ("requests_per_peer", Settings { requests_per_peer: 0, ..base() }),
        ("penalty", Settings { penalty: 0, ..base() }),
        ("penalty", Settings { penalty: 101, ..base() }),
    ];
    for (name, settings) in refused {
        assert!(settings.check().unwrap_err().contains(name), "{name}");
    }
}
