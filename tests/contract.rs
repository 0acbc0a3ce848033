//! The same cases for a built-in and for every shipped plugin of its role.

#[path = "support/plugins.rs"]
mod plugins;
#[path = "support/sync_host.rs"]
mod sync_host;

use std::path::Path;

use plugins::host;
use proptest::prelude::{Just, ProptestConfig, prop, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::Strategy as Any;
use proptest::test_runner::TestRunner;
use serde_json::json;
use sync_host::{SyncHost, carry_out};
use tenon::agent::{Context, Effect, Event, Handler, Message};
use tenon::bindings::{AgentHandler, RateLimit, SyncStrategy, builtin};
use tenon::chain::{Address, Hash, Payload, Time};
use tenon::rate_limit::{Cell, Class, Policy, Request, Trust, Verdict, token_bucket};
use tenon::sync::{self, HeightRange, InFlight, Limits, Peer, Strategy, View};
use tenon_runtime::{By, Host, HostConfig, PluginConfig, Slot};

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

    /// From one configuration to another and back, cell by cell.
    #[test]
    fn the_token_bucket_keeps_its_memory_across_configurations_as_the_builtin_does(
        requests in prop::collection::vec((0..3_usize, any_request()), 1..200),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path(), &["token-bucket"]);
        let configurations = [
            json!({ "read": { "capacity": 5, "refill_per_second": 2 }, "trusted": [] }),
            json!({ "read": { "capacity": 500, "refill_per_second": 250 }, "write": { "capacity": 3, "refill_per_second": 1 } }),
            json!({
                "sync": { "capacity": 1_000_000_000, "refill_per_second": 1_000_000_000 },
                "read": { "capacity": 7, "refill_per_second": 1 }, "import": null, "trusted": ["peer"],
            }),
        ];
        let names = ["first", "second", "third"];
        let slots: Vec<_> = names
            .iter()
            .zip(&configurations)
            .map(|(name, settings)| policy(&host, name, Some("token-bucket"), settings.clone()))
            .collect();
        let builtins = configurations.map(|settings| serde_json::from_value::<token_bucket::Settings>(settings).unwrap());
        host.open();
        let mut cells = [Cell::default(); 3];
        for (configuration, request) in requests {
            let cell = &mut cells[request.client as usize];
            let step = slots[configuration].step(&request, cell);
            prop_assert_eq!(step.by, By::Generation(1));
            let expected = token_bucket::step(&builtins[configuration], &request, cell);
            prop_assert_eq!((step.answer, step.memory), expected, "{:?}", request);
            *cell = step.memory;
        }
        host.stop();
    }
}

#[test]
fn a_limit_that_is_raised_under_way_throttles_nobody_and_one_that_is_lowered_holds_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &["token-bucket", "sliding-window"]);
    let bucket = |capacity: u32, refill: u32| json!({ "read": { "capacity": capacity, "refill_per_second": refill } });
    let window = |limit: u32, window_ms: u32| json!({ "read": limit, "window_ms": window_ms });
    let cases = [
        ("token-bucket", [bucket(60, 1), bucket(500, 250), bucket(20, 1)]),
        ("builtin", [bucket(60, 1), bucket(500, 250), bucket(20, 1)]),
        ("sliding-window", [window(60, 60_000), window(500, 2_000), window(20, 90_000)]),
    ];
    let slots = cases.map(|(name, settings)| {
        let [first, ..] = settings.clone();
        (policy(&host, name, Some(name).filter(|name| *name != "builtin"), first), settings)
    });
    host.open();
    let (class, trust, now) = (Class::Read, Trust::Public, 1_735_689_600_000_000);
    let request = Request { client: 1, route: 4, class, trust, cost: 1, now };
    for (slot, [_, raised, lowered]) in slots {
        let left = |verdict: Verdict| match verdict {
            Verdict::Allow { remaining, .. } => remaining,
            verdict => panic!("{}: {verdict:?}", slot.name()),
        };
        for spent in 1..=46 {
            assert_eq!(left(slot.check(&request)), 60 - spent);
        }
        host.configure(slot.name(), raised).unwrap();
        for spent in 47..=60 {
            assert_eq!(left(slot.check(&request)), 500 - spent, "what was spent counts, and nothing else");
        }
        host.configure(slot.name(), lowered).unwrap();
        let verdict = slot.check(&request);
        assert!(matches!(verdict, Verdict::Throttle { limit: 20, .. }), "{}: {verdict:?}", slot.name());
        assert_eq!(slot.status().memories_lost, 0);
    }
    host.stop();
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

/// The shipped strategies.
const STRATEGIES: [&str; 4] = ["parallel-range", "sequential", "snapshot-first", "polite"];

/// A slot for each shipped strategy and one for the built-in, with settings that make each do what it is for.
fn strategies(host: &Host) -> Vec<Slot<SyncStrategy>> {
    let slot = |name: &str, plugin: Option<&str>| {
        let settings = match name {
            "snapshot-first" => json!({ "min_blocks": 100, "max_age_blocks": 5_000 }),
            "polite" => json!({ "requests_max": 2, "interval_ms": 300 }),
            _ => json!({}),
        };
        let config = PluginConfig { plugin: plugin.map(str::to_owned), settings, ..PluginConfig::default() };
        host.slot::<SyncStrategy>(name, config, builtin::OnePeer).unwrap()
    };
    let mut slots: Vec<_> = STRATEGIES.iter().map(|name| slot(name, Some(name))).collect();
    slots.push(slot("builtin", None));
    slots
}

