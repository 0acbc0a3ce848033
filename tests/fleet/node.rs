//! A whole node: the ledger on its database file, the mempool, the producer, gossip's judgement and the sync engine, each
//! the real one. What happens comes in as an [`Event`], what it leads to goes out as [`Effect`]s; what takes time in
//! between is awaited to its end, so nothing but the order of events decides what becomes of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::{Future, poll_fn};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use tenon::chain::{Address, Hash, Header, Height, SecretKey, Time, Transaction};
use tenon::ledger::{Clock, ImportError, Ledger, LedgerOptions};
use tenon::mempool::{Mempool, MempoolHook, SubmitError};
use tenon::p2p::intake::{self, Place};
use tenon::p2p::publish;
use tenon::producer;
use tenon::sync::compare::compare;
use tenon::sync::engine::{Command, Engine, Fetched, Job, Switch, Turn, Wake};
use tenon::sync::one_peer::OnePeer;
use tenon::sync::source::{Source, SourceError, SourceInfo};
use tenon::sync::tasks::{Blocks, look, switch_branch};
use tenon::sync::{Action, Event as Told, PeerId, RequestId, Strategy, SyncStatus, pipeline};
use tokio::runtime::Runtime;
use tokio::sync::{broadcast, oneshot};

use super::link::{Answer, Asked, Desk, Link, Question, Reply};
use super::plan::{self, Plan};

/// Bytes of a range at most.
const RANGE_BYTES_MAX: usize = 1 << 20;
/// Blocks of a range at most.
const RANGE_BLOCKS_MAX: u64 = 1_000;
/// How often a node hands what waits to its neighbours once more.
const FORWARD_MS: u64 = 4_000;

/// A question's number, never the same twice for one node.
pub type Ticket = u64;

/// What passes between nodes.
#[derive(Clone, Debug)]
pub enum Message {
    Question(Ticket, Question),
    Answer(Ticket, Reply),
    Block(Vec<u8>),
    Transaction(Vec<u8>),
}

/// What happens to a node.
pub enum Event {
    /// It is time for the engine's next turn.
    Turn,
    /// The producer's interval is over.
    Produce,
    /// It is time to hand on what waits.
    Forward,
    /// The oldest import is done.
    Store,
    /// The switch to another branch is done.
    Switch,
    /// A range that came is verified.
    Verify(RequestId, Height, Vec<u8>),
    /// The strategy has answered.
    Planned(Vec<Action>),
    /// A neighbour is there.
    Met(usize),
    /// A neighbour is gone.
    Lost(usize),
    /// A question was answered, or its time is over.
    Replied(Ticket, Reply),
    /// A message came from a neighbour.
    Message(usize, Message),
    /// A client hands in a transaction.
    Submit(Transaction),
}

/// What comes of it.
pub enum Effect {
    /// A message to a neighbour.
    Send(usize, Message),
    /// Something happens here after at least and at most so many milliseconds, unless the node dies before.
    Later(u64, u64, Event),
    /// For the log.
    Note(String),
}

/// A node, up or down.
pub struct Node {
    pub id: usize,
    /// Counts its starts.
    pub incarnation: u64,
    pub up: Option<Up>,
    plan: Rc<Plan>,
    runtime: Rc<Runtime>,
    dir: PathBuf,
    /// Which copy of its database is in use.
    copy: u64,
    key: Option<SecretKey>,
    clock: Arc<AtomicU64>,
    pub skew_ms: i64,
    now: Time,
    tickets: Ticket,
    effects: Vec<Effect>,
}

/// What a running node has in memory.
pub struct Up {
    pub ledger: Ledger,
    pub mempool: Mempool,
    pub engine: Engine<Blocks>,
    pub status: SyncStatus,
    /// Transactions that came, or were dropped.
    pub changes: broadcast::Receiver<Hash>,
    strategy: OnePeer,
    /// What the engine's clock says beyond the world's: it goes on evenly from what the wall clock said at the start.
    ahead_us: i64,
    desk: Desk,
    peers: BTreeMap<PeerId, (usize, Arc<dyn Source>)>,
    errands: BTreeMap<Errand, Task>,
    waiting: BTreeMap<Ticket, (Errand, oneshot::Sender<Reply>)>,
    jobs: VecDeque<Job<Blocks>>,
    switch: Option<Switch<Blocks>>,
    /// What came over gossip or went out that way.
    recent: BTreeSet<Hash>,
    /// The head whose blocks were pushed.
    told: (Height, Hash),
    due: Time,
}

