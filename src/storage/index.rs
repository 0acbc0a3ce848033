//! Where the first bytes of a hash or an address lead: tables of rows (prefix, place), which are made from the blocks.
//!
//! Hashes come in no order. In a long table nearly every new row lies in another page, and to write all those pages costs
//! several times what the blocks themselves do: at a million blocks a follower had half the speed that it has at ten
//! thousand. So each table is in two runs. New rows go to a short one, whose few pages are shared by many of them; what is
//! too many for it moves on to the long one, a slice of the prefixes at a time, so that again many rows share a page. For
//! readers a view with the table's name joins both.
//!
//! A prototype outside the node, at 1,000,000 blocks and 2,000 addresses in groups of 8,000 blocks, took 24 µs of processor
//! time a block for blocks and three of the tables without the short runs, 8 µs with them. What it comes to in the node is
//! what `make bench` prints for `catch-up-height`.

use rusqlite::Connection;

use super::{Result, from_sql};

/// A prefix, and the height of a block or the place of a transaction.
pub(super) type Row = (i64, i64);

/// Rows of the short run from which on some move to the long one: about 700 pages.
pub const RECENT_MAX: u64 = 131_072;

/// Into so many parts the prefixes are cut; one moves at a time.
const SLICES: u8 = 16;

/// The short run is counted after so many new rows, as a part of what it may have: counting reads all of its pages.
const COUNTED_PART: u64 = 16;

