//! A source that serves a chain over real HTTP, and lies, stalls or breaks as a test wants. The routes that sync uses and
//! no others; the blocks are in memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tenon::chain::{Block, Genesis, Hash};
use tenon::snapshot::Snapshot;
use tenon::snapshot::source::Offer;
use tenon::sync::http::{BLOCKS_MEDIA_TYPE, HEAD_HEADER, SNAPSHOT_HEADER, write_offer};
use tenon::sync::source::FRAME_BYTES_MAX;
use tokio::sync::watch;

/// How a source answers a request for a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// As it should.
    None,
    /// Frames of bytes that are no blocks.
    Garbage,
    /// The last block's signature is wrong.
    BadSignature,
    /// One height too high.
    WrongHeights,
    /// The connection breaks in the middle of a block.
    Truncated,
    /// A frame that says it has 4 GiB.
    Oversized,
    /// More blocks than were asked for.
    TooMany,
    /// Nothing, although it has them.
    Empty,
    /// No answer at all.
    Silent,
    /// A byte, and then nothing.
    Stalls,
    /// 429 with this `Retry-After`.
    Limited(u32),
    /// This status, and on every other route too.
    Refuses(u16),
    /// 500.
    Broken,
    /// Its own idea of what a range looks like.
    OtherType,
    /// No answer at all, on any route.
    Mute,
    /// As it should, a byte now and then.
    Dribbles,
    /// A block in the middle is left out.
    Gap,
    /// Two blocks have changed places.
    Shuffled,
    /// A block comes twice, in place of the next one.
    Duplicate,
    /// The last block has the header of one and the transactions of none.
    Bodyless,
    /// Bytes without any form.
    Noise,
    /// One block that never ends.
    Huge,
    /// The last block again and again.
    Endless,
    /// Half of it, and then nothing.
    StallsMidway,
    /// Half of it, and then the connection breaks.
    BreaksMidway,
    /// A head that is lower at every look.
    Shrinks,
}

/// What a source does to the chunks of its snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunks {
    /// Nothing.
    Right,
    /// Another byte in each.
    Wrong,
    /// It has none, though it says so.
    Gone,
}

/// A node as sync sees it.
pub struct TestSource {
    shared: Arc<Shared>,
    url: String,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    info: Mutex<Info>,
    chain: Mutex<Vec<(Hash, Bytes)>>,
    claimed: Mutex<Option<(u64, Hash)>>,
    fault: Mutex<Fault>,
    requests: watch::Sender<u64>,
    served: AtomicU64,
    sent: AtomicU64,
    looks: AtomicU64,
    pace: Mutex<Option<Pace>>,
    snapshot: Mutex<Option<(Snapshot, Chunks)>>,
    chunks: AtomicU64,
    submitted: watch::Sender<Vec<String>>,
}

/// How fast a source sends: all its answers share one line.
struct Pace {
    bytes_per_second: u64,
    /// From a request to the first byte of its answer, on any route.
    latency: Duration,
    /// When the line has sent all it was given.
    free_at: Instant,
}

#[derive(Clone, serde::Serialize)]
struct Info {
    chain_id: String,
    genesis_hash: Hash,
    node_id: String,
}

#[derive(serde::Deserialize)]
struct Range {
    start: u64,
    end: u64,
}

