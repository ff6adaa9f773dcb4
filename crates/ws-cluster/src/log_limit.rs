//! Limits what is logged: how often one cause may write a line, and how much of a stranger's text a line contains.
//! Pure: the time is an argument.

use std::{
    collections::HashMap,
    fmt::{self, Write},
    hash::Hash,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Time between two lines of one cause.
pub(crate) const INTERVAL: Duration = Duration::from_secs(60);

/// Maximum number of causes that are counted apart. Further ones count as one cause, so that the memory stays bounded.
const MAX_CAUSES: usize = 64;

/// Maximum number of characters of a text in a log line.
const MAX_EXCERPT: usize = 128;

/// Lets each cause write one line per interval, and counts the lines that are left out.
///
/// ```ignore
/// if let Some(line) = limits.due(Cause::Origin, now) {
///     tracing::warn!(left_out = line.left_out, "a page of a foreign origin is refused");
/// }
/// ```
#[derive(Debug)]
pub(crate) struct LogLimits<C> {
    interval: Duration,
    /// A synchronous lock, held for a look-up. `None` stands for all causes beyond [`MAX_CAUSES`].
    causes: Mutex<HashMap<Option<C>, CauseState>>,
}

#[derive(Debug)]
struct CauseState {
    /// The time of the cause's last line.
    at: Instant,
    /// Number of lines that were left out since then.
    left_out: u64,
}

/// A line that may be written now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Number of lines of this cause that were left out since its last one, or `None`. As a field of a `tracing` event,
    /// `None` writes nothing.
    pub(crate) left_out: Option<u64>,
}

impl<C> Default for LogLimits<C> {
    fn default() -> Self {
        Self { interval: INTERVAL, causes: Mutex::default() }
    }
}

impl<C: Eq + Hash> LogLimits<C> {
    /// Returns a line if `cause` may write one at `now`, and otherwise counts it as left out.
    pub(crate) fn due(&self, cause: C, now: Instant) -> Option<Line> {
        let mut causes = self.causes.lock();
        let mut cause = Some(cause);
        if !causes.contains_key(&cause) && causes.len() >= MAX_CAUSES {
            // Causes without a line for an interval are forgotten first.
            causes.retain(|_, cause| now.saturating_duration_since(cause.at) < self.interval);
            if causes.len() >= MAX_CAUSES {
                cause = None;
            }
        }
        let Some(known) = causes.get_mut(&cause) else {
            causes.insert(cause, CauseState { at: now, left_out: 0 });
            return Some(Line { left_out: None });
        };
        if now.saturating_duration_since(known.at) < self.interval {
            known.left_out += 1;
            return None;
        }
        known.at = now;
        let left_out = std::mem::take(&mut known.left_out);
        Some(Line { left_out: (left_out > 0).then_some(left_out) })
    }
}

/// Follows something that fails and recovers: one line when it begins to fail, at most one per interval while it fails,
/// and one when it works again.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    /// A synchronous lock, held for a comparison.
    state: Mutex<OutageState>,
}

#[derive(Debug, Default)]
struct OutageState {
    /// The time at which the logged outage began.
    since: Option<Instant>,
    /// The time of the last line about a failure.
    last_logged: Option<Instant>,
    /// Number of failures since `since`, or since the last line if it only fails now and then.
    failures: u64,
}

/// The line to log about an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutageLine {
    /// It fails, for the first time or still. `failures`: the number of earlier failures that were not logged, or
    /// `None`.
    Failing { failures: Option<u64> },
    /// It works again, after this many failures.
    Over { failures: u64, lasted: Duration },
}

impl Outage {
    /// Notes a failure. Returns the line to log for it, if any.
    pub(crate) fn failed(&self, now: Instant) -> Option<OutageLine> {
        let mut state = self.state.lock();
        // Occasional failures get one line per interval too.
        let due = state.last_logged.is_none_or(|last| now.saturating_duration_since(last) >= INTERVAL);
        state.failures += 1;
        if !due {
            return None;
        }
        state.last_logged = Some(now);
        let failures = state.failures - 1;
        if state.since.is_none() {
            state.since = Some(now);
            state.failures = 1;
        }
        Some(OutageLine::Failing { failures: (failures > 0).then_some(failures) })
    }

