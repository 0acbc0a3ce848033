//! The way of a reply onto the chain, exactly once.
//!
//! A reply is signed and put into the outbox in the transaction of the block that caused it. From then on one of two
//! things happens to it, each in the transaction of the block that decides it: a block holds it, and it leaves the outbox;
//! or the account's nonce passes it (the owner used the wallet elsewhere), so no block can ever hold it, and it is signed
//! again with a nonce of its own. A block that is taken back puts it into the outbox again. Handing it to the mempool may
//! be repeated as often as one likes, and is: after every block and after every start.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::watch;

use super::Agents;
use crate::chain::{Hash, SecretKey, Time, Transaction, VerifiedBlock};
use crate::mempool::{Mempool, SubmitError, TransactionStatus};
use crate::storage::{AgentId, OutboxRow, StorageError, UNDO_DEPTH, Writer};

/// How often what no mempool took is tried again while no block comes.
const RETRY: Duration = Duration::from_secs(5);

/// What counts against the budget for one message: its fee, but at least 1, so that a chain without fees has bounds too.
pub(super) fn cost(fee: u64) -> u64 {
    fee.max(1)
}

/// One agent's replies that no block holds yet, oldest first.
#[derive(Default)]
pub(super) struct Outbox {
    rows: Vec<Outgoing>,
}

struct Outgoing {
    id: i64,
    hash: Hash,
    transaction: Transaction,
}

/// Whose outbox it is, and where it stands in the chain.
pub(super) struct Sender<'a> {
    pub id: AgentId,
    pub key: &'a SecretKey,
    pub chain_id: &'a str,
    /// The account's nonce after the block at hand.
    pub nonce: u64,
    /// What was charged up to here does not count any more.
    pub forget: Time,
}

impl Outbox {
    pub fn new(rows: Vec<OutboxRow>, chain_id: &str) -> Self {
        let row = |OutboxRow { id, transaction }| Outgoing { id, hash: transaction.hash(chain_id), transaction };
        Self { rows: rows.into_iter().map(row).collect() }
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// What all of it will cost.
    pub fn cost(&self) -> u64 {
        self.rows.iter().fold(0, |sum, row| sum.saturating_add(cost(row.transaction.fee)))
    }

    /// The nonce of the next transaction: the account's, or the one after the highest that waits here. None where the
    /// account has used them up.
    fn next_nonce(&self, account: u64) -> Option<u64> {
        let waiting = self.rows.iter().map(|row| row.transaction.nonce).filter(|&nonce| nonce >= account).max();
        waiting.map_or(Some(account), |nonce| nonce.checked_add(1)).filter(|&nonce| nonce < u64::MAX)
    }

    /// Signs a transaction and puts it in, if the account has a nonce left.
    pub fn push(
        &mut self,
        writer: &Writer<'_>,
        sender: &Sender<'_>,
        unsigned: Transaction,
    ) -> Result<bool, StorageError> {
        let Some(nonce) = self.next_nonce(sender.nonce) else { return Ok(false) };
        let transaction = Transaction { nonce, ..unsigned }.signed(sender.chain_id, sender.key);
        let id = writer.put_outgoing(sender.id, &transaction)?;
        self.rows.push(Outgoing { id, hash: transaction.hash(sender.chain_id), transaction });
        Ok(true)
    }

    /// Takes out what `block` holds, and signs anew what no block can hold any more. To be called when the account's
    /// nonce may have moved.
    pub fn settle(
        &mut self,
        writer: &Writer<'_>,
        sender: &Sender<'_>,
        block: &VerifiedBlock,
    ) -> Result<(), StorageError> {
        let rows = std::mem::take(&mut self.rows);
        let mut passed = Vec::new();
        for row in rows {
            let included = if block.transaction_hashes().contains(&row.hash) {
                Some((block.height(), block.block().header.timestamp))
            } else if row.transaction.nonce < sender.nonce {
                // It may be in a block that came while this agent was not configured.
                writer.reader().transaction(&row.hash)?.map(|stored| (stored.height, stored.timestamp))
            } else {
                self.rows.push(row);
                continue;
            };
            match included {
                Some((height, at)) => {
                    writer.settle_outgoing(row.id, height)?;
                    writer.forget_outgoing(sender.id, block.height().saturating_sub(UNDO_DEPTH))?;
                    writer.charge(sender.id, at, cost(row.transaction.fee), sender.forget)?;
                }
                None => passed.push(row),
            }
        }
        for row in passed {
            let transaction = match self.next_nonce(sender.nonce) {
                Some(nonce) => Transaction { nonce, ..row.transaction }.signed(sender.chain_id, sender.key),
                // No transaction of this account can ever follow; the row stays as a witness.
                None => row.transaction,
            };
            writer.replace_outgoing(row.id, &transaction)?;
            self.rows.push(Outgoing { id: row.id, hash: transaction.hash(sender.chain_id), transaction });
        }
        self.rows.sort_by_key(|row| row.id);
        Ok(())
    }
}

/// Hands what is in the outboxes to the mempool, whenever the chain moves or something new is there, until `stop` says
/// true. Whatever happens to it there, it is tried again until a block holds it.
pub async fn run(agents: Agents, mempool: Mempool, mut stop: watch::Receiver<bool>) {
    let mut waiting = agents.watch_outbox();
    let mut head = agents.ledger().watch();
    let mut complaints = HashMap::new();
    loop {
        let some = *waiting.borrow_and_update() > 0;
        head.mark_unchanged();
        if some {
            submit(&agents, &mempool, &mut complaints).await;
        } else {
            complaints.clear();
        }
        tokio::select! {
            changed = waiting.changed() => if changed.is_err() { return },
            changed = head.changed(), if some => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if some => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// One round over all outboxes, each in the order of its nonces. `complaints` has what was logged already.
async fn submit(agents: &Agents, mempool: &Mempool, complaints: &mut HashMap<Hash, String>) {
    let rows = match agents.outgoing().await {
        Ok(rows) => rows,
        Err(error) => return tracing::error!(%error, "the agents' outbox cannot be read"),
    };
    let mut refused = HashMap::new();
    for (agent, hash, transaction) in rows {
        if matches!(mempool.get(&hash), Some(TransactionStatus::Pending(_))) {
            continue;
        }
        match mempool.submit_transaction(transaction).await {
            // The head has moved on since the outbox was read.
            Ok(_) | Err(SubmitError::Confirmed { .. }) => {}
            Err(error) => {
                let reason = error.to_string();
                if complaints.get(&hash) != Some(&reason) {
                    tracing::warn!(agent, %hash, reason, "a reply waits: the mempool does not take it yet");
                }
                refused.insert(hash, reason);
            }
        }
    }
    *complaints = refused;
}
