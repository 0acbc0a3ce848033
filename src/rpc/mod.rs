//! The HTTP side of a node. [`ROUTES`] is the table of everything that is served: method, path, class, cost and handler
//! stand there once, and routing, rate limits, metrics and the index page follow from it.
//!
//! A request passes [`server`] (connections, time-outs), [`limit`] (the policy is asked before the handler runs) and one
//! handler, which is a function in the file of its resource. Names on the wire stand in [`wire`], errors in [`error`].

mod accounts;
pub mod admin;
mod agents;
mod chain;
mod cursor;
pub mod error;
mod events;
mod import;
pub mod limit;
mod messages;
mod node;
mod request;
mod server;
mod snapshots;
mod state;
mod transactions;
pub mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::FromRef;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use ipnet::IpNet;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::JoinHandle;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};
use tower_http::compression::{CompressionLayer, CompressionLevel};

use crate::events::Hub;
use crate::ledger::Ledger;
use crate::maintenance::audit::Auditor;
use crate::maintenance::shelf::Shelf;
use crate::mempool::Mempool;
use crate::monitor::Monitor;
use crate::p2p::P2pStatus;
use crate::p2p::serve::{Price, Prices};
use crate::rate_limit::{Class, Networks, Policy};
use crate::sync::SyncStatus;
use error::ApiError;
use limit::{Asked, Cost, Limiter};

pub use chain::{BLOCKS_MEDIA_TYPE, RANGE_BLOCKS_MAX, RANGE_BYTES_MAX};
pub use node::{NodeInfo, Role};
pub use server::Stop;

/// One route.
pub struct Route {
    /// `GET` (which answers `HEAD` too) or `POST`.
    pub method: &'static str,
    /// Its path; `{…}` is a segment of the caller's choice. A slash at the end is allowed.
    pub path: &'static str,
    /// Other paths with the same answers.
    pub aliases: &'static [&'static str],
    /// What kind of work it is; none: never limited.
    pub class: Option<Class>,
    /// What it costs, in units of one cheap read.
    pub cost: Cost,
    /// What it answers, in a few words.
    pub about: &'static str,
    handler: fn() -> MethodRouter<Rpc>,
}

const CHEAP: Cost = Cost::fixed(1);

