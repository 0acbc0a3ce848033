//! How an operator wants new versions to become live.

use serde::{Deserialize, Serialize};

/// How new bytes, or a new configuration, become live.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Rollout {
    /// At once.
    #[default]
    Immediate,
    /// The candidate first answers beside the live one, unseen; answers are compared.
    Shadow {
        /// Comparisons until it is decided. Default 1,000, where no time is given.
        #[serde(default)]
        calls: Option<u64>,
        /// Or seconds, with at least one comparison.
        #[serde(default)]
        seconds: Option<u64>,
        /// The share of answers that may differ in what they decide, 0 to 1 (see [`Kind::diverges`](crate::Kind::diverges):
        /// of a rate limit's, another verdict and not another number in it). Default 0.
        #[serde(default)]
        max_divergence: f64,
        /// How much slower it may be at the 99th percentile, as a factor. Default 10.
        #[serde(default = "default_slowdown")]
        max_slowdown: f64,
    },
    /// The candidate answers a growing share of the keys.
    Canary {
        /// The shares in percent, ascending; after the last it is live. Default 1, 10, 100.
        #[serde(default = "default_steps")]
        steps: Vec<u8>,
        /// Its calls until the next step, at least 1. Default 1,000.
        #[serde(default = "default_calls")]
        calls: u64,
        /// Seconds that a step takes at least. Default 0.
        #[serde(default)]
        seconds: u64,
        /// How much slower it may be at the 99th percentile, as a factor. Default 10.
        #[serde(default = "default_slowdown")]
        max_slowdown: f64,
    },
}

fn default_slowdown() -> f64 {
    10.0
}
fn default_steps() -> Vec<u8> {
    vec![1, 10, 100]
}
pub(super) fn default_calls() -> u64 {
    1_000
}

impl Rollout {
    /// Whether every number is within its range. Errors: the first that is not, by name.
    pub fn check(&self) -> Result<(), String> {
        let slowdown = |factor: f64| match factor {
            1.0..=1e6 => Ok(()),
            _ => Err(format!("max_slowdown is {factor}, expected 1 to 1,000,000")),
        };
        match self {
            Rollout::Immediate => Ok(()),
            Rollout::Shadow { calls, seconds, max_divergence, max_slowdown } => {
                if *calls == Some(0) || *seconds == Some(0) {
                    return Err("calls and seconds are at least 1".to_owned());
                }
                if !(0.0..=1.0).contains(max_divergence) {
                    return Err(format!("max_divergence is {max_divergence}, expected 0 to 1"));
                }
                slowdown(*max_slowdown)
            }
            Rollout::Canary { steps, calls, max_slowdown, .. } => {
                let ascends = steps.windows(2).all(|pair| pair[0] < pair[1]);
                if steps.is_empty() || !ascends || steps.iter().any(|step| !(1..=100).contains(step)) {
                    return Err(format!("steps is {steps:?}, expected ascending percentages from 1 to 100"));
                }
                if *calls == 0 {
                    return Err("calls is at least 1".to_owned());
                }
                slowdown(*max_slowdown)
            }
        }
    }
}

/// How long a new generation is watched, and what brings the previous one back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Probation {
    /// Seconds after it went live. Default 60; 0: none.
    pub seconds: u64,
    /// Failed calls in that time. Default 2.
    pub failures: u64,
    /// How much slower it may be at the 99th percentile than the previous one, as a factor. Default 10.
    pub max_slowdown: f64,
}

impl Default for Probation {
    fn default() -> Probation {
        Probation { seconds: 60, failures: 2, max_slowdown: 10.0 }
    }
}

impl Probation {
    /// Whether every number is within its range. Errors: the first that is not, by name.
    pub fn check(&self) -> Result<(), String> {
        if self.failures == 0 {
            return Err("failures is 0, expected 1 or more".to_owned());
        }
        match self.max_slowdown {
            1.0..=1e6 => Ok(()),
            factor => Err(format!("max_slowdown is {factor}, expected 1 to 1,000,000")),
        }
    }
}
