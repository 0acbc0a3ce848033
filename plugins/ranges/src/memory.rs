//! What the strategy has learned: sizes, failures, rests, paces.

use serde::{Deserialize, Serialize};
use tenon_sdk::sync::{Arrival, HeightRange, PeerId, Time, len};

/// Failures remembered at once. The oldest are forgotten first; each costs at worst one more failed request.
const REFUSED_MAX: usize = 256;
/// Peers whose rest is remembered.
const RESTING_MAX: usize = 256;
/// Peers whose pace is remembered. Of others it is taken that they stand as much as is allowed.
const PACES_MAX: usize = 256;
/// Answers after which a peer that had too much gets one more request at once.
const GOOD_ANSWERS: u32 = 8;
/// A peer rests this long after a failure, and twice as long after each further one in a row.
const REST_US: u64 = 100_000;
/// But never longer than this: when it is the only one, the node would sooner lose patience.
const REST_MAX_US: u64 = 3_000_000;

/// What is remembered from call to call. All of it may be lost: the next decisions are then less well informed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Smoothed size of a block, in bytes; 0 before the first arrival.
    block_bytes: u64,
    /// Who failed to give what.
    refused: Vec<Refused>,
    /// Who is left alone until when.
    resting: Vec<Resting>,
    /// Who gets fewer requests at once than are allowed.
    paces: Vec<Pace>,
}

