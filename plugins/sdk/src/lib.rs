//! Write Tenon plugins in Rust: an algorithm, its settings, and one macro line.
//!
//! A plugin is a pure step. What it needs arrives as arguments (the time too), what it wants is in what it returns, and
//! what it must remember it gives back as its memory, which the node keeps. There are three kinds:
//!
//! | kind | trait | exported by | asked |
//! |---|---|---|---|
//! | [`rate_limit`] | [`rate_limit::Policy`] | [`export_policy!`] | may this request pass? |
//! | [`sync`] | [`sync::Strategy`] | [`export_strategy!`] | which blocks from whom? |
//! | [`agent`] | [`agent::Handler`] | [`export_handler!`] | what is the answer to this message? |
//!
//! Whatever its kind, a type first says what its settings are: [`Plugin`]. The package's name, version and description
//! (in `Cargo.toml`) are the plugin's name, version and summary. A whole plugin:
//!
//! ```
//! use tenon_sdk::rate_limit::{Allowance, Cell, Policy, Request, Verdict};
//! use tenon_sdk::{Plugin, serde::Deserialize};
//!
//! /// Lets everybody through.
//! struct Everybody;
//!
//! #[derive(Deserialize)]
//! #[serde(crate = "tenon_sdk::serde")]
//! struct Settings {}
//!
//! impl Plugin for Everybody {
//!     type Settings = Settings;
//!
//!     fn new(_: Settings) -> Result<Self, String> {
//!         Ok(Self)
//!     }
//! }
//!
//! impl Policy for Everybody {
//!     fn check(&self, _: &Request, cell: Cell) -> (Verdict, Cell) {
//!         (Verdict::Allow(Allowance::UNLIMITED), cell)
//!     }
//! }
//!
//! tenon_sdk::export_policy!(Everybody);
//! # fn main() {}
//! ```
//!
//! # Memory in another form
//! A version that remembers something else, or otherwise, raises [`Plugin::MEMORY_VERSION`]; its memory then begins anew,
//! or, an agent's, waits for a version that can read it. To take over what older versions left, and to give it back when one of them serves again, it implements its kind's
//! `Migrate` ([`rate_limit::Migrate`], [`sync::Migrate`], [`agent::Migrate`]) and says so to the macro:
//! `export_policy!(Everybody, migrating)`.
//!
//! # Building
//! The crate is a `cdylib` (and an `rlib`, to test it natively); `tenon plugin build` makes the component. Off wasm32 the
//! macros are empty and [`log`] writes to stderr, so `cargo test`, `cargo clippy` and documentation work as anywhere.

// The bindings' macros name this crate from outside, and are expanded inside as well.
extern crate self as tenon_sdk;

pub mod agent;
pub mod log;
pub mod rate_limit;
pub mod sync;

#[doc(hidden)]
pub mod export;
mod form;
mod plugin;

/// The bindings that all kinds share.
///
/// A kind's own bindings are those of its interface alone: a plugin's world is the union of the two, which is made when
/// the component is. (Three worlds in one crate would each define the macros of `lifecycle`.)
#[doc(hidden)]
pub mod host {
    wit_bindgen::generate!({
        path: "../../wit/host",
        world: "plugin",
        runtime_path: "::tenon_sdk::wit_bindgen::rt",
        pub_export_macro: true,
        default_bindings_module: "tenon_sdk::host",
    });
}

pub use form::{Form, unknown_version};
pub use plugin::{Plugin, settings};
pub use serde;
#[doc(hidden)]
pub use wit_bindgen;
