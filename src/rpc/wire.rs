//! Blocks and transactions as JSON, both ways. The names on the wire stand here and nowhere else.
//!
//! A block that was served can be handed in again as it is: its transactions carry what was signed, and `tx_hash` beside
//! it, which a reader may ignore. Lists of transactions serve another, flat form, with every name that existing clients
//! look for; in it, `transaction` is the signed one.

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::error::{ApiError, Result};
use super::request::{shown, whole_number};
use crate::chain::{
    Address, Block, Hash, Header, Height, Payload, PublicKey, Signature, Submission, Time, Transaction,
};
use crate::storage::{Cursor, StoredTransaction};

/// A block, with its transactions or without.
#[derive(Serialize)]
pub struct BlockJson<'a> {
    height: Height,
    hash: Hash,
    parent_hash: Hash,
    timestamp: Time,
    proposer: Address,
    tx_count: u32,
    tx_root: Hash,
    state_root: Hash,
    chain_id: &'a str,
    version: u32,
    signature: Signature,
    #[serde(skip_serializing_if = "Option::is_none")]
    transactions: Option<Vec<TransactionJson<'a>>>,
}

impl<'a> BlockJson<'a> {
    /// A whole block.
    pub fn whole(block: &'a Block) -> Self {
        let transactions = block
            .transactions
            .iter()
            .map(|transaction| TransactionJson::new(transaction, &block.header.chain_id))
            .collect();
        Self { transactions: Some(transactions), ..Self::header(&block.header, block.signature) }
    }

    /// A block without its transactions.
    pub fn header(header: &'a Header, signature: Signature) -> Self {
        Self {
            height: header.height,
            hash: header.hash(),
            parent_hash: header.parent_hash,
            timestamp: header.timestamp,
            proposer: header.proposer,
            tx_count: header.tx_count,
            tx_root: header.tx_root,
            state_root: header.state_root,
            chain_id: &header.chain_id,
            version: header.version,
            signature,
            transactions: None,
        }
    }
}

/// A transaction as its sender signed it, and its hash.
#[derive(Serialize)]
pub struct TransactionJson<'a> {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    chain_id: &'a str,
    from: Address,
    to: Address,
    amount: u64,
    fee: u64,
    nonce: u64,
    #[serde(skip_serializing_if = "PayloadJson::is_absent")]
    payload: PayloadJson<'a>,
    public_key: PublicKey,
    signature: Signature,
    tx_hash: Hash,
}

impl<'a> TransactionJson<'a> {
    /// A transaction on the chain `chain_id`.
    pub fn new(transaction: &'a Transaction, chain_id: &'a str) -> Self {
        Self::with_hash(transaction, chain_id, transaction.hash(chain_id))
    }

    /// The same where the hash is known already.
    pub fn with_hash(transaction: &'a Transaction, chain_id: &'a str, tx_hash: Hash) -> Self {
        Self {
            kind: transaction.kind.name(),
            chain_id,
            from: transaction.from(),
            to: transaction.to,
            amount: transaction.amount,
            fee: transaction.fee,
            nonce: transaction.nonce,
            payload: PayloadJson(&transaction.payload),
            public_key: transaction.public_key,
            signature: transaction.signature,
            tx_hash,
        }
    }
}

struct PayloadJson<'a>(&'a Payload);

impl PayloadJson<'_> {
    fn is_absent(&self) -> bool {
        matches!(self.0, Payload::Absent)
    }
}

impl Serialize for PayloadJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Payload::Absent => serializer.serialize_none(),
            Payload::Text(text) => serializer.serialize_str(text),
            Payload::Object(json) => {
                serde_json::from_str::<&RawValue>(json).map_err(serde::ser::Error::custom)?.serialize(serializer)
            }
        }
    }
}

/// Where a transaction is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a block.
    Confirmed {
        /// Its height.
        height: Height,
        /// The transaction's place in it.
        position: u32,
        /// Its hash.
        block_hash: Hash,
        /// Its time.
        timestamp: Time,
    },
    /// In the mempool.
    Pending {
        /// When it came.
        received: Time,
    },
}

