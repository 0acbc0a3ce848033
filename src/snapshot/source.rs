//! What a source of snapshots is: a node that lists them, and gives manifests and chunks by the snapshot's id.
//! [`super::http`] is the one kind there is.

use futures_util::future::BoxFuture;

use crate::chain::{Hash, Height};

/// A node that snapshots are read from.
pub trait ChunkSource: Send + Sync {
    /// What people know it by.
    fn name(&self) -> &str;

    /// The snapshots that it has.
    fn offers(&self) -> BoxFuture<'_, Result<Vec<Offer>, Failure>>;

    /// The bytes of the manifest with this id; at most [`super::MANIFEST_BYTES_MAX`].
    fn manifest(&self, id: Hash) -> BoxFuture<'_, Result<Vec<u8>, Failure>>;

    /// A chunk as it is stored; at most `bytes`.
    fn chunk(&self, id: Hash, index: usize, bytes: u64) -> BoxFuture<'_, Result<Vec<u8>, Failure>>;
}

/// A snapshot that a source says it has.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Offer {
    /// Its id.
    pub id: Hash,
    /// Its block's height.
    pub height: Height,
    /// Its block's hash.
    pub hash: Hash,
}

/// Why a source did not answer with what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No answer, or an error that may pass.
    #[error("{0}")]
    Unreachable(String),
    /// It asks to be left alone for so many milliseconds.
    #[error("asks to wait for {retry_after_ms} ms")]
    Limited {
        /// For how long.
        retry_after_ms: u64,
    },
    /// It does not have it, or not any more.
    #[error("does not have it: {0}")]
    Missing(String),
    /// What no node of good will answers.
    #[error("{0}")]
    Lied(String),
}
