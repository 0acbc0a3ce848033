//! A slot: the place where one plugin of a kind serves. The only place where erased ([`Receiver`]) meets typed.

use std::{
    hash::BuildHasher as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;
use serde::Serialize;
use serde_json::Value;

use crate::{
    digest::Digest,
    engine::Engine,
    event::{Change, Event, Events},
    generation::Generation,
    health::{State, Turn},
    kind::Kind,
    limits::{Failure, Limits, OnFailure, Refusal},
    load::{MemoryId, Plugin, Rejection},
    memory::Memory,
};

/// Where one plugin of kind `K` serves. A cheap handle.
///
/// Asking it cannot fail: when no plugin serves, or the one that does fails, the built-in answers.
pub struct Slot<K: Kind>(Arc<Inner<K>>);

impl<K: Kind> Clone for Slot<K> {
    fn clone(&self) -> Self {
        Slot(Arc::clone(&self.0))
    }
}

/// Who gave an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// The native step.
    Builtin,
    /// This generation of the slot's plugin.
    Generation(u64),
    /// Nobody: the plugin failed, and the slot is set to fail open or closed.
    Policy,
}

/// An answer and where it comes from.
pub struct Decision<K: Kind> {
    /// The answer.
    pub answer: K::Answer,
    /// Who gave it.
    pub by: By,
    /// Why it was not the plugin, if the plugin was asked and failed.
    pub failure: Option<Failure>,
}

/// A step whose memory the caller keeps.
pub struct Step<K: Kind> {
    /// The answer.
    pub answer: K::Answer,
    /// The memory to hand in next time; as it was, unless `by` whom the slot is served gave the answer.
    pub memory: K::Memory,
    /// Whose memory that is: keep it beside the memory, and hand both to [`Slot::step_from`].
    pub memory_id: MemoryId,
    /// Who gave the answer.
    pub by: By,
    /// Why it was not the plugin, if the plugin was asked and failed.
    pub failure: Option<Failure>,
}

/// The native step of a slot: it answers while no plugin does. A closure is one that takes no configuration.
pub trait Builtin<K: Kind>: Send + Sync {
    /// One step. Its memory is kept apart from plugins'.
    fn step(&self, request: &K::Request, memory: &K::Memory) -> (K::Answer, K::Memory);

    /// Takes a configuration, as the plugin that serves has it. Errors: what is wrong with it; the former one holds on.
    fn configure(&self, settings: &Value) -> Result<(), String> {
        match settings {
            Value::Object(settings) if settings.is_empty() => Ok(()),
            _ => Err("the built-in takes no configuration".to_owned()),
        }
    }
}

impl<K, F> Builtin<K> for F
where
    K: Kind,
    F: Fn(&K::Request, &K::Memory) -> (K::Answer, K::Memory) + Send + Sync,
{
    fn step(&self, request: &K::Request, memory: &K::Memory) -> (K::Answer, K::Memory) {
        self(request, memory)
    }
}

struct Inner<K: Kind> {
    name: Arc<str>,
    engine: Arc<Engine>,
    events: Events,
    builtin: Box<dyn Builtin<K>>,
    on_failure: OnFailure,
    limits: Limits,
    live: ArcSwap<Serving<K>>,
    hasher: RandomState,
    shards: Box<[Shard<K>]>,
    /// Spreads callers without a key over the benches.
    turn: AtomicUsize,
    control: Mutex<Control>,
    /// Calls of plugins with the caller's memory.
    steps: AtomicU64,
    failures: [AtomicU64; Failure::CAUSES.len()],
    fallbacks: AtomicU64,
    failed: Mutex<FailedEvents>,
}

/// What answers now.
struct Serving<K: Kind> {
    /// None: the built-in.
    generation: Option<Generation<K>>,
    /// Raised when the memory changes hands; a shard that still has an older number forgets what it holds.
    memory_epoch: u64,
    memory_id: MemoryId,
}

/// Some of the keys. Aligned so that neighbours do not share a cache line.
#[repr(align(128))]
struct Shard<K: Kind> {
    kept: Mutex<Kept<K>>,
    /// Calls of plugins. Only written under the lock, so plain additions do; read by anyone.
    calls: AtomicU64,
}

struct Kept<K: Kind> {
    memory_epoch: u64,
    plugin: Memory<K::Key, K::Memory>,
    /// The built-in's memory has its own form, so it is kept apart.
    builtin: Memory<K::Key, K::Memory>,
}

