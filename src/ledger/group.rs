//! One commit: what waits is put into it, up to its limits, and all of it becomes durable or none.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, oneshot, watch};

use super::extend::Refused;
use super::fork::SwitchError;
use super::thread::{Job, Thread};
use super::{ImportError, Imported, ProduceError, Produced};
use crate::chain::{Account, Address, Change, Head, PublicKey, Time};
use crate::storage::{StorageError, Writer};

/// What one commit holds so far: all that is needed to take it back.
pub(super) struct Group {
    pub head: Head,
    pub signed: Option<Time>,
    pub changes: Vec<Vec<Change>>,
    pub keys: BTreeMap<Address, PublicKey>,
    pub transactions: usize,
    pub answers: Vec<Answer>,
}

/// An answer that waits for the commit.
pub(super) enum Answer {
    Import(oneshot::Sender<Vec<Result<Imported, ImportError>>>, Vec<Result<Imported, ImportError>>),
    Produce(oneshot::Sender<Result<Produced, ProduceError>>, Result<Produced, ProduceError>),
    Write(oneshot::Sender<Result<(), StorageError>>),
}

impl Thread {
    /// An empty one, on top of what is committed.
    pub fn new_group(&self) -> Group {
        Group {
            head: self.head.clone(),
            signed: self.signed,
            changes: Vec::new(),
            keys: BTreeMap::new(),
            transactions: 0,
            answers: Vec::new(),
        }
    }

    /// One commit: `first` and what else waits, up to the limits. A job that would begin another group is left in `next`.
    pub fn run_group(
        &mut self,
        first: Job,
        queue: &mut mpsc::Receiver<Job>,
        next: &mut Option<Job>,
        head: &watch::Sender<Head>,
    ) {
        let mut group = self.new_group();
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
                Ok(alone @ (Job::Stop | Job::Switch { .. } | Job::Alone(_))) => *next = Some(alone),
                Ok(waiting) => job = Some(waiting),
                Err(_) => {}
            }
        }
        // Only a transaction that could not begin leaves its job untouched.
        if let (Err(error), Some(job)) = (&outcome, job) {
            refuse(job, error);
        }
        let outcome = outcome.and_then(|()| self.write_group(&mut group)).and_then(|()| self.connection.commit());
        self.finish(group, outcome, head);
    }

    /// Lets one job happen inside the open transaction. Errors: the database's; the group is lost.
    fn add(&mut self, job: Job, group: &mut Group) -> Result<(), StorageError> {
        match job {
            Job::Import { blocks, answer } => {
                let mut answers = Vec::with_capacity(blocks.len());
                let mut outcome = Ok(());
                for block in blocks {
                    match self.extend(block, self.clock.now(), group) {
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
            Job::Switch { .. } | Job::Alone(_) | Job::Stop => unreachable!("these are no part of a group"),
        }
    }

    /// Writes what was collected for the whole group.
    pub fn write_group(&mut self, group: &mut Group) -> Result<(), StorageError> {
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
        Ok(())
    }

    /// Publishes the group, or takes it back; answers its callers.
    pub fn finish(&mut self, group: Group, outcome: Result<(), StorageError>, head: &watch::Sender<Head>) {
        if let Err(error) = outcome {
            tracing::error!(%error, blocks = group.changes.len(), "a commit failed, nothing of it is stored");
            self.stats.commit_failed();
            for changes in group.changes.iter().rev() {
                self.state.revert(changes);
            }
            self.forget(group.head, group.signed);
            return group.answers.into_iter().for_each(|answer| answer.fail(&error));
        }
        let add = |counter: &AtomicU64, more: usize| counter.fetch_add(more as u64, Ordering::Relaxed);
        self.stats.is_failing.store(false, Ordering::Relaxed);
        add(&self.stats.commits, 1);
        add(&self.stats.transactions, group.transactions);
        self.hooks.iter_mut().for_each(|hook| hook.committed());
        add(&self.stats.blocks, group.changes.len());
        if !group.changes.is_empty() {
            self.stats.last_import.store(self.clock.now().0, Ordering::Relaxed);
        }
        if self.head.hash != group.head.hash {
            head.send_replace(self.head.clone());
        }
        group.answers.into_iter().for_each(Answer::succeed);
    }

    /// Rolls the open transaction back, to `head`; the state is the caller's.
    pub fn forget(&mut self, head: Head, signed: Option<Time>) {
        self.connection.roll_back();
        (self.head, self.signed) = (head, signed);
        self.rows.clear();
        self.hooks.iter_mut().for_each(|hook| hook.rolled_back());
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
        Job::Switch { answer, .. } => _ = answer.send(Err(SwitchError::Storage(error.to_string()))),
        // Its caller sees that nobody answers.
        Job::Alone(_) | Job::Stop => {}
    }
}
