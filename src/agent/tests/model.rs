//! The promises of the dispatcher and the outbox, held against a chain that does its worst: crashes, commits that fail,
//! an owner who uses the wallet elsewhere, old replies that come back, an agent or its handler that is away for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;

/// Remembers the number of every message and timer; answers each message, sets some aside, starts timers for others. Nobody
/// is there while the flag is down.
#[derive(Clone)]
struct Recorder(Arc<AtomicBool>);

impl Recorder {
    fn parks(number: u16) -> bool {
        number % 7 == 3
    }

    fn times(number: u16) -> bool {
        number % 5 == 1
    }
}

impl Handler for Recorder {
    fn handle(&self, context: &Context, event: &Event, memory: &[u8]) -> Outcome {
        assert!(self.is_there(), "nobody is asked who is not there");
        let (kind, text) = match event {
            Event::Message(Message { payload: Payload::Text(text), .. }) => (b'm', text),
            Event::Message(_) => return Err("no text".into()),
            Event::Timer(tag) => (b't', tag),
        };
        let number: u16 = text.parse().map_err(|_| "no number")?;
        if kind == b'm' && Self::parks(number) {
            return Err("set aside".into());
        }
        let mut effects = Vec::new();
        if kind == b'm' {
            effects.push(Effect::Reply(Payload::Text(text.clone())));
            if Self::times(number) {
                effects.push(Effect::StartTimer { tag: text.clone(), at: Time(context.now.0 + 90 * SECOND) });
            }
        }
        let [high, low] = number.to_be_bytes();
        Ok((effects, [memory, &[kind, high, low]].concat()))
    }

    fn is_there(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A block with so many messages, so many seconds later, with the owner's own transaction that leaves a gap of so
    /// many nonces, and with replies chosen by the bits of a mask, newest first or oldest first.
    Block { messages: u8, seconds: u16, owner: Option<u8>, replies: u32, reversed: bool },
    /// The node gets so many blocks at once; the commit fails at one of them.
    Import { blocks: u8, fails_at: Option<u8> },
    /// Killed and started again.
    Crash,
    /// Killed and started without the agent.
    Away,
    /// The handler comes or goes.
    Turn,
}

fn any_step() -> impl Strategy<Value = Step> {
    let seconds = prop_oneof![4 => 1_u16..60, 1 => 600_u16..4_000];
    let block = (0_u8..4, seconds, prop::option::weighted(0.2, 0_u8..3), any::<u32>(), any::<bool>()).prop_map(
        |(messages, seconds, owner, replies, reversed)| Step::Block { messages, seconds, owner, replies, reversed },
    );
    let import = (1_u8..5, prop::option::weighted(0.3, 0_u8..4))
        .prop_map(|(blocks, fails_at)| Step::Import { blocks, fails_at });
    prop_oneof![6 => block, 6 => import, 2 => Just(Step::Crash), 1 => Just(Step::Away), 2 => Just(Step::Turn)]
}

async fn play(steps: Vec<Step>, max_fee_per_hour: u64, events_per_block_max: usize) {
    let there = Arc::new(AtomicBool::new(true));
    let mut setup = Setup::new(Recorder(Arc::clone(&there)));
    (setup.max_fee_per_hour, setup.limits.events_per_block_max) = (max_fee_per_hour, events_per_block_max);
    let mut node = Node::new(&setup).await;
    let mut chain = Chain::new();
    let (mut now, mut next) = (START, 0_u16);
    // Every reply that was ever in the outbox: none of them may harm when it comes late.
    let mut seen: Vec<Transaction> = Vec::new();
    let collect = |seen: &mut Vec<Transaction>, outgoing: Vec<Transaction>| {
        outgoing.into_iter().for_each(|reply| {
            if !seen.contains(&reply) {
                seen.push(reply)
            }
        });
    };
    for step in steps {
        match step {
            Step::Block { messages, seconds, owner, replies, reversed } => {
                now = Time(now.0 + u64::from(seconds) * SECOND);
                let mut candidates: Vec<_> = seen
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| replies >> (at % 32) & 1 == 1)
                    .map(|(_, tx)| tx.clone())
                    .collect();
                if reversed {
                    candidates.reverse();
                }
                candidates.extend(owner.map(|gap| message(3, 2, chain.nonce(3) + u64::from(gap), "the owner's")));
                for offset in 0..u64::from(messages) {
                    candidates.push(message(2, 3, chain.nonce(2) + offset, &next.to_string()));
                    next += 1;
                }
                chain.extend(&candidates, now);
            }
            Step::Import { blocks, fails_at } => {
                *node.saboteur.0.lock().unwrap() = fails_at.map(u32::from);
                node.import(&chain, usize::from(blocks)).await;
                *node.saboteur.0.lock().unwrap() = None;
            }
            Step::Crash => node = node.crash(Some(&setup)).await,
            Step::Away => node = node.crash(None).await,
            Step::Turn => _ = there.fetch_xor(true, Ordering::Relaxed),
        }
        collect(&mut seen, node.outgoing().await);
    }
    // Quiet: somebody is there, every reply gets its block, every timer its time.
    there.store(true, Ordering::Relaxed);
    if node.agents.is_none() {
        node = node.crash(Some(&setup)).await;
    }
    node.import(&chain, usize::MAX).await;
    let (mut idle, mut rounds) = (0, 0);
    while idle < 3 {
        rounds += 1;
        assert!(rounds < 300, "something is never done: {:?}", node.status().await);
        now = Time(now.0 + 100 * SECOND);
        chain.extend(&node.outgoing().await, now);
        node.import(&chain, 1).await;
        let status = node.status().await;
        idle = if status.waiting + status.replies_pending == 0 { idle + 1 } else { 0 };
    }
    check(&node, &chain, max_fee_per_hour, next).await;
    node.ledger.stop();
}

