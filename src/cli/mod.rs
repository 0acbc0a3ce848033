//! The command line. One file a group of commands; all but `run` and `init` talk to a node over HTTP, like anyone else.

mod agent;
mod chain;
mod config;
mod demo;
mod http;
mod init;
mod output;
mod plugin;
mod replay;
mod run;
mod sign;
mod simulate;
mod sync;
mod transact;
mod wallet;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

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

/// What every command takes.
#[derive(Args)]
struct Global {
    /// The node to talk to [default: the one in --dir where the command has it, else http://127.0.0.1:8006]
    #[arg(long, value_name = "URL", env = "NODE_URL", global = true, hide_env_values = true)]
    node: Option<String>,
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
    #[command(subcommand)]
    Chain(chain::Chain),
    /// Keys, balances, transfers
    Wallet(wallet::Wallet),
    /// Messages on the chain
    Agent(agent::Agent),
    /// How far a node is behind its sources
    #[command(subcommand)]
    Sync(sync::Sync),
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

impl Arguments {
    /// Whether this process becomes a node.
    pub fn is_node(&self) -> bool {
        self.command.is_node()
    }

    /// Carries out the command, and answers the exit code.
    pub async fn run(self) -> u8 {
        match self.outcome().await {
            Ok(Outcome::Done) => 0,
            Ok(Outcome::DoesNotHold) => 1,
            Ok(Outcome::Behind) => 4,
            Err(error) => {
                let text = format!("{error:#}");
                // A configuration's problems bring their own heads, one a line.
                eprintln!("{}{text}", if text.starts_with("error: ") { "" } else { "error: " });
                match error.chain().find_map(|cause| cause.downcast_ref::<ClientError>()) {
                    Some(ClientError::Unreachable { .. }) => 3,
                    Some(ClientError::Address { .. }) => 2,
                    _ if error.chain().any(|cause| cause.is::<UnknownLabel>()) => 2,
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
            Command::Chain(chain) => chain.run(&global.node(None)?, &output).await,
            Command::Wallet(wallet) => wallet.run(&global, &output).await,
            Command::Agent(agent) => agent.run(&global, &output).await,
            Command::Sync(sync) => sync.run(&global.node(None)?, &output).await,
            Command::Plugin(plugin) => plugin.run(&output).await,
            Command::Config(config) => config.run(&output),
        }
    }
}

impl Global {
    /// The node to talk to: the one named, else the one that runs in `dir`, else the usual one.
    fn node(&self, dir: Option<&Path>) -> Result<Node> {
        const DEFAULT: &str = "http://127.0.0.1:8006";
        let of_dir = || dir.and_then(|dir| Some(format!("http://{}", run::Addresses::of(dir)?.rpc)));
        let url = self.node.clone().or_else(of_dir).unwrap_or_else(|| DEFAULT.to_owned());
        Ok(Node::new(&url)?)
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
