//! What a handler asks for, checked. The answer comes from a guest, so every size is measured here; what it may spend is
//! the dispatcher's business.

use super::{Effect, Event};
use crate::chain::{Address, PAYLOAD_MAX_BYTES, Payload, Time};

/// Effects of one event that are carried out; those beyond are refused.
pub const EFFECTS_MAX: usize = 16;
/// Bytes that are kept for a handler: the 64 KiB that it may remember, and room for whoever stands between to note whose
/// memory it is.
pub const MEMORY_MAX_BYTES: usize = 65 * 1024;
/// Bytes of a timer's tag; at least 1.
pub const TAG_MAX_BYTES: usize = 64;
/// Bytes of a note's topic; at least 1.
pub const TOPIC_MAX_BYTES: usize = 64;
/// Bytes of a note's text.
pub const TEXT_MAX_BYTES: usize = 4_096;

/// An effect whose form is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// A message to somebody.
    Send {
        /// To whom.
        to: Address,
        /// What.
        payload: Payload,
    },
    /// A timer.
    StartTimer {
        /// Its name.
        tag: String,
        /// When it runs out.
        at: Time,
    },
    /// A note for the operator.
    Emit {
        /// A short name.
        topic: String,
        /// Text.
        text: String,
    },
}

/// Checks the first effects of `event`, one by one: what may be carried out, and why the others may not. Beside it, how
/// many were beyond [`EFFECTS_MAX`] and were not looked at.
pub fn check(event: &Event, effects: Vec<Effect>) -> (Vec<Result<Checked, String>>, usize) {
    let beyond = effects.len().saturating_sub(EFFECTS_MAX);
    (effects.into_iter().take(EFFECTS_MAX).map(|effect| check_one(event, effect)).collect(), beyond)
}

/// Whether all of an answer may be carried out: for whoever lets a guest answer, and refuses an answer as a whole. Errors:
/// the first rule that it breaks.
pub fn check_all(event: &Event, effects: &[Effect]) -> Result<(), String> {
    if effects.len() > EFFECTS_MAX {
        return Err(format!("{} effects, at most {EFFECTS_MAX} are allowed", effects.len()));
    }
    effects.iter().try_for_each(|effect| check_one(event, effect.clone()).map(drop))
}

fn check_one(event: &Event, effect: Effect) -> Result<Checked, String> {
    let sized = |what: &str, text: &str, min: usize, max: usize| match text.len() {
        len if (min..=max).contains(&len) => Ok(()),
        len => Err(format!("a {what} has {min} to {max} bytes, got {len}")),
    };
    match effect {
        Effect::Reply(payload) => match event {
            Event::Message(message) => Ok(Checked::Send { to: message.from, payload: check_payload(payload)? }),
            Event::Timer(tag) => Err(format!("a reply to the timer `{tag}`, which nobody sent")),
        },
        Effect::Send { to, payload } => Ok(Checked::Send { to, payload: check_payload(payload)? }),
        Effect::StartTimer { tag, at } => {
            sized("timer's tag", &tag, 1, TAG_MAX_BYTES)?;
            if at > Time::MAX {
                return Err(format!("a timer beyond the year 9999: {} µs", at.0));
            }
            Ok(Checked::StartTimer { tag, at })
        }
        Effect::Emit { topic, text } => {
            sized("note's topic", &topic, 1, TOPIC_MAX_BYTES)?;
            sized("note's text", &text, 0, TEXT_MAX_BYTES)?;
            Ok(Checked::Emit { topic, text })
        }
    }
}

fn check_payload(payload: Payload) -> Result<Payload, String> {
    let payload = match payload {
        // Whoever made it: only the one spelling may be signed.
        Payload::Object(json) => {
            Payload::object(&json).map_err(|error| format!("a payload that is no JSON: {error}"))?
        }
        other => other,
    };
    match payload.len() {
        len if len > PAYLOAD_MAX_BYTES => {
            Err(format!("a payload of {len} bytes, at most {PAYLOAD_MAX_BYTES} are sent"))
        }
        _ => Ok(payload),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Message;
    use super::*;
    use crate::chain::Hash;

    fn message() -> Event {
        let (id, from, payload) = (Hash::ZERO, Address([7; 20]), Payload::Text("hi".into()));
        Event::Message(Message { id, from, payload, height: 1, time: Time(1) })
    }

    fn refused(event: &Event, effect: Effect) -> bool {
        check(event, vec![effect]).0[0].is_err()
    }

    #[test]
    fn sizes_are_kept_to_the_byte() {
        let text = |len: usize| "x".repeat(len);
        type Make = fn(String) -> Effect;
        let pairs: [(usize, Make); 4] = [
            (PAYLOAD_MAX_BYTES, |text| Effect::Reply(Payload::Text(text))),
            (TAG_MAX_BYTES, |tag| Effect::StartTimer { tag, at: Time(1) }),
            (TOPIC_MAX_BYTES, |topic| Effect::Emit { topic, text: String::new() }),
            (TEXT_MAX_BYTES, |text| Effect::Emit { topic: "t".into(), text }),
        ];
        for (max, effect) in pairs {
            assert!(!refused(&message(), effect(text(max))), "{max}");
            assert!(refused(&message(), effect(text(max + 1))), "{}", max + 1);
        }
        assert!(refused(&message(), Effect::StartTimer { tag: String::new(), at: Time(1) }));
        assert!(refused(&message(), Effect::StartTimer { tag: "t".into(), at: Time(Time::MAX.0 + 1) }));
        assert!(refused(&message(), Effect::Emit { topic: String::new(), text: String::new() }));
    }

    #[test]
    fn a_reply_goes_to_the_sender_and_a_timer_has_none() {
        let reply = Effect::Reply(Payload::Text("ho".into()));
        let expected = Checked::Send { to: Address([7; 20]), payload: Payload::Text("ho".into()) };
        assert_eq!(check(&message(), vec![reply.clone()]).0, [Ok(expected)]);
        assert!(refused(&Event::Timer("t".into()), reply));
    }

    #[test]
    fn objects_are_sent_in_their_one_spelling() {
        let effect = |json: &str| Effect::Reply(Payload::Object(json.into()));
        let (checked, _) = check(&message(), vec![effect("{ \"b\": 1, \"a\": \"ü\" }")]);
        let payload = Payload::Object("{\"a\":\"\\u00fc\",\"b\":1}".into());
        assert_eq!(checked, [Ok(Checked::Send { to: Address([7; 20]), payload })]);
        for bad in ["", "[]", "{", "{\"a\":1,\"a\":2}"] {
            assert!(refused(&message(), effect(bad)), "{bad}");
        }
    }

    #[test]
    fn the_seventeenth_effect_is_refused_and_the_others_are_not() {
        let note = Effect::Emit { topic: "t".into(), text: String::new() };
        assert_eq!(check(&message(), vec![note.clone(); EFFECTS_MAX]).1, 0);
        let (checked, beyond) = check(&message(), vec![note; EFFECTS_MAX + 1]);
        assert_eq!((checked.iter().filter(|effect| effect.is_ok()).count(), beyond), (EFFECTS_MAX, 1));
    }
}