/// A transaction in a list: flat, under all the names that clients know.
#[derive(Serialize)]
pub struct ListedTransaction<'a> {
    hash: Hash,
    tx_hash: Hash,
    transaction_hash: Hash,
    status: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    is_message: bool,
    chain_id: &'a str,
    from: Address,
    to: Address,
    sender: Address,
    recipient: Address,
    amount: u64,
    value: u64,
    fee: u64,
    nonce: u64,
    payload: PayloadJson<'a>,
    block_height: Option<Height>,
    block_hash: Option<Hash>,
    position: Option<u32>,
    timestamp: Time,
    created_at: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
    transaction: TransactionJson<'a>,
}

impl<'a> ListedTransaction<'a> {
    /// A transaction at `place`.
    pub fn new(transaction: &'a Transaction, hash: Hash, chain_id: &'a str, place: &Place) -> Self {
        let (from, to) = (transaction.from(), transaction.to);
        let (status, created_at, at) = match *place {
            Place::Confirmed { height, position, block_hash, timestamp } => {
                ("confirmed", timestamp, Some((height, position, block_hash)))
            }
            Place::Pending { received } => ("pending", received, None),
        };
        Self {
            hash,
            tx_hash: hash,
            transaction_hash: hash,
            status,
            kind: transaction.kind.name().unwrap_or("transfer"),
            is_message: transaction.is_message(),
            chain_id,
            from,
            to,
            sender: from,
            recipient: to,
            amount: transaction.amount,
            value: transaction.amount,
            fee: transaction.fee,
            nonce: transaction.nonce,
            payload: PayloadJson(&transaction.payload),
            block_height: at.map(|(height, ..)| height),
            block_hash: at.map(|(.., hash)| hash),
            position: at.map(|(_, position, _)| position),
            timestamp: created_at,
            created_at,
            cursor: at.map(|(height, position, _)| Cursor { height, position }.to_string()),
            transaction: TransactionJson::with_hash(transaction, chain_id, hash),
        }
    }

    /// One out of a block.
    pub fn stored(stored: &'a StoredTransaction, chain_id: &'a str) -> Self {
        let place = Place::Confirmed {
            height: stored.height,
            position: stored.position,
            block_hash: stored.block_hash,
            timestamp: stored.timestamp,
        };
        Self::new(&stored.transaction, stored.hash, chain_id, &place)
    }
}

/// Fields that a served transaction has beside the signed ones; they may come back.
const SERVED_BESIDE: [&str; 1] = ["tx_hash"];

/// Reads a transaction that a client hands in.
pub fn parse_submission(json: &str) -> Result<Submission> {
    Ok(Submission::parse_with(json, &SERVED_BESIDE)?)
}

/// Reads a block, in the form in which blocks are served. Errors name the first field that is missing, unknown, of the
/// wrong type, or (`hash`) not what the others make.
pub fn parse_block(json: &str) -> Result<Block> {
    const FIELDS: [&str; 12] = [
        "version",
        "chain_id",
        "height",
        "parent_hash",
        "timestamp",
        "proposer",
        "tx_count",
        "tx_root",
        "state_root",
        "hash",
        "signature",
        "transactions",
    ];
    let Fields(fields) = serde_json::from_str(json)
        .map_err(|error| ApiError::invalid(format!("the body is not a block, a JSON object: {error}")))?;
    if let Some(name) = fields.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        return Err(ApiError::invalid(format!("unknown field `{}`", shown(name))));
    }
    let fields = |name: &'static str| fields.get(name).copied().ok_or_else(|| ApiError::field(name, "is missing"));
    let header = Header {
        version: small(&fields, "version")?,
        chain_id: text(&fields, "chain_id")?,
        height: number(&fields, "height")?,
        parent_hash: parsed(&fields, "parent_hash")?,
        timestamp: parsed(&fields, "timestamp")?,
        proposer: parsed(&fields, "proposer")?,
        tx_count: small(&fields, "tx_count")?,
        tx_root: parsed(&fields, "tx_root")?,
        state_root: parsed(&fields, "state_root")?,
    };
    if header.chain_id.len() > 64 {
        return Err(ApiError::field("chain_id", format!("{} bytes, at most 64 are allowed", header.chain_id.len())));
    }
    let signature = parsed(&fields, "signature")?;
    let got: Hash = parsed(&fields, "hash")?;
    let json = fields("transactions")?.get();
    let items: Vec<&RawValue> = serde_json::from_str(json)
        .map_err(|_| ApiError::field("transactions", format!("expected an array, got {}", shown(json))))?;
    let transactions = items
        .iter()
        .enumerate()
        .map(|(index, item)| transaction(item.get(), index, &header.chain_id))
        .collect::<Result<Vec<_>>>()?;
    let expected = header.hash();
    if got != expected {
        return Err(crate::chain::BlockError::Hash { expected, got }.into());
    }
    Ok(Block { header, signature, transactions })
}

