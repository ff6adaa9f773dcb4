//! What a server counts about itself. Each value is a relaxed atomic that the place where something happens adds to;
//! nothing is read there. `histogram` counts durations, `recent` turns two readings into rates, and `metered` is what
//! only the feature `metrics` counts. `backend` is about the site's own code.

use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(any(feature = "backend", feature = "metrics"))]
#[cfg_attr(not(feature = "backend"), allow(dead_code, reason = "the series are there, and nothing counts into them"))]
mod backend;
mod histogram;
mod metered;
mod recent;

#[cfg(any(feature = "backend", feature = "metrics"))]
pub(crate) use backend::{BackendEvent, BackendOutcome, BackendStats};
#[cfg(feature = "backend")]
pub(crate) use backend::{Entered, Level};
#[cfg(all(test, feature = "metrics"))]
pub(crate) use histogram::BOUNDS;
pub(crate) use histogram::Histogram;
#[cfg(feature = "metrics")]
pub(crate) use histogram::Observed;
#[cfg(feature = "metrics")]
pub(crate) use metered::{CLOSE_CODES, OTHER};
pub(crate) use metered::{
    Counts, HandlerTimes, HandshakeOutcome, LookUpOutcome, Metered, PublishOutcome, ResumeOutcome, Stopwatch,
};
pub(crate) use recent::Recent;

/// The counts of one server since its start.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    /// Messages that were queued for clients, each counted once for each client.
    pub(crate) deliveries: Counter,
    /// Messages that came from clients.
    pub(crate) messages_in: Counter,
    /// The time from a publish on this node to its acceptance, of those that were accepted.
    pub(crate) accepted: Histogram,
    /// The time of the queries that the pool answered.
    pub(crate) pool_queries: Histogram,
    pub(crate) metered: Metered<Counts>,
}

/// A count that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
