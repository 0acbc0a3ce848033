//! The chain format `tenon/1`: every byte that is hashed or signed. Another format would be another file like this one.

use super::{Account, Address, Hash, Header, Payload, Transaction, canonical};

/// The name that a genesis gives this format.
pub const NAME: &str = "tenon/1";

/// The version that headers carry.
pub const VERSION: u32 = 1;

/// What a sender signs: the transaction's JSON without key and signature, in the spelling of Python's
/// `json.dumps(…, sort_keys=True)`. `type` and `payload` stand in it only where the client sent them.
///
/// Source: `aitbc-wire.md` 2.3; the ping in its appendix is the test vector.
pub fn signing_text(chain_id: &str, transaction: &Transaction) -> String {
    let mut text = String::with_capacity(256 + transaction.payload.len());
    text.push_str("{\"amount\": ");
    push_integer(transaction.amount, &mut text);
    text.push_str(", \"chain_id\": ");
    canonical::write_text(chain_id, &mut text);
    text.push_str(", \"fee\": ");
    push_integer(transaction.fee, &mut text);
    text.push_str(", \"from\": \"");
    push_address(&transaction.from(), &mut text);
    text.push_str("\", \"nonce\": ");
    push_integer(transaction.nonce, &mut text);
    match &transaction.payload {
        Payload::Absent => {}
        Payload::Text(payload) => {
            text.push_str(", \"payload\": ");
            canonical::write_text(payload, &mut text);
        }
        Payload::Object(payload) => {
            text.push_str(", \"payload\": ");
            canonical::write_spaced(payload, &mut text);
        }
    }
    text.push_str(", \"to\": \"");
    push_address(&transaction.to, &mut text);
    text.push('"');
    if let Some(kind) = transaction.kind.name() {
        text.push_str(", \"type\": \"");
        text.push_str(kind);
        text.push('"');
    }
    text.push('}');
    text
}

/// A transaction's identity: the digest of what was signed. It does not depend on the signature, so nobody can give a
/// transaction a second identity by changing signature bytes.
pub fn transaction_hash(signing_text: &str) -> Hash {
    Hash::of(&[signing_text.as_bytes()])
}

/// What `tx_root` commits to for one transaction: its identity and who signed it how.
pub fn transaction_leaf(hash: &Hash, transaction: &Transaction) -> [u8; 128] {
    let mut leaf = [0; 128];
    leaf[..32].copy_from_slice(&hash.0);
    leaf[32..64].copy_from_slice(&transaction.public_key.0);
    leaf[64..].copy_from_slice(&transaction.signature.0);
    leaf
}

/// A block's identity: the digest of all its header's fields but the signature, in the order of [`Header::encode`].
pub fn block_hash(header: &Header) -> Hash {
    let mut bytes = Vec::with_capacity(224);
    header.encode(&mut bytes);
    Hash::of(&[b"tenon/1 block\0", &bytes])
}

/// What a proposer signs: its block's hash, told apart from anything else that a key may sign.
pub fn proposal(hash: &Hash) -> [u8; 49] {
    let mut text = [0; 49];
    text[..17].copy_from_slice(b"tenon/1 proposal\0");
    text[17..].copy_from_slice(&hash.0);
    text
}

/// An account in the state trie: `<balance>:<nonce>`. Source: `aitbc-wire.md` 2.4.
pub fn account_value(account: &Account) -> String {
    let mut text = String::with_capacity(41);
    push_integer(account.balance, &mut text);
    text.push(':');
    push_integer(account.nonce, &mut text);
    text
}

fn push_address(address: &Address, text: &mut String) {
    text.push_str(std::str::from_utf8(&address.text()).expect("an address is ASCII"));
}

/// `value` in decimal; the formatting machinery of `write!` costs several times as much.
fn push_integer(mut value: u64, text: &mut String) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(value % 10).expect("below 10");
        value /= 10;
        if value == 0 {
            break;
        }
    }
    text.push_str(std::str::from_utf8(&digits[at..]).expect("digits are ASCII"));
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, PublicKey, Signature};
    use super::*;

    #[test]
    fn existing_wallets_sign_this_text() {
        let mut public_key = [0; 32];
        public_key[..20].copy_from_slice(&"ait1d18e286fc0c12888aca94732b5507c8787af71a5".parse::<Address>().unwrap().0);
        let mut ping = Transaction {
            kind: Kind::Transfer,
            to: "ait16af0b743fd6a2d3e2e2f28a820066706aa5813b5".parse().unwrap(),
            amount: 0,
            fee: 10,
            nonce: 1_775_819_657_114,
            payload: Payload::Text("ping".into()),
            public_key: PublicKey(public_key),
            signature: Signature([0xab; 64]),
        };
        assert_eq!(
            signing_text("ait-mainnet", &ping),
            r#"{"amount": 0, "chain_id": "ait-mainnet", "fee": 10, "from": "ait1d18e286fc0c12888aca94732b5507c8787af71a5", "nonce": 1775819657114, "payload": "ping", "to": "ait16af0b743fd6a2d3e2e2f28a820066706aa5813b5", "type": "transfer"}"#
        );
        ping.kind = Kind::Unsaid;
        ping.payload = Payload::object(r#"{"cmd":"ACK", "n": [1,2]}"#).unwrap();
        assert!(signing_text("c", &ping).contains(r#""payload": {"cmd": "ACK", "n": [1, 2]}, "to": "#));
        assert!(!signing_text("c", &ping).contains("type"));
    }

    #[test]
    fn integers_are_written_in_full() {
        for value in [0, 9, 10, 12_345_678_901, u64::MAX] {
            let mut text = String::new();
            push_integer(value, &mut text);
            assert_eq!(text, value.to_string());
        }
    }
}
