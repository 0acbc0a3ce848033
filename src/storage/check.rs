//! Whether the tables fit together: blocks that follow each other, as they were signed, and the index rows that they must have, no more and no
//! less. Each index is read through once and compared as a whole; only where it differs are rows looked for one by one.

use std::collections::BTreeSet;

use super::blocks::BlockRows;
use super::index;
use super::{Reader, Result, StorageError, from_sql, to_sql, transactions};
use crate::chain::{Block, Genesis, Hash, Header, Height, Signature, verify_headers};

/// What the blocks of a database say about it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct BlocksChecked {
    /// Blocks that are here whole, the genesis among them.
    pub blocks: u64,
    /// Transactions in them.
    pub transactions: u64,
    /// What is wrong, at most [`PROBLEMS_MAX`].
    pub problems: Vec<String>,
}

/// Problems that are named at most.
pub const PROBLEMS_MAX: usize = 100;

/// A set of rows as one number: the same rows in any order make the same one.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Digest {
    rows: u64,
    sum: u128,
}

impl Digest {
    fn add(&mut self, row: (i64, i64)) {
        self.rows += 1;
        let hash = Hash::of(&[&row.0.to_be_bytes(), &row.1.to_be_bytes()]);
        self.sum = self.sum.wrapping_add(u128::from_be_bytes(*hash.0.first_chunk().expect("32 bytes")));
    }
}

