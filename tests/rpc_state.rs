//! State roots, the trie and snapshots over HTTP; the operator's orders about them; two nodes compared by command.

#[expect(dead_code, reason = "shared: each test file uses its part")]
mod support;

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::node::{Answer, Node, TOKEN, start};
use tenon::chain::{Address, Genesis, Kind, Payload, SecretKey, Transaction, verify};
use tenon::rate_limit::token_bucket::Settings;
use tenon::rpc::RpcConfig;
use tenon::sample::{Sample, genesis, key};

const ACCOUNTS: usize = 500;
const BLOCKS: usize = 6;

/// A node with a few blocks, on a chain with some hundred accounts; and what made them.
async fn node() -> (Node, Sample) {
    let mut sample = Sample::new(11, ACCOUNTS);
    let node = start(sample.genesis(), sample.authority(), Settings::default(), RpcConfig::default()).await;
    let blocks = sample.blocks(BLOCKS, 3);
    import(&node, sample.genesis(), blocks).await;
    (node, sample)
}

async fn import(node: &Node, genesis: &Genesis, blocks: Vec<tenon::chain::Block>) {
    let blocks = verify::verify_all(blocks, genesis).into_iter().map(Result::unwrap).collect();
    assert!(node.ledger.import(blocks).await.iter().all(Result::is_ok));
}

