//! The promises of the dispatcher and the outbox, one by one; [`model`] has them all at once, [`reorgs`] and [`branches`]
//! those that hold across branches, [`unheard`] those for messages that come while there is no handler.

mod branches;
mod model;
mod reorgs;
mod unheard;

use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::*;
use crate::chain::execute::Execution;
use crate::chain::{Authority, Block, Genesis, Head, Header, Kind, SecretKey, State, Transaction, VerifiedBlock};
use crate::chain::{format, merkle, verify};
use crate::ledger::{BlockHook, Imported, Ledger, LedgerOptions, ProduceRequest, Reach};
use crate::mempool::{Mempool, MempoolConfig, MempoolHook};
use crate::storage::{StorageError, TakenBlock, Writer};

const SECOND: u64 = 1_000_000;
const START: Time = Time(1_000_000 * SECOND);

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed([seed; 32])
}

fn address(key: &SecretKey) -> Address {
    Address::of(&key.public_key())
}

fn genesis() -> Genesis {
    let rich = |seed| serde_json::json!({ "address": address(&key(seed)), "balance": 1_000_000 });
    let json = serde_json::json!({
        "format": format::NAME, "chain_id": "test", "timestamp": START, "slot_ms": 2_000, "min_fee": 1,
        "authorities": [Authority { address: address(&key(1)), public_key: key(1).public_key() }],
        "allocations": [rich(2), rich(3)],
    });
    Genesis::parse(&json.to_string()).unwrap()
}

/// A chain made elsewhere.
struct Chain {
    genesis: Genesis,
    state: State,
    head: Head,
    blocks: Vec<VerifiedBlock>,
}

impl Chain {
    fn new() -> Self {
        let genesis = genesis();
        let head = Head::from(&genesis.block().header);
        Self { state: genesis.state(), head, blocks: Vec::new(), genesis }
    }

    /// A block of those candidates that can happen, in their order.
    fn extend(&mut self, candidates: &[Transaction], timestamp: Time) {
        let mut execution = Execution::new(&self.state, &self.genesis);
        let transactions: Vec<_> = candidates.iter().filter(|tx| execution.apply(tx).is_ok()).cloned().collect();
        self.state.apply(&execution.into_changes());
        let leaves: Vec<_> =
            transactions.iter().map(|tx| format::transaction_leaf(&tx.hash(&self.genesis.chain_id), tx)).collect();
        let header = Header {
            version: format::VERSION,
            chain_id: self.genesis.chain_id.clone(),
            height: self.head.height + 1,
            parent_hash: self.head.hash,
            timestamp,
            proposer: address(&key(1)),
            tx_count: transactions.len() as u32,
            tx_root: merkle::root(&leaves),
            state_root: self.state.root(),
        };
        self.head = Head::from(&header);
        self.blocks.push(verify::verify(Block::signed(header, transactions, &key(1)), &self.genesis).unwrap());
    }

    /// The chain up to `height`, to grow another branch on.
    fn cut(&self, height: usize) -> Self {
        let mut cut = Self::new();
        for block in &self.blocks[..height] {
            cut.extend(&block.block().transactions, block.block().header.timestamp);
        }
        assert_eq!(cut.head.hash, if height == 0 { cut.head.hash } else { self.blocks[height - 1].hash() });
        cut
    }

    fn nonce(&self, seed: u8) -> u64 {
        self.state.account(&address(&key(seed))).unwrap_or_default().nonce
    }

    /// All transactions with their blocks' times.
    fn transactions(&self) -> impl Iterator<Item = (&Transaction, Time)> {
        self.blocks.iter().flat_map(|block| {
            block.block().transactions.iter().map(|transaction| (transaction, block.block().header.timestamp))
        })
    }
}

fn message(seed: u8, to: u8, nonce: u64, text: &str) -> Transaction {
    let payload = Payload::Text(text.into());
    Transaction::new(Kind::Message, address(&key(to)), 0, 1, nonce, payload).signed("test", &key(seed))
}

