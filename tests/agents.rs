//! What agents set aside, on nodes as their operators have them: handled by itself when the handler is back, or by hand.

#[path = "support/process.rs"]
#[expect(dead_code, reason = "shared: each test file uses its part")]
mod process;

use std::fs;
use std::path::Path;
use std::time::Instant;

use process::{PATIENCE, Process, tenon};
use serde_json::{Value, json};
use tenon::chain::{Genesis, Kind, Payload, SecretKey, Transaction};

/// Blocks at once, alerts soon.
const FAST: [(&str, &str); 4] = [
    ("TENON_PRODUCER_INTERVAL_MS", "20"),
    ("TENON_PRODUCER_HEARTBEAT_MS", "100"),
    ("TENON_MONITOR_ALERT_SECONDS", "1"),
    ("TENON_MONITOR_CLEAR_SECONDS", "1"),
];

/// Who writes to `bob`.
struct Alice {
    genesis: Genesis,
    key: SecretKey,
    nonce: u64,
}

impl Alice {
    fn new(home: &Path, genesis: Genesis) -> Self {
        Self { genesis, key: process::key(home, "alice"), nonce: 0 }
    }

    async fn says(&mut self, node: &Process, text: &str) {
        let (chain, to) = (&self.genesis.chain_id, process::address(&node.dir, "bob"));
        let payload = Payload::Text(text.into());
        let tx = Transaction::new(Kind::Message, to, 0, 1, self.nonce, payload).signed(chain, &self.key);
        let body = json!({
            "type": "message", "chain_id": chain, "from": tx.from(), "to": tx.to, "amount": 0, "fee": 1,
            "nonce": self.nonce, "payload": text, "public_key": tx.public_key, "signature": tx.signature,
        });
        let (status, answer) = node.post("/rpc/transaction", &body).await;
        assert_eq!(status, 200, "{answer}");
        self.nonce += 1;
    }
}

/// Asks how bob stands until `done` is satisfied.
async fn bob(node: &Process, done: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let (status, agents) = node.admin("GET", "/admin/agents", None).await;
        assert_eq!((status, &agents[0]["name"]), (200, &json!("bob")), "{agents}");
        if done(&agents[0]) {
            return agents[0].clone();
        }
        assert!(started.elapsed() < PATIENCE, "bob stays at {agents}");
    }
}

/// What bob has written, once that is so many messages.
async fn written(node: &Process, count: usize) -> Vec<String> {
    let bob = process::address(&node.dir, "bob");
    let texts = |answer: &Value| -> Vec<String> {
        let messages = answer["messages"].as_array().unwrap().iter();
        let own = messages.filter(|message| message["from"] == bob.to_string());
        own.map(|message| message["payload"].as_str().unwrap().to_owned()).collect()
    };
    texts(&node.until(&format!("/rpc/messages?address={bob}&limit=1000"), |all| texts(all).len() >= count).await)
}

/// What a command on the node's directory prints, after making sure that it ended with `code`.
#[track_caller]
fn said(node: &Process, arguments: &[&str], code: i32) -> String {
    let output =
        tenon().args(["--output", "json", "agent"]).args(arguments).arg("--dir").arg(&node.dir).output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{out}\n{err}");
    out + &err
}

#[track_caller]
fn shown(node: &Process, arguments: &[&str]) -> Value {
    serde_json::from_str(&said(node, arguments, 0)).unwrap()
}

/// Waits for the alert that something is set aside to be in this state.
async fn alert(node: &Process, state: &str) {
    let is = |alert: &Value| alert["name"] == "agent-parked" && alert["subject"] == "bob" && alert["state"] == state;
    node.until("/rpc/alerts", |answer| answer["alerts"].as_array().unwrap().iter().any(is)).await;
}

