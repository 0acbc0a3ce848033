//! Where the first bytes of a hash or an address lead: tables of rows (prefix, place), which are made from the blocks.
//!
//! Hashes come in no order. In a long table nearly every new row lies in another page, and to write all those pages costs
//! several times what the blocks themselves do. So each table is a log-structured merge tree of tables. New rows go to a
//! short one, whose few pages are shared by many of them. What is too many for it moves on, a slice of the prefixes at a
//! time, into a sorted run that only ever grows at its end; [`runs`] makes few long runs of many short ones. For readers a
//! view with the table's name joins them all: its `run` column is greatest for the newest rows, so that one address's rows
//! come in the order of their places when they are read in the order of `run`, then place.
//!
//! What it comes to in the node is what `make bench` prints for `catch-up-height`.

mod migration;
mod runs;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use rusqlite::Connection;

use super::{Result, from_sql};
pub(super) use migration::{MANY_RUNS, TWO_RUNS};

/// A prefix, and the height of a block or the place of a transaction.
pub(super) type Row = (i64, i64);

/// Rows of the short table from which on some move to a run: about 130 pages. Every group of blocks writes nearly all of
/// them: in a prototype outside the node, in groups of 2,000, a row cost 1.2 µs to put, move and commit with so many, 1.5 µs
/// with 32,768 and 2.5 µs with 131,072, merging not counted.
pub const RECENT_MAX: u64 = 16_384;

/// Into so many parts the prefixes are cut; one moves at a time.
const SLICES: u8 = 16;

/// The short table is counted after so many new rows, as a part of what it may have: counting reads all of its pages.
const COUNTED_PART: u64 = 16;

/// One table, by the statements that concern it.
pub(super) struct Index {
    /// The view that joins its parts.
    pub name: &'static str,
    /// What the second column is called.
    pub number: &'static str,
    put: String,
    count: String,
    copy_slice: String,
    delete_slice: String,
    take_recent: String,
    take_long: String,
    sizes: String,
    clear: String,
    runs: runs::Statements,
}

/// Blocks by their hash.
pub(super) static BLOCKS: LazyLock<Index> = LazyLock::new(|| Index::new("block_index", "height"));
/// Transactions by their hash.
pub(super) static TRANSACTIONS: LazyLock<Index> = LazyLock::new(|| Index::new("transaction_index", "place"));
/// Transactions by who sends and who gets them.
pub(super) static ACCOUNTS: LazyLock<Index> = LazyLock::new(|| Index::new("account_transaction", "place"));
/// The same, of those that are messages alone.
pub(super) static MESSAGES: LazyLock<Index> = LazyLock::new(|| Index::new("account_message", "place"));

/// All of them.
pub(super) static ALL: [&LazyLock<Index>; 4] = [&BLOCKS, &TRANSACTIONS, &ACCOUNTS, &MESSAGES];

/// What was put since the short table was counted last, and which slice moves next. With a new one the first rows are
/// counted at once, whatever was there before: a node that is started again and again does not go on uncounted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Upkeep {
    uncounted: u64,
    slice: u8,
    recent_max: u64,
}

impl Upkeep {
    pub fn new(recent_max: u64) -> Self {
        Self { uncounted: recent_max, slice: 0, recent_max }
    }
}

impl Default for Upkeep {
    fn default() -> Self {
        Self::new(RECENT_MAX)
    }
}

impl Index {
    fn new(name: &'static str, number: &'static str) -> Self {
        let slice = "WHERE prefix BETWEEN ?1 AND ?2";
        Self {
            name,
            number,
            put: format!("INSERT OR IGNORE INTO {name}_recent (prefix, {number}) VALUES (?, ?)"),
            count: format!("SELECT count(*) FROM {name}_recent"),
            copy_slice: format!(
                "INSERT OR IGNORE INTO {name}_long (run, prefix, {number})
                 SELECT ?3, prefix, {number} FROM {name}_recent {slice} ORDER BY prefix, {number}"
            ),
            delete_slice: format!("DELETE FROM {name}_recent {slice}"),
            take_recent: format!("DELETE FROM {name}_recent WHERE prefix = ? AND {number} = ?"),
            take_long: format!(
                "DELETE FROM {name}_long WHERE run IN (SELECT run FROM {name}_run) AND prefix = ? AND {number} = ?"
            ),
            sizes: format!("SELECT (SELECT count(*) FROM {name}_recent) + (SELECT count(*) FROM {name}_long)"),
            clear: format!("DELETE FROM {name}_recent; DELETE FROM {name}_long; DELETE FROM {name}_run;"),
            runs: runs::Statements::new(name, number),
        }
    }

    /// Puts `rows` in, and lets the oldest rows' slices move on where there are too many. A row that is there stays one.
    pub fn put(&self, connection: &Connection, rows: &mut Vec<Row>, upkeep: &mut Upkeep) -> Result<()> {
        rows.sort_unstable();
        let rows_put = rows.len();
        upkeep.uncounted = upkeep.uncounted.saturating_add(rows_put as u64);
        let mut statement = connection.prepare_cached(&self.put)?;
        for row in rows.drain(..) {
            statement.execute([row.0, row.1])?;
        }
        if rows_put == 0 || upkeep.uncounted <= upkeep.recent_max / COUNTED_PART {
            return Ok(());
        }
        upkeep.uncounted = 0;
        let count = from_sql(connection.prepare_cached(&self.count)?.query_row([], |row| row.get(0))?);
        let mut moved = 0;
        for _ in 0..SLICES {
            if count - moved <= upkeep.recent_max {
                break;
            }
            moved += self.move_slice(connection, upkeep.slice, upkeep.recent_max)?;
            upkeep.slice = (upkeep.slice + 1) % SLICES;
        }
        self.runs.merge(connection, moved)
    }

    /// Moves the rows of one slice from the short table to the newest run; answers how many.
    fn move_slice(&self, connection: &Connection, slice: u8, run_rows: u64) -> Result<u64> {
        const WIDTH: u64 = (1 << 63) / (SLICES as u64 / 2);
        let first = i64::MIN.wrapping_add_unsigned(WIDTH * u64::from(slice));
        let last = first.wrapping_add_unsigned(WIDTH - 1);
        self.runs.grow(connection, run_rows, |run| {
            let copied = connection.prepare_cached(&self.copy_slice)?.execute([first, last, run])?;
            connection.prepare_cached(&self.delete_slice)?.execute([first, last])?;
            Ok(copied as u64)
        })
    }

    /// Takes a row out again. One that is not there is no error.
    pub fn take(&self, connection: &Connection, row: Row) -> Result<()> {
        for statement in [&self.take_recent, &self.take_long] {
            if connection.prepare_cached(statement)?.execute([row.0, row.1])? > 0 {
                break;
            }
        }
        Ok(())
    }

    /// How many rows there are. Reads them all through.
    pub fn rows(&self, connection: &Connection) -> Result<u64> {
        Ok(from_sql(connection.prepare_cached(&self.sizes)?.query_row([], |row| row.get(0))?))
    }

    /// Takes all rows out.
    pub fn clear(&self, connection: &Connection) -> Result<()> {
        Ok(connection.execute_batch(&self.clear)?)
    }
}
