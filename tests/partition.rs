//! Three authorities, each a process of its own, whose network is cut and mended: each side goes on by itself, and one
//! chain is left of them, with what was sent on either side.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};
use tenon::chain::{Address, Authority, Genesis, Kind, Payload, SecretKey, Transaction};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[path = "support/process.rs"]
#[expect(dead_code, reason = "shared with other tests of whole nodes: each uses its part")]
mod process;
use process::{Process, authority, key, run};

/// How long a slot is: short, for a test that waits for dozens.
const SLOT_MS: u64 = 200;

/// Blocks that the weaker side makes by itself before the network is mended.
const ALONE: u64 = 4;

/// The line from one node to another: a port that leads to it, as long as it is not cut.
struct Line {
    port: u16,
    to: watch::Sender<Option<SocketAddr>>,
}

impl Line {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (to, where_to) = watch::channel(None);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut where_to = where_to.clone();
                tokio::spawn(async move {
                    let Some(address) = *where_to.borrow_and_update() else { return };
                    let Ok(mut far) = TcpStream::connect(address).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        // Both ends lose it at once.
                        _ = where_to.changed() => {}
                    }
                });
            }
        });
        Self { port, to }
    }
}

/// Three nodes and the lines between them.
struct Network {
    nodes: Vec<Process>,
    /// From whom, to whom.
    lines: Vec<(usize, usize, Line)>,
    ports: Vec<SocketAddr>,
}

