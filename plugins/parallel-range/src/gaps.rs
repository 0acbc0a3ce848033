//! Which heights are missing.

use tenon_sdk::sync::{Height, HeightRange};

/// The stretches of `first..=last` that none of `taken` covers, lowest first. `taken` comes in any order, and may overlap.
pub fn missing(first: Height, last: Height, taken: impl Iterator<Item = HeightRange>) -> Vec<HeightRange> {
    let mut taken: Vec<HeightRange> = taken.filter(|range| range.last >= first && range.first <= last).collect();
    taken.sort_by_key(|range| range.first);
    let mut gaps = Vec::new();
    let mut next = first;
    for range in taken {
        if range.first > next {
            gaps.push(HeightRange { first: next, last: range.first - 1 });
        }
        match range.last.checked_add(1) {
            Some(above) => next = next.max(above),
            None => return gaps,
        }
    }
    if next <= last {
        gaps.push(HeightRange { first: next, last });
    }
    gaps
}

/// Whether the two have a height in common.
pub fn overlap(one: &HeightRange, other: &HeightRange) -> bool {
    one.first <= other.last && other.first <= one.last
}

/// How many heights a range has.
pub fn len(range: &HeightRange) -> u64 {
    (range.last - range.first).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(first: Height, last: Height) -> HeightRange {
        HeightRange { first, last }
    }

    #[test]
    fn gaps_lie_between_what_is_taken() {
        let check = |taken: &[(u64, u64)], expected: &[(u64, u64)]| {
            let gaps = missing(1, 10, taken.iter().map(|&(first, last)| range(first, last)));
            let gaps: Vec<_> = gaps.iter().map(|gap| (gap.first, gap.last)).collect();
            assert_eq!(gaps, expected, "{taken:?}");
        };
        check(&[], &[(1, 10)]);
        check(&[(1, 10)], &[]);
        check(&[(0, u64::MAX)], &[]);
        check(&[(3, 4)], &[(1, 2), (5, 10)]);
        check(&[(8, 20), (1, 2)], &[(3, 7)]);
        check(&[(2, 6), (3, 4), (5, 8)], &[(1, 1), (9, 10)]);
        assert_eq!(missing(5, 4, std::iter::empty()), []);
    }

    proptest! {
        #[test]
        fn gaps_are_what_a_list_of_heights_says(
            taken in prop::collection::vec((0..60_u64, 0..12_u64), 0..10),
            first in 0..40_u64,
            length in 0..40_u64,
        ) {
            let ranges: Vec<_> = taken.iter().map(|&(first, more)| range(first, first + more)).collect();
            let last = first + length;
            let expected: Vec<u64> = (first..=last)
                .filter(|height| !ranges.iter().any(|range| (range.first..=range.last).contains(height)))
                .collect();
            let gaps = missing(first, last, ranges.into_iter());
            let heights: Vec<u64> = gaps.iter().flat_map(|gap| gap.first..=gap.last).collect();
            prop_assert_eq!(heights, expected);
        }
    }
}
