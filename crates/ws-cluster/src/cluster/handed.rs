//! What this node has handed to its own clients, so that they get nothing twice: neither an entry that was cut after
//! they got it and has another place now, nor one with a key that they have seen.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    Proposal, Ticket,
    log::{Marks, TRIMMED_KEYS},
};

#[derive(Default)]
pub(super) struct Handed {
    /// The highest counter of each origin.
    marks: Marks,
    /// The publish that came with each key, and the keys from the oldest on.
    keys: HashMap<Bytes, Ticket>,
    order: VecDeque<(Bytes, Instant)>,
}

impl Handed {
    /// The clients get this now. The publish as which they have it already: this one, or another with its key.
    pub(super) fn hand(&mut self, now: Instant, proposal: &Proposal) -> Option<Ticket> {
        let ticket = proposal.ticket;
        // Of one origin nothing new comes after what it published later.
        let covered = self.marks.covers(ticket).then_some(ticket);
        self.marks.raise(ticket, now);
        let Some(key) = proposal.key.as_ref().filter(|_| proposal.content.is_some()) else { return covered };
        // Two masters that did not know of each other each took one of them.
        let known = self.keys.get(key).copied();
        if known.is_none() {
            self.keys.insert(key.clone(), ticket);
            self.order.push_back((key.clone(), now));
        }
        covered.or(known)
    }

    /// Forgets what is older than this.
    pub(super) fn forget(&mut self, now: Instant, after: Duration) {
        self.marks.forget(now, after);
        while let Some((_, handed)) = self.order.front()
            && (now.saturating_duration_since(*handed) > after || self.order.len() > TRIMMED_KEYS)
        {
            if let Some((key, _)) = self.order.pop_front() {
                self.keys.remove(&key);
            }
        }
    }
}
