//! Monitoring with real nodes: what `/ready` says and why, which alerts come and go, and to whom they are told.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};
use tenon::chain::{Block, Kind, Payload, Time, Transaction};
use tenon::config::Config;
use tenon::monitor::alert::{AlertStatus, Severity};
use tenon::monitor::webhook::{Sender, Webhook, WebhookConfig};
use tenon::node::Node;
use tenon::sample::Sample;
use tokio::sync::watch;

#[expect(dead_code, reason = "shared: each test file uses its part")]
#[path = "support/process.rs"]
mod process;
#[expect(dead_code, reason = "shared: each test file uses its part")]
#[path = "support/source.rs"]
mod source;
use process::{Process, authority, follower};
use source::{Fault, TestSource};

/// After this a wait has failed: far longer than anything here takes.
const HANG: Duration = Duration::from_secs(120);

/// A node in this process, and a client of it.
struct Running {
    node: Option<Node>,
    client: reqwest::Client,
    url: String,
    _dir: tempfile::TempDir,
}

/// Starts a follower of `sources` on the chain of a sample; alerts come after a second and go after one.
async fn follow(sample: &Sample, sources: &[&TestSource], change: impl FnOnce(&mut Config)) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("genesis.json"), sample.genesis().to_json()).unwrap();
    std::fs::write(path("admin.token"), "a token").unwrap();
    let mut config = Config::parse("", [], dir.path()).unwrap();
    config.rpc.listen = "127.0.0.1:0".parse().unwrap();
    config.admin.listen = "127.0.0.1:0".parse().unwrap();
    config.sync.sources = sources.iter().map(|source| source.url().to_owned()).collect();
    (config.sync.poll_ms, config.sync.request_timeout_ms) = (20, 400);
    (config.monitor.alert_seconds, config.monitor.clear_seconds, config.monitor.lag_seconds) = (1, 1, 1);
    config.monitor.disk_free_min_bytes = 0;
    change(&mut config);
    let node = Node::start(config, dir.path()).await.unwrap();
    let url = format!("http://{}", node.rpc_addr());
    Running { node: Some(node), client: reqwest::Client::builder().no_proxy().build().unwrap(), url, _dir: dir }
}

