//! The score book: what is known of every source, and when it may be asked again. Pure: the time is an argument.

use super::source::{SourceError, SourceInfo};
use super::{Diverged, Peer, PeerId, SyncConfig};
use crate::chain::{Hash, Height, Time};

/// The best score, and the first one.
pub const SCORE_MAX: i32 = 100;

/// What a peer starts again with after its score had fallen to nothing and it was left alone for a while.
const SCORE_AGAIN: i32 = 25;

/// Points that come back a second.
const POINTS_PER_SECOND: u64 = 1;

/// Points for a range that became part of the chain.
const POINTS_IMPORTED: i32 = 5;

/// The pause after a first failure; it doubles with each further one in a row.
const BACKOFF_FIRST_MS: u64 = 200;

/// The longest pause between two looks at a source that does not answer. Short: a look costs nothing, and a source that
/// is back should be noticed within the time that the watchdog promises.
const POLL_BACKOFF_MAX_MS: u64 = 3_000;

/// How long a peer that did not have a block below its reported head is taken to have no more than it proved. Short,
/// since it may be the only one that has it soon.
const DOUBT_MS: u64 = 1_000;

/// How long its reported head then says nothing about how far the node is behind, if another peer can be asked.
const DISTRUST_MS: u64 = 60_000;

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

/// What is known of one source.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its number.
    pub id: PeerId,
    /// Its address.
    pub name: String,
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
    latency_us: u64,
    throughput: u64,
    failures: u32,
    poll_failures: u32,
    score: i32,
    scored_at: Time,
    not_before: Time,
    /// The highest block that it is taken to have, and until when.
    doubt: Option<(Height, Time)>,
    distrusted_until: Time,
}

/// All sources, by number.
#[derive(Clone, Debug)]
pub struct PeerBook {
    records: Vec<Record>,
    poll_ms: u64,
    backoff_max_ms: u64,
}

impl PeerBook {
    /// Sources with these names, numbered from 0, none of them known.
    pub fn new(names: impl IntoIterator<Item = String>, config: &SyncConfig, now: Time) -> Self {
        let record = |(id, name)| Record {
            id: PeerId::try_from(id).expect("fewer sources than numbers"),
            name,
            standing: Standing::Unknown,
            head: None,
            head_at: Time(0),
            last_error: None,
            blocks: 0,
            bytes: 0,
            next_poll: now,
            busy: false,
            latency_us: 0,
            throughput: 0,
            failures: 0,
            poll_failures: 0,
            score: SCORE_MAX,
            scored_at: now,
            not_before: Time(0),
            doubt: None,
            distrusted_until: Time(0),
        };
        let records = names.into_iter().enumerate().map(record).collect();
        Self { records, poll_ms: config.poll_ms, backoff_max_ms: config.backoff_max_ms }
    }

