//! The clock of log limits and of the cluster's core. This crate reads it only here.

use std::time::{Duration, Instant, SystemTime};

/// Returns the time of Tokio's clock, so that tests may pause it.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Notices that this machine slept: its monotonic clock stood still, and the wall clock went on. A wall clock that is set
/// forward looks the same.
pub(crate) struct SleepWatch {
    now: Instant,
    wall: SystemTime,
}

impl SleepWatch {
    pub(crate) fn new() -> Self {
        // Not Tokio's clock: a pause of it in a test is no sleep.
        Self { now: Instant::now(), wall: SystemTime::now() }
    }

    /// Returns for how long the machine has slept since the last call.
    pub(crate) fn slept(&mut self) -> Duration {
        self.slept_until(Instant::now(), SystemTime::now())
    }

    fn slept_until(&mut self, now: Instant, wall: SystemTime) -> Duration {
        let passed = now.saturating_duration_since(std::mem::replace(&mut self.now, now));
        let wall_passed = wall.duration_since(std::mem::replace(&mut self.wall, wall)).unwrap_or_default();
        wall_passed.saturating_sub(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_slept_if_only_the_wall_clock_went_on() {
        let mut watch = SleepWatch::new();
        let (now, wall) = (watch.now, watch.wall);
        let seconds = Duration::from_secs;
        assert_eq!(watch.slept_until(now + seconds(1), wall + seconds(1)), Duration::ZERO);
        assert_eq!(watch.slept_until(now + seconds(2), wall + seconds(600)), seconds(598));
        assert_eq!(watch.slept_until(now + seconds(9), wall + seconds(500)), Duration::ZERO, "it was set back");
        assert_eq!(watch.slept_until(now + seconds(10), wall + seconds(501)), Duration::ZERO);
    }
}
