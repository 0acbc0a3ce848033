//! What a modelled peer answers, by its nature.

use rand::RngExt;

use super::super::super::{Fetched, Look};
use super::world::{BLOCK_BYTES, Branch, Flaw, Model, Nature, Stub, hash};
use super::{Answer, Network, TIMEOUT_MS};
use crate::chain::{Hash, Height};
use crate::snapshot::source::Offer;
use crate::sync::budget::Reservation;
use crate::sync::compare::Comparison;
use crate::sync::source::{SourceError, SourceInfo};
use crate::sync::{Diverged, HeightRange, PeerId};

impl Network {
    /// The branch that a peer is on, and its height there.
    pub(super) fn place(&self, model: &Model) -> (Branch, Height) {
        match model.nature {
            Nature::Forked(branch) | Nature::Warped(branch) => (branch, self.forks[usize::from(branch) - 1].height),
            _ => (0, self.height.saturating_sub(model.lag)),
        }
    }

    /// The branch of a peer's block at a height, as far as it has one.
    pub(super) fn has(&self, model: &Model, height: Height) -> Option<Branch> {
        let (branch, last) = self.place(model);
        (height <= last).then(|| self.branch_at(height, branch))
    }

    /// Below its first block a branch is the main one.
    pub(super) fn branch_at(&self, height: Height, branch: Branch) -> Branch {
        if branch > 0 && height > self.forks[usize::from(branch) - 1].after { branch } else { 0 }
    }

    pub(super) fn head_of_peer(&self, model: &Model) -> (Height, Hash) {
        let (_, last) = self.place(model);
        match model.nature {
            Nature::Boasts => (last + 1_000_000, Hash([9; 32])),
            _ => (last, hash(last, self.has(model, last).unwrap_or(0))),
        }
    }

    pub(super) fn fails(&mut self, model: &Model) -> bool {
        matches!(model.nature, Nature::Flaky(often) if self.rng.random_ratio(often, 100))
    }

    pub(super) fn look(&mut self, peer: PeerId, introduce: bool) -> Result<Look, SourceError> {
        let model = self.peers.get(&peer).ok_or(SourceError::Timeout { ms: TIMEOUT_MS })?.clone();
        if model.nature == Nature::Silent || self.fails(&model) {
            return Err(SourceError::Timeout { ms: TIMEOUT_MS });
        }
        let chain_id = if model.nature == Nature::Stranger { "another" } else { "model" }.to_owned();
        let info = SourceInfo { chain_id, genesis_hash: Hash::ZERO, node_id: model.name.clone() };
        let head = self.head_of_peer(&model);
        let ours = self.ledger.get(head.0 as usize).map(|&branch| hash(head.0, branch));
        let snapshot = self.snapshot_at.filter(|height| *height <= head.0);
        let snapshot = snapshot.map(|height| Offer { id: Hash([3; 32]), height, hash: hash(height, 0) });
        Ok(Look { info: introduce.then_some(info), head: Some(head), ours, snapshot })
    }

    pub(super) fn compare(&mut self, peer: PeerId, height: Height) -> Result<Comparison, SourceError> {
        let model = self.peers.get(&peer).ok_or(SourceError::Timeout { ms: TIMEOUT_MS })?.clone();
        if matches!(model.nature, Nature::Silent | Nature::Stalls) || self.fails(&model) {
            return Err(SourceError::Timeout { ms: TIMEOUT_MS });
        }
        let last = height.min(self.ledger.len() as Height - 1);
        for height in 1..=last {
            let ours = self.ledger[height as usize];
            let Some(theirs) = self.has(&model, height) else {
                return Ok(Comparison::Invalid(format!("it does not have block {height}")));
            };
            if ours != theirs {
                let (ours, theirs) = (hash(height, ours), hash(height, theirs));
                return Ok(Comparison::Diverged(Diverged { height, ours, theirs, peer: model.name }));
            }
        }
        Ok(Comparison::Same)
    }

    pub(super) fn range(&mut self, peer: PeerId, range: HeightRange, mut room: Reservation) -> Answer {
        let model = self.peers.get(&peer).ok_or(SourceError::Timeout { ms: TIMEOUT_MS })?.clone();
        let timeout = matches!(model.nature, Nature::Silent | Nature::Stalls);
        if timeout || self.fails(&model) {
            return Err(SourceError::Timeout { ms: TIMEOUT_MS });
        }
        if model.nature == Nature::Limited {
            return Err(SourceError::Limited { retry_after_ms: 3_000 });
        }
        let has = (range.first..=range.last)
            .map_while(|height| self.has(&model, height).map(|branch| Stub { height, branch, flaw: Flaw::None }));
        let mut body: Vec<Stub> = has.collect();
        match model.nature {
            Nature::Empty => body.clear(),
            Nature::Short => body.truncate(body.len().div_ceil(2)),
            Nature::Forged if !body.is_empty() => {
                let at = self.rng.random_range(0..body.len());
                body[at].flaw = Flaw::Signature;
            }
            Nature::Corrupt if !body.is_empty() => {
                let at = self.rng.random_range(0..body.len());
                body[at].flaw = Flaw::State;
            }
            Nature::Mistaken(at) => {
                body.iter_mut().filter(|block| block.height == at).for_each(|block| block.flaw = Flaw::State);
            }
            Nature::Warped(_) => {
                body.iter_mut().filter(|block| block.branch > 0).for_each(|block| block.flaw = Flaw::State);
            }
            _ => {}
        }
        // As a source does: what has no room is left out.
        while !body.is_empty() && !room.grow(body.len() as u64 * BLOCK_BYTES) {
            if body.len() == 1 {
                if !room.may_exceed() {
                    return Err(SourceError::NoRoom { got: 1 });
                }
                break;
            }
            body.pop();
        }
        room.settle(body.len() as u64 * BLOCK_BYTES);
        let head = Some(self.head_of_peer(&model));
        let blocks = body.len() as u64;
        Ok(Fetched { body, blocks, room, head, first_byte_us: 500, duration_us: 1_000 + blocks * 10 })
    }
}
