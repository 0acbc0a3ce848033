//! Changes of who answers: candidates, orders of operators, and what time and failures lead to. Each change is a step of
//! the slot's [`Machine`] and then one pointer.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use serde_json::Value;

use super::{Inner, JournalStatus, Serving, Status, memories::Lost};
use crate::{
    digest::{ConfigDigest, Digest},
    event::Change,
    generation::{Generation, Place, Way},
    journal::{GenerationInfo, JournalConfig},
    kind::Kind,
    load::{MemoryId, Plugin, Rejection, Stage},
    memory::Remembered,
    rollout::{
        BY_HAND, Evidence, Input, Kept as KeptMachine, Machine, Phase, Picture, Probation, Refused, Rollout,
        Transition, Trial,
    },
    shadow::{Call, Divergence, Shadow},
    store::Good,
};

/// Memories on which a candidate must show that it can take over.
const MIGRATION_SAMPLE: usize = 64;

/// What only changes between calls.
pub(super) struct Control<K: Kind> {
    pub(super) machine: Machine,
    /// By number: those in the machine's picture.
    made: BTreeMap<u64, Made<K>>,
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
    changed: bool,
    /// Whether bytes were condemned: a restart must not take them again.
    urgent: bool,
}

/// What has happened since the last time that it was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// It may wait a little: there may be more.
    Ordinary,
    /// It must be on disk at once.
    Urgent,
}

struct Made<K: Kind> {
    generation: Arc<Generation<K>>,
    settings: Value,
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

/// While something is on trial, this often: a waiting call is then not dropped at 200,000 a second and shard.
const ROUND: Duration = Duration::from_millis(5);
/// Calls that the shadow is given before other threads get a turn.
const AT_ONCE: usize = 8;
/// While there is only a probation, or a journal.
const ROUND_AT_REST: Duration = Duration::from_millis(50);

/// How a candidate is to be taken.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct How {
    /// Without a trial, whatever the slot's rollout is.
    pub(crate) at_once: bool,
    /// Even if it is quarantined.
    pub(crate) forced: bool,
    /// With an empty memory where it cannot read what there is, also where the kind never forgets.
    pub(crate) forgets: bool,
    /// Refused, it says nothing about whether what is wanted serves: it is something else, or that serves already.
    pub(crate) aside: bool,
}

/// A candidate that passed every check. Calling it takes it: at once, or, with a flag, as soon as that is up.
pub(crate) type Taken = Box<dyn FnOnce(Option<&Arc<AtomicBool>>) -> Result<(), Rejection> + Send>;

/// What of a slot is kept on disk.
pub(crate) struct Saved {
    pub(crate) machine: KeptMachine,
    /// What serves, and whether it has stood its probation.
    pub(crate) live: Option<(Good, bool)>,
}

