//! Where a chain begins: its rules, its authorities, its first accounts. `genesis.json`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    Account, Address, Block, Change, Hash, Header, KeyError, PublicKey, Signature, State, Time, format, merkle,
};

/// A chain's parameters. Two nodes are on the same chain when this is equal, to the letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// The chain format; [`format::NAME`].
    pub format: String,
    /// The chain's name, 1 to 64 bytes. It is part of every signature.
    pub chain_id: String,
    /// The time of block 0.
    pub timestamp: Time,
    /// Length of a slot in milliseconds, 1 to 3,600,000: authorities take turns by slot, and a block may be one slot
    /// ahead of the clock.
    pub slot_ms: u64,
    /// The least fee that a transaction pays.
    pub min_fee: u64,
    /// Who gets the fees; they are burned where nobody is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fee_recipient: Option<Address>,
    /// Which nonces an account accepts.
    #[serde(default)]
    pub nonce_rule: NonceRule,
    /// Transactions in one block at most, 1 to 10,000.
    #[serde(default = "default_block_txs_max")]
    pub block_txs_max: u32,
    /// Encoded bytes of one block at most, 1 KiB to 8 MiB.
    #[serde(default = "default_block_bytes_max")]
    pub block_bytes_max: u32,
    /// Who makes blocks, in the order of their turns; 1 to 1,000.
    pub authorities: Vec<Authority>,
    /// The first accounts.
    pub allocations: Vec<Allocation>,
}

/// Which nonces an account accepts, given the lowest it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NonceRule {
    /// That one or any above it: clients may use their clock.
    #[default]
    Increasing,
    /// That one alone.
    Sequential,
}

/// Someone who makes blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authority {
    /// Its address; must belong to the key.
    pub address: Address,
    /// Its key.
    pub public_key: PublicKey,
}

/// What an account has at the start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allocation {
    /// The account.
    pub address: Address,
    /// What it has.
    pub balance: u64,
}

/// Why a genesis cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenesisError {
    /// Not the JSON of a genesis.
    #[error("genesis: {0}")]
    Json(String),
    /// A field has a value that makes no chain.
    #[error("genesis field `{field}`: {reason}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
}

fn default_block_txs_max() -> u32 {
    2_000
}

fn default_block_bytes_max() -> u32 {
    4 << 20
}

impl Genesis {
    /// Reads and checks a genesis from JSON text.
    pub fn parse(json: &str) -> Result<Self, GenesisError> {
        let genesis: Self = serde_json::from_str(json).map_err(|error| GenesisError::Json(error.to_string()))?;
        genesis.check()?;
        Ok(genesis)
    }

