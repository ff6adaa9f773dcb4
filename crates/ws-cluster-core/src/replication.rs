//! Replication in either role: lost links, time that passes, and the flush that sends what gathered.

use super::{
    Body, Core, LinkId, NodeId, Proposal, Role,
    follower::{Follower, JoinStage},
    master::MasterPhase,
};

/// Bytes of entries or proposals after which a frame is full.
pub(super) const BATCH: usize = 256 * 1024;

impl Core {
    pub(super) fn link_lost(&mut self, link: LinkId, peer: NodeId) {
        match &mut self.role {
            Role::Follower(follower) if follower.link == Some(link) => {
                let asked = std::mem::take(follower).asked;
                self.pool.read_soon();
                // A join that failed at once is repeated only at the next tick.
                if asked.is_none_or(|asked| self.now.saturating_duration_since(asked) >= self.config.redial_interval) {
                    self.seek_master();
                }
            }
            Role::Follower(_) => {}
            Role::Master(master) => {
                master.waiting.retain(|_, (over, _)| *over != link);
                let gone = master.followers.get(&peer).is_some_and(|follower| follower.link == link);
                if gone {
                    master.followers.remove(&peer);
                    master.absent.insert(peer);
                    master.deserted = self.now;
                    self.pool.lose(peer);
                }
                if !self.links.values().any(|link| link.peer == peer)
                    && let Role::Master(master) = &mut self.role
                {
                    master.expected.remove(&peer);
                    let fetching = matches!(&master.stage, MasterPhase::Fetching { from, .. } if *from == peer);
                    if fetching {
                        self.adopt_best();
                    }
                }
                self.advance();
            }
        }
    }

    /// Sends what gathered while the driver carried out the last outputs. A busy node so sends fewer and larger frames.
    pub(super) fn flush(&mut self) {
        match &mut self.role {
            Role::Follower(Follower { link: Some(link), stage, proposed, acked, .. })
                if *stage >= JoinStage::Welcomed =>
            {
                let link = *link;
                let last = self.log.last();
                let owed = std::mem::replace(acked, last) < last;
                let proposals: Vec<Proposal> = self.pending.pending_after(*proposed).cloned().collect();
                if let Some(proposal) = proposals.last() {
                    *proposed = proposal.id.counter;
                }
                if owed {
                    self.send(link, Body::Ack { seq: last });
                }
                self.propose(link, proposals);
            }
            Role::Master(master) if master.is_serving() => {
                let proposed = master.proposed;
                let proposals: Vec<Proposal> = self.pending.pending_after(proposed).cloned().collect();
                if let Some(proposal) = proposals.last() {
                    master.proposed = proposal.id.counter;
                    self.sequence(proposals);
                }
                self.pump_all();
            }
            _ => {}
        }
    }

    /// Does what no event triggers: repeats a join, ends a collection, trims, and tells followers what all members
    /// hold.
    pub(super) fn tick_relay(&mut self) {
        let now = self.now;
        match &self.role {
            Role::Follower(Follower { link: Some(link), stage: JoinStage::Asked, asked: Some(asked), .. })
                if now.saturating_duration_since(*asked) >= self.config.lease =>
            {
                // A node says when it becomes master. This is for cases that are not thought of.
                self.join(*link);
            }
            Role::Follower(_) => {}
            Role::Master(_) => {
                self.tick_takeover();
                // This comes first, because a follower that it removes may be what shows that this master is not alone.
                self.enforce_retention();
                self.advance();
            }
        }
        self.pending.forget(now, self.log.age());
        self.leave_idle_links();
    }
}
