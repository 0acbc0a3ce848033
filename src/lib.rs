//! Tenon: a chain node whose policies are WebAssembly components.

pub mod agent;
pub mod chain;
pub mod ledger;
pub mod mempool;
pub mod producer;
pub mod rate_limit;
pub mod sample;
pub mod storage;
pub mod sync;
