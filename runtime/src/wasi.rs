//! An inert WASI 0.2 for components of foreign toolchains: everything is there, and nothing is behind it.
//!
//! No files, sockets, environment or arguments; the clock stands at the request's moment; randomness is the same for
//! every call; what is written to standard output and error goes to the log. Everything is answered at once, without an
//! async runtime, so such a plugin can be called from anywhere. Only linked into components that import it.

use wasmtime::{
    AsContextMut as _, StoreContextMut,
    component::{
        Component, Linker, Resource, ResourceAny, ResourceType, Val,
        types::{ComponentInstance, ComponentItem},
    },
};

use crate::{context::Context, inspect::WASI, log::Level};

/// What an instance with WASI keeps.
#[derive(Default)]
pub(crate) struct Wasi {
    now_us: u64,
    random: u64,
}

impl Wasi {
    /// Sets the clock, and the randomness back to its seed: the same request gets the same answer from any instance.
    pub(crate) fn begin(&mut self, now_us: u64) {
        *self = Wasi { now_us, random: 0 };
    }

    /// The next number of a SplitMix64 sequence.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// All resources are of this host type: which one it is, its number says.
struct Inert;

const STDIN: u32 = 0;
const STDOUT: u32 = 1;
const STDERR: u32 = 2;
const POLLABLE: u32 = 3;

/// Bytes that a stream takes at once.
const WRITE_MAX_BYTES: u64 = 64 << 10;
/// Random bytes that may be asked for at once.
const RANDOM_MAX_BYTES: u64 = 64 << 10;

/// Defines every `wasi:*` interface that `component` imports; returns whether there was one.
pub(crate) fn add_to_linker(linker: &mut Linker<Context>, component: &Component) -> wasmtime::Result<bool> {
    let engine = component.engine().clone();
    let mut any = false;
    for (name, item) in component.component_type().imports(&engine) {
        if !name.starts_with(WASI) {
            continue;
        }
        any = true;
        if let ComponentItem::ComponentInstance(interface) = item.ty {
            define(linker, &engine, name, &interface)?;
        }
    }
    Ok(any)
}

fn define(
    linker: &mut Linker<Context>,
    engine: &wasmtime::Engine,
    name: &str,
    interface: &ComponentInstance,
) -> wasmtime::Result<()> {
    let short = name.split('@').next().unwrap_or(name).to_owned();
    let mut instance = linker.instance(name)?;
    for (item_name, item) in interface.exports(engine) {
        match item.ty {
            ComponentItem::Resource(_) => {
                instance.resource(item_name, ResourceType::host::<Inert>(), |_, _| Ok(()))?;
            }
            ComponentItem::ComponentFunc(_) => {
                let function = format!("{short}#{item_name}");
                instance.func_new(item_name, move |store, _, params, results| {
                    let answer = answer(&function, store, params)?;
                    match results {
                        [] => Ok(()),
                        [result] => {
                            *result = answer;
                            Ok(())
                        }
                        _ => wasmtime::bail!("{function} has more than one result"),
                    }
                })?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn answer(function: &str, mut store: StoreContextMut<'_, Context>, params: &[Val]) -> wasmtime::Result<Val> {
    // A function without result gets a value that nobody reads.
    let nothing = Val::Bool(true);
    let wasi = |store: &mut StoreContextMut<'_, Context>| -> (u64, u64) {
        let wasi = store.data_mut().wasi.get_or_insert_default();
        (wasi.now_us, wasi.random())
    };
    Ok(match function {
        "wasi:cli/environment#get-environment"
        | "wasi:cli/environment#get-arguments"
        | "wasi:filesystem/preopens#get-directories" => Val::List(Vec::new()),
        "wasi:cli/environment#initial-cwd" | "wasi:cli/environment#get-initial-cwd" => Val::Option(None),
        "wasi:cli/terminal-stdin#get-terminal-stdin"
        | "wasi:cli/terminal-stdout#get-terminal-stdout"
        | "wasi:cli/terminal-stderr#get-terminal-stderr"
        | "wasi:filesystem/types#filesystem-error-code" => Val::Option(None),
        "wasi:cli/exit#exit" | "wasi:cli/exit#exit-with-code" => {
            wasmtime::bail!("the plugin called exit")
        }
        "wasi:cli/stdin#get-stdin" => resource(&mut store, STDIN)?,
        "wasi:cli/stdout#get-stdout" => resource(&mut store, STDOUT)?,
        "wasi:cli/stderr#get-stderr" => resource(&mut store, STDERR)?,

        "wasi:clocks/monotonic-clock#now" => Val::U64(wasi(&mut store).0.saturating_mul(1_000)),
        "wasi:clocks/monotonic-clock#resolution" => Val::U64(1_000),
        "wasi:clocks/wall-clock#now" => {
            let (now_us, _) = wasi(&mut store);
            datetime(now_us / 1_000_000, (now_us % 1_000_000) * 1_000)
        }
        "wasi:clocks/wall-clock#resolution" => datetime(0, 1_000),

        "wasi:random/random#get-random-u64" | "wasi:random/insecure#get-insecure-random-u64" => {
            Val::U64(wasi(&mut store).1)
        }
        "wasi:random/random#get-random-bytes" | "wasi:random/insecure#get-insecure-random-bytes" => {
            let Some(Val::U64(count @ 0..=RANDOM_MAX_BYTES)) = params.first() else {
                wasmtime::bail!("{function}: at most {RANDOM_MAX_BYTES} bytes at once");
            };
            Val::List((0..*count).map(|_| Val::U8(wasi(&mut store).1 as u8)).collect())
        }
        "wasi:random/insecure-seed#insecure-seed" => {
            let (_, low) = wasi(&mut store);
            let (_, high) = wasi(&mut store);
            Val::Tuple(vec![Val::U64(low), Val::U64(high)])
        }

        "wasi:io/streams#[method]output-stream.check-write" => ok(Some(Val::U64(WRITE_MAX_BYTES))),
        "wasi:io/streams#[method]output-stream.write"
        | "wasi:io/streams#[method]output-stream.blocking-write-and-flush" => {
            write(&mut store, params)?;
            ok(None)
        }
        "wasi:io/streams#[method]output-stream.flush"
        | "wasi:io/streams#[method]output-stream.blocking-flush"
        | "wasi:io/streams#[method]output-stream.write-zeroes"
        | "wasi:io/streams#[method]output-stream.blocking-write-zeroes-and-flush" => ok(None),
        "wasi:io/streams#[method]input-stream.read"
        | "wasi:io/streams#[method]input-stream.blocking-read"
        | "wasi:io/streams#[method]input-stream.skip"
        | "wasi:io/streams#[method]input-stream.blocking-skip" => {
            Val::Result(Err(Some(Box::new(Val::Variant("closed".into(), None)))))
        }
        "wasi:io/streams#[method]output-stream.subscribe"
        | "wasi:io/streams#[method]input-stream.subscribe"
        | "wasi:clocks/monotonic-clock#subscribe-instant"
        | "wasi:clocks/monotonic-clock#subscribe-duration" => resource(&mut store, POLLABLE)?,
        "wasi:io/poll#[method]pollable.ready" => Val::Bool(true),
        "wasi:io/poll#[method]pollable.block" => nothing,
        "wasi:io/poll#poll" => {
            let count = match params.first() {
                Some(Val::List(pollables)) => u32::try_from(pollables.len()).unwrap_or(u32::MAX),
                _ => 0,
            };
            Val::List((0..count).map(Val::U32).collect())
        }
        _ => wasmtime::bail!("{function} is not available to a plugin"),
    })
}

fn ok(value: Option<Val>) -> Val {
    Val::Result(Ok(value.map(Box::new)))
}

fn datetime(seconds: u64, nanoseconds: u64) -> Val {
    let nanoseconds = u32::try_from(nanoseconds).unwrap_or(0);
    Val::Record(vec![("seconds".into(), Val::U64(seconds)), ("nanoseconds".into(), Val::U32(nanoseconds))])
}

fn resource(store: &mut StoreContextMut<'_, Context>, number: u32) -> wasmtime::Result<Val> {
    let resource = Resource::<Inert>::new_own(number);
    ResourceAny::try_from_resource(resource, store.as_context_mut()).map(Val::Resource)
}

/// `write(stream, bytes)`: each line becomes one of the log.
fn write(store: &mut StoreContextMut<'_, Context>, params: &[Val]) -> wasmtime::Result<()> {
    let [Val::Resource(stream), Val::List(bytes)] = params else {
        wasmtime::bail!("write takes a stream and bytes");
    };
    let stream = stream.try_into_resource::<Inert>(store.as_context_mut())?;
    let bytes: Vec<u8> = bytes.iter().map(|byte| if let Val::U8(byte) = byte { *byte } else { 0 }).collect();
    let level = if stream.rep() == STDERR { Level::Warn } else { Level::Info };
    let lines = String::from_utf8_lossy(&bytes);
    for line in lines.lines().filter(|line| !line.trim().is_empty()) {
        store.data().log.write(level, line);
    }
    Ok(())
}
