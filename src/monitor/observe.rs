//! What is known of the node, put together in one place: from here on monitoring only sees an [`Observation`].

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use tenon_runtime::{Change, Condition, Event, Status};
use tokio::sync::watch;

use super::{Disk, Observation, Parked, PluginTrouble, Queue, SyncFacts, Verification};
use crate::chain::{Height, Time};
use crate::ledger::Ledger;
use crate::maintenance::audit::Auditor;
use crate::mempool::Mempool;
use crate::sync::{SyncState, SyncStatus};

/// Asks a part of the node how much waits there.
#[derive(Clone)]
pub struct QueueProbe {
    /// Its name.
    pub name: &'static str,
    /// How much may wait there; none where being full is its ordinary work.
    pub limit: Option<u64>,
    /// How much does.
    pub depth: Arc<dyn Fn() -> u64 + Send + Sync>,
}

/// The parts that are looked at.
#[derive(Clone)]
pub struct Observed {
    /// The chain.
    pub ledger: Ledger,
    /// The waiting transactions.
    pub mempool: Mempool,
    /// How it stands against its sources.
    pub sync: watch::Receiver<SyncStatus>,
    /// What has verified the state.
    pub auditor: Auditor,
    /// Whether the node makes blocks.
    pub is_authority: bool,
    /// When it started.
    pub started: Time,
    /// Every slot as it is now.
    pub plugins: Arc<dyn Fn() -> Vec<Status> + Send + Sync>,
    /// What each agent has set aside; none where that cannot be read.
    pub agents: Arc<dyn Fn() -> Option<Vec<Parked>> + Send + Sync>,
    /// What can fill up, beside the ledger's queue and those of sync.
    pub queues: Vec<QueueProbe>,
}

/// Puts observations together. Cheap to clone.
#[derive(Clone)]
pub struct Observer(Arc<Shared>);

struct Shared {
    observed: Observed,
    /// The head when the node started.
    start_height: Height,
    slow: Mutex<Slow>,
}

/// What takes too long to be asked for every request.
#[derive(Default)]
struct Slow {
    disk: Option<Disk>,
    agents: Vec<Parked>,
    quarantined: Vec<PluginTrouble>,
    refused: Vec<PluginTrouble>,
    /// Slots whose last change was for the worse.
    rolled_back: BTreeMap<String, (Time, String)>,
}

/// How long a rollback is news, in milliseconds, unless something newer goes live in the slot before.
const ROLLED_BACK_MS: u64 = 3_600_000;

impl Observer {
    /// An observer of these parts. Disk, plugins and agents are unknown until [`Observer::refresh`].
    pub fn new(observed: Observed) -> Self {
        let start_height = observed.ledger.height();
        Self(Arc::new(Shared { observed, start_height, slow: Mutex::default() }))
    }

    fn slow(&self) -> MutexGuard<'_, Slow> {
        self.0.slow.lock().expect("nobody panics while holding it")
    }

    /// What is known at `now`. Takes microseconds.
    pub fn observe(&self, now: Time) -> Observation {
        let Observed { ledger, mempool, sync, auditor, is_authority, started, queues, .. } = &self.0.observed;
        let start_height = &self.0.start_height;
        let (head, stats) = (ledger.head(), ledger.import_stats());
        let (jobs, jobs_max) = ledger.queue();
        let queue = |name, depth, limit| Queue { name, depth, limit };
        let mut waiting = vec![queue("ledger", jobs as u64, Some(jobs_max as u64))];
        waiting.extend(queues.iter().map(|probe| queue(probe.name, (probe.depth)(), probe.limit)));
        let facts = {
            let status = sync.borrow();
            waiting.push(queue("waiting-blocks", status.waiting, None));
            waiting.push(queue("verifying-blocks", status.verifying, None));
            waiting.push(queue("sync-bytes", status.buffered_bytes, None));
            // An error means that whoever publishes it is gone.
            SyncFacts { has_ended: sync.has_changed().is_err(), ..facts(&status, head.height) }
        };
        let slow = self.slow();
        let rolled_back = slow.rolled_back.iter().filter(|(_, (at, _))| now.ms_since(*at) < ROLLED_BACK_MS);
        let rolled_back = rolled_back.map(|(slot, (_, text))| PluginTrouble { slot: slot.clone(), text: text.clone() });
        Observation {
            now,
            is_authority: *is_authority,
            height: head.height,
            head_age_ms: now.ms_since(head.timestamp),
            import_age_ms: now.ms_since(stats.last_import.max(*started)),
            sync: facts,
            is_storage_failing: stats.is_failing,
            disk: slow.disk,
            refused_reorg: sync.borrow().refused_reorg.clone(),
            // The ledger verifies the whole state when it opens, and does not open where it does not hold.
            verification: Some(auditor.last().map_or(
                Verification { at: *started, height: *start_height, problem: None },
                |check| Verification { at: check.at, height: check.height, problem: check.problem },
            )),
            verification_age_max_ms: None,
            plugins: slow.quarantined.iter().cloned().chain(rolled_back).collect(),
            agents: slow.agents.clone(),
            refused_plugins: slow.refused.clone(),
            queues: waiting,
            pending: mempool.len() as u64,
        }
    }

    /// Looks at disk, plugins and what agents have set aside. Blocks for as long as these take.
    pub fn refresh(&self) {
        let observed = &self.0.observed;
        let disk = disk(observed.ledger.storage().path());
        let slots = (observed.plugins)();
        let refused = slots.iter().filter_map(refused).collect();
        let quarantined = slots.into_iter().filter_map(quarantined).collect();
        let agents = (observed.agents)();
        let mut slow = self.slow();
        (slow.disk, slow.quarantined, slow.refused) = (disk, quarantined, refused);
        // What was seen last holds on where nothing can be read.
        slow.agents = agents.unwrap_or_else(|| std::mem::take(&mut slow.agents));
    }

    /// Takes in what happened to a plugin.
    pub fn plugin_event(&self, event: &Event, now: Time) {
        let Some(slot) = event.slot.clone() else { return };
        let name = event.plugin.as_deref().unwrap_or("the built-in");
        let text = match &event.change {
            Change::Live { .. } => {
                self.slow().rolled_back.remove(&slot);
                return;
            }
            // Who ordered it knows.
            Change::RolledBack { by_hand: true, .. } | Change::Condemned { by_hand: true, .. } => return,
            Change::RolledBack { reason, .. } => format!("rolled back to {name}: {reason}"),
            Change::Condemned { reason, .. } => format!("{name} is not taken again: {reason}"),
            _ => return,
        };
        self.slow().rolled_back.insert(slot, (now, text));
    }
}

