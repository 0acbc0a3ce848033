//! What keeps a node's data well: backups made while blocks come in, restored; damage that is found, named and repaired;
//! the state of a running node verified.

#[path = "support/chain.rs"]
mod chain;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chain::{Chain, open, small, verified};
use rusqlite::Connection;
use tenon::chain::{Address, Genesis, Time};
use tenon::maintenance::audit::Auditor;
use tenon::maintenance::database::{self, Checked, MaintenanceError};
use tenon::maintenance::shelf::{MakeError, Shelf, ShelfConfig};
use tenon::snapshot::SnapshotError;
use tenon::snapshot::install::install;
use tenon::storage::{Storage, StorageError, StoredAccount};
use tokio::sync::watch;

fn check(path: &Path, genesis: &Genesis) -> Checked {
    database::check(path, genesis, |_, _| {}).unwrap()
}

/// Changes a database behind everybody's back.
fn tamper(path: &Path, sql: &str) {
    let changed = Connection::open(path).unwrap().execute(sql, []).unwrap();
    assert!(changed > 0, "{sql}");
}

fn accounts(path: &Path) -> Vec<(Address, StoredAccount)> {
    let mut accounts = Vec::new();
    let all = |address, account| {
        accounts.push((address, account));
        Ok::<(), StorageError>(())
    };
    Storage::read_only(path).unwrap().read(|reader| reader.each_stored_account(all)).unwrap();
    accounts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_made_while_blocks_come_in_is_a_chain_of_its_own() {
    let mut chain = Chain::new(1, 50, 20, 3).await;
    let genesis = chain.genesis();
    let (path, out) = (chain.path("chain.db"), chain.path("backups"));
    fs::create_dir(&out).unwrap();
    let blocks = chain.sample.blocks(2_000, 3);
    let mut all = verified(blocks, &genesis);
    let enough = Arc::new(AtomicBool::new(false));
    let (importing, is_enough, to_import) = (chain.ledger.clone(), Arc::clone(&enough), all.clone());
    let import = tokio::spawn(async move {
        for block in to_import {
            if is_enough.load(Ordering::Acquire) {
                break;
            }
            assert!(importing.import(vec![block]).await.iter().all(Result::is_ok));
        }
    });
    let mut made = Vec::new();
    while made.len() < 4 && !import.is_finished() {
        let (path, file) = (path.clone(), out.join(format!("{}.db", made.len())));
        let backup =
            tokio::task::spawn_blocking(move || (database::backup(&path, &file).unwrap(), file)).await.unwrap();
        made.push(backup);
    }
    enough.store(true, Ordering::Release);
    import.await.unwrap();
    let head = chain.ledger.height();
    all.truncate(usize::try_from(head).unwrap() - 20);
    let on_the_way = made.iter().filter(|(backup, _)| (21..head).contains(&backup.height)).count();
    assert!(on_the_way >= 2, "{on_the_way} of {} backups fell between blocks", made.len());
    for (backup, file) in &made {
        // As `sha256sum -c` sees it.
        let line = fs::read_to_string(database::checksum_path(file)).unwrap();
        assert_eq!(line, format!("{}  {}\n", backup.sha256, file.file_name().unwrap().to_str().unwrap()));
        assert_eq!(backup.bytes, fs::metadata(file).unwrap().len());
        let restored = chain.path("restored.db");
        let answer = database::restore(file, &restored, &genesis, false).unwrap();
        assert_eq!((answer.height, answer.hash), (backup.height, backup.hash));
        assert!(check(&restored, &genesis).ok);
        // It goes on with the blocks that came after it, to the same head.
        let ledger = open(&restored, &genesis);
        let rest = all[usize::try_from(backup.height).unwrap() - 20..].to_vec();
        assert!(ledger.import(rest).await.iter().all(Result::is_ok));
        assert_eq!(ledger.head(), chain.ledger.head());
        ledger.stop();
    }
    let error = database::backup(&path, &made[0].1).unwrap_err();
    assert!(matches!(error, MaintenanceError::Exists(_)), "{error}");
    let left: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2 * made.len(), "a file and its checksum each: {left:?}");
    chain.ledger.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_restored_only_where_everything_about_it_is_right() {
    let mut chain = Chain::new(2, 20, 30, 2).await;
    let genesis = chain.genesis();
    let (path, file) = (chain.path("chain.db"), chain.path("backup.db"));
    database::backup(&path, &file).unwrap();
    chain.grow(5, 2).await;
    let running = database::restore(&file, &path, &genesis, false).unwrap_err();
    assert!(matches!(running, MaintenanceError::Storage(StorageError::InUse(_))), "{running}");
    chain.ledger.stop();
    let before = accounts(&path);

    let refused = |name: &str, unchecked: bool, part: &str, make: &dyn Fn(&Path)| {
        let copy = chain.path(name);
        fs::copy(&file, &copy).unwrap();
        fs::copy(database::checksum_path(&file), database::checksum_path(&copy)).unwrap();
        make(&copy);
        let error = database::restore(&copy, &path, &genesis, unchecked).unwrap_err().to_string();
        assert!(error.contains(part), "{name}: {error}");
        assert_eq!(accounts(&path), before, "{name}: nothing has changed");
        assert!(!chain.path("chain.db.part").exists());
    };
    let flip = |copy: &Path| {
        let mut bytes = fs::read(copy).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(copy, bytes).unwrap();
    };
    refused("flipped.db", false, "SHA-256", &flip);
    refused("bare.db", false, "--unchecked", &|copy| fs::remove_file(database::checksum_path(copy)).unwrap());
    refused("cut.db", true, "cut.db: ", &|copy| {
        let bytes = fs::read(copy).unwrap();
        fs::write(copy, &bytes[..bytes.len() / 2]).unwrap();
    });
    refused("rich.db", true, "state root", &|copy| tamper(copy, "UPDATE account SET balance = balance + 1"));
    refused("empty.db", false, "no SHA-256", &|copy| fs::write(database::checksum_path(copy), "").unwrap());
    let other = tenon::sample::Sample::new(3, 2);
    let foreign = database::restore(&file, &chain.path("foreign.db"), other.genesis(), false).unwrap_err();
    assert!(matches!(foreign, MaintenanceError::Storage(StorageError::OtherChain { .. })), "{foreign}");
    assert!(foreign.to_string().starts_with(&file.display().to_string()), "the backup is named: {foreign}");

    let restored = database::restore(&file, &path, &genesis, false).unwrap();
    assert_eq!(restored.height, 30);
    let old = restored.old.unwrap();
    assert_eq!(accounts(&old), before, "what was there is kept");
    let ledger = open(&path, &genesis);
    assert_eq!(ledger.head().height, 30);
    ledger.stop();
    // A database that is no database any more is put aside all the same.
    fs::write(&path, "nonsense").unwrap();
    let restored = database::restore(&file, &path, &genesis, false).unwrap();
    assert_eq!(fs::read(restored.old.unwrap()).unwrap(), b"nonsense");
    assert!(check(&path, &genesis).ok);
}

/// SQL that flips a bit of a block's body: of the byte that `at` picks, given where header and body end.
fn flip(path: &Path, height: u64, at: impl Fn(usize, usize) -> usize) -> String {
    let block = Storage::read_only(path).unwrap().read(|reader| reader.block(height)).unwrap().unwrap();
    let (mut header, mut body) = (Vec::new(), Vec::new());
    block.header.encode(&mut header);
    block.encode(&mut body);
    let at = at(header.len(), body.len());
    body[at] ^= 1;
    format!("UPDATE block SET body = x'{}' WHERE height = {height}", const_hex::encode(body))
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_a_database_is_named_and_what_can_be_is_repaired() {
    let chain = Chain::new(4, 30, 40, 4).await;
    let genesis = chain.genesis();
    chain.ledger.stop();
    let whole = chain.path("chain.db");
    let right = accounts(&whole);
    let found = check(&whole, &genesis);
    assert!(found.ok && found.problems.is_empty(), "{found:?}");
    assert_eq!((found.height, found.blocks, found.transactions, found.accounts), (40, 41, 160, 30));

    let first = const_hex::encode(right[0].0.0);
    let cases: [(&str, String, bool, &[&str]); 14] = [
        (
            "balance",
            format!("UPDATE account SET balance = balance + 1 WHERE address = x'{first}'"),
            true,
            &["accounts:"],
        ),
        ("nonce", format!("UPDATE account SET nonce = nonce + 1 WHERE address = x'{first}'"), true, &["accounts:"]),
        ("lost account", format!("DELETE FROM account WHERE address = x'{first}'"), true, &["accounts:"]),
        (
            "account too many",
            "INSERT INTO account VALUES (x'0101010101010101010101010101010101010101', 1, 0, NULL)".into(),
            true,
            &["accounts:"],
        ),
        (
            "lost index row",
            "DELETE FROM transaction_index_recent WHERE place = (SELECT max(place) FROM transaction_index)".into(),
            true,
            &["transaction_index: 159 rows, the blocks make 160", "lacks a row of transaction 40.3"],
        ),
        (
            "moved index row",
            "UPDATE account_transaction_recent SET place = place + (60 << 14)
             WHERE place = (SELECT min(place) FROM account_transaction)"
                .into(),
            true,
            &["account_transaction", "lacks a row of transaction 1.0", "wrongly has a row of transaction 61.0"],
        ),
        (
            "foreign message",
            "INSERT INTO account_message_recent VALUES (7, 16384)".into(),
            true,
            &["account_message", "wrongly has"],
        ),
        (
            "lost block index",
            "DELETE FROM block_index_recent WHERE height = 9".into(),
            true,
            &["block_index", "lacks a row of block 9"],
        ),
        ("undo above the head", "INSERT INTO undo VALUES (90, x'')".into(), true, &["undo: 1 rows"]),
        (
            "damaged undo",
            "UPDATE undo SET changes = x'00' WHERE height = 33".into(),
            true,
            &["undo record of block 33"],
        ),
        ("gap", "DELETE FROM block WHERE height = 17".into(), false, &["block 17 is missing"]),
        // The amount in a transaction, and the signature of the head, which nothing but signatures commit to.
        ("changed transaction", flip(&whole, 21, |_, body| body - 3), false, &["block 21: its transactions make"]),
        ("changed head", flip(&whole, 40, |header, _| header + 40), false, &["block 40: field `signature`"]),
        (
            "other block",
            "UPDATE block SET body = (SELECT body FROM block WHERE height = 3) WHERE height = 4".into(),
            false,
            &["block 4: says that it is block 3"],
        ),
    ];
    for (name, sql, repairable, parts) in cases {
        let path = chain.path(&format!("{}.db", name.replace(' ', "-")));
        fs::copy(&whole, &path).unwrap();
        tamper(&path, &sql);
        let found = check(&path, &genesis);
        let all = found.problems.join("\n");
        assert!(!found.ok && parts.iter().all(|part| all.contains(part)), "{name}: {all}");
        let repaired = database::repair(&path, &genesis, |_, _| {});
        assert_eq!(repaired.is_ok(), repairable, "{name}: {repaired:?}");
        match repaired {
            Ok(repaired) => {
                assert_eq!(repaired.wrong, u64::from(parts == ["accounts:"]), "{name}: {repaired:?}");
                assert_eq!(check(&path, &genesis).problems, [""; 0], "{name}");
                assert_eq!(accounts(&path), right, "{name}");
                open(&path, &genesis).stop();
            }
            Err(error) => {
                assert!(error.to_string().contains("block"), "{name}: {error}");
                assert_eq!(check(&path, &genesis), found, "{name}: nothing has changed");
            }
        }
    }
    // Blocks that are not here cannot be executed.
    let fresh = Chain::new(4, 30, 40, 4).await;
    let snapshot = fresh.export("s", small(5)).unwrap();
    fresh.ledger.stop();
    let path = chain.path("began.db");
    install(&snapshot, &path, &genesis, Time::now(), |_| {}).unwrap();
    let found = check(&path, &genesis);
    assert!(found.ok && found.base == 36 && found.blocks == 6, "{found:?}");
    let error = database::repair(&path, &genesis, |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("its blocks begin at height 36"), "{error}");
    tamper(&path, "DELETE FROM header WHERE height = 12");
    assert!(check(&path, &genesis).problems[0].contains("the header of block 12 is missing"));
    // After all blocks of a snapshot, how to undo them is known again.
    let all = chain.path("all.db");
    install(&chain.export_all(), &all, &genesis, Time::now(), |_| {}).unwrap();
    let undo = |path: &Path| Storage::read_only(path).unwrap().read(|reader| reader.changes(40)).unwrap();
    assert_eq!(undo(&all), None);
    database::repair(&all, &genesis, |_, _| {}).unwrap();
    assert_eq!(undo(&all), undo(&whole));
}

impl Chain {
    /// A snapshot with all blocks, of the stopped database.
    fn export_all(&self) -> tenon::snapshot::Snapshot {
        let out = self.path("all.snapshot");
        database::export(&self.path("chain.db"), &self.genesis(), small(u64::MAX), &out, |_| true).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_node_finds_accounts_that_changed_on_its_disk_and_names_them() {
    let mut chain = Chain::new(5, 40, 10, 3).await;
    let auditor = Auditor::new(chain.ledger.clone());
    assert_eq!((auditor.last(), auditor.has_failed()), (None, false));
    let good = auditor.verify().await.unwrap();
    assert!(good.ok && good.problem.is_none(), "{good:?}");
    assert_eq!((good.height, good.accounts, good.state_root), (10, 40, chain.ledger.head().state_root));

    let path = chain.path("chain.db");
    let all = accounts(&path);
    let (poor, gone) = (all[3], all[20]);
    tamper(
        &path,
        &format!("UPDATE account SET balance = balance - 1 WHERE address = x'{}'", const_hex::encode(poor.0.0)),
    );
    tamper(&path, &format!("DELETE FROM account WHERE address = x'{}'", const_hex::encode(gone.0.0)));
    let bad = auditor.verify().await.unwrap();
    assert!(!bad.ok && bad.problem.as_ref().unwrap().contains("block 10 says"), "{bad:?}");
    assert_eq!(bad.wrong_accounts, [poor.0, gone.0]);
    assert!(auditor.has_failed() && auditor.last() == Some(bad));
    let mut changes = auditor.watch();
    changes.borrow_and_update();
    // Every so many blocks, while it may.
    let (stop, stopped) = watch::channel(false);
    let (may, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (running, allowed, was_asked) = (auditor.clone(), Arc::clone(&may), Arc::clone(&asked));
    let may_it = move || {
        was_asked.store(true, Ordering::Relaxed);
        allowed.load(Ordering::Relaxed)
    };
    let task = tokio::spawn(async move { running.run(4, may_it, stopped).await });
    while !asked.load(Ordering::Relaxed) {
        chain.grow(1, 1).await;
    }
    assert!(!changes.has_changed().unwrap(), "it may not yet");
    may.store(true, Ordering::Relaxed);
    chain.grow(1, 1).await;
    changes.changed().await.unwrap();
    assert!(auditor.last().unwrap().height > 10 && auditor.has_failed());
    stop.send_replace(true);
    task.await.unwrap();
    chain.ledger.stop();
    // It does not start from that, and says how to go on.
    let error =
        tenon::ledger::Ledger::open(tenon::ledger::LedgerOptions::new(path.clone(), chain.genesis()), Vec::new());
    assert!(error.err().unwrap().to_string().contains("tenon db repair"));
    let repaired = database::repair(&path, &chain.genesis(), |_, _| {}).unwrap();
    assert_eq!(repaired.wrong_accounts, [poor.0, gone.0]);
    let ledger = open(&path, &chain.genesis());
    assert!(Auditor::new(ledger.clone()).verify().await.unwrap().ok);
    ledger.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_makes_snapshots_as_they_fall_due_and_keeps_the_newest() {
    let mut chain = Chain::new(6, 10, 9, 1).await;
    let config = ShelfConfig { dir: chain.path("snapshots"), every_blocks: 10, keep: 2, depth: 3, blocks: 1 };
    let shelf = Shelf::open(chain.ledger.clone(), config.clone()).unwrap();
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn({
        let shelf = shelf.clone();
        async move { shelf.run(|| true, stopped).await }
    });
    let heights = |shelf: &Shelf| shelf.list().iter().map(|kept| kept.manifest.height).collect::<Vec<_>>();
    for (blocks, expected) in [(3, vec![]), (1, vec![10]), (9, vec![10]), (1, vec![20, 10]), (10, vec![30, 20])] {
        chain.grow(blocks, 1).await;
        while heights(&shelf) != expected {
            tokio::task::yield_now().await;
        }
    }
    stop.send_replace(true);
    task.await.unwrap();
    // By hand, of the head or of another block; the one asked for stays, whatever its height.
    let shelf = Shelf::open(chain.ledger.clone(), config.clone()).unwrap();
    let head = shelf.make(None).await.unwrap();
    assert_eq!((head.manifest.height, heights(&shelf)), (33, vec![33, 30]));
    assert_eq!(shelf.make(Some(33)).await.unwrap().id, head.id, "it is there already");
    assert_eq!(shelf.make(Some(5)).await.unwrap().manifest.height, 5);
    assert_eq!(heights(&shelf), [33, 5]);
    assert!(matches!(shelf.make(Some(99)).await, Err(MakeError::Snapshot(SnapshotError::NotHere(_)))));
    assert_eq!(fs::read_dir(&config.dir).unwrap().count(), 2);

    // After a restart they are there, but what is not whole.
    fs::create_dir(config.dir.join("40-1234.stage")).unwrap();
    let damaged = fs::read_dir(&config.dir).unwrap().map(|entry| entry.unwrap().path());
    let damaged =
        damaged.into_iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("5-")).unwrap();
    fs::remove_file(damaged.join("000002.chunk")).unwrap();
    let again = Shelf::open(chain.ledger.clone(), config.clone()).unwrap();
    assert_eq!(heights(&again), [33]);
    assert!(!config.dir.join("40-1234.stage").exists());
    assert_eq!(again.find(&head.id).unwrap().manifest, head.manifest);
    chain.ledger.stop();
}
