//! What a block costs without a network: the floor program (decode, verify, insert, nothing else), and the careful way
//! that nobody should take (one signature at a time, one block a commit).

use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;

use rayon::prelude::*;
use rusqlite::{Connection, params};
use tenon::chain::{Block, Genesis, VerifiedBlock, verify};
use tenon::ledger::{Ledger, LedgerOptions};
use tenon::sample::Sample;

use crate::catch_up::encode;
use crate::report::Report;

/// Blocks a second of decoding, batch verification on all cores, and inserting into bare tables with the same
/// indexes, 10,000 transactions a commit. No execution, no state, no network: what the hardware and the libraries cost.
pub fn floor(dir: &Path, genesis: &Genesis, encoded: &[Vec<u8>], transactions: usize) -> f64 {
    let path = dir.join(format!("floor-{transactions}.db"));
    let connection = Connection::open(&path).expect("a new database");
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 8000;
             CREATE TABLE block (height INTEGER PRIMARY KEY, body BLOB);
             CREATE TABLE block_index (prefix INTEGER, height INTEGER, PRIMARY KEY (prefix, height)) WITHOUT ROWID;
             CREATE TABLE tx (prefix INTEGER, place INTEGER, PRIMARY KEY (prefix, place)) WITHOUT ROWID;
             CREATE TABLE touched (prefix INTEGER, place INTEGER, PRIMARY KEY (prefix, place)) WITHOUT ROWID;
             CREATE TABLE account (address BLOB PRIMARY KEY, balance INTEGER, nonce INTEGER) WITHOUT ROWID;",
        )
        .expect("plain tables");
    let started = Instant::now();
    let replay = in_groups(encoded, genesis, transactions, async |blocks| insert(&connection, &blocks));
    tokio::runtime::Handle::current().block_on(replay);
    encoded.len() as f64 / started.elapsed().as_secs_f64()
}

fn insert(connection: &Connection, blocks: &[VerifiedBlock]) {
    connection.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes");
    let (mut hashes, mut places, mut touched) = (Vec::new(), Vec::new(), Vec::new());
    let mut accounts = std::collections::BTreeMap::new();
    let mut body = Vec::new();
    {
        let mut statement = connection.prepare_cached("INSERT INTO block VALUES (?, ?)").expect("a table");
        for verified in blocks {
            let height = verified.height().cast_signed();
            body.clear();
            verified.block().encode(&mut body);
            statement.execute(params![height, body]).expect("a new height");
            hashes.push((verified.hash().prefix(), height));
            for (position, (transaction, hash)) in
                (0_i64..).zip(verified.block().transactions.iter().zip(verified.transaction_hashes()))
            {
                let place = height << 14 | position;
                places.push((hash.prefix(), place));
                for address in [transaction.from(), transaction.to] {
                    let prefix = i64::from_be_bytes(*address.0.first_chunk().expect("20 bytes"));
                    touched.push((prefix, place));
                    accounts.insert(address, (transaction.amount, transaction.nonce));
                }
            }
        }
    }
    for (sql, rows) in [
        ("INSERT INTO block_index VALUES (?, ?)", &mut hashes),
        ("INSERT INTO tx VALUES (?, ?)", &mut places),
        ("INSERT OR IGNORE INTO touched VALUES (?, ?)", &mut touched),
    ] {
        rows.sort_unstable();
        let mut statement = connection.prepare_cached(sql).expect("a table");
        for row in rows.drain(..) {
            statement.execute([row.0, row.1]).expect("a row");
        }
    }
    let mut statement = connection.prepare_cached("INSERT OR REPLACE INTO account VALUES (?, ?, ?)").expect("a table");
    for (address, (balance, nonce)) in accounts {
        statement.execute(params![address.0, balance.cast_signed(), nonce.cast_signed()]).expect("a row");
    }
    drop(statement);
    connection.execute_batch("COMMIT").expect("space on the disk");
}

