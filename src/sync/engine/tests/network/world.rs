//! What a modelled network is made of: blocks without content, chains that fork, peers with vices.

use super::super::super::Blocks;
use crate::chain::{BlockError, Hash, Head, Height, Time};
use crate::sync::pipeline::RangeFault;

/// Where the clock of a run begins.
pub const START: Time = Time(1_735_689_600_000_000);

/// Bytes of a modelled block.
pub const BLOCK_BYTES: u64 = 1_000;

/// Which of the valid chains a block is on. All are the same up to [`Fork::after`].
pub type Branch = u8;

/// A modelled block: nothing but what tells it from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stub {
    pub height: Height,
    pub branch: Branch,
    pub flaw: Flaw,
}

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// Shows when it is verified.
    Signature,
    /// Shows when it is imported.
    State,
}

impl Blocks for Vec<Stub> {
    type Body = Vec<Stub>;

    fn first(&self) -> Height {
        self[0].height
    }

    fn count(&self) -> usize {
        self.len()
    }

    fn transactions(&self, _: usize) -> usize {
        1
    }

    fn split_off(&mut self, index: usize) -> Self {
        self.split_off(index)
    }

    fn append(&mut self, following: Self) {
        self.extend(following);
    }
}

/// How a peer behaves. Whatever it does takes its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// As it should.
    Honest,
    /// As it should, but every so many answers, in hundreds, fail.
    Flaky(u32),
    /// Never answers.
    Silent,
    /// Answers who it is and what it has, but no range.
    Stalls,
    /// Has none of the blocks that it reports.
    Empty,
    /// Blocks that are not signed.
    Forged,
    /// Blocks whose state is wrong, though they are signed.
    Corrupt,
    /// One block whose state is wrong, though it is signed, and always the same.
    Mistaken(Height),
    /// Reports a head far above its own.
    Boasts,
    /// Sends half of what it was asked for.
    Short,
    /// Wants to be left alone.
    Limited,
    /// Of another chain.
    Stranger,
    /// Announces a new head all the time.
    Chatty,
    /// On another valid branch.
    Forked(Branch),
    /// On another branch, whose blocks have a wrong state.
    Warped(Branch),
}

impl Nature {
    /// Every vice there is.
    pub const VICES: [Self; 10] = [
        Self::Silent,
        Self::Stalls,
        Self::Empty,
        Self::Forged,
        Self::Corrupt,
        Self::Boasts,
        Self::Short,
        Self::Limited,
        Self::Stranger,
        Self::Chatty,
    ];
}

/// A peer of the model.
#[derive(Clone, Debug)]
pub struct Model {
    pub name: String,
    pub nature: Nature,
    /// The most that an answer takes, in milliseconds.
    pub delay_ms: u64,
    /// What it is behind the chain.
    pub lag: Height,
}

/// A branch that leaves the main chain.
#[derive(Clone, Copy, Debug)]
pub struct Fork {
    /// The last block that is the same.
    pub after: Height,
    /// Its height.
    pub height: Height,
}

/// The hash of a valid block.
pub fn hash(height: Height, branch: Branch) -> Hash {
    Hash::of(&[b"model", &height.to_be_bytes(), &[branch]])
}

/// The head of a local chain.
pub fn head_of(ledger: &[Branch]) -> Head {
    let height = ledger.len() as Height - 1;
    let hash = hash(height, ledger[ledger.len() - 1]);
    Head { height, hash, parent_hash: Hash::ZERO, timestamp: START, tx_count: 0, state_root: Hash::ZERO }
}

/// Looks at blocks as a node does before it imports them.
pub fn verify(first: Height, body: Vec<Stub>) -> Result<Vec<Stub>, RangeFault> {
    for (expected, block) in (first..).zip(&body) {
        if block.height != expected {
            return Err(RangeFault::Height { expected, got: block.height });
        }
        if block.flaw == Flaw::Signature {
            return Err(RangeFault::Invalid { height: expected, error: BlockError::Signature });
        }
    }
    Ok(body)
}
