//! `/rpc/messages`: an address's mail, in the order of the chain. Who asks again with `next` gets every message once.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Rpc;
use super::error::Result;
use super::request::Params;
use super::transactions::LIST_MAX;
use super::wire::ListedTransaction;
use crate::chain::Address;
use crate::storage::Cursor;

/// Messages on a page, where the caller does not say.
const DEFAULT: usize = 100;

#[derive(Serialize)]
struct MessagesJson<'a> {
    success: bool,
    messages: Vec<ListedTransaction<'a>>,
    count: usize,
    /// The cursor to ask with next time, whether there is more already or not; null before the first message.
    next: Option<String>,
}

pub(super) async fn list(State(rpc): State<Rpc>, params: Params) -> Result<Response> {
    let params = params.only(&["address", "after", "limit"], rpc.chain_id())?;
    let address: Address = params.required("address")?;
    let after: Option<Cursor> = params.optional("after")?;
    let limit = params.limit(DEFAULT, LIST_MAX)?;
    let storage = rpc.parts.ledger.storage();
    let stored = storage.read_async(move |reader| reader.messages(&address, after, limit)).await?;
    let next = stored.last().map(|last| last.cursor()).or(after).map(|cursor| cursor.to_string());
    let messages: Vec<_> = stored.iter().map(|stored| ListedTransaction::stored(stored, rpc.chain_id())).collect();
    Ok(Json(MessagesJson { success: true, count: messages.len(), messages, next }).into_response())
}
