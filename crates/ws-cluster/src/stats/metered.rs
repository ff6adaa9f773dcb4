//! What only the feature `metrics` counts. Without the feature nothing is counted and no time is read.

#[cfg(feature = "metrics")]
use std::time::Instant;
use std::{collections::HashMap, sync::atomic::AtomicU64, time::Duration};

use super::{Counter, Histogram};
use crate::CloseCode;

/// The counts that only the feature `metrics` shows.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) handshakes: [Counter; HandshakeOutcome::LABELS.len()],
    pub(crate) received_bytes: Counter,
    pub(crate) delivered_bytes: Counter,
    pub(crate) compressed: Counter,
    pub(crate) replies: Counter,
    pub(crate) entries: Counter,
    /// The times of publishes that were not accepted.
    pub(crate) unsettled: [Histogram; PublishOutcome::LABELS.len()],
    pub(crate) fan_outs: Histogram,
    /// By the index of the code in [`CLOSE_CODES`]; the last are all others.
    pub(crate) closes: [Counter; CLOSE_CODES.len() + 1],
    pub(crate) resumes: [Counter; ResumeOutcome::LABELS.len()],
    pub(crate) replayed: Counter,
    pub(crate) links_opened: Counter,
    pub(crate) links_lost: Counter,
    pub(crate) dials_failed: Counter,
    pub(crate) pool_errors: Counter,
    pub(crate) look_ups: [Histogram; LookUpOutcome::LABELS.len()],
    pub(crate) handler_panics: Counter,
    pub(crate) rate_limited: Counter,
    pub(crate) outbox_published: Counter,
    pub(crate) outbox_failed: Counter,
    pub(crate) outbox_errors: Counter,
    /// From the insert of a row to its acceptance.
    pub(crate) outbox_delays: Histogram,
    /// Rows of the last read.
    pub(crate) outbox_backlog: AtomicU64,
    /// The age of the oldest one, in microseconds.
    pub(crate) outbox_oldest: AtomicU64,
}

/// The codes that a close is counted under.
pub(crate) const CLOSE_CODES: [u16; 16] = [
    CloseCode::Normal as u16,
    1001,
    CloseCode::Protocol as u16,
    1005,
    1006,
    CloseCode::NotUtf8 as u16,
    CloseCode::TooLarge as u16,
    CloseCode::Internal as u16,
    CloseCode::Restart as u16,
    CloseCode::TryAgainLater as u16,
    CloseCode::TooSlow as u16,
    CloseCode::Silent as u16,
    CloseCode::SessionUnknown as u16,
    CloseCode::Expired as u16,
    CloseCode::Malformed as u16,
    CloseCode::Unauthenticated as u16,
];

/// Defines an enum with a label for each variant.
macro_rules! labelled {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $label:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name {
            $($variant,)+
        }

        impl $name {
            /// The labels, in the order of the variants.
            pub(crate) const LABELS: &'static [&'static str] = &[$($label,)+];
        }
    };
}

#[cfg(any(feature = "backend", feature = "metrics"))]
pub(super) use labelled;

labelled! {
    /// How a client's upgrade request ended, or that its TLS handshake failed.
    HandshakeOutcome {
        Accepted = "accepted",
        Malformed = "malformed",
        Origin = "origin",
        NotReady = "not_ready",
        Address = "address_limit",
        Node = "node_limit",
        Rate = "rate_limit",
        LookUp = "look_up_failed",
        Tls = "tls_failed",
    }
}

labelled! {
    /// Why a publish was not accepted.
    PublishOutcome {
        Unknown = "unknown",
        Abandoned = "abandoned",
        Busy = "busy",
        ShuttingDown = "shutting_down",
    }
}

labelled! {
    /// How a client began.
    ResumeOutcome {
        New = "new",
        Recovered = "recovered",
        Reset = "reset",
        Closed = "closed",
    }
}

labelled! {
    /// What an authenticator answered.
    LookUpOutcome {
        User = "user",
        Guest = "guest",
        Refused = "refused",
        Failed = "failed",
    }
}

/// Most actions that have a label of their own. Further ones, and those that a fallback handles, share [`OTHER`].
const MAX_ACTIONS: usize = 100;

/// The label of what has none of its own.
pub(crate) const OTHER: &str = "other";