/// What only changes between calls.
struct Control {
    /// The last number given to a generation that went live.
    last_number: u64,
    /// Whose memory the shards hold, also while the built-in serves.
    memory_id: MemoryId,
    memory_epoch: u64,
    settings: Value,
    last_error: Option<String>,
    rejected: Option<Rejection>,
}

/// Keeps a storm of failures from becoming a storm of events.
struct FailedEvents {
    next: Option<Instant>,
    unreported: u64,
}

/// A slot as an operator sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// The slot's name.
    pub slot: String,
    /// Its kind.
    pub kind: &'static str,
    /// The plugin that serves; none: the built-in.
    pub plugin: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// The generation that serves; 0: the built-in.
    pub generation: u64,
    /// The component that serves.
    pub digest: Option<Digest>,
    /// How it is.
    pub status: Condition,
    /// The last component or configuration that was not taken, until one is.
    pub candidate: Option<Rejection>,
    /// Its configuration.
    pub settings: Value,
    /// Calls of plugins in this slot, all generations.
    pub calls: u64,
    /// Those that failed.
    pub failures: u64,
    /// Calls of the generation that serves.
    pub generation_calls: u64,
    /// Those that failed.
    pub generation_failures: u64,
    /// All failures by cause, where there were any.
    pub failures_by_cause: std::collections::BTreeMap<&'static str, u64>,
    /// Answers by the built-in, or by the failure policy, while a plugin was to serve.
    pub fallbacks: u64,
    /// Keys whose memory is kept.
    pub memory_keys: usize,
    /// Instances that are ready or in use.
    pub instances: usize,
    /// What last went wrong.
    pub last_error: Option<String>,
}

/// How a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// The built-in serves: no plugin is to, or none could be taken.
    Builtin,
    /// A plugin serves.
    Live,
    /// A plugin failed too often and is not asked for a while.
    Quarantined,
    /// A plugin's trial call after a quarantine is under way.
    Probing,
}

impl<K: Kind> Slot<K> {
    pub(crate) fn new(
        name: &str,
        engine: Arc<Engine>,
        events: Events,
        on_failure: OnFailure,
        limits: Limits,
        shards: usize,
        builtin: Box<dyn Builtin<K>>,
    ) -> Slot<K> {
        let keys_max = limits.memory_keys_max / shards;
        Slot(Arc::new(Inner {
            name: name.into(),
            engine,
            events,
            builtin,
            on_failure,
            limits,
            live: ArcSwap::from_pointee(Serving { generation: None, memory_epoch: 0, memory_id: MemoryId::BUILTIN }),
            hasher: RandomState::default(),
            shards: (0..shards)
                .map(|_| {
                    let kept = Kept { memory_epoch: 0, plugin: Memory::new(keys_max), builtin: Memory::new(keys_max) };
                    Shard { kept: Mutex::new(kept), calls: AtomicU64::new(0) }
                })
                .collect(),
            turn: AtomicUsize::new(0),
            control: Mutex::new(Control {
                last_number: 0,
                memory_id: MemoryId::BUILTIN,
                memory_epoch: 0,
                settings: Value::Null,
                last_error: None,
                rejected: None,
            }),
            steps: AtomicU64::new(0),
            failures: Default::default(),
            fallbacks: AtomicU64::new(0),
            failed: Mutex::new(FailedEvents { next: None, unreported: 0 }),
        }))
    }

    pub(crate) fn receiver(&self) -> Arc<dyn Receiver> {
        Arc::clone(&self.0) as Arc<dyn Receiver>
    }

    /// The slot's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The generation that serves now; 0: the built-in.
    pub fn generation(&self) -> u64 {
        self.0.live.load().number()
    }

    /// Answers `request` with the memory that the host keeps for `key`.
    ///
    /// Calls for one key run one after the other. The new memory is kept when the answer is taken, else it stays as it was.
    pub fn decide(&self, key: &K::Key, request: &K::Request) -> K::Answer {
        self.ask(key, request).answer
    }

