//! What happens to plugins, for operators: each event says slot, plugin, generation and digest.

use std::path::PathBuf;

use serde::Serialize;
use tokio::sync::broadcast;

use crate::{digest::Digest, limits::Failure, load::Stage};

/// Something that happened to a plugin.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// The slot; none where it concerns a file and no slot.
    pub slot: Option<String>,
    /// The plugin's name; none where a file gave none.
    pub plugin: Option<String>,
    /// The generation that it concerns; 0: none, or the built-in.
    pub generation: u64,
    /// The component; none for the built-in and unreadable files.
    pub digest: Option<Digest>,
    /// What happened.
    #[serde(flatten)]
    pub change: Change,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Change {
    /// This generation answers now.
    Live {
        /// The kind.
        kind: &'static str,
        /// The plugin's version.
        version: String,
        /// The generation it took over from; 0: the built-in.
        previous: u64,
    },
    /// A component, or a configuration, was not taken; what served before still does.
    Rejected {
        /// The file; none where the bytes came from the host's own copy.
        path: Option<PathBuf>,
        /// Where in loading it ended.
        stage: Stage,
        /// What is wrong.
        reason: String,
    },
    /// The host stops, and the plugin with it.
    Stopped,
    /// The built-in answers now.
    Retired {
        /// Why.
        reason: String,
    },
    /// A call failed and was answered otherwise. At most one event a second a slot; the others are counted.
    Failed {
        /// What went wrong.
        failure: Failure,
        /// Failures since the last such event that had none.
        unreported: u64,
    },
    /// The generation failed too often in a row and is not asked for a while.
    Quarantined {
        /// For how long, in milliseconds.
        pause_ms: u64,
    },
    /// A trial call after a quarantine went well.
    Recovered,
    /// Memory that this generation cannot read: its keys start anew.
    MemoryReset {
        /// Whose memory it was: plugin and memory-version.
        from: String,
        /// Whose it is now.
        to: String,
        /// Why it could not be handed over.
        reason: String,
    },
    /// Memory that this generation cannot read stays as it was, and what needs it is answered otherwise.
    MemoryKept {
        /// Whose memory it is: plugin and memory-version.
        from: String,
        /// Who cannot read it.
        to: String,
        /// Why it could not be handed over.
        reason: String,
    },
    /// The generation answers beside the live one, unseen.
    Shadow,
    /// The generation answers a share of the keys.
    Canary {
        /// The share.
        percent: u8,
    },
    /// This generation answers again, since the one after it did harm.
    RolledBack {
        /// The one after it.
        from: u64,
        /// What it did.
        reason: String,
        /// Whether an operator ordered it.
        by_hand: bool,
    },
    /// The generation is gone, and its bytes are not taken again.
    Condemned {
        /// Why.
        reason: String,
        /// Whether an operator ordered it.
        by_hand: bool,
    },
    /// The generation is gone before it went live; its bytes may come again.
    CalledOff {
        /// Why.
        reason: String,
    },
    /// Requests of one subject are answered by others for a while, since the generation keeps failing on them.
    SetAside {
        /// The subject: a client, a message's sender.
        subject: u64,
        /// For how long, in milliseconds.
        pause_ms: u64,
    },
    /// The slot's calls are recorded from now on.
    RecordingStarted {
        /// The share of keys whose calls are.
        sample: f64,
    },
    /// The slot's calls are not recorded any more.
    RecordingStopped {
        /// Calls written since the host started.
        records: u64,
    },
    /// A plugin's file is gone.
    Removed {
        /// Where it was.
        path: PathBuf,
    },
    /// Two files hold plugins of one name; the newer one serves.
    Duplicate {
        /// The file that serves.
        serves: PathBuf,
        /// The one that does not.
        ignored: PathBuf,
    },
}

/// Sends events to whoever listens; never waits.
#[derive(Clone)]
pub(crate) struct Events(broadcast::Sender<Event>);

/// Events that a slow listener may lag behind before it loses the oldest.
const BACKLOG: usize = 1_024;

impl Events {
    pub(crate) fn new() -> Events {
        Events(broadcast::Sender::new(BACKLOG))
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }

    /// Sends the event and writes it to the log.
    pub(crate) fn send(&self, event: Event) {
        log(&event);
        // An error only says that nobody listens.
        let _ = self.0.send(event);
    }
}

fn log(event: &Event) {
    let slot = event.slot.as_deref().unwrap_or("-");
    let plugin = event.plugin.as_deref().unwrap_or("-");
    let generation = event.generation;
    match &event.change {
        Change::Live { version, .. } => {
            tracing::info!(slot, plugin, generation, version, "plugin live");
        }
        Change::Rejected { path, stage, reason } => {
            tracing::warn!(slot, plugin, ?path, %stage, "plugin rejected: {reason}");
        }
        Change::Stopped => tracing::info!(slot, plugin, generation, "plugin stops with the node"),
        Change::Retired { reason } => {
            tracing::info!(slot, plugin, generation, "built-in serves: {reason}");
        }
        Change::Failed { failure, .. } => {
            tracing::warn!(slot, plugin, generation, "plugin failed: {failure}");
        }
        Change::Quarantined { pause_ms } => {
            tracing::error!(slot, plugin, generation, pause_ms, "plugin quarantined");
        }
        Change::Recovered => tracing::info!(slot, plugin, generation, "plugin recovered"),
        Change::MemoryReset { from, to, reason } => {
            tracing::warn!(slot, plugin, generation, from, to, "memory reset: {reason}");
        }
        Change::MemoryKept { from, to, reason } => {
            tracing::warn!(slot, plugin, generation, from, to, "memory kept, and not read: {reason}");
        }
        Change::Shadow => tracing::info!(slot, plugin, generation, "plugin in shadow"),
        Change::Canary { percent } => tracing::info!(slot, plugin, generation, percent, "plugin is canary"),
        Change::RolledBack { from, reason, by_hand: true } => {
            tracing::info!(slot, plugin, generation, from, "plugin rolled back: {reason}");
        }
        Change::Condemned { reason, by_hand: true } => {
            tracing::info!(slot, plugin, generation, "plugin not taken again: {reason}");
        }
        Change::RolledBack { from, reason, .. } => {
            tracing::error!(slot, plugin, generation, from, "plugin rolled back: {reason}");
        }
        Change::Condemned { reason, .. } => {
            tracing::warn!(slot, plugin, generation, "plugin not taken again: {reason}");
        }
        Change::CalledOff { reason } => tracing::info!(slot, plugin, generation, "candidate called off: {reason}"),
        Change::SetAside { subject, pause_ms } => {
            tracing::warn!(slot, plugin, generation, subject, pause_ms, "plugin keeps failing on one subject");
        }
        Change::RecordingStarted { sample } => tracing::info!(slot, plugin, generation, sample, "recording calls"),
        Change::RecordingStopped { records } => tracing::info!(slot, plugin, generation, records, "recording ended"),
        Change::Removed { path } => {
            tracing::info!(plugin, path = %path.display(), "plugin file removed");
        }
        Change::Duplicate { serves, ignored } => {
            let (serves, ignored) = (serves.display(), ignored.display());
            tracing::warn!(plugin, %serves, %ignored, "two files of one name");
        }
    }
}
