//! All that a follower knows, and what it does with each thing that happens. No waiting here but for the strategy.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::budget::{Budget, Reservation};
use super::compare::{Comparison, compare};
use super::peers::{PeerBook, Standing};
use super::pipeline::{JOBS_MAX, Job, JobDone, Order, RangeFault, Segment, Verifier};
use super::plan::{self, Watchdog};
use super::source::{RangeAnswer, Source, SourceError, SourceInfo};
use super::status::Moments;
use super::{
    Action, Diverged, Event, HeightRange, InFlight, Limits, PeerId, RangeFailure, RequestId, Strategy, SyncConfig,
    SyncState, SyncStatus, Tolerance, View, status,
};
use crate::chain::{BlockError, Hash, Head, Height, Time, VerifiedBlock};
use crate::ledger::{ImportError, Ledger};

/// Actions in one answer of a strategy.
const ACTIONS_MAX: u32 = 64;

/// What a range should come to, in encoded bytes: large enough to cost few round trips, small enough that several are
/// under way within the budget and none holds up verification for long.
const RANGE_BYTES: u64 = 1 << 20;

/// What a block is taken to be large before any has come: rather too much, since the first answer corrects it.
const BLOCK_BYTES_FIRST: u64 = 8 << 10;

/// How long nothing is imported after the database failed.
const STORAGE_PAUSE_MS: u64 = 1_000;

/// The least time between two published statuses without a change of state.
const PUBLISH_MS: u64 = 100;

/// The time over which the rate of blocks is taken.
const RATE_MS: u64 = 3_000;

/// Points for a range with a wrong block in it.
const POINTS_INVALID: u32 = 50;

/// Points for a head that is reported and whose blocks are not there.
const POINTS_EMPTY: u32 = 5;

/// Something that the follower waits for.
pub(super) enum Wake {
    /// A look at a source's head.
    Looked(PeerId, Result<Look, SourceError>),
    /// A comparison with a source's chain.
    Compared(PeerId, Result<Comparison, SourceError>),
    /// A range, or why not.
    Fetched(RequestId, Result<Fetched, SourceError>),
    /// A range's blocks, or what is wrong with them.
    Verified(RequestId, Result<Vec<VerifiedBlock>, RangeFault>),
    /// An import.
    Stored(JobDone),
}

/// What a look at a source shows.
pub(super) struct Look {
    info: Option<SourceInfo>,
    head: Option<(Height, Hash)>,
    /// Our block at its head's height, if there is one.
    ours: Option<Hash>,
}

/// A range that came.
pub(super) struct Fetched {
    answer: RangeAnswer,
    duration: Duration,
}

/// A request under way.
struct Request {
    peer: PeerId,
    range: HeightRange,
    since: Time,
    /// Made by the watchdog: no strategy cancels it.
    rescue: bool,
    task: AbortHandle,
}

/// A range that is being verified.
struct Verifying {
    peer: PeerId,
    asked: HeightRange,
    range: HeightRange,
    room: Reservation,
}

/// See the module.
pub(super) struct Rounds {
    ledger: Ledger,
    strategy: Arc<dyn Strategy>,
    sources: Vec<Arc<dyn Source>>,
    us: SourceInfo,
    config: SyncConfig,
    tolerance: Tolerance,
    wakes: mpsc::UnboundedSender<Wake>,
    jobs: mpsc::Sender<Job>,
    verifier: Verifier,
    budget: Budget,
    clock: Clock,

    head: Head,
    /// When the head last moved.
    head_at: Time,
    /// When no source was last known to have more than we.
    level_at: Time,
    peers: PeerBook,
    /// Looks and comparisons under way, at most one a peer.
    looks: HashMap<PeerId, AbortHandle>,
    requests: BTreeMap<RequestId, Request>,
    next_request: RequestId,
    verifying: BTreeMap<RequestId, Verifying>,
    order: Order,
    importing: VecDeque<HeightRange>,
    /// An import failed: those that follow it have to come back before the next one starts.
    failed_import: bool,
    imports_paused_until: Time,
    /// Bytes of a block, as they lately came; none before any did.
    block_bytes: Option<u64>,
    watchdog: Watchdog,
    over: bool,

    events: Vec<Event>,
    generation: Option<u64>,
    next_call: Time,

