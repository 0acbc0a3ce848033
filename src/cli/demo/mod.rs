//! `tenon demo`: the main job on real input, measured. Two nodes as processes of their own, a chain of really signed
//! transactions, a catch-up and a load during which plugins are swapped, and a ping that is answered across the nodes.
//!
//! Nothing here reaches into a node: what is claimed at the end was read from the nodes' own routes.

mod load;
mod nodes;
mod prepare;
mod swap;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use tenon::chain::{Address, Kind, Payload};
use tenon::wallet::{PASSWORD_FILE, Wallet, read_password};

use super::http::Node;
use super::output::Output;
use super::plugin::shipped_folder;
use super::sync::Status;
use super::transact::{self, Order};
use super::{Outcome, agent};
use nodes::Running;
use swap::{Slot, Swap};

/// Followers that are started at most, until one has its strategy swapped while it catches up.
const ATTEMPTS: u32 = 3;

/// Shows it all at work.
#[derive(Args)]
pub struct Demo {
    /// Blocks of the authority's chain at least; more are made until the chain is long enough to swap on the way
    #[arg(long, default_value_t = 4_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    blocks: u64,
    /// Transactions in each of them
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(0..=1_000))]
    transactions: u64,
    /// Leave the nodes running at the end, and say where
    #[arg(long)]
    keep: bool,
}

/// What came out, and what of it does not hold.
#[derive(Default)]
struct Findings {
    /// Name in JSON, text for people, value.
    figures: Vec<(&'static str, &'static str, Value)>,
    failed: Vec<String>,
}

impl Findings {
    fn figure(&mut self, name: &'static str, text: &'static str, value: impl Into<Value>) {
        self.figures.push((name, text, value.into()));
    }

    fn expect(&mut self, holds: bool, what: impl Into<String>) {
        if !holds {
            self.failed.push(what.into());
        }
    }
}

impl Demo {
    pub async fn run(self, output: &Output) -> Result<Outcome> {
        let keep = self.keep;
        let dir = tempfile::Builder::new().prefix("tenon-demo-").tempdir().context("creating a temporary folder")?;
        let root = dir.path().to_owned();
        let shown = tokio::select! {
            shown = self.show(&root, output) => shown,
            // Whoever stops us stops the nodes too: they go with what is dropped here.
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            () = terminated() => bail!("terminated"),
        };
        let (findings, [authority, follower]) = match shown {
            Ok(shown) => shown,
            Err(error) => {
                let logs = nodes::last_lines(&root);
                return Err(error.context(format!("the demo broke off{logs}")));
            }
        };
        report(&findings, output);
        if keep {
            let root = dir.keep();
            let lines = [&authority, &follower].map(|node| {
                format!(
                    "{:9} http://{}  admin http://{}  pid {}",
                    node.name, node.addresses.rpc, node.addresses.admin, node.addresses.pid
                )
            });
            if output.is_json() {
                eprintln!("{}\nin {}", lines.join("\n"), root.display());
            } else {
                output.line(format!(
                    "\nthe nodes go on, in {}; `kill PID` ends one:\n{}",
                    root.display(),
                    lines.join("\n")
                ));
            }
            authority.leave();
            follower.leave();
        } else {
            follower.stop().await?;
            authority.stop().await?;
        }
        Ok(if findings.failed.is_empty() { Outcome::Done } else { Outcome::DoesNotHold })
    }

