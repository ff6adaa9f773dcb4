//! What the log is made of: an entry at its place in the one order, and a proposal that has no place yet.

use bytes::Bytes;

use super::{NodeId, Term};

/// The place of an entry: counted from 1, without gaps, across terms.
pub(crate) type Seq = u64;

/// A place with the master that wrote it: tells apart what two masters wrote at one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) term: Term,
    pub(crate) owner: NodeId,
    pub(crate) seq: Seq,
}

/// A publish as its origin counted it: who published, and the how-manieth it was. Unique for ever, since a node
/// draws a new id at every start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket {
    pub(crate) origin: NodeId,
    pub(crate) counter: u64,
}

/// A publish on its way to the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proposal {
    pub(crate) ticket: Ticket,
    /// It stood in somebody's log before, at a place that was cut away: it may have been delivered there.
    pub(crate) late: bool,
    /// The publisher's idempotency key.
    pub(crate) key: Option<Bytes>,
    /// `None` where another entry had the same key already: there is nothing to deliver, but the origin learns that
    /// its publish is in the log.
    pub(crate) content: Option<Bytes>,
}

impl Proposal {
    /// Bytes that count against the limits of log and outbox.
    pub(crate) fn size(&self) -> usize {
        // What an entry takes beside its content: the struct and its share of the log's maps.
        const OVERHEAD: usize = 160;
        OVERHEAD + self.key.as_ref().map_or(0, Bytes::len) + self.content.as_ref().map_or(0, Bytes::len)
    }
}

/// A proposal at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) term: Term,
    pub(crate) seq: Seq,
    pub(crate) proposal: Proposal,
}
