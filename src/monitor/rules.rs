//! The conditions that are alerts: what each looks at, from where on it holds, and when it is clear again. Pure.

use super::alert::{Finding, Level, Rule, Severity};
use super::{Observation, Parked, Queue};
use crate::sync::SyncState;

/// From where on conditions hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Blocks below the sources; clear again at half of it.
    pub lag_blocks: u64,
    /// Seconds behind the sources; clear again at half of it.
    pub lag_seconds: u64,
    /// Bytes free on the disk; clear again with a quarter more.
    pub disk_free_min_bytes: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { lag_blocks: 10, lag_seconds: 60, disk_free_min_bytes: 1 << 30 }
    }
}

/// The share of a queue, in percent, from which on it is nearly full, and up to which it is clear again.
const QUEUE_PERCENT: (u64, u64) = (90, 70);

/// How long a refused reorganisation is an alert after the last attempt, in milliseconds.
const REFUSED_MS: u64 = 600_000;

const fn rule(name: &'static str, severity: Severity, waits: bool, about: &'static str) -> Rule {
    Rule { name, severity, waits, about }
}

static LAG_BLOCKS: Rule = rule("lag-blocks", Severity::Warning, true, "the head is many blocks below the sources'");
static LAG_SECONDS: Rule =
    rule("lag-seconds", Severity::Warning, true, "the sources have more, and the head here is old");
static STUCK: Rule = rule("stuck", Severity::Critical, false, "the sources have more, and no block comes in");
static NO_SOURCE: Rule = rule("no-source", Severity::Critical, true, "no source can be used");
static DIVERGED: Rule = rule("diverged", Severity::Critical, false, "a source has another valid block");
static AHEAD: Rule = rule("ahead", Severity::Critical, true, "no source has the newest blocks that are here");
static REORG_REFUSED: Rule = rule(
    "reorg-refused",
    Severity::Critical,
    false,
    "a source's chain leaves ours deeper than a reorganisation may go",
);
static STATE_WRONG: Rule = rule("state-wrong", Severity::Critical, false, "the state does not verify");
static STATE_UNVERIFIED: Rule =
    rule("state-unverified", Severity::Warning, true, "the last verification of the state is too old");
static PLUGIN: Rule = rule("plugin", Severity::Warning, false, "a plugin was rolled back or is quarantined");
static AGENT_PARKED: Rule = rule("agent-parked", Severity::Warning, true, "an agent has set events aside");
static PLUGIN_REFUSED: Rule =
    rule("plugin-refused", Severity::Warning, false, "what is wanted of a slot was refused, and something else serves");
static DISK: Rule = rule("disk", Severity::Critical, true, "the disk of the database is nearly full");
static STORAGE: Rule = rule("storage", Severity::Critical, false, "blocks cannot be stored");
static SYNC_PROBLEM: Rule = rule("sync-problem", Severity::Warning, true, "something keeps sync from going on");
static SYNC_ENDED: Rule = rule("sync-ended", Severity::Critical, false, "sync has ended while the node runs");
static PRODUCTION: Rule = rule("production", Severity::Critical, false, "transactions wait, and no block is made");
static QUEUE: Rule = rule("queue", Severity::Warning, true, "something that waits is near its limit");

/// Every rule there is.
pub static RULES: [&Rule; 18] = [
    &LAG_BLOCKS,
    &LAG_SECONDS,
    &STUCK,
    &NO_SOURCE,
    &DIVERGED,
    &AHEAD,
    &REORG_REFUSED,
    &STATE_WRONG,
    &STATE_UNVERIFIED,
    &PLUGIN,
    &AGENT_PARKED,
    &PLUGIN_REFUSED,
    &DISK,
    &STORAGE,
    &SYNC_PROBLEM,
    &SYNC_ENDED,
    &PRODUCTION,
    &QUEUE,
];

