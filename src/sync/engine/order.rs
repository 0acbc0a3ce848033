//! Brings verified ranges into order and makes imports of them. A range holds its [`Reservation`] all the way, so what is
//! in here is bounded in bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Blocks;
use crate::chain::Height;
use crate::ledger::ImportError;
use crate::sync::budget::Reservation;
use crate::sync::{HeightRange, PeerId, gaps};

/// Blocks and transactions in one import at most. Less than the ledger puts into one commit, so that it has the next
/// import at hand while the last one is stored.
const JOB_BLOCKS_MAX: usize = 4_000;
const JOB_TRANSACTIONS_MAX: usize = 5_000;

/// A range that is verified and waits for its turn.
pub struct Segment<B> {
    /// Who sent it.
    pub peer: PeerId,
    /// Its blocks, at least one.
    pub blocks: B,
    /// What it takes of the budget; shared where it was taken in in parts.
    pub room: Arc<Reservation>,
}

/// Blocks that follow each other, for one import.
pub struct Job<B> {
    /// Who sent which of them, ascending; at least one part.
    pub parts: Vec<(PeerId, HeightRange)>,
    /// The blocks.
    pub blocks: B,
    /// What they take of the budget, until they are stored.
    pub rooms: Vec<Arc<Reservation>>,
}

/// What became of a [`Job`].
#[derive(Clone, Debug)]
pub struct JobDone {
    /// Who sent which of its blocks.
    pub parts: Vec<(PeerId, HeightRange)>,
    /// How many of its blocks, from the first on, are on the chain.
    pub imported: u64,
    /// Why the next one is not.
    pub error: Option<ImportError>,
}

/// The ranges that wait, and the height that comes next.
pub struct Order<B> {
    next: Height,
    segments: BTreeMap<Height, Segment<B>>,
}

impl<B: Blocks> Segment<B> {
    /// Its heights.
    pub fn range(&self) -> HeightRange {
        range_of(&self.blocks)
    }
}

fn range_of<B: Blocks>(blocks: &B) -> HeightRange {
    HeightRange { first: blocks.first(), last: blocks.first() + (blocks.count() as u64 - 1) }
}

impl<B> Job<B> {
    /// All its heights.
    pub fn range(&self) -> HeightRange {
        let (first, last) = (self.parts.first(), self.parts.last());
        HeightRange { first: first.expect("a job has a part").1.first, last: last.expect("a job has a part").1.last }
    }
}

impl<B: Blocks> Order<B> {
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

    /// Goes on from `next`, with nothing here.
    pub fn clear(&mut self, next: Height) {
        (self.next, self.segments) = (next, BTreeMap::new());
    }

    /// Lets go of what waits and came from `peer`.
    pub fn drop_of(&mut self, peer: PeerId) {
        self.segments.retain(|_, segment| segment.peer != peer);
    }

    /// Takes in a segment; what of it is here already, or no longer needed, is left out.
    pub fn insert(&mut self, segment: Segment<B>) {
        let HeightRange { first, last } = segment.range();
        let Segment { peer, blocks, room } = segment;
        let mut rest = Some(blocks);
        // From the highest missing part down, so that each can be cut off the end.
        for gap in gaps(first.max(self.next), last, self.ranges().collect()).into_iter().rev() {
            let Some(blocks) = &mut rest else { break };
            let index = |height: Height| usize::try_from(height - first).expect("as many as there are blocks");
            if index(gap.last) + 1 < blocks.count() {
                drop(blocks.split_off(index(gap.last) + 1));
            }
            let part = if gap.first == first { rest.take() } else { Some(blocks.split_off(index(gap.first))) };
            if let Some(blocks) = part {
                self.segments.insert(gap.first, Segment { peer, blocks, room: Arc::clone(&room) });
            }
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
    pub fn take(&mut self) -> Option<Job<B>> {
        let mut job: Option<Job<B>> = None;
        let (mut count, mut transactions) = (0, 0);
        while count < JOB_BLOCKS_MAX && transactions < JOB_TRANSACTIONS_MAX {
            let Some(Segment { peer, mut blocks, room }) = self.segments.remove(&self.next) else { break };
            let mut taken = 0;
            while taken < blocks.count() && count < JOB_BLOCKS_MAX && transactions < JOB_TRANSACTIONS_MAX {
                transactions += blocks.transactions(taken);
                taken += 1;
                count += 1;
            }
            let rest = (taken < blocks.count()).then(|| blocks.split_off(taken));
            let range = range_of(&blocks);
            self.next = range.last + 1;
            if let Some(rest) = rest {
                self.segments.insert(self.next, Segment { peer, blocks: rest, room: Arc::clone(&room) });
            }
            match &mut job {
                None => job = Some(Job { parts: vec![(peer, range)], blocks, rooms: vec![room] }),
                Some(job) => {
                    job.parts.push((peer, range));
                    job.blocks.append(blocks);
                    job.rooms.push(room);
                }
            }
        }
        job
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::budget::Budget;
    use super::*;
    use crate::chain::{VerifiedBlock, verify};
    use crate::sample::Sample;
    use proptest::prelude::*;

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
        let blocks: Vec<_> = verify::verify_all(blocks, &genesis).into_iter().map(Result::unwrap).collect();
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
