//! Rate-limit decisions of a busy hour: callers of every class and trust, in bursts and after pauses, cheap and dear, and
//! clocks that are set. Every rule of a token bucket decides some of them, so that a slip in one shows.

use std::collections::BTreeMap;
use std::path::Path;

use tenon::bindings::{RateLimit, builtin};
use tenon::rate_limit::token_bucket::{Rate, Settings, Trusted};
use tenon::rate_limit::{Cell, Class, Request, Trust, Verdict};
use tenon_runtime::journal::{GenerationInfo, Journal, JournalConfig, Outcome, Source};
use tenon_runtime::{Builtin as _, Digest, MemoryId};

/// Callers; the first ones call most.
const CLIENTS: u64 = 40;

/// A decision as a slot would record it.
pub struct Decided {
    pub request: Request,
    pub before: Cell,
    pub verdict: Verdict,
    pub after: Cell,
}

/// Small buckets, which empty and fill within the traffic; one class without, and one of the two whom a node can trust.
/// Refills that divide no second, so that rounding counts.
pub fn settings() -> Settings {
    let rate = |capacity, refill_per_second| Some(Rate { capacity, refill_per_second });
    Settings { sync: rate(30, 3), read: rate(40, 7), write: rate(10, 90), import: None, trusted: vec![Trusted::Peer] }
}

/// So many decisions, the same ones each time.
pub fn decisions(count: usize) -> Vec<Decided> {
    let policy = builtin::TokenBucket::new(settings()).expect("settings in range");
    let mut cells: BTreeMap<u64, Cell> = BTreeMap::new();
    let mut dice = Dice(7);
    let mut now = 1_735_689_600_000_000;
    let mut decide = || {
        now = dice.next_moment(now);
        let request = dice.request(now);
        let cell = cells.entry(request.client).or_default();
        let before = *cell;
        let (verdict, after) = policy.step(&request, &before);
        *cell = after;
        Decided { request, before, verdict, after }
    };
    (0..count).map(|_| decide()).collect()
}

/// The journal of `decisions` in `dir`, recorded as those of the plugin `token-bucket` with these settings.
pub fn journal(dir: &Path, decisions: &[Decided]) -> Source {
    let config = JournalConfig { buffer_bytes: 16 << 20, segment_bytes: 64 << 20, ..JournalConfig::default() };
    let mut journal = Journal::open::<RateLimit>(dir, "rate-limit", config).expect("a journal");
    journal.generation(GenerationInfo {
        number: 1,
        plugin: "token-bucket".into(),
        version: "0.1.0".into(),
        digest: Digest::of(b"token-bucket"),
        settings: serde_json::to_value(settings()).expect("settings are JSON"),
        memory: MemoryId { plugin: Some("token-bucket".into()), version: 2 },
    });
    let mut recorder = journal.recorder::<RateLimit>(0);
    let mut known: BTreeMap<u64, u32> = BTreeMap::new();
    for Decided { request, before, verdict, after } in decisions {
        let known = known.entry(request.client).or_default();
        let outcome = Outcome::Answered { answer: verdict, memory: after };
        recorder.record(1, &request.client, known, request, before, outcome).expect("there is room");
    }
    while let Some(chunk) = recorder.take() {
        journal.write(chunk).expect("a folder that can be written");
    }
    Source::open(journal.dir()).expect("a journal")
}

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    /// 0 to `sides` - 1.
    fn roll(&mut self, sides: u64) -> u64 {
        // Knuth's multiplier; the upper bits are the random ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    /// A moment after `now`, in microseconds; seldom before it.
    fn next_moment(&mut self, now: u64) -> u64 {
        match self.roll(1_000) {
            // Clocks that are set back, or forward.
            0 => now - 3_600_000_000,
            1 => now + 86_400_000_000,
            // A pause in which some buckets fill, or all.
            2..=5 => now + self.roll(30_000_000),
            6..=49 => now + self.roll(300_000),
            // Requests that overtake one another: by less than the second from which on a clock counts as set back, or more.
            50..=69 => now - self.roll(40_000),
            70 => now - 999_990 - self.roll(20),
            _ => now + self.roll(3_000),
        }
    }

    fn request(&mut self, now: u64) -> Request {
        let number = self.roll(CLIENTS).min(self.roll(CLIENTS)).min(self.roll(CLIENTS));
        let class = [Class::Sync, Class::Read, Class::Write, Class::Import][self.roll(4) as usize];
        let trust = match self.roll(10) {
            0 => Trust::Peer,
            1..=3 => Trust::Loopback,
            _ => Trust::Public,
        };
        let cost = match self.roll(20) {
            // Exactly what a bucket holds, and one more.
            0 => [10, 11, 30, 31, 40, 41][self.roll(6) as usize],
            1 => u64::MAX - self.roll(2),
            2..=5 => self.roll(12),
            _ => 1,
        };
        // Keyed hashes of addresses, as the node has them.
        let client = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Request { client, route: self.roll(8) as u32, class, trust, cost, now }
    }
}
