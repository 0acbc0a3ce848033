//! The mempool's part in every commit: what a block holds waits no more, and what a reorg takes off the chain waits again.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Pending, Shared};
use crate::chain::execute::Execution;
use crate::chain::{Hash, State, Transaction, TransactionError, VerifiedBlock};
use crate::ledger::{BlockHook, Switched};
use crate::storage::{StorageError, TakenBlock, Writer};

/// The mempool's eye on the chain. Goes into [`crate::ledger::Ledger::open`] before the mempool itself.
pub struct MempoolHook {
    shared: Arc<Shared>,
    /// Seen in blocks that are not committed yet.
    included: Vec<Hash>,
    /// Passed by the nonces of such blocks, with the reason.
    stale: Vec<(Hash, String)>,
    /// Of a switch that is not committed yet.
    switch: Switch,
}

/// What a switch takes off the chain, and what becomes of it.
#[derive(Default)]
struct Switch {
    /// Transactions of the blocks that were taken back, the last of the chain first.
    undone: Vec<(Hash, Transaction)>,
    /// Transactions of the other branch.
    held: HashSet<Hash>,
    /// Those that wait again.
    returned: Vec<Hash>,
    /// Those that cannot happen any more, with the reason.
    lost: Vec<(Hash, String)>,
}

/// Connects a mempool with the hook that the ledger calls.
pub struct MempoolHandle(pub(super) Arc<Shared>);

impl MempoolHook {
    /// A hook for a ledger about to be opened.
    #[expect(clippy::new_without_default, reason = "a hook that no ledger knows would be a mistake worth seeing")]
    pub fn new() -> Self {
        Self { shared: Arc::default(), included: Vec::new(), stale: Vec::new(), switch: Switch::default() }
    }

    /// What [`super::Mempool::open`] needs of it, once the ledger has it.
    pub fn handle(&self) -> MempoolHandle {
        MempoolHandle(Arc::clone(&self.shared))
    }
}

impl BlockHook for MempoolHook {
    fn on_block(&mut self, writer: &Writer<'_>, block: &VerifiedBlock, state: &State) -> Result<(), StorageError> {
        if !self.switch.undone.is_empty() {
            self.switch.held.extend(block.transaction_hashes());
        }
        let pool = self.shared.pool();
        if pool.by_hash.is_empty() {
            return Ok(());
        }
        for (hash, transaction) in block.transaction_hashes().iter().zip(&block.block().transactions) {
            if pool.by_hash.contains_key(hash) {
                self.included.push(*hash);
                writer.forget_transaction(hash)?;
            }
            let from = transaction.from();
            let Some(waiting) = pool.by_sender.get(&from) else { continue };
            let lowest = state.account(&from).unwrap_or_default().nonce;
            for (&nonce, other) in waiting.range(..lowest).filter(|(_, other)| !self.included.contains(other)) {
                let reason = TransactionError::NonceTooLow { from, got: nonce, lowest };
                self.stale.push((*other, reason.to_string()));
                writer.forget_transaction(other)?;
            }
        }
        Ok(())
    }

    fn on_undone(&mut self, _: &Writer<'_>, block: &TakenBlock) -> Result<(), StorageError> {
        let transactions = block.transaction_hashes.iter().zip(&block.block.transactions).rev();
        self.switch.undone.extend(transactions.map(|(hash, transaction)| (*hash, transaction.clone())));
        Ok(())
    }

    /// Decides on each transaction that was taken off the chain, in the order in which it happened there. What waits
    /// again is in the pool before the commit: nothing else can take its nonce in between.
    fn on_switched(&mut self, switched: &Switched<'_>) -> Result<(), StorageError> {
        let Switch { undone, held, returned, lost } = &mut self.switch;
        let mut execution = Execution::new(switched.state, switched.genesis);
        let mut pool = self.shared.pool();
        let leaving: HashSet<Hash> =
            self.included.iter().chain(self.stale.iter().map(|(hash, _)| hash)).copied().collect();
        let received = switched.reorg.at;
        for (hash, transaction) in undone.drain(..).rev() {
            if held.contains(&hash) {
                continue;
            }
            let (from, nonce) = (transaction.from(), transaction.nonce);
            let waiting = pool.by_sender.get(&from);
            let fits = if pool.by_hash.len() >= pool.config.transactions_max + leaving.len() {
                Err(format!("{} transactions wait already", pool.config.transactions_max))
            } else if waiting.is_some_and(|waiting| waiting.len() >= pool.config.per_sender_max) {
                Err(format!("{} transactions of its sender wait already", pool.config.per_sender_max))
            } else if waiting.and_then(|waiting| waiting.get(&nonce)).is_some_and(|other| !leaving.contains(other)) {
                Err(format!("another transaction of its sender waits with nonce {nonce}"))
            } else {
                execution.apply(&transaction).map_err(|error| error.to_string())
            };
            if let Err(reason) = fits {
                lost.push((hash, format!("a reorg took back the block that had it, and now: {reason}")));
                continue;
            }
            let pending = Pending { transaction, hash, received };
            switched.writer.keep_transaction(&pending)?;
            pool.insert(pending);
            returned.push(hash);
        }
        Ok(())
    }

    fn on_snapshot(&mut self, writer: &Writer<'_>, state: &State) -> Result<(), StorageError> {
        for (&from, waiting) in &self.shared.pool().by_sender {
            let lowest = state.account(&from).unwrap_or_default().nonce;
            for (&nonce, hash) in waiting.range(..lowest) {
                let reason = TransactionError::NonceTooLow { from, got: nonce, lowest };
                self.stale.push((*hash, reason.to_string()));
                writer.forget_transaction(hash)?;
            }
        }
        Ok(())
    }

    fn committed(&mut self) {
        let Switch { returned, lost, .. } = std::mem::take(&mut self.switch);
        if self.included.is_empty() && self.stale.is_empty() && returned.is_empty() && lost.is_empty() {
            return;
        }
        {
            let mut pool = self.shared.pool();
            let now = pool.clock.now();
            for hash in self.included.drain(..) {
                pool.remove(&hash);
            }
            for (hash, reason) in self.stale.drain(..) {
                pool.drop_with(&hash, reason, now);
                self.shared.changes.tell(hash);
            }
            for (hash, reason) in lost {
                tracing::info!(%hash, reason, "transaction dropped");
                pool.note_dropped(hash, reason, now);
                self.shared.changes.tell(hash);
            }
        }
        returned.iter().for_each(|hash| self.shared.changes.tell(*hash));
        if !returned.is_empty() {
            self.shared.added.send_modify(|count| *count += returned.len() as u64);
        }
    }

    fn rolled_back(&mut self) {
        self.included.clear();
        self.stale.clear();
        let mut pool = self.shared.pool();
        for hash in std::mem::take(&mut self.switch).returned {
            pool.remove(&hash);
        }
    }
}