impl Running {
    async fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.client.get(format!("{}{path}", self.url)).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Asks until `done` is satisfied with status and answer.
    async fn until(&self, path: &str, done: impl Fn(u16, &Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let (status, answer) = self.get(path).await;
            if done(status, &answer) {
                return answer;
            }
            assert!(started.elapsed() < HANG, "{path} stays at {status} {answer}");
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the node is ready.
    async fn ready(&self) {
        self.until("/ready", |status, answer| status == 200 && answer["ready"] == true).await;
    }

    /// Waits until the node is not ready for this reason, and says why.
    async fn not_ready(&self, code: &str) -> String {
        let answer = self.until("/ready", |status, answer| status == 503 && answer["reasons"][0]["code"] == code).await;
        answer["reasons"][0]["text"].as_str().unwrap().to_owned()
    }

    /// Waits until an alert is in this state.
    async fn alert(&self, name: &str, state: &str) -> Value {
        let is = |alert: &&Value| alert["name"] == name && alert["state"] == state;
        let find = |answer: &Value| answer["alerts"].as_array().unwrap().iter().find(is).cloned();
        find(&self.until("/rpc/alerts", |_, answer| find(answer).is_some()).await).unwrap()
    }

    async fn stop(mut self) {
        let node = self.node.take().expect("it is there until now");
        tokio::time::timeout(HANG, node.stop()).await.expect("it stops");
    }
}

/// A source with a few blocks, and a follower of it that is live.
async fn live(change: impl FnOnce(&mut Config)) -> (Sample, Vec<Block>, TestSource, Running) {
    let mut sample = Sample::new(11, 5);
    let blocks = sample.blocks(20, 1);
    let source = TestSource::start(sample.genesis(), &blocks).await;
    let running = follow(&sample, &[&source], change).await;
    running.ready().await;
    (sample, blocks, source, running)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_source_goes_away_is_not_ready_and_alarms() {
    let (_, _, source, running) = live(|_| {}).await;
    assert_eq!(running.get("/rpc/alerts").await.1, json!({ "firing": 0, "pending": 0, "alerts": [] }));
    let url = source.url().to_owned();
    drop(source);
    let why = running.not_ready("no-source").await;
    assert!(why.contains(&url) && why.contains("cannot connect"), "{why}");
    let alert = running.alert("no-source", "firing").await;
    let time = |name: &str| alert[name].as_str().unwrap().parse::<Time>().unwrap();
    assert!(time("at").ms_since(time("since")) >= 1_000, "not before it has lasted: {alert}");
    assert_eq!((&alert["severity"], &alert["subject"]), (&json!("critical"), &json!("")));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_on_another_chain_than_its_source_is_not_ready_until_they_agree() {
    let (_, blocks, source, running) = live(|_| {}).await;
    let mut other = Sample::new(11, 5);
    let mut theirs = other.blocks(10, 1);
    theirs.extend(other.blocks(10, 2));
    source.replace(&theirs);
    let why = running.not_ready("diverged").await;
    assert!(why.starts_with("block 11 is "), "{why}");
    let alert = running.alert("diverged", "firing").await;
    assert_eq!(alert["subject"], source.url());
    source.replace(&blocks);
    running.ready().await;
    running.alert("diverged", "resolved").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_is_ahead_of_its_source_alarms() {
    let (_, blocks, source, running) = live(|_| {}).await;
    source.replace(&blocks[..15]);
    let why = running.not_ready("ahead").await;
    assert_eq!(why, "block 20 is here, and no source has more than 15");
    running.alert("ahead", "firing").await;
    source.replace(&blocks);
    running.ready().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_gets_no_blocks_is_behind_and_catches_up() {
    let (mut sample, _, source, running) = live(|_| {}).await;
    source.set_fault(Fault::Garbage);
    source.extend(&sample.blocks(30, 1));
    let why = running.not_ready("behind").await;
    assert!(why.starts_with("20 of 50 blocks are here, and no new one for "), "{why}");
    running.alert("stuck", "firing").await;
    running.alert("lag-blocks", "firing").await;
    source.set_fault(Fault::None);
    running.ready().await;
    running.alert("stuck", "resolved").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_claims_too_much_keeps_nobody_from_being_ready() {
    let mut sample = Sample::new(11, 5);
    let blocks = sample.blocks(20, 1);
    let honest = TestSource::start(sample.genesis(), &blocks).await;
    let boaster = TestSource::start(sample.genesis(), &blocks).await;
    boaster.claim(Some((1_000_000, tenon::chain::Hash([7; 32]))));
    let running = follow(&sample, &[&honest, &boaster], |_| {}).await;
    running.ready().await;
    assert_eq!(running.get("/rpc/sync/status").await.1["head_height"], 20);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_is_not_ready_before_it_has_heard_a_source() {
    let sample = Sample::new(11, 5);
    let source = TestSource::start(sample.genesis(), &[]).await;
    source.set_fault(Fault::Refuses(503));
    let running = follow(&sample, &[&source], |_| {}).await;
    let (status, answer) = running.get("/ready").await;
    assert_eq!(status, 503, "{answer}");
    assert!(["starting", "no-source"].contains(&answer["sync_state"].as_str().unwrap()), "{answer}");
    assert_eq!((&answer["height"], &answer["ready"]), (&json!(0), &json!(false)));
    source.set_fault(Fault::None);
    running.ready().await;
    running.stop().await;
}

/// What a receiver of alerts got, and how it is to answer.
#[derive(Default)]
struct Receiver {
    posts: watch::Sender<Vec<Value>>,
    /// Answers that are still to be given; after them, 200.
    answers: Mutex<Vec<Answer>>,
}

#[derive(Clone, Copy)]
enum Answer {
    Status(u16),
    Never,
}

/// A receiver on a free port, and its address.
async fn receiver(answers: &[Answer]) -> (Arc<Receiver>, String) {
    async fn take(State(receiver): State<Arc<Receiver>>, axum::Json(post): axum::Json<Value>) -> StatusCode {
        let answer = receiver.answers.lock().unwrap().pop();
        receiver.posts.send_modify(|posts| posts.push(post));
        match answer {
            None => StatusCode::OK,
            Some(Answer::Status(status)) => StatusCode::from_u16(status).unwrap(),
            Some(Answer::Never) => std::future::pending().await,
        }
    }
    let answers = Mutex::new(answers.iter().rev().copied().collect());
    let receiver = Arc::new(Receiver { answers, ..Receiver::default() });
    let router = axum::Router::new().route("/hook", axum::routing::post(take)).with_state(Arc::clone(&receiver));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (receiver, url)
}

impl Receiver {
    /// The posts, once there are `count`.
    async fn posts(&self, count: usize) -> Vec<Value> {
        let mut posts = self.posts.subscribe();
        let waited = tokio::time::timeout(HANG, posts.wait_for(|posts| posts.len() >= count)).await;
        waited.expect("alerts are posted").unwrap().clone()
    }
}

fn webhook(url: &str) -> Webhook {
    let config = WebhookConfig {
        url: url.parse().unwrap(),
        timeout: Duration::from_millis(200),
        pause_first: Duration::from_millis(1),
        pause_max: Duration::from_millis(20),
    };
    let text = |text: &str| text.to_owned();
    let sender = Sender { node_id: text("n"), chain_id: text("c"), role: "follower", rpc: text("127.0.0.1:1") };
    Webhook::new(config, sender).unwrap()
}

fn alert(name: &'static str, state: &'static str, at: u64) -> AlertStatus {
    AlertStatus {
        name,
        subject: String::new(),
        severity: Severity::Critical,
        state,
        since: Time(0),
        at: Time(at),
        text: "what there is to say".into(),
        about: "about",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_fails_and_stalls_gets_every_alert_in_the_end() {
    let (receiver, url) =
        receiver(&[Answer::Status(500), Answer::Never, Answer::Status(302), Answer::Status(404)]).await;
    let webhook = webhook(&url);
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(webhook.clone().run(stopped));
    webhook.push(alert("diverged", "firing", 1));
    let posts = receiver.posts(5).await;
    let first = &posts[0];
    assert!(posts.iter().all(|post| post == first), "the same until it is taken: {posts:#?}");
    assert_eq!((&first["alert"]["name"], &first["alert"]["state"]), (&json!("diverged"), &json!("firing")));
    assert_eq!(first["text"], "[firing] diverged on c at 127.0.0.1:1: what there is to say");
    assert_eq!((&first["node"]["node_id"], &first["node"]["role"]), (&json!("n"), &json!("follower")));
    // Once it was taken it does not come again.
    webhook.push(alert("disk", "firing", 2));
    let posts = receiver.posts(6).await;
    assert_eq!((posts.len(), &posts[5]["alert"]["name"]), (6, &json!("disk")));
    assert_ne!(posts[5]["id"], first["id"]);
    stop.send_replace(true);
    tokio::time::timeout(HANG, task).await.expect("it stops").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_was_away_hears_how_things_are_now() {
    let (receiver, url) = receiver(&[Answer::Never]).await;
    let webhook = webhook(&url);
    let (_stop, stopped) = watch::channel(false);
    let task = tokio::spawn(webhook.clone().run(stopped));
    webhook.push(alert("stuck", "firing", 1));
    receiver.posts(1).await;
    // While the first post stalls, the alert goes and comes, and another one comes; none of it is waited for.
    for (state, at) in [("resolved", 2), ("firing", 3), ("resolved", 4)] {
        webhook.push(alert("stuck", state, at));
    }
    webhook.push(alert("disk", "firing", 5));
    let posts = receiver.posts(3).await;
    let told: Vec<_> =
        posts[1..].iter().map(|post| (post["alert"]["name"].clone(), post["alert"]["state"].clone())).collect();
    assert_eq!(told, [(json!("stuck"), json!("resolved")), (json!("disk"), json!("firing"))]);
    task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_alerts_reach_its_webhook_and_a_stalled_one_does_not_hold_it_up() {
    let (receiver, url) = receiver(&[Answer::Never]).await;
    let (_, blocks, source, running) = live(|config| {
        config.monitor.webhook = url;
        // However long the first blocks take, they are no alert.
        (config.monitor.lag_blocks, config.monitor.lag_seconds) = (1_000, 1_000);
    })
    .await;
    source.replace(&blocks[..5]);
    let post = receiver.posts(1).await.remove(0);
    assert_eq!((&post["alert"]["name"], &post["alert"]["state"]), (&json!("ahead"), &json!("firing")));
    assert_eq!(post["node"]["chain_id"], json!("sample-11"));
    // It never answers that post, and the node goes on.
    source.replace(&blocks);
    running.ready().await;
    running.alert("ahead", "resolved").await;
    running.stop().await;
}

/// The names of metrics in an expression.
fn names(expression: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    expression.split(|c| !is_name(c)).filter(|word| word.starts_with("tenon_")).map(str::to_owned).collect()
}

/// Every expression in a JSON value: the text of each `expr` and `query`.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "expr" || name == "query" => found.push(text.clone()),
                    other => expressions(other, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/monitoring").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_and_board_use_metrics_that_nodes_have() {
    let dir = tempfile::tempdir().unwrap();
    let (leader_dir, follower_dir) = (dir.path().join("authority"), dir.path().join("follower"));
    tokio::task::block_in_place(|| authority(&leader_dir, 3, 1));
    let leader = Process::start(&leader_dir);
    follower(&follower_dir, &leader.rpc);
    let follower = Process::start(&follower_dir);
    follower.until("/ready", |answer| answer["ready"] == true).await;
    let mut exported = BTreeSet::new();
    for node in [&leader, &follower] {
        // Disk and plugins are looked at after the start.
        let started = Instant::now();
        let text = loop {
            let text = reqwest::get(format!("{}/metrics", node.rpc)).await.unwrap().text().await.unwrap();
            if text.contains("tenon_disk_free_bytes") {
                break text;
            }
            assert!(started.elapsed() < HANG, "{text}");
            tokio::task::yield_now().await;
        };
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        exported.extend(lines.filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned));
        for rule in tenon::monitor::rules::RULES {
            for state in ["pending", "firing"] {
                let line = format!("tenon_alert{{name=\"{}\",state=\"{state}\"}} 0", rule.name);
                assert!(text.contains(&line), "{line} is not in\n{text}");
            }
        }
    }

    let rules: Value = serde_saphyr::from_str(&example("tenon-rules.yml")).unwrap();
    let board: Value = serde_json::from_str(&example("tenon-dashboard.json")).unwrap();
    let config: Value = serde_saphyr::from_str(&example("prometheus.yml")).unwrap();
    assert_eq!(config["rule_files"][0], "tenon-rules.yml");
    let each: Vec<&Value> =
        rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
    let alerts: BTreeSet<_> = each.iter().map(|rule| rule["alert"].as_str().unwrap()).collect();
    assert_eq!(alerts.len(), each.len(), "names are told apart");
    for rule in each {
        let has = |name: &str| rule["annotations"][name].is_string() || rule["labels"][name].is_string();
        assert!(has("severity") && has("summary"), "{rule}");
    }
    for (file, value, least) in [("rules", &rules, 15), ("board", &board, 30)] {
        let mut found = Vec::new();
        expressions(value, &mut found);
        let used: BTreeSet<_> = found.iter().flat_map(|expression| names(expression)).collect();
        assert!(used.len() >= least, "{file}: {used:?}");
        let unknown: Vec<_> = used.difference(&exported).collect();
        assert!(unknown.is_empty(), "the {file} use what no node exports: {unknown:?}");
    }
    let ids: BTreeSet<_> =
        board["panels"].as_array().unwrap().iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), board["panels"].as_array().unwrap().len(), "panels are told apart");

    // And every metric is in the table of the README.
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let stem = |name: &str| {
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        histogram.filter(|stem| stem.ends_with("_seconds")).unwrap_or(name).to_owned()
    };
    let missing: BTreeSet<_> =
        exported.iter().map(|name| stem(name)).filter(|name| !readme.contains(&format!("`{name}"))).collect();
    assert!(missing.is_empty(), "the README does not name {missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_alone_is_ready_and_alarms_when_it_makes_no_block() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("authority");
    let genesis = authority(&dir, 0, 0);
    // So long an interval that no block comes while this runs.
    let file = dir.join("tenon.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("interval_ms = 2000", "interval_ms = 3600000\nheartbeat_ms = 3600000");
    std::fs::write(&file, text).unwrap();
    let node = Process::start_with(&dir, &[("TENON_MONITOR_LAG_SECONDS", "1"), ("TENON_LOG", "off")]);
    let ready = node.get("/ready").await;
    assert_eq!(
        (&ready["ready"], &ready["sync_state"], &ready["reasons"]),
        (&json!(true), &json!("authority"), &json!([]))
    );
    let (alice, bob) = (process::key(&dir, "alice"), process::address(&dir, "bob"));
    let submit = async |nonce: u64| {
        let transaction = Transaction::new(Kind::Transfer, bob, 1, 1, nonce, Payload::Absent);
        let transaction = transaction.signed(&genesis.chain_id, &alice);
        let body = json!({
            "type": "transfer", "chain_id": genesis.chain_id, "from": transaction.from(), "to": bob, "amount": 1,
            "fee": 1, "nonce": nonce, "public_key": transaction.public_key, "signature": transaction.signature,
        });
        let (status, answer) = node.post("/rpc/transaction", &body).await;
        assert_eq!(status, 200, "{answer}");
    };
    let started = Instant::now();
    let mut nonce = 0;
    loop {
        let alerts = node.get("/rpc/alerts").await;
        let is = |alert: &Value| alert["name"] == "production" && alert["state"] == "firing";
        if alerts["alerts"].as_array().unwrap().iter().any(is) {
            break;
        }
        // The interval's first tick, at the start, may have come late and taken it.
        if node.get("/health").await["mempool"] == 0 {
            submit(nonce).await;
            nonce += 1;
        }
        assert!(started.elapsed() < HANG, "{alerts}");
        tokio::task::yield_now().await;
    }
    assert!(nonce <= 2, "one block at most");
    assert_eq!(node.get("/ready").await["ready"], true, "what is here is right");
}
