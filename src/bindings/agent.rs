//! `tenon:agent` <-> [`crate::agent`].

use serde::{Deserialize, Serialize};
use tenon_runtime::wasmtime::{self, Store};
use tenon_runtime::{By, Context as InstanceContext, Failure, Kind, Limits, MemoryId, Refusal, Slot, world};

use crate::agent::{Aside, Context, Effect, Event, Handler, Outcome, check_effects};
use crate::chain::{Payload, Time};

mod wit {
    tenon_runtime::wasmtime::component::bindgen!({
        path: ["wit/host", "wit/chain", "wit/agent"],
        world: "tenon:agent/agent-handler",
        wasmtime_crate: tenon_runtime::wasmtime,
    });
}
use wit::exports::tenon::agent::handler;

/// The kind of plugin that answers an agent's mail.
pub struct AgentHandler;

/// What a handler is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Where the agent stands.
    pub context: Context,
    /// What happened.
    pub event: Event,
}

/// What a handler answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// What it wants done.
    Handled(Vec<Effect>),
    /// Why it cannot handle the event.
    SetAside(String),
    /// Something that has no meaning to the node; the reason.
    Malformed(String),
}

/// What a handler may remember, in bytes.
const MEMORY_MAX_BYTES: usize = 64 << 10;
/// Bytes of a reason that are kept.
const REASON_MAX_BYTES: usize = 1_024;

impl Kind for AgentHandler {
    const NAME: &'static str = "agent";
    const INTERFACE: &'static str = "tenon:agent/handler@0.1.0";
    const WORLD: &'static str = "tenon:agent/agent-handler@0.1.0";
    const WIT: &'static [&'static str] = &[super::CHAIN_WIT, include_str!("../../wit/agent/handler.wit")];

    type Key = ();
    type Request = Question;
    type Answer = Answer;
    type Memory = Vec<u8>;
    type Wire = Vec<u8>;
    const MIGRATION: Option<&'static str> = Some("tenon:agent/migration@0.1.0");
    /// What an agent remembers, nobody else does: of a conversation, of what it owes.
    const FORGETS: bool = false;
    world!(wit::AgentHandler, wit::AgentHandlerIndices);

    fn step(
        world: &Self::World,
        store: &mut Store<InstanceContext>,
        question: &Question,
        memory: &Vec<u8>,
    ) -> wasmtime::Result<(Answer, Vec<u8>)> {
        let context = handler::Context::from(&question.context);
        let event = handler::Event::from(&question.event);
        Ok(match world.tenon_agent_handler().call_handle(store, &context, &event, memory)? {
            Ok((effects, memory)) => match effects.into_iter().map(effect_of).collect() {
                Ok(effects) => (Answer::Handled(effects), memory),
                Err(reason) => (Answer::Malformed(reason), Vec::new()),
            },
            Err(mut reason) => {
                reason.truncate(reason.floor_char_boundary(REASON_MAX_BYTES));
                (Answer::SetAside(reason), memory.clone())
            }
        })
    }

    fn step_key() -> Option<()> {
        Some(())
    }

    fn to_wire(memory: &Vec<u8>) -> Vec<u8> {
        memory.clone()
    }

    fn from_wire(memory: Vec<u8>) -> Vec<u8> {
        memory
    }

    fn label(answer: &Answer) -> &'static str {
        match answer {
            Answer::Handled(effects) if effects.is_empty() => "ignored",
            Answer::Handled(_) => "handled",
            Answer::SetAside(_) => "set-aside",
            Answer::Malformed(_) => "malformed",
        }
    }

    fn labels() -> &'static [&'static str] {
        &["ignored", "handled", "set-aside", "malformed"]
    }

    fn class(question: &Question) -> &'static str {
        match question.event {
            Event::Message(_) => "message",
            Event::Timer(_) => "timer",
        }
    }

    /// The sender of a message.
    fn subject(question: &Question) -> Option<u64> {
        match &question.event {
            Event::Message(message) => Some(u64::from_le_bytes(message.from.0[..8].try_into().expect("20 bytes"))),
            Event::Timer(_) => None,
        }
    }

    fn check(question: &Question, answer: &Answer, _: &Limits) -> Result<(), Refusal> {
        match answer {
            Answer::Handled(effects) => check_effects(&question.event, effects).map_err(Refusal::new),
            Answer::SetAside(_) => Ok(()),
            Answer::Malformed(reason) => Err(Refusal::new(reason.clone())),
        }
    }

    fn size_bytes(answer: &Answer, memory: &Vec<u8>) -> usize {
        // A memory beyond its own bound counts as an answer beyond every bound.
        if memory.len() > MEMORY_MAX_BYTES {
            return usize::MAX;
        }
        let effects = match answer {
            Answer::Handled(effects) => effects.as_slice(),
            Answer::SetAside(_) | Answer::Malformed(_) => &[],
        };
        let payloads = effects.iter().map(|effect| match effect {
            Effect::Reply(payload) | Effect::Send { payload, .. } => payload.len(),
            Effect::StartTimer { .. } | Effect::Emit { .. } => 0,
        });
        memory.len() + payloads.sum::<usize>()
    }

    fn now_us(question: &Question) -> u64 {
        question.context.now.0
    }
}

