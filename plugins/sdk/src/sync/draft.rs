//! An answer in the making: what a strategy wants, cut to what the node will carry out.

use super::{Action, Fetch, Height, HeightRange, InFlight, Peer, PeerId, Penalty, RequestId, Snapshot, Time, View};

/// How old a request must be before another peer may be asked for its blocks too, in microseconds, unless it holds the
/// lowest missing block.
pub const DOUBLE_AFTER_US: u64 = 1_000_000;

/// The actions of one answer, and the view as it will be once they are carried out. Keeps to the view's limits by
/// itself: what would break one is not taken in.
///
/// ```
/// use tenon_sdk::sync::{Action, Draft, View};
///
/// fn lowest_from_anybody(view: &View) -> Vec<Action> {
///     let mut draft = Draft::new(view);
///     while let Some(gap) = draft.unasked().into_iter().next() {
///         let Some(peer) = view.peers.iter().find(|peer| draft.can_ask(peer, gap.first)) else { break };
///         draft.fetch(peer, gap);
///     }
///     draft.finish()
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Draft<'a> {
    view: &'a View,
    /// Requests of this answer.
    asked: Vec<Fetch>,
    actions: Vec<Action>,
    wake_at: Option<Time>,
}

impl<'a> Draft<'a> {
    /// Nothing asked for yet.
    pub fn new(view: &'a View) -> Self {
        Self { view, asked: Vec::new(), actions: Vec::new(), wake_at: None }
    }

    /// The heights to fetch: above the local head, up to the highest that a peer reported, within the window. None: all
    /// is here.
    pub fn wanted(&self) -> Option<HeightRange> {
        let first = self.view.head.height.checked_add(1)?;
        let window_end = self.view.head.height.saturating_add(self.view.limits.window_blocks);
        let last = self.view.best_height.min(window_end);
        (first <= last).then_some(HeightRange { first, last })
    }

    /// What of the wanted heights is neither here nor asked for; lowest first.
    pub fn unasked(&self) -> Vec<HeightRange> {
        let Some(HeightRange { first, last }) = self.wanted() else { return Vec::new() };
        let under_way = self.requests().map(|(_, range)| range);
        missing(first, last, under_way.chain(self.view.waiting.iter().copied()))
    }

    /// What of `range` is not here, whether asked for or not; lowest first.
    pub fn absent(&self, range: HeightRange) -> Vec<HeightRange> {
        let first = range.first.max(self.view.head.height.saturating_add(1));
        missing(first, range.last, self.view.waiting.iter().copied())
    }

