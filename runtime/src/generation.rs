//! One version of one plugin in one slot: its number, its idle instances, its counts; and a single call of it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use wasmtime::{Store, Trap};

use crate::{
    context::Context,
    engine::Engine,
    health::{Health, Rule, State, Turn},
    kind::Kind,
    limits::{Failure, Limits},
    load::{Plugin, Rejection, Stage},
    log::LogGate,
};

/// One version of one plugin, configured, in one slot.
pub(crate) struct Generation<K: Kind> {
    pub(crate) number: u64,
    pub(crate) plugin: Arc<Plugin>,
    engine: Arc<Engine>,
    indices: K::Indices,
    settings: String,
    limits: Limits,
    deadline_ticks: u64,
    log: Arc<LogGate>,
    benches: Box<[Bench<K>]>,
    health: Mutex<Health>,
    /// True while `health` has something to remember; the only thing that a healthy call looks at.
    unwell: AtomicBool,
    failures: AtomicU64,
}

/// A place for one idle instance. Aligned so that neighbours do not share a cache line.
#[repr(align(128))]
struct Bench<K: Kind> {
    idle: Mutex<Option<Ready<K>>>,
    /// Only written under the lock, so plain additions do; read by anyone.
    calls: AtomicU64,
}

struct Ready<K: Kind> {
    store: Store<Context>,
    world: K::World,
    has_clock: bool,
}

/// What a call came to.
pub(crate) type Stepped<K> = Result<(<K as Kind>::Answer, <K as Kind>::Memory), Failure>;

impl<K: Kind> Generation<K> {
    /// Makes the candidate's first instance and asks it the kind's probe.
    pub(crate) fn prepare(
        number: u64,
        slot: &Arc<str>,
        plugin: Arc<Plugin>,
        engine: Arc<Engine>,
        settings: &serde_json::Value,
        limits: &Limits,
        benches: usize,
    ) -> Result<Generation<K>, Rejection> {
        plugin.check_settings(settings)?;
        let digest = plugin.digest;
        let indices = K::prepare(&plugin.component)
            .map_err(|error| Rejection::new(Stage::Link, format!("{error:#}")).of(digest))?;
        let log = LogGate::new(Arc::clone(slot), Arc::clone(&plugin.name), number, limits.log_lines_per_second);
        let generation = Generation {
            number,
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
            unwell: AtomicBool::new(false),
            failures: AtomicU64::new(0),
            plugin,
        };
        let mut ready = generation.start().map_err(|rejection| rejection.of(digest))?;
        if let Some(request) = K::probe() {
            generation
                .run(&mut ready, &request, &K::Memory::default())
                .map_err(|failure| Rejection::new(Stage::Probe, failure).of(digest))?;
        }
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

    pub(crate) fn state(&self) -> State {
        self.health().state()
    }

    /// Whether a call may be made now. Costs one relaxed load while all is well.
    pub(crate) fn admits(&self) -> bool {
        !self.unwell.load(Ordering::Relaxed) || self.health().admit(Instant::now())
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
        calls.store(calls.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let ready = match &mut *idle {
            Some(ready) => ready,
            None => match self.start() {
                Ok(ready) => idle.insert(ready),
                Err(rejection) => return self.failed(rejection.into()),
            },
        };
        match self.run(ready, request, memory) {
            Ok(answer) => {
                let turn = if self.unwell.load(Ordering::Relaxed) { self.succeeded() } else { Turn::None };
                (Ok(answer), turn)
            }
            Err(failure) => {
                // A trapped instance cannot be entered again, and one that broke a rule is not trusted again.
                *idle = None;
                drop(idle);
                self.failed(failure)
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

    /// Counts a failure that the caller found in an answer already given.
    pub(crate) fn blame(&self, failure: Failure) -> (Failure, Turn) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut health = self.health();
        let turn = health.failed(Instant::now());
        self.unwell.store(true, Ordering::Relaxed);
        (failure, turn)
    }

    fn failed<T>(&self, failure: Failure) -> (Result<T, Failure>, Turn) {
        let (failure, turn) = self.blame(failure);
        (Err(failure), turn)
    }

    fn succeeded(&self) -> Turn {
        let mut health = self.health();
        let turn = health.succeeded();
        if health.is_spotless() {
            self.unwell.store(false, Ordering::Relaxed);
        }
        turn
    }

    fn start(&self) -> Result<Ready<K>, Rejection> {
        let (mut store, instance) =
            self.plugin.start(&self.engine, &self.limits, Arc::clone(&self.log), &self.settings)?;
        let world = K::load(&self.indices, &mut store, &instance)
            .map_err(|error| Rejection::new(Stage::Link, format!("{error:#}")))?;
        Ok(Ready { has_clock: store.data().wasi.is_some(), store, world })
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

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
