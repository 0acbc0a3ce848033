//! The same cases for a built-in and for every shipped plugin of its role.

#[path = "support/plugins.rs"]
mod plugins;

use std::path::Path;

use plugins::host;
use proptest::prelude::{Just, ProptestConfig, prop, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::Strategy as Any;
use serde_json::json;
use tenon::agent::{Context, Effect, Event, Handler, Message};
use tenon::bindings::{AgentHandler, RateLimit, SyncStrategy, builtin};
use tenon::chain::{Address, Hash, Payload, Time};
use tenon::rate_limit::{Class, Policy, Request, Trust, Verdict, token_bucket};
use tenon::sync::{self, Action, HeightRange, InFlight, Limits, Peer, Strategy, View};
use tenon_runtime::{Host, HostConfig, PluginConfig, Slot};

fn policy(host: &Host, name: &str, plugin: Option<&str>, settings: serde_json::Value) -> Slot<RateLimit> {
    let of_builtin = serde_json::from_value(settings.clone()).unwrap_or_else(|_| token_bucket::Settings::default());
    let config = PluginConfig { plugin: plugin.map(str::to_owned), settings, ..PluginConfig::default() };
    host.slot(name, config, builtin::TokenBucket::new(of_builtin).unwrap()).unwrap()
}

fn any_request() -> impl Any<Value = Request> {
    let class = prop_oneof![Just(Class::Sync), Just(Class::Read), Just(Class::Write), Just(Class::Import)];
    let trust = prop_oneof![4 => Just(Trust::Public), 1 => Just(Trust::Peer), 1 => Just(Trust::Loopback)];
    (0_u64..3, class, trust, 1_u64..8, 0_u64..40_000_000).prop_map(|(client, class, trust, cost, after)| {
        // Time is not always in order: clocks step.
        Request { client, route: 3, class, trust, cost, now: 1_735_689_600_000_000 + after }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn the_token_bucket_is_the_same_as_a_plugin_and_as_the_builtin(requests in prop::collection::vec(any_request(), 1..120)) {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path(), &["token-bucket"]);
        let settings = json!({
            "read": { "capacity": 5, "refill_per_second": 2 }, "write": { "capacity": 3, "refill_per_second": 1 },
            "trusted": ["loopback"],
        });
        let plugin = policy(&host, "plugin", Some("token-bucket"), settings.clone());
        let builtin = policy(&host, "builtin", None, settings);
        host.open();
        prop_assert_eq!((plugin.generation(), builtin.generation()), (1, 0));
        for request in requests {
            prop_assert_eq!(plugin.check(&request), builtin.check(&request), "{:?}", request);
        }
        host.stop();
    }
}

#[test]
fn followers_are_never_throttled_by_the_defaults_of_any_shipped_policy() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["token-bucket", "sliding-window", "allow-all"];
    let host = host(dir.path(), &names);
    let mut slots: Vec<_> = names.iter().map(|name| policy(&host, name, Some(name), json!({}))).collect();
    slots.push(policy(&host, "builtin", None, json!({})));
    host.open();
    for slot in slots {
        for call in 0..5_000 {
            let (class, trust, now) = (Class::Sync, Trust::Public, 1_735_689_600_000_000 + call);
            let request = Request { client: 1, route: 1, class, trust, cost: 101, now };
            assert!(matches!(slot.check(&request), Verdict::Allow { .. }), "{}, call {call}", slot.name());
        }
    }
    host.stop();
}

#[test]
fn a_caller_who_waits_as_long_as_it_was_told_passes() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["token-bucket", "sliding-window"];
    let host = host(dir.path(), &names);
    let mut slots: Vec<_> = names.iter().map(|name| policy(&host, name, Some(name), json!({}))).collect();
    slots.push(policy(&host, "builtin", None, json!({})));
    host.open();
    for slot in slots {
        let mut request = Request {
            client: 1,
            route: 4,
            class: Class::Write,
            trust: Trust::Public,
            cost: 1,
            now: 1_735_689_600_000_000,
        };
        let mut throttled = 0;
        for _ in 0..2_000 {
            if let Verdict::Throttle { retry_after_ms, .. } = slot.check(&request) {
                throttled += 1;
                request.now += retry_after_ms * 1_000;
                assert!(matches!(slot.check(&request), Verdict::Allow { .. }), "{}", slot.name());
            }
        }
        assert!(throttled > 0, "{} never throttles writers", slot.name());
    }
    host.stop();
}

