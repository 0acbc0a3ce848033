//! Peers that come and go while the follower runs, and what they announce.

use std::sync::Arc;

use tenon::chain::Hash;
use tenon::sample::Sample;
use tenon::sync::http::HttpSource;
use tenon::sync::one_peer::OnePeer;
use tenon::sync::source::Source;
use tenon::sync::{SyncConfig, SyncState};

use super::source::{Fault, TestSource};
use super::{Running, config, is_at, open};

fn source(of: &TestSource, config: &SyncConfig) -> Arc<dyn Source> {
    Arc::new(HttpSource::new(of.url(), config).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_sources_syncs_from_whoever_joins_and_rests_when_they_are_gone() {
    let mut sample = Sample::new(20, 5);
    let blocks = sample.blocks(300, 1);
    let [first, second] = [&blocks[..200], &blocks[..]].map(|blocks| TestSource::start(sample.genesis(), blocks));
    let (first, second) = (first.await, second.await);
    let config = config(&[]);
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    let mut running = Running::start(&ledger, config.clone(), Arc::new(OnePeer::default()));
    running.until("nobody", |status| status.state == SyncState::Authority && status.peers.is_empty()).await;
    let peers = running.peers.clone();
    peers.join(source(&first, &config)).await;
    let status = running.until_live_at(200).await;
    assert_eq!((status.peers[0].id, status.peers[0].url.as_str()), (0, first.url()));
    peers.leave(first.url()).await;
    running.until("nobody again", |status| status.state == SyncState::Authority && status.peers.is_empty()).await;
    peers.join(source(&second, &config)).await;
    peers.join(source(&second, &config)).await;
    let status = running.until_live_at(300).await;
    assert_eq!(status.peers.len(), 1, "of one name there is one");
    assert_eq!((status.peers[0].id, status.peers[0].blocks), (1, 100), "numbers are not used again");
    assert_eq!(ledger.head(), *sample.head());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_leaves_in_the_middle_is_replaced_and_comes_back_with_its_score() {
    let mut sample = Sample::new(21, 5);
    let blocks = sample.blocks(300, 1);
    let stuck = TestSource::start(sample.genesis(), &blocks).await;
    stuck.set_fault(Fault::Silent);
    let liar = TestSource::start(sample.genesis(), &blocks).await;
    liar.set_fault(Fault::BadSignature);
    let config = SyncConfig { request_timeout_ms: 100_000, watchdog_ms: 4_000, ..config(&[]) };
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    let mut running = Running::start(&ledger, config.clone(), Arc::new(OnePeer::default()));
    let peers = running.peers.clone();
    peers.join(source(&stuck, &config)).await;
    running.until("a request that is stuck", |status| status.in_flight > 0).await;
    peers.leave(stuck.url()).await;
    let status = running.until("it is given up", |status| status.in_flight == 0 && status.buffered_bytes == 0).await;
    assert_eq!((status.failed_requests, status.peers.len()), (0, 0));

    peers.join(source(&liar, &config)).await;
    let status = running.until("it is caught", |status| status.peers.iter().any(|peer| peer.score < 60)).await;
    let score = status.peers[0].score;
    peers.leave(liar.url()).await;
    running.until("it is gone", |status| status.peers.is_empty()).await;
    liar.set_fault(Fault::None);
    peers.join(source(&liar, &config)).await;
    let status = running.until("it is back", |status| !status.peers.is_empty()).await;
    // Who is new has 100. It may have lied once more before it was gone.
    assert!(status.peers[0].score < score + 20, "{score}: {:#?}", status.peers);
    running.until_live_at(300).await;
    assert_eq!(ledger.head(), *sample.head());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_announced_head_is_fetched_without_a_look() {
    let mut sample = Sample::new(22, 5);
    let blocks = sample.blocks(20, 1);
    let source = TestSource::start(sample.genesis(), &blocks[..10]).await;
    // Nobody looks again before the test has ended.
    let config = SyncConfig { poll_ms: 60_000, ..config(&[&source]) };
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    let mut running = Running::start(&ledger, config, Arc::new(OnePeer::default()));
    running.until_live_at(10).await;
    for height in 11..=20 {
        source.extend(&blocks[height - 1..height]);
        running.peers.announce(source.url(), height as u64, blocks[height - 1].hash()).await;
        running.until("the block", |status| is_at(status, height as u64)).await;
    }
    // What it does not have costs it something, and what nobody is known for nothing happens to.
    running.peers.announce("somebody else", 1_000, Hash::ZERO).await;
    running.peers.announce(source.url(), 1_000, Hash::ZERO).await;
    let status = running.until("a lie", |status| status.peers[0].failures > 0).await;
    assert_eq!(status.head_height, 20);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_go_to_the_peer_that_is_there_now() {
    let sample = Sample::new(23, 1);
    let config = config(&[]);
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    let follower = tenon::sync::follower::Follower::new(
        ledger.clone(),
        Arc::new(OnePeer::default()),
        Vec::new(),
        "this node".into(),
        config.clone(),
    );
    let follower = follower.unwrap();
    let (peers, mut usable) = (follower.peers(), follower.usable());
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let task = tokio::spawn(follower.run(stopped));
    let node = TestSource::start(sample.genesis(), &[]).await;
    let (one, another) = (source(&node, &config), source(&node, &config));
    for source in [one, another] {
        peers.join(Arc::clone(&source)).await;
        let known = |usable: &Vec<Arc<dyn Source>>| usable.iter().any(|known| Arc::ptr_eq(known, &source));
        tokio::time::timeout(super::HANG, usable.wait_for(known)).await.expect("it is usable").unwrap();
        peers.leave(node.url()).await;
    }
    tokio::time::timeout(super::HANG, usable.wait_for(Vec::is_empty)).await.expect("nobody is").unwrap();
    stop.send(true).unwrap();
    task.await.unwrap();
}
