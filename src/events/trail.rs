//! The blocks that were last seen as heads, and what a new head does to them: goes on from them, or replaces some.

use std::collections::VecDeque;

use crate::chain::{Hash, Head, Height};

/// Blocks that are remembered at most: a reorganisation deeper than that is told without the place where it began.
const BLOCKS_MAX: usize = 256;
/// Blocks below a head that came far above the last one which are looked up, so that the next reorganisation can be
/// placed.
const LOOKED_UP_MAX: u64 = 64;

/// The chain's last blocks, one height after the other.
#[derive(Clone, Debug, Default)]
pub struct Trail(VecDeque<(Height, Hash)>);

/// Blocks that were on the chain and no longer are.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Reorg {
    /// The highest block that stayed; none where it lies deeper than what is remembered.
    pub fork_height: Option<Height>,
    /// Its hash.
    pub fork_hash: Option<Hash>,
    /// How many blocks went, at least.
    pub depth: u64,
    /// The head before.
    pub old_height: Height,
    /// Its hash.
    pub old_hash: Hash,
    /// The head now.
    pub new_height: Height,
    /// Its hash.
    pub new_hash: Hash,
}

/// What a new head is to the blocks before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advance {
    /// It goes on from them.
    Extended,
    /// It took the place of some.
    Reorganised(Reorg),
}

impl Trail {
    /// Takes in a head that follows directly on the last one. False: it does not, so [`Trail::advance`] has to look.
    pub fn follow(&mut self, head: &Head) -> bool {
        let follows = match self.0.back() {
            None => true,
            Some((height, hash)) if *height == head.height => return *hash == head.hash,
            Some((height, hash)) => *height + 1 == head.height && *hash == head.parent_hash,
        };
        if follows {
            self.push(head.height, head.hash);
        }
        follows
    }

    /// Takes in any head; `hash_at` is the chain that it heads. Errors: those of `hash_at`, and nothing is taken in.
    pub fn advance<E>(
        &mut self,
        head: &Head,
        mut hash_at: impl FnMut(Height) -> Result<Option<Hash>, E>,
    ) -> Result<Advance, E> {
        if self.follow(head) {
            return Ok(Advance::Extended);
        }
        let Some(&(old_height, old_hash)) = self.0.back() else { return Ok(Advance::Extended) };
        let mut kept = self.0.len();
        while kept > 0 {
            let (height, hash) = self.0[kept - 1];
            if height <= head.height && hash_at(height)? == Some(hash) {
                break;
            }
            kept -= 1;
        }
        let fork = kept.checked_sub(1).map(|at| self.0[at]);
        let went = self.0.len() - kept;
        // The heights right below the head, so that the trail has no holes.
        let above = fork.map_or(0, |(height, _)| height + 1).max(head.height.saturating_sub(LOOKED_UP_MAX));
        let mut found = Vec::new();
        for height in above..head.height {
            if let Some(hash) = hash_at(height)? {
                found.push((height, hash));
            }
        }
        self.0.truncate(kept);
        if fork.is_none_or(|(height, _)| height + 1 < above) {
            self.0.clear();
        }
        found.into_iter().for_each(|(height, hash)| self.push(height, hash));
        if self.0.back().is_none_or(|(height, _)| *height < head.height) {
            self.push(head.height, head.hash);
        }
        if went == 0 {
            return Ok(Advance::Extended);
        }
        Ok(Advance::Reorganised(Reorg {
            fork_height: fork.map(|(height, _)| height),
            fork_hash: fork.map(|(_, hash)| hash),
            depth: went as u64,
            old_height,
            old_hash,
            new_height: head.height,
            new_hash: head.hash,
        }))
    }

    fn push(&mut self, height: Height, hash: Hash) {
        if self.0.len() >= BLOCKS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((height, hash));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Time;
    use proptest::prelude::*;

    /// A chain as a list of hashes by height.
    #[derive(Clone, Debug)]
    struct Chain(Vec<Hash>);

    impl Chain {
        fn head(&self) -> Head {
            let height = self.0.len() - 1;
            Head {
                height: height as u64,
                hash: self.0[height],
                parent_hash: height.checked_sub(1).map_or(Hash::ZERO, |parent| self.0[parent]),
                timestamp: Time(0),
                tx_count: 0,
                state_root: Hash::ZERO,
            }
        }

        fn at(&self, height: Height) -> Result<Option<Hash>, String> {
            Ok(self.0.get(height as usize).copied())
        }
    }

    /// Takes `back` blocks off, puts `more` others on.
    fn step(chain: &mut Chain, back: usize, more: usize, salt: u64) {
        let kept = chain.0.len().saturating_sub(back).max(1);
        chain.0.truncate(kept);
        for height in kept..kept + more {
            chain.0.push(Hash::of(&[&salt.to_be_bytes(), &height.to_be_bytes()]));
        }
    }

    #[test]
    fn a_database_that_fails_changes_nothing() {
        let mut chain = Chain(vec![Hash::ZERO]);
        let mut trail = Trail::default();
        trail.follow(&chain.head());
        step(&mut chain, 0, 5, 1);
        let before = trail.0.clone();
        assert_eq!(trail.advance(&chain.head(), |_| Err("disk")), Err("disk"));
        assert_eq!(trail.0, before);
    }

    #[test]
    fn what_lies_deeper_than_the_trail_is_told_without_its_place() {
        let mut chain = Chain(vec![Hash::ZERO]);
        let mut trail = Trail::default();
        for salt in 0..300 {
            step(&mut chain, 0, 1, salt);
            assert!(trail.follow(&chain.head()));
        }
        step(&mut chain, 280, 290, 1_000);
        let Ok(Advance::Reorganised(reorg)) = trail.advance(&chain.head(), |height| chain.at(height)) else {
            panic!("it is one")
        };
        assert_eq!((reorg.fork_height, reorg.depth), (None, BLOCKS_MAX as u64));
    }

    proptest! {
        #[test]
        fn a_trail_tells_each_reorganisation_with_its_place_and_nothing_else(
            steps in prop::collection::vec((0..6_usize, 0..90_usize), 1..60),
        ) {
            let mut chain = Chain(vec![Hash::ZERO]);
            let mut trail = Trail::default();
            trail.follow(&chain.head());
            for (salt, (back, more)) in steps.into_iter().enumerate() {
                let before = chain.clone();
                step(&mut chain, back, more, salt as u64);
                let advance = trail.advance(&chain.head(), |height| chain.at(height)).unwrap();
                let same = before.0.iter().zip(&chain.0).take_while(|(a, b)| a == b).count();
                if same == before.0.len() {
                    prop_assert_eq!(advance, Advance::Extended);
                } else {
                    let Advance::Reorganised(reorg) = advance else { return Err(TestCaseError::fail("not told")) };
                    prop_assert_eq!(reorg.fork_height, Some(same as u64 - 1));
                    prop_assert_eq!(reorg.fork_hash, Some(before.0[same - 1]));
                    prop_assert_eq!(reorg.depth, (before.0.len() - same) as u64);
                    prop_assert_eq!((reorg.old_hash, reorg.new_hash), (*before.0.last().unwrap(), *chain.0.last().unwrap()));
                }
                prop_assert!(trail.0.len() <= BLOCKS_MAX);
                let no_holes = trail.0.iter().zip(trail.0.iter().skip(1)).all(|(a, b)| a.0 + 1 == b.0);
                prop_assert!(no_holes && trail.0.iter().all(|(height, hash)| chain.0[*height as usize] == *hash));
            }
        }
    }
}