impl Reader<'_> {
    /// Reads every block and header of the chain and every row of the indexes. `progress` is told each height and the
    /// head. Errors: the
    /// database cannot be read; that something is wrong is in the answer.
    pub fn check_blocks(&self, genesis: &Genesis, mut progress: impl FnMut(Height, Height)) -> Result<BlocksChecked> {
        let genesis_hash = genesis.block().hash();
        let mut signed = Signed { genesis, headers: Vec::new() };
        let mut found = BlocksChecked::default();
        let Some(head) = self.raw_head()? else {
            found.problems.push("there is no block".into());
            return Ok(found);
        };
        let base = self.base()?;
        let mut expected = [Digest::default(); 4];
        let mut parent: Option<Hash> = None;
        for height in 0..=head {
            match self.check_block(height, height == 0 || height >= base, parent.as_ref()) {
                Ok(Found { header, signature, block, problem }) => {
                    found.note(problem);
                    let hash = header.hash();
                    if height > 0 {
                        signed.add(header, signature, &mut found);
                    } else if hash != genesis_hash {
                        found.note(Some(format!("block 0 is {hash}, the genesis is {genesis_hash}")));
                    }
                    parent = Some(hash);
                    expected[0].add((hash.prefix(), to_sql(height)));
                    if let Some((block, hashes)) = block {
                        found.blocks += 1;
                        found.transactions += block.transactions.len() as u64;
                        for (digest, rows) in expected[1..].iter_mut().zip(rows_of(&block, &hashes)) {
                            rows.into_iter().for_each(|row| digest.add(row));
                        }
                    }
                }
                Err(problem) => {
                    found.note(Some(problem));
                    parent = None;
                }
            }
            progress(height, head);
        }
        signed.verify(&mut found);
        for (index, expected) in index::ALL.into_iter().zip(expected) {
            let (table, column) = (index.name, index.number);
            let actual = self.digest(table, column)?;
            if actual != expected {
                let text = format!("{table}: {} rows, the blocks make {}; they differ", actual.rows, expected.rows);
                found.note(Some(text));
                self.name_rows(table, column, head, &mut found)?;
            }
        }
        self.check_rest(head, &mut found)?;
        Ok(found)
    }

    /// The highest row of the blocks, whether or not it can be read.
    fn raw_head(&self) -> Result<Option<Height>> {
        let height: Option<i64> = self.connection().query_row("SELECT max(height) FROM block", [], |row| row.get(0))?;
        Ok(height.map(from_sql))
    }

    /// One block, or a header where only that must be here.
    fn check_block(&self, height: Height, whole: bool, parent: Option<&Hash>) -> Result<Found, String> {
        let damaged = |error: StorageError| format!("block {height}: {error}");
        let missing = || match whole {
            true => format!("block {height} is missing"),
            false => format!("the header of block {height} is missing"),
        };
        let block = if whole { Some(self.block(height).map_err(damaged)?.ok_or_else(missing)?) } else { None };
        let (header, signature) = match &block {
            Some(block) => (block.header.clone(), block.signature),
            None => self.kept_header(height).map_err(damaged)?.ok_or_else(missing)?,
        };
        let mut problem = if header.height != height {
            Some(format!("block {height}: says that it is block {}", header.height))
        } else {
            let other = parent.filter(|parent| **parent != header.parent_hash);
            other.map(|parent| {
                format!("block {height}: builds on {}, block {} is {parent}", header.parent_hash, height - 1)
            })
        };
        let block = block.map(|block| {
            let (hashes, root) = block.transaction_root();
            if root != header.tx_root && problem.is_none() {
                problem =
                    Some(format!("block {height}: its transactions make {root}, its tx_root is {}", header.tx_root));
            }
            (block, hashes)
        });
        Ok(Found { header, signature, block, problem })
    }

    fn digest(&self, table: &str, column: &str) -> Result<Digest> {
        let mut digest = Digest::default();
        let mut statement = self.connection().prepare(&format!("SELECT prefix, {column} FROM {table}"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            digest.add((row.get(0)?, row.get(1)?));
        }
        Ok(digest)
    }

    /// Names the first rows of an index that are missing, or should not be there.
    fn name_rows(&self, table: &str, column: &str, head: Height, found: &mut BlocksChecked) -> Result<()> {
        const NAMED_MAX: usize = 10;
        let place = |number: i64| match table {
            "block_index" => format!("block {number}"),
            _ => format!("transaction {}", transactions::place_name(number)),
        };
        let at = index::ALL.iter().position(|index| index.name == table).expect("one of them");
        let sql = format!("SELECT prefix, {column} FROM {table} WHERE {column} BETWEEN ? AND ?");
        let mut statement = self.connection().prepare(&sql)?;
        let mut named = 0;
        let base = self.base()?;
        // Every row above the head is one too many; below, what each block makes is held against what is there.
        let ranges = (0..=head).map(Some).chain([None]);
        for height in ranges {
            let expected: BTreeSet<(i64, i64)> = match height {
                None => BTreeSet::new(),
                Some(height) if at == 0 => self
                    .hash_at(height)
                    .ok()
                    .flatten()
                    .map(|hash| (hash.prefix(), to_sql(height)))
                    .into_iter()
                    .collect(),
                Some(height) if height > 0 && height < base => BTreeSet::new(),
                Some(height) => match self.block(height) {
                    Ok(Some(block)) => {
                        let (hashes, _) = block.transaction_root();
                        rows_of(&block, &hashes)[at - 1].iter().copied().collect()
                    }
                    // It is named already; what its rows should be is not known.
                    _ => continue,
                },
            };
            let (first, last) = match height {
                Some(height) if at == 0 => (to_sql(height), to_sql(height)),
                Some(height) => transactions::places(height),
                None if at == 0 => (to_sql(head + 1), i64::MAX),
                None => (transactions::places(head + 1).0, i64::MAX),
            };
            let rows = statement.query_map([first, last], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let actual = rows.collect::<rusqlite::Result<BTreeSet<(i64, i64)>>>()?;
            for (rows, what) in [(expected.difference(&actual), "lacks"), (actual.difference(&expected), "wrongly has")]
            {
                for (prefix, number) in rows {
                    if named == NAMED_MAX {
                        found.note(Some(format!("{table}: and more")));
                        return Ok(());
                    }
                    named += 1;
                    found.note(Some(format!("{table}: {what} a row of {} ({prefix:016x})", place(*number))));
                }
            }
        }
        Ok(())
    }

    /// Headers and undo records where none should be.
    fn check_rest(&self, head: Height, found: &mut BlocksChecked) -> Result<()> {
        let count = |sql: &str, height: Height| -> Result<i64> {
            Ok(self.connection().query_row(sql, [to_sql(height)], |row| row.get(0))?)
        };
        let headers = count("SELECT count(*) FROM header WHERE height >= ? OR height < 1", self.base()?)?;
        if headers > 0 {
            found.note(Some(format!("header: {headers} rows of heights whose blocks are here")));
        }
        let undo = count("SELECT count(*) FROM undo WHERE height > ?", head)?;
        if undo > 0 {
            found.note(Some(format!("undo: {undo} rows of blocks above the head")));
        }
        let mut statement = self.connection().prepare("SELECT height FROM undo ORDER BY height")?;
        let heights = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
        for height in heights.into_iter().map(from_sql) {
            found.note(self.changes(height).err().map(|error| error.to_string()));
        }
        Ok(())
    }
}

/// What was read of one height.
struct Found {
    header: Header,
    signature: Signature,
    /// With the hashes of its transactions, where it is here whole.
    block: Option<(Block, Vec<Hash>)>,
    problem: Option<String>,
}

/// Headers whose signatures wait to be checked together.
struct Signed<'a> {
    genesis: &'a Genesis,
    headers: Vec<(Header, Signature)>,
}

impl Signed<'_> {
    /// Signatures in one batch.
    const BATCH: usize = 500;

    fn add(&mut self, header: Header, signature: Signature, found: &mut BlocksChecked) {
        self.headers.push((header, signature));
        if self.headers.len() >= Self::BATCH {
            self.verify(found);
        }
    }

    fn verify(&mut self, found: &mut BlocksChecked) {
        let mut left = std::mem::take(&mut self.headers);
        while !left.is_empty() {
            let heights: Vec<Height> = left.iter().map(|(header, _)| header.height).collect();
            let rest = left.clone();
            let Err((at, error)) = verify_headers(left, self.genesis) else { return };
            found.note(Some(format!("block {}: {error}", heights[at])));
            left = rest[at + 1..].to_vec();
        }
    }
}

impl BlocksChecked {
    fn note(&mut self, problem: Option<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.extend(problem);
        }
    }
}

/// The rows of a block's transactions in the three indexes, each once.
fn rows_of(block: &Block, hashes: &[Hash]) -> [BTreeSet<(i64, i64)>; 3] {
    let mut rows = BlockRows::default();
    transactions::collect(block, hashes, &mut rows);
    [rows.transactions, rows.accounts, rows.messages].map(|rows| rows.into_iter().collect())
}
