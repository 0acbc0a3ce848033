//! The front door: owns the engine, the slots and the catalogue, and takes changes one at a time, in order.

mod look;
mod orders;
mod rounds;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::broadcast;

use self::look::{Looked, Why};

pub use crate::log::bindings::tenon::host::log;
use crate::{
    catalog::{Catalog, Duplicate, PluginFile},
    digest::Digest,
    engine::Engine,
    event::{Change, Event, Events},
    inspect::KindInfo,
    kind::Kind,
    limits::PluginConfig,
    load::{self, Plugin, Rejection, Stage},
    priority,
    signature::{Trust, TrustedKey},
    slot::{Builtin, Receiver, Slot, Status, Surroundings},
    store::{self, Good, Store},
    watcher::{self, Debounce, Look, Wake, Watch},
};

/// Hosts plugins. A cheap handle; everything ends with the last of it and of its slots.
#[derive(Clone)]
pub struct Host(Arc<Inner>);

/// Where a host works, and what it may use.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Where operators put `*.wasm`, in any sub-folder; created when missing, never written to.
    pub plugin_dir: PathBuf,
    /// The host's own directory: components by digest, compiled code, what last worked. Made private to this user.
    pub state_dir: PathBuf,
    /// How long a file that was not renamed into place must have been left alone. Default 200 ms.
    pub quiet: Duration,
    /// How often everything is read and hashed, whatever the watch says. Default 5 s.
    pub scan_interval: Duration,
    /// Bytes of a component at most. Default 64 MiB.
    pub file_max_bytes: u64,
    /// Threads that compile. Default: half of the processors, at least 1.
    pub compile_threads: usize,
    /// Instances of all slots together; a swap needs those of both generations. Default 512.
    pub instances_max: u32,
    /// Linear memory that is reserved (not used) for each instance: the most that any slot's limit can allow. Default 64 MiB.
    pub instance_memory_max_bytes: u64,
    /// Names of plugins that switch together: what is new of them in one look at the directory goes live at one instant,
    /// or none of it does.
    pub sets: Vec<Vec<String>>,
    /// Shards of a slot: calls that can run at a time, each on its own instance. Default: twice the processors, 2 to 64.
    pub shards: usize,
    /// Keys whose signatures are accepted. Where there are any, a signature beside a component, `NAME.wasm.sig`, must be
    /// one of its bytes by one of them. Default: none, and signatures are ignored.
    pub trusted_keys: Vec<TrustedKey>,
    /// Whether a component must have such a signature. Default: no.
    pub require_signature: bool,
}

impl HostConfig {
    /// The defaults, with the two directories.
    pub fn new(plugin_dir: impl Into<PathBuf>, state_dir: impl Into<PathBuf>) -> HostConfig {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        HostConfig {
            plugin_dir: plugin_dir.into(),
            state_dir: state_dir.into(),
            quiet: Duration::from_millis(200),
            scan_interval: Duration::from_secs(5),
            file_max_bytes: 64 << 20,
            compile_threads: (processors / 2).max(1),
            instances_max: 512,
            instance_memory_max_bytes: 64 << 20,
            sets: Vec::new(),
            shards: (processors * 2).clamp(2, 64),
            trusted_keys: Vec::new(),
            require_signature: false,
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.compile_threads >= 1, "compile_threads is 0, expected 1 or more");
        anyhow::ensure!(self.shards >= 1, "shards is 0, expected 1 or more");
        anyhow::ensure!(self.instances_max >= 1, "instances_max is 0, expected 1 or more");
        anyhow::ensure!(
            self.instance_memory_max_bytes >= 64 << 10,
            "instance_memory_max_bytes is {}, expected 65536 or more",
            self.instance_memory_max_bytes
        );
        anyhow::ensure!(!self.scan_interval.is_zero(), "scan_interval is 0");
        anyhow::ensure!(
            !self.require_signature || !self.trusted_keys.is_empty(),
            "require_signature without trusted_keys would take no component at all"
        );
        Ok(())
    }
}

/// What a scan of the plugin directory came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScanReport {
    /// The files.
    pub plugins: Vec<PluginFile>,
    /// The slots.
    pub slots: Vec<Status>,
    /// What was not taken in this scan, and why.
    pub rejected: Vec<Rejection>,
}

/// What is known of some bytes: every step of loading with its outcome.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// SHA-256 of the bytes.
    pub digest: Digest,
    /// How many there are.
    pub bytes: usize,
    /// The kind, when all is well.
    pub kind: Option<&'static str>,
    /// What the plugin says of itself, when all is well.
    pub description: Option<load::Description>,
    /// The steps that went well, in order, each with its outcome.
    pub passed: Vec<(Stage, String)>,
    /// The step that did not; names each missing, extra and mistyped item.
    pub rejection: Option<Rejection>,
}

