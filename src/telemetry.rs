//! Metrics: one recorder for the process, and the names under which things are counted. `GET /metrics` renders them.

use std::sync::OnceLock;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tenon_runtime::Status;

use crate::monitor::{Monitor, readiness, rules};
use crate::sync::SyncState;

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
/// Chunks that are here of a snapshot that is being taken, or that are installed; 0 while none is.
pub const SYNC_SNAPSHOT_CHUNKS: &str = "tenon_sync_snapshot_chunks";
/// How many it has; 0 while none is being taken.
pub const SYNC_SNAPSHOT_CHUNKS_ALL: &str = "tenon_sync_snapshot_chunks_all";
/// Snapshots that sync wanted to begin with, by outcome.
pub const SYNC_SNAPSHOTS: &str = "tenon_sync_snapshots_total";
/// Height of the block whose state was last computed.
pub const STATE_VERIFIED_HEIGHT: &str = "tenon_state_verified_height";
/// How long that took.
pub const STATE_VERIFY_SECONDS: &str = "tenon_state_verify_seconds";

/// Commits that failed.
pub const COMMIT_FAILURES: &str = "tenon_commit_failures_total";
/// How long no block has been added; at most since the start.
pub const IMPORT_AGE: &str = "tenon_import_age_seconds";
/// Blocks that sync stored in the last seconds, a second.
pub const SYNC_RATE: &str = "tenon_sync_blocks_per_second";
/// 1 for the state in which the node stands against its sources, 0 for the others.
pub const SYNC_STATE: &str = "tenon_sync_state";
/// Sources, by standing.
pub const SYNC_PEERS: &str = "tenon_sync_peers";
/// What waits, by queue.
pub const QUEUE_DEPTH: &str = "tenon_queue_depth";
/// How much may, by queue; only of those for which being full is not their ordinary work.
pub const QUEUE_LIMIT: &str = "tenon_queue_limit";
/// Age of the last verification of the whole state.
pub const VERIFICATION_AGE: &str = "tenon_state_verification_age_seconds";
/// 1 where that found that the state holds.
pub const STATE_VERIFIED: &str = "tenon_state_verified";
/// Bytes that may still be written to the disk of the database.
pub const DISK_FREE: &str = "tenon_disk_free_bytes";
/// That disk's size.
pub const DISK_TOTAL: &str = "tenon_disk_total_bytes";
/// 1 while `/ready` answers 200.
pub const READY: &str = "tenon_ready";
/// Alerts by name and state; more than one where a rule looks at several things.
pub const ALERT: &str = "tenon_alert";
/// Those who listen to events.
pub const EVENT_LISTENERS: &str = "tenon_event_listeners";
/// Alerts posted to the webhook, by outcome.
pub const WEBHOOK_POSTS: &str = "tenon_webhook_posts_total";
/// Alerts that it has not taken yet.
pub const WEBHOOK_WAITING: &str = "tenon_webhook_waiting";

