//! What a follower says of itself: `/rpc/sync/status`, `/ready`, the metrics. Said by evidence: a node is live when a
//! source has the same block at its head, not when it thinks that it has nothing to do.

use serde::{Deserialize, Serialize};

use super::peers::{Origin, PeerBook, Record, Standing};
use super::{PeerId, RequestId};
use crate::chain::{Hash, Height, Time};

/// Where a node stands against its sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyncState {
    /// No source has been heard yet.
    #[default]
    Starting,
    /// Sources have more than a few blocks that are not here; blocks come in.
    Syncing,
    /// At the sources' head, or a few blocks below while they come in.
    Live,
    /// Sources have blocks that are not here, and none came in for a while.
    Behind,
    /// No source has the newest blocks that are here; below, they agree.
    Ahead,
    /// A source has another valid block than we at the same height.
    Diverged,
    /// No source answers, or none may be used.
    NoSource,
    /// The node has no sources and no peer to compare with: it follows nobody.
    Authority,
}

impl SyncState {
    /// Each of them.
    pub const ALL: [Self; 8] = [
        Self::Starting,
        Self::Syncing,
        Self::Live,
        Self::Behind,
        Self::Ahead,
        Self::Diverged,
        Self::NoSource,
        Self::Authority,
    ];

    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Syncing => "syncing",
            Self::Live => "live",
            Self::Behind => "behind",
            Self::Ahead => "ahead",
            Self::Diverged => "diverged",
            Self::NoSource => "no-source",
            Self::Authority => "authority",
        }
    }
}

/// Two valid blocks at one height.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diverged {
    /// The lowest height at which the chains differ.
    pub height: Height,
    /// Our block there.
    pub ours: Hash,
    /// The source's.
    pub theirs: Hash,
    /// The source's address.
    pub peer: String,
}

/// One source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its number.
    pub id: PeerId,
    /// Its address.
    pub url: String,
    /// `unknown`, `up`, `down`, `refused` or `diverged`.
    pub standing: String,
    /// Why it is not used, or what its last failure was.
    pub reason: Option<String>,
    /// The head it last reported.
    pub head_height: Option<Height>,
    /// That head's hash.
    pub head_hash: Option<Hash>,
    /// The block of the newest snapshot that it serves.
    pub snapshot_height: Option<Height>,
    /// The host's opinion of it, 100 at best.
    pub score: i32,
    /// Smoothed time to the first byte of a range, in microseconds.
    pub latency_us: u64,
    /// Smoothed rate of its ranges, in bytes a second.
    pub throughput: u64,
    /// Requests in a row that failed.
    pub failures: u32,
    /// Requests under way to it.
    pub in_flight: u32,
    /// Blocks of the chain that came from it.
    pub blocks: u64,
    /// Bytes that came from it.
    pub bytes: u64,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct SyncStatus {
    /// Where the node stands.
    pub state: SyncState,
    /// The local head's height.
    pub head_height: Height,
    /// The local head's hash.
    pub head_hash: Hash,
    /// The highest head that a usable source reported; the local one where none did.
    pub best_height: Height,
    /// How far the local head is below it.
    pub lag_blocks: u64,
    /// How old the local head is, in seconds, while it is below the sources'; 0 at their head.
    pub lag_seconds: u64,
    /// The sources, by number.
    pub peers: Vec<PeerStatus>,
    /// Requests for ranges under way.
    pub in_flight: u32,
    /// Blocks that are here and not stored yet.
    pub waiting: u64,
    /// Of those, how many are being verified.
    pub verifying: u64,
    /// Encoded bytes taken by what is under way or waiting.
    pub buffered_bytes: u64,
    /// The most that these were since the node started.
    pub buffered_bytes_peak: u64,
    /// Blocks stored in the last seconds, a second.
    pub blocks_per_second: f64,
    /// Blocks stored since the node started, by sync.
    pub imported_blocks: u64,
    /// Requests for ranges since the node started.
    pub requests: RequestId,
    /// Of those, how many the watchdog made.
    pub rescues: u64,
    /// Actions of the strategy that were refused.
    pub refused_actions: u64,
    /// Answers that were not usable.
    pub failed_requests: u64,
    /// The snapshot that is being taken in place of blocks, if one is.
    pub snapshot: Option<SnapshotStatus>,
    /// Snapshots that the chain began with since the node started: 1 at most.
    pub snapshots_taken: u64,
    /// Snapshots that were begun and not taken.
    pub snapshots_failed: u64,
    /// The last better branch that would have taken back too many blocks.
    pub refused_reorg: Option<RefusedReorg>,
    /// The strategy's last line for the operator.
    pub report: Option<String>,
    /// Two valid blocks at one height, if a source has another one.
    pub diverged: Option<Diverged>,
    /// Since when it is known to have.
    pub diverged_since: Option<Time>,
    /// What keeps sync from going on, if something does: a block that no source has in a valid form, a full disk.
    pub problem: Option<String>,
}

