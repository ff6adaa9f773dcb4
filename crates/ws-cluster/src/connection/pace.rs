//! How fast one client may send. Pure.

use std::{sync::OnceLock, time::Duration};

use tokio::time::Instant;

/// Before the first use. Tests with a clock of their own may be a little behind others.
const LEAD: Duration = Duration::from_secs(60);

/// A number of messages a second on average, with a number at once: the generic cell rate algorithm, which needs one
/// time stamp.
pub(super) struct Pace {
    /// When the messages so far would all have come, had they kept the average: in nanoseconds since the origin, which take
    /// half of the room of an `Instant` in each connection.
    due: u64,
}

/// What one client may send.
#[derive(Clone, Copy)]
pub(super) struct Rate {
    /// Both are at least 1.
    pub(super) per_second: u32,
    pub(super) burst: u32,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { due: nanos(now) }
    }

    /// Counts a message. Whether the next has to wait.
    pub(super) fn count(&mut self, rate: Rate, now: Instant) -> bool {
        self.due = self.due.max(nanos(now)) + rate.interval().as_nanos() as u64;
        self.next(rate) > now
    }

    /// When the next message may come.
    pub(super) fn next(&self, rate: Rate) -> Instant {
        origin() + Duration::from_nanos(self.due) + rate.interval() - rate.interval() * rate.burst
    }
}

/// The beginning of time.
fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(|| {
        let now = Instant::now();
        now.checked_sub(LEAD).unwrap_or(now)
    })
}

/// Nanoseconds since the origin; enough for centuries.
fn nanos(at: Instant) -> u64 {
    at.saturating_duration_since(origin()).as_nanos() as u64
}

impl Rate {
    fn interval(self) -> Duration {
        Duration::from_secs(1) / self.per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_average() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let rate = Rate { per_second: 10, burst: 3 };
        assert!(!pace.count(rate, start));
        assert!(!pace.count(rate, start));
        assert!(pace.count(rate, start));
        let wait = Duration::from_millis(100);
        assert_eq!(pace.next(rate), start + wait);
        assert!(pace.count(rate, start + wait));
        assert_eq!(pace.next(rate), start + 2 * wait);
        assert!(!pace.count(rate, start + 10 * wait));
    }
}
