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
        && let Shown::Other { theirs, .. } = look.at(known.height).await?
        && theirs == known.theirs
    {
        return Ok(Comparison::Diverged(known.clone()));
    }
    // Block 0 is the same: it was compared when the source said who it is.
    let (mut same, mut other) = (0, height.min(ledger.head().height));
    if other == 0 {
        return Ok(Comparison::Same);
    }
    let (mut ours, mut theirs) = match look.at(other).await? {
        Shown::Same => return Ok(Comparison::Same),
        Shown::Invalid(reason) => return Ok(Comparison::Invalid(reason)),
        Shown::Other { ours, theirs } => (ours, theirs),
    };
    while other - same > 1 {
        let middle = same + (other - same) / 2;
        match look.at(middle).await? {
            Shown::Same => same = middle,
            Shown::Invalid(reason) => return Ok(Comparison::Invalid(reason)),
            Shown::Other { ours: our, theirs: their } => (other, ours, theirs) = (middle, our, their),
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
    Other { ours: Hash, theirs: Hash },
    Invalid(String),
}

impl Look<'_> {
    async fn at(&self, height: Height) -> Result<Shown, SourceError> {
        let ours = self.ledger.storage().read_brief(move |reader| reader.hash_at(height)).await;
        let ours = ours.map_err(|error| SourceError::Malformed(format!("our own block {height}: {error}")))?;
        let Some(ours) = ours else {
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
        let theirs = block.hash();
        if theirs == ours {
            return Ok(Shown::Same);
        }
        let genesis = Arc::clone(self.ledger.genesis());
        match tokio::task::spawn_blocking(move || verify::verify(block, &genesis)).await {
            Ok(Ok(_)) => Ok(Shown::Other { ours, theirs }),
            Ok(Err(error)) => Ok(Shown::Invalid(format!("its block {height} is not valid: {error}"))),
            Err(error) => Ok(Shown::Invalid(format!("its block {height} could not be verified: {error}"))),
        }
    }
}
