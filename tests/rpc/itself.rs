//! What a node says of itself: who it is, whether it is ready, metrics, the page, what is not there, its end.

use serde_json::{Value, json};
use tenon::rpc::ROUTES;
use tenon::sync::{SyncState, SyncStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::node::Answer;
use super::{BLOCKS, address, next_nonce, node, submission, transaction};

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
