//! Comparing states account by account: a node's with another node's, or with what its blocks make.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use reqwest::StatusCode;
use serde_json::{Value, json};

use tenon::chain::state::{Difference, Differences, StateNode, differences};
use tenon::chain::{Account, Hash, Height, State};

use super::Outcome;
use super::http::{ClientError, Node};
use super::output::Output;
use super::transact::POLL;

/// Accounts that are named at most.
const NAMED_MAX: usize = 1_000;

/// The state of a node at one height.
#[derive(Clone)]
struct Remote {
    node: Node,
    height: Height,
    hash: Hash,
    root: Hash,
}

/// Why a look at a state failed.
#[derive(Debug, thiserror::Error)]
enum LookError {
    /// The node has another head by now.
    #[error("the head has moved")]
    Moved,
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{0}")]
    Malformed(String),
}

impl Remote {
    /// The state after the head.
    async fn of(node: &Node) -> Result<Self> {
        let answer = node.get("/rpc/state/root").await?;
        let hash = |name: &str| -> Result<Hash> {
            let text =
                answer.get(name).and_then(Value::as_str).with_context(|| format!("the node's state has no {name}"))?;
            Ok(text.parse()?)
        };
        let height = answer.get("height").and_then(Value::as_u64).context("the node's state has no height")?;
        Ok(Self { node: node.clone(), height, hash: hash("hash")?, root: hash("state_root")? })
    }

    /// What lies below a path, while the head is the same.
    async fn look(&self, path: &tenon::chain::state::Path) -> Result<Option<StateNode>, LookError> {
        let path = format!("/rpc/state/node?height={}&path={path}", self.height);
        let answer = match self.node.get(&path).await {
            Err(ClientError::Refused { status: StatusCode::CONFLICT, .. }) => return Err(LookError::Moved),
            answer => answer?,
        };
        // Another block at the same height is another state.
        if answer.get("hash").and_then(Value::as_str) != Some(self.hash.to_string().as_str()) {
            return Err(LookError::Moved);
        }
        parse(&answer).ok_or_else(|| LookError::Malformed(format!("{path}: not what a Tenon node answers")))
    }
}

/// A node of the trie, as `/rpc/state/node` shows it; none where it is something else.
fn parse(answer: &Value) -> Option<Option<StateNode>> {
    let (account, fork) = (answer.get("account")?, answer.get("fork")?);
    if !account.is_null() {
        let number = |name: &str| account.get(name)?.as_u64();
        let address = account.get("address")?.as_str()?.parse().ok()?;
        let account = Account { balance: number("balance")?, nonce: number("nonce")? };
        return Some(Some(StateNode::Account(address, account)));
    }
    if fork.is_null() {
        return Some(None);
    }
    let path = fork.get("path")?.as_str()?.parse().ok()?;
    let step = |(digit, hash): (&String, &Value)| {
        let step = u8::from_str_radix(digit, 16).ok().filter(|step| *step < 16)?;
        Some((step, hash.as_str()?.parse().ok()?))
    };
    let below = fork.get("below")?.as_object()?.iter().map(step).collect::<Option<Vec<_>>>()?;
    Some(Some(StateNode::Fork { path, below }))
}

/// What a node's state was compared with.
#[derive(Clone, Copy)]
enum Other {
    /// Another node's.
    Node,
    /// What the blocks make.
    Computed,
}

/// What a comparison found.
pub struct Compared {
    height: Height,
    /// The blocks that the states are after, ours and theirs.
    hashes: [Hash; 2],
    roots: [Hash; 2],
    /// Whose the other state is.
    other: Other,
    found: Differences,
}

/// Compares the accounts of two nodes, as soon as both are at the same height. Errors: within `patience` they were not.
pub async fn compare_nodes(ours: &Node, theirs: &Node, patience: Duration) -> Result<Compared> {
    let started = Instant::now();
    loop {
        let (mine, other) = (Remote::of(ours).await?, Remote::of(theirs).await?);
        if mine.height == other.height {
            let found = if mine.root == other.root {
                Ok(Differences::default())
            } else {
                differences(async |path| mine.look(path).await, async |path| other.look(path).await, NAMED_MAX).await
            };
            match found {
                Err(LookError::Moved) => {}
                found => return Ok(Compared::of(&mine, Other::Node, other.hash, other.root, found?)),
            }
        }
        if started.elapsed() >= patience {
            bail!(
                "{} is at block {}, {} at block {}: only states after the same height can be compared, and for {} s they \
                 were not at one; try again",
                ours.url(),
                mine.height,
                theirs.url(),
                other.height,
                patience.as_secs()
            );
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Compares the accounts of a node with a state that was computed. None where the node's head is another by now.
pub async fn compare_computed(node: &Node, height: Height, hash: &Hash, state: &mut State) -> Result<Option<Compared>> {
    let remote = Remote::of(node).await?;
    if remote.height != height {
        return Ok(None);
    }
    let root = state.root();
    let found = differences(async |path| remote.look(path).await, async |path| Ok(state.node(path)), NAMED_MAX).await;
    match found {
        Err(LookError::Moved) => Ok(None),
        found => Ok(Some(Compared::of(&remote, Other::Computed, *hash, root, found?))),
    }
}

impl Compared {
    fn of(ours: &Remote, other: Other, hash: Hash, root: Hash, found: Differences) -> Self {
        Self { height: ours.height, hashes: [ours.hash, hash], roots: [ours.root, root], other, found }
    }

    /// Whether every account is the same.
    fn same(&self) -> bool {
        self.found.accounts.is_empty() && !self.found.more && self.roots[0] == self.roots[1]
    }

    /// How the command ends.
    pub fn outcome(&self) -> Outcome {
        if self.same() { Outcome::Done } else { Outcome::DoesNotHold }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let account = |account: &Option<Account>| account.map(|a| json!({ "balance": a.balance, "nonce": a.nonce }));
        let difference = |difference: &Difference| {
            let Difference { address, ours, theirs } = difference;
            json!({ "address": address, "ours": account(ours), "theirs": account(theirs) })
        };
        let differences: Vec<Value> = self.found.accounts.iter().map(difference).collect();
        json!({
            "same": self.same(), "height": self.height, "hashes": self.hashes, "state_roots": self.roots,
            "differences": differences, "more": self.found.more, "looks": self.found.looks,
        })
    }

    /// For people.
    pub fn print(&self, output: &Output) {
        let Self { height, hashes: [our_hash, their_hash], roots: [root, _], other, found } = self;
        if self.same() {
            return output.line(match other {
                Other::Node => format!("both nodes have the same accounts after block {height}: {root}"),
                Other::Computed => format!("the node's accounts after block {height} are what its blocks make: {root}"),
            });
        }
        let shown = |account: &Option<Account>| {
            account.map_or_else(|| "-".to_owned(), |a| format!("{} (nonce {})", a.balance, a.nonce))
        };
        let titles = match other {
            Other::Node => ["account", "here", "there"],
            Other::Computed => ["account", "at the node", "by its blocks"],
        };
        let mut rows = vec![titles.map(str::to_owned).to_vec()];
        rows.extend(found.accounts.iter().map(|d| vec![d.address.to_string(), shown(&d.ours), shown(&d.theirs)]));
        output.rows(rows);
        let more = if found.more { " at least" } else { "" };
        output.line(format!("{} accounts{more} differ after block {height}", found.accounts.len()));
        if our_hash != their_hash {
            output.line(format!("the blocks differ too: {our_hash} here, {their_hash} there"));
        }
    }
}
