//! `/rpc/transaction`, `/rpc/transactions`, `/rpc/mempool`.

use std::cmp::Reverse;
use std::collections::HashSet;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Rpc;
use super::cursor::PageCursor;
use super::error::{ApiError, Result};
use super::request::{Params, read_body, shown, utf8};
use super::wire::{self, ListedTransaction, Place, TransactionJson};
use crate::chain::{Hash, Height, Time, format, merkle};
use crate::mempool::{Pending, TransactionStatus};
use crate::storage::{Cursor, Reader, StorageError, StoredTransaction, TransactionFilter};

/// Bytes of a transaction's JSON at most: the largest payload, escaped, and the rest.
const BODY_MAX: usize = 512 << 10;
/// Items in a list, where the caller does not say.
const LIST_DEFAULT: usize = 50;
/// Items in a list at most.
pub(super) const LIST_MAX: usize = 1_000;
/// Pending transactions in `/rpc/mempool`, where the caller does not say.
const MEMPOOL_DEFAULT: usize = 100;

#[derive(Serialize)]
struct SubmittedJson {
    success: bool,
    transaction_hash: Hash,
    hash: Hash,
    tx_hash: Hash,
    message: &'static str,
}

pub(super) async fn submit(State(rpc): State<Rpc>, headers: HeaderMap, body: Body) -> Result<Response> {
    let body = read_body(&headers, body, BODY_MAX).await?;
    let hash = rpc.parts.mempool.submit(wire::parse_submission(utf8(&body)?)?).await?;
    let message = "Transaction submitted to mempool";
    Ok(Json(SubmittedJson { success: true, transaction_hash: hash, hash, tx_hash: hash, message }).into_response())
}

#[derive(Serialize)]
struct ListJson<'a> {
    success: bool,
    transactions: Vec<ListedTransaction<'a>>,
    count: usize,
    /// Where to go on; null at the end.
    next: Option<String>,
    /// Where whole blocks begin on this node: transactions below are not here. 0 where all are.
    base: Height,
}

/// Newest first: pending ones on the first page, then block by block downwards.
pub(super) async fn list(State(rpc): State<Rpc>, params: Params) -> Result<Response> {
    let known = ["address", "sender", "recipient", "type", "after", "limit"];
    let params = params.only(&known, rpc.chain_id())?;
    let filter = TransactionFilter {
        address: params.optional("address")?,
        sender: params.optional("sender")?,
        recipient: params.optional("recipient")?,
        message: match params.text("type") {
            None => None,
            Some("message") => Some(true),
            Some("transfer") => Some(false),
            Some(other) => {
                let text = format!("expected `transfer` or `message`, got `{}`", shown(other));
                return Err(ApiError::field("type", text));
            }
        },
    };
    let after: Option<PageCursor> = params.optional("after")?;
    let limit = params.limit(LIST_DEFAULT, LIST_MAX)?;
    // Before the blocks are read: what leaves the pool in between is then in them, and not lost between the two.
    let mempool = &rpc.parts.mempool;
    let mut pending = match (after, filter.sender) {
        (Some(_), _) => Vec::new(),
        (None, Some(sender)) => mempool.pending_of(&sender),
        (None, None) => mempool.pending(usize::MAX),
    };
    pending.retain(|pending| filter.admits(&pending.transaction));
    pending.sort_by_key(|pending| Reverse((pending.received, pending.hash)));
    pending.truncate(limit);
    let (rest, storage) = (limit - pending.len(), rpc.parts.ledger.storage());
    let read = move |reader: &Reader<'_>| {
        if let Some(moved) = after.map_or(Ok(None), |after| after.check(reader))? {
            return Ok(Err(moved));
        }
        let (stored, next) = reader.transactions(&filter, after.map(|after| after.at), rest)?;
        let next = match next {
            // A page full of pending ones goes on at the head.
            _ if rest == 0 => {
                let head = reader.head()?.map_or(0, |head| head.height);
                Some(PageCursor::new(Cursor { height: head + 1, position: 0 }, None))
            }
            Some(next) => Some(PageCursor::new(next, reader.hash_at(next.height)?)),
            None => None,
        };
        Ok(Ok((stored, next, reader.base()?)))
    };
    let (stored, next, base) = match storage.read_async(read).await? {
        Ok(page) => page,
        Err(moved) => return Ok(moved.into_response()),
    };
    let confirmed: HashSet<Hash> = stored.iter().map(|stored| stored.hash).collect();
    pending.retain(|pending| !confirmed.contains(&pending.hash));

    let next = next.map(|cursor| cursor.to_string());
    let mut transactions: Vec<_> = pending.iter().map(|pending| listed(pending, rpc.chain_id())).collect();
    transactions.extend(stored.iter().map(|stored| ListedTransaction::stored(stored, rpc.chain_id())));
    Ok(Json(ListJson { success: true, count: transactions.len(), transactions, next, base }).into_response())
}

