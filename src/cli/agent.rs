//! `tenon agent`: messages on the chain, and through the admin API how a node's agents stand.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Value, json};

use tenon::chain::{Address, Kind, Payload};

use super::http::{ClientError, Node};
use super::output::{Output, zoned};
use super::plugin::Admin;
use super::transact::{self, Order};
use super::wallet::{tell_base, whole};
use super::{Global, Keys, Outcome};

/// Messages on the chain; the agents that answer them.
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
    #[command(group(ArgGroup::new("whose").required(true).args(["wallet", "address"])))]
    Messages {
        /// Whose: a wallet's name
        #[arg(long)]
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
    /// The agents of a node, and how each stands
    List {
        #[command(flatten)]
        operator: Operator,
    },
    /// What an agent has set aside, oldest first, and why
    Parked {
        /// The agent [default: each]
        name: Option<String>,
        /// Only those with a greater id
        #[arg(long, value_name = "ID")]
        after: Option<u64>,
        /// How many at once
        #[arg(long, default_value_t = 100)]
        limit: u32,
        #[command(flatten)]
        operator: Operator,
    },
    /// Hands what an agent has set aside to its handler again, with the next block
    Retry {
        /// The agent [default: each]
        name: Option<String>,
        /// Only the event with this id, see `parked`
        #[arg(long, requires = "name")]
        id: Option<u64>,
        #[command(flatten)]
        operator: Operator,
    },
}

/// What opens the admin API, where that is not the one of the node in `--dir`.
#[derive(Args)]
struct Operator {
    /// The admin API's address, for a node elsewhere
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// The admin token [default: the one in the node's directory]
    #[arg(long)]
    token: Option<String>,
}

impl Operator {
    fn node(self, keys: &Keys) -> Result<Node> {
        Admin::at(&keys.dir, self.admin, self.token).node()
    }
}

/// What of an agent is shown.
const AGENTS: [(&str, &str); 8] = [
    ("agent", "/name"),
    ("wallet", "/wallet"),
    ("handled", "/handled"),
    ("waiting", "/waiting"),
    ("parked", "/parked"),
    ("for a handler", "/unheard"),
    ("refused", "/refused"),
    ("replies pending", "/replies_pending"),
];

/// What of an event is shown.
const EVENTS: [(&str, &str); 8] = [
    ("agent", "/agent"),
    ("id", "/id"),
    ("height", "/height"),
    ("from", "/from"),
    ("timer", "/timer"),
    ("text", "/text"),
    ("for a handler", "/unheard"),
    ("reason", "/reason"),
];

/// What of a retry is shown.
const RETRIES: [(&str, &str); 2] = [("agent", "/agent"), ("retried", "/retried")];

impl Agent {
    pub async fn run(self, global: &Global, output: &Output) -> Result<Outcome> {
        let Self { keys, command } = self;
        let node = || global.node(&keys.dir);
        match command {
            Command::Send { wallet, to, text, json, fee, wait, timeout } => {
                let (node, to) = (node()?, keys.address(&to)?);
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
                messages(&node()?, &address, after, limit, follow, output).await?;
            }
            Command::List { operator } => {
                let agents = operator.node(&keys)?.get("/admin/agents").await?;
                output.list(agents.as_array().map_or(&[], Vec::as_slice), &AGENTS);
            }
            Command::Parked { name, after, limit, operator } => {
                let after = after.map_or_else(String::new, |after| format!("&after={after}"));
                let admin = operator.node(&keys)?;
                let (mut events, mut more) = (Vec::new(), Vec::new());
                for name in named(&admin, name).await? {
                    let mut page = admin.get(&path(&name, &format!("parked?limit={limit}{after}"))).await?;
                    for event in page["events"].as_array_mut().into_iter().flatten() {
                        event["agent"] = name.as_str().into();
                        events.push(event.take());
                    }
                    more.extend(page["next"].as_i64().map(|next| format!("{name} has more: --after {next}")));
                }
                output.list(&events, &EVENTS);
                more.iter().for_each(|more| output.note(more));
            }
            Command::Retry { name, id, operator } => {
                let admin = operator.node(&keys)?;
                let mut retries = Vec::new();
                for name in named(&admin, name).await? {
                    retries.push(admin.post(&path(&name, "retry"), &json!({ "id": id })).await?);
                }
                output.list(&retries, &RETRIES);
            }
        }
        Ok(Outcome::Done)
    }
}

/// Where an agent is asked about or changed. A name is text of any kind.
fn path(name: &str, rest: &str) -> String {
    let name: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect();
    // That is for forms, where a space is a plus.
    format!("/admin/agents/{}/{rest}", name.replace('+', "%20"))
}

/// The agent that is named, else every one of the node.
async fn named(admin: &Node, name: Option<String>) -> Result<Vec<String>, ClientError> {
    if let Some(name) = name {
        return Ok(vec![name]);
    }
    let agents = admin.get("/admin/agents").await?;
    let name = |agent: &Value| agent["name"].as_str().map(str::to_owned);
    Ok(agents.as_array().map_or_else(Vec::new, |agents| agents.iter().filter_map(name).collect()))
}

async fn messages(
    node: &Node,
    address: &Address,
    mut after: Option<String>,
    limit: u32,
    follow: bool,
    output: &Output,
) -> Result<()> {
    let mut is_first = after.is_none();
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
        if std::mem::take(&mut is_first) {
            tell_base(&page.answer);
        }
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
    /// All that the node said.
    answer: Value,
}

/// The messages to and from `address` after a cursor.
pub async fn page(node: &Node, address: &Address, after: Option<&str>, limit: u32) -> Result<Page, ClientError> {
    let after = after.map_or_else(String::new, |after| format!("&after={after}"));
    let answer = node.get(&format!("/rpc/messages?address={address}&limit={limit}{after}")).await?;
    let messages = answer.get("messages").and_then(Value::as_array).cloned().unwrap_or_default();
    let next = answer.get("next").and_then(Value::as_str).map(str::to_owned);
    Ok(Page { messages, next, answer })
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
    format!("{}  {direction}  {text}", zoned(&field("timestamp")))
}
