//! From one branch to another: our blocks above the fork are taken back and the others put in their place, in one
//! commit. Whatever goes wrong on the way, everything is as it was.

use std::sync::atomic::Ordering;

use tokio::sync::watch;

use super::extend::Refused;
use super::fork::{Reach, Reorg, SwitchError};
use super::group::Group;
use super::thread::Thread;
use super::{ImportError, Switched};
use crate::chain::{BlockError, Change, Head, Height, State, VerifiedBlock, fork_choice, rules};
use crate::storage::{StorageError, TakenBlock, Writer};

/// A branch whose first block builds on our block `common`.
struct Branch {
    blocks: Vec<VerifiedBlock>,
    common: Height,
    /// Whether undo records reach down to `common`; else the accounts are made anew.
    recorded: bool,
}

/// What brings the state back if the switch fails.
enum Before {
    /// What the blocks had changed that were taken back, the newest first.
    Changes(Vec<Vec<Change>>),
    /// All of it.
    State(Box<State>),
}

impl From<StorageError> for SwitchError {
    fn from(error: StorageError) -> Self {
        Self::Storage(error.to_string())
    }
}

impl Thread {
    /// A commit of its own: the switch, if the branch wins.
    pub fn switch(
        &mut self,
        branch: Vec<VerifiedBlock>,
        reach: Reach,
        head: &watch::Sender<Head>,
    ) -> Result<Reorg, SwitchError> {
        let branch = self.examine(branch, reach).inspect_err(|error| {
            if let SwitchError::TooDeep { common, .. } = error {
                self.stats.reorgs_refused.fetch_add(1, Ordering::Relaxed);
                self.forks.too_deep(*common, error);
            }
        })?;
        let (common, applied) = (branch.common, branch.blocks.len() as u64);
        let mut group = self.new_group();
        let mut before = Before::Changes(Vec::new());
        let outcome = self.replace(branch, &mut group, &mut before);
        let reorg = match outcome {
            Ok(reorg) => reorg,
            Err(error) => {
                tracing::warn!(%error, common, applied, "a switch to another branch failed, nothing has changed");
                if matches!(error, SwitchError::Storage(_)) {
                    self.stats.commit_failed();
                }
                self.abandon(group, before);
                return Err(error);
            }
        };
        if reorg.undone > 0 {
            self.stats.reorgs.fetch_add(1, Ordering::Relaxed);
            self.stats.blocks_undone.fetch_add(reorg.undone, Ordering::Relaxed);
        }
        self.finish(group, Ok(()), head);
        if reorg.undone > 0 {
            self.forks.reorg(&reorg);
        }
        Ok(reorg)
    }

    /// Whether the branch hangs together, starts on a block of ours, wins, and is not too deep.
    fn examine(&self, mut blocks: Vec<VerifiedBlock>, reach: Reach) -> Result<Branch, SwitchError> {
        let last = blocks.last().ok_or(SwitchError::Empty)?;
        let (ours, theirs) = (self.head.place(), (last.height(), last.hash()));
        for pair in blocks.windows(2) {
            let (parent, child) = (Head::from(&pair[0].block().header), &pair[1]);
            rules::check_link(&parent, &child.block().header).map_err(|error| invalid(child, error))?;
        }
        if !fork_choice::prefers(ours, theirs) {
            let ((ours_height, ours), (theirs_height, theirs)) = (ours, theirs);
            return Err(SwitchError::Worse { ours_height, ours, theirs_height, theirs });
        }
        // What is ours already is no part of the branch.
        let mut shared = 0;
        while shared < blocks.len() && self.hash_at(blocks[shared].height())? == Some(blocks[shared].hash()) {
            shared += 1;
        }
        blocks.drain(..shared);
        let first = &blocks.first().expect("the last one is better than our head, so it is not ours").block().header;
        let unknown = SwitchError::UnknownParent { height: first.height, parent: first.parent_hash };
        let common = first.height.checked_sub(1).ok_or(unknown.clone())?;
        if self.hash_at(common)? != Some(first.parent_hash) {
            return Err(unknown);
        }
        let depth = self.head.height - common;
        let lowest = Writer::of(&self.connection).reader().lowest_undo()?;
        let available = lowest.map_or(0, |lowest| (self.head.height + 1).saturating_sub(lowest));
        let max = self.max_reorg_depth.min(available);
        if reach == Reach::Limited && depth > max {
            return Err(SwitchError::TooDeep { common, depth, max });
        }
        Ok(Branch { blocks, common, recorded: depth <= available })
    }

