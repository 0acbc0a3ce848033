//! A follower that begins with a snapshot, since its strategy, the real component, wants that.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use tenon::bindings::{SyncStrategy, builtin};
use tenon::ledger::Ledger;
use tenon::sample::Sample;
use tenon::snapshot::Snapshot;
use tenon::snapshot::export::{ExportOptions, export};
use tenon::sync::one_peer::OnePeer;
use tenon::sync::{Strategy, SyncConfig, SyncStatus};
use tenon_runtime::{Host, PluginConfig};

use super::plugins::host;
use super::source::{Chunks, TestSource};
use super::{Running, config, import, open};

const BLOCKS: u64 = 3_000;
const SNAPSHOT: u64 = 2_500;

/// A chain, and sources that serve it with a snapshot, each in its way.
struct World {
    sample: Sample,
    sources: Vec<TestSource>,
    /// Chunks of the snapshot.
    chunks: u64,
    dir: tempfile::TempDir,
}

impl World {
    async fn new(seed: u64, manners: &[Option<Chunks>]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut sample = Sample::new(seed, 40);
        let blocks = sample.blocks(BLOCKS as usize, 2);
        let folder = dir.path().join("snapshot");
        let chunks = snapshot(&dir.path().join("full"), &sample, &blocks, &folder).await;
        let mut sources = Vec::new();
        for manner in manners {
            let source = TestSource::start(sample.genesis(), &blocks).await;
            if let Some(manner) = manner {
                source.offer(Snapshot::open(&folder).unwrap(), *manner);
            }
            sources.push(source);
        }
        Self { sample, sources, chunks, dir }
    }

    fn config(&self) -> SyncConfig {
        SyncConfig { watchdog_ms: 3_000, ..config(&self.sources.iter().collect::<Vec<_>>()) }
    }

    /// A fresh node that follows to the head, with a folder for snapshots.
    async fn follow(&self, strategy: Arc<dyn Strategy>) -> (SyncStatus, Ledger) {
        let new = self.dir.path().join("new");
        std::fs::create_dir_all(&new).unwrap();
        let ledger = open(&new, self.sample.genesis());
        let fetch = self.dir.path().join("fetch");
        let taking = |follower: tenon::sync::follower::Follower| follower.taking_snapshots(Ok(fetch.clone()));
        let mut running = Running::start_with(&ledger, self.config(), strategy, taking);
        let status = running.until_live_at(BLOCKS).await;
        assert_eq!(ledger.head(), *self.sample.head(), "the state root is part of it");
        assert_eq!(ledger.look(|state, _| state.root()).await.unwrap(), self.sample.head().state_root);
        running.stop().await;
        (status, ledger)
    }

    /// Blocks that all sources have served.
    fn served(&self) -> u64 {
        self.sources.iter().map(TestSource::served).sum()
    }
}

/// Makes a snapshot of the block at [`SNAPSHOT`]; how many chunks it has.
async fn snapshot(dir: &Path, sample: &Sample, blocks: &[tenon::chain::Block], out: &Path) -> u64 {
    std::fs::create_dir_all(dir).unwrap();
    let ledger = open(dir, sample.genesis());
    import(&ledger, blocks).await;
    let options = ExportOptions { height: Some(SNAPSHOT), chunk_bytes: 20_000, ..ExportOptions::default() };
    let mut made = None;
    let read = ledger.storage().read(|reader| {
        made = Some(export(reader, sample.genesis(), &ledger.genesis_hash(), options, out, |_| true).unwrap());
        Ok(())
    });
    read.unwrap();
    ledger.stop();
    made.unwrap().manifest().chunks.len() as u64
}

