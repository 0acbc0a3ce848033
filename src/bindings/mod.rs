//! Between the node's roles and the components that play them: one file a kind, the only places that know both a role's
//! own types and its WIT world.

mod agent;
pub mod builtin;
mod rate_limit;
mod replay;
mod simulate;
mod sync;

pub use agent::AgentHandler;
pub use rate_limit::RateLimit;
pub use replay::{explain, latest, replay};
pub use simulate::{Component, Lab};
pub use sync::SyncStrategy;

use anyhow::{Context, Result};
use tenon_runtime::{Host, HostConfig, Report};

/// Takes a component of any of the three kinds through every step of loading that needs no slot.
///
/// Errors: not about the component, which is what the report is for; the machine has no room for a host.
pub fn inspect(component: &[u8]) -> Result<Report> {
    let scratch = tempfile::tempdir().context("creating a folder")?;
    let host = Host::new(HostConfig::new(scratch.path().join("plugins"), scratch.path().join("state")))?;
    host.kind::<RateLimit>()?;
    host.kind::<SyncStrategy>()?;
    host.kind::<AgentHandler>()?;
    let report = host.inspect(component);
    host.stop();
    Ok(report)
}

/// The text of `tenon:chain`, on which two of the kinds build.
const CHAIN_WIT: &str = include_str!("../../wit/chain/chain.wit");
