//! The bytes of a block, as the store keeps them and ranges carry them. One block has one encoding: numbers in the
//! shortest form, nothing left over; the reader refuses every other.

use super::{Address, Block, Hash, Header, Kind, Payload, PublicKey, Signature, Time, Transaction};

/// Why bytes are not a block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {what}")]
pub struct DecodeError {
    /// Where in the input.
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
}

impl Block {
    /// Appends the block's bytes: header, signature, transactions.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.header.encode(out);
        out.extend_from_slice(&self.signature.0);
        for transaction in &self.transactions {
            encode_transaction(transaction, out);
        }
    }

    /// Reads one block that takes up all of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader { bytes, at: 0 };
        let header = Header::read(&mut reader)?;
        let signature = Signature(reader.array()?);
        // A transaction takes 121 bytes and more, so a false count cannot make us reserve much.
        let mut transactions = Vec::with_capacity((header.tx_count as usize).min(bytes.len() / 121));
        for _ in 0..header.tx_count {
            transactions.push(read_transaction(&mut reader)?);
        }
        if reader.at != bytes.len() {
            return Err(reader.error("bytes left over"));
        }
        Ok(Self { header, signature, transactions })
    }
}

impl Header {
    /// Appends the header's bytes: what [`super::format::block_hash`] hashes. Fixed order, big-endian.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.version.to_be_bytes());
        out.push(u8::try_from(self.chain_id.len()).expect("a chain id has at most 64 bytes"));
        out.extend_from_slice(self.chain_id.as_bytes());
        out.extend_from_slice(&self.height.to_be_bytes());
        out.extend_from_slice(&self.parent_hash.0);
        out.extend_from_slice(&self.timestamp.0.to_be_bytes());
        out.extend_from_slice(&self.proposer.0);
        out.extend_from_slice(&self.tx_count.to_be_bytes());
        out.extend_from_slice(&self.tx_root.0);
        out.extend_from_slice(&self.state_root.0);
    }

    /// Reads the header at the start of a block's bytes, and leaves the rest alone.
    pub fn decode_start(bytes: &[u8]) -> Result<(Self, Signature), DecodeError> {
        let mut reader = Reader { bytes, at: 0 };
        Ok((Self::read(&mut reader)?, Signature(reader.array()?)))
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let version = u32::from_be_bytes(reader.array()?);
        let [len] = reader.array()?;
        let chain_id = reader.text(usize::from(len))?;
        Ok(Self {
            version,
            chain_id,
            height: u64::from_be_bytes(reader.array()?),
            parent_hash: Hash(reader.array()?),
            timestamp: Time(u64::from_be_bytes(reader.array()?)),
            proposer: Address(reader.array()?),
            tx_count: u32::from_be_bytes(reader.array()?),
            tx_root: Hash(reader.array()?),
            state_root: Hash(reader.array()?),
        })
    }
}

impl Transaction {
    /// The transaction's bytes alone, for queues that survive a restart.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(160 + self.payload.len());
        encode_transaction(self, &mut out);
        out
    }

    /// Reads what [`Transaction::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader { bytes, at: 0 };
        let transaction = read_transaction(&mut reader)?;
        if reader.at != bytes.len() {
            return Err(reader.error("bytes left over"));
        }
        Ok(transaction)
    }
}

fn encode_transaction(transaction: &Transaction, out: &mut Vec<u8>) {
    let kind = match transaction.kind {
        Kind::Unsaid => 0,
        Kind::Transfer => 1,
        Kind::Message => 2,
    };
    let (form, payload) = match &transaction.payload {
        Payload::Absent => (0, ""),
        Payload::Text(text) => (1, text.as_str()),
        Payload::Object(json) => (2, json.as_str()),
    };
    out.push(kind | form << 4);
    out.extend_from_slice(&transaction.public_key.0);
    out.extend_from_slice(&transaction.signature.0);
    out.extend_from_slice(&transaction.to.0);
    for number in [transaction.amount, transaction.fee, transaction.nonce] {
        write_number(number, out);
    }
    if form != 0 {
        write_number(payload.len() as u64, out);
        out.extend_from_slice(payload.as_bytes());
    }
}

