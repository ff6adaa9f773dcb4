//! Who is master: following a term, standing for it slowly or fast, handing it over. The lease row decides; what is
//! here decides when to ask it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{Body, Core, LinkId, NodeId, Query, Role, Term, follower::Follower, master::Master};
use crate::pool::{Lease, NodeRow, PoolView};

/// What a follower without a link to its owner does about it.
#[derive(Default)]
pub(super) struct Candidacy {
    /// To whom it has promised itself, and when.
    promised: Option<(NodeId, Instant)>,
    /// The owner's address refused a dial since the link was lost.
    refused: bool,
    /// The owner ran at this node's own address.
    replaced: Option<NodeId>,
    /// When the owner was dialled last.
    dialled: Option<Instant>,
    /// Since when the pool's lease has been behind what this node knows: an older term, or its own with another owner.
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
    pub(super) fn follow(&mut self, term: Term, owner: Option<NodeId>) {
        debug_assert!(term > self.term, "terms only grow");
        self.term = term;
        self.owner = None;
        self.promises.clear();
        self.candidacy = Candidacy { replaced: self.candidacy.replaced, ..Candidacy::default() };
        self.role = Role::Follower(Follower::default());
        self.pool.lost.clear();
        self.pool.urgent = None;
        self.set_owner(owner);
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        links.into_iter().for_each(|link| self.send_standing(link));
    }

    /// Learns who owns the present term.
    pub(super) fn set_owner(&mut self, owner: Option<NodeId>) {
        if owner.is_none() || owner == self.owner {
            return;
        }
        if owner == Some(self.me) {
            // Told by a peer before the pool's answer came: the read that follows makes it true.
            self.pool.read_soon();
        } else {
            self.owner = owner;
            self.predecessor = owner;
            self.seek_owner();
        }
    }

    /// Joins over a link that stands, or dials.
    pub(super) fn seek_owner(&mut self) {
        let Some(owner) = self.owner else { return };
        if let Some(link) = self.link_to(owner) {
            self.join(link);
        } else {
            if !self.addresses.contains_key(&owner) {
                self.pool.read_soon();
            }
            self.candidacy.dialled = Some(self.now);
            self.dial(owner);
        }
    }

    pub(super) fn handle_standing(&mut self, link: LinkId, peer: NodeId, owner: Option<(NodeId, String)>) {
        let Some((owner, address)) = owner else { return };
        if owner != self.me {
            self.addresses.insert(owner, address);
        }
        if self.owner.is_none() {
            self.set_owner(Some(owner));
        } else if owner == peer && self.owner == Some(owner) && self.may_join(link) {
            // An owner says so when it has become one: what was asked before that was not heard.
            self.join(link);
        }
    }

    /// The pool has this node as the owner of `term`.
    pub(super) fn become_master(&mut self, term: Term) {
        let heirs = self.heirs();
        self.term = term;
        self.owner = Some(self.me);
        self.promises.clear();
        self.candidacy = Candidacy::default();
        self.pool.begin_reign(self.now);
        self.role =
            Role::Master(Master::new(self.now, self.predecessor, heirs, self.now + self.config.collect_timeout));
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        links.into_iter().for_each(|link| self.send_standing(link));
        self.collect();
    }

    /// The members of the last term that had a master, but for that master and this node.
    fn heirs(&self) -> BTreeSet<NodeId> {
        let limit = self.config.member_timeout;
        let live = || self.pool.view().nodes.iter().filter(|row| row.age <= limit && row.joined.is_some());
        let last = live().map(|row| row.joined).max().unwrap_or_default();
        let others = live().filter(|row| row.joined == last && row.node != self.me);
        others.map(|row| row.node).filter(|node| Some(*node) != self.predecessor).collect()
    }

    pub(super) fn dial_failed(&mut self, node: NodeId, refused: bool) {
        match &mut self.role {
            Role::Follower(_) if self.owner == Some(node) => {
                self.candidacy.refused |= refused;
                self.consider_standing();
            }
            Role::Follower(_) => {}
            Role::Master(master) => {
                if refused {
                    master.miss(node);
                    self.tick_reign();
                }
            }
        }
    }

    /// Whether this node has a link to the master, and so never stands.
    fn is_linked_to_owner(&self) -> bool {
        self.owner.is_some_and(|owner| self.link_to(owner).is_some())
    }