    /// Every peer.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        self.records.iter()
    }

    /// One peer.
    pub fn get(&self, id: PeerId) -> Option<&Record> {
        self.records.get(id as usize)
    }

    /// One peer that is known to be there.
    pub fn at(&mut self, id: PeerId) -> &mut Record {
        &mut self.records[id as usize]
    }

    /// Lets time pass: points come back, doubts end, and who was left alone long enough has another chance.
    pub fn settle(&mut self, now: Time) {
        for record in &mut self.records {
            let seconds = now.ms_since(record.scored_at) / 1_000;
            if seconds > 0 {
                let back = i32::try_from(seconds * POINTS_PER_SECOND).unwrap_or(SCORE_MAX);
                if record.score > 0 {
                    record.score = record.score.saturating_add(back).min(SCORE_MAX);
                }
                record.scored_at = record.scored_at.plus_ms(seconds * 1_000);
            }
            if record.score <= 0 && record.not_before <= now {
                record.score = SCORE_AGAIN;
            }
            if record.doubt.is_some_and(|(_, until)| until <= now) {
                record.doubt = None;
            }
            if record.distrusted_until <= now {
                record.distrusted_until = Time(0);
            }
        }
    }

    /// What a strategy sees of the peers that can be asked for blocks.
    pub fn view(&self, in_flight: impl Fn(PeerId) -> u32) -> Vec<Peer> {
        self.records
            .iter()
            .filter(|record| record.standing == Standing::Up)
            .map(|record| Peer {
                id: record.id,
                head: record.proven_head(),
                latency_us: record.latency_us,
                throughput: record.throughput,
                failures: record.failures,
                score: record.score,
                in_flight: in_flight(record.id),
                not_before: record.not_before,
                snapshot: None,
            })
            .collect()
    }

    /// The highest head that the peers which can be asked report; one that lately did not have what it reported only
    /// counts where there is no other.
    pub fn best(&self) -> Option<(Height, Hash)> {
        let up = || self.records.iter().filter(|record| record.standing == Standing::Up && record.head.is_some());
        let trusted = || up().filter(|record| record.distrusted_until == Time(0));
        let highest = |head: &(Height, Hash)| head.0;
        let trusted = trusted().filter_map(|record| record.head).max_by_key(highest);
        trusted.or_else(|| up().filter_map(|record| record.head).max_by_key(highest))
    }

    /// Takes in who a peer says it is: whether it is one to read from. `us`: our chain, genesis hash and node.
    pub fn introduced(&mut self, id: PeerId, info: &SourceInfo, us: &SourceInfo, now: Time) {
        let record = self.at(id);
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
        let record = self.at(id);
        record.poll_failures = 0;
        record.head_at = now;
        record.next_poll = now.plus_ms(poll_ms);
        let changed = record.head != head;
        record.head = head;
        changed
    }

    /// A look at a peer that failed. The second in a row without any answer makes it down. True: it was up before.
    pub fn poll_failed(&mut self, id: PeerId, error: &SourceError, now: Time) -> bool {
        let poll_ms = self.poll_ms;
        let record = self.at(id);
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
        let record = self.at(id);
        record.bytes += bytes;
        record.latency_us = smoothed(record.latency_us, first_byte_us.max(1));
        let rate = bytes.saturating_mul(1_000_000) / duration_us.max(1);
        record.throughput = smoothed(record.throughput, rate);
    }

    /// Blocks of a peer became part of the chain: what it sent was good.
    pub fn imported(&mut self, id: PeerId, blocks: u64) {
        let record = self.at(id);
        record.blocks += blocks;
        record.failures = 0;
        record.last_error = None;
        record.distrusted_until = Time(0);
        record.score = (record.score + POINTS_IMPORTED).min(SCORE_MAX);
    }

    /// A request that failed: costs points, and a pause that doubles with each failure in a row.
    pub fn failed(&mut self, id: PeerId, points: u32, reason: String, retry_after_ms: Option<u64>, now: Time) {
        let backoff_max_ms = self.backoff_max_ms;
        let record = self.at(id);
        record.failures = record.failures.saturating_add(1);
        record.last_error = Some(reason);
        let pause = doubled(BACKOFF_FIRST_MS, record.failures).min(backoff_max_ms);
        record.not_before = record.not_before.max(now.plus_ms(retry_after_ms.unwrap_or(0).max(pause)));
        self.penalise(id, points, now);
    }

    /// Takes points off. At nothing, the peer is left alone for a while.
    pub fn penalise(&mut self, id: PeerId, points: u32, now: Time) {
        let backoff_max_ms = self.backoff_max_ms;
        let record = self.at(id);
        record.score = record.score.saturating_sub_unsigned(points).max(-SCORE_MAX);
        if record.score <= 0 {
            record.not_before = record.not_before.max(now.plus_ms(backoff_max_ms));
        }
    }

    /// Leaves a peer alone for a while.
    pub fn leave_alone(&mut self, id: PeerId, now: Time) {
        let until = now.plus_ms(self.backoff_max_ms);
        let record = self.at(id);
        record.not_before = record.not_before.max(until);
    }

    /// A peer did not have `height`, which lies below the head that it reported: for a while it has no more than below.
    pub fn doubt(&mut self, id: PeerId, height: Height, now: Time) {
        let record = self.at(id);
        record.doubt = Some((height.saturating_sub(1), now.plus_ms(DOUBT_MS)));
        record.distrusted_until = now.plus_ms(DISTRUST_MS);
    }

    /// A peer has another block than we. It is asked for nothing more until that has changed.
    pub fn diverged(&mut self, id: PeerId, diverged: Diverged, now: Time) {
        let pause_ms = self.poll_ms.saturating_mul(COMPARE_EVERY);
        let record = self.at(id);
        record.next_poll = now.plus_ms(pause_ms);
        record.standing = Standing::Diverged(diverged);
    }

    /// A peer that had another block has ours now.
    pub fn agreed(&mut self, id: PeerId) {
        let record = self.at(id);
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

    /// The host's opinion.
    pub fn score(&self) -> i32 {
        self.score
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
        self.failures
    }
}

/// `first` for one failure, doubled for each further one.
fn doubled(first: u64, failures: u32) -> u64 {
    first.saturating_mul(1 << failures.saturating_sub(1).min(20))
}

/// A quarter of what is new, three of what was.
fn smoothed(was: u64, new: u64) -> u64 {
    if was == 0 { new } else { was - was / 4 + new / 4 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn book() -> PeerBook {
        PeerBook::new(["a".to_owned(), "b".to_owned()], &SyncConfig::default(), Time(0))
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
