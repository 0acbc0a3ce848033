//! The task that owns the swarm: carries out commands, hands on what comes, and keeps the book. It never waits for
//! anything but the next of these, so a slow disk or a full queue elsewhere keeps no connection waiting.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use libp2p::core::transport::ListenerId;
use libp2p::gossipsub::IdentTopic;
use libp2p::request_response::{InboundRequestId, OutboundRequestId, ResponseChannel};
use libp2p::swarm::{Swarm, SwarmEvent};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::address;
use super::behaviour::{self, Behaviour, BehaviourEvent, Options};
use super::book::{Book, Rates};
use super::codec::{Answered, Pace};
use super::config::P2pConfig;
use super::dial::Targets;
use super::gossip::Topic;
use super::handle::{COMMANDS_MAX, Command, Commands, Handle, Met};
use super::identity::Identity;
use super::intake::{self, IncomingBlock, IncomingTransaction};
use super::publish;
use super::recent::Recent;
use super::serve::{Prices, Server};
use super::status::P2pStatus;
use super::wire::Hello;
use crate::chain::Time;
use crate::ledger::Ledger;
use crate::mempool::Mempool;
use crate::rate_limit::{Callers, Policy};
use crate::sync::source::SourceError;

/// Hashes of blocks that are remembered as having gone over gossip.
const RECENT_BLOCKS: usize = 1_024;
/// Hashes of transactions that are remembered as having gone over gossip; more than a mempool holds by default.
const RECENT_TRANSACTIONS: usize = 32_768;

/// How often the book is gone through.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// How long it may take until the node knows where it listens.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

/// What connections work with.
pub struct P2pParts {
    /// The chain.
    pub ledger: Ledger,
    /// The waiting transactions.
    pub mempool: Mempool,
    /// Who decides how often a peer may ask.
    pub policy: Arc<dyn Policy>,
    /// Tells callers apart.
    pub callers: Callers,
    /// What requests cost.
    pub prices: Prices,
    /// Drawn at random when the process started.
    pub node_id: String,
    /// How long a peer may leave a request without a byte.
    pub request_timeout: Duration,
    /// Bytes a second below which an answer that has taken longer is given up.
    pub throughput_min: u64,
}

/// Connections that are listened for, and not served yet.
pub struct P2p {
    task: Task,
    /// What came while it was not yet known where is listened.
    early: Vec<SwarmEvent<BehaviourEvent>>,
    commands: mpsc::Receiver<Command>,
    workers: Workers,
    handle: Handle,
}

/// What runs beside the task.
struct Workers {
    ledger: Ledger,
    mempool: Mempool,
    blocks: mpsc::Receiver<IncomingBlock>,
    transactions: mpsc::Receiver<IncomingTransaction>,
}

/// See the module.
pub(super) struct Task {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) book: Book,
    pub(super) targets: Targets,
    pub(super) topics: [(Topic, IdentTopic); 2],
    pub(super) rates: Rates,
    pub(super) aside: Duration,
    pub(super) ledger: Ledger,
    pub(super) node_id: String,
    pub(super) commands: Commands,
    pub(super) recent_blocks: Arc<Recent>,
    pub(super) recent_transactions: Arc<Recent>,
    /// What is received from then on is published.
    pub(super) publishing_since: Time,
    pub(super) blocks: mpsc::Sender<IncomingBlock>,
    pub(super) transactions: mpsc::Sender<IncomingTransaction>,
    pub(super) server: Arc<Server>,
    /// Requests of peers that are being answered.
    pub(super) serving: JoinSet<Ready>,
    /// Answers on their way, with the part of the budget that each holds.
    pub(super) sending: HashMap<InboundRequestId, (PeerId, Option<OwnedSemaphorePermit>)>,
    /// Names that are being looked up.
    pub(super) lookups: JoinSet<()>,
    /// Requests to peers, and who waits for the answer.
    pub(super) asked: HashMap<OutboundRequestId, oneshot::Sender<Result<Answered, SourceError>>>,
    /// First words to peers, and who waits for theirs, if somebody does.
    pub(super) greeted: HashMap<OutboundRequestId, Option<oneshot::Sender<Result<Hello, SourceError>>>>,
    /// Connected peers of other chains, with what is wrong and since when that is known.
    pub(super) strangers: HashMap<PeerId, (String, Instant)>,
    pub(super) status: watch::Sender<P2pStatus>,
    pub(super) met: watch::Sender<Met>,
}

