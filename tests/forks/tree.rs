//! Trees of really signed blocks: several authorities that take turns, and as many branches as a test wants.

use std::sync::Arc;

use tenon::chain::execute::Execution;
use tenon::chain::{
    Account, Address, Authority, Block, Genesis, Hash, Head, Header, Height, Kind, Payload, SecretKey, State, Time,
    Transaction, VerifiedBlock, format, merkle, verify,
};
use tenon::sample;

/// One block, and what the chain that ends with it is like.
pub struct Node {
    /// The block; none for genesis.
    pub block: Option<VerifiedBlock>,
    /// Its parent's place in the tree.
    pub parent: usize,
    pub head: Head,
    pub state: State,
    /// Whether it breaks a rule that only its execution shows.
    pub bad: bool,
}

/// A tree of blocks; 0 is genesis.
pub struct Tree {
    pub genesis: Arc<Genesis>,
    pub nodes: Vec<Node>,
    pub authorities: Vec<SecretKey>,
    /// Keys of funded accounts, and of some that nobody has sent anything yet.
    pub accounts: Vec<SecretKey>,
}

/// The key of account number `index`.
pub fn account(index: usize) -> SecretKey {
    sample::key(77, 1 + index as u64)
}

pub fn address(key: &SecretKey) -> Address {
    Address::of(&key.public_key())
}

impl Tree {
    /// Genesis alone, with so many authorities, `funded` accounts with money and `fresh` ones without.
    pub fn new(authorities: usize, funded: usize, fresh: usize) -> Self {
        let keys: Vec<_> = (0..authorities).map(|index| sample::key(76, index as u64)).collect();
        let mut genesis = sample::genesis(77, funded);
        genesis.slot_ms = 1_000;
        genesis.authorities =
            keys.iter().map(|key| Authority { address: address(key), public_key: key.public_key() }).collect();
        // One of the authorities has an account from the start, so the chain knows its key from the start.
        genesis.allocations.push(tenon::chain::Allocation { address: address(&keys[0]), balance: 1_000 });
        genesis.fee_recipient = funded.is_multiple_of(2).then_some(Address([0xfe; 20]));
        genesis.check().unwrap();
        let head = Head::from(&genesis.block().header);
        let root = Node { block: None, parent: 0, head, state: genesis.state(), bad: false };
        let accounts = (0..funded + fresh).map(account).chain([keys[0].clone()]).collect();
        Self { genesis: Arc::new(genesis), nodes: vec![root], authorities: keys, accounts }
    }

    /// The same with another genesis, and nothing grown yet.
    pub fn with(self, genesis: Genesis) -> Self {
        let head = Head::from(&genesis.block().header);
        let root = Node { block: None, parent: 0, head, state: genesis.state(), bad: false };
        Self { genesis: Arc::new(genesis), nodes: vec![root], ..self }
    }

    /// A block on top of node `parent`, `slots` slots later (at least 1), of those candidates that can happen there.
    /// Answers its place: that of the same block, if it is there already.
    pub fn grow(&mut self, parent: usize, slots: u64, candidates: &[Transaction]) -> usize {
        self.grow_with(parent, slots, candidates, |_| {})
    }

