//! `tenon snapshot`: a chain's state with what proves it, written, read, downloaded.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use tenon::chain::{Hash, Head, Height, Time};
use tenon::maintenance::database;
use tenon::snapshot::export::ExportOptions;
use tenon::snapshot::fetch::{self, FetchEvent, FetchOptions};
use tenon::snapshot::http::HttpChunks;
use tenon::snapshot::source::ChunkSource;
use tenon::snapshot::{Snapshot as Files, SnapshotError, install};

use super::output::{Output, Steps};
use super::{Local, Outcome};

/// Snapshots of a chain: what a new node can begin with.
///
/// A snapshot holds all accounts after one block, and the headers from genesis to that block, signed by the authorities
/// whose turns they were. It is taken when the accounts make the last header's state root: so it is trusted as far as the
/// authorities in the node's genesis.json are. The blocks that are not in it are not executed again; `--block-hash` says
/// which block it must be of, where that is known from elsewhere.
#[derive(Subcommand)]
pub enum Snapshot {
    /// Writes a snapshot of a node that may go on running
    Export(Export),
    /// Begins a stopped node without blocks with a snapshot
    Import(Import),
    /// Downloads a snapshot from other nodes, and begins a stopped node without blocks with it
    ///
    /// Chunks come from all of them at once; each is held against its hash, and who sends another one is named and left.
    /// What is here when it ends too early, for whatever reason, is not downloaded again.
    Fetch(Fetch),
}

#[derive(Args)]
pub struct Export {
    /// The node's directory
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// What to write: one file where the name ends in `.snapshot`, else a folder
    #[arg(long, value_name = "FILE|DIR")]
    out: PathBuf,
    /// Of which block [default: the head]; at most 1,024 below the head
    #[arg(long)]
    height: Option<Height>,
    /// How many of the last blocks to take in whole, or all; the last one in any case
    #[arg(long, value_name = "COUNT", num_args = 0..=1, default_missing_value = "18446744073709551615", default_value_t = 1)]
    blocks: u64,
}

#[derive(Args)]
pub struct Import {
    /// The snapshot: a file or a folder
    #[arg(value_name = "FILE|DIR")]
    from: PathBuf,
    /// The node's directory
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// The hash that its block must have
    #[arg(long, value_name = "HASH")]
    block_hash: Option<Hash>,
}

#[derive(Args)]
pub struct Fetch {
    /// A node to download from; can be given several times [default: the node's `sync.sources`]
    #[arg(long = "from", value_name = "URL")]
    from: Vec<String>,
    /// The node's directory
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// The hash that its block must have
    #[arg(long, value_name = "HASH")]
    block_hash: Option<Hash>,
}

impl Snapshot {
    pub async fn run(self, output: &Output) -> Result<Outcome> {
        let out = *output;
        match self {
            Self::Export(export) => tokio::task::spawn_blocking(move || export.run(&out)).await?,
            Self::Import(import) => tokio::task::spawn_blocking(move || import.run(&out)).await?,
            Self::Fetch(fetch) => fetch.run(output).await,
        }
    }
}

/// What is said of a snapshot.
fn described(snapshot: &Files) -> Value {
    let manifest = snapshot.manifest();
    json!({
        "height": manifest.height, "hash": manifest.block_hash, "id": snapshot.id(), "blocks_from": manifest.blocks_from,
        "accounts": manifest.accounts, "chunks": manifest.chunks.len(), "bytes": manifest.bytes(),
    })
}

impl Export {
    fn run(self, output: &Output) -> Result<Outcome> {
        let local = Local::open(&self.dir)?;
        let options = ExportOptions { height: self.height, blocks: self.blocks, ..ExportOptions::default() };
        let steps = Steps::new(output, "exporting");
        let snapshot = database::export(&local.config.store.path, &local.genesis, options, &self.out, |progress| {
            steps.tell(&format!("{} chunks, {} bytes", progress.chunks, progress.bytes));
            true
        })?;
        drop(steps);
        output.record(&described(&snapshot));
        Ok(Outcome::Done)
    }
}