fn read_transaction(reader: &mut Reader<'_>) -> Result<Transaction, DecodeError> {
    let [tag] = reader.array()?;
    let kind = match tag & 0x0f {
        0 => Kind::Unsaid,
        1 => Kind::Transfer,
        2 => Kind::Message,
        _ => return Err(reader.error("unknown kind of transaction")),
    };
    let public_key = PublicKey(reader.array()?);
    let signature = Signature(reader.array()?);
    let to = Address(reader.array()?);
    let (amount, fee, nonce) = (reader.number()?, reader.number()?, reader.number()?);
    let payload = match tag >> 4 {
        0 => Payload::Absent,
        form @ (1 | 2) => {
            let len = usize::try_from(reader.number()?).map_err(|_| reader.error("length out of range"))?;
            let text = reader.text(len)?;
            if form == 1 { Payload::Text(text) } else { object(text, reader)? }
        }
        _ => return Err(reader.error("unknown form of payload")),
    };
    Ok(Transaction { kind, to, amount, fee, nonce, payload, public_key, signature })
}

/// An object payload must come in its one spelling, or two encodings would carry the same signature.
fn object(text: String, reader: &Reader<'_>) -> Result<Payload, DecodeError> {
    match Payload::object(&text) {
        Ok(Payload::Object(canonical)) if canonical == text => Ok(Payload::Object(text)),
        _ => Err(reader.error("a payload object is not in its canonical spelling")),
    }
}

/// LEB128: seven bits a byte, lowest first.
fn write_number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn error(&self, what: &'static str) -> DecodeError {
        DecodeError { at: self.at, what }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let chunk = self.bytes[self.at..].first_chunk().ok_or_else(|| self.error("the input ends too early"))?;
        self.at += N;
        Ok(*chunk)
    }

    fn text(&mut self, len: usize) -> Result<String, DecodeError> {
        let bytes = self.bytes[self.at..].get(..len).ok_or_else(|| self.error("the input ends too early"))?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.error("not UTF-8"))?;
        self.at += len;
        Ok(text.to_owned())
    }

    fn number(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(self.error("a number above 64 bits"));
            }
            number |= bits << shift;
            if byte < 0x80 {
                if byte == 0 && shift > 0 {
                    return Err(self.error("a number not in its shortest form"));
                }
                return Ok(number);
            }
        }
        Err(self.error("a number above 64 bits"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::block::tests::any_block;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_block_reads_back_and_its_cuts_do_not(block in any_block(), cut in any::<prop::sample::Index>()) {
            let mut bytes = Vec::new();
            block.encode(&mut bytes);
            prop_assert_eq!(&Block::decode(&bytes).unwrap(), &block);
            prop_assert!(Block::decode(&bytes[..cut.index(bytes.len())]).is_err());
            bytes.push(0);
            prop_assert!(Block::decode(&bytes).is_err());
        }

        #[test]
        fn changed_bytes_never_panic_and_have_one_reading(
            block in any_block(), at in any::<prop::sample::Index>(), value in any::<u8>(),
        ) {
            let mut bytes = Vec::new();
            block.encode(&mut bytes);
            let at = at.index(bytes.len());
            bytes[at] = value;
            if let Ok(read) = Block::decode(&bytes) {
                let mut again = Vec::new();
                read.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Block::decode(&bytes);
            let _ = Transaction::from_bytes(&bytes);
        }

        #[test]
        fn numbers_have_one_form(number in any::<u64>()) {
            let mut bytes = Vec::new();
            write_number(number, &mut bytes);
            prop_assert_eq!(Reader { bytes: &bytes, at: 0 }.number(), Ok(number));
            let last = bytes.len() - 1;
            bytes[last] |= 0x80;
            bytes.push(0);
            let longer = Reader { bytes: &bytes, at: 0 }.number();
            prop_assert!(longer.is_err());
        }
    }
}
