//! Questions to peers and their answers, over the network: looks at heads, comparisons, ranges, chunks of a snapshot. What the engine is told
//! of them is what [`crate::sync::http`] would tell it, time-outs included.

use super::chain::{Body, CHAIN_ID};
use super::network::{Arrived, MessageId};
use super::simulation::{Happening, Simulation};
use super::snapshots::CHUNK_BYTES;
use super::sources::Sent;
use super::tally::End;
use crate::chain::{Hash, Height, Time};
use crate::sync::budget::Reservation;
use crate::sync::compare::Comparison;
use crate::sync::engine::{Fetched, Look, Wake};
use crate::sync::source::{SourceError, SourceInfo};
use crate::sync::{Diverged, HeightRange, PeerId, RequestId};

/// Bytes of a question.
const QUESTION_BYTES: u64 = 100;

/// An exchange, never twice the same number.
pub(super) type ExchangeId = u64;

/// A question under way, from its first byte to the last of its answer.
pub(super) struct Exchange {
    pub(super) peer: PeerId,
    pub(super) what: What,
    since: Time,
    /// Trips there and back until it is answered.
    trips_left: u32,
    /// Its question or answer on the network.
    message: Option<MessageId>,
    /// When something of it was last heard.
    heard_at: Time,
    /// What the peer is sending.
    answer: Option<Answer>,
}

pub(super) enum What {
    Look { introduce: bool },
    Compare { height: Height },
    Range { id: RequestId, range: HeightRange, room: Reservation },
    Chunk { index: u64 },
}

struct Answer {
    bytes: u64,
    content: Result<Content, SourceError>,
}

enum Content {
    Head((Height, Hash)),
    Range(Sent),
    /// Whether it is another one than it should be.
    Chunk(bool),
}

impl Simulation {
    pub(super) fn look(&mut self, peer: PeerId, introduce: bool) {
        self.tally.looked(peer);
        // Who it is and what its head is are two questions, asked at once.
        self.ask(peer, What::Look { introduce }, 1);
    }

    /// One question for each halving of the chain, as [`crate::sync::compare`] asks them.
    pub(super) fn compare(&mut self, peer: PeerId, height: Height, is_known: bool) {
        let halvings = height.min(self.local.1).max(1).ilog2() + 1;
        self.ask(peer, What::Compare { height }, if is_known { 1 } else { halvings });
    }

    pub(super) fn fetch(&mut self, id: RequestId, peer: PeerId, range: HeightRange, room: Reservation) {
        self.tally.asked(id, peer, range, self.now);
        self.ask(peer, What::Range { id, range, room }, 1);
    }

    pub(super) fn end_look(&mut self, peer: PeerId) {
        self.end_where(|exchange| {
            exchange.peer == peer && matches!(exchange.what, What::Look { .. } | What::Compare { .. })
        });
    }

    pub(super) fn abort(&mut self, wanted: RequestId) {
        self.end_where(|exchange| matches!(exchange.what, What::Range { id, .. } if id == wanted));
    }

    /// Ends exchanges without a word to the engine: it has ended them itself.
    pub(super) fn end_where(&mut self, is_meant: impl Fn(&Exchange) -> bool) {
        let meant: Vec<_> = self.exchanges.iter().filter(|(_, e)| is_meant(e)).map(|(&id, _)| id).collect();
        for id in meant {
            if let Some(Exchange { what: What::Range { id, .. }, .. }) = self.end(id) {
                self.tally.ended(id, End::GivenUp, self.now);
            }
        }
    }

    /// Takes an exchange off the network; what of its answer was here already was for nothing.
    fn end(&mut self, id: ExchangeId) -> Option<Exchange> {
        let exchange = self.exchanges.remove(&id)?;
        if let Some(message) = exchange.message {
            self.messages.remove(&message);
            let here = self.network.cancel(message);
            if exchange.answer.is_some() && matches!(exchange.what, What::Range { .. } | What::Chunk { .. }) {
                self.tally.received(exchange.peer, here);
            }
        }
        Some(exchange)
    }

    pub(super) fn ask(&mut self, peer: PeerId, what: What, trips: u32) {
        let id = self.next_exchange;
        self.next_exchange += 1;
        let (since, message, answer) = (self.now, None, None);
        let exchange = Exchange { peer, what, since, trips_left: trips, message, heard_at: since, answer };
        self.exchanges.insert(id, exchange);
        let patience_ms = self.scenario.sync.request_timeout_ms;
        self.agenda.note(self.now.plus_ms(patience_ms), Happening::Patience(id));
        self.question(id);
    }

