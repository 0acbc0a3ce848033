//! Alerts, posted as JSON to a URL. Of each alert only the newest word waits, so what waits is bounded, and a receiver
//! that was away hears how things are and not how they were; a word is posted until it was taken or a newer one takes
//! its place. Posting happens in a task of its own: nobody waits for a receiver.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use metrics::{counter, gauge};
use serde::Serialize;
use tokio::sync::{Notify, watch};
use url::Url;

use super::alert::AlertStatus;
use crate::telemetry;

/// Alerts that wait at most; beyond, the oldest is given up.
const WAITING_MAX: usize = 1_024;

/// Where alerts go, and how patiently.
#[derive(Clone, Debug)]
pub struct WebhookConfig {
    /// Where.
    pub url: Url,
    /// How long an answer may take.
    pub timeout: Duration,
    /// The pause after a first failure; it doubles with each further one.
    pub pause_first: Duration,
    /// The longest pause.
    pub pause_max: Duration,
}

/// Who sends.
#[derive(Clone, Debug, Serialize)]
pub struct Sender {
    /// Drawn at random when the process started.
    pub node_id: String,
    /// Its chain.
    pub chain_id: String,
    /// `authority` or `follower`.
    pub role: &'static str,
    /// Where it serves.
    pub rpc: String,
}

/// The alerts on their way out. Cheap to clone.
#[derive(Clone)]
pub struct Webhook(Arc<Shared>);

struct Shared {
    config: WebhookConfig,
    client: reqwest::Client,
    sender: Sender,
    waiting: Mutex<Waiting>,
    more: Notify,
}

/// Every alert of which something is to be said, by name and subject, with its turn.
#[derive(Debug, Default)]
struct Waiting {
    alerts: BTreeMap<(&'static str, String), (u64, AlertStatus)>,
    next: u64,
}

impl Waiting {
    /// The newest word takes the turn of the one that it replaces.
    fn push(&mut self, alert: AlertStatus) {
        let key = (alert.name, alert.subject.clone());
        let turn = self.alerts.get(&key).map_or(self.next, |(turn, _)| *turn);
        self.next += 1;
        self.alerts.insert(key, (turn, alert));
        if self.alerts.len() > WAITING_MAX
            && let Some(oldest) = self.first().map(|alert| (alert.name, alert.subject))
        {
            self.alerts.remove(&oldest);
        }
    }

    /// Whose turn it is.
    fn first(&self) -> Option<AlertStatus> {
        self.alerts.values().min_by_key(|(turn, _)| turn).map(|(_, alert)| alert.clone())
    }

    /// `alert` was taken. What is newer of it waits on.
    fn taken(&mut self, alert: &AlertStatus) {
        let key = (alert.name, alert.subject.clone());
        if self.alerts.get(&key).is_some_and(|(_, newest)| newest == alert) {
            self.alerts.remove(&key);
        }
    }
}

/// What is posted. Chat programs show `text`.
#[derive(Serialize)]
struct Post<'a> {
    id: String,
    text: String,
    node: &'a Sender,
    alert: &'a AlertStatus,
}

impl Webhook {
    /// Nothing to say yet. Errors: no client can be made.
    pub fn new(config: WebhookConfig, sender: Sender) -> Result<Self, String> {
        // Another part of the process may have chosen the same one before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .timeout(config.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self(Arc::new(Shared { config, client, sender, waiting: Mutex::default(), more: Notify::new() })))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().expect("nobody panics while holding it")
    }

    /// Puts a word in line; never waits.
    pub fn push(&self, alert: AlertStatus) {
        let mut waiting = self.waiting();
        waiting.push(alert);
        gauge!(telemetry::WEBHOOK_WAITING).set(waiting.alerts.len() as f64);
        drop(waiting);
        self.0.more.notify_one();
    }

