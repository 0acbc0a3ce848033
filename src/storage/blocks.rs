//! Blocks: one canonical blob each, found by height or by the first bytes of their hash; and what undoes them.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};

use super::index::{self, Row, Upkeep};
use super::{BelowBase, Reader, Result, StorageError, Writer, from_sql, to_sql, transactions};
use crate::chain::{
    Account, Address, Block, Change, DecodeError, Hash, Head, Header, Height, PublicKey, Time, VerifiedBlock,
};

/// How many blocks below the head can be undone.
pub const UNDO_DEPTH: u64 = 1_024;

/// How many blocks that were taken back are remembered, with their parents.
const UNDONE_MAX: i64 = 65_536;

/// Index rows of many blocks, collected so that they go into each B-tree in its own order.
#[derive(Default)]
pub struct BlockRows {
    blocks: Vec<Row>,
    pub(super) transactions: Vec<Row>,
    pub(super) accounts: Vec<Row>,
    pub(super) messages: Vec<Row>,
    upkeep: [Upkeep; 4],
    undo: Vec<(Height, Vec<u8>)>,
    buffer: Vec<u8>,
}

/// Some blocks of a range, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frames {
    /// The frames.
    pub body: Vec<u8>,
    /// The height to go on with.
    pub next: Height,
    /// Whether more was asked for than there was room.
    pub cut: bool,
}

/// A block that was taken off the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenBlock {
    /// The block.
    pub block: Block,
    /// Its hash.
    pub hash: Hash,
    /// Its transactions' hashes, in order.
    pub transaction_hashes: Vec<Hash>,
}

impl TakenBlock {
    /// Its height.
    pub fn height(&self) -> Height {
        self.block.header.height
    }
}

impl BlockRows {
    /// None yet, for indexes whose short tables have so many rows at most.
    pub fn new(recent_max: u64) -> Self {
        Self { upkeep: [Upkeep::new(recent_max); 4], ..Self::default() }
    }

    /// Forgets what was collected.
    pub fn clear(&mut self) {
        *self = Self { upkeep: self.upkeep, ..Self::default() };
    }

    /// Collects the index row of a block, without how to undo it.
    pub(super) fn add_block(&mut self, hash: &Hash, height: Height) {
        self.blocks.push((hash.prefix(), to_sql(height)));
    }
}

fn damaged(height: Height) -> impl Fn(DecodeError) -> StorageError {
    move |error| StorageError::Damaged { what: format!("block {height}"), error }
}

