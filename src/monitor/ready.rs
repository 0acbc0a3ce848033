//! Whether requests should come here rather than to another node, and if not, why. Pure.

use serde::Serialize;

use super::Observation;
use crate::sync::SyncState;

/// Whether the node is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// It is.
    pub ready: bool,
    /// Why it is not; empty where it is.
    pub reasons: Vec<Reason>,
}

/// Why a node is not ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// A word for programs.
    pub code: &'static str,
    /// A sentence for people.
    pub text: String,
}

/// Whether the node is at the head of a chain that it can vouch for: nothing that makes its answers old or wrong.
///
/// What only threatens (a disk that fills up, a plugin whose work the built-in does, a full mempool) is an alert, and
/// no reason to send requests elsewhere.
pub fn readiness(seen: &Observation) -> Readiness {
    let mut reasons = Vec::new();
    let mut because = |code, text: String| reasons.push(Reason { code, text });
    let sync = &seen.sync;
    let below = || format!("{} of {} blocks are here", seen.height, sync.best_height);
    if sync.has_ended {
        because("sync-ended", "sync has ended while the node runs; nobody knows what the sources have".to_owned());
    }
    match sync.state {
        SyncState::Live | SyncState::Authority => {}
        SyncState::Starting => because("starting", "no source has been heard yet".to_owned()),
        SyncState::Syncing => because("syncing", below()),
        SyncState::Behind => {
            because("behind", format!("{}, and no new one for {} s", below(), seen.import_age_ms / 1_000))
        }
        SyncState::Ahead => {
            let text = format!("block {} is here, and no source has more than {}", seen.height, sync.best_height);
            because("ahead", text);
        }
        SyncState::Diverged => {
            let text = sync.diverged.as_ref().map_or_else(
                || "a source has another valid block".to_owned(),
                |fork| format!("block {} is {} here and {} at {}", fork.height, fork.ours, fork.theirs, fork.peer),
            );
            because("diverged", text);
        }
        SyncState::NoSource => {
            let reasons: Vec<_> = sync.unused.iter().map(|(peer, reason)| format!("{peer}: {reason}")).collect();
            let text = if reasons.is_empty() {
                "there is no source: `sync.sources` names none, and no peer of `[p2p]` is connected".to_owned()
            } else {
                format!("no source can be used: {}", reasons.join("; "))
            };
            because("no-source", text);
        }
    }
    if seen.is_storage_failing {
        because("storage", "blocks cannot be stored: the last commit failed".to_owned());
    }
    if let Some(verification) = &seen.verification
        && let Some(problem) = &verification.problem
    {
        because("state-wrong", format!("the state of block {} does not verify: {problem}", verification.height));
    }
    Readiness { ready: reasons.is_empty(), reasons }
}

#[cfg(test)]
mod tests {
    use super::super::alert::{Board, Timing};
    use super::super::rules::{Thresholds, findings};
    use super::super::{Disk, Parked, PluginTrouble, Queue, SyncFacts, Verification};
    use super::*;
    use crate::chain::{Hash, Time};
    use crate::sync::Diverged;
    use crate::sync::RefusedReorg;

    const NOW: Time = Time(10_000_000_000);

    fn at(state: SyncState, height: u64, best_height: u64) -> Observation {
        let lag_blocks = best_height.saturating_sub(height);
        let sync = SyncFacts { state, best_height, lag_blocks, ..SyncFacts::default() };
        Observation { now: NOW, height, sync, ..Observation::default() }
    }

    fn live() -> Observation {
        at(SyncState::Live, 100, 100)
    }

    fn authority() -> Observation {
        Observation { is_authority: true, ..at(SyncState::Authority, 100, 100) }
    }

    fn with(mut seen: Observation, change: impl FnOnce(&mut Observation)) -> Observation {
        change(&mut seen);
        seen
    }

    fn fork() -> Diverged {
        Diverged { height: 40, ours: Hash::ZERO, theirs: Hash([1; 32]), peer: "http://a".into() }
    }

