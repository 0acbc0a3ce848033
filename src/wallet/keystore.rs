//! The keystore file: JSON around a key that is encrypted under a password. Written in one form (PBKDF2 and
//! AES-256-GCM); the older Fernet form is read as well.
//!
//! Source of both forms: `aitbc-wire.md` 2.3.

use std::path::Path;

use aes_gcm::aead::{Aead as _, KeyInit as _};
use aes_gcm::{Aes256Gcm, Nonce};
use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{WalletError, fernet};
use crate::chain::{Address, SecretKey};

/// A keystore file. Fields that are not known are ignored, as existing programs add some.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Keystore {
    /// The account.
    pub address: String,
    /// Its public key, 64 hexadecimal digits; the Fernet form has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// The key, encrypted.
    pub crypto: Crypto,
    /// `ed25519`; the Fernet form does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keytype: Option<String>,
    /// 1; the Fernet form does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// An encrypted key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Crypto {
    /// How a password becomes a key: `pbkdf2`. The Fernet form says `sha256`, whichever it is.
    pub kdf: String,
    /// Its parameters.
    pub kdfparams: KdfParams,
    /// `aes-256-gcm`, `fernet` or `PBKDF2-SHA256-Fernet`.
    pub cipher: String,
    /// Its parameters.
    #[serde(default)]
    pub cipherparams: CipherParams,
    /// Hexadecimal, with the tag at its end; in the Fernet form the token in base64 once more.
    pub ciphertext: String,
}

/// Parameters of the key derivation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KdfParams {
    /// Hexadecimal; base64 in the Fernet form.
    pub salt: String,
    /// Iterations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub c: Option<u32>,
    /// Bytes of the derived key: 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dklen: Option<u32>,
    /// `hmac-sha256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prf: Option<String>,
}

/// Parameters of the cipher.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CipherParams {
    /// 24 hexadecimal digits; absent in the Fernet form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
}

/// The ciphers that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// AES-256-GCM under a PBKDF2 key.
    Aes256Gcm,
    /// A Fernet token around the key in hexadecimal.
    Fernet,
}

/// Iterations that new files get, and existing ones have.
const ITERATIONS: u32 = 100_000;

/// Iterations that a file may ask for: ten seconds, so that a damaged number does not look like a hang.
const ITERATIONS_MAX: u32 = 10_000_000;

