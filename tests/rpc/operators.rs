//! The routes of operators.

use serde_json::json;
use tenon::chain::{Kind, Payload, Transaction};

use super::support::node::{Answer, TOKEN, agent_key};
use super::{BLOCKS, address, next_nonce, node};

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
