//! The ledger as its callers see it: what is imported is there after a restart, what is refused leaves nothing.

#[path = "forks/rows.rs"]
#[expect(dead_code, reason = "shared: each test file uses its part")]
mod rows;
#[path = "forks/tree.rs"]
#[expect(dead_code, reason = "shared: each test file uses its part")]
mod tree;

use std::path::Path;

use proptest::prelude::*;
use tenon::chain::{
    Address, Block, BlockError, Hash, Kind, Payload, Time, Transaction, TransactionError, VerifiedBlock, verify,
};
use tenon::ledger::{BlockHook, ImportError, Imported, Ledger, LedgerOptions, ProduceRequest};
use tenon::sample::Sample;
use tenon::storage::{Cursor, StorageError, TakenBlock, TransactionFilter, Writer};

fn open(dir: &Path, sample: &Sample) -> Ledger {
    open_with(dir, sample, Vec::new()).unwrap()
}

fn open_with(dir: &Path, sample: &Sample, hooks: Vec<Box<dyn BlockHook>>) -> Result<Ledger, StorageError> {
    Ledger::open(LedgerOptions::new(dir.join("chain.db"), (**sample.genesis()).clone()), hooks)
}

fn verified(sample: &Sample, blocks: Vec<Block>) -> Vec<VerifiedBlock> {
    verify::verify_all(blocks, sample.genesis()).into_iter().map(Result::unwrap).collect()
}

/// Signs the header again after a test has changed it, so that only the change is wrong.
fn resigned(sample: &Sample, mut block: Block, change: impl FnOnce(&mut Block)) -> Block {
    change(&mut block);
    Block::signed(block.header, block.transactions, sample.authority())
}

#[tokio::test]
async fn what_is_imported_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut sample = Sample::new(1, 20);
    let ledger = open(dir.path(), &sample);
    let blocks = sample.blocks(50, 7);
    let answers = ledger.import(verified(&sample, blocks.clone())).await;
    assert!(answers.iter().all(|answer| *answer == Ok(Imported::Extended)), "{answers:?}");
    assert_eq!(ledger.head(), *sample.head());
    ledger.stop();

    let ledger = open(dir.path(), &sample);
    assert_eq!(ledger.head(), *sample.head());
    let storage = ledger.storage();
    for block in &blocks {
        let height = block.header.height;
        let stored = storage.read(|reader| reader.block(height)).unwrap().unwrap();
        assert_eq!(stored, *block);
        assert_eq!(storage.read(|reader| reader.block_height(&block.hash())).unwrap(), Some(height));
        for (position, transaction) in (0..).zip(&block.transactions) {
            let hash = transaction.hash(&block.header.chain_id);
            let found = storage.read(|reader| reader.transaction(&hash)).unwrap().unwrap();
            assert_eq!((found.cursor(), found.transaction), (Cursor { height, position }, transaction.clone()));
        }
    }
    for key in sample.accounts() {
        let address = Address::of(&key.public_key());
        let account = storage.read(|reader| reader.account(&address)).unwrap().unwrap();
        let expected = sample.account(&address);
        assert_eq!((account.balance, account.nonce), (expected.balance, expected.nonce));
        assert_eq!(account.public_key, (expected.nonce > 0).then(|| key.public_key()));
    }
    let blocks = sample.blocks(3, 1);
    assert!(ledger.import(verified(&sample, blocks)).await.iter().all(Result::is_ok), "it goes on where it was");
    ledger.stop();
}

#[tokio::test]
async fn readers_whose_connections_are_closed_open_others() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(1, 20);
    let ledger = open(dir.path(), &sample);
    let storage = ledger.storage();
    // More readers than there are connections: some wait for one.
    let reading = || (0..200).for_each(|_| assert!(storage.read(|reader| reader.hash_at(0)).unwrap().is_some()));
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..20).map(|_| scope.spawn(reading)).collect();
        while !readers.iter().all(|reader| reader.is_finished()) {
            storage.close_idle();
        }
    });
    storage.close_idle();
    assert!(storage.read_brief(|reader| reader.hash_at(0)).await.unwrap().is_some());
    ledger.stop();
}

