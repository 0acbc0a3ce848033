//! What a decision costs through a slot: `cargo run --release -p tenon-runtime --example decide_cost`.
//!
//! The plugin is a rate limit in component text: six scalars and four words of memory in, a verdict and four words out.
//! Prints median and best of many samples, in nanoseconds a call: the built-in alone, the plugin with one key, with 100,000
//! keys, and the plugin with the caller's memory.

use std::{hint::black_box, time::Instant};

use tenon_runtime::{Change, Host, HostConfig, Kind, Limits, PluginConfig, Slot, wasmtime, world};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};

mod rate_limit {
    #![allow(missing_docs, clippy::allow_attributes, reason = "generated; the WIT is the documentation")]
    tenon_runtime::wasmtime::component::bindgen!({
        path: ["../wit/host", "../wit/rate-limit"],
        world: "tenon:rate-limit/rate-limit-policy",
        with: { "tenon:host": tenon_runtime::host },
    });
}
use rate_limit::exports::tenon::rate_limit::policy;

const WIT: &str = include_str!("../../wit/rate-limit/policy.wit");
const HOST_WIT: &str = include_str!("../../wit/host/host.wit");

struct RateLimit;

struct Request {
    client: u64,
    cost: u64,
    now_us: u64,
}

type Cell = (u64, u64, u64, u64);

impl Kind for RateLimit {
    const NAME: &'static str = "rate-limit";
    const INTERFACE: &'static str = "tenon:rate-limit/policy@0.1.0";
    const WORLD: &'static str = "tenon:rate-limit/rate-limit-policy@0.1.0";
    const WIT: &'static [&'static str] = &[WIT];
    type Key = u64;
    type Request = Request;
    type Answer = u64;
    type Memory = Cell;
    world!(rate_limit::RateLimitPolicy, rate_limit::RateLimitPolicyIndices);

    fn step(
        world: &Self::World,
        store: &mut wasmtime::Store<tenon_runtime::Context>,
        request: &Request,
        cell: &Cell,
    ) -> wasmtime::Result<(u64, Cell)> {
        let request = policy::Request {
            client: request.client,
            route: 1,
            class: policy::RouteClass::Read,
            trust: policy::Trust::Public,
            cost: request.cost,
            now: request.now_us,
        };
        let policy = world.tenon_rate_limit_policy();
        let (verdict, cell) = policy.call_check(store, request, *cell)?;
        let remaining = match verdict {
            policy::Verdict::Allow(allowance) => allowance.remaining,
            _ => 0,
        };
        Ok((remaining, cell))
    }
}

/// Takes `cost` from what the cell holds, and refills by time: the same in the component and natively.
fn builtin(request: &Request, cell: &Cell) -> (u64, Cell) {
    let (level, last, ..) = *cell;
    let level = level + request.now_us.wrapping_sub(last) / 1_000 + request.cost;
    (level, (level, request.now_us, 0, 0))
}

const CORE: &str = r#"(module
  (memory (export "memory") 1)
  (data (i32.const 512) "meter1.0.0{}")
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
  (func (export "tenon:host/lifecycle@0.1.0#describe") (result i32)
    (i32.store (i32.const 64) (i32.const 512)) (i32.store (i32.const 68) (i32.const 5))
    (i32.store (i32.const 72) (i32.const 517)) (i32.store (i32.const 76) (i32.const 5))
    (i32.store (i32.const 80) (i32.const 512)) (i32.store (i32.const 84) (i32.const 5))
    (i32.store (i32.const 88) (i32.const 522)) (i32.store (i32.const 92) (i32.const 2))
    (i32.store (i32.const 96) (i32.const 1))
    (i32.const 64))
  (func (export "tenon:host/lifecycle@0.1.0#configure") (param i32 i32) (result i32) (i32.const 128))
  (func (export "tenon:rate-limit/policy@0.1.0#check")
    (param $client i64) (param $route i32) (param $class i32) (param $trust i32) (param $cost i64) (param $now i64)
    (param $level i64) (param $last i64) (param $two i64) (param $three i64) (result i32)
    (local.set $level (i64.add (local.get $cost) (i64.add (local.get $level)
      (i64.div_u (i64.sub (local.get $now) (local.get $last)) (i64.const 1000)))))
    (i32.store8 (i32.const 192) (i32.const 0))
    (i64.store (i32.const 200) (i64.const 100))
    (i64.store (i32.const 208) (local.get $level))
    (i64.store (i32.const 216) (i64.const 0))
    (i64.store (i32.const 224) (local.get $level))
    (i64.store (i32.const 232) (local.get $now))
    (i64.store (i32.const 240) (local.get $two))
    (i64.store (i32.const 248) (local.get $three))
    (i32.const 192)))"#;

