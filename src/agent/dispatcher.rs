//! Brings messages to their handlers, exactly once.
//!
//! The dispatcher follows the chain from inside the ledger's transactions. Handler calls happen there, and everything
//! that comes of one (memory, replies, timers, what is set aside, the place in the chain) is committed with the block or
//! not at all. So after a crash at any instant either the block and its answers are there, or neither, and the block comes
//! again. What must not happen twice outside the database, the log lines, waits for the commit.
//!
//! A handler that is slow must not hold up the chain: what does not fit into one block's share of time waits in the
//! database for the next block.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::effects::{self, Checked, MEMORY_MAX_BYTES};
use super::outbox::{self, Outbox};
use super::status::{Listed, Shared};
use super::{Context, Event, Handler, Message};
use crate::chain::{
    Account, Address, Genesis, Height, Kind, Payload, SecretKey, State, Time, Transaction, VerifiedBlock, verify,
};
use crate::ledger::BlockHook;
use crate::storage::{AgentEvent, Cursor, StorageError, StoredAgent, Writer};

/// An agent as the configuration has it.
pub struct AgentConfig {
    /// Its name. Name and wallet together are the agent: with another wallet it is a new one.
    pub name: String,
    /// The key of its wallet.
    pub key: SecretKey,
    /// Who answers.
    pub handler: Arc<dyn Handler>,
    /// Fees it may pay within any hour of block time. Where messages are free each counts 1.
    pub max_fee_per_hour: u64,
}

/// How much one agent may take.
#[derive(Clone, Copy, Debug)]
pub struct AgentLimits {
    /// Events handled with one block at most; the others wait for the next.
    pub events_per_block_max: usize,
    /// Time spent on one block at most; no event is begun after it.
    pub block_time_max: Duration,
    /// Replies that wait for a block at most.
    pub outbox_max: usize,
    /// Timers that run at most.
    pub timers_max: usize,
}

/// Why agents cannot be set up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgentsError {
    /// Two with one name.
    #[error("two agents are named `{0}`")]
    SameName(String),
    /// Two with one wallet: each would spend the other's nonces.
    #[error("the agents `{first}` and `{second}` have the same wallet, {wallet}")]
    SameWallet {
        /// One of them.
        first: String,
        /// The other.
        second: String,
        /// Their wallet.
        wallet: Address,
    },
}

/// The agents' eye on the chain. Goes into [`crate::ledger::Ledger::open`].
pub struct Dispatcher {
    agents: Vec<Agent>,
    chain: Chain,
    limits: AgentLimits,
    shared: Arc<Shared>,
    /// Whether what the agents have in memory is what the database has.
    loaded: bool,
    reports: Vec<Report>,
}

/// Connects [`super::Agents`] with the dispatcher that a ledger has.
pub struct DispatcherHandle(pub(super) Arc<Shared>);

/// Microseconds of the budget's window.
pub(super) const HOUR_US: u64 = 3_600_000_000;

/// Bytes of a handler's reason that are kept.
const REASON_MAX_BYTES: usize = 1_024;

/// Waiting events that are read at once.
const PAGE: usize = 64;

/// What agents need to know of their chain.
struct Chain {
    id: String,
    message_fee: u64,
    payload_max_bytes: usize,
}

struct Agent {
    config: AgentConfig,
    wallet: Address,
    stored: Option<StoredAgent>,
    outbox: Outbox,
    next_timer: Option<Time>,
    /// Whether there may be events that wait.
    waiting: bool,
}

/// What is told once it is durable.
enum Report {
    Handled { agent: String },
    Parked { agent: String, event: AgentEvent, reason: String },
    Refused { agent: String, count: usize, reason: String },
    Note { agent: String, topic: String, text: String },
}

impl Default for AgentLimits {
    fn default() -> Self {
        Self {
            events_per_block_max: 256,
            block_time_max: Duration::from_millis(200),
            outbox_max: 1_024,
            timers_max: 256,
        }
    }
}

