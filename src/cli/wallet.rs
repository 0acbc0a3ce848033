//! `tenon wallet`: keys, balances, transfers.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use tenon::chain::{Kind, Payload};
use tenon::wallet::{Wallet as Keystore, create_password, read_password};

use super::output::Output;
use super::transact::{self, Order};
use super::{Global, Keys, Outcome};

/// Keys, balances, transfers.
#[derive(Args)]
pub struct Wallet {
    #[command(flatten)]
    keys: Keys,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a new key
    Create {
        /// Its name: letters, digits, `-`, `_`, `.`
        name: String,
    },
    /// The wallets in the keystore
    List,
    /// What an account has
    Balance {
        /// A wallet's name or an address
        account: String,
    },
    /// Sends an amount
    Send {
        /// The wallet that pays
        from: String,
        /// Who gets it: an address or a wallet's name
        to: String,
        /// How much, a whole number
        #[arg(value_parser = whole)]
        amount: u64,
        /// What to pay for it [default: the chain's least]
        #[arg(long, value_parser = whole)]
        fee: Option<u64>,
        /// Its nonce [default: the next one]
        #[arg(long)]
        nonce: Option<u64>,
        /// Wait until it is in a block
        #[arg(long)]
        wait: bool,
        /// How many seconds to wait
        #[arg(long, default_value_t = 60)]
        timeout: u64,
    },
    /// What an account sent and got, newest first
    Transactions {
        /// A wallet's name or an address
        account: String,
        /// How many
        #[arg(long, default_value_t = 10)]
        limit: u32,
    },
}

/// Amounts and fees: whole numbers that are not negative.
pub fn whole(text: &str) -> Result<u64, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map_err(|_| format!("{text} is above the largest value, {}", u64::MAX));
    }
    Err("expected a whole number that is not negative".to_owned())
}

impl Wallet {
    pub async fn run(self, global: &Global, output: &Output) -> Result<Outcome> {
        let Self { keys, command } = self;
        match command {
            Command::Create { name } => create(&keys, &name, output)?,
            Command::List => list(&keys, output)?,
            Command::Balance { account } => {
                let address = keys.address(&account)?;
                output.record(&global.node(&keys.dir)?.get(&format!("/rpc/accounts/{address}")).await?);
            }
            Command::Send { from, to, amount, fee, nonce, wait, timeout } => {
                let node = global.node(&keys.dir)?;
                let to = keys.address(&to)?;
                let wallet = keys.open(&from)?;
                let order = Order { kind: Kind::Transfer, to, amount, fee, nonce, payload: Payload::Absent };
                let hash = transact::submit(&node, &wallet, order).await?;
                let mut shown = json!({ "hash": hash, "status": "pending" });
                if wait {
                    output.note(format!("{hash} handed in, waiting for a block"));
                    let found = transact::wait(&node, &hash, Duration::from_secs(timeout)).await?;
                    shown["status"] = "confirmed".into();
                    shown["height"] = found.get("block_height").cloned().unwrap_or_default();
                }
                output.record(&shown);
            }
            Command::Transactions { account, limit } => {
                let address = keys.address(&account)?;
                let path = format!("/rpc/transactions?address={address}&limit={limit}");
                let answer = global.node(&keys.dir)?.get(&path).await?;
                let transactions = answer.get("transactions").and_then(Value::as_array).cloned().unwrap_or_default();
                output.list(&transactions, &COLUMNS);
                tell_base(&answer);
            }
        }
        Ok(Outcome::Done)
    }
}

/// Says, beside the answer, that a list begins where the node's whole blocks do.
pub fn tell_base(answer: &Value) {
    if let Some(base) = answer.get("base").and_then(Value::as_u64).filter(|base| *base > 0) {
        eprintln!(
            "note: this node began with a snapshot; what was before block {base} is not here, other nodes may have it"
        );
    }
}

/// What of a transaction is shown.
const COLUMNS: [(&str, &str); 8] = [
    ("height", "/block_height"),
    ("status", "/status"),
    ("type", "/type"),
    ("from", "/from"),
    ("to", "/to"),
    ("amount", "/amount"),
    ("fee", "/fee"),
    ("hash", "/hash"),
];

fn create(keys: &Keys, name: &str, output: &Output) -> Result<()> {
    let file = keys.password_file();
    let password = if file.exists() { read_password(&file)? } else { create_password(&file)? };
    let wallet = Keystore::create(&keys.keystore(), name, &password)?;
    let path = Keystore::path(&keys.keystore(), name)?;
    output.record(&json!({ "name": wallet.name, "address": wallet.address, "file": path }));
    Ok(())
}

fn list(keys: &Keys, output: &Output) -> Result<()> {
    let wallets: Vec<Value> = Keystore::list(&keys.keystore())?
        .into_iter()
        .map(|wallet| match wallet.address {
            Ok(address) => json!({ "name": wallet.name, "address": address, "file": wallet.path }),
            Err(error) => json!({ "name": wallet.name, "error": error.to_string(), "file": wallet.path }),
        })
        .collect();
    if wallets.is_empty() {
        output.note(format!("no wallets in {}; `tenon wallet create NAME` makes one", keys.keystore().display()));
    }
    let has_error = wallets.iter().any(|wallet| wallet.get("error").is_some());
    let columns = [("name", "/name"), ("address", "/address"), ("error", "/error")];
    if output.is_json() || !wallets.is_empty() {
        output.list(&wallets, if has_error { &columns } else { &columns[..2] });
    }
    Ok(())
}
