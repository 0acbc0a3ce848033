//! What an operator sets for a slot, what a call may use, and the ways in which a call fails.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    engine,
    rollout::{Probation, Rollout},
};

/// How a slot is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PluginConfig {
    /// The plugin's name, as it describes itself; none: the built-in serves.
    pub plugin: Option<String>,
    /// The plugin's configuration, checked against the plugin's own JSON Schema. Default: `{}`.
    pub settings: Value,
    /// Who answers when the plugin fails. Default: the built-in.
    pub on_failure: OnFailure,
    /// What one call may use.
    pub limits: Limits,
    /// How a new version becomes live. Default: at once.
    pub rollout: Rollout,
    /// How long a new version is watched, and what brings the one before back.
    pub probation: Probation,
}

impl Default for PluginConfig {
    fn default() -> PluginConfig {
        PluginConfig {
            plugin: None,
            settings: Value::Object(serde_json::Map::new()),
            on_failure: OnFailure::Fallback,
            limits: Limits::default(),
            rollout: Rollout::default(),
            probation: Probation::default(),
        }
    }
}

impl PluginConfig {
    /// A slot served by `plugin` with its default configuration.
    pub fn plugin(name: impl Into<String>) -> PluginConfig {
        PluginConfig { plugin: Some(name.into()), ..PluginConfig::default() }
    }
}

/// Who answers a call that the plugin failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The built-in.
    #[default]
    Fallback,
    /// [`Kind::open`](crate::Kind::open), "yes"; the built-in where the kind has no such answer.
    Open,
    /// [`Kind::closed`](crate::Kind::closed), "no"; the built-in where the kind has no such answer.
    Closed,
}

/// What a plugin may use, in one slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Milliseconds until a call is stopped. A safety stop on the wall clock, which also runs while the thread waits for
    /// a processor, so small values stop innocent calls. Default 100; 50 to 60,000.
    pub deadline_ms: u64,
    /// Milliseconds until instantiating and configuring are stopped. Default 5,000; 50 to 600,000.
    pub start_deadline_ms: u64,
    /// Linear memory of one instance, in bytes. Default 16 MiB; 64 KiB to [`HostConfig::instance_memory_max_bytes`](crate::HostConfig).
    pub memory_max_bytes: u64,
    /// Elements of one table. Default 10,000; 1 to 20,000.
    pub table_max_elements: u64,
    /// Core instances in one component. Default 64; 1 to 64.
    pub instances_max: u64,
    /// What one call may hand back, answer and memory together, in bytes. Default 4 MiB; 1 KiB to 64 MiB.
    pub answer_max_bytes: u64,
    /// Log lines a second for the slot; what is beyond is counted. Default 20; 0 to 10,000.
    pub log_lines_per_second: u32,
    /// Keys whose memory is kept; the least recently used go first. Default 100,000; 16 to 10,000,000.
    pub memory_keys_max: usize,
    /// Failures in a row until quarantine. Default 10; 1 to 1,000,000.
    pub strikes_max: u32,
    /// Subjects (clients, senders) that may be set aside at a time, after two failures each; one more and the plugin is
    /// quarantined instead. Default 32; 1 to 1,000.
    pub subjects_aside_max: u32,
    /// First quarantine, in milliseconds; it doubles each time a trial call fails. Default 1,000; 1 to 3,600,000.
    pub backoff_min_ms: u64,
    /// Longest quarantine, in milliseconds. Default 300,000; `backoff_min_ms` to 86,400,000.
    pub backoff_max_ms: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            deadline_ms: 100,
            start_deadline_ms: 5_000,
            memory_max_bytes: 16 << 20,
            table_max_elements: 10_000,
            instances_max: 64,
            answer_max_bytes: 4 << 20,
            log_lines_per_second: 20,
            memory_keys_max: 100_000,
            strikes_max: 10,
            subjects_aside_max: 32,
            backoff_min_ms: 1_000,
            backoff_max_ms: 300_000,
        }
    }
}

