//! Swapping a plugin the way an operator does, and waiting until the node says that the new one serves.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cli::http::Node;
use crate::cli::plugin::path;

/// How long a swap may take.
const SWAP_MAX: Duration = Duration::from_secs(30);

/// One swap.
pub enum Swap {
    /// `tenon plugin use`.
    Use(&'static str),
    /// Other bytes of a plugin, made here, copied over its file.
    File(&'static str, Vec<u8>),
    /// These bytes, copied to a plugin's file.
    Bytes(&'static str, Vec<u8>),
}

/// A slot of a running node.
#[derive(Clone)]
pub struct Slot {
    admin: Node,
    name: &'static str,
    plugins: PathBuf,
}

impl Slot {
    /// The slot `name` of the node in `dir`.
    pub fn new(admin: &Node, name: &'static str, dir: &Path) -> Self {
        Self { admin: admin.clone(), name, plugins: dir.join("plugins") }
    }

    /// As the node shows it.
    pub async fn status(&self) -> Result<Value> {
        let slots = self.admin.get("/admin/plugins").await?;
        let mut slots = slots.as_array().into_iter().flatten();
        let found = slots.find(|slot| slot.get("slot").and_then(Value::as_str) == Some(self.name));
        found.cloned().with_context(|| format!("the node has no slot {}", self.name))
    }

    /// Swaps, and answers the generation that serves then.
    pub async fn swap(&self, swap: Swap) -> Result<u64> {
        let before = generation(&self.status().await?);
        let plugin = match swap {
            Swap::Use(plugin) => {
                self.admin.post(&path(self.name, "use"), &json!({ "plugin": plugin })).await?;
                plugin
            }
            Swap::File(plugin, bytes) => {
                self.copy(plugin, &tenon_build::restamp(&bytes, &format!("demo {before}")))?;
                plugin
            }
            Swap::Bytes(plugin, bytes) => {
                self.copy(plugin, &bytes)?;
                plugin
            }
        };
        let started = Instant::now();
        loop {
            let status = self.status().await?;
            let serves = status.get("plugin").and_then(Value::as_str) == Some(plugin);
            if serves && generation(&status) > before {
                return Ok(generation(&status));
            }
            if started.elapsed() > SWAP_MAX {
                bail!("{plugin} does not serve the slot {} after {} s: {status}", self.name, SWAP_MAX.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Copies bytes into the plugin directory: beside their place, then renamed into it.
    fn copy(&self, plugin: &str, bytes: &[u8]) -> Result<()> {
        let file = self.plugins.join(format!("{plugin}.wasm"));
        let beside = self.plugins.join(format!(".{plugin}.new"));
        std::fs::write(&beside, bytes)
            .and_then(|()| std::fs::rename(&beside, &file))
            .with_context(|| format!("copying {}", file.display()))
    }
}

fn generation(status: &Value) -> u64 {
    status.get("generation").and_then(Value::as_u64).unwrap_or(0)
}
