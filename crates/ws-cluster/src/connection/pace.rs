//! How fast one client may send. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// A number of messages a second on average, with a number at once: the generic cell rate algorithm, which needs one
/// time stamp.
pub(super) struct Pace {
    interval: Duration,
    burst: Duration,
    /// When the messages so far would all have come, had they kept the average.
    due: Instant,
}

impl Pace {
    /// Both numbers are at least 1.
    pub(super) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let interval = Duration::from_secs(1) / per_second;
        Self { interval, burst: interval * burst, due: now }
    }

    /// Counts a message. The time until which the next has to wait, where it has to.
    pub(super) fn count(&mut self, now: Instant) -> Option<Instant> {
        self.due = self.due.max(now) + self.interval;
        let next = self.due + self.interval - self.burst;
        (next > now).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_average() {
        let start = Instant::now();
        let mut pace = Pace::new(10, 3, start);
        assert_eq!(pace.count(start), None);
        assert_eq!(pace.count(start), None);
        let wait = Duration::from_millis(100);
        assert_eq!(pace.count(start), Some(start + wait));
        assert_eq!(pace.count(start + wait), Some(start + 2 * wait));
        assert_eq!(pace.count(start + 10 * wait), None);
    }
}
