//! What a source is: a node that blocks are read from, and that pending transactions are handed to. Nothing else goes
//! its way, so the direction of sync cannot be configured wrongly. [`super::http`] is the one kind there is.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::HeightRange;
use super::budget::Reservation;
use crate::chain::{Hash, Height};
use crate::mempool::Pending;
use crate::snapshot::source::{ChunkSource, Offer};

/// A node that blocks are read from.
pub trait Source: Send + Sync {
    /// What people know it by: its address, without credentials.
    fn name(&self) -> &str;

    /// Who it is. Asked before anything else, and again after it was away.
    fn info(&self) -> BoxFuture<'_, Result<SourceInfo, SourceError>>;

    /// Its head, and the snapshot that it offers.
    fn head(&self) -> BoxFuture<'_, Result<SourceHead, SourceError>>;

    /// Blocks from `range.first` on, at most to `range.last`. Reads as long as `room` can grow, then ends after the last
    /// block that is whole. Where none is, [`Reservation::may_exceed`] says whether the first one is read all the same.
    fn range(&self, range: HeightRange, room: Reservation) -> BoxFuture<'_, Result<RangeAnswer, SourceError>>;

    /// Hands a transaction on that waits here.
    fn submit<'a>(&'a self, chain_id: &'a str, pending: &'a Pending) -> BoxFuture<'a, Result<(), SourceError>>;

    /// Where its snapshots are downloaded from; none where they cannot be.
    fn chunks(&self) -> Option<Arc<dyn ChunkSource>> {
        None
    }
}

/// What a look at a source shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceHead {
    /// Its head; none where it has no block yet.
    pub head: Option<(Height, Hash)>,
    /// The newest snapshot that it serves.
    pub snapshot: Option<Offer>,
}

/// Who a source is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct SourceInfo {
    /// Its chain.
    pub chain_id: String,
    /// The hash of its block 0.
    pub genesis_hash: Hash,
    /// Drawn at random when the process started: how a node knows itself.
    #[serde(default)]
    pub node_id: String,
}

/// What a source sent for a range. Only its frames have been looked at.
#[derive(Debug)]
pub struct RangeAnswer {
    /// Whole frames: a length, 4 bytes big-endian, and as many bytes of one block.
    pub body: Vec<u8>,
    /// How many.
    pub blocks: u64,
    /// Holds as many bytes of the budget as the body has.
    pub room: Reservation,
    /// The head that it reported along with it.
    pub head: Option<(Height, Hash)>,
    /// From the request to the first byte of the answer.
    pub first_byte: Duration,
}

/// Why a source did not answer as it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// No connection.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// Nothing came for too long.
    #[error("no byte for {ms} ms")]
    Timeout {
        /// How long it was waited for.
        ms: u64,
    },
    /// Too little came for too long.
    #[error("only {rate} bytes a second, at least {min} are needed")]
    Slow {
        /// How fast it was.
        rate: u64,
        /// How fast it has to be.
        min: u64,
    },
    /// It wants to be left alone.
    #[error("asks to be left alone for {retry_after_ms} ms")]
    Limited {
        /// For how long.
        retry_after_ms: u64,
    },
    /// It refused.
    #[error("answers {status}: {detail}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// What it said, cut to 200 characters.
        detail: String,
    },
    /// The answer ended early.
    #[error("the answer ends after {got} bytes, inside a block")]
    Truncated {
        /// How much came.
        got: usize,
    },
    /// What came before a block was whole is more than there is room for. Nobody's fault.
    #[error("no room for a first block of more than {got} bytes")]
    NoRoom {
        /// How much came.
        got: usize,
    },
    /// The answer is not what it should be.
    #[error("{0}")]
    Malformed(String),
}

impl SourceError {
    /// What it costs a peer's score.
    pub fn points(&self) -> u32 {
        match self {
            Self::Limited { .. } | Self::NoRoom { .. } => 0,
            Self::Unreachable(_) | Self::Status { .. } => 10,
            Self::Timeout { .. } | Self::Slow { .. } => 15,
            Self::Truncated { .. } => 20,
            Self::Malformed(_) => 40,
        }
    }

