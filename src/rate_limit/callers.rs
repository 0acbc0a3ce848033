//! Who calls: told apart by address, trusted by what the operator said.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use ipnet::IpNet;

use super::Trust;

/// Whom the operator named.
#[derive(Clone, Debug, Default)]
pub struct Networks {
    /// Trusted as peers.
    pub peers: Vec<IpNet>,
    /// Reverse proxies, which speak for somebody else.
    pub proxies: Vec<IpNet>,
}

/// Reads an address, or a network like `10.0.0.0/8`. Errors name the text.
pub fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
    address.or_else(|_| text.parse()).map_err(|_| {
        let shown: String = text.chars().take(60).collect();
        format!("expected an address or a network, like `10.0.0.1` or `10.0.0.0/8`, got `{shown}`")
    })
}

/// A caller, as far as the node knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its address.
    pub address: IpAddr,
    /// A keyed hash of it, or of its /64.
    pub client: u64,
    /// How far it is trusted.
    pub trust: Trust,
    /// Whether it is a reverse proxy, which speaks for somebody else.
    pub proxy: bool,
}

/// Tells callers apart.
#[derive(Debug)]
pub struct Callers {
    networks: Networks,
    /// Drawn at every start, so that nobody can choose addresses that fall together.
    key: RandomState,
}

impl Callers {
    /// By these networks.
    pub fn new(networks: Networks) -> Self {
        Self { networks, key: RandomState::new() }
    }

    /// Who is at `address`.
    pub fn at(&self, address: IpAddr) -> Caller {
        // A dual-stack socket shows IPv4 callers as IPv6 addresses.
        let address = address.to_canonical();
        let client = match address {
            IpAddr::V4(v4) => self.key.hash_one(v4.octets()),
            // Whoever has one address of a /64 has all of them.
            IpAddr::V6(v6) => self.key.hash_one(&v6.segments()[..4]),
        };
        let among = |networks: &[IpNet]| networks.iter().any(|network| network.contains(&address));
        let trust = if address.is_loopback() {
            Trust::Loopback
        } else if among(&self.networks.peers) {
            Trust::Peer
        } else {
            Trust::Public
        };
        Caller { address, client, trust, proxy: among(&self.networks.proxies) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_addresses_or_prefixes() {
        assert!(network("10.0.0.0/8").unwrap().contains(&"10.1.2.3".parse::<IpAddr>().unwrap()));
        assert!(!network("10.0.0.1").unwrap().contains(&"10.0.0.2".parse::<IpAddr>().unwrap()));
        assert!(network("fd00::/8").unwrap().contains(&"fd12::1".parse::<IpAddr>().unwrap()));
        for bad in ["", "10.0.0", "10.0.0.0/33", "host", "10.0.0.1:80"] {
            assert!(network(bad).unwrap_err().contains(&format!("`{bad}`")));
        }
    }

    #[test]
    fn callers_are_told_apart_by_address_and_by_network() {
        let callers = Callers::new(Networks { peers: vec![network("10.0.0.0/8").unwrap()], proxies: Vec::new() });
        let of = |text: &str| callers.at(text.parse().unwrap());
        for (address, trust) in [
            ("127.0.0.1", Trust::Loopback),
            ("127.8.9.1", Trust::Loopback),
            ("::1", Trust::Loopback),
            ("::ffff:127.0.0.1", Trust::Loopback),
            ("10.9.8.7", Trust::Peer),
            ("::ffff:10.9.8.7", Trust::Peer),
            ("11.0.0.1", Trust::Public),
            ("2001:db8::1", Trust::Public),
        ] {
            assert_eq!(of(address).trust, trust, "{address}");
        }
        assert_eq!(of("::ffff:11.0.0.1").client, of("11.0.0.1").client);
        assert_ne!(of("11.0.0.1").client, of("11.0.0.2").client);
        assert_eq!(of("2001:db8::1").client, of("2001:db8::ffff:1").client);
        assert_ne!(of("2001:db8::1").client, of("2001:db8:0:1::1").client);
    }
}
