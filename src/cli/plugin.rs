//! `tenon plugin`: builds, checks, signs, replays and simulates components; lists and swaps those of a running node
//! through its admin API.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Value, json};

use tenon::config::Config;

use super::Outcome;
use super::http::Node;
use super::output::Output;
use super::replay::{Explain, Replay};
use super::run::Addresses;
use super::sign::Signing;
use super::simulate::Simulate;

/// The plugins that every new node gets.
pub const SHIPPED: [&str; 8] = [
    "token-bucket",
    "sliding-window",
    "allow-all",
    "parallel-range",
    "sequential",
    "snapshot-first",
    "polite",
    "ping-pong",
];

/// Components: build, check, sign, replay, simulate, list, swap.
#[derive(Args)]
pub struct Plugin {
    #[command(flatten)]
    admin: Admin,
    #[command(subcommand)]
    command: Command,
}

/// Which node, and what opens its admin API.
#[derive(Args)]
pub struct Admin {
    /// The node's directory: its admin address and token are taken from there
    #[arg(long, default_value = ".", global = true)]
    pub dir: PathBuf,
    /// The admin API's address, for a node elsewhere
    #[arg(long, value_name = "URL", global = true)]
    admin: Option<String>,
    /// The admin token [default: the one in the node's directory]
    #[arg(long, global = true)]
    token: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Compiles the crate in a folder to a component
    Build {
        /// The crate's folder
        #[arg(default_value = ".")]
        crate_dir: PathBuf,
        /// Where NAME.wasm goes: a folder, or a file ending in .wasm [default: the crate's folder]
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Takes a component through every step of loading, and says where it stops
    Check {
        /// The component
        file: PathBuf,
    },
    #[command(flatten)]
    Sign(Signing),
    /// Makes recorded calls again on a component, and says which answers change
    Replay(Replay),
    /// Shows one recorded call, and makes it again
    Explain(Explain),
    /// Syncs in virtual time among modelled peers, with each of some strategies
    Simulate(Simulate),
    /// The slots of a node, who serves them and why not what is wanted; its files, and why those that are refused are
    List,
    /// Loads a slot's plugin anew, even from the same bytes
    Reload {
        /// The slot: rate-limit, sync or agent/NAME
        slot: String,
    },
    /// What became of a slot's generations
    History {
        /// The slot: rate-limit, sync or agent/NAME
        slot: String,
    },
    /// What the candidate in a slot's shadow answers otherwise
    Shadow {
        /// The slot: rate-limit, sync or agent/NAME
        slot: String,
    },
    /// How the recording of a slot's calls goes; begins and ends it
    Journal {
        /// The slot: rate-limit, sync or agent/NAME
        slot: String,
        /// Record from now on, until the node stops
        #[arg(long, conflicts_with = "off")]
        on: bool,
        /// The share of keys whose calls are recorded, 0 to 1 [default: as last time, else all]
        #[arg(long, requires = "on")]
        sample: Option<f64>,
        /// Record no more
        #[arg(long)]
        off: bool,
    },
    /// Lets the candidate on trial serve a slot now
    Promote {
        /// The slot: rate-limit, sync or agent/NAME
        slot: String,
        /// Takes the plugin's component even if it is quarantined, or cannot read an agent's memory: it begins anew
        #[arg(long)]
        force: bool,
    },
    /// Calls a slot's candidate off, or lets the generation before serve again
    Rollback {
        /// The slot: rate-limit, sync or agent/NAME
        slot: String,
    },
    /// Lets another plugin serve a slot
    #[command(group(ArgGroup::new("server").required(true).args(["plugin", "builtin"])))]
    Use {
        /// The slot: rate-limit, sync or agent/NAME
        slot: String,
        /// The plugin's name; none for the built-in
        plugin: Option<String>,
        /// The built-in
        #[arg(long)]
        builtin: bool,
    },
}

impl Plugin {
    pub async fn run(self, output: &Output) -> Result<Outcome> {
        let Self { admin, command } = self;
        match command {
            Command::Build { crate_dir, out } => {
                let out = out.unwrap_or_else(|| crate_dir.clone());
                let built = tokio::task::spawn_blocking(move || tenon_build::build_dir(&crate_dir, &out)).await??;
                let bytes = fs::metadata(&built)?.len();
                output.record(&json!({ "component": built, "bytes": bytes }));
                Ok(Outcome::Done)
            }
            Command::Check { file } => check(&file, output),
            Command::Sign(command) => command.run(output),
            Command::Replay(replay) => replay.run(&admin, output).await,
            Command::Explain(explain) => explain.run(&admin, output).await,
            Command::Simulate(simulate) => tokio::task::block_in_place(|| simulate.run(output)),
            Command::List => {
                let node = admin.node()?;
                let slots = node.get("/admin/plugins").await?;
                let files = node.get("/admin/plugin-files").await?;
                let rows = |value: &Value| value.as_array().cloned().unwrap_or_default();
                list_all(&rows(&slots), &rows(&files), output);
                Ok(Outcome::Done)
            }
            Command::Reload { slot } => {
                let answer = admin.node()?.post(&path(&slot, "reload"), &json!({})).await?;
                shown(&answer, output);
                Ok(Outcome::Done)
            }
            Command::History { slot } => {
                let steps = admin.node()?.get(&path(&slot, "history")).await?;
                show_history(steps.as_array().map_or(&[], Vec::as_slice), output);
                Ok(Outcome::Done)
            }
            Command::Shadow { slot } => {
                let shadow = admin.node()?.get(&path(&slot, "shadow")).await?;
                show_shadow(&shadow, output);
                Ok(Outcome::Done)
            }
            Command::Journal { slot, on, sample, off } => {
                let (node, path) = (admin.node()?, path(&slot, "journal"));
                let journal = match (on, sample) {
                    (true, Some(sample)) => node.post(&path, &json!({ "recording": true, "sample": sample })).await?,
                    _ if on || off => node.post(&path, &json!({ "recording": on })).await?,
                    _ => node.get(&path).await?,
                };
                match journal.is_null() && !output.is_json() {
                    true => output.record(&json!({ "journal": format!("slot {slot} records nothing") })),
                    false => output.record(&journal),
                }
                Ok(Outcome::Done)
            }
            Command::Promote { slot, force } => {
                let answer = admin.node()?.post(&path(&slot, "promote"), &json!({ "force": force })).await?;
                shown(&answer, output);
                Ok(Outcome::Done)
            }
            Command::Rollback { slot } => {
                let answer = admin.node()?.post(&path(&slot, "rollback"), &json!({})).await?;
                shown(&answer, output);
                Ok(Outcome::Done)
            }
            Command::Use { slot, plugin, .. } => {
                let answer = admin.node()?.post(&path(&slot, "use"), &json!({ "plugin": plugin })).await?;
                shown(&answer, output);
                Ok(Outcome::Done)
            }
        }
    }
}

/// What of a slot is shown.
const COLUMNS: [(&str, &str); 11] = [
    ("slot", "/slot"),
    ("plugin", "/plugin"),
    ("version", "/version"),
    ("generation", "/generation"),
    ("status", "/status"),
    ("trial", "/trial"),
    ("calls", "/calls"),
    ("failures", "/failures"),
    ("fallbacks", "/fallbacks"),
    ("last error", "/last_error"),
    ("not taken", "/refused"),
];

/// What of a step is shown.
const STEPS: [(&str, &str); 7] = [
    ("at", "/at"),
    ("generation", "/generation"),
    ("plugin", "/plugin"),
    ("phase", "/phase"),
    ("digest", "/digest"),
    ("configuration", "/configuration"),
    ("reason", "/reason"),
];

/// What of a file is shown.
const FILES: [(&str, &str); 5] =
    [("file", "/path"), ("plugin", "/name"), ("version", "/version"), ("serves", "/serves"), ("refused", "/refused")];

/// Hex digits that tell digests apart for people.
const DIGEST_SHOWN: usize = 12;

fn show_history(steps: &[Value], output: &Output) {
    if output.is_json() {
        return output.list(steps, &STEPS);
    }
    let short = |step: &Value| {
        let mut step = step.clone();
        for name in ["digest", "configuration"] {
            if let Some(digest) = step[name].as_str().and_then(|digest| digest.get(..DIGEST_SHOWN)) {
                step[name] = Value::String(digest.to_owned());
            }
        }
        step
    };
    output.list(&steps.iter().map(short).collect::<Vec<_>>(), &STEPS);
}

/// The slots, then the files: for programs only those that are refused or hidden by another, after the slots.
fn list_all(slots: &[Value], files: &[Value], output: &Output) {
    let files: Vec<Value> = files.iter().map(|file| of_file(file, slots)).collect();
    if output.is_json() {
        let idle = files.into_iter().filter(|file| !file["refused"].is_null());
        return output.list(&slots.iter().cloned().chain(idle).collect::<Vec<_>>(), &COLUMNS);
    }
    list(slots, output);
    if !files.is_empty() {
        output.line("");
        output.list(&files, &FILES);
    }
}

/// A file with the slots that it serves, and in a few words why it is not taken.
fn of_file(file: &Value, slots: &[Value]) -> Value {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut file = file.clone();
    let refused = match (&file["rejection"], file["shadowed_by"].as_str()) {
        (Value::Object(rejection), _) => Some(format!("{}: {}", text(&rejection["stage"]), text(&rejection["reason"]))),
        (_, Some(other)) => Some(format!("{other} is newer, and holds the same plugin")),
        _ => None,
    };
    let serves = |slot: &&Value| !file["digest"].is_null() && slot["digest"] == file["digest"];
    let serves: Vec<String> = slots.iter().filter(serves).map(|slot| text(&slot["slot"])).collect();
    let serves = Some(serves.join(", ")).filter(|serves| !serves.is_empty() && refused.is_none());
    file["refused"] = refused.map_or(Value::Null, Value::String);
    file["serves"] = serves.map_or(Value::Null, Value::String);
    file
}

fn show_shadow(shadow: &Value, output: &Output) {
    if output.is_json() {
        return output.json(shadow);
    }
    if shadow.is_null() {
        return output.record(&json!({ "shadow": "none since the node started" }));
    }
    let mut counts = shadow.clone();
    let groups = counts.as_object_mut().and_then(|counts| counts.remove("groups"));
    output.record(&counts);
    let groups = groups.as_ref().and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if groups.is_empty() {
        return;
    }
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let titles = ["class", "live", "candidate", "answers", "keys", "fields that differ"].map(str::to_owned).to_vec();
    let row = |group: &Value| {
        let fields = group["fields"].as_object().into_iter().flatten();
        let fields: Vec<String> = fields
            .map(|(field, count)| format!("{} ({count})", if field == "." { "all" } else { field.as_str() }))
            .collect();
        let cell = |name: &str| text(&group[name]);
        vec![cell("class"), cell("live"), cell("candidate"), cell("count"), cell("keys"), fields.join(", ")]
    };
    output.line("");
    output.rows(std::iter::once(titles).chain(groups.iter().map(row)).collect());
    for example in groups.iter().filter_map(|group| group["examples"].as_array()?.first()) {
        output.line("");
        for name in ["request", "live", "candidate"] {
            output.line(format!("{name:9}  {}", text(&example[name])));
        }
    }
}

fn shown(slot: &Value, output: &Output) {
    if output.is_json() { output.json(slot) } else { list(std::slice::from_ref(slot), output) }
}

fn list(slots: &[Value], output: &Output) {
    if output.is_json() {
        return output.list(slots, &COLUMNS);
    }
    let with_trial = |slot: &Value| {
        let mut slot = slot.clone();
        slot["trial"] = trial(&slot).map_or(Value::Null, Value::String);
        slot
    };
    output.list(&slots.iter().map(with_trial).collect::<Vec<_>>(), &COLUMNS);
}

/// The generation on trial: `shadow 3`, or `canary 3, 10%`.
fn trial(slot: &Value) -> Option<String> {
    slot["generations"].as_array()?.iter().find_map(|generation| match generation["role"].as_str()? {
        "shadow" => Some(format!("shadow {}", generation["generation"])),
        "canary" => Some(format!("canary {}, {}%", generation["generation"], generation["percent"])),
        _ => None,
    })
}

/// Where a slot is changed; the slash of `agent/bob` is part of its name.
pub fn path(slot: &str, action: &str) -> String {
    format!("/admin/plugins/{}/{action}", slot.replace('/', "%2F"))
}

impl Admin {
    /// The node in `dir`, with its own token.
    pub fn of(dir: &Path) -> Self {
        Self::at(dir, None, None)
    }

