//! How a node with the lease becomes a serving master: it collects the logs of the last term's members, adopts the best
//! one, and opens its term.

use super::{
    Body, Core, Entry, NodeId, Proposal, PublishId, Role, Snapshot, Span,
    master::{Master, MasterPhase},
};

impl Core {
    /// Asks the members of the last term for their logs.
    pub(super) fn collect(&mut self) {
        let Role::Master(Master { stage: MasterPhase::Collecting { missing, .. }, .. }) = &self.role else { return };
        missing.clone().into_iter().for_each(|node| self.dial(node));
        self.tick_takeover();
    }

    /// Ends the collection if it is complete or its time is over.
    pub(super) fn tick_takeover(&mut self) {
        let now = self.now;
        let Role::Master(master) = &mut self.role else { return };
        match &master.stage {
            MasterPhase::Collecting { missing, until }
                if missing.iter().all(|node| master.waiting.contains_key(node)) || now >= *until =>
            {
                self.adopt_best();
            }
            MasterPhase::Fetching { from, until } if now >= *until => {
                // The node stopped answering. Its log is left out, and it joins when it can.
                if let Some((link, _)) = master.waiting.remove(&from.clone()) {
                    self.hang_up(link);
                }
                self.adopt_best();
            }
            _ => {}
        }
    }

    /// Fetches the best of the collected logs, or opens the term if this node's own is the best.
    pub(super) fn adopt_best(&mut self) {
        let (mine, lineage) = ((self.log.last_term(), self.log.last()), self.log.lineage().clone());
        let until = self.now + self.config.collect_timeout;
        let Role::Master(master) = &mut self.role else { return };
        let best = master.waiting.iter().max_by_key(|(_, (_, join))| (join.last_term, join.last));
        match best {
            Some((&from, (link, join))) if (join.last_term, join.last) > mine => {
                let (link, after) = (*link, lineage.agreement(mine.1, &join.lineage, join.last));
                master.stage = MasterPhase::Fetching { from, until };
                self.send(link, Body::Fetch { after });
            }
            _ => self.open_term(),
        }
    }

    pub(super) fn handle_tail(
        &mut self,
        peer: NodeId,
        snapshot: Option<Snapshot>,
        spans: &[Span],
        entries: Vec<Entry>,
        done: bool,
    ) {
        let until = self.now + self.config.collect_timeout;
        let Role::Master(master) = &mut self.role else { return };
        match &mut master.stage {
            MasterPhase::Fetching { from, until: end } if *from == peer => *end = until,
            _ => return,
        }
        let Some((link, join)) = master.waiting.get(&peer) else { return };
        let (link, lineage, last, join_term) = (*link, join.lineage.clone(), join.last, join.last_term);
        let agreed = self.log.lineage().agreement(self.log.last(), &lineage, last);
        match snapshot {
            Some(snapshot) => self.reset_to(agreed, snapshot),
            // The first piece begins after the last common entry. The other pieces follow it.
            None if entries.first().is_some_and(|entry| entry.seq <= self.log.last()) => {
                if agreed < self.log.base() {
                    return self.hang_up(link);
                }
                self.cut(agreed);
            }
            None => {}
        }
        if !self.extend(spans, entries) {
            return self.hang_up(link);
        }
        let promised = (join_term, last);
        if done && (self.log.last_term(), self.log.last()) < promised {
            // The node sent less than it said it had. Without this check it would be fetched again and again.
            return self.hang_up(link);
        }
        if done {
            self.adopt_best();
        }
    }

    /// Opens the term: welcomes the nodes that wait to join, and appends this node's own pending publishes.
    pub(super) fn open_term(&mut self) {
        let Role::Master(master) = &mut self.role else { return };
        master.stage = MasterPhase::Serving;
        let waiting = std::mem::take(&mut master.waiting);
        master.expected.retain(|node| waiting.contains_key(node));
        self.ready = self.draining.is_none();
        // A node that was away for long has old entries that the others trimmed long ago, and may have forgotten.
        self.trim_to(self.log.aged(self.now).min(self.delivered));
        for (peer, (link, join)) in waiting {
            self.welcome(link, peer, &join);
        }
        if self.log.last() == 0 {
            // The log begins with an entry without content, so that a client that connects before the first message has
            // a position. No publish has the counter 0.
            let id = PublishId { origin: self.me, counter: 0 };
            self.sequence(vec![Proposal { id, key: None, content: None }]);
        }
        // Cut entries come first. The own pending publishes follow with the next flush.
        let returned: Vec<Proposal> = self.pending.returned().cloned().collect();
        self.sequence(returned);
    }
}