/// `snapshot-first`, for short chains; and its host, which has to stay.
fn snapshot_first(dir: &Path) -> (Host, Arc<dyn Strategy>) {
    let host = host(dir, &["snapshot-first"]);
    let settings = json!({ "min_blocks": 1_500, "max_age_blocks": 1_000 });
    let plugin = PluginConfig { plugin: Some("snapshot-first".into()), settings, ..PluginConfig::default() };
    let slot = host.slot::<SyncStrategy>("sync", plugin, builtin::OnePeer).unwrap();
    host.open();
    (host, Arc::new(slot))
}

fn base(ledger: &Ledger) -> u64 {
    ledger.storage().read(|reader| reader.base()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_node_takes_the_snapshot_and_the_rest_as_blocks_and_a_wrong_chunk_costs_who_sent_it() {
    let world = World::new(60, &[Some(Chunks::Wrong), Some(Chunks::Right), Some(Chunks::Right)]).await;
    assert!(world.chunks >= 20, "{}", world.chunks);
    let (host, strategy) = snapshot_first(world.dir.path());
    let (status, ledger) = world.follow(strategy).await;
    assert_eq!((status.snapshots_taken, status.snapshots_failed, status.snapshot.is_none()), (1, 0, true));
    // A slow range may have been asked of a second source.
    let (served, above) = (world.served(), BLOCKS - SNAPSHOT);
    assert!((above..=2 * above).contains(&served), "{served}: none of the blocks below");
    assert_eq!(base(&ledger), SNAPSHOT);
    let chunks: Vec<u64> = world.sources.iter().map(TestSource::chunks).collect();
    assert!(chunks[0] >= 1 && chunks[1] >= 1 && chunks[2] >= 1, "{chunks:?}");
    assert_eq!(chunks[1] + chunks[2], world.chunks, "each chunk comes once from those who send it right");
    let scores: Vec<i32> = status.peers.iter().map(|peer| peer.score).collect();
    assert!(scores[0] < 100 && scores[1] == 100 && scores[2] == 100, "{scores:?}");
    assert!(status.peers.iter().all(|peer| peer.snapshot_height == Some(SNAPSHOT)), "{:#?}", status.peers);
    assert_eq!((status.refused_actions, status.rescues), (0, 0), "{status:#?}");
    assert!(host.status().iter().all(|slot| (slot.failures, slot.fallbacks) == (0, 0)), "{:?}", host.status());
    assert!(!world.dir.path().join("fetch").exists(), "what was downloaded is used up");
    ledger.stop();
    host.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_nobody_sends_is_given_up_for_blocks() {
    let world = World::new(61, &[Some(Chunks::Gone), Some(Chunks::Wrong)]).await;
    let (host, strategy) = snapshot_first(world.dir.path());
    let (status, ledger) = world.follow(strategy).await;
    assert_eq!((status.snapshots_taken, status.refused_actions), (0, 0), "{status:#?}");
    assert!((1..=3).contains(&status.snapshots_failed), "{}", status.snapshots_failed);
    assert!(base(&ledger) == 0 && world.served() >= BLOCKS);
    assert!(host.status().iter().all(|slot| (slot.failures, slot.fallbacks) == (0, 0)), "{:?}", host.status());
    ledger.stop();
    host.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_one_of_two_sources_has_a_snapshot_it_is_waited_for_and_the_builtin_wants_none() {
    let world = World::new(62, &[None, Some(Chunks::Right)]).await;
    let (host, strategy) = snapshot_first(world.dir.path());
    let (status, ledger) = world.follow(strategy).await;
    assert_eq!((status.snapshots_taken, world.sources[1].chunks()), (1, world.chunks));
    ledger.stop();
    host.stop();
    // What is there is neither shown nor taken any more, and a fresh node with the built-in fetches every block.
    std::fs::remove_dir_all(world.dir.path().join("new")).unwrap();
    let (status, ledger) = world.follow(Arc::new(OnePeer::default())).await;
    assert_eq!((status.snapshots_taken, status.snapshots_failed, base(&ledger)), (0, 0, 0));
    assert_eq!(world.sources[1].chunks(), world.chunks, "no more than before");
    ledger.stop();
}
