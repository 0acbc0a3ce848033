//! What the rest of the node sees of the agents: how they stand, what they have set aside, and the operator's word to try
//! that again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use tokio::sync::watch;

use super::dispatcher::{DispatcherHandle, HOUR_US};
use crate::chain::{Address, Hash, Height, Payload, Time, Transaction};
use crate::ledger::Ledger;
use crate::storage::{AgentEvent, EventCounts, Reader, StorageError, StoredAgent};

/// The configured agents; cheap to clone.
#[derive(Clone)]
pub struct Agents {
    ledger: Ledger,
    shared: Arc<Shared>,
}

/// What the dispatcher and [`Agents`] share.
pub(super) struct Shared {
    pub agents: Vec<Listed>,
    /// When the dispatcher was made.
    pub started: Time,
    /// Replies in all outboxes, after the last commit.
    pub outgoing: watch::Sender<usize>,
    /// Events were handed in again; the dispatcher looks for them with the next block.
    pub retried: AtomicBool,
}

/// A configured agent.
pub(super) struct Listed {
    pub name: String,
    pub wallet: Address,
    pub max_fee_per_hour: u64,
}

/// How an agent stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AgentStatus {
    /// Its name.
    pub name: String,
    /// Its wallet.
    pub wallet: Address,
    /// When this node first had it; messages in older blocks are skipped.
    pub since: Time,
    /// The messages of every block up to this one are taken care of.
    pub cursor: Height,
    /// Events that its handler has handled.
    pub handled: u64,
    /// Messages that were not its business: older than it, or its own.
    pub skipped: u64,
    /// Events that are set aside.
    pub parked: u64,
    /// Of these, those that wait for a handler and are handled by themselves when there is one.
    pub unheard: u64,
    /// Events that wait for their turn.
    pub waiting: u64,
    /// What its handler wanted and the host did not do.
    pub refused: u64,
    /// Replies that no block holds yet.
    pub replies_pending: u64,
    /// Fees of the last hour, with those of the pending replies.
    pub fee_spent: u64,
    /// How much that may be.
    pub max_fee_per_hour: u64,
    /// What its handler remembers, in bytes.
    pub memory_bytes: u64,
}

/// How many events an agent has set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedCount {
    /// Its name.
    pub agent: String,
    /// How many.
    pub parked: u64,
    /// Of these, those that wait for a handler.
    pub unheard: u64,
}

/// An event that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Parked {
    /// Names it to [`Agents::retry`]; grows.
    pub id: i64,
    /// Why it was set aside.
    pub reason: String,
    /// Whether it is handled by itself as soon as there is a handler; else it waits for [`Agents::retry`].
    pub unheard: bool,
    /// The timer, if it is one.
    pub timer: Option<String>,
    /// The message's transaction, if it is one.
    pub message: Option<Hash>,
    /// Its sender.
    pub from: Option<Address>,
    /// Its block.
    pub height: Option<Height>,
    /// What it says, cut to 200 characters.
    pub text: Option<String>,
}

impl Agents {
    /// The agents of the dispatcher behind `handle`, which `ledger` has as a hook. Registers those that are new: they
    /// answer what comes from now on, and nothing before.
    pub async fn open(ledger: Ledger, handle: DispatcherHandle) -> Result<Self, StorageError> {
        let agents = Self { ledger, shared: handle.0 };
        let shared = Arc::clone(&agents.shared);
        let write = agents.ledger.write(move |writer| {
            let reader = writer.reader();
            let head = reader.head()?.map_or(0, |head| head.height);
            let mut outgoing = 0;
            for Listed { name, wallet, .. } in &shared.agents {
                match reader.agent(name, wallet)? {
                    None => writer.put_agent(name, wallet, shared.started, head)?,
                    Some(agent) => outgoing += reader.outbox(agent.id)?.len(),
                }
            }
            shared.outgoing.send_replace(outgoing);
            Ok(())
        });
        write.await?;
        Ok(agents)
    }

