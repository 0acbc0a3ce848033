//! What holds for agents when the chain moves to another branch.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::storage::UNDO_DEPTH;

fn at(second: u64) -> Time {
    Time(START.0 + second * SECOND)
}

/// What the agent remembers, as the parrot does: the texts, in the order in which they were handled.
fn texts(node: &Node) -> Vec<String> {
    String::from_utf8(node.memory()).unwrap().lines().map(str::to_owned).collect()
}

/// Messages of the agent that no block holds and that are remembered all the same.
fn remembered(node: &Node) -> usize {
    let read = |reader: &crate::storage::Reader<'_>| {
        let agent = reader.agent("bob", &address(&key(3)))?.unwrap();
        reader.handled_messages(agent.id)
    };
    node.ledger.storage().read(read).unwrap().len()
}

#[test]
fn a_message_that_was_handled_is_not_handled_again_on_another_branch() {
    run(async {
        let node = Node::new(&Setup::new(Parrot)).await;
        let mut one = Chain::new();
        one.extend(&[], at(1));
        let mut two = one.cut(1);
        one.extend(&[message(2, 3, 0, "a"), message(2, 3, 1, "b")], at(2));
        node.import(&one, 9).await;
        // The same messages, in two blocks, with one that is new, and one that comes before them.
        two.extend(&[message(2, 3, 0, "a")], at(3));
        two.extend(&[message(2, 3, 1, "b"), message(2, 3, 2, "c")], at(4));
        node.switch(&two).await;
        assert_eq!(texts(&node), ["a", "b", "c"]);
        let status = node.status().await;
        assert_eq!((status.handled, status.waiting, status.replies_pending, status.cursor), (3, 0, 3, 3));
        assert_eq!(remembered(&node), 0, "they are on the chain");
        // And back, with a message that only this branch has.
        one.extend(&[message(2, 3, 2, "other")], at(5));
        one.extend(&[], at(6));
        node.switch(&one).await;
        assert_eq!(texts(&node), ["a", "b", "c", "other"]);
        assert_eq!((node.status().await.handled, remembered(&node)), (4, 1), "c is on no block");
    });
}

#[test]
fn the_order_in_which_branches_are_heard_of_does_not_matter_for_what_is_handled() {
    run(async {
        let mut one = Chain::new();
        one.extend(&[message(2, 3, 0, "a"), message(2, 3, 1, "b")], at(1));
        let mut two = Chain::new();
        two.extend(&[message(2, 3, 1, "b")], at(2));
        two.extend(&[], at(3));
        let mut three = one.cut(1);
        three.extend(&[], at(4));
        three.extend(&[message(2, 3, 5, "last")], at(5));
        for (first, expected) in [(&one, ["a", "b", "last"]), (&two, ["b", "a", "last"])] {
            let node = Node::new(&Setup::new(Parrot)).await;
            node.import(first, 9).await;
            if first.blocks.len() == 1 {
                node.switch(&two).await;
            }
            node.switch(&three).await;
            assert_eq!(texts(&node), expected);
        }
    });
}

#[test]
fn what_waits_or_is_set_aside_goes_with_its_block_and_comes_again_with_its_message() {
    for parks in [false, true] {
        run(async {
            let mut setup = if parks { Setup::new(Park) } else { Setup::new(Parrot) };
            setup.limits.events_per_block_max = usize::from(parks) * 9;
            let node = Node::new(&setup).await;
            let open = async |node: &Node| {
                let status = node.status().await;
                (status.waiting, status.parked)
            };
            let counts = |count: u64| if parks { (0, count) } else { (count, 0) };
            let mut one = Chain::new();
            one.extend(&[message(2, 3, 0, "a"), message(2, 3, 1, "b")], at(1));
            node.import(&one, 9).await;
            assert_eq!(open(&node).await, counts(2));
            // Another branch, where only the second is, and later.
            let mut two = Chain::new();
            two.extend(&[], at(2));
            two.extend(&[message(2, 3, 1, "b")], at(3));
            node.switch(&two).await;
            assert_eq!(open(&node).await, counts(1));
            // And one with neither.
            let mut three = Chain::new();
            (4..7).for_each(|second| three.extend(&[], at(second)));
            node.switch(&three).await;
            assert_eq!(open(&node).await, (0, 0));
            assert_eq!((node.status().await.handled, remembered(&node)), (0, 0));
            // Where they come again they are handled, in that branch's order.
            let node = node.crash(Some(&Setup::new(Parrot))).await;
            three.extend(&[message(2, 3, 0, "a"), message(2, 3, 1, "b")], at(7));
            node.import(&three, 9).await;
            assert_eq!(texts(&node), ["a", "b"]);
        });
    }
}

