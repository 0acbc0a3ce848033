//! What only shows when knobs, files and keys are seen together.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::knobs::PluginDirectory;
use super::{Config, Problem, beside};
use crate::chain::{Address, Genesis};
use crate::p2p::Identity;
use tenon_runtime::{OnFailure, verify_signature};

pub fn check(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    let genesis = genesis(config, &mut problems);
    listeners(config, &mut problems);
    costs(config, &mut problems);
    sources(config, &mut problems);
    p2p(config, &mut problems);
    producer(config, genesis.as_ref(), &mut problems);
    agents(config, &mut problems);
    plugins(config, &mut problems);
    secret(&config.admin.token_file, "admin.token_file", &mut problems);
    webhook(config, &mut problems);
    // Stable: within a severity the order of the sections stays.
    problems.sort_by_key(|problem| std::cmp::Reverse(problem.severity));
    problems
}

fn error(key: &str, text: impl Into<String>) -> Problem {
    Problem::found(key, text)
}

fn genesis(config: &Config, problems: &mut Vec<Problem>) -> Option<Genesis> {
    let path = &config.chain.genesis;
    let genesis = fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))
        .and_then(|json| Genesis::parse(&json).map_err(|error| format!("{}: {error}", path.display())));
    genesis.map_err(|text| problems.push(error("chain.genesis", text))).ok()
}

fn listeners(config: &Config, problems: &mut Vec<Problem>) {
    let (rpc, admin) = (config.rpc.listen, config.admin.listen);
    if rpc.port() != 0 && rpc.port() == admin.port() && (rpc.ip() == admin.ip() || rpc.ip().is_unspecified()) {
        problems.push(error("admin.listen", format!("{admin} is taken by rpc.listen")));
    }
    if !admin.ip().is_loopback() {
        let text = format!("{admin} is reachable from other machines, and its token travels unencrypted");
        problems.push(Problem::warning("admin.listen", text));
    }
}

fn webhook(config: &Config, problems: &mut Vec<Problem>) {
    let text = &config.monitor.webhook;
    let is_http = |url: &url::Url| matches!(url.scheme(), "http" | "https") && url.host().is_some();
    if !text.is_empty() && !text.parse().is_ok_and(|url| is_http(&url)) {
        problems.push(error("monitor.webhook", format!("`{text}` is no http or https URL")));
    }
}

fn costs(config: &Config, problems: &mut Vec<Problem>) {
    let rpc = crate::rpc::RpcConfig { costs: config.rpc.costs.clone(), ..Default::default() };
    if let Err(text) = rpc.check() {
        problems.push(error("rpc.costs", text));
    }
}

fn sources(config: &Config, problems: &mut Vec<Problem>) {
    let mut seen = BTreeSet::new();
    for text in &config.sync.sources {
        let is_http = |url: &url::Url| matches!(url.scheme(), "http" | "https") && url.host().is_some();
        let Some(source) = text.parse().ok().filter(is_http) else {
            problems.push(error("sync.sources", format!("`{text}` is no http or https URL")));
            continue;
        };
        if is_self(&source, config.rpc.listen) {
            let text = format!("`{text}` is this node's own rpc.listen; a node cannot follow itself");
            problems.push(error("sync.sources", text));
        } else if source.port_or_known_default() == Some(config.admin.listen.port()) && is_local(&source) {
            problems.push(error("sync.sources", format!("`{text}` is this node's own admin.listen")));
        }
        if !seen.insert(source) {
            problems.push(Problem::warning("sync.sources", format!("`{text}` stands there twice")));
        }
    }
    if config.sync.sources.is_empty() && config.producer.is_none() && config.p2p.is_none() {
        let text =
            "no sources, no [p2p] and no [producer]: this node's chain will only grow by blocks that others hand in";
        problems.push(Problem::warning("sync.sources", text));
    }
}

