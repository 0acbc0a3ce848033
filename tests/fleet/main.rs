//! Whole nodes under faults, in virtual time: three to seven of them, each with the real ledger, mempool, producer and sync
//! engine, between them a network that loses, delays, doubles, reorders and cuts, clocks that are off, nodes that are
//! killed and come back, and clients. One seed decides everything; the same seed gives the same run, to the byte.
//!
//! `TENON_TEST_SEED=N` replays one seed and prints what happened, `TENON_TEST_SEEDS=N` runs so many.
//!
//! [`plan`] is what a seed draws beforehand, [`world`] the network and what befalls it, [`node`] one node, [`link`] a
//! node's way to ask another, and [`chronicle`] what really happened, against which the nodes are held all the time.

mod chronicle;
mod link;
mod node;
mod plan;
mod tally;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tally::Tally;
use world::Lines;

/// Seeds in the short form: about ten seconds on two cores without optimisation.
const SEEDS: u64 = 24;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, got `{text}`")))
}

/// Runs one seed; where it fails, says which it was and what happened last.
fn run(seed: u64, lines: &Lines) -> Option<Tally> {
    let outcome = catch_unwind(AssertUnwindSafe(|| world::run(seed, lines).0));
    let tail = || lines.lock().expect("nobody panics while holding it").iter().cloned().collect::<Vec<_>>().join("\n");
    if outcome.is_err() {
        eprintln!("{}\nseed {seed} failed: TENON_TEST_SEED={seed} replays it", tail());
    }
    outcome.ok()
}

#[test]
fn whatever_befalls_it_a_fleet_ends_on_the_best_chain_and_nothing_is_lost_or_done_twice() {
    if let Some(seed) = number("TENON_TEST_SEED") {
        let lines = Lines::default();
        let tally = run(seed, &lines).expect("this seed fails");
        return println!("{}\n{tally}", lines.lock().unwrap().iter().cloned().collect::<Vec<_>>().join("\n"));
    }
    let count = number("TENON_TEST_SEEDS").unwrap_or(SEEDS);
    let first = number("TENON_TEST_FIRST_SEED").unwrap_or(0);
    let (next, all) = (AtomicU64::new(first), Mutex::new((Tally::default(), Vec::new())));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let outcome = run(seed, &Lines::default());
                    let (tally, failed) = &mut *all.lock().expect("nobody panics while holding it");
                    match outcome {
                        Some(one) => *tally += one,
                        None => failed.push(seed),
                    }
                }
            });
        }
    });
    let (tally, failed) = all.into_inner().expect("nobody panics while holding it");
    println!("{tally}");
    assert!(failed.is_empty(), "seeds {failed:?} failed: TENON_TEST_SEED=N replays one");
    if count >= SEEDS {
        let Tally { blocks, reorgs, partitions, kills, lost, in_blocks, .. } = tally;
        let seen = [blocks, reorgs, partitions, kills, lost, in_blocks];
        assert!(seen.iter().all(|count| *count > 0), "something never happened: {tally}");
    }
}

#[test]
fn the_same_seed_gives_the_same_events() {
    for seed in [3, 11] {
        let (once, twice) = (world::run(seed, &Lines::default()), world::run(seed, &Lines::default()));
        assert_eq!(once, twice, "seed {seed}");
        assert_ne!(once.1, world::run(seed + 1, &Lines::default()).1, "another seed is another run");
    }
}
