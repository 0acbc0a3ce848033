//! `tenon plugin replay` and `tenon plugin explain`: recorded calls, made again on another component or configuration.
//! A journal may come from another machine; without one, it is that of the node in `--dir`.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Error, Result};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use tenon::chain::Time;
use tenon::config::{Config, FILE};
use tenon_runtime::journal::{NoJournal, RecordId};
use tenon_runtime::replay::{Again, Against, Budgets, Explanation, Listed, MemoryMode, Options, Report, Side};
use tenon_runtime::{Digest, Limits};

use super::Outcome;
use super::output::{Output, zoned};
use super::plugin::{Admin, path};

/// What to replay.
#[derive(Args)]
pub struct Replay {
    /// The component to try
    candidate: PathBuf,
    #[command(flatten)]
    journal: Journal,
    /// Compare with this component instead of the recorded answers
    #[arg(long, value_name = "WASM")]
    against: Option<PathBuf>,
    /// What may grow by how many percentage points, like deny+0.1%,changed+1%,failed+0%
    #[arg(long)]
    budget: Option<Budgets>,
    /// Examples of each kind of change
    #[arg(long, default_value_t = 3)]
    examples: usize,
    /// Succeed although parts of the journal cannot be read
    #[arg(long)]
    allow_faults: bool,
}

/// What to explain.
#[derive(Args)]
pub struct Explain {
    /// The call: segment.shard.n, as `replay` prints it [default: lists the latest calls instead]
    call: Option<RecordId>,
    #[command(flatten)]
    journal: Journal,
    /// Make the call on this component [default: the one that answered, where the node's directory has it]
    #[arg(long, value_name = "WASM", requires = "call")]
    with: Option<PathBuf>,
    /// How many calls to list
    #[arg(long, default_value_t = 20, conflicts_with = "call")]
    limit: usize,
}

/// Which calls, and how they are made again.
#[derive(Args)]
struct Journal {
    /// The journal of a slot: the folder of its segments, or one file [default: that of --slot in the node's directory]
    #[arg(long = "journal", value_name = "PATH")]
    path: Option<PathBuf>,
    /// The slot, where the journal is the node's own
    #[arg(long, default_value = "rate-limit")]
    slot: String,
    /// The component's configuration: a file, or JSON [default: as recorded; that of another plugin: {}]
    #[arg(long, value_name = "JSON", value_parser = config)]
    config: Option<Value>,
    /// Whose memory each call gets [default: recorded, where the component can read it or take it over; else own]
    #[arg(long, value_enum)]
    memory: Option<Memory>,
    /// What a call may use, like {"memory_max_bytes":1048576}: a file, or JSON [default: the recorded slot's limits]
    #[arg(long, value_name = "JSON", value_parser = limits)]
    limits: Option<Limits>,
}

/// Whose memory a call gets.
#[derive(Clone, Copy, ValueEnum)]
enum Memory {
    /// What the recorded call had: which of these calls would go otherwise, had the candidate just taken over
    Recorded,
    /// The component's own, from nothing on: how all of it would have gone, each answer weighing on the later ones
    Own,
}

impl From<Memory> for MemoryMode {
    fn from(memory: Memory) -> Self {
        match memory {
            Memory::Recorded => Self::Recorded,
            Memory::Own => Self::Own,
        }
    }
}

