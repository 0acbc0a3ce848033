//! What is known of the peers that are connected, and who is left alone. Pure: the time is an argument.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};

use super::address;
use super::wire::{HeadRef, Hello};
use crate::chain::Time;
use crate::rate_limit::token_bucket::{self, Rate, Settings};
use crate::rate_limit::{Cell, Class, Request, Trust, Verdict};

/// Peers that are left alone, at most; then the one whose time is over first is forgotten.
const ASIDE_MAX: usize = 1_024;

/// What every message counts on top of its bytes: so small ones are not for nothing.
const MESSAGE_BYTES: u64 = 1_024;

/// Seconds of a rate that may come at once.
const BURST_SECONDS: u32 = 4;

/// Messages over the rate that are forgiven a second.
const FORGIVEN_PER_SECOND: f64 = 0.1;

/// How long a peer may take messages too slowly without a break before it is disconnected: what waits for it is held
/// here.
const SLOW_PATIENCE: Duration = Duration::from_secs(30);

/// Gossip says at most once a second that a peer is slow; after so long without that, it has caught up.
const SLOW_BREAK: Duration = Duration::from_secs(5);

/// Requests of one peer that are answered at a time. A follower has 8 ranges under way by default, and a look.
pub const SERVED_MAX: u32 = 16;

/// Characters of what a peer says its software is.
const AGENT_MAX: usize = 64;

/// Who began a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The other side.
    Inbound,
    /// This node.
    Outbound,
}

/// A connection.
#[derive(Clone, Debug)]
pub struct Link {
    /// Its number.
    pub id: ConnectionId,
    /// The other end.
    pub address: Multiaddr,
    /// Who began it.
    pub direction: Direction,
}

/// A connected peer.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its connections; at least one.
    pub links: Vec<Link>,
    /// Since when it is connected.
    pub since: Instant,
    /// Whether the operator named it.
    pub configured: bool,
    /// What it said first; none until it did.
    pub hello: Option<Hello>,
    /// What it says its software is.
    pub agent: Option<String>,
    /// The last round trip.
    pub latency: Option<Duration>,
    /// The highest head that it is known to have.
    pub head: Option<HeadRef>,
    /// Requests of its that are being answered.
    pub served: u32,
    /// Messages over its rate, less what was forgiven.
    excess: f64,
    excess_at: Instant,
    cell: Cell,
    /// Since when it has been slow, and when that was last said.
    slow: Option<(Instant, Instant)>,
}

impl Record {
    /// Where it is.
    pub fn ip(&self) -> Option<IpAddr> {
        self.links.first().and_then(|link| address::ip(&link.address))
    }

    /// Takes note of a block that it has. True: it is higher than what it was known to have, or another one as high.
    pub fn show(&mut self, head: HeadRef) -> bool {
        let news = self.head.is_none_or(|known| known.0 < head.0 || (known.0 == head.0 && known.1 != head.1));
        if news {
            self.head = Some(head);
        }
        news
    }

    /// The queue of messages to it is full. True: it has been, for too long.
    pub fn is_stuck(&mut self, now: Instant) -> bool {
        let since = match self.slow {
            Some((since, last)) if now.saturating_duration_since(last) <= SLOW_BREAK => since,
            _ => now,
        };
        self.slow = Some((since, now));
        now.saturating_duration_since(since) >= SLOW_PATIENCE
    }

    /// Messages over its rate, less what time has forgiven.
    pub fn excess(&self, now: Instant) -> f64 {
        let forgiven = now.saturating_duration_since(self.excess_at).as_secs_f64() * FORGIVEN_PER_SECOND;
        (self.excess - forgiven).max(0.0)
    }

    /// Whether a message of `bytes` is within the peer's rate. If not, that is held against it.
    pub fn allows(&mut self, rates: &Rates, class: Class, bytes: usize, at: Time, now: Instant) -> bool {
        let request = Request {
            client: 0,
            route: 0,
            class,
            // Nobody is trusted to be quiet.
            trust: Trust::Public,
            cost: MESSAGE_BYTES + bytes as u64,
            now: at.0,
        };
        let (verdict, cell) = token_bucket::step(&rates.0, &request, &self.cell);
        self.cell = cell;
        let allowed = matches!(verdict, Verdict::Allow { .. });
        if !allowed {
            self.excess = self.excess(now) + 1.0;
            self.excess_at = now;
        }
        allowed
    }
}

/// What one peer may push.
#[derive(Clone, Debug)]
pub struct Rates(Settings);

