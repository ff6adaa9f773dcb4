//! Decides what the poller of the outbox does next. Pure: `task` carries out each [`Step`] and reports what came of it.
//!
//! One round reads rows, publishes them, and removes those that were accepted. Rows that cannot be published go to the
//! table of failed rows. Every step may fail, and the process may end between any two steps:
//!
//! - A row that was accepted and is still there is removed, not published: this process remembers the keys of such rows,
//!   and every node remembers the keys that it has delivered. Such rows are removed before others are published, so
//!   there are never more of them than one read returns.
//! - A row whose outcome is unknown is published again with the same idempotency key, so the cluster delivers it once.
//! - The removal follows a read. If the read has failed, nothing that was known before it counts.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    OutboxRows, RowId,
    row::{self, Publish},
};

/// Time between two reads. A row waits half of it on average.
pub(super) const INTERVAL: Duration = Duration::from_millis(50);

/// After a read, the poller pauses for this many times its duration, so that a table that is slow to read is read less
/// often.
const PAUSE: u32 = 4;

/// First pause after a failure, and the longest. Each failure doubles the pause.
const BACK_OFF: Duration = Duration::from_millis(100);
const MAX_BACK_OFF: Duration = Duration::from_secs(5);

/// Time after the beginning of a read in which its rows may be published. The cluster knows a row that another node has
/// published since then by its key, but not for ever.
const FRESH: Duration = Duration::from_secs(5);

/// What the task does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Waits until then.
    Wait(Instant),
    /// Prepares the outbox.
    Prepare,
    /// Reads the first rows.
    Read,
    /// Publishes in this order, unless this time has passed. Of those that follow one that is not taken, none is taken.
    Publish { publishes: Vec<Publish>, not_after: Instant },
    /// Removes rows.
    Remove(Vec<RowId>),
    /// Moves rows to those that failed.
    Fail(Vec<(RowId, String)>),
}

/// What became of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Accepted,
    /// It may or may not be accepted, or was not taken.
    Open,
}

#[derive(Debug, Default)]
pub(super) struct Poller {
    phase: Phase,
    /// True if the outbox was prepared, and nothing has failed since.
    is_prepared: bool,
    round: Round,
    /// The keys of rows that were accepted and not removed yet.
    accepted: HashSet<Bytes>,
    /// How many rounds have failed in a row.
    failures: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Begins a round. If this node has just become the master, or the database has failed, it first prepares the outbox.
    #[default]
    Beginning,
    Waiting(Instant),
    /// Removes rows that had been accepted before the read.
    RemovingOld,
    Publishing,
    Removing,
    Failing,
}

/// The rows of one read.
#[derive(Debug, Default)]
struct Round {
    began: Option<Instant>,
    /// When the next read is due.
    next: Option<Instant>,
    /// Rows to remove, with their keys.
    remove: Vec<(RowId, Bytes)>,
    publish: Vec<(RowId, Publish)>,
    fail: Vec<(RowId, String)>,
    /// True if a publish has no outcome.
    is_open: bool,
}

impl Poller {
    /// Returns what to do now. It is the same until the outcome is reported.
    pub(super) fn step(&mut self, now: Instant) -> Step {
        if let Phase::Waiting(until) = self.phase {
            if until > now {
                return Step::Wait(until);
            }
            self.phase = Phase::Beginning;
        }
        match self.phase {
            Phase::Beginning | Phase::Waiting(_) if !self.is_prepared => Step::Prepare,
            Phase::Beginning | Phase::Waiting(_) => {
                self.round = Round { began: Some(now), ..Round::default() };
                Step::Read
            }
            Phase::RemovingOld | Phase::Removing => {
                Step::Remove(self.round.remove.iter().map(|(row, _)| *row).collect())
            }
            Phase::Publishing => Step::Publish {
                publishes: self.round.publish.iter().map(|(_, publish)| publish.clone()).collect(),
                not_after: self.round.began.unwrap_or(now) + FRESH,
            },
            Phase::Failing => Step::Fail(self.round.fail.clone()),
        }
    }

    /// Returns true if the present step is only for the master. The others finish what was begun.
    pub(super) fn is_between_rounds(&self) -> bool {
        matches!(self.phase, Phase::Beginning | Phase::Waiting(_))
    }

    /// Notes that this node is not the master now. It begins again once it is.
    pub(super) fn pause(&mut self) {
        if self.is_between_rounds() {
            (self.phase, self.is_prepared) = (Phase::Beginning, false);
        }
    }

    /// Notes that the outbox is prepared.
    pub(super) fn prepared(&mut self) {
        self.is_prepared = true;
    }

