//! The ledger: the one place where blocks become part of the chain. One thread owns the write connection and the state;
//! what waits when it starts a transaction goes into one commit, so a catch-up costs one commit for thousands of blocks
//! and a single block is not kept waiting.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot, watch};

use crate::chain::execute::Execution;
use crate::chain::{
    Account, Address, Block, BlockError, Change, Genesis, Hash, Head, Header, Height, PublicKey, SecretKey, State,
    Time, Transaction, TransactionError, VerifiedBlock, execute, format, merkle, rules, verify,
};
use crate::storage::{BlockRows, Storage, StorageError, WriteConnection, Writer};

/// The chain of this node. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    genesis: Arc<Genesis>,
    genesis_hash: Hash,
    storage: Storage,
    jobs: mpsc::Sender<Job>,
    head: watch::Receiver<Head>,
    stats: Arc<Stats>,
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
}

/// Follows the chain from inside its transactions: what it writes is committed with the block, or not at all.
pub trait BlockHook: Send {
    /// Called on the ledger's thread for every block, in order, after its accounts changed. An error takes back the whole
    /// commit; then `rolled_back` is called.
    fn on_block(&mut self, writer: &Writer<'_>, block: &VerifiedBlock, state: &State) -> Result<(), StorageError>;

    /// What was written since the last call is durable.
    fn committed(&mut self) {}

    /// What was written since the last call is gone.
    fn rolled_back(&mut self) {}
}

/// What became of a block that is on the chain now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Imported {
    /// It is the new head, or was until the next one came.
    Extended,
    /// It was there before.
    Known,
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
}

#[derive(Default)]
struct Stats {
    blocks: AtomicU64,
    transactions: AtomicU64,
    commits: AtomicU64,
    last_import: AtomicU64,
    failed_commits: AtomicU64,
    is_failing: AtomicBool,
}

