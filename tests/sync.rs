//! Sync as an operator sees it: a follower with a real ledger, sources over real HTTP that are good, bad or mad, and
//! strategies that are any of these. Waits for statuses, never for time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use tenon::chain::{Block, Genesis, Hash, Kind, Payload, Transaction, verify};
use tenon::ledger::{Ledger, LedgerOptions};
use tenon::mempool::{Mempool, MempoolConfig, MempoolHook};
use tenon::sample::Sample;
use tenon::sync::follower::Follower;
use tenon::sync::http::HttpSource;
use tenon::sync::one_peer::OnePeer;
use tenon::sync::{
    Action, Event, HeightRange, OnDivergence, RequestId, Strategy as SyncStrategy, SyncConfig, SyncState, SyncStatus,
    View, forward,
};
use tokio::sync::watch;

#[path = "support/source.rs"]
mod source;
use source::{Fault, TestSource};

/// After this a wait has failed: far longer than anything here takes.
const HANG: Duration = Duration::from_secs(120);

fn config(sources: &[&TestSource]) -> SyncConfig {
    SyncConfig {
        sources: sources.iter().map(|source| source.url().to_owned()).collect(),
        poll_ms: 20,
        watchdog_ms: 100,
        request_timeout_ms: 400,
        backoff_max_ms: 300,
        ..SyncConfig::default()
    }
}

fn open(dir: &Path, genesis: &Genesis) -> Ledger {
    Ledger::open(LedgerOptions::new(dir.join("chain.db"), genesis.clone()), Vec::new()).unwrap()
}

async fn import(ledger: &Ledger, blocks: &[Block]) {
    for block in verify::verify_all(blocks.to_vec(), ledger.genesis()) {
        ledger.import(vec![block.unwrap()]).await.pop().unwrap().unwrap();
    }
}

/// Whether all blocks up to `height` are stored, and the follower has taken note.
fn is_at(status: &SyncStatus, height: u64) -> bool {
    status.head_height == height && status.waiting == 0
}

/// A follower that runs.
struct Running {
    ledger: Ledger,
    status: watch::Receiver<SyncStatus>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(ledger: &Ledger, config: SyncConfig, strategy: Arc<dyn SyncStrategy>) -> Self {
        let sources = HttpSource::all(&config).unwrap();
        let follower = Follower::new(ledger.clone(), strategy, sources, "this node".into(), config).unwrap();
        let (stop, stopped) = watch::channel(false);
        let status = follower.status();
        Self { ledger: ledger.clone(), status, stop, task: tokio::spawn(follower.run(stopped)) }
    }

    async fn until(&mut self, what: &str, condition: impl FnMut(&SyncStatus) -> bool) -> SyncStatus {
        let waited = tokio::time::timeout(HANG, self.status.wait_for(condition)).await;
        let waited = waited.map(|status| status.expect("the follower runs").clone());
        waited.unwrap_or_else(|_| panic!("waited in vain for {what}: {:#?}", *self.status.borrow()))
    }

    async fn until_live_at(&mut self, height: u64) -> SyncStatus {
        let what = format!("live at {height}");
        self.until(&what, |status| status.state == SyncState::Live && is_at(status, height)).await
    }

    /// Stops the follower, not the ledger.
    async fn stop(self) {
        self.stop.send(true).unwrap();
        tokio::time::timeout(HANG, self.task).await.expect("it stops").unwrap();
    }
}

