//! Nodes of one chain that are connected over libp2p, in this process: ledger, mempool and connections on free ports,
//! each in a directory of its own. And whoever is not a node, but speaks like one as far as it wants to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libp2p::futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::gossipsub::{self, MessageAcceptance, MessageAuthenticity, MessageId, ValidationMode};
use libp2p::request_response::{self, OutboundRequestId, ProtocolSupport};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{PeerId, StreamProtocol, Swarm, SwarmBuilder, noise, tcp, yamux};
use tenon::chain::{Address, Genesis, Hash, Kind, Payload, SecretKey, Time, Transaction};
use tenon::ledger::{Ledger, LedgerOptions};
use tenon::mempool::{Mempool, MempoolConfig, MempoolHook};
use tenon::p2p::address::{Listen, PeerAddress};
use tenon::p2p::gossip::Topic;
use tenon::p2p::wire::{Answer, Hello, Request};
use tenon::p2p::{Handle, Identity, P2p, P2pConfig, P2pParts, P2pStatus};
use tenon::rate_limit::token_bucket::{self, Settings};
use tenon::rate_limit::{self, Callers, Cell, Networks, Policy, Verdict};
use tenon::rpc::{RpcConfig, prices};
use tenon::{producer, sample};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// After this a wait has failed: far longer than anything here takes.
pub const HANG: Duration = Duration::from_secs(120);

/// A chain that begins now, so that its blocks are news.
#[derive(Clone)]
pub struct Chain {
    pub genesis: Genesis,
    pub authority: SecretKey,
    pub accounts: Vec<SecretKey>,
}

impl Chain {
    pub fn new(seed: u64) -> Self {
        let mut genesis = sample::genesis(seed, 20);
        genesis.timestamp = Time(Time::now().0 - 60_000_000);
        let accounts = (1..=20).map(|index| sample::key(seed, index)).collect();
        Self { genesis, authority: sample::key(seed, 0), accounts }
    }

    pub fn hash(&self) -> Hash {
        self.genesis.block().hash()
    }

    /// The `count` next transactions of account number `from`, which has sent `nonce` before.
    pub fn transfers(&self, from: usize, nonce: u64, count: u64) -> Vec<Transaction> {
        let to = Address::of(&self.accounts[(from + 1) % self.accounts.len()].public_key());
        (nonce..nonce + count)
            .map(|nonce| {
                let transfer = Transaction::new(Kind::Transfer, to, 1, 10, nonce, Payload::Absent);
                transfer.signed(&self.genesis.chain_id, &self.accounts[from])
            })
            .collect()
    }
}

/// The built-in token bucket, for callers who are trusted as `settings` say.
struct Bucket {
    settings: Settings,
    cells: Mutex<HashMap<u64, Cell>>,
}

impl Policy for Bucket {
    fn check_recorded(&self, request: &rate_limit::Request) -> (Verdict, Option<String>) {
        let mut cells = self.cells.lock().unwrap();
        let cell = cells.entry(request.client).or_default();
        let (verdict, next) = token_bucket::step(&self.settings, request, cell);
        *cell = next;
        (verdict, None)
    }
}

/// Lets everybody through.
pub struct Open;

impl Policy for Open {
    fn check_recorded(&self, _: &rate_limit::Request) -> (Verdict, Option<String>) {
        (Verdict::Pass, None)
    }
}

/// A free TCP port on this machine, and these peers.
pub fn config(peers: &[PeerAddress]) -> P2pConfig {
    P2pConfig {
        listen: listen("/ip4/127.0.0.1/tcp/0"),
        peers: peers.to_vec(),
        redial_max_ms: 500,
        ..P2pConfig::default()
    }
}

pub fn listen(address: &str) -> Listen {
    Listen(vec![address.parse().expect("a multiaddress")])
}

/// A node.
pub struct Peer {
    pub ledger: Ledger,
    pub mempool: Mempool,
    pub p2p: Handle,
    pub stop: watch::Sender<bool>,
    pub task: JoinHandle<()>,
    authority: SecretKey,
    _dir: tempfile::TempDir,
}

impl Peer {
    pub async fn start(chain: &Chain, config: P2pConfig) -> Self {
        Self::start_as(&Identity::random(), chain, config, Settings::default()).await
    }

