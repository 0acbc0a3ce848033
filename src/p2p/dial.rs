//! The peers that the operator named: when to dial which. Pure: the time is an argument.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};

use super::address::PeerAddress;

/// The pause after a first failure; it doubles with each further one in a row.
const PAUSE_FIRST: Duration = Duration::from_millis(500);

/// A connection that stood this long was no failure, however it ended.
const STEADY: Duration = Duration::from_secs(30);

/// Whom to stay connected with.
#[derive(Debug)]
pub struct Targets {
    targets: BTreeMap<PeerId, Target>,
    pause_max: Duration,
}

#[derive(Debug)]
struct Target {
    addresses: Vec<Multiaddr>,
    state: State,
    /// Attempts in a row that came to nothing.
    failures: u32,
    /// What came of the last attempt, while there is no connection.
    problem: Option<String>,
    /// Who was found in its place, as the operator was told last; none since the last connection.
    told: Option<PeerId>,
}

#[derive(Debug)]
enum State {
    Waits { until: Instant },
    Dialling,
    Connected { since: Instant },
}

impl Targets {
    /// These peers, each with all the addresses that it was given; due at `now`.
    pub fn new(peers: &[PeerAddress], pause_max: Duration, now: Instant) -> Self {
        let mut targets: BTreeMap<PeerId, Target> = BTreeMap::new();
        for PeerAddress { peer, address } in peers {
            let fresh = || Target {
                addresses: Vec::new(),
                state: State::Waits { until: now },
                failures: 0,
                problem: None,
                told: None,
            };
            let addresses = &mut targets.entry(*peer).or_insert_with(fresh).addresses;
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        Self { targets, pause_max }
    }

    /// Whether the operator named this peer.
    pub fn contains(&self, peer: &PeerId) -> bool {
        self.targets.contains_key(peer)
    }

    /// The peers.
    pub fn ids(&self) -> impl Iterator<Item = &PeerId> {
        self.targets.keys()
    }

    /// An attempt to reach a peer came to this. One beside a connection that stands says nothing: the peer is reached.
    pub fn failed(&mut self, peer: &PeerId, problem: String) {
        if let Some(target) = self.targets.get_mut(peer)
            && !matches!(target.state, State::Connected { .. })
        {
            target.problem = Some(problem);
        }
    }

    /// Somebody else was found where a peer should be. Answers whether the operator has yet to be told, who then is.
    pub fn mistaken(&mut self, peer: &PeerId, found: PeerId) -> bool {
        let Some(target) = self.targets.get_mut(peer) else { return false };
        let is_connected = matches!(target.state, State::Connected { .. });
        !is_connected && target.told.replace(found) != Some(found)
    }

    /// Those that there is no connection with: who, where, and what came of the last attempt.
    pub fn absent(&self) -> impl Iterator<Item = (&PeerId, &[Multiaddr], Option<&str>)> {
        let absent = self.targets.iter().filter(|(_, target)| !matches!(target.state, State::Connected { .. }));
        absent.map(|(peer, target)| (peer, target.addresses.as_slice(), target.problem.as_deref()))
    }

    /// Whom to dial now. They count as being dialled from here on.
    pub fn due(&mut self, now: Instant) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let mut due = Vec::new();
        for (peer, target) in &mut self.targets {
            if matches!(target.state, State::Waits { until } if until <= now) {
                target.state = State::Dialling;
                due.push((*peer, target.addresses.clone()));
            }
        }
        due
    }

    /// When somebody is due next; none while all are connected or being dialled.
    pub fn next(&self) -> Option<Instant> {
        let waits = |target: &Target| match target.state {
            State::Waits { until } => Some(until),
            State::Dialling | State::Connected { .. } => None,
        };
        self.targets.values().filter_map(waits).min()
    }

    /// A connection stands, whoever began it.
    pub fn connected(&mut self, peer: &PeerId, now: Instant) {
        if let Some(target) = self.targets.get_mut(peer)
            && !matches!(target.state, State::Connected { .. })
        {
            target.state = State::Connected { since: now };
            (target.problem, target.told) = (None, None);
        }
    }

    /// An attempt failed, or the last connection is gone.
    pub fn lost(&mut self, peer: &PeerId, now: Instant) {
        let pause_max = self.pause_max;
        let Some(target) = self.targets.get_mut(peer) else { return };
        match target.state {
            State::Waits { .. } => return,
            State::Connected { since } if now.duration_since(since) >= STEADY => target.failures = 0,
            State::Connected { .. } | State::Dialling => {}
        }
        let pause = PAUSE_FIRST.saturating_mul(1 << target.failures.min(20)).min(pause_max);
        target.failures = target.failures.saturating_add(1);
        target.state = State::Waits { until: now + pause };
    }

