//! A component that is asked directly, on the deterministic engine: for whoever makes up the calls instead of reading them
//! from a journal.

use serde_json::Value;

use super::{Replay, Side, runner::Runner};
use crate::{kind::Kind, limits::Limits};

/// One component with one configuration. The caller keeps its memory.
pub struct Stepper<K: Kind> {
    runner: Runner<K>,
}

/// What a step came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Stepped<A, M> {
    /// The answer and the memory after it, or why there is none.
    pub answer: Result<(A, M), String>,
    /// Fuel used.
    pub fuel: u64,
}

impl<K: Kind> Replay<K> {
    /// A component that is asked directly, configured with `settings`; a call may use `fuel_max`, and
    /// of all else the most that there is room for.
    ///
    /// Errors: the component is not taken, or does not take its configuration.
    pub fn stepper(&self, component: &[u8], settings: &Value, fuel_max: u64) -> anyhow::Result<Stepper<K>> {
        let limits = Limits { fuel_max, ..self.engine.widest_limits() };
        let mut runner = self.runner(component, Some(&limits))?;
        runner.configure(settings)?;
        Ok(Stepper { runner })
    }
}

impl<K: Kind> Stepper<K> {
    /// Which component it is.
    pub fn side(&self) -> Side {
        self.runner.side()
    }

    /// One step: the same for the same request and memory, on any machine. After one that failed, the next one finds the
    /// component as it was at first.
    pub fn step(&mut self, request: &K::Request, memory: &K::Memory) -> Stepped<K::Answer, K::Memory> {
        let (answer, fuel) = self.runner.step(request, memory);
        Stepped { answer: answer.map_err(|failed| format!("{}: {}", failed.cause, failed.message)), fuel }
    }
}
