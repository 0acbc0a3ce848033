//! A hook that follows the chain from inside the ledger, and checks that it is told everything in order.

use std::sync::{Arc, Mutex};

use tenon::chain::{Hash, Height, State, VerifiedBlock};
use tenon::ledger::{BlockHook, Switched};
use tenon::storage::{StorageError, TakenBlock, Writer};

/// What a hook has heard: it follows the chain, and forgets what was not committed.
#[derive(Clone, Default)]
pub struct Heard(Arc<Mutex<(Vec<Hash>, Vec<Hash>)>>);

impl Heard {
    /// The hashes of the blocks above genesis, as they were told and committed.
    pub fn chain(&self) -> Vec<Hash> {
        self.0.lock().unwrap().0.clone()
    }
}

impl BlockHook for Heard {
    fn on_block(&mut self, _: &Writer<'_>, block: &VerifiedBlock, _: &State) -> Result<(), StorageError> {
        let pending = &mut self.0.lock().unwrap().1;
        assert_eq!(pending.len() as u64 + 1, block.height(), "in order");
        pending.push(block.hash());
        Ok(())
    }

    fn on_undone(&mut self, writer: &Writer<'_>, block: &TakenBlock) -> Result<(), StorageError> {
        let pending = &mut self.0.lock().unwrap().1;
        assert_eq!((pending.len() as Height, pending.pop()), (block.height(), Some(block.hash)), "the newest first");
        assert_eq!(writer.reader().block(block.height())?, None);
        assert_eq!(block.transaction_hashes.len(), block.block.transactions.len());
        Ok(())
    }

    fn on_switched(&mut self, switched: &Switched<'_>) -> Result<(), StorageError> {
        let pending = &self.0.lock().unwrap().1;
        assert_eq!(pending.last(), Some(&switched.reorg.to.hash));
        assert_eq!(pending.len() as Height, switched.reorg.to.height);
        Ok(())
    }

    fn committed(&mut self) {
        let heard = &mut *self.0.lock().unwrap();
        heard.0 = heard.1.clone();
    }

    fn rolled_back(&mut self) {
        let heard = &mut *self.0.lock().unwrap();
        heard.1 = heard.0.clone();
    }
}
