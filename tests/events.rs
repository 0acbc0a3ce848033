//! What happens in a node, told over real HTTP: streams that are left and taken up again, across restarts too, and what
//! is said to those who are too slow.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde_json::{Value, json};
use tenon::chain::{Address, Kind, Payload, Transaction, verify};
use tenon::events::{self, HubLimits};
use tenon::rate_limit::token_bucket::Settings;
use tenon::rpc::RpcConfig;
use tenon::sample::Sample;
use tenon::sync::SyncState;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

#[expect(dead_code, reason = "shared: each test file uses its part")]
mod support;
use support::node::{Answer, Node, start, start_in};

/// After this a wait has failed: far longer than anything here takes.
const HANG: Duration = Duration::from_secs(60);

async fn node(sample: &Sample) -> Node {
    start(sample.genesis(), sample.authority(), Settings::default(), RpcConfig::default()).await
}

async fn node_with(sample: &Sample, limits: HubLimits) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let config = RpcConfig::default();
    start_in(dir, sample.genesis(), sample.authority(), Settings::default(), config, limits).await
}

/// Adds blocks of a sample to a node's chain.
async fn import(node: &Node, sample: &mut Sample, blocks: usize, transactions: usize) {
    let blocks = verify::verify_all(sample.blocks(blocks, transactions), sample.genesis());
    let blocks = blocks.into_iter().map(Result::unwrap).collect();
    for imported in node.ledger.import(blocks).await {
        imported.unwrap();
    }
}

/// Hands a transaction to a node's mempool; answers its hash.
async fn submit(node: &Node, sample: &Sample, kind: Kind, amount: u64, payload: Payload) -> Value {
    let to = Address::of(&sample.accounts()[1].public_key());
    let from = Address::of(&sample.accounts()[0].public_key());
    let account = node.json(&format!("/rpc/accounts/{from}")).await;
    let nonce = account["next_nonce"].as_u64().unwrap();
    let transaction =
        Transaction::new(kind, to, amount, 1, nonce, payload).signed(&sample.genesis().chain_id, &sample.accounts()[0]);
    json!(node.mempool.submit_transaction(transaction).await.unwrap())
}

/// An event as a client has it.
#[derive(Clone, Debug)]
struct Event {
    name: String,
    id: Option<String>,
    data: Value,
}

/// A client of `/rpc/events`.
struct Client {
    bytes: BoxStream<'static, Vec<u8>>,
    text: String,
    events: VecDeque<Event>,
    /// The last id that came.
    last: String,
}

impl Client {
    /// Connects, and reads the `start`.
    async fn connect(node: &Node, query: &str, last_event_id: Option<&str>) -> Self {
        let mut request = node.client.get(format!("{}/rpc/events{query}", node.url));
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let bytes = answer.bytes_stream().map(|bytes| bytes.unwrap_or_default().to_vec()).boxed();
        let mut client = Self { bytes, text: String::new(), events: VecDeque::new(), last: String::new() };
        assert_eq!(client.next().await.name, "start");
        client
    }

