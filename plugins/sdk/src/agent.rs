//! Handlers: how an agent answers its mail.
//!
//! Each message is handled exactly once: what a handler returns is stored in the same transaction as the block that
//! brought the message.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Form, Plugin};

pub use wit::exports::tenon::agent::handler::{Context, Effect, Event, Message, Note, Outgoing, Payload, Timer};
pub use wit::tenon::chain::types::{Address, Hash, Height, Time};

/// The bindings.
#[doc(hidden)]
pub mod wit {
    wit_bindgen::generate!({
        inline: "package tenon:sdk@0.1.0; world agent-part { export tenon:agent/handler@0.1.0; }",
        path: ["../../wit/host", "../../wit/chain", "../../wit/agent"],
        runtime_path: "::tenon_sdk::wit_bindgen::rt",
        generate_all,
        additional_derives: [PartialEq, Eq, Hash],
        pub_export_macro: true,
        default_bindings_module: "tenon_sdk::agent::wit",
    });
}

/// The bindings of the optional part.
#[doc(hidden)]
pub mod wit_migration {
    wit_bindgen::generate!({
        inline: "package tenon:sdk@0.1.0; world agent-migration-part { export tenon:agent/migration@0.1.0; }",
        path: ["../../wit/host", "../../wit/chain", "../../wit/agent"],
        runtime_path: "::tenon_sdk::wit_bindgen::rt",
        generate_all,
        pub_export_macro: true,
        default_bindings_module: "tenon_sdk::agent::wit_migration",
    });
}

/// One agent's behaviour.
pub trait Handler: Plugin {
    /// What it remembers from call to call: kept by the node, together with the block at hand.
    type Memory: Default + Serialize + DeserializeOwned;

    /// Handles one event, and says what to do.
    ///
    /// Errors: why the event cannot be handled. It is set aside with that text, nothing is sent, and the memory stays as
    /// it was, whatever was written to it here.
    fn handle(&self, context: &Context, event: &Event, memory: &mut Self::Memory) -> Result<Vec<Effect>, String>;
}

/// Takes over the memory of older versions, and gives it back.
///
/// The node asks with the agent's next event. Its memory lies in the node's database, so unlike with other kinds nothing
/// is tried out before this version goes live: test it. Nothing is lost by a mistake; see [`upgrade`](Self::upgrade).
///
/// ```
/// use tenon_sdk::Form;
/// use tenon_sdk::agent::{Handler, Migrate};
/// # use tenon_sdk::agent::{Context, Effect, Event};
/// # use tenon_sdk::{Plugin, serde::Deserialize};
/// # struct Greeter;
/// # #[derive(Deserialize)]
/// # #[serde(crate = "tenon_sdk::serde")]
/// # struct Settings {}
/// # impl Plugin for Greeter {
/// #     type Settings = Settings;
/// #     const MEMORY_VERSION: u32 = 2;
/// #     fn new(_: Settings) -> Result<Self, String> { Ok(Self) }
/// # }
/// # impl Handler for Greeter {
/// #     type Memory = (u64, String);
/// #     fn handle(&self, _: &Context, _: &Event, _: &mut Self::Memory) -> Result<Vec<Effect>, String> {
/// #         Ok(Vec::new())
/// #     }
/// # }
///
/// /// Version 1 kept a count, version 2 keeps the latest as well.
/// impl Migrate for Greeter {
///     fn upgrade(&self, from: Form<'_>, memory: &[u8]) -> Result<Self::Memory, String> {
///         match from.version() {
///             1 => Ok((from.read::<u64>(memory)?, String::new())),
///             _ => from.unknown(),
///         }
///     }
///
///     fn downgrade(&self, to: Form<'_>, (count, _): Self::Memory) -> Result<Vec<u8>, String> {
///         match to.version() {
///             1 => Ok(to.write::<u64>(&count)),
///             _ => to.unknown(),
///         }
///     }
/// }
///
/// tenon_sdk::export_handler!(Greeter, migrating);
/// # fn main() {}
/// ```
pub trait Migrate: Handler {
    /// Reads the memory that an older version left in the form `from`; never an empty one.
    ///
    /// Errors: why it cannot be read. The memory then stays as it was, and the event goes to the version before or is set
    /// aside with that text.
    fn upgrade(&self, from: Form<'_>, memory: &[u8]) -> Result<Self::Memory, String>;

    /// Writes a memory for an older version in the form `to`.
    ///
    /// Errors: as [`upgrade`](Self::upgrade).
    fn downgrade(&self, to: Form<'_>, memory: Self::Memory) -> Result<Vec<u8>, String>;
}

/// Makes a [`Handler`] the plugin of this crate; once a crate. With `migrating`, `export_handler!(MyHandler, migrating)`, its
/// [`Migrate`] as well. Empty off wasm32.
#[macro_export]
macro_rules! export_handler {
    ($handler:ty) => {
        $crate::__export_handler!($handler, Handler, {});
    };
    ($handler:ty, migrating) => {
        $crate::__export_handler!($handler, Migrate, {
            $crate::__export_migration!(agent, $handler);
        });
    };
}

/// What both forms of [`export_handler!`](crate::export_handler) come to: the trait that must be there, and what is exported beyond the
/// kind's interface.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_handler {
    ($handler:ty, $needed:ident, { $($more:tt)* }) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            $crate::__export_lifecycle!($handler);
            $crate::agent::wit::export!(Export with_types_in $crate::agent::wit);

            impl $crate::agent::wit::exports::tenon::agent::handler::Guest for Export {
                fn handle(
                    context: $crate::agent::Context,
                    event: $crate::agent::Event,
                    memory: ::std::vec::Vec<u8>,
                ) -> ::std::result::Result<
                    (::std::vec::Vec<$crate::agent::Effect>, ::std::vec::Vec<u8>),
                    ::std::string::String,
                > {
                    PLUGIN.with(|plugin| {
                        let handler = $crate::export::configured(plugin);
                        $crate::agent::step(handler, ::std::env!("CARGO_PKG_NAME"), &context, &event, &memory)
                    })
                }
            }

            $($more)*
        };
        // Off wasm32 nothing is exported, but what would be is still checked.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() = || {
            fn is_there<P: $crate::agent::$needed>() {}
            is_there::<$handler>();
        };
    };
}

/// One call as the host makes it: memory as bytes, in and out.
///
/// Memory that cannot be read is an error, not a fresh start: an agent that forgets may answer twice.
#[doc(hidden)]
pub fn step<H: Handler>(
    handler: &H,
    name: &str,
    context: &Context,
    event: &Event,
    memory: &[u8],
) -> Result<(Vec<Effect>, Vec<u8>), String> {
    let seal = crate::export::Seal::new(name, H::MEMORY_VERSION);
    let mut memory = seal.open(memory)?;
    let effects = handler.handle(context, event, &mut memory)?;
    Ok((effects, seal.close(&memory)))
}