/// A slot without its types: what the host hands plugins to.
pub(crate) trait Receiver: Send + Sync {
    fn name(&self) -> &Arc<str>;
    fn kind(&self) -> &'static str;
    /// Checks `plugin` with `settings` in every way and makes its first instances.
    fn prepare(self: Arc<Self>, plugin: &Arc<Plugin>, settings: &Value, how: How) -> Result<Taken, Rejection>;
    /// Ends the time in which a set of slots had both: only the new one is left.
    fn release(&self);
    /// Lets the built-in serve.
    fn retire(&self, reason: &str);
    /// Configures the built-in.
    fn configure_builtin(&self, settings: &Value) -> Result<(), String>;
    /// Notes a candidate that never came as far as an offer, or that something else serves in place of; `by_hand`: since an
    /// operator took it back.
    fn reject(&self, rejection: Rejection, by_hand: bool);
    /// No file holds the plugin that is wanted; `instead`: what there is to say of files that might.
    fn lacks(&self, plugin: &str, instead: &str);
    /// What serves is what is wanted: a candidate that was not taken is no news any more.
    fn settled(&self);
    /// What the operator wants from now on was not taken, and why; none: it is what is wanted again.
    fn in_vain(&self, reason: Option<String>);
    /// Whether new versions have to prove themselves before they serve.
    fn is_gradual(&self) -> bool;
    /// Whether `digest` is not taken, or not with these settings.
    fn is_quarantined(&self, digest: Digest, settings: &Value) -> bool;
    /// Whether that is since an operator took it back.
    fn is_taken_back(&self, digest: Digest, settings: &Value) -> bool;
    /// The node stops: notes the end of what serves. Nothing that comes after it is noted.
    fn stop(&self);
    /// What serves: the component and its settings.
    fn live(&self) -> Option<(Digest, Value)>;
    /// The candidate on trial goes live; with `forget`, beginning anew where it cannot read a memory.
    fn promote(&self, forget: bool) -> Result<(), Refused>;
    /// The candidate on trial goes, or the generation before the live one serves again.
    fn roll_back(&self, reason: &str) -> Result<(), Refused>;
    /// The generation before the live one is gone, and its bytes are not taken again.
    fn condemn_previous(&self, reason: &str);
    /// Whether there is something to keep; more than news, an order, where bytes were condemned.
    fn news(&self) -> Option<News>;
    /// Looks after trial, probation and journal; when to come again, if there is any.
    fn tick(&self) -> Option<Duration>;
    /// How recording goes, with all that was recorded until now written; none: nothing was since the start.
    fn journal(&self) -> Option<JournalStatus>;
    /// Records from now on, in a journal below `dir`, as `config` says; none: as last time.
    fn record(&self, dir: &Path, config: Option<JournalConfig>) -> anyhow::Result<()>;
    /// Writes what was recorded, and records no more.
    fn stop_recording(&self);
    /// What is to be kept, if it has changed since the last time.
    fn saved(&self) -> Option<Saved>;
    /// Takes up what was kept.
    fn restore(&self, kept: &KeptMachine);
    fn history(&self) -> Vec<Transition>;
    /// What the shadow has shown so far, or the last one came to.
    fn divergence(&self) -> Option<Divergence>;
    fn status(&self) -> Status;
}

