//! A transaction enters the chain once: whatever is handed in again, late, changed or on another chain, across blocks,
//! branches and restarts. What is accepted, and what is on the chain, is held against a reference that counts for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use tenon::chain::{
    Address, Block, BlockError, Hash, Head, Header, Kind, NonceRule, Payload, Time, Transaction, TransactionError,
    VerifiedBlock, format, merkle, verify,
};
use tenon::ledger::{ImportError, Ledger, LedgerOptions, ProduceRequest, Reach};
use tenon::mempool::{Mempool, MempoolConfig, MempoolHook};

use super::rows;
use super::tree::{Tree, address};

const SENDERS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// A new transaction, with a nonce so far from the one that comes next.
    Submit {
        from: usize,
        to: usize,
        amount: u64,
        fee: u64,
        skew: i8,
    },
    /// One that was made before, as it was.
    Again {
        which: Index,
    },
    /// One that was made before, of another chain, changed after it was signed, or with another's key.
    Forged {
        which: Index,
        how: u8,
    },
    /// A block of what waits.
    Produce,
    /// A block, made elsewhere, that holds what the chain has already.
    Replay {
        which: Index,
    },
    /// A better branch, from so far below, that holds some of what was ever made, in any order.
    Reorg {
        depth: u64,
        mask: u64,
        turned: usize,
    },
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    let amount = prop_oneof![6 => 1_u64..50, 1 => Just(400_000_000_000)];
    let skew = prop_oneof![6 => Just(0_i8), 1 => -3_i8..4];
    prop_oneof![
        8 => (0..SENDERS, 0..SENDERS + 2, amount, 0_u64..4, skew)
            .prop_map(|(from, to, amount, fee, skew)| Step::Submit { from, to, amount, fee, skew }),
        5 => index().prop_map(|which| Step::Again { which }),
        2 => (index(), 0_u8..3).prop_map(|(which, how)| Step::Forged { which, how }),
        5 => Just(Step::Produce),
        2 => index().prop_map(|which| Step::Replay { which }),
        3 => (1_u64..5, any::<u64>(), 0_usize..8).prop_map(|(depth, mask, turned)| Step::Reorg { depth, mask, turned }),
        1 => Just(Step::Restart),
    ]
}

/// The reference: what accounts have and what waits, counted without any of the node's own code.
struct Reference {
    sequential: bool,
    min_fee: u64,
    fee_recipient: Option<Address>,
    /// Balance and lowest nonce after genesis.
    start: BTreeMap<Address, (u64, u64)>,
    /// The chain's transactions, block by block.
    chain: Vec<Vec<Transaction>>,
    /// What waits, by sender and nonce.
    pool: BTreeMap<(Address, u64), Transaction>,
}

impl Reference {
    /// Balances and nonces after the chain so far.
    fn accounts(&self) -> BTreeMap<Address, (u64, u64)> {
        let mut accounts = self.start.clone();
        for transaction in self.chain.iter().flatten() {
            assert!(self.happens(&mut accounts, transaction), "{transaction:?} is on the chain and could not happen");
        }
        accounts
    }

    /// Lets a transaction happen, if it can.
    fn happens(&self, accounts: &mut BTreeMap<Address, (u64, u64)>, transaction: &Transaction) -> bool {
        let Transaction { to, amount, fee, nonce, .. } = *transaction;
        let from = transaction.from();
        let (balance, lowest) = accounts.get(&from).copied().unwrap_or_default();
        let right = if self.sequential { nonce == lowest } else { nonce >= lowest };
        if !right || fee < self.min_fee || balance < amount + fee {
            return false;
        }
        accounts.insert(from, (balance - amount - fee, nonce + 1));
        if amount > 0 {
            accounts.entry(to).or_default().0 += amount;
        }
        if let Some(recipient) = self.fee_recipient {
            accounts.entry(recipient).or_default().0 += fee;
        }
        true
    }

    fn on_chain(&self, transaction: &Transaction) -> bool {
        self.chain.iter().flatten().any(|other| other == transaction)
    }

