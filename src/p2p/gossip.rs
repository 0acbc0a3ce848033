//! Gossip: the two topics of a chain, how they are spread, and what a peer's conduct is worth.
//!
//! A message is a block's canonical bytes, or a transaction's. Both carry the signature that makes them good, so nobody
//! signs messages, and a message is known by its content: whoever pushes it, it comes once. Nothing is passed on before
//! [`super::intake`] has said what it is.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use libp2p::gossipsub::{
    Behaviour, ConfigBuilder, IdentTopic, IdentityTransform, Message, MessageAuthenticity, MessageId, PeerScoreParams,
    PeerScoreThresholds, TopicHash, TopicScoreParams, ValidationMode, WhitelistSubscriptionFilter,
    score_parameter_decay,
};

use super::wire::TRANSACTION_BYTES_MAX;
use crate::chain::{Genesis, Hash};

/// Gossip on our topics and no others.
pub type Gossip = Behaviour<IdentityTransform, WhitelistSubscriptionFilter>;

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// New blocks, whole.
    Blocks,
    /// New transactions.
    Transactions,
}

/// A score below which a peer is disconnected and left alone.
pub const ASIDE_SCORE: f64 = -80.0;

/// Below this a peer's messages are not looked at: of one that the operator named, which stays.
const GRAYLIST_SCORE: f64 = -100.0;
/// Below this nothing is pushed to a peer.
const PUBLISH_SCORE: f64 = -40.0;
/// Below this a peer is told of nothing.
const GOSSIP_SCORE: f64 = -10.0;

/// What the square of the number of wrong messages costs: one brings a newcomer below [`GOSSIP_SCORE`], two below
/// [`PUBLISH_SCORE`], three below all.
const WRONG_MESSAGE: f64 = -20.0;

/// How long a peer's conduct takes to be mostly forgotten.
const MEMORY: Duration = Duration::from_secs(600);

/// Ids of messages in one announcement. Each takes 22 bytes, and those who read accept [`CONTROL_BYTES_MAX`].
const IDS_MAX: usize = 1_000;

/// Bytes of announcements in one packet.
const CONTROL_BYTES_MAX: usize = 64 << 10;

/// Messages on their way to one peer; more are not sent to it, and it is told of them later.
const QUEUE_MAX: usize = 256;

/// How long a message may wait to be sent.
const QUEUE_TIME: Duration = Duration::from_secs(5);

/// How long a message that was seen is known. A message that comes later is looked at again, and found to be known.
const SEEN_TIME: Duration = Duration::from_secs(120);

/// Bytes of a packet beyond its largest message: libp2p reads some of the next one with it, and counts them.
const PACKET_SLACK: usize = 128 << 10;

impl Topic {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Blocks, Self::Transactions];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blocks => "blocks",
            Self::Transactions => "transactions",
        }
    }

    /// The topic of the chain whose block 0 has the hash `genesis`.
    pub fn of(self, genesis: &Hash) -> IdentTopic {
        IdentTopic::new(format!("/tenon/{}/{}/1", const_hex::encode(genesis.0), self.name()))
    }

    /// Bytes of a message at most.
    pub fn bytes_max(self, genesis: &Genesis) -> usize {
        match self {
            // What the rules count of a transaction is a little more than its encoding takes; the header comes on top.
            Self::Blocks => genesis.block_bytes_max as usize + 1_024,
            Self::Transactions => TRANSACTION_BYTES_MAX,
        }
    }
}

/// Which topic a message came on.
pub fn topic(hash: &TopicHash, topics: &[(Topic, IdentTopic); 2]) -> Option<Topic> {
    topics.iter().find(|(_, topic)| topic.hash() == *hash).map(|(topic, _)| *topic)
}

/// Gossip for the chain of `genesis`, subscribed to its topics.
pub fn behaviour(genesis: &Genesis, genesis_hash: &Hash) -> Gossip {
    let topics = Topic::ALL.map(|topic| topic.of(genesis_hash));
    let mut config = ConfigBuilder::default();
    config
        // A node of another chain does not even find the protocol.
        .protocol_id_prefix(format!("/tenon/{}/meshsub", const_hex::encode(genesis_hash.0)))
        .validate_messages()
        .validation_mode(ValidationMode::Anonymous)
        .message_id_fn(message_id)
        .max_transmit_size(Topic::Blocks.bytes_max(genesis) + PACKET_SLACK)
        .duplicate_cache_time(SEEN_TIME)
        .heartbeat_initial_delay(Duration::from_millis(100))
        .mesh_n_low(4)
        .max_control_messages_sent(IDS_MAX)
        .max_control_message_size(CONTROL_BYTES_MAX)
        .connection_handler_queue_len(QUEUE_MAX)
        .publish_queue_duration(QUEUE_TIME)
        .forward_queue_duration(QUEUE_TIME);
    for (kind, topic) in Topic::ALL.iter().zip(&topics) {
        // The topic's name and the fields' heads come on top.
        config.max_transmit_size_for_topic(kind.bytes_max(genesis) + 256, topic.hash());
    }
    let config = config.build().expect("constants that fit each other");
    let filter = WhitelistSubscriptionFilter(topics.iter().map(IdentTopic::hash).collect());
    let mut gossip = Gossip::new_with_subscription_filter(MessageAuthenticity::Anonymous, config, filter)
        .expect("anonymous messages go with anonymous validation");
    gossip.with_peer_score(score(&topics), THRESHOLDS).expect("constants in range");
    for topic in &topics {
        gossip.subscribe(topic).expect("the filter lets our own topics pass");
    }
    gossip
}