    fn verified(problem: Option<&str>, age_s: u64) -> Option<Verification> {
        let at = Time(NOW.0 - age_s * 1_000_000);
        Some(Verification { at, height: 90, problem: problem.map(str::to_owned) })
    }

    /// Every situation that a node can be in: what `/ready` says, and which alerts come of it.
    #[test]
    fn the_truth_table_of_readiness() {
        use SyncState::{Ahead, Authority, Behind, Diverged, Live, NoSource, Starting, Syncing};
        let situations: [(&str, Observation, &[&str], &[&str]); 30] = [
            ("an authority alone", authority(), &[], &[]),
            ("an authority at rest for hours", with(authority(), |o| o.head_age_ms = 9_000_000), &[], &[]),
            ("a node that follows nobody", at(Authority, 100, 100), &[], &[]),
            ("at the sources' head", live(), &[], &[]),
            (
                "at the head of a chain at rest",
                with(live(), |o| (o.head_age_ms, o.import_age_ms) = (9_000_000, 9_000_000)),
                &[],
                &[],
            ),
            ("a block behind, and it comes", at(Live, 99, 100), &[], &[]),
            ("the first moment after a start", at(Starting, 0, 0), &["starting"], &[]),
            ("restarted on a chain that is here", at(Starting, 100, 100), &["starting"], &[]),
            (
                "no peer answers",
                with(at(NoSource, 100, 100), |o| o.sync.unused = vec![("http://a".into(), "refused".into())]),
                &["no-source"],
                &["no-source"],
            ),
            (
                "the only source is of another chain",
                with(at(NoSource, 0, 0), |o| o.sync.unused = vec![("http://a".into(), "its chain is `b`".into())]),
                &["no-source"],
                &["no-source"],
            ),
            (
                "the only source is the node itself",
                with(at(NoSource, 0, 0), |o| {
                    o.sync.unused = vec![("http://a".into(), "it is this node itself".into())]
                }),
                &["no-source"],
                &["no-source"],
            ),
            (
                "catching up",
                with(at(Syncing, 100, 90_000), |o| o.sync.lag_seconds = 90_000),
                &["syncing"],
                &["lag-blocks", "lag-seconds"],
            ),
            ("catching up, nearly there", at(Syncing, 89_989, 90_000), &["syncing"], &["lag-blocks"]),
            (
                "a stale head: the sources have more and nothing comes",
                with(at(Behind, 99, 100), |o| (o.import_age_ms, o.sync.lag_seconds) = (61_000, 61)),
                &["behind"],
                &["lag-seconds", "stuck"],
            ),
            (
                "a stuck import: blocks are here and cannot be added",
                with(at(Behind, 99, 5_000), |o| {
                    (o.import_age_ms, o.sync.problem) = (61_000, Some("no source has block 100 in a valid form".into()))
                }),
                &["behind"],
                &["lag-blocks", "stuck", "sync-problem"],
            ),
            (
                "a peer claims what it does not have, others agree with us",
                with(live(), |o| o.sync.standings = [("up".to_owned(), 3)].into()),
                &[],
                &[],
            ),
            (
                "the only peer claims what it does not have",
                with(at(Behind, 100, 1_000_000), |o| o.import_age_ms = 61_000),
                &["behind"],
                &["lag-blocks", "stuck"],
            ),
            (
                "a source has another block",
                with(at(Diverged, 100, 100), |o| o.sync.diverged = Some(fork())),
                &["diverged"],
                &["diverged"],
            ),
            (
                "diverged too deep to go over",
                with(at(Diverged, 900, 900), |o| {
                    o.sync.diverged = Some(fork());
                    o.refused_reorg = Some(RefusedReorg { at: NOW, depth: 860, peer: "http://a".into() });
                }),
                &["diverged"],
                &["diverged", "reorg-refused"],
            ),
            ("ahead of every source", at(Ahead, 100, 90), &["ahead"], &["ahead"]),
            (
                "the disk is full: commits fail",
                with(live(), |o| (o.is_storage_failing, o.disk) = (true, Some(Disk { free: 0, total: 1 << 40 }))),
                &["storage"],
                &["disk", "storage"],
            ),
            (
                "the disk of an authority is full",
                with(authority(), |o| o.is_storage_failing = true),
                &["storage"],
                &["storage"],
            ),
            (
                "the disk fills up",
                with(live(), |o| o.disk = Some(Disk { free: 5 << 20, total: 1 << 40 })),
                &[],
                &["disk"],
            ),
            (
                "the state does not verify",
                with(live(), |o| o.verification = verified(Some("account ait1x has 5, the tree says 7"), 10)),
                &["state-wrong"],
                &["state-wrong"],
            ),
            (
                "the state was verified long ago",
                with(live(), |o| {
                    (o.verification, o.verification_age_max_ms) = (verified(None, 7_200), Some(3_600_000))
                }),
                &[],
                &["state-unverified"],
            ),
            (
                "a plugin is quarantined, the built-in answers",
                with(live(), |o| o.plugins = vec![PluginTrouble { slot: "sync".into(), text: "quarantined".into() }]),
                &[],
                &["plugin"],
            ),
            (
                "an agent has set messages aside",
                with(live(), |o| o.agents = vec![Parked { agent: "bob".into(), parked: 2, unheard: 2 }]),
                &[],
                &["agent-parked"],
            ),
            (
                "a plugin was refused, the built-in answers",
                with(live(), |o| {
                    o.refused_plugins = vec![PluginTrouble { slot: "sync".into(), text: "not signed".into() }];
                }),
                &[],
                &["plugin-refused"],
            ),
            (
                "the mempool is full, and an authority makes no block",
                with(authority(), |o| {
                    (o.pending, o.import_age_ms) = (10_000, 61_000);
                    o.queues = vec![Queue { name: "mempool", depth: 10_000, limit: Some(10_000) }];
                }),
                &[],
                &["production", "queue"],
            ),
            ("sync has died", with(live(), |o| o.sync.has_ended = true), &["sync-ended"], &["sync-ended"]),
        ];
        for (situation, seen, reasons, alerts) in situations {
            let ready = readiness(&seen);
            let codes: Vec<_> = ready.reasons.iter().map(|reason| reason.code).collect();
            assert_eq!((ready.ready, &codes[..]), (reasons.is_empty(), reasons), "{situation}");
            assert!(ready.reasons.iter().all(|reason| !reason.text.is_empty()), "{situation}");
            assert_eq!(firing(&seen), alerts, "{situation}");
        }
    }