    pub async fn start_as(identity: &Identity, chain: &Chain, config: P2pConfig, limits: Settings) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let hook = MempoolHook::new();
        let handle = hook.handle();
        let options = LedgerOptions::new(dir.path().join("chain.db"), chain.genesis.clone());
        let ledger = Ledger::open(options, vec![Box::new(hook)]).expect("a new database");
        let mempool = Mempool::open(ledger.clone(), handle, MempoolConfig::default()).expect("an empty one");
        let parts = P2pParts {
            ledger: ledger.clone(),
            mempool: mempool.clone(),
            policy: Arc::new(Bucket { settings: limits, cells: Mutex::default() }),
            callers: Callers::new(Networks::default()),
            prices: prices(&RpcConfig::default()),
            node_id: "a node for tests".into(),
            request_timeout: Duration::from_secs(10),
            throughput_min: 1,
        };
        let p2p = P2p::listen(parts, identity, &config).await.expect("a free port");
        let (stop, stopped) = watch::channel(false);
        let handle = p2p.handle();
        let task = tokio::spawn(p2p.run(stopped));
        Self { ledger, mempool, p2p: handle, stop, task, authority: chain.authority.clone(), _dir: dir }
    }

    /// Where it listens first.
    pub fn address(&self) -> PeerAddress {
        self.p2p.status().borrow().listen[0].parse().expect("its own address")
    }

    pub fn id(&self) -> String {
        self.p2p.peer_id().to_string()
    }

    /// Waits for its connections to be as told.
    pub async fn until(&self, what: &str, condition: impl FnMut(&P2pStatus) -> bool) -> P2pStatus {
        let mut status = self.p2p.status();
        let waited = tokio::time::timeout(HANG, status.wait_for(condition)).await;
        let waited = waited.map(|status| status.expect("it runs").clone());
        waited.unwrap_or_else(|_| panic!("waited in vain for {what}: {:#?}", *self.p2p.status().borrow()))
    }

    /// Waits until it exchanges blocks with just as many peers.
    pub async fn until_meshed(&self, peers: usize) -> P2pStatus {
        let meshed = |status: &P2pStatus| status.peers.iter().filter(|peer| peer.admitted && peer.in_mesh).count();
        self.until(&format!("{peers} peers in the mesh"), |status| meshed(status) == peers).await
    }

    pub async fn until_height(&self, height: u64) {
        let mut head = self.ledger.watch();
        let waited = tokio::time::timeout(HANG, head.wait_for(|head| head.height >= height)).await;
        waited.unwrap_or_else(|_| panic!("waited in vain for block {height}, at {}", self.ledger.height())).unwrap();
    }

    /// Waits until so many transactions wait in its mempool.
    pub async fn until_waiting(&self, count: usize) {
        let mut added = self.mempool.watch();
        let waiting = async {
            while self.mempool.len() < count {
                added.changed().await.expect("the mempool is there");
            }
        };
        let waited = tokio::time::timeout(HANG, waiting).await;
        waited.unwrap_or_else(|_| panic!("waited in vain for {count} transactions, got {}", self.mempool.len()));
    }

    pub async fn submit(&self, transactions: impl IntoIterator<Item = Transaction>) {
        for transaction in transactions {
            self.mempool.submit_transaction(transaction).await.expect("a good transaction");
        }
    }

    /// Makes a block of what waits.
    pub async fn produce(&self) {
        let height = self.ledger.height();
        producer::produce(&self.ledger, &self.mempool, &self.authority, Time::now(), true).await;
        assert_eq!(self.ledger.height(), height + 1);
    }

    /// What the peer with this id is worth to it.
    pub fn score_of(&self, id: &str) -> Option<f64> {
        self.p2p.status().borrow().peers.iter().find(|peer| peer.id == id).map(|peer| peer.score)
    }

    pub async fn stop(self) {
        self.stop.send_replace(true);
        tokio::time::timeout(HANG, self.task).await.expect("it stops").expect("it ends well");
        self.ledger.stop();
    }
}

/// Bytes as they are, either way.
#[derive(Clone, Default)]
pub struct Raw;

impl request_response::Codec for Raw {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> std::io::Result<Vec<u8>>
    where
        T: libp2p::futures::AsyncRead + Unpin + Send,
    {
        let mut bytes = Vec::new();
        io.read_to_end(&mut bytes).await?;
        Ok(bytes)
    }

    async fn read_response<T>(&mut self, protocol: &StreamProtocol, io: &mut T) -> std::io::Result<Vec<u8>>
    where
        T: libp2p::futures::AsyncRead + Unpin + Send,
    {
        self.read_request(protocol, io).await
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, bytes: Vec<u8>) -> std::io::Result<()>
    where
        T: libp2p::futures::AsyncWrite + Unpin + Send,
    {
        io.write_all(&bytes).await
    }

