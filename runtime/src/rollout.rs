//! The way of a generation to live and back: a pure state machine over what happens; time is an argument.
//!
//! ```text
//! candidate -> checked -> compiled -> probed -+-> shadow -+-> live -> previous -> retired
//!        \         \          \          \    +-> canary -+     \
//!         +---------+----------+----------+-> rejected     +-> quarantined
//! ```
//! At most one generation each is live, previous (kept warm, to go back to) and on trial (shadow or canary). What is to
//! serve is always the whole [`Picture`]; the slot makes it so with one pointer.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// How new bytes, or a new configuration, become live.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Rollout {
    /// At once.
    #[default]
    Immediate,
    /// The candidate first answers beside the live one, unseen; answers are compared.
    Shadow {
        /// Comparisons until it is decided. Default 1,000, where no time is given.
        #[serde(default)]
        calls: Option<u64>,
        /// Or seconds, with at least one comparison.
        #[serde(default)]
        seconds: Option<u64>,
        /// The share of answers that may differ, 0 to 1. Default 0.
        #[serde(default)]
        max_divergence: f64,
        /// How much slower it may be at the 99th percentile, as a factor. Default 10.
        #[serde(default = "default_slowdown")]
        max_slowdown: f64,
    },
    /// The candidate answers a growing share of the keys.
    Canary {
        /// The shares in percent, ascending; after the last it is live. Default 1, 10, 100.
        #[serde(default = "default_steps")]
        steps: Vec<u8>,
        /// Its calls until the next step, at least 1. Default 1,000.
        #[serde(default = "default_calls")]
        calls: u64,
        /// Seconds that a step takes at least. Default 0.
        #[serde(default)]
        seconds: u64,
        /// How much slower it may be at the 99th percentile, as a factor. Default 10.
        #[serde(default = "default_slowdown")]
        max_slowdown: f64,
    },
}

fn default_slowdown() -> f64 {
    10.0
}
fn default_steps() -> Vec<u8> {
    vec![1, 10, 100]
}
fn default_calls() -> u64 {
    1_000
}

impl Rollout {
    /// Whether every number is within its range. Errors: the first that is not, by name.
    pub fn check(&self) -> Result<(), String> {
        let slowdown = |factor: f64| match factor {
            1.0..=1e6 => Ok(()),
            _ => Err(format!("max_slowdown is {factor}, expected 1 to 1,000,000")),
        };
        match self {
            Rollout::Immediate => Ok(()),
            Rollout::Shadow { calls, seconds, max_divergence, max_slowdown } => {
                if *calls == Some(0) || *seconds == Some(0) {
                    return Err("calls and seconds are at least 1".to_owned());
                }
                if !(0.0..=1.0).contains(max_divergence) {
                    return Err(format!("max_divergence is {max_divergence}, expected 0 to 1"));
                }
                slowdown(*max_slowdown)
            }
            Rollout::Canary { steps, calls, max_slowdown, .. } => {
                let ascends = steps.windows(2).all(|pair| pair[0] < pair[1]);
                if steps.is_empty() || !ascends || steps.iter().any(|step| !(1..=100).contains(step)) {
                    return Err(format!("steps is {steps:?}, expected ascending percentages from 1 to 100"));
                }
                if *calls == 0 {
                    return Err("calls is at least 1".to_owned());
                }
                slowdown(*max_slowdown)
            }
        }
    }
}

/// How long a new generation is watched, and what brings the previous one back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Probation {
    /// Seconds after it went live. Default 60; 0: none.
    pub seconds: u64,
    /// Failed calls in that time. Default 2.
    pub failures: u64,
    /// How much slower it may be at the 99th percentile than the previous one, as a factor. Default 10.
    pub max_slowdown: f64,
}

impl Default for Probation {
    fn default() -> Probation {
        Probation { seconds: 60, failures: 2, max_slowdown: 10.0 }
    }
}

impl Probation {
    /// Whether every number is within its range. Errors: the first that is not, by name.
    pub fn check(&self) -> Result<(), String> {
        if self.failures == 0 {
            return Err("failures is 0, expected 1 or more".to_owned());
        }
        match self.max_slowdown {
            1.0..=1e6 => Ok(()),
            factor => Err(format!("max_slowdown is {factor}, expected 1 to 1,000,000")),
        }
    }
}

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
}

/// One generation of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Transition {
    /// Its number; 0 while it has none.
    pub generation: u64,
    /// The plugin's name.
    pub plugin: String,
    /// Its bytes.
    pub digest: Digest,
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
    Probed { plugin: String, digest: Digest, mode: Rollout, forced: bool },
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
    history: VecDeque<Transition>,
    newly_proven: bool,
}

