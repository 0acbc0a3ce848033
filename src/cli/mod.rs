//! The command line. One file a group of commands; all but `run` and `init` talk to a node over HTTP, like anyone else.

mod agent;
mod chain;
mod config;
mod db;
mod demo;
mod http;
mod init;
mod output;
mod p2p;
mod plugin;
mod replay;
mod run;
mod sign;
mod simulate;
mod snapshot;
mod state;
mod sync;
mod transact;
mod wallet;
mod watch;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use tenon::chain::Genesis;
use tenon::config::{Config as Configuration, FILE};

use tenon_runtime::replay::UnknownLabel;

use http::{ClientError, Node};
use output::{Format, Output};

/// A chain node whose policies are hot-swappable WebAssembly components.
///
/// Exit codes: 0 done, 1 failed, 2 usage, 3 node unreachable, 4 behind or diverged.
#[derive(Parser)]
#[command(name = "tenon", version, max_term_width = 120)]
pub struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// An error with its causes, each told once: many repeat the one below them.
fn told(error: &anyhow::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let is_said = |said: &String| said.contains(&text) || text.ends_with(said.as_str());
        if texts.is_empty() {
            texts.push(text);
        } else if !texts.iter().any(is_said) {
            texts.push(text.strip_prefix("error: ").map_or(text.clone(), str::to_owned));
        }
    }
    texts.join(": ")
}

/// What every command takes.
#[derive(Args)]
struct Global {
    /// The node to talk to; `sync watch` takes several [default: the one in --dir, else http://127.0.0.1:8006]
    #[arg(long, value_name = "URL", env = "NODE_URL", global = true, hide_env_values = true, value_delimiter = ',')]
    node: Vec<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table, global = true)]
    output: Format,
}

#[derive(Subcommand)]
enum Command {
    /// Writes a new node's directory: configuration, genesis, keys, plugins
    Init(init::Init),
    /// Runs the node in a directory
    Run(run::Run),
    /// Shows it all at work: two nodes, a catch-up, plugins swapped on the way, a ping and its answer
    Demo(demo::Demo),
    /// Blocks and transactions
    Chain(chain::Chain),
    /// Keys, balances, transfers
    Wallet(wallet::Wallet),
    /// Messages on the chain; the agents that answer them
    Agent(agent::Agent),
    /// How far a node is behind its sources
    Sync(sync::Sync),
    /// Connections to other nodes
    P2p(p2p::P2p),
    /// Snapshots of a chain: what a new node can begin with
    #[command(subcommand)]
    Snapshot(snapshot::Snapshot),
    /// The database of a node: backups, checks, repair
    #[command(subcommand)]
    Db(db::Db),
    /// Components: build, check, sign, replay, simulate, list, swap
    Plugin(plugin::Plugin),
    /// The configuration file
    #[command(subcommand)]
    Config(config::Config),
}

/// How a command ended, where it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// As asked.
    Done,
    /// It ran, and what it looked at does not hold; it has said so.
    DoesNotHold,
    /// The node is behind or diverged.
    Behind,
}

impl Command {
    /// Whether the command is a node, whose log belongs on the terminal.
    fn is_node(&self) -> bool {
        matches!(self, Self::Run(_))
    }
}

/// Options that a command's group takes, or every command, and that it has no use for itself: its help does not show
/// them. A command is named by its path; what holds for a group holds for all that is in it.
const IDLE: [(&[&str], &[&str]); 13] = [
    (&["init"], &["node"]),
    (&["run"], &["node", "output"]),
    (&["demo"], &["node"]),
    (&["snapshot"], &["node"]),
    (&["db"], &["node"]),
    (&["plugin"], &["node"]),
    (&["config"], &["node"]),
    (&["p2p", "id"], &["node"]),
    (&["plugin", "build"], &["dir", "admin", "token"]),
    (&["plugin", "check"], &["dir", "admin", "token"]),
    (&["plugin", "keygen"], &["dir", "admin", "token"]),
    (&["plugin", "sign"], &["dir", "admin", "token"]),
    (&["plugin", "verify"], &["dir", "admin", "token"]),
];

