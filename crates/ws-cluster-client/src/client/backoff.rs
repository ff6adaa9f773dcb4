//! How long a client waits before it tries again.

use std::time::Duration;

/// A delay that doubles with each round of all URLs and of which a random part is taken, so that the clients of a lost
/// node do not come back in step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    pub(super) first: Duration,
    pub(super) most: Duration,
}

impl Backoff {
    /// The longest delay after so many failures in a row, with so many URLs to try.
    pub(super) fn limit(self, failures: u32, urls: usize) -> Duration {
        let rounds = failures as usize / urls.max(1);
        let factor = u32::try_from(rounds).ok().and_then(|rounds| 2_u32.checked_pow(rounds)).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.most)
    }

    /// A random part of it.
    pub(super) fn delay(self, failures: u32, urls: usize) -> Duration {
        // Without randomness the middle is as good as any, if every client finds itself without.
        let random = getrandom::u32().unwrap_or(u32::MAX / 2);
        self.limit(failures, urls).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

/// A wait that a server asked for, and up to half of it more, so that the clients that were told the same do not come
/// back in step.
pub(super) fn spread(wait: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    wait.mul_f64(1.0 + f64::from(random) / f64::from(u32::MAX) / 2.0)
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
