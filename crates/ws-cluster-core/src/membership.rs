//! The pool as the core sees it: the last view, when it was taken, and what to ask next.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{Answer, Core, NodeId, Output, Query, Role, sightings::Sightings};
use crate::{Announcement, Lease, NodeRow, PoolView};

/// How often the pool is read: several times within a third of the lease, so that one slow read does not break the
/// count of how long the lease stood still.
const READ_INTERVAL: Duration = Duration::from_millis(500);
/// A node that loses its row so often within twice the time of a member shares its address with another one.
const DISPLACEMENTS: usize = 3;
/// How soon after a failure the pool is asked again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Default)]
pub(super) struct PoolSide {
    view: PoolView,
    /// When the view was asked for; `None` before the first.
    viewed: Option<Instant>,
    /// The query under way, and since when.
    asked: Option<(Query, Instant)>,
    sightings: Sightings,
    /// The number of this node's row, and when a read showed lately that it had lost its row to another node.
    own_row: Option<u64>,
    displacements: Vec<Instant>,
    /// When another node was last seen to announce itself at this node's address.
    displaced: Option<Instant>,
    announced: Option<Instant>,
    renewed: Option<Instant>,
    /// When this master's last successful renewal was asked for.
    held: Option<Instant>,
    /// When the lease was changed by this master after it had cleared the last lost follower: a candidate that still
    /// thinks itself a member compares with a lease that is no more.
    proved: Option<Instant>,
    /// When the last failed query was asked; `None` once one was answered.
    failing: Option<Instant>,
    /// The reads and the writes that failed without a success since. They are kept apart because a database that
    /// became read-only still answers every read.
    failed_reads: Option<Failures>,
    failed_writes: Option<Failures>,
    /// When the last failure was told.
    failed: Option<Instant>,
    /// A read is wanted at once.
    stale: bool,
    /// The last write failed, and the next query is a read: a database that refuses every write must not keep this
    /// node from reading.
    read_first: bool,
    /// A conditional write that goes before all else.
    pub(super) urgent: Option<Query>,
    /// Nodes whose link was lost, to be cleared by the master.
    pub(super) lost: BTreeSet<NodeId>,
}

/// When the first and the last of several failed queries were asked.
struct Failures {
    first: Instant,
    last: Instant,
    /// A read succeeded since the first of them.
    read_since: bool,
}

/// What the pool's database does not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It answers nothing.
    Silent,
    /// It answers reads and refuses writes.
    ReadOnly,
}

impl PoolSide {
    pub(super) fn view(&self) -> &PoolView {
        &self.view
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    /// Returns what the pool has refused for longer than `patience`: one query that takes too long is no news.
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
        format!("asked {:?} urgent {:?} failing {:?} viewed {:?}", self.asked, self.urgent, self.failing, self.viewed)
    }

    /// Returns true if a read or a write that was asked after `since` failed, and none succeeded after it.
    pub(super) fn failed_since(&self, since: Instant) -> bool {
        [&self.failed_reads, &self.failed_writes].into_iter().flatten().any(|failures| failures.last >= since)
    }

    /// Returns true if another node announced itself at this node's address within `time`.
    pub(super) fn is_displaced(&self, now: Instant, time: Duration) -> bool {
        self.displaced.is_some_and(|at| now.saturating_duration_since(at) <= time)
    }

    pub(super) fn read_soon(&mut self) {
        self.stale = true;
    }

    /// Whether a conditional write is under way or wanted.
    pub(super) fn is_deciding(&self) -> bool {
        self.urgent.is_some()
            || matches!(self.asked, Some((Query::TakeOver { .. } | Query::HandOver { .. } | Query::Restore { .. }, _)))
    }

    /// How old the view is.
    pub(super) fn age(&self, now: Instant) -> Duration {
        self.viewed.map_or(Duration::MAX, |viewed| now.saturating_duration_since(viewed))
    }