/// Hides `options` in the help of `command` and of all below it.
fn hide(command: &mut clap::Command, options: &[&str]) {
    let idle = |option: clap::Arg| {
        let is_idle = options.contains(&option.get_id().as_str());
        if is_idle { option.hide(true) } else { option }
    };
    *command = std::mem::take(command).mut_args(idle);
    command.get_subcommands_mut().for_each(|command| hide(command, options));
}

impl Arguments {
    /// Reads the command line. One that makes no sense, or asks for help, ends the process.
    pub fn read() -> Self {
        let mut command = Self::command();
        // Hands the options of a group to each command of it.
        command.build();
        for (path, options) in IDLE {
            let found = path.iter().try_fold(&mut command, |command, name| command.find_subcommand_mut(name));
            hide(found.expect("a command is where it is named"), options);
        }
        let read = Self::from_arg_matches(&command.get_matches_mut());
        read.unwrap_or_else(|error| error.format(&mut command).exit())
    }

    /// Whether this process becomes a node.
    pub fn is_node(&self) -> bool {
        self.command.is_node()
    }

    /// Carries out the command, and answers the exit code.
    pub async fn run(self) -> u8 {
        let is_node = self.is_node();
        match self.outcome().await {
            Ok(Outcome::Done) => 0,
            Ok(Outcome::DoesNotHold) => 1,
            Ok(Outcome::Behind) => 4,
            Err(error) => {
                let text = told(&error);
                if is_node && tracing::enabled!(tracing::Level::ERROR) {
                    // In the log's form, for whoever reads the log.
                    tracing::error!("{text}");
                } else {
                    // A configuration's problems bring their own heads, one a line.
                    eprintln!("{}{text}", if text.starts_with("error: ") { "" } else { "error: " });
                }
                match error.chain().find_map(|cause| cause.downcast_ref::<ClientError>()) {
                    Some(ClientError::Unreachable { .. }) => 3,
                    Some(ClientError::Address { .. }) => 2,
                    _ if error.chain().any(|cause| cause.is::<UnknownLabel>() || cause.is::<SeveralNodes>()) => 2,
                    _ => 1,
                }
            }
        }
    }

    async fn outcome(self) -> Result<Outcome> {
        let Self { global, command } = self;
        let output = Output::new(global.output);
        match command {
            Command::Init(init) => init.run(&output).await,
            Command::Run(run) => run.run().await,
            Command::Demo(demo) => demo.run(&output).await,
            Command::Chain(chain) => chain.run(&global, &output).await,
            Command::Wallet(wallet) => wallet.run(&global, &output).await,
            Command::Agent(agent) => agent.run(&global, &output).await,
            Command::Snapshot(snapshot) => snapshot.run(&output).await,
            Command::Db(db) => db.run(&output).await,
            Command::Sync(sync) => sync.run(&global, &output).await,
            Command::P2p(p2p) => p2p.run(&global, &output).await,
            Command::Plugin(plugin) => plugin.run(&output).await,
            Command::Config(config) => config.run(&output),
        }
    }
}

impl Global {
    /// The node to talk to: the one named, else that of `dir`, else the usual one. Errors: several are named.
    fn node(&self, dir: &Path) -> Result<Node> {
        match &self.node[..] {
            [] => Ok(Node::new(&url_of(dir)?)?),
            [url] => Ok(Node::new(url)?),
            several => Err(SeveralNodes(several.len()).into()),
        }
    }

    /// The nodes to talk to, each once.
    fn nodes(&self, dir: &Path) -> Result<Vec<Node>> {
        let mut nodes: Vec<Node> = Vec::new();
        let urls = if self.node.is_empty() { vec![url_of(dir)?] } else { self.node.clone() };
        for url in &urls {
            let node = Node::new(url)?;
            if !nodes.iter().any(|known| known.url() == node.url()) {
                nodes.push(node);
            }
        }
        Ok(nodes)
    }
}

