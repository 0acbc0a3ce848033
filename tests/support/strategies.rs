//! Strategies that nobody should write, natively: what the host has to stand.

use tenon::chain::Time;
use tenon::simulate::{Native, Planner, Step};
use tenon::sync::{Action, Event, HeightRange, View};

type Answer = (Vec<Action>, Vec<u8>);

/// One of them.
#[derive(Clone, Copy)]
pub struct Hostile {
    pub name: &'static str,
    step: Step,
}

impl Hostile {
    /// A fresh one.
    pub fn planner(&self) -> Box<dyn Planner> {
        Box::new(Native::new(self.name, self.step))
    }
}

/// Each of them.
pub fn hostile() -> [Hostile; 7] {
    let one = |name, step| Hostile { name, step };
    [
        one("flood", flood),
        one("nothing", nothing),
        one("for-ever", for_ever),
        one("cancel-all", cancel_all),
        one("nonsense", nonsense),
        one("hate", hate),
        one("from-the-top", from_the_top),
    ]
}

/// A thousand requests, of which some may well pass.
fn flood(view: &View, _: &[Event], _: &[u8]) -> Answer {
    let everything = |peer| {
        (1..40).map(move |at| Action::FetchRange {
            peer,
            range: HeightRange { first: view.head.0 + at * 10, last: view.head.0 + at * 17 },
        })
    };
    let peers = view.peers.iter().map(|peer| peer.id).cycle();
    (peers.take(26).flat_map(everything).collect(), Vec::new())
}

fn nothing(_: &View, _: &[Event], _: &[u8]) -> Answer {
    (Vec::new(), Vec::new())
}

fn for_ever(_: &View, _: &[Event], _: &[u8]) -> Answer {
    (vec![Action::WaitUntil(Time::MAX)], Vec::new())
}

/// Gives up whatever is under way, each time that it is asked.
fn cancel_all(view: &View, _: &[Event], _: &[u8]) -> Answer {
    (view.in_flight.iter().map(|request| Action::Cancel(request.id)).collect(), Vec::new())
}

/// What makes no sense, in every way.
fn nonsense(view: &View, _: &[Event], _: &[u8]) -> Answer {
    let (head, peer) = (view.head.0, view.peers.first().map_or(9, |peer| peer.id));
    let fetch = |peer, first, last| Action::FetchRange { peer, range: HeightRange { first, last } };
    let actions = vec![
        fetch(u32::MAX, head + 1, head + 2),
        fetch(peer, 0, u64::MAX),
        fetch(peer, head + 2, head + 1),
        fetch(peer, head, head),
        fetch(peer, u64::MAX, u64::MAX),
        Action::Cancel(u64::MAX),
        Action::FetchSnapshot { peer, height: head },
        Action::Penalise { peer, points: 0 },
        Action::DropPeer(u32::MAX),
        Action::WaitUntil(Time(0)),
        Action::Report("nonsense ".repeat(1_000)),
    ];
    (actions, Vec::new())
}

/// Takes all points of every peer, and leaves it alone.
fn hate(view: &View, _: &[Event], _: &[u8]) -> Answer {
    let both = |peer: u32| [Action::Penalise { peer, points: 100 }, Action::DropPeer(peer)];
    (view.peers.iter().flat_map(|peer| both(peer.id)).collect(), Vec::new())
}

/// The highest blocks of the window first, a few at a time: what fills the buffers and serves nobody.
fn from_the_top(view: &View, _: &[Event], _: &[u8]) -> Answer {
    let top = view.best_height.min(view.head.0 + view.limits.window_blocks);
    let pieces = view.gaps(top).into_iter().rev().flat_map(|gap| {
        let lasts = (0..gap.count()).step_by(20).map(move |below| gap.last - below);
        lasts.map(move |last| HeightRange { first: gap.first.max(last.saturating_sub(19)), last })
    });
    let peers = view.peers.iter().map(|peer| peer.id).cycle();
    (pieces.zip(peers).take(16).map(|(range, peer)| Action::FetchRange { peer, range }).collect(), Vec::new())
}
