//! `/rpc/snapshots`, `/rpc/snapshot/{id}/manifest`, `/rpc/snapshot/{id}/{chunk}`: the snapshots that the node has.

use std::io::Read;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream;
use serde::Serialize;

use super::error::{ApiError, Result};
use super::request::{Params, shown, whole_number};
use super::{Rpc, json_bytes};
use crate::chain::{Hash, Height};
use crate::maintenance::shelf::Kept;

/// Bytes of a chunk that are read at once.
const PIECE_BYTES: usize = 128 << 10;

/// A snapshot in a list.
#[derive(Serialize)]
pub(super) struct SnapshotJson {
    id: Hash,
    height: Height,
    hash: Hash,
    /// Where its whole blocks begin.
    blocks_from: Height,
    accounts: u64,
    chunks: usize,
    /// Of all chunks, as they are sent.
    bytes: u64,
}

#[derive(Serialize)]
pub(super) struct SnapshotsJson {
    success: bool,
    snapshots: Vec<SnapshotJson>,
}

impl SnapshotJson {
    pub(super) fn of(kept: &Kept) -> Self {
        let manifest = &kept.manifest;
        Self {
            id: kept.id,
            height: manifest.height,
            hash: manifest.block_hash,
            blocks_from: manifest.blocks_from,
            accounts: manifest.accounts,
            chunks: manifest.chunks.len(),
            bytes: manifest.bytes(),
        }
    }
}

/// The highest first.
pub(super) async fn list(State(rpc): State<Rpc>, params: Params) -> Result<Json<SnapshotsJson>> {
    params.only(&[], rpc.chain_id())?;
    let snapshots = rpc.parts.shelf.list().iter().map(|kept| SnapshotJson::of(kept)).collect();
    Ok(Json(SnapshotsJson { success: true, snapshots }))
}

pub(super) async fn manifest(
    State(rpc): State<Rpc>,
    path: Result<Path<String>, PathRejection>,
    params: Params,
) -> Result<Response> {
    let Path(id) = path.map_err(|error| ApiError::invalid(error.body_text()))?;
    params.only(&[], rpc.chain_id())?;
    Ok(json_bytes(find(&rpc, &id)?.manifest_bytes()))
}

/// A chunk as it is stored, read as fast as the caller takes it.
pub(super) async fn chunk(
    State(rpc): State<Rpc>,
    path: Result<Path<(String, String)>, PathRejection>,
    params: Params,
) -> Result<Response> {
    let Path((id, index)) = path.map_err(|error| ApiError::invalid(error.body_text()))?;
    params.only(&[], rpc.chain_id())?;
    let kept = find(&rpc, &id)?;
    let number = whole_number(&index).map_err(|reason| ApiError::field("chunk", reason))?;
    let chunks = &kept.manifest.chunks;
    let found = usize::try_from(number).ok().and_then(|index| Some((index, chunks.get(index)?.bytes)));
    let Some((index, bytes)) = found else {
        let text = format!("no chunk {number}, the snapshot has {}", chunks.len());
        return Err(ApiError::not_found(text));
    };
    let opened = tokio::task::spawn_blocking(move || kept.open_chunk(index)).await.map_err(ApiError::internal)?;
    let file = opened.map_err(|error| ApiError::not_found(format!("chunk {index} is not here any more: {error}")))?;
    // A thread is taken for each piece, and not for as long as a slow caller takes.
    let pieces = stream::unfold(Some(file), async |file| {
        let mut file = file?;
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            let read = (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece);
            read.map(|_| (Bytes::from(piece), file))
        });
        match read.await.unwrap_or_else(|stopped| Err(std::io::Error::other(stopped))) {
            Ok((piece, _)) if piece.is_empty() => None,
            Ok((piece, file)) => Some((Ok(piece), Some(file))),
            // The caller sees the answer end too early.
            Err(error) => Some((Err(error), None)),
        }
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    Ok(response)
}

fn find(rpc: &Rpc, id: &str) -> Result<Arc<Kept>> {
    let wanted: Hash = id.parse().map_err(|error| ApiError::field("id", error))?;
    let gone = || ApiError::not_found(format!("no snapshot {} here; /rpc/snapshots lists them", shown(id)));
    rpc.parts.shelf.find(&wanted).ok_or_else(gone)
}
