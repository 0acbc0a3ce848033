//! What simulations came to, and how several compare.

use std::collections::BTreeMap;

use serde::Serialize;

use super::tally::Bar;
use crate::chain::{Height, Time};
use crate::sync::{PeerId, SyncState};

/// What one simulation came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The strategy's name; after swaps, the last one's.
    pub strategy: String,
    /// How the node stood at the end.
    pub state: SyncState,
    /// Whether that is what the scenario expects, with all blocks that an honest peer has.
    pub as_expected: bool,
    /// The local head.
    pub head: Height,
    /// The highest block that an honest peer had.
    pub goal: Height,
    /// How long the simulation took, in virtual milliseconds.
    pub ended_ms: u64,
    /// When the node first had all that an honest peer had.
    pub synced_ms: Option<u64>,
    /// Blocks a second until then.
    pub blocks_per_second: u64,
    /// Requests for ranges.
    pub requests: u64,
    /// Of those, that were not answered, or not with blocks.
    pub failed: u64,
    /// That a peer refused, since they were too many.
    pub limited: u64,
    /// That were given up.
    pub given_up: u64,
    /// Looks at heads.
    pub looks: u64,
    /// Bytes of ranges that came.
    pub received_bytes: u64,
    /// Of those, that are not on the chain: twice, invalid, broken off.
    pub wasted_bytes: u64,
    /// The same in percent.
    pub wasted_percent: f64,
    /// Peers there are.
    pub peers: u64,
    /// Peers that were asked for a range.
    pub peers_asked: u64,
    /// Requests for ranges to each peer.
    pub requests_a_peer: Spread,
    /// How evenly the honest peers were loaded, in bytes: Jain's index, 1 for equally, 1 / n where one had it all.
    pub fairness: f64,
    /// Requests that the watchdog made.
    pub rescues: u64,
    /// Actions that the host refused.
    pub refused: u64,
    /// Of each kind of action how many, and why the first one.
    pub refusals: Vec<(String, u64, String)>,
    /// Calls of the strategy.
    pub calls: u64,
    /// Calls that failed, and that the built-in answered.
    pub failed_calls: u64,
    /// Why the last one did.
    pub failure: Option<String>,
    /// Fuel of all calls; 0 for a native strategy.
    pub fuel: u64,
    /// Fuel of a call in the mean.
    pub fuel_a_call: u64,
    /// Fuel of the most expensive one.
    pub fuel_most: u64,
    /// Events that the engine took in.
    pub events: u64,
    /// Blocks that were handed to import though they were there: never any.
    pub imported_twice: u64,
    /// How often another branch took the place of ours.
    pub reorganised: u64,
    /// The block of the snapshot that the chain began with; 0 without one.
    pub snapshot_height: Height,
    /// Snapshots that were begun and not taken.
    pub snapshots_failed: u64,
    /// What kept sync from going on, in the node's words.
    pub problem: Option<String>,
    /// For the picture.
    #[serde(skip)]
    pub timeline: Timeline,
}

/// What happened when.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// The end.
    pub ends_at: Time,
    /// The local head, whenever it moved.
    pub heads: Vec<(Time, Height)>,
    /// The requests.
    pub bars: Vec<Bar>,
    /// When the watchdog acted.
    pub rescues: Vec<Time>,
    /// When another strategy took over.
    pub swaps: Vec<Time>,
    /// What peers are called.
    pub names: BTreeMap<PeerId, String>,
}

/// How some numbers spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// The least.
    pub least: u64,
    /// The middle one.
    pub median: u64,
    /// The most.
    pub most: u64,
}

impl Spread {
    /// Of these numbers; zeros where there are none.
    pub fn of(numbers: impl Iterator<Item = u64>) -> Self {
        let mut numbers: Vec<u64> = numbers.collect();
        numbers.sort_unstable();
        let at = |index: usize| numbers.get(index).copied().unwrap_or(0);
        Self { least: at(0), median: at(numbers.len() / 2), most: at(numbers.len().saturating_sub(1)) }
    }
}

