//! Transactions on their way, in lists, and as messages.

use serde_json::{Value, json};
use tenon::chain::{Address, Hash, Kind, Payload, SecretKey, Transaction, format, merkle};

use super::{BLOCKS, address, next_nonce, node, submission, transaction};

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
