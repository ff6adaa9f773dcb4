//! What a node still has to see in the cluster's order: its own publishes, and entries that were cut from its log,
//! whoever published them. All of it is proposed anew to every new master, in an order that keeps each publisher's.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{NodeId, Proposal, PublishId};

pub(crate) struct PendingPublishes {
    me: NodeId,
    limit: usize,
    size: usize,
    last: u64,
    /// Own publishes that this node has not delivered, by counter.
    pending: BTreeMap<u64, Waiting>,
    /// Entries cut from the log after they had been delivered or came from others, by origin and counter.
    returned: BTreeMap<PublishId, Waiting>,
}

struct Waiting {
    proposal: Proposal,
    since: Instant,
}

/// The outbox is full.
#[derive(Debug, PartialEq, Eq)]
pub struct Busy;

impl PendingPublishes {
    pub(crate) fn new(me: NodeId, limit: usize) -> Self {
        Self { me, limit, size: 0, last: 0, pending: BTreeMap::new(), returned: BTreeMap::new() }
    }

    pub(crate) fn publish(&mut self, now: Instant, content: Bytes, key: Option<Bytes>) -> Result<u64, Busy> {
        let counter = self.last + 1;
        let id = PublishId { origin: self.me, counter };
        let proposal = Proposal { id, key, content: Some(content) };
        // A single publish always fits, or one of the size of the limit could never be sent.
        if self.size > 0 && self.size + proposal.size() > self.limit {
            return Err(Busy);
        }
        self.last = counter;
        self.size += proposal.size();
        self.pending.insert(counter, Waiting { proposal, since: now });
        Ok(counter)
    }

    /// Takes back entries that were cut from the log.
    pub(crate) fn repropose(&mut self, now: Instant, proposals: impl IntoIterator<Item = Proposal>) {
        for proposal in proposals {
            let id = proposal.id;
            // Own ones that were never delivered still wait here, in their place.
            if id.origin != self.me || !self.pending.contains_key(&id.counter) {
                self.returned.insert(id, Waiting { proposal, since: now });
            }
        }
    }

    /// Drops what the log has: an entry was delivered here, or is known to be before the log's base. Whether it was
    /// an own publish that somebody waits for.
    pub(crate) fn settle(&mut self, id: PublishId) -> bool {
        // Of one origin nothing gets a place after what it published later: what is older was dropped as known.
        let older = PublishId { counter: 0, ..id };
        while let Some((&covered, _)) = self.returned.range(older..=id).next() {
            self.returned.remove(&covered);
        }
        if id.origin != self.me {
            return false;
        }
        let settled = self.pending.remove(&id.counter);
        self.size -= settled.as_ref().map_or(0, |waiting| waiting.proposal.size());
        // Nor do own ones: where those who had them trimmed them before a master that had not took over, what became of
        // them stays unknown.
        while let Some(first) = self.pending.first_entry().filter(|first| *first.key() < id.counter) {
            self.size -= first.remove().proposal.size();
        }
        settled.is_some()
    }

    /// Drops what has waited for so long. It may have been given a place that its node never saw, and is not known by
    /// it for ever; nobody waits for its acceptance any more.
    pub(crate) fn forget(&mut self, now: Instant, after: Duration) {
        let waits = |waiting: &Waiting| now.saturating_duration_since(waiting.since) <= after;
        self.returned.retain(|_, waiting| waits(waiting));
        // In the order of their counters they are in that of time.
        while let Some(first) = self.pending.first_entry().filter(|first| !waits(first.get())) {
            self.size -= first.remove().proposal.size();
        }
    }

    /// What was cut, by origin and counter: proposed before the pending, so that no publish overtakes an earlier one
    /// of the same publisher.
    pub(crate) fn returned(&self) -> impl Iterator<Item = &Proposal> {
        self.returned.values().map(|waiting| &waiting.proposal)
    }

    /// Own publishes after the one with this counter, in their order.
    pub(crate) fn pending_after(&self, counter: u64) -> impl Iterator<Item = &Proposal> {
        self.pending.range(counter + 1..).map(|(_, waiting)| &waiting.proposal)
    }

    /// All that is not settled.
    pub(crate) fn ids(&self) -> impl Iterator<Item = PublishId> {
        self.returned.keys().copied().chain(self.pending.values().map(|waiting| waiting.proposal.id))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.returned.is_empty() && self.pending.is_empty()
    }

    #[cfg(any(test, feature = "simulator"))]
    pub(crate) fn holds(&self, id: PublishId) -> bool {
        self.returned.contains_key(&id) || (id.origin == self.me && self.pending.contains_key(&id.counter))
    }
}