    /// The first view, before this node announced itself: who had this node's address.
    pub(super) fn note_predecessor(&mut self, view: &PoolView) {
        let same = view.nodes.iter().find(|row| row.address == self.address && row.node != self.me);
        self.candidacy.replaced = same.map(|row| row.node);
    }

    /// Stands for master, if it is time.
    pub(super) fn consider_standing(&mut self) {
        let Role::Follower(_) = self.role else { return };
        let Some(&lease) = self.observation.lease() else { return };
        // An owner that this node has a link to, but that does not serve, may not know, or not be able to learn, that
        // it is one: then the lease has to stand still, whatever the link says.
        let linked = self.is_linked_to_owner();
        let held_off = linked && (self.is_welcomed() || self.observation.still() < self.config.lease);
        if self.draining.is_some()
            || held_off
            || self.pool.is_deciding()
            || self.pool.is_failing()
            || lease.owner == Some(self.me)
        {
            return;
        }
        if self.stands_slowly(&lease) || (!linked && (self.stands_fast(&lease) || self.stands_to_correct(&lease))) {
            self.pool.urgent = Some(Query::TakeOver { seen: lease, max_seen: self.term });
        }
    }

    /// The lease stood still for its time, or nobody has it; the first in the pool goes first.
    fn stands_slowly(&self, lease: &Lease) -> bool {
        let wait = match lease.owner {
            None => Duration::ZERO,
            Some(_) => self.config.lease,
        };
        self.row(self.me).is_some() && self.observation.still() >= wait + self.config.rank_delay * self.rank(lease)
    }

    /// The lease fell behind, as after the loss of the tables, and its owner does not know what this node knows.
    fn stands_to_correct(&mut self, lease: &Lease) -> bool {
        let behind = lease.term < self.term
            || (lease.term == self.term && lease.owner.is_some() && self.owner.is_some() && lease.owner != self.owner);
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
            .filter(|row| row.age <= limit && Some(row.node) != lease.owner)
            .map(|row| (row.joined != Some(lease.term), row.ord, row.node))
            .collect();
        order.sort_unstable();
        order.iter().take_while(|(.., node)| *node != self.me).count() as u32
    }

    /// All other members agree that the master is gone.
    fn stands_fast(&self, lease: &Lease) -> bool {
        if lease.owner.is_none() || lease.owner != self.owner || lease.term != self.term {
            return false;
        }
        if self.candidacy.replaced == lease.owner {
            // Rows of any age count: after an outage of the database all are old, and whoever was there knows more
            // than this node, which has only just begun. The dial shows that the address is not the owner's any more.
            let other = |row: &NodeRow| row.node != self.me && Some(row.node) != lease.owner;
            let others = self.pool.view().nodes.iter().any(other);
            return !others && self.candidacy.refused && self.row(self.me).is_some();
        }
        let mut others = self.members(lease.term, lease.owner).peekable();
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
            self.consider_standing();
        }
    }

    /// Keeps trying to reach the owner, and promises itself to the first who might take over.
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
        // A link to the owner may stand although this node has not joined over it: two nodes that dialled each other
        // have two, and the other one has ended.
        let sought = self.candidacy.dialled.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        if self.is_apart() && sought >= self.config.redial_interval {
            self.seek_owner();
            self.candidacy.dialled = Some(now);
        }
        if self.is_linked_to_owner() {
            self.candidacy.refused = false;
            // A link over which nobody is let in is none for the clients.
            if self.is_welcomed() {
                self.candidacy.cut_off = None;
            } else {
                self.note_cut_off();
            }
            self.consider_standing();
            return;
        }
        self.promise();
        self.note_cut_off();
        self.consider_standing();
    }

    /// A member that lost its master promises itself to the first of the others in the pool.
    fn promise(&mut self) {
        let Some(owner) = self.owner.filter(|_| self.candidacy.promised.is_none()) else { return };
        if self.row(self.me).is_none_or(|row| row.joined != Some(self.term)) {
            return;
        }
        let mut members: Vec<_> = self.members(self.term, Some(owner)).filter_map(|node| self.row(node)).collect();
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
        let moves = self.observation.lease().is_some_and(|lease| lease.owner.is_some())
            && self.observation.still() < self.config.renew_interval * 3
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
        let owned = |lease: &&Lease| lease.owner == Some(self.me) && lease.term == self.term;
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
                self.owner = successor;
                let links: Vec<LinkId> = self.links.keys().copied().collect();
                links.into_iter().for_each(|link| self.send_standing(link));
            }
            self.tick_shutdown();
        }
    }
}
