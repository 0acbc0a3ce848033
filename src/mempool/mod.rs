//! Transactions that wait for a block. One that was accepted is kept on disk until it is in a block or is dropped, and a
//! dropped one keeps its reason for a while. [`hook`] is its part in the ledger's commits, [`pool`] what it has in memory.

mod hook;
mod pool;

use std::cmp::Reverse;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{broadcast, watch};

use crate::chain::{
    Address, Hash, Height, NonceRule, PAYLOAD_MAX_BYTES, Submission, SubmissionError, Time, Transaction,
    TransactionError, format, verify,
};
use crate::ledger::Ledger;
use crate::storage::{KeptTransaction, StorageError, StoredAccount};
use pool::Pool;

pub use hook::{MempoolHandle, MempoolHook};

/// The waiting transactions; cheap to clone.
#[derive(Clone)]
pub struct Mempool {
    ledger: Ledger,
    shared: Arc<Shared>,
    config: MempoolConfig,
}

/// How much may wait, and how long.
#[derive(Clone, Debug)]
pub struct MempoolConfig {
    /// Transactions at most.
    pub transactions_max: usize,
    /// Of one sender at most.
    pub per_sender_max: usize,
    /// How long one waits before it is dropped, in milliseconds.
    pub expire_ms: u64,
    /// Reasons of dropped ones that are kept at most.
    pub dropped_max: usize,
}

/// A waiting transaction.
pub type Pending = KeptTransaction;

/// What became of a transaction that is in no block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransactionStatus {
    /// It waits.
    Pending(Pending),
    /// It will not enter the chain.
    Dropped {
        /// Why.
        reason: String,
        /// Since when.
        at: Time,
    },
}

/// Why a transaction was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// It is not well formed.
    #[error(transparent)]
    Invalid(#[from] SubmissionError),
    /// It is for another chain.
    #[error("field `chain_id`: expected `{expected}`, got `{got}`")]
    WrongChain {
        /// Ours.
        expected: String,
        /// Its.
        got: String,
    },
    /// It is not its sender's.
    #[error("field `signature`: not the sender's over this transaction ({0})")]
    Signature(&'static str),
    /// It cannot happen.
    #[error("{field}: {error}", field = field_of(.0), error = .0)]
    Transaction(#[from] TransactionError),
    /// Its payload is too long.
    #[error("field `payload`: {got} bytes, at most {max} are allowed")]
    Payload {
        /// Its length.
        got: usize,
        /// How long it may be.
        max: usize,
    },
    /// It is on the chain already.
    #[error("transaction {hash} is confirmed already, in block {height}")]
    Confirmed {
        /// Its hash.
        hash: Hash,
        /// Its block.
        height: Height,
    },
    /// Another one of this sender waits with this nonce.
    #[error(
        "field `nonce`: transaction {pending} of the same sender waits with nonce {nonce}; a higher fee replaces it"
    )]
    NonceTaken {
        /// Whose.
        pending: Hash,
        /// Which.
        nonce: u64,
    },
    /// Nothing more of this sender may wait.
    #[error("field `from`: {max} transactions of this sender wait already")]
    SenderFull {
        /// How many may.
        max: usize,
    },
    /// Nothing more may wait.
    #[error("{max} transactions wait already and none pays less than this one")]
    Full {
        /// How many may.
        max: usize,
    },
    /// The database failed.
    #[error("{0}")]
    Storage(#[from] StorageError),
}

fn field_of(error: &TransactionError) -> &'static str {
    match error {
        TransactionError::NonceTooLow { .. }
        | TransactionError::NonceNotNext { .. }
        | TransactionError::NonceExhausted(_) => "field `nonce`",
        TransactionError::FeeTooLow { .. } => "field `fee`",
        TransactionError::MessageAmount(_) | TransactionError::Insufficient { .. } | TransactionError::Overflow(_) => {
            "field `amount`"
        }
    }
}

impl SubmitError {
    /// Whether the transaction is wrong whatever the chain's state is: whoever has looked at it does not hand it on.
    pub fn is_for_good(&self) -> bool {
        match self {
            Self::Invalid(_) | Self::WrongChain { .. } | Self::Signature(_) | Self::Payload { .. } => true,
            Self::Transaction(error) => matches!(
                error,
                TransactionError::FeeTooLow { .. }
                    | TransactionError::MessageAmount(_)
                    | TransactionError::NonceExhausted(_)
            ),
            Self::Confirmed { .. }
            | Self::NonceTaken { .. }
            | Self::SenderFull { .. }
            | Self::Full { .. }
            | Self::Storage(_) => false,
        }
    }
}

/// Arrivals that a listener may lag behind before it misses some.
const ARRIVALS_MAX: usize = 4_096;

/// The part that the ledger calls and the pool share.
struct Shared {
    pool: Mutex<Pool>,
    added: watch::Sender<u64>,
    arrivals: broadcast::Sender<Pending>,
    changes: Changes,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            pool: Mutex::default(),
            added: watch::Sender::default(),
            arrivals: broadcast::Sender::new(ARRIVALS_MAX),
            changes: Changes::default(),
        }
    }
}