    async fn write_response<T>(&mut self, protocol: &StreamProtocol, io: &mut T, bytes: Vec<u8>) -> std::io::Result<()>
    where
        T: libp2p::futures::AsyncWrite + Unpin + Send,
    {
        self.write_request(protocol, io, bytes).await
    }
}

#[derive(NetworkBehaviour)]
struct Mimic {
    hello: request_response::Behaviour<Raw>,
    sync: request_response::Behaviour<Raw>,
    gossip: gossipsub::Behaviour,
}

enum Order {
    Hello(Vec<u8>, oneshot::Sender<Option<Vec<u8>>>),
    Ask(Vec<u8>, oneshot::Sender<Option<Vec<u8>>>),
    Push(Topic, Vec<u8>, oneshot::Sender<bool>),
}

/// Somebody who is connected with a node and says what a test wants.
pub struct Stranger {
    pub id: String,
    orders: mpsc::UnboundedSender<Order>,
    /// What the node has pushed to it.
    pub pushed: mpsc::UnboundedReceiver<(Topic, Vec<u8>)>,
    /// False once the node has closed the connection.
    pub connected: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stranger {
    /// Connects with a node of `chain`, and waits until it is told of that chain's topics. Packets of up to
    /// `packet_max` bytes leave it.
    pub async fn connect(node: &Peer, chain: &Chain, packet_max: usize) -> Self {
        let genesis = chain.hash();
        let name = const_hex::encode(genesis.0);
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
            .expect("encryption")
            .with_behaviour(|_| {
                let protocol =
                    |name: String| [(StreamProtocol::try_from_owned(name).expect("a slash"), ProtocolSupport::Full)];
                let config = gossipsub::ConfigBuilder::default()
                    .protocol_id_prefix(format!("/tenon/{name}/meshsub"))
                    .validation_mode(ValidationMode::None)
                    .validate_messages()
                    .message_id_fn(|message| MessageId::new(&Hash::of(&[&message.data]).0))
                    .max_transmit_size(packet_max)
                    .build()
                    .expect("a configuration");
                Mimic {
                    hello: request_response::Behaviour::new(protocol("/tenon/hello/1".into()), Default::default()),
                    sync: request_response::Behaviour::new(
                        protocol(format!("/tenon/{name}/sync/1")),
                        Default::default(),
                    ),
                    gossip: gossipsub::Behaviour::new(MessageAuthenticity::Anonymous, config).expect("a behaviour"),
                }
            })
            .expect("a behaviour")
            .with_swarm_config(|config| config.with_idle_connection_timeout(HANG))
            .build();
        for topic in Topic::ALL {
            swarm.behaviour_mut().gossip.subscribe(&topic.of(&genesis)).expect("a topic");
        }
        let node_id = node.p2p.peer_id();
        swarm.dial(node.address().to_string().parse::<libp2p::Multiaddr>().expect("an address")).expect("a dial");
        let id = swarm.local_peer_id().to_string();
        let ((orders, receiver), (pushes, pushed)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let (connection, connected) = watch::channel(true);
        let (ready, is_ready) = oneshot::channel();
        let task = tokio::spawn(mimic(swarm, node_id, genesis, receiver, pushes, connection, ready));
        tokio::time::timeout(HANG, is_ready).await.expect("it connects").expect("it runs");
        Self { id, orders, pushed, connected, task }
    }

    /// Connects, and says that it is of this chain.
    pub async fn introduced(node: &Peer, chain: &Chain, packet_max: usize) -> Self {
        let stranger = Self::connect(node, chain, packet_max).await;
        assert!(stranger.hello(&Self::words(chain).encode()).await.is_some());
        let id = stranger.id.clone();
        let known = |status: &P2pStatus| status.peers.iter().any(|peer| peer.id == id && peer.admitted);
        node.until("the stranger's hello", known).await;
        stranger
    }

    /// What a node of `chain` says first.
    pub fn words(chain: &Chain) -> Hello {
        let genesis_hash = chain.hash();
        let chain_id = chain.genesis.chain_id.clone();
        Hello { genesis_hash, chain_id, node_id: "nobody".into(), head: (0, genesis_hash) }
    }

    /// Says something first; what the node answers, if it does.
    pub async fn hello(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(Order::Hello(bytes.to_vec(), answer)).unwrap();
        tokio::time::timeout(HANG, answered).await.expect("an answer, or none").unwrap()
    }

    /// Asks in any bytes; what the node answers, if it does. A stream that ends without a byte is no answer.
    pub async fn ask_bytes(&self, bytes: Vec<u8>) -> Option<Vec<u8>> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(Order::Ask(bytes, answer)).unwrap();
        tokio::time::timeout(HANG, answered).await.expect("an answer, or none").unwrap()
    }

    pub async fn ask(&self, request: &Request) -> Option<Answer> {
        let bytes = self.ask_bytes(request.encode()).await?;
        // Blocks follow the 45 bytes that announce them.
        let start = if bytes[0] == 1 { &bytes[..45] } else { &bytes[..] };
        Some(Answer::decode(start).expect("an answer"))
    }

    /// Pushes a message. False: it did not leave.
    pub async fn push(&self, topic: Topic, bytes: Vec<u8>) -> bool {
        let (answer, answered) = oneshot::channel();
        self.orders.send(Order::Push(topic, bytes, answer)).unwrap();
        tokio::time::timeout(HANG, answered).await.expect("it is there").unwrap()
    }

    /// The next message that the node pushes.
    pub async fn next(&mut self) -> (Topic, Vec<u8>) {
        tokio::time::timeout(HANG, self.pushed.recv()).await.expect("a message").expect("it runs")
    }

    /// Waits until the node closes the connection.
    pub async fn until_dropped(&mut self) {
        let waited = tokio::time::timeout(HANG, self.connected.wait_for(|connected| !connected)).await;
        waited.expect("the node disconnects").expect("it runs");
    }
}

async fn mimic(
    mut swarm: Swarm<Mimic>,
    node: PeerId,
    genesis: Hash,
    mut orders: mpsc::UnboundedReceiver<Order>,
    pushes: mpsc::UnboundedSender<(Topic, Vec<u8>)>,
    connection: watch::Sender<bool>,
    ready: oneshot::Sender<()>,
) {
    let mut ready = Some(ready);
    let mut waiting: HashMap<(bool, OutboundRequestId), oneshot::Sender<Option<Vec<u8>>>> = HashMap::new();
    let mut subscribed = 0;
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                None => return,
                Some(Order::Hello(bytes, answer)) => {
                    let id = swarm.behaviour_mut().hello.send_request(&node, bytes);
                    waiting.insert((true, id), answer);
                }
                Some(Order::Ask(bytes, answer)) => {
                    let id = swarm.behaviour_mut().sync.send_request(&node, bytes);
                    waiting.insert((false, id), answer);
                }
                Some(Order::Push(topic, bytes, answer)) => {
                    let pushed = swarm.behaviour_mut().gossip.publish(topic.of(&genesis).hash(), bytes);
                    let _ = answer.send(pushed.is_ok());
                }
            },
            event = swarm.select_next_some() => match event {
                SwarmEvent::Behaviour(MimicEvent::Hello(event)) => answered(event, true, &mut waiting),
                SwarmEvent::Behaviour(MimicEvent::Sync(event)) => answered(event, false, &mut waiting),
                SwarmEvent::Behaviour(MimicEvent::Gossip(gossipsub::Event::Subscribed { .. })) => {
                    subscribed += 1;
                    if subscribed == 2 && let Some(ready) = ready.take() {
                        let _ = ready.send(());
                    }
                }
                SwarmEvent::Behaviour(MimicEvent::Gossip(gossipsub::Event::Message {
                    propagation_source, message_id, message,
                })) => {
                    let topic = Topic::ALL.into_iter().find(|topic| topic.of(&genesis).hash() == message.topic);
                    let _ = pushes.send((topic.expect("one of two"), message.data));
                    let ignore = MessageAcceptance::Ignore;
                    swarm.behaviour_mut().gossip.report_message_validation_result(&message_id, &propagation_source, ignore);
                }
                SwarmEvent::ConnectionClosed { .. } => {
                    connection.send_replace(false);
                }
                _ => {}
            },
        }
    }
}

fn answered(
    event: request_response::Event<Vec<u8>, Vec<u8>>,
    hello: bool,
    waiting: &mut HashMap<(bool, OutboundRequestId), oneshot::Sender<Option<Vec<u8>>>>,
) {
    let (id, answer) = match event {
        request_response::Event::Message {
            message: request_response::Message::Response { request_id, response },
            ..
        } => (request_id, Some(response).filter(|bytes| !bytes.is_empty())),
        request_response::Event::OutboundFailure { request_id, .. } => (request_id, None),
        _ => return,
    };
    if let Some(waiting) = waiting.remove(&(hello, id)) {
        let _ = waiting.send(answer);
    }
}
