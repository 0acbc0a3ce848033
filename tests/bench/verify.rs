//! What it costs to verify a whole state, and to take one over: a chain with a million accounts.

use std::path::Path;
use std::time::Instant;

use tenon::chain::{Address, Allocation, Genesis, Hash, Time};
use tenon::ledger::{Ledger, LedgerOptions};
use tenon::maintenance::{audit, database};
use tenon::sample::{self, Sample};
use tenon::snapshot::export::ExportOptions;
use tenon::snapshot::install;

use crate::report::Report;

/// Accounts of the chain.
const ACCOUNTS: u64 = 1_000_000;

/// A genesis with that many accounts, which nobody has keys for; and one block on it.
fn genesis() -> Genesis {
    let address = |n: u64| Address(*Hash::of(&[b"account", &n.to_be_bytes()]).0.first_chunk().expect("32 bytes"));
    let allocations = (0..ACCOUNTS).map(|n| Allocation { address: address(n), balance: n + 1 }).collect();
    Genesis { allocations, ..sample::genesis(1, 0) }
}

/// Adds the figures to `report`.
pub async fn run(dir: &Path, report: &mut Report) {
    let genesis = genesis();
    let path = dir.join("chain.db");
    let open = || Ledger::open(LedgerOptions::new(path.clone(), genesis.clone()), Vec::new()).expect("a database");
    let ledger = open();
    let mut sample = Sample::on(genesis.clone().into(), sample::key(1, 0), Vec::new());
    let block = tenon::chain::verify::verify_all(sample.blocks(1, 0), &genesis).remove(0).expect("valid");
    ledger.import(vec![block]).await.remove(0).expect("follows");

    let started = Instant::now();
    let mut rows = 0_u64;
    ledger.storage().read(|reader| reader.each_account(|_, _| rows += 1)).expect("readable");
    let floor = started.elapsed().as_secs_f64();
    assert_eq!(rows, ACCOUNTS);
    let started = Instant::now();
    let checked = ledger.storage().read(audit::check).expect("readable");
    let seconds = started.elapsed().as_secs_f64();
    assert!(checked.ok && checked.accounts == ACCOUNTS, "{checked:?}");
    report.at_most("state of 1,000,000 accounts verified", seconds, "s", 5.0, Some(floor));
    ledger.stop();

    let started = Instant::now();
    let ledger = open();
    report.note("a node with 1,000,000 accounts opens its chain", started.elapsed().as_secs_f64(), "s");
    ledger.stop();
    let out = dir.join("chain.snapshot");
    let started = Instant::now();
    let snapshot = database::export(&path, &genesis, ExportOptions::default(), &out, |_| true).expect("a snapshot");
    report.note("snapshot of 1,000,000 accounts exported", started.elapsed().as_secs_f64(), "s");
    report.note("its size", snapshot.manifest().bytes() as f64 / f64::from(1 << 20), "MiB");
    let started = Instant::now();
    install::install(&snapshot, &dir.join("copy.db"), &genesis, Time::now(), |_| {}).expect("it holds");
    report.note("snapshot of 1,000,000 accounts imported", started.elapsed().as_secs_f64(), "s");
    let started = Instant::now();
    database::backup(&path, &dir.join("backup.db")).expect("a backup");
    report.note("database with 1,000,000 accounts backed up", started.elapsed().as_secs_f64(), "s");
}
