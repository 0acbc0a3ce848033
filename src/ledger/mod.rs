//! The ledger: the one place where blocks become part of the chain. One thread owns the write connection and the state;
//! what waits when it starts a transaction goes into one commit, so a catch-up costs one commit for thousands of blocks
//! and a single block is not kept waiting.
//!
//! [`thread`] is that thread, [`group`] one commit of it, [`extend`] how a block gets in, [`produce`] how one is made,
//! [`switch`] how the chain moves to another branch, and [`fork`] what it says of that; [`rebuild`] makes the accounts anew.

mod alone;
mod clock;
mod extend;
mod fork;
mod group;
mod produce;
mod switch;
mod thread;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::chain::{
    Address, BlockError, Genesis, Hash, Head, Height, SecretKey, State, Time, Transaction, TransactionError,
    VerifiedBlock, fork_choice,
};
use crate::storage::{INDEX_RECENT_MAX, Storage, StorageError, TakenBlock, Writer};
use fork::Forks;
use thread::{Job, QUEUE_MAX, Stats, Thread};

pub use clock::Clock;
pub use fork::{Equivocation, Reach, Reorg, SwitchError};

/// The chain of this node. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    genesis: Arc<Genesis>,
    genesis_hash: Hash,
    max_reorg_depth: u64,
    clock: Clock,
    storage: Storage,
    jobs: mpsc::Sender<Job>,
    head: watch::Receiver<Head>,
    stats: Arc<Stats>,
    forks: Arc<Forks>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// How a ledger is opened.
pub struct LedgerOptions {
    /// The database file.
    pub path: PathBuf,
    /// The chain's parameters.
    pub genesis: Genesis,
    /// Blocks in one commit at most.
    pub group_blocks_max: usize,
    /// Transactions in one commit at most; a group ends after the block that reaches it.
    pub group_transactions_max: usize,
    /// Rows in the short table of each index at most.
    pub index_recent_max: u64,
    /// Blocks that a switch to another branch may take back, at most 1,024: so many can be undone.
    pub max_reorg_depth: u64,
    /// What says how far ahead of now a block is.
    pub clock: Clock,
}

/// Follows the chain from inside its transactions: what it writes is committed with the block, or not at all.
pub trait BlockHook: Send {
    /// Called on the ledger's thread for every block, in order, after its accounts changed. An error takes back the whole
    /// commit; then `rolled_back` is called.
    fn on_block(&mut self, writer: &Writer<'_>, block: &VerifiedBlock, state: &State) -> Result<(), StorageError>;

    /// Called on the ledger's thread for every block that is taken back in a switch to another branch, the newest first,
    /// before the blocks of the other branch come; the database has neither it nor its accounts any more. What must not
    /// outlive the block is taken back here.
    fn on_undone(&mut self, writer: &Writer<'_>, block: &TakenBlock) -> Result<(), StorageError>;

    /// Called once at the end of a switch that took blocks back, before its commit.
    fn on_switched(&mut self, switched: &Switched<'_>) -> Result<(), StorageError> {
        let _ = switched;
        Ok(())
    }

    /// Called when a snapshot has taken the place of a chain without blocks, before its commit: the accounts are `state`'s
    /// now, and no block says how they came to be.
    fn on_snapshot(&mut self, writer: &Writer<'_>, state: &State) -> Result<(), StorageError> {
        let _ = (writer, state);
        Ok(())
    }

    /// What was written since the last call is durable.
    fn committed(&mut self) {}

    /// What was written since the last call is gone.
    fn rolled_back(&mut self) {}
}

/// A switch that is about to be committed.
pub struct Switched<'a> {
    /// Writes in its transaction.
    pub writer: &'a Writer<'a>,
    /// The accounts after it.
    pub state: &'a State,
    /// The chain's parameters.
    pub genesis: &'a Genesis,
    /// From where to where.
    pub reorg: &'a Reorg,
}

/// What became of a block that is on the chain now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imported {
    /// It is the new head, or was until the next one came.
    Extended,
    /// It was there before.
    Known,
    /// It is the new head in the place of another block, which lost to it. See [`Ledger::offer`].
    Reorged,
}

/// Why a block did not become part of the chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// It breaks a rule.
    #[error(transparent)]
    Invalid(#[from] BlockError),
    /// Another block has its place.
    #[error("field `height`: block {height} is here with hash {ours}, got {theirs}")]
    Conflict {
        /// Where.
        height: Height,
        /// The block that is here.
        ours: Hash,
        /// The one that came.
        theirs: Hash,
    },
    /// Blocks between the head and it are missing.
    #[error("field `height`: the head is {head}, got {got}; the blocks between are missing")]
    Gap {
        /// Ours.
        head: Height,
        /// Its.
        got: Height,
    },
    /// The database failed; nothing of this commit is stored.
    #[error("{0}")]
    Storage(String),
    /// The ledger has stopped.
    #[error("the ledger has stopped")]
    Stopped,
}