/// A snapshot on its way here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// Its block.
    pub height: Height,
    /// Its id.
    pub id: Hash,
    /// Where it is.
    pub stage: SnapshotStage,
    /// Sources that are asked for it.
    pub sources: usize,
    /// Chunks that are here; while it is installed, those that are checked and written.
    pub chunks: usize,
    /// Chunks in all; 0 while that is not known.
    pub of: usize,
    /// Bytes of these chunks.
    pub bytes: u64,
    /// When it was begun.
    pub since: Time,
}

/// Where a snapshot on its way is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotStage {
    /// Its chunks come in.
    Downloading,
    /// It is checked and written into the database.
    Installing,
}

/// A better branch that was not taken, since too many blocks would have had to be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedReorg {
    /// When it was last looked at.
    pub at: Time,
    /// How many blocks it would have taken back.
    pub depth: u64,
    /// Who has it.
    pub peer: String,
}

/// How far below its sources a node may be and still count as live: `[monitor]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tolerance {
    /// Blocks that may be missing, while they come in.
    pub lag_blocks: u64,
    /// How long no block may come in, in milliseconds, before a node below its sources is behind.
    pub lag_ms: u64,
    /// Whether a node without sources may be without peers, too: it makes the blocks itself, or waits to be handed
    /// them.
    pub may_be_alone: bool,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { lag_blocks: 10, lag_ms: 60_000, may_be_alone: true }
    }
}

/// The times that tell standing still from having nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moments {
    /// Now.
    pub now: Time,
    /// When the local head last moved.
    pub head_at: Time,
    /// When no source was last known to have more than we. A chain may rest for hours, and a node that gets the next
    /// block within a second was never behind.
    pub level_at: Time,
}

/// Where the node stands, given its head and what is known of the sources. Pure.
pub fn state(peers: &PeerBook, head: Height, moments: Moments, tolerance: Tolerance) -> SyncState {
    let Moments { now, head_at, level_at } = moments;
    let configured = || peers.iter().filter(|peer| peer.origin == Origin::Configured);
    let up = || peers.iter().filter(|peer| peer.is_up());
    let is_diverged = |peer: &Record| matches!(peer.standing, Standing::Diverged(_));
    let has_sources = configured().next().is_some();
    // A stranger on another branch is worth a word where nobody else agrees with us, a source always.
    if configured().any(is_diverged) || (up().next().is_none() && peers.iter().any(is_diverged)) {
        return SyncState::Diverged;
    }
    if up().next().is_none() {
        if !has_sources && tolerance.may_be_alone {
            // Whoever is there is of no use, and nobody has to be.
            return SyncState::Authority;
        }
        let asked = |peer: &&Record| !has_sources || peer.origin == Origin::Configured;
        let unknown = peers.iter().filter(asked).any(|peer| peer.standing == Standing::Unknown);
        return if unknown { SyncState::Starting } else { SyncState::NoSource };
    }
    let best = peers.best().map_or(0, |head| head.0);
    if up().all(|peer| peer.head_at == Time(0)) {
        return SyncState::Starting;
    }
    // Only what a source said after our head last moved can show that it lacks our blocks.
    // And only a source has to have them; of those who were met somebody should, after a while, where there is none.
    let has_to = has_sources || (!tolerance.may_be_alone && now.ms_since(head_at) > tolerance.lag_ms);
    match best.saturating_sub(head) {
        0 if best < head && has_to && up().all(|peer| peer.head_at > head_at) => SyncState::Ahead,
        0 => SyncState::Live,
        _ if now.ms_since(head_at.max(level_at)) > tolerance.lag_ms => SyncState::Behind,
        lag if lag <= tolerance.lag_blocks => SyncState::Live,
        _ => SyncState::Syncing,
    }
}

