//! The way of a generation to live and back: a pure state machine over what happens; time is an argument.
//!
//! ```text
//! candidate -> checked -> compiled -> probed -+-> shadow -+-> live -> previous -> retired
//!        \         \          \          \    +-> canary -+     \
//!         +---------+----------+----------+-> rejected     +-> quarantined
//! ```
//! At most one generation each is live, previous (kept warm, to go back to) and on trial (shadow or canary). What is to
//! serve is always the whole [`Picture`]; the slot makes it so with one pointer.

mod config;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use self::config::default_calls;
pub use self::config::{Probation, Rollout};

use crate::digest::{ConfigDigest, Digest};

/// Timed calls below which nothing is said about slowness.
const TIMED_MIN: u64 = 1_000;
/// A 99th percentile that is never slow: below it, what is measured is the machine and not the plugin.
const SLOW_MIN_NS: u64 = 100_000;

/// Where a generation is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Its bytes are there.
    Candidate,
    /// Its imports and exports are those of its kind.
    Checked,
    /// It is machine code, and described itself.
    Compiled,
    /// It took its configuration and answered the kind's harmless request.
    Probed,
    /// It answers beside the live one, unseen.
    Shadow,
    /// It answers a share of the keys.
    Canary,
    /// It answers.
    Live,
    /// It answered until the live one came, and is kept warm.
    Previous,
    /// It is gone.
    Retired,
    /// It did not pass a check, or its trial was called off.
    Rejected,
    /// It did harm, and is not taken again until its bytes change or an operator insists.
    Quarantined,
    /// No generation: the node started anew here, and numbers begin again at 1.
    Started,
}

/// One generation of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Transition {
    /// Its number; 0 while it has none.
    pub generation: u64,
    /// The plugin's name.
    pub plugin: String,
    /// Its bytes; none for a start of the node.
    pub digest: Option<Digest>,
    /// Its configuration; none where it did not come so far, for a start, and in records of older versions.
    #[serde(default)]
    pub configuration: Option<ConfigDigest>,
    /// Where it came to.
    pub phase: Phase,
    /// Why, where there is more to say than the phase.
    pub reason: Option<String>,
    /// When, in milliseconds since 1970 UTC.
    pub at_ms: u64,
}

/// What a trial, or a probation, has shown so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Evidence {
    /// Answers compared, or calls answered.
    pub calls: u64,
    /// Answers that differ.
    pub divergent: u64,
    /// Calls that failed.
    pub failures: u64,
    /// 99th percentile of the time of its calls over that of the other's; none while fewer than 1,000 were timed, or
    /// where its own is below 100 µs.
    pub slowdown: Option<f64>,
}

impl Evidence {
    /// The evidence of times, given as 99th percentiles with how many calls they are of.
    pub(crate) fn slowdown_of(own: (u64, u64), other: (u64, u64)) -> Option<f64> {
        let ((own_ns, own_calls), (other_ns, other_calls)) = (own, other);
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        (own_calls >= TIMED_MIN && other_calls >= TIMED_MIN && own_ns >= SLOW_MIN_NS)
            .then(|| own_ns as f64 / other_ns.max(1) as f64)
    }
}

/// What happens to a slot's generations.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// Bytes passed every check: they get a number, and go on trial or live.
    Probed { plugin: String, digest: Digest, settings: ConfigDigest, mode: Rollout, forced: bool },
    /// Time passed; what the trial has shown, and what the live generation has in its probation.
    Tick { trial: Evidence, live: Evidence },
    /// A call of this generation failed.
    Failed { generation: u64 },
    /// An operator ends the trial for the better.
    Promote,
    /// An operator takes the last step back.
    Rollback { reason: String },
    /// The generation before the live one has done harm.
    Condemn { reason: String },
    /// The built-in is to serve.
    Remove { reason: String },
}

/// Who serves, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Picture {
    /// None: the built-in.
    pub(crate) live: Option<u64>,
    /// Kept warm: answers calls that the live one fails, and serves again after a rollback.
    pub(crate) previous: Option<u64>,
    /// Beside the live one.
    pub(crate) trial: Option<Trial>,
}

/// A generation on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Trial {
    Shadow(u64),
    /// With its share of the keys, in percent.
    Canary(u64, u8),
}

