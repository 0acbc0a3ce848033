//! The loop of a follower: hands its engine what happens, carries out what that decides, and publishes its status.
//!
//! One task owns the [`Engine`], and everything else runs elsewhere and comes back as a [`Wake`]. So nothing is locked,
//! and every decision sees one consistent picture.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::engine::{Engine, Job, Turn, Wake};
use super::peers::Origin;
use super::pipeline::{self, Verifier};
use super::source::{Source, SourceInfo};
use super::tasks::{Blocks, Tasks, micros};
use super::{Strategy, SyncConfig, SyncStatus, Tolerance};
use crate::chain::{Hash, Head, Height, Time};
use crate::ledger::Ledger;

/// Changes of the peers that wait to be taken in, at most; then whoever tells of one waits.
const CHANGES_MAX: usize = 256;

/// Follows the peers of a node: its sources, and whoever joins them.
pub struct Follower {
    engine: Engine<Blocks>,
    tasks: Tasks,
    clock: Clock,
    ledger: Ledger,
    head: watch::Receiver<Head>,
    strategy: Arc<dyn Strategy>,
    generation: Option<u64>,
    wakes: mpsc::UnboundedReceiver<Wake<Blocks>>,
    sender: mpsc::UnboundedSender<Wake<Blocks>>,
    jobs: mpsc::Receiver<Job<Blocks>>,
    peers: Peers,
    changes: mpsc::Receiver<Change>,
    status: watch::Sender<SyncStatus>,
    usable: watch::Sender<Vec<Arc<dyn Source>>>,
}

/// The peers of a running follower: who comes, who goes, and what they announce. Cheap to clone.
#[derive(Clone)]
pub struct Peers(mpsc::Sender<Change>);

enum Change {
    Join(Arc<dyn Source>),
    Leave(String),
    Announce(String, (Height, Hash)),
}

impl Peers {
    /// Adds a peer that was met on the way; it is told from others by its name, and one whose name is there already is
    /// not taken in. After the follower's end nobody hears it, as with the others.
    pub async fn join(&self, source: Arc<dyn Source>) {
        self.tell(Change::Join(source)).await;
    }

    /// Removes the peer of this name. What was asked of it is given up and costs it nothing.
    pub async fn leave(&self, name: &str) {
        self.tell(Change::Leave(name.to_owned())).await;
    }

    /// Says that the head of the peer of this name is now the block `hash` at `height`: what gossip brings, and what
    /// spares asking.
    pub async fn announce(&self, name: &str, height: Height, hash: Hash) {
        self.tell(Change::Announce(name.to_owned(), (height, hash))).await;
    }

    async fn tell(&self, change: Change) {
        // An error means that the follower has ended, and with it all that this could change.
        let _ = self.0.send(change).await;
    }
}

/// Wall-clock time that never goes back: pauses must not become long because somebody sets the clock.
#[derive(Clone, Copy)]
struct Clock {
    base: Time,
    started: Instant,
}

impl Clock {
    fn now(&self) -> Time {
        Time(self.base.0 + micros(self.started.elapsed()))
    }

    /// How long until `time`.
    fn until(&self, time: Time) -> Duration {
        Duration::from_micros(time.0.saturating_sub(self.now().0))
    }
}

impl Follower {
    /// A follower of `sources`, planned by `strategy`; `node_id` is this process's own, by which it knows itself among
    /// the sources. Errors: a knob out of range, two sources of one name, or no threads.
    pub fn new(
        ledger: Ledger,
        strategy: Arc<dyn Strategy>,
        sources: Vec<Arc<dyn Source>>,
        node_id: String,
        config: SyncConfig,
    ) -> Result<Self, String> {
        config.check()?;
        let clock = Clock { base: Time::now(), started: Instant::now() };
        let genesis = Arc::clone(ledger.genesis());
        let us = SourceInfo { chain_id: genesis.chain_id.clone(), genesis_hash: ledger.genesis_hash(), node_id };
        let verifier = Verifier::new(config.verify_threads, genesis)?;
        let mut head = ledger.watch();
        let mut engine = Engine::new(us, config, head.borrow_and_update().clone(), clock.now());
        engine.limit_reorgs(ledger.max_reorg_depth());
        // Unbounded, but every task that sends sends once, or once for each chunk of the one snapshot, and tasks are
        // bounded.
        let (sender, wakes) = mpsc::unbounded_channel();
        let (job_sender, jobs) = mpsc::channel(pipeline::JOBS_MAX);
        let (change_sender, changes) = mpsc::channel(CHANGES_MAX);
        let budget = engine.budget().clone();
        let mut tasks = Tasks::new(ledger.clone(), Arc::clone(&strategy), verifier, budget, sender.clone(), job_sender);
        for source in sources {
            let peer = engine.join(clock.now(), source.name().to_owned(), Origin::Configured)?;
            tasks.join(peer, source);
        }
        // Who asks before the first turn gets the head and the sources, not zeros.
        let status = watch::Sender::new(engine.status());
        Ok(Self {
            engine,
            tasks,
            clock,
            ledger,
            head,
            strategy,
            generation: None,
            wakes,
            sender,
            jobs,
            peers: Peers(change_sender),
            changes,
            status,
            usable: watch::Sender::default(),
        })
    }