    async fn show(self, root: &Path, output: &Output) -> Result<(Findings, [Running; 2])> {
        let mut findings = Findings::default();
        let Some(shipped) = shipped_folder()? else {
            bail!("found no shipped plugins; `make plugins` builds them, TENON_PLUGINS names their folder");
        };
        let component = |name: &str| {
            let path = shipped.join(format!("{name}.wasm"));
            std::fs::read(&path).with_context(|| format!("reading {}; `make plugins` builds it", path.display()))
        };
        let authority_dir = root.join("authority");
        let chain = prepare::authority(&authority_dir, self.blocks, self.transactions, output).await?;
        findings.figure("blocks", "blocks of the chain", chain.blocks);
        findings.figure("transactions", "signed transactions in them", chain.transactions);

        let authority = Running::start("authority", &authority_dir, self.keep).await?;
        let follower_dir = root.join("follower");
        let mut attempt = 1;
        let follower = loop {
            prepare::follower(&follower_dir, &authority.node).await?;
            // While its file is not there, the built-in serves the slot.
            std::fs::remove_file(follower_dir.join("plugins/parallel-range.wasm")).context("the follower's plugins")?;
            let follower = Running::start("follower", &follower_dir, self.keep).await?;
            output.note(format!("authority at {}, follower at {}", authority.node.url(), follower.node.url()));
            let component = component("parallel-range")?;
            let caught_up = catch_up(&follower, &follower_dir, chain.blocks, component, output).await?;
            if caught_up.swapped_on_the_way() || attempt == ATTEMPTS {
                caught_up.record(&mut findings, output);
                break follower;
            }
            // Compiling took longer than catching up, on a machine that has much else to do.
            output.note(format!("a swap came when all {} blocks were there; once more", chain.blocks));
            attempt += 1;
            follower.stop().await?;
            std::fs::remove_dir_all(&follower_dir).context("clearing the follower away")?;
        };
        let swaps = [
            Swap::Use("sliding-window"),
            Swap::Use("allow-all"),
            Swap::File("allow-all", component("allow-all")?),
            Swap::Use("token-bucket"),
            Swap::File("token-bucket", component("token-bucket")?),
        ];
        load_while_swapping(&authority, &authority_dir, chain.blocks, swaps, &mut findings, output).await?;
        ping(&authority_dir, &follower, &mut findings, output).await?;
        same_state(&authority.node, &follower.node, &mut findings).await?;
        Ok((findings, [authority, follower]))
    }
}