/// Every route. A route's place here is the number under which policies know it: append, do not insert.
pub static ROUTES: &[Route] = &[
    Route {
        method: "GET",
        path: "/rpc/head",
        aliases: &[],
        class: Some(Class::Sync),
        cost: CHEAP,
        about: "the head of the chain; the header `x-tenon-snapshot` names the newest snapshot here: height, id, block hash",
        handler: || get(chain::head),
    },
    Route {
        method: "GET",
        path: "/rpc/blocks-range",
        aliases: &[],
        class: Some(Class::Sync),
        cost: Cost { base: 1, asked: Asked::Blocks, per_unit: 10 },
        about: "blocks from `start` to `end`, with their transactions unless include_tx=false; JSON or binary by Accept",
        handler: || get(chain::range).layer(compression()),
    },
    Route {
        method: "GET",
        path: "/rpc/blocks/{height_or_hash}",
        aliases: &[],
        class: Some(Class::Read),
        cost: Cost::fixed(2),
        about: "one block with its transactions",
        handler: || get(chain::block).layer(compression()),
    },
    Route {
        method: "POST",
        path: "/rpc/importBlock",
        aliases: &[],
        class: Some(Class::Import),
        cost: CHEAP,
        about: "hands in a block",
        handler: || post(import::import_block),
    },
    Route {
        method: "POST",
        path: "/rpc/transaction",
        aliases: &[],
        class: Some(Class::Write),
        cost: CHEAP,
        about: "hands in a transaction",
        handler: || post(transactions::submit),
    },
    Route {
        method: "GET",
        path: "/rpc/transactions",
        aliases: &[],
        class: Some(Class::Read),
        cost: Cost { base: 2, asked: Asked::Items, per_unit: 10 },
        about: "transactions, newest first, pending ones included; by address, sender, recipient, type; after, limit; \
                `base`: from which block on they are here",
        handler: || get(transactions::list).layer(compression()),
    },
    Route {
        method: "GET",
        path: "/rpc/transaction/{hash}",
        aliases: &["/rpc/transactions/{hash}", "/rpc/tx/{hash}"],
        class: Some(Class::Read),
        cost: CHEAP,
        about: "one transaction; proof=true adds the proof that its block holds it",
        handler: || get(transactions::one),
    },
    Route {
        method: "GET",
        path: "/rpc/accounts/{address}",
        aliases: &[],
        class: Some(Class::Read),
        cost: CHEAP,
        about: "what an address has",
        handler: || get(accounts::account),
    },
    Route {
        method: "GET",
        path: "/rpc/messages",
        aliases: &[],
        class: Some(Class::Read),
        cost: Cost { base: 2, asked: Asked::Items, per_unit: 10 },
        about: "messages to or from `address`, oldest first; after, limit; 409 with `next` where a reorg took the \
                cursor's block; `base`: from which block on they are here",
        handler: || get(messages::list).layer(compression()),
    },
    Route {
        method: "GET",
        path: "/rpc/mempool",
        aliases: &[],
        class: Some(Class::Read),
        cost: Cost { base: 2, asked: Asked::Items, per_unit: 10 },
        about: "transactions that wait for a block, highest fee first; limit",
        handler: || get(transactions::mempool).layer(compression()),
    },
    Route {
        method: "GET",
        path: "/rpc/info",
        aliases: &[],
        class: Some(Class::Read),
        cost: CHEAP,
        about: "chain, node and counts",
        handler: || get(node::info),
    },
    Route {
        method: "GET",
        path: "/rpc/genesis",
        aliases: &[],
        class: Some(Class::Read),
        cost: Cost::fixed(10),
        about: "the chain's genesis.json",
        handler: || get(node::genesis).layer(compression()),
    },
    Route {
        method: "GET",
        path: "/rpc/sync/status",
        aliases: &[],
        class: Some(Class::Read),
        cost: CHEAP,
        about: "how far the node is, and with whom it compares itself",
        handler: || get(node::sync_status),
    },
    Route {
        method: "GET",
        path: "/health",
        aliases: &[],
        class: None,
        cost: CHEAP,
        about: "the process answers",
        handler: || get(node::health),
    },
    Route {
        method: "GET",
        path: "/ready",
        aliases: &[],
        class: None,
        cost: CHEAP,
        about: "200 while the node is at the head of its chain, else 503",
        handler: || get(node::ready),
    },
    Route {
        method: "GET",
        path: "/metrics",
        aliases: &[],
        class: None,
        cost: CHEAP,
        about: "Prometheus metrics",
        handler: || get(node::metrics),
    },
    Route {
        method: "GET",
        path: "/",
        aliases: &[],
        class: Some(Class::Read),
        cost: CHEAP,
        about: "this list; in a browser a page that shows the node live",
        handler: || get(node::index),
    },
    Route {
        method: "GET",
        path: "/rpc/peers",
        aliases: &[],
        class: Some(Class::Read),
        cost: CHEAP,
        about: "whom the node reads from, and with whom it is connected",
        handler: || get(node::peers),
    },
    Route {
        method: "GET",
        path: "/rpc/state/root",
        aliases: &[],
        class: Some(Class::Read),
        cost: CHEAP,
        about: "the state root after the block at `height`, or the head",
        handler: || get(state::root),
    },
    Route {
        method: "GET",
        path: "/rpc/state/node",
        aliases: &[],
        class: Some(Class::Read),
        cost: Cost::fixed(2),
        about: "what lies below `path` in the trie of the head's accounts; `height` must be the head's where it is given",
        handler: || get(state::node),
    },
    Route {
        method: "GET",
        path: "/rpc/snapshots",
        aliases: &[],
        class: Some(Class::Sync),
        cost: CHEAP,
        about: "the snapshots that can be downloaded here",
        handler: || get(snapshots::list),
    },
    Route {
        method: "GET",
        path: "/rpc/snapshot/{id}/manifest",
        aliases: &[],
        class: Some(Class::Sync),
        cost: Cost::fixed(10),
        about: "what a snapshot consists of; its id is the SHA-256 of this",
        handler: || get(snapshots::manifest),
    },
    Route {
        method: "GET",
        path: "/rpc/snapshot/{id}/{chunk}",
        aliases: &[],
        class: Some(Class::Sync),
        cost: Cost::fixed(10),
        about: "one chunk of a snapshot, from 0; compressed",
        handler: || get(snapshots::chunk),
    },
    Route {
        method: "GET",
        path: "/rpc/events",
        aliases: &[],
        class: Some(Class::Read),
        cost: Cost::fixed(10),
        about: "what happens, as server-sent events; types (block,transaction,message,reorg,sync,plugin,alert), after",
        handler: || get(events::events),
    },
    Route {
        method: "GET",
        path: "/rpc/ws/blocks",
        aliases: &[],
        class: Some(Class::Read),
        cost: Cost::fixed(10),
        about: "new blocks, a frame each, over a WebSocket",
        handler: || get(events::blocks),
    },
    Route {
        method: "GET",
        path: "/rpc/ws/transactions",
        aliases: &[],
        class: Some(Class::Read),
        cost: Cost::fixed(10),
        about: "transactions that wait, are in a block or were dropped, a frame each, over a WebSocket",
        handler: || get(events::transactions),
    },
    Route {
        method: "GET",
        path: "/rpc/alerts",
        aliases: &[],
        class: Some(Class::Read),
        cost: CHEAP,
        about: "what is wrong, was until an hour ago, or will be an alert if it stays",
        handler: || get(node::alerts),
    },
];

