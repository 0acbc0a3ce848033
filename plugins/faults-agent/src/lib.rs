//! An agent's handler that misbehaves on demand: for tests of the host.
//!
//! The configuration says how, from which message on, and for whose. Until then it reads and says nothing. The messages
//! are counted in its memory; one that traps or is refused is not counted, and the next one is treated alike.

#[path = "../../faults/src/harm.rs"]
mod harm;

use serde::{Deserialize, Serialize};
use tenon_sdk::Plugin;
use tenon_sdk::agent::{Context, Effect, Event, Handler, Note, Outgoing, Payload, Timer};

/// Effects of a flood.
pub const FLOOD: usize = 10_000;
/// Bytes of a payload that is too large by one.
pub const HUGE_PAYLOAD_BYTES: usize = (64 << 10) + 1;
/// Bytes of a memory that is too large.
pub const HUGE_MEMORY_BYTES: usize = 128 << 10;

/// The plugin.
pub struct Faults {
    settings: Settings,
}

/// What goes wrong, and when.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What goes wrong.
    pub mode: Mode,
    /// The first event for which it does; 0 and 1 are the first.
    pub from_call: u64,
    /// The only sender for whose messages it does; all, and timers, unless given.
    pub sender: Option<String>,
}

/// What can go wrong.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Nothing: it never answers.
    #[default]
    Silent,
    /// Answers every message with itself: two of them talk until their budgets end.
    Echo,
    /// A panic, and so a trap.
    Panic,
    /// An endless loop.
    Spin,
    /// Memory without end.
    Hoard,
    /// Recursion without end.
    Recurse,
    /// An error: it cannot handle this.
    Error,
    /// An error of a mebibyte.
    ErrorHuge,
    /// 10,000 replies to one message.
    Flood,
    /// One message more than it may pay for.
    Overspend,
    /// A payload one byte too large.
    PayloadHuge,
    /// A payload that says it is an object, and is not JSON.
    PayloadBroken,
    /// A message to what is no address.
    AddressBroken,
    /// Timers without a tag, with a long one, in the past and at the end of time.
    Timers,
    /// A timer that starts itself again at once, and answers whoever is not there.
    ReplyToTimer,
    /// A note of a mebibyte, and one without a topic.
    NoteHuge,
    /// A memory of 128 KiB.
    MemoryHuge,
    /// 20,000 lines of log, and no answer.
    FloodLog,
    /// `configure` returns an error.
    ConfigureError,
}

/// What it remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Events so far.
    pub calls: u64,
    ballast: Vec<u8>,
}

impl Plugin for Faults {
    type Settings = Settings;

    const SCHEMA: &'static str = include_str!("../schema.json");

    fn new(settings: Settings) -> Result<Self, String> {
        match settings.mode {
            Mode::ConfigureError => Err("refused, as the configuration demands".to_owned()),
            _ => Ok(Self { settings }),
        }
    }
}

impl Handler for Faults {
    type Memory = Memory;

    fn handle(&self, context: &Context, event: &Event, memory: &mut Memory) -> Result<Vec<Effect>, String> {
        memory.calls = memory.calls.saturating_add(1);
        let is_meant = match (&self.settings.sender, event) {
            (None, _) => true,
            (Some(sender), Event::Message(message)) => *sender == message.from,
            (Some(_), Event::Timer(_)) => false,
        };
        if !is_meant || memory.calls < self.settings.from_call {
            return Ok(Vec::new());
        }
        if self.settings.mode == Mode::MemoryHuge {
            memory.ballast = vec![1; HUGE_MEMORY_BYTES];
        }
        effects(self.settings.mode, context, event)
    }
}

