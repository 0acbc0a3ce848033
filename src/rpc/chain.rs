//! `/rpc/head`, `/rpc/blocks/{}`, `/rpc/blocks-range`.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;

use super::error::{ApiError, Result};
use super::request::{Params, shown, whole_number};
use super::wire::BlockJson;
use super::{Rpc, json_bytes};
use crate::chain::{Block, Hash, Head, Header, Height, Time};
use crate::ledger::Ledger;
use crate::snapshot::source::Offer;
use crate::storage::{BelowBase, Frames, Reader, StorageError};
use crate::sync::http;

/// Blocks in one range at most.
pub const RANGE_BLOCKS_MAX: u64 = 1_000;
/// Bytes of one range at most; a single block that is larger is still served.
pub const RANGE_BYTES_MAX: usize = 8 << 20;
/// Bytes of a range that is read without going to another thread.
const RANGE_BYTES_BRIEF: usize = 256 << 10;
/// Blocks in a range whose end is not given, less one: what existing clients expect.
const RANGE_DEFAULT: u64 = 10;
/// Ranges in binary: for each block its length, four bytes big-endian, and its encoding.
pub const BLOCKS_MEDIA_TYPE: &str = "application/vnd.tenon.blocks";

const NEXT: HeaderName = HeaderName::from_static("x-tenon-next");
const HEAD: HeaderName = HeaderName::from_static("x-tenon-head");
const SNAPSHOT: HeaderName = HeaderName::from_static(http::SNAPSHOT_HEADER);

#[derive(Serialize)]
struct HeadJson<'a> {
    height: Height,
    hash: Hash,
    timestamp: Time,
    tx_count: u32,
    parent_hash: Hash,
    state_root: Hash,
    chain_id: &'a str,
}

/// The answer of `/rpc/head`, made once for each head.
pub(super) struct HeadBody(ArcSwap<(Hash, Bytes)>);

impl HeadBody {
    pub(super) fn new(ledger: &Ledger) -> Self {
        Self(ArcSwap::from_pointee(Self::make(&ledger.head(), &ledger.genesis().chain_id)))
    }

    fn of(&self, head: &Head, chain_id: &str) -> Bytes {
        let known = self.0.load();
        if known.0 == head.hash {
            return known.1.clone();
        }
        let made = Arc::new(Self::make(head, chain_id));
        self.0.store(Arc::clone(&made));
        made.1.clone()
    }

    fn make(head: &Head, chain_id: &str) -> (Hash, Bytes) {
        let json = HeadJson {
            height: head.height,
            hash: head.hash,
            timestamp: head.timestamp,
            tx_count: head.tx_count,
            parent_hash: head.parent_hash,
            state_root: head.state_root,
            chain_id,
        };
        (head.hash, serde_json::to_vec(&json).expect("plain data").into())
    }
}

pub(super) async fn head(State(rpc): State<Rpc>, params: Params) -> Result<Response> {
    params.only(&[], rpc.chain_id())?;
    let mut response = json_bytes(rpc.head.of(&rpc.parts.ledger.head(), rpc.chain_id()));
    // Beside the answer, not in it: who polls heads learns of a new snapshot without another request.
    if let Some(kept) = rpc.parts.shelf.newest() {
        let offer = Offer { id: kept.id, height: kept.manifest.height, hash: kept.manifest.block_hash };
        let value = HeaderValue::try_from(http::write_offer(&offer)).expect("digits and spaces");
        response.headers_mut().insert(SNAPSHOT, value);
    }
    Ok(response)
}

/// How a block is asked for.
enum Key {
    Height(Height),
    Hash(Hash),
}

pub(super) async fn block(
    State(rpc): State<Rpc>,
    path: Result<Path<String>, PathRejection>,
    params: Params,
) -> Result<Response> {
    let Path(text) = path.map_err(|error| ApiError::invalid(error.body_text()))?;
    let include_tx = params.only(&["include_tx"], rpc.chain_id())?.flag("include_tx", true)?;
    let key = if text.starts_with("0x") {
        Key::Hash(text.parse().map_err(|error| ApiError::field("height_or_hash", error))?)
    } else {
        Key::Height(whole_number(&text).map_err(|reason| ApiError::field("height_or_hash", reason))?)
    };
    let read = move |reader: &Reader<'_>| {
        let height = match &key {
            Key::Height(height) => Some(*height),
            Key::Hash(hash) => reader.block_height(hash)?,
        };
        let Some(height) = height else { return Ok(None) };
        if let Err(below) = reader.whole(height, height)? {
            return Ok(Some(Err(below)));
        }
        let mut json = None;
        each_as_json(reader, height, height, include_tx, |block| {
            json = Some(Ok(block.to_vec()));
            false
        })?;
        Ok(json)
    };
    let json = rpc.parts.ledger.storage().read_brief(read).await?;
    let json = json.ok_or_else(|| ApiError::not_found(format!("no block `{}` here", shown(&text))))?;
    Ok(json_bytes(json?))
}

