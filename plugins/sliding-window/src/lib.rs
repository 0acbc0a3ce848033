//! Sliding windows: a count for each class of routes and caller, over the last so many milliseconds.
//!
//! The arithmetic is [`window`]'s. The first word of the cell is the number of the window that the counts belong to; the
//! other three are reads, writes and imports, each the count of the window before (high half) and of this one (low half).
//! Followers who sync are not counted.

pub mod window;

use serde::Deserialize;
use tenon_sdk::Plugin;
use tenon_sdk::rate_limit::{Allowance, Cell, Denial, Policy, Request, RouteClass, Throttled, Trust, Verdict};

use crate::window::{Counts, Spent, Window};

/// The plugin.
pub struct SlidingWindow {
    settings: Settings,
}

/// One window for all, a limit for each class, and who has none.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The window's length in milliseconds.
    pub window_ms: u32,
    /// The most units of cost for reading; null for no limit.
    pub read: Option<u32>,
    /// For handing in transactions.
    pub write: Option<u32>,
    /// For handing in blocks.
    pub import: Option<u32>,
    /// Callers who are never throttled.
    pub trusted: Vec<Trusted>,
}

/// Whom the node can tell from anybody.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Trusted {
    /// The same machine.
    Loopback,
    /// An address that the operator named as a peer.
    Peer,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window_ms: 1000,
            read: Some(1000),
            write: Some(100),
            import: Some(1000),
            trusted: vec![Trusted::Loopback, Trusted::Peer],
        }
    }
}

impl Settings {
    fn limit(&self, class: RouteClass) -> Option<u32> {
        match class {
            RouteClass::Sync => None,
            RouteClass::Read => self.read,
            RouteClass::Write => self.write,
            RouteClass::Import => self.import,
        }
    }

    fn trusts(&self, trust: Trust) -> bool {
        match trust {
            Trust::Public => false,
            Trust::Peer => self.trusted.contains(&Trusted::Peer),
            Trust::Loopback => self.trusted.contains(&Trusted::Loopback),
        }
    }
}

impl Plugin for SlidingWindow {
    type Settings = Settings;

    const SCHEMA: &'static str = include_str!("../schema.json");

    fn new(settings: Settings) -> Result<Self, String> {
        if settings.window_ms == 0 {
            return Err("window_ms is 0: a window takes at least a millisecond".to_owned());
        }
        Ok(Self { settings })
    }
}

impl Policy for SlidingWindow {
    fn check(&self, request: &Request, cell: Cell) -> (Verdict, Cell) {
        let limit = self.settings.limit(request.class).filter(|_| !self.settings.trusts(request.trust));
        let Some(limit) = limit else {
            return (Verdict::Allow(Allowance::UNLIMITED), cell);
        };
        let window = Window { length_us: u64::from(self.settings.window_ms) * 1000, limit };
        let mut counts = Windows::from(cell).at(request.now / window.length_us);
        let class = counts.class(request.class);
        let (spent, next) = window.spend(*class, request.cost, request.now);
        *class = next;
        let limit = u64::from(limit);
        let verdict = match spent {
            Spent::Granted { remaining, reset_ms } => Verdict::Allow(Allowance { limit, remaining, reset_ms }),
            Spent::TooSoon { retry_after_ms } => Verdict::Throttle(Throttled { limit, retry_after_ms }),
            Spent::TooExpensive => Verdict::Deny(Denial::TooExpensive),
        };
        (verdict, counts.into())
    }
}

/// The cell, unpacked.
struct Windows {
    index: u64,
    read: Counts,
    write: Counts,
    import: Counts,
}

impl Windows {
    /// The same, moved to the window `index`.
    fn at(self, index: u64) -> Self {
        let moved = |counts: Counts| counts.moved(self.index, index);
        Self { index, read: moved(self.read), write: moved(self.write), import: moved(self.import) }
    }

    fn class(&mut self, class: RouteClass) -> &mut Counts {
        match class {
            // Never asked for sync, which has no limit.
            RouteClass::Sync | RouteClass::Read => &mut self.read,
            RouteClass::Write => &mut self.write,
            RouteClass::Import => &mut self.import,
        }
    }
}

impl From<Cell> for Windows {
    fn from((index, read, write, import): Cell) -> Self {
        let counts = |word: u64| Counts { before: (word >> 32) as u32, current: word as u32 };
        Self { index, read: counts(read), write: counts(write), import: counts(import) }
    }
}

impl From<Windows> for Cell {
    fn from(windows: Windows) -> Self {
        let word = |counts: Counts| u64::from(counts.before) << 32 | u64::from(counts.current);
        (windows.index, word(windows.read), word(windows.write), word(windows.import))
    }
}

tenon_sdk::export_policy!(SlidingWindow);

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_790_000_000_000_000;

    fn policy(settings: &str) -> SlidingWindow {
        SlidingWindow::new(tenon_sdk::settings::<SlidingWindow>(settings).unwrap()).unwrap()
    }

    fn request(class: RouteClass, trust: Trust) -> Request {
        Request { client: 1, route: 0, class, trust, cost: 1, now: NOW }
    }

    #[test]
    fn each_class_is_counted_by_itself() {
        let policy = policy(r#"{"read": 1, "write": 1, "import": 1}"#);
        let classes = [RouteClass::Read, RouteClass::Write, RouteClass::Import];
        let mut cell = (0, 0, 0, 0);
        for class in classes {
            let (verdict, next) = policy.check(&request(class, Trust::Public), cell);
            assert!(matches!(verdict, Verdict::Allow(_)), "{class:?}");
            cell = next;
        }
        for class in classes {
            let (verdict, _) = policy.check(&request(class, Trust::Public), cell);
            assert_eq!(verdict, Verdict::Throttle(Throttled { limit: 1, retry_after_ms: 2000 }));
        }
    }

    #[test]
    fn sync_and_trusted_callers_are_not_counted() {
        let policy = policy(r#"{"read": 0, "write": 0}"#);
        for (class, trust) in [(RouteClass::Sync, Trust::Public), (RouteClass::Read, Trust::Loopback)] {
            let (verdict, cell) = policy.check(&request(class, trust), (1, 2, 3, 4));
            assert_eq!((verdict, cell), (Verdict::Allow(Allowance::UNLIMITED), (1, 2, 3, 4)));
        }
        let (verdict, _) = policy.check(&request(RouteClass::Write, Trust::Public), (0, 0, 0, 0));
        assert_eq!(verdict, Verdict::Deny(Denial::TooExpensive));
    }

    #[test]
    fn a_cell_survives_packing() {
        let cell = (5, 7 << 32 | 8, u64::MAX, 0);
        assert_eq!(Cell::from(Windows::from(cell)), cell);
    }

    #[test]
    fn wrong_settings_are_refused() {
        assert!(SlidingWindow::new(tenon_sdk::settings::<SlidingWindow>(r#"{"window_ms": 0}"#).unwrap()).is_err());
        for text in [r#"{"sync": 1}"#, r#"{"read": -1}"#, r#"{"read": 1.5}"#] {
            assert!(tenon_sdk::settings::<SlidingWindow>(text).is_err(), "{text}");
        }
    }
}
