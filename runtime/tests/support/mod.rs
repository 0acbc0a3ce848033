//! Two kinds and their components as text: everything that the tests host.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tenon_runtime::{Change, Event, Host, HostConfig, Kind, Limits, PluginConfig, Refusal, Slot, wasmtime, world};
use tokio::sync::broadcast;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

pub const HOST_WIT: &str = include_str!("../../../wit/host/host.wit");
pub const COUNTER_WIT: &str = include_str!("../wit/counter.wit");
pub const LATER_WIT: &str = include_str!("../wit/counter-later.wit");
pub const WASI_WIT: &str = include_str!("../wit/wasi.wit");
pub const ECHO_WIT: &str = include_str!("../wit/echo.wit");

pub mod counter_world {
    #![allow(missing_docs, clippy::allow_attributes, reason = "generated")]
    tenon_runtime::wasmtime::component::bindgen!({
        path: ["../wit/host", "tests/wit/counter.wit"],
        world: "tenon-test:counter/counter-plugin",
        with: { "tenon:host": tenon_runtime::host },
    });
}

pub mod later_world {
    #![allow(missing_docs, clippy::allow_attributes, reason = "generated")]
    tenon_runtime::wasmtime::component::bindgen!({
        path: ["../wit/host", "tests/wit/counter-later.wit"],
        world: "tenon-test:counter/counter-plugin",
        with: { "tenon:host": tenon_runtime::host },
    });
}

pub mod echo_world {
    #![allow(missing_docs, clippy::allow_attributes, reason = "generated")]
    tenon_runtime::wasmtime::component::bindgen!({
        path: ["../wit/host", "tests/wit/echo.wit"],
        world: "tenon-test:echo/echo-plugin",
        with: { "tenon:host": tenon_runtime::host },
    });
}

/// After this a wait has failed: far longer than anything here takes.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

/// The plugin of a slot whose deadline no call passes that only waits for a core: one that did would be answered by the
/// generation before.
pub fn patient(plugin: &str) -> PluginConfig {
    PluginConfig { limits: Limits { deadline_ms: 10_000, ..Limits::default() }, ..PluginConfig::plugin(plugin) }
}

/// Counts by client.
pub struct Counter;

/// The same, of a host that has the interface in a later version.
pub struct Later;

/// The same, of a kind that never forgets.
pub struct Keeper;

/// The same, of a kind whose answers lead to what it is asked next.
pub struct Steering;

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub client: u64,
    pub add: u64,
    pub mode: Mode,
    pub limit: u64,
    pub now: u64,
}

/// What the component does, beside counting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[repr(u32)]
pub enum Mode {
    #[default]
    Count = 0,
    Trap = 1,
    Spin = 2,
    Hoard = 3,
    Recurse = 4,
    Pass = 5,
    Log = 6,
    /// Traps if the instance has served before: shows whether an instance is new.
    OnlyOnce = 7,
    /// A memory of 1 MiB more, kept within the limit.
    GrowOnce = 8,
    /// Counts one more for clients 7, 8 and 9.
    Disagree = 9,
    /// Traps for client 7.
    TrapOnSeven = 10,
    /// Traps once the key's sum has reached 10.
    TrapFromTen = 11,
    /// 64 KiB more memory in every call, and a trap when there is no more.
    Leak = 12,
    /// Traps for every client from 100 on.
    TrapFromHundred = 13,
    /// Answers how often this key's memory was upgraded.
    Upgrades = 14,
    /// Answers how often this key's memory was downgraded.
    Downgrades = 15,
    /// Answers how many memories this instance was asked to migrate.
    Migrations = 16,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// `build` 0 is the built-in.
    Total {
        sum: u64,
        build: u32,
    },
    Full,
    Pass,
    Open,
    Closed,
}

