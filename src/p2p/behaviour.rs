//! What a node does on its connections, put together from libp2p's parts, each with its bounds.

use std::time::Duration;

use libp2p::allow_block_list::{self, BlockedPeers};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::identity::Keypair;
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::NetworkBehaviour;
use libp2p::{PeerId, StreamProtocol, Swarm, SwarmBuilder, identify, noise, ping, tcp, yamux};

use super::codec::{HelloCodec, Pace, SyncCodec};
use super::gossip::{self, Gossip};
use crate::chain::{Genesis, Hash};

/// How long the first words may take, from the connection on.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a request may take in all. What is slow but steady gets through: blocks come in ranges of about 1 MiB.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Requests on one connection, in both directions: sync's own, `in_flight_per_peer_max`, and as many again. Each of a
/// peer's may hold a transaction.
const STREAMS_MAX: usize = 96;

/// Connections that are being set up, in each direction.
const PENDING_MAX: u32 = 64;

/// Connections with one peer: two that dial each other at once must not lose both.
const PER_PEER_MAX: u32 = 3;

/// Until when encryption and multiplexing must stand.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a connection is tried out, and how long the answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Connections stay open without a reason of their own; who is not wanted is disconnected by name.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// All of it. Those that refuse connections come first.
#[derive(NetworkBehaviour)]
pub struct Behaviour {
    /// How many.
    pub limits: connection_limits::Behaviour,
    /// Who not.
    pub aside: allow_block_list::Behaviour<BlockedPeers>,
    /// What software.
    pub identify: identify::Behaviour,
    /// Whether still there, and how far away.
    pub ping: ping::Behaviour,
    /// Which chain.
    pub hello: request_response::Behaviour<HelloCodec>,
    /// Heads, ranges, transactions.
    pub sync: request_response::Behaviour<SyncCodec>,
    /// What is new.
    pub gossip: Gossip,
    /// Who is near.
    #[cfg(feature = "mdns")]
    pub mdns: libp2p::swarm::behaviour::toggle::Toggle<libp2p::mdns::tokio::Behaviour>,
}

/// What it depends on.
pub struct Options<'a> {
    /// The chain.
    pub genesis: &'a Genesis,
    /// The hash of its block 0.
    pub genesis_hash: Hash,
    /// Connections in all, beside one for each of `configured`.
    pub connections_max: u32,
    /// Peers that the operator named.
    pub configured: Vec<PeerId>,
    /// The patience with requests.
    pub pace: Pace,
    /// Whether to look for nodes nearby.
    #[cfg(feature = "mdns")]
    pub mdns: bool,
}

impl Behaviour {
    /// Errors: no socket to look for nodes nearby with.
    fn new(key: &Keypair, options: &Options<'_>) -> std::io::Result<Self> {
        // Those who may pass the limits are counted like the others.
        let named = u32::try_from(options.configured.len()).unwrap_or(u32::MAX);
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(PENDING_MAX))
            .with_max_pending_outgoing(Some(PENDING_MAX))
            .with_max_established(Some(options.connections_max.saturating_add(named)))
            .with_max_established_per_peer(Some(PER_PEER_MAX));
        let mut limits = connection_limits::Behaviour::new(limits);
        for peer in &options.configured {
            limits.bypass_peer_id(peer);
        }
        let version = format!("/tenon/{}", const_hex::encode(options.genesis_hash.0));
        let identify = identify::Config::new(version.clone(), key.public())
            .with_agent_version(concat!("tenon/", env!("CARGO_PKG_VERSION")).into())
            .with_cache_size(0)
            // Where a node listens is its operator's to tell.
            .with_hide_listen_addrs(true);
        let protocol = |name: String| {
            let name = StreamProtocol::try_from_owned(name).expect("it begins with a slash");
            [(name, ProtocolSupport::Full)]
        };
        let requests = |timeout| {
            request_response::Config::default().with_request_timeout(timeout).with_max_concurrent_streams(STREAMS_MAX)
        };
        let hello_pace = Pace { timeout: HELLO_TIMEOUT, ..options.pace };
        Ok(Self {
            limits,
            aside: allow_block_list::Behaviour::default(),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT)),
            // The one protocol that nodes of different chains share: so that either can say what is wrong.
            hello: request_response::Behaviour::with_codec(
                HelloCodec(hello_pace),
                protocol("/tenon/hello/1".into()),
                requests(HELLO_TIMEOUT),
            ),
            sync: request_response::Behaviour::with_codec(
                SyncCodec::new(options.pace),
                protocol(format!("{version}/sync/1")),
                requests(REQUEST_TIMEOUT),
            ),
            gossip: gossip::behaviour(options.genesis, &options.genesis_hash),
            #[cfg(feature = "mdns")]
            mdns: near(key, options.mdns)?.into(),
        })
    }
}

#[cfg(feature = "mdns")]
fn near(key: &Keypair, wanted: bool) -> std::io::Result<Option<libp2p::mdns::tokio::Behaviour>> {
    let config = libp2p::mdns::Config::default();
    wanted.then(|| libp2p::mdns::tokio::Behaviour::new(config, key.public().to_peer_id())).transpose()
}

/// A swarm over TCP and QUIC that listens nowhere yet. Errors: no randomness, or no network at all.
pub fn swarm(key: &Keypair, options: &Options<'_>) -> Result<Swarm<Behaviour>, String> {
    let multiplexing = || {
        let mut config = yamux::Config::default();
        // Gossip, pings and first words have some, too.
        config.set_max_num_streams(STREAMS_MAX + 32);
        config
    };
    let swarm = SwarmBuilder::with_existing_identity(key.clone())
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, multiplexing)
        .map_err(|error| format!("setting up encryption: {error}"))?
        .with_quic()
        .with_behaviour(|key| Behaviour::new(key, options).map_err(Into::into))
        .map_err(|error| format!("setting up connections: {error}"))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_TIMEOUT))
        .with_connection_timeout(CONNECT_TIMEOUT)
        .build();
    Ok(swarm)
}
