//! Another valid branch: whether it is better than ours, and if so its way here. It is fetched from the peer that has it,
//! from the first block that differs to the one that makes it better, verified like everything else, and handed to the
//! ledger as a whole, which takes it in place of ours or leaves everything as it is.

use super::ranges::{POINTS_EMPTY, ROOM_MIN};
use super::{Blocks, Command, Engine, Fetched};
use crate::chain::{Height, fork_choice};
use crate::sync::budget::Reservation;
use crate::sync::peers::Standing;
use crate::sync::pipeline::RangeFault;
use crate::sync::source::SourceError;
use crate::sync::{Event, HeightRange, OnDivergence, PeerId, RefusedReorg, RequestId};

/// Blocks to be taken in place of ours.
pub struct Switch<B> {
    /// The highest block that both branches have.
    pub common: Height,
    /// Those after it, up to one that makes the branch the better one.
    pub blocks: B,
    /// Whether more of our blocks may be taken back than the chain's `max_reorg_depth`.
    pub deep: bool,
    /// What they take of the budget, until they are stored.
    pub rooms: Vec<Reservation>,
}

/// Why a branch was not taken. Everything is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// A block of it breaks a rule.
    #[error("block {height} of its branch is not valid: {reason}")]
    Invalid {
        /// Which.
        height: Height,
        /// Which rule, in words.
        reason: String,
    },
    /// The ledger does not want it.
    #[error("{0}")]
    Refused(String),
    /// The database failed.
    #[error("{0}")]
    Storage(String),
    /// The ledger has stopped.
    #[error("the ledger has stopped")]
    Stopped,
}

/// A branch on its way here.
pub(super) struct Branch<B> {
    peer: PeerId,
    common: Height,
    /// Up to where it is fetched.
    last: Height,
    deep: bool,
    blocks: Option<B>,
    rooms: Vec<Reservation>,
    step: Step,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A part of it is asked for.
    Fetching(RequestId, HeightRange),
    /// A part of it is being verified.
    Verifying(RequestId, HeightRange),
    /// It is here, and waits for the imports under way.
    Here,
    /// The ledger has it.
    Switching,
}

impl<B: Blocks> Branch<B> {
    /// The first height that is not here.
    fn next(&self) -> Height {
        self.common + 1 + self.blocks.as_ref().map_or(0, |blocks| blocks.count() as u64)
    }
}

impl<B: Blocks> Engine<B> {
    /// Whether nothing is to change any more until somebody has looked into a divergence.
    pub(super) fn is_halted(&self) -> bool {
        let diverged = || self.peers.iter().any(|peer| matches!(peer.standing, Standing::Diverged(_)));
        self.config.on_divergence == OnDivergence::Halt && diverged()
    }

    /// Whether imports have to wait for a switch to another branch.
    pub(super) fn is_switching(&self) -> bool {
        self.branch.as_ref().is_some_and(|branch| matches!(branch.step, Step::Here | Step::Switching))
    }

    /// Whether a request for a branch is under way.
    pub(super) fn is_fetching_branch(&self) -> bool {
        self.branch.as_ref().is_some_and(|branch| matches!(branch.step, Step::Fetching(..)))
    }

    /// Goes for the branch of a peer, if that is better than ours and may be taken. One at a time.
    pub(super) fn consider_branch(&mut self, peer: PeerId) {
        if self.branch.is_some() || self.snapshots.is_under_way() || self.config.on_divergence == OnDivergence::Halt {
            return;
        }
        let Some(record) = self.peers.get(peer) else { return };
        let (Standing::Diverged(diverged), Some(theirs)) = (&record.standing, record.head) else { return };
        let (common, ours) = (diverged.height.saturating_sub(1), (self.head.height, self.head.hash));
        if record.branch_not_before > self.now || !fork_choice::prefers(ours, theirs) {
            return;
        }
        let (depth, max) = (ours.0.saturating_sub(common), self.max_reorg_depth);
        let deep = depth > max;
        if deep && self.config.on_divergence != OnDivergence::Resync {
            let source = &record.name;
            self.counters.refused_reorg = Some(RefusedReorg { at: self.now, depth, peer: source.clone() });
            self.counters.problem = Some(format!(
                "{source} has a better branch that leaves ours at block {common}, {depth} below our head; at most {max} \
                 blocks are taken back: see chain.max_reorg_depth and sync.on_divergence"
            ));
            return;
        }
        let last = theirs.0.min(ours.0 + 1);
        let step = Step::Here;
        self.branch = Some(Branch { peer, common, last, deep, blocks: None, rooms: Vec::new(), step });
        self.go_on_with_branch();
    }

    /// Asks for the next part of the branch, if there is one.
    fn go_on_with_branch(&mut self) {
        let fitting = self.range_blocks_max();
        let block_bytes = self.block_bytes();
        let Some(branch) = &mut self.branch else { return };
        let first = branch.next();
        if first > branch.last {
            branch.step = Step::Here;
            return;
        }
        let range = HeightRange { first, last: branch.last.min(first + (fitting - 1)) };
        let expected = block_bytes.saturating_mul(range.count()).max(ROOM_MIN);
        // What fills the budget may wait for the switch.
        let room = self.budget.reserve(expected).unwrap_or_else(|| self.budget.reserve_beyond(ROOM_MIN));
        let (id, peer) = (self.next_request, branch.peer);
        self.next_request += 1;
        branch.step = Step::Fetching(id, range);
        self.commands.push(Command::Fetch { id, peer, range, room });
    }

