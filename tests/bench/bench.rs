//! `make bench`: every figure that Tenon promises, measured on this machine, with a floor program beside it where the
//! hardware decides. Prints a table and writes `target/bench.json`. With words as arguments only the parts whose names
//! hold one of them run: `policy`, `journal`, `replay`, `simulate`, `catch-up`,
//! `catch-up-peers`, `catch-up-height`, `serve`, `lifecycle`, `node`, `gossip`, `verify`.

mod bare;
mod catch_up;
mod gossip;
mod height;
mod journal;
mod lifecycle;
mod load;
mod node;
#[path = "../support/peer.rs"]
#[expect(dead_code, reason = "shared with the tests of connections: each uses its part")]
mod peer;
mod peers;
mod policy;
#[path = "../support/process.rs"]
#[expect(dead_code, reason = "shared with the tests of whole nodes: each uses its part")]
mod process;
mod replay;
mod report;
mod serve;
mod simulate;
#[path = "../support/source.rs"]
#[expect(dead_code, reason = "shared with the tests of sync: each uses its part")]
mod source;
#[path = "../support/traffic.rs"]
mod traffic;
mod verify;

use std::path::Path;

use report::Report;

fn main() -> std::process::ExitCode {
    if std::env::args().nth(1).is_some_and(|word| word == bare::WORD) {
        tokio::runtime::Runtime::new().expect("a runtime").block_on(bare::serve());
        return std::process::ExitCode::SUCCESS;
    }
    // Cargo adds `--bench`.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let runs = |part: &str| wanted.is_empty() || wanted.iter().any(|word| part.contains(word.as_str()));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let mut report = Report::default();
    let dir = || tempfile::tempdir().expect("a temporary directory");
    if runs("policy") {
        policy::run(dir().path(), &mut report);
    }
    if runs("journal") {
        journal::run(dir().path(), &mut report);
    }
    if runs("replay") {
        let dir = dir();
        runtime.block_on(replay::run(dir.path(), &mut report));
    }
    if runs("simulate") {
        simulate::run(&mut report);
    }
    if runs("catch-up") {
        let dir = dir();
        runtime.block_on(catch_up::run(dir.path(), &mut report));
    }
    if runs("catch-up-peers") {
        let dir = dir();
        runtime.block_on(peers::run(dir.path(), &mut report));
    }
    if runs("catch-up-height") {
        let dir = dir();
        runtime.block_on(height::run(dir.path(), &mut report));
    }
    if runs("serve") {
        let dir = dir();
        runtime.block_on(serve::run(dir.path(), &mut report));
    }
    if runs("lifecycle") {
        let dir = dir();
        runtime.block_on(lifecycle::run(dir.path(), &mut report));
    }
    if runs("node") {
        let dir = dir();
        runtime.block_on(node::run(dir.path(), &mut report));
    }
    if runs("gossip") {
        runtime.block_on(gossip::run(&mut report));
    }
    if runs("verify") {
        let dir = dir();
        runtime.block_on(verify::run(dir.path(), &mut report));
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory");
    let met = report.finish(&target.join("bench.json"));
    if met { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::from(1) }
}
