//! Leader election: a node follows the master of a term, becomes a candidate, and takes or hands over the lease. The
//! pool's lease decides who is master; this file decides when to ask for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{Body, Core, LinkId, NodeId, Query, Role, Term, follower::Follower, master::Master};
use crate::{Lease, NodeRow, PoolView};

/// The state of a follower that has lost its link to the master.
#[derive(Default)]
pub(super) struct Candidacy {
    /// The candidate to which this node has promised itself, and when.
    promised: Option<(NodeId, Instant)>,
    /// True if the master's address has refused a dial since the link was lost.
    refused: bool,
    /// The node that had this node's address before it; it is gone.
    replaced: Option<NodeId>,
    /// When this node last dialled the master.
    dialled: Option<Instant>,
    /// Since when the pool's lease has been older than what this node knows: an older term, or the same term with
    /// another master.
    behind: Option<Instant>,
    /// Since when the pool has shown a master that this node cannot reach.
    cut_off: Option<Instant>,
}

impl Candidacy {
    pub(super) fn has_promised(&self) -> bool {
        self.promised.is_some()
    }
}

/// The promises of the present term that this node has got, and when.
pub(super) type Promises = BTreeMap<NodeId, Instant>;

impl Core {
    /// Enters a higher term, as a follower of `master` if it is known.
    pub(super) fn follow(&mut self, term: Term, master: Option<NodeId>) {
        debug_assert!(term > self.term, "terms only grow");
        self.term = term;
        self.master = None;
        self.promises.clear();
        self.candidacy = Candidacy { replaced: self.candidacy.replaced, ..Candidacy::default() };
        self.role = Role::Follower(Follower::default());
        self.pool.lost.clear();
        self.pool.urgent = None;
        self.set_master(master);
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        links.into_iter().for_each(|link| self.send_term(link));
    }

    /// Notes the master of the present term.
    pub(super) fn set_master(&mut self, master: Option<NodeId>) {
        if master.is_none() || master == self.master {
            return;
        }
        if master == Some(self.me) {
            // A peer knows it before the pool has answered. The next read confirms it.
            self.pool.read_soon();
        } else {
            self.master = master;
            self.predecessor = master;
            self.seek_master();
        }
    }

    /// Joins over an open link to the master, or dials the master.
    pub(super) fn seek_master(&mut self) {
        let Some(master) = self.master else { return };
        if let Some(link) = self.link_to(master) {
            self.join(link);
        } else {
            if !self.addresses.contains_key(&master) {
                self.pool.read_soon();
            }
            self.candidacy.dialled = Some(self.now);
            self.dial(master);
        }
    }

    pub(super) fn handle_term(&mut self, link: LinkId, peer: NodeId, master: Option<(NodeId, String)>) {
        let Some((master, address)) = master else { return };
        if master != self.me {
            self.addresses.insert(master, address);
        }
        if self.master.is_none() {
            self.set_master(Some(master));
        } else if master == peer && self.master == Some(master) && self.may_join(link) {
            // A node says that it is master when it becomes one. It did not hear joins that came before that.
            self.join(link);
        }
    }

    /// Becomes the master of `term`, as the pool says.
    pub(super) fn become_master(&mut self, term: Term) {
        let last_term_members = self.last_term_members();
        self.term = term;
        self.master = Some(self.me);
        self.promises.clear();
        self.candidacy = Candidacy::default();
        self.pool.begin_term(self.now);
        self.role = Role::Master(Master::new(
            self.now,
            self.predecessor,
            last_term_members,
            self.now + self.config.collect_timeout,
        ));
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        links.into_iter().for_each(|link| self.send_term(link));
        self.collect();
    }

    /// Returns the members of the last term that had a master, without that master and this node.
    fn last_term_members(&self) -> BTreeSet<NodeId> {
        let limit = self.config.member_timeout;
        let live = || self.pool.view().nodes.iter().filter(|row| row.age <= limit && row.joined.is_some());
        let last = live().map(|row| row.joined).max().unwrap_or_default();
        let others = live().filter(|row| row.joined == last && row.node != self.me);
        others.map(|row| row.node).filter(|node| Some(*node) != self.predecessor).collect()
    }

