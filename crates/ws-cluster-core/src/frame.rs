//! What nodes say to each other over a link. The encoding belongs to the driver.

use crate::{Entry, Lineage, NodeId, Proposal, Seq, Snapshot, Span, Term};

/// A message between two nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The sender's term. The receiver refuses a frame of a lower term than its own, and follows a higher one.
    pub term: Term,
    /// The content.
    pub body: Body,
}

/// The content of a [`Frame`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Either to either, at the start of a link and after each change: "This is my term, and this is its master."
    Term {
        /// The master and its address, if the sender knows them.
        master: Option<(NodeId, String)>,
    },
    /// Member to candidate: "I have no link to the master of this term; take over." It lapses after one lease.
    Promise,
    /// Node to master: "Let me in; this is my log."
    Join(Join),
    /// New master to a member with a better log: "Send me yours."
    Fetch {
        /// The last entry that both logs have.
        after: Seq,
    },
    /// Member to new master: a piece of its log.
    Tail {
        /// What stands for entries that the member has trimmed; in the first piece only.
        snapshot: Option<Snapshot>,
        /// The spans that the entries belong to.
        spans: Vec<Span>,
        /// Entries without gaps.
        entries: Vec<Entry>,
        /// True in the last piece.
        done: bool,
    },
    /// Master to node: "Our logs are the same up to `agreed`. Cut what follows." With a snapshot: "Replace your log."
    Welcome {
        /// The [`Join::attempt`] that this answers.
        attempt: u64,
        /// The last entry that both logs have.
        agreed: Seq,
        /// What stands for the entries that the master has trimmed.
        snapshot: Option<Snapshot>,
    },
    /// Master to node: the next entries.
    Append {
        /// The spans that begin among the entries.
        spans: Vec<Span>,
        /// Entries that follow those sent before; may be empty.
        entries: Vec<Entry>,
        /// The last entry that all members hold. The node may trim up to it.
        held_by_all: Seq,
    },
    /// Node to master: "I hold all entries up to this one."
    Ack {
        /// The last entry that the sender holds.
        seq: Seq,
    },
    /// Master to node: "You hold all that was in the log when you joined: you are a member."
    Joined,
    /// Master to member: true for "Acknowledge entries at your next tick", false for "Acknowledge entries at once",
    /// which is also what a node does until it is told.
    Defer(bool),
    /// Node to master, after the welcome: publishes that are not in the log yet.
    Propose(Vec<Proposal>),
}

/// A request to join, with a summary of the sender's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// Counts the sender's joins, so that it can tell which one a welcome answers.
    pub attempt: u64,
    /// The last entry that the sender has trimmed.
    pub base: Seq,
    /// The last entry that the sender holds.
    pub last: Seq,
    /// The term of that entry.
    pub last_term: Term,
    /// Which master wrote which part of the log.
    pub lineage: Lineage,
}

impl Frame {
    /// Returns about how many bytes the frame takes on a link.
    pub fn size(&self) -> usize {
        const HEADER: usize = 64;
        let entries = |entries: &[Entry]| entries.iter().map(|entry| entry.proposal.size()).sum::<usize>();
        let snapshot = |snapshot: &Option<Snapshot>| snapshot.as_ref().map_or(0, Snapshot::size);
        HEADER
            + match &self.body {
                Body::Append { entries: list, .. } => entries(list),
                Body::Tail { entries: list, snapshot: base, .. } => entries(list) + snapshot(base),
                Body::Welcome { snapshot: base, .. } => snapshot(base),
                Body::Propose(proposals) => proposals.iter().map(Proposal::size).sum(),
                _ => 0,
            }
    }
}
