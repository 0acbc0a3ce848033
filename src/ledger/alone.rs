//! What the ledger's thread does between two commits, with state, head and database to itself: a look at the state, and
//! a snapshot taken over.

use std::sync::atomic::Ordering;

use tokio::sync::{oneshot, watch};

use super::Ledger;
use super::thread::{Job, Thread};
use crate::chain::{Head, State, Time};
use crate::snapshot::{Progress, Snapshot, SnapshotError, install};
use crate::storage::{StorageError, Writer};

/// Something to do alone.
pub(super) type Alone = Box<dyn FnOnce(&mut Thread, &watch::Sender<Head>) + Send>;

impl Ledger {
    /// Looks at the state of the committed head, in the ledger's thread: for microseconds. Nothing is added meanwhile.
    /// Errors: the ledger has stopped.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut State, &Head) -> T + Send + 'static,
    ) -> Result<T, StorageError> {
        self.alone(|thread, _| look(&mut thread.state, &thread.head)).await
    }

    /// Begins the chain with a snapshot, where it has no block but the genesis: everything changes in one transaction,
    /// or nothing does. Answers the new head. The snapshot is verified on the way, which takes the ledger's thread as
    /// long as that takes; a chain without blocks has nothing else to do. `progress` is told after every chunk.
    ///
    /// Errors: there are blocks, the snapshot does not hold, or the ledger has stopped.
    pub async fn install_snapshot(
        &self,
        snapshot: Snapshot,
        now: Time,
        progress: impl FnMut(Progress) + Send + 'static,
    ) -> Result<Head, SnapshotError> {
        let installed = self.alone(move |thread, head| thread.install(&snapshot, now, progress, head)).await;
        installed.map_err(SnapshotError::from)?
    }

    async fn alone<T: Send + 'static>(
        &self,
        run: impl FnOnce(&mut Thread, &watch::Sender<Head>) -> T + Send + 'static,
    ) -> Result<T, StorageError> {
        let stopped = || StorageError::Inconsistent("the ledger has stopped".into());
        let (answer, answered) = oneshot::channel();
        let alone: Alone = Box::new(move |thread, head| {
            // Whoever asked may be gone.
            let _ = answer.send(run(thread, head));
        });
        self.jobs.send(Job::Alone(alone)).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())
    }
}

impl Thread {
    fn install(
        &mut self,
        snapshot: &Snapshot,
        now: Time,
        progress: impl FnMut(Progress) + Send,
        head: &watch::Sender<Head>,
    ) -> Result<Head, SnapshotError> {
        if self.head.height > 0 {
            let path = self.connection.path().display().to_string();
            return Err(SnapshotError::NotEmpty { path, height: self.head.height });
        }
        let (new, state) = self.write_snapshot(snapshot, now, progress).inspect_err(|error| {
            tracing::error!(%error, "a snapshot was not taken over, the chain is as it was");
            if matches!(error, SnapshotError::Storage(_)) {
                self.stats.commit_failed();
            }
            self.connection.roll_back();
            self.hooks.iter_mut().for_each(|hook| hook.rolled_back());
        })?;
        (self.head, self.state) = (new.clone(), state);
        self.stats.is_failing.store(false, Ordering::Relaxed);
        self.stats.last_import.store(now.0, Ordering::Relaxed);
        self.hooks.iter_mut().for_each(|hook| hook.committed());
        head.send_replace(new.clone());
        Ok(new)
    }

    fn write_snapshot(
        &mut self,
        snapshot: &Snapshot,
        now: Time,
        progress: impl FnMut(Progress) + Send,
    ) -> Result<(Head, State), SnapshotError> {
        let writer = self.connection.begin()?;
        let head = install::write(&writer, snapshot, &self.genesis, now, progress)?;
        let state = read_state(&writer)?;
        for hook in &mut self.hooks {
            hook.on_snapshot(&writer, &state)?;
        }
        self.connection.commit()?;
        Ok((head, state))
    }
}

/// The accounts of the database as they are in this transaction.
fn read_state(writer: &Writer<'_>) -> Result<State, StorageError> {
    let mut accounts = Vec::new();
    writer.reader().each_account(|address, account| accounts.push((address, account)))?;
    State::from_sorted(accounts).map_err(|error| StorageError::Inconsistent(error.to_string()))
}
