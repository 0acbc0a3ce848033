//! Downloading a snapshot from several nodes at once. Every chunk is held against the manifest's hash when it arrives and
//! kept in a folder, so that a download that was ended, by whatever, goes on where it was. A source that sends another
//! chunk than it promised is named and left; the others go on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;

use super::files::{self, MANIFEST, Snapshot, chunk_name, suffixed, write_synced};
use super::source::{ChunkSource, Failure, Offer};
use super::{Manifest, Progress, Result, SnapshotError, chunk, io};
use crate::chain::{Genesis, Hash, Head, Height, Time};

/// How many times as often as others a failure may come that only asks for time.
const LIMITED_MAX: u32 = 20;

/// How to download.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// Chunks under way from one source.
    pub per_source: usize,
    /// Failures in a row after which a source is left.
    pub failures_max: u32,
    /// How long a source is left alone after its first failure; twice as long after the next.
    pub pause: Duration,
    /// Bytes of chunks under way in all; one chunk always may be.
    pub bytes_max: u64,
    /// The block that the snapshot must be of, by its hash.
    pub block_hash: Option<Hash>,
    /// The snapshot that must be taken, by its id.
    pub id: Option<Hash>,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            per_source: 4,
            failures_max: 6,
            pause: Duration::from_millis(250),
            bytes_max: 64 << 20,
            block_hash: None,
            id: None,
        }
    }
}

/// What happens on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchEvent {
    /// This snapshot is taken.
    Chosen {
        /// Its id.
        id: Hash,
        /// Its block.
        height: Height,
        /// How many sources have it.
        sources: usize,
        /// What an earlier attempt has left.
        kept: Progress,
    },
    /// A chunk is here.
    Chunk(Progress),
    /// A source is asked no more.
    Left {
        /// Which.
        source: String,
        /// Why.
        reason: String,
        /// Whether that is what no node of good will does.
        lied: bool,
    },
    /// A snapshot that was here in full does not hold.
    Refused {
        /// Its id.
        id: Hash,
        /// Why.
        reason: String,
    },
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody has one that could be taken.
    #[error("no source has a snapshot to take{}", listed(.left))]
    NoOffer {
        /// The sources that were left, with the reasons.
        left: Vec<(String, String)>,
    },
    /// Nobody is left to ask for the rest.
    #[error("{missing} of {of} chunks are missing and no source is left; what is here is kept{}", listed(.left))]
    NoSource {
        /// Chunks that are not here.
        missing: usize,
        /// Chunks in all.
        of: usize,
        /// The sources that were left, with the reasons.
        left: Vec<(String, String)>,
    },
    /// The disk, the database, or a node that has blocks already.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

fn listed(left: &[(String, String)]) -> String {
    left.iter().fold(String::new(), |text, (source, reason)| format!("{text}; {source}: {reason}"))
}

/// Downloads a snapshot for a chain and hands it to `install`; where it does not hold, takes another one. The folder
/// `dir` holds what is on its way, and is removed in the end.
///
/// Errors: nobody has one that holds, or what `install` says beside that. What is here then stays in `dir`.
pub async fn obtain<F: Future<Output = Result<Head>>>(
    sources: &[Arc<dyn ChunkSource>],
    genesis: &Genesis,
    dir: &Path,
    options: &FetchOptions,
    mut report: impl FnMut(FetchEvent),
    mut install: impl FnMut(Snapshot) -> F,
) -> Result<Head, FetchError> {
    let mut fetch = Fetch::new(sources, genesis, dir, options);
    loop {
        let snapshot = fetch.run(&mut report).await?;
        let id = snapshot.id();
        match install(snapshot).await {
            Ok(head) => {
                fs::remove_dir_all(dir).map_err(io(dir))?;
                return Ok(head);
            }
            Err(
                error @ (SnapshotError::Storage(_)
                | SnapshotError::Io { .. }
                | SnapshotError::NotEmpty { .. }
                | SnapshotError::Stopped),
            ) => return Err(error.into()),
            Err(error) => {
                report(FetchEvent::Refused { id, reason: error.to_string() });
                fetch.refuse(id)?;
            }
        }
    }
}

/// A download.
struct Fetch<'a> {
    genesis: &'a Genesis,
    genesis_hash: Hash,
    dir: &'a Path,
    options: &'a FetchOptions,
    peers: Vec<Peer<'a>>,
    refused: BTreeSet<Hash>,
    /// Bytes of the chunks under way.
    under_way: u64,
}

