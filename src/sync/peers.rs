//! The book of peers: what is known of each, and when it is looked at again. Pure: the time is an argument.

use std::collections::{BTreeMap, VecDeque};

use super::opinion::{BACKOFF_FIRST_MS, Opinion, doubled};
use super::source::{SourceError, SourceInfo};
use super::{Diverged, Peer, PeerId, SyncConfig};
use crate::chain::{Hash, Height, Time};

/// Peers at one time. Each is looked at and shown to the strategy, so there have to be bounds.
pub const PEERS_MAX: usize = 1_024;

/// How long the opinion of a peer outlives it, so that a bad score is not lost by coming back under the same name.
const FORMER_MS: u64 = 600_000;

/// Peers that are gone and whose opinion is kept, at most: then the one that left first is forgotten.
const FORMER_MAX: usize = 1_024;

/// The longest pause between two looks at a source that does not answer. Short: a look costs nothing, and a source that
/// is back should be noticed within the time that the watchdog promises.
const POLL_BACKOFF_MAX_MS: u64 = 3_000;

/// How many looks are spared by a head that a peer announces by itself: it does so again when it has a new one.
const ANNOUNCED_SPARES: u64 = 10;

/// How long a peer that did not have a block below its reported head is taken to have no more than it proved. Short,
/// since it may be the only one that has it soon.
const DOUBT_MS: u64 = 1_000;

/// How many looks a peer on another branch is left alone for before it is compared again: that costs it a request.
const COMPARE_EVERY: u64 = 10;

/// How often a refused peer is asked again who it is.
const INTRODUCE_AGAIN_MS: u64 = 10_000;

/// Whether a peer can be asked for blocks, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has not said yet who it is.
    Unknown,
    /// On our chain, as far as is known.
    Up,
    /// It does not answer.
    Down,
    /// It must not be used: it is this node, or another chain's.
    Refused(String),
    /// It has another block than we.
    Diverged(Diverged),
}

/// Why a peer is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The operator named it as a source: whether the node is up to date is measured by it.
    Configured,
    /// It was met on the way: good for blocks, and no measure of ours.
    Met,
}

/// What is known of one peer.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its number.
    pub id: PeerId,
    /// What people know it by; no two peers have the same.
    pub name: String,
    /// Why it is there.
    pub origin: Origin,
    /// Whether it can be asked.
    pub standing: Standing,
    /// The head it last reported.
    pub head: Option<(Height, Hash)>,
    /// When it reported it.
    pub head_at: Time,
    /// What its last failure was.
    pub last_error: Option<String>,
    /// Blocks of the chain that came from it.
    pub blocks: u64,
    /// Bytes that came from it.
    pub bytes: u64,
    /// When it is to be looked at next.
    pub next_poll: Time,
    /// Whether a look, or a comparison, is under way.
    pub busy: bool,
    opinion: Opinion,
    latency_us: u64,
    throughput: u64,
    poll_failures: u32,
    /// The highest block that it is taken to have, and until when.
    doubt: Option<(Height, Time)>,
}

/// What is left of a peer that is gone.
#[derive(Clone, Debug)]
struct Former {
    id: PeerId,
    name: String,
    opinion: Opinion,
    until: Time,
}

/// All peers, by number. What is said of one that is not there is not heard.
#[derive(Clone, Debug)]
pub struct PeerBook {
    records: BTreeMap<PeerId, Record>,
    /// In the order in which they left.
    former: VecDeque<Former>,
    next_id: PeerId,
    poll_ms: u64,
    backoff_max_ms: u64,
}

impl PeerBook {
    /// Nobody is there yet.
    pub fn new(config: &SyncConfig) -> Self {
        Self {
            records: BTreeMap::new(),
            former: VecDeque::new(),
            next_id: 0,
            poll_ms: config.poll_ms,
            backoff_max_ms: config.backoff_max_ms,
        }
    }

