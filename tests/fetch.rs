//! Downloads of snapshots: from several sources at once, with liars, cowards and dead ones among them, and begun again.

#[path = "support/chain.rs"]
mod chain;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chain::{Chain, open, small};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use proptest::prelude::*;
use tenon::chain::{Genesis, Hash, Head, Time};
use tenon::snapshot::export::ExportOptions;
use tenon::snapshot::fetch::{FetchError, FetchEvent, FetchOptions, obtain};
use tenon::snapshot::install::install;
use tenon::snapshot::source::{ChunkSource, Failure, Offer};
use tenon::snapshot::{Snapshot, SnapshotError};

/// How a source behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    /// As it should.
    Honest,
    /// A bit of chunk N is another one.
    FlipsBit(usize),
    /// Chunk N ends too early.
    Cuts(usize),
    /// Chunk N goes on for longer than it should.
    Swells(usize),
    /// Every chunk is the first.
    Repeats,
    /// The manifest is not the one of the id.
    OtherManifest,
    /// It lists snapshots, and then has none.
    Forgets,
    /// The first N requests for chunks fail.
    Fails(usize),
    /// The first N requests for chunks come too soon.
    Limits(usize),
    /// It lists its snapshot as one of a higher block.
    Boasts,
    /// Nobody there.
    Dead,
}

struct Served {
    name: String,
    snapshot: Snapshot,
    manner: Manner,
    asked: AtomicUsize,
    /// The chunks that it was asked for.
    chunks: Mutex<Vec<usize>>,
}

impl Served {
    fn new(name: &str, folder: &Path, manner: Manner) -> Arc<Self> {
        let (name, snapshot) = (name.to_owned(), Snapshot::open(folder).unwrap());
        Arc::new(Self { name, snapshot, manner, asked: AtomicUsize::new(0), chunks: Mutex::default() })
    }

    fn sent(&self, index: usize) -> Result<Vec<u8>, Failure> {
        self.chunks.lock().unwrap().push(index);
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        let mut stored = self.snapshot.stored(index).unwrap();
        match self.manner {
            Manner::FlipsBit(at) if at == index => stored[7] ^= 2,
            Manner::Cuts(at) if at == index => stored.truncate(stored.len() / 2),
            Manner::Swells(at) if at == index => {
                return Err(Failure::Lied("sends more than the bytes that were asked for".into()));
            }
            Manner::Repeats => stored = self.snapshot.stored(0).unwrap(),
            Manner::Forgets => return Err(Failure::Missing("no such snapshot".into())),
            Manner::Fails(first) if asked < first => return Err(Failure::Unreachable("reset".into())),
            Manner::Limits(first) if asked < first => return Err(Failure::Limited { retry_after_ms: 1 }),
            _ => {}
        }
        Ok(stored)
    }
}

impl ChunkSource for Served {
    fn name(&self) -> &str {
        &self.name
    }

    fn offers(&self) -> BoxFuture<'_, Result<Vec<Offer>, Failure>> {
        let manifest = self.snapshot.manifest();
        let more = if self.manner == Manner::Boasts { 1_000 } else { 0 };
        let offer = Offer { id: self.snapshot.id(), height: manifest.height + more, hash: manifest.block_hash };
        let answer =
            if self.manner == Manner::Dead { Err(Failure::Unreachable("refused".into())) } else { Ok(vec![offer]) };
        async move { answer }.boxed()
    }

    fn manifest(&self, id: Hash) -> BoxFuture<'_, Result<Vec<u8>, Failure>> {
        assert_eq!(id, self.snapshot.id());
        let mut manifest = self.snapshot.manifest().clone();
        if self.manner == Manner::OtherManifest {
            manifest.accounts += 1;
        }
        async move { Ok(manifest.to_bytes()) }.boxed()
    }

    fn chunk(&self, id: Hash, index: usize, _: u64) -> BoxFuture<'_, Result<Vec<u8>, Failure>> {
        assert_eq!(id, self.snapshot.id());
        async move { self.sent(index) }.boxed()
    }
}

