//! The look, once a second and whenever the node stands otherwise against its sources; and what is told of it: to the
//! log, to those who listen to events, to the webhook.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::Serialize;
use tenon_runtime::Event;
use tokio::sync::{broadcast, watch};
use tokio::time::MissedTickBehavior;

use super::alert::{AlertStatus, Board, Severity, Timing};
use super::webhook::Webhook;
use super::{Observation, Observer, Readiness, Thresholds, readiness, rules};
use crate::chain::Time;
use crate::events::{Hub, Kind};

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Looks from one that asks disk and plugins, too, to the next.
const REFRESH_EVERY: u64 = 5;

/// What monitoring works with.
pub struct MonitorParts {
    /// Puts observations together.
    pub observer: Observer,
    /// From where on conditions hold.
    pub thresholds: Thresholds,
    /// For how long they have to.
    pub timing: Timing,
    /// Who is told of alerts as events.
    pub hub: Hub,
    /// Who is told over HTTP.
    pub webhook: Option<Webhook>,
}

/// The node's eye on itself. Cheap to clone.
#[derive(Clone)]
pub struct Monitor(Arc<Shared>);

struct Shared {
    parts: MonitorParts,
    board: Mutex<Board>,
    clock: Clock,
}

/// All alerts that are not inactive: what fires first, then what may, then what is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Alerts {
    /// How many fire.
    pub firing: usize,
    /// How many conditions hold that are not alerts yet.
    pub pending: usize,
    /// Each of them.
    pub alerts: Vec<AlertStatus>,
}

/// Wall-clock time that never goes back: delays must not become long because somebody sets the clock.
struct Clock {
    base: Time,
    started: Instant,
}

impl Clock {
    fn now(&self) -> Time {
        Time(self.base.0.saturating_add(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)))
    }
}

impl Monitor {
    /// Monitoring with nothing seen yet.
    pub fn new(parts: MonitorParts) -> Self {
        let clock = Clock { base: Time::now(), started: Instant::now() };
        Self(Arc::new(Shared { parts, board: Mutex::default(), clock }))
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.board.lock().expect("nobody panics while looking")
    }

    /// What is known now.
    pub fn observe(&self) -> Observation {
        self.0.parts.observer.observe(self.0.clock.now())
    }

    /// Whether requests should come here.
    pub fn readiness(&self) -> Readiness {
        readiness(&self.observe())
    }

    /// The alerts, as of the last look.
    pub fn alerts(&self) -> Alerts {
        let mut alerts = self.board().alerts();
        let rank = |alert: &AlertStatus| match alert.state {
            "firing" => 0,
            "pending" => 1,
            _ => 2,
        };
        alerts.sort_by_key(|alert| (rank(alert), std::cmp::Reverse(alert.severity)));
        let count = |state| alerts.iter().filter(|alert| alert.state == state).count();
        Alerts { firing: count("firing"), pending: count("pending"), alerts }
    }

    /// Looks, and tells what changes.
    pub fn look(&self) {
        self.tell(&self.observe());
    }

    /// Tells what changes with what was seen.
    fn tell(&self, seen: &Observation) {
        let parts = &self.0.parts;
        let findings = rules::findings(seen, &parts.thresholds);
        let changes = self.board().look(findings, seen.now, parts.timing);
        for change in changes {
            log(&change);
            parts.hub.post(Kind::Alert, serde_json::to_string(&change).expect("plain data"));
            if let Some(webhook) = &parts.webhook {
                webhook.push(change);
            }
        }
    }