#[test]
fn an_agent_that_is_away_during_a_reorg_handles_each_message_once_after_it() {
    run(async {
        let setup = Setup::new(Parrot);
        let node = Node::new(&setup).await;
        let mut one = Chain::new();
        one.extend(&[message(2, 3, 0, "a")], at(1));
        node.import(&one, 9).await;
        let mut two = Chain::new();
        two.extend(&[message(2, 3, 0, "a")], at(2));
        two.extend(&[message(2, 3, 1, "b")], at(3));
        let node = node.crash(None).await;
        node.switch(&two).await;
        let node = node.crash(Some(&setup)).await;
        assert_eq!(remembered(&node), 1);
        two.extend(&[message(2, 3, 2, "c")], at(4));
        node.import(&two, 9).await;
        assert_eq!(texts(&node), ["a", "b", "c"]);
        assert_eq!((node.status().await.handled, remembered(&node)), (3, 0));
    });
}

#[test]
fn a_reply_whose_block_is_taken_back_waits_again_and_is_charged_once() {
    run(async {
        let node = Node::new(&Setup::new(Parrot)).await;
        let mut one = Chain::new();
        one.extend(&[message(2, 3, 0, "a"), message(2, 3, 1, "b")], at(1));
        node.import(&one, 9).await;
        let replies = node.outgoing().await;
        let mut two = one.cut(1);
        one.extend(&replies, at(2));
        node.import(&one, 9).await;
        let figures = async |node: &Node| {
            let status = node.status().await;
            (status.replies_pending, status.fee_spent)
        };
        assert_eq!(figures(&node).await, (0, 2));
        // The other branch has the first of them, and later the second.
        two.extend(&replies[..1], at(3));
        two.extend(&[], at(4));
        node.switch(&two).await;
        assert_eq!(figures(&node).await, (1, 2));
        assert_eq!(node.outgoing().await, replies[1..]);
        two.extend(&replies[1..], at(5));
        node.import(&two, 9).await;
        assert_eq!(figures(&node).await, (0, 2));
        assert_eq!(texts(&node), ["a", "b"]);
    });
}

#[test]
fn timers_and_memory_stay_when_the_block_that_made_them_goes() {
    fn say(context: &Context, event: &Event) -> Outcome {
        let timer = Effect::StartTimer { tag: "t".into(), at: Time(context.now.0 + 10 * SECOND) };
        match event {
            Event::Message(_) => Ok((vec![timer], b"started".to_vec())),
            Event::Timer(_) => Ok((Vec::new(), b"rang".to_vec())),
        }
    }
    run(async {
        let setup = Setup::new(Says(say));
        let node = Node::new(&setup).await;
        let mut one = Chain::new();
        one.extend(&[message(2, 3, 0, "start")], at(1));
        node.import(&one, 9).await;
        let mut two = Chain::new();
        two.extend(&[], at(2));
        two.extend(&[], at(3));
        node.switch(&two).await;
        assert_eq!(node.memory(), b"started");
        two.extend(&[], at(11));
        node.import(&two, 9).await;
        assert_eq!((node.memory(), node.status().await.handled), (b"rang".to_vec(), 2));
        // The block with which it ran out goes, and its time comes again: once is once.
        let mut three = two.cut(2);
        three.extend(&[], at(12));
        three.extend(&[], at(13));
        node.switch(&three).await;
        assert_eq!(node.status().await.handled, 2);
    });
}

