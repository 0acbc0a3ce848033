//! Multiaddresses, as far as a node needs them: where it listens, and whom it connects to.

use std::fmt;
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::str::FromStr;

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Addresses that one configured host name may stand for, at most.
const RESOLVED_MAX: usize = 8;

/// Where to listen: TCP or QUIC, any number of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen(pub Vec<Multiaddr>);

/// Where a peer is, and who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// Who it is: nobody else is taken for it.
    pub peer: PeerId,
    /// Where it is, without the id.
    pub address: Multiaddr,
}

/// What carries a connection.
enum Transport {
    Tcp,
    Quic,
}

impl Default for Listen {
    /// Every IPv4 address of the machine, TCP port 7070.
    fn default() -> Self {
        Self(vec!["/ip4/0.0.0.0/tcp/7070".parse().expect("a multiaddress")])
    }
}

/// Takes an address apart: host and transport, and what is left.
fn parts(address: &Multiaddr) -> Option<(Protocol<'_>, Transport, Vec<Protocol<'_>>)> {
    let mut protocols = address.iter();
    let host = protocols.next()?;
    let transport = match protocols.next()? {
        Protocol::Tcp(_) => Transport::Tcp,
        Protocol::Udp(_) => match protocols.next()? {
            Protocol::QuicV1 => Transport::Quic,
            _ => return None,
        },
        _ => return None,
    };
    Some((host, transport, protocols.collect()))
}

fn multiaddr(text: &str) -> Result<Multiaddr, String> {
    text.parse().map_err(|error| format!("`{}` is no multiaddress: {error}", shown(text)))
}

fn shown(text: &str) -> String {
    text.chars().take(160).collect()
}

/// Reads an address to listen on. Errors name it.
fn listen_address(text: &str) -> Result<Multiaddr, String> {
    let address = multiaddr(text)?;
    match parts(&address) {
        Some((Protocol::Ip4(_) | Protocol::Ip6(_), _, rest)) if rest.is_empty() => Ok(address),
        _ => Err(format!("expected /ip4/ADDRESS/tcp/PORT or /ip4/ADDRESS/udp/PORT/quic-v1, got `{}`", shown(text))),
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum OneOrMany {
            One(String),
            Many(Vec<String>),
        }
        let texts = match OneOrMany::deserialize(deserializer)? {
            OneOrMany::One(text) => vec![text],
            OneOrMany::Many(texts) => texts,
        };
        let addresses: Result<_, _> = texts.iter().map(|text| listen_address(text)).collect();
        addresses.map(Self).map_err(serde::de::Error::custom)
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(ToString::to_string))
    }
}

impl FromStr for PeerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut address = multiaddr(text)?;
        let expected = || {
            format!(
                "expected /ip4/ADDRESS/tcp/PORT/p2p/ID (ip6, dns4, dns6 and udp/PORT/quic-v1 will do, too), got `{}`",
                shown(text)
            )
        };
        let Some(Protocol::P2p(peer)) = address.pop() else {
            return Err(format!("{}; `tenon p2p id` on that node prints its id", expected()));
        };
        match parts(&address) {
            Some((
                Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_),
                _,
                rest,
            )) if rest.is_empty() => Ok(Self { peer, address }),
            _ => Err(expected()),
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/p2p/{}", self.address, self.peer)
    }
}

impl<'de> Deserialize<'de> for PeerAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for PeerAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The IP address at the start of a multiaddress.
pub fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// Whether nobody listens at an address yet. libp2p shares its TCP ports, so that two nodes on one would each get some
/// of the other's connections, and neither would say so. Errors: somebody does, or the address is not this machine's.
pub fn is_free(address: &Multiaddr) -> io::Result<()> {
    let port = address.iter().nth(1);
    match (ip(address), port) {
        (Some(ip), Some(Protocol::Tcp(port))) if port != 0 => TcpListener::bind((ip, port)).map(drop),
        (Some(ip), Some(Protocol::Udp(port))) if port != 0 => UdpSocket::bind((ip, port)).map(drop),
        _ => Ok(()),
    }
}