    /// A follower was lost: its row is to be cleared, and nothing proves this master alone until then.
    pub(super) fn lose(&mut self, node: NodeId) {
        self.lost.insert(node);
        self.proved = None;
        self.stale = true;
    }

    /// This node has just become the master, by a change of the lease.
    pub(super) fn begin_term(&mut self, now: Instant) {
        self.lost.clear();
        self.urgent = None;
        self.held = Some(now);
        self.proved = Some(now);
        self.stale = true;
    }
}

impl Core {
    /// The next query, where none is under way.
    pub(super) fn ask_pool(&mut self) {
        if self.pool.asked.is_some() {
            return;
        }
        if let Some(query) = self.next_query() {
            self.pool.asked = Some((query.clone(), self.now));
            self.outputs.push_back(Output::Query(query));
        }
    }

    fn next_query(&mut self) -> Option<Query> {
        let now = self.now;
        let due =
            |last: Option<Instant>, interval| last.is_none_or(|last| now.saturating_duration_since(last) >= interval);
        if self.pool.failing.is_some() && !due(self.pool.failed, RETRY_INTERVAL) {
            return None;
        }
        if std::mem::take(&mut self.pool.read_first) {
            self.pool.stale = false;
            return Some(Query::Read);
        }
        if let Some(query) = self.pool.urgent.take() {
            return Some(query);
        }
        if let Some(node) = self.pool.lost.pop_first() {
            return Some(Query::ClearJoined(node));
        }
        let renewal = self.renewal();
        if renewal.is_some() && due(self.pool.renewed, self.config.renew_interval) {
            self.pool.renewed = Some(now);
            return renewal;
        }
        // The first look comes before the first announcement: it shows whose address this one was.
        if self.pool.viewed.is_some() && self.draining.is_none() {
            // Announced once between two reads: a row that is lost again and again must not keep this node from reading.
            let joined = self.unannounced_join().filter(|_| !self.pool.stale);
            if joined.is_some() || due(self.pool.announced, self.config.seen_interval) {
                self.pool.announced = Some(now);
                self.pool.stale |= joined.is_some();
                let address = self.address.clone();
                return Some(Query::Announce(Announcement { node: self.me, address, joined }));
            }
        }
        if let Some(dead) = self.dead_node() {
            self.pool.view.nodes.retain(|row| row.node != dead);
            return Some(Query::Remove(dead));
        }
        (self.pool.stale || due(self.pool.viewed, READ_INTERVAL)).then(|| {
            self.pool.stale = false;
            Query::Read
        })
    }

    /// The renewal that this node owes: for itself, or for the master that it is linked to and whose beat stands.
    fn renewal(&self) -> Option<Query> {
        let owed = match &self.role {
            Role::Master(master) => !master.is_handed_over(),
            Role::Follower(follower) => {
                follower.is_joined()
                    && !self.candidacy.has_promised()
                    && self.observation.unchanged_for() >= self.config.renew_interval * 2
            }
        };
        let lease = self.observation.lease()?;
        let master = self.master.filter(|_| owed && lease.master == self.master && lease.term == self.term)?;
        Some(Query::Renew { term: self.term, master })
    }

    /// The term to announce: this node has joined, and its row does not say so.
    fn unannounced_join(&self) -> Option<u64> {
        let joined = match &self.role {
            Role::Master(master) => master.is_serving() && !master.is_handed_over(),
            Role::Follower(follower) => follower.is_joined(),
        };
        let announced = self.row(self.me).is_some_and(|row| row.joined == Some(self.term));
        (joined && !announced).then_some(self.term)
    }

    /// A row that nobody refreshes. After an outage of the database all are old; those who live get time to say so.
    fn dead_node(&self) -> Option<NodeId> {
        let Role::Master(master) = &self.role else { return None };
        let recovering = |failed| self.now.saturating_duration_since(failed) <= self.config.member_timeout;
        if self.pool.failed.is_some_and(recovering) {
            return None;
        }
        let dead =
            |row: &&NodeRow| row.age > self.config.dead_timeout && row.node != self.me && !master.leads(row.node);
        self.pool.view.nodes.iter().find(dead).map(|row| row.node)
    }