fn now_ms() -> u64 {
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
    fn show(&self, control: &mut Control<K>, steps: &[Transition], flag: Option<&Arc<AtomicBool>>) {
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

    /// Notes a candidate that is not taken; with `aside`, one that says nothing about whether what is wanted serves.
    fn note_rejection(&self, rejection: &Rejection, by_hand: bool, aside: bool) {
        let mut control = self.control();
        if let Some(digest) = rejection.digest
            && rejection.stage != Stage::Quarantine
        {
            let after = match rejection.stage {
                Stage::Compile => Phase::Checked,
                Stage::Settings | Stage::Configure | Stage::Probe | Stage::Migrate => Phase::Compiled,
                _ => Phase::Candidate,
            };
            control.machine.rejected("", digest, after, rejection.to_string(), now_ms());
            control.changed = true;
        }
        control.last_error = Some(rejection.to_string());
        if !aside {
            control.refused = Some(rejection.to_string());
            control.by_hand = by_hand;
        }
        control.rejected = Some(rejection.clone());
    }

    /// Whether the candidate can take over what there is, shown on a sample.
    fn check_migration(&self, candidate: &Generation<K>) -> Result<(), Rejection> {
        if !candidate.can_migrate() {
            return Ok(());
        }
        let own = &candidate.memory_id;
        let mut sample = Vec::new();
        for shard in &self.shards {
            // Waits for a call under way, a deadline at most: what is skipped under load is missed when it matters.
            sample.extend(shard.lock().plugin.some(MIGRATION_SAMPLE - sample.len()).cloned());
        }
        for kept in sample {
            let id = self.form(kept.form);
            if id.plugin == own.plugin && id.version < own.version {
                candidate.migrate(0, Way::Up, id.version, &kept.memory).map_err(|problem| {
                    Rejection::new(Stage::Migrate, format!("a live memory of {id}: {problem}"))
                        .of(candidate.plugin.digest)
                })?;
            }
        }
        Ok(())
    }

    /// Gives the shadow what waits for it.
    fn drain(&self, serving: &Serving<K>) {
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

impl<K: Kind> Receiver for Inner<K> {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn kind(&self) -> &'static str {
        K::NAME
    }

    fn prepare(self: Arc<Self>, plugin: &Arc<Plugin>, settings: &Value, how: How) -> Result<Taken, Rejection> {
        let configuration = ConfigDigest::of(settings);
        let (number, quarantine, by_hand) = {
            let control = self.control();
            let bytes = control.machine.quarantine(plugin.digest).map(|reason| (reason, "bytes"));
            let config = control.machine.config_quarantine(plugin.digest, configuration);
            let quarantine = bytes.or(config.map(|reason| (reason, "configuration"))).filter(|_| !how.forced);
            let text = |(reason, what)| format!("{reason}; change its {what}, or promote it by force");
            let by_hand = quarantine.is_some() && control.machine.is_taken_back(plugin.digest, configuration);
            (control.machine.next_number(), quarantine.map(text), by_hand)
        };
        let warmth = self.live.load().now().live.as_ref().map_or(1, |live| live.warmth());
        let prepared = match quarantine {
            Some(reason) => Err(Rejection::new(Stage::Quarantine, reason).of(plugin.digest)),
            None => {
                let form = self.form_of(&plugin.memory_id());
                let place = Place { slot: &self.name, number, form, benches: self.shards.len() };
                Generation::prepare(&place, Arc::clone(plugin), Arc::clone(&self.engine), settings, &self.limits)
            }
        };
        let prepared = prepared.and_then(|generation: Generation<K>| {
            generation.warm(warmth)?;
            self.check_migration(&generation)?;
            Ok(generation)
        });
        let generation = match prepared {
            Ok(generation) => {
                if how.forgets {
                    generation.may_forget();
                }
                Arc::new(generation)
            }
            Err(rejection) => {
                self.note_rejection(&rejection, by_hand, how.aside);
                return Err(rejection);
            }
        };
        let settings = settings.clone();
        Ok(Box::new(move |flag| {
            let mut control = self.control();
            let (plugin, digest) = (generation.plugin.name.to_string(), generation.plugin.digest);
            // There is nothing to compare it with, and nothing to lose.
            let at_once = how.at_once || control.machine.picture().live.is_none();
            let mode = if at_once { Rollout::Immediate } else { self.rollout.clone() };
            let forced = how.forced || flag.is_some();
            control
                .made
                .insert(generation.number, Made { generation: Arc::clone(&generation), settings: settings.clone() });
            let input = Input::Probed { plugin, digest, settings: configuration, mode, forced };
            let steps = match control.machine.apply(input, now_ms()) {
                Ok(steps) => steps,
                Err(refused) => {
                    control.made.remove(&generation.number);
                    return Err(Rejection::new(Stage::Quarantine, refused).of(digest));
                }
            };
            control.rejected = None;
            control.refused = None;
            control.in_vain = None;
            control.last_error = None;
            self.show(&mut control, &steps, flag);
            drop(control);
            // Where it understands them, the limits that an operator set hold also while the plugin does not answer.
            if settings.as_object().is_some_and(|settings| !settings.is_empty()) {
                let _ = self.builtin.configure(&settings);
            }
            Ok(())
        }))
    }

    fn release(&self) {
        let _control = self.control();
        let serving = self.live.load_full();
        if let Some((flag, next)) = &serving.then
            && flag.load(Ordering::Acquire)
        {
            self.live.store(Arc::clone(next));
        }
    }

    fn lacks(&self, plugin: &str, instead: &str) {
        let mut control = self.control();
        let told = format!("no file that is taken holds the plugin {plugin}{instead}");
        control.last_error = Some(told.clone());
        control.refused = Some(told);
        control.by_hand = false;
    }

    fn in_vain(&self, reason: Option<String>) {
        self.control().in_vain = reason;
    }

    fn is_gradual(&self) -> bool {
        self.rollout != Rollout::Immediate
    }

    fn is_quarantined(&self, digest: Digest, settings: &Value) -> bool {
        let machine = &self.control().machine;
        let of_config = machine.config_quarantine(digest, ConfigDigest::of(settings));
        machine.quarantine(digest).or(of_config).is_some()
    }

    fn is_taken_back(&self, digest: Digest, settings: &Value) -> bool {
        self.control().machine.is_taken_back(digest, ConfigDigest::of(settings))
    }

    fn stop(&self) {
        let mut control = self.control();
        control.machine.stop(now_ms());
        control.changed = true;
    }

    fn settled(&self) {
        let mut control = self.control();
        control.refused = None;
        control.in_vain = None;
        let forgotten = control.rejected.take().map(|rejection| rejection.to_string());
        if forgotten.is_some() && control.last_error == forgotten {
            control.last_error = None;
        }
    }

    fn retire(&self, reason: &str) {
        let _ = self.happens(Input::Remove { reason: reason.to_owned() });
    }

    fn configure_builtin(&self, settings: &Value) -> Result<(), String> {
        self.builtin.configure(settings)?;
        self.control().settings = settings.clone();
        Ok(())
    }

    fn reject(&self, rejection: Rejection, by_hand: bool) {
        self.note_rejection(&rejection, by_hand, false);
    }

    fn live(&self) -> Option<(Digest, Value)> {
        let control = self.control();
        let made = control.made.get(&control.machine.picture().live?)?;
        Some((made.generation.plugin.digest, made.settings.clone()))
    }

    fn promote(&self, forget: bool) -> Result<(), Refused> {
        if forget {
            let control = self.control();
            let trial = control.machine.picture().trial.and_then(|trial| control.made.get(&trial.generation()));
            trial.into_iter().for_each(|made| made.generation.may_forget());
        }
        self.happens(Input::Promote)
    }

    fn roll_back(&self, reason: &str) -> Result<(), Refused> {
        self.happens(Input::Rollback { reason: reason.to_owned() })
    }

    fn condemn_previous(&self, reason: &str) {
        let _ = self.happens(Input::Condemn { reason: reason.to_owned() });
    }

    fn news(&self) -> Option<News> {
        let control = self.control();
        let urgent = control.urgent.then_some(News::Urgent);
        urgent.or((control.changed || control.machine.has_news()).then_some(News::Ordinary))
    }

    fn journal(&self) -> Option<JournalStatus> {
        self.journal_status()
    }

    fn record(&self, dir: &Path, config: Option<JournalConfig>) -> anyhow::Result<()> {
        self.begin_recording(dir, config)
    }

    fn stop_recording(&self) {
        self.end_recording();
    }

    fn tick(&self) -> Option<Duration> {
        let held = self.live.load_full();
        let serving = held.now();
        self.drain(serving);
        let p99 = |generation: Option<&Arc<Generation<K>>>| {
            let times = generation.map(|generation| generation.times()).unwrap_or_default();
            (times.p99_ns, times.timed)
        };
        let (live, previous) = (serving.live.as_ref(), serving.previous.as_ref());
        let evidence = |own: &Arc<Generation<K>>, other| Evidence {
            calls: own.calls(),
            divergent: 0,
            failures: own.failures(),
            slowdown: Evidence::slowdown_of(p99(Some(own)), p99(other)),
        };
        let trial = match (&serving.shadow, &serving.canary) {
            (Some(shadow), _) => shadow.evidence(p99(live)),
            (None, Some((canary, _))) => evidence(canary, live),
            (None, None) => Evidence::default(),
        };
        let live = live.map(|live| evidence(live, previous)).unwrap_or_default();
        drop(held);
        let _ = self.happens(Input::Tick { trial, live });
        self.flush();
        let on_trial = self.control().machine.picture().trial.is_some();
        let waiting = self.control().machine.is_waiting() || self.sample() > 0.0;
        match (on_trial, waiting) {
            (true, _) => Some(ROUND),
            (false, true) => Some(ROUND_AT_REST),
            (false, false) => None,
        }
    }

    fn saved(&self) -> Option<Saved> {
        let mut control = self.control();
        let proven = control.machine.take_news();
        control.urgent = false;
        if !std::mem::take(&mut control.changed) && !proven {
            return None;
        }
        let live = control.machine.picture().live.and_then(|live| control.made.get(&live));
        let live = live.map(|made| {
            let plugin = &made.generation.plugin;
            let settings = Some(made.settings.clone());
            let good = Good { plugin: plugin.name.to_string(), digest: plugin.digest, settings };
            (good, control.machine.is_proven())
        });
        Some(Saved { machine: control.machine.kept(), live })
    }

    fn restore(&self, kept: &KeptMachine) {
        self.control().machine.restore(kept, now_ms());
    }

    fn history(&self) -> Vec<Transition> {
        self.control().machine.history().cloned().collect()
    }

    fn divergence(&self) -> Option<Divergence> {
        let shadow = self.live.load().now().shadow.clone();
        shadow.map(|shadow| shadow.divergence()).or_else(|| self.control().divergence.clone())
    }

    fn status(&self) -> Status {
        self.status_now()
    }
}
