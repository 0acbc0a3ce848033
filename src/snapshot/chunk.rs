//! The content of a chunk, and its compressed form. Headers and blocks are frames, a length in 4 bytes and as many bytes;
//! an account is its address, balance and nonce, and the rest of its key once it has sent something. Whatever comes from
//! elsewhere is read within bounds that are known before.

use sha2::{Digest, Sha256};

use super::manifest::{ChunkInfo, ChunkKind};
use crate::chain::{Account, Address, Block, Hash, Header, PublicKey, Signature};

/// Bytes of a chunk's content at most: a block of the largest size that a chain allows, after content that was just short
/// of being enough.
pub const CONTENT_BYTES_MAX: u64 = 16 << 20;

/// Bytes of content after which a chunk is complete.
pub const CONTENT_BYTES_TARGET: usize = 1 << 20;

/// How hard to compress: most of a chain is hashes and signatures, which no level makes smaller.
const LEVEL: i32 = 3;

/// An account as a snapshot has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotAccount {
    /// Whose.
    pub address: Address,
    /// What it has.
    pub account: Account,
    /// Its key, once it has sent something. No header commits to the part of it that is not in the address: a wrong one
    /// makes the node refuse transactions that come without their key, until the account sends one with it.
    pub public_key: Option<PublicKey>,
}

/// What was in a chunk.
pub enum Content {
    /// Headers with their signatures.
    Headers(Vec<(Header, Signature)>),
    /// Whole blocks.
    Blocks(Vec<Block>),
    /// Accounts.
    Accounts(Vec<SnapshotAccount>),
}

/// Bytes that a content of `content` bytes can take at most, stored.
pub fn stored_bytes_max(content: u64) -> u64 {
    content + (content >> 8) + 512
}

/// Compresses a content.
pub fn pack(content: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    compressor.include_checksum(true)?;
    compressor.compress(content)
}

/// The hash of a chunk as it is stored.
pub fn digest(stored: &[u8]) -> Hash {
    Hash(Sha256::digest(stored).into())
}

/// Whether `stored` is the chunk of `info`. Errors: in which way not.
pub fn check_stored(info: &ChunkInfo, stored: &[u8]) -> Result<(), String> {
    if stored.len() as u64 != info.bytes {
        return Err(format!("{} bytes, expected {}", stored.len(), info.bytes));
    }
    let got = digest(stored);
    if got != info.sha256 {
        return Err(format!("SHA-256 {got}, expected {}", info.sha256));
    }
    Ok(())
}

/// The content of a chunk, decompressed into as many bytes as the manifest says and no more.
pub fn unpack(info: &ChunkInfo, stored: &[u8]) -> Result<Vec<u8>, String> {
    check_stored(info, stored)?;
    let size = usize::try_from(info.content_bytes.min(CONTENT_BYTES_MAX)).expect("16 MiB");
    let content = zstd::bulk::decompress(stored, size).map_err(|error| format!("does not decompress: {error}"))?;
    if content.len() != size {
        return Err(format!("a content of {} bytes, expected {size}", content.len()));
    }
    Ok(content)
}