    /// Notes a success. Returns the line to log if it ends a logged outage.
    pub(crate) fn succeeded(&self, now: Instant) -> Option<OutageLine> {
        let mut state = self.state.lock();
        let since = state.since.take()?;
        let failures = std::mem::take(&mut state.failures);
        Some(OutageLine::Over { failures, lasted: now.saturating_duration_since(since) })
    }
}

/// Shows the first 128 characters of a text from outside, with control characters escaped.
#[derive(Clone, Copy)]
pub(crate) struct Excerpt<'a>(pub(crate) &'a str);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut characters = self.0.chars();
        for character in characters.by_ref().take(MAX_EXCERPT) {
            // Direction marks and other invisible characters could make a line look different.
            if character.is_control()
                || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            {
                write!(f, "{}", character.escape_unicode())?;
            } else {
                f.write_char(character)?;
            }
        }
        match characters.count() {
            0 => Ok(()),
            rest => write!(f, "… ({rest} more characters)"),
        }
    }
}

impl fmt::Debug for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(left_out: u64) -> Option<Line> {
        Some(Line { left_out: (left_out > 0).then_some(left_out) })
    }

    #[test]
    fn a_cause_gets_one_line_per_interval_with_the_number_of_lines_left_out() {
        let (limits, now) = (LogLimits::default(), Instant::now());
        assert_eq!(limits.due("a", now), line(0));
        assert_eq!(limits.due("a", now), None);
        assert_eq!(limits.due("a", now + INTERVAL / 2), None);
        assert_eq!(limits.due("b", now + INTERVAL / 2), line(0), "another cause");
        assert_eq!(limits.due("a", now + INTERVAL), line(2));
        assert_eq!(limits.due("a", now + 2 * INTERVAL), line(0));
    }

    #[test]
    fn causes_beyond_the_bound_share_one_line() {
        let (limits, now) = (LogLimits::default(), Instant::now());
        let written = (0..10_000).filter(|cause| limits.due(*cause, now).is_some()).count();
        assert_eq!(written, MAX_CAUSES + 1);
        assert_eq!(limits.causes.lock().len(), MAX_CAUSES + 1);
        assert_eq!(limits.due(1, now), None);
        // Causes that are quiet make room.
        assert_eq!(limits.due(20_000, now + INTERVAL), line(0));
        assert_eq!(limits.causes.lock().len(), 1);
    }

    #[test]
    fn an_outage_is_logged_at_its_beginning_and_at_its_end_with_the_number_of_failures() {
        let (outage, now) = (Outage::default(), Instant::now());
        assert_eq!(outage.succeeded(now), None);
        assert_eq!(outage.failed(now), Some(OutageLine::Failing { failures: None }));
        for _ in 0..100 {
            assert_eq!(outage.failed(now + INTERVAL / 2), None);
        }
        assert_eq!(outage.failed(now + INTERVAL), Some(OutageLine::Failing { failures: Some(101) }));
        let over = OutageLine::Over { failures: 102, lasted: 2 * INTERVAL };
        assert_eq!(outage.succeeded(now + 2 * INTERVAL), Some(over));
        assert_eq!(outage.succeeded(now + 2 * INTERVAL), None);
    }

    #[test]
    fn occasional_failures_are_logged_once_per_interval() {
        let (outage, now) = (Outage::default(), Instant::now());
        outage.failed(now).unwrap();
        outage.succeeded(now).unwrap();
        for _ in 0..100 {
            assert_eq!(outage.failed(now), None);
            assert_eq!(outage.succeeded(now), None);
        }
        assert_eq!(outage.failed(now + INTERVAL), Some(OutageLine::Failing { failures: Some(100) }));
        assert_eq!(outage.succeeded(now + INTERVAL), Some(OutageLine::Over { failures: 1, lasted: Duration::ZERO }));
    }

    #[test]
    fn texts_from_outside_are_cut_and_escaped() {
        assert_eq!(Excerpt("https://example.org").to_string(), "https://example.org");
        assert_eq!(Excerpt("a\r\nERROR\u{1b}[0m\u{202e}").to_string(), r"a\u{d}\u{a}ERROR\u{1b}[0m\u{202e}");
        let long = Excerpt(&"é".repeat(1_000)).to_string();
        assert_eq!(long, format!("{}… (872 more characters)", "é".repeat(128)));
    }
}