    /// The next event; none at the end of the stream.
    async fn try_next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                if let Some(id) = &event.id {
                    self.last.clone_from(id);
                }
                return Some(event);
            }
            let bytes = tokio::time::timeout(HANG, self.bytes.next()).await.expect("an event comes")?;
            self.text.push_str(std::str::from_utf8(&bytes).unwrap());
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                    line.map(|value| value.trim_start().to_owned())
                };
                if let (Some(name), Some(data)) = (field("event"), field("data")) {
                    self.events.push_back(Event { name, id: field("id"), data: serde_json::from_str(&data).unwrap() });
                }
                self.text = rest.to_owned();
            }
        }
    }

    async fn next(&mut self) -> Event {
        self.try_next().await.expect("the stream goes on")
    }

    /// The heights of the next blocks, which come one after the other and with nothing between them.
    async fn heights(&mut self, count: usize) -> Vec<u64> {
        let mut heights = Vec::new();
        for _ in 0..count {
            let event = self.next().await;
            assert_eq!(event.name, "block", "{event:?}");
            heights.push(event.data["height"].as_u64().unwrap());
        }
        heights
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_told_when_it_waits_and_when_it_is_in_a_block_and_then_the_block() {
    let sample = Sample::new(3, 4);
    let node = node(&sample).await;
    let mut client = Client::connect(&node, "?types=block,transaction,message", None).await;
    let hash = submit(&node, &sample, Kind::Transfer, 5, Payload::Absent).await;
    let pending = client.next().await;
    assert_eq!(
        (pending.name.as_str(), &pending.data["status"], &pending.data["hash"]),
        ("transaction", &json!("pending"), &hash)
    );
    assert_eq!((&pending.data["amount"], pending.data.get("block_height")), (&json!(5), None));
    node.produce().await;
    let confirmed = client.next().await;
    assert_eq!((&confirmed.data["status"], &confirmed.data["hash"]), (&json!("confirmed"), &hash));
    assert_eq!((&confirmed.data["block_height"], &confirmed.data["cursor"]), (&json!(1), &json!("1.0")));
    let block = client.next().await;
    assert_eq!((block.name.as_str(), &block.data["tx_count"]), ("block", &json!(1)));
    assert_eq!(block.data, node.json("/rpc/blocks/1?include_tx=false").await, "as it is served elsewhere");

    // A message, told as the list of messages has it.
    let hash = submit(&node, &sample, Kind::Message, 0, Payload::Text("ping".into())).await;
    assert_eq!(client.next().await.data["status"], "pending");
    node.produce().await;
    assert_eq!(client.next().await.data["status"], "confirmed");
    let message = client.next().await;
    let to = Address::of(&sample.accounts()[1].public_key());
    let listed = node.json(&format!("/rpc/messages?address={to}")).await;
    assert_eq!((message.name.as_str(), &message.data), ("message", &listed["messages"][0]));
    assert_eq!((&message.data["hash"], &message.data["payload"]), (&hash, &json!("ping")));
    assert_eq!(client.heights(1).await, [2]);

    // One that will never be in a block.
    let hash = submit(&node, &sample, Kind::Transfer, 7, Payload::Absent).await;
    client.next().await;
    let parsed = hash.as_str().unwrap().parse().unwrap();
    node.mempool.drop_transactions(vec![(parsed, "it was too slow".into())]).await.unwrap();
    let dropped = client.next().await;
    assert_eq!((&dropped.data["status"], &dropped.data["reason"]), (&json!("dropped"), &json!("it was too slow")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_is_told_what_it_asked_for() {
    let sample = Sample::new(3, 4);
    let node = node(&sample).await;
    let mut alerts = Client::connect(&node, "?types=alert,sync", None).await;
    let mut all = Client::connect(&node, "", None).await;
    node.produce().await;
    assert_eq!(all.heights(1).await, [1]);
    node.sync.send_modify(|status| (status.state, status.lag_blocks) = (SyncState::Ahead, 0));
    let sync = alerts.next().await;
    assert_eq!(
        (sync.name.as_str(), &sync.data["from"], &sync.data["to"]),
        ("sync", &json!("authority"), &json!("ahead"))
    );
    assert_eq!(all.next().await.name, "sync");
    node.monitor.look();
    let alert = alerts.next().await;
    assert_eq!(
        (alert.name.as_str(), &alert.data["name"], &alert.data["state"]),
        ("alert", &json!("ahead"), &json!("firing"))
    );
    let listed = node.json("/rpc/alerts").await;
    assert_eq!((&listed["firing"], &listed["alerts"][0]), (&json!(1), &alert.data));
    node.sync.send_modify(|status| status.state = SyncState::Live);
    assert_eq!(alerts.next().await.data["to"], "live");
    // Once to see it clear, and once to see it clear for long enough.
    node.monitor.look();
    let over = alerts.next().await;
    assert_eq!((&over.data["name"], &over.data["state"]), (&json!("ahead"), &json!("resolved")));
    assert_eq!(node.json("/rpc/alerts").await["firing"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_to_plugins_is_told() {
    let sample = Sample::new(3, 4);
    let node = node(&sample).await;
    let mut client = Client::connect(&node, "?types=plugin", None).await;
    std::fs::write(node.plugin_dir().join("broken.wasm"), "nonsense").unwrap();
    node.host.open();
    let event = client.next().await;
    assert_eq!((event.name.as_str(), &event.data["event"]), ("plugin", &json!("rejected")));
    assert!(event.data["path"].as_str().unwrap().ends_with("broken.wasm"), "{event:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_goes_on_where_it_left() {
    let mut sample = Sample::new(3, 4);
    let node = node(&sample).await;
    let mut client = Client::connect(&node, "?types=block,alert", None).await;
    import(&node, &mut sample, 3, 1).await;
    assert_eq!(client.heights(2).await, [1, 2]);
    let last = client.last.clone();
    let mut witness = Client::connect(&node, "?types=block", Some(&last)).await;
    drop(client);
    import(&node, &mut sample, 2, 0).await;
    assert_eq!(witness.heights(3).await, [3, 4, 5], "they are told by now");
    node.events.post(events::Kind::Alert, "{\"n\":1}".into());
    for way in ["header", "parameter"] {
        let query = format!("?types=block,alert&after={last}");
        let mut client = match way {
            "header" => Client::connect(&node, "?types=block,alert", Some(&last)).await,
            _ => Client::connect(&node, &query, None).await,
        };
        assert_eq!(client.heights(3).await, [3, 4, 5], "{way}");
        assert_eq!(client.next().await.data, json!({ "n": 1 }), "{way}");
        let ids: Vec<u64> =
            [&last, &client.last].iter().map(|id| id.split('.').next().unwrap().parse().unwrap()).collect();
        assert!(ids[0] < ids[1], "ids grow");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_after_a_restart_has_every_block_and_is_told_what_may_be_missing() {
    let mut sample = Sample::new(3, 4);
    let first = node(&sample).await;
    let mut client = Client::connect(&first, "?types=block,message,alert", None).await;
    import(&first, &mut sample, 2, 1).await;
    assert_eq!(client.heights(2).await, [1, 2]);
    let last = client.last.clone();
    drop(client);
    import(&first, &mut sample, 3, 0).await;
    let dir = first.end();
    let second = start_in(
        dir,
        sample.genesis(),
        sample.authority(),
        Settings::default(),
        RpcConfig::default(),
        HubLimits::default(),
    )
    .await;
    import(&second, &mut sample, 2, 0).await;
    let mut blocks = Client::connect(&second, "?types=block,message", Some(&last)).await;
    assert_eq!(blocks.heights(5).await, [3, 4, 5, 6, 7], "nothing is missing, so nothing is said");
    // Left in the middle, taken up again: what is told from the database has ids, too.
    let mut client = Client::connect(&second, "?types=block,alert", Some(&last)).await;
    let reset = client.next().await;
    assert_eq!(reset.data, json!({ "reason": "restart", "types": ["alert"], "next_height": 3 }));
    assert_eq!(client.heights(2).await, [3, 4]);
    let last = client.last.clone();
    drop(client);
    let mut client = Client::connect(&second, "?types=block", Some(&last)).await;
    assert_eq!(client.heights(3).await, [5, 6, 7]);
    import(&second, &mut sample, 1, 0).await;
    assert_eq!(client.heights(1).await, [8], "and on with what happens now");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_for_too_long_or_on_another_chain_starts_anew() {
    let mut sample = Sample::new(3, 4);
    let node = node(&sample).await;
    let mut told = Client::connect(&node, "?types=block", None).await;
    import(&node, &mut sample, 1_005, 0).await;
    // So many at once are not told one by one; the last of them always is.
    while told.next().await.data["height"] != 1_005 {}
    let genesis = node.json("/rpc/blocks/0?include_tx=false").await;
    let id = format!("5.0.{}", &genesis["hash"].as_str().unwrap()[2..10]);
    let mut client = Client::connect(&node, "?types=block", Some(&id)).await;
    let reset = client.next().await;
    assert_eq!(reset.data, json!({ "reason": "too-far", "types": ["block"], "next_height": 1_006 }));
    import(&node, &mut sample, 1, 0).await;
    assert_eq!(client.heights(1).await, [1_006]);
    for id in ["5.900.00000000", "5.2000.00000000"] {
        let mut client = Client::connect(&node, "?types=block", Some(id)).await;
        let reset = client.next().await;
        assert_eq!(reset.data, json!({ "reason": "reorg", "types": ["block"], "next_height": 1_007 }), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_come_faster_than_they_can_be_told_are_named() {
    let mut sample = Sample::new(3, 4);
    let node = node(&sample).await;
    let mut client = Client::connect(&node, "?types=block", None).await;
    import(&node, &mut sample, 2_500, 0).await;
    let mut next = 1;
    let mut lost = 0;
    while next <= 2_500 {
        let event = client.next().await;
        let number = |name: &str| event.data[name].as_u64().unwrap();
        if event.name == "lost" {
            assert_eq!(number("first_height"), next);
            lost += number("last_height") + 1 - next;
            next = number("last_height") + 1;
        } else {
            assert_eq!((event.name.as_str(), number("height")), ("block", next));
            next += 1;
        }
    }
    assert!(lost > 1_000, "2,500 at once are more than are told");
}

/// On one thread, so that nobody reads while events are posted.
#[tokio::test]
async fn a_slow_listener_is_told_what_it_lost_and_where_to_go_on() {
    let mut sample = Sample::new(3, 4);
    let node = node_with(&sample, HubLimits { events_max: 4, ..HubLimits::default() }).await;
    let mut client = Client::connect(&node, "?types=block,alert", None).await;
    import(&node, &mut sample, 1, 0).await;
    assert_eq!(client.heights(1).await, [1]);
    let last = client.last.clone();
    for alert in 0..100 {
        node.events.post(events::Kind::Alert, alert.to_string());
    }
    let lost = client.next().await;
    assert_eq!((lost.name.as_str(), &lost.data), ("lost", &json!({ "events": 96, "resume": last })));
    for alert in 96..100 {
        assert_eq!(client.next().await.data, json!(alert));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_may_listen_and_no_more() {
    let sample = Sample::new(3, 4);
    let node = node_with(&sample, HubLimits { listeners_max: 1, ..HubLimits::default() }).await;
    let client = Client::connect(&node, "", None).await;
    let refused = node.get("/rpc/events").await;
    assert_eq!(refused.header("retry-after"), "1");
    assert!(refused.detail(503).contains("rpc.event_streams_max"));
    drop(client);
    // Its leaving is noticed when something is said to it, or the connection ends.
    let started = std::time::Instant::now();
    while node.events.listeners() > 0 {
        assert!(started.elapsed() < HANG);
        node.events.post(events::Kind::Alert, "1".into());
        tokio::task::yield_now().await;
    }
    Client::connect(&node, "", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_request_is_named() {
    let sample = Sample::new(3, 4);
    let node = node(&sample).await;
    for (query, part) in [
        ("?types=blocks", "field `types`: `blocks` is no type of event; known are block, transaction"),
        ("?after=7", "field `after`: expected the id of an event"),
        ("?type=block", "unknown parameter `type`"),
    ] {
        let detail = node.get(&format!("/rpc/events{query}")).await.detail(400);
        assert!(detail.contains(part), "{query}: {detail}");
    }
    let request = node.client.get(format!("{}/rpc/events", node.url)).header("last-event-id", "x");
    assert!(Answer::of(request).await.detail(400).contains("field `Last-Event-ID`"));
    let detail = node.get("/rpc/ws/blocks").await.detail(400);
    assert!(detail.contains("a WebSocket is opened here"), "{detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_ends_its_streams() {
    let sample = Sample::new(3, 4);
    let mut node = node(&sample).await;
    let mut client = Client::connect(&node, "", None).await;
    let (mut socket, _) = socket(&node, "/rpc/ws/blocks").await;
    node.stop.send_replace(true);
    assert!(client.try_next().await.is_none());
    assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))));
    tokio::time::timeout(HANG, &mut node.server).await.expect("no stream holds the server up").unwrap();
}

type Socket = tokio_tungstenite::WebSocketStream<TcpStream>;

/// A WebSocket to the node, and its first frame.
async fn socket(node: &Node, path: &str) -> (Socket, Value) {
    let address = node.url.strip_prefix("http://").unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://{address}{path}"), stream).await.unwrap();
    let first = frame(&mut socket).await;
    (socket, first)
}

async fn frame(socket: &mut Socket) -> Value {
    let frame = tokio::time::timeout(HANG, socket.next()).await.expect("a frame comes").unwrap().unwrap();
    serde_json::from_str(frame.to_text().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_and_transactions_come_over_websockets_too() {
    let sample = Sample::new(3, 4);
    let node = node(&sample).await;
    let (mut blocks, start) = socket(&node, "/rpc/ws/blocks").await;
    assert_eq!((&start["type"], start["height"].as_u64()), (&json!("start"), Some(0)));
    let (mut transactions, _) = socket(&node, "/rpc/ws/transactions").await;
    assert_eq!(node.events.listeners(), 2);
    let hash = submit(&node, &sample, Kind::Transfer, 5, Payload::Absent).await;
    // A frame says what is so when it is sent: the block waits for the first.
    let waiting = frame(&mut transactions).await;
    assert_eq!((&waiting["hash"], &waiting["status"]), (&hash, &json!("pending")));
    node.produce().await;
    let block = frame(&mut blocks).await;
    assert_eq!(block, node.json("/rpc/blocks/1?include_tx=false").await);
    let confirmed = frame(&mut transactions).await;
    assert_eq!((&confirmed["hash"], &confirmed["status"]), (&hash, &json!("confirmed")));
    drop(blocks);
    let started = std::time::Instant::now();
    while node.events.listeners() > 1 {
        assert!(started.elapsed() < HANG, "its leaving is noticed");
        tokio::task::yield_now().await;
    }
}
