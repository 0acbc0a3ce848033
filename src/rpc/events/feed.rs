//! Who posts what happens: follows the chain, the mempool, sync and the plugins, and puts their news into the hub.
//! Blocks are read and written out only while somebody listens to them; otherwise the feed only remembers how far it
//! is.

use std::time::Duration;

use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use super::super::server::Stop;
use super::super::wire::{BlockJson, ListedTransaction, Place};
use super::lost;
use crate::chain::{Block, Hash, Head, Height, Time, Transaction};
use crate::events::{Advance, Hub, Kind, Kinds, Mark, Reorg, Trail};
use crate::ledger::Ledger;
use crate::mempool::{Mempool, TransactionStatus};
use crate::storage::{Cursor, Reader, StorageError};
use crate::sync::{Diverged, SnapshotStage, SnapshotStatus, SyncState, SyncStatus};

/// Blocks that are read at a time.
pub(super) const PAGE_BLOCKS: u64 = 100;
/// Encoded bytes of them at most; a single block may have more.
pub(super) const PAGE_BYTES: usize = 512 << 10;
/// Pause after a full page: listeners to a node that catches up must not cost it the catch-up.
const PAGE_PAUSE: Duration = Duration::from_millis(50);
/// Blocks below the head from which on the feed leaves out blocks, and says so, rather than tell them late.
const BEHIND_MAX: u64 = 1_000;

pub(in crate::rpc) struct Feed {
    pub hub: Hub,
    pub ledger: Ledger,
    pub mempool: Mempool,
    pub sync: watch::Receiver<SyncStatus>,
    /// What happens to plugins; none on a node without them.
    pub plugins: Option<broadcast::Receiver<tenon_runtime::Event>>,
}

/// A block and what it holds, as events.
pub(super) struct Told {
    pub mark: Mark,
    pub events: Vec<(Kind, String)>,
}

#[derive(Serialize)]
struct SyncJson<'a> {
    from: SyncState,
    to: SyncState,
    height: Height,
    best_height: Height,
    lag_blocks: u64,
    lag_seconds: u64,
    diverged: Option<&'a Diverged>,
    /// The snapshot that is being taken in place of blocks.
    snapshot: Option<&'a SnapshotStatus>,
    problem: Option<&'a str>,
}

/// What of a sync status is news when it changes: the state, and the snapshot on its way with where it is.
type Standing = (SyncState, Option<(Hash, SnapshotStage)>);

fn standing(status: &SyncStatus) -> Standing {
    (status.state, status.snapshot.as_ref().map(|snapshot| (snapshot.id, snapshot.stage)))
}

/// A transaction without its payload and signature; [`super::super::transactions`] has these.
#[derive(Serialize)]
struct TransactionJson {
    status: &'static str,
    hash: Hash,
    #[serde(rename = "type")]
    kind: &'static str,
    is_message: bool,
    from: crate::chain::Address,
    to: crate::chain::Address,
    amount: u64,
    fee: u64,
    nonce: u64,
    timestamp: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    block_height: Option<Height>,
    #[serde(skip_serializing_if = "Option::is_none")]
    block_hash: Option<Hash>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

#[derive(Serialize)]
struct DroppedJson<'a> {
    status: &'static str,
    hash: Hash,
    reason: &'a str,
    timestamp: Time,
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain data")
}

impl Feed {
    /// Posts until `stop` says so.
    pub(in crate::rpc) async fn run(mut self, mut stop: Stop) {
        let mut head = self.ledger.watch();
        let mut pool = self.mempool.changes();
        let mut trail = Trail::default();
        trail.follow(&head.borrow_and_update());
        let mut known = standing(&self.sync.borrow_and_update());
        let mut sync_is_there = true;
        loop {
            let plugin = async {
                match &mut self.plugins {
                    Some(plugins) => plugins.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.stopped() => return,
                // Before the blocks: what waited is told before it is in one.
                changed = pool.recv() => match changed {
                    Ok(hash) => self.transaction(&hash),
                    Err(RecvError::Lagged(count)) => self.hub.post(Kind::Lost, lost(Some(count), None, None)),
                    Err(RecvError::Closed) => return,
                },
                event = plugin => match event {
                    Ok(event) => self.hub.post(Kind::Plugin, json(&event)),
                    Err(RecvError::Lagged(count)) => tracing::warn!(count, "plugin events came faster than they were told"),
                    Err(RecvError::Closed) => self.plugins = None,
                },
                changed = self.sync.changed(), if sync_is_there => {
                    sync_is_there = changed.is_ok();
                    self.sync_changed(&mut known);
                }
                changed = head.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    head.mark_unchanged();
                    match self.chain(&mut trail).await {
                        Ok(true) => {
                            head.mark_changed();
                            tokio::time::sleep(PAGE_PAUSE).await;
                        }
                        Ok(false) => {}
                        Err(error) => tracing::error!(%error, "blocks could not be read for those who listen"),
                    }
                }
            }
        }
    }

