//! The main job from end to end, as `make demo` shows it.

use std::process::Command;

use serde_json::Value;

#[test]
fn the_demo_shows_what_it_claims() {
    let plugins = tenon_build::path("parallel-range");
    let output = Command::new(env!("CARGO_BIN_EXE_tenon"))
        .args(["demo", "--output", "json"])
        .env("TENON_PLUGINS", plugins.parent().unwrap())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
    let shown: Value = serde_json::from_str(&out).unwrap();
    let figure = |name: &str| &shown["figures"][name];
    assert_eq!((&shown["ok"], &shown["failed"]), (&true.into(), &serde_json::json!([])));
    let blocks = figure("blocks").as_u64().unwrap();
    assert!(blocks >= 4_000 && figure("transactions").as_u64() >= Some(blocks), "{shown}");
    let swaps: Vec<u64> = figure("strategy_swaps").as_array().unwrap().iter().map(|at| at.as_u64().unwrap()).collect();
    assert!(swaps.len() == 2 && swaps.iter().all(|at| (1..blocks).contains(at)), "{shown}");
    assert_eq!((figure("policy_swaps"), figure("failed_requests")), (&5.into(), &0.into()));
    assert_eq!((figure("answer"), figure("equal_state_roots")), (&"pong".into(), &true.into()));
}
