//! Rates over the last seconds.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{Stats, histogram::Observed};

/// The time over which rates are taken.
const WINDOW: Duration = Duration::from_secs(5);

/// Readings of the last seconds, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Recent(VecDeque<Reading>);

#[derive(Clone, Debug)]
struct Reading {
    at: Instant,
    deliveries: u64,
    messages_in: u64,
    accepted: Observed,
    pool_queries: Observed,
}

/// What a server did lately. Times are in milliseconds, and `None` if there was nothing to measure.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    pub(crate) deliveries: f64,
    pub(crate) messages_in: f64,
    pub(crate) publishes: f64,
    pub(crate) publish_p50: Option<f64>,
    pub(crate) publish_p99: Option<f64>,
    pub(crate) pool: Option<f64>,
}

impl Reading {
    fn of(stats: &Stats, at: Instant) -> Self {
        Self {
            at,
            deliveries: stats.deliveries.get(),
            messages_in: stats.messages_in.get(),
            accepted: stats.accepted.read(),
            pool_queries: stats.pool_queries.read(),
        }
    }
}

impl Recent {
    /// Takes a reading, about once a second.
    pub(crate) fn note(&mut self, stats: &Stats, now: Instant) {
        // The reading before the window stays, so that the window is always covered.
        while self.0.get(1).is_some_and(|second| now.saturating_duration_since(second.at) >= WINDOW) {
            self.0.pop_front();
        }
        self.0.push_back(Reading::of(stats, now));
    }

    /// Returns the rates since the oldest reading.
    pub(crate) fn rates(&self, stats: &Stats, now: Instant) -> Rates {
        let Some(before) = self.0.front() else { return Rates::default() };
        let seconds = now.saturating_duration_since(before.at).as_secs_f64();
        let reading = Reading::of(stats, now);
        let (accepted, pool) =
            (reading.accepted.since(&before.accepted), reading.pool_queries.since(&before.pool_queries));
        let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let millis = |seconds: Option<f64>| seconds.map(|seconds| seconds * 1000.0);
        Rates {
            deliveries: rate(reading.deliveries - before.deliveries),
            messages_in: rate(reading.messages_in - before.messages_in),
            publishes: rate(accepted.count()),
            publish_p50: millis(accepted.quantile(0.5)),
            publish_p99: millis(accepted.quantile(0.99)),
            pool: millis(pool.mean()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_last_seconds() {
        let (stats, mut recent, start) = (Stats::default(), Recent::default(), Instant::now());
        assert_eq!(recent.rates(&stats, start), Rates::default());
        stats.deliveries.add(1_000_000);
        stats.accepted.observe(Duration::from_secs(5));
        for second in 0..20 {
            recent.note(&stats, start + Duration::from_secs(second));
            stats.deliveries.add(100);
            stats.messages_in.add(10);
            stats.accepted.observe(Duration::from_millis(2));
        }
        let rates = recent.rates(&stats, start + Duration::from_secs(20));
        assert_eq!((rates.deliveries, rates.messages_in, rates.publishes), (100.0, 10.0, 1.0));
        assert_eq!((rates.publish_p50, rates.publish_p99, rates.pool), (Some(2.0), Some(2.0), None));
        assert!(recent.0.len() <= 7);
    }
}
