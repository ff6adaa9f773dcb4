//! Numbers from a seed, so that a failure can be repeated.

/// A small generator of the splitmix family: runs need repeatability, not quality.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Returns a generator, which gives the same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a random seed.
    pub fn seed() -> u64 {
        use std::hash::{BuildHasher, RandomState};
        // Short enough to be typed.
        RandomState::new().hash_one(0) % 1_000_000_000
    }

    /// Returns a number from 0 to below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// Returns one of several items.
    ///
    /// # Panics
    /// Panics if there are none.
    pub fn choose<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.index(among.len())]
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
