//! The chain: what blocks, transactions and accounts are, and when they are valid.
//!
//! Pure values and functions: no clock, no disk, no network. Whoever needs the time passes it in. Every way into the
//! chain (imported, pulled, produced) goes through [`verify`], [`rules`] and [`execute`], so validity is decided here
//! and nowhere else; which of two valid chains counts, in [`fork_choice`]. What a chain format decides (texts and bytes that are hashed or signed) stands in [`format`].

mod address;
mod block;
mod canonical;
mod codec;
pub mod execute;
pub mod fork_choice;
pub mod format;
mod genesis;
mod hash;
mod headers;
mod keys;
pub mod merkle;
pub mod rules;
pub mod state;
mod text;
mod time;
mod transaction;
pub mod verify;

pub use address::{Address, AddressError};
pub use block::{Block, Header, VerifiedBlock};
pub use codec::DecodeError;
pub use execute::{Account, Change, TransactionError};
pub use genesis::{Allocation, Authority, Genesis, GenesisError, NonceRule};
pub use hash::{Hash, HashError};
pub use headers::{VerifiedHeader, verify_headers};
pub use keys::{KeyError, PublicKey, SecretKey, Signature};
pub use rules::BlockError;
pub use state::State;
pub use time::{Time, TimeError};
pub use transaction::{Kind, PAYLOAD_MAX_BYTES, Payload, Submission, SubmissionError, Transaction};

/// How many blocks lie below a block; genesis has 0.
pub type Height = u64;

/// The block that a chain builds on: what most callers need of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its height.
    pub height: Height,
    /// Its hash.
    pub hash: Hash,
    /// Its parent's hash.
    pub parent_hash: Hash,
    /// When it was made.
    pub timestamp: Time,
    /// Transactions in it.
    pub tx_count: u32,
    /// The state after it.
    pub state_root: Hash,
}

impl From<&Header> for Head {
    fn from(header: &Header) -> Self {
        Self {
            height: header.height,
            hash: header.hash(),
            parent_hash: header.parent_hash,
            timestamp: header.timestamp,
            tx_count: header.tx_count,
            state_root: header.state_root,
        }
    }
}