    /// [`decide`](Self::decide), and who decided.
    pub fn ask(&self, key: &K::Key, request: &K::Request) -> Decision<K> {
        let inner = &*self.0;
        let hash = inner.hasher.hash_one(key);
        // The table inside the shard uses the lowest and the highest bits.
        let at = (hash >> 32) as usize % inner.shards.len();
        let shard = &inner.shards[at];
        let mut kept = shard.lock();
        // Loaded under the shard's lock: a call that runs later on a shard never runs on an older generation.
        let serving = inner.live.load();
        let Some(generation) = &serving.generation else {
            return inner.builtin_decides(&mut kept, hash, key, request, None);
        };
        if kept.memory_epoch != serving.memory_epoch {
            kept.plugin.clear();
            kept.memory_epoch = serving.memory_epoch;
        }
        if !generation.admits() {
            return inner.fail(&mut kept, hash, key, request, None);
        }
        shard.calls.store(shard.calls.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let found = kept.plugin.find(hash, key);
        let (result, turn) = match &found {
            Some(memory) => generation.call(at, request, memory),
            None => generation.call(at, request, &K::Memory::default()),
        };
        if turn != Turn::None {
            inner.turned(generation, turn);
        }
        match result {
            Ok((answer, memory)) => {
                match found {
                    Some(kept) => *kept = memory,
                    None => kept.plugin.add(hash, key.clone(), memory),
                }
                if K::passes(&answer) {
                    return inner.builtin_decides(&mut kept, hash, key, request, None);
                }
                Decision { answer, by: By::Generation(generation.number), failure: None }
            }
            Err(failure) => {
                inner.report(generation, &failure);
                inner.fail(&mut kept, hash, key, request, Some(failure))
            }
        }
    }

    /// One step with a memory that the caller keeps: [`step_from`](Self::step_from) for a caller that knows the memory
    /// to be of the plugin that serves.
    pub fn step(&self, request: &K::Request, memory: &K::Memory) -> Step<K> {
        self.step_in(request, memory, None)
    }

    /// One step with a memory that the caller keeps, and whose it is. A memory of another plugin, or of another
    /// memory-version, is not handed in: the step begins with an empty one, and an event says so.
    pub fn step_from(&self, request: &K::Request, memory: &K::Memory, id: &MemoryId) -> Step<K> {
        self.step_in(request, memory, Some(id))
    }

    fn step_in(&self, request: &K::Request, memory: &K::Memory, id: Option<&MemoryId>) -> Step<K> {
        let inner = &*self.0;
        let serving = inner.live.load();
        let empty;
        let (memory, memory_id) = match id {
            Some(id) if *id != serving.memory_id && serving.generation.is_some() => {
                if *id != MemoryId::BUILTIN {
                    inner.memory_reset(&serving, id);
                }
                empty = K::Memory::default();
                (&empty, &serving.memory_id)
            }
            Some(id) => (memory, id),
            None => (memory, &serving.memory_id),
        };
        let step = |answer, memory, by, failure| Step { answer, memory, memory_id: memory_id.clone(), by, failure };
        let Some(generation) = &serving.generation else {
            // The caller's memory may be a plugin's, to be handed on when it is back: the built-in must not write it.
            if *memory_id != MemoryId::BUILTIN {
                let (answer, _) = inner.builtin.step(request, &K::Memory::default());
                return step(answer, memory.clone(), By::Builtin, None);
            }
            let (answer, memory) = inner.builtin.step(request, memory);
            return step(answer, memory, By::Builtin, None);
        };
        let failure = if generation.admits() {
            inner.steps.fetch_add(1, Ordering::Relaxed);
            let hint = inner.turn.fetch_add(1, Ordering::Relaxed);
            let (result, turn) = generation.call_anywhere(hint, request, memory);
            if turn != Turn::None {
                inner.turned(generation, turn);
            }
            match result {
                Ok((answer, memory)) if K::passes(&answer) => {
                    let (answer, _) = inner.builtin.step(request, &K::Memory::default());
                    return step(answer, memory, By::Builtin, None);
                }
                Ok((answer, memory)) => {
                    return step(answer, memory, By::Generation(generation.number), None);
                }
                Err(failure) => {
                    inner.report(generation, &failure);
                    Some(failure)
                }
            }
        } else {
            None
        };
        inner.fallbacks.fetch_add(1, Ordering::Relaxed);
        let (answer, by) = match inner.policy_answer(request) {
            Some(answer) => (answer, By::Policy),
            None => (inner.builtin.step(request, &K::Memory::default()).0, By::Builtin),
        };
        step(answer, memory.clone(), by, failure)
    }

    /// Counts a failure against `generation` that the caller found while acting on its answer, if it still serves.
    pub fn refused(&self, generation: u64, refusal: Refusal) {
        let inner = &*self.0;
        let serving = inner.live.load();
        let Some(serving) = &serving.generation else {
            return;
        };
        if serving.number == generation {
            let (failure, turn) = serving.blame(Failure::Refused { reason: refusal.0 });
            inner.report(serving, &failure);
            inner.turned(serving, turn);
        }
    }

    /// The slot as an operator sees it.
    pub fn status(&self) -> Status {
        self.0.status()
    }
}

impl<K: Kind> Shard<K> {
    fn lock(&self) -> MutexGuard<'_, Kept<K>> {
        // A panic in a kind's code leaves the tables whole: they are only changed after the call.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Kind> Serving<K> {
    fn number(&self) -> u64 {
        self.generation.as_ref().map_or(0, |generation| generation.number)
    }
}

impl<K: Kind> Inner<K> {
    fn builtin_decides(
        &self,
        kept: &mut Kept<K>,
        hash: u64,
        key: &K::Key,
        request: &K::Request,
        failure: Option<Failure>,
    ) -> Decision<K> {
        let answer = match kept.builtin.find(hash, key) {
            Some(memory) => {
                let (answer, new) = self.builtin.step(request, memory);
                *memory = new;
                answer
            }
            None => {
                let (answer, memory) = self.builtin.step(request, &K::Memory::default());
                kept.builtin.add(hash, key.clone(), memory);
                answer
            }
        };
        Decision { answer, by: By::Builtin, failure }
    }

