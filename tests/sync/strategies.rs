//! Strategies that plan well, are swapped on the way, or are mad.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tenon::sample::Sample;
use tenon::sync::one_peer::OnePeer;
use tenon::sync::{Action, Event, HeightRange, RequestId, Strategy as SyncStrategy, SyncConfig, View};

use super::source::TestSource;
use super::{Running, config, follow, open};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_catches_up_to_the_same_state_and_goes_on_block_by_block() {
    let mut sample = Sample::new(1, 50);
    let blocks = sample.blocks(2_000, 3);
    let source = TestSource::start(sample.genesis(), &blocks).await;
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    let mut running = Running::start(&ledger, config(&[&source]), Arc::new(OnePeer::default()));
    let status = running.until_live_at(2_000).await;
    assert_eq!(ledger.head(), *sample.head());
    assert_eq!(source.served(), 2_000, "no block was fetched twice");
    assert_eq!((status.failed_requests, status.refused_actions, status.rescues), (0, 0, 0), "{status:#?}");
    assert_eq!((status.imported_blocks, status.buffered_bytes, status.problem), (2_000, 0, None));
    assert!(ledger.import_stats().commits < 200, "{:?}", ledger.import_stats());
    for height in 2_001..2_011 {
        source.extend(&sample.blocks(1, 2));
        let status = running.until_live_at(height).await;
        assert_eq!(status.head_hash, sample.head().hash);
    }
    running.stop().await;
}

/// Hands over to a fresh one-peer strategy, without its memory, every few calls.
struct Swapping {
    inner: std::sync::Mutex<OnePeer>,
    calls: AtomicU64,
    calls_each: u64,
    swaps_max: u64,
    taken_over: AtomicU64,
    refused: AtomicU64,
}

impl Swapping {
    fn new(calls_each: u64, swaps_max: u64) -> Self {
        let (inner, zero) = (std::sync::Mutex::default(), AtomicU64::default);
        Self { inner, calls: zero(), calls_each, swaps_max, taken_over: zero(), refused: zero() }
    }
}

impl SyncStrategy for Swapping {
    fn next(&self, view: &View, events: &[Event]) -> Vec<Action> {
        let before = self.generation();
        self.calls.fetch_add(1, Ordering::SeqCst);
        if events.contains(&Event::TakenOver) {
            self.taken_over.fetch_add(1, Ordering::SeqCst);
        }
        let mut inner = self.inner.lock().unwrap();
        let actions = inner.next(view, events);
        if self.generation() != before {
            *inner = OnePeer::default();
        }
        actions
    }

    fn generation(&self) -> u64 {
        (self.calls.load(Ordering::SeqCst) / self.calls_each).min(self.swaps_max)
    }

    fn refused(&self, action: &Action, reason: &str) {
        self.refused.fetch_add(1, Ordering::SeqCst);
        panic!("{action:?}: {reason}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swapping_the_strategy_on_the_way_loses_nothing_and_fetches_nothing_twice() {
    let mut sample = Sample::new(2, 50);
    let blocks = sample.blocks(2_000, 1);
    let source = TestSource::start(sample.genesis(), &blocks).await;
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    let strategy = Arc::new(Swapping::new(2, 20));
    let config = SyncConfig { range_blocks_max: 20, in_flight_per_peer_max: 4, ..config(&[&source]) };
    let mut running = Running::start(&ledger, config, Arc::clone(&strategy) as _);
    let status = running.until_live_at(2_000).await;
    assert_eq!(ledger.head(), *sample.head());
    assert_eq!((source.served(), status.failed_requests), (2_000, 0));
    assert_eq!(strategy.taken_over.load(Ordering::SeqCst), 20);
    running.stop().await;
}

/// What a hostile strategy answers, given the view and how often it was asked.
type Malice = fn(&View, u64) -> Vec<Action>;

struct Hostile {
    malice: Malice,
    calls: AtomicU64,
}

impl SyncStrategy for Hostile {
    fn next(&self, view: &View, _: &[Event]) -> Vec<Action> {
        (self.malice)(view, self.calls.fetch_add(1, Ordering::SeqCst))
    }

    fn generation(&self) -> u64 {
        1
    }

    fn refused(&self, _: &Action, _: &str) {}
}

fn fetch(peer: u32, first: u64, last: u64) -> Action {
    Action::FetchRange { peer, range: HeightRange { first, last } }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_strategy_keeps_the_node_from_the_head() {
    let malice: [(&str, Malice); 10] = [
        ("never asks", |_, _| Vec::new()),
        ("panics", |_, _| panic!("on purpose")),
        ("wants to be called all the time", |_, _| vec![Action::WaitUntil(tenon::chain::Time(0))]),
        ("asks whom nobody knows", |view, _| vec![fetch(77, view.head.0 + 1, view.head.0 + 1)]),
        ("asks for nonsense", |view, _| {
            let head = view.head.0;
            vec![
                fetch(0, 9, 2),
                fetch(0, 0, u64::MAX),
                fetch(0, head, head),
                fetch(0, u64::MAX, u64::MAX),
                fetch(0, head + 1, head + 1_000_000),
                Action::Cancel(RequestId::MAX),
                Action::FetchSnapshot { peer: 0, height: 1 },
                Action::Penalise { peer: 0, points: u32::MAX },
                Action::Report("x".repeat(10_000)),
            ]
        }),
        ("floods", |view, _| (1..5_000).map(|above| fetch(0, view.head.0 + above, view.head.0 + above)).collect()),
        ("never asks for the lowest", |view, _| vec![fetch(0, view.head.0 + 2, view.best_height)]),
        ("asks and cancels", |view, _| {
            let cancel = view.in_flight.iter().map(|request| Action::Cancel(request.id));
            cancel.chain([fetch(0, view.head.0 + 1, view.head.0 + 1)]).collect()
        }),
        ("cancels everything at once", |view, calls| {
            let asked = fetch(0, view.head.0 + 1, view.best_height.min(view.head.0 + 100));
            // The number that the request gets, most likely.
            vec![asked, Action::Cancel(calls), Action::Cancel(calls + 1)]
        }),
        ("ruins every peer", |view, _| {
            let ruin =
                |peer: &tenon::sync::Peer| [Action::DropPeer(peer.id), Action::Penalise { peer: peer.id, points: 100 }];
            view.peers.iter().flat_map(ruin).collect()
        }),
    ];
    let mut sample = Sample::new(3, 10);
    let blocks = sample.blocks(2_500, 0);
    let source = TestSource::start(sample.genesis(), &blocks).await;
    for (name, malice) in malice {
        let strategy = Arc::new(Hostile { malice, calls: AtomicU64::new(0) });
        let status = follow(&[&source], &sample, Arc::clone(&strategy) as _).await;
        println!("{name}: {} calls, {} rescues", strategy.calls.load(Ordering::SeqCst), status.rescues);
    }
}
