//! The hub: what is wanted, what falls out, how a listener goes on; and a model of clients that come and go.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::chain::Hash;

const START: Time = Time(1_000_000);

fn limits(events_max: usize, linger_s: u64) -> HubLimits {
    HubLimits { events_max, bytes_max: 1 << 20, linger: Duration::from_secs(linger_s), listeners_max: 8 }
}

fn mark(height: Height) -> Mark {
    Mark::new(height, &Hash::of(&[&height.to_be_bytes()]))
}

fn hub(events_max: usize, linger_s: u64) -> Hub {
    Hub::new(START, mark(0), limits(events_max, linger_s))
}

/// The events that a listener finds without waiting, as kind and data.
fn found(listener: &mut Listener) -> Vec<(Kind, String)> {
    let mut all = Vec::new();
    loop {
        match listener.take() {
            Found::Events(events) if events.is_empty() => return all,
            Found::Events(events) => all.extend(events.iter().map(|event| (event.kind, event.data.clone()))),
            Found::Gone(gone) => panic!("{gone:?}"),
        }
    }
}

fn tell(hub: &Hub, height: Height) {
    let told = hub.wanted();
    assert!(hub.post_block(mark(height), told, vec![(Kind::Block, height.to_string())]));
}

#[test]
fn kinds_are_read_by_name() {
    assert_eq!("block,alert".parse(), Ok(Kinds::of(&[Kind::Alert, Kind::Block])));
    assert_eq!(Kinds::ALL.iter().count(), 7);
    for bad in ["", "blocks", "block,", "lost"] {
        let error = bad.parse::<Kinds>().unwrap_err();
        assert!(error.contains("known are block, transaction, message, reorg, sync, plugin, alert"), "{error}");
    }
}

#[test]
fn nothing_of_the_chain_is_wanted_while_nobody_listens_to_it() {
    let hub = hub(100, 0);
    assert!(hub.wanted().is_empty());
    let (alerts, _) = hub.listen(Kinds::of(&[Kind::Alert]), None).unwrap();
    assert!(hub.wanted().is_empty() && hub.pass_over(mark(5)));
    let (blocks, _) = hub.listen(Kinds::of(&[Kind::Block]), None).unwrap();
    assert_eq!(hub.wanted(), Kinds::of(&[Kind::Block]));
    assert!(!hub.pass_over(mark(6)), "it would be missing");
    assert!(!hub.post_block(mark(6), Kinds::NONE, vec![(Kind::Block, String::new())]), "so would this");
    assert_eq!((hub.mark(), hub.listeners()), (mark(5), 2));
    drop((alerts, blocks));
    assert_eq!((hub.wanted(), hub.listeners()), (Kinds::NONE, 0));
}

#[test]
fn blocks_are_told_for_a_while_after_the_last_listener_has_gone() {
    let (block, limits) = (Kinds::of(&[Kind::Block]), limits(100, 60));
    let (began, linger) = (Instant::now(), limits.linger);
    let at = |seconds| began + Duration::from_secs(seconds);
    let mut ring = Ring::new(Position { number: 10, mark: mark(0) });
    ring.join(block);
    ring.push(Kind::Block, Some(mark(1)), "1".into(), &limits);
    let after = ring.newest();
    ring.leave(block, at(0));
    assert_eq!(ring.wanted(at(59), linger), block);
    ring.push(Kind::Block, Some(mark(2)), "2".into(), &limits);
    // Back in time: everything is in the ring.
    let (seen, resumption) = ring.resume(block, after);
    assert!(seen == after && resumption.gap.is_none() && resumption.blocks.is_none());
    ring.join(block);
    let after = ring.newest();
    ring.leave(block, at(100));
    assert_eq!(ring.wanted(at(160), linger), Kinds::NONE);
    ring.pass_over(mark(3), &limits);
    // Too late: the blocks have to come from the database, and nothing else is missing.
    let (seen, resumption) = ring.resume(block, after);
    assert_eq!((seen, resumption.gap, resumption.blocks), (ring.newest(), None, Some((mark(2), 3))));
    ring.join(block);
    assert_eq!(ring.wanted(at(500), linger), block, "for as long as somebody listens");
}