impl Network {
    async fn start(dir: &Path) -> (Self, Genesis) {
        let dirs: Vec<_> = ["a", "b", "c"].iter().map(|name| dir.join(name)).collect();
        let written: Vec<_> = dirs.iter().map(|dir| authority(dir, 0, 0)).collect();
        let mut genesis = written[0].clone();
        let authorities = dirs.iter().map(|dir| {
            let public_key = key(dir, "authority").public_key();
            Authority { address: Address::of(&public_key), public_key }
        });
        genesis.authorities = authorities.collect();
        genesis.slot_ms = SLOT_MS;
        let ids: Vec<_> = dirs
            .iter()
            .map(|dir| run(&["p2p", "id", "--dir", dir.to_str().unwrap()]).lines().next().unwrap().to_owned())
            .collect();
        // The later of two dials the earlier.
        let mut lines = Vec::new();
        for (from, to) in [(1, 0), (2, 0), (2, 1)] {
            lines.push((from, to, Line::new().await));
        }
        for (node, dir) in dirs.iter().enumerate() {
            let lines = lines.iter().filter(|(from, ..)| *from == node);
            let peers: Vec<_> =
                lines.map(|(_, to, line)| format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", line.port, ids[*to])).collect();
            let text = fs::read_to_string(dir.join("tenon.toml")).unwrap();
            let text = text.replace("interval_ms = 2000", "interval_ms = 50").replace("\"heartbeat\"", "\"always\"");
            let p2p = format!("[p2p]\nlisten = \"/ip4/127.0.0.1/tcp/0\"\npeers = {peers:?}\nredial_max_ms = 500\n");
            fs::write(dir.join("tenon.toml"), format!("{text}\n{p2p}")).unwrap();
            fs::write(dir.join("genesis.json"), genesis.to_json()).unwrap();
        }
        let nodes: Vec<_> = dirs.iter().map(|dir| Process::start(dir)).collect();
        let mut ports = Vec::new();
        for node in &nodes {
            let peers = node.get("/rpc/peers").await;
            let port =
                peers["p2p"]["listen"][0].as_str().and_then(|at| at.split('/').nth(4)).expect("where it listens");
            ports.push(format!("127.0.0.1:{port}").parse().unwrap());
        }
        let network = Self { nodes, lines, ports };
        network.cut(&[]);
        (network, genesis)
    }

    /// Lets through what does not go to or from one of `alone`.
    fn cut(&self, alone: &[usize]) {
        for (from, to, line) in &self.lines {
            let is_cut = alone.contains(from) || alone.contains(to);
            line.to.send_replace((!is_cut).then_some(self.ports[*to]));
        }
    }

    /// Until the node has `more` blocks more than the chain had at `from`.
    async fn grows(&self, node: usize, from: u64, more: u64) -> Value {
        self.nodes[node].until("/rpc/head", |head| head["height"].as_u64() >= Some(from + more)).await
    }

    async fn hash_at(&self, node: usize, height: u64) -> Value {
        self.nodes[node].get(&format!("/rpc/blocks/{height}")).await["hash"].clone()
    }

    /// Until all have the same block above `height`; answers its height.
    async fn agree_above(&self, height: u64) -> u64 {
        let mut height = height + 1;
        loop {
            for node in 0..self.nodes.len() {
                self.grows(node, height, 1).await;
            }
            let hash = self.hash_at(0, height).await;
            if hash == self.hash_at(1, height).await && hash == self.hash_at(2, height).await {
                return height;
            }
            height += 1;
        }
    }

    /// Hands a transfer to a node.
    async fn send(&self, node: usize, genesis: &Genesis, from: &SecretKey, to: Address, nonce: u64) -> Transaction {
        let sent = Transaction::new(Kind::Transfer, to, 7, 10, nonce, Payload::Absent).signed(&genesis.chain_id, from);
        let submission = serde_json::from_str(&sent.to_submission(&genesis.chain_id)).unwrap();
        let (status, answer) = self.nodes[node].post("/rpc/transaction", &submission).await;
        assert_eq!(status, 200, "{answer}");
        sent
    }
}

/// Answers the height from which on all three have one chain again.
async fn part_and_meet(network: &Network, genesis: &Genesis, alone: &[usize], from: u64, round: u64) -> u64 {
    let keys = ["alice", "bob"].map(|name| key(&network.nodes[0].dir, name));
    network.cut(alone);
    // What is sent on a side stays there until the network is mended.
    let (lonely, other) = (alone[0], if alone.contains(&2) { 1 } else { 2 });
    let nonce = 1_000 * (round + 1);
    let to = [Address([0x10 + u8::try_from(round).unwrap(); 20]), Address([0x20 + u8::try_from(round).unwrap(); 20])];
    network.send(lonely, genesis, &keys[0], to[0], nonce).await;
    network.send(other, genesis, &keys[1], to[1], nonce).await;
    let has = |account: &Value| account["balance"] == 7;
    network.nodes[lonely].until(&format!("/rpc/accounts/{}", to[0]), has).await;
    network.nodes[other].until(&format!("/rpc/accounts/{}", to[1]), has).await;
    let fork = network.nodes[lonely].height().await.max(network.nodes[other].height().await).max(from);
    network.grows(lonely, fork, ALONE).await;
    network.grows(other, fork, ALONE).await;
    assert_ne!(network.hash_at(lonely, fork + 1).await, network.hash_at(other, fork + 1).await, "two chains");

    network.cut(&[]);
    let met = network.agree_above(fork + ALONE).await;
    for node in &network.nodes {
        for to in to {
            node.until(&format!("/rpc/accounts/{to}"), has).await;
        }
    }
    met
}

#[test]
fn authorities_that_were_parted_end_on_one_chain_with_what_was_sent_on_either_side() {
    let dir = tempfile::tempdir().unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (network, genesis) = Network::start(dir.path()).await;
        let mut height = network.agree_above(3).await;
        for (round, alone) in [&[0_usize][..], &[1], &[0, 1, 2]].into_iter().enumerate() {
            height = part_and_meet(&network, &genesis, alone, height, round as u64).await;
        }
        let mut reorgs = 0;
        for node in &network.nodes {
            let info = node.get("/rpc/info").await;
            assert_eq!(info["equivocations"], json!([]), "{info}");
            reorgs += info["reorgs"].as_u64().unwrap();
            node.until("/rpc/sync/status", |status| status["state"] == "live" || status["state"] == "authority").await;
        }
        println!("{height} blocks, {reorgs} reorgs");
        assert!(reorgs >= 3, "somebody gave way each time");
        let mut roots = Vec::new();
        for node in &network.nodes {
            roots.push(node.get(&format!("/rpc/state/root?height={height}")).await["state_root"].clone());
        }
        assert!(roots[0].is_string() && roots.iter().all(|root| *root == roots[0]), "{roots:?}");
        for node in network.nodes {
            node.stop();
        }
    });
}
