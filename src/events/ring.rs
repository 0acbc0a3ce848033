//! The ring: the newest events, who wants which, and whether a position can be gone on from. No waiting, and the clock
//! is an argument.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Event, Gap, Gone, HubLimits, Kind, Kinds, Mark, Position, Resumption};
use crate::chain::Height;

pub(super) struct Ring {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Where this process began; no event.
    base: Position,
    /// Right before the oldest event that is kept.
    before: Position,
    /// The newest event, or the base, and the last block that was told or passed over.
    newest: Position,
    /// Reorganisations that have fallen out: their numbers, and the highest blocks that stayed.
    forks: VecDeque<(u64, Height)>,
    listeners: usize,
    /// By kind of the chain.
    demand: [Demand; 3],
}

/// Who wants a kind.
#[derive(Clone, Copy, Default)]
struct Demand {
    listeners: usize,
    /// When the last listener left; none while there are some, or where there never were.
    left: Option<Instant>,
    /// The event after which none of this kind was left out; none while they are.
    complete_after: Option<u64>,
}

/// Events that a listener gets at a time, and bytes of them: what it keeps alive while it sends them on.
const BATCH_MAX: usize = 256;
const BATCH_BYTES: usize = 256 << 10;

/// Reorganisations that are remembered beyond the ring.
const FORKS_MAX: usize = 64;

const CHAIN: [Kind; 3] = [Kind::Block, Kind::Transaction, Kind::Message];

impl Ring {
    pub fn new(base: Position) -> Self {
        Self {
            events: VecDeque::new(),
            bytes: 0,
            base,
            before: base,
            newest: base,
            forks: VecDeque::new(),
            listeners: 0,
            demand: Default::default(),
        }
    }

    pub fn newest(&self) -> Position {
        self.newest
    }

    pub fn listeners(&self) -> usize {
        self.listeners
    }

    /// Takes in an event; `mark` is the last block told with it, where that changes.
    pub fn push(&mut self, kind: Kind, mark: Option<Mark>, data: String, limits: &HubLimits) {
        let number = self.newest.number + 1;
        self.newest = Position { number, mark: mark.unwrap_or(self.newest.mark) };
        self.bytes += data.len();
        self.events.push_back(Arc::new(Event { kind, position: self.newest, data }));
        while self.events.len() > limits.events_max || self.bytes > limits.bytes_max {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.data.len();
            self.before = oldest.position;
            if oldest.kind == Kind::Reorg {
                self.forget_fork(oldest.position);
            }
        }
    }

    fn forget_fork(&mut self, fork: Position) {
        self.forks.push_back((fork.number, fork.mark.height));
        if self.forks.len() > FORKS_MAX
            && let (Some((_, oldest)), Some((_, next))) = (self.forks.pop_front(), self.forks.front_mut())
        {
            // Rather a fork too low than one too few.
            *next = oldest.min(*next);
        }
    }

    /// Goes on to a block that nobody was told of. Leaves one entry behind, however often it is called in a row.
    pub fn pass_over(&mut self, mark: Mark, limits: &HubLimits) {
        if self.newest.mark == mark {
            return;
        }
        match self.events.back_mut().filter(|last| last.kind == Kind::PassedOver) {
            Some(last) => {
                self.newest.mark = mark;
                *last = Arc::new(Event { kind: Kind::PassedOver, position: self.newest, data: String::new() });
            }
            None => self.push(Kind::PassedOver, Some(mark), String::new(), limits),
        }
    }

    /// The kinds of the chain that are wanted; forgets those that have not been for `linger`.
    pub fn wanted(&mut self, now: Instant, linger: Duration) -> Kinds {
        let mut wanted = Kinds::NONE;
        for (kind, demand) in CHAIN.iter().zip(&mut self.demand) {
            if demand.left.is_some_and(|left| now.duration_since(left) >= linger) {
                (demand.left, demand.complete_after) = (None, None);
            }
            if demand.complete_after.is_some() {
                wanted = wanted.or(Kinds::of(&[*kind]));
            }
        }
        wanted
    }

    pub fn join(&mut self, kinds: Kinds) {
        self.listeners += 1;
        let newest = self.newest.number;
        for (_, demand) in CHAIN.iter().zip(&mut self.demand).filter(|(kind, _)| kinds.has(**kind)) {
            demand.listeners += 1;
            demand.left = None;
            demand.complete_after.get_or_insert(newest);
        }
    }