impl Rates {
    /// Bytes a second of blocks, of which one has at most `block_bytes`, and of transactions, of which one has at most
    /// `transaction_bytes`. A few of the largest may always come at once.
    pub fn new(blocks: u32, block_bytes: usize, transactions: u32, transaction_bytes: usize) -> Self {
        let rate = |per_second: u32, largest: usize| {
            let largest = u32::try_from(largest).unwrap_or(u32::MAX).saturating_add(1_024);
            let capacity = per_second.saturating_mul(BURST_SECONDS).max(largest.saturating_mul(4));
            Some(Rate { capacity: capacity.min(token_bucket::UNITS_MAX), refill_per_second: per_second })
        };
        Self(Settings {
            sync: None,
            read: None,
            write: rate(transactions, transaction_bytes),
            import: rate(blocks, block_bytes),
            trusted: Vec::new(),
        })
    }
}

/// The peers that are connected, and those that are left alone.
#[derive(Debug, Default)]
pub struct Book {
    peers: BTreeMap<PeerId, Record>,
    aside: HashMap<PeerId, Aside>,
}

/// Why a peer is left alone, and until when.
#[derive(Clone, Debug)]
pub struct Aside {
    /// Why.
    pub reason: String,
    /// Until when.
    pub until: Instant,
}

impl Book {
    /// Takes note of a connection. True: it is the peer's first.
    pub fn connected(&mut self, peer: PeerId, link: Link, configured: bool, now: Instant) -> bool {
        let fresh = || Record {
            links: Vec::new(),
            since: now,
            configured,
            hello: None,
            agent: None,
            latency: None,
            head: None,
            served: 0,
            excess: 0.0,
            excess_at: now,
            cell: Cell::default(),
            slow: None,
        };
        let record = self.peers.entry(peer).or_insert_with(fresh);
        record.links.push(link);
        record.links.len() == 1
    }

    /// A connection is gone. True: it was the peer's last.
    pub fn disconnected(&mut self, peer: &PeerId, id: ConnectionId) -> bool {
        let Some(record) = self.peers.get_mut(peer) else { return false };
        record.links.retain(|link| link.id != id);
        let last = record.links.is_empty();
        if last {
            self.peers.remove(peer);
        }
        last
    }

    /// A connected peer.
    pub fn get(&self, peer: &PeerId) -> Option<&Record> {
        self.peers.get(peer)
    }

    /// A connected peer, to change what is known of it.
    pub fn get_mut(&mut self, peer: &PeerId) -> Option<&mut Record> {
        self.peers.get_mut(peer)
    }

    /// Every connected peer, by id.
    pub fn iter(&self) -> impl Iterator<Item = (&PeerId, &Record)> {
        self.peers.iter()
    }

    /// Whether a peer is connected and has said who it is.
    pub fn is_admitted(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|record| record.hello.is_some())
    }

    /// Those who have been connected for `patience` without a word.
    pub fn silent(&self, patience: Duration, now: Instant) -> Vec<PeerId> {
        let silent =
            |record: &Record| record.hello.is_none() && now.saturating_duration_since(record.since) >= patience;
        self.peers.iter().filter(|(_, record)| silent(record)).map(|(peer, _)| *peer).collect()
    }

    /// Leaves a peer alone. Answers whom that made it forget.
    pub fn put_aside(&mut self, peer: PeerId, reason: String, until: Instant) -> Option<PeerId> {
        self.aside.insert(peer, Aside { reason, until });
        if self.aside.len() <= ASIDE_MAX {
            return None;
        }
        let first = self.aside.iter().min_by_key(|(_, aside)| aside.until).map(|(peer, _)| *peer)?;
        self.aside.remove(&first);
        Some(first)
    }

    /// Those who have been left alone long enough. They are forgotten.
    pub fn pardoned(&mut self, now: Instant) -> Vec<PeerId> {
        self.aside.extract_if(|_, aside| aside.until <= now).map(|(peer, _)| peer).collect()
    }

    /// Those who are left alone.
    pub fn aside(&self) -> impl Iterator<Item = (&PeerId, &Aside)> {
        self.aside.iter()
    }
}

