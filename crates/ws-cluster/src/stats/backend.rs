//! What is counted of the requests to the site's own code.

use std::time::Duration;

use super::{Counter, Histogram, metered::labelled};

labelled! {
    /// What the site is told or asked.
    BackendEvent {
        Connect = "connect",
        Refresh = "refresh",
        Action = "action",
        Disconnect = "disconnect",
    }
}

labelled! {
    /// How a request to the site ended.
    BackendOutcome {
        Answered = "answered",
        Refused = "refused",
        Malformed = "malformed",
        Failed = "failed",
        Unreachable = "unreachable",
        Lost = "lost",
        TimedOut = "timed_out",
        BreakerOpen = "breaker_open",
        QueueFull = "queue_full",
    }
}

/// The counts of one backend. A server finds them among its states.
#[derive(Debug, Default)]
pub(crate) struct BackendStats {
    /// By event and outcome.
    pub(crate) requests: [[Counter; BackendOutcome::LABELS.len()]; BackendEvent::LABELS.len()],
    /// The time of the requests that were sent, by event.
    pub(crate) durations: [Histogram; BackendEvent::LABELS.len()],
    pub(crate) running: Level,
    pub(crate) waiting: Level,
    /// 1 while the circuit breaker is open.
    pub(crate) open: Level,
}

/// A number that grows and falls.
#[derive(Debug, Default)]
pub(crate) struct Level(std::sync::atomic::AtomicU64);

impl Level {
    /// Adds one until the guard is dropped.
    pub(crate) fn enter(&self) -> Entered<'_> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Entered(self)
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, std::sync::atomic::Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

pub(crate) struct Entered<'a>(&'a Level);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

impl BackendStats {
    pub(crate) fn note(&self, event: BackendEvent, outcome: BackendOutcome) {
        self.requests[event as usize][outcome as usize].add(1);
    }

    pub(crate) fn note_duration(&self, event: BackendEvent, duration: Duration) {
        self.durations[event as usize].observe(duration);
    }
}
