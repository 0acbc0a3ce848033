//! Whether a generation may be asked: a pure state machine over its successes and failures; time is an argument.

use std::time::{Duration, Instant};

/// Health of one generation. Healthy until `strikes_max` failures in a row; then left alone for a while, longer each
/// time; then one trial call decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    state: State,
    strikes: u32,
    /// The next quarantine's length.
    backoff: Duration,
    rule: Rule,
}

/// When to give up on a generation, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) strikes_max: u32,
    pub(crate) backoff_min: Duration,
    pub(crate) backoff_max: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Healthy,
    Quarantined {
        until: Instant,
    },
    /// One trial call is under way. Should it never report back (a panic in the kind's own code), another may be made.
    Probing {
        until: Instant,
    },
}

/// What became of the generation with this call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    None,
    Quarantined {
        pause: Duration,
    },
    Recovered,
    /// Requests of one subject are no longer put to it for a while.
    SetAside {
        subject: u64,
        pause: Duration,
    },
}

impl Health {
    pub(crate) fn new(rule: Rule) -> Health {
        Health { state: State::Healthy, strikes: 0, backoff: rule.backoff_min, rule }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// Whether there is anything to remember: a healthy generation without strikes needs no bookkeeping at all.
    pub(crate) fn is_spotless(&self) -> bool {
        self.state == State::Healthy && self.strikes == 0
    }

    /// Whether a call may go to the plugin now. The first after a quarantine is the trial; others wait for its outcome.
    pub(crate) fn admit(&mut self, now: Instant) -> bool {
        match self.state {
            State::Healthy => true,
            State::Probing { until } | State::Quarantined { until } if now < until => false,
            State::Probing { .. } | State::Quarantined { .. } => {
                self.state = State::Probing { until: now + self.backoff };
                true
            }
        }
    }

    /// Whether no call would be admitted at `now`.
    pub(crate) fn is_resting(&self, now: Instant) -> bool {
        matches!(self.state, State::Quarantined { until } | State::Probing { until } if now < until)
    }

    /// The call went well.
    pub(crate) fn succeeded(&mut self) -> Turn {
        match self.state {
            // A call that began before the quarantine proves nothing about what led to it.
            State::Quarantined { .. } => Turn::None,
            State::Healthy => {
                self.strikes = 0;
                Turn::None
            }
            State::Probing { .. } => {
                *self = Health::new(self.rule);
                Turn::Recovered
            }
        }
    }

    /// Quarantines at once, whatever came before.
    pub(crate) fn trip(&mut self, now: Instant) -> Turn {
        if let State::Quarantined { .. } = self.state {
            return Turn::None;
        }
        self.strikes = self.rule.strikes_max;
        self.failed(now)
    }

    /// The call failed.
    pub(crate) fn failed(&mut self, now: Instant) -> Turn {
        match self.state {
            State::Quarantined { .. } => return Turn::None,
            State::Probing { .. } => {}
            State::Healthy => {
                self.strikes += 1;
                if self.strikes < self.rule.strikes_max {
                    return Turn::None;
                }
            }
        }
        let pause = self.backoff;
        self.state = State::Quarantined { until: now + pause };
        self.backoff = (pause * 2).min(self.rule.backoff_max);
        Turn::Quarantined { pause }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule() -> Rule {
        Rule { strikes_max: 3, backoff_min: Duration::from_secs(1), backoff_max: Duration::from_secs(5) }
    }

    #[test]
    fn quarantine_doubles_until_its_limit_and_one_good_trial_ends_it() {
        let mut now = Instant::now();
        let mut health = Health::new(rule());
        assert_eq!(health.failed(now), Turn::None);
        assert_eq!(health.failed(now), Turn::None);
        for seconds in [1, 2, 4, 5, 5] {
            let pause = Duration::from_secs(seconds);
            assert_eq!(health.failed(now), Turn::Quarantined { pause });
            assert!(health.is_resting(now) && !health.admit(now));
            now += pause;
            assert!(health.admit(now), "the trial");
            assert!(!health.admit(now), "others wait for the trial");
        }
        assert_eq!(health.succeeded(), Turn::Recovered);
        assert!(health.is_spotless());
        assert_eq!(health, Health::new(rule()));
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Call { succeeds: bool },
        Pass(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![any::<bool>().prop_map(|succeeds| Event::Call { succeeds }), (0..3_000_u64).prop_map(Event::Pass),]
    }

    proptest! {
        #[test]
        fn failures_never_reach_a_quarantined_plugin_and_waiting_always_brings_a_trial(
            events in proptest::collection::vec(event(), 0..200),
        ) {
            let mut now = Instant::now();
            let mut health = Health::new(rule());
            let mut in_a_row = 0;
            for event in events {
                match event {
                    Event::Pass(ms) => now += Duration::from_millis(ms),
                    Event::Call { succeeds } => {
                        if !health.admit(now) {
                            let State::Quarantined { until } = health.state() else {
                                panic!("only a quarantine refuses, one call at a time: {health:?}");
                            };
                            prop_assert!(until > now && until - now <= rule().backoff_max);
                            continue;
                        }
                        let trial = matches!(health.state(), State::Probing { .. });
                        in_a_row = if succeeds { 0 } else { in_a_row + 1 };
                        let turn = if succeeds { health.succeeded() } else { health.failed(now) };
                        match turn {
                            Turn::Recovered => prop_assert!(trial && succeeds),
                            Turn::Quarantined { .. } => {
                                prop_assert!(!succeeds);
                                prop_assert!(trial || in_a_row >= rule().strikes_max);
                            }
                            Turn::None => prop_assert!(!trial),
                            Turn::SetAside { .. } => prop_assert!(false, "of subjects it knows nothing"),
                        }
                    }
                }
            }
            prop_assert!(health.admit(now + rule().backoff_max));
        }
    }
}