#[tokio::test]
async fn readers_that_panic_leave_their_connections_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(1, 20);
    let ledger = open(dir.path(), &sample);
    let storage = ledger.storage();
    // Far more than there are connections: one that was lost each time would leave none.
    for _ in 0..50 {
        let storage = storage.clone();
        let panics = std::thread::spawn(move || storage.read(|_| -> Result<(), StorageError> { panic!("on purpose") }));
        assert!(panics.join().is_err());
    }
    assert!(storage.read(|reader| reader.hash_at(0)).unwrap().is_some());
    ledger.stop();
}

#[tokio::test]
async fn lists_by_address_are_complete_and_cursors_neither_skip_nor_repeat() {
    let dir = tempfile::tempdir().unwrap();
    let mut sample = Sample::new(2, 6);
    let ledger = open(dir.path(), &sample);
    let blocks = sample.blocks(30, 9);
    ledger.import(verified(&sample, blocks.clone())).await;
    let all: Vec<(Cursor, Transaction)> = blocks
        .iter()
        .flat_map(|block| {
            let height = block.header.height;
            (0..).zip(&block.transactions).map(move |(position, tx)| (Cursor { height, position }, tx.clone()))
        })
        .collect();
    for address in sample.accounts().iter().map(|key| Address::of(&key.public_key())) {
        let filters = [
            TransactionFilter { address: Some(address), ..Default::default() },
            TransactionFilter { sender: Some(address), ..Default::default() },
            TransactionFilter { recipient: Some(address), message: Some(true), ..Default::default() },
            TransactionFilter::default(),
        ];
        for filter in filters {
            let expected: Vec<_> = all.iter().rev().filter(|(_, tx)| filter.admits(tx)).map(|(at, _)| *at).collect();
            for limit in [1, 4, 1000] {
                let (mut listed, mut before) = (Vec::new(), None);
                loop {
                    let read = ledger.storage().read(|reader| reader.transactions(&filter, before, limit));
                    let (page, next) = read.unwrap();
                    listed.extend(page.iter().map(|found| found.cursor()));
                    if next.is_none() {
                        break;
                    }
                    before = next;
                }
                assert_eq!(listed, expected, "{filter:?}, {limit} at a time");
            }
        }
        let mail = |tx: &Transaction| tx.is_message() && (tx.from() == address || tx.to == address);
        let expected: Vec<_> = all.iter().filter(|(_, tx)| mail(tx)).map(|(at, _)| *at).collect();
        let (mut listed, mut after) = (Vec::new(), None);
        loop {
            let page = ledger.storage().read(|reader| reader.messages(&address, after, 3)).unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.cursor());
            listed.extend(page.iter().map(|found| found.cursor()));
        }
        assert_eq!(listed, expected);
    }
    ledger.stop();
}

#[tokio::test]
async fn each_block_that_breaks_a_rule_is_refused_by_name_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut sample = Sample::new(3, 8);
    let ledger = open(dir.path(), &sample);
    let first = sample.blocks(1, 2).remove(0);
    ledger.import(verified(&sample, vec![first.clone()])).await;
    let good = sample.blocks(1, 3).remove(0);
    let far = Time::now().plus_ms(3_600_000);
    type Change = Box<dyn FnOnce(&mut Block)>;
    let cases: [(&str, Change); 5] = [
        ("parent_hash", Box::new(|block| block.header.parent_hash.0[0] ^= 1)),
        ("timestamp", Box::new(move |block| block.header.timestamp = first.header.timestamp)),
        ("timestamp", Box::new(move |block| block.header.timestamp = far)),
        ("state_root", Box::new(|block| block.header.state_root.0[0] ^= 1)),
        ("height", Box::new(|block| block.header.height += 1)),
    ];
    let before = ledger.head();
    for (field, change) in cases {
        let block = resigned(&sample, good.clone(), change);
        let answer = ledger.import(verified(&sample, vec![block])).await.remove(0);
        let error = answer.unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{field}: {error}");
        assert_eq!(ledger.head(), before);
    }
    // What verification refuses never reaches the ledger: the types see to that.
    let cases: [(&str, Change); 6] = [
        ("chain_id", Box::new(|block| block.header.chain_id.push('x'))),
        ("version", Box::new(|block| block.header.version = 2)),
        ("tx_count", Box::new(|block| block.header.tx_count += 1)),
        ("tx_root", Box::new(|block| block.header.tx_root.0[3] ^= 1)),
        ("proposer", Box::new(|block| block.header.proposer.0[0] ^= 1)),
        ("tx_root", Box::new(|block| block.transactions.swap(0, 1))),
    ];
    for (field, change) in cases {
        let block = resigned(&sample, good.clone(), change);
        let error = verify::verify(block, sample.genesis()).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{field}: {error}");
    }
    let mut unsigned = good.clone();
    unsigned.signature.0[10] ^= 1;
    assert_eq!(verify::verify(unsigned, sample.genesis()).unwrap_err(), BlockError::Signature);
    assert_eq!(ledger.import(verified(&sample, vec![good])).await, [Ok(Imported::Extended)]);
    ledger.stop();
}

