//! What the node says of itself: `/rpc/info`, `/rpc/genesis`, `/rpc/sync/status`, `/rpc/peers`, `/rpc/alerts`, `/health`,
//! `/ready`,
//! `/metrics`, `/`.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use metrics::{counter, gauge};
use serde::Serialize;

use super::error::{ApiError, Result};
use super::request::Params;
use super::snapshots::SnapshotJson;
use super::{ROUTES, Rpc, json_bytes};
use crate::chain::{Address, Hash, Height, Time};
use crate::ledger::{Equivocation, Reorg};
use crate::maintenance::audit::StateCheck;
use crate::monitor::{Alerts, Readiness, readiness};
use crate::p2p::P2pStatus;
use crate::storage::Reader;
use crate::sync::{PeerStatus, SyncState, SyncStatus};
use crate::telemetry;

/// Who a node is.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// Drawn at random when the process started: how a node recognises itself among its sources.
    pub node_id: String,
    /// Its software's version.
    pub version: &'static str,
    /// What it does.
    pub role: Role,
    /// The authority whose key it has.
    pub proposer: Option<Address>,
    /// When it started.
    pub started: Time,
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Makes blocks.
    Authority,
    /// Takes them from its sources.
    Follower,
}

impl NodeInfo {
    /// A node that starts at `now`; an authority where it has a key.
    pub fn new(proposer: Option<Address>, now: Time) -> Self {
        Self {
            node_id: const_hex::encode(rand::random::<[u8; 16]>()),
            version: env!("CARGO_PKG_VERSION"),
            role: if proposer.is_some() { Role::Authority } else { Role::Follower },
            proposer,
            started: now,
        }
    }
}

#[derive(Serialize)]
struct InfoJson<'a> {
    chain_id: &'a str,
    format: &'a str,
    genesis_hash: Hash,
    node_id: &'a str,
    /// What peers know it by; null where it is connected with none.
    peer_id: Option<String>,
    version: &'a str,
    role: Role,
    proposer_id: Option<Address>,
    height: Height,
    head_hash: Hash,
    last_block_hash: Hash,
    timestamp: Time,
    state_root: Hash,
    total_transactions: u64,
    total_accounts: u64,
    mempool: usize,
    sync_state: SyncState,
    started: Time,
    min_fee: u64,
    /// The lowest height from which on all blocks are here; 0: all of them are.
    base: Height,
    /// The newest snapshot that is served.
    snapshot: Option<SnapshotJson>,
    /// What came of the last time that all accounts were read.
    state_check: Option<StateCheck>,
    genesis_params: GenesisParams,
    /// Switches to another branch since the node started, and the last of them.
    reorgs: u64,
    last_reorg: Option<ReorgJson>,
    /// Authorities that were seen to sign two blocks for one height.
    equivocations: Vec<Equivocation>,
}

#[derive(Serialize)]
struct ReorgJson {
    at: Time,
    /// The highest block that both branches have.
    common_height: Height,
    from_height: Height,
    from_hash: Hash,
    to_height: Height,
    to_hash: Hash,
    undone: u64,
    applied: u64,
}

impl From<Reorg> for ReorgJson {
    fn from(reorg: Reorg) -> Self {
        let Reorg { common, from, to, undone, applied, at } = reorg;
        Self {
            at,
            common_height: common,
            from_height: from.height,
            from_hash: from.hash,
            to_height: to.height,
            to_hash: to.hash,
            undone,
            applied,
        }
    }
}

#[derive(Serialize)]
struct GenesisParams {
    block_time_seconds: f64,
    max_block_size_bytes: u32,
    max_block_transactions: u32,
}

