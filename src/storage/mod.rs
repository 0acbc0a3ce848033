//! The chain's database: SQLite in WAL mode. One write connection, owned by the ledger's thread, and a pool of read-only
//! ones on consistent snapshots. All SQL of the node is in this folder, a file a table.

mod accounts;
mod agents;
mod backup;
mod blocks;
mod check;
mod file;
mod history;
mod index;
mod mempool;
mod rebuild;
mod schema;
mod transactions;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use rusqlite::{Connection, OpenFlags};

use crate::chain::{DecodeError, Hash};

pub use accounts::StoredAccount;
pub use agents::{
    AgentEvent, AgentId, AgentPlace, EventCounts, HandledMessage, OutboxRow, ParkedEvent, StoredAgent, Why,
};
pub use blocks::{BlockRows, Frames, TakenBlock, UNDO_DEPTH};
pub use check::{BlocksChecked, PROBLEMS_MAX};
pub use file::{Lock, make_folder, remove, sync_folder};
pub use history::BelowBase;
pub use index::RECENT_MAX as INDEX_RECENT_MAX;
pub use mempool::KeptTransaction;
pub use rebuild::{Rebuilt, Replayed};
pub use transactions::{Cursor, StoredTransaction, TransactionFilter};

/// Why the database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// SQLite says no.
    #[error("database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// What SQLite reads in the file is none of its pages.
    #[error("{path}: {error}; `tenon db check` names what is damaged, `tenon db restore` puts a backup in its place")]
    Broken {
        /// The file.
        path: String,
        /// In SQLite's words.
        error: String,
    },
    /// A stored block or transaction does not read back: the file was damaged or changed by hand.
    #[error("database: {what} is damaged: {error}")]
    Damaged {
        /// Which row.
        what: String,
        /// Where its bytes go wrong.
        error: DecodeError,
    },
    /// Made by a newer version.
    #[error("{path}: schema {found} was made by a newer version, this one knows {known}")]
    Newer {
        /// The file.
        path: String,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Another chain's.
    #[error("{path}: holds a chain with genesis {found}, the configuration names {expected}")]
    OtherChain {
        /// The file.
        path: String,
        /// Its genesis.
        found: Hash,
        /// The configured one.
        expected: Hash,
    },
    /// In use by another process.
    #[error("{0}: in use by another process")]
    InUse(String),
    /// What the file says and what it should say differ.
    #[error("database: {0}")]
    Inconsistent(String),
    /// The file or its folder cannot be used.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
}

impl StorageError {
    /// The same, said of the file at `path`: it is named where the error names none, and where the database was only a
    /// copy of it.
    pub fn of(self, path: &Path) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        let path = path.display().to_string();
        match self {
            Self::Sqlite(error) if matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase)) => {
                Self::Broken { path, error: error.to_string() }
            }
            Self::Broken { error, .. } => Self::Broken { path, error },
            Self::Newer { found, known, .. } => Self::Newer { path, found, known },
            Self::OtherChain { found, expected, .. } => Self::OtherChain { path, found, expected },
            other => other,
        }
    }

    /// Whether the disk said no, or has no room: what is in the file may well be right.
    pub fn is_of_the_disk(&self) -> bool {
        use rusqlite::ErrorCode::{CannotOpen, DiskFull, ReadOnly, SystemIoFailure};
        match self {
            Self::Sqlite(error) => {
                matches!(error.sqlite_error_code(), Some(CannotOpen | DiskFull | ReadOnly | SystemIoFailure))
            }
            Self::Io { .. } => true,
            _ => false,
        }
    }
}

/// Result of a query.
pub type Result<T, E = StorageError> = std::result::Result<T, E>;

/// Read access to the committed chain; cheap to clone.
#[derive(Clone)]
pub struct Storage {
    pool: Arc<Pool>,
}

struct Pool {
    path: PathBuf,
    idle: Mutex<(Vec<Connection>, usize)>,
    returned: Condvar,
}

/// A connection of the pool while somebody reads on it.
struct Lent<'a> {
    pool: &'a Pool,
    connection: Option<Connection>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.connection.take().into_iter().for_each(|connection| self.pool.give_back(connection));
    }
}

/// Read connections at most; a reader beyond waits. Each holds a few hundred KiB of cache.
const READERS_MAX: usize = 8;

/// One consistent snapshot of the committed chain.
pub struct Reader<'a> {
    connection: &'a Connection,
}

/// The one write transaction, on the ledger's thread.
pub struct Writer<'a> {
    connection: &'a Connection,
}

impl<'a> Reader<'a> {
    pub(in crate::storage) fn connection(&self) -> &'a Connection {
        self.connection
    }
}

impl<'a> Writer<'a> {
    /// The transaction that [`WriteConnection::begin`] opened on `connection`.
    pub fn of(connection: &'a WriteConnection) -> Self {
        Self { connection: &connection.connection }
    }

    /// The queries, on what this transaction has written so far.
    pub fn reader(&self) -> Reader<'a> {
        Reader { connection: self.connection }
    }

    pub(in crate::storage) fn connection(&self) -> &'a Connection {
        self.connection
    }
}

/// How much the database holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Transactions in blocks.
    pub transactions: u64,
    /// Accounts.
    pub accounts: u64,
}

impl Storage {
    /// Opens `path` for reading; [`WriteConnection::open`] made it.
    fn open(path: &Path) -> Self {
        let pool = Pool { path: path.to_owned(), idle: Mutex::default(), returned: Condvar::new() };
        Self { pool: Arc::new(pool) }
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.pool.path
    }