/// A source, and how it has been.
struct Peer<'a> {
    source: &'a Arc<dyn ChunkSource>,
    offers: Vec<Offer>,
    failures: u32,
    /// Not asked before.
    rests_until: Option<Instant>,
    in_flight: usize,
    left: Option<String>,
}

impl<'a> Fetch<'a> {
    fn new(
        sources: &'a [Arc<dyn ChunkSource>],
        genesis: &'a Genesis,
        dir: &'a Path,
        options: &'a FetchOptions,
    ) -> Self {
        let peer =
            |source| Peer { source, offers: Vec::new(), failures: 0, rests_until: None, in_flight: 0, left: None };
        let peers = sources.iter().map(peer).collect();
        let genesis_hash = genesis.block().hash();
        Self { genesis, genesis_hash, dir, options, peers, refused: BTreeSet::new(), under_way: 0 }
    }

    /// Until a snapshot is here in full.
    async fn run(&mut self, report: &mut impl FnMut(FetchEvent)) -> Result<Snapshot, FetchError> {
        self.ask_for_offers(report).await;
        while let Some(id) = self.best() {
            let Some(manifest) = self.manifest(id, report).await? else { continue };
            if let Some(snapshot) = self.chunks(id, &manifest, report).await? {
                return Ok(snapshot);
            }
        }
        Err(FetchError::NoOffer { left: self.left() })
    }

    async fn ask_for_offers(&mut self, report: &mut impl FnMut(FetchEvent)) {
        let asked: Vec<_> = self.peers.iter().map(|peer| peer.source.offers()).collect();
        for (at, answer) in join_all(asked).await.into_iter().enumerate() {
            match answer {
                Ok(offers) => self.peers[at].offers = offers,
                Err(failure) => self.leave_for(at, &failure, report),
            }
        }
    }

    /// The snapshot to take: one that is partly here; else the highest, and of those that which most sources have.
    fn best(&self) -> Option<Hash> {
        let mut known: BTreeMap<Hash, (bool, Height, usize)> = BTreeMap::new();
        for peer in self.peers.iter().filter(|peer| peer.left.is_none()) {
            for offer in &peer.offers {
                let wanted = self.options.block_hash.is_none_or(|hash| hash == offer.hash)
                    && self.options.id.is_none_or(|id| id == offer.id);
                if wanted && !self.refused.contains(&offer.id) {
                    let begun = self.folder(offer.id).join(MANIFEST).exists();
                    let entry = known.entry(offer.id).or_insert((begun, offer.height, 0));
                    entry.2 += 1;
                }
            }
        }
        known.into_iter().max_by_key(|(_, rank)| *rank).map(|(id, _)| id)
    }

    fn folder(&self, id: Hash) -> PathBuf {
        self.dir.join(const_hex::encode(id.0))
    }

