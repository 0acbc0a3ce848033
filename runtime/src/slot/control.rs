//! Changes of who answers: candidates, orders of operators, and what time and failures lead to. Each change is a step of
//! the slot's [`Machine`] and then one pointer.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, atomic::AtomicBool},
    time::SystemTime,
};

use serde_json::Value;

use super::{Inner, Serving, memories::Lost};
use crate::{
    digest::Digest,
    event::Change,
    generation::Generation,
    journal::GenerationInfo,
    kind::Kind,
    load::{MemoryId, Rejection},
    memory::Remembered,
    rollout::{BY_HAND, Input, Machine, Phase, Picture, Probation, Refused, Transition, Trial},
    shadow::{Call, Divergence, Shadow},
};

/// What only changes between calls.
pub(super) struct Control<K: Kind> {
    pub(super) machine: Machine,
    /// By number: those in the machine's picture.
    pub(super) made: BTreeMap<u64, Made<K>>,
    /// Of what serves.
    pub(super) settings: Value,
    pub(super) last_error: Option<String>,
    pub(super) rejected: Option<Rejection>,
    /// Why what is wanted does not serve, and is not on its way either.
    pub(super) refused: Option<String>,
    /// Whether that is because an operator took it back.
    pub(super) by_hand: bool,
    /// Why what the operator wants from now on is not even what the host tries to have; until something is taken.
    pub(super) in_vain: Option<String>,
    /// Whose memory could not be handed to which generation; each is told once.
    pub(super) lost: HashSet<(MemoryId, u64)>,
    /// The memory that is about, also while the built-in serves.
    memory_id: MemoryId,
    /// What the last shadow came to.
    pub(super) divergence: Option<Divergence>,
    /// Generations that the journal does not know yet.
    pub(super) to_journal: Vec<GenerationInfo>,
    /// Whether there is something new to keep on disk.
    pub(super) changed: bool,
    /// Whether bytes were condemned: a restart must not take them again.
    pub(super) urgent: bool,
}

/// A generation and the settings that it was made with.
pub(super) struct Made<K: Kind> {
    pub(super) generation: Arc<Generation<K>>,
    pub(super) settings: Value,
}

impl<K: Kind> Made<K> {
    fn info(&self) -> GenerationInfo {
        let Made { generation, settings } = self;
        GenerationInfo {
            number: generation.number,
            plugin: generation.plugin.name.to_string(),
            version: generation.plugin.description.version.clone(),
            digest: generation.plugin.digest,
            settings: settings.clone(),
            memory: generation.memory_id.clone(),
        }
    }
}

impl<K: Kind> Control<K> {
    /// All that calls can be asked of now, as a journal describes it.
    pub(super) fn infos(&self) -> Vec<GenerationInfo> {
        let builtin = GenerationInfo {
            number: 0,
            plugin: "built-in".to_owned(),
            version: String::new(),
            digest: Digest::of(b""),
            settings: Value::Null,
            memory: MemoryId::BUILTIN,
        };
        std::iter::once(builtin).chain(self.made.values().map(Made::info)).collect()
    }

    pub(super) fn new(probation: Probation) -> Control<K> {
        Control {
            machine: Machine::new(probation),
            made: BTreeMap::new(),
            settings: Value::Null,
            last_error: None,
            rejected: None,
            refused: None,
            by_hand: false,
            in_vain: None,
            lost: HashSet::new(),
            memory_id: MemoryId::BUILTIN,
            divergence: None,
            to_journal: Vec::new(),
            changed: false,
            urgent: false,
        }
    }
}

