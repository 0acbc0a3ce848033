//! Who may ask how often, and what those are told who ask too often.

use serde_json::{Value, json};
use tenon::rate_limit::token_bucket::{Rate, Settings, Trusted};
use tenon::rpc::RpcConfig;

use super::support::node::{Answer, TOKEN};
use super::{limited, node};

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
