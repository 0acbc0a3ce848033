//! Rate limiting: the nouns, and the trait that the RPC layer asks. Whoever decides (the built-in or a component) stands
//! behind [`Policy`].

mod callers;
pub mod token_bucket;

pub use callers::{Caller, Callers, Networks, network};

/// What kind of work a route is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// What followers ask while they sync: heads and ranges.
    Sync,
    /// Reading one thing.
    Read,
    /// Handing in a transaction.
    Write,
    /// Handing in a block.
    Import,
}

/// How far the node trusts a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// Anyone.
    Public,
    /// An address that the operator named as a peer.
    Peer,
    /// The same machine.
    Loopback,
}

/// One request about to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Request {
    /// The caller: a keyed hash of its address (of the /64 for IPv6).
    pub client: u64,
    /// The route's number in the route table.
    pub route: u32,
    /// The route's class.
    pub class: Class,
    /// How far the caller is trusted.
    pub trust: Trust,
    /// What the answer is reckoned to cost, in units of one cheap read; at least 1.
    pub cost: u64,
    /// Now, in microseconds since 1970 UTC.
    pub now: u64,
}

/// What a policy remembers of one client; zeros at first.
pub type Cell = [u64; 4];

/// The decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Let it through.
    Allow {
        /// The most a caller can have, in units of cost.
        limit: u64,
        /// What it has left.
        remaining: u64,
        /// When all of it is back, in milliseconds.
        reset_ms: u64,
    },
    /// Too soon.
    Throttle {
        /// The most a caller can have, in units of cost.
        limit: u64,
        /// When it would pass, in milliseconds; 1 to 3,600,000.
        retry_after_ms: u64,
    },
    /// Not at all.
    Deny(Denial),
    /// No opinion: the built-in decides. Never leaves a [`Policy`].
    Pass,
}

/// Why a request is refused for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Denial {
    /// This caller may not use this class of routes.
    Forbidden,
    /// This request costs more than the caller can ever have.
    TooExpensive,
}

/// Who decides. Cannot fail: a policy that does is answered for by the built-in.
pub trait Policy: Send + Sync {
    /// Decides one request, before its handler runs.
    fn check(&self, request: &Request) -> Verdict {
        self.check_recorded(request).0
    }

    /// As [`check`](Self::check), with the name of the record of a refusal where decisions are recorded: what
    /// `tenon plugin explain` takes.
    fn check_recorded(&self, request: &Request) -> (Verdict, Option<String>);
}
