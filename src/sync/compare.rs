//! Where a source's chain leaves ours. A claim is not enough: another block counts when it is shown, and valid.

use std::sync::Arc;

use super::budget::Budget;
use super::source::{Source, SourceError, frames};
use super::{Diverged, HeightRange};
use crate::chain::{Block, Hash, Height, verify};
use crate::ledger::Ledger;

/// How a source's chain compares with ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The same blocks, as far as both have them.
    Same,
    /// Another valid block from some height on.
    Diverged(Diverged),
    /// What it shows is not a valid block; here is why.
    Invalid(String),
}

/// Compares our chain with that of `source`, whose head is at `height`. Finds the lowest differing height with a request
/// for each halving. `known` is where they differed last time: looked at first.
pub async fn compare(
    source: &Arc<dyn Source>,
    ledger: &Ledger,
    budget: &Budget,
    height: Height,
    known: Option<&Diverged>,
) -> Result<Comparison, SourceError> {
    let look = Look { source, ledger, budget };
    if let Some(known) = known
        && let Shown::Other { ours, theirs, parent } = look.at(known.height).await?
        && theirs == known.theirs
        // We may have gone over to a third branch, which leaves theirs further down.
        && look.ours(known.height.saturating_sub(1)).await? == Some(parent)
    {
        return Ok(Comparison::Diverged(Diverged { ours, ..known.clone() }));
    }
    // Block 0 is the same: it was compared when the source said who it is.
    let (mut same, mut other) = (0, height.min(ledger.head().height));
    if other == 0 {
        return Ok(Comparison::Same);
    }
    let (mut ours, mut theirs) = match look.at(other).await? {
        Shown::Same => return Ok(Comparison::Same),
        Shown::Invalid(reason) => return Ok(Comparison::Invalid(reason)),
        Shown::Other { ours, theirs, .. } => (ours, theirs),
    };
    while other - same > 1 {
        let middle = same + (other - same) / 2;
        match look.at(middle).await? {
            Shown::Same => same = middle,
            Shown::Invalid(reason) => return Ok(Comparison::Invalid(reason)),
            Shown::Other { ours: our, theirs: their, .. } => (other, ours, theirs) = (middle, our, their),
        }
    }
    Ok(Comparison::Diverged(Diverged { height: other, ours, theirs, peer: source.name().to_owned() }))
}

struct Look<'a> {
    source: &'a Arc<dyn Source>,
    ledger: &'a Ledger,
    budget: &'a Budget,
}

/// The source's block at a height, against ours.
enum Shown {
    Same,
    Other { ours: Hash, theirs: Hash, parent: Hash },
    Invalid(String),
}

