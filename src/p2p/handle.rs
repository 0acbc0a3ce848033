//! How the rest of the node speaks to the task that owns the swarm: commands one way, what it knows the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use libp2p::gossipsub::{MessageAcceptance, MessageId};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{mpsc, oneshot, watch};

use super::codec::{Answered, Call};
use super::gossip::Topic;
use super::source::P2pSource;
use super::status::P2pStatus;
use super::wire::{HeadRef, Hello};
use crate::sync::source::SourceError;

/// Commands that wait; then whoever gives one waits.
pub(super) const COMMANDS_MAX: usize = 1_024;

/// The peers that can be asked for blocks, by id, each with the head that it last showed.
pub type Met = BTreeMap<PeerId, MetPeer>;

/// A peer that can be asked for blocks.
#[derive(Clone)]
pub struct MetPeer {
    /// Asks it.
    pub source: Arc<P2pSource>,
    /// The highest head that it is known to have.
    pub head: Option<HeadRef>,
}

/// What the rest of the node sees of the task that owns the swarm. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(super) peer_id: PeerId,
    pub(super) status: watch::Receiver<P2pStatus>,
    pub(super) met: watch::Receiver<Met>,
}

/// Gives commands to the task that owns the swarm. Cheap to clone.
#[derive(Clone)]
pub(super) struct Commands(pub(super) mpsc::Sender<Command>);

/// What the task is told.
pub(super) enum Command {
    /// Push a message to whoever wants it.
    Publish(Topic, Vec<u8>),
    /// What a message is, and so whether it goes on. `head`: the head that its sender has shown with it.
    Judge { id: MessageId, from: PeerId, acceptance: MessageAcceptance, head: Option<HeadRef> },
    /// What a peer is known to have now.
    Shown { peer: PeerId, head: HeadRef },
    /// Ask a peer.
    Ask { peer: PeerId, call: Call, answer: oneshot::Sender<Result<Answered, SourceError>> },
    /// Ask a peer who it is.
    Greet { peer: PeerId, answer: oneshot::Sender<Result<Hello, SourceError>> },
    /// A configured peer's addresses, with their names looked up.
    Dial { peer: PeerId, addresses: Result<Vec<Multiaddr>, String> },
}

impl Handle {
    /// What others know this node by.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// What there is to say of the connections; changes at most once a second but for peers that come and go.
    pub fn status(&self) -> watch::Receiver<P2pStatus> {
        self.status.clone()
    }

    /// The peers that can be asked for blocks.
    pub fn met(&self) -> watch::Receiver<Met> {
        self.met.clone()
    }
}

impl Commands {
    /// Gives a command. Errors: the task has ended.
    pub(super) async fn tell(&self, command: Command) -> Result<(), Stopped> {
        self.0.send(command).await.map_err(|_| Stopped)
    }
}

/// The task that owns the swarm has ended.
#[derive(Debug)]
pub(super) struct Stopped;

impl From<Stopped> for SourceError {
    fn from(_: Stopped) -> Self {
        Self::Unreachable("this node is stopping".into())
    }
}
