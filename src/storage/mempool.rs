//! Transactions that wait for a block: kept, so that one that was accepted survives a restart.

use rusqlite::params;

use super::{Reader, Result, StorageError, Writer, from_sql, to_sql};
use crate::chain::{Hash, Time, Transaction};

/// A waiting transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptTransaction {
    /// The transaction.
    pub transaction: Transaction,
    /// Its hash.
    pub hash: Hash,
    /// When it came.
    pub received: Time,
}

impl Reader<'_> {
    /// All that wait, oldest first.
    pub fn kept_transactions(&self) -> Result<Vec<KeptTransaction>> {
        let mut statement = self.connection().prepare("SELECT hash, body, received FROM mempool ORDER BY received")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        rows.map(|row| {
            let (hash, body, received): ([u8; 32], Vec<u8>, i64) = row?;
            let hash = Hash(hash);
            let transaction = Transaction::from_bytes(&body)
                .map_err(|error| StorageError::Damaged { what: format!("pending transaction {hash}"), error })?;
            Ok(KeptTransaction { transaction, hash, received: Time(from_sql(received)) })
        })
        .collect()
    }
}

impl Writer<'_> {
    /// Keeps a waiting transaction.
    pub fn keep_transaction(&self, kept: &KeptTransaction) -> Result<()> {
        self.connection()
            .prepare_cached("INSERT OR REPLACE INTO mempool (hash, body, received) VALUES (?, ?, ?)")?
            .execute(params![kept.hash.0, kept.transaction.to_bytes(), to_sql(kept.received.0)])?;
        Ok(())
    }

    /// Forgets one that waits no more.
    pub fn forget_transaction(&self, hash: &Hash) -> Result<()> {
        self.connection().prepare_cached("DELETE FROM mempool WHERE hash = ?")?.execute([&hash.0[..]])?;
        Ok(())
    }
}
