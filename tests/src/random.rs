//! Numbers from a seed, so that a failure can be repeated.

use ws_cluster_core::simulator;

/// The simulator's generator, with what the tests ask of it besides.
#[derive(Clone, Debug)]
pub struct Random(simulator::Random);

impl Random {
    /// Returns a generator, which gives the same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(simulator::Random(seed))
    }

    /// Returns a random seed.
    pub fn seed() -> u64 {
        use std::hash::{BuildHasher, RandomState};
        // Short enough to be typed.
        RandomState::new().hash_one(0) % 1_000_000_000
    }

    /// Returns a number from 0 to below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0.below(bound)
    }

    /// Returns one of several items.
    ///
    /// # Panics
    /// Panics if there are none.
    pub fn choose<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        self.0.pick(among)
    }

    /// Returns an index into a list of this length.
    pub fn index(&mut self, length: usize) -> usize {
        // The number is below a usize, so it fits into one.
        self.below(length as u64) as usize
    }

    /// Returns true in `percent` of a hundred cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
