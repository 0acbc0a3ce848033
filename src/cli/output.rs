//! How answers are printed: tables for people, JSON for programs; progress on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

/// For whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// People.
    Table,
    /// Programs.
    Json,
}

/// Where answers go.
#[derive(Clone, Copy)]
pub struct Output {
    format: Format,
}

impl Output {
    /// Prints in `format`.
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether a program reads.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// One thing: as JSON, or its fields below each other.
    pub fn record(&self, value: &Value) {
        if self.is_json() {
            return self.json(value);
        }
        let Some(fields) = value.as_object() else { return self.line(shown(value)) };
        let width = fields.keys().map(String::len).max().unwrap_or(0);
        for (name, value) in fields {
            self.line(format!("{name:width$}  {}", cell(name, value)));
        }
    }

    /// Many things: as JSON, or a row each with these fields.
    pub fn list(&self, values: &[Value], columns: &[(&str, &str)]) {
        if self.is_json() {
            return self.json(&Value::Array(values.to_vec()));
        }
        let header = columns.iter().map(|(title, _)| (*title).to_owned()).collect();
        let row = |value: &Value| {
            columns.iter().map(|(_, pointer)| cell(pointer, value.pointer(pointer).unwrap_or(&Value::Null))).collect()
        };
        self.rows(std::iter::once(header).chain(values.iter().map(row)).collect());
    }

    /// Rows of cells, the first one the titles; columns as wide as they need.
    pub fn rows(&self, rows: Vec<Vec<String>>) {
        let columns = rows.first().map_or(0, Vec::len);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for row in &rows {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            self.line(cells.join("  ").trim_end());
        }
    }

    /// A line for people and programs alike.
    pub fn line(&self, line: impl AsRef<str>) {
        // A reader that has gone (`| head`) is no error of ours.
        let _ = self.reaches(line.as_ref());
    }

    /// The same, for who could go on for ever: whether somebody still reads.
    pub fn reaches(&self, line: &str) -> bool {
        writeln!(io::stdout().lock(), "{line}").is_ok()
    }

    /// A line that programs do not want.
    pub fn note(&self, line: impl AsRef<str>) {
        if !self.is_json() {
            self.line(line);
        }
    }

    /// JSON on one line.
    pub fn json(&self, value: &Value) {
        self.line(value.to_string());
    }

    /// A bar on a terminal, and nothing elsewhere: callers print lines there.
    pub fn progress(&self, total: u64, what: &str) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        if !io::stderr().is_terminal() || self.is_json() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = ProgressStyle::with_template("{prefix:>12} [{bar:32}] {human_pos}/{human_len} {per_sec} {msg}");
        bar.set_style(style.expect("the template names fields that exist").progress_chars("=> "));
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }
}

/// Progress of something long: a bar on a terminal, a line for every tenth elsewhere, nothing for programs.
pub struct Steps {
    output: Output,
    bar: ProgressBar,
    what: &'static str,
    tenths: u64,
}

impl Steps {
    /// Nothing done yet.
    pub fn new(output: &Output, what: &'static str) -> Self {
        Self { output: *output, bar: output.progress(0, what), what, tenths: 0 }
    }

    /// `done` of `total` are done; 0 where that is not known yet.
    pub fn show(&mut self, done: u64, total: u64) {
        self.bar.set_length(total.max(done));
        self.bar.set_position(done);
        let tenths = (done * 10).checked_div(total).unwrap_or(0);
        if self.bar.is_hidden() && tenths > self.tenths {
            self.output.note(format!("{}  {done} of {total}", self.what));
        }
        self.tenths = self.tenths.max(tenths);
    }

    /// Shows how far something is whose end is not known.
    pub fn tell(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    /// A line above the bar.
    pub fn note(&self, line: &str) {
        if self.bar.is_hidden() {
            self.output.note(line);
        } else {
            self.bar.println(line);
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A number of things: `1 error`, `2 errors`.
pub fn count(number: usize, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// A value in a cell, by the name of its field: times with their zone.
fn cell(name: &str, value: &Value) -> String {
    let name = name.rsplit('/').next().unwrap_or_default();
    match value {
        Value::String(time) if name == "timestamp" || name.ends_with("_at") || name.ends_with("_since") => zoned(time),
        other => shown(other),
    }
}

/// A time as people read it. On the wire it has no zone, and is UTC.
pub fn zoned(time: &str) -> String {
    if time.contains('T') && !time.ends_with('Z') { format!("{time}Z") } else { time.to_owned() }
}

/// A value in a cell: text without quotes, nothing for null, the rest as JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
