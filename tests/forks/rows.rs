//! What a database holds, row by row.

use std::path::Path;
use std::time::{Duration, Instant};

use tenon::ledger::{Imported, Ledger, LedgerOptions};
use tenon::storage::StorageError;

use super::tree::Tree;

/// A directory for databases of which only the content matters: in memory where the machine has such a place, since most
/// of a small commit's time is the disk's.
pub fn dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Opens a database again that was closed just now. A process that another test is about to start has, for a moment, a
/// copy of every open file, and so of the lock.
pub fn patiently<T>(open: impl Fn() -> Result<T, StorageError>) -> Result<T, StorageError> {
    let started = Instant::now();
    loop {
        match open() {
            Err(StorageError::InUse(_)) if started.elapsed() < Duration::from_secs(60) => std::thread::yield_now(),
            answer => return answer,
        }
    }
}

/// Every row of every table of the chain: two databases that hold the same chain have the same.
pub fn chain(path: &Path) -> Vec<String> {
    let connection = rusqlite::Connection::open(path).unwrap();
    let tables =
        ["block", "undo", "block_index", "transaction_index", "account_transaction", "account_message", "account"];
    let mut rows = Vec::new();
    for table in tables {
        let mut statement = connection.prepare(&format!("SELECT * FROM {table} ORDER BY 1, 2")).unwrap();
        // How an index is cut into runs is not part of what it says.
        let columns = statement.column_names().filter(|name| *name != "run").count();
        let mut found = statement.query([]).unwrap();
        while let Some(row) = found.next().unwrap() {
            let cells: Vec<_> = (0..columns).map(|at| format!("{:?}", row.get_ref(at).unwrap())).collect();
            rows.push(format!("{table}: {}", cells.join(" ")));
        }
    }
    rows
}

/// Asserts that two lists of rows are equal; else shows the first row that only one of them has.
pub fn assert_same(ours: &[String], theirs: &[String]) {
    let only = |these: &[String], those: &[String]| these.iter().find(|row| !those.contains(row)).cloned();
    assert!(ours == theirs, "only ours: {:?}, only theirs: {:?}", only(ours, theirs), only(theirs, ours));
}

/// Asserts that a database has the rows of one that imported the chain up to `at` of `tree` and nothing else.
pub async fn assert_equal(path: &Path, tree: &Tree, at: usize) {
    let dir = dir();
    let fresh = dir.path().join("chain.db");
    let ledger = Ledger::open(LedgerOptions::new(fresh.clone(), (*tree.genesis).clone()), Vec::new()).unwrap();
    let answers = ledger.import(tree.branch(at, 0)).await;
    assert!(answers.iter().all(|answer| *answer == Ok(Imported::Extended)), "{answers:?}");
    ledger.stop();
    assert_same(&chain(path), &chain(&fresh));
}
