//! Transactions: what a client hands in, and what a block holds.

use serde_json::value::RawValue;

use super::canonical::{self, Object};
use super::{Address, AddressError, Hash, KeyError, PublicKey, SecretKey, Signature, format};

/// What a transaction says it is. An existing client may leave it out, and then does not sign it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Kind {
    /// Not said: a transfer.
    #[default]
    Unsaid,
    /// Moves an amount and the fee.
    Transfer,
    /// Moves only the fee, and carries a payload to somebody.
    Message,
}

/// What a transaction carries.
#[derive(Clone, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Payload {
    /// Left out, and not signed.
    #[default]
    Absent,
    /// Text.
    Text(String),
    /// A JSON object in its one spelling: sorted keys, no spaces, ASCII.
    Object(String),
}

/// A transaction as a block holds it. Its sender is the owner of `public_key`; its chain is the block's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// What it is.
    pub kind: Kind,
    /// Who gets the amount or the message.
    pub to: Address,
    /// What `to` gets.
    pub amount: u64,
    /// What the sender pays for it.
    pub fee: u64,
    /// Not below the sender's account nonce.
    pub nonce: u64,
    /// What it carries.
    pub payload: Payload,
    /// The sender's key.
    pub public_key: PublicKey,
    /// Over [`format::signing_text`].
    pub signature: Signature,
}

/// A transaction as a client hands it in: the key may be left out, the chain is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// The chain it is signed for.
    pub chain_id: String,
    /// Who sends it.
    pub from: Address,
    /// What it is.
    pub kind: Kind,
    /// Who gets the amount or the message.
    pub to: Address,
    /// What `to` gets.
    pub amount: u64,
    /// What the sender pays for it.
    pub fee: u64,
    /// Not below the sender's account nonce.
    pub nonce: u64,
    /// What it carries.
    pub payload: Payload,
    /// The sender's key, if it is not known already.
    pub public_key: Option<PublicKey>,
    /// Over [`format::signing_text`].
    pub signature: Signature,
}

/// Why a JSON text is not a transaction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmissionError {
    /// Not a JSON object.
    #[error("a transaction is a JSON object: {0}")]
    NotObject(String),
    /// A field is missing.
    #[error("field `{0}` is missing")]
    Missing(&'static str),
    /// A field that transactions do not have; it would be signed and then lost.
    #[error("unknown field `{0}`")]
    Unknown(String),
    /// A field has the wrong type, form or size.
    #[error("field `{field}`: {reason}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// `public_key` is left out and the chain does not know it.
    #[error("field `public_key` is missing, and the chain has no transaction from {0} that names it")]
    UnknownKey(Address),
    /// `from` is not the address of `public_key`.
    #[error("field `from`: {from} is not the address of the public key, which is {owner}")]
    WrongSender {
        /// What the transaction says.
        from: Address,
        /// Whose key it is.
        owner: Address,
    },
}

/// Bytes of a payload that are stored at most.
pub const PAYLOAD_MAX_BYTES: usize = 64 * 1024;

impl Kind {
    /// The word on the wire; none where none was said.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Unsaid => None,
            Self::Transfer => Some("transfer"),
            Self::Message => Some("message"),
        }
    }
}

impl Payload {
    /// An object payload from JSON text in any spelling. Errors: not an object, a name twice, too deep.
    pub fn object(json: &str) -> Result<Self, String> {
        if !json.trim_start().starts_with('{') {
            return Err("expected a JSON object".into());
        }
        serde_json::from_str::<&RawValue>(json).map_err(|error| error.to_string())?;
        canonical::canonical(json).map(Self::Object)
    }

    /// Bytes it takes.
    pub fn len(&self) -> usize {
        match self {
            Self::Absent => 0,
            Self::Text(text) | Self::Object(text) => text.len(),
        }
    }

    /// Whether it says nothing. `0x` is what existing wallets send for "nothing".
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Absent) || matches!(self, Self::Text(text) if text.is_empty() || text == "0x")
    }

    /// The canonical JSON of it, as it stands in a signing text; none where it is absent.
    pub fn to_json(&self) -> Option<String> {
        match self {
            Self::Absent => None,
            Self::Text(text) => {
                let mut json = String::with_capacity(text.len() + 2);
                canonical::write_text(text, &mut json);
                Some(json)
            }
            Self::Object(json) => Some(json.clone()),
        }
    }
}

impl Transaction {
    /// Who sends it.
    pub fn from(&self) -> Address {
        Address::of(&self.public_key)
    }

    /// Its identity on the chain `chain_id`: the same whatever the signature's bytes.
    pub fn hash(&self, chain_id: &str) -> Hash {
        format::transaction_hash(&format::signing_text(chain_id, self))
    }

