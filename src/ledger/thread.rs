//! The ledger's thread: opens the database, rebuilds the state, and takes jobs until it is stopped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::{mpsc, oneshot, watch};

use super::alone::Alone;
use super::fork::{Forks, Reach, Reorg, SwitchError};
use super::{BlockHook, Clock, ImportError, Imported, LedgerOptions, ProduceError, ProduceRequest, Produced};
use crate::chain::{Address, Genesis, Hash, Head, PublicKey, State, Time, VerifiedBlock, verify};
use crate::storage::{BlockRows, Storage, StorageError, UNDO_DEPTH, WriteConnection, Writer};

/// [`super::ImportStats`], as it is counted.
#[derive(Default)]
pub(super) struct Stats {
    pub blocks: AtomicU64,
    pub transactions: AtomicU64,
    pub commits: AtomicU64,
    pub last_import: AtomicU64,
    pub failed_commits: AtomicU64,
    pub is_failing: AtomicBool,
    pub reorgs: AtomicU64,
    pub blocks_undone: AtomicU64,
    pub reorgs_refused: AtomicU64,
    pub equivocations: AtomicU64,
}

impl Stats {
    /// Counts a commit that the database did not take.
    pub fn commit_failed(&self) {
        self.failed_commits.fetch_add(1, Ordering::Relaxed);
        self.is_failing.store(true, Ordering::Relaxed);
    }
}

pub(super) type Write = Box<dyn FnOnce(&Writer<'_>) -> Result<(), StorageError> + Send>;

/// What the thread is asked to do, and where the answer goes.
pub(super) enum Job {
    Import { blocks: Vec<VerifiedBlock>, answer: oneshot::Sender<Vec<Result<Imported, ImportError>>> },
    Produce { request: Box<ProduceRequest>, answer: oneshot::Sender<Result<Produced, ProduceError>> },
    Alone(Alone),
    Switch { branch: Vec<VerifiedBlock>, reach: Reach, answer: oneshot::Sender<Result<Reorg, SwitchError>> },
    Write { write: Write, answer: oneshot::Sender<Result<(), StorageError>> },
    Stop,
}

/// Jobs that wait before a caller does.
pub(super) const QUEUE_MAX: usize = 256;

/// What the ledger's thread owns.
pub(super) struct Thread {
    pub connection: WriteConnection,
    pub genesis: Arc<Genesis>,
    pub genesis_hash: Hash,
    pub state: State,
    pub head: Head,
    pub hooks: Vec<Box<dyn BlockHook>>,
    pub rows: BlockRows,
    pub group_blocks_max: usize,
    pub group_transactions_max: usize,
    pub max_reorg_depth: u64,
    pub clock: Clock,
    /// Keys that the chain knows from genesis on.
    pub known_keys: BTreeMap<Address, PublicKey>,
    /// The time of the newest block that this node has signed.
    pub signed: Option<Time>,
    pub stats: Arc<Stats>,
    pub forks: Arc<Forks>,
}

impl Thread {
    /// Opens the database, with the genesis block where it is new, and rebuilds the state. Errors: [`super::Ledger::open`]'s.
    pub fn open(options: LedgerOptions, hooks: Vec<Box<dyn BlockHook>>) -> Result<(Self, Storage), StorageError> {
        let genesis_block = verify::genesis_block(&options.genesis);
        let (connection, storage) = WriteConnection::open(&options.path, &genesis_block.hash())?;
        let mut thread = Self {
            connection,
            known_keys: options.genesis.known_keys(),
            genesis: Arc::new(options.genesis),
            genesis_hash: genesis_block.hash(),
            state: State::default(),
            head: Head::from(&genesis_block.block().header),
            hooks,
            rows: BlockRows::new(options.index_recent_max),
            group_blocks_max: options.group_blocks_max.max(1),
            group_transactions_max: options.group_transactions_max.max(1),
            max_reorg_depth: options.max_reorg_depth.min(UNDO_DEPTH),
            clock: options.clock,
            signed: storage.read(|reader| reader.signed())?,
            stats: Arc::default(),
            forks: Arc::default(),
        };
        match storage.read(|reader| reader.head())? {
            None => thread.store_genesis(&genesis_block)?,
            Some(head) => thread.load(&storage, head)?,
        }
        Ok((thread, storage))
    }

    fn store_genesis(&mut self, genesis: &VerifiedBlock) -> Result<(), StorageError> {
        let changes = self.genesis.changes();
        let writer = self.connection.begin()?;
        writer.put_block(genesis, &[], &mut self.rows)?;
        writer.put_rows(&mut self.rows)?;
        for change in &changes {
            writer.put_account(&change.address, &change.after, self.known_keys.get(&change.address))?;
        }
        self.connection.commit()?;
        self.state.apply(&changes);
        Ok(())
    }

    fn load(&mut self, storage: &Storage, head: Head) -> Result<(), StorageError> {
        let mut accounts = Vec::new();
        storage.read(|reader| reader.each_account(|address, account| accounts.push((address, account))))?;
        self.state = State::from_sorted(accounts).map_err(|error| StorageError::Inconsistent(error.to_string()))?;
        let root = self.state.root();
        if root != head.state_root {
            return Err(StorageError::Inconsistent(format!(
                "the accounts make the state root {root}, block {} says {}; `tenon db repair` makes them anew from the blocks",
                head.height, head.state_root
            )));
        }
        self.head = head;
        Ok(())
    }

    /// Takes jobs until it is told to stop, or nobody is left to ask.
    pub fn run(mut self, mut queue: mpsc::Receiver<Job>, head: &watch::Sender<Head>) {
        let mut next = queue.blocking_recv();
        while let Some(job) = next.take() {
            match job {
                Job::Stop => break,
                Job::Alone(run) => run(&mut self, head),
                Job::Switch { branch, reach, answer } => {
                    // A caller that has gone away does not need its answer.
                    _ = answer.send(self.switch(branch, reach, head));
                }
                job => self.run_group(job, &mut queue, &mut next, head),
            }
            if next.is_none() {
                next = queue.blocking_recv();
            }
        }
        if let Err(error) = self.connection.checkpoint() {
            tracing::warn!(%error, "the write-ahead log was not moved into the database at the stop");
        }
    }
}
