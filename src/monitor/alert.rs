//! When a condition is an alert: a state machine with a delay on the way up, a delay on the way down, and a band
//! between both thresholds in which nothing changes. Pure: the time is an argument.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::chain::Time;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The node does its work; it may not do so for long.
    Warning,
    /// The node, or the chain, does not do what it is for.
    Critical,
}

/// A condition that is looked at.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name.
    pub name: &'static str,
    /// How bad it is when it holds.
    pub severity: Severity,
    /// Whether it has to hold for a while first; what cannot be right even for a moment has not.
    pub waits: bool,
    /// What it says.
    pub about: &'static str,
}

/// How a condition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Below the threshold that raises it and above the one that clears it.
    Between,
    /// It holds.
    Raised,
}

/// A condition that is not clear.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Which.
    pub rule: &'static Rule,
    /// Of what, where a rule looks at several things; else empty.
    pub subject: String,
    /// How it is.
    pub level: Level,
    /// What there is to say, with figures.
    pub text: String,
}

/// How long conditions have to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Before a rule that waits is an alert, in milliseconds.
    pub for_ms: u64,
    /// How long it must be clear before the alert is resolved, in milliseconds.
    pub clear_ms: u64,
}

/// Where an alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing to see.
    Inactive,
    /// The condition was raised, and has not been clear since; not for long enough yet.
    Pending {
        /// When it was raised.
        since: Time,
    },
    /// It is an alert.
    Firing {
        /// When the condition was raised.
        since: Time,
        /// When it became an alert.
        at: Time,
        /// From when on it has been clear, if it is.
        clear_since: Option<Time>,
    },
    /// It was an alert.
    Resolved {
        /// When the condition had been raised.
        since: Time,
        /// When it ended.
        at: Time,
    },
}

/// How long an alert that is over is still shown, in milliseconds.
pub const SHOWN_MS: u64 = 3_600_000;

/// Alerts that there may be at a time; subjects beyond are not looked at.
pub const ALERTS_MAX: usize = 256;

impl Timing {
    fn for_ms(&self, rule: &Rule) -> u64 {
        if rule.waits { self.for_ms } else { 0 }
    }
}

impl State {
    /// The state after a look at `now` that found `level`, none for a condition that is clear; `for_ms` is the rule's.
    #[must_use]
    pub fn after(self, level: Option<Level>, now: Time, for_ms: u64, clear_ms: u64) -> Self {
        let fires = |since: Time| {
            if now.ms_since(since) >= for_ms {
                Self::Firing { since, at: now, clear_since: None }
            } else {
                Self::Pending { since }
            }
        };
        match (self, level) {
            (Self::Inactive | Self::Resolved { .. }, Some(Level::Raised)) => fires(now),
            (Self::Resolved { at, .. }, _) if now.ms_since(at) >= SHOWN_MS => Self::Inactive,
            (Self::Inactive | Self::Resolved { .. }, _) => self,
            (Self::Pending { .. }, None) => Self::Inactive,
            // Between the thresholds it is still on its way: a value around the upper one must not escape for ever.
            (Self::Pending { since }, Some(_)) => fires(since),
            (Self::Firing { since, at, .. }, Some(_)) => Self::Firing { since, at, clear_since: None },
            (Self::Firing { since, at, clear_since }, None) => {
                let clear = clear_since.unwrap_or(now);
                if now.ms_since(clear) >= clear_ms {
                    Self::Resolved { since, at: now }
                } else {
                    Self::Firing { since, at, clear_since: Some(clear) }
                }
            }
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Pending { .. } => "pending",
            Self::Firing { .. } => "firing",
            Self::Resolved { .. } => "resolved",
        }
    }

    /// Whether it is an alert.
    pub fn is_firing(&self) -> bool {
        matches!(self, Self::Firing { .. })
    }
}

/// An alert as it is shown and sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AlertStatus {
    /// The rule.
    pub name: &'static str,
    /// Of what, where the rule looks at several things.
    pub subject: String,
    /// How bad it is.
    pub severity: Severity,
    /// `pending`, `firing` or `resolved`.
    pub state: &'static str,
    /// When the condition was raised.
    pub since: Time,
    /// When it became what it is.
    pub at: Time,
    /// What there is to say, with figures, as of the last look that was not clear.
    pub text: String,
    /// What the rule says.
    pub about: &'static str,
}

