//! What is derived from blocks, made anew from them: accounts, how to undo the newest blocks, and the indexes.

use std::collections::BTreeMap;

use rusqlite::params;

use super::blocks::{BlockRows, UNDO_DEPTH, encode_changes};
use super::index;
use super::{Reader, Result, StorageError, Writer, to_sql, transactions};
use crate::chain::{Account, Address, Block, Genesis, Hash, Head, Height, PublicKey, State, execute, verify_headers};

/// What a rebuild of the accounts found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// The head that they are after.
    pub head: Head,
    /// How many accounts there are.
    pub accounts: u64,
    /// How many rows were not what they should be: changed, missing, or there for no reason.
    pub wrong: u64,
    /// The first of those.
    pub wrong_accounts: Vec<Address>,
}

/// Wrong accounts that are named at most.
const NAMED_MAX: usize = 20;
/// Blocks that are read at once.
const PAGE_BLOCKS: u64 = 500;
/// Index rows that are collected before they are written in their tables' order.
const ROWS_MAX: usize = 200_000;

/// The accounts that genesis and blocks make.
pub struct Replayed {
    /// The state after the head.
    pub state: State,
    /// Keys of those that have sent something, and of authorities that genesis gives something.
    pub keys: BTreeMap<Address, PublicKey>,
    /// How to undo the newest blocks: their heights and changes, encoded.
    undo: Vec<(Height, Vec<u8>)>,
    head: Head,
}

impl Reader<'_> {
    /// Executes the stored blocks again, from genesis up to `last`; every block must make its own state root and be
    /// signed by its proposer. `progress` is told how far it is, and `last`.
    ///
    /// Errors: the lowest block that is not here, is damaged, or does not make what it says.
    pub fn replay(
        &self,
        genesis: &Genesis,
        last: Height,
        mut progress: impl FnMut(Height, Height),
    ) -> Result<Replayed> {
        let base = self.base()?;
        if base > 0 {
            return Err(StorageError::Inconsistent(format!(
                "the accounts cannot be made from blocks: this node began with a snapshot, its blocks begin at height {base}"
            )));
        }
        let start = Head::from(&genesis.block().header);
        let keys = genesis.known_keys();
        let mut replayed = Replayed { state: genesis.state(), keys, undo: Vec::new(), head: start };
        while replayed.head.height < last {
            let first = replayed.head.height + 1;
            let mut signed = Vec::new();
            for height in first..=last.min(first + PAGE_BLOCKS - 1) {
                let block = self
                    .block(height)?
                    .ok_or_else(|| StorageError::Inconsistent(format!("block {height} is missing")))?;
                replayed.add(&block, genesis, last)?;
                signed.push((block.header, block.signature));
            }
            verify_headers(signed, genesis)
                .map_err(|(at, error)| StorageError::Inconsistent(format!("block {}: {error}", first + at as u64)))?;
            progress(replayed.head.height, last);
        }
        Ok(replayed)
    }
}

impl Replayed {
    fn add(&mut self, block: &Block, genesis: &Genesis, last: Height) -> Result<()> {
        let (header, height) = (&block.header, self.head.height + 1);
        let wrong = |what: String| StorageError::Inconsistent(format!("block {height}: {what}"));
        if header.height != height {
            return Err(wrong(format!("block {} has its place", header.height)));
        }
        if header.parent_hash != self.head.hash {
            return Err(wrong(format!("builds on {}, the block below is {}", header.parent_hash, self.head.hash)));
        }
        check_root(block)?;
        let changes = execute::execute(&self.state, genesis, &block.transactions)
            .map_err(|(index, error)| wrong(format!("transaction {index}: {error}")))?;
        self.state.apply(&changes);
        let root = self.state.root();
        if root != header.state_root {
            return Err(wrong(format!("its transactions make the state root {root}, it says {}", header.state_root)));
        }
        for transaction in &block.transactions {
            self.keys.entry(transaction.from()).or_insert(transaction.public_key);
        }
        if header.height + UNDO_DEPTH > last {
            self.undo.push((header.height, encode_changes(&changes)));
        }
        self.head = Head::from(header);
        Ok(())
    }
}

/// The hashes of a block's transactions. Errors: they are not those that its header commits to.
fn check_root(block: &Block) -> Result<Vec<Hash>> {
    let (hashes, root) = block.transaction_root();
    if root == block.header.tx_root {
        return Ok(hashes);
    }
    let text =
        format!("block {}: its transactions make {root}, its tx_root is {}", block.header.height, block.header.tx_root);
    Err(StorageError::Inconsistent(text))
}

