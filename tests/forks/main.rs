//! Forks, from every side: what a switch to another branch needs and leaves, for the ledger, the mempool, the producer and
//! clients, in random orders, under `kill -9` and on a full disk. (What it means for agents stands in `src/agent/tests`.)

#[path = "../support/chance.rs"]
mod chance;
mod heard;
mod kill;
mod ladder;
mod mempool;
#[path = "../support/node.rs"]
#[expect(dead_code, reason = "shared: each test file uses its part")]
mod node;
mod once;
mod producer;
mod random;
mod readers;
mod rows;
mod rpc;
mod switch;
mod tree;
