//! The follower's side: asking to be let in, taking entries in their order, proposing publishes.

use std::time::Instant;

use super::{Body, Core, Entry, Fault, Join, LinkId, NodeId, Proposal, Role, Seq, Snapshot, Span};

/// A node that is not master: how far it is with joining.
#[derive(Debug, Default)]
pub(super) struct Follower {
    /// The link over which it joins or has joined.
    pub(super) link: Option<LinkId>,
    pub(super) stage: JoinStage,
    /// Which of this node's joins this is: the answer to an earlier one is no answer to it.
    pub(super) attempt: u64,
    pub(super) asked: Option<Instant>,
    /// Since its welcome it proposed all own publishes up to this counter, and acknowledged all up to this place.
    pub(super) proposed: u64,
    pub(super) acked: Seq,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum JoinStage {
    #[default]
    Apart,
    /// Asked to be let in.
    Asked,
    /// In the stream, perhaps far behind.
    Welcomed,
    /// A member.
    Joined,
}

impl Follower {
    pub(super) fn is_joined(&self) -> bool {
        self.stage == JoinStage::Joined
    }
}

impl Core {
    /// Asks the master to be let in.
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

    /// Whether a join over this link would not disturb another: there is none yet, or it was unheard on this link.
    pub(super) fn may_join(&self, link: LinkId) -> bool {
        matches!(&self.role, Role::Follower(follower)
            if follower.stage < JoinStage::Welcomed && follower.link.is_none_or(|over| over == link))
    }

    /// Whether this node has not even asked to be let in.
    pub(super) fn is_apart(&self) -> bool {
        matches!(&self.role, Role::Follower(follower) if follower.stage == JoinStage::Apart)
    }

    /// Whether the master has let this node in.
    pub(super) fn is_welcomed(&self) -> bool {
        matches!(&self.role, Role::Follower(follower) if follower.stage >= JoinStage::Welcomed)
    }

    /// Whether a frame comes from the master over the link of this follower's last join.
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
            // Not an answer to what was asked.
            return self.hang_up(link);
        } else {
            self.cut(agreed);
        }
        // What the master has, two nodes hold.
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

    /// A new master wants this node's log after a place: in pieces, from its base if it no longer reaches that far.
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

    /// Ends links that this node made and that serve nothing any more.
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
