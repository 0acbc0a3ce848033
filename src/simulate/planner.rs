//! Who plans in a simulation. What a component does here is decided elsewhere: this is what the simulation needs of it.

use crate::sync::{Action, Event, View, one_peer};

/// A strategy, with its memory.
pub trait Planner: Send {
    /// What it is called in the report.
    fn name(&self) -> &str;

    /// What to do next. Errors: why it did not answer; the built-in answers then.
    fn next(&mut self, view: &View, events: &[Event]) -> Result<Plan, String>;
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to do.
    pub actions: Vec<Action>,
    /// What the answer cost, in units of fuel; 0 where that is not counted.
    pub fuel: u64,
}

/// A native strategy: a step and its memory.
pub struct Native {
    name: String,
    step: Step,
    memory: Vec<u8>,
}

/// One step: what is known and remembered goes in, what to do and to remember comes out.
pub type Step = fn(&View, &[Event], &[u8]) -> (Vec<Action>, Vec<u8>);

impl Native {
    /// Remembers nothing yet.
    pub fn new(name: &str, step: Step) -> Self {
        Self { name: name.to_owned(), step, memory: Vec::new() }
    }

    /// The built-in strategy.
    pub fn builtin() -> Self {
        Self::new("builtin", one_peer::step)
    }
}

impl Planner for Native {
    fn name(&self) -> &str {
        &self.name
    }

    fn next(&mut self, view: &View, events: &[Event]) -> Result<Plan, String> {
        let (actions, memory) = (self.step)(view, events, &self.memory);
        self.memory = memory;
        Ok(Plan { actions, fuel: 0 })
    }
}
