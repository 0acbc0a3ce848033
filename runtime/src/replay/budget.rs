//! What may change: `deny+0.1%,changed+1%`.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::Serialize;

use super::{compare::FAILED, report::LabelCount};

/// Stands for all calls whose answers differ.
const CHANGED: &str = "changed";

/// How much the share of one answer may grow.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Budget {
    /// A label of the kind, `failed`, or `changed`.
    pub label: String,
    /// Percentage points.
    pub points: f64,
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}%", self.label, self.points)
    }
}

/// Several budgets, written with commas between them: `deny+0.1%,throttle+0%,changed+1%,failed+0%`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Budgets(pub Vec<Budget>);

/// A text that is no budget.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no budget, expected LABEL+POINTS%, like deny+0.1%")]
pub struct NotABudget(String);

impl FromStr for Budgets {
    type Err = NotABudget;

    fn from_str(text: &str) -> Result<Budgets, NotABudget> {
        text.split(',')
            .map(|part| budget(part.trim()).ok_or_else(|| NotABudget(part.to_owned())))
            .collect::<Result<_, _>>()
            .map(Budgets)
    }
}

fn budget(text: &str) -> Option<Budget> {
    let (label, points) = text.split_once('+')?;
    let points: f64 = points.strip_suffix('%')?.parse().ok()?;
    let is_sound = !label.is_empty() && (0.0..=100.0).contains(&points);
    is_sound.then(|| Budget { label: label.to_owned(), points })
}

/// A budget that names no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a budget for {label:?}, which no answer is, known: {}", known.join(", "))]
pub struct UnknownLabel {
    /// What it names.
    pub label: String,
    /// What it could name.
    pub known: Vec<String>,
}

/// What became of a budget.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BudgetOutcome {
    /// The budget.
    #[serde(flatten)]
    pub budget: Budget,
    /// The share before, in percent.
    pub before_percent: f64,
    /// The share after, in percent.
    pub after_percent: f64,
    /// Whether it grew by more than it may.
    pub broken: bool,
}

impl Budgets {
    /// Whether every label is one of `labels`, where those are known ahead.
    pub(super) fn check_labels(&self, labels: &[&str]) -> Result<(), UnknownLabel> {
        self.check_seen((!labels.is_empty()).then_some(labels))
    }

    pub(super) fn check_seen(&self, labels: Option<&[&str]>) -> Result<(), UnknownLabel> {
        let Some(labels) = labels else {
            return Ok(());
        };
        let mut known: Vec<&str> = labels.iter().copied().filter(|label| *label != FAILED).collect();
        known.extend([FAILED, CHANGED]);
        match self.0.iter().find(|budget| !known.contains(&budget.label.as_str())) {
            None => Ok(()),
            Some(budget) => {
                let known = known.into_iter().map(str::to_owned).collect();
                Err(UnknownLabel { label: budget.label.clone(), known })
            }
        }
    }

    pub(super) fn judge(&self, calls: u64, changed: u64, labels: &BTreeMap<String, LabelCount>) -> Vec<BudgetOutcome> {
        let judge = |budget: &Budget| {
            let LabelCount { before, after } = if budget.label == CHANGED {
                LabelCount { before: 0, after: changed }
            } else {
                labels.get(&budget.label).copied().unwrap_or_default()
            };
            // Counts first: shares of floats would round a growth of nothing to one of something.
            let grown = after.saturating_sub(before);
            BudgetOutcome {
                budget: budget.clone(),
                before_percent: percent(before, calls),
                after_percent: percent(after, calls),
                broken: percent(grown, calls) > budget.points,
            }
        };
        self.0.iter().map(judge).collect()
    }
}

fn percent(count: u64, calls: u64) -> f64 {
    if calls == 0 { 0.0 } else { count as f64 * 100.0 / calls as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read_and_others_refused() {
        let budgets: Budgets = "deny+0.1%, failed+0%".parse().expect("budgets");
        let shown: Vec<String> = budgets.0.iter().map(Budget::to_string).collect();
        assert_eq!(shown, ["deny+0.1%", "failed+0%"]);
        for text in ["", "deny", "deny+1", "deny+x%", "+1%", "deny+-1%", "deny+101%", "deny+NaN%", "deny+1%,"] {
            text.parse::<Budgets>().expect_err(text);
        }
    }

    #[test]
    fn a_share_may_grow_by_so_much_and_no_more() {
        let labels = BTreeMap::from([
            ("deny".to_owned(), LabelCount { before: 10, after: 12 }),
            ("allow".to_owned(), LabelCount { before: 990, after: 988 }),
        ]);
        let judge = |text: &str| {
            let budgets: Budgets = text.parse().expect("a budget");
            budgets.judge(1_000, 7, &labels)[0].broken
        };
        for (text, broken) in [
            ("deny+0.2%", false),
            ("deny+0.1%", true),
            ("allow+0%", false),
            ("failed+0%", false),
            ("changed+0.7%", false),
            ("changed+0.69%", true),
        ] {
            assert_eq!(judge(text), broken, "{text}");
        }
    }

    #[test]
    fn a_budget_for_nothing_is_refused_with_what_there_is() {
        let budgets: Budgets = "refuse+1%".parse().expect("a budget");
        let error = budgets.check_labels(&["allow", "deny"]).expect_err("no such label");
        assert_eq!(
            error.to_string(),
            "a budget for \"refuse\", which no answer is, known: allow, deny, failed, changed"
        );
        assert_eq!(budgets.check_labels(&[]), Ok(()), "labels that are not known ahead are checked afterwards");
    }
}
