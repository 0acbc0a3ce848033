//! Tenon: a chain node whose policies are WebAssembly components.
//!
//! The host keeps the chain: storage, RPC, sync, agents' mail. What an operator may want to decide differently (who may
//! call how often, from whom and how to sync, how an agent answers a message) is a component in a directory, typed by
//! WIT, swapped while the node runs.
//!
//! # The one rule
//! A plugin is a pure step, `(request, memory) -> (answer, memory)`. All that it needs comes in, the time too; all that
//! it wants and remembers comes out, and the host keeps it. So any instance can serve any call, and a trap, a reload or
//! a restart loses nothing.
//!
//! # The parts, in reading order
//! | module | what it is |
//! |---|---|
//! | [`chain`] | blocks, transactions, accounts, and when they are valid: pure |
//! | [`storage`] | the SQLite database; all SQL |
//! | [`ledger`] | the one thread that adds blocks: rules and storage in one transaction |
//! | [`mempool`], [`producer`] | transactions that wait; the authority that puts them into blocks |
//! | [`rate_limit`], [`sync`], [`agent`] | the three roles: nouns, a trait, a built-in, and the loop that asks it |
//! | [`rpc`], [`telemetry`] | HTTP: one table of routes, the rate limit around each; metrics |
//! | [`p2p`] | connections between nodes: new blocks and transactions pushed, ranges asked for |
//! | [`snapshot`] | a chain's state with what proves it: made, loaded, downloaded |
//! | [`maintenance`] | what keeps a node's data well: snapshots served, the state verified, backups, repair |
//! | [`events`], [`monitor`] | what happens, for those who listen; what is wrong, for the operator |
//! | [`memory`], [`priority`] | gives back what a burst of work leaves behind; lets go first whoever answers |
//! | [`simulate`] | strategies in virtual time: the follower's engine among modelled peers |
//! | [`bindings`] | a component in each role: WIT on one side, the trait on the other |
//! | [`rehearsal`] | what the plugins of a configuration say to their settings, without a node |
//! | `tenon_runtime` | hosts components: slots, generations, loading, limits, health; knows no chain |
//!
//! Data flows one way: configuration, node, (storage, chain), plugins, (sync, rpc, agents). The first scan of the
//! plugin directory ends before a socket opens; a stop runs the list backwards.
//!
//! # Four flows
//! **A block comes in** over HTTP: the rate limit's policy is asked, the body becomes a [`chain::Block`],
//! [`chain::verify`] makes it a [`chain::VerifiedBlock`], and [`ledger::Ledger::import`] puts it on the chain, or says
//! which rule it breaks. Nothing else can be imported. Where another branch is the better one
//! ([`chain::fork_choice`]), [`ledger::Ledger::switch_branch`] takes ours back and puts that one in its place, in one
//! commit.
//!
//! **A follower catches up**: the strategy says which ranges to ask of whom; the follower downloads, verifies on other
//! cores, orders and imports them, thousands of blocks a commit, with its buffers bounded in bytes.
//!
//! **A block is pushed** by a peer: its header shows at once whether an authority signed it, the rest is verified on
//! another thread; a good one goes on to other peers and is imported, a wrong one costs its sender.
//!
//! **A message reaches an agent**: inside the transaction that stores the block, its handler is asked, and its memory
//! and its replies are stored. So a message is handled once, whatever dies when.

pub mod agent;
pub mod bindings;
pub mod chain;
pub mod config;
pub mod events;
pub mod ledger;
pub mod maintenance;
pub mod memory;
pub mod mempool;
pub mod monitor;
pub mod node;
pub mod p2p;
pub mod priority;
pub mod producer;
pub mod rate_limit;
pub mod rehearsal;
pub mod rpc;
pub mod sample;
pub mod simulate;
pub mod snapshot;
pub mod storage;
pub mod sync;
pub mod telemetry;
pub mod wallet;
