//! A node: all parts, built in order from a checked configuration, and stopped in the opposite order. The one place that
//! names concrete types.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use tenon_runtime::{Host, HostConfig, Slot};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::agent::{self, AgentConfig, AgentLimits, Agents, Dispatcher};
use crate::bindings::{AgentHandler, RateLimit, SyncStrategy, builtin};
use crate::chain::{Address, Genesis, SecretKey, Time};
use crate::config::{self, Config};
use crate::events::{Hub, HubLimits, Mark};
use crate::ledger::{Ledger, LedgerOptions};
use crate::maintenance::audit::Auditor;
use crate::maintenance::shelf::{Shelf, ShelfConfig};
use crate::memory;
use crate::mempool::{Mempool, MempoolConfig, MempoolHook};
use crate::monitor::alert::Timing;
use crate::monitor::webhook::{Sender, Webhook, WebhookConfig};
use crate::monitor::{self, Monitor, MonitorParts, Observed, Observer, QueueProbe, Thresholds};
use crate::p2p::{self, Handle, Identity, P2p, P2pConfig, P2pParts};
use crate::producer::{self, ProducerConfig};
use crate::rate_limit::{Callers, Networks, Policy, token_bucket};
use crate::rpc::{self, NodeInfo, Role, RpcConfig, RpcParts, admin::AdminParts};
use crate::sync::follower::Follower;
use crate::sync::http::HttpSource;
use crate::sync::source::Source;
use crate::sync::{self, SyncConfig, SyncState, Tolerance};
use crate::telemetry;
use crate::wallet::{self, Wallet};

