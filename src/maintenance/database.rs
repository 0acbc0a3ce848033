//! A node's database as a file to look after: backups of a running node's, restored, checked and repaired ones of a
//! stopped one's. What must not be written twice at a time is guarded by the same lock that a running node holds.

use std::fs::{self, File};
use std::io::{self as std_io, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::audit::{self, StateCheck};
use crate::chain::{Address, Genesis, Hash, Height, Time};
use crate::snapshot::export::ExportOptions;
use crate::snapshot::files::{put_in_place, suffixed};
use crate::snapshot::{self, Progress, Snapshot, SnapshotError};
use crate::storage::{self, Lock, Storage, StorageError, WriteConnection, Writer, sync_folder};

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    /// The database says no.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A file cannot be used.
    #[error("{path}: {error}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        error: std_io::Error,
    },
    /// Something is there already.
    #[error("{0} is there already; nothing was written")]
    Exists(String),
    /// A backup without the file that says what its bytes should be.
    #[error(
        "{0} is missing, so the backup cannot be held against its checksum; `--unchecked` restores it all the same"
    )]
    NoChecksum(String),
    /// A backup that has changed since it was made.
    #[error("{path}: its SHA-256 is {got}, its checksum file says {expected}")]
    Checksum {
        /// The backup.
        path: String,
        /// What it should be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// What is in the file does not hold.
    #[error("{path}: {problem}")]
    Wrong {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
}

type Result<T, E = MaintenanceError> = std::result::Result<T, E>;

fn io(path: &Path) -> impl Fn(std_io::Error) -> MaintenanceError {
    move |error| MaintenanceError::Io { path: path.display().to_string(), error }
}

fn wrong(path: &Path, problem: impl Into<String>) -> MaintenanceError {
    MaintenanceError::Wrong { path: path.display().to_string(), problem: problem.into() }
}

/// A backup that was made, or restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Backup {
    /// The head in it.
    pub height: Height,
    /// Its hash.
    pub hash: Hash,
    /// How many accounts there are; they make the head's state root.
    pub accounts: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Their SHA-256, in hexadecimal digits, as `sha256sum` prints it.
    pub sha256: String,
    /// Where the database that was there before is kept, after a restore.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<PathBuf>,
}

/// What a look at a whole database found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Whether nothing is wrong.
    pub ok: bool,
    /// The head's height.
    pub height: Height,
    /// Where whole blocks begin; 0: all are here.
    pub base: Height,
    /// Blocks that are here whole.
    pub blocks: u64,
    /// Transactions in them.
    pub transactions: u64,
    /// Accounts.
    pub accounts: u64,
    /// Everything that is wrong, in so many words.
    pub problems: Vec<String>,
}

/// What a repair has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// The head's height.
    pub height: Height,
    /// Accounts.
    pub accounts: u64,
    /// How many of them were wrong.
    pub wrong: u64,
    /// The first of those.
    pub wrong_accounts: Vec<Address>,
}

/// Writes a snapshot of the database at `path` to `out`, whether or not its node runs; see [`snapshot::export`].
pub fn export(
    path: &Path,
    genesis: &Genesis,
    options: ExportOptions,
    out: &Path,
    progress: impl FnMut(Progress) -> bool,
) -> Result<Snapshot, SnapshotError> {
    let expected = genesis.block().hash();
    same_chain(path, &expected)?;
    let mut made = Err(SnapshotError::Stopped);
    Storage::read_only(path)?.read(|reader| {
        made = snapshot::export::export(reader, genesis, &expected, options, out, progress);
        Ok(())
    })?;
    made
}

/// Errors: the database is of another chain.
fn same_chain(path: &Path, expected: &Hash) -> Result<(), StorageError> {
    match Storage::genesis_of(path)?.filter(|found| found != expected) {
        Some(found) => Err(StorageError::OtherChain { path: path.display().to_string(), found, expected: *expected }),
        None => Ok(()),
    }
}

/// Where the checksum of a backup stands: a file that `sha256sum -c` takes.
pub fn checksum_path(backup: &Path) -> PathBuf {
    suffixed(backup, ".sha256")
}

/// Copies the database at `path` to `out` while whoever runs on it goes on, with a checksum beside it. What has the name
/// `out` in the end is whole, and its accounts make its head's state root. Errors: `out` is there; the accounts do not.
pub fn backup(path: &Path, out: &Path) -> Result<Backup> {
    for taken in [out.to_owned(), checksum_path(out)] {
        if taken.exists() {
            return Err(MaintenanceError::Exists(taken.display().to_string()));
        }
    }
    Storage::read_only(path).map_err(|error| error.of(path))?;
    let part = suffixed(out, ".part");
    storage::remove(&part)?;
    let made = write_backup(path, &part, out);
    if made.is_err() {
        // What went wrong is said already. A checksum without its backup would be in the way of the next attempt.
        let _ = storage::remove(&part);
        let _ = fs::remove_file(suffixed(out, ".sha256.part"));
        if !out.exists() {
            let _ = fs::remove_file(checksum_path(out));
        }
    }
    made
}