pub(super) async fn info(State(rpc): State<Rpc>, params: Params) -> Result<Response> {
    params.only(&[], rpc.chain_id())?;
    let parts = &rpc.parts;
    let (genesis, info) = (parts.ledger.genesis(), &parts.info);
    let read = |reader: &Reader<'_>| Ok((reader.counts()?, reader.base()?));
    let (counts, base) = parts.ledger.storage().read_async(read).await?;
    let head = parts.ledger.head();
    Ok(Json(InfoJson {
        chain_id: &genesis.chain_id,
        format: &genesis.format,
        genesis_hash: parts.ledger.genesis_hash(),
        node_id: &info.node_id,
        peer_id: parts.p2p.as_ref().map(|p2p| p2p.borrow().peer_id.clone()),
        version: info.version,
        role: info.role,
        proposer_id: info.proposer,
        height: head.height,
        head_hash: head.hash,
        last_block_hash: head.hash,
        timestamp: head.timestamp,
        state_root: head.state_root,
        total_transactions: counts.transactions,
        total_accounts: counts.accounts,
        mempool: parts.mempool.len(),
        sync_state: parts.sync.borrow().state,
        started: info.started,
        min_fee: genesis.min_fee,
        base,
        snapshot: parts.shelf.newest().map(|kept| SnapshotJson::of(&kept)),
        state_check: parts.auditor.last(),
        genesis_params: GenesisParams {
            block_time_seconds: genesis.slot_ms as f64 / 1_000.0,
            max_block_size_bytes: genesis.block_bytes_max,
            max_block_transactions: genesis.block_txs_max,
        },
        reorgs: parts.ledger.import_stats().reorgs,
        last_reorg: parts.ledger.last_reorg().map(ReorgJson::from),
        equivocations: parts.ledger.equivocations(),
    })
    .into_response())
}

pub(super) async fn genesis(State(rpc): State<Rpc>, params: Params) -> Result<Response> {
    params.only(&[], rpc.chain_id())?;
    // Made when asked for: with many first accounts it is large, and few ask.
    let genesis = Arc::clone(rpc.parts.ledger.genesis());
    let json = tokio::task::spawn_blocking(move || genesis.to_json()).await;
    Ok(json_bytes(json.map_err(ApiError::internal)?))
}

pub(super) async fn sync_status(State(rpc): State<Rpc>, params: Params) -> Result<Json<SyncStatus>> {
    params.only(&[], rpc.chain_id())?;
    let mut status = rpc.parts.sync.borrow().clone();
    // What sync last published may be a block or two behind.
    let head = rpc.parts.ledger.head();
    (status.head_height, status.head_hash) = (head.height, head.hash);
    Ok(Json(status))
}

#[derive(Serialize)]
struct PeersJson {
    success: bool,
    /// Whom sync reads from, configured or met.
    sources: Vec<PeerStatus>,
    /// The connections to other nodes; null without `[p2p]`.
    p2p: Option<P2pStatus>,
}

pub(super) async fn peers(State(rpc): State<Rpc>, params: Params) -> Result<Response> {
    params.only(&[], rpc.chain_id())?;
    let sources = rpc.parts.sync.borrow().peers.clone();
    let p2p = rpc.parts.p2p.as_ref().map(|p2p| p2p.borrow().clone());
    Ok(Json(PeersJson { success: true, sources, p2p }).into_response())
}

#[derive(Serialize)]
struct HealthJson<'a> {
    status: &'static str,
    supported_chains: [&'a str; 1],
    proposer_id: String,
    height: Height,
    hash: Hash,
    lag_blocks: u64,
    sync_state: SyncState,
    mempool: usize,
    version: &'a str,
}

/// The process is alive and can answer; whether it is at the head is `/ready`'s business.
pub(super) async fn health(State(rpc): State<Rpc>) -> Response {
    let head = rpc.parts.ledger.head();
    let (sync_state, lag_blocks) = {
        let sync = rpc.parts.sync.borrow();
        (sync.state, sync.lag_blocks)
    };
    Json(HealthJson {
        status: "ok",
        supported_chains: [rpc.chain_id()],
        proposer_id: rpc.parts.info.proposer.map(|address| address.to_string()).unwrap_or_default(),
        height: head.height,
        hash: head.hash,
        lag_blocks,
        sync_state,
        mempool: rpc.parts.mempool.len(),
        version: rpc.parts.info.version,
    })
    .into_response()
}

#[derive(Serialize)]
struct ReadyJson {
    #[serde(flatten)]
    readiness: Readiness,
    sync_state: SyncState,
    height: Height,
    best_height: Height,
    lag_blocks: u64,
    lag_seconds: u64,
}