    /// Takes in a peer, numbered in the order of arrival. One that was here lately is thought of as before. Errors: it is
    /// here, or too many are.
    pub fn join(&mut self, name: String, origin: Origin, now: Time) -> Result<PeerId, String> {
        if let Some(known) = self.iter().find(|known| known.name == name) {
            return Err(format!("`{name}` is here already, as peer {}", known.id));
        }
        if self.records.len() >= PEERS_MAX {
            return Err(format!("`{name}` is one too many: {PEERS_MAX} peers are here"));
        }
        let id = self.next_id;
        self.next_id = id.checked_add(1).ok_or("no number is left for another peer")?;
        let former = self.former.iter().position(|former| former.name == name).and_then(|at| self.former.remove(at));
        let mut opinion = former.map_or_else(|| Opinion::new(now), |former| former.opinion);
        opinion.settle(now);
        let record = Record {
            id,
            name,
            origin,
            standing: Standing::Unknown,
            head: None,
            head_at: Time(0),
            last_error: None,
            blocks: 0,
            bytes: 0,
            next_poll: now,
            busy: false,
            opinion,
            latency_us: 0,
            throughput: 0,
            poll_failures: 0,
            doubt: None,
        };
        self.records.insert(id, record);
        Ok(id)
    }

    /// Forgets a peer that is gone, but for what is thought of it.
    pub fn leave(&mut self, id: PeerId, now: Time) -> Option<Record> {
        let record = self.records.remove(&id)?;
        let former =
            Former { id, name: record.name.clone(), opinion: record.opinion.clone(), until: now.plus_ms(FORMER_MS) };
        self.former.push_back(former);
        if self.former.len() > FORMER_MAX {
            self.former.pop_front();
        }
        Some(record)
    }

    /// Whether nobody is there.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// How many records there are, of peers that are here or were lately.
    pub fn records(&self) -> usize {
        self.records.len() + self.former.len()
    }

    /// Every peer, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// One peer.
    pub fn get(&self, id: PeerId) -> Option<&Record> {
        self.records.get(&id)
    }

    /// One peer, to change what is known of it.
    pub fn get_mut(&mut self, id: PeerId) -> Option<&mut Record> {
        self.records.get_mut(&id)
    }

    /// What people know a peer by, also one that was here lately.
    pub fn name(&self, id: PeerId) -> String {
        let former = || self.former.iter().find(|former| former.id == id).map(|former| former.name.clone());
        let known = self.get(id).map(|record| record.name.clone());
        known.or_else(former).unwrap_or_else(|| format!("peer {id}, which is gone"))
    }

    /// What is thought of a peer, also of one that was here lately: it may have left before what it sent was found wrong.
    fn opinion_mut(&mut self, id: PeerId) -> Option<&mut Opinion> {
        match self.records.get_mut(&id) {
            Some(record) => Some(&mut record.opinion),
            None => self.former.iter_mut().find(|former| former.id == id).map(|former| &mut former.opinion),
        }
    }

    /// Lets time pass: points come back, doubts end, who was left alone long enough has another chance, and who left long
    /// ago is forgotten.
    pub fn settle(&mut self, now: Time) {
        for record in self.records.values_mut() {
            record.opinion.settle(now);
            if record.doubt.is_some_and(|(_, until)| until <= now) {
                record.doubt = None;
            }
        }
        while self.former.front().is_some_and(|former| former.until <= now) {
            self.former.pop_front();
        }
    }

    /// What a strategy sees of the peers that can be asked for blocks.
    pub fn view(&self, in_flight: impl Fn(PeerId) -> u32) -> Vec<Peer> {
        self.iter()
            .filter(|record| record.standing == Standing::Up)
            .map(|record| Peer {
                id: record.id,
                head: record.proven_head(),
                latency_us: record.latency_us,
                throughput: record.throughput,
                failures: record.opinion.failures,
                score: record.opinion.score,
                in_flight: in_flight(record.id),
                not_before: record.opinion.not_before,
                snapshot: None,
            })
            .collect()
    }

