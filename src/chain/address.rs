//! An account's name: `ait1` and the first 40 hexadecimal digits of its Ed25519 public key.

use std::fmt;
use std::str::FromStr;

use super::PublicKey;
use super::text::serde_as_text;

/// An account's address: the first 20 bytes of its public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Address(pub [u8; 20]);

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an address is `ait1` and 40 lower-case hexadecimal digits, got `{got}`")]
pub struct AddressError {
    /// The text, cut to 80 characters.
    pub got: String,
}

impl Address {
    /// Bytes of the text form.
    pub const TEXT_LEN: usize = 44;

    /// The address that belongs to `key`.
    pub fn of(key: &PublicKey) -> Self {
        Self(*key.0.first_chunk().expect("a public key has 32 bytes"))
    }

    /// The text form, on the stack: hashing and signing need it a million times.
    pub fn text(&self) -> [u8; Self::TEXT_LEN] {
        let mut text = [0; Self::TEXT_LEN];
        text[..4].copy_from_slice(b"ait1");
        const_hex::encode_to_slice(self.0, &mut text[4..]).expect("40 bytes hold 20 in hexadecimal");
        text
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(std::str::from_utf8(&self.text()).expect("hexadecimal is ASCII"))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let mut bytes = [0; 20];
        text.strip_prefix("ait1")
            // Upper case would be a second spelling of the same account, with another signing text.
            .filter(|digits| digits.len() == 40 && !digits.bytes().any(|b| b.is_ascii_uppercase()))
            .and_then(|digits| const_hex::decode_to_slice(digits, &mut bytes).ok())
            .map(|()| Self(bytes))
            .ok_or_else(|| AddressError { got: text.chars().take(80).collect() })
    }
}

serde_as_text!(Address);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_spelling() {
        let text = "ait16af0b743fd6a2d3e2e2f28a820066706aa5813b5";
        let address: Address = text.parse().unwrap();
        assert_eq!(address.to_string(), text);
        for bad in [
            "",
            "ait1",
            &text.to_uppercase(),
            &text.replace('f', "F"),
            &format!("{text}0"),
            &text.replace("ait1", "ait2"),
            "ait138l9j7eyx53a8a7cy8ftukqz8zs04tvavkz3nw4j6mc5n5gxrfyq57xlfp",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