#[test]
fn a_handled_message_that_can_never_come_again_is_forgotten_once_nothing_brings_it_back() {
    run(async {
        let node = Node::new(&Setup::new(Parrot)).await;
        let mut one = Chain::new();
        one.extend(&[message(2, 3, 0, "a"), message(2, 3, 7, "later")], at(1));
        node.import(&one, 9).await;
        // The sender's nonce passes the first one; the other could still come.
        let mut two = Chain::new();
        two.extend(&[message(2, 2, 3, "to myself")], at(2));
        two.extend(&[], at(3));
        node.switch(&two).await;
        assert_eq!(remembered(&node), 2);
        let depth = usize::try_from(UNDO_DEPTH).unwrap();
        (0..depth + 50).for_each(|number| two.extend(&[], at(4 + number as u64)));
        node.import(&two, usize::MAX).await;
        assert_eq!(remembered(&node), 2, "noticed a while after it was passed, and kept as long as that can be undone");
        let height = two.blocks.len() as u64;
        (0..80).for_each(|number| two.extend(&[], at(4 + height + number)));
        node.import(&two, usize::MAX).await;
        assert_eq!(remembered(&node), 1);
        two.extend(&[message(2, 3, 7, "later")], at(9_000));
        node.import(&two, usize::MAX).await;
        assert_eq!((texts(&node).len(), remembered(&node)), (2, 0));
    });
}

#[test]
fn a_handled_message_whose_sender_has_passed_it_on_a_branch_that_is_gone_is_not_forgotten() {
    run(async {
        let node = Node::new(&Setup::new(Parrot)).await;
        let mut one = Chain::new();
        one.extend(&[message(2, 3, 0, "a")], at(1));
        node.import(&one, 9).await;
        let mut two = Chain::new();
        two.extend(&[message(2, 2, 3, "to myself")], at(2));
        (0..70).for_each(|number| two.extend(&[], at(3 + number)));
        node.switch(&two).await;
        let mut three = Chain::new();
        (0..72).for_each(|number| three.extend(&[], at(1_000 + number)));
        node.switch(&three).await;
        (0..UNDO_DEPTH + 100).for_each(|number| three.extend(&[], at(2_000 + number)));
        three.extend(&[message(2, 3, 0, "a")], at(9_000));
        node.import(&three, usize::MAX).await;
        assert_eq!(texts(&node), ["a"]);
    });
}

#[test]
fn a_reply_finds_its_way_into_the_branch_that_the_chain_moves_to() {
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
        let ping = message(2, 3, 0, "ping");
        let mut one = Chain::new();
        one.extend(std::slice::from_ref(&ping), at(1));
        let mut added = mempool.watch();
        ledger.import(one.blocks.clone()).await;
        // The ledger has the reply, and the outbox hands it in.
        added.wait_for(|_| mempool.len() == 1).await.unwrap();
        let reply = mempool.pending(1).remove(0).transaction;
        one.extend(std::slice::from_ref(&reply), at(2));
        ledger.import(vec![one.blocks[1].clone()]).await;
        assert!(mempool.is_empty());
        // A branch with neither: both wait again, and no second reply is made when the ping comes again.
        let mut two = Chain::new();
        (3..6).for_each(|second| two.extend(&[], at(second)));
        ledger.switch_branch(two.blocks.clone(), Reach::Limited).await.unwrap();
        let pending: Vec<_> = mempool.pending(9).into_iter().map(|pending| pending.transaction).collect();
        assert!(pending.len() == 2 && pending.contains(&ping) && pending.contains(&reply), "{pending:?}");
        two.extend(&pending, at(6));
        ledger.import(vec![two.blocks[3].clone()]).await;
        let status = agents.statuses().await.unwrap().remove(0);
        assert_eq!((status.handled, status.replies_pending, status.fee_spent), (1, 0, 1));
        stop.send_replace(true);
        sender.await.unwrap();
        assert!(mempool.is_empty());
        ledger.stop();
    });
}

/// Remembers the number of every message; sets some aside.
struct Clerk;

impl Clerk {
    fn parks(number: u16) -> bool {
        number % 5 == 2
    }
}

