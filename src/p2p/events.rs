//! What comes from the swarm, and what is done about it.

use std::io;
use std::time::Instant;

use libp2p::core::ConnectedPoint;
use libp2p::gossipsub::{self, MessageAcceptance};
use libp2p::request_response::{self, InboundRequestId, Message, OutboundFailure, ResponseChannel};
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{PeerId, identify, ping};
use metrics::counter;
use tokio::sync::mpsc::error::TrySendError;

use super::behaviour::BehaviourEvent;
use super::book::{Direction, Link, SERVED_MAX, agent};
use super::codec::{Answered, Call};
use super::gossip::{self, Topic};
use super::intake::{IncomingBlock, IncomingTransaction, Verdict, first_look};
use super::serve::{self, Asker};
use super::swarm::{Ready, Task};
use super::wire::{Answer, HeadRef, Hello, Request};
use crate::chain::Time;
use crate::rate_limit::Class;
use crate::sync::source::SourceError;
use crate::telemetry;

/// What a peer that has too many requests under way is told to wait.
const TOO_MANY_MS: u32 = 200;

impl Task {
    pub(super) fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(event)) => self.on_gossip(event),
            SwarmEvent::Behaviour(BehaviourEvent::Sync(event)) => self.on_sync(event),
            SwarmEvent::Behaviour(BehaviourEvent::Hello(event)) => self.on_hello(event),
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => self.on_ping(&event),
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. })) => {
                if let Some(record) = self.book.get_mut(&peer_id) {
                    record.agent = Some(agent(&info.agent_version));
                }
            }
            #[cfg(feature = "mdns")]
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(libp2p::mdns::Event::Discovered(found))) => {
                for (peer, address) in found {
                    self.found_near(peer, address);
                }
            }
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.connected(peer_id, connection_id, endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                tracing::debug!(peer = %peer_id, ?cause, "connection closed");
                self.disconnected(&peer_id, connection_id);
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => {
                self.not_reached(&peer, &error);
            }
            SwarmEvent::IncomingConnectionError { error, send_back_addr, .. } => {
                counter!(telemetry::P2P_CONNECTIONS_REFUSED).increment(1);
                tracing::debug!(from = %send_back_addr, %error, "a peer did not get in");
            }
            SwarmEvent::NewListenAddr { .. } | SwarmEvent::ExpiredListenAddr { .. } => self.publish_status(),
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                tracing::error!(?addresses, ?reason, "no longer listening for peers");
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "listening for peers"),
            _ => {}
        }
    }

    // Connections.

    fn connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: ConnectedPoint) {
        let now = Instant::now();
        let direction = if endpoint.is_dialer() { Direction::Outbound } else { Direction::Inbound };
        let address = match endpoint {
            ConnectedPoint::Dialer { address, .. } => address,
            ConnectedPoint::Listener { send_back_addr, .. } => send_back_addr,
        };
        tracing::debug!(%peer, %address, ?direction, "connection established");
        self.targets.connected(&peer, now);
        let configured = self.targets.contains(&peer);
        self.book.connected(peer, Link { id, address, direction }, configured, now);
        // Whoever dials speaks first.
        if direction == Direction::Outbound && !self.book.is_admitted(&peer) {
            let hello = serve::hello(&self.ledger, &self.node_id);
            let request = self.swarm.behaviour_mut().hello.send_request(&peer, hello);
            self.greeted.insert(request, None);
        }
    }

    /// A node nearby; of which chain, its first words will show.
    #[cfg(feature = "mdns")]
    fn found_near(&mut self, peer: PeerId, address: libp2p::Multiaddr) {
        let left_alone = self.swarm.behaviour().aside.blocked_peers().contains(&peer);
        if self.book.get(&peer).is_none() && !self.targets.contains(&peer) && !left_alone {
            tracing::debug!(%peer, %address, "found nearby");
            self.dial(peer, vec![address]);
        }
    }

    fn disconnected(&mut self, peer: &PeerId, id: ConnectionId) {
        let was_admitted = self.book.is_admitted(peer);
        if !self.book.disconnected(peer, id) {
            return;
        }
        self.targets.lost(peer, Instant::now());
        self.part_with_stranger(peer);
        if was_admitted {
            tracing::info!(%peer, "peer is gone");
            self.met.send_modify(|met| _ = met.remove(peer));
        }
        self.publish_status();
    }

    fn not_reached(&mut self, peer: &PeerId, error: &DialError) {
        // Another connection with it may stand, or be on its way.
        if self.book.get(peer).is_none() {
            self.targets.lost(peer, Instant::now());
        }
        if !self.targets.contains(peer) {
            return;
        }
        tracing::debug!(%peer, %error, "peer is not reached");
        self.targets.failed(peer, unreached(error));
        // A peer that does not run is no mistake; one that is somebody else is the operator's, and nothing else tells.
        if let DialError::WrongPeerId { obtained, address } = error
            && self.targets.mistaken(peer, *obtained)
        {
            let (configured, found) = (peer, obtained);
            tracing::warn!(%configured, %found, %address, "a peer has another id than the one in `p2p.peers`");
        }
        self.publish_status();
    }

    fn on_ping(&mut self, event: &ping::Event) {
        match &event.result {
            Ok(latency) => {
                if let Some(record) = self.book.get_mut(&event.peer) {
                    record.latency = Some(*latency);
                }
            }
            // It may be somebody else's software.
            Err(ping::Failure::Unsupported) => {}
            Err(error) => {
                tracing::debug!(peer = %event.peer, %error, "peer does not answer");
                self.swarm.close_connection(event.connection);
            }
        }
    }

    // First words.

    fn on_hello(&mut self, event: request_response::Event<Hello, Hello>) {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                Message::Request { request: theirs, channel, .. } => {
                    // Also to a stranger: then it knows why it is not wanted.
                    let ours = serve::hello(&self.ledger, &self.node_id);
                    // An error means that it is gone.
                    let _ = self.swarm.behaviour_mut().hello.send_response(channel, ours);
                    self.greeted_by(peer, theirs, false);
                }
                Message::Response { request_id, response: theirs } => {
                    if let Some(Some(waiting)) = self.greeted.remove(&request_id) {
                        // An error means that nobody waits any more.
                        let _ = waiting.send(Ok(theirs.clone()));
                    }
                    self.greeted_by(peer, theirs, true);
                }
            },
            request_response::Event::OutboundFailure { peer, request_id, error, .. } => {
                let waiting = self.greeted.remove(&request_id).flatten();
                tracing::debug!(%peer, %error, "peer does not say who it is");
                if let Some(waiting) = waiting {
                    let _ = waiting.send(Err(failure(error)));
                }
            }
            request_response::Event::InboundFailure { peer, error, .. } => {
                tracing::debug!(%peer, %error, "first words were lost");
            }
            request_response::Event::ResponseSent { .. } => {}
        }
    }

    /// A peer has said who it is: in answer to us, or of itself.
    fn greeted_by(&mut self, peer: PeerId, theirs: Hello, answers: bool) {
        let (ours_id, ours) = (self.ledger.genesis().chain_id.clone(), self.ledger.genesis_hash());
        let foreign = serve::foreign(&theirs, &ours_id, &ours);
        let Some(record) = self.book.get_mut(&peer) else { return };
        if let Some(reason) = foreign {
            let address = record.links.first().map(|link| link.address.to_string());
            tracing::error!(%peer, address, reason, "a peer is on another chain, and is left alone");
            self.strangers.insert(peer, (reason, Instant::now()));
            if answers {
                self.part_with_stranger(&peer);
            }
            // Else our own words are on their way to it, and it ends the connection when it has read them, or we do
            // soon.
            return;
        }
        let first = record.hello.is_none();
        record.show(theirs.head);
        record.hello = Some(theirs);
        if first {
            tracing::info!(%peer, "peer is up");
            self.meet(peer);
            self.publish_status();
        }
    }

    // Requests.

    fn on_sync(&mut self, event: request_response::Event<Call, Answered>) {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                Message::Request { request_id, request, channel } => {
                    self.on_request(peer, request_id, request.request, channel);
                }
                Message::Response { request_id, response } => {
                    if let Answer::Head(head) | Answer::Blocks { head, .. } = &response.answer
                        && let Some(record) = self.book.get_mut(&peer)
                    {
                        record.head = Some(*head);
                    }
                    if let Some(blocks) = &response.blocks {
                        counter!(telemetry::P2P_BYTES, "direction" => "in").increment(blocks.body.len() as u64);
                    }
                    if let Some(waiting) = self.asked.remove(&request_id) {
                        // An error means that nobody waits any more.
                        let _ = waiting.send(Ok(response));
                    }
                }
            },
            request_response::Event::OutboundFailure { request_id, error, .. } => {
                if let Some(waiting) = self.asked.remove(&request_id) {
                    let _ = waiting.send(Err(failure(error)));
                }
            }
            request_response::Event::InboundFailure { peer, request_id, error, .. } => {
                tracing::debug!(%peer, %error, "a request of a peer failed");
                self.sent(&request_id);
            }
            request_response::Event::ResponseSent { request_id, .. } => self.sent(&request_id),
        }
    }

    fn on_request(&mut self, peer: PeerId, id: InboundRequestId, request: Request, channel: ResponseChannel<Answered>) {
        let kind = match &request {
            Request::Head => "head",
            Request::Range(_) => "range",
            Request::Submit(_) => "submit",
        };
        counter!(telemetry::P2P_REQUESTS, "kind" => kind).increment(1);
        let refused = match self.book.get_mut(&peer) {
            None => Some(Answer::Refused { status: 403, reason: "not connected".into() }),
            Some(record) if record.hello.is_none() => {
                Some(Answer::Refused { status: 403, reason: "say hello first".into() })
            }
            Some(record) if record.served >= SERVED_MAX => Some(Answer::Limited { retry_after_ms: TOO_MANY_MS }),
            Some(record) => {
                record.served += 1;
                None
            }
        };
        if let Some(answer) = refused {
            // An error means that it is gone.
            let _ = self.swarm.behaviour_mut().sync.send_response(channel, Answered::plain(answer));
            return;
        }
        let record = self.book.get(&peer).expect("found above");
        let asker = Asker { ip: record.ip(), configured: record.configured };
        let server = std::sync::Arc::clone(&self.server);
        self.sending.insert(id, (peer, None));
        self.serving.spawn(async move {
            let served = server.answer(request, asker).await;
            Ready { peer, id, channel, answered: served.answered, permit: served.permit }
        });
    }

    // Gossip.

    fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message { propagation_source: from, message_id: id, message } => {
                let bytes = message.data;
                counter!(telemetry::P2P_BYTES, "direction" => "in").increment(bytes.len() as u64);
                let Some(topic) = gossip::topic(&message.topic, &self.topics) else { return };
                let verdict = match self.within_rate(&from, topic, bytes.len()) {
                    false => Some(Verdict::Ignore("over its rate")),
                    true => match topic {
                        Topic::Blocks => self.take_block(&id, from, bytes),
                        Topic::Transactions => self.take_transaction(&id, from, bytes),
                    },
                };
                if let Some(verdict) = verdict {
                    tracing::debug!(%from, topic = topic.name(), ?verdict, "a message goes no further");
                    let (topic, verdict_name) = (topic.name(), verdict.name());
                    counter!(telemetry::P2P_MESSAGES_IN, "topic" => topic, "verdict" => verdict_name).increment(1);
                    self.judge(&id, &from, verdict.acceptance());
                }
            }
            gossipsub::Event::SlowPeer { peer_id, .. } => {
                counter!(telemetry::P2P_SLOW_PEERS).increment(1);
                tracing::debug!(peer = %peer_id, "peer takes messages too slowly");
                if self.book.get_mut(&peer_id).is_some_and(|record| record.is_stuck(Instant::now())) {
                    tracing::warn!(peer = %peer_id, "a peer takes no messages any more, and is disconnected");
                    // An error means that it is gone.
                    let _ = self.swarm.disconnect_peer_id(peer_id);
                }
            }
            gossipsub::Event::GossipsubNotSupported { peer_id } => {
                tracing::debug!(peer = %peer_id, "peer does not gossip on this chain");
            }
            gossipsub::Event::Subscribed { .. } | gossipsub::Event::Unsubscribed { .. } => {}
        }
    }

    fn within_rate(&mut self, from: &PeerId, topic: Topic, bytes: usize) -> bool {
        let class = match topic {
            Topic::Blocks => Class::Import,
            Topic::Transactions => Class::Write,
        };
        let now = Instant::now();
        // Who is gone meanwhile has nothing to lose.
        let Some(record) = self.book.get_mut(from) else { return false };
        let within = record.allows(&self.rates, class, bytes, Time::now(), now);
        if !within {
            let excess = record.excess(now);
            self.swarm.behaviour_mut().gossip.set_application_score(from, -excess);
        }
        within
    }

    /// Hands a block on to be judged, where its header is good. Answers the verdict where that is all there is to it.
    fn take_block(&mut self, id: &gossipsub::MessageId, from: PeerId, bytes: Vec<u8>) -> Option<Verdict> {
        match first_look(&bytes, self.ledger.genesis(), Time::now()) {
            Err(verdict) => Some(verdict),
            Ok((header, hash)) => {
                let block = IncomingBlock { id: id.clone(), from, bytes, header, hash };
                full(self.blocks.try_send(block))
            }
        }
    }

    fn take_transaction(&mut self, id: &gossipsub::MessageId, from: PeerId, bytes: Vec<u8>) -> Option<Verdict> {
        full(self.transactions.try_send(IncomingTransaction { id: id.clone(), from, bytes }))
    }

    pub(super) fn judge(&mut self, id: &gossipsub::MessageId, from: &PeerId, acceptance: MessageAcceptance) {
        // False means that gossip has forgotten the message, which it does after some seconds.
        self.swarm.behaviour_mut().gossip.report_message_validation_result(id, from, acceptance);
    }

    /// A peer is known to have this block.
    pub(super) fn shown(&mut self, peer: &PeerId, head: HeadRef) {
        if let Some(record) = self.book.get_mut(peer)
            && record.show(head)
        {
            self.met.send_if_modified(|met| match met.get_mut(peer) {
                Some(known) => {
                    known.head = Some(head);
                    true
                }
                None => false,
            });
        }
    }
}

