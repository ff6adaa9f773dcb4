//! What this node has delivered to its own clients, so that it delivers nothing twice: neither an entry that was cut
//! after its delivery and appended again, nor another entry with the same idempotency key.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    Proposal, PublishId,
    log::{Marks, TRIMMED_KEYS},
};

#[derive(Default)]
pub(super) struct Delivered {
    /// The highest delivered counter of each origin.
    marks: Marks,
    /// The keys of entries that were cut after their delivery, each with the publish that the clients got, if it is
    /// known. Oldest first.
    keys: HashMap<Bytes, Option<PublishId>>,
    order: VecDeque<(Bytes, Instant)>,
}

impl Delivered {
    /// Notes a delivery. Returns the publish as which the clients have the message already: this one, or another with
    /// the same key.
    pub(super) fn record(&mut self, proposal: &Proposal) -> Option<PublishId> {
        let id = proposal.id;
        // An origin's publishes are delivered in their order.
        let covered = self.marks.covers(id).then_some(id);
        self.marks.raise(id);
        let key = proposal.key.as_ref().filter(|_| proposal.content.is_some());
        covered.or_else(|| self.keys.get(key?).map(|known| known.unwrap_or(id)))
    }

    /// Notes that a delivered entry with a key was cut. A master that did not know the entry may have appended another
    /// publish with that key.
    pub(super) fn lose(&mut self, now: Instant, key: &Bytes, id: Option<PublishId>) {
        if let Entry::Vacant(entry) = self.keys.entry(key.clone()) {
            entry.insert(id);
            self.order.push_back((key.clone(), now));
        }
    }

    /// Forgets keys of entries that were cut longer ago than `after`.
    pub(super) fn forget(&mut self, now: Instant, after: Duration) {
        while let Some((_, lost)) = self.order.front()
            && (now.saturating_duration_since(*lost) > after || self.order.len() > TRIMMED_KEYS)
        {
            if let Some((key, _)) = self.order.pop_front() {
                self.keys.remove(&key);
            }
        }
    }
}
