//! Hosts WebAssembly components as hot-swappable pure steps.
//!
//! A *plugin* is a component that implements one WIT *world*, and every world is one pure *step*:
//! `(request, memory) -> (answer, memory)`. A [`Slot`] is the place where such a step is needed. It always has a native
//! *built-in*, so asking it cannot fail. [`Host`] follows a directory of `*.wasm` and swaps what serves the slots while
//! calls go on. This crate knows no chain, no HTTP and no database; what it hosts, a [`Kind`] tells it.
//!
//! ```no_run
//! # use tenon_runtime::*;
//! # fn example<Policy: Kind<Key = u64>>(
//! #     builtin: fn(&Policy::Request, &Policy::Memory) -> (Policy::Answer, Policy::Memory),
//! #     request: Policy::Request,
//! # ) -> anyhow::Result<()> {
//! let host = Host::new(HostConfig::new("plugins", "state"))?;
//! let slot = host.slot::<Policy>("rate-limit", PluginConfig::plugin("token-bucket"), builtin)?;
//! for rejected in host.open().rejected {
//!     eprintln!("{rejected}");
//! }
//! host.watch()?;
//! let answer = slot.decide(&17, &request); // the plugin's, or the built-in's
//! # drop(answer);
//! host.stop();
//! # Ok(())
//! # }
//! ```
//! A whole kind, from its WIT to components in text, is in `tests/support`.
//!
//! # Map
//! | file | subject |
//! |---|---|
//! | `host` | the front door: slots, first scan, watch, orders; every change under one lock, in order |
//! | `kind` | what a kind is: one world as one typed step, and which answers are sound |
//! | `slot` | a call: memory, generation, failure policy; where erased meets typed |
//! | `rollout` | the way of a generation to live and back: a pure state machine |
//! | `shadow` | a candidate beside what serves: the same calls, answers compared |
//! | `generation`, `latency` | one version in one slot: idle instances, a single call, counts, times |
//! | `memory` | what is remembered by key, bounded |
//! | `health`, `poison` | healthy, quarantined, on trial; subjects that are set aside alone: pure state machines |
//! | `load`, `inspect` | from bytes to a candidate; what differs from the world, item by item |
//! | `catalog`, `watcher`, `store` | what the directory holds; when to look; what the host keeps itself |
//! | `signature` | who may sign components, and whether a signature is theirs; pure |
//! | `journal` | what a slot's plugin was asked and answered: recorded, kept in a ring of files, read back |
//! | `replay` | recorded calls, made again on another component; deterministic |
//! | `engine`, `context`, `limits` | wasmtime's settings, clock and code cache; what an instance may use |
//! | `log`, `wasi` | the two things that a component may import |
//! | `event` | what operators are told |
//!
//! # A call
//! [`Slot::decide`] locks the key's shard, loads what serves (one pointer), and runs the step on the shard's instance
//! with a fresh deadline. The memory changes only when the answer is taken. A trap, an overrun or an unsound answer costs
//! the instance, counts against the generation, and is answered by the generation before or the built-in (or open, or
//! closed). A healthy call allocates nothing, and one in sixteen takes the time.
//!
//! # A change
//! New bytes are read once, hashed, checked for a trusted signature, compared with the kind's world, compiled (or found in
//! the cache), linked, described, given their settings and probed. Then they go live, or first into the shadow of what
//! serves, or to a share of the keys, as the slot's [`Rollout`] says; each is one pointer. Whatever fails on the way is a
//! [`Rejection`] with its stage and reason, and what served before serves on. Calls under way end on the generation where
//! they began. The one before is kept to answer what the new one fails, and to serve again when that happens too often.

mod catalog;
mod context;
mod differ;
mod digest;
mod engine;
mod event;
mod generation;
mod health;
pub mod host;
mod inspect;
pub mod journal;
mod kind;
mod latency;
mod limits;
mod load;
mod log;
mod memory;
mod poison;
mod priority;
pub mod replay;
mod rollout;
mod shadow;
mod signature;
mod slot;
mod store;
mod wasi;
mod watcher;

pub use catalog::PluginFile;
pub use context::Context;
pub use digest::{ConfigDigest, Digest};
pub use event::{Change, Event};
pub use host::{ControlError, Host, HostConfig, Report, ScanReport};
pub use kind::Kind;
pub use latency::Times;
pub use limits::{Failure, Limit, Limits, OnFailure, PluginConfig, Refusal};
pub use load::{Description, MemoryId, Rejection, Stage};
pub use log::{LINE_MAX_BYTES, TARGET as LOG_TARGET};
pub use priority::stand_back;
pub use rollout::{Evidence, Phase, Probation, Rollout, Transition};
pub use shadow::{Divergence, Example, Group};
pub use signature::{KeyError, SIGNATURE_MAX_BYTES, TrustedKey, verify_signature};
pub use slot::{Builtin, By, Condition, Decision, GenerationStatus, JournalStatus, Role, Slot, Status, Step};
/// The engine, in the version that a kind's `bindgen!` must be of.
pub use wasmtime;
