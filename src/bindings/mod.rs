//! Between the node's roles and the components that play them: one file a kind, the only places that know both a role's
//! own types and its WIT world.

mod agent;
mod rate_limit;
mod sync;

pub use agent::AgentHandler;
pub use rate_limit::RateLimit;
pub use sync::SyncStrategy;

/// The text of `tenon:chain`, on which two of the kinds build.
const CHAIN_WIT: &str = include_str!("../../wit/chain/chain.wit");
