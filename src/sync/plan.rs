//! What the host makes of a strategy's wishes: which it carries out, and when it acts by itself. Pure: view and time are
//! arguments. Nothing here trusts the strategy; whatever it answers, sync is at worst slow.

use super::{Action, HeightRange, InFlight, Peer, PeerId, RequestId, View};
use crate::chain::{Height, Time};

/// A request for the lowest missing block is stuck when it is this many times as old as the watchdog's patience.
pub const STUCK_PATIENCES: u64 = 2;

/// Bytes of a report at most.
pub const REPORT_BYTES_MAX: usize = 200;

/// How old a request is before its range may be asked of a second peer, unless it holds the lowest missing block.
pub const HEDGE_AFTER_MS: u64 = 1_000;

/// Requests for the same block at most, the second one of another peer.
const COPIES_MAX: usize = 2;

/// The least time between two calls for which nothing but time is the reason: a strategy cannot make the node spin.
pub const WAIT_MIN_MS: u64 = 20;

/// The longest time between two calls.
pub const TICK_MS: u64 = 1_000;

/// Whether the follower carries out `action`, the `index`th of one answer, given what is under way. `protected` are the
/// requests that the host itself has made. Errors: why not, for the operator.
pub fn check(action: &Action, index: usize, view: &View, protected: &[RequestId]) -> Result<(), String> {
    check_place(index, view)?;
    match action {
        Action::FetchRange { peer, range } => check_fetch(find(view, *peer)?, *range, view),
        Action::Cancel(id) if protected.contains(id) => Err(format!("request {id} is the watchdog's")),
        Action::Cancel(id) if view.in_flight.iter().any(|request| request.id == *id) => Ok(()),
        Action::Cancel(id) => Err(format!("no request {id} is under way")),
        Action::FetchSnapshot { peer, height } => check_snapshot(find(view, *peer)?, *height, view),
        Action::Penalise { peer, points: 1..=100 } | Action::DropPeer(peer) => find(view, *peer).map(|_| ()),
        Action::Penalise { points, .. } => Err(format!("a penalty has 1 to 100 points, got {points}")),
        Action::WaitUntil(_) => Ok(()),
        Action::Report(text) if text.len() <= REPORT_BYTES_MAX => Ok(()),
        Action::Report(text) => Err(format!("a report has at most {REPORT_BYTES_MAX} bytes, got {}", text.len())),
    }
}

/// Whether the `index`th action of one answer is one too many.
pub fn check_place(index: usize, view: &View) -> Result<(), String> {
    if index >= view.limits.actions_max as usize {
        return Err(format!("action {index} of one answer, at most {} are carried out", view.limits.actions_max));
    }
    Ok(())
}

fn find(view: &View, peer: PeerId) -> Result<&Peer, String> {
    view.peers.iter().find(|known| known.id == peer).ok_or_else(|| format!("there is no peer {peer}"))
}

fn check_fetch(peer: &Peer, range: HeightRange, view: &View) -> Result<(), String> {
    let HeightRange { first, last } = range;
    let (limits, head) = (&view.limits, view.head.0);
    if first > last {
        return Err(format!("range {first}..={last} is empty"));
    }
    if first <= head {
        return Err(format!("block {first} is here already, the head is {head}"));
    }
    if range.count() > limits.range_blocks_max.into() {
        return Err(format!(
            "{} blocks in one request, at most {} are allowed",
            range.count(),
            limits.range_blocks_max
        ));
    }
    let window_end = head.saturating_add(limits.window_blocks);
    if last > window_end {
        return Err(format!("block {last} is beyond the window, which ends at {window_end}"));
    }
    match peer.head {
        Some((height, _)) if last <= height => {}
        Some((height, _)) => return Err(format!("peer {} has blocks up to {height}, not {last}", peer.id)),
        None => return Err(format!("peer {} has reported no head", peer.id)),
    }
    check_may_ask(peer, view)?;
    if view.in_flight.len() >= limits.in_flight_max as usize {
        return Err(format!("{} requests are under way, which is the most", view.in_flight.len()));
    }
    if peer.in_flight >= limits.in_flight_per_peer_max {
        return Err(format!("{} requests are under way to peer {}, which is the most", peer.in_flight, peer.id));
    }
    if let Some(here) = view.waiting.iter().find(|waiting| waiting.overlaps(&range)) {
        return Err(format!("blocks {}..={} are here already", here.first, here.last));
    }
    check_copies(peer.id, range, view)
}

