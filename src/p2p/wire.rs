//! What nodes say to each other beside gossip, as bytes. Numbers are big-endian; every message has one form, and
//! readers refuse every other.
//!
//! ```text
//! hello     genesis hash (32)  length (1) chain id  length (1) node id  head
//! head      height (8) hash (32)
//! request   0  which head                  answer   0 head
//!           1  first (8) last (8)                   1 head  length (4) blocks as in a binary range over HTTP
//!           2  length (4) transaction               2 transaction's hash (32)
//!                                                  14 asks to be left alone: milliseconds (4)
//!                                                  15 refuses: HTTP status (2)  length (1) reason
//! ```

use crate::chain::{Hash, Height, PAYLOAD_MAX_BYTES};
use crate::sync::HeightRange;

/// A block's place and name.
pub type HeadRef = (Height, Hash);

/// Bytes of a hello at most: both texts at their longest.
pub const HELLO_BYTES_MAX: usize = 32 + 1 + 64 + 1 + 64 + HEAD_BYTES;

/// Bytes of a transaction at most: the largest payload, and the rest.
pub const TRANSACTION_BYTES_MAX: usize = PAYLOAD_MAX_BYTES + 256;

const HEAD_BYTES: usize = 8 + 32;

/// Bytes of a refusal's reason at most.
const REASON_BYTES_MAX: usize = 200;

/// What both sides say first: who they are, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The hash of block 0.
    pub genesis_hash: Hash,
    /// The chain's name, at most 64 bytes.
    pub chain_id: String,
    /// Drawn at random when the process started, at most 64 bytes.
    pub node_id: String,
    /// The newest block.
    pub head: HeadRef,
}

/// What one node asks another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Its head.
    Head,
    /// Blocks, with their transactions.
    Range(HeightRange),
    /// To take a transaction, given as its bytes.
    Submit(Vec<u8>),
}

/// How an answer begins; of all but [`Answer::Blocks`] it is the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The head.
    Head(HeadRef),
    /// Blocks follow.
    Blocks {
        /// The head at that time.
        head: HeadRef,
        /// Bytes that follow.
        length: u32,
    },
    /// The transaction waits, or waited before.
    Submitted(Hash),
    /// Not now.
    Limited {
        /// When to ask again.
        retry_after_ms: u32,
    },
    /// No.
    Refused {
        /// As over HTTP.
        status: u16,
        /// Why.
        reason: String,
    },
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message: {0}")]
pub struct Malformed(pub &'static str);

type Result<T> = std::result::Result<T, Malformed>;

/// Takes bytes off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many bytes as asked for"))
    }

    fn head(&mut self) -> Result<HeadRef> {
        Ok((u64::from_be_bytes(self.array()?), Hash(self.array()?)))
    }

    fn text(&mut self, bytes_max: usize) -> Result<String> {
        let [length] = self.array()?;
        if usize::from(length) > bytes_max {
            return Err(Malformed("a text is too long"));
        }
        let text = std::str::from_utf8(self.take(length.into())?).map_err(|_| Malformed("a text is not UTF-8"))?;
        Ok(text.to_owned())
    }

    fn end<T>(self, read: T) -> Result<T> {
        if self.0.is_empty() { Ok(read) } else { Err(Malformed("bytes are left over")) }
    }
}

fn put_head(head: &HeadRef, out: &mut Vec<u8>) {
    out.extend_from_slice(&head.0.to_be_bytes());
    out.extend_from_slice(&head.1.0);
}

/// Writes `text`, cut between characters where it is longer than `bytes_max`.
fn put_text(text: &str, bytes_max: usize, out: &mut Vec<u8>) {
    let text = &text[..text.floor_char_boundary(bytes_max)];
    out.push(u8::try_from(text.len()).expect("at most 255 bytes"));
    out.extend_from_slice(text.as_bytes());
}

impl Hello {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.genesis_hash.0.to_vec();
        put_text(&self.chain_id, 64, &mut out);
        put_text(&self.node_id, 64, &mut out);
        put_head(&self.head, &mut out);
        out
    }

    /// Reads what takes up all of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader(bytes);
        let genesis_hash = Hash(reader.array()?);
        let (chain_id, node_id) = (reader.text(64)?, reader.text(64)?);
        let head = reader.head()?;
        reader.end(Self { genesis_hash, chain_id, node_id, head })
    }
}

