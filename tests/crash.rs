//! Nodes that are killed: real processes, `kill -9` at random moments, real databases.

#[path = "support/chance.rs"]
#[expect(dead_code, reason = "shared: each test file uses its part")]
mod chance;
#[path = "support/process.rs"]
#[expect(dead_code, reason = "shared: each test file uses its part")]
mod process;

use std::collections::HashMap;
use std::path::Path;

use chance::{Dice, knob};
use process::Process;
use serde_json::Value;
use tenon::chain::{Genesis, Kind, Payload, SecretKey, Transaction};
use tenon::ledger::{Ledger, LedgerOptions};

/// Kills in all: 100, or what `TENON_TEST_KILLS` says.
fn kills() -> usize {
    knob("TENON_TEST_KILLS", 100)
}

fn integrity(dir: &Path) {
    let database = rusqlite::Connection::open(dir.join("data/chain.db")).unwrap();
    let answer: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(answer, "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_kills_of_either_node_end_in_equal_state_roots() {
    let dir = tempfile::tempdir().unwrap();
    let (source, copy) = (dir.path().join("authority"), dir.path().join("follower"));
    let (blocks, kills) = (8_000, kills());
    tokio::task::block_in_place(|| process::authority(&source, blocks, 2));
    // No blocks but those that are there: the follower has an end to reach.
    let still = ("TENON_PRODUCER_EMPTY_BLOCKS", "never");
    let mut authority = Process::start_with(&source, &[still]);
    // A port of its own, so that the follower finds it again after a kill.
    let listen = authority.rpc.trim_start_matches("http://").to_owned();
    process::follower(&copy, &authority.rpc);
    // Small commits, so that a kill can fall between many of them.
    let small = [("TENON_STORE_GROUP_BLOCKS_MAX", "50")];
    let mut follower = Process::start_with(&copy, &small);
    let mut dice = Dice::new("kills");
    let (mut on_the_way, mut syncs) = (0, 0);
    for kill in 0..kills {
        // After some progress, or the end; one time in four after some answers, whatever came of it.
        let step = dice.roll(160);
        let goal = (follower.height().await + step).min(blocks as u64);
        let patience = if dice.roll(4) == 0 { dice.roll(40) } else { u64::MAX };
        let mut asked = 0;
        while asked < patience && follower.height().await < goal {
            asked += 1;
        }
        if dice.roll(4) == 0 {
            authority.kill();
            integrity(&source);
            authority = Process::start_with(&source, &[still, ("TENON_RPC_LISTEN", &listen)]);
            continue;
        }
        let height = follower.height().await;
        follower.kill();
        integrity(&copy);
        if height == blocks as u64 {
            // It was through: what it has is what the source has, and it begins again from nothing.
            compare(&copy, &authority, blocks as u64).await;
            std::fs::remove_dir_all(copy.join("data")).unwrap();
            syncs += 1;
        }
        follower = Process::start_with(&copy, &small);
        let after = follower.height().await;
        assert!(after >= height || height == blocks as u64, "kill {kill}: was at {height}, is at {after}");
        on_the_way += usize::from(height > 0 && height < blocks as u64);
    }
    assert!(on_the_way >= kills / 4, "only {on_the_way} kills of the follower fell into the middle of its sync");
    follower.until("/rpc/head", |head| head["height"] == blocks).await;
    follower.stop();
    compare(&copy, &authority, blocks as u64).await;
    println!("{kills} kills, {on_the_way} in the middle of a sync, {} syncs of {blocks} blocks", syncs + 1);
    authority.stop();
    integrity(&copy);
    integrity(&source);
}

/// Whether the database of a stopped node ends with the block that `source` has there, and its accounts make its root.
async fn compare(dir: &Path, source: &Process, height: u64) {
    let genesis = Genesis::parse(&std::fs::read_to_string(dir.join("genesis.json")).unwrap()).unwrap();
    // Opening rebuilds the state, and fails where it does not make the head's root.
    let ledger = Ledger::open(LedgerOptions::new(dir.join("data/chain.db"), genesis), Vec::new()).unwrap();
    let head = ledger.head();
    ledger.stop();
    let theirs = source.get(&format!("/rpc/blocks/{height}")).await;
    let ours = (head.height, head.hash.to_string(), head.state_root.to_string());
    let text = |name: &str| theirs[name].as_str().unwrap().to_owned();
    assert_eq!(ours, (height, text("hash"), text("state_root")));
}

/// A message as a client hands it in.
fn message(genesis: &str, key: &SecretKey, to: tenon::chain::Address, nonce: u64, text: &str) -> Value {
    let tx = Transaction::new(Kind::Message, to, 0, 1, nonce, Payload::Text(text.into())).signed(genesis, key);
    serde_json::json!({
        "type": "message", "chain_id": genesis, "from": tx.from(), "to": tx.to, "amount": 0, "fee": 1, "nonce": nonce,
        "payload": text, "public_key": tx.public_key, "signature": tx.signature,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_ping_is_answered_once_however_often_the_agents_node_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("authority");
    let genesis = tokio::task::block_in_place(|| process::authority(&home, 0, 0));
    let alice = process::key(&home, "alice");
    let [from, bob] = ["alice", "bob"].map(|name| process::address(&home, name));
    let fast = [("TENON_PRODUCER_INTERVAL_MS", "20")];
    let mut node = Process::start_with(&home, &fast);
    let mut dice = Dice::new("pings");
    let (mut sent, kills) = (Vec::new(), 25);
    for kill in 0..kills {
        for _ in 0..1 + dice.roll(3) {
            // Every third is no ping: it must not be answered.
            let nonce = sent.len() as u64;
            let text = if dice.roll(3) == 0 { "shipping" } else { "ping" };
            let (status, answer) =
                node.post("/rpc/transaction", &message(&genesis.chain_id, &alice, bob, nonce, text)).await;
            assert_eq!(status, 200, "kill {kill}: {answer}");
            sent.push((answer["hash"].as_str().unwrap().to_owned(), text));
        }
        for _ in 0..dice.roll(60) {
            node.height().await;
        }
        node.kill();
        integrity(&home);
        node = Process::start_with(&home, &fast);
    }
    let pings = sent.iter().filter(|(_, text)| *text == "ping").count();
    let replies = |messages: &Value| {
        let all = messages["messages"].as_array().unwrap();
        all.iter().filter(|message| message["from"] == bob.to_string()).count()
    };
    let path = format!("/rpc/messages?address={from}&limit=1000");
    node.until(&path, |messages| replies(messages) >= pings).await;
    // Whatever else was on its way would be in the next blocks.
    let (_, answer) =
        node.post("/rpc/transaction", &message(&genesis.chain_id, &alice, bob, sent.len() as u64, "shipping")).await;
    let last = answer["hash"].as_str().unwrap().to_owned();
    node.until(&format!("/rpc/transaction/{last}"), |found| found["block_height"].is_u64()).await;
    let messages = node.get(&path).await;
    assert_eq!(replies(&messages), pings, "{messages}");
    // Every message of alice is on the chain once, too: accepted means kept.
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for message in messages["messages"].as_array().unwrap() {
        *seen.entry(message["hash"].as_str().unwrap()).or_default() += 1;
    }
    for (hash, _) in &sent {
        assert_eq!(seen.get(hash.as_str()), Some(&1), "{hash}");
    }
    println!("{kills} kills, {} messages, {pings} pings, {pings} replies", sent.len());
    node.stop();
}
