//! What the log is made of: publishes, and entries that have a position.

use bytes::Bytes;

use crate::{PublishId, Seq, Term};

/// A publish on its way into the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Which publish this is.
    pub id: PublishId,
    /// The publisher's idempotency key.
    pub key: Option<Bytes>,
    /// The message, in an encoding that the core does not know. `None` if the log has another entry with the same
    /// key: there is nothing to deliver, but the publishing node learns that its publish is in the log.
    pub content: Option<Bytes>,
}

impl Proposal {
    /// Returns the bytes that count against the limits of the log and of pending publishes.
    pub fn size(&self) -> usize {
        // What an entry takes beside its content: the struct and its share of the log's maps.
        const OVERHEAD: usize = 160;
        OVERHEAD + self.key.as_ref().map_or(0, Bytes::len) + self.content.as_ref().map_or(0, Bytes::len)
    }
}

/// A proposal in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The term in which a master appended it.
    pub term: Term,
    /// Its number in the log.
    pub seq: Seq,
    /// The publish.
    pub proposal: Proposal,
}