    /// Answers in place of a plugin that failed, or is not asked.
    #[cold]
    fn fail(
        &self,
        kept: &mut Kept<K>,
        hash: u64,
        key: &K::Key,
        request: &K::Request,
        failure: Option<Failure>,
    ) -> Decision<K> {
        self.fallbacks.fetch_add(1, Ordering::Relaxed);
        match self.policy_answer(request) {
            Some(answer) => Decision { answer, by: By::Policy, failure },
            None => self.builtin_decides(kept, hash, key, request, failure),
        }
    }

    fn policy_answer(&self, request: &K::Request) -> Option<K::Answer> {
        match self.on_failure {
            OnFailure::Fallback => None,
            OnFailure::Open => K::open(request),
            OnFailure::Closed => K::closed(request),
        }
    }

    fn event(&self, generation: Option<&Generation<K>>, change: Change) -> Event {
        Event {
            slot: Some(self.name.to_string()),
            plugin: generation.map(|generation| generation.plugin.name.to_string()),
            generation: generation.map_or(0, |generation| generation.number),
            digest: generation.map(|generation| generation.plugin.digest),
            change,
        }
    }

    #[cold]
    fn report(&self, generation: &Generation<K>, failure: &Failure) {
        self.failures[failure.index()].fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.next.is_some_and(|next| now < next) {
            failed.unreported += 1;
            return;
        }
        let unreported = std::mem::take(&mut failed.unreported);
        failed.next = Some(now + Duration::from_secs(1));
        drop(failed);
        self.control().last_error = Some(failure.to_string());
        let failure = failure.clone();
        self.events.send(self.event(Some(generation), Change::Failed { failure, unreported }));
    }

    #[cold]
    fn turned(&self, generation: &Generation<K>, turn: Turn) {
        let change = match turn {
            Turn::None => return,
            Turn::Recovered => Change::Recovered,
            Turn::Quarantined { pause } => {
                Change::Quarantined { pause_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX) }
            }
        };
        self.events.send(self.event(Some(generation), change));
    }

