//! Policies: who may call how often.
//!
//! A policy sees one request and what it remembers of that caller, four words of its own choosing, zeros at first.

use crate::Plugin;

pub use wit::exports::tenon::rate_limit::policy::{
    Allowance, Cell, Denial, Request, RouteClass, Throttled, Trust, Verdict,
};

/// The bindings.
#[doc(hidden)]
pub mod wit {
    wit_bindgen::generate!({
        inline: "package tenon:sdk@0.1.0; world rate-limit-part { export tenon:rate-limit/policy@0.1.0; }",
        path: ["../../wit/host", "../../wit/rate-limit"],
        runtime_path: "::tenon_sdk::wit_bindgen::rt",
        additional_derives: [PartialEq, Eq, Hash],
        pub_export_macro: true,
        default_bindings_module: "tenon_sdk::rate_limit::wit",
    });
}

/// The bindings of the optional part.
#[doc(hidden)]
pub mod wit_migration {
    wit_bindgen::generate!({
        inline: "package tenon:sdk@0.1.0; world rate-limit-migration-part { export tenon:rate-limit/migration@0.1.0; }",
        path: ["../../wit/host", "../../wit/rate-limit"],
        runtime_path: "::tenon_sdk::wit_bindgen::rt",
        pub_export_macro: true,
        default_bindings_module: "tenon_sdk::rate_limit::wit_migration",
    });
}

/// Decides requests, one at a time.
pub trait Policy: Plugin {
    /// Decides one request. `cell` is what was returned last time for the same caller; what is returned beside the
    /// verdict is kept for the next time.
    fn check(&self, request: &Request, cell: Cell) -> (Verdict, Cell);
}

impl Allowance {
    /// Of a caller who has no limit.
    pub const UNLIMITED: Self = Self { limit: u64::MAX, remaining: u64::MAX, reset_ms: 0 };
}

/// Takes over the cells of older versions, and gives them back.
///
/// The node asks a cell at a time, when its caller comes next, and before this version goes live on a sample of the cells
/// there are: an error or a panic then keeps this version out. Later it costs that caller its memory.
///
/// ```
/// use tenon_sdk::rate_limit::{Cell, Migrate, Policy};
/// # use tenon_sdk::rate_limit::{Allowance, Request, Verdict};
/// # use tenon_sdk::{Plugin, serde::Deserialize};
/// # struct Bucket;
/// # #[derive(Deserialize)]
/// # #[serde(crate = "tenon_sdk::serde")]
/// # struct Settings {}
/// # impl Plugin for Bucket {
/// #     type Settings = Settings;
/// #     const MEMORY_VERSION: u32 = 2;
/// #     fn new(_: Settings) -> Result<Self, String> { Ok(Self) }
/// # }
/// # impl Policy for Bucket {
/// #     fn check(&self, _: &Request, cell: Cell) -> (Verdict, Cell) {
/// #         (Verdict::Allow(Allowance::UNLIMITED), cell)
/// #     }
/// # }
///
/// /// Version 1 kept milliseconds in the second word, version 2 keeps microseconds.
/// impl Migrate for Bucket {
///     fn upgrade(&self, from_version: u32, cell: Cell) -> Result<Cell, String> {
///         match from_version {
///             1 => Ok((cell.0, cell.1.saturating_mul(1000), 0, 0)),
///             other => tenon_sdk::unknown_version(other),
///         }
///     }
///
///     fn downgrade(&self, to_version: u32, cell: Cell) -> Result<Cell, String> {
///         match to_version {
///             1 => Ok((cell.0, cell.1 / 1000, 0, 0)),
///             other => tenon_sdk::unknown_version(other),
///         }
///     }
/// }
///
/// tenon_sdk::export_policy!(Bucket, migrating);
/// # fn main() {}
/// ```
pub trait Migrate: Policy {
    /// Turns a cell of the version with this lower `MEMORY_VERSION` into one of this version's.
    ///
    /// Errors: why it cannot be turned; the caller then begins with zeros.
    fn upgrade(&self, from_version: u32, cell: Cell) -> Result<Cell, String>;

    /// Turns a cell of this version into one that the version with this lower `MEMORY_VERSION` can read.
    ///
    /// Errors: as [`upgrade`](Self::upgrade).
    fn downgrade(&self, to_version: u32, cell: Cell) -> Result<Cell, String>;
}

/// Makes a [`Policy`] the plugin of this crate; once a crate. With `migrating`, `export_policy!(MyPolicy, migrating)`, its
/// [`Migrate`] as well. Empty off wasm32.
#[macro_export]
macro_rules! export_policy {
    ($policy:ty) => {
        $crate::__export_policy!($policy, Policy, {});
    };
    ($policy:ty, migrating) => {
        $crate::__export_policy!($policy, Migrate, {
            $crate::rate_limit::wit_migration::export!(Export with_types_in $crate::rate_limit::wit_migration);

            impl $crate::rate_limit::wit_migration::exports::tenon::rate_limit::migration::Guest for Export {
                fn upgrade(
                    from_version: u32,
                    cell: $crate::rate_limit::Cell,
                ) -> ::std::result::Result<$crate::rate_limit::Cell, ::std::string::String> {
                    PLUGIN.with(|plugin| {
                        let policy = $crate::export::configured(plugin);
                        $crate::rate_limit::Migrate::upgrade(policy, from_version, cell)
                    })
                }

                fn downgrade(
                    to_version: u32,
                    cell: $crate::rate_limit::Cell,
                ) -> ::std::result::Result<$crate::rate_limit::Cell, ::std::string::String> {
                    PLUGIN.with(|plugin| {
                        let policy = $crate::export::configured(plugin);
                        $crate::rate_limit::Migrate::downgrade(policy, to_version, cell)
                    })
                }
            }
        });
    };
}

/// What both forms of [`export_policy!`](crate::export_policy) come to: the trait that must be there, and what is exported
/// beyond the kind's interface.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_policy {
    ($policy:ty, $needed:ident, { $($more:tt)* }) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            $crate::__export_lifecycle!($policy);
            $crate::rate_limit::wit::export!(Export with_types_in $crate::rate_limit::wit);

            impl $crate::rate_limit::wit::exports::tenon::rate_limit::policy::Guest for Export {
                fn check(
                    request: $crate::rate_limit::Request,
                    cell: $crate::rate_limit::Cell,
                ) -> ($crate::rate_limit::Verdict, $crate::rate_limit::Cell) {
                    PLUGIN.with(|plugin| {
                        let policy = $crate::export::configured(plugin);
                        $crate::rate_limit::Policy::check(policy, &request, cell)
                    })
                }
            }

            $($more)*
        };
        // Off wasm32 nothing is exported, but what would be is still checked.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() = || {
            fn is_there<P: $crate::rate_limit::$needed>() {}
            is_there::<$policy>();
        };
    };
}
