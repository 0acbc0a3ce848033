//! Wallets: a key with a name, kept encrypted in a keystore directory, one file a wallet. The file's form is in
//! [`keystore`]; this file makes, finds and opens them.

mod fernet;
mod keystore;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use rand::RngExt as _;
use zeroize::Zeroizing;

use crate::chain::{Address, SecretKey};

pub use keystore::{Cipher, CipherParams, Crypto, KdfParams, Keystore};

/// A key and its name. Whoever has it can spend what the address has.
#[derive(Clone, Debug)]
pub struct Wallet {
    /// The file's name without `.json`.
    pub name: String,
    /// The account.
    pub address: Address,
    /// Its key.
    pub key: SecretKey,
}

/// A wallet in a directory, seen without its password.
#[derive(Debug)]
pub struct Listed {
    /// The file's name without `.json`.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// What the file says the address is; nobody has checked that the key is inside. Or why the file does not read.
    pub address: Result<Address, WalletError>,
}

/// Why a wallet cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum WalletError {
    /// The file system says no.
    #[error("{}: {error}", .path.display())]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Never overwritten: the key in it may be the only one.
    #[error("{}: there is a wallet already; it is not overwritten", .0.display())]
    Exists(PathBuf),
    /// Not a name that makes a file name everywhere.
    #[error("a wallet's name is 1 to 64 letters, digits, `-`, `_` or `.`, and does not begin with `.`; got `{0}`")]
    Name(String),
    /// Not a keystore file, or part of it is missing or has a wrong form.
    #[error("{}: damaged: field `{field}`: {reason}", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where in it; `file` for its whole text.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Encrypted in a way that is not known here.
    #[error("{}: unknown {field} `{got}`, expected {expected}", .path.display())]
    Unknown {
        /// Which file.
        path: PathBuf,
        /// `cipher`, `kdf`, `prf`, `keytype` or `version`.
        field: &'static str,
        /// What the file says.
        got: String,
        /// What could be read.
        expected: &'static str,
    },
    /// The password is not the file's. Changed bytes look the same: that is what the cipher's tag is for.
    #[error("{}: wrong password (or the encrypted key was changed)", .0.display())]
    Password(PathBuf),
    /// The key inside belongs to another account than the file says.
    #[error("{}: field `{field}` is {found}, but the key inside makes it {expected}", .path.display())]
    Mismatch {
        /// Which file.
        path: PathBuf,
        /// `address` or `public_key`.
        field: &'static str,
        /// What the file says.
        found: String,
        /// What belongs to the key.
        expected: String,
    },
    /// A password file without a password.
    #[error("{}: there is no password in it", .0.display())]
    EmptyPassword(PathBuf),
}

/// The file name that a keystore's password has by convention.
pub const PASSWORD_FILE: &str = "password";

/// Bytes of a keystore or password file at most; real ones have some hundred.
const FILE_MAX_BYTES: u64 = 64 * 1024;

impl Wallet {
    /// Makes a wallet with a new key: `dir/name.json`, readable by its owner alone, all of it or nothing. The directory
    /// is made if need be. Errors: there is one of that name already.
    pub fn create(dir: &Path, name: &str, password: &str) -> Result<Self, WalletError> {
        Self::import(dir, name, password, SecretKey::generate())
    }

    /// As [`Wallet::create`], around a key that is there already.
    pub fn import(dir: &Path, name: &str, password: &str, key: SecretKey) -> Result<Self, WalletError> {
        let path = Self::path(dir, name)?;
        // Deriving a key takes a tenth of a second; do not spend it in vain.
        if path.exists() {
            return Err(WalletError::Exists(path));
        }
        let keystore = Keystore::seal(&key, password);
        let json = serde_json::to_string_pretty(&keystore).expect("a keystore has only text keys");
        write_new(&path, json.as_bytes())?;
        Ok(Self { name: name.to_owned(), address: Address::of(&key.public_key()), key })
    }

    /// Opens a keystore file. The key inside must be that of the address the file names.
    pub fn open(path: &Path, password: &str) -> Result<Self, WalletError> {
        let keystore = read_keystore(path)?;
        let key = keystore.open(password).map_err(|error| error.at(path))?;
        Ok(Self { name: stem(path), address: Address::of(&key.public_key()), key })
    }