/// Where the node of `dir` is: where it listens now, else where its configuration says; the usual place where `dir` is
/// no node's directory. Errors: its configuration does not say.
fn url_of(dir: &Path) -> Result<String> {
    let at = match run::Addresses::of(dir) {
        Some(addresses) => addresses.rpc,
        None if dir.join(FILE).is_file() => Configuration::load(dir)?.rpc.listen,
        None => return Ok(DEFAULT_NODE.to_owned()),
    };
    // Every address of the machine: any one will do.
    let any = at.ip().is_unspecified();
    Ok(if any { format!("http://127.0.0.1:{}", at.port()) } else { format!("http://{at}") })
}

/// The node that is asked, by its directory.
#[derive(Args)]
struct At {
    /// The directory of the node that is meant [default: .]
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
}

impl At {
    /// Errors: a directory is named that is no node's.
    fn dir(&self) -> Result<&Path> {
        let Some(dir) = &self.dir else { return Ok(Path::new(".")) };
        if !dir.join(FILE).is_file() {
            bail!("{} is no node's directory: it has no {FILE}", dir.display());
        }
        Ok(dir)
    }
}

/// The node that is talked to where none is named.
const DEFAULT_NODE: &str = "http://127.0.0.1:8006";

/// More nodes than a command can talk to.
#[derive(Debug, thiserror::Error)]
#[error("this command talks to one node, and {0} are named; only `sync watch` takes several")]
struct SeveralNodes(usize);

/// Resolves when the process is told to stop: Ctrl-C, or a service manager.
#[cfg(unix)]
async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let told = async |kind| match signal(kind) {
        Ok(mut signal) => drop(signal.recv().await),
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = told(SignalKind::interrupt()) => {}
        () = told(SignalKind::terminate()) => {}
    }
}

/// Resolves when the process is told to stop: Ctrl-C.
#[cfg(not(unix))]
async fn told_to_stop() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}

/// Bytes of a component at most: what is larger is something else.
const COMPONENT_MAX_BYTES: u64 = 256 << 20;

/// Reads a component. Errors: it is not there, no regular file, or larger than a component can be; nobody waits.
fn component(path: &Path) -> Result<Vec<u8>> {
    let reading = || format!("reading {}", path.display());
    let about = std::fs::metadata(path).with_context(reading)?;
    // A pipe would be waited for, for as long as nobody writes.
    if !about.is_file() {
        bail!("{} is no regular file", path.display());
    }
    if about.len() > COMPONENT_MAX_BYTES {
        bail!("{} has {} bytes; a component has at most {COMPONENT_MAX_BYTES}", path.display(), about.len());
    }
    std::fs::read(path).with_context(reading)
}

/// A node's directory, for commands that work on its files.
struct Local {
    config: Configuration,
    genesis: Genesis,
}

impl Local {
    /// Reads configuration and genesis. Errors: `dir` is no node's directory.
    fn open(dir: &Path) -> Result<Self> {
        let config = Configuration::load(dir)?;
        let path = &config.chain.genesis;
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let genesis = Genesis::parse(&text).with_context(|| path.display().to_string())?;
        Ok(Self { config, genesis })
    }
}

/// Where a node's directory, keys and password are.
#[derive(Args)]
struct Keys {
    /// The node's directory, whose keystore is used
    #[arg(long, default_value = ".", global = true)]
    dir: PathBuf,
    /// Another keystore folder
    #[arg(long, value_name = "DIR", global = true)]
    keystore: Option<PathBuf>,
    /// The file with the keys' password [default: `password` in the keystore folder]
    #[arg(long, value_name = "FILE", global = true)]
    password_file: Option<PathBuf>,
}
