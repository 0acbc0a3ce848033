//! A slot as its host sees it: without its types, which every plugin of its kind has alike.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::Value;

use super::{Inner, JournalStatus, Status, control::now_ms};
use crate::{
    digest::{ConfigDigest, Digest},
    generation::Generation,
    journal::JournalConfig,
    kind::Kind,
    load::{Plugin, Rejection},
    rollout::{Evidence, Input, Kept as KeptMachine, Refused, Rollout, Transition},
    shadow::Divergence,
    store::Good,
};

/// While something is on trial, this often: a waiting call is then not dropped at 200,000 a second and shard.
const ROUND: Duration = Duration::from_millis(5);
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

/// What has happened since the last time that it was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// It may wait a little: there may be more.
    Ordinary,
    /// It must be on disk at once.
    Urgent,
}

impl<K: Kind> Receiver for Inner<K> {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn kind(&self) -> &'static str {
        K::NAME
    }

    fn prepare(self: Arc<Self>, plugin: &Arc<Plugin>, settings: &Value, how: How) -> Result<Taken, Rejection> {
        self.offer(plugin, settings, how)
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
