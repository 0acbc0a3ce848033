//! From bytes to a plugin that may serve: inspected, compiled, linked, described; and from a plugin to an instance.
//!
//! Every step's failure is a [`Rejection`] that says where and why. Nothing here touches what serves.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wasmtime::{
    Store,
    component::{HasSelf, Instance, InstancePre, Linker},
};

use crate::{
    context::Context,
    digest::Digest,
    engine::Engine,
    generation::classify,
    inspect::{self, KindInfo},
    limits::{Failure, Limits},
    log::{LogGate, bindings},
    signature::{Beside, SIGNATURE_MAX_BYTES},
    wasi,
};

/// Bytes of a plugin's JSON Schema at most.
const SCHEMA_MAX_BYTES: usize = 64 << 10;

/// Bytes of everything that a plugin says of itself at most, checked before they are copied.
const DESCRIPTION_MAX_BYTES: usize = 256 << 10;

/// A step of loading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Reading the file, within its size limit.
    Read,
    /// Checking who signed it, where keys are trusted.
    Signature,
    /// Comparing its imports and exports with the kind's world.
    Inspect,
    /// Turning it into machine code.
    Compile,
    /// Giving it its imports and making an instance.
    Link,
    /// Asking what it is.
    Describe,
    /// Checking the slot's settings against its schema.
    Settings,
    /// Handing it the settings.
    Configure,
    /// Asking it the kind's harmless request.
    Probe,
    /// Handing it memories of the version that serves.
    Migrate,
    /// Whether these bytes did harm before.
    Quarantine,
    /// Whether all that switch together are taken.
    Set,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Read => "read",
            Stage::Signature => "signature",
            Stage::Inspect => "inspect",
            Stage::Compile => "compile",
            Stage::Link => "link",
            Stage::Describe => "describe",
            Stage::Settings => "settings",
            Stage::Configure => "configure",
            Stage::Probe => "probe",
            Stage::Migrate => "migrate",
            Stage::Quarantine => "quarantine",
            Stage::Set => "set",
        })
    }
}

/// Why a component, or a configuration, is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{stage}: {reason}")]
pub struct Rejection {
    /// The file, where there is one.
    pub path: Option<PathBuf>,
    /// The bytes, where they could be read.
    pub digest: Option<Digest>,
    /// The step that failed.
    pub stage: Stage,
    /// What is wrong.
    pub reason: String,
}

impl Rejection {
    pub(crate) fn new(stage: Stage, reason: impl fmt::Display) -> Rejection {
        Rejection { path: None, digest: None, stage, reason: reason.to_string() }
    }

    pub(crate) fn of(mut self, digest: Digest) -> Rejection {
        self.digest = Some(digest);
        self
    }

    pub(crate) fn at(mut self, path: &Path) -> Rejection {
        self.path = Some(path.to_owned());
        self
    }
}

/// A plugin in its own words, checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// The name that configurations use.
    pub name: String,
    /// Its version, SemVer.
    pub version: String,
    /// One line for operators.
    pub summary: String,
    /// JSON Schema of its configuration.
    pub config_schema: Value,
    /// Which form its memory has.
    pub memory_version: u32,
}

/// Whose memory something is: it may be handed to this plugin's steps, and to no other's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MemoryId {
    /// The plugin's name; none: the built-in's.
    pub plugin: Option<String>,
    /// Its memory-version.
    pub version: u32,
}

impl MemoryId {
    /// The built-in's memory.
    pub const BUILTIN: MemoryId = MemoryId { plugin: None, version: 0 };
}

impl fmt::Display for MemoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.plugin {
            Some(plugin) => write!(f, "{plugin}/{}", self.version),
            None => f.write_str("built-in"),
        }
    }
}

/// A component that has been inspected, compiled, linked and described.
pub(crate) struct Plugin {
    pub(crate) digest: Digest,
    pub(crate) kind: &'static str,
    pub(crate) name: Arc<str>,
    pub(crate) description: Description,
    schema: jsonschema::Validator,
    pub(crate) component: InstancePre<Context>,
    lifecycle: bindings::PluginIndices,
    uses_wasi: bool,
}

impl Plugin {
    pub(crate) fn memory_id(&self) -> MemoryId {
        MemoryId { plugin: Some(self.name.to_string()), version: self.description.memory_version }
    }

