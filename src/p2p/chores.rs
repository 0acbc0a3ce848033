//! What the task that owns the swarm does of itself and for others: carries out commands, dials, keeps the book in
//! order, and says how things are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::gossipsub::PublishError;
use libp2p::request_response::InboundRequestId;
use libp2p::swarm::DialError;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId};
use metrics::counter;
use tokio::task::JoinError;

use super::behaviour::HELLO_TIMEOUT;
use super::gossip::{ASIDE_SCORE, Topic};
use super::handle::{Command, MetPeer};
use super::source::P2pSource;
use super::status::{AbsentStatus, AsideStatus, P2pStatus, PeerStatus};
use super::swarm::{Ready, Task};
use super::{address, serve};
use crate::sync::source::SourceError;
use crate::telemetry;

/// How long a peer of another chain has to hear that it is one.
const STRANGER_PATIENCE: Duration = Duration::from_secs(3);

impl Task {
    pub(super) fn carry_out(&mut self, command: Command) {
        match command {
            Command::Publish(topic, bytes) => self.push(topic, bytes),
            Command::Judge { id, from, acceptance, head } => {
                self.judge(&id, &from, acceptance);
                if let Some(head) = head {
                    self.shown(&from, head);
                }
            }
            Command::Shown { peer, head } => self.shown(&peer, head),
            Command::Ask { peer, call, answer } => {
                if !self.book.is_admitted(&peer) {
                    // An error means that nobody waits any more.
                    let _ = answer.send(Err(not_connected()));
                    return;
                }
                let request = self.swarm.behaviour_mut().sync.send_request(&peer, call);
                self.asked.insert(request, answer);
            }
            Command::Greet { peer, answer } => {
                if self.book.get(&peer).is_none() {
                    let _ = answer.send(Err(not_connected()));
                    return;
                }
                let hello = serve::hello(&self.ledger, &self.node_id);
                let request = self.swarm.behaviour_mut().hello.send_request(&peer, hello);
                self.greeted.insert(request, Some(answer));
            }
            Command::Dial { peer, addresses: Ok(addresses) } => self.dial(peer, addresses),
            Command::Dial { peer, addresses: Err(reason) } => {
                tracing::warn!(%peer, reason, "the address of a peer is not known");
                self.targets.failed(&peer, reason);
                self.targets.lost(&peer, Instant::now());
            }
        }
    }

    fn push(&mut self, topic: Topic, bytes: Vec<u8>) {
        let (name, length) = (topic.name(), bytes.len() as u64);
        let at = self.topics.iter().position(|(known, _)| *known == topic).expect("both are there");
        let outcome = match self.swarm.behaviour_mut().gossip.publish(self.topics[at].1.hash(), bytes) {
            Ok(_) => {
                counter!(telemetry::P2P_BYTES, "direction" => "out").increment(length);
                "sent"
            }
            // Alone, or what a peer pushed meanwhile; the others hear of it from sync.
            Err(PublishError::NoPeersSubscribedToTopic) => "nobody",
            Err(PublishError::Duplicate) => "known",
            Err(error) => {
                tracing::warn!(topic = name, %error, "a message was not pushed");
                "failed"
            }
        };
        counter!(telemetry::P2P_MESSAGES_OUT, "topic" => name, "outcome" => outcome).increment(1);
    }

    /// Sends an answer that is ready.
    pub(super) fn answer(&mut self, ready: Result<Ready, JoinError>) {
        let Ready { peer, id, channel, answered, permit } = match ready {
            Ok(ready) => ready,
            // Its channel is gone with it, and gossip of that comes from the swarm.
            Err(error) => return tracing::error!(%error, "a request of a peer could not be answered"),
        };
        if let Some(blocks) = &answered.blocks {
            counter!(telemetry::P2P_BYTES, "direction" => "out").increment(blocks.body.len() as u64);
        }
        if let Some(sending) = self.sending.get_mut(&id) {
            *sending = (peer, permit);
        }
        // An error means that it is gone; then the swarm has said so, or does.
        let _ = self.swarm.behaviour_mut().sync.send_response(channel, answered);
    }

    /// An answer is sent, or lost: the peer may ask for more.
    pub(super) fn sent(&mut self, id: &InboundRequestId) {
        if let Some((peer, _)) = self.sending.remove(id)
            && let Some(record) = self.book.get_mut(&peer)
        {
            record.served = record.served.saturating_sub(1);
        }
    }

    // Whom to be connected with.

    /// Dials whoever is due.
    pub(super) fn dial_due(&mut self) {
        for (peer, addresses) in self.targets.due(Instant::now()) {
            if !addresses.iter().any(address::has_name) {
                self.dial(peer, addresses);
                continue;
            }
            let commands = self.commands.clone();
            self.lookups.spawn(async move {
                let mut found = Vec::new();
                let mut problem = None;
                for address in &addresses {
                    match address::resolve(address).await {
                        Ok(more) => found.extend(more),
                        Err(error) => problem = Some(error),
                    }
                }
                let addresses = match problem {
                    Some(problem) if found.is_empty() => Err(problem),
                    _ => Ok(found),
                };
                // An error means that the node is stopping.
                let _ = commands.tell(Command::Dial { peer, addresses }).await;
            });
        }
    }

