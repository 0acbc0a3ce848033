//! The book of peers: what is known of each, and when it is looked at again. Pure: the time is an argument.

mod record;

use std::cell::OnceCell;
use std::collections::{BTreeMap, VecDeque};

pub use record::{Origin, Record, Standing};

use super::opinion::{BACKOFF_FIRST_MS, Opinion, doubled};
use super::source::{SourceError, SourceInfo};
use super::{Diverged, Peer, PeerId, SyncConfig};
use crate::chain::{Hash, Height, Time};
use crate::snapshot::source::Offer;

/// Peers at one time. Each is looked at and shown to the strategy, so there have to be bounds.
pub const PEERS_MAX: usize = 1_024;

/// How long the opinion of a peer outlives it, so that a bad score is not lost by coming back under the same name.
const FORMER_MS: u64 = 600_000;

/// Peers that are gone and whose opinion is kept, at most: then the one that left first is forgotten.
const FORMER_MAX: usize = 1_024;

/// The longest pause between two looks at a source that does not answer. Short: a look costs nothing, and a source that
/// is back should be noticed within the time that the watchdog promises.
const POLL_BACKOFF_MAX_MS: u64 = 3_000;

/// How many looks are spared by a head that a peer announces by itself: it does so again when it has a new one.
const ANNOUNCED_SPARES: u64 = 10;

/// How long a peer that did not have a block below its reported head is taken to have no more than it proved. Short,
/// since it may be the only one that has it soon.
const DOUBT_MS: u64 = 1_000;

/// How many looks a peer on another branch is left alone for before it is compared again: that costs it a request.
const COMPARE_EVERY: u64 = 10;

/// How often a refused peer is asked again who it is.
const INTRODUCE_AGAIN_MS: u64 = 10_000;

/// What is left of a peer that is gone.
#[derive(Clone, Debug)]
struct Former {
    id: PeerId,
    name: String,
    opinion: Opinion,
    until: Time,
}

/// All peers, by number. What is said of one that is not there is not heard.
#[derive(Clone, Debug)]
pub struct PeerBook {
    /// Changed through [`PeerBook::records_mut`] alone.
    records: BTreeMap<PeerId, Record>,
    /// What [`PeerBook::best`] answered since the records last changed: a turn asks several times, of a thousand peers.
    best: OnceCell<Option<(Height, Hash)>>,
    /// In the order in which they left.
    former: VecDeque<Former>,
    next_id: PeerId,
    poll_ms: u64,
    backoff_max_ms: u64,
}

impl PeerBook {
    /// Nobody is there yet.
    pub fn new(config: &SyncConfig) -> Self {
        Self {
            records: BTreeMap::new(),
            best: OnceCell::new(),
            former: VecDeque::new(),
            next_id: 0,
            poll_ms: config.poll_ms,
            backoff_max_ms: config.backoff_max_ms,
        }
    }

    /// Takes in a peer, numbered in the order of arrival. One that was here lately is thought of as before. Errors: it is
    /// here, or too many are.
    pub fn join(&mut self, name: String, origin: Origin, now: Time) -> Result<PeerId, String> {
        if let Some(known) = self.iter().find(|known| known.name == name) {
            return Err(format!("`{name}` is here already, as peer {}", known.id));
        }
        if self.records.len() >= PEERS_MAX {
            return Err(format!("`{name}` is one too many: {PEERS_MAX} peers are here"));
        }
        let id = self.next_id;
        self.next_id = id.checked_add(1).ok_or("no number is left for another peer")?;
        let former = self.former.iter().position(|former| former.name == name).and_then(|at| self.former.remove(at));
        let mut opinion = former.map_or_else(|| Opinion::new(now), |former| former.opinion);
        opinion.settle(now);
        let record = Record::new(id, name, origin, opinion, now);
        self.records_mut().insert(id, record);
        Ok(id)
    }

    /// Forgets a peer that is gone, but for what is thought of it.
    pub fn leave(&mut self, id: PeerId, now: Time) -> Option<Record> {
        let record = self.records_mut().remove(&id)?;
        let former =
            Former { id, name: record.name.clone(), opinion: record.opinion.clone(), until: now.plus_ms(FORMER_MS) };
        self.former.push_back(former);
        if self.former.len() > FORMER_MAX {
            self.former.pop_front();
        }
        Some(record)
    }

    /// Whether nobody is there.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// How many records there are, of peers that are here or were lately.
    pub fn records(&self) -> usize {
        self.records.len() + self.former.len()
    }

    fn records_mut(&mut self) -> &mut BTreeMap<PeerId, Record> {
        self.best.take();
        &mut self.records
    }

    /// Every peer, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// One peer.
    pub fn get(&self, id: PeerId) -> Option<&Record> {
        self.records.get(&id)
    }

