//! What a node costs while nothing happens, how soon it serves, and how soon a new plugin is live.

use std::path::Path;
use std::time::{Duration, Instant};

use tenon::sample::Sample;

use crate::catch_up::{encode, memory, prepare, store};
use crate::process::Process;
use crate::report::{Report, median};

const BLOCKS: usize = 100_000;
const ACCOUNTS: usize = 100_000;
const STARTS: usize = 5;
const SWAPS: usize = 11;

/// Adds the figures to `report`.
pub async fn run(dir: &Path, report: &mut Report) {
    let mut sample = Sample::new(3, ACCOUNTS);
    let genesis = (**sample.genesis()).clone();
    prepare(dir, &genesis, "");
    let encoded = encode(&sample.blocks(BLOCKS, 0));
    store(dir, &genesis, &encoded);
    drop((sample, encoded));

    // The first start fills the compile cache.
    Process::start(dir).stop();
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let started = Instant::now();
        let node = Process::start(dir);
        assert_eq!(node.height().await, BLOCKS as u64);
        starts.push(started.elapsed().as_secs_f64() * 1e3);
        node.stop();
    }
    report.at_most(
        "start to serving, 100,000 blocks and accounts, warm compile cache",
        median(starts),
        "ms",
        500.0,
        None,
    );

    let node = Process::start(dir);
    for _ in 0..100 {
        node.height().await;
    }
    // Idle: long enough for pages that only the start needed to be given back.
    tokio::time::sleep(Duration::from_secs(3)).await;
    report.at_most(
        "resident memory, idle, three plugins, 100,000 blocks and accounts",
        memory(node.id(), "VmRSS"),
        "MB",
        64.0,
        None,
    );

    // Two versions that take turns, both compiled before: what is measured is noticing, loading and swapping.
    let bytes = std::fs::read(tenon_build::path("token-bucket")).expect("the plugin is built");
    let versions = ["even", "odd"].map(|note| tenon_build::restamp(&bytes, note));
    let mut swaps = Vec::new();
    for swap in 0..SWAPS + 2 {
        let before = node.slot("rate-limit").await["generation"].as_u64().expect("a number");
        let staged = dir.join("staged.wasm");
        std::fs::write(&staged, &versions[swap % 2]).expect("a temporary directory");
        let started = Instant::now();
        std::fs::rename(&staged, dir.join("plugins/token-bucket.wasm")).expect("one file system");
        while node.slot("rate-limit").await["generation"].as_u64() == Some(before) {
            assert!(started.elapsed() < Duration::from_secs(20), "the new version does not go live");
        }
        // The first two are compiled.
        if swap >= 2 {
            swaps.push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    report.at_most("a plugin renamed into place until it is live, warm compile cache", median(swaps), "ms", 50.0, None);
    node.stop();
}