impl Trial {
    pub(crate) fn generation(self) -> u64 {
        match self {
            Trial::Shadow(number) | Trial::Canary(number, _) => number,
        }
    }
}

/// Why nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("nothing is on trial")]
    NoTrial,
    #[error("there is no earlier generation to go back to")]
    NoPrevious,
    #[error("these bytes are quarantined: {0}; change them, or promote them by force")]
    Quarantined(String),
    #[error("this configuration of these bytes is quarantined: {0}; change it, or promote it by force")]
    ConfigQuarantined(String),
}

/// The generations of one slot.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    live: Option<Running>,
    previous: Option<Running>,
    trial: Option<OnTrial>,
    last_number: u64,
    probation: Probation,
    quarantined: BTreeMap<Digest, String>,
    /// Those of the quarantined that an operator took back.
    by_hand: BTreeSet<Digest>,
    configurations: VecDeque<QuarantinedConfig>,
    history: VecDeque<Transition>,
    newly_proven: bool,
    /// Nothing that happens from now on is worth telling.
    stopped: bool,
}

#[derive(Clone, Debug)]
struct Running {
    number: u64,
    plugin: String,
    digest: Digest,
    settings: ConfigDigest,
    /// While it is watched.
    watched: Option<Watched>,
}

#[derive(Clone, Copy, Debug)]
struct Watched {
    until_ms: u64,
    failures: u64,
}

#[derive(Clone, Debug)]
struct OnTrial {
    running: Running,
    mode: Rollout,
    /// The canary's step.
    step: usize,
    /// When the trial, or its step, began.
    since_ms: u64,
    /// Its calls when the step began.
    calls_before: u64,
    failures: u64,
}

/// The reason of a step back that an operator ordered: no harm was done, and nobody need be told.
pub(crate) const BY_HAND: &str = "an operator took it back by hand";
/// By which records show it that do not say so by themselves.
const BY_HAND_FORMERLY: [&str; 2] = [BY_HAND, "an operator took it back"];

/// Steps of generations that a slot remembers.
const HISTORY_MAX: usize = 256;
/// Quarantined bytes that it remembers, and as many quarantined configurations.
const QUARANTINED_MAX: usize = 64;

/// What is kept of a machine across restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Kept {
    pub(crate) quarantined: BTreeMap<Digest, String>,
    /// Those of them that an operator took back; beside them, so that older versions read the rest.
    pub(crate) by_hand: BTreeSet<Digest>,
    pub(crate) configurations: VecDeque<QuarantinedConfig>,
    pub(crate) history: VecDeque<Transition>,
}

/// A configuration that did harm with bytes that serve well without it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QuarantinedConfig {
    digest: Digest,
    settings: ConfigDigest,
    reason: String,
    /// Whether an operator took it back.
    #[serde(default)]
    by_hand: bool,
}

impl Machine {
    pub(crate) fn new(probation: Probation) -> Machine {
        Machine {
            live: None,
            previous: None,
            trial: None,
            last_number: 0,
            probation,
            quarantined: BTreeMap::new(),
            by_hand: BTreeSet::new(),
            configurations: VecDeque::new(),
            history: VecDeque::new(),
            newly_proven: false,
            stopped: false,
        }
    }

    /// Takes up what an earlier process kept. Nothing serves yet; numbers begin anew at 1, as memories do, and the history
    /// goes on below a step that says so.
    pub(crate) fn restore(&mut self, kept: &Kept, now_ms: u64) {
        self.quarantined = kept.quarantined.clone();
        self.by_hand = kept.by_hand.clone();
        self.configurations = kept.configurations.clone();
        let is_by_hand = |reason: &String| BY_HAND_FORMERLY.contains(&reason.as_str());
        let formerly = self.quarantined.iter().filter(|(_, reason)| is_by_hand(reason));
        self.by_hand.extend(formerly.map(|(digest, _)| *digest));
        self.configurations.iter_mut().for_each(|one| one.by_hand |= is_by_hand(&one.reason));
        self.history = kept.history.clone();
        if self.history.is_empty() {
            return;
        }
        self.end_of_the_killed(now_ms);
        self.note(Transition {
            generation: 0,
            plugin: String::new(),
            digest: None,
            configuration: None,
            phase: Phase::Started,
            reason: None,
            at_ms: now_ms,
        });
    }

