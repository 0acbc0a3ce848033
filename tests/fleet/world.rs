//! The world around the nodes: virtual time, a network that loses, delays, doubles and cuts, clients, and what befalls
//! nodes and clocks. Everything that is not decided by the plan is drawn from one stream of chance.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use tenon::chain::{Address, Hash, Kind, NonceRule, Payload, Time, Transaction};
use tenon::sample;
use tenon::simulate::{Agenda, Random, Span};
use tenon::sync::peers::Origin;
use tenon::sync::source::SourceError;
use tenon::sync::{OnDivergence, SyncState};

use super::chronicle::{Chronicle, is_better};
use super::node::{Effect, Event, Message, Node};
use super::plan::{self, CLIENTS, Fault, Plan};
use super::tally::Tally;

/// How long blocks are made after everything is well again, and for how long then nothing new comes but an agreement.
const CALM_MS: u64 = 4_000;
/// How long a node that has met others takes to notice that they are gone, or there again.
const NOTICES_MS: Span = Span { low: 50, high: 4_000 };
/// Lines of the log that are kept for whoever has to read them.
const LINES_MAX: usize = 200;

/// The last lines of what happened.
pub type Lines = Arc<Mutex<VecDeque<String>>>;

enum Happening {
    /// To a node, unless it has died since.
    Local(usize, u64, Event),
    Arrives {
        from: usize,
        to: usize,
        message: Message,
    },
    Fault(Fault),
    Mended(Vec<(usize, usize)>),
    Start(usize),
    /// A node notices that a neighbour is gone, or there.
    Notices(usize, usize),
    Submit,
}

/// See the module.
pub struct World {
    plan: Rc<Plan>,
    random: Random,
    agenda: Agenda<Happening>,
    now: Time,
    nodes: Vec<Node>,
    chronicle: Chronicle,
    /// How many cuts there are from one node to another.
    cuts: BTreeMap<(usize, usize), u32>,
    stormy: bool,
    producing: bool,
    sent: Vec<Transaction>,
    tally: Tally,
    digest: Hash,
    lines: Lines,
    _dir: tempfile::TempDir,
}

/// Runs one seed to its end. Answers what happened, and the digest of all that did. Panics where a promise is broken.
pub fn run(seed: u64, lines: &Lines) -> (Tally, Hash) {
    let mut world = World::new(Plan::draw(seed), Lines::clone(lines));
    world.storm();
    world.calm();
    world.agree();
    world.end()
}

impl World {
    fn new(plan: Plan, lines: Lines) -> Self {
        let plan = Rc::new(plan);
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("room for databases");
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build();
        let runtime = Rc::new(runtime.expect("a runtime without threads"));
        let nodes = (0..plan.nodes).map(|id| Node::new(id, &plan, &runtime, dir.path())).collect();
        let mut world = Self {
            random: Random::new(plan.seed ^ 0x5eed),
            agenda: Agenda::new(),
            now: sample::START.plus_ms(3_600_000),
            nodes,
            chronicle: Chronicle::new(&plan),
            cuts: BTreeMap::new(),
            stormy: true,
            producing: true,
            sent: Vec::new(),
            tally: Tally { seeds: 1, nodes: plan.nodes as u64, ..Tally::default() },
            digest: Hash::ZERO,
            lines,
            plan,
            _dir: dir,
        };
        world.log(&format!("{:?}", world.plan));
        for node in 0..world.plan.nodes {
            world.start(node);
        }
        for (at, fault) in world.plan.faults.clone() {
            world.agenda.note(world.now.plus_ms(at), Happening::Fault(fault));
        }
        world.agenda.note(world.now.plus_ms(500), Happening::Submit);
        world
    }

