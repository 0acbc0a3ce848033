//! Blocks. A block always has its transactions with it; one whose signatures hold is another type.

use super::{Address, Hash, Height, SecretKey, Signature, Time, Transaction, format, merkle};

/// All that a block's hash commits to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version of the format; 1.
    pub version: u32,
    /// Which chain, at most 64 bytes.
    pub chain_id: String,
    /// Blocks below it.
    pub height: Height,
    /// The block it builds on; for genesis the digest of the genesis parameters.
    pub parent_hash: Hash,
    /// When it was made: later than its parent.
    pub timestamp: Time,
    /// The authority that made it; for genesis zeros.
    pub proposer: Address,
    /// How many transactions it has.
    pub tx_count: u32,
    /// Merkle root over its transactions, see [`super::merkle`].
    pub tx_root: Hash,
    /// Root of the state after it, see [`super::State`].
    pub state_root: Hash,
}

/// A block as it comes from outside: nothing in it has been checked but its form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// What its hash commits to.
    pub header: Header,
    /// The proposer's, over [`format::proposal`]; for genesis zeros.
    pub signature: Signature,
    /// Its transactions, in the order they are executed.
    pub transactions: Vec<Transaction>,
}

/// A block whose hash, counts, roots and signatures hold, whoever sent it. What it needs from its parent and the state
/// is checked at import. Made by [`super::verify`] and nobody else.
#[derive(Clone, Debug)]
pub struct VerifiedBlock {
    pub(super) block: Block,
    pub(super) hash: Hash,
    pub(super) transaction_hashes: Vec<Hash>,
}

impl Header {
    /// The block's identity.
    pub fn hash(&self) -> Hash {
        format::block_hash(self)
    }
}

impl Block {
    /// Its identity.
    pub fn hash(&self) -> Hash {
        self.header.hash()
    }

    /// The hashes of its transactions, and the root that these make with their keys and signatures: the header's, in a
    /// block of which nothing was changed since it was signed.
    pub fn transaction_root(&self) -> (Vec<Hash>, Hash) {
        let hashes: Vec<Hash> = self.transactions.iter().map(|tx| tx.hash(&self.header.chain_id)).collect();
        let leaves: Vec<_> =
            self.transactions.iter().zip(&hashes).map(|(tx, hash)| format::transaction_leaf(hash, tx)).collect();
        (hashes, merkle::root(&leaves))
    }

    /// Signs `header` as its proposer.
    pub fn signed(header: Header, transactions: Vec<Transaction>, key: &SecretKey) -> Self {
        let signature = key.sign(&format::proposal(&header.hash()));
        Self { header, signature, transactions }
    }
}

impl VerifiedBlock {
    /// The block.
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// The block, as something unverified again.
    pub fn into_block(self) -> Block {
        self.block
    }

    /// Its hash, computed once.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Its height.
    pub fn height(&self) -> Height {
        self.block.header.height
    }

    /// Its transactions' hashes, in order.
    pub fn transaction_hashes(&self) -> &[Hash] {
        &self.transaction_hashes
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::{Kind, Payload, PublicKey};
    use super::*;
    use proptest::prelude::*;

    pub fn any_transaction() -> impl Strategy<Value = Transaction> {
        let payload = prop_oneof![
            Just(Payload::Absent),
            any::<String>().prop_map(Payload::Text),
            any::<String>().prop_map(|text| Payload::object(&serde_json::json!({ "k": text }).to_string()).unwrap()),
        ];
        let kind = prop_oneof![Just(Kind::Unsaid), Just(Kind::Transfer), Just(Kind::Message)];
        let numbers = (any::<u64>(), any::<u64>(), any::<u64>());
        (kind, payload, numbers, any::<[u8; 20]>(), any::<[u8; 32]>(), any::<[u8; 32]>()).prop_map(
            |(kind, payload, (amount, fee, nonce), to, key, half)| {
                let mut signature = [0; 64];
                signature[..32].copy_from_slice(&half);
                Transaction {
                    kind,
                    to: Address(to),
                    amount,
                    fee,
                    nonce,
                    payload,
                    public_key: PublicKey(key),
                    signature: Signature(signature),
                }
            },
        )
    }

    pub fn any_block() -> impl Strategy<Value = Block> {
        let header = (".{0,16}", any::<u64>(), any::<u64>(), any::<[u8; 32]>(), any::<[u8; 20]>());
        (header, prop::collection::vec(any_transaction(), 0..6)).prop_map(
            |((chain_id, height, time, bytes, proposer), transactions)| Block {
                header: Header {
                    version: 1,
                    chain_id: chain_id.chars().take(16).collect(),
                    height,
                    parent_hash: Hash(bytes),
                    timestamp: Time(time),
                    proposer: Address(proposer),
                    tx_count: transactions.len() as u32,
                    tx_root: Hash::of(&[&bytes]),
                    state_root: Hash::of(&[&proposer]),
                },
                signature: Signature([7; 64]),
                transactions,
            },
        )
    }

    proptest! {
        #[test]
        fn the_hash_commits_to_every_field(block in any_block()) {
            let hash = block.hash();
            let changes: [fn(&mut Header); 9] = [
                |h| h.version += 1,
                |h| h.chain_id.push('x'),
                |h| h.height ^= 1,
                |h| h.parent_hash.0[0] ^= 1,
                |h| h.timestamp.0 ^= 1,
                |h| h.proposer.0[19] ^= 1,
                |h| h.tx_count ^= 1,
                |h| h.tx_root.0[31] ^= 1,
                |h| h.state_root.0[5] ^= 1,
            ];
            for change in changes {
                let mut changed = block.header.clone();
                change(&mut changed);
                prop_assert_ne!(changed.hash(), hash);
            }
        }
    }
}
