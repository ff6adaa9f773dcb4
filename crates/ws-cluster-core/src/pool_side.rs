//! What a node knows of the pool: the last view and its age, the query that waits for its answer, and which queries
//! have failed.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::{NodeId, PoolView, Query, sightings::Sightings};

#[derive(Default)]
pub(super) struct PoolSide {
    pub(super) view: PoolView,
    /// When the last view was asked for; `None` before the first.
    pub(super) view_asked_at: Option<Instant>,
    /// The query that waits for its answer, and when it was asked.
    pub(super) asked: Option<(Query, Instant)>,
    /// True if the clock may have stood still since that query was asked.
    pub(super) answer_is_old: bool,
    pub(super) sightings: Sightings,
    /// The number of this node's row.
    pub(super) own_row: Option<u64>,
    /// When recent reads showed that another node had replaced this node's row.
    pub(super) displacements: Vec<Instant>,
    /// When another node was last seen to announce itself at this node's address.
    pub(super) displaced_at: Option<Instant>,
    /// When this node last asked to announce itself.
    pub(super) announced_at: Option<Instant>,
    /// When this node last asked to renew the lease, of any master.
    pub(super) renewal_asked_at: Option<Instant>,
    /// When the last successful renewal of this master was asked for.
    pub(super) lease_renewed_at: Option<Instant>,
    /// The time at which this master changed the lease after it had cleared the last lost follower. A later read that
    /// shows no member proves that it is alone: a candidate that still counts as a member compares with an older lease
    /// and fails.
    pub(super) alone_provable_since: Option<Instant>,
    /// True if the last query failed.
    failing: bool,
    /// The reads that have failed since the last read that succeeded.
    failed_reads: Option<Failures>,
    /// The writes that have failed since the last write that succeeded. A read-only database still answers every read.
    failed_writes: Option<Failures>,
    /// When the last failed query was reported.
    pub(super) failed_at: Option<Instant>,
    /// True if a read is due at once, without the interval between reads.
    pub(super) stale: bool,
    /// True after a failed write: the next query is a read, because a database that refuses every write must not keep
    /// this node from reading.
    pub(super) read_first: bool,
    /// A conditional write that is asked before any other query.
    pub(super) urgent: Option<Query>,
    /// Nodes whose link was lost. The master clears their membership.
    pub(super) lost: BTreeSet<NodeId>,
}

/// Several failed queries in a row.
struct Failures {
    first: Instant,
    last: Instant,
    /// True if a read has succeeded since the first of them.
    read_since: bool,
}

/// How the pool's database fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It answers nothing.
    Silent,
    /// It answers reads and refuses writes.
    ReadOnly,
}

impl PoolSide {
    pub(super) fn is_failing(&self) -> bool {
        self.failing
    }

    /// Returns true if a query failed and none of its kind succeeded since.
    pub(super) fn has_trouble(&self) -> bool {
        self.failed_reads.is_some() || self.failed_writes.is_some()
    }

    /// Returns how the pool has failed for longer than `patience`. One slow query does not count.
    pub(super) fn trouble(&self, now: Instant, patience: Duration) -> Option<Trouble> {
        let lasts = |failures: &Option<Failures>| {
            failures.as_ref().is_some_and(|failures| now.saturating_duration_since(failures.first) > patience)
        };
        let answers = self.failed_writes.as_ref().is_some_and(|failures| failures.read_since);
        match (lasts(&self.failed_reads), lasts(&self.failed_writes)) {
            (false, false) => None,
            (false, true) if answers => Some(Trouble::ReadOnly),
            _ => Some(Trouble::Silent),
        }
    }

    #[cfg(any(test, feature = "simulator"))]
    pub(super) fn summary(&self) -> String {
        format!(
            "asked {:?} urgent {:?} failing {:?} view asked at {:?}",
            self.asked, self.urgent, self.failing, self.view_asked_at
        )
    }

    /// Returns true if a read or a write that was asked after `since` failed, and none succeeded after it.
    pub(super) fn failed_since(&self, since: Instant) -> bool {
        [&self.failed_reads, &self.failed_writes].into_iter().flatten().any(|failures| failures.last >= since)
    }

    /// Returns true if another node announced itself at this node's address within `time`.
    pub(super) fn is_displaced(&self, now: Instant, time: Duration) -> bool {
        self.displaced_at.is_some_and(|at| now.saturating_duration_since(at) <= time)
    }

    pub(super) fn read_soon(&mut self) {
        self.stale = true;
    }

    /// Returns true if a conditional write waits to be asked or answered.
    pub(super) fn is_deciding(&self) -> bool {
        self.urgent.is_some()
            || matches!(self.asked, Some((Query::TakeOver { .. } | Query::HandOver { .. } | Query::Restore { .. }, _)))
    }

    /// Returns the age of the last view.
    pub(super) fn age(&self, now: Instant) -> Duration {
        self.view_asked_at.map_or(Duration::MAX, |at| now.saturating_duration_since(at))
    }

    /// Notes that a follower was lost. Until its membership is cleared, this master is not provably alone.
    pub(super) fn lose(&mut self, node: NodeId) {
        self.lost.insert(node);
        self.alone_provable_since = None;
        self.stale = true;
    }

    /// Notes that this node has become the master. It asked for the lease at `took_at`; if that is not known, it renews
    /// the lease at once.
    pub(super) fn begin_term(&mut self, took_at: Option<Instant>) {
        self.lost.clear();
        self.urgent = None;
        self.lease_renewed_at = took_at;
        self.alone_provable_since = took_at;
        if took_at.is_none() {
            self.renewal_asked_at = None;
        }
        self.stale = true;
    }

    /// Notes that what the pool has shown is of the past, and that the answer that waits may be, too.
    pub(super) fn distrust(&mut self) {
        self.lease_renewed_at = None;
        self.alone_provable_since = None;
        self.answer_is_old = self.asked.is_some();
        self.stale = true;
        // No write may follow from it: another master may have members that this one would clear.
        self.read_first = true;
    }

    /// Notes that a query, which was asked at `asked`, failed.
    pub(super) fn query_failed(&mut self, query: Query, asked: Instant, now: Instant) {
        let read = query == Query::Read;
        let failures = if read { &mut self.failed_reads } else { &mut self.failed_writes };
        failures.get_or_insert(Failures { first: asked, last: asked, read_since: false }).last = asked;
        self.failing = true;
        self.failed_at = Some(now);
        self.stale = true;
        self.read_first = !read;
        if let Query::ClearJoined(node) = query {
            self.lost.insert(node);
        }
    }

    /// Notes that a query succeeded.
    pub(super) fn query_succeeded(&mut self, query: &Query) {
        self.failing = false;
        // A successful write shows that the database works. A successful read says nothing about writes. But if reads
        // failed too, the earlier failures of writes say nothing about the database that is back.
        if self.failed_reads.take().is_some() || *query != Query::Read {
            self.failed_writes = None;
        }
        self.failed_writes.iter_mut().for_each(|failures| failures.read_since = true);
    }
}
