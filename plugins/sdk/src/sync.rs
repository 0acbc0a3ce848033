//! Strategies: which blocks to fetch from whom.
//!
//! A strategy is told all that the node knows ([`View`]) and what happened ([`Event`]), and says what to do ([`Action`]).
//! The node downloads, verifies, orders and stores; it checks every action, and a wrong one only counts against the
//! strategy.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Plugin;

pub use wit::exports::tenon::sync::strategy::{
    Action, Arrival, Event, Failure, Fetch, Fork, InFlight, Limits, Peer, PeerId, Penalty, RequestId, Snapshot, View,
};
pub use wit::tenon::chain::types::{Hash, Head, Height, HeightRange, Time};

/// The bindings.
#[doc(hidden)]
pub mod wit {
    wit_bindgen::generate!({
        inline: "package tenon:sdk@0.1.0; world sync-part { export tenon:sync/strategy@0.1.0; }",
        path: ["../../wit/host", "../../wit/chain", "../../wit/sync"],
        runtime_path: "::tenon_sdk::wit_bindgen::rt",
        generate_all,
        additional_derives: [PartialEq, Eq, Hash],
        pub_export_macro: true,
        default_bindings_module: "tenon_sdk::sync::wit",
    });
}

/// Plans a follower's requests.
pub trait Strategy: Plugin {
    /// What it remembers from call to call: kept by the node, and handed on to the next version. A memory that another
    /// strategy left is not read: the default takes its place.
    type Memory: Default + Serialize + DeserializeOwned;

    /// Decides what to do next. `events` are all since the last call, in order. After [`Event::TakenOver`] the memory may
    /// be the default while requests are under way: `view` says all.
    fn next(&self, view: &View, events: &[Event], memory: &mut Self::Memory) -> Vec<Action>;
}

/// Makes a [`Strategy`] the plugin of this crate; once a crate. Empty off wasm32.
#[macro_export]
macro_rules! export_strategy {
    ($strategy:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            $crate::__export_lifecycle!($strategy);
    $crate::sync::wit::export!(Export with_types_in $crate::sync::wit);

            impl $crate::sync::wit::exports::tenon::sync::strategy::Guest for Export {
                fn next(
                    view: $crate::sync::View,
                    events: ::std::vec::Vec<$crate::sync::Event>,
                    memory: ::std::vec::Vec<u8>,
                ) -> (::std::vec::Vec<$crate::sync::Action>, ::std::vec::Vec<u8>) {
                    PLUGIN.with(|plugin| {
                        let strategy = $crate::export::configured(plugin);
                        $crate::sync::step(strategy, ::std::env!("CARGO_PKG_NAME"), &view, &events, &memory)
                    })
                }
            }
        };
        // Off wasm32 nothing is exported, but what would be is still checked.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() = || {
            fn is_strategy<S: $crate::sync::Strategy>() {}
            is_strategy::<$strategy>();
        };
    };
}

/// One call as the host makes it: memory as bytes, in and out.
#[doc(hidden)]
pub fn step<S: Strategy>(
    strategy: &S,
    name: &str,
    view: &View,
    events: &[Event],
    memory: &[u8],
) -> (Vec<Action>, Vec<u8>) {
    let seal = crate::export::Seal::new(name, S::MEMORY_VERSION);
    // Nothing a strategy remembers is worth stopping a sync for.
    let mut memory = seal.open(memory).unwrap_or_else(|error| {
        crate::log::debug!("starting afresh: {error}");
        S::Memory::default()
    });
    let actions = strategy.next(view, events, &mut memory);
    (actions, seal.close(&memory))
}
