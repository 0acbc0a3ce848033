//! `tenon run`: a node until it is told to stop.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use tenon::config::{Config, Severity};
use tenon::node::Node;
use tenon_runtime::PluginConfig;
use tenon_runtime::journal::JournalConfig;

use super::Outcome;
use super::plugin::{Admin, path};

/// The node in a directory.
#[derive(Args)]
pub struct Run {
    /// The node's directory, as `tenon init` writes it
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Stop when standard input ends: for a program that starts a node and must not leave it behind
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

/// Where a running node listens: `data/addresses.json`, there from the moment it serves until it stops.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Addresses {
    /// For everyone.
    pub rpc: SocketAddr,
    /// For the operator.
    pub admin: SocketAddr,
    /// The node's process.
    pub pid: u32,
}

impl Addresses {
    /// Those of the node that runs in `dir`, as far as is known.
    pub fn of(dir: &Path) -> Option<Self> {
        serde_json::from_str(&fs::read_to_string(Self::path(dir)).ok()?).ok()
    }

    fn path(dir: &Path) -> PathBuf {
        dir.join("data/addresses.json")
    }

    /// Puts the file into place in one step: who sees it sees all of it.
    fn write(&self, dir: &Path) -> Result<()> {
        let path = Self::path(dir);
        let unfinished = path.with_extension("json.new");
        let write = || -> std::io::Result<()> {
            fs::create_dir_all(dir.join("data"))?;
            fs::write(&unfinished, serde_json::to_string(self)?)?;
            fs::rename(&unfinished, &path)
        };
        write().with_context(|| format!("writing {}", path.display()))
    }

    fn remove(dir: &Path) {
        // It may not be there, and nothing depends on its being gone.
        let _ = fs::remove_file(Self::path(dir));
    }
}

impl Run {
    pub async fn run(self) -> Result<Outcome> {
        let dir = &self.dir;
        let config = load(dir)?;
        let mut signals = Signals::new(self.stop_with_stdin)?;
        Addresses::remove(dir);
        let node = Node::start(config.clone(), dir).await?;
        let addresses = Addresses { rpc: node.rpc_addr(), admin: node.admin_addr(), pid: std::process::id() };
        let written = addresses.write(dir);
        if written.is_ok() {
            let mut held = Held { slots: slots(&config), config };
            while signals.next().await == Signal::Reload {
                held.reload(dir, &node).await;
            }
            tracing::info!("stopping");
        }
        Addresses::remove(dir);
        // A second signal ends what takes too long; the database is at a committed block at every instant.
        tokio::select! {
            () = node.stop() => {}
            () = signals.stop() => bail!("stopped in haste"),
        }
        written.map(|()| Outcome::Done)
    }
}

/// The configuration, if a node can run with it; warnings go to the log.
fn load(dir: &Path) -> Result<Config> {
    let config = Config::load(dir)?;
    let problems = config.check();
    for problem in problems.iter().filter(|problem| problem.severity == Severity::Warning) {
        tracing::warn!("{problem}");
    }
    let errors: Vec<String> =
        problems.iter().filter(|problem| problem.severity == Severity::Error).map(ToString::to_string).collect();
    if !errors.is_empty() {
        bail!("the configuration does not hold:\n{}", errors.join("\n"));
    }
    Ok(config)
}

/// What a running node goes by.
struct Held {
    /// As it was read last.
    config: Config,
    /// What it holds for its slots: what it was told and took.
    slots: Vec<SlotChoice>,
}

impl Held {
    /// Takes over what can change while the node runs: who serves a slot, and its configuration.
    async fn reload(&mut self, dir: &Path, node: &Node) {
        let new = match load(dir) {
            Ok(new) => new,
            Err(error) => {
                tracing::error!("configuration not taken over: {error:#}");
                return;
            }
        };
        let later = differing(&without_slots(&self.config), &without_slots(&new));
        if !later.is_empty() {
            tracing::warn!(
                knobs = later.join(", "),
                "these knobs changed, and hold from the next start on; live are `use`, `handler`, `config` and `journal` of slots"
            );
        }
        for slot in slots(&new) {
            let Some(held) = self.slots.iter_mut().find(|held| held.name == slot.name) else { continue };
            let was_same = *held == slot;
            let applied = slot.apply(dir, held).await;
            let refusal = applied.as_ref().err().map(|error| format!("tenon.toml is not taken over: {error:#}"));
            // An error means that the node stops.
            let _ = node.host().wanted_in_vain(&slot.name, refusal);
            match applied {
                Ok(()) if was_same => {}
                Ok(()) => tracing::info!(slot = slot.name, plugin = slot.plugin, "configuration taken over"),
                Err(error) => tracing::error!(slot = slot.name, "configuration not taken over: {error:#}"),
            }
        }
        self.config = new;
    }
}

