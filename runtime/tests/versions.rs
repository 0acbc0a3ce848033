//! Components of other versions of the contract: every compatible one is served, older than the host's and newer, and meets
//! the very same checks; of any other, both versions are named.

mod support;

use serde_json::json;
use support::{
    Answer, Bed, COUNTER_WIT, Counter, LATER_WIT, Later, Mode, Request, Text, add, builtin, component, mode, of_version,
};
use tenon_runtime::{By, Failure, Kind, Limits, PluginConfig, Slot, Stage};

/// The kind in one version of the host's.
trait Counts: Kind<Key = u64, Request = Request, Answer = Answer, Memory = (u64, u64, u64, u64)> {}
impl<K: Kind<Key = u64, Request = Request, Answer = Answer, Memory = (u64, u64, u64, u64)>> Counts for K {}

/// Versions of all interfaces that a component is of. The hosts' are 0.1.0 ([`Counter`]) and 0.1.5 ([`Later`]).
const SERVED: [&str; 4] = ["0.1.0", "0.1.1", "0.1.5", "0.1.9"];

fn slot<K: Counts>(bed: &Bed, config: PluginConfig) -> Slot<K> {
    let slot = bed.host.slot::<K>("counter", config, builtin).expect("a slot");
    bed.host.open();
    slot
}

/// Runs `check` for each version of the interface on the host's side, and on the component's.
fn each(check: impl Fn(&str, &dyn Fn(&Bed, PluginConfig) -> Box<dyn Asked>)) {
    for version in SERVED {
        check(version, &|bed, config| Box::new(slot::<Counter>(bed, config)));
        check(version, &|bed, config| Box::new(slot::<Later>(bed, config)));
    }
}

/// A slot of either kind.
trait Asked {
    fn ask(&self, client: u64, request: &Request) -> (Answer, By, Option<Failure>);
    fn generation(&self) -> u64;
}

impl<K: Counts> Asked for Slot<K> {
    fn ask(&self, client: u64, request: &Request) -> (Answer, By, Option<Failure>) {
        let decision = Slot::ask(self, &client, request);
        (decision.answer, decision.by, decision.failure)
    }

    fn generation(&self) -> u64 {
        Slot::generation(self)
    }
}

#[test]
fn every_limit_and_every_rule_for_answers_holds_whatever_the_version() {
    let limits = Limits { deadline_ms: 50, memory_max_bytes: 2 << 20, ..Limits::default() };
    each(|version, slot| {
        let bed = Bed::new();
        bed.put("adder.wasm", &of_version(&Text::new("adder", 1).counter(), version));
        let slot = slot(&bed, PluginConfig { limits: limits.clone(), ..PluginConfig::plugin("adder") });
        assert_eq!(slot.generation(), 1, "{version}: {:?}", bed.host.plugins());
        let total = |sum| Answer::Total { sum, build: 1 };
        assert_eq!(slot.ask(1, &add(1, 5)), (total(5), By::Generation(1), None), "{version}");
        let too_much = Request { limit: 6, ..add(1, 2) };
        for (request, cause) in [
            (mode(Mode::Trap), "trap"),
            (mode(Mode::Spin), "deadline"),
            (mode(Mode::Hoard), "memory-limit"),
            (mode(Mode::Recurse), "stack"),
            (too_much, "refused"),
        ] {
            let (_, by, failure) = slot.ask(1, &request);
            let failure = failure.unwrap_or_else(|| panic!("{version}: {cause}"));
            assert_eq!((failure.cause(), by), (cause, By::Builtin), "{version}: {failure}");
        }
        // No failure has changed the memory.
        assert_eq!(slot.ask(1, &add(1, 1)), (total(6), By::Generation(1), None), "{version}");
    });
}

#[test]
fn settings_and_what_a_plugin_says_of_itself_are_checked_whatever_the_version() {
    let schema = r#"{"type": "object", "properties": {"burst": {"type": "integer"}}}"#;
    let rejected = |version: &str, slot: &dyn Fn(&Bed, PluginConfig) -> Box<dyn Asked>, text: &Text| {
        let bed = Bed::new();
        bed.put("adder.wasm", &of_version(&text.counter(), version));
        let settings = json!({ "burst": "many" });
        let slot = slot(&bed, PluginConfig { settings, ..PluginConfig::plugin("adder") });
        assert_eq!(slot.generation(), 0, "{version}");
        let rejection = bed.status().candidate.or_else(|| bed.host.plugins().remove(0).rejection);
        rejection.unwrap_or_else(|| panic!("{version}: taken"))
    };
    each(|version, slot| {
        let text = Text { schema: schema.into(), ..Text::new("adder", 1) };
        let rejection = rejected(version, slot, &text);
        assert_eq!(rejection.stage, Stage::Settings, "{version}");
        assert!(rejection.reason.contains("/burst"), "{version}: {rejection}");
        let rejection = rejected(version, slot, &Text { summary: "x".repeat(201), ..Text::new("adder", 1) });
        assert_eq!(rejection.stage, Stage::Describe, "{version}");
        let rejection = rejected(version, slot, &Text { configure: 1, ..Text::new("adder", 1) });
        assert_eq!((rejection.stage, &*rejection.reason), (Stage::Configure, "no, thank you"), "{version}");
    });
}