fn effects(mode: Mode, context: &Context, event: &Event) -> Result<Vec<Effect>, String> {
    let text = |text: &str| Payload::Text(text.to_owned());
    let to_self = |payload| Effect::Send(Outgoing { to: context.wallet.clone(), payload });
    let timer = |tag: &str, at| Effect::StartTimer(Timer { tag: tag.to_owned(), at });
    let note = |topic: &str, text: String| Effect::Emit(Note { topic: topic.to_owned(), text });
    Ok(match mode {
        Mode::Silent | Mode::MemoryHuge | Mode::ConfigureError => Vec::new(),
        Mode::Echo => match event {
            Event::Message(message) => vec![Effect::Reply(message.payload.clone())],
            Event::Timer(_) => Vec::new(),
        },
        Mode::Panic => panic!("a panic, as the configuration demands"),
        Mode::Spin => harm::spin(),
        Mode::Hoard => harm::hoard(),
        Mode::Recurse => vec![timer("deep", harm::recurse(0))],
        Mode::Error => return Err("not handled, as the configuration demands".to_owned()),
        Mode::ErrorHuge => return Err("not handled ".repeat(90_000)),
        Mode::Flood => vec![Effect::Reply(text("again")); FLOOD],
        Mode::Overspend => {
            let affordable = context.fee_left / context.message_fee.max(1);
            let one_too_many = usize::try_from(affordable).unwrap_or(FLOOD).min(FLOOD) + 1;
            vec![to_self(text("more")); one_too_many]
        }
        Mode::PayloadHuge => vec![Effect::Reply(text(&"x".repeat(HUGE_PAYLOAD_BYTES)))],
        Mode::PayloadBroken => vec![Effect::Reply(Payload::Object("{not json".to_owned()))],
        Mode::AddressBroken => {
            let to = "nobody".to_owned();
            vec![Effect::Send(Outgoing { to, payload: text("hello") })]
        }
        Mode::Timers => vec![
            timer("", context.now),
            timer(&"long".repeat(100), context.now),
            timer("past", 0),
            timer("never", u64::MAX),
        ],
        Mode::ReplyToTimer => match event {
            Event::Message(_) => vec![timer("again", context.now)],
            Event::Timer(tag) => vec![Effect::Reply(text("nobody asked")), timer(tag, context.now)],
        },
        Mode::NoteHuge => vec![note("huge", "note ".repeat(200_000)), note("", String::new())],
        Mode::FloodLog => {
            harm::flood_log();
            Vec::new()
        }
    })
}

tenon_sdk::export_handler!(Faults);

#[cfg(test)]
mod tests {
    use tenon_sdk::agent::Message;

    use super::*;

    fn handler(settings: &str) -> Faults {
        Faults::new(tenon_sdk::settings::<Faults>(settings).unwrap()).unwrap()
    }

    fn context() -> Context {
        Context {
            agent: "bob".to_owned(),
            wallet: "ait1bob".to_owned(),
            now: 5,
            height: 7,
            balance: 100,
            message_fee: 2,
            fee_left: 10,
        }
    }

    fn message(from: &str) -> Event {
        let payload = Payload::Text("hello".to_owned());
        Event::Message(Message { id: vec![0; 32], from: from.to_owned(), payload, height: 7, time: 5 })
    }

    #[test]
    fn it_misbehaves_from_the_call_and_for_the_sender_it_was_told() {
        let handler = handler(r#"{"mode": "error", "from_call": 2, "sender": "ait1mallory"}"#);
        let mut memory = Memory::default();
        assert!(handler.handle(&context(), &message("ait1mallory"), &mut memory).is_ok());
        assert!(handler.handle(&context(), &message("ait1alice"), &mut memory).is_ok());
        assert!(handler.handle(&context(), &message("ait1mallory"), &mut memory).is_err());
    }

    #[test]
    fn each_breach_is_one() {
        let effects = |mode: &str| {
            let handler = handler(&format!(r#"{{"mode": "{mode}"}}"#));
            handler.handle(&context(), &message("ait1alice"), &mut Memory::default()).unwrap()
        };
        assert_eq!(effects("silent"), []);
        assert_eq!(effects("echo"), [Effect::Reply(Payload::Text("hello".to_owned()))]);
        assert_eq!(effects("overspend").len(), 6, "ten is enough for five");
        assert_eq!(effects("flood").len(), FLOOD);
        assert_eq!(effects("timers").len(), 4);
    }

    #[test]
    fn a_huge_memory_is_huge() {
        let handler = handler(r#"{"mode": "memory-huge"}"#);
        let step = tenon_sdk::agent::step(&handler, "faults-agent", &context(), &message("ait1alice"), &[]);
        assert!(step.unwrap().1.len() > HUGE_MEMORY_BYTES);
    }
}
