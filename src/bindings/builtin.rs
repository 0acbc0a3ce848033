//! The roles' built-ins, as slots want them: what answers while no plugin does.

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::Deserialize as _;
use serde_json::Value;
use tenon_runtime::{Builtin, Kind};

use super::{AgentHandler, RateLimit, SyncStrategy};
use crate::agent;
use crate::rate_limit::token_bucket::{self, Settings};
use crate::sync::one_peer;

/// A token bucket for each caller and class; its settings may change while it serves.
pub struct TokenBucket(ArcSwap<Settings>);

impl TokenBucket {
    /// Serves with `settings`. Errors: the first number that is out of range.
    pub fn new(settings: Settings) -> Result<Self, String> {
        settings.check()?;
        Ok(Self(ArcSwap::from_pointee(settings)))
    }
}

impl Builtin<RateLimit> for TokenBucket {
    fn step(&self, request: &Request<RateLimit>, memory: &Memory<RateLimit>) -> Step<RateLimit> {
        token_bucket::step(&self.0.load(), request, memory)
    }

    fn configure(&self, settings: &Value) -> Result<(), String> {
        let settings = Settings::deserialize(settings).map_err(|error| error.to_string())?;
        settings.check()?;
        self.0.store(Arc::new(settings));
        Ok(())
    }
}

/// Everything from one source after the other.
pub struct OnePeer;

impl Builtin<SyncStrategy> for OnePeer {
    fn step(&self, question: &Request<SyncStrategy>, memory: &Memory<SyncStrategy>) -> Step<SyncStrategy> {
        one_peer::step(&question.view, &question.events, memory)
    }
}

/// Every message is kept for later.
pub struct Park;

impl Builtin<AgentHandler> for Park {
    fn step(&self, question: &Request<AgentHandler>, memory: &Memory<AgentHandler>) -> Step<AgentHandler> {
        (agent::Park::step(&question.context, &question.event, memory).into(), memory.clone())
    }
}

type Request<K> = <K as Kind>::Request;
type Memory<K> = <K as Kind>::Memory;
type Step<K> = (<K as Kind>::Answer, <K as Kind>::Memory);
