//! What a seed draws before anything happens: the nodes, how they are connected, and what will befall them.

use std::time::Duration;

use tenon::chain::{Address, Authority, Genesis, NonceRule, SecretKey};
use tenon::mempool::MempoolConfig;
use tenon::producer::{EmptyBlocks, ProducerConfig};
use tenon::sample;
use tenon::simulate::{Random, Span};
use tenon::sync::peers::Origin;
use tenon::sync::{OnDivergence, SyncConfig};

/// What clients have at first: little enough that a reorg makes some of them short of it.
const BALANCE: u64 = 2_000;

/// Keys of `sample::key` that are clients'; those of authorities begin at 100.
pub const CLIENTS: u64 = 5;

/// All that is decided beforehand.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where all of it comes from.
    pub seed: u64,
    /// How many nodes; those with the lowest numbers are authorities, as many as genesis names.
    pub nodes: usize,
    /// The chain's parameters.
    pub genesis: Genesis,
    /// Who talks with whom: pairs, the lower number first; everybody is connected with everybody, at least through others.
    pub links: Vec<(usize, usize)>,
    /// Whether nodes are each other's sources, or have met.
    pub origin: Origin,
    /// Of each node.
    pub sync: SyncConfig,
    /// Of each node.
    pub max_reorg_depth: u64,
    /// Of each node.
    pub mempool: MempoolConfig,
    /// Of each authority.
    pub producer: ProducerConfig,
    /// Milliseconds that a message takes.
    pub delay_ms: Span,
    /// In hundreds, how many messages are lost during the storm.
    pub loss: u64,
    /// In hundreds, how many messages come twice during the storm.
    pub twice: u64,
    /// Milliseconds that each node's clock is off, while the storm lasts.
    pub skew_ms: Vec<i64>,
    /// Milliseconds from one transaction to the next.
    pub submit_ms: Span,
    /// How long the storm lasts.
    pub storm_ms: u64,
    /// What befalls the nodes in it, and when it begins.
    pub faults: Vec<(u64, Fault)>,
}

/// Something that befalls nodes.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing passes from the first of each pair to the second for so long.
    Cut(Vec<(usize, usize)>, u64),
    /// A node dies, and comes back after so long; killed, or stopped in good order.
    Down { node: usize, for_ms: u64, killed: bool },
    /// A node's clock is set, so many milliseconds off.
    Clock { node: usize, skew_ms: i64 },
}

/// The key of the authority that is node `node`.
pub fn authority(seed: u64, node: usize) -> SecretKey {
    sample::key(seed, 100 + node as u64)
}

/// The key of client `index`, counted from 0.
pub fn client(seed: u64, index: u64) -> SecretKey {
    sample::key(seed, 1 + index)
}

impl Plan {
    /// What `seed` draws.
    pub fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let nodes = 3 + random.below(5) as usize;
        let authorities = 1 + random.below(3) as usize;
        let storm_ms = 12_000 + random.below(24_000);
        let far = random.percent(40);
        let skew_ms = (0..nodes).map(|_| skew(&mut random, far)).collect();
        let on_divergence = match random.below(10) {
            0 => OnDivergence::Halt,
            1 | 2 => OnDivergence::Resync,
            _ => OnDivergence::Reorg,
        };
        let slow = random.percent(25);
        let delay_ms = if slow { Span { low: 20, high: 1_500 } } else { Span { low: 1, high: 120 } };
        let links = links(&mut random, nodes);
        let faults = faults(&mut random, nodes, authorities, &links, storm_ms, far);
        Self {
            seed,
            nodes,
            genesis: genesis(&mut random, seed, authorities),
            origin: if random.percent(50) { Origin::Configured } else { Origin::Met },
            sync: SyncConfig {
                on_divergence,
                // Nobody waits for less than the way there and back.
                request_timeout_ms: 2 * delay_ms.high + random.within(Span { low: 100, high: 2_000 }),
                watchdog_ms: random.within(Span { low: 500, high: 4_000 }),
                range_blocks_max: [2, 5, 10, 1_000][random.below(4) as usize],
                ..SyncConfig::default()
            },
            max_reorg_depth: if random.percent(35) { 2 + random.below(8) } else { 256 },
            mempool: MempoolConfig {
                transactions_max: if random.percent(25) { 6 } else { 1_000 },
                per_sender_max: if random.percent(25) { 3 } else { 100 },
                expire_ms: if random.percent(25) { 9_000 } else { 3_600_000 },
                ..MempoolConfig::default()
            },
            producer: ProducerConfig {
                interval: Duration::from_millis(random.within(Span { low: 300, high: 1_000 })),
                empty_blocks: if random.percent(70) { EmptyBlocks::Always } else { EmptyBlocks::Heartbeat },
                heartbeat: Duration::from_secs(3),
            },
            delay_ms,
            loss: [0, 0, 2, 5, 10, 30][random.below(6) as usize],
            twice: [0, 5, 20][random.below(3) as usize],
            submit_ms: Span { low: 100, high: 1_500 },
            skew_ms,
            links,
            storm_ms,
            faults,
        }
    }

    /// How long all may take to agree, once everything is well again. What is better has to get from one end of the fleet
    /// to the other; at each node it takes some looks and a comparison, and then the branch in parts, a round trip each.
    /// And a peer that has failed in the storm may be left alone for half a minute.
    pub fn healing_ms(&self) -> u64 {
        let hops = self.nodes as u64 - 1;
        let round_trips = 15 + 40 / u64::from(self.sync.range_blocks_max);
        self.sync.backoff_max_ms + 5_000 + hops * round_trips * 2 * self.delay_ms.high
    }

    /// Whom `node` talks with.
    pub fn neighbours(&self, node: usize) -> Vec<usize> {
        let ends = self.links.iter().flat_map(|&(a, b)| [(a, b), (b, a)]);
        ends.filter(|(from, _)| *from == node).map(|(_, to)| to).collect()
    }
}

