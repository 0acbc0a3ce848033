//! What really happened, written down beside the nodes: every block that was ever made, who signed what, and what each
//! node owes to each transaction. Held against each node after everything that happens to it, and at the end as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tenon::chain::{Address, Block, Genesis, Hash, Head, Height, NonceRule, Time};
use tenon::mempool::TransactionStatus;
use tenon::sync::OnDivergence;

use super::node::{Node, Up};
use super::plan::Plan;
use super::tally::Tally;

/// A block's place: height and hash.
pub type Place = (Height, Hash);

/// Whether fork choice takes the first in place of the second: the rule, written down once more.
pub fn is_better(one: Place, other: Place) -> bool {
    one.0 > other.0 || one.0 == other.0 && one.1 < other.1
}

/// What a node last said of a transaction that it had.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Waits,
    InBlock,
    Dropped(String),
}

/// See the module.
pub struct Chronicle {
    plan: Rc<Plan>,
    /// By hash; genesis has none.
    blocks: BTreeMap<Hash, Block>,
    genesis: Place,
    /// Who signed which block for which slot; where there is one authority only, at which moment.
    signed: BTreeMap<(Address, u64), Hash>,
    heads: Vec<Place>,
    fates: Vec<BTreeMap<Hash, Fate>>,
    /// What waited when a node died.
    left: Vec<BTreeSet<Hash>>,
}

impl Chronicle {
    /// Nothing has happened yet.
    pub fn new(plan: &Rc<Plan>) -> Self {
        let genesis = Head::from(&plan.genesis.block().header).place();
        Self {
            plan: Rc::clone(plan),
            blocks: BTreeMap::new(),
            genesis,
            signed: BTreeMap::new(),
            heads: vec![genesis; plan.nodes],
            fates: vec![BTreeMap::new(); plan.nodes],
            left: vec![BTreeSet::new(); plan.nodes],
        }
    }