impl TestSource {
    /// Serves the chain of `genesis` with `blocks` on a free port of the loopback.
    pub async fn start(genesis: &Genesis, blocks: &[Block]) -> Self {
        let info = Info {
            chain_id: genesis.chain_id.clone(),
            genesis_hash: genesis.block().hash(),
            node_id: "a source in a test".into(),
        };
        let shared = Arc::new(Shared {
            info: Mutex::new(info),
            chain: Mutex::new(vec![frame(&genesis.block())]),
            claimed: Mutex::default(),
            fault: Mutex::new(Fault::None),
            requests: watch::Sender::default(),
            served: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            looks: AtomicU64::new(0),
            pace: Mutex::default(),
            snapshot: Mutex::default(),
            chunks: AtomicU64::new(0),
            submitted: watch::Sender::default(),
        });
        let router = Router::new()
            .route("/rpc/info", get(info_route))
            .route("/rpc/head", get(head_route))
            .route("/rpc/blocks-range", get(range_route))
            .route("/rpc/transaction", post(transaction_route))
            .route("/rpc/snapshots", get(snapshots_route))
            .route("/rpc/snapshot/{id}/{part}", get(part_route))
            .with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let source = Self { shared, url, task };
        source.extend(blocks);
        source
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Height of the chain that it has, whatever it reports.
    pub fn blocks(&self) -> u64 {
        self.shared.chain.lock().unwrap().len() as u64 - 1
    }

    /// Appends blocks to its chain.
    pub fn extend(&self, blocks: &[Block]) {
        self.shared.chain.lock().unwrap().extend(blocks.iter().map(frame));
    }

    /// Replaces its chain above block 0.
    pub fn replace(&self, blocks: &[Block]) {
        let mut chain = self.shared.chain.lock().unwrap();
        chain.truncate(1);
        chain.extend(blocks.iter().map(frame));
    }

    /// From now on answers ranges like this.
    pub fn set_fault(&self, fault: Fault) {
        *self.shared.fault.lock().unwrap() = fault;
    }

    /// From now on sends answers to requests for ranges no faster than this, all of them together, and answers nothing
    /// sooner than after `latency`.
    pub fn set_pace(&self, bytes_per_second: u64, latency: Duration) {
        *self.shared.pace.lock().unwrap() = Some(Pace { bytes_per_second, latency, free_at: Instant::now() });
    }

    /// Reports this head, whatever it has.
    pub fn claim(&self, head: Option<(u64, Hash)>) {
        *self.shared.claimed.lock().unwrap() = head;
    }

    /// Says that it is another node, or on another chain.
    pub fn introduce(&self, chain_id: Option<&str>, genesis_hash: Option<Hash>, node_id: Option<&str>) {
        let mut info = self.shared.info.lock().unwrap();
        chain_id.inspect(|id| info.chain_id = (*id).to_owned());
        genesis_hash.inspect(|hash| info.genesis_hash = *hash);
        node_id.inspect(|id| info.node_id = (*id).to_owned());
    }

    /// Offers a snapshot.
    pub fn offer(&self, snapshot: Snapshot, chunks: Chunks) {
        *self.shared.snapshot.lock().unwrap() = Some((snapshot, chunks));
    }

    /// Chunks that it was asked for so far.
    pub fn chunks(&self) -> u64 {
        self.shared.chunks.load(Ordering::SeqCst)
    }

    /// Requests for ranges so far; changes with each.
    pub fn requests(&self) -> watch::Receiver<u64> {
        self.shared.requests.subscribe()
    }

    /// Bytes sent so far in answers to requests for ranges.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// Good blocks served so far.
    pub fn served(&self) -> u64 {
        self.shared.served.load(Ordering::SeqCst)
    }

    /// Transactions handed to it so far, as they came.
    pub fn submitted(&self) -> watch::Receiver<Vec<String>> {
        self.shared.submitted.subscribe()
    }
}

impl Drop for TestSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn frame(block: &Block) -> (Hash, Bytes) {
    let mut bytes = vec![0; 4];
    block.encode(&mut bytes);
    let len = u32::try_from(bytes.len() - 4).unwrap();
    bytes[..4].copy_from_slice(&len.to_be_bytes());
    (block.hash(), bytes.into())
}

fn head(shared: &Shared) -> (u64, Hash) {
    let chain = shared.chain.lock().unwrap();
    let own = (chain.len() as u64 - 1, chain.last().unwrap().0);
    shared.claimed.lock().unwrap().unwrap_or(own)
}

/// The answer of a source that refuses everything; whatever it answers takes its time.
async fn refusal(shared: &Shared) -> Option<Response> {
    let latency = shared.pace.lock().unwrap().as_ref().map(|pace| pace.latency);
    if let Some(latency) = latency.filter(|latency| !latency.is_zero()) {
        tokio::time::sleep(latency).await;
    }
    let fault = *shared.fault.lock().unwrap();
    match fault {
        Fault::Refuses(status) => {
            Some((StatusCode::from_u16(status).unwrap(), [("retry-after", "3600")]).into_response())
        }
        Fault::Mute => std::future::pending().await,
        _ => None,
    }
}

/// What goes down a paced line at a time.
const PACED_BYTES: usize = 16 << 10;

/// A body whose bytes are counted as they go, each at its time.
fn counted(shared: &Arc<Shared>, parts: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Body {
    let (shared, line) = (Arc::clone(shared), Arc::clone(shared));
    let is_paced = line.pace.lock().unwrap().is_some();
    let pieces = parts.flat_map(move |part| match part {
        Ok(mut part) if is_paced => {
            let pieces =
                std::iter::from_fn(move || (!part.is_empty()).then(|| Ok(part.split_to(part.len().min(PACED_BYTES)))));
            stream::iter(pieces).boxed()
        }
        part => stream::iter([part]).boxed(),
    });
    let timely = pieces.then(move |piece| {
        let line = Arc::clone(&line);
        async move {
            let at = match (&piece, line.pace.lock().unwrap().as_mut()) {
                (Ok(piece), Some(pace)) => {
                    let takes = Duration::from_secs_f64(piece.len() as f64 / pace.bytes_per_second as f64);
                    pace.free_at = pace.free_at.max(Instant::now()) + takes;
                    Some(pace.free_at)
                }
                _ => None,
            };
            if let Some(at) = at {
                tokio::time::sleep_until(at.into()).await;
            }
            piece
        }
    });
    Body::from_stream(timely.inspect_ok(move |part| _ = shared.sent.fetch_add(part.len() as u64, Ordering::SeqCst)))
}

/// A block whose transactions are gone.
fn bodyless(bytes: &[u8]) -> Bytes {
    let mut block = Block::decode(&bytes[4..]).unwrap();
    block.transactions.clear();
    frame(&block).1
}

async fn info_route(State(shared): State<Arc<Shared>>) -> Response {
    if let Some(refusal) = refusal(&shared).await {
        return refusal;
    }
    axum::Json(shared.info.lock().unwrap().clone()).into_response()
}

async fn head_route(State(shared): State<Arc<Shared>>) -> Response {
    if let Some(refusal) = refusal(&shared).await {
        return refusal;
    }
    let (mut height, hash) = head(&shared);
    if *shared.fault.lock().unwrap() == Fault::Shrinks {
        height = height.saturating_sub(shared.looks.fetch_add(1, Ordering::SeqCst));
    }
    let json = axum::Json(serde_json::json!({ "height": height, "hash": hash, "tx_count": 0 }));
    match offered(&shared) {
        Some(offer) => ([(SNAPSHOT_HEADER, write_offer(&offer))], json).into_response(),
        None => json.into_response(),
    }
}

fn offered(shared: &Shared) -> Option<Offer> {
    let snapshot = shared.snapshot.lock().unwrap();
    let (snapshot, _) = snapshot.as_ref()?;
    let manifest = snapshot.manifest();
    Some(Offer { id: snapshot.id(), height: manifest.height, hash: manifest.block_hash })
}

async fn snapshots_route(State(shared): State<Arc<Shared>>) -> Response {
    let offers = offered(&shared).into_iter();
    let offers = offers.map(|offer| serde_json::json!({ "id": offer.id, "height": offer.height, "hash": offer.hash }));
    axum::Json(serde_json::json!({ "success": true, "snapshots": offers.collect::<Vec<_>>() })).into_response()
}

async fn part_route(State(shared): State<Arc<Shared>>, Path((_, part)): Path<(String, String)>) -> Response {
    let snapshot = shared.snapshot.lock().unwrap();
    let Some((snapshot, chunks)) = snapshot.as_ref() else { return StatusCode::NOT_FOUND.into_response() };
    if part == "manifest" {
        return snapshot.manifest().to_bytes().into_response();
    }
    shared.chunks.fetch_add(1, Ordering::SeqCst);
    let mut stored = snapshot.stored(part.parse().unwrap()).unwrap();
    match chunks {
        Chunks::Right => {}
        Chunks::Wrong => stored[9] ^= 4,
        Chunks::Gone => return StatusCode::NOT_FOUND.into_response(),
    }
    stored.into_response()
}

async fn transaction_route(State(shared): State<Arc<Shared>>, body: String) -> Response {
    shared.submitted.send_modify(|submitted| submitted.push(body));
    axum::Json(serde_json::json!({ "success": true })).into_response()
}

async fn range_route(State(shared): State<Arc<Shared>>, Query(range): Query<Range>) -> Response {
    shared.requests.send_modify(|count| *count += 1);
    if let Some(refusal) = refusal(&shared).await {
        return refusal;
    }
    let (height, hash) = head(&shared);
    let fault = *shared.fault.lock().unwrap();
    let shift = usize::from(fault == Fault::WrongHeights);
    let more = usize::from(fault == Fault::TooMany);
    let mut frames: Vec<Bytes> = {
        let chain = shared.chain.lock().unwrap();
        let first = usize::try_from(range.start).unwrap() + shift;
        let count = usize::try_from(range.end - range.start).unwrap() + 1 + more;
        chain.iter().skip(first).take(count).map(|(_, frame)| frame.clone()).collect()
    };
    let middle = frames.len() / 2;
    match fault {
        Fault::None | Fault::Shrinks => _ = shared.served.fetch_add(frames.len() as u64, Ordering::SeqCst),
        Fault::Gap if middle > 0 => _ = frames.remove(middle),
        Fault::Shuffled if middle > 0 => frames.swap(0, middle),
        Fault::Duplicate if middle > 0 => frames[middle] = frames[middle - 1].clone(),
        Fault::Bodyless => {
            if let Some(last) = frames.last_mut() {
                *last = bodyless(last);
            }
        }
        Fault::BadSignature => {
            if let Some(last) = frames.last_mut() {
                let mut block = Block::decode(&last[4..]).unwrap();
                block.signature.0[5] ^= 1;
                *last = frame(&block).1;
            }
        }
        _ => {}
    }
    let mut body = frames.concat();
    let half = body.len() / 2;
    let broke = || Err(std::io::Error::other("the source broke off"));
    let one = |body: Vec<u8>| stream::iter([Ok(Bytes::from(body))]);
    let parts = match fault {
        Fault::None
        | Fault::Shrinks
        | Fault::WrongHeights
        | Fault::TooMany
        | Fault::Gap
        | Fault::Shuffled
        | Fault::Duplicate
        | Fault::Bodyless
        | Fault::BadSignature => one(body).boxed(),
        Fault::Garbage => one([&8_u32.to_be_bytes()[..], b"no block"].concat()).boxed(),
        Fault::Noise => {
            let noise = (0..4_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8);
            one(noise.collect()).boxed()
        }
        Fault::Truncated => {
            body.truncate(body.len() - 7);
            one(body).chain(stream::iter([broke()])).boxed()
        }
        Fault::BreaksMidway => {
            body.truncate(half);
            one(body).chain(stream::iter([broke()])).boxed()
        }
        Fault::StallsMidway => {
            body.truncate(half);
            one(body).chain(stream::pending()).boxed()
        }
        Fault::Dribbles => stream::iter(body)
            .then(|byte| async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(Bytes::from(vec![byte]))
            })
            .boxed(),
        Fault::Huge => {
            let len = u32::try_from(FRAME_BYTES_MAX).unwrap().to_be_bytes().to_vec();
            one(len).chain(stream::repeat_with(|| Ok(Bytes::from(vec![0; 16 << 10])))).boxed()
        }
        Fault::Endless => {
            let last = frames.last().cloned().unwrap_or_default();
            one(body).chain(stream::repeat_with(move || Ok(last.clone()))).boxed()
        }
        Fault::Oversized => one(vec![0xff; 400]).boxed(),
        Fault::Empty => one(Vec::new()).boxed(),
        Fault::Silent => std::future::pending().await,
        Fault::Stalls => one(vec![0]).chain(stream::pending()).boxed(),
        Fault::Limited(seconds) => {
            return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", seconds.to_string())]).into_response();
        }
        Fault::Refuses(_) | Fault::Mute => unreachable!("answered above"),
        Fault::Broken => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Fault::OtherType => return "a page".into_response(),
    };
    let body = counted(&shared, parts);
    ([("content-type", BLOCKS_MEDIA_TYPE.to_owned()), (HEAD_HEADER, format!("{height} {hash}"))], body).into_response()
}
