//! Whether a component is signed by somebody who is trusted: its bytes, the text beside them and the keys go in, the
//! signer's key id or a reason comes out. Files are read elsewhere.
//!
//! The format is minisign's: an Ed25519 signature over the BLAKE2b-512 of the bytes, and a second one over the first and
//! the trusted comment. The untrusted comment, the first line, is covered by neither. Signatures over the bytes
//! themselves, as minisign made them before 0.10, are not taken.

use std::{fmt, str::FromStr};

use minisign::{PublicKey, SignatureBox};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes of a signature file at most; minisign's have about 300.
pub const SIGNATURE_MAX_BYTES: u64 = 4 << 10;

/// Characters of base64 in the line of 2 + 8 + 64 bytes: algorithm, key id, signature.
const SIGNATURE_LINE: usize = 100;

/// Characters of base64 in the line of 64 bytes: the signature of the signature and the trusted comment.
const GLOBAL_LINE: usize = 88;

/// A public key whose signatures are accepted; reads and prints as minisign's base64, `RW…`, 56 characters.
#[derive(Clone)]
pub struct TrustedKey(PublicKey);

/// Why a text is no public key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` is no minisign public key: {reason}")]
pub struct KeyError {
    /// The text, at most its first 16 characters.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

impl TrustedKey {
    /// The key's id, as minisign prints it: 16 hex digits. It names a key and proves nothing.
    pub fn id(&self) -> String {
        id(self.0.keynum())
    }
}

impl FromStr for TrustedKey {
    type Err = KeyError;

    /// Takes the base64 alone, or the two lines of a `.pub` file.
    fn from_str(text: &str) -> Result<TrustedKey, KeyError> {
        let mut lines = text.trim().lines();
        let first = lines.next().unwrap_or_default();
        let key = if first.starts_with("untrusted comment:") { lines.next().unwrap_or_default() } else { first }.trim();
        let error = |reason: String| {
            // Cut: a secret key given by mistake must not stand in a log. Its first bytes are no secret.
            let shown: String = key.chars().take(16).collect();
            let key = if shown.len() < key.len() { shown + "…" } else { shown };
            KeyError { key, reason }
        };
        if lines.next().is_some() {
            return Err(error("expected one line of base64".into()));
        }
        let parsed = PublicKey::from_base64(key).map_err(|cause| error(cause.to_string()))?;
        if !parsed.to_bytes().starts_with(b"Ed") {
            return Err(error("it is of another algorithm than Ed25519".into()));
        }
        Ok(TrustedKey(parsed))
    }
}

impl fmt::Display for TrustedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_base64())
    }
}

impl fmt::Debug for TrustedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for TrustedKey {
    fn eq(&self, other: &TrustedKey) -> bool {
        // minisign's own comparison leaves out the key id.
        self.0.to_bytes() == other.0.to_bytes()
    }
}

impl Eq for TrustedKey {}

impl Serialize for TrustedKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TrustedKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TrustedKey, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Whether `signature`, the content of a signature file, is one of `bytes` by one of `keys`.
///
/// Answers the id of the key that signed. Errors: why not, with the ids of the keys that would do and, where the
/// signature can be read, the id of the one that signed.
pub fn verify_signature(bytes: &[u8], signature: &[u8], keys: &[TrustedKey]) -> Result<String, String> {
    let wanted = wanted(keys);
    let parsed = parse(signature).map_err(|reason| format!("no minisign signature: {reason}; wanted {wanted}"))?;
    let signer = id(parsed.keynum());
    let mut named = keys.iter().filter(|key| key.0.keynum() == parsed.keynum()).peekable();
    if named.peek().is_none() {
        return Err(format!("signed by key {signer}, which is not trusted; wanted {wanted}"));
    }
    // Ids are chosen at random, and two keys may share one.
    let fits = |key: &TrustedKey| minisign::verify(&key.0, &parsed, std::io::Cursor::new(bytes), true, false, false);
    if named.any(|key| fits(key).is_ok()) {
        return Ok(signer);
    }
    Err(format!("the signature by key {signer} is not one of these bytes; wanted {wanted}"))
}