#[tokio::test]
async fn a_known_block_is_known_and_its_rival_conflicts() {
    let dir = tempfile::tempdir().unwrap();
    let mut sample = Sample::new(4, 4);
    let ledger = open(dir.path(), &sample);
    let blocks = sample.blocks(3, 1);
    ledger.import(verified(&sample, blocks.clone())).await;
    for block in &blocks {
        assert_eq!(ledger.import(verified(&sample, vec![block.clone()])).await, [Ok(Imported::Known)]);
        let rival = resigned(&sample, block.clone(), |block| block.header.timestamp.0 += 1);
        let theirs = rival.hash();
        let answer = ledger.import(verified(&sample, vec![rival])).await.remove(0);
        let (height, ours) = (block.header.height, block.hash());
        assert_eq!(answer, Err(ImportError::Conflict { height, ours, theirs }));
    }
    ledger.stop();
}

#[tokio::test]
async fn a_bad_transaction_costs_no_other_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(5, 4);
    let ledger = open(dir.path(), &sample);
    let chain_id = &sample.genesis().chain_id;
    let transfer = |from: usize, amount, fee, nonce| {
        let tx = Transaction::new(Kind::Transfer, Address([9; 20]), amount, fee, nonce, Payload::Absent);
        let tx = tx.signed(chain_id, &sample.accounts()[from]);
        let hash = tx.hash(chain_id);
        (tx, hash)
    };
    let good = [transfer(0, 5, 1, 0), transfer(1, 5, 1, 7), transfer(0, 5, 1, 1)];
    let bad =
        [transfer(2, u64::MAX, 1, 0), transfer(2, 1, 0, 0), transfer(1, 5, 1, 7), transfer(3, u64::MAX, u64::MAX, 0)];
    let candidates = vec![
        bad[0].clone(),
        good[0].clone(),
        bad[1].clone(),
        good[1].clone(),
        bad[2].clone(),
        good[2].clone(),
        bad[3].clone(),
    ];
    let request = ProduceRequest { candidates, key: sample.authority().clone(), now: Time::now(), allow_empty: false };
    let produced = ledger.produce(request).await.unwrap();
    assert_eq!(produced.head.unwrap().tx_count, 3);
    let reasons: Vec<_> = produced.dropped.iter().map(|(hash, error)| (*hash, error.clone())).collect();
    assert_eq!(reasons.iter().map(|(hash, _)| *hash).collect::<Vec<_>>(), bad.each_ref().map(|(_, hash)| *hash));
    assert!(matches!(reasons[0].1, TransactionError::Insufficient { .. }));
    assert!(matches!(reasons[1].1, TransactionError::FeeTooLow { got: 0, min: 1 }));
    assert!(matches!(reasons[2].1, TransactionError::NonceTooLow { got: 7, lowest: 8, .. }));
    assert!(matches!(reasons[3].1, TransactionError::Insufficient { needed: u64::MAX, .. }));
    let stored = ledger.storage().read(|reader| reader.block(1)).unwrap().unwrap();
    assert_eq!(stored.transactions, good.map(|(tx, _)| tx));
    ledger.stop();
}

#[tokio::test]
async fn a_second_ledger_on_the_same_file_is_refused_and_so_is_another_chain() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::new(6, 2);
    let ledger = open(dir.path(), &sample);
    let error = open_with(dir.path(), &sample, Vec::new()).err().expect("in use");
    assert!(matches!(error, StorageError::InUse(_)), "{error}");
    ledger.stop();
    drop(ledger);
    let error = open_with(dir.path(), &Sample::new(7, 2), Vec::new()).err().expect("another chain");
    assert!(matches!(error, StorageError::OtherChain { .. }), "{error}");
    open(dir.path(), &sample).stop();
}

