//! How the tables of older files become what they are now.

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

/// The schema's step from one run to two.
pub(in crate::storage) const TWO_RUNS: &str = concat!(
    split!("block_index", "height"),
    split!("transaction_index", "place"),
    split!("account_transaction", "place"),
    split!("account_message", "place")
);

/// The statements that cut the long run into runs of their own. What was in it is one of the third level. The short table
/// says that it is the newest run, too, in a column that takes no room: rows are read in the order of runs without sorting
/// them where both parts of the view have a column for it, of the same affinity, that is bound by what is searched.
macro_rules! cut {
    ($name:literal, $number:literal) => {
        concat!(
            "DROP VIEW ",
            $name,
            ";
             ALTER TABLE ",
            $name,
            "_long RENAME TO ",
            $name,
            "_whole;
             CREATE TABLE ",
            $name,
            "_long (run INTEGER, prefix INTEGER, ",
            $number,
            " INTEGER, PRIMARY KEY (run, prefix, ",
            $number,
            ")) WITHOUT ROWID;
             CREATE TABLE ",
            $name,
            "_run (run INTEGER PRIMARY KEY, rows INTEGER NOT NULL, open INTEGER NOT NULL);
             INSERT INTO ",
            $name,
            "_long SELECT 5 << 20, prefix, ",
            $number,
            " FROM ",
            $name,
            "_whole ORDER BY prefix, ",
            $number,
            ";
             INSERT INTO ",
            $name,
            "_run SELECT 5 << 20, rows, 0 FROM (SELECT count(*) AS rows FROM ",
            $name,
            "_whole) WHERE rows > 0;
             DROP TABLE ",
            $name,
            "_whole;
             ALTER TABLE ",
            $name,
            "_recent ADD COLUMN run INTEGER AS (1 << 30) VIRTUAL;
             CREATE VIEW ",
            $name,
            " AS SELECT prefix, ",
            $number,
            ", run FROM ",
            $name,
            "_recent WHERE run = 1 << 30
                 UNION ALL SELECT long.prefix, long.",
            $number,
            ", cut.run FROM ",
            $name,
            "_run cut CROSS JOIN ",
            $name,
            "_long long WHERE long.run = cut.run;"
        )
    };
}

/// The schema's step from two runs to many.
pub(in crate::storage) const MANY_RUNS: &str = concat!(
    cut!("block_index", "height"),
    cut!("transaction_index", "place"),
    cut!("account_transaction", "place"),
    cut!("account_message", "place")
);