/// Reads a signature. Only one text, its untrusted comment aside, stands for it: what minisign writes.
fn parse(text: &[u8]) -> Result<SignatureBox, String> {
    if text.len() as u64 > SIGNATURE_MAX_BYTES {
        return Err(format!("larger than {SIGNATURE_MAX_BYTES} bytes"));
    }
    let text = std::str::from_utf8(text).map_err(|_| "not UTF-8".to_owned())?.replace("\r\n", "\n");
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let lines: Vec<&str> = text.split('\n').collect();
    let [_, signature, _, global] = lines[..] else {
        return Err(format!("expected 4 lines, got {}", lines.len()));
    };
    // The library takes longer lines and forgets the rest, and cannot take a shorter last one.
    if signature.len() != SIGNATURE_LINE || global.len() != GLOBAL_LINE {
        let (signature, global) = (signature.len(), global.len());
        return Err(format!(
            "expected lines of {SIGNATURE_LINE} and {GLOBAL_LINE} characters, got {signature} and {global}"
        ));
    }
    let parsed = SignatureBox::from_string(text).map_err(|error| error.to_string())?;
    if !parsed.is_prehashed() {
        return Err("of the legacy kind; sign again with minisign 0.10 or newer".into());
    }
    // The library also overlooks white space.
    if parsed.to_string().strip_suffix('\n') != Some(text) {
        return Err("not as minisign writes it".into());
    }
    Ok(parsed)
}

fn id(keynum: &[u8]) -> String {
    // A little-endian number, most significant digit first.
    keynum.iter().rev().map(|byte| format!("{byte:02X}")).collect()
}

/// The keys of which one would do, for a reason.
fn wanted(keys: &[TrustedKey]) -> String {
    match keys {
        [key] => format!("key {}", key.id()),
        keys => format!("one of keys {}", keys.iter().map(TrustedKey::id).collect::<Vec<_>>().join(", ")),
    }
}

/// What stands beside a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    /// No signature file.
    Nothing,
    /// A signature file with this content; cut behind [`SIGNATURE_MAX_BYTES`].
    Signature(Vec<u8>),
    /// A signature file that cannot be read, and why.
    Unreadable(String),
}

impl Beside {
    pub(crate) fn signature(&self) -> Option<&[u8]> {
        match self {
            Beside::Signature(signature) => Some(signature),
            Beside::Nothing | Beside::Unreadable(_) => None,
        }
    }
}

/// Which components are taken.
pub(crate) struct Trust {
    keys: Vec<TrustedKey>,
    required: bool,
}

impl Trust {
    pub(crate) fn new(keys: Vec<TrustedKey>, required: bool) -> Trust {
        Trust { keys, required }
    }

    /// Whether signatures are looked at.
    pub(crate) fn any(&self) -> bool {
        !self.keys.is_empty() || self.required
    }

