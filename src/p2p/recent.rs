//! What went over gossip lately, in either direction: what came that way is not published again, and what was published
//! is not handed over directly at once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::chain::Hash;

/// Which way something went first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A peer pushed it.
    In,
    /// This node published it.
    Out,
}

/// A bounded memory of hashes; the oldest are forgotten first.
#[derive(Debug)]
pub struct Recent {
    entries_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    known: HashMap<Hash, (Way, Instant)>,
    order: VecDeque<Hash>,
}

impl Recent {
    /// Room for `entries_max` hashes, at least 1.
    pub fn new(entries_max: usize) -> Self {
        Self { entries_max: entries_max.max(1), inner: Mutex::default() }
    }

    /// Takes note. False where it was known already; then nothing changes.
    pub fn insert(&self, hash: Hash, way: Way, now: Instant) -> bool {
        let mut inner = self.lock();
        if inner.known.contains_key(&hash) {
            return false;
        }
        if inner.order.len() >= self.entries_max
            && let Some(oldest) = inner.order.pop_front()
        {
            inner.known.remove(&oldest);
        }
        inner.known.insert(hash, (way, now));
        inner.order.push_back(hash);
        true
    }

    /// Which way it went, and how long ago.
    pub fn get(&self, hash: &Hash, now: Instant) -> Option<(Way, Duration)> {
        let inner = self.lock();
        let (way, at) = inner.known.get(hash)?;
        Some((*way, now.saturating_duration_since(*at)))
    }

    /// Forgets it: it came to nothing.
    pub fn remove(&self, hash: &Hash) {
        let mut inner = self.lock();
        if inner.known.remove(hash).is_some() {
            inner.order.retain(|known| known != hash);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics while holding it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The model keeps everything in order and looks at the end of it.
        #[test]
        fn the_newest_are_known(room in 1..8_usize, steps in prop::collection::vec((0..12_u8, 0..4_u8), 0..60)) {
            let (recent, now) = (Recent::new(room), Instant::now());
            let mut model: Vec<u8> = Vec::new();
            for (name, step) in steps {
                if step == 0 {
                    recent.remove(&Hash([name; 32]));
                    model.retain(|known| *known != name);
                    continue;
                }
                let fresh = recent.insert(Hash([name; 32]), Way::In, now);
                prop_assert_eq!(fresh, !model.contains(&name));
                if fresh {
                    model.push(name);
                    model = model.split_off(model.len().saturating_sub(room));
                }
                for name in 0..12 {
                    prop_assert_eq!(recent.get(&Hash([name; 32]), now).is_some(), model.contains(&name));
                }
            }
        }
    }

    #[test]
    fn the_first_way_counts() {
        let (recent, now) = (Recent::new(2), Instant::now());
        assert!(recent.insert(Hash::ZERO, Way::Out, now));
        assert!(!recent.insert(Hash::ZERO, Way::In, now));
        let later = now + Duration::from_secs(3);
        assert_eq!(recent.get(&Hash::ZERO, later), Some((Way::Out, Duration::from_secs(3))));
    }
}