fn facts(status: &SyncStatus, height: u64) -> SyncFacts {
    // What sync last published may be a block or two behind the head.
    let is_ahead = status.state == SyncState::Ahead;
    let best_height = if is_ahead { status.best_height } else { status.best_height.max(height) };
    let mut standings: BTreeMap<String, u64> =
        ["unknown", "up", "down", "refused", "diverged"].map(|standing| (standing.to_owned(), 0)).into();
    for peer in &status.peers {
        *standings.entry(peer.standing.clone()).or_default() += 1;
    }
    let unused = status.peers.iter().filter(|peer| peer.standing != "up");
    let unused = unused.map(|peer| (peer.url.clone(), peer.reason.clone().unwrap_or_else(|| peer.standing.clone())));
    SyncFacts {
        state: status.state,
        best_height,
        lag_blocks: best_height.saturating_sub(height),
        lag_seconds: if best_height > height { status.lag_seconds } else { 0 },
        standings,
        unused: unused.collect(),
        diverged: status.diverged.clone(),
        problem: status.problem.clone(),
        has_ended: false,
    }
}

fn refused(status: &Status) -> Option<PluginTrouble> {
    let reason = status.refused.as_ref().filter(|_| !status.by_hand)?;
    let serves = match &status.plugin {
        Some(plugin) => format!("generation {} of {plugin}", status.generation),
        None => "the built-in".to_owned(),
    };
    Some(PluginTrouble { slot: status.slot.clone(), text: format!("{reason}; {serves} serves") })
}

fn quarantined(status: Status) -> Option<PluginTrouble> {
    if !matches!(status.status, Condition::Quarantined | Condition::Probing) {
        return None;
    }
    let name = status.plugin.as_deref().unwrap_or("the plugin");
    let text = format!("{name} is quarantined: {}", status.last_error.as_deref().unwrap_or("it failed too often"));
    Some(PluginTrouble { slot: status.slot, text })
}