fn check_may_ask(peer: &Peer, view: &View) -> Result<(), String> {
    if peer.not_before > view.now {
        return Err(format!("peer {} is left alone until {}", peer.id, peer.not_before));
    }
    if peer.score <= 0 {
        return Err(format!("peer {} has a score of {}", peer.id, peer.score));
    }
    Ok(())
}

/// A snapshot has to spare more than one request would bring.
fn check_snapshot(peer: &Peer, height: Height, view: &View) -> Result<(), String> {
    if peer.snapshot != Some(height) {
        return Err(format!("peer {} offers no snapshot of block {height}", peer.id));
    }
    let (head, fewest) = (view.head.0, u64::from(view.limits.range_blocks_max));
    if height <= head.saturating_add(fewest) {
        return Err(format!(
            "a snapshot of block {height} spares {} blocks, one request brings {fewest}",
            height.saturating_sub(head)
        ));
    }
    check_may_ask(peer, view)
}

/// A block may be asked for twice where waiting for the first answer would cost more: of another peer, where the first
/// request is old or holds up everything.
fn check_copies(peer: PeerId, range: HeightRange, view: &View) -> Result<(), String> {
    let others: Vec<_> = view.in_flight.iter().filter(|request| request.range.overlaps(&range)).collect();
    let lowest = lowest_missing(view);
    for other in &others {
        let old = view.now.ms_since(other.since) >= HEDGE_AFTER_MS;
        if other.peer == peer || others.len() >= COPIES_MAX || !(old || other.range.contains(lowest)) {
            let HeightRange { first, last } = other.range;
            return Err(format!("blocks {first}..={last} are asked for already, of peer {}", other.peer));
        }
    }
    Ok(())
}

/// The lowest height above the head that is not here; it may have been asked for.
pub fn lowest_missing(view: &View) -> Height {
    super::gaps(view.head.0 + 1, Height::MAX, view.waiting.clone()).first().map_or(Height::MAX, |gap| gap.first)
}

/// When to call a strategy that wants to wait until `until`, at `now`: neither at once nor for ever.
pub fn wake_at(until: Time, now: Time) -> Time {
    until.clamp(now.plus_ms(WAIT_MIN_MS), now.plus_ms(TICK_MS))
}

/// Sees to it that the lowest missing block is asked for within a bounded time, whoever plans and whatever limits say.
#[derive(Clone, Debug)]
pub struct Watchdog {
    patience_ms: u64,
    lowest: Height,
    /// Since when nothing that counts has happened for `lowest`.
    since: Time,
    turn: usize,
}

/// What the watchdog wants fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rescue {
    /// Of whom.
    pub peer: PeerId,
    /// What.
    pub range: HeightRange,
}

impl Watchdog {
    /// Acts when nothing asks for the lowest missing block for `patience_ms`.
    pub fn new(patience_ms: u64, now: Time) -> Self {
        Self { patience_ms, lowest: 0, since: now, turn: 0 }
    }

    /// A request for `range` ended by itself: with an answer, or a failure. One that was cancelled does not count, or a
    /// strategy could keep the watchdog quiet by asking and cancelling.
    pub fn ended(&mut self, range: HeightRange, now: Time) {
        if range.contains(self.lowest) {
            self.since = now;
        }
    }