/// The kind of one version of the interface: what the host has of it is the same.
macro_rules! counter_kind {
    ($kind:ty, $world:ident, $version:literal, $wit:expr, $forgets:literal, $steers:literal) => {
        impl Kind for $kind {
            const NAME: &'static str = "counter";
            const INTERFACE: &'static str = concat!("tenon-test:counter/counter@", $version);
            const WORLD: &'static str = concat!("tenon-test:counter/counter-plugin@", $version);
            const WIT: &'static [&'static str] = &[$wit];
            type Key = u64;
            type Request = Request;
            type Answer = Answer;
            type Memory = (u64, u64, u64, u64);
            type Wire = (u64, u64, u64, u64);
            const FORGETS: bool = $forgets;
            const STEERS: bool = $steers;
            const MIGRATION: Option<&'static str> = Some(concat!("tenon-test:counter/migration@", $version));
            world!($world::CounterPlugin, $world::CounterPluginIndices);

            fn step(
                world: &Self::World,
                store: &mut wasmtime::Store<tenon_runtime::Context>,
                request: &Request,
                memory: &Self::Memory,
            ) -> wasmtime::Result<(Answer, Self::Memory)> {
                use $world::exports::tenon_test::counter::counter as wit;
                let request = wit::Request {
                    client: request.client,
                    add: request.add,
                    mode: request.mode as u32,
                    limit: request.limit,
                    now: request.now,
                    cost: 1,
                };
                let counter = world.tenon_test_counter_counter();
                let (answer, cell) = counter.call_count(store, request, *memory)?;
                let answer = match answer {
                    wit::Answer::Total(wit::Total { sum, build }) => Answer::Total { sum, build },
                    wit::Answer::Full(_) => Answer::Full,
                    wit::Answer::Pass => Answer::Pass,
                };
                Ok((answer, cell))
            }

            fn check(request: &Request, answer: &Answer, _: &Limits) -> Result<(), Refusal> {
                match answer {
                    Answer::Total { sum, .. } if request.limit > 0 && *sum > request.limit => {
                        Err(Refusal::new(format!("sum {sum} is above {}", request.limit)))
                    }
                    _ => Ok(()),
                }
            }

            fn to_wire(memory: &Self::Memory) -> Self::Wire {
                *memory
            }

            fn from_wire(wire: Self::Wire) -> Self::Memory {
                wire
            }

            fn label(answer: &Answer) -> &'static str {
                match answer {
                    Answer::Total { .. } => "total",
                    Answer::Full => "full",
                    Answer::Pass => "pass",
                    Answer::Open => "open",
                    Answer::Closed => "closed",
                }
            }

            /// Client 0 is nobody.
            fn subject(request: &Request) -> Option<u64> {
                (request.client > 0).then_some(request.client)
            }

            fn passes(answer: &Answer) -> bool {
                *answer == Answer::Pass
            }

            fn open(_: &Request) -> Option<Answer> {
                Some(Answer::Open)
            }

            fn closed(_: &Request) -> Option<Answer> {
                Some(Answer::Closed)
            }

            fn probe() -> Option<Request> {
                Some(Request::default())
            }

            fn now_us(request: &Request) -> u64 {
                request.now
            }
        }
    };
}

counter_kind!(Counter, counter_world, "0.1.0", COUNTER_WIT, true, false);
counter_kind!(Later, later_world, "0.1.5", LATER_WIT, true, false);
counter_kind!(Keeper, counter_world, "0.1.0", COUNTER_WIT, false, false);
counter_kind!(Steering, counter_world, "0.1.0", COUNTER_WIT, true, true);

/// The native counter: build 0.
pub fn builtin(request: &Request, cell: &(u64, u64, u64, u64)) -> (Answer, (u64, u64, u64, u64)) {
    let sum = cell.0 + request.add;
    (Answer::Total { sum, build: 0 }, (sum, cell.1 + 1, cell.2, cell.3))
}

/// Echoes what it was told before.
pub struct Echo;