    /// The highest head that the peers which can be asked report. One that lately did not have what it reported only
    /// counts where there is no other, and where the operator named it.
    pub fn best(&self) -> Option<(Height, Hash)> {
        let up = || self.iter().filter(|record| record.standing == Standing::Up);
        let highest = |head: &(Height, Hash)| head.0;
        let trusted = up().filter(|record| record.opinion.is_trusted()).filter_map(|record| record.head);
        let named = || up().filter(|record| record.origin == Origin::Configured).filter_map(|record| record.head);
        trusted.max_by_key(highest).or_else(|| named().max_by_key(highest))
    }

    /// Takes in who a peer says it is: whether it is one to read from. `us`: our chain, genesis hash and node.
    pub fn introduced(&mut self, id: PeerId, info: &SourceInfo, us: &SourceInfo, now: Time) {
        let Some(record) = self.get_mut(id) else { return };
        let refusal = if !us.node_id.is_empty() && info.node_id == us.node_id {
            Some("it is this node itself".to_owned())
        } else if info.chain_id != us.chain_id {
            let got: String = info.chain_id.chars().take(64).collect();
            Some(format!("its chain is `{got}`, ours is `{}`", us.chain_id))
        } else if info.genesis_hash != us.genesis_hash {
            Some(format!("its genesis is {}, ours is {}", info.genesis_hash, us.genesis_hash))
        } else {
            None
        };
        record.poll_failures = 0;
        match refusal {
            Some(reason) => {
                record.next_poll = now.plus_ms(INTRODUCE_AGAIN_MS);
                record.standing = Standing::Refused(reason);
            }
            None if matches!(record.standing, Standing::Diverged(_)) => {}
            None => record.standing = Standing::Up,
        }
    }

    /// A head that a peer reported, when it was looked at or along with a range. True: it is another one than before.
    pub fn reported(&mut self, id: PeerId, head: Option<(Height, Hash)>, now: Time) -> bool {
        let poll_ms = self.poll_ms;
        let Some(record) = self.get_mut(id) else { return false };
        record.poll_failures = 0;
        record.head_at = now;
        record.next_poll = now.plus_ms(poll_ms);
        let changed = record.head != head;
        record.head = head;
        changed
    }

    /// A head that a peer announced by itself, which spares looks at it. True: it can be asked, and the head is another
    /// one than before. One that was away is looked at soon.
    pub fn announced(&mut self, id: PeerId, head: (Height, Hash), now: Time) -> bool {
        let poll_ms = self.poll_ms;
        let Some(record) = self.get_mut(id) else { return false };
        match record.standing {
            Standing::Up => {
                record.head_at = now;
                record.next_poll = now.plus_ms(poll_ms.saturating_mul(ANNOUNCED_SPARES));
                record.head.replace(head) != Some(head)
            }
            Standing::Down => {
                record.next_poll = record.next_poll.min(now.plus_ms(poll_ms));
                false
            }
            Standing::Unknown | Standing::Refused(_) | Standing::Diverged(_) => false,
        }
    }

    /// A look at a peer that failed. The second in a row without any answer makes it down. True: it was up before.
    pub fn poll_failed(&mut self, id: PeerId, error: &SourceError, now: Time) -> bool {
        let poll_ms = self.poll_ms;
        let Some(record) = self.get_mut(id) else { return false };
        record.last_error = Some(error.to_string());
        let pause = match error {
            SourceError::Limited { retry_after_ms } => *retry_after_ms,
            _ => doubled(BACKOFF_FIRST_MS, record.poll_failures.saturating_add(1)),
        };
        record.next_poll = now.plus_ms(pause.clamp(poll_ms, POLL_BACKOFF_MAX_MS.max(poll_ms)));
        let was_up = record.standing == Standing::Up;
        if was_up && matches!(error, SourceError::Limited { .. } | SourceError::Status { .. }) {
            // It is there, only refuses: what it had it still has, and the watchdog goes on asking for it.
            return false;
        }
        record.poll_failures = record.poll_failures.saturating_add(1);
        if was_up && record.poll_failures < 2 {
            return false;
        }
        if matches!(record.standing, Standing::Up | Standing::Unknown) {
            record.standing = Standing::Down;
            record.head = None;
        }
        was_up
    }