    /// What the host has to ask for by itself now, if anything, and of whom: the best peers in turn, also those that
    /// want to be left alone.
    ///
    /// A request that is under way counts as asking until it is stuck; then a second peer is asked.
    pub fn look(&mut self, view: &View) -> Option<Rescue> {
        let lowest = lowest_missing(view);
        if lowest != self.lowest {
            (self.lowest, self.since) = (lowest, view.now);
        }
        let asking: Vec<&InFlight> = view.in_flight.iter().filter(|request| request.range.contains(lowest)).collect();
        let has = |peer: &&Peer| peer.head.is_some_and(|(height, _)| height >= lowest);
        let mut peers: Vec<&Peer> = view.peers.iter().filter(has).collect();
        if peers.is_empty() {
            self.since = view.now;
            return None;
        }
        peers.retain(|peer| asking.iter().all(|request| request.peer != peer.id));
        if peers.is_empty() || asking.len() >= COPIES_MAX || self.due(&asking) > view.now {
            return None;
        }
        peers.sort_by_key(|peer| (std::cmp::Reverse(peer.score), peer.failures, peer.id));
        let peer = peers[self.turn % peers.len()];
        self.turn = self.turn.wrapping_add(1);
        self.since = view.now;
        let head = peer.head.map_or(lowest, |(height, _)| height);
        // Up to what is here or asked for already; of what one stuck request holds, all that it is asked for.
        let mut taken = view.waiting.clone();
        taken.extend(view.in_flight.iter().filter(|request| !request.range.contains(lowest)).map(|r| r.range));
        let gap = super::gaps(lowest, head, taken).first().copied()?;
        let last = gap.last.min(lowest.saturating_add(u64::from(view.limits.range_blocks_max.max(1)) - 1));
        Some(Rescue { peer: peer.id, range: HeightRange { first: lowest, last } })
    }

    /// When to look again, at the latest.
    pub fn next_look(&self, view: &View) -> Time {
        let asking: Vec<_> = view.in_flight.iter().filter(|request| request.range.contains(self.lowest)).collect();
        self.due(&asking)
    }

