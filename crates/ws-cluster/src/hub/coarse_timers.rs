//! Wakes connections at a time, or up to a tenth of a second later. One list, looked at ten times a second, replaces a
//! timer for each connection. A connection that hears something postpones its deadline without a change to this list,
//! and checks the deadline when it is woken.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Number of times per second that connections are woken.
const TICKS_PER_SECOND: u32 = 10;

/// Longest timer. Connections set theirs again, so one that was dropped silently is forgotten.
const FARTHEST: Duration = Duration::from_secs(60);

pub(crate) struct CoarseTimers {
    start: Instant,
    /// The connections by the tick in which they are woken. A synchronous lock, held for a few instructions.
    ticks: Mutex<BTreeMap<u32, HashSet<u64>>>,
}

impl CoarseTimers {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), ticks: Mutex::default() }
    }

    /// Schedules a wake-up of a connection at `at`, unless its timer `timer` (0 = none) fires sooner. Returns the tick
    /// of the wake-up if it has changed. If `at` is far away, the wake-up comes earlier than that.
    pub(crate) fn set(&self, local: u64, at: Instant, timer: u32) -> Option<u32> {
        if timer != 0 && timer <= self.tick(at) {
            return None;
        }
        let tick = self.tick(at.min(Instant::now() + FARTHEST));
        self.cancel(local, timer);
        self.ticks.lock().entry(tick).or_default().insert(local);
        Some(tick)
    }

    /// Cancels a connection's timer. Without this, short-lived connections would be most of the list.
    pub(crate) fn cancel(&self, local: u64, timer: u32) {
        let mut ticks = self.ticks.lock();
        if let Some(locals) = ticks.get_mut(&timer) {
            locals.remove(&local);
            if locals.is_empty() {
                ticks.remove(&timer);
            }
        }
    }

    /// Returns the first tick that is not before `at`. Ticks begin with 1 and last for thirteen years.
    pub(crate) fn tick(&self, at: Instant) -> u32 {
        let since = at.saturating_duration_since(self.start);
        let begun = since.subsec_nanos().div_ceil(1_000_000_000 / TICKS_PER_SECOND);
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX).saturating_mul(TICKS_PER_SECOND).saturating_add(begun).max(1)
    }

    /// Returns the time at which a tick begins.
    pub(crate) fn at(&self, tick: u32) -> Instant {
        self.start + Duration::from_secs(1) / TICKS_PER_SECOND * tick
    }

    /// Removes and returns the connections whose timers are due.
    pub(super) fn due(&self, now: Instant) -> Vec<u64> {
        let after = self.tick(now + Duration::from_nanos(1));
        let mut ticks = self.ticks.lock();
        let mut due = Vec::new();
        while let Some(entry) = ticks.first_entry().filter(|entry| *entry.key() < after) {
            due.extend(entry.remove());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_fires_once_and_never_early() {
        let timers = CoarseTimers::new();
        let after = |millis| timers.start + Duration::from_millis(millis);
        assert_eq!(timers.set(7, after(250), 0), Some(3));
        assert_eq!(timers.set(7, after(400), 3), None, "it is woken before");
        assert_eq!(timers.set(8, after(300), 0), Some(3));
        assert_eq!(timers.set(8, after(10), 3), Some(1), "sooner than it said");
        assert_eq!(timers.set(9, after(200), 0), Some(2));
        timers.cancel(9, 2);
        assert!(timers.due(after(99)).is_empty());
        assert_eq!(timers.due(after(120)), [8]);
        assert!(timers.due(after(299)).is_empty());
        assert_eq!(timers.due(after(900)), [7]);
        assert!(timers.ticks.lock().is_empty());
    }
}