/// [`WalletError`] before anybody knows the file's name.
pub(super) enum Fault {
    Damaged(&'static str, String),
    Unknown(&'static str, String, &'static str),
    Password,
    Mismatch(&'static str, String, String),
}

impl Fault {
    pub(super) fn at(self, path: &Path) -> WalletError {
        let path = path.to_owned();
        match self {
            Self::Damaged(field, reason) => WalletError::Damaged { path, field, reason },
            Self::Unknown(field, got, expected) => WalletError::Unknown { path, field, got, expected },
            Self::Password => WalletError::Password(path),
            Self::Mismatch(field, found, expected) => WalletError::Mismatch { path, field, found, expected },
        }
    }
}

impl Keystore {
    /// Encrypts `key` under `password`, with fresh salt and nonce.
    pub fn seal(key: &SecretKey, password: &str) -> Self {
        let (salt, nonce): ([u8; 32], [u8; 12]) = rand::rng().random();
        let derived = derive(password, &salt, ITERATIONS);
        let seed = Zeroizing::new(key.seed());
        let ciphertext = Aes256Gcm::new((&*derived).into())
            .encrypt(&Nonce::from(nonce), &seed[..])
            .expect("32 bytes are not too long for the cipher");
        let public_key = key.public_key();
        Self {
            address: Address::of(&public_key).to_string(),
            public_key: Some(public_key.to_string()),
            crypto: Crypto {
                kdf: "pbkdf2".into(),
                kdfparams: KdfParams {
                    salt: const_hex::encode(salt),
                    c: Some(ITERATIONS),
                    dklen: Some(32),
                    prf: Some("hmac-sha256".into()),
                },
                cipher: "aes-256-gcm".into(),
                cipherparams: CipherParams { nonce: Some(const_hex::encode(nonce)) },
                ciphertext: const_hex::encode(ciphertext),
            },
            keytype: Some("ed25519".into()),
            version: Some(1),
        }
    }

    /// How the key in it is encrypted; none for a cipher that is not known.
    pub fn cipher(&self) -> Option<Cipher> {
        match self.crypto.cipher.as_str() {
            "aes-256-gcm" => Some(Cipher::Aes256Gcm),
            "fernet" | "PBKDF2-SHA256-Fernet" => Some(Cipher::Fernet),
            _ => None,
        }
    }

    /// The key, which must be the one that the file's address and public key belong to.
    pub(super) fn open(&self, password: &str) -> Result<SecretKey, Fault> {
        let known = |field, got: Option<&str>, expected: &'static str| match got {
            Some(got) if got != expected => Err(Fault::Unknown(field, shown(got), expected)),
            _ => Ok(()),
        };
        known("keytype", self.keytype.as_deref(), "ed25519")?;
        known("version", self.version.map(|version| version.to_string()).as_deref(), "1")?;
        let seed = match self.cipher() {
            Some(Cipher::Aes256Gcm) => {
                known("kdf", Some(&self.crypto.kdf), "pbkdf2")?;
                known("prf", self.crypto.kdfparams.prf.as_deref(), "hmac-sha256")?;
                self.open_aes(password)?
            }
            Some(Cipher::Fernet) => self.open_fernet(password)?,
            None => {
                let expected = "aes-256-gcm, fernet or PBKDF2-SHA256-Fernet";
                return Err(Fault::Unknown("cipher", shown(&self.crypto.cipher), expected));
            }
        };
        let key = SecretKey::from_seed(*seed);
        let public_key = key.public_key();
        let address = Address::of(&public_key).to_string();
        if self.address != address {
            return Err(Fault::Mismatch("address", shown(&self.address), address));
        }
        match &self.public_key {
            Some(found) if !found.eq_ignore_ascii_case(&public_key.to_string()) => {
                Err(Fault::Mismatch("public_key", shown(found), public_key.to_string()))
            }
            _ => Ok(key),
        }
    }

    fn open_aes(&self, password: &str) -> Result<Zeroizing<[u8; 32]>, Fault> {
        let Crypto { kdfparams, cipherparams, ciphertext, .. } = &self.crypto;
        let salt = hex("salt", &kdfparams.salt)?;
        let iterations = kdfparams.c.unwrap_or(ITERATIONS);
        if !(1..=ITERATIONS_MAX).contains(&iterations) {
            return Err(Fault::Damaged("c", format!("1 to {ITERATIONS_MAX} iterations, got {iterations}")));
        }
        match kdfparams.dklen {
            None | Some(32) => {}
            Some(got) => return Err(Fault::Damaged("dklen", format!("expected 32, got {got}"))),
        }
        let nonce = hex("nonce", cipherparams.nonce.as_deref().unwrap_or_default())?;
        let nonce: [u8; 12] = nonce
            .try_into()
            .map_err(|got: Vec<u8>| Fault::Damaged("nonce", format!("expected 12 bytes, got {}", got.len())))?;
        let ciphertext = hex("ciphertext", ciphertext)?;
        // A key and the tag; so a cut file is told from a wrong password.
        if ciphertext.len() != 32 + 16 {
            return Err(Fault::Damaged("ciphertext", format!("expected 48 bytes, got {}", ciphertext.len())));
        }
        let derived = derive(password, &salt, iterations);
        let seed = Aes256Gcm::new((&*derived).into())
            .decrypt(&Nonce::from(nonce), &ciphertext[..])
            .map(Zeroizing::new)
            .map_err(|_| Fault::Password)?;
        Ok(Zeroizing::new(seed.as_slice().try_into().expect("48 bytes less the tag are 32")))
    }

    /// The Fernet form. Two generations of it derive the key differently and call it the same, so both are tried; the
    /// token's tag says which it was.
    fn open_fernet(&self, password: &str) -> Result<Zeroizing<[u8; 32]>, Fault> {
        use base64::Engine as _;
        use base64::prelude::BASE64_STANDARD;
        use sha2::Digest as _;
        let damaged = |field| move |error: base64::DecodeError| Fault::Damaged(field, error.to_string());
        let salt = BASE64_STANDARD.decode(&self.crypto.kdfparams.salt).map_err(damaged("salt"))?;
        let token = BASE64_STANDARD.decode(&self.crypto.ciphertext).map_err(damaged("ciphertext"))?;
        let token = fernet::Token::read(&token).map_err(|reason| Fault::Damaged("ciphertext", reason))?;
        let digest = Zeroizing::new(Sha256::new().chain_update(password).chain_update(&salt).finalize().into());
        let text = token
            .decrypt(&digest)
            .or_else(|| token.decrypt(&derive(password, &salt, ITERATIONS)))
            .ok_or(Fault::Password)?;
        let mut seed = Zeroizing::new([0; 32]);
        const_hex::decode_to_slice(&*text, &mut *seed)
            .map_err(|error| Fault::Damaged("ciphertext", format!("not a key in hexadecimal: {error}")))?;
        Ok(seed)
    }
}

fn derive(password: &str, salt: &[u8], iterations: u32) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    pbkdf2::pbkdf2_hmac::<Sha256>(password.as_bytes(), salt, iterations, &mut *key);
    key
}

fn hex(field: &'static str, text: &str) -> Result<Vec<u8>, Fault> {
    const_hex::decode(text).map_err(|error| Fault::Damaged(field, error.to_string()))
}

/// What a file says, cut for a message.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}