/// How many requests at once a peer gets: one at first, two more with each answer. When one fails, half as many, and
/// from then on one more with every eighth answer: it may be that it limits them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pace {
    peer: PeerId,
    at_once: u32,
    /// Answers since the pace last changed.
    good: u32,
    /// It has had too much before.
    careful: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Refused {
    peer: PeerId,
    first: u64,
    last: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Resting {
    peer: PeerId,
    until: Time,
}

impl Memory {
    /// Learns from an answer how large blocks are, and that its peer stands more; `requests_max` is the most.
    pub(crate) fn arrived(&mut self, arrival: &Arrival, requests_max: u32) {
        if let Some(pace) = self.paces.iter_mut().find(|pace| pace.peer == arrival.peer) {
            pace.good += 1;
            if !pace.careful || pace.good >= GOOD_ANSWERS {
                let more = if pace.careful { 1 } else { 2 };
                (pace.at_once, pace.good) = (pace.at_once.saturating_add(more), 0);
            }
        }
        self.paces.retain(|pace| pace.at_once < requests_max);
        let bytes = (arrival.bytes / len(&arrival.range)).max(1);
        self.block_bytes = match self.block_bytes {
            0 => bytes,
            before => (before.saturating_mul(7).saturating_add(bytes)) / 8,
        };
    }

    /// A peer is asked for the first time: it first has to show what it stands.
    pub(crate) fn met(&mut self, peer: PeerId) {
        if !self.paces.iter().any(|pace| pace.peer == peer) {
            self.set_pace(Pace { peer, at_once: 1, good: 0, careful: false });
        }
    }

    /// Peers that get fewer requests at once than are allowed, and how many.
    pub(crate) fn paces(&self) -> impl Iterator<Item = (PeerId, u32)> + '_ {
        self.paces.iter().map(|pace| (pace.peer, pace.at_once))
    }

    /// Peers that are left alone, and until when.
    pub(crate) fn rests(&self) -> impl Iterator<Item = (PeerId, Time)> + '_ {
        self.resting.iter().map(|resting| (resting.peer, resting.until))
    }

    fn at_once(&self, peer: PeerId) -> Option<u32> {
        self.paces.iter().find(|pace| pace.peer == peer).map(|pace| pace.at_once)
    }

    fn set_pace(&mut self, pace: Pace) {
        self.paces.retain(|known| known.peer != pace.peer);
        if self.paces.len() == PACES_MAX {
            self.paces.remove(0);
        }
        self.paces.push(pace);
    }

    /// Learns from a failure: another peer is asked for `range`, and this one rests; of the `requests` that it had at
    /// once it gets half.
    pub(crate) fn failed(&mut self, peer: PeerId, range: &HeightRange, failures: u32, requests: u32, now: Time) {
        let before = self.at_once(peer).unwrap_or(requests);
        self.set_pace(Pace { peer, at_once: (before / 2).max(1), good: 0, careful: true });
        if self.refused.len() == REFUSED_MAX {
            self.refused.remove(0);
        }
        self.refused.push(Refused { peer, first: range.first, last: range.last });
        let rest_us = REST_US.saturating_mul(1 << failures.min(10)).min(REST_MAX_US);
        self.resting.retain(|resting| resting.peer != peer);
        if self.resting.len() == RESTING_MAX {
            self.resting.remove(0);
        }
        self.resting.push(Resting { peer, until: now.saturating_add(rest_us) });
    }

    /// Forgets what no longer matters: rests that are over, peers that are gone, heights that are imported.
    pub(crate) fn tidy(&mut self, now: Time, imported: u64, known: impl Fn(PeerId) -> bool) {
        // A clock that was set back must not make a rest of hours.
        self.resting.retain(|resting| resting.until > now && resting.until - now <= REST_MAX_US && known(resting.peer));
        self.refused.retain(|refused| refused.last > imported && known(refused.peer));
        self.paces.retain(|pace| known(pace.peer));
    }

    /// Whether `peer` failed to give `height`.
    pub(crate) fn has_refused(&self, peer: PeerId, height: u64) -> bool {
        self.refused.iter().any(|refused| refused.peer == peer && (refused.first..=refused.last).contains(&height))
    }

    /// Bytes that a block has, as far as is known; at least 1.
    pub(crate) fn block_bytes(&self) -> u64 {
        // Before the first arrival, a block with a transaction or two.
        const GUESS: u64 = 1024;
        if self.block_bytes == 0 { GUESS } else { self.block_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(blocks: u64, bytes: u64) -> Arrival {
        Arrival { id: 1, peer: 1, range: HeightRange { first: 1, last: blocks }, bytes, duration_us: 5_000 }
    }

    #[test]
    fn the_size_of_a_block_follows_what_comes() {
        let mut memory = Memory::default();
        assert_eq!(memory.block_bytes(), 1024, "a guess");
        memory.arrived(&arrival(10, 4_000), 8);
        assert_eq!(memory.block_bytes(), 400, "the first answer corrects it");
        memory.arrived(&arrival(10, 12_000), 8);
        assert_eq!(memory.block_bytes(), 500);
        for _ in 0..40 {
            memory.arrived(&arrival(10, 12_000), 8);
        }
        assert!((1_150..=1_200).contains(&memory.block_bytes()), "{}", memory.block_bytes());
    }

    #[test]
    fn a_failure_is_remembered_until_its_range_is_imported() {
        let mut memory = Memory::default();
        memory.failed(7, &HeightRange { first: 10, last: 19 }, 1, 4, 1000);
        assert!(memory.has_refused(7, 10) && memory.has_refused(7, 19));
        assert!(!memory.has_refused(7, 20) && !memory.has_refused(8, 10));
        memory.tidy(1000, 18, |_| true);
        assert!(memory.has_refused(7, 19));
        memory.tidy(1000, 19, |_| true);
        assert!(!memory.has_refused(7, 19));
    }

    fn rests_until(memory: &Memory, peer: PeerId) -> Time {
        memory.rests().find(|(resting, _)| *resting == peer).map_or(0, |(_, until)| until)
    }

    #[test]
    fn rests_grow_end_and_do_not_outlive_a_clock_that_is_set_back() {
        let range = HeightRange { first: 1, last: 1 };
        let mut memory = Memory::default();
        let now = 1_000_000_000;
        for (failures, rest_us) in [(0, 100_000), (1, 200_000), (3, 800_000), (40, REST_MAX_US)] {
            memory.failed(7, &range, failures, 4, now);
            assert_eq!(rests_until(&memory, 7), now + rest_us);
        }
        let mut set_back = memory.clone();
        set_back.tidy(0, 0, |_| true);
        assert_eq!(rests_until(&set_back, 7), 0);
        memory.tidy(now + REST_MAX_US, 0, |_| true);
        assert_eq!(rests_until(&memory, 7), 0);
    }

    #[test]
    fn a_pace_grows_with_each_answer_until_one_fails_and_then_slowly() {
        let mut memory = Memory::default();
        let range = HeightRange { first: 1, last: 1 };
        let answers = |memory: &mut Memory, count| (0..count).for_each(|_| memory.arrived(&arrival(1, 400), 8));
        assert_eq!(memory.at_once(1), None, "as many as are allowed");
        memory.met(1);
        assert_eq!(memory.at_once(1), Some(1));
        answers(&mut memory, 3);
        memory.met(1);
        assert_eq!(memory.at_once(1), Some(7), "meeting it again changes nothing");
        memory.failed(1, &range, 1, 7, 0);
        answers(&mut memory, GOOD_ANSWERS - 1);
        assert_eq!(memory.at_once(1), Some(3));
        answers(&mut memory, 1);
        assert_eq!(memory.at_once(1), Some(4));
        answers(&mut memory, 5 * GOOD_ANSWERS);
        assert_eq!(memory.at_once(1), None, "it stands as much as is allowed");
        for at_once in [4, 2, 1, 1] {
            memory.failed(1, &range, 1, 8, 0);
            assert_eq!(memory.at_once(1), Some(at_once));
        }
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut memory = Memory::default();
        for peer in 0..10_000 {
            memory.failed(peer, &HeightRange { first: 1, last: 2 }, 1, 4, 0);
        }
        assert_eq!((memory.refused.len(), memory.paces.len()), (REFUSED_MAX, PACES_MAX));
        assert_eq!(memory.resting.len(), RESTING_MAX);
    }

    #[test]
    fn numbers_at_the_edge_do_no_harm() {
        let mut memory = Memory::default();
        let endless = HeightRange { first: 0, last: u64::MAX };
        for (bytes, duration_us) in [(u64::MAX, 0), (0, u64::MAX), (u64::MAX, u64::MAX), (0, 0)] {
            memory.arrived(&Arrival { id: 0, peer: 0, range: endless, bytes, duration_us }, u32::MAX);
            assert!(memory.block_bytes() >= 1);
        }
        memory.failed(0, &endless, u32::MAX, u32::MAX, u64::MAX);
        memory.tidy(u64::MAX, u64::MAX, |_| true);
    }
}
