//! Making a snapshot of a database, through one read snapshot of it: the node may run and go on. The accounts are held
//! against the block's state root on the way, so that what is written can be loaded.

use std::fs;
use std::path::Path;

use super::chunk::{CONTENT_BYTES_TARGET, push_account, push_frame};
use super::files::{ChunkWriter, EXTENSION, MANIFEST, Snapshot, put_in_place, suffixed, taken, write_synced};
use super::manifest::{ChunkKind, FORMAT, Manifest};
use super::{Progress, Result, SnapshotAccount, SnapshotError, io};
use crate::chain::state::SortedRoot;
use crate::chain::{Account, Genesis, Hash, Height};
use crate::storage::{Reader, StorageError};

/// What the name of a folder ends with while a snapshot is made in it.
pub const STAGE: &str = "stage";

/// What a snapshot should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportOptions {
    /// The block; the head where none is named. Blocks that can still be undone lie between it and the head at most.
    pub height: Option<Height>,
    /// Whole blocks, counted from the snapshot's own downwards; below there are headers. At least its own is whole.
    pub blocks: u64,
    /// Bytes of content after which a chunk is complete. Nodes that want to serve the same chunks must agree on it.
    pub chunk_bytes: usize,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self { height: None, blocks: 1, chunk_bytes: CONTENT_BYTES_TARGET }
    }
}

/// Writes a snapshot to `out`: one file where the name ends in `.snapshot`, else a folder. Built beside and renamed, so
/// whatever has the name is complete. `progress` is told after every chunk, and ends the work by answering false.
pub fn export(
    reader: &Reader<'_>,
    genesis: &Genesis,
    genesis_hash: &Hash,
    options: ExportOptions,
    out: &Path,
    progress: impl FnMut(Progress) -> bool,
) -> Result<Snapshot> {
    if out.exists() {
        return Err(io(out)(taken()));
    }
    let stage = suffixed(out, &format!(".{STAGE}"));
    // Left behind by a process that was killed.
    if stage.exists() {
        fs::remove_dir_all(&stage).map_err(io(&stage))?;
    }
    let written = write(reader, genesis, genesis_hash, options, &stage, progress).and_then(|()| {
        if out.extension().is_some_and(|extension| extension == EXTENSION) {
            Snapshot::open(&stage)?.write_file(out)?;
            fs::remove_dir_all(&stage).map_err(io(&stage))
        } else {
            put_in_place(&stage, out)
        }
    });
    if written.is_err() {
        // What went wrong is said already.
        let _ = fs::remove_dir_all(&stage);
    }
    written?;
    Snapshot::open(out)
}

fn write(
    reader: &Reader<'_>,
    genesis: &Genesis,
    genesis_hash: &Hash,
    options: ExportOptions,
    folder: &Path,
    mut progress: impl FnMut(Progress) -> bool,
) -> Result<()> {
    let not_here = |text: String| SnapshotError::NotHere(text);
    let head = reader.head()?.ok_or_else(|| not_here("the database has no blocks".into()))?;
    let height = options.height.unwrap_or(head.height);
    if height == 0 || height > head.height {
        return Err(not_here(format!(
            "no snapshot of block {height}: expected a block from 1 to the head, {}",
            head.height
        )));
    }
    let (header, signature) =
        reader.signed_header(height)?.ok_or_else(|| not_here(format!("block {height} is not here")))?;
    let blocks_from = (height + 1).saturating_sub(options.blocks.max(1)).max(1);
    let base = reader.base()?;
    if blocks_from < base {
        return Err(not_here(format!(
            "block {blocks_from} is not here: the blocks of this node begin at height {base}"
        )));
    }

    let mut writer = ChunkWriter::new(folder, options.chunk_bytes)?;
    let mut told = 0;
    let mut go_on = |writer: &ChunkWriter| {
        let now = writer.progress();
        if std::mem::replace(&mut told, now.chunks) == now.chunks || progress(now) {
            Ok(())
        } else {
            Err(SnapshotError::Stopped)
        }
    };
    let mut next = 1;
    reader.each_header(1, blocks_from - 1, |header, signature| {
        expect(&mut next, header.height)?;
        writer.push(|content| {
            push_frame(content, |frame| {
                header.encode(frame);
                frame.extend_from_slice(&signature.0);
            });
        })?;
        go_on(&writer)
    })?;
    writer.turn_to(ChunkKind::Blocks, blocks_from)?;
    let mut outcome = Ok(());
    reader.each_encoded_block(blocks_from, height, |block| {
        next += 1;
        outcome = writer.push(|content| push_frame(content, |frame| frame.extend_from_slice(block)));
        if outcome.is_ok() {
            outcome = go_on(&writer);
        }
        outcome.is_ok()
    })?;
    outcome?;
    expect(&mut next, height + 1)?;
    writer.turn_to(ChunkKind::Accounts, 0)?;
    let mut root = SortedRoot::default();
    reader.each_account_at(height, |address, stored| {
        let account = Account { balance: stored.balance, nonce: stored.nonce };
        root.push(address, account).map_err(|error| StorageError::Inconsistent(error.to_string()))?;
        // A key belongs to the account from its first transaction on; so two nodes make the same chunks.
        let public_key = stored.public_key.filter(|_| stored.nonce > 0);
        if stored.nonce > 0 && public_key.is_none() {
            return Err(SnapshotError::NoKey(address));
        }
        writer.push(|content| push_account(content, &SnapshotAccount { address, account, public_key }))?;
        go_on(&writer)
    })?;
    let accounts = root.len();
    let got = root.finish();
    if got != header.state_root {
        return Err(SnapshotError::StateRoot { height, expected: header.state_root, got });
    }

    let mut signed = Vec::with_capacity(256);
    header.encode(&mut signed);
    signed.extend_from_slice(&signature.0);
    let manifest = Manifest {
        format: FORMAT.into(),
        chain_id: genesis.chain_id.clone(),
        genesis_hash: *genesis_hash,
        height,
        block_hash: header.hash(),
        header: const_hex::encode(signed),
        blocks_from,
        accounts,
        chunks: writer.finish()?,
    };
    write_synced(&folder.join(MANIFEST), &manifest.to_bytes())
}

/// Counts heights one by one.
fn expect(next: &mut Height, got: Height) -> Result<()> {
    if got != *next {
        return Err(StorageError::Inconsistent(format!("block {next} is not there, block {got} is")).into());
    }
    *next += 1;
    Ok(())
}
