//! From bytes to blocks of the chain: decoding and verification off the ordered path and on every core, and imports,
//! several of them queued so that the ledger never waits for us. Between the two the engine brings ranges into order.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use rayon::prelude::*;
use tokio::sync::mpsc;

use super::engine::{Job, JobDone};
use super::source::frames;
use super::{HeightRange, PeerId};
use crate::chain::{Block, BlockError, DecodeError, Genesis, Height, VerifiedBlock, verify};
use crate::ledger::{ImportError, Imported, Ledger};

/// Encoded bytes that one core takes on at a time: about a batch of signatures.
const CHUNK_BYTES: usize = 64 << 10;

/// Imports handed to the ledger and not answered, at most: what fills one commit, and as much again.
pub const JOBS_MAX: usize = 4;

/// Why a range is not good, whoever sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeFault {
    /// Bytes that are no block.
    #[error("block {height} cannot be read: {error}")]
    Decode {
        /// The height it should have had.
        height: Height,
        /// Where it goes wrong.
        error: DecodeError,
    },
    /// A block that was not asked for.
    #[error("block {got} came where block {expected} was asked for")]
    Height {
        /// Asked for.
        expected: Height,
        /// Came.
        got: Height,
    },
    /// Two blocks that do not build on each other.
    #[error("block {0} does not build on the one before it")]
    Link(Height),
    /// A block that breaks a rule.
    #[error("block {height} is not valid: {error}")]
    Invalid {
        /// Which.
        height: Height,
        /// Which rule.
        error: BlockError,
    },
}

/// The threads that verify.
pub struct Verifier {
    pool: rayon::ThreadPool,
    genesis: Arc<Genesis>,
    stopped: Arc<AtomicBool>,
}

impl Verifier {
    /// With `threads` threads; 0: as many as there are cores. Errors: the system gives no threads.
    pub fn new(threads: usize, genesis: Arc<Genesis>) -> Result<Self, String> {
        let named = |index| format!("tenon-verify-{index}");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(named).build();
        let pool = pool.map_err(|error| format!("threads to verify with: {error}"))?;
        Ok(Self { pool, genesis, stopped: Arc::default() })
    }

