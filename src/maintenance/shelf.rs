//! The snapshots that a node makes and serves. They lie in a folder of theirs, the newest few; a new one is made in the
//! background every so many blocks, of a block that enough others follow.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use metrics::gauge;
use tokio::sync::{Mutex as AsyncMutex, oneshot, watch};

use super::later;
use crate::chain::{Hash, Height};
use crate::ledger::Ledger;
use crate::priority::stand_back;
use crate::snapshot::export::{ExportOptions, STAGE, export};
use crate::snapshot::files::{MANIFEST, chunk_name};
use crate::snapshot::{Manifest, Result, Snapshot, SnapshotError, io};
use crate::telemetry;

/// What a node keeps, and when it makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShelfConfig {
    /// The folder.
    pub dir: PathBuf,
    /// A snapshot of every block whose height is a multiple of this; 0: none by itself.
    pub every_blocks: u64,
    /// How many are kept; the lowest go.
    pub keep: usize,
    /// Blocks that must follow a snapshot's before it is made: it cannot be taken back when its block is.
    pub depth: u64,
    /// Whole blocks in it, counted from its own downwards.
    pub blocks: u64,
}

/// The snapshots of a node. Cheap to clone.
#[derive(Clone)]
pub struct Shelf(Arc<Inner>);

struct Inner {
    ledger: Ledger,
    config: ShelfConfig,
    /// By height, ascending.
    kept: Mutex<Vec<Arc<Kept>>>,
    making: AsyncMutex<()>,
    stopping: AtomicBool,
}

/// A snapshot on the shelf.
#[derive(Debug)]
pub struct Kept {
    /// Its id.
    pub id: Hash,
    /// What it consists of.
    pub manifest: Manifest,
    folder: PathBuf,
}

/// Why no snapshot was made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// One is being made.
    #[error("a snapshot is being made; try again when it is done")]
    Busy,
    /// It cannot be.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

/// How far below the head a snapshot's block may lie: a little less than blocks can be undone.
const REACH_MAX: u64 = 1_000;

impl Shelf {
    /// The snapshots in the folder of `config`; what is not whole there is removed. Errors: the folder cannot be used.
    pub fn open(ledger: Ledger, config: ShelfConfig) -> Result<Self> {
        let kept = if config.dir.exists() { scan(&config.dir)? } else { Vec::new() };
        let inner = Inner {
            ledger,
            config,
            kept: Mutex::new(kept),
            making: AsyncMutex::new(()),
            stopping: AtomicBool::new(false),
        };
        let this = Self(Arc::new(inner));
        this.show();
        Ok(this)
    }

    /// All of them, the highest first.
    pub fn list(&self) -> Vec<Arc<Kept>> {
        self.kept().iter().rev().cloned().collect()
    }

    /// The highest.
    pub fn newest(&self) -> Option<Arc<Kept>> {
        self.kept().last().cloned()
    }

    /// The one with this id.
    pub fn find(&self, id: &Hash) -> Option<Arc<Kept>> {
        self.kept().iter().find(|kept| kept.id == *id).cloned()
    }

    /// Makes a snapshot of the block at `height`, or of the head, on a thread of low priority; answers it, or the same one
    /// that is there. Errors: another one is being made, the block lies too deep or is not here, or the disk says no.
    pub async fn make(&self, height: Option<Height>) -> Result<Arc<Kept>, MakeError> {
        let _turn = self.0.making.try_lock().map_err(|_| MakeError::Busy)?;
        let (shelf, height) = (self.clone(), height.unwrap_or_else(|| self.0.ledger.height()));
        let (answer, answered) = oneshot::channel();
        let run = move || {
            stand_back();
            // Whoever asked may be gone; the snapshot is on the shelf all the same.
            let _ = answer.send(shelf.write(height));
        };
        let thread = std::thread::Builder::new().name("tenon-snapshot".into()).spawn(run);
        thread.map_err(|error| MakeError::Snapshot(io(Path::new("the snapshots' thread"))(error)))?;
        Ok(answered.await.unwrap_or(Err(SnapshotError::Stopped))?)
    }

