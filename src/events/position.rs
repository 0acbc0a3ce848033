//! Where a listener stands: what its next visit can be told from, in this process or the next one.

use std::fmt;
use std::str::FromStr;

use crate::chain::{Hash, Height};

/// A block, as far as a position needs it: its height and the first bytes of its hash, which tell it from a rival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Mark {
    /// The block's height.
    pub height: Height,
    /// The first four bytes of its hash.
    pub prefix: [u8; 4],
}

/// A place in the stream: how many events were told, and which block was the last one then. Written
/// `number.height.prefix`, with the prefix in hex.
///
/// Numbers count events from the microsecond at which the process started, so those of a later process are larger as
/// long as nobody sets the clock back. They only mean something to the process that gave them; the block means the same
/// to every node of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The last event that was told.
    pub number: u64,
    /// The last block that was told.
    pub mark: Mark,
}

impl Mark {
    /// The block at `height` with this hash.
    pub fn new(height: Height, hash: &Hash) -> Self {
        Self { height, prefix: *hash.0.first_chunk().expect("a hash has 32 bytes") }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, mark: Mark { height, prefix } } = self;
        write!(f, "{number}.{height}.{}", const_hex::encode(prefix))
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let read = || {
            let (number, rest) = text.split_once('.')?;
            let (height, prefix) = rest.split_once('.')?;
            let mut bytes = [0; 4];
            // The length, too: what reads hex takes a prefix of its own.
            (prefix.len() == 8).then_some(())?;
            const_hex::decode_to_slice(prefix, &mut bytes).ok()?;
            Some(Self { number: digits(number)?, mark: Mark { height: digits(height)?, prefix: bytes } })
        };
        read().ok_or_else(|| {
            let got: String = text.chars().take(60).collect();
            format!("expected the id of an event, `number.height.hash`, as the stream gave it, got `{got}`")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_position_is_refused() {
        for bad in
            ["", "1", "1.2", "1.2.3", "1.2.0x00000000", "+1.2.00000000", "1.-2.00000000", "1.2.00000000.", "x.y.z"]
        {
            assert!(bad.parse::<Position>().unwrap_err().contains("id of an event"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_position_reads_back_what_it_writes(number: u64, height: u64, prefix: [u8; 4]) {
            let position = Position { number, mark: Mark { height, prefix } };
            prop_assert_eq!(position.to_string().parse(), Ok(position));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = text.parse::<Position>();
        }
    }
}
