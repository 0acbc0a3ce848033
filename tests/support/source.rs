//! A source that serves a chain over real HTTP, and lies, stalls or breaks as a test wants. The routes that sync uses and
//! no others; the blocks are in memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use tenon::chain::{Block, Genesis, Hash};
use tenon::sync::http::{BLOCKS_MEDIA_TYPE, HEAD_HEADER};
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
    submitted: watch::Sender<Vec<String>>,
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
            submitted: watch::Sender::default(),
        });
        let router = Router::new()
            .route("/rpc/info", get(info_route))
            .route("/rpc/head", get(head_route))
            .route("/rpc/blocks-range", get(range_route))
            .route("/rpc/transaction", post(transaction_route))
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

    /// Requests for ranges so far; changes with each.
    pub fn requests(&self) -> watch::Receiver<u64> {
        self.shared.requests.subscribe()
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

/// The answer of a source that refuses everything.
fn refusal(shared: &Shared) -> Option<Response> {
    match *shared.fault.lock().unwrap() {
        Fault::Refuses(status) => {
            Some((StatusCode::from_u16(status).unwrap(), [("retry-after", "3600")]).into_response())
        }
        _ => None,
    }
}

async fn info_route(State(shared): State<Arc<Shared>>) -> Response {
    if let Some(refusal) = refusal(&shared) {
        return refusal;
    }
    axum::Json(shared.info.lock().unwrap().clone()).into_response()
}

async fn head_route(State(shared): State<Arc<Shared>>) -> Response {
    if let Some(refusal) = refusal(&shared) {
        return refusal;
    }
    let (height, hash) = head(&shared);
    axum::Json(serde_json::json!({ "height": height, "hash": hash, "tx_count": 0 })).into_response()
}

async fn transaction_route(State(shared): State<Arc<Shared>>, body: String) -> Response {
    shared.submitted.send_modify(|submitted| submitted.push(body));
    axum::Json(serde_json::json!({ "success": true })).into_response()
}

async fn range_route(State(shared): State<Arc<Shared>>, Query(range): Query<Range>) -> Response {
    shared.requests.send_modify(|count| *count += 1);
    if let Some(refusal) = refusal(&shared) {
        return refusal;
    }
    let (height, hash) = head(&shared);
    let fault = *shared.fault.lock().unwrap();
    let shift = usize::from(fault == Fault::WrongHeights);
    let more = usize::from(fault == Fault::TooMany);
    let frames: Vec<Bytes> = {
        let chain = shared.chain.lock().unwrap();
        let first = usize::try_from(range.start).unwrap() + shift;
        let count = usize::try_from(range.end - range.start).unwrap() + 1 + more;
        chain.iter().skip(first).take(count).map(|(_, frame)| frame.clone()).collect()
    };
    let mut body = frames.concat();
    let whole = |body: Vec<u8>| Body::from(body);
    let body = match fault {
        Fault::None => {
            shared.served.fetch_add(frames.len() as u64, Ordering::SeqCst);
            whole(body)
        }
        Fault::WrongHeights | Fault::TooMany => whole(body),
        Fault::Garbage => whole([&8_u32.to_be_bytes()[..], b"no block"].concat()),
        Fault::BadSignature => {
            // The last block of a sample's range has its proposer's signature right before its transactions.
            let last = frames.last().unwrap();
            let block = Block::decode(&last[4..]).unwrap();
            let mut changed = block.clone();
            changed.signature.0[5] ^= 1;
            body.truncate(body.len() - last.len());
            body.extend_from_slice(&frame(&changed).1);
            whole(body)
        }
        Fault::Truncated => {
            body.truncate(body.len() - 7);
            let parts = [Ok(Bytes::from(body)), Err(std::io::Error::other("the source broke off"))];
            Body::from_stream(stream::iter(parts))
        }
        Fault::Oversized => whole(vec![0xff; 400]),
        Fault::Empty => whole(Vec::new()),
        Fault::Silent => std::future::pending().await,
        Fault::Stalls => {
            let first = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(&[0]))]);
            Body::from_stream(futures_util::StreamExt::chain(first, stream::pending()))
        }
        Fault::Limited(seconds) => {
            return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", seconds.to_string())]).into_response();
        }
        Fault::Refuses(_) => unreachable!("answered above"),
        Fault::Broken => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Fault::OtherType => return "a page".into_response(),
    };
    ([("content-type", BLOCKS_MEDIA_TYPE.to_owned()), (HEAD_HEADER, format!("{height} {hash}"))], body).into_response()
}
