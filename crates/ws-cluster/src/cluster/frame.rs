//! What nodes say to one another over a link. How it is encoded is known in [`wire`](crate::wire) only.

use super::{Entry, Lineage, NodeId, Proposal, Seq, Snapshot, Span, Term};

/// A frame says in which term it was sent: one of a lower term than the receiver's is refused, one of a higher term
/// is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) term: Term,
    pub(crate) body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// Either to either, at the start of a link and whenever it has news: who owns the term, and where.
    Standing { owner: Option<(NodeId, String)> },
    /// Member to candidate: "I have no link to the owner of this term; take over." Lapses after one lease.
    Promise,
    /// Node to owner: "Let me in; this is my log."
    Join(Join),
    /// New owner to a member with a better log: "send me yours after this place."
    Fetch { after: Seq },
    /// Member to new owner: a piece of its log; the last piece says so.
    Tail { snapshot: Option<Snapshot>, spans: Vec<Span>, entries: Vec<Entry>, done: bool },
    /// Owner to node: "Our logs agree up to `agreed`; cut what is behind", or, with a snapshot, "start anew".
    Welcome { attempt: u64, agreed: Seq, snapshot: Option<Snapshot> },
    /// Owner to node: the entries that follow, the spans that begin among them, and the place that all members hold.
    Append { spans: Vec<Span>, entries: Vec<Entry>, held: Seq },
    /// Node to owner: "I hold all up to this place."
    Ack { seq: Seq },
    /// Owner to node: "You have all that was in the log when you joined: you are a member."
    Joined,
    /// Node to owner, after the welcome: publishes without a place.
    Propose(Vec<Proposal>),
}

/// A node's log in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Join {
    /// Tells the answers to repeated joins apart.
    pub(crate) attempt: u64,
    pub(crate) base: Seq,
    pub(crate) last: Seq,
    pub(crate) last_term: Term,
    pub(crate) lineage: Lineage,
}

impl Frame {
    /// About as many bytes as it takes on a link.
    pub(crate) fn size(&self) -> usize {
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
