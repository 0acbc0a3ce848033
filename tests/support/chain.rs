//! A chain in a folder with a ledger that runs on it, and snapshots of it.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tenon::chain::{Block, Genesis, VerifiedBlock, verify};
use tenon::ledger::{Imported, Ledger, LedgerOptions};
use tenon::sample::Sample;
use tenon::snapshot::export::{ExportOptions, export};
use tenon::snapshot::{Snapshot, SnapshotError};

pub fn open(path: &Path, genesis: &Genesis) -> Ledger {
    Ledger::open(LedgerOptions::new(path.to_owned(), genesis.clone()), Vec::new()).unwrap()
}

pub fn verified(blocks: Vec<Block>, genesis: &Genesis) -> Vec<VerifiedBlock> {
    verify::verify_all(blocks, genesis).into_iter().map(Result::unwrap).collect()
}

/// A chain in a folder, on a node that runs.
pub struct Chain {
    pub dir: TempDir,
    pub sample: Sample,
    pub ledger: Ledger,
}

impl Chain {
    pub async fn new(seed: u64, accounts: usize, blocks: usize, transactions: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sample = Sample::new(seed, accounts);
        let ledger = open(&dir.path().join("chain.db"), sample.genesis());
        let mut this = Self { dir, sample, ledger };
        this.grow(blocks, transactions).await;
        this
    }

    /// Adds blocks; answers them.
    pub async fn grow(&mut self, blocks: usize, transactions: usize) -> Vec<VerifiedBlock> {
        let blocks = verified(self.sample.blocks(blocks, transactions), self.sample.genesis());
        let answers = self.ledger.import(blocks.clone()).await;
        assert!(answers.iter().all(|answer| *answer == Ok(Imported::Extended)), "{answers:?}");
        blocks
    }

    pub fn genesis(&self) -> Genesis {
        (**self.sample.genesis()).clone()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn export(&self, name: &str, options: ExportOptions) -> Result<Snapshot, SnapshotError> {
        let genesis = self.genesis();
        let hash = self.ledger.genesis_hash();
        let mut exported = None;
        self.ledger
            .storage()
            .read(|reader| {
                exported = Some(export(reader, &genesis, &hash, options, &self.path(name), |_| true));
                Ok(())
            })
            .unwrap();
        exported.unwrap()
    }
}

/// Small chunks, so that there are several of each kind, with so many whole blocks.
pub fn small(blocks: u64) -> ExportOptions {
    ExportOptions { blocks, chunk_bytes: 1_500, ..ExportOptions::default() }
}