    /// Gives the branch up; the peer is compared again later.
    pub(super) fn give_up_branch(&mut self) {
        if let Some(Branch { step: Step::Fetching(id, _), .. }) = self.branch.take() {
            self.commands.push(Command::Abort(id));
        }
    }

    /// The peer that has the branch is gone.
    pub(super) fn left_branch(&mut self, peer: PeerId) {
        if self.branch.as_ref().is_some_and(|branch| branch.peer == peer && branch.step != Step::Switching) {
            self.give_up_branch();
        }
    }

    pub(super) fn branch_fetched(&mut self, id: RequestId, fetched: Result<Fetched<B::Body>, SourceError>) {
        let Some(branch) = &mut self.branch else { return };
        let Step::Fetching(asked, range) = branch.step else { return };
        if asked != id {
            return;
        }
        let peer = branch.peer;
        let Fetched { body, blocks, room, first_byte_us, duration_us, .. } = match fetched {
            Ok(fetched) => fetched,
            Err(error) => {
                let points = error.points();
                self.failed(id, peer, range, points, error.to_string(), error.retry_after_ms());
                return self.branch_failed(peer);
            }
        };
        let bytes = room.bytes();
        if blocks == 0 {
            let reason = format!("it has no block {}", range.first);
            self.failed(id, peer, range, POINTS_EMPTY, reason, None);
            return self.branch_failed(peer);
        }
        branch.rooms.push(room);
        let (taken, max) = (branch.rooms.iter().map(Reservation::bytes).sum::<u64>(), self.config.buffer_bytes_max);
        branch.step = Step::Verifying(id, HeightRange { first: range.first, last: range.first + (blocks - 1) });
        self.peers.answered(peer, first_byte_us, duration_us, bytes);
        if taken > max {
            let reason = format!("its branch has more than {max} bytes: see sync.buffer_bytes_max");
            self.counters.problem = Some(format!("{}: {reason}", self.peers.name(peer)));
            self.failed(id, peer, range, 0, reason, None);
            return self.branch_failed(peer);
        }
        self.commands.push(Command::Verify { id, first: range.first, body });
    }

    pub(super) fn branch_verified(&mut self, id: RequestId, verified: Result<B, RangeFault>) {
        let Some(branch) = &mut self.branch else { return };
        let Step::Verifying(asked, range) = branch.step else { return };
        if asked != id {
            return;
        }
        match verified {
            Ok(blocks) if blocks.count() > 0 => {
                match &mut branch.blocks {
                    None => branch.blocks = Some(blocks),
                    Some(here) => here.append(blocks),
                }
                self.go_on_with_branch();
            }
            other => {
                let peer = branch.peer;
                let reason = other.err().map_or_else(|| "an answer without blocks".into(), |fault| fault.to_string());
                self.invalid(id, peer, range, reason);
                self.branch_failed(peer);
            }
        }
    }

    /// The branch cannot be had now, which its peer has paid for.
    fn branch_failed(&mut self, peer: PeerId) {
        self.branch = None;
        self.peers.branch_failed(peer);
    }

    /// Hands the branch to the ledger, once that has nothing else of ours to do.
    pub(super) fn start_switch(&mut self) {
        let Some(branch) = self.branch.as_mut().filter(|branch| branch.step == Step::Here) else { return };
        if !self.importing.is_empty() {
            return;
        }
        if branch.last <= self.head.height {
            // Ours has grown meanwhile, or has as many blocks, and a lower hash decides.
            let (ours, theirs) =
                ((self.head.height, self.head.hash), self.peers.get(branch.peer).and_then(|peer| peer.head));
            let Some(theirs) = theirs.filter(|theirs| fork_choice::prefers(ours, *theirs)) else {
                return self.give_up_branch();
            };
            let last = theirs.0.min(ours.0 + 1);
            if last > branch.last {
                branch.last = last;
                return self.go_on_with_branch();
            }
        }
        let Some(blocks) = branch.blocks.take() else { return self.give_up_branch() };
        branch.step = Step::Switching;
        let (common, deep, rooms) = (branch.common, branch.deep, std::mem::take(&mut branch.rooms));
        self.commands.push(Command::Switch(Switch { common, blocks, deep, rooms }));
    }

    pub(super) fn switched(&mut self, switched: Result<(), SwitchError>) {
        let Some(Branch { peer, common, last, .. }) = self.branch.take() else { return };
        let (source, range) = (self.peers.name(peer), HeightRange { first: common + 1, last });
        let error = match switched {
            Ok(()) => {
                tracing::warn!(source, common, height = self.head.height, "the chain went over to a better branch");
                return self.begin_again(peer);
            }
            Err(error) => error,
        };
        tracing::error!(source, common, %error, "a better branch could not be taken");
        match &error {
            SwitchError::Invalid { .. } => self.invalid(0, peer, range, error.to_string()),
            SwitchError::Stopped => self.over = true,
            SwitchError::Refused(_) | SwitchError::Storage(_) => {
                self.counters.problem =
                    Some(format!("{source} has a better branch, which could not be taken: {error}"));
                self.peers.failed(peer, 0, error.to_string(), None, self.now);
            }
        }
        self.peers.branch_failed(peer);
    }

    /// The chain is another one: what was on its way belonged to the old one, and who was thought to agree may not.
    fn begin_again(&mut self, peer: PeerId) {
        self.counters.problem = None;
        self.refusals.clear();
        self.verifying.clear();
        self.order.clear(self.head.height + 1);
        for id in self.requests.keys().copied().collect::<Vec<_>>() {
            self.give_up(id, "the chain went over to another branch");
        }
        if self.peers.agreed(peer) {
            self.events.push(Event::PeerUp(peer));
        }
        self.peers.look_at_all(self.now);
    }
}