    /// Takes a transaction that is handed in, if it should be taken.
    fn submit(&mut self, transaction: &Transaction) -> bool {
        let key = (transaction.from(), transaction.nonce);
        if self.pool.get(&key) == Some(transaction) {
            return true;
        }
        let (balance, lowest) = self.accounts().get(&key.0).copied().unwrap_or_default();
        let waiting = self.pool.range((key.0, 0)..=(key.0, u64::MAX)).filter(|(other, _)| other.1 != key.1);
        let promised: u64 = waiting.clone().map(|(_, other)| other.amount + other.fee).sum();
        let before = waiting.filter(|(other, _)| (lowest..key.1).contains(&other.1)).count() as u64;
        let replaces = self.pool.get(&key).is_none_or(|other| other.fee < transaction.fee);
        let next = !self.sequential || key.1 - lowest.min(key.1) == before;
        let taken = key.1 >= lowest
            && transaction.fee >= self.min_fee
            && replaces
            && next
            && balance >= promised + transaction.amount + transaction.fee
            && !self.on_chain(transaction);
        if taken {
            self.pool.insert(key, transaction.clone());
        }
        taken
    }

    /// What waits after the chain has got other blocks, and lost those of `undone`.
    fn settle(&mut self, undone: Vec<Transaction>) {
        let mut accounts = self.accounts();
        let nonces = accounts.clone();
        self.pool.retain(|(from, nonce), _| *nonce >= nonces.get(from).copied().unwrap_or_default().1);
        for transaction in undone {
            let key = (transaction.from(), transaction.nonce);
            if !self.on_chain(&transaction)
                && !self.pool.contains_key(&key)
                && self.happens(&mut accounts, &transaction)
            {
                self.pool.insert(key, transaction);
            }
        }
    }
}

struct World {
    tree: Tree,
    /// The node of the tree that the ledger stands on.
    at: usize,
    ledger: Ledger,
    mempool: Mempool,
    reference: Reference,
    made: Vec<Transaction>,
    /// The time of the newest block that the ledger has signed.
    signed: Time,
}

fn open(dir: &Path, tree: &Tree) -> (Ledger, Mempool) {
    let open = || {
        let hook = MempoolHook::new();
        let handle = hook.handle();
        let options = LedgerOptions::new(dir.join("chain.db"), (*tree.genesis).clone());
        Ok((Ledger::open(options, vec![Box::new(hook)])?, handle))
    };
    let (ledger, handle) = rows::patiently(open).unwrap();
    let mempool = Mempool::open(ledger.clone(), handle, MempoolConfig::default()).unwrap();
    (ledger, mempool)
}

/// A block on `head` that holds a transaction whether it can happen or not.
fn forced(tree: &Tree, head: &Head, transaction: &Transaction) -> VerifiedBlock {
    let chain_id = tree.genesis.chain_id.clone();
    let timestamp = tree.time_after(head.timestamp, 1);
    let proposer = tree.genesis.authority_at(timestamp).address;
    let leaf = format::transaction_leaf(&transaction.hash(&chain_id), transaction);
    let header = Header {
        version: format::VERSION,
        chain_id,
        height: head.height + 1,
        parent_hash: head.hash,
        timestamp,
        proposer,
        tx_count: 1,
        tx_root: merkle::root(&[leaf]),
        state_root: head.state_root,
    };
    let block = Block::signed(header, vec![transaction.clone()], tree.authority_at(timestamp));
    verify::verify(block, &tree.genesis).unwrap()
}

impl World {
    /// Checks the node against the reference, and both against what may never be.
    fn check(&self, step: &Step) {
        let accounts = self.reference.accounts();
        let head = self.ledger.head();
        let mut hashes = BTreeSet::new();
        let mut nonces: BTreeMap<Address, u64> = BTreeMap::new();
        self.ledger
            .storage()
            .read(|reader| {
                for height in 1..=head.height {
                    let block = reader.block(height)?.unwrap();
                    assert_eq!(
                        block.transactions,
                        self.reference.chain[height as usize - 1],
                        "{step:?}: block {height}"
                    );
                    for transaction in &block.transactions {
                        assert!(hashes.insert(transaction.hash(&block.header.chain_id)), "{step:?}: it is there twice");
                        let last = nonces.insert(transaction.from(), transaction.nonce);
                        assert!(last.is_none_or(|last| last < transaction.nonce), "{step:?}: a nonce twice");
                    }
                }
                for (address, expected) in &accounts {
                    let account = reader.account(address)?.map(|account| (account.balance, account.nonce));
                    assert_eq!(account.unwrap_or_default(), *expected, "{step:?}: {address}");
                }
                Ok(())
            })
            .unwrap();
        let waiting: BTreeMap<_, _> = self
            .mempool
            .pending(usize::MAX)
            .into_iter()
            .map(|pending| ((pending.transaction.from(), pending.transaction.nonce), pending.transaction))
            .collect();
        assert_eq!(waiting, self.reference.pool, "{step:?}");
        assert_eq!(self.mempool.len(), waiting.len(), "{step:?}");
    }