    /// Sends the question of the next trip, or finds that nobody takes it.
    fn question(&mut self, id: ExchangeId) {
        let exchange = self.exchanges.get_mut(&id).expect("asked for one that is under way");
        let peer = &self.peers[&exchange.peer];
        exchange.heard_at = self.now;
        if peer.is_away {
            let refused = SourceError::Unreachable("connection refused".into());
            return self.agenda.note(self.now.plus_ms(1), Happening::Fails(id, refused));
        }
        if !self.network.reaches(self.us, peer.node) {
            let silence = SourceError::Unreachable("connection timed out".into());
            let at = self.now.plus_ms(self.scenario.sync.connect_timeout_ms);
            return self.agenda.note(at, Happening::Fails(id, silence));
        }
        let message = self.network.send(self.now, self.us, peer.node, QUESTION_BYTES);
        exchange.message = Some(message);
        self.messages.insert(message, id);
    }

    /// A message is where it was sent.
    pub(super) fn arrived(&mut self, arrived: Arrived) {
        let Some(id) = self.messages.remove(&arrived.id) else { return };
        let exchange = self.exchanges.get_mut(&id).expect("its messages end with it");
        exchange.message = None;
        if arrived.to == self.us {
            self.answered(id, arrived);
        } else {
            self.taken(id);
        }
    }

    /// The peer has a question, and begins to answer after a while, or never.
    fn taken(&mut self, id: ExchangeId) {
        let exchange = self.exchanges.get_mut(&id).expect("looked up by the caller");
        let peer = self.peers.get_mut(&exchange.peer).expect("peers stay in the book");
        let reply = match &exchange.what {
            What::Range { range, .. } => {
                let block_bytes = self.scenario.chain.block_bytes;
                let reply = peer.source.asked_for_range(&self.chains, block_bytes, *range, self.now);
                reply.map(|reply| (reply.after_us, reply.bytes, reply.content.map(Content::Range)))
            }
            What::Chunk { .. } => {
                let reply = peer.source.asked_for_chunk(CHUNK_BYTES, self.now);
                reply.map(|reply| (reply.after_us, reply.bytes, reply.content.map(Content::Chunk)))
            }
            What::Look { .. } | What::Compare { .. } => {
                let reply = peer.source.asked_for_head(&self.chains, self.now);
                reply.map(|reply| (reply.after_us, reply.bytes, reply.content.map(Content::Head)))
            }
        };
        if let Some((after_us, bytes, content)) = reply {
            exchange.answer = Some(Answer { bytes, content });
            self.agenda.note(Time(self.now.0 + after_us), Happening::Answers(id));
        }
    }

    /// The peer sends its answer; of a range as much as there is room for.
    pub(super) fn answers(&mut self, id: ExchangeId) {
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        let answer = exchange.answer.as_mut().expect("noted for one that answers");
        if let (What::Range { room, .. }, Ok(Content::Range(Sent { body: Some(body), .. }))) =
            (&mut exchange.what, &mut answer.content)
            && !room.grow(answer.bytes)
        {
            let block_bytes = self.scenario.chain.block_bytes;
            let fitting = room.bytes() / block_bytes;
            if fitting == 0 && !room.may_exceed() {
                let got = usize::try_from(room.bytes()).unwrap_or(usize::MAX);
                return self.failed(id, SourceError::NoRoom { got });
            }
            body.run.count = body.run.count.min(fitting.max(1));
            answer.bytes = body.run.count * block_bytes;
        }
        let message = self.network.send(self.now, self.peers[&exchange.peer].node, self.us, answer.bytes);
        exchange.message = Some(message);
        self.messages.insert(message, id);
    }

