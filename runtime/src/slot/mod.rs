//! A slot: the place where one plugin of a kind serves. The only place where erased ([`Receiver`]) meets typed.
//!
//! Here is what a call does; [`step`] has those whose memory the caller keeps, [`memories`] what happens to memories of
//! another version, [`recording`] takes calls to the journal; [`offer`] looks candidates over, [`control`] changes
//! who answers, [`status`] says how things are. [`receiver`] is all of it without types, for the host.

mod control;
mod memories;
mod offer;
mod receiver;
mod recording;
mod status;
mod step;

use std::{
    hash::BuildHasher as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use foldhash::quality::RandomState;
use serde::Serialize;
use serde_json::Value;

pub(crate) use self::receiver::{How, News, Receiver};
pub use self::recording::JournalStatus;
pub use self::status::{Condition, GenerationStatus, Role, Status};
pub use self::step::Step;
use self::{control::Control, recording::Recording, step::Steps};
use crate::{
    engine::Engine,
    event::{Change, Event, Events},
    generation::Generation,
    health::Turn,
    journal::{self, Outcome, RecordId, Recorder},
    kind::Kind,
    limits::{Failure, Limits, OnFailure, PluginConfig, Refusal},
    load::MemoryId,
    memory::{Memory, Remembered},
    rollout::{Input, Rollout},
    shadow::{Shadow, Waiting},
};

/// Where one plugin of kind `K` serves. A cheap handle.
///
/// Asking it cannot fail: when no plugin serves, or the one that does fails, the one before or the built-in answers.
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
    /// Where the call stands in the slot's journal, if it was recorded.
    pub record: Option<RecordId>,
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

/// What a slot has of its host.
pub(crate) struct Surroundings {
    pub(crate) engine: Arc<Engine>,
    pub(crate) events: Events,
    pub(crate) shards: usize,
    /// Wakes the thread that looks after trials, probations and journals.
    pub(crate) wake: mpsc::Sender<()>,
}

struct Inner<K: Kind> {
    name: Arc<str>,
    engine: Arc<Engine>,
    events: Events,
    builtin: Box<dyn Builtin<K>>,
    on_failure: OnFailure,
    limits: Limits,
    rollout: Rollout,
    live: ArcSwap<Serving<K>>,
    /// One whose every bit depends on all of the key: shares of the keys, and shards, are taken from parts of the hash.
    hasher: RandomState,
    shards: Box<[Shard<K>]>,
    /// Spreads callers without a key over the benches.
    turn: AtomicUsize,
    /// What is kept of calls whose memory is the caller's.
    steps: Mutex<Steps<K>>,
    recording: Mutex<Recording>,
    /// The share of keys that is recorded, as the bits of a float.
    sample: AtomicU64,
    control: Mutex<Control<K>>,
    /// Whose memories there are; a memory's form is its place here.
    forms: Mutex<Vec<MemoryId>>,
    counts: Counts,
    failed: Mutex<FailedEvents>,
    /// Wakes the host's thread that looks after trials and probations.
    wake: mpsc::Sender<()>,
}

/// What a slot counts over all generations.
#[derive(Default)]
struct Counts {
    /// Calls of plugins with the caller's memory.
    steps: AtomicU64,
    failures: [AtomicU64; Failure::CAUSES.len()],
    /// Calls answered by the built-in, or openly or closed, in place of a plugin.
    fallbacks: AtomicU64,
    /// Calls answered by another generation than the one that failed.
    rescues: AtomicU64,
    /// Memories that a generation could not read, and that began anew.
    memories_lost: AtomicU64,
}

/// What answers now.
struct Serving<K: Kind> {
    /// None: the built-in.
    live: Option<Arc<Generation<K>>>,
    /// Kept warm: answers what the live one fails.
    previous: Option<Arc<Generation<K>>>,
    /// Answers keys whose hash, in 100ths of its range, lies below.
    canary: Option<(Arc<Generation<K>>, u8)>,
    shadow: Option<Arc<Shadow<K>>>,
    /// One that went back, as long as an older form is written: it knows how to turn the memories that it left.
    gone_back: Option<Arc<Generation<K>>>,
    /// What answers instead as soon as the flag is up: so several slots switch at one instant.
    then: Option<(Arc<AtomicBool>, Arc<Serving<K>>)>,
}

/// Some of the keys. Aligned so that neighbours do not share a cache line.
#[repr(align(128))]
struct Shard<K: Kind> {
    kept: Mutex<Kept<K>>,
    /// Calls of plugins. Only written under the lock, so plain additions do; read by anyone.
    calls: AtomicU64,
}

struct Kept<K: Kind> {
    plugin: Memory<K::Key, K::Memory>,
    /// The built-in's memory has its own form, so it is kept apart.
    builtin: Memory<K::Key, K::Memory>,
    /// Calls that wait for the shadow.
    waiting: Waiting<K>,
    /// Calls that wait to be written, where they are recorded.
    recorder: Option<Recorder<K>>,
}

/// Keeps a storm of failures from becoming a storm of events.
struct FailedEvents {
    next: Option<Instant>,
    unreported: u64,
}

/// A key and what belongs to its call.
struct Asked<'a, K: Kind> {
    at: usize,
    hash: u64,
    key: &'a K::Key,
    request: &'a K::Request,
}

