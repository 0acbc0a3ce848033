//! Snapshots: a chain's state after one block, with what proves it, so that a node can begin there.
//!
//! A snapshot is a [`Manifest`] and numbered chunks. It carries the headers from block 1 on, each signed by the authority
//! whose turn it was; whole blocks from some height on, at least the last one; and every account. Whoever loads it
//! ([`load`]) checks the headers by the rules of an import and computes the state root of the accounts, which must be the
//! last header's. So a snapshot is trusted as far as the authorities in genesis are: they sign what the accounts are. What
//! is not checked is that the blocks that are not there make these accounts; a node that wants that imports all blocks.
//!
//! [`export`] makes one from a database, [`install`] puts one into a new database, [`fetch`] downloads one from other
//! nodes. How it lies on disk is [`files`]' business; those that a node makes and serves are
//! [`crate::maintenance::shelf`]'s; taking one while a node runs, since its strategy wants that, is [`crate::sync`]'s.

mod chunk;
pub mod export;
pub mod fetch;
pub mod files;
pub mod http;
pub mod install;
pub mod load;
mod manifest;
pub mod source;

use std::path::Path;

use crate::chain::{Address, Hash, Height};
use crate::storage::StorageError;

pub use chunk::{CONTENT_BYTES_MAX, SnapshotAccount};
pub use files::Snapshot;
pub use manifest::{CHUNKS_MAX, ChunkInfo, ChunkKind, FORMAT, MANIFEST_BYTES_MAX, Manifest};

/// Why a snapshot cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The manifest is none, or contradicts itself.
    #[error("manifest: {0}")]
    Manifest(String),
    /// Another chain's.
    #[error("the snapshot is of another chain: {0}")]
    OtherChain(String),
    /// Not of the block that was asked for.
    #[error("the snapshot is of block {height}, {got}; expected {expected}")]
    OtherBlock {
        /// Its height.
        height: Height,
        /// Its hash.
        got: Hash,
        /// The one asked for.
        expected: Hash,
    },
    /// A chunk is missing, damaged, or holds what it must not.
    #[error("chunk {index} ({kind}): {reason}")]
    Chunk {
        /// Which, from 0.
        index: usize,
        /// What should be in it.
        kind: ChunkKind,
        /// What is wrong.
        reason: String,
    },
    /// The accounts are not those of the block.
    #[error("the accounts make the state root {got}, block {height} says {expected}")]
    StateRoot {
        /// The block.
        height: Height,
        /// What its header says.
        expected: Hash,
        /// What the accounts make.
        got: Hash,
    },
    /// What is to be exported is not here.
    #[error("{0}")]
    NotHere(String),
    /// An account that has sent something, and whose key is not known.
    #[error("the database lacks the key of {0}, which has sent transactions; `tenon db repair` finds it in the blocks")]
    NoKey(Address),
    /// The node that should take it has blocks already.
    #[error("{path}: the chain there is at block {height}; a snapshot goes into a new node alone")]
    NotEmpty {
        /// The database.
        path: String,
        /// Its head.
        height: Height,
    },
    /// The database failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A file or folder cannot be used.
    #[error("{path}: {error}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// Whoever wanted it wants it no more.
    #[error("stopped")]
    Stopped,
}

/// Result of working with a snapshot.
pub type Result<T, E = SnapshotError> = std::result::Result<T, E>;

/// How far some work on a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Progress {
    /// Chunks that are done.
    pub chunks: usize,
    /// Chunks in all; 0 while that is not known.
    pub of: usize,
    /// Bytes of the done ones, as they are stored.
    pub bytes: u64,
}

pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> SnapshotError {
    move |error| SnapshotError::Io { path: path.display().to_string(), error }
}
