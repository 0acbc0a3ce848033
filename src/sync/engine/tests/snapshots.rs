//! Snapshots in place of blocks: what is refused, and how one goes from the wish to the chain, or fails.

use std::sync::Arc;

use super::super::{ATTEMPTS_MAX, Command, Engine, Fetched, Look, SnapshotFault, SnapshotNews, Wake};
use super::config;
use super::network::{Flaw, Network, Plans, START, Stub, hash};
use crate::chain::{Hash, Head, Height, Time};
use crate::snapshot::Progress;
use crate::snapshot::source::Offer;
use crate::sync::compare::Comparison;
use crate::sync::opinion::SCORE_MAX;
use crate::sync::peers::Origin;
use crate::sync::source::SourceInfo;
use crate::sync::{
    Action, Diverged, Event, HeightRange, OnDivergence, PeerId, SnapshotStage, SyncConfig, SyncState, View,
};

/// The peers' head.
const HEAD: Height = 9_000;

/// An engine, the time, and what it wants done.
struct Rig {
    engine: Engine<Vec<Stub>>,
    now: Time,
    asked: Option<(Arc<View>, Vec<Event>)>,
    commands: Vec<Command<Vec<Stub>>>,
}

fn offer(height: Height) -> Offer {
    Offer { id: Hash::of(&[b"snapshot", &height.to_be_bytes()]), height, hash: hash(height, 0) }
}

fn head_at(height: Height) -> Head {
    let hash = hash(height, 0);
    Head { height, hash, parent_hash: Hash::ZERO, timestamp: START, tx_count: 0, state_root: Hash::ZERO }
}

fn us() -> SourceInfo {
    SourceInfo { chain_id: "model".into(), genesis_hash: Hash::ZERO, node_id: "us".into() }
}

fn want(peer: PeerId, height: Height) -> Action {
    Action::FetchSnapshot { peer, height }
}

fn fetch(first: Height, last: Height) -> Action {
    Action::FetchRange { peer: 0, range: HeightRange { first, last } }
}

fn done(chunks: usize) -> Progress {
    Progress { chunks, of: 10, bytes: chunks as u64 * 1_000 }
}

impl Rig {
    /// At `head`, with a peer for each offer, numbered from 0, all of them up.
    fn new(head: Height, offers: &[Option<Height>]) -> Self {
        Self::with(config(), head, offers)
    }

    fn with(config: SyncConfig, head: Height, offers: &[Option<Height>]) -> Self {
        let mut engine = Engine::new(us(), config, head_at(head), START);
        engine.take_snapshots(None);
        let mut rig = Self { engine, now: START, asked: None, commands: Vec::new() };
        rig.handle(Wake::Strategy(1));
        for at in 0..offers.len() {
            rig.engine.join(START, format!("peer {at}"), Origin::Configured).unwrap();
        }
        rig.turn();
        // It is asked before anybody is there.
        rig.asked = None;
        rig.handle(Wake::Planned(Vec::new()));
        for (peer, offered) in (0..).zip(offers) {
            rig.look(peer, *offered);
        }
        rig
    }

    fn look(&mut self, peer: PeerId, offered: Option<Height>) {
        let info = Some(SourceInfo { node_id: "another".into(), ..us() });
        let head = Some((HEAD, hash(HEAD, 0)));
        self.handle(Wake::Looked(peer, Ok(Look { info, head, ours: None, snapshot: offered.map(offer) })));
    }

    fn handle(&mut self, wake: Wake<Vec<Stub>>) {
        self.engine.handle(self.now, wake);
    }

    fn news(&mut self, number: u64, news: SnapshotNews) {
        self.handle(Wake::Snapshot(number, news));
    }

    fn turn(&mut self) {
        for command in self.engine.turn(self.now).commands {
            match command {
                Command::Ask { view, events } => self.asked = Some((view, events)),
                command => self.commands.push(command),
            }
        }
    }

