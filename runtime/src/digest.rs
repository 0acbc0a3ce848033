//! What tells components and configurations apart: the SHA-256 of bytes, and of JSON.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// SHA-256 of a component's bytes; shown as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// SHA-256 of a configuration, as JSON without spaces and with its keys in order; shown as `default` where it says nothing
/// (`{}`), else as 64 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConfigDigest(Digest);

impl ConfigDigest {
    /// The digest of `settings`.
    pub fn of(settings: &Value) -> ConfigDigest {
        // Objects of this JSON library are sorted by key.
        match settings {
            Value::Null => ConfigDigest::default(),
            settings => ConfigDigest(Digest::of(settings.to_string().as_bytes())),
        }
    }
}

impl Default for ConfigDigest {
    fn default() -> ConfigDigest {
        ConfigDigest(Digest::of(b"{}"))
    }
}

/// How a configuration without any setting is shown.
const DEFAULT: &str = "default";

impl fmt::Display for ConfigDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == ConfigDigest::default() { f.write_str(DEFAULT) } else { self.0.fmt(f) }
    }
}

impl Serialize for ConfigDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ConfigDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ConfigDigest, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            DEFAULT => Ok(ConfigDigest::default()),
            text => text.parse().map(ConfigDigest).map_err(serde::de::Error::custom),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&const_hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = const_hex::FromHexError;

    fn from_str(text: &str) -> Result<Digest, Self::Err> {
        const_hex::decode_to_array(text).map(Digest)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
