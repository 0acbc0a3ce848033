//! Who the peers of a testbed are.

/// How a peer behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nature {
    /// The highest block that it has, and reports.
    pub head: u64,
    /// Until the first byte of an answer, in microseconds.
    pub latency_us: u64,
    /// How fast it sends; one answer after the other.
    pub bytes_per_second: u64,
    /// How many of its answers fail.
    pub fails_percent: u64,
    /// How many of its answers hold blocks that are not valid.
    pub lies_percent: u64,
    /// How many of its answers are half of what was asked for.
    pub stops_short_percent: u64,
    /// Takes requests and never answers.
    pub silent: bool,
    /// Requests a second that it answers, at most a second's worth at once; others fail, and it then wants to be left
    /// alone for a second.
    pub requests_per_second: Option<u64>,
    /// The snapshot that it offers.
    pub snapshot: Option<u64>,
    /// Whether its snapshot is of no use.
    pub snapshot_fails: bool,
}

impl Nature {
    /// 20 ms away, 1 MB/s, no vices.
    pub fn good(head: u64) -> Self {
        Self {
            head,
            latency_us: 20_000,
            bytes_per_second: 1_000_000,
            fails_percent: 0,
            lies_percent: 0,
            stops_short_percent: 0,
            silent: false,
            requests_per_second: None,
            snapshot: None,
            snapshot_fails: false,
        }
    }

    /// Any vices in any degree, drawn from `seed`; its head is at most `best`.
    pub fn drawn(best: u64, seed: u64) -> Self {
        let mut random = seed | 1;
        let mut below = |most: u64| xorshift(&mut random) % most;
        Self {
            head: below(best + 1),
            latency_us: 1_000 + below(500_000),
            bytes_per_second: 20_000 + below(5_000_000),
            fails_percent: below(100),
            lies_percent: below(60),
            stops_short_percent: below(100),
            silent: below(100) < 15,
            requests_per_second: (below(100) < 20).then(|| 1 + below(5)),
            snapshot: (below(100) < 20).then(|| below(best + 1)),
            snapshot_fails: below(2) == 0,
        }
    }
}

/// The next number of a stream; never 0.
pub(super) fn xorshift(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}
