//! Figures: printed as a table, written as JSON.

use std::path::Path;

use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What it should reach, if anything.
    pub goal: Option<f64>,
    /// What the floor program reaches, in the same unit, where there is one.
    pub floor: Option<f64>,
    /// Whether it reaches its goal.
    pub met: Option<bool>,
}

/// All figures of one run.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// A figure for comparison, without a goal.
    pub fn note(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.push(Row { name: name.into(), value, unit, goal: None, floor: None, met: None });
    }

    /// A figure that should be `goal` or more.
    pub fn at_least(&mut self, name: impl Into<String>, value: f64, unit: &'static str, goal: f64, floor: Option<f64>) {
        self.push(Row { name: name.into(), value, unit, goal: Some(goal), floor, met: Some(value >= goal) });
    }

    /// A figure that should be `goal` or less.
    pub fn at_most(&mut self, name: impl Into<String>, value: f64, unit: &'static str, goal: f64, floor: Option<f64>) {
        self.push(Row { name: name.into(), value, unit, goal: Some(goal), floor, met: Some(value <= goal) });
    }

    fn push(&mut self, row: Row) {
        println!("{}", line(&row));
        self.rows.push(row);
    }

    /// Prints the table and writes the JSON. Answers whether every goal was met.
    pub fn finish(self, path: &Path) -> bool {
        println!("\n{:<66} {:>14} {:<10} {:>12} {:>12}  met", "figure", "value", "unit", "goal", "floor");
        for row in &self.rows {
            println!("{}", line(row));
        }
        let json = serde_json::to_string_pretty(&self.rows).expect("figures are finite");
        std::fs::write(path, json).expect("the target directory can be written");
        println!("\nwritten: {}", path.display());
        self.rows.iter().all(|row| row.met != Some(false))
    }
}

fn line(row: &Row) -> String {
    let number = |value: f64| if value.abs() >= 1_000.0 { format!("{value:.0}") } else { format!("{value:.3}") };
    let optional = |value: Option<f64>| value.map_or("-".into(), number);
    let met = match row.met {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "",
    };
    let (value, goal, floor) = (number(row.value), optional(row.goal), optional(row.floor));
    format!("{:<66} {value:>14} {:<10} {goal:>12} {floor:>12}  {met}", row.name, row.unit)
}

/// The middle of some samples.
pub fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
