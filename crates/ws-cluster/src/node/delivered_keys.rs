//! The idempotency keys of rows of an outbox that this node has delivered. The log knows a key for some minutes. A row
//! that was accepted may stay in its table for longer, if the table's database fails before the row is removed. There
//! are never many such rows, so the last keys are enough, and they are kept for as long as the node runs.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;

use crate::message::publish::OUTBOX_KEY;
use ws_cluster_core::Seq;

/// Number of keys. A master has at most 500 rows that were accepted and not removed. Each further change of the master
/// while the database fails may add as many.
const LIMIT: usize = 8192;

#[derive(Debug, Default)]
pub(crate) struct DeliveredKeys {
    keys: HashSet<Bytes>,
    /// The keys and the numbers of their entries, oldest first.
    order: VecDeque<(Bytes, Seq)>,
}

impl DeliveredKeys {
    /// Notes an entry that this node delivers, if it is a row of an outbox.
    pub(crate) fn note(&mut self, key: Option<Bytes>, seq: Seq) {
        let Some(key) = key.filter(|key| key.starts_with(OUTBOX_KEY)) else { return };
        if !self.keys.insert(key.clone()) {
            return;
        }
        self.order.push_back((key, seq));
        if self.order.len() > LIMIT
            && let Some((oldest, _)) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
    }

    /// Forgets the entries after `after`, which lost their places in the log. The log recognises their keys if they are
    /// proposed again.
    pub(crate) fn cut(&mut self, after: Seq) {
        while let Some((key, _)) = self.order.pop_back_if(|(_, seq)| *seq > after) {
            self.keys.remove(&key);
        }
    }

    pub(crate) fn contains(&self, key: &Bytes) -> bool {
        self.keys.contains(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Bytes {
        [OUTBOX_KEY, number.to_string().as_bytes()].concat().into()
    }

    #[test]
    fn the_last_rows_of_an_outbox_are_remembered_until_they_are_cut() {
        let mut keys = DeliveredKeys::default();
        let count = LIMIT as u64 + 10;
        for seq in 1..=count {
            keys.note(Some(key(seq)), seq);
            keys.note(Some(Bytes::from(format!("of a publisher {seq}"))), seq);
            keys.note(None, seq);
        }
        assert_eq!((keys.keys.len(), keys.order.len()), (LIMIT, LIMIT));
        assert!(!keys.contains(&key(10)) && keys.contains(&key(11)) && keys.contains(&key(count)));
        keys.cut(count - 2);
        assert!(keys.contains(&key(count - 2)) && !keys.contains(&key(count - 1)));
        keys.note(Some(key(count)), count - 1);
        keys.cut(0);
        assert!(keys.keys.is_empty() && keys.order.is_empty());
    }
}
