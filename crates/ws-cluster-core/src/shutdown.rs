//! The shutdown of a node: a master hands its lease over, and a follower waits for its own publishes.

use crate::{
    Core, NodeId, Output, Query, Role, Term,
    context::Context,
    master::{Master, MasterPhase},
};

impl Core {
    /// Ends the shutdown if everything is handed over, or its time is over. Called after each step.
    pub(super) fn tick_shutdown(&mut self) {
        let cx = &mut self.cx;
        let Some(since) = cx.shutdown_began_at.filter(|_| !self.ended) else { return };
        let done = match &self.role {
            Role::Master(master) => master.hand_over(cx),
            Role::Follower(_) => cx.pending.is_empty(),
        };
        if done || cx.since(since) >= cx.config.shutdown_timeout {
            self.ended = true;
            cx.outputs.extend(cx.links.keys().map(|&link| Output::Hangup { link }));
            cx.links.clear();
            cx.outputs.push_back(Output::ShutDown);
        }
    }
}

impl Master {
    /// Hands the lease over: to a follower that holds every entry, or to no node if there is no follower. A follower that
    /// catches up gets time to become a member. Returns true if it is done.
    fn hand_over(&self, cx: &mut Context) -> bool {
        if self.is_handed_over() {
            return true;
        }
        let last = cx.log.last();
        if cx.delivered < last {
            return false;
        }
        // The rest of the time is for the release of the lease.
        let patient = cx.shutdown_began_at.is_some_and(|began| cx.since(began) < cx.config.shutdown_timeout * 3 / 4);
        let Some(successor) = self.successor(last, patient) else { return false };
        // A hand-over needs the pool. The shutdown's time limit ends the wait for it.
        let owned = cx.observation.lease().is_some_and(|lease| lease.master == Some(cx.me) && lease.term == cx.term);
        if owned && !cx.pool.is_deciding() {
            cx.pool.urgent = Some(Query::HandOver { term: cx.term, successor });
        }
        false
    }

    /// The pool has handed the lease over.
    pub(super) fn handed_over(&mut self, cx: &mut Context, term: Term, successor: Option<NodeId>) {
        if term != cx.term {
            return;
        }
        self.phase = MasterPhase::HandedOver;
        if successor.is_some() {
            // This frame is the only one that this node sends in the new term. It makes the followers join the
            // successor.
            cx.term = term + 1;
            cx.master = successor;
            cx.send_term_to_all();
        }
    }
}