#[test]
fn there_is_room_for_so_many_listeners_and_no_more() {
    let hub = hub(100, 0);
    let mut all: Vec<_> = (0..8).map(|_| hub.listen(Kinds::ALL, None).unwrap()).collect();
    assert_eq!(hub.listen(Kinds::ALL, None).map(drop), Err(Full));
    all.pop();
    assert!(hub.listen(Kinds::ALL, None).is_ok());
}

#[test]
fn a_slow_listener_is_told_what_it_lost_and_goes_on() {
    let hub = hub(4, 0);
    let (mut listener, _) = hub.listen(Kinds::of(&[Kind::Block, Kind::Alert]), None).unwrap();
    let from = listener.position();
    for height in 1..=10 {
        tell(&hub, height);
    }
    let Found::Gone(gone) = listener.take() else { panic!("six of ten are gone") };
    assert_eq!((gone.events, gone.from, gone.to.mark), (6, from, mark(6)));
    let rest: Vec<_> = found(&mut listener).into_iter().map(|(_, data)| data).collect();
    assert_eq!(rest, ["7", "8", "9", "10"]);
    // Whoever comes back with where it was before the loss has the blocks told after all.
    let (_again, resumption) = hub.listen(Kinds::of(&[Kind::Block]), Some(from)).unwrap();
    assert_eq!(resumption.blocks, Some((mark(0), 10)));
    let large = Hub::new(START, mark(0), HubLimits { bytes_max: 100 << 20, ..limits(1_000, 0) });
    let (mut listener, _) = large.listen(Kinds::ALL, None).unwrap();
    for _ in 0..20 {
        large.post(Kind::Alert, " ".repeat(100 << 10));
    }
    let Found::Events(some) = listener.take() else { panic!("nothing is gone") };
    assert_eq!(some.len(), 3, "what it holds at a time is bounded, too");
    assert_eq!(found(&mut listener).len(), 17);
    let bytes = Hub::new(START, mark(0), HubLimits { bytes_max: 10, ..limits(100, 0) });
    let (mut listener, _) = bytes.listen(Kinds::ALL, None).unwrap();
    for _ in 0..5 {
        bytes.post(Kind::Alert, "1234".into());
    }
    assert!(matches!(listener.take(), Found::Gone(Gone { events: 3, .. })), "bytes are bounded, too");
}

#[tokio::test]
async fn a_listener_waits_for_what_it_wants() {
    let hub = hub(100, 0);
    let (mut listener, _) = hub.listen(Kinds::of(&[Kind::Alert]), None).unwrap();
    let mut next = Box::pin(listener.next());
    for what in ["nothing", "what others want"] {
        tokio::select! {
            biased;
            found = &mut next => panic!("{found:?} after {what}"),
            () = std::future::ready(()) => {}
        }
        hub.post(Kind::Sync, "1".into());
    }
    hub.post(Kind::Alert, "2".into());
    let Some(Found::Events(events)) = next.await else { panic!("there is one") };
    assert_eq!((events.len(), events[0].data.as_str(), events[0].position.number), (1, "2", START.0 + 3));
}

