//! The producer: makes a block at every interval, while it is this authority's turn and there is something to say.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::chain::{SecretKey, Time};
use crate::ledger::{Ledger, ProduceError, ProduceRequest};
use crate::mempool::Mempool;

/// When to make a block without transactions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmptyBlocks {
    /// When the last block is old: followers see that the chain lives.
    #[default]
    Heartbeat,
    /// At every interval.
    Always,
    /// Not at all.
    Never,
}

/// How blocks are made.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// Time from block to block.
    pub interval: Duration,
    /// When to make one without transactions.
    pub empty_blocks: EmptyBlocks,
    /// How old the last block is when an empty one follows it.
    pub heartbeat: Duration,
}

/// Makes blocks until `stop` says true.
pub async fn run(
    ledger: Ledger,
    mempool: Mempool,
    key: SecretKey,
    config: ProducerConfig,
    mut stop: watch::Receiver<bool>,
) {
    let mut interval = tokio::time::interval(config.interval);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        tick(&ledger, &mempool, &key, &config).await;
    }
}

/// What is done at each interval: a block, if it is time for one.
pub async fn tick(ledger: &Ledger, mempool: &Mempool, key: &SecretKey, config: &ProducerConfig) {
    let now = ledger.clock().now();
    let age_ms = now.ms_since(ledger.head().timestamp);
    let allow_empty = match config.empty_blocks {
        EmptyBlocks::Always => true,
        EmptyBlocks::Heartbeat => u128::from(age_ms) >= config.heartbeat.as_millis(),
        EmptyBlocks::Never => false,
    };
    if allow_empty || !mempool.is_empty() {
        produce(ledger, mempool, key, now, allow_empty).await;
    }
}

/// Makes one block, if it is this authority's turn and there is something to put into it.
pub async fn produce(ledger: &Ledger, mempool: &Mempool, key: &SecretKey, now: Time, allow_empty: bool) {
    // Some more than fit: those that cannot happen leave room.
    let limit = ledger.genesis().block_txs_max as usize * 2;
    let candidates = mempool.pending(limit).into_iter().map(|pending| (pending.transaction, pending.hash)).collect();
    let request = ProduceRequest { candidates, key: key.clone(), now, allow_empty };
    match ledger.produce(request).await {
        Ok(produced) => {
            if let Some(head) = &produced.head {
                tracing::debug!(height = head.height, transactions = head.tx_count, hash = %head.hash, "block produced");
            }
            let dropped = produced.dropped.into_iter().map(|(hash, error)| (hash, error.to_string())).collect();
            if let Err(error) = mempool.drop_transactions(dropped).await {
                tracing::error!(%error, "dropped transactions could not be forgotten");
            }
        }
        Err(ProduceError::NotOurTurn(turn)) => tracing::trace!(%turn, "another authority's turn"),
        Err(ProduceError::SlotUsed(slot)) => tracing::trace!(slot, "this slot has its block"),
        Err(error) => tracing::error!(%error, "no block was produced"),
    }
}