/// Peers that are connected over libp2p and have shown that they are on this chain.
pub const P2P_PEERS: &str = "tenon_p2p_peers";
/// Peers that are left alone for a while.
pub const P2P_ASIDE: &str = "tenon_p2p_peers_aside";
/// Peers that were put aside since the start.
pub const P2P_PUT_ASIDE: &str = "tenon_p2p_put_aside_total";
/// Connections of peers that did not get in: too many, or put aside, or without a proper beginning.
pub const P2P_CONNECTIONS_REFUSED: &str = "tenon_p2p_connections_refused_total";
/// Messages that peers pushed, by topic and verdict.
pub const P2P_MESSAGES_IN: &str = "tenon_p2p_messages_in_total";
/// Messages that this node had to push, by topic and outcome.
pub const P2P_MESSAGES_OUT: &str = "tenon_p2p_messages_out_total";
/// Bytes of messages and blocks that were looked at or pushed, by direction; what is passed on is not in it.
pub const P2P_BYTES: &str = "tenon_p2p_bytes_total";
/// Requests of peers, by kind.
pub const P2P_REQUESTS: &str = "tenon_p2p_requests_total";
/// Times that a peer took what was pushed too slowly.
pub const P2P_SLOW_PEERS: &str = "tenon_p2p_slow_peers_total";
/// Blocks that were passed on and could then not be executed.
pub const P2P_IMPORTS_FAILED: &str = "tenon_p2p_imports_failed_total";

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
/// Events that an agent has set aside.
pub const AGENT_PARKED: &str = "tenon_agent_parked";
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
        // What has not happened yet is 0, not absent: rules and boards can tell the two apart.
        for name in [REORGS, REORG_BLOCKS] {
            counter!(name).absolute(0);
        }
        for outcome in ["taken", "failed"] {
            counter!(WEBHOOK_POSTS, "outcome" => outcome).absolute(0);
        }
        gauge!(WEBHOOK_WAITING).set(0.0);
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
        (SYNC_SNAPSHOTS, "Snapshots that sync wanted to begin with, by outcome"),
        (IMPORTED_BLOCKS, "Blocks imported since the start"),
        (IMPORTED_TRANSACTIONS, "Transactions in imported blocks"),
        (PLUGIN_CALLS, "Calls of a generation"),
        (PLUGIN_GENERATION_FAILURES, "Calls that a generation failed"),
        (PLUGIN_FAILURES, "Failed calls of a slot, by cause"),
        (PLUGIN_FALLBACKS, "Calls answered by the built-in, or openly or closed, in place of a plugin"),
        (PLUGIN_RESCUES, "Calls answered by another generation in place of the one that failed"),
        (PLUGIN_MEMORIES_LOST, "Memories that a generation could not read"),
        (IMPORT_COMMITS, "Database transactions that imports took"),
        (P2P_PUT_ASIDE, "Peers put aside since the start, for another chain or for bad conduct"),
        (P2P_CONNECTIONS_REFUSED, "Connections of peers that did not get in"),
        (P2P_MESSAGES_IN, "Messages that peers pushed, by topic and verdict"),
        (P2P_MESSAGES_OUT, "Messages that this node had to push, by topic and outcome"),
        (P2P_BYTES, "Bytes of messages and blocks from and to peers, by direction"),
        (P2P_REQUESTS, "Requests of peers, by kind"),
        (P2P_SLOW_PEERS, "Times that a peer took what was pushed too slowly"),
        (P2P_IMPORTS_FAILED, "Blocks that were passed on and could then not be executed"),
        (REORGS, "Switches to another branch"),
        (REORG_BLOCKS, "Blocks taken back by switches to another branch"),
        (REORGS_REFUSED, "Better branches refused, since they leave ours deeper than max_reorg_depth"),
        (EQUIVOCATIONS, "Times that an authority was seen to have signed two blocks for one height"),
        (COMMIT_FAILURES, "Database transactions that failed"),
        (WEBHOOK_POSTS, "Alerts posted to the webhook, by outcome"),
    ] {
        describe_counter!(name, text);
    }
    for (name, unit, text) in [
        (RPC_CONNECTIONS, Unit::Count, "Open connections"),
        (P2P_PEERS, Unit::Count, "Connected peers on this chain"),
        (P2P_ASIDE, Unit::Count, "Peers that are left alone for a while"),
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
        (SYNC_SNAPSHOT_CHUNKS, Unit::Count, "Chunks that are here of the snapshot that is being taken"),
        (SYNC_SNAPSHOT_CHUNKS_ALL, Unit::Count, "Chunks of the snapshot that is being taken"),
        (SNAPSHOT_HEIGHT, Unit::Count, "Height of the newest snapshot that is served"),
        (STATE_VERIFIED_HEIGHT, Unit::Count, "Height of the block whose state was last computed from all accounts"),
        (IMPORT_AGE, Unit::Seconds, "How long no block has been added; at most since the start"),
        (SYNC_RATE, Unit::CountPerSecond, "Blocks that sync stored in the last seconds, a second"),
        (SYNC_STATE, Unit::Count, "1 for the state in which the node stands against its sources"),
        (SYNC_PEERS, Unit::Count, "Sources, by standing"),
        (QUEUE_DEPTH, Unit::Count, "What waits, by queue"),
        (QUEUE_LIMIT, Unit::Count, "How much may wait, by queue"),
        (VERIFICATION_AGE, Unit::Seconds, "Age of the last verification of the whole state"),
        (STATE_VERIFIED, Unit::Count, "1 where the last verification found that the state holds"),
        (DISK_FREE, Unit::Bytes, "What may still be written to the disk of the database"),
        (DISK_TOTAL, Unit::Bytes, "The size of the disk of the database"),
        (READY, Unit::Count, "1 while /ready answers 200"),
        (ALERT, Unit::Count, "Alerts by name and state, pending or firing"),
        (AGENT_PARKED, Unit::Count, "Events that an agent has set aside"),
        (EVENT_LISTENERS, Unit::Count, "Those who listen to events"),
        (WEBHOOK_WAITING, Unit::Count, "Alerts that the webhook has not taken yet"),
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

/// Sets the figures of what monitoring sees, and of its alerts.
pub fn monitor(monitor: &Monitor) {
    let seen = monitor.observe();
    let seconds = |ms: u64| ms as f64 / 1_000.0;
    let flag = |holds: bool| if holds { 1.0 } else { 0.0 };
    gauge!(HEAD_HEIGHT).set(seen.height as f64);
    gauge!(HEAD_AGE).set(seconds(seen.head_age_ms));
    gauge!(IMPORT_AGE).set(seconds(seen.import_age_ms));
    gauge!(MEMPOOL).set(seen.pending as f64);
    gauge!(BEST_HEIGHT).set(seen.sync.best_height as f64);
    gauge!(LAG_BLOCKS).set(seen.sync.lag_blocks as f64);
    gauge!(LAG_SECONDS).set(seen.sync.lag_seconds as f64);
    gauge!(DIVERGED).set(flag(seen.sync.state == SyncState::Diverged));
    gauge!(SYNC_SOURCES_UP).set(seen.sync.standings.get("up").copied().unwrap_or(0) as f64);
    for (standing, count) in &seen.sync.standings {
        gauge!(SYNC_PEERS, "standing" => standing.clone()).set(*count as f64);
    }
    for state in SyncState::ALL {
        gauge!(SYNC_STATE, "state" => state.name()).set(flag(seen.sync.state == state));
    }
    for parked in &seen.agents {
        gauge!(AGENT_PARKED, "agent" => parked.agent.clone()).set(parked.parked as f64);
    }
    for queue in &seen.queues {
        gauge!(QUEUE_DEPTH, "queue" => queue.name).set(queue.depth as f64);
        if let Some(limit) = queue.limit {
            gauge!(QUEUE_LIMIT, "queue" => queue.name).set(limit as f64);
        }
    }
    if let Some(verification) = &seen.verification {
        gauge!(VERIFICATION_AGE).set(seconds(seen.now.ms_since(verification.at)));
        gauge!(STATE_VERIFIED).set(flag(verification.problem.is_none()));
    }
    if let Some(disk) = seen.disk {
        gauge!(DISK_FREE).set(disk.free as f64);
        gauge!(DISK_TOTAL).set(disk.total as f64);
    }
    gauge!(READY).set(flag(readiness(&seen).ready));
    let alerts = monitor.alerts().alerts;
    for rule in rules::RULES {
        for state in ["pending", "firing"] {
            let count = alerts.iter().filter(|alert| alert.name == rule.name && alert.state == state).count();
            gauge!(ALERT, "name" => rule.name, "state" => state).set(count as f64);
        }
    }
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