    pub(super) fn pool_answered(&mut self, answer: Answer) {
        let Some((query, asked)) = self.pool.asked.take() else { return };
        if answer == Answer::Failed {
            self.pool.failing = Some(asked);
            let failures =
                if query == Query::Read { &mut self.pool.failed_reads } else { &mut self.pool.failed_writes };
            failures.get_or_insert(Failures { first: asked, last: asked, read_since: false }).last = asked;
            self.pool.failed = Some(self.now);
            self.observation.failed();
            self.pool.stale = true;
            self.pool.read_first = query != Query::Read;
            if let Query::ClearJoined(node) = query {
                self.pool.lost.insert(node);
            }
            return self.advance();
        }
        self.pool.failing = None;
        // A write that succeeds shows that the database answers. A read shows nothing about writes, but writes that
        // failed while reads failed as well tell nothing of a database that is back.
        if self.pool.failed_reads.take().is_some() || query != Query::Read {
            self.pool.failed_writes = None;
        }
        self.pool.failed_writes.iter_mut().for_each(|failures| failures.read_since = true);
        match (query, answer) {
            (Query::Read, Answer::View(view)) => self.handle_view(asked, view),
            (Query::TakeOver { .. }, Answer::Term(Some(term))) if term > self.term => self.become_master(term),
            (Query::TakeOver { .. }, Answer::Term(None)) => {
                // The lease is another than was read: nothing is decided upon the old reading any more.
                self.observation.failed();
                self.pool.stale = true;
            }
            (Query::HandOver { term, successor }, Answer::Held(true)) => self.handed_over(term, successor),
            (Query::Announce(announcement), Answer::Done) => {
                // Until the next read says it, so that a join is not announced twice.
                if let Some(row) = self.pool.view.nodes.iter_mut().find(|row| row.node == announcement.node) {
                    row.joined = announcement.joined.or(row.joined);
                }
            }
            (Query::Renew { master, .. }, Answer::Held(true)) => {
                if master == self.me && self.pool.lost.is_empty() {
                    self.pool.held = Some(asked);
                    self.pool.proved.get_or_insert(asked);
                }
            }
            (Query::ClearJoined(_), Answer::Done) => {
                // The lease is renewed next, and read after that.
                self.pool.proved = None;
                self.pool.renewed = None;
                self.pool.stale = true;
            }
            _ => self.pool.stale = true,
        }
        self.tick_shutdown();
    }

    fn handle_view(&mut self, asked: Instant, mut view: PoolView) {
        // Just too old for a member, so that the master does not take it for dead at once.
        let oldest = self.config.member_timeout + Duration::from_millis(1);
        self.pool.sightings.read(asked, oldest, &mut view.nodes);
        self.note_displacement(&view);
        if self.pool.viewed.is_none() {
            self.note_predecessor(&view);
        }
        self.observation.read(asked, view.lease, self.config.lease / 3);
        self.addresses
            .extend(view.nodes.iter().filter(|row| row.node != self.me).map(|row| (row.node, row.address.clone())));
        self.addresses.retain(|node, _| Some(*node) == self.master || view.nodes.iter().any(|row| row.node == *node));
        self.pool.view = view;
        self.pool.viewed = Some(asked);
        if let Role::Master(master) = &mut self.role {
            let left = |node: &NodeId| !self.pool.view.nodes.iter().any(|row| row.node == *node);
            master.absent.retain(|node| !left(node));
        }
        self.clear_strays();
        match self.pool.view.lease {
            None => self.pool.urgent = Some(Query::Restore { term: self.term, master: self.master }),
            Some(lease) => self.handle_lease(lease),
        }
        self.consider_candidacy();
        self.advance();
    }

