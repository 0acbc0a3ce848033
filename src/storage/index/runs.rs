//! Sorted runs of an index: what came out of the short table, and longer ones that are merged from so many of these.
//!
//! A run has a level. The short table's rows make runs of level 0; [`FAN`] whole runs of a level become one of the next.
//! So a row is written once a level, always among its neighbours, and there are at most a few dozen runs to look into,
//! however long the chain is. The work is done in portions as rows move, so that no commit waits for a whole merge; all
//! that has to be known to go on with it is in the table of runs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rusqlite::{Connection, params};

use super::Row;
use crate::storage::{Result, from_sql, to_sql};

/// Runs of a level that become one of the next.
pub(super) const FAN: usize = 16;

/// Levels at most. With runs of 16,384 rows the last one is never reached.
const LEVELS: i64 = 8;

/// Numbers of runs of one level, beginning anew whenever none is left: enough for 17 billion rows. All fit three bytes.
const LEVEL_RUNS: i64 = 1 << 20;

/// Rows that are merged for each one that moves, a level: one would do to be ready with a merge when the next is due.
const PACE: u64 = 2;

/// The statements that concern runs.
pub(super) struct Statements {
    list: String,
    set: String,
    forget: String,
    read: String,
    put: String,
    delete: String,
}

/// One run, as the table of runs has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// Greater for newer rows: a later run's of the same level, any run's of a lower level.
    number: i64,
    /// How many it got; some may have been taken out again.
    rows: u64,
    /// Whether it still gets some. One of a level at most is, its newest.
    open: bool,
}

impl Run {
    fn level(self) -> i64 {
        LEVELS - 1 - self.number / LEVEL_RUNS
    }
}

impl Statements {
    pub fn new(name: &str, number: &str) -> Self {
        Self {
            list: format!("SELECT run, rows, open FROM {name}_run ORDER BY run"),
            set: format!("INSERT OR REPLACE INTO {name}_run (run, rows, open) VALUES (?, ?, ?)"),
            forget: format!("DELETE FROM {name}_run WHERE run = ?"),
            read: format!("SELECT prefix, {number} FROM {name}_long WHERE run = ? ORDER BY prefix, {number}"),
            put: format!("INSERT OR IGNORE INTO {name}_long (run, prefix, {number}) VALUES (?, ?, ?)"),
            delete: format!("DELETE FROM {name}_long WHERE run = ? AND (prefix, {number}) <= (?, ?)"),
        }
    }

    /// Lets `more` put rows into the newest run of level 0, which is whole from `run_rows` on; answers how many it did.
    pub fn grow(&self, connection: &Connection, run_rows: u64, more: impl FnOnce(i64) -> Result<u64>) -> Result<u64> {
        let mut run = open_run(&self.list(connection)?, 0);
        let put = more(run.number)?;
        run.rows += put;
        run.open = run.rows < run_rows;
        self.set(connection, run)?;
        Ok(put)
    }

    /// Goes on with what is to be merged, so far as is due when `moved` rows came into runs.
    pub fn merge(&self, connection: &Connection, moved: u64) -> Result<()> {
        if moved == 0 {
            return Ok(());
        }
        let runs = self.list(connection)?;
        for level in 0..LEVELS - 1 {
            let whole = runs.iter().filter(|run| run.level() == level && !run.open);
            let sources: Vec<i64> = whole.map(|run| run.number).take(FAN).collect();
            if sources.len() == FAN {
                self.merge_some(connection, &sources, open_run(&runs, level + 1), moved.saturating_mul(PACE))?;
            }
        }
        Ok(())
    }

    /// Moves the lowest `rows_max` rows of `sources` to `target`. The one is whole, and the others are gone, with the last.
    fn merge_some(&self, connection: &Connection, sources: &[i64], mut target: Run, rows_max: u64) -> Result<()> {
        let rows = self.lowest(connection, sources, rows_max)?;
        if let Some(last) = rows.last() {
            let mut put = connection.prepare_cached(&self.put)?;
            for row in &rows {
                put.execute([target.number, row.0, row.1])?;
            }
            let mut delete = connection.prepare_cached(&self.delete)?;
            for source in sources {
                delete.execute([*source, last.0, last.1])?;
            }
        }
        target.rows += rows.len() as u64;
        target.open = rows.len() as u64 >= rows_max;
        self.set(connection, target)?;
        if !target.open {
            let mut forget = connection.prepare_cached(&self.forget)?;
            for source in sources {
                forget.execute([source])?;
            }
        }
        Ok(())
    }

    /// The lowest rows of `sources` together, `rows_max` at most, in their order.
    fn lowest(&self, connection: &Connection, sources: &[i64], rows_max: u64) -> Result<Vec<Row>> {
        let mut statements =
            sources.iter().map(|_| connection.prepare_cached(&self.read)).collect::<Result<Vec<_>, _>>()?;
        let mut cursors = Vec::with_capacity(sources.len());
        for (statement, source) in statements.iter_mut().zip(sources) {
            cursors.push(statement.query([source])?);
        }
        let mut next = |at: usize| -> Result<Option<Reverse<(Row, usize)>>> {
            let row = cursors[at].next()?.map(|row| Ok::<Row, rusqlite::Error>((row.get(0)?, row.get(1)?)));
            Ok(row.transpose()?.map(|row| Reverse((row, at))))
        };
        let mut heads = BinaryHeap::with_capacity(sources.len());
        for at in 0..sources.len() {
            heads.extend(next(at)?);
        }
        let mut rows = Vec::new();
        while (rows.len() as u64) < rows_max
            && let Some(Reverse((row, at))) = heads.pop()
        {
            rows.push(row);
            heads.extend(next(at)?);
        }
        Ok(rows)
    }

    fn list(&self, connection: &Connection) -> Result<Vec<Run>> {
        let mut statement = connection.prepare_cached(&self.list)?;
        let runs = statement
            .query_map([], |row| Ok(Run { number: row.get(0)?, rows: from_sql(row.get(1)?), open: row.get(2)? }))?;
        Ok(runs.collect::<Result<_, _>>()?)
    }

    fn set(&self, connection: &Connection, run: Run) -> Result<()> {
        connection.prepare_cached(&self.set)?.execute(params![run.number, to_sql(run.rows), run.open])?;
        Ok(())
    }
}

/// The run of a level that gets rows, of `runs` in their order; a new one where none does.
fn open_run(runs: &[Run], level: i64) -> Run {
    let new = |number| Run { number, rows: 0, open: true };
    match runs.iter().rfind(|run| run.level() == level) {
        Some(run) if run.open => *run,
        Some(run) => new(run.number + 1),
        None => new((LEVELS - 1 - level) * LEVEL_RUNS),
    }
}