fn transaction(json: &str, index: usize, chain_id: &str) -> Result<Transaction> {
    let wrong = |reason: String| ApiError::field(&format!("transactions[{index}]"), reason);
    let submission = Submission::parse_with(json, &SERVED_BESIDE).map_err(|error| wrong(error.to_string()))?;
    if submission.chain_id != chain_id {
        let got = shown(&submission.chain_id);
        return Err(wrong(format!("field `chain_id`: the block's is `{}`, got `{got}`", shown(chain_id))));
    }
    if submission.public_key.is_none() {
        return Err(wrong("field `public_key` is missing".into()));
    }
    submission.into_transaction(None).map_err(|error| wrong(error.to_string()))
}

/// The fields of a JSON object, values as their text. A name that comes twice is an error.
struct Fields<'a>(BTreeMap<String, &'a RawValue>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    if fields.contains_key(&name) {
                        return Err(serde::de::Error::custom(format_args!("field `{}` comes twice", shown(&name))));
                    }
                    fields.insert(name, value);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Finds a field's JSON text by its name.
type Find<'f, 'a> = &'f dyn Fn(&'static str) -> Result<&'a RawValue>;

fn number(fields: Find<'_, '_>, name: &'static str) -> Result<u64> {
    whole_number(fields(name)?.get()).map_err(|reason| ApiError::field(name, reason))
}

fn small(fields: Find<'_, '_>, name: &'static str) -> Result<u32> {
    let number = number(fields, name)?;
    u32::try_from(number)
        .map_err(|_| ApiError::field(name, format!("{number} is above the largest value, {}", u32::MAX)))
}

