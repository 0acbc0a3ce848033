//! Blocks as readers get them: one, a range, by height and by hash, compressed, and parameters that are wrong.

use serde_json::{Value, json};
use tenon::chain::{Address, Block, Hash, Kind, Payload, Transaction, verify};
use tenon::rate_limit::token_bucket::Settings;
use tenon::rpc::{BLOCKS_MEDIA_TYPE, RpcConfig};
use tenon::sample::Sample;

use super::support::node::{Answer, start};
use super::{BLOCKS, address, node};

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
