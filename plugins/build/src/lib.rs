//! Builds guests: Rust crates in, components out, with nothing but a Rust toolchain and a linker.
//!
//! * [`build_all`] builds the plugins of this repository to `target/plugins/NAME.wasm`; [`path`] is the same for a test
//!   that wants one of them.
//! * [`build_dir`] builds an author's own crate (`tenon plugin build`).
//! * [`encode`] makes a component of a core module, [`restamp`] another version of a component.
//! * [`fixture`] makes components that are wrong on purpose, without a toolchain.
//!
//! Where the wasm target comes from is decided in [`toolchain`], by asking the compilers that are there.

pub mod fixture;
pub mod toolchain;

mod author;
mod cargo;
mod component;
mod contract;
mod mutate;
mod sysroot;
mod workspace;

pub use author::build_dir;
pub use component::{encode, restamp};
pub use mutate::mutants;
pub use workspace::{build_all, path};