    /// The genesis as JSON, for people and for [`Genesis::parse`].
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a genesis has only text keys")
    }

    /// Whether a chain can start from this. Errors name the field.
    pub fn check(&self) -> Result<(), GenesisError> {
        let wrong = |field, reason: String| Err(GenesisError::Field { field, reason });
        if self.format != format::NAME {
            return wrong("format", format!("expected `{}`, got `{}`", format::NAME, self.format));
        }
        if self.chain_id.is_empty() || self.chain_id.len() > 64 {
            return wrong("chain_id", format!("1 to 64 bytes, got {}", self.chain_id.len()));
        }
        if !(1..=3_600_000).contains(&self.slot_ms) {
            return wrong("slot_ms", format!("1 to 3600000, got {}", self.slot_ms));
        }
        if self.timestamp > Time::MAX {
            return wrong("timestamp", "beyond the year 9999".into());
        }
        if !(1..=10_000).contains(&self.block_txs_max) {
            return wrong("block_txs_max", format!("1 to 10000, got {}", self.block_txs_max));
        }
        if !(1 << 10..=8 << 20).contains(&self.block_bytes_max) {
            return wrong("block_bytes_max", format!("1024 to 8388608, got {}", self.block_bytes_max));
        }
        if self.authorities.is_empty() || self.authorities.len() > 1_000 {
            return wrong("authorities", format!("1 to 1000, got {}", self.authorities.len()));
        }
        for authority in &self.authorities {
            let owner = Address::of(&authority.public_key);
            if owner != authority.address {
                return wrong("authorities", format!("{} has the key of {owner}", authority.address));
            }
            authority.public_key.check_order().or_else(|error: KeyError| wrong("authorities", error.to_string()))?;
        }
        let distinct: BTreeSet<_> = self.allocations.iter().map(|allocation| allocation.address).collect();
        if distinct.len() != self.allocations.len() {
            return wrong("allocations", "an address stands there twice".into());
        }
        let supply = self.allocations.iter().try_fold(0_u64, |sum, allocation| sum.checked_add(allocation.balance));
        if supply.is_none() {
            return wrong("allocations", format!("their sum is above {}", u64::MAX));
        }
        Ok(())
    }

    /// The accounts at the start, as changes of an empty state.
    pub fn changes(&self) -> Vec<Change> {
        let account = |allocation: &Allocation| Account { balance: allocation.balance, nonce: 0 };
        self.allocations
            .iter()
            .map(|allocation| Change { address: allocation.address, before: None, after: account(allocation) })
            .collect()
    }

    /// The keys that the chain knows from the start: those of authorities that have an account.
    pub fn known_keys(&self) -> BTreeMap<Address, PublicKey> {
        let authorities = self.authorities.iter().map(|authority| (authority.address, authority.public_key));
        let authorities: BTreeMap<_, _> = authorities.collect();
        let known = |allocation: &Allocation| Some((allocation.address, *authorities.get(&allocation.address)?));
        self.allocations.iter().filter_map(known).collect()
    }

    /// The state at the start.
    pub fn state(&self) -> State {
        let account = |allocation: &Allocation| Account { balance: allocation.balance, nonce: 0 };
        let mut accounts: Vec<_> = self.allocations.iter().map(|given| (given.address, account(given))).collect();
        accounts.sort_unstable_by_key(|(address, _)| *address);
        State::from_sorted(accounts).unwrap_or_else(|_| {
            // An address stands there twice: [`Genesis::check`] refuses that.
            let mut state = State::default();
            state.apply(&self.changes());
            state
        })
    }

    /// Block 0. Its parent hash is the digest of all parameters, so its hash names the chain in full.
    pub fn block(&self) -> Block {
        let parameters = serde_json::to_string(self).expect("a genesis has only text keys");
        let header = Header {
            version: format::VERSION,
            chain_id: self.chain_id.clone(),
            height: 0,
            parent_hash: Hash::of(&[b"tenon/1 genesis\0", parameters.as_bytes()]),
            timestamp: self.timestamp,
            proposer: Address::default(),
            tx_count: 0,
            tx_root: merkle::root(&[]),
            state_root: self.state().root(),
        };
        Block { header, signature: Signature([0; 64]), transactions: Vec::new() }
    }

    /// The slot that `time` lies in.
    pub fn slot(&self, time: Time) -> u64 {
        time.0 / (self.slot_ms * 1_000)
    }

    /// Whose turn it is at `time`.
    pub fn authority_at(&self, time: Time) -> &Authority {
        let index = self.slot(time) % self.authorities.len() as u64;
        &self.authorities[usize::try_from(index).expect("below the number of authorities")]
    }
}

#[cfg(test)]
mod tests {
    use super::super::SecretKey;
    use super::*;

    pub fn genesis() -> Genesis {
        let key = SecretKey::from_seed([1; 32]).public_key();
        Genesis {
            format: format::NAME.into(),
            chain_id: "test".into(),
            timestamp: Time(1_000_000),
            slot_ms: 2_000,
            min_fee: 1,
            fee_recipient: None,
            nonce_rule: NonceRule::Increasing,
            block_txs_max: 2_000,
            block_bytes_max: 1 << 20,
            authorities: vec![Authority { address: Address::of(&key), public_key: key }],
            allocations: vec![Allocation { address: Address([3; 20]), balance: 7 }],
        }
    }

    #[test]
    fn a_genesis_reads_back_with_the_same_hash() {
        let genesis = genesis();
        assert_eq!(Genesis::parse(&genesis.to_json()).as_ref(), Ok(&genesis));
        let mut other = genesis.clone();
        other.min_fee = 2;
        assert_ne!(other.block().hash(), genesis.block().hash(), "every parameter is in the hash");
    }

    #[test]
    fn each_impossible_value_is_named() {
        type Change = fn(&mut Genesis);
        let cases: [(&str, Change); 9] = [
            ("format", |g| g.format = "aitbc".into()),
            ("chain_id", |g| g.chain_id = String::new()),
            ("chain_id", |g| g.chain_id = "x".repeat(65)),
            ("slot_ms", |g| g.slot_ms = 0),
            ("block_txs_max", |g| g.block_txs_max = 0),
            ("block_bytes_max", |g| g.block_bytes_max = 9 << 20),
            ("authorities", |g| g.authorities.clear()),
            ("authorities", |g| g.authorities[0].address = Address([9; 20])),
            ("allocations", |g| g.allocations.push(g.allocations[0].clone())),
        ];
        for (field, change) in cases {
            let mut genesis = genesis();
            change(&mut genesis);
            assert!(
                matches!(genesis.check(), Err(GenesisError::Field { field: named, .. }) if named == field),
                "{field}"
            );
        }
        let json = genesis().to_json().replace("\"slot_ms\"", "\"slot\"");
        assert!(Genesis::parse(&json).unwrap_err().to_string().contains("slot"));
    }
}