fn config(text: &str) -> Result<Value, String> {
    let read;
    let text = if text.trim_start().starts_with('{') {
        text
    } else {
        read = fs::read_to_string(text).map_err(|error| format!("reading {text}: {error}"))?;
        &read
    };
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// Those that are not named are the defaults.
fn limits(text: &str) -> Result<Limits, String> {
    let limits: Limits = serde_json::from_value(config(text)?).map_err(|error| error.to_string())?;
    limits.check()?;
    Ok(limits)
}

impl Journal {
    /// Where it is. A node that runs in `dir` is asked to write what it has in memory first.
    async fn path(&self, admin: &Admin) -> PathBuf {
        if let Some(path) = &self.path {
            return path.clone();
        }
        if let Ok(node) = admin.node() {
            // One that does not run has written everything.
            let _ = node.get(&path(&self.slot, "journal")).await;
        }
        tenon_runtime::journal::Journal::dir_of(&data(&admin.dir).join("plugins/journal"), &self.slot)
    }

    /// `error`, with what an operator can do about it where the node has recorded nothing of the slot.
    fn hint(&self, dir: &Path, error: Error) -> Error {
        let is_missing = match error.downcast_ref() {
            _ if self.path.is_some() => return error,
            Some(NoJournal::Nothing(_)) => false,
            Some(NoJournal::Unreadable { error, .. }) if error.kind() == io::ErrorKind::NotFound => true,
            _ => return error,
        };
        let why = match Config::load(dir) {
            Ok(config) => self.why_nothing(dir, &config),
            Err(_) => format!(
                "{} is not a node's directory: --dir names one that has recorded calls, --journal a journal",
                dir.display()
            ),
        };
        if is_missing { Error::msg(why) } else { error.context(why) }
    }

    fn why_nothing(&self, dir: &Path, config: &Config) -> String {
        let (slot, file) = (&self.slot, dir.join(FILE));
        let plugins = &config.plugins;
        let mut slots = vec![
            ("rate-limit".to_owned(), "[plugins.rate-limit]", &plugins.rate_limit.journal),
            ("sync".to_owned(), "[plugins.sync]", &plugins.sync.journal),
        ];
        slots.extend(config.agents.iter().map(|agent| (agent.slot(), "its [[agents]] section", &agent.journal)));
        match slots.iter().find(|(name, ..)| name == slot) {
            Some((_, section, None)) => format!(
                "slot {slot} has recorded nothing: its calls are recorded from the node's next start on with \
                 `journal = {{}}` in {section} of {}, or from now on with `tenon plugin journal {slot} --on`",
                file.display()
            ),
            Some(_) => {
                format!("slot {slot} has recorded nothing yet: no call since the node started with its journal on")
            }
            None => {
                let known: Vec<String> = slots.into_iter().map(|(name, ..)| name).collect();
                format!("{} has no slot {slot}, known: {}", file.display(), known.join(", "))
            }
        }
    }

    fn options(&self) -> Options {
        let (settings, limits) = (self.config.clone(), self.limits.clone());
        Options { settings, memory: self.memory.map(Into::into), limits, ..Options::default() }
    }
}

impl Replay {
    /// `admin`: a node, which may have the journal and the recorded components.
    pub async fn run(self, admin: &Admin, output: &Output) -> Result<Outcome> {
        let (dir, journal) = (&admin.dir, self.journal.path(admin).await);
        let candidate = read(&self.candidate)?;
        let other = self.against.as_deref().map(read).transpose()?;
        let budgets = self.budget.unwrap_or_default();
        let options = Options { examples: self.examples, budgets, ..self.journal.options() };
        let kept = |digest| kept(dir, digest);
        let against = match &other {
            Some(bytes) => Against::Component(bytes),
            None => Against::Journal(&kept),
        };
        let report = tenon::bindings::replay(&journal, &candidate, against, &options)
            .map_err(|error| self.journal.hint(dir, error))?;
        if output.is_json() {
            output.json(&serde_json::to_value(&report)?);
        } else {
            show(&report, output);
        }
        let is_whole = report.faults_total == 0 || self.allow_faults;
        Ok(if report.is_within_budget() && is_whole { Outcome::Done } else { Outcome::DoesNotHold })
    }
}

impl Explain {
    /// `admin`: a node, which may have the journal and the recorded component.
    pub async fn run(self, admin: &Admin, output: &Output) -> Result<Outcome> {
        let (dir, journal) = (&admin.dir, self.journal.path(admin).await);
        let Some(call) = self.call else {
            let calls = tenon::bindings::latest(&journal, self.limit).map_err(|error| self.journal.hint(dir, error))?;
            let calls: Vec<Value> = calls.into_iter().map(listed).collect();
            output.list(&calls, &CALLS);
            return Ok(Outcome::Done);
        };
        let options = self.journal.options();
        let with = self.with.as_deref().map(read).transpose()?;
        // As it was made: then another answer means that the component is no pure step.
        let is_the_same_call = with.is_none() && self.journal.config.is_none() && self.journal.memory.is_none();
        let explanation =
            tenon::bindings::explain(&journal, call, |about| Ok(with.or_else(|| kept(dir, about?.digest))), &options)
                .map_err(|error| self.journal.hint(dir, error))?;
        if output.is_json() {
            output.json(&serde_json::to_value(&explanation)?);
        } else {
            show_call(&explanation, output);
        }
        let differs = explanation.again.is_some_and(|again| !again.is_same);
        Ok(if is_the_same_call && differs { Outcome::DoesNotHold } else { Outcome::Done })
    }
}

/// What of a call is shown in a list.
const CALLS: [(&str, &str); 7] = [
    ("call", "/call"),
    ("at", "/at"),
    ("key", "/key"),
    ("class", "/class"),
    ("generation", "/generation"),
    ("plugin", "/plugin"),
    ("answer", "/answer"),
];

fn listed(call: Listed) -> Value {
    let mut shown = json!(call);
    shown["at"] = zoned(&Time(call.at_us).to_string()).into();
    shown
}

fn read(path: &Path) -> Result<Vec<u8>> {
    super::component(path)
}

/// The bytes that the node in `dir` keeps of a component, if they are there and whole.
fn kept(dir: &Path, digest: Digest) -> Option<Vec<u8>> {
    let bytes = fs::read(data(dir).join(format!("plugins/components/{digest}.wasm"))).ok()?;
    (Digest::of(&bytes) == digest).then_some(bytes)
}

/// The folder of a node's data.
fn data(dir: &Path) -> PathBuf {
    let store = Config::load(dir).ok().and_then(|config| Some(config.store.path.parent()?.to_owned()));
    store.unwrap_or_else(|| dir.join("data"))
}

fn named(side: &Side) -> String {
    format!("{} {} ({})", side.plugin, side.version, &side.digest.to_string()[..12])
}

fn show(report: &Report, output: &Output) {
    let against = report.against.as_ref().map_or("the recorded answers".to_owned(), named);
    let mut memory = word(&report.memory);
    if report.memories_upgraded + report.memories_lost > 0 {
        let (upgraded, lost) = (report.memories_upgraded, report.memories_lost);
        memory += &format!(", {upgraded} turned into the candidate's form, {lost} that could not be");
    }
    output.line(format!(
        "{} against {against}: {} calls of slot {}",
        named(&report.candidate),
        report.calls,
        report.slot
    ));
    let mut fields = vec![
        ["changed", &format!("{} ({})", report.changed, share(report.changed, report.calls))]
            .map(str::to_owned)
            .to_vec(),
        vec!["memory".to_owned(), memory],
    ];
    if let Some(fuel) = report.fuel {
        let other = fuel.against.map_or(String::new(), |other| format!(", before {other:.0}"));
        let change = fuel.change_percent.map_or(String::new(), |change| format!(" ({change:+.1}%)"));
        fields.push(vec!["fuel a call".to_owned(), format!("{:.0}{other}{change}", fuel.candidate)]);
    }
    if let Some(ns) = report.candidate_ns {
        let other = report.against_ns.map_or(String::new(), |other| format!(", before {other} ns"));
        fields.push(vec!["time a call".to_owned(), format!("{ns} ns{other}")]);
    }
    if let Some(unfaithful) = report.unfaithful.filter(|unfaithful| *unfaithful > 0) {
        let text = format!("{unfaithful} calls: the recorded component is no pure step");
        fields.push(vec!["answered otherwise now".to_owned(), text]);
    }
    output.rows(fields);

    output.line("");
    let mut rows = vec![["answer", "before", "after", "share before", "share after"].map(str::to_owned).to_vec()];
    for (label, count) in &report.labels {
        let (before, after) = (share(count.before, report.calls), share(count.after, report.calls));
        rows.push(vec![label.clone(), count.before.to_string(), count.after.to_string(), before, after]);
    }
    output.rows(rows);
    if !report.failures.is_empty() {
        let failures: Vec<String> = report.failures.iter().map(|(cause, count)| format!("{cause} {count}")).collect();
        output.line(format!("failures of the candidate: {}", failures.join(", ")));
    }
    show_groups(report, output);
    for budget in &report.budgets {
        let verdict = if budget.broken { "BROKEN" } else { "kept" };
        let (before, after) = (budget.before_percent, budget.after_percent);
        output.line(format!("budget {}: {before:.3}% before, {after:.3}% after: {verdict}", budget.budget));
    }
    show_journal(report, output);
}

fn show_groups(report: &Report, output: &Output) {
    if report.groups.is_empty() {
        return;
    }
    output.line("");
    let mut rows = vec![["class", "before", "after", "calls", "fields that differ"].map(str::to_owned).to_vec()];
    for group in &report.groups {
        let name = |field| if field == "." { "all" } else { field };
        let fields: Vec<String> =
            group.fields.iter().map(|(field, count)| format!("{} ({count})", name(field))).collect();
        let class = if group.class.is_empty() { "-" } else { &group.class };
        let (before, after) = (group.before.clone(), group.after.clone());
        rows.push(vec![class.to_owned(), before, after, group.calls.to_string(), fields.join(", ")]);
    }
    output.rows(rows);
    for example in report.groups.iter().flat_map(|group| &group.examples) {
        output.line("");
        output.line(format!("call {}, generation {}, key {}", example.call, example.generation, example.key));
        output.line(format!("  request {}", example.request));
        output.line(format!("  before  {}", example.before));
        output.line(format!("  after   {}", example.after));
    }
    output.line("");
}

fn show_journal(report: &Report, output: &Output) {
    let journal = &report.journal;
    let left_out = [
        (journal.dropped, "were never recorded: a buffer was full"),
        (journal.missing, "are missing"),
        (journal.skipped, "depend on a memory that is missing"),
        (report.undescribed, "are of a generation that is not described"),
    ];
    for (count, why) in left_out.into_iter().filter(|(count, _)| *count > 0) {
        output.line(format!("journal: {count} calls {why}"));
    }
    for (file, bytes) in &journal.cut {
        output.line(format!("journal: {} ends in the middle of a frame, after {bytes} bytes of it", file.display()));
    }
    for fault in &report.faults {
        output.line(format!("fault: {fault}"));
    }
    let listed = report.faults.len() as u64;
    if report.faults_total > listed {
        output.line(format!("and {} more faults", report.faults_total - listed));
    }
}

fn show_call(call: &Explanation, output: &Output) {
    let mut rows = vec![
        row("call", call.call),
        row("slot", format!("{} (kind {})", call.slot, call.kind)),
        row("generation", call.generation),
    ];
    if let Some(about) = &call.about {
        rows.push(row("plugin", format!("{} {}", about.plugin, about.version)));
        rows.push(row("digest", about.digest));
        rows.push(row("configuration", &about.settings));
    }
    rows.push(row("key", &call.key));
    rows.push(row("request", &call.request));
    rows.push(row("memory before", &call.memory_before));
    rows.push(row("memory after", &call.memory_after));
    rows.push(row("answer", &call.answer));
    match &call.again {
        Some(again) => rows.extend(again_rows(again)),
        None => {
            rows.push(row("made again", "no: its component is not at hand; --with names one, --dir a node that has it"))
        }
    }
    output.rows(rows);
}

fn again_rows(again: &Again) -> Vec<Vec<String>> {
    let mut rows = vec![row("made again on", named(&again.on)), row("  configuration", &again.settings)];
    match &again.memory_before {
        Some(memory) => rows.push(row("  own memory before", memory)),
        None => rows.push(row("  memory before", "as recorded")),
    }
    if let Some(memory) = &again.memory_after {
        rows.push(row("  memory after", memory));
    }
    rows.push(row("  answer", &again.answer));
    rows.push(row("  fuel", again.fuel));
    let verdict = match again.fields.as_slice() {
        _ if again.is_same => "yes".to_owned(),
        // The path of the whole.
        [root] if root == "." => "no: the answer as a whole".to_owned(),
        fields => format!("no: {}", fields.join(", ")),
    };
    rows.push(row("same answer", verdict));
    rows
}

fn row(name: &str, value: impl std::fmt::Display) -> Vec<String> {
    vec![name.to_owned(), value.to_string()]
}

/// A part in percent.
fn share(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.3}%", part as f64 * 100.0 / whole as f64) }
}

/// The word that a value is in JSON.
fn word(value: &impl serde::Serialize) -> String {
    json!(value).as_str().unwrap_or_default().to_owned()
}