    fn log(&mut self, line: &str) {
        let ms = self.now.ms_since(sample::START);
        let line = format!("{ms} {line}");
        self.digest = Hash::of(&[&self.digest.0, line.as_bytes()]);
        let mut lines = self.lines.lock().expect("nobody panics while holding it");
        if lines.len() >= LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// Lets time pass, until `done` at most.
    fn run(&mut self, ms: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now.plus_ms(ms);
        while let Some(at) = self.agenda.next_at().filter(|at| *at <= end) {
            self.tally.ms += at.ms_since(self.now);
            self.now = at;
            while let Some(happening) = self.agenda.take(at) {
                self.happen(happening);
            }
            if done(self) {
                return true;
            }
        }
        self.now = end;
        false
    }

    fn storm(&mut self) {
        self.run(self.plan.storm_ms, |_| false);
    }

    /// Everything is well from now on; blocks are made for a while, and clients send.
    fn calm(&mut self) {
        self.log("calm");
        self.stormy = false;
        self.cuts.clear();
        for node in 0..self.nodes.len() {
            self.nodes[node].skew_ms = self.plan.skew_ms[node].clamp(-400, 400);
            if self.nodes[node].up.is_none() {
                self.start(node);
            }
        }
        self.notice();
        self.run(CALM_MS, |_| false);
        self.producing = false;
    }

    /// All agree in time, or say why not.
    fn agree(&mut self) {
        self.log("no more blocks");
        let (since, healing_ms) = (self.now, self.plan.healing_ms());
        let agreed = self.run(healing_ms, |world| world.disagreement().is_none());
        if !agreed && let Some(why) = self.disagreement() {
            panic!("{why}, {healing_ms} ms after everything was well");
        }
        self.tally.healing_ms_max = self.now.ms_since(since);
    }

    /// Two neighbours with different heads, though nothing keeps the worse one from the better head.
    fn disagreement(&self) -> Option<String> {
        let mut refused = 0;
        for &(a, b) in &self.plan.links {
            let (mut worse, mut better) = (a, b);
            if self.chronicle.head(a) == self.chronicle.head(b) {
                continue;
            }
            if is_better(self.chronicle.head(a), self.chronicle.head(b)) {
                (worse, better) = (b, a);
            }
            let (ours, theirs) = (self.chronicle.head(worse), self.chronicle.head(better));
            let depth = self.chronicle.between(ours, theirs).0.len() as u64;
            let status = &self.nodes[worse].up.as_ref().expect("all are up").status;
            let text =
                format!("node {worse} is at {ours:?}, {depth} above the fork, its neighbour {better} at {theirs:?}");
            let may_refuse = match self.plan.sync.on_divergence {
                // Nothing more at all, from nobody, as long as anybody has another block.
                OnDivergence::Halt => true,
                OnDivergence::Reorg => depth > self.plan.max_reorg_depth,
                OnDivergence::Resync => false,
            };
            let counted = self.plan.sync.on_divergence == OnDivergence::Halt || status.refused_reorg.is_some();
            let says = status.diverged.is_some() && counted;
            let raised = self.plan.origin == Origin::Met || status.state == SyncState::Diverged;
            if !may_refuse || !says || !raised {
                return Some(format!("{text}; it says {status:#?}"));
            }
            refused += 1;
        }
        let heads = || (0..self.nodes.len()).map(|node| self.chronicle.head(node));
        let best = self.chronicle.best();
        if refused == 0 && heads().any(|head| head != best) {
            return Some(format!("the best head is {best:?}, nodes are at {:?}", heads().collect::<Vec<_>>()));
        }
        None
    }

    /// The last look at everything.
    fn end(mut self) -> (Tally, Hash) {
        let best = self.chronicle.best();
        let heads: Vec<_> = (0..self.nodes.len()).map(|node| self.chronicle.head(node)).collect();
        assert!(heads.contains(&best), "the best head {best:?} is lost, nodes are at {heads:?}");
        self.tally.refused = heads.iter().filter(|head| **head != best).count() as u64;
        self.tally.blocks = self.chronicle.made();
        self.chronicle.check(&self.nodes, &mut self.tally);
        let roots = self.nodes.iter().map(|node| node.up.as_ref().expect("all are up").ledger.head().state_root);
        let roots: Vec<Hash> = roots.collect();
        self.log(&format!("{heads:?} {roots:?}"));
        for node in &mut self.nodes {
            node.end(false);
        }
        (self.tally, self.digest)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Local(node, incarnation, event) => {
                let it = &self.nodes[node];
                let stale = it.incarnation != incarnation || matches!(event, Event::Turn) && !it.is_due(self.now);
                let over = matches!(event, Event::Produce) && !self.producing;
                if it.up.is_some() && !stale && !over {
                    self.handle(node, event);
                }
            }
            Happening::Arrives { from, to, message } => self.arrives(from, to, message),
            Happening::Fault(fault) => self.befall(fault),
            Happening::Mended(pairs) => {
                self.log(&format!("mended {pairs:?}"));
                for pair in pairs {
                    self.cuts.entry(pair).and_modify(|cuts| *cuts -= 1);
                }
                self.cuts.retain(|_, cuts| *cuts > 0);
                self.notice();
            }
            Happening::Start(node) => {
                if self.nodes[node].up.is_none() {
                    self.start(node);
                    self.notice();
                }
            }
            Happening::Notices(node, neighbour) => {
                let gone = self.nodes[neighbour].up.is_none() || self.is_cut(node, neighbour);
                if self.nodes[node].up.is_some() {
                    self.handle(node, if gone { Event::Lost(neighbour) } else { Event::Met(neighbour) });
                }
            }
            Happening::Submit => {
                self.submit();
                let in_ms = self.random.within(self.plan.submit_ms);
                if self.producing {
                    self.agenda.note(self.now.plus_ms(in_ms), Happening::Submit);
                }
            }
        }
    }

