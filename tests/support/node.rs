//! A node in this process: ledger, mempool, plugin host and both listeners on free ports, in a directory of its own.

use std::sync::Arc;

use serde_json::Value;
use tenon::agent::{self, AgentConfig, AgentLimits, Agents, Dispatcher};
use tenon::bindings::{RateLimit, builtin};
use tenon::chain::{Address, Genesis, SecretKey, Time};
use tenon::events::{Hub, HubLimits, Mark};
use tenon::ledger::{Ledger, LedgerOptions};
use tenon::maintenance::audit::Auditor;
use tenon::maintenance::shelf::{Shelf, ShelfConfig};
use tenon::mempool::{Mempool, MempoolConfig, MempoolHook};
use tenon::monitor::alert::Timing;
use tenon::monitor::{Monitor, MonitorParts, Observed, Observer, Thresholds};
use tenon::rate_limit::token_bucket::Settings;
use tenon::rpc::admin::AdminParts;
use tenon::rpc::{self, NodeInfo, RpcConfig, RpcParts};
use tenon::sync::{SyncState, SyncStatus};
use tenon::{producer, telemetry};
use tenon_runtime::{Host, HostConfig, PluginConfig};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the admin listener of every such node takes.
pub const TOKEN: &str = "a token for tests";

/// The wallet of the agent `bob` that every such node has, and whose handler is missing.
pub fn agent_key() -> SecretKey {
    SecretKey::from_seed([0xb0; 32])
}

/// The node. Stops when dropped.
pub struct Node {
    /// Where it listens: `http://127.0.0.1:PORT`.
    pub url: String,
    /// Where it listens to operators.
    pub admin: String,
    pub ledger: Ledger,
    pub mempool: Mempool,
    /// What its sync says.
    pub sync: watch::Sender<SyncStatus>,
    /// What happens in it.
    pub events: Hub,
    /// Its eye on itself, which looks when told to.
    pub monitor: Monitor,
    pub stop: watch::Sender<bool>,
    pub server: JoinHandle<()>,
    pub client: reqwest::Client,
    authority: SecretKey,
    /// Its plugins.
    pub host: Host,
    dir: Option<tempfile::TempDir>,
}

/// An answer, read to the end.
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub async fn of(request: reqwest::RequestBuilder) -> Self {
        let answer = request.send().await.expect("the node answers");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Self { status, headers, body: answer.bytes().await.expect("a whole body").to_vec() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    /// The `detail` of an error with this status.
    pub fn detail(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()["detail"].as_str().expect("errors have a detail").to_owned()
    }
}

impl Node {
    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(self.client.get(format!("{}{path}", self.url))).await
    }

    pub async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        Answer::of(self.client.post(format!("{}{path}", self.url)).body(body)).await
    }

    /// The JSON of an answer that must be 200.
    pub async fn json(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    /// Where its components are.
    pub fn plugin_dir(&self) -> std::path::PathBuf {
        self.dir.as_ref().expect("it is there until the end").path().join("plugins")
    }

    /// Stops, and leaves the directory with its chain to the next one.
    pub fn end(mut self) -> tempfile::TempDir {
        self.dir.take().expect("it is there until now")
    }

    /// Makes a block of what waits.
    pub async fn produce(&self) {
        producer::produce(&self.ledger, &self.mempool, &self.authority, Time::now(), true).await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        self.ledger.stop();
        self.host.stop();
    }
}

/// Starts a node on `genesis`, whose authority has the key `authority`.
pub async fn start(genesis: &Genesis, authority: &SecretKey, limits: Settings, config: RpcConfig) -> Node {
    let dir = tempfile::tempdir().expect("a directory");
    start_in(dir, genesis, authority, limits, config, HubLimits::default()).await
}

/// The same, in a directory that may have a chain already, with other limits on events.
pub async fn start_in(
    dir: tempfile::TempDir,
    genesis: &Genesis,
    authority: &SecretKey,
    limits: Settings,
    config: RpcConfig,
    hub_limits: HubLimits,
) -> Node {
    let hook = MempoolHook::new();
    let handle = hook.handle();
    let options = LedgerOptions::new(dir.path().join("chain.db"), genesis.clone());
    let bob =
        AgentConfig { name: "bob".into(), key: agent_key(), handler: Arc::new(agent::Park), max_fee_per_hour: 1_000 };
    let dispatcher = Dispatcher::new(vec![bob], genesis, AgentLimits::default(), Time(0)).expect("one agent");
    let agents = dispatcher.handle();
    let ledger = Ledger::open(options, vec![Box::new(hook), Box::new(dispatcher)]).expect("a database");
    let agents = Agents::open(ledger.clone(), agents).await.expect("one agent");
    let mempool = Mempool::open(ledger.clone(), handle, MempoolConfig::default()).expect("a mempool");
    let host = Host::new(HostConfig::new(dir.path().join("plugins"), dir.path().join("state"))).expect("a host");
    let builtin = || builtin::TokenBucket::new(limits.clone()).expect("settings in range");
    let policy = host.slot::<RateLimit>("rate-limit", PluginConfig::default(), builtin()).expect("a slot");
    host.slot::<RateLimit>("agent/bob", PluginConfig::default(), builtin()).expect("a slot with a slash in its name");
    host.open();
    let (sync, status) = watch::channel(SyncStatus { state: SyncState::Authority, ..SyncStatus::default() });
    let (stop, stopped) = watch::channel(false);
    // Before any part sets a figure, or nobody would have it.
    let metrics = telemetry::install();
    let shelf_config = ShelfConfig { dir: dir.path().join("snapshots"), every_blocks: 0, keep: 2, depth: 0, blocks: 1 };
    let shelf = Shelf::open(ledger.clone(), shelf_config).expect("a folder for snapshots");
    let auditor = Auditor::new(ledger.clone());
    let (started, head) = (Time::now(), ledger.head());
    let events = Hub::new(started, Mark::new(head.height, &head.hash), hub_limits);
    let observed = Observed {
        ledger: ledger.clone(),
        mempool: mempool.clone(),
        sync: status.clone(),
        auditor: auditor.clone(),
        is_authority: true,
        started,
        plugins: Arc::new(Vec::new),
        agents: Arc::new(|| None),
        queues: Vec::new(),
    };
    let monitor = Monitor::new(MonitorParts {
        observer: Observer::new(observed),
        thresholds: Thresholds::default(),
        timing: Timing { for_ms: 0, clear_ms: 0 },
        hub: events.clone(),
        webhook: None,
    });
    let parts = RpcParts {
        ledger: ledger.clone(),
        mempool: mempool.clone(),
        policy: Arc::new(policy),
        sync: status,
        p2p: None,
        shelf: shelf.clone(),
        auditor: auditor.clone(),
        info: NodeInfo::new(Some(Address::of(&authority.public_key())), started),
        metrics,
        collect: Vec::new(),
        events: events.clone(),
        plugin_events: Some(host.events()),
        monitor: monitor.clone(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let admin_listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let admin = format!("http://{}", admin_listener.local_addr().expect("bound"));
    let server = rpc::serve(listener, parts, config, stopped.clone()).expect("a configuration that can be used");
    let parts = AdminParts { host: host.clone(), shelf, auditor, agents, token: TOKEN.into() };
    rpc::serve_admin(admin_listener, parts, stopped);
    // The provider of cryptography; another test may have set the same one before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let authority = authority.clone();
    Node { url, admin, ledger, mempool, sync, events, monitor, stop, server, client, authority, host, dir: Some(dir) }
}
