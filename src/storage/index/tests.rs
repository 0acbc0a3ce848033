//! One set of rows, however it is cut into tables and runs; and what readers pay for it.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::runs::FAN;
use super::*;

/// A database as the first schema made the tables, with `rows` in the index of blocks, brought to what they are now.
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
    connection.execute_batch(TWO_RUNS).unwrap();
    // Of those rows some are as if they had come since.
    connection
        .execute_batch(
            "INSERT INTO block_index_recent SELECT * FROM block_index_long WHERE height % 2;
             DELETE FROM block_index_long WHERE height % 2;",
        )
        .unwrap();
    connection.execute_batch(MANY_RUNS).unwrap();
    connection
}

fn read(connection: &Connection, sql: &str) -> Vec<Row> {
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

fn recent(connection: &Connection) -> u64 {
    from_sql(connection.query_row(&BLOCKS.count, [], |row| row.get(0)).unwrap())
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
    fn all_runs_are_one_set(
        before in proptest::collection::btree_set(any_row(), 0..40),
        steps in proptest::collection::vec(any_step(), 1..40),
        recent_max in 0..80_u64,
    ) {
        let connection = split(&before.iter().copied().collect::<Vec<_>>());
        let (mut model, mut upkeep): (BTreeSet<Row>, _) = (before, Upkeep::new(recent_max));
        let mut looked = false;
        for step in steps {
            match step {
                Step::Put(rows) => {
                    // No block is put twice: what is there is not put again.
                    let mut rows: Vec<Row> = rows.into_iter().filter(|row| !model.contains(row)).collect();
                    looked |= !rows.is_empty();
                    model.extend(&rows);
                    BLOCKS.put(&connection, &mut rows, &mut upkeep).unwrap();
                    prop_assert!(rows.is_empty());
                    let uncounted = recent_max / COUNTED_PART;
                    prop_assert!(!looked || recent(&connection) <= recent_max + uncounted, "{}", recent(&connection));
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
        assert_eq!(BLOCKS.move_slice(&connection, slice, 1_000).unwrap(), 2, "slice {slice}");
    }
    assert_eq!((recent(&connection), BLOCKS.rows(&connection).unwrap()), (0, 32));
}

/// Levels of the runs of `index`, oldest rows first.
fn levels(connection: &Connection, index: &Index) -> Vec<i64> {
    let mut statement = connection.prepare(&format!("SELECT run FROM {}_run ORDER BY run", index.name)).unwrap();
    let runs = statement.query_map([], |row| row.get(0)).unwrap();
    runs.map(|run: rusqlite::Result<i64>| 7 - (run.unwrap() >> 20)).collect()
}

/// Sixteen whole runs of a level, as many that wait while these are merged, and one that grows.
const LEVEL_MAX: usize = 2 * FAN + 1;

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Blocks come and are taken back at the end of the chain; restarts come between. One address has half of all rows.
    #[test]
    fn an_addresses_rows_come_in_their_order_however_they_were_merged(
        recent_max in 1..24_u64,
        steps in proptest::collection::vec((1..60_usize, 0..30_usize, any::<bool>()), 20..90),
    ) {
        let connection = split(&[]);
        let (mut model, mut upkeep, mut place) = (Vec::<Row>::new(), Upkeep::new(recent_max), 0);
        let mut deepest = 0;
        for (more, fewer, restart) in steps {
            for _ in 0..fewer.min(model.len()) {
                let row = model.pop().unwrap();
                ACCOUNTS.take(&connection, row).unwrap();
                place = row.1;
            }
            if restart {
                upkeep = Upkeep::new(recent_max);
            }
            let mut rows = Vec::new();
            for _ in 0..more {
                let other = (place % 7).wrapping_mul(0x5851_f42d_4c95_7f2d);
                rows.push((if place % 2 == 0 { 9 } else { other }, place));
                place += 1;
            }
            model.extend(&rows);
            ACCOUNTS.put(&connection, &mut rows, &mut upkeep).unwrap();
            let levels = levels(&connection, &ACCOUNTS);
            for level in 0..8 {
                let runs = levels.iter().filter(|found| **found == level).count();
                prop_assert!(runs <= LEVEL_MAX, "{runs} runs of level {level}");
            }
            deepest = deepest.max(levels.first().copied().unwrap_or_default());
            let newest: Vec<Row> = read(
                &connection,
                "SELECT prefix, place, run FROM account_transaction WHERE prefix = 9 ORDER BY run DESC, place DESC",
            );
            let mut expected: Vec<Row> = model.iter().copied().filter(|row| row.0 == 9).collect();
            expected.reverse();
            prop_assert_eq!(newest, expected);
        }
        prop_assert_eq!(ACCOUNTS.rows(&connection).unwrap(), model.len() as u64);
        let mut all = read(&connection, "SELECT prefix, place FROM account_transaction");
        all.sort_unstable();
        model.sort_unstable();
        prop_assert_eq!(all, model);
    }
}

#[test]
fn many_rows_make_few_runs_of_several_levels() {
    let connection = split(&[]);
    let (mut upkeep, rows) = (Upkeep::new(32), 40_000_i64);
    for first in (0..rows).step_by(40) {
        let mut some = (first..first + 40).map(|at| (at.wrapping_mul(0x5851_f42d_4c95_7f2d), at)).collect();
        BLOCKS.put(&connection, &mut some, &mut upkeep).unwrap();
    }
    let levels = levels(&connection, &BLOCKS);
    assert_eq!(levels.first(), Some(&2), "{levels:?}");
    assert!(levels.is_sorted_by(|one, next| one >= next) && levels.len() <= 3 * LEVEL_MAX, "{levels:?}");
    assert_eq!(BLOCKS.rows(&connection).unwrap(), rows.unsigned_abs());
    for at in (0..rows).step_by(371) {
        let sql =
            format!("SELECT prefix, height FROM block_index WHERE prefix = {}", at.wrapping_mul(0x5851_f42d_4c95_7f2d));
        assert_eq!(read(&connection, &sql).len(), 1, "{at}");
    }
}

#[test]
fn readers_search_every_part_and_sort_nothing() {
    let connection = split(&[]);
    for sql in [
        "SELECT height FROM block_index WHERE prefix = ?",
        "SELECT 1 FROM block_index WHERE prefix = ? AND height = ?",
        "SELECT place, run FROM account_transaction WHERE prefix = ? AND place < ? ORDER BY run DESC, place DESC LIMIT 10",
        "SELECT place, run FROM account_message WHERE prefix = ? AND place > ? ORDER BY run, place",
    ] {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let count = statement.parameter_count();
        let rows = statement.query_map(rusqlite::params_from_iter(vec![1; count]), |row| row.get(3)).unwrap();
        let plan: Vec<String> = rows.map(Result::unwrap).collect();
        let searches = plan.iter().filter(|line| line.starts_with("SEARCH") && line.contains("PRIMARY KEY")).count();
        assert_eq!(searches, 2, "{sql}: {plan:#?}");
        // Nothing is read through but the list of runs, and what was found.
        let view = format!("SCAN {}", sql.split(' ').skip_while(|word| *word != "FROM").nth(1).unwrap());
        let scans = plan
            .iter()
            .filter(|line| line.starts_with("SCAN") && **line != "SCAN cut" && !line.starts_with(&view))
            .count();
        assert!(!plan.iter().any(|line| line.contains("TEMP B-TREE")) && scans == 0, "{sql}: {plan:#?}");
    }
}
