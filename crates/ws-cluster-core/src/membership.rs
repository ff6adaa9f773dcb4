//! Membership: the next query to the pool, and what its answers mean for this node.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::{
    Announcement, Answer, Core, Lease, NodeId, NodeRow, Output, PoolView, Query, Role, Term, context::Context,
    pool_side::PoolSide,
};

/// Interval between reads of the pool: several reads within a third of the lease, so that one slow read does not
/// restart the count of how long the lease has not changed.
const READ_INTERVAL: Duration = Duration::from_millis(500);
/// A node that loses its row this often within twice `member_timeout` shares its address with another node.
const DISPLACEMENTS: usize = 3;
/// Time after a failed query before the next one.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

impl Core {
    /// Asks the next query, unless one waits for its answer.
    pub(super) fn ask_pool(&mut self) {
        if self.cx.pool.asked.is_some() {
            return;
        }
        if let Some(query) = self.next_query() {
            self.cx.pool.asked = Some((query.clone(), self.cx.now));
            self.cx.outputs.push_back(Output::Query(query));
        }
    }

    fn next_query(&mut self) -> Option<Query> {
        let Self { role, cx, .. } = self;
        let now = cx.now;
        if cx.pool.is_failing() && !cx.is_due(cx.pool.failed_at, RETRY_INTERVAL) {
            return None;
        }
        if std::mem::take(&mut cx.pool.read_first) {
            cx.pool.stale = false;
            return Some(Query::Read);
        }
        if let Some(query) = cx.pool.urgent.take() {
            return Some(query);
        }
        if let Some(node) = cx.pool.lost.pop_first() {
            return Some(Query::ClearJoined(node));
        }
        let renewal = role.renewal(cx);
        if renewal.is_some() && cx.is_due(cx.pool.renewal_asked_at, cx.config.renew_interval) {
            cx.pool.renewal_asked_at = Some(now);
            return renewal;
        }
        // The first read comes before the first announcement: it shows which node had this address before.
        if cx.pool.view_asked_at.is_some() && cx.shutdown_began_at.is_none() {
            // A node announces itself once between two reads, so that a row that is replaced again and again does not
            // keep it from reading.
            let joined = role.unannounced_join(cx).filter(|_| !cx.pool.stale);
            if joined.is_some() || cx.is_due(cx.pool.announced_at, cx.config.seen_interval) {
                cx.pool.announced_at = Some(now);
                cx.pool.stale |= joined.is_some();
                return Some(Query::Announce(Announcement { node: cx.me, address: cx.address.clone(), joined }));
            }
        }
        if let Some(dead) = role.dead_node(cx) {
            cx.pool.view.nodes.retain(|row| row.node != dead);
            return Some(Query::Remove(dead));
        }
        (cx.pool.stale || cx.is_due(cx.pool.view_asked_at, READ_INTERVAL)).then(|| {
            cx.pool.stale = false;
            Query::Read
        })
    }

