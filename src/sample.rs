//! Sample chains for the demo, the tests and the benchmarks: real blocks with really signed transactions, made without
//! a node, as fast as the keys sign. The same seed gives the same chain, to the byte.

use std::sync::Arc;

use rayon::prelude::*;

use crate::chain::{
    Account, Address, Allocation, Authority, Block, Genesis, Hash, Head, Header, Kind, NonceRule, Payload, SecretKey,
    State, Time, Transaction, execute, format, merkle,
};

/// What each account of a [`genesis`] has at first: enough for any sample.
pub const BALANCE: u64 = 1_000_000_000_000;

/// The time of block 0 of a [`genesis`], 2025-01-01: long ago, so that no block of a long chain lies in the future.
pub const START: Time = Time(1_735_689_600_000_000);

/// Every so many transactions, one is a message.
const MESSAGE_EVERY: u64 = 8;

/// A chain that grows by as many blocks as are asked for. It keeps the state, not the blocks.
pub struct Sample {
    genesis: Arc<Genesis>,
    authority: SecretKey,
    accounts: Vec<SecretKey>,
    nonces: Vec<u64>,
    state: State,
    head: Head,
    step_us: u64,
    sent: u64,
}

/// Key number `index` of those that belong to `seed`; 0 is the authority's.
pub fn key(seed: u64, index: u64) -> SecretKey {
    SecretKey::from_seed(Hash::of(&[b"tenon sample key", &seed.to_be_bytes(), &index.to_be_bytes()]).0)
}

/// A genesis with one authority, [`key`]`(seed, 0)`, and `accounts` funded accounts, keys 1 and up.
pub fn genesis(seed: u64, accounts: usize) -> Genesis {
    let authority = key(seed, 0).public_key();
    let allocations = (1..=accounts as u64)
        .into_par_iter()
        .map(|index| Allocation { address: Address::of(&key(seed, index).public_key()), balance: BALANCE })
        .collect();
    Genesis {
        format: format::NAME.into(),
        chain_id: format!("sample-{seed}"),
        timestamp: START,
        slot_ms: 2_000,
        min_fee: 1,
        fee_recipient: None,
        nonce_rule: NonceRule::Increasing,
        block_txs_max: 2_000,
        block_bytes_max: 4 << 20,
        authorities: vec![Authority { address: Address::of(&authority), public_key: authority }],
        allocations,
    }
}

impl Sample {
    /// The chain of [`genesis`]`(seed, accounts)`, at block 0.
    pub fn new(seed: u64, accounts: usize) -> Self {
        let keys = (1..=accounts as u64).map(|index| key(seed, index)).collect();
        Self::on(Arc::new(genesis(seed, accounts)), key(seed, 0), keys)
    }

    /// A chain on any genesis with one authority, whose key is `authority`; `accounts` are the keys of funded accounts,
    /// which send to each other. Blocks are one slot apart; see [`Sample::step_us`].
    ///
    /// Panics: where `authority` is not the genesis's only one.
    pub fn on(genesis: Arc<Genesis>, authority: SecretKey, accounts: Vec<SecretKey>) -> Self {
        assert_eq!(genesis.authorities.len(), 1, "a sample chain has one authority");
        assert_eq!(genesis.authorities[0].public_key, authority.public_key(), "the authority's key");
        let head = Head::from(&genesis.block().header);
        let (state, step_us) = (genesis.state(), genesis.slot_ms * 1_000);
        Self { genesis, authority, nonces: vec![0; accounts.len()], accounts, state, head, step_us, sent: 0 }
    }

    /// Sets the time between blocks, in microseconds, at least 1: for a genesis that is not long ago.
    pub fn step_us(mut self, step_us: u64) -> Self {
        self.step_us = step_us.max(1);
        self
    }

    /// The chain's genesis.
    pub fn genesis(&self) -> &Arc<Genesis> {
        &self.genesis
    }

    /// The newest block made.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The authority's key.
    pub fn authority(&self) -> &SecretKey {
        &self.authority
    }

    /// The keys of the accounts that send.
    pub fn accounts(&self) -> &[SecretKey] {
        &self.accounts
    }

    /// What an address has after the newest block.
    pub fn account(&self, address: &Address) -> Account {
        self.state.account(address).unwrap_or_default()
    }

