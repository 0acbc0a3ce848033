//! `tenon plugin keygen`, `sign`, `verify`: signatures of components, in minisign's format.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fs, io};

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine as _;
use clap::Subcommand;
use minisign::{KeyPair, PublicKey, SecretKey, SecretKeyBox, SignatureBox};
use serde_json::json;
use tenon_runtime::{TrustedKey, verify_signature};

use super::Outcome;
use super::init::write_private;
use super::output::Output;

/// The variable with a signing key's password, for where there is no terminal.
const PASSWORD_VARIABLE: &str = "TENON_KEY_PASSWORD";

/// Bytes of a comment at most, so that a signature stays far below what hosts read.
const COMMENT_MAX_BYTES: usize = 1_024;

/// What a component's bytes begin with: the magic, the version, and the layer that tells it from a core module.
const COMPONENT: [u8; 8] = *b"\0asm\x0d\0\x01\0";

#[derive(Subcommand)]
pub enum Signing {
    /// Makes a key to sign components with: FILE, and FILE.pub for those who trust it
    ///
    /// The password is asked for on the terminal, or taken from TENON_KEY_PASSWORD. The files are minisign's.
    Keygen {
        /// Where the secret key goes
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Leave the secret key unencrypted
        #[arg(long)]
        no_password: bool,
    },
    /// Signs a component: writes COMPONENT.sig, to be put beside it
    ///
    /// The key's password is asked for on the terminal, or taken from TENON_KEY_PASSWORD.
    Sign {
        /// The component
        component: PathBuf,
        /// The secret key, as `tenon plugin keygen` and minisign write it
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// A line that the signature covers, too [default: the time and the file's name]
        #[arg(long, value_name = "TEXT")]
        comment: Option<String>,
    },
    /// Says whether a component's signature holds; exit code 1 when it does not
    Verify {
        /// The component
        component: PathBuf,
        /// The public key: its file, or the base64 in it
        #[arg(long, value_name = "FILE or BASE64")]
        key: String,
        /// The signature [default: COMPONENT.sig]
        #[arg(long, value_name = "FILE")]
        sig: Option<PathBuf>,
    },
}

impl Signing {
    pub fn run(self, output: &Output) -> Result<Outcome> {
        match self {
            Self::Keygen { out, no_password } => keygen(&out, no_password, output),
            Self::Sign { component, key, comment } => sign(&component, &key, comment, output),
            Self::Verify { component, key, sig } => verify(&component, &key, sig, output),
        }
    }
}

fn keygen(out: &Path, no_password: bool, output: &Output) -> Result<Outcome> {
    let public_file = out.with_added_extension("pub");
    for file in [out, &public_file] {
        // Asked again by the writing itself; here it saves the operator from thinking of a password in vain.
        ensure!(!file.exists(), "{} exists already; nothing was written", file.display());
    }
    let pair = match no_password {
        true => KeyPair::generate_unencrypted_keypair(),
        false => KeyPair::generate_encrypted_keypair(Some(new_password()?)),
    };
    let KeyPair { pk, sk } = pair?;
    let public: TrustedKey = pk.to_base64().parse()?;
    let id = public.id();
    write_private(out, &sk.to_box(Some(&format!("tenon plugin secret key {id}")))?.to_bytes())?;
    if let Err(error) = write_new(&public_file, &pk.to_box()?.to_bytes()) {
        // A secret key whose public one is nowhere is of no use to anybody.
        let _ = fs::remove_file(out);
        return Err(error);
    }
    output.record(&json!({ "key_id": id, "public_key": public, "public_file": public_file, "secret_file": out }));
    output.note(format!("nodes trust it by `trusted_keys = [\"{public}\"]` in [plugins] of tenon.toml"));
    Ok(Outcome::Done)
}

fn sign(component: &Path, key: &Path, comment: Option<String>, output: &Output) -> Result<Outcome> {
    let bytes = super::component(component)?;
    ensure!(
        bytes.starts_with(&COMPONENT),
        "{} is no WebAssembly component: nothing was signed; `tenon plugin check` says what it is",
        component.display()
    );
    let comment = match comment {
        Some(comment) => checked(&comment)?,
        None => default_comment(component),
    };
    let key = secret_key(key)?;
    let public: TrustedKey = PublicKey::from_secret_key(&key)?.to_base64().parse()?;
    let untrusted = format!("signature of a tenon plugin by key {}", public.id());
    let text = minisign::sign(None, &key, bytes.as_slice(), Some(&comment), Some(&untrusted))?.into_string();
    verify_signature(&bytes, text.as_bytes(), std::slice::from_ref(&public))
        .map_err(|reason| anyhow!("the key does not fit itself, its file may be damaged: {reason}"))?;
    let signature = component.with_added_extension("sig");
    replace(&signature, text.as_bytes())?;
    output
        .record(&json!({ "component": component, "signature": signature, "key_id": public.id(), "comment": comment }));
    Ok(Outcome::Done)
}