/// Says which transactions came, and which were dropped, to whoever listens.
struct Changes(broadcast::Sender<Hash>);

/// Changes that a listener may lag behind before it loses the oldest.
const CHANGES_MAX: usize = 4_096;

impl Default for Changes {
    fn default() -> Self {
        Self(broadcast::Sender::new(CHANGES_MAX))
    }
}

impl Changes {
    fn tell(&self, hash: Hash) {
        // An error only says that nobody listens.
        let _ = self.0.send(hash);
    }
}

impl Default for MempoolConfig {
    fn default() -> Self {
        Self { transactions_max: 10_000, per_sender_max: 1_000, expire_ms: 3_600_000, dropped_max: 10_000 }
    }
}

impl Shared {
    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().expect("nobody panics while holding the pool")
    }
}

impl Mempool {
    /// Opens the mempool of `ledger`, which has the hook of `handle`, with what was kept.
    pub fn open(ledger: Ledger, handle: MempoolHandle, config: MempoolConfig) -> Result<Self, StorageError> {
        let shared = handle.0;
        {
            let mut pool = shared.pool();
            (pool.config, pool.clock) = (config.clone(), ledger.clock().clone());
        }
        for kept in ledger.storage().read(|reader| reader.kept_transactions())? {
            shared.pool().insert(kept);
        }
        Ok(Self { ledger, shared, config })
    }

    /// Checks a transaction against the head and what waits, and keeps it; answers its hash. One that waits already is
    /// accepted again, to the same effect.
    pub async fn submit(&self, submission: Submission) -> Result<Hash, SubmitError> {
        let expected = &self.ledger.genesis().chain_id;
        if submission.chain_id != *expected {
            return Err(SubmitError::WrongChain { expected: expected.clone(), got: submission.chain_id });
        }
        let known = match submission.public_key {
            Some(_) => None,
            None => {
                let from = submission.from;
                let account = self.ledger.storage().read_brief(move |reader| reader.account(&from)).await?;
                account.and_then(|account| account.public_key)
            }
        };
        self.submit_transaction(submission.into_transaction(known)?).await
    }

    /// As [`Mempool::submit`], for a transaction whose chain is this one.
    pub async fn submit_transaction(&self, transaction: Transaction) -> Result<Hash, SubmitError> {
        if transaction.payload.len() > PAYLOAD_MAX_BYTES {
            return Err(SubmitError::Payload { got: transaction.payload.len(), max: PAYLOAD_MAX_BYTES });
        }
        let text = format::signing_text(&self.ledger.genesis().chain_id, &transaction);
        let hash = format::transaction_hash(&text);
        // The hash says nothing of the signature: only the very same one has been looked at.
        if self.shared.pool().by_hash.get(&hash).is_some_and(|known| known.transaction == transaction) {
            return Ok(hash);
        }
        verify::verify_transaction(&transaction, &text).map_err(SubmitError::Signature)?;
        if self.shared.pool().by_hash.contains_key(&hash) {
            return Ok(hash);
        }
        let from = transaction.from();
        let (confirmed, account) = self
            .ledger
            .storage()
            .read_brief(move |reader| Ok((reader.transaction(&hash)?, reader.account(&from)?)))
            .await?;
        if let Some(stored) = confirmed {
            return Err(SubmitError::Confirmed { hash, height: stored.height });
        }
        let pending = Pending { transaction, hash, received: self.ledger.clock().now() };
        let gone = self.admit(&pending, account)?;
        let kept = pending.clone();
        let written = self
            .ledger
            .write(move |writer| {
                gone.iter().try_for_each(|hash| writer.forget_transaction(hash))?;
                writer.keep_transaction(&kept)
            })
            .await;
        if let Err(error) = written {
            self.shared.pool().remove(&hash);
            return Err(error.into());
        }
        self.shared.added.send_modify(|count| *count += 1);
        // An error means that nobody listens.
        let _ = self.shared.arrivals.send(pending);
        self.shared.changes.tell(hash);
        Ok(hash)
    }

