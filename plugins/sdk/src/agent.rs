//! Handlers: how an agent answers its mail.
//!
//! Each message is handled exactly once: what a handler returns is stored in the same transaction as the block that
//! brought the message.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Plugin;

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

/// Makes a [`Handler`] the plugin of this crate; once a crate. Empty off wasm32.
#[macro_export]
macro_rules! export_handler {
    ($handler:ty) => {
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
        };
        // Off wasm32 nothing is exported, but what would be is still checked.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() = || {
            fn is_handler<H: $crate::agent::Handler>() {}
            is_handler::<$handler>();
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
