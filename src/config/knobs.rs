//! Every knob, once: default, unit, range, meaning.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::Serialize;

use super::given::Content;
use super::section::{Knob, section};
use super::{Given, Problem};
use crate::producer::EmptyBlocks;
use crate::sync::OnDivergence;
use tenon_runtime::journal::JournalConfig;
use tenon_runtime::{Limits, OnFailure, PluginConfig, Probation, Rollout, TrustedKey};

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

section! {
    /// `[chain]`: which chain this is.
    pub struct Chain {
        /// The file that the chain starts from; the same, to the letter, on every node of it.
        genesis: PathBuf = "genesis.json".into();
        /// Blocks that a switch to a better branch may take back. A better branch that leaves ours deeper is refused, and the
        /// node says that it has diverged: then a person has to decide.
        max_reorg_depth: u64 = 256, 0..=crate::storage::UNDO_DEPTH;
    }
}

section! {
    /// `[store]`: where the chain is kept.
    pub struct Store {
        /// The database; beside it lie its write-ahead log and the file of pending transactions.
        path: PathBuf = "data/chain.db".into();
        /// Blocks that are committed in one transaction at most, while catching up.
        group_blocks_max: u64 = 8_000, 1..=1_000_000;
        /// Transactions in the blocks that are committed in one transaction at most.
        group_transactions_max: u64 = 10_000, 1..=10_000_000;
    }
}

section! {
    /// `[mempool]`: transactions that wait for a block.
    pub struct Mempool {
        /// How many may wait; when full, the one with the lowest fee goes.
        transactions_max: u64 = 10_000, 1..=1_000_000;
        /// How many of one sender may wait.
        per_sender_max: u64 = 1_000, 1..=1_000_000;
        /// Milliseconds until one that finds no block is dropped.
        expire_ms: u64 = 3_600_000, 1_000..=604_800_000;
        /// How many dropped ones are remembered, with the reason, for those who ask.
        dropped_max: u64 = 10_000, 0..=1_000_000;
    }
}

section! {
    /// `[rpc]`: what the node serves to everyone.
    pub struct Rpc {
        /// Where to listen; port 0 takes a free one.
        listen: SocketAddr = loopback(8006);
        /// Networks whose callers have the trust level `peer` in the rate limit; a single address is a network.
        peers: Vec<ipnet::IpNet> = Vec::new();
        /// Networks of reverse proxies in front of the node: behind them the caller is the last address in `X-Forwarded-For`
        /// that is no proxy's. Without this, a proxy on the same machine makes every caller loopback.
        proxies: Vec<ipnet::IpNet> = Vec::new();
        /// Connections in all; more wait to be accepted.
        connections_max: u64 = 1_024, 1..=1_000_000;
        /// Connections of one caller that is neither loopback nor a peer; more are closed at once.
        connections_per_client_max: u64 = 128, 1..=1_000_000;
        /// Callers of `/rpc/events` and the WebSockets at a time; each keeps a connection.
        event_streams_max: u64 = 256, 1..=1_000_000;
        /// Milliseconds that a connection may idle, and the head of a request take.
        idle_timeout_ms: u64 = 60_000, 100..=3_600_000;
        /// Milliseconds that requests under way may take when the node stops.
        stop_timeout_ms: u64 = 5_000, 0..=600_000;
        /// What a call of a route costs in the rate limit, where it shall not be what the route table says: `"/rpc/head" = 2`.
        costs: BTreeMap<String, u64> = BTreeMap::new();
    }
}

section! {
    /// `[admin]`: what the node serves to its operator.
    pub struct Admin {
        /// Where to listen; port 0 takes a free one.
        listen: SocketAddr = loopback(8007);
        /// The file with the bearer token that every call must carry.
        token_file: PathBuf = "admin.token".into();
    }
}

section! {
    /// `[producer]`: on an authority, how it makes blocks.
    pub struct Producer {
        /// The keystore file of an authority named in genesis; its password stands in `password` beside it.
        key: PathBuf = "keystore/authority.json".into();
        /// Milliseconds between blocks.
        interval_ms: u64 = 2_000, 1..=3_600_000;
        /// Whether to make a block when nothing is pending: after `heartbeat_ms` ("heartbeat"), "always" or "never".
        empty_blocks: EmptyBlocks = EmptyBlocks::Heartbeat;
        /// Milliseconds after which an empty block is made, so that followers see the chain alive.
        heartbeat_ms: u64 = 60_000, 1..=86_400_000;
    }
}

