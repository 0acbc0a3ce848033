//! What a node does with its database, as a list of steps that can each be tried until it is done: catch-up, blocks of
//! its own, reorgs, transactions that wait, an agent's mail, restarts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tenon::agent::{AgentConfig, AgentLimits, Agents, Context, Dispatcher, Effect, Event, Handler, Message, Outcome};
use tenon::chain::{Hash, Payload, Time, Transaction};
use tenon::ledger::{Imported, Ledger, LedgerOptions, ProduceError, ProduceRequest, Reach, SwitchError};
use tenon::mempool::{Mempool, MempoolConfig, MempoolHook};
use tenon::storage::StorageError;

use super::tree::{Tree, address};

/// Whose account the agent has.
const AGENT: usize = 2;

/// One thing that a node is asked to do.
#[derive(Clone, Debug)]
pub enum Step {
    /// The blocks up to a place in the tree, above the head.
    Import(usize),
    /// A better branch.
    Switch(usize),
    Submit(Transaction),
    /// Hands in the first of the agent's answers that does not wait yet.
    Answer,
    /// A block of what waits, so many slots after genesis.
    Produce(u64),
    /// Moves the log into the database, from beside, so that it is written from its start again.
    Checkpoint,
    /// Stops the node and starts it again.
    Restart,
}

/// A tree of blocks, and what a node does on it.
pub struct Work {
    pub tree: Tree,
    pub steps: Vec<Step>,
}

impl Work {
    pub fn new() -> Self {
        // Accounts 0 to 4 are funded; 2 is the agent's.
        let mut tree = Tree::new(2, 5, 3);
        let grow = |tree: &mut Tree, at: usize, slots: u64, text: &str| {
            let agent = AGENT;
            let some = [tree.transaction(at, 0, 5, 70, None), tree.transaction(at, 1, agent, 0, Some(text))];
            tree.grow(at, slots, &some)
        };
        let trunk = ["one", "two", "three"].iter().fold(0, |at, text| grow(&mut tree, at, 1, text));
        let mut ours = trunk;
        for number in 0..6 {
            ours = grow(&mut tree, ours, 1, &format!("ours {number}"));
        }
        let longer = grow(&mut tree, ours, 1, "ours at last");
        let fork = grow(&mut tree, trunk, 2, "theirs");
        let theirs = (0..7).fold(fork, |at, number| grow(&mut tree, at, 1, &format!("theirs {number}")));
        // From the fork again, beyond what will be produced, in slots that lie between.
        let third = (0..12).fold(fork, |at, number| grow(&mut tree, at, 2, &format!("third {number}")));
        let last = grow(&mut tree, third, 2, "the last");
        let mine = |from: usize, nonce: u64, fee: u64| {
            let to = address(&tree.accounts[6]);
            let transfer = Transaction::new(tenon::chain::Kind::Transfer, to, 5, fee, nonce, Payload::Absent);
            transfer.signed(&tree.genesis.chain_id, &tree.accounts[from])
        };
        let steps = vec![
            Step::Import(trunk),
            Step::Submit(mine(3, 0, 2)),
            Step::Import(ours),
            Step::Submit(mine(4, 0, 3)),
            Step::Checkpoint,
            Step::Import(longer),
            Step::Answer,
            Step::Switch(theirs),
            Step::Submit(mine(3, 1, 4)),
            Step::Produce(100),
            Step::Checkpoint,
            Step::Produce(102),
            Step::Restart,
            Step::Answer,
            Step::Produce(104),
            Step::Switch(third),
            Step::Submit(mine(4, 7, 5)),
            Step::Import(last),
            Step::Restart,
            Step::Produce(106),
        ];
        Self { tree, steps }
    }

    /// The time of a slot of the first authority, so many after genesis.
    fn time(&self, slots: u64) -> Time {
        let genesis = &self.tree.genesis;
        Time((genesis.slot(genesis.timestamp) + slots) * genesis.slot_ms * 1_000)
    }

    /// Opens the node's database in `folder`.
    pub async fn open(&self, folder: &Path) -> Result<Node, String> {
        let genesis = &self.tree.genesis;
        let (hook, path) = (MempoolHook::new(), folder.join("chain.db"));
        let waiting = hook.handle();
        let agent = AgentConfig {
            name: "parrot".into(),
            key: self.tree.accounts[AGENT].clone(),
            handler: Arc::new(Parrot),
            max_fee_per_hour: 1_000_000,
        };
        let limits = AgentLimits { block_time_max: Duration::from_secs(600), ..AgentLimits::default() };
        let dispatcher = Dispatcher::new(vec![agent], genesis, limits, genesis.timestamp).unwrap();
        let mail = dispatcher.handle();
        let options = LedgerOptions::new(path.clone(), (**genesis).clone());
        let ledger = Ledger::open(options, vec![Box::new(hook), Box::new(dispatcher)]).map_err(text)?;
        let rest = async {
            let config = MempoolConfig { expire_ms: u64::MAX, ..MempoolConfig::default() };
            let mempool = Mempool::open(ledger.clone(), waiting, config)?;
            Ok::<_, StorageError>((mempool, Agents::open(ledger.clone(), mail).await?))
        };
        match rest.await {
            Ok((mempool, agents)) => Ok(Node { path, ledger, mempool, _agents: agents }),
            Err(error) => {
                ledger.stop();
                Err(text(error))
            }
        }
    }

