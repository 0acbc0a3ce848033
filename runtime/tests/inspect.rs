//! What a component must be: each difference is named before anything of it runs.

mod support;

use proptest::prelude::*;
use support::{Bed, COUNTER_WIT, Counter, Echo, Text, builtin, component};
use tenon_runtime::{Kind, PluginConfig, Stage};

fn bed() -> Bed {
    let bed = Bed::new();
    bed.host.kind::<Counter>().expect("the counter's WIT");
    bed.host.kind::<Echo>().expect("the echo's WIT");
    bed
}

/// `bytes` are rejected at `stage`, with every one of `reasons`.
fn check_rejected(bytes: &[u8], stage: Stage, reasons: &[&str]) {
    let report = bed().host.inspect(bytes);
    let rejection = report.rejection.expect("it is not sound");
    assert_eq!(rejection.stage, stage, "{rejection}");
    for reason in reasons {
        assert!(rejection.reason.contains(reason), "{reason:?} is not in {rejection}");
    }
    assert_eq!(rejection.digest, Some(report.digest));
}

/// The counter's component, its WIT changed by `from` -> `to`.
fn with_wit(from: &str, to: &str, core: impl Fn(String) -> String) -> Vec<u8> {
    assert!(COUNTER_WIT.contains(from), "{from}");
    let wit = COUNTER_WIT.replace(from, to);
    // The world's name moves with the package.
    let version = |version: &&&str| wit.starts_with("/// A kind") && wit.contains(&format!("counter{version};"));
    let version = ["@0.1.0", "@0.1.9", "@0.2.0"].iter().find(version).expect("a version");
    let world = format!("tenon-test:counter/counter-plugin{version}");
    component(&core(Text::new("adder", 1).counter_core()), &[&wit], &world)
}

#[test]
fn a_sound_component_is_told_by_its_exports_and_described() {
    let bed = bed();
    let report = bed.host.inspect(&Text::new("parrot", 3).echo());
    assert_eq!(report.rejection, None);
    assert_eq!(report.kind, Some("echo"));
    let description = report.description.expect("described");
    assert_eq!((&*description.name, &*description.version), ("parrot", "1.3.0"));
    let stages: Vec<Stage> = report.passed.iter().map(|(stage, _)| *stage).collect();
    assert_eq!(stages, [Stage::Inspect, Stage::Compile, Stage::Link, Stage::Describe]);
    assert_eq!(bed.host.instances(), 0, "nothing is left");
}

#[test]
fn a_core_module_is_told_how_to_become_a_component() {
    let module = wat::parse_str(Text::new("adder", 1).counter_core()).expect("a module");
    check_rejected(&module, Stage::Inspect, &["core module", "wasm-tools component new"]);
}

#[test]
fn anything_else_is_not_a_component() {
    check_rejected(b"", Stage::Inspect, &["not a WebAssembly component"]);
    check_rejected(b"#!/bin/sh\n", Stage::Inspect, &["not a WebAssembly component"]);
    check_rejected(b"\0asm\x0d\0\x01\0", Stage::Inspect, &["nothing"]);
}

#[test]
fn a_component_of_no_kind_is_told_the_kinds() {
    let wit = "package a:b@1.0.0; interface c { d: func(); } world e { export c; }";
    let core = r#"(module (func (export "a:b/c@1.0.0#d")))"#;
    check_rejected(
        &component(core, &[wit], "a:b/e"),
        Stage::Inspect,
        &["tenon-test:counter/counter@0.1.0", "tenon-test:echo/echo@0.1.0", "a:b/c@1.0.0"],
    );
}

#[test]
fn a_component_of_another_version_is_told_both() {
    let bytes = with_wit("@0.1.0;\n\n/// Counts.", "@0.2.0;\n\n/// Counts.", |core| {
        core.replace("counter@0.1.0", "counter@0.2.0")
    });
    check_rejected(
        &bytes,
        Stage::Inspect,
        &["exports tenon-test:counter/counter@0.2.0", "serves tenon-test:counter/counter@0.1.0"],
    );
}