    /// The wallets in `dir`, by name: every `*.json`, those that do not read with the reason.
    pub fn list(dir: &Path) -> Result<Vec<Listed>, WalletError> {
        let failed = |error| WalletError::Io { path: dir.to_owned(), error };
        let mut wallets = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let hidden = stem(&path).starts_with('.');
            if !hidden && path.extension().is_some_and(|extension| extension == "json") && path.is_file() {
                let address = read_keystore(&path).and_then(|keystore| {
                    let damaged = |error: crate::chain::AddressError| WalletError::Damaged {
                        path: path.clone(),
                        field: "address",
                        reason: error.to_string(),
                    };
                    keystore.address.parse().map_err(damaged)
                });
                wallets.push(Listed { name: stem(&path), path, address });
            }
        }
        wallets.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(wallets)
    }

    /// Where the wallet `name` lies in `dir`. Errors: a name that cannot be one.
    pub fn path(dir: &Path, name: &str) -> Result<PathBuf, WalletError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if !(1..=64).contains(&name.len()) || name.starts_with('.') || !name.bytes().all(allowed) {
            return Err(WalletError::Name(name.chars().take(80).collect()));
        }
        Ok(dir.join(format!("{name}.json")))
    }
}

/// The password in a file: its text without the white space around it. Warns where others may read the file.
pub fn read_password(path: &Path) -> Result<Zeroizing<String>, WalletError> {
    let text = read(path)?;
    let password = Zeroizing::new(text.trim().to_owned());
    if password.is_empty() {
        return Err(WalletError::EmptyPassword(path.to_owned()));
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(path).map(|metadata| metadata.permissions().mode()).unwrap_or(0);
        if mode & 0o077 != 0 {
            let mode = format!("{:o}", mode & 0o777);
            tracing::warn!(path = %path.display(), mode, "others may read this password file; chmod 600 keeps them out");
        }
    }
    Ok(password)
}

/// Writes a new random password to `path`, readable by its owner alone, and answers it. Errors: the file exists.
pub fn create_password(path: &Path) -> Result<Zeroizing<String>, WalletError> {
    let password = Zeroizing::new(const_hex::encode(rand::rng().random::<[u8; 24]>()));
    write_new(path, format!("{}\n", *password).as_bytes())?;
    Ok(password)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> Result<Zeroizing<String>, WalletError> {
    let failed = |error| WalletError::Io { path: path.to_owned(), error };
    let mut text = Zeroizing::new(String::new());
    File::open(path).map_err(failed)?.take(FILE_MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

fn read_keystore(path: &Path) -> Result<Keystore, WalletError> {
    let reason = |error: serde_json::Error| error.to_string();
    serde_json::from_str(&read(path)?).map_err(|error| WalletError::Damaged {
        path: path.to_owned(),
        field: "file",
        reason: reason(error),
    })
}

/// Writes `bytes` to a file that is not there yet: under another name first, so that a crash leaves no half of it, and
/// then linked into place, which fails where a rename would overwrite.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), WalletError> {
    let failed = |error| WalletError::Io { path: path.to_owned(), error };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_private_dir(dir).map_err(|error| WalletError::Io { path: dir.to_owned(), error })?;
    // tempfile makes files that only their owner can read or write, and removes this one on every error below.
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    file.persist_noclobber(path).map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists => WalletError::Exists(path.to_owned()),
        _ => failed(error.error),
    })?;
    // The name is durable only when the directory is.
    OpenOptions::new().read(true).open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}

