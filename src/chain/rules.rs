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

#[cfg(test)]
mod tests {
    use super::super::{Authority, NonceRule, SecretKey};
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn key(seed: u8) -> Address {
        Address::of(&SecretKey::from_seed([seed; 32]).public_key())
    }

    /// A chain whose authorities, three or one, take turns of two seconds from time 0 on.
    fn genesis(authorities: u8) -> Genesis {
        let authority = |seed| {
            let public_key = SecretKey::from_seed([seed; 32]).public_key();
            Authority { address: Address::of(&public_key), public_key }
        };
        Genesis {
            format: format::NAME.into(),
            chain_id: "test".into(),
            timestamp: Time(0),
            slot_ms: 2_000,
            min_fee: 1,
            fee_recipient: None,
            nonce_rule: NonceRule::Increasing,
            block_txs_max: 10,
            block_bytes_max: 1 << 20,
            authorities: (1..=authorities).map(authority).collect(),
            allocations: Vec::new(),
        }
    }

    fn header(second: u64, proposer: Address) -> Header {
        let mut header = genesis(1).block().header;
        (header.height, header.timestamp, header.proposer) = (5, Time(second * SECOND), proposer);
        header
    }

    #[test]
    fn only_the_authority_of_the_slot_may_make_a_block() {
        let genesis = genesis(3);
        // Seconds 0 and 1 are the first one's, 2 and 3 the second's, 4 and 5 the third's, and so on.
        for second in 0..30 {
            for seed in 1..=4 {
                let (got, expected) = (key(seed), key(1 + u8::try_from(second / 2 % 3).unwrap()));
                let answer = check_header(&header(second, got), &genesis);
                let time = Time(second * SECOND);
                assert_eq!(
                    answer,
                    match seed {
                        4 => Err(BlockError::UnknownProposer(got)),
                        _ if got == expected => Ok(()),
                        _ => Err(BlockError::OutOfTurn { time, expected, got }),
                    },
                    "second {second}, authority {seed}"
                );
            }
        }
    }

    #[test]
    fn a_block_follows_its_parent_in_height_hash_time_and_where_authorities_take_turns_in_slot() {
        let (one, three) = (genesis(1), genesis(3));
        let parent = Head { height: 4, timestamp: Time(6 * SECOND), ..Head::from(&one.block().header) };
        let child = |micros: u64| Header { parent_hash: parent.hash, timestamp: Time(micros), ..header(0, key(1)) };
        let check = |header: &Header, genesis| check_child(&parent, header, genesis, Time(10 * SECOND));
        assert_eq!(check(&child(6 * SECOND + 1), &one), Ok(()), "one authority may make several blocks in a slot");
        let (time, slot) = (Time(7 * SECOND), 3);
        assert_eq!(check(&child(7 * SECOND), &three), Err(BlockError::SameSlot { time, slot }));
        assert_eq!(check(&child(8 * SECOND), &three), Ok(()));
        let at_start = Head { height: 0, ..parent.clone() };
        let first = Header { height: 1, ..child(7 * SECOND) };
        assert_eq!(check_child(&at_start, &first, &three, time), Ok(()), "genesis uses no slot");
        let (parent_time, got) = (parent.timestamp, Time(6 * SECOND));
        assert_eq!(check(&child(6 * SECOND), &one), Err(BlockError::NotAfterParent { parent: parent_time, got }));
        let now = Time(10 * SECOND);
        assert_eq!(check(&child(12 * SECOND), &one), Ok(()), "one slot ahead");
        let got = Time(12 * SECOND + 1);
        assert_eq!(check(&child(got.0), &one), Err(BlockError::InFuture { now, got }));
        for (height, expected) in [(4, 5), (6, 5), (u64::MAX, 5)] {
            let wrong = Header { height, ..child(8 * SECOND) };
            assert_eq!(check(&wrong, &one), Err(BlockError::Height { expected, got: height }));
        }
        let other = Header { parent_hash: Hash::ZERO, ..child(8 * SECOND) };
        let (height, expected, got) = (5, parent.hash, Hash::ZERO);
        assert_eq!(check(&other, &one), Err(BlockError::Parent { height, expected, got }));
    }
}