    /// A range that came: how long until its first byte, how long in all, how much.
    pub fn answered(&mut self, id: PeerId, first_byte_us: u64, duration_us: u64, bytes: u64) {
        let Some(record) = self.get_mut(id) else { return };
        record.bytes += bytes;
        record.latency_us = smoothed(record.latency_us, first_byte_us.max(1));
        let rate = bytes.saturating_mul(1_000_000) / duration_us.max(1);
        record.throughput = smoothed(record.throughput, rate);
    }

    /// Blocks of a peer became part of the chain: what it sent was good.
    pub fn imported(&mut self, id: PeerId, blocks: u64) {
        let Some(record) = self.get_mut(id) else { return };
        record.blocks += blocks;
        record.last_error = None;
        record.opinion.imported();
    }

    /// A request that failed: costs points, and a pause that doubles with each failure in a row.
    pub fn failed(&mut self, id: PeerId, points: u32, reason: String, retry_after_ms: Option<u64>, now: Time) {
        let backoff_max_ms = self.backoff_max_ms;
        if let Some(opinion) = self.opinion_mut(id) {
            opinion.failed(points, retry_after_ms, backoff_max_ms, now);
        }
        if let Some(record) = self.get_mut(id) {
            record.last_error = Some(reason);
        }
    }

    /// Takes points off. At nothing, the peer is left alone for a while.
    pub fn penalise(&mut self, id: PeerId, points: u32, now: Time) {
        let backoff_max_ms = self.backoff_max_ms;
        if let Some(opinion) = self.opinion_mut(id) {
            opinion.penalise(points, backoff_max_ms, now);
        }
    }

    /// Leaves a peer alone for a while.
    pub fn leave_alone(&mut self, id: PeerId, now: Time) {
        let backoff_max_ms = self.backoff_max_ms;
        if let Some(opinion) = self.opinion_mut(id) {
            opinion.leave_alone(backoff_max_ms, now);
        }
    }

    /// A peer did not have `height`, which lies below the head that it reported: for a while it has no more than below.
    pub fn doubt(&mut self, id: PeerId, height: Height, now: Time) {
        let Some(record) = self.get_mut(id) else { return };
        record.doubt = Some((height.saturating_sub(1), now.plus_ms(DOUBT_MS)));
        record.opinion.distrust(now);
    }

    /// A peer has another block than we. It is asked for nothing more until that has changed.
    pub fn diverged(&mut self, id: PeerId, diverged: Diverged, now: Time) {
        let pause_ms = self.poll_ms.saturating_mul(COMPARE_EVERY);
        let Some(record) = self.get_mut(id) else { return };
        record.next_poll = now.plus_ms(pause_ms);
        record.standing = Standing::Diverged(diverged);
    }

    /// A peer that had another block has ours now.
    pub fn agreed(&mut self, id: PeerId) {
        let Some(record) = self.get_mut(id) else { return };
        if matches!(record.standing, Standing::Diverged(_)) {
            record.standing = Standing::Up;
        }
    }
}

impl Record {
    /// The reported head, as far as it is believed.
    pub fn proven_head(&self) -> Option<(Height, Hash)> {
        let head = self.head?;
        match self.doubt {
            Some((height, _)) if height < head.0 => Some((height, Hash::ZERO)),
            _ => Some(head),
        }
    }

    /// Whether it can be asked.
    pub fn is_up(&self) -> bool {
        self.standing == Standing::Up
    }

    /// The host's opinion.
    pub fn score(&self) -> i32 {
        self.opinion.score
    }

    /// Smoothed time until the first byte, in microseconds.
    pub fn latency_us(&self) -> u64 {
        self.latency_us
    }

