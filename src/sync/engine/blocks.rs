//! What the engine needs to know of blocks. It moves them and cuts them; what is in them is nobody's business here, so
//! a simulation can put stand-ins in their place that take no memory and no signatures.

use crate::chain::{Height, VerifiedBlock};

/// Verified blocks that follow each other, at least one.
pub trait Blocks: Sized {
    /// The same as they come from a peer, before anybody has looked at them.
    type Body;

    /// The height of the first one.
    fn first(&self) -> Height;

    /// How many there are.
    fn count(&self) -> usize;

    /// Transactions in the one at `index`, counted from 0.
    fn transactions(&self, index: usize) -> usize;

    /// Cuts off all from `index` on, which is not the first and not beyond the last.
    fn split_off(&mut self, index: usize) -> Self;

    /// Puts those that follow the last one at the end.
    fn append(&mut self, following: Self);
}

impl Blocks for Vec<VerifiedBlock> {
    /// Frames, as [`crate::sync::source::frames`] reads them.
    type Body = Vec<u8>;

    fn first(&self) -> Height {
        self[0].height()
    }

    fn count(&self) -> usize {
        self.len()
    }

    fn transactions(&self, index: usize) -> usize {
        self[index].block().transactions.len()
    }

    fn split_off(&mut self, index: usize) -> Self {
        self.split_off(index)
    }

    fn append(&mut self, following: Self) {
        self.extend(following);
    }
}
