//! Strategies as components, for simulations: on the deterministic engine, where the same call costs the same fuel.

use anyhow::{Context as _, Result};
use serde_json::Value;
use tenon_runtime::Limits;
use tenon_runtime::replay::{Replay, Stepped, Stepper};

use super::SyncStrategy;
use super::sync::Question;
use crate::simulate::{Plan, Planner};
use crate::sync::{Event, View};

/// Where components are compiled for simulations.
pub struct Lab {
    replay: Replay<SyncStrategy>,
    /// Holds what is compiled, and goes with it.
    _scratch: tempfile::TempDir,
}

/// A component that plans.
pub struct Component {
    name: String,
    stepper: Stepper<SyncStrategy>,
    memory: Vec<u8>,
}

impl Lab {
    /// Errors: the machine has no room for it.
    pub fn new() -> Result<Self> {
        let scratch = tempfile::tempdir().context("creating a folder")?;
        Ok(Self { replay: Replay::new(scratch.path())?, _scratch: scratch })
    }

    /// A component of kind `sync`, configured with `settings`; it remembers nothing yet.
    ///
    /// Errors: the component is not taken, or does not take its configuration.
    pub fn planner(&self, component: &[u8], settings: &Value) -> Result<Component> {
        let stepper = self.replay.stepper(component, settings, Limits::default().fuel_max)?;
        Ok(Component { name: stepper.side().plugin, stepper, memory: Vec::new() })
    }
}

impl Component {
    /// The same under another name, where several have one.
    pub fn named(self, name: String) -> Self {
        Self { name, ..self }
    }

    /// The SHA-256 of its bytes, in hexadecimal.
    pub fn digest(&self) -> String {
        self.stepper.side().digest.to_string()
    }
}

impl Planner for Component {
    fn name(&self) -> &str {
        &self.name
    }

    fn next(&mut self, view: &View, events: &[Event]) -> Result<Plan, String> {
        let question = Question { view: view.clone(), events: events.to_vec() };
        let Stepped { answer, fuel } = self.stepper.step(&question, &self.memory);
        let (actions, memory) = answer?;
        self.memory = memory;
        Ok(Plan { actions, fuel })
    }
}
