//! What agents keep: their place in the chain, their memory, what waits or is set aside, timers, replies on their way and
//! what they cost. All of it changes in the transaction of the block that caused it.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, Row, params};

use super::{Cursor, Reader, Result, StorageError, Writer, from_sql, to_sql};
use crate::chain::{Address, Hash, Height, Time, Transaction};

/// An agent's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId(i64);

/// An agent as it is stored: one name with one wallet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAgent {
    /// Its row.
    pub id: AgentId,
    /// When the node first had it; older messages are not its business.
    pub since: Time,
    /// The messages of every block up to this one are handled, skipped, or in `agent_event`.
    pub cursor: Height,
    /// What its handler remembers.
    pub memory: Vec<u8>,
    /// Events that were handled.
    pub handled: u64,
    /// Messages that were not its business: older than it, or its own.
    pub skipped: u64,
    /// Effects that were refused.
    pub refused: u64,
}

/// Something that an agent has to handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentEvent {
    /// The message at this place in the chain.
    Message(Cursor),
    /// A timer, by its tag.
    Timer(String),
}

/// An event that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedEvent {
    /// Its row; also the order in which they came.
    pub id: i64,
    /// What it is.
    pub event: AgentEvent,
    /// Why.
    pub reason: String,
    /// See [`Why::is_unheard`].
    pub is_unheard: bool,
}

/// Why an event is set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Why<'a> {
    /// For people.
    pub reason: &'a str,
    /// Whether that is since there was no handler, so that it waits for one and not for the operator.
    pub is_unheard: bool,
}

/// How many events of an agent there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventCounts {
    /// Those that wait for their turn.
    pub waiting: u64,
    /// Those that are set aside.
    pub parked: u64,
    /// Of these, those that wait for a handler.
    pub unheard: u64,
}

/// How far an agent has come, whether the node is configured with it or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPlace {
    /// Its row.
    pub id: AgentId,
    /// Its wallet.
    pub wallet: Address,
    /// See [`StoredAgent::since`].
    pub since: Time,
}

/// A message that an agent has handled and that was taken off the chain since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandledMessage {
    /// Who sent it.
    pub sender: Address,
    /// Its nonce.
    pub nonce: u64,
    /// Where the sender's nonce was first seen to be beyond, so that no later block can hold it.
    pub passed: Option<Height>,
}

/// A signed transaction that is not in a block yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRow {
    /// Its row; also the order in which they came.
    pub id: i64,
    /// The transaction.
    pub transaction: Transaction,
}

fn event(row: &Row<'_>) -> rusqlite::Result<AgentEvent> {
    Ok(match row.get::<_, Option<String>>(1)? {
        Some(tag) => AgentEvent::Timer(tag),
        None => AgentEvent::Message(Cursor { height: from_sql(row.get(2)?), position: row.get(3)? }),
    })
}

fn sql_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

