//! One block on top of the head: rules, execution, state root, storage.

use std::sync::atomic::Ordering;

use super::group::Group;
use super::thread::Thread;
use super::{ImportError, Imported};
use crate::chain::{BlockError, Change, Hash, Head, Header, Height, Time, VerifiedBlock, execute, rules};
use crate::storage::{StorageError, Writer};

/// Why a block was not added: its own fault, or the database's, which ends the group.
pub(super) enum Refused {
    Import(ImportError),
    Storage(StorageError),
}

impl From<StorageError> for Refused {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

impl<E: Into<ImportError>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::Import(error.into())
    }
}

impl Thread {
    /// Puts one block on top of the head.
    pub fn extend(&mut self, verified: VerifiedBlock, now: Time, group: &mut Group) -> Result<Imported, Refused> {
        let height = verified.height();
        if height <= self.head.height {
            return self.compare(&verified);
        }
        if height > self.head.height + 1 {
            return Err(ImportError::Gap { head: self.head.height, got: height }.into());
        }
        let header = &verified.block().header;
        rules::check_child(&self.head, header, &self.genesis, now)?;
        let changes = execute::execute(&self.state, &self.genesis, &verified.block().transactions)
            .map_err(|(index, error)| BlockError::Transaction { index, error })?;
        self.state.apply(&changes);
        let root = self.state.root();
        if root != header.state_root {
            self.state.revert(&changes);
            return Err(BlockError::StateRoot { expected: root, got: header.state_root }.into());
        }
        self.store(verified, changes, group)?;
        Ok(Imported::Extended)
    }

    /// A block at or below the head is known, or another one's rival.
    fn compare(&self, verified: &VerifiedBlock) -> Result<Imported, Refused> {
        let (height, theirs) = (verified.height(), verified.hash());
        if height == self.head.height && theirs == self.head.hash {
            return Ok(Imported::Known);
        }
        let missing = || StorageError::Inconsistent(format!("block {height} is not there"));
        let here = Writer::of(&self.connection).reader().header(height)?.ok_or_else(missing)?;
        let ours = here.hash();
        if ours == theirs {
            return Ok(Imported::Known);
        }
        self.equivocation(&here, &verified.block().header);
        Err(ImportError::Conflict { height, ours, theirs }.into())
    }

    /// Raises two signed headers, if one authority made both for one height.
    pub fn equivocation(&self, ours: &Header, theirs: &Header) {
        if self.forks.compare(ours, theirs, self.clock.now()) {
            self.stats.equivocations.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The hash of our block at `height`, if there is one, with what the open transaction has written.
    pub fn hash_at(&self, height: Height) -> Result<Option<Hash>, StorageError> {
        if height == self.head.height {
            return Ok(Some(self.head.hash));
        }
        Writer::of(&self.connection).reader().hash_at(height)
    }

    /// Stores a block whose changes are in the state already.
    pub fn store(
        &mut self,
        verified: VerifiedBlock,
        changes: Vec<Change>,
        group: &mut Group,
    ) -> Result<(), StorageError> {
        group.changes.push(changes);
        let changes = group.changes.last().expect("just pushed");
        let writer = Writer::of(&self.connection);
        writer.put_block(&verified, changes, &mut self.rows)?;
        for hook in &mut self.hooks {
            hook.on_block(&writer, &verified, &self.state)?;
        }
        for transaction in &verified.block().transactions {
            group.keys.entry(transaction.from()).or_insert(transaction.public_key);
        }
        group.transactions += verified.block().transactions.len();
        let header = &verified.block().header;
        self.head = Head {
            height: header.height,
            hash: verified.hash(),
            parent_hash: header.parent_hash,
            timestamp: header.timestamp,
            tx_count: header.tx_count,
            state_root: header.state_root,
        };
        Ok(())
    }
}