#[test]
fn memory_goes_from_one_version_of_the_interface_to_another_and_back() {
    each(|version, slot| {
        let bed = Bed::new();
        bed.put("adder.wasm", &Text::new("adder", 1).counter());
        let slot = slot(&bed, PluginConfig::plugin("adder"));
        slot.ask(1, &add(1, 5));
        bed.put("adder.wasm", &of_version(&Text::migrating("adder", 2, 2).counter(), version));
        bed.host.reload("counter").expect("a sound version");
        assert_eq!(slot.ask(1, &add(1, 1)).0, Answer::Total { sum: 6, build: 2 }, "{version}");
        bed.host.roll_back("counter").expect("a step back");
        assert_eq!(slot.ask(1, &add(1, 1)).0, Answer::Total { sum: 7, build: 1 }, "{version}");
        assert_eq!(bed.status().memories_lost, 0, "{version}");
    });
}

/// What `host` says of `bytes`.
fn refusal<K: Counts>(bytes: &[u8]) -> String {
    let bed = Bed::new();
    bed.host.kind::<K>().expect("the kind's WIT");
    let rejection = bed.host.inspect(bytes).rejection.expect("it is not served");
    assert_eq!(rejection.stage, Stage::Inspect, "{rejection}");
    rejection.reason
}

#[test]
fn an_incompatible_version_is_refused_and_both_are_named() {
    for version in ["0.2.0", "1.1.0", "0.0.1"] {
        let bytes = of_version(&Text::new("adder", 1).counter(), version);
        let exports = |served: &str| {
            format!(
                "exports tenon-test:counter/counter@{version}, this host serves tenon-test:counter/counter@{served}"
            )
        };
        assert_eq!(refusal::<Counter>(&bytes), exports("0.1.0"));
        assert_eq!(refusal::<Later>(&bytes), exports("0.1.5"));
    }
    // Each interface by itself: the right one of the kind, and another beside it.
    let wit = |text: &str, from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    };
    let core = Text::new("adder", 1).counter_core();
    for (interface, problem) in [
        ("log", "imports tenon:host/log@0.2.0, this host gives tenon:host/log@0.1.0"),
        ("lifecycle", "exports tenon:host/lifecycle@0.2.0, this host serves tenon:host/lifecycle@0.1.0"),
    ] {
        let later = wit(support::HOST_WIT, "package tenon:host@0.1.0", "package tenon:host@0.2.0");
        let interfaces = ["log", "lifecycle"].map(|name| {
            let version = if name == interface { "0.2.0" } else { "0.1.0" };
            let verb = if name == "log" { "import" } else { "export" };
            format!("  {verb} tenon:host/{name}@{version};\n")
        });
        let own = wit(COUNTER_WIT, "  include tenon:host/plugin@0.1.0;\n", &interfaces.concat());
        let core = core.replace(&format!("tenon:host/{interface}@0.1.0"), &format!("tenon:host/{interface}@0.2.0"));
        let bytes = component(&core, &[&later, &own], Counter::WORLD);
        assert_eq!(refusal::<Counter>(&bytes), problem);
    }
    // An optional one, too: its memories would be lost without a word.
    let other = "package tenon-test:counter@0.2.0;\ninterface migration {\n  type cell = tuple<u64, u64, u64, u64>;\n  \
                 upgrade: func(from-version: u32, memory: cell) -> result<cell, string>;\n  \
                 downgrade: func(to-version: u32, memory: cell) -> result<cell, string>;\n}";
    let world = "  include counter-plugin;\n  export migration;\n";
    let own = wit(LATER_WIT, world, "  include counter-plugin;\n  export tenon-test:counter/migration@0.2.0;\n");
    let core = Text::migrating("adder", 1, 2).counter_core();
    let core = core.replace("counter/migration@0.1.0", "counter/migration@0.2.0");
    let core = core.replace("counter/counter@0.1.0", "counter/counter@0.1.5");
    let bytes = component(&core, &[other, &own], "tenon-test:counter/counter-plugin-migrating@0.1.5");
    let problem = "exports tenon-test:counter/migration@0.2.0, this host serves tenon-test:counter/migration@";
    assert_eq!(refusal::<Later>(&bytes), format!("{problem}0.1.5"));
    assert_eq!(refusal::<Counter>(&bytes), format!("{problem}0.1.0"));
}

#[test]
fn a_version_with_more_than_the_host_has_is_served_only_if_it_does_not_need_it() {
    // A later host gives plugins one more function.
    let more = "  /// One more.\n  flush: func();\n}\n";
    let later = support::HOST_WIT.replace("package tenon:host@0.1.0", "package tenon:host@0.1.9");
    let at = later.find("interface log").expect("the log");
    let end = at + later[at..].find("\n}\n").expect("its end") + 1;
    let later = format!("{}{more}{}", &later[..end], &later[end + 2..]);
    let own = COUNTER_WIT.replace("include tenon:host/plugin@0.1.0", "include tenon:host/plugin@0.1.9");
    let core = Text::new("adder", 1).counter_core().replace("tenon:host/log@0.1.0", "tenon:host/log@0.1.9");
    let core = core.replace("tenon:host/lifecycle@0.1.0", "tenon:host/lifecycle@0.1.9");
    let bytes = |core: &str| component(core, &[&later, &own], Counter::WORLD);
    let bed = Bed::new();
    bed.host.kind::<Counter>().expect("the kind's WIT");
    assert_eq!(bed.host.inspect(&bytes(&core)).rejection, None, "it does not call it");
    let import = r#"(module (import "tenon:host/log@0.1.9" "flush" (func))"#;
    let reason = refusal::<Counter>(&bytes(&core.replacen("(module", import, 1)));
    assert_eq!(reason, "tenon:host/log@0.1.9 is not given flush: func()");
}
