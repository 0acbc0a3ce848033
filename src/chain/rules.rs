//! Whether a block may follow its parent, and what else makes a block invalid.

use super::{Address, Genesis, Hash, Head, Header, Height, Time, TransactionError, format};

/// Why a block is not valid, or not here. Every variant says what came and what should have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Another version of the format.
    #[error("field `version`: expected {expected}, got {got}")]
    Version {
        /// Ours.
        expected: u32,
        /// Its.
        got: u32,
    },
    /// Another chain's.
    #[error("field `chain_id`: expected `{expected}`, got `{got}`")]
    ChainId {
        /// Ours.
        expected: String,
        /// Its.
        got: String,
    },
    /// The hash that came with it is not its own.
    #[error("field `hash`: got {got}, the fields make {expected}")]
    Hash {
        /// What its fields hash to.
        expected: Hash,
        /// What it says.
        got: Hash,
    },
    /// The number of transactions is not the one in the header.
    #[error("field `tx_count`: got {got}, the block has {expected} transactions")]
    TxCount {
        /// How many there are.
        expected: usize,
        /// What the header says.
        got: u32,
    },
    /// More than a block may hold.
    #[error("field `{field}`: {got}, at most {max} are allowed")]
    TooLarge {
        /// `transactions` (how many) or `block` (bytes).
        field: &'static str,
        /// How much it is.
        got: usize,
        /// How much it may be.
        max: u32,
    },
    /// The transactions are not those of the header.
    #[error("field `tx_root`: got {got}, the transactions make {expected}")]
    TxRoot {
        /// What the transactions make.
        expected: Hash,
        /// What the header says.
        got: Hash,
    },
    /// Not made by an authority of this chain.
    #[error("field `proposer`: {0} is not an authority of this chain")]
    UnknownProposer(Address),
    /// Made by an authority out of turn.
    #[error("field `proposer`: at {time} it is the turn of {expected}, got {got}")]
    OutOfTurn {
        /// The block's time.
        time: Time,
        /// Whose turn it was.
        expected: Address,
        /// Who made it.
        got: Address,
    },
    /// A second block in one slot, where authorities take turns.
    #[error("field `timestamp`: {time} lies in the parent's slot, {slot}")]
    SameSlot {
        /// The block's time.
        time: Time,
        /// Its slot.
        slot: u64,
    },
    /// Not signed by its proposer.
    #[error("field `signature`: not the proposer's over this block")]
    Signature,
    /// A transaction whose signature does not hold.
    #[error("field `transactions[{index}].signature`: not the sender's over this transaction ({reason})")]
    TransactionSignature {
        /// Which one.
        index: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// Not the next height.
    #[error("field `height`: expected {expected}, got {got}")]
    Height {
        /// The head's and one.
        expected: Height,
        /// Its.
        got: Height,
    },
    /// Builds on a block that is not our head.
    #[error("field `parent_hash`: block {height} builds on {got}, our block {} is {expected}", .height - 1)]
    Parent {
        /// The block's height.
        height: Height,
        /// Our block below it.
        expected: Hash,
        /// What it builds on.
        got: Hash,
    },
    /// Not later than its parent.
    #[error("field `timestamp`: {got} is not after the parent's {parent}")]
    NotAfterParent {
        /// The parent's.
        parent: Time,
        /// Its.
        got: Time,
    },
    /// Too far ahead of the clock.
    #[error("field `timestamp`: {got} is more than one slot after {now}")]
    InFuture {
        /// The clock.
        now: Time,
        /// Its.
        got: Time,
    },
    /// A transaction that cannot happen.
    #[error("field `transactions[{index}]`: {error}")]
    Transaction {
        /// Which one.
        index: usize,
        /// Why.
        error: TransactionError,
    },
    /// Its state is not the one that its transactions make of its parent's.
    #[error("field `state_root`: got {got}, the transactions make {expected}")]
    StateRoot {
        /// What the transactions make.
        expected: Hash,
        /// What the header says.
        got: Hash,
    },
}

/// What a header says of itself: version, chain, a known proposer whose turn it is. Needs neither parent nor state.
pub fn check_header(header: &Header, genesis: &Genesis) -> Result<(), BlockError> {
    if header.version != format::VERSION {
        return Err(BlockError::Version { expected: format::VERSION, got: header.version });
    }
    if header.chain_id != genesis.chain_id {
        let (expected, got) = (genesis.chain_id.clone(), header.chain_id.chars().take(64).collect());
        return Err(BlockError::ChainId { expected, got });
    }
    if header.tx_count > genesis.block_txs_max {
        let (got, max) = (header.tx_count as usize, genesis.block_txs_max);
        return Err(BlockError::TooLarge { field: "transactions", got, max });
    }
    let got = header.proposer;
    if !genesis.authorities.iter().any(|authority| authority.address == got) {
        return Err(BlockError::UnknownProposer(got));
    }
    let expected = genesis.authority_at(header.timestamp).address;
    if expected != got {
        return Err(BlockError::OutOfTurn { time: header.timestamp, expected, got });
    }
    Ok(())
}

/// Whether a block with `header` may follow `parent` at the time `now`: height + 1, the parent's hash, a later time
/// that is at most one slot ahead, and one block a slot where several authorities take turns.
///
/// Pure; signatures are checked in [`super::verify`], the state in [`super::execute`]. Errors: the first rule broken.
pub fn check_child(parent: &Head, header: &Header, genesis: &Genesis, now: Time) -> Result<(), BlockError> {
    check_link(parent, header)?;
    if header.timestamp <= parent.timestamp {
        return Err(BlockError::NotAfterParent { parent: parent.timestamp, got: header.timestamp });
    }
    if header.timestamp > now.plus_ms(genesis.slot_ms) {
        return Err(BlockError::InFuture { now, got: header.timestamp });
    }
    let slot = genesis.slot(header.timestamp);
    if genesis.authorities.len() > 1 && slot <= genesis.slot(parent.timestamp) && parent.height > 0 {
        return Err(BlockError::SameSlot { time: header.timestamp, slot });
    }
    Ok(())
}

/// Whether `header` names `parent` as the block that it builds on: height + 1 and the parent's hash.
pub fn check_link(parent: &Head, header: &Header) -> Result<(), BlockError> {
    if parent.height.checked_add(1) != Some(header.height) {
        return Err(BlockError::Height { expected: parent.height.saturating_add(1), got: header.height });
    }
    if header.parent_hash != parent.hash {
        let (height, expected, got) = (header.height, parent.hash, header.parent_hash);
        return Err(BlockError::Parent { height, expected, got });
    }
    Ok(())
}