impl Dispatcher {
    /// A dispatcher for a ledger about to be opened on the chain of `genesis`. `now` is when agents that are new begin:
    /// what older blocks bring them is skipped.
    pub fn new(
        configs: Vec<AgentConfig>,
        genesis: &Genesis,
        limits: AgentLimits,
        now: Time,
    ) -> Result<Self, AgentsError> {
        let (mut names, mut wallets) = (BTreeSet::new(), BTreeMap::new());
        let mut agents = Vec::new();
        for config in configs {
            let wallet = Address::of(&config.key.public_key());
            if !names.insert(config.name.clone()) {
                return Err(AgentsError::SameName(config.name));
            }
            if let Some(first) = wallets.insert(wallet, config.name.clone()) {
                return Err(AgentsError::SameWallet { first, second: config.name, wallet });
            }
            let (stored, outbox, next_timer, waiting) = Default::default();
            agents.push(Agent { config, wallet, stored, outbox, next_timer, waiting });
        }
        let listed = |agent: &Agent| Listed {
            name: agent.config.name.clone(),
            wallet: agent.wallet,
            max_fee_per_hour: agent.config.max_fee_per_hour,
        };
        let shared = Arc::new(Shared {
            agents: agents.iter().map(listed).collect(),
            started: now,
            outgoing: watch::Sender::default(),
            retried: AtomicBool::new(false),
        });
        let empty = Transaction::new(Kind::Message, Address::default(), 0, 0, 0, Payload::Absent);
        let chain = Chain {
            id: genesis.chain_id.clone(),
            message_fee: genesis.min_fee,
            payload_max_bytes: (genesis.block_bytes_max as usize).saturating_sub(verify::block_share(&empty)),
        };
        Ok(Self { agents, chain, limits, shared, loaded: false, reports: Vec::new() })
    }

    /// What [`super::Agents::open`] needs of it, once the ledger has it.
    pub fn handle(&self) -> DispatcherHandle {
        DispatcherHandle(Arc::clone(&self.shared))
    }
}

impl BlockHook for Dispatcher {
    fn on_block(&mut self, writer: &Writer<'_>, block: &VerifiedBlock, state: &State) -> Result<(), StorageError> {
        let Self { agents, chain, limits, shared, loaded, reports } = self;
        let fresh = !std::mem::replace(loaded, true);
        let retried = shared.retried.swap(false, Ordering::Relaxed);
        for agent in agents {
            if fresh {
                agent.load(writer, block, chain, shared.started)?;
            }
            agent.waiting |= retried;
            let sends = block.block().transactions.iter().any(|transaction| transaction.from() == agent.wallet);
            if fresh || sends {
                agent.settle(writer, block, state, chain)?;
            }
            Turn::new(agent, writer, block, state, chain, limits, reports).take()?;
        }
        Ok(())
    }

    fn committed(&mut self) {
        let outgoing = self.agents.iter().map(|agent| agent.outbox.len()).sum();
        // Before the first block nothing is loaded, and [`super::Agents::open`] has counted.
        if self.loaded {
            self.shared.outgoing.send_if_modified(|count| std::mem::replace(count, outgoing) != outgoing);
        }
        self.reports.drain(..).for_each(Report::tell);
    }

    fn rolled_back(&mut self) {
        self.loaded = false;
        self.reports.clear();
    }
}

impl Agent {
    /// Takes up where the database has the agent, or registers it. `block` is the first that it sees; what came before
    /// and after its place, while it was not configured, is put in line.
    fn load(
        &mut self,
        writer: &Writer<'_>,
        block: &VerifiedBlock,
        chain: &Chain,
        started: Time,
    ) -> Result<(), StorageError> {
        let reader = writer.reader();
        let name = &self.config.name;
        let before = block.height() - 1;
        if reader.agent(name, &self.wallet)?.is_none() {
            writer.put_agent(name, &self.wallet, started, before)?;
        }
        let missing = || StorageError::Inconsistent(format!("agent `{name}` was not stored"));
        let mut stored = reader.agent(name, &self.wallet)?.ok_or_else(missing)?;
        if stored.cursor < before {
            self.catch_up(writer, &mut stored, before)?;
            stored.cursor = before;
            writer.save_agent(&stored, false)?;
        }
        self.outbox = Outbox::new(reader.outbox(stored.id)?, &chain.id);
        self.next_timer = reader.timers(stored.id)?.1;
        self.waiting = !reader.waiting_events(stored.id, 1)?.is_empty();
        self.stored = Some(stored);
        Ok(())
    }

