//! `tenon init`: a node's directory, complete and checked, or nothing.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{ArgGroup, Args};
use serde_json::{Value, json};

use tenon::chain::{Address, Allocation, Authority, Genesis, Hash, NonceRule, Time, format};
use tenon::config::{self, Config, Severity};
use tenon::wallet::{PASSWORD_FILE, Wallet, create_password};

use super::http::Node;
use super::output::Output;
use super::{Outcome, plugin};

/// What `alice` and `bob` have at first.
const BALANCE: u64 = 1_000_000_000;

/// A new node's directory.
#[derive(Args)]
#[command(group(ArgGroup::new("chain").required(true).args(["authority", "follow"])))]
pub struct Init {
    /// The directory to write; it must be empty or not there
    #[arg(long)]
    dir: PathBuf,
    /// Begin a new chain, whose blocks this node makes
    #[arg(long)]
    authority: bool,
    /// The new chain's name [default: tenon- and six random digits]
    #[arg(long, value_name = "ID", requires = "authority", conflicts_with = "follow", value_parser = chain_id)]
    chain_id: Option<String>,
    /// Follow the chain of the node at this URL
    #[arg(long, value_name = "URL")]
    follow: Option<String>,
    /// The hash that block 0 must have
    #[arg(long, value_name = "HASH", requires = "follow", conflicts_with = "authority")]
    genesis_hash: Option<Hash>,
    /// Where the node listens for everyone
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8006")]
    rpc_listen: SocketAddr,
    /// Where the node listens for its operator
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8007")]
    admin_listen: SocketAddr,
}

/// The name of a new chain: people read it, and type it. Chains that have another one are followed all the same.
fn chain_id(text: &str) -> Result<String, String> {
    match text.chars().find(|letter| letter.is_control()) {
        _ if text.trim() != text => Err("it begins or ends with a space".to_owned()),
        Some(letter) => Err(format!("{letter:?} is a control character")),
        None if text.is_empty() || text.len() > 64 => Err(format!("1 to 64 bytes, got {}", text.len())),
        None => Ok(text.to_owned()),
    }
}

/// A node's directory as it will be written.
pub struct Plan {
    /// The chain.
    pub chain: Origin,
    /// `rpc.listen`.
    pub rpc_listen: SocketAddr,
    /// `admin.listen`.
    pub admin_listen: SocketAddr,
    /// Lines for the end of `tenon.toml`.
    pub more: String,
}

/// Where the chain of a new node comes from.
pub enum Origin {
    /// Begun here.
    New {
        /// Its name.
        chain_id: String,
        /// When block 0 was made.
        timestamp: Time,
        /// Accounts beside `alice` and `bob`.
        allocations: Vec<Allocation>,
    },
    /// Another node's.
    Follow {
        /// Its genesis, checked.
        genesis: Box<Genesis>,
        /// That node.
        source: String,
    },
}

/// What was written.
pub struct Written {
    /// Block 0's hash, which names the chain.
    pub genesis_hash: Hash,
    /// The chain's name.
    pub chain_id: String,
    /// The wallets made.
    pub wallets: Vec<(String, Address)>,
    /// The plugins copied.
    pub plugins: Vec<String>,
}

impl Init {
    pub async fn run(self, output: &Output) -> Result<Outcome> {
        let dir = self.dir.clone();
        refuse_used(&dir)?;
        let chain = match &self.follow {
            None => Origin::New {
                chain_id: self.chain_id.clone().unwrap_or_else(|| format!("tenon-{:06x}", rand::random::<u32>() >> 8)),
                // Whole seconds: people read it.
                timestamp: Time(Time::now().0 / 1_000_000 * 1_000_000),
                allocations: Vec::new(),
            },
            Some(url) => {
                let source = Node::new(url)?.named_by("`--follow URL`");
                let genesis = Box::new(trusted_genesis(&source, self.genesis_hash).await?);
                Origin::Follow { genesis, source: source.url().to_owned() }
            }
        };
        let plan = Plan { chain, rpc_listen: self.rpc_listen, admin_listen: self.admin_listen, more: String::new() };
        let written = plan.write(&dir)?;
        report(&dir, self.follow.as_deref(), &written, output);
        Ok(Outcome::Done)
    }
}