/// The times of an application's handlers, by action.
#[derive(Debug, Default)]
pub(crate) struct HandlerTimes {
    by_action: HashMap<String, Histogram>,
    other: Histogram,
}

impl HandlerTimes {
    /// `actions`: those that have a handler.
    pub(crate) fn new<'a>(actions: impl Iterator<Item = &'a String>) -> Self {
        let mut actions: Vec<&String> = actions.filter(|action| *action != OTHER).collect();
        // The same ones have labels on every node.
        actions.sort_unstable();
        let by_action = actions.into_iter().take(MAX_ACTIONS).map(|action| (action.clone(), Histogram::default()));
        Self { by_action: by_action.collect(), other: Histogram::default() }
    }

    pub(crate) fn of(&self, action: &str) -> &Histogram {
        self.by_action.get(action).unwrap_or(&self.other)
    }

    /// Returns all with their labels.
    #[cfg(feature = "metrics")]
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &Histogram)> {
        let by_action = self.by_action.iter().map(|(action, times)| (&**action, times));
        by_action.chain([(OTHER, &self.other)])
    }
}

/// A value that exists with the feature `metrics` only.
#[derive(Debug, Default)]
pub(crate) struct Metered<T> {
    #[cfg(feature = "metrics")]
    value: T,
    #[cfg(not(feature = "metrics"))]
    value: std::marker::PhantomData<T>,
}

impl<T> Metered<T> {
    pub(crate) fn new(make: impl FnOnce() -> T) -> Self {
        Self {
            #[cfg(feature = "metrics")]
            value: make(),
            #[cfg(not(feature = "metrics"))]
            value: {
                let _ = make;
                std::marker::PhantomData
            },
        }
    }

    /// Calls `note` with the value. Does nothing without the feature.
    pub(crate) fn note(&self, note: impl FnOnce(&T)) {
        #[cfg(feature = "metrics")]
        note(&self.value);
        #[cfg(not(feature = "metrics"))]
        let _ = (note, &self.value);
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn get(&self) -> &T {
        &self.value
    }
}

impl Counts {
    pub(crate) fn note_close(&self, code: u16) {
        let index = CLOSE_CODES.iter().position(|known| *known == code).unwrap_or(CLOSE_CODES.len());
        self.closes[index].add(1);
    }
}

/// The time since a moment. Reads no clock without the feature.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(#[cfg(feature = "metrics")] Instant);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(
            #[cfg(feature = "metrics")]
            Instant::now(),
        )
    }

    /// Returns the time since the start; zero without the feature.
    pub(crate) fn elapsed(self) -> Duration {
        #[cfg(feature = "metrics")]
        return self.0.elapsed();
        #[cfg(not(feature = "metrics"))]
        Duration::ZERO
    }
}

#[cfg(all(test, feature = "metrics"))]
mod tests {
    use super::*;

    #[test]
    fn the_page_lists_the_values_of_each_label() {
        let page = include_str!("../../../../docs/operations.md");
        for (what, labels) in [
            ("a handshake", HandshakeOutcome::LABELS),
            ("a publish", PublishOutcome::LABELS),
            ("a resume", ResumeOutcome::LABELS),
            ("a session look-up", LookUpOutcome::LABELS),
        ] {
            let begin = format!("| `outcome` of {what} | ");
            let row = page.lines().find_map(|line| line.strip_prefix(&begin)).expect(what);
            let listed: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
            // Accepted publishes have a histogram of their own.
            let of_others = listed.iter().filter(|label| what != "a publish" || **label != "accepted");
            assert_eq!(of_others.copied().collect::<Vec<_>>(), labels, "{what}");
        }
    }

    #[test]
    fn actions_beyond_a_number_share_a_label() {
        let actions: Vec<String> = (0..MAX_ACTIONS + 5).map(|number| format!("action {number:03}")).collect();
        let times = HandlerTimes::new(actions.iter());
        assert_eq!(times.all().count(), MAX_ACTIONS + 1);
        for action in actions.iter().map(String::as_str).chain(["invented", OTHER]) {
            times.of(action).observe(Duration::from_millis(1));
        }
        assert_eq!((times.of("action 000").read().count(), times.other.read().count()), (1, 7));
    }
}
