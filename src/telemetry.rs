//! Metrics: one recorder for the process, and the names under which things are counted. `GET /metrics` renders them.

use std::sync::OnceLock;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tenon_runtime::Status;

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
/// Switches to another branch.
pub const REORGS: &str = "tenon_reorgs_total";
/// Blocks that they took back.
pub const REORG_BLOCKS: &str = "tenon_reorg_blocks_total";
/// Better branches that were refused, since they leave ours deeper than `max_reorg_depth`.
pub const REORGS_REFUSED: &str = "tenon_reorgs_refused_total";
/// Times that an authority was seen to have signed two blocks for one height.
pub const EQUIVOCATIONS: &str = "tenon_equivocations_total";
/// Height of the newest snapshot that is served; 0 without one.
pub const SNAPSHOT_HEIGHT: &str = "tenon_snapshot_height";
/// 1 while the accounts made their block's state root when that was last computed from all of them, 0 when they did not.
pub const STATE_OK: &str = "tenon_state_ok";
/// Height of the block whose state was last computed.
pub const STATE_VERIFIED_HEIGHT: &str = "tenon_state_verified_height";
/// How long that took.
pub const STATE_VERIFY_SECONDS: &str = "tenon_state_verify_seconds";

/// Calls of a generation, by slot, plugin and generation.
pub const PLUGIN_CALLS: &str = "tenon_plugin_calls_total";
/// Those it failed.
pub const PLUGIN_GENERATION_FAILURES: &str = "tenon_plugin_generation_failures_total";
/// Times of its calls, by quantile; a sample of them is timed.
pub const PLUGIN_NANOSECONDS: &str = "tenon_plugin_call_nanoseconds";
/// Failed calls of a slot, by cause.
pub const PLUGIN_FAILURES: &str = "tenon_plugin_failures_total";
/// Calls of a slot answered by the built-in, or openly or closed, in place of a plugin.
pub const PLUGIN_FALLBACKS: &str = "tenon_plugin_fallbacks_total";
/// Calls of a slot answered by another generation in place of the one that failed.
pub const PLUGIN_RESCUES: &str = "tenon_plugin_rescues_total";
/// Memories that a generation could not read.
pub const PLUGIN_MEMORIES_LOST: &str = "tenon_plugin_memories_lost_total";
/// Keys whose memory a slot keeps.
pub const PLUGIN_MEMORY_KEYS: &str = "tenon_plugin_memory_keys";
/// The generation that serves a slot; 0: the built-in.
pub const PLUGIN_GENERATION: &str = "tenon_plugin_generation";
/// Answers of a slot's shadow that were compared.
pub const PLUGIN_SHADOW_COMPARED: &str = "tenon_plugin_shadow_compared";
/// Of those, how many differ.
pub const PLUGIN_SHADOW_DIVERGENT: &str = "tenon_plugin_shadow_divergent";
/// Calls that a slot's shadow was not given.
pub const PLUGIN_SHADOW_DROPPED: &str = "tenon_plugin_shadow_dropped";

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
        (PLUGIN_CALLS, "Calls of a generation"),
        (PLUGIN_GENERATION_FAILURES, "Calls that a generation failed"),
        (PLUGIN_FAILURES, "Failed calls of a slot, by cause"),
        (PLUGIN_FALLBACKS, "Calls answered by the built-in, or openly or closed, in place of a plugin"),
        (PLUGIN_RESCUES, "Calls answered by another generation in place of the one that failed"),
        (PLUGIN_MEMORIES_LOST, "Memories that a generation could not read"),
        (IMPORT_COMMITS, "Database transactions that imports took"),
        (REORGS, "Switches to another branch"),
        (REORG_BLOCKS, "Blocks taken back by switches to another branch"),
        (REORGS_REFUSED, "Better branches refused, since they leave ours deeper than max_reorg_depth"),
        (EQUIVOCATIONS, "Times that an authority was seen to have signed two blocks for one height"),
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
        (PLUGIN_NANOSECONDS, Unit::Nanoseconds, "Times of a generation's calls, by quantile"),
        (PLUGIN_MEMORY_KEYS, Unit::Count, "Keys whose memory a slot keeps"),
        (PLUGIN_GENERATION, Unit::Count, "The generation that serves a slot; 0: the built-in"),
        (PLUGIN_SHADOW_COMPARED, Unit::Count, "Answers of a slot's shadow that were compared"),
        (PLUGIN_SHADOW_DIVERGENT, Unit::Count, "Answers of a slot's shadow that differ"),
        (PLUGIN_SHADOW_DROPPED, Unit::Count, "Calls that a slot's shadow was not given"),
        (SNAPSHOT_HEIGHT, Unit::Count, "Height of the newest snapshot that is served"),
        (STATE_OK, Unit::Count, "1 while the accounts made their block's state root when they were last read in full"),
        (STATE_VERIFIED_HEIGHT, Unit::Count, "Height of the block whose state was last computed from all accounts"),
        (DIVERGED, Unit::Count, "1 while the local head is on another branch than a source"),
    ] {
        describe_gauge!(name, unit, text);
    }
    describe_histogram!(RPC_SECONDS, Unit::Seconds, "Time from a request's head to its answer's head");
    describe_histogram!(
        STATE_VERIFY_SECONDS,
        Unit::Seconds,
        "Time that reading all accounts and computing their root took"
    );
    describe_histogram!(LIMITER_SECONDS, Unit::Seconds, "Time that the rate-limit policy took to decide");
}

/// Sets the figures of every slot, plugin and generation.
pub fn plugins(slots: &[Status]) {
    for slot in slots {
        let name = || slot.slot.clone();
        counter!(PLUGIN_FALLBACKS, "slot" => name()).absolute(slot.fallbacks);
        counter!(PLUGIN_RESCUES, "slot" => name()).absolute(slot.rescues);
        counter!(PLUGIN_MEMORIES_LOST, "slot" => name()).absolute(slot.memories_lost);
        gauge!(PLUGIN_MEMORY_KEYS, "slot" => name()).set(slot.memory_keys as f64);
        gauge!(PLUGIN_GENERATION, "slot" => name()).set(slot.generation as f64);
        for (cause, count) in &slot.failures_by_cause {
            counter!(PLUGIN_FAILURES, "slot" => name(), "cause" => *cause).absolute(*count);
        }
        if let Some(shadow) = &slot.shadow {
            gauge!(PLUGIN_SHADOW_COMPARED, "slot" => name()).set(shadow.compared as f64);
            gauge!(PLUGIN_SHADOW_DIVERGENT, "slot" => name()).set(shadow.divergent as f64);
            gauge!(PLUGIN_SHADOW_DROPPED, "slot" => name()).set(shadow.dropped as f64);
        }
        for generation in &slot.generations {
            let labels = [
                ("slot", name()),
                ("plugin", generation.plugin.clone()),
                ("generation", generation.generation.to_string()),
            ];
            counter!(PLUGIN_CALLS, &labels).absolute(generation.calls);
            counter!(PLUGIN_GENERATION_FAILURES, &labels).absolute(generation.failures);
            for (quantile, ns) in [
                ("0.5", generation.times.p50_ns),
                ("0.9", generation.times.p90_ns),
                ("0.99", generation.times.p99_ns),
                ("1", generation.times.max_ns),
            ] {
                let mut labels = labels.to_vec();
                labels.push(("quantile", quantile.to_owned()));
                gauge!(PLUGIN_NANOSECONDS, &labels).set(ns as f64);
            }
        }
    }
}
