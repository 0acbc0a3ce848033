//! The bytes of a segment file. Written by `writer`, read by `reader`; a record within a chunk is `record`'s.
//!
//! ```text
//! segment = "tenon journal 1\n" frame*
//! frame   = marker (4) type (1) payload length (u32 le) crc32 of these 9 bytes (u32 le) payload
//! payload = JSON crc32                        type `S`: SlotInfo, first in a segment
//!         | JSON crc32                        type `G`: GenerationInfo, before the first chunk that names it
//!         | head crc32 record*                type `C`
//! head    = shard, first number, records left out before it, generations, length of each record: all varints,
//!           the last two as lists (count, then items)
//! ```
//! The lengths stand in the head, so that a broken record does not hide where the next one begins, and a head is whole or
//! cut off together with all of its records. The marker finds the next frame where a frame's own length is broken.

use serde::de::DeserializeOwned;

/// The first line of a segment: format and version.
pub(super) const MAGIC: &[u8] = b"tenon journal 1\n";
/// Where a frame begins. Not UTF-8, so no JSON holds it.
pub(super) const MARKER: [u8; 4] = [0xf7, b'T', b'J', 0xc1];
/// Bytes of a frame before its payload.
pub(super) const FRAME_BYTES: usize = 13;
/// Bytes of a checksum.
pub(super) const SUM_BYTES: usize = 4;

/// A frame with the slot.
pub(super) const SLOT: u8 = b'S';
/// A frame with a generation.
pub(super) const GENERATION: u8 = b'G';
/// A frame with calls.
pub(super) const CHUNK: u8 = b'C';

/// Appends the beginning of a frame of `kind` whose payload has `length` bytes.
pub(super) fn put_frame(out: &mut Vec<u8>, kind: u8, length: u32) {
    let at = out.len();
    out.extend_from_slice(&MARKER);
    out.push(kind);
    out.extend_from_slice(&length.to_le_bytes());
    let sum = crc32fast::hash(&out[at..]);
    out.extend_from_slice(&sum.to_le_bytes());
}

/// Type and length of the payload of the frame at the start of `bytes`, if one is there and whole.
pub(super) fn frame(bytes: &[u8]) -> Option<(u8, usize)> {
    let header = bytes.first_chunk::<FRAME_BYTES>()?;
    let (covered, sum) = header.split_at(FRAME_BYTES - SUM_BYTES);
    let is_whole = covered.starts_with(&MARKER) && sum == crc32fast::hash(covered).to_le_bytes();
    let length = u32::from_le_bytes(covered[5..].try_into().ok()?);
    is_whole.then_some((covered[4], length as usize))
}

/// Splits a checksum off the start of `bytes` and says whether it is that of `covered`.
pub(super) fn sum_holds<'a>(covered: &[u8], bytes: &'a [u8]) -> Option<(bool, &'a [u8])> {
    let (sum, rest) = bytes.split_at_checked(SUM_BYTES)?;
    Some((sum == crc32fast::hash(covered).to_le_bytes(), rest))
}

/// The JSON of a frame's payload, if its checksum holds.
pub(super) fn json<T: DeserializeOwned>(payload: &[u8]) -> Option<T> {
    let (json, sum) = payload.split_at_checked(payload.len().checked_sub(SUM_BYTES)?)?;
    matches!(sum_holds(json, sum), Some((true, _))).then(|| serde_json::from_slice(json).ok())?
}

/// Where `wanted` first stands in `bytes`.
pub(super) fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// Appends `value` in groups of 7 bits, lowest first.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes a number off the start of `bytes`. None: they end first, or it has more than 64 bits.
pub(super) fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Sixteen bits by which a memory is told from another one; part of the format.
pub(super) fn check_of(memory: &[u8]) -> u16 {
    let mut sum = memory.len() as u64;
    let mut words = memory.chunks_exact(8);
    for word in &mut words {
        sum = stir(sum, u64::from_le_bytes(word.try_into().expect("8 bytes")));
    }
    let rest = words.remainder();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    (stir(sum, u64::from_le_bytes(last)) >> 48) as u16
}

fn stir(sum: u64, word: u64) -> u64 {
    let mixed = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_and_broken_ones_are_none() {
        for value in [0, 1, 0x7f, 0x80, 300, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut rest = bytes.as_slice();
            assert_eq!((varint(&mut rest), rest), (Some(value), &[][..]));
            assert_eq!(varint(&mut &bytes[..bytes.len() - 1]), None);
        }
        assert_eq!(varint(&mut [0xff; 11].as_slice()), None);
        assert_eq!(varint(&mut [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2].as_slice()), None);
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_noticed() {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, CHUNK, 1_234);
        assert_eq!(frame(&bytes), Some((CHUNK, 1_234)));
        for bit in 0..bytes.len() * 8 {
            let mut broken = bytes.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(frame(&broken), None, "bit {bit}");
        }
    }

    #[test]
    fn memories_are_told_apart() {
        let mut checks: Vec<u16> = (0..200_u8).map(|byte| check_of(&[byte; 9])).collect();
        checks.sort_unstable();
        checks.dedup();
        assert!(checks.len() >= 198, "{}", checks.len());
        assert_ne!(check_of(&[]), check_of(&[0]));
        // Part of the format: these never change.
        assert_eq!((check_of(b""), check_of(b"tenon"), check_of(&[7; 20])), (0, 12_156, 63_711));
    }
}