/// The conditions that are not clear.
pub fn findings(seen: &Observation, thresholds: &Thresholds) -> Vec<Finding> {
    let mut found = Found(Vec::new());
    sync(seen, thresholds, &mut found);
    chain(seen, thresholds, &mut found);
    for trouble in &seen.plugins {
        found.raised(&PLUGIN, &trouble.slot, true, || trouble.text.clone());
    }
    for Parked { agent, parked, unheard } in &seen.agents {
        found.raised(&AGENT_PARKED, agent, *parked > 0, || {
            let by_hand = parked.saturating_sub(*unheard);
            format!("{unheard} events wait for a handler, {by_hand} for `tenon agent retry {agent}`")
        });
    }
    for refused in &seen.refused_plugins {
        found.raised(&PLUGIN_REFUSED, &refused.slot, true, || refused.text.clone());
    }
    for queue in &seen.queues {
        nearly_full(queue, &mut found);
    }
    found.0
}

fn sync(seen: &Observation, thresholds: &Thresholds, found: &mut Found) {
    let sync = &seen.sync;
    let Thresholds { lag_blocks, lag_seconds, .. } = *thresholds;
    found.above(&LAG_BLOCKS, "", sync.lag_blocks, lag_blocks, lag_blocks / 2, || {
        format!("{} blocks below the best source, {} of {}", sync.lag_blocks, seen.height, sync.best_height)
    });
    found.above(&LAG_SECONDS, "", sync.lag_seconds, lag_seconds, lag_seconds / 2, || {
        format!("the head, block {}, is {} s old, and the sources have more", seen.height, sync.lag_seconds)
    });
    // No block since half the time is not yet progress enough to call it over.
    let stalled_ms = if sync.lag_blocks == 0 { 0 } else { seen.import_age_ms };
    let level = match sync.state {
        SyncState::Behind => Some(Level::Raised),
        _ if stalled_ms > lag_seconds * 500 => Some(Level::Between),
        _ => None,
    };
    found.level(&STUCK, "", level, || {
        format!("no block for {} s, {} are missing", seen.import_age_ms / 1_000, sync.lag_blocks)
    });
    found.raised(&NO_SOURCE, "", sync.state == SyncState::NoSource, || {
        let reasons = sync.unused.iter().map(|(peer, reason)| format!("{peer}: {reason}"));
        reasons.collect::<Vec<_>>().join("; ")
    });
    if let Some(diverged) = &sync.diverged {
        found.raised(&DIVERGED, &diverged.peer, true, || {
            format!("block {} is {} here and {} there", diverged.height, diverged.ours, diverged.theirs)
        });
    }
    found.raised(&AHEAD, "", sync.state == SyncState::Ahead, || {
        format!("block {} is here, the best source has {}", seen.height, sync.best_height)
    });
    if let Some(problem) = &sync.problem {
        found.raised(&SYNC_PROBLEM, "", true, || problem.clone());
    }
    found.raised(&SYNC_ENDED, "", sync.has_ended, || "restart the node; the log says why".to_owned());
}

fn chain(seen: &Observation, thresholds: &Thresholds, found: &mut Found) {
    if let Some(refused) = seen.refused_reorg.as_ref().filter(|refused| seen.now.ms_since(refused.at) < REFUSED_MS) {
        found.raised(&REORG_REFUSED, &refused.peer, true, || {
            format!("{} blocks would have to be taken back", refused.depth)
        });
    }
    if let Some(verification) = &seen.verification {
        if let Some(problem) = &verification.problem {
            found.raised(&STATE_WRONG, "", true, || format!("at block {}: {problem}", verification.height));
        }
        if let Some(max_ms) = seen.verification_age_max_ms {
            let age_ms = seen.now.ms_since(verification.at);
            found.raised(&STATE_UNVERIFIED, "", age_ms > max_ms, || {
                format!("verified {} s ago, at block {}", age_ms / 1_000, verification.height)
            });
        }
    }
    if let Some(disk) = &seen.disk {
        let min = thresholds.disk_free_min_bytes;
        let level = match disk.free {
            free if free < min => Some(Level::Raised),
            free if free < min.saturating_add(min / 4) => Some(Level::Between),
            _ => None,
        };
        found.level(&DISK, "", level, || format!("{} of {} bytes are free", disk.free, disk.total));
    }
    found.raised(&STORAGE, "", seen.is_storage_failing, || "the last commit failed; the log says why".to_owned());
    let silent_ms = seen.import_age_ms;
    let level = match () {
        () if !seen.is_authority || seen.pending == 0 => None,
        () if silent_ms > thresholds.lag_seconds * 1_000 => Some(Level::Raised),
        () if silent_ms > thresholds.lag_seconds * 500 => Some(Level::Between),
        () => None,
    };
    found.level(&PRODUCTION, "", level, || {
        format!("{} transactions wait, and no block for {} s", seen.pending, silent_ms / 1_000)
    });
}

