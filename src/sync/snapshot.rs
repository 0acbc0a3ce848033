//! A snapshot on its way into the ledger: what a follower does for [`Command::FetchSnapshot`]. The download and what is
//! checked on the way is [`crate::snapshot::fetch`]'s, putting it in place of an empty chain the ledger's.
//!
//! [`Command::FetchSnapshot`]: super::engine::Command::FetchSnapshot

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::PeerId;
use super::engine::{SnapshotFault, SnapshotNews};
use crate::chain::{Hash, Time};
use crate::ledger::Ledger;
use crate::snapshot::fetch::{FetchError, FetchEvent, FetchOptions, obtain};
use crate::snapshot::source::ChunkSource;
use crate::snapshot::{Progress, Snapshot};

/// Downloads the snapshot `id` from those who offer it, and begins the chain with it. Chunks under way take `bytes_max`
/// at most; `dir` keeps those that are here, also for an attempt after a restart, and is gone after one that went well.
///
/// Errors: why not; the chain is as it was.
pub async fn take(
    ledger: &Ledger,
    dir: &Path,
    id: Hash,
    offering: Vec<(PeerId, Arc<dyn ChunkSource>)>,
    bytes_max: u64,
    tell: impl Fn(SnapshotNews) + Clone + Send + 'static,
) -> Result<(), SnapshotFault> {
    let names: HashMap<String, PeerId> =
        offering.iter().map(|(peer, source)| (source.name().to_owned(), *peer)).collect();
    let sources: Vec<_> = offering.into_iter().map(|(_, source)| source).collect();
    let options = FetchOptions { id: Some(id), bytes_max, ..FetchOptions::default() };
    let mut refused = None;
    let report = |event: FetchEvent| match event {
        FetchEvent::Chosen { id, height, sources, kept } => {
            tracing::info!(%id, height, sources, kept = kept.chunks, of = kept.of, "downloading a snapshot");
            tell(SnapshotNews::Downloaded(kept));
        }
        FetchEvent::Chunk(done) => tell(SnapshotNews::Downloaded(done)),
        FetchEvent::Left { source, reason, lied } => {
            if let Some(&peer) = names.get(&source) {
                tell(SnapshotNews::Left { peer, lied, reason });
            }
        }
        FetchEvent::Refused { reason, .. } => refused = Some(reason),
    };
    let install = async |snapshot: Snapshot| {
        let of = snapshot.manifest().chunks.len();
        tell(SnapshotNews::Installed(Progress { of, ..Progress::default() }));
        let tell = tell.clone();
        ledger.install_snapshot(snapshot, Time::now(), move |done| tell(SnapshotNews::Installed(done))).await
    };
    match obtain(&sources, ledger.genesis(), dir, &options, report, install).await {
        Ok(_) => Ok(()),
        Err(FetchError::Snapshot(error)) => Err(SnapshotFault::Local(error.to_string())),
        Err(error) => {
            Err(refused.map_or_else(|| SnapshotFault::Unavailable(error.to_string()), SnapshotFault::Invalid))
        }
    }
}
