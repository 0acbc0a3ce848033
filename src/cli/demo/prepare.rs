//! The two nodes' directories: an authority with a long chain, and a follower with nothing but the chain's genesis.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use tenon::chain::{Address, Allocation, Genesis, Time, verify};
use tenon::config::Config;
use tenon::ledger::{Ledger, LedgerOptions};
use tenon::sample::{self, Sample};
use tenon::wallet::{PASSWORD_FILE, Wallet, read_password};

use super::Output;
use crate::cli::http::Node;
use crate::cli::init::{Origin, Plan, trusted_genesis};

/// Any free port.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// How long storing the chain takes at least. The follower takes about as long, and two swaps have to fit into that,
/// each with the compiling of a component.
const STORING_MIN: Duration = Duration::from_secs(8);

/// However fast the machine is: the demo has to come to an end, and blocks have to fit between genesis and now.
const BLOCKS_MAX: u64 = 250_000;

/// Blocks that are made and stored at a time.
const CHUNK: u64 = 1_000;

/// Accounts that send to each other.
const ACCOUNTS: u64 = 64;

/// The seed of their keys.
const SEED: u64 = 1;

/// The chain that was made.
pub struct Chain {
    /// Its height.
    pub blocks: u64,
    /// Transactions in it.
    pub transactions: u64,
}

/// Writes an authority's directory, and `blocks` blocks and more into its database: the way in is the node's own ledger,
/// which checks each as if it came from outside.
pub async fn authority(dir: &Path, blocks: u64, transactions: u64, output: &Output) -> Result<Chain> {
    let keys: Vec<_> = (1..=ACCOUNTS).map(|index| sample::key(SEED, index)).collect();
    let allocations = keys
        .iter()
        .map(|key| Allocation { address: Address::of(&key.public_key()), balance: sample::BALANCE })
        .collect();
    // Early enough for every block, one slot apart, to lie in the past.
    let past_us = 2_000_000 * (BLOCKS_MAX + 1);
    let plan = Plan {
        chain: Origin::New {
            chain_id: "tenon-demo".into(),
            timestamp: Time(Time::now().0.saturating_sub(past_us)),
            allocations,
        },
        rpc_listen: LISTEN,
        admin_listen: LISTEN,
        more: String::new(),
    };
    plan.write(dir)?;
    // Blocks come faster than usual, so that the ping need not wait long for one.
    let file = dir.join(tenon::config::FILE);
    let text = fs::read_to_string(&file)?.replace("interval_ms = 2000", "interval_ms = 500");
    fs::write(&file, text)?;

    let config = Config::load(dir)?;
    let genesis = Genesis::parse(&fs::read_to_string(&config.chain.genesis)?)?;
    let keystore = dir.join("keystore");
    let password = read_password(&keystore.join(PASSWORD_FILE))?;
    let key = Wallet::open(&Wallet::path(&keystore, "authority")?, &password)?.key;
    let ledger = Ledger::open(LedgerOptions::new(config.store.path.clone(), genesis.clone()), Vec::new())?;
    let chain = grow(&ledger, Sample::on(Arc::new(genesis), key, keys), blocks, transactions, output).await;
    ledger.stop();
    chain
}

async fn grow(ledger: &Ledger, mut sample: Sample, blocks: u64, transactions: u64, output: &Output) -> Result<Chain> {
    let bar = output.progress(blocks, "signing");
    let mut storing = Duration::ZERO;
    let mut height = 0;
    while height < BLOCKS_MAX && (height < blocks || storing < STORING_MIN) {
        let count = CHUNK.min(BLOCKS_MAX - height);
        let made = tokio::task::block_in_place(|| sample.blocks(as_usize(count), as_usize(transactions)));
        let started = Instant::now();
        let verified = tokio::task::block_in_place(|| verify::verify_all(made, ledger.genesis()));
        let verified = verified.into_iter().collect::<Result<Vec<_>, _>>().context("a block that was just made")?;
        for imported in ledger.import(verified).await {
            imported.context("a block that was just made")?;
        }
        storing += started.elapsed();
        height += count;
        bar.set_length(blocks.max(height));
        bar.set_position(height);
    }
    bar.finish_and_clear();
    output.note(format!("made a chain of {height} blocks with {} signed transactions", height * transactions));
    Ok(Chain { blocks: height, transactions: height * transactions })
}

fn as_usize(count: u64) -> usize {
    usize::try_from(count).expect("a chunk fits into memory, so its count fits")
}

/// Writes the directory of a node that follows `source`.
pub async fn follower(dir: &Path, source: &Node) -> Result<()> {
    let genesis = Box::new(trusted_genesis(source, None).await?);
    let chain = Origin::Follow { genesis, source: source.url().to_owned() };
    Plan { chain, rpc_listen: LISTEN, admin_listen: LISTEN, more: String::new() }.write(dir)?;
    Ok(())
}