impl Kind for Echo {
    const NAME: &'static str = "echo";
    const INTERFACE: &'static str = "tenon-test:echo/echo@0.1.0";
    const WORLD: &'static str = "tenon-test:echo/echo-plugin@0.1.0";
    const WIT: &'static [&'static str] = &[ECHO_WIT];
    type Key = ();
    type Request = String;
    type Answer = Vec<u8>;
    type Memory = Vec<u8>;
    type Wire = Vec<u8>;
    const MIGRATION: Option<&'static str> = Some("tenon-test:echo/migration@0.1.0");
    world!(echo_world::EchoPlugin, echo_world::EchoPluginIndices);

    fn step(
        world: &Self::World,
        store: &mut wasmtime::Store<tenon_runtime::Context>,
        request: &String,
        memory: &Vec<u8>,
    ) -> wasmtime::Result<(Vec<u8>, Vec<u8>)> {
        world.tenon_test_echo_echo().call_say(store, request, memory)
    }

    fn to_wire(memory: &Vec<u8>) -> Vec<u8> {
        memory.clone()
    }

    fn from_wire(wire: Vec<u8>) -> Vec<u8> {
        wire
    }

    fn label(_: &Vec<u8>) -> &'static str {
        "said"
    }

    fn size_bytes(answer: &Vec<u8>, memory: &Vec<u8>) -> usize {
        answer.len() + memory.len()
    }
}

/// The native echo: says "built-in".
#[expect(clippy::ptr_arg, reason = "a step takes its kind's own types")]
pub fn echo_builtin(_: &String, memory: &Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let mut memory = memory.clone();
    memory.push(b'b');
    (b"built-in".to_vec(), memory)
}

/// The text of a component, with what differs between versions.
#[derive(Clone, Debug)]
pub struct Text {
    pub name: String,
    pub version: String,
    pub summary: String,
    pub schema: String,
    pub memory_version: u32,
    /// Comes back in every answer: which code ran.
    pub build: u32,
    /// What `configure` does: 0 takes anything, 1 refuses, 2 traps, 3 spins.
    pub configure: u32,
    /// The counter's `mode` in every call, unless the request asks for another.
    pub mode: u32,
    /// Pages of memory at first.
    pub pages: u32,
    /// How the counter keeps its sum: times this.
    pub form: u32,
    /// Whether it exports `migration`, in which a version's form is its memory-version.
    pub migrates: bool,
}

/// A sum that a counter will not migrate, saying so.
pub const UNWILLING: u64 = 666;
/// A sum on which its migration traps.
pub const TRAPPING: u64 = 667;

impl Text {
    pub fn new(name: &str, build: u32) -> Text {
        Text {
            name: name.into(),
            version: format!("1.{build}.0"),
            summary: "A plugin for tests.".into(),
            schema: "{}".into(),
            memory_version: 1,
            build,
            configure: 0,
            mode: 0,
            pages: 2,
            form: 1,
            migrates: false,
        }
    }

    /// A version that migrates, in this form of memory.
    pub fn migrating(name: &str, build: u32, memory_version: u32) -> Text {
        Text { memory_version, form: memory_version, migrates: true, ..Text::new(name, build) }
    }

