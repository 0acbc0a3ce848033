//! A candidate beside the live generation: it is asked what the live one was asked, off the answering path, and its
//! answers are compared. It decides nothing.

use std::collections::BTreeMap;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use serde::Serialize;
use serde_json::Value;

use crate::{
    differ::differences,
    generation::Generation,
    kind::Kind,
    limits::Failure,
    memory::{Memory, Remembered},
    rollout::Evidence,
};

/// Calls that wait in one shard to be given to the candidate; more are dropped and counted.
pub(crate) const WAITING_MAX: usize = 1_024;
/// Kept examples of one group.
const EXAMPLES_MAX: usize = 5;
/// Groups that are told apart.
const GROUPS_MAX: usize = 256;

/// Calls of one shard that wait for the candidate.
pub(crate) struct Waiting<K: Kind> {
    calls: Vec<Call<K>>,
    /// Raised when a call is dropped: from then on the candidate's memories of this shard are behind, and begin anew
    /// from the live generation's.
    epoch: u32,
}

impl<K: Kind> Default for Waiting<K> {
    fn default() -> Waiting<K> {
        Waiting { calls: Vec::new(), epoch: 1 }
    }
}

impl<K: Kind> Waiting<K> {
    /// Keeps a call for `shadow`, if there is room.
    pub(crate) fn add(
        &mut self,
        shadow: &Shadow<K>,
        key: Option<(u64, K::Key)>,
        request: &K::Request,
        before: Remembered<K::Memory>,
        answer: &K::Answer,
        by_builtin: bool,
    ) {
        if self.calls.len() >= WAITING_MAX {
            self.epoch = self.epoch.wrapping_add(1).max(1);
            shadow.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.calls.push(Call {
            shadow: shadow.generation.number,
            epoch: self.epoch,
            key,
            request: request.clone(),
            before,
            answer: answer.clone(),
            by_builtin,
        });
    }

    /// Takes the calls, and leaves an empty list with room for as many.
    pub(crate) fn take(&mut self, into: &mut Vec<Call<K>>) {
        std::mem::swap(&mut self.calls, into);
    }
}

/// One call that the live generation has answered.
pub(crate) struct Call<K: Kind> {
    /// The candidate that it is for.
    pub(crate) shadow: u64,
    epoch: u32,
    /// None where the caller keeps the memory.
    pub(crate) key: Option<(u64, K::Key)>,
    pub(crate) request: K::Request,
    /// What the live generation was given.
    pub(crate) before: Remembered<K::Memory>,
    pub(crate) answer: K::Answer,
    /// Whether the built-in gave it: a candidate that has no opinion then agrees.
    pub(crate) by_builtin: bool,
}

/// What a shadow has shown so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Divergence {
    /// The candidate.
    pub generation: u64,
    /// Answers that were compared.
    pub compared: u64,
    /// Of those, how many differ in what they decide: what counts against the candidate.
    pub divergent: u64,
    /// How many decide the same and differ in fields only, where the kind tells the two apart.
    pub differing_fields: u64,
    /// Calls that the candidate failed; each counts as one that differs.
    pub failures: u64,
    /// Of those compared, the calls that it made with a memory of its own, and not with the one that the live generation had.
    pub by_own_memory: u64,
    /// Calls that it was not given, since it was too slow for them.
    pub dropped: u64,
    /// The differences of either sort, most frequent first.
    pub groups: Vec<Group>,
}

/// Answers that differ in the same way.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Group {
    /// The requests' class.
    pub class: String,
    /// What the live generation answered, in one word.
    pub live: String,
    /// What the candidate did; `failed` where it failed.
    pub candidate: String,
    /// How many.
    pub count: u64,
    /// How many keys they concern; at least this many.
    pub keys: u64,
    /// In how many answers each field differs, by its path.
    pub fields: BTreeMap<String, u64>,
    /// Some of them.
    pub examples: Vec<Example>,
}

/// Two answers to one request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    /// The key; null where the caller keeps the memory.
    pub key: Value,
    /// What was asked.
    pub request: Value,
    /// What the live generation answered.
    pub live: Value,
    /// What the candidate answered, or why it failed.
    pub candidate: Value,
}

/// A candidate in the shadow of a slot.
pub(crate) struct Shadow<K: Kind> {
    pub(crate) generation: Arc<Generation<K>>,
    dropped: AtomicU64,
    seen: Mutex<Seen<K>>,
}

struct Seen<K: Kind> {
    /// The candidate's own memory; it advances beside the live one's.
    memory: Memory<K::Key, K::Memory>,
    own: Option<(K::Memory, u32)>,
    compared: u64,
    divergent: u64,
    differing_fields: u64,
    by_own_memory: u64,
    failures: u64,
    groups: BTreeMap<(&'static str, &'static str, &'static str), Collected>,
}

#[derive(Default)]
struct Collected {
    group: Group,
    /// Hashes of the keys, as many as are worth counting.
    keys: std::collections::HashSet<u64>,
}

impl<K: Kind> Shadow<K> {
    pub(crate) fn new(generation: Arc<Generation<K>>, keys_max: usize) -> Shadow<K> {
        let seen = Seen {
            memory: Memory::new(keys_max),
            own: None,
            compared: 0,
            divergent: 0,
            differing_fields: 0,
            by_own_memory: 0,
            failures: 0,
            groups: BTreeMap::new(),
        };
        Shadow { generation, dropped: AtomicU64::new(0), seen: Mutex::new(seen) }
    }