/// Calls that the shadow is given before other threads get a turn.
const AT_ONCE: usize = 8;
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl<K: Kind> Inner<K> {
    /// One thing happens, and whoever is to answer then does.
    pub(super) fn happens(&self, input: Input) -> Result<(), Refused> {
        let mut control = self.control();
        let steps = control.machine.apply(input, now_ms())?;
        if !steps.is_empty() {
            self.show(&mut control, &steps, None);
        }
        Ok(())
    }

    /// Makes what the machine says so, and tells of it.
    pub(super) fn show(&self, control: &mut Control<K>, steps: &[Transition], flag: Option<&Arc<AtomicBool>>) {
        let Picture { live, previous, trial } = control.machine.picture();
        let held = self.live.load_full();
        let serving = held.now();
        let made = |number: Option<u64>| Some(Arc::clone(&control.made.get(&number?)?.generation));
        let shadow = match trial {
            Some(Trial::Shadow(number)) => {
                let same = serving.shadow.as_ref().filter(|shadow| shadow.generation.number == number);
                let new =
                    || Arc::new(Shadow::new(control.made[&number].generation.clone(), self.limits.memory_keys_max));
                Some(same.cloned().unwrap_or_else(new))
            }
            _ => None,
        };
        let canary = match trial {
            Some(Trial::Canary(number, percent)) => made(Some(number)).map(|canary| (canary, percent)),
            _ => None,
        };
        let live_one = made(live);
        // Whoever wrote memories in a newer form than what is written now is needed to turn them back. While the
        // built-in serves nothing is: a plugin that was taken out must not stay.
        let gone_back = live_one.as_ref().and_then(|live| {
            let newer = |writer: &&Arc<Generation<K>>| {
                let (its, own) = (&writer.memory_id, &live.memory_id);
                writer.can_migrate() && its.plugin == own.plugin && its.version > own.version
            };
            serving.writers().filter(newer).max_by_key(|writer| (writer.memory_id.version, writer.number)).cloned()
        });
        let former = serving.live.clone();
        let next =
            Arc::new(Serving { live: live_one, previous: made(previous), canary, shadow, gone_back, then: None });
        if let Some(ended) = &serving.shadow
            && next.shadow.as_ref().is_none_or(|shadow| !Arc::ptr_eq(shadow, ended))
        {
            control.divergence = Some(ended.divergence());
        }
        if let Some(live) = live
            && let Some(made) = control.made.get(&live)
        {
            control.settings = made.settings.clone();
        }
        for number in [live, trial.map(Trial::generation)].into_iter().flatten() {
            // Known before its first call can be recorded.
            if let Some(made) = control.made.get(&number)
                && self.sample() > 0.0
                && steps.iter().any(|step| step.generation == number)
            {
                control.to_journal.push(made.info());
            }
        }
        let events = self.tell(control, steps, former.as_deref(), &next);
        let everyone = [live, previous, trial.map(Trial::generation)];
        control.made.retain(|number, _| everyone.contains(&Some(*number)));
        // Calls of one that just went may still be under way.
        let oldest = everyone.into_iter().flatten().min().unwrap_or(u64::MAX);
        control.lost.retain(|(_, number)| *number >= oldest);
        control.changed = true;
        control.urgent |= steps.iter().any(|step| matches!(step.phase, Phase::Quarantined | Phase::Rejected));
        // Called off or rolled back, and nothing came in its place.
        let is_over = |step: &&Transition| matches!(step.phase, Phase::Quarantined | Phase::Rejected);
        let newer = trial.is_some() || steps.iter().any(|step| step.phase == Phase::Live && step.reason.is_none());
        if let Some(step) = steps.iter().find(is_over).filter(|_| live.is_some() && !newer) {
            let reason = step.reason.as_deref().unwrap_or("its trial was called off");
            let told = format!("generation {} of {} is not taken: {reason}", step.generation, step.plugin);
            control.last_error.get_or_insert_with(|| told.clone());
            control.refused = Some(told);
            control.by_hand = reason == BY_HAND;
        }
        // One pointer. Whoever is in the middle of a call ends it where it began; the last of them frees the old one.
        let before = match flag {
            None => self.live.swap(next.clone()),
            Some(flag) => {
                let both = Serving {
                    live: serving.live.clone(),
                    previous: serving.previous.clone(),
                    canary: serving.canary.clone(),
                    shadow: serving.shadow.clone(),
                    gone_back: serving.gone_back.clone(),
                    then: Some((Arc::clone(flag), next.clone())),
                };
                self.live.swap(Arc::new(both))
            }
        };
        drop((before, held));
        for idle in [&next.previous, &next.gone_back].into_iter().flatten() {
            idle.cool();
        }
        if let Some(live) = &next.live {
            live.uncool();
        }
        for event in events {
            self.events.send(event);
        }
        // An error means that the host is gone, and with it what would look after it.
        let _ = self.wake.send(());
    }

    fn tell(
        &self,
        control: &mut Control<K>,
        steps: &[Transition],
        former: Option<&Generation<K>>,
        next: &Serving<K>,
    ) -> Vec<crate::Event> {
        let mut events = Vec::new();
        let former_number = former.map_or(0, |former| former.number);
        for step in steps {
            let generation = control.made.get(&step.generation).map(|made| Arc::clone(&made.generation));
            let reason = || step.reason.clone().unwrap_or_default();
            let percent = next.canary.as_ref().map_or(100, |(_, percent)| *percent);
            let change = match step.phase {
                Phase::Live if step.reason.is_some() => {
                    let why = steps.iter().find_map(|step| match step.phase {
                        Phase::Quarantined | Phase::Rejected => step.reason.clone(),
                        _ => None,
                    });
                    let reason = why.unwrap_or_default();
                    Change::RolledBack { from: former_number, by_hand: reason == BY_HAND, reason }
                }
                Phase::Live => {
                    let version = generation.as_ref().map(|live| live.plugin.description.version.clone());
                    Change::Live { kind: K::NAME, version: version.unwrap_or_default(), previous: former_number }
                }
                Phase::Shadow => Change::Shadow,
                Phase::Canary => Change::Canary { percent },
                Phase::Quarantined => {
                    Change::Condemned { reason: reason(), by_hand: step.reason.as_deref() == Some(BY_HAND) }
                }
                Phase::Rejected => Change::CalledOff { reason: reason() },
                Phase::Retired if control.machine.is_stopped() && step.generation == former_number => Change::Stopped,
                Phase::Retired if next.live.is_none() && step.generation == former_number => {
                    Change::Retired { reason: reason() }
                }
                _ => continue,
            };
            events.push(self.event(generation.as_deref(), change));
        }
        // Memory that nobody can hand over is news at once, not only when it is missed.
        if let Some(live) = &next.live
            && live.memory_id != control.memory_id
        {
            let from = std::mem::replace(&mut control.memory_id, live.memory_id.clone());
            let same = from.plugin == live.memory_id.plugin;
            let is_known = match from.version < live.memory_id.version {
                true => live.can_migrate(),
                false => next.downgrader(&from).is_some(),
            };
            let mut is_new = || control.lost.insert((from.clone(), live.number));
            if from != MemoryId::BUILTIN && !(same && is_known) && is_new() {
                let reason =
                    if same { "the newer version does not export the migration interface" } else { "another plugin's" };
                let (from, to) = (from.to_string(), live.memory_id.to_string());
                let reason = reason.to_owned();
                let change = match same && !live.forgets() {
                    true => Change::MemoryKept { from, to, reason },
                    false => Change::MemoryReset { from, to, reason },
                };
                events.push(self.event(Some(live), change));
            }
        }
        events
    }

    /// Gives the shadow what waits for it.
    pub(super) fn drain(&self, serving: &Serving<K>) {
        let Some(shadow) = &serving.shadow else {
            return;
        };
        let mut calls = Vec::new();
        let mut failed = 0;
        let mut give = |calls: &mut Vec<Call<K>>| {
            // What was left over by a candidate that is gone is not in step with this one's memories.
            let to_give = calls.drain(..).filter(|call| call.shadow == shadow.generation.number);
            for (nth, call) in to_give.enumerate() {
                // Whoever answers a live call waits for a few of these at most, and not for all that came together.
                if nth % AT_ONCE == AT_ONCE - 1 {
                    std::thread::yield_now();
                }
                // Nothing is lost here: the memories are the live version's, and it still has them.
                let adopt = |kept: &Remembered<K::Memory>| {
                    let id = self.form(kept.form);
                    let (asked, problem) = match serving.migrate(0, &shadow.generation, &id, &kept.memory) {
                        Ok(memory) => return Ok(memory),
                        Err(unmigrated) => unmigrated,
                    };
                    let error = format!("a live memory of {id}: {problem}");
                    let is_its_own = id.plugin == asked.memory_id.plugin && asked.can_migrate();
                    let lost = Lost::of::<K>(id, &kept.memory, &problem);
                    if let Some(lost) = lost.filter(|lost| Self::must_read(&shadow.generation, lost)) {
                        self.control().last_error = Some(error);
                        return Err(lost.into());
                    }
                    if is_its_own && asked.number == shadow.generation.number {
                        failed += 1;
                        self.control().last_error = Some(error);
                    }
                    Ok(K::Memory::default())
                };
                let reads = serving.can_hand(&self.form(call.before.form), &shadow.generation);
                failed += u64::from(shadow.compare(&call, reads, adopt));
            }
        };
        for shard in &self.shards {
            shard.lock().waiting.take(&mut calls);
            give(&mut calls);
        }
        self.steps().waiting.take(&mut calls);
        give(&mut calls);
        for _ in 0..failed {
            let _ = self.happens(Input::Failed { generation: shadow.generation.number });
        }
    }
}
