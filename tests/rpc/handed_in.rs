//! Blocks and transactions that are handed in: taken once, or refused by the name of what is wrong.

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tenon::chain::{Address, Block, Hash, Header, Kind, Payload, Time, Transaction, format, merkle};

use super::{BLOCKS, next_nonce, node, served, submission, transaction};

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
