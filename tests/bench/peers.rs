//! What slow and lying peers cost: a follower that catches up from two good sources, and from the same two with a slow
//! and a lying one beside them. Each source sends over a line of its own, of a known speed, so that the lines are what
//! the follower waits for and not the cores that all of them share.

use std::path::Path;

use tenon::chain::{Block, Genesis};
use tenon::sample::Sample;

use crate::catch_up::{follow, prepare};
use crate::process::Process;
use crate::report::Report;
use crate::source::{Fault, TestSource};

const BLOCKS: usize = 16_000;
const TRANSACTIONS: usize = 10;

/// What a good source sends, in bytes a second.
const PACE: u64 = 2_000_000;

/// Adds the figures to `report`.
pub async fn run(dir: &Path, report: &mut Report) {
    let mut sample = Sample::new(3, 500);
    let blocks = sample.blocks(BLOCKS, TRANSACTIONS);
    let genesis = sample.genesis();
    let good = || source(genesis, &blocks, PACE, Fault::None);
    let two = [good().await, good().await];
    let alone = rate(&dir.join("two"), genesis, &two).await;
    drop(two);
    let four = [
        good().await,
        good().await,
        source(genesis, &blocks, PACE / 10, Fault::None).await,
        source(genesis, &blocks, PACE, Fault::BadSignature).await,
    ];
    let among = rate(&dir.join("four"), genesis, &four).await;
    report.note("catch-up from two sources of 2 MB/s, 10 transactions a block", alone, "blocks/s");
    report.note("  with one of a tenth of the speed and one that lies beside them", among, "blocks/s");
    report.at_least("  the second over the first", among / alone, "ratio", 0.9, None);
    let asked: u64 = four.iter().map(TestSource::sent).sum();
    let chain: usize =
        blocks.iter().map(|block| crate::catch_up::encode(std::slice::from_ref(block))[0].len() + 4).sum();
    report.note("  bytes that the four sent over those of the chain", asked as f64 / chain as f64, "ratio");
}

async fn source(genesis: &Genesis, blocks: &[Block], pace: u64, fault: Fault) -> TestSource {
    let source = TestSource::start(genesis, blocks).await;
    source.set_pace(pace);
    source.set_fault(fault);
    source
}

/// Blocks a second of a new follower of `sources`.
async fn rate(dir: &Path, genesis: &Genesis, sources: &[TestSource]) -> f64 {
    let urls: Vec<_> = sources.iter().map(TestSource::url).collect();
    prepare(dir, genesis, &format!("[sync]\nsources = {urls:?}\n"));
    let follower = Process::start(dir);
    let (rate, _) = follow(&follower, BLOCKS as u64).await;
    follower.stop();
    rate
}