/// Appends a frame.
pub fn push_frame(content: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = content.len();
    content.extend_from_slice(&[0; 4]);
    write(content);
    let length = u32::try_from(content.len() - start - 4).expect("a block is smaller than 4 GiB");
    content[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends an account.
pub fn push_account(content: &mut Vec<u8>, account: &SnapshotAccount) {
    content.extend_from_slice(&account.address.0);
    content.extend_from_slice(&account.account.balance.to_be_bytes());
    content.extend_from_slice(&account.account.nonce.to_be_bytes());
    if let Some(key) = &account.public_key {
        content.extend_from_slice(&key.0[20..]);
    }
}

/// Reads the content of a chunk. Errors: what is wrong, and where.
pub fn decode(info: &ChunkInfo, content: &[u8]) -> Result<Content, String> {
    Ok(match info.kind {
        ChunkKind::Headers => Content::Headers(frames(info, content, decode_header)?),
        ChunkKind::Blocks => {
            let decode = |frame: &[u8]| Block::decode(frame).map_err(|error| error.to_string());
            Content::Blocks(frames(info, content, decode)?)
        }
        ChunkKind::Accounts => Content::Accounts(accounts(info, content)?),
    })
}

/// Reads a header and its signature that take up all of `bytes`.
pub fn decode_header(bytes: &[u8]) -> Result<(Header, Signature), String> {
    let (header, signature) = Header::decode_start(bytes).map_err(|error| error.to_string())?;
    let mut again = Vec::with_capacity(bytes.len());
    header.encode(&mut again);
    again.extend_from_slice(&signature.0);
    if again != bytes {
        return Err(format!("{} bytes, a header takes {}", bytes.len(), again.len()));
    }
    Ok((header, signature))
}

/// Reads `info.count` frames that take up all of `content`.
fn frames<T>(info: &ChunkInfo, content: &[u8], decode: impl Fn(&[u8]) -> Result<T, String>) -> Result<Vec<T>, String> {
    let mut items = Vec::new();
    let mut rest = content;
    while !rest.is_empty() {
        let item = info.first + items.len() as u64;
        let early = || format!("{item}: the content ends too early");
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(early)?;
        let (frame, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or_else(early)?;
        items.push(decode(frame).map_err(|reason| format!("{item}: {reason}"))?);
        rest = after;
    }
    counted(info, items)
}

fn accounts(info: &ChunkInfo, content: &[u8]) -> Result<Vec<SnapshotAccount>, String> {
    let mut accounts: Vec<SnapshotAccount> = Vec::with_capacity(content.len() / 36);
    let mut rest = content;
    while !rest.is_empty() {
        let early = || format!("account {}: the content ends too early", info.first + accounts.len() as u64);
        let address = Address(take(&mut rest).ok_or_else(early)?);
        let balance = u64::from_be_bytes(take(&mut rest).ok_or_else(early)?);
        let nonce = u64::from_be_bytes(take(&mut rest).ok_or_else(early)?);
        // Whose nonce has moved has sent something, and was seen with its key.
        let public_key = if nonce == 0 {
            None
        } else {
            let mut key = [0; 32];
            key[..20].copy_from_slice(&address.0);
            key[20..].copy_from_slice(&take::<12>(&mut rest).ok_or_else(early)?);
            let key = PublicKey(key);
            key.check_order().map_err(|error| format!("account {address}: {error}"))?;
            Some(key)
        };
        if let Some(before) = accounts.last().map(|account| account.address).filter(|before| *before >= address) {
            return Err(format!("account {address} comes after {before}"));
        }
        accounts.push(SnapshotAccount { address, account: Account { balance, nonce }, public_key });
    }
    counted(info, accounts)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = bytes.split_first_chunk()?;
    *bytes = after;
    Some(*taken)
}

fn counted<T>(info: &ChunkInfo, items: Vec<T>) -> Result<Vec<T>, String> {
    if items.len() as u64 != info.count {
        return Err(format!("holds {} {}, expected {}", items.len(), info.kind, info.count));
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sample::Sample;

    fn info(kind: ChunkKind, count: u64, content: &[u8], stored: &[u8]) -> ChunkInfo {
        let (content_bytes, bytes) = (content.len() as u64, stored.len() as u64);
        ChunkInfo { kind, first: 1, count, content_bytes, bytes, sha256: digest(stored) }
    }

    fn any_accounts() -> impl Strategy<Value = Vec<SnapshotAccount>> {
        let account = (any::<u64>(), prop_oneof![Just(0), any::<u64>()], any::<[u8; 12]>());
        prop::collection::btree_map(any::<[u8; 20]>(), account, 0..40).prop_map(|accounts| {
            let account = |(address, (balance, nonce, rest)): ([u8; 20], (u64, u64, [u8; 12]))| {
                let mut key = [0; 32];
                key[..20].copy_from_slice(&address);
                key[20..].copy_from_slice(&rest);
                let public_key = (nonce > 0).then_some(PublicKey(key));
                SnapshotAccount { address: Address(address), account: Account { balance, nonce }, public_key }
            };
            accounts.into_iter().map(account).collect()
        })
    }

    proptest! {
        #[test]
        fn accounts_read_back_and_their_cuts_do_not(accounts in any_accounts(), cut in any::<prop::sample::Index>()) {
            let mut content = Vec::new();
            accounts.iter().for_each(|account| push_account(&mut content, account));
            let stored = pack(&content).unwrap();
            let info = info(ChunkKind::Accounts, accounts.len() as u64, &content, &stored);
            prop_assert_eq!(unpack(&info, &stored).unwrap(), content.clone());
            match decode(&info, &content) {
                Ok(Content::Accounts(read)) => prop_assert_eq!(&read, &accounts),
                _ => prop_assert!(false, "accounts were written"),
            }
            if !content.is_empty() {
                prop_assert!(decode(&info, &content[..cut.index(content.len())]).is_err());
                prop_assert!(unpack(&info, &stored[..cut.index(stored.len())]).is_err());
            }
        }

        #[test]
        fn no_content_makes_a_reader_panic(content in prop::collection::vec(any::<u8>(), 0..600), count in 0_u64..9) {
            for kind in [ChunkKind::Headers, ChunkKind::Blocks, ChunkKind::Accounts] {
                let info = info(kind, count, &content, &content);
                let _ = decode(&info, &content);
                // As what is stored it is no better.
                let _ = unpack(&ChunkInfo { content_bytes: 300, ..info }, &content);
            }
        }

        #[test]
        fn changed_headers_and_blocks_have_one_reading_or_none(
            at in any::<prop::sample::Index>(), value in any::<u8>(), whole in any::<bool>(),
        ) {
            let blocks = Sample::new(1, 3).blocks(4, 2);
            let mut content = Vec::new();
            for block in &blocks {
                push_frame(&mut content, |frame| {
                    if whole {
                        block.encode(frame);
                    } else {
                        block.header.encode(frame);
                        frame.extend_from_slice(&block.signature.0);
                    }
                });
            }
            let kind = if whole { ChunkKind::Blocks } else { ChunkKind::Headers };
            let at = at.index(content.len());
            content[at] = value;
            let mut again = Vec::new();
            match decode(&info(kind, 4, &content, &content), &content) {
                Ok(Content::Blocks(read)) => {
                    read.iter().for_each(|block| push_frame(&mut again, |frame| block.encode(frame)));
                }
                Ok(Content::Headers(read)) => {
                    for (header, signature) in &read {
                        push_frame(&mut again, |frame| {
                            header.encode(frame);
                            frame.extend_from_slice(&signature.0);
                        });
                    }
                }
                _ => return Ok(()),
            }
            prop_assert_eq!(again, content);
        }
    }
}
