//! A peer as a source of blocks: what [`crate::sync`] asks of it, over libp2p.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use libp2p::PeerId;
use tokio::sync::oneshot;

use super::codec::{Answered, Call, Room};
use super::handle::{Command, Commands};
use super::recent::{Recent, Way};
use super::wire::{Answer, Request};
use crate::chain::Time;
use crate::mempool::Pending;
use crate::sync::HeightRange;
use crate::sync::budget::Reservation;
use crate::sync::source::{RangeAnswer, Source, SourceError, SourceHead, SourceInfo};

/// How long a transaction that was pushed is left to gossip, before it is handed to each peer directly.
const GOSSIP_TIME: Duration = Duration::from_secs(10);

/// How long a peer may ask to be left alone at most.
const RETRY_AFTER_MAX_MS: u64 = 60_000;

/// A connected peer.
pub struct P2pSource {
    peer: PeerId,
    name: String,
    commands: Commands,
    transactions: Arc<Recent>,
    publishing_since: Time,
}

impl P2pSource {
    /// The peer with this id, known as `p2p:ID`. `transactions` are those that went over gossip lately; what this node
    /// received at `publishing_since` or later it publishes itself.
    pub(super) fn new(peer: PeerId, commands: Commands, transactions: Arc<Recent>, publishing_since: Time) -> Self {
        Self { peer, name: format!("p2p:{peer}"), commands, transactions, publishing_since }
    }

    /// Which peer it is.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    async fn ask(&self, request: Request, room: Option<Room>) -> Result<Answered, SourceError> {
        let (answer, answered) = oneshot::channel();
        self.commands.tell(Command::Ask { peer: self.peer, call: Call { request, room }, answer }).await?;
        let answered = answered.await.map_err(|_| SourceError::Unreachable("this node is stopping".into()))??;
        match answered.answer {
            Answer::Limited { retry_after_ms } => {
                Err(SourceError::Limited { retry_after_ms: u64::from(retry_after_ms).min(RETRY_AFTER_MAX_MS) })
            }
            Answer::Refused { status, reason } => {
                let detail = reason.chars().filter(|character| !character.is_control()).collect();
                Err(SourceError::Status { status, detail })
            }
            Answer::Head(_) | Answer::Blocks { .. } | Answer::Submitted(_) => Ok(answered),
        }
    }

    async fn fetch(&self, range: HeightRange, reservation: Reservation) -> Result<RangeAnswer, SourceError> {
        // Gone with this future: then the answer is not read to its end.
        let wanted = Arc::new(());
        let room = Room { reservation, wanted: Arc::downgrade(&wanted) };
        let answered = self.ask(Request::Range(range), Some(room)).await?;
        drop(wanted);
        let Answer::Blocks { head, .. } = answered.answer else { return Err(unexpected()) };
        let blocks = answered.blocks.ok_or_else(unexpected)?;
        let room = blocks.reservation.ok_or_else(unexpected)?;
        let (body, first_byte) = (blocks.body, blocks.first_byte);
        Ok(RangeAnswer { body, blocks: blocks.count, room, head: Some(head), first_byte })
    }
}

fn unexpected() -> SourceError {
    SourceError::Malformed("an answer of another kind than the request".into())
}

impl Source for P2pSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn info(&self) -> BoxFuture<'_, Result<SourceInfo, SourceError>> {
        async {
            let (answer, answered) = oneshot::channel();
            self.commands.tell(Command::Greet { peer: self.peer, answer }).await?;
            let hello = answered.await.map_err(|_| SourceError::Unreachable("this node is stopping".into()))??;
            Ok(SourceInfo { chain_id: hello.chain_id, genesis_hash: hello.genesis_hash, node_id: hello.node_id })
        }
        .boxed()
    }

    /// Snapshots are downloaded over HTTP alone, so that none is offered here.
    fn head(&self) -> BoxFuture<'_, Result<SourceHead, SourceError>> {
        async {
            match self.ask(Request::Head, None).await?.answer {
                Answer::Head(head) => Ok(SourceHead { head: Some(head), snapshot: None }),
                _ => Err(unexpected()),
            }
        }
        .boxed()
    }

    fn range(&self, range: HeightRange, room: Reservation) -> BoxFuture<'_, Result<RangeAnswer, SourceError>> {
        self.fetch(range, room).boxed()
    }

    fn submit<'a>(&'a self, _: &'a str, pending: &'a Pending) -> BoxFuture<'a, Result<(), SourceError>> {
        async move {
            let way = self.transactions.get(&pending.hash, Instant::now());
            if is_left_to_gossip(way, pending.received, self.publishing_since, Time::now()) {
                return Ok(());
            }
            match self.ask(Request::Submit(pending.transaction.to_bytes()), None).await?.answer {
                Answer::Submitted(_) => Ok(()),
                _ => Err(unexpected()),
            }
        }
        .boxed()
    }
}

/// Whether gossip brings a transaction to everybody: what came over it is its sender's to care for, and what this node
/// publishes is handed over directly only when it still waits after a while. It may be seen here before it is published.
fn is_left_to_gossip(way: Option<(Way, Duration)>, received: Time, publishing_since: Time, now: Time) -> bool {
    match way {
        Some((Way::In, _)) => true,
        Some((Way::Out, age)) => age < GOSSIP_TIME,
        None => received >= publishing_since && u128::from(now.ms_since(received)) < GOSSIP_TIME.as_millis(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gossip_has_its_time_and_what_it_does_not_bring_is_handed_over() {
        let at = |ms: u64| Time(0).plus_ms(ms);
        let (since, time) = (at(100_000), GOSSIP_TIME);
        let late = time.as_millis() as u64;
        let left = |way, received: u64, now: u64| is_left_to_gossip(way, at(received), since, at(now));
        assert!(left(Some((Way::In, time * 9)), 100_000, 900_000), "its sender cares for it");
        assert!(left(Some((Way::Out, time / 2)), 100_000, 105_000));
        assert!(!left(Some((Way::Out, time)), 100_000, 110_000), "it waits still");
        // Those who hand over look before those who publish have taken note.
        assert!(left(None, 100_000, 100_000) && left(None, 200_000, 200_000 + late - 1));
        assert!(!left(None, 200_000, 200_000 + late), "it was missed, or is forgotten");
        assert!(!left(None, 99_999, 100_000), "it waits since before the start: nobody publishes it");
    }
}