#[test]
fn who_comes_from_another_process_is_told_what_may_be_missing() {
    let alerts = Kinds::of(&[Kind::Alert]);
    let chain = Kinds::of(&[Kind::Block, Kind::Message]);
    let old = hub(4, 0);
    let (listener, _) = old.listen(alerts.or(chain), None).unwrap();
    tell(&old, 1);
    old.post(Kind::Alert, "1".into());
    let mut listener = listener;
    found(&mut listener);
    let after = listener.position();
    let new = Hub::new(Time(START.0 + 1_000_000), mark(3), limits(4, 0));
    new.post(Kind::Alert, "2".into());
    let gap = |kinds, after| {
        let (_listener, resumption) = new.listen(kinds, Some(after)).unwrap();
        (resumption.gap, resumption.events.len(), resumption.blocks)
    };
    // Blocks and messages are all in the database; of alerts the last ones of the old process may be missing.
    assert_eq!(gap(chain, after), (None, 0, Some((mark(1), 3))));
    assert_eq!(gap(chain.or(alerts), after), (Some((alerts, Gap::Restart)), 1, Some((mark(1), 3))));
    let (mut listener, resumption) = new.listen(alerts, Some(after)).unwrap();
    assert_eq!(resumption.gap, Some((alerts, Gap::Restart)));
    assert_eq!(found(&mut listener), [(Kind::Alert, "2".to_owned())], "what the new one has is not missing");
    let transactions = Kinds::of(&[Kind::Transaction]);
    assert_eq!(gap(transactions, after).0, Some((transactions, Gap::Restart)), "pending ones are nowhere else");
    let future = Position { number: START.0 + 9_000_000, mark: mark(1) };
    assert_eq!(gap(alerts, future), (Some((alerts, Gap::Unknown)), 0, None));
    assert_eq!(gap(chain, future), (None, 0, Some((mark(1), 3))));
}

// The model: a chain, a hub that a feed like the node's posts into, and clients that come, read, leave in the middle
// and come back, while the process restarts and the chain is reorganised. Each client keeps what it was told.

#[derive(Clone, Debug)]
enum Step {
    Alert,
    Blocks(usize),
    Reorg(usize, usize),
    Restart,
    Read(usize, usize),
    Leave(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Alert),
        6 => (1..4_usize).prop_map(Step::Blocks),
        1 => (1..4_usize, 0..5_usize).prop_map(|(back, more)| Step::Reorg(back, more)),
        1 => Just(Step::Restart),
        8 => (0..3_usize, 1..9_usize).prop_map(|(client, lines)| Step::Read(client, lines)),
        2 => (0..3_usize).prop_map(Step::Leave),
    ]
}

/// What the database and the parts of a node know.
struct World {
    chain: Vec<Hash>,
    /// Hashes made so far.
    made: u64,
    hub: Hub,
    restarts: u64,
    alerts: u64,
    limits: HubLimits,
}

#[derive(Debug)]
enum Word {
    Block(Height, Hash),
    Reorg(Height),
    Alert(u64),
    /// Blocks that are not told.
    LostBlocks(Height, Height),
    /// What was told before may not hold any more, and the next block is the one above.
    NewChain(Height),
    LostAlerts,
}

/// What is still to be heard, each with its id, if it has one.
type Lines = VecDeque<(Word, Option<Position>)>;

struct Client {
    kinds: Kinds,
    last: Option<Position>,
    connection: Option<(Listener, Lines)>,
    blocks: BTreeMap<Height, Hash>,
    /// Blocks above this have to be told.
    from: Height,
    lost_blocks: BTreeSet<Height>,
    alerts: Vec<u64>,
    lost_alerts: bool,
    /// Alerts before it was first here.
    alerts_before: u64,
}

impl World {
    fn mark(&self, height: Height) -> Mark {
        Mark::new(height, &self.chain[height as usize])
    }

    fn head(&self) -> Height {
        self.chain.len() as u64 - 1
    }

    fn grow(&mut self, blocks: usize) {
        for _ in 0..blocks {
            self.made += 1;
            self.chain.push(Hash::of(&[&self.made.to_be_bytes()]));
        }
    }