fn verify(component: &Path, key: &str, signature: Option<PathBuf>, output: &Output) -> Result<Outcome> {
    let bytes = super::component(component)?;
    let key: TrustedKey = match fs::read_to_string(key) {
        Ok(text) => text.parse().with_context(|| format!("reading {key}"))?,
        Err(_) => key.parse().context("--key is no file")?,
    };
    let path = signature.unwrap_or_else(|| component.with_added_extension("sig"));
    let text = fs::read(&path).with_context(|| format!("reading the signature {}", path.display()))?;
    match verify_signature(&bytes, &text, std::slice::from_ref(&key)) {
        Ok(id) => {
            let comment = String::from_utf8(text).ok().and_then(|text| SignatureBox::from_string(&text).ok());
            let comment = comment.and_then(|signature| signature.trusted_comment().ok());
            output.record(&json!({ "verified": true, "key_id": id, "comment": comment }));
            Ok(Outcome::Done)
        }
        Err(reason) => {
            // What is wanted is no news where the key is the right one.
            let reason = match reason.split_once("; wanted") {
                Some((what, _)) if what.ends_with("not one of these bytes") => format!(
                    "{what}; the key is the right one: the bytes have changed since they were signed, or the signature \
                     is another component's"
                ),
                _ => reason,
            };
            output.record(&json!({ "verified": false, "reason": reason }));
            Ok(Outcome::DoesNotHold)
        }
    }
}

/// The key in a file; its password is asked for where it has one.
fn secret_key(path: &Path) -> Result<SecretKey> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let encoded = text.lines().nth(1).unwrap_or_default().trim();
    let raw = base64::engine::general_purpose::STANDARD.decode(encoded).ok();
    let key = raw.and_then(|raw| SecretKey::from_bytes(&raw).ok());
    let key = key.ok_or_else(|| anyhow!("{} is no minisign secret key", path.display()))?;
    if !key.is_encrypted() {
        // As it is: minisign leaves the check sum of such a key empty, and whether it is whole shows when it has signed.
        return Ok(key);
    }
    let password = password(&format!("password of {}: ", path.display()))?;
    let opened = SecretKeyBox::from_string(&text)?.into_secret_key(Some(password));
    opened.with_context(|| format!("opening {}", path.display()))
}

fn new_password() -> Result<String> {
    let password = password("password of the new key: ")?;
    if password.is_empty() {
        bail!("the password is empty; --no-password makes a key without one");
    }
    // Only a typed one can be mistyped.
    if std::env::var_os(PASSWORD_VARIABLE).is_none() && rpassword::prompt_password("once more: ")? != password {
        bail!("the two passwords differ; nothing was written");
    }
    Ok(password)
}

fn password(prompt: &str) -> Result<String> {
    match std::env::var(PASSWORD_VARIABLE) {
        Ok(password) => Ok(password),
        Err(std::env::VarError::NotUnicode(_)) => bail!("{PASSWORD_VARIABLE} is not UTF-8"),
        Err(std::env::VarError::NotPresent) if io::stdin().is_terminal() => Ok(rpassword::prompt_password(prompt)?),
        Err(std::env::VarError::NotPresent) => {
            bail!("the key needs a password, and there is no terminal to ask on: set {PASSWORD_VARIABLE}")
        }
    }
}

/// A comment that reads back as it was given. Errors: what is wrong with it.
fn checked(comment: &str) -> Result<String> {
    let comment = comment.trim();
    ensure!(comment.len() <= COMMENT_MAX_BYTES, "the comment has {} bytes, at most {COMMENT_MAX_BYTES}", comment.len());
    ensure!(!comment.contains(|c: char| c.is_control() && c != '\t'), "the comment is not one line of text");
    Ok(comment.to_owned())
}

/// As minisign has it.
fn default_comment(component: &Path) -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let name = component.file_name().unwrap_or_default().to_string_lossy().replace(char::is_control, "?");
    format!("timestamp:{seconds}\tfile:{name}\thashed")
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || io::Write::write_all(&mut fs::File::create_new(path)?, bytes);
    write().with_context(|| format!("writing {}", path.display()))
}

/// Writes a file under another name and renames it: a node that watches the folder never sees half of it.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
    let written = fs::write(&part, bytes).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written.with_context(|| format!("writing {}", path.display()))
}
