//! `tenon db`: the database of a node, as a file to look after.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use tenon::maintenance::database;

use super::output::{Output, Steps, count};
use super::{Local, Outcome};

/// The database of a node: backups, checks, repair.
#[derive(Subcommand)]
pub enum Db {
    /// Copies the database of a node that may go on running, with a checksum beside it
    ///
    /// The copy is one consistent state of the chain, and its accounts are held against the head's state root before it
    /// gets its name. `FILE.sha256` is what `sha256sum -c` takes.
    Backup {
        /// The node's directory
        #[arg(long, default_value = ".")]
        dir: PathBuf,
        /// The file to write; it must not be there
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Puts a backup in the place of a stopped node's database
    ///
    /// Refused unless its checksum, the file, its chain and its state root are right. The database that was there is kept
    /// beside it, as `chain.db.old-…`.
    Restore {
        /// The backup
        file: PathBuf,
        /// The node's directory
        #[arg(long, default_value = ".")]
        dir: PathBuf,
        /// Do without the checksum file
        #[arg(long)]
        unchecked: bool,
    },
    /// Reads the whole database and names what is wrong; exit code 1 if something is
    ///
    /// The file as SQLite sees it, gaps between blocks, blocks that do not build on each other, rows of the indexes that
    /// are missing or too many, and accounts that do not make the head's state root. The node may run.
    Check {
        /// The node's directory
        #[arg(long, default_value = ".")]
        dir: PathBuf,
    },
    /// Makes accounts and indexes of a stopped node anew from its blocks
    Repair {
        /// The node's directory
        #[arg(long, default_value = ".")]
        dir: PathBuf,
    },
}

impl Db {
    pub async fn run(self, output: &Output) -> Result<Outcome> {
        let output = *output;
        // All of it reads and writes files for as long as it takes.
        tokio::task::spawn_blocking(move || self.work(&output)).await?
    }

    fn work(self, output: &Output) -> Result<Outcome> {
        match self {
            Self::Backup { dir, out } => {
                let local = Local::open(&dir)?;
                let backup = database::backup(&local.config.store.path, &out)?;
                output.record(&json!(backup));
            }
            Self::Restore { file, dir, unchecked } => {
                let local = Local::open(&dir)?;
                let restored = database::restore(&file, &local.config.store.path, &local.genesis, unchecked)?;
                output.record(&json!(restored));
            }
            Self::Check { dir } => {
                let local = Local::open(&dir)?;
                let mut steps = Steps::new(output, "checking");
                let checked =
                    database::check(&local.config.store.path, &local.genesis, |height, head| steps.show(height, head))?;
                drop(steps);
                if output.is_json() {
                    output.json(&json!(checked));
                } else {
                    checked.problems.iter().for_each(|problem| output.line(problem));
                    let counts = format!(
                        "{} blocks up to {}, {} transactions, {} accounts",
                        checked.blocks, checked.height, checked.transactions, checked.accounts
                    );
                    output.line(match checked.problems.len() {
                        0 => format!("nothing is wrong: {counts}"),
                        some => format!("{}: {counts}", count(some, "problem")),
                    });
                }
                return Ok(if checked.ok { Outcome::Done } else { Outcome::DoesNotHold });
            }
            Self::Repair { dir } => {
                let local = Local::open(&dir)?;
                let mut steps = Steps::new(output, "repairing");
                let repaired = database::repair(&local.config.store.path, &local.genesis, |height, head| {
                    steps.show(height, head)
                })?;
                drop(steps);
                output.record(&json!(repaired));
            }
        }
        Ok(Outcome::Done)
    }
}
