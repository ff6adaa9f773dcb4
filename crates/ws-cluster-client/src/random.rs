//! Random parts of waiting times.

/// Returns a random number from 0 to 1. Without random numbers of the system, the middle is as good as any other.
pub(crate) fn fraction() -> f64 {
    f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX)
}