section! {
    /// `[snapshot]`: which snapshots of its chain the node makes and serves.
    pub struct Snapshots {
        /// The folder that they lie in.
        dir: PathBuf = "data/snapshots".into();
        /// A snapshot of every block whose height is a multiple of this; 0: only when asked for. Nodes with the same number
        /// make the same snapshots, so that others can download from several of them at once.
        every_blocks: u64 = 0, 0..=1_000_000_000;
        /// How many are kept; the oldest go.
        keep: u64 = 2, 1..=100;
        /// Blocks that must follow a snapshot's block before it is made, so that it does not outlive its block on the chain.
        depth: u64 = 16, 0..=1_000;
        /// Whole blocks in a snapshot, counted from its own downwards; below there are headers. 1000000000: all of them.
        blocks: u64 = 1, 1..=1_000_000_000;
    }
}

section! {
    /// `[monitor]`: when the node says of itself that something is wrong, and to whom.
    pub struct Monitor {
        /// Blocks that may be missing while the node still counts as live, and `/ready` answers 200.
        lag_blocks: u64 = 10, 0..=1_000_000;
        /// Seconds without a new block after which a node below its sources is behind, and `/ready` answers 503.
        lag_seconds: u64 = 60, 1..=86_400;
        /// Bytes below which the free space on the disk of the database is an alert; 0: never.
        disk_free_min_bytes: u64 = 1 << 30, 0..=1 << 60;
        /// Seconds that most conditions have to hold before they are alerts; a few, like two chains, are at once.
        alert_seconds: u64 = 30, 0..=86_400;
        /// Seconds that a condition has to be over before its alert is.
        clear_seconds: u64 = 60, 0..=86_400;
        /// A URL that alerts are posted to as JSON when they begin and when they are over; empty: none.
        webhook: String = String::new();
        /// Milliseconds that it may take to answer.
        webhook_timeout_ms: u64 = 10_000, 100..=120_000;
    }
}

section! {
    /// `[plugins]`: where components come from.
    pub struct PluginDirectory {
        /// The folder that is watched for `*.wasm`, with its sub-folders.
        dir: PathBuf = "plugins".into();
        /// Public keys, as `tenon plugin keygen` and minisign print them, whose signatures are accepted. With any, a signature
        /// beside a component, `NAME.wasm.sig`, must be right; without, signatures are ignored.
        trusted_keys: Vec<TrustedKey> = Vec::new();
        /// Whether a component without an accepted signature is refused.
        require_signature: bool = false;
        /// Names of plugins that switch together, in lists: what is new of a list goes live at one instant, or none of it.
        sets: Vec<Vec<String>> = Vec::new();
    }
}

section! {
    /// `[plugins.rate-limit]`, `[plugins.sync]`: who serves a slot.
    pub struct PluginSlot {
        /// The plugin's name, as it describes itself; none: the built-in serves.
        plugin as "use": Option<String> = None;
        /// Who answers when the plugin fails: the built-in ("fallback"), yes ("open") or no ("closed").
        on_failure: OnFailure = OnFailure::Fallback;
        /// What the plugin may use; each limit has a default.
        limits: Limits = Limits::default();
        /// How new bytes or a new configuration of the plugin go live: at once, after a time in the shadow of what serves, or
        /// for a growing share of the callers.
        rollout: Rollout = Rollout::default();
        /// How long a new generation is watched, and what brings the one before back.
        probation: Probation = Probation::default();
        /// Whether, and how, calls are recorded for `tenon plugin replay` and `explain`; none: not at all.
        journal: Option<JournalConfig> = None;
        /// The plugin's own configuration, checked against the schema that it brings.
        config: serde_json::Map<String, serde_json::Value> = serde_json::Map::new();
    }
}

section! {
    /// `[[agents]]`: a wallet of this node that answers messages.
    pub struct Agent {
        /// Its name, 1 to 64 letters, digits, `-` or `_`; its slot is `agent/NAME`.
        name: String = String::new();
        /// The keystore file of its wallet; the password stands in `password` beside it.
        wallet: PathBuf = PathBuf::new();
        /// The plugin that answers; none: the built-in, which keeps messages for later.
        handler: Option<String> = None;
        /// What its replies may cost in fees within an hour.
        max_fee_per_hour: u64 = 1_000;
        /// Who answers when the plugin fails; an agent has only the built-in: "fallback".
        on_failure: OnFailure = OnFailure::Fallback;
        /// What the plugin may use; each limit has a default.
        limits: Limits = Limits::default();
        /// How new bytes or a new configuration of the plugin go live, as for the other slots.
        rollout: Rollout = Rollout::default();
        /// How long a new generation is watched, and what brings the one before back.
        probation: Probation = Probation::default();
        /// Whether, and how, calls are recorded for `tenon plugin replay` and `explain`; none: not at all.
        journal: Option<JournalConfig> = None;
        /// The plugin's own configuration, checked against the schema that it brings.
        config: serde_json::Map<String, serde_json::Value> = serde_json::Map::new();
    }
}