    /// Notes that another node has this node's address: an announcement removes the row of every other node at its
    /// address, so that each of the two loses its row again and again. Once may happen to any node.
    fn note_displacement(&mut self, view: &PoolView) {
        let own = view.nodes.iter().find(|row| row.node == self.me).map(|row| row.ord);
        let renewed = own.is_some_and(|own| self.pool.own_row.replace(own).is_some_and(|before| before != own));
        let other = |row: &NodeRow| row.node != self.me && row.address == self.address;
        let replaced = self.pool.own_row.is_some() && view.nodes.iter().any(other);
        if !renewed && !replaced {
            return;
        }
        let recent = |at: &Instant| self.now.saturating_duration_since(*at) <= self.config.member_timeout * 2;
        self.pool.displacements.retain(recent);
        self.pool.displacements.push(self.now);
        if self.pool.displacements.len() >= DISPLACEMENTS {
            self.pool.displaced = Some(self.now);
        }
    }

    /// Returns true if a query of the pool failed and none of its kind succeeded since.
    pub fn has_pool_trouble(&self) -> bool {
        self.pool.failed_reads.is_some() || self.pool.failed_writes.is_some()
    }

    fn handle_lease(&mut self, lease: Lease) {
        let mine = lease.master == Some(self.me);
        let master = matches!(self.role, Role::Master(_));
        if lease.term > self.term {
            if mine { self.become_master(lease.term) } else { self.follow(lease.term, lease.master) }
        } else if lease.term == self.term && lease.master == self.master {
            // As it should be.
        } else if lease.term == self.term && self.master.is_none() {
            if mine { self.become_master(lease.term) } else { self.set_master(lease.master) }
        } else if (master || mine) && !self.pool.is_deciding() && self.draining.is_none() {
            // The row fell behind: it was restored from an old copy, or another began anew. Its master puts it right.
            self.pool.urgent = Some(Query::TakeOver { seen: lease, max_seen: self.term });
        }
    }

    pub(super) fn row(&self, node: NodeId) -> Option<&NodeRow> {
        self.pool.view.nodes.iter().find(|row| row.node == node)
    }

    /// The nodes that had joined the master of `term` and were seen lately, but for this one and `master`.
    pub(super) fn members(&self, term: u64, master: Option<NodeId>) -> impl Iterator<Item = NodeId> {
        let limit = self.config.member_timeout;
        self.pool
            .view
            .nodes
            .iter()
            .filter(move |row| row.joined == Some(term) && row.age <= limit)
            .map(|row| row.node)
            .filter(move |node| *node != self.me && Some(*node) != master)
    }

    /// Whether the pool shows that nobody but this master can have joined it, and that nobody can have taken over:
    /// by the fast way, since the lease changed after the last follower was cleared, and a read after that shows no
    /// member; by the slow way, since the lease was renewed a moment ago.
    pub(super) fn is_provably_alone(&self) -> bool {
        let PoolSide { view, viewed, held, proved, .. } = &self.pool;
        let renewed = |held| self.now.saturating_duration_since(held) <= self.config.lease * 3 / 4;
        self.pool.lost.is_empty()
            && proved.is_some_and(|proved| viewed.is_some_and(|viewed| viewed >= proved))
            && held.is_some_and(renewed)
            && view.lease.is_some_and(|lease| lease.term == self.term && lease.master == Some(self.me))
            && self.members(self.term, None).next().is_none()
    }

    /// Members without a link to this master: their announcement came late, after they had been cleared.
    fn clear_strays(&mut self) {
        let Role::Master(master) = &self.role else { return };
        let strays: Vec<NodeId> =
            self.members(self.term, None).filter(|&node| master.is_serving() && !master.leads(node)).collect();
        strays.into_iter().for_each(|node| self.pool.lose(node));
    }
}