    /// Whether `settings` fit the plugin's schema. Errors: the first three places where they do not.
    pub(crate) fn check_settings(&self, settings: &Value) -> Result<(), Rejection> {
        let wrong: Vec<String> = self
            .schema
            .iter_errors(settings)
            .take(3)
            .map(|error| {
                let place = error.instance_path().to_string();
                let place = if place.is_empty() { "/" } else { &place };
                format!("{place}: {error}")
            })
            .collect();
        if wrong.is_empty() { Ok(()) } else { Err(Rejection::new(Stage::Settings, wrong.join("; ")).of(self.digest)) }
    }

    /// A fresh instance, described and configured: ready for its first step.
    pub(crate) fn start(
        &self,
        engine: &Engine,
        limits: &Limits,
        log: Arc<LogGate>,
        settings: &str,
    ) -> Result<(Store<Context>, Instance), Rejection> {
        let (mut store, instance, lifecycle) =
            instantiate(engine, &self.component, &self.lifecycle, limits, log, self.uses_wasi)?;
        let failed = |stage: Stage, store: &Store<Context>, error: wasmtime::Error| {
            Rejection::new(stage, classify(error, store, limits.start_deadline_ms, limits))
        };
        let lifecycle = lifecycle.tenon_host_lifecycle();
        // The contract promises every instance that it is described before it is configured.
        if let Err(error) = lifecycle.call_describe(&mut store) {
            return Err(failed(Stage::Describe, &store, error));
        }
        match lifecycle.call_configure(&mut store, settings) {
            Ok(Ok(())) => {
                // From now on it hands over answers with memories, and log lines.
                let answer_max_bytes = usize::try_from(limits.answer_max_bytes);
                store.set_hostcall_fuel(answer_max_bytes.unwrap_or(usize::MAX));
                Ok((store, instance))
            }
            Ok(Err(reason)) => Err(Rejection::new(Stage::Configure, one_line(&reason))),
            Err(error) => Err(failed(Stage::Configure, &store, error)),
        }
    }
}

/// Reads `path` once. Errors: it cannot be read, or is larger than `max_bytes`.
pub(crate) fn read(path: &Path, max_bytes: u64) -> Result<Vec<u8>, Rejection> {
    let failed = |error: std::io::Error| Rejection::new(Stage::Read, error).at(path);
    let bytes = read_bounded(path, max_bytes).map_err(failed)?;
    if bytes.len() as u64 > max_bytes {
        let reason = format!("larger than {max_bytes} bytes");
        return Err(Rejection::new(Stage::Read, reason).at(path));
    }
    Ok(bytes)
}

/// Reads the signature file `path` once; of one that is too large, as much as shows it.
pub(crate) fn read_signature(path: &Path) -> Beside {
    match read_bounded(path, SIGNATURE_MAX_BYTES) {
        Ok(signature) => Beside::Signature(signature),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Beside::Nothing,
        Err(error) => Beside::Unreadable(error.to_string()),
    }
}

