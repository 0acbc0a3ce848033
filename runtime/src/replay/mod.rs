//! Replay: what another component, or another configuration, would have answered to the calls of a journal.
//!
//! Runs on an engine of its own that is deterministic: fuel instead of the clock, NaNs and relaxed SIMD fixed. The same
//! journal, component and configuration give the same answers on any machine. Nothing here touches what serves.

mod budget;
mod compare;
mod explain;
mod report;
mod runner;
mod stepper;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    digest::Digest,
    engine::{Engine, Stop},
    host::HostConfig,
    inspect::KindInfo,
    journal::{Call, GenerationInfo, Reader, Recorded, Source},
    kind::Kind,
    limits::Limits,
};

pub use budget::{Budget, BudgetOutcome, Budgets, UnknownLabel};
use compare::Tally;
pub use explain::{Again, Explanation, Listed, latest};
pub use report::{Example, Fuel, Group, LabelCount, Report, Side};
use runner::{Answered, Runner};
pub use stepper::{Stepped, Stepper};

/// Of so many calls one is timed: reading the clock costs as much as a small step.
const TIMED_EVERY: u64 = 16;

/// Faults of a journal that a report lists; the rest is counted.
const FAULTS_MAX: usize = 100;

/// Which memory a replayed step is handed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryMode {
    /// The one that the recorded call had: each call by itself, comparable one to one.
    Recorded,
    /// Its own, from the default on, key by key: how it would have gone on.
    Own,
}

/// How to replay.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The candidate's configuration; none: the recorded one of each generation, and `{}` where that is another plugin's.
    pub settings: Option<Value>,
    /// Which memory; none: the recorded one where it is of the same plugin and memory-version, or of an older one that the
    /// component can take over, else its own.
    pub memory: Option<MemoryMode>,
    /// Examples of each group of changed answers.
    pub examples: usize,
    /// What may change.
    pub budgets: Budgets,
    /// What the components may use; none: what a plugin might in the recorded slot, where the journal says it, else the
    /// most that a replay has room for, and the fuel of [`Limits`]. The clock stops nothing here, whatever it says.
    pub limits: Option<Limits>,
}

impl Default for Options {
    fn default() -> Options {
        Options { settings: None, memory: None, examples: 3, budgets: Budgets::default(), limits: None }
    }
}

impl Options {
    /// What components may use that are run over `source`; none: nobody said.
    pub fn limits_for(&self, source: &Source) -> Option<Limits> {
        self.limits.clone().or_else(|| source.limits())
    }
}

