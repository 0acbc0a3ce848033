//! What is to happen when, in virtual time; things of one moment happen in the order in which they were noted.

use std::collections::BTreeMap;

use crate::chain::Time;

/// Things to come.
#[derive(Debug)]
pub struct Agenda<T> {
    entries: BTreeMap<(Time, u64), T>,
    next: u64,
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Agenda<T> {
    /// Nothing to come.
    pub fn new() -> Self {
        Self { entries: BTreeMap::new(), next: 0 }
    }

    /// Notes that `thing` happens at `at`.
    pub fn note(&mut self, at: Time, thing: T) {
        self.entries.insert((at, self.next), thing);
        self.next += 1;
    }

    /// When something happens next.
    pub fn next_at(&self) -> Option<Time> {
        self.entries.first_key_value().map(|((at, _), _)| *at)
    }

    /// What happens next, if that is at `now` or before.
    pub fn take(&mut self, now: Time) -> Option<T> {
        let is_due = self.next_at().is_some_and(|at| at <= now);
        is_due.then(|| self.entries.pop_first().expect("just looked at").1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_happen_by_time_and_then_by_order() {
        let mut agenda = Agenda::new();
        for (at, thing) in [(5, "c"), (3, "a"), (5, "d"), (4, "b")] {
            agenda.note(Time(at), thing);
        }
        assert_eq!((agenda.next_at(), agenda.take(Time(2))), (Some(Time(3)), None));
        let all: Vec<_> = std::iter::from_fn(|| agenda.take(Time(5))).collect();
        assert_eq!(all, ["a", "b", "c", "d"]);
        assert_eq!(agenda.next_at(), None);
    }
}