/// Looks at the state that wait for the ledger's thread at most.
const LOOKS_MAX: usize = 4;

/// The number of every path that is not in [`ROUTES`].
const UNKNOWN_ROUTE: usize = u32::MAX as usize;

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct RpcConfig {
    /// Connections in all; more wait to be accepted. Default 1,024.
    pub connections_max: usize,
    /// Connections of one caller that is neither loopback nor a peer; more are closed at once. Default 128.
    pub connections_per_client_max: usize,
    /// How long a connection may be idle, and a request's head take, in milliseconds. Default 60,000.
    pub idle_timeout_ms: u64,
    /// How long requests under way may take when the node stops, in milliseconds. Default 5,000.
    pub stop_timeout_ms: u64,
    /// Addresses that are trusted as peers.
    pub peers: Vec<IpNet>,
    /// Reverse proxies in front of the node: for a connection from one of these the caller is the last address in
    /// `X-Forwarded-For` that is not a proxy's. Without this, a proxy on the same machine makes every caller loopback.
    pub proxies: Vec<IpNet>,
    /// Costs that differ from the table's, by path as it stands there.
    pub costs: BTreeMap<String, u64>,
}

impl Default for RpcConfig {
    fn default() -> Self {
        Self {
            connections_max: 1_024,
            connections_per_client_max: 128,
            idle_timeout_ms: 60_000,
            stop_timeout_ms: 5_000,
            peers: Vec::new(),
            proxies: Vec::new(),
            costs: BTreeMap::new(),
        }
    }
}

impl RpcConfig {
    /// Whether it can be used. Errors: a cost for a path that is not in the table, or of 0.
    pub fn check(&self) -> Result<(), String> {
        for (path, cost) in &self.costs {
            if !ROUTES.iter().any(|route| route.path == path) {
                let known: Vec<_> = ROUTES.iter().map(|route| route.path).collect();
                return Err(format!("costs: `{path}` is no route; known are {}", known.join(", ")));
            }
            if *cost == 0 {
                return Err(format!("costs: `{path}` is 0, expected 1 or more"));
            }
        }
        Ok(())
    }
}

/// What requests of peers cost: what the same costs here, the operator's own costs included.
pub fn prices(config: &RpcConfig) -> Prices {
    let price = |path: &str| {
        let (number, route) =
            ROUTES.iter().enumerate().find(|(_, route)| route.path == path).expect("a path of the table");
        Price {
            route: u32::try_from(number).expect("the table is short"),
            class: route.class.expect("a route with a limit"),
            base: config.costs.get(path).copied().unwrap_or(route.cost.base),
            blocks_per_unit: if route.cost.asked == Asked::Blocks { route.cost.per_unit } else { 0 },
        }
    };
    Prices { head: price("/rpc/head"), range: price("/rpc/blocks-range"), submit: price("/rpc/transaction") }
}

/// What the handlers work with.
pub struct RpcParts {
    /// The chain.
    pub ledger: Ledger,
    /// The waiting transactions.
    pub mempool: Mempool,
    /// Who decides how often a caller may ask.
    pub policy: Arc<dyn Policy>,
    /// Where sync stands.
    pub sync: watch::Receiver<SyncStatus>,
    /// How the connections to peers are; none on a node that has none.
    pub p2p: Option<watch::Receiver<P2pStatus>>,
    /// The snapshots that it serves.
    pub shelf: Shelf,
    /// Who verifies its state.
    pub auditor: Auditor,
    /// Who this node is.
    pub info: NodeInfo,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
    /// Called before metrics are rendered: for gauges that nobody else sets.
    pub collect: Vec<Arc<dyn Fn() + Send + Sync>>,
    /// What happens.
    pub events: Hub,
    /// What happens to plugins; none on a node without them.
    pub plugin_events: Option<broadcast::Receiver<tenon_runtime::Event>>,
    /// What is wrong.
    pub monitor: Monitor,
}

/// What the handlers share.
#[derive(Clone)]
struct Rpc(Arc<Shared>);

struct Shared {
    parts: RpcParts,
    head: chain::HeadBody,
    import_body_max: usize,
    /// Blocks that are read and verified at a time; each takes a thread.
    imports: Semaphore,
    /// Looks at the state at a time; the ledger's thread takes them.
    looks: Semaphore,
    stop: Stop,
}

