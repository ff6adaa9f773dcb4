//! Says in the log when a store of sessions fails and when it answers again: once each, however many connections
//! ask it meanwhile.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::cache::Failure;

/// Time in which the same kind of failure is not logged twice, for a store that fails now and then: one bad row
/// between good ones must not write a line for each connection.
const QUIET: Duration = Duration::from_secs(60);

/// How a store fares, as far as the log knows.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// A plain lock: it is held for a comparison, never across an await.
    logged: Mutex<Logged>,
}

#[derive(Debug, Default)]
struct Logged {
    /// The failure that the log was told of and that has not passed.
    failing: Option<Kind>,
    /// The last failure that the log was told of.
    last: Option<(Kind, Instant)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unavailable,
    Misconfigured,
}

/// What the log is to be told.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Failing,
    Recovered,
}

impl Health {
    /// Takes note of an answer of the store.
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
        let told = self.last.is_some_and(|(last, at)| last == kind && now.duration_since(at) < QUIET);
        if self.failing == Some(kind) || told {
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
        assert_eq!(logged.next(Some(Unavailable), now + 2 * QUIET), None);
        assert_eq!(logged.next(Some(Misconfigured), now + 2 * QUIET), Some(Line::Failing));
        assert_eq!(logged.next(None, now + 2 * QUIET), Some(Line::Recovered));
        assert_eq!(logged.next(None, now + 2 * QUIET), None);
    }

    #[test]
    fn a_store_that_fails_now_and_then_stays_quiet_for_a_while() {
        let (mut logged, now) = (Logged::default(), Instant::now());
        assert_eq!(logged.next(Some(Misconfigured), now), Some(Line::Failing));
        assert_eq!(logged.next(None, now), Some(Line::Recovered));
        assert_eq!(logged.next(Some(Misconfigured), now), None);
        assert_eq!(logged.next(None, now), None);
        assert_eq!(logged.next(Some(Misconfigured), now + QUIET), Some(Line::Failing));
    }
}
