//! What this node has handed to its own clients, so that they get nothing twice: neither an entry that was cut after
//! they got it and has another place now, nor another one of its key.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    Proposal, PublishId,
    log::{Marks, TRIMMED_KEYS},
};

#[derive(Default)]
pub(super) struct Delivered {
    /// The highest counter of each origin.
    marks: Marks,
    /// The keys of what lost its place after the clients got it, with the publishes as which they did where those are
    /// known, and from the oldest on.
    keys: HashMap<Bytes, Option<PublishId>>,
    order: VecDeque<(Bytes, Instant)>,
}

impl Delivered {
    /// The clients get this now. The publish as which they have it already: this one, or another with its key.
    pub(super) fn record(&mut self, now: Instant, proposal: &Proposal) -> Option<PublishId> {
        let id = proposal.id;
        // Of one origin nothing new comes after what it published later.
        let covered = self.marks.covers(id).then_some(id);
        self.marks.raise(id, now);
        let key = proposal.key.as_ref().filter(|_| proposal.content.is_some());
        covered.or_else(|| self.keys.get(key?).map(|known| known.unwrap_or(id)))
    }

    /// What the clients got with a key has lost its place. A master that did not know of it may have taken another
    /// publish of that key.
    pub(super) fn lose(&mut self, now: Instant, key: &Bytes, id: Option<PublishId>) {
        if let Entry::Vacant(entry) = self.keys.entry(key.clone()) {
            entry.insert(id);
            self.order.push_back((key.clone(), now));
        }
    }

    /// Forgets what is older than this.
    pub(super) fn forget(&mut self, now: Instant, after: Duration) {
        self.marks.forget(now, after);
        while let Some((_, lost)) = self.order.front()
            && (now.saturating_duration_since(*lost) > after || self.order.len() > TRIMMED_KEYS)
        {
            if let Some((key, _)) = self.order.pop_front() {
                self.keys.remove(&key);
            }
        }
    }
}
