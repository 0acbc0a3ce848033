//! What the ledger has to say of forks: a switch to another branch, why one was refused, an authority that signed two
//! blocks for one height.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Mutex;

use serde::Serialize;
use tokio::sync::broadcast;

use crate::chain::{Address, BlockError, Hash, Head, Header, Height, Time, fork_choice};

/// How many blocks a switch may take back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Up to [`super::LedgerOptions::max_reorg_depth`].
    Limited,
    /// Any number: beyond the undo records, the accounts are made anew from the blocks, which takes as long as executing
    /// the whole chain once. For an operator who has decided so.
    Any,
}

/// A switch from one branch to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reorg {
    /// The highest block that both branches have.
    pub common: Height,
    /// The head before.
    pub from: Head,
    /// The head after.
    pub to: Head,
    /// Blocks taken back; 0 where the branch only extends the head.
    pub undone: u64,
    /// Blocks put on top of the common one.
    pub applied: u64,
    /// When, by this node's clock.
    pub at: Time,
}

/// Why the chain was not moved to another branch. Everything is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// There is nothing in it.
    #[error("the branch has no blocks")]
    Empty,
    /// Our chain is the better one, or the same.
    #[error("our head is block {ours_height} {ours}, the branch ends with block {theirs_height} {theirs}: no better")]
    Worse {
        /// Our head's height.
        ours_height: Height,
        /// Our head.
        ours: Hash,
        /// The height of the branch's last block.
        theirs_height: Height,
        /// The branch's last block.
        theirs: Hash,
    },
    /// It does not start on a block of ours.
    #[error("field `parent_hash`: block {height} of the branch builds on {parent}, which is not our block below it")]
    UnknownParent {
        /// The height of its first block.
        height: Height,
        /// What that builds on.
        parent: Hash,
    },
    /// It would take back more than is allowed.
    #[error("the branch leaves ours at block {common}, {depth} below the head; at most {max} are taken back")]
    TooDeep {
        /// The highest block that both branches have.
        common: Height,
        /// Blocks that would be taken back.
        depth: u64,
        /// Blocks that may be.
        max: u64,
    },
    /// A block of the branch breaks a rule.
    #[error("block {height} {hash} of the branch is not valid: {error}")]
    Invalid {
        /// Its height.
        height: Height,
        /// Its hash.
        hash: Hash,
        /// Which rule.
        error: BlockError,
    },
    /// The database failed.
    #[error("{0}")]
    Storage(String),
    /// The ledger has stopped.
    #[error("the ledger has stopped")]
    Stopped,
}

/// One authority signed two blocks for one height: it is faulty, or its key is in two places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Equivocation {
    /// Which height.
    pub height: Height,
    /// Who.
    pub proposer: Address,
    /// The block that was here.
    pub ours: Hash,
    /// The other one, whose signature holds too.
    pub theirs: Hash,
    /// When it was seen.
    pub at: Time,
}

/// Reorgs that a slow listener may be behind before it misses some.
const REORGS_MAX: usize = 64;
/// Equivocations that are listed, the newest ones.
const LISTED_MAX: usize = 64;
/// Pairs of height and authority that are told apart; beyond, they are only counted.
const EQUIVOCATIONS_MAX: usize = 1_024;

/// What the ledger's thread says and its handles read.
pub(super) struct Forks {
    pub reorgs: broadcast::Sender<Reorg>,
    shared: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    last: Option<Reorg>,
    /// Where the branch leaves ours that was last refused as too deep: it is offered again and again, and grows.
    too_deep: Option<Height>,
    equivocations: VecDeque<Equivocation>,
    seen: BTreeSet<(Height, Address)>,
}

impl Default for Forks {
    fn default() -> Self {
        Self { reorgs: broadcast::Sender::new(REORGS_MAX), shared: Mutex::default() }
    }
}

impl Forks {
    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.shared.lock().expect("nobody panics while holding it")
    }

    pub fn last_reorg(&self) -> Option<Reorg> {
        self.told().last.clone()
    }

    pub fn equivocations(&self) -> Vec<Equivocation> {
        self.told().equivocations.iter().cloned().collect()
    }

    /// Tells of a switch, once it is durable.
    pub fn reorg(&self, reorg: &Reorg) {
        let Reorg { common, from, to, undone, applied, .. } = reorg;
        tracing::warn!(common, undone, applied, from = %from.hash, to = %to.hash, height = to.height, "reorg");
        self.told().last = Some(reorg.clone());
        // Nobody may be listening.
        _ = self.reorgs.send(reorg.clone());
    }

    /// Raises a branch that was refused, the first time.
    pub fn too_deep(&self, common: Height, error: &SwitchError) {
        if self.told().too_deep.replace(common) != Some(common) {
            tracing::error!(%error, "a better branch is refused: the chains have diverged, and a person has to decide");
        }
    }

    /// Notes two signed headers if they are an equivocation: the first of one authority at one height is logged.
    pub fn compare(&self, ours: &Header, theirs: &Header, at: Time) -> bool {
        if !fork_choice::is_equivocation(ours, theirs) {
            return false;
        }
        let (height, proposer) = (ours.height, ours.proposer);
        let equivocation = Equivocation { height, proposer, ours: ours.hash(), theirs: theirs.hash(), at };
        let told = &mut *self.told();
        if told.seen.len() < EQUIVOCATIONS_MAX && told.seen.insert((height, proposer)) {
            let Equivocation { ours, theirs, .. } = &equivocation;
            tracing::error!(height, %proposer, %ours, %theirs, "an authority signed two blocks for one height");
            told.equivocations.push_back(equivocation);
            if told.equivocations.len() > LISTED_MAX {
                told.equivocations.pop_front();
            }
        }
        true
    }
}