impl<K: Kind> Slot<K> {
    pub(crate) fn new(name: &str, host: Surroundings, config: &PluginConfig, builtin: Box<dyn Builtin<K>>) -> Slot<K> {
        let Surroundings { engine, events, shards, wake } = host;
        let keys_max = config.limits.memory_keys_max / shards;
        let shard = |_| {
            let (plugin, builtin) = (Memory::new(keys_max), Memory::new(keys_max));
            let kept = Kept { plugin, builtin, waiting: Waiting::default(), recorder: None };
            Shard { kept: Mutex::new(kept), calls: AtomicU64::new(0) }
        };
        Slot(Arc::new(Inner {
            name: name.into(),
            engine,
            events,
            builtin,
            on_failure: config.on_failure,
            limits: config.limits.clone(),
            rollout: config.rollout.clone(),
            live: ArcSwap::from_pointee(Serving::default()),
            hasher: RandomState::default(),
            shards: (0..shards).map(shard).collect(),
            turn: AtomicUsize::new(0),
            steps: Mutex::new(Steps { waiting: Waiting::default(), recorder: None, recorded: None }),
            recording: Mutex::default(),
            sample: AtomicU64::new(0_f64.to_bits()),
            control: Mutex::new(Control::new(config.probation.clone())),
            forms: Mutex::new(vec![MemoryId::BUILTIN]),
            counts: Counts::default(),
            failed: Mutex::new(FailedEvents { next: None, unreported: 0 }),
            wake,
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
        self.0.live.load().now().number()
    }

    /// Whether a plugin can be asked now: one serves, and is not left alone for a while as a whole.
    pub fn is_attended(&self) -> bool {
        let serving = self.0.live.load();
        let serving = serving.now();
        let Some(live) = &serving.live else { return false };
        !live.is_resting() || serving.previous.as_ref().is_some_and(|previous| !previous.is_resting())
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
        let asked = Asked { at, hash, key, request };
        let mut kept = shard.lock();
        // Loaded under the shard's lock: a call that runs later on a shard never runs on an older generation.
        let serving = inner.live.load();
        let serving = serving.now();
        let Some(generation) = serving.chosen(hash) else {
            return inner.builtin_decides(serving, &mut kept, &asked, None);
        };
        if !generation.admits(request) {
            return inner.stand_in(serving, generation, &mut kept, &asked, None);
        }
        shard.calls.store(shard.calls.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        match inner.remembering(serving, generation, &mut kept, &asked) {
            Ok((answer, record)) => {
                if K::passes(&answer) {
                    return Decision { record, ..inner.builtin_decides(serving, &mut kept, &asked, None) };
                }
                Decision { answer, by: By::Generation(generation.number), failure: None, record }
            }
            Err(failure) => inner.stand_in(serving, generation, &mut kept, &asked, Some(failure)),
        }
    }

    /// Counts a failure against `generation` that the caller found while acting on its answer, if it still serves.
    pub fn refused(&self, generation: u64, refusal: Refusal) {
        let inner = &*self.0;
        let serving = inner.live.load();
        let serving = serving.now();
        let canary = serving.canary.as_ref().map(|(canary, _)| canary);
        let found = [serving.live.as_ref(), canary].into_iter().flatten().find(|serves| serves.number == generation);
        if let Some(serves) = found {
            let (failure, turn) = serves.blame(Failure::Refused { reason: refusal.0 }, None);
            inner.report(serves, &failure);
            inner.turned(serves, turn);
        }
    }

    /// The slot as an operator sees it.
    pub fn status(&self) -> Status {
        Receiver::status(&*self.0)
    }
}

impl<K: Kind> Shard<K> {
    fn lock(&self) -> MutexGuard<'_, Kept<K>> {
        // A panic in a kind's code leaves the tables whole: they are only changed after the call.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Kind> Default for Serving<K> {
    fn default() -> Serving<K> {
        Serving { live: None, previous: None, canary: None, shadow: None, gone_back: None, then: None }
    }
}

impl<K: Kind> Serving<K> {
    /// What answers at this instant.
    fn now(&self) -> &Serving<K> {
        match &self.then {
            Some((flag, next)) if flag.load(Ordering::Acquire) => next,
            _ => self,
        }
    }

    fn number(&self) -> u64 {
        self.live.as_ref().map_or(0, |generation| generation.number)
    }

    /// Who answers a key with this hash; none: the built-in.
    fn chosen(&self, hash: u64) -> Option<&Arc<Generation<K>>> {
        if let Some((canary, percent)) = &self.canary
            && ((hash & 0xffff_ffff) * 100) >> 32 < u64::from(*percent)
        {
            return Some(canary);
        }
        self.live.as_ref()
    }

    /// Who answers what `generation` failed: the live one for a canary, the one before for the live one.
    fn other(&self, generation: &Arc<Generation<K>>) -> Option<&Arc<Generation<K>>> {
        let live = self.live.as_ref()?;
        if live.number == generation.number { self.previous.as_ref() } else { Some(live) }
    }
}

impl<K: Kind> Inner<K> {
    /// One call of `generation` with the memory that is kept for the key, which advances if it succeeds. A failure is
    /// reported.
    fn remembering(
        &self,
        serving: &Serving<K>,
        generation: &Arc<Generation<K>>,
        kept: &mut Kept<K>,
        asked: &Asked<'_, K>,
    ) -> Result<(K::Answer, Option<RecordId>), Failure> {
        let Kept { plugin, waiting, recorder, .. } = kept;
        let found = plugin.find(asked.hash, asked.key);
        // Kept only with the answer: whoever stands in after a failure finds the memory in the form that it had.
        let mut adopted = found
            .as_deref()
            .filter(|found| found.form != generation.form)
            .map(|found| self.adopt(asked.at, serving, generation, &self.form(found.form), &found.memory));
        if let Some(adopted) = &mut adopted
            && let Some(lost) = adopted.lost.take_if(|lost| Self::must_read(generation, lost))
        {
            return Err(self.cannot_read(generation, lost));
        }
        let none = K::Memory::default();
        let (memory, form, mut journaled) = match (&adopted, &found) {
            (Some(adopted), _) => (&adopted.memory, generation.form, 0),
            (None, Some(found)) => (&found.memory, generation.form, found.epoch),
            (None, None) => (&none, 0, 0),
        };
        let before = serving.shadow.is_some().then(|| Remembered { memory: memory.clone(), form, epoch: 0 });
        let (result, turn) = generation.call(asked.at, asked.request, memory);
        if turn != Turn::None {
            self.turned(generation, turn);
        }
        let mut record = None;
        if let Some(recorder) = recorder.as_mut().filter(|_| journal::sampled(asked.hash, self.sample())) {
            let outcome = match &result {
                Ok((answer, memory)) => Outcome::Answered { answer, memory },
                Err(failure) => Outcome::Failed(failure),
            };
            record = recorder.record(generation.number, asked.key, &mut journaled, asked.request, memory, outcome);
        }
        let (answer, memory) = match result {
            Ok(answered) => answered,
            Err(failure) => {
                if let Some(found) = found {
                    // Where it was adopted, the journal holds another memory than the one that stays.
                    found.epoch = if adopted.is_none() { journaled } else { 0 };
                }
                self.report(generation, &failure);
                return Err(failure);
            }
        };
        if let Some(lost) = adopted.and_then(|adopted| adopted.lost) {
            self.memory_lost(generation, lost);
        }
        let kept = Remembered { memory, form: generation.form, epoch: journaled };
        match found {
            Some(found) => *found = kept,
            None => drop(plugin.add(asked.hash, asked.key.clone(), kept)),
        }
        if let Some(before) = before {
            tap(serving, waiting, asked, before, &answer, false);
        }
        Ok((answer, record))
    }

    fn builtin_decides(
        &self,
        serving: &Serving<K>,
        kept: &mut Kept<K>,
        asked: &Asked<'_, K>,
        failure: Option<Failure>,
    ) -> Decision<K> {
        let Kept { plugin, builtin, waiting, recorder } = kept;
        let found = builtin.find(asked.hash, asked.key);
        let before = found.as_ref().map(|kept| kept.memory.clone()).unwrap_or_default();
        let (answer, memory) = self.builtin.step(asked.request, &before);
        let mut record = None;
        // What a plugin was asked first has been recorded as its call.
        if serving.live.is_none() {
            if let Some(recorder) = recorder.as_mut().filter(|_| journal::sampled(asked.hash, self.sample())) {
                let outcome = Outcome::Answered { answer: &answer, memory: &memory };
                record = recorder.record(0, asked.key, &mut 0, asked.request, &before, outcome);
                // The memory that was recorded last for this key is no longer the plugin's.
                if let Some(kept) = plugin.find(asked.hash, asked.key) {
                    kept.epoch = 0;
                }
            }
            if serving.shadow.is_some() {
                tap(serving, waiting, asked, Remembered::default(), &answer, true);
            }
        }
        match found {
            Some(found) => found.memory = memory,
            None => {
                builtin.add(asked.hash, asked.key.clone(), Remembered { memory, form: 0, epoch: 0 });
            }
        }
        Decision { answer, by: By::Builtin, failure, record }
    }

    /// Answers in place of a generation that failed, or is not asked: the one beside it, else as the slot is set.
    #[cold]
    fn stand_in(
        &self,
        serving: &Serving<K>,
        failed: &Arc<Generation<K>>,
        kept: &mut Kept<K>,
        asked: &Asked<'_, K>,
        mut failure: Option<Failure>,
    ) -> Decision<K> {
        if let Some(other) = serving.other(failed)
            && other.admits(asked.request)
        {
            match self.remembering(serving, other, kept, asked) {
                Ok((answer, record)) if !K::passes(&answer) => {
                    self.counts.rescues.fetch_add(1, Ordering::Relaxed);
                    return Decision { answer, by: By::Generation(other.number), failure, record };
                }
                Ok(_) => return self.builtin_decides(serving, kept, asked, failure),
                Err(also) => {
                    failure.get_or_insert(also);
                }
            }
        }
        self.counts.fallbacks.fetch_add(1, Ordering::Relaxed);
        match self.policy_answer(asked.request) {
            Some(answer) => Decision { answer, by: By::Policy, failure, record: None },
            None => self.builtin_decides(serving, kept, asked, failure),
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
        self.counts.failures[failure.index()].fetch_add(1, Ordering::Relaxed);
        // First of all: whoever did this may have to go.
        let _ = self.happens(Input::Failed { generation: generation.number });
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
        let ms = |pause: Duration| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        let change = match turn {
            Turn::None => return,
            Turn::Recovered => Change::Recovered,
            Turn::Quarantined { pause } => Change::Quarantined { pause_ms: ms(pause) },
            Turn::SetAside { subject, pause } => Change::SetAside { subject, pause_ms: ms(pause) },
        };
        self.events.send(self.event(Some(generation), change));
    }

    fn steps(&self) -> MutexGuard<'_, Steps<K>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn control(&self) -> MutexGuard<'_, Control<K>> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps an answered call for the shadow.
fn tap<K: Kind>(
    serving: &Serving<K>,
    waiting: &mut Waiting<K>,
    asked: &Asked<'_, K>,
    before: Remembered<K::Memory>,
    answer: &K::Answer,
    by_builtin: bool,
) {
    if let Some(shadow) = &serving.shadow {
        let key = Some((asked.hash, asked.key.clone()));
        waiting.add(shadow, key, asked.request, before, answer, by_builtin);
    }
}
