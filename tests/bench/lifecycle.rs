//! What the way of a new version to live and back costs those who call: swaps under load, a shadow, a version that traps.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tenon::bindings::{RateLimit, builtin};
use tenon::rate_limit::{Class, Policy, Request, Trust, Verdict, token_bucket};
use tenon::sample::Sample;
use tenon_runtime::{By, Host, HostConfig, PluginConfig, Probation, Rollout, Slot};

use crate::catch_up::{memory, prepare};
use crate::load::load;
use crate::process::Process;
use crate::report::{Report, median};

const SWAPS: u64 = 10_000;
const KEYS: u64 = 100_000;
/// A call that takes longer is late.
const LATE_NS: u64 = 1_000_000;

/// Adds the figures to `report`.
pub async fn run(dir: &Path, report: &mut Report) {
    swaps(&dir.join("swaps"), report);
    pause(&dir.join("pause"), report);
    compiling(&dir.join("compiling"), report);
    faults(&dir.join("faults"), report);
    disagreements(&dir.join("set"), report);
    shadow(&dir.join("shadow"), report).await;
}

/// A host with a rate-limit slot, served by `plugin` from the shipped components.
fn slot(dir: &Path, plugin: &str, rollout: Rollout, settings: serde_json::Value) -> (Host, Slot<RateLimit>) {
    let plugins = dir.join("plugins");
    std::fs::create_dir_all(&plugins).expect("a temporary directory");
    for name in ["token-bucket", "faults"] {
        std::fs::copy(tenon_build::path(name), plugins.join(format!("{name}.wasm"))).expect("the plugin is built");
    }
    let host = Host::new(HostConfig::new(&plugins, dir.join("state"))).expect("an engine");
    let native = builtin::TokenBucket::new(token_bucket::Settings::default()).expect("settings in range");
    let probation = Probation { max_slowdown: 1e6, ..Probation::default() };
    let config = PluginConfig { rollout, probation, settings, ..PluginConfig::plugin(plugin) };
    let slot = host.slot::<RateLimit>("rate-limit", config, native).expect("a slot");
    host.open();
    assert_eq!(slot.generation(), 1, "{:?}", host.status());
    (host, slot)
}

fn request(client: u64, call: u64) -> Request {
    let (class, trust) = (Class::Read, Trust::Public);
    Request { client, route: 3, class, trust, cost: 1, now: 1_735_689_600_000_000 + call * 1_000 }
}

/// How long the calling thread was ready to run and no core had time for it, since it began.
struct WaitedForCore(std::fs::File);

impl WaitedForCore {
    fn of_this_thread() -> Self {
        Self(std::fs::File::open("/proc/thread-self/schedstat").expect("a Linux that counts it"))
    }

    fn ns(&self) -> u64 {
        use std::os::unix::fs::FileExt;
        let mut text = [0; 64];
        let length = self.0.read_at(&mut text, 0).expect("our own thread");
        let text = std::str::from_utf8(&text[..length]).expect("three numbers");
        text.split_whitespace().nth(1).and_then(|ns| ns.parse().ok()).expect("the second of three numbers")
    }
}

/// What came of calls in a loop.
#[derive(Default)]
struct Calls {
    /// How many.
    made: u64,
    /// Answered by no generation, or by one that an earlier call found replaced.
    misplaced: u64,
    /// Late, for whatever reason.
    late: u64,
    /// Of those, the ones that would be late too if no other thread had had the core meanwhile.
    held_up: u64,
}

/// Calls `slot` until `done`.
fn call(slot: &Slot<RateLimit>, done: &AtomicBool) -> Calls {
    /// Calls from one look at the waiting time to the next; a look costs as much as ten calls.
    const LOOK_EVERY: u64 = 1_000;
    let mut calls = Calls::default();
    let mut newest = 0;
    let waited = WaitedForCore::of_this_thread();
    let mut waited_before = waited.ns();
    while !done.load(Ordering::Relaxed) {
        let started = Instant::now();
        let decision = slot.ask(&1, &request(1, calls.made));
        let took = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        match decision.by {
            By::Generation(number) if number >= newest => newest = number,
            _ => calls.misplaced += 1,
        }
        calls.made += 1;
        // A call takes less than a thousandth of that.
        let is_late = took > LATE_NS;
        if is_late || calls.made.is_multiple_of(LOOK_EVERY) {
            let waited_now = waited.ns();
            calls.late += u64::from(is_late);
            calls.held_up += u64::from(took.saturating_sub(waited_now - waited_before) > LATE_NS);
            waited_before = waited_now;
        }
    }
    calls
}