/// The follower catches up from block 0, and its strategy is swapped twice on the way by files that appear.
async fn catch_up(follower: &Running, dir: &Path, blocks: u64, strategy: Vec<u8>, output: &Output) -> Result<CaughtUp> {
    let slot = Slot::new(&follower.admin, "sync", dir);
    let started = Instant::now();
    let bar = output.progress(blocks, "catching up");
    let restamped = tenon_build::restamp(&strategy, "demo");
    let mut swaps = vec![
        // Built-in to plugin early, plugin to its next version when a third is there.
        (blocks / 3, Swap::Bytes("parallel-range", restamped)),
        (blocks / 50, Swap::Bytes("parallel-range", strategy)),
    ];
    let mut under_way: Option<tokio::task::JoinHandle<Result<u64>>> = None;
    let mut heights = Vec::new();
    loop {
        let status = Status::of(&follower.node).await?;
        bar.set_position(status.head.min(blocks));
        if under_way.as_ref().is_some_and(tokio::task::JoinHandle::is_finished)
            && let Some(swap) = under_way.take()
        {
            let generation = swap.await??;
            // Read anew: the new generation was seen live before this height was.
            let height = Status::of(&follower.node).await?.head;
            bar.println(format!(
                "strategy swapped at height {height}: generation {generation} of parallel-range serves"
            ));
            heights.push(height);
        }
        if under_way.is_none() && swaps.last().is_some_and(|(height, _)| status.head >= *height) {
            let (_, swap) = swaps.pop().expect("there is a last one");
            let slot = slot.clone();
            under_way = Some(tokio::spawn(async move { slot.swap(swap).await }));
        }
        if status.head >= blocks && under_way.is_none() && swaps.is_empty() {
            break;
        }
        if started.elapsed() > Duration::from_secs(120) {
            bail!("the follower is at {} of {blocks} after 120 s, {}", status.head, status.state);
        }
        if status.head >= blocks {
            bar.set_message("waiting for the last swap");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bar.finish_and_clear();
    let caught_up = nodes::until_live(&follower.node, Duration::from_secs(30)).await?;
    let refused = caught_up.answer.get("refused_actions").and_then(Value::as_u64).unwrap_or(0);
    Ok(CaughtUp { blocks, seconds: started.elapsed().as_secs_f64(), heights, refused })
}

/// How the follower caught up.
struct CaughtUp {
    blocks: u64,
    seconds: f64,
    /// Where it was when a swap of its strategy was seen.
    heights: Vec<u64>,
    /// Actions of the strategies that were refused.
    refused: u64,
}

impl CaughtUp {
    fn is_on_the_way(&self, height: u64) -> bool {
        (1..self.blocks).contains(&height)
    }

    fn swapped_on_the_way(&self) -> bool {
        self.heights.iter().all(|height| self.is_on_the_way(*height))
    }

    fn record(self, findings: &mut Findings, output: &Output) {
        let Self { blocks, seconds, ref heights, refused } = self;
        findings.figure("catch_up_seconds", "caught up in, seconds", rounded(seconds));
        findings.figure("blocks_per_second", "verified, executed, stored: blocks/s", (blocks as f64 / seconds).round());
        findings.figure("strategy_swaps", "strategy swapped, at heights", heights.clone());
        findings.expect(heights.len() == 2, format!("expected 2 swaps of the strategy, made {}", heights.len()));
        for &height in heights {
            let late = format!("a swap of the strategy came at height {height}, not between 1 and {blocks}");
            findings.expect(self.is_on_the_way(height), late);
        }
        findings.expect(refused == 0, format!("{refused} actions of the strategies were refused"));
        output.note(format!("follower caught up with {blocks} blocks in {seconds:.1} s"));
    }
}

/// Requests from many sides, and the policy that lets them through is swapped five times underneath.
async fn load_while_swapping(
    authority: &Running,
    dir: &Path,
    blocks: u64,
    swaps: [Swap; 5],
    findings: &mut Findings,
    output: &Output,
) -> Result<()> {
    /// Requests answered between two swaps at least.
    const BETWEEN: u64 = 500;
    let slot = Slot::new(&authority.admin, "rate-limit", dir);
    let before = slot.status().await?;
    let started = Instant::now();
    let load = load::Load::start(authority.node.url(), blocks)?;
    load.until(BETWEEN).await?;
    let mut made = Vec::new();
    for swap in swaps {
        let generation = slot.swap(swap).await?;
        made.push(generation);
        load.until(load.answered() + BETWEEN).await?;
    }
    let outcome = load.stop().await?;
    let after = slot.status().await?;
    let seconds = started.elapsed().as_secs_f64();
    let calls = |status: &Value| status.get("calls").and_then(Value::as_u64).unwrap_or(0);
    let failures = after.get("failures").and_then(Value::as_u64).unwrap_or(0);
    findings.figure("policy_swaps", "rate-limit policy swapped under load", made.len());
    findings.figure("requests", "requests meanwhile", outcome.requests);
    findings.figure("requests_per_second", "requests/s", (outcome.requests as f64 / seconds).round());
    findings.figure("decisions", "decisions by Wasm policies meanwhile", calls(&after).saturating_sub(calls(&before)));
    findings.figure("failed_requests", "failed requests", outcome.failed);
    findings.expect(made.len() == 5, format!("expected 5 swaps of the policy, made {}", made.len()));
    let first = outcome.first_failure.unwrap_or_default();
    findings.expect(
        outcome.failed == 0,
        format!("{} of {} requests failed; the first: {first}", outcome.failed, outcome.requests),
    );
    findings.expect(calls(&after) > calls(&before), "no request was decided by a plugin");
    findings.expect(failures == 0, format!("{failures} calls of policies failed"));
    output.note(format!("{} requests answered while the rate-limit policy was swapped 5 times", outcome.requests));
    Ok(())
}

/// `alice` sends a ping through the follower; `bob` answers on the authority; the answer is read on the follower.
async fn ping(authority: &Path, follower: &Running, findings: &mut Findings, output: &Output) -> Result<()> {
    let keystore = authority.join("keystore");
    let password = read_password(&keystore.join(PASSWORD_FILE))?;
    let alice = Wallet::open(&Wallet::path(&keystore, "alice")?, &password)?;
    let bob: Address = Wallet::open(&Wallet::path(&keystore, "bob")?, &password)?.address;
    let started = Instant::now();
    let order = Order {
        kind: Kind::Message,
        to: bob,
        amount: 0,
        fee: None,
        nonce: None,
        payload: Payload::Text("ping".into()),
    };
    let hash = transact::submit(&follower.node, &alice, order).await?;
    let mut after = None;
    let answer = 'found: loop {
        let page = agent::page(&follower.node, &alice.address, after.as_deref(), 100).await?;
        for message in page.messages {
            let is = |field: &str, text: &str| message.get(field).and_then(Value::as_str) == Some(text);
            if is("from", &bob.to_string()) && is("to", &alice.address.to_string()) {
                break 'found message;
            }
        }
        after = page.next;
        if started.elapsed() > Duration::from_secs(60) {
            bail!("no answer to the ping {hash} after 60 s");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let round_trip = started.elapsed().as_secs_f64();
    let text = answer.get("payload").and_then(Value::as_str).unwrap_or_default().to_owned();
    findings.figure("ping_round_trip_seconds", "ping through two nodes and back, seconds", rounded(round_trip));
    findings.figure("answer", "the agent's answer", text.clone());
    findings.expect(text == "pong", format!("expected the answer `pong`, got `{text}`"));
    output.note(format!("alice's ping was answered with `{text}` after {round_trip:.2} s"));
    Ok(())
}

/// Both nodes have the same block, and so the same state, at the authority's head.
async fn same_state(authority: &Node, follower: &Node, findings: &mut Findings) -> Result<()> {
    let head = authority.get("/rpc/head").await?;
    let field = |block: &Value, name: &str| block.get(name).cloned().unwrap_or_default();
    let height = field(&head, "height").as_u64().context("the authority's head has no height")?;
    let started = Instant::now();
    let other = loop {
        match follower.find(&format!("/rpc/blocks/{height}")).await? {
            Some(block) => break block,
            None if started.elapsed() > Duration::from_secs(30) => {
                bail!("the follower has no block {height} after 30 s")
            }
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let (ours, theirs) = (field(&head, "state_root"), field(&other, "state_root"));
    let equal = ours == theirs && field(&head, "hash") == field(&other, "hash");
    findings.figure("height", "final height of both", height);
    findings.figure("equal_state_roots", "equal blocks and state roots", equal);
    findings.expect(equal, format!("at height {height} the authority has state root {ours}, the follower {theirs}"));
    Ok(())
}

fn report(findings: &Findings, output: &Output) {
    let ok = findings.failed.is_empty();
    if output.is_json() {
        let figures: serde_json::Map<String, Value> =
            findings.figures.iter().map(|(name, _, value)| ((*name).to_owned(), value.clone())).collect();
        return output.json(&json!({ "ok": ok, "figures": figures, "failed": findings.failed }));
    }
    output.line("");
    let cell = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Bool(truth) => (if *truth { "yes" } else { "no" }).to_owned(),
        Value::Number(number) if number.as_f64().is_some_and(|number| number.fract() == 0.0) => {
            format!("{:.0}", number.as_f64().unwrap_or_default())
        }
        Value::Array(items) => items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    };
    output.rows(findings.figures.iter().map(|(_, text, value)| vec![(*text).to_owned(), cell(value)]).collect());
    output.line("");
    if ok {
        output.line("all of it holds");
    }
    for failed in &findings.failed {
        output.line(format!("does not hold: {failed}"));
    }
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 100.0).round() / 100.0
}

/// Resolves when the process is asked to end.
async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut signal) => drop(signal.recv().await),
        Err(_) => std::future::pending().await,
    }
}
