//! The node over HTTP: every route's answer, every refusal by name, the limits, the operator's routes.

mod handed_in;
mod itself;
mod limits;
mod operators;
mod reading;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "shared: each test file uses its part")]
mod support;
mod transactions;

use serde_json::{Value, json};
use support::node::{Node, start};
use tenon::chain::{Address, Block, Kind, Payload, SecretKey, Transaction, verify};
use tenon::rate_limit::token_bucket::Settings;
use tenon::rpc::RpcConfig;
use tenon::rpc::wire::BlockJson;
use tenon::sample::Sample;

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
