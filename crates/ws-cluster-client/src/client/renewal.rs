//! The time at which a client sends credentials again, before the present ones expire.

use std::time::Duration;

use crate::random;

/// Longest lead before the expiry. A random part of up to the same length is added.
const LEAD: Duration = Duration::from_secs(60);
/// Shortest wait. It bounds how often a client asks. Credentials that last 3 s or more are renewed in time: the server
/// says the time in whole seconds, so that it says at least 2, and the wait is at least half of that. If credentials
/// expire sooner, the next connection renews them.
const SOONEST: Duration = Duration::from_secs(1);

/// Returns the time to wait if the credentials are valid for `left`: early enough to try again, and not the same for
/// all clients. `None` if it is too late.
pub(super) fn wait(left: Duration) -> Option<Duration> {
    wait_with(left, random::fraction())
}

fn wait_with(left: Duration, random: f64) -> Option<Duration> {
    let lead = (left / 4).min(LEAD).mul_f64(1.0 + random);
    Some(left.saturating_sub(lead)).filter(|wait| *wait >= SOONEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_minutes_or_the_last_half_are_for_trying() {
        let waits = |left| {
            let wait = |random| wait_with(Duration::from_secs(left), random).map(|wait| wait.as_secs());
            (wait(0.0), wait(1.0))
        };
        assert_eq!(waits(3600), (Some(3540), Some(3480)));
        assert_eq!(waits(240), (Some(180), Some(120)));
        assert_eq!(waits(20), (Some(15), Some(10)));
        assert_eq!(waits(2), (Some(1), Some(1)));
        assert_eq!(waits(1), (None, None));
        assert_eq!(waits(0), (None, None));
        assert!(waits(u64::MAX).0.is_some());
    }
}
