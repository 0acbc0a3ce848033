//! What happened in how many seeds.

use std::fmt;
use std::ops::AddAssign;

/// Counts, over one seed or many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub seeds: u64,
    pub nodes: u64,
    /// Virtual milliseconds.
    pub ms: u64,
    /// Things that happened to nodes.
    pub events: u64,
    /// Blocks that were made, on whichever branch.
    pub blocks: u64,
    /// Switches that took blocks back.
    pub reorgs: u64,
    /// The most blocks that one of them took back.
    pub reorg_depth_max: u64,
    /// Nodes that in the end refuse a better branch.
    pub refused: u64,
    pub partitions: u64,
    pub kills: u64,
    pub stops: u64,
    pub clocks_set: u64,
    pub messages: u64,
    pub lost: u64,
    pub twice: u64,
    pub submitted: u64,
    /// Over all nodes: transactions in blocks, waiting, and dropped with a reason.
    pub in_blocks: u64,
    pub waiting: u64,
    pub dropped: u64,
    /// The longest that it took all nodes to agree once everything was well again, in virtual milliseconds.
    pub healing_ms_max: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.nodes += other.nodes;
        self.ms += other.ms;
        self.events += other.events;
        self.blocks += other.blocks;
        self.reorgs += other.reorgs;
        self.reorg_depth_max = self.reorg_depth_max.max(other.reorg_depth_max);
        self.refused += other.refused;
        self.partitions += other.partitions;
        self.kills += other.kills;
        self.stops += other.stops;
        self.clocks_set += other.clocks_set;
        self.messages += other.messages;
        self.lost += other.lost;
        self.twice += other.twice;
        self.submitted += other.submitted;
        self.in_blocks += other.in_blocks;
        self.waiting += other.waiting;
        self.dropped += other.dropped;
        self.healing_ms_max = self.healing_ms_max.max(other.healing_ms_max);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seeds, nodes, events, blocks, reorgs, reorg_depth_max, refused, .. } = self;
        let Self { partitions, kills, stops, clocks_set, messages, lost, twice, .. } = self;
        let Self { submitted, in_blocks, waiting, dropped, healing_ms_max, .. } = self;
        let minutes = self.ms / 60_000;
        writeln!(f, "{seeds} seeds, {nodes} nodes, {minutes} virtual minutes, {events} events")?;
        writeln!(
            f,
            "{blocks} blocks, {reorgs} reorgs, of up to {reorg_depth_max} blocks; {refused} refused in the end"
        )?;
        writeln!(f, "{partitions} partitions, {kills} kills, {stops} stops, {clocks_set} clocks set")?;
        writeln!(f, "{messages} messages, {lost} lost, {twice} came twice")?;
        writeln!(f, "{submitted} transactions; by node: {in_blocks} in blocks, {waiting} waiting, {dropped} dropped")?;
        write!(f, "agreed at most {healing_ms_max} ms after everything was well")
    }
}