/// A running node.
pub struct Node {
    rpc: SocketAddr,
    admin: SocketAddr,
    host: Host,
    ledger: Ledger,
    p2p: Option<Handle>,
    stop: watch::Sender<bool>,
    tasks: Vec<(&'static str, JoinHandle<()>)>,
}

impl Node {
    /// Starts a node with the configuration of `dir`, whose paths are resolved. When this returns it serves.
    ///
    /// Errors say which file or address cannot be used. A bad plugin is not an error: its slot has a built-in.
    pub async fn start(config: Config, dir: &Path) -> Result<Self> {
        let genesis_path = &config.chain.genesis;
        let genesis =
            std::fs::read_to_string(genesis_path).with_context(|| format!("reading {}", genesis_path.display()))?;
        let genesis = Genesis::parse(&genesis).with_context(|| genesis_path.display().to_string())?;
        let metrics = telemetry::install();

        // The plugins first: the first scan ends before anything asks a slot.
        let state_dir = config.store.path.parent().unwrap_or(dir).join("plugins");
        let host = Host::new(host_config(&config, &state_dir)).context("starting Wasm")?;
        let policy = rate_limit_slot(&host, &config)?;
        let strategy = host.slot::<SyncStrategy>("sync", config.plugins.sync.plugin_config(), builtin::OnePeer)?;
        // A node without agents knows their plugins all the same, and does not refuse them as strangers.
        host.kind::<AgentHandler>()?;
        let (agents, proposer) = (agents(&host, &config)?, proposer(&config)?);
        // What is rejected is told as an event, which is logged.
        host.open();

        // Then the chain, followed by what must see every block.
        let dispatcher = Dispatcher::new(agents, &genesis, AgentLimits::default(), Time::now())?;
        let (mempool_hook, agents_handle) = (MempoolHook::new(), dispatcher.handle());
        let mempool_handle = mempool_hook.handle();
        let mut options = LedgerOptions::new(config.store.path.clone(), genesis);
        options.group_blocks_max = usize::try_from(config.store.group_blocks_max)?;
        options.group_transactions_max = usize::try_from(config.store.group_transactions_max)?;
        options.max_reorg_depth = config.chain.max_reorg_depth;
        let path = options.path.clone();
        let open = move || Ledger::open(options, vec![Box::new(mempool_hook), Box::new(dispatcher)]);
        let opening = Instant::now();
        let ledger =
            tokio::task::spawn_blocking(open).await?.map_err(|error| error.of(&path)).context("opening the chain")?;
        let opened_in = opening.elapsed();
        let mempool = Mempool::open(ledger.clone(), mempool_handle, mempool_config(&config)?)?;
        let agents = Agents::open(ledger.clone(), agents_handle).await?;
        let shelf = Shelf::open(ledger.clone(), shelf_config(&config.snapshot)?).context("opening the snapshots")?;
        let auditor = Auditor::of_opened(ledger.clone(), opened_in)?;

        // Then the sockets, and last what acts by itself.
        let listen = async |address: SocketAddr| {
            TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))
        };
        let (rpc_listener, admin_listener) = (listen(config.rpc.listen).await?, listen(config.admin.listen).await?);
        let (rpc, admin) = (rpc_listener.local_addr()?, admin_listener.local_addr()?);
        let started = Time::now();
        let info = NodeInfo::new(proposer.as_ref().map(|key| Address::of(&key.public_key())), started);
        let (stop, stopped) = watch::channel(false);
        let mut tasks = Vec::new();
        let sync_config = config.sync.clone();
        let sources = sources(&sync_config)?;
        let config::Monitor { lag_blocks, lag_seconds, .. } = config.monitor;
        // Without a producer and with peers it waits for their blocks.
        let may_be_alone = config.producer.is_some() || config.p2p.is_none();
        let tolerance = Tolerance { lag_blocks, lag_ms: lag_seconds * 1_000, may_be_alone };
        let follower =
            Follower::new(ledger.clone(), Arc::new(strategy), sources, info.node_id.clone(), sync_config.clone())
                .map_err(|reason| anyhow!("sync: {reason}"))?
                .tolerating(tolerance)
                .taking_snapshots(snapshots_of_others(&config));
        let chain_id = ledger.genesis().chain_id.clone();
        let forwarding =
            sync::forward::run(mempool.clone(), chain_id, follower.usable(), config.sync.clone(), stopped.clone());
        let sync_status = follower.status();
        let verify_every = config.sync.verify_state_every;
        let quiet = || {
            let status = follower.status();
            // Whoever catches up has better things to do.
            move || matches!(status.borrow().state, SyncState::Live | SyncState::Authority)
        };
        tasks.push(("snapshots", tokio::spawn(shelf.clone().run(quiet(), stopped.clone()))));
        let auditing = auditor.clone();
        let (may, stop_audit) = (quiet(), stopped.clone());
        tasks.push(("audit", tokio::spawn(async move { auditing.run(verify_every, may, stop_audit).await })));
        tasks.push(("memory", tokio::spawn(memory::run(ledger.storage().clone(), follower.status(), stopped.clone()))));
        let policy: Arc<dyn Policy> = Arc::new(policy);
        let rpc_config = rpc_config(&config.rpc)?;
        let p2p = match &config.p2p {
            None => None,
            Some(p2p) => {
                let parts = P2pParts {
                    ledger: ledger.clone(),
                    mempool: mempool.clone(),
                    policy: Arc::clone(&policy),
                    callers: Callers::new(Networks { peers: config.rpc.peers.clone(), proxies: Vec::new() }),
                    prices: rpc::prices(&rpc_config),
                    node_id: info.node_id.clone(),
                    request_timeout: Duration::from_millis(sync_config.request_timeout_ms),
                    throughput_min: sync_config.throughput_min,
                };
                Some(listen_for_peers(parts, p2p).await?)
            }
        };
        let p2p_handle = p2p.as_ref().map(P2p::handle);
        let hub = hub(&ledger, &config.rpc, started)?;
        let webhook = webhook(&config.monitor, &info, &ledger.genesis().chain_id, rpc)?;
        if let Some(webhook) = &webhook {
            tasks.push(("webhook", tokio::spawn(webhook.clone().run(stopped.clone()))));
        }
        let observed = Observed {
            ledger: ledger.clone(),
            mempool: mempool.clone(),
            sync: sync_status.clone(),
            auditor: auditor.clone(),
            is_authority: info.role == Role::Authority,
            started,
            plugins: Arc::new({
                let host = host.clone();
                move || host.status()
            }),
            agents: parked(&agents),
            queues: queues(&config, &mempool, &agents),
        };
        let monitor = monitoring(&config.monitor, Observer::new(observed), &hub, webhook);
        let looking = monitor.clone().run(sync_status.clone(), host.events(), stopped.clone());
        tasks.push(("monitor", tokio::spawn(looking)));
        let parts = RpcParts {
            ledger: ledger.clone(),
            mempool: mempool.clone(),
            policy,
            sync: sync_status,
            p2p: p2p_handle.as_ref().map(Handle::status),
            shelf: shelf.clone(),
            auditor: auditor.clone(),
            info,
            metrics,
            collect: vec![Arc::new({
                let host = host.clone();
                move || telemetry::plugins(&host.status())
            })],
            events: hub,
            plugin_events: Some(host.events()),
            monitor,
        };
        tasks.push((
            "rpc",
            rpc::serve(rpc_listener, parts, rpc_config, stopped.clone()).map_err(|reason| anyhow!("rpc: {reason}"))?,
        ));
        let token = std::fs::read_to_string(&config.admin.token_file)
            .with_context(|| format!("reading {}", config.admin.token_file.display()))?;
        let parts =
            AdminParts { host: host.clone(), shelf, auditor, agents: agents.clone(), token: token.trim().to_owned() };
        tasks.push(("admin", rpc::serve_admin(admin_listener, parts, stopped.clone())));
        if let Some(p2p) = p2p {
            let met = p2p.handle().met();
            tasks.push(("peers", tokio::spawn(p2p::join(met, follower.peers(), stopped.clone()))));
            tasks.push(("p2p", tokio::spawn(p2p.run(stopped.clone()))));
        }
        tasks.push(("sync", tokio::spawn(follower.run(stopped.clone()))));
        tasks.push(("forward", tokio::spawn(forwarding)));
        tasks.push(("agents", tokio::spawn(agent::outbox::run(agents, mempool.clone(), stopped.clone()))));
        if let (Some(key), Some(producer)) = (proposer, &config.producer) {
            let producer = ProducerConfig {
                interval: Duration::from_millis(producer.interval_ms),
                empty_blocks: producer.empty_blocks,
                heartbeat: Duration::from_millis(producer.heartbeat_ms),
            };
            let producing = producer::run(ledger.clone(), mempool, key, producer, stopped);
            tasks.push(("producer", tokio::spawn(producing)));
        }
        host.watch().context("watching the plugin directory")?;
        tracing::info!(%rpc, %admin, head = ledger.head().height, chain = ledger.genesis().chain_id, "serving");
        Ok(Self { rpc, admin, host, ledger, p2p: p2p_handle, stop, tasks })
    }

    /// Where it serves everyone.
    pub fn rpc_addr(&self) -> SocketAddr {
        self.rpc
    }

    /// Where it serves its operator.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin
    }

    /// Its chain.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Its connections to peers, where it has any.
    pub fn p2p(&self) -> Option<&Handle> {
        self.p2p.as_ref()
    }

    /// Its plugins.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Ends everything: what acts first, then the sockets, the chain, the plugins. Requests under way are finished.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for (name, task) in self.tasks.into_iter().rev() {
            if let Err(error) = task.await {
                tracing::error!(%error, task = name, "did not end well");
            }
        }
        let (host, ledger) = (self.host, self.ledger);
        let ended = tokio::task::spawn_blocking(move || {
            ledger.stop();
            host.stop();
        });
        if let Err(error) = ended.await {
            tracing::error!(%error, "the chain or the plugins did not end well");
        }
    }
}

