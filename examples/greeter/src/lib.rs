//! Greets whoever says `hello`, and counts them: the README's first plugin.

use tenon_sdk::Plugin;
use tenon_sdk::agent::{Context, Effect, Event, Handler, Payload};

#[derive(serde::Deserialize)]
pub struct Settings {
    greeting: String,
}

pub struct Greeter(Settings);

impl Plugin for Greeter {
    type Settings = Settings;
    const SCHEMA: &'static str = r#"{ "type": "object", "required": ["greeting"], "properties": { "greeting": { "type": "string" } } }"#;

    fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self(settings))
    }
}

impl Handler for Greeter {
    type Memory = u64; // how many were greeted

    fn handle(&self, _: &Context, event: &Event, memory: &mut u64) -> Result<Vec<Effect>, String> {
        let Event::Message(message) = event else { return Ok(Vec::new()) };
        if message.payload != Payload::Text("hello".to_owned()) {
            return Ok(Vec::new());
        }
        *memory += 1;
        Ok(vec![Effect::Reply(Payload::Text(format!("{} You are number {memory}.", self.0.greeting)))])
    }
}

tenon_sdk::export_handler!(Greeter);
