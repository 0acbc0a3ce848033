//! A modelled network: peers with delays and vices, a ledger and a strategy, all in virtual time, around a real engine.
//! Everything is drawn from one seed, so a run that fails fails again.

mod ledger;
mod peers;
mod world;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::{Blocks, Command, Engine, Fetched, Job, SnapshotFault, SnapshotNews, Switch, Wake};
use crate::chain::{Hash, Height, Time};
use crate::snapshot::Progress;
use crate::snapshot::source::Offer;
use crate::sync::peers::Origin;
use crate::sync::source::{SourceError, SourceInfo};
use crate::sync::{Action, Event, HeightRange, PeerId, RequestId, SyncConfig, SyncStatus, View, one_peer};
pub use world::{BLOCK_BYTES, Branch, Flaw, Fork, Model, Nature, START, Stub, hash};
use world::{head_of, verify};

/// How long a peer that says nothing is waited for.
const TIMEOUT_MS: u64 = 2_000;

/// What the strategy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plans {
    /// The built-in.
    OnePeer,
    /// The built-in, and a fresh one takes over at every call.
    Swapped,
    /// Draws whatever may be wished.
    Mad,
    /// Wants nothing.
    Idle,
}

/// What happens later.
enum Later {
    Wake(Wake<Vec<Stub>>),
    /// The answer to a request, unless that was ended.
    Fetched(RequestId),
    /// The answer to a look or a comparison, unless that was ended.
    Looked(PeerId, u64),
    Planned(Vec<Action>),
    Stored,
    Switched,
    /// How the snapshot with this number ends, unless it was ended.
    Snapshot(u64, Result<(), SnapshotFault>),
    Join(Model),
    Leave(String),
    Grow(Height),
    Chatter(PeerId),
}

type Answer = Result<Fetched<Vec<Stub>>, SourceError>;

/// The whole of it.
pub struct Network {
    pub engine: Engine<Vec<Stub>>,
    pub now: Time,
    pub status: SyncStatus,
    pub rng: StdRng,
    pub plans: Plans,
    /// The height of the main chain.
    pub height: Height,
    pub forks: Vec<Fork>,
    /// The local chain, from block 0: which branch each block is on.
    pub ledger: Vec<Branch>,
    /// In hundreds, how many imports the database fails.
    pub storage_faults: u32,
    /// The most that an import takes, in milliseconds.
    pub import_ms: u64,
    /// How often the chain went over to another branch.
    pub switches: u64,
    /// The lowest score that an honest peer had.
    pub honest_score_min: i32,
    pub rounds: u64,
    pub happenings: u64,
    pub questions: u64,
    pub refused: u64,
    pub events: Vec<Event>,
    config: SyncConfig,
    max_reorg_depth: u64,
    /// Requests so far, by the name of whom they asked.
    asked_of: HashMap<String, u64>,
    later: BTreeMap<(Time, u64), Later>,
    sequence: u64,
    peers: HashMap<PeerId, Model>,
    requests: HashMap<RequestId, (PeerId, Answer)>,
    looks: HashMap<PeerId, (u64, Wake<Vec<Stub>>)>,
    imports: VecDeque<Job<Vec<Stub>>>,
    switch: Option<Switch<Vec<Stub>>>,
    /// The snapshot that everybody offers whose chain is as long.
    pub snapshot_at: Option<Height>,
    /// The snapshot under way.
    snapshot: Option<(u64, Offer)>,
    /// How many were begun, and how many taken.
    pub snapshots: (u64, u64),
    /// The heights that are being imported, to see that no two imports overlap.
    pub importing: BTreeSet<Height>,
    asked: bool,
    memory: Vec<u8>,
    generation: u64,
}