    /// Makes snapshots as they fall due, while `may` says that the node has nothing better to do, until `stop` says true.
    pub async fn run(self, may: impl Fn() -> bool, mut stop: watch::Receiver<bool>) {
        let mut head = self.0.ledger.watch();
        let mut tried = 0;
        loop {
            let height = head.borrow_and_update().height;
            let newest = self.newest().map_or(0, |kept| kept.manifest.height).max(tried);
            let due = due(height, newest, &self.0.config);
            let waits = due.is_some() && !may();
            if let Some(due) = due.filter(|_| !waits) {
                tried = due;
                let making = self.make(Some(due));
                tokio::pin!(making);
                let made = tokio::select! {
                    made = making.as_mut() => Some(made),
                    _ = stop.wait_for(|stop| *stop) => None,
                };
                let made = match made {
                    Some(made) => made,
                    None => {
                        self.0.stopping.store(true, Ordering::Relaxed);
                        making.await
                    }
                };
                match made {
                    Ok(kept) => {
                        tracing::info!(height = due, id = %kept.id, bytes = kept.manifest.bytes(), "snapshot made")
                    }
                    // Somebody makes another one by hand; this one's turn comes again.
                    Err(MakeError::Busy) => tried = newest,
                    Err(MakeError::Snapshot(SnapshotError::Stopped)) => {}
                    Err(error) => tracing::error!(%error, height = due, "no snapshot was made"),
                }
            }
            tokio::select! {
                changed = head.changed() => if changed.is_err() { return },
                () = later(waits) => {}
                _ = stop.wait_for(|stop| *stop) => {
                    self.0.stopping.store(true, Ordering::Relaxed);
                    return;
                }
            }
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Arc<Kept>>> {
        self.0.kept.lock().expect("nobody panics while holding it")
    }

    /// Makes a snapshot and puts it on the shelf.
    fn write(&self, height: Height) -> Result<Arc<Kept>> {
        let Inner { ledger, config, stopping, .. } = &*self.0;
        let hash = ledger.storage().read(|reader| reader.hash_at(height))?;
        let known = hash.and_then(|hash| self.kept().iter().find(|kept| kept.manifest.block_hash == hash).cloned());
        if let Some(kept) = known {
            return Ok(kept);
        }
        fs::create_dir_all(&config.dir).map_err(io(&config.dir))?;
        let name = format!("{height}-{}", hash.map(|hash| const_hex::encode(&hash.0[..8])).unwrap_or_default());
        let folder = config.dir.join(name);
        let options = ExportOptions { height: Some(height), blocks: config.blocks, ..ExportOptions::default() };
        let mut made = Err(SnapshotError::Stopped);
        ledger.storage().read(|reader| {
            let go_on = |_| !stopping.load(Ordering::Relaxed);
            made = export(reader, ledger.genesis(), &ledger.genesis_hash(), options, &folder, go_on);
            Ok(())
        })?;
        let made = made?;
        let kept = Arc::new(Kept { id: made.id(), manifest: made.manifest().clone(), folder });
        let gone = {
            let mut all = self.kept();
            all.push(Arc::clone(&kept));
            all.sort_by_key(|kept| kept.manifest.height);
            // The one just made stays in any case.
            let mut more = all.len().saturating_sub(config.keep.max(1));
            let (gone, stay) = all.drain(..).partition::<Vec<_>, _>(|old| {
                let goes = more > 0 && old.id != kept.id;
                more -= usize::from(goes);
                goes
            });
            *all = stay;
            gone
        };
        for old in gone {
            if let Err(error) = fs::remove_dir_all(&old.folder) {
                tracing::warn!(%error, folder = %old.folder.display(), "an old snapshot could not be removed");
            }
        }
        self.show();
        Ok(kept)
    }

    fn show(&self) {
        gauge!(telemetry::SNAPSHOT_HEIGHT).set(self.newest().map_or(0, |kept| kept.manifest.height) as f64);
    }
}

impl Kept {
    /// Bytes of its manifest, as they are served.
    pub fn manifest_bytes(&self) -> Vec<u8> {
        self.manifest.to_bytes()
    }

    /// The file of a chunk as it is stored. Errors: it cannot be opened, as when the snapshot was removed meanwhile.
    pub fn open_chunk(&self, index: usize) -> std::io::Result<fs::File> {
        fs::File::open(self.folder.join(chunk_name(index)))
    }
}

/// The height of which a snapshot should be made, if it should.
fn due(head: Height, newest: Height, config: &ShelfConfig) -> Option<Height> {
    let last = head.saturating_sub(config.depth).checked_div(config.every_blocks)? * config.every_blocks;
    (last > newest && head - last <= REACH_MAX).then_some(last)
}

/// What lies in the folder and is whole, by height.
fn scan(dir: &Path) -> Result<Vec<Arc<Kept>>> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(dir).map_err(io(dir))? {
        let folder = entry.map_err(io(dir))?.path();
        // Left behind by a process that was killed.
        if folder.extension().is_some_and(|extension| extension == STAGE) {
            fs::remove_dir_all(&folder).map_err(io(&folder))?;
        }
        // Whatever else somebody has put there is not ours to serve.
        if !folder.join(MANIFEST).is_file() {
            continue;
        }
        let whole = Snapshot::open(&folder).and_then(|snapshot| {
            let chunks = snapshot.manifest().chunks.len();
            (0..chunks).try_for_each(|index| snapshot.measured(index))?;
            Ok(snapshot)
        });
        match whole {
            Ok(snapshot) => {
                let (id, manifest) = (snapshot.id(), snapshot.manifest().clone());
                kept.push(Arc::new(Kept { id, manifest, folder }));
            }
            Err(error) => {
                tracing::warn!(%error, folder = %folder.display(), "a snapshot that is not whole is not served")
            }
        }
    }
    kept.sort_by_key(|kept| kept.manifest.height);
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_falls_due_at_every_multiple_once_enough_blocks_follow() {
        let config = |every_blocks, depth| ShelfConfig { dir: PathBuf::new(), every_blocks, keep: 2, depth, blocks: 1 };
        let hundred = config(100, 16);
        for (head, newest, expected) in [
            (0, 0, None),
            (115, 0, None),
            (116, 0, Some(100)),
            (216, 100, Some(200)),
            (216, 200, None),
            (5_000, 100, Some(4_900)),
        ] {
            assert_eq!(due(head, newest, &hundred), expected, "{head} {newest}");
        }
        assert_eq!(due(9_999, 0, &config(0, 0)), None, "off");
        assert_eq!(due(5_000, 0, &config(4_000, 0)), Some(4_000));
        assert_eq!(due(5_001, 0, &config(4_000, 0)), None, "too deep by now");
        assert_eq!(due(7, 0, &config(1, 0)), Some(7));
    }
}
