//! Strategies: which blocks to fetch from whom.
//!
//! A strategy is told all that the node knows ([`View`]) and what happened ([`Event`]), and says what to do
//! ([`Action`]). The node downloads, verifies, orders and stores; it checks every action, and a wrong one only counts
//! against the strategy. [`Draft`] keeps an answer within the limits, [`testbed`] tries a strategy in virtual time.

mod draft;
#[cfg(not(target_arch = "wasm32"))]
pub mod testbed;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Form, Plugin};

pub use draft::{DOUBLE_AFTER_US, Draft, head_of, len, missing, overlap};
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

/// The bindings of the optional part.
#[doc(hidden)]
pub mod wit_migration {
    wit_bindgen::generate!({
        inline: "package tenon:sdk@0.1.0; world sync-migration-part { export tenon:sync/migration@0.1.0; }",
        path: ["../../wit/host", "../../wit/chain", "../../wit/sync"],
        runtime_path: "::tenon_sdk::wit_bindgen::rt",
        generate_all,
        pub_export_macro: true,
        default_bindings_module: "tenon_sdk::sync::wit_migration",
    });
}

/// Plans a follower's requests.
pub trait Strategy: Plugin {
    /// What it remembers from call to call: kept by the node, and handed on to the next version. A memory that another
    /// strategy left is not read: the default takes its place.
    type Memory: Default + Serialize + DeserializeOwned;

    /// Decides what to do next. `events` are all since the last call, in order. After [`Event::TakenOver`] the memory
    /// may be the default while requests are under way: `view` says all.
    fn next(&self, view: &View, events: &[Event], memory: &mut Self::Memory) -> Vec<Action>;
}

/// Takes over the memory of older versions, and gives it back.
///
/// The node asks with the first call of this version, and before this version goes live: an error or a panic then keeps
/// it out.
///
/// ```
/// use tenon_sdk::Form;
/// use tenon_sdk::sync::{Strategy, Migrate};
/// # use tenon_sdk::sync::{Action, Event, View};
/// # use tenon_sdk::{Plugin, serde::Deserialize};
/// # struct Planner;
/// # #[derive(Deserialize)]
/// # #[serde(crate = "tenon_sdk::serde")]
/// # struct Settings {}
/// # impl Plugin for Planner {
/// #     type Settings = Settings;
/// #     const MEMORY_VERSION: u32 = 2;
/// #     fn new(_: Settings) -> Result<Self, String> { Ok(Self) }
/// # }
/// # impl Strategy for Planner {
/// #     type Memory = (u64, String);
/// #     fn next(&self, _: &View, _: &[Event], _: &mut Self::Memory) -> Vec<Action> { Vec::new() }
/// # }
///
/// /// Version 1 kept a count, version 2 keeps the latest as well.
/// impl Migrate for Planner {
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
/// tenon_sdk::export_strategy!(Planner, migrating);
/// # fn main() {}
/// ```
pub trait Migrate: Strategy {
    /// Reads the memory that an older version left in the form `from`; never an empty one.
    ///
    /// Errors: why it cannot be read; it then starts afresh.
    fn upgrade(&self, from: Form<'_>, memory: &[u8]) -> Result<Self::Memory, String>;

    /// Writes a memory for an older version in the form `to`.
    ///
    /// Errors: as [`upgrade`](Self::upgrade).
    fn downgrade(&self, to: Form<'_>, memory: Self::Memory) -> Result<Vec<u8>, String>;
}

/// Makes a [`Strategy`] the plugin of this crate; once a crate. With `migrating`, `export_strategy!(MyStrategy,
/// migrating)`, its [`Migrate`] as well. Empty off wasm32.
#[macro_export]
macro_rules! export_strategy {
    ($strategy:ty) => {
        $crate::__export_strategy!($strategy, Strategy, {});
    };
    ($strategy:ty, migrating) => {
        $crate::__export_strategy!($strategy, Migrate, {
            $crate::__export_migration!(sync, $strategy);
        });
    };
}

/// What both forms of [`export_strategy!`](crate::export_strategy) come to: the trait that must be there, and what is
/// exported beyond the kind's interface.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_strategy {
    ($strategy:ty, $needed:ident, { $($more:tt)* }) => {
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

            $($more)*
        };
        // Off wasm32 nothing is exported, but what would be is still checked.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() = || {
            fn is_there<P: $crate::sync::$needed>() {}
            is_there::<$strategy>();
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
