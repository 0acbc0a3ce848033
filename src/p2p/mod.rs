//! Connections between nodes: new blocks and transactions are pushed as they come, and whoever is connected can be
//! asked for blocks. `[p2p]` in the configuration; without it there is none of this.
//!
//! One task owns the swarm of connections, in [`swarm`]: it is told what to do through a [`handle`], and never waits
//! for anybody. What it does on a connection is put together in [`behaviour`] from libp2p's parts; [`gossip`] spreads
//! what is new, [`wire`] and [`codec`] are requests and answers. It keeps what it knows of its peers in a [`book`], and
//! [`dial`]s those that the operator named.
//!
//! | what | who |
//! |---|---|
//! | a message came | [`intake`]: is it good, and does it go on? |
//! | something is new here | [`publish`] |
//! | a peer asks | [`serve`] |
//! | sync asks a peer | [`source`] |
//! | a peer comes, goes, or shows a new head | [`join()`] tells sync |
//!
//! Nothing is exchanged with a node of another chain: the protocols bear the genesis hash, but for the first words,
//! which say on both sides what is wrong. Everything that a peer can make us hold or do has a bound.

pub mod address;
mod behaviour;
pub mod book;
mod chores;
mod codec;
mod config;
mod dial;
mod events;
pub mod gossip;
mod handle;
mod identity;
pub mod intake;
mod join;
pub mod publish;
mod recent;
pub mod serve;
mod source;
mod status;
mod swarm;
pub mod wire;

pub use config::P2pConfig;
pub use handle::{Handle, Met, MetPeer};
pub use identity::Identity;
pub use join::join;
pub use source::P2pSource;
pub use status::{AbsentStatus, AsideStatus, P2pStatus, PeerStatus};
pub use swarm::{P2p, P2pParts};