    fn sync_changed(&mut self, known: &mut Standing) {
        let status = self.sync.borrow_and_update().clone();
        let before = std::mem::replace(known, standing(&status));
        if before != *known {
            let SyncStatus { lag_blocks, lag_seconds, best_height, .. } = status;
            let news = SyncJson {
                from: before.0,
                to: status.state,
                height: status.head_height,
                best_height,
                lag_blocks,
                lag_seconds,
                diverged: status.diverged.as_ref(),
                snapshot: status.snapshot.as_ref(),
                problem: status.problem.as_deref(),
            };
            self.hub.post(Kind::Sync, json(&news));
        }
    }

    /// A transaction that came, or was dropped.
    fn transaction(&self, hash: &Hash) {
        if !self.hub.wanted().has(Kind::Transaction) {
            return;
        }
        match self.mempool.get(hash) {
            Some(TransactionStatus::Pending(pending)) => {
                let news = TransactionJson::new("pending", &pending.transaction, *hash, pending.received);
                self.hub.post(Kind::Transaction, json(&news));
            }
            Some(TransactionStatus::Dropped { reason, at }) => {
                let news = DroppedJson { status: "dropped", hash: *hash, reason: &reason, timestamp: at };
                self.hub.post(Kind::Transaction, json(&news));
            }
            // A block has it by now, and that is told.
            None => {}
        }
    }

    /// Tells the next page of blocks, after a reorganisation that leads there. Answers whether there are more.
    async fn chain(&self, trail: &mut Trail) -> Result<bool, StorageError> {
        let (head, storage) = (self.ledger.head(), self.ledger.storage());
        if !trail.follow(&head) {
            let mut looked = trail.clone();
            let advance;
            (*trail, advance) = storage
                .read_async(move |reader| {
                    let head = reader.head()?.ok_or_else(|| StorageError::Inconsistent("there is no head".into()))?;
                    let advance = looked.advance(&head, |height| reader.hash_at(height))?;
                    Ok((looked, advance))
                })
                .await?;
            if let Advance::Reorganised(reorg) = advance {
                self.reorganised(&reorg);
            }
        }
        let (told, target, wanted) = (self.hub.mark(), mark(&head), self.hub.wanted());
        if told == target {
            return Ok(false);
        }
        if wanted.is_empty() {
            return Ok(!self.hub.pass_over(target));
        }
        if head.height.saturating_sub(told.height) > BEHIND_MAX {
            let last = head.height - PAGE_BLOCKS;
            let hash = storage.read_brief(move |reader| reader.hash_at(last)).await?;
            if let Some(hash) = hash {
                let text = lost(None, Some((told.height + 1, last)), None);
                self.hub.post_block(Mark::new(last, &hash), wanted, vec![(Kind::Lost, text)]);
            }
            return Ok(true);
        }
        let last = head.height;
        let Some(page) = storage.read_async(move |reader| page(reader, told, last, wanted)).await? else {
            // Another chain by now, which the next head tells; or one that the trail could not know of.
            if self.ledger.head() == head {
                let text = lost(None, Some((told.height.min(head.height), head.height)), None);
                self.hub.post_block(target, wanted, vec![(Kind::Lost, text)]);
            }
            return Ok(true);
        };
        for Told { mark, events } in page {
            if !self.hub.post_block(mark, wanted, events) {
                break;
            }
        }
        Ok(self.hub.mark() != target)
    }