impl Reader<'_> {
    /// The head; none before the genesis block is stored.
    pub fn head(&self) -> Result<Option<Head>> {
        let mut statement =
            self.connection().prepare_cached("SELECT height, body FROM block ORDER BY height DESC LIMIT 1")?;
        let row: Option<(i64, Vec<u8>)> = statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        row.map(|(height, body)| {
            let (header, _) = Header::decode_start(&body).map_err(damaged(from_sql(height)))?;
            Ok(Head::from(&header))
        })
        .transpose()
    }

    /// The block at `height`.
    pub fn block(&self, height: Height) -> Result<Option<Block>> {
        let mut statement = self.connection().prepare_cached("SELECT body FROM block WHERE height = ?")?;
        let body: Option<Vec<u8>> = statement.query_row([to_sql(height)], |row| row.get(0)).optional()?;
        body.map(|body| Block::decode(&body).map_err(damaged(height))).transpose()
    }

    /// The header at `height`, without reading its transactions, which need not be here.
    pub fn header(&self, height: Height) -> Result<Option<Header>> {
        let mut statement =
            self.connection().prepare_cached("SELECT substr(body, 1, 512) FROM block WHERE height = ?")?;
        let start: Option<Vec<u8>> = statement.query_row([to_sql(height)], |row| row.get(0)).optional()?;
        match start {
            Some(start) => Ok(Some(Header::decode_start(&start).map_err(damaged(height))?.0)),
            None => Ok(self.kept_header(height)?.map(|(header, _)| header)),
        }
    }

    /// The hash of the block at `height`.
    pub fn hash_at(&self, height: Height) -> Result<Option<Hash>> {
        Ok(self.header(height)?.map(|header| header.hash()))
    }

    /// Where the block with this hash stands.
    pub fn block_height(&self, hash: &Hash) -> Result<Option<Height>> {
        let mut statement = self.connection().prepare_cached("SELECT height FROM block_index WHERE prefix = ?")?;
        let heights = statement.query_map([hash.prefix()], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
        for height in heights.into_iter().map(from_sql) {
            if self.hash_at(height)?.as_ref() == Some(hash) {
                return Ok(Some(height));
            }
        }
        Ok(None)
    }

    /// The stored bytes of the blocks `first..=last`, ascending, without gaps; ends before their sum passes `bytes_max`,
    /// but has at least one if there is one.
    pub fn encoded_blocks(&self, first: Height, last: Height, bytes_max: usize) -> Result<Vec<Vec<u8>>> {
        let mut bodies = Vec::new();
        let mut bytes = 0;
        self.each_encoded_block(first, last, |body| {
            bytes += body.len();
            if bytes > bytes_max && !bodies.is_empty() {
                return false;
            }
            bodies.push(body.to_vec());
            true
        })?;
        Ok(bodies)
    }

    /// Shows `each` the stored bytes of the blocks `first..=last`, ascending, until it answers false. No copies.
    pub fn each_encoded_block(&self, first: Height, last: Height, mut each: impl FnMut(&[u8]) -> bool) -> Result<()> {
        let mut statement =
            self.connection().prepare_cached("SELECT body FROM block WHERE height BETWEEN ? AND ? ORDER BY height")?;
        let mut rows = statement.query([to_sql(first), to_sql(last)])?;
        while let Some(row) = rows.next()? {
            let body = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
            if !each(body) {
                break;
            }
        }
        Ok(())
    }

    /// The stored bytes of the blocks `first..=last` as frames, each after its length in four bytes, big-endian: what a
    /// range carries. At most `bytes_max` of them, or one block that is larger.
    pub fn framed_blocks(&self, first: Height, last: Height, bytes_max: usize) -> Result<Result<Frames, BelowBase>> {
        let last = match self.whole(first, last)? {
            Ok(last) => last,
            Err(below) => return Ok(Err(below)),
        };
        let mut frames = Frames { body: Vec::new(), next: first, cut: false };
        self.each_encoded_block(first, last, |block| {
            let (body, frame) = (&mut frames.body, block.len() + 4);
            if body.is_empty() {
                // Blocks of one range are about as large as each other.
                let blocks = usize::try_from(last - first).map_or(usize::MAX, |more| more.saturating_add(1));
                body.reserve(frame.saturating_mul(blocks).min(bytes_max.max(frame)));
            } else if body.len() + frame > bytes_max {
                frames.cut = true;
                return false;
            }
            let length = u32::try_from(block.len()).expect("a block is smaller than 4 GiB");
            body.extend_from_slice(&length.to_be_bytes());
            body.extend_from_slice(block);
            frames.next += 1;
            true
        })?;
        Ok(Ok(frames))
    }

    /// The time of the newest block that this node has signed, whether it is still on the chain or not; none before the
    /// first.
    pub fn signed(&self) -> Result<Option<Time>> {
        let mut statement = self.connection().prepare_cached("SELECT value FROM meta WHERE key = 'signed'")?;
        let bytes: Option<[u8; 8]> = statement.query_row([], |row| row.get(0)).optional()?;
        Ok(bytes.map(|bytes| Time(u64::from_be_bytes(bytes))))
    }

    /// The lowest height from which on, up to the head, every block can be undone by its record; none where not even the
    /// head can.
    pub fn lowest_undo(&self) -> Result<Option<Height>> {
        // Records are written block by block and pruned from below, so they have no gaps.
        let mut statement = self.connection().prepare_cached("SELECT min(height) FROM undo")?;
        Ok(statement.query_row([], |row| row.get::<_, Option<i64>>(0))?.map(from_sql))
    }

    /// Whether the block at `height` has a hash with this [`Hash::prefix`].
    pub fn has_block(&self, height: Height, prefix: i64) -> Result<bool> {
        let mut statement =
            self.connection().prepare_cached("SELECT 1 FROM block_index WHERE prefix = ? AND height = ?")?;
        Ok(statement.exists([prefix, to_sql(height)])?)
    }

    /// Where the chain of a block leaves ours: the highest block that both have. The block is named by its height and its
    /// hash's [`Hash::prefix`]; none where it is neither ours nor one that was taken back and is remembered.
    pub fn fork_of(&self, mut height: Height, mut prefix: i64) -> Result<Option<Height>> {
        let mut statement =
            self.connection().prepare_cached("SELECT parent FROM undone_block WHERE prefix = ? AND height = ?")?;
        loop {
            if self.has_block(height, prefix)? {
                return Ok(Some(height));
            }
            let parent = statement.query_row([prefix, to_sql(height)], |row| row.get(0)).optional()?;
            let (Some(parent), Some(below)) = (parent, height.checked_sub(1)) else { return Ok(None) };
            (height, prefix) = (below, parent);
        }
    }

    /// What the block at `height` changed; none when it lies too deep to be undone.
    pub fn changes(&self, height: Height) -> Result<Option<Vec<Change>>> {
        let mut statement = self.connection().prepare_cached("SELECT changes FROM undo WHERE height = ?")?;
        let bytes: Option<Vec<u8>> = statement.query_row([to_sql(height)], |row| row.get(0)).optional()?;
        bytes
            .map(|bytes| {
                decode_changes(&bytes)
                    .ok_or_else(|| StorageError::Inconsistent(format!("the undo record of block {height} is damaged")))
            })
            .transpose()
    }
}

