//! The delay before a client tries again.

use std::time::Duration;

use crate::random;

/// A delay that doubles with each round of all URLs. The client waits for a random part of it, so that the clients of a
/// lost node do not come back at the same time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    pub(super) first: Duration,
    pub(super) most: Duration,
}

impl Backoff {
    /// Returns the longest delay after this number of failures in a row, with this number of URLs.
    pub(super) fn limit(self, failures: u32, urls: usize) -> Duration {
        let rounds = failures as usize / urls.max(1);
        let factor = u32::try_from(rounds).ok().and_then(|rounds| 2_u32.checked_pow(rounds)).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.most)
    }

    /// Returns a random part of the longest delay.
    pub(super) fn delay(self, failures: u32, urls: usize) -> Duration {
        self.limit(failures, urls).mul_f64(random::fraction())
    }
}

/// Returns a wait that a server asked for, and up to half of it more, so that clients with the same answer do not come
/// back at the same time.
pub(super) fn spread(wait: Duration) -> Duration {
    wait.mul_f64(1.0 + random::fraction() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), most: Duration::from_secs(30) };

    #[test]
    fn a_round_of_all_urls_is_one_attempt() {
        let limits = |urls| -> Vec<u64> {
            (0..8).map(|failures| BACKOFF.limit(failures, urls).as_millis().try_into().unwrap()).collect()
        };
        assert_eq!(limits(1), [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(limits(3), [500, 500, 500, 1000, 1000, 1000, 2000, 2000]);
    }

    #[test]
    fn the_delay_stays_within_its_limits_for_ever() {
        for failures in [0, 10, 100, u32::MAX] {
            assert!(BACKOFF.delay(failures, 2) <= BACKOFF.limit(failures, 2));
        }
        assert_eq!(BACKOFF.limit(u32::MAX, 1), BACKOFF.most);
    }
}
