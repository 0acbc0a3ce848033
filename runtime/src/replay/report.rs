//! What a replay came to, free of the kind's types: to be printed, or written as JSON.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::budget::BudgetOutcome;
use crate::{
    digest::Digest,
    journal::{Fault, RecordId, Summary},
    limits::Limits,
};

/// What a replay came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The slot that the journal is of.
    pub slot: String,
    /// Its kind.
    pub kind: String,
    /// The component that was run.
    pub candidate: Side,
    /// The one that it was compared with; none: the recorded answers.
    pub against: Option<Side>,
    /// Which memory the candidate was handed.
    pub memory: Memory,
    /// Calls whose memory the candidate turned into its own form first, since an older version had recorded it.
    pub memories_upgraded: u64,
    /// Calls whose memory it could not turn, and that it began with an empty one, or failed.
    pub memories_lost: u64,
    /// What the components might use; none: the most that there is room for.
    pub limits: Option<Limits>,
    /// Calls replayed.
    pub calls: u64,
    /// Those whose answers differ.
    pub changed: u64,
    /// Answers by label; `failed` for those that gave none.
    pub labels: BTreeMap<String, LabelCount>,
    /// The changed answers by class of request and labels; the largest group first.
    pub groups: Vec<Group>,
    /// The candidate's failures by cause; `fuel`: it did not end.
    pub failures: BTreeMap<String, u64>,
    /// What a call costs in fuel, which is the same on every machine.
    pub fuel: Option<Fuel>,
    /// What a call of the candidate took here, in nanoseconds.
    pub candidate_ns: Option<u64>,
    /// What a call of the other component took here, in nanoseconds, where one was run.
    pub against_ns: Option<u64>,
    /// Calls to which the recorded component now answers otherwise than it did: 0, unless it is no pure step. None: its
    /// bytes are not at hand.
    pub unfaithful: Option<u64>,
    /// Calls left out because the description of their generation is broken.
    pub undescribed: u64,
    /// What was allowed to change, and whether it did more.
    pub budgets: Vec<BudgetOutcome>,
    /// What of the journal cannot be read; the first hundred.
    pub faults: Vec<Fault>,
    /// All of those.
    pub faults_total: u64,
    /// What the journal holds beside its calls.
    pub journal: Summary,
}

impl Report {
    /// Whether no budget is broken.
    pub fn is_within_budget(&self) -> bool {
        self.budgets.iter().all(|budget| !budget.broken)
    }
}

/// A component that was run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    /// The plugin's name.
    pub plugin: String,
    /// Its version.
    pub version: String,
    /// Its bytes.
    pub digest: Digest,
}

/// Which memory the calls were made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Memory {
    /// The recorded one.
    Recorded,
    /// The candidate's own.
    Own,
    /// The recorded one for some generations, its own for others.
    Both,
}

/// Answers with one label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LabelCount {
    /// In the journal, or of the component compared with.
    pub before: u64,
    /// Of the candidate.
    pub after: u64,
}

/// Changed answers that are alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// The class of the requests; empty where the kind has none.
    pub class: String,
    /// The label that the answers had.
    pub before: String,
    /// The label that they have.
    pub after: String,
    /// How many.
    pub calls: u64,
    /// How often each field differs; `.` is the whole answer.
    pub fields: BTreeMap<String, u64>,
    /// The first of them.
    pub examples: Vec<Example>,
}

/// One changed answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    /// Which call.
    pub call: RecordId,
    /// The generation that was asked.
    pub generation: u64,
    /// Whose memory.
    pub key: Value,
    /// What was asked.
    pub request: Value,
    /// The answer in the journal, or of the component compared with.
    pub before: Value,
    /// The candidate's.
    pub after: Value,
}

/// Fuel a call.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Fuel {
    /// The candidate's.
    pub candidate: f64,
    /// The other component's, where one was run.
    pub against: Option<f64>,
    /// How much more the candidate uses, in percent.
    pub change_percent: Option<f64>,
}

impl Fuel {
    pub(super) fn of(candidate: Option<f64>, against: Option<f64>) -> Option<Fuel> {
        let candidate = candidate?;
        let change_percent =
            against.filter(|against| *against > 0.0).map(|against| (candidate / against - 1.0) * 100.0);
        Some(Fuel { candidate, against, change_percent })
    }
}