    /// Puts into line what the blocks after its place, up to `last`, have for it.
    fn catch_up(&self, writer: &Writer<'_>, stored: &mut StoredAgent, last: Height) -> Result<(), StorageError> {
        let mut after = Cursor::end_of(stored.cursor);
        loop {
            // All of these are committed: the block at hand is the first that its transaction has.
            let page = writer.reader().messages(&self.wallet, Some(after), PAGE)?;
            for message in page.iter().take_while(|message| message.height <= last) {
                match concerns(stored, &self.wallet, &message.transaction, message.timestamp) {
                    None => {}
                    Some(false) => stored.skipped += 1,
                    Some(true) => writer.put_event(stored.id, &AgentEvent::Message(message.cursor()), None)?,
                }
            }
            match page.last() {
                Some(message) if message.height <= last => after = message.cursor(),
                _ => return Ok(()),
            }
        }
    }

    fn settle(
        &mut self,
        writer: &Writer<'_>,
        block: &VerifiedBlock,
        state: &State,
        chain: &Chain,
    ) -> Result<(), StorageError> {
        let id = self.stored.as_ref().expect("loaded before anything else").id;
        let sender = outbox::Sender {
            id,
            key: &self.config.key,
            chain_id: &chain.id,
            nonce: state.account(&self.wallet).unwrap_or_default().nonce,
            forget: hour_before(block.block().header.timestamp),
        };
        self.outbox.settle(writer, &sender, block)
    }
}

/// Whether a transaction is mail for the agent: none for no, or whether it is to be handled. It is not when it is older
/// than the agent, and not when the agent sent it: it would answer itself for ever.
fn concerns(agent: &StoredAgent, wallet: &Address, transaction: &Transaction, time: Time) -> Option<bool> {
    (transaction.to == *wallet && transaction.is_message())
        .then(|| time >= agent.since && transaction.from() != *wallet)
}

fn hour_before(now: Time) -> Time {
    Time(now.0.saturating_sub(HOUR_US))
}

/// One agent's share of one block.
struct Turn<'a> {
    config: &'a AgentConfig,
    wallet: Address,
    stored: &'a mut StoredAgent,
    outbox: &'a mut Outbox,
    next_timer: &'a mut Option<Time>,
    waiting: &'a mut bool,
    writer: &'a Writer<'a>,
    block: &'a VerifiedBlock,
    account: Account,
    chain: &'a Chain,
    limits: &'a AgentLimits,
    reports: &'a mut Vec<Report>,
    /// Charged within the last hour; counted with the first event.
    spent: Option<u64>,
    events_left: usize,
    until: Option<Instant>,
    changed: bool,
    memory_changed: bool,
}

impl<'a> Turn<'a> {
    fn new(
        agent: &'a mut Agent,
        writer: &'a Writer<'a>,
        block: &'a VerifiedBlock,
        state: &State,
        chain: &'a Chain,
        limits: &'a AgentLimits,
        reports: &'a mut Vec<Report>,
    ) -> Self {
        let account = state.account(&agent.wallet).unwrap_or_default();
        Self {
            config: &agent.config,
            wallet: agent.wallet,
            stored: agent.stored.as_mut().expect("loaded before its turn"),
            outbox: &mut agent.outbox,
            next_timer: &mut agent.next_timer,
            waiting: &mut agent.waiting,
            writer,
            block,
            account,
            chain,
            limits,
            reports,
            spent: None,
            events_left: limits.events_per_block_max,
            until: None,
            changed: false,
            memory_changed: false,
        }
    }

    fn now(&self) -> Time {
        self.block.block().header.timestamp
    }

    /// Timers first, since they were due before the block came; then what waits; then what the block brings.
    fn take(mut self) -> Result<(), StorageError> {
        if self.next_timer.is_some_and(|at| at <= self.now()) {
            self.timers()?;
        }
        if *self.waiting {
            self.waiting_events()?;
        }
        self.messages()?;
        if self.changed {
            self.writer.save_agent(self.stored, self.memory_changed)?;
        }
        Ok(())
    }

    /// Whether there is time for one more event with this block.
    fn may_go_on(&mut self) -> bool {
        let until = *self.until.get_or_insert_with(|| Instant::now() + self.limits.block_time_max);
        self.events_left > 0 && Instant::now() < until
    }

    fn timers(&mut self) -> Result<(), StorageError> {
        // One look: a timer that is started now runs out with the next block at the earliest.
        for tag in self.writer.reader().due_timers(self.stored.id, self.now(), self.events_left)? {
            if !self.may_go_on() {
                break;
            }
            self.writer.take_timer(self.stored.id, &tag)?;
            if let Err(reason) = self.handle(&Event::Timer(tag.clone()))? {
                self.park(None, AgentEvent::Timer(tag), &reason)?;
            }
        }
        *self.next_timer = self.writer.reader().timers(self.stored.id)?.1;
        Ok(())
    }

