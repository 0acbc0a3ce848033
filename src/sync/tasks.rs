//! What a follower does for its engine: each [`Command`] becomes a task, and each task comes back as a [`Wake`].

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::budget::Budget;
use super::compare::compare;
use super::engine::{Command, Fetched, Job, Look, SnapshotFault, SnapshotNews, Switch, SwitchError, Wake};
use super::pipeline::Verifier;
use super::source::{Source, SourceError, SourceHead};
use super::{PeerId, RequestId, Strategy, snapshot};
use crate::chain::{BlockError, VerifiedBlock};
use crate::ledger::{Ledger, Reach};

/// What the engine moves where blocks are real.
pub type Blocks = Vec<VerifiedBlock>;

/// The tasks under way. They end with it.
pub struct Tasks {
    ledger: Ledger,
    strategy: Arc<dyn Strategy>,
    verifier: Verifier,
    budget: Budget,
    wakes: mpsc::UnboundedSender<Wake<Blocks>>,
    jobs: mpsc::Sender<Job<Blocks>>,
    sources: HashMap<PeerId, Arc<dyn Source>>,
    looks: HashMap<PeerId, AbortHandle>,
    requests: HashMap<RequestId, AbortHandle>,
    /// Where snapshots are kept while they come in.
    snapshot_dir: Option<PathBuf>,
    snapshot: Option<AbortHandle>,
}

impl Tasks {
    /// None yet. What happens goes to `wakes`, what is to be imported to `jobs`.
    pub fn new(
        ledger: Ledger,
        strategy: Arc<dyn Strategy>,
        verifier: Verifier,
        budget: Budget,
        wakes: mpsc::UnboundedSender<Wake<Blocks>>,
        jobs: mpsc::Sender<Job<Blocks>>,
    ) -> Self {
        let (sources, looks, requests) = (HashMap::new(), HashMap::new(), HashMap::new());
        let (snapshot_dir, snapshot) = (None, None);
        Self { ledger, strategy, verifier, budget, wakes, jobs, sources, looks, requests, snapshot_dir, snapshot }
    }

    /// Keeps snapshots in this folder while they come in.
    pub fn keep_snapshots_in(&mut self, dir: PathBuf) {
        self.snapshot_dir = Some(dir);
    }

    /// Who answers for a peer from now on.
    pub fn join(&mut self, peer: PeerId, source: Arc<dyn Source>) {
        self.sources.insert(peer, source);
    }

    /// A peer is gone.
    pub fn leave(&mut self, peer: PeerId) {
        self.sources.remove(&peer);
    }

    /// Who answers for a peer.
    pub fn source(&self, peer: PeerId) -> Option<&Arc<dyn Source>> {
        self.sources.get(&peer)
    }

    /// The peer of this name.
    pub fn peer(&self, name: &str) -> Option<PeerId> {
        self.sources.iter().find(|(_, source)| source.name() == name).map(|(&peer, _)| peer)
    }

    /// A task has come back.
    pub fn ended(&mut self, wake: &Wake<Blocks>) {
        match wake {
            Wake::Looked(peer, _) | Wake::Compared(peer, _) => _ = self.looks.remove(peer),
            Wake::Fetched(id, _) => _ = self.requests.remove(id),
            _ => {}
        }
    }

