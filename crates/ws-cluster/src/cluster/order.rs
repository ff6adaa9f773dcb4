//! What every node does with the one order: extend its log, cut it where the master's differs, begin anew behind it,
//! deliver it to the own clients.

use super::{Core, Entry, Output, Seq, Snapshot, Span, Ticket};

impl Core {
    /// Appends entries that follow the last one; `false` where they do not.
    pub(super) fn extend(&mut self, spans: &[Span], entries: Vec<Entry>) -> bool {
        for entry in entries {
            let owner = spans.iter().find(|span| span.term == entry.term).map(|span| span.owner);
            let owner = owner.or_else(|| self.log.lineage().spans().last().map(|span| span.owner));
            let follows = entry.seq == self.log.last() + 1 && entry.term >= self.log.last_term();
            let (Some(owner), true) = (owner, follows) else { return false };
            self.log.append(self.now, entry, owner);
        }
        true
    }

    /// Cuts what the master never saw, to propose it anew.
    pub(super) fn cut(&mut self, agreed: Seq) {
        let aged = self.log.aged(self.now);
        let cut = self.log.truncate(agreed);
        self.give_back(cut, aged);
    }

    /// Drops the log for the master's. What lies after `agreed` the master never saw.
    pub(super) fn begin_anew(&mut self, agreed: Seq, snapshot: Snapshot) {
        let base = snapshot.base;
        let fresh = self.log.last() == 0;
        let settled = snapshot.marks.clone();
        let aged = self.log.aged(self.now);
        let delivered = self.delivered;
        let keys: Vec<_> = self.log.keys().filter(|(_, seq)| *seq <= delivered).map(|(key, _)| key.clone()).collect();
        let held = self.log.restart(self.now, snapshot);
        self.give_back(held.into_iter().filter(|entry| entry.seq > agreed).collect(), aged);
        for key in keys.iter().filter(|key| !self.log.knows_key(key)) {
            self.handed.lose(self.now, key, None);
        }
        self.delivered = base;
        let base = self.log.lineage().place(base);
        self.outputs.push_back(Output::Restarted { base, missed: !fresh });
        // What was sequenced before the base will not be seen in order any more.
        let known: Vec<_> = self.outbox.tickets().collect();
        for ticket in known {
            if settled.iter().any(|mark| mark.origin == ticket.origin && mark.counter >= ticket.counter) {
                self.settle(ticket);
            }
        }
    }

    /// What was cut is proposed anew, but for the entries up to `aged`.
    pub(super) fn give_back(&mut self, cut: Vec<Entry>, aged: Seq) {
        for Entry { proposal, .. } in cut.iter().take_while(|entry| entry.seq <= self.delivered) {
            if let Some(key) = proposal.key.as_ref().filter(|_| proposal.content.is_some()) {
                self.handed.lose(self.now, key, Some(proposal.ticket));
            }
        }
        if let Some(after) = cut.first().map(|first| first.seq - 1).filter(|after| *after < self.delivered) {
            self.delivered = after;
            self.outputs.push_back(Output::Cut { after });
        }
        // An entry without content stands for one that had the same key: there is nothing to propose, but whoever
        // waits for it must still learn of it.
        #[cfg(test)]
        if self.is(super::Mutant::ForgetsCut) {
            return;
        }
        let (old, young): (Vec<Entry>, Vec<Entry>) = cut.into_iter().partition(|entry| entry.seq <= aged);
        let messages =
            |entries: &[Entry]| entries.iter().filter(|entry| entry.proposal.content.is_some()).count() as u64;
        let (again, dropped) = (messages(&young), messages(&old));
        if again + dropped > 0 {
            self.dropped += dropped;
            self.outputs.push_back(Output::Diverged { again, dropped });
        }
        self.outbox.give_back(self.now, young.into_iter().map(|entry| entry.proposal));
    }

    /// Delivers all up to `seq`, in order.
    pub(super) fn deliver_to(&mut self, seq: Seq) {
        while self.delivered < seq {
            let next = self.delivered + 1;
            let proposal = self.log.at(next).map(|entry| entry.proposal.clone());
            let (Some(proposal), Some(place)) = (proposal, self.log.lineage().place(next)) else { break };
            self.delivered = next;
            let ticket = proposal.ticket;
            let repeated = self.handed.hand(self.now, &proposal);
            self.outputs.push_back(Output::Deliver { place, proposal, repeated });
            self.settle(ticket);
        }
    }

    pub(super) fn settle(&mut self, ticket: Ticket) {
        if self.outbox.settle(ticket) {
            self.outputs.push_back(Output::Accepted { counter: ticket.counter });
        }
    }

    /// Trims what the limits want gone, as far as all members hold it.
    pub(super) fn trim(&mut self, held: Seq) {
        let before = self.log.base();
        let surplus = self.log.surplus(self.now).min(held).min(self.delivered);
        self.log.trim(self.now, surplus);
        if self.log.base() > before {
            self.outputs.push_back(Output::Trimmed { base: self.log.base() });
        }
        self.handed.forget(self.now, self.log.memory());
    }
}
