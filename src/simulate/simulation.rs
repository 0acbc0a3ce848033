//! One sync in virtual time: the engine of the follower, and all that it is connected to.
//!
//! What happens collects in an inbox. The loop of the node takes it in, lets the engine have its turn and carries out
//! what that wants, as [`crate::sync::follower`] does; a turn takes time, and what happens meanwhile waits for the next
//! one.

use std::collections::{BTreeMap, VecDeque};

use super::agenda::Agenda;
use super::chain::{Branch, CHAIN_ID, Chains, START, Stretch};
use super::exchange::{Exchange, ExchangeId};
use super::machine::Machine;
use super::network::{Line, MessageId, Network, NodeId};
use super::planner::{Native, Planner};
use super::random::Random;
use super::report::Outcome;
use super::scenario::{Group, Scenario};
use super::snapshots::{Left, Taking};
use super::sources::Source;
use super::tally::Tally;
use crate::chain::{Height, Time};
use crate::sync::engine::{Blocks, Command, Engine, Job, Switch, Turn, Wake};
use crate::sync::peers::Origin;
use crate::sync::pipeline::RangeFault;
use crate::sync::source::{SourceError, SourceInfo};
use crate::sync::{Action, PeerId, RequestId, SyncStatus, Tolerance};

/// How large a scenario is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Peers in all; none: what the scenario says.
    pub peers: Option<u64>,
    /// The highest block at the beginning; none: what the scenario says.
    pub blocks: Option<Height>,
}

/// Something that is to happen.
pub(super) enum Happening {
    /// A peer begins to answer.
    Answers(ExchangeId),
    /// A peer cannot be reached, or breaks off.
    Fails(ExchangeId, SourceError),
    /// Has a peer answered, or is it time to give up?
    Patience(ExchangeId),
    /// Blocks are verified.
    Verified(RequestId, Result<Stretch, RangeFault>),
    /// Blocks are stored.
    Stored(Job<Stretch>),
    /// Whether another branch is taken in place of ours is decided.
    Switched(Switch<Stretch>),
    /// A peer that was left alone may be asked for chunks again.
    SnapshotGoesOn,
    /// The snapshot with this number is verified.
    SnapshotInstalled(u64),
    /// The strategy has answered.
    Planned(Vec<Action>),
    /// A peer goes, or comes back.
    Away(PeerId, bool),
    /// Peers become unreachable, or are reachable again.
    Cut(Vec<PeerId>, bool),
}

/// A modelled peer.
pub(super) struct Modelled {
    pub(super) name: String,
    pub(super) node: NodeId,
    pub(super) source: Source,
    group: Group,
    random: Random,
    pub(super) is_away: bool,
}

/// See the module.
pub struct Simulation {
    pub(super) scenario: Scenario,
    pub(super) chains: Chains,
    pub(super) now: Time,
    pub(super) agenda: Agenda<Happening>,
    pub(super) network: Network,
    pub(super) us: NodeId,
    pub(super) peers: BTreeMap<PeerId, Modelled>,
    pub(super) exchanges: BTreeMap<ExchangeId, Exchange>,
    pub(super) next_exchange: ExchangeId,
    /// Which exchange a message is part of.
    pub(super) messages: BTreeMap<MessageId, ExchangeId>,
    pub(super) machine: Machine,
    pub(super) local: (Branch, Height),
    pub(super) taking: Option<Taking>,
    /// What an earlier attempt has left.
    pub(super) kept: Option<Left>,
    pub(super) tally: Tally,
    engine: Engine<Stretch>,
    inbox: Vec<Wake<Stretch>>,
    /// When the engine wants its next turn, whatever happens.
    until: Time,
    busy_until: Time,
    planner: Box<dyn Planner>,
    stand_in: Native,
    generation: u64,
    /// Who takes over after how many events, in order.
    swaps: VecDeque<(u64, Box<dyn Planner>)>,
    handled: u64,
    status: SyncStatus,
}