impl Request {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Head => vec![0],
            Self::Range(range) => {
                let mut out = vec![1];
                out.extend_from_slice(&range.first.to_be_bytes());
                out.extend_from_slice(&range.last.to_be_bytes());
                out
            }
            Self::Submit(transaction) => {
                let mut out = vec![2];
                let length = u32::try_from(transaction.len()).expect("a transaction has at most some 64 KiB");
                out.extend_from_slice(&length.to_be_bytes());
                out.extend_from_slice(transaction);
                out
            }
        }
    }

    /// Reads what takes up all of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader(bytes);
        let [kind] = reader.array()?;
        let request = match kind {
            0 => Self::Head,
            1 => {
                let (first, last) = (u64::from_be_bytes(reader.array()?), u64::from_be_bytes(reader.array()?));
                if last < first {
                    return Err(Malformed("a range ends before it begins"));
                }
                Self::Range(HeightRange { first, last })
            }
            2 => {
                let length = u32::from_be_bytes(reader.array()?) as usize;
                if length > TRANSACTION_BYTES_MAX {
                    return Err(Malformed("a transaction is too long"));
                }
                Self::Submit(reader.take(length)?.to_vec())
            }
            _ => return Err(Malformed("an unknown kind of request")),
        };
        reader.end(request)
    }
}

/// Bytes of a request at most.
pub const REQUEST_BYTES_MAX: usize = 1 + 4 + TRANSACTION_BYTES_MAX;

