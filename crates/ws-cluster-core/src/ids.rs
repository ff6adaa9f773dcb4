//! The identifiers of the core: nodes, terms, log positions, publishes and links.

use std::fmt;

/// One run of one server: 16 random bytes, drawn anew at every start, so that a restarted process is never taken for
/// its predecessor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 16]);

impl NodeId {
    /// Makes the id with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, as the pool stores them and links carry them.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Eight digits tell the nodes of a cluster apart and keep log lines short.
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The number of a term: the time in which one node is master. Terms only grow, and a term has at most one master.
pub type Term = u64;

/// A link between two nodes, as the driver numbers them.
pub type LinkId = u64;

/// The number of an entry in the log: 1 for the first, without gaps, across terms.
pub type Seq = u64;

/// The position of an entry, with the master that wrote it. Two masters that wrote different entries with the same
/// number have different positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPosition {
    /// The term of the entry.
    pub term: Term,
    /// The master of that term.
    pub master: NodeId,
    /// The number of the entry.
    pub seq: Seq,
}

/// Identifies a publish for ever: the publishing node and its publish counter. A node draws a new id at every start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishId {
    /// The node that took the publish.
    pub origin: NodeId,
    /// Counts the publishes of that node; 1 for the first.
    pub counter: u64,
}
