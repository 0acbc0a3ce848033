//! Bytes that nobody meant: whatever lies in the plugin directory, loading ends with a component or with a rejection that
//! says at which step and why, and what serves does not notice. The targets are bounded here; CONTRIBUTING.md says how
//! they run for long.

mod support;

use std::panic::AssertUnwindSafe;

use bolero::{TypeGenerator, check};
use support::{Answer, Bed, Text, add};
use tenon_runtime::{By, PluginConfig, Report};

/// Cases of each target in `cargo test`; `BOLERO_RANDOM_ITERATIONS` asks for more.
const CASES: usize = 300;

/// What a component begins with.
const PREAMBLE: &[u8] = b"\0asm\x0d\0\x01\0";

/// What happens to a sound component; places are taken modulo its length.
#[derive(Clone, Debug, TypeGenerator)]
enum Harm {
    Cut(u32),
    Flip(u32, u8),
    Zero(u32, u32),
    Move(u32, u32, u32),
    Append(Vec<u8>),
    Replace(Vec<u8>),
}

fn harmed(sound: &[u8], harms: &[Harm]) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for harm in harms {
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        let index = |at: &u32| *at as usize % len;
        let between = |one: &u32, other: &u32| {
            let (one, other) = (index(one), index(other));
            one.min(other)..one.max(other)
        };
        match harm {
            Harm::Cut(at) => bytes.truncate(index(at)),
            Harm::Flip(at, by) => bytes[index(at)] ^= by.max(&1),
            Harm::Zero(from, to) => bytes[between(from, to)].fill(0),
            Harm::Move(from, to, into) => {
                let part = bytes[between(from, to)].to_vec();
                let at = index(into);
                bytes.splice(at..at, part);
            }
            Harm::Append(more) => bytes.extend_from_slice(more),
            // The preamble stays, so that the decoder has something to do.
            Harm::Replace(more) => {
                bytes.truncate(PREAMBLE.len());
                bytes.extend_from_slice(more);
            }
        }
    }
    bytes
}

#[track_caller]
fn is_a_component_or_a_reason(report: &Report) {
    match &report.rejection {
        Some(rejection) => assert!(!rejection.reason.is_empty(), "{report:?}"),
        None => assert!(report.description.is_some(), "{report:?}"),
    }
}

#[test]
fn any_bytes_are_a_component_or_refused_with_a_reason() {
    let bed = Bed::new();
    let _slot = bed.counter(PluginConfig::default());
    let host = AssertUnwindSafe(&bed.host);
    check!().with_iterations(CASES).for_each(move |bytes: &[u8]| {
        is_a_component_or_a_reason(&host.inspect(bytes));
        is_a_component_or_a_reason(&host.inspect(&[PREAMBLE, bytes].concat()));
    });
}

#[test]
fn a_harmed_component_is_one_or_refused_with_a_reason() {
    let bed = Bed::new();
    let _slot = bed.counter(PluginConfig::default());
    let host = AssertUnwindSafe(&bed.host);
    let sound = Text::new("adder", 1).counter();
    is_a_component_or_a_reason(&host.inspect(&sound));
    let harms = bolero::produce::<Vec<Harm>>().with().len(1_usize..4);
    check!().with_iterations(CASES).with_generator(harms).for_each(move |harms| {
        is_a_component_or_a_reason(&host.inspect(&harmed(&sound, harms)));
    });
}

#[test]
fn no_bytes_in_the_directory_hurt_what_serves() {
    let bed = Bed::new();
    let slot = bed.serving(&Text::new("adder", 1), PluginConfig::plugin("adder"));
    let sound = Text::new("adder", 1).counter();
    let (mut sum, mut rejected, mut taken) = (0, 0, 0);
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