fn swaps(dir: &Path, report: &mut Report) {
    let (host, slot) = slot(dir, "token-bucket", Rollout::Immediate, json!({}));
    let resident = || memory(std::process::id(), "VmRSS");
    // Swaps the slot of `host`; the calls go to `slot` in any case.
    let load = |host: &Host| {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let calls = scope.spawn(|| call(&slot, &done));
            let mut after_100 = f64::NAN;
            for swap in 0..SWAPS {
                host.reload("rate-limit").expect("a reload of a good plugin");
                if swap == 100 {
                    after_100 = resident();
                }
            }
            done.store(true, Ordering::Relaxed);
            (calls.join().expect("calls do not panic"), after_100)
        })
    };
    // As much work as the swaps are, on the same cores at the same time, in a slot that nobody here asks.
    let (elsewhere, _) = self::slot(&dir.join("elsewhere"), "token-bucket", Rollout::Immediate, json!({}));
    let (control, _) = load(&elsewhere);
    elsewhere.stop();
    let (calls, after_100) = load(&host);
    let status = host.status().remove(0);
    report.note("calls during 10,000 swaps", calls.made as f64, "calls");
    let failed = status.failures + status.fallbacks + calls.misplaced;
    report.at_most("  failed, answered twice or by a generation already replaced", failed as f64, "calls", 0.0, None);
    report.at_most(
        "  late by more than 1 ms, the wait for a core not counted",
        calls.held_up as f64,
        "calls",
        0.0,
        None,
    );
    report.note("  the same while a slot elsewhere is swapped", control.held_up as f64, "calls");
    let of_a_million = |calls: &Calls| calls.late as f64 * 1e6 / calls.made as f64;
    report.note("  late by more than 1 ms with it, of a million", of_a_million(&calls), "calls");
    report.note("  the same while a slot elsewhere is swapped", of_a_million(&control), "calls");
    report.at_most("  resident memory at the end over that after 100", resident() / after_100, "ratio", 1.05, None);
    host.stop();
}