    /// An answer is here in whole.
    fn answered(&mut self, id: ExchangeId, arrived: Arrived) {
        let exchange = self.exchanges.get_mut(&id).expect("looked up by the caller");
        exchange.trips_left -= 1;
        let answer = exchange.answer.take().expect("it was sent");
        let again = exchange.trips_left > 0 && answer.content.is_ok();
        if again {
            return self.question(id);
        }
        let Exchange { peer, what, since, .. } = self.exchanges.remove(&id).expect("looked up above");
        let wake = match (what, answer.content) {
            (What::Look { introduce }, Ok(Content::Head(head))) => {
                Wake::Looked(peer, Ok(self.looked_at(peer, introduce, head)))
            }
            (What::Compare { height }, Ok(_)) => Wake::Compared(peer, Ok(self.comparison(peer, height))),
            (What::Range { id, mut room, .. }, Ok(Content::Range(Sent { body, head }))) => {
                self.tally.received(peer, answer.bytes);
                let bytes = if body.is_some() { answer.bytes } else { 0 };
                room.settle(bytes);
                self.tally.ended(id, if body.is_some() { End::Came } else { End::Failed }, self.now);
                let first_byte_us = arrived.first_at.0 - since.0;
                let duration_us = arrived.at.0 - since.0;
                let blocks = body.as_ref().map_or(0, |body| body.run.count);
                let body = body.unwrap_or_else(Body::nothing);
                Wake::Fetched(id, Ok(Fetched { body, blocks, room, head, first_byte_us, duration_us }))
            }
            (What::Chunk { index }, Ok(Content::Chunk(is_wrong))) => {
                self.tally.received(peer, answer.bytes);
                return self.chunk_came(peer, index, is_wrong);
            }
            (what, Err(error)) => return self.failure(peer, what, error),
            _ => unreachable!("a question is answered in kind"),
        };
        self.wake(wake);
    }

    fn looked_at(&self, peer: PeerId, introduce: bool, head: (Height, Hash)) -> Look {
        let genesis_hash = self.chains.hash(0, 0);
        let info = SourceInfo { chain_id: CHAIN_ID.into(), genesis_hash, node_id: "a peer".into() };
        let (branch, height) = self.local;
        let ours = (head.0 <= height).then(|| self.chains.hash(branch, head.0));
        let snapshot = self.peers[&peer].source.offers(&self.chains);
        Look { info: introduce.then_some(info), head: Some(head), ours, snapshot }
    }

    fn comparison(&self, peer: PeerId, height: Height) -> Comparison {
        let (branch, local) = self.local;
        let known = &self.peers[&peer];
        match self.chains.parting(branch, known.source.branch(), height.min(local)) {
            None => Comparison::Same,
            Some(height) => Comparison::Diverged(Diverged {
                height,
                ours: self.chains.hash(branch, height),
                theirs: self.chains.hash(known.source.branch(), height),
                peer: known.name.clone(),
            }),
        }
    }

    /// An exchange ends with an error.
    pub(super) fn failed(&mut self, id: ExchangeId, error: SourceError) {
        if let Some(Exchange { peer, what, .. }) = self.end(id) {
            self.failure(peer, what, error);
        }
    }

    fn failure(&mut self, peer: PeerId, what: What, error: SourceError) {
        let wake = match what {
            What::Look { .. } => Wake::Looked(peer, Err(error)),
            What::Compare { .. } => Wake::Compared(peer, Err(error)),
            What::Range { id, .. } => {
                let end = if matches!(error, SourceError::Limited { .. }) { End::Limited } else { End::Failed };
                self.tally.ended(id, end, self.now);
                Wake::Fetched(id, Err(error))
            }
            What::Chunk { index } => return self.chunk_failed(peer, index, error),
        };
        self.wake(wake);
    }

    /// A peer has gone: its connections break.
    pub(super) fn broke_off(&mut self, peer: PeerId) {
        let broken: Vec<_> = self.exchanges.iter().filter(|(_, e)| e.peer == peer).map(|(&id, _)| id).collect();
        for id in broken {
            self.failed(id, SourceError::Unreachable("connection reset".into()));
        }
    }

    /// Gives up where nothing came for too long, or too little.
    pub(super) fn patience(&mut self, id: ExchangeId) {
        let Some(exchange) = self.exchanges.get(&id) else { return };
        let config = &self.scenario.sync;
        let (timeout_ms, min) = (config.request_timeout_ms, config.throughput_min);
        let progress = exchange.message.and_then(|message| self.network.progress(message));
        let answering = exchange.answer.is_some();
        let heard_at = progress.map_or(exchange.heard_at, |progress| progress.at.max(exchange.heard_at));
        let deadline = heard_at.plus_ms(timeout_ms);
        if deadline <= self.now {
            return self.failed(id, SourceError::Timeout { ms: timeout_ms });
        }
        let elapsed_ms = self.now.ms_since(exchange.since).max(1);
        let rate = progress.map_or(0, |progress| progress.bytes.saturating_mul(1_000)) / elapsed_ms;
        if answering
            && matches!(exchange.what, What::Range { .. } | What::Chunk { .. })
            && elapsed_ms >= timeout_ms
            && rate < min
        {
            return self.failed(id, SourceError::Slow { rate, min });
        }
        let again = deadline.min(self.now.plus_ms(timeout_ms.div_ceil(4)));
        self.agenda.note(again, Happening::Patience(id));
    }
}