fn text(fields: Find<'_, '_>, name: &'static str) -> Result<String> {
    let json = fields(name)?.get();
    serde_json::from_str(json).map_err(|_| ApiError::field(name, format!("expected a string, got {}", shown(json))))
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(fields: Find<'_, '_>, name: &'static str) -> Result<T> {
    text(fields, name)?.parse().map_err(|error| ApiError::field(name, error))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chain::{Kind, SecretKey};

    fn block(transactions: Vec<Transaction>) -> Block {
        let header = Header {
            version: 1,
            chain_id: "c".into(),
            height: 7,
            parent_hash: Hash::of(&[b"parent"]),
            timestamp: Time(1_775_826_000_000_123),
            proposer: Address([3; 20]),
            tx_count: transactions.len() as u32,
            tx_root: Hash::of(&[b"root"]),
            state_root: Hash::of(&[b"state"]),
        };
        Block::signed(header, transactions, &SecretKey::from_seed([1; 32]))
    }

    fn payload() -> impl Strategy<Value = Payload> {
        prop_oneof![
            Just(Payload::Absent),
            any::<String>().prop_map(Payload::Text),
            any::<String>()
                .prop_map(|text| Payload::object(&serde_json::json!({ "k": [text] }).to_string()).expect("JSON")),
        ]
    }

    fn any_transaction() -> impl Strategy<Value = Transaction> {
        let kind = prop::sample::select(vec![Kind::Unsaid, Kind::Transfer, Kind::Message]);
        (kind, payload(), any::<(u64, u64, u64)>(), any::<[u8; 32]>()).prop_map(
            |(kind, payload, (amount, fee, nonce), seed)| {
                Transaction::new(kind, Address([9; 20]), amount, fee, nonce, payload)
                    .signed("c", &SecretKey::from_seed(seed))
            },
        )
    }

    fn changed(field: &str, value: serde_json::Value) -> String {
        let mut json = serde_json::to_value(BlockJson::whole(&block(Vec::new()))).unwrap();
        json.as_object_mut().unwrap().insert(field.into(), value);
        json.to_string()
    }

    #[test]
    fn each_wrong_field_of_a_block_is_named() {
        use serde_json::json;
        for (field, value) in [
            ("height", json!(-1)),
            ("height", json!(1.5)),
            ("height", json!(7.0)),
            ("height", json!(true)),
            ("height", json!("7")),
            ("height", json!(null)),
            ("height", json!(1e30)),
            ("version", json!(4_294_967_296_u64)),
            ("tx_count", json!(-0.5)),
            ("chain_id", json!(5)),
            ("chain_id", json!("x".repeat(65))),
            ("parent_hash", json!("0x12")),
            ("parent_hash", json!(0)),
            ("timestamp", json!("yesterday")),
            ("timestamp", json!(1_775_826_000)),
            ("proposer", json!("me")),
            ("tx_root", json!([])),
            ("state_root", json!({})),
            ("signature", json!("ab")),
            ("hash", json!(Hash::ZERO)),
            ("transactions", json!(null)),
            ("transactions", json!({})),
            ("transactions[0]", json!(null)),
            ("miner", json!("x")),
        ] {
            let error = match field {
                "transactions[0]" => parse_block(&changed("transactions", json!([value]))),
                _ => parse_block(&changed(field, value.clone())),
            }
            .unwrap_err();
            assert!(error.detail.contains(&format!("`{field}`")), "{field} = {value}: {}", error.detail);
        }
        let whole = changed("version", json!(1));
        assert!(parse_block(&whole).is_ok());
        for field in ["version", "hash", "transactions", "signature", "height"] {
            let mut json: serde_json::Value = serde_json::from_str(&whole).unwrap();
            json.as_object_mut().unwrap().remove(field);
            let error = parse_block(&json.to_string()).unwrap_err();
            assert_eq!(error.detail, format!("field `{field}`: is missing"));
        }
        let twice = whole.replacen('{', "{\"height\":7,", 1);
        assert!(parse_block(&twice).unwrap_err().detail.contains("`height` comes twice"));
        for broken in ["", "[]", "7", "null", &whole[..whole.len() - 1], &format!("{whole}x")] {
            assert!(parse_block(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_transaction_in_a_block_must_be_whole_and_of_its_chain() {
        let key = SecretKey::from_seed([2; 32]);
        let sent = Transaction::new(Kind::Message, Address([9; 20]), 0, 1, 0, Payload::Text("hi".into()));
        let whole = serde_json::to_string(&BlockJson::whole(&block(vec![sent.signed("c", &key)]))).unwrap();
        assert!(parse_block(&whole).is_ok());
        let public_key = format!("\"public_key\":\"{}\",", key.public_key());
        for (from, to, named) in [
            ("\"amount\":0", "\"amount\":0.5", "`amount`"),
            ("\"amount\":0", "\"amount\":0,\"memo\":1", "`memo`"),
            (public_key.as_str(), "", "`public_key`"),
            ("\"type\":\"message\",\"chain_id\":\"c\"", "\"type\":\"message\",\"chain_id\":\"d\"", "`chain_id`"),
            ("\"from\":\"ait1", "\"from\":\"ait2", "`from`"),
        ] {
            let broken = whole.replace(from, to);
            assert_ne!(broken, whole, "{from}");
            let detail = parse_block(&broken).unwrap_err().detail;
            assert!(detail.contains("`transactions[0]`") && detail.contains(named), "{detail}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_block_that_was_served_reads_back(transactions in prop::collection::vec(any_transaction(), 0..4)) {
            let block = block(transactions);
            let json = serde_json::to_string(&BlockJson::whole(&block)).unwrap();
            prop_assert!(!json.contains("\": "), "compact");
            prop_assert_eq!(parse_block(&json).unwrap(), block);
        }

        #[test]
        fn a_transaction_that_was_served_can_be_handed_in(transaction in any_transaction()) {
            let hash = transaction.hash("c");
            let listed = ListedTransaction::new(&transaction, hash, "c", &Place::Pending { received: Time(1) });
            let listed = serde_json::to_value(&listed).unwrap();
            let read = parse_submission(&listed["transaction"].to_string()).unwrap();
            prop_assert_eq!(read.into_transaction(None).unwrap(), transaction);
        }

        #[test]
        fn no_text_panics_the_readers(text in ".{0,80}", at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let _ = parse_block(&text);
            let _ = parse_submission(&text);
            let mut json = changed("version", serde_json::json!(1)).into_bytes();
            let at = at.index(json.len());
            json[at] = byte & 0x7f;
            let _ = parse_block(std::str::from_utf8(&json).unwrap());
        }
    }
}