fn options() -> FetchOptions {
    FetchOptions { pause: Duration::from_millis(1), ..FetchOptions::default() }
}

fn sources(served: &[Arc<Served>]) -> Vec<Arc<dyn ChunkSource>> {
    served.iter().map(|source| Arc::clone(source) as Arc<dyn ChunkSource>).collect()
}

/// Downloads into `dir` and installs beside it; what happened, and what came of it.
async fn get(served: &[Arc<Served>], genesis: &Genesis, dir: &Path) -> (Vec<FetchEvent>, Result<Head, FetchError>) {
    let mut events = Vec::new();
    let database = dir.with_extension("db");
    let install = async |snapshot| install(&snapshot, &database, genesis, Time::now(), |_| {});
    let outcome = obtain(&sources(served), genesis, dir, &options(), |event| events.push(event), install).await;
    (events, outcome)
}

fn left(events: &[FetchEvent]) -> BTreeSet<String> {
    let left = |event: &FetchEvent| match event {
        FetchEvent::Left { source, .. } => Some(source.clone()),
        _ => None,
    };
    events.iter().filter_map(left).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn several_sources_share_the_work_and_each_liar_is_named_and_left() {
    let chain = Chain::new(1, 90, 30, 4).await;
    let genesis = chain.genesis();
    let folder = chain.path("s");
    let options = ExportOptions { chunk_bytes: 800, ..small(6) };
    let chunks = chain.export("s", options).unwrap().manifest().chunks.len();
    assert!(chunks >= 12, "{chunks}");
    let lies = [
        Manner::FlipsBit(0),
        Manner::Cuts(0),
        Manner::Swells(0),
        Manner::Repeats,
        Manner::OtherManifest,
        Manner::Forgets,
        Manner::Boasts,
        Manner::Dead,
    ];
    for (n, lie) in lies.into_iter().enumerate() {
        // The liar first, so that it is asked first.
        let served = [
            Served::new("bad", &folder, lie),
            Served::new("slow to start", &folder, Manner::Fails(3)),
            Served::new("busy", &folder, Manner::Limits(9)),
            Served::new("good", &folder, Manner::Honest),
        ];
        let dir = chain.path(&format!("fetch-{n}"));
        let (events, head) = get(&served, &genesis, &dir).await;
        assert_eq!(head.unwrap(), chain.ledger.head(), "{lie:?}");
        assert_eq!(left(&events), ["bad".to_owned()].into(), "{lie:?}: {events:?}");
        assert!(!dir.exists(), "what was downloaded is used up");
        let asked: usize = served[1..].iter().map(|source| source.chunks.lock().unwrap().len()).sum();
        assert!(asked >= chunks - 1, "{lie:?}: {asked}");
        if lie == Manner::Dead {
            let shares: Vec<usize> = served.iter().map(|source| source.chunks.lock().unwrap().len()).collect();
            assert!(shares[1..].iter().all(|share| *share > 0), "{shares:?}");
        }
        let copy = open(&dir.with_extension("db"), &genesis);
        assert_eq!(copy.head(), chain.ledger.head());
        copy.stop();
    }
    // Liars alone give nothing, and are all named.
    let served = [Served::new("a", &folder, Manner::FlipsBit(0)), Served::new("b", &folder, Manner::Repeats)];
    let (_, outcome) = get(&served, &genesis, &chain.path("none")).await;
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("a: sends another chunk 0") && error.contains("b: sends another chunk"), "{error}");
    assert!(!chain.path("none.db").exists());
    chain.ledger.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_with_the_chunks_that_it_has() {
    let chain = Chain::new(2, 60, 20, 3).await;
    let genesis = chain.genesis();
    let folder = chain.path("s");
    let snapshot = chain.export("s", small(3)).unwrap();
    let chunks = snapshot.manifest().chunks.len();
    let dir = chain.path("fetch");
    // The only source forgets the snapshot on the way.
    let forgets = Served::new("forgets", &folder, Manner::Honest);
    struct Until(Arc<Served>, AtomicUsize);
    impl ChunkSource for Until {
        fn name(&self) -> &str {
            "until"
        }
        fn offers(&self) -> BoxFuture<'_, Result<Vec<Offer>, Failure>> {
            self.0.offers()
        }
        fn manifest(&self, id: Hash) -> BoxFuture<'_, Result<Vec<u8>, Failure>> {
            self.0.manifest(id)
        }
        fn chunk(&self, id: Hash, index: usize, bytes: u64) -> BoxFuture<'_, Result<Vec<u8>, Failure>> {
            let left = self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            if left.is_err() {
                return async { Err(Failure::Missing("gone".into())) }.boxed();
            }
            self.0.chunk(id, index, bytes)
        }
    }
    let sources: Vec<Arc<dyn ChunkSource>> = vec![Arc::new(Until(forgets, (chunks / 2).into()))];
    let outcome = obtain(&sources, &genesis, &dir, &options(), |_| {}, async |_| unreachable!("not all is here")).await;
    let error = outcome.unwrap_err();
    assert!(matches!(error, FetchError::NoSource { of, .. } if of == chunks), "{error}");
    let kept = fs::read_dir(dir.join(const_hex::encode(snapshot.id().0))).unwrap().count() - 1;
    assert!(kept >= chunks / 2, "{kept} of {chunks}");
    // One of them goes bad on the disk meanwhile.
    let bad = dir.join(const_hex::encode(snapshot.id().0)).join("000000.chunk");
    let mut bytes = fs::read(&bad).unwrap();
    bytes[9] ^= 1;
    fs::write(&bad, bytes).unwrap();

    let good = Served::new("good", &folder, Manner::Honest);
    let (events, head) = get(std::slice::from_ref(&good), &genesis, &dir).await;
    assert_eq!(head.unwrap(), chain.ledger.head());
    let asked = good.chunks.lock().unwrap().clone();
    assert!(asked.contains(&0) && asked.len() == chunks - (kept - 1), "{asked:?}: {kept} of {chunks} were here");
    assert!(matches!(events[0], FetchEvent::Chosen { kept: k, .. } if k.chunks == kept - 1), "{:?}", events[0]);
    chain.ledger.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_does_not_hold_is_given_up_for_one_that_does() {
    let mut chain = Chain::new(3, 40, 10, 3).await;
    let genesis = chain.genesis();
    chain.export("low", small(1)).unwrap();
    chain.grow(5, 3).await;
    let high = chain.export("high", small(1)).unwrap();
    // The higher one, all its hashes right, with an account that is richer than it is.
    let forged = chain.path("forged");
    fs::create_dir(&forged).unwrap();
    let mut manifest = high.manifest().clone();
    let last = manifest.chunks.len() - 1;
    for index in 0..=last {
        let mut stored = high.stored(index).unwrap();
        if index == last {
            let mut content = high.content(index).unwrap();
            content[24] ^= 1;
            stored = zstd::bulk::compress(&content, 3).unwrap();
            manifest.chunks[index].bytes = stored.len() as u64;
            manifest.chunks[index].sha256 = Hash::of(&[&stored]);
        }
        fs::write(forged.join(format!("{index:06}.chunk")), stored).unwrap();
    }
    fs::write(forged.join("manifest.json"), manifest.to_bytes()).unwrap();

    let served = [Served::new("liar", &forged, Manner::Honest), Served::new("low", &chain.path("low"), Manner::Honest)];
    let (events, head) = get(&served, &genesis, &chain.path("fetch")).await;
    assert_eq!(head.unwrap().height, 10);
    let refused = events.iter().find_map(|event| match event {
        FetchEvent::Refused { id, reason } => Some((*id, reason.clone())),
        _ => None,
    });
    let (id, reason) = refused.unwrap();
    assert!(id == Snapshot::open(&forged).unwrap().id() && reason.contains("state root"), "{reason}");
    // Of the block that was asked for, and no other.
    let low = Snapshot::open(&chain.path("low")).unwrap().manifest().block_hash;
    let options = FetchOptions { block_hash: Some(low), ..options() };
    let served = [Served::new("high", &chain.path("high"), Manner::Honest)];
    let never = async |_| unreachable!("there is none to install");
    let outcome = obtain(&sources(&served), &genesis, &chain.path("x"), &options, |_| {}, never).await;
    assert!(matches!(outcome, Err(FetchError::NoOffer { .. })));
    // A node that has blocks is no reason to look further.
    let served = [Served::new("high", &chain.path("high"), Manner::Honest)];
    let full = async |_| Err(SnapshotError::NotEmpty { path: "here".into(), height: 3 });
    let outcome = obtain(&sources(&served), &genesis, &chain.path("y"), &self::options(), |_| {}, full).await;
    assert!(matches!(outcome, Err(FetchError::Snapshot(SnapshotError::NotEmpty { .. }))));
    assert!(chain.path("y").exists(), "what is here is kept");
    chain.ledger.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_runs_downloads_and_takes_over_in_a_task_of_its_own() {
    let chain = Chain::new(4, 30, 12, 2).await;
    let genesis = chain.genesis();
    chain.export("s", small(1)).unwrap();
    let ledger = open(&chain.path("new.db"), &genesis);
    let served = sources(&[Served::new("a", &chain.path("s"), Manner::Honest)]);
    let (dir, taking) = (chain.path("fetch"), ledger.clone());
    let task = tokio::spawn(async move {
        let install = |snapshot| {
            let taking = taking.clone();
            async move { taking.install_snapshot(snapshot, Time::now(), |_| {}).await }
        };
        obtain(&served, &genesis, &dir, &options(), |_| {}, install).await
    });
    assert_eq!(task.await.unwrap().unwrap(), chain.ledger.head());
    assert_eq!(ledger.head(), chain.ledger.head());
    ledger.stop();
    chain.ledger.stop();
}

/// Any manner but those that never end well.
fn manner() -> impl Strategy<Value = Manner> {
    prop_oneof![
        Just(Manner::Honest),
        (0_usize..12).prop_map(Manner::FlipsBit),
        (0_usize..12).prop_map(Manner::Cuts),
        (0_usize..12).prop_map(Manner::Swells),
        Just(Manner::Repeats),
        Just(Manner::OtherManifest),
        Just(Manner::Forgets),
        Just(Manner::Boasts),
        (0_usize..20).prop_map(Manner::Fails),
        (0_usize..20).prop_map(Manner::Limits),
        Just(Manner::Dead),
    ]
}

#[test]
fn one_honest_source_among_any_others_is_enough_and_is_never_left() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let chain = runtime.block_on(Chain::new(5, 50, 14, 3));
    let genesis = chain.genesis();
    chain.export("s", small(2)).unwrap();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(60));
    let round = AtomicUsize::new(0);
    runner
        .run(&(prop::collection::vec(manner(), 0..5), any::<prop::sample::Index>()), |(mut manners, place)| {
            let place = place.index(manners.len() + 1);
            manners.insert(place, Manner::Honest);
            let served: Vec<_> = manners
                .iter()
                .enumerate()
                .map(|(n, manner)| Served::new(&format!("{n}"), &chain.path("s"), *manner))
                .collect();
            let dir = chain.path(&format!("fetch-{}", round.fetch_add(1, Ordering::Relaxed)));
            let (events, head) = runtime.block_on(get(&served, &genesis, &dir));
            prop_assert_eq!(head.unwrap(), chain.ledger.head());
            let left = left(&events);
            for (n, manner) in manners.iter().enumerate() {
                let may_be_left = !matches!(manner, Manner::Honest | Manner::Limits(_));
                prop_assert!(may_be_left || !left.contains(&n.to_string()), "{:?}: {:?}", manners, events);
            }
            Ok(())
        })
        .unwrap();
    chain.ledger.stop();
}
