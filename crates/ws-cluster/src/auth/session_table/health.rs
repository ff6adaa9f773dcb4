//! Logs when a session store fails and when it answers again, once each, however many connections ask it meanwhile.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::cache::Failure;

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
    failing: Option<Kind>,
    /// The last failure that was logged.
    last: Option<(Kind, Instant)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unavailable,
    Misconfigured,
}

/// The line to log.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Failing,
    Recovered,
}

impl Health {
    /// Notes an answer of the store.
    pub(super) fn observe<T>(&self, answer: &Result<T, Failure>) {
        let failure = answer.as_ref().err();
        let kind = failure.map(|failure| match failure {
            Failure::Unavailable(_) => Kind::Unavailable,
            Failure::Misconfigured(_) => Kind::Misconfigured,
        });
        let line = self.logged.lock().next(kind, Instant::now());
        match (line, failure) {
            (Some(Line::Failing), Some(Failure::Unavailable(outage))) => {
                tracing::warn!(
                    "the session table does not answer, upgrades with a session are refused (503): {outage}"
                );
            }
            (Some(Line::Failing), Some(Failure::Misconfigured(fault))) => {
                tracing::error!(
                    "the session table is misconfigured, upgrades with a session are refused (503): {fault}"
                );
            }
            (Some(Line::Recovered), _) => tracing::info!("the session table answers again"),
            _ => {}
        }
    }
}

impl Logged {
    fn next(&mut self, outcome: Option<Kind>, now: Instant) -> Option<Line> {
        let Some(kind) = outcome else {
            return self.failing.take().map(|_| Line::Recovered);
        };
        let logged_lately = self.last.is_some_and(|(last, at)| last == kind && now.duration_since(at) < LOG_INTERVAL);
        if self.failing == Some(kind) || logged_lately {
            return None;
        }
        self.failing = Some(kind);
        self.last = Some((kind, now));
        Some(Line::Failing)
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind::*, *};

    #[test]
    fn an_outage_is_logged_once_and_its_end_once() {
        let (mut logged, now) = (Logged::default(), Instant::now());
        assert_eq!(logged.next(None, now), None);
        assert_eq!(logged.next(Some(Unavailable), now), Some(Line::Failing));
        assert_eq!(logged.next(Some(Unavailable), now + 2 * LOG_INTERVAL), None);
        assert_eq!(logged.next(Some(Misconfigured), now + 2 * LOG_INTERVAL), Some(Line::Failing));
        assert_eq!(logged.next(None, now + 2 * LOG_INTERVAL), Some(Line::Recovered));
        assert_eq!(logged.next(None, now + 2 * LOG_INTERVAL), None);
    }

    #[test]
    fn a_store_that_fails_now_and_then_is_logged_once_in_a_while() {
        let (mut logged, now) = (Logged::default(), Instant::now());
        assert_eq!(logged.next(Some(Misconfigured), now), Some(Line::Failing));
        assert_eq!(logged.next(None, now), Some(Line::Recovered));
        assert_eq!(logged.next(Some(Misconfigured), now), None);
        assert_eq!(logged.next(None, now), None);
        assert_eq!(logged.next(Some(Misconfigured), now + LOG_INTERVAL), Some(Line::Failing));
    }
}