impl Limits {
    /// Whether every limit is within its range. Errors: the first that is not, with its name, value and range.
    pub fn check(&self) -> Result<(), String> {
        let ranges: [(&str, u64, u64, u64); 12] = [
            ("deadline_ms", self.deadline_ms, 50, 60_000),
            ("start_deadline_ms", self.start_deadline_ms, 50, 600_000),
            ("memory_max_bytes", self.memory_max_bytes, 64 << 10, 4 << 30),
            ("table_max_elements", self.table_max_elements, 1, engine::TABLE_ELEMENTS_MAX.into()),
            ("instances_max", self.instances_max, 1, 64),
            ("answer_max_bytes", self.answer_max_bytes, 1 << 10, 64 << 20),
            ("log_lines_per_second", self.log_lines_per_second.into(), 0, 10_000),
            ("memory_keys_max", self.memory_keys_max as u64, 16, 10_000_000),
            ("strikes_max", self.strikes_max.into(), 1, 1_000_000),
            ("subjects_aside_max", self.subjects_aside_max.into(), 1, 1_000),
            ("backoff_min_ms", self.backoff_min_ms, 1, 3_600_000),
            ("backoff_max_ms", self.backoff_max_ms, self.backoff_min_ms, 86_400_000),
        ];
        for (name, value, low, high) in ranges {
            if !(low..=high).contains(&value) {
                return Err(format!("{name} is {value}, expected {low} to {high}"));
            }
        }
        Ok(())
    }

    pub(crate) fn deadline_ticks(&self) -> u64 {
        engine::ticks(Duration::from_millis(self.deadline_ms))
    }

    pub(crate) fn start_deadline_ticks(&self) -> u64 {
        engine::ticks(Duration::from_millis(self.start_deadline_ms))
    }
}

/// Why a call of a plugin gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "cause", rename_all = "kebab-case")]
pub enum Failure {
    /// The guest trapped.
    #[error("trapped: {message}")]
    Trap {
        /// What wasmtime says.
        message: String,
    },
    /// The guest ran longer than it may.
    #[error("still running after {limit_ms} ms")]
    Deadline {
        /// [`Limits::deadline_ms`] or [`Limits::start_deadline_ms`].
        limit_ms: u64,
    },
    /// The guest asked for more memory than it may have.
    #[error("asked for {wanted_bytes} bytes of memory, at most {limit_bytes} are allowed")]
    MemoryLimit {
        /// What it would have had.
        wanted_bytes: u64,
        /// [`Limits::memory_max_bytes`].
        limit_bytes: u64,
    },
    /// The guest called itself too deeply.
    #[error("used up the call stack")]
    Stack,
    /// The answer breaks a rule of the kind.
    #[error("answer refused: {reason}")]
    Refused {
        /// Which rule.
        reason: String,
    },
    /// Answer and memory are larger than they may be.
    #[error("answer and memory are larger than {limit_bytes} bytes")]
    Oversized {
        /// [`Limits::answer_max_bytes`].
        limit_bytes: u64,
    },
    /// No instance could be made: the host is at its limit, or the guest fails while starting.
    #[error("no instance: {reason}")]
    Instance {
        /// Why.
        reason: String,
    },
}

impl Failure {
    /// The cause alone, as it is counted: `trap`, `deadline`, `memory-limit`, `stack`, `refused`, `oversized`, `instance`.
    pub fn cause(&self) -> &'static str {
        Self::CAUSES[self.index()]
    }

    pub(crate) const CAUSES: [&'static str; 7] =
        ["trap", "deadline", "memory-limit", "stack", "refused", "oversized", "instance"];

    pub(crate) fn index(&self) -> usize {
        match self {
            Failure::Trap { .. } => 0,
            Failure::Deadline { .. } => 1,
            Failure::MemoryLimit { .. } => 2,
            Failure::Stack => 3,
            Failure::Refused { .. } => 4,
            Failure::Oversized { .. } => 5,
            Failure::Instance { .. } => 6,
        }
    }
}

/// Why the host does not take an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

impl Refusal {
    /// A refusal for `reason`.
    pub fn new(reason: impl Into<String>) -> Refusal {
        Refusal(reason.into())
    }
}
