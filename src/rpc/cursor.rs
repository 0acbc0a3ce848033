//! Where a list was left, as a client keeps it: `height.position.block`, with the first 8 bytes of the block's hash. So a
//! list goes on where it was only while that block is on the chain; after a reorg the client is told from where to go on.
//! Without the block (`height.position`) nothing is checked.

use std::fmt;
use std::str::FromStr;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::request::shown;
use crate::chain::{Hash, Height};
use crate::storage::{Cursor, Reader, StorageError, UNDO_DEPTH};

/// A cursor on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCursor {
    /// The place.
    pub at: Cursor,
    /// The [`Hash::prefix`] of its block.
    block: Option<i64>,
}

/// The cursor's block is not on the chain: 409.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Moved {
    detail: String,
    code: &'static str,
    /// The highest block that the cursor's chain and ours share.
    fork_height: Height,
    /// The cursor behind that block.
    next: String,
}

impl PageCursor {
    /// `at`, with the hash of its block; none where there is no such block yet.
    pub(super) fn new(at: Cursor, block: Option<Hash>) -> Self {
        Self { at, block: block.map(|hash| hash.prefix()) }
    }

    /// Whether a list can go on here, on what `reader` sees. What is above the head is not here yet, and no fork.
    pub(super) fn check(&self, reader: &Reader<'_>) -> Result<Option<Moved>, StorageError> {
        let (Some(prefix), height) = (self.block, self.at.height) else { return Ok(None) };
        let head = reader.head()?.map_or(0, |head| head.height);
        if height > head || reader.has_block(height, prefix)? {
            return Ok(None);
        }
        let (fork_height, why) = match reader.fork_of(height, prefix)? {
            Some(fork) => {
                (fork, format!("a reorg took block {height} of the cursor off the chain; up to block {fork}"))
            }
            // Never seen here, or too long ago. So deep no reorg reaches.
            None => {
                let deep = height.min(head.saturating_sub(UNDO_DEPTH));
                (deep, format!("block {height} of the cursor is not on the chain of this node; up to block {deep}"))
            }
        };
        let next = Self::new(Cursor::end_of(fork_height), reader.hash_at(fork_height)?).to_string();
        let detail = format!("field `after`: {why} nothing has changed: go on from there, with `after={next}`");
        Ok(Some(Moved { detail, code: "reorg", fork_height, next }))
    }
}

impl IntoResponse for Moved {
    fn into_response(self) -> Response {
        (StatusCode::CONFLICT, Json(self)).into_response()
    }
}

impl fmt::Display for PageCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.block {
            Some(prefix) => write!(f, "{}.{prefix:016x}", self.at),
            None => self.at.fmt(f),
        }
    }
}

impl FromStr for PageCursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("a cursor is `height.position` or `height.position.block`, got `{}`", shown(text));
        let (place, block) = match text.match_indices('.').nth(1) {
            Some((dot, _)) => (&text[..dot], Some(&text[dot + 1..])),
            None => (text, None),
        };
        let prefix = |digits: &str| {
            let whole = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            u64::from_str_radix(digits, 16).ok().filter(|_| whole).map(u64::cast_signed)
        };
        let block = block.map(|digits| prefix(digits).ok_or_else(wrong)).transpose()?;
        Ok(Self { at: place.parse().map_err(|_| wrong())?, block })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_cursor_without_a_block_is_read_and_what_is_none_is_not() {
        let at = Cursor { height: 12, position: 3 };
        assert_eq!("12.3".parse(), Ok(PageCursor { at, block: None }));
        assert_eq!("12.3.ffffffffffffffff".parse(), Ok(PageCursor { at, block: Some(-1) }));
        for bad in ["", "12", "12.", "12.3.", "12.3.ff", "12.3.+fffffffffffffff", "12.3.gggggggggggggggg", "12.16384"] {
            assert!(bad.parse::<PageCursor>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_cursor_reads_back_what_it_writes(height: u64, position in 0_u32..1 << 14, hash in any::<Option<[u8; 32]>>()) {
            let cursor = PageCursor::new(Cursor { height, position }, hash.map(Hash));
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = text.parse::<PageCursor>();
        }
    }
}
