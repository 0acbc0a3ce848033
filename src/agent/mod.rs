//! Agents: the nouns, and the trait that answers mail. A [`Handler`] is a pure step; the [`Dispatcher`] stores what it
//! returns together with the block that brought the message, the [`outbox`] brings replies onto the chain, and
//! [`Agents`] is what the rest of the node sees of them. [`undo`] is what a reorg does to all of it.

mod dispatcher;
mod effects;
pub mod outbox;
mod park;
mod status;
#[cfg(test)]
mod tests;
mod turn;
mod undo;

pub use dispatcher::{AgentConfig, AgentLimits, AgentsError, Dispatcher, DispatcherHandle};
pub use effects::check_all as check_effects;
pub use park::Park;
pub use status::{AgentStatus, Agents, Parked, ParkedCount};

use crate::chain::{Address, Hash, Height, Payload, Time};

/// A message on the chain, addressed to an agent's wallet.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// The transaction's hash.
    pub id: Hash,
    /// Who sent it.
    pub from: Address,
    /// What it says.
    pub payload: Payload,
    /// The block that brought it.
    pub height: Height,
    /// That block's time.
    pub time: Time,
}

/// Where the agent stands.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Context {
    /// The agent's name.
    pub agent: String,
    /// Its wallet.
    pub wallet: Address,
    /// The time of the block at hand.
    pub now: Time,
    /// The height of the block at hand.
    pub height: Height,
    /// What the wallet has.
    pub balance: u64,
    /// What one message costs.
    pub message_fee: u64,
    /// What may still be spent on fees within this hour.
    pub fee_left: u64,
}

/// What a handler is called for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A message came.
    Message(Message),
    /// A timer with this tag has run out.
    Timer(String),
}

/// What a handler wants done.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Answer the sender.
    Reply(Payload),
    /// Write to anybody.
    Send {
        /// To whom.
        to: Address,
        /// What.
        payload: Payload,
    },
    /// Remind me.
    StartTimer {
        /// Comes back in the event; replaces a timer of the same tag.
        tag: String,
        /// With the first block at or after this moment.
        at: Time,
    },
    /// Tell the operator.
    Emit {
        /// A short name.
        topic: String,
        /// Text.
        text: String,
    },
}

/// What came of one event: what to do and the new memory, or why the event is set aside.
pub type Outcome = Result<(Vec<Effect>, Vec<u8>), Aside>;

/// Why an event is set aside, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Aside {
    /// Nobody was there to handle it: it comes again by itself as soon as somebody is.
    #[error("no handler is loaded; it waits here until one is")]
    NoHandler,
    /// What the handler says, or how it failed: it waits for the operator.
    #[error("{0}")]
    Refused(String),
}

impl From<String> for Aside {
    fn from(reason: String) -> Self {
        Self::Refused(reason)
    }
}

impl From<&str> for Aside {
    fn from(reason: &str) -> Self {
        Self::Refused(reason.to_owned())
    }
}

/// Who answers. Cannot fail: a handler that does is answered for by the built-in, which parks the message.
pub trait Handler: Send + Sync {
    /// Handles one event. `memory` is what this agent returned last time, empty at first.
    fn handle(&self, context: &Context, event: &Event, memory: &[u8]) -> Outcome;

    /// Whether somebody is there to handle events. While nobody is, it is not asked.
    fn is_there(&self) -> bool {
        true
    }
}
