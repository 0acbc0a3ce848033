//! Plugins that misbehave, in the three roles: real components from `plugins/faults*`. Whatever one does, its caller has
//! the built-in's answer, the failure is counted under its cause, and the next call finds a fresh instance.

#[path = "support/plugins.rs"]
mod plugins;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use plugins::host;
use serde_json::json;
use tenon::agent::{self, Handler};
use tenon::bindings::{AgentHandler, RateLimit, SyncStrategy, builtin};
use tenon::chain::{Address, Hash, Payload, Time};
use tenon::config::Config;
use tenon::rate_limit::{Class, Policy, Request, Trust, Verdict, token_bucket};
use tenon::sync::{Action, Event, Limits, Peer, Strategy, View, one_peer};
use tenon_runtime::{Host, LOG_TARGET, PluginConfig, Slot};

fn config(plugin: &str, mode: &str) -> PluginConfig {
    let mut config = PluginConfig { settings: json!({ "mode": mode }), ..PluginConfig::plugin(plugin) };
    // The calls of one test never reach quarantine, which is tested where time is an argument.
    config.limits.strikes_max = 100;
    config
}

fn request(client: u64) -> Request {
    let (class, trust) = (Class::Read, Trust::Public);
    Request { client, route: 3, class, trust, cost: 1, now: 1_735_689_600_000_000 }
}

/// What the status of a slot says about failures of a cause.
fn failures(host: &Host, slot: &str, cause: &str) -> u64 {
    let status = host.status().into_iter().find(|status| status.slot == slot).unwrap();
    let status = serde_json::to_value(status).unwrap();
    status["failures_by_cause"][cause].as_u64().unwrap_or(0)
}

#[test]
fn each_fault_of_a_policy_is_answered_by_the_builtin_and_counted_by_its_cause() {
    let faults = [
        ("panic", "trap"),
        ("spin", "deadline"),
        ("hoard", "memory-limit"),
        // A Rust guest keeps its stack in its memory, and falls off the end of that.
        ("recurse", "trap"),
        ("retry-zero", "refused"),
        ("remaining-above-limit", "refused"),
    ];
    for (mode, cause) in faults {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path(), &["faults"]);
        let settings = token_bucket::Settings::default();
        let builtin = {
            let settings = settings.clone();
            move |request: &Request, cell: &_| token_bucket::step(&settings, request, cell)
        };
        // The probe before going live must not meet the fault: it begins with the second call of a client.
        let mut with = config("faults", mode);
        with.settings = json!({ "mode": mode, "from_call": 2 });
        let slot: Slot<RateLimit> = host.slot("rate-limit", with, builtin).unwrap();
        host.open();
        assert_eq!(slot.generation(), 1, "{mode}: {:?}", host.plugins());
        // Each client fails once: after a second failure the plugin would no longer be asked for it.
        for (call, client) in [(1, 7), (2, 9), (3, 11)] {
            slot.check(&request(client));
            let (expected, _) = token_bucket::step(&settings, &request(client), &[0; 4]);
            let got = slot.check(&request(client));
            let same = |a: &Verdict, b: &Verdict| std::mem::discriminant(a) == std::mem::discriminant(b);
            assert!(same(&got, &expected), "{mode}, call {call}: {got:?}");
            assert_eq!(failures(&host, "rate-limit", cause), call, "{mode}: {:?}", host.status());
        }
        // A client that it does not fail is still its own.
        slot.check(&request(8));
        assert_eq!(failures(&host, "rate-limit", cause), 3, "{mode}");
        host.stop();
    }
}

#[test]
fn a_policy_may_deny_everybody_and_that_is_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["faults"]);
    let builtin = |request: &Request, cell: &_| token_bucket::step(&token_bucket::Settings::default(), request, cell);
    let slot: Slot<RateLimit> = host.slot("rate-limit", config("faults", "deny-all"), builtin).unwrap();
    host.open();
    assert!(matches!(slot.check(&request(1)), Verdict::Deny(_)));
    let changed = host.configure("rate-limit", json!({ "mode": "pass" }));
    assert!(changed.is_ok(), "{changed:?}");
    assert!(matches!(slot.check(&request(1)), Verdict::Allow { .. }), "no opinion: the built-in decides");
    host.stop();
}

