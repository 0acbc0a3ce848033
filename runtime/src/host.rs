//! The front door: owns the engine, the slots and the catalogue, and takes changes one at a time, in order.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::broadcast;

pub use crate::log::bindings::tenon::host::log;
use crate::{
    catalog::{self, Catalog, Duplicate, File, PluginFile},
    digest::Digest,
    engine::Engine,
    event::{Change, Event, Events},
    inspect::KindInfo,
    journal::Journal,
    kind::Kind,
    limits::PluginConfig,
    load::{self, Plugin, Rejection, Stage},
    rollout::{Refused, Transition},
    shadow::Divergence,
    signature::{Beside, Trust, TrustedKey},
    slot::{Builtin, How, JournalStatus, News, Receiver, Slot, Status, Surroundings},
    store::{self, Store},
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
            .spawn(move || look_after(&host, &woken))
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
        let journal = match &plugin.journal {
            Some(config) => Some(Journal::open::<K>(&inner.config.state_dir.join("journal"), name, config.clone())?),
            None => None,
        };
        let mut control = inner.control();
        control.add_kind::<K>()?;
        let surroundings = Surroundings {
            engine: Arc::clone(&inner.engine),
            events: inner.events.clone(),
            shards: inner.config.shards,
            wake: inner.wake.clone(),
        };
        let slot = Slot::<K>::new(name, surroundings, &plugin, Box::new(builtin), journal);
        // The thread that writes sleeps until somebody has something for it.
        let _ = inner.wake.send(());
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

    /// Reads the plugin directory anew and makes a new generation of the slot's plugin, even from the same bytes.
    pub fn reload(&self, slot: &str) -> Result<Status, ControlError> {
        let inner = &*self.0;
        let offered = inner.change(slot)?.0.wanted[slot].offered.clone();
        let looked = inner.look(&Look { thorough: true, ..Look::default() }, Why::Asked);
        let (mut control, receiver) = inner.change(slot)?;
        if control.wanted[slot].offered != offered {
            // What there is now has just been offered.
            let digest = control.wanted[slot].offered.as_ref().map(|offer| offer.0);
            let rejection = looked.rejected.into_iter().find(|rejection| rejection.digest == digest);
            return rejection.map_or_else(|| Ok(receiver.status()), |rejection| Err(ControlError::Rejected(rejection)));
        }
        let wanted = &control.wanted[slot];
        let Some(name) = wanted.plugin.clone() else {
            return Err(ControlError::Builtin { slot: slot.into() });
        };
        let settings = wanted.settings_of(&name);
        // The same component with the same settings has nothing to prove.
        let same = control.catalog.plugin(receiver.kind(), &name).map(|plugin| (plugin.digest, settings.clone()));
        let how = How { at_once: receiver.live() == same, forced: false };
        inner.put(&mut control, &receiver, &name, settings, how)?;
        Ok(receiver.status())
    }

    /// Lets the candidate on trial serve now. With `force`, a component that is quarantined is taken all the same, at
    /// once.
    ///
    /// Errors: nothing is on trial, and nothing is forced.
    pub fn promote(&self, slot: &str, force: bool) -> Result<Status, ControlError> {
        let inner = &*self.0;
        let (mut control, receiver) = inner.change(slot)?;
        match receiver.promote() {
            Err(Refused::NoTrial) if force => {
                let Some(name) = control.wanted[slot].plugin.clone() else {
                    return Err(ControlError::Builtin { slot: slot.into() });
                };
                let settings = control.wanted[slot].settings_of(&name);
                let how = How { at_once: true, forced: true };
                inner.put(&mut control, &receiver, &name, settings, how)?;
            }
            done => done.map_err(|refused| not_now(slot, &refused))?,
        }
        inner.keep(&mut control, &*receiver);
        Ok(receiver.status())
    }

    /// Takes the last step back: a candidate on trial is called off, else the generation before the live one serves
    /// again. Its bytes are then quarantined. After a restart, what served well before it is loaded from the host's own
    /// copy.
    ///
    /// Errors: there is nothing to go back to.
    pub fn roll_back(&self, slot: &str) -> Result<Status, ControlError> {
        let inner = &*self.0;
        let (mut control, receiver) = inner.change(slot)?;
        let reason = "an operator took it back";
        if let Err(refused) = receiver.roll_back(reason) {
            let record = control.store.slot(slot);
            let live = receiver.live().map(|(digest, _)| digest);
            let earlier = [record.good, record.before].into_iter().flatten().find(|good| Some(good.digest) != live);
            let earlier = earlier.ok_or_else(|| not_now(slot, &refused))?;
            let plugin = inner.kept(&control, earlier.digest).ok_or_else(|| not_now(slot, &refused))?;
            let settings = control.wanted[slot].settings_of(&earlier.plugin);
            let how = How { at_once: true, forced: true };
            let taken = Arc::clone(&receiver).prepare(&plugin, &settings, how).and_then(|taken| taken(None));
            taken.map_err(ControlError::Rejected)?;
            receiver.condemn_previous(reason);
        }
        inner.keep(&mut control, &*receiver);
        Ok(receiver.status())
    }

    /// What became of the slot's generations, oldest first; at most 64 steps, also those before the last restart.
    pub fn history(&self, slot: &str) -> Result<Vec<Transition>, ControlError> {
        Ok(self.0.change(slot)?.1.history())
    }

    /// What the candidate in the slot's shadow answered otherwise so far, or what the last one came to.
    pub fn shadow(&self, slot: &str) -> Result<Option<Divergence>, ControlError> {
        Ok(self.0.change(slot)?.1.divergence())
    }

    /// How the recording of the slot's calls goes; all that was recorded until now is written when this returns. None:
    /// nothing is recorded.
    pub fn journal(&self, slot: &str) -> Result<Option<JournalStatus>, ControlError> {
        let receiver = self.0.change(slot)?.1;
        Ok(receiver.journal())
    }

    /// Lets another plugin serve, with the settings that it last had in this slot (`{}` at first); none: the built-in.
    pub fn use_plugin(&self, slot: &str, plugin: Option<&str>) -> Result<Status, ControlError> {
        let inner = &*self.0;
        let (mut control, receiver) = inner.change(slot)?;
        match plugin {
            Some(name) => {
                let settings = control.wanted[slot].settings_of(name);
                inner.put(&mut control, &receiver, name, settings, How::default())?;
            }
            None => {
                receiver.retire("asked to");
                control.of(slot).plugin = None;
                inner.keep(&mut control, &*receiver);
            }
        }
        Ok(receiver.status())
    }

    /// Gives the slot's plugin new settings: a new generation of the same component. Where the built-in serves, they are
    /// the built-in's.
    pub fn configure(&self, slot: &str, settings: Value) -> Result<Status, ControlError> {
        let inner = &*self.0;
        let (mut control, receiver) = inner.change(slot)?;
        let Some(name) = control.wanted[slot].plugin.clone() else {
            let failed = |reason| ControlError::BuiltinConfig { slot: slot.into(), reason };
            receiver.configure_builtin(&settings).map_err(failed)?;
            return Ok(receiver.status());
        };
        inner.put(&mut control, &receiver, &name, settings, How::default())?;
        Ok(receiver.status())
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

/// Why the plugin directory is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The host opens: what is there is taken, and what was there before its restart may stand in.
    First,
    /// An operator asked for it: what is there is meant to be taken.
    Asked,
    /// The watch, or time: files that may still be written to are left alone.
    Watch,
}

/// What a look came to.
#[derive(Default)]
struct Looked {
    rejected: Vec<Rejection>,
    /// A file was too young to be taken; look again.
    too_young: bool,
}

impl Inner {
    fn control(&self) -> MutexGuard<'_, Control> {
        // Each change is made when everything that can fail is over, so a panic leaves the state before it.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Takes `name` with `settings`, and only then remembers both: they switch together or not at all.
    fn put(
        &self,
        control: &mut Control,
        receiver: &Arc<dyn Receiver>,
        name: &str,
        settings: Value,
        how: How,
    ) -> Result<(), ControlError> {
        let Some(plugin) = control.catalog.plugin(receiver.kind(), name) else {
            let known = control.catalog.names(receiver.kind());
            return Err(ControlError::UnknownPlugin {
                plugin: name.to_owned(),
                kind: receiver.kind(),
                known: known.into_iter().collect(),
            });
        };
        let plugin = Arc::clone(plugin);
        let taken = Arc::clone(receiver).prepare(&plugin, &settings, how).and_then(|taken| taken(None));
        if let Err(rejection) = taken {
            self.rejected(Some(&**receiver), Some(&plugin.name), &rejection);
            return Err(ControlError::Rejected(rejection));
        }
        control.takes(&**receiver, &plugin, settings);
        Ok(())
    }

    /// Writes down what became of the slot's generations, if there is news.
    fn keep(&self, control: &mut Control, receiver: &dyn Receiver) {
        if let Some(saved) = receiver.saved() {
            control.store.slot_changed(receiver.name(), saved.machine, saved.live);
        }
    }

    /// One round of looking after trials and probations; when the next is due, if any. Writing is slow: it waits for
    /// more to write, but for what must not be forgotten.
    fn round(&self, written: &mut Instant) -> Option<Duration> {
        let receivers = self.receivers();
        let mut next = receivers.iter().filter_map(|receiver| receiver.tick()).min();
        let news: Vec<_> = receivers.iter().filter_map(|receiver| Some((receiver, receiver.news()?))).collect();
        let urgent = news.iter().any(|(_, news)| *news == News::Urgent);
        if urgent || written.elapsed() >= WRITE_INTERVAL {
            for (receiver, _) in &news {
                self.keep(&mut self.control(), &***receiver);
            }
            *written = Instant::now();
        } else if !news.is_empty() {
            next = next.or(Some(WRITE_INTERVAL));
        }
        next.filter(|_| !self.stopped.load(Ordering::Acquire))
    }

    /// Brings the catalogue up to what the directory holds, and the slots up to the catalogue.
    fn look(&self, look: &Look, why: Why) -> Looked {
        let mut control = self.control();
        let mut looked = Looked::default();
        if self.stopped.load(Ordering::Acquire) {
            return looked;
        }
        match catalog::scan(&self.config.plugin_dir) {
            Ok(found) => self.take_files(&mut control, found, look, why, &mut looked),
            // A directory that is gone for a moment (a remount, a deployment) is no reason to stop serving.
            Err(error) => {
                let dir = self.config.plugin_dir.display();
                tracing::warn!(%dir, %error, "cannot read the plugin directory");
            }
        }
        control.opened |= why == Why::First;
        self.settle(&mut control, why, &mut looked);
        let duplicates = control.catalog.duplicates();
        for duplicate in duplicates.difference(&control.duplicates) {
            self.events.send(Event {
                slot: None,
                plugin: Some(duplicate.name.to_string()),
                generation: 0,
                digest: None,
                change: Change::Duplicate { serves: duplicate.serves.clone(), ignored: duplicate.ignored.clone() },
            });
        }
        control.duplicates = duplicates;
        if why == Why::First {
            control.store.forget_others();
            self.engine.forget_compiled(|digest| control.store.names(digest));
        }
        self.plugins.store(Arc::new(control.catalog.list()));
        looked
    }

    fn take_files(
        &self,
        control: &mut Control,
        found: BTreeMap<PathBuf, catalog::Stamps>,
        look: &Look,
        why: Why,
        looked: &mut Looked,
    ) {
        let now = SystemTime::now();
        let seen: BTreeSet<PathBuf> = found.keys().cloned().collect();
        for (path, stamps) in found {
            let full = self.config.plugin_dir.join(&path);
            let signature = catalog::signature_path(&full);
            let known = control.catalog.file(&path).map(|file| file.stamps);
            let either = |paths: &[PathBuf]| paths.contains(&full) || paths.contains(&signature);
            if either(&look.restless) || (known == Some(stamps) && !look.thorough && !either(&look.complete)) {
                continue;
            }
            let is_young = |path: &PathBuf, stamp: Option<catalog::Stamp>, known: Option<catalog::Stamp>| {
                let age = stamp.and_then(|stamp| stamp.age(now));
                stamp != known && !look.complete.contains(path) && age.is_some_and(|age| age < self.config.quiet)
            };
            let component_is_young = is_young(&full, Some(stamps.component), known.map(|known| known.component));
            let signature_is_young = is_young(&signature, stamps.signature, known.and_then(|known| known.signature));
            if why == Why::Watch && (component_is_young || signature_is_young) {
                looked.too_young = true;
                continue;
            }
            self.take_file(control, path, stamps, why, looked);
        }
        for (path, file) in control.catalog.retain(&seen) {
            control.store.file_gone(&path.to_string_lossy());
            self.events.send(Event {
                slot: None,
                plugin: file.good.map(|plugin| plugin.name.to_string()),
                generation: 0,
                digest: file.digest,
                change: Change::Removed { path },
            });
        }
    }

    fn take_file(&self, control: &mut Control, path: PathBuf, stamps: catalog::Stamps, why: Why, looked: &mut Looked) {
        let name = path.to_string_lossy().into_owned();
        let full = self.config.plugin_dir.join(&path);
        let (mut digest, mut beside) = (None, Beside::Nothing);
        let now = match load::read(&full, self.config.file_max_bytes) {
            Ok(bytes) => {
                let digest = *digest.insert(Digest::of(&bytes));
                // Only a file that the scan found to be one: opening a pipe would wait for its other end.
                if stamps.signature.is_some() {
                    beside = self.beside(&catalog::signature_path(&full));
                }
                let known = control.catalog.file(&path);
                if known.is_some_and(|file| file.digest == Some(digest) && file.beside == beside) {
                    control.catalog.touch(&path, stamps);
                    return;
                }
                let loaded = known.and_then(|file| file.good.clone()).filter(|plugin| plugin.digest == digest);
                let now = self.take_bytes(control, &bytes, digest, &beside, loaded);
                if now.is_ok() {
                    control.store.keep(&bytes, digest, beside.signature());
                    control.store.file_worked(&name, digest);
                }
                now
            }
            Err(rejection) => Err(rejection),
        };
        let (now, signed_by) = match now {
            Ok((plugin, signed_by)) => (Ok(plugin), signed_by),
            Err(rejection) => (Err(rejection.at(&path)), None),
        };
        if let Some(key) = &signed_by {
            tracing::info!(path = %path.display(), key, "signature accepted");
        }
        let known = control.catalog.file(&path);
        let good = match &now {
            Ok(plugin) => Some(Arc::clone(plugin)),
            Err(_) => known
                .and_then(|file| file.good.clone())
                .or_else(|| self.kept(control, control.store.last_good_of_file(&name)?))
                .filter(|_| known.is_some() || why == Why::First),
        };
        if let Err(rejection) = &now {
            // An unreadable file is the same news at every scan.
            let is_news = known.is_none_or(|file| file.now.as_ref().err() != Some(rejection));
            if is_news {
                let plugin = good.as_ref().map(|plugin| &plugin.name);
                let receivers = self.receivers();
                let concerned = receivers.iter().find(|receiver| {
                    let wanted = control.wanted.get(&**receiver.name());
                    let wanted = wanted.and_then(|wanted| wanted.plugin.as_deref());
                    wanted.is_some() && wanted == plugin.map(|name| &**name)
                });
                if let Some(receiver) = concerned {
                    receiver.reject(rejection.clone());
                }
                self.rejected(concerned.map(|receiver| &**receiver), plugin, rejection);
                looked.rejected.push(rejection.clone());
            }
        }
        let file = File { digest, beside, stamps, signed_by, now, good };
        control.catalog.set(path, file);
    }

    /// The plugin that `bytes` are, and the id of the key that signed them; `loaded` when it is known already: the same
    /// bytes under another signature.
    fn take_bytes(
        &self,
        control: &Control,
        bytes: &[u8],
        digest: Digest,
        beside: &Beside,
        loaded: Option<Arc<Plugin>>,
    ) -> Result<(Arc<Plugin>, Option<String>), Rejection> {
        let signed_by = self.trust.check(bytes, beside);
        let signed_by = signed_by.map_err(|reason| Rejection::new(Stage::Signature, reason).of(digest))?;
        let load = || load::load(&self.engine, &control.kinds, bytes, &mut |_, _| {}).map(Arc::new);
        Ok((loaded.map_or_else(load, Ok)?, signed_by))
    }

    /// The signature in the file `path`, where signatures count.
    fn beside(&self, path: &Path) -> Beside {
        if self.trust.any() { load::read_signature(path) } else { Beside::Nothing }
    }

    /// A component from the host's own copy, verified again: which keys are trusted may have changed since.
    fn kept(&self, control: &Control, digest: Digest) -> Option<Arc<Plugin>> {
        let bytes = control.store.bytes(digest)?;
        let beside = self.beside(&control.store.signature_path(digest));
        if let Err(reason) = self.trust.check(&bytes, &beside) {
            tracing::warn!(%digest, "what last worked does not serve: {reason}");
            return None;
        }
        let plugin = load::load(&self.engine, &control.kinds, &bytes, &mut |_, _| {}).ok()?;
        Some(Arc::new(plugin))
    }

    /// Offers each slot the plugin that it wants, unless that was done already.
    fn settle(&self, control: &mut Control, why: Why, looked: &mut Looked) {
        let mut due = Vec::new();
        for receiver in self.receivers() {
            let name = &**receiver.name();
            let wanted = &control.wanted[name];
            let Some(plugin_name) = wanted.plugin.clone() else {
                continue;
            };
            let Some(plugin) = control.catalog.plugin(receiver.kind(), &plugin_name) else {
                receiver.retire("no file holds the plugin any more");
                control.of(name).offered = None;
                self.keep(control, &*receiver);
                continue;
            };
            let plugin = Arc::clone(plugin);
            let offer = (plugin.digest, wanted.settings_of(&plugin_name));
            if wanted.offered.as_ref() != Some(&offer) && receiver.live().as_ref() != Some(&offer) {
                due.push(Due { receiver, plugin, offer });
            }
        }
        // Those that switch together.
        for set in &self.config.sets {
            let is_member = |due: &Due| set.iter().any(|name| **name == *due.plugin.name);
            if !due.iter().any(is_member) {
                continue;
            }
            // Others of the set may be on their way.
            let now = SystemTime::now();
            let young = |name: &String| control.catalog.age(name, now).is_some_and(|age| age < self.config.quiet);
            let (members, others): (Vec<_>, Vec<_>) = due.into_iter().partition(is_member);
            due = others;
            if why == Why::Watch && set.iter().any(young) {
                looked.too_young = true;
            } else {
                self.take_set(control, members, looked);
            }
        }
        for due in due {
            let at_once = why == Why::First;
            let how = How { at_once, forced: false };
            control.of(due.receiver.name()).offered = Some(due.offer.clone());
            match Arc::clone(&due.receiver).prepare(&due.plugin, &due.offer.1, how).and_then(|taken| taken(None)) {
                Ok(()) => {
                    control.takes(&*due.receiver, &due.plugin, due.offer.1);
                    self.keep(control, &*due.receiver);
                }
                Err(rejection) => self.stand_by(control, &due, rejection, looked),
            }
        }
    }

    /// Takes all of a set at one instant, or nothing of it.
    fn take_set(&self, control: &mut Control, members: Vec<Due>, looked: &mut Looked) {
        let how = How { at_once: true, forced: false };
        let prepared: Vec<_> = members
            .iter()
            .map(|due| {
                control.of(due.receiver.name()).offered = Some(due.offer.clone());
                Arc::clone(&due.receiver).prepare(&due.plugin, &due.offer.1, how)
            })
            .collect();
        let failed = members.iter().zip(&prepared).find_map(|(due, taken)| taken.is_err().then_some(&due.plugin.name));
        if let Some(failed) = failed.map(ToString::to_string) {
            for (due, taken) in members.iter().zip(prepared) {
                let rejection = taken.err().unwrap_or_else(|| {
                    let reason = format!("it switches together with {failed}, which was not taken");
                    let rejection = Rejection::new(Stage::Set, reason).of(due.plugin.digest);
                    due.receiver.reject(rejection.clone());
                    rejection
                });
                self.stand_by(control, due, rejection, looked);
            }
            return;
        }
        let flag = Arc::new(AtomicBool::new(false));
        for taken in prepared.into_iter().flatten() {
            // Every reason not to take it was looked for.
            let _ = taken(Some(&flag));
        }
        // The one instant: whoever asks any of the slots from now on asks the new ones.
        flag.store(true, Ordering::Release);
        for due in members {
            due.receiver.release();
            control.takes(&*due.receiver, &due.plugin, due.offer.1);
            self.keep(control, &*due.receiver);
        }
    }

    /// A candidate was not taken; where nothing serves yet, what did before the restart may still do.
    fn stand_by(&self, control: &mut Control, due: &Due, rejection: Rejection, looked: &mut Looked) {
        let Due { receiver, plugin, offer } = due;
        self.rejected(Some(&**receiver), Some(&plugin.name), &rejection);
        looked.rejected.push(rejection.clone());
        let record = control.store.slot(receiver.name());
        for good in [record.good, record.before].into_iter().flatten() {
            if receiver.live().is_none()
                && good.plugin == *plugin.name
                && good.digest != plugin.digest
                && let Some(plugin) = self.kept(control, good.digest)
                && let Ok(taken) = Arc::clone(receiver).prepare(&plugin, &offer.1, How { at_once: true, forced: false })
                && taken(None).is_ok()
            {
                receiver.reject(rejection.clone());
            }
        }
        self.keep(control, &**receiver);
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

/// A slot and what it is to be offered.
struct Due {
    receiver: Arc<dyn Receiver>,
    plugin: Arc<Plugin>,
    offer: Offer,
}

/// How long news that are not urgent wait to be written at most.
const WRITE_INTERVAL: Duration = Duration::from_millis(200);

/// Looks after trials and probations as long as the host is there; sleeps while there are none.
fn look_after(host: &Weak<Inner>, woken: &mpsc::Receiver<()>) {
    let mut written = Instant::now();
    while woken.recv().is_ok() {
        loop {
            while woken.try_recv().is_ok() {}
            let Some(host) = host.upgrade() else {
                return;
            };
            let Some(next) = host.round(&mut written) else {
                break;
            };
            drop(host);
            if let Err(mpsc::RecvTimeoutError::Disconnected) = woken.recv_timeout(next) {
                return;
            }
        }
    }
}

fn not_now(slot: &str, refused: &Refused) -> ControlError {
    ControlError::NotNow { slot: slot.to_owned(), reason: refused.to_string() }
}

impl Wanted {
    fn settings_of(&self, plugin: &str) -> Value {
        let empty = || Value::Object(serde_json::Map::new());
        self.settings.get(plugin).cloned().unwrap_or_else(empty)
    }
}