fn report(dir: &Path, follow: Option<&str>, written: &Written, output: &Output) {
    if output.is_json() {
        let wallets: serde_json::Map<String, Value> =
            written.wallets.iter().map(|(name, address)| (name.clone(), json!(address))).collect();
        return output.json(&json!({
            "dir": dir, "chain_id": written.chain_id, "genesis_hash": written.genesis_hash,
            "wallets": wallets, "plugins": written.plugins,
        }));
    }
    let kind = match follow {
        Some(url) => format!("follows {url}"),
        None => "begins the chain and makes its blocks".to_owned(),
    };
    output.line(format!("wrote {}, a node that {kind}", dir.display()));
    output.line("  tenon.toml    its configuration; `tenon config check` looks it over");
    output.line(format!("  genesis.json  chain `{}`", written.chain_id));
    output.line("  admin.token   what its operator shows to the admin API");
    let wallets: Vec<String> = written.wallets.iter().map(|(name, address)| format!("{name} {address}")).collect();
    let wallets = if wallets.is_empty() { "no keys yet".to_owned() } else { wallets.join("\n                ") };
    output.line(format!("  keystore/     {wallets}"));
    let plugins = if written.plugins.is_empty() { "none found".to_owned() } else { written.plugins.join(", ") };
    output.line(format!("  plugins/      {plugins}"));
    let trust = if follow.is_some() { "it trusts the genesis" } else { "its genesis is" };
    output.line(format!("{trust} {}", written.genesis_hash));
    output.line(format!("start it with: tenon run --dir {}", dir.display()));
}

/// The genesis that `source` serves. Errors: it does not make the block 0 that `source` serves, or not the one `expected`.
pub async fn trusted_genesis(source: &Node, expected: Option<Hash>) -> Result<Genesis> {
    let url = source.url();
    let text = source.text("/rpc/genesis").await?;
    let genesis = Genesis::parse(&text).with_context(|| format!("the genesis that {url} serves"))?;
    let hash = genesis.block().hash();
    let block = source.get("/rpc/blocks/0").await?;
    let served = block.get("hash").and_then(Value::as_str).unwrap_or_default();
    ensure!(served == hash.to_string(), "{url} serves a genesis with hash {hash}, but its block 0 has {served}");
    if let Some(expected) = expected {
        ensure!(expected == hash, "{url} is on another chain: block 0 is {hash}, expected {expected}");
    }
    Ok(genesis)
}

fn refuse_used(dir: &Path) -> Result<()> {
    match fs::read_dir(dir) {
        Ok(mut entries) => {
            ensure!(entries.next().is_none(), "{} is not empty; nothing was written", dir.display());
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("reading {}", dir.display())),
    }
}

impl Plan {
    /// Writes all of it to `dir`, which must be empty or not there. Errors: nothing is written.
    pub fn write(&self, dir: &Path) -> Result<Written> {
        refuse_used(dir)?;
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        // Built beside its place and renamed into it, so that a failure leaves no half of a node behind.
        let stage = tempfile::Builder::new().prefix(".tenon-init-").tempdir_in(parent).context("creating a folder")?;
        let written = self.write_files(stage.path())?;
        self.check(stage.path())?;
        let stage = stage.keep();
        fs::rename(&stage, dir)
            .inspect_err(|_| drop(fs::remove_dir_all(&stage)))
            .with_context(|| format!("creating {}", dir.display()))?;
        Ok(written)
    }

