//! `/rpc/events` (server-sent events), `/rpc/ws/blocks` and `/rpc/ws/transactions` (WebSocket): what happens, as it
//! happens. The [`feed`] posts into the hub; here a listener's place in it becomes a stream.
//!
//! An event's `id` is a [`Position`]. Who comes back with the last one (`Last-Event-ID`, or `after=`) goes on behind
//! it, also after a restart: blocks, and what they hold, are then read from the database. Three events are about the
//! stream itself: `start` comes first; `reset` says of which types something may be missing, and with which block the
//! stream goes on; `lost` says which blocks were left out, since they came faster than they were taken.

pub(super) mod feed;
mod socket;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;

use super::Rpc;
use super::error::{ApiError, Result};
use super::request::Params;
use super::server::Stop;
use crate::chain::Height;
use crate::events::{Event, Found, Gap, Gone, Kind, Kinds, Listener, Mark, Position, Resumption};
use crate::storage::StorageError;
use feed::{Told, page};

pub(super) use socket::{blocks, transactions};

/// Blocks that are told from the database to one who comes back; who was away for longer reads ranges.
const REPLAY_BLOCKS_MAX: u64 = 1_000;
/// How often a silent stream says that it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// An event as it goes out.
pub(super) struct Line {
    name: &'static str,
    /// None where whoever leaves after it has to be told again: in the middle of a block.
    id: Option<Position>,
    data: Data,
}

enum Data {
    /// One of the hub's.
    Shared(Arc<Event>),
    Own(String),
}

impl Line {
    fn of(event: Arc<Event>, id: Position) -> Self {
        Self { name: event.kind.name(), id: Some(id), data: Data::Shared(event) }
    }

    fn own(name: &'static str, id: Option<Position>, data: &impl Serialize) -> Self {
        Self { name, id, data: Data::Own(serde_json::to_string(data).expect("plain data")) }
    }

    fn data(&self) -> &str {
        match &self.data {
            Data::Shared(event) => &event.data,
            Data::Own(data) => data,
        }
    }
}

/// The stream of one listener.
pub(super) struct Stream {
    rpc: Rpc,
    listener: Listener,
    stop: Stop,
    lines: VecDeque<Line>,
    /// What is still to be told from the database: the block told last, and the last one to tell.
    replay: Option<(Mark, Height)>,
}

#[derive(Serialize)]
struct StartJson<'a> {
    types: Vec<&'static str>,
    node_id: &'a str,
    chain_id: &'a str,
    /// The last block that counts as told.
    height: Height,
}

#[derive(Serialize)]
struct ResetJson {
    reason: Why,
    /// Of these something may be missing.
    types: Vec<&'static str>,
    /// The next block that is told.
    next_height: Height,
}

/// Why something may be missing.
#[derive(Clone, Copy, Serialize)]
#[serde(untagged)]
enum Why {
    Hub(Gap),
    Chain(ChainGap),
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
enum ChainGap {
    /// The block is not on the chain: it was reorganised meanwhile.
    Reorg,
    /// Too many blocks were added meanwhile.
    TooFar,
}

#[derive(Serialize)]
struct LostJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_height: Option<Height>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_height: Option<Height>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resume: Option<String>,
}

/// The text of `lost`: how many events, which blocks (lowest and highest), and the id to come back with to have the
/// blocks told after all.
fn lost(events: Option<u64>, blocks: Option<(Height, Height)>, resume: Option<Position>) -> String {
    let blocks = blocks.filter(|(first, last)| first <= last);
    let lost = LostJson {
        events,
        first_height: blocks.map(|(first, _)| first),
        last_height: blocks.map(|(_, last)| last),
        resume: resume.map(|position| position.to_string()),
    };
    serde_json::to_string(&lost).expect("plain data")
}

fn names(kinds: Kinds) -> Vec<&'static str> {
    kinds.iter().map(Kind::name).collect()
}

impl Stream {
    /// Begins to listen. Errors: too many do, or the database fails.
    async fn open(rpc: Rpc, kinds: Kinds, after: Option<Position>) -> Result<Self> {
        let listening = rpc.parts.events.listen(kinds, after);
        let (listener, resumption) = listening.map_err(|_| {
            ApiError::unavailable("events-full", "as many listen to events as may; rpc.event_streams_max says how many")
        })?;
        let stop = rpc.stop.clone();
        let mut stream = Self { rpc, listener, stop, lines: VecDeque::new(), replay: None };
        let start = after.unwrap_or(stream.listener.position());
        let json = StartJson {
            types: names(stream.listener.kinds()),
            node_id: &stream.rpc.parts.info.node_id,
            chain_id: stream.rpc.chain_id(),
            height: start.mark.height,
        };
        stream.lines.push_back(Line::own("start", Some(start), &json));
        stream.resume(resumption, start).await?;
        Ok(stream)
    }