    /// The start of a core module: memory, texts, allocator, lifecycle.
    fn common(&self) -> String {
        let strings = [&self.name, &self.version, &self.summary, &self.schema];
        let mut data = String::new();
        let mut fields = String::new();
        let mut at = 1024;
        for (index, string) in strings.into_iter().enumerate() {
            let escaped: String = string.bytes().map(|b| format!("\\{b:02x}")).collect();
            data += &format!("(data (i32.const {at}) \"{escaped}\")\n");
            let (field, len) = (64 + index * 8, string.len());
            fields += &format!(
                "(i32.store (i32.const {field}) (i32.const {at}))
                 (i32.store (i32.const {}) (i32.const {len}))\n",
                field + 4
            );
            at += len;
        }
        assert!(at < 60_000, "the texts fit below the heap");
        let (memory_version, pages, configure) = (self.memory_version, self.pages, self.configure);
        format!(
            r#"
            (import "tenon:host/log@0.1.0" "write" (func $log (param i32 i32 i32)))
            (memory (export "memory") {pages})
            (global $heap (mut i32) (i32.const 65536))
            {data}
            (data (i32.const 512) "a line from the plugin")
            (data (i32.const 544) "no, thank you")
            (func (export "cabi_realloc") (param $old i32) (param $old_len i32) (param $align i32) (param $len i32) (result i32)
              (local $at i32)
              (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
              (global.set $heap (i32.add (local.get $at) (local.get $len)))
              (local.get $at))
            (func (export "tenon:host/lifecycle@0.1.0#describe") (result i32)
              {fields}
              (i32.store (i32.const 96) (i32.const {memory_version}))
              (i32.const 64))
            (func (export "tenon:host/lifecycle@0.1.0#configure") (param $text i32) (param $len i32) (result i32)
              (global.set $heap (i32.const 65536))
              (if (i32.eq (i32.const {configure}) (i32.const 2)) (then (unreachable)))
              (if (i32.eq (i32.const {configure}) (i32.const 3)) (then (loop $forever (br $forever))))
              (i32.store8 (i32.const 128) (i32.eq (i32.const {configure}) (i32.const 1)))
              (i32.store (i32.const 132) (i32.const 544))
              (i32.store (i32.const 136) (i32.const 13))
              (i32.const 128))
            "#
        )
    }

    /// The counter's `migration`, as core functions; empty where it has none.
    fn counter_migration(&self) -> String {
        if !self.migrates {
            return String::new();
        }
        let own = self.form;
        let cell = "(param $sum i64) (param $calls i64) (param $ups i64) (param $downs i64) (result i32)";
        format!(
            r#"
            (func $migrate (param $from i32) (param $to i32) {cell}
              (global.set $migrated (i64.add (global.get $migrated) (i64.const 1)))
              (local.set $sum (i64.div_u (local.get $sum) (i64.extend_i32_u (local.get $from))))
              (if (i64.eq (local.get $sum) (i64.const {TRAPPING})) (then (unreachable)))
              (i32.store8 (i32.const 256) (i64.eq (local.get $sum) (i64.const {UNWILLING})))
              (if (i32.load8_u (i32.const 256)) (then
                (i32.store (i32.const 264) (i32.const 544))
                (i32.store (i32.const 268) (i32.const 13))
                (return (i32.const 256))))
              (i64.store (i32.const 264) (i64.mul (local.get $sum) (i64.extend_i32_u (local.get $to))))
              (i64.store (i32.const 272) (local.get $calls))
              (i64.store (i32.const 280) (local.get $ups))
              (i64.store (i32.const 288) (local.get $downs))
              (i32.const 256))
            (func (export "tenon-test:counter/migration@0.1.0#upgrade") (param $from i32) {cell}
              (call $migrate (local.get $from) (i32.const {own}) (local.get $sum) (local.get $calls)
                (i64.add (local.get $ups) (i64.const 1)) (local.get $downs)))
            (func (export "tenon-test:counter/migration@0.1.0#downgrade") (param $to i32) {cell}
              (call $migrate (i32.const {own}) (local.get $to) (local.get $sum) (local.get $calls)
                (local.get $ups) (i64.add (local.get $downs) (i64.const 1))))"#
        )
    }

    /// The counter's core module. A memory read in another form than it was written in is wrong.
    pub fn counter_core(&self) -> String {
        let (common, build, mode) = (self.common(), self.build, self.mode);
        let (migration, form) = (self.counter_migration(), self.form);
        format!(
            r#"(module
            {common}
            (global $served (mut i32) (i32.const 0))
            (global $migrated (mut i64) (i64.const 0))
            {migration}
            (func $recurse (param i32) (result i32)
              (i32.add (i32.const 1) (call $recurse (i32.add (local.get 0) (i32.const 1)))))
            (func (export "tenon-test:counter/counter@0.1.0#count")
              (param $client i64) (param $add i64) (param $asked i32) (param $limit i64) (param $now i64) (param $cost i32)
              (param $sum i64) (param $calls i64) (param $two i64) (param $three i64) (result i32)
              (local $mode i32)
              (local.set $mode (select (local.get $asked) (i32.const {mode}) (local.get $asked)))
              (local.set $sum (i64.div_u (local.get $sum) (i64.const {form})))
              (block $done
                (br_if $done (i32.eqz (local.get $mode)))
                (if (i32.eq (local.get $mode) (i32.const 1)) (then (unreachable)))
                (if (i32.eq (local.get $mode) (i32.const 2)) (then (loop $forever (br $forever))))
                (if (i32.eq (local.get $mode) (i32.const 3)) (then
                  (loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (unreachable)))
                (if (i32.eq (local.get $mode) (i32.const 4)) (then (drop (call $recurse (i32.const 0)))))
                (if (i32.eq (local.get $mode) (i32.const 6)) (then
                  (call $log (i32.const 2) (i32.const 512) (i32.const 22))))
                (if (i32.eq (local.get $mode) (i32.const 7)) (then
                  (if (global.get $served) (then (unreachable)))))
                (if (i32.eq (local.get $mode) (i32.const 8)) (then (drop (memory.grow (i32.const 16)))))
                (if (i32.eq (local.get $mode) (i32.const 9)) (then
                  (if (i64.le_u (i64.sub (local.get $client) (i64.const 7)) (i64.const 2)) (then
                    (local.set $add (i64.add (local.get $add) (i64.const 1)))))))
                (if (i32.eq (local.get $mode) (i32.const 10)) (then
                  (if (i64.eq (local.get $client) (i64.const 7)) (then (unreachable)))))
                (if (i32.eq (local.get $mode) (i32.const 11)) (then
                  (if (i64.ge_u (local.get $sum) (i64.const 10)) (then (unreachable)))))
                (if (i32.eq (local.get $mode) (i32.const 12)) (then
                  (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then (unreachable)))))
                (if (i32.eq (local.get $mode) (i32.const 13)) (then
                  (if (i64.ge_u (local.get $client) (i64.const 100)) (then (unreachable))))))
              (global.set $served (i32.const 1))
              (i32.store8 (i32.const 192) (i32.const 0))
              (if (i32.eq (local.get $mode) (i32.const 5)) (then (i32.store8 (i32.const 192) (i32.const 2))))
              (local.set $sum (i64.add (local.get $sum) (local.get $add)))
              (i64.store (i32.const 200) (local.get $sum))
              (if (i32.eq (local.get $mode) (i32.const 14)) (then (i64.store (i32.const 200) (local.get $two))))
              (if (i32.eq (local.get $mode) (i32.const 15)) (then (i64.store (i32.const 200) (local.get $three))))
              (if (i32.eq (local.get $mode) (i32.const 16)) (then (i64.store (i32.const 200) (global.get $migrated))))
              (i32.store (i32.const 208) (i32.const {build}))
              (i64.store (i32.const 216) (i64.mul (local.get $sum) (i64.const {form})))
              (i64.store (i32.const 224) (i64.add (local.get $calls) (i64.const 1)))
              (i64.store (i32.const 232) (local.get $two))
              (i64.store (i32.const 240) (local.get $three))
              (i32.const 192)))"#
        )
    }