/// A request that has its answer.
pub(super) struct Ready {
    pub(super) peer: PeerId,
    pub(super) id: InboundRequestId,
    pub(super) channel: ResponseChannel<Answered>,
    pub(super) answered: Answered,
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

impl P2p {
    /// Listens where `config` says. Connections are accepted from here on and looked at once it [runs](P2p::run).
    ///
    /// Errors: a knob out of range, or an address that cannot be listened on.
    pub async fn listen(parts: P2pParts, identity: &Identity, config: &P2pConfig) -> Result<Self, String> {
        config.check()?;
        let P2pParts { ledger, mempool, policy, callers, prices, node_id, request_timeout, throughput_min } = parts;
        let (genesis, genesis_hash) = (Arc::clone(ledger.genesis()), ledger.genesis_hash());
        let redial_max = Duration::from_millis(config.redial_max_ms);
        let peers: Vec<_> = config.peers.iter().filter(|peer| peer.peer != identity.peer_id()).cloned().collect();
        let targets = Targets::new(&peers, redial_max, Instant::now());
        let options = Options {
            genesis: &genesis,
            genesis_hash,
            connections_max: config.connections_max,
            configured: targets.ids().copied().collect(),
            pace: Pace { timeout: request_timeout, throughput_min },
            #[cfg(feature = "mdns")]
            mdns: config.mdns,
        };
        let mut swarm = behaviour::swarm(identity.keypair(), &options)?;
        let early = listen(&mut swarm, &config.listen.0).await?;
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (blocks, incoming_blocks) = mpsc::channel(intake::BLOCKS_WAITING_MAX);
        let (transactions, incoming_transactions) = mpsc::channel(intake::TRANSACTIONS_WAITING_MAX);
        let (status, met) = (watch::Sender::default(), watch::Sender::default());
        let handle = Handle { peer_id: identity.peer_id(), status: status.subscribe(), met: met.subscribe() };
        let rates = Rates::new(
            config.block_bytes_per_second,
            Topic::Blocks.bytes_max(&genesis),
            config.transaction_bytes_per_second,
            Topic::Transactions.bytes_max(&genesis),
        );
        let server = Server::new(ledger.clone(), mempool.clone(), policy, callers, prices, config.serve_bytes_max);
        let task = Task {
            swarm,
            book: Book::default(),
            targets,
            topics: Topic::ALL.map(|topic| (topic, topic.of(&genesis_hash))),
            rates,
            aside: Duration::from_millis(config.aside_ms),
            ledger: ledger.clone(),
            node_id,
            commands: Commands(sender),
            recent_blocks: Arc::new(Recent::new(RECENT_BLOCKS)),
            recent_transactions: Arc::new(Recent::new(RECENT_TRANSACTIONS)),
            publishing_since: ledger.clock().now(),
            blocks,
            transactions,
            server: Arc::new(server),
            serving: JoinSet::new(),
            sending: HashMap::new(),
            lookups: JoinSet::new(),
            asked: HashMap::new(),
            greeted: HashMap::new(),
            strangers: HashMap::new(),
            status,
            met,
        };
        task.publish_status();
        tracing::info!(peer_id = %identity.peer_id(), "peers know this node by its id");
        for address in &task.status.borrow().listen {
            tracing::info!(address, "listening for peers");
        }
        let workers = Workers { ledger, mempool, blocks: incoming_blocks, transactions: incoming_transactions };
        Ok(Self { task, early, commands, workers, handle })
    }

    /// What the rest of the node sees of it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves connections until `stop` says true. Then they are closed; what was handed to the ledger is still stored.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let Self { mut task, early, mut commands, workers, .. } = self;
        let Workers { ledger, mempool, blocks, transactions } = workers;
        let chain_id = ledger.genesis().chain_id.clone();
        let mut beside = JoinSet::new();
        let (tell, recent) = (|| task.commands.clone(), |recent: &Arc<Recent>| Arc::clone(recent));
        let of_blocks = || recent(&task.recent_blocks);
        let of_transactions = || recent(&task.recent_transactions);
        beside.spawn(intake::blocks(ledger.clone(), of_blocks(), tell(), blocks, stop.clone()));
        beside.spawn(intake::transactions(
            mempool.clone(),
            chain_id,
            of_transactions(),
            tell(),
            transactions,
            stop.clone(),
        ));
        beside.spawn(publish::blocks(ledger, of_blocks(), tell(), stop.clone()));
        let arrivals = mempool.arrivals();
        task.publishing_since = task.ledger.clock().now();
        beside.spawn(publish::transactions(arrivals, of_transactions(), tell(), stop.clone()));
        early.into_iter().for_each(|event| task.on_event(event));
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            task.dial_due();
            let next_dial = task.targets.next().map(tokio::time::Instant::from_std);
            let due = async {
                match next_dial {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                event = task.swarm.select_next_some() => task.on_event(event),
                command = commands.recv() => task.carry_out(command.expect("the task holds a sender")),
                Some(ready) = task.serving.join_next() => task.answer(ready),
                Some(_) = task.lookups.join_next() => {}
                _ = housekeeping.tick() => task.keep_house(),
                () = due => {}
            }
        }
        // Whoever waits for the task sees that it is gone.
        drop((task, commands));
        while let Some(ended) = beside.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the connections to peers did not end well");
            }
        }
    }
}

/// Listens at all addresses, and waits until it is known where that is; what else happens meanwhile is kept for later.
/// Errors: an address that cannot be listened on.
async fn listen(
    swarm: &mut Swarm<Behaviour>,
    addresses: &[Multiaddr],
) -> Result<Vec<SwarmEvent<BehaviourEvent>>, String> {
    let mut waiting: HashMap<ListenerId, &Multiaddr> = HashMap::new();
    for address in addresses {
        address::is_free(address).map_err(|error| format!("listening on {address}: {error}"))?;
        let listener = swarm.listen_on(address.clone()).map_err(|error| format!("listening on {address}: {error}"))?;
        waiting.insert(listener, address);
    }
    let listening = async {
        let mut early = Vec::new();
        while !waiting.is_empty() {
            match swarm.select_next_some().await {
                SwarmEvent::NewListenAddr { listener_id, .. } => _ = waiting.remove(&listener_id),
                SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                    let address = waiting.get(&listener_id).map_or_else(String::new, ToString::to_string);
                    let reason = reason.map_or_else(|error| error.to_string(), |()| "closed".into());
                    return Err(format!("listening on {address}: {reason}"));
                }
                event => early.push(event),
            }
        }
        Ok(early)
    };
    let late = || Err(format!("it is not known after {LISTEN_TIMEOUT:?} where peers are listened for"));
    tokio::time::timeout(LISTEN_TIMEOUT, listening).await.unwrap_or_else(|_| late())
}
