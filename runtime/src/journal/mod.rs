//! The journal of a slot: the calls that its plugin answered, each with the memory it had, to be replayed exactly.
//!
//! A [`Recorder`] lives in each shard of a slot, under the shard's lock, and encodes into memory; a thread of the slot's
//! takes what has come together ([`Recorder::take`]) to its [`Journal`], which writes a ring of segment files. [`Reader`]
//! gives the calls back. What is done with them is `replay`'s business.

mod format;
mod reader;
mod record;
mod recorder;
mod source;
mod writer;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{digest::Digest, limits::Limits, load::MemoryId};

pub use reader::{Call, Fault, Reader, Recorded, Summary};
pub use record::Outcome;
pub use recorder::{Chunk, Recorder};
pub use source::{NoJournal, Source};
pub use writer::Journal;

/// How a slot is journaled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JournalConfig {
    /// Whole segments that are kept; the oldest go first. Default 8; 2 to 10,000.
    pub segments: u32,
    /// Bytes after which a new segment begins. Default 16 MiB; 4 KiB to 1 GiB.
    pub segment_bytes: u64,
    /// Bytes that a shard keeps until they are written; calls beyond are left out and counted. Default 256 KiB; 4 KiB to
    /// 16 MiB.
    pub buffer_bytes: usize,
    /// The share of keys whose calls are recorded. Default 1; 0 to 1.
    pub sample: f64,
}

impl Default for JournalConfig {
    fn default() -> JournalConfig {
        JournalConfig { segments: 8, segment_bytes: 16 << 20, buffer_bytes: 256 << 10, sample: 1.0 }
    }
}

impl JournalConfig {
    /// Whether every value is within its range. Errors: the first that is not, with its name, value and range.
    pub fn check(&self) -> Result<(), String> {
        let ranges: [(&str, u64, u64, u64); 3] = [
            ("segments", self.segments.into(), 2, 10_000),
            ("segment_bytes", self.segment_bytes, 4 << 10, 1 << 30),
            ("buffer_bytes", self.buffer_bytes as u64, 4 << 10, 16 << 20),
        ];
        for (name, value, low, high) in ranges {
            if !(low..=high).contains(&value) {
                return Err(format!("{name} is {value}, expected {low} to {high}"));
            }
        }
        if !(0.0..=1.0).contains(&self.sample) {
            return Err(format!("sample is {}, expected 0 to 1", self.sample));
        }
        Ok(())
    }
}

/// Whether a key whose hash is `hash` is among the `share` of keys (0 to 1) that are recorded.
///
/// All calls of a key are recorded or none is, so that its memory can be followed.
pub fn sampled(hash: u64, share: f64) -> bool {
    // The lowest and the highest bits choose places in tables, and the upper half the shard: stirred, they tell nothing.
    let stirred = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11;
    // 53 bits, which a float holds exactly.
    (stirred as f64) < share * (1_u64 << 53) as f64
}

/// Which call: `segment.shard.n`, the n-th of that shard in that segment. Unique in the journal of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId {
    /// The segment's number, from 1.
    pub segment: u32,
    /// The shard's number, from 0.
    pub shard: u32,
    /// The call's number within segment and shard, from 0.
    pub n: u32,
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.segment, self.shard, self.n)
    }
}

/// Why a text names no call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no call, expected segment.shard.n, like 12.0.345")]
pub struct NotARecordId(String);

impl FromStr for RecordId {
    type Err = NotARecordId;

    fn from_str(text: &str) -> Result<RecordId, NotARecordId> {
        let mut numbers = text.split('.').map(str::parse::<u32>);
        match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(segment)), Some(Ok(shard)), Some(Ok(n)), None) => Ok(RecordId { segment, shard, n }),
            _ => Err(NotARecordId(text.to_owned())),
        }
    }
}

impl Serialize for RecordId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Whose journal it is: what every segment begins with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlotInfo {
    /// The slot's name.
    pub slot: String,
    /// Its kind: [`Kind::NAME`](crate::Kind::NAME).
    pub kind: String,
    /// The kind's world: [`Kind::WORLD`](crate::Kind::WORLD).
    pub world: String,
    /// The segment's number.
    pub segment: u32,
    /// When the segment was begun, in microseconds since 1970 UTC.
    pub started_us: u64,
    /// The share of keys that is recorded.
    pub sample: f64,
    /// What a plugin might use in the slot; none in journals of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Whether its writer wrote the segment before, too, and left no half of a frame there. Segments of older versions
    /// do not say.
    #[serde(default)]
    pub continues: bool,
}

/// A generation whose calls are recorded: what it takes to run it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationInfo {
    /// Its number in the slot; it begins anew with each start of the host.
    pub number: u64,
    /// The plugin's name.
    pub plugin: String,
    /// The plugin's version.
    pub version: String,
    /// The component's bytes.
    pub digest: Digest,
    /// Its configuration.
    pub settings: Value,
    /// Whose form its memory has.
    pub memory: MemoryId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_named_by_three_numbers() {
        let id = RecordId { segment: 12, shard: 0, n: 345 };
        assert_eq!(id.to_string(), "12.0.345");
        assert_eq!("12.0.345".parse(), Ok(id));
        for text in ["", "1", "1.2", "1.2.3.4", "1.2.x", "1.2.-3", "1.2.99999999999"] {
            text.parse::<RecordId>().expect_err(text);
        }
    }

    #[test]
    fn a_share_of_the_keys_is_sampled() {
        for (share, low, high) in [(0.0, 0, 0), (0.25, 2_300, 2_700), (1.0, 10_000, 10_000)] {
            // As a slot's hasher gives them: spread over all bits.
            let hashes = (0..10_000_u64).map(|key| key.wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(31) ^ key);
            let count = hashes.filter(|hash| sampled(*hash, share)).count();
            assert!((low..=high).contains(&count), "{share}: {count}");
        }
        assert!(sampled(u64::MAX, 1.0) && !sampled(0, 0.0));
    }

    #[test]
    fn a_configuration_out_of_range_is_refused() {
        assert_eq!(JournalConfig::default().check(), Ok(()));
        let broken = [
            (JournalConfig { segments: 1, ..JournalConfig::default() }, "segments is 1, expected 2 to 10000"),
            (JournalConfig { sample: 1.5, ..JournalConfig::default() }, "sample is 1.5, expected 0 to 1"),
            (JournalConfig { sample: f64::NAN, ..JournalConfig::default() }, "sample is NaN, expected 0 to 1"),
        ];
        for (config, expected) in broken {
            assert_eq!(config.check(), Err(expected.to_owned()));
        }
    }
}
