//! Which of two valid chains a node builds on: the longer one; of two that are equally long, the one whose head has the
//! lower hash. Every node that knows both chains decides alike, whichever came first.

use std::cmp::Reverse;

use super::{Hash, Head, Header, Height};

impl Head {
    /// Height and hash: all that [`prefers`] looks at.
    pub fn place(&self) -> (Height, Hash) {
        (self.height, self.hash)
    }
}

/// Whether the chain that ends at `theirs` is to be taken in place of the one that ends at `ours`, both given as the
/// head's height and hash. Whether it is valid is not asked here.
pub fn prefers(ours: (Height, Hash), theirs: (Height, Hash)) -> bool {
    (theirs.0, Reverse(theirs.1)) > (ours.0, Reverse(ours.1))
}

/// Whether two headers, both signed by their proposers, show that one authority made two blocks for one height. No
/// honest one does: its head never moves to a lower height, so it builds on each height once.
pub fn is_equivocation(one: &Header, other: &Header) -> bool {
    one.height == other.height && one.proposer == other.proposer && one.hash() != other.hash()
}

#[cfg(test)]
mod tests {
    use super::super::block::tests::any_block;
    use super::*;
    use proptest::prelude::*;

    fn place(height: Height, first: u8) -> (Height, Hash) {
        (height, Hash([first; 32]))
    }

    #[test]
    fn the_longer_chain_wins_and_the_lower_hash_breaks_a_tie() {
        let cases = [
            ((5, 1), (6, 9), true),
            ((6, 9), (5, 1), false),
            ((5, 2), (5, 1), true),
            ((5, 1), (5, 2), false),
            ((5, 1), (5, 1), false),
            ((0, 0), (u64::MAX, 255), true),
        ];
        for ((ours, our_hash), (theirs, their_hash), expected) in cases {
            assert_eq!(prefers(place(ours, our_hash), place(theirs, their_hash)), expected, "{ours} {theirs}");
        }
    }

    proptest! {
        /// Of any set of chains there is one that every node ends at, in whichever order it hears of them.
        #[test]
        fn the_order_in_which_chains_are_heard_of_does_not_matter(
            places in prop::collection::vec((0_u64..4, 0_u8..4), 1..12).prop_shuffle(), turn in 0_usize..12,
        ) {
            let places: Vec<_> = places.into_iter().map(|(height, first)| place(height, first)).collect();
            let choose = |places: &[(Height, Hash)]| {
                places.iter().copied().reduce(|ours, theirs| if prefers(ours, theirs) { theirs } else { ours })
            };
            let mut turned = places.clone();
            turned.rotate_left(turn % places.len());
            prop_assert_eq!(choose(&places), choose(&turned));
            for theirs in &places {
                prop_assert!(!prefers(choose(&places).unwrap(), *theirs));
            }
        }

        #[test]
        fn two_blocks_of_one_proposer_at_one_height_are_an_equivocation_and_nothing_else_is(block in any_block()) {
            let one = block.header;
            prop_assert!(!is_equivocation(&one, &one), "the same block twice");
            let mut other = one.clone();
            other.timestamp.0 ^= 1;
            prop_assert!(is_equivocation(&one, &other));
            other.proposer.0[0] ^= 1;
            prop_assert!(!is_equivocation(&one, &other), "another one's");
            other = one.clone();
            other.height ^= 1;
            prop_assert!(!is_equivocation(&one, &other), "another height");
        }
    }
}