    /// As [`Tree::grow`], with a header that `change` has changed before it was signed.
    pub fn grow_with(
        &mut self,
        parent: usize,
        slots: u64,
        candidates: &[Transaction],
        change: impl FnOnce(&mut Header),
    ) -> usize {
        let Node { head, state, .. } = &self.nodes[parent];
        let mut execution = Execution::new(state, &self.genesis);
        let transactions: Vec<_> = candidates.iter().filter(|tx| execution.apply(tx).is_ok()).cloned().collect();
        let changes = execution.into_changes();
        let mut state = state.clone();
        state.apply(&changes);
        let chain_id = &self.genesis.chain_id;
        let leaves: Vec<_> = transactions.iter().map(|tx| format::transaction_leaf(&tx.hash(chain_id), tx)).collect();
        let timestamp = self.time_after(head.timestamp, slots);
        let proposer = self.genesis.authority_at(timestamp).address;
        let mut header = Header {
            version: format::VERSION,
            chain_id: chain_id.clone(),
            height: head.height + 1,
            parent_hash: head.hash,
            timestamp,
            proposer,
            tx_count: u32::try_from(transactions.len()).unwrap(),
            tx_root: merkle::root(&leaves),
            state_root: state.root(),
        };
        change(&mut header);
        let key = self.authorities.iter().find(|key| address(key) == header.proposer).expect("an authority's turn");
        let head = Head::from(&header);
        if let Some(same) = self.nodes.iter().position(|node| node.head.hash == head.hash) {
            return same;
        }
        let bad = header.state_root != state.root();
        let block = verify::verify(Block::signed(header, transactions, key), &self.genesis).unwrap();
        self.nodes.push(Node { block: Some(block), parent, head, state, bad });
        self.nodes.len() - 1
    }

    /// The middle of the slot that lies so many (at least 1) after that of `time`.
    pub fn time_after(&self, time: Time, slots: u64) -> Time {
        let slot = self.genesis.slot(time) + slots.max(1);
        Time((slot * self.genesis.slot_ms + self.genesis.slot_ms / 2) * 1_000)
    }

    /// The key of the authority whose turn it is.
    pub fn authority_at(&self, time: Time) -> &SecretKey {
        let turn = self.genesis.authority_at(time).address;
        self.authorities.iter().find(|key| address(key) == turn).expect("all keys are here")
    }

    /// So many blocks without transactions on top of node `parent`, one slot apart; answers the last one's place.
    pub fn grow_empty(&mut self, parent: usize, count: usize, slots: u64) -> usize {
        (0..count).fold(parent, |at, number| self.grow(at, if number == 0 { slots } else { 1 }, &[]))
    }

    /// A transaction that can happen after node `at`: the next one of account `from`, to account `to`.
    pub fn transaction(&self, at: usize, from: usize, to: usize, amount: u64, text: Option<&str>) -> Transaction {
        let key = &self.accounts[from % self.accounts.len()];
        let to = address(&self.accounts[to % self.accounts.len()]);
        let Account { nonce, .. } = self.nodes[at].state.account(&address(key)).unwrap_or_default();
        let transaction = match text {
            Some(text) => Transaction::new(Kind::Message, to, 0, 1, nonce, Payload::Text(text.into())),
            None => Transaction::new(Kind::Transfer, to, amount, 1, nonce, Payload::Absent),
        };
        transaction.signed(&self.genesis.chain_id, key)
    }

    pub fn block(&self, at: usize) -> VerifiedBlock {
        self.nodes[at].block.clone().expect("not genesis")
    }

    pub fn height(&self, at: usize) -> Height {
        self.nodes[at].head.height
    }

    pub fn hash(&self, at: usize) -> Hash {
        self.nodes[at].head.hash
    }

    /// The places from the block above genesis up to `at`, the lowest first.
    pub fn path(&self, mut at: usize) -> Vec<usize> {
        let mut path = Vec::new();
        while at != 0 {
            path.push(at);
            at = self.nodes[at].parent;
        }
        path.reverse();
        path
    }

    /// The hashes of the blocks of [`Tree::path`].
    pub fn hashes(&self, at: usize) -> Vec<Hash> {
        self.path(at).into_iter().map(|at| self.hash(at)).collect()
    }

    /// The blocks of [`Tree::path`] above height `above`.
    pub fn branch(&self, at: usize, above: Height) -> Vec<VerifiedBlock> {
        self.path(at).into_iter().filter(|&at| self.height(at) > above).map(|at| self.block(at)).collect()
    }

    /// The height of the highest block that both chains have.
    pub fn common(&self, one: usize, other: usize) -> Height {
        let (one, other) = (self.path(one), self.path(other));
        one.iter().zip(&other).take_while(|(a, b)| a == b).count() as Height
    }
}
