//! What becomes of the transactions of blocks that are taken back: they wait again where they still can happen, durably,
//! and say why where they cannot.

use std::path::Path;
use std::slice::from_ref;

use tenon::chain::{Hash, State, Time, Transaction, VerifiedBlock};
use tenon::ledger::{BlockHook, Imported, Ledger, LedgerOptions, ProduceRequest, Reach, SwitchError, Switched};
use tenon::mempool::{Mempool, MempoolConfig, MempoolHook, TransactionStatus};
use tenon::storage::{StorageError, TakenBlock, Writer};

use super::rows;
use super::tree::{Tree, address};

/// Refuses the commit of every switch.
struct Refuses;

impl BlockHook for Refuses {
    fn on_block(&mut self, _: &Writer<'_>, _: &VerifiedBlock, _: &State) -> Result<(), StorageError> {
        Ok(())
    }

    fn on_undone(&mut self, _: &Writer<'_>, _: &TakenBlock) -> Result<(), StorageError> {
        Ok(())
    }

    fn on_switched(&mut self, _: &Switched<'_>) -> Result<(), StorageError> {
        Err(StorageError::Inconsistent("the disk is full".into()))
    }
}

fn open_with(dir: &Path, tree: &Tree, config: MempoolConfig, refuses: bool) -> (Ledger, Mempool) {
    let open = || {
        let hook = MempoolHook::new();
        let handle = hook.handle();
        let mut hooks: Vec<Box<dyn BlockHook>> = vec![Box::new(hook)];
        if refuses {
            hooks.push(Box::new(Refuses));
        }
        let options = LedgerOptions::new(dir.join("chain.db"), (*tree.genesis).clone());
        Ok((Ledger::open(options, hooks)?, handle))
    };
    let (ledger, handle) = rows::patiently(open).unwrap();
    let mempool = Mempool::open(ledger.clone(), handle, config).unwrap();
    (ledger, mempool)
}

fn open(dir: &Path, tree: &Tree) -> (Ledger, Mempool) {
    open_with(dir, tree, MempoolConfig::default(), false)
}

async fn import(ledger: &Ledger, blocks: Vec<VerifiedBlock>) {
    let answers = ledger.import(blocks).await;
    assert!(answers.iter().all(|answer| *answer == Ok(Imported::Extended)), "{answers:?}");
}

fn waiting(mempool: &Mempool) -> Vec<Transaction> {
    mempool.pending(100).into_iter().map(|pending| pending.transaction).collect()
}

fn dropped(mempool: &Mempool, hash: &Hash) -> String {
    match mempool.get(hash) {
        Some(TransactionStatus::Dropped { reason, .. }) => reason,
        other => panic!("{hash}: {other:?}"),
    }
}

#[tokio::test]
async fn they_wait_again_where_the_other_branch_has_them_not_and_so_it_is_after_a_restart() {
    let mut tree = Tree::new(2, 4, 0);
    let [both, one_only, mail] = [
        tree.transaction(0, 0, 1, 5, None),
        tree.transaction(0, 1, 2, 6, None),
        tree.transaction(0, 2, 3, 0, Some("hi")),
    ];
    let one = tree.grow(0, 1, &[both.clone(), one_only.clone()]);
    let one = tree.grow(one, 1, from_ref(&mail));
    let two = tree.grow(0, 2, from_ref(&both));
    let two = tree.grow_empty(two, 2, 1);
    let dir = rows::dir();
    let (ledger, mempool) = open(dir.path(), &tree);
    let added = mempool.watch();
    import(&ledger, tree.branch(one, 0)).await;
    assert!(mempool.is_empty());
    ledger.switch_branch(tree.branch(two, 0), Reach::Limited).await.unwrap();
    assert!(added.has_changed().unwrap(), "whoever waits for transactions is told");
    let expected = [one_only.clone(), mail.clone()];
    let same = |got: Vec<Transaction>| got.len() == 2 && expected.iter().all(|transaction| got.contains(transaction));
    assert!(same(waiting(&mempool)), "{:?}", waiting(&mempool));
    assert_eq!(mempool.get(&both.hash(&tree.genesis.chain_id)), None, "what both branches have was never dropped");
    ledger.stop();
    drop((ledger, mempool));
    let (ledger, mempool) = open(dir.path(), &tree);
    assert!(same(waiting(&mempool)), "{:?}", waiting(&mempool));
    // A block takes them, and they wait no more; nor do they when the first branch comes back, which has all three.
    let three = tree.grow(two, 1, from_ref(&one_only));
    import(&ledger, tree.branch(three, 3)).await;
    assert_eq!(waiting(&mempool), [mail]);
    let long = tree.grow_empty(one, 4, 1);
    ledger.switch_branch(tree.branch(long, 0), Reach::Limited).await.unwrap();
    assert!(mempool.is_empty(), "{:?}", waiting(&mempool));
    ledger.stop();
}

