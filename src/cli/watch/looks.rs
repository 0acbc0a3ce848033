//! What is seen of a node: its answers, asked for once a second, and what follows from them.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::EVERY;
use crate::cli::http::{ClientError, Node};

/// Rates that are remembered, one a look.
pub const RATES_MAX: usize = 120;

/// How long an answer may take: the next look is due long before the client's own patience ends.
const PATIENCE: Duration = Duration::from_secs(5);

/// A node that is looked at.
pub struct Watched {
    /// Its address.
    pub url: String,
    /// The address without what all have.
    pub name: String,
    /// The last look; none before the first.
    pub latest: Option<Result<Look, ClientError>>,
    /// Blocks a second, oldest first.
    pub rates: VecDeque<u64>,
}

/// What a node said.
#[derive(Clone)]
pub struct Look {
    /// `GET /rpc/sync/status`.
    pub status: Value,
    /// `GET /rpc/alerts`; null where the node has no such route.
    pub alerts: Value,
}

impl Look {
    /// Asks a node.
    pub async fn of(node: &Node) -> Result<Self, ClientError> {
        let ask = async {
            let (status, alerts) = tokio::join!(node.get("/rpc/sync/status"), node.find("/rpc/alerts"));
            let (status, alerts) = (status?, alerts?.unwrap_or(Value::Null));
            Ok(Self { status, alerts })
        };
        let late = || ClientError::Unreachable {
            url: node.url().to_owned(),
            cause: format!("no answer within {} s", PATIENCE.as_secs()),
            named_by: "`--node URL` or NODE_URL",
        };
        tokio::time::timeout(PATIENCE, ask).await.unwrap_or_else(|_| Err(late()))
    }

    /// A number in its status; 0 where there is none.
    pub fn number(&self, name: &str) -> u64 {
        self.status.get(name).and_then(Value::as_u64).unwrap_or(0)
    }

    /// A text in its status.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.status.get(name).and_then(Value::as_str)
    }

    /// `live`, `behind`, …
    pub fn state(&self) -> &str {
        self.text("state").unwrap_or("unknown")
    }

    /// Whether it has what its sources have, or needs none.
    pub fn is_live(&self) -> bool {
        matches!(self.state(), "live" | "authority")
    }

    /// The local head's height and the best one that a source reported.
    pub fn heights(&self) -> (u64, u64) {
        let head = self.number("head_height");
        (head, self.number("best_height").max(head))
    }

    /// The snapshot that is being taken, in words.
    pub fn snapshot(&self) -> Option<String> {
        snapshot(&self.status)
    }

    /// Blocks a second.
    pub fn rate(&self) -> u64 {
        let rate = self.status.get("blocks_per_second").and_then(Value::as_f64).unwrap_or(0.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate for people, never negative"
        )]
        let whole = rate.max(0.0).round() as u64;
        whole
    }

    /// Its sources, as objects.
    pub fn peers(&self) -> &[Value] {
        self.status.get("peers").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// Its alerts in this state, as objects.
    pub fn alerts_in<'a>(&'a self, state: &'a str) -> impl Iterator<Item = &'a Value> {
        let alerts = self.alerts.get("alerts").and_then(Value::as_array);
        alerts.into_iter().flatten().filter(move |alert| alert.get("state").and_then(Value::as_str) == Some(state))
    }
}

impl Watched {
    /// A node that nobody has looked at.
    pub fn new(url: &str) -> Self {
        let name = url.split_once("://").map_or(url, |(_, rest)| rest).to_owned();
        Self { url: url.to_owned(), name, latest: None, rates: VecDeque::new() }
    }

    /// Takes in a look.
    pub fn take(&mut self, look: Result<Look, ClientError>) {
        if self.rates.len() >= RATES_MAX {
            self.rates.pop_front();
        }
        self.rates.push_back(look.as_ref().map_or(0, Look::rate));
        self.latest = Some(look);
    }

    /// It in one line.
    pub fn line(&self) -> String {
        match &self.latest {
            None => "not heard yet".to_owned(),
            Some(Err(error)) => format!("unreachable  {}", cause(error)),
            Some(Ok(look)) => {
                let (head, best) = look.heights();
                let mut line = format!("{}  {head} of {best}  {} blocks/s", look.state(), look.rate());
                if let Some(snapshot) = look.snapshot() {
                    line += &format!("  {snapshot}");
                }
                let alerts: Vec<_> = look.alerts_in("firing").map(title).collect();
                if !alerts.is_empty() {
                    line += &format!("  alerts: {}", alerts.join(", "));
                }
                line
            }
        }
    }
}

/// An alert's name, with what it is of.
pub fn title(alert: &Value) -> String {
    let text = |name| alert.get(name).and_then(Value::as_str).unwrap_or_default();
    match text("subject") {
        "" => text("name").to_owned(),
        subject => format!("{} ({subject})", text("name")),
    }
}

/// The snapshot that a sync status speaks of, in words; none where none is being taken.
pub fn snapshot(status: &Value) -> Option<String> {
    let snapshot = status.get("snapshot").filter(|snapshot| snapshot.is_object())?;
    let number = |name: &str| snapshot.get(name).and_then(Value::as_u64).unwrap_or(0);
    let stage = snapshot.get("stage").and_then(Value::as_str).unwrap_or_default();
    Some(format!("snapshot of block {}: {stage}, {} of {} chunks", number("height"), number("chunks"), number("of")))
}

/// Why a node does not answer, without what the rest of the line says.
pub fn cause(error: &ClientError) -> String {
    match error {
        ClientError::Unreachable { cause, .. } => cause.clone(),
        other => other.to_string(),
    }
}

/// Looks at a node until nobody wants to know.
pub async fn look_again_and_again(index: usize, node: Node, looks: mpsc::Sender<(usize, Result<Look, ClientError>)>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let look = Look::of(&node).await;
        if looks.send((index, look)).await.is_err() {
            return;
        }
    }
}