fn component(version: &str) -> anyhow::Result<Vec<u8>> {
    let mut resolve = wit_parser::Resolve::default();
    resolve.push_source("host.wit", HOST_WIT)?;
    let package = resolve.push_source("policy.wit", WIT)?;
    let world = resolve.select_world(&[package], Some(RateLimit::WORLD))?;
    let mut module = wat::parse_str(CORE.replace("1.0.0", version))?;
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    ComponentEncoder::default().module(&module)?.encode()
}

/// Nanoseconds a call: the median of 101 samples, and the best of them, which is what a busy machine lets see.
fn measure(mut call: impl FnMut(u64)) -> String {
    const CALLS: u64 = 20_000;
    let mut samples: Vec<f64> = (0..101)
        .map(|_| {
            let start = Instant::now();
            (0..CALLS).for_each(&mut call);
            start.elapsed().as_secs_f64() * 1e9 / CALLS as f64
        })
        .collect();
    samples.sort_by(f64::total_cmp);
    let (median, best) = (samples[samples.len() / 2], samples[0]);
    format!("{median:7.1} ns, best {best:7.1} ns")
}

fn main() -> anyhow::Result<()> {
    let dirs = tempfile::tempdir()?;
    let plugins = dirs.path().join("plugins");
    std::fs::create_dir_all(&plugins)?;
    std::fs::write(plugins.join("meter.wasm"), component("1.0.0")?)?;
    let host = Host::new(HostConfig::new(plugins, dirs.path().join("state")))?;
    let limits = Limits { memory_keys_max: 400_000, ..Limits::default() };
    let config = |plugin: Option<&str>| PluginConfig {
        plugin: plugin.map(str::to_owned),
        limits: limits.clone(),
        ..PluginConfig::default()
    };
    let native = host.slot::<RateLimit>("native", config(None), builtin)?;
    let slot = host.slot::<RateLimit>("rate-limit", config(Some("meter")), builtin)?;
    let report = host.open();
    anyhow::ensure!(report.rejected.is_empty(), "{:?}", report.rejected);

    let request = |client: u64| Request { client, cost: 1, now_us: 1_000_000 + client };
    let decide = |slot: &Slot<RateLimit>, keys: u64| {
        measure(|n| {
            let client = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % keys;
            black_box(slot.decide(&client, black_box(&request(client))));
        })
    };
    println!(
        "native step alone        {}",
        measure(|n| {
            black_box(builtin(black_box(&request(n)), black_box(&(n, 0, 0, 0))));
        })
    );
    println!("built-in slot, 1 key     {}", decide(&native, 1));
    println!("plugin, 1 key            {}", decide(&slot, 1));
    println!("plugin, 100,000 keys     {}", decide(&slot, 100_000));
    println!("built-in, 100,000 keys   {}", decide(&native, 100_000));
    let memory = (1, 2, 3, 4);
    println!(
        "plugin, caller's memory  {}",
        measure(|n| {
            black_box(slot.step(black_box(&request(n)), black_box(&memory)));
        })
    );
    let mut number = 0;
    println!("swap                     {:7.1} us", measure_swap(&host, &mut number)?);
    println!("renamed to live, median  {:7.1} us", measure_rename(&host, &dirs.path().join("plugins"))?);
    let status = host.status();
    anyhow::ensure!(status.iter().all(|status| status.failures == 0), "{status:?}");
    host.stop();
    Ok(())
}

/// Microseconds a swap, from order to live: instantiate, describe, configure, one pointer.
fn measure_swap(host: &Host, number: &mut u64) -> anyhow::Result<f64> {
    let start = Instant::now();
    const SWAPS: u32 = 1_000;
    for _ in 0..SWAPS {
        *number += 1;
        host.configure("rate-limit", serde_json::json!({ "n": number }))?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(SWAPS))
}

/// Microseconds from a file renamed into place to its generation live, with a warm compile cache: the median of 21.
fn measure_rename(host: &Host, plugins: &std::path::Path) -> anyhow::Result<f64> {
    host.watch()?;
    let versions = [component("1.0.1")?, component("1.0.2")?];
    let mut events = host.events();
    let mut samples = Vec::new();
    for round in 0..23 {
        let part = plugins.join(".meter.part");
        std::fs::write(&part, &versions[round % 2])?;
        let start = Instant::now();
        std::fs::rename(&part, plugins.join("meter.wasm"))?;
        while !matches!(events.blocking_recv()?.change, Change::Live { .. }) {}
        samples.push(start.elapsed().as_secs_f64() * 1e6);
    }
    // Both versions were compiled in the first two rounds.
    samples.drain(..2);
    samples.sort_by(f64::total_cmp);
    Ok(samples[samples.len() / 2])
}