/// Why something that an operator asked for was not done.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ControlError {
    /// No slot of that name.
    #[error("unknown slot {slot:?}, known: {}", known.join(", "))]
    UnknownSlot {
        /// What was asked for.
        slot: String,
        /// The slots there are.
        known: Vec<String>,
    },
    /// No plugin of that name and the slot's kind.
    #[error("unknown {kind} plugin {plugin:?}, known: {}", known.join(", "))]
    UnknownPlugin {
        /// What was asked for.
        plugin: String,
        /// The slot's kind.
        kind: &'static str,
        /// The plugins of that kind.
        known: Vec<String>,
    },
    /// The slot is served by its built-in, which takes no such order.
    #[error("slot {slot:?} is served by its built-in")]
    Builtin {
        /// The slot.
        slot: String,
    },
    /// The slot is served by its built-in, which does not take this configuration.
    #[error("configuration of the built-in of slot {slot:?}: {reason}")]
    BuiltinConfig {
        /// The slot.
        slot: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It was tried and did not pass; what served before still does.
    #[error("rejected: {0}")]
    Rejected(Rejection),
    /// The slot's calls cannot be recorded in this way.
    #[error("{reason}")]
    Journal {
        /// The slot.
        slot: String,
        /// Why not.
        reason: String,
    },
    /// There is nothing to promote, or to go back to.
    #[error("slot {slot:?}: {reason}")]
    NotNow {
        /// The slot.
        slot: String,
        /// Why.
        reason: String,
    },
    /// The host has been stopped.
    #[error("the plugin host has been stopped")]
    Stopped,
}

struct Inner {
    config: HostConfig,
    engine: Arc<Engine>,
    trust: Trust,
    events: Events,
    slots: RwLock<BTreeMap<String, Arc<dyn Receiver>>>,
    /// The one lock under which anything changes: whoever holds it is the control thread for that long.
    control: Mutex<Control>,
    /// A copy to read while a change is under way.
    plugins: ArcSwap<Vec<PluginFile>>,
    watching: Mutex<Option<Watching>>,
    /// Wakes the thread that looks after trials and probations.
    wake: mpsc::Sender<()>,
    stopped: AtomicBool,
}

struct Control {
    kinds: Vec<Arc<KindInfo>>,
    catalog: Catalog,
    duplicates: BTreeSet<Duplicate>,
    store: Store,
    wanted: BTreeMap<String, Wanted>,
    opened: bool,
}

/// What an operator wants of a slot.
struct Wanted {
    plugin: Option<String>,
    /// By plugin: each keeps its own settings while others serve.
    settings: BTreeMap<String, Value>,
    /// The last offer, whatever came of it: it is not made twice.
    offered: Option<Offer>,
}

/// A component and its settings.
type Offer = (Digest, Value);

struct Watching {
    wakes: mpsc::Sender<Wake>,
    thread: JoinHandle<()>,
}

impl Host {
    /// A host without slots. Starts the clock of the engine; reads nothing yet.
    pub fn new(config: HostConfig) -> anyhow::Result<Host> {
        config.check()?;
        store::private_dir(&config.state_dir)?;
        std::fs::create_dir_all(&config.plugin_dir)
            .with_context(|| format!("creating {}", config.plugin_dir.display()))?;
        let engine = Arc::new(Engine::new(&config)?);
        let store = Store::open(&config.state_dir)?;
        let (wake, woken) = mpsc::channel();
        let inner = Arc::new(Inner {
            engine,
            trust: Trust::new(config.trusted_keys.clone(), config.require_signature),
            events: Events::new(),
            slots: RwLock::default(),
            control: Mutex::new(Control {
                kinds: Vec::new(),
                catalog: Catalog::default(),
                duplicates: BTreeSet::new(),
                store,
                wanted: BTreeMap::new(),
                opened: false,
            }),
            plugins: ArcSwap::default(),
            watching: Mutex::new(None),
            wake,
            stopped: AtomicBool::new(false),
            config,
        });
        let host = Arc::downgrade(&inner);
        std::thread::Builder::new()
            .name("tenon-rollout".into())
            .spawn(move || rounds::look_after(&host, &woken))
            .context("starting the thread that looks after candidates")?;
        Ok(Host(inner))
    }

    /// Makes a kind known, so that its plugins are recognised though no slot of it exists (yet).
    pub fn kind<K: Kind>(&self) -> anyhow::Result<()> {
        self.0.control().add_kind::<K>()
    }

