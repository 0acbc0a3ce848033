//! The next version of `greeter`: it remembers more, takes over what the first one counted, and can give it back.

use tenon_sdk::agent::{Context, Effect, Event, Handler, Migrate, Payload};
use tenon_sdk::{Form, Plugin};

#[derive(serde::Deserialize)]
pub struct Settings {
    greeting: String,
}

pub struct Greeter(Settings);

#[derive(Default, serde::Deserialize, serde::Serialize)]
pub struct Memory {
    greeted: u64,
    /// Who was greeted last; none: nobody, or the first version did not note it.
    latest: Option<String>,
}

impl Plugin for Greeter {
    type Settings = Settings;
    const SCHEMA: &'static str = r#"{ "type": "object", "required": ["greeting"], "properties": { "greeting": { "type": "string" } } }"#;
    const MEMORY_VERSION: u32 = 2;

    fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self(settings))
    }
}

impl Handler for Greeter {
    type Memory = Memory;

    fn handle(&self, _: &Context, event: &Event, memory: &mut Memory) -> Result<Vec<Effect>, String> {
        let Event::Message(message) = event else { return Ok(Vec::new()) };
        if message.payload != Payload::Text("hello".to_owned()) {
            return Ok(Vec::new());
        }
        memory.greeted += 1;
        let mut text = format!("{} You are number {}.", self.0.greeting, memory.greeted);
        if let Some(before) = memory.latest.replace(message.from.clone()) {
            text += &format!(" {before} was here before you.");
        }
        Ok(vec![Effect::Reply(Payload::Text(text))])
    }
}

impl Migrate for Greeter {
    fn upgrade(&self, from: Form<'_>, memory: &[u8]) -> Result<Memory, String> {
        match from.version() {
            1 => Ok(Memory { greeted: from.read(memory)?, latest: None }),
            _ => from.unknown(),
        }
    }

    fn downgrade(&self, to: Form<'_>, memory: Memory) -> Result<Vec<u8>, String> {
        match to.version() {
            1 => Ok(to.write(&memory.greeted)),
            _ => to.unknown(),
        }
    }
}

tenon_sdk::export_handler!(Greeter, migrating);