    fn reorganised(&self, reorg: &Reorg) {
        let told = self.hub.mark();
        let mark = match (reorg.fork_height, &reorg.fork_hash) {
            (Some(height), Some(hash)) if height < told.height => Mark::new(height, hash),
            (Some(_), _) => told,
            // Where it began is not known; what is told goes on at its end.
            (None, _) => Mark::new(reorg.new_height, &reorg.new_hash),
        };
        tracing::warn!(depth = reorg.depth, old = %reorg.old_hash, new = %reorg.new_hash, "the chain was reorganised");
        self.hub.post_reorg(mark, json(reorg));
    }
}

fn mark(head: &Head) -> Mark {
    Mark::new(head.height, &head.hash)
}

/// The blocks above `told`, some of them up to `last`, with what they hold of `kinds`. None: the chain does not have
/// `told`.
pub(super) fn page(
    reader: &Reader<'_>,
    told: Mark,
    last: Height,
    kinds: Kinds,
) -> Result<Option<Vec<Told>>, StorageError> {
    let is_there = reader.hash_at(told.height)?.is_some_and(|hash| Mark::new(told.height, &hash) == told);
    if !is_there {
        return Ok(None);
    }
    let first = told.height + 1;
    let last = last.min(told.height.saturating_add(PAGE_BLOCKS));
    let (mut blocks, mut bytes, mut failed) = (Vec::new(), 0, None);
    reader.each_encoded_block(first, last, |encoded| {
        bytes += encoded.len();
        if bytes > PAGE_BYTES && !blocks.is_empty() {
            return false;
        }
        match Block::decode(encoded) {
            Ok(block) => blocks.push(of_block(&block, kinds)),
            Err(error) => failed = Some(StorageError::Damaged { what: format!("a block from {first} on"), error }),
        }
        failed.is_none()
    })?;
    failed.map_or(Ok(Some(blocks)), Err)
}

/// What a block holds: its transactions and messages, and last itself, so that whoever leaves in between has not had
/// it.
fn of_block(block: &Block, kinds: Kinds) -> Told {
    let (header, hash) = (&block.header, block.hash());
    let mut events = Vec::new();
    if kinds.has(Kind::Transaction) || kinds.has(Kind::Message) {
        for (position, transaction) in (0..).zip(&block.transactions) {
            let transaction_hash = transaction.hash(&header.chain_id);
            if kinds.has(Kind::Transaction) {
                let news = TransactionJson {
                    block_height: Some(header.height),
                    block_hash: Some(hash),
                    cursor: Some(Cursor { height: header.height, position }.to_string()),
                    ..TransactionJson::new("confirmed", transaction, transaction_hash, header.timestamp)
                };
                events.push((Kind::Transaction, json(&news)));
            }
            if kinds.has(Kind::Message) && transaction.is_message() {
                let (height, timestamp) = (header.height, header.timestamp);
                let place = Place::Confirmed { height, position, block_hash: hash, timestamp };
                let listed = ListedTransaction::new(transaction, transaction_hash, &header.chain_id, &place);
                events.push((Kind::Message, json(&listed)));
            }
        }
    }
    // Also where nobody wants it: it moves the position on.
    events.push((Kind::Block, json(&BlockJson::header(header, block.signature))));
    Told { mark: Mark::new(header.height, &hash), events }
}

