//! What holds for messages that come while there is no handler, case by case.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

fn at(second: u64) -> Time {
    Time(START.0 + second * SECOND)
}

fn texts(node: &Node) -> String {
    String::from_utf8(node.memory()).unwrap().replace('\n', " ")
}

/// The parrot, while the flag is up.
struct Door(Arc<AtomicBool>);

impl Handler for Door {
    fn handle(&self, context: &Context, event: &Event, memory: &[u8]) -> Outcome {
        assert!(self.is_there(), "nobody is asked who is not there");
        Parrot.handle(context, event, memory)
    }

    fn is_there(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

async fn parked(node: &Node) -> (u64, u64) {
    let status = node.status().await;
    (status.parked, status.unheard)
}

#[test]
fn what_came_meanwhile_is_handled_once_and_in_order_when_there_is_a_handler() {
    run(async {
        let there = Arc::new(AtomicBool::new(false));
        let mut setup = Setup::new(Door(Arc::clone(&there)));
        setup.limits.events_per_block_max = 2;
        let node = Node::new(&setup).await;
        let mut chain = Chain::new();
        chain.extend(&[message(2, 3, 0, "a"), message(2, 3, 1, "b")], at(1));
        chain.extend(&[message(2, 3, 2, "c")], at(2));
        node.import(&chain, 9).await;
        assert_eq!((parked(&node).await, texts(&node).as_str()), ((3, 3), ""));
        let shown = node.parked().await;
        assert!(shown.iter().all(|parked| parked.unheard && parked.reason.contains("no handler is loaded")));

        // Back after a restart; the first commit fails, and what it handled is as if it had not been.
        let node = node.crash(Some(&setup)).await;
        there.store(true, Ordering::Relaxed);
        chain.extend(&[message(2, 3, 3, "d")], at(3));
        *node.saboteur.0.lock().unwrap() = Some(0);
        node.import(&chain, 1).await;
        assert_eq!((parked(&node).await, texts(&node).as_str()), ((3, 3), ""));
        // Two a block, and nothing that is newer before what is older.
        chain.extend(&[message(2, 3, 4, "e")], at(4));
        chain.extend(&[], at(5));
        for handled in ["a b ", "a b c d ", "a b c d e "] {
            node.import(&chain, 1).await;
            assert_eq!((parked(&node).await, texts(&node).as_str()), ((0, 0), handled));
        }
        assert_eq!((node.status().await.handled, node.status().await.replies_pending), (5, 5));
    });
}

#[test]
fn what_a_handler_refused_waits_for_the_operator_whoever_serves() {
    run(async {
        let node = Node::new(&Setup::new(Says(|_, _| Err("not today".into())))).await;
        let mut chain = Chain::new();
        chain.extend(&[message(2, 3, 0, "refused")], at(1));
        node.import(&chain, 1).await;
        let node = node.crash(Some(&Setup::new(Park))).await;
        chain.extend(&[message(2, 3, 1, "unheard")], at(2));
        node.import(&chain, 1).await;
        assert_eq!(parked(&node).await, (2, 1));
        // Handed in again while nobody is there, it waits for a handler like the other.
        let ids: Vec<i64> = node.parked().await.iter().map(|parked| parked.id).collect();
        let node = node.crash(Some(&Setup::new(Parrot))).await;
        chain.extend(&[], at(3));
        node.import(&chain, 1).await;
        assert_eq!((parked(&node).await, texts(&node).as_str()), ((1, 0), "unheard "));
        let agents = node.agents.clone().unwrap();
        assert_eq!(agents.retry("bob", Some(ids[1])).await.unwrap(), Some(0), "it was handled");
        let node = node.crash(Some(&Setup::new(Park))).await;
        let agents = node.agents.clone().unwrap();
        assert_eq!(agents.retry("bob", Some(ids[0])).await.unwrap(), Some(1));
        chain.extend(&[], at(4));
        node.import(&chain, 1).await;
        assert_eq!(parked(&node).await, (1, 1));
        let node = node.crash(Some(&Setup::new(Parrot))).await;
        chain.extend(&[], at(5));
        node.import(&chain, 1).await;
        assert_eq!((parked(&node).await, texts(&node).as_str()), ((0, 0), "unheard refused "));
    });
}

/// Says that it is there, is not with its second call, and is again.
struct Leaves(AtomicUsize);

impl Handler for Leaves {
    fn handle(&self, context: &Context, event: &Event, memory: &[u8]) -> Outcome {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            1 => Err(Aside::NoHandler),
            _ => Parrot.handle(context, event, memory),
        }
    }
}

#[test]
fn a_handler_that_goes_and_comes_within_a_block_handles_nothing_out_of_its_order() {
    run(async {
        let node = Node::new(&Setup::new(Leaves(AtomicUsize::new(0)))).await;
        let mut chain = Chain::new();
        chain.extend(&[message(2, 3, 0, "a"), message(2, 3, 1, "b"), message(2, 3, 2, "c")], at(1));
        node.import(&chain, 1).await;
        assert_eq!((parked(&node).await, texts(&node).as_str()), ((2, 2), "a "));
        chain.extend(&[message(2, 3, 3, "d")], at(2));
        node.import(&chain, 1).await;
        assert_eq!((parked(&node).await, texts(&node).as_str()), ((0, 0), "a b c d "));
    });
}

#[test]
fn a_timer_that_runs_out_meanwhile_comes_before_what_is_newer() {
    struct Clock(Arc<AtomicBool>);
    impl Handler for Clock {
        fn handle(&self, context: &Context, event: &Event, memory: &[u8]) -> Outcome {
            let timer = |tag: &str| Effect::StartTimer { tag: tag.into(), at: Time(context.now.0 + SECOND) };
            let (effects, text) = match event {
                Event::Message(Message { payload: Payload::Text(text), .. }) => {
                    (vec![timer(&format!("after {text}"))], text)
                }
                Event::Message(_) => return Err("no text".into()),
                Event::Timer(tag) => (Vec::new(), tag),
            };
            Ok((effects, [memory, text.as_bytes(), b"\n"].concat()))
        }

        fn is_there(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }
    run(async {
        let there = Arc::new(AtomicBool::new(true));
        let node = Node::new(&Setup::new(Clock(Arc::clone(&there)))).await;
        let mut chain = Chain::new();
        chain.extend(&[message(2, 3, 0, "a")], at(1));
        node.import(&chain, 1).await;
        there.store(false, Ordering::Relaxed);
        chain.extend(&[message(2, 3, 1, "b")], at(2));
        node.import(&chain, 1).await;
        assert_eq!((parked(&node).await, texts(&node).as_str()), ((2, 2), "a "));
        assert_eq!(node.parked().await[0].timer.as_deref(), Some("after a"));
        there.store(true, Ordering::Relaxed);
        chain.extend(&[message(2, 3, 2, "c")], at(3));
        node.import(&chain, 1).await;
        assert_eq!((parked(&node).await, texts(&node).as_str()), ((0, 0), "a after a b c "));
    });
}