    /// How long the peer wants to be left alone, where it said so, in milliseconds.
    pub fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::Limited { retry_after_ms } => Some(*retry_after_ms),
            _ => None,
        }
    }
}

/// Bytes of one encoded block at most: what a genesis may allow, and room for its header.
pub const FRAME_BYTES_MAX: usize = (8 << 20) + (64 << 10);

/// Watches frames go by while they arrive, so that a wrong answer ends early and a cut is known to be between blocks.
#[derive(Debug)]
pub struct FrameScan {
    count: u64,
    count_max: u64,
    whole: usize,
}

impl FrameScan {
    /// For an answer of at most `count_max` blocks.
    pub fn new(count_max: u64) -> Self {
        Self { count: 0, count_max, whole: 0 }
    }

    /// Looks at all that has come so far. Errors: more blocks than were asked for, or one too large.
    pub fn advance(&mut self, body: &[u8]) -> Result<(), SourceError> {
        while let Some(header) = body.get(self.whole..self.whole + 4) {
            let len = u32::from_be_bytes(header.try_into().expect("four bytes")) as usize;
            if len > FRAME_BYTES_MAX {
                return Err(SourceError::Malformed(format!("a block of {len} bytes, at most {FRAME_BYTES_MAX}")));
            }
            if self.count == self.count_max {
                return Err(SourceError::Malformed(format!("more than the {} blocks asked for", self.count_max)));
            }
            if body.len() < self.whole + 4 + len {
                break;
            }
            self.whole += 4 + len;
            self.count += 1;
        }
        // A block may still be on its way, but not a byte after the last one asked for.
        if self.count == self.count_max && body.len() > self.whole {
            return Err(SourceError::Malformed(format!("more than the {} blocks asked for", self.count_max)));
        }
        Ok(())
    }

    /// Blocks that are whole.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Bytes of the blocks that are whole.
    pub fn whole(&self) -> usize {
        self.whole
    }
}

/// The blocks' bytes in a body of whole frames; ends early where one is not whole.
pub fn frames(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = body;
    std::iter::from_fn(move || {
        let (header, after) = rest.split_first_chunk::<4>()?;
        let (frame, after) = after.split_at_checked(u32::from_be_bytes(*header) as usize)?;
        rest = after;
        Some(frame)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(frames: &[Vec<u8>]) -> Vec<u8> {
        frames.iter().flat_map(|frame| [&(frame.len() as u32).to_be_bytes(), frame.as_slice()].concat()).collect()
    }

    proptest! {
        #[test]
        fn a_scan_in_pieces_ends_where_the_frames_end(
            blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..8), step in 1_usize..9,
        ) {
            let whole = body(&blocks);
            let mut scan = FrameScan::new(blocks.len() as u64);
            for end in (0..whole.len()).step_by(step).chain([whole.len()]) {
                scan.advance(&whole[..end]).unwrap();
                prop_assert!(scan.whole() <= end);
            }
            prop_assert_eq!(scan.whole(), whole.len());
            prop_assert_eq!(frames(&whole).map(<[u8]>::to_vec).collect::<Vec<_>>(), blocks);
        }

        #[test]
        fn any_bytes_are_scanned_and_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut scan = FrameScan::new(3);
            let fine = scan.advance(&bytes).is_ok();
            prop_assert!(scan.whole() <= bytes.len());
            if fine {
                prop_assert_eq!(frames(&bytes[..scan.whole()]).map(|frame| frame.len() + 4).sum::<usize>(), scan.whole());
            }
        }
    }

    #[test]
    fn too_many_and_too_large_blocks_are_noticed_at_their_first_bytes() {
        let three = body(&[vec![1], vec![2], vec![3]]);
        assert!(FrameScan::new(3).advance(&three).is_ok());
        assert!(FrameScan::new(2).advance(&three).is_err());
        assert!(FrameScan::new(0).advance(&[0]).is_err());
        assert!(FrameScan::new(1).advance(&(FRAME_BYTES_MAX as u32).to_be_bytes()).is_ok());
        assert!(FrameScan::new(1).advance(&(FRAME_BYTES_MAX as u32 + 1).to_be_bytes()).is_err());
    }
}
