//! What the export macros expand to, as far as it can be plain functions.

use std::cell::OnceCell;
use std::sync::Once;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::host::exports::tenon::host::lifecycle::Description;
use crate::{Form, Plugin, log};

/// What the plugin says about itself; the texts are its package's.
pub fn describe<P: Plugin>(name: &str, version: &str, summary: &str) -> Description {
    log_panics();
    Description {
        name: name.to_owned(),
        version: version.to_owned(),
        summary: summary.to_owned(),
        config_schema: P::SCHEMA.to_owned(),
        memory_version: P::MEMORY_VERSION,
    }
}

/// Makes the plugin from the node's configuration text and keeps it in `plugin`.
pub fn configure<P: Plugin>(plugin: &OnceCell<P>, config: &str) -> Result<(), String> {
    log_panics();
    let configured = P::new(crate::settings::<P>(config)?)?;
    plugin.set(configured).map_err(|_| "configured twice: an instance takes one configuration".to_owned())
}

/// The configured plugin.
///
/// # Panics
/// Before `configure`: the host never asks an instance that it has not configured.
pub fn configured<P: Plugin>(plugin: &OnceCell<P>) -> &P {
    plugin.get().expect("the host configures an instance before it asks it anything")
}

/// Sends what a panic has to say to the log. The trap that follows tells the host only that there was one.
fn log_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|panic| log::write(log::Level::Error, &panic.to_string()))));
}

/// What marks memory as written by one plugin in one form: the node may hand in what another plugin left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal([u8; 4]);

impl Seal {
    /// The seal of the plugin `name` with its `MEMORY_VERSION`.
    pub const fn new(name: &str, version: u32) -> Self {
        // FNV-1a, cut to 32 bits; only equality matters.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ version as u64;
        let bytes = name.as_bytes();
        let mut index = 0;
        while index < bytes.len() {
            hash = (hash ^ bytes[index] as u64).wrapping_mul(0x0100_0000_01b3);
            index += 1;
        }
        Self(((hash ^ (hash >> 32)) as u32).to_le_bytes())
    }

    /// Reads a memory. Empty is the beginning: the default.
    ///
    /// Errors: another plugin wrote it, or it is damaged.
    pub fn open<M: Default + DeserializeOwned>(self, memory: &[u8]) -> Result<M, String> {
        if memory.is_empty() {
            return Ok(M::default());
        }
        let content = memory.strip_prefix(&self.0).ok_or("this memory was written by another plugin")?;
        postcard::from_bytes(content).map_err(|error| format!("this memory cannot be read: {error}"))
    }

    /// Writes a memory.
    pub fn close<M: Serialize>(self, memory: &M) -> Vec<u8> {
        postcard::to_extend(memory, self.0.to_vec()).expect("a memory is plain data, and writing to a Vec cannot fail")
    }
}