type Write = Box<dyn FnOnce(&Writer<'_>) -> Result<(), StorageError> + Send>;

enum Job {
    Import { blocks: Vec<VerifiedBlock>, answer: oneshot::Sender<Vec<Result<Imported, ImportError>>> },
    Produce { request: Box<ProduceRequest>, answer: oneshot::Sender<Result<Produced, ProduceError>> },
    Write { write: Write, answer: oneshot::Sender<Result<(), StorageError>> },
    Stop,
}

/// Jobs that wait before a caller does.
const QUEUE_MAX: usize = 256;

impl LedgerOptions {
    /// The usual sizes of a commit: about 10,000 transactions, beyond which larger ones gain little.
    pub fn new(path: PathBuf, genesis: Genesis) -> Self {
        Self { path, genesis, group_blocks_max: 8_000, group_transactions_max: 10_000 }
    }
}

impl Ledger {
    /// Opens the database, makes the genesis block if it is new, rebuilds the state and checks it against the head's
    /// root. Errors: the file is another chain's, in use, damaged, or its accounts do not make the head's root.
    pub fn open(options: LedgerOptions, hooks: Vec<Box<dyn BlockHook>>) -> Result<Self, StorageError> {
        let genesis = Arc::new(options.genesis);
        let genesis_block = verify::genesis_block(&genesis);
        let genesis_hash = genesis_block.hash();
        let (connection, storage) = WriteConnection::open(&options.path, &genesis_hash)?;
        let mut thread = Thread {
            connection,
            genesis: Arc::clone(&genesis),
            state: State::default(),
            head: Head::from(&genesis_block.block().header),
            hooks,
            rows: BlockRows::default(),
            group_blocks_max: options.group_blocks_max.max(1),
            group_transactions_max: options.group_transactions_max.max(1),
            stats: Arc::default(),
        };
        match storage.read(|reader| reader.head())? {
            None => thread.store_genesis(&genesis_block)?,
            Some(head) => thread.load(&storage, head)?,
        }
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let (sender, head) = watch::channel(thread.head.clone());
        let stats = Arc::clone(&thread.stats);
        let handle = std::thread::Builder::new()
            .name("tenon-ledger".into())
            .spawn(move || thread.run(queue, &sender))
            .map_err(|error| StorageError::Io { path: "the ledger's thread".into(), error })?;
        let thread = Arc::new(Mutex::new(Some(handle)));
        Ok(Self { genesis, genesis_hash, storage, jobs, head, stats, thread })
    }

    /// The chain's parameters.
    pub fn genesis(&self) -> &Arc<Genesis> {
        &self.genesis
    }

    /// The hash of block 0, which names the chain.
    pub fn genesis_hash(&self) -> Hash {
        self.genesis_hash
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

/// What the ledger's thread owns.
struct Thread {
    connection: WriteConnection,
    genesis: Arc<Genesis>,
    state: State,
    head: Head,
    hooks: Vec<Box<dyn BlockHook>>,
    rows: BlockRows,
    group_blocks_max: usize,
    group_transactions_max: usize,
    stats: Arc<Stats>,
}

/// What one commit holds so far: all that is needed to take it back.
struct Group {
    head: Head,
    changes: Vec<Vec<Change>>,
    keys: BTreeMap<Address, PublicKey>,
    transactions: usize,
    answers: Vec<Answer>,
}

/// An answer that waits for the commit.
enum Answer {
    Import(oneshot::Sender<Vec<Result<Imported, ImportError>>>, Vec<Result<Imported, ImportError>>),
    Produce(oneshot::Sender<Result<Produced, ProduceError>>, Result<Produced, ProduceError>),
    Write(oneshot::Sender<Result<(), StorageError>>),
}

/// Why a block was not added: its own fault, or the database's, which ends the group.
enum Refused {
    Import(ImportError),
    Storage(StorageError),
}

impl From<StorageError> for Refused {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

impl<E: Into<ImportError>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::Import(error.into())
    }
}

impl Thread {
    fn store_genesis(&mut self, genesis: &VerifiedBlock) -> Result<(), StorageError> {
        let changes = self.genesis.changes();
        let writer = self.connection.begin()?;
        writer.put_block(genesis, &[], &mut self.rows)?;
        writer.put_rows(&mut self.rows)?;
        for change in &changes {
            writer.put_account(&change.address, &change.after, None)?;
        }
        for authority in &self.genesis.authorities {
            if let Some(account) = changes.iter().find(|change| change.address == authority.address) {
                writer.put_account(&account.address, &account.after, Some(&authority.public_key))?;
            }
        }
        self.connection.commit()?;
        self.state.apply(&changes);
        Ok(())
    }

    fn load(&mut self, storage: &Storage, head: Head) -> Result<(), StorageError> {
        storage.read(|reader| reader.each_account(|address, account| self.state.set(address, account)))?;
        let root = self.state.root();
        if root != head.state_root {
            return Err(StorageError::Inconsistent(format!(
                "the accounts make the state root {root}, block {} says {}; restore a backup or sync afresh",
                head.height, head.state_root
            )));
        }
        self.head = head;
        Ok(())
    }

    fn run(mut self, mut queue: mpsc::Receiver<Job>, head: &watch::Sender<Head>) {
        let mut next = queue.blocking_recv();
        while let Some(job) = next.take() {
            if matches!(job, Job::Stop) {
                break;
            }
            self.run_group(job, &mut queue, &mut next, head);
            if next.is_none() {
                next = queue.blocking_recv();
            }
        }
        if let Err(error) = self.connection.checkpoint() {
            tracing::warn!(%error, "the write-ahead log was not moved into the database at the stop");
        }
    }

    /// One commit: `first` and what else waits, up to the limits. A job that would begin another group is left in `next`.
    fn run_group(
        &mut self,
        first: Job,
        queue: &mut mpsc::Receiver<Job>,
        next: &mut Option<Job>,
        head: &watch::Sender<Head>,
    ) {
        let mut group = Group {
            head: self.head.clone(),
            changes: Vec::new(),
            keys: BTreeMap::new(),
            transactions: 0,
            answers: Vec::new(),
        };
        let mut outcome = self.connection.begin().map(|_| ());
        let mut job = Some(first);
        while outcome.is_ok()
            && let Some(current) = job.take()
        {
            outcome = self.add(current, &mut group);
            if group.changes.len() >= self.group_blocks_max || group.transactions >= self.group_transactions_max {
                break;
            }
            match queue.try_recv() {
                Ok(Job::Stop) => *next = Some(Job::Stop),
                Ok(waiting) => job = Some(waiting),
                Err(_) => {}
            }
        }
        // Only a transaction that could not begin leaves its job untouched.
        if let (Err(error), Some(job)) = (&outcome, job) {
            refuse(job, error);
        }
        let outcome = outcome.and_then(|()| self.commit(&mut group));
        self.finish(group, outcome, head);
    }

    /// Lets one job happen inside the open transaction. Errors: the database's; the group is lost.
    fn add(&mut self, job: Job, group: &mut Group) -> Result<(), StorageError> {
        match job {
            Job::Import { blocks, answer } => {
                let mut answers = Vec::with_capacity(blocks.len());
                let mut outcome = Ok(());
                for block in blocks {
                    match self.extend(block, Time::now(), group) {
                        Ok(imported) => answers.push(Ok(imported)),
                        Err(Refused::Import(error)) => answers.push(Err(error)),
                        Err(Refused::Storage(error)) => {
                            answers.push(Err(ImportError::Storage(error.to_string())));
                            outcome = Err(error);
                            break;
                        }
                    }
                }
                group.answers.push(Answer::Import(answer, answers));
                outcome
            }
            Job::Produce { request, answer } => {
                let (produced, outcome) = match self.produce(*request, group) {
                    Ok(produced) => (produced, Ok(())),
                    Err(error) => (Err(ProduceError::Storage(error.to_string())), Err(error)),
                };
                group.answers.push(Answer::Produce(answer, produced));
                outcome
            }
            Job::Write { write, answer } => {
                group.answers.push(Answer::Write(answer));
                write(&Writer::of(&self.connection))
            }
            Job::Stop => Ok(()),
        }
    }

    /// Puts one block on top of the head.
    fn extend(&mut self, verified: VerifiedBlock, now: Time, group: &mut Group) -> Result<Imported, Refused> {
        let height = verified.height();
        if height <= self.head.height {
            return self.compare(&verified);
        }
        if height > self.head.height + 1 {
            return Err(ImportError::Gap { head: self.head.height, got: height }.into());
        }
        let header = &verified.block().header;
        rules::check_child(&self.head, header, &self.genesis, now)?;
        let changes = execute::execute(&self.state, &self.genesis, &verified.block().transactions)
            .map_err(|(index, error)| BlockError::Transaction { index, error })?;
        self.state.apply(&changes);
        let root = self.state.root();
        if root != header.state_root {
            self.state.revert(&changes);
            return Err(BlockError::StateRoot { expected: root, got: header.state_root }.into());
        }
        self.store(verified, changes, group)?;
        Ok(Imported::Extended)
    }

    /// A block at or below the head is known, or another one's rival.
    fn compare(&self, verified: &VerifiedBlock) -> Result<Imported, Refused> {
        let (height, theirs) = (verified.height(), verified.hash());
        let ours = if height == self.head.height {
            self.head.hash
        } else {
            Writer::of(&self.connection)
                .reader()
                .hash_at(height)?
                .ok_or_else(|| StorageError::Inconsistent(format!("block {height} is not there")))?
        };
        if ours == theirs { Ok(Imported::Known) } else { Err(ImportError::Conflict { height, ours, theirs }.into()) }
    }

    /// Stores a block whose changes are in the state already.
    fn store(&mut self, verified: VerifiedBlock, changes: Vec<Change>, group: &mut Group) -> Result<(), StorageError> {
        group.changes.push(changes);
        let changes = group.changes.last().expect("just pushed");
        let writer = Writer::of(&self.connection);
        writer.put_block(&verified, changes, &mut self.rows)?;
        for hook in &mut self.hooks {
            hook.on_block(&writer, &verified, &self.state)?;
        }
        for transaction in &verified.block().transactions {
            group.keys.entry(transaction.from()).or_insert(transaction.public_key);
        }
        group.transactions += verified.block().transactions.len();
        let header = &verified.block().header;
        self.head = Head {
            height: header.height,
            hash: verified.hash(),
            parent_hash: header.parent_hash,
            timestamp: header.timestamp,
            tx_count: header.tx_count,
            state_root: header.state_root,
        };
        Ok(())
    }

    fn produce(
        &mut self,
        request: ProduceRequest,
        group: &mut Group,
    ) -> Result<Result<Produced, ProduceError>, StorageError> {
        let ProduceRequest { candidates, key, now, allow_empty } = request;
        // Two blocks within a microsecond still need different times.
        let timestamp = Time(now.0.max(self.head.timestamp.0 + 1));
        let proposer = Address::of(&key.public_key());
        let turn = self.genesis.authority_at(timestamp).address;
        if turn != proposer {
            return Ok(Err(ProduceError::NotOurTurn(turn)));
        }
        let (transactions, hashes, changes, dropped) = self.choose(candidates);
        if transactions.is_empty() && !allow_empty {
            return Ok(Ok(Produced { head: None, dropped }));
        }
        let leaves: Vec<_> = transactions
            .iter()
            .zip(&hashes)
            .map(|(transaction, hash)| format::transaction_leaf(hash, transaction))
            .collect();
        self.state.apply(&changes);
        let header = Header {
            version: format::VERSION,
            chain_id: self.genesis.chain_id.clone(),
            height: self.head.height + 1,
            parent_hash: self.head.hash,
            timestamp,
            proposer,
            tx_count: u32::try_from(transactions.len()).expect("at most block_txs_max"),
            tx_root: merkle::root(&leaves),
            state_root: self.state.root(),
        };
        // A block of our own passes the same checks as anybody else's, before it is stored.
        let valid = rules::check_child(&self.head, &header, &self.genesis, now)
            .and_then(|()| verify::verify(Block::signed(header, transactions, &key), &self.genesis));
        match valid {
            Ok(verified) => {
                self.store(verified, changes, group)?;
                Ok(Ok(Produced { head: Some(self.head.clone()), dropped }))
            }
            Err(error) => {
                self.state.revert(&changes);
                Ok(Err(error.into()))
            }
        }
    }

    /// Those candidates that can happen one after the other, as many as a block holds; what they change; and the others,
    /// with their reasons. One that no longer fits waits for the next block.
    #[expect(clippy::type_complexity, reason = "four parts of one block, taken apart at once by the only caller")]
    fn choose(
        &self,
        candidates: Vec<(Transaction, Hash)>,
    ) -> (Vec<Transaction>, Vec<Hash>, Vec<Change>, Vec<(Hash, TransactionError)>) {
        let mut execution = Execution::new(&self.state, &self.genesis);
        let (mut transactions, mut hashes, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
        let mut bytes = 0;
        for (transaction, hash) in candidates {
            let size = verify::block_share(&transaction);
            if transactions.len() >= self.genesis.block_txs_max as usize {
                break;
            }
            if bytes + size > self.genesis.block_bytes_max as usize {
                continue;
            }
            match execution.apply(&transaction) {
                Ok(()) => {
                    bytes += size;
                    transactions.push(transaction);
                    hashes.push(hash);
                }
                Err(error) => dropped.push((hash, error)),
            }
        }
        (transactions, hashes, execution.into_changes(), dropped)
    }

    /// Writes what was collected for the whole group, and commits.
    fn commit(&mut self, group: &mut Group) -> Result<(), StorageError> {
        let writer = Writer::of(&self.connection);
        writer.put_rows(&mut self.rows)?;
        // Each account once, with its last value: a busy one changes in every block.
        let mut accounts: BTreeMap<Address, Account> = BTreeMap::new();
        for change in group.changes.iter().flatten() {
            accounts.insert(change.address, change.after);
        }
        for (address, account) in &accounts {
            writer.put_account(address, account, group.keys.get(address))?;
        }
        self.connection.commit()
    }

    /// Publishes the group, or takes it back; answers its callers.
    fn finish(&mut self, group: Group, outcome: Result<(), StorageError>, head: &watch::Sender<Head>) {
        if let Err(error) = outcome {
            tracing::error!(%error, blocks = group.changes.len(), "a commit failed, nothing of it is stored");
            self.stats.failed_commits.fetch_add(1, Ordering::Relaxed);
            self.stats.is_failing.store(true, Ordering::Relaxed);
            self.connection.roll_back();
            for changes in group.changes.iter().rev() {
                self.state.revert(changes);
            }
            self.head = group.head;
            self.rows = BlockRows::default();
            self.hooks.iter_mut().for_each(|hook| hook.rolled_back());
            return group.answers.into_iter().for_each(|answer| answer.fail(&error));
        }
        let add = |counter: &AtomicU64, more: usize| counter.fetch_add(more as u64, Ordering::Relaxed);
        self.stats.is_failing.store(false, Ordering::Relaxed);
        add(&self.stats.commits, 1);
        add(&self.stats.transactions, group.transactions);
        self.hooks.iter_mut().for_each(|hook| hook.committed());
        add(&self.stats.blocks, group.changes.len());
        if !group.changes.is_empty() {
            self.stats.last_import.store(Time::now().0, Ordering::Relaxed);
        }
        if self.head.hash != group.head.hash {
            head.send_replace(self.head.clone());
        }
        group.answers.into_iter().for_each(Answer::succeed);
    }
}

impl Answer {
    fn succeed(self) {
        // A caller that has gone away does not need its answer.
        match self {
            Self::Import(sender, answers) => _ = sender.send(answers),
            Self::Produce(sender, produced) => _ = sender.send(produced),
            Self::Write(sender) => _ = sender.send(Ok(())),
        }
    }

    fn fail(self, error: &StorageError) {
        match self {
            Self::Import(sender, answers) => {
                _ = sender.send(vec![Err(ImportError::Storage(error.to_string())); answers.len()]);
            }
            Self::Produce(sender, _) => _ = sender.send(Err(ProduceError::Storage(error.to_string()))),
            Self::Write(sender) => _ = sender.send(Err(StorageError::Inconsistent(error.to_string()))),
        }
    }
}

/// Answers a job that could not even begin.
fn refuse(job: Job, error: &StorageError) {
    match job {
        Job::Import { blocks, answer } => {
            let answers = vec![Err(ImportError::Stopped); blocks.len()];
            Answer::Import(answer, answers).fail(error);
        }
        Job::Produce { answer, .. } => Answer::Produce(answer, Err(ProduceError::Stopped)).fail(error),
        Job::Write { answer, .. } => Answer::Write(answer).fail(error),
        Job::Stop => {}
    }
}