    fn due(&self, asking: &[&InFlight]) -> Time {
        match asking.iter().map(|request| request.since).max() {
            None => self.since.plus_ms(self.patience_ms),
            Some(newest) => newest.plus_ms(STUCK_PATIENCES * self.patience_ms),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Limits;
    use super::*;
    use crate::chain::Hash;
    use proptest::prelude::*;

    pub fn peer(id: PeerId, height: Height) -> Peer {
        Peer {
            id,
            head: Some((height, Hash::ZERO)),
            latency_us: 0,
            throughput: 0,
            failures: 0,
            score: 100,
            in_flight: 0,
            not_before: Time(0),
            snapshot: None,
        }
    }

    pub fn range(first: Height, last: Height) -> HeightRange {
        HeightRange { first, last }
    }

    pub fn view(peers: Vec<Peer>) -> View {
        View {
            now: Time(10_000_000),
            head: (10, Hash::ZERO),
            best_height: peers.iter().filter_map(|peer| peer.head).map(|head| head.0).max().unwrap_or(0),
            limits: Limits {
                range_blocks_max: 100,
                in_flight_max: 4,
                in_flight_per_peer_max: 2,
                window_blocks: 1_000,
                actions_max: 8,
            },
            peers,
            in_flight: Vec::new(),
            waiting: Vec::new(),
        }
    }

    fn ask(view: &mut View, id: RequestId, peer: PeerId, range: HeightRange) {
        view.in_flight.push(InFlight { id, peer, range, since: view.now });
        if let Some(peer) = view.peers.iter_mut().find(|known| known.id == peer) {
            peer.in_flight += 1;
        }
    }

    fn fetch(peer: PeerId, first: Height, last: Height) -> Action {
        Action::FetchRange { peer, range: range(first, last) }
    }

    #[test]
    fn each_limit_is_kept_and_its_breach_refused_by_name() {
        let base = || view(vec![peer(0, 5_000), peer(1, 50)]);
        let cases: [(Action, &str); 16] = [
            (fetch(0, 11, 110), ""),
            (fetch(0, 11, 111), "101 blocks"),
            (fetch(0, 911, 1_010), ""),
            (fetch(0, 912, 1_011), "window"),
            (fetch(0, 10, 20), "here already"),
            (fetch(0, 21, 20), "empty"),
            (fetch(1, 11, 50), ""),
            (fetch(1, 11, 51), "up to 50"),
            (fetch(7, 11, 20), "no peer 7"),
            (fetch(0, 0, u64::MAX), "here already"),
            (fetch(0, 11, u64::MAX), "blocks in one request"),
            (Action::Cancel(3), "no request 3"),
            (Action::Penalise { peer: 0, points: 0 }, "1 to 100"),
            (Action::Penalise { peer: 0, points: 101 }, "1 to 100"),
            (Action::DropPeer(9), "no peer 9"),
            (Action::Report("x".repeat(201)), "200 bytes"),
        ];
        for (action, word) in cases {
            match check(&action, 0, &base(), &[]) {
                Ok(()) => assert_eq!(word, "", "{action:?}"),
                Err(reason) => assert!(!word.is_empty() && reason.contains(word), "{action:?}: {reason}"),
            }
        }
        assert!(check(&Action::Report("x".repeat(200)), 7, &base(), &[]).is_ok());
        assert!(check(&Action::Report("x".into()), 8, &base(), &[]).is_err());
        let snapshot = Action::FetchSnapshot { peer: 0, height: 3 };
        assert!(check(&snapshot, 0, &base(), &[]).unwrap_err().contains("no snapshot"));
        // The head is 10, and one request brings 100 blocks.
        for (offered, score, word) in
            [(111, 100, ""), (110, 100, "spares 100 blocks"), (9, 100, "spares 0"), (111, 0, "score")]
        {
            let offering = Peer { snapshot: Some(offered), score, ..peer(0, 5_000) };
            let snapshot = Action::FetchSnapshot { peer: 0, height: offered };
            let reason = check(&snapshot, 0, &view(vec![offering]), &[]).err().unwrap_or_default();
            assert!(reason.contains(word) && reason.is_empty() == word.is_empty(), "{offered}: {reason}");
        }
    }

    #[test]
    fn peers_that_want_to_be_left_alone_and_full_ones_are_not_asked() {
        let mut resting = view(vec![peer(0, 5_000)]);
        resting.peers[0].not_before = Time(resting.now.0 + 1);
        assert!(check(&fetch(0, 11, 20), 0, &resting, &[]).unwrap_err().contains("left alone"));
        let mut poor = view(vec![peer(0, 5_000)]);
        poor.peers[0].score = 0;
        assert!(check(&fetch(0, 11, 20), 0, &poor, &[]).unwrap_err().contains("score"));
        let mut full = view(vec![peer(0, 5_000)]);
        ask(&mut full, 1, 0, range(11, 20));
        assert!(check(&fetch(0, 21, 30), 0, &full, &[]).is_ok());
        ask(&mut full, 2, 0, range(21, 30));
        assert!(check(&fetch(0, 31, 40), 0, &full, &[]).unwrap_err().contains("to peer 0"));
    }

    #[test]
    fn a_block_is_asked_for_twice_only_where_it_holds_up_the_rest_or_is_late() {
        let mut view = view(vec![peer(0, 5_000), peer(1, 5_000), peer(2, 5_000)]);
        ask(&mut view, 1, 0, range(11, 20));
        ask(&mut view, 2, 0, range(31, 40));
        view.waiting.push(range(21, 30));
        assert!(check(&fetch(1, 25, 26), 0, &view, &[]).unwrap_err().contains("here already"));
        assert!(check(&fetch(1, 31, 40), 0, &view, &[]).unwrap_err().contains("asked for already"));
        assert!(check(&fetch(0, 11, 20), 0, &view, &[]).is_err(), "the same peer");
        assert!(check(&fetch(1, 11, 20), 0, &view, &[]).is_ok(), "the lowest one");
        ask(&mut view, 3, 1, range(11, 20));
        assert!(check(&fetch(2, 11, 20), 0, &view, &[]).is_err(), "a third copy");
        view.now = view.now.plus_ms(HEDGE_AFTER_MS);
        assert!(check(&fetch(1, 31, 40), 0, &view, &[]).is_ok(), "an old one");
    }

    #[test]
    fn requests_are_cancelled_but_not_the_hosts() {
        let mut view = view(vec![peer(0, 5_000)]);
        ask(&mut view, 1, 0, range(11, 20));
        assert!(check(&Action::Cancel(1), 0, &view, &[]).is_ok());
        assert!(check(&Action::Cancel(1), 0, &view, &[1]).unwrap_err().contains("watchdog"));
    }

    #[test]
    fn waiting_is_neither_for_ever_nor_not_at_all() {
        let now = Time(5_000_000);
        assert_eq!(wake_at(Time(0), now), now.plus_ms(WAIT_MIN_MS));
        assert_eq!(wake_at(Time::MAX, now), now.plus_ms(TICK_MS));
        assert_eq!(wake_at(now.plus_ms(300), now), now.plus_ms(300));
    }

    #[test]
    fn the_watchdog_asks_after_its_patience_the_best_in_turn_whatever_their_wishes() {
        let mut view = view(vec![peer(0, 5_000), peer(1, 5_000), peer(2, 10)]);
        view.peers[0].score = 50;
        view.peers[1].not_before = Time::MAX;
        let mut watchdog = Watchdog::new(3_000, view.now);
        assert_eq!(watchdog.look(&view), None);
        view.now = watchdog.next_look(&view);
        assert_eq!(watchdog.look(&view), Some(Rescue { peer: 1, range: range(11, 110) }));
        assert_eq!(watchdog.look(&view), None, "once");
        view.now = view.now.plus_ms(3_000);
        assert_eq!(watchdog.look(&view).unwrap().peer, 0, "the next one");
    }

    #[test]
    fn the_watchdog_is_not_fooled_by_requests_that_are_cancelled_or_stuck() {
        let mut view = view(vec![peer(0, 5_000), peer(1, 5_000)]);
        let start = view.now;
        let mut watchdog = Watchdog::new(3_000, start);
        watchdog.look(&view);
        for step in 1..30 {
            view.now = start.plus_ms(step * 100);
            ask(&mut view, step, 0, range(11, 20));
            assert_eq!(watchdog.look(&view), None);
            view.in_flight.clear();
        }
        view.now = start.plus_ms(3_000);
        assert!(watchdog.look(&view).is_some(), "asked and cancelled all the time");

        view.in_flight.clear();
        view.now = start;
        let mut watchdog = Watchdog::new(3_000, start);
        ask(&mut view, 1, 0, range(11, 20));
        assert_eq!(watchdog.look(&view), None);
        view.now = start.plus_ms(5_999);
        assert_eq!(watchdog.look(&view), None);
        view.now = start.plus_ms(6_000);
        assert_eq!(watchdog.look(&view), Some(Rescue { peer: 1, range: range(11, 110) }), "stuck, so another peer");
    }

    #[test]
    fn the_watchdog_asks_for_nothing_that_nobody_has_or_that_is_here() {
        let mut all_here = view(vec![peer(0, 10)]);
        let mut watchdog = Watchdog::new(100, all_here.now);
        all_here.now = all_here.now.plus_ms(60_000);
        assert_eq!(watchdog.look(&all_here), None);
        let mut some_here = view(vec![peer(0, 5_000)]);
        some_here.waiting = vec![range(11, 20), range(31, 40)];
        let mut watchdog = Watchdog::new(100, some_here.now);
        watchdog.look(&some_here);
        some_here.now = some_here.now.plus_ms(100);
        assert_eq!(watchdog.look(&some_here), Some(Rescue { peer: 0, range: range(21, 30) }));
    }

    pub fn any_view() -> impl Strategy<Value = View> {
        let peers = prop::collection::vec((any::<bool>(), 0..3_000_u64, -5..5_i32, 0..4_u64), 0..5);
        let requests = prop::collection::vec((0..6_u32, 1..400_u64, 0..60_u64, 0..3_u64), 0..6);
        let waiting = prop::collection::vec((1..50_u64, 0..50_u64), 0..6);
        (peers, requests, waiting).prop_map(|(peers, requests, waiting)| {
            let mut made = view(Vec::new());
            for (index, (known, height, score, rest)) in peers.into_iter().enumerate() {
                let mut peer = peer(index as PeerId, height);
                peer.head = peer.head.filter(|_| known);
                (peer.score, peer.not_before) = (score * 25, Time(rest * 5_000_000));
                made.peers.push(peer);
            }
            made.best_height = made.peers.iter().filter_map(|peer| peer.head).map(|head| head.0).max().unwrap_or(0);
            let mut next = made.head.0 + 1;
            for (gap, len) in waiting {
                made.waiting.push(range(next + gap, next + gap + len));
                next += gap + len + 1;
            }
            for (id, (peer, first, len, age)) in requests.into_iter().enumerate() {
                let asked = range(made.head.0 + first, made.head.0 + first + len);
                let since = Time(made.now.0 - age * 1_000_000);
                made.in_flight.push(InFlight { id: id as RequestId, peer, range: asked, since });
                if let Some(peer) = made.peers.iter_mut().find(|known| known.id == peer) {
                    peer.in_flight += 1;
                }
            }
            made
        })
    }

    proptest! {
        #[test]
        fn no_fetch_that_passes_breaks_a_limit(
            mut view in any_view(), wishes in prop::collection::vec((0..7_u32, 0..1_500_u64, 0..150_u64), 0..30),
        ) {
            for (id, (peer, first, len)) in wishes.into_iter().enumerate() {
                let wanted = range(first, first + len);
                let copies_before = view.in_flight.iter().filter(|request| request.range.overlaps(&wanted)).count();
                if check(&Action::FetchRange { peer, range: wanted }, 0, &view, &[]).is_ok() {
                    let limits = view.limits.clone();
                    prop_assert!(first > view.head.0 && wanted.count() <= u64::from(limits.range_blocks_max));
                    prop_assert!(view.in_flight.len() < limits.in_flight_max as usize);
                    prop_assert!(copies_before < COPIES_MAX);
                    prop_assert!(view.waiting.iter().all(|waiting| !waiting.overlaps(&wanted)));
                    let asked = view.peers.iter().find(|known| known.id == peer).unwrap();
                    prop_assert!(asked.in_flight < limits.in_flight_per_peer_max && asked.score > 0);
                    prop_assert!(asked.not_before <= view.now && asked.head.unwrap().0 >= wanted.last);
                    ask(&mut view, 1_000 + id as RequestId, peer, wanted);
                }
            }
        }

        #[test]
        fn the_watchdog_always_asks_somebody_who_has_the_lowest_missing_block(mut view in any_view()) {
            let mut watchdog = Watchdog::new(3_000, view.now);
            watchdog.look(&view);
            view.now = view.now.plus_ms(6_000);
            let lowest = lowest_missing(&view);
            let asking = view.in_flight.iter().filter(|request| request.range.contains(lowest)).count();
            let free = view.peers.iter().filter(|peer| {
                peer.head.is_some_and(|head| head.0 >= lowest)
                    && view.in_flight.iter().all(|r| r.peer != peer.id || !r.range.contains(lowest))
            }).count();
            match watchdog.look(&view) {
                Some(rescue) => {
                    prop_assert!(rescue.range.first == lowest && rescue.range.last >= lowest);
                    prop_assert!(rescue.range.count() <= u64::from(view.limits.range_blocks_max));
                    prop_assert!(view.waiting.iter().all(|waiting| !waiting.overlaps(&rescue.range)));
                }
                None => prop_assert!(free == 0 || asking >= COPIES_MAX),
            }
        }
    }
}