    /// Looks until `stop` says true. `plugins`: what happens to them.
    pub async fn run(
        self,
        mut sync: watch::Receiver<crate::sync::SyncStatus>,
        plugins: broadcast::Receiver<Event>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut plugins = Some(plugins);
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut looks, mut state, mut sync_is_there) = (1_u64, sync.borrow().state, true);
        let observer = self.0.parts.observer.clone();
        let mut refreshing = tokio::task::spawn_blocking(move || observer.refresh());
        let is_stopping = stop.clone();
        let mut stopped = std::pin::pin!(async {
            // An error means that whoever could say it is gone, which is a stop as well.
            let _ = stop.wait_for(|stop| *stop).await;
        });
        loop {
            let event = async {
                match &mut plugins {
                    Some(plugins) => plugins.recv().await,
                    None => std::future::pending().await,
                }
            };
            let is_tick = tokio::select! {
                biased;
                () = &mut stopped => return,
                event = event => {
                    match event {
                        Ok(event) => self.0.parts.observer.plugin_event(&event, self.0.clock.now()),
                        // What quarantines a plugin also shows in its slot's status.
                        Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => plugins = None,
                    }
                    continue;
                }
                changed = sync.changed(), if sync_is_there => {
                    sync_is_there = changed.is_ok();
                    let now = sync.borrow_and_update().state;
                    if std::mem::replace(&mut state, now) == now && sync_is_there {
                        continue;
                    }
                    false
                }
                _ = ticks.tick() => true,
            };
            // Not waited for: a disk that does not answer is when alerts are needed.
            if is_tick && looks.is_multiple_of(REFRESH_EVERY) && refreshing.is_finished() {
                let observer = self.0.parts.observer.clone();
                refreshing = tokio::task::spawn_blocking(move || observer.refresh());
            }
            looks += u64::from(is_tick);
            let seen = self.observe();
            // What ends in a stop is no cause for alarm. Asked after the look: whatever the stop ended was seen before.
            if is_stopping.has_changed().is_err() || *is_stopping.borrow() {
                return;
            }
            self.tell(&seen);
        }
    }
}

/// One line for each time that an alert begins or ends.
fn log(alert: &AlertStatus) {
    let AlertStatus { name, subject, state, text, since, about, .. } = alert;
    match (*state, alert.severity) {
        ("firing", Severity::Critical) => tracing::error!(name, subject, %since, "alert: {about}: {text}"),
        ("firing", Severity::Warning) => tracing::warn!(name, subject, %since, "alert: {about}: {text}"),
        _ => tracing::info!(name, subject, %since, "alert is over: {about}: {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{HubLimits, Mark};
    use crate::monitor::QueueProbe;
    use crate::monitor::observe::tests::observed;

    /// Sync ends with a node that stops: whoever looks in that moment must not say that it died.
    #[tokio::test]
    async fn what_ends_in_a_stop_is_no_alert_though_it_comes_in_the_middle_of_a_look() {
        for stops in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let (mut observed, sync) = observed(dir.path(), Time::now());
            let (stop, stopped) = watch::channel(false);
            let status = observed.sync.clone();
            let ends = Mutex::new(Some(sync));
            let depth = move || {
                if stops {
                    stop.send_replace(true);
                }
                drop(ends.lock().unwrap().take());
                0
            };
            observed.queues.push(QueueProbe { name: "asked-in-a-look", limit: None, depth: Arc::new(depth) });
            let parts = MonitorParts {
                observer: Observer::new(observed),
                thresholds: Thresholds::default(),
                timing: Timing { for_ms: 0, clear_ms: 0 },
                hub: Hub::new(Time(1), Mark { height: 0, prefix: [0; 4] }, HubLimits::default()),
                webhook: None,
            };
            let monitor = Monitor::new(parts);
            let is_told = || monitor.alerts().alerts.iter().any(|alert| alert.name == "sync-ended");
            let (_events, plugins) = broadcast::channel(1);
            let looking = tokio::spawn(monitor.clone().run(status, plugins, stopped));
            if stops {
                looking.await.unwrap();
            } else {
                while !is_told() {
                    tokio::task::yield_now().await;
                }
                looking.abort();
            }
            assert_eq!(is_told(), !stops);
        }
    }
}
