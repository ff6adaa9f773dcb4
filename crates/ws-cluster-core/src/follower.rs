//! The follower's side: it joins the master, appends the master's entries, and proposes publishes. `election` is what
//! it does without a link to the master.

use std::time::Instant;

use crate::{
    Body, Entry, Join, LinkId, NodeId, Proposal, Seq, Snapshot, Span, context::Context, election::Candidacy,
    fault::Fault,
};

/// The state of a node that is not master.
#[derive(Debug, Default)]
pub(super) struct Follower {
    pub(super) upstream: Upstream,
    /// When this node last tried to reach the master.
    sought_at: Option<Instant>,
    pub(super) candidacy: Candidacy,
}

/// How far this node has joined the master.
#[derive(Debug, Default)]
pub(super) struct Upstream {
    /// The link over which it joins or has joined.
    pub(super) link: Option<LinkId>,
    pub(super) phase: UpstreamPhase,
    /// Counts this node's joins. An answer to an earlier join is ignored.
    attempt: u64,
    /// When it last asked to join.
    asked_at: Option<Instant>,
    /// The counter of the last own publish that it has proposed since its welcome.
    proposed: u64,
    /// The last entry that it has acknowledged since its welcome.
    acked: Seq,
    /// The bytes of the entries after `acked`.
    unacked: usize,
    /// True if acknowledgements may wait for the next tick.
    defers: bool,
    /// True if the next flush must acknowledge.
    is_ack_due: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum UpstreamPhase {
    #[default]
    Apart,
    /// It has asked to join.
    Asked,
    /// The master has let it in. It gets entries and may be far behind.
    Welcomed,
    /// It is a member.
    Joined,
}

impl Follower {
    pub(super) fn is_joined(&self) -> bool {
        self.upstream.phase == UpstreamPhase::Joined
    }

    /// Returns true if the master has let this node in.
    fn is_welcomed(&self) -> bool {
        self.upstream.phase >= UpstreamPhase::Welcomed
    }

    /// Returns true if a frame on this link comes from the master that has let this node in.
    fn is_upstream(&self, link: LinkId) -> bool {
        self.upstream.link == Some(link) && self.is_welcomed()
    }

    /// Notes the master of the present term.
    pub(super) fn set_master(&mut self, cx: &mut Context, master: Option<NodeId>) {
        if master.is_none() || master == cx.master {
            return;
        }
        if master == Some(cx.me) {
            // A peer knows it before the pool has answered. The next read confirms it.
            cx.pool.read_soon();
        } else {
            cx.master = master;
            cx.predecessor = master;
            self.seek_master(cx);
        }
    }

    /// Joins over an open link to the master, or dials the master.
    fn seek_master(&mut self, cx: &mut Context) {
        let Some(master) = cx.master else { return };
        if let Some(link) = cx.link_to(master) {
            self.join(cx, link);
        } else {
            if !cx.addresses.contains_key(&master) {
                cx.pool.read_soon();
            }
            self.sought_at = Some(cx.now);
            cx.dial(master);
        }
    }

    /// Asks the master to let this node join.
    fn join(&mut self, cx: &mut Context, link: LinkId) {
        cx.joins += 1;
        let (attempt, asked_at) = (cx.joins, Some(cx.now));
        self.upstream =
            Upstream { link: Some(link), phase: UpstreamPhase::Asked, attempt, asked_at, ..Upstream::default() };
        let join = Join {
            attempt,
            base: cx.log.base(),
            last: cx.log.last(),
            last_term: cx.log.last_term(),
            lineage: cx.log.lineage().clone(),
        };
        cx.send(link, Body::Join(join));
    }

    /// A peer says who is master.
    pub(super) fn handle_term(&mut self, cx: &mut Context, link: LinkId, peer: NodeId, master: NodeId) {
        // A join over this link replaces no other: this node has sent none, or has sent one over this link that was not
        // answered.
        let may_join = !self.is_welcomed() && self.upstream.link.is_none_or(|over| over == link);
        if cx.master.is_none() {
            self.set_master(cx, Some(master));
        } else if master == peer && cx.master == Some(master) && may_join {
            // A new master says so to its peers. It ignored the joins that arrived before it became the master.
            self.join(cx, link);
        }
    }

    pub(super) fn handle_promise(&mut self, cx: &mut Context, peer: NodeId) {
        self.candidacy.add_promise(cx.now, peer);
        cx.pool.read_soon();
        self.consider_candidacy(cx);
    }

    pub(super) fn consider_candidacy(&mut self, cx: &mut Context) {
        self.candidacy.consider(cx, self.is_welcomed());
    }

    pub(super) fn handle_welcome(
        &mut self,
        cx: &mut Context,
        link: LinkId,
        attempt: u64,
        agreed: Seq,
        snapshot: Option<Snapshot>,
    ) {
        let upstream = &mut self.upstream;
        if upstream.link != Some(link) || upstream.attempt != attempt || upstream.phase != UpstreamPhase::Asked {
            return;
        }
        upstream.phase = UpstreamPhase::Welcomed;
        if let Some(snapshot) = snapshot {
            cx.reset_to(agreed, snapshot);
        } else if agreed < cx.log.base() || agreed > cx.log.last() {
            // The welcome does not fit this node's log.
            return self.hang_up(cx, link);
        } else {
            cx.cut(agreed);
        }
        // The master and this node hold these entries.
        cx.deliver_to(cx.log.last());
        cx.send(link, Body::Ack { seq: cx.log.last() });
        let mut returned: Vec<Proposal> = cx.pending.returned().cloned().collect();
        if cx.has_fault(Fault::ShufflesCut) {
            returned.reverse();
        }
        cx.propose(link, returned);
    }

