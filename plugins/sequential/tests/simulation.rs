//! In virtual time, among peers that are slow, fail, lie, stop short or never answer.

use proptest::prelude::*;
use sequential::{Sequential, Settings};
use tenon_sdk::Plugin;
use tenon_sdk::sync::Limits;
use tenon_sdk::sync::testbed::{Nature, SECOND_US, START_US, Testbed, drawn_limits, id, limits};

fn of(natures: Vec<Nature>, limits: Limits, seed: u64) -> Testbed<Sequential> {
    Testbed::new(Sequential::new(Settings::default()).unwrap(), natures, limits, seed)
}

#[test]
fn never_more_than_one_request_is_under_way_and_each_is_as_long_as_it_may_be() {
    let mut bed = of(vec![Nature::good(5_500); 3], limits(), 1);
    bed.ask();
    assert_eq!((bed.under_way(), bed.requests), (1, 1));
    let took_us = bed.run(0);
    assert_eq!(bed.requests, 6, "5,500 blocks by the thousand");
    // 2.2 MB at 1 MB/s, and six times the way there.
    assert_eq!(took_us, 2 * SECOND_US + 200_000 + 6 * 20_000);
}

#[test]
fn the_length_of_a_request_is_what_was_set() {
    let strategy = Sequential::new(Settings { blocks: 10 }).unwrap();
    let mut bed = Testbed::new(strategy, vec![Nature::good(100)], limits(), 1);
    bed.run(0);
    assert_eq!(bed.requests, 10);
    assert!(Sequential::new(Settings { blocks: 0 }).is_err());
}

#[test]
fn who_fails_is_asked_after_all_others() {
    let bad = Nature { fails_percent: 100, ..Nature::good(10_000) };
    let mut bed = of(vec![bad, Nature::good(10_000)], limits(), 1);
    bed.run(0);
    assert_eq!(bed.asked[&id(0)], 1, "{:?}", bed.asked);
}

#[test]
fn a_peer_asked_to_be_left_alone_is() {
    let mut bed = of(vec![Nature::good(100)], limits(), 1);
    bed.peers[0].not_before = START_US + 3 * SECOND_US;
    bed.ask();
    assert_eq!((bed.under_way(), bed.wake_at), (0, Some(START_US + 3 * SECOND_US)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_height_is_fetched_and_every_rule_is_kept(
        natures in prop::collection::vec(any::<u64>(), 0..4),
        limits: u64,
        forgets_percent in prop::sample::select(vec![0_u64, 20]),
        seed: u64,
    ) {
        let mut natures: Vec<_> = natures.into_iter().map(|seed| Nature::drawn(500, seed)).collect();
        natures.push(Nature::good(500));
        of(natures, drawn_limits(limits), seed).run(forgets_percent);
    }
}