/// All of them answered themselves, and nothing was refused.
fn assert_none_failed(host: &Host) {
    for status in host.status() {
        assert!((status.failures, status.fallbacks) == (0, 0), "{status:?}");
        assert_eq!(status.generation > 0, status.slot != "builtin", "{status:?}");
    }
}

#[test]
fn every_strategy_fetches_every_block_within_its_limits() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &STRATEGIES);
    let slots = strategies(&host);
    host.open();
    for slot in &slots {
        for peers in [1, 3] {
            for seed in 1..=5 {
                SyncHost::new(peers, seed).run(slot);
            }
        }
    }
    assert_none_failed(&host);
    host.stop();
}

#[test]
fn a_strategy_that_takes_over_in_the_middle_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &STRATEGIES);
    let slots = strategies(&host);
    host.open();
    for first in &slots {
        for second in &slots {
            for rounds in [1, 7, 12] {
                let mut sync = SyncHost::new(3, rounds);
                for _ in 0..rounds {
                    sync.round(first);
                }
                sync.take_over();
                sync.run(second);
            }
        }
    }
    assert_none_failed(&host);
    host.stop();
}

/// Views of which not everything makes sense: requests to peers that are gone, ranges asked for three times, more under
/// way than is allowed.
fn any_view() -> impl Any<Value = View> {
    let peer = (prop::option::of(0..3_000_u64), -5..5_i32, 0..4_u64, 0..3_u32, 0..3_000_000_u64, 0..900_000_u64);
    let peers = prop::collection::vec((peer, prop::option::of(0..3_000_u64)), 0..5);
    let requests = prop::collection::vec((0..6_u32, 1..400_u64, 0..60_u64, 0..30_u64), 0..6);
    let waiting = prop::collection::vec((1..50_u64, 0..50_u64), 0..6);
    let limits = (1..200_u32, 0..9_u32, 0..4_u32, 1..1_500_u64, 0..12_u32);
    (peers, requests, waiting, limits).prop_map(|(peers, requests, waiting, limits)| {
        let (now, head) = (Time(1_735_689_600_000_000), 10);
        let peer = |(id, ((height, score, rest, failures, throughput, latency_us), snapshot))| Peer {
            id,
            head: Option::map(height, |height| (height, Hash::ZERO)),
            latency_us,
            throughput,
            failures,
            score: score * 25,
            in_flight: 0,
            not_before: Time(now.0 / 2 * rest),
            snapshot,
        };
        let mut peers: Vec<Peer> = (0..).zip(peers).map(peer).collect();
        let mut in_flight = Vec::new();
        for (id, (peer, first, more, age)) in (1..).zip(requests) {
            let range = HeightRange { first: head + first, last: head + first + more };
            in_flight.push(InFlight { id, peer, range, since: Time(now.0 - age * 100_000) });
            peers.iter_mut().filter(|known| known.id == peer).for_each(|known| known.in_flight += 1);
        }
        let mut next = head + 1;
        let waiting = waiting.into_iter().map(|(gap, more)| {
            let range = HeightRange { first: next + gap, last: next + gap + more };
            next = range.last + 1;
            range
        });
        let (range_blocks_max, in_flight_max, in_flight_per_peer_max, window_blocks, actions_max) = limits;
        View {
            now,
            head: (head, Hash::ZERO),
            best_height: peers.iter().filter_map(|peer| peer.head).map(|head| head.0).max().unwrap_or(head),
            limits: Limits { range_blocks_max, in_flight_max, in_flight_per_peer_max, window_blocks, actions_max },
            waiting: waiting.collect(),
            peers,
            in_flight,
        }
    })
}

/// Events that need not fit the view.
fn any_event() -> impl Any<Value = sync::Event> {
    let range = |first, more| HeightRange { first, last: first + more };
    (0..12_u8, 0..6_u32, 0..600_u64, 0..80_u64).prop_map(move |(which, peer, first, more)| {
        let failure = sync::RangeFailure { id: first, peer, range: range(first, more), reason: "so it is".to_owned() };
        match which {
            0 => sync::Event::Started,
            1 => sync::Event::TakenOver,
            2 => sync::Event::PeerUp(peer),
            3 => sync::Event::PeerDown(peer),
            4 => sync::Event::HeadAnnounced(peer),
            5 => sync::Event::RangeFailed(failure),
            6 => sync::Event::RangeInvalid(failure),
            7 => sync::Event::Imported(range(first, more)),
            8 => sync::Event::SnapshotOffered { peer, height: first },
            9 => sync::Event::SnapshotFailed { peer, height: first },
            10 => sync::Event::RangeArrived {
                id: first,
                peer,
                range: range(first, more),
                bytes: first * more,
                duration_us: more * 1_000,
            },
            _ => sync::Event::Tick,
        }
    })
}

#[test]
fn whatever_is_the_case_the_host_refuses_nothing_that_a_strategy_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), &STRATEGIES);
    let slots = strategies(&host);
    host.open();
    let cases = prop::collection::vec((any_view(), prop::collection::vec(any_event(), 0..5)), 1..4);
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() });
    // One memory from call to call, whatever the calls before were about.
    let kept = |calls: Vec<(View, Vec<sync::Event>)>| {
        for slot in &slots {
            for (view, events) in &calls {
                let mut view = view.clone();
                let actions = slot.next(&view, events);
                prop_assert_eq!(carry_out(&mut view, &actions, &mut 1_000), Ok(()), "{}", slot.name());
            }
        }
        Ok(())
    };
    runner.run(&cases, kept).unwrap();
    assert_none_failed(&host);
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
        let reason = slot.handle(&context, &event, &memory).unwrap_err().to_string();
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
