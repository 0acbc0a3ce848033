//! The state computed again. Every block's root is checked when it is imported, against accounts in memory; here all
//! accounts of the database are read, every so many blocks and when the operator says so, and must make the root of the
//! head. A disk that forgets, or a hand that changed a row, shows then, and not at the next start.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{gauge, histogram};
use serde::Serialize;
use tokio::sync::{Mutex, oneshot, watch};

use super::later;
use crate::chain::state::SortedRoot;
use crate::chain::{Account, Address, Hash, Head, Height, State, Time};
use crate::ledger::Ledger;
use crate::priority::stand_back;
use crate::storage::{Reader, Storage, StorageError};
use crate::telemetry;

/// What came of reading all accounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StateCheck {
    /// The head at that moment.
    pub height: Height,
    /// Its hash.
    pub hash: Hash,
    /// Whether the accounts make its state root.
    pub ok: bool,
    /// How many accounts there are.
    pub accounts: u64,
    /// What their root is.
    pub state_root: Hash,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// When it was done.
    pub at: Time,
    /// What is wrong, if something is.
    pub problem: Option<String>,
    /// Accounts whose rows are wrong, the first few.
    pub wrong_accounts: Vec<Address>,
}

/// Wrong accounts that are named at most.
pub const NAMED_MAX: usize = 20;

/// Verifies the state of a node that runs. Cheap to clone.
#[derive(Clone)]
pub struct Auditor(Arc<Inner>);

struct Inner {
    ledger: Ledger,
    last: watch::Sender<Option<StateCheck>>,
    /// One at a time; who comes meanwhile waits for its own.
    turn: Mutex<()>,
}

impl Auditor {
    /// Of a ledger that has just been opened: nothing verified yet, but what opening it has.
    pub fn new(ledger: Ledger) -> Self {
        Self(Arc::new(Inner { ledger, last: watch::Sender::new(None), turn: Mutex::new(()) }))
    }

    /// The same, with what opening the ledger has verified as its first result: it reads all accounts, and fails where
    /// they do not make the root of the head. `took` is how long that was. Errors: the database cannot be read.
    pub fn of_opened(ledger: Ledger, took: Duration) -> Result<Self, StorageError> {
        let head = ledger.head();
        let accounts = ledger.storage().read(|reader| reader.account_count())?;
        let check = StateCheck {
            height: head.height,
            hash: head.hash,
            ok: true,
            accounts,
            state_root: head.state_root,
            duration_ms: millis(took),
            at: Time::now(),
            problem: None,
            wrong_accounts: Vec::new(),
        };
        let auditor = Self::new(ledger);
        auditor.0.last.send_replace(Some(check));
        Ok(auditor)
    }

    /// The newest result; none before the first.
    pub fn last(&self) -> Option<StateCheck> {
        self.0.last.borrow().clone()
    }

    /// Whether the state was found wrong, and has not been found right since.
    pub fn has_failed(&self) -> bool {
        self.0.last.borrow().as_ref().is_some_and(|check| !check.ok)
    }

    /// Changes with every result.
    pub fn watch(&self) -> watch::Receiver<Option<StateCheck>> {
        self.0.last.subscribe()
    }

    /// Reads all accounts on one snapshot of the database, on a thread of low priority, and computes their root. A state
    /// that is wrong is logged as an error and stays known until it is right again. Errors: the database cannot be read.
    pub async fn verify(&self) -> Result<StateCheck, StorageError> {
        let _turn = self.0.turn.lock().await;
        let storage = self.0.ledger.storage().clone();
        let mut check = in_background(move || storage.read(check)).await??;
        if !check.ok {
            // The accounts in memory made the root of the last block, so they say which rows are wrong.
            let known = storage_against_memory(self.0.ledger.storage().clone());
            check.wrong_accounts = self.0.ledger.look(known).await??;
            tracing::error!(
                height = check.height,
                accounts = ?check.wrong_accounts,
                problem = check.problem,
                "the database's accounts are wrong; stop the node and run `tenon db repair`"
            );
        } else {
            tracing::debug!(height = check.height, accounts = check.accounts, ms = check.duration_ms, "state verified");
        }
        gauge!(telemetry::STATE_VERIFIED_HEIGHT).set(check.height as f64);
        histogram!(telemetry::STATE_VERIFY_SECONDS).record(check.duration_ms as f64 / 1_000.0);
        self.0.last.send_replace(Some(check.clone()));
        Ok(check)
    }