    /// Requests under way and those of this answer: whom, and for what.
    pub fn requests(&self) -> impl Iterator<Item = (PeerId, HeightRange)> + '_ {
        let under_way = self.view.in_flight.iter().map(|request| (request.peer, request.range));
        under_way.chain(self.asked.iter().map(|fetch| (fetch.peer, fetch.range)))
    }

    /// How many requests there are in all.
    pub fn request_count(&self) -> usize {
        self.view.in_flight.len() + self.asked.len()
    }

    /// How many of them go to `peer`.
    pub fn asked_of(&self, peer: &Peer) -> u32 {
        let planned = self.asked.iter().filter(|fetch| fetch.peer == peer.id).count();
        peer.in_flight.saturating_add(u32::try_from(planned).unwrap_or(u32::MAX))
    }

    /// Whether another action fits; room for the final [`Action::WaitUntil`] is kept.
    pub fn has_room(&self) -> bool {
        let most = self.view.limits.actions_max as usize;
        self.actions.len() < most.saturating_sub(1).max(most.min(1))
    }

    /// Whether another request fits, whoever is asked.
    pub fn may_ask(&self) -> bool {
        let limits = &self.view.limits;
        self.has_room() && limits.range_blocks_max > 0 && self.request_count() < limits.in_flight_max as usize
    }

    /// Whether `peer` can be asked for `height` now.
    pub fn can_ask(&self, peer: &Peer, height: Height) -> bool {
        self.may_ask()
            && peer.score > 0
            && peer.not_before <= self.view.now
            && head_of(peer) >= height
            && self.asked_of(peer) < self.view.limits.in_flight_per_peer_max
    }

    /// Asks `peer` for `range`, or for as much from its start as the limits allow and the peer has. Gives what is asked
    /// for; none, and nothing is asked for, where not even its first block can be.
    pub fn fetch(&mut self, peer: &Peer, range: HeightRange) -> Option<HeightRange> {
        if !self.can_ask(peer, range.first) {
            return None;
        }
        let most = u64::from(self.view.limits.range_blocks_max);
        let window_end = self.view.head.height.saturating_add(self.view.limits.window_blocks);
        let last = range.last.min(range.first.saturating_add(most - 1)).min(head_of(peer)).min(window_end);
        if range.first > last || range.first <= self.view.head.height {
            return None;
        }
        let range = HeightRange { first: range.first, last };
        self.asked.push(Fetch { peer: peer.id, range });
        self.actions.push(Action::FetchRange(Fetch { peer: peer.id, range }));
        Some(range)
    }

    /// When another peer may be asked for the blocks of `request` too; none where one has been already.
    ///
    /// At once where it holds the lowest missing block, which everything above waits for; else when it is old enough.
    pub fn may_double_at(&self, request: &InFlight) -> Option<Time> {
        let copies = self.requests().filter(|(_, range)| overlap(range, &request.range)).count();
        if copies > 1 {
            return None;
        }
        let lowest = self.absent(self.wanted()?).first()?.first;
        let holds_lowest = (request.range.first..=request.range.last).contains(&lowest);
        Some(if holds_lowest { request.since } else { request.since.saturating_add(DOUBLE_AFTER_US) })
    }

    /// Gives a request up. It still counts as under way in this answer.
    pub fn cancel(&mut self, id: RequestId) {
        self.push(Action::Cancel(id));
    }

    /// Takes a snapshot in place of blocks.
    pub fn fetch_snapshot(&mut self, snapshot: Snapshot) {
        self.push(Action::FetchSnapshot(snapshot));
    }

    /// Lowers the score of `peer`, if it is still there, by 1 to 100 points.
    pub fn penalise(&mut self, peer: PeerId, points: u32) {
        if self.peer(peer).is_some() {
            self.push(Action::Penalise(Penalty { peer, points: points.clamp(1, 100) }));
        }
    }

    /// Tells the operator.
    pub fn report(&mut self, line: String) {
        self.push(Action::Report(line));
    }

    /// Asks to be called at `at` though nothing happens; of several moments the earliest counts.
    pub fn wake_at(&mut self, at: Time) {
        self.wake_at = Some(self.wake_at.map_or(at, |before| before.min(at)));
    }

    /// The peer with this number.
    pub fn peer(&self, id: PeerId) -> Option<&'a Peer> {
        self.position(id).map(|at| &self.view.peers[at])
    }

    /// Where among the view's peers the one with this number is. Fast where they are in the order of their numbers, as
    /// the node lists them.
    pub fn position(&self, id: PeerId) -> Option<usize> {
        let peers = &self.view.peers;
        let at = peers.partition_point(|peer| peer.id < id);
        let is_it = |peer: &Peer| peer.id == id;
        if peers.get(at).is_some_and(is_it) { Some(at) } else { peers.iter().position(is_it) }
    }

    /// The answer.
    pub fn finish(mut self) -> Vec<Action> {
        if let Some(at) = self.wake_at
            && self.actions.len() < self.view.limits.actions_max as usize
        {
            self.actions.push(Action::WaitUntil(at));
        }
        self.actions
    }

    fn push(&mut self, action: Action) {
        if self.has_room() {
            self.actions.push(action);
        }
    }
}

/// The highest block that a peer is known to have; 0, which nobody asks for, where none is known.
pub fn head_of(peer: &Peer) -> Height {
    peer.head.as_ref().map_or(0, |head| head.height)
}

