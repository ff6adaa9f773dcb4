//! How a node with the lease becomes a serving master: it collects the logs of the last term's members, adopts the best
//! one, and opens its term.

use crate::{
    Body, Entry, NodeId, Proposal, PublishId, Snapshot, Span,
    context::Context,
    master::{Master, MasterPhase},
};

impl Master {
    /// Asks the members of the last term for their logs.
    pub(super) fn collect(&mut self, cx: &mut Context) {
        self.expected.iter().for_each(|&node| cx.dial(node));
        // A node that does not announce itself may be one that has only lost the database. It does not learn from the
        // pool who is master.
        let silent = cx.pool.view.nodes.iter().filter(|row| row.age > cx.config.member_timeout && row.node != cx.me);
        let silent: Vec<NodeId> = silent.map(|row| row.node).collect();
        silent.into_iter().for_each(|node| cx.dial(node));
        self.tick_takeover(cx);
    }

    /// Ends the collection if it is complete or its time is over.
    pub(super) fn tick_takeover(&mut self, cx: &mut Context) {
        match self.phase {
            MasterPhase::Collecting { ref missing, until }
                if missing.iter().all(|node| self.waiting.contains_key(node)) || cx.now >= until =>
            {
                self.adopt_best(cx);
            }
            MasterPhase::Fetching { from, until } if cx.now >= until => {
                // The node stopped answering. Its log is left out, and it joins when it can. Its link ends last,
                // because the loss of the link during the fetch would adopt the best log a second time.
                let left_out = self.waiting.remove(&from);
                self.adopt_best(cx);
                if let Some((link, _)) = left_out {
                    self.hang_up(cx, link);
                }
            }
            _ => {}
        }
    }

    /// Fetches the best of the collected logs, or opens the term if this node's own is the best.
    pub(super) fn adopt_best(&mut self, cx: &mut Context) {
        let own = (cx.log.last_term(), cx.log.last());
        match self.waiting.iter().max_by_key(|(_, (_, join))| (join.last_term, join.last)) {
            Some((&from, (link, join))) if (join.last_term, join.last) > own => {
                self.phase = MasterPhase::Fetching { from, until: cx.now + cx.config.collect_timeout };
                let after = cx.log.agreement(&join.lineage, join.last);
                cx.send(*link, Body::Fetch { after });
            }
            _ => self.open_term(cx),
        }
    }

    /// Adds a piece of the best log to this node's own.
    pub(super) fn handle_tail(
        &mut self,
        cx: &mut Context,
        peer: NodeId,
        snapshot: Option<Snapshot>,
        spans: &[Span],
        entries: Vec<Entry>,
        done: bool,
    ) {
        match &mut self.phase {
            MasterPhase::Fetching { from, until } if *from == peer => *until = cx.now + cx.config.collect_timeout,
            _ => return,
        }
        let Some((link, join)) = self.waiting.get(&peer) else { return };
        let (link, promised) = (*link, (join.last_term, join.last));
        let agreed = cx.log.agreement(&join.lineage, join.last);
        match snapshot {
            Some(snapshot) => cx.reset_to(agreed, snapshot),
            // The first piece begins after the last common entry. The other pieces follow it.
            None if entries.first().is_some_and(|entry| entry.seq <= cx.log.last()) => {
                if agreed < cx.log.base() {
                    return self.hang_up(cx, link);
                }
                cx.cut(agreed);
            }
            None => {}
        }
        // Otherwise a node that sends less than its join announced would be asked again and again.
        if !cx.extend(spans, entries) || (done && (cx.log.last_term(), cx.log.last()) < promised) {
            return self.hang_up(cx, link);
        }
        if done {
            self.adopt_best(cx);
        }
    }

    /// Opens the term: welcomes the nodes that wait to join, and appends this node's own pending publishes.
    fn open_term(&mut self, cx: &mut Context) {
        self.phase = MasterPhase::Serving;
        let waiting = std::mem::take(&mut self.waiting);
        self.expected.retain(|node| waiting.contains_key(node));
        cx.ready = cx.shutdown_began_at.is_none();
        // A node that was away for long has old entries that the others trimmed long ago, and may have forgotten.
        cx.trim_to(cx.log.aged(cx.now).min(cx.delivered));
        for (peer, (link, join)) in waiting {
            self.welcome(cx, link, peer, &join);
        }
        if cx.log.last() == 0 {
            // The log begins with an entry without content, so that a client that connects before the first message has
            // a position. No publish has the counter 0.
            let id = PublishId { origin: cx.me, counter: 0 };
            self.sequence(cx, vec![Proposal { id, key: None, content: None }]);
        }
        // Cut entries come first. The own pending publishes follow with the next flush.
        let returned: Vec<Proposal> = cx.pending.returned().cloned().collect();
        self.sequence(cx, returned);
    }
}
