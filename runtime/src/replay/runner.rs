//! One component in replay: the same steps of loading as for serving, then one instance that is used again and again.

use std::{collections::HashMap, sync::Arc};

use serde_json::Value;
use wasmtime::{Store, Trap};

use super::{About, MemoryMode, report::Side};
use crate::{
    context::Context,
    engine::Engine,
    generation::{Migration, Unmigrated, classify, migration},
    inspect::KindInfo,
    journal::GenerationInfo,
    kind::Kind,
    limits::{Failure, Limits},
    load::{self, Plugin, Rejection, Stage},
    log::LogGate,
};

/// Configurations whose instance is kept; a journal seldom has more, and then instances are made anew.
const SEATS_MAX: usize = 16;

/// A component that answers recorded calls.
pub(super) struct Runner<K: Kind> {
    engine: Arc<Engine>,
    plugin: Plugin,
    indices: K::Indices,
    limits: Limits,
    /// Whether it exports the migration interface.
    can_migrate: bool,
    /// Memories turned into its own form, and those that could not be.
    migrated: (u64, u64),
    log: Arc<LogGate>,
    /// One for each configuration.
    seats: Vec<Seat<K>>,
    /// The seat of the next step, and the generation that it was chosen for.
    seat: usize,
    seated: Option<About>,
    /// What it remembers, where it has its own memory.
    memories: HashMap<K::Key, K::Memory, foldhash::fast::RandomState>,
}

struct Seat<K: Kind> {
    settings: String,
    ready: Option<Ready<K>>,
}

struct Ready<K: Kind> {
    store: Store<Context>,
    world: K::World,
    migration: Option<Migration<K>>,
    has_clock: bool,
}

/// What a step came to.
pub(super) type Answered<K> = Result<(<K as Kind>::Answer, <K as Kind>::Memory), Failed>;

/// How a step failed.
pub(super) struct Failed {
    /// [`Failure::cause`], or `fuel`.
    pub(super) cause: &'static str,
    pub(super) message: String,
}

impl<K: Kind> Runner<K> {
    /// Errors: the component is not taken.
    pub(super) fn new(
        engine: Arc<Engine>,
        kinds: &[Arc<KindInfo>],
        bytes: &[u8],
        limits: Limits,
    ) -> Result<Runner<K>, Rejection> {
        let plugin = load::load(&engine, kinds, bytes, &mut |_, _| {})?;
        let indices = K::prepare(&plugin.component)
            .map_err(|error| Rejection::new(Stage::Link, format!("{error:#}")).of(plugin.digest))?;
        // What it logged when it served, it would log again for every call: nobody wants to read that.
        let log = Arc::new(LogGate::new("replay".into(), Arc::clone(&plugin.name), 0, 0));
        let exports = |name: &str| plugin.component.component().get_export_index(None, name).is_some();
        Ok(Runner {
            limits: Limits { log_lines_per_second: 0, ..limits },
            can_migrate: K::MIGRATION.is_some_and(exports),
            migrated: (0, 0),
            engine,
            plugin,
            indices,
            log,
            seats: Vec::new(),
            seat: 0,
            seated: None,
            memories: HashMap::default(),
        })
    }

    pub(super) fn side(&self) -> Side {
        Side {
            plugin: self.plugin.name.to_string(),
            version: self.plugin.description.version.clone(),
            digest: self.plugin.digest,
        }
    }

    /// Which memory it gets for a call of the generation `about`.
    pub(super) fn mode(&self, about: &About, asked: Option<MemoryMode>) -> MemoryMode {
        asked.unwrap_or_else(|| {
            let is_its_own = about.memory == self.plugin.memory_id() || self.upgrades(about);
            if is_its_own { MemoryMode::Recorded } else { MemoryMode::Own }
        })
    }

    /// Whether it takes over memories of the generation `about`, which are in an older form.
    fn upgrades(&self, about: &GenerationInfo) -> bool {
        let own = self.plugin.memory_id();
        self.can_migrate && about.memory.plugin == own.plugin && about.memory.version < own.version
    }

    /// How many memories it has turned into its own form, and how many it could not.
    pub(super) fn migrated(&self) -> (u64, u64) {
        self.migrated
    }

