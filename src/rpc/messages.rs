//! `/rpc/messages`: an address's mail, in the order of the chain. Who asks again with `next` gets every message once; after
//! a reorg that took the last one's block, the answer says from where on the mail is another.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Rpc;
use super::cursor::PageCursor;
use super::error::Result;
use super::request::Params;
use super::transactions::LIST_MAX;
use super::wire::ListedTransaction;
use crate::chain::{Address, Height};
use crate::storage::Reader;

/// Messages on a page, where the caller does not say.
const DEFAULT: usize = 100;

#[derive(Serialize)]
struct MessagesJson<'a> {
    success: bool,
    messages: Vec<ListedTransaction<'a>>,
    count: usize,
    /// The cursor to ask with next time, whether there is more already or not; null before the first message.
    next: Option<String>,
    /// Where whole blocks begin on this node: messages below are not here. 0 where all are.
    base: Height,
}

pub(super) async fn list(State(rpc): State<Rpc>, params: Params) -> Result<Response> {
    let params = params.only(&["address", "after", "limit"], rpc.chain_id())?;
    let address: Address = params.required("address")?;
    let after: Option<PageCursor> = params.optional("after")?;
    let limit = params.limit(DEFAULT, LIST_MAX)?;
    let storage = rpc.parts.ledger.storage();
    let read = move |reader: &Reader<'_>| {
        if let Some(moved) = after.map_or(Ok(None), |after| after.check(reader))? {
            return Ok(Err(moved));
        }
        Ok(Ok((reader.messages(&address, after.map(|after| after.at), limit)?, reader.base()?)))
    };
    let (stored, base) = match storage.read_async(read).await? {
        Ok(page) => page,
        Err(moved) => return Ok(moved.into_response()),
    };
    let last = stored.last().map(|last| PageCursor::new(last.cursor(), Some(last.block_hash)));
    let next = last.or(after).map(|cursor| cursor.to_string());
    let messages: Vec<_> = stored.iter().map(|stored| ListedTransaction::stored(stored, rpc.chain_id())).collect();
    Ok(Json(MessagesJson { success: true, count: messages.len(), messages, next, base }).into_response())
}
