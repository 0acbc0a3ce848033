//! One recorded call as bytes.
//!
//! ```text
//! record = sum of the rest (u32 le) flags (1) request [key] [check (u16 le)] (answer | cause message)
//!          [length before] [prefix suffix middle]
//! flags  = generation's place in the chunk's list (high 4 bits), FAILED, SAME, BEFORE, KEY
//! ```
//! The sum is a CRC-32 that begins from which call it is (`seed`), so that no record holds in another's place. `KEY`: the
//! key follows; else the request begins with its bytes. `BEFORE`: the memory before is here; else it is the one that the
//! key's last record in this segment and shard left, and `check` tells whether it is. `SAME`: the memory did not change;
//! else the new one is the first `prefix` bytes of the old one, `middle` (all that is left), and the last `suffix` bytes of
//! the old one. Values are in postcard's encoding, which ends by itself.

use postcard::ser_flavors::Flavor;
use serde::Serialize;

use super::{
    RecordId,
    format::{SUM_BYTES, check_of, put_varint, varint},
};
use crate::{kind::Kind, limits::Failure};

/// What a call came to, as the slot hands it over.
pub enum Outcome<'a, K: Kind> {
    /// The plugin answered.
    Answered {
        /// Its answer, also where the built-in is then asked.
        answer: &'a K::Answer,
        /// The memory after.
        memory: &'a K::Memory,
    },
    /// The plugin failed; the memory stays as it was.
    Failed(&'a Failure),
}

const KEY: u8 = 1;
const BEFORE: u8 = 2;
const SAME: u8 = 4;
const FAILED: u8 = 8;

/// Bytes of a failure's message that are kept.
const MESSAGE_MAX_BYTES: usize = 200;

/// Space for encoding that is used again for each call.
#[derive(Default)]
pub(super) struct Scratch {
    key: Vec<u8>,
    before: Vec<u8>,
    after: Vec<u8>,
}

/// A call, as it is to be recorded.
pub(super) struct Given<'a, K: Kind> {
    pub(super) key: &'a K::Key,
    pub(super) request: &'a K::Request,
    pub(super) before: &'a K::Memory,
    pub(super) outcome: Outcome<'a, K>,
}

/// Appends the call `id`. `generation`: its place in the chunk's list, below 16. `is_known`: the reader has `before`
/// already.
///
/// Errors: a value of the kind cannot be encoded; what was appended is then to be cut off.
pub(super) fn put<K: Kind>(
    out: &mut Vec<u8>,
    scratch: &mut Scratch,
    id: RecordId,
    generation: u8,
    is_known: bool,
    call: &Given<'_, K>,
) -> postcard::Result<()> {
    let Given { key, request, before, outcome } = call;
    let Scratch { key: key_bytes, before: before_bytes, after: after_bytes } = scratch;
    let start = out.len();
    out.extend_from_slice(&[0; SUM_BYTES]);
    out.push(0);
    let mut flags = generation << 4;

    key_bytes.clear();
    put_value(key_bytes, key)?;
    let request_at = out.len();
    put_value(out, request)?;
    if !out[request_at..].starts_with(key_bytes) {
        flags |= KEY;
        out.extend_from_slice(key_bytes);
    }

    before_bytes.clear();
    put_value(before_bytes, before)?;
    if is_known {
        out.extend_from_slice(&check_of(before_bytes).to_le_bytes());
    } else {
        flags |= BEFORE;
    }
    match outcome {
        Outcome::Answered { answer, memory } => {
            put_value(out, answer)?;
            after_bytes.clear();
            put_value(after_bytes, memory)?;
            if before_bytes == after_bytes {
                flags |= SAME;
            }
        }
        Outcome::Failed(failure) => {
            flags |= FAILED | SAME;
            let message = failure.to_string();
            put_value(out, failure.cause())?;
            put_value(out, &message[..message.floor_char_boundary(MESSAGE_MAX_BYTES)])?;
        }
    }
    if flags & BEFORE != 0 {
        put_varint(out, before_bytes.len() as u64);
        out.extend_from_slice(before_bytes);
    }
    if flags & SAME == 0 {
        let prefix = common_prefix(before_bytes, after_bytes);
        let (before_rest, after_rest) = (&before_bytes[prefix..], &after_bytes[prefix..]);
        let suffix = before_rest.iter().rev().zip(after_rest.iter().rev()).take_while(|(one, other)| one == other);
        let suffix = suffix.count();
        put_varint(out, prefix as u64);
        put_varint(out, suffix as u64);
        out.extend_from_slice(&after_rest[..after_rest.len() - suffix]);
    }
    out[start + SUM_BYTES] = flags;
    let sum = sum(id, &out[start + SUM_BYTES..]);
    out[start..start + SUM_BYTES].copy_from_slice(&sum.to_le_bytes());
    Ok(())
}

/// The checksum of the call `id`, which `covered` is the record of.
fn sum(id: RecordId, covered: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed(id));
    hasher.update(covered);
    hasher.finalize()
}

