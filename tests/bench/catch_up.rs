//! How fast a follower catches up with a source over loopback HTTP: two real node processes, everything on.

use std::path::Path;
use std::time::Instant;

use tenon::chain::{Block, Genesis, verify};
use tenon::ledger::{Ledger, LedgerOptions};
use tenon::sample::Sample;

use crate::process::Process;
use crate::replay;
use crate::report::Report;

/// Transactions a block, blocks, and blocks a second that should be reached.
const CASES: [(usize, usize, f64); 4] =
    [(0, 120_000, 30_000.0), (1, 60_000, 12_000.0), (10, 12_000, 3_000.0), (100, 1_600, 300.0)];

/// Accounts that send and receive.
const ACCOUNTS: usize = 2_000;

/// Adds the figures to `report`.
pub async fn run(dir: &Path, report: &mut Report) {
    for (transactions, blocks, goal) in CASES {
        let dir = dir.join(format!("{transactions}"));
        let mut sample = Sample::new(1, ACCOUNTS);
        let genesis = (**sample.genesis()).clone();
        let made = sample.blocks(blocks, transactions);
        let encoded = encode(&made);
        drop(made);

        let (of_replay, of_genesis) = (encoded.clone(), genesis.clone());
        std::fs::create_dir_all(&dir).expect("a temporary directory");
        let place = dir.clone();
        let floor = tokio::task::spawn_blocking(move || replay::floor(&place, &of_genesis, &of_replay, transactions))
            .await
            .expect("the floor runs");
        let (source, copy) = (dir.join("source"), dir.join("follower"));
        prepare(&source, &genesis, "");
        store(&source, &genesis, &encoded);
        let source = Process::start(&source);
        prepare(&copy, &genesis, &format!("[sync]\nsources = [\"{}\"]\n", source.rpc));
        let follower = Process::start(&copy);
        let (rate, peak) = follow(&follower, blocks as u64).await;
        report.at_least(
            format!("catch-up over HTTP, {transactions} transactions a block"),
            rate,
            "blocks/s",
            goal,
            Some(floor),
        );
        report.at_least(
            format!("  the same over the floor program, {transactions} a block"),
            rate / floor,
            "ratio",
            0.5,
            None,
        );
        report.at_most(
            format!("  resident memory of the follower at its peak, {transactions} a block"),
            peak,
            "MB",
            256.0,
            None,
        );
        follower.stop();
        source.stop();
        let some = &encoded[..encoded.len().min(2_000 / (transactions + 1) + 20)];
        let careful = replay::careful(&dir, &genesis, some, transactions).await;
        report.note(
            format!("  one block a commit and one signature at a time, {transactions} a block"),
            careful,
            "blocks/s",
        );
    }
}

/// The stored bytes of blocks.
pub fn encode(blocks: &[Block]) -> Vec<Vec<u8>> {
    let encode = |block: &Block| {
        let mut bytes = Vec::new();
        block.encode(&mut bytes);
        bytes
    };
    blocks.iter().map(encode).collect()
}

/// Writes a node's directory: no producer, no agents, the shipped plugins, free ports, and `more` configuration.
pub fn prepare(dir: &Path, genesis: &Genesis, more: &str) {
    let plugins = dir.join("plugins");
    std::fs::create_dir_all(&plugins).expect("a temporary directory");
    for name in ["token-bucket", "parallel-range", "ping-pong"] {
        std::fs::copy(tenon_build::path(name), plugins.join(format!("{name}.wasm"))).expect("the plugin is built");
    }
    let config = format!(
        "[rpc]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n{more}
         {}[plugins.sync]\nuse = \"parallel-range\"\n",
        // Unless the caller says how.
        if more.contains("[plugins.rate-limit]") { "" } else { "[plugins.rate-limit]\nuse = \"token-bucket\"\n" }
    );
    for (name, text) in [
        ("tenon.toml", config.as_str()),
        ("genesis.json", &genesis.to_json()),
        ("admin.token", "a-token-for-the-benchmark"),
    ] {
        std::fs::write(dir.join(name), text).expect("a temporary directory");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(dir.join("admin.token"), private).expect("our own file");
    }
}

/// Puts blocks into the database of a node that does not run.
pub fn store(dir: &Path, genesis: &Genesis, encoded: &[Vec<u8>]) {
    let options = LedgerOptions::new(dir.join("data/chain.db"), genesis.clone());
    let ledger = Ledger::open(options, Vec::new()).expect("a new ledger");
    tokio::task::block_in_place(|| {
        for chunk in encoded.chunks(2_000) {
            let blocks = chunk.iter().map(|bytes| Block::decode(bytes).expect("our own block")).collect();
            tokio::runtime::Handle::current().block_on(import(&ledger, blocks));
        }
        ledger.stop();
    });
}

/// Puts blocks on top of a ledger's chain.
pub async fn import(ledger: &Ledger, blocks: Vec<Block>) {
    let verified =
        verify::verify_all(blocks, ledger.genesis()).into_iter().map(|block| block.expect("valid")).collect();
    let answers = ledger.import(verified).await;
    assert!(answers.iter().all(Result::is_ok), "our own blocks follow each other");
}

/// Waits until the follower has `blocks`; answers blocks a second from the first it had to the last, and its peak memory
/// in MB.
pub async fn follow(follower: &Process, blocks: u64) -> (f64, f64) {
    let mut first = None;
    loop {
        let height = follower.height().await;
        let now = Instant::now();
        if height >= blocks {
            // A chain that came in one commit would have no rate: the start then counts from the process.
            let (at, from) = first.unwrap_or((now, 0));
            let rate = (height - from) as f64 / now.duration_since(at).as_secs_f64();
            return (rate, memory(follower.id(), "VmHWM"));
        }
        if first.is_none() {
            first = Some((now, height));
        }
        // Asking costs the two cores that are measured; twenty times a second is exact enough.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// A line of `/proc/PID/status`, in MB.
pub fn memory(id: u32, line: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let kilobytes = status
        .lines()
        .find_map(|text| text.strip_prefix(line)?.trim_start_matches(':').trim().strip_suffix("kB"))
        .and_then(|text| text.trim().parse::<f64>().ok());
    kilobytes.unwrap_or(f64::NAN) / 1_024.0
}
