//! What a follower does without a link to the master. It promises its vote to the first member. If it is the first, it
//! asks the pool for the lease.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{Body, Lease, NodeId, NodeRow, Output, Query, context::Context};

/// What a follower knows of the election that may come.
#[derive(Debug, Default)]
pub(super) struct Candidacy {
    /// The candidate to which this node has promised its vote, and when.
    promised: Option<(NodeId, Instant)>,
    /// The promises of the present term that this node has got, and when.
    promises: BTreeMap<NodeId, Instant>,
    /// True if the master's address has refused a dial since the link was lost.
    pub(super) refused: bool,
    /// When the link to the master was lost.
    lost_at: Option<Instant>,
    /// Since when the pool's lease has been older than what this node knows: an older term, or the same term with
    /// another master.
    lease_behind_since: Option<Instant>,
    /// Since when the pool has shown a master that this node cannot reach.
    cut_off_since: Option<Instant>,
}

impl Candidacy {
    pub(super) fn has_promised(&self) -> bool {
        self.promised.is_some()
    }

    pub(super) fn add_promise(&mut self, now: Instant, peer: NodeId) {
        self.promises.insert(peer, now);
    }

    /// Notes that the link to the master was lost.
    pub(super) fn note_loss(&mut self, now: Instant) {
        self.lost_at = Some(now);
    }

    /// Forgets promises that are as old as a lease.
    pub(super) fn forget_promises(&mut self, cx: &Context) {
        let lasts = |at: Instant| cx.since(at) < cx.config.lease;
        self.promises.retain(|_, at| lasts(*at));
        self.promised = self.promised.filter(|(_, at)| lasts(*at));
    }

    /// Promises the vote or asks for the lease if it is time. `welcomed` is true if the master has let this node in.
    pub(super) fn tick(&mut self, cx: &mut Context, welcomed: bool) {
        let linked = cx.is_linked_to_master();
        if linked {
            self.refused = false;
        } else {
            self.promise(cx);
        }
        // A link over which the master does not let this node in is of no use to its clients.
        if linked && welcomed {
            self.cut_off_since = None;
        } else {
            self.note_cut_off(cx);
        }
        self.consider(cx, welcomed);
    }

    /// Asks for the lease, if this node is a candidate and it is time.
    pub(super) fn consider(&mut self, cx: &mut Context, welcomed: bool) {
        let Some(&lease) = cx.observation.lease() else { return };
        // The linked node may be the master without knowing it yet, or without being able to learn it. Once the lease
        // has expired, a link to such a node does not keep this node from asking for the lease.
        let linked = cx.is_linked_to_master();
        let held_off = linked && (welcomed || cx.observation.unchanged_for() < cx.config.lease);
        if cx.shutdown_began_at.is_some()
            || held_off
            || cx.pool.is_deciding()
            || cx.pool.is_failing()
            || lease.master == Some(cx.me)
        {
            return;
        }
        if cx.lease_has_expired(&lease)
            || (!linked && (self.members_agree(cx, &lease) || self.lease_is_stale(cx, &lease)))
        {
            cx.pool.urgent = Some(Query::TakeOver { seen: lease, max_seen: cx.term });
        }
    }

    /// Returns true if the pool's lease has been older than what this node knows for long enough, as after a restore of
    /// the tables, and the master has not corrected it.
    fn lease_is_stale(&mut self, cx: &Context, lease: &Lease) -> bool {
        let behind = lease.term < cx.term
            || (lease.term == cx.term && lease.master.is_some() && cx.master.is_some() && lease.master != cx.master);
        if !behind {
            self.lease_behind_since = None;
            return false;
        }
        let since = *self.lease_behind_since.get_or_insert(cx.now);
        cx.since(since) >= cx.config.rank_delay * (1 + cx.rank(lease))
    }

    /// Returns true if all other members have promised their votes to this node, so that it need not wait for the lease
    /// to expire.
    fn members_agree(&self, cx: &Context, lease: &Lease) -> bool {
        if lease.master.is_none() || lease.master != cx.master || lease.term != cx.term {
            return false;
        }
        // An older view may not show a node that joined last, and holds what the master accepted last.
        if self.lost_at.is_some_and(|lost| cx.pool.view_asked_at.is_none_or(|asked| asked < lost)) {
            return false;
        }
        let Some(own_row) = cx.row(cx.me) else { return false };
        if cx.replaced == lease.master {
            // Rows of any age count here. After an outage of the database all rows are old, and every older node knows
            // more than this one, which has just started. The refused dial shows that the master is no longer at its
            // address.
            let other = |row: &NodeRow| row.node != cx.me && Some(row.node) != lease.master;
            return !cx.pool.view.nodes.iter().any(other) && self.refused;
        }
        let mut others = cx.members(lease.term, lease.master).peekable();
        let promised = match others.peek() {
            None => self.refused,
            Some(_) => others.all(|node| self.promises.contains_key(&node)),
        };
        promised && own_row.joined == Some(lease.term) && !self.has_promised()
    }

    /// Promises the vote of this node, a member that has lost its master, to the first other member in the pool.
    fn promise(&mut self, cx: &mut Context) {
        let Some(master) = cx.master.filter(|_| !self.has_promised()) else { return };
        let Some(own_row) = cx.row(cx.me).filter(|row| row.joined == Some(cx.term)) else { return };
        // A node that does not announce itself does not reach the pool, so it cannot take the lease.
        let live = cx.live_rows().filter(|row| row.joined == Some(cx.term) && row.node != cx.me && row.node != master);
        let first = live.min_by_key(|row| row.ord).filter(|row| row.ord < own_row.ord);
        let Some(first) = first.map(|row| row.node) else { return };
        match cx.link_to(first) {
            Some(link) => {
                self.promised = Some((first, cx.now));
                cx.send(link, Body::Promise);
            }
            None => cx.dial(first),
        }
    }

    /// Sends the clients to other nodes once the pool has shown a live master for `cut_off_timeout` that this node
    /// cannot reach.
    fn note_cut_off(&mut self, cx: &mut Context) {
        let is_renewed = cx.observation.lease().is_some_and(|lease| lease.master.is_some())
            && cx.observation.unchanged_for() < cx.config.renew_interval * 3
            && !cx.pool.is_failing();
        if !is_renewed {
            self.cut_off_since = None;
            return;
        }
        let since = *self.cut_off_since.get_or_insert(cx.now);
        if cx.since(since) >= cx.config.cut_off_timeout && cx.ready {
            cx.ready = false;
            cx.outputs.push_back(Output::CutOff);
        }
    }
}

impl Context {
    /// Returns true if the lease has expired or is free, and it is this node's turn: nodes try in their order in the
    /// pool.
    fn lease_has_expired(&self, lease: &Lease) -> bool {
        let wait = if lease.master.is_some() { self.config.lease } else { Duration::ZERO };
        let turn = wait + self.config.rank_delay * self.rank(lease);
        self.row(self.me).is_some() && self.observation.unchanged_for() >= turn
    }

    /// Returns how many live nodes try before this one: members first, and then in their order in the pool.
    fn rank(&self, lease: &Lease) -> u32 {
        let live = self.live_rows().filter(|row| Some(row.node) != lease.master);
        let mut order: Vec<_> = live.map(|row| (row.joined != Some(lease.term), row.ord, row.node)).collect();
        order.sort_unstable();
        order.iter().take_while(|(.., node)| *node != self.me).count() as u32
    }
}
