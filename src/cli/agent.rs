//! `tenon agent`: messages on the chain.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use tenon::chain::{Address, Kind, Payload};

use super::http::{ClientError, Node};
use super::output::Output;
use super::transact::{self, Order};
use super::wallet::whole;
use super::{Global, Keys, Outcome};

/// Messages on the chain.
#[derive(Args)]
pub struct Agent {
    #[command(flatten)]
    keys: Keys,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sends a message
    Send {
        /// The wallet that sends and pays the fee
        #[arg(long)]
        wallet: String,
        /// To whom: an address or a wallet's name
        #[arg(long)]
        to: String,
        /// What to say
        text: String,
        /// The text is a JSON object
        #[arg(long)]
        json: bool,
        /// What to pay for it [default: the chain's least]
        #[arg(long, value_parser = whole)]
        fee: Option<u64>,
        /// Wait until it is in a block
        #[arg(long)]
        wait: bool,
        /// How many seconds to wait
        #[arg(long, default_value_t = 60)]
        timeout: u64,
    },
    /// The messages to and from an address, oldest first
    Messages {
        /// Whose: a wallet's name
        #[arg(long, required_unless_present = "address", conflicts_with = "address")]
        wallet: Option<String>,
        /// Whose: an address
        #[arg(long)]
        address: Option<Address>,
        /// Only those after this cursor
        #[arg(long, value_name = "CURSOR")]
        after: Option<String>,
        /// How many at once
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// Go on with those that come
        #[arg(long)]
        follow: bool,
    },
}

impl Agent {
    pub async fn run(self, global: &Global, output: &Output) -> Result<Outcome> {
        let Self { keys, command } = self;
        let node = global.node(Some(&keys.dir))?;
        match command {
            Command::Send { wallet, to, text, json, fee, wait, timeout } => {
                let to = keys.address(&to)?;
                let wallet = keys.open(&wallet)?;
                let payload = match json {
                    true => Payload::object(&text).map_err(|reason| anyhow::anyhow!("the text: {reason}"))?,
                    false => Payload::Text(text),
                };
                let order = Order { kind: Kind::Message, to, amount: 0, fee, nonce: None, payload };
                let hash = transact::submit(&node, &wallet, order).await?;
                let mut shown = json!({ "hash": hash, "status": "pending" });
                if wait {
                    let found = transact::wait(&node, &hash, Duration::from_secs(timeout)).await?;
                    shown["status"] = "confirmed".into();
                    shown["height"] = found.get("block_height").cloned().unwrap_or_default();
                }
                output.record(&shown);
            }
            Command::Messages { wallet, address, after, limit, follow } => {
                let address = match (address, wallet) {
                    (Some(address), _) => address,
                    (None, Some(wallet)) => keys.address(&wallet)?,
                    (None, None) => bail!("--wallet or --address says whose messages"),
                };
                messages(&node, &address, after, limit, follow, output).await?;
            }
        }
        Ok(Outcome::Done)
    }
}

async fn messages(
    node: &Node,
    address: &Address,
    mut after: Option<String>,
    limit: u32,
    follow: bool,
    output: &Output,
) -> Result<()> {
    loop {
        let page = match page(node, address, after.as_deref(), limit).await {
            Ok(page) => page,
            // The chain has moved to another branch: what follows is that one's mail from where they part.
            Err(ClientError::Refused { detail, next: Some(next), .. }) if after.as_ref() != Some(&next) => {
                output.note(&detail);
                after = Some(next);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        for message in &page.messages {
            if output.is_json() { output.json(message) } else { output.line(line(message, address)) }
        }
        let moved = page.next.is_some() && page.next != after && !page.messages.is_empty();
        after = page.next.or(after);
        if !moved && !follow {
            return Ok(());
        }
        if !moved {
            tokio::time::sleep(transact::POLL).await;
        }
    }
}

/// A page of messages, and where to go on.
pub struct Page {
    /// The messages, oldest first.
    pub messages: Vec<Value>,
    /// The cursor after the last of them.
    pub next: Option<String>,
}

/// The messages to and from `address` after a cursor.
pub async fn page(node: &Node, address: &Address, after: Option<&str>, limit: u32) -> Result<Page, ClientError> {
    let after = after.map_or_else(String::new, |after| format!("&after={after}"));
    let answer = node.get(&format!("/rpc/messages?address={address}&limit={limit}{after}")).await?;
    let messages = answer.get("messages").and_then(Value::as_array).cloned().unwrap_or_default();
    let next = answer.get("next").and_then(Value::as_str).map(str::to_owned);
    Ok(Page { messages, next })
}

/// One message on one line, from the point of view of `address`.
fn line(message: &Value, address: &Address) -> String {
    let field = |name: &str| message.get(name).and_then(Value::as_str).unwrap_or("?").to_owned();
    let (from, to) = (field("from"), field("to"));
    let direction = if from == address.to_string() { format!("to   {to}") } else { format!("from {from}") };
    let text = match message.get("payload") {
        Some(Value::String(text)) => text.clone(),
        Some(payload) => payload.to_string(),
        None => String::new(),
    };
    format!("{}  {direction}  {text}", field("timestamp"))
}
