//! Reading Fernet tokens: AES-128-CBC with HMAC-SHA256 over everything before the tag. The age of a token is not looked
//! at: a keystore does not expire.
//!
//! Source: the Fernet specification, version 0x80.

use aes::Aes128;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt as _, KeyIvInit as _};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

/// A token whose form is right: version, time, 16 bytes of start vector, whole blocks, 32 bytes of tag.
pub(super) struct Token(Vec<u8>);

/// Version byte and time.
const HEAD: usize = 1 + 8;
const VECTOR: usize = 16;
const TAG: usize = 32;

impl Token {
    /// Reads the text form. Errors: what is wrong with it.
    pub(super) fn read(text: &[u8]) -> Result<Self, String> {
        let bytes = BASE64_URL_SAFE.decode(text).map_err(|error| format!("not a Fernet token: {error}"))?;
        let blocks = bytes.len().checked_sub(HEAD + VECTOR + TAG);
        if bytes.first() != Some(&0x80) || !blocks.is_some_and(|len| len > 0 && len % 16 == 0) {
            return Err(format!("not a Fernet token: {} bytes, or not its version", bytes.len()));
        }
        Ok(Self(bytes))
    }

    /// What it holds, if it was made with `key`: 16 bytes for the tag, 16 for the cipher.
    pub(super) fn decrypt(&self, key: &Zeroizing<[u8; 32]>) -> Option<Zeroizing<Vec<u8>>> {
        let (signing, encryption) = key.split_at(16);
        let (signed, tag) = self.0.split_at(self.0.len() - TAG);
        Hmac::<Sha256>::new_from_slice(signing).ok()?.chain_update(signed).verify_slice(tag).ok()?;
        let (vector, blocks) = signed[HEAD..].split_at(VECTOR);
        let cipher = cbc::Decryptor::<Aes128>::new_from_slices(encryption, vector).ok()?;
        let mut buffer = Zeroizing::new(blocks.to_vec());
        let len = cipher.decrypt_padded::<Pkcs7>(&mut buffer).ok()?.len();
        Some(Zeroizing::new(buffer[..len].to_vec()))
    }
}