    pub(super) fn pool_answered(&mut self, answer: Answer) {
        let cx = &mut self.cx;
        let Some((query, asked)) = cx.pool.asked.take() else { return };
        let is_old = std::mem::take(&mut cx.pool.answer_is_old);
        if answer == Answer::Failed {
            cx.pool.query_failed(query, asked, cx.now);
            cx.observation.failed();
            if let Role::Master(master) = &self.role {
                master.advance(cx);
            }
            return;
        }
        cx.pool.query_succeeded(&query);
        match (query, answer) {
            (Query::Read | Query::Renew { .. }, _) if is_old => cx.pool.read_soon(),
            (Query::Read, Answer::View(view)) => self.handle_view(asked, view),
            (Query::TakeOver { .. }, Answer::Term(Some(term))) if term > cx.term => {
                self.become_master(term, Some(asked).filter(|_| !is_old));
            }
            (Query::TakeOver { .. }, Answer::Term(None)) => {
                // The lease has changed since it was read, so the old reading decides nothing any more.
                cx.observation.failed();
                cx.pool.read_soon();
            }
            (Query::HandOver { term, successor }, Answer::Applied(true)) => {
                if let Role::Master(master) = &mut self.role {
                    master.handed_over(cx, term, successor);
                }
            }
            (Query::Announce(announcement), Answer::Done) => {
                // The view is corrected until the next read, so that a join is not announced twice.
                if let Some(row) = cx.pool.view.nodes.iter_mut().find(|row| row.node == announcement.node) {
                    row.joined = announcement.joined.or(row.joined);
                }
            }
            (Query::Renew { master, .. }, Answer::Applied(true)) => {
                if master == cx.me && cx.pool.lost.is_empty() {
                    cx.pool.lease_renewed_at = Some(asked);
                    cx.pool.alone_provable_since.get_or_insert(asked);
                }
            }
            (Query::ClearJoined(_), Answer::Done) => {
                // The next queries are a renewal and then a read.
                cx.pool.alone_provable_since = None;
                cx.pool.renewal_asked_at = None;
                cx.pool.read_soon();
            }
            _ => cx.pool.read_soon(),
        }
        self.tick_shutdown();
    }

    fn handle_view(&mut self, asked: Instant, view: PoolView) {
        let lease = view.lease;
        self.cx.take_view(asked, view);
        if let Role::Master(master) = &mut self.role {
            master.handle_view(&mut self.cx);
        }
        match lease {
            None => self.cx.pool.urgent = Some(Query::Restore { term: self.cx.term, master: self.cx.master }),
            Some(lease) => self.handle_lease(lease),
        }
        match &mut self.role {
            Role::Follower(follower) => follower.consider_candidacy(&mut self.cx),
            Role::Master(master) => master.advance(&mut self.cx),
        }
    }

    fn handle_lease(&mut self, lease: Lease) {
        let cx = &mut self.cx;
        let mine = lease.master == Some(cx.me);
        if lease.term > cx.term {
            if mine { self.become_master(lease.term, None) } else { self.follow(lease.term, lease.master) }
        } else if lease.term == cx.term && lease.master == cx.master {
            // The lease and this node agree.
        } else if lease.term == cx.term && cx.master.is_none() {
            match &mut self.role {
                Role::Follower(follower) if !mine => follower.set_master(cx, lease.master),
                _ => self.become_master(lease.term, None),
            }
        } else if (mine || matches!(self.role, Role::Master(_)))
            && !cx.pool.is_deciding()
            && cx.shutdown_began_at.is_none()
        {
            // The pool's lease is older than what this node knows, as after a restore from a backup. The master
            // corrects it.
            cx.pool.urgent = Some(Query::TakeOver { seen: lease, max_seen: cx.term });
        }
    }

    /// Returns true if a query of the pool failed and none of its kind succeeded since.
    pub fn has_pool_trouble(&self) -> bool {
        self.cx.pool.has_trouble()
    }
}

impl Role {
    /// Returns the renewal that is due: of this master's own lease, or, on a follower, of the linked master's lease if
    /// it has not been renewed.
    fn renewal(&self, cx: &Context) -> Option<Query> {
        let owed = match self {
            Self::Master(master) => !master.is_handed_over(),
            Self::Follower(follower) => {
                follower.is_joined()
                    && !follower.candidacy.has_promised()
                    && cx.observation.unchanged_for() >= cx.config.renew_interval * 2
            }
        };
        let lease = cx.observation.lease()?;
        let master = cx.master.filter(|_| owed && lease.master == cx.master && lease.term == cx.term)?;
        Some(Query::Renew { term: cx.term, master })
    }

    /// Returns the term to announce if this node has joined and its row does not say so.
    fn unannounced_join(&self, cx: &Context) -> Option<Term> {
        let joined = match self {
            Self::Master(master) => master.is_serving(),
            Self::Follower(follower) => follower.is_joined(),
        };
        let announced = cx.row(cx.me).is_some_and(|row| row.joined == Some(cx.term));
        (joined && !announced).then_some(cx.term)
    }

