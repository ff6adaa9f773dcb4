//! The follower's side: it joins the master, appends the master's entries, and proposes publishes.

use std::time::Instant;

use super::{Body, Core, Entry, Fault, Join, LinkId, NodeId, Proposal, Role, Seq, Snapshot, Span};

/// The state of a node that is not master.
#[derive(Debug, Default)]
pub(super) struct Follower {
    /// The link over which it joins or has joined.
    pub(super) link: Option<LinkId>,
    pub(super) stage: JoinStage,
    /// Counts this node's joins. An answer to an earlier join is ignored.
    pub(super) attempt: u64,
    pub(super) asked: Option<Instant>,
    /// Since its welcome it has proposed its own publishes up to this counter, and acknowledged the entries up to this
    /// one.
    pub(super) proposed: u64,
    pub(super) acked: Seq,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum JoinStage {
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
        self.stage == JoinStage::Joined
    }
}

impl Core {
    /// Asks the master to let this node join.
    pub(super) fn join(&mut self, link: LinkId) {
        self.joins += 1;
        let attempt = self.joins;
        let join = Join {
            attempt,
            base: self.log.base(),
            last: self.log.last(),
            last_term: self.log.last_term(),
            lineage: self.log.lineage().clone(),
        };
        let Role::Follower(follower) = &mut self.role else { return };
        *follower = Follower {
            link: Some(link),
            stage: JoinStage::Asked,
            attempt,
            asked: Some(self.now),
            ..Follower::default()
        };
        self.send(link, Body::Join(join));
    }

    /// Returns true if a join over this link disturbs no other: none was sent, or one was sent over this link and not
    /// answered.
    pub(super) fn may_join(&self, link: LinkId) -> bool {
        matches!(&self.role, Role::Follower(follower)
            if follower.stage < JoinStage::Welcomed && follower.link.is_none_or(|over| over == link))
    }

    /// Returns true if this node has not asked to join.
    pub(super) fn is_apart(&self) -> bool {
        matches!(&self.role, Role::Follower(follower) if follower.stage == JoinStage::Apart)
    }

    /// Returns true if the master has let this node in.
    pub(super) fn is_welcomed(&self) -> bool {
        matches!(&self.role, Role::Follower(follower) if follower.stage >= JoinStage::Welcomed)
    }

    /// Returns true if a frame on this link comes from the master over which this follower last joined.
    pub(super) fn is_upstream(&self, link: LinkId, at_least: JoinStage) -> bool {
        matches!(&self.role, Role::Follower(follower) if follower.link == Some(link) && follower.stage >= at_least)
    }

    pub(super) fn handle_welcome(&mut self, link: LinkId, attempt: u64, agreed: Seq, snapshot: Option<Snapshot>) {
        let Role::Follower(follower) = &mut self.role else { return };
        if follower.link != Some(link) || follower.attempt != attempt || follower.stage != JoinStage::Asked {
            return;
        }
        follower.stage = JoinStage::Welcomed;
        if let Some(snapshot) = snapshot {
            self.reset_to(agreed, snapshot);
        } else if agreed < self.log.base() || agreed > self.log.last() {
            // It answers another join.
            return self.hang_up(link);
        } else {
            self.cut(agreed);
        }
        // The master and this node hold these entries.
        self.deliver_to(self.log.last());
        self.send(link, Body::Ack { seq: self.log.last() });
        let returned: Vec<Proposal> = self.pending.returned().cloned().collect();
        let returned = if self.has_fault(Fault::ShufflesCut) { returned.into_iter().rev().collect() } else { returned };
        self.propose(link, returned);
    }

    pub(super) fn handle_append(&mut self, link: LinkId, spans: &[Span], entries: Vec<Entry>, held: Seq) {
        if !self.is_upstream(link, JoinStage::Welcomed) {
            return;
        }
        if !self.extend(spans, entries) {
            return self.hang_up(link);
        }
        self.deliver_to(self.log.last());
        self.trim(held);
    }

    pub(super) fn handle_joined(&mut self, link: LinkId) {
        if !self.is_upstream(link, JoinStage::Welcomed) {
            return;
        }
        if let Role::Follower(follower) = &mut self.role {
            follower.stage = JoinStage::Joined;
        }
        self.ready = self.draining.is_none();
    }

    pub(super) fn propose(&mut self, link: LinkId, proposals: Vec<Proposal>) {
        let mut batch = Vec::new();
        let mut size = 0;
        for proposal in proposals {
            size += proposal.size();
            batch.push(proposal);
            if size >= self.batch {
                size = 0;
                self.send(link, Body::Propose(std::mem::take(&mut batch)));
            }
        }
        if !batch.is_empty() {
            self.send(link, Body::Propose(batch));
        }
    }

    /// Sends a new master this node's log after `after`, in pieces; from the base if the log no longer has what follows
    /// `after`.
    pub(super) fn handle_fetch(&mut self, link: LinkId, peer: NodeId, after: Seq) {
        if self.master != Some(peer) && self.master.is_some() {
            return;
        }
        let mut snapshot = (after < self.log.base()).then(|| self.log.snapshot());
        let mut after = after.max(self.log.base());
        loop {
            let (spans, entries, _) = self.batch(after, usize::MAX);
            after = entries.last().map_or(after, |entry| entry.seq);
            let done = after >= self.log.last();
            self.send(link, Body::Tail { snapshot: snapshot.take(), spans, entries, done });
            if done {
                break;
            }
        }
    }

    /// Ends links that this node dialled and that are of no use any more.
    pub(super) fn leave_idle_links(&mut self) {
        let Role::Follower(follower) = &self.role else { return };
        if !follower.is_joined() {
            return;
        }
        let idle = self.links.iter().filter(|(id, link)| link.dialled && Some(**id) != follower.link);
        let idle: Vec<LinkId> = idle.map(|(&id, _)| id).collect();
        idle.into_iter().for_each(|link| self.hang_up(link));
    }
}