/// Waits for a line of the metrics.
async fn metric(node: &Process, line: &str) {
    let started = Instant::now();
    loop {
        let text = reqwest::get(format!("{}/metrics", node.rpc)).await.unwrap().text().await.unwrap();
        if text.lines().any(|found| found == line) {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "`{line}` is not in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_comes_back_answers_each_message_that_came_meanwhile_once() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("node");
    let genesis = tokio::task::block_in_place(|| process::authority(&home, 0, 0));
    let (plugin, aside) = (home.join("plugins/ping-pong.wasm"), home.join("ping-pong.wasm"));
    fs::rename(&plugin, &aside).unwrap();
    let mut alice = Alice::new(&home, genesis);
    let node = Process::start_with(&home, &FAST);
    for _ in 0..3 {
        alice.says(&node, "ping").await;
    }
    let status = bob(&node, |bob| bob["parked"] == 3).await;
    assert_eq!((&status["unheard"], &status["handled"]), (&json!(3), &json!(0)), "{status}");
    let parked = shown(&node, &["parked", "bob"]);
    assert_eq!(parked.as_array().unwrap().len(), 3, "{parked}");
    assert_eq!((&parked[0]["text"], &parked[0]["unheard"]), (&json!("ping"), &json!(true)));
    assert!(parked[0]["reason"].as_str().unwrap().contains("no handler is loaded"), "{parked}");
    alert(&node, "firing").await;
    assert_eq!(node.get("/ready").await["ready"], true, "the chain is as well as ever");

    // A word of the operator does not help while nobody is there, and loses nothing.
    assert_eq!(shown(&node, &["retry"]), json!([{ "agent": "bob", "retried": 3 }]));
    alice.says(&node, "ping").await;
    bob(&node, |bob| bob["parked"] == 4 && bob["unheard"] == 4).await;
    node.kill();
    let node = Process::start_with(&home, &FAST);
    metric(&node, "tenon_agent_parked{agent=\"bob\"} 4").await;
    alert(&node, "firing").await;

    fs::rename(&aside, &plugin).unwrap();
    assert_eq!(written(&node, 4).await, ["pong"; 4]);
    assert_eq!(shown(&node, &["list"])[0]["parked"], 0);
    metric(&node, "tenon_agent_parked{agent=\"bob\"} 0").await;
    alert(&node, "resolved").await;
    // Whatever else was on its way would come before the answer to this one.
    node.kill();
    let node = Process::start_with(&home, &FAST);
    alice.says(&node, "ping").await;
    assert_eq!(written(&node, 5).await, ["pong"; 5]);
    assert_eq!(bob(&node, |bob| bob["replies_pending"] == 0).await["handled"], 5);
    node.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_handler_refused_is_tried_again_when_the_operator_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("node");
    let genesis = tokio::task::block_in_place(|| {
        fs::create_dir_all(&home).unwrap();
        process::authority(&home, 0, 0)
    });
    let component = tokio::task::block_in_place(|| tenon_build::path("faults-agent"));
    fs::copy(component, home.join("plugins/faults-agent.wasm")).unwrap();
    let file = home.join("tenon.toml");
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replace("handler = \"ping-pong\"", "handler = \"faults-agent\"");
    let text = text.replace("config = { trigger = \"ping\", reply = \"pong\" }", "config = { mode = \"error\" }");
    fs::write(&file, text).unwrap();
    let mut alice = Alice::new(&home, genesis);
    let node = Process::start_with(&home, &FAST);
    for text in ["first", "second"] {
        alice.says(&node, text).await;
    }
    let status = bob(&node, |bob| bob["parked"] == 2).await;
    assert_eq!(status["unheard"], 0, "{status}");
    let (status, slot) =
        node.admin("POST", "/admin/plugins/agent%2Fbob/config", Some(&json!({ "mode": "echo" }))).await;
    assert_eq!(status, 200, "{slot}");
    alice.says(&node, "third").await;
    assert_eq!(written(&node, 1).await, ["third"], "what was refused waits for a word");

    let parked = shown(&node, &["parked"]);
    let ids: Vec<String> = parked.as_array().unwrap().iter().map(|event| event["id"].to_string()).collect();
    assert_eq!((parked[1]["text"].as_str(), parked[1]["agent"].as_str()), (Some("second"), Some("bob")));
    let reason = "not handled, as the configuration demands";
    assert_eq!((parked[1]["reason"].as_str(), &parked[1]["unheard"]), (Some(reason), &json!(false)));
    for (arguments, named) in [
        (vec!["retry", "eve"], "no agent `eve`; known: bob"),
        (vec!["parked", "eve"], "no agent `eve`; known: bob"),
        (vec!["retry", "bob", "--id", "999"], "no event with the id 999"),
        (vec!["list", "--token", "wrong"], "token"),
    ] {
        let text = said(&node, &arguments, 1);
        assert!(text.contains(named), "{arguments:?}: {text}");
    }
    assert_eq!(shown(&node, &["retry", "bob", "--id", &ids[1]]), json!([{ "agent": "bob", "retried": 1 }]));
    assert_eq!(written(&node, 2).await, ["third", "second"]);
    let text = said(&node, &["retry", "bob", "--id", &ids[1]], 1);
    assert!(text.contains(&format!("no event with the id {}", ids[1])), "it was handled: {text}");
    assert_eq!(shown(&node, &["retry", "bob"]), json!([{ "agent": "bob", "retried": 1 }]));
    assert_eq!(written(&node, 3).await, ["third", "second", "first"]);
    assert_eq!(shown(&node, &["parked", "bob"]), json!([]));
    node.stop();
}
