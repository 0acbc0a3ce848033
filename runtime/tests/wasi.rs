//! Components of foreign toolchains find a WASI with nothing behind it.

mod support;

use support::{Answer, Bed, Counter, Request, foreign};
use tenon_runtime::{By, Failure, Kind, PluginConfig, Slot};

fn serving(bed: &Bed, sum: &str) -> Slot<Counter> {
    bed.put("foreign.wasm", &foreign(sum));
    let slot = bed.counter(PluginConfig::plugin("foreign"));
    assert_eq!(bed.host.open().rejected, []);
    slot
}

fn sum_of(slot: &Slot<Counter>, request: &Request) -> u64 {
    match slot.decide(&request.client, request) {
        Answer::Total { sum, build: 1 } => sum,
        other => panic!("the plugin did not answer: {other:?}"),
    }
}

#[test]
fn the_clock_stands_at_the_requests_moment() {
    let bed = Bed::new();
    let slot = serving(&bed, "(call $clock)");
    for seconds in [1_700_000_000, 5, 0] {
        let request = Request { now: seconds * 1_000_000, ..Request::default() };
        assert_eq!(sum_of(&slot, &request), seconds);
    }
}

#[test]
fn randomness_is_the_same_for_every_call_of_every_instance() {
    let bed = Bed::new();
    let slot = serving(&bed, "(call $random)");
    let first = sum_of(&slot, &Request::default());
    assert_ne!(first, 0);
    for client in 0..20 {
        assert_eq!(sum_of(&slot, &Request { client, ..Request::default() }), first);
    }
}

#[test]
fn there_is_no_environment_and_output_goes_to_the_log() {
    let bed = Bed::new();
    let slot = serving(&bed, "(block (result i64) (call $out) (call $variables))");
    for client in 0..50 {
        assert_eq!(sum_of(&slot, &Request { client, ..Request::default() }), 0);
    }
    assert_eq!(bed.status().failures, 0);
}

#[test]
fn what_is_not_there_is_a_failure_that_names_it() {
    let bed = Bed::new();
    // The probe runs it too, so it must only be reached with an amount.
    let slot = serving(
        &bed,
        "(if (result i64) (i64.eqz (local.get $add)) (then (i64.const 0))
           (else (i64.extend_i32_u (call $network))))",
    );
    let decision = slot.ask(&1, &Request { add: 1, ..Request::default() });
    assert_eq!(decision.by, By::Builtin);
    let Some(Failure::Trap { message }) = decision.failure else {
        panic!("{:?}", decision.failure);
    };
    assert!(message.contains("wasi:sockets/instance-network#instance-network"), "{message}");
}

#[test]
fn wasi_does_not_make_another_kind_of_it() {
    let bed = Bed::new();
    bed.host.kind::<Counter>().expect("the counter's WIT");
    assert_eq!(bed.host.inspect(&foreign("(i64.const 0)")).kind, Some(Counter::NAME));
}
