//! `tenon config`: says what is wrong with a configuration, and which knobs there are.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use tenon::config::{Config as Configuration, Severity};

use super::Outcome;
use super::output::{Output, count};

/// The configuration file.
#[derive(Subcommand)]
pub enum Config {
    /// Says everything that is wrong with a node's configuration; its plugins are asked what they say to their settings
    Check {
        /// The node's directory
        #[arg(long, default_value = ".")]
        dir: PathBuf,
    },
    /// Lists every knob: what it takes, its default, what it means
    Keys,
}

impl Config {
    pub fn run(self, output: &Output) -> Result<Outcome> {
        match self {
            Self::Check { dir } => {
                let problems = match Configuration::load(&dir) {
                    Ok(config) => {
                        let mut problems = config.check();
                        tenon::rehearsal::rehearse(&config, &mut problems)?;
                        problems
                    }
                    Err(error) => error.0,
                };
                let errors = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
                if output.is_json() {
                    output.json(&json!({ "ok": errors == 0, "problems": problems }));
                } else {
                    problems.iter().for_each(|problem| output.line(problem.to_string()));
                    let warnings = problems.len() - errors;
                    output.line(match (errors, warnings) {
                        (0, 0) => "nothing is wrong".to_owned(),
                        _ => format!("{}, {}", count(errors, "error"), count(warnings, "warning")),
                    });
                }
                Ok(if errors == 0 { Outcome::Done } else { Outcome::DoesNotHold })
            }
            Self::Keys => {
                let keys = serde_json::to_value(Configuration::keys())?;
                let columns =
                    [("key", "/name"), ("default", "/default"), ("takes", "/expected"), ("meaning", "/meaning")];
                output.list(keys.as_array().expect("a list of keys"), &columns);
                Ok(Outcome::Done)
            }
        }
    }
}
