//! In virtual time, among peers with budgets: none is ever exceeded, and every height is fetched all the same.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use polite::{Polite, Settings};
use proptest::prelude::*;
use tenon_sdk::Plugin;
use tenon_sdk::sync::testbed::{Nature, SECOND_US, START_US, Testbed, drawn_limits, id, limits};
use tenon_sdk::sync::{Action, Event, Head, HeightRange, InFlight, Limits, Peer, Strategy, View, len};

fn of(settings: Settings, natures: Vec<Nature>, limits: Limits, seed: u64) -> Testbed<Polite> {
    Testbed::new(Polite::new(settings).unwrap(), natures, limits, seed)
}

#[test]
fn a_source_that_answers_one_request_a_second_is_asked_once_a_second() {
    let throttled = Nature { requests_per_second: Some(1), ..Nature::good(5_000) };
    let mut bed = of(Settings::default(), vec![throttled], limits(), 1);
    let took_us = bed.run(0);
    assert_eq!((bed.requests, bed.limited), (5, 0));
    assert_eq!(took_us, 4 * SECOND_US + 400_000 + 20_000, "four waits, and the last answer");
}

#[test]
fn a_budget_holds_for_each_peer_by_itself() {
    let throttled = Nature { requests_per_second: Some(1), ..Nature::good(20_000) };
    let mut bed = of(Settings::default(), vec![throttled; 4], limits(), 1);
    let took_us = bed.run(0);
    assert_eq!(bed.limited, 0);
    assert!(bed.asked.values().all(|asked| *asked == 5), "{:?}", bed.asked);
    assert!(took_us < 6 * SECOND_US, "{took_us}");
}

#[test]
fn blocks_are_shared_out_over_the_requests_of_an_interval() {
    let settings = Settings { requests_max: 4, blocks_max: 400, interval_ms: 2_000 };
    let mut bed = of(settings, vec![Nature::good(1_600)], limits(), 1);
    let took_us = bed.run(0);
    assert_eq!(bed.requests, 16, "100 blocks each");
    assert!(took_us >= 6 * SECOND_US, "{took_us}: four intervals' worth");
}

#[test]
fn who_asks_to_be_left_alone_is_for_as_long_as_it_says() {
    let mut bed = of(Settings::default(), vec![Nature::good(100)], limits(), 1);
    bed.peers[0].not_before = START_US + 25 * SECOND_US;
    bed.ask();
    assert_eq!((bed.under_way(), bed.wake_at), (0, Some(START_US + 25 * SECOND_US)));
}

#[test]
fn what_others_asked_counts_as_well() {
    let limits = limits();
    let head = |height| Head { height, hash: vec![0; 32] };
    let peer = |in_flight| Peer {
        id: id(0),
        head: Some(head(9_000)),
        latency_us: 0,
        throughput: 0,
        failures: 0,
        score: 100,
        in_flight,
        not_before: 0,
        snapshot: None,
    };
    let range = HeightRange { first: 1, last: 50 };
    let mut view = View {
        now: START_US,
        head: head(0),
        best_height: 9_000,
        limits,
        peers: vec![peer(1)],
        in_flight: vec![InFlight { id: 7, peer: id(0), range, since: START_US - 400_000 }],
        waiting: Vec::new(),
    };
    let strategy = Polite::new(Settings { requests_max: 1, ..Settings::default() }).unwrap();
    let mut ledger = polite::Ledger::default();
    let free_again = [Action::WaitUntil(START_US + 600_000)];
    assert_eq!(strategy.next(&view, &[Event::TakenOver], &mut ledger), free_again);
    // It came, and counts on.
    view.in_flight.clear();
    view.peers = vec![peer(0)];
    view.head = head(50);
    assert_eq!(strategy.next(&view, &[Event::Tick], &mut ledger), free_again);
    view.now = START_US + 600_000;
    assert!(matches!(strategy.next(&view, &[Event::Tick], &mut ledger)[0], Action::FetchRange(_)));
}

#[test]
fn a_budget_of_nothing_is_refused_by_name() {
    let refused: [(&str, Settings); 3] = [
        ("requests_max", Settings { requests_max: 0, ..Settings::default() }),
        ("blocks_max", Settings { blocks_max: 0, ..Settings::default() }),
        ("interval_ms", Settings { interval_ms: 0, ..Settings::default() }),
    ];
    for (name, settings) in refused {
        assert!(Polite::new(settings).err().unwrap().contains(name), "{name}");
    }
}

/// Notes every request, as a source with a strict clock would.
struct Noting {
    polite: Polite,
    noted: Rc<RefCell<Noted>>,
}

/// When each peer was asked for how many blocks.
type Noted = BTreeMap<u32, Vec<(u64, u64)>>;

impl Plugin for Noting {
    type Settings = Settings;

    fn new(_: Settings) -> Result<Self, String> {
        Err("made by hand".to_owned())
    }
}

impl Strategy for Noting {
    type Memory = polite::Ledger;

    fn next(&self, view: &View, events: &[Event], ledger: &mut polite::Ledger) -> Vec<Action> {
        let actions = self.polite.next(view, events, ledger);
        for action in &actions {
            if let Action::FetchRange(fetch) = action {
                self.noted.borrow_mut().entry(fetch.peer).or_default().push((view.now, len(&fetch.range)));
            }
        }
        actions
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn in_no_interval_is_a_budget_exceeded_and_every_height_is_fetched(
        natures in prop::collection::vec(any::<u64>(), 0..4),
        (requests_max, blocks_max, interval_ms) in (1..6_u32, 1..800_u32, 100..3_000_u64),
        limits: u64,
        seed: u64,
    ) {
        let mut natures: Vec<_> = natures.into_iter().map(|seed| Nature::drawn(300, seed)).collect();
        natures.push(Nature::good(300));
        let noted = Rc::<RefCell<Noted>>::default();
        let polite = Polite::new(Settings { requests_max, blocks_max, interval_ms }).unwrap();
        Testbed::new(Noting { polite, noted: Rc::clone(&noted) }, natures, drawn_limits(limits), seed).run(0);
        for requests in noted.borrow().values() {
            for (index, (end, _)) in requests.iter().enumerate() {
                let within = requests[..=index].iter().filter(|(at, _)| end - at < interval_ms * 1_000);
                prop_assert!(within.clone().count() <= requests_max as usize, "{:?}", requests);
                prop_assert!(within.map(|(_, blocks)| blocks).sum::<u64>() <= blocks_max.into(), "{:?}", requests);
            }
        }
    }

    #[test]
    fn whatever_is_forgotten_every_height_is_fetched(natures in prop::collection::vec(any::<u64>(), 0..4), seed: u64) {
        let mut natures: Vec<_> = natures.into_iter().map(|seed| Nature::drawn(2_000, seed)).collect();
        natures.push(Nature::good(2_000));
        of(Settings::default(), natures, limits(), seed).run(20);
    }
}
