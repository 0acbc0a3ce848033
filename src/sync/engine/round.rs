//! A round with the strategy: what it is told, and what of its wishes is carried out. The watchdog, who asks where the
//! strategy does not.

use std::sync::Arc;

use super::ranges::{RANGE_BYTES, ROOM_MIN};
use super::report::merged;
use super::{Asked, Blocks, Command, Engine};
use crate::sync::{Action, Event, HeightRange, InFlight, Limits, RequestId, View, plan};

/// Actions in one answer of a strategy.
const ACTIONS_MAX: u32 = 64;

impl<B: Blocks> Engine<B> {
    /// Another strategy serves.
    pub(super) fn serves(&mut self, generation: u64) {
        let before = self.generation.replace(generation);
        let first = if before.is_none() { Event::Started } else { Event::TakenOver };
        let told = matches!(self.events.first(), Some(Event::Started | Event::TakenOver));
        if before != Some(generation) && !told {
            self.events.insert(0, first);
        }
    }

    /// Asks the strategy where there is a reason to. Without peers there is only one: that they are gone.
    pub(super) fn ask(&mut self) {
        let can_wait = |event: &Event| match event {
            Event::HeadAnnounced(_) | Event::SnapshotOffered { .. } | Event::SnapshotFailed { .. } => true,
            Event::Started | Event::TakenOver => self.peers.is_empty(),
            _ => false,
        };
        let due = !self.peers.is_empty() && self.now >= self.next_call;
        if self.asked.is_some() || !(due || self.events.iter().any(|event| !can_wait(event))) {
            return;
        }
        if self.events.is_empty() {
            self.events.push(Event::Tick);
        }
        (self.asked_at, self.next_call) = (self.now, self.now.plus_ms(plan::TICK_MS));
        let view = Arc::new(self.view());
        self.asked = Some(Asked { view: Arc::clone(&view), current: true });
        self.commands.push(Command::Ask { view, events: std::mem::take(&mut self.events) });
    }

    /// Carries out what the strategy wants, where that is allowed, and lets the watchdog look at what it left out.
    pub(super) fn planned(&mut self, actions: Vec<Action>) {
        let Some(Asked { view: seen, current, .. }) = self.asked.take() else { return };
        let seen = Arc::unwrap_or_clone(seen);
        let (mut view, mut seen) = if current { (seen, None) } else { (self.view(), Some(seen)) };
        let rescues: Vec<_> = self.requests.iter().filter(|(_, r)| r.rescue).map(|(&id, _)| id).collect();
        for (index, action) in actions.into_iter().enumerate() {
            let checked =
                plan::check_place(index, &view).and_then(|()| self.admits(&action)).map_err(|reason| (reason, true));
            let checked =
                checked.and_then(|()| plan::check(&action, index, &view, &rescues).map_err(|reason| (reason, false)));
            let Err((reason, is_ours)) = checked else {
                self.act(&action, &mut view, seen.as_mut());
                continue;
            };
            if let Action::FetchSnapshot { peer, height } = action {
                self.refused_snapshot(peer, height);
            }
            // What the view did not show may have changed as well.
            let may_excuse = !is_ours || seen.as_ref().is_some_and(|seen| seen.head != view.head);
            if may_excuse && seen.as_ref().is_some_and(|seen| plan::check(&action, index, seen, &rescues).is_ok()) {
                // It was allowed when the strategy was asked: not its fault, and it may want something else now.
                self.next_call = self.next_call.min(self.now.plus_ms(plan::WAIT_MIN_MS));
                continue;
            }
            self.counters.refused += 1;
            self.commands.push(Command::Refused { action, reason });
        }
        self.watch();
    }