impl TransactionJson {
    fn new(status: &'static str, transaction: &Transaction, hash: Hash, timestamp: Time) -> Self {
        Self {
            status,
            hash,
            kind: transaction.kind.name().unwrap_or("transfer"),
            is_message: transaction.is_message(),
            from: transaction.from(),
            to: transaction.to,
            amount: transaction.amount,
            fee: transaction.fee,
            nonce: transaction.nonce,
            timestamp,
            block_height: None,
            block_hash: None,
            cursor: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Found, HubLimits};
    use crate::ledger::LedgerOptions;
    use crate::mempool::{MempoolConfig, MempoolHook};
    use crate::sample::Sample;

    /// A feed of a node with five blocks, whose hub has told what `told` says.
    async fn feed(dir: &std::path::Path, told: impl FnOnce(&[Head]) -> Mark) -> (Feed, Vec<Head>) {
        let mut sample = Sample::new(5, 3);
        let hook = MempoolHook::new();
        let handle = hook.handle();
        let options = LedgerOptions::new(dir.join("chain.db"), (**sample.genesis()).clone());
        let ledger = Ledger::open(options, vec![Box::new(hook)]).unwrap();
        let mut heads = vec![ledger.head()];
        for _ in 0..5 {
            let block = crate::chain::verify::verify(sample.blocks(1, 1).remove(0), sample.genesis()).unwrap();
            ledger.import(vec![block]).await.remove(0).unwrap();
            heads.push(ledger.head());
        }
        let hub = Hub::new(Time(1), told(&heads), HubLimits::default());
        let mempool = Mempool::open(ledger.clone(), handle, MempoolConfig::default()).unwrap();
        let sync = watch::channel(SyncStatus::default()).1;
        (Feed { hub, ledger, mempool, sync, plugins: None }, heads)
    }

    /// What a trail knows that saw `kept` of these heads and then others.
    fn trail(heads: &[Head], kept: usize, others: u64) -> (Trail, Head) {
        let mut trail = Trail::default();
        let mut last = heads[0].clone();
        for head in &heads[..kept] {
            assert!(trail.follow(head));
            last = head.clone();
        }
        for other in 0..others {
            let hash = Hash::of(&[b"other", &other.to_be_bytes()]);
            last = Head { height: last.height + 1, hash, parent_hash: last.hash, ..last };
            assert!(trail.follow(&last));
        }
        (trail, last)
    }

    async fn told(feed: &Feed, trail: &mut Trail) -> Vec<(&'static str, serde_json::Value)> {
        let (mut listener, _) = feed.hub.listen(Kinds::of(&[Kind::Block]), None).unwrap();
        while feed.chain(trail).await.unwrap() {}
        assert_eq!(feed.hub.mark(), mark(&feed.ledger.head()));
        let Found::Events(events) = listener.take() else { panic!("there is room for all of them") };
        events.iter().map(|event| (event.kind.name(), serde_json::from_str(&event.data).unwrap())).collect()
    }

    #[tokio::test]
    async fn a_reorganisation_is_told_and_then_the_blocks_of_the_new_chain() {
        let dir = tempfile::tempdir().unwrap();
        let other = std::cell::OnceCell::new();
        let (feed, heads) = feed(dir.path(), |heads| {
            let (trail, last) = trail(heads, 3, 4);
            let told = mark(&last);
            other.set((trail, last)).unwrap();
            told
        })
        .await;
        let (mut trail, last) = other.into_inner().unwrap();
        let told = told(&feed, &mut trail).await;
        let (name, reorg) = &told[0];
        assert_eq!(*name, "reorg");
        assert_eq!((&reorg["fork_height"], &reorg["depth"]), (&2.into(), &4.into()));
        assert_eq!(reorg["old_hash"], serde_json::json!(last.hash));
        assert_eq!(reorg["new_hash"], serde_json::json!(heads[5].hash));
        let heights: Vec<_> =
            told[1..].iter().map(|(name, block)| (*name, block["height"].as_u64().unwrap())).collect();
        assert_eq!(heights, [("block", 3), ("block", 4), ("block", 5)]);
        feed.ledger.stop();
    }

    #[tokio::test]
    async fn a_reorganisation_below_what_was_told_leaves_that_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (feed, heads) = feed(dir.path(), |heads| mark(&heads[1])).await;
        let (mut trail, _) = trail(&heads, 4, 2);
        let told = told(&feed, &mut trail).await;
        let names: Vec<_> = told.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["reorg", "block", "block", "block", "block"], "from the second on");
        feed.ledger.stop();
    }

    #[tokio::test]
    async fn what_was_told_and_is_not_on_the_chain_is_said_to_be_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (feed, _) = feed(dir.path(), |_| Mark::new(3, &Hash::ZERO)).await;
        let mut trail = Trail::default();
        let told = told(&feed, &mut trail).await;
        assert_eq!(told, [("lost", serde_json::json!({ "first_height": 3, "last_height": 5 }))]);
        feed.ledger.stop();
    }

    #[tokio::test]
    async fn nothing_is_read_while_nobody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let (feed, heads) = feed(dir.path(), |heads| mark(&heads[0])).await;
        assert!(!feed.chain(&mut Trail::default()).await.unwrap());
        assert_eq!(feed.hub.mark(), mark(&heads[5]));
        let (mut listener, _) = feed.hub.listen(Kinds::ALL, None).unwrap();
        assert!(matches!(listener.take(), Found::Events(events) if events.is_empty()));
        feed.ledger.stop();
    }
}
