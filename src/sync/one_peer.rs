//! The built-in strategy: all from one peer, the best there is, until it fails. Plain, and good enough for one source.

use std::cmp::Reverse;
use std::sync::Mutex;

use super::{Action, Event, HeightRange, Peer, PeerId, Strategy, View};

/// Failures in a row after which another peer is tried, if there is one.
const FAILURES_MAX: u32 = 2;

/// Decides what to do next. `memory` is what was returned last time, empty at first: the peer that is asked.
///
/// Pure. Fetches the lowest heights that are neither here nor asked for, in ranges as long as the limits allow, with as
/// many requests under way as they allow to one peer.
pub fn step(view: &View, _events: &[Event], memory: &[u8]) -> (Vec<Action>, Vec<u8>) {
    let current = memory.try_into().ok().map(PeerId::from_be_bytes);
    let Some(peer) = choose(view, current) else {
        return (Vec::new(), memory.to_vec());
    };
    let mut actions = ranges(view, peer);
    actions.truncate(view.limits.actions_max as usize);
    (actions, peer.id.to_be_bytes().to_vec())
}

/// The peer of last time, as long as it is of use and does not keep failing; else the best one.
fn choose(view: &View, current: Option<PeerId>) -> Option<&Peer> {
    let of_use = |peer: &&Peer| {
        let above = peer.head.is_some_and(|(height, _)| height > view.head.0);
        above && peer.score > 0 && peer.not_before <= view.now
    };
    let kept = view.peers.iter().filter(of_use).find(|peer| Some(peer.id) == current && peer.failures < FAILURES_MAX);
    let best = || {
        let height = |peer: &Peer| peer.head.map_or(0, |(height, _)| height);
        view.peers
            .iter()
            .filter(of_use)
            .max_by_key(|peer| (Reverse(peer.failures), peer.score, height(peer), peer.throughput, Reverse(peer.id)))
    };
    kept.or_else(best)
}

/// Requests to `peer` for what is missing, as many as fit.
fn ranges(view: &View, peer: &Peer) -> Vec<Action> {
    let limits = &view.limits;
    let window_end = view.head.0.saturating_add(limits.window_blocks);
    let last = peer.head.map_or(0, |(height, _)| height).min(window_end);
    let free = (limits.in_flight_max as usize).saturating_sub(view.in_flight.len());
    let free = free.min(limits.in_flight_per_peer_max.saturating_sub(peer.in_flight) as usize);
    let step = u64::from(limits.range_blocks_max.max(1));
    let pieces = view.gaps(last).into_iter().flat_map(|gap| {
        (gap.first..=gap.last)
            .step_by(usize::try_from(step).expect("32 bits fit"))
            .map(move |first| HeightRange { first, last: gap.last.min(first + (step - 1)) })
    });
    pieces.take(free).map(|range| Action::FetchRange { peer: peer.id, range }).collect()
}

/// The same as a [`Strategy`], for a node without plugins.
#[derive(Default)]
pub struct OnePeer {
    memory: Mutex<Vec<u8>>,
}

impl Strategy for OnePeer {
    fn next(&self, view: &View, events: &[Event]) -> Vec<Action> {
        let mut memory = self.memory.lock().expect("a step does not panic");
        let (actions, next) = step(view, events, &memory);
        *memory = next;
        actions
    }

    fn generation(&self) -> u64 {
        0
    }

    fn refused(&self, action: &Action, reason: &str) {
        tracing::debug!(?action, reason, "the built-in strategy's action was refused");
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan;
    use super::super::plan::tests::{any_view, peer, range, view};
    use super::super::{InFlight, RequestId};
    use super::*;
    use crate::chain::Time;
    use proptest::prelude::*;

    fn fetch(peer: PeerId, first: u64, last: u64) -> Action {
        Action::FetchRange { peer, range: range(first, last) }
    }

    #[test]
    fn it_fills_its_peers_requests_with_the_lowest_missing_ranges() {
        let mut view = view(vec![peer(0, 200), peer(1, 5_000)]);
        view.waiting.push(range(61, 70));
        let (actions, memory) = step(&view, &[], &[]);
        assert_eq!(actions, [fetch(1, 11, 60), fetch(1, 71, 170)]);
        assert_eq!(memory, 1_u32.to_be_bytes());
        view.peers[1].in_flight = 2;
        assert_eq!(step(&view, &[], &memory).0, []);
    }

    #[test]
    fn it_stays_with_its_peer_until_that_fails_twice_or_wants_to_be_left_alone() {
        let mut view = view(vec![peer(0, 50), peer(1, 50)]);
        let memory = 1_u32.to_be_bytes();
        view.peers[1].score = 20;
        view.peers[1].failures = 1;
        assert_eq!(step(&view, &[], &memory).0, [fetch(1, 11, 50)]);
        view.peers[1].failures = 2;
        assert_eq!(step(&view, &[], &memory), (vec![fetch(0, 11, 50)], 0_u32.to_be_bytes().to_vec()));
        view.peers[1].failures = 0;
        view.peers[1].not_before = Time::MAX;
        assert_eq!(step(&view, &[], &memory).0, [fetch(0, 11, 50)]);
    }

    #[test]
    fn there_is_nothing_to_do_at_the_head_or_without_peers() {
        assert_eq!(step(&view(vec![peer(0, 10)]), &[], &[]).0, []);
        assert_eq!(step(&view(Vec::new()), &[], &[9]), (Vec::new(), vec![9]));
    }

    proptest! {
        #[test]
        fn the_host_refuses_nothing_that_it_asks_for(
            mut view in any_view(), memory in prop::collection::vec(any::<u8>(), 0..6),
        ) {
            let (actions, _) = step(&view, &[], &memory);
            for (index, action) in actions.iter().enumerate() {
                let checked = plan::check(action, index, &view, &[]);
                prop_assert!(checked.is_ok(), "{:?}", checked);
                let Action::FetchRange { peer, range } = action else { continue };
                let (id, since) = (1_000 + index as RequestId, view.now);
                view.in_flight.push(InFlight { id, peer: *peer, range: *range, since });
                view.peers.iter_mut().find(|known| known.id == *peer).unwrap().in_flight += 1;
            }
        }
    }
}
