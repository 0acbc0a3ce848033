//! What an operator sets for a slot, what a call may use, and the ways in which a call fails.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    engine,
    journal::JournalConfig,
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
    /// How its calls are recorded. Default: not at all.
    pub journal: Option<JournalConfig>,
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
            journal: None,
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

/// One limit, for those who let operators set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Its name: the field of [`Limits`], unit last.
    pub name: &'static str,
    /// The least it may be.
    pub low: u64,
    /// The most it may be.
    pub high: u64,
    /// What it means.
    pub meaning: &'static str,
}

/// Declares the limits, each once: `/// meaning … name: type = default, low, high;`.
macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:expr, $low:expr, $high:expr;)+) => {
        /// What a plugin may use, in one slot.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Limits {
            $(
                $(#[doc = $doc])+
                #[doc = concat!(" Default `", stringify!($default), "`; `", stringify!($low), "` to `", stringify!($high), "`.")]
                pub $name: $type,
            )+
        }

        impl Default for Limits {
            fn default() -> Limits {
                Limits { $($name: $default,)+ }
            }
        }

        impl Limits {
            /// Every limit there is.
            pub const ALL: &[Limit] = &[
                $(Limit { name: stringify!($name), low: $low, high: $high, meaning: concat!($($doc),+) },)+
            ];

            /// The values, in the order of [`ALL`](Self::ALL).
            fn values(&self) -> impl Iterator<Item = u64> {
                // A `usize` is never more than a `u64`.
                [$(u64::try_from(self.$name).unwrap_or(u64::MAX),)+].into_iter()
            }
        }
    };
}

limits! {
    /// Milliseconds until a call is stopped. A safety stop on the wall clock, which also runs while the thread waits for
    /// a processor, so small values stop innocent calls.
    deadline_ms: u64 = 100, 50, 60_000;
    /// Milliseconds until instantiating and configuring are stopped.
    start_deadline_ms: u64 = 5_000, 50, 600_000;
    /// Fuel of one call where calls are replayed or simulated, which bounds them without a clock: about one unit for each
    /// Wasm instruction.
    fuel_max: u64 = 50_000_000, 1_000, 1_000_000_000_000;
    /// Linear memory of one instance, in bytes; what the host reserves for an instance bounds it, too.
    memory_max_bytes: u64 = 16 << 20, 64 << 10, 4 << 30;
    /// Elements of one table.
    table_max_elements: u64 = 10_000, 1, engine::TABLE_ELEMENTS_MAX as u64;
    /// Core instances in one component.
    instances_max: u64 = 64, 1, 64;
    /// What one call may hand back, answer and memory together, in bytes.
    answer_max_bytes: u64 = 4 << 20, 1 << 10, 64 << 20;
    /// Log lines a second for the slot; what is beyond is counted.
    log_lines_per_second: u32 = 20, 0, 10_000;
    /// Keys whose memory is kept; the least recently used go first.
    memory_keys_max: usize = 100_000, 16, 10_000_000;
    /// Failures in a row until quarantine.
    strikes_max: u32 = 10, 1, 1_000_000;
    /// Subjects (clients, senders) that may be set aside at a time, after two failures each; one more and the plugin is
    /// quarantined instead.
    subjects_aside_max: u32 = 32, 1, 1_000;
    /// First quarantine, in milliseconds; it doubles each time a trial call fails.
    backoff_min_ms: u64 = 1_000, 1, 3_600_000;
    /// Longest quarantine, in milliseconds; not below `backoff_min_ms`.
    backoff_max_ms: u64 = 300_000, 1, 86_400_000;
}

impl Limits {
    /// Whether every limit is within its range. Errors: the first that is not, with its name, value and range.
    pub fn check(&self) -> Result<(), String> {
        for (Limit { name, low, high, .. }, value) in Self::ALL.iter().zip(self.values()) {
            if !(*low..=*high).contains(&value) {
                return Err(format!("{name} is {value}, expected {low} to {high}"));
            }
        }
        if self.backoff_max_ms < self.backoff_min_ms {
            let (max, min) = (self.backoff_max_ms, self.backoff_min_ms);
            return Err(format!("backoff_max_ms is {max}, expected {min} (backoff_min_ms) or more"));
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
    /// There is a memory that it cannot read, and that is not given up. See [`Kind::FORGETS`](crate::Kind::FORGETS).
    #[error("cannot read the memory of {of}: {reason}")]
    Unreadable {
        /// Whose memory it is: plugin and memory-version.
        of: String,
        /// Why it could not be handed over.
        reason: String,
    },
}

impl Failure {
    /// The cause alone, as it is counted: `trap`, `deadline`, `memory-limit`, `stack`, `refused`, `oversized`, `instance`,
    /// `unreadable`.
    pub fn cause(&self) -> &'static str {
        Self::CAUSES[self.index()]
    }

    pub(crate) const CAUSES: [&'static str; 8] =
        ["trap", "deadline", "memory-limit", "stack", "refused", "oversized", "instance", "unreadable"];

    pub(crate) fn index(&self) -> usize {
        match self {
            Failure::Trap { .. } => 0,
            Failure::Deadline { .. } => 1,
            Failure::MemoryLimit { .. } => 2,
            Failure::Stack => 3,
            Failure::Refused { .. } => 4,
            Failure::Oversized { .. } => 5,
            Failure::Instance { .. } => 6,
            Failure::Unreadable { .. } => 7,
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