/// What a task is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Errand {
    Look(PeerId),
    Fetch(RequestId),
}

/// A task of the node that waits for a neighbour.
struct Task {
    since: Time,
    future: Pin<Box<dyn Future<Output = Wake<Blocks>>>>,
}

impl Node {
    /// A node that is down and has no database yet.
    pub fn new(id: usize, plan: &Rc<Plan>, runtime: &Rc<Runtime>, dir: &Path) -> Self {
        let key = (id < plan.genesis.authorities.len()).then(|| plan::authority(plan.seed, id));
        Self {
            id,
            incarnation: 0,
            up: None,
            plan: Rc::clone(plan),
            runtime: Rc::clone(runtime),
            dir: dir.to_owned(),
            copy: 0,
            key,
            clock: Arc::default(),
            skew_ms: plan.skew_ms[id],
            now: Time(0),
            tickets: 0,
            effects: Vec::new(),
        }
    }

    /// The address that it makes blocks under, if it does.
    pub fn proposer(&self) -> Option<Address> {
        self.key.as_ref().map(|key| Address::of(&key.public_key()))
    }

    fn file(&self) -> PathBuf {
        self.dir.join(format!("{}-{}", self.id, self.copy)).join("chain.db")
    }

    /// Starts it on the database that it has. It meets all its neighbours at once.
    pub fn start(&mut self, now: Time) -> Vec<Effect> {
        self.look_at_clock(now);
        self.incarnation += 1;
        let (plan, file) = (Rc::clone(&self.plan), self.file());
        std::fs::create_dir_all(file.parent().expect("it has one")).expect("room for a database");
        let (hook, clock) = (MempoolHook::new(), Arc::clone(&self.clock));
        let handle = hook.handle();
        let options = LedgerOptions {
            max_reorg_depth: plan.max_reorg_depth,
            clock: Clock::new(move || Time(clock.load(Ordering::Relaxed))),
            ..LedgerOptions::new(file, plan.genesis.clone())
        };
        let ledger = Ledger::open(options, vec![Box::new(hook)]).expect("a committed chain opens");
        let mempool = Mempool::open(ledger.clone(), handle, plan.mempool.clone()).expect("what was kept reads back");
        let us = self.info(&ledger);
        let ahead_us = self.skew_ms * 1_000;
        let mut engine = Engine::new(us, plan.sync.clone(), ledger.head(), ahead(now, ahead_us));
        engine.limit_reorgs(ledger.max_reorg_depth());
        self.up = Some(Up {
            status: engine.status(),
            changes: mempool.changes(),
            told: ledger.head().place(),
            strategy: OnePeer::default(),
            ahead_us,
            desk: Desk::default(),
            peers: BTreeMap::new(),
            errands: BTreeMap::new(),
            waiting: BTreeMap::new(),
            jobs: VecDeque::new(),
            switch: None,
            recent: BTreeSet::new(),
            due: Time(0),
            ledger,
            mempool,
            engine,
        });
        let neighbours = plan.neighbours(self.id);
        neighbours.into_iter().for_each(|neighbour| self.meet(neighbour));
        let interval = u64::try_from(plan.producer.interval.as_millis()).expect("a second");
        if self.key.is_some() {
            self.later(0, interval, Event::Produce);
        }
        self.later(FORWARD_MS, 2 * FORWARD_MS, Event::Forward);
        self.turn();
        std::mem::take(&mut self.effects)
    }

    /// Ends it. Killed, it leaves what is on disk at this moment; else it stops in good order.
    pub fn end(&mut self, killed: bool) {
        let Some(up) = self.up.take() else { return };
        let old = self.file();
        if killed {
            self.copy += 1;
            let new = self.file();
            std::fs::create_dir_all(new.parent().expect("it has one")).expect("room for a database");
            for suffix in ["", "-wal"] {
                let of = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
                std::fs::copy(of(&old), of(&new)).expect("a database and its log");
            }
        }
        let ledger = up.ledger.clone();
        drop(up);
        ledger.stop();
        drop(ledger);
        if killed {
            std::fs::remove_dir_all(old.parent().expect("it has one")).expect("ours");
        }
    }