impl Simulation {
    /// A node at its first block, about to meet its peers. Errors: what of the scenario and the size does not fit
    /// together.
    pub fn new(scenario: &Scenario, size: Size, seed: u64, planner: Box<dyn Planner>) -> Result<Self, String> {
        let scenario = scenario.clone();
        let mut random = Random::new(seed);
        let blocks = size.blocks.unwrap_or(scenario.chain.blocks);
        let mut chains = Chains::new(blocks, scenario.chain.block_ms, scenario.chain.transactions);
        let mut network = Network::new(random.fork());
        let us = network.add(Line {
            distance_us: 0,
            jitter_us: 0,
            up: scenario.node.up,
            down: scenario.node.down,
            loss_percent: 0,
        });
        scenario.sync.check()?;
        let own = scenario.node.branch_from.filter(|from| *from <= scenario.node.start_blocks);
        let local = (own.map_or(0, |from| chains.branch(from)), scenario.node.start_blocks);
        let genesis_hash = chains.hash(0, 0);
        let info = SourceInfo { chain_id: CHAIN_ID.into(), genesis_hash, node_id: "node".into() };
        let mut engine = Engine::new(info, scenario.sync.clone(), chains.head(local.0, local.1, START), START);
        engine.take_snapshots(None);
        let mut peers = BTreeMap::new();
        let population = scenario.population(size.peers.unwrap_or(scenario.about.peers))?;
        let members = |(group, count): (&Group, u64)| (0..count).map(|_| group.clone()).collect::<Vec<_>>();
        for (number, group) in scenario.groups.iter().zip(population).flat_map(members).enumerate() {
            let mut random = random.fork();
            let name = format!("{}-{number}", group.name);
            let distance_us = random.within(group.distance_ms).saturating_mul(1_000);
            let (up, jitter_us) = (random.within(group.bandwidth).max(1), group.jitter_ms.saturating_mul(1_000));
            // Half of the way there belongs to each end; ours has none.
            let line = Line { distance_us, jitter_us, up, down: up, loss_percent: group.loss_percent };
            let node = network.add(line);
            let branch = group.branch_from.map_or(0, |from| chains.branch(from));
            let source = Source::new(group.clone(), branch, random.fork());
            let id = engine.join(START, name.clone(), Origin::Configured)?;
            peers.insert(id, Modelled { name, node, source, group, random, is_away: false });
        }
        let mut simulation = Self {
            machine: Machine::new(&scenario.node),
            tally: Tally::new(peers.iter().map(|(&id, peer)| (id, peer.name.clone())), local.1),
            scenario,
            chains,
            now: START,
            agenda: Agenda::new(),
            network,
            us,
            peers,
            exchanges: BTreeMap::new(),
            next_exchange: 0,
            messages: BTreeMap::new(),
            local,
            taking: None,
            kept: None,
            engine,
            inbox: vec![Wake::Strategy(1)],
            until: START,
            busy_until: START,
            planner,
            stand_in: Native::builtin(),
            generation: 1,
            swaps: VecDeque::new(),
            handled: 0,
            status: SyncStatus::default(),
        };
        simulation.note_churn_and_partitions(&mut random);
        Ok(simulation)
    }

    /// Lets `planner` take over after so many events. Swaps come in ascending order.
    pub fn swap_after(&mut self, events: u64, planner: Box<dyn Planner>) {
        self.swaps.push_back((events, planner));
    }

    /// Runs to the end: the node stands as the scenario expects and has all that it can have, or time is up.
    pub fn run(&mut self) -> Outcome {
        while !self.is_over() {
            self.step();
        }
        self.outcome()
    }

    /// Events that the engine has taken in so far.
    pub fn events(&self) -> u64 {
        self.handled
    }

    /// Lets time pass until the node has had its next turn.
    pub fn step(&mut self) {
        loop {
            // Something in the inbox is reason enough for a turn; so is what the engine said.
            let turn_at = if self.inbox.is_empty() { self.until } else { self.now };
            let turn_at = turn_at.max(self.busy_until);
            let happens_at = self.agenda.next_at().into_iter().chain(self.network.next_at()).min();
            match happens_at {
                Some(at) if at <= turn_at => self.happen(at.max(self.now)),
                _ => {
                    self.now = turn_at.max(self.now);
                    return self.turn();
                }
            }
        }
    }

    /// Everything that happens at `at`.
    fn happen(&mut self, at: Time) {
        self.now = at;
        while let Some(arrived) = self.network.advance(at) {
            self.arrived(arrived);
        }
        while let Some(happening) = self.agenda.take(at) {
            match happening {
                Happening::Answers(id) => self.answers(id),
                Happening::Fails(id, error) => self.failed(id, error),
                Happening::Patience(id) => self.patience(id),
                Happening::Verified(id, verified) => self.inbox.push(Wake::Verified(id, verified)),
                Happening::Stored(job) => self.stored(job),
                Happening::Switched(switch) => self.switched(switch),
                Happening::SnapshotGoesOn => self.go_on_with_snapshot(),
                Happening::SnapshotInstalled(number) => self.snapshot_installed(number),
                Happening::Planned(actions) => self.inbox.push(Wake::Planned(actions)),
                Happening::Away(peer, is_away) => self.away(peer, is_away),
                Happening::Cut(peers, is_cut) => {
                    for peer in peers {
                        let node = self.peers[&peer].node;
                        self.network.set_side(node, u32::from(is_cut));
                    }
                }
            }
        }
    }

    /// The node's loop goes round once.
    fn turn(&mut self) {
        for wake in std::mem::take(&mut self.inbox) {
            self.engine.handle(self.now, wake);
            self.handled += 1;
            while self.swaps.front().is_some_and(|(after, _)| *after <= self.handled) {
                self.planner = self.swaps.pop_front().expect("just looked at").1;
                self.generation += 1;
                self.engine.handle(self.now, Wake::Strategy(self.generation));
                self.tally.swaps.push(self.now);
            }
        }
        let Turn { commands, status, until } = self.engine.turn(self.now);
        for command in commands {
            self.carry_out(command);
        }
        if let Some(status) = status {
            self.tally.observe(self.now, &status);
            self.status = status;
        }
        (self.until, self.busy_until) = (until, Time(self.now.0 + self.scenario.node.turn_us));
        if self.tally.synced_at.is_none() && self.has_all() {
            self.tally.synced_at = Some(self.now);
        }
    }

