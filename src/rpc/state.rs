//! `/rpc/state/root`, `/rpc/state/node`: the state of the chain, as far as its trie shows it.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

use super::Rpc;
use super::error::{ApiError, Result};
use super::request::Params;
use crate::chain::state::{Path, StateNode};
use crate::chain::{Address, Hash, Header, Height};

#[derive(Serialize)]
pub(super) struct RootJson {
    height: Height,
    /// The block's hash.
    hash: Hash,
    state_root: Hash,
}

/// The state root after any block, the head where none is named.
pub(super) async fn root(State(rpc): State<Rpc>, params: Params) -> Result<Json<RootJson>> {
    let params = params.only(&["height"], rpc.chain_id())?;
    let head = rpc.parts.ledger.head();
    let height = params.number("height")?.unwrap_or(head.height);
    let header = rpc.parts.ledger.storage().read_brief(move |reader| reader.header(height)).await?;
    let Some(header) = header else {
        return Err(ApiError::not_found(format!("no block {height} here, the head is {}", head.height)));
    };
    let Header { state_root, .. } = header;
    Ok(Json(RootJson { height, hash: header.hash(), state_root }))
}

#[derive(Serialize)]
pub(super) struct NodeJson {
    height: Height,
    hash: Hash,
    state_root: Hash,
    /// The one account below the path, if there is just one.
    account: Option<AccountJson>,
    /// The fork below the path, if there are several.
    fork: Option<ForkJson>,
}

#[derive(Serialize)]
struct AccountJson {
    address: Address,
    balance: u64,
    nonce: u64,
}

#[derive(Serialize)]
struct ForkJson {
    path: String,
    /// By the digit that follows.
    below: BTreeMap<String, Hash>,
}

/// What lies below a path of the head's state. With `height`, only while that is the head.
pub(super) async fn node(State(rpc): State<Rpc>, params: Params) -> Result<Json<NodeJson>> {
    let params = params.only(&["height", "path"], rpc.chain_id())?;
    let wanted = params.number("height")?;
    let path: Path = params.optional("path")?.unwrap_or_default();
    // The ledger's thread answers. However many ask, it has a few looks to take at a time.
    let _turn = rpc.looks.acquire().await.expect("never closed");
    let (head, node) = rpc.parts.ledger.look(move |state, head| (head.clone(), state.node(&path))).await?;
    if let Some(wanted) = wanted.filter(|wanted| *wanted != head.height) {
        let text = format!("the head is block {}; the state after block {wanted} is not here", head.height);
        return Err(ApiError::new(StatusCode::CONFLICT, "head-moved", text));
    }
    let (account, fork) = match node {
        None => (None, None),
        Some(StateNode::Account(address, account)) => {
            (Some(AccountJson { address, balance: account.balance, nonce: account.nonce }), None)
        }
        Some(StateNode::Fork { path, below }) => {
            let below = below.into_iter().map(|(step, hash)| (format!("{step:x}"), hash)).collect();
            (None, Some(ForkJson { path: path.to_string(), below }))
        }
    };
    Ok(Json(NodeJson { height: head.height, hash: head.hash, state_root: head.state_root, account, fork }))
}
