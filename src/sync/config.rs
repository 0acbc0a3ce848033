//! Every knob of block sync: `[sync]` in `tenon.toml`.

use crate::config::section;

/// What to do where a peer has another valid block than we.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDivergence {
    /// Say so, and import nothing more.
    Halt,
    /// Take the better branch, within the chain's `max_reorg_depth`.
    #[default]
    Reorg,
    /// Take the better branch.
    Resync,
}

section! {
    /// `[sync]`: whom this node reads the chain from, and how.
    pub struct SyncConfig {
        /// Base URLs of the nodes to read blocks from, `http://` or `https://`; none: the node follows nobody. Nothing but
        /// pending transactions is ever sent to a source.
        sources: Vec<String> = Vec::new();
        /// Milliseconds between two looks at a source's head.
        poll_ms: u64 = 500, 10..=60_000;
        /// How far above the local head a range may end, in blocks.
        window_blocks: u64 = 50_000, 1..=1_000_000;
        /// Requests for ranges under way in all.
        in_flight_max: u32 = 16, 1..=256;
        /// Requests for ranges under way to one source.
        in_flight_per_peer_max: u32 = 8, 1..=64;
        /// Blocks in one request; a node serves 1,000 at most. Large blocks make for shorter ranges.
        range_blocks_max: u32 = 1_000, 1..=1_000;
        /// Encoded bytes of blocks that may be under way, waiting or being stored, and a few blocks more where nothing could
        /// go on without. In memory they take up to twice as much.
        buffer_bytes_max: u64 = 32 << 20, 1 << 20..=4 << 30;
        /// Threads that verify signatures; 0: as many as there are cores.
        verify_threads: usize = 0, 0..=256;
        /// Milliseconds that the lowest missing block may go without being asked for before the node asks itself, whatever
        /// the strategy wants.
        watchdog_ms: u64 = 3_000, 100..=4_000;
        /// Milliseconds that a source may leave a request without a byte.
        request_timeout_ms: u64 = 10_000, 100..=120_000;
        /// Milliseconds until a connection must stand.
        connect_timeout_ms: u64 = 3_000, 100..=60_000;
        /// Bytes a second below which an answer that has taken longer than `request_timeout_ms` is given up.
        throughput_min: u64 = 16 << 10, 1..=1 << 30;
        /// Milliseconds without another chunk after which a snapshot that the strategy wants is given up.
        snapshot_patience_ms: u64 = 60_000, 100..=3_600_000;
        /// The longest that a source is left alone after failures, in milliseconds.
        backoff_max_ms: u64 = 30_000, 100..=3_600_000;
        /// Milliseconds after which a pending transaction is handed to a source once more.
        forward_again_ms: u64 = 15_000, 1_000..=3_600_000;
        /// Blocks after which all accounts are read again, and must make the head's state root; 0: only at the start.
        verify_state_every: u64 = 10_000, 0..=1_000_000_000;
        /// What to do where a peer has another valid block than we: `"halt"` (say so and import nothing more, from anyone),
        /// `"reorg"` (take the better branch, unless too many blocks would have to be taken back; then say so) or
        /// `"resync"` (take the better branch, however many that are). The longer branch is the better one, of two that
        /// are equally long the one whose head has the lower hash.
        on_divergence: OnDivergence = OnDivergence::Reorg;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_range_and_each_knob_out_of_it_is_named() {
        assert_eq!(SyncConfig::default().check(), Ok(()));
        let cases: [(&str, SyncConfig); 4] = [
            ("poll_ms", SyncConfig { poll_ms: 0, ..SyncConfig::default() }),
            ("watchdog_ms", SyncConfig { watchdog_ms: 60_000, ..SyncConfig::default() }),
            ("range_blocks_max", SyncConfig { range_blocks_max: 1_001, ..SyncConfig::default() }),
            ("buffer_bytes_max", SyncConfig { buffer_bytes_max: 0, ..SyncConfig::default() }),
        ];
        for (name, config) in cases {
            assert!(config.check().unwrap_err().contains(name), "{name}");
        }
    }
}
