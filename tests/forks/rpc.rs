//! Forks over HTTP: a rival that is handed in, and cursors into blocks that are gone.

use serde_json::Value;
use tenon::chain::{Block, Transaction};
use tenon::ledger::{Imported, Reach};
use tenon::rate_limit::token_bucket::Settings;
use tenon::rpc::RpcConfig;
use tenon::rpc::wire::BlockJson;

use super::node::{Node, start};
use super::tree::{Tree, address};

async fn node(tree: &Tree, at: usize) -> Node {
    let node = start(&tree.genesis, &tree.authorities[0], Settings::default(), RpcConfig::default()).await;
    for imported in node.ledger.import(tree.branch(at, 0)).await {
        assert_eq!(imported, Ok(Imported::Extended));
    }
    node
}

fn served(block: &Block) -> String {
    serde_json::to_string(&BlockJson::whole(block)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rival_of_the_head_that_wins_is_accepted_and_one_that_loses_is_not() {
    let mut tree = Tree::new(3, 2, 0);
    let trunk = tree.grow_empty(0, 2, 1);
    let mut rivals: Vec<_> = (1..6).map(|slots| tree.grow(trunk, slots, &[])).collect();
    rivals.sort_by_key(|&at| std::cmp::Reverse(tree.hash(at)));
    let node = node(&tree, rivals[1]).await;
    assert_eq!(node.json("/rpc/info").await["last_reorg"], Value::Null);
    let import = async |at: usize| node.post("/rpc/importBlock", served(tree.block(at).block())).await;
    let detail = import(rivals[0]).await.detail(409);
    assert!(detail.contains("block 3 is here"), "{detail}");
    let answer = import(rivals[2]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let (answer, hash) = (answer.json(), tree.hash(rivals[2]));
    assert_eq!((&answer["accepted"], &answer["reorged"]), (&Value::Bool(true), &Value::Bool(true)));
    assert_eq!((&answer["block_height"], &answer["block_hash"]), (&3.into(), &hash.to_string().into()));
    assert_eq!(node.json("/rpc/head").await["hash"], hash.to_string());
    let info = node.json("/rpc/info").await;
    let last = &info["last_reorg"];
    assert_eq!((&info["reorgs"], &last["common_height"], &last["undone"]), (&1.into(), &2.into(), &1.into()));
    assert_eq!(last["from_hash"], tree.hash(rivals[1]).to_string());
    assert_eq!(last["to_hash"], hash.to_string());
    // The first and the fourth slot are one authority's.
    let authors: Vec<_> = [0, 1, 2].map(|at| tree.block(rivals[at]).block().header.proposer).into();
    let twice = authors[1] == authors[0] || authors[1] == authors[2];
    assert_eq!(info["equivocations"].as_array().unwrap().is_empty(), !twice, "{info}");
    let again = import(rivals[2]).await.json();
    assert_eq!((&again["accepted"], &again["reorged"]), (&Value::Bool(true), &Value::Bool(false)));
    let metrics = node.get("/metrics").await.text();
    assert!(metrics.contains("tenon_reorgs_total 1") && metrics.contains("tenon_reorg_blocks_total 1"), "{metrics}");
    // On another parent one block does not show that it is better.
    let mut other = Tree::new(3, 2, 0);
    let below = other.grow_empty(0, 3, 2);
    let detail = node.post("/rpc/importBlock", served(other.block(below).block())).await.detail(409);
    assert!(detail.contains("block 3 is here"), "{detail}");
}

/// Texts of the messages in an answer.
fn texts(answer: &Value) -> Vec<String> {
    let messages = answer["messages"].as_array().unwrap();
    messages.iter().map(|message| message["payload"].as_str().unwrap().to_owned()).collect()
}

/// A chain of blocks with one message from account 0 to account 1 each.
fn mail(tree: &mut Tree, mut at: usize, slots: u64, texts: &[&str]) -> usize {
    for (number, text) in texts.iter().enumerate() {
        let message: Transaction = tree.transaction(at, 0, 1, 0, Some(text));
        at = tree.grow(at, if number == 0 { slots } else { 1 }, &[message]);
    }
    at
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_into_a_block_that_is_gone_is_told_where_to_go_on() {
    let mut tree = Tree::new(2, 3, 0);
    let trunk = mail(&mut tree, 0, 1, &["a", "b"]);
    let one = mail(&mut tree, trunk, 1, &["c", "d", "e"]);
    let two = mail(&mut tree, trunk, 2, &["f", "g", "h", "i"]);
    let node = node(&tree, one).await;
    let list = format!("/rpc/messages?address={}&limit=2", address(&tree.accounts[1]));
    let pages = [node.json(&list).await, Value::Null, Value::Null];
    let next = |page: &Value| page["next"].as_str().unwrap().to_owned();
    let in_trunk = next(&pages[0]);
    let second = node.json(&format!("{list}&after={in_trunk}")).await;
    assert_eq!((texts(&pages[0]), texts(&second)), (vec!["a".into(), "b".into()], vec!["c".into(), "d".into()]));
    let in_branch = next(&second);
    assert!(in_branch.starts_with("4.0."), "{in_branch}");
    node.ledger.switch_branch(tree.branch(two, 0), Reach::Limited).await.unwrap();
    // In a block that is still there: nothing has changed.
    assert_eq!(texts(&node.json(&format!("{list}&after={in_trunk}")).await), ["f", "g"]);
    let gone = node.get(&format!("{list}&after={in_branch}")).await;
    let detail = gone.detail(409);
    assert!(detail.contains("`after`") && detail.contains("block 2"), "{detail}");
    let gone = gone.json();
    assert_eq!((&gone["code"], &gone["fork_height"]), (&"reorg".into(), &2.into()));
    let after = node.json(&format!("{list}&after={}", next(&gone))).await;
    assert_eq!(texts(&after), ["f", "g"]);
    // An old cursor, without a block, is taken as it is.
    assert_eq!(texts(&node.json(&format!("{list}&after=4.0")).await), ["h", "i"]);
    // The list of transactions, newest first, says the same.
    let transactions = format!("/rpc/transactions?address={}&limit=2", address(&tree.accounts[1]));
    let gone = node.get(&format!("{transactions}&after={in_branch}")).await;
    assert_eq!((gone.status, &gone.json()["fork_height"]), (409, &2.into()));
    let page = node.json(&format!("{transactions}&after={}", next(&gone.json()))).await;
    let heights = |page: &Value| -> Vec<u64> {
        let found = page["transactions"].as_array().unwrap();
        found.iter().map(|found| found["block_height"].as_u64().unwrap()).collect()
    };
    assert_eq!(heights(&page), [2, 1]);
    // Where the chain goes back, the cursor is good again; between, another one's fork is found over two reorgs.
    let third = tree.grow_empty(one, 2, 1);
    let in_second = next(&after);
    node.ledger.switch_branch(tree.branch(third, 0), Reach::Limited).await.unwrap();
    assert_eq!(texts(&node.json(&format!("{list}&after={in_branch}")).await), ["e"]);
    let fourth = tree.grow_empty(tree.path(two)[4], 4, 3);
    node.ledger.switch_branch(tree.branch(fourth, 0), Reach::Limited).await.unwrap();
    // Block 4 of the second branch is gone, its block 3 is back.
    let gone = node.get(&format!("{list}&after={}", in_second)).await;
    assert_eq!(gone.status, 200, "{}", gone.text());
    let above = PathOf(&tree, two).cursor(6);
    let gone = node.get(&format!("{list}&after={above}")).await.json();
    assert_eq!(gone["fork_height"], 5, "{gone}");
}

/// Cursors into a branch.
struct PathOf<'a>(&'a Tree, usize);

impl PathOf<'_> {
    /// The first place in its block at `height`.
    fn cursor(&self, height: usize) -> String {
        let hash = self.0.hash(self.0.path(self.1)[height - 1]).to_string();
        format!("{height}.0.{}", &hash[2..18])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_this_node_has_never_seen_waits_above_the_head_and_is_sent_far_down_below_it() {
    let mut tree = Tree::new(2, 3, 0);
    let one = mail(&mut tree, 0, 1, &["a", "b", "c"]);
    let two = mail(&mut tree, 0, 2, &["d", "e", "f", "g"]);
    let node = node(&tree, one).await;
    let list = format!("/rpc/messages?address={}", address(&tree.accounts[1]));
    let above = PathOf(&tree, two).cursor(4);
    let answer = node.json(&format!("{list}&after={above}")).await;
    assert_eq!((texts(&answer), &answer["next"]), (Vec::new(), &above.clone().into()), "another node is ahead");
    let gone = node.get(&format!("{list}&after={}", PathOf(&tree, two).cursor(2))).await;
    let detail = gone.detail(409);
    assert!(detail.contains("not on the chain of this node"), "{detail}");
    assert_eq!(gone.json()["fork_height"], 0);
    for bad in ["1.0.zz", "1.0.0123456789abcde", "1.0.", "1.0.0123456789abcdef.1"] {
        let detail = node.get(&format!("{list}&after={bad}")).await.detail(400);
        assert!(detail.contains("`after`"), "{detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_block_was_taken_back_is_pending_again() {
    let mut tree = Tree::new(2, 3, 0);
    let transfer = tree.transaction(0, 0, 1, 5, None);
    let hash = transfer.hash(&tree.genesis.chain_id);
    let one = tree.grow(0, 1, &[transfer]);
    let two = tree.grow_empty(0, 2, 2);
    let node = node(&tree, one).await;
    let path = format!("/rpc/transaction/{hash}");
    assert_eq!(node.json(&path).await["status"], "confirmed");
    node.ledger.switch_branch(tree.branch(two, 0), Reach::Limited).await.unwrap();
    assert_eq!(node.json(&path).await["status"], "pending");
    let longer = {
        let pending = node.mempool.pending(1).remove(0).transaction;
        tree.grow(two, 1, &[pending])
    };
    node.ledger.import(tree.branch(longer, 2)).await;
    assert_eq!(node.json(&path).await["block_height"], 3);
}