/// One byte more than `max_bytes` at most, which tells "too large" without reading it all; the file may grow meanwhile.
fn read_bounded(path: &Path, max_bytes: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(max_bytes + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Everything that can be checked before a slot is known: inspects, compiles, links and describes `bytes`.
pub(crate) fn load(
    engine: &Engine,
    kinds: &[Arc<KindInfo>],
    bytes: &[u8],
    progress: &mut dyn FnMut(Stage, &str),
) -> Result<Plugin, Rejection> {
    let digest = Digest::of(bytes);
    load_digested(engine, kinds, bytes, digest, progress).map_err(|rejection| rejection.of(digest))
}

fn load_digested(
    engine: &Engine,
    kinds: &[Arc<KindInfo>],
    bytes: &[u8],
    digest: Digest,
    progress: &mut dyn FnMut(Stage, &str),
) -> Result<Plugin, Rejection> {
    let kind =
        inspect::inspect(kinds, bytes).map_err(|problems| Rejection::new(Stage::Inspect, problems.join("; ")))?;
    progress(Stage::Inspect, &format!("fits {}", kind.world));

    let component =
        engine.component(bytes, digest).map_err(|error| Rejection::new(Stage::Compile, format!("{error:#}")))?;
    progress(Stage::Compile, "compiled");

    let link = |error: wasmtime::Error| Rejection::new(Stage::Link, format!("{error:#}"));
    let mut linker = Linker::new(engine.wasm());
    bindings::tenon::host::log::add_to_linker::<_, HasSelf<Context>>(&mut linker, |context| context).map_err(link)?;
    let uses_wasi = wasi::add_to_linker(&mut linker, &component).map_err(link)?;
    let component = linker.instantiate_pre(&component).map_err(link)?;
    let lifecycle = bindings::PluginIndices::new(&component).map_err(link)?;

    // No slot is known yet: whatever any slot could allow.
    let limits = engine.widest_limits();
    let log = Arc::new(LogGate::new("".into(), "".into(), 0, limits.log_lines_per_second));
    let (mut store, instance, world) = instantiate(engine, &component, &lifecycle, &limits, log, uses_wasi)?;
    (kind.check)(&component, &mut store, &instance).map_err(link)?;
    progress(Stage::Link, "instantiated");

    let raw = world.tenon_host_lifecycle().call_describe(&mut store).map_err(|error| {
        let failure = classify(error, &store, limits.start_deadline_ms, &limits);
        Rejection::new(Stage::Describe, failure)
    })?;
    let (description, schema) = describe(raw).map_err(|reason| Rejection::new(Stage::Describe, reason))?;
    progress(Stage::Describe, &format!("{} {}", description.name, description.version));
    Ok(Plugin {
        digest,
        kind: kind.name,
        name: description.name.as_str().into(),
        description,
        schema,
        component,
        lifecycle,
        uses_wasi,
    })
}

fn instantiate(
    engine: &Engine,
    component: &InstancePre<Context>,
    lifecycle: &bindings::PluginIndices,
    limits: &Limits,
    log: Arc<LogGate>,
    uses_wasi: bool,
) -> Result<(Store<Context>, Instance, bindings::Plugin), Rejection> {
    let context = Context::new(limits, log, uses_wasi, engine.count_instance());
    let mut store = Store::new(engine.wasm(), context);
    store.limiter(|context| &mut context.memory);
    store.set_epoch_deadline(limits.start_deadline_ticks());
    if let Some(fuel) = engine.start_fuel() {
        store.set_fuel(fuel).expect("the engine counts fuel");
    }
    // What it may hand to the host while it starts: its description.
    store.set_hostcall_fuel(DESCRIPTION_MAX_BYTES);
    let failed = |error: wasmtime::Error, store: &Store<Context>| {
        let failure = classify(error, store, limits.start_deadline_ms, limits);
        Rejection::new(Stage::Link, failure)
    };
    let instance = match component.instantiate(&mut store) {
        Ok(instance) => instance,
        Err(error) => return Err(failed(error, &store)),
    };
    match lifecycle.load(&mut store, &instance) {
        Ok(world) => Ok((store, instance, world)),
        Err(error) => Err(failed(error, &store)),
    }
}

/// Checks what a plugin says of itself.
fn describe(
    raw: bindings::exports::tenon::host::lifecycle::Description,
) -> Result<(Description, jsonschema::Validator), String> {
    if !is_name(&raw.name) {
        return Err(format!("name {:?}: expected 1 to 64 lower-case letters, digits and `-`", one_line(&raw.name)));
    }
    if let Err(error) = semver::Version::parse(&raw.version) {
        return Err(format!("version {:?}: {error}", one_line(&raw.version)));
    }
    if raw.summary.len() > 200 {
        return Err(format!("summary of {} bytes, at most 200", raw.summary.len()));
    }
    if raw.config_schema.len() > SCHEMA_MAX_BYTES {
        return Err(format!("config-schema of {} bytes, at most {SCHEMA_MAX_BYTES}", raw.config_schema.len()));
    }
    let text = match raw.config_schema.trim() {
        "" => "{}",
        text => text,
    };
    let config_schema: Value = serde_json::from_str(text).map_err(|error| format!("config-schema: {error}"))?;
    let schema = jsonschema::validator_for(&config_schema).map_err(|error| format!("config-schema: {error}"))?;
    let description = Description {
        name: raw.name,
        version: raw.version,
        summary: one_line(&raw.summary),
        config_schema,
        memory_version: raw.memory_version,
    };
    Ok((description, schema))
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// A guest's text as one line of at most 500 bytes.
pub(crate) fn one_line(text: &str) -> String {
    text[..text.floor_char_boundary(500)].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Failure {
        Failure::Instance { reason: rejection.to_string() }
    }
}