    /// The echo's core module. Migrating, it writes the version over the memory's first byte.
    pub fn echo_core(&self) -> String {
        let common = self.common();
        let function = |name: &str, version: &str| {
            format!(
                r#"
            (func (export "tenon-test:echo/migration@0.1.0#{name}")
              (param $version i32) (param $memory i32) (param $len i32) (result i32)
              (i32.store8 (local.get $memory) (i32.add (i32.const 48) {version}))
              (i32.store8 (i32.const 256) (i32.const 0))
              (i32.store (i32.const 260) (local.get $memory))
              (i32.store (i32.const 264) (local.get $len))
              (i32.const 256))"#
            )
        };
        let own = format!("(i32.const {})", self.memory_version);
        let migration = match self.migrates {
            true => function("upgrade", &own) + &function("downgrade", "(local.get $version)"),
            false => String::new(),
        };
        format!(
            r#"(module
            {common}
            {migration}
            (func (export "tenon-test:echo/echo@0.1.0#say")
              (param $text i32) (param $text_len i32) (param $memory i32) (param $memory_len i32) (result i32)
              (i32.store (i32.const 192) (local.get $memory))
              (i32.store (i32.const 196) (local.get $memory_len))
              (i32.store (i32.const 200) (local.get $text))
              (i32.store (i32.const 204) (local.get $text_len))
              (if (i32.eq (local.get $text_len) (i32.const 5)) (then
                (if (i32.eq (i32.load (local.get $text)) (i32.const 0x6f6f6c66)) (then
                  (drop (memory.grow (i32.const 16)))
                  (i32.store (i32.const 192) (i32.const 0))
                  (i32.store (i32.const 196) (i32.const 1048576))))))
              (i32.const 192))
            (func (export "cabi_post_tenon-test:echo/echo@0.1.0#say") (param i32)
              (global.set $heap (i32.const 65536))))"#
        )
    }

    pub fn counter(&self) -> Vec<u8> {
        component(&self.counter_core(), &[COUNTER_WIT], &self.world("tenon-test:counter/counter-plugin"))
    }

    pub fn echo(&self) -> Vec<u8> {
        component(&self.echo_core(), &[ECHO_WIT], &self.world("tenon-test:echo/echo-plugin"))
    }

    fn world(&self, name: &str) -> String {
        let migrating = if self.migrates { "-migrating" } else { "" };
        format!("{name}{migrating}@0.1.0")
    }
}