impl Writer<'_> {
    /// Stores a block; its index rows go to `rows`, for [`Writer::put_rows`].
    pub fn put_block(&self, verified: &VerifiedBlock, changes: &[Change], rows: &mut BlockRows) -> Result<()> {
        let height = verified.height();
        rows.buffer.clear();
        verified.block().encode(&mut rows.buffer);
        self.connection()
            .prepare_cached("INSERT INTO block (height, body) VALUES (?, ?)")?
            .execute(params![to_sql(height), rows.buffer])?;
        rows.blocks.push((verified.hash().prefix(), to_sql(height)));
        rows.undo.push((height, encode_changes(changes)));
        transactions::collect_rows(verified, rows);
        Ok(())
    }

    /// Stores the collected index rows, each table's in its order, and the undo records that are not too deep already.
    pub fn put_rows(&self, rows: &mut BlockRows) -> Result<()> {
        let tables = [&mut rows.blocks, &mut rows.transactions, &mut rows.accounts, &mut rows.messages];
        for ((index, upkeep), rows) in index::ALL.into_iter().zip(&mut rows.upkeep).zip(tables) {
            index.put(self.connection(), rows, upkeep)?;
        }
        let Some(head) = rows.undo.last().map(|(height, _)| *height) else { return Ok(()) };
        let deepest = to_sql(head.saturating_sub(UNDO_DEPTH));
        self.connection().prepare_cached("DELETE FROM undo WHERE height <= ?")?.execute([deepest])?;
        let mut statement = self.connection().prepare_cached("INSERT INTO undo (height, changes) VALUES (?, ?)")?;
        for (height, changes) in rows.undo.drain(..).filter(|(height, _)| to_sql(*height) > deepest) {
            statement.execute(params![to_sql(height), changes])?;
        }
        Ok(())
    }

    /// Remembers the parent of a block that is taken back, for [`Reader::fork_of`]. The oldest are forgotten.
    pub(super) fn put_undone(&self, block: &TakenBlock) -> Result<()> {
        let row = [to_sql(block.height()), block.hash.prefix(), block.block.header.parent_hash.prefix()];
        self.connection()
            .prepare_cached("INSERT OR REPLACE INTO undone_block (height, prefix, parent) VALUES (?, ?, ?)")?
            .execute(row)?;
        self.connection()
            .prepare_cached("DELETE FROM undone_block WHERE id <= (SELECT max(id) FROM undone_block) - ?")?
            .execute([UNDONE_MAX])?;
        Ok(())
    }

    /// Notes the time of the newest block that this node has signed.
    pub fn put_signed(&self, time: Time) -> Result<()> {
        self.connection()
            .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES ('signed', ?)")?
            .execute([&time.0.to_be_bytes()[..]])?;
        Ok(())
    }

    /// Takes the block at `height`, which must be the head, out of the database again: block, index rows, accounts, and
    /// the keys that it brought; `known` are those that genesis names. Answers the block and what it had changed.
    /// Errors: no undo record so deep.
    pub fn take_block(
        &self,
        height: Height,
        known: &BTreeMap<Address, PublicKey>,
    ) -> Result<(TakenBlock, Vec<Change>)> {
        let missing = || StorageError::Inconsistent(format!("the undo record of block {height} is not there"));
        let changes = self.reader().changes(height)?.ok_or_else(missing)?;
        let taken = self.take_block_alone(height)?;
        for change in &changes {
            match change.before {
                Some(account) => self.restore_account(&change.address, &account, known)?,
                None => self.take_account(&change.address)?,
            }
        }
        Ok((taken, changes))
    }

    /// As [`Writer::take_block`], but leaves the accounts as they are: for whoever makes them anew.
    pub fn take_block_alone(&self, height: Height) -> Result<TakenBlock> {
        let missing = || StorageError::Inconsistent(format!("the body of block {height} is not there"));
        let block = self.reader().block(height)?.ok_or_else(missing)?;
        let hash = block.hash();
        let connection = self.connection();
        connection.prepare_cached("DELETE FROM block WHERE height = ?")?.execute([to_sql(height)])?;
        connection.prepare_cached("DELETE FROM undo WHERE height = ?")?.execute([to_sql(height)])?;
        index::BLOCKS.take(connection, (hash.prefix(), to_sql(height)))?;
        let transaction_hashes = self.take_transactions(&block)?;
        let taken = TakenBlock { block, hash, transaction_hashes };
        self.put_undone(&taken)?;
        Ok(taken)
    }
}

