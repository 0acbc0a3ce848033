//! The waiting transactions in memory: by hash, by sender and nonce, and the reasons of those that were dropped.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::ops::Bound;

use super::{MempoolConfig, Pending};
use crate::chain::{Address, Hash, Time};
use crate::ledger::Clock;

/// All that waits, and what was dropped; the clock is the ledger's, once that is open.
#[derive(Default)]
pub(super) struct Pool {
    pub config: MempoolConfig,
    pub clock: Clock,
    pub by_hash: HashMap<Hash, Pending>,
    pub by_sender: HashMap<Address, BTreeMap<u64, Hash>>,
    pub dropped: HashMap<Hash, (String, Time)>,
    dropped_order: VecDeque<Hash>,
}

impl Pool {
    pub fn insert(&mut self, pending: Pending) {
        let sender = pending.transaction.from();
        self.by_sender.entry(sender).or_default().insert(pending.transaction.nonce, pending.hash);
        self.dropped.remove(&pending.hash);
        self.by_hash.insert(pending.hash, pending);
    }

    pub fn remove(&mut self, hash: &Hash) -> Option<Pending> {
        let pending = self.by_hash.remove(hash)?;
        let sender = pending.transaction.from();
        if let Some(waiting) = self.by_sender.get_mut(&sender) {
            if waiting.get(&pending.transaction.nonce) == Some(hash) {
                waiting.remove(&pending.transaction.nonce);
            }
            if waiting.is_empty() {
                self.by_sender.remove(&sender);
            }
        }
        Some(pending)
    }

    /// Takes one out that cannot enter the chain.
    pub fn drop_with(&mut self, hash: &Hash, reason: String, at: Time) {
        if self.remove(hash).is_some() {
            self.note_dropped(*hash, reason, at);
        }
    }

    /// Keeps the reason why a transaction waits no more, in the place of the oldest one if there are too many.
    pub fn note_dropped(&mut self, hash: Hash, reason: String, at: Time) {
        if self.dropped.insert(hash, (reason, at)).is_none() {
            self.dropped_order.push_back(hash);
        }
        while self.dropped_order.len() > self.config.dropped_max {
            let oldest = self.dropped_order.pop_front().expect("longer than the most, which is 0 or more");
            self.dropped.remove(&oldest);
        }
    }

    /// All by fee, highest first, then age; but of one sender in the order of nonces, or the later would void the earlier.
    pub fn ordered(&self, limit: usize) -> Vec<Pending> {
        let entry = |sender: Address, above: Bound<u64>| {
            let (nonce, hash) = self.by_sender[&sender].range((above, Bound::Unbounded)).next()?;
            let pending = &self.by_hash[hash];
            Some((pending.transaction.fee, Reverse((pending.received, *hash)), sender, *nonce))
        };
        let mut heads: BinaryHeap<_> =
            self.by_sender.keys().filter_map(|sender| entry(*sender, Bound::Unbounded)).collect();
        let mut ordered = Vec::new();
        while ordered.len() < limit
            && let Some((_, Reverse((_, hash)), sender, nonce)) = heads.pop()
        {
            ordered.push(self.by_hash[&hash].clone());
            heads.extend(entry(sender, Bound::Excluded(nonce)));
        }
        ordered
    }
}