/// `upgrade` as the host calls it, of a kind whose memory is bytes; `turn` is the author's.
pub fn upgrade<M: Serialize>(
    form: Form<'_>,
    own_version: u32,
    memory: &[u8],
    turn: impl FnOnce(Form<'_>, &[u8]) -> Result<M, String>,
) -> Result<Vec<u8>, String> {
    // No memory is the default in every form.
    if memory.is_empty() {
        return Ok(Vec::new());
    }
    Ok(Seal::new(form.name, own_version).close(&turn(form, memory)?))
}

/// `downgrade` as the host calls it, of a kind whose memory is bytes; `turn` is the author's.
pub fn downgrade<M: Default + DeserializeOwned>(
    form: Form<'_>,
    own_version: u32,
    memory: &[u8],
    turn: impl FnOnce(Form<'_>, M) -> Result<Vec<u8>, String>,
) -> Result<Vec<u8>, String> {
    if memory.is_empty() {
        return Ok(Vec::new());
    }
    turn(form, Seal::new(form.name, own_version).open(memory)?)
}

/// The `migration` interface of a kind whose memory is bytes: the part of its export macro with `migrating`.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_migration {
    ($kind:ident, $plugin:ty) => {
        $crate::$kind::wit_migration::export!(Export with_types_in $crate::$kind::wit_migration);

        impl $crate::$kind::wit_migration::exports::tenon::$kind::migration::Guest for Export {
            fn upgrade(
                from_version: u32,
                memory: ::std::vec::Vec<u8>,
            ) -> ::std::result::Result<::std::vec::Vec<u8>, ::std::string::String> {
                PLUGIN.with(|plugin| {
                    let plugin = $crate::export::configured(plugin);
                    $crate::export::upgrade(
                        $crate::Form::new(::std::env!("CARGO_PKG_NAME"), from_version),
                        <$plugin as $crate::Plugin>::MEMORY_VERSION,
                        &memory,
                        |form, memory| $crate::$kind::Migrate::upgrade(plugin, form, memory),
                    )
                })
            }

            fn downgrade(
                to_version: u32,
                memory: ::std::vec::Vec<u8>,
            ) -> ::std::result::Result<::std::vec::Vec<u8>, ::std::string::String> {
                PLUGIN.with(|plugin| {
                    let plugin = $crate::export::configured(plugin);
                    $crate::export::downgrade(
                        $crate::Form::new(::std::env!("CARGO_PKG_NAME"), to_version),
                        <$plugin as $crate::Plugin>::MEMORY_VERSION,
                        &memory,
                        |form, memory| $crate::$kind::Migrate::downgrade(plugin, form, memory),
                    )
                })
            }
        }
    };
}

/// The part of an export macro that all kinds share: `Export`, `PLUGIN`, and the `lifecycle` interface.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_lifecycle {
    ($plugin:ty) => {
        ::std::thread_local! {
            static PLUGIN: ::std::cell::OnceCell<$plugin> = const { ::std::cell::OnceCell::new() };
        }

        struct Export;

        impl $crate::host::exports::tenon::host::lifecycle::Guest for Export {
            fn describe() -> $crate::host::exports::tenon::host::lifecycle::Description {
                $crate::export::describe::<$plugin>(
                    ::std::env!("CARGO_PKG_NAME"),
                    ::std::env!("CARGO_PKG_VERSION"),
                    ::std::env!("CARGO_PKG_DESCRIPTION"),
                )
            }

            fn configure(config: ::std::string::String) -> ::std::result::Result<(), ::std::string::String> {
                PLUGIN.with(|plugin| $crate::export::configure(plugin, &config))
            }
        }

        $crate::host::export!(Export with_types_in $crate::host);
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEAL: Seal = Seal::new("a", 1);

    #[test]
    fn a_memory_comes_back_as_it_was_written() {
        let memory = (7_u64, "seven".to_owned());
        assert_eq!(SEAL.open::<(u64, String)>(&SEAL.close(&memory)), Ok(memory));
    }

    #[test]
    fn no_memory_is_the_default() {
        assert_eq!(SEAL.open::<u64>(&[]), Ok(0));
    }

    #[test]
    fn foreign_and_damaged_memories_are_refused() {
        let other = Seal::new("b", 1).close(&7_u64);
        assert!(SEAL.open::<u64>(&other).is_err());
        let newer = Seal::new("a", 2).close(&7_u64);
        assert!(SEAL.open::<u64>(&newer).is_err());
        let mut damaged = SEAL.close(&"text".to_owned());
        damaged.pop();
        assert!(SEAL.open::<String>(&damaged).is_err());
        assert!(SEAL.open::<u64>(&[1, 2]).is_err());
    }

    #[test]
    fn memories_are_turned_from_seal_to_seal_and_none_stays_none() {
        let old = Form::new("a", 1);
        let newer = |form: Form<'_>, memory: &[u8]| Ok(vec![form.read::<u64>(memory)?]);
        let older = |form: Form<'_>, memory: Vec<u64>| Ok(form.write(&memory.first().copied().unwrap_or_default()));
        let upgraded = upgrade(old, 2, &SEAL.close(&7_u64), newer).unwrap();
        assert_eq!(Seal::new("a", 2).open::<Vec<u64>>(&upgraded), Ok(vec![7]));
        let downgraded = downgrade(old, 2, &upgraded, older).unwrap();
        assert_eq!(SEAL.open::<u64>(&downgraded), Ok(7));
        assert_eq!(upgrade(old, 2, &[], newer), Ok(Vec::new()));
        assert_eq!(downgrade(old, 2, &[], older), Ok(Vec::new()));
        assert!(upgrade(old, 2, &upgraded, newer).is_err(), "not of the form that it is said to be of");
        assert!(downgrade(old, 2, &downgraded, older).is_err());
    }

    #[test]
    fn settings_that_do_not_fit_are_an_error_in_words() {
        struct Never;
        impl Plugin for Never {
            type Settings = Vec<u32>;
            fn new(settings: Vec<u32>) -> Result<Self, String> {
                if settings.is_empty() { Err("no numbers".to_owned()) } else { Ok(Self) }
            }
        }
        let plugin = OnceCell::<Never>::new();
        assert!(configure(&plugin, "{").is_err());
        assert!(configure(&plugin, "{}").is_err());
        assert_eq!(configure(&plugin, "[]"), Err("no numbers".to_owned()));
        assert_eq!(configure(&plugin, "[1]"), Ok(()));
        assert!(configure(&plugin, "[1]").is_err(), "a second configuration");
    }
}