impl Network {
    /// A node at block 0 of a chain of `height` blocks, without peers.
    pub fn new(seed: u64, height: Height, plans: Plans, config: SyncConfig) -> Self {
        let us = SourceInfo { chain_id: "model".into(), genesis_hash: Hash::ZERO, node_id: "us".into() };
        let ledger = vec![0];
        Self {
            engine: Engine::new(us, config.clone(), head_of(&ledger), START),
            max_reorg_depth: 256,
            now: START,
            status: SyncStatus::default(),
            rng: StdRng::seed_from_u64(seed),
            plans,
            height,
            forks: Vec::new(),
            ledger,
            storage_faults: 0,
            import_ms: 60,
            switches: 0,
            honest_score_min: i32::MAX,
            rounds: 0,
            happenings: 0,
            questions: 0,
            refused: 0,
            events: Vec::new(),
            config,
            asked_of: HashMap::new(),
            later: BTreeMap::new(),
            sequence: 0,
            peers: HashMap::new(),
            requests: HashMap::new(),
            looks: HashMap::new(),
            imports: VecDeque::new(),
            switch: None,
            snapshot_at: None,
            snapshot: None,
            snapshots: (0, 0),
            importing: BTreeSet::new(),
            asked: false,
            memory: Vec::new(),
            generation: 0,
        }
    }

    /// Everybody offers a snapshot of this block, and the node takes it.
    pub fn offer_snapshots(&mut self, of: Option<Height>) {
        self.snapshot_at = of;
        self.engine.take_snapshots(None);
    }

    /// A peer comes in `in_ms`.
    pub fn join(&mut self, in_ms: u64, model: Model) {
        self.later(in_ms, Later::Join(model));
    }

    /// A peer goes in `in_ms`.
    pub fn leave(&mut self, in_ms: u64, name: &str) {
        self.later(in_ms, Later::Leave(name.to_owned()));
    }

    /// The chain grows by `blocks` in `in_ms`.
    pub fn grow(&mut self, in_ms: u64, blocks: Height) {
        self.later(in_ms, Later::Grow(blocks));
    }

    /// A peer says by itself what its head is.
    pub fn announce(&mut self, peer: PeerId, head: (Height, Hash)) {
        self.engine.handle(self.now, Wake::Announced(peer, head));
    }

    /// Lets `ms` pass, or as many as it takes until `done`. Whether it was done.
    pub fn run(&mut self, ms: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now.plus_ms(ms);
        loop {
            let until = self.turn();
            if done(self) {
                return true;
            }
            let next = self.later.first_key_value().map_or(until, |((at, _), _)| (*at).min(until));
            if next > end {
                self.now = end;
                return false;
            }
            self.now = next;
            while let Some(entry) = self.later.first_entry().filter(|entry| entry.key().0 <= next) {
                self.happenings += 1;
                let later = entry.remove();
                self.happen(later);
            }
        }
    }

    /// How many requests a peer of this name has had.
    pub fn requests_of(&self, name: &str) -> u64 {
        self.asked_of.get(name).copied().unwrap_or(0)
    }

    /// The hash of the main chain's head.
    pub fn best(&self) -> (Height, Hash) {
        (self.height, hash(self.height, 0))
    }

