//! Making transactions: whose key, which nonce, what fee; handing them in and following them into a block.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use tenon::chain::{Address, Kind, Payload, Transaction};
use tenon::wallet::{PASSWORD_FILE, Wallet, read_password};

use super::Keys;
use super::http::Node;

/// How often a waiting command asks.
pub const POLL: Duration = Duration::from_millis(200);

/// What to send.
pub struct Order {
    /// What it is.
    pub kind: Kind,
    /// To whom.
    pub to: Address,
    /// How much.
    pub amount: u64,
    /// What to pay for it; the chain's least where it is not said.
    pub fee: Option<u64>,
    /// Its nonce; the next one where it is not said.
    pub nonce: Option<u64>,
    /// With what.
    pub payload: Payload,
}

impl Keys {
    /// The folder with the keys.
    pub fn keystore(&self) -> PathBuf {
        self.keystore.clone().unwrap_or_else(|| self.dir.join("keystore"))
    }

    /// The file with their password.
    pub fn password_file(&self) -> PathBuf {
        self.password_file.clone().unwrap_or_else(|| self.keystore().join(PASSWORD_FILE))
    }

    /// Opens the wallet `name`.
    pub fn open(&self, name: &str) -> Result<Wallet> {
        let path = Wallet::path(&self.keystore(), name)?;
        if !path.is_file() {
            bail!("no wallet `{name}` in {}; `tenon wallet list` shows those there are", self.keystore().display());
        }
        let password = read_password(&self.password_file())
            .context("the keystore's password; --password-file names another file")?;
        Ok(Wallet::open(&path, &password)?)
    }

    /// An address, or that of the wallet with this name; no password is needed.
    pub fn address(&self, text: &str) -> Result<Address> {
        if text.starts_with("ait1") {
            return Ok(text.parse()?);
        }
        let keystore = self.keystore();
        let path = Wallet::path(&keystore, text)?;
        let listed = if path.is_file() { Wallet::list(&keystore)? } else { Vec::new() };
        match listed.into_iter().find(|wallet| wallet.name == text) {
            Some(wallet) => Ok(wallet.address?),
            None => bail!(
                "`{text}` is no address (ait1 and 40 digits), and no wallet in {} is called so",
                keystore.display()
            ),
        }
    }
}

/// Signs `order` with `wallet` and hands it in; answers its hash.
///
/// Errors: the account cannot pay for it (said here, with the numbers), or the node refuses it.
pub async fn submit(node: &Node, wallet: &Wallet, order: Order) -> Result<String> {
    let from = wallet.address;
    let info = node.get("/rpc/info").await?;
    let chain_id =
        info.get("chain_id").and_then(Value::as_str).context("the node does not say its chain id")?.to_owned();
    let fee = order
        .fee
        .or(info.get("min_fee").and_then(Value::as_u64))
        .context("the node does not say its least fee; --fee does")?;
    let account = node.get(&format!("/rpc/accounts/{from}")).await?;
    let number = |name: &str| account.get(name).and_then(Value::as_u64).unwrap_or(0);
    let needed = order.amount.checked_add(fee).context("amount and fee together are more than there can be")?;
    if number("balance") < needed {
        bail!("{from} has {}, and needs {needed}: {} and a fee of {fee}", number("balance"), order.amount);
    }
    // The node counts what waits for a block already.
    let nonce = order.nonce.unwrap_or_else(|| number("next_nonce").max(number("nonce")));
    let transaction = Transaction::new(order.kind, order.to, order.amount, fee, nonce, order.payload);
    let body = transaction.signed(&chain_id, &wallet.key).to_submission(&chain_id);
    let answer = node.post_text("/rpc/transaction", body).await?;
    let hash = answer.get("transaction_hash").and_then(Value::as_str);
    Ok(hash.context("the node took the transaction but named no hash")?.to_owned())
}

/// Follows a transaction until it is in a block; answers it as the node shows it.
///
/// Errors: it was dropped (with the reason), or `patience` has run out.
pub async fn wait(node: &Node, hash: &str, patience: Duration) -> Result<Value> {
    let started = Instant::now();
    loop {
        let found = node.find(&format!("/rpc/transaction/{hash}")).await?;
        let status = found.as_ref().and_then(|found| found.get("status")?.as_str().map(str::to_owned));
        match (status.as_deref(), found) {
            (Some("confirmed"), Some(found)) => return Ok(found),
            (Some("dropped"), Some(found)) => {
                let reason = found.get("reason").and_then(Value::as_str).unwrap_or("no reason given");
                bail!("the transaction was dropped: {reason}");
            }
            _ if started.elapsed() > patience => {
                bail!("{hash} is in no block after {} s; it may still get there", patience.as_secs());
            }
            _ => tokio::time::sleep(POLL).await,
        }
    }
}