    /// Chooses the configuration for the next calls: `given`, else the one of the generation `about` if that is of the
    /// same plugin, else none. Errors: the component does not take it.
    pub(super) fn sit(&mut self, about: &About, given: Option<&Value>) -> Result<(), Rejection> {
        if self.seated.as_ref().is_some_and(|seated| Arc::ptr_eq(seated, about)) {
            return Ok(());
        }
        let nothing = Value::Object(serde_json::Map::new());
        let settings = match given {
            Some(given) => given,
            None if about.plugin == *self.plugin.name => &about.settings,
            None => &nothing,
        };
        self.configure(settings)?;
        self.seated = Some(Arc::clone(about));
        Ok(())
    }

    /// Chooses the configuration for the next calls. Errors: the component does not take it.
    pub(super) fn configure(&mut self, settings: &Value) -> Result<(), Rejection> {
        let text = settings.to_string();
        let seat = self.seats.iter().position(|seat| seat.settings == text);
        self.seat = match seat {
            Some(seat) => seat,
            None => {
                self.plugin.check_settings(settings)?;
                if self.seats.len() >= SEATS_MAX {
                    self.seats.clear();
                }
                let ready = self.start(&text).map_err(|rejection| rejection.of(self.plugin.digest))?;
                self.seats.push(Seat { settings: text, ready: Some(ready) });
                self.seats.len() - 1
            }
        };
        self.seated = None;
        Ok(())
    }

    /// The configuration of the next step.
    pub(super) fn settings(&self) -> Value {
        self.seats.get(self.seat).and_then(|seat| seat.settings.parse().ok()).unwrap_or_default()
    }

    /// One step with its own memory of `key`, and the fuel it took.
    pub(super) fn step_on(&mut self, key: &K::Key, request: &K::Request) -> (Answered<K>, u64) {
        let memory = self.memory_of(key);
        let (answered, fuel) = self.step(request, &memory);
        if let Ok((_, memory)) = &answered {
            match self.memories.get_mut(key) {
                Some(kept) => kept.clone_from(memory),
                None => {
                    self.memories.insert(key.clone(), memory.clone());
                }
            }
        }
        (answered, fuel)
    }

    /// What it remembers of `key`.
    pub(super) fn memory_of(&self, key: &K::Key) -> K::Memory {
        self.memories.get(key).cloned().unwrap_or_default()
    }

    /// One step with a memory of the generation `about`, and the fuel it took. Where that is in an older form it is turned
    /// first, as a slot does; the fuel of that is the call's no more than its time is there.
    pub(super) fn step_from(
        &mut self,
        about: &GenerationInfo,
        request: &K::Request,
        memory: &K::Memory,
    ) -> (Answered<K>, u64) {
        // Of a key without one there is nothing to turn.
        if !self.upgrades(about) || *memory == K::Memory::default() {
            return self.step(request, memory);
        }
        match self.upgrade(about.memory.version, memory) {
            Ok(memory) => {
                self.migrated.0 += 1;
                self.step(request, &memory)
            }
            Err(problem) => {
                self.migrated.1 += 1;
                if K::FORGETS {
                    return self.step(request, &K::Memory::default());
                }
                let failure = Failure::Unreadable { of: about.memory.to_string(), reason: problem.to_string() };
                (Err(failure.into()), 0)
            }
        }
    }

    fn upgrade(&mut self, version: u32, memory: &K::Memory) -> Result<K::Memory, Unmigrated> {
        let limits = &self.limits;
        let seat = &mut self.seats[self.seat];
        let ready = match &mut seat.ready {
            Some(ready) => ready,
            None => {
                let ready = start(&self.plugin, &self.engine, limits, &self.log, &self.indices, &seat.settings);
                seat.ready.insert(ready.map_err(|rejection| Unmigrated::Failed(rejection.into()))?)
            }
        };
        let upgraded = ready.upgrade(version, memory, limits);
        if matches!(upgraded, Err(Unmigrated::Failed(_))) {
            seat.ready = None;
        }
        upgraded
    }

