//! One version of one plugin in one slot: its number, its idle instances, its counts; and a single call of it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use wasmtime::{
    Store, Trap,
    component::{Instance, TypedFunc},
};

use crate::{
    context::Context,
    engine::Engine,
    health::{Health, Rule, State, Turn},
    kind::Kind,
    latency::{Latency, TIMED_EVERY, Times},
    limits::{Failure, Limits},
    load::{MemoryId, Plugin, Rejection, Stage, one_line},
    log::LogGate,
    poison::{self, Blame, Poison},
};

/// One version of one plugin, configured, in one slot.
pub(crate) struct Generation<K: Kind> {
    pub(crate) number: u64,
    pub(crate) plugin: Arc<Plugin>,
    /// Whose memory it writes, and the slot's number for it.
    pub(crate) memory_id: MemoryId,
    pub(crate) form: u32,
    engine: Arc<Engine>,
    indices: K::Indices,
    settings: String,
    limits: Limits,
    deadline_ticks: u64,
    log: Arc<LogGate>,
    benches: Box<[Bench<K>]>,
    health: Mutex<Health>,
    poison: Mutex<Poison>,
    /// True while `health` or `poison` has something to remember; the only thing that a healthy call looks at.
    unwell: AtomicBool,
    is_cool: AtomicBool,
    failures: AtomicU64,
    latency: Latency,
    can_migrate: bool,
    /// An operator lets it begin anew where it cannot read what there is.
    forgets: AtomicBool,
}

/// A place for one idle instance. Aligned so that neighbours do not share a cache line.
#[repr(align(128))]
struct Bench<K: Kind> {
    idle: Mutex<Option<Ready<K>>>,
    /// Only written under the lock, so plain additions do; read by anyone.
    calls: AtomicU64,
}

/// Whether a call may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Granted,
    /// Not for this subject, for a while.
    SubjectAside,
    /// For nobody, for a while.
    Resting,
}

struct Ready<K: Kind> {
    store: Store<Context>,
    world: K::World,
    migration: Option<Migration<K>>,
    has_clock: bool,
}

/// The optional interface that hands memory from version to version.
pub(crate) struct Migration<K: Kind> {
    pub(crate) upgrade: Migrate<K::Wire>,
    downgrade: Migrate<K::Wire>,
}

/// Takes the other memory-version and the memory.
pub(crate) type Migrate<Wire> = TypedFunc<(u32, Wire), (Result<Wire, String>,)>;

/// Where a generation is to serve.
pub(crate) struct Place<'a> {
    pub(crate) slot: &'a Arc<str>,
    pub(crate) number: u64,
    /// The slot's number for whose memory it writes.
    pub(crate) form: u32,
    /// Calls that can run at a time.
    pub(crate) benches: usize,
}

/// What a call came to.
pub(crate) type Stepped<K> = Result<(<K as Kind>::Answer, <K as Kind>::Memory), Failure>;

impl<K: Kind> Generation<K> {
    /// Makes the candidate's first instance and asks it the kind's probe.
    pub(crate) fn prepare(
        place: &Place<'_>,
        plugin: Arc<Plugin>,
        engine: Arc<Engine>,
        settings: &serde_json::Value,
        limits: &Limits,
    ) -> Result<Generation<K>, Rejection> {
        let Place { slot, number, form, benches } = *place;
        plugin.check_settings(settings)?;
        let digest = plugin.digest;
        let indices = K::prepare(&plugin.component)
            .map_err(|error| Rejection::new(Stage::Link, format!("{error:#}")).of(digest))?;
        let log = LogGate::new(Arc::clone(slot), Arc::clone(&plugin.name), number, limits.log_lines_per_second);
        let mut generation = Generation {
            number,
            memory_id: plugin.memory_id(),
            form,
            engine,
            indices,
            settings: settings.to_string(),
            limits: limits.clone(),
            deadline_ticks: limits.deadline_ticks(),
            log: Arc::new(log),
            benches: (0..benches.max(1)).map(|_| Bench { idle: Mutex::new(None), calls: AtomicU64::new(0) }).collect(),
            health: Mutex::new(Health::new(Rule {
                strikes_max: limits.strikes_max,
                backoff_min: Duration::from_millis(limits.backoff_min_ms),
                backoff_max: Duration::from_millis(limits.backoff_max_ms),
            })),
            poison: Mutex::new(Poison::new(poison::Rule {
                aside_max: limits.subjects_aside_max,
                backoff_min: Duration::from_millis(limits.backoff_min_ms),
                backoff_max: Duration::from_millis(limits.backoff_max_ms),
            })),
            unwell: AtomicBool::new(false),
            is_cool: AtomicBool::new(false),
            failures: AtomicU64::new(0),
            latency: Latency::default(),
            can_migrate: false,
            forgets: AtomicBool::new(K::FORGETS),
            plugin,
        };
        let mut ready = generation.start().map_err(|rejection| rejection.of(digest))?;
        if let Some(request) = K::probe() {
            generation
                .run(&mut ready, &request, &K::Memory::default())
                .map_err(|failure| Rejection::new(Stage::Probe, failure).of(digest))?;
        }
        generation.can_migrate = ready.migration.is_some();
        *generation.bench(0).1 = Some(ready);
        Ok(generation)
    }

