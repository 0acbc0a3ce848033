//! Sliding windows: a count for each class of routes and caller, over the last so many milliseconds.
//!
//! The arithmetic is [`window`]'s. The first word of the cell says which window the counts belong to: its number (high half,
//! modulo 2³²) and its length in milliseconds (low half), without which another configuration would take them for those of
//! another time. The other three are reads, writes and imports, each the count of the window before (high half) and of
//! this one (low half). Followers who sync are not counted.
//!
//! Under windows of another length, what is spent at that moment counts as spent in the new window under way: neither more
//! nor less, so that a higher limit throttles nobody whom the old one would have let pass.

pub mod window;

use serde::Deserialize;
use tenon_sdk::Plugin;
use tenon_sdk::rate_limit::{Allowance, Cell, Denial, Migrate, Policy, Request, RouteClass, Throttled, Trust, Verdict};

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
    // 2: the window's number and length; 1: its number alone.
    const MEMORY_VERSION: u32 = 2;

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
        let window = Window { length_us: length_us(self.settings.window_ms), limit };
        let mut counts = Windows::from(cell).at(self.settings.window_ms, request.now);
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

impl Migrate for SlidingWindow {
    fn upgrade(&self, from_version: u32, (index, read, write, import): Cell) -> Result<Cell, String> {
        match from_version {
            1 => Ok((index << 32 | u64::from(self.settings.window_ms), read, write, import)),
            other => tenon_sdk::unknown_version(other),
        }
    }

    fn downgrade(&self, to_version: u32, (window, read, write, import): Cell) -> Result<Cell, String> {
        match to_version {
            // The first version would take windows of another length for its own.
            1 if window as u32 != self.settings.window_ms => Ok((0, 0, 0, 0)),
            1 => Ok((window >> 32, read, write, import)),
            other => tenon_sdk::unknown_version(other),
        }
    }
}

fn length_us(window_ms: u32) -> u64 {
    u64::from(window_ms) * 1000
}

/// The cell, unpacked.
struct Windows {
    /// Modulo 2³²: windows of a millisecond come again after 49 days, and then weigh for two of them.
    index: u32,
    /// 0 before anything was counted.
    window_ms: u32,
    read: Counts,
    write: Counts,
    import: Counts,
}

impl Windows {
    /// The same, as it is at `now_us` in windows of `window_ms`.
    fn at(self, window_ms: u32, now_us: u64) -> Self {
        let moved = |counts: Counts| match self.window_ms {
            0 => Counts::default(),
            length => counts.moved(self.index, (now_us / length_us(length)) as u32),
        };
        let settled = |counts: Counts| match self.window_ms {
            0 => Counts::default(),
            length if length == window_ms => moved(counts),
            length => Counts { before: 0, current: moved(counts).weight(length_us(length), now_us) },
        };
        let index = (now_us / length_us(window_ms)) as u32;
        Self { index, window_ms, read: settled(self.read), write: settled(self.write), import: settled(self.import) }
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
    fn from((window, read, write, import): Cell) -> Self {
        let counts = |word: u64| Counts { before: (word >> 32) as u32, current: word as u32 };
        Self {
            index: (window >> 32) as u32,
            window_ms: window as u32,
            read: counts(read),
            write: counts(write),
            import: counts(import),
        }
    }
}

impl From<Windows> for Cell {
    fn from(windows: Windows) -> Self {
        let word = |counts: Counts| u64::from(counts.before) << 32 | u64::from(counts.current);
        let window = u64::from(windows.index) << 32 | u64::from(windows.window_ms);
        (window, word(windows.read), word(windows.write), word(windows.import))
    }
}

tenon_sdk::export_policy!(SlidingWindow, migrating);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    fn reads(window_ms: u32, read: u32) -> SlidingWindow {
        SlidingWindow::new(Settings { window_ms, read: Some(read), ..Settings::default() }).unwrap()
    }

    fn ask(cost: u64, now: u64) -> Request {
        Request { cost, now, ..request(RouteClass::Read, Trust::Public) }
    }

    #[test]
    fn what_was_spent_counts_in_windows_of_another_length() {
        let (old, shorter, longer) = (reads(60_000, 100), reads(1000, 100), reads(3_600_000, 100));
        let (_, cell) = old.check(&ask(90, NOW), (0, 0, 0, 0));
        for new in [&shorter, &longer] {
            assert!(matches!(new.check(&ask(11, NOW), cell).0, Verdict::Throttle(_)));
            let (verdict, next) = new.check(&ask(10, NOW), cell);
            assert!(matches!(verdict, Verdict::Allow(Allowance { limit: 100, remaining: 0, .. })), "{verdict:?}");
            // Two of its own windows later nothing of that is left.
            let later = NOW + 2 * length_us(new.settings.window_ms);
            assert!(matches!(new.check(&ask(100, later), next).0, Verdict::Allow(_)));
        }
        // A window that has slid out of the old length does not come back in a longer one.
        let (verdict, _) = longer.check(&ask(100, NOW + 120_000_000), cell);
        assert!(matches!(verdict, Verdict::Allow(_)), "{verdict:?}");
    }

    #[test]
    fn cells_of_the_first_version_count_on_and_come_back() {
        let policy = reads(1000, 10);
        let first = (NOW / 1_000_000, 9, 0, 0);
        let cell = policy.upgrade(1, first).unwrap();
        let (verdict, next) = policy.check(&ask(1, NOW), cell);
        assert_eq!(verdict, Verdict::Allow(Allowance { limit: 10, remaining: 0, reset_ms: 2000 }));
        assert!(matches!(policy.check(&ask(1, NOW), next).0, Verdict::Throttle(_)));
        assert_eq!(policy.downgrade(1, cell).unwrap(), first);
        assert_eq!(reads(500, 10).downgrade(1, cell).unwrap(), (0, 0, 0, 0));
        assert!(policy.upgrade(0, first).is_err() && policy.downgrade(3, cell).is_err());
    }

    proptest! {
        /// What passes under one configuration passes under one with at least that limit, whatever its windows.
        #[test]
        fn a_raise_throttles_nobody_whom_the_old_limit_lets_pass(
            (window_ms, limit) in (1..5000_u32, 1..50_u32),
            (other_ms, more) in (1..5000_u32, 0..50_u32),
            requests in prop::collection::vec((0..20_u64, 0..2_000_000_u64), 1..100),
        ) {
            let (old, new) = (reads(window_ms, limit), reads(other_ms, limit + more));
            let (mut cell, mut now) = ((0, 0, 0, 0), NOW);
            for (cost, wait_us) in requests {
                now += wait_us;
                let (verdict, next) = old.check(&ask(cost, now), cell);
                if let Verdict::Allow(Allowance { remaining, .. }) = verdict {
                    let raised = new.check(&ask(cost, now), cell).0;
                    let Verdict::Allow(Allowance { remaining: left, .. }) = raised else {
                        return Err(TestCaseError::fail(format!("{raised:?}")));
                    };
                    // As much is spent as was.
                    prop_assert_eq!(left, remaining + u64::from(more));
                }
                cell = next;
            }
        }

        #[test]
        fn no_cell_locks_anybody_out(cell: (u64, u64, u64, u64), window_ms in 1..5000_u32, now in 0..1_u64 << 52) {
            let policy = reads(window_ms, 10);
            let (_, cell) = policy.check(&ask(1, now), cell);
            let (verdict, _) = policy.check(&ask(10, now + 2 * length_us(window_ms)), cell);
            prop_assert!(matches!(verdict, Verdict::Allow(_)), "{:?}", verdict);
        }
    }
}