impl Handler for Clerk {
    fn handle(&self, _: &Context, event: &Event, memory: &[u8]) -> Outcome {
        let Event::Message(Message { payload: Payload::Text(text), .. }) = event else { return Err("no text".into()) };
        let number: u16 = text.parse().map_err(|_| "no number")?;
        if Self::parks(number) {
            return Err("set aside".into());
        }
        let reply = Effect::Reply(Payload::Text(text.clone()));
        Ok((vec![reply], [memory, &number.to_be_bytes()[..]].concat()))
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A block with so many new messages, and the first so many replies of those that wait.
    Block { messages: u8, replies: usize },
    /// The node gets so many blocks; the commit fails at one of them.
    Import { blocks: usize, fails_at: Option<u8> },
    /// Another branch, from so far below the node's head, better by some blocks: with some of the messages that it takes
    /// back, by a mask, spread over its blocks, some new ones, and the first so many replies of those it takes back. The
    /// first try may fail.
    Reorg { depth: usize, better: usize, mask: u16, messages: u8, replies: usize, fails_at: Option<u8> },
    /// Killed and started again.
    Crash,
    /// Killed and started without the agent.
    Away,
}

fn any_step() -> impl Strategy<Value = Step> {
    let fails_at = || prop::option::weighted(0.3, 0_u8..4);
    let block = (0_u8..4, 0_usize..4).prop_map(|(messages, replies)| Step::Block { messages, replies });
    let import = (1_usize..4, fails_at()).prop_map(|(blocks, fails_at)| Step::Import { blocks, fails_at });
    let reorg = (1_usize..6, 1_usize..3, any::<u16>(), 0_u8..3, 0_usize..4, fails_at()).prop_map(
        |(depth, better, mask, messages, replies, fails_at)| Step::Reorg {
            depth,
            better,
            mask,
            messages,
            replies,
            fails_at,
        },
    );
    prop_oneof![6 => block, 6 => import, 5 => reorg, 2 => Just(Step::Crash), 1 => Just(Step::Away)]
}

/// What has happened so far, beside the node.
struct Story {
    chain: Chain,
    now: Time,
    next: u16,
}

impl Story {
    fn tick(&mut self) -> Time {
        self.now = Time(self.now.0 + SECOND);
        self.now
    }

    /// New messages for the agent, after those that the chain has.
    fn mail(&mut self, chain: &Chain, after: u64, count: u8) -> Vec<Transaction> {
        let first = chain.nonce(2).max(after);
        let mail = (first..first + u64::from(count)).map(|nonce| {
            self.next += 1;
            message(2, 3, nonce, &(self.next - 1).to_string())
        });
        mail.collect()
    }