    /// How many blocks were ever made.
    pub fn made(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// The node's head, as last seen.
    pub fn head(&self, node: usize) -> Place {
        self.heads[node]
    }

    /// What fork choice takes among all that was ever made.
    pub fn best(&self) -> Place {
        let places = self.blocks.iter().map(|(hash, block)| (block.header.height, *hash));
        places.fold(self.genesis, |best, place| if is_better(place, best) { place } else { best })
    }

    /// A node is about to die.
    pub fn dies(&mut self, node: &Node) {
        self.left[node.id] = waiting(node.up.as_ref().expect("it is up"));
    }

    /// A node has come back: with all that it had.
    pub fn comes_back(&mut self, node: &Node) {
        let (id, up) = (node.id, node.up.as_ref().expect("it is up"));
        assert_eq!(up.ledger.head().place(), self.heads[id], "node {id} comes back with the head that it had");
        assert_eq!(waiting(up), self.left[id], "node {id} comes back with the transactions that waited");
    }

    /// Something has happened to a node; `own` says that it may have made a block. Answers the new head, if there is one,
    /// and how many blocks were taken back for it.
    pub fn observe(&mut self, node: &mut Node, own: bool) -> Option<(Place, u64)> {
        let (id, proposer) = (node.id, node.proposer());
        let up = node.up.as_mut().expect("it happened to a running node");
        let (old, new) = (self.heads[id], up.ledger.head().place());
        let moved = (old != new).then(|| {
            assert!(is_better(new, old), "node {id} went from {old:?} to {new:?}, which is no better");
            self.read_down_from(up, new, proposer.filter(|_| own));
            let (undone, applied) = self.between(old, new);
            self.heads[id] = new;
            self.check_reorg(id, undone.len() as u64);
            self.settle(id, up, &undone, &applied);
            (new, undone.len() as u64)
        });
        while let Ok(hash) = up.changes.try_recv() {
            let fate = match up.mempool.get(&hash) {
                Some(TransactionStatus::Pending(_)) => Fate::Waits,
                Some(TransactionStatus::Dropped { reason, .. }) => Fate::Dropped(reason),
                // In a block already.
                None => continue,
            };
            self.fates[id].insert(hash, fate);
        }
        moved
    }

    /// Takes note of the blocks from `place` down that nobody has had before; a new one is by `maker`, one at a time.
    fn read_down_from(&mut self, up: &Up, place: Place, maker: Option<Address>) {
        let (mut at, mut fresh) = (place, 0);
        while at.0 > 0 && !self.blocks.contains_key(&at.1) {
            let block = up.ledger.storage().read(|reader| reader.block(at.0)).expect("the database reads");
            let block = block.expect("a block for each height");
            assert_eq!(block.hash(), at.1, "the chain below a head is its ancestors");
            assert_eq!(Some(block.header.proposer), maker, "block {at:?} comes from nowhere");
            fresh += 1;
            self.sign(&block);
            let parent = (at.0 - 1, block.header.parent_hash);
            self.blocks.insert(at.1, block);
            at = parent;
        }
        assert!(fresh <= 1, "{fresh} blocks at once");
    }

    fn sign(&mut self, block: &Block) {
        let (genesis, header) = (&self.plan.genesis, &block.header);
        let several = genesis.authorities.len() > 1;
        let slot = if several { genesis.slot(header.timestamp) } else { header.timestamp.0 };
        let before = self.signed.insert((header.proposer, slot), block.hash());
        assert_eq!(before, None, "{} signed two blocks for slot {slot}", header.proposer);
    }

    /// The blocks of the first that are not below the second, and the other way round; highest first.
    pub fn between(&self, one: Place, other: Place) -> (Vec<Hash>, Vec<Hash>) {
        let (mut a, mut b, mut of_a, mut of_b) = (one, other, Vec::new(), Vec::new());
        while a != b {
            if a.0 >= b.0 {
                of_a.push(a.1);
                a = self.parent(a);
            } else {
                of_b.push(b.1);
                b = self.parent(b);
            }
        }
        (of_a, of_b)
    }

    fn parent(&self, (height, hash): Place) -> Place {
        (height - 1, self.blocks[&hash].header.parent_hash)
    }

    fn check_reorg(&self, id: usize, depth: u64) {
        let most = match self.plan.sync.on_divergence {
            OnDivergence::Halt => 0,
            OnDivergence::Reorg => self.plan.max_reorg_depth,
            OnDivergence::Resync => u64::MAX,
        };
        assert!(depth <= most, "node {id} took back {depth} blocks, at most {most} are allowed");
    }

    /// What became of the transactions of blocks that went and came.
    fn settle(&mut self, id: usize, up: &Up, undone: &[Hash], applied: &[Hash]) {
        let chain_id = &self.plan.genesis.chain_id;
        let hashes = |block: &Hash| {
            let transactions = &self.blocks[block].transactions;
            transactions.iter().map(|transaction| transaction.hash(chain_id)).collect::<Vec<_>>()
        };
        let came: BTreeSet<Hash> = applied.iter().flat_map(hashes).collect();
        let gone: Vec<Hash> = undone.iter().flat_map(hashes).filter(|hash| !came.contains(hash)).collect();
        for hash in came {
            let waits = matches!(up.mempool.get(&hash), Some(TransactionStatus::Pending(_)));
            assert!(!waits, "node {id}: {hash} waits though it is in a block");
            self.fates[id].insert(hash, Fate::InBlock);
        }
        for hash in gone {
            let fate = match up.mempool.get(&hash) {
                Some(TransactionStatus::Pending(_)) => Fate::Waits,
                Some(TransactionStatus::Dropped { reason, .. }) => Fate::Dropped(reason),
                None => panic!("node {id}: a reorg took {hash} off the chain, and it is gone without a word"),
            };
            self.fates[id].insert(hash, fate);
        }
    }

    /// Holds everything at the end against what was written down.
    pub fn check(&self, nodes: &[Node], tally: &mut Tally) {
        let mut replayed: BTreeMap<Place, BTreeMap<Address, Account>> = BTreeMap::new();
        for node in nodes {
            let (id, up) = (node.id, node.up.as_ref().expect("all are up in the end"));
            let place = self.heads[id];
            let accounts = replayed.entry(place).or_insert_with(|| self.replay(place));
            let storage = up.ledger.storage();
            for (address, account) in accounts {
                let stored = storage.read(|reader| reader.account(address)).expect("the database reads");
                let stored = stored.map_or((0, 0), |stored| (u128::from(stored.balance), stored.nonce));
                assert_eq!(stored, (account.balance, account.nonce), "node {id}: {address} at {place:?}");
            }
            let genesis = &self.plan.genesis;
            let checked = storage.read(|reader| reader.check_blocks(genesis, |_, _| {})).expect("the database reads");
            assert_eq!(checked.problems, Vec::<String>::new(), "node {id}");
            assert_eq!(up.ledger.equivocations(), [], "node {id}: no honest authority signs a height twice");
            self.check_fates(id, up, tally);
        }
    }

    /// Every transaction that a node had is on its chain, waits, or was dropped with a reason.
    fn check_fates(&self, id: usize, up: &Up, tally: &mut Tally) {
        for (hash, fate) in &self.fates[id] {
            let stored = up.ledger.storage().read(|reader| reader.transaction(hash)).expect("the database reads");
            let waits = matches!(up.mempool.get(hash), Some(TransactionStatus::Pending(_)));
            match (stored.is_some(), waits, fate) {
                (true, false, Fate::InBlock) => tally.in_blocks += 1,
                (false, true, Fate::Waits) => tally.waiting += 1,
                (false, false, Fate::Dropped(reason)) => {
                    assert!(!reason.is_empty(), "node {id}: {hash} was dropped without a reason");
                    tally.dropped += 1;
                }
                (stored, waits, fate) => {
                    panic!("node {id}: {hash} in a block: {stored}, waits: {waits}, was last said to be {fate:?}")
                }
            }
        }
    }

    /// What the chain up to `place` makes of genesis, by rules written down once more: nonces, money, and that nothing
    /// happens twice.
    fn replay(&self, place: Place) -> BTreeMap<Address, Account> {
        let genesis: &Genesis = &self.plan.genesis;
        let (mut up, _) = self.between(place, self.genesis);
        up.reverse();
        let mut accounts: BTreeMap<Address, Account> = BTreeMap::new();
        for given in &genesis.allocations {
            accounts.insert(given.address, Account { balance: given.balance.into(), nonce: 0 });
        }
        let supply: u128 = accounts.values().map(|account| account.balance).sum();
        let (mut burned, mut seen, mut time) = (0_u128, BTreeSet::new(), Time(0));
        for hash in up {
            let block = &self.blocks[&hash];
            assert!(block.header.timestamp > time, "time passes");
            time = block.header.timestamp;
            for transaction in &block.transactions {
                let hash = transaction.hash(&genesis.chain_id);
                assert!(seen.insert(hash), "{hash} happened twice");
                let from = accounts.get_mut(&transaction.from()).expect("only clients send");
                match genesis.nonce_rule {
                    NonceRule::Sequential => assert_eq!(transaction.nonce, from.nonce, "{hash}"),
                    NonceRule::Increasing => assert!(transaction.nonce >= from.nonce, "{hash}"),
                }
                from.nonce = transaction.nonce + 1;
                let (amount, fee) = (u128::from(transaction.amount), u128::from(transaction.fee));
                from.balance = from.balance.checked_sub(amount + fee).expect("nobody spends what is not there");
                accounts.entry(transaction.to).or_default().balance += amount;
                match genesis.fee_recipient {
                    Some(recipient) => accounts.entry(recipient).or_default().balance += fee,
                    None => burned += fee,
                }
            }
        }
        let left: u128 = accounts.values().map(|account| account.balance).sum();
        assert_eq!(left + burned, supply, "money is neither made nor lost");
        accounts
    }
}

#[derive(Clone, Copy, Default)]
struct Account {
    balance: u128,
    nonce: u64,
}

fn waiting(up: &Up) -> BTreeSet<Hash> {
    up.mempool.pending(usize::MAX).into_iter().map(|pending| pending.hash).collect()
}