    /// Whether `bytes` with what stands beside them are taken; the id of the key that signed, where one did.
    ///
    /// Without keys every signature is ignored; with keys one that is there must be right, required or not.
    pub(crate) fn check(&self, bytes: &[u8], beside: &Beside) -> Result<Option<String>, String> {
        if !self.any() {
            return Ok(None);
        }
        match beside {
            Beside::Nothing if self.required => {
                Err(format!("not signed: no signature file, `.wasm.sig`, beside it; wanted {}", wanted(&self.keys)))
            }
            Beside::Nothing => Ok(None),
            Beside::Signature(signature) => verify_signature(bytes, signature, &self.keys).map(Some),
            Beside::Unreadable(reason) => {
                Err(format!("signature file unreadable: {reason}; wanted {}", wanted(&self.keys)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use minisign::KeyPair;
    use proptest::prelude::*;

    use super::*;

    fn pair() -> (KeyPair, TrustedKey) {
        let pair = KeyPair::generate_unencrypted_keypair().expect("random numbers");
        let key = TrustedKey(pair.pk.clone());
        (pair, key)
    }

    fn sign(pair: &KeyPair, bytes: &[u8]) -> String {
        minisign::sign(None, &pair.sk, bytes, Some("a comment"), Some("not covered")).expect("in memory").into_string()
    }

    /// Where in a signature's text its untrusted comment ends.
    fn covered(text: &str) -> usize {
        text.find('\n').expect("lines")
    }

    #[test]
    fn a_key_reads_as_it_prints_and_from_its_file() {
        let (pair, key) = pair();
        assert_eq!(key.to_string().parse(), Ok(key.clone()));
        let file = pair.pk.to_box().expect("text").to_string();
        assert_eq!(file.parse(), Ok(key.clone()));
        assert!(file.contains(&key.id()), "{file}");
    }

    #[test]
    fn what_is_no_key_is_named_and_a_secret_one_is_not_told() {
        let (pair, key) = pair();
        let secret = pair.sk.to_box(None).expect("text").to_string();
        let check = |text: &str, shown: &str| {
            let error = text.parse::<TrustedKey>().expect_err("no key").to_string();
            assert!(error.starts_with(&format!("`{shown}` is no minisign public key: ")), "{error}");
        };
        let cut = |text: &str| text.chars().take(16).collect::<String>() + "…";
        check("", "");
        check("nonsense", "nonsense");
        check(&secret, &cut(secret.lines().nth(1).expect("its line")));
        check(&key.to_string().replacen('R', "S", 1), &cut(&key.to_string().replacen('R', "S", 1)));
        check(&key.to_string()[1..], &cut(&key.to_string()[1..]));
        check(&format!("{key}\n{key}"), &cut(&key.to_string()));
    }

    #[test]
    fn a_signature_holds_for_its_key_and_bytes_alone() {
        let ((pair, key), (_, other)) = (pair(), pair());
        let text = sign(&pair, b"bytes");
        let verify = |bytes: &[u8], keys: &[TrustedKey]| verify_signature(bytes, text.as_bytes(), keys);
        let (id, stranger) = (key.id(), other.id());
        assert_eq!(verify(b"bytes", &[other.clone(), key.clone()]), Ok(id.clone()));
        assert_eq!(
            verify(b"bites", &[other.clone(), key]),
            Err(format!("the signature by key {id} is not one of these bytes; wanted one of keys {stranger}, {id}"))
        );
        assert_eq!(
            verify(b"bytes", &[other]),
            Err(format!("signed by key {id}, which is not trusted; wanted key {stranger}"))
        );
    }

    #[test]
    fn of_two_keys_with_one_id_the_right_one_is_found() {
        let ((pair, key), (other, _)) = (pair(), pair());
        let mut bytes = other.pk.to_bytes();
        bytes[2..10].copy_from_slice(pair.pk.keynum());
        let twin = TrustedKey(PublicKey::from_bytes(&bytes).expect("the length"));
        let text = sign(&pair, b"bytes");
        assert_eq!(verify_signature(b"bytes", text.as_bytes(), &[twin.clone(), key.clone()]), Ok(key.id()));
        assert!(verify_signature(b"bytes", text.as_bytes(), &[twin]).is_err());
    }

    #[test]
    fn a_signature_from_another_system_may_have_its_line_ends() {
        let (pair, key) = pair();
        let text = sign(&pair, b"bytes").replace('\n', "\r\n");
        assert_eq!(verify_signature(b"bytes", text.as_bytes(), std::slice::from_ref(&key)), Ok(key.id()));
    }

    #[test]
    fn each_way_of_not_being_a_signature_has_its_reason() {
        let (pair, key) = pair();
        let text = sign(&pair, b"bytes");
        let check = |text: &[u8], expected: &str| {
            let error = verify_signature(b"bytes", text, std::slice::from_ref(&key)).expect_err("no signature");
            assert!(error.contains(expected) && error.ends_with(&format!("wanted key {}", key.id())), "{error}");
        };
        check(b"", "expected 4 lines, got 1");
        check(b"\xff\xfe", "not UTF-8");
        check(&vec![b'x'; 5_000], "larger than 4096 bytes");
        check((text.clone() + "\n").as_bytes(), "expected 4 lines, got 5");
        check(text.trim_end().trim_end_matches('=').as_bytes(), "got 100 and 86");
        check(text.replace("a comment", "a comment ").as_bytes(), "not as minisign writes it");
        check(text.replace("a comment", "b comment").as_bytes(), "is not one of these bytes");
        check(text.replace("untrusted comment: ", "comment: ").as_bytes(), "must start with");
        // "Ed" in place of "ED": the older kind.
        check(text.replace("\nRU", "\nRW").as_bytes(), "of the legacy kind");
    }

    #[test]
    fn every_end_of_a_signature_is_needed() {
        let (pair, key) = pair();
        let text = sign(&pair, b"bytes");
        for end in 0..text.len() - 1 {
            let verified = verify_signature(b"bytes", &text.as_bytes()[..end], std::slice::from_ref(&key));
            assert!(verified.is_err(), "{end}");
        }
    }

    #[test]
    fn the_rules_for_each_setting() {
        let (pair, key) = pair();
        let (good, bad) = (Beside::Signature(sign(&pair, b"bytes").into()), Beside::Signature(b"bad".into()));
        let unreadable = Beside::Unreadable("no".into());
        let check = |keys: &[TrustedKey], required: bool, beside: &Beside, expected: Result<Option<String>, ()>| {
            let checked = Trust::new(keys.to_vec(), required).check(b"bytes", beside);
            assert_eq!(checked.clone().map_err(drop), expected, "{required} {beside:?}: {checked:?}");
        };
        for beside in [&Beside::Nothing, &good, &bad, &unreadable] {
            check(&[], false, beside, Ok(None));
        }
        let keys = std::slice::from_ref(&key);
        check(keys, false, &Beside::Nothing, Ok(None));
        check(keys, true, &Beside::Nothing, Err(()));
        for required in [false, true] {
            check(keys, required, &good, Ok(Some(key.id())));
            check(keys, required, &bad, Err(()));
            check(keys, required, &unreadable, Err(()));
        }
    }

    #[test]
    fn no_flipped_bit_of_a_signature_passes() {
        let (pair, key) = pair();
        let text = sign(&pair, b"bytes");
        for bit in covered(&text) * 8..text.len() * 8 {
            let mut flipped = text.clone().into_bytes();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let verified = verify_signature(b"bytes", &flipped, std::slice::from_ref(&key));
            assert!(verified.is_err(), "bit {bit}: {verified:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_flipped_bit_of_the_bytes_passes(bytes in prop::collection::vec(any::<u8>(), 1..2_000), at in any::<prop::sample::Index>()) {
            let (pair, key) = pair();
            let text = sign(&pair, &bytes);
            prop_assert_eq!(verify_signature(&bytes, text.as_bytes(), std::slice::from_ref(&key)), Ok(key.id()));
            let (mut flipped, bit) = (bytes.clone(), at.index(bytes.len() * 8));
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(verify_signature(&flipped, text.as_bytes(), std::slice::from_ref(&key)).is_err());
        }

        #[test]
        fn no_text_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), line in "[A-Za-z0-9+/=]{0,110}", last in "[A-Za-z0-9+/=]{80,90}") {
            let _ = parse(&bytes);
            for (line, last) in [(&line, &last), (&"A".repeat(100), &last), (&format!("RUQ{}", "A".repeat(97)), &last)] {
                let _ = parse(format!("untrusted comment: x\n{line}\ntrusted comment: y\n{last}\n").as_bytes());
            }
            let _ = String::from_utf8_lossy(&bytes).parse::<TrustedKey>();
            let _ = line.parse::<TrustedKey>();
        }
    }
}
