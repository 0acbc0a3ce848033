//! The database as a file: the lock that says who may write, and reading it beside whoever does.

use std::fs::{File, TryLockError};
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::{Result, Storage, StorageError, WriteConnection, schema};
use crate::chain::Hash;

/// The right to write a database, or to put another in its place: a lock on a file beside it, held until dropped, and
/// released by the system when the process ends in whatever way.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the database at `path`, which need not be there. Errors: another process holds it.
    pub fn take(path: &Path) -> Result<Self> {
        let io = |error| StorageError::Io { path: path.display().to_string(), error };
        make_folder(folder_of(path)).map_err(io)?;
        let file = File::create(path.with_extension("lock")).map_err(io)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(StorageError::InUse(path.display().to_string())),
            Err(TryLockError::Error(error)) => Err(io(error)),
        }
    }
}

/// The folder that has the name `path`.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the names in the folder of `path` durable.
pub fn sync_folder(path: &Path) -> std::io::Result<()> {
    // Only Unix has folders that can be opened.
    if cfg!(unix) { File::open(folder_of(path))?.sync_all() } else { Ok(()) }
}

/// Makes a folder, and those that it lies in, durably: a database is no safer than the folder that has its name.
pub fn make_folder(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    make_folder(folder_of(path))?;
    match std::fs::create_dir(path) {
        // Somebody was quicker, or something else has the name.
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists || !path.is_dir() => return Err(error),
        _ => {}
    }
    sync_folder(path)
}

impl WriteConnection {
    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ends the connection, with all that was committed moved into the database file, and gives the lock back to its
    /// holder. Errors: the write-ahead log could not be moved; the lock is released.
    pub fn close(self) -> Result<Lock> {
        self.checkpoint()?;
        let Self { connection, lock, .. } = self;
        connection.close().map_err(|(_, error)| error)?;
        Ok(lock)
    }
}

impl Storage {
    /// Opens a database for reading that this process does not write: a stopped node's, or a running one's.
    /// Errors: there is none, or its schema is not this version's.
    pub fn read_only(path: &Path) -> Result<Self> {
        let connection = open_read_only(path)?;
        let found = schema::version(&connection)?;
        let known = schema::known();
        if found > known {
            return Err(StorageError::Newer { path: path.display().to_string(), found, known });
        }
        if found < known {
            return Err(StorageError::Inconsistent(format!(
                "{}: schema {found} was made by an older version, this one has {known}; start the node once, which brings \
                 it up to date",
                path.display()
            )));
        }
        Ok(Self::open(path))
    }

    /// The hash of the genesis that the database at `path` was made for; none where that was never said.
    pub fn genesis_of(path: &Path) -> Result<Option<Hash>> {
        schema::found_genesis(&open_read_only(path)?)
    }
}

/// A read-only connection. Errors: no such file, which SQLite would say less plainly.
pub(super) fn open_read_only(path: &Path) -> Result<Connection> {
    let io = |error| StorageError::Io { path: path.display().to_string(), error };
    std::fs::metadata(path).map_err(io)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Ok(Connection::open_with_flags(path, flags)?)
}

/// Removes a database file that nobody has open, with what SQLite keeps beside it; none of it need be there.
pub fn remove(path: &Path) -> Result<()> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match std::fs::remove_file(&name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StorageError::Io { path: name.to_string_lossy().into_owned(), error });
            }
            _ => {}
        }
    }
    Ok(())
}