/// The content's hash: what is the same comes once, and nobody can take a good message's id for a bad one.
fn message_id(message: &Message) -> MessageId {
    MessageId::new(&Hash::of(&[message.topic.as_str().as_bytes(), &[0], &message.data]).0[..20])
}

const THRESHOLDS: PeerScoreThresholds = PeerScoreThresholds {
    gossip_threshold: GOSSIP_SCORE,
    publish_threshold: PUBLISH_SCORE,
    graylist_threshold: GRAYLIST_SCORE,
    // Peers are not exchanged.
    accept_px_threshold: 1_000.0,
    opportunistic_graft_threshold: 2.0,
};

/// What conduct is worth. Good conduct brings 33 points at most, so it does not pay to be good for long and then not.
fn score(topics: &[IdentTopic; 2]) -> PeerScoreParams {
    let forgets = score_parameter_decay(MEMORY);
    let topic = |first_delivery: f64, deliveries_max: f64| TopicScoreParams {
        topic_weight: 1.0,
        // A point for every 200 seconds in the mesh, three at most for both topics.
        time_in_mesh_weight: 0.005,
        time_in_mesh_quantum: Duration::from_secs(1),
        time_in_mesh_cap: 300.0,
        first_message_deliveries_weight: first_delivery,
        first_message_deliveries_decay: forgets,
        first_message_deliveries_cap: deliveries_max,
        // A chain may rest for hours; who brings nothing has done nothing wrong.
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: WRONG_MESSAGE,
        invalid_message_deliveries_decay: forgets,
        ..TopicScoreParams::default()
    };
    let [blocks, transactions] = topics;
    PeerScoreParams {
        topics: HashMap::from([(blocks.hash(), topic(1.0, 20.0)), (transactions.hash(), topic(0.05, 200.0))]),
        topic_score_cap: 33.0,
        // What is over a peer's rate: a point for each message, see `book::Record::excess`.
        app_specific_weight: 1.0,
        ip_colocation_factor_weight: -5.0,
        ip_colocation_factor_threshold: 10.0,
        // Nodes on one machine are somebody's test, or somebody's own.
        ip_colocation_factor_whitelist: [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].into(),
        // Grafts out of turn and announcements without a message; a restart causes some.
        behaviour_penalty_weight: -5.0,
        behaviour_penalty_threshold: 6.0,
        behaviour_penalty_decay: forgets,
        // Who comes back is who went, for a while.
        retain_score: MEMORY,
        ..PeerScoreParams::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn each_chain_has_topics_of_its_own_and_every_block_fits() {
        let (one, other) = (sample::genesis(1, 1), sample::genesis(2, 1));
        let (hash, other_hash) = (one.block().hash(), other.block().hash());
        let topics = Topic::ALL.map(|kind| (kind, kind.of(&hash)));
        for kind in Topic::ALL {
            assert_eq!(topic(&kind.of(&hash).hash(), &topics), Some(kind));
            assert_eq!(topic(&kind.of(&other_hash).hash(), &topics), None);
            behaviour(&one, &hash);
        }
        let mut sample = sample::Sample::new(1, 3);
        let mut bytes = Vec::new();
        sample.blocks(1, 50)[0].encode(&mut bytes);
        let counted: usize = 50 * 160 + 1_024;
        assert!(bytes.len() < counted, "{} bytes", bytes.len());
    }

    #[test]
    fn the_thresholds_are_crossed_as_they_say() {
        let topics = Topic::ALL.map(|kind| kind.of(&Hash::ZERO));
        score(&topics).validate().unwrap();
        THRESHOLDS.validate().unwrap();
        let wrong = |count: f64| WRONG_MESSAGE * count * count;
        assert!(wrong(1.0) < GOSSIP_SCORE && wrong(2.0) < PUBLISH_SCORE && wrong(2.0) >= ASIDE_SCORE);
        assert!(wrong(3.0) + score(&topics).topic_score_cap < GRAYLIST_SCORE, "also for who was good for long");
    }
}
