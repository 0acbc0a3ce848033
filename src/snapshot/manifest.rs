//! What a snapshot consists of. A manifest has one spelling, and its hash is the snapshot's id.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::chunk::{self, CONTENT_BYTES_MAX};
use super::{Result, SnapshotError};
use crate::chain::{Genesis, Hash, Header, Height, Signature, Time, VerifiedHeader, verify_headers};

/// The format and its version.
pub const FORMAT: &str = "tenon-snapshot/1";
/// Bytes of a manifest at most.
pub const MANIFEST_BYTES_MAX: usize = 24 << 20;
/// Chunks of a snapshot at most; of about 1 MiB each, so some 100 GB of chain.
pub const CHUNKS_MAX: usize = 100_000;

/// All about a snapshot but its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// The chain's name.
    pub chain_id: String,
    /// The hash of its block 0.
    pub genesis_hash: Hash,
    /// The block after which the accounts are as they are here.
    pub height: Height,
    /// Its hash.
    pub block_hash: Hash,
    /// Its header and the authority's signature, as a block begins with them, in hexadecimal digits.
    pub header: String,
    /// The lowest block that is here whole: 1, or higher; `height` at most.
    pub blocks_from: Height,
    /// How many accounts there are.
    pub accounts: u64,
    /// The chunks: headers `1..blocks_from`, blocks `blocks_from..=height`, accounts by address.
    pub chunks: Vec<ChunkInfo>,
}

/// A chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkInfo {
    /// What is in it.
    pub kind: ChunkKind,
    /// The height of the first header or block, or how many accounts came before.
    pub first: u64,
    /// How many headers, blocks or accounts.
    pub count: u64,
    /// Bytes of its content.
    pub content_bytes: u64,
    /// Bytes of it as it is stored, compressed.
    pub bytes: u64,
    /// Their SHA-256.
    pub sha256: Hash,
}

/// What is in a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChunkKind {
    /// Headers with their signatures.
    Headers,
    /// Whole blocks.
    Blocks,
    /// Accounts.
    Accounts,
}

impl fmt::Display for ChunkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Headers => "headers",
            Self::Blocks => "blocks",
            Self::Accounts => "accounts",
        })
    }
}

fn wrong<T>(reason: impl Into<String>) -> Result<T> {
    Err(SnapshotError::Manifest(reason.into()))
}

impl Manifest {
    /// Reads a manifest. Errors: it is none, is not in its one spelling, or its chunks do not make up what it says.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return wrong(format!("{} bytes, at most {MANIFEST_BYTES_MAX} are allowed", bytes.len()));
        }
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|error| SnapshotError::Manifest(error.to_string()))?;
        if manifest.to_bytes() != bytes {
            return wrong("not in its one spelling");
        }
        manifest.check()?;
        Ok(manifest)
    }

    /// Its bytes: JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data")
    }

    /// The snapshot's id: the SHA-256 of its manifest's bytes.
    pub fn id(bytes: &[u8]) -> Hash {
        Hash::of(&[bytes])
    }

    /// Bytes of all chunks, as they are stored.
    pub fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.bytes).sum()
    }

    /// Whether a node on `genesis` may load it, as far as the manifest can tell. Answers the header that an authority
    /// signed. Errors: another chain, or a header that is not valid.
    pub fn verify(&self, genesis: &Genesis, genesis_hash: &Hash, now: Time) -> Result<VerifiedHeader> {
        if self.chain_id != genesis.chain_id || self.genesis_hash != *genesis_hash {
            return Err(SnapshotError::OtherChain(format!(
                "`{}` with genesis {}, expected `{}` with {genesis_hash}",
                self.chain_id.chars().take(64).collect::<String>(),
                self.genesis_hash,
                genesis.chain_id
            )));
        }
        let header = self.signed_header()?;
        let invalid = |error: String| SnapshotError::Manifest(format!("header: {error}"));
        if header.0.timestamp > now.plus_ms(genesis.slot_ms) {
            return wrong(format!("header: {} is more than one slot after {now}", header.0.timestamp));
        }
        let verified = verify_headers(vec![header], genesis).map_err(|(_, error)| invalid(error.to_string()))?;
        Ok(verified.into_iter().next().expect("one header in, one out"))
    }

    fn signed_header(&self) -> Result<(Header, Signature)> {
        let bytes = const_hex::decode(&self.header)
            .map_err(|error| SnapshotError::Manifest(format!("field `header`: {error}")))?;
        if const_hex::encode(&bytes) != self.header {
            return wrong("field `header`: expected lower-case digits");
        }
        let (header, signature) = chunk::decode_header(&bytes)
            .map_err(|reason| SnapshotError::Manifest(format!("field `header`: {reason}")))?;
        if header.height != self.height || header.hash() != self.block_hash {
            return wrong(format!(
                "field `header`: it is of block {}, {}; expected block {}, {}",
                header.height,
                header.hash(),
                self.height,
                self.block_hash
            ));
        }
        Ok((header, signature))
    }

    /// Whether the parts fit together.
    fn check(&self) -> Result<()> {
        if self.format != FORMAT {
            let got: String = self.format.chars().take(64).collect();
            return wrong(format!("field `format`: expected `{FORMAT}`, got `{got}`"));
        }
        if self.height == 0 || self.height >= Height::MAX >> 14 {
            return wrong(format!("field `height`: {} is no height of a snapshot", self.height));
        }
        if !(1..=self.height).contains(&self.blocks_from) {
            return wrong(format!("field `blocks_from`: expected 1 to {}, got {}", self.height, self.blocks_from));
        }
        if self.chunks.len() > CHUNKS_MAX {
            return wrong(format!("{} chunks, at most {CHUNKS_MAX} are allowed", self.chunks.len()));
        }
        self.signed_header()?;
        let mut next = [1, self.blocks_from, 0];
        let mut kind = ChunkKind::Headers;
        for (index, chunk) in self.chunks.iter().enumerate() {
            let refused = |reason: String| wrong(format!("chunk {index} ({}): {reason}", chunk.kind));
            if chunk.kind < kind {
                return refused(format!("comes after {kind}"));
            }
            kind = chunk.kind;
            if chunk.count == 0 || !(1..=CONTENT_BYTES_MAX).contains(&chunk.content_bytes) {
                return refused(format!("{} items in {} bytes", chunk.count, chunk.content_bytes));
            }
            if !(1..=chunk::stored_bytes_max(chunk.content_bytes)).contains(&chunk.bytes) {
                return refused(format!("{} bytes cannot be a content of {}", chunk.bytes, chunk.content_bytes));
            }
            let next = &mut next[kind as usize];
            if chunk.first != *next {
                return refused(format!("begins with {}, expected {next}", chunk.first));
            }
            let Some(after) = next.checked_add(chunk.count) else { return refused("too many items".into()) };
            *next = after;
        }
        for (what, got, expected) in [
            ("headers", next[0], self.blocks_from),
            ("blocks", next[1], self.height + 1),
            ("accounts", next[2], self.accounts),
        ] {
            if got != expected {
                return wrong(format!("the chunks hold {what} up to {got}, expected up to {expected}"));
            }
        }
        Ok(())
    }
}