/// Fails the commit that contains the block after so many others.
#[derive(Clone, Default)]
struct Saboteur(Arc<Mutex<Option<u32>>>);

impl BlockHook for Saboteur {
    fn on_block(&mut self, _: &Writer<'_>, _: &VerifiedBlock, _: &State) -> Result<(), StorageError> {
        let mut after = self.0.lock().unwrap();
        match *after {
            None => Ok(()),
            Some(0) => {
                *after = None;
                Err(StorageError::Inconsistent("sabotage".into()))
            }
            Some(left) => {
                *after = Some(left - 1);
                Ok(())
            }
        }
    }

    fn on_undone(&mut self, _: &Writer<'_>, _: &TakenBlock) -> Result<(), StorageError> {
        Ok(())
    }
}

/// A node whose agent `bob` has the wallet 3.
struct Node {
    dir: TempDir,
    ledger: Ledger,
    agents: Option<Agents>,
    saboteur: Saboteur,
}

#[derive(Clone)]
struct Setup {
    handler: Arc<dyn Handler>,
    max_fee_per_hour: u64,
    limits: AgentLimits,
    now: Time,
}

impl Setup {
    fn new(handler: impl Handler + 'static) -> Self {
        let limits = AgentLimits { block_time_max: std::time::Duration::from_secs(60), ..AgentLimits::default() };
        Self { handler: Arc::new(handler), max_fee_per_hour: 1_000_000, limits, now: START }
    }

    fn dispatcher(&self) -> Dispatcher {
        let Self { handler, max_fee_per_hour, limits, now } = self.clone();
        let config = AgentConfig { name: "bob".into(), key: key(3), handler, max_fee_per_hour };
        Dispatcher::new(vec![config], &genesis(), limits, now).unwrap()
    }
}

impl Node {
    async fn open(dir: TempDir, setup: Option<&Setup>) -> Self {
        let saboteur = Saboteur::default();
        let mut hooks: Vec<Box<dyn BlockHook>> = Vec::new();
        let mut handle = None;
        match setup {
            Some(setup) => {
                let dispatcher = setup.dispatcher();
                handle = Some(dispatcher.handle());
                hooks.push(Box::new(dispatcher));
            }
            // As a node has it whose configuration names no agent.
            None => {
                hooks.push(Box::new(Dispatcher::new(Vec::new(), &genesis(), AgentLimits::default(), Time(0)).unwrap()))
            }
        }
        hooks.push(Box::new(saboteur.clone()));
        let ledger = Ledger::open(LedgerOptions::new(dir.path().join("chain.db"), genesis()), hooks).unwrap();
        let agents = match handle {
            Some(handle) => Some(Agents::open(ledger.clone(), handle).await.unwrap()),
            None => None,
        };
        Self { dir, ledger, agents, saboteur }
    }

    async fn new(setup: &Setup) -> Self {
        Self::open(tempfile::tempdir().unwrap(), Some(setup)).await
    }

    /// What a killed process leaves: the files as they are, the write-ahead log not merged.
    async fn crash(self, setup: Option<&Setup>) -> Self {
        let copy = tempfile::tempdir().unwrap();
        for file in ["chain.db", "chain.db-wal"] {
            // There is no log before the first write.
            _ = std::fs::copy(self.dir.path().join(file), copy.path().join(file));
        }
        self.ledger.stop();
        Self::open(copy, setup).await
    }

    /// Moves to the branch of `chain`, which must be the better one.
    async fn switch(&self, chain: &Chain) {
        let reorg = self.ledger.switch_branch(chain.blocks.clone(), Reach::Limited).await.unwrap();
        assert!(reorg.undone > 0, "no reorg: {reorg:?}");
        assert_eq!(self.ledger.head(), chain.head);
    }

