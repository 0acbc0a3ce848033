//! `/rpc/snapshots`, `/rpc/snapshot/{id}/manifest`, `/rpc/snapshot/{id}/{chunk}`: the snapshots that the node has.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream;
use serde::Serialize;
use tokio::sync::mpsc;

use super::error::{ApiError, Result};
use super::request::{Params, shown, whole_number};
use super::{Rpc, json_bytes};
use crate::chain::{Hash, Height};
use crate::maintenance::shelf::Kept;

/// Pieces of a chunk that are read ahead of the caller, of 64 KiB each.
const PIECES_AHEAD: usize = 2;

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
    let (sender, receiver) = mpsc::channel::<std::io::Result<Bytes>>(PIECES_AHEAD);
    tokio::task::spawn_blocking(move || {
        let read = kept.read_chunk(index, |piece| sender.blocking_send(Ok(piece.into())).is_ok());
        if let Err(error) = read {
            tracing::warn!(%error, index, id = %kept.id, "a chunk could not be read");
            // The caller sees the answer end too early; it may be gone as well.
            let _ = sender.blocking_send(Err(error));
        }
    });
    let pieces = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
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