    /// What the strategy is asked next.
    fn question(&mut self) -> (Arc<View>, Vec<Event>) {
        for _ in 0..100 {
            if let Some(asked) = self.asked.take() {
                return asked;
            }
            self.now = self.now.plus_ms(20);
            self.turn();
        }
        panic!("the strategy is not asked");
    }

    /// The next question that is as wanted; to those before the strategy answers nothing.
    fn question_with(&mut self, is_wanted: impl Fn(&View, &[Event]) -> bool) -> (Arc<View>, Vec<Event>) {
        for _ in 0..100 {
            let (view, events) = self.question();
            if is_wanted(&view, &events) {
                return (view, events);
            }
            drop(view);
            self.handle(Wake::Planned(Vec::new()));
        }
        panic!("no such question");
    }

    /// The strategy wants this when it is asked next. Answers what that leads to.
    fn wish(&mut self, actions: Vec<Action>) -> Vec<Command<Vec<Stub>>> {
        let (view, _) = self.question();
        drop(view);
        self.commands.clear();
        self.handle(Wake::Planned(actions));
        self.turn();
        std::mem::take(&mut self.commands)
    }

    /// Why the last of these actions is refused.
    fn refusal(&mut self, actions: Vec<Action>) -> String {
        let reasons = self.wish(actions).into_iter().filter_map(|command| match command {
            Command::Refused { reason, .. } => Some(reason),
            _ => None,
        });
        reasons.last().unwrap_or_default()
    }

    /// Begins a snapshot; its number.
    fn begin(&mut self, peer: PeerId, height: Height) -> u64 {
        self.begun(vec![want(peer, height)]).expect("it is begun").0
    }

    fn begun(&mut self, actions: Vec<Action>) -> Option<(u64, Vec<PeerId>)> {
        self.wish(actions).into_iter().find_map(|command| match command {
            Command::FetchSnapshot { number, peers, .. } => Some((number, peers)),
            _ => None,
        })
    }

    fn score(&self, peer: PeerId) -> i32 {
        self.engine.peers().get(peer).unwrap().score()
    }
}

