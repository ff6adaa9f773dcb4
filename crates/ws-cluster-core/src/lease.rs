//! How long the pool's lease has not changed, measured on this node's own monotonic clock.

use std::time::{Duration, Instant};

use crate::Lease;

/// The last lease that was read, and since when reads have shown the same.
#[derive(Debug, Default)]
pub(crate) struct Observation {
    seen: Option<Seen>,
}

#[derive(Debug)]
struct Seen {
    lease: Lease,
    since: Instant,
    until: Instant,
}

impl Observation {
    /// Notes a read that was asked at `asked` and showed `lease`. Two reads that are further apart than `gap` say
    /// nothing about the time between them, so the count starts again.
    pub(crate) fn read(&mut self, asked: Instant, lease: Option<Lease>, gap: Duration) {
        self.seen = match (lease, self.seen.take()) {
            (None, _) => None,
            (Some(lease), Some(seen)) if seen.lease == lease && asked.saturating_duration_since(seen.until) <= gap => {
                Some(Seen { until: asked, ..seen })
            }
            (Some(lease), _) => Some(Seen { lease, since: asked, until: asked }),
        };
    }

    /// Notes that a read failed, so that the count starts again.
    pub(crate) fn failed(&mut self) {
        self.seen = None;
    }

    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.seen.as_ref().map(|seen| &seen.lease)
    }

    /// Returns how long successive reads have shown the same lease.
    pub(crate) fn unchanged_for(&self) -> Duration {
        self.seen.as_ref().map_or(Duration::ZERO, |seen| seen.until.saturating_duration_since(seen.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeId;

    const GAP: Duration = Duration::from_secs(2);

    fn lease(beat: u64) -> Option<Lease> {
        Some(Lease { term: 1, master: Some(NodeId::from_bytes([1; 16])), beat })
    }

    #[test]
    fn stands_still_over_successful_reads_only() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut observation = Observation::default();
        observation.read(at(0), lease(1), GAP);
        observation.read(at(2), lease(1), GAP);
        assert_eq!(observation.unchanged_for(), Duration::from_secs(2));
        observation.read(at(5), lease(1), GAP);
        assert_eq!(observation.unchanged_for(), Duration::ZERO, "a gap starts the count anew");
        observation.read(at(6), lease(1), GAP);
        observation.read(at(7), lease(2), GAP);
        assert_eq!(observation.unchanged_for(), Duration::ZERO, "the beat moved");
        observation.read(at(8), lease(2), GAP);
        observation.failed();
        observation.read(at(9), lease(2), GAP);
        assert_eq!(observation.unchanged_for(), Duration::ZERO, "a failed read starts the count anew");
    }
}
