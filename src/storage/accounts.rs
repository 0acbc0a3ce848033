//! Accounts as they are after the head, and the keys that the chain has seen.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};

use super::{Reader, Result, Writer, from_sql, to_sql};
use crate::chain::{Account, Address, PublicKey};

/// An account and the key that it signs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredAccount {
    /// What it has.
    pub balance: u64,
    /// The lowest nonce that it accepts next.
    pub nonce: u64,
    /// Its key, once it has sent something.
    pub public_key: Option<PublicKey>,
}

impl Reader<'_> {
    /// What `address` has; none if nothing was ever sent to it.
    pub fn account(&self, address: &Address) -> Result<Option<StoredAccount>> {
        let mut statement =
            self.connection().prepare_cached("SELECT balance, nonce, public_key FROM account WHERE address = ?")?;
        let row = statement.query_row([&address.0[..]], |row| {
            Ok(StoredAccount {
                balance: from_sql(row.get(0)?),
                nonce: from_sql(row.get(1)?),
                public_key: row.get::<_, Option<[u8; 32]>>(2)?.map(PublicKey),
            })
        });
        Ok(row.optional()?)
    }

    /// How many accounts there are.
    pub fn account_count(&self) -> Result<u64> {
        let mut statement = self.connection().prepare_cached("SELECT count(*) FROM account")?;
        Ok(from_sql(statement.query_row([], |row| row.get(0))?))
    }

    /// Shows `each` every account, by address.
    pub fn each_account(&self, mut each: impl FnMut(Address, Account)) -> Result<()> {
        let mut statement =
            self.connection().prepare("SELECT address, balance, nonce FROM account ORDER BY address")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let account = Account { balance: from_sql(row.get(1)?), nonce: from_sql(row.get(2)?) };
            each(Address(row.get(0)?), account);
        }
        Ok(())
    }
}

impl Writer<'_> {
    /// Sets an account; a key that is not given stays as it was.
    pub fn put_account(&self, address: &Address, account: &Account, key: Option<&PublicKey>) -> Result<()> {
        self.connection()
            .prepare_cached(
                "INSERT INTO account (address, balance, nonce, public_key) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (address) DO UPDATE
                 SET balance = ?2, nonce = ?3, public_key = coalesce(?4, public_key)",
            )?
            .execute(params![address.0, to_sql(account.balance), to_sql(account.nonce), key.map(|key| key.0)])?;
        Ok(())
    }

    /// Sets an account back to what it was before a block, whose first transaction of it may be the one that taught the
    /// chain its key: before that the key was known to nobody, but for those in `known`, which genesis names.
    pub(super) fn restore_account(
        &self,
        address: &Address,
        account: &Account,
        known: &BTreeMap<Address, PublicKey>,
    ) -> Result<()> {
        let forget = account.nonce == 0 && !known.contains_key(address);
        self.connection()
            .prepare_cached(
                "UPDATE account SET balance = ?2, nonce = ?3, public_key = iif(?4, NULL, public_key) WHERE address = ?1",
            )?
            .execute(params![address.0, to_sql(account.balance), to_sql(account.nonce), forget])?;
        Ok(())
    }

    /// Forgets an account.
    pub(super) fn take_account(&self, address: &Address) -> Result<()> {
        self.connection().prepare_cached("DELETE FROM account WHERE address = ?")?.execute([&address.0[..]])?;
        Ok(())
    }
}
