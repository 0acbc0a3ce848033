//! An authority signs one block a slot, whatever becomes of it.

use std::path::Path;

use tenon::chain::{Head, State, Time, VerifiedBlock};
use tenon::ledger::{BlockHook, Ledger, LedgerOptions, ProduceError, ProduceRequest, Reach};
use tenon::storage::{StorageError, TakenBlock, Writer};

use super::rows;
use super::tree::Tree;

fn open(dir: &Path, tree: &Tree) -> Ledger {
    let options = || LedgerOptions::new(dir.join("chain.db"), (*tree.genesis).clone());
    rows::patiently(|| Ledger::open(options(), Vec::new())).unwrap()
}

/// Asks for a block `ms` milliseconds into the slot that lies `slots` after genesis.
async fn produce(ledger: &Ledger, tree: &Tree, slots: u64, ms: u64) -> Result<Head, ProduceError> {
    let slot = tree.genesis.slot(tree.genesis.timestamp) + slots;
    let now = Time((slot * tree.genesis.slot_ms + ms) * 1_000);
    let key = tree.authority_at(now).clone();
    let request = ProduceRequest { candidates: Vec::new(), key, now, allow_empty: true };
    ledger.produce(request).await.map(|produced| produced.head.expect("empty ones are allowed"))
}

fn slot(tree: &Tree, slots: u64) -> u64 {
    tree.genesis.slot(tree.genesis.timestamp) + slots
}

#[tokio::test]
async fn a_slot_gets_one_block_from_its_authority_though_a_reorg_took_that_back_and_though_it_was_restarted() {
    let mut tree = Tree::new(2, 2, 0);
    let trunk = tree.grow(0, 1, &[]);
    // In slots 3, 4 and 5, while ours is in slot 10.
    let rival = tree.grow_empty(trunk, 3, 2);
    let dir = rows::dir();
    let ledger = open(dir.path(), &tree);
    ledger.import(tree.branch(trunk, 0)).await;
    let ours = produce(&ledger, &tree, 10, 100).await.unwrap();
    let used = Err(ProduceError::SlotUsed(slot(&tree, 10)));
    assert_eq!(produce(&ledger, &tree, 10, 200).await, used, "on top of our own block");
    let reorg = ledger.switch_branch(tree.branch(rival, 0), Reach::Limited).await.unwrap();
    assert_eq!((reorg.undone, reorg.from), (1, ours));
    assert_eq!(produce(&ledger, &tree, 10, 300).await, used, "on another parent");
    ledger.stop();
    drop(ledger);
    let ledger = open(dir.path(), &tree);
    assert_eq!(produce(&ledger, &tree, 10, 400).await, used, "after a restart");
    // The next turn is free.
    assert_eq!(produce(&ledger, &tree, 12, 0).await.unwrap().height, 5);
    ledger.stop();
}

#[tokio::test]
async fn another_authoritys_block_in_the_slot_is_not_followed_within_it() {
    let mut tree = Tree::new(3, 2, 0);
    let first = tree.grow(0, 4, &[]);
    let dir = rows::dir();
    let ledger = open(dir.path(), &tree);
    ledger.import(tree.branch(first, 0)).await;
    assert_eq!(produce(&ledger, &tree, 4, 900).await, Err(ProduceError::SlotUsed(slot(&tree, 4))));
    assert_eq!(produce(&ledger, &tree, 5, 0).await.unwrap().height, 2);
    ledger.stop();
}

#[tokio::test]
async fn a_single_authority_never_signs_one_moment_twice() {
    let mut tree = Tree::new(1, 2, 0);
    let trunk = tree.grow(0, 1, &[]);
    let rival = tree.grow_empty(trunk, 2, 2);
    let dir = rows::dir();
    let ledger = open(dir.path(), &tree);
    ledger.import(tree.branch(trunk, 0)).await;
    // Several blocks a slot are its right.
    let ours = [produce(&ledger, &tree, 9, 0).await.unwrap(), produce(&ledger, &tree, 9, 0).await.unwrap()];
    assert_eq!(ours[1].timestamp.0, ours[0].timestamp.0 + 1);
    let long = tree.grow_empty(rival, 1, 1);
    ledger.switch_branch(tree.branch(long, 0), Reach::Limited).await.unwrap();
    ledger.stop();
    drop(ledger);
    let ledger = open(dir.path(), &tree);
    let next = produce(&ledger, &tree, 9, 0).await.unwrap();
    assert!(next.timestamp > ours[1].timestamp, "{next:?}");
    ledger.stop();
}

/// Refuses the first block that is told to it.
struct RefusesOnce(bool);

impl BlockHook for RefusesOnce {
    fn on_block(&mut self, _: &Writer<'_>, _: &VerifiedBlock, _: &State) -> Result<(), StorageError> {
        if std::mem::replace(&mut self.0, true) {
            return Ok(());
        }
        Err(StorageError::Inconsistent("the disk is full".into()))
    }

    fn on_undone(&mut self, _: &Writer<'_>, _: &TakenBlock) -> Result<(), StorageError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_block_that_was_not_committed_has_used_no_slot() {
    let tree = Tree::new(2, 2, 0);
    let dir = rows::dir();
    let options = LedgerOptions::new(dir.path().join("chain.db"), (*tree.genesis).clone());
    let ledger = Ledger::open(options, vec![Box::new(RefusesOnce(false))]).unwrap();
    let error = produce(&ledger, &tree, 10, 0).await.unwrap_err();
    assert!(matches!(error, ProduceError::Storage(_)), "{error}");
    assert_eq!(produce(&ledger, &tree, 10, 0).await.unwrap().height, 1);
    assert_eq!(produce(&ledger, &tree, 10, 1).await, Err(ProduceError::SlotUsed(slot(&tree, 10))));
    ledger.stop();
}