#[test]
fn a_newer_patch_of_the_interface_is_served() {
    let bytes = with_wit("@0.1.0;\n\n/// Counts.", "@0.1.9;\n\n/// Counts.", |core| {
        core.replace("counter@0.1.0", "counter@0.1.9")
    });
    assert_eq!(bed().host.inspect(&bytes).rejection, None);
}

#[test]
fn a_missing_lifecycle_is_named() {
    let wit = COUNTER_WIT.replace("  include tenon:host/plugin@0.1.0;\n", "");
    let core = Text::new("adder", 1)
        .counter_core()
        .replace(
            r#"(import "tenon:host/log@0.1.0" "write" (func $log (param i32 i32 i32)))"#,
            "(func $log (param i32 i32 i32))",
        )
        .replace(r#"(export "tenon:host/lifecycle@0.1.0#describe")"#, "")
        .replace(r#"(export "tenon:host/lifecycle@0.1.0#configure")"#, "");
    let bytes = component(&core, &[&wit], Counter::WORLD);
    check_rejected(&bytes, Stage::Inspect, &["missing export tenon:host/lifecycle@0.1.0"]);
}

#[test]
fn a_missing_function_is_named_with_its_type() {
    let bytes = with_wit("  count: func(", "  reckon: func(", |core| core.replace("#count", "#reckon"));
    check_rejected(&bytes, Stage::Inspect, &["lacks count: func(request: request, cell: cell) -> tuple<answer, cell>"]);
}

#[test]
fn a_mistyped_field_and_case_are_named_with_their_place() {
    let bytes = with_wit("    add: u64,", "    add: s64,", |core| core);
    check_rejected(&bytes, Stage::Inspect, &["count: parameter request: field add: is s64, expected u64"]);
    let bytes = with_wit("    full(u64),", "    fuller(u64),", |core| core);
    check_rejected(
        &bytes,
        Stage::Inspect,
        &["result: tuple item 0: has cases total, fuller, pass, expected total, full, pass"],
    );
}

/// The migrating counter's component, its WIT changed by `from` -> `to`.
fn migrating(from: &str, to: &str, core: impl Fn(String) -> String) -> Vec<u8> {
    assert!(COUNTER_WIT.contains(from), "{from}");
    let text = core(Text::migrating("adder", 1, 2).counter_core());
    component(&text, &[&COUNTER_WIT.replace(from, to)], "tenon-test:counter/counter-plugin-migrating@0.1.0")
}

#[test]
fn a_sound_migration_is_not_required_and_not_refused() {
    assert_eq!(bed().host.inspect(&Text::migrating("adder", 1, 2).counter()).rejection, None);
    assert_eq!(bed().host.inspect(&Text::migrating("parrot", 1, 2).echo()).rejection, None);
}

#[test]
fn a_mistyped_or_missing_function_of_migration_is_named() {
    let bytes = migrating("downgrade: func(to-version: u32, ", "downgrade: func(to-version: s32, ", |core| core);
    check_rejected(
        &bytes,
        Stage::Inspect,
        &["tenon-test:counter/migration@0.1.0: downgrade: parameter to-version: is s32, expected u32"],
    );
    let bytes = migrating(
        "upgrade: func(from-version: u32, memory: cell) -> result<cell, string>",
        "upgrade: func(from-version: u32, memory: cell) -> result<cell, u32>",
        |core| core,
    );
    check_rejected(&bytes, Stage::Inspect, &["upgrade: result: err: is u32, expected string"]);
    let bytes = migrating("  downgrade: func(", "  lower: func(", |core| core.replace("#downgrade", "#lower"));
    check_rejected(&bytes, Stage::Inspect, &["tenon-test:counter/migration@0.1.0 lacks downgrade: func("]);
}

#[test]
fn an_import_that_is_not_given_is_named() {
    let bytes = with_wit(
        "world counter-plugin {",
        "interface files { open: func(); }\nworld counter-plugin { import files;",
        |core| {
            let import = r#"(module (import "tenon-test:counter/files@0.1.0" "open" (func))"#;
            core.replacen("(module", import, 1)
        },
    );
    check_rejected(
        &bytes,
        Stage::Inspect,
        &["imports tenon-test:counter/files@0.1.0, which a counter plugin is not given", "tenon:host/log@0.1.0"],
    );
}

#[test]
fn more_exports_than_needed_do_no_harm() {
    let bytes = with_wit(
        "world counter-plugin {",
        "interface extra { more: func(); }\nworld counter-plugin { export extra;",
        |core| {
            let end = core.rfind(')').expect("the module's end");
            let extra = r#"(func (export "tenon-test:counter/extra@0.1.0#more"))"#;
            format!("{}{extra})", &core[..end])
        },
    );
    assert_eq!(bed().host.inspect(&bytes).rejection, None);
}

#[test]
fn what_a_plugin_says_of_itself_is_checked() {
    let check = |adjust: fn(&mut Text), reason: &str| {
        let mut text = Text::new("adder", 1);
        adjust(&mut text);
        check_rejected(&text.counter(), Stage::Describe, &[reason]);
    };
    check(|text| text.name = "Adder".into(), "name \"Adder\": expected 1 to 64");
    check(|text| text.name = String::new(), "name \"\"");
    check(|text| text.name = "a".repeat(65), "expected 1 to 64");
    check(|text| text.version = "1.0".into(), "version \"1.0\"");
    check(|text| text.summary = "x".repeat(201), "summary of 201 bytes");
    check(|text| text.schema = "{".into(), "config-schema");
    check(|text| text.schema = r#"{"type": "nonsense"}"#.into(), "config-schema");
    check(|text| text.schema = r#"{"$ref": "http://example.org/schema"}"#.into(), "config-schema");
    let mut text = Text::new("adder", 1);
    (text.schema, text.name) = (String::new(), "a".repeat(64));
    assert_eq!(bed().host.inspect(&text.counter()).rejection, None);
}

#[test]
fn a_candidate_that_fails_while_it_is_configured_or_probed_is_rejected_there() {
    let check = |adjust: fn(&mut Text), stage: Stage, reason: &str| {
        let bed = Bed::new();
        let mut text = Text::new("adder", 2);
        adjust(&mut text);
        let slot = bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
        bed.put("adder.wasm", &text.counter());
        bed.host.reload("counter").expect_err("not sound");
        let rejection = bed.status().candidate.expect("a rejected candidate");
        assert_eq!(rejection.stage, stage);
        assert!(rejection.reason.contains(reason), "{rejection}");
        assert_eq!(slot.generation(), 1);
    };
    check(|text| text.configure = 1, Stage::Configure, "no, thank you");
    check(|text| text.configure = 2, Stage::Configure, "unreachable");
    check(|text| text.mode = 1, Stage::Probe, "unreachable");
}

#[test]
fn a_plugin_for_another_kinds_slot_is_not_taken_by_name() {
    let bed = bed();
    bed.put("adder.wasm", &Text::new("adder", 1).echo());
    let slot = bed.host.slot::<Counter>("counter", PluginConfig::plugin("adder"), builtin).expect("a slot");
    bed.host.open();
    assert_eq!(slot.generation(), 0);
    assert_eq!(bed.host.plugins()[0].kind, Some("echo"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn damaged_bytes_are_rejected_or_run_but_never_panic(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        thread_local! {
            static SOUND: (Bed, Vec<u8>) = (bed(), Text::new("adder", 1).counter());
        }
        SOUND.with(|(bed, sound)| {
            let mut bytes = sound.clone();
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let report = bed.host.inspect(&bytes);
            assert_eq!(report.rejection.is_none(), report.description.is_some());
        });
    }
}