impl Import {
    fn run(self, output: &Output) -> Result<Outcome> {
        let local = Local::open(&self.dir)?;
        let snapshot = Files::open(&self.from)?;
        let got = snapshot.manifest().block_hash;
        if let Some(expected) = self.block_hash {
            let height = snapshot.manifest().height;
            ensure!(got == expected, SnapshotError::OtherBlock { height, got, expected });
        }
        let described = described(&snapshot);
        put(&snapshot, &local, &mut Steps::new(output, "importing"))?;
        output.record(&described);
        Ok(Outcome::Done)
    }
}

/// Makes a node's database from a snapshot.
fn put(snapshot: &Files, local: &Local, steps: &mut Steps) -> Result<Head, SnapshotError> {
    install::install(snapshot, &local.config.store.path, &local.genesis, Time::now(), |progress| {
        steps.show(progress.chunks as u64, progress.of as u64);
    })
}

impl Fetch {
    async fn run(self, output: &Output) -> Result<Outcome> {
        let local = Arc::new(Local::open(&self.dir)?);
        let from = if self.from.is_empty() { &local.config.sync.sources } else { &self.from };
        ensure!(!from.is_empty(), "no node to download from: --from URL, or `sources` in [sync]");
        let mut sources: Vec<Arc<dyn ChunkSource>> = Vec::new();
        for url in from {
            let source = HttpChunks::new(url).map_err(|reason| anyhow!(reason))?;
            ensure!(!sources.iter().any(|known| known.name() == source.name()), "`{url}` stands there twice");
            sources.push(Arc::new(source));
        }
        // Before anything is downloaded.
        install::check_empty(&local.config.store.path, &local.genesis)?;
        let options = FetchOptions { block_hash: self.block_hash, ..FetchOptions::default() };
        let mut told = Told { steps: Steps::new(output, "downloading"), left: Vec::new() };
        let described = std::cell::RefCell::new(Value::Null);
        let folder = folder(&local.config.store.path);
        let obtained = fetch::obtain(
            &sources,
            &local.genesis,
            &folder,
            &options,
            |event| told.tell(&event),
            async |snapshot| {
                described.replace(self::described(&snapshot));
                let (local, mut steps) = (Arc::clone(&local), Steps::new(output, "importing"));
                let putting = tokio::task::spawn_blocking(move || put(&snapshot, &local, &mut steps));
                putting.await.map_err(|_| SnapshotError::Stopped)?
            },
        )
        .await;
        let Told { steps, left } = told;
        drop(steps);
        obtained?;
        let mut answer = described.take();
        answer["left"] = json!(left);
        if !output.is_json() {
            // Said on the way.
            answer.as_object_mut().expect("an object").remove("left");
        }
        output.record(&answer);
        Ok(Outcome::Done)
    }
}

/// Where chunks are kept until all are here.
fn folder(store: &Path) -> PathBuf {
    tenon::config::beside(store, "fetch")
}

/// What was said of a download.
struct Told {
    steps: Steps,
    left: Vec<Value>,
}

impl Told {
    fn tell(&mut self, event: &FetchEvent) {
        match event {
            FetchEvent::Chosen { id, height, sources, kept } => {
                let kept = kept.chunks;
                let kept = if kept > 0 { format!(", {kept} chunks are here already") } else { String::new() };
                self.steps.note(&format!("snapshot {id} of block {height}, from {sources} nodes{kept}"));
            }
            FetchEvent::Chunk(progress) => self.steps.show(progress.chunks as u64, progress.of as u64),
            FetchEvent::Left { source, reason, .. } => {
                self.steps.note(&format!("{source} is left: {reason}"));
                self.left.push(json!({ "source": source, "reason": reason }));
            }
            FetchEvent::Refused { id, reason } => {
                self.steps.note(&format!("snapshot {id} is refused: {reason}"));
                self.left.push(json!({ "snapshot": id, "reason": reason }));
            }
        }
    }
}