    status: watch::Sender<SyncStatus>,
    usable: watch::Sender<Vec<Arc<dyn Source>>>,
    published_at: Time,
    counters: Counters,
    rates: VecDeque<(Time, u64)>,
}

#[derive(Default)]
struct Counters {
    imported: u64,
    rescues: u64,
    refused: u64,
    failed: u64,
    report: Option<String>,
    problem: Option<String>,
}

/// Wall-clock time that never goes back: pauses must not become long because somebody sets the clock.
struct Clock {
    base: Time,
    started: Instant,
}

impl Clock {
    fn now(&self) -> Time {
        Time(self.base.0 + micros(self.started.elapsed()))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Rounds {
    pub(super) fn new(
        ledger: Ledger,
        strategy: Arc<dyn Strategy>,
        sources: Vec<Arc<dyn Source>>,
        node_id: String,
        config: SyncConfig,
        wakes: mpsc::UnboundedSender<Wake>,
        jobs: mpsc::Sender<Job>,
    ) -> Result<Self, String> {
        let clock = Clock { base: Time::now(), started: Instant::now() };
        let now = clock.now();
        let head = ledger.head();
        let genesis = Arc::clone(ledger.genesis());
        let us = SourceInfo { chain_id: genesis.chain_id.clone(), genesis_hash: ledger.genesis_hash(), node_id };
        let mut rounds = Self {
            verifier: Verifier::new(config.verify_threads, genesis)?,
            budget: Budget::new(config.buffer_bytes_max),
            peers: PeerBook::new(sources.iter().map(|source| source.name().to_owned()), &config, now),
            watchdog: Watchdog::new(config.watchdog_ms, now),
            order: Order::new(head.height + 1),
            clock,
            ledger,
            strategy,
            sources,
            us,
            config,
            tolerance: Tolerance::default(),
            wakes,
            jobs,
            head,
            head_at: now,
            level_at: now,
            looks: HashMap::new(),
            requests: BTreeMap::new(),
            next_request: 1,
            verifying: BTreeMap::new(),
            importing: VecDeque::new(),
            failed_import: false,
            imports_paused_until: Time(0),
            block_bytes: None,
            over: false,
            events: Vec::new(),
            generation: None,
            next_call: now,
            status: watch::Sender::default(),
            usable: watch::Sender::default(),
            published_at: Time(0),
            counters: Counters::default(),
            rates: VecDeque::new(),
        };
        // Who asks before the first round gets the head and the sources, not zeros.
        let status = rounds.current_status(SyncState::Starting, now);
        rounds.status.send_replace(status);
        Ok(rounds)
    }

    pub(super) fn tolerate(&mut self, tolerance: Tolerance) {
        self.tolerance = tolerance;
    }

    pub(super) fn status(&self) -> watch::Receiver<SyncStatus> {
        self.status.subscribe()
    }

    pub(super) fn usable(&self) -> watch::Receiver<Vec<Arc<dyn Source>>> {
        self.usable.subscribe()
    }

    pub(super) fn sender(&self) -> mpsc::UnboundedSender<Wake> {
        self.wakes.clone()
    }

    /// Whether the ledger has stopped, and with it all there is to do.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    pub(super) fn handle(&mut self, wake: Wake) {
        match wake {
            Wake::Looked(peer, look) => self.looked(peer, look),
            Wake::Compared(peer, comparison) => self.compared(peer, comparison),
            Wake::Fetched(id, fetched) => self.fetched(id, fetched),
            Wake::Verified(id, verified) => self.verified(id, verified),
            Wake::Stored(done) => self.stored(done),
        }
    }

    /// The chain grew, by us or by others.
    pub(super) fn head_moved(&mut self) {
        let head = self.ledger.head();
        if head != self.head {
            self.head = head;
            self.head_at = self.clock.now();
        }
        if self.importing.is_empty() && self.order.next() <= self.head.height {
            self.order.restart(self.head.height + 1);
        }
    }

    /// Starts what can start without anybody's advice: imports, looks at sources.
    pub(super) fn pump(&mut self) {
        let now = self.clock.now();
        self.peers.settle(now);
        if self.failed_import && self.importing.is_empty() && self.imports_paused_until <= now {
            self.failed_import = false;
            self.head = self.ledger.head();
            self.order.restart(self.head.height + 1);
        }
        while !self.failed_import && self.importing.len() < JOBS_MAX {
            let Some(job) = self.order.take() else { break };
            self.importing.push_back(job.range());
            if self.jobs.try_send(job).is_err() {
                // The channel has room for every job that may be under way, so its other end is gone.
                self.over = true;
            }
        }
        let due: Vec<PeerId> =
            self.peers.iter().filter(|peer| !peer.busy && peer.next_poll <= now).map(|peer| peer.id).collect();
        for peer in due {
            self.look_at(peer);
        }
        self.publish_usable();
    }

    // Sources.

    fn look_at(&mut self, id: PeerId) {
        let peer = self.peers.at(id);
        let introduce = match &peer.standing {
            Standing::Diverged(known) => {
                let known = known.clone();
                return self.compare_with(id, known.height, Some(known));
            }
            Standing::Up => false,
            Standing::Unknown | Standing::Down | Standing::Refused(_) => true,
        };
        peer.busy = true;
        let (source, ledger, wakes) = self.task_parts(id);
        let task = tokio::spawn(async move {
            let look = look(&source, &ledger, introduce).await;
            let _ = wakes.send(Wake::Looked(id, look));
        });
        self.looks.insert(id, task.abort_handle());
    }

    /// Compares chains up to `height`; the outcome decides whether the peer is used.
    fn compare_with(&mut self, id: PeerId, height: Height, known: Option<Diverged>) {
        if std::mem::replace(&mut self.peers.at(id).busy, true) {
            // A look is under way, and will come to the same conclusion.
            return;
        }
        let (source, ledger, wakes) = self.task_parts(id);
        let budget = self.budget.clone();
        let task = tokio::spawn(async move {
            let comparison = compare(&source, &ledger, &budget, height, known.as_ref()).await;
            let _ = wakes.send(Wake::Compared(id, comparison));
        });
        self.looks.insert(id, task.abort_handle());
    }

    fn task_parts(&self, id: PeerId) -> (Arc<dyn Source>, Ledger, mpsc::UnboundedSender<Wake>) {
        (Arc::clone(&self.sources[id as usize]), self.ledger.clone(), self.wakes.clone())
    }

    fn looked(&mut self, id: PeerId, look: Result<Look, SourceError>) {
        let now = self.clock.now();
        self.peers.at(id).busy = false;
        let was_up = self.is_up(id);
        match look {
            Ok(look) => {
                if let Some(info) = &look.info {
                    self.peers.introduced(id, info, &self.us, now);
                }
                if let Standing::Refused(reason) = &self.peers.at(id).standing {
                    tracing::error!(source = self.sources[id as usize].name(), reason, "source not used");
                    return;
                }
                if !was_up && self.is_up(id) {
                    tracing::info!(source = self.sources[id as usize].name(), "source is up");
                    self.events.push(Event::PeerUp(id));
                }
                if self.peers.reported(id, look.head, now) {
                    self.events.push(Event::HeadAnnounced(id));
                }
                if let (Some((height, theirs)), Some(ours)) = (look.head, look.ours)
                    && theirs != ours
                {
                    self.compare_with(id, height, None);
                }
            }
            Err(error) => self.look_failed(id, &error),
        }
    }

    fn look_failed(&mut self, id: PeerId, error: &SourceError) {
        tracing::debug!(source = self.sources[id as usize].name(), %error, "source does not answer");
        if self.peers.poll_failed(id, error, self.clock.now()) {
            tracing::warn!(source = self.sources[id as usize].name(), %error, "source is down");
            self.peer_down(id, "the peer is gone");
        }
    }

    fn compared(&mut self, id: PeerId, comparison: Result<Comparison, SourceError>) {
        let now = self.clock.now();
        self.peers.at(id).busy = false;
        let name = self.sources[id as usize].name().to_owned();
        match comparison {
            Ok(Comparison::Same) => {
                if matches!(self.peers.at(id).standing, Standing::Diverged(_)) {
                    tracing::info!(source = name, "source has our chain again");
                    self.peers.agreed(id);
                    self.events.push(Event::PeerUp(id));
                }
                self.peers.at(id).next_poll = now;
            }
            Ok(Comparison::Diverged(diverged)) => {
                let new = !matches!(&self.peers.at(id).standing, Standing::Diverged(known) if *known == diverged);
                if new {
                    let Diverged { height, ours, theirs, .. } = &diverged;
                    tracing::error!(source = name, height, %ours, %theirs, "source has another block");
                    self.events.push(Event::ForkFound { peer: id, height: *height });
                    self.peer_down(id, "the peer is on another branch");
                }
                self.peers.diverged(id, diverged, now);
            }
            Ok(Comparison::Invalid(reason)) => {
                tracing::warn!(source = name, reason, "source reports what it cannot show");
                self.peers.failed(id, POINTS_INVALID, reason, None, now);
                self.peers.at(id).next_poll = now.plus_ms(self.config.poll_ms);
            }
            Err(error) => self.look_failed(id, &error),
        }
    }

    fn is_up(&self, id: PeerId) -> bool {
        self.peers.get(id).is_some_and(|peer| peer.standing == Standing::Up)
    }

    fn peer_down(&mut self, id: PeerId, reason: &str) {
        let gone: Vec<_> = self.requests.iter().filter(|(_, request)| request.peer == id).map(|(&id, _)| id).collect();
        for request in gone {
            self.give_up(request, reason);
        }
        self.events.push(Event::PeerDown(id));
    }

    // Ranges.

    /// Sends a request; none where there is no room for its answer.
    fn fetch(&mut self, peer: PeerId, range: HeightRange, rescue: bool) -> Option<RequestId> {
        let expected = self.block_bytes().saturating_mul(range.count()).max(4 << 10);
        let room = match self.budget.reserve(expected) {
            Some(room) => room,
            // Without it nothing that waits could go on.
            None if range.first == self.head.height + 1 => self.budget.reserve_beyond(expected.min(2 * RANGE_BYTES)),
            None => return None,
        };
        let id = self.next_request;
        self.next_request += 1;
        let (source, _, wakes) = self.task_parts(peer);
        let task = tokio::spawn(async move {
            let started = Instant::now();
            let answer = source.range(range, room).await;
            let fetched = answer.map(|answer| Fetched { answer, duration: started.elapsed() });
            let _ = wakes.send(Wake::Fetched(id, fetched));
        });
        let (since, task) = (self.clock.now(), task.abort_handle());
        self.requests.insert(id, Request { peer, range, since, rescue, task });
        Some(id)
    }

    /// Ends a request that is no longer wanted. Costs its peer nothing.
    fn give_up(&mut self, id: RequestId, reason: &str) {
        if let Some(request) = self.requests.remove(&id) {
            request.task.abort();
            let failure = RangeFailure { id, peer: request.peer, range: request.range, reason: reason.into() };
            self.events.push(Event::RangeFailed(failure));
        }
    }

    fn fetched(&mut self, id: RequestId, fetched: Result<Fetched, SourceError>) {
        // One that was given up may have been answered already.
        let Some(Request { peer, range, .. }) = self.requests.remove(&id) else { return };
        let now = self.clock.now();
        self.watchdog.ended(range, now);
        let Fetched { answer, duration } = match fetched {
            Ok(fetched) => fetched,
            Err(error) => {
                let retry_after = match error {
                    SourceError::Limited { retry_after_ms } => Some(retry_after_ms),
                    _ => None,
                };
                return self.failed(id, peer, range, error.points(), error.to_string(), retry_after);
            }
        };
        let (blocks, bytes) = (answer.blocks, answer.body.len() as u64);
        self.peers.answered(peer, micros(answer.first_byte), micros(duration), bytes);
        if let Some(head) = answer.head
            && self.peers.reported(peer, Some(head), now)
        {
            self.events.push(Event::HeadAnnounced(peer));
        }
        if blocks == 0 {
            self.peers.doubt(peer, range.first, now);
            let reason = format!("it has no block {}", range.first);
            return self.failed(id, peer, range, POINTS_EMPTY, reason, None);
        }
        // Up at once, down slowly: the budget is for the large ones.
        let mean = (bytes / blocks).max(1);
        self.block_bytes = Some(self.block_bytes.map_or(mean, |known| mean.max(known - known / 4 + mean / 4)));
        let came = HeightRange { first: range.first, last: range.first + (blocks - 1) };
        let duration_us = micros(duration);
        self.events.push(Event::RangeArrived { id, peer, range: came, bytes, duration_us });
        self.verifying.insert(id, Verifying { peer, asked: range, range: came, room: answer.room });
        let wakes = self.wakes.clone();
        self.verifier.verify(range.first, answer.body, move |verified| {
            let _ = wakes.send(Wake::Verified(id, verified));
        });
    }

    fn failed(
        &mut self,
        id: RequestId,
        peer: PeerId,
        range: HeightRange,
        points: u32,
        reason: String,
        retry_after_ms: Option<u64>,
    ) {
        let HeightRange { first, last } = range;
        tracing::debug!(source = self.sources[peer as usize].name(), first, last, reason, "range failed");
        self.counters.failed += 1;
        self.peers.failed(peer, points, reason.clone(), retry_after_ms, self.clock.now());
        self.events.push(Event::RangeFailed(RangeFailure { id, peer, range, reason }));
    }

    fn verified(&mut self, id: RequestId, verified: Result<Vec<VerifiedBlock>, RangeFault>) {
        let Some(Verifying { peer, asked, range, room }) = self.verifying.remove(&id) else { return };
        match verified {
            Ok(blocks) if !blocks.is_empty() => {
                self.order.insert(Segment { peer, blocks, room: Arc::new(room) });
                self.end_spare_requests(range);
            }
            Ok(_) => self.failed(id, peer, asked, POINTS_INVALID, "an answer without blocks".into(), None),
            Err(fault) => self.invalid(id, peer, asked, fault.to_string()),
        }
    }

    /// Who was asked for what is here now need not send it any more. One that the watchdog had found stuck was as good as
    /// silent, and pays for that.
    fn end_spare_requests(&mut self, came: HeightRange) {
        let (now, next) = (self.clock.now(), self.order.next());
        let here: Vec<_> = self.order.ranges().collect();
        let known = |asked: HeightRange| super::gaps(asked.first.max(next), asked.last, here.clone()).is_empty();
        let spare = |request: &Request| request.range.overlaps(&came) && known(request.range);
        let spare: Vec<_> = self.requests.iter().filter(|(_, request)| spare(request)).map(|(&id, _)| id).collect();
        for id in spare {
            let Some(request) = self.requests.remove(&id) else { continue };
            request.task.abort();
            let ms = now.ms_since(request.since);
            let Request { peer, range, .. } = request;
            if ms >= plan::STUCK_PATIENCES * self.config.watchdog_ms {
                let silence = SourceError::Timeout { ms };
                self.failed(id, peer, range, silence.points(), silence.to_string(), None);
            } else {
                let reason = "another peer was faster".into();
                self.events.push(Event::RangeFailed(RangeFailure { id, peer, range, reason }));
            }
        }
    }

    /// Blocks that are not valid: costs the peer who sent them.
    fn invalid(&mut self, id: RequestId, peer: PeerId, range: HeightRange, reason: String) {
        let name = self.sources[peer as usize].name();
        tracing::warn!(source = name, reason, "invalid blocks");
        self.counters.failed += 1;
        self.counters.problem = Some(format!("{name}: {reason}"));
        self.peers.failed(peer, POINTS_INVALID, reason.clone(), None, self.clock.now());
        self.events.push(Event::RangeInvalid(RangeFailure { id, peer, range, reason }));
    }

    fn stored(&mut self, done: JobDone) {
        self.importing.pop_front();
        let JobDone { parts, imported, error } = done;
        self.counters.imported += imported;
        let first = parts.first().map_or(0, |(_, range)| range.first);
        for (peer, range) in &parts {
            let good = (first + imported).saturating_sub(range.first).min(range.count());
            if good > 0 {
                self.peers.imported(*peer, good);
            }
        }
        if imported > 0 {
            self.counters.problem = None;
            self.events.push(Event::Imported(HeightRange { first, last: first + (imported - 1) }));
        }
        self.head_moved();
        if let Some(error) = error {
            self.failed_import = true;
            let height = first + imported;
            if let Some(&(peer, range)) = parts.iter().find(|(_, range)| range.contains(height)) {
                self.import_failed(peer, range, height, error);
            }
        }
    }

    fn import_failed(&mut self, peer: PeerId, range: HeightRange, height: Height, error: ImportError) {
        let now = self.clock.now();
        match error {
            ImportError::Stopped => self.over = true,
            // What follows a failed one; it comes again.
            ImportError::Gap { .. } => {}
            ImportError::Storage(reason) => {
                tracing::error!(height, reason, "blocks could not be stored");
                self.counters.problem = Some(reason);
                self.imports_paused_until = now.plus_ms(STORAGE_PAUSE_MS);
            }
            // Another block at this height, or the one below is another: which of us is alone is found by looking.
            ImportError::Conflict { .. } | ImportError::Invalid(BlockError::Parent { .. }) => {
                self.peers.failed(peer, 0, error.to_string(), None, now);
                self.compare_with(peer, height, None);
            }
            // Its clock is ahead of ours, or ours behind: soon it will be valid.
            ImportError::Invalid(BlockError::InFuture { .. }) => {
                self.counters.problem = Some(error.to_string());
                self.peers.failed(peer, 0, error.to_string(), Some(STORAGE_PAUSE_MS), now);
            }
            ImportError::Invalid(error) => {
                self.invalid(0, peer, range, format!("block {height} is not valid: {error}"));
            }
        }
    }

    // The strategy.

    /// Asks the strategy where there is a reason to, carries out what is allowed, and lets the watchdog look.
    pub(super) async fn plan(&mut self) {
        let now = self.clock.now();
        let generation = self.strategy.generation();
        let changed = self.generation != Some(generation);
        if !self.sources.is_empty() && (changed || !self.events.is_empty() || now >= self.next_call) {
            if changed {
                let first = if self.generation.is_none() { Event::Started } else { Event::TakenOver };
                self.events.insert(0, first);
                self.generation = Some(generation);
            }
            if self.events.is_empty() {
                self.events.push(Event::Tick);
            }
            let (strategy, view, events) = (Arc::clone(&self.strategy), self.view(), std::mem::take(&mut self.events));
            self.next_call = now.plus_ms(plan::TICK_MS);
            // On a thread that may block: a component may take its whole deadline.
            let asked = tokio::task::spawn_blocking(move || (strategy.next(&view, &events), view));
            match asked.await {
                Ok((actions, view)) => self.carry_out(actions, view),
                Err(error) => tracing::error!(%error, "the strategy could not be asked"),
            }
        }
        if let Some(rescue) = self.watchdog.look(&self.view()) {
            self.counters.rescues += 1;
            let HeightRange { first, last } = rescue.range;
            tracing::debug!(
                peer = rescue.peer,
                first,
                last,
                "nothing asks for the lowest missing block; the host does"
            );
            // Where there is no room, what waits gives some back soon.
            let _ = self.fetch(rescue.peer, rescue.range, true);
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>, mut view: View) {
        let rescues: Vec<_> = self.requests.iter().filter(|(_, r)| r.rescue).map(|(&id, _)| id).collect();
        for (index, action) in actions.into_iter().enumerate() {
            match plan::check(&action, index, &view, &rescues) {
                Ok(()) => self.act(&action, &mut view),
                Err(reason) => {
                    self.counters.refused += 1;
                    self.strategy.refused(&action, &reason);
                }
            }
        }
    }

    /// Carries out an action that was checked; keeps `view` true for the next one.
    fn act(&mut self, action: &Action, view: &mut View) {
        let now = self.clock.now();
        match action {
            Action::FetchRange { peer, range } => {
                // Where the room went to answers that grew meanwhile, the next call has smaller limits.
                let Some(id) = self.fetch(*peer, *range, false) else { return };
                view.in_flight.push(InFlight { id, peer: *peer, range: *range, since: now });
                if let Some(peer) = view.peers.iter_mut().find(|known| known.id == *peer) {
                    peer.in_flight += 1;
                }
            }
            Action::Cancel(id) => {
                if let Some(request) = self.requests.remove(id) {
                    request.task.abort();
                    view.in_flight.retain(|known| known.id != *id);
                    if let Some(peer) = view.peers.iter_mut().find(|known| known.id == request.peer) {
                        peer.in_flight = peer.in_flight.saturating_sub(1);
                    }
                }
            }
            // Never passes the check.
            Action::FetchSnapshot { .. } => {}
            Action::Penalise { peer, points } => self.peers.penalise(*peer, *points, now),
            Action::DropPeer(peer) => self.peers.leave_alone(*peer, now),
            Action::WaitUntil(until) => self.next_call = self.next_call.min(plan::wake_at(*until, now)),
            Action::Report(text) => self.counters.report = Some(text.clone()),
        }
    }

    /// All that there is to know, for strategy and watchdog.
    fn view(&self) -> View {
        let now = self.clock.now();
        let head = self.head.height;
        let above = |range: HeightRange| HeightRange { first: range.first.max(head + 1), last: range.last };
        let mut waiting: Vec<_> = self.importing.iter().copied().collect();
        waiting.extend(self.verifying.values().map(|verifying| verifying.range));
        waiting.extend(self.order.ranges());
        let waiting = waiting.into_iter().map(above).filter(|range| range.count() > 0).collect();
        View {
            now,
            head: (head, self.head.hash),
            best_height: self.peers.best().map_or(head, |best| best.0),
            limits: self.limits(),
            peers: self.peers.view(|peer| self.in_flight_of(peer)),
            in_flight: self
                .requests
                .iter()
                .map(|(&id, request)| InFlight { id, peer: request.peer, range: request.range, since: request.since })
                .collect(),
            waiting: merged(waiting),
        }
    }

    /// What is allowed now. The budget of bytes shows in it, so a strategy that keeps to the limits keeps to the budget.
    fn limits(&self) -> Limits {
        let block_bytes = self.block_bytes();
        let fitting = (RANGE_BYTES / block_bytes).clamp(1, self.config.range_blocks_max.into());
        let room = self.budget.free() / block_bytes.saturating_mul(fitting).max(4 << 10);
        let under_way = self.requests.len() as u64;
        // One request for the lowest missing block is always possible.
        let stuck = under_way == 0 && self.importing.is_empty() && self.verifying.is_empty() && !self.order.is_ready();
        let more = if room == 0 && stuck { 1 } else { room };
        let in_flight_max = (under_way + more).min(self.config.in_flight_max.into());
        Limits {
            range_blocks_max: u32::try_from(fitting).unwrap_or(u32::MAX),
            in_flight_max: u32::try_from(in_flight_max).unwrap_or(u32::MAX),
            in_flight_per_peer_max: self.config.in_flight_per_peer_max,
            window_blocks: self.config.window_blocks,
            actions_max: ACTIONS_MAX,
        }
    }

    fn block_bytes(&self) -> u64 {
        self.block_bytes.unwrap_or(BLOCK_BYTES_FIRST)
    }

    fn in_flight_of(&self, peer: PeerId) -> u32 {
        u32::try_from(self.requests.values().filter(|request| request.peer == peer).count()).unwrap_or(u32::MAX)
    }

    // What the world sees.

    fn publish_usable(&self) {
        let up = |peer: &&super::peers::Record| peer.standing == Standing::Up;
        let names: Vec<_> = self.peers.iter().filter(up).map(|peer| peer.id).collect();
        self.usable.send_if_modified(|usable| {
            let same = usable.len() == names.len()
                && usable.iter().zip(&names).all(|(source, &id)| source.name() == self.sources[id as usize].name());
            if !same {
                *usable = names.iter().map(|&id| Arc::clone(&self.sources[id as usize])).collect();
            }
            !same
        });
    }

    /// Publishes the status where it is time to, and says how long the loop may rest.
    pub(super) fn publish_and_rest(&mut self) -> Duration {
        let now = self.clock.now();
        if self.peers.best().is_none_or(|best| best.0 <= self.head.height) {
            self.level_at = now;
        }
        let moments = Moments { now, head_at: self.head_at, level_at: self.level_at };
        let state = status::state(&self.peers, self.head.height, moments, self.tolerance);
        let due = self.published_at.plus_ms(PUBLISH_MS);
        let before = self.status.borrow().state;
        if state != before || now >= due {
            let status = self.current_status(state, now);
            if state != before {
                tracing::info!(from = ?before, to = ?state, height = status.head_height, lag = status.lag_blocks, "sync");
            }
            self.published_at = now;
            self.status.send_if_modified(|known| {
                let changed = *known != status;
                *known = status;
                changed
            });
        }
        self.rest(now)
    }

    fn current_status(&mut self, state: SyncState, now: Time) -> SyncStatus {
        self.rates.push_back((now, self.counters.imported));
        while self.rates.len() > 2 && now.ms_since(self.rates[1].0) >= RATE_MS {
            self.rates.pop_front();
        }
        let (since, before) = self.rates[0];
        let ms = now.ms_since(since);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let blocks_per_second =
            if ms == 0 { 0.0 } else { ((self.counters.imported - before) as f64 * 1_000.0 / ms as f64).round() };
        let head = self.head.height;
        let best_height = self.peers.best().map_or(head, |best| best.0);
        let lag_blocks = best_height.saturating_sub(head);
        let mut waiting: Vec<_> = self.importing.iter().copied().collect();
        waiting.extend(self.order.ranges());
        waiting.extend(self.verifying.values().map(|verifying| verifying.range));
        let diverged = self.peers.iter().find_map(|peer| match &peer.standing {
            Standing::Diverged(diverged) => Some(diverged.clone()),
            _ => None,
        });
        SyncStatus {
            state,
            head_height: head,
            head_hash: self.head.hash,
            best_height,
            lag_blocks,
            lag_seconds: if lag_blocks == 0 { 0 } else { now.ms_since(self.head.timestamp) / 1_000 },
            peers: status::peers(&self.peers, |peer| self.in_flight_of(peer)),
            in_flight: u32::try_from(self.requests.len()).unwrap_or(u32::MAX),
            waiting: merged(waiting).iter().map(HeightRange::count).sum(),
            verifying: self.verifying.values().map(|verifying| verifying.range.count()).sum(),
            buffered_bytes: self.budget.used(),
            blocks_per_second,
            imported_blocks: self.counters.imported,
            requests: self.next_request - 1,
            rescues: self.counters.rescues,
            refused_actions: self.counters.refused,
            failed_requests: self.counters.failed,
            // At the head it would speak of what is over.
            report: self.counters.report.clone().filter(|_| lag_blocks > 0),
            diverged,
            problem: self.counters.problem.clone(),
        }
    }

    /// Until when nothing happens by itself.
    fn rest(&self, now: Time) -> Duration {
        let mut until = now.plus_ms(plan::TICK_MS).min(self.published_at.plus_ms(PUBLISH_MS.max(1)));
        if !self.sources.is_empty() {
            until = until.min(self.next_call);
        }
        let looks = self.peers.iter().filter(|peer| !peer.busy).map(|peer| peer.next_poll);
        until = looks.fold(until, Ord::min);
        if self.peers.best().is_some_and(|best| best.0 > self.head.height) {
            until = until.min(self.watchdog.next_look(&self.view()));
        }
        // Whatever is due and cannot be done now does not make the loop spin.
        Duration::from_micros(until.0.saturating_sub(now.0).max(5_000))
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        let requests = self.requests.values().map(|request| &request.task);
        requests.chain(self.looks.values()).for_each(AbortHandle::abort);
    }
}

/// The same heights without overlap, lowest first.
fn merged(mut ranges: Vec<HeightRange>) -> Vec<HeightRange> {
    ranges.sort_unstable();
    let mut merged: Vec<HeightRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.first <= last.last => last.last = last.last.max(range.last),
            _ => merged.push(range),
        }
    }
    merged
}

/// Looks at a source: its head, our block at that height, and on first meeting who it is.
async fn look(source: &Arc<dyn Source>, ledger: &Ledger, introduce: bool) -> Result<Look, SourceError> {
    let info = if introduce { Some(source.info().await?) } else { None };
    let head = source.head().await?;
    let ours = match head {
        Some((height, _)) if height <= ledger.head().height => {
            let ours = ledger.storage().read_brief(move |reader| reader.hash_at(height)).await;
            // A store that cannot be read shows elsewhere; here it is no opinion on the source.
            ours.ok().flatten()
        }
        _ => None,
    };
    Ok(Look { info, head, ours })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_ranges_hold_the_same_heights_once() {
        let range = |first, last| HeightRange { first, last };
        let got = merged(vec![range(5, 9), range(1, 2), range(8, 12), range(6, 7), range(13, 13)]);
        assert_eq!(got, [range(1, 2), range(5, 12), range(13, 13)]);
    }
}