#[tokio::test]
async fn what_cannot_happen_on_the_other_branch_is_dropped_and_says_why() {
    let mut tree = Tree::new(2, 2, 1);
    let rich = tree.transaction(0, 0, 2, 100, None);
    let chain_id = tree.genesis.chain_id.clone();
    let one = tree.grow(0, 1, &[rich.clone(), tree.transaction(0, 1, 0, 7, None)]);
    // The third account has what it was just given, and nothing on the other branch.
    let poor = tree.transaction(one, 2, 0, 50, None);
    let used = tree.nodes[one].block.as_ref().unwrap().block().transactions[1].clone();
    let one = tree.grow(one, 1, from_ref(&poor));
    // There the first account pays somebody else, with the same nonce, and so does the second.
    let two = tree.grow(0, 2, &[tree.transaction(0, 0, 1, 1, None), tree.transaction(0, 1, 0, 8, None)]);
    let two = tree.grow_empty(two, 2, 1);
    let dir = rows::dir();
    let (ledger, mempool) = open(dir.path(), &tree);
    import(&ledger, tree.branch(one, 0)).await;
    ledger.switch_branch(tree.branch(two, 0), Reach::Limited).await.unwrap();
    assert!(mempool.is_empty(), "{:?}", waiting(&mempool));
    for (transaction, word) in [(&rich, "nonce"), (&used, "nonce"), (&poor, "has 0")] {
        let reason = dropped(&mempool, &transaction.hash(&chain_id));
        assert!(reason.contains("reorg") && reason.contains(word), "{reason}");
    }
    ledger.stop();
    assert!(open(dir.path(), &tree).1.is_empty());
}

#[tokio::test]
async fn limits_hold_for_what_comes_back_and_what_waits_keeps_its_place() {
    let mut tree = Tree::new(2, 4, 0);
    let chain_id = tree.genesis.chain_id.clone();
    let transactions: Vec<_> = (0..4).map(|from| tree.transaction(0, from, from + 1, 5, None)).collect();
    let one = tree.grow(0, 1, &transactions[1..]);
    let two = tree.grow_empty(0, 2, 2);
    let dir = rows::dir();
    let config = MempoolConfig { transactions_max: 2, ..MempoolConfig::default() };
    let (ledger, mempool) = open_with(dir.path(), &tree, config, false);
    import(&ledger, tree.branch(one, 0)).await;
    mempool.submit_transaction(transactions[0].clone()).await.unwrap();
    ledger.switch_branch(tree.branch(two, 0), Reach::Limited).await.unwrap();
    let waits = waiting(&mempool);
    assert_eq!(waits.len(), 2);
    assert!(waits.contains(&transactions[0]) && waits.contains(&transactions[1]), "the oldest first: {waits:?}");
    for transaction in &transactions[2..] {
        let reason = dropped(&mempool, &transaction.hash(&chain_id));
        assert!(reason.contains("2 transactions wait already"), "{reason}");
    }
    ledger.stop();
}

#[tokio::test]
async fn one_that_spends_what_another_brings_follows_it_into_the_next_block() {
    let mut tree = Tree::new(1, 2, 1);
    let gift = tree.transaction(0, 0, 2, 100, None);
    let one = tree.grow(0, 1, from_ref(&gift));
    let spend = {
        let mut spend = tree.transaction(one, 2, 1, 10, None);
        // It pays more, so it is tried first.
        spend.fee = 9;
        spend.signed(&tree.genesis.chain_id, &tree.accounts[2])
    };
    let one = tree.grow(one, 1, from_ref(&spend));
    let two = tree.grow_empty(0, 3, 2);
    let dir = rows::dir();
    let (ledger, mempool) = open(dir.path(), &tree);
    import(&ledger, tree.branch(one, 0)).await;
    ledger.switch_branch(tree.branch(two, 0), Reach::Limited).await.unwrap();
    assert_eq!(waiting(&mempool), [spend.clone(), gift.clone()]);
    let candidates = mempool.pending(10).into_iter().map(|pending| (pending.transaction, pending.hash)).collect();
    let now = Time(ledger.head().timestamp.0 + 1_000_000);
    let request = ProduceRequest { candidates, key: tree.authorities[0].clone(), now, allow_empty: false };
    let produced = ledger.produce(request).await.unwrap();
    assert_eq!((produced.head.unwrap().tx_count, produced.dropped), (2, Vec::new()));
    assert!(mempool.is_empty());
    let account = ledger.storage().read(|reader| reader.account(&address(&tree.accounts[2]))).unwrap().unwrap();
    assert_eq!(account.balance, 100 - 10 - 9);
    ledger.stop();
}

#[tokio::test]
async fn a_switch_that_fails_leaves_the_pool_as_it_was() {
    let mut tree = Tree::new(2, 4, 0);
    let transactions: Vec<_> = (0..3).map(|from| tree.transaction(0, from, from + 1, 5, None)).collect();
    let one = tree.grow(0, 1, &transactions[..2]);
    let two = tree.grow(0, 2, &transactions[2..]);
    let two = tree.grow(two, 1, &[]);
    let dir = rows::dir();
    let (ledger, mempool) = open_with(dir.path(), &tree, MempoolConfig::default(), true);
    import(&ledger, tree.branch(one, 0)).await;
    mempool.submit_transaction(transactions[2].clone()).await.unwrap();
    let before = rows::chain(&dir.path().join("chain.db"));
    let error = ledger.switch_branch(tree.branch(two, 0), Reach::Limited).await.unwrap_err();
    assert!(matches!(&error, SwitchError::Storage(reason) if reason.contains("disk is full")), "{error}");
    assert_eq!(waiting(&mempool), transactions[2..]);
    assert_eq!(mempool.get(&transactions[0].hash(&tree.genesis.chain_id)), None);
    rows::assert_same(&rows::chain(&dir.path().join("chain.db")), &before);
    ledger.stop();
    drop((ledger, mempool));
    // And what is on disk says the same.
    let (ledger, mempool) = open(dir.path(), &tree);
    assert_eq!(waiting(&mempool), transactions[2..]);
    ledger.switch_branch(tree.branch(two, 0), Reach::Limited).await.unwrap();
    assert_eq!(waiting(&mempool).len(), 2);
    ledger.stop();
}
