//! A modelled network: peers with delays and vices, a ledger and a strategy, all in virtual time, around a real engine.
//! Everything is drawn from one seed, so a run that fails fails again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::{Blocks, Command, Engine, Fetched, Job, JobDone, Look, Switch, SwitchError, Wake};
use crate::chain::{BlockError, Hash, Head, Height, Time};
use crate::ledger::ImportError;
use crate::sync::budget::Reservation;
use crate::sync::compare::Comparison;
use crate::sync::peers::Origin;
use crate::sync::pipeline::RangeFault;
use crate::sync::source::{SourceError, SourceInfo};
use crate::sync::{Action, Diverged, Event, HeightRange, PeerId, RequestId, SyncConfig, SyncStatus, View, one_peer};

/// Where the clock of a run begins.
pub const START: Time = Time(1_735_689_600_000_000);

/// Bytes of a modelled block.
pub const BLOCK_BYTES: u64 = 1_000;

/// How long a peer that says nothing is waited for.
const TIMEOUT_MS: u64 = 2_000;

/// Which of the valid chains a block is on. All are the same up to [`Fork::after`].
pub type Branch = u8;

/// A modelled block: nothing but what tells it from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stub {
    height: Height,
    branch: Branch,
    flaw: Flaw,
}

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// Shows when it is verified.
    Signature,
    /// Shows when it is imported.
    State,
}

impl Blocks for Vec<Stub> {
    type Body = Vec<Stub>;

    fn first(&self) -> Height {
        self[0].height
    }

    fn count(&self) -> usize {
        self.len()
    }

    fn transactions(&self, _: usize) -> usize {
        1
    }

    fn split_off(&mut self, index: usize) -> Self {
        self.split_off(index)
    }

    fn append(&mut self, following: Self) {
        self.extend(following);
    }
}

/// How a peer behaves. Whatever it does takes its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// As it should.
    Honest,
    /// As it should, but every so many answers, in hundreds, fail.
    Flaky(u32),
    /// Never answers.
    Silent,
    /// Answers who it is and what it has, but no range.
    Stalls,
    /// Has none of the blocks that it reports.
    Empty,
    /// Blocks that are not signed.
    Forged,
    /// Blocks whose state is wrong, though they are signed.
    Corrupt,
    /// One block whose state is wrong, though it is signed, and always the same.
    Mistaken(Height),
    /// Reports a head far above its own.
    Boasts,
    /// Sends half of what it was asked for.
    Short,
    /// Wants to be left alone.
    Limited,
    /// Of another chain.
    Stranger,
    /// Announces a new head all the time.
    Chatty,
    /// On another valid branch.
    Forked(Branch),
    /// On another branch, whose blocks have a wrong state.
    Warped(Branch),
}

impl Nature {
    /// Every vice there is.
    pub const VICES: [Self; 10] = [
        Self::Silent,
        Self::Stalls,
        Self::Empty,
        Self::Forged,
        Self::Corrupt,
        Self::Boasts,
        Self::Short,
        Self::Limited,
        Self::Stranger,
        Self::Chatty,
    ];
}

/// A peer of the model.
#[derive(Clone, Debug)]
pub struct Model {
    pub name: String,
    pub nature: Nature,
    /// The most that an answer takes, in milliseconds.
    pub delay_ms: u64,
    /// What it is behind the chain.
    pub lag: Height,
}

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

