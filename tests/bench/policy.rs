//! What one rate-limit decision costs: through a warm Wasm instance with everything on, and through the built-in.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use tenon::bindings::{RateLimit, builtin};
use tenon::rate_limit::{Class, Policy, Request, Trust, token_bucket};
use tenon_runtime::{Host, HostConfig, PluginConfig};

use crate::report::{Report, median};

/// Callers that take turns.
const CLIENTS: u64 = 1_024;
/// Calls in one sample.
const CALLS: u64 = 200_000;
/// Samples, of which the median counts.
const SAMPLES: usize = 15;
/// Instances whose memory is measured.
const SHARDS: usize = 256;

/// Adds the figures to `report`.
pub fn run(dir: &Path, report: &mut Report) {
    let plugins = dir.join("plugins");
    std::fs::create_dir_all(&plugins).expect("a temporary directory");
    std::fs::copy(tenon_build::path("token-bucket"), plugins.join("token-bucket.wasm")).expect("the plugin is built");
    let host = Host::new(HostConfig::new(&plugins, dir.join("state"))).expect("an engine");
    let builtin = || builtin::TokenBucket::new(token_bucket::Settings::default()).expect("settings in range");
    let wasm = host.slot::<RateLimit>("rate-limit", PluginConfig::plugin("token-bucket"), builtin()).expect("a slot");
    let native = host.slot::<RateLimit>("native", PluginConfig::default(), builtin()).expect("a slot");
    host.open();
    assert_eq!((wasm.generation(), native.generation()), (1, 0), "one serves from Wasm, the other natively");
    // In turns, so that a slow phase of the machine meets both.
    let (mut wasm_ns, mut native_ns) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        wasm_ns.push(sample(&wasm));
        native_ns.push(sample(&native));
    }
    let (wasm_ns, native_ns) = (median(wasm_ns), median(native_ns));
    report.at_most("rate-limit decision, Wasm, warm, everything on", wasm_ns, "ns", 300.0, Some(native_ns));
    report.note("rate-limit decision, Wasm over built-in", wasm_ns / native_ns, "ratio");

    // Swaps under load: every call must be answered, by the plugin and not by the fallback.
    let calls = std::thread::scope(|scope| {
        let caller = scope.spawn(|| {
            let mut calls = 0;
            while wasm.generation() < 1_001 {
                sample_calls(&wasm, 1_000);
                calls += 1_000;
            }
            calls
        });
        for _ in 0..1_000 {
            host.reload("rate-limit").expect("a reload of a good plugin");
        }
        caller.join().expect("no call panics")
    });
    let status = host.status().into_iter().find(|status| status.slot == "rate-limit").expect("the slot");
    report.note("calls during 1,000 swaps", f64::from(calls), "calls");
    report.at_most(
        "calls that failed or fell back during them",
        (status.failures + status.fallbacks) as f64,
        "calls",
        0.0,
        None,
    );
    host.stop();
    idle_instance(&plugins, &dir.join("many"), report);
}

/// What one more instance costs that nobody asks: this process grows by that while every shard gets its own.
fn idle_instance(plugins: &Path, state: &Path, report: &mut Report) {
    let mut config = HostConfig::new(plugins, state);
    config.shards = SHARDS;
    let host = Host::new(config).expect("an engine");
    let builtin = || builtin::TokenBucket::new(token_bucket::Settings::default()).expect("settings in range");
    let slot = host.slot::<RateLimit>("rate-limit", PluginConfig::plugin("token-bucket"), builtin()).expect("a slot");
    host.open();
    // Enough for every shard to have been asked, and first for one: what the slot itself takes is then there.
    sample_calls(&slot, 1);
    let memory = || crate::catch_up::memory(std::process::id(), "VmRSS");
    let (before, first) = (memory(), host.instances());
    let mut client = 0;
    while host.instances() < SHARDS {
        slot.check(&Request { client, ..request(client) });
        client += 1;
        assert!(client < 1_000_000, "some shard is never asked");
    }
    let kilobytes = (memory() - before) * 1_024.0 / (SHARDS - first) as f64;
    report.at_most("resident memory of an idle instance of token-bucket", kilobytes, "kB", 64.0, None);
    host.stop();
}

/// Nanoseconds a call.
fn sample(policy: &impl Policy) -> f64 {
    let started = Instant::now();
    sample_calls(policy, CALLS);
    Duration::as_nanos(&started.elapsed()) as f64 / CALLS as f64
}

fn sample_calls(policy: &impl Policy, calls: u64) {
    for call in 0..calls {
        black_box(policy.check(black_box(&request(call))));
    }
}

fn request(call: u64) -> Request {
    Request {
        client: call % CLIENTS,
        route: 3,
        class: Class::Read,
        trust: Trust::Public,
        cost: 1,
        now: 1_735_689_600_000_000 + call * 1_000,
    }
}