    pub(super) fn dial_failed(&mut self, node: NodeId, refused: bool) {
        match &mut self.role {
            Role::Follower(_) if self.master == Some(node) => {
                self.candidacy.refused |= refused;
                self.consider_candidacy();
            }
            Role::Follower(_) => {}
            Role::Master(master) => {
                if refused {
                    master.miss(node);
                    self.tick_takeover();
                }
            }
        }
    }

    /// Returns true if this node has a link to the master. Then it is no candidate.
    fn is_linked_to_master(&self) -> bool {
        self.master.is_some_and(|master| self.link_to(master).is_some())
    }

    /// Notes which node had this node's address, as the first view shows before this node announces itself.
    pub(super) fn note_predecessor(&mut self, view: &PoolView) {
        let same = view.nodes.iter().find(|row| row.address == self.address && row.node != self.me);
        self.candidacy.replaced = same.map(|row| row.node);
    }

    /// Asks for the lease, if this node is a candidate and it is time.
    pub(super) fn consider_candidacy(&mut self) {
        let Role::Follower(_) = self.role else { return };
        let Some(&lease) = self.observation.lease() else { return };
        // A linked node may not know yet, or may be unable to learn, that it is the master. Then the link does not hold
        // this node off once the lease has expired.
        let linked = self.is_linked_to_master();
        let held_off = linked && (self.is_welcomed() || self.observation.unchanged_for() < self.config.lease);
        if self.draining.is_some()
            || held_off
            || self.pool.is_deciding()
            || self.pool.is_failing()
            || lease.master == Some(self.me)
        {
            return;
        }
        if self.lease_has_expired(&lease) || (!linked && (self.members_agree(&lease) || self.lease_is_stale(&lease))) {
            self.pool.urgent = Some(Query::TakeOver { seen: lease, max_seen: self.term });
        }
    }

    /// Returns true if the lease has expired or is free, and it is this node's turn: nodes try in their order in the
    /// pool.
    fn lease_has_expired(&self, lease: &Lease) -> bool {
        let wait = match lease.master {
            None => Duration::ZERO,
            Some(_) => self.config.lease,
        };
        self.row(self.me).is_some()
            && self.observation.unchanged_for() >= wait + self.config.rank_delay * self.rank(lease)
    }

    /// Returns true if the pool's lease has been older than what this node knows for long enough, as after a restore of
    /// the tables, and the master has not corrected it.
    fn lease_is_stale(&mut self, lease: &Lease) -> bool {
        let behind = lease.term < self.term
            || (lease.term == self.term
                && lease.master.is_some()
                && self.master.is_some()
                && lease.master != self.master);
        if !behind {
            self.candidacy.behind = None;
            return false;
        }
        let since = *self.candidacy.behind.get_or_insert(self.now);
        let wait = self.config.rank_delay * (1 + self.rank(lease));
        self.now.saturating_duration_since(since) >= wait
    }

    /// Returns how many live nodes try before this one: members first, and then in their order in the pool.
    fn rank(&self, lease: &Lease) -> u32 {
        let limit = self.config.member_timeout;
        let mut order: Vec<_> = self
            .pool
            .view()
            .nodes
            .iter()
            .filter(|row| row.age <= limit && Some(row.node) != lease.master)
            .map(|row| (row.joined != Some(lease.term), row.ord, row.node))
            .collect();
        order.sort_unstable();
        order.iter().take_while(|(.., node)| *node != self.me).count() as u32
    }

    /// Returns true if all other members have promised themselves to this node, so that it need not wait for the lease
    /// to expire.
    fn members_agree(&self, lease: &Lease) -> bool {
        if lease.master.is_none() || lease.master != self.master || lease.term != self.term {
            return false;
        }
        if self.candidacy.replaced == lease.master {
            // Rows of any age count here. After an outage of the database all rows are old, and every older node knows
            // more than this one, which has just started. The refused dial shows that the master is no longer at its
            // address.
            let other = |row: &NodeRow| row.node != self.me && Some(row.node) != lease.master;
            let others = self.pool.view().nodes.iter().any(other);
            return !others && self.candidacy.refused && self.row(self.me).is_some();
        }
        let mut others = self.members(lease.term, lease.master).peekable();
        let member = self.row(self.me).is_some_and(|row| row.joined == Some(lease.term));
        let pledged_elsewhere = self.candidacy.promised.is_some();
        member
            && !pledged_elsewhere
            && match others.peek() {
                None => self.candidacy.refused,
                Some(_) => others.all(|node| self.promises.contains_key(&node)),
            }
    }

