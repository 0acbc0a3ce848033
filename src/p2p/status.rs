//! What a node says of its connections: to operators at `/rpc/peers`, and in metrics.

use serde::{Deserialize, Serialize};

use super::book::Direction;
use crate::chain::{Hash, Height};

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct P2pStatus {
    /// What others know this node by.
    pub peer_id: String,
    /// Where it listens, as others can dial it: with its id at the end.
    pub listen: Vec<String>,
    /// Who is connected, by id.
    pub peers: Vec<PeerStatus>,
    /// Who is left alone.
    pub aside: Vec<AsideStatus>,
    /// Whom the operator named, and there is no connection with.
    #[serde(default)]
    pub absent: Vec<AbsentStatus>,
}

/// A peer that the operator named, and that is not connected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AbsentStatus {
    /// Its id.
    pub id: String,
    /// Where it should be.
    pub addresses: Vec<String>,
    /// What came of the last attempt; none before the first has ended.
    pub reason: Option<String>,
}

/// A connected peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its id.
    pub id: String,
    /// Where it is.
    pub address: String,
    /// Who began the connection.
    pub direction: Direction,
    /// Whether the operator named it.
    pub configured: bool,
    /// Whether it has shown that it is on this chain.
    pub admitted: bool,
    /// Whether blocks are exchanged with it as they come, and not only told of.
    pub in_mesh: bool,
    /// What it says its software is.
    pub agent: Option<String>,
    /// What gossip thinks of it: 0 at first, 33 at best, left alone below -80.
    pub score: f64,
    /// The last round trip, in microseconds.
    pub latency_us: Option<u64>,
    /// The highest head that it is known to have.
    pub head_height: Option<Height>,
    /// That head's hash.
    pub head_hash: Option<Hash>,
    /// How long it has been connected, in milliseconds.
    pub connected_ms: u64,
}

/// A peer that is left alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AsideStatus {
    /// Its id.
    pub id: String,
    /// Why.
    pub reason: String,
    /// For how long still, in milliseconds.
    pub remaining_ms: u64,
}
