//! The node over HTTP: every route's answer, every refusal by name, the limits, the operator's routes.

#[expect(dead_code, reason = "shared: each test file uses its part")]
mod support;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use support::node::{Answer, Node, TOKEN, agent_key, start};
use tenon::chain::{Address, Block, Hash, Header, Kind, Payload, SecretKey, Time, Transaction, format, merkle, verify};
use tenon::rate_limit::token_bucket::{Rate, Settings, Trusted};
use tenon::rpc::wire::BlockJson;
use tenon::rpc::{BLOCKS_MEDIA_TYPE, ROUTES, RpcConfig};
use tenon::sample::Sample;
use tenon::sync::{SyncState, SyncStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const BLOCKS: usize = 12;

/// A node with a few blocks of three transactions each, and what made them.
async fn node() -> (Node, Sample) {
    let mut sample = Sample::new(7, 5);
    let node = start(sample.genesis(), sample.authority(), Settings::default(), RpcConfig::default()).await;
    let blocks = verify::verify_all(sample.blocks(BLOCKS, 3), sample.genesis());
    let blocks = blocks.into_iter().map(|block| block.expect("a sample is valid")).collect();
    for imported in node.ledger.import(blocks).await {
        imported.expect("a sample follows its head");
    }
    (node, sample)
}

/// A node whose callers all share the limits.
async fn limited(limits: Settings, config: RpcConfig) -> Node {
    let sample = Sample::new(7, 1);
    start(sample.genesis(), sample.authority(), limits, config).await
}

fn address(key: &SecretKey) -> Address {
    Address::of(&key.public_key())
}

fn served(block: &Block) -> String {
    serde_json::to_string(&BlockJson::whole(block)).unwrap()
}

fn transaction(sample: &Sample, nonce: u64, payload: &str) -> Transaction {
    let to = address(&sample.accounts()[1]);
    Transaction::new(Kind::Transfer, to, 5, 1, nonce, Payload::Text(payload.into()))
        .signed(&sample.genesis().chain_id, &sample.accounts()[0])
}

fn submission(sample: &Sample, transaction: &Transaction) -> Value {
    let mut json = json!({
        "chain_id": sample.genesis().chain_id, "from": transaction.from(), "to": transaction.to,
        "amount": transaction.amount, "fee": transaction.fee, "nonce": transaction.nonce,
        "public_key": transaction.public_key, "signature": transaction.signature,
    });
    let fields = json.as_object_mut().unwrap();
    if let Some(kind) = transaction.kind.name() {
        fields.insert("type".into(), kind.into());
    }
    if let Payload::Text(text) = &transaction.payload {
        fields.insert("payload".into(), text.as_str().into());
    }
    json
}

/// The lowest nonce that the first account may use next.
async fn next_nonce(node: &Node, sample: &Sample) -> u64 {
    let account = node.json(&format!("/rpc/accounts/{}", address(&sample.accounts()[0]))).await;
    account["next_nonce"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_head_is_the_last_block() {
    let (node, sample) = node().await;
    let head = sample.head();
    assert_eq!(
        node.json("/rpc/head").await,
        json!({
            "height": BLOCKS, "hash": head.hash, "timestamp": head.timestamp, "tx_count": 3,
            "parent_hash": head.parent_hash, "state_root": head.state_root, "chain_id": "sample-7",
        })
    );
    let answer = node.get("/rpc/head").await;
    assert!(answer.text().contains(&format!("\"height\":{BLOCKS}")), "compact: scripts search for it");
    assert_eq!(answer.header("x-head-height"), BLOCKS.to_string());
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(node.get("/rpc/head/").await.status, 200, "a slash at the end is allowed");
    node.produce().await;
    assert_eq!(node.json("/rpc/head").await["height"], BLOCKS + 1, "a new head is served at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_is_found_by_height_and_by_hash() {
    let (node, sample) = node().await;
    let by_height = node.json(&format!("/rpc/blocks/{BLOCKS}")).await;
    assert_eq!(by_height["hash"], json!(sample.head().hash));
    assert_eq!(by_height["transactions"].as_array().unwrap().len(), 3);
    assert_eq!(node.json(&format!("/rpc/blocks/{}", sample.head().hash)).await, by_height);
    let header = node.json(&format!("/rpc/blocks/{BLOCKS}?include_tx=false")).await;
    assert!(header.get("transactions").is_none());
    assert_eq!(node.json("/rpc/blocks/0").await["height"], 0);
    for (path, status) in [
        ("/rpc/blocks/13", 404),
        ("/rpc/blocks/18446744073709551615", 404),
        ("/rpc/blocks/9223372036854775808", 404),
        (&format!("/rpc/blocks/{}", Hash::ZERO), 404),
        ("/rpc/blocks/-1", 400),
        ("/rpc/blocks/1.5", 400),
        ("/rpc/blocks/0x12", 400),
        ("/rpc/blocks/18446744073709551616", 400),
        ("/rpc/blocks/%FF", 400),
        ("/rpc/blocks/head", 400),
    ] {
        let detail = node.get(path).await.detail(status);
        assert!(!detail.is_empty(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_has_whole_blocks_in_json_and_in_binary() {
    let (node, _sample) = node().await;
    let json = node.json("/rpc/blocks-range?start=3&end=7").await;
    assert_eq!((&json["success"], &json["count"], &json["next"]), (&json!(true), &json!(5), &Value::Null));
    assert_eq!(json["blocks"][0], node.json("/rpc/blocks/3").await);
    let headers = node.json("/rpc/blocks-range?start=3&end=7&include_tx=false").await;
    assert!(headers["blocks"].as_array().unwrap().iter().all(|block| block.get("transactions").is_none()));
    assert_eq!(headers["blocks"][4]["hash"], json["blocks"][4]["hash"]);

    let url = format!("{}/rpc/blocks-range?start=3&end=99", node.url);
    let answer = Answer::of(node.client.get(url).header("accept", BLOCKS_MEDIA_TYPE)).await;
    assert_eq!(answer.header("content-type"), BLOCKS_MEDIA_TYPE);
    assert_eq!(answer.header("x-tenon-next"), "13");
    let head = node.ledger.head();
    assert_eq!(answer.header("x-tenon-head"), format!("{} {}", head.height, head.hash));
    let (mut rest, mut height) = (answer.body.as_slice(), 3);
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (bytes, after) = after.split_at(u32::from_be_bytes(*length) as usize);
        let block = Block::decode(bytes).expect("the stored encoding");
        let stored = node.ledger.storage().read(|reader| reader.block(height)).unwrap();
        assert_eq!(Some(block), stored);
        (rest, height) = (after, height + 1);
    }
    assert_eq!((rest.len(), height), (0, 13));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_above_head_is_empty_and_one_across_it_ends_there() {
    let (node, _sample) = node().await;
    let above = node.json("/rpc/blocks-range?start=13&end=20").await;
    assert_eq!(above, json!({ "success": true, "blocks": [], "count": 0, "next": null }));
    let across = node.json("/rpc/blocks-range?start=11&end=20").await;
    assert_eq!((&across["count"], &across["next"]), (&json!(2), &Value::Null));
    assert_eq!(node.json("/rpc/blocks-range").await["count"], 11, "0 to 10, as existing clients expect");
    let far = node.json("/rpc/blocks-range?start=18446744073709551615&end=18446744073709551615").await;
    assert_eq!(far["count"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_is_too_large_says_where_to_go_on() {
    let mut sample = Sample::new(9, 4);
    let node = start(sample.genesis(), sample.authority(), Settings::default(), RpcConfig::default()).await;
    let payload = "x".repeat(60_000);
    for _ in 0..10 {
        let blocks = sample.head().height;
        let transactions = (0..17)
            .map(|at| {
                Transaction::new(
                    Kind::Message,
                    Address([9; 20]),
                    0,
                    1,
                    blocks * 17 + at,
                    Payload::Text(payload.clone()),
                )
                .signed("sample-9", &sample.accounts()[0])
            })
            .collect();
        let block = verify::verify(sample.block_with(transactions), sample.genesis()).unwrap();
        node.ledger.import(vec![block]).await.pop().unwrap().unwrap();
    }
    for accept in [BLOCKS_MEDIA_TYPE, "application/json"] {
        let (mut start, mut answers) = (0, 0);
        while start <= 10 {
            let url = format!("{}/rpc/blocks-range?start={start}&end=10", node.url);
            let answer = Answer::of(node.client.get(url).header("accept", accept)).await;
            assert!(answer.body.len() <= 8 << 20, "{}", answer.body.len());
            start = if accept == BLOCKS_MEDIA_TYPE {
                answer.header("x-tenon-next").parse().unwrap()
            } else {
                answer.json()["next"].as_u64().unwrap_or(11)
            };
            answers += 1;
        }
        assert_eq!((start, answers), (11, 2), "{accept}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_compressed_for_those_who_take_it() {
    let (node, _sample) = node().await;
    let url = format!("{}/rpc/blocks-range?start=0&end=12", node.url);
    let plain = Answer::of(node.client.get(&url)).await;
    let small = Answer::of(node.client.get(&url).header("accept-encoding", "gzip")).await;
    assert_eq!((plain.header("content-encoding"), small.header("content-encoding")), ("", "gzip"));
    assert!(small.body.len() < plain.body.len() && small.body.starts_with(&[0x1f, 0x8b]));
    let request = node.client.get(&url).header("accept-encoding", "gzip").header("accept", BLOCKS_MEDIA_TYPE);
    assert_eq!(Answer::of(request).await.header("content-encoding"), "", "signatures do not compress");
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_that_are_wrong_are_named() {
    let (node, sample) = node().await;
    let account = address(&sample.accounts()[0]);
    for (path, name) in [
        ("/rpc/blocks-range?start=7&end=3".to_owned(), "`end`"),
        ("/rpc/blocks-range?start=0&end=1000".into(), "`end`"),
        ("/rpc/blocks-range?start=0&end=18446744073709551615".into(), "`end`"),
        ("/rpc/blocks-range?start=-1&end=3".into(), "`start`"),
        ("/rpc/blocks-range?start=0.5&end=3".into(), "`start`"),
        ("/rpc/blocks-range?start=true&end=3".into(), "`start`"),
        ("/rpc/blocks-range?from_height=5&limit=3".into(), "`from_height`"),
        ("/rpc/blocks-range?start=1&start=2".into(), "`start`"),
        ("/rpc/blocks-range?include_tx=perhaps".into(), "`include_tx`"),
        ("/rpc/head?chain_id=elsewhere".into(), "`chain_id`"),
        ("/rpc/head?colour=red".into(), "`colour`"),
        ("/rpc/blocks/1?chain_id=elsewhere".into(), "`chain_id`"),
        (format!("/rpc/accounts/{account}?chain_id=elsewhere"), "`chain_id`"),
        ("/rpc/accounts/me".into(), "`address`"),
        ("/rpc/transaction/0x1".into(), "`hash`"),
        (format!("/rpc/transaction/{}?proof=perhaps", Hash::ZERO), "`proof`"),
        ("/rpc/transactions?limit=0".into(), "`limit`"),
        ("/rpc/transactions?limit=1001".into(), "`limit`"),
        ("/rpc/transactions?limit=-5".into(), "`limit`"),
        ("/rpc/transactions?sender=bob".into(), "`sender`"),
        ("/rpc/transactions?type=gift".into(), "`type`"),
        ("/rpc/transactions?after=yesterday".into(), "`after`"),
        ("/rpc/messages".into(), "`address`"),
        (format!("/rpc/messages?address={account}&after=-1.0"), "`after`"),
        ("/rpc/mempool?limit=x".into(), "`limit`"),
        ("/rpc/sync/status?x=1".into(), "`x`"),
        ("/rpc/info?x=1".into(), "`x`"),
    ] {
        let detail = node.get(&path).await.detail(400);
        assert!(detail.contains(name), "{path}: {detail}");
    }
    let request = node.client.get(format!("{}/rpc/blocks-range?include_tx=false", node.url));
    let detail = Answer::of(request.header("accept", BLOCKS_MEDIA_TYPE)).await.detail(400);
    assert!(detail.contains("`include_tx`"), "{detail}");
    assert_eq!(node.get("/rpc/blocks-range?start=0&end=999&chain_id=sample-7").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_goes_from_the_mempool_into_a_block() {
    let (node, sample) = node().await;
    let sender = address(&sample.accounts()[0]);
    let nonce = next_nonce(&node, &sample).await;
    let sent = transaction(&sample, nonce, "päyload \u{1}");
    let hash = sent.hash("sample-7");
    let answer = node.post("/rpc/transaction", submission(&sample, &sent).to_string()).await.json();
    assert_eq!((&answer["success"], &answer["hash"]), (&json!(true), &json!(hash)));
    assert_eq!((&answer["transaction_hash"], &answer["tx_hash"]), (&json!(hash), &json!(hash)));
    let again = node.post("/rpc/transaction", submission(&sample, &sent).to_string()).await;
    assert_eq!(again.json()["hash"], json!(hash), "handing in a pending one again changes nothing");

    let waiting = node.json("/rpc/mempool").await;
    assert_eq!((&waiting["count"], &waiting["total"]), (&json!(1), &json!(1)));
    assert_eq!(waiting["transactions"][0]["tx_hash"], json!(hash));
    assert_eq!(next_nonce(&node, &sample).await, nonce + 1);
    let pending = node.json(&format!("/rpc/transaction/{hash}")).await;
    assert_eq!((&pending["status"], &pending["block_height"]), (&json!("pending"), &Value::Null));
    let listed = node.json(&format!("/rpc/transactions?address={sender}&limit=2")).await;
    assert_eq!((&listed["count"], &listed["transactions"][0]["status"]), (&json!(2), &json!("pending")));
    assert_eq!(listed["transactions"][1]["status"], "confirmed");

    node.produce().await;
    assert_eq!(node.json("/rpc/mempool").await["count"], 0);
    let found = node.json(&format!("/rpc/transaction/{hash}?proof=true")).await;
    for (field, value) in [
        ("status", json!("confirmed")),
        ("success", json!(true)),
        ("block_height", json!(BLOCKS + 1)),
        ("sender", json!(sender)),
        ("from", json!(sender)),
        ("recipient", json!(sent.to)),
        ("amount", json!(5)),
        ("value", json!(5)),
        ("fee", json!(1)),
        ("nonce", json!(nonce)),
        ("type", json!("transfer")),
        ("payload", json!("päyload \u{1}")),
        ("tx_hash", json!(hash)),
    ] {
        assert_eq!(found[field], value, "{field}");
    }
    assert_eq!(found["transaction"]["signature"], json!(sent.signature));
    let proof = &found["proof"];
    let leaf: [u8; 128] = format::transaction_leaf(&hash, &sent);
    assert_eq!(proof["leaf"], const_hex::encode_prefixed(leaf));
    let path: Vec<Hash> = serde_json::from_value(proof["path"].clone()).unwrap();
    let number = |field: &str| usize::try_from(proof[field].as_u64().unwrap()).unwrap();
    let root = merkle::root_from_path(&leaf, number("index"), number("count"), &path);
    let block = node.json(&format!("/rpc/blocks/{}", BLOCKS + 1)).await;
    assert_eq!(json!(root), block["tx_root"]);
    for alias in [format!("/rpc/transactions/{hash}"), format!("/rpc/tx/{hash}/")] {
        assert_eq!(node.json(&alias).await["hash"], json!(hash));
    }
    let refused = node.post("/rpc/transaction", submission(&sample, &sent).to_string()).await;
    assert_eq!(refused.json()["code"], "confirmed");
    let detail = refused.detail(400);
    assert!(detail.contains(&hash.to_string()) && detail.contains("13"), "{detail}");
    let unknown = node.get(&format!("/rpc/transaction/{}", Hash::ZERO)).await;
    assert!(unknown.detail(404).contains(&Hash::ZERO.to_string()));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_go_through_every_transaction_once() {
    let (node, sample) = node().await;
    let hashes = |page: &Value, list: &str| -> Vec<String> {
        let items = page[list].as_array().unwrap().iter();
        items.map(|item| item["hash"].as_str().unwrap().to_owned()).collect()
    };
    let nonce = next_nonce(&node, &sample).await;
    for at in 0..3 {
        node.mempool.submit_transaction(transaction(&sample, nonce + at, "")).await.unwrap();
    }
    let (mut seen, mut path) = (Vec::new(), "/rpc/transactions?limit=3".to_owned());
    loop {
        let page = node.json(&path).await;
        seen.extend(hashes(&page, "transactions"));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/rpc/transactions?limit=3&after={next}");
    }
    let all: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!((seen.len(), all.len()), (3 + 3 * BLOCKS, 3 + 3 * BLOCKS));

    let account = address(&sample.accounts()[2]);
    let sent = node.json(&format!("/rpc/transactions?sender={account}&limit=1000")).await;
    let received = node.json(&format!("/rpc/transactions?recipient={account}&limit=1000")).await;
    let both = node.json(&format!("/rpc/transactions?address={account}&limit=1000")).await;
    let count = |page: &Value| page["count"].as_u64().unwrap();
    assert!(count(&sent) > 0 && count(&received) > 0);
    let to_itself = |item: &&Value| item["from"] == item["to"];
    let twice = both["transactions"].as_array().unwrap().iter().filter(to_itself).count() as u64;
    assert_eq!(count(&both), count(&sent) + count(&received) - twice);
    let mail = node.json("/rpc/transactions?type=message&limit=1000").await;
    let rest = node.json("/rpc/transactions?type=transfer&limit=1000").await;
    assert_eq!(count(&mail) + count(&rest), 3 + 3 * BLOCKS as u64);
    assert!(mail["transactions"].as_array().unwrap().iter().all(|item| item["is_message"] == true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_cursor_never_skips_and_never_repeats() {
    let (node, sample) = node().await;
    let (from, to) = (&sample.accounts()[0], address(&sample.accounts()[1]));
    let mut nonce = next_nonce(&node, &sample).await;
    let reader = SecretKey::from_seed([77; 32]);
    let mut path = format!("/rpc/messages?address={}&limit=2", address(&reader));
    assert_eq!(node.json(&path).await, json!({ "success": true, "messages": [], "count": 0, "next": null, "base": 0 }));
    let (mut sent, mut read) = (Vec::new(), Vec::new());
    for round in 0..4 {
        for at in 0..3 {
            let text = format!("message {round}.{at}");
            let mail = Transaction::new(Kind::Message, address(&reader), 0, 1, nonce, Payload::Text(text.clone()));
            node.mempool.submit_transaction(mail.signed("sample-7", from)).await.unwrap();
            let other = Transaction::new(Kind::Message, to, 0, 1, nonce + 1, Payload::Text("not for you".into()));
            node.mempool.submit_transaction(other.signed("sample-7", from)).await.unwrap();
            (nonce, _) = (nonce + 2, sent.push(text));
        }
        node.produce().await;
        for _ in 0..2 {
            let page = node.json(&path).await;
            let messages = page["messages"].as_array().unwrap();
            read.extend(messages.iter().map(|message| message["payload"].as_str().unwrap().to_owned()));
            let next = page["next"].as_str().unwrap();
            path = format!("/rpc/messages?address={}&limit=2&after={next}", address(&reader));
        }
    }
    assert_eq!(read, sent);
    let nothing = node.json(&path).await;
    assert_eq!(nothing["count"], 0);
    assert!(path.ends_with(nothing["next"].as_str().unwrap()), "the cursor stays where it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_nothing_was_sent_to_has_nothing() {
    let (node, sample) = node().await;
    let unknown = node.json(&format!("/rpc/accounts/{}", Address([5; 20]))).await;
    assert_eq!((&unknown["exists"], &unknown["balance"], &unknown["nonce"]), (&json!(false), &json!(0), &json!(0)));
    let key = &sample.accounts()[0];
    let known = node.json(&format!("/rpc/accounts/{}", address(key))).await;
    let account = sample.account(&address(key));
    assert_eq!((&known["exists"], &known["public_key"]), (&json!(true), &json!(key.public_key())));
    assert_eq!((&known["balance"], &known["nonce"]), (&json!(account.balance), &json!(account.nonce)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_says_who_it_is() {
    let (node, sample) = node().await;
    let info = node.json("/rpc/info").await;
    assert_eq!(info["genesis_hash"], json!(sample.genesis().block().hash()));
    assert_eq!((&info["total_transactions"], &info["total_accounts"]), (&json!(3 * BLOCKS), &json!(5)));
    assert_eq!((&info["role"], &info["height"]), (&json!("authority"), &json!(BLOCKS)));
    assert_eq!(info["proposer_id"], json!(address(sample.authority())));
    assert_eq!(info["node_id"].as_str().unwrap().len(), 32);
    let genesis = node.get("/rpc/genesis").await.text();
    assert_eq!(&tenon::chain::Genesis::parse(&genesis).unwrap(), sample.genesis().as_ref());
    let health = node.json("/health").await;
    assert_eq!((&health["status"], &health["supported_chains"]), (&json!("ok"), &json!(["sample-7"])));
    assert_eq!(health["height"], BLOCKS);
    let index = node.get("/").await.text();
    assert!(ROUTES.iter().all(|route| index.contains(route.path)), "{index}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_at_the_head_is_alive_but_not_ready() {
    let (node, sample) = node().await;
    for (state, status) in [
        (SyncState::Authority, 200),
        (SyncState::Live, 200),
        (SyncState::Starting, 503),
        (SyncState::Syncing, 503),
        (SyncState::Behind, 503),
        (SyncState::Ahead, 503),
        (SyncState::Diverged, 503),
        (SyncState::NoSource, 503),
    ] {
        node.sync.send_replace(SyncStatus { state, best_height: 40, lag_blocks: 28, ..SyncStatus::default() });
        let ready = node.get("/ready").await;
        assert_eq!((ready.status, &ready.json()["ready"]), (status, &json!(status == 200)), "{state:?}");
        let reason = if status == 200 { Value::Null } else { json!(state) };
        assert_eq!(ready.json()["reasons"][0]["code"], reason, "it says why");
        assert_eq!(node.json("/health").await["sync_state"], json!(state));
        let told = node.json("/rpc/sync/status").await;
        assert_eq!((&told["state"], &told["head_height"]), (&json!(state), &json!(BLOCKS)));
        assert_eq!(told["head_hash"], json!(sample.head().hash), "that block's");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_is_shown_a_page_that_needs_nothing_from_elsewhere() {
    let (node, _sample) = node().await;
    let page = Answer::of(node.client.get(&node.url).header("accept", "text/html,*/*;q=0.8")).await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    assert!(page.header("content-security-policy").starts_with("default-src 'none'; connect-src 'self'"));
    let text = page.text();
    assert!(!text.contains("://") && !text.contains("src="), "no other server, no other file");
    // It writes what others said as text, never as a page.
    assert!(!text.contains("innerHTML") && !text.contains("insertAdjacent"));
    let paths = text.split('"').filter(|part| part.starts_with('/')).map(|path| path.split('?').next().unwrap());
    let paths: Vec<_> = paths.collect();
    assert!(paths.len() >= 5, "{paths:?}");
    for path in paths {
        assert!(ROUTES.iter().any(|route| route.path == path), "{path} is no route");
    }
    let list = node.get("/").await;
    assert_eq!(list.header("content-type"), "text/plain; charset=utf-8");
    assert!(ROUTES.iter().all(|route| list.text().contains(route.about)), "{}", list.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_was_answered() {
    let (node, _sample) = node().await;
    node.get("/rpc/head").await;
    node.get("/nowhere").await;
    let metrics = node.get("/metrics").await;
    assert!(metrics.header("content-type").starts_with("text/plain"));
    let text = metrics.text();
    for line in [
        "tenon_rpc_requests_total{route=\"/rpc/head\",status=\"2xx\"}",
        "tenon_rpc_requests_total{route=\"unknown\",status=\"4xx\"}",
        "tenon_rpc_request_seconds_bucket{route=\"/rpc/head\"",
        "tenon_head_height",
        "tenon_head_age_seconds",
        "tenon_lag_blocks",
        "tenon_diverged",
        "tenon_sync_in_flight",
        "tenon_sync_buffered_bytes",
        "tenon_sync_sources_up",
        "tenon_sync_requests_total",
        "tenon_sync_rescues_total",
        "tenon_sync_failed_requests_total",
        "tenon_sync_refused_actions_total",
        "tenon_sync_snapshot_chunks",
        "tenon_sync_snapshots_total{outcome=\"taken\"}",
        "tenon_mempool_transactions",
        "tenon_imported_blocks_total",
        "tenon_limiter_denied_total{class=\"read\",verdict=\"throttle\"}",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_and_methods_that_are_not_there_are_said_to_be() {
    let (node, _sample) = node().await;
    for path in ["/nowhere", "/rpc", "/rpc/", "/rpc/blocks", "/rpc/ai/x", "/admin/plugins"] {
        node.get(path).await.detail(404);
    }
    let wrong = node.post("/rpc/head", "").await;
    assert!(wrong.header("allow").contains("GET"), "{}", wrong.header("allow"));
    wrong.detail(405);
    assert!(!node.get("/rpc/importBlock").await.detail(405).is_empty());
    let head = Answer::of(node.client.head(format!("{}/rpc/head", node.url))).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_comes_in_once_and_is_known_after_that() {
    let (node, mut sample) = node().await;
    let block = sample.blocks(1, 2).pop().unwrap();
    let json = served(&block);
    let answer = node.post("/rpc/importBlock", json.clone()).await;
    let expected = json!({
        "success": true, "accepted": true, "block_number": BLOCKS + 1, "block_height": BLOCKS + 1,
        "block_hash": block.hash(), "reason": "extended the chain", "reorged": false,
    });
    assert_eq!((answer.status, answer.json()), (200, expected));
    assert_eq!(node.json("/rpc/head").await["hash"], json!(block.hash()));
    let again = node.post("/rpc/importBlock", json).await;
    assert_eq!((again.status, &again.json()["reason"]), (200, &json!("block already exists")));
    let from_node = node.get(&format!("/rpc/blocks/{}", BLOCKS + 1)).await.body;
    assert_eq!(node.post("/rpc/importBlock", from_node).await.status, 200, "as it was served");
    let genesis = node.get("/rpc/blocks/0").await.body;
    assert_eq!(node.post("/rpc/importBlock", genesis).await.json()["reason"], "block already exists");
}

/// How a good block is spoilt, and what the refusal must name.
type Spoil = (&'static str, u16, fn(&mut Header, &mut Vec<Transaction>));

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_breaks_a_rule_is_refused_by_name_and_nothing_is_stored() {
    let (node, mut sample) = node().await;
    let (authority, account) = (sample.authority().clone(), sample.accounts()[0].clone());
    let old = node.ledger.storage().read(|reader| reader.block(BLOCKS as u64)).unwrap().unwrap();
    let good = sample.blocks(1, 2).pop().unwrap();
    let before = (node.ledger.head(), node.ledger.storage().read(|reader| reader.counts()).unwrap());
    let spoils: [Spoil; 14] = [
        ("`version`", 400, |header, _| header.version = 2),
        ("`chain_id`", 400, |header, _| header.chain_id = "elsewhere".into()),
        ("`parent_hash`", 400, |header, _| header.parent_hash = Hash::of(&[b"nobody"])),
        ("`height`", 400, |header, _| header.height += 5),
        ("`height`", 409, |header, _| header.height -= 1),
        ("`timestamp`", 400, |header, _| header.timestamp = Time(header.timestamp.0 - 10_000_000_000)),
        ("`timestamp`", 400, |header, _| header.timestamp = Time::now().plus_ms(60_000)),
        ("`proposer`", 400, |header, _| header.proposer = Address([3; 20])),
        ("`tx_count`", 400, |header, _| header.tx_count += 1),
        ("`transactions`", 400, |header, _| header.tx_count = 1_000_000),
        ("`tx_root`", 400, |header, _| header.tx_root = Hash::ZERO),
        ("`state_root`", 400, |header, _| header.state_root = Hash::ZERO),
        ("`tx_root`", 400, |_, transactions| transactions.reverse()),
        ("`transactions[1].signature`", 400, |header, transactions| {
            transactions[1].signature = transactions[0].signature;
            reroot(header, transactions);
        }),
    ];
    for (name, status, spoil) in spoils {
        let (mut header, mut transactions) = (good.header.clone(), good.transactions.clone());
        spoil(&mut header, &mut transactions);
        if header.chain_id != good.header.chain_id {
            transactions.clear();
        }
        let block = Block::signed(header, transactions, &authority);
        let detail = node.post("/rpc/importBlock", served(&block)).await.detail(status);
        assert!(detail.contains(name), "{name}: {detail}");
    }
    // A valid block's transactions once more: their nonces are used.
    let (mut header, mut transactions) = (good.header.clone(), old.transactions);
    reroot(&mut header, &mut transactions);
    let replay = Block::signed(header, transactions, &authority);
    let detail = node.post("/rpc/importBlock", served(&replay)).await.detail(400);
    assert!(detail.contains("`transactions[0]`") && detail.contains("nonce"), "{detail}");
    let forged = Block::signed(good.header.clone(), good.transactions.clone(), &account);
    let detail = node.post("/rpc/importBlock", served(&forged)).await.detail(400);
    assert!(detail.contains("`signature`"), "{detail}");
    let lying = served(&good).replace(&good.hash().to_string(), &Hash::of(&[b"x"]).to_string());
    assert!(node.post("/rpc/importBlock", lying).await.detail(400).contains("`hash`"));

    let after = (node.ledger.head(), node.ledger.storage().read(|reader| reader.counts()).unwrap());
    assert_eq!(after, before, "nothing of all that was stored");
    assert_eq!(node.post("/rpc/importBlock", served(&good)).await.status, 200, "and nothing was lost");
}

/// Makes the header fit its transactions again.
fn reroot(header: &mut Header, transactions: &mut [Transaction]) {
    let leaf = |transaction: &Transaction| format::transaction_leaf(&transaction.hash(&header.chain_id), transaction);
    header.tx_root = merkle::root(&transactions.iter().map(leaf).collect::<Vec<_>>());
    header.tx_count = u32::try_from(transactions.len()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_no_block_are_refused_by_name() {
    let (node, mut sample) = node().await;
    let good: Value = serde_json::from_str(&served(&sample.blocks(1, 1).pop().unwrap())).unwrap();
    for (field, value) in [
        ("height", json!(-13)),
        ("height", json!(13.0)),
        ("height", json!(true)),
        ("height", json!("13")),
        ("tx_count", json!(0.5)),
        ("timestamp", json!(17)),
        ("transactions", Value::Null),
        ("proposer", json!("aitbc1")),
        ("parentHash", json!("0x00")),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        let detail = node.post("/rpc/importBlock", bad.to_string()).await.detail(400);
        assert!(detail.contains(&format!("`{field}`")), "{detail}");
    }
    let mut bad = good.clone();
    bad["transactions"][0]["amount"] = json!(0.5);
    let detail = node.post("/rpc/importBlock", bad.to_string()).await.detail(400);
    assert!(detail.contains("`transactions[0]`") && detail.contains("`amount`"), "{detail}");
    for body in ["", "{", "[]", "null", "\u{feff}{}", "{\"height\":1,\"height\":2}"] {
        node.post("/rpc/importBlock", body).await.detail(400);
        node.post("/rpc/transaction", body).await.detail(400);
    }
    assert!(node.post("/rpc/importBlock", b"{\"a\":\"\xff\"}".to_vec()).await.detail(400).contains("UTF-8"));
    assert_eq!(node.ledger.head().height, BLOCKS as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_too_large_are_not_read() {
    let (node, _sample) = node().await;
    let large = vec![b' '; 13 << 20];
    for path in ["/rpc/importBlock", "/rpc/transaction"] {
        let detail = node.post(path, large.clone()).await.detail(413);
        assert!(detail.contains("larger than"), "{detail}");
        // The same without an announced length.
        let chunks = (0..13 * 16).map(|_| Ok::<_, std::io::Error>(vec![b' '; 64 << 10]));
        let body = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
        assert!(node.post(path, body).await.detail(413).contains("larger than"));
    }
    assert_eq!(node.get("/rpc/head").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_breaks_a_rule_is_refused_by_name_and_not_kept() {
    let (node, sample) = node().await;
    let nonce = next_nonce(&node, &sample).await;
    let key = &sample.accounts()[0];
    let signed = |change: fn(&mut Transaction)| {
        let mut changed = transaction(&sample, nonce, "x");
        change(&mut changed);
        submission(&sample, &changed.signed("sample-7", key))
    };
    let good = signed(|_| ());
    let with = |field: &str, value: Value| {
        let mut json = good.clone();
        json[field] = value;
        json
    };
    let other = Transaction::new(Kind::Transfer, Address([2; 20]), 1, 1, nonce, Payload::Absent);
    let elsewhere = {
        let mut json = submission(&sample, &other.signed("elsewhere", key));
        json["chain_id"] = "elsewhere".into();
        json
    };
    for (body, name) in [
        (elsewhere, "`chain_id`"),
        (with("signature", json!("ab".repeat(64))), "`signature`"),
        (with("signature", json!("ab")), "`signature`"),
        (with("amount", json!(6)), "`signature`"),
        (with("amount", json!(1.5)), "`amount`"),
        (with("amount", json!(-1)), "`amount`"),
        (with("amount", json!(true)), "`amount`"),
        (with("amount", json!("5")), "`amount`"),
        (with("fee", json!(0.1)), "`fee`"),
        (with("nonce", Value::Null), "`nonce`"),
        (with("memo", json!("hello")), "`memo`"),
        (with("to", json!("bob")), "`to`"),
        (with("from", json!(Address([9; 20]))), "`from`"),
        (with("payload", json!([1])), "`payload`"),
        (with("payload", json!("x".repeat(65_537))), "`payload`"),
        (with("public_key", json!("00".repeat(32))), "`from`"),
        (signed(|transaction| transaction.nonce = 0), "`nonce`"),
        (signed(|transaction| transaction.nonce = u64::MAX), "`nonce`"),
        (signed(|transaction| transaction.fee = 0), "`fee`"),
        (signed(|transaction| transaction.amount = u64::MAX), "`amount`"),
        (signed(|transaction| (transaction.kind, transaction.amount) = (Kind::Message, 1)), "`amount`"),
    ] {
        let detail = node.post("/rpc/transaction", body.to_string()).await.detail(400);
        assert!(detail.contains(name), "{name}: {detail}");
    }
    assert_eq!((node.mempool.len(), next_nonce(&node, &sample).await), (0, nonce), "nothing was kept");
    assert_eq!(node.post("/rpc/transaction", good.to_string()).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_sent_breaks_the_node() {
    let (node, _sample) = node().await;
    let mut runner = TestRunner::deterministic();
    let text = "[{}\\[\\]\":,a-z0-9.é-]{0,80}|\\{\"(height|from|amount|hash)\":[-0-9.e\"tru]{0,9}\\}";
    let path = "/[a-zA-Z0-9%/_.-]{0,30}(\\?[a-z_=&%0-9.-]{0,40})?";
    for _ in 0..150 {
        let body = text.new_tree(&mut runner).unwrap().current();
        for route in ["/rpc/importBlock", "/rpc/transaction"] {
            let answer = node.post(route, body.clone()).await;
            assert_eq!(answer.status, 400, "{body}: {}", answer.text());
            assert!(answer.json()["detail"].is_string());
        }
        let path = path.new_tree(&mut runner).unwrap().current();
        for path in [path.clone(), format!("/rpc/blocks-range?{}", path.trim_start_matches('/').replace('?', "&"))] {
            let answer = node.get(&path).await;
            assert!(matches!(answer.status, 200 | 400 | 404 | 405), "{path}: {} {}", answer.status, answer.text());
        }
    }
    assert_eq!((node.ledger.head().height, node.mempool.len()), (BLOCKS as u64, 0));
}

/// Nobody is trusted; the next request passes after a quarter of an hour.
fn tight(capacity: u32) -> Settings {
    let rate = Some(Rate { capacity, refill_per_second: 1 });
    Settings { sync: None, read: rate, write: rate, import: rate, trusted: Vec::new() }
}

fn costs(costs: &[(&str, u64)]) -> RpcConfig {
    let costs = costs.iter().map(|&(path, cost)| (path.to_owned(), cost)).collect();
    RpcConfig { costs, ..RpcConfig::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_within_the_limit_is_served_and_told_what_is_left() {
    let node = limited(tight(2_000), costs(&[("/rpc/info", 900)])).await;
    for remaining in [1_100, 200] {
        let answer = node.get("/rpc/info").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("ratelimit-policy"), "\"read\";q=2000");
        let left = answer.header("ratelimit").strip_prefix("\"read\";r=").unwrap();
        let (left, reset) = left.split_once(";t=").unwrap();
        // A second may have passed since the first request.
        assert!((remaining..remaining + 60).contains(&left.parse().unwrap()), "{left}");
        assert!(reset.parse::<u64>().unwrap() > 800);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_beyond_the_limit_is_told_when_to_come_back() {
    let node = limited(tight(1_000), costs(&[("/rpc/info", 900)])).await;
    assert_eq!(node.get("/rpc/info").await.status, 200);
    let refused = node.get("/rpc/info").await;
    let seconds: u64 = refused.header("retry-after").parse().unwrap();
    assert!((700..=800).contains(&seconds), "{seconds}");
    assert_eq!(refused.header("ratelimit-policy"), "\"read\";q=1000");
    assert!(refused.header("ratelimit").starts_with("\"read\";r=0;t="));
    assert_eq!(refused.json()["code"], "throttled");
    assert!(refused.detail(429).contains("read"));
    // Other classes have buckets of their own, sync and probes have none.
    assert_eq!(node.post("/rpc/transaction", "").await.status, 400);
    for path in ["/rpc/head", "/rpc/blocks-range", "/health", "/ready", "/metrics"] {
        let answer = node.get(path).await;
        assert_eq!((answer.status, answer.header("ratelimit")), (200, ""), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_costs_more_than_anybody_has_is_refused_for_good() {
    let settings = Settings { sync: Some(Rate { capacity: 50, refill_per_second: 1 }), ..tight(1) };
    let node = limited(settings, RpcConfig::default()).await;
    assert_eq!(node.get("/rpc/blocks-range?start=0&end=199").await.status, 200, "200 blocks cost 21");
    let refused = node.get("/rpc/blocks-range?start=0&end=999").await;
    assert_eq!(refused.json()["code"], "too-expensive");
    assert!(refused.detail(413).contains("101 units"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_a_caller_who_is_still_sending() {
    let node = limited(tight(1), costs(&[("/rpc/importBlock", 2)])).await;
    assert_eq!(node.post("/rpc/importBlock", vec![b' '; 4 << 20]).await.json()["code"], "too-expensive");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_wrong_methods_are_limited_too() {
    let node = limited(tight(3), RpcConfig::default()).await;
    let mut statuses = Vec::new();
    for path in ["/a", "/rpc/b", "/c"] {
        statuses.push(node.get(path).await.status);
    }
    statuses.push(node.post("/rpc/info", "").await.status);
    assert_eq!(statuses, [404, 404, 404, 429]);
}

#[tokio::test(flavor = "multi_thread")]
async fn loopback_and_peers_have_the_limits_of_their_trust() {
    let trusting = |trusted| Settings { trusted, ..tight(1) };
    let node = limited(trusting(vec![Trusted::Loopback]), RpcConfig::default()).await;
    for _ in 0..3 {
        assert_eq!(node.get("/rpc/info").await.status, 200);
    }
    let proxied = |peers: &[&str]| RpcConfig {
        peers: peers.iter().map(|peer| tenon::rate_limit::network(peer).unwrap()).collect(),
        proxies: vec![tenon::rate_limit::network("127.0.0.0/8").unwrap()],
        ..RpcConfig::default()
    };
    let node = limited(trusting(vec![Trusted::Peer]), proxied(&["10.1.0.0/16", "fd00::7"])).await;
    let ask = |from: &'static str| {
        let request = node.client.get(format!("{}/rpc/info", node.url)).header("x-forwarded-for", from);
        async { Answer::of(request).await.status }
    };
    for peer in ["10.1.2.3", "fd00::7", "1.2.3.4, 10.1.2.3", "10.1.9.9, 127.0.0.1"] {
        assert_eq!([ask(peer).await, ask(peer).await, ask(peer).await], [200, 200, 200], "{peer}");
    }
    for (stranger, again) in [
        ("10.2.0.1", "10.2.0.1"),
        ("10.1.2.3, 10.2.0.2", "10.2.0.2"),
        ("2001:db8::1", "2001:db8::2"),
        ("nonsense", "nonsense"),
    ] {
        assert_eq!([ask(stranger).await, ask(again).await], [200, 429], "{stranger}");
    }
    assert_eq!([ask("2001:db8:0:1::1").await, ask("10.2.0.3").await], [200, 200], "others have their own buckets");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cost_for_a_path_that_does_not_exist_is_an_error() {
    assert!(costs(&[("/rpc/info", 1)]).check().is_ok());
    assert!(costs(&[("/rpc/inof", 1)]).check().unwrap_err().contains("`/rpc/inof`"));
    assert!(costs(&[("/rpc/info", 0)]).check().unwrap_err().contains("`/rpc/info`"));
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_need_the_token() {
    let (node, _sample) = node().await;
    let url = format!("{}/admin/plugins", node.admin);
    for header in ["", "Bearer", "Bearer ", "Bearer wrong", "Basic a token for tests", TOKEN] {
        let refused = Answer::of(node.client.get(&url).header("authorization", header)).await;
        assert_eq!(refused.header("www-authenticate"), "Bearer");
        refused.detail(401);
    }
    Answer::of(node.client.get(&url)).await.detail(401);
    let reload = format!("{url}/rate-limit/reload");
    Answer::of(node.client.post(reload)).await.detail(401);
    let list = Answer::of(node.client.get(&url).bearer_auth(TOKEN)).await;
    assert_eq!(list.status, 200);
    let slots = list.json();
    let names: Vec<_> = slots.as_array().unwrap().iter().map(|slot| slot["slot"].as_str().unwrap()).collect();
    assert_eq!(names, ["agent/bob", "rate-limit"]);
    assert_eq!((&slots[1]["kind"], &slots[1]["status"]), (&json!("rate-limit"), &json!("builtin")));
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_orders_reach_the_slot_or_are_refused_by_name() {
    let (node, _sample) = node().await;
    let order = |path: &str, body: &'static str| {
        let request = node.client.post(format!("{}/admin/plugins/{path}", node.admin)).bearer_auth(TOKEN);
        async move { Answer::of(request.body(body)).await }
    };
    for path in ["agent/bob/use", "agent%2Fbob/use", "agent/bob/use/"] {
        let done = order(path, r#"{"plugin":null}"#).await;
        assert_eq!((done.status, &done.json()["slot"]), (200, &json!("agent/bob")), "{path}");
    }
    for (path, body, status, named) in [
        ("rate-limit/use", r#"{"plugin":"no-such"}"#, 404, "no-such"),
        ("agent/alice/use", r#"{"plugin":null}"#, 404, "agent/alice"),
        ("agent%2Falice/reload", "", 404, "agent/alice"),
        ("rate-limit/use", r#"{"plugin":5}"#, 400, "`plugin`"),
        ("rate-limit/use", r#"{"name":"x"}"#, 400, "`plugin`"),
        ("rate-limit/use", r#"{"plugin":"x","y":1}"#, 400, "`y`"),
        ("rate-limit/use", "x", 400, "JSON"),
        ("rate-limit/config", "[]", 400, "JSON"),
        ("rate-limit/config", r#"{"raed":null}"#, 422, "raed"),
        ("rate-limit/config", r#"{"read":{"capacity":0,"refill_per_second":1}}"#, 422, "read.capacity"),
        ("rate-limit/reload", "", 409, "built-in"),
        ("rate-limit/explode", "", 404, "explode"),
        ("reload", "", 404, "{slot}"),
    ] {
        let detail = order(path, body).await.detail(status);
        assert!(detail.contains(named), "{path} {body}: {detail}");
    }
    let url = format!("{}/admin/plugins/rate-limit/reload", node.admin);
    Answer::of(node.client.get(url).bearer_auth(TOKEN)).await.detail(405);
    Answer::of(node.client.get(format!("{}/rpc/head", node.admin)).bearer_auth(TOKEN)).await.detail(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_has_set_aside_is_listed_page_by_page_and_handed_in_again() {
    let (node, sample) = node().await;
    let ask = async |path: &str| Answer::of(node.client.get(format!("{}{path}", node.admin)).bearer_auth(TOKEN)).await;
    let retry = async |name: &str, body: &'static str| {
        let request = node.client.post(format!("{}/admin/agents/{name}/retry", node.admin)).bearer_auth(TOKEN);
        Answer::of(request.body(body)).await
    };
    let (bob, first) = (address(&agent_key()), next_nonce(&node, &sample).await);
    for nonce in 0..3 {
        let payload = Payload::Text(format!("message {nonce}"));
        let tx = Transaction::new(Kind::Message, bob, 0, 1, first + nonce, payload);
        let tx = tx.signed(&sample.genesis().chain_id, &sample.accounts()[0]);
        node.mempool.submit_transaction(tx).await.unwrap();
    }
    node.produce().await;
    let status = ask("/admin/agents").await.json();
    assert_eq!((&status[0]["name"], &status[0]["wallet"]), (&json!("bob"), &json!(bob)));
    assert_eq!((&status[0]["parked"], &status[0]["unheard"], &status[0]["waiting"]), (&json!(3), &json!(3), &json!(0)));

    let page = ask("/admin/agents/bob/parked?limit=2").await.json();
    let (events, next) = (page["events"].as_array().unwrap(), &page["next"]);
    assert_eq!((page["count"].as_u64(), events.len(), next), (Some(2), 2, &events[1]["id"]));
    assert_eq!((&events[0]["text"], &events[0]["height"]), (&json!("message 0"), &json!(BLOCKS + 1)));
    assert_eq!(events[0]["from"], json!(address(&sample.accounts()[0])));
    let rest = ask(&format!("/admin/agents/bob/parked?after={next}")).await.json();
    assert_eq!(
        (&rest["count"], &rest["next"], &rest["events"][0]["text"]),
        (&json!(1), &json!(null), &json!("message 2"))
    );

    for (path, status, named) in [
        ("/admin/agents?x=1", 400, "`x`"),
        ("/admin/agents/eve/parked", 404, "no agent `eve`; known: bob"),
        ("/admin/agents/bob/parked?limit=0", 400, "limit"),
        ("/admin/agents/bob/parked?after=x", 400, "after"),
        ("/admin/agents/bob/retry", 405, ""),
        ("/admin/agents/bob", 404, "GET /admin/agents/{name}/parked"),
    ] {
        let detail = ask(path).await.detail(status);
        assert!(detail.contains(named), "{path}: {detail}");
    }
    for (name, body, status, named) in [
        ("eve", "", 404, "no agent `eve`; known: bob"),
        ("bob", r#"{"id":999}"#, 404, "no event with the id 999"),
        ("bob", r#"{"id":"1"}"#, 400, "`id`"),
        ("bob", r#"{"id":-1.5}"#, 400, "`id`"),
        ("bob", r#"{"ids":1}"#, 400, "`ids`"),
        ("bob", "all", 400, "JSON"),
    ] {
        let detail = retry(name, body).await.detail(status);
        assert!(detail.contains(named), "{name} {body}: {detail}");
    }
    Answer::of(node.client.get(format!("{}/admin/agents", node.admin))).await.detail(401);
    Answer::of(node.client.post(format!("{}/admin/agents/bob/retry", node.admin))).await.detail(401);
    assert_eq!(retry("bob", "{}").await.json(), json!({ "agent": "bob", "retried": 3 }));
    assert_eq!(ask("/admin/agents").await.json()[0]["waiting"], 3);
    node.produce().await;
    assert_eq!(ask("/admin/agents").await.json()[0]["parked"], 3, "nobody is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_builtins_limits_change_while_it_serves() {
    let (node, _sample) = node().await;
    let order = async |settings: Value| {
        let request = node.client.post(format!("{}/admin/plugins/rate-limit/config", node.admin)).bearer_auth(TOKEN);
        Answer::of(request.json(&settings)).await
    };
    // Costs more than one unit, so it depends on the limits alone and not on the time.
    let dear = async || node.get("/rpc/transactions?limit=100").await.status;
    assert_eq!(dear().await, 200);
    let done = order(json!({ "read": { "capacity": 1, "refill_per_second": 1 }, "trusted": [] })).await;
    assert_eq!((done.status, &done.json()["settings"]["read"]["capacity"]), (200, &json!(1)));
    assert_eq!(dear().await, 413);
    order(json!({ "read": { "capacity": 0, "refill_per_second": 1 } })).await.detail(422);
    assert_eq!(dear().await, 413, "a configuration that is refused changes nothing");
    assert_eq!(order(json!({})).await.status, 200);
    assert_eq!(dear().await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_finishes_what_it_has_begun() {
    let (mut node, sample) = node().await;
    assert_eq!(node.get("/rpc/head").await.status, 200);
    // A request whose body is still on its way when the node stops: `100 Continue` says that its handler runs.
    let nonce = next_nonce(&node, &sample).await;
    let body = submission(&sample, &transaction(&sample, nonce, "late")).to_string();
    let address = node.url.strip_prefix("http://").unwrap().to_owned();
    let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    let head = format!(
        "POST /rpc/transaction HTTP/1.1\r\nhost: node\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut told = [0; 25];
    stream.read_exact(&mut told).await.unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    node.stop.send_replace(true);
    while tokio::net::TcpStream::connect(&address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("connection: close"), "{answer}");
    (&mut node.server).await.unwrap();
}