/// A host of strategies in small: answers come after some rounds, some are lost; everything is checked.
fn fetch_all(strategy: &dyn Strategy, peers: usize, dice: &mut impl FnMut(u64) -> u64) -> usize {
    let last = 700;
    let limits = Limits {
        range_blocks_max: 64,
        in_flight_max: 6,
        in_flight_per_peer_max: 3,
        window_blocks: 400,
        actions_max: 64,
    };
    let peer = |id| Peer {
        id,
        head: Some((last, Hash::of(&[b"head"]))),
        latency_us: 500,
        throughput: 1 << 20,
        failures: 0,
        score: 100,
        in_flight: 0,
        not_before: Time(0),
        snapshot: None,
    };
    let mut view = View {
        now: Time(1_735_689_600_000_000),
        head: (0, Hash::of(&[b"genesis"])),
        best_height: last,
        limits: limits.clone(),
        peers: (1..=peers as u32).map(peer).collect(),
        in_flight: Vec::new(),
        waiting: Vec::new(),
    };
    let (mut events, mut next_id, mut have, mut rounds) = (vec![sync::Event::Started], 1, vec![false; 701], 0);
    have[0] = true;
    while view.head.0 < last {
        rounds += 1;
        assert!(rounds < 5_000, "stands still at {}", view.head.0);
        for action in strategy.next(&view, &events) {
            let Action::FetchRange { peer, range } = action else { continue };
            let at = view.peers.iter().position(|known| known.id == peer).expect("a known peer");
            assert!(range.first > view.head.0 && range.last <= last && range.first <= range.last, "{range:?}");
            assert!(range.count() <= u64::from(limits.range_blocks_max), "{range:?}");
            assert!(range.last <= view.head.0 + limits.window_blocks, "{range:?}");
            assert!(view.in_flight.len() < limits.in_flight_max as usize);
            assert!(view.peers[at].in_flight < limits.in_flight_per_peer_max);
            view.peers[at].in_flight += 1;
            view.in_flight.push(InFlight { id: next_id, peer, range, since: view.now });
            next_id += 1;
        }
        events = vec![sync::Event::Tick];
        view.now = Time(view.now.0 + 50_000);
        if !view.in_flight.is_empty() {
            let InFlight { id, peer, range, since } = view.in_flight.remove(dice(view.in_flight.len() as u64) as usize);
            let known = view.peers.iter_mut().find(|known| known.id == peer).expect("a known peer");
            known.in_flight -= 1;
            if dice(5) == 0 {
                known.failures += 1;
                let reason = "lost".to_owned();
                events.push(sync::Event::RangeFailed(sync::RangeFailure { id, peer, range, reason }));
            } else {
                known.failures = 0;
                let (bytes, duration_us) = (range.count() * 300, view.now.0 - since.0);
                events.push(sync::Event::RangeArrived { id, peer, range, bytes, duration_us });
                (range.first..=range.last).for_each(|height| have[height as usize] = true);
            }
        }
        let head = have.iter().position(|here| !here).unwrap_or(have.len()) as u64 - 1;
        if head > view.head.0 {
            events.push(sync::Event::Imported(HeightRange { first: view.head.0 + 1, last: head }));
            view.head = (head, Hash::of(&[&head.to_be_bytes()]));
        }
        let waiting = (head + 1..=last).filter(|&height| have[height as usize]);
        view.waiting = waiting.fold(Vec::new(), |mut ranges: Vec<HeightRange>, height| {
            match ranges.last_mut() {
                Some(range) if range.last + 1 == height => range.last = height,
                _ => ranges.push(HeightRange { first: height, last: height }),
            }
            ranges
        });
    }
    rounds
}

#[test]
fn every_strategy_fetches_every_block_within_its_limits() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["parallel-range"]);
    let slot = |name: &str, plugin: Option<&str>| -> Slot<SyncStrategy> {
        let config = PluginConfig { plugin: plugin.map(str::to_owned), ..PluginConfig::default() };
        host.slot::<SyncStrategy>(name, config, builtin::OnePeer).unwrap()
    };
    let slots = [slot("builtin", None), slot("plugin", Some("parallel-range"))];
    host.open();
    for slot in slots {
        for peers in [1, 3] {
            for seed in 1..=5_u64 {
                let mut state = seed;
                let mut dice = |below: u64| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 33) % below
                };
                fetch_all(&slot, peers, &mut dice);
            }
        }
    }
    let failed: u64 = host.status().iter().map(|status| status.failures).sum();
    assert_eq!(failed, 0, "{:?}", host.status());
    host.stop();
}

fn said(payload: Payload) -> (Context, Event) {
    let context = Context {
        agent: "bob".into(),
        wallet: Address([2; 20]),
        now: Time(1_735_689_600_000_000),
        height: 5,
        balance: 100,
        message_fee: 1,
        fee_left: 100,
    };
    let (id, from, time) = (Hash::of(&[b"id"]), Address([1; 20]), context.now);
    (context, Event::Message(Message { id, from, payload, height: 5, time }))
}

