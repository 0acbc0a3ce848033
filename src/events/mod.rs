//! What happens in the node, for those who listen: one hub, into which producers post and out of which every listener
//! reads at its own pace.
//!
//! The hub keeps the newest events in one ring, bounded in events and bytes; a listener is a place in it and costs no
//! memory, so a slow one cannot hold anything up: it loses what falls out of the ring, and is told. What can be read
//! again from the database (blocks, transactions, messages) is posted only while somebody listens, and for a while
//! after the last one has gone; the rest (reorganisations, sync, plugins, alerts) is rare and always posted.
//!
//! Every event carries a [`Position`]: its number and the last block that was told. Whoever comes back with one goes on
//! behind it: from the ring where that still has everything, else with the blocks of the database, see [`Hub::listen`].

mod position;
mod ring;
mod trail;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::chain::{Height, Time};
use ring::Ring;

pub use position::{Mark, Position};
pub use trail::{Advance, Reorg, Trail};

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A block became part of the chain.
    Block,
    /// A transaction waits, is in a block, or was dropped.
    Transaction,
    /// A message is in a block.
    Message,
    /// Blocks left the chain.
    Reorg,
    /// The node stands otherwise against its sources.
    Sync,
    /// Something happened to a plugin.
    Plugin,
    /// An alert fires, or is over.
    Alert,
    /// Not for filters: blocks that were not told, since they came faster than they could be.
    Lost,
    /// Not for anybody: blocks that nobody wanted to be told of.
    PassedOver,
}

/// A set of kinds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Kinds(u16);

/// Something that happened.
#[derive(Debug)]
pub struct Event {
    /// What it is about.
    pub kind: Kind,
    /// Its place; [`Position::mark`] is the last block told up to here, a block's own event included.
    pub position: Position,
    /// JSON.
    pub data: String,
}

/// What the hub keeps.
#[derive(Clone, Copy, Debug)]
pub struct HubLimits {
    /// Events at most.
    pub events_max: usize,
    /// Bytes of their data at most.
    pub bytes_max: usize,
    /// How long blocks are posted after the last listener has gone, so that one that comes back misses nothing.
    pub linger: Duration,
    /// Listeners at most.
    pub listeners_max: usize,
}

/// Where everybody posts and listens. Cheap to clone.
#[derive(Clone)]
pub struct Hub(Arc<Shared>);

struct Shared {
    ring: Mutex<Ring>,
    limits: HubLimits,
    /// The number of the newest event; changes with every post.
    newest: watch::Sender<u64>,
}

/// A listener's place. Dropping it ends the listening.
pub struct Listener {
    hub: Hub,
    kinds: Kinds,
    /// The last event that was looked at.
    seen: Position,
    newest: watch::Receiver<u64>,
}

/// What a listener finds.
#[derive(Clone, Debug)]
pub enum Found {
    /// The next events of its kinds; none: there are no new ones.
    Events(Vec<Arc<Event>>),
    /// The ring has moved on without it.
    Gone(Gone),
}

/// Events that a listener was too slow for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// How many, of all kinds.
    pub events: u64,
    /// The last one that it had.
    pub from: Position,
    /// The one before the next that it can have.
    pub to: Position,
    /// The highest block of those that it was told which is still on the chain, as far as these events say.
    pub known: Height,
}

/// What has to be told to a listener that has been here before, in this order, until [`Listener::next`] goes on.
#[derive(Clone, Debug, Default)]
pub struct Resumption {
    /// Kinds of which something may be missing for good, and why.
    pub gap: Option<(Kinds, Gap)>,
    /// Events that the ring still has, of kinds that are not read from the database.
    pub events: Vec<Arc<Event>>,
    /// Blocks to be read from the database, with what they hold: those above the first, which the chain must still have
    /// for this to be a continuation, up to the height.
    pub blocks: Option<(Mark, Height)>,
}

/// Why something may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gap {
    /// Another process of the node gave the position.
    Restart,
    /// It lies behind what the hub keeps.
    Expired,
    /// No process of this node can have given it.
    Unknown,
}

/// Nobody more can listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Kind {
    /// All that a listener may ask for.
    pub const ALL: [Self; 7] =
        [Self::Block, Self::Transaction, Self::Message, Self::Reorg, Self::Sync, Self::Plugin, Self::Alert];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Transaction => "transaction",
            Self::Message => "message",
            Self::Reorg => "reorg",
            Self::Sync => "sync",
            Self::Plugin => "plugin",
            Self::Alert => "alert",
            Self::Lost => "lost",
            Self::PassedOver => "passed-over",
        }
    }
}

impl Kinds {
    /// None.
    pub const NONE: Self = Self(0);
    /// Those that are posted only while somebody wants them.
    pub const CHAIN: Self = Self::of(&[Kind::Block, Kind::Transaction, Kind::Message]);
    /// All that a listener may ask for.
    pub const ALL: Self = Self::of(&Kind::ALL);

    /// These.
    pub const fn of(kinds: &[Kind]) -> Self {
        let (mut bits, mut at) = (0, 0);
        while at < kinds.len() {
            bits |= 1 << kinds[at] as u8;
            at += 1;
        }
        Self(bits)
    }

    /// Whether `kind` is among them.
    pub fn has(self, kind: Kind) -> bool {
        self.0 & (1 << kind as u8) != 0
    }

    /// Those that are in both.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those that are in either.
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that are not in `other`.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of these are among `other`.
    pub fn are_in(self, other: Self) -> bool {
        self.without(other).is_empty()
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(move |kind| self.has(*kind))
    }
}

impl std::fmt::Debug for Kinds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter().map(Kind::name)).finish()
    }
}

