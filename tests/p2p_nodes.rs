//! Whole nodes, as processes, that are connected over libp2p: what an operator does with them and sees of them.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tenon::chain::{Address, Genesis, Kind, Payload, Transaction};

#[path = "support/process.rs"]
#[expect(dead_code, reason = "shared with other tests of whole nodes: each uses its part")]
mod process;
use process::{Process, address, authority, follower, key, run};

/// Replaces the `[sync]` section, and adds lines at the end.
fn reconfigure(dir: &Path, more: &str) {
    let path = dir.join("tenon.toml");
    let text = fs::read_to_string(&path).unwrap();
    let kept: Vec<&str> = text.lines().filter(|line| *line != "[sync]" && !line.starts_with("sources = ")).collect();
    fs::write(&path, format!("{}\n{more}\n", kept.join("\n"))).unwrap();
}

/// What `tenon p2p id` prints for a directory.
fn id(dir: &Path) -> String {
    run(&["p2p", "id", "--dir", dir.to_str().unwrap()]).lines().next().expect("an id").to_owned()
}

#[test]
fn a_follower_with_peers_and_no_http_source_catches_up_and_stays_at_the_head() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (dir.path().join("authority"), dir.path().join("follower"));
    let genesis = authority(&one, 2_000, 2);
    tokio::runtime::Runtime::new().unwrap().block_on(follows(&one, &other, &genesis));
}