    fn waiting_events(&mut self) -> Result<(), StorageError> {
        let mut page = VecDeque::new();
        while self.may_go_on() {
            if page.is_empty() {
                page = self.page()?;
            }
            let Some((row, event, known)) = page.pop_front() else {
                *self.waiting = false;
                break;
            };
            match known.map_or_else(|| Ok(Err("its block is not there".into())), |known| self.handle(&known))? {
                Ok(()) => self.writer.take_event(row)?,
                Err(reason) => self.park(Some(row), event, &reason)?,
            }
        }
        Ok(())
    }

    /// The oldest events that wait, each as it is stored and as a handler sees it.
    fn page(&self) -> Result<VecDeque<(i64, AgentEvent, Option<Event>)>, StorageError> {
        let reader = self.writer.reader();
        let rows = reader.waiting_events(self.stored.id, PAGE)?;
        let place = |event: &AgentEvent| match event {
            AgentEvent::Message(at) => Some(*at),
            AgentEvent::Timer(_) => None,
        };
        let places: Vec<Cursor> = rows.iter().filter_map(|(_, event)| place(event)).collect();
        let mut messages = reader.transactions_at(&places)?.into_iter();
        let known = |event: &AgentEvent| match event {
            AgentEvent::Timer(tag) => Some(Event::Timer(tag.clone())),
            AgentEvent::Message(_) => messages.next().flatten().map(|stored| {
                Event::Message(Message {
                    id: stored.hash,
                    from: stored.transaction.from(),
                    payload: stored.transaction.payload,
                    height: stored.height,
                    time: stored.timestamp,
                })
            }),
        };
        let mut known = known;
        Ok(rows
            .into_iter()
            .map(|(row, event)| {
                let seen = known(&event);
                (row, event, seen)
            })
            .collect())
    }

    fn messages(&mut self) -> Result<(), StorageError> {
        let (block, height) = (self.block, self.block.height());
        // A block that was taken back and came again brings nothing new.
        if height <= self.stored.cursor {
            return Ok(());
        }
        for ((position, transaction), id) in (0..).zip(&block.block().transactions).zip(block.transaction_hashes()) {
            let Some(handled) = concerns(self.stored, &self.wallet, transaction, self.now()) else { continue };
            self.changed = true;
            self.stored.cursor = height;
            if !handled {
                self.stored.skipped += 1;
                continue;
            }
            let at = AgentEvent::Message(Cursor { height, position });
            if *self.waiting || !self.may_go_on() {
                self.writer.put_event(self.stored.id, &at, None)?;
                *self.waiting = true;
                continue;
            }
            let (from, payload) = (transaction.from(), transaction.payload.clone());
            let message = Message { id: *id, from, payload, height, time: self.now() };
            if let Err(reason) = self.handle(&Event::Message(message))? {
                self.park(None, at, &reason)?;
            }
        }
        Ok(())
    }

    /// Calls the handler and carries out what it wants. The inner error is why the event is to be set aside; then nothing
    /// else has changed.
    fn handle(&mut self, event: &Event) -> Result<Result<(), String>, StorageError> {
        self.events_left -= 1;
        self.changed = true;
        let context = Context {
            agent: self.config.name.clone(),
            wallet: self.wallet,
            now: self.now(),
            height: self.block.height(),
            balance: self.account.balance,
            message_fee: self.chain.message_fee,
            fee_left: self.budget_left()?,
        };
        let (effects, memory) = match self.config.handler.handle(&context, event, &self.stored.memory) {
            Ok(answer) => answer,
            Err(reason) => return Ok(Err(reason)),
        };
        if memory.len() > MEMORY_MAX_BYTES {
            let got = memory.len();
            return Ok(Err(format!("the handler wants to remember {got} bytes, at most {MEMORY_MAX_BYTES} are kept")));
        }
        self.memory_changed |= memory != self.stored.memory;
        self.stored.memory = memory;
        self.stored.handled += 1;
        self.reports.push(Report::Handled { agent: self.config.name.clone() });
        let (effects, beyond) = effects::check(event, effects);
        for effect in effects {
            let carried_out = match effect {
                Ok(effect) => self.carry_out(effect)?,
                Err(reason) => Err(reason),
            };
            if let Err(reason) = carried_out {
                self.refuse(1, reason);
            }
        }
        if beyond > 0 {
            self.refuse(beyond, format!("beyond {} effects for one event", effects::EFFECTS_MAX));
        }
        Ok(Ok(()))
    }

