//! The book of peers, step by step and with drawn steps.

use proptest::prelude::*;

use super::*;
use crate::sync::opinion::{SCORE_AGAIN, SCORE_MAX};

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
    assert_eq!(book.get(0).unwrap().last_error, Some(error.to_string()));
    book.introduced(0, &SourceInfo { node_id: "other".into(), ..us() }, &us(), Time(0));
    assert_eq!(
        (&book.get(0).unwrap().standing, &book.get(0).unwrap().last_error),
        (&Standing::Up, &None),
        "it is back"
    );
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

#[test]
fn a_peer_that_comes_back_is_thought_of_as_before_for_a_while() {
    let mut book = up();
    let name = |book: &PeerBook, id: PeerId| book.get(id).map(|record| record.name.clone());
    book.penalise(0, 130, Time(0));
    book.failed(1, 7, "late".into(), None, Time(0));
    assert!(book.leave(0, Time(0)).is_some() && book.leave(0, Time(0)).is_none());
    book.leave(1, Time(0));
    assert!(book.is_empty() && book.view(|_| 0).is_empty());
    // What it sent may be found wrong after it has left.
    book.penalise(1, 40, Time(0));
    let b = book.join("b".into(), Origin::Met, Time(1_000_000)).unwrap();
    assert_eq!((b, name(&book, b).as_deref(), name(&book, 1)), (2, Some("b"), None));
    assert_eq!((book.get(b).unwrap().score(), book.get(b).unwrap().failures()), (54, 1), "a point has come back");
    let a = book.join("a".into(), Origin::Met, Time(2_000_000)).unwrap();
    assert!(book.get(a).unwrap().score() <= 0);
    assert!(book.join("a".into(), Origin::Met, Time(0)).unwrap_err().contains("peer 3"));
    book.leave(a, Time(2_000_000));
    book.settle(Time(2_000_000).plus_ms(FORMER_MS));
    assert_eq!(book.records(), 1, "b");
    let a = book.join("a".into(), Origin::Met, Time(3_000_000).plus_ms(FORMER_MS)).unwrap();
    assert_eq!(book.get(a).unwrap().score(), SCORE_MAX);
}

#[test]
fn there_are_only_so_many_peers_and_so_many_that_were() {
    let mut book = PeerBook::new(&SyncConfig::default());
    for at in 0..PEERS_MAX {
        book.join(format!("{at}"), Origin::Met, Time(0)).unwrap();
    }
    assert!(book.join("more".into(), Origin::Met, Time(0)).unwrap_err().contains("one too many"));
    for at in 0..3 * FORMER_MAX {
        let id = book.iter().next().unwrap().id;
        book.leave(id, Time(0));
        book.join(format!("other {at}"), Origin::Met, Time(0)).unwrap();
    }
    assert_eq!(book.records(), PEERS_MAX + FORMER_MAX);
}

#[test]
fn an_announcement_counts_where_the_peer_can_be_asked_and_spares_looks() {
    let mut book = up();
    let head = (11, Hash([3; 32]));
    assert!(book.announced(0, head, Time(0)) && !book.announced(0, head, Time(0)));
    assert_eq!(book.best(), Some(head));
    assert_eq!(book.get(0).unwrap().next_poll, Time(0).plus_ms(5_000));
    book.reported(0, Some((12, Hash([4; 32]))), Time(0));
    assert_eq!(book.get(0).unwrap().next_poll, Time(0).plus_ms(5_000), "as one that came with a range does not change");
    for _ in 0..8 {
        book.poll_failed(1, &SourceError::Unreachable(String::new()), Time(0));
    }
    assert!(book.get(1).unwrap().next_poll > Time(0).plus_ms(500));
    assert!(!book.announced(1, head, Time(0)), "it was away");
    assert_eq!(book.get(1).unwrap().next_poll, Time(0).plus_ms(500), "and is looked at soon");
    assert!(!book.announced(7, head, Time(0)), "nobody knows it");
    let fork = Diverged { height: 2, ours: Hash::ZERO, theirs: Hash([1; 32]), peer: "a".into() };
    book.diverged(0, fork, Time(0));
    assert!(!book.announced(0, head, Time(0)), "it cannot be asked for blocks");
    let record = book.get(0).unwrap();
    assert_eq!((record.head, record.next_poll), (Some(head), Time(0).plus_ms(500)), "but may have the better branch");
}

#[test]
fn a_stranger_that_did_not_have_its_head_is_no_measure_even_alone() {
    for (origin, expected) in [(Origin::Configured, Some(1_000_000)), (Origin::Met, None)] {
        let mut book = PeerBook::new(&SyncConfig::default());
        let id = book.join("a".into(), origin, Time(0)).unwrap();
        book.introduced(id, &SourceInfo { node_id: "other".into(), ..us() }, &us(), Time(0));
        book.reported(id, Some((1_000_000, Hash([9; 32]))), Time(0));
        assert_eq!(book.best().unwrap().0, 1_000_000);
        book.doubt(id, 11, Time(0));
        assert_eq!(book.best().map(|head| head.0), expected);
    }
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
