//! Ed25519 keys and signatures by the ZIP-215 rules, under which a batch and single checks always agree.

use std::fmt;

use ed25519_zebra::{Signature as ZebraSignature, SigningKey, VerificationKey, VerificationKeyBytes};

use super::text::serde_as_text;

/// A public key, 32 bytes; on the wire 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// A signature, 64 bytes; on the wire 128 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature(pub [u8; 64]);

/// A secret key. Its debug form shows nothing.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

/// Why bytes or a text are not a key or signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not the right number of hexadecimal digits.
    #[error("expected {digits} hexadecimal digits, got `{got}`")]
    NotHex {
        /// How many there should be.
        digits: usize,
        /// The text, cut to 140 characters.
        got: String,
    },
    /// A key of low order: signatures under it prove nothing.
    #[error("the public key has low order")]
    LowOrder,
}

impl PublicKey {
    /// Refuses the keys of low order. They are few, and known: the y-coordinates of the eight torsion points, in both
    /// spellings where there are two, with either sign.
    ///
    /// Source: the small subgroup of Curve25519; the test compares with the curve library's own table.
    pub fn check_order(&self) -> Result<(), KeyError> {
        const P: [u8; 32] = {
            let mut p = [0xff; 32];
            p[0] = 0xed;
            p[31] = 0x7f;
            p
        };
        let mut y = self.0;
        y[31] &= 0x7f;
        let small = |low: u8| y[0] == low && y[1..].iter().all(|&byte| byte == 0);
        let near_p = |low: u8| y[0] == low && y[1..] == P[1..];
        let eighth = EIGHTH_ORDER_Y.contains(&y);
        if small(0) || small(1) || near_p(0xec) || near_p(0xed) || near_p(0xee) || eighth {
            return Err(KeyError::LowOrder);
        }
        Ok(())
    }

    /// Whether `signature` is this key's over `message`, by ZIP-215.
    pub fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        VerificationKey::try_from(self.0)
            .is_ok_and(|key| key.verify(&ZebraSignature::from_bytes(&signature.0), message).is_ok())
    }

    /// The key as the batch verifier takes it.
    pub(super) fn zebra(&self) -> VerificationKeyBytes {
        VerificationKeyBytes::from(self.0)
    }
}

/// The two y-coordinates of the points of order eight.
const EIGHTH_ORDER_Y: [[u8; 32]; 2] = [
    const_hex_32("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    const_hex_32("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
];

const fn const_hex_32(text: &str) -> [u8; 32] {
    match const_hex::const_decode_to_array(text.as_bytes()) {
        Ok(bytes) => bytes,
        Err(_) => panic!("not 64 hexadecimal digits"),
    }
}

impl Signature {
    pub(super) fn zebra(&self) -> ZebraSignature {
        ZebraSignature::from_bytes(&self.0)
    }
}

impl SecretKey {
    /// A new key from the system's randomness.
    pub fn generate() -> Self {
        Self(SigningKey::new(rand::rng()))
    }

    /// The key with this seed.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// Its seed; keep it secret.
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// Its public key.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(VerificationKeyBytes::from(&self.0).into())
    }

    /// Signs `message`; the same message always gives the same signature.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

macro_rules! hex_text {
    ($type:ty, $bytes:literal) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&const_hex::encode(self.0))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl std::str::FromStr for $type {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, KeyError> {
                let mut bytes = [0; $bytes];
                Some(text)
                    .filter(|text| text.len() == 2 * $bytes)
                    .and_then(|text| const_hex::decode_to_slice(text, &mut bytes).ok())
                    .map(|()| Self(bytes))
                    .ok_or_else(|| KeyError::NotHex { digits: 2 * $bytes, got: text.chars().take(140).collect() })
            }
        }

        serde_as_text!($type);
    };
}
hex_text!(PublicKey, 32);
hex_text!(Signature, 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_low_order_is_refused_and_an_ordinary_one_is_not() {
        for point in curve25519_dalek::constants::EIGHT_TORSION {
            let mut bytes = point.compress().to_bytes();
            assert_eq!(PublicKey(bytes).check_order(), Err(KeyError::LowOrder), "{point:?}");
            bytes[31] ^= 0x80;
            assert_eq!(PublicKey(bytes).check_order(), Err(KeyError::LowOrder), "{point:?}, other sign");
        }
        // Non-canonical spellings: y + p for y = 0 and 1.
        for low in [0xed, 0xee] {
            let mut bytes = [0xff; 32];
            (bytes[0], bytes[31]) = (low, 0x7f);
            assert_eq!(PublicKey(bytes).check_order(), Err(KeyError::LowOrder));
        }
        assert_eq!(SecretKey::from_seed([7; 32]).public_key().check_order(), Ok(()));
    }

    #[test]
    fn a_signature_holds_for_its_message_and_key_alone() {
        let (key, other) = (SecretKey::from_seed([1; 32]), SecretKey::from_seed([2; 32]));
        let signature = key.sign(b"text");
        assert!(key.public_key().verifies(b"text", &signature));
        assert!(!key.public_key().verifies(b"texT", &signature));
        assert!(!other.public_key().verifies(b"text", &signature));
    }
}