fn write_backup(path: &Path, part: &Path, out: &Path) -> Result<Backup> {
    Storage::copy(path, part).map_err(|error| error.of(path))?;
    File::open(part).and_then(|file| file.sync_all()).map_err(io(part))?;
    let state = sound(&Storage::read_only(part)?, part)?;
    let (sha256, bytes) = digest(part)?;
    let name = out.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (checksum, checksum_part) = (checksum_path(out), suffixed(out, ".sha256.part"));
    let write = || {
        fs::write(&checksum_part, format!("{sha256}  {name}\n"))?;
        File::open(&checksum_part)?.sync_all()
    };
    write().map_err(io(&checksum_part))?;
    // The checksum first: a backup that has its name has its checksum.
    let placed = put_in_place(&checksum_part, &checksum).and_then(|()| put_in_place(part, out));
    placed.map_err(|error| wrong(out, error.to_string()))?;
    // Reading the copy has made these.
    storage::remove(part)?;
    Ok(Backup { height: state.height, hash: state.hash, accounts: state.accounts, bytes, sha256, old: None })
}

/// Puts the backup at `file` in the place of the database at `path`, whose node must not run. What is there is kept
/// beside it. The backup must have its checksum (unless `unchecked`), be a sound database of this chain, and its accounts
/// make its head's state root, before anything is touched.
pub fn restore(file: &Path, path: &Path, genesis: &Genesis, unchecked: bool) -> Result<Backup> {
    let lock = Lock::take(path)?;
    if !file.is_file() {
        return Err(wrong(file, "there is no such file"));
    }
    if !unchecked {
        verify_checksum(file)?;
    }
    let part = suffixed(path, ".part");
    storage::remove(&part)?;
    let restored = put_back(file, &part, path, genesis, lock);
    if restored.is_err() {
        // What went wrong is said already.
        let _ = storage::remove(&part);
    }
    restored
}

fn put_back(file: &Path, part: &Path, path: &Path, genesis: &Genesis, lock: Lock) -> Result<Backup> {
    fs::copy(file, part).map_err(io(file))?;
    let (sha256, bytes) = digest(part)?;
    if let Some(first) = Storage::integrity(part).map_err(|error| error.of(file))?.first() {
        return Err(wrong(file, format!("the database is damaged: {first}")));
    }
    let opened = WriteConnection::open_locked(part, &genesis.block().hash(), lock);
    // It is the backup that is wrong, not the copy of it.
    let (connection, storage) = opened.map_err(|error| error.of(file))?;
    let state = sound(&storage, file)?;
    drop(storage);
    let lock = connection.close()?;
    File::open(part).and_then(|part| part.sync_all()).map_err(io(part))?;
    let (old, lock) = put_aside(path, &genesis.block().hash(), lock)?;
    if let Err(error) = fs::rename(part, path) {
        if let Some(old) = &old {
            take_back(path, old);
        }
        return Err(io(path)(error));
    }
    sync_folder(path).map_err(io(path))?;
    drop(lock);
    Ok(Backup { height: state.height, hash: state.hash, accounts: state.accounts, bytes, sha256, old })
}

/// What SQLite keeps beside a database.
const BESIDE: [&str; 2] = ["-wal", "-shm"];

/// Gives the database at `path` a second name, under which it stays when another takes its place. Answers it.
fn put_aside(path: &Path, genesis: &Hash, lock: Lock) -> Result<(Option<PathBuf>, Option<Lock>)> {
    if !path.exists() {
        return Ok((None, Some(lock)));
    }
    let old = (0..).map(|n| suffixed(path, &format!(".old-{}", Time::now().0 / 1_000_000 + n)));
    let old = old.into_iter().find(|old| !old.exists()).expect("some second has no file");
    // Its log goes into it, so that none is left beside what comes. A database that is too damaged for that keeps its
    // log under its new name.
    let closed = WriteConnection::open_locked(path, genesis, lock).and_then(|(connection, _)| connection.close());
    let lock = match closed {
        Ok(lock) => Some(lock),
        Err(error) if error.is_of_the_disk() => return Err(error.into()),
        // The lock is gone with the connection; it is taken again, or somebody was quicker.
        Err(_) => Some(Lock::take(path)?),
    };
    let copy = |_| fs::copy(path, &old).and_then(|_| File::open(&old)?.sync_all());
    let move_beside = || {
        fs::hard_link(path, &old).or_else(copy)?;
        BESIDE.iter().try_for_each(|suffix| {
            let beside = suffixed(path, suffix);
            if beside.exists() { fs::rename(&beside, suffixed(&old, suffix)) } else { Ok(()) }
        })?;
        // Durable, and a log that was beside it gone for good, before another has the name.
        sync_folder(path)
    };
    if let Err(error) = move_beside() {
        take_back(path, &old);
        return Err(io(&old)(error));
    }
    Ok((Some(old), lock))
}

