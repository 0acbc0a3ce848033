//! Snapshots: what is exported can be loaded, is the same wherever it was made, and nothing else can be loaded.

#[path = "support/chain.rs"]
mod chain;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chain::{Chain, open, small};
use sha2::{Digest, Sha256};
use tenon::chain::{Address, Genesis, Hash, Head, Height, Kind, Payload, Time, Transaction, verify};
use tenon::ledger::{Imported, Ledger, LedgerOptions};
use tenon::mempool::{Mempool, MempoolConfig, MempoolHook, TransactionStatus};
use tenon::sample::Sample;
use tenon::snapshot::export::ExportOptions;
use tenon::snapshot::install::install;
use tenon::snapshot::load::load;
use tenon::snapshot::{ChunkKind, Manifest, Snapshot, SnapshotError};
use tenon::storage::{Storage, StoredAccount};

fn accounts(storage: &Storage) -> Vec<(Address, StoredAccount)> {
    let mut accounts = Vec::new();
    storage
        .read(|reader| {
            reader.each_stored_account(|address, account| {
                accounts.push((address, account));
                Ok::<(), tenon::storage::StorageError>(())
            })
        })
        .unwrap();
    accounts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_begins_with_a_snapshot_and_goes_on_with_the_chain() {
    let mut chain = Chain::new(1, 9, 40, 3).await;
    let genesis = chain.genesis();
    for (name, blocks, base) in [("a.snapshot", 1, 40), ("folder", 7, 34), ("all.snapshot", u64::MAX, 0)] {
        let snapshot = chain.export(name, small(blocks)).unwrap();
        assert_eq!((snapshot.manifest().height, snapshot.manifest().accounts), (40, 9), "{name}");
        let path = chain.path(&format!("{name}.db"));
        let head = install(&snapshot, &path, &genesis, Time::now(), |_| {}).unwrap();
        assert_eq!(head, chain.ledger.head());

        // Opening rebuilds the state and checks its root.
        let copy = open(&path, &genesis);
        assert_eq!(copy.head(), head);
        assert_eq!(accounts(copy.storage()), accounts(chain.ledger.storage()));
        copy.storage()
            .read(|reader| {
                assert_eq!(reader.base()?, base);
                for height in 0..=40 {
                    let whole = height == 0 || height >= base;
                    let ours = chain.ledger.storage().read(|reader| reader.block(height))?.unwrap();
                    assert_eq!(reader.block(height)?, whole.then(|| ours.clone()), "{name}: {height}");
                    assert_eq!(reader.hash_at(height)?, Some(ours.hash()));
                    assert_eq!(reader.block_height(&ours.hash())?, Some(height));
                    let found = ours.transactions.first().map(|tx| tx.hash(&genesis.chain_id));
                    if let Some(hash) = found {
                        assert_eq!(reader.transaction(&hash)?.map(|found| found.height), whole.then_some(height));
                    }
                }
                Ok(())
            })
            .unwrap();
        copy.stop();
    }
    // The next blocks follow, with the same roots.
    let more = chain.grow(5, 3).await;
    for name in ["a.snapshot", "folder", "all.snapshot"] {
        let copy = open(&chain.path(&format!("{name}.db")), &genesis);
        assert!(copy.import(more.clone()).await.iter().all(|answer| *answer == Ok(Imported::Extended)));
        assert_eq!(copy.head(), chain.ledger.head());
        // A block below the snapshot is known by its hash, and another one there is told apart.
        let old = chain.ledger.storage().read(|reader| reader.block(20)).unwrap().unwrap();
        let old = verify::verify(old, &genesis).unwrap();
        assert_eq!(copy.import(vec![old]).await, [Ok(Imported::Known)]);
        copy.stop();
    }
    chain.ledger.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_block_is_the_same_wherever_and_whenever_it_is_made() {
    let mut chain = Chain::new(2, 20, 30, 2).await;
    let genesis = chain.genesis();
    let then = chain.export("then", small(2)).unwrap();
    // Now the block lies below the head, and accounts that send for the first time come after it.
    chain.grow(12, 9).await;
    let at = ExportOptions { height: Some(30), ..small(2) };
    assert_eq!(chain.export("later", at).unwrap().id(), then.id());
    // A node that began with it makes it too, as long as it has it.
    let path = chain.path("copy.db");
    install(&then, &path, &genesis, Time::now(), |_| {}).unwrap();
    let copy = Chain { dir: tempfile::tempdir().unwrap(), sample: Sample::new(2, 20), ledger: open(&path, &genesis) };
    assert_eq!(copy.export("again.snapshot", small(2)).unwrap().id(), then.id());
    let error = copy.export("more", small(3)).unwrap_err().to_string();
    assert!(error.contains("block 28 is not here: the blocks of this node begin at height 29"), "{error}");
    assert!(!copy.path("more").exists() && !copy.path("more.stage").exists());
    for (height, part) in [(0, "expected a block from 1"), (43, "expected a block from 1 to the head, 42")] {
        let error = chain.export("none", ExportOptions { height: Some(height), ..small(1) }).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert!(matches!(chain.export("then", small(1)), Err(SnapshotError::Io { .. })), "nothing is overwritten");
    copy.ledger.stop();
    chain.ledger.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_and_is_below_the_snapshot_is_dropped_with_the_reason() {
    let mut chain = Chain::new(4, 6, 2, 0).await;
    let blocks = chain.grow(20, 4).await;
    let (genesis, folder) = (chain.genesis(), chain.path("s"));
    chain.export("s", small(1)).unwrap();
    let hook = MempoolHook::new();
    let handle = hook.handle();
    let options = LedgerOptions::new(chain.path("new.db"), genesis.clone());
    let ledger = Ledger::open(options, vec![Box::new(hook)]).unwrap();
    let mempool = Mempool::open(ledger.clone(), handle, MempoolConfig::default()).unwrap();
    // The first of its sender, which is in a block already; and one that can still happen.
    let transactions = || blocks.iter().flat_map(|block| &block.block().transactions);
    let old = transactions().find(|tx| tx.nonce == 0).unwrap().clone();
    let key = chain.sample.accounts().iter().find(|key| Address::of(&key.public_key()) == old.from()).unwrap();
    let fresh = Transaction::new(Kind::Transfer, old.to, 1, 100, 1_000_000, Payload::Absent);
    let fresh = fresh.signed(&genesis.chain_id, key);
    let old = mempool.submit_transaction(old).await.unwrap();
    let fresh = mempool.submit_transaction(fresh).await.unwrap();
    ledger.install_snapshot(Snapshot::open(&folder).unwrap(), Time::now(), |_| {}).await.unwrap();
    let Some(TransactionStatus::Dropped { reason, .. }) = mempool.get(&old) else { panic!("it is dropped") };
    assert!(reason.contains("nonce"), "{reason}");
    assert!(matches!(mempool.get(&fresh), Some(TransactionStatus::Pending(_))));
    assert_eq!(mempool.len(), 1);
    ledger.stop();
    chain.ledger.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_node_takes_a_snapshot_over_only_without_blocks_and_only_whole() {
    let mut chain = Chain::new(3, 6, 25, 4).await;
    let genesis = chain.genesis();
    let (good, bad) = (chain.path("good"), chain.path("bad"));
    chain.export("good", small(1)).unwrap();
    chain.export("bad", small(1)).unwrap();
    let last = Snapshot::open(&bad).unwrap().manifest().chunks.len() - 1;
    damage(&bad.join(format!("{last:06}.chunk")), |bytes| bytes[30] ^= 4);

    let ledger = open(&chain.path("new.db"), &genesis);
    let before = ledger.head();
    // What was written before the damaged chunk, the last one, is taken back.
    let error = ledger.install_snapshot(Snapshot::open(&bad).unwrap(), Time::now(), |_| {}).await.unwrap_err();
    assert!(matches!(error, SnapshotError::Chunk { index, .. } if index == last), "{error}");
    assert_eq!(ledger.head(), before);
    let mut watch = ledger.watch();
    let head = ledger.install_snapshot(Snapshot::open(&good).unwrap(), Time::now(), |_| {}).await.unwrap();
    assert_eq!(head, chain.ledger.head());
    assert_eq!(*watch.borrow_and_update(), head, "who waits for the head is told");
    assert_eq!(ledger.look(|state, head| (state.root(), head.height)).await.unwrap(), (head.state_root, 25));
    let error = ledger.install_snapshot(Snapshot::open(&good).unwrap(), Time::now(), |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("the chain there is at block 25"), "{error}");
    let more = chain.grow(3, 4).await;
    assert!(ledger.import(more).await.iter().all(Result::is_ok));
    assert_eq!(ledger.head(), chain.ledger.head());
    ledger.stop();
    let again = open(&chain.path("new.db"), &genesis);
    assert_eq!(accounts(again.storage()), accounts(chain.ledger.storage()));
    again.stop();
    chain.ledger.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_with_blocks_is_not_replaced_and_one_without_is() {
    let chain = Chain::new(4, 3, 5, 1).await;
    let genesis = chain.genesis();
    let snapshot = chain.export("s", small(1)).unwrap();
    let (path, now) = (chain.path("chain.db"), Time::now());
    let refused = install(&snapshot, &path, &genesis, now, |_| {}).unwrap_err();
    assert!(refused.to_string().contains("in use"), "{refused}");
    chain.ledger.stop();
    let refused = install(&snapshot, &path, &genesis, now, |_| {}).unwrap_err();
    assert!(matches!(refused, SnapshotError::NotEmpty { height: 5, .. }), "{refused}");
    // One that holds the genesis alone, with a log beside it from a process that was killed.
    let fresh = chain.path("fresh.db");
    open(&fresh, &genesis).stop();
    fs::write(chain.path("fresh.db.part"), "left behind").unwrap();
    fs::write(chain.path("fresh.db.part-wal"), "left behind").unwrap();
    install(&snapshot, &fresh, &genesis, now, |_| {}).unwrap();
    assert!(!chain.path("fresh.db.part").exists() && !chain.path("fresh.db.part-wal").exists());
    let ledger = open(&fresh, &genesis);
    assert_eq!(ledger.head().height, 5);
    ledger.stop();
    // Another chain's snapshot is refused before anything is touched.
    let other = Sample::new(5, 3);
    let refused = install(&snapshot, &chain.path("other.db"), other.genesis(), now, |_| {}).unwrap_err();
    assert!(matches!(refused, SnapshotError::OtherChain(_)), "{refused}");
    assert!(!chain.path("other.db").exists());
}

fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Opens and loads all of a snapshot.
fn read(path: &Path, genesis: &Genesis) -> Result<Head, SnapshotError> {
    load(&Snapshot::open(path)?, genesis, Time::now(), |_| {}, |_| Ok(()))
}

/// A number below `below` that `of` decides.
fn pick(of: u64, below: usize) -> usize {
    let bytes: [u8; 8] = Sha256::digest(of.to_be_bytes())[..8].try_into().unwrap();
    usize::try_from(u64::from_be_bytes(bytes) % below as u64).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_damaged_snapshots_none_is_accepted() {
    let chain = Chain::new(6, 60, 12, 4).await;
    let genesis = chain.genesis();
    let whole = chain.export("whole", ExportOptions { chunk_bytes: 700, ..small(4) }).unwrap();
    let one = chain.path("whole.snapshot");
    whole.write_file(&one).unwrap();
    assert_eq!(read(&chain.path("whole"), &genesis).unwrap(), chain.ledger.head());
    assert_eq!(read(&one, &genesis).unwrap(), chain.ledger.head());
    let kinds = |kind| whole.manifest().chunks.iter().filter(|chunk| chunk.kind == kind).count();
    for kind in [ChunkKind::Headers, ChunkKind::Blocks, ChunkKind::Accounts] {
        assert!(kinds(kind) >= 2, "{kind}: {}", kinds(kind));
    }
    let files: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(chain.path("whole"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    let file = fs::read(&one).unwrap();
    let bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    let mut accepted = Vec::new();
    for round in 0..1_000_u64 {
        let (path, original, what) = if round % 2 == 0 {
            // In the one file.
            let (at, bit) = (pick(round, file.len()), pick(round + 1, 8));
            let mut damaged = file.clone();
            let what = match round % 20 {
                0 => {
                    damaged.truncate(at);
                    format!("cut at {at}")
                }
                2 => {
                    damaged.push(0);
                    "a byte more".to_owned()
                }
                _ => {
                    damaged[at] ^= 1 << bit;
                    format!("byte {at} bit {bit}")
                }
            };
            fs::write(&one, damaged).unwrap();
            (one.clone(), None, what)
        } else {
            // In the folder, each byte of all files as likely as another.
            let mut at = pick(round, bytes);
            let chosen = files.iter().find(|(_, bytes)| {
                let found = at < bytes.len();
                at -= if found { 0 } else { bytes.len() };
                found
            });
            let (path, original) = chosen.unwrap();
            let other = &files[pick(round + 2, files.len())];
            let what = match round % 20 {
                1 => {
                    fs::remove_file(path).unwrap();
                    "missing".to_owned()
                }
                3 => {
                    fs::write(path, &original[..at]).unwrap();
                    format!("cut at {at}")
                }
                5 if other.1 != *original => {
                    fs::write(path, &other.1).unwrap();
                    format!("in place of {}", other.0.display())
                }
                _ => {
                    let bit = pick(round + 1, 8);
                    damage(path, |bytes| bytes[at] ^= 1 << bit);
                    format!("byte {at} bit {bit}")
                }
            };
            (chain.path("whole"), Some((path, original)), format!("{}: {what}", path.display()))
        };
        match read(&path, &genesis) {
            Ok(_) => accepted.push(what),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        match original {
            Some((path, bytes)) => fs::write(path, bytes).unwrap(),
            None => fs::write(&one, &file).unwrap(),
        }
    }
    assert!(accepted.is_empty(), "{accepted:#?}");
    assert!(read(&chain.path("whole"), &genesis).is_ok() && read(&one, &genesis).is_ok(), "it was the damage");
    chain.ledger.stop();
}

/// Where the accounts in a chunk's content begin.
fn starts(content: &[u8]) -> Vec<usize> {
    let mut starts = vec![0];
    loop {
        let at = *starts.last().unwrap();
        let next = at + if content[at + 28..at + 36] == [0; 8] { 36 } else { 48 };
        if next == content.len() {
            return starts;
        }
        starts.push(next);
    }
}

/// A snapshot in a folder whose manifest is made to fit whatever is done to its chunks: what a liar serves.
struct Forged {
    folder: PathBuf,
    manifest: Manifest,
    contents: Vec<Vec<u8>>,
}

impl Forged {
    fn of(snapshot: &Snapshot, folder: PathBuf) -> Self {
        let manifest = snapshot.manifest().clone();
        let contents = (0..manifest.chunks.len()).map(|index| snapshot.content(index).unwrap()).collect();
        Self { folder, manifest, contents }
    }

    fn first(&self, kind: ChunkKind) -> usize {
        self.manifest.chunks.iter().position(|chunk| chunk.kind == kind).unwrap()
    }

    fn write(mut self) -> PathBuf {
        fs::create_dir_all(&self.folder).unwrap();
        for (index, content) in self.contents.iter().enumerate() {
            let stored = zstd::bulk::compress(content, 1).unwrap();
            let info = &mut self.manifest.chunks[index];
            info.content_bytes = content.len() as u64;
            info.bytes = stored.len() as u64;
            info.sha256 = Hash(Sha256::digest(&stored).into());
            fs::write(self.folder.join(format!("{index:06}.chunk")), stored).unwrap();
        }
        self.write_manifest()
    }

    fn write_manifest(self) -> PathBuf {
        fs::write(self.folder.join("manifest.json"), self.manifest.to_bytes()).unwrap();
        self.folder
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_liar_makes_fit_its_own_hashes_is_refused_by_what_it_is() {
    let mut chain = Chain::new(7, 60, 12, 4).await;
    let genesis = chain.genesis();
    let options = ExportOptions { chunk_bytes: 700, ..small(4) };
    let snapshot = chain.export("true", options).unwrap();
    chain.grow(1, 4).await;
    let other = chain.export("other", options).unwrap();
    let forge = |name: &str| Forged::of(&snapshot, chain.path(name));
    assert!(read(&forge("honest").write(), &genesis).is_ok(), "made by other settings, but true");

    type Lie<'a> = Box<dyn Fn(&mut Forged) + 'a>;
    let accounts = forge("x").first(ChunkKind::Accounts);
    let blocks = forge("x").first(ChunkKind::Blocks);
    let account_count = |f: &Forged| f.manifest.chunks[accounts].count;
    let lies: Vec<(&str, &str, Lie<'_>)> = vec![
        ("a richer account", "state root", Box::new(|f| f.contents[accounts][27] ^= 1)),
        // What was the rest of its key then reads as an account of its own, by luck in the right order.
        ("a key without the nonce that goes with it", "state root", Box::new(|f| f.contents[accounts][35] ^= 1)),
        ("an account left out", "state root", {
            Box::new(|f| {
                let last = f.manifest.chunks.len() - 1;
                let end = *starts(&f.contents[last]).last().unwrap();
                f.contents[last].truncate(end);
                f.manifest.chunks[last].count -= 1;
                f.manifest.accounts -= 1;
            })
        }),
        ("a count that is not the content's", "chunk", Box::new(|f| f.manifest.chunks[0].count -= 1)),
        ("accounts in another order", "comes after", {
            Box::new(|f| {
                let (a, b) = (f.contents[accounts].clone(), f.contents[accounts + 1].clone());
                (f.contents[accounts], f.contents[accounts + 1]) = (b, a);
                let (a, b) = (account_count(f), f.manifest.chunks[accounts + 1].count);
                (f.manifest.chunks[accounts].count, f.manifest.chunks[accounts + 1].count) = (b, a);
                f.manifest.chunks[accounts + 1].first = f.manifest.chunks[accounts].first + b;
            })
        }),
        ("a signature that is not the authority's", "signature", {
            Box::new(|f| *f.contents[0].last_mut().unwrap() ^= 1)
        }),
        ("a header's state root", "signature", {
            Box::new(|f| {
                let end = f.contents[0].len();
                f.contents[0][end - 65] ^= 1;
            })
        }),
        ("a transaction's signature", "tx_root", Box::new(|f| *f.contents[blocks].last_mut().unwrap() ^= 1)),
        ("the header of another block", "manifest", Box::new(|f| f.manifest.header = other.manifest().header.clone())),
        ("another block altogether", "chunks", {
            Box::new(|f| {
                f.manifest.header = other.manifest().header.clone();
                f.manifest.block_hash = other.manifest().block_hash;
                f.manifest.height = other.manifest().height;
            })
        }),
        ("another chain", "another chain", Box::new(|f| f.manifest.chain_id.push('x'))),
        ("another genesis", "another chain", Box::new(|f| f.manifest.genesis_hash.0[3] ^= 1)),
        ("a newer format", "format", Box::new(|f| f.manifest.format = "tenon-snapshot/2".into())),
        ("more blocks than there are", "blocks", Box::new(|f| f.manifest.blocks_from = 1)),
        ("no end of blocks", "height", Box::new(|f| f.manifest.height = Height::MAX)),
        ("no end of accounts", "chunk", Box::new(|f| f.manifest.chunks.last_mut().unwrap().count = u64::MAX)),
        ("no headers", "chunk", {
            Box::new(|f| {
                f.manifest.chunks.remove(0);
                f.contents.remove(0);
            })
        }),
        ("a block twice", "expected", {
            Box::new(|f| {
                let twice = f.contents[blocks].clone();
                f.contents[blocks].extend(twice);
                f.manifest.chunks[blocks].count *= 2;
            })
        }),
    ];
    let mut otherwise = Vec::new();
    for (name, part, lie) in lies {
        let mut forged = forge(name);
        lie(&mut forged);
        let error = read(&forged.write(), &genesis).expect_err(name).to_string();
        if !error.contains(part) {
            otherwise.push(format!("{name}: {error}"));
        }
    }
    assert!(otherwise.is_empty(), "{otherwise:#?}");
    // The accounts of a later block under the header of this one: all well signed, and not the same state.
    let mut mixed = Forged::of(&other, chain.path("mixed"));
    let of = forge("y");
    for index in 0..of.first(ChunkKind::Accounts) {
        mixed.contents[index] = of.contents[index].clone();
    }
    let later: Vec<_> = mixed.manifest.chunks.split_off(mixed.first(ChunkKind::Accounts));
    let later_contents = mixed.contents.split_off(mixed.manifest.chunks.len());
    let early = of.first(ChunkKind::Accounts);
    mixed.manifest = Manifest { chunks: [&of.manifest.chunks[..early], &later].concat(), ..of.manifest.clone() };
    mixed.contents = [&of.contents[..early], &later_contents].concat();
    let error = read(&mixed.write(), &genesis).unwrap_err();
    assert!(matches!(error, SnapshotError::StateRoot { height: 12, .. }), "{error}");
    chain.ledger.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_would_swell_is_not_given_the_room() {
    let chain = Chain::new(8, 4, 3, 1).await;
    let genesis = chain.genesis();
    let snapshot = chain.export("true", small(1)).unwrap();
    // A gigabyte of zeros in some 32 KB.
    let bomb = zstd::stream::encode_all(std::io::repeat(0).take_bytes(1 << 30), 1).unwrap();
    assert!(bomb.len() < 200_000);
    for claimed in [700, 1 << 20, 16 << 20, 1 << 30] {
        let mut forged = Forged::of(&snapshot, chain.path(&format!("bomb-{claimed}")));
        let last = forged.manifest.chunks.len() - 1;
        fs::create_dir_all(&forged.folder).unwrap();
        let info = &mut forged.manifest.chunks[last];
        (info.content_bytes, info.bytes) = (claimed, bomb.len() as u64);
        info.sha256 = Hash(Sha256::digest(&bomb).into());
        for index in 0..last {
            let stored = snapshot.stored(index).unwrap();
            fs::write(forged.folder.join(format!("{index:06}.chunk")), stored).unwrap();
        }
        fs::write(forged.folder.join(format!("{last:06}.chunk")), &bomb).unwrap();
        let before = resident_bytes();
        let error = read(&forged.write_manifest(), &genesis).unwrap_err();
        assert!(error.to_string().contains(&format!("chunk {last}")), "{error}");
        assert!(resident_bytes() < before + (64 << 20), "no more than the largest chunk");
    }
    chain.ledger.stop();
}

/// What this process has in memory.
fn resident_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4_096
}

trait TakeBytes {
    fn take_bytes(self, bytes: u64) -> std::io::Take<Self>
    where
        Self: Sized;
}

impl<R: std::io::Read> TakeBytes for R {
    fn take_bytes(self, bytes: u64) -> std::io::Take<Self> {
        self.take(bytes)
    }
}

#[test]
fn no_bytes_at_all_make_a_reader_panic() {
    let dir = tempfile::tempdir().unwrap();
    let genesis = Arc::clone(Sample::new(9, 2).genesis());
    let mut runner = proptest::test_runner::TestRunner::default();
    let bytes = proptest::collection::vec(proptest::arbitrary::any::<u8>(), 0..400);
    let path = dir.path().join("x.snapshot");
    runner
        .run(&(bytes, proptest::arbitrary::any::<bool>()), |(mut bytes, headed)| {
            if headed {
                bytes.splice(0..0, *b"TENONSNP");
            }
            fs::write(&path, &bytes).unwrap();
            assert!(read(&path, &genesis).is_err());
            assert!(Manifest::parse(&bytes).is_err());
            Ok(())
        })
        .unwrap();
}
