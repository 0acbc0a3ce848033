//! What slow, distant and lying sources cost a follower that catches up. Each source sends over a line of its own, of a
//! known speed, so that the lines are what the follower waits for and not the cores that all of them share.

use std::path::Path;
use std::time::Duration;

use tenon::chain::{Block, Genesis};
use tenon::sample::Sample;

use crate::catch_up::{encode, follow, prepare};
use crate::process::Process;
use crate::report::Report;
use crate::source::{Fault, TestSource};

const BLOCKS: usize = 16_000;
const TRANSACTIONS: usize = 10;

/// What a good source sends, in bytes a second.
const PACE: u64 = 2_000_000;

/// Ways to lie and to break, one for each of seven sources.
const LIARS: [Fault; 7] = [
    Fault::BadSignature,
    Fault::Garbage,
    Fault::Gap,
    Fault::StallsMidway,
    Fault::Endless,
    Fault::Silent,
    Fault::Dribbles,
];

/// Blocks over the distant line, what it sends in bytes a second (20 Mbit/s), and how long an answer takes to begin.
const DISTANT: (usize, u64, Duration) = (4_000, 2_500_000, Duration::from_millis(100));

/// The chain that all sources have.
struct Chain {
    genesis: Genesis,
    blocks: Vec<Block>,
}

/// Adds the figures to `report`.
pub async fn run(dir: &Path, report: &mut Report) {
    let mut sample = Sample::new(3, 500);
    let chain = Chain { blocks: sample.blocks(BLOCKS, TRANSACTIONS), genesis: (**sample.genesis()).clone() };

    let two = [chain.good().await, chain.good().await];
    let (alone, _) = chain.follow(&dir.join("two"), &two).await;
    drop(two);
    let slow = chain.source(BLOCKS, PACE / 10, Duration::ZERO, Fault::None).await;
    let four = [chain.good().await, chain.good().await, slow, chain.liar(Fault::BadSignature).await];
    let (among, _) = chain.follow(&dir.join("four"), &four).await;
    report.note("catch-up from two sources of 2 MB/s, 10 transactions a block", alone, "blocks/s");
    report.note("  with one of a tenth of the speed and one that lies beside them", among, "blocks/s");
    report.at_least("  the second over the first", among / alone, "ratio", 0.9, None);
    report.note("  bytes that the four sent over those of the chain", sent(&four) / chain.bytes(BLOCKS), "ratio");
    drop(four);

    let (alone, _) = chain.follow(&dir.join("one"), &[chain.good().await]).await;
    let mut eight = vec![chain.good().await];
    for fault in LIARS {
        eight.push(chain.liar(fault).await);
    }
    let (among, peak) = chain.follow(&dir.join("eight"), &eight).await;
    report.note("catch-up from one source of 2 MB/s", alone, "blocks/s");
    report.note("  with seven that lie, stall or break beside it", among, "blocks/s");
    report.at_least("  the second over the first", among / alone, "ratio", 0.5, None);
    report.at_most("  resident memory of the follower at its peak", peak, "MB", 256.0, None);
    drop(eight);

    let (blocks, pace, latency) = DISTANT;
    let distant = [chain.source(blocks, pace, latency, Fault::None).await];
    let (rate, _) = chain.follow(&dir.join("distant"), &distant).await;
    let line = pace as f64 * blocks as f64 / chain.bytes(blocks);
    report.at_least(
        "catch-up over 20 Mbit/s from 100 ms away, of what the line carries",
        rate / line,
        "ratio",
        0.8,
        None,
    );
}

fn sent(sources: &[TestSource]) -> f64 {
    sources.iter().map(TestSource::sent).sum::<u64>() as f64
}

impl Chain {
    async fn source(&self, blocks: usize, pace: u64, latency: Duration, fault: Fault) -> TestSource {
        let source = TestSource::start(&self.genesis, &self.blocks[..blocks]).await;
        source.set_pace(pace, latency);
        source.set_fault(fault);
        source
    }

    async fn good(&self) -> TestSource {
        self.source(BLOCKS, PACE, Duration::ZERO, Fault::None).await
    }

    async fn liar(&self, fault: Fault) -> TestSource {
        self.source(BLOCKS, PACE, Duration::ZERO, fault).await
    }

    /// Bytes of the first `blocks` as ranges carry them.
    fn bytes(&self, blocks: usize) -> f64 {
        encode(&self.blocks[..blocks]).iter().map(|block| block.len() + 4).sum::<usize>() as f64
    }

    /// Blocks a second of a new follower of `sources`, up to the head of the first of them, and its peak memory in MB.
    async fn follow(&self, dir: &Path, sources: &[TestSource]) -> (f64, f64) {
        let urls: Vec<_> = sources.iter().map(TestSource::url).collect();
        prepare(dir, &self.genesis, &format!("[sync]\nsources = {urls:?}\n"));
        let follower = Process::start(dir);
        let answer = follow(&follower, sources[0].blocks()).await;
        follower.stop();
        answer
    }
}