/// Whether requests should come here rather than to another node, and if not, why.
pub(super) async fn ready(State(rpc): State<Rpc>) -> Response {
    let seen = rpc.parts.monitor.observe();
    let json = ReadyJson {
        readiness: readiness(&seen),
        sync_state: seen.sync.state,
        height: seen.height,
        best_height: seen.sync.best_height,
        lag_blocks: seen.sync.lag_blocks,
        lag_seconds: seen.sync.lag_seconds,
    };
    let status = if json.readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json)).into_response()
}

pub(super) async fn alerts(State(rpc): State<Rpc>, params: Params) -> Result<Json<Alerts>> {
    params.only(&[], rpc.chain_id())?;
    Ok(Json(rpc.parts.monitor.alerts()))
}

pub(super) async fn metrics(State(rpc): State<Rpc>) -> Response {
    let parts = &rpc.parts;
    telemetry::monitor(&parts.monitor);
    gauge!(telemetry::EVENT_LISTENERS).set(parts.events.listeners() as f64);
    {
        let sync = parts.sync.borrow();
        gauge!(telemetry::SYNC_IN_FLIGHT).set(f64::from(sync.in_flight));
        gauge!(telemetry::SYNC_BUFFERED_BYTES).set(sync.buffered_bytes as f64);
        gauge!(telemetry::SYNC_RATE).set(sync.blocks_per_second);
        counter!(telemetry::SYNC_REQUESTS).absolute(sync.requests);
        counter!(telemetry::SYNC_RESCUES).absolute(sync.rescues);
        counter!(telemetry::SYNC_FAILED).absolute(sync.failed_requests);
        counter!(telemetry::SYNC_REFUSED).absolute(sync.refused_actions);
        let (chunks, of) = sync.snapshot.as_ref().map_or((0, 0), |snapshot| (snapshot.chunks, snapshot.of));
        gauge!(telemetry::SYNC_SNAPSHOT_CHUNKS).set(chunks as f64);
        gauge!(telemetry::SYNC_SNAPSHOT_CHUNKS_ALL).set(of as f64);
        counter!(telemetry::SYNC_SNAPSHOTS, "outcome" => "taken").absolute(sync.snapshots_taken);
        counter!(telemetry::SYNC_SNAPSHOTS, "outcome" => "failed").absolute(sync.snapshots_failed);
    }
    if let Some(p2p) = &parts.p2p {
        let p2p = p2p.borrow();
        gauge!(telemetry::P2P_PEERS).set(p2p.peers.iter().filter(|peer| peer.admitted).count() as f64);
        gauge!(telemetry::P2P_ASIDE).set(p2p.aside.len() as f64);
    }
    let stats = parts.ledger.import_stats();
    counter!(telemetry::IMPORTED_BLOCKS).absolute(stats.blocks);
    counter!(telemetry::IMPORTED_TRANSACTIONS).absolute(stats.transactions);
    counter!(telemetry::IMPORT_COMMITS).absolute(stats.commits);
    counter!(telemetry::REORGS).absolute(stats.reorgs);
    counter!(telemetry::REORG_BLOCKS).absolute(stats.blocks_undone);
    counter!(telemetry::REORGS_REFUSED).absolute(stats.reorgs_refused);
    counter!(telemetry::EQUIVOCATIONS).absolute(stats.equivocations);
    counter!(telemetry::COMMIT_FAILURES).absolute(stats.failed_commits);
    for collect in &parts.collect {
        collect();
    }
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, text)], parts.metrics.render()).into_response()
}

/// For people: in a browser a page that shows the node live, elsewhere a list of all routes.
pub(super) async fn index(State(rpc): State<Rpc>, headers: HeaderMap) -> Response {
    const PAGE: &str = include_str!("dashboard.html");
    // Nothing from elsewhere, and nothing to anywhere else.
    const POLICY: &str =
        "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'";
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    if accepted.into_iter().any(|value| value.contains("text/html")) {
        return ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(PAGE)).into_response();
    }
    let mut text = format!("tenon {}, chain {}\n\n", rpc.parts.info.version, rpc.chain_id());
    let width = ROUTES.iter().map(|route| route.path.len()).max().unwrap_or(0);
    for route in ROUTES {
        writeln!(text, "{:4} {:width$}  {}", route.method, route.path, route.about).expect("a String takes everything");
    }
    text.into_response()
}
