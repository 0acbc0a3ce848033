//! `POST /rpc/importBlock`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::Serialize;

use super::Rpc;
use super::error::{ApiError, Result};
use super::request::{read_body, utf8};
use super::wire;
use crate::chain::{Genesis, Hash, Height, VerifiedBlock, verify};
use crate::ledger::Imported;

#[derive(Serialize)]
pub(super) struct ImportedJson {
    success: bool,
    accepted: bool,
    block_number: Height,
    block_height: Height,
    block_hash: Hash,
    reason: &'static str,
    reorged: bool,
}

/// Bytes of a body at most: room for every block of the chain in JSON, but one that consists of control characters, which
/// JSON writes six times as long. Such a block still comes in by a range.
pub(super) fn body_max(genesis: &Genesis) -> usize {
    /// A transaction's names, keys and hexadecimal digits.
    const TRANSACTION_JSON: usize = 600;
    let payloads = genesis.block_bytes_max as usize * 5 / 2;
    payloads + genesis.block_txs_max as usize * TRANSACTION_JSON + (64 << 10)
}

pub(super) async fn import_block(State(rpc): State<Rpc>, headers: HeaderMap, body: Body) -> Result<Json<ImportedJson>> {
    let body = read_body(&headers, body, rpc.import_body_max).await?;
    let ledger = &rpc.parts.ledger;
    let block = {
        let _turn = rpc.imports.acquire().await.expect("never closed");
        let genesis = ledger.genesis().clone();
        let checked = tokio::task::spawn_blocking(move || check(&body, &genesis)).await;
        checked.map_err(ApiError::internal)??
    };
    let (height, hash) = (block.height(), block.hash());
    let imported = ledger.offer(block).await?;
    let reason = match imported {
        Imported::Extended => "extended the chain",
        Imported::Known => "block already exists",
        Imported::Reorged => "replaced our block at its height",
    };
    Ok(Json(ImportedJson {
        success: true,
        accepted: true,
        block_number: height,
        block_height: height,
        block_hash: hash,
        reason,
        reorged: imported == Imported::Reorged,
    }))
}

fn check(body: &[u8], genesis: &Genesis) -> Result<VerifiedBlock> {
    let block = wire::parse_block(utf8(body)?)?;
    // Nobody signs the genesis block, so it could not be verified; but it is here.
    let known = verify::genesis_block(genesis);
    if block.header.height == 0 && block == *known.block() {
        return Ok(known);
    }
    Ok(verify::verify(block, genesis)?)
}
