//! The host's side of `tenon:host/log`: a plugin's lines become `tracing` events, marked and bounded.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bindings::tenon::host::log;
pub use log::Level;

use crate::context::Context;

/// What `bindgen!` makes of `tenon:host`.
pub(crate) mod bindings {
    #![expect(missing_docs, reason = "generated; the WIT is the documentation")]
    wasmtime::component::bindgen!({
        path: "../wit/host",
        world: "tenon:host/plugin@0.1.0",
    });
}

/// The target of a plugin's lines in `tracing`.
pub const TARGET: &str = "tenon::plugin";

/// Bytes kept of one line.
pub const LINE_MAX_BYTES: usize = 1_024;

/// Lets a bounded number of lines a second through, marked with where they come from.
pub(crate) struct LogGate {
    slot: Arc<str>,
    plugin: Arc<str>,
    generation: u64,
    lines_per_second: u32,
    window: Mutex<Window>,
}

struct Window {
    since: Instant,
    lines: u32,
    dropped: u64,
}

impl LogGate {
    pub(crate) fn new(slot: Arc<str>, plugin: Arc<str>, generation: u64, lines_per_second: u32) -> LogGate {
        LogGate {
            slot,
            plugin,
            generation,
            lines_per_second,
            window: Mutex::new(Window { since: Instant::now(), lines: 0, dropped: 0 }),
        }
    }

    /// Writes one line unless there were too many within this second.
    pub(crate) fn write(&self, level: Level, message: &str) {
        match self.admit(Instant::now()) {
            Admitted::No => return,
            Admitted::Yes { dropped: 0 } => {}
            Admitted::Yes { dropped } => {
                self.emit(Level::Warn, &format!("{dropped} log lines dropped"));
            }
        }
        self.emit(level, &one_line(message));
    }

    fn admit(&self, now: Instant) -> Admitted {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let mut dropped = 0;
        if now.saturating_duration_since(window.since) >= Duration::from_secs(1) {
            dropped = window.dropped;
            *window = Window { since: now, lines: 0, dropped: 0 };
        }
        if window.lines >= self.lines_per_second {
            // The count carries over, so that the line that tells of it comes with the first one let through.
            window.dropped += dropped + 1;
            return Admitted::No;
        }
        window.lines += 1;
        Admitted::Yes { dropped }
    }

    fn emit(&self, level: Level, message: &str) {
        let (slot, plugin, generation) = (&*self.slot, &*self.plugin, self.generation);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(target: TARGET, slot, plugin, generation, "{message}")
            };
        }
        match level {
            Level::Trace => line!(trace),
            Level::Debug => line!(debug),
            Level::Info => line!(info),
            Level::Warn => line!(warn),
            Level::Error => line!(error),
        }
    }
}

enum Admitted {
    Yes { dropped: u64 },
    No,
}

/// At most [`LINE_MAX_BYTES`] of `message`, as one line: a guest must not be able to forge other lines.
fn one_line(message: &str) -> String {
    let end = message.floor_char_boundary(LINE_MAX_BYTES);
    message[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl log::Host for Context {
    fn write(&mut self, level: Level, message: String) {
        self.log.write(level, &message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(lines_per_second: u32) -> LogGate {
        LogGate::new("slot".into(), "plugin".into(), 1, lines_per_second)
    }

    #[test]
    fn lines_beyond_the_rate_are_counted_and_told_with_the_next() {
        let gate = gate(2);
        let start = Instant::now();
        let admitted = |at: Duration| match gate.admit(start + at) {
            Admitted::Yes { dropped } => Some(dropped),
            Admitted::No => None,
        };
        let second = Duration::from_secs(2);
        assert_eq!(admitted(Duration::ZERO), Some(0));
        assert_eq!(admitted(Duration::ZERO), Some(0));
        assert_eq!(admitted(Duration::ZERO), None);
        assert_eq!(admitted(Duration::ZERO), None);
        assert_eq!(admitted(second), Some(2));
        assert_eq!(admitted(second), Some(0));
    }

    #[test]
    fn a_line_is_cut_at_a_character_within_its_bytes_and_stays_one_line() {
        assert_eq!(one_line("a\nb\u{1b}[1m"), "a b [1m");
        assert_eq!(one_line(&"é".repeat(600)).len(), LINE_MAX_BYTES);
        assert_eq!(one_line(&format!("a{}", "é".repeat(600))).len(), LINE_MAX_BYTES - 1);
    }
}
