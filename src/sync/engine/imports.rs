//! From verified ranges to the chain: imports in order, and what becomes of each.

use super::ranges::POINTS_INVALID;
use super::{Blocks, Command, Engine, JobDone, Refusal};
use crate::chain::{BlockError, Head, Height};
use crate::ledger::ImportError;
use crate::sync::pipeline::JOBS_MAX;
use crate::sync::{Event, HeightRange, PeerId};

/// How long nothing is imported after the database failed.
const STORAGE_PAUSE_MS: u64 = 1_000;

impl<B: Blocks> Engine<B> {
    /// The chain grew, by us or by others.
    pub(super) fn head_moved(&mut self, head: Head) {
        if head != self.head {
            self.head = head;
            self.head_at = self.now;
        }
        self.follow_head();
    }

    /// What others put on the chain need not be imported any more.
    fn follow_head(&mut self) {
        if self.importing.is_empty() && self.order.next() <= self.head.height {
            self.order.restart(self.head.height + 1);
        }
    }

    /// Hands on what can be imported.
    pub(super) fn start_imports(&mut self) {
        if self.failed_import && self.importing.is_empty() && self.imports_paused_until <= self.now {
            self.failed_import = false;
            self.order.restart(self.head.height + 1);
        }
        if self.is_switching() || self.is_halted() || self.snapshots.is_under_way() {
            return;
        }
        while !self.failed_import && self.importing.len() < JOBS_MAX {
            let Some(job) = self.order.take() else { break };
            self.importing.push_back(job.range());
            self.commands.push(Command::Import(job));
        }
    }

    pub(super) fn stored(&mut self, done: JobDone) {
        self.importing.pop_front();
        let JobDone { parts, imported, error } = done;
        self.counters.imported += imported;
        let first = parts.first().map_or(0, |(_, range)| range.first);
        for (peer, range) in &parts {
            let good = (first + imported).saturating_sub(range.first).min(range.count());
            if good > 0 {
                self.peers.imported(*peer, good);
            }
        }
        if imported > 0 {
            self.counters.problem = None;
            self.events.push(Event::Imported(HeightRange { first, last: first + (imported - 1) }));
        }
        self.follow_head();
        self.settle_refusals();
        if let Some(error) = error {
            self.failed_import = true;
            let height = first + imported;
            if let Some(&(peer, range)) = parts.iter().find(|(_, range)| range.contains(height)) {
                self.import_failed(peer, range, height, error);
            }
        }
    }

    fn import_failed(&mut self, peer: PeerId, range: HeightRange, height: Height, error: ImportError) {
        match error {
            ImportError::Stopped => self.over = true,
            // What follows a failed one; it comes again.
            ImportError::Gap { .. } => {}
            ImportError::Storage(reason) => {
                tracing::error!(height, reason, "blocks could not be stored");
                self.counters.problem = Some(reason);
                self.imports_paused_until = self.now.plus_ms(STORAGE_PAUSE_MS);
            }
            // Another block at this height, or the one below is another: which of us is alone is found by looking.
            ImportError::Conflict { .. } | ImportError::Invalid(BlockError::Parent { .. }) => {
                self.peers.failed(peer, 0, error.to_string(), None, self.now);
                self.compare_with(peer, height, None);
            }
            // Its clock is ahead of ours, or ours behind: soon it will be valid.
            ImportError::Invalid(BlockError::InFuture { .. }) => {
                self.counters.problem = Some(error.to_string());
                self.peers.failed(peer, 0, error.to_string(), Some(STORAGE_PAUSE_MS), self.now);
            }
            ImportError::Invalid(error) => self.refused(peer, range, height, error),
        }
    }

    /// The ledger refuses a block. The first who sent it that way pays at once, and nothing else of what it sent is used.
    /// Others who send the same may be right, and the fault ours: they pay once another version proves to be valid.
    fn refused(&mut self, peer: PeerId, range: HeightRange, height: Height, error: BlockError) {
        self.drop_of(peer);
        let mut reason = format!("block {height} is not valid: {error}");
        let known = self.refusals.iter_mut().find(|known| known.height == height && known.error == error);
        let Some(known) = known else {
            self.refusals.push(Refusal { height, error, peers: vec![peer] });
            return self.invalid(0, peer, range, reason);
        };
        if !known.peers.contains(&peer) {
            known.peers.push(peer);
        }
        reason = format!("{reason}; {} peers send the same", known.peers.len());
        self.charge(0, peer, range, 0, reason);
    }

    /// Lets go of all that a peer sent and that is not on its way to the chain yet.
    pub(super) fn drop_of(&mut self, peer: PeerId) {
        self.order.drop_of(peer);
        self.verifying.retain(|_, verifying| verifying.peer != peer);
    }

    /// The chain has passed a block that some sent in another version.
    fn settle_refusals(&mut self) {
        let head = self.head.height;
        let settled: Vec<_> = self.refusals.extract_if(.., |refusal| refusal.height <= head).collect();
        for Refusal { height, error, peers } in settled {
            for peer in peers.into_iter().skip(1) {
                let reason = format!("its block {height} was not valid: {error}");
                self.peers.failed(peer, POINTS_INVALID, reason, None, self.now);
            }
        }
    }
}
