//! Logs when a session store fails and when it answers again, once each, however many connections ask it meanwhile.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::cache::StoreFailure;

/// Time in which the same kind of failure is not logged twice. A store may fail now and then: one bad row between good
/// ones must not write a line for each connection.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The state of a store, as far as the log knows it.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// A synchronous lock, held for a comparison and never across an await.
    logged: Mutex<Logged>,
}

#[derive(Debug, Default)]
struct Logged {
    /// The failure that was logged and is not over.
    failing: Option<FailureKind>,
    /// The last failure that was logged.
    last: Option<(FailureKind, Instant)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FailureKind {
    Unavailable,
    Misconfigured,
}

/// The line to log.
#[derive(Debug, PartialEq, Eq)]
enum HealthLine {
    Failing,
    Recovered,
}

impl Health {
    /// Notes an answer of the store.
    pub(super) fn observe<T>(&self, answer: &Result<T, StoreFailure>) {
        let failure = answer.as_ref().err();
        let kind = failure.map(|failure| match failure {
            StoreFailure::Unavailable(_) => FailureKind::Unavailable,
            StoreFailure::Misconfigured(_) => FailureKind::Misconfigured,
        });
        let line = self.logged.lock().next(kind, Instant::now());
        match (line, failure) {
            (Some(HealthLine::Failing), Some(StoreFailure::Unavailable(outage))) => {
                tracing::warn!(
                    "the session table does not answer, upgrades with a session are refused (503): {outage}"
                );
            }
            (Some(HealthLine::Failing), Some(StoreFailure::Misconfigured(fault))) => {
                tracing::error!(
                    "the session table is misconfigured, upgrades with a session are refused (503): {fault}"
                );
            }
            (Some(HealthLine::Recovered), _) => tracing::info!("the session table answers again"),
            _ => {}
        }
    }
}

impl Logged {
    fn next(&mut self, outcome: Option<FailureKind>, now: Instant) -> Option<HealthLine> {
        let Some(kind) = outcome else {
            return self.failing.take().map(|_| HealthLine::Recovered);
        };
        let logged_lately = self.last.is_some_and(|(last, at)| last == kind && now.duration_since(at) < LOG_INTERVAL);
        if self.failing == Some(kind) || logged_lately {
            return None;
        }
        self.failing = Some(kind);
        self.last = Some((kind, now));
        Some(HealthLine::Failing)
    }
}

#[cfg(test)]
mod tests {
    use super::{FailureKind::*, *};

    #[test]
    fn an_outage_is_logged_once_and_its_end_once() {
        let (mut logged, now) = (Logged::default(), Instant::now());
        assert_eq!(logged.next(None, now), None);
        assert_eq!(logged.next(Some(Unavailable), now), Some(HealthLine::Failing));
        assert_eq!(logged.next(Some(Unavailable), now + 2 * LOG_INTERVAL), None);
        assert_eq!(logged.next(Some(Misconfigured), now + 2 * LOG_INTERVAL), Some(HealthLine::Failing));
        assert_eq!(logged.next(None, now + 2 * LOG_INTERVAL), Some(HealthLine::Recovered));
        assert_eq!(logged.next(None, now + 2 * LOG_INTERVAL), None);
    }

    #[test]
    fn a_store_that_fails_now_and_then_is_logged_once_in_a_while() {
        let (mut logged, now) = (Logged::default(), Instant::now());
        assert_eq!(logged.next(Some(Misconfigured), now), Some(HealthLine::Failing));
        assert_eq!(logged.next(None, now), Some(HealthLine::Recovered));
        assert_eq!(logged.next(Some(Misconfigured), now), None);
        assert_eq!(logged.next(None, now), None);
        assert_eq!(logged.next(Some(Misconfigured), now + LOG_INTERVAL), Some(HealthLine::Failing));
    }
}