    /// Smoothed rate, in bytes a second.
    pub fn throughput(&self) -> u64 {
        self.throughput
    }

    /// Requests in a row that failed.
    pub fn failures(&self) -> u32 {
        self.opinion.failures
    }
}

/// A quarter of what is new, three of what was.
fn smoothed(was: u64, new: u64) -> u64 {
    if was == 0 { new } else { was - was / 4 + new / 4 }
}

#[cfg(test)]
mod tests {
    use super::super::opinion::{SCORE_AGAIN, SCORE_MAX};
    use super::*;
    use proptest::prelude::*;

    fn book() -> PeerBook {
        let mut book = PeerBook::new(&SyncConfig::default());
        for name in ["a", "b"] {
            book.join(name.into(), Origin::Configured, Time(0)).unwrap();
        }
        book
    }

    fn us() -> SourceInfo {
        SourceInfo { chain_id: "c".into(), genesis_hash: Hash([1; 32]), node_id: "me".into() }
    }

    fn up() -> PeerBook {
        let mut book = book();
        for id in [0, 1] {
            book.introduced(id, &SourceInfo { node_id: "other".into(), ..us() }, &us(), Time(0));
            book.reported(id, Some((10, Hash([2; 32]))), Time(0));
        }
        book
    }

    #[test]
    fn who_must_not_be_used_is_refused_by_name() {
        let cases = [
            (us(), "itself"),
            (SourceInfo { chain_id: "d".into(), node_id: "x".into(), ..us() }, "`d`"),
            (SourceInfo { genesis_hash: Hash::ZERO, node_id: "x".into(), ..us() }, "genesis"),
        ];
        for (info, word) in cases {
            let mut book = book();
            book.introduced(0, &info, &us(), Time(0));
            assert!(matches!(&book.get(0).unwrap().standing, Standing::Refused(reason) if reason.contains(word)));
            assert!(book.view(|_| 0).is_empty() && book.best().is_none());
        }
        assert_eq!(up().view(|_| 3).len(), 2);
    }