/// Whether a URL leads to this machine's `listen`.
fn is_self(source: &url::Url, listen: SocketAddr) -> bool {
    let same_port = listen.port() != 0 && source.port_or_known_default() == Some(listen.port());
    let here = |ip: IpAddr| ip == listen.ip() || (listen.ip().is_unspecified() && ip.is_loopback());
    same_port
        && match source.host() {
            Some(url::Host::Ipv4(ip)) => here(ip.into()),
            Some(url::Host::Ipv6(ip)) => here(ip.into()),
            Some(url::Host::Domain(name)) => {
                name == "localhost" && (listen.ip().is_loopback() || listen.ip().is_unspecified())
            }
            None => false,
        }
}

fn is_local(source: &url::Url) -> bool {
    match source.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

fn p2p(config: &Config, problems: &mut Vec<Problem>) {
    let Some(p2p) = &config.p2p else { return };
    let identity = Identity::open(&p2p.key).unwrap_or_else(|text| {
        problems.push(error("p2p.key", text));
        None
    });
    if let Some(own) = identity.map(|identity| identity.peer_id())
        && p2p.peers.iter().any(|peer| peer.peer == own)
    {
        problems.push(error("p2p.peers", format!("{own} is this node's own id; a node cannot be its own peer")));
    }
    if p2p.listen.0.is_empty() && p2p.peers.is_empty() && !p2p.mdns {
        let text = "nowhere to listen and nobody to connect to: nothing will come of it";
        problems.push(Problem::warning("p2p.listen", text));
    }
    let taken = |address: &libp2p::Multiaddr| {
        let text = address.to_string();
        let port = config.rpc.listen.port();
        port != 0 && text.ends_with(&format!("/tcp/{port}"))
    };
    if let Some(address) = p2p.listen.0.iter().find(|address| taken(address)) {
        problems.push(error("p2p.listen", format!("{address} has the port of rpc.listen")));
    }
    if p2p.mdns && !cfg!(feature = "mdns") {
        let text =
            "this build cannot look for peers by mDNS; build it with `--features mdns`, or name peers in p2p.peers";
        problems.push(error("p2p.mdns", text));
    }
}

fn producer(config: &Config, genesis: Option<&Genesis>, problems: &mut Vec<Problem>) {
    let Some(producer) = &config.producer else { return };
    if producer.heartbeat_ms < producer.interval_ms {
        let text = format!("{} is shorter than producer.interval_ms, {}", producer.heartbeat_ms, producer.interval_ms);
        problems.push(error("producer.heartbeat_ms", text));
    }
    let Some(address) = wallet(&producer.key, "producer.key", problems) else { return };
    if let Some(genesis) = genesis
        && !genesis.authorities.iter().any(|authority| authority.address == address)
    {
        let text = format!("{address} is no authority of chain `{}`; its blocks would be invalid", genesis.chain_id);
        problems.push(error("producer.key", text));
    }
}

fn agents(config: &Config, problems: &mut Vec<Problem>) {
    let (mut names, mut wallets) = (BTreeSet::new(), BTreeSet::new());
    for (index, agent) in config.agents.iter().enumerate() {
        let key = |name: &str| format!("agents[{index}].{name}");
        let letters = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if !(1..=64).contains(&agent.name.len()) || !agent.name.chars().all(letters) {
            let text = format!("expected 1 to 64 letters, digits, `-` or `_`, got `{}`", agent.name);
            problems.push(error(&key("name"), text));
        }
        if !names.insert(agent.name.as_str()) {
            problems.push(error(&key("name"), format!("another agent is called `{}`", agent.name)));
        }
        if let Some(address) = wallet(&agent.wallet, &key("wallet"), problems)
            && !wallets.insert(address)
        {
            problems.push(error(&key("wallet"), format!("another agent answers for {address}")));
        }
        if agent.on_failure != OnFailure::Fallback {
            problems.push(error(&key("on_failure"), "an agent falls back to its built-in; expected \"fallback\""));
        }
        if let Some(handler) = &agent.handler {
            component(config, handler, &key("handler"), problems);
        }
    }
}

fn plugins(config: &Config, problems: &mut Vec<Problem>) {
    let plugins = &config.plugins;
    if !plugins.directory.dir.is_dir() {
        let text = format!("no folder {}; it is made at start", plugins.directory.dir.display());
        problems.push(Problem::warning("plugins.dir", text));
    }
    signatures(config, problems);
    for (slot, key) in [(&plugins.rate_limit, "plugins.rate-limit.use"), (&plugins.sync, "plugins.sync.use")] {
        if let Some(plugin) = &slot.plugin {
            component(config, plugin, key, problems);
        }
    }
}

/// Whether signatures can be asked for, and which components would be refused for theirs.
fn signatures(config: &Config, problems: &mut Vec<Problem>) {
    let PluginDirectory { dir, trusted_keys, require_signature, .. } = &config.plugins.directory;
    if trusted_keys.is_empty() {
        if *require_signature {
            let text = "no component could be taken: there are no plugins.trusted_keys";
            problems.push(error("plugins.require_signature", text));
        }
        return;
    }
    for path in components(dir, 8) {
        let signature = fs::read(path.with_added_extension("sig"));
        let verified = match (fs::read(&path), signature) {
            (Ok(component), Ok(signature)) => verify_signature(&component, &signature, trusted_keys).map(drop),
            (Ok(_), Err(_)) if *require_signature => Err("no signature file beside it".to_owned()),
            // What cannot be read, or is being written, is the plugin host's to say.
            _ => Ok(()),
        };
        if let Err(why) = verified {
            let text = format!("{} would be refused: {why}", path.display());
            problems.push(Problem::warning("plugins.trusted_keys", text));
        }
    }
}

/// Whether some file could be the plugin `name`. Only a hint: a component's name is what it says of itself.
fn component(config: &Config, name: &str, key: &str, problems: &mut Vec<Problem>) {
    let dir = &config.plugins.directory.dir;
    let fits = |path: &PathBuf| path.file_stem().is_some_and(|stem| stem.to_string_lossy().starts_with(name));
    if dir.is_dir() && !components(dir, 8).iter().any(fits) {
        let text = format!("no {name}.wasm below {}; the built-in serves until there is one", dir.display());
        problems.push(Problem::warning(key, text));
    }
}

/// The `*.wasm` files in a folder and the folders in it.
fn components(dir: &Path, depth: usize) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && depth > 0 {
            paths.extend(components(&path, depth - 1));
        } else if path.extension().is_some_and(|extension| extension == "wasm") {
            paths.push(path);
        }
    }
    paths.sort();
    paths
}

/// Whether there is a keystore file with its password, readable by its owner alone; its address.
fn wallet(path: &Path, key: &str, problems: &mut Vec<Problem>) -> Option<Address> {
    #[derive(serde::Deserialize)]
    struct Public {
        address: Address,
    }
    if !secret(path, key, problems) {
        return None;
    }
    secret(&beside(path, "password"), key, problems);
    let text = fs::read_to_string(path).unwrap_or_default();
    let wallet: Result<Public, _> = serde_json::from_str(&text);
    wallet
        .map_err(|cause| problems.push(error(key, format!("{} is no keystore file: {cause}", path.display()))))
        .ok()
        .map(|public| public.address)
}

/// Whether a file with a secret is there and nobody else can read it.
fn secret(path: &Path, key: &str, problems: &mut Vec<Problem>) -> bool {
    let metadata = match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) => {
            problems.push(error(key, format!("{} is no file", path.display())));
            return false;
        }
        Err(cause) => {
            problems.push(error(key, format!("cannot read {}: {cause}", path.display())));
            return false;
        }
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let text = format!("others can read {} (mode {mode:04o}); `chmod 600` it", path.display());
            problems.push(error(key, text));
        }
    }
    #[cfg(not(unix))]
    drop(metadata);
    true
}