fn create_private_dir(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt as _;
        builder.mode(0o700);
    }
    builder.create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by Python: `hashlib.pbkdf2_hmac` and the `cryptography` package.
    const FOREIGN: [(&str, &str); 3] = [
        ("aes-256-gcm", include_str!("testdata/aes-256-gcm.json")),
        ("fernet, pbkdf2", include_str!("testdata/fernet-pbkdf2.json")),
        ("fernet, sha256", include_str!("testdata/fernet-sha256.json")),
    ];
    const PASSWORD: &str = "correct horse ü";

    fn open(json: &str, password: &str) -> Result<Wallet, WalletError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.json");
        fs::write(&path, json).unwrap();
        Wallet::open(&path, password)
    }

    #[test]
    fn files_of_another_implementation_open() {
        for (form, json) in FOREIGN {
            let wallet = open(json, PASSWORD).unwrap_or_else(|error| panic!("{form}: {error}"));
            assert_eq!(wallet.key.seed(), std::array::from_fn(|index| index as u8), "{form}");
            assert_eq!(wallet.address.to_string(), "ait103a107bff3ce10be1d70dd18e74bc09967e4d630", "{form}");
            assert!(matches!(open(json, "other"), Err(WalletError::Password(_))), "{form}");
        }
    }

    #[test]
    fn a_wallet_opens_with_its_password_alone_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let keystore = dir.path().join("keystore");
        let made = Wallet::create(&keystore, "alice", "secret").unwrap();
        let path = Wallet::path(&keystore, "alice").unwrap();
        let opened = Wallet::open(&path, "secret").unwrap();
        assert_eq!((opened.name.as_str(), opened.address), ("alice", made.address));
        assert_eq!(opened.key.seed(), made.key.seed());
        assert!(matches!(Wallet::open(&path, "Secret"), Err(WalletError::Password(_))));
        let before = fs::read(&path).unwrap();
        assert!(matches!(Wallet::create(&keystore, "alice", "x"), Err(WalletError::Exists(_))));
        // Also where the first look does not see it.
        assert!(matches!(write_new(&path, b"{}"), Err(WalletError::Exists(_))));
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(&keystore).unwrap().count(), 1, "no temporary file is left");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&path), mode(&keystore)), (0o600, 0o700));
        }
    }

    #[test]
    fn each_damage_is_named() {
        let (_, json) = FOREIGN[0];
        let changed = |pointer: &str, value: serde_json::Value| {
            let mut file: serde_json::Value = serde_json::from_str(json).unwrap();
            *file.pointer_mut(pointer).unwrap() = value;
            open(&file.to_string(), PASSWORD).unwrap_err().to_string()
        };
        let cases = [
            ("/address", serde_json::json!("ait1ffa107bff3ce10be1d70dd18e74bc09967e4d630"), "field `address`"),
            ("/public_key", serde_json::json!("00".repeat(32)), "field `public_key`"),
            ("/keytype", serde_json::json!("secp256k1"), "unknown keytype `secp256k1`"),
            ("/version", serde_json::json!(3), "unknown version `3`"),
            ("/crypto/cipher", serde_json::json!("rot13"), "unknown cipher `rot13`"),
            ("/crypto/kdf", serde_json::json!("scrypt"), "unknown kdf `scrypt`"),
            ("/crypto/kdfparams/prf", serde_json::json!("hmac-md5"), "unknown prf `hmac-md5`"),
            ("/crypto/kdfparams/c", serde_json::json!(0), "field `c`"),
            ("/crypto/kdfparams/c", serde_json::json!(4_000_000_000_u32), "field `c`"),
            ("/crypto/kdfparams/dklen", serde_json::json!(16), "field `dklen`"),
            ("/crypto/kdfparams/salt", serde_json::json!("zz"), "field `salt`"),
            ("/crypto/cipherparams/nonce", serde_json::json!("00"), "field `nonce`"),
            ("/crypto/ciphertext", serde_json::json!("00"), "field `ciphertext`"),
            ("/crypto/ciphertext", serde_json::json!("00".repeat(48)), "wrong password"),
        ];
        for (pointer, value, expected) in cases {
            let error = changed(pointer, value);
            assert!(error.contains(expected), "{pointer}: {error}");
        }
        for cut in ["", "{", "[]", "{}", &json[..json.len() / 2]] {
            assert!(matches!(open(cut, PASSWORD), Err(WalletError::Damaged { field: "file", .. })), "{cut}");
        }
    }

    #[test]
    fn a_damaged_token_never_panics() {
        let (_, json) = FOREIGN[2];
        let mut file: serde_json::Value = serde_json::from_str(json).unwrap();
        for token in ["", "gA==", "Z0FBQQ==", "not base64", &"gAAA".repeat(50)] {
            file["crypto"]["ciphertext"] = token.into();
            assert!(open(&file.to_string(), PASSWORD).is_err(), "{token}");
        }
    }

    #[test]
    fn the_list_has_every_wallet_and_says_what_does_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let alice = Wallet::create(dir.path(), "alice", "p").unwrap();
        fs::write(dir.path().join("broken.json"), "{").unwrap();
        create_password(&dir.path().join(PASSWORD_FILE)).unwrap();
        let listed = Wallet::list(dir.path()).unwrap();
        assert_eq!(listed.iter().map(|wallet| wallet.name.as_str()).collect::<Vec<_>>(), ["alice", "broken"]);
        assert_eq!(listed[0].address.as_ref().unwrap(), &alice.address);
        assert!(listed[1].address.is_err());
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for name in ["", ".", "..", ".hidden", "a/b", "../a", "a\\b", "ä", &"x".repeat(65)] {
            assert!(matches!(Wallet::create(Path::new("/nowhere"), name, "p"), Err(WalletError::Name(_))), "{name}");
        }
    }

    #[test]
    fn a_password_file_reads_back_and_an_empty_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(PASSWORD_FILE);
        let made = create_password(&path).unwrap();
        assert_eq!(read_password(&path).unwrap(), made);
        assert!(matches!(create_password(&path), Err(WalletError::Exists(_))));
        fs::write(&path, " \n").unwrap();
        assert!(matches!(read_password(&path), Err(WalletError::EmptyPassword(_))));
    }
}
