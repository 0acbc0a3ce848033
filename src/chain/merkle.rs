//! The Merkle tree over a block's transactions, shaped as in RFC 6962: leaves and inner nodes are told apart by a
//! prefix, the left half of n leaves is the largest power of two below n. SHA-256.

use super::Hash;

/// The root over `leaves`; of none, the digest of nothing.
pub fn root(leaves: &[[u8; 128]]) -> Hash {
    if leaves.is_empty() {
        return Hash::of(&[]);
    }
    let mut level: Vec<Hash> = leaves.iter().map(leaf_hash).collect();
    // Pairing from the left and carrying an odd last node up gives the same tree as the recursive definition.
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => node_hash(left, right),
                [single] => *single,
                _ => unreachable!("chunks of two"),
            })
            .collect();
    }
    level[0]
}

/// The nodes beside the path from leaf `index` up to the root, lowest first. Panics when `index` is not a leaf.
pub fn path(leaves: &[[u8; 128]], mut index: usize) -> Vec<Hash> {
    assert!(index < leaves.len(), "leaf {index} of {}", leaves.len());
    let mut level: Vec<Hash> = leaves.iter().map(leaf_hash).collect();
    let mut path = Vec::new();
    while level.len() > 1 {
        path.extend(level.get(index ^ 1));
        index /= 2;
        level = level.chunks(2).map(|pair| pair.get(1).map_or(pair[0], |right| node_hash(&pair[0], right))).collect();
    }
    path
}

/// The root that `leaf`, as number `index` of `count`, has with `path` beside it. None when the path has another length.
pub fn root_from_path(leaf: &[u8; 128], mut index: usize, mut count: usize, path: &[Hash]) -> Option<Hash> {
    let mut node = leaf_hash(leaf);
    let mut path = path.iter();
    while count > 1 {
        if index ^ 1 < count {
            let other = path.next()?;
            node = if index.is_multiple_of(2) { node_hash(&node, other) } else { node_hash(other, &node) };
        }
        (index, count) = (index / 2, count.div_ceil(2));
    }
    path.next().is_none().then_some(node)
}

fn leaf_hash(leaf: &[u8; 128]) -> Hash {
    Hash::of(&[&[0], leaf])
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Hash::of(&[&[1], &left.0, &right.0])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition of RFC 6962, section 2.1.
    fn model(leaves: &[[u8; 128]]) -> Hash {
        match leaves {
            [] => Hash::of(&[]),
            [leaf] => leaf_hash(leaf),
            _ => {
                let half = leaves.len().next_power_of_two() / 2;
                node_hash(&model(&leaves[..half]), &model(&leaves[half..]))
            }
        }
    }

    #[test]
    fn roots_are_those_of_the_definition_and_paths_lead_to_them() {
        let leaves: Vec<[u8; 128]> = (0..70).map(|i| [i; 128]).collect();
        for count in 0..leaves.len() {
            let leaves = &leaves[..count];
            assert_eq!(root(leaves), model(leaves), "{count} leaves");
            for (index, leaf) in leaves.iter().enumerate() {
                let path = path(leaves, index);
                assert_eq!(root_from_path(leaf, index, count, &path), Some(root(leaves)));
                assert_ne!(root_from_path(&[0xee; 128], index, count, &path), Some(root(leaves)));
                assert_eq!(root_from_path(leaf, index, count, &[path.as_slice(), &[Hash::ZERO]].concat()), None);
            }
        }
    }
}