    pub(super) fn dial(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let options =
            DialOpts::peer_id(peer).addresses(addresses).condition(PeerCondition::DisconnectedAndNotDialing).build();
        match self.swarm.dial(options) {
            Ok(()) => {}
            // It was faster.
            Err(DialError::DialPeerConditionFalse(_)) if self.book.get(&peer).is_some() => {
                self.targets.connected(&peer, Instant::now());
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "peer is not dialled");
                self.targets.lost(&peer, Instant::now());
            }
        }
    }

    /// Makes a peer known to sync.
    pub(super) fn meet(&mut self, peer: PeerId) {
        let source =
            P2pSource::new(peer, self.commands.clone(), Arc::clone(&self.recent_transactions), self.publishing_since);
        let head = self.book.get(&peer).and_then(|record| record.head);
        self.met.send_modify(|met| _ = met.insert(peer, MetPeer { source: Arc::new(source), head }));
    }

    /// Ends the connection with a peer of another chain, if it is one.
    pub(super) fn part_with_stranger(&mut self, peer: &PeerId) {
        if let Some((reason, _)) = self.strangers.remove(peer) {
            self.put_aside(*peer, reason);
        }
    }

    /// Disconnects a peer and leaves it alone for a while.
    fn put_aside(&mut self, peer: PeerId, reason: String) {
        counter!(telemetry::P2P_PUT_ASIDE).increment(1);
        let until = Instant::now() + self.aside;
        let list = &mut self.swarm.behaviour_mut().aside;
        list.block_peer(peer);
        if let Some(forgotten) = self.book.put_aside(peer, reason, until) {
            list.unblock_peer(forgotten);
        }
        self.targets.leave(&peer, until);
    }

    // Order.

    /// Goes through the book: who says nothing, whose conduct is bad, who has been left alone long enough.
    pub(super) fn keep_house(&mut self) {
        let now = Instant::now();
        for peer in self.book.silent(HELLO_TIMEOUT, now) {
            tracing::debug!(%peer, "peer does not say who it is");
            // An error means that it is gone.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let heard = |since: Instant| now.saturating_duration_since(since) >= STRANGER_PATIENCE;
        let strangers: Vec<_> =
            self.strangers.iter().filter(|(_, (_, since))| heard(*since)).map(|(peer, _)| *peer).collect();
        for peer in strangers {
            self.part_with_stranger(&peer);
        }
        let gossip = &self.swarm.behaviour().gossip;
        let score = |peer: &PeerId| gossip.peer_score(peer).unwrap_or(0.0);
        let bad: Vec<_> = self
            .book
            .iter()
            .map(|(peer, record)| (*peer, score(peer), record.configured))
            .filter(|(_, score, _)| *score < ASIDE_SCORE)
            .collect();
        let excess: Vec<_> = self.book.iter().map(|(peer, record)| (*peer, record.excess(now))).collect();
        for (peer, excess) in excess {
            self.swarm.behaviour_mut().gossip.set_application_score(&peer, -excess);
        }
        for (peer, score, configured) in bad {
            // The operator knows it; it is not listened to while its score is bad, and stays.
            if !configured {
                tracing::warn!(%peer, score, "what a peer pushes is wrong or too much; it is left alone");
                self.put_aside(peer, format!("score {score:.0}"));
            }
        }
        for peer in self.book.pardoned(now) {
            self.swarm.behaviour_mut().aside.unblock_peer(peer);
        }
        self.publish_status();
    }

    /// Says how things are.
    pub(super) fn publish_status(&self) {
        let now = Instant::now();
        let id = self.swarm.local_peer_id();
        let gossip = &self.swarm.behaviour().gossip;
        let ms = |from: Instant, to: Instant| {
            u64::try_from(to.saturating_duration_since(from).as_millis()).unwrap_or(u64::MAX)
        };
        let blocks = self.topics[0].1.hash();
        let mesh: Vec<&PeerId> = gossip.mesh_peers(&blocks).collect();
        let peers = self
            .book
            .iter()
            .map(|(peer, record)| PeerStatus {
                id: peer.to_string(),
                address: record.links.first().map(|link| link.address.to_string()).unwrap_or_default(),
                direction: record.links.first().map_or(super::book::Direction::Inbound, |link| link.direction),
                configured: record.configured,
                admitted: record.hello.is_some(),
                in_mesh: mesh.contains(&peer),
                agent: record.agent.clone(),
                score: (gossip.peer_score(peer).unwrap_or(0.0) * 10.0).round() / 10.0,
                latency_us: record.latency.map(|latency| u64::try_from(latency.as_micros()).unwrap_or(u64::MAX)),
                head_height: record.head.map(|head| head.0),
                head_hash: record.head.map(|head| head.1),
                connected_ms: ms(record.since, now),
            })
            .collect();
        let aside = self
            .book
            .aside()
            .map(|(peer, aside)| AsideStatus {
                id: peer.to_string(),
                reason: aside.reason.clone(),
                remaining_ms: ms(now, aside.until),
            })
            .collect();
        let absent = self
            .targets
            .absent()
            .map(|(peer, addresses, problem)| AbsentStatus {
                id: peer.to_string(),
                addresses: addresses.iter().map(ToString::to_string).collect(),
                reason: problem.map(str::to_owned),
            })
            .collect();
        let listen = self.swarm.listeners().map(|address| format!("{address}/p2p/{id}")).collect();
        self.status.send_replace(P2pStatus { peer_id: id.to_string(), listen, peers, aside, absent });
    }
}

fn not_connected() -> SourceError {
    SourceError::Unreachable("not connected".into())
}