impl Reader<'_> {
    /// The agent with this name and wallet.
    pub fn agent(&self, name: &str, wallet: &Address) -> Result<Option<StoredAgent>> {
        let mut statement = self.connection().prepare_cached(
            "SELECT id, since, cursor, memory, handled, skipped, refused FROM agent WHERE name = ? AND wallet = ?",
        )?;
        let agent = statement.query_row(params![name, &wallet.0[..]], |row| {
            Ok(StoredAgent {
                id: AgentId(row.get(0)?),
                since: Time(from_sql(row.get(1)?)),
                cursor: from_sql(row.get(2)?),
                memory: row.get(3)?,
                handled: from_sql(row.get(4)?),
                skipped: from_sql(row.get(5)?),
                refused: from_sql(row.get(6)?),
            })
        });
        Ok(agent.optional()?)
    }

    /// The agents that have seen the block at `height`.
    pub fn agents_beyond(&self, height: Height) -> Result<Vec<AgentPlace>> {
        let mut statement =
            self.connection().prepare_cached("SELECT id, wallet, since FROM agent WHERE cursor >= ?")?;
        let rows = statement.query_map([to_sql(height)], |row| {
            Ok(AgentPlace {
                id: AgentId(row.get(0)?),
                wallet: Address(row.get(1)?),
                since: Time(from_sql(row.get(2)?)),
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The messages that an agent has handled and that no block of the chain holds now.
    pub fn handled_messages(&self, agent: AgentId) -> Result<HashMap<Hash, HandledMessage>> {
        let mut statement = self
            .connection()
            .prepare_cached("SELECT hash, sender, nonce, passed FROM agent_handled WHERE agent = ?")?;
        let rows = statement.query_map([agent.0], |row| {
            let (sender, nonce) = (Address(row.get(1)?), from_sql(row.get(2)?));
            let passed = row.get::<_, Option<i64>>(3)?.map(from_sql);
            Ok((Hash(row.get(0)?), HandledMessage { sender, nonce, passed }))
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The positions of the messages of one block that an agent has not handled yet: they wait, or are set aside.
    pub fn open_messages(&self, agent: AgentId, height: Height) -> Result<Vec<u32>> {
        let mut statement = self
            .connection()
            .prepare_cached("SELECT position FROM agent_event WHERE height = ? AND tag IS NULL AND agent = ?")?;
        let rows = statement.query_map([to_sql(height), agent.0], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The oldest events that wait to be handled, with their rows; at most `limit`.
    pub fn waiting_events(&self, agent: AgentId, limit: usize) -> Result<Vec<(i64, AgentEvent)>> {
        let mut statement = self.connection().prepare_cached(
            "SELECT id, tag, height, position FROM agent_event WHERE agent = ? AND reason IS NULL ORDER BY id LIMIT ?",
        )?;
        let rows = statement.query_map(params![agent.0, sql_limit(limit)], |row| Ok((row.get(0)?, event(row)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Events that are set aside, oldest first, with rows above `after`; at most `limit`.
    pub fn parked_events(&self, agent: AgentId, after: i64, limit: usize) -> Result<Vec<ParkedEvent>> {
        let mut statement = self.connection().prepare_cached(
            "SELECT id, tag, height, position, reason, unheard FROM agent_event
             WHERE agent = ? AND reason IS NOT NULL AND id > ? ORDER BY id LIMIT ?",
        )?;
        let rows = statement.query_map(params![agent.0, after, sql_limit(limit)], |row| {
            Ok(ParkedEvent { id: row.get(0)?, event: event(row)?, reason: row.get(4)?, is_unheard: row.get(5)? })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// How many events wait, and how many are set aside.
    pub fn event_counts(&self, agent: AgentId) -> Result<EventCounts> {
        let count = |condition: &str| -> Result<u64> {
            let sql = format!("SELECT count(*) FROM agent_event WHERE agent = ? AND {condition}");
            Ok(from_sql(self.connection().prepare_cached(&sql)?.query_row([agent.0], |row| row.get(0))?))
        };
        Ok(EventCounts {
            waiting: count("reason IS NULL")?,
            parked: count("reason IS NOT NULL")?,
            unheard: count("unheard")?,
        })
    }

    /// The tags of timers at or before `now`, earliest first; at most `limit`.
    pub fn due_timers(&self, agent: AgentId, now: Time, limit: usize) -> Result<Vec<String>> {
        let mut statement = self
            .connection()
            .prepare_cached("SELECT tag FROM agent_timer WHERE agent = ? AND at <= ? ORDER BY at, tag LIMIT ?")?;
        let rows = statement.query_map(params![agent.0, to_sql(now.0), sql_limit(limit)], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// How many timers run, and when the first runs out.
    pub fn timers(&self, agent: AgentId) -> Result<(usize, Option<Time>)> {
        let mut statement =
            self.connection().prepare_cached("SELECT count(*), min(at) FROM agent_timer WHERE agent = ?")?;
        let (count, first): (u32, Option<i64>) =
            statement.query_row([agent.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok((count as usize, first.map(|at| Time(from_sql(at)))))
    }

    /// Whether a timer with this tag runs.
    pub fn has_timer(&self, agent: AgentId, tag: &str) -> Result<bool> {
        let mut statement =
            self.connection().prepare_cached("SELECT 1 FROM agent_timer WHERE agent = ? AND tag = ?")?;
        Ok(statement.exists(params![agent.0, tag])?)
    }

    /// The replies that are not in a block yet, oldest first.
    pub fn outbox(&self, agent: AgentId) -> Result<Vec<OutboxRow>> {
        let mut statement = self
            .connection()
            .prepare_cached("SELECT id, body FROM agent_outbox WHERE agent = ? AND height IS NULL ORDER BY id")?;
        let rows = statement.query_map([agent.0], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.map(|row| {
            let (id, body): (i64, Vec<u8>) = row?;
            let transaction = Transaction::from_bytes(&body)
                .map_err(|error| StorageError::Damaged { what: format!("outgoing message {id}"), error })?;
            Ok(OutboxRow { id, transaction })
        })
        .collect()
    }

    /// What was charged later than `after`.
    pub fn spent(&self, agent: AgentId, after: Time) -> Result<u64> {
        let mut statement =
            self.connection().prepare_cached("SELECT fee FROM agent_spending WHERE agent = ? AND at > ?")?;
        let fees = statement.query_map(params![agent.0, to_sql(after.0)], |row| row.get(0).map(from_sql))?;
        // Added up here: SQLite's own sum fails beyond 63 bits.
        fees.into_iter().try_fold(0_u64, |sum, fee| Ok(sum.saturating_add(fee?)))
    }
}

impl Writer<'_> {
    fn execute(&self, sql: &str, params: impl rusqlite::Params) -> Result<usize> {
        Ok(self.connection().prepare_cached(sql)?.execute(params)?)
    }

    /// Stores a new agent, which looks at blocks above `cursor`.
    pub fn put_agent(&self, name: &str, wallet: &Address, since: Time, cursor: Height) -> Result<()> {
        self.execute(
            "INSERT INTO agent (name, wallet, since, cursor) VALUES (?, ?, ?, ?)",
            params![name, &wallet.0[..], to_sql(since.0), to_sql(cursor)],
        )?;
        Ok(())
    }

    /// Stores an agent's place and tallies, and its memory where `memory` says so.
    pub fn save_agent(&self, agent: &StoredAgent, memory: bool) -> Result<()> {
        let StoredAgent { cursor, handled, skipped, refused, .. } = *agent;
        self.execute(
            "UPDATE agent SET cursor = ?2, handled = ?3, skipped = ?4, refused = ?5 WHERE id = ?1",
            params![agent.id.0, to_sql(cursor), to_sql(handled), to_sql(skipped), to_sql(refused)],
        )?;
        if memory {
            self.execute("UPDATE agent SET memory = ? WHERE id = ?", params![agent.memory, agent.id.0])?;
        }
        Ok(())
    }

    /// Keeps an event: to be handled later, or set aside with a reason.
    pub fn put_event(&self, agent: AgentId, event: &AgentEvent, why: Option<Why<'_>>) -> Result<()> {
        let (at, tag) = match event {
            AgentEvent::Message(at) => (*at, None),
            AgentEvent::Timer(tag) => (Cursor { height: 0, position: 0 }, Some(tag)),
        };
        self.execute(
            "INSERT INTO agent_event (agent, height, position, tag, reason, unheard) VALUES (?, ?, ?, ?, ?, ?)",
            params![
                agent.0,
                to_sql(at.height),
                at.position,
                tag,
                why.map(|why| why.reason),
                why.is_some_and(|why| why.is_unheard)
            ],
        )?;
        Ok(())
    }

    /// Sets a waiting event aside.
    pub fn park_event(&self, id: i64, why: Why<'_>) -> Result<()> {
        let Why { reason, is_unheard } = why;
        self.execute("UPDATE agent_event SET reason = ?, unheard = ? WHERE id = ?", params![reason, is_unheard, id])?;
        Ok(())
    }

    /// Lets events that were set aside wait again: the one with row `only`, or all. Answers how many.
    pub fn unpark_events(&self, agent: AgentId, only: Option<i64>) -> Result<usize> {
        self.execute(
            "UPDATE agent_event SET reason = NULL, unheard = 0
             WHERE agent = ?1 AND reason IS NOT NULL AND (?2 IS NULL OR id = ?2)",
            params![agent.0, only],
        )
    }

    /// Lets the events wait again that were set aside since there was no handler.
    pub fn unpark_unheard(&self, agent: AgentId) -> Result<usize> {
        self.execute("UPDATE agent_event SET reason = NULL, unheard = 0 WHERE agent = ? AND unheard", [agent.0])
    }

    /// Forgets an event that was handled.
    pub fn take_event(&self, id: i64) -> Result<()> {
        self.execute("DELETE FROM agent_event WHERE id = ?", [id])?;
        Ok(())
    }

    /// Starts a timer; one of the same tag is replaced.
    pub fn put_timer(&self, agent: AgentId, tag: &str, at: Time) -> Result<()> {
        self.execute(
            "INSERT OR REPLACE INTO agent_timer (agent, tag, at) VALUES (?, ?, ?)",
            params![agent.0, tag, to_sql(at.0)],
        )?;
        Ok(())
    }

    /// Forgets a timer.
    pub fn take_timer(&self, agent: AgentId, tag: &str) -> Result<()> {
        self.execute("DELETE FROM agent_timer WHERE agent = ? AND tag = ?", params![agent.0, tag])?;
        Ok(())
    }

    /// Puts a transaction into the outbox; answers its row.
    pub fn put_outgoing(&self, agent: AgentId, transaction: &Transaction) -> Result<i64> {
        self.execute("INSERT INTO agent_outbox (agent, body) VALUES (?, ?)", params![agent.0, transaction.to_bytes()])?;
        Ok(self.connection().last_insert_rowid())
    }

    /// Puts another transaction in a row's place.
    pub fn replace_outgoing(&self, id: i64, transaction: &Transaction) -> Result<()> {
        self.execute("UPDATE agent_outbox SET body = ? WHERE id = ?", params![transaction.to_bytes(), id])?;
        Ok(())
    }

    /// Notes that a transaction is in the block at `height`: it waits no more, but for that block's being undone.
    pub fn settle_outgoing(&self, id: i64, height: Height) -> Result<()> {
        self.execute("UPDATE agent_outbox SET height = ? WHERE id = ?", [to_sql(height), id])?;
        Ok(())
    }

    /// Forgets the transactions of an agent that are in blocks up to `deepest`.
    pub fn forget_outgoing(&self, agent: AgentId, deepest: Height) -> Result<()> {
        self.execute("DELETE FROM agent_outbox WHERE height <= ? AND agent = ?", [to_sql(deepest), agent.0])?;
        Ok(())
    }

    /// Lets the agents' transactions of a block that is taken back wait again, and takes back what they cost. `at` is the
    /// block's time.
    pub fn unsettle_outgoing(&self, height: Height, at: Time) -> Result<()> {
        self.execute("UPDATE agent_outbox SET height = NULL WHERE height = ?", [to_sql(height)])?;
        self.execute("DELETE FROM agent_spending WHERE at = ?", [to_sql(at.0)])?;
        Ok(())
    }

    /// Sets an agent back to before the block at `height`, of which it has skipped so many messages: what it has not
    /// handled of that block is forgotten.
    pub fn set_agent_back(&self, agent: AgentId, height: Height, skipped: u64) -> Result<()> {
        self.execute(
            "DELETE FROM agent_event WHERE height = ? AND tag IS NULL AND agent = ?",
            [to_sql(height), agent.0],
        )?;
        self.execute(
            "UPDATE agent SET cursor = ?, skipped = max(0, skipped - ?) WHERE id = ?",
            [to_sql(height - 1), to_sql(skipped), agent.0],
        )?;
        Ok(())
    }

    /// Remembers a message that an agent has handled, though no block holds it now.
    pub fn put_handled(&self, agent: AgentId, hash: &Hash, message: &HandledMessage) -> Result<()> {
        let HandledMessage { sender, nonce, passed } = message;
        self.execute(
            "INSERT OR REPLACE INTO agent_handled (agent, hash, sender, nonce, passed) VALUES (?, ?, ?, ?, ?)",
            params![agent.0, hash.0, sender.0, to_sql(*nonce), passed.map(to_sql)],
        )?;
        Ok(())
    }

    /// Forgets of an agent's handled messages those beyond `max` that are least likely to come again. Answers how many.
    pub fn trim_handled(&self, agent: AgentId, max: usize) -> Result<usize> {
        self.execute(
            "DELETE FROM agent_handled WHERE agent = ?1 AND hash IN (
                 SELECT hash FROM agent_handled WHERE agent = ?1
                 ORDER BY passed IS NOT NULL, passed DESC LIMIT -1 OFFSET ?2
             )",
            params![agent.0, sql_limit(max)],
        )
    }

    /// Forgets one: a block holds it again, or none ever can.
    pub fn take_handled(&self, agent: AgentId, hash: &Hash) -> Result<()> {
        self.execute("DELETE FROM agent_handled WHERE agent = ? AND hash = ?", params![agent.0, hash.0])?;
        Ok(())
    }

    /// Forgets of all agents' handled messages that the block at `height`, or one above, passed their nonces.
    pub fn unpass_handled(&self, height: Height) -> Result<()> {
        self.execute("UPDATE agent_handled SET passed = NULL WHERE passed >= ?", [to_sql(height)])?;
        Ok(())
    }

    /// Notes what a transaction cost, and forgets what was charged up to `forget`.
    pub fn charge(&self, agent: AgentId, at: Time, fee: u64, forget: Time) -> Result<()> {
        self.execute(
            "INSERT INTO agent_spending (agent, at, fee) VALUES (?, ?, ?)",
            params![agent.0, to_sql(at.0), to_sql(fee)],
        )?;
        self.execute("DELETE FROM agent_spending WHERE agent = ? AND at <= ?", params![agent.0, to_sql(forget.0)])?;
        Ok(())
    }
}
