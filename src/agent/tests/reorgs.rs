//! What holds for agents when the chain moves to another branch, case by case.

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
pub fn remembered(node: &Node) -> usize {
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
