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

/// Makes a [`Policy`] the plugin of this crate; once a crate. Empty off wasm32.
#[macro_export]
macro_rules! export_policy {
    ($policy:ty) => {
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
        };
        // Off wasm32 nothing is exported, but what would be is still checked.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() = || {
            fn is_policy<P: $crate::rate_limit::Policy>() {}
            is_policy::<$policy>();
        };
    };
}
