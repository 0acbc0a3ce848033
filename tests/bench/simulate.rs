//! How long a large sync takes to simulate: the engine's own share, and a component's.

use std::path::Path;
use std::time::Instant;

use serde_json::json;
use tenon::bindings::Lab;
use tenon::simulate::{Native, Planner, Scenario, Simulation, Size};

use crate::report::Report;

/// Adds the time for a million blocks from a thousand peers to `report`, with the built-in and with `parallel-range`.
pub fn run(report: &mut Report) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/scenarios/thousand.toml");
    let text = std::fs::read_to_string(path).expect("a shipped scenario");
    let scenario = Scenario::parse(&text, "thousand.toml").expect("a scenario");
    let size = Size { peers: Some(1_000), blocks: Some(1_000_000) };
    let lab = Lab::new().expect("room for an engine");
    let component = std::fs::read(tenon_build::path("parallel-range")).expect("a component");
    let component = lab.planner(&component, &json!({})).expect("our own component");
    let planners: [Box<dyn Planner>; 2] = [Box::new(Native::builtin()), Box::new(component)];
    for planner in planners {
        let name = planner.name().to_owned();
        let mut simulation = Simulation::new(&scenario, size, 1, planner).expect("it fits");
        let started = Instant::now();
        let outcome = simulation.run();
        let seconds = started.elapsed().as_secs_f64();
        assert!(outcome.as_expected, "{name} comes to the head");
        let figure = format!("simulate: 1,000 peers, 1,000,000 blocks, {name}");
        report.at_most(figure, seconds, "s", 10.0, None);
        report.note(format!("simulate: virtual time to sync, {name}"), outcome.ended_ms as f64 / 1_000.0, "s");
        report.note(format!("simulate: events, {name}"), outcome.events as f64, "events");
    }
}
