//! Sources that break, refuse or send what is not valid.

use std::sync::Arc;

use tenon::chain::{Block, Hash};
use tenon::sample::Sample;
use tenon::sync::one_peer::OnePeer;
use tenon::sync::{SyncConfig, SyncState, SyncStatus};

use super::source::{Fault, TestSource};
use super::{HANG, Running, config, is_at, open};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_of_a_source_costs_it_and_the_blocks_come_from_another() {
    let faults = [
        Fault::Garbage,
        Fault::BadSignature,
        Fault::WrongHeights,
        Fault::Truncated,
        Fault::Oversized,
        Fault::TooMany,
        Fault::Empty,
        Fault::Silent,
        Fault::Stalls,
        Fault::Limited(30),
        Fault::Broken,
        Fault::OtherType,
    ];
    let mut sample = Sample::new(4, 10);
    let blocks = sample.blocks(300, 2);
    let good = TestSource::start(sample.genesis(), &blocks[..200]).await;
    for fault in faults {
        // The bad one has more blocks at first, so it is asked first.
        let bad = TestSource::start(sample.genesis(), &blocks).await;
        bad.set_fault(fault);
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path(), sample.genesis());
        let config = SyncConfig { range_blocks_max: 50, in_flight_per_peer_max: 2, ..config(&[&bad, &good]) };
        let mut running = Running::start(&ledger, config, Arc::new(OnePeer::default()));
        // Blocks above 200 may be here by then: some faults do not show at the end of a chain.
        let caught = |status: &SyncStatus| status.peers[1].blocks == 200 && status.peers[0].failures > 0;
        let status = running.until(&format!("{fault:?}"), caught).await;
        let [culprit, other] = &status.peers[..] else { panic!() };
        assert_eq!((culprit.blocks, other.blocks), (0, 200), "{fault:?}");
        assert!(culprit.reason.is_some() && status.failed_requests > 0, "{fault:?}: {culprit:#?}");
        assert!(fault == Fault::Limited(30) || culprit.score < 100, "{fault:?}: {culprit:#?}");
        // What only the bad one has comes from it once it is good again.
        bad.set_fault(Fault::None);
        let status = running.until_live_at(300).await;
        assert_eq!(status.peers[0].blocks, 100, "{fault:?}");
        assert_eq!(ledger.head(), *sample.head());
        running.stop().await;
        ledger.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_whose_limits_refuse_everything_is_still_asked() {
    let mut sample = Sample::new(5, 1);
    let blocks = sample.blocks(30, 1);
    for refusal in [Fault::Limited(3_600), Fault::Refuses(429), Fault::Refuses(403)] {
        let source = TestSource::start(sample.genesis(), &blocks).await;
        source.set_fault(Fault::Empty);
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path(), sample.genesis());
        let mut running = Running::start(&ledger, config(&[&source]), Arc::new(OnePeer::default()));
        running.until("a head to go for", |status| status.best_height == 30).await;
        source.set_fault(refusal);
        let mut requests = source.requests();
        let before = *requests.borrow_and_update();
        tokio::time::timeout(HANG, requests.wait_for(|count| *count >= before + 5)).await.unwrap().unwrap();
        source.set_fault(Fault::None);
        assert!(running.until_live_at(30).await.rescues >= 3, "{refusal:?}");
        running.stop().await;
        ledger.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_breaks_a_rule_of_the_state_costs_who_sent_it() {
    let mut sample = Sample::new(6, 4);
    let blocks = sample.blocks(40, 2);
    // Signed by the authority, as only a broken one would: the state root is wrong.
    let mut wrong = blocks.clone();
    let mut header = wrong[19].header.clone();
    header.state_root = Hash([7; 32]);
    wrong[19] = Block::signed(header, wrong[19].transactions.clone(), sample.authority());
    let bad = TestSource::start(sample.genesis(), &wrong[..20]).await;
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    let good = TestSource::start(sample.genesis(), &[]).await;
    let mut running = Running::start(&ledger, config(&[&bad, &good]), Arc::new(OnePeer::default()));
    let status = running.until("the wrong block", |status| status.problem.is_some() && status.head_height == 19).await;
    let problem = status.problem.unwrap();
    assert!(problem.contains("block 20") && problem.contains("state_root") && problem.contains(bad.url()), "{problem}");
    assert!(status.peers[0].failures > 0 && status.state != SyncState::Behind);
    good.extend(&blocks);
    let status = running.until("the head", |status| is_at(status, 40)).await;
    assert_eq!(ledger.head(), *sample.head());
    assert_eq!(status.problem, None);
    // The bad one has another block 20 than we now, validly signed: that is for the operator to know.
    let status = running.until("diverged", |status| status.state == SyncState::Diverged).await;
    assert_eq!(status.diverged.unwrap().height, 20);
    running.stop().await;
}
