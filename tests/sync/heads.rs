//! Whether a node is where its sources are: by hash, and by what they can show.

use std::sync::Arc;

use tenon::chain::{Block, Hash};
use tenon::sample::Sample;
use tenon::sync::one_peer::OnePeer;
use tenon::sync::{OnDivergence, SyncConfig, SyncState};

use super::source::TestSource;
use super::{Running, config, follow, import, is_at, open};

/// Two chains that are the same up to block 10, of different lengths above.
fn rivals(ours: usize, theirs: usize) -> (Sample, Vec<Block>, Vec<Block>) {
    let (mut sample, mut rival) = (Sample::new(7, 5), Sample::new(7, 5));
    let mut our_blocks = sample.blocks(10, 1);
    let mut their_blocks = rival.blocks(10, 1);
    our_blocks.extend(sample.blocks(ours - 10, 1));
    their_blocks.extend(rival.blocks(theirs - 10, 2));
    (sample, our_blocks, their_blocks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_with_other_blocks_is_reported_with_the_first_one_that_differs() {
    for (ours, theirs) in [(30, 30), (30, 20), (30, 70), (11, 11), (11, 12)] {
        let (sample, our_blocks, their_blocks) = rivals(ours, theirs);
        let source = TestSource::start(sample.genesis(), &their_blocks).await;
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path(), sample.genesis());
        import(&ledger, &our_blocks).await;
        let config = SyncConfig { on_divergence: OnDivergence::Halt, ..config(&[&source]) };
        let mut running = Running::start(&ledger, config, Arc::new(OnePeer::default()));
        let status = running.until("diverged", |status| status.state == SyncState::Diverged).await;
        assert!(status.diverged_since.is_some());
        let diverged = status.diverged.unwrap();
        assert_eq!((diverged.height, diverged.peer.as_str()), (11, source.url()), "{ours} {theirs}");
        assert_eq!((diverged.ours, diverged.theirs), (our_blocks[10].hash(), their_blocks[10].hash()));
        assert_eq!(ledger.head(), *sample.head(), "our chain is as it was");
        // Once the source has our chain, all is well again.
        source.replace(&our_blocks);
        let status = running.until_live_at(ours as u64).await;
        assert_eq!(status.diverged, None);
        running.stop().await;
        ledger.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_divergence_that_is_only_claimed_is_not_believed() {
    let mut sample = Sample::new(8, 5);
    let blocks = sample.blocks(20, 1);
    let liar = TestSource::start(sample.genesis(), &blocks).await;
    liar.claim(Some((15, Hash([9; 32]))));
    let honest = TestSource::start(sample.genesis(), &blocks).await;
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    let mut running = Running::start(&ledger, config(&[&liar, &honest]), Arc::new(OnePeer::default()));
    running.until_live_at(20).await;
    // Its block 15 is ours, whatever it says of its head.
    let mut forged = blocks.clone();
    forged[14].header.state_root = Hash([1; 32]);
    liar.replace(&forged);
    let status = running.until("a penalty", |status| status.peers[0].score < 100).await;
    assert_eq!((status.state, &status.diverged), (SyncState::Live, &None));
    assert!(status.peers[0].reason.as_ref().unwrap().contains("block 15 is not valid"), "{status:#?}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_ahead_of_its_sources_says_so() {
    let mut sample = Sample::new(9, 5);
    let blocks = sample.blocks(30, 1);
    let source = TestSource::start(sample.genesis(), &blocks[..12]).await;
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    import(&ledger, &blocks).await;
    let mut running = Running::start(&ledger, config(&[&source]), Arc::new(OnePeer::default()));
    let status = running.until("ahead", |status| status.state == SyncState::Ahead).await;
    assert_eq!((status.head_height, status.best_height, status.lag_blocks), (30, 12, 0));
    source.extend(&blocks[12..]);
    running.until_live_at(30).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_nobody_can_show_does_not_stop_the_sync_to_the_real_one() {
    let mut sample = Sample::new(10, 5);
    let blocks = sample.blocks(500, 1);
    let liar = TestSource::start(sample.genesis(), &blocks[..100]).await;
    liar.claim(Some((1_000_000_000, Hash([9; 32]))));
    let honest = TestSource::start(sample.genesis(), &blocks).await;
    let status = follow(&[&liar, &honest], &sample, Arc::new(OnePeer::default())).await;
    assert_eq!(status.best_height, 500);
    // Alone, it keeps the node from calling itself live.
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    let mut running = Running::start(&ledger, config(&[&liar]), Arc::new(OnePeer::default()));
    let status = running.until("what there is", |status| is_at(status, 100) && status.peers[0].failures > 2).await;
    assert_eq!((status.state, status.best_height), (SyncState::Syncing, 1_000_000_000));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_must_not_be_used_is_refused_by_name() {
    let sample = Sample::new(11, 1);
    let cases = [
        ("this node itself", None, None, Some("this node")),
        ("`elsewhere`", Some("elsewhere"), None, None),
        ("genesis", None, Some(Hash([3; 32])), None),
    ];
    for (word, chain_id, genesis_hash, node_id) in cases {
        let mut longer = Sample::new(11, 1);
        let source = TestSource::start(sample.genesis(), &longer.blocks(5, 0)).await;
        source.introduce(chain_id, genesis_hash, node_id);
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path(), sample.genesis());
        let mut running = Running::start(&ledger, config(&[&source]), Arc::new(OnePeer::default()));
        let status = running.until(word, |status| status.state == SyncState::NoSource).await;
        let [peer] = &status.peers[..] else { panic!() };
        assert!(peer.standing == "refused" && peer.reason.as_ref().unwrap().contains(word), "{peer:?}");
        assert_eq!((ledger.head().height, *source.requests().borrow()), (0, 0));
        running.stop().await;
        ledger.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_not_there_is_waited_for() {
    let mut sample = Sample::new(12, 1);
    let blocks = sample.blocks(5, 0);
    let gone = TestSource::start(sample.genesis(), &blocks).await;
    let config = config(&[&gone]);
    drop(gone);
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), sample.genesis());
    let mut running = Running::start(&ledger, config, Arc::new(OnePeer::default()));
    let status = running.until("no source", |status| status.state == SyncState::NoSource).await;
    assert_eq!(status.peers[0].standing, "down");
    running.stop().await;
    // Without sources a node follows nobody.
    let mut alone = Running::start(&ledger, SyncConfig::default(), Arc::new(OnePeer::default()));
    alone.until("authority", |status| status.state == SyncState::Authority).await;
    alone.stop().await;
}