impl From<BelowBase> for ApiError {
    fn from(below: BelowBase) -> Self {
        Self::new(StatusCode::NOT_FOUND, "below-base", below.to_string())
    }
}

pub(super) async fn range(State(rpc): State<Rpc>, headers: HeaderMap, params: Params) -> Result<Response> {
    let params = params.only(&["start", "end", "include_tx"], rpc.chain_id())?;
    let start = params.number("start")?.unwrap_or(0);
    let end = params.number("end")?.unwrap_or(start.saturating_add(RANGE_DEFAULT));
    if end < start {
        return Err(ApiError::field("end", format!("{end} is below `start`, {start}")));
    }
    if end - start >= RANGE_BLOCKS_MAX {
        let text = format!("{start} to {end} are more than the {RANGE_BLOCKS_MAX} blocks that one range may have");
        return Err(ApiError::field("end", text));
    }
    let include_tx = params.flag("include_tx", true)?;
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let binary = accepted.into_iter().any(|value| value.contains(BLOCKS_MEDIA_TYPE));
    if binary && !include_tx {
        return Err(ApiError::field("include_tx", "binary ranges always carry whole blocks"));
    }
    // Taken before the blocks are read: what is said to be there is there.
    let head = rpc.parts.ledger.head();
    let storage = rpc.parts.ledger.storage();
    if !binary {
        let read = move |reader: &Reader<'_>| range_json(reader, start, end, include_tx, head.height);
        return Ok(json_bytes(storage.read_async(read).await??));
    }
    // Most ranges are small; the others are begun again on a thread that may block.
    let small = storage.read_brief(move |reader| reader.framed_blocks(start, end, RANGE_BYTES_BRIEF)).await??;
    let Frames { body, next, .. } = match small {
        Frames { cut: false, .. } => small,
        _ => storage.read_async(move |reader| reader.framed_blocks(start, end, RANGE_BYTES_MAX)).await??,
    };
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(BLOCKS_MEDIA_TYPE));
    headers.insert(NEXT, HeaderValue::from(next));
    let head = format!("{} {}", head.height, head.hash);
    headers.insert(HEAD, HeaderValue::try_from(head).expect("digits"));
    Ok(response)
}

/// `next` is where to go on; null once all that exists of the range has been served.
fn range_json(
    reader: &Reader<'_>,
    start: Height,
    end: Height,
    include_tx: bool,
    head: Height,
) -> Result<Result<Vec<u8>, BelowBase>, StorageError> {
    let end = match reader.whole(start, end)? {
        Ok(end) => end,
        Err(below) => return Ok(Err(below)),
    };
    let mut body = b"{\"success\":true,\"blocks\":[".to_vec();
    let mut count = 0;
    each_as_json(reader, start, end, include_tx, |block| {
        if count > 0 {
            if body.len() + block.len() > RANGE_BYTES_MAX {
                return false;
            }
            body.push(b',');
        }
        body.extend_from_slice(block);
        count += 1;
        true
    })?;
    let next = start + count;
    let next = if count > 0 && next <= end.min(head) { next.to_string() } else { "null".into() };
    body.extend_from_slice(format!("],\"count\":{count},\"next\":{next}}}").as_bytes());
    Ok(Ok(body))
}

/// Shows `each` the blocks `first..=last` as JSON, until it answers false.
fn each_as_json(
    reader: &Reader<'_>,
    first: Height,
    last: Height,
    include_tx: bool,
    mut each: impl FnMut(&[u8]) -> bool,
) -> Result<(), StorageError> {
    let mut failed = None;
    let mut json = Vec::new();
    reader.each_encoded_block(first, last, |bytes| {
        json.clear();
        let written = if include_tx {
            Block::decode(bytes).map(|block| serde_json::to_writer(&mut json, &BlockJson::whole(&block)))
        } else {
            Header::decode_start(bytes)
                .map(|(header, signature)| serde_json::to_writer(&mut json, &BlockJson::header(&header, signature)))
        };
        match written {
            Ok(Ok(())) => each(&json),
            Ok(Err(error)) => {
                failed = Some(StorageError::Inconsistent(format!("a stored block has no JSON: {error}")));
                false
            }
            Err(error) => {
                failed = Some(StorageError::Damaged { what: format!("a block from {first} on"), error });
                false
            }
        }
    })?;
    failed.map_or(Ok(()), Err)
}
