//! The built-in handler: sets every event aside. What a better handler could have answered is not lost; the operator lists
//! it and hands it in again ([`super::Agents::retry`]).

use super::{Context, Event, Handler, Outcome};

/// Answers no mail.
#[derive(Clone, Copy, Debug, Default)]
pub struct Park;

impl Park {
    /// The step: always an error, which sets the event aside.
    pub fn step(_context: &Context, event: &Event, _memory: &[u8]) -> Outcome {
        let what = match event {
            Event::Message(_) => "message",
            Event::Timer(_) => "timer",
        };
        Err(format!("no handler is loaded; the {what} waits here until it is retried"))
    }
}

impl Handler for Park {
    fn handle(&self, context: &Context, event: &Event, memory: &[u8]) -> Outcome {
        Self::step(context, event, memory)
    }
}
