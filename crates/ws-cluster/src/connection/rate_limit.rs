//! The rate limiter for one client's messages. Pure.

use std::{sync::OnceLock, time::Duration};

use tokio::time::Instant;

/// Time between the origin and its first use. Tests have a clock of their own, which may be a little behind.
const LEAD: Duration = Duration::from_secs(60);

/// Limits the average number of messages per second, and the number at once, by the generic cell rate algorithm (GCRA),
/// which needs a single time stamp.
pub(super) struct RateLimiter {
    /// The time at which the messages so far would all have come at the average rate, in nanoseconds since the origin.
    /// A number of nanoseconds takes half of the memory of an `Instant`.
    due: u64,
}

/// The rate at which one client may send.
#[derive(Clone, Copy)]
pub(super) struct Rate {
    /// The average time between two messages.
    pub(super) interval: Duration,
    /// The number of messages at once, at least 1.
    pub(super) burst: u32,
}

impl RateLimiter {
    pub(super) fn new(now: Instant) -> Self {
        Self { due: nanos(now) }
    }

    /// Counts a message. Returns true if the next has to wait.
    pub(super) fn count(&mut self, rate: Rate, now: Instant) -> bool {
        self.count_several(rate, 1, now)
    }

    /// Counts a message that costs as much as `messages` small ones. Returns true if the next has to wait.
    pub(super) fn count_several(&mut self, rate: Rate, messages: usize, now: Instant) -> bool {
        let interval = (rate.interval.as_nanos() as u64).saturating_mul(messages as u64);
        self.due = self.due.max(nanos(now)).saturating_add(interval);
        self.next(rate) > now
    }

    /// Counts a message if it may come now. Returns false if it may not.
    pub(super) fn admit(&mut self, rate: Rate, now: Instant) -> bool {
        let admitted = self.next(rate) <= now;
        if admitted {
            self.count(rate, now);
        }
        admitted
    }

    /// Returns the time at which the next message may come.
    pub(super) fn next(&self, rate: Rate) -> Instant {
        let ahead = rate.interval.saturating_mul(rate.burst - 1).as_nanos() as u64;
        origin() + Duration::from_nanos(self.due.saturating_sub(ahead))
    }
}

/// Returns the origin of time stamps.
fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(|| {
        let now = Instant::now();
        now.checked_sub(LEAD).unwrap_or(now)
    })
}

/// Returns the nanoseconds since the origin. The range is centuries.
fn nanos(at: Instant) -> u64 {
    at.saturating_duration_since(origin()).as_nanos() as u64
}

impl Rate {
    /// Returns a rate of `count` messages a second on average. `count` is at least 1.
    pub(super) fn per_second(count: u32, burst: u32) -> Self {
        Self { interval: Duration::from_secs(1) / count, burst }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_average() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(start);
        let rate = Rate::per_second(10, 3);
        assert!(!limiter.count(rate, start));
        assert!(!limiter.count(rate, start));
        assert!(limiter.count(rate, start));
        let wait = Duration::from_millis(100);
        assert_eq!(limiter.next(rate), start + wait);
        assert!(limiter.count(rate, start + wait));
        assert_eq!(limiter.next(rate), start + 2 * wait);
        assert!(!limiter.count(rate, start + 10 * wait));
    }

    #[test]
    fn a_message_that_costs_as_much_as_several_counts_as_several() {
        let start = Instant::now();
        let (mut several, mut single) = (RateLimiter::new(start), RateLimiter::new(start));
        let rate = Rate::per_second(10, 3);
        for messages in [1, 2, 5] {
            let waits = several.count_several(rate, messages, start);
            assert_eq!(waits, (0..messages).map(|_| single.count(rate, start)).last().unwrap());
            assert_eq!(several.next(rate), single.next(rate));
        }
    }

    #[test]
    fn a_message_that_is_not_admitted_does_not_count() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(start);
        let rate = Rate { interval: Duration::from_secs(5), burst: 2 };
        assert!(limiter.admit(rate, start) && limiter.admit(rate, start));
        for _ in 0..10 {
            assert!(!limiter.admit(rate, start + Duration::from_secs(4)));
        }
        assert!(limiter.admit(rate, start + Duration::from_secs(5)));
        assert!(!limiter.admit(rate, start + Duration::from_secs(5)));
    }
}