/// Every alert that is not inactive.
#[derive(Debug, Default)]
pub struct Board(BTreeMap<(&'static str, String), Alert>);

#[derive(Debug)]
struct Alert {
    rule: &'static Rule,
    state: State,
    text: String,
}

impl Board {
    /// Takes in what a look found; conditions that are not among `findings` are clear. Answers what fires or is
    /// resolved with it.
    pub fn look(&mut self, findings: Vec<Finding>, now: Time, timing: Timing) -> Vec<AlertStatus> {
        let mut found: BTreeMap<_, _> =
            findings.into_iter().map(|finding| ((finding.rule.name, finding.subject.clone()), finding)).collect();
        let mut changes = Vec::new();
        for (key, alert) in &mut self.0 {
            let finding = found.remove(key);
            let was_firing = alert.state.is_firing();
            let level = finding.as_ref().map(|finding| finding.level);
            if let Some(finding) = finding {
                alert.text = finding.text;
            }
            alert.state = alert.state.after(level, now, timing.for_ms(alert.rule), timing.clear_ms);
            if alert.state.is_firing() != was_firing {
                changes.extend(alert.status(&key.1));
            }
        }
        self.0.retain(|_, alert| alert.state != State::Inactive);
        for (key, finding) in found {
            let state = State::Inactive.after(Some(finding.level), now, timing.for_ms(finding.rule), timing.clear_ms);
            if state == State::Inactive || self.0.len() >= ALERTS_MAX {
                continue;
            }
            let alert = Alert { rule: finding.rule, state, text: finding.text };
            if alert.state.is_firing() {
                changes.extend(alert.status(&key.1));
            }
            self.0.insert(key, alert);
        }
        changes
    }

    /// All that are not inactive, by name and subject.
    pub fn alerts(&self) -> Vec<AlertStatus> {
        self.0.iter().filter_map(|((_, subject), alert)| alert.status(subject)).collect()
    }
}

impl Alert {
    fn status(&self, subject: &str) -> Option<AlertStatus> {
        let (since, at) = match self.state {
            State::Inactive => return None,
            State::Pending { since } => (since, since),
            State::Firing { since, at, .. } | State::Resolved { since, at } => (since, at),
        };
        Some(AlertStatus {
            name: self.rule.name,
            subject: subject.to_owned(),
            severity: self.rule.severity,
            state: self.state.name(),
            since,
            at,
            text: self.text.clone(),
            about: self.rule.about,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    static RULE: Rule = Rule { name: "lag", severity: Severity::Warning, waits: true, about: "too far behind" };
    static AT_ONCE: Rule = Rule { name: "fork", severity: Severity::Critical, waits: false, about: "two chains" };
    const TIMING: Timing = Timing { for_ms: 1_000, clear_ms: 3_000 };

    fn finding(rule: &'static Rule, subject: &str, level: Level) -> Finding {
        Finding { rule, subject: subject.to_owned(), level, text: format!("{level:?}") }
    }

    fn at(ms: u64) -> Time {
        Time(1_000_000).plus_ms(ms)
    }

    #[test]
    fn an_alert_waits_fires_holds_and_is_resolved() {
        let steps = [
            (0, Some(Level::Between), "inactive"),
            (100, Some(Level::Raised), "pending"),
            (600, Some(Level::Between), "pending"),
            (1_099, Some(Level::Raised), "pending"),
            (1_100, Some(Level::Raised), "firing"),
            (2_000, None, "firing"),
            (4_000, Some(Level::Between), "firing"),
            (5_000, None, "firing"),
            (7_999, None, "firing"),
            (8_000, None, "resolved"),
            (8_500, Some(Level::Between), "resolved"),
            (9_000, Some(Level::Raised), "pending"),
            (9_500, None, "inactive"),
        ];
        let mut state = State::Inactive;
        for (ms, level, expected) in steps {
            state = state.after(level, at(ms), TIMING.for_ms, TIMING.clear_ms);
            assert_eq!(state.name(), expected, "at {ms} ms");
        }
    }

    #[test]
    fn what_is_over_is_shown_for_an_hour() {
        let resolved = State::Resolved { since: at(0), at: at(5_000) };
        assert_eq!(resolved.after(None, at(5_000 + SHOWN_MS - 1), 0, 0), resolved);
        assert_eq!(resolved.after(None, at(5_000 + SHOWN_MS), 0, 0), State::Inactive);
    }

    #[test]
    fn each_subject_is_an_alert_of_its_own_and_only_what_changes_is_answered() {
        let mut board = Board::default();
        let changes = board.look(vec![finding(&AT_ONCE, "a", Level::Raised)], at(0), TIMING);
        assert_eq!((changes.len(), changes[0].state, changes[0].subject.as_str()), (1, "firing", "a"));
        let both = || vec![finding(&AT_ONCE, "a", Level::Raised), finding(&AT_ONCE, "b", Level::Raised)];
        let changes = board.look(both(), at(100), TIMING);
        assert_eq!((changes.len(), changes[0].subject.as_str()), (1, "b"));
        assert_eq!(board.look(both(), at(200), TIMING), []);
        assert_eq!(board.look(Vec::new(), at(1_000), TIMING), []);
        let changes = board.look(Vec::new(), at(4_000), TIMING);
        assert_eq!(changes.iter().map(|change| change.state).collect::<Vec<_>>(), ["resolved", "resolved"]);
        assert_eq!(changes[0].text, "Raised", "what it was about");
        assert_eq!(board.alerts().len(), 2);
        assert_eq!(board.look(Vec::new(), at(4_000 + SHOWN_MS), TIMING), []);
        assert_eq!(board.alerts(), []);
    }

    #[test]
    fn there_is_a_bound_on_alerts() {
        let many = (0..ALERTS_MAX + 50).map(|at| finding(&AT_ONCE, &at.to_string(), Level::Raised)).collect();
        let mut board = Board::default();
        assert_eq!(board.look(many, at(0), TIMING).len(), ALERTS_MAX);
        assert_eq!(board.alerts().len(), ALERTS_MAX);
    }

    /// Whether an alert fires after each of the looks, told from the whole history: it begins at the first look at
    /// which the condition has not been clear for `for_ms` since it was raised, and ends at the first at which it has
    /// been clear for `clear_ms`.
    fn model(looks: &[(u64, Option<Level>)], timing: Timing) -> Vec<bool> {
        let mut firing = Vec::new();
        // Where the search for the next beginning starts.
        let mut from = 0;
        while from < looks.len() {
            let begins = (from..looks.len()).find(|&end| {
                (from..=end).any(|start| {
                    looks[start].1 == Some(Level::Raised)
                        && looks[start..=end].iter().all(|look| look.1.is_some())
                        && looks[end].0 - looks[start].0 >= timing.for_ms
                })
            });
            let Some(begins) = begins else { break };
            let ends = (begins + 1..looks.len()).find(|&end| {
                (begins + 1..=end).any(|start| {
                    looks[start..=end].iter().all(|look| look.1.is_none())
                        && looks[end].0 - looks[start].0 >= timing.clear_ms
                })
            });
            firing.resize(begins, false);
            firing.resize(ends.unwrap_or(looks.len()), true);
            from = ends.unwrap_or(looks.len());
        }
        firing.resize(looks.len(), false);
        firing
    }

    fn any_looks() -> impl Strategy<Value = Vec<(u64, Option<Level>)>> {
        let level = prop_oneof![Just(None), Just(Some(Level::Between)), Just(Some(Level::Raised))];
        // Runs of one level, so that delays are reached.
        let run = (level, 1..12_usize, 1..500_u64);
        prop::collection::vec(run, 1..20).prop_map(|runs| {
            let mut now = 0;
            let mut looks = Vec::new();
            for (level, count, step) in runs {
                for _ in 0..count {
                    now += step;
                    looks.push((now, level));
                }
            }
            looks
        })
    }

    proptest! {
        #[test]
        fn the_machine_says_what_the_history_says(
            looks in any_looks(), for_ms in 0..2_000_u64, clear_ms in 0..2_000_u64,
        ) {
            let timing = Timing { for_ms, clear_ms };
            let mut state = State::Inactive;
            for ((ms, level), expected) in looks.iter().zip(model(&looks, timing)) {
                state = state.after(*level, at(*ms), for_ms, clear_ms);
                prop_assert_eq!(state.is_firing(), expected, "at {} ms of {:?}", ms, looks);
            }
        }

        #[test]
        fn a_condition_that_stays_is_an_alert_within_twice_its_delay(
            before in any_looks(), for_ms in 1..60_000_u64, share in 0.01..1.0_f64,
        ) {
            let mut state = State::Inactive;
            let mut now = 0;
            for (ms, level) in before {
                now = ms;
                state = state.after(level, at(ms), for_ms, 5_000);
            }
            // However often is looked, as long as it is once per delay.
            let step = ((for_ms as f64 * share) as u64).max(1);
            let began = now + 1;
            while now < began + 2 * for_ms {
                now += step;
                state = state.after(Some(Level::Raised), at(now), for_ms, 5_000);
            }
            prop_assert!(state.is_firing());
        }

        #[test]
        fn flapping_is_told_no_more_than_once_per_delay_up_and_down(
            looks in any_looks(), for_ms in 0..1_000_u64, clear_ms in 1..1_000_u64,
        ) {
            let timing = Timing { for_ms, clear_ms };
            let mut board = Board::default();
            let mut told: Vec<(u64, &str)> = Vec::new();
            for (ms, level) in &looks {
                let findings = level.map(|level| finding(&RULE, "", level)).into_iter().collect();
                told.extend(board.look(findings, at(*ms), timing).iter().map(|change| (*ms, change.state)));
            }
            for pair in told.windows(2) {
                let delay = if pair[1].1 == "firing" { for_ms } else { clear_ms };
                prop_assert!(pair[0].1 != pair[1].1, "never the same twice: {told:?}");
                prop_assert!(pair[1].0 - pair[0].0 >= delay, "{told:?}");
            }
        }
    }
}
