//! What drives the relay, whichever role this node has: lost links, the passing of time, and the flush that joins
//! what gathered.

use super::{
    Body, Core, LinkId, NodeId, Proposal, Role,
    follower::{Follower, JoinStage},
    master::MasterPhase,
};

/// Bytes of entries or proposals in one frame, beyond the first.
pub(super) const BATCH: usize = 256 * 1024;

impl Core {
    pub(super) fn link_lost(&mut self, link: LinkId, peer: NodeId) {
        match &mut self.role {
            Role::Follower(follower) if follower.link == Some(link) => {
                let asked = std::mem::take(follower).asked;
                self.pool.read_soon();
                // A join that failed at once is not repeated at once.
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

    /// Passes on what gathered while the last outputs were carried out: the more there was, the fewer frames.
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

    /// What no event announces: repeated joins, the end of a collection, trimming, the mark of what all hold.
    pub(super) fn tick_relay(&mut self) {
        let now = self.now;
        match &self.role {
            Role::Follower(Follower { link: Some(link), stage: JoinStage::Asked, asked: Some(asked), .. })
                if now.saturating_duration_since(*asked) >= self.config.lease =>
            {
                // An master that was none yet says so when it is; this is for what nobody thought of.
                self.join(*link);
            }
            Role::Follower(_) => {}
            Role::Master(_) => {
                self.tick_takeover();
                // First, since a follower that is let go here may be what shows that this master is not alone.
                self.enforce_retention();
                self.advance();
            }
        }
        self.pending.forget(now, self.log.age());
        self.leave_idle_links();
    }
}