#[test]
fn what_fails_before_it_is_live_never_serves() {
    for mode in ["configure-error", "configure-panic", "configure-spin"] {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path(), &["faults"]);
        let builtin =
            |request: &Request, cell: &_| token_bucket::step(&token_bucket::Settings::default(), request, cell);
        let mut with = config("faults", mode);
        with.limits.start_deadline_ms = 200;
        let slot: Slot<RateLimit> = host.slot("rate-limit", with, builtin).unwrap();
        let report = host.open();
        assert_eq!(slot.generation(), 0, "{mode}");
        assert_eq!(report.rejected.len(), 1, "{mode}");
        assert!(matches!(slot.check(&request(1)), Verdict::Allow { .. }), "{mode}");
        host.stop();
    }
}

fn view() -> View {
    let limits = Limits {
        range_blocks_max: 100,
        in_flight_max: 4,
        in_flight_per_peer_max: 2,
        window_blocks: 1_000,
        actions_max: 64,
    };
    let peer = Peer {
        id: 1,
        head: Some((5_000, Hash::of(&[b"theirs"]))),
        latency_us: 1_000,
        throughput: 1 << 20,
        failures: 0,
        score: 100,
        in_flight: 0,
        not_before: Time(0),
        snapshot: None,
    };
    View {
        now: Time(1_735_689_600_000_000),
        head: (10, Hash::of(&[b"ours"])),
        best_height: 5_000,
        limits,
        peers: vec![peer],
        in_flight: Vec::new(),
        waiting: Vec::new(),
    }
}

#[test]
fn each_fault_of_a_strategy_is_answered_by_the_builtin() {
    let faults = [
        ("panic", "trap"),
        ("spin", "deadline"),
        ("hoard", "memory-limit"),
        // A Rust guest keeps its stack in its memory, and falls off the end of that.
        ("recurse", "trap"),
        ("flood", "refused"),
        ("memory-huge", "oversized"),
    ];
    for (mode, cause) in faults {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path(), &["faults-sync"]);
        let slot: Slot<SyncStrategy> =
            host.slot::<SyncStrategy>("sync", config("faults-sync", mode), builtin::OnePeer).unwrap();
        host.open();
        assert_eq!(Strategy::generation(&slot), 1, "{mode}: {:?}", host.plugins());
        let (expected, _) = one_peer::step(&view(), &[Event::Started], &[]);
        assert!(expected.iter().any(|action| matches!(action, Action::FetchRange { .. })));
        for call in 1..=2 {
            assert_eq!(slot.next(&view(), &[Event::Started]), expected, "{mode}");
            assert_eq!(failures(&host, "sync", cause), call, "{mode}: {:?}", host.status());
        }
        host.stop();
    }
}

fn message() -> (agent::Context, agent::Message) {
    let context = agent::Context {
        agent: "bob".into(),
        wallet: Address([2; 20]),
        now: Time(1_735_689_600_000_000),
        height: 5,
        balance: 100,
        message_fee: 1,
        fee_left: 100,
    };
    let message = agent::Message {
        id: Hash::of(&[b"id"]),
        from: Address([1; 20]),
        payload: Payload::Text("ping".into()),
        height: 5,
        time: context.now,
    };
    (context, message)
}