    /// The node stops: what serves is the last that is told of.
    pub(crate) fn stop(&mut self, now_ms: u64) {
        let ended =
            self.live.as_ref().map(|live| live.step(Phase::Retired, Some("the node stopped".to_owned()), now_ms));
        ended.into_iter().for_each(|step| self.note(step));
        self.stopped = true;
    }

    /// Notes the end of the generation that is live by the history of a node that had no time to.
    fn end_of_the_killed(&mut self, now_ms: u64) {
        let mut later = BTreeSet::new();
        let own = self.history.iter().rev().take_while(|step| step.phase != Phase::Started);
        let last = own.filter(|step| step.generation > 0 && later.insert(step.generation));
        let live = last.into_iter().find(|step| step.phase == Phase::Live).cloned();
        if let Some(live) = live {
            let reason = Some("the node was killed, or crashed; seen at its next start".to_owned());
            self.note(Transition { phase: Phase::Retired, reason, at_ms: now_ms, ..live });
        }
    }

    /// Whether the node is stopping.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    pub(crate) fn kept(&self) -> Kept {
        Kept {
            quarantined: self.quarantined.clone(),
            by_hand: self.by_hand.clone(),
            configurations: self.configurations.clone(),
            history: self.history.clone(),
        }
    }

    pub(crate) fn picture(&self) -> Picture {
        let number = |running: &Option<Running>| running.as_ref().map(|running| running.number);
        let trial = self.trial.as_ref().map(|trial| match &trial.mode {
            Rollout::Canary { steps, .. } => Trial::Canary(trial.running.number, steps[trial.step]),
            Rollout::Immediate | Rollout::Shadow { .. } => Trial::Shadow(trial.running.number),
        });
        Picture { live: number(&self.live), previous: number(&self.previous), trial }
    }

    /// The number that the next generation gets.
    pub(crate) fn next_number(&self) -> u64 {
        self.last_number + 1
    }

    /// Why `digest` is not taken, if it is quarantined.
    pub(crate) fn quarantine(&self, digest: Digest) -> Option<&str> {
        self.quarantined.get(&digest).map(String::as_str)
    }

    /// Why `digest` is not taken with these settings, if it is not, though it may be with others.
    pub(crate) fn config_quarantine(&self, digest: Digest, settings: ConfigDigest) -> Option<&str> {
        let found = self.configurations.iter().find(|one| (one.digest, one.settings) == (digest, settings));
        found.map(|one| one.reason.as_str())
    }

    /// Whether `digest` with these settings is quarantined since an operator took it back.
    pub(crate) fn is_taken_back(&self, digest: Digest, settings: ConfigDigest) -> bool {
        let is_same = |one: &&QuarantinedConfig| (one.digest, one.settings) == (digest, settings);
        match self.quarantined.contains_key(&digest) {
            true => self.by_hand.contains(&digest),
            false => self.configurations.iter().find(is_same).is_some_and(|one| one.by_hand),
        }
    }

    pub(crate) fn history(&self) -> impl Iterator<Item = &Transition> {
        self.history.iter()
    }

    /// Whether the live generation has stood its probation: it is what to come back to after a restart.
    pub(crate) fn is_proven(&self) -> bool {
        self.live.as_ref().is_some_and(|live| live.watched.is_none())
    }

    /// Whether the live generation has stood its probation since the news was last taken.
    pub(crate) fn has_news(&self) -> bool {
        self.newly_proven
    }

    /// As [`has_news`](Self::has_news), which then is none any more.
    pub(crate) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.newly_proven)
    }

    /// Whether time has to be told.
    pub(crate) fn is_waiting(&self) -> bool {
        self.trial.is_some() || self.live.as_ref().is_some_and(|live| live.watched.is_some())
    }

    /// Notes a candidate that did not come as far as a number.
    pub(crate) fn rejected(&mut self, plugin: &str, digest: Digest, phase: Phase, reason: String, now_ms: u64) {
        let reason = Some(format!("after {phase:?}: {reason}").to_lowercase());
        let (plugin, digest, configuration) = (plugin.to_owned(), Some(digest), None);
        let phase = Phase::Rejected;
        self.note(Transition { generation: 0, plugin, digest, configuration, phase, reason, at_ms: now_ms });
    }

    /// One thing happens. Answers the steps that generations took; no step means that nothing changed.
    pub(crate) fn apply(&mut self, input: Input, now_ms: u64) -> Result<Vec<Transition>, Refused> {
        let mut steps = Vec::new();
        match input {
            Input::Probed { plugin, digest, settings, mode, forced } => {
                if forced {
                    self.quarantined.remove(&digest);
                    self.by_hand.remove(&digest);
                    self.configurations.retain(|one| (one.digest, one.settings) != (digest, settings));
                } else if let Some(reason) = self.quarantined.get(&digest) {
                    return Err(Refused::Quarantined(reason.clone()));
                } else if let Some(reason) = self.config_quarantine(digest, settings) {
                    return Err(Refused::ConfigQuarantined(reason.to_owned()));
                }
                // The newest bytes are what an operator wants to see; those on trial are no longer.
                self.end_trial(Phase::Rejected, "another candidate came", now_ms, &mut steps);
                self.last_number += 1;
                let running = Running { number: self.last_number, plugin, digest, settings, watched: None };
                match mode {
                    Rollout::Immediate => self.go_live(running, now_ms, &mut steps),
                    Rollout::Shadow { .. } | Rollout::Canary { .. } => {
                        let is_shadow = matches!(mode, Rollout::Shadow { .. });
                        let phase = if is_shadow { Phase::Shadow } else { Phase::Canary };
                        steps.push(running.step(phase, None, now_ms));
                        let (step, calls_before, failures) = (0, 0, 0);
                        self.trial = Some(OnTrial { running, mode, step, since_ms: now_ms, calls_before, failures });
                    }
                }
            }
            Input::Tick { trial, live } => {
                self.judge_live(live, now_ms, &mut steps);
                self.judge_trial(trial, now_ms, &mut steps);
            }
            Input::Failed { generation } => self.failed(generation, now_ms, &mut steps),
            Input::Promote => {
                let trial = self.trial.take().ok_or(Refused::NoTrial)?;
                self.go_live(trial.running, now_ms, &mut steps);
            }
            Input::Rollback { reason } => {
                if self.trial.is_some() {
                    self.quarantine_trial(&reason, now_ms, &mut steps);
                } else if self.previous.is_some() {
                    self.roll_back(&reason, now_ms, &mut steps);
                } else {
                    return Err(Refused::NoPrevious);
                }
            }
            Input::Condemn { reason } => {
                if let Some(previous) = self.previous.take() {
                    // With nothing to go back to there is nothing to be watched for.
                    self.live.iter_mut().for_each(|live| live.watched = None);
                    steps.push(previous.step(Phase::Quarantined, Some(reason.clone()), now_ms));
                    let serves = self.live.as_ref().is_some_and(|live| live.digest == previous.digest);
                    if serves {
                        self.condemn_config(&previous, &reason, now_ms, &mut steps);
                    } else {
                        self.condemn(previous.digest, &reason);
                        self.end_same(previous.digest, &reason, now_ms, &mut steps);
                    }
                }
            }
            Input::Remove { reason } => {
                self.end_trial(Phase::Rejected, &reason, now_ms, &mut steps);
                for gone in [self.live.take(), self.previous.take()].into_iter().flatten() {
                    steps.push(gone.step(Phase::Retired, Some(reason.clone()), now_ms));
                }
            }
        }
        for step in &steps {
            self.note(step.clone());
        }
        Ok(steps)
    }

    fn go_live(&mut self, mut running: Running, now_ms: u64, steps: &mut Vec<Transition>) {
        if let Some(retired) = self.previous.take() {
            steps.push(retired.step(Phase::Retired, None, now_ms));
        }
        self.previous = self.live.take();
        if let Some(previous) = &mut self.previous {
            previous.watched = None;
            steps.push(previous.step(Phase::Previous, None, now_ms));
            // Without anything to go back to there is nothing to be watched for: health and fallback do their part.
            if self.probation.seconds > 0 {
                let until_ms = now_ms.saturating_add(self.probation.seconds.saturating_mul(1_000));
                running.watched = Some(Watched { until_ms, failures: 0 });
            }
        }
        steps.push(running.step(Phase::Live, None, now_ms));
        self.live = Some(running);
    }

    fn judge_live(&mut self, evidence: Evidence, now_ms: u64, steps: &mut Vec<Transition>) {
        let Some(Running { watched: Some(watched), .. }) = &self.live else {
            return;
        };
        let until_ms = watched.until_ms;
        if let Some(slowdown) = evidence.slowdown.filter(|slowdown| *slowdown > self.probation.max_slowdown) {
            let reason = format!("{slowdown:.1} times slower at the 99th percentile than the one before");
            self.roll_back(&reason, now_ms, steps);
        } else if now_ms >= until_ms
            && let Some(live) = &mut self.live
        {
            live.watched = None;
            self.newly_proven = true;
        }
    }

    fn judge_trial(&mut self, evidence: Evidence, now_ms: u64, steps: &mut Vec<Transition>) {
        let Some(trial) = &mut self.trial else {
            return;
        };
        let elapsed_ms = now_ms.saturating_sub(trial.since_ms);
        let too_slow = |max: f64| {
            let slowdown = evidence.slowdown.filter(|slowdown| *slowdown > max)?;
            Some(format!("{slowdown:.1} times slower at the 99th percentile than the live one"))
        };
        let (verdict, is_over) = match &trial.mode {
            Rollout::Immediate => (None, true),
            Rollout::Shadow { calls, seconds, max_divergence, max_slowdown } => {
                let enough = calls.or(seconds.is_none().then_some(default_calls()));
                let is_over = enough.is_some_and(|calls| evidence.calls >= calls)
                    || (evidence.calls > 0 && seconds.is_some_and(|seconds| elapsed_ms >= seconds * 1_000));
                #[expect(clippy::cast_precision_loss, reason = "a share")]
                let allowed = max_divergence * enough.unwrap_or(evidence.calls).max(evidence.calls) as f64;
                #[expect(clippy::cast_precision_loss, reason = "a share")]
                let differs = (evidence.divergent as f64 > allowed && (is_over || enough.is_some()))
                    .then(|| format!("{} of {} answers differ", evidence.divergent, evidence.calls));
                (differs.or_else(|| too_slow(*max_slowdown).filter(|_| is_over)), is_over)
            }
            Rollout::Canary { calls, seconds, max_slowdown, .. } => {
                let since = evidence.calls.saturating_sub(trial.calls_before);
                (too_slow(*max_slowdown), since >= *calls && elapsed_ms >= seconds * 1_000)
            }
        };
        if let Some(reason) = verdict {
            self.quarantine_trial(&reason, now_ms, steps);
        } else if is_over {
            if let Rollout::Canary { steps: shares, .. } = &trial.mode
                && trial.step + 1 < shares.len()
            {
                trial.step += 1;
                (trial.since_ms, trial.calls_before) = (now_ms, evidence.calls);
                let reason = format!("{} % of the keys", shares[trial.step]);
                steps.push(trial.running.step(Phase::Canary, Some(reason), now_ms));
            } else if let Some(trial) = self.trial.take() {
                self.go_live(trial.running, now_ms, steps);
            }
        }
    }

    fn failed(&mut self, generation: u64, now_ms: u64, steps: &mut Vec<Transition>) {
        let max = self.probation.failures;
        if let Some(trial) = self.trial.as_mut().filter(|trial| trial.running.number == generation) {
            trial.failures += 1;
            if trial.failures >= max {
                let reason = format!("{} calls failed", trial.failures);
                self.quarantine_trial(&reason, now_ms, steps);
            }
        } else if let Some(Running { number, watched: Some(watched), .. }) = &mut self.live
            && *number == generation
            && now_ms < watched.until_ms
        {
            watched.failures += 1;
            if watched.failures >= max {
                let reason = format!("{} calls failed within its probation", watched.failures);
                self.roll_back(&reason, now_ms, steps);
            }
        }
    }

    /// The previous generation serves again.
    fn roll_back(&mut self, reason: &str, now_ms: u64, steps: &mut Vec<Transition>) {
        let Some(previous) = self.previous.take() else {
            return;
        };
        if let Some(bad) = self.live.take() {
            // A configuration that did harm does not condemn the bytes that served well before it, only itself with them.
            if bad.digest == previous.digest {
                steps.push(bad.step(Phase::Rejected, Some(reason.to_owned()), now_ms));
                if bad.settings != previous.settings {
                    self.condemn_config(&bad, reason, now_ms, steps);
                }
            } else {
                steps.push(bad.step(Phase::Quarantined, Some(reason.to_owned()), now_ms));
                self.condemn(bad.digest, reason);
                self.end_same(bad.digest, reason, now_ms, steps);
            }
        }
        steps.push(previous.step(Phase::Live, Some("rolled back to".to_owned()), now_ms));
        self.live = Some(previous);
    }

    fn quarantine_trial(&mut self, reason: &str, now_ms: u64, steps: &mut Vec<Transition>) {
        let Some(trial) = self.trial.take() else {
            return;
        };
        // A configuration that would do harm does not condemn the bytes that serve well without it.
        let digest = trial.running.digest;
        let serves = [&self.live, &self.previous].into_iter().flatten().any(|running| running.digest == digest);
        let phase = if serves { Phase::Rejected } else { Phase::Quarantined };
        if serves {
            self.condemn_config(&trial.running, reason, now_ms, steps);
        } else {
            self.condemn(digest, reason);
        }
        steps.push(trial.running.step(phase, Some(reason.to_owned()), now_ms));
    }

    fn end_trial(&mut self, phase: Phase, reason: &str, now_ms: u64, steps: &mut Vec<Transition>) {
        if let Some(trial) = self.trial.take() {
            steps.push(trial.running.step(phase, Some(reason.to_owned()), now_ms));
        }
    }

    /// What is on trial is gone where it is of these bytes, which are quarantined.
    fn end_same(&mut self, digest: Digest, reason: &str, now_ms: u64, steps: &mut Vec<Transition>) {
        if self.trial.as_ref().is_some_and(|trial| trial.running.digest == digest) {
            self.end_trial(Phase::Quarantined, reason, now_ms, steps);
        }
    }

    fn condemn(&mut self, digest: Digest, reason: &str) {
        if self.quarantined.len() >= QUARANTINED_MAX
            && let Some((forgotten, _)) = self.quarantined.pop_first()
        {
            self.by_hand.remove(&forgotten);
        }
        self.quarantined.insert(digest, reason.to_owned());
        if reason == BY_HAND {
            self.by_hand.insert(digest);
        } else {
            self.by_hand.remove(&digest);
        }
    }

    /// The bytes serve well with other settings: with these they are not taken again.
    fn condemn_config(&mut self, bad: &Running, reason: &str, now_ms: u64, steps: &mut Vec<Transition>) {
        let (digest, settings) = (bad.digest, bad.settings);
        let is_same = |running: &Running| (running.digest, running.settings) == (digest, settings);
        // The same once more did no worse than what serves on.
        if [&self.live, &self.previous].into_iter().flatten().any(is_same) {
            return;
        }
        if self.trial.as_ref().is_some_and(|trial| is_same(&trial.running)) {
            self.end_trial(Phase::Rejected, reason, now_ms, steps);
        }
        self.configurations.retain(|one| (one.digest, one.settings) != (digest, settings));
        if self.configurations.len() >= QUARANTINED_MAX {
            self.configurations.pop_front();
        }
        let by_hand = reason == BY_HAND;
        self.configurations.push_back(QuarantinedConfig { digest, settings, reason: reason.to_owned(), by_hand });
    }

    fn note(&mut self, step: Transition) {
        if self.stopped {
            return;
        }
        // One line a generation and phase; a canary's shares are lines of their own.
        if self.history.len() >= HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(step);
    }
}

impl Running {
    fn step(&self, phase: Phase, reason: Option<String>, at_ms: u64) -> Transition {
        Transition {
            generation: self.number,
            plugin: self.plugin.clone(),
            digest: Some(self.digest),
            configuration: Some(self.settings),
            phase,
            reason,
            at_ms,
        }
    }
}