    /// What the feed does when the head has moved.
    fn feed(&self) {
        while self.hub.mark() != self.mark(self.head()) {
            if self.hub.wanted().is_empty() {
                assert!(self.hub.pass_over(self.mark(self.head())));
                return;
            }
            let height = self.hub.mark().height + 1;
            let events = vec![(Kind::Block, format!("{height} {}", self.chain[height as usize]))];
            assert!(self.hub.post_block(self.mark(height), self.hub.wanted(), events));
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Alert => {
                self.alerts += 1;
                self.hub.post(Kind::Alert, self.alerts.to_string());
            }
            Step::Blocks(count) => self.grow(count),
            Step::Reorg(back, more) => {
                let kept = self.chain.len().saturating_sub(back).max(1);
                self.chain.truncate(kept);
                self.grow(more);
                let fork = kept as u64 - 1;
                let told = self.hub.mark();
                let mark = if fork < told.height { self.mark(fork) } else { told };
                self.hub.post_reorg(mark, fork.to_string());
            }
            Step::Restart => {
                self.restarts += 1;
                let started = Time(START.0 + self.restarts * 1_000_000);
                self.hub = Hub::new(started, self.mark(self.head()), self.limits);
            }
            Step::Read(..) | Step::Leave(_) => {}
        }
        self.feed();
    }
}

/// An event as the words of its data.
fn word(event: &Event) -> Word {
    let number = |text: &str| text.parse().unwrap();
    match event.kind {
        Kind::Block => {
            let (height, hash) = event.data.split_once(' ').unwrap();
            Word::Block(number(height), hash.parse().unwrap())
        }
        Kind::Reorg => Word::Reorg(number(&event.data)),
        Kind::Alert => Word::Alert(number(&event.data)),
        other => panic!("{other:?} is posted by nobody here"),
    }
}

impl Client {
    fn new(kinds: Kinds, world: &World) -> Self {
        Self {
            kinds,
            last: None,
            connection: None,
            blocks: BTreeMap::new(),
            from: world.head(),
            lost_blocks: BTreeSet::new(),
            alerts: Vec::new(),
            lost_alerts: false,
            alerts_before: world.alerts,
        }
    }

    fn connect(&mut self, world: &World) {
        let (listener, resumption) = world.hub.listen(self.kinds, self.last).unwrap();
        let mut lines = VecDeque::new();
        let start = self.last.unwrap_or(listener.position());
        let Resumption { gap, mut events, mut blocks } = resumption;
        let mut lost = gap.map_or(Kinds::NONE, |(kinds, _)| kinds);
        let mut new_chain = None;
        if let Some((from, _)) = blocks
            && world.chain.get(from.height as usize).is_none_or(|hash| Mark::new(from.height, hash) != from)
        {
            (blocks, new_chain) = (None, Some(Word::NewChain(listener.position().mark.height)));
            lost = lost.or(Kinds::of(&[Kind::Block]));
            events.retain(|event| event.kind != Kind::Reorg);
        }
        let more = blocks.is_some() || !events.is_empty();
        let position = Some(listener.position());
        let id = |is_last: bool| position.filter(|_| is_last && !more);
        if lost.has(Kind::Alert) {
            lines.push_back((Word::LostAlerts, id(new_chain.is_none())));
        }
        lines.extend(new_chain.map(|word| (word, id(true))));
        let mut at = start.mark;
        for event in events {
            if event.kind == Kind::Reorg && event.position.mark.height < at.height {
                at = event.position.mark;
            }
            lines.push_back((word(&event), Some(Position { number: event.position.number, mark: at })));
        }
        if let Some((from, last)) = blocks {
            for height in from.height + 1..=last {
                let position = Position { number: listener.position().number, mark: world.mark(height) };
                lines.push_back((Word::Block(height, world.chain[height as usize]), Some(position)));
            }
        }
        self.last = Some(start);
        self.connection = Some((listener, lines));
    }