impl Answer {
    /// Its bytes, less the blocks that follow.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        match self {
            Self::Head(head) => {
                out.push(0);
                put_head(head, &mut out);
            }
            Self::Blocks { head, length } => {
                out.push(1);
                put_head(head, &mut out);
                out.extend_from_slice(&length.to_be_bytes());
            }
            Self::Submitted(hash) => {
                out.push(2);
                out.extend_from_slice(&hash.0);
            }
            Self::Limited { retry_after_ms } => {
                out.push(14);
                out.extend_from_slice(&retry_after_ms.to_be_bytes());
            }
            Self::Refused { status, reason } => {
                out.push(15);
                out.extend_from_slice(&status.to_be_bytes());
                put_text(reason, REASON_BYTES_MAX, &mut out);
            }
        }
        out
    }

    /// How many bytes follow the first one at least; as many again as the last of them says, for a refusal.
    pub fn fixed_bytes(kind: u8) -> Result<usize> {
        match kind {
            0 => Ok(HEAD_BYTES),
            1 => Ok(HEAD_BYTES + 4),
            2 => Ok(32),
            14 => Ok(4),
            15 => Ok(3),
            _ => Err(Malformed("an unknown kind of answer")),
        }
    }

    /// Whether an answer that began with `kind` ends in a text whose length is the last of the fixed bytes.
    pub fn has_text(kind: u8) -> bool {
        kind == 15
    }

    /// Reads what takes up all of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader(bytes);
        let [kind] = reader.array()?;
        let answer = match kind {
            0 => Self::Head(reader.head()?),
            1 => Self::Blocks { head: reader.head()?, length: u32::from_be_bytes(reader.array()?) },
            2 => Self::Submitted(Hash(reader.array()?)),
            14 => Self::Limited { retry_after_ms: u32::from_be_bytes(reader.array()?) },
            15 => Self::Refused { status: u16::from_be_bytes(reader.array()?), reason: reader.text(REASON_BYTES_MAX)? },
            _ => return Err(Malformed("an unknown kind of answer")),
        };
        reader.end(answer)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head() -> impl Strategy<Value = HeadRef> {
        (any::<u64>(), any::<[u8; 32]>()).prop_map(|(height, hash)| (height, Hash(hash)))
    }

    fn hello() -> impl Strategy<Value = Hello> {
        (any::<[u8; 32]>(), "[a-zé]{0,32}", "[0-9a-f]{0,64}", head())
            .prop_map(|(hash, chain_id, node_id, head)| Hello { genesis_hash: Hash(hash), chain_id, node_id, head })
    }

    pub fn request() -> impl Strategy<Value = Request> {
        prop_oneof![
            Just(Request::Head),
            (any::<u64>(), any::<u64>())
                .prop_map(|(a, b)| Request::Range(HeightRange { first: a.min(b), last: a.max(b) })),
            prop::collection::vec(any::<u8>(), 0..300).prop_map(Request::Submit),
        ]
    }

    pub fn answer() -> impl Strategy<Value = Answer> {
        prop_oneof![
            head().prop_map(Answer::Head),
            (head(), any::<u32>()).prop_map(|(head, length)| Answer::Blocks { head, length }),
            any::<[u8; 32]>().prop_map(|hash| Answer::Submitted(Hash(hash))),
            any::<u32>().prop_map(|retry_after_ms| Answer::Limited { retry_after_ms }),
            (any::<u16>(), "[ -~é]{0,100}").prop_map(|(status, reason)| Answer::Refused { status, reason }),
        ]
    }

    /// One form, and nothing shorter or longer is read.
    fn has_one_form<T: PartialEq + std::fmt::Debug>(
        bytes: &[u8],
        value: &T,
        cut: prop::sample::Index,
        decode: impl Fn(&[u8]) -> Result<T>,
    ) -> std::result::Result<(), TestCaseError> {
        let read = decode(bytes);
        prop_assert_eq!(read.as_ref(), Ok(value));
        prop_assert!(decode(&bytes[..cut.index(bytes.len())]).is_err());
        prop_assert!(decode(&[bytes, &[0]].concat()).is_err());
        Ok(())
    }

    proptest! {
        #[test]
        fn every_message_has_one_form(
            hello in hello(), request in request(), answer in answer(), cut in any::<prop::sample::Index>(),
        ) {
            prop_assert!(hello.encode().len() <= HELLO_BYTES_MAX && request.encode().len() <= REQUEST_BYTES_MAX);
            has_one_form(&hello.encode(), &hello, cut, Hello::decode)?;
            has_one_form(&request.encode(), &request, cut, Request::decode)?;
            has_one_form(&answer.encode(), &answer, cut, Answer::decode)?;
        }

        #[test]
        fn any_bytes_are_read_without_harm_and_what_reads_was_written_like_that(
            bytes in prop::collection::vec(any::<u8>(), 0..260),
            kind in prop::option::of(0..16_u8),
        ) {
            let mut bytes = bytes;
            if let (Some(kind), Some(first)) = (kind, bytes.first_mut()) {
                *first = kind;
            }
            if let Ok(hello) = Hello::decode(&bytes) {
                prop_assert_eq!(hello.encode(), &bytes[..]);
            }
            if let Ok(request) = Request::decode(&bytes) {
                prop_assert_eq!(request.encode(), &bytes[..]);
            }
            if let Ok(answer) = Answer::decode(&bytes) {
                prop_assert_eq!(answer.encode(), &bytes[..]);
            }
        }

        #[test]
        fn a_long_reason_is_cut_between_characters(reason in "[aé€]{0,200}") {
            let bytes = Answer::Refused { status: 400, reason: reason.clone() }.encode();
            let Ok(Answer::Refused { reason: read, .. }) = Answer::decode(&bytes) else { panic!("a refusal") };
            prop_assert!(reason.starts_with(&read) && (read == reason || read.len() + 3 > REASON_BYTES_MAX));
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let mut turned = Request::Range(HeightRange { first: 1, last: 5 }).encode();
        turned[8] = 9;
        assert_eq!(Request::decode(&turned), Err(Malformed("a range ends before it begins")));
        let mut long = vec![2];
        long.extend_from_slice(&u32::try_from(TRANSACTION_BYTES_MAX + 1).unwrap().to_be_bytes());
        assert_eq!(Request::decode(&long), Err(Malformed("a transaction is too long")));
        assert!(Request::decode(&[3]).is_err() && Answer::decode(&[3]).is_err() && Answer::fixed_bytes(3).is_err());
    }
}
