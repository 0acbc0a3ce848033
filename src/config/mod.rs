//! The node's configuration: `tenon.toml`, with `TENON_…` variables laid over it.
//!
//! [`Config::load`] reads and says everything that is wrong at once, each with its place; [`Config::check`] looks at what
//! only shows when knobs, files and keys are seen together. Who gets a `Config` trusts it.

mod check;
mod given;
mod knobs;
mod limits;
pub(crate) mod section;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::p2p::P2pConfig;
use crate::sync::SyncConfig;

pub use given::{Content, Given, Origin};
pub use knobs::{Admin, Agent, Chain, Mempool, Monitor, PluginSlot, Plugins, Producer, Rpc, Snapshots, Store};
pub(crate) use section::section;
pub use section::{Key, Knob};
pub use tenon_runtime::OnFailure;

/// The file's name in a node's directory.
pub const FILE: &str = "tenon.toml";

/// Variables that start with `TENON_` and are no knobs: where the shipped plugins are, what the log looks like, and the
/// password of a signing key.
const OTHER_VARIABLES: [&str; 4] = ["TENON_PLUGINS", "TENON_LOG", "TENON_LOG_FORMAT", "TENON_KEY_PASSWORD"];

/// Everything an operator decides.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Config {
    /// `[chain]`
    pub chain: Chain,
    /// `[store]`
    pub store: Store,
    /// `[mempool]`
    pub mempool: Mempool,
    /// `[rpc]`
    pub rpc: Rpc,
    /// `[admin]`
    pub admin: Admin,
    /// `[producer]`; absent on a node that makes no blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub producer: Option<Producer>,
    /// `[sync]`
    pub sync: SyncConfig,
    /// `[p2p]`; absent on a node that is connected with nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p2p: Option<P2pConfig>,
    /// `[snapshot]`
    pub snapshot: Snapshots,
    /// `[monitor]`
    pub monitor: Monitor,
    /// `[plugins]`
    pub plugins: Plugins,
    /// `[[agents]]`
    pub agents: Vec<Agent>,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The node starts, but probably not as meant.
    Warning,
    /// The node does not start, or one of its plugins does not.
    Error,
}

/// Something that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// Where it was given.
    pub origin: Origin,
    /// Which knob.
    pub key: String,
    /// What is wrong.
    pub text: String,
}

impl Problem {
    fn error(origin: &Origin, key: &str, text: impl Into<String>) -> Self {
        Self { severity: Severity::Error, origin: origin.clone(), key: key.to_owned(), text: text.into() }
    }

    /// One that shows when files are looked at, and not in the text.
    pub(crate) fn found(key: &str, text: impl Into<String>) -> Self {
        Self::error(&Origin::Default, key, text)
    }

    pub(crate) fn warning(key: &str, text: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, origin: Origin::Default, key: key.to_owned(), text: text.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let Self { origin, key, text, .. } = self;
        if key.is_empty() {
            write!(f, "{severity}: {origin}: {text}")
        } else {
            write!(f, "{severity}: {origin}: {key}: {text}")
        }
    }
}

impl Serialize for Problem {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut fields = serializer.serialize_struct("Problem", 4)?;
        fields.serialize_field("severity", &self.severity)?;
        fields.serialize_field("origin", &self.origin.to_string())?;
        fields.serialize_field("key", &self.key)?;
        fields.serialize_field("text", &self.text)?;
        fields.end()
    }
}

/// Why a configuration cannot be used: every problem there is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<Problem>);

