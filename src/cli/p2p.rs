//! `tenon p2p`: what a node is known by to others, and with whom it is connected.

use anyhow::{Result, anyhow};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use tenon::chain::Time;
use tenon::config::Config;
use tenon::p2p::{Identity, P2pConfig};

use super::http::Node;
use super::output::Output;
use super::{At, Global, Outcome};

/// Connections to other nodes.
#[derive(Args)]
pub struct P2p {
    #[command(flatten)]
    at: At,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prints a node's id and addresses, as others put them into `p2p.peers`; makes its key if there is none yet
    Id,
    /// Lists whom a node is connected with, and whom it leaves alone
    Peers,
}

impl P2p {
    pub async fn run(self, global: &Global, output: &Output) -> Result<Outcome> {
        let dir = self.at.dir()?;
        match self.command {
            Command::Id => id(dir, output),
            Command::Peers => peers(&global.node(dir)?, output).await,
        }
    }
}

fn id(dir: &std::path::Path, output: &Output) -> Result<Outcome> {
    // A node that has no [p2p] yet is asked for its id by whoever is about to write one.
    let config = Config::load(dir)?.p2p.unwrap_or_else(|| P2pConfig::in_dir(dir));
    let id = Identity::open_or_create(&config.key).map_err(|reason| anyhow!(reason))?.peer_id();
    let addresses: Vec<String> = config.listen.0.iter().map(|address| format!("{address}/p2p/{id}")).collect();
    if output.is_json() {
        output.json(&json!({ "peer_id": id.to_string(), "addresses": addresses }));
        return Ok(Outcome::Done);
    }
    output.line(id.to_string());
    addresses.iter().for_each(|address| output.line(address));
    if addresses.iter().any(|address| address.starts_with("/ip4/0.0.0.0/") || address.starts_with("/ip6/::/")) {
        output.note("others put that into p2p.peers, with an address of this machine that they can reach");
    }
    Ok(Outcome::Done)
}

async fn peers(node: &Node, output: &Output) -> Result<Outcome> {
    let answer = node.get("/rpc/peers").await?;
    let p2p = &answer["p2p"];
    if output.is_json() {
        output.json(p2p);
        return Ok(Outcome::Done);
    }
    if p2p.is_null() {
        output.note("the node has no [p2p] in its configuration, and is connected with nobody");
        return Ok(Outcome::Done);
    }
    let rows = |name: &str| p2p[name].as_array().cloned().unwrap_or_default();
    let since = |mut peer: Value| {
        let ms = peer["connected_ms"].as_u64().unwrap_or(0);
        peer["connected_since"] =
            Time(Time::now().0.saturating_sub(ms * 1_000) / 1_000_000 * 1_000_000).to_string().into();
        peer
    };
    let columns = [
        ("id", "/id"),
        ("address", "/address"),
        ("direction", "/direction"),
        ("agent", "/agent"),
        ("head", "/head_height"),
        ("score", "/score"),
        ("latency µs", "/latency_us"),
        ("connected since", "/connected_since"),
    ];
    output.list(&rows("peers").into_iter().map(since).collect::<Vec<_>>(), &columns);
    let aside: Vec<Value> = rows("aside");
    if !aside.is_empty() {
        output.line("left alone:");
        output.list(&aside, &[("id", "/id"), ("reason", "/reason"), ("for ms", "/remaining_ms")]);
    }
    let absent = rows("absent");
    if !absent.is_empty() {
        output.line("named in p2p.peers, and not connected:");
        output.list(&absent, &[("id", "/id"), ("address", "/addresses/0"), ("why", "/reason")]);
    }
    Ok(Outcome::Done)
}