    /// Makes instances until `count` benches have one, so that a generation which takes over from a busy one is as warm.
    pub(crate) fn warm(&self, count: usize) -> Result<(), Rejection> {
        for at in 0..count.min(self.benches.len()) {
            let (_, mut idle) = self.bench(at);
            if idle.is_none() {
                *idle = Some(self.start()?);
            }
        }
        Ok(())
    }

    /// Keeps one instance only, also of those that are in a call now: the generation is there to go back to, and is
    /// hardly asked.
    pub(crate) fn cool(&self) {
        self.is_cool.store(true, Ordering::Relaxed);
        // A call that ends looks at this one flag, and only then at what it stands for.
        self.unwell.store(true, Ordering::Relaxed);
        for bench in &self.benches[1..] {
            if let Ok(mut idle) = bench.idle.try_lock() {
                *idle = None;
            }
        }
    }

    /// Keeps an instance on every bench again.
    pub(crate) fn uncool(&self) {
        self.is_cool.store(false, Ordering::Relaxed);
    }

    /// Benches that hold an instance, or are in use.
    pub(crate) fn warmth(&self) -> usize {
        let is_warm = |bench: &&Bench<K>| bench.idle.try_lock().map_or(true, |idle| idle.is_some());
        self.benches.iter().filter(is_warm).count()
    }

    pub(crate) fn calls(&self) -> u64 {
        let calls = |bench: &Bench<K>| bench.calls.load(Ordering::Relaxed);
        self.benches.iter().map(calls).sum()
    }

    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    pub(crate) fn times(&self) -> Times {
        self.latency.times()
    }

    /// Subjects that are set aside now.
    pub(crate) fn aside(&self) -> usize {
        self.poison().aside(Instant::now())
    }

    pub(crate) fn state(&self) -> State {
        self.health().state()
    }

    /// Whether a call may be made now. Costs one relaxed load while all is well.
    pub(crate) fn admits(&self, request: &K::Request) -> bool {
        self.admission(request) == Admission::Granted
    }

    /// The same, and why not.
    pub(crate) fn admission(&self, request: &K::Request) -> Admission {
        if !self.unwell.load(Ordering::Relaxed) {
            return Admission::Granted;
        }
        let now = Instant::now();
        // The subject first: a trial call of the whole plugin must not be spent on it.
        if !K::subject(request).is_none_or(|subject| self.poison().admits(subject, now)) {
            return Admission::SubjectAside;
        }
        if self.health().admit(now) { Admission::Granted } else { Admission::Resting }
    }

    /// Whether it is left alone as a whole, whoever asks. Changes nothing, so that no trial call is spent on the question.
    pub(crate) fn is_resting(&self) -> bool {
        self.unwell.load(Ordering::Relaxed) && self.health().is_resting(Instant::now())
    }

    /// One call on the bench numbered `at`; the caller has asked [`admits`](Self::admits). `Turn` says what the call did
    /// to the generation's health.
    pub(crate) fn call(&self, at: usize, request: &K::Request, memory: &K::Memory) -> (Stepped<K>, Turn) {
        let (calls, idle) = self.bench(at);
        self.call_on(calls, idle, request, memory)
    }

    /// One call on any bench that is free, beginning at `hint`; waits for that one when none is.
    pub(crate) fn call_anywhere(&self, hint: usize, request: &K::Request, memory: &K::Memory) -> (Stepped<K>, Turn) {
        // A free bench with an instance is best, then any free one: instances cost memory.
        for needs_instance in [true, false] {
            for at in 0..self.benches.len() {
                let bench = &self.benches[hint.wrapping_add(at) % self.benches.len()];
                if let Ok(idle) = bench.idle.try_lock() {
                    if needs_instance && idle.is_none() {
                        continue;
                    }
                    return self.call_on(&bench.calls, idle, request, memory);
                }
            }
        }
        self.call(hint, request, memory)
    }

