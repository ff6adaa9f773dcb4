//! What every node does with the one order: extend its log, cut it where the master's differs, begin anew behind it,
//! deliver it to the own clients.

use super::{Core, Entry, Fault, Output, PublishId, Seq, Snapshot, Span};

impl Core {
    /// Appends entries that follow the last one; `false` where they do not.
    pub(super) fn extend(&mut self, spans: &[Span], entries: Vec<Entry>) -> bool {
        for entry in entries {
            let master = spans.iter().find(|span| span.term == entry.term).map(|span| span.master);
            let master = master.or_else(|| self.log.lineage().spans().last().map(|span| span.master));
            let follows = entry.seq == self.log.last() + 1 && entry.term >= self.log.last_term();
            let (Some(master), true) = (master, follows) else { return false };
            self.log.append(self.now, entry, master);
        }
        true
    }

    /// Cuts what the master never saw, to propose it anew.
    pub(super) fn cut(&mut self, agreed: Seq) {
        let aged = self.log.aged(self.now);
        let cut = self.log.truncate(agreed);
        self.repropose(cut, aged);
    }

    /// Drops the log for the master's. What lies after `agreed` the master never saw.
    pub(super) fn reset_to(&mut self, agreed: Seq, snapshot: Snapshot) {
        let base = snapshot.base;
        let fresh = self.log.last() == 0;
        let settled = snapshot.marks.clone();
        let aged = self.log.aged(self.now);
        let delivered = self.delivered;
        let keys: Vec<_> = self.log.keys().filter(|(_, seq)| *seq <= delivered).map(|(key, _)| key.clone()).collect();
        let held = self.log.restart(self.now, snapshot);
        self.repropose(held.into_iter().filter(|entry| entry.seq > agreed).collect(), aged);
        for key in keys.iter().filter(|key| !self.log.knows_key(key)) {
            self.clients_have.lose(self.now, key, None);
        }
        self.delivered = base;
        let base = self.log.lineage().position(base);
        self.outputs.push_back(Output::Restarted { base, missed: !fresh });
        // What was sequenced before the base will not be seen in order any more.
        let known: Vec<_> = self.pending.ids().collect();
        for id in known {
            if settled.iter().any(|mark| mark.origin == id.origin && mark.counter >= id.counter) {
                self.settle(id);
            }
        }
    }

    /// What was cut is proposed anew, but for the entries up to `aged`.
    pub(super) fn repropose(&mut self, cut: Vec<Entry>, aged: Seq) {
        for Entry { proposal, .. } in cut.iter().take_while(|entry| entry.seq <= self.delivered) {
            if let Some(key) = proposal.key.as_ref().filter(|_| proposal.content.is_some()) {
                self.clients_have.lose(self.now, key, Some(proposal.id));
            }
        }
        if let Some(after) = cut.first().map(|first| first.seq - 1).filter(|after| *after < self.delivered) {
            self.delivered = after;
            self.outputs.push_back(Output::Cut { after });
        }
        // An entry without content stands for one that had the same key: there is nothing to propose, but whoever
        // waits for it must still learn of it.
        if self.has_fault(Fault::ForgetsCut) {
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
        self.pending.repropose(self.now, young.into_iter().map(|entry| entry.proposal));
    }

    /// Delivers all up to `seq`, in order.
    pub(super) fn deliver_to(&mut self, seq: Seq) {
        while self.delivered < seq {
            let next = self.delivered + 1;
            let proposal = self.log.at(next).map(|entry| entry.proposal.clone());
            let (Some(proposal), Some(position)) = (proposal, self.log.lineage().position(next)) else { break };
            self.delivered = next;
            let id = proposal.id;
            let repeated = self.clients_have.record(self.now, &proposal);
            self.outputs.push_back(Output::Deliver { position, proposal, repeated });
            self.settle(id);
        }
    }

    pub(super) fn settle(&mut self, id: PublishId) {
        if self.pending.settle(id) {
            self.outputs.push_back(Output::Accepted { counter: id.counter });
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
        self.clients_have.forget(self.now, self.log.memory());
    }
}