    /// The tree's node below the head at `height`.
    fn node_at(&self, height: u64) -> usize {
        self.tree.path(self.at).get((height as usize).wrapping_sub(1)).copied().unwrap_or(0)
    }

    async fn produce(&mut self) {
        let candidates: Vec<_> =
            self.mempool.pending(100).into_iter().map(|pending| (pending.transaction, pending.hash)).collect();
        // The next slot that has no block, here or on a branch that was left.
        let before = self.ledger.head().timestamp;
        let now = self.tree.time_after(before.max(self.signed), 1);
        let key = self.tree.authority_at(now).clone();
        let produced = self.ledger.produce(ProduceRequest { candidates, key, now, allow_empty: true }).await.unwrap();
        let head = produced.head.unwrap();
        let dropped: Vec<_> = produced.dropped.iter().map(|(hash, error)| (*hash, error.to_string())).collect();
        self.mempool.drop_transactions(dropped).await.unwrap();
        let block = self.ledger.storage().read(|reader| reader.block(head.height)).unwrap().unwrap();
        let chain_id = self.tree.genesis.chain_id.clone();
        self.reference.pool.retain(|_, transaction| {
            let hash = transaction.hash(&chain_id);
            !produced.dropped.iter().any(|(other, _)| *other == hash)
        });
        self.reference.chain.push(block.transactions.clone());
        self.reference.settle(Vec::new());
        let slots = self.tree.genesis.slot(now) - self.tree.genesis.slot(before);
        self.at = self.tree.grow(self.at, slots, &block.transactions);
        assert_eq!(self.tree.hash(self.at), head.hash);
        self.signed = now;
    }

    async fn reorg(&mut self, depth: u64, mask: u64, turned: usize) {
        let height = self.tree.height(self.at);
        let common = height.saturating_sub(depth);
        if height == 0 {
            return;
        }
        let mut candidates: Vec<_> =
            (0..).zip(&self.made).filter(|(at, _)| mask >> (at % 64) & 1 == 1).map(|(_, made)| made.clone()).collect();
        let turned = turned % candidates.len().max(1);
        candidates.rotate_left(turned);
        let mut at = self.node_at(common);
        let blocks = height - common + 1;
        for number in 0..blocks {
            // Two slots on, so that it is another block than any that is there; the same candidates are offered to each.
            let chunk = candidates.len().div_ceil(blocks as usize) * number as usize;
            at = self.tree.grow(at, if number == 0 { 2 } else { 1 }, &candidates[chunk.min(candidates.len())..]);
        }
        let reorg = self.ledger.switch_branch(self.tree.branch(at, common), Reach::Limited).await.unwrap();
        // The new branch may begin as the old one does.
        let common = self.tree.common(self.at, at);
        assert_eq!((reorg.common, reorg.to.height), (common, height + 1));
        self.at = at;
        let undone = self.reference.chain.split_off(common as usize);
        let branch = self.tree.branch(at, common);
        self.reference.chain.extend(branch.into_iter().map(|block| block.into_block().transactions));
        self.reference.settle(undone.into_iter().flatten().collect());
    }
}

/// What was handed in, and how much of it was taken.
#[derive(Default)]
struct Counts {
    handed_in: u64,
    taken: u64,
    refused_blocks: u64,
    reorgs: u64,
}

