//! Disks that fail: power lost at any point of what a node or a command writes, calls that fail at any point.

#![cfg(target_os = "linux")]

mod calls;
#[path = "../support/chance.rs"]
mod chance;
mod disk;
mod errors;
mod files;
#[path = "../support/folders.rs"]
mod folders;
mod loss;
mod power;
#[path = "../forks/tree.rs"]
#[expect(dead_code, reason = "shared: each test file uses its part")]
mod tree;
mod work;