/// How full the disk with `path` is; none where the system does not say.
fn disk(path: &Path) -> Option<Disk> {
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(path)
            .inspect_err(|error| tracing::debug!(%error, path = %path.display(), "the disk cannot be asked"))
            .ok()?;
        // What root alone may use is of no use to the node.
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Some(Disk { free: bytes(stat.f_bavail), total: bytes(stat.f_blocks) })
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ledger::LedgerOptions;
    use crate::mempool::{MempoolConfig, MempoolHook};
    use crate::sync::PeerStatus;

    fn event(slot: &str, change: Change) -> Event {
        Event { slot: Some(slot.into()), plugin: Some("p".into()), generation: 1, digest: None, change }
    }

    fn observer(dir: &Path, started: Time) -> (Observer, watch::Sender<SyncStatus>) {
        let (observed, sender) = observed(dir, started);
        (Observer::new(observed), sender)
    }

    /// A node with nothing in it, whose sync says what the sender does.
    pub(in crate::monitor) fn observed(dir: &Path, started: Time) -> (Observed, watch::Sender<SyncStatus>) {
        let hook = MempoolHook::new();
        let handle = hook.handle();
        let options = LedgerOptions::new(dir.join("chain.db"), crate::sample::genesis(1, 1));
        let ledger = Ledger::open(options, vec![Box::new(hook)]).unwrap();
        let mempool = Mempool::open(ledger.clone(), handle, MempoolConfig::default()).unwrap();
        let (sender, sync) = watch::channel(SyncStatus { state: SyncState::Live, ..SyncStatus::default() });
        let queues = vec![QueueProbe { name: "outbox", limit: Some(9), depth: Arc::new(|| 7) }];
        let plugins = Arc::new(Vec::new);
        let auditor = Auditor::new(ledger.clone());
        // Read once, and never again.
        let parked = Mutex::new(Some(vec![Parked { agent: "bob".into(), parked: 3, unheard: 2 }]));
        let agents = Arc::new(move || parked.lock().unwrap().take());
        let is_authority = false;
        (Observed { ledger, mempool, sync, auditor, is_authority, started, plugins, agents, queues }, sender)
    }

    #[test]
    fn what_the_parts_say_is_in_the_observation() {
        let dir = tempfile::tempdir().unwrap();
        let started = Time(5_000_000);
        let (observer, sync) = observer(dir.path(), started);
        let peer = |standing: &str, reason: Option<&str>| PeerStatus {
            id: 0,
            url: format!("http://{standing}"),
            standing: standing.into(),
            reason: reason.map(str::to_owned),
            head_height: None,
            head_hash: None,
            snapshot_height: None,
            score: 100,
            latency_us: 0,
            throughput: 0,
            failures: 0,
            in_flight: 0,
            blocks: 0,
            bytes: 0,
        };
        sync.send_modify(|status| {
            (status.best_height, status.lag_seconds, status.waiting, status.verifying) = (7, 9, 4, 3);
            status.peers = vec![peer("up", None), peer("down", Some("refused")), peer("refused", None)];
        });
        let seen = observer.observe(started.plus_ms(2_500));
        assert_eq!((seen.height, seen.sync.best_height, seen.sync.lag_blocks, seen.sync.lag_seconds), (0, 7, 7, 9));
        assert_eq!(seen.import_age_ms, 2_500, "since the start, before the first import");
        assert_eq!(
            (seen.sync.standings["up"], seen.sync.standings["down"], seen.sync.standings["diverged"]),
            (1, 1, 0)
        );
        assert_eq!(seen.sync.unused[0], ("http://down".to_owned(), "refused".to_owned()));
        let depth = |name| seen.queues.iter().find(|queue| queue.name == name).map(|queue| (queue.depth, queue.limit));
        assert_eq!((depth("outbox"), depth("ledger")), (Some((7, Some(9))), Some((0, Some(256)))));
        assert_eq!((depth("waiting-blocks"), depth("verifying-blocks")), (Some((4, None)), Some((3, None))));
        assert!(seen.disk.is_none() && seen.agents.is_empty() && !seen.sync.has_ended);
        for _ in 0..2 {
            observer.refresh();
            let agents = observer.observe(started).agents;
            assert_eq!(agents, [Parked { agent: "bob".into(), parked: 3, unheard: 2 }]);
        }
        let disk = observer.observe(started).disk.expect("a file system says how full it is");
        assert!(disk.free <= disk.total && disk.total > 0);
        drop(sync);
        assert!(observer.observe(started).sync.has_ended);
    }

    #[test]
    fn a_rollback_is_news_until_something_newer_is_live_or_an_hour_has_passed() {
        let dir = tempfile::tempdir().unwrap();
        let now = Time(5_000_000);
        let (observer, _sync) = observer(dir.path(), now);
        let live = || Change::Live { kind: "sync", version: "2".into(), previous: 1 };
        let rolled_back = |reason: &str, by_hand| Change::RolledBack { from: 2, reason: reason.into(), by_hand };
        let condemned = |reason: &str, by_hand| Change::Condemned { reason: reason.into(), by_hand };
        observer.plugin_event(&event("sync", rolled_back("2 traps", false)), now);
        observer.plugin_event(&event("rate-limit", condemned("slow", false)), now);
        // What an operator orders is no news to one.
        observer.plugin_event(&event("agent/a", rolled_back("by hand", true)), now);
        observer.plugin_event(&event("agent/b", condemned("by hand", true)), now);
        observer.plugin_event(&event("other", Change::Recovered), now);
        observer.plugin_event(&event("third", live()), now);
        let slots = |at: Time| observer.observe(at).plugins.into_iter().map(|trouble| trouble.slot).collect::<Vec<_>>();
        assert_eq!(slots(now.plus_ms(1)), ["rate-limit", "sync"]);
        assert!(observer.observe(now).plugins[1].text.contains("2 traps"));
        observer.plugin_event(&event("sync", live()), now);
        assert_eq!(slots(now.plus_ms(ROLLED_BACK_MS - 1)), ["rate-limit"]);
        assert_eq!(slots(now.plus_ms(ROLLED_BACK_MS)), [""; 0]);
    }
}