/// A counter whose answer is `sum`, an expression over WASI: its world has the imports named in the WIT.
pub fn foreign(sum: &str) -> Vec<u8> {
    let imports = r#"(module
      (import "wasi:cli/environment@0.2.3" "get-environment" (func $environment (param i32)))
      (import "wasi:cli/stdout@0.2.3" "get-stdout" (func $stdout (result i32)))
      (import "wasi:io/streams@0.2.3" "[method]output-stream.blocking-write-and-flush"
        (func $write (param i32 i32 i32 i32)))
      (import "wasi:io/streams@0.2.3" "[resource-drop]output-stream" (func $drop (param i32)))
      (import "wasi:clocks/wall-clock@0.2.3" "now" (func $now (param i32)))
      (import "wasi:random/random@0.2.3" "get-random-u64" (func $random (result i64)))
      (import "wasi:sockets/instance-network@0.2.3" "instance-network" (func $network (result i32)))
    "#;
    let functions = r#"
      (func $out (local $stream i32)
        (local.set $stream (call $stdout))
        (call $write (local.get $stream) (i32.const 512) (i32.const 22) (i32.const 320))
        (call $drop (local.get $stream)))
      (func $clock (result i64) (call $now (i32.const 336)) (i64.load (i32.const 336)))
      (func $variables (result i64) (call $environment (i32.const 352)) (i64.extend_i32_u (i32.load (i32.const 356))))
    "#;
    let core = Text::new("foreign", 1)
        .counter_core()
        .replacen("(module", imports, 1)
        .replacen("(global $heap", &format!("{functions} (global $heap"), 1)
        .replace("(local.set $sum (i64.add (local.get $sum) (local.get $add)))", &format!("(local.set $sum {sum})"));
    let world = "tenon-test:foreign/foreign-counter@0.1.0";
    component(&core, &[COUNTER_WIT, WASI_WIT], world)
}

/// The component as one that was made for other versions of all its interfaces: `0.1.9` for `0.1.0`.
pub fn of_version(component: &[u8], version: &str) -> Vec<u8> {
    let (from, to) = (b"@0.1.0", format!("@{version}"));
    assert_eq!(from.len(), to.len(), "names keep their length");
    let mut bytes = component.to_vec();
    let mut found = 0;
    for at in 0..=bytes.len() - from.len() {
        if bytes[at..].starts_with(from) {
            bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
            found += 1;
        }
    }
    assert!(found > 0, "it names no version");
    bytes
}

/// Encodes the text of a core module as a component of `world`.
pub fn component(core: &str, wit: &[&str], world: &str) -> Vec<u8> {
    let mut resolve = Resolve::default();
    let mut package = resolve.push_source("host.wit", HOST_WIT).expect("host.wit");
    for text in wit {
        package = resolve.push_source("test.wit", text).expect("test WIT");
    }
    let world = resolve.select_world(&[package], Some(world)).expect("the world");
    let mut module = wat::parse_str(core).expect("the core module's text");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("embedding");
    ComponentEncoder::default()
        .module(&module)
        .expect("a module with metadata")
        .validate(true)
        .encode()
        .expect("a component")
}

