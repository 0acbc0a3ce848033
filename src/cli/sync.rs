//! `tenon sync`: how far a node is behind its sources.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::Value;

use super::http::Node;
use super::output::Output;
use super::transact::POLL;
use super::watch::{snapshot, watch};
use super::{At, Global, Outcome};

/// How far a node is behind its sources.
#[derive(Args)]
pub struct Sync {
    #[command(flatten)]
    at: At,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Says where the node stands; exit code 4 when it is behind or diverged
    Status,
    /// Waits until the node has caught up; exit code 4 when it does not
    Once {
        /// How many seconds to wait
        #[arg(long, default_value_t = 600)]
        timeout: u64,
    },
    /// Shows where nodes stand until told to stop: live on a terminal, a line for each change elsewhere
    ///
    /// `--node` can be given several times. On a terminal `q` ends it. The exit code says how the nodes stood last: 0
    /// all live, 4 one behind, diverged or not reachable, 3 none reachable.
    Watch,
}

/// What of a source is shown.
const PEER_COLUMNS: [(&str, &str); 10] = [
    ("source", "/url"),
    ("standing", "/standing"),
    ("head", "/head_height"),
    ("score", "/score"),
    ("latency µs", "/latency_us"),
    ("bytes/s", "/throughput"),
    ("failures", "/failures"),
    ("in flight", "/in_flight"),
    ("blocks", "/blocks"),
    ("reason", "/reason"),
];

/// What matters of `GET /rpc/sync/status`.
pub struct Status {
    /// The whole answer.
    pub answer: Value,
    /// `starting`, `syncing`, `live`, `behind`, …
    pub state: String,
    /// The local head's height.
    pub head: u64,
    /// The best height that a source reported.
    pub best: u64,
}

impl Status {
    /// Asks a node.
    pub async fn of(node: &Node) -> Result<Self> {
        let answer = node.get("/rpc/sync/status").await?;
        let number = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
        let state = answer.get("state").and_then(Value::as_str).unwrap_or("unknown").to_owned();
        let (head, best) = (number("head_height"), number("best_height"));
        Ok(Self { state, head, best, answer })
    }

    /// Whether the node has what its sources have, or needs none.
    pub fn is_live(&self) -> bool {
        matches!(self.state.as_str(), "live" | "authority")
    }

    /// Whether waiting will not help.
    fn is_stuck(&self) -> bool {
        matches!(self.state.as_str(), "diverged" | "ahead")
    }

    fn outcome(&self) -> Outcome {
        if self.is_live() { Outcome::Done } else { Outcome::Behind }
    }

    /// For people: figures below each other, and of what has fields of its own a table.
    fn show(&self, output: &Output) {
        if output.is_json() {
            return output.json(&self.answer);
        }
        let fields = self.answer.as_object().cloned().unwrap_or_default();
        let (nested, plain): (Vec<_>, Vec<_>) =
            fields.into_iter().partition(|(_, value)| value.is_object() || value.is_array());
        output.record(&Value::Object(plain.into_iter().collect()));
        for (name, value) in nested {
            match value.as_array() {
                Some(rows) if rows.is_empty() => {}
                Some(rows) => {
                    output.line(format!("\n{name}:"));
                    output.list(rows, &PEER_COLUMNS);
                }
                None => {
                    output.line(format!("\n{name}:"));
                    output.record(&value);
                }
            }
        }
    }

    fn line(&self) -> String {
        let rate = self.answer.get("blocks_per_second").and_then(Value::as_f64).unwrap_or(0.0);
        let mut line = format!("{}  {} of {}  {rate:.0} blocks/s", self.state, self.head, self.best);
        if let Some(snapshot) = snapshot(&self.answer) {
            line += &format!("  {snapshot}");
        }
        line
    }
}

impl Sync {
    pub async fn run(self, global: &Global, output: &Output) -> Result<Outcome> {
        let dir = self.at.dir()?;
        match self.command {
            Command::Status => {
                let status = Status::of(&global.node(dir)?).await?;
                status.show(output);
                Ok(status.outcome())
            }
            Command::Once { timeout } => once(&global.node(dir)?, Duration::from_secs(timeout), output).await,
            Command::Watch => watch(&global.nodes(dir)?, output).await,
        }
    }
}

/// Shows progress until the node has caught up, or `patience` ends.
async fn once(node: &Node, patience: Duration, output: &Output) -> Result<Outcome> {
    let started = Instant::now();
    let bar = output.progress(0, "catching up");
    let mut last_line = String::new();
    loop {
        let status = Status::of(node).await?;
        bar.set_length(status.best.max(status.head));
        bar.set_position(status.head);
        bar.set_message(status.state.clone());
        let line = status.line();
        if output.is_json() {
            output.json(&status.answer);
        } else if bar.is_hidden() && line != last_line {
            output.line(&line);
            last_line.clone_from(&line);
        }
        if status.is_live() || status.is_stuck() || started.elapsed() >= patience {
            bar.finish_and_clear();
            if line != last_line {
                output.note(line);
            }
            return Ok(status.outcome());
        }
        tokio::time::sleep(if output.is_json() || bar.is_hidden() { Duration::from_secs(1) } else { POLL }).await;
    }
}