    fn handle(&mut self, node: usize, event: Event) {
        self.tally.events += 1;
        let own = matches!(event, Event::Produce);
        let effects = self.nodes[node].handle(self.now, event);
        if let Some(((height, hash), undone)) = self.chronicle.observe(&mut self.nodes[node], own) {
            self.log(&format!("node {node} head {height} {hash} undone {undone}"));
            self.tally.reorgs += u64::from(undone > 0);
            self.tally.reorg_depth_max = self.tally.reorg_depth_max.max(undone);
        }
        self.carry_out(node, effects);
    }

    fn carry_out(&mut self, node: usize, effects: Vec<Effect>) {
        let incarnation = self.nodes[node].incarnation;
        for effect in effects {
            match effect {
                Effect::Send(to, message) => self.send(node, to, message),
                Effect::Later(low, high, event) => {
                    let in_ms = self.random.within(Span { low, high });
                    self.agenda.note(self.now.plus_ms(in_ms), Happening::Local(node, incarnation, event));
                }
                Effect::Note(text) => self.log(&format!("node {node} {text}")),
            }
        }
    }

    // The network.

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cuts.contains_key(&(a, b)) || self.cuts.contains_key(&(b, a))
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        self.tally.messages += 1;
        if self.cuts.contains_key(&(from, to)) || self.stormy && self.random.percent(self.plan.loss) {
            self.tally.lost += 1;
            return;
        }
        let twice = self.stormy && self.random.percent(self.plan.twice);
        self.tally.twice += u64::from(twice);
        for _ in 0..=u64::from(twice) {
            let in_ms = self.random.within(self.plan.delay_ms);
            let message = message.clone();
            self.agenda.note(self.now.plus_ms(in_ms), Happening::Arrives { from, to, message });
        }
    }

    fn arrives(&mut self, from: usize, to: usize, message: Message) {
        if self.cuts.contains_key(&(from, to)) {
            self.tally.lost += 1;
        } else if self.nodes[to].up.is_some() {
            self.handle(to, Event::Message(from, message));
        } else if let Message::Question(ticket, _) = message {
            let refused = Err(SourceError::Unreachable("nobody listens there".into()));
            self.send(to, from, Message::Answer(ticket, refused));
        }
    }

    /// Whoever has met others notices after a while who is there.
    fn notice(&mut self) {
        if self.plan.origin != Origin::Met {
            return;
        }
        for (a, b) in self.plan.links.clone() {
            for (node, neighbour) in [(a, b), (b, a)] {
                let in_ms = self.random.within(NOTICES_MS);
                self.agenda.note(self.now.plus_ms(in_ms), Happening::Notices(node, neighbour));
            }
        }
    }

    // What befalls nodes.

    fn start(&mut self, node: usize) {
        self.log(&format!("node {node} starts"));
        let effects = self.nodes[node].start(self.now);
        if self.nodes[node].incarnation > 1 {
            self.chronicle.comes_back(&self.nodes[node]);
        }
        self.carry_out(node, effects);
    }

    fn befall(&mut self, fault: Fault) {
        self.log(&format!("{fault:?}"));
        match fault {
            Fault::Cut(pairs, for_ms) => {
                self.tally.partitions += 1;
                for &pair in &pairs {
                    *self.cuts.entry(pair).or_default() += 1;
                }
                self.agenda.note(self.now.plus_ms(for_ms), Happening::Mended(pairs));
                self.notice();
            }
            Fault::Down { node, for_ms, killed } => {
                if self.nodes[node].up.is_none() {
                    return;
                }
                *if killed { &mut self.tally.kills } else { &mut self.tally.stops } += 1;
                self.chronicle.dies(&self.nodes[node]);
                self.nodes[node].end(killed);
                self.agenda.note(self.now.plus_ms(for_ms), Happening::Start(node));
                self.notice();
            }
            Fault::Clock { node, skew_ms } => {
                self.tally.clocks_set += 1;
                self.nodes[node].skew_ms = skew_ms;
            }
        }
    }

    // Clients.

    fn submit(&mut self) {
        let up: Vec<usize> = (0..self.nodes.len()).filter(|&node| self.nodes[node].up.is_some()).collect();
        if up.is_empty() {
            return;
        }
        let node = up[self.random.below(up.len() as u64) as usize];
        let old = self.sent.len() as u64;
        let transaction = match self.random.below(10) {
            // The same once more, by somebody who has heard nothing.
            0 if old > 0 => self.sent[self.random.below(old) as usize].clone(),
            // Another one in the place of an older one: a higher fee, or the same money sent twice.
            1 | 2 if old > 0 => {
                let at = old - 1 - self.random.below(old.min(6));
                let Transaction { nonce, public_key, .. } = self.sent[at as usize];
                let owner = (0..CLIENTS).find(|index| plan::client(self.plan.seed, *index).public_key() == public_key);
                self.draw(owner.expect("a client's"), nonce)
            }
            _ => {
                let client = self.random.below(CLIENTS);
                let nonce = self.next_nonce(node, client);
                self.draw(client, nonce)
            }
        };
        self.tally.submitted += 1;
        self.sent.push(transaction.clone());
        self.handle(node, Event::Submit(transaction));
    }

    /// What a client takes to be its next nonce, after asking a node.
    fn next_nonce(&mut self, node: usize, client: u64) -> u64 {
        let address = Address::of(&plan::client(self.plan.seed, client).public_key());
        let up = self.nodes[node].up.as_ref().expect("it is up");
        let account = up.ledger.storage().read(|reader| reader.account(&address)).expect("the database reads");
        let pending = up.mempool.pending_of(&address);
        let next = pending.last().map(|pending| pending.transaction.nonce + 1);
        let next = next.unwrap_or_else(|| account.map_or(0, |account| account.nonce));
        match self.plan.genesis.nonce_rule {
            NonceRule::Sequential => next,
            NonceRule::Increasing => next + self.random.below(3),
        }
    }

    fn draw(&mut self, client: u64, nonce: u64) -> Transaction {
        let to = Address::of(&plan::client(self.plan.seed, self.random.below(CLIENTS + 2)).public_key());
        let fee = 1 + self.random.below(8);
        let transaction = if self.random.percent(20) {
            let text = format!("message {}", self.random.below(1_000));
            Transaction::new(Kind::Message, to, 0, fee, nonce, Payload::Text(text))
        } else {
            let most = if self.random.percent(15) { 2_500 } else { 200 };
            Transaction::new(Kind::Transfer, to, self.random.below(most), fee, nonce, Payload::Absent)
        };
        transaction.signed(&self.plan.genesis.chain_id, &plan::client(self.plan.seed, client))
    }
}