    /// The same, but live and behind by another measure than the usual one.
    pub fn tolerating(mut self, tolerance: Tolerance) -> Self {
        self.engine.tolerate(tolerance);
        self
    }

    /// The same, but one that takes snapshots where its strategy wants that: what is here of one is kept in this folder,
    /// also until the next start. Or, by this reason, one that never does; so is one that is not told.
    pub fn taking_snapshots(mut self, into: Result<PathBuf, String>) -> Self {
        match into {
            Err(reason) => self.engine.take_snapshots(Some(reason)),
            Ok(dir) => {
                // A chain that has blocks takes none any more: what is here was taken, or never will be.
                if self.ledger.height() > 0
                    && let Err(error) = std::fs::remove_dir_all(&dir)
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(%error, dir = %dir.display(), "what is left of a snapshot could not be removed");
                }
                self.tasks.keep_snapshots_in(dir);
                self.engine.take_snapshots(None);
            }
        }
        self
    }

    /// What it says of itself; changes at most ten times a second, and with every change of state.
    pub fn status(&self) -> watch::Receiver<SyncStatus> {
        self.status.subscribe()
    }

    /// The sources that may be used now: for [`super::forward`].
    pub fn usable(&self) -> watch::Receiver<Vec<Arc<dyn Source>>> {
        self.usable.subscribe()
    }

    /// Where peers come and go.
    pub fn peers(&self) -> Peers {
        self.peers.clone()
    }

    /// Follows until `stop` says true. What was handed to the ledger is still stored; the rest is given up, and comes
    /// again after the next start.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let (_, closed) = mpsc::channel(1);
        let jobs = std::mem::replace(&mut self.jobs, closed);
        let sender = self.sender.clone();
        let importing = tokio::spawn(pipeline::import(self.ledger.clone(), jobs, async move |done| {
            // Nobody listens any more after a stop.
            let _ = sender.send(Wake::Stored(done));
        }));
        while let Some(until) = self.turn() {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                wake = self.wakes.recv() => self.wake(wake.expect("a sender is kept")),
                changed = self.head.changed() => if changed.is_err() { break },
                change = self.changes.recv() => self.change(change.expect("a sender is kept")),
                () = tokio::time::sleep(self.clock.until(until)) => {}
            }
            // All that is there already goes into the same turn.
            while let Ok(wake) = self.wakes.try_recv() {
                self.wake(wake);
            }
            while let Ok(change) = self.changes.try_recv() {
                self.change(change);
            }
        }
        // Closes the queue of imports; what is in the ledger's queue is stored whether or not it is waited for.
        drop(self);
        if let Err(error) = importing.await {
            tracing::error!(%error, "the import task ended badly");
        }
    }

    /// One turn of the engine. Says until when to rest; none where there is nothing left to do.
    fn turn(&mut self) -> Option<Time> {
        self.follow();
        let Turn { commands, status, until } = self.engine.turn(self.clock.now());
        for command in commands {
            if !self.tasks.carry_out(command) {
                return None;
            }
        }
        self.publish(status);
        (!self.engine.is_over()).then_some(until)
    }

    /// Tells the engine what others have changed: the head and the strategy.
    fn follow(&mut self) {
        let now = self.clock.now();
        let head = self.head.borrow_and_update().clone();
        if head != *self.engine.head() {
            self.engine.handle(now, Wake::Head(head));
        }
        let generation = self.strategy.generation();
        if self.generation.replace(generation) != Some(generation) {
            self.engine.handle(now, Wake::Strategy(generation));
        }
    }

    fn wake(&mut self, wake: Wake<Blocks>) {
        self.follow();
        self.tasks.ended(&wake);
        self.engine.handle(self.clock.now(), wake);
    }

    fn change(&mut self, change: Change) {
        let now = self.clock.now();
        match change {
            Change::Join(source) => match self.engine.join(now, source.name().to_owned(), Origin::Met) {
                Ok(peer) => self.tasks.join(peer, source),
                Err(reason) => tracing::warn!(reason, "a peer was not taken in"),
            },
            Change::Leave(name) => {
                if let Some(peer) = self.tasks.peer(&name) {
                    self.engine.leave(now, peer);
                    self.tasks.leave(peer);
                }
            }
            Change::Announce(name, head) => {
                if let Some(peer) = self.tasks.peer(&name) {
                    self.engine.handle(now, Wake::Announced(peer, head));
                }
            }
        }
    }

    fn publish(&self, status: Option<SyncStatus>) {
        let up = || {
            let up = self.engine.peers().iter().filter(|peer| peer.is_up());
            up.filter_map(|peer| self.tasks.source(peer.id))
        };
        self.usable.send_if_modified(|usable| {
            let same = usable.len() == up().count() && usable.iter().zip(up()).all(|(a, b)| Arc::ptr_eq(a, b));
            if !same {
                *usable = up().map(Arc::clone).collect();
            }
            !same
        });
        if let Some(status) = status {
            self.status.send_if_modified(|known| {
                let changed = *known != status;
                *known = status;
                changed
            });
        }
    }
}