/// What a slot is to be served by, and whether its calls are recorded.
#[derive(PartialEq)]
struct SlotChoice {
    name: String,
    plugin: Option<String>,
    /// None: not known to be what the file says.
    config: Option<Map<String, Value>>,
    journal: Option<JournalConfig>,
}

impl SlotChoice {
    /// Tells the node what is not as it holds it, through its own admin API, as an operator would. What it takes of that
    /// it holds from then on, so that the rest is tried again the next time.
    async fn apply(&self, dir: &Path, held: &mut Self) -> Result<()> {
        if *self == *held {
            return Ok(());
        }
        let node = Admin::of(dir).node()?;
        if self.journal != held.journal {
            let mut recording = self.journal.as_ref().map_or_else(|| json!({}), |journal| json!(journal));
            recording["recording"] = self.journal.is_some().into();
            node.post(&path(&self.name, "journal"), &recording).await?;
            held.journal.clone_from(&self.journal);
        }
        if self.plugin != held.plugin {
            node.post(&path(&self.name, "use"), &json!({ "plugin": self.plugin })).await?;
            held.plugin.clone_from(&self.plugin);
            // A plugin begins with what it had last in the slot.
            if self.plugin.is_some() {
                held.config = None;
            }
        }
        if self.config != held.config {
            node.post(&path(&self.name, "config"), &json!(self.config)).await?;
            held.config.clone_from(&self.config);
        }
        Ok(())
    }
}

fn slots(config: &Config) -> Vec<SlotChoice> {
    let slot = |name: String, PluginConfig { plugin, settings, journal, .. }: PluginConfig| {
        let config = Some(settings.as_object().cloned().unwrap_or_default());
        SlotChoice { name, plugin, config, journal }
    };
    let plugins = &config.plugins;
    let mut slots = vec![
        slot("rate-limit".to_owned(), plugins.rate_limit.plugin_config()),
        slot("sync".to_owned(), plugins.sync.plugin_config()),
    ];
    slots.extend(config.agents.iter().map(|agent| slot(agent.slot(), agent.plugin_config())));
    slots
}

/// A configuration less what can change live.
fn without_slots(config: &Config) -> Config {
    let mut rest = config.clone();
    for slot in [&mut rest.plugins.rate_limit, &mut rest.plugins.sync] {
        (slot.plugin, slot.config, slot.journal) = (None, Map::new(), None);
    }
    for agent in &mut rest.agents {
        (agent.handler, agent.config, agent.journal) = (None, Map::new(), None);
    }
    rest
}

/// The knobs in which two configurations differ; a section that one of them lacks is named as a whole, and so is the
/// list of agents.
fn differing(old: &Config, new: &Config) -> Vec<String> {
    fn differ(path: &str, old: Option<&Value>, new: Option<&Value>, found: &mut Vec<String>) {
        match (old, new) {
            (Some(Value::Object(old)), Some(Value::Object(new))) => {
                let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
                for name in names {
                    let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    differ(&below, old.get(name), new.get(name), found);
                }
            }
            (old, new) if old == new => {}
            _ => found.push(path.to_owned()),
        }
    }
    let mut found = Vec::new();
    let (before, after) = (json!(old), json!(new));
    differ("", Some(&before), Some(&after), &mut found);
    if found.is_empty() && old != new {
        found.push("one that is not shown".to_owned());
    }
    found
}

/// What the operator wants.
#[derive(PartialEq)]
enum Signal {
    /// SIGINT, SIGTERM, or the end of standard input where that counts.
    Stop,
    /// SIGHUP.
    Reload,
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
    stdin: Option<oneshot::Receiver<()>>,
}

#[cfg(unix)]
impl Signals {
    fn new(with_stdin: bool) -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            stdin: with_stdin.then(stdin_end).transpose()?,
        })
    }

    async fn next(&mut self) -> Signal {
        let end = async {
            match &mut self.stdin {
                // An error means that the thread is gone, which it is only at the end.
                Some(stdin) => drop(stdin.await),
                None => std::future::pending().await,
            }
        };
        let signal = tokio::select! {
            _ = self.interrupt.recv() => Signal::Stop,
            _ = self.terminate.recv() => Signal::Stop,
            _ = self.hang_up.recv() => Signal::Reload,
            () = end => Signal::Stop,
        };
        if signal == Signal::Stop {
            // It ends but once; a second stop has to be a signal.
            self.stdin = None;
        }
        signal
    }

    async fn stop(&mut self) {
        while self.next().await != Signal::Stop {}
    }
}

/// Resolves when standard input ends.
fn stdin_end() -> Result<oneshot::Receiver<()>> {
    let (sender, receiver) = oneshot::channel();
    // A thread of its own: the runtime would wait for a blocked read when it shuts down.
    std::thread::Builder::new().name("tenon-stdin".into()).spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock().by_ref(), &mut std::io::sink());
        let _ = sender.send(());
    })?;
    Ok(receiver)
}