fn nearly_full(queue: &Queue, found: &mut Found) {
    let Some(limit) = queue.limit.filter(|limit| *limit > 0) else { return };
    let percent = u128::from(queue.depth) * 100 / u128::from(limit);
    let percent = u64::try_from(percent).unwrap_or(u64::MAX);
    let (raised, clear) = QUEUE_PERCENT;
    found.above(&QUEUE, queue.name, percent, raised - 1, clear, || format!("{} of {limit}", queue.depth));
}

/// What was found so far.
struct Found(Vec<Finding>);

impl Found {
    fn level(&mut self, rule: &'static Rule, subject: &str, level: Option<Level>, text: impl FnOnce() -> String) {
        self.0.extend(level.map(|level| Finding { rule, subject: subject.to_owned(), level, text: text() }));
    }

    fn raised(&mut self, rule: &'static Rule, subject: &str, holds: bool, text: impl FnOnce() -> String) {
        self.level(rule, subject, holds.then_some(Level::Raised), text);
    }

    /// A figure that is raised above `high`, and clear at `low` and below.
    fn above(
        &mut self,
        rule: &'static Rule,
        subject: &str,
        figure: u64,
        high: u64,
        low: u64,
        text: impl FnOnce() -> String,
    ) {
        let level = match figure {
            figure if figure > high => Some(Level::Raised),
            figure if figure > low => Some(Level::Between),
            _ => None,
        };
        self.level(rule, subject, level, text);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{Disk, PluginTrouble, SyncFacts, Verification};
    use super::*;
    use crate::chain::{Hash, Time};
    use crate::sync::Diverged;
    use crate::sync::RefusedReorg;

    fn live() -> Observation {
        let sync = SyncFacts { state: SyncState::Live, best_height: 100, ..SyncFacts::default() };
        Observation { now: Time(10_000_000_000), height: 100, sync, ..Observation::default() }
    }

    fn found(change: impl FnOnce(&mut Observation)) -> Vec<(&'static str, String, Level)> {
        let mut seen = live();
        change(&mut seen);
        let found = findings(&seen, &Thresholds::default());
        found.into_iter().map(|finding| (finding.rule.name, finding.subject, finding.level)).collect()
    }

    #[track_caller]
    fn check(rule: &str, subject: &str, level: Option<Level>, change: impl FnOnce(&mut Observation)) {
        let expected: Vec<_> = level.map(|level| (rule, subject.to_owned(), level)).into_iter().collect();
        assert_eq!(found(change), expected, "{rule}");
    }

    const RAISED: Option<Level> = Some(Level::Raised);
    const BETWEEN: Option<Level> = Some(Level::Between);

    #[test]
    fn a_node_that_is_well_has_nothing_to_say() {
        assert_eq!(found(|_| {}), []);
        assert_eq!(found(|seen| seen.sync.state = SyncState::Authority), []);
        let names: BTreeSet<_> = RULES.iter().map(|rule| rule.name).collect();
        assert_eq!(names.len(), RULES.len(), "names are told apart");
    }

    #[test]
    fn each_condition_is_found_at_its_threshold_and_not_below() {
        for (lag, level) in [(11, RAISED), (10, BETWEEN), (6, BETWEEN), (5, None)] {
            check("lag-blocks", "", level, |seen| seen.sync.lag_blocks = lag);
        }
        for (lag, level) in [(61, RAISED), (60, BETWEEN), (31, BETWEEN), (30, None)] {
            check("lag-seconds", "", level, |seen| seen.sync.lag_seconds = lag);
        }
        for (state, lag, age_ms, level) in [
            (SyncState::Behind, 1, 60_001, RAISED),
            (SyncState::Live, 1, 30_001, BETWEEN),
            (SyncState::Live, 1, 30_000, None),
            (SyncState::Live, 0, 9_999_999, None),
        ] {
            check("stuck", "", level, |seen| {
                (seen.sync.state, seen.sync.lag_blocks, seen.import_age_ms) = (state, lag, age_ms);
            });
        }
        check("no-source", "", RAISED, |seen| seen.sync.state = SyncState::NoSource);
        check("ahead", "", RAISED, |seen| seen.sync.state = SyncState::Ahead);
        let fork = Diverged { height: 7, ours: Hash::ZERO, theirs: Hash([1; 32]), peer: "http://a".into() };
        check("diverged", "http://a", RAISED, |seen| seen.sync.diverged = Some(fork));
        check("sync-problem", "", RAISED, |seen| seen.sync.problem = Some("its clock".into()));
        check("sync-ended", "", RAISED, |seen| seen.sync.has_ended = true);
        check("storage", "", RAISED, |seen| seen.is_storage_failing = true);
        for (ago, level) in [(REFUSED_MS - 1, RAISED), (REFUSED_MS, None)] {
            check("reorg-refused", "http://a", level, |seen| {
                let at = Time(seen.now.0 - ago * 1_000);
                seen.refused_reorg = Some(RefusedReorg { at, depth: 200, peer: "http://a".into() });
            });
        }
        for (problem, level) in [(Some("account x differs".to_owned()), RAISED), (None, None)] {
            check("state-wrong", "", level, |seen| {
                seen.verification = Some(Verification { at: seen.now, height: 90, problem });
            });
        }
        for (age_s, level) in [(101, RAISED), (100, None)] {
            check("state-unverified", "", level, |seen| {
                let at = Time(seen.now.0 - age_s * 1_000_000);
                seen.verification = Some(Verification { at, height: 90, problem: None });
                seen.verification_age_max_ms = Some(100_000);
            });
        }
        check("plugin", "sync", RAISED, |seen| {
            seen.plugins = vec![PluginTrouble { slot: "sync".into(), text: "quarantined".into() }];
        });
        for (parked, unheard, level) in [(1, 0, RAISED), (1, 1, RAISED), (0, 0, None)] {
            check("agent-parked", "bob", level, |seen| {
                seen.agents = vec![Parked { agent: "bob".into(), parked, unheard }];
            });
        }
        check("plugin-refused", "sync", RAISED, |seen| {
            seen.refused_plugins = vec![PluginTrouble { slot: "sync".into(), text: "not signed".into() }];
        });
        let gib = 1 << 30;
        for (free, level) in [(gib - 1, RAISED), (gib, BETWEEN), (gib + gib / 4, None)] {
            check("disk", "", level, |seen| seen.disk = Some(Disk { free, total: 100 * gib }));
        }
        for (depth, limit, level) in [
            (90, Some(100), RAISED),
            (89, Some(100), BETWEEN),
            (71, Some(100), BETWEEN),
            (70, Some(100), None),
            (u64::MAX, Some(u64::MAX), RAISED),
            (100, None, None),
            (5, Some(0), None),
        ] {
            check("queue", "mempool", level, |seen| seen.queues = vec![Queue { name: "mempool", depth, limit }]);
        }
        for (is_authority, pending, age_ms, level) in [
            (true, 1, 60_001, RAISED),
            (true, 1, 30_001, BETWEEN),
            (true, 1, 30_000, None),
            (true, 0, 600_000, None),
            (false, 1, 600_000, None),
        ] {
            check("production", "", level, |seen| {
                (seen.is_authority, seen.pending, seen.import_age_ms) = (is_authority, pending, age_ms);
            });
        }
    }
}