/// Jain's index of some loads, to a thousandth: the square of the sum by n times the sum of the squares.
pub fn fairness(loads: impl Iterator<Item = u64>) -> f64 {
    let (mut count, mut sum, mut squares) = (0_u64, 0.0, 0.0);
    for load in loads {
        count += 1;
        sum += load as f64;
        squares += load as f64 * load as f64;
    }
    if squares == 0.0 { 1.0 } else { (sum * sum / (count as f64 * squares) * 1_000.0).round() / 1_000.0 }
}

/// A part in percent, to a hundredth.
pub fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (part as f64 * 10_000.0 / whole as f64).round() / 100.0 }
}

/// The outcomes side by side: a row for each figure, a column for each strategy; the first row and column are titles.
pub fn table(outcomes: &[Outcome]) -> Vec<Vec<String>> {
    type Cell = fn(&Outcome) -> String;
    let figures: [(&str, Cell); 21] = [
        ("in the end", |o| format!("{}{}", word(o.state), if o.as_expected { "" } else { " (not as expected)" })),
        ("head", |o| if o.head == o.goal { o.head.to_string() } else { format!("{} of {}", o.head, o.goal) }),
        ("time to sync", |o| o.synced_ms.map_or("never".into(), seconds)),
        ("snapshot", |o| if o.snapshot_height == 0 { "-".into() } else { o.snapshot_height.to_string() }),
        ("blocks/s", |o| o.blocks_per_second.to_string()),
        ("requests", |o| o.requests.to_string()),
        ("  not answered", |o| o.failed.to_string()),
        ("  429", |o| o.limited.to_string()),
        ("  given up", |o| o.given_up.to_string()),
        ("requests a peer", |o| {
            let Spread { least, median, most } = o.requests_a_peer;
            format!("{least} / {median} / {most}")
        }),
        ("peers asked", |o| format!("{} of {}", o.peers_asked, o.peers)),
        ("received", |o| megabytes(o.received_bytes)),
        ("wasted", |o| format!("{} ({}%)", megabytes(o.wasted_bytes), o.wasted_percent)),
        ("fairness", |o| format!("{:.3}", o.fairness)),
        ("rescues", |o| o.rescues.to_string()),
        ("refused actions", |o| o.refused.to_string()),
        ("strategy calls", |o| o.calls.to_string()),
        ("  that failed", |o| o.failed_calls.to_string()),
        ("  fuel a call", |o| if o.fuel == 0 { "-".into() } else { o.fuel_a_call.to_string() }),
        ("  fuel at most", |o| if o.fuel == 0 { "-".into() } else { o.fuel_most.to_string() }),
        ("events", |o| o.events.to_string()),
    ];
    let titles = std::iter::once(String::new()).chain(outcomes.iter().map(|outcome| outcome.strategy.clone()));
    let mut rows = vec![titles.collect::<Vec<_>>()];
    for (title, cell) in figures {
        rows.push(std::iter::once(title.to_owned()).chain(outcomes.iter().map(cell)).collect());
    }
    rows
}

/// The word that a state is in JSON.
fn word(state: SyncState) -> String {
    serde_json::to_value(state).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1_000, ms % 1_000)
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{:02} MB", bytes / 1_000_000, bytes % 1_000_000 / 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fairness_is_jains_index() {
        let of = |loads: &[u64]| fairness(loads.iter().copied());
        assert_eq!((of(&[5, 5, 5, 5]), of(&[8, 0, 0, 0]), of(&[1, 3])), (1.0, 0.25, 0.8));
        assert_eq!((of(&[]), of(&[0, 0])), (1.0, 1.0));
    }

    #[test]
    fn shares_and_spreads_are_of_what_there_is() {
        assert_eq!((percent(1, 3), percent(0, 0), percent(7, 7)), (33.33, 0.0, 100.0));
        assert_eq!(Spread::of([5, 1, 9].into_iter()), Spread { least: 1, median: 5, most: 9 });
        assert_eq!(Spread::of(std::iter::empty()), Spread { least: 0, median: 0, most: 0 });
        assert_eq!((seconds(61_005), megabytes(12_345_678)), ("61.005 s".to_owned(), "12.34 MB".to_owned()));
    }
}