/// What a producer hands in.
pub struct ProduceRequest {
    /// Transactions in the order they should be tried, with their hashes.
    pub candidates: Vec<(Transaction, Hash)>,
    /// The authority's key.
    pub key: SecretKey,
    /// The clock.
    pub now: Time,
    /// Whether to make a block when no transaction can happen.
    pub allow_empty: bool,
}

/// What became of it.
#[derive(Clone, Debug, Default)]
pub struct Produced {
    /// The new block's head; none if there was nothing to put into one.
    pub head: Option<Head>,
    /// Transactions that cannot happen, with the reason. None of them kept another out.
    pub dropped: Vec<(Hash, TransactionError)>,
}

/// Why no block was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProduceError {
    /// Another authority's turn.
    #[error("it is the turn of {0}")]
    NotOurTurn(Address),
    /// A slot that has its block, or for which this node has signed one already, even if that is not on the chain any
    /// more: where authorities take turns, nobody signs two blocks for one slot.
    #[error("slot {0} has been used")]
    SlotUsed(u64),
    /// The block would break a rule: the clock is behind the head, for one.
    #[error(transparent)]
    Invalid(#[from] BlockError),
    /// The database failed.
    #[error("{0}")]
    Storage(String),
    /// The ledger has stopped.
    #[error("the ledger has stopped")]
    Stopped,
}

/// What the ledger has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ImportStats {
    /// Blocks added.
    pub blocks: u64,
    /// Transactions in them.
    pub transactions: u64,
    /// Database commits.
    pub commits: u64,
    /// When the last block was added; zero before the first.
    pub last_import: Time,
    /// Commits that failed.
    pub failed_commits: u64,
    /// Whether the last one did.
    pub is_failing: bool,
    /// Switches to another branch that took blocks back.
    pub reorgs: u64,
    /// Blocks that they took back.
    pub blocks_undone: u64,
    /// Better branches that were refused, since they left ours too deep.
    pub reorgs_refused: u64,
    /// Times that an authority was seen to have signed two blocks for one height.
    pub equivocations: u64,
}

impl LedgerOptions {
    /// The usual sizes of a commit: about 10,000 transactions, beyond which larger ones gain little. Reorgs of up to 256
    /// blocks.
    pub fn new(path: PathBuf, genesis: Genesis) -> Self {
        Self {
            path,
            genesis,
            group_blocks_max: 8_000,
            group_transactions_max: 10_000,
            index_recent_max: INDEX_RECENT_MAX,
            max_reorg_depth: 256,
            clock: Clock::default(),
        }
    }
}

impl Ledger {
    /// Opens the database, makes the genesis block if it is new, rebuilds the state and checks it against the head's
    /// root. Errors: the file is another chain's, in use, damaged, or its accounts do not make the head's root.
    pub fn open(options: LedgerOptions, hooks: Vec<Box<dyn BlockHook>>) -> Result<Self, StorageError> {
        let (thread, storage) = Thread::open(options, hooks)?;
        let (genesis, genesis_hash) = (Arc::clone(&thread.genesis), thread.genesis_hash);
        let (max_reorg_depth, clock) = (thread.max_reorg_depth, thread.clock.clone());
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let (sender, head) = watch::channel(thread.head.clone());
        let (stats, forks) = (Arc::clone(&thread.stats), Arc::clone(&thread.forks));
        let handle = std::thread::Builder::new()
            .name("tenon-ledger".into())
            .spawn(move || thread.run(queue, &sender))
            .map_err(|error| StorageError::Io { path: "the ledger's thread".into(), error })?;
        let thread = Arc::new(Mutex::new(Some(handle)));
        Ok(Self { genesis, genesis_hash, max_reorg_depth, clock, storage, jobs, head, stats, forks, thread })
    }

    /// The chain's parameters.
    pub fn genesis(&self) -> &Arc<Genesis> {
        &self.genesis
    }

    /// The hash of block 0, which names the chain.
    pub fn genesis_hash(&self) -> Hash {
        self.genesis_hash
    }

    /// Blocks that a switch with [`Reach::Limited`] may take back.
    pub fn max_reorg_depth(&self) -> u64 {
        self.max_reorg_depth
    }

    /// What tells the time here.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The committed chain, for reading.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The committed head, without I/O.
    pub fn head(&self) -> Head {
        self.head.borrow().clone()
    }

    /// The committed head's height, for those who ask at every request.
    pub fn height(&self) -> Height {
        self.head.borrow().height
    }

    /// Changes with every commit.
    pub fn watch(&self) -> watch::Receiver<Head> {
        self.head.clone()
    }

