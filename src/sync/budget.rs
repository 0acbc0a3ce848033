//! The bytes that sync may hold: taken before a range is asked for, corrected while it arrives, given back when its
//! blocks are stored. What bounds the memory of a catch-up, from the first byte received to the commit.
//!
//! A bound alone could stop everything: what fills it may wait for a block that has no room. So a few requests may go
//! beyond it, each by one block and what is read at a time: those for the lowest missing block, of which there are two at
//! most, the one for a branch, and the comparisons of chains, of which there are [`COMPARISONS_MAX`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Comparisons of chains at one time.
pub const COMPARISONS_MAX: usize = 4;

/// A bound on bytes, shared by everything that holds blocks.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bytes_max: u64,
    used: AtomicU64,
    peak: AtomicU64,
}

/// Bytes taken from a [`Budget`]; dropping it gives them back.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    bytes: u64,
    beyond: bool,
}

impl Budget {
    /// Nothing taken yet.
    pub fn new(bytes_max: u64) -> Self {
        Self(Arc::new(Shared { bytes_max, used: AtomicU64::new(0), peak: AtomicU64::new(0) }))
    }

    /// Bytes taken.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// The most bytes that were taken at once.
    pub fn peak(&self) -> u64 {
        self.0.peak.load(Ordering::Relaxed)
    }

    /// Bytes that can still be taken.
    pub fn free(&self) -> u64 {
        self.0.bytes_max.saturating_sub(self.used())
    }

    /// Takes `bytes`; none where there are not as many.
    pub fn reserve(&self, bytes: u64) -> Option<Reservation> {
        self.take(bytes).then(|| Reservation { budget: self.clone(), bytes, beyond: false })
    }

    /// Takes `bytes` even where there are not as many, and what the first block takes: for what has to come so that
    /// anything is given back.
    pub fn reserve_beyond(&self, bytes: u64) -> Reservation {
        self.add(bytes);
        Reservation { budget: self.clone(), bytes, beyond: true }
    }

    fn add(&self, bytes: u64) {
        let used = self.0.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.0.peak.fetch_max(used, Ordering::Relaxed);
    }

    fn take(&self, bytes: u64) -> bool {
        let taken = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.0.bytes_max);
        let before = self.0.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
        before.inspect(|before| _ = self.0.peak.fetch_max(before + bytes, Ordering::Relaxed)).is_ok()
    }
}

impl Reservation {
    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the first block is to be read even where there is no room for it.
    pub fn may_exceed(&self) -> bool {
        self.beyond
    }

    /// Takes more until it holds `bytes`. False, and nothing taken, where there are not as many.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let taken = self.budget.take(more);
        if taken {
            self.bytes += more;
        }
        taken
    }

    /// Holds just `bytes` from now on, whether there are as many or not: what is here already has to be counted.
    pub fn settle(&mut self, bytes: u64) {
        if bytes >= self.bytes {
            self.budget.add(bytes - self.bytes);
        } else {
            self.budget.0.used.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_bounded_and_comes_back() {
        let budget = Budget::new(100);
        let mut first = budget.reserve(60).unwrap();
        assert!(budget.reserve(41).is_none());
        let second = budget.reserve(40).unwrap();
        assert!(!first.grow(61));
        drop(second);
        assert!(first.grow(70));
        assert_eq!((budget.used(), budget.free(), first.bytes()), (70, 30, 70));
        first.settle(10);
        assert_eq!(budget.used(), 10);
        let beyond = budget.reserve_beyond(500);
        assert_eq!((budget.used(), budget.free()), (510, 0));
        assert!(beyond.may_exceed() && !first.may_exceed());
        drop((first, beyond));
        assert_eq!((budget.used(), budget.peak()), (0, 510));
    }
}