    /// The node in `dir`, but for what is given.
    pub fn at(dir: &Path, admin: Option<String>, token: Option<String>) -> Self {
        Self { dir: dir.to_owned(), admin, token }
    }

    /// The admin API. Errors: neither the directory nor the options say where it is and what opens it.
    pub fn node(&self) -> Result<Node> {
        let config = || Config::load(&self.dir).context("--admin and --token reach a node without its directory");
        let url = match &self.admin {
            Some(url) => url.clone(),
            None => match Addresses::of(&self.dir) {
                Some(addresses) => format!("http://{}", addresses.admin),
                None => format!("http://{}", config()?.admin.listen),
            },
        };
        let token = match &self.token {
            Some(token) => token.clone(),
            None => {
                let file = config()?.admin.token_file;
                fs::read_to_string(&file).with_context(|| format!("reading the admin token {}", file.display()))?
            }
        };
        Ok(Node::new(&url)?.named_by("`--dir` or `--admin URL`").with_token(&token))
    }
}

fn check(file: &Path, output: &Output) -> Result<Outcome> {
    let bytes = super::component(file)?;
    let report = tenon::bindings::inspect(&bytes)?;
    let fits = report.rejection.is_none();
    if output.is_json() {
        output.json(&serde_json::to_value(&report)?);
    } else {
        output.line(format!("{}: {} bytes, sha256 {}", file.display(), report.bytes, report.digest));
        for (stage, outcome) in &report.passed {
            output.line(format!("  {stage}: {outcome}"));
        }
        match (&report.rejection, &report.description, report.kind) {
            (Some(rejection), ..) => output.line(format!("refused: {rejection}")),
            (None, Some(description), Some(kind)) => {
                output.line(format!("{} {} of kind {kind}: it would be served", description.name, description.version));
            }
            _ => output.line("it would be served"),
        }
    }
    Ok(if fits { Outcome::Done } else { Outcome::DoesNotHold })
}

/// Copies the shipped components into `dir`; answers their names. A node without them is served by its built-ins.
pub fn copy_shipped(dir: &Path) -> Result<Vec<String>> {
    let Some(folder) = shipped_folder()? else {
        eprintln!("warning: found no shipped plugins; `make plugins` builds them, TENON_PLUGINS names their folder");
        return Ok(Vec::new());
    };
    let mut copied = Vec::new();
    for name in SHIPPED {
        let from = folder.join(format!("{name}.wasm"));
        if from.is_file() {
            let to = dir.join(format!("{name}.wasm"));
            fs::copy(&from, &to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
            copied.push(name.to_owned());
        }
    }
    Ok(copied)
}

/// The folder with the shipped components: the one named by TENON_PLUGINS, else the first one near the program.
///
/// Errors: TENON_PLUGINS names a folder without them.
pub fn shipped_folder() -> Result<Option<PathBuf>> {
    let has_any = |folder: &Path| SHIPPED.iter().any(|name| folder.join(format!("{name}.wasm")).is_file());
    if let Some(named) = std::env::var_os("TENON_PLUGINS") {
        let named = PathBuf::from(named);
        if !has_any(&named) {
            bail!("TENON_PLUGINS names {}, which has none of {}", named.display(), SHIPPED.join(", "));
        }
        return Ok(Some(named));
    }
    let program = std::env::current_exe().context("finding out where this program is")?;
    // Installed: bin/tenon, share/tenon/plugins. Built: target/release/tenon, target/plugins. Unpacked: side by side.
    let near = program
        .ancestors()
        .skip(1)
        .take(3)
        .flat_map(|folder| [folder.join("plugins"), folder.join("share/tenon/plugins")]);
    Ok(near.chain([PathBuf::from("target/plugins")]).find(|folder| has_any(folder)))
}
