//! What tests of the whole node share.

pub mod node;
