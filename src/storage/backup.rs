//! Copies of the whole database, and what SQLite itself says of a file.

use std::fs::File;
use std::path::Path;

use super::file::open_read_only;
use super::{Result, Storage, StorageError};

/// Lines of [`Storage::integrity`] at most.
const LINES_MAX: u32 = 50;

impl Storage {
    /// Writes a copy of the database at `path` to `out`, which must not be there: one consistent snapshot of it, without
    /// free pages, whoever reads and writes meanwhile. Until this returns, `out` is not whole.
    pub fn copy(path: &Path, out: &Path) -> Result<()> {
        let shown = out.to_str().ok_or_else(|| {
            let error = std::io::Error::other("SQLite takes only names that are text");
            StorageError::Io { path: out.display().to_string(), error }
        })?;
        let connection = open_read_only(path)?;
        // SQLite takes an empty file for none, and does not say why it cannot make one.
        File::create_new(out).map_err(|error| StorageError::Io { path: shown.to_owned(), error })?;
        connection.execute("VACUUM INTO ?", [shown])?;
        Ok(())
    }

    /// What is wrong with the file at `path` as a SQLite database; empty when nothing is. Reads all of it.
    pub fn integrity(path: &Path) -> Result<Vec<String>> {
        let connection = open_read_only(path)?;
        let mut statement = connection.prepare(&format!("PRAGMA integrity_check({LINES_MAX})"))?;
        let lines = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
        Ok(if lines == ["ok"] { Vec::new() } else { lines })
    }
}
