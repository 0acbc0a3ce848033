//! Headers without their blocks: what a chain's beginning is to a node that does not keep it. One is worth as much as its
//! proposer's signature, which is checked; what is in the block stays unknown.

use ed25519_zebra::batch;

use super::{BlockError, Genesis, Hash, Head, Header, Signature, format, rules};

/// A header that an authority of the chain signed in its turn, and its hash. Made by [`verify_headers`] and nobody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedHeader {
    header: Header,
    signature: Signature,
    hash: Hash,
}

impl VerifiedHeader {
    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The proposer's signature.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Its hash, computed once.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// As the head that a chain builds on.
    pub fn head(&self) -> Head {
        let Header { height, parent_hash, timestamp, tx_count, state_root, .. } = self.header;
        Head { height, hash: self.hash, parent_hash, timestamp, tx_count, state_root }
    }

    /// The bytes of header and signature, as a block begins with them.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.header.encode(out);
        out.extend_from_slice(&self.signature.0);
    }
}

/// Checks headers by themselves: version, chain, turn and signature; whether one follows the other is
/// [`rules::check_child`]'s. The signatures are checked in one batch. Errors: the first that does not hold, with its place.
pub fn verify_headers(
    headers: Vec<(Header, Signature)>,
    genesis: &Genesis,
) -> Result<Vec<VerifiedHeader>, (usize, BlockError)> {
    let mut verified = Vec::with_capacity(headers.len());
    let mut verifier = batch::Verifier::new();
    for (index, (header, signature)) in headers.into_iter().enumerate() {
        rules::check_header(&header, genesis).map_err(|error| (index, error))?;
        let hash = header.hash();
        let authority = genesis.authority_at(header.timestamp);
        verifier.queue((authority.public_key.zebra(), signature.zebra(), &format::proposal(&hash)));
        verified.push(VerifiedHeader { header, signature, hash });
    }
    if verified.is_empty() || verifier.verify(rand::rng()).is_ok() {
        return Ok(verified);
    }
    let is_signed = |header: &VerifiedHeader| {
        let authority = genesis.authority_at(header.header.timestamp);
        authority.public_key.verifies(&format::proposal(&header.hash), &header.signature)
    };
    match verified.iter().position(|header| !is_signed(header)) {
        Some(index) => Err((index, BlockError::Signature)),
        None => Ok(verified),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{Block, SecretKey};
    use crate::sample::Sample;

    fn headers(blocks: &[Block]) -> Vec<(Header, Signature)> {
        blocks.iter().map(|block| (block.header.clone(), block.signature)).collect()
    }

    #[test]
    fn one_bad_header_is_named_among_many() {
        let mut sample = Sample::new(3, 2);
        let blocks = sample.blocks(40, 1);
        let verified = verify_headers(headers(&blocks), sample.genesis()).unwrap();
        assert!(verified.iter().zip(&blocks).all(|(header, block)| header.hash() == block.hash()));
        assert_eq!(&verified[39].head(), sample.head());
        assert_eq!(verify_headers(Vec::new(), sample.genesis()), Ok(Vec::new()));

        let mut forged = headers(&blocks);
        forged[17].1 = SecretKey::from_seed([9; 32]).sign(&format::proposal(&blocks[17].hash()));
        assert_eq!(verify_headers(forged, sample.genesis()), Err((17, BlockError::Signature)));
        let mut foreign = headers(&blocks);
        foreign[5].0.chain_id = "other".into();
        assert!(matches!(verify_headers(foreign, sample.genesis()), Err((5, BlockError::ChainId { .. }))));
        let mut changed = headers(&blocks);
        changed[0].0.state_root.0[0] ^= 1;
        assert_eq!(verify_headers(changed, sample.genesis()), Err((0, BlockError::Signature)));
    }
}
