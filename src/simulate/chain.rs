//! The blocks of a simulation: told from each other by height and branch, and nothing else in them. They stand in for
//! real ones in the node's own engine, and take no memory.

use crate::chain::{Hash, Head, Height, Time};
use crate::sync::engine::Blocks;
use crate::sync::pipeline::RangeFault;

/// When a simulation begins: some day, since strategies are told the date.
pub const START: Time = Time(1_790_000_000_000_000);

/// The chain's identity, for peers to be on it.
pub const CHAIN_ID: &str = "simulated";

/// Which blocks: 0 is the chain, each other number a branch that leaves it somewhere.
pub type Branch = u32;

/// All blocks there are, at any time.
#[derive(Clone, Debug)]
pub struct Chains {
    blocks: Height,
    block_ms: u64,
    transactions: usize,
    /// The lowest height of each branch, by its number; of the chain 0.
    from: Vec<Height>,
}

/// Blocks that follow each other on one branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The lowest height.
    pub first: Height,
    /// How many; at least 1.
    pub count: u64,
    /// Whose.
    pub branch: Branch,
}

/// Verified blocks that follow each other: a run from each peer that sent some of them.
#[derive(Clone, Debug)]
pub struct Stretch {
    /// The runs, ascending, without gaps.
    pub runs: Vec<Run>,
    /// Transactions in each block.
    pub transactions: usize,
}

/// Blocks as they come from a peer.
#[derive(Clone, Debug)]
pub struct Body {
    /// What they are, if they are blocks.
    pub run: Run,
    /// What verification finds wrong with them.
    pub fault: Option<RangeFault>,
}

impl Chains {
    /// A chain of `blocks` at the start, that grows by one every `block_ms`, with so many transactions in each block.
    pub fn new(blocks: Height, block_ms: u64, transactions: u64) -> Self {
        let transactions = usize::try_from(transactions).unwrap_or(usize::MAX);
        Self { blocks, block_ms, transactions, from: vec![0] }
    }

    /// Adds a branch whose lowest own block is at `from`.
    pub fn branch(&mut self, from: Height) -> Branch {
        self.from.push(from);
        Branch::try_from(self.from.len() - 1).expect("fewer branches than numbers")
    }

    /// Transactions in each block.
    pub fn transactions(&self) -> usize {
        self.transactions
    }

    /// The chain's head at `now`.
    pub fn head_at(&self, now: Time) -> Height {
        let grown = now.ms_since(START).checked_div(self.block_ms).unwrap_or(0);
        self.blocks.saturating_add(grown)
    }

    /// The hash of the block at `height` of a branch: below where it leaves the chain, the chain's.
    pub fn hash(&self, branch: Branch, height: Height) -> Hash {
        let own = if height < self.from[branch as usize] { 0 } else { branch };
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&height.to_be_bytes());
        bytes[8..12].copy_from_slice(&own.to_be_bytes());
        bytes[31] = 1;
        Hash(bytes)
    }

    /// The block at `height` of a branch as a local head.
    pub fn head(&self, branch: Branch, height: Height, now: Time) -> Head {
        Head {
            height,
            hash: self.hash(branch, height),
            parent_hash: height.checked_sub(1).map_or(Hash::ZERO, |below| self.hash(branch, below)),
            timestamp: now,
            tx_count: u32::try_from(self.transactions).unwrap_or(u32::MAX),
            state_root: Hash::ZERO,
        }
    }

    /// The lowest height, up to `height`, at which two branches differ.
    pub fn parting(&self, one: Branch, other: Branch, height: Height) -> Option<Height> {
        let (one_from, other_from) = (self.from[one as usize], self.from[other as usize]);
        let parting = match (one, other) {
            _ if one == other => return None,
            (0, _) => other_from,
            (_, 0) => one_from,
            _ => one_from.min(other_from),
        };
        (parting <= height).then_some(parting)
    }
}

impl Run {
    /// The highest height.
    pub fn last(&self) -> Height {
        self.first + (self.count - 1)
    }
}

impl Body {
    /// An answer without a block.
    pub fn nothing() -> Self {
        Self { run: Run { first: 0, count: 0, branch: 0 }, fault: None }
    }
}

impl Blocks for Stretch {
    type Body = Body;

    fn first(&self) -> Height {
        self.runs[0].first
    }

    fn count(&self) -> usize {
        let count: u64 = self.runs.iter().map(|run| run.count).sum();
        usize::try_from(count).expect("a range is short")
    }

    fn transactions(&self, _: usize) -> usize {
        self.transactions
    }

    fn split_off(&mut self, index: usize) -> Self {
        let from = self.first() + index as u64;
        let whole = self.runs.iter().position(|run| run.last() >= from).expect("not beyond the last");
        let mut runs = self.runs.split_off(whole);
        let cut = runs[0];
        if cut.first < from {
            self.runs.push(Run { count: from - cut.first, ..cut });
            runs[0] = Run { first: from, count: cut.last() - from + 1, ..cut };
        }
        Self { runs, transactions: self.transactions }
    }

    fn append(&mut self, following: Self) {
        self.runs.extend(following.runs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_grows_and_branches_leave_it() {
        let mut chains = Chains::new(100, 2_000, 1);
        assert_eq!((chains.head_at(START), chains.head_at(START.plus_ms(1_999))), (100, 100));
        assert_eq!((chains.head_at(START.plus_ms(2_000)), chains.head_at(START.plus_ms(9_000))), (101, 104));
        let standing = Chains::new(100, 0, 1);
        assert_eq!(standing.head_at(Time::MAX), 100);

        let (one, other) = (chains.branch(50), chains.branch(60));
        assert_eq!(chains.hash(one, 49), chains.hash(0, 49));
        assert_ne!(chains.hash(one, 50), chains.hash(0, 50));
        assert_ne!(chains.hash(one, 70), chains.hash(other, 70));
        assert_eq!((chains.parting(0, one, 100), chains.parting(0, one, 49)), (Some(50), None));
        assert_eq!((chains.parting(one, other, 100), chains.parting(one, one, 100)), (Some(50), None));
        assert_eq!(chains.head(other, 60, START).parent_hash, chains.hash(0, 59));
    }

    #[test]
    fn a_stretch_is_cut_and_joined_at_any_height() {
        let run = |first, count, branch| Run { first, count, branch };
        let whole = Stretch { runs: vec![run(5, 3, 0), run(8, 1, 1), run(9, 4, 0)], transactions: 2 };
        assert_eq!((whole.first(), whole.count()), (5, 8));
        for index in 1..8 {
            let mut low = whole.clone();
            let high = low.split_off(index);
            assert_eq!((low.count(), high.count(), high.first()), (index, 8 - index, 5 + index as u64));
            let branch_at = |stretch: &Stretch, height| {
                stretch.runs.iter().find(|run| (run.first..=run.last()).contains(&height)).map(|run| run.branch)
            };
            low.append(high);
            for height in 5..13 {
                assert_eq!(branch_at(&low, height), branch_at(&whole, height), "{height}, cut at {index}");
            }
        }
    }
}