    /// Whether nothing is under way but looks.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.imports.is_empty() && self.switch.is_none() && self.snapshot.is_none()
    }

    fn later(&mut self, in_ms: u64, later: Later) {
        self.sequence += 1;
        self.later.insert((self.now.plus_ms(in_ms), self.sequence), later);
    }

    fn turn(&mut self) -> Time {
        self.rounds += 1;
        let before = self.generation;
        if self.plans == Plans::Swapped || before == 0 {
            self.generation = self.questions + 1;
        }
        if self.generation != before {
            self.memory.clear();
            self.engine.handle(self.now, Wake::Strategy(self.generation));
        }
        let turn = self.engine.turn(self.now);
        for command in turn.commands {
            self.carry_out(command);
        }
        if let Some(status) = turn.status {
            assert_eq!(status.in_flight as usize, self.requests.len(), "each request is carried out, or ended");
            assert!(status.in_flight <= self.config.in_flight_max + 2, "{status:#?}");
            self.status = status;
        }
        self.check();
        assert!(turn.until > self.now, "it rests");
        turn.until
    }

    /// What has to hold at any moment.
    fn check(&mut self) {
        for peer in self.engine.peers().iter() {
            if self.peers[&peer.id].nature == Nature::Honest {
                self.honest_score_min = self.honest_score_min.min(peer.score());
            }
        }
    }

    fn carry_out(&mut self, command: Command<Vec<Stub>>) {
        match command {
            Command::Look { peer, introduce } => {
                let look = self.look(peer, introduce);
                let delay = self.delay(peer, look.is_err());
                self.look_later(delay, peer, Wake::Looked(peer, look));
            }
            Command::Compare { peer, height, .. } => {
                let compared = self.compare(peer, height);
                let delay = self.delay(peer, compared.is_err());
                self.look_later(delay * 3, peer, Wake::Compared(peer, compared));
            }
            // What was answered between the decision and now has ended by itself.
            Command::EndLook(peer) => _ = self.looks.remove(&peer),
            Command::Fetch { id, peer, range, room } => {
                assert!(self.snapshot.is_none(), "ranges wait for a snapshot");
                if let Some(model) = self.peers.get(&peer) {
                    *self.asked_of.entry(model.name.clone()).or_default() += 1;
                }
                let answer = self.range(peer, range, room);
                let delay = self.delay(peer, matches!(answer, Err(SourceError::Timeout { .. })));
                assert!(self.requests.insert(id, (peer, answer)).is_none(), "never the same number");
                self.later(delay, Later::Fetched(id));
            }
            Command::Abort(id) => _ = self.requests.remove(&id),
            Command::Verify { id, first, body } => {
                let delay = self.rng.random_range(0..20);
                self.later(delay, Later::Wake(Wake::Verified(id, verify(first, body))));
            }
            Command::Switch(switch) => {
                assert!(self.imports.is_empty() && self.switch.is_none(), "nothing else is on its way to the chain");
                assert_eq!(switch.blocks.first(), switch.common + 1);
                self.switch = Some(switch);
                let delay = self.rng.random_range(1..200);
                self.later(delay, Later::Switched);
            }
            Command::Import(job) => {
                assert!(self.switch.is_none(), "nothing is imported during a switch");
                assert!(self.snapshot.is_none(), "nor beside a snapshot");
                for height in job.range().first..=job.range().last {
                    assert!(self.importing.insert(height), "block {height} is being imported already");
                }
                assert_eq!(job.range().count(), job.blocks.len() as u64);
                self.imports.push_back(job);
                let delay = self.rng.random_range(1..self.import_ms);
                self.later(delay, Later::Stored);
            }
            Command::FetchSnapshot { number, offer, peers } => {
                assert!(
                    self.snapshot.is_none() && self.imports.is_empty() && self.ledger.len() == 1,
                    "one, at block 0"
                );
                assert!(!peers.is_empty());
                self.snapshots.0 += 1;
                let is_of_no_block = offer.height > self.height;
                self.snapshot = Some((number, offer));
                let ended = match self.rng.random_range(0..5) {
                    // Nobody sends anything any more.
                    0 => return,
                    1 => Err(SnapshotFault::Unavailable("everybody is gone".into())),
                    2 => Err(SnapshotFault::Invalid("a wrong state root".into())),
                    // What a boaster offers nobody has signed.
                    _ if is_of_no_block => Err(SnapshotFault::Invalid("no authority has signed it".into())),
                    _ => Ok(()),
                };
                let done = Progress { chunks: 1, of: 2, bytes: 9 };
                self.later(10, Later::Wake(Wake::Snapshot(number, SnapshotNews::Downloaded(done))));
                if ended.is_ok() {
                    self.later(20, Later::Wake(Wake::Snapshot(number, SnapshotNews::Installed(done))));
                }
                let delay = self.rng.random_range(30..3_000);
                self.later(delay, Later::Snapshot(number, ended));
            }
            Command::EndSnapshot(number) => {
                assert!(self.snapshot.take().is_some_and(|(known, _)| known == number));
            }
            Command::Ask { view, events } => {
                assert!(!std::mem::replace(&mut self.asked, true), "one question at a time");
                assert!(!events.is_empty(), "there is a reason to ask");
                self.questions += 1;
                let actions = self.plan(&view, &events);
                self.events.extend(events);
                let delay = if self.rng.random_ratio(1, 20) { self.rng.random_range(0..200) } else { 0 };
                self.later(delay, Later::Planned(actions));
            }
            Command::Refused { action, reason } => {
                self.refused += 1;
                assert_eq!(self.plans, Plans::Mad, "{action:?}: {reason}");
            }
        }
    }

    fn happen(&mut self, later: Later) {
        let now = self.now;
        match later {
            Later::Wake(wake) => self.engine.handle(now, wake),
            Later::Fetched(id) => {
                if let Some((_, answer)) = self.requests.remove(&id) {
                    self.engine.handle(now, Wake::Fetched(id, answer));
                }
            }
            Later::Looked(peer, at) => {
                if self.looks.get(&peer).is_some_and(|(sequence, _)| *sequence == at) {
                    let (_, wake) = self.looks.remove(&peer).expect("just seen");
                    self.engine.handle(now, wake);
                }
            }
            Later::Planned(actions) => {
                self.asked = false;
                self.engine.handle(now, Wake::Planned(actions));
            }
            Later::Stored => self.store(),
            Later::Switched => {
                let switch = self.switch.take().expect("as many as are switched");
                let switched = self.switch_branch(switch);
                self.switches += u64::from(switched.is_ok());
                self.engine.handle(now, Wake::Head(head_of(&self.ledger)));
                self.engine.handle(now, Wake::Switched(switched));
            }
            Later::Snapshot(number, mut ended) => {
                let Some((_, offer)) = self.snapshot.take_if(|(known, _)| *known == number) else { return };
                if ended.is_ok() && self.ledger.len() > 1 {
                    ended = Err(SnapshotFault::Local("there are blocks".into()));
                }
                if ended.is_ok() {
                    self.snapshots.1 += 1;
                    self.ledger = vec![0; offer.height as usize + 1];
                    self.engine.handle(now, Wake::Head(head_of(&self.ledger)));
                }
                self.engine.handle(now, Wake::Snapshot(number, SnapshotNews::Ended(ended)));
            }
            Later::Join(model) => {
                let peer = self.engine.join(now, model.name.clone(), Origin::Met).unwrap();
                if model.nature == Nature::Chatty {
                    self.later(1, Later::Chatter(peer));
                }
                self.peers.insert(peer, model);
            }
            Later::Leave(name) => {
                let peer = self.peers.iter().find(|(_, model)| model.name == name).map(|(&peer, _)| peer);
                if let Some(peer) = peer {
                    self.engine.leave(now, peer);
                    self.peers.remove(&peer);
                }
            }
            Later::Grow(blocks) => self.height += blocks,
            Later::Chatter(peer) => {
                if self.peers.contains_key(&peer) {
                    let height = self.rng.random_range(0..self.height + 10);
                    self.engine.handle(now, Wake::Announced(peer, (height, Hash([7; 32]))));
                    self.later(5, Later::Chatter(peer));
                }
            }
        }
    }

    fn look_later(&mut self, delay: u64, peer: PeerId, wake: Wake<Vec<Stub>>) {
        self.later(delay, Later::Looked(peer, self.sequence + 1));
        let before = self.looks.insert(peer, (self.sequence, wake));
        assert!(before.is_none(), "one look at a time");
    }

    fn delay(&mut self, peer: PeerId, timeout: bool) -> u64 {
        let most = self.peers.get(&peer).map_or(1, |model| model.delay_ms);
        if timeout { TIMEOUT_MS } else { self.rng.random_range(0..=most) }
    }

    fn plan(&mut self, view: &View, events: &[Event]) -> Vec<Action> {
        match self.plans {
            Plans::Idle => Vec::new(),
            Plans::OnePeer | Plans::Swapped => {
                let (actions, memory) = one_peer::step(view, events, &self.memory);
                self.memory = memory;
                actions
            }
            Plans::Mad => (0..self.rng.random_range(0..9)).map(|_| self.whim(view)).collect(),
        }
    }

    fn whim(&mut self, view: &View) -> Action {
        let peer = self.rng.random_range(0..8);
        match self.rng.random_range(0..10) {
            0 => Action::Cancel(self.rng.random_range(0..self.engine.status().requests + 2)),
            1 => Action::Penalise { peer, points: self.rng.random_range(0..120) },
            2 => Action::DropPeer(peer),
            3 => Action::WaitUntil(Time(self.rng.random_range(0..START.0 * 2))),
            4 => Action::Report("mad".into()),
            5 => Action::FetchSnapshot { peer, height: self.snapshot_at.unwrap_or(1) },
            _ => {
                let first = view.head.0 + self.rng.random_range(0..200);
                Action::FetchRange { peer, range: HeightRange { first, last: first + self.rng.random_range(0..60) } }
            }
        }
    }
}
