//! What a node that began with a snapshot has of the blocks below: their headers. `base` is where whole blocks begin.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};

use super::{BlockRows, Reader, Result, StorageError, StoredAccount, Writer, from_sql, to_sql};
use crate::chain::{Account, Address, DecodeError, Header, Height, PublicKey, Signature, VerifiedHeader};

/// Headers of blocks that are not here whole, as a block begins with them. A table of its own: who reads blocks never
/// meets one without its transactions.
pub(super) const MIGRATION: &str = "CREATE TABLE header (height INTEGER PRIMARY KEY, body BLOB NOT NULL);";

const BASE: &str = "base";

fn damaged(height: Height) -> impl Fn(DecodeError) -> StorageError {
    move |error| StorageError::Damaged { what: format!("the header of block {height}"), error }
}

/// A block that is not here, on a node that began with a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("block {height} is not here: this node began with a snapshot, its blocks begin at height {base}")]
pub struct BelowBase {
    /// The block's height.
    pub height: Height,
    /// [`Reader::base`].
    pub base: Height,
}

impl Reader<'_> {
    /// The lowest height from which on all blocks are here whole; 0 where that is all of them. Block 0 is always here.
    pub fn base(&self) -> Result<Height> {
        let mut statement = self.connection().prepare_cached("SELECT value FROM meta WHERE key = ?")?;
        let base: Option<[u8; 8]> = statement.query_row([BASE], |row| row.get(0)).optional()?;
        Ok(base.map_or(0, Height::from_be_bytes))
    }

    /// The last height of `first..=last` up to which no block is missing for being below [`Reader::base`]; where not even
    /// `first` is here, that.
    pub fn whole(&self, first: Height, last: Height) -> Result<Result<Height, BelowBase>> {
        let base = self.base()?;
        Ok(match first {
            0 if base > 1 => Ok(0),
            first if first > 0 && first < base => Err(BelowBase { height: first, base }),
            _ => Ok(last),
        })
    }

    /// The header of a block below [`Reader::base`], with its signature.
    pub(super) fn kept_header(&self, height: Height) -> Result<Option<(Header, Signature)>> {
        let mut statement = self.connection().prepare_cached("SELECT body FROM header WHERE height = ?")?;
        let body: Option<Vec<u8>> = statement.query_row([to_sql(height)], |row| row.get(0)).optional()?;
        body.map(|body| Header::decode_start(&body).map_err(damaged(height))).transpose()
    }

    /// The header of any block of the chain with its signature, whether or not the block is here whole.
    pub fn signed_header(&self, height: Height) -> Result<Option<(Header, Signature)>> {
        let mut found = None;
        self.each_header(height, height, |header, signature| {
            found = Some((header, signature));
            Ok::<(), StorageError>(())
        })?;
        Ok(found)
    }

    /// Shows `each` the headers of the blocks `first..=last`, ascending, whether or not the blocks are here whole. An
    /// error of `each` ends it.
    pub fn each_header<E: From<StorageError>>(
        &self,
        first: Height,
        last: Height,
        mut each: impl FnMut(Header, Signature) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = "SELECT height, body FROM header WHERE height BETWEEN ?1 AND ?2
                   UNION ALL SELECT height, substr(body, 1, 512) FROM block WHERE height BETWEEN ?1 AND ?2
                   ORDER BY height";
        let sqlite = |error: rusqlite::Error| E::from(StorageError::from(error));
        let mut statement = self.connection().prepare_cached(sql).map_err(sqlite)?;
        let mut rows = statement.query([to_sql(first), to_sql(last)]).map_err(sqlite)?;
        while let Some(row) = rows.next().map_err(sqlite)? {
            let height = from_sql(row.get(0).map_err(sqlite)?);
            let body = row.get_ref(1).and_then(|body| Ok(body.as_blob()?)).map_err(sqlite)?;
            let (header, signature) = Header::decode_start(body).map_err(damaged(height)).map_err(E::from)?;
            each(header, signature)?;
        }
        Ok(())
    }

    /// Shows `each` every account with its key, by address. An error of `each` ends it.
    pub fn each_stored_account<E: From<StorageError>>(
        &self,
        mut each: impl FnMut(Address, StoredAccount) -> Result<(), E>,
    ) -> Result<(), E> {
        let sqlite = |error: rusqlite::Error| E::from(StorageError::from(error));
        let sql = "SELECT address, balance, nonce, public_key FROM account ORDER BY address";
        let mut statement = self.connection().prepare_cached(sql).map_err(sqlite)?;
        let mut rows = statement.query([]).map_err(sqlite)?;
        while let Some(row) = rows.next().map_err(sqlite)? {
            let read = || -> rusqlite::Result<(Address, StoredAccount)> {
                let public_key = row.get::<_, Option<[u8; 32]>>(3)?.map(PublicKey);
                let (balance, nonce) = (from_sql(row.get(1)?), from_sql(row.get(2)?));
                Ok((Address(row.get(0)?), StoredAccount { balance, nonce, public_key }))
            };
            let (address, account) = read().map_err(sqlite)?;
            each(address, account)?;
        }
        Ok(())
    }

    /// Shows `each` every account as it was after the block at `height`, with the key that is known now, by address.
    /// Errors: `height` is above the head, or further below it than blocks can be undone; and those of `each`.
    pub fn each_account_at<E: From<StorageError>>(
        &self,
        height: Height,
        mut each: impl FnMut(Address, StoredAccount) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut before = self.accounts_before(height)?.into_iter().peekable();
        let mut show = |address, account: Option<Account>, public_key| match account {
            Some(Account { balance, nonce }) => each(address, StoredAccount { balance, nonce, public_key }),
            None => Ok(()),
        };
        self.each_stored_account(|address, stored| {
            while let Some((gone, account)) = before.next_if(|(other, _)| *other < address) {
                show(gone, account, None)?;
            }
            let StoredAccount { balance, nonce, public_key } = stored;
            let then = before.next_if(|(other, _)| *other == address);
            show(address, then.map_or(Some(Account { balance, nonce }), |(_, account)| account), public_key)
        })?;
        before.try_for_each(|(gone, account)| show(gone, account, None))
    }

    /// The accounts that the blocks above `height` changed, as they were before.
    fn accounts_before(&self, height: Height) -> Result<BTreeMap<Address, Option<Account>>> {
        let head = self.head()?.map_or(0, |head| head.height);
        if height > head {
            return Err(StorageError::Inconsistent(format!("the head is {head}, there is no block {height}")));
        }
        let mut before = BTreeMap::new();
        for above in (height + 1..=head).rev() {
            let changes = self.changes(above)?.ok_or_else(|| {
                let text = format!("the accounts after block {height} are not known any more: the head is {head}");
                StorageError::Inconsistent(text)
            })?;
            before.extend(changes.into_iter().map(|change| (change.address, change.before)));
        }
        Ok(before)
    }
}