    #[cold]
    fn memory_reset(&self, serving: &Serving<K>, from: &MemoryId) {
        let change = Change::MemoryReset { from: from.to_string(), to: serving.memory_id.to_string() };
        self.events.send(self.event(serving.generation.as_ref(), change));
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot without its types: what the host hands plugins to.
pub(crate) trait Receiver: Send + Sync {
    fn name(&self) -> &Arc<str>;
    fn kind(&self) -> &'static str;
    /// Takes `plugin` with `settings` if it passes every check: it then serves all calls that begin from now on.
    fn offer(&self, plugin: &Arc<Plugin>, settings: &Value) -> Result<u64, Rejection>;
    /// Lets the built-in serve.
    fn retire(&self, reason: &str);
    /// Configures the built-in.
    fn configure_builtin(&self, settings: &Value) -> Result<(), String>;
    /// Notes a candidate that never came as far as an offer.
    fn reject(&self, rejection: Rejection);
    /// The component that serves.
    fn digest(&self) -> Option<Digest>;
    fn status(&self) -> Status;
}

impl<K: Kind> Receiver for Inner<K> {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn kind(&self) -> &'static str {
        K::NAME
    }

    fn offer(&self, plugin: &Arc<Plugin>, settings: &Value) -> Result<u64, Rejection> {
        let number = self.control().last_number + 1;
        let warmth = {
            let serving = self.live.load();
            serving.generation.as_ref().map_or(1, Generation::warmth)
        };
        let prepared = Generation::prepare(
            number,
            &self.name,
            Arc::clone(plugin),
            Arc::clone(&self.engine),
            settings,
            &self.limits,
            self.shards.len(),
        )
        .and_then(|generation: Generation<K>| {
            generation.warm(warmth)?;
            Ok(generation)
        });
        let generation = match prepared {
            Ok(generation) => generation,
            Err(rejection) => {
                self.reject(rejection.clone());
                return Err(rejection);
            }
        };
        let mut control = self.control();
        let memory_id = plugin.memory_id();
        let former = std::mem::replace(&mut control.memory_id, memory_id.clone());
        if former != memory_id {
            control.memory_epoch += 1;
        }
        let live = self.event(
            Some(&generation),
            Change::Live {
                kind: K::NAME,
                version: plugin.description.version.clone(),
                previous: self.live.load().number(),
            },
        );
        let reset = (former != memory_id && former != MemoryId::BUILTIN).then(|| {
            let change = Change::MemoryReset { from: former.to_string(), to: memory_id.to_string() };
            self.event(Some(&generation), change)
        });
        control.last_number = number;
        control.settings = settings.clone();
        control.rejected = None;
        control.last_error = None;
        let next = Serving { generation: Some(generation), memory_epoch: control.memory_epoch, memory_id };
        // One pointer. Whoever is in the middle of a call ends it where it began; the last of them frees the old one.
        let previous = self.live.swap(Arc::new(next));
        drop(control);
        drop(previous);
        // Where it understands them, the limits that an operator set hold also while the plugin does not answer.
        if settings.as_object().is_some_and(|settings| !settings.is_empty()) {
            let _ = self.builtin.configure(settings);
        }
        self.events.send(live);
        if let Some(reset) = reset {
            self.events.send(reset);
        }
        Ok(number)
    }

    fn retire(&self, reason: &str) {
        let control = self.control();
        let serving = self.live.load_full();
        let Some(generation) = &serving.generation else {
            return;
        };
        let reason = reason.to_owned();
        let event = self.event(Some(generation), Change::Retired { reason });
        let next = Serving { generation: None, memory_epoch: control.memory_epoch, memory_id: MemoryId::BUILTIN };
        // One pointer. Whoever is in the middle of a call ends it where it began; the last of them frees the old one.
        let previous = self.live.swap(Arc::new(next));
        drop(control);
        drop(previous);
        self.events.send(event);
    }

    fn configure_builtin(&self, settings: &Value) -> Result<(), String> {
        self.builtin.configure(settings)?;
        self.control().settings = settings.clone();
        Ok(())
    }

    fn reject(&self, rejection: Rejection) {
        let mut control = self.control();
        control.last_error = Some(rejection.to_string());
        control.rejected = Some(rejection);
    }

    fn digest(&self) -> Option<Digest> {
        let serving = self.live.load();
        serving.generation.as_ref().map(|generation| generation.plugin.digest)
    }

    fn status(&self) -> Status {
        let control = self.control();
        let serving = self.live.load();
        let generation = serving.generation.as_ref();
        let failures = self.failures.each_ref().map(|count| count.load(Ordering::Relaxed));
        let by_cause = Failure::CAUSES.into_iter().zip(failures);
        let calls = self.shards.iter().map(|shard| shard.calls.load(Ordering::Relaxed));
        Status {
            slot: self.name.to_string(),
            kind: K::NAME,
            plugin: generation.map(|generation| generation.plugin.name.to_string()),
            version: generation.map(|generation| generation.plugin.description.version.clone()),
            generation: serving.number(),
            digest: generation.map(|generation| generation.plugin.digest),
            status: match generation.map(Generation::state) {
                None => Condition::Builtin,
                Some(State::Healthy) => Condition::Live,
                Some(State::Quarantined { .. }) => Condition::Quarantined,
                Some(State::Probing { .. }) => Condition::Probing,
            },
            candidate: control.rejected.clone(),
            settings: control.settings.clone(),
            calls: calls.sum::<u64>() + self.steps.load(Ordering::Relaxed),
            failures: failures.iter().sum(),
            generation_calls: generation.map_or(0, Generation::calls),
            generation_failures: generation.map_or(0, Generation::failures),
            failures_by_cause: by_cause.filter(|(_, count)| *count > 0).collect(),
            fallbacks: self.fallbacks.load(Ordering::Relaxed),
            memory_keys: self
                .shards
                .iter()
                // A shard in the middle of a call is left out rather than waited for.
                .filter_map(|shard| shard.kept.try_lock().ok())
                .map(|kept| kept.plugin.len() + kept.builtin.len())
                .sum(),
            instances: generation.map_or(0, Generation::warmth),
            last_error: control.last_error.clone(),
        }
    }
}