impl Writer<'_> {
    /// Makes the accounts anew from genesis and all blocks; and how to undo the newest. Errors: [`Reader::replay`]'s;
    /// nothing has changed.
    pub fn rebuild_accounts(&self, genesis: &Genesis, progress: impl FnMut(Height, Height)) -> Result<Rebuilt> {
        let head = self.reader().head()?.ok_or_else(|| StorageError::Inconsistent("there is no block".into()))?;
        let replayed = self.reader().replay(genesis, head.height, progress)?;
        let (wrong, wrong_accounts) = self.reader().unlike(&replayed)?;
        self.put_replayed(&replayed)?;
        Ok(Rebuilt { head: replayed.head, accounts: replayed.state.len() as u64, wrong, wrong_accounts })
    }

    /// Puts accounts, in a table that takes the old one's place, and undo records in the place of those that are stored.
    /// All of it is part of the open transaction.
    pub fn put_replayed(&self, replayed: &Replayed) -> Result<()> {
        let connection = self.connection();
        let sql: String =
            connection.query_row("SELECT sql FROM sqlite_master WHERE name = 'account'", [], |row| row.get(0))?;
        connection.execute_batch(&sql.replacen("account", "account_anew", 1))?;
        {
            let mut insert = connection
                .prepare("INSERT INTO account_anew (address, balance, nonce, public_key) VALUES (?, ?, ?, ?)")?;
            for (address, account) in replayed.state.accounts() {
                let key = replayed.keys.get(&address).map(|key| key.0);
                insert.execute(params![address.0, to_sql(account.balance), to_sql(account.nonce), key])?;
            }
        }
        // Statements that know the old table would keep it from going.
        connection.flush_prepared_statement_cache();
        connection
            .execute_batch("DROP TABLE account; ALTER TABLE account_anew RENAME TO account; DELETE FROM undo;")?;
        let mut insert = connection.prepare("INSERT INTO undo (height, changes) VALUES (?, ?)")?;
        for (height, changes) in &replayed.undo {
            insert.execute(params![to_sql(*height), changes])?;
        }
        Ok(())
    }

    /// Makes the indexes anew from the blocks and headers that are here. Errors: one of them cannot be read.
    pub fn rebuild_indexes(&self) -> Result<()> {
        index::ALL.into_iter().try_for_each(|index| index.clear(self.connection()))?;
        let reader = self.reader();
        let (base, head) = (reader.base()?, reader.head()?.map_or(0, |head| head.height));
        let (mut rows, mut waiting) = (BlockRows::default(), 0);
        for height in 0..=head {
            let missing = || StorageError::Inconsistent(format!("block {height} is missing"));
            let hash = if height == 0 || height >= base {
                let block = reader.block(height)?.ok_or_else(missing)?;
                let hashes = check_root(&block)?;
                transactions::collect(&block, &hashes, &mut rows);
                waiting += 1 + hashes.len();
                block.hash()
            } else {
                waiting += 1;
                reader.hash_at(height)?.ok_or_else(missing)?
            };
            rows.add_block(&hash, height);
            if waiting >= ROWS_MAX {
                waiting = 0;
                self.put_rows(&mut rows)?;
            }
        }
        self.put_rows(&mut rows)
    }
}

impl Reader<'_> {
    /// How many account rows are not what `replayed` has, and the first of them. A key that is known and need not be is
    /// not wrong.
    fn unlike(&self, replayed: &Replayed) -> Result<(u64, Vec<Address>)> {
        let mut right = replayed.state.accounts().peekable();
        let (mut count, mut named) = (0, Vec::new());
        let mut note = |address| {
            count += 1;
            if named.len() < NAMED_MAX {
                named.push(address);
            }
        };
        self.each_stored_account(|address, stored| {
            while let Some((missing, _)) = right.next_if(|(other, _)| *other < address) {
                note(missing);
            }
            let account = Account { balance: stored.balance, nonce: stored.nonce };
            let key = replayed.keys.get(&address);
            let is_right = right.next_if(|(other, _)| *other == address).is_some_and(|(_, right)| right == account)
                && (key.is_none() || stored.public_key.as_ref() == key);
            if !is_right {
                note(address);
            }
            Ok::<(), StorageError>(())
        })?;
        right.for_each(|(missing, _)| note(missing));
        Ok((count, named))
    }
}