    /// What fires when a situation stays, looked at once a second: never sooner than the rule's delay, and within twice
    /// that.
    fn firing(seen: &Observation) -> Vec<&'static str> {
        let timing = Timing { for_ms: 30_000, clear_ms: 60_000 };
        let mut board = Board::default();
        let mut fired = Vec::new();
        for second in 0..=60 {
            let now = NOW.plus_ms(second * 1_000);
            for alert in board.look(findings(seen, &Thresholds::default()), now, timing) {
                let rule = super::super::rules::RULES.iter().find(|rule| rule.name == alert.name).expect("a rule");
                let earliest = if rule.waits { 30 } else { 0 };
                assert!((earliest..=2 * earliest.max(1)).contains(&second), "{} after {second} s", alert.name);
                fired.push(alert.name);
            }
        }
        fired.sort_unstable();
        fired
    }

    #[test]
    fn a_node_that_is_not_ready_says_why() {
        let text = |seen: &Observation| readiness(seen).reasons.remove(0).text;
        let diverged = with(at(SyncState::Diverged, 100, 100), |o| o.sync.diverged = Some(fork()));
        assert!(text(&diverged).contains("block 40 is 0x0000"), "{}", text(&diverged));
        assert_eq!(text(&at(SyncState::Ahead, 100, 90)), "block 100 is here, and no source has more than 90");
        assert_eq!(text(&at(SyncState::Syncing, 10, 90)), "10 of 90 blocks are here");
    }
}