    /// Verifies what came for `first` and up; calls `done` on one of the threads. After a stop, it is not called.
    pub fn verify(
        &self,
        first: Height,
        body: Vec<u8>,
        done: impl FnOnce(Result<Vec<VerifiedBlock>, RangeFault>) + Send + 'static,
    ) {
        let (genesis, stopped) = (Arc::clone(&self.genesis), Arc::clone(&self.stopped));
        // First come, first served: the lowest ranges are the ones that the chain waits for.
        self.pool.spawn_fifo(move || {
            if !stopped.load(Ordering::Relaxed) {
                done(verify_range(first, &body, &genesis));
            }
        });
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// Reads and verifies all blocks of `body`, which have to be `first` and those after it, each building on the one before.
/// What needs the state is left to the import. Uses the threads of the pool that it is called on.
pub fn verify_range(first: Height, body: &[u8], genesis: &Genesis) -> Result<Vec<VerifiedBlock>, RangeFault> {
    let parts: Result<Vec<_>, _> = chunks(first, body)
        .into_par_iter()
        .map(|(first, frames)| {
            let blocks: Result<Vec<_>, _> =
                (first..).zip(&frames).map(|(height, frame)| decode(height, frame)).collect();
            let verified = (first..).zip(verify::verify_all(blocks?, genesis));
            verified
                .map(|(height, block)| block.map_err(|error| RangeFault::Invalid { height, error }))
                .collect::<Result<Vec<_>, _>>()
        })
        .collect();
    let blocks: Vec<_> = parts?.into_iter().flatten().collect();
    let unlinked = blocks.windows(2).find(|pair| pair[1].block().header.parent_hash != pair[0].hash());
    match unlinked {
        Some(pair) => Err(RangeFault::Link(pair[1].height())),
        None => Ok(blocks),
    }
}

fn decode(height: Height, frame: &[u8]) -> Result<Block, RangeFault> {
    let block = Block::decode(frame).map_err(|error| RangeFault::Decode { height, error })?;
    match block.header.height {
        got if got == height => Ok(block),
        got => Err(RangeFault::Height { expected: height, got }),
    }
}

/// The frames in parts of about [`CHUNK_BYTES`], each with the height of its first block.
fn chunks(first: Height, body: &[u8]) -> Vec<(Height, Vec<&[u8]>)> {
    let mut chunks: Vec<(Height, Vec<&[u8]>)> = Vec::new();
    let mut bytes = CHUNK_BYTES;
    for (height, frame) in (first..).zip(frames(body)) {
        if bytes >= CHUNK_BYTES {
            chunks.push((height, Vec::new()));
            bytes = 0;
        }
        bytes += frame.len();
        chunks.last_mut().expect("pushed before the first frame").1.push(frame);
    }
    chunks
}

/// Hands jobs to the ledger in order, several at a time, and answers each on `done` once it is stored. Ends when `jobs`
/// is closed.
pub async fn import(ledger: Ledger, mut jobs: mpsc::Receiver<Job<Vec<VerifiedBlock>>>, done: impl AsyncFn(JobDone)) {
    let mut waiting: VecDeque<_> = VecDeque::new();
    loop {
        tokio::select! {
            job = jobs.recv(), if waiting.len() < JOBS_MAX => {
                let Some(job) = job else { break };
                let ledger = ledger.clone();
                let mut import = Box::pin(async move { store(&ledger, job).await });
                // The first poll puts it into the ledger's queue, so the order of jobs is the order of the chain.
                match poll_fn(|context| Poll::Ready(import.as_mut().poll(context))).await {
                    Poll::Ready(outcome) => done(outcome).await,
                    Poll::Pending => waiting.push_back(import),
                }
            }
            outcome = async { waiting.front_mut().expect("checked below").await }, if !waiting.is_empty() => {
                waiting.pop_front();
                done(outcome).await;
            }
        }
    }
    for import in waiting {
        done(import.await).await;
    }
}

/// Puts the blocks of one job on the chain, and answers once they are stored.
pub async fn store(ledger: &Ledger, job: Job<Vec<VerifiedBlock>>) -> JobDone {
    let Job { parts, blocks, rooms } = job;
    let answers = ledger.import(blocks).await;
    drop(rooms);
    outcome(parts, answers)
}

fn outcome(parts: Vec<(PeerId, HeightRange)>, answers: Vec<Result<Imported, ImportError>>) -> JobDone {
    let expected: u64 = parts.iter().map(|(_, range)| range.count()).sum();
    let imported = answers.iter().take_while(|answer| answer.is_ok()).count();
    let error = answers.into_iter().nth(imported).and_then(Result::err);
    let imported = imported as u64;
    // Fewer answers than blocks: the commit was given up after the last one.
    let lost = || (imported < expected).then(|| ImportError::Storage("the commit was given up".into()));
    JobDone { parts, imported, error: error.or_else(lost) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;

    fn body(blocks: &[Block]) -> Vec<u8> {
        let mut body = Vec::new();
        for block in blocks {
            let mut bytes = Vec::new();
            block.encode(&mut bytes);
            body.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_be_bytes());
            body.extend_from_slice(&bytes);
        }
        body
    }

    #[test]
    fn a_range_in_several_chunks_is_verified_in_order() {
        let mut sample = Sample::new(1, 4);
        let blocks = sample.blocks(60, 20);
        let body = body(&blocks);
        assert!(body.len() > 2 * CHUNK_BYTES, "{}", body.len());
        let verified = verify_range(1, &body, sample.genesis()).unwrap();
        assert_eq!(verified.into_iter().map(VerifiedBlock::into_block).collect::<Vec<_>>(), blocks);
        assert_eq!(verify_range(1, &[], sample.genesis()).unwrap().len(), 0);
    }

    #[test]
    fn each_fault_is_named_with_its_height() {
        let mut sample = Sample::new(1, 4);
        let blocks = sample.blocks(5, 2);
        let fault = |change: &dyn Fn(&mut Vec<Block>)| {
            let mut changed = blocks.clone();
            change(&mut changed);
            verify_range(1, &body(&changed), sample.genesis()).unwrap_err()
        };
        assert_eq!(fault(&|blocks| blocks.swap(1, 2)), RangeFault::Height { expected: 2, got: 3 });
        let error = BlockError::Signature;
        assert_eq!(fault(&|blocks| blocks[3].signature.0[0] ^= 1), RangeFault::Invalid { height: 4, error });
        assert!(matches!(
            fault(&|blocks| blocks[4].transactions[1].signature.0[9] ^= 1),
            RangeFault::Invalid { height: 5, error: BlockError::TxRoot { .. } }
        ));
        let rival = Sample::new(1, 4).block_with(Vec::new());
        assert_eq!(fault(&|blocks| blocks[0] = rival.clone()), RangeFault::Link(2));
        let mut cut = body(&blocks[..1]);
        cut[3] -= 1;
        cut.pop();
        assert!(matches!(verify_range(1, &cut, sample.genesis()), Err(RangeFault::Decode { height: 1, .. })));
    }
}
