//! Who a node is to other nodes: an Ed25519 key of its own, with no money and no say on the chain, and the id made of
//! it.

use std::fs;
use std::path::Path;

use libp2p::PeerId;
use libp2p::identity::Keypair;
use rand::RngExt as _;
use zeroize::Zeroizing;

use crate::wallet;

/// A node's key to others.
#[derive(Clone)]
pub struct Identity(Keypair);

/// Bytes of the file at most; 64 hexadecimal digits and a line's end are what it has.
const FILE_MAX_BYTES: u64 = 1_024;

impl Identity {
    /// The key in the file, which is made where it is not there yet: 64 hexadecimal digits, for its owner's eyes alone.
    ///
    /// Errors name the file: it cannot be read or written, has something else in it, or others can read it.
    pub fn open_or_create(path: &Path) -> Result<Self, String> {
        match Self::open(path)? {
            Some(identity) => Ok(identity),
            None => {
                let mut seed = Zeroizing::new([0; 32]);
                rand::rng().fill(&mut *seed);
                let text = Zeroizing::new(format!("{}\n", *Zeroizing::new(const_hex::encode(*seed))));
                wallet::write_new(path, text.as_bytes()).map_err(|error| error.to_string())?;
                Ok(Self::from_seed(seed))
            }
        }
    }

    /// The key in the file; none where there is no file. Errors as above.
    pub fn open(path: &Path) -> Result<Option<Self>, String> {
        let failed = |reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = metadata.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(failed(&format_args!("others can read it (mode {mode:04o}); `chmod 600` it")));
            }
        }
        if metadata.len() > FILE_MAX_BYTES {
            return Err(failed(&format_args!("{} bytes are no key: expected 64 hexadecimal digits", metadata.len())));
        }
        let text = Zeroizing::new(fs::read_to_string(path).map_err(|error| failed(&error))?);
        let mut seed = Zeroizing::new([0; 32]);
        const_hex::decode_to_slice(text.trim(), &mut *seed)
            .map_err(|error| failed(&format_args!("expected 64 hexadecimal digits: {error}")))?;
        Ok(Some(Self::from_seed(seed)))
    }

    /// A key that nobody keeps.
    pub fn random() -> Self {
        Self(Keypair::generate_ed25519())
    }

    fn from_seed(mut seed: Zeroizing<[u8; 32]>) -> Self {
        Self(Keypair::ed25519_from_bytes(&mut *seed).expect("every 32 bytes are a secret key"))
    }

    /// What others know the node by.
    pub fn peer_id(&self) -> PeerId {
        self.0.public().to_peer_id()
    }

    pub(super) fn keypair(&self) -> &Keypair {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_is_nobody_elses_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keystore/p2p.key");
        assert!(Identity::open(&path).unwrap().is_none());
        let made = Identity::open_or_create(&path).unwrap();
        assert_eq!(Identity::open_or_create(&path).unwrap().peer_id(), made.peer_id());
        assert_ne!(Identity::random().peer_id(), made.peer_id());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
            assert!(Identity::open(&path).err().unwrap().contains("chmod 600"));
        }
    }

    #[test]
    fn a_file_that_is_no_key_is_named_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p2p.key");
        for text in ["", "zz", &"ab".repeat(31), &"ab".repeat(33), &"a".repeat(2_000)] {
            wallet::write_new(&path, text.as_bytes()).unwrap();
            let error = Identity::open_or_create(&path).err().unwrap();
            assert!(error.contains("p2p.key") && error.contains("64 hexadecimal"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn the_id_is_the_public_keys() {
        // Vector: the first of RFC 8032, 7.1; the id is base58 of the identity multihash of the key's protobuf form.
        let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let mut bytes = Zeroizing::new([0; 32]);
        const_hex::decode_to_slice(seed, &mut *bytes).unwrap();
        let identity = Identity::from_seed(bytes);
        let key = const_hex::decode("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a").unwrap();
        assert_eq!(identity.peer_id().to_bytes(), [&[0, 36, 8, 1, 18, 32][..], &key].concat());
    }
}
