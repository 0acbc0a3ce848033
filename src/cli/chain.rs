//! `tenon chain`: blocks and transactions, and whether they hold.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use tenon::chain::{Block, Genesis, Head, Height, State, Time, execute, rules, verify};

use super::http::Node;
use super::output::Output;
use super::state;
use super::transact::POLL;
use super::{At, Global, Outcome};

/// Blocks and transactions.
#[derive(Args)]
pub struct Chain {
    #[command(flatten)]
    at: At,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The newest block
    Head,
    /// The newest block's height, a bare number
    Height,
    /// One block with its transactions
    Block {
        /// Its height or hash
        id: String,
    },
    /// Blocks one after the other, without transactions
    Blocks {
        /// The first height [default: so that there are --limit up to the last]
        #[arg(long)]
        start: Option<Height>,
        /// The last height [default: the head]
        #[arg(long)]
        end: Option<Height>,
        /// How many
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
        limit: u64,
    },
    /// One transaction
    Tx {
        /// Its hash
        hash: String,
    },
    /// Reads the whole chain and computes all of it again: hashes, signatures, rules, state roots
    Verify {
        /// Stop at this height [default: the head]
        #[arg(long, conflicts_with_all = ["full", "against"])]
        end: Option<Height>,
        /// Compare every account of the node with what the blocks make, too
        #[arg(long)]
        full: bool,
        /// Compare the node's accounts with those of another node, and name the ones that differ; without --full the blocks
        /// are not read
        #[arg(long, value_name = "URL")]
        against: Option<String>,
        /// How many seconds the two nodes may take to be at the same height
        #[arg(long, default_value_t = 30, requires = "against")]
        timeout: u64,
    },
}

impl Chain {
    pub async fn run(self, global: &Global, output: &Output) -> Result<Outcome> {
        let node = &global.node(self.at.dir()?)?;
        match self.command {
            Command::Head => output.record(&node.get("/rpc/head").await?),
            Command::Height => output.line(height(node).await?.to_string()),
            Command::Block { id } => block(&node.get(&format!("/rpc/blocks/{id}")).await?, output),
            Command::Blocks { start, end, limit } => {
                let end = match end {
                    Some(end) => end,
                    None => start.map_or(height(node).await?, |start| start.saturating_add(limit - 1)),
                };
                let start = start.unwrap_or(end.saturating_sub(limit - 1));
                let path = format!("/rpc/blocks-range?start={start}&end={end}&include_tx=false");
                let answer = node.get(&path).await?;
                let blocks = answer.get("blocks").and_then(Value::as_array).cloned().unwrap_or_default();
                output.list(&blocks, &BLOCK_COLUMNS);
            }
            Command::Tx { hash } => output.record(&node.get(&format!("/rpc/transaction/{hash}")).await?),
            Command::Verify { end, full, against, timeout } => {
                if (full || against.is_none()) && chain(node, end, full, output).await? == Outcome::DoesNotHold {
                    return Ok(Outcome::DoesNotHold);
                }
                if let Some(url) = against {
                    let compared = state::compare_nodes(node, &Node::new(&url)?, Duration::from_secs(timeout)).await?;
                    if output.is_json() {
                        output.json(&compared.json());
                    } else {
                        compared.print(output);
                    }
                    return Ok(compared.outcome());
                }
            }
        }
        Ok(Outcome::Done)
    }
}

const BLOCK_COLUMNS: [(&str, &str); 5] = [
    ("height", "/height"),
    ("timestamp", "/timestamp"),
    ("txs", "/tx_count"),
    ("hash", "/hash"),
    ("state root", "/state_root"),
];

async fn height(node: &Node) -> Result<Height> {
    let head = node.get("/rpc/head").await?;
    head.get("height").and_then(Value::as_u64).context("the node's head has no height")
}

/// A block: its header, then a row a transaction.
fn block(block: &Value, output: &Output) {
    if output.is_json() {
        return output.json(block);
    }
    let mut header = block.clone();
    let transactions = header.as_object_mut().and_then(|fields| fields.remove("transactions")).unwrap_or_default();
    output.record(&header);
    if let Some(transactions) = transactions.as_array().filter(|transactions| !transactions.is_empty()) {
        let columns = [
            ("type", "/type"),
            ("from", "/from"),
            ("to", "/to"),
            ("amount", "/amount"),
            ("fee", "/fee"),
            ("hash", "/tx_hash"),
        ];
        output.line("");
        output.list(transactions, &columns);
    }
}

