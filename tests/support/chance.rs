//! Chance and size, as the environment says: a generator whose seed is printed, so that a failure can be repeated, and
//! numbers for the long forms of tests.

/// A small generator.
pub struct Dice(u64);

impl Dice {
    /// From `TENON_TEST_SEED`, or else from anywhere.
    pub fn new(name: &str) -> Self {
        let seed = std::env::var("TENON_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
        println!("{name}: TENON_TEST_SEED={seed}");
        Self(seed)
    }

    /// A number below `below`, which is at most 2^31.
    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The upper bits are the good ones.
        (self.0 >> 33) % below
    }

    /// A place among so many.
    pub fn pick(&mut self, count: usize) -> usize {
        usize::try_from(self.roll(count as u64)).expect("below a usize")
    }
}

/// How many of something: what the environment says under `name`, else `short`.
pub fn knob(name: &str, short: usize) -> usize {
    std::env::var(name).map_or(short, |number| number.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}
