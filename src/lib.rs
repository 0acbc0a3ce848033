//! Tenon: a chain node whose policies are WebAssembly components.

pub mod agent;
pub mod chain;
pub mod rate_limit;
pub mod sync;