    /// What it has done so far.
    pub fn import_stats(&self) -> ImportStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ImportStats {
            blocks: load(&self.stats.blocks),
            transactions: load(&self.stats.transactions),
            commits: load(&self.stats.commits),
            last_import: Time(load(&self.stats.last_import)),
            failed_commits: load(&self.stats.failed_commits),
            is_failing: self.stats.is_failing.load(Ordering::Relaxed),
            reorgs: load(&self.stats.reorgs),
            blocks_undone: load(&self.stats.blocks_undone),
            reorgs_refused: load(&self.stats.reorgs_refused),
            equivocations: load(&self.stats.equivocations),
        }
    }

    /// How many jobs wait for the ledger's thread, and how many may before their callers wait too.
    pub fn queue(&self) -> (usize, usize) {
        (QUEUE_MAX - self.jobs.capacity(), QUEUE_MAX)
    }

    /// Adds blocks, in order; answers each, once all are durable. After one that fails the following ones still get their
    /// answers (as a rule: a gap).
    pub async fn import(&self, blocks: Vec<VerifiedBlock>) -> Vec<Result<Imported, ImportError>> {
        let count = blocks.len();
        let (answer, answered) = oneshot::channel();
        if self.jobs.send(Job::Import { blocks, answer }).await.is_err() {
            return vec![Err(ImportError::Stopped); count];
        }
        answered.await.unwrap_or_else(|_| vec![Err(ImportError::Stopped); count])
    }

    /// Adds one block that came by itself, handed in or announced: on top of the head, or in the place of the head where it
    /// is that one's rival on the same parent and wins by [`crate::chain::fork_choice`].
    pub async fn offer(&self, block: VerifiedBlock) -> Result<Imported, ImportError> {
        let rival = block.clone();
        let answer = self.import(vec![block]).await.pop().expect("one block in, one answer out");
        let Err(ImportError::Conflict { height, ours, theirs }) = answer else { return answer };
        if !fork_choice::prefers(self.head().place(), (height, theirs)) {
            return answer;
        }
        match self.switch_branch(vec![rival], Reach::Limited).await {
            Ok(reorg) if reorg.undone == 0 => Ok(Imported::Extended),
            Ok(_) => Ok(Imported::Reorged),
            Err(SwitchError::Invalid { error, .. }) => Err(ImportError::Invalid(error)),
            Err(SwitchError::Storage(error)) => Err(ImportError::Storage(error)),
            Err(SwitchError::Stopped) => Err(ImportError::Stopped),
            // The head has moved on, or the two have parted further down: one block does not show that it is better.
            Err(_) => Err(ImportError::Conflict { height, ours, theirs }),
        }
    }

    /// Moves the chain to another branch, if it is the better one by [`crate::chain::fork_choice`]: our blocks above its
    /// start are taken back and `branch`, in order, is put in their place, in one commit. It begins on a block of ours;
    /// blocks at its start that are ours already are passed over. One that only extends the head takes nothing back.
    ///
    /// Errors: why it was not done; then the chain is as it was, to the row. Takes as long as importing both branches;
    /// the blocks of `branch` are in memory together.
    pub async fn switch_branch(&self, branch: Vec<VerifiedBlock>, reach: Reach) -> Result<Reorg, SwitchError> {
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job::Switch { branch, reach, answer }).await.map_err(|_| SwitchError::Stopped)?;
        answered.await.unwrap_or(Err(SwitchError::Stopped))
    }

    /// Every switch that takes blocks back, from now on, after its commit. Who is more than 64 behind misses some.
    pub fn reorgs(&self) -> broadcast::Receiver<Reorg> {
        self.forks.reorgs.subscribe()
    }

    /// The last such switch since the ledger was opened.
    pub fn last_reorg(&self) -> Option<Reorg> {
        self.forks.last_reorg()
    }

    /// Authorities that were seen to sign two blocks for one height since the ledger was opened, the newest last; each
    /// height of an authority once, at most 64.
    pub fn equivocations(&self) -> Vec<Equivocation> {
        self.forks.equivocations()
    }

    /// Makes a block of those candidates that can happen, and adds it.
    pub async fn produce(&self, request: ProduceRequest) -> Result<Produced, ProduceError> {
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job::Produce { request: Box::new(request), answer }).await.map_err(|_| ProduceError::Stopped)?;
        answered.await.unwrap_or(Err(ProduceError::Stopped))
    }

    /// Writes something that is not a block, in the next commit; answers once it is durable.
    pub async fn write(
        &self,
        write: impl FnOnce(&Writer<'_>) -> Result<(), StorageError> + Send + 'static,
    ) -> Result<(), StorageError> {
        let stopped = || StorageError::Inconsistent("the ledger has stopped".into());
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job::Write { write: Box::new(write), answer }).await.map_err(|_| stopped())?;
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Ends the thread after what is queued, and closes the database. Blocks until then; the second call does nothing.
    pub fn stop(&self) {
        let handle = self.thread.lock().expect("nobody panics while holding it").take();
        if let Some(handle) = handle {
            // The queue may be full; the thread empties it.
            let mut stop = Job::Stop;
            while let Err(mpsc::error::TrySendError::Full(back)) = self.jobs.try_send(stop) {
                stop = back;
                std::thread::yield_now();
            }
            if handle.join().is_err() {
                tracing::error!("the ledger's thread panicked");
            }
        }
    }
}