/// 20 bytes address, a flag, 16 bytes before (if it was there), 16 bytes after.
pub(super) fn encode_changes(changes: &[Change]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(changes.len() * 53);
    let push = |bytes: &mut Vec<u8>, account: &Account| {
        bytes.extend_from_slice(&account.balance.to_be_bytes());
        bytes.extend_from_slice(&account.nonce.to_be_bytes());
    };
    for change in changes {
        bytes.extend_from_slice(&change.address.0);
        bytes.push(u8::from(change.before.is_some()));
        if let Some(before) = &change.before {
            push(&mut bytes, before);
        }
        push(&mut bytes, &change.after);
    }
    bytes
}

fn decode_changes(mut bytes: &[u8]) -> Option<Vec<Change>> {
    fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
        let (chunk, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        Some(*chunk)
    }
    fn account(bytes: &mut &[u8]) -> Option<Account> {
        Some(Account { balance: u64::from_be_bytes(take(bytes)?), nonce: u64::from_be_bytes(take(bytes)?) })
    }
    let mut changes = Vec::new();
    while !bytes.is_empty() {
        let address = Address(take(&mut bytes)?);
        let before = match take(&mut bytes)? {
            [0] => None,
            [1] => Some(account(&mut bytes)?),
            _ => return None,
        };
        changes.push(Change { address, before, after: account(&mut bytes)? });
    }
    Some(changes)
}
