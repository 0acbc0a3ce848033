//! In virtual time, among random peers that are slow, fail, lie, stop short or never answer: whatever they do, every
//! height is fetched and no rule is broken.

use parallel_range::ParallelRange;
use proptest::prelude::*;
use ranges::Settings;
use tenon_sdk::Plugin;
use tenon_sdk::sync::Limits;
use tenon_sdk::sync::testbed::{Nature, SECOND_US, START_US, Testbed, drawn_limits, id, limits};

fn bed(natures: Vec<Nature>) -> Testbed<ParallelRange> {
    of(natures, limits(), 1)
}

fn of(natures: Vec<Nature>, limits: Limits, seed: u64) -> Testbed<ParallelRange> {
    Testbed::new(ParallelRange::new(Settings::default()).unwrap(), natures, limits, seed)
}

#[test]
fn one_good_peer_is_enough() {
    let mut bed = bed(vec![Nature::good(20_000)]);
    let took_us = bed.run(0);
    // 8 MB at 1 MB/s, and what the first small ranges and the waits for an answer cost.
    assert!(took_us < 10 * SECOND_US, "{took_us}");
}

#[test]
fn four_peers_are_nearly_four_times_as_fast() {
    let one = bed(vec![Nature::good(40_000)]).run(0);
    let mut bed = bed(vec![Nature::good(40_000); 4]);
    let four = bed.run(0);
    assert!(four * 3 < one, "{four} against {one}");
    assert_eq!(bed.asked.len(), 4, "each was asked: {:?}", bed.asked);
}

#[test]
fn a_fast_peer_gets_more_than_a_slow_one() {
    let slow = Nature { bytes_per_second: 100_000, ..Nature::good(40_000) };
    let mut bed = bed(vec![slow, Nature::good(40_000)]);
    bed.run(0);
    assert!(bed.asked_blocks[&id(1)] > 5 * bed.asked_blocks[&id(0)], "{:?}", bed.asked_blocks);
}

#[test]
fn a_slow_peer_and_a_liar_take_little_from_two_good_ones() {
    let good = || Nature::good(60_000);
    let slow = Nature { bytes_per_second: 100_000, ..good() };
    for lies_percent in [30, 100] {
        let liar = Nature { lies_percent, ..good() };
        let two = bed(vec![good(), good()]).run(0);
        for natures in [vec![good(), good(), slow.clone(), liar.clone()], vec![liar, slow.clone(), good(), good()]] {
            let four = bed(natures).run(0);
            assert!(four * 9 <= two * 10, "{four} us, with two good ones alone {two}");
        }
    }
}

#[test]
fn a_silent_peer_costs_a_hedge_and_no_more() {
    let silent = Nature { silent: true, ..Nature::good(10_000) };
    for natures in [vec![silent.clone(), Nature::good(10_000)], vec![Nature::good(10_000), silent]] {
        let took_us = bed(natures).run(0);
        assert!(took_us < 12 * SECOND_US, "{took_us}");
    }
}

#[test]
fn a_liar_is_penalised_and_the_blocks_come_from_another() {
    let liar = Nature { lies_percent: 100, latency_us: 1, bytes_per_second: 1 << 30, ..Nature::good(5_000) };
    let mut bed = bed(vec![liar, Nature::good(5_000)]);
    bed.run(0);
    assert!(bed.asked[&id(0)] < 50, "{:?}", bed.asked);
}

#[test]
fn a_peer_asked_to_be_left_alone_is() {
    let mut bed = bed(vec![Nature::good(100)]);
    bed.peers[0].not_before = START_US + 3 * SECOND_US;
    bed.ask();
    assert!(bed.under_way() == 0);
    assert_eq!(bed.wake_at, Some(START_US + 3 * SECOND_US));
}

#[test]
fn nothing_is_asked_when_nothing_is_missing() {
    for natures in [vec![], vec![Nature::good(0)]] {
        let mut bed = bed(natures);
        bed.ask();
        assert!(bed.under_way() == 0);
        assert_eq!(bed.wake_at, None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn every_height_is_fetched_and_every_rule_is_kept(
        natures in prop::collection::vec(any::<u64>(), 0..6),
        fails_percent in 0..40_u64,
        limits: u64,
        forgets_percent in prop::sample::select(vec![0_u64, 0, 2, 20]),
        seed: u64,
    ) {
        let mut natures: Vec<_> = natures.into_iter().map(|seed| Nature::drawn(3_000, seed)).collect();
        // Somebody has to have the blocks, and give them now and then.
        natures.push(Nature { fails_percent, ..Nature::good(3_000) });
        of(natures, drawn_limits(limits), seed).run(forgets_percent);
    }
}
