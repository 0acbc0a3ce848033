//! What serving costs: heads with and without a Wasm policy, ranges of blocks, each against a bare server with the same
//! bytes.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tenon::sample::Sample;

use crate::bare::Bare;
use crate::catch_up::{encode, prepare, store};
use crate::load::load;
use crate::process::Process;
use crate::report::{Report, median};

/// How long one sample takes; nine of each are taken in turns, so that a slow phase of the machine meets all.
const SAMPLE: Duration = Duration::from_secs(1);
const SAMPLES: usize = 9;
const CONNECTIONS: usize = 16;

/// Adds the figures to `report`.
pub async fn run(dir: &Path, report: &mut Report) {
    let mut sample = Sample::new(2, 200);
    let genesis = (**sample.genesis()).clone();
    let encoded = encode(&sample.blocks(400, 10));
    prepare(dir, &genesis, "");
    store(dir, &genesis, &encoded);
    let node = Process::start(dir);
    let rpc: SocketAddr = node.rpc.trim_start_matches("http://").parse().expect("an address");

    let body = |path: &'static str, accept: &'static str| {
        let request = reqwest::Client::new().get(format!("{}{path}", node.rpc)).header("accept", accept);
        async move { request.send().await.expect("the node answers").bytes().await.expect("a body") }
    };
    let json = "application/json";
    let bare_head = Bare::start(&body("/rpc/head", json).await);
    let (mut on, mut off, mut floor, mut failed) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..SAMPLES {
        use_policy(&node, Some("token-bucket")).await;
        let answered = load(rpc, "/rpc/head", json, CONNECTIONS, SAMPLE).await;
        (failed, _) = (failed + answered.failed, on.push(answered.rate));
        use_policy(&node, None).await;
        let answered = load(rpc, "/rpc/head", json, CONNECTIONS, SAMPLE).await;
        (failed, _) = (failed + answered.failed, off.push(answered.rate));
        floor.push(load(bare_head.address, "/", json, CONNECTIONS, SAMPLE).await.rate);
    }
    // Of neighbours in time: the machine is never as fast for a whole run.
    let over = |ones: &[f64], others: &[f64]| median(ones.iter().zip(others).map(|(one, other)| one / other).collect());
    let (over_builtin, over_bare) = (over(&on, &off), over(&on, &floor));
    let (on, off, floor) = (median(on), median(off), median(floor));
    report.note("/rpc/head, Wasm policy", on, "requests/s");
    report.note("/rpc/head, built-in policy", off, "requests/s");
    report.note("a bare axum route with the same body", floor, "requests/s");
    report.at_least("/rpc/head, Wasm policy over built-in", over_builtin, "ratio", 0.95, None);
    report.at_least("/rpc/head, Wasm policy over a bare route", over_bare, "ratio", 0.8, None);
    report.at_most("answers that were not 200", failed as f64, "answers", 0.0, None);

    let (path, accept) = ("/rpc/blocks-range?start=101&end=200", "application/vnd.tenon.blocks");
    let bare_range = Bare::start(&body(path, accept).await);
    let (mut ranges, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        ranges.push(load(rpc, path, accept, CONNECTIONS, SAMPLE).await.bytes / 1e6);
        floor.push(load(bare_range.address, "/", accept, CONNECTIONS, SAMPLE).await.bytes / 1e6);
    }
    let (ranges, floor) = (median(ranges), median(floor));
    report.note("/rpc/blocks-range, 100 blocks of 10 transactions, binary", ranges, "MB/s");
    report.at_least("  the same over serving prebuilt bytes", ranges / floor, "ratio", 0.5, None);
    node.stop();
}

async fn use_policy(node: &Process, plugin: Option<&str>) {
    let body = serde_json::json!({ "plugin": plugin });
    let (status, answer) = node.admin("POST", "/admin/plugins/rate-limit/use", Some(&body)).await;
    assert_eq!(status, 200, "{answer}");
}
