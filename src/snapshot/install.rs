//! Putting a snapshot into a database that has no blocks yet: into an open transaction, which [`crate::ledger::Ledger`]
//! does for a node that runs, or into a file of its own that then takes the place of a stopped node's. All or nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::files::{Snapshot, suffixed};
use super::load::{self, Piece};
use super::{Progress, Result, SnapshotError, io};
use crate::chain::{Address, Genesis, Hash, Head, PublicKey, Time, verify};
use crate::storage::{self, BlockRows, Lock, StorageError, WriteConnection, Writer, sync_folder};

/// Index rows that are collected before they are written in their tables' order.
const ROWS_MAX: usize = 10_000;

/// Writes all of `snapshot` in the transaction of `writer`, whose chain must have no block but the genesis. Answers the
/// new head. Errors: a block is there, or the snapshot does not hold; then the transaction must be rolled back.
pub fn write(
    writer: &Writer<'_>,
    snapshot: &Snapshot,
    genesis: &Genesis,
    now: Time,
    progress: impl FnMut(Progress) + Send,
) -> Result<Head> {
    let mut rows = BlockRows::default();
    match writer.reader().head()? {
        None => writer.put_block(&verify::genesis_block(genesis), &[], &mut rows)?,
        Some(head) if head.height > 0 => {
            return Err(SnapshotError::NotEmpty { path: "the database".into(), height: head.height });
        }
        Some(_) => {}
    }
    writer.clear_state()?;
    let keys = authority_keys(genesis);
    let mut waiting = 0;
    let mut count = |more: usize, rows: &mut BlockRows| -> Result<(), StorageError> {
        waiting += more;
        if waiting >= ROWS_MAX {
            waiting = 0;
            writer.put_rows(rows)?;
        }
        Ok(())
    };
    let head = load::load(snapshot, genesis, now, progress, |piece| {
        match piece {
            Piece::Headers(headers) => headers.iter().try_for_each(|header| {
                writer.put_header(header, &mut rows)?;
                count(1, &mut rows)
            })?,
            Piece::Blocks(blocks) => blocks.iter().try_for_each(|block| {
                writer.put_block(block, &[], &mut rows)?;
                count(1 + block.block().transactions.len(), &mut rows)
            })?,
            Piece::Accounts(accounts) => accounts.iter().try_for_each(|account| {
                let key = account.public_key.as_ref().or_else(|| keys.get(&account.address));
                writer.put_account(&account.address, &account.account, key)
            })?,
        }
        Ok(())
    })?;
    writer.put_rows(&mut rows)?;
    // Nobody knows what the blocks changed; to undo one without that would be to guess.
    writer.clear_undo()?;
    let from = snapshot.manifest().blocks_from;
    writer.set_base(if from == 1 { 0 } else { from })?;
    Ok(head)
}

/// The keys that a ledger knows from the start: of authorities that genesis gives something.
fn authority_keys(genesis: &Genesis) -> BTreeMap<Address, PublicKey> {
    let given = |address| genesis.allocations.iter().any(|allocation| allocation.address == address);
    let authorities = genesis.authorities.iter().filter(|authority| given(authority.address));
    authorities.map(|authority| (authority.address, authority.public_key)).collect()
}

/// Makes the database at `path`, which must not be there or have no block but the genesis, from `snapshot`. It is built
/// and checked beside its place and renamed; a process that is killed leaves what was there, and a new attempt clears up.
///
/// Errors: the node runs, or has blocks, or the snapshot does not hold; the database is as it was.
pub fn install(
    snapshot: &Snapshot,
    path: &Path,
    genesis: &Genesis,
    now: Time,
    progress: impl FnMut(Progress) + Send,
) -> Result<Head> {
    let genesis_hash = verify::genesis_block(genesis).hash();
    // Before anything is written: most mistakes show here.
    snapshot.manifest().verify(genesis, &genesis_hash, now)?;
    let lock = empty(path, &genesis_hash, Lock::take(path)?)?;
    let part = suffixed(path, ".part");
    storage::remove(&part)?;
    let built = build(snapshot, &part, genesis, &genesis_hash, lock, now, progress);
    let built = built.and_then(|(head, lock)| {
        let replace = || {
            fs::File::open(&part)?.sync_all()?;
            // A log of what was there must be gone for good: it would be played into what comes.
            sync_folder(path)?;
            fs::rename(&part, path)?;
            sync_folder(path)
        };
        replace().map_err(io(path))?;
        drop(lock);
        Ok(head)
    });
    if built.is_err() {
        // What went wrong is said already; the next attempt clears up too.
        let _ = storage::remove(&part);
    }
    built
}

fn build(
    snapshot: &Snapshot,
    part: &Path,
    genesis: &Genesis,
    genesis_hash: &Hash,
    lock: Lock,
    now: Time,
    progress: impl FnMut(Progress) + Send,
) -> Result<(Head, Lock)> {
    let (connection, storage) = WriteConnection::open_locked(part, genesis_hash, lock)?;
    drop(storage);
    let head = write(&connection.begin()?, snapshot, genesis, now, progress)?;
    connection.commit()?;
    Ok((head, connection.close()?))
}

/// Whether a snapshot may take the place of the database at `path`: it is not there, or has no block but the genesis, and
/// nobody runs on it. Errors: which of these does not hold.
pub fn check_empty(path: &Path, genesis: &Genesis) -> Result<()> {
    empty(path, &genesis.block().hash(), Lock::take(path)?).map(drop)
}

/// Makes sure that a database that is there has nothing to lose, and that nothing of it waits in a log beside it.
fn empty(path: &Path, genesis_hash: &Hash, lock: Lock) -> Result<Lock> {
    if !path.exists() {
        return Ok(lock);
    }
    let (connection, storage) = WriteConnection::open_locked(path, genesis_hash, lock)?;
    drop(storage);
    match Writer::of(&connection).reader().head()? {
        Some(head) if head.height > 0 => {
            Err(SnapshotError::NotEmpty { path: path.display().to_string(), height: head.height })
        }
        _ => Ok(connection.close()?),
    }
}