impl Writer<'_> {
    /// Keeps the header of a block that is not here; its index row goes to `rows`, for [`Writer::put_rows`].
    pub fn put_header(&self, header: &VerifiedHeader, rows: &mut BlockRows) -> Result<()> {
        let mut body = Vec::with_capacity(256);
        header.encode(&mut body);
        let height = to_sql(header.header().height);
        self.connection()
            .prepare_cached("INSERT INTO header (height, body) VALUES (?, ?)")?
            .execute(params![height, body])?;
        rows.add_block(&header.hash(), header.header().height);
        Ok(())
    }

    /// Says from which height on all blocks are here whole.
    pub fn set_base(&self, base: Height) -> Result<()> {
        self.connection()
            .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)")?
            .execute(params![BASE, &base.to_be_bytes()[..]])?;
        Ok(())
    }

    /// Forgets every account, and how to undo blocks: for a state that comes from elsewhere.
    pub fn clear_state(&self) -> Result<()> {
        self.connection().execute_batch("DELETE FROM account; DELETE FROM undo;")?;
        Ok(())
    }

    /// Forgets how to undo the blocks that are here: their changes are not known.
    pub fn clear_undo(&self) -> Result<()> {
        self.connection().execute_batch("DELETE FROM undo;")?;
        Ok(())
    }
}