/// Whether `address` begins with a name that has to be looked up before it can be dialled.
pub fn has_name(address: &Multiaddr) -> bool {
    matches!(address.iter().next(), Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)))
}

/// The addresses that `address` stands for: itself, or with its name replaced by what the system's resolver knows, at
/// most eight. Errors: the name is not known.
pub async fn resolve(address: &Multiaddr) -> Result<Vec<Multiaddr>, String> {
    let (name, fits): (_, fn(&IpAddr) -> bool) = match address.iter().next() {
        Some(Protocol::Dns(name)) => (name, |_| true),
        Some(Protocol::Dns4(name)) => (name, IpAddr::is_ipv4),
        Some(Protocol::Dns6(name)) => (name, IpAddr::is_ipv6),
        _ => return Ok(vec![address.clone()]),
    };
    let found = tokio::net::lookup_host((name.as_ref(), 0)).await.map_err(|error| format!("{name}: {error}"))?;
    let with = |ip: IpAddr| address.replace(0, |_| Some(Protocol::from(ip))).expect("there is a first part");
    let found: Vec<_> = found.map(|socket| socket.ip()).filter(fits).take(RESOLVED_MAX).map(with).collect();
    if found.is_empty() { Err(format!("{name}: no address of this kind")) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    #[test]
    fn addresses_to_listen_on_are_one_or_many() {
        let read = |json: &str| serde_json::from_str::<Listen>(json).map_err(|error| error.to_string());
        let one = read(r#""/ip4/127.0.0.1/tcp/0""#).unwrap();
        assert_eq!(one.0.len(), 1);
        let two = read(r#"["/ip4/127.0.0.1/tcp/0", "/ip6/::/udp/7070/quic-v1"]"#).unwrap();
        assert_eq!(read(&serde_json::to_string(&two).unwrap()).unwrap(), two);
        assert_eq!(read("[]").unwrap(), Listen(Vec::new()));
        for bad in ["127.0.0.1:7070", "/ip4/127.0.0.1", "/dns4/a/tcp/1", "/ip4/1.2.3.4/udp/1", "/ip4/1.2.3.4/tcp/1/ws"]
        {
            let error = read(&format!("{bad:?}")).unwrap_err();
            assert!(error.contains(&format!("`{bad}`")), "{error}");
        }
    }

    #[test]
    fn a_peers_address_says_who_it_is() {
        for host in ["/ip4/10.0.0.1/tcp/7070", "/ip6/::1/udp/1/quic-v1", "/dns4/node.example/tcp/1", "/dns/a/tcp/1"] {
            let text = format!("{host}/p2p/{ID}");
            let read: PeerAddress = text.parse().unwrap();
            assert_eq!((read.to_string(), read.peer.to_string()), (text, ID.to_owned()));
            assert_eq!(has_name(&read.address), host.starts_with("/dns"));
        }
        let without: Result<PeerAddress, _> = "/ip4/10.0.0.1/tcp/7070".parse();
        assert!(without.unwrap_err().contains("tenon p2p id"));
        for bad in [format!("/memory/1/p2p/{ID}"), format!("/p2p/{ID}"), "x".into(), String::new()] {
            assert!(bad.parse::<PeerAddress>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_name_becomes_addresses_of_its_kind_and_the_rest_stays() {
        let address: Multiaddr = "/ip4/10.0.0.1/tcp/7070".parse().unwrap();
        assert_eq!(resolve(&address).await, Ok(vec![address]));
        let named: Multiaddr = "/dns4/localhost/udp/7070/quic-v1".parse().unwrap();
        let found = resolve(&named).await.unwrap();
        assert_eq!(found, ["/ip4/127.0.0.1/udp/7070/quic-v1".parse::<Multiaddr>().unwrap()]);
        let nowhere: Multiaddr = "/dns4/nowhere.invalid/tcp/1".parse().unwrap();
        assert!(resolve(&nowhere).await.unwrap_err().contains("nowhere.invalid"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z0-9/.:]{0,60}") {
            let _ = text.parse::<PeerAddress>();
            let _ = listen_address(&text);
        }
    }
}
