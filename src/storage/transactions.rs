//! Transactions inside blocks: where they stand, and who they concern. The transactions themselves are in the blocks.

use std::fmt;
use std::str::FromStr;

use super::blocks::BlockRows;
use super::index;
use super::{Counts, Reader, Result, StorageError, Writer, from_sql, to_sql};
use crate::chain::{Address, Block, Hash, Header, Height, Time, Transaction, VerifiedBlock};

/// Positions a block has in a `place`; more than a block can hold.
const POSITIONS: u64 = 1 << 14;

/// A transaction in a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTransaction {
    /// The transaction.
    pub transaction: Transaction,
    /// Its hash.
    pub hash: Hash,
    /// The block's height.
    pub height: Height,
    /// Its place among the block's transactions, from 0.
    pub position: u32,
    /// The block's time.
    pub timestamp: Time,
    /// The block's hash.
    pub block_hash: Hash,
}

/// Where a list was left: a transaction's place in the chain. Written `height.position`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// The block's height.
    pub height: Height,
    /// The place in the block.
    pub position: u32,
}

/// Which transactions a list is of. Everything that is set must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransactionFilter {
    /// Sent or received by.
    pub address: Option<Address>,
    /// Sent by.
    pub sender: Option<Address>,
    /// Received by.
    pub recipient: Option<Address>,
    /// Whether it is mail, see [`Transaction::is_message`].
    pub message: Option<bool>,
}

/// How many candidates, or blocks, one query looks at before it answers with what it has.
const SCAN_MAX: usize = 10_000;

impl StoredTransaction {
    /// Its place in the chain.
    pub fn cursor(&self) -> Cursor {
        Cursor { height: self.height, position: self.position }
    }
}

impl Cursor {
    /// Behind the last transaction that a block at `height` can have.
    pub fn end_of(height: Height) -> Self {
        Self { height, position: u32::try_from(POSITIONS - 1).expect("2^14") }
    }

    fn place(self) -> i64 {
        to_sql(self.height.saturating_mul(POSITIONS).saturating_add(u64::from(self.position)).min(i64::MAX as u64))
    }

    fn at(place: i64) -> Self {
        let place = from_sql(place);
        let position = u32::try_from(place % POSITIONS).expect("below 2^14");
        Self { height: place / POSITIONS, position }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.height, self.position)
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        text.split_once('.')
            .filter(|(height, position)| digits(height) && digits(position))
            .and_then(|(height, position)| {
                Some(Self { height: height.parse().ok()?, position: position.parse().ok()? })
            })
            .filter(|cursor| u64::from(cursor.position) < POSITIONS)
            .ok_or_else(|| {
                format!("a cursor is `height.position`, got `{}`", text.chars().take(40).collect::<String>())
            })
    }
}

impl TransactionFilter {
    /// Whether `transaction` belongs into the list.
    pub fn admits(&self, transaction: &Transaction) -> bool {
        let from = transaction.from();
        self.address.is_none_or(|address| address == from || address == transaction.to)
            && self.sender.is_none_or(|sender| sender == from)
            && self.recipient.is_none_or(|recipient| recipient == transaction.to)
            && self.message.is_none_or(|message| message == transaction.is_message())
    }
}

/// The first 8 bytes of an address, as the indexes have it.
fn prefix(address: &Address) -> i64 {
    i64::from_be_bytes(*address.0.first_chunk().expect("an address has 20 bytes"))
}

/// The index rows of a block's transactions.
pub(super) fn collect_rows(verified: &VerifiedBlock, rows: &mut BlockRows) {
    collect(verified.block(), verified.transaction_hashes(), rows);
}

/// The places that a block at `height` has, first and last.
pub(super) fn places(height: Height) -> (i64, i64) {
    (Cursor { height, position: 0 }.place(), Cursor::end_of(height).place())
}

/// A place as people read it.
pub(super) fn place_name(place: i64) -> Cursor {
    Cursor::at(place)
}