    /// Starts what a command asks for. False: the ledger's end of the queue is gone, and there is no use going on.
    pub fn carry_out(&mut self, command: Command<Blocks>) -> bool {
        let wakes = self.wakes.clone();
        // Whoever sends a wake does not mind that nobody listens any more.
        match command {
            Command::Look { peer, introduce } => {
                let Some(source) = self.sources.get(&peer).cloned() else { return true };
                let ledger = self.ledger.clone();
                let task = tokio::spawn(async move {
                    let look = look(&source, &ledger, introduce).await;
                    let _ = wakes.send(Wake::Looked(peer, look));
                });
                self.looks.insert(peer, task.abort_handle());
            }
            Command::Compare { peer, height, known } => {
                let Some(source) = self.sources.get(&peer).cloned() else { return true };
                let (ledger, budget) = (self.ledger.clone(), self.budget.clone());
                let task = tokio::spawn(async move {
                    let comparison = compare(&source, &ledger, &budget, height, known.as_ref()).await;
                    let _ = wakes.send(Wake::Compared(peer, comparison));
                });
                self.looks.insert(peer, task.abort_handle());
            }
            Command::EndLook(peer) => {
                self.looks.remove(&peer).inspect(AbortHandle::abort);
            }
            Command::Fetch { id, peer, range, room } => {
                let Some(source) = self.sources.get(&peer).cloned() else { return true };
                let task = tokio::spawn(async move {
                    let started = Instant::now();
                    let answer = source.range(range, room).await;
                    let fetched = answer.map(|mut answer| {
                        answer.room.settle(answer.body.len() as u64);
                        Fetched {
                            body: answer.body,
                            blocks: answer.blocks,
                            room: answer.room,
                            head: answer.head,
                            first_byte_us: micros(answer.first_byte),
                            duration_us: micros(started.elapsed()),
                        }
                    });
                    let _ = wakes.send(Wake::Fetched(id, fetched));
                });
                self.requests.insert(id, task.abort_handle());
            }
            Command::Abort(id) => {
                self.requests.remove(&id).inspect(AbortHandle::abort);
            }
            Command::Verify { id, first, body } => self.verifier.verify(first, body, move |verified| {
                let _ = wakes.send(Wake::Verified(id, verified));
            }),
            // The queue has room for every job that may be under way.
            Command::Import(job) => return self.jobs.try_send(job).is_ok(),
            Command::Switch(switch) => {
                let ledger = self.ledger.clone();
                tokio::spawn(async move {
                    let _ = wakes.send(Wake::Switched(switch_branch(&ledger, switch).await));
                });
            }
            Command::FetchSnapshot { number, offer, peers } => {
                let (ledger, dir) = (self.ledger.clone(), self.snapshot_dir.clone());
                let offering = peers.into_iter().filter_map(|peer| Some((peer, self.sources.get(&peer)?.chunks()?)));
                let (offering, bytes_max) = (offering.collect::<Vec<_>>(), self.budget.free());
                let task = tokio::spawn(async move {
                    let tell = {
                        let wakes = wakes.clone();
                        move |news| _ = wakes.send(Wake::Snapshot(number, news))
                    };
                    let taken = match &dir {
                        Some(dir) => snapshot::take(&ledger, dir, offer.id, offering, bytes_max, tell).await,
                        None => Err(SnapshotFault::Local("there is no folder for snapshots".into())),
                    };
                    let _ = wakes.send(Wake::Snapshot(number, SnapshotNews::Ended(taken)));
                });
                self.snapshot = Some(task.abort_handle());
            }
            // One at a time is under way.
            Command::EndSnapshot(_) => _ = self.snapshot.take().inspect(AbortHandle::abort),
            Command::Ask { view, events } => {
                let strategy = Arc::clone(&self.strategy);
                // On a thread that may block: a component may take its whole deadline.
                let asked = tokio::task::spawn_blocking(move || strategy.next(&view, &events));
                tokio::spawn(async move {
                    let actions = asked.await.unwrap_or_else(|error| {
                        tracing::error!(%error, "the strategy could not be asked");
                        Vec::new()
                    });
                    let _ = wakes.send(Wake::Planned(actions));
                });
            }
            Command::Refused { action, reason } => self.strategy.refused(&action, &reason),
        }
        true
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.requests.values().chain(self.looks.values()).chain(&self.snapshot).for_each(AbortHandle::abort);
    }
}

/// Microseconds, as many as fit.
pub fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Looks at a source: its head, our block at that height, and on first meeting who it is. What is asked is asked at once:
/// a source far away is not waited for twice.
pub async fn look(source: &Arc<dyn Source>, ledger: &Ledger, introduce: bool) -> Result<Look, SourceError> {
    let (info, head) = if introduce {
        let (info, head) = futures_util::future::join(source.info(), source.head()).await;
        (Some(info?), head)
    } else {
        (None, source.head().await)
    };
    let SourceHead { head, snapshot } = head?;
    let ours = match head {
        Some((height, _)) if height <= ledger.head().height => {
            let ours = ledger.storage().read_brief(move |reader| reader.hash_at(height)).await;
            // A store that cannot be read shows elsewhere; here it is no opinion on the source.
            ours.ok().flatten()
        }
        _ => None,
    };
    Ok(Look { info, head, ours, snapshot })
}

