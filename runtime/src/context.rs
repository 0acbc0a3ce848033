//! What the host keeps beside each instance: its limits, its log, its inert WASI.

use std::sync::Arc;

use wasmtime::ResourceLimiter;

use crate::{engine::Alive, limits::Limits, log::LogGate, wasi::Wasi};

/// The data of an instance's store. Kinds pass it on and never look inside.
pub struct Context {
    pub(crate) memory: MemoryLimit,
    pub(crate) log: Arc<LogGate>,
    /// Only for components that import WASI.
    pub(crate) wasi: Option<Box<Wasi>>,
    _alive: Alive,
}

impl Context {
    pub(crate) fn new(limits: &Limits, log: Arc<LogGate>, uses_wasi: bool, alive: Alive) -> Context {
        Context {
            memory: MemoryLimit {
                memory_bytes: 0,
                memory_max_bytes: limits.memory_max_bytes,
                table_max_elements: usize::try_from(limits.table_max_elements).unwrap_or(usize::MAX),
                instances_max: usize::try_from(limits.instances_max).unwrap_or(usize::MAX),
                refused_bytes: None,
            },
            log,
            wasi: uses_wasi.then(Box::default),
            _alive: alive,
        }
    }
}

/// Keeps an instance within its memory: all its linear memories together.
pub(crate) struct MemoryLimit {
    memory_bytes: u64,
    memory_max_bytes: u64,
    table_max_elements: usize,
    instances_max: usize,
    /// Set when a growth was refused, which ends the call: what the instance would have had.
    pub(crate) refused_bytes: Option<u64>,
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let wanted = self.memory_bytes + desired.saturating_sub(current) as u64;
        if wanted > self.memory_max_bytes {
            self.refused_bytes = Some(wanted);
            // An error, not `false`: guests turn a refused growth into a trap that no longer says why.
            wasmtime::bail!("memory limit");
        }
        self.memory_bytes = wanted;
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= self.table_max_elements)
    }

    fn instances(&self) -> usize {
        self.instances_max
    }

    fn tables(&self) -> usize {
        self.instances_max
    }

    fn memories(&self) -> usize {
        self.instances_max
    }
}