    /// What may still be spent: what waits in the outbox counts as spent already, so that no hour in which blocks take it
    /// goes beyond the budget.
    fn budget_left(&mut self) -> Result<u64, StorageError> {
        let spent = match self.spent {
            Some(spent) => spent,
            None => self.writer.reader().spent(self.stored.id, hour_before(self.now()))?,
        };
        self.spent = Some(spent);
        Ok(self.config.max_fee_per_hour.saturating_sub(spent).saturating_sub(self.outbox.cost()))
    }

    /// The inner error is why the host does not do it.
    fn carry_out(&mut self, effect: Checked) -> Result<Result<(), String>, StorageError> {
        match effect {
            Checked::Send { to, payload } => self.send(to, payload),
            Checked::StartTimer { tag, at } => {
                let reader = self.writer.reader();
                let (count, first) = reader.timers(self.stored.id)?;
                if count >= self.limits.timers_max && !reader.has_timer(self.stored.id, &tag)? {
                    return Ok(Err(format!("{count} timers run already")));
                }
                self.writer.put_timer(self.stored.id, &tag, at)?;
                *self.next_timer = Some(first.map_or(at, |first| first.min(at)));
                Ok(Ok(()))
            }
            Checked::Emit { topic, text } => {
                self.reports.push(Report::Note { agent: self.config.name.clone(), topic, text });
                Ok(Ok(()))
            }
        }
    }

    fn send(&mut self, to: Address, payload: Payload) -> Result<Result<(), String>, StorageError> {
        let (fee, left) = (self.chain.message_fee, self.budget_left()?);
        if outbox::cost(fee) > left {
            let max = self.config.max_fee_per_hour;
            return Ok(Err(format!("a message costs {}, of {max} an hour {left} are left", outbox::cost(fee))));
        }
        if self.outbox.len() >= self.limits.outbox_max {
            return Ok(Err(format!("{} messages wait for a block already", self.outbox.len())));
        }
        let max = self.chain.payload_max_bytes;
        if payload.len() > max {
            return Ok(Err(format!("a payload of {} bytes, blocks of this chain hold {max}", payload.len())));
        }
        let sender = outbox::Sender {
            id: self.stored.id,
            key: &self.config.key,
            chain_id: &self.chain.id,
            nonce: self.account.nonce,
            forget: hour_before(self.now()),
        };
        let sent = self.outbox.push(self.writer, &sender, Transaction::new(Kind::Message, to, 0, fee, 0, payload))?;
        Ok(if sent { Ok(()) } else { Err("the wallet has used up its nonces".into()) })
    }

    fn refuse(&mut self, count: usize, reason: String) {
        self.stored.refused = self.stored.refused.saturating_add(count as u64);
        self.reports.push(Report::Refused { agent: self.config.name.clone(), count, reason });
    }

    /// Sets an event aside: the waiting one with this row, or a new one.
    fn park(&mut self, row: Option<i64>, event: AgentEvent, reason: &str) -> Result<(), StorageError> {
        let reason = match reason.char_indices().find(|(at, c)| at + c.len_utf8() > REASON_MAX_BYTES) {
            Some((cut, _)) => &reason[..cut],
            None => reason,
        };
        match row {
            Some(row) => self.writer.park_event(row, reason)?,
            None => self.writer.put_event(self.stored.id, &event, Some(reason))?,
        }
        self.reports.push(Report::Parked { agent: self.config.name.clone(), event, reason: reason.to_owned() });
        Ok(())
    }
}

impl Report {
    fn tell(self) {
        match self {
            Self::Handled { agent } => {
                metrics::counter!("tenon_agent_events_total", "agent" => agent, "outcome" => "handled").increment(1);
            }
            Self::Parked { agent, event, reason } => {
                tracing::warn!(agent, ?event, reason, "an event is set aside");
                metrics::counter!("tenon_agent_events_total", "agent" => agent, "outcome" => "parked").increment(1);
            }
            Self::Refused { agent, count, reason } => {
                tracing::warn!(agent, count, reason, "an effect is refused");
                metrics::counter!("tenon_agent_refused_total", "agent" => agent).increment(count as u64);
            }
            Self::Note { agent, topic, text } => {
                tracing::info!(agent, topic, text, "an agent's note");
                metrics::counter!("tenon_agent_notes_total", "agent" => agent).increment(1);
            }
        }
    }
}
