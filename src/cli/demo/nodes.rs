//! Nodes as processes, which never outlive the demo unless they are asked to.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::cli::http::Node;
use crate::cli::plugin::Admin;
use crate::cli::run::Addresses;
use crate::cli::sync::Status;

/// How long a node may take to serve.
const START_MAX: Duration = Duration::from_secs(60);

/// How long it may take to stop.
const STOP_MAX: Duration = Duration::from_secs(20);

/// How often to look.
const LOOK: Duration = Duration::from_millis(20);

/// A node that runs.
pub struct Running {
    /// What we call it.
    pub name: &'static str,
    /// Its public routes.
    pub node: Node,
    /// Its operator's routes.
    pub admin: Node,
    /// Where it listens.
    pub addresses: Addresses,
    child: Process,
}

/// A child process. Killed when dropped.
struct Process(Option<Child>);

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // Fails where it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Running {
    /// Starts the node in `dir` and waits until it serves. Its log goes to `dir/log`.
    pub async fn start(name: &'static str, dir: &Path, keep: bool) -> Result<Self> {
        let log = File::create(log_of(dir)).with_context(|| format!("creating the log of the {name}"))?;
        let mut command = Command::new(std::env::current_exe().context("finding out where this program is")?);
        command.arg("run").arg("--dir").arg(dir).stdout(Stdio::null()).stderr(log);
        // What overrides one node's configuration would override both nodes'.
        for (variable, _) in std::env::vars_os() {
            let text = variable.to_string_lossy();
            if text.starts_with("TENON_") && !text.starts_with("TENON_LOG") {
                command.env_remove(&variable);
            }
        }
        if keep {
            // In a group of its own, so that Ctrl-C in this terminal does not reach it later.
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
            command.stdin(Stdio::null());
        } else {
            // Our end of the pipe closes however we end, and the node stops with it.
            command.arg("--stop-with-stdin").stdin(Stdio::piped());
        }
        let child = command.spawn().with_context(|| format!("starting the {name}"))?;
        let mut child = Process(Some(child));
        let started = Instant::now();
        let addresses = loop {
            if let Some(addresses) = Addresses::of(dir) {
                break addresses;
            }
            if let Some(status) = child.0.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("the {name} ended with {status} before it served");
            }
            ensure!(started.elapsed() < START_MAX, "the {name} does not serve after {} s", START_MAX.as_secs());
            tokio::time::sleep(LOOK).await;
        };
        let node = Node::new(&format!("http://{}", addresses.rpc))?;
        node.get("/health").await?;
        Ok(Self { name, node, admin: Admin::of(dir).node()?, addresses, child })
    }

    /// Lets it go on without us.
    pub fn leave(mut self) {
        // Dropping a `Child` neither ends it nor waits for it.
        self.child.0.take();
    }

    /// Asks it to stop and waits for it. Errors: it does not, or says that it failed.
    pub async fn stop(mut self) -> Result<()> {
        let name = self.name;
        let Some(child) = &mut self.child.0 else { return Ok(()) };
        drop(child.stdin.take());
        let asked = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                ensure!(status.success(), "the {name} stopped with {status}");
                return Ok(());
            }
            ensure!(asked.elapsed() < STOP_MAX, "the {name} has not stopped after {} s", STOP_MAX.as_secs());
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Waits until a node says that it has caught up.
pub async fn until_live(node: &Node, patience: Duration) -> Result<Status> {
    let started = Instant::now();
    loop {
        let status = Status::of(node).await?;
        if status.is_live() {
            return Ok(status);
        }
        let Status { state, head, best, .. } = &status;
        ensure!(started.elapsed() < patience, "the follower is still {state}, at {head} of {best}");
        tokio::time::sleep(LOOK).await;
    }
}

fn log_of(dir: &Path) -> PathBuf {
    dir.join("log")
}

/// The end of each node's log, for an error that would be a riddle without it.
pub fn last_lines(root: &Path) -> String {
    const LINES: usize = 8;
    let mut text = String::new();
    for name in ["authority", "follower"] {
        let log = fs::read_to_string(log_of(&root.join(name))).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        if !lines.is_empty() {
            let last = &lines[lines.len().saturating_sub(LINES)..];
            text += &format!("\n{name}'s log ends:\n  {}\n", last.join("\n  "));
        }
    }
    text
}
