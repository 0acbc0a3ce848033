//! A snapshot in place of blocks: whether one may be taken, from whom, and what becomes of it. While one is under way no
//! range is asked for and nothing is imported; when it ends badly, the strategy hears of it and may want another one, or
//! ranges.

use super::ranges::POINTS_INVALID;
use super::{Blocks, Command, Engine};
use crate::chain::{Height, Time};
use crate::snapshot::Progress;
use crate::snapshot::source::Offer;
use crate::sync::peers::{Origin, Record, Standing};
use crate::sync::status::{SnapshotStage, SnapshotStatus};
use crate::sync::{Action, Event, HeightRange, PeerId, plan};

/// Snapshots that may fail one after the other, before blocks are fetched whatever the strategy wants: with each of them
/// time is lost.
pub const ATTEMPTS_MAX: u32 = 8;

/// How long sources that have not been heard yet may take to say what they offer, in milliseconds: whoever does so later
/// is not asked.
const GATHER_MS: u64 = 1_000;

/// Points for a peer that offers a snapshot and then does not send it.
const POINTS_LEFT: u32 = 10;

/// What happens to a snapshot that is under way.
#[derive(Clone, Debug)]
pub enum SnapshotNews {
    /// So much of it is here.
    Downloaded(Progress),
    /// All of it is here, and so much of it is on its way into the ledger.
    Installed(Progress),
    /// A peer is asked for no more of it.
    Left {
        /// Who.
        peer: PeerId,
        /// Whether it sent what no node of good will sends.
        lied: bool,
        /// What it did.
        reason: String,
    },
    /// It is the chain now, or nothing has changed.
    Ended(Result<(), SnapshotFault>),
}

/// Why a snapshot was not taken. Everything is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotFault {
    /// It is not what it says.
    #[error("it does not hold: {0}")]
    Invalid(String),
    /// Nobody sent all of it, or not in time.
    #[error("{0}")]
    Unavailable(String),
    /// This node could not take it: its disk, its ledger, or blocks that came in another way.
    #[error("{0}")]
    Local(String),
}

/// Snapshots, as far as the engine is concerned with them.
pub(super) struct Snapshots {
    /// Why the node takes none, if it does not.
    refusal: Option<String>,
    /// Numbers the downloads.
    last: u64,
    fetch: Option<Fetch>,
    /// That failed since the last one that did not.
    attempts: u32,
    pub taken: u64,
    pub failed: u64,
}

/// A snapshot under way.
struct Fetch {
    number: u64,
    offer: Offer,
    /// Whose the strategy wanted.
    wanted: PeerId,
    /// Everybody who offers it.
    peers: Vec<PeerId>,
    since: Time,
    /// When it last came any further.
    news_at: Time,
    stage: SnapshotStage,
    done: Progress,
    /// Whether the peers are asked for it already.
    has_begun: bool,
}

impl Snapshots {
    pub(super) fn new() -> Self {
        let refusal = Some("this node does not take snapshots".to_owned());
        Self { refusal, last: 0, fetch: None, attempts: 0, taken: 0, failed: 0 }
    }

    /// Whether one is under way: then everything else waits.
    pub(super) fn is_under_way(&self) -> bool {
        self.fetch.is_some()
    }

    /// When the one under way last came any further.
    pub(super) fn news_at(&self) -> Option<Time> {
        self.fetch.as_ref().map(|fetch| fetch.news_at)
    }

    pub(super) fn status(&self) -> Option<SnapshotStatus> {
        let Fetch { offer, peers, since, stage, done, .. } = self.fetch.as_ref()?;
        Some(SnapshotStatus {
            height: offer.height,
            id: offer.id,
            stage: *stage,
            sources: peers.len(),
            chunks: done.chunks,
            of: done.of,
            bytes: done.bytes,
            since: *since,
        })
    }
}

impl<B: Blocks> Engine<B> {
    /// From now on the node takes snapshots; with a reason, it does not. An engine that was not told takes none.
    pub fn take_snapshots(&mut self, refusal: Option<String>) {
        self.snapshots.refusal = refusal;
    }

    /// Whether the strategy is shown who offers what: as long as it could be taken.
    pub(super) fn shows_snapshots(&self) -> bool {
        self.refuses_snapshots().is_none()
    }

    /// Why no snapshot can be taken at all, whosever it is.
    fn refuses_snapshots(&self) -> Option<String> {
        if let Some(reason) = &self.snapshots.refusal {
            return Some(reason.clone());
        }
        if self.head.height > 0 {
            return Some(format!(
                "a snapshot goes into a node without blocks, the head is {}: its blocks come as ranges",
                self.head.height
            ));
        }
        (self.snapshots.attempts >= ATTEMPTS_MAX)
            .then(|| format!("{ATTEMPTS_MAX} snapshots have failed one after the other, blocks are fetched instead"))
    }