/// What the plugin host needs to know: its folders, whom it trusts, and room for the largest memory that a slot allows.
pub(crate) fn host_config(config: &Config, state_dir: &Path) -> HostConfig {
    let plugins = &config.plugins;
    let slots = [&plugins.rate_limit.limits, &plugins.sync.limits].into_iter();
    let memories = slots.chain(config.agents.iter().map(|agent| &agent.limits)).map(|limits| limits.memory_max_bytes);
    let default = HostConfig::new(&plugins.directory.dir, state_dir);
    HostConfig {
        instance_memory_max_bytes: memories.fold(default.instance_memory_max_bytes, u64::max),
        trusted_keys: plugins.directory.trusted_keys.clone(),
        sets: plugins.directory.sets.clone(),
        require_signature: plugins.directory.require_signature,
        ..default
    }
}

/// The slot that limits rates.
fn rate_limit_slot(host: &Host, config: &Config) -> Result<Slot<RateLimit>> {
    let builtin = rate_limit_builtin(&config.plugins.rate_limit)
        .map_err(|reason| anyhow!("plugins.rate-limit.config: {reason}"))?;
    host.slot("rate-limit", config.plugins.rate_limit.plugin_config(), builtin)
}

/// What limits rates while no plugin does. It takes the slot's configuration where that is one of a token bucket, so that
/// the limits an operator set also hold while the plugin does not.
///
/// Errors: there is no plugin that it could be meant for, and it does not fit.
pub(crate) fn rate_limit_builtin(slot: &config::PluginSlot) -> Result<builtin::TokenBucket, String> {
    let given = serde_json::from_value::<token_bucket::Settings>(slot.config.clone().into());
    match given.map_err(|error| error.to_string()).and_then(builtin::TokenBucket::new) {
        Err(reason) if slot.plugin.is_none() => Err(format!("the built-in token bucket refuses it: {reason}")),
        Err(_) => builtin::TokenBucket::new(token_bucket::Settings::default()),
        taken => taken,
    }
}