/// How far off a clock is: less than a slot either way, or, where clocks may be wrong by `far`, some slots.
fn skew(random: &mut Random, far: bool) -> i64 {
    let most = if far && random.percent(30) { 6_000 } else { 400 };
    random.below(2 * most + 1).cast_signed() - most.cast_signed()
}

fn genesis(random: &mut Random, seed: u64, authorities: usize) -> Genesis {
    let mut genesis = sample::genesis(seed, CLIENTS as usize);
    genesis.chain_id = format!("fleet-{seed}");
    genesis.slot_ms = 1_000;
    genesis.block_txs_max = if random.percent(30) { 2 } else { 100 };
    genesis.nonce_rule = if random.percent(50) { NonceRule::Sequential } else { NonceRule::Increasing };
    let keys = (0..authorities).map(|node| authority(seed, node).public_key());
    genesis.authorities = keys.map(|key| Authority { address: Address::of(&key), public_key: key }).collect();
    genesis.fee_recipient = random.percent(50).then(|| genesis.authorities[0].address);
    genesis.allocations.iter_mut().for_each(|allocation| allocation.balance = BALANCE);
    genesis.check().expect("a plan's genesis makes a chain");
    genesis
}

/// A tree over all nodes, and some more of the pairs.
fn links(random: &mut Random, nodes: usize) -> Vec<(usize, usize)> {
    let mut links: Vec<_> = (1..nodes).map(|node| (random.below(node as u64) as usize, node)).collect();
    let more = [0, 40, 100][random.below(3) as usize];
    for a in 0..nodes {
        for b in a + 1..nodes {
            if !links.contains(&(a, b)) && random.percent(more) {
                links.push((a, b));
            }
        }
    }
    links
}

fn faults(
    random: &mut Random,
    nodes: usize,
    authorities: usize,
    links: &[(usize, usize)],
    storm_ms: u64,
    far: bool,
) -> Vec<(u64, Fault)> {
    let count = random.below(8);
    let both = |&(a, b): &(usize, usize)| [(a, b), (b, a)];
    let mut faults = Vec::new();
    for _ in 0..count {
        let (mut at, for_ms) = (random.below(storm_ms), 500 + random.below(storm_ms / 2));
        let node = random.below(nodes as u64) as usize;
        let fault = match random.below(10) {
            0..=2 => {
                let camps = 2 + random.below(2);
                let camp: Vec<u64> = (0..nodes).map(|_| random.below(camps)).collect();
                let cut = links.iter().filter(|(a, b)| camp[*a] != camp[*b]).flat_map(both);
                Fault::Cut(cut.collect(), for_ms)
            }
            3 => Fault::Cut(links.iter().filter(|(a, b)| *a == node || *b == node).flat_map(both).collect(), for_ms),
            // One way only.
            4 => Fault::Cut(links.iter().flat_map(both).filter(|(from, _)| *from == node).collect(), for_ms),
            5 => {
                let skew_ms = skew(random, far);
                Fault::Clock { node, skew_ms }
            }
            6 => {
                // An authority's clock is some slots ahead, until somebody sees that, sets it right and starts the node
                // again: the slots that it has signed for come once more.
                let (node, ahead_ms) = (random.below(authorities as u64) as usize, 3_000 + random.below(5_000));
                // While it storms: after that, everything is well.
                let back_at = (at + 1_000 + random.below(ahead_ms)).min(storm_ms - 1);
                faults.push((at, Fault::Clock { node, skew_ms: ahead_ms.cast_signed() }));
                faults.push((back_at, Fault::Clock { node, skew_ms: 0 }));
                at = back_at;
                Fault::Down { node, for_ms: 50 + random.below(300), killed: random.percent(70) }
            }
            _ => Fault::Down { node, for_ms: for_ms / 2, killed: random.percent(70) },
        };
        faults.push((at, fault));
    }
    faults
}
