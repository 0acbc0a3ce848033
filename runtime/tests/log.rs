//! A plugin's lines reach the log marked with where they come from, cut and counted.

mod support;

use std::sync::{Arc, Mutex};

use support::{Bed, Mode, Text, mode};
use tenon_runtime::{LOG_TARGET, Limits, PluginConfig};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// Keeps the plugin lines as `slot/plugin/generation: message`.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == LOG_TARGET
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        #[derive(Default)]
        struct Fields {
            origin: Vec<String>,
            message: String,
        }
        impl Visit for Fields {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                match field.name() {
                    "message" => self.message = format!("{value:?}"),
                    _ => self.origin.push(format!("{value:?}")),
                }
            }
            fn record_str(&mut self, _: &Field, value: &str) {
                self.origin.push(value.to_owned());
            }
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = format!("{}: {}", fields.origin.join("/"), fields.message);
        self.0.lock().expect("no panic while it is held").push(line);
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[test]
fn lines_carry_slot_plugin_and_generation_and_stay_within_their_rate() {
    let lines = Lines::default();
    tracing::subscriber::with_default(lines.clone(), || {
        let bed = Bed::new();
        let limits = Limits { log_lines_per_second: 3, ..Limits::default() };
        let config = PluginConfig { limits, ..PluginConfig::plugin("adder") };
        let slot = bed.serving(&Text::new("adder", 1), config);
        let start = std::time::Instant::now();
        for _ in 0..100 {
            slot.decide(&1, &mode(Mode::Log));
        }
        let seconds = start.elapsed().as_secs() as usize + 1;
        let lines = lines.0.lock().expect("no panic while it is held");
        assert_eq!(lines[0], "counter/adder/1: a line from the plugin");
        // Three a second, and one a second that tells of the rest.
        assert!(lines.len() <= 4 * seconds, "{lines:?}");
        assert!(lines.len() >= 3);
    });
}