/// Listens for peers, under the node's own key to them.
async fn listen_for_peers(parts: P2pParts, config: &P2pConfig) -> Result<P2p> {
    let wrong = |reason| anyhow!("p2p: {reason}");
    let identity = Identity::open_or_create(&config.key).map_err(wrong)?;
    P2p::listen(parts, &identity, config).await.map_err(wrong)
}

/// The nodes to read the chain from.
fn sources(config: &SyncConfig) -> Result<Vec<Arc<dyn Source>>> {
    let source = |url: &String| -> Result<Arc<dyn Source>> {
        Ok(Arc::new(HttpSource::new(url, config).map_err(|reason| anyhow!("sync.sources: {reason}"))?))
    };
    config.sources.iter().map(source).collect()
}

/// Where everybody posts what happens.
fn hub(ledger: &Ledger, config: &config::Rpc, started: Time) -> Result<Hub> {
    let head = ledger.head();
    let limits = HubLimits { listeners_max: usize::try_from(config.event_streams_max)?, ..HubLimits::default() };
    Ok(Hub::new(started, Mark::new(head.height, &head.hash), limits))
}

/// The node's eye on itself.
fn monitoring(config: &config::Monitor, observer: Observer, hub: &Hub, webhook: Option<Webhook>) -> Monitor {
    let config::Monitor { lag_blocks, lag_seconds, disk_free_min_bytes, alert_seconds, clear_seconds, .. } = *config;
    Monitor::new(MonitorParts {
        observer,
        thresholds: Thresholds { lag_blocks, lag_seconds, disk_free_min_bytes },
        timing: Timing { for_ms: alert_seconds * 1_000, clear_ms: clear_seconds * 1_000 },
        hub: hub.clone(),
        webhook,
    })
}

/// Where alerts are posted to, if anywhere.
fn webhook(config: &config::Monitor, info: &NodeInfo, chain_id: &str, rpc: SocketAddr) -> Result<Option<Webhook>> {
    if config.webhook.is_empty() {
        return Ok(None);
    }
    let webhook = WebhookConfig {
        url: config.webhook.parse().context("monitor.webhook")?,
        timeout: Duration::from_millis(config.webhook_timeout_ms),
        pause_first: Duration::from_secs(1),
        pause_max: Duration::from_secs(60),
    };
    let sender = Sender {
        node_id: info.node_id.clone(),
        chain_id: chain_id.to_owned(),
        role: if info.role == Role::Authority { "authority" } else { "follower" },
        rpc: rpc.to_string(),
    };
    Webhook::new(webhook, sender).map(Some).map_err(|reason| anyhow!("monitor.webhook: {reason}"))
}