    /// Whether the state of the node allows an action of the strategy; what the view shows is [`plan::check`]'s.
    pub(super) fn admits(&self, action: &Action) -> Result<(), String> {
        let under_way = self.snapshots.fetch.as_ref().map(|fetch| fetch.offer.height);
        match (action, under_way) {
            (Action::FetchRange { .. }, Some(height)) => {
                Err(format!("the snapshot of block {height} is under way, ranges wait for it"))
            }
            (Action::FetchSnapshot { height: wanted, .. }, _) => {
                if let Some(reason) = self.refuses_snapshots() {
                    return Err(reason);
                }
                match under_way {
                    // Who has taken over, or forgotten it, may ask again.
                    Some(height) if height == *wanted => return Ok(()),
                    Some(height) => return Err(format!("the snapshot of block {height} is under way")),
                    None => {}
                }
                if self.is_halted() {
                    return Err("a peer is on another branch, and sync.on_divergence is \"halt\"".into());
                }
                if !self.importing.is_empty() || self.branch.is_some() {
                    return Err("blocks are on their way to the chain".into());
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A peer says which snapshot it has.
    pub(super) fn offered(&mut self, id: PeerId, offer: Option<Offer>) {
        let height = offer.as_ref().map(|offer| offer.height);
        if !self.peers.offers(id, offer) || !self.shows_snapshots() {
            return;
        }
        if let Some(height) = height
            && self.peers.get(id).is_some_and(|peer| peer.is_up())
        {
            self.events.retain(|event| !matches!(event, Event::SnapshotOffered { peer, .. } if *peer == id));
            self.events.push(Event::SnapshotOffered { peer: id, height });
            self.ask_soon();
        }
    }

    /// Goes for a snapshot that was checked. What was asked for otherwise is given
    /// up, and costs nobody anything.
    pub(super) fn fetch_snapshot(&mut self, wanted: PeerId) {
        if self.snapshots.is_under_way() {
            return;
        }
        let Some(offer) = self.peers.get(wanted).and_then(|peer| peer.snapshot.clone()) else { return };
        for id in self.requests.keys().copied().collect::<Vec<_>>() {
            self.give_up(id, "a snapshot is taken in place of blocks");
        }
        self.snapshots.last += 1;
        let (number, since, done) = (self.snapshots.last, self.now, Progress::default());
        let (peers, stage, has_begun) = (Vec::new(), SnapshotStage::Downloading, false);
        let fetch = Fetch { number, offer, wanted, peers, since, news_at: since, stage, done, has_begun };
        self.snapshots.fetch = Some(fetch);
    }

    /// Begins the download, once every source has said what it offers, or had its time to.
    pub(super) fn begin_snapshot(&mut self) {
        let is_silent = |peer: &Record| peer.origin == Origin::Configured && peer.standing == Standing::Unknown;
        let are_all_heard = !self.peers.iter().any(is_silent);
        let Some(fetch) = self.snapshots.fetch.as_mut().filter(|fetch| !fetch.has_begun) else { return };
        if !are_all_heard && self.now < fetch.since.plus_ms(GATHER_MS) {
            return;
        }
        let (id, height) = (fetch.offer.id, fetch.offer.height);
        let offers = |peer: &&Record| peer.is_up() && peer.snapshot.as_ref().is_some_and(|known| known.id == id);
        fetch.peers = self.peers.iter().filter(offers).map(|peer| peer.id).collect();
        fetch.has_begun = true;
        if fetch.peers.is_empty() {
            return self.snapshot_failed(SnapshotFault::Unavailable("nobody offers it any more".into()));
        }
        tracing::info!(height, %id, peers = fetch.peers.len(), "a snapshot is taken in place of blocks");
        let (number, offer, peers) = (fetch.number, fetch.offer.clone(), fetch.peers.clone());
        self.commands.push(Command::FetchSnapshot { number, offer, peers });
    }

    /// The strategy waits for a snapshot that it will not get.
    pub(super) fn refused_snapshot(&mut self, peer: PeerId, height: Height) {
        if self.peers.get(peer).is_some() {
            self.events.push(Event::SnapshotFailed { peer, height });
            self.ask_soon();
        }
    }

    pub(super) fn snapshot_news(&mut self, number: u64, news: SnapshotNews) {
        let now = self.now;
        // What came of one that was given up is not heard.
        let Some(fetch) = self.snapshots.fetch.as_mut().filter(|fetch| fetch.number == number) else { return };
        match news {
            SnapshotNews::Downloaded(done) => (fetch.done, fetch.news_at) = (done, now),
            SnapshotNews::Installed(done) => {
                (fetch.stage, fetch.done, fetch.news_at) = (SnapshotStage::Installing, done, now);
            }
            SnapshotNews::Left { peer, lied, reason } => {
                fetch.peers.retain(|known| *known != peer);
                let source = self.peers.name(peer);
                tracing::warn!(source, reason, lied, "a source is not asked for any more of the snapshot");
                self.counters.failed += 1;
                let points = if lied { POINTS_INVALID } else { POINTS_LEFT };
                self.peers.failed(peer, points, format!("snapshot: {reason}"), None, now);
            }
            SnapshotNews::Ended(ended) => {
                let is_here = (self.head.height, self.head.hash) == (fetch.offer.height, fetch.offer.hash);
                match ended {
                    Err(fault) if !is_here => self.snapshot_failed(fault),
                    Err(fault) => {
                        tracing::warn!(%fault, "the snapshot is taken, but");
                        self.snapshot_taken();
                    }
                    Ok(()) => self.snapshot_taken(),
                }
            }
        }
    }

    fn snapshot_taken(&mut self) {
        let Some(Fetch { offer, since, .. }) = self.snapshots.fetch.take() else { return };
        let (height, seconds) = (offer.height, self.now.ms_since(since) / 1_000);
        tracing::info!(height, id = %offer.id, seconds, "the chain begins with a snapshot");
        self.snapshots.taken += 1;
        self.snapshots.attempts = 0;
        self.counters.problem = None;
        self.refusals.clear();
        self.watchdog_begins();
        self.events.push(Event::Imported(HeightRange { first: 1, last: height }));
    }

    fn snapshot_failed(&mut self, fault: SnapshotFault) {
        let Some(Fetch { offer, wanted, peers, .. }) = self.snapshots.fetch.take() else { return };
        let height = offer.height;
        tracing::warn!(height, id = %offer.id, %fault, "a snapshot was not taken");
        self.snapshots.failed += 1;
        self.snapshots.attempts += 1;
        self.counters.problem = Some(format!("the snapshot of block {height} was not taken: {fault}"));
        if let SnapshotFault::Invalid(reason) = &fault {
            for peer in peers {
                let reason = format!("its snapshot of block {height} does not hold: {reason}");
                self.peers.failed(peer, POINTS_INVALID, reason, None, self.now);
            }
        }
        self.watchdog_begins();
        self.events.push(Event::SnapshotFailed { peer: wanted, height });
        self.ask_soon();
    }

    /// Ends a download that comes no further, or that blocks from elsewhere have made useless. What is in the ledger is
    /// waited for.
    pub(super) fn expire_snapshot(&mut self) {
        let Some(fetch) = self.snapshots.fetch.as_ref().filter(|fetch| fetch.stage == SnapshotStage::Downloading)
        else {
            return;
        };
        let patience_ms = self.config.snapshot_patience_ms;
        let fault = if self.head.height > 0 && self.head.hash != fetch.offer.hash {
            SnapshotFault::Local(format!("blocks up to {} have come in another way", self.head.height))
        } else if self.now >= fetch.news_at.plus_ms(patience_ms) {
            SnapshotFault::Unavailable(format!("nothing more of it for {patience_ms} ms"))
        } else {
            return;
        };
        if fetch.has_begun {
            self.commands.push(Command::EndSnapshot(fetch.number));
        }
        self.snapshot_failed(fault);
    }

    /// When a snapshot is to be looked after next: begun, or ended where it stands still.
    pub(super) fn snapshot_deadline(&self) -> Option<Time> {
        let fetch = self.snapshots.fetch.as_ref()?;
        if !fetch.has_begun {
            return Some(fetch.since.plus_ms(GATHER_MS));
        }
        let downloads = fetch.stage == SnapshotStage::Downloading;
        downloads.then(|| fetch.news_at.plus_ms(self.config.snapshot_patience_ms))
    }

    /// Gives the strategy time to ask for what is missing now, before the host does.
    fn watchdog_begins(&mut self) {
        self.watchdog.ended(HeightRange { first: 0, last: Height::MAX }, self.now);
    }

    /// Asks the strategy soon, but no more often for it.
    pub(super) fn ask_soon(&mut self) {
        self.next_call = self.next_call.min(self.asked_at.plus_ms(plan::WAIT_MIN_MS));
    }
}