async fn follows(one: &Path, other: &Path, genesis: &Genesis) {
    let name = id(one);
    reconfigure(one, "[p2p]\nlisten = \"/ip4/127.0.0.1/tcp/0\"");
    let source = Process::start(one);
    let peers = source.get("/rpc/peers").await;
    let at = peers["p2p"]["listen"][0].as_str().expect("where it listens").to_owned();
    assert!(at.ends_with(&format!("/p2p/{name}")), "{at}");
    assert_eq!(source.get("/rpc/info").await["peer_id"], name.as_str());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(one.join("keystore/p2p.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    follower(other, &source.rpc);
    reconfigure(
        other,
        &format!("[p2p]\nlisten = \"/ip4/127.0.0.1/udp/0/quic-v1\"\npeers = [\"{at}\"]\nredial_max_ms = 500"),
    );
    let copy = Process::start(other);
    // All of it by sync: what is counted follows what is stored.
    let caught_up = |status: &Value| status["state"] == "live" && status["imported_blocks"].as_u64() >= Some(2_000);
    let status = copy.until("/rpc/sync/status", caught_up).await;
    assert_eq!(status["peers"][0]["url"], format!("p2p:{name}"));
    assert!(status["head_height"].as_u64() >= Some(2_000), "{status}");
    let (ours, theirs) = (copy.get("/rpc/blocks/2000").await, source.get("/rpc/blocks/2000").await);
    assert_eq!(ours, theirs);
    // Whoever makes the blocks lacks nothing that those who follow it have.
    assert_eq!(source.get("/ready").await["ready"], true);

    // A transaction that is handed to the follower gets into a block and comes back in it.
    let to = Address([9; 20]);
    let sent = Transaction::new(Kind::Transfer, to, 7, 10, 1_000_000, Payload::Absent)
        .signed(&genesis.chain_id, &key(one, "alice"));
    let submission = serde_json::from_str(&sent.to_submission(&genesis.chain_id)).unwrap();
    let (status, answer) = copy.post("/rpc/transaction", &submission).await;
    assert_eq!(status, 200, "{answer}");
    copy.until(&format!("/rpc/accounts/{to}"), |account| account["balance"] == 7).await;
    assert_ne!(address(one, "alice"), to);

    // What each says of the other.
    let connected = |peers: &Value| peers["p2p"]["peers"].as_array().is_some_and(|peers| peers.len() == 1);
    let of_source = source.until("/rpc/peers", connected).await;
    let peer = &of_source["p2p"]["peers"][0];
    assert_eq!((&peer["direction"], &peer["configured"]), (&"inbound".into(), &false.into()));
    assert_eq!(peer["agent"], concat!("tenon/", env!("CARGO_PKG_VERSION")));
    assert_eq!(peer["id"], id(other).as_str());
    let listed = run(&["p2p", "peers", "--node", &source.rpc]);
    assert!(listed.contains(&id(other)) && listed.contains("inbound"), "{listed}");
    let metrics = reqwest::get(format!("{}/metrics", source.rpc)).await.unwrap().text().await.unwrap();
    for line in ["tenon_p2p_peers 1", "tenon_p2p_requests_total{kind=\"range\"}"] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    let accepted = "tenon_p2p_messages_in_total{topic=\"transactions\",verdict=\"accepted\"} 1";
    assert!(metrics.contains(accepted), "{metrics}");

    // It comes back as the same one, and is found again.
    source.stop();
    let text = fs::read_to_string(one.join("tenon.toml")).unwrap();
    let port = at.split('/').nth(4).unwrap();
    fs::write(one.join("tenon.toml"), text.replace("127.0.0.1/tcp/0", &format!("127.0.0.1/tcp/{port}"))).unwrap();
    let alone = |status: &Value| status["peers"].as_array().is_some_and(Vec::is_empty);
    let status = copy.until("/rpc/sync/status", alone).await;
    assert_eq!(status["state"], "no-source", "a follower without anybody is not ready");
    let source = Process::start(one);
    assert_eq!(source.get("/rpc/info").await["peer_id"], name.as_str());
    copy.until("/rpc/peers", connected).await;
    copy.until("/rpc/sync/status", |status| status["state"] == "live").await;
    copy.stop();
    source.stop();
}

#[test]
fn the_id_is_there_before_the_first_start_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let node = dir.path().join("node");
    authority(&node, 0, 0);
    assert!(!node.join("keystore/p2p.key").exists(), "a node without [p2p] has no key to others");
    let first = id(&node);
    assert_eq!(id(&node), first);
    let json: Value =
        serde_json::from_str(&run(&["--output", "json", "p2p", "id", "--dir", node.to_str().unwrap()])).unwrap();
    assert_eq!(json["peer_id"], first.as_str());
    assert_eq!(json["addresses"][0], format!("/ip4/0.0.0.0/tcp/7070/p2p/{first}"));
    // A node cannot be its own peer.
    reconfigure(&node, &format!("[p2p]\npeers = [\"/ip4/127.0.0.1/tcp/7070/p2p/{first}\"]"));
    let output = process::tenon().args(["run", "--dir", node.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("p2p.peers") && said.contains("own id"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_somebody_else_is_shown_with_both_ids() {
    let dir = tempfile::tempdir().unwrap();
    let [one, other, stranger] = ["authority", "follower", "stranger"].map(|name| dir.path().join(name));
    tokio::task::block_in_place(|| {
        authority(&one, 0, 0);
        authority(&stranger, 0, 0);
    });
    reconfigure(&one, "[p2p]\nlisten = \"/ip4/127.0.0.1/tcp/0\"");
    let source = Process::start(&one);
    let at = source.get("/rpc/peers").await["p2p"]["listen"][0].as_str().expect("where it listens").to_owned();
    let (real, wrong) = tokio::task::block_in_place(|| (id(&one), id(&stranger)));
    tokio::task::block_in_place(|| follower(&other, &source.rpc));
    reconfigure(&other, &format!("[p2p]\nlisten = []\npeers = [\"{}\"]", at.replace(&real, &wrong)));
    let copy = Process::start(&other);
    let told = |peers: &Value| peers["p2p"]["absent"][0]["reason"].is_string();
    let peers = copy.until("/rpc/peers", told).await;
    let absent = &peers["p2p"]["absent"][0];
    assert_eq!(absent["id"], wrong.as_str());
    assert!(absent["reason"].as_str().unwrap().contains(&format!("is {real}, not the one named")), "{absent}");
    let text = tokio::task::block_in_place(|| run(&["p2p", "peers", "--dir", other.to_str().unwrap()]));
    assert!(text.contains("not connected:") && text.contains(&wrong) && text.contains(&real), "{text}");
}
