//! Hosts WebAssembly components as hot-swappable pure steps.

mod catalog;
mod context;
mod digest;
mod engine;
mod event;
mod generation;
mod health;
pub mod host;
mod inspect;
mod kind;
mod limits;
mod load;
mod log;
mod memory;
mod slot;
mod store;
mod wasi;
mod watcher;

pub use catalog::PluginFile;
pub use context::Context;
pub use digest::Digest;
pub use event::{Change, Event};
pub use host::{ControlError, Host, HostConfig, Report, ScanReport};
pub use kind::Kind;
pub use limits::{Failure, Limits, OnFailure, PluginConfig, Refusal};
pub use load::{Description, MemoryId, Rejection, Stage};
pub use log::{LINE_MAX_BYTES, TARGET as LOG_TARGET};
pub use slot::{By, Condition, Decision, Slot, Status, Step};
pub use wasmtime;