    /// One step, and the fuel it took. [`sit`](Self::sit) or [`configure`](Self::configure) comes first.
    pub(super) fn step(&mut self, request: &K::Request, memory: &K::Memory) -> (Answered<K>, u64) {
        let limits = &self.limits;
        let seat = &mut self.seats[self.seat];
        let ready = match &mut seat.ready {
            Some(ready) => ready,
            None => match start(&self.plugin, &self.engine, limits, &self.log, &self.indices, &seat.settings) {
                Ok(ready) => seat.ready.insert(ready),
                Err(rejection) => return (Err(Failure::from(rejection).into()), 0),
            },
        };
        let (answered, fuel) = ready.step(request, memory, limits);
        if answered.is_err() {
            // A trapped instance cannot be entered again.
            seat.ready = None;
        }
        (answered, fuel)
    }

    fn start(&self, settings: &str) -> Result<Ready<K>, Rejection> {
        start(&self.plugin, &self.engine, &self.limits, &self.log, &self.indices, settings)
    }
}

fn start<K: Kind>(
    plugin: &Plugin,
    engine: &Engine,
    limits: &Limits,
    log: &Arc<LogGate>,
    indices: &K::Indices,
    settings: &str,
) -> Result<Ready<K>, Rejection> {
    let (mut store, instance) = plugin.start(engine, limits, Arc::clone(log), settings)?;
    let link = |error: wasmtime::Error| Rejection::new(Stage::Link, format!("{error:#}"));
    let world = K::load(indices, &mut store, &instance).map_err(link)?;
    let migration = match K::MIGRATION {
        None => None,
        Some(interface) => migration(interface, &mut store, &instance).map_err(link)?,
    };
    Ok(Ready { has_clock: store.data().wasi.is_some(), migration, store, world })
}

impl<K: Kind> Ready<K> {
    fn upgrade(&mut self, version: u32, memory: &K::Memory, limits: &Limits) -> Result<K::Memory, Unmigrated> {
        let none = || Unmigrated::Refused("it does not export the migration interface".to_owned());
        let migration = self.migration.as_ref().ok_or_else(none)?;
        self.store.set_fuel(limits.fuel_max).expect("the engine counts fuel");
        // No request, no time: the same memory must come out whenever it is needed.
        if let Some(wasi) = &mut self.store.data_mut().wasi {
            wasi.begin(0);
        }
        match migration.upgrade.call(&mut self.store, (version, K::to_wire(memory))) {
            Ok((Ok(wire),)) => Ok(K::from_wire(wire)),
            Ok((Err(reason),)) => Err(Unmigrated::Refused(load::one_line(&reason))),
            Err(error) => Err(Unmigrated::Failed(classify(error, &self.store, limits.deadline_ms, limits))),
        }
    }

    fn step(&mut self, request: &K::Request, memory: &K::Memory, limits: &Limits) -> (Answered<K>, u64) {
        let fuel_max = limits.fuel_max;
        self.store.set_fuel(fuel_max).expect("the engine counts fuel");
        if self.has_clock
            && let Some(wasi) = &mut self.store.data_mut().wasi
        {
            wasi.begin(K::now_us(request));
        }
        let stepped = K::step(&self.world, &mut self.store, request, memory);
        let fuel = fuel_max - self.store.get_fuel().expect("the engine counts fuel");
        let answered = match stepped {
            Err(error) if error.downcast_ref::<Trap>() == Some(&Trap::OutOfFuel) => {
                let message = format!("still running after {fuel_max} units of fuel");
                Err(Failed { cause: "fuel", message })
            }
            Err(error) => Err(classify(error, &self.store, limits.deadline_ms, limits).into()),
            Ok((answer, memory)) if K::size_bytes(&answer, &memory) as u64 > limits.answer_max_bytes => {
                Err(Failure::Oversized { limit_bytes: limits.answer_max_bytes }.into())
            }
            Ok((answer, memory)) => match K::check(request, &answer, limits) {
                Ok(()) => Ok((answer, memory)),
                Err(refusal) => Err(Failure::Refused { reason: refusal.0 }.into()),
            },
        };
        (answered, fuel)
    }
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Failed {
        Failed { cause: failure.cause(), message: failure.to_string() }
    }
}