    /// The manifest of `id`, kept or asked for. None where it is no snapshot for this chain, or nobody sends it; then it
    /// is refused, or its sources are left.
    async fn manifest(
        &mut self,
        id: Hash,
        report: &mut impl FnMut(FetchEvent),
    ) -> Result<Option<Manifest>, FetchError> {
        let folder = self.folder(id);
        let path = folder.join(MANIFEST);
        let kept = path.exists().then(|| files::read_bounded(&path, super::MANIFEST_BYTES_MAX as u64));
        let mut bytes = kept.transpose()?.filter(|bytes| Manifest::id(bytes) == id);
        let from_disk = bytes.is_some();
        while bytes.is_none() {
            let Some(at) = self.having(id).next() else { return Ok(None) };
            match self.peers[at].source.manifest(id).await {
                Ok(sent) if Manifest::id(&sent) == id => bytes = Some(sent),
                Ok(_) => {
                    self.leave_for(at, &Failure::Lied(format!("sends another manifest than {id}")), report);
                }
                Err(failure) => self.leave_for(at, &failure, report),
            }
        }
        let bytes = bytes.expect("the loop ends with it");
        let verified = Manifest::parse(&bytes).and_then(|manifest| {
            manifest.verify(self.genesis, &self.genesis_hash, Time::now())?;
            if let Some(expected) = self.options.block_hash.filter(|hash| *hash != manifest.block_hash) {
                let (height, got) = (manifest.height, manifest.block_hash);
                return Err(SnapshotError::OtherBlock { height, got, expected });
            }
            Ok(manifest)
        });
        match verified {
            Ok(manifest) => {
                if !from_disk {
                    // What was begun before is offered no more.
                    remove_folder(self.dir)?;
                    fs::create_dir_all(&folder).map_err(io(&folder))?;
                    keep(&path, &bytes)?;
                }
                // Whoever lists it as what it is not wants it to be chosen for that.
                let lies = |peer: &Peer<'_>| {
                    let is = |offer: &Offer| offer.height == manifest.height && offer.hash == manifest.block_hash;
                    peer.offers.iter().any(|offer| offer.id == id && !is(offer))
                };
                let lying: Vec<usize> = self.having(id).filter(|&at| lies(&self.peers[at])).collect();
                for &at in &lying {
                    self.leave_for(at, &Failure::Lied(format!("lists snapshot {id} as another block's")), report);
                }
                Ok(lying.is_empty().then_some(manifest))
            }
            Err(error) => {
                report(FetchEvent::Refused { id, reason: error.to_string() });
                self.refuse(id)?;
                Ok(None)
            }
        }
    }

    /// Sources that have the snapshot, by their places.
    fn having(&self, id: Hash) -> impl Iterator<Item = usize> + '_ {
        let has = move |peer: &Peer<'_>| peer.left.is_none() && peer.offers.iter().any(|offer| offer.id == id);
        self.peers.iter().enumerate().filter(move |(_, peer)| has(peer)).map(|(at, _)| at)
    }

    /// Downloads what is missing. None where some sources are left, but none that has this snapshot.
    async fn chunks(
        &mut self,
        id: Hash,
        manifest: &Manifest,
        report: &mut impl FnMut(FetchEvent),
    ) -> Result<Option<Snapshot>, FetchError> {
        let folder = self.folder(id);
        let of = manifest.chunks.len();
        let mut missing = kept_chunks(&folder, manifest).await?;
        let mut done = Progress { chunks: of - missing.len(), of, bytes: manifest.bytes() };
        done.bytes -= missing.iter().map(|&index| manifest.chunks[index].bytes).sum::<u64>();
        let height = manifest.height;
        report(FetchEvent::Chosen { id, height, sources: self.having(id).count(), kept: done });
        let mut under_way = FuturesUnordered::new();
        while done.chunks < of {
            let rests_until = self.assign(id, manifest, &mut missing, |at, index, answer| {
                under_way.push(async move { (at, index, answer.await) });
            });
            if under_way.is_empty() {
                match rests_until {
                    Some(moment) => tokio::time::sleep_until(moment).await,
                    None => {
                        let missing = of - done.chunks;
                        if self.peers.iter().any(|peer| peer.left.is_none()) {
                            return Ok(None);
                        }
                        return Err(FetchError::NoSource { missing, of, left: self.left() });
                    }
                }
                continue;
            }
            // A source that rests may be asked again before another one answers.
            let answered = match rests_until {
                Some(moment) => tokio::time::timeout_at(moment, under_way.next()).await.ok(),
                None => Some(under_way.next().await),
            };
            let Some(Some((at, index, answer))) = answered else { continue };
            let info = &manifest.chunks[index];
            self.peers[at].in_flight -= 1;
            self.under_way -= info.bytes;
            let checked = answer.and_then(|stored| match chunk::check_stored(info, &stored) {
                Ok(()) => Ok(stored),
                Err(reason) => Err(Failure::Lied(format!("sends another chunk {index}: {reason}"))),
            });
            match checked {
                Ok(stored) => {
                    (self.peers[at].failures, self.peers[at].rests_until) = (0, None);
                    let path = folder.join(chunk_name(index));
                    let written = tokio::task::spawn_blocking(move || keep(&path, &stored)).await;
                    written.map_err(|_| SnapshotError::Stopped)??;
                    done.chunks += 1;
                    done.bytes += info.bytes;
                    report(FetchEvent::Chunk(done));
                }
                Err(failure) => {
                    missing.push_front(index);
                    self.failed(at, failure, report);
                }
            }
        }
        Ok(Some(Snapshot::open(&folder)?))
    }

    /// Asks every source that has room for a missing chunk. Answers when the first of those that rest may be asked again.
    fn assign(
        &mut self,
        id: Hash,
        manifest: &Manifest,
        missing: &mut VecDeque<usize>,
        mut ask: impl FnMut(usize, usize, BoxFuture<'a, Result<Vec<u8>, Failure>>),
    ) -> Option<Instant> {
        let now = Instant::now();
        let having: Vec<usize> = self.having(id).collect();
        // One each, then the next one each: so the sources share evenly.
        for round in 0..self.options.per_source {
            for &at in &having {
                let peer = &mut self.peers[at];
                if peer.in_flight > round || peer.rests_until.is_some_and(|moment| moment > now) {
                    continue;
                }
                let &index = missing.front()?;
                let bytes = manifest.chunks[index].bytes;
                if self.under_way > 0 && self.under_way + bytes > self.options.bytes_max {
                    // The next one that comes makes room.
                    return None;
                }
                missing.pop_front();
                self.under_way += bytes;
                peer.in_flight += 1;
                ask(at, index, peer.source.chunk(id, index, bytes));
            }
        }
        if missing.is_empty() {
            return None;
        }
        having.iter().filter_map(|&at| self.peers[at].rests_until).filter(|moment| *moment > now).min()
    }

    fn failed(&mut self, at: usize, failure: Failure, report: &mut impl FnMut(FetchEvent)) {
        let (peer, now) = (&mut self.peers[at], Instant::now());
        let (rest, max) = match &failure {
            Failure::Lied(_) | Failure::Missing(_) => return self.leave_for(at, &failure, report),
            Failure::Limited { retry_after_ms } => {
                (Duration::from_millis(*retry_after_ms), self.options.failures_max * LIMITED_MAX)
            }
            Failure::Unreachable(_) => {
                (self.options.pause * 2_u32.pow(peer.failures.min(10)), self.options.failures_max)
            }
        };
        // What was asked at the same time fails at the same time, and counts once.
        if peer.rests_until.is_none_or(|moment| moment <= now) {
            peer.failures += 1;
            peer.rests_until = Some(now + rest);
        }
        if peer.failures >= max {
            let reason = format!("{failure} ({} times in a row)", peer.failures);
            self.leave(at, reason, false, report);
        }
    }

    fn leave_for(&mut self, at: usize, failure: &Failure, report: &mut impl FnMut(FetchEvent)) {
        self.leave(at, failure.to_string(), matches!(failure, Failure::Lied(_)), report);
    }

    fn leave(&mut self, at: usize, reason: String, lied: bool, report: &mut impl FnMut(FetchEvent)) {
        let peer = &mut self.peers[at];
        if peer.left.is_none() {
            report(FetchEvent::Left { source: peer.source.name().to_owned(), reason: reason.clone(), lied });
            peer.left = Some(reason);
        }
    }

    fn left(&self) -> Vec<(String, String)> {
        let left = |peer: &Peer<'_>| Some((peer.source.name().to_owned(), peer.left.clone()?));
        self.peers.iter().filter_map(left).collect()
    }

    /// Takes a snapshot for what it is: not to be taken.
    fn refuse(&mut self, id: Hash) -> Result<()> {
        self.refused.insert(id);
        remove_folder(&self.folder(id))
    }
}

/// The chunks of `manifest` that are not in `folder` yet. What is there and wrong is removed.
async fn kept_chunks(folder: &Path, manifest: &Manifest) -> Result<VecDeque<usize>> {
    let (folder, chunks) = (folder.to_owned(), manifest.chunks.clone());
    let look = move || {
        let is_missing = |(index, info): (usize, &super::ChunkInfo)| {
            let path = folder.join(chunk_name(index));
            if !path.exists() {
                return Ok(Some(index));
            }
            let kept = files::read_bounded(&path, info.bytes);
            if kept.is_ok_and(|stored| chunk::check_stored(info, &stored).is_ok()) {
                return Ok(None);
            }
            fs::remove_file(&path).map_err(io(&path))?;
            Ok(Some(index))
        };
        chunks.iter().enumerate().map(is_missing).filter_map(Result::transpose).collect()
    };
    tokio::task::spawn_blocking(look).await.map_err(|_| SnapshotError::Stopped)?
}

/// Writes a file that is whole from the moment it has its name.
fn keep(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = suffixed(path, ".part");
    write_synced(&part, bytes)?;
    fs::rename(&part, path).map_err(io(path))
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(path)(error)),
        _ => Ok(()),
    }
}