    /// One peer, to change what is known of it.
    pub fn get_mut(&mut self, id: PeerId) -> Option<&mut Record> {
        self.records_mut().get_mut(&id)
    }

    /// What people know a peer by, also one that was here lately.
    pub fn name(&self, id: PeerId) -> String {
        let former = || self.former.iter().find(|former| former.id == id).map(|former| former.name.clone());
        let known = self.get(id).map(|record| record.name.clone());
        known.or_else(former).unwrap_or_else(|| format!("peer {id}, which is gone"))
    }

    /// What is thought of a peer, also of one that was here lately: it may have left before what it sent was found wrong.
    fn opinion_mut(&mut self, id: PeerId) -> Option<&mut Opinion> {
        self.best.take();
        match self.records.get_mut(&id) {
            Some(record) => Some(&mut record.opinion),
            None => self.former.iter_mut().find(|former| former.id == id).map(|former| &mut former.opinion),
        }
    }

    /// Lets time pass: points come back, doubts end, who was left alone long enough has another chance, and who left long
    /// ago is forgotten.
    pub fn settle(&mut self, now: Time) {
        for record in self.records_mut().values_mut() {
            record.opinion.settle(now);
            if record.doubt.is_some_and(|(_, until)| until <= now) {
                record.doubt = None;
            }
        }
        while self.former.front().is_some_and(|former| former.until <= now) {
            self.former.pop_front();
        }
    }

    /// What a strategy sees of the peers that can be asked for blocks.
    pub fn view(&self, in_flight: impl Fn(PeerId) -> u32) -> Vec<Peer> {
        self.iter()
            .filter(|record| record.standing == Standing::Up)
            .map(|record| Peer {
                id: record.id,
                head: record.proven_head(),
                latency_us: record.latency_us,
                throughput: record.throughput,
                failures: record.opinion.failures,
                score: record.opinion.score,
                in_flight: in_flight(record.id),
                not_before: record.opinion.not_before,
                snapshot: record.snapshot.as_ref().map(|offer| offer.height),
            })
            .collect()
    }

    /// The highest head that the peers which can be asked report. One that lately did not have what it reported only
    /// counts where there is no other, and where the operator named it.
    pub fn best(&self) -> Option<(Height, Hash)> {
        let best = *self.best.get_or_init(|| self.find_best());
        debug_assert_eq!(best, self.find_best(), "something changed a record and did not say so");
        best
    }

    fn find_best(&self) -> Option<(Height, Hash)> {
        let up = || self.iter().filter(|record| record.standing == Standing::Up);
        let highest = |head: &(Height, Hash)| head.0;
        let trusted = up().filter(|record| record.opinion.is_trusted()).filter_map(|record| record.head);
        let named = || up().filter(|record| record.origin == Origin::Configured).filter_map(|record| record.head);
        trusted.max_by_key(highest).or_else(|| named().max_by_key(highest))
    }