    #[test]
    fn failures_make_longer_pauses_and_an_import_ends_them() {
        let mut book = up();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            book.failed(0, 1, "refused".into(), None, Time(0));
            pauses.push(book.view(|_| 0)[0].not_before.0 / 1_000);
        }
        assert_eq!(pauses[..4], [200, 400, 800, 1_600]);
        assert_eq!(pauses[11], 30_000, "bounded");
        book.imported(0, 5);
        let peer = &book.view(|_| 0)[0];
        assert_eq!((peer.failures, book.get(0).unwrap().blocks), (0, 5));
    }

    #[test]
    fn a_peer_without_points_is_left_alone_and_then_has_another_chance() {
        let mut book = up();
        book.penalise(0, 60, Time(0));
        book.penalise(0, 60, Time(0));
        assert_eq!(book.get(0).unwrap().score(), -20);
        let until = book.view(|_| 0)[0].not_before;
        book.settle(Time(until.0 - 1));
        assert!(book.get(0).unwrap().score() <= 0);
        book.settle(until);
        assert_eq!(book.get(0).unwrap().score(), SCORE_AGAIN);
        book.settle(until.plus_ms(200_000));
        assert_eq!(book.get(0).unwrap().score(), SCORE_MAX);
    }

    #[test]
    fn a_peer_that_asks_to_be_left_alone_is_and_keeps_its_points() {
        let mut book = up();
        let limited = SourceError::Limited { retry_after_ms: 20_000 };
        book.failed(0, limited.points(), limited.to_string(), Some(20_000), Time(0));
        let peer = &book.view(|_| 0)[0];
        assert_eq!((peer.not_before, peer.score), (Time(20_000_000), SCORE_MAX));
        assert!(!book.poll_failed(0, &limited, Time(0)));
        assert!(book.get(0).unwrap().next_poll <= Time(0).plus_ms(POLL_BACKOFF_MAX_MS));
    }

    #[test]
    fn a_head_that_is_not_there_is_doubted_for_a_while() {
        let mut book = up();
        book.reported(0, Some((1_000_000, Hash([9; 32]))), Time(0));
        assert_eq!(book.best().unwrap().0, 1_000_000);
        book.doubt(0, 11, Time(0));
        assert_eq!(book.view(|_| 0)[0].head.unwrap().0, 10);
        assert_eq!(book.best().unwrap().0, 10, "the other one's");
        book.settle(Time(0).plus_ms(DOUBT_MS));
        assert_eq!(book.view(|_| 0)[0].head.unwrap().0, 1_000_000, "it is asked again");
        assert_eq!(book.best().unwrap().0, 10, "but does not count yet");
        book.poll_failed(1, &SourceError::Unreachable(String::new()), Time(0));
        book.poll_failed(1, &SourceError::Unreachable(String::new()), Time(0));
        assert_eq!(book.best().unwrap().0, 1_000_000, "there is no other one");
    }

    #[test]
    fn two_looks_in_a_row_without_an_answer_make_a_peer_down() {
        let mut book = up();
        let error = SourceError::Unreachable("connection refused".into());
        assert!(!book.poll_failed(0, &error, Time(0)));
        assert!(book.poll_failed(0, &error, Time(0)));
        assert_eq!(book.get(0).unwrap().standing, Standing::Down);
        assert!(!book.poll_failed(0, &error, Time(0)));
        assert_eq!(book.view(|_| 0).len(), 1);
    }

    #[test]
    fn a_peer_that_refuses_stays_up_and_a_stranger_that_does_is_not_there() {
        let (mut known, mut unknown) = (up(), book());
        for _ in 0..5 {
            for error in [
                SourceError::Limited { retry_after_ms: 60_000 },
                SourceError::Status { status: 403, detail: String::new() },
            ] {
                assert!(!known.poll_failed(0, &error, Time(0)));
                assert!(!unknown.poll_failed(0, &error, Time(0)));
            }
        }
        assert_eq!(known.view(|_| 0)[0].head.unwrap().0, 10);
        assert_eq!(unknown.get(0).unwrap().standing, Standing::Down);
        assert!(unknown.get(0).unwrap().next_poll <= Time(0).plus_ms(POLL_BACKOFF_MAX_MS));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Failed(u32),
        Imported(u64),
        Penalised(u32),
        Answered(u64, u64, u64),
        Left,
        Passed(u64),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..1_000_u32).prop_map(Step::Failed),
            (0..1_000_u64).prop_map(Step::Imported),
            any::<u32>().prop_map(Step::Penalised),
            (any::<u64>(), any::<u64>(), 0..u64::from(u32::MAX)).prop_map(|(a, b, c)| Step::Answered(a, b, c)),
            Just(Step::Left),
            (0..100_000_u64).prop_map(Step::Passed),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_scores_are_bounded_and_nobody_is_left_alone_for_ever(
            steps in prop::collection::vec(any_step(), 0..80),
        ) {
            let (mut book, mut now) = (up(), Time(0));
            for step in steps {
                match step {
                    Step::Failed(points) => book.failed(0, points, String::new(), None, now),
                    Step::Imported(blocks) => book.imported(0, blocks),
                    Step::Penalised(points) => book.penalise(0, points, now),
                    Step::Answered(first, all, bytes) => book.answered(0, first, all, bytes),
                    Step::Left => book.leave_alone(0, now),
                    Step::Passed(ms) => {
                        now = now.plus_ms(ms);
                        book.settle(now);
                    }
                }
                let peer = &book.view(|_| 0)[0];
                prop_assert!((-SCORE_MAX..=SCORE_MAX).contains(&peer.score));
                prop_assert!(peer.not_before <= now.plus_ms(30_000));
            }
            now = now.plus_ms(30_000);
            book.settle(now);
            let peer = &book.view(|_| 0)[0];
            prop_assert!(peer.score > 0 && peer.not_before <= now);
        }
    }
}
