//! What a plugin remembers: key -> memory, bounded. One table a shard; the shard's lock is `slot`'s.

use hashbrown::HashTable;

/// A bounded table. When it is full, the half that was used least recently goes.
///
/// Two halves: what was used since the last turn is in `young`, the rest in `old`. A full `young` becomes `old` and the
/// former `old` is forgotten: recency at the price of one look-up, without lists or time stamps.
pub(crate) struct Memory<K, M> {
    young: HashTable<Entry<K, M>>,
    old: HashTable<Entry<K, M>>,
    half_max: usize,
}

struct Entry<K, M> {
    hash: u64,
    key: K,
    kept: Remembered<M>,
}

/// What is remembered for one key.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Remembered<M> {
    pub(crate) memory: M,
    /// Whose it is: a number that the slot gives to a plugin's name and memory-version.
    pub(crate) form: u32,
    /// When it was last in step: in a slot, the journal segment that holds it, and 0 where none does; in a shadow, the
    /// epoch of its shard.
    pub(crate) epoch: u32,
}

impl<K: Eq, M> Memory<K, M> {
    /// Keeps at most `keys_max` keys, and at least 2.
    pub(crate) fn new(keys_max: usize) -> Memory<K, M> {
        Memory { young: HashTable::new(), old: HashTable::new(), half_max: (keys_max / 2).max(1) }
    }

    /// The memory of `key`, whose hash is `hash`; it counts as used.
    pub(crate) fn find(&mut self, hash: u64, key: &K) -> Option<&mut Remembered<M>> {
        let is_it = |entry: &Entry<K, M>| entry.hash == hash && entry.key == *key;
        if let Some(at) = self.young.find_bucket_index(hash, is_it) {
            return self.young.get_bucket_mut(at).map(|entry| &mut entry.kept);
        }
        let entry = self.old.find_entry(hash, is_it).ok()?.remove().0;
        Some(self.insert(entry))
    }

    /// Adds a key that [`find`](Self::find) has not found.
    pub(crate) fn add(&mut self, hash: u64, key: K, kept: Remembered<M>) -> &mut Remembered<M> {
        self.insert(Entry { hash, key, kept })
    }

    /// Some of the memories, those used least recently first.
    pub(crate) fn some(&self, max: usize) -> impl Iterator<Item = &Remembered<M>> {
        self.old.iter().chain(&self.young).take(max).map(|entry| &entry.kept)
    }

    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    fn insert(&mut self, entry: Entry<K, M>) -> &mut Remembered<M> {
        if self.young.len() >= self.half_max {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        let added = self.young.insert_unique(entry.hash, entry, |entry| entry.hash);
        &mut added.into_mut().kept
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn memory_is_bounded_and_the_recent_half_is_always_kept(
            keys in proptest::collection::vec(0..60_u64, 0..400),
            keys_max in 2..40_usize,
        ) {
            let mut memory = Memory::new(keys_max);
            let mut recent: Vec<u64> = Vec::new();
            for key in keys {
                // A poor hash on purpose: keys share buckets.
                let hash = key % 4;
                let is_recent = recent.contains(&key);
                match memory.find(hash, &key) {
                    Some(value) => prop_assert_eq!(value.memory, key * 7),
                    None => {
                        prop_assert!(!is_recent, "{key} was used lately");
                        let kept = Remembered { memory: key * 7, ..Remembered::default() };
                        memory.add(hash, key, kept);
                    }
                }
                prop_assert!(memory.len() <= keys_max);
                recent.retain(|other| *other != key);
                recent.push(key);
                if recent.len() > (keys_max / 2).max(1) {
                    recent.remove(0);
                }
            }
        }
    }
}