#[test]
fn each_fault_of_a_handler_sets_the_message_aside_and_changes_nothing() {
    let faults = [
        ("panic", "trap"),
        ("spin", "deadline"),
        ("hoard", "memory-limit"),
        // A Rust guest keeps its stack in its memory, and falls off the end of that.
        ("recurse", "trap"),
        ("payload-huge", "refused"),
        ("payload-broken", "refused"),
        ("address-broken", "refused"),
        ("memory-huge", "oversized"),
    ];
    let (context, message) = message();
    for (mode, cause) in faults {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path(), &["faults-agent"]);
        let slot: Slot<AgentHandler> =
            host.slot::<AgentHandler>("agent/bob", config("faults-agent", mode), builtin::Park).unwrap();
        host.open();
        assert_eq!(slot.generation(), 1, "{mode}: {:?}", host.plugins());
        let outcome = slot.handle(&context, &agent::Event::Message(message.clone()), b"");
        let reason = outcome.expect_err(mode);
        assert!(!reason.to_string().is_empty(), "{mode}: a parked message says why");
        assert_eq!(failures(&host, "agent/bob", cause), 1, "{mode}: {:?}", host.status());
        host.stop();
    }
}

/// The component as one that was made for version 0.1.7 of every interface of the contract.
fn of_a_later_contract(component: &[u8]) -> Vec<u8> {
    const NOW: &[u8] = b"@0.1.0";
    let mut bytes = component.to_vec();
    for at in 0..bytes.len() - NOW.len() {
        if bytes[at..].starts_with(NOW) {
            bytes[at..at + NOW.len()].copy_from_slice(b"@0.1.7");
        }
    }
    assert_ne!(bytes, component, "it names no version");
    bytes
}

#[test]
fn what_is_refused_of_an_answer_is_refused_whatever_version_of_its_interface_a_component_is_of() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["faults", "faults-sync", "faults-agent"];
    let host = host(dir.path(), &names);
    for name in names {
        let component = std::fs::read(tenon_build::path(name)).unwrap();
        let later = dir.path().join("plugins").join(name).with_extension("wasm");
        std::fs::write(later, of_a_later_contract(&component)).unwrap();
    }
    let text = configured("strikes_max = 100", "retry-zero", "flood", "payload-huge");
    let strategy: Slot<SyncStrategy> =
        host.slot::<SyncStrategy>("sync", text.plugins.sync.plugin_config(), builtin::OnePeer).unwrap();
    let handler: Slot<AgentHandler> =
        host.slot::<AgentHandler>("agent/bob", text.agents[0].plugin_config(), builtin::Park).unwrap();
    let policy = policy_slot(&host, &text);
    assert_eq!(
        (policy.generation(), Strategy::generation(&strategy), handler.generation()),
        (1, 1, 1),
        "{:?}",
        host.plugins()
    );
    assert!(matches!(policy.check(&request(7)), Verdict::Allow { .. }));
    policy.check(&request(7));
    strategy.next(&view(), &[Event::Started]);
    let (context, message) = message();
    handler.handle(&context, &agent::Event::Message(message), b"").unwrap_err();
    for slot in ["rate-limit", "sync", "agent/bob"] {
        assert_eq!(failures(&host, slot, "refused"), 1, "{slot}: {:?}", host.status());
    }
    host.stop();
}

/// What `tenon.toml` says, with `limits` for the slots of faulty plugins in these modes.
fn configured(limits: &str, policy: &str, strategy: &str, handler: &str) -> Config {
    let text = format!(
        r#"
        [plugins.rate-limit]
        use = "faults"
        config = {{ mode = "{policy}", from_call = 2 }}
        [plugins.rate-limit.limits]
        {limits}
        [plugins.sync]
        use = "faults-sync"
        config = {{ mode = "{strategy}" }}
        [plugins.sync.limits]
        {limits}
        [[agents]]
        name = "bob"
        wallet = "bob.json"
        handler = "faults-agent"
        config = {{ mode = "{handler}" }}
        [agents.limits]
        {limits}
        "#
    );
    Config::parse(&text, [], Path::new("")).unwrap()
}

fn policy_slot(host: &Host, config: &Config) -> Slot<RateLimit> {
    let builtin = |request: &Request, cell: &_| token_bucket::step(&token_bucket::Settings::default(), request, cell);
    let slot = host.slot("rate-limit", config.plugins.rate_limit.plugin_config(), builtin).unwrap();
    host.open();
    slot
}