    fn write_files(&self, dir: &Path) -> Result<Written> {
        let keystore = dir.join("keystore");
        for folder in ["data", "plugins"] {
            fs::create_dir(dir.join(folder))?;
        }
        let password = create_password(&keystore.join(PASSWORD_FILE))?;
        let mut wallets = Vec::new();
        let genesis = match &self.chain {
            Origin::Follow { genesis, .. } => genesis.as_ref().clone(),
            Origin::New { chain_id, timestamp, allocations } => {
                let [authority, alice, bob] = ["authority", "alice", "bob"]
                    .map(|name| Wallet::create(&keystore, name, &password).map(|wallet| (name.to_owned(), wallet)));
                let (authority, alice, bob) = (authority?, alice?, bob?);
                let funded = |(_, wallet): &(String, Wallet)| Allocation { address: wallet.address, balance: BALANCE };
                let genesis = Genesis {
                    format: format::NAME.into(),
                    chain_id: chain_id.clone(),
                    timestamp: *timestamp,
                    slot_ms: 2_000,
                    min_fee: 1,
                    fee_recipient: None,
                    nonce_rule: NonceRule::Increasing,
                    block_txs_max: 2_000,
                    block_bytes_max: 4 << 20,
                    authorities: vec![Authority {
                        address: authority.1.address,
                        public_key: authority.1.key.public_key(),
                    }],
                    allocations: [funded(&alice), funded(&bob)].into_iter().chain(allocations.clone()).collect(),
                };
                genesis.check()?;
                wallets.extend([authority, alice, bob].map(|(name, wallet)| (name, wallet.address)));
                genesis
            }
        };
        fs::write(dir.join("genesis.json"), genesis.to_json() + "\n")?;
        let token = const_hex::encode(rand::random::<[u8; 32]>());
        write_private(&dir.join("admin.token"), token.as_bytes())?;
        fs::write(dir.join(config::FILE), self.configuration())?;
        let plugins = plugin::copy_shipped(&dir.join("plugins"))?;
        Ok(Written { genesis_hash: genesis.block().hash(), chain_id: genesis.chain_id, wallets, plugins })
    }

    /// `tenon.toml`: what one is likely to change. All other knobs are listed by `tenon config keys`.
    fn configuration(&self) -> String {
        let Self { rpc_listen, admin_listen, more, .. } = self;
        let role = match &self.chain {
            Origin::New { .. } => AUTHORITY.to_owned(),
            Origin::Follow { source, .. } => FOLLOWER.replace("SOURCE", source),
        };
        format!(
            "# The node's configuration. `tenon config keys` lists every knob, `tenon config check` looks for mistakes.\n\
             # Paths are relative to this file's folder; TENON_RPC_LISTEN and the like override.\n\n\
             [rpc]\nlisten = \"{rpc_listen}\"\n\n[admin]\nlisten = \"{admin_listen}\"\n\n{role}{PLUGINS}{more}"
        )
    }

    /// Whether a node would start from `dir`.
    fn check(&self, dir: &Path) -> Result<()> {
        let text = fs::read_to_string(dir.join(config::FILE))?;
        // Without the environment: what overrides it today may be gone tomorrow.
        let config = Config::parse(&text, [], dir).context("the configuration that would be written")?;
        let problems = config.check();
        let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
        let errors: Vec<String> = errors.map(|problem| problem.to_string().replacen("error: ", "", 1)).collect();
        if errors.is_empty() {
            return Ok(());
        }
        let hint = if matches!(self.chain, Origin::Follow { .. }) {
            "; a second node on one machine needs other ports: --rpc-listen 127.0.0.1:8016 --admin-listen 127.0.0.1:8017"
        } else {
            ""
        };
        bail!("nothing was written: {}{hint}", errors.join("; "))
    }
}

const AUTHORITY: &str = r#"[producer]
key = "keystore/authority.json"
interval_ms = 2000
empty_blocks = "heartbeat"

# Answers the message `ping`, exactly, with `pong`.
[[agents]]
name = "bob"
wallet = "keystore/bob.json"
handler = "ping-pong"
max_fee_per_hour = 1000
config = { trigger = "ping", reply = "pong" }

"#;

const FOLLOWER: &str = r#"[sync]
sources = ["SOURCE"]

"#;

const PLUGINS: &str = r#"# A slot is served by the plugin of this name in plugins/, whatever its file is called, and by the built-in while there
# is none. Copying a new file there swaps it while the node runs.
[plugins.rate-limit]
use = "token-bucket"

[plugins.sync]
use = "parallel-range"

# Connections to other nodes: blocks and transactions are pushed as they come, and blocks are read from whoever is connected.
# `tenon p2p id` prints what others put into their `peers`.
# [p2p]
# listen = "/ip4/0.0.0.0/tcp/7070"
# peers = []
"#;

/// Writes a file that its owner alone can read.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let write = || options.open(path)?.write_all(bytes);
    write().with_context(|| format!("writing {}", path.display()))
}