    /// Reads up to `count` lines; false: there were fewer.
    fn read(&mut self, world: &World, count: usize) -> bool {
        if self.connection.is_none() {
            self.connect(world);
        }
        for _ in 0..count {
            let (listener, lines) = self.connection.as_mut().unwrap();
            if lines.is_empty() {
                match listener.take() {
                    Found::Events(events) => {
                        lines.extend(events.iter().map(|event| (word(event), Some(event.position))));
                    }
                    Found::Gone(Gone { to, known, .. }) => {
                        lines.push_back((Word::LostBlocks(known + 1, to.mark.height), None));
                        lines.push_back((Word::LostAlerts, Some(to)));
                    }
                }
            }
            let Some((word, id)) = lines.pop_front() else { return false };
            self.hear(word);
            if let Some(id) = id {
                let last = self.last.expect("connected");
                let is_later = |a: Position, b: Position| (a.number, a.mark.height) > (b.number, b.mark.height);
                let same_process = id.number >= START.0 + world.restarts * 1_000_000;
                assert!(!same_process || is_later(id, last) || id == last, "{id} after {last}");
                self.last = Some(id);
            }
        }
        true
    }

    fn hear(&mut self, word: Word) {
        match word {
            Word::Block(height, hash) => {
                if let Some(below) = height.checked_sub(1).filter(|below| *below > self.from) {
                    let known = self.blocks.contains_key(&below) || self.lost_blocks.contains(&below);
                    assert!(known, "block {height} without the one below: {:?}", self.blocks);
                }
                self.lost_blocks.remove(&height);
                self.blocks.insert(height, hash);
            }
            Word::Reorg(fork) => {
                self.blocks.retain(|height, _| *height <= fork);
                self.lost_blocks.retain(|height| *height <= fork);
                self.from = self.from.min(fork);
            }
            Word::Alert(number) => self.alerts.push(number),
            // Also those that were told before, where the chain was reorganised meanwhile.
            Word::LostBlocks(first, last) => {
                self.blocks.retain(|height, _| *height < first);
                self.lost_blocks.retain(|height| *height < first);
                self.lost_blocks.extend(first..=last);
            }
            Word::NewChain(height) => {
                self.blocks.clear();
                self.lost_blocks.clear();
                self.from = height;
            }
            Word::LostAlerts => self.lost_alerts = true,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]
    #[test]
    fn whoever_comes_back_misses_nothing_that_it_is_not_told_of(
        steps in prop::collection::vec(any_step(), 1..60),
        events_max in prop_oneof![Just(5_usize), Just(10_000)],
        linger_s in prop_oneof![Just(0_u64), Just(3_600)],
    ) {
        let limits = limits(events_max, linger_s);
        let chain = vec![Hash::ZERO];
        let hub = Hub::new(START, Mark::new(0, &Hash::ZERO), limits);
        let mut world = World { chain, made: 0, hub, restarts: 0, alerts: 0, limits };
        let kinds = [Kinds::of(&[Kind::Block]), Kinds::of(&[Kind::Alert]), Kinds::of(&[Kind::Block, Kind::Alert])];
        let mut clients = kinds.map(|kinds| Client::new(kinds, &world));
        for client in &mut clients {
            client.connect(&world);
        }
        for step in steps {
            world.step(&step);
            match step {
                Step::Read(client, lines) => _ = clients[client].read(&world, lines),
                Step::Leave(client) => clients[client].connection = None,
                Step::Restart => clients.iter_mut().for_each(|client| client.connection = None),
                _ => {}
            }
        }
        for client in &mut clients {
            while client.read(&world, 100) {}
            if client.kinds.has(Kind::Alert) {
                let told: BTreeSet<_> = client.alerts.iter().copied().collect();
                prop_assert_eq!(told.len(), client.alerts.len(), "none is told twice");
                prop_assert!(client.alerts.is_sorted());
                if !client.lost_alerts {
                    prop_assert_eq!(told, (client.alerts_before + 1..=world.alerts).collect());
                }
            }
            if client.kinds.has(Kind::Block) {
                for height in client.from + 1..=world.head() {
                    let told = client.blocks.get(&height);
                    let is_lost = client.lost_blocks.contains(&height);
                    prop_assert!(is_lost || told == Some(&world.chain[height as usize]), "block {}", height);
                }
            }
        }
    }
}
