//! Peers as they come and go: who they are, what their heads are, and whether they are on our chain.

use super::ranges::POINTS_INVALID;
use super::{Blocks, Command, Engine, Look};
use crate::chain::{Hash, Height};
use crate::sync::budget::COMPARISONS_MAX;
use crate::sync::compare::Comparison;
use crate::sync::peers::{Record, Standing};
use crate::sync::source::SourceError;
use crate::sync::{Diverged, Event, PeerId};

impl<B: Blocks> Engine<B> {
    /// Looks at everybody whose turn it is.
    pub(super) fn start_looks(&mut self) {
        let due = |peer: &&Record| !peer.busy && peer.next_poll <= self.now;
        let due: Vec<PeerId> = self.peers.iter().filter(due).map(|peer| peer.id).collect();
        for peer in due {
            self.look_at(peer);
        }
    }

    fn look_at(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let introduce = matches!(peer.standing, Standing::Unknown | Standing::Down | Standing::Refused(_));
        peer.busy = true;
        self.commands.push(Command::Look { peer: id, introduce });
    }

    /// Compares chains up to `height`; the outcome decides whether the peer is used.
    pub(super) fn compare_with(&mut self, id: PeerId, height: Height, known: Option<Diverged>) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.busy || self.comparing.len() >= COMPARISONS_MAX {
            // A look does not see it where the peer's head is above ours.
            peer.suspect = Some(height).filter(|_| known.is_none());
            return;
        }
        (peer.busy, peer.suspect) = (true, None);
        self.comparing.insert(id);
        self.commands.push(Command::Compare { peer: id, height, known });
    }

    /// The look at a peer is over, or the comparison. False: the peer is gone, and so is what it was asked for.
    fn look_ended(&mut self, id: PeerId) -> bool {
        self.comparing.remove(&id);
        self.peers.get_mut(id).map(|peer| peer.busy = false).is_some()
    }

    pub(super) fn looked(&mut self, id: PeerId, look: Result<Look, SourceError>) {
        if !self.look_ended(id) {
            return;
        }
        let was_up = self.is_up(id);
        let look = match look {
            Ok(look) => look,
            Err(error) => return self.look_failed(id, &error),
        };
        if let Some(info) = &look.info {
            self.peers.introduced(id, info, &self.us, self.now);
        }
        let source = self.peers.name(id);
        if let Some(Standing::Refused(reason)) = self.peers.get(id).map(|peer| &peer.standing) {
            return tracing::error!(source, reason, "source not used");
        }
        if !was_up && self.is_up(id) {
            tracing::info!(source, "source is up");
            self.events.push(Event::PeerUp(id));
        }
        if self.peers.reported(id, look.head, self.now) && self.is_up(id) {
            self.head_announced(id);
        }
        self.offered(id, look.snapshot);
        if let Some(Standing::Diverged(known)) = self.peers.get(id).map(|peer| &peer.standing) {
            let known = known.clone();
            return self.compare_with(id, known.height, Some(known));
        }
        if let (Some((height, theirs)), Some(ours)) = (look.head, look.ours)
            && theirs != ours
        {
            return self.compare_with(id, height, None);
        }
        if let Some(height) = self.peers.get(id).and_then(|peer| peer.suspect) {
            self.compare_with(id, height, None);
        }
    }

    /// A peer said by itself what its head is.
    pub(super) fn announced(&mut self, id: PeerId, head: (Height, Hash)) {
        if !self.peers.announced(id, head, self.now) {
            return;
        }
        self.head_announced(id);
        if head.0 == self.head.height && head.1 != self.head.hash {
            self.compare_with(id, head.0, None);
        }
    }

    /// Tells the strategy of a head, once however often it changes until then. Soon, but a peer that announces heads all
    /// the time is no reason to ask all the time.
    pub(super) fn head_announced(&mut self, id: PeerId) {
        let event = Event::HeadAnnounced(id);
        if !self.events.contains(&event) {
            self.events.push(event);
        }
        self.ask_soon();
    }

    fn look_failed(&mut self, id: PeerId, error: &SourceError) {
        let source = self.peers.name(id);
        tracing::debug!(source, %error, "source does not answer");
        if self.peers.poll_failed(id, error, self.now) {
            tracing::warn!(source, %error, "source is down");
            self.peer_down(id, "the peer is gone");
        }
    }

    pub(super) fn compared(&mut self, id: PeerId, comparison: Result<Comparison, SourceError>) {
        if !self.look_ended(id) {
            return;
        }
        let source = self.peers.name(id);
        let known = self.peers.get(id).map(|peer| peer.standing.clone());
        match comparison {
            Ok(Comparison::Same) => {
                if self.peers.agreed(id) {
                    tracing::info!(source, "source has our chain again");
                    self.events.push(Event::PeerUp(id));
                }
                self.look_again(id, 0);
            }
            Ok(Comparison::Diverged(diverged)) => {
                if !matches!(known, Some(Standing::Diverged(known)) if known == diverged) {
                    let Diverged { height, ours, theirs, .. } = &diverged;
                    tracing::error!(source, height, %ours, %theirs, "source has another block");
                    self.events.push(Event::ForkFound { peer: id, height: *height });
                    self.peer_down(id, "the peer is on another branch");
                }
                self.drop_of(id);
                self.peers.diverged(id, diverged, self.now);
                self.consider_branch(id);
            }
            Ok(Comparison::Invalid(reason)) => {
                tracing::warn!(source, reason, "source reports what it cannot show");
                self.peers.failed(id, POINTS_INVALID, reason, None, self.now);
                self.look_again(id, self.config.poll_ms);
            }
            Err(error) => self.look_failed(id, &error),
        }
    }

    fn look_again(&mut self, id: PeerId, in_ms: u64) {
        let at = self.now.plus_ms(in_ms);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.next_poll = at;
        }
    }

    fn is_up(&self, id: PeerId) -> bool {
        self.peers.get(id).is_some_and(Record::is_up)
    }

    /// A peer can no longer be asked.
    fn peer_down(&mut self, id: PeerId, reason: &str) {
        self.give_up_all(id, reason);
        self.events.push(Event::PeerDown(id));
    }

    /// A peer is gone for good. What it sent and what is being verified stays.
    pub(super) fn left(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get(id) else { return };
        if peer.busy {
            self.commands.push(Command::EndLook(id));
        }
        if peer.is_up() {
            self.peer_down(id, "the peer is gone");
        }
        self.comparing.remove(&id);
        self.left_branch(id);
        self.peers.leave(id, self.now);
    }
}
