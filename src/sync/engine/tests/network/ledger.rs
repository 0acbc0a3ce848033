//! The modelled ledger: imports one after the other, switches to other branches, and a disk that may be full.

use std::cmp::Reverse;

use rand::RngExt;

use super::super::super::{Job, JobDone, Switch, SwitchError, Wake};
use super::Network;
use super::world::{Flaw, Stub, hash, head_of};
use crate::chain::{BlockError, Hash, Height};
use crate::ledger::ImportError;

impl Network {
    /// The oldest import is done.
    pub(super) fn store(&mut self) {
        let Job { parts, blocks, rooms } = self.imports.pop_front().expect("as many as are stored");
        for block in &blocks {
            self.importing.remove(&block.height);
        }
        drop(rooms);
        let fails = self.rng.random_ratio(self.storage_faults, 100);
        let (mut imported, mut error) = (0, fails.then(|| ImportError::Storage("a full disk".into())));
        for block in blocks {
            if error.is_some() {
                break;
            }
            match self.extend(block) {
                Ok(()) => imported += 1,
                Err(reason) => error = Some(reason),
            }
        }
        self.engine.handle(self.now, Wake::Head(head_of(&self.ledger)));
        self.engine.handle(self.now, Wake::Stored(JobDone { parts, imported, error }));
    }

    /// Takes back at most `blocks` for a better branch.
    pub fn limit_reorgs(&mut self, blocks: u64) {
        self.engine.limit_reorgs(blocks);
        self.max_reorg_depth = blocks;
    }

    pub(super) fn switch_branch(&mut self, switch: Switch<Vec<Stub>>) -> Result<(), SwitchError> {
        let Switch { common, blocks, deep, rooms } = switch;
        drop(rooms);
        let ours = head_of(&self.ledger);
        if self.rng.random_ratio(self.storage_faults, 100) {
            return Err(SwitchError::Storage("a full disk".into()));
        }
        if ours.height - common > self.max_reorg_depth && !deep {
            return Err(SwitchError::Refused("too deep".into()));
        }
        let last = blocks[blocks.len() - 1];
        let theirs = (last.height, hash(last.height, last.branch));
        if (theirs.0, Reverse(theirs.1)) <= (ours.height, Reverse(ours.hash)) {
            return Err(SwitchError::Refused("no better".into()));
        }
        let before = self.ledger.clone();
        self.ledger.truncate(common as usize + 1);
        for block in blocks {
            if let Err(error) = self.extend(block) {
                self.ledger = before;
                return Err(SwitchError::Invalid { height: block.height, reason: error.to_string() });
            }
        }
        Ok(())
    }

    pub(super) fn extend(&mut self, Stub { height, branch, flaw }: Stub) -> Result<(), ImportError> {
        let next = self.ledger.len() as Height;
        if height > next {
            return Err(ImportError::Gap { head: next - 1, got: height });
        }
        if height < next {
            let (ours, theirs) = (hash(height, self.ledger[height as usize]), hash(height, branch));
            return if ours == theirs { Ok(()) } else { Err(ImportError::Conflict { height, ours, theirs }) };
        }
        let (expected, got) = (self.ledger[next as usize - 1], self.branch_at(height - 1, branch));
        if expected != got {
            let (expected, got) = (hash(height - 1, expected), hash(height - 1, got));
            return Err(BlockError::Parent { height, expected, got }.into());
        }
        if flaw == Flaw::State {
            return Err(BlockError::StateRoot { expected: Hash::ZERO, got: Hash([1; 32]) }.into());
        }
        assert_eq!(flaw, Flaw::None, "what is not verified is not imported");
        self.ledger.push(branch);
        Ok(())
    }
}
