//! What a database holds, row by row.

use std::path::Path;

/// Every row of every table of the chain: two databases that hold the same chain have the same.
pub fn chain(path: &Path) -> Vec<String> {
    let connection = rusqlite::Connection::open(path).unwrap();
    let tables =
        ["block", "undo", "block_index", "transaction_index", "account_transaction", "account_message", "account"];
    let mut rows = Vec::new();
    for table in tables {
        let mut statement = connection.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = statement.column_count();
        let mut found = statement.query([]).unwrap();
        while let Some(row) = found.next().unwrap() {
            let cells: Vec<_> = (0..columns).map(|at| format!("{:?}", row.get_ref(at).unwrap())).collect();
            rows.push(format!("{table}: {}", cells.join(" ")));
        }
    }
    rows
}

/// The first row that only one of the two has, if there is one.
pub fn difference(ours: &[String], theirs: &[String]) -> Option<String> {
    let only = |these: &[String], those: &[String], whose: &str| {
        let found = these.iter().find(|row| !those.contains(row))?;
        Some(format!("only {whose}: {}", found.chars().take(300).collect::<String>()))
    };
    (ours != theirs).then(|| {
        only(ours, theirs, "ours").or_else(|| only(theirs, ours, "theirs")).unwrap_or_else(|| "another order".into())
    })
}