    /// Puts in line what has to be told to one who comes back.
    async fn resume(&mut self, resumption: Resumption, start: Position) -> Result<(), StorageError> {
        let Resumption { gap, mut events, mut blocks } = resumption;
        let mut gap = gap.map(|(kinds, gap)| (kinds, Why::Hub(gap)));
        if let Some((mark, last)) = blocks {
            let storage = self.rpc.parts.ledger.storage();
            let hash = storage.read_brief(move |reader| reader.hash_at(mark.height)).await?;
            let wrong = match hash {
                Some(hash) if Mark::new(mark.height, &hash) != mark => Some(ChainGap::Reorg),
                None => Some(ChainGap::Reorg),
                Some(_) if last.saturating_sub(mark.height) > REPLAY_BLOCKS_MAX => Some(ChainGap::TooFar),
                Some(_) => None,
            };
            if let Some(wrong) = wrong {
                let lacking = gap.map_or(Kinds::NONE, |(kinds, _)| kinds).or(self.listener.kinds().and(Kinds::CHAIN));
                gap = Some((lacking, Why::Chain(wrong)));
                blocks = None;
                // They lead to where the stream goes on, and would seem to lead away from it.
                events.retain(|event| event.kind != Kind::Reorg);
            }
        }
        let position = self.listener.position();
        if let Some((kinds, reason)) = gap {
            let next = blocks.map_or(position.mark, |(mark, _)| mark).height + 1;
            let json = ResetJson { reason, types: names(kinds), next_height: next };
            // Whoever leaves here has not had what follows.
            let id = if blocks.is_none() && events.is_empty() { Some(position) } else { None };
            self.lines.push_back(Line::own("reset", id, &json));
        }
        // The blocks since have not been told yet, and some before have to be told again after a reorganisation.
        let mut mark = start.mark;
        for event in events {
            if event.kind == Kind::Reorg && event.position.mark.height < mark.height {
                mark = event.position.mark;
            }
            let id = Position { number: event.position.number, mark };
            self.lines.push_back(Line::of(event, id));
        }
        self.replay = blocks;
        Ok(())
    }

    /// The next event; none once the node stops.
    async fn next(&mut self) -> Option<Line> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if let Some((mark, last)) = self.replay {
                self.replay = self.read(mark, last).await;
                continue;
            }
            let found = tokio::select! {
                biased;
                () = self.stop.stopped() => return None,
                found = self.listener.next() => found?,
            };
            match found {
                Found::Events(events) => {
                    self.lines.extend(events.into_iter().map(|event| {
                        let id = event.position;
                        Line::of(event, id)
                    }));
                }
                Found::Gone(Gone { events, from, to, known }) => {
                    let blocks = Some((known + 1, to.mark.height));
                    let data = Data::Own(lost(Some(events), blocks, Some(from)));
                    self.lines.push_back(Line { name: "lost", id: Some(to), data });
                }
            }
        }
    }

    /// Puts a page of the database in line. Answers what is left to be read.
    async fn read(&mut self, mark: Mark, last: Height) -> Option<(Mark, Height)> {
        if mark.height >= last {
            return None;
        }
        let (kinds, position) = (self.listener.kinds(), self.listener.position());
        let storage = self.rpc.parts.ledger.storage();
        let read = storage.read_async(move |reader| page(reader, mark, last, kinds)).await;
        let told = match read {
            Ok(Some(told)) => told,
            // Reorganised while it was read: what follows in the hub says so.
            Ok(None) => Vec::new(),
            Err(error) => {
                tracing::error!(%error, "blocks could not be read for one who listens");
                Vec::new()
            }
        };
        let Some(reached) = told.last().map(|told| told.mark) else {
            let data = Data::Own(lost(None, Some((mark.height + 1, last)), None));
            self.lines.push_back(Line { name: "lost", id: Some(position), data });
            return None;
        };
        for Told { mark, events } in told {
            let end = events.len() - 1;
            for (at, (kind, data)) in events.into_iter().enumerate().filter(|(_, (kind, _))| kinds.has(*kind)) {
                let id = (at == end).then_some(Position { number: position.number, mark });
                self.lines.push_back(Line { name: kind.name(), id, data: Data::Own(data) });
            }
        }
        Some((reached, last))
    }
}

/// `GET /rpc/events?types=&after=`.
pub(super) async fn events(State(rpc): State<Rpc>, headers: HeaderMap, params: Params) -> Result<Response> {
    let params = params.only(&["types", "after"], rpc.chain_id())?;
    let kinds = params.optional("types")?.unwrap_or(Kinds::ALL);
    // A browser that comes back sends the header, and the address that it began with.
    let after = match headers.get(&LAST_EVENT_ID).map(HeaderValue::to_str) {
        Some(Ok(text)) if !text.is_empty() => {
            Some(text.parse().map_err(|reason| ApiError::field("Last-Event-ID", reason))?)
        }
        Some(Err(_)) => return Err(ApiError::field("Last-Event-ID", "is no text")),
        _ => params.optional("after")?,
    };
    let stream = Stream::open(rpc, kinds, after).await?;
    let lines = stream::unfold(stream, async |mut stream| {
        let line = stream.next().await?;
        let mut event = SseEvent::default().event(line.name).data(line.data());
        if let Some(id) = line.id {
            event = event.id(id.to_string());
        }
        Some((Ok::<_, Infallible>(event), stream))
    });
    let mut response = Sse::new(lines).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // Proxies that collect answers would keep events back.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}
