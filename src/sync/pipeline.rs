//! From bytes to blocks of the chain: decoding and verification off the ordered path and on every core, then the buffer
//! that brings ranges into order, then imports, several of them queued so that the ledger never waits for us.
//!
//! A range holds its [`Reservation`] all the way, so what is in here is bounded in bytes.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use rayon::prelude::*;
use tokio::sync::mpsc;

use super::budget::Reservation;
use super::source::frames;
use super::{HeightRange, PeerId};
use crate::chain::{Block, BlockError, DecodeError, Genesis, Height, VerifiedBlock, verify};
use crate::ledger::{ImportError, Imported, Ledger};

/// Encoded bytes that one core takes on at a time: about a batch of signatures.
const CHUNK_BYTES: usize = 64 << 10;

/// Blocks and transactions in one import at most. Less than the ledger puts into one commit, so that it has the next
/// import at hand while the last one is stored.
const JOB_BLOCKS_MAX: usize = 4_000;
const JOB_TRANSACTIONS_MAX: usize = 5_000;

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

/// A range that is verified and waits for its turn.
pub struct Segment {
    /// Who sent it.
    pub peer: PeerId,
    /// Its blocks, ascending without gaps, at least one.
    pub blocks: Vec<VerifiedBlock>,
    /// What it takes of the budget; shared where it was taken in in parts.
    pub room: Arc<Reservation>,
}

impl Segment {
    /// Its heights.
    pub fn range(&self) -> HeightRange {
        let (first, last) = (self.blocks.first(), self.blocks.last());
        HeightRange {
            first: first.expect("a segment has a block").height(),
            last: last.expect("a segment has a block").height(),
        }
    }
}

/// Brings verified ranges into order.
pub struct Order {
    next: Height,
    segments: BTreeMap<Height, Segment>,
}

/// Blocks that follow each other, for one import.
pub struct Job {
    /// Who sent which of them, ascending.
    pub parts: Vec<(PeerId, HeightRange)>,
    blocks: Vec<VerifiedBlock>,
    rooms: Vec<Arc<Reservation>>,
}

impl Job {
    /// All its heights.
    pub fn range(&self) -> HeightRange {
        let (first, last) = (self.parts.first(), self.parts.last());
        HeightRange { first: first.expect("a job has a part").1.first, last: last.expect("a job has a part").1.last }
    }
}

impl Order {
    /// Waits for block `next`.
    pub fn new(next: Height) -> Self {
        Self { next, segments: BTreeMap::new() }
    }

    /// The lowest height that it has not given out.
    pub fn next(&self) -> Height {
        self.next
    }

    /// Goes on from `next`: blocks below are on the chain by other ways, or have to come again.
    pub fn restart(&mut self, next: Height) {
        self.next = next;
        let below: Vec<_> = self.segments.range(..next).map(|(&first, _)| first).collect();
        for first in below {
            if let Some(segment) = self.segments.remove(&first) {
                self.insert(segment);
            }
        }
    }

    /// Takes in a segment; what of it is here already, or no longer needed, is left out.
    pub fn insert(&mut self, segment: Segment) {
        let HeightRange { first, last } = segment.range();
        let Segment { peer, mut blocks, room } = segment;
        // From the highest missing part down, so that each can be split off the end.
        for gap in super::gaps(first.max(self.next), last, self.ranges().collect()).into_iter().rev() {
            let index = |height: Height| usize::try_from(height - first).expect("as many as there are blocks");
            blocks.truncate(index(gap.last) + 1);
            let part = blocks.split_off(index(gap.first));
            self.segments.insert(gap.first, Segment { peer, blocks: part, room: Arc::clone(&room) });
        }
    }

    /// The ranges that wait, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = HeightRange> + '_ {
        self.segments.values().map(Segment::range)
    }

    /// Whether the next block is here.
    pub fn is_ready(&self) -> bool {
        self.segments.contains_key(&self.next)
    }

    /// The next blocks, as many as make a good import; none where the next one is not here.
    pub fn take(&mut self) -> Option<Job> {
        let mut job = Job { parts: Vec::new(), blocks: Vec::new(), rooms: Vec::new() };
        let mut transactions = 0;
        while job.blocks.len() < JOB_BLOCKS_MAX && transactions < JOB_TRANSACTIONS_MAX {
            let Some(mut segment) = self.segments.remove(&self.next) else { break };
            let mut count = 0;
            for block in &segment.blocks {
                if job.blocks.len() + count >= JOB_BLOCKS_MAX || transactions >= JOB_TRANSACTIONS_MAX {
                    break;
                }
                count += 1;
                transactions += block.block().transactions.len();
            }
            let rest = segment.blocks.split_off(count);
            let range = segment.range();
            self.next = range.last + 1;
            if !rest.is_empty() {
                let room = Arc::clone(&segment.room);
                self.segments.insert(self.next, Segment { peer: segment.peer, blocks: rest, room });
            }
            job.parts.push((segment.peer, range));
            job.rooms.push(segment.room);
            if job.blocks.is_empty() {
                job.blocks = segment.blocks;
            } else {
                job.blocks.extend(segment.blocks);
            }
        }
        (!job.parts.is_empty()).then_some(job)
    }
}

