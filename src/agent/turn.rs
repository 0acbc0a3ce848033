//! One agent's share of one block: which of its events are handled with it, in which order, and what comes of each.

use std::collections::VecDeque;
use std::time::Instant;

use super::dispatcher::{Agent, AgentConfig, AgentLimits, Chain, PAGE, Report, concerns, hour_before};
use super::effects::{self, Checked, MEMORY_MAX_BYTES};
use super::outbox::{self, Outbox};
use super::undo::Handled;
use super::{Aside, Context, Event, Message};
use crate::chain::{Account, Address, Kind, Payload, State, Time, Transaction, VerifiedBlock};
use crate::storage::{AgentEvent, Cursor, StorageError, StoredAgent, Why, Writer};

/// Bytes of a handler's reason that are kept.
const REASON_MAX_BYTES: usize = 1_024;

/// One agent's share of one block.
pub(super) struct Turn<'a> {
    config: &'a AgentConfig,
    wallet: Address,
    stored: &'a mut StoredAgent,
    outbox: &'a mut Outbox,
    next_timer: &'a mut Option<Time>,
    waiting: &'a mut bool,
    unheard: &'a mut bool,
    /// Whether there is no handler for what is left of this block.
    is_alone: bool,
    handled: &'a mut Handled,
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
    pub fn new(
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
            unheard: &mut agent.unheard,
            is_alone: !agent.config.handler.is_there(),
            handled: &mut agent.handled,
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

    /// What was set aside until there is a handler, where there is one; then timers, since they were due before the block
    /// came; then what waits; then what the block brings.
    pub fn take(mut self) -> Result<(), StorageError> {
        if *self.unheard && !self.is_alone {
            self.writer.unpark_unheard(self.stored.id)?;
            *self.unheard = false;
            // Older than any timer that is due now.
            self.waiting_events()?;
        }
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
            if let Err(aside) = self.handle(&Event::Timer(tag.clone()))? {
                self.park(None, AgentEvent::Timer(tag), aside)?;
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
                return Ok(());
            };
            match known.map_or_else(|| Ok(Err("its block is not there".into())), |known| self.handle(&known))? {
                Ok(()) => self.writer.take_event(row)?,
                Err(aside) => self.park(Some(row), event, aside)?,
            }
        }
        *self.waiting = true;
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
        let known = |(row, event): (i64, AgentEvent)| {
            let known = match &event {
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
            (row, event, known)
        };
        Ok(rows.into_iter().map(known).collect())
    }

    fn messages(&mut self) -> Result<(), StorageError> {
        let (block, height) = (self.block, self.block.height());
        // What it has seen brings nothing new.
        if height <= self.stored.cursor {
            return Ok(());
        }
        for ((position, transaction), id) in (0..).zip(&block.block().transactions).zip(block.transaction_hashes()) {
            let Some(wanted) = concerns(self.stored.since, &self.wallet, transaction, self.now()) else { continue };
            self.changed = true;
            self.stored.cursor = height;
            if self.handled.take(self.writer, self.stored.id, id)? {
                continue;
            }
            if !wanted {
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
            if let Err(aside) = self.handle(&Event::Message(message))? {
                self.park(None, at, aside)?;
            }
        }
        Ok(())
    }

    /// Calls the handler and carries out what it wants. The inner error is why the event is to be set aside; then nothing
    /// else has changed.
    fn handle(&mut self, event: &Event) -> Result<Result<(), Aside>, StorageError> {
        self.events_left -= 1;
        self.changed = true;
        // One that comes back now would handle this event before those that are set aside already.
        if self.is_alone {
            return Ok(Err(Aside::NoHandler));
        }
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
            Err(aside) => {
                self.is_alone = aside == Aside::NoHandler;
                return Ok(Err(aside));
            }
        };
        if memory.len() > MEMORY_MAX_BYTES {
            let got = memory.len();
            let reason = format!("the handler wants to remember {got} bytes, at most {MEMORY_MAX_BYTES} are kept");
            return Ok(Err(reason.into()));
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
    fn park(&mut self, row: Option<i64>, event: AgentEvent, aside: Aside) -> Result<(), StorageError> {
        let mut reason = aside.to_string();
        reason.truncate(reason.floor_char_boundary(REASON_MAX_BYTES));
        let why = Why { reason: &reason, is_unheard: aside == Aside::NoHandler };
        *self.unheard |= why.is_unheard;
        match row {
            Some(row) => self.writer.park_event(row, why)?,
            None => self.writer.put_event(self.stored.id, &event, Some(why))?,
        }
        self.reports.push(Report::Parked { agent: self.config.name.clone(), event, reason });
        Ok(())
    }
}