/// A branch that leaves the main chain.
#[derive(Clone, Copy, Debug)]
pub struct Fork {
    /// The last block that is the same.
    pub after: Height,
    /// Its height.
    pub height: Height,
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
    /// The heights that are being imported, to see that no two imports overlap.
    importing: BTreeSet<Height>,
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
            importing: BTreeSet::new(),
            asked: false,
            memory: Vec::new(),
            generation: 0,
        }
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
        self.requests.is_empty() && self.imports.is_empty() && self.switch.is_none()
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
                for height in job.range().first..=job.range().last {
                    assert!(self.importing.insert(height), "block {height} is being imported already");
                }
                assert_eq!(job.range().count(), job.blocks.len() as u64);
                self.imports.push_back(job);
                let delay = self.rng.random_range(1..60);
                self.later(delay, Later::Stored);
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

    /// The branch that a peer is on, and its height there.
    fn place(&self, model: &Model) -> (Branch, Height) {
        match model.nature {
            Nature::Forked(branch) | Nature::Warped(branch) => (branch, self.forks[usize::from(branch) - 1].height),
            _ => (0, self.height.saturating_sub(model.lag)),
        }
    }

    /// The branch of a peer's block at a height, as far as it has one.
    fn has(&self, model: &Model, height: Height) -> Option<Branch> {
        let (branch, last) = self.place(model);
        (height <= last).then(|| self.branch_at(height, branch))
    }

    /// Below its first block a branch is the main one.
    fn branch_at(&self, height: Height, branch: Branch) -> Branch {
        if branch > 0 && height > self.forks[usize::from(branch) - 1].after { branch } else { 0 }
    }

    fn head_of_peer(&self, model: &Model) -> (Height, Hash) {
        let (_, last) = self.place(model);
        match model.nature {
            Nature::Boasts => (last + 1_000_000, Hash([9; 32])),
            _ => (last, hash(last, self.has(model, last).unwrap_or(0))),
        }
    }

    fn fails(&mut self, model: &Model) -> bool {
        matches!(model.nature, Nature::Flaky(often) if self.rng.random_ratio(often, 100))
    }

    fn look(&mut self, peer: PeerId, introduce: bool) -> Result<Look, SourceError> {
        let model = self.peers.get(&peer).ok_or(SourceError::Timeout { ms: TIMEOUT_MS })?.clone();
        if model.nature == Nature::Silent || self.fails(&model) {
            return Err(SourceError::Timeout { ms: TIMEOUT_MS });
        }
        let chain_id = if model.nature == Nature::Stranger { "another" } else { "model" }.to_owned();
        let info = SourceInfo { chain_id, genesis_hash: Hash::ZERO, node_id: model.name.clone() };
        let head = self.head_of_peer(&model);
        let ours = self.ledger.get(head.0 as usize).map(|&branch| hash(head.0, branch));
        Ok(Look { info: introduce.then_some(info), head: Some(head), ours })
    }

    fn compare(&mut self, peer: PeerId, height: Height) -> Result<Comparison, SourceError> {
        let model = self.peers.get(&peer).ok_or(SourceError::Timeout { ms: TIMEOUT_MS })?.clone();
        if matches!(model.nature, Nature::Silent | Nature::Stalls) || self.fails(&model) {
            return Err(SourceError::Timeout { ms: TIMEOUT_MS });
        }
        let last = height.min(self.ledger.len() as Height - 1);
        for height in 1..=last {
            let ours = self.ledger[height as usize];
            let Some(theirs) = self.has(&model, height) else {
                return Ok(Comparison::Invalid(format!("it does not have block {height}")));
            };
            if ours != theirs {
                let (ours, theirs) = (hash(height, ours), hash(height, theirs));
                return Ok(Comparison::Diverged(Diverged { height, ours, theirs, peer: model.name }));
            }
        }
        Ok(Comparison::Same)
    }

    fn range(&mut self, peer: PeerId, range: HeightRange, mut room: Reservation) -> Answer {
        let model = self.peers.get(&peer).ok_or(SourceError::Timeout { ms: TIMEOUT_MS })?.clone();
        let timeout = matches!(model.nature, Nature::Silent | Nature::Stalls);
        if timeout || self.fails(&model) {
            return Err(SourceError::Timeout { ms: TIMEOUT_MS });
        }
        if model.nature == Nature::Limited {
            return Err(SourceError::Limited { retry_after_ms: 3_000 });
        }
        let has = (range.first..=range.last)
            .map_while(|height| self.has(&model, height).map(|branch| Stub { height, branch, flaw: Flaw::None }));
        let mut body: Vec<Stub> = has.collect();
        match model.nature {
            Nature::Empty => body.clear(),
            Nature::Short => body.truncate(body.len().div_ceil(2)),
            Nature::Forged if !body.is_empty() => {
                let at = self.rng.random_range(0..body.len());
                body[at].flaw = Flaw::Signature;
            }
            Nature::Corrupt if !body.is_empty() => {
                let at = self.rng.random_range(0..body.len());
                body[at].flaw = Flaw::State;
            }
            Nature::Mistaken(at) => {
                body.iter_mut().filter(|block| block.height == at).for_each(|block| block.flaw = Flaw::State);
            }
            Nature::Warped(_) => {
                body.iter_mut().filter(|block| block.branch > 0).for_each(|block| block.flaw = Flaw::State);
            }
            _ => {}
        }
        // As a source does: what has no room is left out.
        while !body.is_empty() && !room.grow(body.len() as u64 * BLOCK_BYTES) {
            if body.len() == 1 {
                if !room.may_exceed() {
                    return Err(SourceError::NoRoom { got: 1 });
                }
                break;
            }
            body.pop();
        }
        room.settle(body.len() as u64 * BLOCK_BYTES);
        let head = Some(self.head_of_peer(&model));
        let blocks = body.len() as u64;
        Ok(Fetched { body, blocks, room, head, first_byte_us: 500, duration_us: 1_000 + blocks * 10 })
    }

    /// The oldest import is done.
    fn store(&mut self) {
        let Job { parts, blocks, rooms } = self.imports.pop_front().expect("as many as are stored");
        for block in &blocks {
            self.importing.remove(&block.height);
        }
        drop(rooms);
        let fails = self.rng.random_ratio(self.storage_faults, 100);
        let (mut imported, mut error) = (0, fails.then(|| ImportError::Storage("a full disk".into())));
        for block in blocks {
            if error.is_some() {
                break;
            }
            match self.extend(block) {
                Ok(()) => imported += 1,
                Err(reason) => error = Some(reason),
            }
        }
        self.engine.handle(self.now, Wake::Head(head_of(&self.ledger)));
        self.engine.handle(self.now, Wake::Stored(JobDone { parts, imported, error }));
    }

    /// Takes back at most `blocks` for a better branch.
    pub fn limit_reorgs(&mut self, blocks: u64) {
        self.engine.limit_reorgs(blocks);
        self.max_reorg_depth = blocks;
    }

    fn switch_branch(&mut self, switch: Switch<Vec<Stub>>) -> Result<(), SwitchError> {
        let Switch { common, blocks, deep, rooms } = switch;
        drop(rooms);
        let ours = head_of(&self.ledger);
        if self.rng.random_ratio(self.storage_faults, 100) {
            return Err(SwitchError::Storage("a full disk".into()));
        }
        if ours.height - common > self.max_reorg_depth && !deep {
            return Err(SwitchError::Refused("too deep".into()));
        }
        let last = blocks[blocks.len() - 1];
        let theirs = (last.height, hash(last.height, last.branch));
        if (theirs.0, Reverse(theirs.1)) <= (ours.height, Reverse(ours.hash)) {
            return Err(SwitchError::Refused("no better".into()));
        }
        let before = self.ledger.clone();
        self.ledger.truncate(common as usize + 1);
        for block in blocks {
            if let Err(error) = self.extend(block) {
                self.ledger = before;
                return Err(SwitchError::Invalid { height: block.height, reason: error.to_string() });
            }
        }
        Ok(())
    }

    fn extend(&mut self, Stub { height, branch, flaw }: Stub) -> Result<(), ImportError> {
        let next = self.ledger.len() as Height;
        if height > next {
            return Err(ImportError::Gap { head: next - 1, got: height });
        }
        if height < next {
            let (ours, theirs) = (hash(height, self.ledger[height as usize]), hash(height, branch));
            return if ours == theirs { Ok(()) } else { Err(ImportError::Conflict { height, ours, theirs }) };
        }
        let (expected, got) = (self.ledger[next as usize - 1], self.branch_at(height - 1, branch));
        if expected != got {
            let (expected, got) = (hash(height - 1, expected), hash(height - 1, got));
            return Err(BlockError::Parent { height, expected, got }.into());
        }
        if flaw == Flaw::State {
            return Err(BlockError::StateRoot { expected: Hash::ZERO, got: Hash([1; 32]) }.into());
        }
        assert_eq!(flaw, Flaw::None, "what is not verified is not imported");
        self.ledger.push(branch);
        Ok(())
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
            5 => Action::FetchSnapshot { peer, height: 1 },
            _ => {
                let first = view.head.0 + self.rng.random_range(0..200);
                Action::FetchRange { peer, range: HeightRange { first, last: first + self.rng.random_range(0..60) } }
            }
        }
    }
}

/// The hash of a valid block.
pub fn hash(height: Height, branch: Branch) -> Hash {
    Hash::of(&[b"model", &height.to_be_bytes(), &[branch]])
}

fn head_of(ledger: &[Branch]) -> Head {
    let height = ledger.len() as Height - 1;
    let hash = hash(height, ledger[ledger.len() - 1]);
    Head { height, hash, parent_hash: Hash::ZERO, timestamp: START, tx_count: 0, state_root: Hash::ZERO }
}

fn verify(first: Height, body: Vec<Stub>) -> Result<Vec<Stub>, RangeFault> {
    for (expected, block) in (first..).zip(&body) {
        if block.height != expected {
            return Err(RangeFault::Height { expected, got: block.height });
        }
        if block.flaw == Flaw::Signature {
            return Err(RangeFault::Invalid { height: expected, error: BlockError::Signature });
        }
    }
    Ok(body)
}