/// How many heights a range has.
pub fn len(range: &HeightRange) -> u64 {
    (range.last - range.first).saturating_add(1)
}

/// Whether the two have a height in common.
pub fn overlap(one: &HeightRange, other: &HeightRange) -> bool {
    one.first <= other.last && other.first <= one.last
}

/// The stretches of `first..=last` that none of `taken` covers, lowest first. `taken` comes in any order, and may
/// overlap.
pub fn missing(first: Height, last: Height, taken: impl Iterator<Item = HeightRange>) -> Vec<HeightRange> {
    // Sorted as it comes, which what waits does: the standard library's sort is a tenth of a small component.
    let mut sorted: Vec<HeightRange> = Vec::new();
    for range in taken {
        let at = sorted.partition_point(|known| known.first <= range.first);
        sorted.insert(at, range);
    }
    between(first, last, &sorted)
}

fn between(first: Height, last: Height, sorted: &[HeightRange]) -> Vec<HeightRange> {
    let mut gaps = Vec::new();
    let mut next = first;
    for range in sorted.iter().filter(|range| range.last >= first && range.first <= last) {
        if range.first > next {
            gaps.push(HeightRange { first: next, last: range.first - 1 });
        }
        match range.last.checked_add(1) {
            Some(above) => next = next.max(above),
            None => return gaps,
        }
    }
    if next <= last {
        gaps.push(HeightRange { first: next, last });
    }
    gaps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Head, Limits};
    use super::*;

    fn range(first: Height, last: Height) -> HeightRange {
        HeightRange { first, last }
    }

    fn peer(id: PeerId, height: Height) -> Peer {
        Peer {
            id,
            head: Some(Head { height, hash: vec![0; 32] }),
            latency_us: 0,
            throughput: 0,
            failures: 0,
            score: 100,
            in_flight: 0,
            not_before: 0,
            snapshot: None,
        }
    }

    fn view(peers: Vec<Peer>) -> View {
        View {
            now: 5_000_000,
            head: Head { height: 10, hash: vec![0; 32] },
            best_height: peers.iter().map(head_of).max().unwrap_or(0),
            limits: Limits {
                range_blocks_max: 10,
                in_flight_max: 3,
                in_flight_per_peer_max: 2,
                window_blocks: 50,
                actions_max: 8,
            },
            peers,
            in_flight: Vec::new(),
            waiting: Vec::new(),
        }
    }

    fn under_way(view: &mut View, id: RequestId, peer: PeerId, range: HeightRange, since: Time) {
        view.in_flight.push(InFlight { id, peer, range, since });
        view.peers.iter_mut().find(|known| known.id == peer).unwrap().in_flight += 1;
    }

    #[test]
    fn gaps_lie_between_what_is_taken() {
        let check = |taken: &[(u64, u64)], expected: &[(u64, u64)]| {
            let gaps = missing(1, 10, taken.iter().map(|&(first, last)| range(first, last)));
            let gaps: Vec<_> = gaps.iter().map(|gap| (gap.first, gap.last)).collect();
            assert_eq!(gaps, expected, "{taken:?}");
        };
        check(&[], &[(1, 10)]);
        check(&[(1, 10)], &[]);
        check(&[(0, u64::MAX)], &[]);
        check(&[(3, 4)], &[(1, 2), (5, 10)]);
        check(&[(8, 20), (1, 2)], &[(3, 7)]);
        check(&[(2, 6), (3, 4), (5, 8)], &[(1, 1), (9, 10)]);
        assert_eq!(missing(5, 4, std::iter::empty()), []);
    }

    #[test]
    fn a_request_is_cut_to_the_limits_and_refused_where_nothing_is_left() {
        let view = view(vec![peer(1, 25), peer(2, 1_000)]);
        let (short, long) = (&view.peers[0], &view.peers[1]);
        let mut draft = Draft::new(&view);
        assert_eq!(draft.wanted(), Some(range(11, 60)), "the window ends there");
        assert_eq!(draft.fetch(long, range(11, 60)), Some(range(11, 20)), "as long as a request may be");
        assert_eq!(draft.fetch(short, range(21, 60)), Some(range(21, 25)), "as much as it has");
        assert_eq!(draft.fetch(short, range(26, 30)), None, "it has none of that");
        assert_eq!(draft.unasked(), [range(26, 60)]);
        assert_eq!(draft.fetch(long, range(58, 90)), Some(range(58, 60)), "to the window's end");
        assert_eq!(draft.fetch(short, range(21, 22)), None, "three are under way");
        assert_eq!((draft.asked_of(short), draft.asked_of(long)), (1, 2));
        draft.wake_at(7);
        draft.wake_at(6);
        draft.wake_at(9);
        assert_eq!(draft.finish().last(), Some(&Action::WaitUntil(6)));
    }

    #[test]
    fn who_rests_has_no_points_or_is_full_is_not_asked() {
        let mut view = view(vec![peer(1, 100); 4]);
        for (id, peer) in (1..).zip(&mut view.peers) {
            peer.id = id;
        }
        view.peers[1].not_before = view.now + 1;
        view.peers[2].score = 0;
        under_way(&mut view, 1, 4, range(20, 21), 0);
        let can = |view: &View| -> Vec<bool> {
            let draft = Draft::new(view);
            view.peers.iter().map(|peer| draft.can_ask(peer, 11)).collect()
        };
        assert_eq!(can(&view), [true, false, false, true]);
        under_way(&mut view, 2, 4, range(22, 23), 0);
        assert_eq!(can(&view), [true, false, false, false]);
        view.limits.in_flight_max = 2;
        assert_eq!(can(&view), [false; 4]);
    }

    #[test]
    fn a_request_is_doubled_at_once_where_all_wait_for_it_and_else_when_it_is_old() {
        let mut view = view(vec![peer(1, 100), peer(2, 100), peer(3, 100)]);
        view.waiting.push(range(11, 12));
        under_way(&mut view, 1, 1, range(13, 15), 4_000_000);
        under_way(&mut view, 2, 2, range(16, 20), 4_500_000);
        let mut draft = Draft::new(&view);
        assert_eq!(draft.may_double_at(&view.in_flight[0]), Some(4_000_000));
        assert_eq!(draft.may_double_at(&view.in_flight[1]), Some(5_500_000));
        draft.fetch(&view.peers[2], range(13, 15)).unwrap();
        assert_eq!(draft.may_double_at(&view.in_flight[0]), None, "it has been");
    }

    #[test]
    fn the_number_of_actions_is_kept_and_the_last_one_is_for_waiting() {
        for most in 0..6 {
            let mut view = view(vec![peer(1, 100)]);
            view.limits.actions_max = most;
            let mut draft = Draft::new(&view);
            for id in 0..9 {
                draft.cancel(id);
            }
            draft.penalise(1, 5);
            draft.penalise(9, 5);
            draft.wake_at(1);
            let actions = draft.finish();
            assert_eq!(actions.len(), most as usize);
            if most > 1 {
                assert_eq!(actions.last(), Some(&Action::WaitUntil(1)));
            }
        }
    }

    proptest! {
        #[test]
        fn gaps_are_what_a_list_of_heights_says(
            taken in prop::collection::vec((0..60_u64, 0..12_u64), 0..10),
            first in 0..40_u64,
            length in 0..40_u64,
        ) {
            let ranges: Vec<_> = taken.iter().map(|&(first, more)| range(first, first + more)).collect();
            let last = first + length;
            let expected: Vec<u64> = (first..=last)
                .filter(|height| !ranges.iter().any(|range| (range.first..=range.last).contains(height)))
                .collect();
            let gaps = missing(first, last, ranges.into_iter());
            let heights: Vec<u64> = gaps.iter().flat_map(|gap| gap.first..=gap.last).collect();
            prop_assert_eq!(heights, expected);
        }
    }
}