/// Where a peer has another block than we, and since when: a source before anybody else.
pub fn diverged(book: &PeerBook) -> Option<(&Diverged, Time)> {
    let diverged = book.iter().filter_map(|peer| match (&peer.standing, peer.diverged_at) {
        (Standing::Diverged(diverged), Some(since)) => Some((peer.origin, diverged, since)),
        _ => None,
    });
    let first = diverged.min_by_key(|(origin, _, since)| (*origin != Origin::Configured, *since));
    first.map(|(_, diverged, since)| (diverged, since))
}

/// What there is to say of each source.
pub fn peers(book: &PeerBook, in_flight: impl Fn(PeerId) -> u32) -> Vec<PeerStatus> {
    book.iter()
        .map(|peer| {
            let (standing, reason) = match &peer.standing {
                Standing::Unknown => ("unknown", peer.last_error.clone()),
                Standing::Up => ("up", peer.last_error.clone()),
                Standing::Down => ("down", peer.last_error.clone()),
                Standing::Refused(reason) => ("refused", Some(reason.clone())),
                Standing::Diverged(at) => ("diverged", Some(format!("its block {} is {}", at.height, at.theirs))),
            };
            PeerStatus {
                id: peer.id,
                url: peer.name.clone(),
                standing: standing.into(),
                reason,
                head_height: peer.head.map(|head| head.0),
                head_hash: peer.head.map(|head| head.1),
                snapshot_height: peer.snapshot.as_ref().map(|offer| offer.height),
                score: peer.score(),
                latency_us: peer.latency_us(),
                throughput: peer.throughput(),
                failures: peer.failures(),
                in_flight: in_flight(peer.id),
                blocks: peer.blocks,
                bytes: peer.bytes,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::SyncConfig;
    use super::super::peers::Origin;
    use super::super::source::{SourceError, SourceInfo};
    use super::*;

    fn us() -> SourceInfo {
        SourceInfo { chain_id: "c".into(), genesis_hash: Hash::ZERO, node_id: "me".into() }
    }

    fn book(heads: &[Height]) -> PeerBook {
        let mut book = PeerBook::new(&SyncConfig::default());
        for (at, height) in heads.iter().enumerate() {
            let id = book.join(format!("{at}"), Origin::Configured, Time(0)).unwrap();
            book.introduced(id, &SourceInfo { node_id: "other".into(), ..us() }, &us(), Time(0));
            book.reported(id, Some((*height, Hash::ZERO)), Time(1_000_000));
        }
        book
    }

    #[test]
    fn those_who_were_met_help_and_are_no_measure() {
        let late = Time(2_000_000);
        let at = |book: &PeerBook, head| {
            let moments = Moments { now: late, head_at: Time(0), level_at: Time(0) };
            state(book, head, moments, Tolerance::default())
        };
        let meet = |book: &mut PeerBook, name: &str, height| {
            let id = book.join(name.into(), Origin::Met, Time(0)).unwrap();
            if let Some(height) = height {
                book.introduced(id, &SourceInfo { node_id: "other".into(), ..us() }, &us(), Time(0));
                book.reported(id, Some((height, Hash::ZERO)), Time(1_000_000));
            }
            id
        };
        let fork = || Diverged { height: 2, ours: Hash::ZERO, theirs: Hash([1; 32]), peer: "x".into() };
        let mut book = book(&[]);
        let silent = meet(&mut book, "silent", None);
        assert_eq!(at(&book, 5), SyncState::Authority, "nobody has to be there");
        meet(&mut book, "behind", Some(3));
        assert_eq!(at(&book, 5), SyncState::Live, "nobody has to have our blocks");
        let best = meet(&mut book, "best", Some(500));
        assert_eq!(at(&book, 5), SyncState::Syncing);
        book.diverged(best, fork(), late);
        assert_eq!((at(&book, 5), diverged(&book).unwrap().1), (SyncState::Live, late), "the other one agrees");
        book.leave(1, late);
        assert_eq!(at(&book, 5), SyncState::Diverged, "nobody agrees");
        book.leave(best, late);
        book.leave(silent, late);
        assert_eq!((at(&book, 5), diverged(&book)), (SyncState::Authority, None));
        let mut with_source = self::book(&[5]);
        meet(&mut with_source, "met", Some(5));
        with_source.diverged(0, fork(), late);
        assert_eq!(at(&with_source, 5), SyncState::Diverged, "a source always counts");
        for _ in 0..2 {
            with_source.poll_failed(1, &SourceError::Unreachable(String::new()), late);
        }
        with_source.agreed(0);
        for _ in 0..2 {
            with_source.poll_failed(0, &SourceError::Unreachable(String::new()), late);
        }
        assert_eq!(at(&with_source, 5), SyncState::NoSource);
    }

    #[test]
    fn who_follows_those_it_meets_needs_somebody_who_has_its_blocks() {
        let head_at = Time(500_000);
        let after = |may_be_alone, heads: &[Height], ms| {
            let mut book = book(&[]);
            for (at, height) in heads.iter().enumerate() {
                let id = book.join(format!("{at}"), Origin::Met, Time(0)).unwrap();
                book.introduced(id, &SourceInfo { node_id: "other".into(), ..us() }, &us(), Time(0));
                book.reported(id, Some((*height, Hash::ZERO)), Time(1_000_000));
            }
            let moments = Moments { now: head_at.plus_ms(ms), head_at, level_at: head_at };
            state(&book, 5, moments, Tolerance { lag_blocks: 3, lag_ms: 1_000, may_be_alone })
        };
        assert_eq!((after(true, &[], 0), after(false, &[], 0)), (SyncState::Authority, SyncState::NoSource));
        assert_eq!((after(true, &[0, 4], 9_000), after(false, &[0, 4], 9_000)), (SyncState::Live, SyncState::Ahead));
        assert_eq!((after(false, &[4], 1_000), after(false, &[4], 1_001)), (SyncState::Live, SyncState::Ahead));
        assert_eq!((after(false, &[4, 5], 9_000), after(false, &[9], 500)), (SyncState::Live, SyncState::Syncing));
    }

    #[test]
    fn a_state_has_one_name() {
        for state in SyncState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
    }

    #[test]
    fn the_state_is_what_the_sources_show() {
        let (early, late) = (Time(500_000), Time(2_000_000));
        let at = |book: &PeerBook, head, head_at| {
            let moments = Moments { now: late, head_at, level_at: head_at };
            state(book, head, moments, Tolerance::default())
        };
        assert_eq!(at(&book(&[]), 5, early), SyncState::Authority);
        assert_eq!(at(&book(&[5]), 5, early), SyncState::Live);
        assert_eq!(at(&book(&[15]), 5, early), SyncState::Live);
        assert_eq!(at(&book(&[16]), 5, early), SyncState::Syncing);
        let tolerance = Tolerance { lag_blocks: 3, lag_ms: 1_000, ..Tolerance::default() };
        let after = |ms, best| {
            let moments = Moments { now: early.plus_ms(ms), head_at: Time(0), level_at: early };
            state(&book(&[best]), 5, moments, tolerance)
        };
        assert_eq!((after(1_000, 6), after(1_001, 6)), (SyncState::Live, SyncState::Behind));
        assert_eq!((after(1_000, 8), after(1_000, 9)), (SyncState::Live, SyncState::Syncing));
        assert_eq!(at(&book(&[3, 4]), 5, early), SyncState::Ahead);
        assert_eq!(at(&book(&[3, 5]), 5, early), SyncState::Live);
        assert_eq!(at(&book(&[4]), 5, late), SyncState::Live, "the source may have it by now");
        let mut diverged = book(&[5, 5]);
        let fork = Diverged { height: 2, ours: Hash::ZERO, theirs: Hash([1; 32]), peer: "5".into() };
        diverged.diverged(1, fork, late);
        assert_eq!(at(&diverged, 5, early), SyncState::Diverged);
        let alone = || {
            let mut book = PeerBook::new(&SyncConfig::default());
            book.join("a".into(), Origin::Configured, Time(0)).unwrap();
            book
        };
        let mut silent = alone();
        assert_eq!(at(&silent, 5, early), SyncState::Starting);
        silent.poll_failed(0, &SourceError::Unreachable("refused".into()), late);
        assert_eq!(at(&silent, 5, early), SyncState::NoSource);
        let mut itself = alone();
        itself.introduced(0, &us(), &us(), Time(0));
        assert_eq!(at(&itself, 5, early), SyncState::NoSource);
        assert!(peers(&itself, |_| 0)[0].reason.as_ref().unwrap().contains("itself"));
    }
}
