//! Hands pending transactions to the sources, until they are in a block: somebody who makes blocks has to know of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::SyncConfig;
use super::source::{Source, SourceError};
use crate::chain::{Address, Hash};
use crate::mempool::{Mempool, Pending};

/// Transactions looked at in one round.
const ROUND_MAX: usize = 2_000;

/// Transactions under way to one source: of different senders, since one sender's have to come in order.
const AT_ONCE: usize = 16;

/// The least time between two rounds: a burst of submissions makes one round, not one each.
const ROUND_MIN: Duration = Duration::from_millis(20);

/// How long a source that cannot be reached is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// How often to look whether something is to be handed on again.
const AGAIN: Duration = Duration::from_secs(1);

/// Hands the transactions of `mempool` to each of `sources` until `stop` says true. A slow source keeps no other waiting.
pub async fn run(
    mempool: Mempool,
    chain_id: String,
    mut sources: watch::Receiver<Vec<Arc<dyn Source>>>,
    config: SyncConfig,
    mut stop: watch::Receiver<bool>,
) {
    let mut tasks: Vec<(Arc<dyn Source>, JoinSet<()>)> = Vec::new();
    loop {
        let usable = sources.borrow_and_update().clone();
        // A dropped set ends its task. A source that has come back is another one, though it has the same name.
        tasks.retain(|(told, _)| usable.iter().any(|source| Arc::ptr_eq(source, told)));
        for source in usable {
            if !tasks.iter().any(|(told, _)| Arc::ptr_eq(&source, told)) {
                let mut task = JoinSet::new();
                task.spawn(tell(Arc::clone(&source), mempool.clone(), chain_id.clone(), config.forward_again_ms));
                tasks.push((source, task));
            }
        }
        tokio::select! {
            changed = sources.changed() => if changed.is_err() { return },
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// Tells one source of what it does not know yet, for ever.
async fn tell(source: Arc<dyn Source>, mempool: Mempool, chain_id: String, again_ms: u64) {
    let mut added = mempool.watch();
    // When each transaction is to be handed on again: what was may have been lost.
    let mut due: HashMap<Hash, Instant> = HashMap::new();
    loop {
        added.mark_unchanged();
        let pending = mempool.pending(ROUND_MAX);
        let waiting: HashSet<Hash> = pending.iter().map(|pending| pending.hash).collect();
        due.retain(|hash, _| waiting.contains(hash));
        let now = Instant::now();
        let mut by_sender: BTreeMap<Address, Vec<Pending>> = BTreeMap::new();
        for pending in pending.into_iter().filter(|pending| due.get(&pending.hash).is_none_or(|due| *due <= now)) {
            by_sender.entry(pending.transaction.from()).or_default().push(pending);
        }
        let halted = AtomicBool::new(false);
        let groups = by_sender.into_values().map(|group| tell_group(&source, group, &chain_id, &halted));
        let mut outcomes = stream::iter(groups).buffer_unordered(AT_ONCE);
        let mut pause = ROUND_MIN;
        while let Some((done, wanted)) = outcomes.next().await {
            due.extend(done.into_iter().map(|hash| (hash, Instant::now() + Duration::from_millis(again_ms))));
            pause = pause.max(wanted.unwrap_or_default());
        }
        tokio::time::sleep(pause).await;
        tokio::select! {
            changed = added.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN), if !waiting.is_empty() => {}
        }
    }
}

/// One sender's transactions, in order. Answers what need not be handed on again soon, and how long to pause.
async fn tell_group(
    source: &Arc<dyn Source>,
    group: Vec<Pending>,
    chain_id: &str,
    halted: &AtomicBool,
) -> (Vec<Hash>, Option<Duration>) {
    let mut done = Vec::new();
    for pending in group {
        if halted.load(Ordering::Relaxed) {
            break;
        }
        match source.submit(chain_id, &pending).await {
            Ok(()) => done.push(pending.hash),
            Err(SourceError::Status { status, detail }) if (400..500).contains(&status) => {
                // It may know more than we: the transaction in a block that is not here yet, for one.
                tracing::debug!(source = source.name(), hash = %pending.hash, status, detail, "transaction not taken");
                done.push(pending.hash);
            }
            Err(error) => {
                halted.store(true, Ordering::Relaxed);
                tracing::debug!(source = source.name(), %error, "transactions wait");
                let pause = match error {
                    SourceError::Limited { retry_after_ms } => Duration::from_millis(retry_after_ms),
                    _ => PAUSE,
                };
                return (done, Some(pause));
            }
        }
    }
    (done, None)
}