impl Handler for Slot<AgentHandler> {
    /// The stored memory says whose it is, so that one plugin's is never handed to another: a JSON line, then its bytes.
    fn handle(&self, context: &Context, event: &Event, stored: &[u8]) -> Outcome {
        let question = Question { context: context.clone(), event: event.clone() };
        let (id, memory) = split(stored);
        let step = self.step_from(&question, &memory, &id);
        match step.answer {
            Answer::Handled(effects) => Ok((effects, join(&step.memory_id, &step.memory))),
            Answer::SetAside(_) | Answer::Malformed(_) if step.unattended => Err(Aside::NoHandler),
            Answer::SetAside(reason) | Answer::Malformed(reason) => Err(Aside::Refused(match step.failure {
                None if step.by == By::Builtin => {
                    "the handler is not asked for this sender for a while, since it failed \
                                                   on messages of theirs"
                        .to_owned()
                }
                None => reason,
                Some(failure @ Failure::Unreadable { .. }) => format!(
                    "{failure}; it stays as it is until a version that can is back, or `tenon plugin promote {} --force` \
                     gives it up",
                    self.name()
                ),
                Some(failure) => failure.to_string(),
            })),
        }
    }

    fn is_there(&self) -> bool {
        self.is_attended()
    }
}

fn split(stored: &[u8]) -> (MemoryId, Vec<u8>) {
    stored
        .iter()
        .position(|&byte| byte == b'\n')
        .and_then(|end| Some((serde_json::from_slice(&stored[..end]).ok()?, stored[end + 1..].to_vec())))
        .unwrap_or((MemoryId::BUILTIN, Vec::new()))
}

fn join(id: &MemoryId, memory: &[u8]) -> Vec<u8> {
    let mut stored = serde_json::to_vec(id).expect("a name and a number");
    stored.push(b'\n');
    stored.extend_from_slice(memory);
    stored
}

impl From<Outcome> for Answer {
    /// For the built-in, whose memory the dispatcher keeps as it is.
    fn from(outcome: Outcome) -> Self {
        outcome.map_or_else(|aside| Self::SetAside(aside.to_string()), |(effects, _)| Self::Handled(effects))
    }
}

impl From<&Context> for handler::Context {
    fn from(context: &Context) -> Self {
        Self {
            agent: context.agent.clone(),
            wallet: context.wallet.to_string(),
            now: context.now.0,
            height: context.height,
            balance: context.balance,
            message_fee: context.message_fee,
            fee_left: context.fee_left,
        }
    }
}

impl From<&Event> for handler::Event {
    fn from(event: &Event) -> Self {
        match event {
            Event::Message(message) => Self::Message(handler::Message {
                id: message.id.0.to_vec(),
                from: message.from.to_string(),
                payload: match &message.payload {
                    Payload::Absent => handler::Payload::Text(String::new()),
                    Payload::Text(text) => handler::Payload::Text(text.clone()),
                    Payload::Object(json) => handler::Payload::Object(json.clone()),
                },
                height: message.height,
                time: message.time.0,
            }),
            Event::Timer(tag) => Self::Timer(tag.clone()),
        }
    }
}

/// An effect in the node's words. Errors: an address or a JSON object that is none.
fn effect_of(effect: handler::Effect) -> Result<Effect, String> {
    Ok(match effect {
        handler::Effect::Reply(payload) => Effect::Reply(payload_of(payload)?),
        handler::Effect::Send(outgoing) => Effect::Send {
            to: outgoing.to.parse().map_err(|error| format!("send: {error}"))?,
            payload: payload_of(outgoing.payload)?,
        },
        handler::Effect::StartTimer(timer) => Effect::StartTimer { tag: timer.tag, at: Time(timer.at) },
        handler::Effect::Emit(note) => Effect::Emit { topic: note.topic, text: note.text },
    })
}

fn payload_of(payload: handler::Payload) -> Result<Payload, String> {
    match payload {
        handler::Payload::Text(text) => Ok(Payload::Text(text)),
        handler::Payload::Object(json) => Payload::object(&json).map_err(|reason| format!("payload: {reason}")),
    }
}