    /// Carries out an action that was checked; keeps the view true for the next one, and what the strategy saw as well.
    fn act(&mut self, action: &Action, view: &mut View, seen: Option<&mut View>) {
        let views = std::iter::once(view).chain(seen);
        match action {
            Action::FetchRange { peer, range } => {
                // Where the room went to answers that grew meanwhile, the next call has smaller limits.
                let Some(id) = self.fetch(*peer, *range, false) else { return };
                for view in views {
                    view.in_flight.push(InFlight { id, peer: *peer, range: *range, since: self.now });
                    if let Some(peer) = view.peers.iter_mut().find(|known| known.id == *peer) {
                        peer.in_flight += 1;
                    }
                }
            }
            Action::Cancel(id) => {
                let Some(request) = self.cancel(*id) else { return };
                for view in views {
                    view.in_flight.retain(|known| known.id != *id);
                    if let Some(peer) = view.peers.iter_mut().find(|known| known.id == request.peer) {
                        peer.in_flight = peer.in_flight.saturating_sub(1);
                    }
                }
            }
            Action::FetchSnapshot { peer, .. } => {
                self.fetch_snapshot(*peer);
                for view in views {
                    view.in_flight.clear();
                    view.peers.iter_mut().for_each(|peer| peer.in_flight = 0);
                    // Nothing else happens until it ends.
                    view.limits.in_flight_max = 0;
                }
            }
            Action::Penalise { peer, points } => self.peers.penalise(*peer, *points, self.now),
            Action::DropPeer(peer) => self.peers.leave_alone(*peer, self.now),
            Action::WaitUntil(until) => self.next_call = self.next_call.min(plan::wake_at(*until, self.now)),
            Action::Report(text) => self.counters.report = Some(text.clone()),
        }
    }

    /// Lets the watchdog look, unless the strategy is about to say what it wants.
    pub(super) fn watch(&mut self) {
        if self.is_halted() || self.snapshots.is_under_way() {
            return;
        }
        if self.asked.is_some() && self.now < self.asked_at.plus_ms(self.config.watchdog_ms) {
            return;
        }
        let Some(rescue) = self.watchdog.look(&self.view()) else { return };
        self.counters.rescues += 1;
        let HeightRange { first, last } = rescue.range;
        tracing::debug!(peer = rescue.peer, first, last, "nothing asks for the lowest missing block; the host does");
        // Where there is no room, what waits gives some back soon.
        let _: Option<RequestId> = self.fetch(rescue.peer, rescue.range, true);
    }

    /// All that there is to know, for strategy and watchdog.
    pub(super) fn view(&self) -> View {
        let head = self.head.height;
        let above = |range: HeightRange| HeightRange { first: range.first.max(head + 1), last: range.last };
        let mut peers = self.peers.view(self.in_flight());
        if !self.shows_snapshots() {
            peers.iter_mut().for_each(|peer| peer.snapshot = None);
        }
        let waiting = self.here().into_iter().map(above).filter(|range| range.count() > 0).collect();
        View {
            now: self.now,
            head: (head, self.head.hash),
            best_height: self.peers.best().map_or(head, |best| best.0),
            limits: self.limits(),
            peers,
            in_flight: self
                .requests
                .iter()
                .map(|(&id, request)| InFlight { id, peer: request.peer, range: request.range, since: request.since })
                .collect(),
            waiting: merged(waiting),
        }
    }

    /// The ranges that came and are not stored yet.
    pub(super) fn here(&self) -> Vec<HeightRange> {
        let mut here: Vec<_> = self.importing.iter().copied().collect();
        here.extend(self.verifying.values().map(|verifying| verifying.range));
        here.extend(self.order.ranges());
        here
    }

    /// What is allowed now. The budget of bytes shows in it, so a strategy that keeps to the limits keeps to the budget.
    fn limits(&self) -> Limits {
        let (block_bytes, fitting) = (self.block_bytes(), self.range_blocks_max());
        let room = self.budget.free() / block_bytes.saturating_mul(fitting).max(ROOM_MIN);
        let under_way = self.requests.len() as u64;
        // One request for the lowest missing block is always possible.
        let stuck = under_way == 0 && self.importing.is_empty() && self.verifying.is_empty() && !self.order.is_ready();
        let more = match room {
            _ if self.is_halted() || self.snapshots.is_under_way() => 0,
            0 if stuck => 1,
            room => room,
        };
        let in_flight_max = (under_way + more).min(self.config.in_flight_max.into());
        Limits {
            range_blocks_max: u32::try_from(fitting).unwrap_or(u32::MAX),
            in_flight_max: u32::try_from(in_flight_max).unwrap_or(u32::MAX),
            in_flight_per_peer_max: self.config.in_flight_per_peer_max,
            window_blocks: self.config.window_blocks,
            actions_max: ACTIONS_MAX,
        }
    }

    /// How many blocks make a good range.
    pub(super) fn range_blocks_max(&self) -> u64 {
        (RANGE_BYTES / self.block_bytes()).clamp(1, self.config.range_blocks_max.into())
    }
}