/// Blocks a second with each signature checked singly and one block a commit, through the real ledger.
pub async fn careful(dir: &Path, genesis: &Genesis, encoded: &[Vec<u8>], transactions: usize) -> f64 {
    let path = dir.join(format!("careful-{transactions}.db"));
    let mut options = LedgerOptions::new(path, genesis.clone());
    options.group_blocks_max = 1;
    let ledger = Ledger::open(options, Vec::new()).expect("a new ledger");
    let started = Instant::now();
    for bytes in encoded {
        let block = Block::decode(bytes).expect("our own block");
        let verified = verify::verify_singly(vec![block], genesis).remove(0).expect("valid");
        ledger.import(vec![verified]).await.remove(0).expect("follows");
    }
    let rate = encoded.len() as f64 / started.elapsed().as_secs_f64();
    ledger.stop();
    rate
}

/// Blocks a second through the real ledger without a network: as [`floor`], with execution, state root and all tables.
pub async fn ledger_alone(dir: &Path, genesis: &Genesis, encoded: &[Vec<u8>], transactions: usize) -> f64 {
    let options = LedgerOptions::new(dir.join(format!("alone-{transactions}.db")), genesis.clone());
    let ledger = Ledger::open(options, Vec::new()).expect("a new ledger");
    let started = Instant::now();
    in_groups(encoded, genesis, transactions, async |blocks| {
        assert!(ledger.import(blocks).await.iter().all(Result::is_ok), "our own blocks follow each other");
    })
    .await;
    let rate = encoded.len() as f64 / started.elapsed().as_secs_f64();
    ledger.stop();
    rate
}

/// Decodes and verifies on all cores, and hands groups of about 10,000 transactions to `take` on another.
async fn in_groups(
    encoded: &[Vec<u8>],
    genesis: &Genesis,
    transactions: usize,
    mut take: impl AsyncFnMut(Vec<VerifiedBlock>),
) {
    let chunk = (2_048 / (transactions + 1)).clamp(8, 500);
    let group = (10_000 / transactions.max(1)).clamp(chunk, 5_000);
    let (sender, receiver) = mpsc::sync_channel::<Vec<VerifiedBlock>>(8);
    let (encoded, genesis) = (encoded.to_vec(), genesis.clone());
    let verifier = std::thread::spawn(move || {
        let verified = |chunk: &[Vec<u8>]| -> Vec<VerifiedBlock> {
            let blocks = chunk.iter().map(|bytes| Block::decode(bytes).expect("our own block")).collect();
            verify::verify_all(blocks, &genesis).into_iter().map(|block| block.expect("valid")).collect()
        };
        // Every core takes a part, as the follower does.
        for part in encoded.chunks(chunk * rayon::current_num_threads()) {
            let chunks: Vec<_> = part.par_chunks(chunk).map(verified).collect();
            for chunk in chunks {
                sender.send(chunk).expect("the writer waits");
            }
        }
    });
    let mut waiting = Vec::new();
    for blocks in receiver {
        waiting.extend(blocks);
        if waiting.len() >= group {
            take(std::mem::take(&mut waiting)).await;
        }
    }
    take(waiting).await;
    verifier.join().expect("it has sent everything");
}
/// Adds the ledger's own figures to `report`: what is left of the floor when execution, state roots and all tables are on.
pub async fn run(dir: &Path, report: &mut Report) {
    for (transactions, blocks) in [(0, 60_000), (1, 30_000), (10, 6_000), (100, 800)] {
        let mut sample = Sample::new(1, 2_000);
        let genesis = (**sample.genesis()).clone();
        let encoded = encode(&sample.blocks(blocks, transactions));
        let floor = tokio::task::block_in_place(|| floor(dir, &genesis, &encoded, transactions));
        let alone = ledger_alone(dir, &genesis, &encoded, transactions).await;
        report.note(format!("floor: decode, verify, insert, {transactions} transactions a block"), floor, "blocks/s");
        report.note(format!("the ledger without a network, {transactions} a block"), alone, "blocks/s");
    }
}
