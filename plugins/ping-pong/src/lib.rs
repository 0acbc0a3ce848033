//! Answers `ping` with `pong`, or whatever two texts the operator chose.
//!
//! The trigger is the whole text, to the byte: nothing is trimmed, folded or searched for, because an agent that answers
//! what merely contains its trigger sooner or later answers another agent for ever. For the same reason it does not
//! answer its own wallet, and takes no reply that is its trigger.

use serde::{Deserialize, Serialize};
use tenon_sdk::Plugin;
use tenon_sdk::agent::{Context, Effect, Event, Handler, Payload};

/// The plugin.
pub struct PingPong {
    settings: Settings,
}

/// What is answered, and how.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The text that is answered.
    pub trigger: String,
    /// The answer.
    pub reply: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { trigger: "ping".to_owned(), reply: "pong".to_owned() }
    }
}

/// What the agent remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// How many messages it has answered.
    pub answered: u64,
}

impl Plugin for PingPong {
    type Settings = Settings;

    const SCHEMA: &'static str = include_str!("../schema.json");

    fn new(settings: Settings) -> Result<Self, String> {
        if settings.trigger == settings.reply {
            return Err(format!(
                "trigger and reply are both {:?}: two such agents would answer each other for ever",
                settings.reply
            ));
        }
        Ok(Self { settings })
    }
}

impl Handler for PingPong {
    type Memory = Memory;

    fn handle(&self, context: &Context, event: &Event, memory: &mut Memory) -> Result<Vec<Effect>, String> {
        let Event::Message(message) = event else {
            return Ok(Vec::new());
        };
        let triggered = matches!(&message.payload, Payload::Text(text) if *text == self.settings.trigger);
        if !triggered || message.from == context.wallet {
            return Ok(Vec::new());
        }
        memory.answered += 1;
        Ok(vec![Effect::Reply(Payload::Text(self.settings.reply.clone()))])
    }
}

tenon_sdk::export_handler!(PingPong);

#[cfg(test)]
mod tests {
    use tenon_sdk::agent::Message;

    use super::*;

    fn handler(settings: &str) -> Result<PingPong, String> {
        PingPong::new(tenon_sdk::settings::<PingPong>(settings)?)
    }

    fn context() -> Context {
        Context {
            agent: "bob".to_owned(),
            wallet: "ait1bob".to_owned(),
            now: 0,
            height: 7,
            balance: 100,
            message_fee: 1,
            fee_left: 10,
        }
    }

    fn message(from: &str, payload: Payload) -> Event {
        Event::Message(Message { id: vec![0; 32], from: from.to_owned(), payload, height: 7, time: 0 })
    }

    fn text(text: &str) -> Payload {
        Payload::Text(text.to_owned())
    }

    #[test]
    fn the_trigger_is_answered_and_counted() {
        let handler = handler("{}").unwrap();
        let mut memory = Memory::default();
        for answered in 1..=3 {
            let effects = handler.handle(&context(), &message("ait1alice", text("ping")), &mut memory);
            assert_eq!(effects, Ok(vec![Effect::Reply(text("pong"))]));
            assert_eq!(memory, Memory { answered });
        }
    }

    #[test]
    fn nothing_else_is() {
        let handler = handler("{}").unwrap();
        let silent = [
            message("ait1alice", text(" ping")),
            message("ait1alice", text("ping ping")),
            message("ait1alice", text("Ping")),
            message("ait1alice", text("")),
            message("ait1alice", Payload::Object(r#"{"cmd":"ping"}"#.to_owned())),
            message("ait1bob", text("ping")),
            Event::Timer("ping".to_owned()),
        ];
        for event in silent {
            let mut memory = Memory::default();
            assert_eq!(handler.handle(&context(), &event, &mut memory), Ok(Vec::new()), "{event:?}");
            assert_eq!(memory, Memory::default());
        }
    }

    #[test]
    fn two_such_agents_do_not_keep_each_other_busy() {
        let handler = handler("{}").unwrap();
        let effects = handler.handle(&context(), &message("ait1carol", text("pong")), &mut Memory::default());
        assert_eq!(effects, Ok(Vec::new()));
    }

    #[test]
    fn the_texts_can_be_chosen_but_not_the_same() {
        let chosen = handler(r#"{"trigger": "status?", "reply": "fine"}"#).unwrap();
        let effects = chosen.handle(&context(), &message("ait1alice", text("status?")), &mut Memory::default());
        assert_eq!(effects, Ok(vec![Effect::Reply(text("fine"))]));
        assert!(handler(r#"{"trigger": "a", "reply": "a"}"#).is_err());
        assert!(handler(r#"{"tigger": "a"}"#).is_err());
    }
}