/// A number for each call: neighbours, and calls of one number in two shards or segments, have different ones.
fn seed(id: RecordId) -> u32 {
    // Odd multipliers, so that no bit of the three is lost; which ones they are does not matter.
    id.segment.wrapping_mul(0x9e37_79b1) ^ id.shard.wrapping_mul(0x85eb_ca6b) ^ id.n.wrapping_mul(0xc2b2_ae35)
}

fn common_prefix(one: &[u8], other: &[u8]) -> usize {
    // A strategy's memory can be a megabyte: eight bytes at a time.
    let words = one.chunks_exact(8).zip(other.chunks_exact(8)).take_while(|(one, other)| one == other).count() * 8;
    words + one[words..].iter().zip(&other[words..]).take_while(|(one, other)| one == other).count()
}

fn put_value<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) -> postcard::Result<()> {
    postcard::serialize_with_flavor(value, Sink(out))
}

struct Sink<'a>(&'a mut Vec<u8>);

impl Flavor for Sink<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// A record taken apart, as far as it goes without the memory before.
pub(super) struct Parts<'a, K: Kind> {
    /// Its place in the chunk's list.
    pub(super) generation: u8,
    pub(super) key: K::Key,
    pub(super) request: K::Request,
    pub(super) before: Before<'a>,
    pub(super) outcome: PartsOutcome<K>,
    pub(super) delta: Option<Delta<'a>>,
}

/// The memory before.
pub(super) enum Before<'a> {
    Here(&'a [u8]),
    Known { check: u16 },
}

pub(super) enum PartsOutcome<K: Kind> {
    Answered(K::Answer),
    Failed { cause: String, message: String },
}

/// How the memory after differs from the one before.
pub(super) struct Delta<'a> {
    prefix: usize,
    suffix: usize,
    middle: &'a [u8],
}

impl Before<'_> {
    /// Whether `memory` can be the one that is meant.
    pub(super) fn admits(&self, memory: &[u8]) -> bool {
        match self {
            Before::Here(_) => true,
            Before::Known { check } => check_of(memory) == *check,
        }
    }
}

impl Delta<'_> {
    /// Writes the memory after `before` to `after`. None: the two do not fit.
    pub(super) fn apply(&self, before: &[u8], after: &mut Vec<u8>) -> Option<()> {
        let kept = self.prefix.checked_add(self.suffix)?;
        if kept > before.len() {
            return None;
        }
        after.clear();
        after.extend_from_slice(&before[..self.prefix]);
        after.extend_from_slice(self.middle);
        after.extend_from_slice(&before[before.len() - self.suffix..]);
        Some(())
    }
}

/// Why a record cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The checksum does not hold.
    Sum,
    /// It holds, but what it covers is not a call of this kind.
    Content,
}

/// Takes the record of the call `id` apart; `bytes` is all of it.
pub(super) fn parts<K: Kind>(id: RecordId, bytes: &[u8]) -> Result<Parts<'_, K>, Broken> {
    let (written, covered) = bytes.split_first_chunk::<SUM_BYTES>().ok_or(Broken::Sum)?;
    if u32::from_le_bytes(*written) != sum(id, covered) {
        return Err(Broken::Sum);
    }
    content(covered).ok_or(Broken::Content)
}

fn content<K: Kind>(bytes: &[u8]) -> Option<Parts<'_, K>> {
    let (&flags, rest) = bytes.split_first()?;
    let at_request = rest;
    let (request, rest) = postcard::take_from_bytes::<K::Request>(rest).ok()?;
    let (key, mut rest) = if flags & KEY != 0 {
        postcard::take_from_bytes::<K::Key>(rest).ok()?
    } else {
        (postcard::take_from_bytes::<K::Key>(at_request).ok()?.0, rest)
    };
    let check = if flags & BEFORE == 0 {
        let (check, after) = rest.split_first_chunk::<2>()?;
        rest = after;
        u16::from_le_bytes(*check)
    } else {
        0
    };
    let outcome = if flags & FAILED != 0 {
        let ((cause, message), after) = postcard::take_from_bytes::<(String, String)>(rest).ok()?;
        rest = after;
        PartsOutcome::Failed { cause, message }
    } else {
        let (answer, after) = postcard::take_from_bytes::<K::Answer>(rest).ok()?;
        rest = after;
        PartsOutcome::Answered(answer)
    };
    let before = if flags & BEFORE != 0 {
        let length = usize::try_from(varint(&mut rest)?).ok()?;
        let (before, after) = rest.split_at_checked(length)?;
        rest = after;
        Before::Here(before)
    } else {
        Before::Known { check }
    };
    let delta = if flags & SAME == 0 {
        let prefix = usize::try_from(varint(&mut rest)?).ok()?;
        let suffix = usize::try_from(varint(&mut rest)?).ok()?;
        Some(Delta { prefix, suffix, middle: rest })
    } else {
        rest.is_empty().then_some(())?;
        None
    };
    Some(Parts { generation: flags >> 4, key, request, before, outcome, delta })
}