    /// Their names, in the order of the configuration.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.shared.agents.iter().map(|listed| listed.name.as_str())
    }

    /// The chain that they are on.
    pub fn chain_id(&self) -> &str {
        &self.ledger.genesis().chain_id
    }

    /// How they stand, in the order of the configuration.
    pub async fn statuses(&self) -> Result<Vec<AgentStatus>, StorageError> {
        let shared = Arc::clone(&self.shared);
        let now = self.ledger.head().timestamp;
        self.ledger
            .storage()
            .read_async(move |reader| shared.each(reader, |listed, agent| status(reader, listed, agent, now)))
            .await
    }

    /// How many events each has set aside, in the order of the configuration. Blocks for as long as the database takes.
    pub fn parked_counts(&self) -> Result<Vec<ParkedCount>, StorageError> {
        self.ledger.storage().read(|reader| {
            self.shared.each(reader, |listed, agent| {
                let counts = agent.map_or(Ok(EventCounts::default()), |agent| reader.event_counts(agent.id))?;
                Ok(ParkedCount { agent: listed.name.clone(), parked: counts.parked, unheard: counts.unheard })
            })
        })
    }

    /// What the agent `name` has set aside: events with an id above `after`, oldest first, at most `limit`. None for an
    /// agent that is not configured.
    pub async fn parked(&self, name: &str, after: i64, limit: usize) -> Result<Option<Vec<Parked>>, StorageError> {
        let Some(wallet) = self.wallet(name) else { return Ok(None) };
        let name = name.to_owned();
        let parked = self.ledger.storage().read_async(move |reader| {
            let Some(agent) = reader.agent(&name, &wallet)? else { return Ok(Vec::new()) };
            let events = reader.parked_events(agent.id, after, limit)?;
            events.into_iter().map(|event| parked(reader, event)).collect()
        });
        parked.await.map(Some)
    }

    /// Hands what the agent `name` has set aside to its handler again, with the next block: the event `only`, or all.
    /// Answers how many; none for an agent that is not configured.
    pub async fn retry(&self, name: &str, only: Option<i64>) -> Result<Option<usize>, StorageError> {
        let Some(wallet) = self.wallet(name) else { return Ok(None) };
        let (name, shared) = (name.to_owned(), Arc::clone(&self.shared));
        let (sender, count) = std::sync::mpsc::channel();
        let write = self.ledger.write(move |writer| {
            let Some(agent) = writer.reader().agent(&name, &wallet)? else { return Ok(()) };
            let unparked = writer.unpark_events(agent.id, only)?;
            // On the ledger's thread, so no block can come between this and the rows.
            shared.retried.store(true, Ordering::Relaxed);
            // The receiver waits below.
            _ = sender.send(unparked);
            Ok(())
        });
        write.await?;
        Ok(Some(count.try_recv().unwrap_or(0)))
    }

    /// How many replies no block holds yet; changes with a commit.
    pub fn watch_outbox(&self) -> watch::Receiver<usize> {
        self.shared.outgoing.subscribe()
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Every reply that no block holds yet: whose, its hash and itself, each agent's by nonce.
    pub(super) async fn outgoing(&self) -> Result<Vec<(String, Hash, Transaction)>, StorageError> {
        let shared = Arc::clone(&self.shared);
        let genesis = Arc::clone(self.ledger.genesis());
        self.ledger
            .storage()
            .read_async(move |reader| {
                let rows = shared.each(reader, |listed, agent| {
                    let mut rows = agent.map_or(Ok(Vec::new()), |agent| reader.outbox(agent.id))?;
                    rows.sort_by_key(|row| row.transaction.nonce);
                    let row = |transaction: Transaction| {
                        (listed.name.clone(), transaction.hash(&genesis.chain_id), transaction)
                    };
                    Ok(rows.into_iter().map(|outgoing| row(outgoing.transaction)).collect::<Vec<_>>())
                })?;
                Ok(rows.into_iter().flatten().collect())
            })
            .await
    }

    fn wallet(&self, name: &str) -> Option<Address> {
        self.shared.agents.iter().find(|listed| listed.name == name).map(|listed| listed.wallet)
    }
}

impl Shared {
    fn each<T>(
        &self,
        reader: &Reader<'_>,
        mut each: impl FnMut(&Listed, Option<StoredAgent>) -> Result<T, StorageError>,
    ) -> Result<Vec<T>, StorageError> {
        self.agents.iter().map(|listed| each(listed, reader.agent(&listed.name, &listed.wallet)?)).collect()
    }
}

fn status(
    reader: &Reader<'_>,
    listed: &Listed,
    agent: Option<StoredAgent>,
    now: Time,
) -> Result<AgentStatus, StorageError> {
    let agent = agent.ok_or_else(|| StorageError::Inconsistent(format!("agent `{}` is not there", listed.name)))?;
    let EventCounts { waiting, parked, unheard } = reader.event_counts(agent.id)?;
    let outbox = reader.outbox(agent.id)?;
    let pending = outbox.iter().fold(0_u64, |sum, row| sum.saturating_add(super::outbox::cost(row.transaction.fee)));
    let spent = reader.spent(agent.id, Time(now.0.saturating_sub(HOUR_US)))?;
    Ok(AgentStatus {
        name: listed.name.clone(),
        wallet: listed.wallet,
        since: agent.since,
        cursor: agent.cursor,
        handled: agent.handled,
        skipped: agent.skipped,
        parked,
        unheard,
        waiting,
        refused: agent.refused,
        replies_pending: outbox.len() as u64,
        fee_spent: spent.saturating_add(pending),
        max_fee_per_hour: listed.max_fee_per_hour,
        memory_bytes: agent.memory.len() as u64,
    })
}

fn parked(reader: &Reader<'_>, event: crate::storage::ParkedEvent) -> Result<Parked, StorageError> {
    let (id, reason, unheard) = (event.id, event.reason, event.is_unheard);
    let at = match event.event {
        AgentEvent::Timer(tag) => {
            let (message, from, height, text) = Default::default();
            return Ok(Parked { id, reason, unheard, timer: Some(tag), message, from, height, text });
        }
        AgentEvent::Message(at) => at,
    };
    let stored = reader.transactions_at(&[at])?.pop().flatten();
    Ok(Parked {
        id,
        reason,
        unheard,
        timer: None,
        message: stored.as_ref().map(|stored| stored.hash),
        from: stored.as_ref().map(|stored| stored.transaction.from()),
        height: Some(at.height),
        text: stored.map(|stored| match stored.transaction.payload {
            Payload::Absent => String::new(),
            Payload::Text(text) | Payload::Object(text) => text.chars().take(200).collect(),
        }),
    })
}