/// What can fill up, beside what the ledger and sync say of themselves.
fn queues(config: &Config, mempool: &Mempool, agents: &Agents) -> Vec<QueueProbe> {
    let outbox_max = AgentLimits::default().outbox_max as u64 * config.agents.len() as u64;
    let (mempool, outbox) = (mempool.clone(), agents.watch_outbox());
    vec![
        QueueProbe {
            name: "mempool",
            limit: Some(config.mempool.transactions_max),
            depth: Arc::new(move || mempool.len() as u64),
        },
        QueueProbe { name: "outbox", limit: Some(outbox_max), depth: Arc::new(move || *outbox.borrow() as u64) },
    ]
}

/// What the agents have set aside, for whoever looks.
fn parked(agents: &Agents) -> Arc<dyn Fn() -> Option<Vec<monitor::Parked>> + Send + Sync> {
    let agents = agents.clone();
    Arc::new(move || {
        let counts = agents.parked_counts();
        let counts = counts.inspect_err(|error| tracing::debug!(%error, "the agents' events cannot be read")).ok()?;
        let parked = |count: agent::ParkedCount| {
            let agent::ParkedCount { agent, parked, unheard } = count;
            monitor::Parked { agent, parked, unheard }
        };
        Some(counts.into_iter().map(parked).collect())
    })
}

/// The agents with their slots and keys.
fn agents(host: &Host, config: &Config) -> Result<Vec<AgentConfig>> {
    let agent = |agent: &config::Agent| -> Result<AgentConfig> {
        let slot = host.slot::<AgentHandler>(&agent.slot(), agent.plugin_config(), builtin::Park)?;
        let (name, max_fee_per_hour) = (agent.name.clone(), agent.max_fee_per_hour);
        Ok(AgentConfig { name, key: key(&agent.wallet)?, handler: Arc::new(slot), max_fee_per_hour })
    };
    config.agents.iter().map(agent).collect()
}

/// The authority's key, on an authority.
fn proposer(config: &Config) -> Result<Option<SecretKey>> {
    config.producer.as_ref().map(|producer| key(&producer.key)).transpose()
}

/// The key in a keystore file, with the password beside it.
fn key(path: &Path) -> Result<SecretKey> {
    let password = wallet::read_password(&path.with_file_name(wallet::PASSWORD_FILE))?;
    Ok(Wallet::open(path, &password)?.key)
}

fn rpc_config(config: &config::Rpc) -> Result<RpcConfig> {
    Ok(RpcConfig {
        connections_max: usize::try_from(config.connections_max)?,
        connections_per_client_max: usize::try_from(config.connections_per_client_max)?,
        idle_timeout_ms: config.idle_timeout_ms,
        stop_timeout_ms: config.stop_timeout_ms,
        peers: config.peers.clone(),
        proxies: config.proxies.clone(),
        costs: config.costs.clone(),
    })
}

/// Where a snapshot of another node is kept until it is the chain. Errors: why this node begins with block 1 all the same.
fn snapshots_of_others(config: &Config) -> Result<PathBuf, String> {
    if config.producer.is_some() {
        return Err("this node makes blocks: it has all of them, or `tenon snapshot` gives it a beginning".into());
    }
    if !config.agents.is_empty() {
        return Err("this node has agents, which would not hear of the messages below a snapshot".into());
    }
    Ok(config::beside(&config.store.path, "fetch"))
}

fn shelf_config(config: &config::Snapshots) -> Result<ShelfConfig> {
    Ok(ShelfConfig {
        dir: config.dir.clone(),
        every_blocks: config.every_blocks,
        keep: usize::try_from(config.keep)?,
        depth: config.depth,
        blocks: config.blocks,
    })
}

fn mempool_config(config: &Config) -> Result<MempoolConfig> {
    let config = &config.mempool;
    Ok(MempoolConfig {
        transactions_max: usize::try_from(config.transactions_max)?,
        per_sender_max: usize::try_from(config.per_sender_max)?,
        expire_ms: config.expire_ms,
        dropped_max: usize::try_from(config.dropped_max)?,
    })
}