    pub(super) fn handle_append(
        &mut self,
        cx: &mut Context,
        link: LinkId,
        spans: &[Span],
        entries: Vec<Entry>,
        held_by_all: Seq,
    ) {
        if !self.is_upstream(link) {
            return;
        }
        self.upstream.unacked += entries.iter().map(|entry| entry.proposal.size()).sum::<usize>();
        if !cx.extend(spans, entries) {
            return self.hang_up(cx, link);
        }
        cx.deliver_to(cx.log.last());
        cx.trim(held_by_all);
    }

    pub(super) fn handle_joined(&mut self, cx: &mut Context, link: LinkId) {
        if self.is_upstream(link) {
            self.upstream.phase = UpstreamPhase::Joined;
            cx.ready = cx.shutdown_began_at.is_none();
        }
    }

    pub(super) fn handle_defer(&mut self, link: LinkId, defer: bool) {
        if self.is_upstream(link) {
            self.upstream.defers = defer;
        }
    }

    pub(super) fn dial_failed(&mut self, cx: &mut Context, node: NodeId, refused: bool) {
        if cx.master == Some(node) {
            self.candidacy.refused |= refused;
            self.consider_candidacy(cx);
        }
    }

    pub(super) fn hang_up(&mut self, cx: &mut Context, link: LinkId) {
        if cx.hang_up(link).is_some() {
            self.link_lost(cx, link);
        }
    }

    pub(super) fn link_lost(&mut self, cx: &mut Context, link: LinkId) {
        if self.upstream.link != Some(link) {
            return;
        }
        let asked_at = std::mem::take(&mut self.upstream).asked_at;
        self.candidacy.note_loss(cx.now);
        cx.pool.read_soon();
        // A join that failed at once is repeated only at the next tick.
        if cx.is_due(asked_at, cx.config.redial_interval) {
            self.seek_master(cx);
        }
    }

    /// Acknowledges entries, and proposes the own publishes that have gathered since the last flush.
    pub(super) fn flush(&mut self, cx: &mut Context) {
        let Some(link) = self.upstream.link.filter(|_| self.is_welcomed()) else { return };
        self.acknowledge(cx, link);
        let proposals: Vec<Proposal> = cx.pending.pending_after(self.upstream.proposed).cloned().collect();
        if let Some(proposal) = proposals.last() {
            self.upstream.proposed = proposal.id.counter;
        }
        cx.propose(link, proposals);
    }

    /// Acknowledges the entries that it holds, unless the master lets it do so later. It does so before the entries
    /// fill the master's window.
    fn acknowledge(&mut self, cx: &mut Context, link: LinkId) {
        let upstream = &mut self.upstream;
        let is_due = std::mem::take(&mut upstream.is_ack_due) || upstream.unacked >= cx.window / 4;
        let last = cx.log.last();
        if upstream.acked < last && (is_due || !upstream.defers) {
            (upstream.acked, upstream.unacked) = (last, 0);
            cx.send(link, Body::Ack { seq: last });
        }
    }

    /// Tries to reach the master again, takes part in an election, and repeats a join that was not answered.
    pub(super) fn tick(&mut self, cx: &mut Context) {
        self.candidacy.forget_promises(cx);
        self.upstream.is_ack_due = !cx.has_fault(Fault::DefersForEver);
        if cx.shutdown_began_at.is_none() {
            // An open link to the master may be one over which this node has not joined: two nodes that dialled each
            // other have two links, and the one it had joined over has ended.
            if self.upstream.phase == UpstreamPhase::Apart && cx.is_due(self.sought_at, cx.config.redial_interval) {
                self.seek_master(cx);
                self.sought_at = Some(cx.now);
                if cx.pool.is_failing() {
                    // The others may have elected a master. The pool cannot say so, but each of them can.
                    cx.dial_all();
                }
            }
            self.candidacy.tick(cx, self.is_welcomed());
        }
        if let Upstream { link: Some(link), phase: UpstreamPhase::Asked, asked_at, .. } = self.upstream
            && cx.is_due(asked_at, cx.config.lease)
        {
            // A new master says so to its peers, so a join is repeated here only in unforeseen cases.
            self.join(cx, link);
        }
        if self.is_joined() {
            self.leave_idle_links(cx);
        }
    }

    /// Ends links that this node dialled and no longer needs.
    fn leave_idle_links(&mut self, cx: &mut Context) {
        let idle = cx.links.iter().filter(|(id, link)| link.dialled && Some(**id) != self.upstream.link);
        let idle: Vec<LinkId> = idle.map(|(&id, _)| id).collect();
        idle.into_iter().for_each(|link| self.hang_up(cx, link));
    }
}