fn pause(dir: &Path, report: &mut Report) {
    let (host, slot) = slot(dir, "token-bucket", Rollout::Immediate, json!({}));
    for client in 0..KEYS {
        slot.check(&request(client, client));
    }
    let mut longest = Vec::new();
    for _ in 0..11 {
        let (done, worst, calls) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let until = |count: u64| {
            while calls.load(Ordering::Relaxed) < count {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for call in KEYS.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let started = Instant::now();
                    slot.check(&request(call % KEYS, call));
                    worst.fetch_max(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
            until(1_000);
            host.reload("rate-limit").expect("a reload of a good plugin");
            // Each key's first call takes its memory along.
            until(calls.load(Ordering::Relaxed) + KEYS);
            done.store(true, Ordering::Relaxed);
        });
        longest.push(worst.load(Ordering::Relaxed) as f64 / 1e6);
    }
    report.at_most(
        "longest call in and after a swap with 100,000 keys of memory, median of 11",
        median(longest),
        "ms",
        1.0,
        None,
    );
    host.stop();
}

fn faults(dir: &Path, report: &mut Report) {
    for (settings, what) in [
        (json!({ "mode": "panic", "from_call": 5 }), "a version that traps from each client's 5th call on"),
        (json!({ "mode": "panic", "client": 3 }), "a version that traps on one client"),
        (json!({ "mode": "hoard", "from_call": 5 }), "a version that takes memory until there is none"),
    ] {
        let dir = dir.join(what);
        let (host, slot) = slot(&dir, "faults", Rollout::Immediate, json!({ "mode": "allow" }));
        host.configure("rate-limit", settings).expect("nothing is wrong at first");
        assert_eq!(slot.generation(), 2);
        let (mut errors, mut failing) = (0, 0);
        for call in 0..1_000 {
            let decision = slot.ask(&(call % 7), &request(call % 7, call));
            errors += u64::from(!matches!(decision.answer, Verdict::Allow { .. }));
            failing += u64::from(decision.failure.is_some());
        }
        assert_eq!(slot.generation(), 1, "{what}: rolled back");
        report.at_most(format!("{what}: errors that callers saw, of 1,000 calls"), errors as f64, "calls", 0.0, None);
        report.at_most(
            "  failed calls until it was rolled back, all answered by the one before",
            failing as f64,
            "calls",
            3.0,
            None,
        );
        host.stop();
    }
}

fn disagreements(dir: &Path, report: &mut Report) {
    let rollout = Rollout::Shadow { calls: Some(1_000_000), seconds: None, max_divergence: 1.0, max_slowdown: 1e6 };
    let (host, slot) = slot(dir, "token-bucket", rollout, json!({}));
    // The candidate forbids whoever spends more than two units: exactly the clients that ask a third time.
    let tight = json!({ "read": { "capacity": 2, "refill_per_second": 1 } });
    host.configure("rate-limit", tight).expect("on trial");
    let mut expected = BTreeSet::new();
    let mut calls = 0;
    for client in 0..300_u64 {
        for _ in 0..=(client % 5) {
            slot.check(&request(client, 0));
            calls += 1;
        }
        if client % 5 >= 2 {
            expected.insert(client);
        }
    }
    let shown = loop {
        let shown = host.shadow("rate-limit").expect("the slot").expect("a shadow");
        if shown.compared + shown.dropped >= calls {
            break shown;
        }
        std::thread::yield_now();
    };
    let throttled = shown.groups.iter().find(|group| group.candidate == "throttle").expect("some are throttled");
    let examples = throttled.examples.iter().filter_map(|example| example.key.as_u64());
    let wrong = examples.filter(|key| !expected.contains(key)).count();
    report.note("clients on whom two policies are known to disagree", expected.len() as f64, "clients");
    let off = throttled.keys.abs_diff(expected.len() as u64) + wrong as u64 + shown.dropped;
    report.at_most("  clients that the shadow reports too many or too few", off as f64, "clients", 0.0, None);
    host.stop();
}

async fn shadow(dir: &Path, report: &mut Report) {
    std::fs::create_dir_all(dir).expect("a temporary directory");
    let sample = Sample::new(4, 10);
    let rollout = "[plugins.rate-limit]\nuse = \"token-bucket\"\n\
                   rollout = { mode = \"shadow\", calls = 1000000000, max_divergence = 1.0, max_slowdown = 1000000.0 }\n";
    prepare(dir, sample.genesis(), rollout);
    let node = Process::start(dir);
    let rpc: SocketAddr = node.rpc.trim_start_matches("http://").parse().expect("an address");
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..7 {
        let time = Duration::from_secs(2);
        without.push(load(rpc, "/rpc/head", "application/json", 16, time).await.p99_us);
        let settings = json!({ "read": { "capacity": 1_000_000 + round, "refill_per_second": 1_000_000 } });
        let (status, answer) = node.admin("POST", "/admin/plugins/rate-limit/config", Some(&settings)).await;
        assert_eq!(status, 200, "{answer}");
        with.push(load(rpc, "/rpc/head", "application/json", 16, time).await.p99_us);
        let (_, shadow) = node.admin("GET", "/admin/plugins/rate-limit/shadow", None).await;
        assert!(shadow["compared"].as_u64().is_some_and(|compared| compared > 10_000), "{shadow}");
        let (status, answer) = node.admin("POST", "/admin/plugins/rate-limit/rollback", None).await;
        assert_eq!(status, 200, "{answer}");
    }
    let (without, with) = (median(without), median(with));
    report.note("/rpc/head, 99th percentile, without a shadow", without, "us");
    report.at_most(
        "/rpc/head, 99th percentile, every call also in the shadow, over without",
        with / without,
        "ratio",
        1.05,
        None,
    );
    node.stop();
}

/// Calls while the host compiles one component after the other, none of which a slot uses; beside calls while another
/// thread is as busy: two cores are not twice as fast as one, whatever the second one does.
fn compiling(dir: &Path, report: &mut Report) {
    let (host, slot) = slot(dir, "token-bucket", Rollout::Immediate, json!({}));
    host.watch().expect("a directory that can be watched");
    let component = std::fs::read(tenon_build::path("sliding-window")).expect("the plugin is built");
    let mut compiled = 0_u64;
    let (mut beside, mut during) = (Vec::new(), Vec::new());
    for _ in 0..7 {
        beside.push(p99_while(&slot, |done| {
            let mut bytes = component.clone();
            while !done.load(Ordering::Relaxed) {
                bytes.sort_unstable();
                bytes.reverse();
            }
        }));
        during.push(p99_while(&slot, |done| {
            while !done.load(Ordering::Relaxed) {
                let bytes = tenon_build::restamp(&component, &compiled.to_string());
                let digest = Some(tenon_runtime::Digest::of(&bytes));
                std::fs::write(dir.join("plugins/.next.part"), bytes).expect("a temporary directory");
                std::fs::rename(dir.join("plugins/.next.part"), dir.join("plugins/next.wasm")).expect("in one place");
                while !host.plugins().iter().any(|file| file.digest == digest) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                compiled += 1;
            }
        }));
    }
    report.note("components compiled beside calls", compiled as f64, "components");
    report.note("a rate-limit decision, 99th percentile, beside a busy thread", median(beside.clone()), "ns");
    report.at_most(
        "  while components are compiled, over that beside a busy thread",
        median(during) / median(beside),
        "ratio",
        1.05,
        None,
    );
    host.stop();
}

/// The 99th percentile of the time of calls to `slot`, in nanoseconds, while `other` works on another thread.
fn p99_while(slot: &Slot<RateLimit>, other: impl FnOnce(&AtomicBool) + Send) -> f64 {
    const CALLS: u64 = 3_000_000;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| other(&done));
        let mut times = hdrhistogram::Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("bounds in order");
        for call in 0..CALLS {
            let started = Instant::now();
            slot.check(&request(call % 1_000, call));
            times.saturating_record(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        done.store(true, Ordering::Relaxed);
        busy.join().expect("the other thread does not panic");
        times.value_at_quantile(0.99) as f64
    })
}