    /// A slot of kind `K`. `builtin` answers while no plugin does. Before [`open`](Self::open) it is served by the
    /// built-in; added later, its plugin is taken at once.
    ///
    /// Errors: the name is taken, a limit is out of range, or the kind's WIT is wrong.
    pub fn slot<K: Kind>(
        &self,
        name: &str,
        plugin: PluginConfig,
        builtin: impl Builtin<K> + 'static,
    ) -> anyhow::Result<Slot<K>> {
        let inner = &*self.0;
        let checks = [plugin.limits.check(), plugin.rollout.check(), plugin.probation.check()];
        checks.into_iter().collect::<Result<(), _>>().map_err(|reason| anyhow::anyhow!("slot {name}: {reason}"))?;
        anyhow::ensure!(
            plugin.limits.memory_max_bytes <= inner.config.instance_memory_max_bytes,
            "slot {name}: memory_max_bytes is {}, the host reserves {}",
            plugin.limits.memory_max_bytes,
            inner.config.instance_memory_max_bytes
        );
        let mut control = inner.control();
        control.add_kind::<K>()?;
        let surroundings = Surroundings {
            engine: Arc::clone(&inner.engine),
            events: inner.events.clone(),
            shards: inner.config.shards,
            wake: inner.wake.clone(),
        };
        let slot = Slot::<K>::new(name, surroundings, &plugin, Box::new(builtin));
        if plugin.journal.is_some() {
            slot.receiver().record(&inner.journal_dir(), plugin.journal.clone())?;
        }
        slot.receiver().restore(&control.store.slot(name).machine);
        {
            let mut slots = inner.slots.write().unwrap_or_else(PoisonError::into_inner);
            anyhow::ensure!(!slots.contains_key(name), "slot {name} exists already");
            slots.insert(name.to_owned(), slot.receiver());
        }
        let mut settings = BTreeMap::new();
        if let Some(name) = &plugin.plugin {
            settings.insert(name.clone(), plugin.settings);
        }
        control.wanted.insert(name.to_owned(), Wanted { plugin: plugin.plugin, settings, offered: None });
        if control.opened {
            inner.settle(&mut control, Why::First, &mut Looked::default());
        }
        Ok(slot)
    }

    /// Looks at the plugin directory for the first time and serves what is wanted and sound. A plugin that is not is
    /// reported, and what last worked in its place serves, else the built-in.
    pub fn open(&self) -> ScanReport {
        let look = Look { thorough: true, ..Look::default() };
        let rejected = self.0.look(&look, Why::First).rejected;
        self.0.engine.stand_back();
        ScanReport { plugins: self.plugins(), slots: self.status(), rejected }
    }

    /// Follows the plugin directory from now on, on a thread of its own. Calling it again does nothing.
    ///
    /// Errors: the thread cannot be started. A platform that cannot watch is no error: the periodic scan remains.
    pub fn watch(&self) -> anyhow::Result<()> {
        let inner = &*self.0;
        let mut watching = inner.watching();
        if watching.is_some() || inner.stopped.load(Ordering::Acquire) {
            return Ok(());
        }
        let (wakes, woken) = mpsc::channel();
        let mut watch = match Watch::start(&inner.config.plugin_dir, wakes.clone()) {
            Ok(watch) => Some(watch),
            Err(error) => {
                let dir = inner.config.plugin_dir.display();
                tracing::warn!(%dir, %error, "cannot watch, only scanning now and then");
                None
            }
        };
        let debounce = Debounce::new(inner.config.quiet, inner.config.scan_interval, Instant::now());
        // What changed between the first scan and the watch.
        let _ = wakes.send(Wake::Changed);
        let host: Weak<Inner> = Arc::downgrade(&self.0);
        let thread = std::thread::Builder::new()
            .name("tenon-plugins".into())
            .spawn(move || {
                priority::stand_back();
                watcher::run(&woken, debounce, |look| {
                    if look.thorough
                        && let Some(watch) = &mut watch
                    {
                        watch.renew();
                    }
                    Some(host.upgrade()?.look(&look, Why::Watch).too_young)
                });
            })
            .context("starting the thread that follows the plugin directory")?;
        *watching = Some(Watching { wakes, thread });
        Ok(())
    }

    /// Ends the watch and lets the built-ins serve. The clock goes on until the last instance is gone, so that a call
    /// under way is still stopped at its deadline. Calling it again does nothing.
    pub fn stop(&self) {
        let inner = &*self.0;
        inner.stopped.store(true, Ordering::Release);
        let watching = inner.watching().take();
        if let Some(Watching { wakes, thread }) = watching {
            let _ = wakes.send(Wake::Stop);
            if thread.thread().id() != std::thread::current().id() {
                // It has no panics of its own to report: those are in the log.
                let _ = thread.join();
            }
        }
        let mut control = inner.control();
        for slot in inner.receivers() {
            slot.stop();
            inner.keep(&mut control, &*slot);
            slot.retire("the plugin host has stopped");
            slot.journal();
        }
        drop(control);
        inner.engine.wind_down();
    }