impl std::ops::Deref for Rpc {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl FromRef<Rpc> for Ledger {
    fn from_ref(rpc: &Rpc) -> Self {
        rpc.parts.ledger.clone()
    }
}

impl FromRef<Rpc> for Mempool {
    fn from_ref(rpc: &Rpc) -> Self {
        rpc.parts.mempool.clone()
    }
}

impl Rpc {
    fn new(parts: RpcParts, stop: Stop) -> Self {
        let genesis = parts.ledger.genesis();
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self(Arc::new(Shared {
            head: chain::HeadBody::new(&parts.ledger),
            import_body_max: import::body_max(genesis),
            imports: Semaphore::new(2 * cores),
            looks: Semaphore::new(LOOKS_MAX),
            stop,
            parts,
        }))
    }

    fn chain_id(&self) -> &str {
        &self.parts.ledger.genesis().chain_id
    }
}

/// Serves [`ROUTES`] on `listener` until `stop` says true or its sender is gone; then requests under way are finished.
///
/// Errors: [`RpcConfig::check`]'s.
pub fn serve(
    listener: TcpListener,
    mut parts: RpcParts,
    config: RpcConfig,
    stop: watch::Receiver<bool>,
) -> Result<JoinHandle<()>, String> {
    config.check()?;
    let stop = Stop::new(stop);
    let limiter = Arc::new(Limiter::new(
        Arc::clone(&parts.policy),
        Networks { peers: config.peers.clone(), proxies: config.proxies.clone() },
        parts.ledger.clone(),
    ));
    let metrics = parts.metrics.clone();
    let feed = events::feed::Feed {
        hub: parts.events.clone(),
        ledger: parts.ledger.clone(),
        mempool: parts.mempool.clone(),
        sync: parts.sync.clone(),
        plugins: parts.plugin_events.take(),
    };
    let feeding = tokio::spawn(feed.run(stop.clone()));
    let router = router(Rpc::new(parts, stop.clone()), &limiter, &config);
    let server = server::run(listener, router, limiter, config, stop);
    Ok(tokio::spawn(async move {
        tokio::select! {
            () = server => {}
            // Never ends before the server does; samples of histograms pile up until somebody merges them.
            () = server::upkeep(metrics) => {}
        }
        if let Err(error) = feeding.await {
            tracing::error!(%error, "the feed of events did not end well");
        }
    }))
}

/// Serves the operator's routes on `listener` until `stop` says true; see [`admin`].
pub fn serve_admin(listener: TcpListener, parts: admin::AdminParts, stop: watch::Receiver<bool>) -> JoinHandle<()> {
    let router = admin::router(parts);
    tokio::spawn(server::run_plain(listener, router, Stop::new(stop)))
}

fn router(rpc: Rpc, limiter: &Arc<Limiter>, config: &RpcConfig) -> Router {
    let mut router = Router::new();
    for (number, route) in ROUTES.iter().enumerate() {
        let cost = Cost { base: config.costs.get(route.path).copied().unwrap_or(route.cost.base), ..route.cost };
        let guard = limiter.guard(number, route.path, route.class, cost);
        for path in std::iter::once(&route.path).chain(route.aliases) {
            let handler = || (route.handler)().fallback(method_not_allowed).layer(guard.clone());
            router = router.route(path, handler());
            if *path != "/" {
                router = router.route(&format!("{path}/"), handler());
            }
        }
    }
    // Unknown paths are limited too: looking for one costs about as much as a cheap read.
    let unknown = limiter.guard(UNKNOWN_ROUTE, "unknown", Some(Class::Read), CHEAP);
    router.fallback_service(MethodRouter::new().fallback(not_found).layer(unknown).with_state(())).with_state(rpc)
}

async fn not_found() -> ApiError {
    ApiError::not_found("not found; `/` lists the routes")
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "method not allowed")
}

/// Compresses answers from 1 KiB on, where the caller accepts it. Not blocks in binary: signatures do not compress.
fn compression() -> CompressionLayer<impl Predicate> {
    CompressionLayer::new()
        .gzip(true)
        .quality(CompressionLevel::Fastest)
        .compress_when(SizeAbove::new(1_024).and(NotForContentType::const_new(BLOCKS_MEDIA_TYPE)))
}

/// A JSON answer from bytes that are JSON already.
fn json_bytes(body: impl Into<axum::body::Body>) -> Response {
    const JSON: axum::http::HeaderValue = axum::http::HeaderValue::from_static("application/json");
    let mut response = Response::new(body.into());
    response.headers_mut().insert(axum::http::header::CONTENT_TYPE, JSON);
    response
}