    /// Runs `f` on one consistent snapshot. Blocks for microseconds to milliseconds.
    pub fn read<T>(&self, f: impl FnOnce(&Reader<'_>) -> Result<T>) -> Result<T> {
        self.read_on(self.pool.take()?, f)
    }

    fn read_on<T>(&self, connection: Connection, f: impl FnOnce(&Reader<'_>) -> Result<T>) -> Result<T> {
        // Given back when this ends, and also when `f` panics: a pool that lost a connection each time would run dry.
        let lent = Lent { pool: &self.pool, connection: Some(connection) };
        let connection = lent.connection.as_ref().expect("there until it is given back");
        connection.prepare_cached("BEGIN")?.execute([])?;
        let answer = f(&Reader { connection });
        connection.prepare_cached("ROLLBACK")?.execute([])?;
        answer
    }

    /// Closes the connections that nobody uses; later ones are opened anew. With each goes what it has mapped of the file:
    /// all accounts, say, after a start that has read them.
    pub fn close_idle(&self) {
        let idle = {
            let mut pool = self.pool.idle.lock().expect("no reader panics while it holds the pool");
            let idle = std::mem::take(&mut pool.0);
            pool.1 -= idle.len();
            idle
        };
        self.pool.returned.notify_all();
        drop(idle);
    }

    /// [`Storage::read`] from async code, for what looks at a few pages: right here where a reader is idle, since the
    /// way to another thread and back takes several times as long as the query.
    pub async fn read_brief<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Reader<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        match self.pool.idle() {
            Some(connection) => self.read_on(connection, f),
            None => self.read_async(f).await,
        }
    }

    /// [`Storage::read`] from async code, on a thread that may block.
    pub async fn read_async<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Reader<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let storage = self.clone();
        match tokio::task::spawn_blocking(move || storage.read(f)).await {
            Ok(answer) => answer,
            Err(stopped) => Err(StorageError::Inconsistent(format!("a query did not end: {stopped}"))),
        }
    }
}

impl Pool {
    /// A connection that nobody uses, if there is one.
    fn idle(&self) -> Option<Connection> {
        self.idle.lock().expect("no reader panics while it holds the pool").0.pop()
    }

    fn take(&self) -> Result<Connection> {
        let mut idle = self.idle.lock().expect("no reader panics while it holds the pool");
        loop {
            if let Some(connection) = idle.0.pop() {
                return Ok(connection);
            }
            if idle.1 < READERS_MAX {
                idle.1 += 1;
                drop(idle);
                return self.connect().inspect_err(|_| self.gone());
            }
            idle = self.returned.wait(idle).expect("no reader panics while it holds the pool");
        }
    }

    fn give_back(&self, connection: Connection) {
        // A query that panicked or failed inside its transaction must not leave a snapshot open.
        if !connection.is_autocommit() && connection.execute_batch("ROLLBACK").is_err() {
            return self.gone();
        }
        self.idle.lock().expect("no reader panics while it holds the pool").0.push(connection);
        self.returned.notify_one();
    }

    fn gone(&self) {
        self.idle.lock().expect("no reader panics while it holds the pool").1 -= 1;
        self.returned.notify_one();
    }

    fn connect(&self) -> Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.execute_batch("PRAGMA query_only = ON; PRAGMA cache_size = -1024; PRAGMA mmap_size = 268435456;")?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(connection)
    }
}

/// The connection that writes. There is one; a lock beside the database keeps other processes out.
pub struct WriteConnection {
    connection: Connection,
    path: PathBuf,
    /// Held as long as this process may write.
    lock: Lock,
}

impl WriteConnection {
    /// Opens or makes the database, brings it to the newest schema and checks that it is the chain of `genesis`.
    pub fn open(path: &Path, genesis: &Hash) -> Result<(Self, Storage)> {
        Self::open_locked(path, genesis, Lock::take(path)?)
    }

    /// As [`WriteConnection::open`], by the holder of the lock.
    pub fn open_locked(path: &Path, genesis: &Hash, lock: Lock) -> Result<(Self, Storage)> {
        let connection = Connection::open(path)?;
        connection.execute_batch(
            // FULL: a commit is on disk when it is answered. Groups make it cheap; without it an authority could sign
            // two blocks for one height after a power failure.
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY;
             PRAGMA cache_size = -32768; PRAGMA wal_autocheckpoint = 8000; PRAGMA foreign_keys = ON;",
        )?;
        connection.set_prepared_statement_cache_capacity(128);
        schema::migrate(&connection, path)?;
        let found = schema::genesis(&connection, genesis)?;
        if found != *genesis {
            return Err(StorageError::OtherChain { path: path.display().to_string(), found, expected: *genesis });
        }
        Ok((Self { connection, path: path.to_owned(), lock }, Storage::open(path)))
    }

    /// Starts the transaction that everything until [`WriteConnection::commit`] belongs to.
    pub fn begin(&self) -> Result<Writer<'_>> {
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(Writer::of(self))
    }

    /// Makes the transaction durable.
    pub fn commit(&self) -> Result<()> {
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }

    /// Undoes the transaction, if one is open.
    pub fn roll_back(&self) {
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, path = %self.path.display(), "a database transaction could not be rolled back");
        }
    }

    /// Moves what is in the write-ahead log into the database file; for a tidy stop.
    pub fn checkpoint(&self) -> Result<()> {
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }
}

/// A u64 as SQLite keeps it: the same 64 bits, signed.
fn to_sql(number: u64) -> i64 {
    number.cast_signed()
}

fn from_sql(number: i64) -> u64 {
    number.cast_unsigned()
}
