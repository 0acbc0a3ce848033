//! Chance that is the same for the same seed, on every machine and in every version: the generator is a named one, and
//! what is made of its numbers stands here.

use rand::Rng as _;
use rand::SeedableRng as _;
use rand::rngs::Xoshiro256PlusPlus;

use super::scenario::Span;

/// A stream of chance.
#[derive(Clone, Debug)]
pub struct Random(Xoshiro256PlusPlus);

impl Random {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// A stream of its own for one thing among many, so that what befalls one changes nothing for the others.
    pub fn fork(&mut self) -> Self {
        Self::new(self.0.next_u64())
    }

    /// A number below `most`; 0 where that is 0.
    pub fn below(&mut self, most: u64) -> u64 {
        let wide = u128::from(self.0.next_u64()) * u128::from(most);
        u64::try_from(wide >> 64).expect("the upper half of a product")
    }

    /// A number within the span.
    pub fn within(&mut self, span: Span) -> u64 {
        span.low + self.below((span.high - span.low).saturating_add(1))
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_seed_never_change() {
        let mut random = Random::new(7);
        let numbers: Vec<u64> = (0..5).map(|_| random.below(1_000)).collect();
        assert_eq!(numbers, [55, 172, 717, 427, 963]);
        let mut fork = random.fork();
        assert_ne!(fork.below(u64::MAX), random.below(u64::MAX));
    }

    #[test]
    fn numbers_are_in_range_and_everywhere_in_it() {
        let mut random = Random::new(1);
        let span = Span { low: 10, high: 13 };
        let mut seen = [0; 4];
        for _ in 0..4_000 {
            seen[usize::try_from(random.within(span) - 10).unwrap()] += 1;
        }
        assert!(seen.iter().all(|count| (800..1_200).contains(count)), "{seen:?}");
        assert_eq!(random.within(Span { low: u64::MAX, high: u64::MAX }), u64::MAX);
        assert_eq!((random.below(0), random.percent(0), random.percent(100)), (0, false, true));
        let hits = (0..10_000).filter(|_| random.percent(30)).count();
        assert!((2_700..3_300).contains(&hits), "{hits}");
    }
}
