//! Sync as an operator sees it: a follower with a real ledger, sources over real HTTP that are good, bad or mad, and
//! strategies that are any of these. Waits for statuses, never for time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tenon::chain::{Block, Genesis, verify};
use tenon::ledger::{Ledger, LedgerOptions};
use tenon::sample::Sample;
use tenon::sync::follower::{Follower, Peers};
use tenon::sync::http::HttpSource;
use tenon::sync::{Strategy as SyncStrategy, SyncConfig, SyncState, SyncStatus};
use tokio::sync::watch;

mod bounds;
mod faults;
mod heads;
mod peers;
#[path = "../support/plugins.rs"]
mod plugins;
mod snapshots;
#[path = "../support/source.rs"]
#[expect(dead_code, reason = "shared with the benchmark: each uses its part")]
mod source;
mod strategies;
mod zoo;

use source::TestSource;

/// After this a wait has failed: far longer than anything here takes.
const HANG: Duration = Duration::from_secs(120);

fn config(sources: &[&TestSource]) -> SyncConfig {
    SyncConfig {
        sources: sources.iter().map(|source| source.url().to_owned()).collect(),
        poll_ms: 20,
        watchdog_ms: 100,
        request_timeout_ms: 400,
        backoff_max_ms: 300,
        ..SyncConfig::default()
    }
}

fn open(dir: &Path, genesis: &Genesis) -> Ledger {
    Ledger::open(LedgerOptions::new(dir.join("chain.db"), genesis.clone()), Vec::new()).unwrap()
}

async fn import(ledger: &Ledger, blocks: &[Block]) {
    for block in verify::verify_all(blocks.to_vec(), ledger.genesis()) {
        ledger.import(vec![block.unwrap()]).await.pop().unwrap().unwrap();
    }
}

/// Whether all blocks up to `height` are stored, and the follower has taken note.
fn is_at(status: &SyncStatus, height: u64) -> bool {
    status.head_height == height && status.waiting == 0
}

/// A follower that runs.
struct Running {
    ledger: Ledger,
    status: watch::Receiver<SyncStatus>,
    peers: Peers,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(ledger: &Ledger, config: SyncConfig, strategy: Arc<dyn SyncStrategy>) -> Self {
        Self::start_with(ledger, config, strategy, |follower| follower)
    }

    fn start_with(
        ledger: &Ledger,
        config: SyncConfig,
        strategy: Arc<dyn SyncStrategy>,
        finish: impl FnOnce(Follower) -> Follower,
    ) -> Self {
        let sources = HttpSource::all(&config).unwrap();
        let follower = Follower::new(ledger.clone(), strategy, sources, "this node".into(), config).unwrap();
        let follower = finish(follower);
        let (stop, stopped) = watch::channel(false);
        let (status, peers) = (follower.status(), follower.peers());
        Self { ledger: ledger.clone(), status, peers, stop, task: tokio::spawn(follower.run(stopped)) }
    }

    async fn until(&mut self, what: &str, condition: impl FnMut(&SyncStatus) -> bool) -> SyncStatus {
        let waited = tokio::time::timeout(HANG, self.status.wait_for(condition)).await;
        let waited = waited.map(|status| status.expect("the follower runs").clone());
        waited.unwrap_or_else(|_| panic!("waited in vain for {what}: {:#?}", *self.status.borrow()))
    }

    async fn until_live_at(&mut self, height: u64) -> SyncStatus {
        let what = format!("live at {height}");
        self.until(&what, |status| status.state == SyncState::Live && is_at(status, height)).await
    }

    /// Stops the follower, not the ledger.
    async fn stop(self) {
        self.stop.send(true).unwrap();
        tokio::time::timeout(HANG, self.task).await.expect("it stops").unwrap();
    }
}

/// One follower, one chain, to its head; answers the last status.
async fn follow(sources: &[&TestSource], sample: &Sample, strategy: Arc<dyn SyncStrategy>) -> SyncStatus {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    let mut running = Running::start(&ledger, config(sources), strategy);
    let status = running.until_live_at(sample.head().height).await;
    assert_eq!(running.ledger.head(), *sample.head(), "the state root is part of it");
    running.stop().await;
    ledger.stop();
    status
}