    /// Something happens at `now`, by the world's clock.
    pub fn handle(&mut self, now: Time, event: Event) -> Vec<Effect> {
        self.look_at_clock(now);
        self.happen(event);
        self.publish();
        self.turn();
        std::mem::take(&mut self.effects)
    }

    /// What its own clock says.
    pub fn wall_clock(&self) -> Time {
        Time(self.clock.load(Ordering::Relaxed))
    }

    fn look_at_clock(&mut self, now: Time) {
        self.now = now;
        self.clock.store(ahead(now, self.skew_ms * 1_000).0, Ordering::Relaxed);
    }

    fn up(&mut self) -> &mut Up {
        self.up.as_mut().expect("nothing happens to a node that is down")
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    fn send(&mut self, to: usize, message: Message) {
        self.effects.push(Effect::Send(to, message));
    }

    fn later(&mut self, low_ms: u64, high_ms: u64, event: Event) {
        self.effects.push(Effect::Later(low_ms, high_ms, event));
    }

    fn note(&mut self, text: String) {
        self.effects.push(Effect::Note(text));
    }

    fn info(&self, ledger: &Ledger) -> SourceInfo {
        SourceInfo {
            chain_id: self.plan.genesis.chain_id.clone(),
            genesis_hash: ledger.genesis_hash(),
            node_id: format!("{}.{}", self.id, self.incarnation),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Turn => {}
            Event::Produce => self.produce(),
            Event::Forward => self.forward(),
            Event::Store => self.store(),
            Event::Switch => self.switch(),
            Event::Verify(id, first, body) => {
                let verified = pipeline::verify_range(first, &body, &self.plan.genesis);
                self.wake(Wake::Verified(id, verified));
            }
            Event::Planned(actions) => self.wake(Wake::Planned(actions)),
            Event::Met(neighbour) => self.meet(neighbour),
            Event::Lost(neighbour) => self.part(neighbour),
            Event::Replied(ticket, reply) => self.replied(ticket, reply),
            Event::Message(from, message) => self.message(from, message),
            Event::Submit(transaction) => self.submit(transaction),
        }
    }

    // Sync, as the follower's loop does it.

    fn engine_now(&self) -> Time {
        ahead(self.now, self.up.as_ref().map_or(0, |up| up.ahead_us))
    }

    /// Tells the engine of the head, where others have moved it.
    fn follow(&mut self) {
        let now = self.engine_now();
        let up = self.up();
        let head = up.ledger.head();
        if head != *up.engine.head() {
            up.engine.handle(now, Wake::Head(head));
        }
    }

    fn wake(&mut self, wake: Wake<Blocks>) {
        self.follow();
        let now = self.engine_now();
        self.up().engine.handle(now, wake);
    }

    fn turn(&mut self) {
        self.follow();
        let now = self.engine_now();
        let up = self.up();
        let generation = up.strategy.generation();
        if up.due == Time(0) {
            up.engine.handle(now, Wake::Strategy(generation));
        }
        let Turn { commands, status, until } = up.engine.turn(now);
        assert!(!up.engine.is_over(), "the ledger has not stopped");
        if let Some(status) = status {
            up.status = status;
        }
        for command in commands {
            self.carry_out(command);
        }
        // The end of the rest, rounded up to what the world counts in.
        let in_ms = (until.0.saturating_sub(now.0)).div_ceil(1_000);
        let (world, due) = (self.now, self.now.plus_ms(in_ms));
        let up = self.up();
        if up.due <= world || due < up.due {
            up.due = due;
            self.later(in_ms, in_ms, Event::Turn);
        }
    }

    /// Whether a turn that was planned for `now` is still wanted.
    pub fn is_due(&self, now: Time) -> bool {
        self.up.as_ref().is_some_and(|up| up.due <= now)
    }

    fn carry_out(&mut self, command: Command<Blocks>) {
        let up = self.up();
        let source = |peer| up.peers.get(&peer).map(|(_, source): &(usize, Arc<dyn Source>)| Arc::clone(source));
        match command {
            Command::Look { peer, introduce } => {
                let Some(source) = source(peer) else { return };
                let ledger = up.ledger.clone();
                self.begin(
                    Errand::Look(peer),
                    async move { Wake::Looked(peer, look(&source, &ledger, introduce).await) },
                );
            }
            Command::Compare { peer, height, known } => {
                let Some(source) = source(peer) else { return };
                let (ledger, budget) = (up.ledger.clone(), up.engine.budget().clone());
                self.begin(Errand::Look(peer), async move {
                    Wake::Compared(peer, compare(&source, &ledger, &budget, height, known.as_ref()).await)
                });
            }
            Command::EndLook(peer) => _ = up.errands.remove(&Errand::Look(peer)),
            Command::Fetch { id, peer, range, room } => {
                let Some(source) = source(peer) else { return };
                self.begin(Errand::Fetch(id), async move {
                    let fetched = source.range(range, room).await.map(|mut answer| {
                        answer.room.settle(answer.body.len() as u64);
                        Fetched {
                            body: answer.body,
                            blocks: answer.blocks,
                            room: answer.room,
                            head: answer.head,
                            first_byte_us: 0,
                            duration_us: 0,
                        }
                    });
                    Wake::Fetched(id, fetched)
                });
            }
            Command::Abort(id) => _ = up.errands.remove(&Errand::Fetch(id)),
            Command::Verify { id, first, body } => self.later(0, 10, Event::Verify(id, first, body)),
            Command::Import(job) => {
                up.jobs.push_back(job);
                self.later(0, 30, Event::Store);
            }
            Command::Switch(switch) => {
                up.switch = Some(switch);
                self.later(0, 60, Event::Switch);
            }
            Command::FetchSnapshot { .. } | Command::EndSnapshot(_) => unreachable!("no node here offers a snapshot"),
            Command::Ask { view, events } => {
                let actions = up.strategy.next(&view, &events);
                for event in events {
                    if let Told::RangeInvalid(failure) = event {
                        panic!("node {}: honest blocks are said to be invalid: {failure:?}", self.id);
                    }
                }
                self.later(0, 2, Event::Planned(actions));
            }
            Command::Refused { action, reason } => panic!("node {}: {action:?} refused: {reason}", self.id),
        }
    }

    fn begin(&mut self, errand: Errand, future: impl Future<Output = Wake<Blocks>> + 'static) {
        let task = Task { since: self.now, future: Box::pin(future) };
        let before = self.up().errands.insert(errand, task);
        assert!(before.is_none(), "node {}: {errand:?} is under way already", self.id);
        self.go_on(errand);
    }

    /// Lets a task run until it waits for neighbours' answers, or is done.
    fn go_on(&mut self, errand: Errand) {
        enum Step {
            Done(Box<Wake<Blocks>>),
            /// What it asks now; nothing more where an answer is still to come.
            Asks(Vec<Asked>),
        }
        let up = self.up.as_mut().expect("nothing happens to a node that is down");
        // It may have been ended meanwhile.
        let Some(task) = up.errands.get_mut(&errand) else { return };
        let desk = Arc::clone(&up.desk);
        // A question that is closed was asked by an errand of this name that was ended.
        let has_asked = up.waiting.values().any(|(asking, reply)| *asking == errand && !reply.is_closed());
        let step = self.runtime.block_on(poll_fn(|context| match task.future.as_mut().poll(context) {
            Poll::Ready(wake) => Poll::Ready(Step::Done(Box::new(wake))),
            // Else it waits for the ledger, or for a thread of its own, and is woken by that.
            Poll::Pending => match std::mem::take(&mut *desk.lock().expect("no step panics")) {
                asked if asked.is_empty() && !has_asked => Poll::Pending,
                asked => Poll::Ready(Step::Asks(asked)),
            },
        }));
        match step {
            Step::Asks(questions) => {
                for Asked { to, question, reply } in questions {
                    self.tickets += 1;
                    let ticket = self.tickets;
                    self.up().waiting.insert(ticket, (errand, reply));
                    self.send(to, Message::Question(ticket, question));
                    let ms = self.plan.sync.request_timeout_ms;
                    self.later(ms, ms, Event::Replied(ticket, Err(SourceError::Timeout { ms })));
                }
            }
            Step::Done(mut wake) => {
                let since = task.since;
                up.errands.remove(&errand);
                if let Wake::Fetched(_, Ok(fetched)) = &mut *wake {
                    fetched.duration_us = self.now.0 - since.0;
                    fetched.first_byte_us = fetched.duration_us / 2;
                }
                self.wake(*wake);
            }
        }
    }

    fn replied(&mut self, ticket: Ticket, reply: Reply) {
        // The first one counts.
        let Some((errand, sender)) = self.up().waiting.remove(&ticket) else { return };
        if sender.send(reply).is_ok() {
            self.go_on(errand);
        }
    }

    fn store(&mut self) {
        let up = self.up.as_mut().expect("nothing happens to a node that is down");
        let job = up.jobs.pop_front().expect("as many as are stored");
        let done = self.runtime.block_on(pipeline::store(&up.ledger, job));
        if let Some(error) = &done.error {
            self.note(format!("import: {error}"));
        }
        self.wake(Wake::Stored(done));
    }

    fn switch(&mut self) {
        let up = self.up.as_mut().expect("nothing happens to a node that is down");
        let switch = up.switch.take().expect("one at a time");
        let switched = self.runtime.block_on(switch_branch(&up.ledger, switch));
        if let Err(error) = &switched {
            self.note(format!("switch: {error}"));
        }
        self.wake(Wake::Switched(switched));
    }

    // Neighbours.

    fn meet(&mut self, neighbour: usize) {
        let (now, origin) = (self.engine_now(), self.plan.origin);
        let up = self.up();
        if up.peers.values().any(|(known, _)| *known == neighbour) {
            return;
        }
        let link: Arc<dyn Source> = Arc::new(Link::new(neighbour, &up.desk));
        let peer = up.engine.join(now, link.name().to_owned(), origin).expect("not here yet, and few");
        up.peers.insert(peer, (neighbour, link));
    }

    fn part(&mut self, neighbour: usize) {
        let now = self.engine_now();
        let Some(peer) = self.peer(neighbour) else { return };
        let up = self.up();
        up.engine.leave(now, peer);
        up.peers.remove(&peer);
    }

    fn peer(&mut self, neighbour: usize) -> Option<PeerId> {
        self.up().peers.iter().find(|(_, (known, _))| *known == neighbour).map(|(&peer, _)| peer)
    }

    fn message(&mut self, from: usize, message: Message) {
        match message {
            Message::Question(ticket, question) => {
                let answer = self.answer(&question);
                self.send(from, Message::Answer(ticket, answer));
            }
            Message::Answer(ticket, reply) => self.replied(ticket, reply),
            Message::Block(bytes) => self.block(from, bytes),
            Message::Transaction(bytes) => self.transaction(from, &bytes),
        }
    }

    /// As the node answers over HTTP, and to peers.
    fn answer(&mut self, question: &Question) -> Reply {
        let info = self.up.as_ref().map(|up| self.info(&up.ledger)).expect("it was asked");
        let up = self.up();
        let head = up.ledger.head().place();
        match question {
            Question::Info => Ok(Answer::Info(info)),
            Question::Head => Ok(Answer::Head(head)),
            Question::Range(range) => {
                let last = range.last.min(head.0).min(range.first.saturating_add(RANGE_BLOCKS_MAX - 1));
                if last < range.first {
                    return Ok(Answer::Range(Vec::new(), 0, head));
                }
                let read = up.ledger.storage().read(|reader| reader.framed_blocks(range.first, last, RANGE_BYTES_MAX));
                let frames = read.expect("the database reads").expect("nobody began with a snapshot");
                Ok(Answer::Range(frames.body, frames.next - range.first, head))
            }
        }
    }

    // Gossip.

    fn gossip(&mut self, message: &Message, but: Option<usize>) {
        for neighbour in self.plan.neighbours(self.id) {
            if Some(neighbour) != but {
                self.send(neighbour, message.clone());
            }
        }
    }

    /// Pushes what is new on the chain and did not come by gossip.
    fn publish(&mut self) {
        let now = self.wall_clock();
        let up = self.up();
        let ((told, before), head) = (up.told, up.ledger.head());
        if head.hash == before {
            return;
        }
        up.told = head.place();
        let first = publish::first_news(told, head.height);
        let news = up.ledger.storage().read(|reader| publish::news(reader, first, head.height, now));
        for (hash, bytes) in news.expect("the database reads") {
            if self.up().recent.insert(hash) {
                self.gossip(&Message::Block(bytes), None);
            }
        }
    }

    fn block(&mut self, from: usize, bytes: Vec<u8>) {
        let (plan, now) = (Rc::clone(&self.plan), self.wall_clock());
        let Ok((header, hash)) = intake::first_look(&bytes, &plan.genesis, now) else { return };
        if self.up().recent.contains(&hash) {
            return;
        }
        let head = self.up().ledger.head();
        if intake::place(&header, &head) != Place::Next {
            return self.shown(from, &header, hash);
        }
        let verified = match intake::check(&bytes, &head, &plan.genesis, now) {
            Ok(verified) => verified,
            Err(verdict) => return self.note(format!("gossip: {verdict:?}")),
        };
        self.up().recent.insert(hash);
        self.gossip(&Message::Block(bytes), Some(from));
        let ledger = self.up().ledger.clone();
        match self.wait(ledger.import(vec![verified])).pop().expect("one block in, one answer out") {
            Ok(_) => self.shown(from, &header, hash),
            Err(error @ ImportError::Invalid(_)) => panic!("node {}: an honest block: {error}", self.id),
            Err(error) => panic!("node {}: nothing else happened meanwhile: {error}", self.id),
        }
    }

    fn shown(&mut self, from: usize, header: &Header, hash: Hash) {
        if let Some(peer) = self.peer(from) {
            self.wake(Wake::Announced(peer, (header.height, hash)));
        }
    }

    // Transactions.

    fn transaction(&mut self, from: usize, bytes: &[u8]) {
        let transaction = Transaction::from_bytes(bytes).expect("nobody sends anything else");
        let hash = transaction.hash(&self.plan.genesis.chain_id);
        let fresh = self.up().recent.insert(hash);
        let taken = self.take(transaction);
        match taken {
            Ok(_) if fresh => self.gossip(&Message::Transaction(bytes.to_vec()), Some(from)),
            Ok(_) => {}
            Err(error) => {
                assert!(!error.is_for_good(), "node {}: an honest transaction: {error}", self.id);
                if fresh {
                    self.up().recent.remove(&hash);
                }
            }
        }
    }

    fn take(&mut self, transaction: Transaction) -> Result<Hash, SubmitError> {
        let mempool = self.up().mempool.clone();
        self.wait(mempool.submit_transaction(transaction))
    }

    fn submit(&mut self, transaction: Transaction) {
        let bytes = transaction.to_bytes();
        match self.take(transaction) {
            Ok(hash) => {
                self.note(format!("accepted {hash}"));
                if self.up().recent.insert(hash) {
                    self.gossip(&Message::Transaction(bytes), None);
                }
            }
            Err(error) => self.note(format!("not accepted: {error}")),
        }
    }

    fn forward(&mut self) {
        for pending in self.up().mempool.pending(50) {
            self.gossip(&Message::Transaction(pending.transaction.to_bytes()), None);
        }
        self.later(FORWARD_MS, FORWARD_MS, Event::Forward);
    }

    fn produce(&mut self) {
        let (plan, key) = (Rc::clone(&self.plan), self.key.clone().expect("only authorities do"));
        let (ledger, mempool) = (self.up().ledger.clone(), self.up().mempool.clone());
        self.wait(producer::tick(&ledger, &mempool, &key, &plan.producer));
        let interval = u64::try_from(plan.producer.interval.as_millis()).expect("a second");
        self.later(interval, interval, Event::Produce);
    }
}

fn ahead(time: Time, us: i64) -> Time {
    Time(time.0.saturating_add_signed(us))
}