    /// Puts a transaction into the pool if it can happen after those of its sender that wait; answers those that it
    /// displaces.
    fn admit(&self, pending: &Pending, account: Option<StoredAccount>) -> Result<Vec<Hash>, SubmitError> {
        let genesis = self.ledger.genesis();
        let transaction = &pending.transaction;
        let (from, nonce, fee) = (transaction.from(), transaction.nonce, transaction.fee);
        let (balance, lowest) = account.map_or((0, 0), |account| (account.balance, account.nonce));
        if fee < genesis.min_fee {
            return Err(TransactionError::FeeTooLow { got: fee, min: genesis.min_fee }.into());
        }
        if transaction.kind == crate::chain::Kind::Message && transaction.amount != 0 {
            return Err(TransactionError::MessageAmount(transaction.amount).into());
        }
        if nonce < lowest {
            return Err(TransactionError::NonceTooLow { from, got: nonce, lowest }.into());
        }
        if nonce == u64::MAX {
            return Err(TransactionError::NonceExhausted(nonce).into());
        }
        let mut pool = self.shared.pool();
        let mut gone = Vec::new();
        // What this one's sender has promised already, and whether one waits in its place.
        let mut promised = 0_u64;
        if let Some(waiting) = pool.by_sender.get(&from) {
            for (other_nonce, hash) in waiting {
                let other = &pool.by_hash[hash].transaction;
                if *other_nonce != nonce {
                    promised = promised.saturating_add(other.amount).saturating_add(other.fee);
                } else if other.fee >= fee {
                    return Err(SubmitError::NonceTaken { pending: *hash, nonce });
                } else {
                    gone.push((*hash, format!("replaced by {} with a higher fee", pending.hash)));
                }
            }
            if waiting.len() >= self.config.per_sender_max && gone.is_empty() {
                return Err(SubmitError::SenderFull { max: self.config.per_sender_max });
            }
        }
        if genesis.nonce_rule == NonceRule::Sequential {
            let waiting = pool.by_sender.get(&from).map_or(0, |waiting| waiting.range(lowest..nonce).count() as u64);
            if nonce - lowest != waiting {
                return Err(TransactionError::NonceNotNext { from, got: nonce, next: lowest + waiting }.into());
            }
        }
        let needed = transaction.amount.checked_add(fee).and_then(|cost| cost.checked_add(promised));
        if needed.is_none_or(|needed| needed > balance) {
            let needed = needed.unwrap_or(u64::MAX);
            return Err(TransactionError::Insufficient { from, balance, needed }.into());
        }
        if pool.by_hash.len() >= self.config.transactions_max && gone.is_empty() {
            // The newest of those that pay least makes room, if this one pays more.
            let least = pool
                .by_hash
                .values()
                .min_by_key(|other| (other.transaction.fee, Reverse((other.received, other.hash))));
            match least {
                Some(least) if least.transaction.fee < fee => {
                    gone.push((least.hash, "the mempool was full and this paid the least".into()));
                }
                _ => return Err(SubmitError::Full { max: self.config.transactions_max }),
            }
        }
        let now = pending.received;
        let expired = |other: &&Pending| now.ms_since(other.received) > self.config.expire_ms;
        let old: Vec<Hash> = pool.by_hash.values().filter(expired).map(|other| other.hash).collect();
        gone.extend(
            old.into_iter().map(|hash| (hash, format!("no block took it within {} ms", self.config.expire_ms))),
        );
        for (hash, reason) in &gone {
            pool.drop_with(hash, reason.clone(), now);
            self.shared.changes.tell(*hash);
        }
        pool.insert(pending.clone());
        Ok(gone.into_iter().map(|(hash, _)| hash).collect())
    }

    /// Gives up on a transaction that cannot happen.
    pub async fn drop_transactions(&self, dropped: Vec<(Hash, String)>) -> Result<(), StorageError> {
        if dropped.is_empty() {
            return Ok(());
        }
        {
            let now = self.ledger.clock().now();
            let mut pool = self.shared.pool();
            for (hash, reason) in &dropped {
                tracing::info!(%hash, reason, "transaction dropped");
                pool.drop_with(hash, reason.clone(), now);
                self.shared.changes.tell(*hash);
            }
        }
        self.ledger.write(move |writer| dropped.iter().try_for_each(|(hash, _)| writer.forget_transaction(hash))).await
    }

    /// Those that wait, in the order in which a block would take them; at most `limit`.
    pub fn pending(&self, limit: usize) -> Vec<Pending> {
        self.shared.pool().ordered(limit)
    }

    /// Those of `address` that wait, by nonce.
    pub fn pending_of(&self, address: &Address) -> Vec<Pending> {
        let pool = self.shared.pool();
        let hashes = pool.by_sender.get(address).into_iter().flat_map(|waiting| waiting.values());
        hashes.map(|hash| pool.by_hash[hash].clone()).collect()
    }

    /// What became of a transaction that is in no block; none if it never came, or was dropped long ago.
    pub fn get(&self, hash: &Hash) -> Option<TransactionStatus> {
        let pool = self.shared.pool();
        let dropped = || {
            let (reason, at) = pool.dropped.get(hash)?;
            Some(TransactionStatus::Dropped { reason: reason.clone(), at: *at })
        };
        pool.by_hash.get(hash).map(|pending| TransactionStatus::Pending(pending.clone())).or_else(dropped)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.shared.pool().by_hash.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hashes of transactions that came or were dropped, from now on; [`Mempool::get`] says what became of each.
    pub fn changes(&self) -> broadcast::Receiver<Hash> {
        self.shared.changes.0.subscribe()
    }

    /// Changes whenever one was added.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.added.subscribe()
    }

    /// Every one that is added from now on. Who lags behind too far misses some; [`Mempool::pending`] has them all.
    pub fn arrivals(&self) -> broadcast::Receiver<Pending> {
        self.shared.arrivals.subscribe()
    }
}