    /// The next `count` blocks with `transactions` each, from the accounts in turn. Signed on every core.
    ///
    /// Panics: where transactions are asked for and there are no accounts, or they have run out of money.
    pub fn blocks(&mut self, count: usize, transactions: usize) -> Vec<Block> {
        let unsigned: Vec<_> = (0..count * transactions).map(|_| self.next_transaction()).collect();
        let (genesis, accounts) = (Arc::clone(&self.genesis), &self.accounts);
        let signed: Vec<_> = unsigned
            .into_par_iter()
            .with_min_len(16)
            .map(|(sender, transaction)| transaction.signed(&genesis.chain_id, &accounts[sender]))
            .collect();
        let mut signed = signed.into_iter();
        // A block's hash does not depend on its signature, so headers come first and are then signed on every core.
        let unsigned: Vec<_> =
            (0..count).map(|_| self.unsigned(signed.by_ref().take(transactions).collect())).collect();
        let authority = &self.authority;
        unsigned
            .into_par_iter()
            .with_min_len(16)
            .map(|(header, transactions)| Block::signed(header, transactions, authority))
            .collect()
    }

    /// The next block, with just these transactions.
    ///
    /// Panics: where one of them cannot happen; a sample chain holds no invalid block.
    pub fn block_with(&mut self, transactions: Vec<Transaction>) -> Block {
        let (header, transactions) = self.unsigned(transactions);
        Block::signed(header, transactions, &self.authority)
    }

    /// The header of the next block, which is then the head.
    fn unsigned(&mut self, transactions: Vec<Transaction>) -> (Header, Vec<Transaction>) {
        let changes =
            execute::execute(&self.state, &self.genesis, &transactions).expect("a sample's transactions can happen");
        self.state.apply(&changes);
        let chain_id = &self.genesis.chain_id;
        let leaves: Vec<_> = transactions
            .iter()
            .map(|transaction| format::transaction_leaf(&transaction.hash(chain_id), transaction))
            .collect();
        let header = Header {
            version: format::VERSION,
            chain_id: chain_id.clone(),
            height: self.head.height + 1,
            parent_hash: self.head.hash,
            timestamp: Time(self.head.timestamp.0 + self.step_us),
            proposer: self.genesis.authorities[0].address,
            tx_count: u32::try_from(transactions.len()).expect("fewer transactions than a block may hold"),
            tx_root: merkle::root(&leaves),
            state_root: self.state.root(),
        };
        self.head = Head::from(&header);
        (header, transactions)
    }

    /// The next sender's place among the accounts, and what it sends to the one a few places on.
    fn next_transaction(&mut self) -> (usize, Transaction) {
        let count = self.accounts.len() as u64;
        assert!(count > 0, "transactions need accounts");
        let sender = usize::try_from(self.sent % count).expect("below the number of accounts");
        let receiver = usize::try_from((self.sent + 1 + self.sent / count % 7) % count).expect("as the sender");
        let to = Address::of(&self.accounts[receiver].public_key());
        let (fee, nonce) = (self.genesis.min_fee, self.nonces[sender]);
        self.nonces[sender] += 1;
        self.sent += 1;
        let transaction = if self.sent.is_multiple_of(MESSAGE_EVERY) {
            Transaction::new(Kind::Message, to, 0, fee, nonce, Payload::Text(format!("sample {}", self.sent)))
        } else {
            Transaction::new(Kind::Transfer, to, 1 + self.sent % 100, fee, nonce, Payload::Absent)
        };
        (sender, transaction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{rules, verify};

    #[test]
    fn every_block_is_valid_and_follows_its_parent() {
        let mut sample = Sample::new(7, 5);
        let genesis = Arc::clone(sample.genesis());
        genesis.check().unwrap();
        let (mut parent, mut state) = (Head::from(&genesis.block().header), genesis.state());
        let mut blocks = sample.blocks(9, 13);
        blocks.extend(sample.blocks(3, 0));
        for block in verify::verify_all(blocks, &genesis) {
            let block = block.unwrap().into_block();
            rules::check_child(&parent, &block.header, &genesis, Time::now()).unwrap();
            state.apply(&execute::execute(&state, &genesis, &block.transactions).unwrap());
            assert_eq!(state.root(), block.header.state_root);
            parent = Head::from(&block.header);
        }
        assert_eq!(&parent, sample.head());
    }

    #[test]
    fn the_same_seed_gives_the_same_chain_however_it_is_asked_for() {
        let (mut once, mut twice) = (Sample::new(1, 3), Sample::new(1, 3));
        let whole = once.blocks(4, 2);
        let parts: Vec<_> = (0..2).flat_map(|_| twice.blocks(2, 2)).collect();
        assert_eq!(whole, parts);
        assert_ne!(Sample::new(2, 3).blocks(4, 2), whole);
    }
}