    pub fn leave(&mut self, kinds: Kinds, now: Instant) {
        self.listeners -= 1;
        for (_, demand) in CHAIN.iter().zip(&mut self.demand).filter(|(kind, _)| kinds.has(**kind)) {
            demand.listeners -= 1;
            if demand.listeners == 0 {
                demand.left = Some(now);
            }
        }
    }

    /// Some events of `kinds` behind `seen`, and up to where was looked. Errors: some have fallen out.
    pub fn after(&self, seen: Position, kinds: Kinds) -> Result<(Vec<Arc<Event>>, Position), Gone> {
        if seen.number < self.before.number {
            let events = self.before.number - seen.number;
            let forks = self.forks.iter().filter(|(number, _)| *number > seen.number).map(|(_, height)| *height);
            let known = forks.fold(seen.mark.height, Height::min);
            return Err(Gone { events, from: seen, to: self.before, known });
        }
        let (mut found, mut bytes) = (Vec::new(), 0);
        let mut looked = seen;
        for event in self.events.range(self.index_after(seen.number)..) {
            looked = event.position;
            if kinds.has(event.kind) || (event.kind == Kind::Lost && !kinds.and(Kinds::CHAIN).is_empty()) {
                bytes += event.data.len();
                found.push(Arc::clone(event));
                if found.len() >= BATCH_MAX || bytes >= BATCH_BYTES {
                    break;
                }
            }
        }
        Ok((found, looked))
    }

    /// The place in the ring of the first event behind `number`, which is not before the ring.
    fn index_after(&self, number: u64) -> usize {
        usize::try_from(number - self.before.number).map_or(usize::MAX, |at| at.min(self.events.len()))
    }

    /// Where a listener to `kinds` that was at `after` goes on, and what has to be told first.
    pub fn resume(&self, kinds: Kinds, after: Position) -> (Position, Resumption) {
        let chain = kinds.and(Kinds::CHAIN);
        let gap = if after.number > self.newest.number {
            Some(Gap::Unknown)
        } else if after.number < self.base.number {
            Some(Gap::Restart)
        } else if after.number < self.before.number {
            Some(Gap::Expired)
        } else {
            None
        };
        let complete = |(kind, demand): (&Kind, &Demand)| {
            !chain.has(*kind) || demand.complete_after.is_some_and(|number| number <= after.number)
        };
        let has_all_blocks = || {
            gap.is_none() && self.mark_at(after.number) == after.mark && CHAIN.iter().zip(&self.demand).all(complete)
        };
        if chain.is_empty() || has_all_blocks() {
            // After a gap, what there is; but nothing twice that only looks like something new.
            let seen = match gap {
                None => after,
                Some(Gap::Restart | Gap::Expired) => self.before,
                Some(Gap::Unknown) => self.newest,
            };
            let gap = gap.map(|gap| (kinds, gap));
            return (seen, Resumption { gap, ..Resumption::default() });
        }
        // Reorganisations can only be followed by who knows of all; who does not is told how the chain is now.
        let reorg = Kinds::of(&[Kind::Reorg]);
        let rest = kinds.without(chain);
        let told = if gap.is_none() { rest } else { rest.without(reorg) };
        let first = if gap == Some(Gap::Unknown) { self.newest.number } else { after.number.max(self.before.number) };
        let events = self.events.range(self.index_after(first)..).filter(|event| told.has(event.kind));
        let events: Vec<_> = events.cloned().collect();
        let forks = events.iter().filter(|event| event.kind == Kind::Reorg).map(|event| event.position.mark);
        let from = forks.fold(after.mark, |lowest, fork| if fork.height < lowest.height { fork } else { lowest });
        // Transactions that wait, or were dropped, are in no block.
        let lacking = if gap.is_some() { rest.without(reorg) } else { Kinds::NONE };
        let lacking = lacking.or(chain.and(Kinds::of(&[Kind::Transaction])));
        let gap = (!lacking.is_empty()).then_some((lacking, gap.unwrap_or(Gap::Expired)));
        (self.newest, Resumption { gap, events, blocks: Some((from, self.newest.mark.height)) })
    }

    /// The last block that was told when the event `number` had been; which is not before the ring.
    fn mark_at(&self, number: u64) -> Mark {
        match self.index_after(number).checked_sub(1) {
            None => self.before.mark,
            Some(at) => self.events[at].position.mark,
        }
    }
}