/// Takes a branch in place of our blocks, in one commit. Errors: why not, as the engine tells them apart.
pub async fn switch_branch(ledger: &Ledger, switch: Switch<Blocks>) -> Result<(), SwitchError> {
    use crate::ledger::SwitchError as Why;
    let Switch { blocks, deep, rooms, .. } = switch;
    let reach = if deep { Reach::Any } else { Reach::Limited };
    let switched = ledger.switch_branch(blocks, reach).await;
    drop(rooms);
    match switched {
        Ok(_) => Ok(()),
        // Nobody is to blame where a clock is ahead of ours, or ours behind: soon the block will be valid. Nor where the
        // parts of the branch do not hang together, each of which does: its peer went over to another one meanwhile.
        Err(Why::Invalid { error: error @ (BlockError::InFuture { .. } | BlockError::Parent { .. }), .. }) => {
            Err(SwitchError::Refused(error.to_string()))
        }
        Err(Why::Invalid { height, error, .. }) => Err(SwitchError::Invalid { height, reason: error.to_string() }),
        Err(Why::Storage(reason)) => Err(SwitchError::Storage(reason)),
        Err(Why::Stopped) => Err(SwitchError::Stopped),
        Err(refused) => Err(SwitchError::Refused(refused.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{Time, verify};
    use crate::ledger::{Clock, LedgerOptions};
    use crate::sample::Sample;

    fn branch(step_us: u64, count: usize) -> Vec<VerifiedBlock> {
        let mut sample = Sample::new(1, 1).step_us(step_us);
        let blocks = sample.blocks(count, 0);
        let genesis = Arc::clone(sample.genesis());
        verify::verify_all(blocks, &genesis).into_iter().map(Result::unwrap).collect()
    }

    /// A branch comes in parts, and between two of them its peer may go over to another one: no fault of its.
    #[tokio::test]
    async fn parts_of_two_branches_are_refused_and_not_called_invalid() {
        let dir = tempfile::tempdir().unwrap();
        let options = LedgerOptions::new(dir.path().join("chain.db"), crate::sample::genesis(1, 1));
        let ledger = Ledger::open(options, Vec::new()).unwrap();
        ledger.import(branch(2_000_000, 2)).await.pop().unwrap().unwrap();
        let mut blocks = branch(3_000_000, 2);
        blocks.extend(branch(4_000_000, 4).split_off(2));
        let switched = switch_branch(&ledger, Switch { common: 0, blocks, deep: false, rooms: Vec::new() }).await;
        assert!(matches!(switched, Err(SwitchError::Refused(_))), "{switched:?}");
        let mut blocks = branch(3_000_000, 4);
        blocks.remove(1);
        let switched = switch_branch(&ledger, Switch { common: 0, blocks, deep: false, rooms: Vec::new() }).await;
        assert!(matches!(switched, Err(SwitchError::Invalid { .. })), "a gap is: {switched:?}");
        assert_eq!(ledger.height(), 2);
        ledger.stop();
    }

    /// Whoever is right but early must not be treated as one who sends what is wrong: that would cost it its score.
    #[tokio::test]
    async fn a_branch_that_is_ahead_of_the_clock_is_refused_for_now_and_not_called_invalid() {
        let dir = tempfile::tempdir().unwrap();
        let switch = || Switch { common: 0, blocks: branch(3_000_000, 2), deep: false, rooms: Vec::new() };
        let options = |ms: u64| {
            let (clock, genesis) = (crate::sample::START.plus_ms(ms), crate::sample::genesis(1, 1));
            let options = LedgerOptions::new(dir.path().join("chain.db"), genesis);
            LedgerOptions { clock: Clock::new(move || clock), ..options }
        };
        // The branch's second block is 6 s after genesis, and may be one slot, 2 s, ahead.
        for (ms, taken) in [(3_999, false), (4_000, true)] {
            let ledger = Ledger::open(options(ms), Vec::new()).unwrap();
            ledger.import(branch(2_000_000, 1)).await.pop().unwrap().unwrap();
            match switch_branch(&ledger, switch()).await {
                Ok(()) => assert!(taken, "at {ms} ms"),
                Err(error) => assert!(!taken && matches!(error, SwitchError::Refused(_)), "at {ms} ms: {error}"),
            }
            assert_eq!(ledger.height(), 1 + u64::from(taken));
            assert_eq!(ledger.clock().now(), Time(crate::sample::START.0 + ms * 1_000));
            ledger.stop();
        }
    }
}