    /// Posts until `stop` says true; what waits then is given up.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            () = self.deliver() => {}
        }
    }

    async fn deliver(&self) {
        let Shared { config, more, .. } = &*self.0;
        // The path may hold a secret.
        let host = config.url.host_str().unwrap_or_default();
        let (mut pause, mut is_failing) = (config.pause_first, false);
        loop {
            let Some(alert) = self.waiting().first() else {
                more.notified().await;
                continue;
            };
            match self.post(&alert).await {
                Ok(()) => {
                    counter!(telemetry::WEBHOOK_POSTS, "outcome" => "taken").increment(1);
                    let mut waiting = self.waiting();
                    waiting.taken(&alert);
                    gauge!(telemetry::WEBHOOK_WAITING).set(waiting.alerts.len() as f64);
                    if std::mem::take(&mut is_failing) {
                        tracing::info!(host, "the webhook takes alerts again");
                        pause = config.pause_first;
                    }
                }
                Err(error) => {
                    counter!(telemetry::WEBHOOK_POSTS, "outcome" => "failed").increment(1);
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(host, alert = alert.name, "the webhook does not take an alert: {error}");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(config.pause_max);
                }
            }
        }
    }

    async fn post(&self, alert: &AlertStatus) -> Result<(), String> {
        let AlertStatus { name, subject, state, at, .. } = alert;
        let of = if subject.is_empty() { String::new() } else { format!(" ({subject})") };
        let sender = &self.0.sender;
        let post = Post {
            id: format!("{}/{name}/{subject}/{state}/{at}", sender.node_id),
            text: format!("[{state}] {name}{of} on {} at {}: {}", sender.chain_id, sender.rpc, alert.text),
            node: sender,
            alert,
        };
        // The error would name the whole address.
        let answer = self.0.client.post(self.0.config.url.clone()).json(&post).send().await;
        let status = answer.map_err(|error| error.without_url().to_string())?.status();
        if status.is_success() { Ok(()) } else { Err(format!("it answers {status}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::alert::Severity;
    use super::*;
    use crate::chain::Time;
    use proptest::prelude::*;

    fn alert(name: &'static str, subject: usize, at: u64) -> AlertStatus {
        let state = if at.is_multiple_of(2) { "firing" } else { "resolved" };
        AlertStatus {
            name,
            subject: subject.to_string(),
            severity: Severity::Warning,
            state,
            since: Time(0),
            at: Time(at),
            text: String::new(),
            about: "",
        }
    }

    #[test]
    fn what_waits_is_bounded_and_the_oldest_goes_first() {
        let mut waiting = Waiting::default();
        for at in 0..WAITING_MAX + 10 {
            waiting.push(alert("lag", at, at as u64));
        }
        assert_eq!(waiting.alerts.len(), WAITING_MAX);
        assert_eq!(waiting.first().unwrap().subject, "10");
    }

    proptest! {
        /// Words come and are taken in any order, also late, when a newer one waits already.
        #[test]
        fn the_last_word_of_every_alert_is_told_and_none_twice(
            steps in prop::collection::vec(prop_oneof![3 => (0..4_usize).prop_map(Some), 2 => Just(None)], 0..80),
        ) {
            let mut waiting = Waiting::default();
            let (mut newest, mut told): (BTreeMap<usize, AlertStatus>, Vec<AlertStatus>) = Default::default();
            let mut under_way: Option<AlertStatus> = None;
            for (at, step) in steps.into_iter().enumerate() {
                match step {
                    Some(subject) => {
                        let word = alert("lag", subject, at as u64);
                        newest.insert(subject, word.clone());
                        waiting.push(word);
                    }
                    None => match under_way.take() {
                        Some(word) => {
                            waiting.taken(&word);
                            told.push(word);
                        }
                        None => under_way = waiting.first(),
                    },
                }
                prop_assert!(waiting.alerts.len() <= 4);
            }
            if let Some(word) = under_way {
                waiting.taken(&word);
                told.push(word);
            }
            while let Some(word) = waiting.first() {
                waiting.taken(&word);
                told.push(word);
            }
            for (subject, word) in newest {
                let last = told.iter().rev().find(|told| told.subject == subject.to_string());
                prop_assert_eq!(last, Some(&word));
            }
            let mut ids: Vec<_> = told.iter().map(|word| (&word.subject, word.at)).collect();
            ids.sort();
            ids.dedup();
            prop_assert_eq!(ids.len(), told.len());
        }
    }
}