async fn play(steps: &[Step], sequential: bool, counts: &Mutex<Counts>) {
    let mut tree = Tree::new(2, SENDERS + 1, 2);
    if sequential {
        let mut genesis = (*tree.genesis).clone();
        genesis.nonce_rule = NonceRule::Sequential;
        tree = tree.with(genesis);
    }
    let dir = rows::dir();
    let (ledger, mempool) = open(dir.path(), &tree);
    let reference = Reference {
        sequential,
        min_fee: tree.genesis.min_fee,
        fee_recipient: tree.genesis.fee_recipient,
        start: tree.genesis.allocations.iter().map(|one| (one.address, (one.balance, 0))).collect(),
        chain: Vec::new(),
        pool: BTreeMap::new(),
    };
    let mut world = World { tree, at: 0, ledger, mempool, reference, made: Vec::new(), signed: Time(0) };
    let chain_id = world.tree.genesis.chain_id.clone();
    for step in steps {
        let made = |which: &Index| (!world.made.is_empty()).then(|| world.made[which.index(world.made.len())].clone());
        match step {
            Step::Submit { from, to, amount, fee, skew } => {
                let key = world.tree.accounts[*from].clone();
                let next = {
                    let lowest = world.reference.accounts().get(&address(&key)).copied().unwrap_or_default().1;
                    let last = world.reference.pool.range((address(&key), 0)..=(address(&key), u64::MAX)).next_back();
                    last.map_or(lowest, |((_, nonce), _)| nonce + 1)
                };
                let nonce = next.saturating_add_signed((*skew).into());
                let to = address(&world.tree.accounts[*to]);
                let transaction = Transaction::new(Kind::Transfer, to, *amount, *fee, nonce, Payload::Absent);
                let transaction = transaction.signed(&chain_id, &key);
                world.made.push(transaction.clone());
                hand_in(&mut world, transaction, counts, step).await;
            }
            Step::Again { which } => {
                if let Some(transaction) = made(which) {
                    hand_in(&mut world, transaction, counts, step).await;
                }
            }
            Step::Forged { which, how } => {
                let Some(mut transaction) = made(which) else { continue };
                match how {
                    0 => {
                        transaction.to = Address([0xaa; 20]);
                        transaction = transaction.signed("another chain", &world.tree.accounts[0]);
                    }
                    1 => transaction.to = Address([0xbb; 20]),
                    _ => transaction.public_key = world.tree.accounts[SENDERS].public_key(),
                }
                let error = world.mempool.submit_transaction(transaction).await.unwrap_err();
                assert!(error.to_string().contains("signature"), "{error}");
            }
            Step::Produce => world.produce().await,
            Step::Replay { which } => {
                let there: Vec<_> = world.reference.chain.iter().flatten().cloned().collect();
                if there.is_empty() {
                    continue;
                }
                let again = &there[which.index(there.len())];
                let block = forced(&world.tree, &world.ledger.head(), again);
                let refused = world.ledger.import(vec![block]).await.remove(0).unwrap_err();
                let nonce = matches!(
                    &refused,
                    ImportError::Invalid(BlockError::Transaction {
                        index: 0,
                        error: TransactionError::NonceTooLow { .. }
                    })
                );
                assert!(nonce, "{refused}");
                counts.lock().unwrap().refused_blocks += 1;
            }
            Step::Reorg { depth, mask, turned } => {
                world.reorg(*depth, *mask, *turned).await;
                counts.lock().unwrap().reorgs += 1;
            }
            Step::Restart => {
                world.ledger.stop();
                (world.ledger, world.mempool) = open(dir.path(), &world.tree);
            }
        }
        world.check(step);
    }
    world.ledger.stop();
}

async fn hand_in(world: &mut World, transaction: Transaction, counts: &Mutex<Counts>, step: &Step) {
    let expected = world.reference.submit(&transaction);
    let hash: Hash = transaction.hash(&world.tree.genesis.chain_id);
    let answer = world.mempool.submit_transaction(transaction).await;
    assert_eq!(answer.as_ref().ok(), expected.then_some(&hash), "{step:?}: {answer:?}");
    let mut counts = counts.lock().unwrap();
    counts.handed_in += 1;
    counts.taken += u64::from(expected);
}

/// Cases: 100, or what `TENON_TEST_REPLAYS` says.
fn cases() -> u32 {
    std::env::var("TENON_TEST_REPLAYS").map_or(100, |cases| cases.parse().expect("TENON_TEST_REPLAYS is a number"))
}

#[test]
fn what_is_accepted_and_what_is_on_the_chain_is_what_the_reference_says_and_nothing_is_there_twice() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut runner = TestRunner::new(Config { cases: cases(), failure_persistence: None, ..Config::default() });
    let counts = Mutex::new(Counts::default());
    let outcome = runner.run(&(prop::collection::vec(any_step(), 1..60), any::<bool>()), |(steps, sequential)| {
        runtime.block_on(play(&steps, sequential, &counts));
        Ok(())
    });
    let Counts { handed_in, taken, refused_blocks, reorgs } =
        counts.into_inner().unwrap_or_else(|gone| gone.into_inner());
    println!(
        "{} cases: {handed_in} handed in, {taken} taken, {refused_blocks} blocks refused, {reorgs} reorgs",
        cases()
    );
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