fn listed<'a>(pending: &'a Pending, chain_id: &'a str) -> ListedTransaction<'a> {
    let place = Place::Pending { received: pending.received };
    ListedTransaction::new(&pending.transaction, pending.hash, chain_id, &place)
}

#[derive(Serialize)]
struct OneJson<'a> {
    success: bool,
    #[serde(flatten)]
    transaction: ListedTransaction<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proof: Option<ProofJson>,
}

#[derive(Serialize)]
struct DroppedJson {
    success: bool,
    hash: Hash,
    tx_hash: Hash,
    status: &'static str,
    reason: String,
    dropped_at: Time,
}

/// That a block holds a transaction: hashing `leaf` with `path` gives the header's `tx_root`.
#[derive(Serialize)]
struct ProofJson {
    block_height: Height,
    block_hash: Hash,
    tx_root: Hash,
    index: u32,
    count: u32,
    leaf: String,
    path: Vec<Hash>,
}

pub(super) async fn one(
    State(rpc): State<Rpc>,
    path: Result<Path<String>, PathRejection>,
    params: Params,
) -> Result<Response> {
    let Path(text) = path.map_err(|error| ApiError::invalid(error.body_text()))?;
    let hash: Hash = text.parse().map_err(|error| ApiError::field("hash", error))?;
    let proof = params.only(&["proof"], rpc.chain_id())?.flag("proof", false)?;
    let chain_id = rpc.chain_id();
    // The pool first: what leaves it in between is then in a block.
    let status = rpc.parts.mempool.get(&hash);
    if let Some(TransactionStatus::Pending(pending)) = &status {
        let transaction = listed(pending, chain_id);
        return Ok(Json(OneJson { success: true, transaction, proof: None }).into_response());
    }
    let read = move |reader: &Reader<'_>| {
        let Some(stored) = reader.transaction(&hash)? else { return Ok(None) };
        let proof = if proof { Some(inclusion(reader, &stored)?) } else { None };
        Ok(Some((stored, proof)))
    };
    if let Some((stored, proof)) = rpc.parts.ledger.storage().read_brief(read).await? {
        let transaction = ListedTransaction::stored(&stored, chain_id);
        return Ok(Json(OneJson { success: true, transaction, proof }).into_response());
    }
    match status {
        Some(TransactionStatus::Dropped { reason, at }) => {
            let dropped = DroppedJson { success: true, hash, tx_hash: hash, status: "dropped", reason, dropped_at: at };
            Ok(Json(dropped).into_response())
        }
        _ => Err(ApiError::not_found(format!("transaction {hash} not found"))),
    }
}

fn inclusion(reader: &Reader<'_>, stored: &StoredTransaction) -> Result<ProofJson, StorageError> {
    let gone = || StorageError::Inconsistent(format!("block {} is not there", stored.height));
    let block = reader.block(stored.height)?.ok_or_else(gone)?;
    let chain_id = &block.header.chain_id;
    let leaf =
        |transaction| format::transaction_leaf(&crate::chain::Transaction::hash(transaction, chain_id), transaction);
    let leaves: Vec<_> = block.transactions.iter().map(leaf).collect();
    let index = stored.position as usize;
    let own = leaves.get(index).ok_or_else(gone)?;
    Ok(ProofJson {
        block_height: stored.height,
        block_hash: stored.block_hash,
        tx_root: block.header.tx_root,
        index: stored.position,
        count: block.header.tx_count,
        leaf: const_hex::encode_prefixed(own),
        path: merkle::path(&leaves, index),
    })
}

#[derive(Serialize)]
struct MempoolJson<'a> {
    success: bool,
    transactions: Vec<WaitingJson<'a>>,
    count: usize,
    /// How many wait in all.
    total: usize,
}

#[derive(Serialize)]
struct WaitingJson<'a> {
    #[serde(flatten)]
    transaction: TransactionJson<'a>,
    received: Time,
}

pub(super) async fn mempool(State(rpc): State<Rpc>, params: Params) -> Result<Response> {
    let limit = params.only(&["limit"], rpc.chain_id())?.limit(MEMPOOL_DEFAULT, LIST_MAX)?;
    let pending = rpc.parts.mempool.pending(limit);
    let transactions: Vec<_> = pending.iter().map(|pending| waiting(pending, rpc.chain_id())).collect();
    let (count, total) = (transactions.len(), rpc.parts.mempool.len());
    Ok(Json(MempoolJson { success: true, transactions, count, total }).into_response())
}

fn waiting<'a>(pending: &'a Pending, chain_id: &'a str) -> WaitingJson<'a> {
    let transaction = TransactionJson::with_hash(&pending.transaction, chain_id, pending.hash);
    WaitingJson { transaction, received: pending.received }
}