/// Computes the chain again from genesis, trusting the node with nothing but the blocks' bytes.
async fn chain(node: &Node, end: Option<Height>, full: bool, output: &Output) -> Result<Outcome> {
    let started = Instant::now();
    let genesis = Genesis::parse(&node.text("/rpc/genesis").await?)?;
    let mut checker =
        Checker { head: Head::from(&genesis.block().header), state: genesis.state(), transactions: 0, genesis };
    let mut end = end.unwrap_or(height(node).await?);
    let bar = output.progress(end, "verifying");
    let accounts = loop {
        if checker.head.height >= end {
            if !full {
                break None;
            }
            let Checker { head, state, .. } = &mut checker;
            if let Some(compared) = state::compare_computed(node, head.height, &head.hash, state).await? {
                break Some(compared);
            }
            // The node has gone on meanwhile, and so do we.
            end = height(node).await?.max(end);
            bar.set_length(end);
            if checker.head.height >= end {
                tokio::time::sleep(POLL).await;
                continue;
            }
        }
        let blocks = blocks(node, checker.head.height + 1, end).await?;
        ensure!(!blocks.is_empty(), "the node has no block {}", checker.head.height + 1);
        if let Err(error) = checker.add(blocks) {
            bar.abandon();
            if output.is_json() {
                output.json(&json!({ "valid": false, "height": checker.head.height + 1, "reason": error.to_string() }));
            } else {
                output.line(format!("block {} does not hold: {error:#}", checker.head.height + 1));
            }
            return Ok(Outcome::DoesNotHold);
        }
        bar.set_position(checker.head.height);
    };
    bar.finish_and_clear();
    let head = &checker.head;
    let mut answer = json!({
        "valid": true, "height": head.height, "hash": head.hash, "state_root": head.state_root,
        "transactions": checker.transactions, "seconds": (started.elapsed().as_secs_f64() * 100.0).round() / 100.0,
    });
    if let Some(accounts) = accounts.as_ref().filter(|_| output.is_json()) {
        answer["accounts"] = accounts.json();
    }
    output.record(&answer);
    if let Some(accounts) = accounts.as_ref().filter(|_| !output.is_json()) {
        accounts.print(output);
    }
    Ok(accounts.map_or(Outcome::Done, |accounts| accounts.outcome()))
}

/// What is known of a chain up to some block.
struct Checker {
    genesis: Genesis,
    head: Head,
    state: State,
    transactions: u64,
}

impl Checker {
    /// Follows `blocks`. Errors: what does not hold in the block after the head.
    fn add(&mut self, blocks: Vec<Block>) -> Result<()> {
        for block in verify::verify_all(blocks, &self.genesis) {
            let block = block?.into_block();
            rules::check_child(&self.head, &block.header, &self.genesis, Time::now())?;
            self.state.apply(
                &execute::execute(&self.state, &self.genesis, &block.transactions)
                    .map_err(|error| anyhow::anyhow!("{error:?}"))?,
            );
            let (root, claimed) = (self.state.root(), block.header.state_root);
            ensure!(root == claimed, "its state root is {claimed}, its transactions make it {root}");
            self.transactions += u64::from(block.header.tx_count);
            self.head = Head::from(&block.header);
        }
        Ok(())
    }
}

/// Blocks from `first` on, as many as the node gives at once.
async fn blocks(node: &Node, first: Height, end: Height) -> Result<Vec<Block>> {
    let path = format!("/rpc/blocks-range?start={first}&end={}&include_tx=true", end.min(first + 999));
    let (bytes, _) = node.bytes(&path, "application/vnd.tenon.blocks", "x-tenon-head").await?;
    let mut rest = bytes.as_slice();
    let mut blocks = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let Some((block, after)) = after.split_at_checked(length) else {
            bail!("the node's answer ends within a block")
        };
        blocks.push(
            Block::decode(block).map_err(|error| anyhow::anyhow!("block {}: {error}", first + blocks.len() as u64))?,
        );
        rest = after;
    }
    ensure!(rest.is_empty(), "the node's answer ends within a length");
    Ok(blocks)
}
