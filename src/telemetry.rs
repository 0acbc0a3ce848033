//! Metrics: one recorder for the process, and the names under which things are counted. `GET /metrics` renders them.

use std::sync::OnceLock;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Answers by route and class of status (`2xx` …).
pub const RPC_REQUESTS: &str = "tenon_rpc_requests_total";
/// Time from a request's head to its answer's head, by route.
pub const RPC_SECONDS: &str = "tenon_rpc_request_seconds";
/// Requests that the rate-limit policy refused, by class and verdict.
pub const LIMITER_DENIED: &str = "tenon_limiter_denied_total";
/// Time that the policy took to decide.
pub const LIMITER_SECONDS: &str = "tenon_limiter_decision_seconds";
/// Connections that are open.
pub const RPC_CONNECTIONS: &str = "tenon_rpc_connections";
/// Connections that were closed at once, since their caller had too many.
pub const RPC_CONNECTIONS_REFUSED: &str = "tenon_rpc_connections_refused_total";
/// Height of the local head.
pub const HEAD_HEIGHT: &str = "tenon_head_height";
/// Age of the local head.
pub const HEAD_AGE: &str = "tenon_head_age_seconds";
/// Transactions that wait for a block.
pub const MEMPOOL: &str = "tenon_mempool_transactions";
/// Height of the highest head that a source reported.
pub const BEST_HEIGHT: &str = "tenon_best_claimed_height";
/// Blocks that the local head lies behind it.
pub const LAG_BLOCKS: &str = "tenon_lag_blocks";
/// How long the local head has been behind.
pub const LAG_SECONDS: &str = "tenon_lag_seconds";
/// 1 while the local head is on another branch than a source.
pub const DIVERGED: &str = "tenon_diverged";
/// Requests for ranges under way.
pub const SYNC_IN_FLIGHT: &str = "tenon_sync_in_flight";
/// Encoded bytes of blocks under way or waiting to be stored.
pub const SYNC_BUFFERED_BYTES: &str = "tenon_sync_buffered_bytes";
/// Sources that may be used now.
pub const SYNC_SOURCES_UP: &str = "tenon_sync_sources_up";
/// Requests for ranges since the start.
pub const SYNC_REQUESTS: &str = "tenon_sync_requests_total";
/// Of those, how many the watchdog made.
pub const SYNC_RESCUES: &str = "tenon_sync_rescues_total";
/// Answers to them that were not usable.
pub const SYNC_FAILED: &str = "tenon_sync_failed_requests_total";
/// Actions of the strategy that were refused.
pub const SYNC_REFUSED: &str = "tenon_sync_refused_actions_total";
/// Blocks that were imported since the start.
pub const IMPORTED_BLOCKS: &str = "tenon_imported_blocks_total";
/// Transactions in them.
pub const IMPORTED_TRANSACTIONS: &str = "tenon_imported_transactions_total";
/// Database transactions that it took.
pub const IMPORT_COMMITS: &str = "tenon_import_commits_total";

/// Bounds of the histogram buckets, in seconds: a decision takes less than a microsecond, an import some milliseconds.
const BUCKETS: [f64; 14] = [2.5e-7, 5e-7, 1e-6, 5e-6, 2.5e-5, 1e-4, 2.5e-4, 1e-3, 2.5e-3, 1e-2, 5e-2, 0.25, 1.0, 5.0];

/// The process's recorder, installed at the first call: the metrics facade has room for one, so nodes that share a process
/// share it.
pub fn install() -> PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    let install = || {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &BUCKETS)
            .expect("there are buckets");
        let handle = builder.install_recorder().expect("nobody else in this process installs a recorder");
        describe();
        handle
    };
    RECORDER.get_or_init(install).clone()
}

fn describe() {
    for (name, text) in [
        (RPC_REQUESTS, "Answers by route and class of status"),
        (LIMITER_DENIED, "Requests that the rate-limit policy refused, by class and verdict"),
        (RPC_CONNECTIONS_REFUSED, "Connections closed at once, since their caller had too many"),
        (SYNC_REQUESTS, "Requests for ranges"),
        (SYNC_RESCUES, "Requests for ranges that the watchdog made"),
        (SYNC_FAILED, "Answers to requests for ranges that were not usable"),
        (SYNC_REFUSED, "Actions of the sync strategy that were refused"),
        (IMPORTED_BLOCKS, "Blocks imported since the start"),
        (IMPORTED_TRANSACTIONS, "Transactions in imported blocks"),
        (IMPORT_COMMITS, "Database transactions that imports took"),
    ] {
        describe_counter!(name, text);
    }
    for (name, unit, text) in [
        (RPC_CONNECTIONS, Unit::Count, "Open connections"),
        (HEAD_HEIGHT, Unit::Count, "Height of the local head"),
        (HEAD_AGE, Unit::Seconds, "Age of the local head"),
        (MEMPOOL, Unit::Count, "Transactions that wait for a block"),
        (BEST_HEIGHT, Unit::Count, "Height of the highest head that a source reported"),
        (LAG_BLOCKS, Unit::Count, "Blocks that the local head lies behind the best source"),
        (LAG_SECONDS, Unit::Seconds, "How long the local head has been behind"),
        (SYNC_IN_FLIGHT, Unit::Count, "Requests for ranges under way"),
        (SYNC_BUFFERED_BYTES, Unit::Bytes, "Encoded blocks under way or waiting to be stored"),
        (SYNC_SOURCES_UP, Unit::Count, "Sources that may be used now"),
        (DIVERGED, Unit::Count, "1 while the local head is on another branch than a source"),
    ] {
        describe_gauge!(name, unit, text);
    }
    describe_histogram!(RPC_SECONDS, Unit::Seconds, "Time from a request's head to its answer's head");
    describe_histogram!(LIMITER_SECONDS, Unit::Seconds, "Time that the rate-limit policy took to decide");
}