/// Fails at one height, as often as it is asked to.
struct FailAt(u64, usize);

impl BlockHook for FailAt {
    fn on_block(&mut self, _: &Writer<'_>, block: &VerifiedBlock, _: &tenon::chain::State) -> Result<(), StorageError> {
        if block.height() == self.0 && self.1 > 0 {
            self.1 -= 1;
            return Err(StorageError::Inconsistent("the disk is full".into()));
        }
        Ok(())
    }

    fn on_undone(&mut self, _: &Writer<'_>, _: &TakenBlock) -> Result<(), StorageError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_commit_that_fails_leaves_the_chain_and_the_state_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let mut sample = Sample::new(8, 8);
    let ledger = open_with(dir.path(), &sample, vec![Box::new(FailAt(7, 1))]).unwrap();
    let blocks = sample.blocks(10, 4);
    let first = ledger.import(verified(&sample, blocks[..3].to_vec())).await;
    assert!(first.iter().all(Result::is_ok));
    let before = ledger.head();
    let answers = ledger.import(verified(&sample, blocks[3..].to_vec())).await;
    assert!(
        answers.iter().any(|answer| matches!(answer, Err(ImportError::Storage(text)) if text.contains("disk is full")))
    );
    assert_eq!(ledger.head(), before);
    let stored = ledger.storage().read(|reader| reader.head()).unwrap().unwrap();
    assert_eq!(stored, before);
    // The same blocks go in afterwards: the state was taken back with them.
    let answers = ledger.import(verified(&sample, blocks[3..].to_vec())).await;
    assert!(answers.iter().all(|answer| *answer == Ok(Imported::Extended)), "{answers:?}");
    assert_eq!(ledger.head(), *sample.head());
    ledger.stop();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Any order and grouping of imports, with repeats, gaps and rivals between, ends at the same chain.
    #[test]
    fn imports_in_any_grouping_end_at_one_head(
        cuts in prop::collection::vec(1_usize..6, 1..8), group in 1_usize..5, rival in 1_usize..8,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut sample = Sample::new(9, 5);
        let blocks = sample.blocks(12, 2);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut options = LedgerOptions::new(dir.path().join("chain.db"), (**sample.genesis()).clone());
        options.group_blocks_max = group;
        let ledger = Ledger::open(options, Vec::new()).unwrap();
        runtime.block_on(async {
            let mut at = 0;
            for cut in cuts.iter().cycle() {
                let end = (at + cut).min(blocks.len());
                // The blocks before come again, and one from beyond comes too early.
                let mut batch = blocks[at.saturating_sub(1)..end].to_vec();
                batch.extend(blocks.get(end + 1).cloned());
                batch.push(resigned(&sample, blocks[rival.min(end - 1)].clone(), |block| block.header.timestamp.0 += 7));
                ledger.import(verified(&sample, batch)).await;
                at = end;
                if at == blocks.len() {
                    break;
                }
            }
        });
        prop_assert_eq!(ledger.head(), sample.head().clone());
        ledger.stop();
    }

    /// Taking blocks back leaves the rows that were there before them, in every table.
    #[test]
    fn blocks_taken_back_leave_no_row(count in 1_usize..6, transactions in 0_usize..5) {
        let dir = tempfile::tempdir().unwrap();
        let mut sample = Sample::new(10, 5);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let ledger = open(dir.path(), &sample);
        let blocks = sample.blocks(3, 2);
        runtime.block_on(ledger.import(verified(&sample, blocks)));
        let before = rows::chain(&dir.path().join("chain.db"));
        let blocks = sample.blocks(count, transactions);
        runtime.block_on(ledger.import(verified(&sample, blocks)));
        let head = ledger.head().height;
        let known = sample.genesis().known_keys();
        let undo = move |writer: &Writer<'_>| {
            (4..=head).rev().try_for_each(|height| writer.take_block(height, &known).map(drop))
        };
        runtime.block_on(ledger.write(undo)).unwrap();
        ledger.stop();
        prop_assert_eq!(rows::chain(&dir.path().join("chain.db")), before);
    }
}

#[test]
fn a_hash_is_never_zero() {
    assert_ne!(Sample::new(1, 1).genesis().block().hash(), Hash::ZERO);
}