    /// Returns a node whose row is too old, if this node is the master. After an outage of the database all rows are
    /// old; live nodes get time to announce themselves.
    fn dead_node(&self, cx: &Context) -> Option<NodeId> {
        let Self::Master(master) = self else { return None };
        if cx.pool.failed_at.is_some_and(|at| cx.since(at) <= cx.config.member_timeout) {
            return None;
        }
        let dead = |row: &&NodeRow| row.age > cx.config.dead_timeout && row.node != cx.me && !master.leads(row.node);
        cx.pool.view.nodes.iter().find(dead).map(|row| row.node)
    }
}

impl Context {
    /// Takes a view of the pool that was asked for at `asked`.
    fn take_view(&mut self, asked: Instant, mut view: PoolView) {
        // Just too old for a member, but not so old that the master removes the row at once.
        let oldest = self.config.member_timeout + Duration::from_millis(1);
        self.pool.sightings.read(asked, oldest, &mut view.nodes);
        self.note_displacement(&view);
        if self.pool.view_asked_at.is_none() {
            // The first view comes before this node announces itself.
            let same = view.nodes.iter().find(|row| row.address == self.address && row.node != self.me);
            self.replaced = same.map(|row| row.node);
        }
        self.observation.read(asked, view.lease, self.config.lease / 3);
        let others = view.nodes.iter().filter(|row| row.node != self.me);
        self.addresses.extend(others.map(|row| (row.node, row.address.clone())));
        self.addresses.retain(|node, _| Some(*node) == self.master || view.nodes.iter().any(|row| row.node == *node));
        self.pool.view = view;
        self.pool.view_asked_at = Some(asked);
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
            self.pool.displaced_at = Some(self.now);
        }
    }

    pub(super) fn row(&self, node: NodeId) -> Option<&NodeRow> {
        self.pool.view.nodes.iter().find(|row| row.node == node)
    }

    /// Returns the rows of the nodes that announced themselves lately.
    pub(super) fn live_rows(&self) -> impl Iterator<Item = &NodeRow> {
        self.pool.view.nodes.iter().filter(|row| row.age <= self.config.member_timeout)
    }

    /// Returns the nodes that have joined the master of `term`, without this node and `master`. Rows of any age count:
    /// a master clears the members that it loses, so an old row that still says so is that of a member whose
    /// announcements fail.
    pub(super) fn members(&self, term: Term, master: Option<NodeId>) -> impl Iterator<Item = NodeId> {
        let joined = self.pool.view.nodes.iter().filter(move |row| row.joined == Some(term));
        joined.map(|row| row.node).filter(move |node| *node != self.me && Some(*node) != master)
    }

    /// Returns the members of the last term that had a master, without that master and this node.
    pub(super) fn last_term_members(&self) -> BTreeSet<NodeId> {
        let last = self.pool.view.nodes.iter().filter_map(|row| row.joined).max();
        last.into_iter().flat_map(|term| self.members(term, self.predecessor)).collect()
    }

    /// Returns true if the pool shows that this master has no member and that no other node can have taken the lease.
    /// The others cannot have agreed on a candidate, because the lease changed after the last follower was cleared and
    /// a later read shows no member. And the lease cannot have expired, because it was renewed a moment ago.
    pub(super) fn is_provably_alone(&self) -> bool {
        let PoolSide { view, view_asked_at, lease_renewed_at, alone_provable_since, lost, .. } = &self.pool;
        lost.is_empty()
            && alone_provable_since.is_some_and(|since| view_asked_at.is_some_and(|asked| asked >= since))
            && lease_renewed_at.is_some_and(|at| self.since(at) <= self.config.lease * 3 / 4)
            && view.lease.is_some_and(|lease| lease.term == self.term && lease.master == Some(self.me))
            && self.members(self.term, None).next().is_none()
    }
}
