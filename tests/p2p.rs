//! Connections between nodes: real swarms on loopback, real blocks, and strangers who push what they should not. Waits
//! for events, never for time.

use std::time::Duration;

use tenon::chain::{Block, Hash, Head, Header, Payload, Time, Transaction, format, merkle};
use tenon::mempool::Pending;
use tenon::p2p::book::Direction;
use tenon::p2p::gossip::Topic;
use tenon::p2p::wire::{Answer, Hello, Request, TRANSACTION_BYTES_MAX};
use tenon::p2p::{Identity, P2pConfig, P2pStatus};
use tenon::rate_limit::token_bucket::{Rate, Settings};
use tenon::sync::HeightRange;
use tenon::sync::budget::Budget;
use tenon::sync::source::{Source as _, SourceError, frames};

#[path = "support/peer.rs"]
mod peer;
use peer::{Chain, HANG, Peer, Stranger, config, listen};

const PACKET: usize = 8 << 20;

fn bytes(block: &Block) -> Vec<u8> {
    let mut bytes = Vec::new();
    block.encode(&mut bytes);
    bytes
}

/// The next block on top of `node`'s head, with a state root that is nobody's.
fn block_on(chain: &Chain, head: &Head, transactions: Vec<Transaction>, state_root: Hash) -> Block {
    let chain_id = &chain.genesis.chain_id;
    let leaves: Vec<_> = transactions
        .iter()
        .map(|transaction| format::transaction_leaf(&transaction.hash(chain_id), transaction))
        .collect();
    let header = Header {
        version: format::VERSION,
        chain_id: chain_id.clone(),
        height: head.height + 1,
        parent_hash: head.hash,
        timestamp: Time(Time::now().0.max(head.timestamp.0 + 1)),
        proposer: chain.genesis.authorities[0].address,
        tx_count: u32::try_from(transactions.len()).unwrap(),
        tx_root: merkle::root(&leaves),
        state_root,
    };
    Block::signed(header, transactions, &chain.authority)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_shake_hands_and_say_who_they_are() {
    let chain = Chain::new(1);
    let listener = Peer::start(&chain, config(&[])).await;
    let dialer = Peer::start(&chain, config(&[listener.address()])).await;
    let complete = |status: &P2pStatus| {
        let known = |peer: &tenon::p2p::PeerStatus| peer.in_mesh && peer.agent.is_some() && peer.latency_us.is_some();
        status.peers.len() == 1 && status.peers.iter().all(known)
    };
    let of_dialer = dialer.until("all of the listener", complete).await;
    let of_listener = listener.until("all of the dialer", complete).await;
    let (listener_seen, dialer_seen) = (&of_dialer.peers[0], &of_listener.peers[0]);
    assert_eq!((&listener_seen.id, &dialer_seen.id), (&listener.id(), &dialer.id()));
    assert_eq!((listener_seen.direction, dialer_seen.direction), (Direction::Outbound, Direction::Inbound));
    assert_eq!((listener_seen.configured, dialer_seen.configured), (true, false));
    assert!(listener_seen.admitted && dialer_seen.admitted);
    assert_eq!(listener_seen.agent.as_deref(), Some(concat!("tenon/", env!("CARGO_PKG_VERSION"))));
    assert_eq!((listener_seen.head_height, listener_seen.head_hash), (Some(0), Some(chain.hash())));
    assert!(listener_seen.score >= 0.0 && of_dialer.aside.is_empty());
    assert!(listener.address().to_string().starts_with(&listener_seen.address), "{listener_seen:?}");
    dialer.stop().await;
    listener.until("the dialer to be gone", |status| status.peers.is_empty()).await;
    assert!(listener.p2p.met().borrow().is_empty(), "sync forgets it, too");
    listener.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_with_its_transactions_travels_down_a_line_of_nodes() {
    let chain = Chain::new(2);
    let mut line = vec![Peer::start(&chain, config(&[])).await];
    for at in 1..4 {
        let before = line[at - 1].address();
        line.push(Peer::start(&chain, config(&[before])).await);
    }
    for (at, peers) in [1, 2, 2, 1].into_iter().enumerate() {
        line[at].until_meshed(peers).await;
    }
    for from in 0..10 {
        line[0].submit(chain.transfers(from, 0, 10)).await;
    }
    line[0].produce().await;
    let head = line[0].ledger.head();
    assert_eq!(head.tx_count, 100);
    for peer in &line {
        peer.until_height(1).await;
        assert_eq!(peer.ledger.head(), head);
        let block = peer.ledger.storage().read(|reader| reader.block(1)).unwrap().unwrap();
        assert_eq!(block.transactions.len(), 100);
    }
    // What came over gossip is known to have come from there.
    let shown = |status: &P2pStatus| status.peers.iter().any(|peer| peer.head_height == Some(1));
    line[3].until("the head of the one before", shown).await;
    for peer in line {
        peer.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_reach_the_producer_over_gossip_and_come_back_in_a_block() {
    let chain = Chain::new(3);
    let producer = Peer::start(&chain, config(&[])).await;
    let middle = Peer::start(&chain, config(&[producer.address()])).await;
    let submitter = Peer::start(&chain, config(&[middle.address()])).await;
    middle.until_meshed(2).await;
    submitter.until_meshed(1).await;
    let sent = chain.transfers(0, 0, 30);
    submitter.submit(sent.clone()).await;
    producer.until_waiting(30).await;
    middle.until_waiting(30).await;
    producer.produce().await;
    submitter.until_height(1).await;
    let block = submitter.ledger.storage().read(|reader| reader.block(1)).unwrap().unwrap();
    assert_eq!(block.transactions, sent);
    assert!(producer.mempool.is_empty() && submitter.mempool.is_empty());
    for peer in [submitter, middle, producer] {
        peer.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_carries_all_of_it() {
    let chain = Chain::new(4);
    let quic = P2pConfig { listen: listen("/ip4/127.0.0.1/udp/0/quic-v1"), ..config(&[]) };
    let listener = Peer::start(&chain, quic.clone()).await;
    assert!(listener.address().to_string().contains("/quic-v1/"), "{}", listener.address());
    let dialer = Peer::start(&chain, P2pConfig { peers: vec![listener.address()], ..quic }).await;
    listener.until_meshed(1).await;
    dialer.until_meshed(1).await;
    dialer.submit(chain.transfers(0, 0, 5)).await;
    listener.until_waiting(5).await;
    listener.produce().await;
    dialer.until_height(1).await;
    assert_eq!(dialer.ledger.head(), listener.ledger.head());
    let met = dialer.p2p.met().borrow().values().next().cloned().expect("the listener");
    let room = Budget::new(1 << 20).reserve(1 << 16).unwrap();
    let answer = met.source.range(HeightRange { first: 0, last: 1 }, room).await.unwrap();
    assert_eq!((answer.blocks, answer.head), (2, Some((1, dialer.ledger.head().hash))));
    for peer in [dialer, listener] {
        peer.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_chain_is_named_and_left_alone_on_both_sides() {
    let (ours, theirs) = (Chain::new(5), Chain::new(6));
    let node = Peer::start(&ours, config(&[])).await;
    let stranger = Peer::start(&theirs, config(&[node.address()])).await;
    let aside = |status: &P2pStatus| !status.aside.is_empty() && status.peers.is_empty();
    let of_node = node.until("the stranger to be put aside", aside).await;
    let of_stranger = stranger.until("the node to be put aside", aside).await;
    for (status, other, chain) in [(&of_node, &stranger, &theirs), (&of_stranger, &node, &ours)] {
        assert_eq!(status.aside[0].id, other.id());
        assert!(status.aside[0].reason.contains(&format!("chain `{}`", chain.genesis.chain_id)), "{status:?}");
        assert!(status.aside[0].remaining_ms > 500_000, "for long: {status:?}");
    }
    assert!(node.p2p.met().borrow().is_empty() && stranger.p2p.met().borrow().is_empty());
    // A node of the chain gets in as before.
    let friend = Peer::start(&ours, config(&[node.address()])).await;
    friend.until_meshed(1).await;
    for peer in [friend, stranger, node] {
        peer.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_was_away_is_dialled_until_it_is_back() {
    let chain = Chain::new(7);
    let identity = Identity::random();
    let first = Peer::start_as(&identity, &chain, config(&[]), Settings::default()).await;
    let address = first.address();
    let dialer = Peer::start(&chain, config(std::slice::from_ref(&address))).await;
    dialer.until_meshed(1).await;
    first.stop().await;
    dialer.until("the peer to be gone", |status| status.peers.is_empty()).await;
    let again = P2pConfig { listen: listen(&address.address.to_string()), ..config(&[]) };
    let second = Peer::start_as(&identity, &chain, again, Settings::default()).await;
    let status = dialer.until_meshed(1).await;
    assert_eq!(status.peers[0].id, identity.peer_id().to_string());
    // And is heard again.
    second.produce().await;
    dialer.until_height(1).await;
    for peer in [dialer, second] {
        peer.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_found_by_the_name_of_its_machine() {
    let chain = Chain::new(22);
    let listener = Peer::start(&chain, config(&[])).await;
    let named = listener.address().to_string().replace("/ip4/127.0.0.1/", "/dns4/localhost/").parse().unwrap();
    let dialer = Peer::start(&chain, config(&[named])).await;
    let status = dialer.until_meshed(1).await;
    assert_eq!(status.peers[0].id, listener.id());
    for peer in [dialer, listener] {
        peer.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_name_each_other_stay_connected() {
    let chain = Chain::new(8);
    let (one, other) = (Identity::random(), Identity::random());
    let first = Peer::start_as(&one, &chain, config(&[]), Settings::default()).await;
    let second = Peer::start_as(&other, &chain, config(&[first.address()]), Settings::default()).await;
    let (at, to) = (first.address(), second.address());
    first.stop().await;
    let again = P2pConfig { listen: listen(&at.address.to_string()), ..config(&[to]) };
    let first = Peer::start_as(&one, &chain, again, Settings::default()).await;
    first.until_meshed(1).await;
    second.until_meshed(1).await;
    first.produce().await;
    second.until_height(1).await;
    for peer in [first, second] {
        peer.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_block_goes_no_further_and_costs_its_sender() {
    let chain = Chain::new(9);
    let node = Peer::start(&chain, config(&[])).await;
    let mut observer = Stranger::introduced(&node, &chain, PACKET).await;
    let sender = Stranger::introduced(&node, &chain, PACKET).await;
    node.until_meshed(2).await;
    let head = node.ledger.head();
    let good = block_on(&chain, &head, Vec::new(), head.state_root);
    // The authority signed the header, so it passes the first look; the transaction is not the one that it commits to.
    let mut swapped = block_on(&chain, &head, chain.transfers(0, 0, 1), Hash::ZERO);
    swapped.transactions = chain.transfers(1, 0, 1);
    assert!(sender.push(Topic::Blocks, bytes(&swapped)).await);
    let id = sender.id.clone();
    let score = |status: &P2pStatus| status.peers.iter().find(|peer| peer.id == id).map_or(0.0, |peer| peer.score);
    node.until("the sender to pay", |status| score(status) < -10.0).await;
    // One that is not the authority's at all.
    let mut forged = good.clone();
    forged.signature.0[0] ^= 1;
    assert!(sender.push(Topic::Blocks, bytes(&forged)).await);
    node.until("the sender to pay more", |status| score(status) < -70.0).await;
    assert_eq!(node.ledger.height(), 0);
    // What the node itself has new is the first thing that the observer sees.
    node.produce().await;
    let (topic, seen) = observer.next().await;
    assert_eq!((topic, Block::decode(&seen).unwrap().hash()), (Topic::Blocks, node.ledger.head().hash));
    assert_eq!(node.score_of(&observer.id).map(|score| score >= 0.0), Some(true));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_cannot_be_executed_is_not_imported_and_the_next_good_one_is() {
    let chain = Chain::new(10);
    let node = Peer::start(&chain, config(&[])).await;
    let sender = Stranger::introduced(&node, &chain, PACKET).await;
    node.until_meshed(1).await;
    let head = node.ledger.head();
    let wrong = block_on(&chain, &head, Vec::new(), Hash([7; 32]));
    assert!(sender.push(Topic::Blocks, bytes(&wrong)).await);
    let good = block_on(&chain, &head, Vec::new(), head.state_root);
    assert!(sender.push(Topic::Blocks, bytes(&good)).await);
    node.until_height(1).await;
    assert_eq!(node.ledger.head().hash, good.hash());
    // Whoever pushed the wrong one could not have known.
    assert_eq!(node.score_of(&sender.id).map(|score| score >= 0.0), Some(true));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_keeps_pushing_what_is_wrong_is_disconnected_and_left_alone() {
    let chain = Chain::new(11);
    let node = Peer::start(&chain, config(&[])).await;
    let mut sender = Stranger::introduced(&node, &chain, PACKET).await;
    node.until_meshed(1).await;
    for garbage in 0..3_u8 {
        assert!(sender.push(Topic::Blocks, vec![garbage; 100]).await);
    }
    sender.until_dropped().await;
    let id = sender.id.clone();
    let gone = |status: &P2pStatus| status.peers.is_empty() && status.aside.iter().any(|aside| aside.id == id);
    let status = node.until("it to be put aside", gone).await;
    assert!(status.aside[0].reason.contains("score -"), "{status:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_transaction_goes_no_further_and_an_unlucky_one_costs_nothing() {
    let chain = Chain::new(12);
    let node = Peer::start(&chain, config(&[])).await;
    let mut observer = Stranger::introduced(&node, &chain, PACKET).await;
    let (forger, unlucky) =
        (Stranger::introduced(&node, &chain, PACKET).await, Stranger::introduced(&node, &chain, PACKET).await);
    node.until_meshed(3).await;
    let good = chain.transfers(0, 0, 1).remove(0);
    let mut forged = good.clone();
    forged.signature.0[10] ^= 1;
    assert!(forger.push(Topic::Transactions, forged.to_bytes()).await);
    let id = forger.id.clone();
    let paid = |status: &P2pStatus| status.peers.iter().any(|peer| peer.id == id && peer.score < -10.0);
    node.until("the forger to pay", paid).await;
    // More than the account has: it may have had it where the sender looked.
    let to = tenon::chain::Address([9; 20]);
    let poor = Transaction::new(tenon::chain::Kind::Transfer, to, u64::MAX / 2, 10, 0, Payload::Absent)
        .signed(&chain.genesis.chain_id, &chain.accounts[1]);
    assert!(unlucky.push(Topic::Transactions, poor.to_bytes()).await);
    assert!(unlucky.push(Topic::Transactions, good.to_bytes()).await);
    assert_eq!(observer.next().await, (Topic::Transactions, good.to_bytes()));
    assert_eq!(node.mempool.len(), 1);
    assert_eq!(node.score_of(&unlucky.id).map(|score| score >= 0.0), Some(true));
    // The right transaction waits now; the same with a wrong signature is still wrong.
    let mut again = good.clone();
    again.signature.0[11] ^= 1;
    assert!(forger.push(Topic::Transactions, again.to_bytes()).await);
    let paid = |status: &P2pStatus| status.peers.iter().any(|peer| peer.id == id && peer.score < -70.0);
    node.until("the forger to pay again", paid).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_too_large_are_not_taken_and_others_are() {
    let mut chain = Chain::new(13);
    chain.genesis.block_bytes_max = 64 << 10;
    let node = Peer::start(&chain, config(&[])).await;
    let mut observer = Stranger::introduced(&node, &chain, PACKET).await;
    let sender = Stranger::introduced(&node, &chain, PACKET).await;
    let flooder = Stranger::introduced(&node, &chain, PACKET).await;
    node.until_meshed(3).await;
    // A packet beyond everything: the node does not even read it. Larger than its topic allows: it is read, and costs.
    assert!(flooder.push(Topic::Blocks, vec![1; 2 << 20]).await);
    assert!(sender.push(Topic::Transactions, vec![1; TRANSACTION_BYTES_MAX + 512]).await);
    let id = sender.id.clone();
    let paid = |status: &P2pStatus| status.peers.iter().any(|peer| peer.id == id && peer.score < -10.0);
    node.until("the sender to pay", paid).await;
    let good = chain.transfers(0, 0, 1).remove(0);
    node.submit([good.clone()]).await;
    assert_eq!(observer.next().await, (Topic::Transactions, good.to_bytes()));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_cut_to_the_senders_rate_and_ends_its_welcome() {
    let chain = Chain::new(14);
    // The burst is four of the largest transactions: 263,168 bytes. Each of these counts for some 1,180.
    let slow = P2pConfig { transaction_bytes_per_second: 1_024, ..config(&[]) };
    let node = Peer::start(&chain, slow).await;
    let mut flooder = Stranger::introduced(&node, &chain, PACKET).await;
    node.until_meshed(1).await;
    let flood: Vec<Transaction> = (0..10).flat_map(|from| chain.transfers(from, 0, 60)).collect();
    for transaction in &flood {
        if !flooder.push(Topic::Transactions, transaction.to_bytes()).await {
            break;
        }
    }
    flooder.until_dropped().await;
    let status = node.until("it to be put aside", |status| status.aside.len() == 1).await;
    assert!(status.aside[0].reason.contains("score -"), "{status:?}");
    let taken = node.mempool.len();
    assert!((150..300).contains(&taken), "{taken} of {} were taken", flood.len());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_says_nothing_or_nonsense_is_not_answered() {
    let chain = Chain::new(15);
    let node = Peer::start(&chain, config(&[])).await;
    let rude = Stranger::connect(&node, &chain, PACKET).await;
    let refused = rude.ask(&Request::Head).await;
    assert_eq!(refused, Some(Answer::Refused { status: 403, reason: "say hello first".into() }));
    assert_eq!(rude.hello(b"nonsense").await, None);
    assert_eq!(rude.hello(&vec![0; 100_000]).await, None);
    let words = rude.hello(&Stranger::words(&chain).encode()).await.expect("an answer");
    let words = Hello::decode(&words).unwrap();
    assert_eq!((words.chain_id, words.head), (chain.genesis.chain_id.clone(), (0, chain.hash())));
    assert_eq!(rude.ask(&Request::Head).await, Some(Answer::Head((0, chain.hash()))));
    assert_eq!(rude.ask_bytes(vec![9]).await, None);
    assert_eq!(rude.ask_bytes(vec![2; 1 << 20]).await, None);
    let many = Request::Range(HeightRange { first: 0, last: 1_000 });
    assert!(matches!(rude.ask(&many).await, Some(Answer::Refused { status: 400, .. })));
    let none = Request::Range(HeightRange { first: 5, last: 9 });
    assert!(matches!(rude.ask(&none).await, Some(Answer::Blocks { length: 0, .. })));
    // It is still well.
    assert_eq!(rude.ask(&Request::Head).await, Some(Answer::Head((0, chain.hash()))));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_beyond_what_one_peer_may_have_under_way_are_put_off() {
    let chain = Chain::new(16);
    let node = Peer::start(&chain, config(&[])).await;
    let asker = Stranger::introduced(&node, &chain, PACKET).await;
    let range = Request::Range(HeightRange { first: 0, last: 0 });
    let answers = libp2p::futures::future::join_all((0..64).map(|_| asker.ask(&range))).await;
    let blocks = answers.iter().filter(|answer| matches!(answer, Some(Answer::Blocks { .. }))).count();
    let put_off = answers.iter().filter(|answer| matches!(answer, Some(Answer::Limited { .. }))).count();
    assert_eq!(blocks + put_off, 64, "every one is answered");
    assert!(blocks >= 16, "{blocks} were served");
    assert!(matches!(asker.ask(&range).await, Some(Answer::Blocks { .. })), "later it is served again");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_whose_parent_is_missing_tells_sync_who_has_it() {
    let chain = Chain::new(17);
    let (ahead, behind) = (Peer::start(&chain, config(&[])).await, Peer::start(&chain, config(&[])).await);
    for _ in 0..3 {
        ahead.produce().await;
    }
    let sender = Stranger::introduced(&behind, &chain, PACKET).await;
    behind.until_meshed(1).await;
    let newest = ahead.ledger.storage().read(|reader| reader.block(3)).unwrap().unwrap();
    assert!(sender.push(Topic::Blocks, bytes(&newest)).await);
    let mut met = behind.p2p.met();
    let shown = |met: &tenon::p2p::Met| met.values().any(|peer| peer.head == Some((3, newest.hash())));
    tokio::time::timeout(HANG, met.wait_for(shown)).await.expect("it is noticed").unwrap();
    assert_eq!(behind.ledger.height(), 0);
    assert_eq!(behind.score_of(&sender.id).map(|score| score >= 0.0), Some(true));
    for peer in [ahead, behind] {
        peer.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_over_libp2p_gives_whole_blocks_within_the_room_there_is() {
    let chain = Chain::new(18);
    let server = Peer::start(&chain, config(&[])).await;
    for height in 0..60 {
        server.submit(chain.transfers(height % 20, (height / 20) as u64 * 5, 5)).await;
        server.produce().await;
    }
    let client = Peer::start(&chain, config(&[server.address()])).await;
    client.until_meshed(1).await;
    let source = client.p2p.met().borrow().values().next().cloned().expect("the server").source;
    assert_eq!(source.name(), format!("p2p:{}", server.id()));
    let info = source.info().await.unwrap();
    assert_eq!((info.chain_id, info.genesis_hash), (chain.genesis.chain_id.clone(), chain.hash()));
    assert_eq!(info.node_id, "a node for tests");
    let head = server.ledger.head();
    let shown = source.head().await.unwrap();
    assert_eq!((shown.head, shown.snapshot), (Some((head.height, head.hash)), None), "peers offer no snapshots");
    assert!(source.chunks().is_none());
    // Room for all of it, then for some, which is given back.
    let budget = Budget::new(1 << 20);
    let all = HeightRange { first: 1, last: 60 };
    let answer = source.range(all, budget.reserve(4_096).unwrap()).await.unwrap();
    let stored: Vec<_> = server.ledger.storage().read(|reader| reader.encoded_blocks(1, 60, usize::MAX)).unwrap();
    assert_eq!(
        (answer.blocks, frames(&answer.body).collect::<Vec<_>>()),
        (60, stored.iter().map(Vec::as_slice).collect())
    );
    assert_eq!(budget.used(), answer.body.len() as u64);
    let whole = answer.body.len();
    drop(answer);
    assert_eq!(budget.used(), 0);
    let beyond = source.range(HeightRange { first: 58, last: 90 }, budget.reserve(4_096).unwrap()).await.unwrap();
    assert_eq!(beyond.blocks, 3);
    drop(beyond);
    let tight = Budget::new(whole as u64 / 3);
    let mut first = 1;
    let mut blocks = 0;
    while first <= 60 {
        let answer = source.range(HeightRange { first, last: 60 }, tight.reserve(512).unwrap()).await.unwrap();
        assert!(answer.blocks > 0);
        first += answer.blocks;
        blocks += frames(&answer.body).count();
    }
    assert_eq!((blocks, tight.used()), (60, 0));
    // A transaction that this node publishes is not handed over; one that waits since before the start is.
    let id = &chain.genesis.chain_id;
    let waiting = |transaction: Transaction, received| Pending { hash: transaction.hash(id), transaction, received };
    let fresh = chain.transfers(0, 100, 1).remove(0);
    source.submit(id, &waiting(fresh.clone(), Time::now())).await.unwrap();
    assert_eq!(server.mempool.len(), 0);
    source.submit(id, &waiting(fresh, Time(0))).await.unwrap();
    assert_eq!(server.mempool.len(), 1);
    let mut wrong = chain.transfers(1, 100, 1).remove(0);
    wrong.signature.0[0] ^= 1;
    let refused = source.submit(id, &waiting(wrong, Time(0))).await.unwrap_err();
    assert!(
        matches!(&refused, SourceError::Status { status: 400, detail } if detail.contains("signature")),
        "{refused}"
    );
    server.stop().await;
    client.until("the server to be gone", |status| status.peers.is_empty()).await;
    assert!(matches!(source.head().await, Err(SourceError::Unreachable(_))));
    client.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_limit_holds_for_peers_as_it_does_over_http() {
    let chain = Chain::new(19);
    let rate = Some(Rate { capacity: 3, refill_per_second: 1 });
    let limits = Settings { sync: rate, write: rate, trusted: Vec::new(), ..Settings::default() };
    let server = Peer::start_as(&Identity::random(), &chain, config(&[]), limits).await;
    let client = Peer::start(&chain, config(&[server.address()])).await;
    client.until_meshed(1).await;
    let source = client.p2p.met().borrow().values().next().cloned().expect("the server").source;
    for _ in 0..3 {
        source.head().await.unwrap();
    }
    let limited = source.head().await.unwrap_err();
    assert!(matches!(limited, SourceError::Limited { retry_after_ms: 1..=1_000 }), "{limited}");
    // What asks for much costs much: 1,000 blocks are more than there ever is.
    let dear = source.range(HeightRange { first: 0, last: 999 }, Budget::new(1 << 20).reserve(4_096).unwrap()).await;
    assert!(matches!(dear, Err(SourceError::Status { status: 413, .. })), "{dear:?}");
    for peer in [client, server] {
        peer.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_connections_than_allowed_are_refused_but_not_those_that_are_named() {
    let chain = Chain::new(20);
    let named = Peer::start(&chain, config(&[])).await;
    let small = P2pConfig { connections_max: 2, ..config(&[named.address()]) };
    let node = Peer::start(&chain, small).await;
    node.until_meshed(1).await;
    let _first = Stranger::introduced(&node, &chain, PACKET).await;
    let _second = Stranger::introduced(&node, &chain, PACKET).await;
    let third = Peer::start(&chain, config(&[node.address()])).await;
    // It is let in for the moment of its first words and dropped; then its dials come to nothing.
    third.until("nobody", |status| status.peers.is_empty()).await;
    let status = node.until_meshed(3).await;
    assert!(status.peers.iter().all(|peer| peer.id != third.id()), "{status:?}");
    for peer in [third, node, named] {
        peer.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_taken_or_none_is_refused_by_name() {
    let chain = Chain::new(21);
    let both = serde_json::from_str(r#"["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"]"#).unwrap();
    let node = Peer::start(&chain, P2pConfig { listen: both, ..config(&[]) }).await;
    let taken = node.p2p.status().borrow().listen.clone();
    let dir = tempfile::tempdir().unwrap();
    let hook = tenon::mempool::MempoolHook::new();
    let handle = hook.handle();
    let options = tenon::ledger::LedgerOptions::new(dir.path().join("chain.db"), chain.genesis.clone());
    let ledger = tenon::ledger::Ledger::open(options, vec![Box::new(hook)]).unwrap();
    let mempool = tenon::mempool::Mempool::open(ledger.clone(), handle, Default::default()).unwrap();
    let parts = || tenon::p2p::P2pParts {
        ledger: ledger.clone(),
        mempool: mempool.clone(),
        policy: std::sync::Arc::new(peer::Open),
        callers: tenon::rate_limit::Callers::new(Default::default()),
        prices: tenon::rpc::prices(&Default::default()),
        node_id: "a node for tests".into(),
        request_timeout: Duration::from_secs(1),
        throughput_min: 1,
    };
    assert_eq!(taken.len(), 2);
    for taken in taken {
        let address = taken.parse::<tenon::p2p::address::PeerAddress>().unwrap().address.to_string();
        let same = P2pConfig { listen: listen(&address), ..config(&[]) };
        let error = tenon::p2p::P2p::listen(parts(), &Identity::random(), &same).await.err().unwrap();
        assert!(error.contains(&address) && error.contains("in use"), "{error}");
    }
    let wrong = P2pConfig { connections_max: 0, ..config(&[]) };
    let error = tenon::p2p::P2p::listen(parts(), &Identity::random(), &wrong).await.err().unwrap();
    assert!(error.contains("connections_max"), "{error}");
    ledger.stop();
    node.stop().await;
}

#[cfg(feature = "mdns")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_a_chain_find_each_other_in_the_local_network() {
    let chain = Chain::new(23);
    // Found by multicast, so not on loopback.
    let near = || P2pConfig { listen: listen("/ip4/0.0.0.0/tcp/0"), mdns: true, ..config(&[]) };
    let (one, other) = (Peer::start(&chain, near()).await, Peer::start(&chain, near()).await);
    one.until_meshed(1).await;
    other.until_meshed(1).await;
    one.produce().await;
    other.until_height(1).await;
    for peer in [one, other] {
        peer.stop().await;
    }
}
