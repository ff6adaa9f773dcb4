//! How many clients a node takes per second, and when those that it refuses should come again. Pure.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Part of a second whose clients may come at once.
const BURST: u32 = 10;
/// The longest time that a client is told to wait.
const LONGEST: Duration = Duration::from_secs(30);

/// A limit on handshakes per second: the generic cell rate algorithm. Refused clients are told different times, one after
/// the other, so that they do not come back together.
#[derive(Debug, Default)]
pub(crate) struct AcceptRate(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When the clients so far would all have come at the average rate. `None` before the first.
    due: Option<Instant>,
    /// The time that the last refused client was told.
    retry: Option<Instant>,
}

impl AcceptRate {
    /// Counts a client.
    ///
    /// # Errors
    /// Too many come: how long this one should wait.
    pub(crate) fn admit(&self, per_second: u32, now: Instant) -> Result<(), Duration> {
        if per_second == 0 {
            return Ok(());
        }
        let interval = Duration::from_secs(1) / per_second;
        let burst = (per_second / BURST).max(1);
        let mut state = self.0.lock();
        let due = state.due.map_or(now, |due| due.max(now));
        if due.duration_since(now) <= interval * (burst - 1) {
            state.due = Some(due + interval);
            return Ok(());
        }
        let retry = state.retry.map_or(due, |retry| retry.max(due)) + interval;
        let retry = retry.min(now + LONGEST);
        state.retry = Some(retry);
        Err(retry.duration_since(now))
    }

    /// Returns how long a client that was refused should wait, if any has to wait.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        let retry = self.0.lock().retry?;
        Some(retry.saturating_duration_since(now)).filter(|wait| !wait.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_has_more_clients_than_the_rate_and_a_tenth() {
        let (rate, start) = (AcceptRate::default(), Instant::now());
        let mut taken = Vec::new();
        for millisecond in 0..5_000 {
            let now = start + Duration::from_millis(millisecond);
            for _ in 0..3 {
                if rate.admit(100, now).is_ok() {
                    taken.push(millisecond);
                }
            }
        }
        let most = (0..5_000).map(|from| taken.iter().filter(|at| (from..from + 1_000).contains(*at)).count()).max();
        assert!((100..=110).contains(&most.unwrap()), "{most:?}");
        assert!(taken.len() >= 500, "{}", taken.len());
    }

    #[test]
    fn refused_clients_are_told_times_one_after_the_other() {
        let (rate, now) = (AcceptRate::default(), Instant::now());
        assert_eq!(rate.wait(now), None);
        assert_eq!(rate.admit(10, now), Ok(()));
        let waits: Vec<_> = (0..20).map(|_| rate.admit(10, now).unwrap_err().as_millis()).collect();
        assert_eq!(waits[..3], [200, 300, 400]);
        assert_eq!(waits[19], 2_100);
        assert_eq!(rate.wait(now), Some(Duration::from_millis(2_100)));
        let last = (0..1_000).map(|_| rate.admit(10, now).unwrap_err()).max();
        assert_eq!(last, Some(LONGEST));
        assert_eq!(rate.wait(now + LONGEST), None);
    }

    #[test]
    fn zero_is_no_limit() {
        let (rate, now) = (AcceptRate::default(), Instant::now());
        assert!((0..100_000).all(|_| rate.admit(0, now).is_ok()));
    }
}
