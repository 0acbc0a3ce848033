//! How another version of a plugin keeps its memory.

use serde::{Serialize, de::DeserializeOwned};

use crate::export::Seal;

/// The form in which another version of this plugin keeps its memory: what a `Migrate` reads from and writes to.
#[derive(Clone, Copy, Debug)]
pub struct Form<'a> {
    pub(crate) name: &'a str,
    version: u32,
}

impl<'a> Form<'a> {
    /// The form of the plugin `name` with this `MEMORY_VERSION`; in tests of a migration, with the package's own name.
    pub const fn new(name: &'a str, version: u32) -> Self {
        Self { name, version }
    }

    /// That version's [`MEMORY_VERSION`](crate::Plugin::MEMORY_VERSION).
    pub const fn version(self) -> u32 {
        self.version
    }

    /// Reads a memory that that version wrote, as the type that it had there.
    ///
    /// Errors: another plugin or version wrote it, or it is of another type.
    pub fn read<M: Default + DeserializeOwned>(self, memory: &[u8]) -> Result<M, String> {
        Seal::new(self.name, self.version).open(memory)
    }

    /// Writes a memory for that version.
    pub fn write<M: Serialize>(self, memory: &M) -> Vec<u8> {
        Seal::new(self.name, self.version).close(memory)
    }

    /// What to say of a version that is not known, as an error.
    pub fn unknown<T>(self) -> Result<T, String> {
        unknown_version(self.version)
    }
}

/// As [`Form::unknown`], for a kind whose memory has no form to be read by.
pub fn unknown_version<T>(version: u32) -> Result<T, String> {
    Err(format!("memory-version {version} is not known"))
}