    pub(super) fn handle_promise(&mut self, peer: NodeId) {
        if matches!(self.role, Role::Follower(_)) {
            self.promises.insert(peer, self.now);
            self.pool.read_soon();
            self.consider_candidacy();
        }
    }

    /// Tries to reach the master again, and promises this node to the first candidate.
    pub(super) fn tick_election(&mut self) {
        let lease = self.config.lease;
        let now = self.now;
        self.promises.retain(|_, at| now.saturating_duration_since(*at) < lease);
        if self.candidacy.promised.is_some_and(|(_, at)| now.saturating_duration_since(at) >= lease) {
            self.candidacy.promised = None;
        }
        if !matches!(self.role, Role::Follower(_)) || self.draining.is_some() {
            return;
        }
        // An open link to the master may be one over which this node has not joined: two nodes that dialled each other
        // have two links, and the one it had joined over has ended.
        let sought = self.candidacy.dialled.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        if self.is_apart() && sought >= self.config.redial_interval {
            self.seek_master();
            self.candidacy.dialled = Some(now);
        }
        if self.is_linked_to_master() {
            self.candidacy.refused = false;
            // A link over which the master does not let this node in is of no use to its clients.
            if self.is_welcomed() {
                self.candidacy.cut_off = None;
            } else {
                self.note_cut_off();
            }
            self.consider_candidacy();
            return;
        }
        self.promise();
        self.note_cut_off();
        self.consider_candidacy();
    }

    /// Promises this node, a member that has lost its master, to the first other member in the pool.
    fn promise(&mut self) {
        let Some(master) = self.master.filter(|_| self.candidacy.promised.is_none()) else { return };
        if self.row(self.me).is_none_or(|row| row.joined != Some(self.term)) {
            return;
        }
        let mut members: Vec<_> = self.members(self.term, Some(master)).filter_map(|node| self.row(node)).collect();
        members.sort_unstable_by_key(|row| row.ord);
        let me = self.row(self.me).map(|row| row.ord);
        let Some(first) = members.first().filter(|row| Some(row.ord) < me).map(|row| row.node) else { return };
        match self.link_to(first) {
            Some(link) => {
                self.candidacy.promised = Some((first, self.now));
                self.send(link, Body::Promise);
            }
            None => self.dial(first),
        }
    }

    /// Sends the clients to other nodes once the pool has shown a live master for `cut_off_timeout` that this node
    /// cannot reach.
    fn note_cut_off(&mut self) {
        let moves = self.observation.lease().is_some_and(|lease| lease.master.is_some())
            && self.observation.unchanged_for() < self.config.renew_interval * 3
            && !self.pool.is_failing();
        if !moves {
            self.candidacy.cut_off = None;
            return;
        }
        let since = *self.candidacy.cut_off.get_or_insert(self.now);
        if self.now.saturating_duration_since(since) >= self.config.cut_off_timeout && self.ready {
            self.ready = false;
            self.outputs.push_back(super::Output::CutOff);
        }
    }

    /// Hands the lease over during a shutdown: to a follower that holds every entry, or to no node if there is no
    /// follower. Returns true if it is done.
    pub(super) fn hand_over(&mut self) -> bool {
        let last = self.log.last();
        let Role::Master(master) = &mut self.role else { return true };
        if master.is_handed_over() {
            return true;
        }
        if self.delivered < last {
            return false;
        }
        let Some(successor) = master.successor(last) else { return false };
        // A hand-over needs the pool. The shutdown's time limit ends the wait for it.
        let owned = |lease: &&Lease| lease.master == Some(self.me) && lease.term == self.term;
        if self.observation.lease().filter(owned).is_some() && !self.pool.is_deciding() {
            self.pool.urgent = Some(Query::HandOver { term: self.term, successor });
        }
        false
    }

    pub(super) fn handed_over(&mut self, term: Term, successor: Option<NodeId>) {
        let Role::Master(master) = &mut self.role else { return };
        if term == self.term {
            master.set_handed_over();
            if successor.is_some() {
                // This frame is the only one that this node sends in the new term. It makes the followers join the
                // successor.
                self.term = term + 1;
                self.master = successor;
                let links: Vec<LinkId> = self.links.keys().copied().collect();
                links.into_iter().for_each(|link| self.send_term(link));
            }
            self.tick_shutdown();
        }
    }
}
