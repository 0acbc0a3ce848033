//! What verifying and importing cost a node, and what becomes of an import.

use std::cmp::Reverse;

use super::chain::{Run, Stretch};
use super::scenario::Node;
use super::simulation::Simulation;
use crate::chain::{BlockError, Height, Time};
use crate::ledger::ImportError;
use crate::sync::engine::{Job, JobDone, MAX_REORG_DEPTH, Switch, SwitchError, Wake};

/// The node's hands: one range is verified and one import stored at a time, at fixed rates.
pub(super) struct Machine {
    verify_per_second: u64,
    import_per_second: u64,
    verifies_until: Time,
    imports_until: Time,
}

impl Machine {
    pub(super) fn new(node: &Node) -> Self {
        Self {
            verify_per_second: node.verify_per_second,
            import_per_second: node.import_per_second,
            verifies_until: Time(0),
            imports_until: Time(0),
        }
    }

    /// When so many blocks that come in now are verified.
    pub(super) fn verifies(&mut self, now: Time, blocks: u64) -> Time {
        self.verifies_until = done_at(self.verifies_until.max(now), blocks, self.verify_per_second);
        self.verifies_until
    }

    /// When so many blocks that are handed in now are stored.
    pub(super) fn imports(&mut self, now: Time, blocks: u64) -> Time {
        self.imports_until = done_at(self.imports_until.max(now), blocks, self.import_per_second);
        self.imports_until
    }
}

fn done_at(from: Time, blocks: u64, per_second: u64) -> Time {
    Time(from.0.saturating_add(blocks.saturating_mul(1_000_000) / per_second))
}

impl Simulation {
    /// An import is over: the blocks that follow the head are on the chain, as the ledger would have it.
    pub(super) fn stored(&mut self, job: Job<Stretch>) {
        let (mut imported, mut error) = (0, None);
        for run in &job.blocks.runs {
            let (branch, head) = self.local;
            if run.first <= head {
                self.tally.imported_twice += head.min(run.last()) - run.first + 1;
            }
            if run.first != head + 1 {
                error = Some(ImportError::Gap { head, got: run.first });
                break;
            }
            let (expected, got) = (self.chains.hash(branch, head), self.chains.hash(run.branch, head));
            if expected != got {
                error = Some(BlockError::Parent { height: run.first, expected, got }.into());
                break;
            }
            imported += run.count;
            // A branch shares the chain's blocks below its own.
            let own = self.chains.hash(run.branch, run.last()) != self.chains.hash(branch, run.last());
            self.local = (if own { run.branch } else { branch }, run.last());
        }
        if imported > 0 {
            let head = self.chains.head(self.local.0, self.local.1, self.now);
            self.tally.grew(self.now, head.height);
            self.wake(Wake::Head(head));
        }
        let Job { parts, rooms, .. } = job;
        let first = parts.first().map_or(0, |(_, range)| range.first);
        for (peer, range) in &parts {
            let good = (first + imported).saturating_sub(range.first).min(range.count());
            self.tally.useful(*peer, good.saturating_mul(self.scenario.chain.block_bytes));
        }
        drop(rooms);
        self.wake(Wake::Stored(JobDone { parts, imported, error }));
    }

    /// Another branch takes the place of ours, if it is better and may, as the ledger would have it.
    pub(super) fn switched(&mut self, switch: Switch<Stretch>) {
        let Switch { common, blocks, deep, rooms } = switch;
        let (branch, head) = self.local;
        let last = blocks.runs.last().expect("a switch has blocks");
        let ours = (head, Reverse(self.chains.hash(branch, head)));
        let theirs = (last.last(), Reverse(self.chains.hash(last.branch, last.last())));
        let outcome = if theirs <= ours {
            Err(SwitchError::Refused("it is no better".into()))
        } else if head - common > MAX_REORG_DEPTH && !deep {
            Err(SwitchError::Refused("too many blocks would be taken back".into()))
        } else if !self.follows(common, &blocks.runs) {
            Err(SwitchError::Invalid { height: common + 1, reason: "it does not build on our chain".into() })
        } else {
            Ok(())
        };
        if outcome.is_ok() {
            self.local = (last.branch, last.last());
            self.tally.reorganised += 1;
            self.tally.grew(self.now, last.last());
            let head = self.chains.head(self.local.0, self.local.1, self.now);
            self.wake(Wake::Head(head));
        }
        drop(rooms);
        self.wake(Wake::Switched(outcome));
    }

    /// Whether runs follow each other, and the first of them our block at `common`.
    fn follows(&self, common: Height, runs: &[Run]) -> bool {
        let mut below = (self.local.0, common);
        runs.iter().all(|run| {
            let (branch, height) = std::mem::replace(&mut below, (run.branch, run.last()));
            run.first == height + 1 && self.chains.hash(branch, height) == self.chains.hash(run.branch, height)
        })
    }
}