impl PluginSlot {
    /// As the plugin host takes it.
    pub fn plugin_config(&self) -> PluginConfig {
        PluginConfig {
            plugin: self.plugin.clone(),
            settings: self.config.clone().into(),
            on_failure: self.on_failure,
            limits: self.limits.clone(),
            rollout: self.rollout.clone(),
            probation: self.probation.clone(),
            journal: self.journal.clone(),
        }
    }
}

impl Agent {
    /// The name of its slot.
    pub fn slot(&self) -> String {
        format!("agent/{}", self.name)
    }

    /// As the plugin host takes it.
    pub fn plugin_config(&self) -> PluginConfig {
        PluginConfig {
            plugin: self.handler.clone(),
            settings: self.config.clone().into(),
            on_failure: self.on_failure,
            limits: self.limits.clone(),
            rollout: self.rollout.clone(),
            probation: self.probation.clone(),
            journal: self.journal.clone(),
        }
    }
}

impl Knob for EmptyBlocks {
    fn expected() -> String {
        "\"heartbeat\", \"always\" or \"never\"".into()
    }
}

impl Knob for OnDivergence {
    fn expected() -> String {
        "\"halt\", \"reorg\" or \"resync\"".into()
    }
}

impl Knob for OnFailure {
    fn expected() -> String {
        "\"fallback\", \"open\" or \"closed\"".into()
    }
}

impl Knob for Rollout {
    fn expected() -> String {
        "{ mode = \"immediate\" }, { mode = \"shadow\", calls, seconds, max_divergence, max_slowdown } or \
         { mode = \"canary\", steps, calls, seconds, max_slowdown }"
            .into()
    }

    fn check(&self) -> Result<(), String> {
        Self::check(self)
    }
}

impl Knob for JournalConfig {
    fn expected() -> String {
        "{ segments, segment_bytes, buffer_bytes, sample }".into()
    }

    fn check(&self) -> Result<(), String> {
        Self::check(self)
    }
}

impl Knob for Probation {
    fn expected() -> String {
        "{ seconds, failures, max_slowdown }".into()
    }

    fn check(&self) -> Result<(), String> {
        Self::check(self)
    }
}

/// `[plugins]` with its slots.
#[derive(Clone, Debug, PartialEq, Default, Serialize)]
pub struct Plugins {
    /// What holds for all of them.
    #[serde(flatten)]
    pub directory: PluginDirectory,
    /// `[plugins.rate-limit]`
    #[serde(rename = "rate-limit")]
    pub rate_limit: PluginSlot,
    /// `[plugins.sync]`
    pub sync: PluginSlot,
}

impl Plugins {
    pub(super) fn read(given: Option<&Given>, problems: &mut Vec<Problem>) -> Self {
        let directory = PluginDirectory::read(given, "plugins", &["rate-limit", "sync"], problems);
        let mut slot = |name: &str| {
            let given = given.and_then(|plugins| plugins.get(name));
            PluginSlot::read(given, &format!("plugins.{name}"), &[], problems)
        };
        let (rate_limit, sync) = (slot("rate-limit"), slot("sync"));
        Self { directory, rate_limit, sync }
    }
}

pub(super) fn read_agents(given: Option<&Given>, problems: &mut Vec<Problem>) -> Vec<Agent> {
    let Some(given) = given else { return Vec::new() };
    let Content::Array(items) = &given.content else {
        let text = "expected a list: write `[[agents]]`, with two brackets";
        problems.push(Problem::error(&given.origin, "agents", text));
        return Vec::new();
    };
    let mut agents = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let section = format!("agents[{index}]");
        for key in ["name", "wallet"] {
            if item.get(key).is_none() {
                problems.push(Problem::error(&item.origin, &format!("{section}.{key}"), "is missing"));
            }
        }
        agents.push(Agent::read(Some(item), &section, &[], problems));
    }
    agents
}
