//! Membership: the last view of the pool, its age, and the next query.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{Answer, Core, NodeId, Output, Query, Role, sightings::Sightings};
use crate::{Announcement, Lease, NodeRow, PoolView};

/// Interval between reads of the pool: several reads within a third of the lease, so that one slow read does not
/// restart the count of how long the lease has not changed.
const READ_INTERVAL: Duration = Duration::from_millis(500);
/// A node that loses its row this often within twice `member_timeout` shares its address with another node.
const DISPLACEMENTS: usize = 3;
/// Time after a failed query before the next one.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Default)]
pub(super) struct PoolSide {
    view: PoolView,
    /// When the last view was asked for; `None` before the first.
    viewed: Option<Instant>,
    /// The query that waits for its answer, and when it was asked.
    asked: Option<(Query, Instant)>,
    sightings: Sightings,
    /// The number of this node's row, and the recent reads that showed that another node had replaced the row.
    own_row: Option<u64>,
    displacements: Vec<Instant>,
    /// When another node was last seen to announce itself at this node's address.
    displaced: Option<Instant>,
    announced: Option<Instant>,
    renewed: Option<Instant>,
    /// When the last successful renewal of this master was asked for.
    held: Option<Instant>,
    /// When this master changed the lease after it had cleared the last lost follower. A candidate that still counts as
    /// a member compares with an older lease and fails.
    proved: Option<Instant>,
    /// When the last query was asked, if it failed.
    failing: Option<Instant>,
    /// The reads and the writes that have failed since the last success of their kind. A read-only database still
    /// answers every read.
    failed_reads: Option<Failures>,
    failed_writes: Option<Failures>,
    /// When the last failed query was reported.
    failed: Option<Instant>,
    /// True if the next query is to be a read.
    stale: bool,
    /// True after a failed write: the next query is a read, because a database that refuses every write must not keep
    /// this node from reading.
    read_first: bool,
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
    pub(super) fn view(&self) -> &PoolView {
        &self.view
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failing.is_some()
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

    /// Returns true if a conditional write waits to be asked or answered.
    pub(super) fn is_deciding(&self) -> bool {
        self.urgent.is_some()
            || matches!(self.asked, Some((Query::TakeOver { .. } | Query::HandOver { .. } | Query::Restore { .. }, _)))
    }

    /// Returns the age of the last view.
    pub(super) fn age(&self, now: Instant) -> Duration {
        self.viewed.map_or(Duration::MAX, |viewed| now.saturating_duration_since(viewed))
    }

    /// Notes that a follower was lost. Until its membership is cleared, this master is not provably alone.
    pub(super) fn lose(&mut self, node: NodeId) {
        self.lost.insert(node);
        self.proved = None;
        self.stale = true;
    }

    /// Notes that this node has become the master by a change of the lease.
    pub(super) fn begin_term(&mut self, now: Instant) {
        self.lost.clear();
        self.urgent = None;
        self.held = Some(now);
        self.proved = Some(now);
        self.stale = true;
    }
}

impl Core {
    /// Asks the next query, unless one waits for its answer.
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
        // The first read comes before the first announcement: it shows which node had this address before.
        if self.pool.viewed.is_some() && self.draining.is_none() {
            // A node announces itself once between two reads, so that a row that is replaced again and again does not
            // keep it from reading.
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

    /// Returns the renewal that is due: of this master's own lease, or, on a follower, of the linked master's lease if
    /// it has not been renewed.
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

    /// Returns the term to announce if this node has joined and its row does not say so.
    fn unannounced_join(&self) -> Option<u64> {
        let joined = match &self.role {
            Role::Master(master) => master.is_serving() && !master.is_handed_over(),
            Role::Follower(follower) => follower.is_joined(),
        };
        let announced = self.row(self.me).is_some_and(|row| row.joined == Some(self.term));
        (joined && !announced).then_some(self.term)
    }

    /// Returns a node whose row is too old. After an outage of the database all rows are old; live nodes get time to
    /// announce themselves.
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
        // A successful write shows that the database works. A successful read says nothing about writes. But if reads
        // failed too, the earlier failures of writes say nothing about the database that is back.
        if self.pool.failed_reads.take().is_some() || query != Query::Read {
            self.pool.failed_writes = None;
        }
        self.pool.failed_writes.iter_mut().for_each(|failures| failures.read_since = true);
        match (query, answer) {
            (Query::Read, Answer::View(view)) => self.handle_view(asked, view),
            (Query::TakeOver { .. }, Answer::Term(Some(term))) if term > self.term => self.become_master(term),
            (Query::TakeOver { .. }, Answer::Term(None)) => {
                // The lease has changed since it was read, so the old reading decides nothing any more.
                self.observation.failed();
                self.pool.stale = true;
            }
            (Query::HandOver { term, successor }, Answer::Held(true)) => self.handed_over(term, successor),
            (Query::Announce(announcement), Answer::Done) => {
                // The view is corrected until the next read, so that a join is not announced twice.
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
                // The next queries are a renewal and then a read.
                self.pool.proved = None;
                self.pool.renewed = None;
                self.pool.stale = true;
            }
            _ => self.pool.stale = true,
        }
        self.tick_shutdown();
    }

    fn handle_view(&mut self, asked: Instant, mut view: PoolView) {
        // Just too old for a member, but not so old that the master removes the row at once.
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

    /// Notes that another node has this node's address. An announcement removes the row of every other node at its
    /// address, so each of the two loses its row again and again. A single loss may happen to any node.
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
            // The lease and this node agree.
        } else if lease.term == self.term && self.master.is_none() {
            if mine { self.become_master(lease.term) } else { self.set_master(lease.master) }
        } else if (master || mine) && !self.pool.is_deciding() && self.draining.is_none() {
            // The pool's lease is older than what this node knows, as after a restore from a backup. The master
            // corrects it.
            self.pool.urgent = Some(Query::TakeOver { seen: lease, max_seen: self.term });
        }
    }

    pub(super) fn row(&self, node: NodeId) -> Option<&NodeRow> {
        self.pool.view.nodes.iter().find(|row| row.node == node)
    }

    /// Returns the live nodes that have joined the master of `term`, without this node and `master`.
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

    /// Returns true if the pool shows that this master has no member and that no other node can have taken the lease.
    /// The others cannot have agreed on a candidate, because the lease changed after the last follower was cleared and
    /// a later read shows no member. And the lease cannot have expired, because it was renewed a moment ago.
    pub(super) fn is_provably_alone(&self) -> bool {
        let PoolSide { view, viewed, held, proved, .. } = &self.pool;
        let renewed = |held| self.now.saturating_duration_since(held) <= self.config.lease * 3 / 4;
        self.pool.lost.is_empty()
            && proved.is_some_and(|proved| viewed.is_some_and(|viewed| viewed >= proved))
            && held.is_some_and(renewed)
            && view.lease.is_some_and(|lease| lease.term == self.term && lease.master == Some(self.me))
            && self.members(self.term, None).next().is_none()
    }

    /// Clears members without a link to this master. Their announcement took effect after they had been cleared.
    fn clear_strays(&mut self) {
        let Role::Master(master) = &self.role else { return };
        let strays: Vec<NodeId> =
            self.members(self.term, None).filter(|&node| master.is_serving() && !master.leads(node)).collect();
        strays.into_iter().for_each(|node| self.pool.lose(node));
    }
}