    /// Takes a step, or says why that could not be. May be called until it answers that it is done. A node that is
    /// stopped is none.
    pub async fn take(&self, step: &Step, node: &mut Option<Node>, folder: &Path) -> Result<(), String> {
        if node.is_none() {
            *node = Some(self.open(folder).await?);
        }
        let Node { path, ledger, mempool, .. } = node.as_ref().expect("opened");
        match step {
            Step::Import(at) => {
                let head = ledger.head().height;
                let answers = ledger.import(self.tree.branch(*at, head.min(self.tree.height(*at) - 1))).await;
                for answer in answers {
                    assert!(matches!(answer.map_err(text)?, Imported::Extended | Imported::Known));
                }
            }
            Step::Switch(at) => match ledger.switch_branch(self.tree.branch(*at, 0), Reach::Limited).await {
                Ok(_) => {}
                Err(error @ SwitchError::Storage(_)) => return Err(text(error)),
                Err(error) => panic!("{error}"),
            },
            Step::Submit(transaction) => _ = mempool.submit_transaction(transaction.clone()).await.map_err(text)?,
            Step::Answer => {
                let wallet = address(&self.tree.accounts[AGENT]);
                let answers = ledger.storage().read(|reader| {
                    let agent = reader.agent("parrot", &wallet)?.expect("registered when it was opened");
                    reader.outbox(agent.id)
                });
                let chain_id = &self.tree.genesis.chain_id;
                let answers = answers.map_err(text)?.into_iter().map(|answer| answer.transaction);
                let answer = answers.into_iter().find(|answer| mempool.get(&answer.hash(chain_id)).is_none());
                mempool.submit_transaction(answer.expect("there are more answers than steps")).await.map_err(text)?;
            }
            Step::Produce(slots) => match self.produce(node.as_ref().expect("opened"), *slots).await {
                Ok(hash) => assert_eq!(ledger.head().hash, hash),
                Err(error @ ProduceError::Storage(_)) => return Err(text(error)),
                Err(error) => panic!("{error}"),
            },
            Step::Checkpoint => {
                let beside = rusqlite::Connection::open(path).map_err(text)?;
                let answer = beside.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get::<_, i64>(0));
                if answer.map_err(text)? != 0 {
                    return Err("busy".into());
                }
            }
            Step::Restart => {
                node.take().expect("opened").ledger.stop();
                *node = Some(self.open(folder).await?);
            }
        }
        Ok(())
    }

    /// Has a block made; answers its hash.
    pub async fn produce(&self, node: &Node, slots: u64) -> Result<Hash, ProduceError> {
        let now = self.time(slots);
        let key = self.tree.authority_at(now).clone();
        let candidates = node.mempool.pending(100).into_iter().map(|pending| (pending.transaction, pending.hash));
        let request = ProduceRequest { candidates: candidates.collect(), key, now, allow_empty: true };
        node.ledger.produce(request).await.map(|produced| produced.head.expect("empty ones are allowed").hash)
    }
}

/// A node that runs, as far as its disk is concerned.
pub struct Node {
    path: PathBuf,
    pub ledger: Ledger,
    mempool: Mempool,
    _agents: Agents,
}

/// Answers every message with its own text, and remembers how many there were.
struct Parrot;

impl Handler for Parrot {
    fn handle(&self, _: &Context, event: &Event, memory: &[u8]) -> Outcome {
        let Event::Message(Message { payload, .. }) = event else { return Err("a message was expected".into()) };
        Ok((vec![Effect::Reply(payload.clone())], [memory, b"."].concat()))
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Every row of every table, with the columns that do not say when it was.
pub fn rows(path: &Path) -> Vec<String> {
    let database = rusqlite::Connection::open(path).unwrap();
    let mut rows = Vec::new();
    let names = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name";
    let tables: Vec<String> =
        database.prepare(names).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    for table in tables {
        let mut statement = database.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let mut found = statement.query([]).unwrap();
        while let Some(row) = found.next().unwrap() {
            let cells = columns.iter().enumerate().filter(|(_, name)| *name != "received");
            let cells: Vec<_> = cells.map(|(at, _)| format!("{:?}", row.get_ref(at).unwrap())).collect();
            rows.push(format!("{table}: {}", cells.join(" ")));
        }
    }
    rows
}
