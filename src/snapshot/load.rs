//! Checking a snapshot as it is read. Chunks are unpacked and their signatures verified on every core, some ahead; in
//! their order the headers are linked and the accounts put together to the state root. Nothing is answered for before the
//! end: whoever takes the pieces must be able to throw them away.

use std::sync::mpsc;

use rayon::prelude::*;

use super::chunk::{self, Content};
use super::files::Snapshot;
use super::{Progress, Result, SnapshotAccount, SnapshotError};
use crate::chain::state::SortedRoot;
use crate::chain::{Genesis, Head, Header, Time, VerifiedBlock, VerifiedHeader, rules, verify, verify_headers};

/// A part of a snapshot, in order: headers, blocks, accounts.
pub enum Piece {
    /// Headers that follow each other.
    Headers(Vec<VerifiedHeader>),
    /// Blocks that follow each other, and the headers.
    Blocks(Vec<VerifiedBlock>),
    /// Accounts by address. That they are the block's shows only after the last of them.
    Accounts(Vec<SnapshotAccount>),
}

/// Windows of checked chunks that wait to be taken.
const WINDOWS_AHEAD: usize = 1;

/// Reads and checks all of `snapshot`, and hands its pieces to `take` in order. Answers the snapshot's block. Errors: the
/// first thing that does not hold, named by its chunk, and those of `take`; then the pieces are worth nothing.
pub fn load(
    snapshot: &Snapshot,
    genesis: &Genesis,
    now: Time,
    mut progress: impl FnMut(Progress) + Send,
    mut take: impl FnMut(Piece) -> Result<()>,
) -> Result<Head> {
    let manifest = snapshot.manifest();
    let genesis_head = Head::from(&genesis.block().header);
    let expected = manifest.verify(genesis, &genesis_head.hash, now)?;
    let mut checker = Checker { genesis, now, head: genesis_head, root: SortedRoot::default() };
    let chunks: Vec<usize> = (0..manifest.chunks.len()).collect();
    let window = rayon::current_num_threads().max(1) * 2;
    let (sender, windows) = mpsc::sync_channel::<Vec<(usize, Result<Piece>)>>(WINDOWS_AHEAD);
    let head = std::thread::scope(|scope| -> Result<Head> {
        let ahead = scope.spawn(move || {
            for window in chunks.chunks(window) {
                let checked = window.par_iter().map(|&index| (index, check(snapshot, index, genesis))).collect();
                // Nobody takes any more after an error.
                if sender.send(checked).is_err() {
                    return;
                }
            }
        });
        let mut done = Progress { of: manifest.chunks.len(), ..Progress::default() };
        let mut taken = || -> Result<()> {
            for (index, piece) in windows.iter().flatten() {
                let piece = piece?;
                checker.add(&piece).map_err(|reason| snapshot.wrong(index, reason))?;
                take(piece)?;
                done.chunks += 1;
                done.bytes += manifest.chunks[index].bytes;
                progress(done);
            }
            Ok(())
        };
        let outcome = taken();
        // The thread may wait to send; without a receiver it ends.
        drop(windows);
        ahead.join().expect("checking bytes from elsewhere does not panic");
        outcome?;
        checker.finish(&expected)
    })?;
    Ok(head)
}

/// What can be checked of a chunk by itself.
fn check(snapshot: &Snapshot, index: usize, genesis: &Genesis) -> Result<Piece> {
    let info = &snapshot.manifest().chunks[index];
    let content = snapshot.content(index)?;
    let content = chunk::decode(info, &content).map_err(|reason| snapshot.wrong(index, reason))?;
    let wrong = |at: usize, error: String| snapshot.wrong(index, format!("{}: {error}", info.first + at as u64));
    Ok(match content {
        Content::Headers(headers) => {
            Piece::Headers(verify_headers(headers, genesis).map_err(|(at, error)| wrong(at, error.to_string()))?)
        }
        Content::Blocks(blocks) => {
            let verified = verify::verify_all(blocks, genesis).into_iter().enumerate();
            let verified = verified.map(|(at, block)| block.map_err(|error| wrong(at, error.to_string())));
            Piece::Blocks(verified.collect::<Result<_>>()?)
        }
        Content::Accounts(accounts) => Piece::Accounts(accounts),
    })
}

/// What is known after the pieces so far.
struct Checker<'a> {
    genesis: &'a Genesis,
    now: Time,
    head: Head,
    root: SortedRoot,
}

impl Checker<'_> {
    fn add(&mut self, piece: &Piece) -> Result<(), String> {
        match piece {
            Piece::Headers(headers) => {
                headers.iter().try_for_each(|header| self.follow(header.header(), header.head()))
            }
            Piece::Blocks(blocks) => blocks.iter().try_for_each(|block| {
                let header = &block.block().header;
                self.follow(header, head_of(block))
            }),
            Piece::Accounts(accounts) => {
                let mut push = |account: &SnapshotAccount| self.root.push(account.address, account.account);
                accounts.iter().try_for_each(&mut push).map_err(|error| error.to_string())
            }
        }
    }

    fn follow(&mut self, header: &Header, head: Head) -> Result<(), String> {
        rules::check_child(&self.head, header, self.genesis, self.now)
            .map_err(|error| format!("{}: {error}", header.height))?;
        self.head = head;
        Ok(())
    }

    fn finish(self, expected: &VerifiedHeader) -> Result<Head> {
        if self.head.hash != expected.hash() {
            let reason = format!("the last block is {}, the manifest says {}", self.head.hash, expected.hash());
            return Err(SnapshotError::Manifest(reason));
        }
        let got = self.root.finish();
        if got != self.head.state_root {
            let (height, expected) = (self.head.height, self.head.state_root);
            return Err(SnapshotError::StateRoot { height, expected, got });
        }
        Ok(self.head)
    }
}

fn head_of(block: &VerifiedBlock) -> Head {
    let Header { height, parent_hash, timestamp, tx_count, state_root, .. } = block.block().header;
    Head { height, hash: block.hash(), parent_hash, timestamp, tx_count, state_root }
}