#[test]
fn a_snapshot_that_cannot_be_taken_is_refused_with_the_reason_and_the_strategy_does_not_wait_for_it() {
    type Case = (&'static str, fn() -> Rig, Vec<Action>);
    let plain = || Rig::new(0, &[Some(8_000), None, Some(40)]);
    let cases: Vec<Case> = vec![
        ("this node does not take snapshots", || bare(None), vec![want(0, 8_000)]),
        ("it makes blocks", || bare(Some("it makes blocks")), vec![want(0, 8_000)]),
        (
            "a snapshot goes into a node without blocks, the head is 5",
            || Rig::new(5, &[Some(8_000)]),
            vec![want(0, 8_000)],
        ),
        ("peer 1 offers no snapshot of block 8000", plain, vec![want(1, 8_000)]),
        ("peer 0 offers no snapshot of block 8001", plain, vec![want(0, 8_001)]),
        ("a snapshot of block 40 spares 40 blocks, one request brings 40", plain, vec![want(2, 40)]),
        ("the snapshot of block 8000 is under way", plain, vec![want(0, 8_000), want(2, 40)]),
        ("blocks are on their way to the chain", importing, vec![want(0, 8_000)]),
        ("sync.on_divergence is \"halt\"", halted, vec![want(0, 8_000)]),
        ("8 snapshots have failed one after the other", exhausted, vec![want(0, 8_000)]),
    ];
    for (expected, rig, actions) in cases {
        let mut rig = rig();
        let Some(Action::FetchSnapshot { peer, height }) = actions.last().cloned() else { unreachable!() };
        let refused = rig.engine.status().refused_actions;
        let reason = rig.refusal(actions);
        assert!(reason.contains(expected), "{expected}: {reason}");
        let failed = Event::SnapshotFailed { peer, height };
        rig.question_with(|_, events| events.contains(&failed));
        assert_eq!(rig.engine.status().refused_actions, refused + 1, "{expected}");
    }
    assert_eq!(plain().refusal(vec![want(77, 8_000)]), "there is no peer 77");
    let mut rig = plain();
    rig.wish(vec![Action::Penalise { peer: 0, points: 100 }]);
    let reason = rig.refusal(vec![want(0, 8_000)]);
    assert!(reason.contains("is left alone") || reason.contains("score"), "{reason}");
    let mut rig = plain();
    rig.begin(0, 8_000);
    assert_eq!(rig.refusal(vec![fetch(1, 5)]), "the snapshot of block 8000 is under way, ranges wait for it");
}

/// One that was not told that it takes any, or that it takes none.
fn bare(refusal: Option<&str>) -> Rig {
    let mut rig = Rig::new(0, &[Some(8_000)]);
    match refusal {
        Some(reason) => rig.engine.take_snapshots(Some(reason.into())),
        None => {
            rig.engine = Engine::new(us(), config(), head_at(0), START);
            rig.handle(Wake::Strategy(1));
            rig.engine.join(START, "peer 0".into(), Origin::Configured).unwrap();
            rig.turn();
            rig.asked = None;
            rig.handle(Wake::Planned(Vec::new()));
            rig.look(0, Some(8_000));
        }
    }
    rig
}

/// One whose first block is in the ledger's hands.
fn importing() -> Rig {
    let mut rig = Rig::new(0, &[Some(8_000)]);
    let commands = rig.wish(vec![fetch(1, 1)]);
    let (id, room) = commands
        .into_iter()
        .find_map(|command| match command {
            Command::Fetch { id, room, .. } => Some((id, room)),
            _ => None,
        })
        .unwrap();
    let block = Stub { height: 1, branch: 0, flaw: Flaw::None };
    let fetched = Fetched { body: vec![block], blocks: 1, room, head: None, first_byte_us: 1, duration_us: 2 };
    rig.handle(Wake::Fetched(id, Ok(fetched)));
    rig.handle(Wake::Verified(id, Ok(vec![block])));
    rig.turn();
    assert!(rig.commands.iter().any(|command| matches!(command, Command::Import(_))));
    rig
}

fn halted() -> Rig {
    let config = SyncConfig { on_divergence: OnDivergence::Halt, ..config() };
    let mut rig = Rig::with(config, 0, &[Some(8_000), None]);
    let diverged = Diverged { height: 1, ours: Hash::ZERO, theirs: hash(1, 1), peer: "peer 1".into() };
    rig.handle(Wake::Compared(1, Ok(Comparison::Diverged(diverged))));
    rig
}

fn exhausted() -> Rig {
    let mut rig = Rig::new(0, &[Some(8_000)]);
    for _ in 0..ATTEMPTS_MAX {
        let number = rig.begin(0, 8_000);
        rig.news(number, SnapshotNews::Ended(Err(SnapshotFault::Unavailable("nobody has it".into()))));
    }
    rig
}

#[test]
fn a_snapshot_comes_from_all_who_offer_the_same_and_then_the_blocks_above_it() {
    let mut rig = Rig::new(0, &[Some(8_000), None, Some(8_000), Some(7_000)]);
    let (view, events) = rig.question();
    let shown: Vec<_> = view.peers.iter().map(|peer| peer.snapshot).collect();
    assert_eq!(shown, [Some(8_000), None, Some(8_000), Some(7_000)]);
    assert!(events.contains(&Event::SnapshotOffered { peer: 3, height: 7_000 }), "{events:?}");
    drop(view);
    rig.handle(Wake::Planned(vec![fetch(1, 40)]));
    rig.turn();
    rig.commands.clear();
    // Ranges that were asked for before are given up, and cost nobody anything.
    let (number, peers) = rig.begun(vec![want(2, 8_000)]).unwrap();
    assert_eq!(peers, [0, 2]);
    let (view, _) = rig.question_with(|_, events| events.iter().any(|event| matches!(event, Event::RangeFailed(_))));
    assert_eq!((view.in_flight.len(), view.limits.in_flight_max, rig.score(0)), (0, 0, SCORE_MAX));
    drop(view);
    rig.handle(Wake::Planned(Vec::new()));

    // It takes minutes, as long as it goes on, and nothing else happens meanwhile: no rescue, no alarm.
    for chunks in 1..=10 {
        rig.news(number, SnapshotNews::Downloaded(done(chunks)));
        rig.now = rig.now.plus_ms(50_000);
        rig.turn();
        assert!(!rig.commands.iter().any(|command| matches!(command, Command::Fetch { .. } | Command::EndSnapshot(_))));
        let status = rig.engine.status();
        assert_eq!((status.state, status.rescues), (SyncState::Syncing, 0));
        let snapshot = status.snapshot.unwrap();
        assert_eq!((snapshot.height, snapshot.stage, snapshot.sources), (8_000, SnapshotStage::Downloading, 2));
        assert_eq!((snapshot.chunks, snapshot.of, snapshot.bytes), (chunks, 10, chunks as u64 * 1_000));
    }
    // The same one again, by whoever has taken over, changes nothing.
    assert!(rig.wish(vec![want(0, 8_000)]).iter().all(|command| !matches!(command, Command::Refused { .. })));
    rig.news(number, SnapshotNews::Installed(done(3)));
    assert_eq!(rig.engine.status().snapshot.unwrap().stage, SnapshotStage::Installing);
    rig.handle(Wake::Head(head_at(8_000)));
    rig.news(number, SnapshotNews::Ended(Ok(())));
    let status = rig.engine.status();
    assert_eq!((status.snapshot, status.snapshots_taken, status.snapshots_failed), (None, 1, 0));
    let imported = Event::Imported(HeightRange { first: 1, last: 8_000 });
    let (view, _) = rig.question_with(|view, events| view.head.0 == 8_000 && events.contains(&imported));
    assert!(view.peers.iter().all(|peer| peer.snapshot.is_none()), "none can be taken any more");
    assert!(view.limits.in_flight_max > 0);
    drop(view);
    rig.handle(Wake::Planned(vec![fetch(8_001, 8_040)]));
    rig.turn();
    assert!(rig.commands.iter().any(|command| matches!(command, Command::Fetch { .. })));
    rig.look(1, Some(8_999));
    let (_, events) = rig.question();
    assert!(!events.iter().any(|event| matches!(event, Event::SnapshotOffered { .. })), "{events:?}");
}

#[test]
fn sources_that_have_not_been_heard_yet_have_a_second_to_offer_the_same_one() {
    let taken = |rig: &mut Rig| {
        rig.turn();
        rig.commands.iter().find_map(|command| match command {
            Command::FetchSnapshot { peers, .. } => Some(peers.clone()),
            _ => None,
        })
    };
    let unheard = || {
        let mut rig = Rig::new(0, &[Some(8_000)]);
        for name in ["soon", "never"] {
            rig.engine.join(rig.now, name.into(), Origin::Configured).unwrap();
        }
        assert!(rig.begun(vec![want(0, 8_000)]).is_none());
        rig
    };
    let mut rig = unheard();
    rig.look(1, Some(8_000));
    assert_eq!(taken(&mut rig), None);
    rig.now = rig.now.plus_ms(999);
    assert_eq!(taken(&mut rig), None);
    rig.now = rig.now.plus_ms(1);
    assert_eq!(taken(&mut rig), Some(vec![0, 1]));
    let mut rig = unheard();
    rig.look(1, Some(8_000));
    rig.look(2, None);
    assert_eq!(taken(&mut rig), Some(vec![0, 1]), "all are heard");
    // Who offered it alone is gone before it begins.
    let mut rig = unheard();
    rig.engine.leave(rig.now, 0);
    rig.now = rig.now.plus_ms(1_000);
    assert_eq!(taken(&mut rig), None);
    let status = rig.engine.status();
    assert_eq!((status.snapshots_failed, status.snapshot), (1, None));
}

#[test]
fn who_sends_a_wrong_chunk_pays_and_so_do_all_who_offer_what_does_not_hold() {
    let mut rig = Rig::new(0, &[Some(8_000); 4]);
    let number = rig.begin(0, 8_000);
    let left = |peer, lied| SnapshotNews::Left { peer, lied, reason: "sends another chunk".into() };
    rig.news(number, left(1, true));
    rig.news(number, left(2, false));
    assert_eq!([0, 1, 2, 3].map(|peer| rig.score(peer)), [100, 50, 90, 100]);
    assert_eq!(rig.engine.status().snapshot.unwrap().sources, 2);
    rig.news(number, SnapshotNews::Ended(Err(SnapshotFault::Invalid("the state root".into()))));
    assert_eq!([0, 1, 2, 3].map(|peer| rig.score(peer)), [50, 50, 90, 50], "who was left has paid");
    let status = rig.engine.status();
    let problem = status.problem.unwrap();
    assert!(
        problem.contains("the snapshot of block 8000 was not taken: it does not hold: the state root"),
        "{problem}"
    );
    assert_eq!((status.snapshots_failed, status.snapshots_taken, status.snapshot), (1, 0, None));
    rig.question_with(|_, events| events.contains(&Event::SnapshotFailed { peer: 0, height: 8_000 }));
    rig.handle(Wake::Planned(vec![]));
    // The strategy has its time to ask for blocks before the host does.
    rig.turn();
    assert_eq!(rig.engine.status().rescues, 0);
}

#[test]
fn a_download_that_stands_still_or_comes_too_late_is_ended_and_not_heard_of_again() {
    let ended = |rig: &mut Rig| {
        rig.turn();
        let ended = rig.commands.extract_if(.., |command| matches!(command, Command::EndSnapshot(_))).count();
        ended == 1
    };
    let mut rig = Rig::new(0, &[Some(8_000)]);
    let number = rig.begin(0, 8_000);
    rig.now = rig.now.plus_ms(59_999);
    assert!(!ended(&mut rig));
    rig.news(number, SnapshotNews::Downloaded(done(1)));
    rig.now = rig.now.plus_ms(59_999);
    assert!(!ended(&mut rig));
    rig.now = rig.now.plus_ms(1);
    assert!(ended(&mut rig));
    let status = rig.engine.status();
    assert!(status.problem.unwrap().contains("nothing more of it for 60000 ms"));
    assert_eq!((status.snapshot, status.snapshots_failed), (None, 1));
    let second = rig.begin(0, 8_000);
    rig.news(number, SnapshotNews::Ended(Err(SnapshotFault::Local("late".into()))));
    assert!(rig.engine.status().snapshot.is_some(), "{second} is another one");
    // What is in the ledger's hands is waited for.
    rig.news(second, SnapshotNews::Installed(done(1)));
    rig.now = rig.now.plus_ms(600_000);
    assert!(!ended(&mut rig));

    let mut rig = Rig::new(0, &[Some(8_000)]);
    rig.begin(0, 8_000);
    rig.handle(Wake::Head(head_at(1)));
    assert!(ended(&mut rig), "somebody handed in a block");
    assert!(rig.engine.status().problem.unwrap().contains("blocks up to 1 have come in another way"));
}

#[test]
fn while_a_snapshot_is_refused_again_and_again_nobody_spins() {
    let mut rig = Rig::new(5, &[Some(8_000)]);
    let (mut questions, start) = (0, rig.now);
    while rig.now.ms_since(start) < 10_000 {
        drop(rig.question());
        rig.handle(Wake::Planned(vec![want(0, 8_000)]));
        questions += 1;
    }
    assert!(questions <= 10 * 51, "{questions} questions in 10 seconds");
}

#[test]
fn whoever_wants_snapshots_at_random_takes_some_and_comes_to_the_head() {
    let mut taken = 0;
    for seed in 0..20 {
        let mut network = Network::new(seed, 1_000, Plans::Mad, config());
        network.offer_snapshots(Some(700));
        network.join(0, super::model("a", super::network::Nature::Honest));
        network.join(0, super::model("b", super::network::Nature::Honest));
        assert!(network.run(3_600_000, |network| network.engine.head().height == 1_000), "{:#?}", network.status);
        taken += network.snapshots.1;
    }
    assert!(taken >= 3, "{taken}");
}