/// What a peer says its software is, fit to be shown.
pub fn agent(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(AGENT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::p2p::identity::Identity;
    use proptest::prelude::*;

    fn link(number: usize) -> Link {
        let address = "/ip4/10.0.0.1/tcp/1".parse().unwrap();
        Link { id: ConnectionId::new_unchecked(number), address, direction: Direction::Inbound }
    }

    #[test]
    fn a_peer_is_there_from_its_first_connection_to_its_last() {
        let (peer, now, mut book) = (Identity::random().peer_id(), Instant::now(), Book::default());
        assert!(book.connected(peer, link(1), false, now));
        assert!(!book.connected(peer, link(2), false, now));
        assert_eq!(book.get(&peer).unwrap().ip(), Some("10.0.0.1".parse().unwrap()));
        let patience = Duration::from_secs(10);
        assert!(book.silent(patience, now).is_empty());
        assert_eq!(book.silent(patience, now + patience), [peer]);
        let hello = Hello {
            genesis_hash: Default::default(),
            chain_id: "c".into(),
            node_id: "n".into(),
            head: (0, Default::default()),
        };
        book.get_mut(&peer).unwrap().hello = Some(hello);
        assert!(book.is_admitted(&peer) && book.silent(patience, now + patience).is_empty());
        assert!(!book.disconnected(&peer, ConnectionId::new_unchecked(1)));
        assert!(book.disconnected(&peer, ConnectionId::new_unchecked(2)));
        assert!(!book.disconnected(&peer, ConnectionId::new_unchecked(2)) && !book.is_admitted(&peer));
    }

    #[test]
    fn who_takes_nothing_for_long_is_stuck_and_a_break_begins_anew() {
        let (start, peer, mut book) = (Instant::now(), PeerId::random(), Book::default());
        book.connected(peer, link(1), false, start);
        let record = book.get_mut(&peer).unwrap();
        let mut stuck = |second: u64| record.is_stuck(start + Duration::from_secs(second));
        assert!((0..30).all(|second| !stuck(second)));
        assert!(stuck(30));
        assert!(!stuck(36), "a break");
        assert!((37..66).all(|second| !stuck(second)) && stuck(66));
    }

    #[test]
    fn who_is_left_alone_is_pardoned_in_time_and_the_list_is_bounded() {
        let (now, mut book) = (Instant::now(), Book::default());
        let second = |count: usize| now + Duration::from_secs(count as u64);
        let peers: Vec<_> = (0..=ASIDE_MAX).map(|_| PeerId::random()).collect();
        let forgotten: Vec<_> =
            peers.iter().enumerate().filter_map(|(at, peer)| book.put_aside(*peer, "x".into(), second(at))).collect();
        assert_eq!((forgotten, book.aside().count()), (vec![peers[0]], ASIDE_MAX));
        assert!(book.pardoned(now).is_empty());
        assert_eq!(book.pardoned(second(1)), [peers[1]]);
        assert_eq!(book.aside().count(), ASIDE_MAX - 1);
    }

    #[test]
    fn what_a_peer_says_of_itself_is_cut_and_shown_as_text() {
        assert_eq!(agent("tenon/0.1.0\n\u{1b}[31m"), "tenon/0.1.0[31m");
        assert_eq!(agent(&"é".repeat(100)).chars().count(), AGENT_MAX);
    }

    proptest! {
        /// Whatever the sizes and pauses: what passes in any stretch is at most the burst and what the time brings.
        #[test]
        fn no_peer_pushes_more_than_its_rate(
            sizes in prop::collection::vec((0..70_000_usize, 0..300_u64), 1..200), per_second in 1_024..4_000_000_u32,
        ) {
            let (start, mut book) = (Instant::now(), Book::default());
            let peer = PeerId::random();
            book.connected(peer, link(1), false, start);
            let rates = Rates::new(1_024, 1_024, per_second, 70_000);
            let burst = u64::from((per_second * BURST_SECONDS).max(4 * (70_000 + 1_024)));
            let (mut ms, mut passed, mut refused) = (0, 0, 0);
            for (bytes, pause) in sizes {
                ms += pause;
                let record = book.get_mut(&peer).unwrap();
                let now = start + Duration::from_millis(ms);
                if record.allows(&rates, Class::Write, bytes, Time(1_790_000_000_000_000).plus_ms(ms), now) {
                    passed += MESSAGE_BYTES + bytes as u64;
                } else {
                    refused += 1;
                }
                prop_assert!(passed <= burst + u64::from(per_second) * ms / 1_000 + 1);
                prop_assert!(record.excess(now) <= f64::from(refused));
            }
            let later = start + Duration::from_secs(3_600);
            prop_assert_eq!(book.get(&peer).unwrap().excess(later), 0.0);
        }

        #[test]
        fn the_largest_message_always_passes_first(block in 1..9_000_000_usize, per_second in 1_024..1_u32 << 27) {
            let (now, mut book) = (Instant::now(), Book::default());
            let peer = PeerId::random();
            book.connected(peer, link(1), false, now);
            let rates = Rates::new(per_second, block, 1_024, 1_024);
            let record = book.get_mut(&peer).unwrap();
            prop_assert!(record.allows(&rates, Class::Import, block, Time(1_790_000_000_000_000), now));
        }
    }
}
