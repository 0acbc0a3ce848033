//! Strategies in virtual time: the follower's own engine, with its own rules, among modelled peers. Nothing here waits,
//! reads a clock or draws chance that is not the seed's: the same scenario, strategy and seed give the same result, to
//! the byte, and an hour of sync takes a second.
//!
//! [`Scenario`] says what there is and what befalls it, [`network`] carries messages, [`sources`] answers them,
//! [`Simulation`] drives the engine through it all, and what comes of that is an [`Outcome`], to be compared with
//! others in a [`report`] and drawn in a [`picture`].

mod agenda;
mod chain;
mod exchange;
mod machine;
pub mod network;
pub mod picture;
mod planner;
mod random;
pub mod report;
mod scenario;
mod simulation;
mod snapshots;
mod sources;
mod tally;

pub use agenda::Agenda;
pub use chain::START;
pub use planner::{Native, Plan, Planner, Step};
pub use random::Random;
pub use report::Outcome;
pub use scenario::{About, Chain, Group, Node, Partition, Scenario, ScenarioError, Span};
pub use simulation::{Simulation, Size};
pub use tally::{Bar, End};
