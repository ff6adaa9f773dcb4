//! Computes the pause before the next start. Pure.

use std::time::Duration;

/// A server that runs for a shorter time cannot stay up.
const SHORT: Duration = Duration::from_secs(5);
const FIRST: Duration = Duration::from_secs(1);
pub(super) const LONGEST: Duration = Duration::from_secs(30);

/// The pause before the next start: none if the server ran for long; otherwise 1, 2, 4 and so on up to 30 s.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    last: Duration,
}

impl Backoff {
    /// Returns the pause after a server that ran for this long.
    pub(super) fn after(&mut self, life: Duration) -> Duration {
        self.last = if life >= SHORT { Duration::ZERO } else { (self.last * 2).clamp(FIRST, LONGEST) };
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_lives_double_the_pause_and_a_long_one_ends_it() {
        let mut backoff = Backoff::default();
        let mut after = |life| backoff.after(Duration::from_millis(life)).as_secs();
        assert_eq!(after(60_000), 0);
        assert_eq!(
            [after(0), after(4_999), after(1), after(1), after(1), after(1), after(1)],
            [1, 2, 4, 8, 16, 30, 30]
        );
        assert_eq!(after(5_000), 0);
        assert_eq!(after(100), 1);
    }
}