    /// Whether it is mail for `to`: a message, or what existing clients send as one, a transfer of nothing with text.
    pub fn is_message(&self) -> bool {
        match self.kind {
            Kind::Message => true,
            Kind::Transfer | Kind::Unsaid => self.amount == 0 && !self.payload.is_empty(),
        }
    }

    /// Signs it with `key`, which becomes its sender.
    pub fn signed(mut self, chain_id: &str, key: &SecretKey) -> Self {
        self.public_key = key.public_key();
        self.signature = key.sign(format::signing_text(chain_id, &self).as_bytes());
        self
    }

    /// The JSON text that hands it in on the chain `chain_id`: what [`Submission::parse`] reads.
    pub fn to_submission(&self, chain_id: &str) -> String {
        let mut fields = serde_json::json!({
            "chain_id": chain_id, "from": self.from(), "to": self.to, "amount": self.amount, "fee": self.fee,
            "nonce": self.nonce, "public_key": self.public_key, "signature": self.signature,
        });
        if let Some(name) = self.kind.name() {
            fields["type"] = name.into();
        }
        let mut json = fields.to_string();
        if let Some(payload) = self.payload.to_json() {
            // Spliced in as text: how its numbers are spelled is part of what was signed.
            json.pop();
            json.push_str(",\"payload\":");
            json.push_str(&payload);
            json.push('}');
        }
        json
    }

    /// An unsigned transaction; [`Transaction::signed`] completes it.
    pub fn new(kind: Kind, to: Address, amount: u64, fee: u64, nonce: u64, payload: Payload) -> Self {
        let (public_key, signature) = (PublicKey([0; 32]), Signature([0; 64]));
        Self { kind, to, amount, fee, nonce, payload, public_key, signature }
    }
}

impl Submission {
    /// Reads a transaction from JSON text. Errors name the first field that is wrong.
    pub fn parse(json: &str) -> Result<Self, SubmissionError> {
        Self::parse_with(json, &[])
    }

    /// As [`Submission::parse`], but the fields in `also` are allowed and ignored: what a node adds to a transaction
    /// when it serves it.
    pub fn parse_with(json: &str, also: &[&str]) -> Result<Self, SubmissionError> {
        const FIELDS: [&str; 10] =
            ["type", "chain_id", "from", "to", "amount", "fee", "nonce", "payload", "public_key", "signature"];
        let Object(fields) =
            serde_json::from_str(json).map_err(|error| SubmissionError::NotObject(error.to_string()))?;
        if let Some((name, _)) =
            fields.iter().find(|(name, _)| !FIELDS.contains(&name.as_str()) && !also.contains(&name.as_str()))
        {
            return Err(SubmissionError::Unknown(name.chars().take(80).collect()));
        }
        let find = |field: &'static str| fields.iter().find(|(name, _)| name == field).map(|(_, value)| value.get());
        let need = |field: &'static str| find(field).ok_or(SubmissionError::Missing(field));
        Ok(Self {
            kind: find("type").map_or(Ok(Kind::Unsaid), |json| field("type", kind(json)))?,
            chain_id: field("chain_id", text(need("chain_id")?))?,
            from: field("from", parsed(need("from")?))?,
            to: field("to", parsed(need("to")?))?,
            amount: field("amount", integer(need("amount")?))?,
            fee: field("fee", integer(need("fee")?))?,
            nonce: field("nonce", integer(need("nonce")?))?,
            payload: find("payload").map_or(Ok(Payload::Absent), |json| field("payload", payload(json)))?,
            public_key: match find("public_key") {
                None | Some("null") => None,
                Some(json) => Some(field("public_key", parsed(json))?),
            },
            signature: field("signature", parsed(need("signature")?))?,
        })
    }

    /// The transaction, with `known` as its key where it names none. Errors: no key, or not the sender's.
    pub fn into_transaction(self, known: Option<PublicKey>) -> Result<Transaction, SubmissionError> {
        let public_key = self.public_key.or(known).ok_or(SubmissionError::UnknownKey(self.from))?;
        let owner = Address::of(&public_key);
        if owner != self.from {
            return Err(SubmissionError::WrongSender { from: self.from, owner });
        }
        let Self { kind, to, amount, fee, nonce, payload, signature, .. } = self;
        Ok(Transaction { kind, to, amount, fee, nonce, payload, public_key, signature })
    }
}

fn field<T>(field: &'static str, value: Result<T, String>) -> Result<T, SubmissionError> {
    value.map_err(|reason| SubmissionError::Field { field, reason })
}

/// What a JSON text is, for a message to its author.
fn shown(json: &str) -> String {
    let cut: String = json.chars().take(60).collect();
    if cut.len() < json.len() { format!("{cut}…") } else { cut }
}

