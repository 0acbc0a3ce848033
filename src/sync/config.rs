//! Every knob of block sync: `[sync]` in `tenon.toml`.

use serde::{Deserialize, Serialize};

/// How a node follows its sources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SyncConfig {
    /// Base URLs of the nodes to read blocks from, `http://` or `https://`; none: the node follows nobody. Nothing but
    /// pending transactions is ever sent to a source.
    pub sources: Vec<String>,
    /// Milliseconds between two looks at a source's head, 10 to 60,000.
    pub poll_ms: u64,
    /// How far above the local head a range may end, in blocks, 1 to 1,000,000.
    pub window_blocks: u64,
    /// Requests for ranges under way in all, 1 to 256.
    pub in_flight_max: u32,
    /// Requests for ranges under way to one source, 1 to 64.
    pub in_flight_per_peer_max: u32,
    /// Blocks in one request, 1 to 1,000 (what a node serves at most). Large blocks make for shorter ranges.
    pub range_blocks_max: u32,
    /// Encoded bytes of blocks that may be under way, waiting or being stored, 1 MiB to 4 GiB. In memory they take up to
    /// twice as much.
    pub buffer_bytes_max: u64,
    /// Threads that verify signatures, 1 to 256; 0: as many as there are cores.
    pub verify_threads: usize,
    /// Milliseconds that the lowest missing block may go without being asked for before the node asks itself, whatever
    /// the strategy wants, 100 to 4,000.
    pub watchdog_ms: u64,
    /// Milliseconds that a source may leave a request without a byte, 100 to 120,000.
    pub request_timeout_ms: u64,
    /// Milliseconds until a connection must stand, 100 to 60,000.
    pub connect_timeout_ms: u64,
    /// Bytes a second below which an answer that has taken longer than `request_timeout_ms` is given up, 1 to 2^30.
    pub throughput_min: u64,
    /// The longest that a source is left alone after failures, in milliseconds, 100 to 3,600,000.
    pub backoff_max_ms: u64,
    /// Milliseconds after which a pending transaction is handed to a source once more, 1,000 to 3,600,000.
    pub forward_again_ms: u64,
}

impl Default for SyncConfig {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            poll_ms: 500,
            window_blocks: 50_000,
            in_flight_max: 16,
            in_flight_per_peer_max: 8,
            range_blocks_max: 1_000,
            buffer_bytes_max: 32 << 20,
            verify_threads: 0,
            watchdog_ms: 3_000,
            request_timeout_ms: 10_000,
            connect_timeout_ms: 3_000,
            throughput_min: 16 << 10,
            backoff_max_ms: 30_000,
            forward_again_ms: 15_000,
        }
    }
}

impl SyncConfig {
    /// The first knob that is out of its range, in words that name it; [`super::source`] checks the URLs.
    pub fn check(&self) -> Result<(), String> {
        let in_range = |name: &str, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) { Ok(()) } else { Err(format!("`{name}`: {min} to {max}, got {value}")) }
        };
        in_range("poll_ms", self.poll_ms, 10, 60_000)?;
        in_range("window_blocks", self.window_blocks, 1, 1_000_000)?;
        in_range("in_flight_max", self.in_flight_max.into(), 1, 256)?;
        in_range("in_flight_per_peer_max", self.in_flight_per_peer_max.into(), 1, 64)?;
        in_range("range_blocks_max", self.range_blocks_max.into(), 1, 1_000)?;
        in_range("buffer_bytes_max", self.buffer_bytes_max, 1 << 20, 4 << 30)?;
        in_range("verify_threads", self.verify_threads as u64, 0, 256)?;
        in_range("watchdog_ms", self.watchdog_ms, 100, 4_000)?;
        in_range("request_timeout_ms", self.request_timeout_ms, 100, 120_000)?;
        in_range("connect_timeout_ms", self.connect_timeout_ms, 100, 60_000)?;
        in_range("throughput_min", self.throughput_min, 1, 1 << 30)?;
        in_range("backoff_max_ms", self.backoff_max_ms, 100, 3_600_000)?;
        in_range("forward_again_ms", self.forward_again_ms, 1_000, 3_600_000)
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

    #[test]
    fn an_unknown_knob_is_refused_by_name() {
        let error = toml::from_str::<SyncConfig>("pol_ms = 5").unwrap_err().to_string();
        assert!(error.contains("pol_ms"), "{error}");
        let read: SyncConfig = toml::from_str("sources = [\"http://a:1\"]\npoll_ms = 50").unwrap();
        assert_eq!((read.poll_ms, read.sources.len()), (50, 1));
    }
}
