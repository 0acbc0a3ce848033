//! How soon a new block is everywhere: 20 nodes in this process, connected over loopback TCP, each with a database of
//! its own. From the commit at the node that made the block to the commit at each of the others.

use std::time::{Duration, Instant};

use tenon::chain::Time;
use tenon::ledger::ProduceRequest;

use crate::peer::{Chain, Peer, config};
use crate::report::{Report, median};

const NODES: usize = 20;
const BLOCKS: u64 = 80;
const TRANSACTIONS: u64 = 100;

/// Adds the figures to `report`.
pub async fn run(report: &mut Report) {
    let chain = Chain::new(70);
    let mut nodes = vec![Peer::start(&chain, config(&[])).await];
    for at in 1..NODES {
        // The one before and the one at half the way: nobody is further than a few steps from anybody.
        let mut peers = vec![nodes[at - 1].address(), nodes[at / 2].address()];
        peers.dedup();
        nodes.push(Peer::start(&chain, config(&peers)).await);
    }
    for (at, node) in nodes.iter().enumerate() {
        let wanted = if at == NODES - 1 { 2 } else { 1 };
        let meshed = |status: &tenon::p2p::P2pStatus| status.peers.iter().filter(|peer| peer.in_mesh).count() >= wanted;
        node.until("a mesh", meshed).await;
    }
    let mut samples = Vec::new();
    for block in 0..BLOCKS {
        samples.extend(spread(&chain, &nodes, block).await);
    }
    samples.sort_by(f64::total_cmp);
    let p99 = samples[samples.len() * 99 / 100];
    report.at_most(
        format!("gossip: a block with {TRANSACTIONS} transactions, made to imported by {NODES} nodes, p99"),
        p99,
        "ms",
        250.0,
        None,
    );
    report.note("  the same, median", median(samples), "ms");
    for node in nodes {
        node.stop().await;
    }
}

/// Makes the next block at one node; answers after how many milliseconds each of the others had it.
async fn spread(chain: &Chain, nodes: &[Peer], block: u64) -> Vec<f64> {
    let each = TRANSACTIONS / chain.accounts.len() as u64;
    let candidates = (0..chain.accounts.len())
        .flat_map(|from| chain.transfers(from, block * each, each))
        .map(|transaction| {
            let hash = transaction.hash(&chain.genesis.chain_id);
            (transaction, hash)
        })
        .collect();
    let height = block + 1;
    // Another one makes each block, wherever it stands among the others.
    let maker = usize::try_from(block).expect("some dozens") * 7 % nodes.len();
    let others = nodes.iter().enumerate().filter(|(at, _)| *at != maker);
    let arrivals: Vec<_> = others
        .map(|(_, node)| {
            let mut head = node.ledger.watch();
            tokio::spawn(async move {
                let waited = head.wait_for(|head| head.height >= height);
                let waited = tokio::time::timeout(Duration::from_secs(60), waited).await;
                waited.expect("the block arrives").expect("the ledger is there");
                Instant::now()
            })
        })
        .collect();
    let request = ProduceRequest { candidates, key: chain.authority.clone(), now: Time::now(), allow_empty: false };
    let produced = nodes[maker].ledger.produce(request).await.expect("a block");
    let made = Instant::now();
    let tx_count = produced.head.map(|head| u64::from(head.tx_count));
    assert_eq!(tx_count, Some(TRANSACTIONS), "every transaction can happen");
    let mut samples = Vec::new();
    for arrival in arrivals {
        let arrived = arrival.await.expect("it arrives");
        samples.push(arrived.saturating_duration_since(made).as_secs_f64() * 1e3);
    }
    samples
}