#[derive(Clone, Debug)]
struct Running {
    number: u64,
    plugin: String,
    digest: Digest,
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

/// Generations that a slot remembers.
const HISTORY_MAX: usize = 64;
/// Quarantined bytes that it remembers.
const QUARANTINED_MAX: usize = 64;

/// What is kept of a machine across restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Kept {
    pub(crate) quarantined: BTreeMap<Digest, String>,
    pub(crate) history: VecDeque<Transition>,
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
            history: VecDeque::new(),
            newly_proven: false,
        }
    }

    /// Takes up what an earlier process kept. Nothing serves yet; numbers begin anew at 1, as memories do.
    pub(crate) fn restore(&mut self, kept: &Kept) {
        self.quarantined = kept.quarantined.clone();
        self.history = kept.history.clone();
        // What served then does not serve now.
        for step in &mut self.history {
            if matches!(step.phase, Phase::Live | Phase::Previous | Phase::Shadow | Phase::Canary) {
                step.phase = Phase::Retired;
                step.reason = Some("the node stopped".to_owned());
            }
        }
    }

    pub(crate) fn kept(&self) -> Kept {
        Kept { quarantined: self.quarantined.clone(), history: self.history.clone() }
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
        let plugin = plugin.to_owned();
        self.note(Transition { generation: 0, plugin, digest, phase: Phase::Rejected, reason, at_ms: now_ms });
    }

    /// One thing happens. Answers the steps that generations took; no step means that nothing changed.
    pub(crate) fn apply(&mut self, input: Input, now_ms: u64) -> Result<Vec<Transition>, Refused> {
        let mut steps = Vec::new();
        match input {
            Input::Probed { plugin, digest, mode, forced } => {
                if forced {
                    self.quarantined.remove(&digest);
                } else if let Some(reason) = self.quarantined.get(&digest) {
                    return Err(Refused::Quarantined(reason.clone()));
                }
                // The newest bytes are what an operator wants to see; those on trial are no longer.
                self.end_trial(Phase::Rejected, "another candidate came", now_ms, &mut steps);
                self.last_number += 1;
                let running = Running { number: self.last_number, plugin, digest, watched: None };
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
                    if !serves {
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
            // A configuration that did harm does not condemn the bytes that served well before it.
            if bad.digest == previous.digest {
                steps.push(bad.step(Phase::Rejected, Some(reason.to_owned()), now_ms));
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
        if !serves {
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
        if self.quarantined.len() >= QUARANTINED_MAX {
            self.quarantined.pop_first();
        }
        self.quarantined.insert(digest, reason.to_owned());
    }

    fn note(&mut self, step: Transition) {
        // One line a generation and phase; a canary's shares are lines of their own.
        if self.history.len() >= HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(step);
    }
}

impl Running {
    fn step(&self, phase: Phase, reason: Option<String>, at_ms: u64) -> Transition {
        Transition { generation: self.number, plugin: self.plugin.clone(), digest: self.digest, phase, reason, at_ms }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap, HashSet};

    use super::*;

    fn digest(letter: u8) -> Digest {
        Digest::of(&[letter])
    }

    fn probed(letter: u8, mode: Rollout, forced: bool) -> Input {
        Input::Probed { plugin: "p".to_owned(), digest: digest(letter), mode, forced }
    }

    fn shadow() -> Rollout {
        Rollout::Shadow { calls: Some(10), seconds: None, max_divergence: 0.1, max_slowdown: 2.0 }
    }

    fn canary() -> Rollout {
        Rollout::Canary { steps: vec![10, 100], calls: 10, seconds: 0, max_slowdown: 2.0 }
    }

    fn evidence(calls: u64, divergent: u64, slowdown: Option<f64>) -> Evidence {
        Evidence { calls, divergent, failures: 0, slowdown }
    }

    fn tick(trial: Evidence, live: Evidence) -> Input {
        Input::Tick { trial, live }
    }

    /// Everything that can happen to a machine: three components in each mode, by force or not; every verdict of a
    /// trial and of a probation; failures of whoever there is; orders.
    fn inputs(machine: &Machine) -> Vec<Input> {
        let mut inputs = Vec::new();
        for letter in *b"abc" {
            for mode in [Rollout::Immediate, shadow(), canary()] {
                inputs.push(probed(letter, mode.clone(), false));
                inputs.push(probed(letter, mode, true));
            }
        }
        let none = Evidence::default();
        for trial in [none, evidence(1_000, 0, None), evidence(1_000, 500, None), evidence(1_000, 0, Some(3.0))] {
            inputs.push(tick(trial, none));
        }
        inputs.push(tick(none, evidence(1_000, 0, Some(100.0))));
        let picture = machine.picture();
        let numbers = [picture.live, picture.previous, picture.trial.map(Trial::generation), Some(0)];
        inputs.extend(numbers.into_iter().flatten().map(|generation| Input::Failed { generation }));
        inputs.push(Input::Promote);
        inputs.push(Input::Rollback { reason: "asked".to_owned() });
        inputs.push(Input::Condemn { reason: "harm".to_owned() });
        inputs.push(Input::Remove { reason: "gone".to_owned() });
        inputs
    }

    /// What of a machine decides how it goes on: numbers and times only as far as they do.
    fn essence(machine: &Machine, now_ms: u64) -> String {
        let running = |running: &Running| {
            let watched = running.watched.map(|watched| (watched.failures, now_ms < watched.until_ms));
            (running.digest, watched)
        };
        let trial = machine.trial.as_ref().map(|trial| {
            let mode = matches!(trial.mode, Rollout::Shadow { .. });
            (trial.running.digest, mode, trial.step, trial.failures, trial.calls_before > 0)
        });
        let quarantined: BTreeSet<_> = machine.quarantined.keys().collect();
        let (live, previous) = (machine.live.as_ref().map(running), machine.previous.as_ref().map(running));
        format!("{live:?} {previous:?} {trial:?} {quarantined:?}")
    }

    /// The ways that one number may go.
    fn may_follow(before: Option<Phase>, after: Phase) -> bool {
        use Phase::*;
        match before {
            None => matches!(after, Shadow | Canary | Live),
            Some(Shadow) => matches!(after, Live | Rejected | Quarantined),
            Some(Canary) => matches!(after, Canary | Live | Rejected | Quarantined),
            Some(Live) => matches!(after, Previous | Retired | Rejected | Quarantined),
            Some(Previous) => matches!(after, Live | Retired | Quarantined),
            Some(_) => false,
        }
    }

    /// Every state that any order of events leads to, and every step from each of them.
    #[test]
    fn whatever_happens_exactly_one_generation_answers_and_the_way_back_is_open() {
        let mut seen = HashSet::new();
        let mut open = vec![(Machine::new(Probation { seconds: 60, failures: 2, max_slowdown: 10.0 }), 0_u64)];
        let (mut steps_taken, mut rollbacks, mut promotions) = (0, 0, 0);
        while let Some((machine, now_ms)) = open.pop() {
            if !seen.insert(essence(&machine, now_ms)) {
                continue;
            }
            for input in inputs(&machine) {
                // At once, and after every probation is over.
                for later_ms in [0, 61_000] {
                    let (before, now_ms) = (machine.picture(), now_ms + later_ms);
                    let mut after = machine.clone();
                    let phases: HashMap<u64, Phase> =
                        machine.history.iter().map(|step| (step.generation, step.phase)).collect();
                    let steps = after.apply(input.clone(), now_ms);
                    steps_taken += 1;
                    let told = || format!("{input:?} after {later_ms} ms on {machine:?}");
                    let Ok(steps) = steps else {
                        assert_eq!(after.picture(), before, "refused, so nothing changed: {}", told());
                        continue;
                    };
                    let picture = after.picture();
                    let numbers = [picture.live, picture.previous, picture.trial.map(Trial::generation)];
                    let numbers: Vec<u64> = numbers.into_iter().flatten().collect();
                    assert_eq!(
                        numbers.iter().collect::<HashSet<_>>().len(),
                        numbers.len(),
                        "one role each: {}",
                        told()
                    );
                    if before.live.is_some() && !matches!(input, Input::Remove { .. }) {
                        assert!(picture.live.is_some(), "somebody answers on: {}", told());
                    }
                    assert!(picture.previous.is_none() || picture.live.is_some(), "{}", told());
                    let watched = after.live.as_ref().is_some_and(|live| live.watched.is_some());
                    assert!(!watched || picture.previous.is_some(), "watched, with nothing to go back to: {}", told());
                    for running in [&after.live, &after.previous].into_iter().flatten() {
                        assert!(
                            !after.quarantined.contains_key(&running.digest),
                            "quarantined and serving: {}",
                            told()
                        );
                    }
                    if let Input::Failed { generation } = input {
                        if before.live == Some(generation) && picture.live != before.live {
                            assert_eq!(picture.live, before.previous, "back to what was before: {}", told());
                            rollbacks += 1;
                        }
                        assert!(steps.len() <= 3, "{}", told());
                    }
                    if matches!(input, Input::Promote) {
                        assert_eq!(picture.live, before.trial.map(Trial::generation), "{}", told());
                        assert_eq!(picture.previous, before.live, "the way back is open: {}", told());
                        promotions += 1;
                    }
                    assert_eq!(picture == before, steps.is_empty(), "whatever changes is told: {}", told());
                    let mut phases = phases;
                    for step in &steps {
                        let former = phases.insert(step.generation, step.phase);
                        assert!(may_follow(former, step.phase), "{former:?} to {:?}: {}", step.phase, told());
                    }
                    // What is told and what is so agree.
                    for number in &numbers {
                        let expected: &[Phase] = match () {
                            () if picture.live == Some(*number) => &[Phase::Live],
                            () if picture.previous == Some(*number) => &[Phase::Previous],
                            () => &[Phase::Shadow, Phase::Canary],
                        };
                        assert!(expected.contains(&phases[number]), "{number} is {:?}: {}", phases[number], told());
                    }
                    // A restart forgets who serves, and nothing else.
                    let mut restarted = Machine::new(after.probation.clone());
                    restarted.restore(&after.kept());
                    assert_eq!(restarted.quarantined, after.quarantined);
                    // Long runs must not push what serves out of the history.
                    if after.history.len() > 40 {
                        let keep: HashSet<u64> = numbers.iter().copied().collect();
                        after.history.retain(|step| keep.contains(&step.generation));
                    }
                    open.push((after, now_ms));
                }
            }
        }
        assert!(seen.len() > 500 && rollbacks > 50 && promotions > 50, "{} states, {steps_taken} steps", seen.len());
    }

    #[test]
    fn a_shadow_that_agrees_goes_live_and_one_that_differs_is_quarantined() {
        let mut machine = Machine::new(Probation::default());
        machine.apply(probed(b'a', Rollout::Immediate, false), 0).unwrap();
        machine.apply(probed(b'b', shadow(), false), 1).unwrap();
        assert_eq!(machine.picture().trial, Some(Trial::Shadow(2)));
        let none = Evidence::default();
        assert!(machine.apply(tick(evidence(9, 0, None), none), 2).unwrap().is_empty(), "not yet");
        machine.apply(tick(evidence(10, 1, None), none), 3).unwrap();
        assert_eq!(machine.picture(), Picture { live: Some(2), previous: Some(1), trial: None });
        machine.apply(probed(b'c', shadow(), false), 4).unwrap();
        // More than it could make good: no need to wait for the rest.
        machine.apply(tick(evidence(5, 2, None), none), 5).unwrap();
        assert_eq!(machine.picture().trial, None);
        assert_eq!(machine.quarantine(digest(b'c')), Some("2 of 5 answers differ"));
        let refused = machine.apply(probed(b'c', shadow(), false), 6).unwrap_err();
        assert!(refused.to_string().contains("2 of 5 answers differ"));
        machine.apply(probed(b'c', Rollout::Immediate, true), 7).unwrap();
        assert_eq!((machine.picture().live, machine.quarantine(digest(b'c'))), (Some(4), None));
    }

    #[test]
    fn a_canary_takes_every_step_and_each_takes_its_calls() {
        let mut machine = Machine::new(Probation::default());
        machine.apply(probed(b'a', Rollout::Immediate, false), 0).unwrap();
        machine.apply(probed(b'b', canary(), false), 0).unwrap();
        let none = Evidence::default();
        assert_eq!(machine.picture().trial, Some(Trial::Canary(2, 10)));
        machine.apply(tick(evidence(10, 0, None), none), 1).unwrap();
        assert_eq!(machine.picture().trial, Some(Trial::Canary(2, 100)));
        assert!(machine.apply(tick(evidence(19, 0, None), none), 2).unwrap().is_empty());
        machine.apply(tick(evidence(20, 0, None), none), 3).unwrap();
        assert_eq!(machine.picture(), Picture { live: Some(2), previous: Some(1), trial: None });
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let canary =
            |steps: &[u8], calls| Rollout::Canary { steps: steps.to_vec(), calls, seconds: 0, max_slowdown: 2.0 };
        for (rollout, named) in [
            (canary(&[], 1), "steps"),
            (canary(&[10, 1], 1), "steps"),
            (canary(&[0], 1), "steps"),
            (canary(&[101], 1), "steps"),
            (canary(&[1], 0), "calls"),
            (Rollout::Shadow { calls: Some(0), seconds: None, max_divergence: 0.0, max_slowdown: 2.0 }, "calls"),
            (Rollout::Shadow { calls: None, seconds: None, max_divergence: 1.1, max_slowdown: 2.0 }, "max_divergence"),
            (Rollout::Shadow { calls: None, seconds: None, max_divergence: 0.0, max_slowdown: 0.5 }, "max_slowdown"),
        ] {
            assert!(rollout.check().unwrap_err().contains(named), "{rollout:?}");
        }
        assert!(canary(&[1, 10, 100], 1).check().is_ok());
        assert!(Probation { failures: 0, ..Probation::default() }.check().unwrap_err().contains("failures"));
    }
}