fn last_error(host: &Host, slot: &str) -> String {
    let status = host.status().into_iter().find(|status| status.slot == slot).unwrap();
    status.last_error.unwrap_or_default()
}

/// `limits` in the configuration stop a policy in `mode`, with the last error `expected`.
fn check_limited_policy(limits: &str, mode: &str, expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["faults"]);
    let slot = policy_slot(&host, &configured(limits, mode, "one-peer", "silent"));
    assert_eq!(slot.generation(), 1, "{:?}", host.plugins());
    slot.check(&request(7));
    slot.check(&request(7));
    let error = last_error(&host, "rate-limit");
    assert!(error.contains(expected), "{limits}: {error}");
    host.stop();
}

#[test]
fn a_configured_deadline_stops_a_guest() {
    check_limited_policy("deadline_ms = 60", "spin", "still running after 60 ms");
}

#[test]
fn a_configured_memory_stops_a_guest() {
    check_limited_policy("memory_max_bytes = 2_097_152", "hoard", "at most 2097152 are allowed");
}

#[test]
fn a_configured_number_of_strikes_puts_a_guest_in_quarantine() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["faults"]);
    let limits = "strikes_max = 2\nbackoff_min_ms = 3_600_000\nbackoff_max_ms = 3_600_000";
    let slot = policy_slot(&host, &configured(limits, "panic", "one-peer", "silent"));
    for _ in 0..10 {
        slot.check(&request(7));
    }
    assert_eq!(failures(&host, "rate-limit", "trap"), 2, "after that it is not asked");
    host.stop();
}

#[test]
fn a_configured_size_of_answers_stops_a_strategy() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["faults-sync"]);
    let config = configured("answer_max_bytes = 65_536", "allow", "memory-huge", "silent");
    let slot: Slot<SyncStrategy> =
        host.slot::<SyncStrategy>("sync", config.plugins.sync.plugin_config(), builtin::OnePeer).unwrap();
    host.open();
    slot.next(&view(), &[Event::Started]);
    assert!(last_error(&host, "sync").contains("larger than 65536 bytes"), "{:?}", host.status());
    host.stop();
}

#[test]
fn a_configured_deadline_of_an_agent_stops_its_handler() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["faults-agent"]);
    let config = configured("deadline_ms = 60", "allow", "one-peer", "spin");
    let slot: Slot<AgentHandler> =
        host.slot::<AgentHandler>("agent/bob", config.agents[0].plugin_config(), builtin::Park).unwrap();
    host.open();
    let (context, message) = message();
    let reason = slot.handle(&context, &agent::Event::Message(message), b"").unwrap_err();
    assert!(last_error(&host, "agent/bob").contains("still running after 60 ms"), "{reason}");
    host.stop();
}

/// Counts the lines of plugins.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<usize>>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == LOG_TARGET
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        *self.0.lock().unwrap() += 1;
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_configured_number_of_log_lines_a_second_holds_a_flood_back() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["faults"]);
    // 20,000 lines in one call, which shall end by itself.
    let limits = "log_lines_per_second = 3\ndeadline_ms = 60_000";
    let slot = policy_slot(&host, &configured(limits, "flood-log", "one-peer", "silent"));
    slot.check(&request(7));
    let lines = Lines::default();
    let start = Instant::now();
    tracing::subscriber::with_default(lines.clone(), || slot.check(&request(7)));
    // Three a second and one that tells of the rest; a slow machine has more seconds.
    let lines_max = 4 * (usize::try_from(start.elapsed().as_secs()).unwrap() + 1);
    let lines = *lines.0.lock().unwrap();
    assert!((3..=lines_max).contains(&lines), "{lines} of at most {lines_max}");
    assert_eq!(last_error(&host, "rate-limit"), "");
    host.stop();
}