    /// Takes in who a peer says it is: whether it is one to read from. `us`: our chain, genesis hash and node.
    pub fn introduced(&mut self, id: PeerId, info: &SourceInfo, us: &SourceInfo, now: Time) {
        let Some(record) = self.get_mut(id) else { return };
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
            None => {
                if record.standing != Standing::Up {
                    // Why it could not be reached is history.
                    record.last_error = None;
                }
                record.standing = Standing::Up;
            }
        }
    }

    /// A head that a peer reported, when it was looked at or along with a range. True: it is another one than before.
    pub fn reported(&mut self, id: PeerId, head: Option<(Height, Hash)>, now: Time) -> bool {
        let poll_ms = self.poll_ms;
        let Some(record) = self.get_mut(id) else { return false };
        record.poll_failures = 0;
        record.head_at = now;
        record.next_poll = record.next_poll.max(now.plus_ms(poll_ms));
        let changed = record.head != head;
        record.head = head;
        changed
    }

    /// The newest snapshot that a peer serves. True: it is another one than before.
    pub fn offers(&mut self, id: PeerId, offer: Option<Offer>) -> bool {
        let Some(record) = self.get_mut(id) else { return false };
        let changed = record.snapshot != offer;
        record.snapshot = offer;
        changed
    }

    /// A head that a peer announced by itself, which spares looks at it. True: it can be asked, and the head is another
    /// one than before. One that was away is looked at soon.
    pub fn announced(&mut self, id: PeerId, head: (Height, Hash), now: Time) -> bool {
        let poll_ms = self.poll_ms;
        let Some(record) = self.get_mut(id) else { return false };
        match record.standing {
            Standing::Up => {
                record.head_at = now;
                record.next_poll = now.plus_ms(poll_ms.saturating_mul(ANNOUNCED_SPARES));
                record.head.replace(head) != Some(head)
            }
            Standing::Down => {
                record.next_poll = record.next_poll.min(now.plus_ms(poll_ms));
                false
            }
            Standing::Diverged(_) => {
                // Its branch may be the better one now.
                record.head = Some(head);
                record.next_poll = record.next_poll.min(now.plus_ms(poll_ms));
                false
            }
            Standing::Unknown | Standing::Refused(_) => false,
        }
    }

    /// A look at a peer that failed. The second in a row without any answer makes it down. True: it was up before.
    pub fn poll_failed(&mut self, id: PeerId, error: &SourceError, now: Time) -> bool {
        let poll_ms = self.poll_ms;
        let Some(record) = self.get_mut(id) else { return false };
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
            (record.head, record.snapshot) = (None, None);
        }
        was_up
    }

    /// A range that came: how long until its first byte, how long in all, how much.
    pub fn answered(&mut self, id: PeerId, first_byte_us: u64, duration_us: u64, bytes: u64) {
        let Some(record) = self.get_mut(id) else { return };
        record.bytes += bytes;
        record.latency_us = smoothed(record.latency_us, first_byte_us.max(1));
        let rate = bytes.saturating_mul(1_000_000) / duration_us.max(1);
        record.throughput = smoothed(record.throughput, rate);
    }

    /// Blocks of a peer became part of the chain: what it sent was good.
    pub fn imported(&mut self, id: PeerId, blocks: u64) {
        let Some(record) = self.get_mut(id) else { return };
        record.blocks += blocks;
        record.last_error = None;
        record.opinion.imported();
    }

    /// A request that failed: costs points, and a pause that doubles with each failure in a row.
    pub fn failed(&mut self, id: PeerId, points: u32, reason: String, retry_after_ms: Option<u64>, now: Time) {
        let backoff_max_ms = self.backoff_max_ms;
        if let Some(opinion) = self.opinion_mut(id) {
            opinion.failed(points, retry_after_ms, backoff_max_ms, now);
        }
        if let Some(record) = self.get_mut(id) {
            record.last_error = Some(reason);
        }
    }

    /// Takes points off. At nothing, the peer is left alone for a while.
    pub fn penalise(&mut self, id: PeerId, points: u32, now: Time) {
        let backoff_max_ms = self.backoff_max_ms;
        if let Some(opinion) = self.opinion_mut(id) {
            opinion.penalise(points, backoff_max_ms, now);
        }
    }

    /// Leaves a peer alone for a while.
    pub fn leave_alone(&mut self, id: PeerId, now: Time) {
        let backoff_max_ms = self.backoff_max_ms;
        if let Some(opinion) = self.opinion_mut(id) {
            opinion.leave_alone(backoff_max_ms, now);
        }
    }

    /// A peer did not have `height`, which lies below the head that it reported: for a while it has no more than below.
    pub fn doubt(&mut self, id: PeerId, height: Height, now: Time) {
        let Some(record) = self.get_mut(id) else { return };
        record.doubt = Some((height.saturating_sub(1), now.plus_ms(DOUBT_MS)));
        record.opinion.distrust(now);
    }

    /// A peer has another block than we. It is asked for nothing more until that has changed.
    pub fn diverged(&mut self, id: PeerId, diverged: Diverged, now: Time) {
        let pause_ms = self.poll_ms.saturating_mul(COMPARE_EVERY);
        let Some(record) = self.get_mut(id) else { return };
        record.next_poll = now.plus_ms(pause_ms);
        record.standing = Standing::Diverged(diverged);
        record.diverged_at.get_or_insert(now);
    }

    /// A peer has the same blocks as we. True: it had another one before.
    pub fn agreed(&mut self, id: PeerId) -> bool {
        let Some(record) = self.get_mut(id) else { return false };
        let diverged = matches!(record.standing, Standing::Diverged(_));
        if diverged {
            (record.standing, record.diverged_at) = (Standing::Up, None);
        }
        diverged
    }

    /// The branch of a peer could not be taken: it is not asked for again before the peer itself would be.
    pub fn branch_failed(&mut self, id: PeerId) {
        let Some(record) = self.get_mut(id) else { return };
        record.branch_not_before = record.opinion.not_before;
    }

    /// Looks at everybody next: what was known of them may no longer hold.
    pub fn look_at_all(&mut self, now: Time) {
        for record in self.records_mut().values_mut().filter(|record| record.is_up() || record.diverged_at.is_some()) {
            record.next_poll = now;
        }
    }
}

/// A quarter of what is new, three of what was.
fn smoothed(was: u64, new: u64) -> u64 {
    if was == 0 { new } else { was - was / 4 + new / 4 }
}

#[cfg(test)]
mod tests;
