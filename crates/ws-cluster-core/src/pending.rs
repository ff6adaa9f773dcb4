//! The publishes that this node still has to see in the log: its own, and those of entries that were cut from its log.
//! It proposes them again to each new master, and keeps the order of each publisher.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{NodeId, Proposal, PublishId};

pub(crate) struct PendingPublishes {
    me: NodeId,
    limit: usize,
    size: usize,
    last: u64,
    /// This node's own publishes that it has not delivered, by counter.
    pending: BTreeMap<u64, Waiting>,
    /// The publishes of entries that were cut from the log, by origin and counter.
    returned: BTreeMap<PublishId, Waiting>,
}

struct Waiting {
    proposal: Proposal,
    since: Instant,
}

/// Too many bytes of publishes are pending. The publish was not taken; it may be tried again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too many publishes are pending")
    }
}

impl std::error::Error for Busy {}

impl PendingPublishes {
    pub(crate) fn new(me: NodeId, limit: usize) -> Self {
        Self { me, limit, size: 0, last: 0, pending: BTreeMap::new(), returned: BTreeMap::new() }
    }

    pub(crate) fn publish(&mut self, now: Instant, content: Bytes, key: Option<Bytes>) -> Result<u64, Busy> {
        let counter = self.last + 1;
        let id = PublishId { origin: self.me, counter };
        let proposal = Proposal { id, key, content: Some(content) };
        // A single publish always fits. Otherwise one as large as the limit could never be sent.
        if self.size > 0 && self.size + proposal.size() > self.limit {
            return Err(Busy);
        }
        self.last = counter;
        self.size += proposal.size();
        self.pending.insert(counter, Waiting { proposal, since: now });
        Ok(counter)
    }

    /// Takes back the publishes of entries that were cut from the log.
    pub(crate) fn repropose(&mut self, now: Instant, proposals: impl IntoIterator<Item = Proposal>) {
        for proposal in proposals {
            let id = proposal.id;
            // Own publishes that were never delivered are still pending.
            if id.origin != self.me || !self.pending.contains_key(&id.counter) {
                self.returned.insert(id, Waiting { proposal, since: now });
            }
        }
    }

    /// Removes a publish that the log has: its entry was delivered here, or was trimmed. Returns true if it was pending
    /// and an own publish.
    pub(crate) fn settle(&mut self, id: PublishId) -> bool {
        // The log takes the publishes of one origin in their order, so older ones are in the log or will never be.
        let older = PublishId { counter: 0, ..id };
        while let Some((&covered, _)) = self.returned.range(older..=id).next() {
            self.returned.remove(&covered);
        }
        if id.origin != self.me {
            return false;
        }
        let settled = self.pending.remove(&id.counter);
        self.size -= settled.as_ref().map_or(0, |waiting| waiting.proposal.size());
        // The same holds for own publishes. If the nodes that held one trimmed it before another node became master,
        // its outcome stays unknown.
        while let Some(first) = self.pending.first_entry().filter(|first| *first.key() < id.counter) {
            self.size -= first.remove().proposal.size();
        }
        settled.is_some()
    }

    /// Removes publishes that have been pending for longer than `after`. One may be in the log without this node's
    /// knowledge, and logs recognise its key only for a limited time. No caller waits for it any more.
    pub(crate) fn forget(&mut self, now: Instant, after: Duration) {
        let waits = |waiting: &Waiting| now.saturating_duration_since(waiting.since) <= after;
        self.returned.retain(|_, waiting| waits(waiting));
        // The order of their counters is the order of their times.
        while let Some(first) = self.pending.first_entry().filter(|first| !waits(first.get())) {
            self.size -= first.remove().proposal.size();
        }
    }

    /// Removes the publishes with idempotency keys. Their outcome is unknown.
    pub(crate) fn forget_keyed(&mut self) {
        let size = &mut self.size;
        self.returned.retain(|_, waiting| waiting.proposal.key.is_none());
        self.pending.retain(|_, Waiting { proposal, .. }| {
            let stays = proposal.key.is_none();
            *size -= if stays { 0 } else { proposal.size() };
            stays
        });
    }

    /// Takes the contents from the publishes that repeat others by their keys.
    pub(crate) fn empty_repeats(&mut self, repeats: impl Fn(PublishId, &Bytes) -> bool) {
        let all = self.returned.values_mut().map(|waiting| (false, waiting));
        for (counts, Waiting { proposal, .. }) in all.chain(self.pending.values_mut().map(|waiting| (true, waiting))) {
            if proposal.key.as_ref().is_some_and(|key| repeats(proposal.id, key)) {
                let before = proposal.size();
                proposal.content = None;
                self.size -= if counts { before - proposal.size() } else { 0 };
            }
        }
    }

    /// Returns the publishes of cut entries, by origin and counter. They are proposed before the own ones, so that no
    /// publish overtakes an earlier one of the same publisher.
    pub(crate) fn returned(&self) -> impl Iterator<Item = &Proposal> {
        self.returned.values().map(|waiting| &waiting.proposal)
    }

    /// Returns the own publishes after the one with this counter, in their order.
    pub(crate) fn pending_after(&self, counter: u64) -> impl Iterator<Item = &Proposal> {
        self.pending.range(counter + 1..).map(|(_, waiting)| &waiting.proposal)
    }

    /// Returns the ids of all pending publishes.
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
