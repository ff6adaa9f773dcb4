//! Durations, counted in buckets.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The upper bounds of the buckets, in microseconds. A last bucket takes what is longer.
pub(crate) const BOUNDS: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

const BUCKETS: usize = BOUNDS.len() + 1;

/// Counts durations in buckets, and their sum in each. An observation costs two additions.
#[derive(Debug, Default)]
pub(crate) struct Histogram([Bucket; BUCKETS]);

#[derive(Debug, Default)]
struct Bucket {
    count: AtomicU64,
    /// In microseconds.
    sum: AtomicU64,
}

/// What a histogram counted, up to a moment or between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Observed([(u64, u64); BUCKETS]);

impl Histogram {
    pub(crate) fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = &self.0[BOUNDS.partition_point(|bound| *bound < micros)];
        bucket.sum.fetch_add(micros, Ordering::Relaxed);
        bucket.count.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Observed {
        // The count first: an observation that comes in between adds to the sum alone, which `means` bounds.
        let read = |bucket: &Bucket| (bucket.count.load(Ordering::Relaxed), bucket.sum.load(Ordering::Relaxed));
        Observed(self.0.each_ref().map(read))
    }
}

impl Observed {
    /// Returns what was observed after `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let mut difference = *self;
        for ((count, sum), (before, sum_before)) in difference.0.iter_mut().zip(&earlier.0) {
            (*count, *sum) = (count.saturating_sub(*before), sum.saturating_sub(*sum_before));
        }
        difference
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|(count, _)| count).sum()
    }

    /// Returns for each bucket that is not empty how often it was hit, and the mean of its durations in seconds, which
    /// lies within the bucket.
    pub(crate) fn means(&self) -> impl Iterator<Item = (u64, f64)> {
        self.0.iter().enumerate().filter(|(_, (count, _))| *count > 0).map(|(index, &(count, sum))| {
            let above = index.checked_sub(1).map_or(0, |below| BOUNDS[below]);
            let most = BOUNDS.get(index).copied().unwrap_or(u64::MAX);
            (count, (sum / count).clamp(above, most) as f64 / 1e6)
        })
    }

    /// Returns the mean in seconds, or `None` if nothing was observed.
    pub(crate) fn mean(&self) -> Option<f64> {
        let count = self.count();
        let sum: f64 = self.means().map(|(count, mean)| count as f64 * mean).sum();
        (count > 0).then(|| sum / count as f64)
    }

    /// Returns a duration in seconds that about this share of the observations does not exceed: the mean of the bucket
    /// in which it lies. `None` if nothing was observed.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        let rank = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut below = 0;
        self.means().find_map(|(count, mean)| {
            below += count;
            (below >= rank).then_some(mean)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_means_are_those_of_what_came_in_between() {
        let histogram = Histogram::default();
        assert_eq!((histogram.read().quantile(0.5), histogram.read().mean()), (None, None));
        histogram.observe(Duration::from_secs(60));
        let before = histogram.read();
        (0..98).for_each(|_| histogram.observe(Duration::from_millis(2)));
        (0..2).for_each(|_| histogram.observe(Duration::from_millis(400)));
        let observed = histogram.read().since(&before);
        assert_eq!(observed.count(), 100);
        assert_eq!((observed.quantile(0.5), observed.quantile(0.98)), (Some(0.002), Some(0.002)));
        assert_eq!((observed.quantile(0.99), observed.quantile(1.0)), (Some(0.4), Some(0.4)));
        assert!((observed.mean().unwrap() - 0.00996).abs() < 1e-9);
    }

    #[test]
    fn a_duration_counts_in_the_bucket_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::default();
        [0, 100, 101, 10_000_000, 10_000_001]
            .into_iter()
            .for_each(|micros| histogram.observe(Duration::from_micros(micros)));
        let Observed(buckets) = histogram.read();
        let counts: Vec<u64> = buckets.iter().map(|(count, _)| *count).collect();
        assert_eq!((&counts[..3], &counts[15..]), (&[2, 1, 0][..], &[1, 1][..]));
    }
}
