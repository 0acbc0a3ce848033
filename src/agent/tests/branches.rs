//! What holds for agents when the chain moves to another branch, held against random branches, crashes, failed commits and
//! an agent or its handler that is away for a while.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::reorgs::remembered;
use super::*;

/// Remembers the number of every message; sets some aside. Nobody is there while the flag is down.
struct Clerk(Arc<AtomicBool>);

impl Clerk {
    fn parks(number: u16) -> bool {
        number % 5 == 2
    }
}

impl Handler for Clerk {
    fn handle(&self, _: &Context, event: &Event, memory: &[u8]) -> Outcome {
        assert!(self.is_there(), "nobody is asked who is not there");
        let Event::Message(Message { payload: Payload::Text(text), .. }) = event else { return Err("no text".into()) };
        let number: u16 = text.parse().map_err(|_| "no number")?;
        if Self::parks(number) {
            return Err("set aside".into());
        }
        let reply = Effect::Reply(Payload::Text(text.clone()));
        Ok((vec![reply], [memory, &number.to_be_bytes()[..]].concat()))
    }

    fn is_there(&self) -> bool {
        self.0.load(Ordering::Relaxed)
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
    /// The handler comes or goes.
    Turn,
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
    prop_oneof![6 => block, 6 => import, 5 => reorg, 2 => Just(Step::Crash), 1 => Just(Step::Away), 2 => Just(Step::Turn)]
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
    let there = Arc::new(AtomicBool::new(true));
    let mut setup = Setup::new(Clerk(Arc::clone(&there)));
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
            Step::Turn => _ = there.fetch_xor(true, Ordering::Relaxed),
        }
    }
    // Quiet: somebody is there, and everything gets its block.
    there.store(true, Ordering::Relaxed);
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