/// What the candidate's answers are compared with.
pub enum Against<'a> {
    /// The recorded answers. Where this finds the bytes of a recorded component, that is run again beside the candidate:
    /// for what it costs, and to see that it answers as it did.
    Journal(&'a dyn Fn(Digest) -> Option<Vec<u8>>),
    /// The answers of this component, run on the same calls.
    Component(&'a [u8]),
}

/// Replays journals of kind `K`.
pub struct Replay<K: Kind> {
    engine: Arc<Engine>,
    kinds: Vec<Arc<KindInfo>>,
    kind: std::marker::PhantomData<fn() -> K>,
}

impl<K: Kind> Replay<K> {
    /// Works in `scratch`, a directory of its own: compiled code is kept there.
    ///
    /// Errors: the directory cannot be written, or the machine has no room for an engine.
    pub fn new(scratch: &Path) -> anyhow::Result<Replay<K>> {
        Replay::with_room(scratch, &Limits::default())
    }

    /// [`new`](Self::new), with room for the memory that `limits` allow.
    pub fn with_room(scratch: &Path, limits: &Limits) -> anyhow::Result<Replay<K>> {
        let mut config = HostConfig::new(scratch.join("plugins"), scratch.join("state"));
        config.instance_memory_max_bytes = config.instance_memory_max_bytes.max(limits.memory_max_bytes);
        config.instances_max = 64;
        let engine = Arc::new(Engine::with(&config, Stop::Fuel)?);
        Ok(Replay { engine, kinds: vec![Arc::new(KindInfo::of::<K>()?)], kind: std::marker::PhantomData })
    }

    /// Runs `candidate` over the calls of `source`.
    ///
    /// Errors: the journal is of another kind; a component is not taken, or does not take its configuration; a budget
    /// names an answer that there is none of.
    pub fn run(
        &self,
        source: &Source,
        candidate: &[u8],
        against: Against<'_>,
        options: &Options,
    ) -> anyhow::Result<Report> {
        options.budgets.check_labels(K::labels())?;
        let mut reader = Reader::<K>::new(source)?;
        let limits = options.limits_for(source);
        let mut candidate = self.runner(candidate, limits.as_ref()).context("the candidate")?;
        let mut other = match against {
            Against::Journal(bytes_of) => Other::Journal { bytes_of, runners: HashMap::new() },
            Against::Component(bytes) => Other::Component(Box::new(
                self.runner(bytes, limits.as_ref()).context("the component to compare with")?,
            )),
        };
        let mut tally = Tally::<K>::new(options.examples);
        let mut faults = Vec::new();
        let mut faults_total = 0;
        let mut undescribed = 0;
        let mut modes = [0_u64; 2];
        let (mut candidate_cost, mut other_cost) = (Cost::default(), Cost::default());
        let mut unfaithful = 0;
        for item in &mut reader {
            let call = match item {
                Ok(call) => call,
                Err(fault) => {
                    faults_total += 1;
                    if faults.len() < FAULTS_MAX {
                        faults.push(fault);
                    }
                    continue;
                }
            };
            let Some(about) = &call.about else {
                undescribed += 1;
                continue;
            };
            let is_timed = candidate_cost.calls.is_multiple_of(TIMED_EVERY);
            let mode = candidate.mode(about, options.memory);
            modes[mode as usize] += 1;
            candidate.sit(about, options.settings.as_ref()).context("the candidate")?;
            let after = candidate_cost.step(&mut candidate, mode, is_timed, about, &call);
            let recorded;
            let ran;
            let before = match &mut other {
                Other::Component(runner) => {
                    let mode = runner.mode(about, options.memory);
                    runner.sit(about, None).context("the component to compare with")?;
                    ran = other_cost.step(runner, mode, is_timed, about, &call);
                    as_ref::<K>(&ran)
                }
                Other::Journal { bytes_of, runners } => {
                    let runner = match runners.entry(about.digest) {
                        std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                        std::collections::hash_map::Entry::Vacant(entry) => {
                            let bytes = bytes_of(about.digest);
                            let runner = bytes.map(|bytes| self.runner(&bytes, limits.as_ref()));
                            entry.insert(runner.transpose().context("the recorded component")?)
                        }
                    };
                    recorded = recorded_answer(&call);
                    if let Some(runner) = runner {
                        runner.sit(about, None).context("the recorded component")?;
                        let again = other_cost.step(runner, MemoryMode::Recorded, is_timed, about, &call);
                        // One that was stopped by the clock may well answer here.
                        unfaithful += u64::from(recorded.is_ok() && !is_same::<K>(recorded, as_ref::<K>(&again)));
                    }
                    recorded
                }
            };
            tally.add(&call, before, as_ref::<K>(&after));
        }
        let summary = reader.summary().clone();
        let against = match &other {
            Other::Component(runner) => Some(runner.side()),
            Other::Journal { .. } => None,
        };
        let is_rerun = against.is_none() && other_cost.calls > 0;
        let memory = match modes {
            [_, 0] => report::Memory::Recorded,
            [0, _] => report::Memory::Own,
            _ => report::Memory::Both,
        };
        let tally = tally.finish();
        let known = tally.labels.keys().map(String::as_str);
        options.budgets.check_seen(K::labels().is_empty().then(|| known.collect::<Vec<_>>()).as_deref())?;
        Ok(Report {
            slot: source.about().slot.clone(),
            kind: source.about().kind.clone(),
            candidate: candidate.side(),
            against,
            memory,
            memories_upgraded: candidate.migrated().0,
            memories_lost: candidate.migrated().1,
            limits,
            budgets: options.budgets.judge(tally.calls, tally.changed, &tally.labels),
            calls: tally.calls,
            changed: tally.changed,
            labels: tally.labels,
            groups: tally.groups,
            failures: tally.failures,
            fuel: Fuel::of(candidate_cost.fuel_a_call(), other_cost.fuel_a_call()),
            candidate_ns: candidate_cost.ns_a_call(),
            against_ns: other_cost.ns_a_call(),
            unfaithful: is_rerun.then_some(unfaithful),
            undescribed,
            faults,
            faults_total,
            journal: summary,
        })
    }

    /// Errors: the component is not taken, or there is no room for what `limits` allow.
    fn runner(&self, bytes: &[u8], limits: Option<&Limits>) -> anyhow::Result<Runner<K>> {
        let widest = self.engine.widest_limits();
        let limits = limits.cloned().unwrap_or_else(|| widest.clone());
        limits.check().map_err(anyhow::Error::msg)?;
        let (wanted, room) = (limits.memory_max_bytes, widest.memory_max_bytes);
        anyhow::ensure!(wanted <= room, "memory_max_bytes is {wanted}, there is room for {room}");
        Ok(Runner::new(Arc::clone(&self.engine), &self.kinds, bytes, limits)?)
    }
}

enum Other<'a, K: Kind> {
    Journal { bytes_of: &'a dyn Fn(Digest) -> Option<Vec<u8>>, runners: HashMap<Digest, Option<Runner<K>>> },
    Component(Box<Runner<K>>),
}

/// What the calls of one component cost.
#[derive(Default)]
struct Cost {
    calls: u64,
    fuel: u64,
    timed: u64,
    time: Duration,
}

impl Cost {
    fn step<K: Kind>(
        &mut self,
        runner: &mut Runner<K>,
        mode: MemoryMode,
        is_timed: bool,
        about: &GenerationInfo,
        call: &Call<K>,
    ) -> Answered<K> {
        let started = is_timed.then(Instant::now);
        let (answered, fuel) = match mode {
            MemoryMode::Recorded => runner.step_from(about, &call.request, &call.before),
            MemoryMode::Own => runner.step_on(&call.key, &call.request),
        };
        if let Some(started) = started {
            self.time += started.elapsed();
            self.timed += 1;
        }
        self.calls += 1;
        self.fuel += fuel;
        answered
    }

    fn fuel_a_call(&self) -> Option<f64> {
        (self.calls > 0).then(|| self.fuel as f64 / self.calls as f64)
    }

    fn ns_a_call(&self) -> Option<u64> {
        let timed = u128::from(self.timed);
        (timed > 0).then(|| u64::try_from(self.time.as_nanos() / timed).unwrap_or(u64::MAX))
    }
}

/// An answer, or the cause of a failure.
type Answer<'a, K> = Result<&'a <K as Kind>::Answer, &'a str>;

fn as_ref<K: Kind>(answered: &Answered<K>) -> Answer<'_, K> {
    match answered {
        Ok((answer, _)) => Ok(answer),
        Err(failed) => Err(failed.cause),
    }
}

fn recorded_answer<K: Kind>(call: &Call<K>) -> Answer<'_, K> {
    match &call.outcome {
        Recorded::Answered { answer, .. } => Ok(answer),
        Recorded::Failed { cause, .. } => Err(cause),
    }
}

/// Whether two answers are the same. Failures are, whatever their cause: what stops a call differs between engines.
fn is_same<K: Kind>(before: Answer<'_, K>, after: Answer<'_, K>) -> bool {
    match (before, after) {
        (Ok(before), Ok(after)) => before == after,
        (Err(_), Err(_)) => true,
        _ => false,
    }
}

/// A value of a kind as JSON, to be shown and compared by field.
fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_else(|error| Value::String(format!("cannot be shown: {error}")))
}

/// By cause.
type Causes = BTreeMap<String, u64>;
/// A generation as the journal describes it.
type About = Arc<GenerationInfo>;