    fn call_on(
        &self,
        calls: &AtomicU64,
        mut idle: MutexGuard<'_, Option<Ready<K>>>,
        request: &K::Request,
        memory: &K::Memory,
    ) -> (Stepped<K>, Turn) {
        let number = calls.load(Ordering::Relaxed) + 1;
        calls.store(number, Ordering::Relaxed);
        let subject = || K::subject(request);
        let ready = match &mut *idle {
            Some(ready) => ready,
            None => match self.start() {
                Ok(ready) => idle.insert(ready),
                Err(rejection) => return self.failed(rejection.into(), subject()),
            },
        };
        let timed = number.is_multiple_of(TIMED_EVERY).then(Instant::now);
        let answer = self.run(ready, request, memory);
        if let Some(started) = timed {
            self.latency.add(started.elapsed());
        }
        match answer {
            Ok(answer) => {
                if !self.unwell.load(Ordering::Relaxed) {
                    return (Ok(answer), Turn::None);
                }
                if self.is_cool.load(Ordering::Relaxed) && !std::ptr::eq(calls, &raw const self.benches[0].calls) {
                    *idle = None;
                }
                (Ok(answer), self.succeeded(subject()))
            }
            Err(failure) => {
                // A trapped instance cannot be entered again, and one that broke a rule is not trusted again.
                *idle = None;
                drop(idle);
                self.failed(failure, subject())
            }
        }
    }

    fn run(&self, ready: &mut Ready<K>, request: &K::Request, memory: &K::Memory) -> Stepped<K> {
        // The deadline is absolute, so it is set for each call.
        ready.store.set_epoch_deadline(self.deadline_ticks);
        if ready.has_clock {
            let now_us = K::now_us(request);
            if let Some(wasi) = &mut ready.store.data_mut().wasi {
                wasi.begin(now_us);
            }
        }
        let (answer, memory) = K::step(&ready.world, &mut ready.store, request, memory)
            .map_err(|error| classify(error, &ready.store, self.limits.deadline_ms, &self.limits))?;
        if K::size_bytes(&answer, &memory) as u64 > self.limits.answer_max_bytes {
            return Err(Failure::Oversized { limit_bytes: self.limits.answer_max_bytes });
        }
        match K::check(request, &answer, &self.limits) {
            Ok(()) => Ok((answer, memory)),
            Err(refusal) => Err(Failure::Refused { reason: refusal.0 }),
        }
    }

    /// Turns a memory of another version of this plugin into one of its own, or (`Way::Down`) its own into an older
    /// version's, on the bench numbered `at`.
    pub(crate) fn migrate(
        &self,
        at: usize,
        way: Way,
        version: u32,
        memory: &K::Memory,
    ) -> Result<K::Memory, Unmigrated> {
        let (_, mut idle) = self.bench(at);
        let ready = match &mut *idle {
            Some(ready) => ready,
            None => idle.insert(self.start().map_err(|rejection| Unmigrated::Failed(rejection.into()))?),
        };
        let none = || Unmigrated::Refused("the newer version does not export the migration interface".to_owned());
        let migration = ready.migration.as_ref().ok_or_else(none)?;
        let function = match way {
            Way::Up => &migration.upgrade,
            Way::Down => &migration.downgrade,
        };
        ready.store.set_epoch_deadline(self.deadline_ticks);
        // No request, no time: the same memory must come out whenever it is needed.
        if let Some(wasi) = &mut ready.store.data_mut().wasi {
            wasi.begin(0);
        }
        match function.call(&mut ready.store, (version, K::to_wire(memory))) {
            Ok((Ok(wire),)) => Ok(K::from_wire(wire)),
            Ok((Err(reason),)) => Err(Unmigrated::Refused(one_line(&reason))),
            Err(error) => {
                let failure = classify(error, &ready.store, self.limits.deadline_ms, &self.limits);
                *idle = None;
                Err(Unmigrated::Failed(failure))
            }
        }
    }

    /// Whether it exports the migration interface.
    pub(crate) fn can_migrate(&self) -> bool {
        self.can_migrate
    }

    /// Whether it begins anew where it cannot read a memory.
    pub(crate) fn forgets(&self) -> bool {
        self.forgets.load(Ordering::Relaxed)
    }

    /// Lets it begin anew where it cannot read a memory.
    pub(crate) fn may_forget(&self) {
        self.forgets.store(true, Ordering::Relaxed);
    }

