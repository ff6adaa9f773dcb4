//! What the pool says: the lease of the master and the rows of the nodes.

use std::time::Duration;

use crate::{NodeId, Term};

/// The lease of a cluster: it says who is master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Grows by one or more with every change of the master.
    pub term: Term,
    /// The master, or `None` after it released the lease.
    pub master: Option<NodeId>,
    /// Grows by a random stride with every write of the lease. If the beat does not change, the master no longer renews
    /// the lease. A plain counter would not show that: a database that failed over to a replica without the last writes
    /// counts up to the same number again.
    pub beat: u64,
}

/// The row of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// Its number in the order of first announcement. The node with the lowest number tries first to become master.
    pub ord: u64,
    /// The id of the node.
    pub node: NodeId,
    /// Where other nodes reach it: `ws://HOST:PORT` or `wss://HOST:PORT`, at most 255 bytes.
    pub address: String,
    /// The term in which it last completed a join.
    pub joined: Option<Term>,
    /// Changes with every announcement of the node, even if the pool's clock stood still or went back. Compare it
    /// for equality only: if it does not change, the node no longer announces itself.
    pub stamp: u64,
    /// Time since it last announced itself, on the pool's own clock; zero if that clock was set back since. It is for
    /// display, because the servers of a replicated database may have different clocks.
    pub age: Duration,
}

/// The rows of the pool. The lease is read before the nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolView {
    /// `None` if the cluster has no lease yet or has lost it.
    pub lease: Option<Lease>,
    /// All rows of the cluster, by `ord`.
    pub nodes: Vec<NodeRow>,
}

/// What a node announces about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Which run of a server this is.
    pub node: NodeId,
    /// Where other nodes reach it; at most 255 bytes of ASCII.
    pub address: String,
    /// The term in which it joined; `None` leaves the row's value.
    pub joined: Option<Term>,
}