#[test]
fn ping_pong_answers_the_exact_trigger_and_the_builtin_keeps_everything_for_later() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["ping-pong"]);
    let slot = |name: &str, plugin: Option<&str>| -> Slot<AgentHandler> {
        let config = PluginConfig { plugin: plugin.map(str::to_owned), ..PluginConfig::default() };
        host.slot::<AgentHandler>(name, config, builtin::Park).unwrap()
    };
    let (plugin, builtin) = (slot("agent/plugin", Some("ping-pong")), slot("agent/builtin", None));
    host.open();
    let cases = [("ping", true), ("shipping", false), ("Ping", false), ("ping ", false), ("pong", false), ("", false)];
    let mut memory = Vec::new();
    for (text, answered) in cases {
        let (context, event) = said(Payload::Text(text.into()));
        let (effects, after) = plugin.handle(&context, &event, &memory).unwrap();
        let reply = Effect::Reply(Payload::Text("pong".into()));
        assert_eq!(effects.contains(&reply), answered, "{text:?}: {effects:?}");
        memory = after;
        assert!(builtin.handle(&context, &event, &[]).is_err(), "the built-in sets {text:?} aside");
    }
    let (context, event) = said(Payload::object(r#"{"cmd":"ping"}"#).unwrap());
    assert!(plugin.handle(&context, &event, &memory).unwrap().0.is_empty());
    host.stop();
}

#[test]
fn the_example_plugin_builds_as_its_author_would_build_it_and_greets() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("plugins");
    std::fs::create_dir_all(&folder).unwrap();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/greeter");
    tenon_build::build_dir(&example, &folder.join("any-name.wasm")).unwrap();
    let host = Host::new(HostConfig::new(&folder, dir.path().join("state"))).unwrap();
    let config = PluginConfig { settings: json!({ "greeting": "Good day." }), ..PluginConfig::plugin("greeter") };
    let slot: Slot<AgentHandler> = host.slot::<AgentHandler>("agent/greta", config, builtin::Park).unwrap();
    host.open();
    let (context, event) = said(Payload::Text("hello".into()));
    let mut memory = Vec::new();
    for number in 1..=3 {
        let (effects, after) = slot.handle(&context, &event, &memory).unwrap();
        let greeting = Payload::Text(format!("Good day. You are number {number}."));
        assert_eq!(effects, [Effect::Reply(greeting)]);
        memory = after;
    }

    // Its next version remembers in another form: it takes over the count, and gives it back.
    let next = dir.path().join("next.wasm");
    tenon_build::build_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/greeter-2"), &next).unwrap();
    std::fs::rename(next, folder.join("any-name.wasm")).unwrap();
    host.reload("agent/greta").unwrap();
    let mut greeted = |more: &str| {
        let (effects, after) = slot.handle(&context, &event, &memory).unwrap();
        assert_eq!(effects, [Effect::Reply(Payload::Text(format!("Good day. You are number {more}")))]);
        memory = after;
    };
    let Event::Message(message) = &event else { panic!("a message") };
    greeted("4.");
    greeted(&format!("5. {} was here before you.", message.from));
    host.roll_back("agent/greta").unwrap();
    greeted("6.");
    assert_eq!(host.status()[0].memories_lost, 0);
    host.stop();
}

#[test]
fn an_agents_memory_that_its_handler_cannot_read_stays_until_it_can_or_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("plugins");
    std::fs::create_dir_all(&folder).unwrap();
    let example = |name: &str| {
        let built = dir.path().join(name).with_extension("wasm");
        tenon_build::build_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name), &built).unwrap();
        built
    };
    let put = |built: &Path| std::fs::copy(built, folder.join("greeter.wasm")).unwrap();
    let (first, second) = (example("greeter"), example("greeter-2"));
    // As after a restart: of the two versions there is only the one in the directory.
    let host_with = |built: &Path| {
        put(built);
        let state = tempfile::tempdir_in(dir.path()).unwrap().keep();
        let host = Host::new(HostConfig::new(&folder, state)).unwrap();
        let config = PluginConfig { settings: json!({ "greeting": "Good day." }), ..PluginConfig::plugin("greeter") };
        let slot: Slot<AgentHandler> = host.slot::<AgentHandler>("agent/greta", config, builtin::Park).unwrap();
        host.open();
        (host, slot)
    };
    let (context, event) = said(Payload::Text("hello".into()));
    let text = |effects: Vec<Effect>| match effects.as_slice() {
        [Effect::Reply(Payload::Text(text))] => text.clone(),
        other => panic!("{other:?}"),
    };
    let (host, slot) = host_with(&second);
    let (_, memory) = slot.handle(&context, &event, &[]).unwrap();
    host.stop();

    // The older version knows nothing of the newer one's memory, and the newer one is not there to turn it back.
    let (host, slot) = host_with(&first);
    for _ in 0..3 {
        let reason = slot.handle(&context, &event, &memory).unwrap_err();
        for part in ["cannot read the memory of greeter/2", "it stays as it is", "promote agent/greta --force"] {
            assert!(reason.contains(part), "{part}: {reason}");
        }
    }
    assert_eq!((host.status()[0].memories_lost, host.status()[0].failures), (0, 3));
    // The newer one is back, and goes on where it was.
    put(&second);
    host.reload("agent/greta").unwrap();
    let (effects, memory) = slot.handle(&context, &event, &memory).unwrap();
    assert!(text(effects).contains("You are number 2."), "nothing was lost");
    host.stop();

    let (host, slot) = host_with(&first);
    host.promote("agent/greta", true).unwrap();
    let (effects, memory) = slot.handle(&context, &event, &memory).unwrap();
    assert_eq!(text(effects), "Good day. You are number 1.");
    let (effects, _) = slot.handle(&context, &event, &memory).unwrap();
    assert_eq!(text(effects), "Good day. You are number 2.");
    assert_eq!(host.status()[0].memories_lost, 1);
    host.stop();
}