/// One table, by the statements that concern it.
pub(super) struct Index {
    /// The view that joins its runs.
    pub name: &'static str,
    /// What the second column is called.
    pub number: &'static str,
    put: &'static str,
    count: &'static str,
    move_slice: [&'static str; 2],
    take: [&'static str; 2],
    sizes: &'static str,
    clear: &'static str,
}

macro_rules! index {
    ($name:literal, $number:literal) => {
        Index {
            name: $name,
            number: $number,
            put: concat!("INSERT OR IGNORE INTO ", $name, "_recent (prefix, ", $number, ") VALUES (?, ?)"),
            count: concat!("SELECT count(*) FROM ", $name, "_recent"),
            move_slice: [
                concat!(
                    "INSERT OR IGNORE INTO ",
                    $name,
                    "_long SELECT prefix, ",
                    $number,
                    " FROM ",
                    $name,
                    "_recent WHERE prefix BETWEEN ? AND ? ORDER BY prefix, ",
                    $number
                ),
                concat!("DELETE FROM ", $name, "_recent WHERE prefix BETWEEN ? AND ?"),
            ],
            take: [
                concat!("DELETE FROM ", $name, "_recent WHERE prefix = ? AND ", $number, " = ?"),
                concat!("DELETE FROM ", $name, "_long WHERE prefix = ? AND ", $number, " = ?"),
            ],
            sizes: concat!(
                "SELECT (SELECT count(*) FROM ",
                $name,
                "_recent) + (SELECT count(*) FROM ",
                $name,
                "_long)"
            ),
            clear: concat!("DELETE FROM ", $name, "_recent; DELETE FROM ", $name, "_long;"),
        }
    };
}

/// The statements that split a table into two runs.
macro_rules! split {
    ($name:literal, $number:literal) => {
        concat!(
            "ALTER TABLE ",
            $name,
            " RENAME TO ",
            $name,
            "_long;
             CREATE TABLE ",
            $name,
            "_recent (prefix INTEGER, ",
            $number,
            " INTEGER, PRIMARY KEY (prefix, ",
            $number,
            ")) WITHOUT ROWID;
             CREATE VIEW ",
            $name,
            " AS SELECT prefix, ",
            $number,
            " FROM ",
            $name,
            "_recent
                 UNION ALL SELECT prefix, ",
            $number,
            " FROM ",
            $name,
            "_long;"
        )
    };
}

/// Blocks by their hash.
pub(super) const BLOCKS: Index = index!("block_index", "height");
/// Transactions by their hash.
pub(super) const TRANSACTIONS: Index = index!("transaction_index", "place");
/// Transactions by who sends and who gets them.
pub(super) const ACCOUNTS: Index = index!("account_transaction", "place");
/// The same, of those that are messages alone.
pub(super) const MESSAGES: Index = index!("account_message", "place");

/// All of them.
pub(super) const ALL: [&Index; 4] = [&BLOCKS, &TRANSACTIONS, &ACCOUNTS, &MESSAGES];

/// The schema's step from one run to two.
pub(super) const MIGRATION: &str = concat!(
    split!("block_index", "height"),
    split!("transaction_index", "place"),
    split!("account_transaction", "place"),
    split!("account_message", "place")
);

/// What was put since the short run was counted last, and which slice moves next. With a new one the first rows are
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
    /// Puts `rows` in, and lets the oldest rows' slices move on where there are too many. A row that is there stays one.
    pub fn put(&self, connection: &Connection, rows: &mut Vec<Row>, upkeep: &mut Upkeep) -> Result<()> {
        rows.sort_unstable();
        let rows_put = rows.len();
        upkeep.uncounted = upkeep.uncounted.saturating_add(rows_put as u64);
        let mut statement = connection.prepare_cached(self.put)?;
        for row in rows.drain(..) {
            statement.execute([row.0, row.1])?;
        }
        if rows_put == 0 || upkeep.uncounted <= upkeep.recent_max / COUNTED_PART {
            return Ok(());
        }
        upkeep.uncounted = 0;
        let count = connection.prepare_cached(self.count)?.query_row([], |row| row.get(0))?;
        let mut left = from_sql(count);
        for _ in 0..SLICES {
            if left <= upkeep.recent_max {
                break;
            }
            left = left.saturating_sub(self.move_slice(connection, upkeep.slice)?);
            upkeep.slice = (upkeep.slice + 1) % SLICES;
        }
        Ok(())
    }

    /// Moves the rows of one slice from the short run to the long one; answers how many.
    fn move_slice(&self, connection: &Connection, slice: u8) -> Result<u64> {
        const WIDTH: u64 = (1 << 63) / (SLICES as u64 / 2);
        let first = i64::MIN.wrapping_add_unsigned(WIDTH * u64::from(slice));
        let range = [first, first.wrapping_add_unsigned(WIDTH - 1)];
        let [copy, delete] = self.move_slice;
        connection.prepare_cached(copy)?.execute(range)?;
        Ok(connection.prepare_cached(delete)?.execute(range)? as u64)
    }

    /// Takes a row out again. One that is not there is no error.
    pub fn take(&self, connection: &Connection, row: Row) -> Result<()> {
        for run in self.take {
            if connection.prepare_cached(run)?.execute([row.0, row.1])? > 0 {
                break;
            }
        }
        Ok(())
    }

    /// How many rows there are. Reads both runs through.
    pub fn rows(&self, connection: &Connection) -> Result<u64> {
        Ok(from_sql(connection.prepare_cached(self.sizes)?.query_row([], |row| row.get(0))?))
    }

    /// Takes all rows out.
    pub fn clear(&self, connection: &Connection) -> Result<()> {
        Ok(connection.execute_batch(self.clear)?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A database as the first schema made the tables, with `rows` in the index of blocks, brought to two runs.
    fn split(rows: &[Row]) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        for index in ALL {
            let (name, number) = (index.name, index.number);
            connection
                .execute_batch(&format!(
                    "CREATE TABLE {name} (prefix INTEGER, {number} INTEGER, PRIMARY KEY (prefix, {number})) WITHOUT ROWID"
                ))
                .unwrap();
        }
        for row in rows {
            connection.execute("INSERT INTO block_index VALUES (?, ?)", [row.0, row.1]).unwrap();
        }
        connection.execute_batch(MIGRATION).unwrap();
        connection
    }

    fn read(connection: &Connection, sql: &str) -> Vec<Row> {
        let mut statement = connection.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    fn recent(connection: &Connection) -> u64 {
        from_sql(connection.query_row(BLOCKS.count, [], |row| row.get(0)).unwrap())
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(Vec<Row>),
        Take(usize),
        /// The node was started again, or a commit failed.
        Forget,
    }

    fn any_row() -> impl Strategy<Value = Row> {
        // Few numbers, so that rows meet again; all slices.
        ((0..400_i64).prop_map(|dice| dice.wrapping_mul(0x5851_f42d_4c95_7f2d)), 0..4_i64)
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => proptest::collection::vec(any_row(), 0..60).prop_map(Step::Put),
            2 => any::<usize>().prop_map(Step::Take),
            1 => Just(Step::Forget),
        ]
    }

    proptest! {
        #[test]
        fn two_runs_are_one_set(
            before in proptest::collection::btree_set(any_row(), 0..40),
            steps in proptest::collection::vec(any_step(), 1..40),
            recent_max in 0..80_u64,
        ) {
            let connection = split(&before.iter().copied().collect::<Vec<_>>());
            let (mut model, mut upkeep): (BTreeSet<Row>, _) = (before, Upkeep::new(recent_max));
            for step in steps {
                match step {
                    Step::Put(rows) => {
                        // No block is put twice: what is there is not put again.
                        let mut rows: Vec<Row> = rows.into_iter().filter(|row| !model.contains(row)).collect();
                        model.extend(&rows);
                        BLOCKS.put(&connection, &mut rows, &mut upkeep).unwrap();
                        prop_assert!(rows.is_empty());
                        let uncounted = recent_max / COUNTED_PART;
                        prop_assert!(recent(&connection) <= recent_max + uncounted, "{}", recent(&connection));
                    }
                    Step::Take(which) => {
                        let row = model.iter().nth(which % (model.len() + 1)).copied().unwrap_or((7, 7));
                        model.remove(&row);
                        BLOCKS.take(&connection, row).unwrap();
                    }
                    Step::Forget => upkeep = Upkeep::new(recent_max),
                }
                let rows = read(&connection, "SELECT prefix, height FROM block_index ORDER BY prefix, height");
                prop_assert_eq!(&rows, &model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(BLOCKS.rows(&connection).unwrap(), model.len() as u64);
            }
            BLOCKS.clear(&connection).unwrap();
            prop_assert_eq!(BLOCKS.rows(&connection).unwrap(), 0);
        }
    }

    #[test]
    fn whoever_starts_again_and_again_counts_all_the_same() {
        let connection = split(&[]);
        for round in 0..50_i64 {
            let mut rows = (0..4).map(|at| ((round * 4 + at).wrapping_mul(0x5851_f42d_4c95_7f2d), 1)).collect();
            BLOCKS.put(&connection, &mut rows, &mut Upkeep::new(64)).unwrap();
        }
        assert!(recent(&connection) <= 64, "{}", recent(&connection));
        assert_eq!(BLOCKS.rows(&connection).unwrap(), 200);
    }

    #[test]
    fn slices_are_all_prefixes_and_each_once() {
        let connection = split(&[]);
        let edges = (0..16_i64).map(|slice| i64::MIN.wrapping_add(slice << 60));
        let mut rows: Vec<Row> = edges.flat_map(|edge| [(edge, 1), (edge.wrapping_sub(1), 1)]).collect();
        BLOCKS.put(&connection, &mut rows, &mut Upkeep::new(1_000)).unwrap();
        for slice in 0..SLICES {
            assert_eq!(BLOCKS.move_slice(&connection, slice).unwrap(), 2, "slice {slice}");
        }
        assert_eq!((recent(&connection), BLOCKS.rows(&connection).unwrap()), (0, 32));
    }

    #[test]
    fn readers_search_both_runs_and_sort_nothing() {
        let connection = split(&[]);
        for sql in [
            "SELECT height FROM block_index WHERE prefix = ?",
            "SELECT 1 FROM block_index WHERE prefix = ? AND height = ?",
            "SELECT place FROM account_transaction WHERE prefix = ? AND place < ? ORDER BY place DESC LIMIT 10",
            "SELECT place FROM account_message WHERE prefix = ? AND place > ? ORDER BY place",
        ] {
            let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let count = statement.parameter_count();
            let rows = statement.query_map(rusqlite::params_from_iter(vec![1; count]), |row| row.get(3)).unwrap();
            let plan: Vec<String> = rows.map(Result::unwrap).collect();
            let searches =
                plan.iter().filter(|line| line.starts_with("SEARCH") && line.contains("PRIMARY KEY")).count();
            assert_eq!(searches, 2, "{sql}: {plan:#?}");
            assert!(!plan.iter().any(|line| line.contains("TEMP B-TREE") || line.contains("SCAN")), "{sql}: {plan:#?}");
        }
    }
}
