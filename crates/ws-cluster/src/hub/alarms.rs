//! Times at which connections want to be woken, or up to a tenth of a second later. One list for all of them, looked
//! at ten times a second, in place of a timer for each: a connection that hears something puts its time off without a
//! word, and finds out when it is woken.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Connections are woken together that often.
const TICKS_PER_SECOND: u32 = 10;

/// Nobody is noted for longer, and whoever wants to be asks again: a connection that went without a word is forgotten.
const FARTHEST: Duration = Duration::from_secs(60);

pub(crate) struct Alarms {
    start: Instant,
    /// The connections by the tick in which they are woken. A synchronous lock, held for a few instructions.
    ticks: Mutex<BTreeMap<u32, HashSet<u64>>>,
}

impl Alarms {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), ticks: Mutex::default() }
    }

    /// Wakes a connection at a time, unless its alarm goes off before that already (0: it has none). When it does, where
    /// that is news; which may be before the time, where that is far.
    pub(crate) fn set(&self, local: u64, at: Instant, alarm: u32) -> Option<u32> {
        if alarm != 0 && alarm <= self.tick(at) {
            return None;
        }
        let tick = self.tick(at.min(Instant::now() + FARTHEST));
        self.cancel(local, alarm);
        self.ticks.lock().entry(tick).or_default().insert(local);
        Some(tick)
    }

    /// Wakes a connection no more. Short-lived ones would be most of the list.
    pub(crate) fn cancel(&self, local: u64, alarm: u32) {
        let mut ticks = self.ticks.lock();
        if let Some(locals) = ticks.get_mut(&alarm) {
            locals.remove(&local);
            if locals.is_empty() {
                ticks.remove(&alarm);
            }
        }
    }

    /// The first tick that is not before a time. Ticks begin with 1, and last for thirteen years.
    pub(crate) fn tick(&self, at: Instant) -> u32 {
        let since = at.saturating_duration_since(self.start);
        let begun = since.subsec_nanos().div_ceil(1_000_000_000 / TICKS_PER_SECOND);
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX).saturating_mul(TICKS_PER_SECOND).saturating_add(begun).max(1)
    }

    /// The time at which a tick begins.
    pub(crate) fn at(&self, tick: u32) -> Instant {
        self.start + Duration::from_secs(1) / TICKS_PER_SECOND * tick
    }

    /// Whom to wake by now.
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
    fn an_alarm_goes_off_once_and_never_early() {
        let alarms = Alarms::new();
        let after = |millis| alarms.start + Duration::from_millis(millis);
        assert_eq!(alarms.set(7, after(250), 0), Some(3));
        assert_eq!(alarms.set(7, after(400), 3), None, "it is woken before");
        assert_eq!(alarms.set(8, after(300), 0), Some(3));
        assert_eq!(alarms.set(8, after(10), 3), Some(1), "sooner than it said");
        assert_eq!(alarms.set(9, after(200), 0), Some(2));
        alarms.cancel(9, 2);
        assert!(alarms.due(after(99)).is_empty());
        assert_eq!(alarms.due(after(120)), [8]);
        assert!(alarms.due(after(299)).is_empty());
        assert_eq!(alarms.due(after(900)), [7]);
        assert!(alarms.ticks.lock().is_empty());
    }
}