impl std::str::FromStr for Kinds {
    type Err = String;

    /// Names with commas between them.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut kinds = Self::NONE;
        for name in text.split(',').map(str::trim) {
            let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == name) else {
                let known = Kind::ALL.map(Kind::name).join(", ");
                let got: String = name.chars().take(60).collect();
                return Err(format!("`{got}` is no type of event; known are {known}"));
            };
            kinds = kinds.or(Self::of(&[kind]));
        }
        Ok(kinds)
    }
}

impl Default for HubLimits {
    /// Room for the events of the largest block, which has fewer than 2^14 transactions.
    fn default() -> Self {
        Self { events_max: 1 << 15, bytes_max: 16 << 20, linger: Duration::from_secs(60), listeners_max: 256 }
    }
}

impl Hub {
    /// An empty hub of a process that starts at `now`, on a chain whose head is `mark`.
    pub fn new(now: Time, mark: Mark, limits: HubLimits) -> Self {
        let ring = Ring::new(Position { number: now.0, mark });
        Self(Arc::new(Shared { ring: Mutex::new(ring), limits, newest: watch::Sender::new(now.0) }))
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().expect("nobody panics while holding the ring")
    }

    /// Posts an event that is always told. `data` is JSON.
    pub fn post(&self, kind: Kind, data: String) {
        let mut ring = self.ring();
        ring.push(kind, None, data, &self.0.limits);
        self.0.newest.send_replace(ring.newest().number);
    }

    /// Posts blocks left the chain: the next block to be told follows `mark`.
    pub fn post_reorg(&self, mark: Mark, data: String) {
        let mut ring = self.ring();
        ring.push(Kind::Reorg, Some(mark), data, &self.0.limits);
        self.0.newest.send_replace(ring.newest().number);
    }

    /// Those kinds of [`Kinds::CHAIN`] that somebody wants, or wanted a moment ago.
    pub fn wanted(&self) -> Kinds {
        self.ring().wanted(Instant::now(), self.0.limits.linger)
    }

    /// The last block that was told, or passed over since nobody listened.
    pub fn mark(&self) -> Mark {
        self.ring().newest().mark
    }

    /// Goes on to `mark` without a word. False, and nothing changed: somebody listens to the chain by now.
    pub fn pass_over(&self, mark: Mark) -> bool {
        let mut ring = self.ring();
        let idle = ring.wanted(Instant::now(), self.0.limits.linger).is_empty();
        if idle {
            ring.pass_over(mark, &self.0.limits);
        }
        idle
    }

    /// Posts what the blocks from [`Hub::mark`] up to `mark` hold: transactions and messages, then the block itself; or
    /// `lost` for blocks that are only mentioned. `told` are the kinds of the chain that `events` has, which ends with
    /// one for `mark`. False, and nothing posted: more are wanted by now.
    pub fn post_block(&self, mark: Mark, told: Kinds, events: Vec<(Kind, String)>) -> bool {
        let mut ring = self.ring();
        if !ring.wanted(Instant::now(), self.0.limits.linger).are_in(told) {
            return false;
        }
        let last = events.len().saturating_sub(1);
        for (at, (kind, data)) in events.into_iter().enumerate() {
            // Whoever leaves in the middle of a block has not had it.
            ring.push(kind, (at == last).then_some(mark), data, &self.0.limits);
        }
        self.0.newest.send_replace(ring.newest().number);
        true
    }

    /// Listens to `kinds`, from now on or from behind `after`. With kinds of the chain come reorganisations too:
    /// without them heights that come again could not be understood. Errors: too many listen already.
    pub fn listen(&self, kinds: Kinds, after: Option<Position>) -> Result<(Listener, Resumption), Full> {
        let chain = kinds.and(Kinds::CHAIN);
        let kinds = if chain.is_empty() { kinds } else { kinds.or(Kinds::of(&[Kind::Reorg])) };
        let mut ring = self.ring();
        if ring.listeners() >= self.0.limits.listeners_max {
            return Err(Full);
        }
        let now = Instant::now();
        ring.wanted(now, self.0.limits.linger);
        let (seen, resumption) = match after {
            None => (ring.newest(), Resumption::default()),
            Some(after) => ring.resume(kinds, after),
        };
        ring.join(kinds);
        let newest = self.0.newest.subscribe();
        drop(ring);
        Ok((Listener { hub: self.clone(), kinds, seen, newest }, resumption))
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.ring().listeners()
    }
}

impl Listener {
    /// The kinds that it gets.
    pub fn kinds(&self) -> Kinds {
        self.kinds
    }

    /// Up to where it has looked.
    pub fn position(&self) -> Position {
        self.seen
    }

    /// What has come since the last call, as much of it as a listener gets at a time; does not wait.
    pub fn take(&mut self) -> Found {
        let ring = self.hub.ring();
        let found = ring.after(self.seen, self.kinds);
        match found {
            Ok((events, seen)) => {
                self.seen = seen;
                Found::Events(events)
            }
            Err(gone) => {
                self.seen = gone.to;
                Found::Gone(gone)
            }
        }
    }

    /// The same, once there is something. None: the hub is gone.
    pub async fn next(&mut self) -> Option<Found> {
        loop {
            self.newest.borrow_and_update();
            match self.take() {
                Found::Events(events) if events.is_empty() => {}
                found => return Some(found),
            }
            if self.seen.number < *self.newest.borrow() {
                continue;
            }
            self.newest.changed().await.ok()?;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.hub.ring().leave(self.kinds, Instant::now());
    }
}

#[cfg(test)]
mod tests;
