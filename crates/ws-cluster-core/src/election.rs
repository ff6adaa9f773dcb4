//! Who is master: following a term, standing for it slowly or fast, handing it over. The lease row decides; what is
//! here decides when to ask it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{Body, Core, LinkId, NodeId, Query, Role, Term, follower::Follower, master::Master};
use crate::{Lease, NodeRow, PoolView};

/// What a follower without a link to its master does about it.
#[derive(Default)]
pub(super) struct Candidacy {
    /// To whom it has promised itself, and when.
    promised: Option<(NodeId, Instant)>,
    /// The master's address refused a dial since the link was lost.
    refused: bool,
    /// The master ran at this node's own address.
    replaced: Option<NodeId>,
    /// When the master was dialled last.
    dialled: Option<Instant>,
    /// Since when the pool's lease has been behind what this node knows: an older term, or its own with another master.
    behind: Option<Instant>,
    /// Since when the pool shows a master whom this node cannot reach.
    cut_off: Option<Instant>,
}

impl Candidacy {
    pub(super) fn has_promised(&self) -> bool {
        self.promised.is_some()
    }
}

/// Promises to this node, each of the present term.
pub(super) type Promises = BTreeMap<NodeId, Instant>;

impl Core {
    /// Steps into a higher term, whoever owns it.
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

    /// Learns who owns the present term.
    pub(super) fn set_master(&mut self, master: Option<NodeId>) {
        if master.is_none() || master == self.master {
            return;
        }
        if master == Some(self.me) {
            // Told by a peer before the pool's answer came: the read that follows makes it true.
            self.pool.read_soon();
        } else {
            self.master = master;
            self.predecessor = master;
            self.seek_master();
        }
    }

    /// Joins over a link that stands, or dials.
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
            // An master says so when it has become one: what was asked before that was not heard.
            self.join(link);
        }
    }

    /// The pool has this node as the master of `term`.
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

    /// The members of the last term that had a master, but for that master and this node.
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

    /// Whether this node has a link to the master, and so never stands.
    fn is_linked_to_master(&self) -> bool {
        self.master.is_some_and(|master| self.link_to(master).is_some())
    }

    /// The first view, before this node announced itself: who had this node's address.
    pub(super) fn note_predecessor(&mut self, view: &PoolView) {
        let same = view.nodes.iter().find(|row| row.address == self.address && row.node != self.me);
        self.candidacy.replaced = same.map(|row| row.node);
    }

    /// Stands for master, if it is time.
    pub(super) fn consider_candidacy(&mut self) {
        let Role::Follower(_) = self.role else { return };
        let Some(&lease) = self.observation.lease() else { return };
        // An master that this node has a link to, but that does not serve, may not know, or not be able to learn, that
        // it is one: then the lease has to stand still, whatever the link says.
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

    /// The lease stood still for its time, or nobody has it; the first in the pool goes first.
    fn lease_has_expired(&self, lease: &Lease) -> bool {
        let wait = match lease.master {
            None => Duration::ZERO,
            Some(_) => self.config.lease,
        };
        self.row(self.me).is_some()
            && self.observation.unchanged_for() >= wait + self.config.rank_delay * self.rank(lease)
    }

    /// The lease fell behind, as after the loss of the tables, and its master does not know what this node knows.
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

    /// How many live nodes stand before this one: members first, then by their order in the pool.
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

    /// All other members agree that the master is gone.
    fn members_agree(&self, lease: &Lease) -> bool {
        if lease.master.is_none() || lease.master != self.master || lease.term != self.term {
            return false;
        }
        if self.candidacy.replaced == lease.master {
            // Rows of any age count: after an outage of the database all are old, and whoever was there knows more
            // than this node, which has only just begun. The dial shows that the address is not the master's any more.
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

    /// Keeps trying to reach the master, and promises itself to the first who might take over.
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
        // A link to the master may stand although this node has not joined over it: two nodes that dialled each other
        // have two, and the other one has ended.
        let sought = self.candidacy.dialled.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        if self.is_apart() && sought >= self.config.redial_interval {
            self.seek_master();
            self.candidacy.dialled = Some(now);
        }
        if self.is_linked_to_master() {
            self.candidacy.refused = false;
            // A link over which nobody is let in is none for the clients.
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

    /// A member that lost its master promises itself to the first of the others in the pool.
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

    /// Sends the clients elsewhere once the pool has shown a living master for long that this node cannot reach.
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

    /// Leaving as the master: once a follower holds everything, it gets the lease; nobody there, the lease is
    /// released. Whether it is done.
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
        // Without the pool nothing can be handed over; the time limit of the shutdown ends the wait for it.
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
                // No frame of this node's has the new term but this one: the followers leave for the successor.
                self.term = term + 1;
                self.master = successor;
                let links: Vec<LinkId> = self.links.keys().copied().collect();
                links.into_iter().for_each(|link| self.send_term(link));
            }
            self.tick_shutdown();
        }
    }
}