/// One follower, one chain, to its head; answers the last status.
async fn follow(sources: &[&TestSource], sample: &Sample, strategy: Arc<dyn SyncStrategy>) -> SyncStatus {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    let mut running = Running::start(&ledger, config(sources), strategy);
    let status = running.until_live_at(sample.head().height).await;
    assert_eq!(running.ledger.head(), *sample.head(), "the state root is part of it");
    running.stop().await;
    ledger.stop();
    status
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_a_source_costs_it_and_the_blocks_come_from_another() {
    let faults = [
        Fault::Garbage,
        Fault::BadSignature,
        Fault::WrongHeights,
        Fault::Truncated,
        Fault::Oversized,
        Fault::TooMany,
        Fault::Empty,
        Fault::Silent,
        Fault::Stalls,
        Fault::Limited(30),
        Fault::Broken,
        Fault::OtherType,
    ];
    let mut sample = Sample::new(4, 10);
    let blocks = sample.blocks(300, 2);
    let good = TestSource::start(sample.genesis(), &blocks[..200]).await;
    for fault in faults {
        // The bad one has more blocks at first, so it is asked first.
        let bad = TestSource::start(sample.genesis(), &blocks).await;
        bad.set_fault(fault);
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path(), sample.genesis());
        let config = SyncConfig { range_blocks_max: 50, in_flight_per_peer_max: 2, ..config(&[&bad, &good]) };
        let mut running = Running::start(&ledger, config, Arc::new(OnePeer::default()));
        // Blocks above 200 may be here by then: some faults do not show at the end of a chain.
        let caught = |status: &SyncStatus| status.peers[1].blocks == 200 && status.peers[0].failures > 0;
        let status = running.until(&format!("{fault:?}"), caught).await;
        let [culprit, other] = &status.peers[..] else { panic!() };
        assert_eq!((culprit.blocks, other.blocks), (0, 200), "{fault:?}");
        assert!(culprit.reason.is_some() && status.failed_requests > 0, "{fault:?}: {culprit:#?}");
        assert!(fault == Fault::Limited(30) || culprit.score < 100, "{fault:?}: {culprit:#?}");
        // What only the bad one has comes from it once it is good again.
        bad.set_fault(Fault::None);
        let status = running.until_live_at(300).await;
        assert_eq!(status.peers[0].blocks, 100, "{fault:?}");
        assert_eq!(ledger.head(), *sample.head());
        running.stop().await;
        ledger.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_whose_limits_refuse_everything_is_still_asked() {
    let mut sample = Sample::new(5, 1);
    let blocks = sample.blocks(30, 1);
    for refusal in [Fault::Limited(3_600), Fault::Refuses(429), Fault::Refuses(403)] {
        let source = TestSource::start(sample.genesis(), &blocks).await;
        source.set_fault(Fault::Empty);
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path(), sample.genesis());
        let mut running = Running::start(&ledger, config(&[&source]), Arc::new(OnePeer::default()));
        running.until("a head to go for", |status| status.best_height == 30).await;
        source.set_fault(refusal);
        let mut requests = source.requests();
        let before = *requests.borrow_and_update();
        tokio::time::timeout(HANG, requests.wait_for(|count| *count >= before + 5)).await.unwrap().unwrap();
        source.set_fault(Fault::None);
        assert!(running.until_live_at(30).await.rescues >= 3, "{refusal:?}");
        running.stop().await;
        ledger.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_breaks_a_rule_of_the_state_costs_who_sent_it() {
    let mut sample = Sample::new(6, 4);
    let blocks = sample.blocks(40, 2);
    // Signed by the authority, as only a broken one would: the state root is wrong.
    let mut wrong = blocks.clone();
    let mut header = wrong[19].header.clone();
    header.state_root = Hash([7; 32]);
    wrong[19] = Block::signed(header, wrong[19].transactions.clone(), sample.authority());
    let bad = TestSource::start(sample.genesis(), &wrong[..20]).await;
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    let good = TestSource::start(sample.genesis(), &[]).await;
    let mut running = Running::start(&ledger, config(&[&bad, &good]), Arc::new(OnePeer::default()));
    let status = running.until("the wrong block", |status| status.problem.is_some() && status.head_height == 19).await;
    let problem = status.problem.unwrap();
    assert!(problem.contains("block 20") && problem.contains("state_root") && problem.contains(bad.url()), "{problem}");
    assert!(status.peers[0].failures > 0 && status.state != SyncState::Behind);
    good.extend(&blocks);
    let status = running.until("the head", |status| is_at(status, 40)).await;
    assert_eq!(ledger.head(), *sample.head());
    assert_eq!(status.problem, None);
    // The bad one has another block 20 than we now, validly signed: that is for the operator to know.
    let status = running.until("diverged", |status| status.state == SyncState::Diverged).await;
    assert_eq!(status.diverged.unwrap().height, 20);
    running.stop().await;
}

/// Two chains that are the same up to block 10, of different lengths above.
fn rivals(ours: usize, theirs: usize) -> (Sample, Vec<Block>, Vec<Block>) {
    let (mut sample, mut rival) = (Sample::new(7, 5), Sample::new(7, 5));
    let mut our_blocks = sample.blocks(10, 1);
    let mut their_blocks = rival.blocks(10, 1);
    our_blocks.extend(sample.blocks(ours - 10, 1));
    their_blocks.extend(rival.blocks(theirs - 10, 2));
    (sample, our_blocks, their_blocks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_with_other_blocks_is_reported_with_the_first_one_that_differs() {
    for (ours, theirs) in [(30, 30), (30, 20), (30, 70), (11, 11), (11, 12)] {
        let (sample, our_blocks, their_blocks) = rivals(ours, theirs);
        let source = TestSource::start(sample.genesis(), &their_blocks).await;
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path(), sample.genesis());
        import(&ledger, &our_blocks).await;
        let config = SyncConfig { on_divergence: OnDivergence::Halt, ..config(&[&source]) };
        let mut running = Running::start(&ledger, config, Arc::new(OnePeer::default()));
        let status = running.until("diverged", |status| status.state == SyncState::Diverged).await;
        assert!(status.diverged_since.is_some());
        let diverged = status.diverged.unwrap();
        assert_eq!((diverged.height, diverged.peer.as_str()), (11, source.url()), "{ours} {theirs}");
        assert_eq!((diverged.ours, diverged.theirs), (our_blocks[10].hash(), their_blocks[10].hash()));
        assert_eq!(ledger.head(), *sample.head(), "our chain is as it was");
        // Once the source has our chain, all is well again.
        source.replace(&our_blocks);
        let status = running.until_live_at(ours as u64).await;
        assert_eq!(status.diverged, None);
        running.stop().await;
        ledger.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_divergence_that_is_only_claimed_is_not_believed() {
    let mut sample = Sample::new(8, 5);
    let blocks = sample.blocks(20, 1);
    let liar = TestSource::start(sample.genesis(), &blocks).await;
    liar.claim(Some((15, Hash([9; 32]))));
    let honest = TestSource::start(sample.genesis(), &blocks).await;
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    let mut running = Running::start(&ledger, config(&[&liar, &honest]), Arc::new(OnePeer::default()));
    running.until_live_at(20).await;
    // Its block 15 is ours, whatever it says of its head.
    let mut forged = blocks.clone();
    forged[14].header.state_root = Hash([1; 32]);
    liar.replace(&forged);
    let status = running.until("a penalty", |status| status.peers[0].score < 100).await;
    assert_eq!((status.state, &status.diverged), (SyncState::Live, &None));
    assert!(status.peers[0].reason.as_ref().unwrap().contains("block 15 is not valid"), "{status:#?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_ahead_of_its_sources_says_so() {
    let mut sample = Sample::new(9, 5);
    let blocks = sample.blocks(30, 1);
    let source = TestSource::start(sample.genesis(), &blocks[..12]).await;
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    import(&ledger, &blocks).await;
    let mut running = Running::start(&ledger, config(&[&source]), Arc::new(OnePeer::default()));
    let status = running.until("ahead", |status| status.state == SyncState::Ahead).await;
    assert_eq!((status.head_height, status.best_height, status.lag_blocks), (30, 12, 0));
    source.extend(&blocks[12..]);
    running.until_live_at(30).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_nobody_can_show_does_not_stop_the_sync_to_the_real_one() {
    let mut sample = Sample::new(10, 5);
    let blocks = sample.blocks(500, 1);
    let liar = TestSource::start(sample.genesis(), &blocks[..100]).await;
    liar.claim(Some((1_000_000_000, Hash([9; 32]))));
    let honest = TestSource::start(sample.genesis(), &blocks).await;
    let status = follow(&[&liar, &honest], &sample, Arc::new(OnePeer::default())).await;
    assert_eq!(status.best_height, 500);
    // Alone, it keeps the node from calling itself live.
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    let mut running = Running::start(&ledger, config(&[&liar]), Arc::new(OnePeer::default()));
    let status = running.until("what there is", |status| is_at(status, 100) && status.peers[0].failures > 2).await;
    assert_eq!((status.state, status.best_height), (SyncState::Syncing, 1_000_000_000));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_must_not_be_used_is_refused_by_name() {
    let sample = Sample::new(11, 1);
    let cases = [
        ("this node itself", None, None, Some("this node")),
        ("`elsewhere`", Some("elsewhere"), None, None),
        ("genesis", None, Some(Hash([3; 32])), None),
    ];
    for (word, chain_id, genesis_hash, node_id) in cases {
        let mut longer = Sample::new(11, 1);
        let source = TestSource::start(sample.genesis(), &longer.blocks(5, 0)).await;
        source.introduce(chain_id, genesis_hash, node_id);
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path(), sample.genesis());
        let mut running = Running::start(&ledger, config(&[&source]), Arc::new(OnePeer::default()));
        let status = running.until(word, |status| status.state == SyncState::NoSource).await;
        let [peer] = &status.peers[..] else { panic!() };
        assert!(peer.standing == "refused" && peer.reason.as_ref().unwrap().contains(word), "{peer:?}");
        assert_eq!((ledger.head().height, *source.requests().borrow()), (0, 0));
        running.stop().await;
        ledger.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_not_there_is_waited_for() {
    let mut sample = Sample::new(12, 1);
    let blocks = sample.blocks(5, 0);
    let gone = TestSource::start(sample.genesis(), &blocks).await;
    let config = config(&[&gone]);
    drop(gone);
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    let mut running = Running::start(&ledger, config, Arc::new(OnePeer::default()));
    let status = running.until("no source", |status| status.state == SyncState::NoSource).await;
    assert_eq!(status.peers[0].standing, "down");
    running.stop().await;
    // Without sources a node follows nobody.
    let mut alone = Running::start(&ledger, SyncConfig::default(), Arc::new(OnePeer::default()));
    alone.until("authority", |status| status.state == SyncState::Authority).await;
    alone.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_buffers_stay_within_their_bytes() {
    let mut sample = Sample::new(13, 20);
    // Blocks of 70 KB, so that a budget of 1 MiB is a dozen of them.
    let to = tenon::chain::Address::of(&sample.accounts()[0].public_key());
    let chain_id = sample.genesis().chain_id.clone();
    let blocks: Vec<_> = (0..120)
        .map(|nonce| {
            let payload = Payload::Text("x".repeat(60_000));
            let message = Transaction::new(Kind::Message, to, 0, 1, nonce, payload);
            let message = message.signed(&chain_id, &sample.accounts()[1]);
            sample.block_with(vec![message])
        })
        .collect();
    let source = TestSource::start(sample.genesis(), &blocks).await;
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    let config = SyncConfig { buffer_bytes_max: 1 << 20, ..config(&[&source]) };
    let bound = config.buffer_bytes_max + 2 * (70 << 10);
    let mut running = Running::start(&ledger, config, Arc::new(OnePeer::default()));
    let mut most = 0;
    let status = running
        .until("the head", |status| {
            most = most.max(status.buffered_bytes);
            is_at(status, 120)
        })
        .await;
    assert!(most <= bound, "{most} bytes at most, {bound} allowed");
    assert_eq!(ledger.head(), *sample.head());
    assert_eq!(status.refused_actions, 0, "what the limits allow has room");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pending_transactions_are_handed_to_the_source() {
    let mut sample = Sample::new(14, 4);
    let blocks = sample.blocks(3, 0);
    let source = TestSource::start(sample.genesis(), &blocks).await;
    let dir = tempfile::tempdir().unwrap();
    let hook = MempoolHook::new();
    let handle = hook.handle();
    let options = LedgerOptions::new(dir.path().join("chain.db"), (**sample.genesis()).clone());
    let ledger = Ledger::open(options, vec![Box::new(hook)]).unwrap();
    let mempool = Mempool::open(ledger.clone(), handle, MempoolConfig::default()).unwrap();
    let config = config(&[&source]);
    let follower = Follower::new(
        ledger.clone(),
        Arc::new(OnePeer::default()),
        HttpSource::all(&config).unwrap(),
        "this node".into(),
        config.clone(),
    )
    .unwrap();
    let (stop, stopped) = watch::channel(false);
    let chain_id = sample.genesis().chain_id.clone();
    let forwarder = forward::run(mempool.clone(), chain_id.clone(), follower.usable(), config, stopped.clone());
    let tasks = [tokio::spawn(forwarder), tokio::spawn(follower.run(stopped))];
    let to = tenon::chain::Address::of(&sample.accounts()[0].public_key());
    let mut sent = Vec::new();
    for nonce in 0..5 {
        for sender in 1..4 {
            let transaction = Transaction::new(Kind::Transfer, to, 1, 1, nonce, Payload::Absent);
            sent.push(transaction.signed(&chain_id, &sample.accounts()[sender]));
            mempool.submit_transaction(sent.last().unwrap().clone()).await.unwrap();
        }
    }
    let mut submitted = source.submitted();
    let came = tokio::time::timeout(HANG, submitted.wait_for(|came| came.len() == sent.len())).await;
    let came = came.expect("all of them come").unwrap().clone();
    let came: Vec<_> = came
        .iter()
        .map(|json| tenon::chain::Submission::parse(json).unwrap().into_transaction(None).unwrap())
        .collect();
    for transaction in &sent {
        assert!(came.contains(transaction));
    }
    for sender in 1..4 {
        let key = sample.accounts()[sender].public_key();
        let nonces = came.iter().filter(|transaction| transaction.public_key == key).map(|t| t.nonce);
        assert!(nonces.is_sorted(), "one sender's come in order");
    }
    stop.send(true).unwrap();
    for task in tasks {
        tokio::time::timeout(HANG, task).await.unwrap().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_stop_at_any_moment_loses_nothing(stops in prop::collection::vec(0..600_u64, 1..5)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut sample = Sample::new(15, 10);
            let blocks = sample.blocks(600, 1);
            let source = TestSource::start(sample.genesis(), &blocks).await;
            let dir = tempfile::tempdir().unwrap();
            let config = SyncConfig { range_blocks_max: 16, in_flight_per_peer_max: 3, ..config(&[&source]) };
            for stop in stops {
                let ledger = open(dir.path(), sample.genesis());
                let before = ledger.head();
                let mut running = Running::start(&ledger, config.clone(), Arc::new(OnePeer::default()));
                running.until("the moment", |status| status.head_height >= stop).await;
                running.stop().await;
                let after = ledger.head();
                assert!(after.height >= before.height.max(stop));
                ledger.stop();
                drop(ledger);
            }
            let ledger = open(dir.path(), sample.genesis());
            let mut running = Running::start(&ledger, config, Arc::new(OnePeer::default()));
            running.until_live_at(600).await;
            assert_eq!(ledger.head(), *sample.head());
            running.stop().await;
            ledger.stop();
        });
    }
}
