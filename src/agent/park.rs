//! The built-in handler: sets every event aside. What a better handler could have answered is not lost: it is handled by
//! the next one, in the order in which it came.

use super::{Aside, Context, Event, Handler, Outcome};

/// Answers no mail.
#[derive(Clone, Copy, Debug, Default)]
pub struct Park;

impl Park {
    /// The step: always an error, which sets the event aside.
    pub fn step(_context: &Context, _event: &Event, _memory: &[u8]) -> Outcome {
        Err(Aside::NoHandler)
    }
}

impl Handler for Park {
    fn handle(&self, context: &Context, event: &Event, memory: &[u8]) -> Outcome {
        Self::step(context, event, memory)
    }

    fn is_there(&self) -> bool {
        false
    }
}