    /// Notes that the database failed. The next round prepares the outbox again, because a database that has become
    /// read-only would otherwise show rows that cannot be removed.
    pub(super) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.is_prepared = false;
        self.phase = Phase::Waiting(now + self.back_off());
    }

    fn back_off(&self) -> Duration {
        let doubled = BACK_OFF.saturating_mul(1 << (self.failures.saturating_sub(1)).min(10));
        doubled.min(MAX_BACK_OFF)
    }

    /// Takes the rows that were read. `has_delivered` returns true for the key of a publish that this node has delivered.
    pub(super) fn read(&mut self, now: Instant, read: &OutboxRows, has_delivered: impl Fn(&Bytes) -> bool) {
        let began = self.round.began.unwrap_or(now);
        let pause = now.saturating_duration_since(began) * PAUSE;
        self.round.next = Some(if read.has_more { now } else { (began + INTERVAL).max(now + pause) });
        let mut present = HashSet::new();
        for row in &read.rows {
            match row::publish(row) {
                Ok(publish) if self.accepted.contains(&publish.key) || has_delivered(&publish.key) => {
                    present.insert(publish.key.clone());
                    self.round.remove.push((row.id, publish.key));
                }
                Ok(publish) => self.round.publish.push((row.id, publish)),
                Err(why) => self.round.fail.push((row.id, why)),
            }
        }
        if !read.has_more {
            // The others have been removed, by a statement whose answer was lost or by another node.
            self.accepted = present;
        }
        self.phase = Phase::RemovingOld;
        self.proceed(now);
    }

    /// Takes the outcomes of the publishes, in their order.
    pub(super) fn published(&mut self, now: Instant, outcomes: &[Outcome]) {
        let rows = std::mem::take(&mut self.round.publish);
        self.round.is_open = outcomes.len() < rows.len();
        for ((row, publish), outcome) in rows.into_iter().zip(outcomes) {
            match outcome {
                Outcome::Accepted => {
                    self.accepted.insert(publish.key.clone());
                    self.round.remove.push((row, publish.key));
                }
                Outcome::Open => self.round.is_open = true,
            }
        }
        self.phase = Phase::Removing;
        self.proceed(now);
    }

    /// Notes that the rows were removed.
    pub(super) fn removed(&mut self, now: Instant) {
        for (_, key) in std::mem::take(&mut self.round.remove) {
            self.accepted.remove(&key);
        }
        self.proceed(now);
    }

    /// Notes that the rows were moved to those that failed.
    pub(super) fn moved(&mut self, now: Instant) {
        self.round.fail.clear();
        self.proceed(now);
    }

    /// Goes on to the next phase that has something to do, or ends the round.
    fn proceed(&mut self, now: Instant) {
        let Round { remove, publish, fail, .. } = &self.round;
        self.phase = match self.phase {
            Phase::RemovingOld if !remove.is_empty() => Phase::RemovingOld,
            Phase::RemovingOld | Phase::Publishing if !publish.is_empty() => Phase::Publishing,
            Phase::RemovingOld | Phase::Publishing | Phase::Removing if !remove.is_empty() => Phase::Removing,
            _ if !fail.is_empty() => Phase::Failing,
            _ if self.round.is_open => {
                self.failures = self.failures.saturating_add(1);
                Phase::Waiting(now + self.back_off())
            }
            _ => {
                self.failures = 0;
                Phase::Waiting(self.round.next.unwrap_or(now))
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{OutboxRow, RowTexts};

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn rows(numbers: &[u64]) -> OutboxRows {
        let row = |&id: &u64| {
            let texts = RowTexts { action: "a".into(), details: None, target: "all".into() };
            OutboxRow { id: RowId { id, stamp: id }, age: Duration::ZERO, size: 4, texts: Some(texts) }
        };
        OutboxRows { rows: numbers.iter().map(row).collect(), has_more: false }
    }

    fn ids(numbers: &[u64]) -> Vec<RowId> {
        numbers.iter().map(|&id| RowId { id, stamp: id }).collect()
    }

    /// A poller that has just read these rows.
    fn reading(now: Instant, read: &OutboxRows) -> Poller {
        let mut poller = Poller::default();
        assert_eq!(poller.step(now), Step::Prepare);
        poller.prepared();
        assert_eq!(poller.step(now), Step::Read);
        poller.read(now, read, |_| false);
        poller
    }

    #[track_caller]
    fn assert_publishes(poller: &mut Poller, now: Instant, count: usize) {
        match poller.step(now) {
            Step::Publish { publishes, .. } => assert_eq!(publishes.len(), count),
            step => panic!("{step:?}"),
        }
    }

    #[test]
    fn rows_are_published_and_removed_and_the_next_read_follows_the_interval() {
        let now = Instant::now();
        let mut poller = reading(now, &rows(&[1, 2]));
        assert_publishes(&mut poller, now, 2);
        poller.published(now + 7 * MILLISECOND, &[Outcome::Accepted, Outcome::Accepted]);
        assert_eq!(poller.step(now), Step::Remove(ids(&[1, 2])));
        poller.removed(now + 9 * MILLISECOND);
        assert_eq!(poller.step(now + 9 * MILLISECOND), Step::Wait(now + INTERVAL));
        assert_eq!(poller.step(now + INTERVAL), Step::Read);
        poller.read(now + INTERVAL, &rows(&[]), |_| false);
        assert_eq!(poller.step(now + INTERVAL), Step::Wait(now + 2 * INTERVAL));
    }

    #[test]
    fn a_full_read_is_followed_by_another_and_a_slow_one_by_a_pause() {
        let now = Instant::now();
        let mut poller = reading(now, &OutboxRows { has_more: true, ..rows(&[1]) });
        poller.published(now, &[Outcome::Accepted]);
        poller.removed(now);
        assert_eq!(poller.step(now), Step::Read);
        let later = now + 200 * MILLISECOND;
        poller.read(later, &rows(&[]), |_| false);
        assert_eq!(poller.step(later), Step::Wait(later + 800 * MILLISECOND));
    }

    #[test]
    fn an_accepted_row_that_could_not_be_removed_is_removed_before_others_are_published() {
        let now = Instant::now();
        let mut poller = reading(now, &rows(&[1]));
        poller.published(now, &[Outcome::Accepted]);
        poller.failed(now);
        let later = now + BACK_OFF;
        assert_eq!(poller.step(now), Step::Wait(later));
        assert_eq!(poller.step(later), Step::Prepare, "the database may have become read-only");
        poller.prepared();
        assert_eq!(poller.step(later), Step::Read);
        poller.read(later, &rows(&[1, 2]), |_| false);
        assert_eq!(poller.step(later), Step::Remove(ids(&[1])));
        poller.removed(later);
        assert_publishes(&mut poller, later, 1);
    }

    #[test]
    fn a_row_that_this_node_has_delivered_is_not_published() {
        let now = Instant::now();
        let mut poller = Poller::default();
        poller.prepared();
        assert_eq!(poller.step(now), Step::Read);
        poller.read(now, &rows(&[1, 2]), |_| true);
        assert_eq!(poller.step(now), Step::Remove(ids(&[1, 2])));
        poller.removed(now);
        assert!(matches!(poller.step(now), Step::Wait(_)));
    }

    #[test]
    fn a_row_without_an_outcome_is_published_again_after_pauses_that_grow() {
        let mut now = Instant::now();
        let mut poller = reading(now, &rows(&[1, 2]));
        for pause in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            poller.published(now, &[Outcome::Open, Outcome::Open]);
            assert_eq!(poller.step(now), Step::Wait(now + pause * MILLISECOND));
            now += pause * MILLISECOND;
            assert_eq!(poller.step(now), Step::Read);
            poller.read(now, &rows(&[1, 2]), |_| false);
        }
        // What was accepted is removed although the rest is open.
        poller.published(now, &[Outcome::Accepted, Outcome::Open]);
        assert_eq!(poller.step(now), Step::Remove(ids(&[1])));
        poller.removed(now);
        assert!(matches!(poller.step(now), Step::Wait(_)));
        // A round without failures ends the back-off.
        now += MAX_BACK_OFF;
        assert_eq!(poller.step(now), Step::Read);
        poller.read(now, &rows(&[]), |_| false);
        assert_eq!(poller.step(now), Step::Wait(now + INTERVAL));
    }

    #[test]
    fn malformed_rows_move_after_the_others_are_done() {
        let now = Instant::now();
        let mut read = rows(&[1, 2, 3]);
        read.rows[1].texts.as_mut().unwrap().target = "nowhere".into();
        let mut poller = reading(now, &read);
        assert_publishes(&mut poller, now, 2);
        poller.published(now, &[Outcome::Accepted, Outcome::Accepted]);
        assert_eq!(poller.step(now), Step::Remove(ids(&[1, 3])));
        poller.removed(now);
        match poller.step(now) {
            Step::Fail(failed) => assert_eq!(failed[0].0, ids(&[2])[0]),
            step => panic!("{step:?}"),
        }
        poller.moved(now);
        assert!(matches!(poller.step(now), Step::Wait(_)));
    }

    #[test]
    fn rows_that_were_read_long_ago_are_not_published() {
        let now = Instant::now();
        let mut poller = reading(now, &rows(&[1]));
        assert!(matches!(poller.step(now), Step::Publish { not_after, .. } if not_after == now + FRESH));
        // None was taken.
        poller.published(now + 2 * FRESH, &[Outcome::Open]);
        assert!(matches!(poller.step(now + 2 * FRESH), Step::Wait(_)));
    }

    #[test]
    fn a_node_that_is_no_master_finishes_what_it_has_begun() {
        let now = Instant::now();
        let mut poller = reading(now, &rows(&[1]));
        poller.pause();
        assert!(!poller.is_between_rounds());
        poller.published(now, &[Outcome::Accepted]);
        poller.pause();
        assert_eq!(poller.step(now), Step::Remove(ids(&[1])));
        poller.removed(now);
        assert!(poller.is_between_rounds());
        poller.pause();
        assert_eq!(poller.step(now), Step::Prepare, "once it is the master again");
    }
}
