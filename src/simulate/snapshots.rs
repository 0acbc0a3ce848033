//! A snapshot on its way to the node, as [`crate::snapshot::fetch`] downloads it: chunks from all who offer it, each held
//! against its hash; who sends another one is left, who fails too often as well. What is here is kept for the next
//! attempt, and what is here in full takes as long as its headers take to be verified.

use std::collections::VecDeque;

use super::chain::Branch;
use super::exchange::What;
use super::simulation::{Happening, Simulation};
use crate::chain::{Hash, Height, Time};
use crate::snapshot::Progress;
use crate::snapshot::fetch::FetchOptions;
use crate::snapshot::source::Offer;
use crate::sync::PeerId;
use crate::sync::engine::{SnapshotFault, SnapshotNews, Wake};
use crate::sync::source::SourceError;

/// Bytes of a chunk.
pub(super) const CHUNK_BYTES: u64 = 1 << 20;

/// A snapshot under way.
pub(super) struct Taking {
    number: u64,
    offer: Offer,
    branch: Branch,
    peers: Vec<Asked>,
    missing: VecDeque<u64>,
    of: u64,
}

/// What was left of an attempt.
pub(super) struct Left {
    id: Hash,
    missing: VecDeque<u64>,
}

/// Somebody who offers it, and how that has been.
struct Asked {
    peer: PeerId,
    under_way: Vec<u64>,
    failures: u32,
    rests_until: Time,
}

impl Simulation {
    /// Begins a download.
    pub(super) fn fetch_snapshot(&mut self, number: u64, offer: Offer, peers: Vec<PeerId>) {
        let of = self.scenario.chain.snapshot_bytes.div_ceil(CHUNK_BYTES).max(1);
        let kept = self.kept.take().filter(|kept| kept.id == offer.id);
        let missing = kept.map_or_else(|| (0..of).collect(), |kept| kept.missing);
        // Whoever offers the same one is on the same branch, as far as it goes.
        let branch = peers.first().map_or(0, |peer| self.peers[peer].source.branch());
        let asked = |peer| Asked { peer, under_way: Vec::new(), failures: 0, rests_until: Time(0) };
        let peers = peers.into_iter().map(asked).collect();
        self.taking = Some(Taking { number, offer, branch, peers, missing, of });
        self.go_on_with_snapshot();
    }

    /// Ends a download; what is here is kept.
    pub(super) fn end_snapshot(&mut self) {
        let Some(taking) = self.taking.take() else { return };
        self.end_where(|exchange| matches!(exchange.what, What::Chunk { .. }));
        let mut missing = taking.missing;
        missing.extend(taking.peers.iter().flat_map(|asked| &asked.under_way));
        self.kept = Some(Left { id: taking.offer.id, missing });
    }

    /// Asks everybody who has room, and ends the download where nobody is left or nothing is missing.
    pub(super) fn go_on_with_snapshot(&mut self) {
        let Some(taking) = &mut self.taking else { return };
        let (number, now) = (taking.number, self.now);
        if taking.missing.is_empty() && taking.peers.iter().all(|asked| asked.under_way.is_empty()) {
            let at = self.machine.verifies(now, taking.offer.height);
            let progress = Progress { of: usize::try_from(taking.of).unwrap_or(usize::MAX), ..Progress::default() };
            self.agenda.note(at, Happening::SnapshotInstalled(number));
            return self.wake(Wake::Snapshot(number, SnapshotNews::Installed(progress)));
        }
        if taking.peers.is_empty() {
            let reason = format!("{} of {} chunks are missing and no source is left", taking.missing.len(), taking.of);
            self.end_snapshot();
            let fault = SnapshotFault::Unavailable(reason);
            return self.wake(Wake::Snapshot(number, SnapshotNews::Ended(Err(fault))));
        }
        let per_source = FetchOptions::default().per_source;
        let mut asks = Vec::new();
        for round in 0..per_source {
            for asked in taking.peers.iter_mut().filter(|asked| asked.rests_until <= now) {
                if asked.under_way.len() <= round
                    && let Some(index) = taking.missing.pop_front()
                {
                    asked.under_way.push(index);
                    asks.push((asked.peer, index));
                }
            }
        }
        for (peer, index) in asks {
            self.ask(peer, What::Chunk { index }, 1);
        }
    }

    /// A chunk is here, the right one or another.
    pub(super) fn chunk_came(&mut self, peer: PeerId, index: u64, is_wrong: bool) {
        if is_wrong {
            return self.chunk_failed(peer, index, SourceError::Malformed(format!("sends another chunk {index}")));
        }
        self.tally.useful(peer, CHUNK_BYTES);
        let Some(taking) = &mut self.taking else { return };
        if let Some(asked) = taking.peers.iter_mut().find(|asked| asked.peer == peer) {
            (asked.failures, asked.rests_until) = (0, Time(0));
            asked.under_way.retain(|known| *known != index);
        }
        let under_way: usize = taking.peers.iter().map(|asked| asked.under_way.len()).sum();
        let of = usize::try_from(taking.of).unwrap_or(usize::MAX);
        let chunks = of.saturating_sub(taking.missing.len() + under_way);
        let done = Progress { chunks, of, bytes: chunks as u64 * CHUNK_BYTES };
        let number = taking.number;
        self.wake(Wake::Snapshot(number, SnapshotNews::Downloaded(done)));
        self.go_on_with_snapshot();
    }

    /// A chunk did not come, or another one did.
    pub(super) fn chunk_failed(&mut self, peer: PeerId, index: u64, error: SourceError) {
        let (now, options) = (self.now, FetchOptions::default());
        let Some(taking) = &mut self.taking else { return };
        let number = taking.number;
        let Some(asked) = taking.peers.iter_mut().find(|asked| asked.peer == peer) else { return };
        asked.under_way.retain(|known| *known != index);
        taking.missing.push_front(index);
        let lied = matches!(error, SourceError::Malformed(_));
        if asked.rests_until <= now {
            asked.failures += 1;
            let pause = options.pause * 2_u32.pow(asked.failures.min(10) - 1);
            let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            asked.rests_until = now.plus_ms(error.retry_after_ms().unwrap_or(pause_ms));
        }
        let rests_until = asked.rests_until;
        if lied || asked.failures >= options.failures_max {
            // What else it was asked for is asked of others.
            taking.missing.extend(asked.under_way.drain(..));
            taking.peers.retain(|asked| asked.peer != peer);
            self.end_where(|exchange| exchange.peer == peer && matches!(exchange.what, What::Chunk { .. }));
            let left = SnapshotNews::Left { peer, lied, reason: error.to_string() };
            self.wake(Wake::Snapshot(number, left));
            return self.go_on_with_snapshot();
        }
        self.agenda.note(rests_until, Happening::SnapshotGoesOn);
        self.go_on_with_snapshot();
    }

    /// All of it is checked: it is the chain now, unless blocks have come in another way.
    pub(super) fn snapshot_installed(&mut self, number: u64) {
        let Some(taking) = self.taking.take_if(|taking| taking.number == number) else { return };
        let height: Height = taking.offer.height;
        let outcome = if self.local.1 > 0 {
            Err(SnapshotFault::Local(format!("the chain is at block {}", self.local.1)))
        } else {
            self.local = (taking.branch, height);
            self.tally.snapshot_height = height;
            self.tally.grew(self.now, height);
            let head = self.chains.head(self.local.0, height, self.now);
            self.wake(Wake::Head(head));
            Ok(())
        };
        self.wake(Wake::Snapshot(number, SnapshotNews::Ended(outcome)));
    }
}
