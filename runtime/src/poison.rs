//! Subjects (a client, the sender of a message) on which a generation keeps failing: each is set aside alone, so that one
//! poisonous input does not cost the others their plugin. Pure; time is an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Failures of one subject until it is set aside.
const STRIKES: u32 = 2;
/// Subjects that are remembered; beyond, the one that failed longest ago is forgotten.
const SUBJECTS_MAX: usize = 1_024;

/// The subjects of one generation.
#[derive(Debug)]
pub(crate) struct Poison {
    subjects: HashMap<u64, Subject>,
    rule: Rule,
}

/// For how long a subject is set aside, and how many may be before the plugin is to blame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) aside_max: u32,
    pub(crate) backoff_min: Duration,
    pub(crate) backoff_max: Duration,
}

#[derive(Debug)]
struct Subject {
    strikes: u32,
    failed: Instant,
    aside: Option<Aside>,
}

#[derive(Clone, Copy, Debug)]
struct Aside {
    until: Instant,
    backoff: Duration,
}

/// What a failure led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// Nothing yet.
    None,
    /// The subject is answered by others for a while.
    SetAside { pause: Duration },
    /// So many subjects fail that the plugin is to blame, and not they.
    Sweep,
}

impl Poison {
    pub(crate) fn new(rule: Rule) -> Poison {
        Poison { subjects: HashMap::new(), rule }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.subjects.is_empty()
    }

    /// Subjects that are set aside now.
    pub(crate) fn aside(&self, now: Instant) -> usize {
        self.subjects.values().filter(|subject| subject.is_aside(now)).count()
    }

    /// Whether the plugin may be asked for `subject`. When its time is over it may, once each time.
    pub(crate) fn admits(&self, subject: u64, now: Instant) -> bool {
        self.subjects.get(&subject).is_none_or(|subject| !subject.is_aside(now))
    }

    pub(crate) fn succeeded(&mut self, subject: u64) {
        self.subjects.remove(&subject);
    }

    pub(crate) fn failed(&mut self, subject: u64, now: Instant) -> Blame {
        if self.subjects.len() >= SUBJECTS_MAX && !self.subjects.contains_key(&subject) {
            let oldest = self.subjects.iter().min_by_key(|(_, subject)| subject.failed).map(|(number, _)| *number);
            oldest.map(|oldest| self.subjects.remove(&oldest));
        }
        let rule = self.rule;
        let entry = self.subjects.entry(subject).or_insert(Subject { strikes: 0, failed: now, aside: None });
        (entry.strikes, entry.failed) = (entry.strikes + 1, now);
        if entry.strikes < STRIKES {
            return Blame::None;
        }
        let pause = entry.aside.map_or(rule.backoff_min, |aside| (aside.backoff * 2).min(rule.backoff_max));
        entry.aside = Some(Aside { until: now + pause, backoff: pause });
        if self.aside(now) > rule.aside_max as usize {
            self.subjects.clear();
            return Blame::Sweep;
        }
        Blame::SetAside { pause }
    }
}

impl Subject {
    fn is_aside(&self, now: Instant) -> bool {
        self.aside.is_some_and(|aside| now < aside.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> Rule {
        Rule { aside_max: 4, backoff_min: Duration::from_secs(1), backoff_max: Duration::from_secs(3) }
    }

    #[test]
    fn two_strikes_set_a_subject_aside_and_nobody_else() {
        let (mut poison, mut now) = (Poison::new(rule()), Instant::now());
        assert_eq!(poison.failed(7, now), Blame::None);
        assert!(poison.admits(7, now));
        for seconds in [1, 2, 3, 3] {
            let pause = Duration::from_secs(seconds);
            assert_eq!(poison.failed(7, now), Blame::SetAside { pause });
            assert!(!poison.admits(7, now) && poison.admits(8, now));
            now += pause;
            assert!(poison.admits(7, now), "its time is over");
        }
        poison.succeeded(7);
        assert!(poison.is_empty());
        assert_eq!(poison.failed(7, now), Blame::None, "all is forgotten");
    }

    #[test]
    fn a_success_between_two_failures_forgives_the_first() {
        let (mut poison, now) = (Poison::new(rule()), Instant::now());
        for _ in 0..10 {
            assert_eq!(poison.failed(7, now), Blame::None);
            poison.succeeded(7);
        }
    }

    #[test]
    fn a_sweep_over_many_subjects_is_the_plugins_fault() {
        let (mut poison, now) = (Poison::new(rule()), Instant::now());
        for subject in 0..4 {
            poison.failed(subject, now);
            assert!(matches!(poison.failed(subject, now), Blame::SetAside { .. }));
        }
        poison.failed(4, now);
        assert_eq!(poison.failed(4, now), Blame::Sweep);
        assert!(poison.is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut poison, mut now) = (Poison::new(rule()), Instant::now());
        for subject in 0..5_000 {
            now += Duration::from_millis(1);
            poison.failed(subject, now);
        }
        assert_eq!(poison.subjects.len(), SUBJECTS_MAX);
        assert!(poison.subjects.contains_key(&4_999) && !poison.subjects.contains_key(&0));
    }
}
