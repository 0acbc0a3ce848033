//! Every knob of the connections between nodes: `[p2p]` in `tenon.toml`. Without the section there are none.

use std::path::{Path, PathBuf};

use super::address::{Listen, PeerAddress};
use crate::config::{Knob, section};

section! {
    /// `[p2p]`: the nodes that this one is connected with, and exchanges new blocks and transactions with at once.
    pub struct P2pConfig {
        /// Where to listen, one multiaddress or a list: `/ip4/ADDRESS/tcp/PORT` or `/ip4/ADDRESS/udp/PORT/quic-v1`.
        /// Port 0 takes a free one; an empty list: connect only, and accept nobody.
        listen: Listen = Listen::default();
        /// Nodes to stay connected with, as multiaddresses that end in `/p2p/` and the peer's id, which `tenon p2p id`
        /// prints.
        peers: Vec<PeerAddress> = Vec::new();
        /// The file with the key that names this node to others; made at the first start.
        key: PathBuf = "keystore/p2p.key".into();
        /// Connections in all, beside one for each of `peers`, which always get in; more are refused.
        connections_max: u32 = 64, 1..=1_000;
        /// Whether to look for nodes of the chain in the local network by mDNS. A build without the feature `mdns`
        /// cannot.
        mdns: bool = false;
        /// The longest that a peer in `peers` that does not answer is left alone before the next attempt, in
        /// milliseconds.
        redial_max_ms: u64 = 60_000, 100..=3_600_000;
        /// How long a peer of another chain, or one whose messages were wrong, is left alone, in milliseconds.
        aside_ms: u64 = 600_000, 1_000..=86_400_000;
        /// Bytes of blocks that one peer may push a second; four seconds' worth at once. More is not looked at, and
        /// costs its score.
        block_bytes_per_second: u32 = 8 << 20, 1_024..=1 << 27;
        /// Bytes of transactions that one peer may push a second, each with 1,024 on top; four seconds' worth at once.
        transaction_bytes_per_second: u32 = 2 << 20, 1_024..=1 << 27;
        /// Bytes of ranges of blocks that are read for peers or on their way to them, at most; who asks for more waits.
        serve_bytes_max: u64 = 64 << 20, 16 << 20..=4 << 30;
    }
}

impl P2pConfig {
    /// The defaults, for the node in `dir`.
    pub fn in_dir(dir: &Path) -> Self {
        let mut config = Self::default();
        config.resolve(dir);
        config
    }
}

impl Knob for Listen {
    fn expected() -> String {
        "a multiaddress like \"/ip4/0.0.0.0/tcp/7070\", or a list of them".into()
    }
}

impl Knob for Vec<PeerAddress> {
    fn expected() -> String {
        "a list of multiaddresses, like [\"/ip4/10.0.0.1/tcp/7070/p2p/12D3Koo…\"]".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_range_and_each_knob_out_of_it_is_named() {
        assert_eq!(P2pConfig::default().check(), Ok(()));
        let cases: [(&str, P2pConfig); 4] = [
            ("connections_max", P2pConfig { connections_max: 0, ..P2pConfig::default() }),
            ("redial_max_ms", P2pConfig { redial_max_ms: 99, ..P2pConfig::default() }),
            ("block_bytes_per_second", P2pConfig { block_bytes_per_second: 1, ..P2pConfig::default() }),
            ("serve_bytes_max", P2pConfig { serve_bytes_max: 1 << 20, ..P2pConfig::default() }),
        ];
        for (name, config) in cases {
            assert!(config.check().unwrap_err().contains(name), "{name}");
        }
    }
}