fn full<T>(sent: Result<(), TrySendError<T>>) -> Option<Verdict> {
    match sent {
        Ok(()) => None,
        Err(TrySendError::Full(_)) => Some(Verdict::Ignore("too many wait")),
        Err(TrySendError::Closed(_)) => Some(Verdict::Ignore("this node is stopping")),
    }
}

/// Why a peer that the operator named is not reached, in a line.
fn unreached(error: &DialError) -> String {
    match error {
        DialError::WrongPeerId { obtained, address } => {
            format!("the peer at {address} is {obtained}, not the one named")
        }
        DialError::Transport(attempts) => {
            let attempts = attempts.iter().map(|(address, error)| format!("{address}: {}", innermost(error)));
            attempts.collect::<Vec<_>>().join("; ")
        }
        other => other.to_string(),
    }
}

/// The cause that says "connection refused".
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string().chars().filter(|character| !character.is_control()).take(200).collect()
}

/// What a request came to that was not answered.
pub(super) fn failure(error: OutboundFailure) -> SourceError {
    match error {
        OutboundFailure::Io(error) => io_failure(&error),
        OutboundFailure::UnsupportedProtocols => {
            SourceError::Malformed("it does not serve blocks of this chain over libp2p".into())
        }
        OutboundFailure::Timeout => SourceError::Unreachable("no whole answer in time".into()),
        error @ (OutboundFailure::DialFailure | OutboundFailure::ConnectionClosed) => {
            SourceError::Unreachable(error.to_string())
        }
    }
}

fn io_failure(error: &io::Error) -> SourceError {
    let told = error.get_ref().and_then(|inner| inner.downcast_ref::<SourceError>());
    match (told, error.kind()) {
        (Some(told), _) => told.clone(),
        (None, io::ErrorKind::UnexpectedEof) => SourceError::Truncated { got: 0 },
        (None, _) => SourceError::Unreachable(error.to_string().chars().take(200).collect()),
    }
}
