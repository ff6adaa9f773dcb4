//! What a core asks of its driver, and what the pool answers.

use crate::{Announcement, Frame, Lease, LinkId, LogPosition, NodeId, PoolView, Proposal, PublishId, Seq, Term};

/// An instruction to the driver.
#[derive(Debug)]
pub enum Output {
    /// Send this frame over each of these links. The driver encodes it once.
    Send {
        /// The links to send over. There is at least one.
        links: Vec<LinkId>,
        /// The frame to send.
        frame: Frame,
    },
    /// Open a link to this node. The driver answers with [`handle_link_up`](crate::Core::handle_link_up) or
    /// [`handle_dial_failed`](crate::Core::handle_dial_failed).
    Dial {
        /// The node to reach.
        node: NodeId,
        /// The address that the pool has for it.
        address: String,
    },
    /// Close this link. The core has forgotten it already.
    Hangup {
        /// The link to close.
        link: LinkId,
    },
    /// Ask the pool. The driver answers with [`handle_pool`](crate::Core::handle_pool). The core asks one query at a
    /// time.
    Query(Query),
    /// Deliver the entry to this node's own clients.
    Deliver {
        /// Where the entry is in the log.
        position: LogPosition,
        /// The publish.
        proposal: Proposal,
        /// Set if the clients have this message already: this node delivered it before it was cut from the log. The
        /// value is the publish as which they got it, which may be another one with the same idempotency key.
        repeated: Option<PublishId>,
    },
    /// Entries that this node delivered are no longer in the log. The master may append them again, at other
    /// positions.
    Cut {
        /// The last delivered entry that is still in the log.
        after: Seq,
    },
    /// Entries left this node's log because the master's log does not have them.
    Diverged {
        /// How many of them this node proposes again.
        again: u64,
        /// How many are lost: they are older than [`LogConfig::age`](crate::LogConfig::age), or their idempotency
        /// keys are older than what the master remembers. It counts every entry that this node has trimmed, although
        /// the master may have got some of these publishes from other nodes.
        dropped: u64,
    },
    /// Entries were trimmed from the log.
    Trimmed {
        /// The last entry that the log no longer holds.
        base: Seq,
    },
    /// The log was replaced by the master's. The next delivered entry follows `base`.
    Restarted {
        /// The last entry before the new log; `None` if there is none.
        base: Option<LogPosition>,
        /// True if this node has missed entries, because it was away for longer than the log reaches back.
        missed: bool,
    },
    /// The own publish with this counter is accepted: two nodes hold it, or this one if it is provably alone.
    Accepted {
        /// The counter that [`publish`](crate::Core::publish) returned.
        counter: u64,
    },
    /// Send the clients to other nodes: the pool shows a master that this node cannot reach.
    CutOff,
    /// The shutdown is complete. No output follows.
    ShutDown,
}

/// A question to the pool. Each is one atomic statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// Read the lease and all nodes. Answered by [`Answer::View`].
    Read,
    /// Insert or refresh this node's row. Answered by [`Answer::Done`].
    Announce(Announcement),
    /// Renew the lease if it still has this term and master. Answered by [`Answer::Applied`].
    Renew {
        /// The expected term.
        term: Term,
        /// The expected master.
        master: NodeId,
    },
    /// Take the lease if it is still exactly `seen`. Answered by [`Answer::Term`].
    TakeOver {
        /// The lease that this node read last.
        seen: Lease,
        /// The highest term that this node knows. The new term is higher.
        max_seen: Term,
    },
    /// Pass the lease on, if it still has this term and this node as its master. Answered by [`Answer::Applied`].
    HandOver {
        /// The expected term.
        term: Term,
        /// The next master; `None` releases the lease.
        successor: Option<NodeId>,
    },
    /// Insert a lease if there is none. Answered by [`Answer::Done`].
    Restore {
        /// The term of the new lease.
        term: Term,
        /// The master of that term.
        master: Option<NodeId>,
    },
    /// Note that this node is not joined any more. Answered by [`Answer::Done`].
    ClearJoined(NodeId),
    /// Remove this node's row. Answered by [`Answer::Done`].
    Remove(NodeId),
}

/// The pool's answer to the query that was asked last.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// The rows of the pool.
    View(PoolView),
    /// The new term if this node took the lease; `None` if the lease has changed.
    Term(Option<Term>),
    /// True if the statement's condition was met and it took effect.
    Applied(bool),
    /// The statement took effect.
    Done,
    /// There was no answer in time. The statement may have taken effect or not.
    Failed,
}
