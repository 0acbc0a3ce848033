//! The loop of a follower: waits for what happens, keeps what is known, asks the strategy, carries out what is allowed.
//!
//! One task owns everything here; requests, looks at sources, verification and imports run elsewhere and come back as a
//! [`Wake`]. So nothing is locked, and every decision sees one consistent picture: [`super::rounds`].

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::rounds::{Rounds, Wake};
use super::source::Source;
use super::{Strategy, SyncConfig, SyncStatus, Tolerance, pipeline};
use crate::ledger::Ledger;

/// Follows the sources of a node.
pub struct Follower {
    rounds: Rounds,
    wakes: mpsc::UnboundedReceiver<Wake>,
    jobs: mpsc::Receiver<pipeline::Job>,
    ledger: Ledger,
}

impl Follower {
    /// A follower of `sources`, planned by `strategy`; `node_id` is this process's own, by which it knows itself among
    /// the sources. Errors: a knob out of range, or no threads.
    pub fn new(
        ledger: Ledger,
        strategy: Arc<dyn Strategy>,
        sources: Vec<Arc<dyn Source>>,
        node_id: String,
        config: SyncConfig,
    ) -> Result<Self, String> {
        config.check()?;
        // Unbounded, but every task that sends sends once, and tasks are bounded.
        let (sender, wakes) = mpsc::unbounded_channel();
        let (job_sender, jobs) = mpsc::channel(pipeline::JOBS_MAX);
        let rounds = Rounds::new(ledger.clone(), strategy, sources, node_id, config, sender, job_sender)?;
        Ok(Self { rounds, wakes, jobs, ledger })
    }

    /// The same, but live and behind by another measure than the usual one.
    pub fn tolerating(mut self, tolerance: Tolerance) -> Self {
        self.rounds.tolerate(tolerance);
        self
    }

    /// What it says of itself; changes at most ten times a second, and with every change of state.
    pub fn status(&self) -> watch::Receiver<SyncStatus> {
        self.rounds.status()
    }

    /// The sources that may be used now: for [`super::forward`].
    pub fn usable(&self) -> watch::Receiver<Vec<Arc<dyn Source>>> {
        self.rounds.usable()
    }

    /// Follows until `stop` says true. What was handed to the ledger is still stored; the rest is given up, and comes
    /// again after the next start.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let Self { mut rounds, mut wakes, jobs, ledger } = self;
        let mut head = ledger.watch();
        let sender = rounds.sender();
        let importing = tokio::spawn(pipeline::import(ledger, jobs, async move |done| {
            // Nobody listens any more after a stop.
            let _ = sender.send(Wake::Stored(done));
        }));
        loop {
            rounds.pump();
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                () = rounds.plan() => {}
            }
            let timer = rounds.publish_and_rest();
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                wake = wakes.recv() => rounds.handle(wake.expect("rounds holds a sender")),
                changed = head.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    rounds.head_moved();
                }
                () = tokio::time::sleep(timer) => {}
            }
            // All that is there already goes into the same round.
            while let Ok(wake) = wakes.try_recv() {
                rounds.handle(wake);
            }
            if rounds.is_over() {
                break;
            }
        }
        // Closes the queue of imports; what is in the ledger's queue is stored whether or not it is waited for.
        drop(rounds);
        if let Err(error) = importing.await {
            tracing::error!(%error, "the import task ended badly");
        }
    }
}