    /// Gives the candidate one call. `adopt` makes the live generation's memory one that the candidate can read, or says why
    /// the candidate fails without it; it is asked when the candidate has none of its own for the key yet, and always where
    /// the kind steers and the candidate can read the live memory, `reads`. Answers whether the candidate failed.
    pub(crate) fn compare(
        &self,
        call: &Call<K>,
        reads: bool,
        adopt: impl FnOnce(&Remembered<K::Memory>) -> Result<K::Memory, Failure>,
    ) -> bool {
        let seen = &mut *self.seen();
        let known = match &call.key {
            Some((hash, key)) => {
                let found = seen.memory.find(*hash, key).filter(|kept| kept.epoch == call.epoch);
                found.map(|kept| kept.memory.clone())
            }
            None if K::STEERS && reads => None,
            None => seen.own.as_ref().filter(|(_, epoch)| *epoch == call.epoch).map(|(memory, _)| memory.clone()),
        };
        let hint = call.key.as_ref().map_or(0, |(hash, _)| *hash as usize);
        seen.by_own_memory += u64::from(known.is_some() || !reads);
        let before = known.map_or_else(|| adopt(&call.before), Ok);
        let result = before.and_then(|before| self.generation.call_anywhere(hint, &call.request, &before).0);
        seen.compared += 1;
        let failed = result.is_err();
        let candidate = match result {
            Ok((answer, memory)) => {
                match &call.key {
                    Some((hash, key)) => match seen.memory.find(*hash, key) {
                        Some(kept) => (kept.memory, kept.epoch) = (memory, call.epoch),
                        None => {
                            let kept = Remembered { memory, form: self.generation.form, epoch: call.epoch };
                            seen.memory.add(*hash, key.clone(), kept);
                        }
                    },
                    None => seen.own = Some((memory, call.epoch)),
                }
                if answer == call.answer || (call.by_builtin && K::passes(&answer)) {
                    return false;
                }
                Ok(answer)
            }
            Err(failure) => {
                seen.failures += 1;
                Err(failure)
            }
        };
        match &candidate {
            Ok(answer) if !K::diverges(&call.answer, answer) => seen.differing_fields += 1,
            _ => seen.divergent += 1,
        }
        seen.note(call, candidate);
        failed
    }

    pub(crate) fn evidence(&self, live: (u64, u64)) -> Evidence {
        let seen = self.seen();
        let times = self.generation.times();
        Evidence {
            calls: seen.compared,
            divergent: seen.divergent,
            failures: seen.failures,
            slowdown: Evidence::slowdown_of((times.p99_ns, times.timed), live),
        }
    }

    /// The counts without the groups.
    pub(crate) fn counts(&self) -> Divergence {
        let seen = self.seen();
        Divergence {
            generation: self.generation.number,
            compared: seen.compared,
            divergent: seen.divergent,
            differing_fields: seen.differing_fields,
            by_own_memory: seen.by_own_memory,
            failures: seen.failures,
            dropped: self.dropped.load(Ordering::Relaxed),
            groups: Vec::new(),
        }
    }

    pub(crate) fn divergence(&self) -> Divergence {
        let counts = self.counts();
        let seen = self.seen();
        let group = |collected: &Collected| Group { keys: collected.keys.len() as u64, ..collected.group.clone() };
        let mut groups: Vec<Group> = seen.groups.values().map(group).collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.count));
        Divergence { groups, ..counts }
    }

    fn seen(&self) -> MutexGuard<'_, Seen<K>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Kind> Seen<K> {
    #[cold]
    fn note(&mut self, call: &Call<K>, candidate: Result<K::Answer, Failure>) {
        let live = K::label(&call.answer);
        let label = candidate.as_ref().map_or("failed", K::label);
        let place = (K::class(&call.request), live, label);
        if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(&place) {
            return;
        }
        let collected = self.groups.entry(place).or_default();
        if let Some((hash, _)) = &call.key
            && collected.keys.len() < 10_000
        {
            collected.keys.insert(*hash);
        }
        let group = &mut collected.group;
        (group.class, group.live, group.candidate) = (place.0.into(), live.into(), label.into());
        group.count += 1;
        let before = json(&call.answer);
        let after = match &candidate {
            Ok(answer) => json(answer),
            Err(failure) => Value::String(failure.to_string()),
        };
        for path in differences(&before, &after) {
            *group.fields.entry(path).or_default() += 1;
        }
        if group.examples.len() < EXAMPLES_MAX {
            let key = call.key.as_ref().map_or(Value::Null, |(_, key)| json(key));
            group.examples.push(Example { key, request: json(&call.request), live: before, candidate: after });
        }
    }
}

fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_else(|error| Value::String(error.to_string()))
}