    /// Counts a step that was not made. No instance of it did wrong, so it is asked again next time.
    pub(crate) fn was_not_asked(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a failure that the caller found in an answer already given.
    pub(crate) fn blame(&self, failure: Failure, subject: Option<u64>) -> (Failure, Turn) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let blame = subject.map_or(Blame::None, |subject| self.poison().failed(subject, now));
        let mut health = self.health();
        let turn = match blame {
            Blame::Sweep => health.trip(now),
            Blame::None | Blame::SetAside { .. } => health.failed(now),
        };
        self.unwell.store(true, Ordering::Relaxed);
        drop(health);
        match (turn, blame, subject) {
            (Turn::None, Blame::SetAside { pause }, Some(subject)) => (failure, Turn::SetAside { subject, pause }),
            _ => (failure, turn),
        }
    }

    fn failed<T>(&self, failure: Failure, subject: Option<u64>) -> (Result<T, Failure>, Turn) {
        let (failure, turn) = self.blame(failure, subject);
        (Err(failure), turn)
    }

    fn succeeded(&self, subject: Option<u64>) -> Turn {
        let mut poison = self.poison();
        if let Some(subject) = subject {
            poison.succeeded(subject);
        }
        let mut health = self.health();
        let turn = health.succeeded();
        if health.is_spotless() && poison.is_empty() && !self.is_cool.load(Ordering::Relaxed) {
            self.unwell.store(false, Ordering::Relaxed);
        }
        turn
    }

    fn start(&self) -> Result<Ready<K>, Rejection> {
        let (mut store, instance) =
            self.plugin.start(&self.engine, &self.limits, Arc::clone(&self.log), &self.settings)?;
        let world = K::load(&self.indices, &mut store, &instance)
            .map_err(|error| Rejection::new(Stage::Link, format!("{error:#}")))?;
        let migration = match K::MIGRATION {
            None => None,
            Some(interface) => migration(interface, &mut store, &instance)
                .map_err(|error| Rejection::new(Stage::Link, format!("{interface}: {error:#}")))?,
        };
        Ok(Ready { has_clock: store.data().wasi.is_some(), migration, store, world })
    }

    fn bench(&self, at: usize) -> (&AtomicU64, MutexGuard<'_, Option<Ready<K>>>) {
        let bench = &self.benches[at % self.benches.len()];
        let idle = bench.idle.lock().unwrap_or_else(|poisoned| {
            // The kind's own code panicked in the middle of a call: the instance is in an unknown state.
            let mut idle = poisoned.into_inner();
            *idle = None;
            bench.idle.clear_poison();
            idle
        });
        (&bench.calls, idle)
    }

    fn poison(&self) -> MutexGuard<'_, Poison> {
        self.poison.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which way memory goes between versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Up,
    Down,
}

/// Why a memory could not be migrated.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Unmigrated {
    /// Nobody knows how to, or the version that does said why not.
    #[error("{0}")]
    Refused(String),
    /// The call failed.
    #[error("{0}")]
    Failed(Failure),
}

/// The two functions of the migration interface; none where the component does not export it. Errors: it exports
/// something else by that name.
pub(crate) fn migration<K: Kind>(
    interface: &str,
    store: &mut Store<Context>,
    instance: &Instance,
) -> wasmtime::Result<Option<Migration<K>>> {
    let Some(interface) = instance.get_export_index(&mut *store, None, interface) else {
        return Ok(None);
    };
    let mut function = |name: &str| {
        let function = instance.get_export_index(&mut *store, Some(&interface), name);
        let function = function.and_then(|index| instance.get_func(&mut *store, index));
        let function = function.ok_or_else(|| wasmtime::Error::msg(format!("no function {name}")))?;
        function.typed(&*store)
    };
    Ok(Some(Migration { upgrade: function("upgrade")?, downgrade: function("downgrade")? }))
}

/// What wasmtime's error means for the operator.
pub(crate) fn classify(error: wasmtime::Error, store: &Store<Context>, deadline_ms: u64, limits: &Limits) -> Failure {
    if let Some(wanted_bytes) = store.data().memory.refused_bytes {
        return Failure::MemoryLimit { wanted_bytes, limit_bytes: limits.memory_max_bytes };
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => Failure::Deadline { limit_ms: deadline_ms },
        Some(Trap::StackOverflow) => Failure::Stack,
        Some(trap) => Failure::Trap { message: trap.to_string() },
        // wasmtime gives this error no public type, only its text.
        None if error.root_cause().to_string().contains("fuel allocated for hostcalls") => {
            Failure::Oversized { limit_bytes: limits.answer_max_bytes }
        }
        None => Failure::Trap { message: format!("{error:#}") },
    }
}