/// A host with its directories; they go with it.
pub struct Bed {
    pub host: Host,
    pub dirs: tempfile::TempDir,
}

impl Bed {
    pub fn new() -> Bed {
        Bed::with(|_| {})
    }

    pub fn with(adjust: impl FnOnce(&mut HostConfig)) -> Bed {
        Bed::again(tempfile::tempdir().expect("a temporary directory"), adjust)
    }

    /// A host on directories that another left behind.
    pub fn again(dirs: tempfile::TempDir, adjust: impl FnOnce(&mut HostConfig)) -> Bed {
        let mut config = HostConfig::new(dirs.path().join("plugins"), dirs.path().join("state"));
        config.instances_max = 64;
        config.shards = 2;
        adjust(&mut config);
        let host = Host::new(config).expect("a host");
        Bed { host, dirs }
    }

    /// Stops the host as a shutdown does and leaves its directories.
    pub fn shut_down(self) -> tempfile::TempDir {
        self.host.stop();
        self.dirs
    }

    pub fn plugins(&self) -> PathBuf {
        self.dirs.path().join("plugins")
    }

    pub fn state(&self) -> PathBuf {
        self.dirs.path().join("state")
    }

    /// Puts a file into the plugin directory as operators should: written elsewhere, renamed into place.
    pub fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        put(&self.plugins(), name, bytes)
    }

    pub fn counter(&self, config: PluginConfig) -> Slot<Counter> {
        self.host.slot("counter", config, builtin).expect("the counter slot")
    }

    /// A counter slot served by the component of `text`, opened.
    pub fn serving(&self, text: &Text, config: PluginConfig) -> Slot<Counter> {
        self.put(&format!("{}.wasm", text.name), &text.counter());
        let slot = self.counter(config);
        let report = self.host.open();
        assert_eq!(report.rejected, []);
        assert_eq!(slot.generation(), 1);
        slot
    }

    pub fn status(&self) -> tenon_runtime::Status {
        self.host.status().remove(0)
    }
}

pub fn put(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    let part = dir.join(format!(".{}.part", name.replace('/', "-")));
    std::fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("the folder");
    std::fs::write(&part, bytes).expect("writing");
    std::fs::rename(&part, &path).expect("renaming");
    path
}

/// `request(client, add)`, counting only.
pub fn add(client: u64, add: u64) -> Request {
    Request { client, add, ..Request::default() }
}

pub fn mode(mode: Mode) -> Request {
    Request { mode, ..Request::default() }
}

/// Waits for the first event that `wanted` picks.
pub fn await_event(events: &mut broadcast::Receiver<Event>, mut wanted: impl FnMut(&Event) -> bool) -> Event {
    loop {
        let event = events.blocking_recv().expect("the host lives and is heard");
        if wanted(&event) {
            return event;
        }
    }
}

/// The events there are, without waiting.
pub fn drain(events: &mut broadcast::Receiver<Event>) -> Vec<Event> {
    let mut drained = Vec::new();
    while let Ok(event) = events.try_recv() {
        drained.push(event);
    }
    drained
}

/// A short name for each event: what happened.
pub fn names(events: &[Event]) -> Vec<&'static str> {
    events
        .iter()
        .map(|event| match event.change {
            Change::Live { .. } => "live",
            Change::Rejected { .. } => "rejected",
            Change::Retired { .. } => "retired",
            Change::Failed { .. } => "failed",
            Change::Quarantined { .. } => "quarantined",
            Change::Recovered => "recovered",
            Change::MemoryReset { .. } => "memory-reset",
            Change::MemoryKept { .. } => "memory-kept",
            Change::Removed { .. } => "removed",
            Change::Duplicate { .. } => "duplicate",
            Change::Stopped => "stopped",
            Change::Shadow => "shadow",
            Change::Canary { .. } => "canary",
            Change::RolledBack { .. } => "rolled-back",
            Change::Condemned { .. } => "condemned",
            Change::CalledOff { .. } => "called-off",
            Change::SetAside { .. } => "set-aside",
            Change::RecordingStarted { .. } => "recording-started",
            Change::RecordingStopped { .. } => "recording-stopped",
        })
        .collect()
}