fn text(json: &str) -> Result<String, String> {
    serde_json::from_str(json).map_err(|_| format!("expected a string, got {}", shown(json)))
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(json: &str) -> Result<T, String> {
    text(json)?.parse().map_err(|error: T::Err| error.to_string())
}

/// A whole number from 0 to 2^64 - 1. Fractions, negatives, booleans and numbers in strings are not.
fn integer(json: &str) -> Result<u64, String> {
    if !json.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("expected a whole number that is not negative, got {}", shown(json)));
    }
    json.parse().map_err(|_| format!("{} is above the largest value, {}", shown(json), u64::MAX))
}

fn kind(json: &str) -> Result<Kind, String> {
    match text(json)?.as_str() {
        "transfer" => Ok(Kind::Transfer),
        "message" => Ok(Kind::Message),
        other => Err(format!("expected `transfer` or `message`, got `{}`", shown(other))),
    }
}

fn payload(json: &str) -> Result<Payload, String> {
    let payload = match json.as_bytes().first() {
        Some(b'"') => Payload::Text(text(json)?),
        Some(b'{') => canonical::canonical(json).map(Payload::Object)?,
        _ => return Err(format!("expected a string or an object, got {}", shown(json))),
    };
    if payload.len() > PAYLOAD_MAX_BYTES {
        return Err(format!("{} bytes, at most {PAYLOAD_MAX_BYTES} are allowed", payload.len()));
    }
    Ok(payload)
}

impl From<AddressError> for SubmissionError {
    fn from(error: AddressError) -> Self {
        Self::Field { field: "from", reason: error.to_string() }
    }
}

impl From<KeyError> for SubmissionError {
    fn from(error: KeyError) -> Self {
        Self::Field { field: "public_key", reason: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) -> String {
        let key = SecretKey::from_seed([1; 32]);
        let mut value = serde_json::json!({
            "type": "transfer", "chain_id": "c", "from": Address::of(&key.public_key()), "to": Address([2; 20]),
            "amount": 5, "fee": 10, "nonce": 0, "payload": "0x", "public_key": key.public_key(),
            "signature": key.sign(b""),
        });
        change(value.as_object_mut().unwrap());
        value.to_string()
    }

    #[test]
    fn a_whole_transaction_is_read() {
        let read = Submission::parse(&json(|_| {})).unwrap();
        assert_eq!((read.amount, read.fee, read.kind), (5, 10, Kind::Transfer));
        assert!(read.into_transaction(None).is_ok());
    }

    #[test]
    fn each_wrong_field_is_named() {
        let wrong: [(&str, serde_json::Value); 15] = [
            ("amount", (-1).into()),
            ("amount", 1.5.into()),
            ("amount", true.into()),
            ("amount", "5".into()),
            ("amount", serde_json::Value::Null),
            ("fee", 1e30.into()),
            ("nonce", serde_json::json!([1])),
            ("from", "me".into()),
            ("to", 7.into()),
            ("type", "gift".into()),
            ("payload", 3.into()),
            ("payload", serde_json::Value::Null),
            ("payload", "x".repeat(PAYLOAD_MAX_BYTES + 1).into()),
            ("public_key", "00".into()),
            ("signature", "ab".into()),
        ];
        for (field, value) in wrong {
            let error = Submission::parse(&json(|object| _ = object.insert(field.into(), value.clone()))).unwrap_err();
            assert!(
                matches!(&error, SubmissionError::Field { field: named, .. } if *named == field),
                "{field}: {error}"
            );
        }
        for field in ["chain_id", "from", "to", "amount", "fee", "nonce", "signature"] {
            let error = Submission::parse(&json(|object| _ = object.remove(field))).unwrap_err();
            assert_eq!(error, SubmissionError::Missing(field));
        }
        let error = Submission::parse(&json(|object| _ = object.insert("memo".into(), 1.into()))).unwrap_err();
        assert_eq!(error, SubmissionError::Unknown("memo".into()));
        for not_object in ["", "[]", "1", "{", "{\"amount\":1,\"amount\":2}"] {
            assert!(matches!(Submission::parse(not_object), Err(SubmissionError::NotObject(_))), "{not_object}");
        }
    }

    #[test]
    fn the_largest_amount_is_read_and_one_more_is_not() {
        let with = |amount: &str| json(|_| {}).replace("\"amount\":5", &format!("\"amount\":{amount}"));
        assert_eq!(Submission::parse(&with("18446744073709551615")).unwrap().amount, u64::MAX);
        assert!(Submission::parse(&with("18446744073709551616")).is_err());
    }

    #[test]
    fn the_key_must_be_the_senders() {
        let other = SecretKey::from_seed([9; 32]).public_key();
        let read = Submission::parse(&json(|object| _ = object.remove("public_key"))).unwrap();
        assert!(matches!(read.clone().into_transaction(None), Err(SubmissionError::UnknownKey(_))));
        assert!(matches!(read.clone().into_transaction(Some(other)), Err(SubmissionError::WrongSender { .. })));
        assert!(read.into_transaction(Some(SecretKey::from_seed([1; 32]).public_key())).is_ok());
    }
}