impl Config {
    /// Reads `tenon.toml` in `dir` and the environment; relative paths become ones below `dir`.
    ///
    /// Errors: the file cannot be read, or a knob is unknown, of the wrong type or out of range; all of them at once.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join(FILE);
        let text = std::fs::read_to_string(&path).map_err(|error| {
            let text = format!("cannot read {}: {error}; `tenon init` writes one", path.display());
            ConfigError(vec![Problem::error(&Origin::Default, "", text)])
        })?;
        let variables = std::env::vars().filter(|(name, _)| name.starts_with("TENON_"));
        Self::parse(&text, variables, dir)
    }

    /// Reads a configuration from the text of the file and the variables of the environment, both given.
    pub fn parse(
        text: &str,
        variables: impl IntoIterator<Item = (String, String)>,
        dir: &Path,
    ) -> Result<Self, ConfigError> {
        let mut given = Given::parse(text).map_err(|(line, text)| {
            let text = text.lines().collect::<Vec<_>>().join(", ");
            ConfigError(vec![Problem::error(&Origin::Line(line), "", text)])
        })?;
        let mut problems = Vec::new();
        for (name, value) in variables {
            overlay(&mut given, &name, value, &mut problems);
        }
        let mut config = Self::read(&given, &mut problems);
        config.resolve(dir);
        problems.sort_by_key(|problem| match problem.origin {
            Origin::Line(line) => line,
            _ => usize::MAX,
        });
        if problems.iter().any(|problem| problem.severity == Severity::Error) {
            return Err(ConfigError(problems));
        }
        Ok(config)
    }

    /// What is wrong when everything is seen together, files and keys included; the worst first. Empty: all is well.
    pub fn check(&self) -> Vec<Problem> {
        check::check(self)
    }

    /// Every knob there is, for `tenon config keys` and for the tests of the documentation.
    pub fn keys() -> Vec<Key> {
        [
            Chain::keys("chain"),
            Store::keys("store"),
            Mempool::keys("mempool"),
            Rpc::keys("rpc"),
            Admin::keys("admin"),
            Producer::keys("producer"),
            SyncConfig::keys("sync"),
            P2pConfig::keys("p2p"),
            Snapshots::keys("snapshot"),
            Monitor::keys("monitor"),
            knobs::PluginDirectory::keys("plugins"),
            PluginSlot::keys("plugins.rate-limit"),
            PluginSlot::keys("plugins.sync"),
            Agent::keys("agents"),
        ]
        .concat()
    }

    fn resolve(&mut self, dir: &Path) {
        self.chain.resolve(dir);
        self.store.resolve(dir);
        self.mempool.resolve(dir);
        self.rpc.resolve(dir);
        self.admin.resolve(dir);
        self.sync.resolve(dir);
        self.snapshot.resolve(dir);
        self.monitor.resolve(dir);
        self.plugins.directory.resolve(dir);
        self.plugins.rate_limit.resolve(dir);
        self.plugins.sync.resolve(dir);
        if let Some(producer) = &mut self.producer {
            producer.resolve(dir);
        }
        if let Some(p2p) = &mut self.p2p {
            p2p.resolve(dir);
        }
        for agent in &mut self.agents {
            agent.resolve(dir);
        }
    }

    fn read(given: &Given, problems: &mut Vec<Problem>) -> Self {
        const SECTIONS: [&str; 12] = [
            "chain", "store", "mempool", "rpc", "admin", "producer", "sync", "p2p", "snapshot", "monitor", "plugins",
            "agents",
        ];
        section::unknown(given, "", &SECTIONS, &[], problems);
        Self {
            chain: Chain::read(given.get("chain"), "chain", &[], problems),
            store: Store::read(given.get("store"), "store", &[], problems),
            mempool: Mempool::read(given.get("mempool"), "mempool", &[], problems),
            rpc: Rpc::read(given.get("rpc"), "rpc", &[], problems),
            admin: Admin::read(given.get("admin"), "admin", &[], problems),
            producer: given.get("producer").map(|producer| Producer::read(Some(producer), "producer", &[], problems)),
            sync: SyncConfig::read(given.get("sync"), "sync", &[], problems),
            p2p: given.get("p2p").map(|p2p| P2pConfig::read(Some(p2p), "p2p", &[], problems)),
            snapshot: Snapshots::read(given.get("snapshot"), "snapshot", &[], problems),
            monitor: Monitor::read(given.get("monitor"), "monitor", &[], problems),
            plugins: Plugins::read(given.get("plugins"), problems),
            agents: knobs::read_agents(given.get("agents"), problems),
        }
    }
}

/// Lays one variable over what the file says: `TENON_RPC_LISTEN` over `rpc.listen`.
fn overlay(given: &mut Given, name: &str, value: String, problems: &mut Vec<Problem>) {
    if OTHER_VARIABLES.contains(&name) {
        return;
    }
    let variable = |key: &Key| format!("TENON_{}", key.name.replace(['.', '-'], "_").to_uppercase());
    // Agents are a list; which of them a variable meant could not be told.
    let keys: Vec<Key> = Config::keys().into_iter().filter(|key| !key.name.starts_with("agents.")).collect();
    let origin = Origin::Variable(name.to_owned());
    if let Some(key) = keys.iter().find(|key| variable(key) == name) {
        let path: Vec<&str> = key.name.split('.').collect();
        given.set(&path, Given { origin, content: Content::Untyped(value) });
        return;
    }
    let variables: Vec<String> = keys.iter().map(variable).collect();
    let mut problem = section::unknown_key(&origin, "", name, variables.iter().map(String::as_str));
    problem.key.clear(); // it would be the variable's name again
    problem.text = problem.text.replace("unknown key", "no knob has this variable");
    problems.push(problem);
}

/// The file called `name` in the folder of `path`.
pub fn beside(path: &Path, name: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(name)
}

#[cfg(test)]
mod tests;