    /// Leaves a peer alone until then.
    pub fn leave(&mut self, peer: &PeerId, until: Instant) {
        if let Some(target) = self.targets.get_mut(peer) {
            target.state = State::Waits { until };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::p2p::identity::Identity;
    use proptest::prelude::*;

    const MAX: Duration = Duration::from_secs(60);

    fn peer(id: PeerId, port: u16) -> PeerAddress {
        PeerAddress { peer: id, address: format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap() }
    }

    #[test]
    fn a_peer_is_dialled_at_all_its_addresses_until_it_is_there_and_again_when_it_is_gone() {
        let (id, now) = (Identity::random().peer_id(), Instant::now());
        let mut targets = Targets::new(&[peer(id, 1), peer(id, 2), peer(id, 1)], MAX, now);
        let due = targets.due(now);
        assert_eq!((due.len(), due[0].1.len()), (1, 2));
        assert!(targets.due(now).is_empty() && targets.next().is_none(), "it is being dialled");
        targets.failed(&id, "refused".into());
        let absent: Vec<_> = targets.absent().map(|(_, addresses, problem)| (addresses.len(), problem)).collect();
        assert_eq!(absent, [(2, Some("refused"))]);
        targets.connected(&id, now);
        assert_eq!(targets.absent().count(), 0);
        assert!(targets.due(now + MAX * 9).is_empty());
        let gone = now + MAX * 10;
        targets.lost(&id, gone);
        assert_eq!(targets.next(), Some(gone + PAUSE_FIRST));
        assert_eq!(targets.due(gone + PAUSE_FIRST).len(), 1);
        targets.leave(&id, gone + MAX);
        assert_eq!(targets.next(), Some(gone + MAX));
        targets.lost(&id, gone);
        assert_eq!(targets.next(), Some(gone + MAX), "who is left alone is not dialled sooner");
    }

    #[test]
    fn an_attempt_beside_a_connection_leaves_no_problem_behind() {
        let (id, now) = (Identity::random().peer_id(), Instant::now());
        let mut targets = Targets::new(&[peer(id, 1), peer(id, 2)], MAX, now);
        let problem = |targets: &Targets| targets.absent().map(|(.., problem)| problem.map(str::to_owned)).next();
        targets.connected(&id, now);
        targets.failed(&id, "refused".into());
        assert!(!targets.mistaken(&id, Identity::random().peer_id()), "the peer is there");
        targets.lost(&id, now + MAX);
        assert_eq!(problem(&targets), Some(None));
        targets.failed(&id, "refused".into());
        assert_eq!(problem(&targets), Some(Some("refused".into())));
    }

    #[test]
    fn who_is_found_in_a_peers_place_is_told_once_whatever_else_fails_meanwhile() {
        let (id, now) = (Identity::random().peer_id(), Instant::now());
        let (other, third) = (Identity::random().peer_id(), Identity::random().peer_id());
        let mut targets = Targets::new(&[peer(id, 1), peer(id, 2)], MAX, now);
        assert!(targets.mistaken(&id, other));
        targets.failed(&id, "refused".into());
        assert!(!targets.mistaken(&id, other), "told before");
        assert!(targets.mistaken(&id, third), "somebody else again");
        targets.connected(&id, now);
        targets.lost(&id, now + MAX);
        assert!(targets.mistaken(&id, third), "after a connection it is news again");
        assert!(!targets.mistaken(&other, third), "nobody named that peer");
    }

    proptest! {
        #[test]
        fn pauses_double_up_to_the_longest_and_begin_anew_after_a_steady_connection(
            outcomes in prop::collection::vec(prop::option::of(0..60_u64), 1..40),
        ) {
            let (id, mut now) = (Identity::random().peer_id(), Instant::now());
            let mut targets = Targets::new(&[peer(id, 1)], MAX, now);
            let mut failures = 0_u32;
            for stood in outcomes {
                prop_assert_eq!(targets.due(now).len(), 1);
                if let Some(seconds) = stood {
                    targets.connected(&id, now);
                    now += Duration::from_secs(seconds);
                    if seconds >= 30 {
                        failures = 0;
                    }
                }
                targets.lost(&id, now);
                let expected = (0.5 * f64::from(failures).exp2()).min(60.0);
                let next = targets.next().unwrap();
                prop_assert_eq!(next.duration_since(now).as_secs_f64(), expected);
                now = next;
                failures += 1;
            }
        }
    }
}