async fn check(node: &Node, chain: &Chain, max_fee_per_hour: u64, messages: u16) {
    let status = node.status().await;
    assert_eq!((status.waiting, status.unheard, status.replies_pending), (0, 0, 0));
    let memory = node.memory();
    let remembered = |kind: u8| -> Vec<u16> {
        let entries = memory.chunks(3).filter(|entry| entry[0] == kind);
        entries.map(|entry| u16::from_be_bytes([entry[1], entry[2]])).collect()
    };
    let expected = |test: fn(u16) -> bool| (0..messages).filter(|number| test(*number)).collect::<Vec<_>>();
    let handled = expected(|number| !Recorder::parks(number));
    assert_eq!(remembered(b'm'), handled, "each message is handled once, in order");
    let parked: Vec<u16> =
        node.parked().await.iter().map(|parked| parked.text.as_ref().unwrap().parse().unwrap()).collect();
    assert_eq!(parked, expected(Recorder::parks), "what is set aside is not lost");
    let timers: BTreeSet<u16> = remembered(b't').into_iter().collect();
    assert_eq!(timers.len(), remembered(b't').len(), "each timer runs out once");
    assert_eq!(
        timers.into_iter().collect::<Vec<_>>(),
        expected(|number| Recorder::times(number) && !Recorder::parks(number))
    );

    let mut replies: BTreeMap<String, u32> = BTreeMap::new();
    let mut times = Vec::new();
    for (transaction, time) in chain.transactions().filter(|(tx, _)| tx.from() == address(&key(3))) {
        if transaction.payload != Payload::Text("the owner's".into()) {
            *replies.entry(transaction.payload.to_json().unwrap()).or_default() += 1;
            times.push(time);
        }
    }
    assert!(replies.values().all(|&count| count == 1), "no reply is there twice: {replies:?}");
    assert_eq!(replies.len() as u64 + status.refused, handled.len() as u64, "each reply is there, or was refused");
    for (first, time) in times.iter().enumerate() {
        let hour = times[first..].iter().filter(|other| other.0 - time.0 < 3_600 * SECOND).count();
        assert!(hour as u64 <= max_fee_per_hour, "{hour} replies within an hour");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_each_message_is_handled_once_and_each_reply_is_sent_once(
        steps in prop::collection::vec(any_step(), 1..60),
        max_fee_per_hour in prop_oneof![Just(0_u64), 1_u64..6, Just(1_000_000)],
        events_per_block_max in prop_oneof![1_usize..4, Just(256)],
    ) {
        run(play(steps, max_fee_per_hour, events_per_block_max));
    }
}