/// The index rows of the transactions of `block`, which have these hashes.
pub(super) fn collect(block: &Block, hashes: &[Hash], rows: &mut BlockRows) {
    for (position, (transaction, hash)) in (0..).zip(block.transactions.iter().zip(hashes)) {
        let place = Cursor { height: block.header.height, position }.place();
        let (from, to) = (prefix(&transaction.from()), prefix(&transaction.to));
        rows.transactions.push((hash.prefix(), place));
        rows.accounts.push((from, place));
        if to != from {
            rows.accounts.push((to, place));
        }
        if transaction.is_message() {
            rows.messages.push((from, place));
            if to != from {
                rows.messages.push((to, place));
            }
        }
    }
}

impl Reader<'_> {
    /// The transaction with this hash, if a block has it.
    pub fn transaction(&self, hash: &Hash) -> Result<Option<StoredTransaction>> {
        let mut statement = self.connection().prepare_cached("SELECT place FROM transaction_index WHERE prefix = ?")?;
        let places = statement.query_map([hash.prefix()], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
        let mut blocks = LastBlock::default();
        for place in places {
            if let Some(found) = blocks.transaction(self, Cursor::at(place))?.filter(|found| found.hash == *hash) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The transactions at these places, none where there is none. Neighbours cost one block.
    pub fn transactions_at(&self, places: &[Cursor]) -> Result<Vec<Option<StoredTransaction>>> {
        let mut blocks = LastBlock::default();
        places.iter().map(|place| blocks.transaction(self, *place)).collect()
    }

    /// Transactions that `filter` admits, newest first, older than `before`; at most `limit`. The cursor says where to go
    /// on, as the next `before`; none when there are no more. A page can be short, even empty, and still have one: a query
    /// looks at a bounded number of places.
    pub fn transactions(
        &self,
        filter: &TransactionFilter,
        before: Option<Cursor>,
        limit: usize,
    ) -> Result<(Vec<StoredTransaction>, Option<Cursor>)> {
        let mut found = Vec::new();
        if limit == 0 {
            return Ok((found, None));
        }
        let before = before.map_or(i64::MAX, Cursor::place);
        let (places, stopped) = match filter.address.or(filter.recipient).or(filter.sender) {
            Some(address) => self.places_of(&address, filter.message == Some(true), before)?,
            None => self.all_places(before)?,
        };
        let mut blocks = LastBlock::default();
        let mut left = places.iter().map(|&place| Cursor::at(place)).peekable();
        while let Some(at) = left.next() {
            found.extend(blocks.transaction(self, at)?.filter(|found| filter.admits(&found.transaction)));
            if found.len() >= limit {
                return Ok((found, (left.peek().is_some() || stopped.is_some()).then_some(at)));
            }
        }
        Ok((found, stopped))
    }

    /// Places of one address's transactions, newest first; and where to go on, if there are more than a query looks at.
    fn places_of(&self, address: &Address, messages: bool, before: i64) -> Result<(Vec<i64>, Option<Cursor>)> {
        let table = if messages { "account_message" } else { "account_transaction" };
        let mut statement = self.connection().prepare_cached(&format!(
            "SELECT place, run FROM {table} WHERE prefix = ? AND place < ? ORDER BY run DESC, place DESC LIMIT {SCAN_MAX}"
        ))?;
        let rows = statement.query_map([prefix(address), before], |row| row.get(0))?;
        let places = rows.collect::<Result<Vec<i64>, _>>()?;
        let stopped = places.last().filter(|_| places.len() >= SCAN_MAX).map(|&place| Cursor::at(place));
        Ok((places, stopped))
    }

    /// Places of all transactions, newest first, block by block; and where to go on.
    fn all_places(&self, before: i64) -> Result<(Vec<i64>, Option<Cursor>)> {
        let mut statement = self.connection().prepare_cached(
            "SELECT height, substr(body, 1, 512) FROM block WHERE height <= ? ORDER BY height DESC LIMIT ?",
        )?;
        let newest = to_sql(Cursor::at(before).height);
        let mut rows = statement.query([newest, SCAN_MAX as i64])?;
        let (mut places, mut scanned, mut lowest) = (Vec::new(), 0, 0);
        while let Some(row) = rows.next()? {
            lowest = from_sql(row.get(0)?);
            let start = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
            let (header, _) = Header::decode_start(start)
                .map_err(|error| StorageError::Damaged { what: format!("block {lowest}"), error })?;
            let positions = (0..header.tx_count).rev().map(|position| Cursor { height: lowest, position }.place());
            places.extend(positions.filter(|&place| place < before));
            scanned += 1;
            if places.len() >= SCAN_MAX {
                break;
            }
        }
        let stopped = (places.len() >= SCAN_MAX || scanned >= SCAN_MAX) && lowest > 0;
        Ok((places, stopped.then_some(Cursor { height: lowest, position: 0 })))
    }

    /// Mail to or from `address`, oldest first, after `after`; at most `limit`.
    pub fn messages(&self, address: &Address, after: Option<Cursor>, limit: usize) -> Result<Vec<StoredTransaction>> {
        let mut statement = self.connection().prepare_cached(
            "SELECT place, run FROM account_message WHERE prefix = ? AND place > ? ORDER BY run, place",
        )?;
        let mut rows = statement.query([prefix(address), after.map_or(-1, Cursor::place)])?;
        let filter = TransactionFilter { address: Some(*address), ..TransactionFilter::default() };
        let mut found = Vec::new();
        let mut blocks = LastBlock::default();
        while found.len() < limit
            && let Some(row) = rows.next()?
        {
            let place = Cursor::at(row.get(0)?);
            found.extend(blocks.transaction(self, place)?.filter(|found| filter.admits(&found.transaction)));
        }
        Ok(found)
    }

    /// How many transactions and accounts there are. Reads both indexes through.
    pub fn counts(&self) -> Result<Counts> {
        Ok(Counts { transactions: index::TRANSACTIONS.rows(self.connection())?, accounts: self.account_count()? })
    }
}

impl Writer<'_> {
    /// Takes the index rows of a block's transactions away again; answers their hashes.
    pub(super) fn take_transactions(&self, block: &Block) -> Result<Vec<Hash>> {
        let mut hashes = Vec::with_capacity(block.transactions.len());
        for (position, transaction) in (0..).zip(&block.transactions) {
            let place = Cursor { height: block.header.height, position }.place();
            let hash = transaction.hash(&block.header.chain_id);
            let (from, to) = (prefix(&transaction.from()), prefix(&transaction.to));
            index::TRANSACTIONS.take(self.connection(), (hash.prefix(), place))?;
            for prefix in [from, to] {
                index::ACCOUNTS.take(self.connection(), (prefix, place))?;
                index::MESSAGES.take(self.connection(), (prefix, place))?;
            }
            hashes.push(hash);
        }
        Ok(hashes)
    }
}

/// The block that was read last: lists often have several transactions of one block.
#[derive(Default)]
struct LastBlock(Option<(Block, Hash)>);

impl LastBlock {
    fn transaction(&mut self, reader: &Reader<'_>, at: Cursor) -> Result<Option<StoredTransaction>> {
        if self.0.as_ref().is_none_or(|(block, _)| block.header.height != at.height) {
            self.0 = reader.block(at.height)?.map(|block| {
                let hash = block.hash();
                (block, hash)
            });
        }
        let Some((block, block_hash)) = &self.0 else { return Ok(None) };
        Ok(block.transactions.get(at.position as usize).map(|transaction| StoredTransaction {
            hash: transaction.hash(&block.header.chain_id),
            transaction: transaction.clone(),
            height: at.height,
            position: at.position,
            timestamp: block.header.timestamp,
            block_hash: *block_hash,
        }))
    }
}