    /// Every slot as it is now, by name.
    pub fn status(&self) -> Vec<Status> {
        let slots = self.0.receivers();
        slots.iter().map(|slot| slot.status()).collect()
    }

    /// Every file of the plugin directory, as the last scan found it.
    pub fn plugins(&self) -> Vec<PluginFile> {
        self.0.plugins.load().as_ref().clone()
    }

    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.0.events.subscribe()
    }

    /// Instances alive in all slots, those of generations on their way out included.
    pub fn instances(&self) -> usize {
        self.0.engine.instances()
    }

    /// Takes `bytes` through every step that needs no slot, and changes nothing.
    pub fn inspect(&self, bytes: &[u8]) -> Report {
        let kinds = self.0.control().kinds.clone();
        let mut passed = Vec::new();
        let loaded = load::load(&self.0.engine, &kinds, bytes, &mut |stage, outcome| {
            passed.push((stage, outcome.to_owned()));
        });
        let (plugin, rejection) = match loaded {
            Ok(plugin) => (Some(plugin), None),
            Err(rejection) => (None, Some(rejection)),
        };
        Report {
            digest: Digest::of(bytes),
            bytes: bytes.len(),
            kind: plugin.as_ref().map(|plugin| plugin.kind),
            description: plugin.map(|plugin| plugin.description),
            passed,
            rejection,
        }
    }
}

impl Inner {
    fn control(&self) -> MutexGuard<'_, Control> {
        // Each change is made when everything that can fail is over, so a panic leaves the state before it.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the slots' journals are.
    fn journal_dir(&self) -> PathBuf {
        self.config.state_dir.join("journal")
    }

    fn watching(&self) -> MutexGuard<'_, Option<Watching>> {
        self.watching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receivers(&self) -> Vec<Arc<dyn Receiver>> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.values().cloned().collect()
    }

    /// The lock under which `slot` may be changed, and the slot.
    fn change(&self, slot: &str) -> Result<(MutexGuard<'_, Control>, Arc<dyn Receiver>), ControlError> {
        let control = self.control();
        if self.stopped.load(Ordering::Acquire) {
            return Err(ControlError::Stopped);
        }
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        match slots.get(slot) {
            Some(receiver) => Ok((control, Arc::clone(receiver))),
            None => Err(ControlError::UnknownSlot { slot: slot.to_owned(), known: slots.keys().cloned().collect() }),
        }
    }

    /// Writes down what became of the slot's generations, if there is news.
    fn keep(&self, control: &mut Control, receiver: &dyn Receiver) {
        if let Some(saved) = receiver.saved() {
            control.store.slot_changed(receiver.name(), saved.machine, saved.live);
        }
    }

    fn rejected(&self, receiver: Option<&dyn Receiver>, plugin: Option<&Arc<str>>, rejection: &Rejection) {
        self.events.send(Event {
            slot: receiver.map(|receiver| receiver.name().to_string()),
            plugin: plugin.map(ToString::to_string),
            generation: receiver.map_or(0, |receiver| receiver.status().generation),
            digest: rejection.digest,
            change: Change::Rejected {
                path: rejection.path.clone(),
                stage: rejection.stage,
                reason: rejection.reason.clone(),
            },
        });
    }
}

impl Control {
    fn add_kind<K: Kind>(&mut self) -> anyhow::Result<()> {
        if self.kinds.iter().all(|kind| kind.name != K::NAME) {
            let kind = KindInfo::of::<K>().with_context(|| format!("the WIT of kind {}", K::NAME))?;
            self.kinds.push(Arc::new(kind));
        }
        Ok(())
    }

    fn of(&mut self, slot: &str) -> &mut Wanted {
        self.wanted.get_mut(slot).expect("every slot has its entry from the moment it exists")
    }

    /// Notes that `plugin` was taken with `settings`.
    fn takes(&mut self, receiver: &dyn Receiver, plugin: &Plugin, settings: Value) {
        let wanted = self.of(receiver.name());
        wanted.plugin = Some(plugin.name.to_string());
        wanted.settings.insert(plugin.name.to_string(), settings.clone());
        wanted.offered = Some((plugin.digest, settings));
    }
}

impl Wanted {
    fn settings_of(&self, plugin: &str) -> Value {
        let empty = || Value::Object(serde_json::Map::new());
        self.settings.get(plugin).cloned().unwrap_or_else(empty)
    }

    /// What `good` served with; what it would now where a record of an older version does not say.
    fn settings_with(&self, good: &Good) -> Value {
        good.settings.clone().unwrap_or_else(|| self.settings_of(&good.plugin))
    }
}
