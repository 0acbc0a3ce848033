//! Switches one after the other: branches of a tree that a node takes in turn.

use super::chance::Dice;
use super::tree::Tree;

/// A tree, and the branches in it, each better than the one before.
pub struct Ladder {
    pub tree: Tree,
    pub rungs: Vec<usize>,
}

impl Ladder {
    /// So many rungs, each one block higher than the last and leaving it up to `depth` blocks below its head, with
    /// `transactions` in each block.
    pub fn new(dice: &mut Dice, rungs: usize, depth: u64, transactions: usize) -> Self {
        let mut tree = Tree::new(2, 5, 3);
        let mut at = tree.grow_empty(0, 2, 1);
        let mut ladder = vec![at];
        for _ in 1..rungs {
            let back = (1 + dice.roll(depth)).min(tree.height(at));
            let parent = (0..back).fold(at, |at, _| tree.nodes[at].parent);
            let mut slots = 1 + dice.roll(3);
            at = parent;
            for _ in 0..=back {
                let some: Vec<_> = (0..transactions)
                    .map(|from| tree.transaction(at, from, from + 1 + dice.roll(6) as usize, 1 + dice.roll(90), None))
                    .collect();
                at = tree.grow(at, slots, &some);
                slots = 1;
            }
            ladder.push(at);
        }
        Self { tree, rungs: ladder }
    }
}