/// What became of a [`Job`].
pub struct JobDone {
    /// Who sent which of its blocks.
    pub parts: Vec<(PeerId, HeightRange)>,
    /// How many of its blocks, from the first on, are on the chain.
    pub imported: u64,
    /// Why the next one is not.
    pub error: Option<ImportError>,
}

/// Hands jobs to the ledger in order, several at a time, and answers each on `done` once it is stored. Ends when `jobs`
/// is closed.
pub async fn import(ledger: Ledger, mut jobs: mpsc::Receiver<Job>, done: impl AsyncFn(JobDone)) {
    let mut waiting: VecDeque<_> = VecDeque::new();
    loop {
        tokio::select! {
            job = jobs.recv(), if waiting.len() < JOBS_MAX => {
                let Some(job) = job else { break };
                let ledger = ledger.clone();
                let mut import = Box::pin(async move {
                    let Job { parts, blocks, rooms } = job;
                    let answers = ledger.import(blocks).await;
                    drop(rooms);
                    outcome(parts, answers)
                });
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
    use super::super::budget::Budget;
    use super::*;
    use crate::sample::Sample;
    use proptest::prelude::*;

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

    fn segments(sample: &mut Sample, count: usize) -> Vec<VerifiedBlock> {
        verify::verify_all(sample.blocks(count, 0), &Arc::clone(sample.genesis()))
            .into_iter()
            .map(Result::unwrap)
            .collect()
    }

    #[test]
    fn a_large_range_goes_out_in_imports_of_the_right_size_and_keeps_its_bytes_until_the_last() {
        let mut sample = Sample::new(4, 20);
        let blocks = sample.blocks(30, 400);
        let genesis = Arc::clone(sample.genesis());
        let blocks = verify::verify_all(blocks, &genesis).into_iter().map(Result::unwrap).collect();
        let (budget, mut order) = (Budget::new(10), Order::new(1));
        order.insert(Segment { peer: 0, blocks, room: Arc::new(budget.reserve(10).unwrap()) });
        let mut heights = Vec::new();
        while let Some(job) = order.take() {
            let transactions: usize = job.blocks.iter().map(|block| block.block().transactions.len()).sum();
            assert!(transactions <= JOB_TRANSACTIONS_MAX + 400, "{transactions}");
            assert_eq!(budget.used(), 10);
            heights.extend(job.blocks.iter().map(VerifiedBlock::height));
        }
        assert_eq!(heights, (1..=30).collect::<Vec<_>>());
        assert_eq!(budget.used(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn whatever_order_ranges_come_in_blocks_go_out_once_and_ascending(
            wishes in prop::collection::vec((0..40_usize, 1..15_usize), 1..25),
            restart in 0..20_u64,
        ) {
            let blocks = segments(&mut Sample::new(3, 0), 60);
            let budget = Budget::new(u64::MAX);
            let (mut order, mut out) = (Order::new(1), Vec::new());
            let mut come = [false; 61];
            for (at, (first, count)) in wishes.into_iter().enumerate() {
                let part = blocks[first..first + count].to_vec();
                come[first + 1..=first + count].fill(true);
                order.insert(Segment { peer: at as PeerId, blocks: part, room: budget.reserve(1).unwrap().into() });
                let ranges: Vec<_> = order.ranges().collect();
                prop_assert!(ranges.windows(2).all(|pair| pair[0].last < pair[1].first));
                if at == 5 && order.next() < restart {
                    order.restart(restart);
                    come[..restart as usize].fill(true);
                    out.clear();
                }
                while let Some(job) = order.take() {
                    prop_assert_eq!(job.range().count() as usize, job.blocks.len());
                    out.extend(job.blocks.iter().map(VerifiedBlock::height));
                }
                prop_assert!(!order.is_ready());
            }
            prop_assert!(out.windows(2).all(|pair| pair[0] + 1 == pair[1]));
            let whole = (1..61).take_while(|&height| come[height]).count() as u64;
            prop_assert_eq!(order.next(), whole + 1);
            drop(order);
            prop_assert_eq!(budget.used(), 0);
        }
    }
}
