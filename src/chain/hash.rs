//! A 32-byte SHA-256 digest, written `0x` and 64 lower-case hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::text::serde_as_text;

/// A SHA-256 digest: of a block, a transaction or a state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hash(pub [u8; 32]);

/// Why a text is not a hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a hash is `0x` and 64 hexadecimal digits, got `{got}`")]
pub struct HashError {
    /// The text, cut to 80 characters.
    pub got: String,
}

impl Hash {
    /// 32 zero bytes: the parent of nothing, the root of an empty state.
    pub const ZERO: Self = Self([0; 32]);

    /// The digest of `parts`, one after the other.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update(part);
        }
        Self(hasher.finalize().into())
    }

    /// The first 8 bytes as a signed integer: what the store indexes. Two hashes may share it.
    pub fn prefix(&self) -> i64 {
        i64::from_be_bytes(*self.0.first_chunk().expect("a hash has 32 bytes"))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 66];
        text[..2].copy_from_slice(b"0x");
        const_hex::encode_to_slice(self.0, &mut text[2..]).expect("64 bytes hold 32 in hexadecimal");
        f.write_str(std::str::from_utf8(&text).expect("hexadecimal is ASCII"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        let mut bytes = [0; 32];
        text.strip_prefix("0x")
            .filter(|digits| digits.len() == 64)
            .and_then(|digits| const_hex::decode_to_slice(digits, &mut bytes).ok())
            .map(|()| Self(bytes))
            .ok_or_else(|| HashError { got: text.chars().take(80).collect() })
    }
}

serde_as_text!(Hash);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_reads_back_what_it_writes_and_nothing_else() {
        let hash = Hash::of(&[b"ab", b"c"]);
        assert_eq!(hash, Hash::of(&[b"abc"]));
        assert_eq!(hash.to_string().parse(), Ok(hash));
        for bad in ["", "0x", &hash.to_string()[2..], &format!("{hash}0"), &"0xzz".repeat(16)] {
            assert!(bad.parse::<Hash>().is_err(), "{bad}");
        }
    }
}