    fn carry_out(&mut self, command: Command<Stretch>) {
        match command {
            Command::Look { peer, introduce } => self.look(peer, introduce),
            Command::Compare { peer, height, known } => self.compare(peer, height, known.is_some()),
            Command::EndLook(peer) => self.end_look(peer),
            Command::Fetch { id, peer, range, room } => self.fetch(id, peer, range, room),
            Command::Abort(id) => self.abort(id),
            Command::Verify { id, body, .. } => {
                let at = self.machine.verifies(self.now, body.run.count);
                let stretch = Stretch { runs: vec![body.run], transactions: self.chains.transactions() };
                let verified = body.fault.map_or(Ok(stretch), Err);
                self.agenda.note(at, Happening::Verified(id, verified));
            }
            Command::Import(job) => {
                let at = self.machine.imports(self.now, job.range().count());
                self.agenda.note(at, Happening::Stored(job));
            }
            Command::Switch(switch) => {
                let at = self.machine.imports(self.now, switch.blocks.count() as u64);
                self.agenda.note(at, Happening::Switched(switch));
            }
            Command::FetchSnapshot { number, offer, peers } => self.fetch_snapshot(number, offer, peers),
            Command::EndSnapshot(_) => self.end_snapshot(),
            Command::Ask { view, events } => {
                let plan = self.planner.next(&view, &events);
                let actions = match plan {
                    Ok(plan) => {
                        self.tally.called(plan.fuel);
                        plan.actions
                    }
                    Err(reason) => {
                        self.tally.call_failed(reason);
                        self.stand_in.next(&view, &events).expect("the built-in always answers").actions
                    }
                };
                let at = Time(self.now.0 + self.scenario.node.ask_us);
                self.agenda.note(at, Happening::Planned(actions));
            }
            Command::Refused { action, reason } => self.tally.refused(&action, reason),
        }
    }

    /// Hands something in that the engine takes in with its next turn.
    pub(super) fn wake(&mut self, wake: Wake<Stretch>) {
        self.inbox.push(wake);
    }

    /// Peers that come and go, each by itself, and the moments at which some cannot be reached.
    fn note_churn_and_partitions(&mut self, random: &mut Random) {
        for (&id, peer) in &mut self.peers {
            if let Some(up_ms) = peer.group.up_ms {
                // Somewhere in its stay: they do not all go at once.
                let stays_ms = peer.random.within(up_ms);
                let at = START.plus_ms(peer.random.below(stays_ms.max(1)));
                self.agenda.note(at, Happening::Away(id, true));
            }
        }
        for partition in &self.scenario.partitions {
            let is_meant = |peer: &Modelled| partition.groups.is_empty() || partition.groups.contains(&peer.group.name);
            let meant = self.peers.iter().filter(|(_, peer)| is_meant(peer)).map(|(&id, _)| id);
            let cut: Vec<PeerId> = meant.filter(|_| random.percent(partition.percent)).collect();
            self.agenda.note(START.plus_ms(partition.from_ms), Happening::Cut(cut.clone(), true));
            self.agenda.note(START.plus_ms(partition.until_ms), Happening::Cut(cut, false));
        }
    }

    fn away(&mut self, id: PeerId, is_away: bool) {
        let peer = self.peers.get_mut(&id).expect("noted for a peer");
        peer.is_away = is_away;
        self.network.set_away(peer.node, is_away);
        let span = if is_away { peer.group.down_ms } else { peer.group.up_ms.expect("noted for one that goes") };
        let at = self.now.plus_ms(peer.random.within(span).max(1));
        self.agenda.note(at, Happening::Away(id, !is_away));
        if is_away {
            self.broke_off(id);
        }
    }

    /// The highest block that an honest peer has.
    pub fn goal(&self) -> Height {
        let honest = self.peers.values().filter(|peer| peer.source.is_honest());
        honest.map(|peer| peer.source.has(&self.chains, self.now)).max().unwrap_or(self.scenario.node.start_blocks)
    }

    /// Whether the node has as many blocks as it can have; while the chain grows, but for the newest ones, by the measure
    /// of a node that is live. That they are the right ones shows in its state.
    pub(super) fn has_all(&self) -> bool {
        let newest = if self.scenario.chain.block_ms == 0 { 0 } else { Tolerance::default().lag_blocks };
        self.local.1.saturating_add(newest) >= self.goal()
    }

    fn is_over(&self) -> bool {
        let stands = self.status.state == self.scenario.about.expect;
        (stands && self.has_all()) || self.now >= START.plus_ms(self.scenario.about.end_ms)
    }

    /// What has come of it so far.
    pub fn outcome(&mut self) -> Outcome {
        let status = self.engine.status();
        self.tally.outcome(self.planner.name(), &status, self)
    }
}