async fn admin(node: &Node, path: &str, body: &'static str) -> Answer {
    Answer::of(node.client.post(format!("{}{path}", node.admin)).bearer_auth(TOKEN).body(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_root_after_every_block_is_told() {
    let (node, sample) = node().await;
    let head = node.json("/rpc/head").await;
    for path in ["/rpc/state/root", "/rpc/state/root?height=6"] {
        let root = node.json(path).await;
        let expected = json!({ "height": 6, "hash": head["hash"], "state_root": sample.head().state_root });
        assert_eq!(root, expected, "{path}");
    }
    let first = node.json("/rpc/state/root?height=0").await;
    assert_eq!(first["state_root"], json!(sample.genesis().state().root()));
    assert!(node.get("/rpc/state/root?height=7").await.detail(404).contains("the head is 6"));
    assert!(node.get("/rpc/state/root?height=x").await.detail(400).contains("`height`"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trie_is_shown_down_to_every_account() {
    let (node, sample) = node().await;
    // Every fork from the root on, and all that lies below.
    let (mut left, mut found) = (vec![String::new()], Vec::new());
    while let Some(path) = left.pop() {
        let shown = node.json(&format!("/rpc/state/node?height=6&path={path}")).await;
        assert_eq!(shown["state_root"], json!(sample.head().state_root));
        match (&shown["account"], &shown["fork"]) {
            (Value::Null, fork) => {
                let at = fork["path"].as_str().unwrap();
                assert!(at.starts_with(&path));
                left.extend(fork["below"].as_object().unwrap().keys().map(|digit| format!("{at}{digit}")));
            }
            (account, fork) => {
                assert!(fork.is_null());
                found.push(account["address"].as_str().unwrap().to_owned());
                let own = node.json(&format!("/rpc/accounts/{}", account["address"].as_str().unwrap())).await;
                assert_eq!((&own["balance"], &own["nonce"]), (&account["balance"], &account["nonce"]));
            }
        }
    }
    found.sort();
    let mut expected: Vec<String> =
        sample.accounts().iter().map(|key| Address::of(&key.public_key()).to_string()).collect();
    expected.sort();
    assert_eq!(found, expected);
    let nothing = node.json("/rpc/state/node?path=0").await;
    assert!(nothing["account"].is_null() && nothing["fork"].is_null());
    for (query, status, part) in [
        ("height=5", 409, "the head is block 6; the state after block 5 is not here"),
        ("path=xyz", 400, "`path`"),
        ("path=6G", 400, "`path`"),
        ("nibble=6", 400, "`nibble`"),
    ] {
        let detail = node.get(&format!("/rpc/state/node?{query}")).await.detail(status);
        assert!(detail.contains(part), "{query}: {detail}");
    }
    let long = "6".repeat(89);
    assert!(node.get(&format!("/rpc/state/node?path={long}")).await.detail(400).contains("at most 88"));
}

/// What `tenon chain verify` says of one node against another.
async fn compare(node: &Node, other: &Node, more: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenon"));
    command.args(["--output", "json", "chain", "verify", "--node", &node.url, "--against", &other.url]).args(more);
    let output = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output().unwrap()).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_accounts_that_differ_between_two_nodes_are_named_with_few_questions() {
    let ((ours, mut sample), (theirs, mut other)) = (node().await, node().await);
    let (code, text) = compare(&ours, &theirs, &[]).await;
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &found["same"], &found["looks"]), (0, &json!(true), &json!(0)), "{text}");

    // Two blocks at one height: one sends to a stranger, the other between two that both know.
    let send = |sample: &Sample, from: usize, to: Address| {
        let nonce = sample.account(&Address::of(&sample.accounts()[from].public_key())).nonce;
        let transaction = Transaction::new(Kind::Transfer, to, 5, 1, nonce, Payload::Absent);
        transaction.signed(&sample.genesis().chain_id, &sample.accounts()[from])
    };
    let of = |index: u64| Address::of(&key(11, index).public_key());
    let stranger = Address::of(&SecretKey::from_seed([77; 32]).public_key());
    let (a, b) = (send(&sample, 100, stranger), send(&other, 200, of(301)));
    let block = sample.block_with(vec![a]);
    import(&ours, &genesis(11, ACCOUNTS), vec![block]).await;
    let (code, text) = compare(&ours, &theirs, &["--timeout", "0"]).await;
    assert!(
        code == 1 && text.contains("is at block 7") && text.contains("at block 6") && text.contains("try again"),
        "{text}"
    );
    let block = other.block_with(vec![b]);
    import(&theirs, &genesis(11, ACCOUNTS), vec![block]).await;

    let (code, text) = compare(&ours, &theirs, &[]).await;
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &found["same"], &found["more"]), (1, &json!(false), &json!(false)), "{text}");
    let named = |found: &Value| -> Vec<String> {
        let list = found["differences"].as_array().unwrap();
        list.iter().map(|d| d["address"].as_str().unwrap().to_owned()).collect()
    };
    let mut expected = [of(101), stranger, of(201), of(301)].map(|address| address.to_string());
    expected.sort();
    assert_eq!(named(&found), expected);
    let of_stranger =
        &found["differences"].as_array().unwrap()[expected.iter().position(|a| *a == stranger.to_string()).unwrap()];
    assert_eq!((&of_stranger["ours"]["balance"], &of_stranger["theirs"]), (&json!(5), &Value::Null));
    // 500 accounts are told apart by three digits, two forks each: for every difference a look at each of those, in both.
    assert!(found["looks"].as_u64().unwrap() <= 2 + 4 * 2 * 7, "{text}");
    assert_ne!(found["hashes"][0], found["hashes"][1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_made_by_order_listed_and_served_chunk_by_chunk() {
    let (node, sample) = node().await;
    assert_eq!(node.json("/rpc/snapshots").await, json!({ "success": true, "snapshots": [] }));
    assert_eq!(node.json("/rpc/info").await["snapshot"], Value::Null);
    let made = admin(&node, "/admin/snapshot", "").await;
    assert_eq!(made.status, 200, "{}", made.text());
    let made = made.json();
    assert_eq!((&made["height"], &made["hash"]), (&json!(6), &json!(sample.head().hash)));
    let five = admin(&node, "/admin/snapshot", r#"{"height":5}"#).await.json();
    assert_eq!(node.json("/rpc/snapshots").await["snapshots"], json!([made, five]));
    assert_eq!(node.json("/rpc/info").await["snapshot"], made);

    let id = made["id"].as_str().unwrap();
    let manifest = node.get(&format!("/rpc/snapshot/{id}/manifest")).await;
    assert_eq!(manifest.header("content-type"), "application/json");
    assert_eq!(format!("0x{}", const_hex::encode(Sha256::digest(&manifest.body))), id);
    let chunks = manifest.json()["chunks"].as_array().unwrap().clone();
    assert_eq!(json!(chunks.len()), made["chunks"]);
    for (index, chunk) in chunks.iter().enumerate() {
        let sent = node.get(&format!("/rpc/snapshot/{id}/{index}")).await;
        assert_eq!(json!(format!("0x{}", const_hex::encode(Sha256::digest(&sent.body)))), chunk["sha256"]);
        assert_eq!(sent.header("content-length"), chunk["bytes"].to_string());
    }
    let other = format!("0x{}", "0".repeat(64));
    for (path, status, part) in [
        (format!("/rpc/snapshot/{id}/{}", chunks.len()), 404, "no chunk 3"),
        (format!("/rpc/snapshot/{id}/x"), 400, "`chunk`"),
        (format!("/rpc/snapshot/{id}/18446744073709551615"), 404, "no chunk"),
        (format!("/rpc/snapshot/{other}/0"), 404, "no snapshot"),
        (format!("/rpc/snapshot/{other}/manifest"), 404, "no snapshot"),
        ("/rpc/snapshot/../manifest".to_owned(), 404, "not found"),
        ("/rpc/snapshot/nonsense/manifest".to_owned(), 400, "`id`"),
    ] {
        let detail = node.get(&path).await.detail(status);
        assert!(detail.contains(part), "{path}: {detail}");
    }
    for (body, status, part) in [
        (r#"{"height":9}"#, 404, "expected a block from 1 to the head, 6"),
        (r#"{"height":0}"#, 404, "expected a block from 1"),
        (r#"{"height":-1}"#, 400, "`height`"),
        (r#"{"heigth":1}"#, 400, "`heigth`"),
        ("[]", 400, "JSON"),
    ] {
        let detail = admin(&node, "/admin/snapshot", body).await.detail(status);
        assert!(detail.contains(part), "{body}: {detail}");
    }
    for path in ["/admin/snapshot", "/admin/sync/verify"] {
        Answer::of(node.client.post(format!("{}{path}", node.admin))).await.detail(401);
        Answer::of(node.client.get(format!("{}{path}", node.admin)).bearer_auth(TOKEN)).await.detail(405);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_was_verified_is_told_with_its_figures() {
    let (node, _sample) = node().await;
    assert_eq!(node.json("/rpc/info").await["state_check"], Value::Null);
    let verified = admin(&node, "/admin/sync/verify", "").await.json();
    assert_eq!((&verified["ok"], &verified["accounts"]), (&json!(true), &json!(ACCOUNTS)));
    assert_eq!(node.json("/rpc/info").await["state_check"], verified);
    let ready = node.json("/ready").await;
    assert_eq!((&ready["ready"], &ready["reasons"]), (&json!(true), &json!([])));
    let metrics = node.get("/metrics").await.text();
    for line in [
        "tenon_state_verified ",
        "tenon_state_verified_height ",
        "tenon_state_verify_seconds_count ",
        "tenon_snapshot_height ",
    ] {
        assert!(metrics.lines().any(|found| found.starts_with(line)), "{line}");
    }
}
