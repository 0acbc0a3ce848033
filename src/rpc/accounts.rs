//! `/rpc/accounts/{address}`.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;

use super::Rpc;
use super::error::{ApiError, Result};
use super::request::Params;
use crate::chain::{Address, PublicKey};

#[derive(Serialize)]
pub(super) struct AccountJson {
    address: Address,
    balance: u64,
    /// The lowest nonce that the chain accepts next.
    nonce: u64,
    exists: bool,
    /// The lowest nonce above those that wait in the mempool.
    next_nonce: u64,
    /// Known once the account has sent something.
    public_key: Option<PublicKey>,
    chain_id: String,
}

/// An address that nothing was ever sent to has nothing: that is no error.
pub(super) async fn account(
    State(rpc): State<Rpc>,
    path: Result<Path<String>, PathRejection>,
    params: Params,
) -> Result<Json<AccountJson>> {
    let Path(text) = path.map_err(|error| ApiError::invalid(error.body_text()))?;
    let address: Address = text.parse().map_err(|error| ApiError::field("address", error))?;
    params.only(&[], rpc.chain_id())?;
    let account = rpc.parts.ledger.storage().read_brief(move |reader| reader.account(&address)).await?;
    let pending = rpc.parts.mempool.pending_of(&address);
    let highest = pending.iter().filter(|p| p.transaction.from() == address).map(|p| p.transaction.nonce).max();
    let nonce = account.as_ref().map_or(0, |account| account.nonce);
    Ok(Json(AccountJson {
        address,
        balance: account.as_ref().map_or(0, |account| account.balance),
        nonce,
        exists: account.is_some(),
        next_nonce: highest.map_or(nonce, |highest| nonce.max(highest.saturating_add(1))),
        public_key: account.and_then(|account| account.public_key),
        chain_id: rpc.chain_id().to_owned(),
    }))
}
