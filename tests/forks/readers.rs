//! Many readers beside the one who writes: each read sees one chain whole, whatever is committed, switched, checkpointed,
//! copied or closed meanwhile, and none is told that the database is busy.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tenon::chain::{Hash, Height};
use tenon::ledger::{Ledger, LedgerOptions, Reach};
use tenon::storage::{Cursor, Reader, Storage, StorageError, TransactionFilter};

use super::chance::{Dice, knob};
use super::ladder::Ladder;
use super::rows;
use super::tree::{self, Tree};

const READERS: usize = 64;

/// Reads of one round, each beside a ladder of switches of its own.
const READS: usize = 8_000;

/// Reads in all, in rounds: one, or what `TENON_TEST_READS` says.
fn rounds() -> usize {
    knob("TENON_TEST_READS", READS).div_ceil(READS)
}

/// What the chain is that ends with each rung: the hashes of its blocks from genesis on.
struct Chains<'a> {
    tree: &'a Tree,
    ends: HashMap<Hash, (usize, Vec<usize>)>,
}

impl<'a> Chains<'a> {
    fn new(ladder: &'a Ladder) -> Self {
        let tree = &ladder.tree;
        let of = |&rung: &usize| {
            let path: Vec<_> = std::iter::once(0).chain(tree.path(rung)).collect();
            (tree.hash(rung), (rung, path))
        };
        Self { tree, ends: std::iter::once(&0).chain(&ladder.rungs).map(of).collect() }
    }

    /// Looks at one snapshot from several sides; answers its head's height.
    fn check(&self, reader: &Reader<'_>, dice: &Mutex<&mut Dice>) -> Result<Height, StorageError> {
        let head = reader.head()?.expect("there is genesis");
        let (rung, path) = &self.ends[&head.hash];
        let pick = |count| dice.lock().unwrap().pick(count);
        let height = pick(path.len());
        assert_eq!(reader.hash_at(height as Height)?, Some(self.tree.hash(path[height])), "at {height}");
        assert_eq!(reader.hash_at(head.height + 1)?, None);
        let key = &self.tree.accounts[pick(self.tree.accounts.len())];
        let address = tree::address(key);
        let account = reader.account(&address)?.map(|stored| (stored.balance, stored.nonce));
        let expected = self.tree.nodes[*rung].state.account(&address).map(|account| (account.balance, account.nonce));
        assert_eq!(account, expected, "account {address} at {}", head.height);
        let blocks = path.iter().rev().filter(|&&at| at != 0).map(|&at| self.tree.block(at));
        let newest = blocks.flat_map(|block| {
            let (height, count) = (block.block().header.height, block.block().header.tx_count);
            (0..count).rev().map(move |position| Cursor { height, position })
        });
        let (found, _) = reader.transactions(&TransactionFilter::default(), None, 20)?;
        let found: Vec<_> = found.iter().map(|transaction| transaction.cursor()).collect();
        assert_eq!(found, newest.take(20).collect::<Vec<_>>(), "the newest transactions at {}", head.height);
        Ok(head.height)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_reads_sees_one_chain_whole_while_branches_are_switched() {
    let mut dice = Dice::new("readers");
    let mut totals = [0; 2];
    for _ in 0..rounds() {
        let counts = round(&mut dice).await;
        totals = [totals[0] + counts[0], totals[1] + counts[1]];
    }
    println!("{} reads by {READERS} readers beside {} switches", totals[0], totals[1]);
}

/// Answers how many reads and switches there were.
async fn round(dice: &mut Dice) -> [usize; 2] {
    let ladder = Ladder::new(dice, 300, 8, 2);
    let dir = rows::dir();
    let path = dir.path().join("chain.db");
    // Small enough that rows move from one run of the indexes to the other on the way.
    let options = LedgerOptions { index_recent_max: 64, ..LedgerOptions::new(path, (*ladder.tree.genesis).clone()) };
    let ledger = Ledger::open(options, Vec::new()).unwrap();
    let storage = ledger.storage().clone();
    let (chains, dice) = (Chains::new(&ladder), Mutex::new(dice));
    let (done, ended, lowest) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicUsize::new(0));
    let mut climbed = 0;
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                let (storage, chains, dice) = (&storage, &chains, &dice);
                let (done, ended, lowest) = (&done, &ended, &lowest);
                scope.spawn(move || {
                    while !ended.load(Ordering::Relaxed) {
                        // What was committed before a read began is seen by it: rungs only rise.
                        let least = lowest.load(Ordering::Acquire) as Height;
                        let height = storage.read(|reader| chains.check(reader, dice)).expect("no read fails");
                        assert!(height >= least, "{height} was read after {least} had been answered");
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let caretaker = scope.spawn(|| {
            let copy = dir.path().join("copy.db");
            while !ended.load(Ordering::Relaxed) {
                storage.close_idle();
                Storage::copy(storage.path(), &copy).expect("a copy can be made at any time");
                std::fs::remove_file(&copy).unwrap();
            }
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let mut before = 0;
                for &rung in &ladder.rungs {
                    let common = ladder.tree.common(before, rung);
                    ledger.switch_branch(ladder.tree.branch(rung, common), Reach::Limited).await.expect("it is better");
                    lowest.store(usize::try_from(ladder.tree.height(rung)).unwrap(), Ordering::Release);
                    (before, climbed) = (rung, climbed + 1);
                }
            });
        });
        while done.load(Ordering::Relaxed) < READS && !readers.iter().any(|reader| reader.is_finished()) {
            std::thread::yield_now();
        }
        ended.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        caretaker.join().unwrap();
    });
    ledger.stop();
    [done.load(Ordering::Relaxed), climbed]
}