    /// The branch of a [`Step::Reorg`] for a node that stands at `height`.
    fn branch(&mut self, height: usize, depth: usize, better: usize, mask: u16, messages: u8, replies: usize) -> Chain {
        let common = height.saturating_sub(depth);
        let mut branch = self.chain.cut(common);
        let undone = self.chain.blocks[common..].iter().flat_map(|block| block.block().transactions.clone());
        let (mine, theirs): (Vec<_>, Vec<_>) = undone.partition(|tx| tx.from() == address(&key(3)));
        let masked = theirs.into_iter().enumerate().filter(|(at, _)| mask >> (at % 16) & 1 == 1);
        let mut again: Vec<_> = masked.map(|(_, tx)| tx).collect();
        let after = again.last().map_or(0, |tx| tx.nonce + 1);
        again.extend(self.mail(&branch, after, messages));
        let mut replies: Vec<_> = mine.into_iter().take(replies).collect();
        let blocks = height - common + better;
        for left in (1..=blocks).rev() {
            let (some, few) = (again.len().div_ceil(left), replies.len().div_ceil(left));
            let transactions: Vec<_> = again.drain(..some).chain(replies.drain(..few)).collect();
            let now = self.tick();
            branch.extend(&transactions, now);
        }
        branch
    }
}

async fn play(steps: Vec<Step>, events_per_block_max: usize) {
    let mut setup = Setup::new(Clerk);
    setup.limits.events_per_block_max = events_per_block_max;
    let mut node = Node::new(&setup).await;
    let mut story = Story { chain: Chain::new(), now: START, next: 0 };
    for step in steps {
        match step {
            Step::Block { messages, replies } => {
                let mut transactions = node.outgoing().await;
                transactions.truncate(replies);
                let chain = story.chain.cut(story.chain.blocks.len());
                transactions.extend(story.mail(&chain, 0, messages));
                let now = story.tick();
                story.chain.extend(&transactions, now);
            }
            Step::Import { blocks, fails_at } => {
                *node.saboteur.0.lock().unwrap() = fails_at.map(u32::from);
                node.import(&story.chain, blocks).await;
                *node.saboteur.0.lock().unwrap() = None;
            }
            Step::Reorg { depth, better, mask, messages, replies, fails_at } => {
                let height = node.ledger.head().height as usize;
                if height == 0 {
                    continue;
                }
                let branch = story.branch(height, depth, better, mask, messages, replies);
                if let Some(fails_at) = fails_at {
                    *node.saboteur.0.lock().unwrap() = Some(fails_at.into());
                    let before = (node.ledger.head(), node.memory());
                    let blocks = branch.blocks.clone();
                    if node.ledger.switch_branch(blocks, Reach::Limited).await.is_err() {
                        assert_eq!((node.ledger.head(), node.memory()), before);
                    }
                    *node.saboteur.0.lock().unwrap() = None;
                }
                if node.ledger.head() != branch.head {
                    node.switch(&branch).await;
                }
                story.chain = branch;
            }
            Step::Crash => node = node.crash(Some(&setup)).await,
            Step::Away => node = node.crash(None).await,
        }
    }
    // Quiet: everything gets its block.
    if node.agents.is_none() {
        node = node.crash(Some(&setup)).await;
    }
    node.import(&story.chain, usize::MAX).await;
    let mut idle = 0;
    for _ in 0..300 {
        let now = story.tick();
        story.chain.extend(&node.outgoing().await, now);
        node.import(&story.chain, 1).await;
        let status = node.status().await;
        idle = if status.waiting + status.replies_pending == 0 { idle + 1 } else { 0 };
        if idle == 3 {
            return check(&node, &story.chain).await;
        }
    }
    panic!("something is never done: {:?}", node.status().await);
}

async fn check(node: &Node, chain: &Chain) {
    let numbers = |seed: u8| -> Vec<u16> {
        let texts = chain.transactions().filter(|(tx, _)| tx.from() == address(&key(seed)));
        texts.map(|(tx, _)| tx.payload.to_json().unwrap().trim_matches('"').parse().unwrap()).collect()
    };
    let (messages, replies) = (numbers(2), numbers(3));
    let memory = node.memory();
    let handled: Vec<u16> = memory.chunks(2).map(|entry| u16::from_be_bytes([entry[0], entry[1]])).collect();
    let once: BTreeSet<u16> = handled.iter().copied().collect();
    assert_eq!(once.len(), handled.len(), "a message was handled twice: {handled:?}");
    for number in &messages {
        assert_eq!(once.contains(number), !Clerk::parks(*number), "{number} of {messages:?}, handled {handled:?}");
    }
    let parked: Vec<u16> =
        node.parked().await.iter().map(|parked| parked.text.clone().unwrap().parse().unwrap()).collect();
    let expected: Vec<u16> = messages.iter().copied().filter(|number| Clerk::parks(*number)).collect();
    assert_eq!(parked, expected, "what is set aside is what the chain has, in its order");
    // A reply to each that was handled, also where its message is on no block any more.
    let answered: BTreeSet<u16> = replies.iter().copied().collect();
    assert_eq!((answered.len(), &answered), (replies.len(), &once), "each is answered once");
    let missing = handled.iter().filter(|number| !messages.contains(number)).count();
    assert_eq!(remembered(node), missing, "just those are remembered that no block holds");
    assert_eq!(node.status().await.handled, handled.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn across_branches_crashes_and_failed_commits_each_message_is_handled_once_and_answered_once(
        steps in prop::collection::vec(any_step(), 1..50), events_per_block_max in prop_oneof![1_usize..4, Just(256)],
    ) {
        run(play(steps, events_per_block_max));
    }
}
