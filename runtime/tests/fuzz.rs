//! Bytes that nobody meant: whatever lies in the plugin directory, loading ends with a component or with a rejection that
//! says at which step and why, and what serves does not notice. Bounded; `PROPTEST_CASES` asks for more.

mod support;

use proptest::prelude::*;
use support::{Answer, Bed, Text, add};
use tenon_runtime::{By, PluginConfig};

/// What happens to a sound component.
#[derive(Clone, Debug)]
enum Harm {
    Cut(prop::sample::Index),
    Flip(prop::sample::Index, u8),
    Zero(prop::sample::Index, prop::sample::Index),
    Move(prop::sample::Index, prop::sample::Index, prop::sample::Index),
    Append(Vec<u8>),
    Replace(Vec<u8>),
}

fn harm() -> impl Strategy<Value = Harm> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        1 => at().prop_map(Harm::Cut),
        4 => (at(), 1..=255_u8).prop_map(|(at, by)| Harm::Flip(at, by)),
        1 => (at(), at()).prop_map(|(from, to)| Harm::Zero(from, to)),
        2 => (at(), at(), at()).prop_map(|(from, to, into)| Harm::Move(from, to, into)),
        1 => prop::collection::vec(any::<u8>(), 1..200).prop_map(Harm::Append),
        1 => prop::collection::vec(any::<u8>(), 0..400).prop_map(Harm::Replace),
    ]
}

fn harmed(sound: &[u8], harms: &[Harm]) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for harm in harms {
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        let between = |one: &prop::sample::Index, other: &prop::sample::Index| {
            let (one, other) = (one.index(len), other.index(len));
            one.min(other)..one.max(other)
        };
        match harm {
            Harm::Cut(at) => bytes.truncate(at.index(len)),
            Harm::Flip(at, by) => bytes[at.index(len)] ^= by,
            Harm::Zero(from, to) => bytes[between(from, to)].fill(0),
            Harm::Move(from, to, into) => {
                let part = bytes[between(from, to)].to_vec();
                let at = into.index(len);
                bytes.splice(at..at, part);
            }
            Harm::Append(more) => bytes.extend_from_slice(more),
            // The preamble stays, so that the decoder has something to do.
            Harm::Replace(more) => {
                bytes.truncate(8);
                bytes.extend_from_slice(more);
            }
        }
    }
    bytes
}

#[test]
fn no_bytes_in_the_directory_hurt_what_serves() {
    let bed = Bed::new();
    let slot = bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    let sound = Text::new("adder", 1).counter();
    let (mut sum, mut rejected, mut taken) = (0, 0, 0);
    let mut runner = proptest::test_runner::TestRunner::default();
    let harms = prop::collection::vec(harm(), 1..4);
    runner
        .run(&harms, |harms| {
            let bytes = harmed(&sound, &harms);
            let report = bed.host.inspect(&bytes);
            match &report.rejection {
                Some(rejection) => prop_assert!(!rejection.reason.is_empty(), "{report:?}"),
                None => prop_assert!(report.description.is_some(), "{report:?}"),
            }
            Ok(())
        })
        .expect("every report is a component or a reason");
    // The same through the directory, where the live generation looks on.
    for case in 0..40_u64 {
        let mut bytes = sound.clone();
        let at = (case.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) as usize % bytes.len();
        bytes[at] ^= 1 << (case % 8);
        bed.put("adder.wasm", &bytes);
        // What is there now is either served, or listed with what is wrong with it.
        bed.host.reload("counter").expect("the last good bytes at least");
        let file = bed.host.plugins().remove(0);
        match &file.rejection {
            Some(rejection) => {
                rejected += 1;
                assert!(!rejection.reason.is_empty(), "{file:?}");
            }
            None => taken += 1,
        }
        sum += 1;
        let decision = slot.ask(&1, &add(1, 1));
        assert!(matches!(decision.answer, Answer::Total { .. } | Answer::Pass | Answer::Full), "{:?}", decision.answer);
        assert!(!matches!(decision.by, By::Policy));
    }
    assert!(rejected + taken == 40 && rejected > 0 && sum == 40);
}
