//! Brings messages to their handlers, exactly once.
//!
//! The dispatcher follows the chain from inside the ledger's transactions. Handler calls happen there, and everything
//! that comes of one (memory, replies, timers, what is set aside, the place in the chain) is committed with the block or
//! not at all. So after a crash at any instant either the block and its answers are there, or neither, and the block comes
//! again. What must not happen twice outside the database, the log lines, waits for the commit. What happens when a block
//! is taken back stands in [`super::undo`].
//!
//! What came while there was no handler is set aside, and handled with the first block at which there is one, before
//! anything newer. Whether there is one is asked once for each block, so that none is loaded between two events of it.
//!
//! A handler that is slow must not hold up the chain: what does not fit into one block's share of time waits in the
//! database for the next block.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::Handler;
use super::outbox::{self, Outbox};
use super::status::{Listed, Shared};
use super::turn::Turn;
use super::undo::{self, Handled};
use crate::chain::{
    Address, Genesis, Height, Kind, Payload, SecretKey, State, Time, Transaction, VerifiedBlock, verify,
};
use crate::ledger::BlockHook;
use crate::storage::{AgentEvent, Cursor, StorageError, StoredAgent, TakenBlock, Writer};

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

/// Events that are read at once.
pub(super) const PAGE: usize = 64;

/// What agents need to know of their chain.
pub(super) struct Chain {
    pub id: String,
    pub message_fee: u64,
    pub payload_max_bytes: usize,
}

/// A configured agent, with what of its rows is kept in memory.
pub(super) struct Agent {
    pub config: AgentConfig,
    pub wallet: Address,
    pub stored: Option<StoredAgent>,
    pub outbox: Outbox,
    pub next_timer: Option<Time>,
    /// Whether there may be events that wait.
    pub waiting: bool,
    /// Whether there may be events that are set aside until there is a handler.
    pub unheard: bool,
    pub handled: Handled,
}

/// What is told once it is durable.
pub(super) enum Report {
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
            let (stored, outbox, next_timer, waiting, unheard, handled) = Default::default();
            agents.push(Agent { config, wallet, stored, outbox, next_timer, waiting, unheard, handled });
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
            agent.prune(writer, block.height(), state)?;
        }
        Ok(())
    }

    fn on_undone(&mut self, writer: &Writer<'_>, block: &TakenBlock) -> Result<(), StorageError> {
        // What is in memory is read again with the first block of the other branch.
        self.loaded = false;
        undo::undo(writer, block)
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
        self.handled = Handled::new(reader.handled_messages(stored.id)?);
        if stored.cursor < before {
            self.catch_up(writer, &mut stored, before)?;
            stored.cursor = before;
            writer.save_agent(&stored, false)?;
        }
        self.outbox = Outbox::new(reader.outbox(stored.id)?, &chain.id);
        self.next_timer = reader.timers(stored.id)?.1;
        self.waiting = !reader.waiting_events(stored.id, 1)?.is_empty();
        self.unheard = reader.event_counts(stored.id)?.unheard > 0;
        self.stored = Some(stored);
        Ok(())
    }

    /// Puts into line what the blocks after its place, up to `last`, have for it.
    fn catch_up(&mut self, writer: &Writer<'_>, stored: &mut StoredAgent, last: Height) -> Result<(), StorageError> {
        let mut after = Cursor::end_of(stored.cursor);
        loop {
            // All of these are committed: the block at hand is the first that its transaction has.
            let page = writer.reader().messages(&self.wallet, Some(after), PAGE)?;
            for message in page.iter().take_while(|message| message.height <= last) {
                let wanted = concerns(stored.since, &self.wallet, &message.transaction, message.timestamp);
                let Some(wanted) = wanted else { continue };
                if self.handled.take(writer, stored.id, &message.hash)? {
                    continue;
                }
                if wanted {
                    writer.put_event(stored.id, &AgentEvent::Message(message.cursor()), None)?;
                } else {
                    stored.skipped += 1;
                }
            }
            match page.last() {
                Some(message) if message.height <= last => after = message.cursor(),
                _ => return Ok(()),
            }
        }
    }

    fn prune(&mut self, writer: &Writer<'_>, height: Height, state: &State) -> Result<(), StorageError> {
        let id = self.stored.as_ref().expect("loaded before anything else").id;
        self.handled.prune(writer, id, height, state)
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
pub(super) fn concerns(since: Time, wallet: &Address, transaction: &Transaction, time: Time) -> Option<bool> {
    (transaction.to == *wallet && transaction.is_message()).then(|| time >= since && transaction.from() != *wallet)
}

/// Where the budget's window begins at `now`.
pub(super) fn hour_before(now: Time) -> Time {
    Time(now.0.saturating_sub(HOUR_US))
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