    /// Imports what `chain` has beyond our head, at most `count` blocks, in one call.
    async fn import(&self, chain: &Chain, count: usize) {
        let ours = self.ledger.head().height as usize;
        let blocks: Vec<_> = chain.blocks.iter().skip(ours).take(count).cloned().collect();
        let sabotaged = self.saboteur.0.lock().unwrap().is_some();
        for imported in self.ledger.import(blocks).await {
            assert!(sabotaged || imported == Ok(Imported::Extended), "{imported:?}");
        }
    }

    async fn status(&self) -> AgentStatus {
        self.agents.as_ref().unwrap().statuses().await.unwrap().remove(0)
    }

    async fn outgoing(&self) -> Vec<Transaction> {
        match &self.agents {
            Some(agents) => agents.outgoing().await.unwrap().into_iter().map(|(.., transaction)| transaction).collect(),
            None => Vec::new(),
        }
    }

    async fn parked(&self) -> Vec<Parked> {
        self.agents.as_ref().unwrap().parked("bob", 0, 10_000).await.unwrap().unwrap()
    }

    fn memory(&self) -> Vec<u8> {
        let agent = self.ledger.storage().read(|reader| reader.agent("bob", &address(&key(3)))).unwrap();
        agent.map(|agent| agent.memory).unwrap_or_default()
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Answers every message with its own text, and remembers the texts.
struct Parrot;

impl Handler for Parrot {
    fn handle(&self, _: &Context, event: &Event, memory: &[u8]) -> Outcome {
        let Event::Message(Message { payload: Payload::Text(text), .. }) = event else { return Err("no text".into()) };
        let memory = [memory, text.as_bytes(), b"\n"].concat();
        Ok((vec![Effect::Reply(Payload::Text(text.clone()))], memory))
    }
}

/// Answers what it is told to.
struct Says(fn(&Context, &Event) -> Outcome);

impl Handler for Says {
    fn handle(&self, context: &Context, event: &Event, _: &[u8]) -> Outcome {
        self.0(context, event)
    }
}

#[test]
fn a_message_is_answered_and_the_answer_leaves_the_outbox_with_its_block() {
    run(async {
        let node = Node::new(&Setup::new(Parrot)).await;
        let mut chain = Chain::new();
        chain.extend(&[message(2, 3, 0, "hello")], Time(START.0 + SECOND));
        node.import(&chain, 1).await;
        let reply = node.outgoing().await.remove(0);
        let expected = message(3, 2, 0, "hello");
        assert_eq!((&reply.to, &reply.payload, reply.fee, reply.nonce), (&expected.to, &expected.payload, 1, 0));
        chain.extend(&[reply], Time(START.0 + 2 * SECOND));
        node.import(&chain, 1).await;
        let status = node.status().await;
        assert_eq!((status.handled, status.replies_pending, status.fee_spent, status.cursor), (1, 0, 1, 1));
    });
}

#[test]
fn a_new_agent_skips_what_is_older_than_itself_and_its_own_messages() {
    run(async {
        let mut setup = Setup::new(Parrot);
        setup.now = Time(START.0 + 10 * SECOND);
        let node = Node::new(&setup).await;
        let mut chain = Chain::new();
        chain.extend(&[message(2, 3, 0, "old")], Time(START.0 + 9 * SECOND));
        let own = message(3, 3, 0, "own");
        chain.extend(&[message(2, 3, 1, "new"), own], Time(START.0 + 10 * SECOND));
        node.import(&chain, 2).await;
        assert_eq!(node.memory(), b"new\n");
        let status = node.status().await;
        assert_eq!((status.handled, status.skipped, status.replies_pending), (1, 2, 1));
    });
}

#[test]
fn an_agent_that_is_set_up_later_begins_at_the_head_and_keeps_that_place() {
    run(async {
        let mut setup = Setup::new(Parrot);
        let node = Node::open(tempfile::tempdir().unwrap(), None).await;
        let mut chain = Chain::new();
        for (at, text) in ["before", "registered", "while away", "back"].into_iter().enumerate() {
            chain.extend(&[message(2, 3, at as u64, text)], Time(START.0 + (at as u64 + 1) * SECOND));
        }
        node.import(&chain, 1).await;
        let node = node.crash(Some(&setup)).await;
        node.import(&chain, 1).await;
        assert_eq!(node.memory(), b"registered\n");
        let node = node.crash(None).await;
        node.import(&chain, 1).await;
        // The clock of a later start does not count.
        setup.now = Time(START.0 + 100 * SECOND);
        let node = node.crash(Some(&setup)).await;
        node.import(&chain, 1).await;
        assert_eq!(node.memory(), b"registered\nwhile away\nback\n");
    });
}

#[test]
fn what_a_handler_does_not_answer_is_set_aside_and_can_be_tried_again() {
    run(async {
        let node = Node::new(&Setup::new(Says(|_, _| Err("not today".into())))).await;
        let mut chain = Chain::new();
        chain.extend(&[message(2, 3, 0, "first"), message(2, 3, 1, "second")], Time(START.0 + SECOND));
        node.import(&chain, 1).await;
        let parked = node.parked().await;
        assert_eq!(
            parked.iter().map(|parked| parked.text.as_deref()).collect::<Vec<_>>(),
            [Some("first"), Some("second")]
        );
        assert_eq!((parked[0].reason.as_str(), parked[0].unheard), ("not today", false));
        let status = node.status().await;
        assert_eq!((status.parked, status.unheard, status.handled), (2, 0, 0));

        let node = node.crash(Some(&Setup::new(Parrot))).await;
        let agents = node.agents.clone().unwrap();
        assert_eq!(agents.retry("bob", Some(parked[1].id)).await.unwrap(), Some(1));
        assert_eq!(agents.retry("nobody", None).await.unwrap(), None);
        chain.extend(&[], Time(START.0 + 2 * SECOND));
        node.import(&chain, 1).await;
        assert_eq!(node.memory(), b"second\n");
        assert_eq!(agents.retry("bob", None).await.unwrap(), Some(1));
        chain.extend(&[message(2, 3, 2, "third")], Time(START.0 + 3 * SECOND));
        node.import(&chain, 1).await;
        assert_eq!(node.memory(), b"second\nfirst\nthird\n");
        assert_eq!((node.status().await.parked, node.status().await.replies_pending), (0, 3));
    });
}

#[test]
fn a_memory_beyond_its_size_sets_the_event_aside_and_one_of_its_size_is_kept() {
    for (len, parked) in [(effects::MEMORY_MAX_BYTES, 0), (effects::MEMORY_MAX_BYTES + 1, 1)] {
        struct Hoarder(usize);
        impl Handler for Hoarder {
            fn handle(&self, _: &Context, _: &Event, _: &[u8]) -> Outcome {
                Ok((Vec::new(), vec![7; self.0]))
            }
        }
        run(async {
            let node = Node::new(&Setup::new(Hoarder(len))).await;
            let mut chain = Chain::new();
            chain.extend(&[message(2, 3, 0, "x")], Time(START.0 + SECOND));
            node.import(&chain, 1).await;
            assert_eq!((node.parked().await.len(), node.memory().len()), (parked, if parked == 0 { len } else { 0 }));
        });
    }
}

#[test]
fn a_budget_is_kept_in_every_hour_and_comes_back_after_it() {
    run(async {
        let mut setup = Setup::new(Parrot);
        setup.max_fee_per_hour = 2;
        let node = Node::new(&setup).await;
        let mut chain = Chain::new();
        let mail = |nonce| [message(2, 3, nonce, "a"), message(2, 3, nonce + 1, "b"), message(2, 3, nonce + 2, "c")];
        chain.extend(&mail(0), Time(START.0 + SECOND));
        node.import(&chain, 1).await;
        assert_eq!((node.status().await.refused, node.status().await.replies_pending), (1, 2));
        // Two hours later, still in the outbox: they are not spent yet, but will be.
        chain.extend(&mail(3), Time(START.0 + 7_200 * SECOND));
        node.import(&chain, 1).await;
        assert_eq!((node.status().await.refused, node.status().await.replies_pending), (4, 2));
        let replies = node.outgoing().await;
        chain.extend(&replies, Time(START.0 + 7_201 * SECOND));
        chain.extend(&mail(6), Time(START.0 + 10_800 * SECOND));
        node.import(&chain, 2).await;
        assert_eq!((node.status().await.refused, node.status().await.replies_pending), (7, 0));
        chain.extend(&mail(9), Time(START.0 + 10_801 * SECOND));
        node.import(&chain, 1).await;
        assert_eq!((node.status().await.refused, node.status().await.replies_pending), (8, 2));
    });
}

#[test]
fn a_timer_runs_out_once_with_the_first_block_at_its_time() {
    fn say(context: &Context, event: &Event) -> Outcome {
        let timer = |tag: &str, s| Effect::StartTimer { tag: tag.into(), at: Time(context.now.0 + s * SECOND) };
        match event {
            // The second replaces the first; the third is due at once, that is: with the next block.
            Event::Message(_) => Ok((vec![timer("t", 1), timer("t", 10), timer("now", 0)], Vec::new())),
            Event::Timer(tag) => Ok((vec![Effect::Reply(Payload::Absent)], tag.clone().into_bytes())),
        }
    }
    run(async {
        let setup = Setup::new(Says(say));
        let mut node = Node::new(&setup).await;
        let mut chain = Chain::new();
        chain.extend(&[message(2, 3, 0, "start")], Time(START.0 + SECOND));
        for (second, memory, handled) in [(2, "now", 2), (10, "now", 2), (11, "t", 3), (12, "t", 3)] {
            chain.extend(&[], Time(START.0 + second * SECOND));
            node.import(&chain, 9).await;
            node = node.crash(Some(&setup)).await;
            assert_eq!((node.memory(), node.status().await.handled), (memory.into(), handled), "{second}");
        }
        assert_eq!(node.status().await.refused, 2, "a timer has no sender to reply to");
    });
}

#[test]
fn what_does_not_fit_into_one_block_is_handled_with_the_next_ones_in_order() {
    run(async {
        let mut setup = Setup::new(Parrot);
        setup.limits.events_per_block_max = 2;
        let mut node = Node::new(&setup).await;
        let mut chain = Chain::new();
        let mail: Vec<_> = (0..5).map(|nonce| message(2, 3, nonce, &nonce.to_string())).collect();
        chain.extend(&mail, Time(START.0 + SECOND));
        for (at, memory) in [(2, "0\n1\n"), (3, "0\n1\n2\n3\n"), (4, "0\n1\n2\n3\n4\n5\n"), (5, "0\n1\n2\n3\n4\n5\n")] {
            node.import(&chain, 1).await;
            assert_eq!(String::from_utf8(node.memory()).unwrap(), memory);
            let late = if at == 3 { vec![message(2, 3, 5, "5")] } else { Vec::new() };
            chain.extend(&late, Time(START.0 + at * SECOND));
            node = node.crash(Some(&setup)).await;
        }
    });
}

#[test]
fn a_reply_whose_nonce_the_owner_used_is_signed_again() {
    run(async {
        let setup = Setup::new(Parrot);
        let node = Node::new(&setup).await;
        let mut chain = Chain::new();
        chain.extend(&[message(2, 3, 0, "a"), message(2, 3, 1, "b")], Time(START.0 + SECOND));
        node.import(&chain, 1).await;
        let old = node.outgoing().await;
        // The owner's takes the nonce of the first and leaves that of the second.
        chain.extend(&[message(3, 2, 0, "owner")], Time(START.0 + 2 * SECOND));
        node.import(&chain, 1).await;
        let node = node.crash(Some(&setup)).await;
        let new = node.outgoing().await;
        assert_eq!(new.iter().map(|reply| reply.nonce).collect::<Vec<_>>(), [1, 2]);
        assert!(new.contains(&old[1]));
        // The old ones come back, too late.
        chain.extend(&[new.clone(), old, new].concat(), Time(START.0 + 3 * SECOND));
        node.import(&chain, 1).await;
        let texts: Vec<_> =
            chain.transactions().filter(|(tx, _)| tx.from() == address(&key(3))).map(|(tx, _)| &tx.payload).collect();
        assert_eq!(texts.len(), 3, "{texts:?}");
        assert_eq!(node.status().await.replies_pending, 0);
    });
}

#[test]
fn a_reply_that_a_block_took_while_the_agent_was_away_is_not_sent_again() {
    run(async {
        let setup = Setup::new(Parrot);
        let node = Node::new(&setup).await;
        let mut chain = Chain::new();
        chain.extend(&[message(2, 3, 0, "a")], Time(START.0 + SECOND));
        node.import(&chain, 1).await;
        let reply = node.outgoing().await;
        let node = node.crash(None).await;
        chain.extend(&reply, Time(START.0 + 2 * SECOND));
        node.import(&chain, 1).await;
        let node = node.crash(Some(&setup)).await;
        chain.extend(&[], Time(START.0 + 3 * SECOND));
        node.import(&chain, 1).await;
        let status = node.status().await;
        assert_eq!((status.handled, status.replies_pending, status.fee_spent), (1, 0, 1));
    });
}

#[test]
fn the_outbox_gets_replies_into_blocks_through_the_mempool() {
    run(async {
        let dispatcher = Setup::new(Parrot).dispatcher();
        let hook = MempoolHook::new();
        let (agents, pool) = (dispatcher.handle(), hook.handle());
        let dir = tempfile::tempdir().unwrap();
        let options = LedgerOptions::new(dir.path().join("chain.db"), genesis());
        let ledger = Ledger::open(options, vec![Box::new(hook), Box::new(dispatcher)]).unwrap();
        let agents = Agents::open(ledger.clone(), agents).await.unwrap();
        let mempool = Mempool::open(ledger.clone(), pool, MempoolConfig::default()).unwrap();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let sender = tokio::spawn(outbox::run(agents.clone(), mempool.clone(), stopped));

        let produce = async |second: u64| {
            let pending = mempool.pending(100).into_iter().map(|pending| (pending.transaction, pending.hash));
            let now = Time(START.0 + second * SECOND);
            let request = ProduceRequest { candidates: pending.collect(), key: key(1), now, allow_empty: true };
            ledger.produce(request).await.unwrap()
        };
        mempool.submit_transaction(message(2, 3, 0, "ping")).await.unwrap();
        mempool.submit_transaction(message(2, 3, 1, "ping again")).await.unwrap();
        let mut added = mempool.watch();
        produce(1).await;
        for _ in 0..2 {
            added.changed().await.unwrap();
            if mempool.len() == 2 {
                break;
            }
        }
        assert_eq!(produce(2).await.head.unwrap().tx_count, 2);
        assert_eq!(agents.statuses().await.unwrap()[0].replies_pending, 0);
        stop.send_replace(true);
        sender.await.unwrap();
        assert!(mempool.is_empty());
        ledger.stop();
    });
}

#[test]
fn two_agents_share_neither_name_nor_wallet() {
    let config = |name: &str, seed| AgentConfig {
        name: name.into(),
        key: key(seed),
        handler: Arc::new(Park),
        max_fee_per_hour: 1,
    };
    let set_up = |configs| Dispatcher::new(configs, &genesis(), AgentLimits::default(), START).err();
    assert_eq!(set_up(vec![config("a", 2), config("b", 3)]), None);
    assert_eq!(set_up(vec![config("a", 2), config("a", 3)]), Some(AgentsError::SameName("a".into())));
    assert!(matches!(set_up(vec![config("a", 2), config("b", 2)]), Some(AgentsError::SameWallet { .. })));
}
