//! What this node has new, it pushes: blocks that became part of the chain just now, wherever they came from, and
//! transactions that were handed to it. What came over gossip went on already. While the node catches up its blocks are
//! old, and nobody waits for them.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use super::gossip::Topic;
use super::handle::{Command, Commands};
use super::recent::{Recent, Way};
use crate::chain::{Hash, Header, Height, Time};
use crate::ledger::Ledger;
use crate::mempool::Pending;
use crate::storage::{Reader, StorageError};

/// How old a block may be to be news: whoever lacks an older one is catching up, and asks.
const NEWS_MS: u64 = 30_000;

/// Blocks that are pushed for one move of the head: of more, the newest.
const BLOCKS_MAX: u64 = 16;

/// Pushes every new block, until `stop` says true.
pub(super) async fn blocks(ledger: Ledger, recent: Arc<Recent>, commands: Commands, mut stop: watch::Receiver<bool>) {
    let mut head = ledger.watch();
    let mut told = head.borrow_and_update().height;
    loop {
        tokio::select! {
            changed = head.changed() => if changed.is_err() { return },
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let now = head.borrow_and_update().height;
        let first = first_news(told, now);
        told = now;
        let at = ledger.clock().now();
        let fresh = ledger.storage().read_brief(move |reader| news(reader, first, now, at)).await;
        let fresh = match fresh {
            Ok(fresh) => fresh,
            Err(error) => {
                tracing::error!(%error, "new blocks could not be read, and were not pushed");
                continue;
            }
        };
        for (hash, bytes) in fresh {
            if recent.insert(hash, Way::Out, Instant::now())
                && commands.tell(Command::Publish(Topic::Blocks, bytes)).await.is_err()
            {
                return;
            }
        }
    }
}

/// The lowest block to look at for news, where the head has moved from `told` to `now`.
pub fn first_news(told: Height, now: Height) -> Height {
    // After a reorganisation the head may be no higher than before; it is news all the same.
    (told.min(now.saturating_sub(1)) + 1).max((now + 1).saturating_sub(BLOCKS_MAX))
}

/// Those of the blocks `first..=last` that are news at `now`, with their hashes and their bytes, lowest first.
pub fn news(reader: &Reader<'_>, first: Height, last: Height, now: Time) -> Result<Vec<(Hash, Vec<u8>)>, StorageError> {
    let mut fresh = Vec::new();
    reader.each_encoded_block(first, last, |bytes| {
        if let Ok((header, _)) = Header::decode_start(bytes)
            && now.ms_since(header.timestamp) <= NEWS_MS
        {
            fresh.push((header.hash(), bytes.to_vec()));
        }
        true
    })?;
    Ok(fresh)
}

/// Pushes every transaction that arrives in the mempool, until `stop` says true.
pub(super) async fn transactions(
    mut arrivals: broadcast::Receiver<Pending>,
    recent: Arc<Recent>,
    commands: Commands,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let arrival = tokio::select! {
            arrival = arrivals.recv() => arrival,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        match arrival {
            Ok(pending) => {
                let publish = Command::Publish(Topic::Transactions, pending.transaction.to_bytes());
                if recent.insert(pending.hash, Way::Out, Instant::now()) && commands.tell(publish).await.is_err() {
                    return;
                }
            }
            // They are handed to peers directly, like those that wait since before the start.
            Err(RecvError::Lagged(missed)) => tracing::debug!(missed, "transactions came faster than they were pushed"),
            Err(RecvError::Closed) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::LedgerOptions;
    use crate::sample::Sample;

    #[tokio::test]
    async fn only_young_blocks_are_news() {
        let dir = tempfile::tempdir().unwrap();
        let mut sample = Sample::new(1, 3);
        let options = LedgerOptions::new(dir.path().join("chain.db"), (**sample.genesis()).clone());
        let ledger = Ledger::open(options, Vec::new()).unwrap();
        let blocks = sample.blocks(40, 1);
        for block in crate::chain::verify::verify_all(blocks.clone(), ledger.genesis()) {
            ledger.import(vec![block.unwrap()]).await.pop().unwrap().unwrap();
        }
        let newest = blocks[39].header.timestamp;
        let at = |now: Time| {
            let hashes = ledger.storage().read(|reader| news(reader, 1, 40, now)).unwrap();
            hashes.into_iter().map(|(hash, _)| hash).collect::<Vec<_>>()
        };
        // Two seconds from block to block.
        let young: Vec<_> = blocks[24..].iter().map(|block| block.hash()).collect();
        assert_eq!(at(newest), young);
        assert_eq!(at(newest.plus_ms(NEWS_MS)), young[15..]);
        assert!(at(newest.plus_ms(NEWS_MS + 1)).is_empty());
        ledger.stop();
    }
}