    /// Verifies every `every` blocks, while `may` says that the node has nothing better to do, until `stop` says true.
    /// Never, where `every` is 0.
    pub async fn run(self, every: u64, may: impl Fn() -> bool, mut stop: watch::Receiver<bool>) {
        if every == 0 {
            return;
        }
        let mut head = self.0.ledger.watch();
        // Opening the ledger has verified what was there.
        let mut last = head.borrow_and_update().height;
        let mut waits = false;
        loop {
            tokio::select! {
                changed = head.changed() => if changed.is_err() { return },
                () = later(waits) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            let height = head.borrow_and_update().height;
            let due = height.saturating_sub(last) >= every;
            waits = due && !may();
            if !due || waits {
                continue;
            }
            last = height;
            let verified = tokio::select! {
                verified = self.verify() => verified,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            if let Err(error) = verified {
                tracing::error!(%error, "the state could not be verified");
            }
        }
    }
}

/// Whether the accounts of one snapshot of a database make the state root of its head.
pub fn check(reader: &Reader<'_>) -> Result<StateCheck, StorageError> {
    let started = Instant::now();
    let head = reader.head()?.ok_or_else(|| StorageError::Inconsistent("there is no block".into()))?;
    let (root, accounts, problem) = match root(reader)? {
        Ok((root, accounts)) => (root, accounts, (root != head.state_root).then(|| differs(&head, root))),
        Err(problem) => (Hash::ZERO, 0, Some(problem)),
    };
    Ok(StateCheck {
        height: head.height,
        hash: head.hash,
        ok: problem.is_none(),
        accounts,
        state_root: root,
        duration_ms: millis(started.elapsed()),
        at: Time::now(),
        problem,
        wrong_accounts: Vec::new(),
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn differs(head: &Head, root: Hash) -> String {
    format!("the accounts make the state root {root}, block {} says {}", head.height, head.state_root)
}

/// The root of all accounts, and how many there are; or what keeps them from having one.
fn root(reader: &Reader<'_>) -> Result<Result<(Hash, u64), String>, StorageError> {
    let mut root = SortedRoot::default();
    let mut problem = None;
    reader.each_account(|address, account| {
        if problem.is_none() {
            problem = root.push(address, account).err();
        }
    })?;
    let accounts = root.len();
    Ok(problem.map_or_else(|| Ok((root.finish(), accounts)), |problem| Err(problem.to_string())))
}

/// For [`Ledger::look`]: the accounts whose rows are not what the state in memory has.
fn storage_against_memory(
    storage: Storage,
) -> impl FnOnce(&mut State, &Head) -> Result<Vec<Address>, StorageError> + Send {
    move |state, _| {
        let mut wrong = Vec::new();
        let mut known = state.accounts().peekable();
        let mut note = |address| {
            if wrong.len() < NAMED_MAX {
                wrong.push(address);
            }
        };
        storage.read(|reader| {
            reader.each_account(|address, account: Account| {
                while let Some((missing, _)) = known.next_if(|(other, _)| *other < address) {
                    note(missing);
                }
                if known.next_if(|(other, _)| *other == address).is_none_or(|(_, right)| right != account) {
                    note(address);
                }
            })
        })?;
        known.for_each(|(missing, _)| note(missing));
        Ok(wrong)
    }
}

/// Runs `work` on a thread of its own that lets others go first.
async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StorageError> {
    let failed = |what: &str| StorageError::Inconsistent(format!("the thread that verifies the state {what}"));
    let (answer, answered) = oneshot::channel();
    let run = move || {
        stand_back();
        // Whoever asked may be gone.
        let _ = answer.send(work());
    };
    let thread = std::thread::Builder::new().name("tenon-audit".into()).spawn(run);
    thread.map_err(|error| failed(&format!("could not start: {error}")))?;
    answered.await.map_err(|_| failed("has ended"))
}
