//! Buffers, pending transactions, and a stop at any moment.

use std::sync::Arc;

use proptest::prelude::*;
use tenon::chain::{Kind, Payload, Transaction};
use tenon::ledger::{Ledger, LedgerOptions};
use tenon::mempool::{Mempool, MempoolConfig, MempoolHook};
use tenon::sample::Sample;
use tenon::sync::follower::Follower;
use tenon::sync::http::HttpSource;
use tenon::sync::one_peer::OnePeer;
use tenon::sync::{SyncConfig, forward};
use tokio::sync::watch;

use super::source::TestSource;
use super::{HANG, Running, config, is_at, open};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_buffers_stay_within_their_bytes() {
    let mut sample = Sample::new(13, 20);
    // Blocks of 70 KB, so that a budget of 1 MiB is a dozen of them.
    let to = tenon::chain::Address::of(&sample.accounts()[0].public_key());
    let chain_id = sample.genesis().chain_id.clone();
    let blocks: Vec<_> = (0..120)
        .map(|nonce| {
            let payload = Payload::Text("x".repeat(60_000));
            let message = Transaction::new(Kind::Message, to, 0, 1, nonce, payload);
            let message = message.signed(&chain_id, &sample.accounts()[1]);
            sample.block_with(vec![message])
        })
        .collect();
    let source = TestSource::start(sample.genesis(), &blocks).await;
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    let config = SyncConfig { buffer_bytes_max: 1 << 20, ..config(&[&source]) };
    // Two requests for the lowest missing block may go beyond it, by a block and what is read at a time.
    let bound = config.buffer_bytes_max + 2 * (80 << 10);
    let mut running = Running::start(&ledger, config, Arc::new(OnePeer::default()));
    let status = running.until("the head", |status| is_at(status, 120)).await;
    let most = status.buffered_bytes_peak;
    assert!(most <= bound, "{most} bytes at most, {bound} allowed");
    assert_eq!(ledger.head(), *sample.head());
    assert_eq!(status.refused_actions, 0, "what the limits allow has room");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pending_transactions_are_handed_to_the_source() {
    let mut sample = Sample::new(14, 4);
    let blocks = sample.blocks(3, 0);
    let source = TestSource::start(sample.genesis(), &blocks).await;
    let dir = tempfile::tempdir().unwrap();
    let hook = MempoolHook::new();
    let handle = hook.handle();
    let options = LedgerOptions::new(dir.path().join("chain.db"), (**sample.genesis()).clone());
    let ledger = Ledger::open(options, vec![Box::new(hook)]).unwrap();
    let mempool = Mempool::open(ledger.clone(), handle, MempoolConfig::default()).unwrap();
    let config = config(&[&source]);
    let follower = Follower::new(
        ledger.clone(),
        Arc::new(OnePeer::default()),
        HttpSource::all(&config).unwrap(),
        "this node".into(),
        config.clone(),
    )
    .unwrap();
    let (stop, stopped) = watch::channel(false);
    let chain_id = sample.genesis().chain_id.clone();
    let forwarder = forward::run(mempool.clone(), chain_id.clone(), follower.usable(), config, stopped.clone());
    let tasks = [tokio::spawn(forwarder), tokio::spawn(follower.run(stopped))];
    let to = tenon::chain::Address::of(&sample.accounts()[0].public_key());
    let mut sent = Vec::new();
    for nonce in 0..5 {
        for sender in 1..4 {
            let transaction = Transaction::new(Kind::Transfer, to, 1, 1, nonce, Payload::Absent);
            sent.push(transaction.signed(&chain_id, &sample.accounts()[sender]));
            mempool.submit_transaction(sent.last().unwrap().clone()).await.unwrap();
        }
    }
    let mut submitted = source.submitted();
    let came = tokio::time::timeout(HANG, submitted.wait_for(|came| came.len() == sent.len())).await;
    let came = came.expect("all of them come").unwrap().clone();
    let came: Vec<_> = came
        .iter()
        .map(|json| tenon::chain::Submission::parse(json).unwrap().into_transaction(None).unwrap())
        .collect();
    for transaction in &sent {
        assert!(came.contains(transaction));
    }
    for sender in 1..4 {
        let key = sample.accounts()[sender].public_key();
        let nonces = came.iter().filter(|transaction| transaction.public_key == key).map(|t| t.nonce);
        assert!(nonces.is_sorted(), "one sender's come in order");
    }
    stop.send(true).unwrap();
    for task in tasks {
        tokio::time::timeout(HANG, task).await.unwrap().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_stop_at_any_moment_loses_nothing(stops in prop::collection::vec(0..600_u64, 1..5)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut sample = Sample::new(15, 10);
            let blocks = sample.blocks(600, 1);
            let source = TestSource::start(sample.genesis(), &blocks).await;
            let dir = tempfile::tempdir().unwrap();
            let config = SyncConfig { range_blocks_max: 16, in_flight_per_peer_max: 3, ..config(&[&source]) };
            for stop in stops {
                let ledger = open(dir.path(), sample.genesis());
                let before = ledger.head();
                let mut running = Running::start(&ledger, config.clone(), Arc::new(OnePeer::default()));
                running.until("the moment", |status| status.head_height >= stop).await;
                running.stop().await;
                let after = ledger.head();
                assert!(after.height >= before.height.max(stop));
                ledger.stop();
                drop(ledger);
            }
            let ledger = open(dir.path(), sample.genesis());
            let mut running = Running::start(&ledger, config, Arc::new(OnePeer::default()));
            running.until_live_at(600).await;
            assert_eq!(ledger.head(), *sample.head());
            running.stop().await;
            ledger.stop();
        });
    }
}
