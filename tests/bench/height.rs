//! Whether a long chain is a slow one: how fast a follower goes on from height 1,000,000, over how fast it goes on from
//! height 10,000 of the same chain.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tenon::chain::{Genesis, Height};
use tenon::ledger::{Ledger, LedgerOptions};
use tenon::sample::Sample;

use crate::catch_up::{import, prepare};
use crate::process::Process;
use crate::report::{Report, median};

const LOW: Height = 10_000;
const HIGH: Height = 1_000_000;

/// Blocks over which the rate is taken, and those that are left after them: no follower is at its end while measured.
const MEASURED: Height = 60_000;
const MORE: Height = 20_000;

const TRANSACTIONS: usize = 1;
const ACCOUNTS: usize = 2_000;

/// Times that each is measured; the medians count.
const ROUNDS: usize = 3;

/// Blocks that are made and stored at a time.
const AT_ONCE: Height = 10_000;

/// Adds the figures to `report`.
pub async fn run(dir: &Path, report: &mut Report) {
    let mut sample = Sample::new(4, ACCOUNTS);
    let genesis = (**sample.genesis()).clone();
    let source = dir.join("source");
    prepare(&source, &genesis, "");
    let mut grown = 0;
    let mut copies = Vec::new();
    for height in [LOW, HIGH] {
        grow(&source, &mut sample, &mut grown, height).await;
        let copy = dir.join(format!("{height}.db"));
        std::fs::copy(database(&source), &copy).expect("no node has it open");
        copies.push((copy, height));
    }
    grow(&source, &mut sample, &mut grown, HIGH + MEASURED + MORE).await;
    let source = Process::start(&source);
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        // Neighbours in time: other load on the machine meets both.
        for ((copy, height), rates) in copies.iter().zip(&mut rates) {
            let follower = dir.join(format!("{height}-{round}"));
            prepare(&follower, &genesis, &format!("[sync]\nsources = [\"{}\"]\n", source.rpc));
            std::fs::create_dir_all(follower.join("data")).expect("a temporary directory");
            std::fs::copy(copy, database(&follower)).expect("nobody has it open");
            // On disk, as a node's own is: else the follower's first checkpoint waits until all of the copy is.
            std::fs::File::open(database(&follower)).and_then(|file| file.sync_all()).expect("a file");
            rates.push(rate(&follower, *height).await);
            std::fs::remove_dir_all(&follower).expect("our own folder");
        }
    }
    let rates = rates.map(median);
    source.stop();
    report.note("catch-up from height 10,000, 1 transaction a block", rates[0], "blocks/s");
    report.note("  from height 1,000,000", rates[1], "blocks/s");
    report.at_least("  the second over the first", rates[1] / rates[0], "ratio", 0.9, None);
}

fn database(node: &Path) -> PathBuf {
    node.join("data/chain.db")
}

/// Makes the chain in `dir` go on from `grown` to `height`.
async fn grow(dir: &Path, sample: &mut Sample, grown: &mut Height, height: Height) {
    let genesis: Genesis = (**sample.genesis()).clone();
    let ledger = Ledger::open(LedgerOptions::new(database(dir), genesis), Vec::new()).expect("a ledger");
    while *grown < height {
        let count = AT_ONCE.min(height - *grown);
        let blocks = sample.blocks(usize::try_from(count).expect("some thousands"), TRANSACTIONS);
        import(&ledger, blocks).await;
        *grown += count;
    }
    tokio::task::block_in_place(|| ledger.stop());
}

/// Blocks a second of the follower in `dir`, over the blocks that are measured, from `height` on.
async fn rate(dir: &Path, height: Height) -> f64 {
    let follower = Process::start(dir);
    let mut begun = None;
    let rate = loop {
        let (now, at) = (Instant::now(), follower.height().await);
        match begun {
            None if at > height => begun = Some((now, at)),
            Some((from, first)) if at >= height + MEASURED => {
                break (at - first) as f64 / now.duration_since(from).as_secs_f64();
            }
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    follower.kill();
    rate
}
