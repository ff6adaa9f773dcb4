//! What a node does with its log in either role: it reads batches from the log, extends it, cuts what differs from the
//! master's log, replaces it, sends it to a new master, and delivers its entries to the own clients. It also proposes
//! publishes for the master's log.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use crate::{
    Body, Entry, LinkId, NodeId, Output, Proposal, PublishId, Seq, Snapshot, Span, Term, context::Context, fault::Fault,
};

impl Context {
    /// Returns the entries after `seq` that fit into one frame of at most `room` bytes, their spans, and their size.
    pub(super) fn batch(&self, seq: Seq, room: usize) -> (Vec<Span>, Vec<Entry>, usize) {
        let room = self.batch.min(room);
        let mut size = 0;
        let fits = |entry: &&Entry| {
            // A frame has at least one entry.
            let fits = size == 0 || size + entry.proposal.size() <= room;
            size += if fits { entry.proposal.size() } else { 0 };
            fits
        };
        let entries: Vec<Entry> = self.log.after(seq).take_while(fits).cloned().collect();
        let terms: BTreeSet<Term> = entries.iter().map(|entry| entry.term).collect();
        let spans = self.log.lineage().spans().iter().filter(|span| terms.contains(&span.term)).copied().collect();
        (spans, entries, size)
    }

    /// Appends entries. Returns false if one does not follow the last entry.
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

    /// Cuts the entries after `agreed`, which the master does not have, to propose them again.
    pub(super) fn cut(&mut self, agreed: Seq) {
        let aged = self.log.aged(self.now);
        let cut = self.log.truncate(agreed);
        self.repropose(cut, |entry| entry.seq > aged, 0);
        // The master may have forgotten a key that this node still knows.
        let log = &self.log;
        self.pending.empty_repeats(|id, key| !log.knows(id) && log.knows_key(key));
    }

    /// Replaces the log by the master's. The master does not have this log's entries after `agreed`.
    pub(super) fn reset_to(&mut self, agreed: Seq, snapshot: Snapshot) {
        let base = snapshot.base;
        let fresh = self.log.last() == 0;
        let aged = self.log.aged(self.now);
        let delivered = self.delivered;
        let keys: HashMap<Bytes, Seq> = self.log.keys().map(|(key, seq)| (key.clone(), seq)).collect();
        // The master may have forgotten the keys of entries that this node does not know. So what has a key may be in
        // the master's log under another publish, and is not proposed again. The publishes themselves are recognised.
        let forgets = !fresh && agreed < snapshot.forgotten;
        // What was trimmed after the last common entry is lost, unless the logs have nothing in common: then nothing
        // shows which of it the other nodes had.
        let trimmed = if agreed > 0 { self.log.base().saturating_sub(agreed) } else { 0 };
        let held = self.log.restart(self.now, snapshot).into_iter().filter(|entry| entry.seq > agreed).collect();
        self.repropose(held, |entry| entry.seq > aged && !(forgets && entry.proposal.key.is_some()), trimmed);
        if forgets {
            self.pending.forget_keyed();
        }
        let log = &self.log;
        let is_known = |key: &Bytes| log.knows_key(key) || keys.get(key).is_some_and(|seq| *seq <= agreed);
        self.pending.empty_repeats(|id, key| !log.knows(id) && is_known(key));
        for (key, seq) in keys.iter().filter(|(_, seq)| **seq <= delivered) {
            // After `agreed`, the master may have the key from another publish, and may forget it sooner.
            if *seq > agreed || !self.log.knows_key(key) {
                self.clients_have.lose(self.now, key, None);
            }
        }
        self.delivered = base;
        let base = self.log.lineage().position(base);
        self.outputs.push_back(Output::Restarted { base, missed: !fresh });
        // This node will not deliver the entries up to the base, so their publishes are settled here.
        let known: Vec<_> = self.pending.ids().collect();
        for id in known {
            if self.log.knows(id) {
                self.settle(id);
            }
        }
    }

    /// Makes the publishes of cut entries pending again, except for those that do not count as young, which are
    /// dropped. Besides, `trimmed` entries are lost.
    fn repropose(&mut self, cut: Vec<Entry>, is_young: impl Fn(&Entry) -> bool, trimmed: u64) {
        for Entry { proposal, .. } in cut.iter().take_while(|entry| entry.seq <= self.delivered) {
            if let Some(key) = proposal.key.as_ref().filter(|_| proposal.content.is_some()) {
                self.clients_have.lose(self.now, key, Some(proposal.id));
            }
        }
        if let Some(after) = cut.first().map(|first| first.seq - 1).filter(|after| *after < self.delivered) {
            self.delivered = after;
            self.outputs.push_back(Output::Cut { after });
        }
        // An entry without content repeats the key of another. It is pending all the same, because the publishing node
        // must learn that it is in the log.
        if self.has_fault(Fault::ForgetsCut) {
            return;
        }
        let (young, old): (Vec<Entry>, Vec<Entry>) = cut.into_iter().partition(is_young);
        let messages =
            |entries: &[Entry]| entries.iter().filter(|entry| entry.proposal.content.is_some()).count() as u64;
        let (again, dropped) = (messages(&young), messages(&old) + trimmed);
        if again + dropped > 0 {
            self.dropped += dropped;
            self.outputs.push_back(Output::Diverged { again, dropped });
        }
        self.pending.repropose(self.now, young.into_iter().map(|entry| entry.proposal));
    }

    /// Delivers the entries up to `seq`, in order.
    pub(super) fn deliver_to(&mut self, seq: Seq) {
        while self.delivered < seq {
            let next = self.delivered + 1;
            let proposal = self.log.at(next).map(|entry| entry.proposal.clone());
            let (Some(proposal), Some(position)) = (proposal, self.log.lineage().position(next)) else { break };
            self.delivered = next;
            let id = proposal.id;
            let repeated = self.clients_have.record(&proposal);
            self.outputs.push_back(Output::Deliver { position, proposal, repeated });
            self.settle(id);
        }
    }

    fn settle(&mut self, id: PublishId) {
        if self.pending.settle(id) {
            self.outputs.push_back(Output::Accepted { counter: id.counter });
        }
    }

    /// Trims the entries that exceed the limits, as far as all members hold them.
    pub(super) fn trim(&mut self, held: Seq) {
        self.trim_to(self.log.surplus(self.now).min(held).min(self.delivered));
    }

    /// Trims the log up to `seq`, and forgets what was delivered long ago.
    pub(super) fn trim_to(&mut self, seq: Seq) {
        let before = self.log.base();
        self.log.trim(self.now, seq);
        if self.log.base() > before {
            self.outputs.push_back(Output::Trimmed { base: self.log.base() });
        }
        self.clients_have.forget(self.now, self.log.memory());
    }

    /// Proposes publishes to the master over this link, in several frames if they do not fit into one.
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
    /// `after`. A master that has handed the lease over does this too.
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
}