impl Look<'_> {
    async fn ours(&self, height: Height) -> Result<Option<Hash>, SourceError> {
        let ours = self.ledger.storage().read_brief(move |reader| reader.hash_at(height)).await;
        ours.map_err(|error| SourceError::Malformed(format!("our own block {height}: {error}")))
    }

    async fn at(&self, height: Height) -> Result<Shown, SourceError> {
        let Some(ours) = self.ours(height).await? else {
            return Ok(Shown::Invalid(format!("block {height} is not here to compare with")));
        };
        let room = self.budget.reserve_beyond(0);
        let answer = self.source.range(HeightRange { first: height, last: height }, room).await?;
        let Some(frame) = frames(&answer.body).next() else {
            return Ok(Shown::Invalid(format!("it reports a head above block {height} and does not have that")));
        };
        let block = match Block::decode(frame) {
            Ok(block) if block.header.height == height => block,
            Ok(block) => return Ok(Shown::Invalid(format!("asked for block {height}, got {}", block.header.height))),
            Err(error) => return Ok(Shown::Invalid(format!("its block {height} cannot be read: {error}"))),
        };
        let (theirs, parent) = (block.hash(), block.header.parent_hash);
        if theirs == ours {
            return Ok(Shown::Same);
        }
        let genesis = Arc::clone(self.ledger.genesis());
        match tokio::task::spawn_blocking(move || verify::verify(block, &genesis)).await {
            Ok(Ok(_)) => Ok(Shown::Other { ours, theirs, parent }),
            Ok(Err(error)) => Ok(Shown::Invalid(format!("its block {height} is not valid: {error}"))),
            Err(error) => Ok(Shown::Invalid(format!("its block {height} could not be verified: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::chain::VerifiedBlock;
    use crate::ledger::{LedgerOptions, Reach};
    use crate::mempool::Pending;
    use crate::sample::Sample;
    use crate::sync::budget::Reservation;
    use crate::sync::source::{RangeAnswer, SourceHead, SourceInfo};

    /// A source that has these blocks, from block 1 on.
    struct Shelf(Vec<Block>);

    impl Source for Shelf {
        fn name(&self) -> &str {
            "shelf"
        }

        fn info(&self) -> BoxFuture<'_, Result<SourceInfo, SourceError>> {
            unreachable!("a comparison asks for blocks")
        }

        fn head(&self) -> BoxFuture<'_, Result<SourceHead, SourceError>> {
            unreachable!("a comparison asks for blocks")
        }

        fn range(&self, range: HeightRange, room: Reservation) -> BoxFuture<'_, Result<RangeAnswer, SourceError>> {
            async move {
                let (mut body, mut bytes) = (Vec::new(), Vec::new());
                let block = self.0.get(usize::try_from(range.first).unwrap() - 1);
                if let Some(block) = block {
                    block.encode(&mut bytes);
                    body.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_be_bytes());
                    body.extend_from_slice(&bytes);
                }
                let blocks = u64::from(block.is_some());
                Ok(RangeAnswer { body, blocks, room, head: None, first_byte: Duration::ZERO })
            }
            .boxed()
        }

        fn submit<'a>(&'a self, _: &'a str, _: &'a Pending) -> BoxFuture<'a, Result<(), SourceError>> {
            unreachable!("a comparison asks for blocks")
        }
    }

    /// A chain of so many blocks, then of so many that come faster.
    fn chain(slow: usize, fast: usize) -> Vec<Block> {
        let mut sample = Sample::new(1, 1);
        let mut blocks = sample.blocks(slow, 0);
        blocks.extend(sample.step_us(1_000_000).blocks(fast, 0));
        blocks
    }

    fn verified(blocks: &[Block]) -> Vec<VerifiedBlock> {
        let genesis = crate::sample::genesis(1, 1);
        verify::verify_all(blocks.to_vec(), &genesis).into_iter().map(Result::unwrap).collect()
    }

    /// What was known of a peer is where it left the branch that we had. The one that we have now it may have left
    /// further down; going by what was known, its branch, though the best, could never be taken.
    #[tokio::test]
    async fn where_a_peer_leaves_our_chain_is_found_anew_after_we_went_over_to_a_third_branch() {
        let dir = tempfile::tempdir().unwrap();
        let options = LedgerOptions::new(dir.path().join("chain.db"), crate::sample::genesis(1, 1));
        let (ledger, budget) = (Ledger::open(options, Vec::new()).unwrap(), Budget::new(1 << 20));
        let (first, third, theirs) = (chain(8, 0), chain(2, 7), chain(5, 6));
        let peer: Arc<dyn Source> = Arc::new(Shelf(theirs.clone()));
        let diverged = |ours: &[Block], height: usize| Diverged {
            height: height as Height,
            ours: ours[height - 1].hash(),
            theirs: theirs[height - 1].hash(),
            peer: "shelf".into(),
        };
        ledger.import(verified(&first)).await;
        let known = diverged(&first, 6);
        for hint in [None, Some(&known)] {
            let compared = compare(&peer, &ledger, &budget, 11, hint).await;
            assert_eq!(compared, Ok(Comparison::Diverged(known.clone())), "{hint:?}");
        }
        ledger.switch_branch(verified(&third), Reach::Limited).await.unwrap();
        for hint in [None, Some(&known)] {
            let compared = compare(&peer, &ledger, &budget, 11, hint).await;
            assert_eq!(compared, Ok(Comparison::Diverged(diverged(&third, 3))), "{hint:?}");
        }
        ledger.stop();
    }
}
