//! What changed between two series of answers: by class and label, and field by field.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    Answer, Causes, is_same, json,
    report::{Example, Group, LabelCount},
};
use crate::{differ::differences, journal::Call, kind::Kind};

/// The label of a call that failed.
pub(super) const FAILED: &str = "failed";

/// Counts answers and their changes.
pub(super) struct Tally<K: Kind> {
    examples: usize,
    calls: u64,
    changed: u64,
    /// A handful: searched in order.
    labels: Vec<(&'static str, LabelCount)>,
    groups: BTreeMap<(&'static str, &'static str, &'static str), Group>,
    failures: Causes,
    kind: std::marker::PhantomData<fn() -> K>,
}

/// A tally as it stands in a report.
pub(super) struct Tallied {
    pub(super) calls: u64,
    pub(super) changed: u64,
    pub(super) labels: BTreeMap<String, LabelCount>,
    pub(super) groups: Vec<Group>,
    pub(super) failures: Causes,
}

impl<K: Kind> Tally<K> {
    pub(super) fn new(examples: usize) -> Tally<K> {
        Tally {
            examples,
            calls: 0,
            changed: 0,
            labels: Vec::new(),
            groups: BTreeMap::new(),
            failures: Causes::new(),
            kind: std::marker::PhantomData,
        }
    }

    pub(super) fn add(&mut self, call: &Call<K>, before: Answer<'_, K>, after: Answer<'_, K>) {
        self.calls += 1;
        let (label_before, label_after) = (label::<K>(before), label::<K>(after));
        self.count(label_before).before += 1;
        self.count(label_after).after += 1;
        if let Err(cause) = after {
            *self.failures.entry(cause.to_owned()).or_default() += 1;
        }
        if is_same::<K>(before, after) {
            return;
        }
        self.changed += 1;
        let class = K::class(&call.request);
        let group = self.groups.entry((class, label_before, label_after)).or_insert_with(|| Group {
            class: class.to_owned(),
            before: label_before.to_owned(),
            after: label_after.to_owned(),
            calls: 0,
            fields: BTreeMap::new(),
            examples: Vec::new(),
        });
        group.calls += 1;
        let (before, after) = (shown::<K>(before), shown::<K>(after));
        for field in differences(&before, &after) {
            *group.fields.entry(field).or_default() += 1;
        }
        if group.examples.len() < self.examples {
            let (key, request) = (json(&call.key), json(&call.request));
            group.examples.push(Example { call: call.id, generation: call.generation, key, request, before, after });
        }
    }

    pub(super) fn finish(self) -> Tallied {
        let mut groups: Vec<Group> = self.groups.into_values().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.calls));
        let labels = self.labels.into_iter().map(|(label, count)| (label.to_owned(), count)).collect();
        Tallied { calls: self.calls, changed: self.changed, labels, groups, failures: self.failures }
    }

    fn count(&mut self, label: &'static str) -> &mut LabelCount {
        let at = self.labels.iter().position(|(known, _)| *known == label).unwrap_or_else(|| {
            self.labels.push((label, LabelCount::default()));
            self.labels.len() - 1
        });
        &mut self.labels[at].1
    }
}

fn label<K: Kind>(answer: Answer<'_, K>) -> &'static str {
    answer.map_or(FAILED, K::label)
}

fn shown<K: Kind>(answer: Answer<'_, K>) -> Value {
    match answer {
        Ok(answer) => json(answer),
        Err(cause) => serde_json::json!({ FAILED: cause }),
    }
}