/// Undoes [`put_aside`], as far as the disk lets it: what is in its place still must not be opened by another name.
fn take_back(path: &Path, old: &Path) {
    // What went wrong is said already.
    for suffix in BESIDE {
        let _ = fs::rename(suffixed(old, suffix), suffixed(path, suffix));
    }
    let _ = fs::remove_file(old);
}

/// Looks at the whole database at `path`, whether or not its node runs: the file, the blocks and what they build on, the
/// indexes, the accounts. `progress` is told how far it is, and the head. Errors: it cannot be opened; what is wrong is in the answer.
pub fn check(path: &Path, genesis: &Genesis, progress: impl FnMut(Height, Height)) -> Result<Checked> {
    let expected = genesis.block().hash();
    same_chain(path, &expected).map_err(|error| error.of(path))?;
    let storage = Storage::read_only(path).map_err(|error| error.of(path))?;
    let integrity = Storage::integrity(path).map_err(|error| error.of(path))?;
    let mut problems: Vec<String> = integrity.into_iter().map(|line| format!("file: {line}")).collect();
    let answer = storage.read(|reader| {
        let blocks = reader.check_blocks(genesis, progress)?;
        let (state, base) = (audit::check(reader), reader.base()?);
        Ok((blocks, state, base))
    });
    let (blocks, state, base) = answer.map_err(|error| error.of(path))?;
    problems.extend(blocks.problems);
    let (height, accounts) = match state {
        Ok(StateCheck { height, accounts, problem, .. }) => {
            problems.extend(problem.map(|problem| format!("accounts: {problem}")));
            (height, accounts)
        }
        Err(error) => {
            problems.push(format!("accounts: {error}"));
            (0, 0)
        }
    };
    let ok = problems.is_empty();
    Ok(Checked { ok, height, base, blocks: blocks.blocks, transactions: blocks.transactions, accounts, problems })
}

/// Makes accounts and indexes of the database at `path`, whose node must not run, anew from its blocks; all of it in one
/// transaction. Errors: blocks are not here, or do not make what they say; nothing has changed.
pub fn repair(path: &Path, genesis: &Genesis, mut progress: impl FnMut(Height, Height)) -> Result<Repaired> {
    if !path.exists() {
        return Err(wrong(path, "there is no such file"));
    }
    let opened = WriteConnection::open(path, &genesis.block().hash());
    let (connection, _) = opened.map_err(|error| error.of(path))?;
    let rebuild = |writer: Writer<'_>, progress: &mut dyn FnMut(Height, Height)| {
        let rebuilt = writer.rebuild_accounts(genesis, progress)?;
        writer.rebuild_indexes()?;
        Ok::<_, StorageError>(rebuilt)
    };
    let rebuilt = connection.begin().and_then(|writer| rebuild(writer, &mut progress)).and_then(|rebuilt| {
        connection.commit()?;
        Ok(rebuilt)
    });
    if rebuilt.is_err() {
        connection.roll_back();
    }
    let rebuilt = rebuilt.map_err(|error| error.of(path))?;
    connection.close()?;
    let (height, accounts) = (rebuilt.head.height, rebuilt.accounts);
    Ok(Repaired { height, accounts, wrong: rebuilt.wrong, wrong_accounts: rebuilt.wrong_accounts })
}

/// Whether the accounts in a file make its head's state root. Errors: they do not.
fn sound(storage: &Storage, shown: &Path) -> Result<StateCheck> {
    let state = storage.read(audit::check)?;
    match &state.problem {
        Some(problem) => Err(wrong(shown, problem.clone())),
        None => Ok(state),
    }
}

fn verify_checksum(file: &Path) -> Result<()> {
    let path = checksum_path(file);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std_io::ErrorKind::NotFound => {
            return Err(MaintenanceError::NoChecksum(path.display().to_string()));
        }
        Err(error) => return Err(io(&path)(error)),
    };
    let expected = text.split_whitespace().next().unwrap_or_default().to_lowercase();
    if expected.len() != 64 {
        return Err(wrong(&path, "holds no SHA-256"));
    }
    let (got, _) = digest(file)?;
    if got != expected {
        return Err(MaintenanceError::Checksum { path: file.display().to_string(), expected, got });
    }
    Ok(())
}

/// The SHA-256 of a file, and how many bytes it has.
fn digest(path: &Path) -> Result<(String, u64)> {
    let mut file = File::open(path).map_err(io(path))?;
    let (mut hasher, mut buffer, mut bytes) = (Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        let read = file.read(&mut buffer).map_err(io(path))?;
        if read == 0 {
            return Ok((const_hex::encode(hasher.finalize()), bytes));
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
}