    /// Opens the transaction, takes our blocks back, puts the branch in their place, and commits.
    fn replace(&mut self, branch: Branch, group: &mut Group, before: &mut Before) -> Result<Reorg, SwitchError> {
        let Branch { blocks, common, recorded } = branch;
        let (from, applied) = (self.head.clone(), blocks.len() as u64);
        self.connection.begin()?;
        if recorded {
            self.undo_down_to(common, &blocks, before)?;
        } else {
            self.rebuild_up_to(common, &blocks, before)?;
        }
        let now = self.clock.now();
        for block in blocks {
            let (height, hash) = (block.height(), block.hash());
            self.extend(block, now, group).map_err(|refused| match refused {
                Refused::Import(ImportError::Invalid(error)) => SwitchError::Invalid { height, hash, error },
                Refused::Import(error) => SwitchError::Storage(error.to_string()),
                Refused::Storage(error) => error.into(),
            })?;
        }
        self.write_group(group)?;
        let undone = from.height - common;
        let reorg = Reorg { common, from, to: self.head.clone(), undone, applied, at: now };
        if undone > 0 {
            let writer = Writer::of(&self.connection);
            let switched = Switched { writer: &writer, state: &self.state, genesis: &self.genesis, reorg: &reorg };
            self.hooks.iter_mut().try_for_each(|hook| hook.on_switched(&switched))?;
        }
        self.connection.commit()?;
        Ok(reorg)
    }

    fn undo_down_to(
        &mut self,
        common: Height,
        branch: &[VerifiedBlock],
        before: &mut Before,
    ) -> Result<(), StorageError> {
        let mut taken_back = Vec::new();
        let mut outcome = Ok(());
        for height in (common + 1..=self.head.height).rev() {
            let undone = Writer::of(&self.connection).take_block(height, &self.known_keys);
            outcome = undone.and_then(|(taken, changes)| {
                self.state.revert(&changes);
                taken_back.push(changes);
                self.undone(&taken, branch)
            });
            if outcome.is_err() {
                break;
            }
        }
        *before = Before::Changes(taken_back);
        outcome?;
        self.stand_at(common)
    }

    /// As [`Thread::undo_down_to`], where no records reach: slow, and right.
    fn rebuild_up_to(
        &mut self,
        common: Height,
        branch: &[VerifiedBlock],
        before: &mut Before,
    ) -> Result<(), StorageError> {
        tracing::warn!(common, head = self.head.height, "the accounts are made anew from the blocks");
        for height in (common + 1..=self.head.height).rev() {
            let taken = Writer::of(&self.connection).take_block_alone(height)?;
            self.undone(&taken, branch)?;
        }
        let writer = Writer::of(&self.connection);
        let replayed = writer.reader().replay(&self.genesis, common, |_, _| {})?;
        writer.put_replayed(&replayed)?;
        *before = Before::State(Box::new(std::mem::replace(&mut self.state, replayed.state)));
        self.stand_at(common)
    }

    /// Tells whoever follows the chain of a block that is gone, and looks who made its rival.
    fn undone(&mut self, taken: &TakenBlock, branch: &[VerifiedBlock]) -> Result<(), StorageError> {
        let first = branch.first().map_or(0, VerifiedBlock::height);
        let rival = taken.height().checked_sub(first).and_then(|at| branch.get(usize::try_from(at).ok()?));
        if let Some(rival) = rival {
            self.equivocation(&taken.block.header, &rival.block().header);
        }
        let writer = Writer::of(&self.connection);
        self.hooks.iter_mut().try_for_each(|hook| hook.on_undone(&writer, taken))
    }

    fn stand_at(&mut self, height: Height) -> Result<(), StorageError> {
        let head = Writer::of(&self.connection).reader().head()?;
        let missing = || StorageError::Inconsistent(format!("block {height} is not there"));
        self.head = head.filter(|head| head.height == height).ok_or_else(missing)?;
        Ok(())
    }

    /// Brings everything back to what it was before the switch.
    fn abandon(&mut self, group: Group, before: Before) {
        for changes in group.changes.iter().rev() {
            self.state.revert(changes);
        }
        match before {
            Before::Changes(taken_back) => taken_back.iter().rev().for_each(|changes| self.state.apply(changes)),
            Before::State(state) => self.state = *state,
        }
        self.forget(group.head, group.signed);
    }
}

fn invalid(block: &VerifiedBlock, error: BlockError) -> SwitchError {
    SwitchError::Invalid { height: block.height(), hash: block.hash(), error }
}
