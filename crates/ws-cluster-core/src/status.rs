//! What a node reports about itself and its cluster.

use std::{fmt, time::Duration};

use crate::{Core, NodeId, NodeRow, Role, Term, pool_side::Trouble, progress::Progress};

/// The state of a node in its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// True if the node takes clients: it has joined a master or become one, it is not shutting down, and it has not
    /// been without a master for longer than [`cut_off_timeout`](crate::ClusterConfig::cut_off_timeout).
    pub ready: bool,
    /// The highest term that the node has seen.
    pub term: Term,
    /// The master of that term, if the node has joined it.
    pub master: Option<NodeId>,
    /// What is wrong with the node; `None` if all is well. A degraded node still relays what it can; other publishes
    /// wait.
    pub degraded: Option<Degraded>,
    /// The last error of the pool's database, if `degraded` is about the database.
    pub cause: Option<String>,
    /// Messages that this node has dropped since its start: they were in its log, but not in the master's when it
    /// joined again, and they were older than [`LogConfig::age`](crate::LogConfig::age), or had idempotency keys and the
    /// master had gone on for so long that it forgot keys. Each time is logged. If it was apart for longer than the age,
    /// the number is an upper bound: the master may have got some of these messages from other nodes.
    pub dropped: u64,
    /// The nodes of the pool that announced themselves lately, in the order of their first announcement.
    pub nodes: Vec<NodeStatus>,
}

/// A node as the pool shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStatus {
    /// The id of the node.
    pub node: NodeId,
    /// Where other nodes reach it.
    pub address: String,
    /// True if it has joined the present master.
    pub member: bool,
}

/// A follower as its master knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FollowerStatus {
    /// The id of the node.
    pub node: NodeId,
    /// True if it is a member. Others are still sent the log.
    pub member: bool,
    /// The number of entries that it has not acknowledged. With more than two followers, most acknowledge ten times a
    /// second; for these it is 0 until an entry is older than 0.2 s.
    pub lag: u64,
}

/// What a node's log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogStatus {
    /// The number of entries.
    pub entries: u64,
    /// The number of bytes that they count.
    pub bytes: u64,
    /// The time for which the oldest entry has been in this node's log.
    pub age: Duration,
}

/// Why a node is degraded. Its text, from [`as_str`](Self::as_str) or `Display`, is what `/health`, `/ready` and the
/// log say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Degraded {
    /// The node shuts down.
    ShuttingDown,
    /// The node is the master, no follower is linked, and the pool's database fails. Publishes wait.
    Isolated,
    /// The same, but [`accept_when_isolated`](crate::ClusterConfig::accept_when_isolated) is on: publishes are
    /// accepted, and a failover loses them.
    IsolatedAccepting,
    /// Another node announces itself at this node's address.
    AddressConflict,
    /// Another node answers at this node's address. The node cannot start.
    AddressTaken,
    /// The pool's database does not answer.
    PoolSilent,
    /// The pool's database answers reads and refuses writes.
    PoolReadOnly,
    /// The node knows the master and has no link to it.
    NoLinkToMaster,
    /// The node knows no master.
    NoMaster,
    /// The node is the master, and the pool lists other nodes, but none of them is linked to it.
    NoFollowerLinked,
    /// The task that drives the cluster panicked. The process has to be restarted.
    Stopped,
}

impl Degraded {
    /// Returns the text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ShuttingDown => "shutting down",
            Self::Isolated => "isolated: no follower is linked and the pool's database fails; publishes wait",
            Self::IsolatedAccepting => {
                "isolated: accept_when_isolated is on, and a failover loses what is accepted now"
            }
            Self::AddressConflict => {
                "another node announces itself at this node's address: give each node an address of its own"
            }
            Self::AddressTaken => "another node answers at this node's address",
            Self::PoolSilent => "the pool's database does not answer",
            Self::PoolReadOnly => "the pool's database accepts no writes",
            Self::NoLinkToMaster => "no link to the master",
            Self::NoMaster => "no master",
            Self::NoFollowerLinked => "alone: the other nodes are not linked",
            Self::Stopped => "the cluster's task ended by a panic",
        }
    }
}

impl fmt::Display for Degraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Core {
    /// Returns the state of this node.
    pub fn status(&self) -> Status {
        let mut status = Status::default();
        self.update_status(&mut status);
        status
    }

    /// Sets a status to the state of this node. This allocates nothing while the nodes of the pool stay the same, so a
    /// driver can do it after each event.
    pub fn update_status(&self, status: &mut Status) {
        let cx = &self.cx;
        let master = match &self.role {
            Role::Master(master) => master.is_serving().then_some(cx.me),
            Role::Follower(follower) => cx.master.filter(|_| follower.is_joined()),
        };
        let trouble = cx.pool.trouble(cx.now, cx.config.query_timeout);
        let degraded = match &self.role {
            _ if cx.shutdown_began_at.is_some() => Some(Degraded::ShuttingDown),
            Role::Master(master) if trouble.is_some() && master.is_isolated(cx) => {
                let accepts = cx.config.accept_when_isolated;
                Some(if accepts { Degraded::IsolatedAccepting } else { Degraded::Isolated })
            }
            _ if cx.pool.is_displaced(cx.now, cx.config.member_timeout) => Some(Degraded::AddressConflict),
            _ if trouble == Some(Trouble::Silent) => Some(Degraded::PoolSilent),
            _ if trouble == Some(Trouble::ReadOnly) => Some(Degraded::PoolReadOnly),
            Role::Follower(_) if master.is_none() && cx.master.is_some() => Some(Degraded::NoLinkToMaster),
            _ if master.is_none() => Some(Degraded::NoMaster),
            Role::Master(master) if master.has_lost_all_members(cx) => Some(Degraded::NoFollowerLinked),
            _ => None,
        };
        let is_member = |row: &NodeRow| row.joined == Some(cx.term);
        let shown = status.nodes.iter().map(|shown| (shown.node, shown.address.as_str(), shown.member));
        if !cx.live_rows().map(|row| (row.node, row.address.as_str(), is_member(row))).eq(shown) {
            let nodes = cx.live_rows().map(|row| NodeStatus {
                node: row.node,
                address: row.address.clone(),
                member: is_member(row),
            });
            status.nodes = nodes.collect();
        }
        // A client that connects before the first entry would have no position.
        status.ready = cx.ready && cx.delivered > 0;
        (status.term, status.master, status.degraded) = (cx.term, master, degraded);
        (status.cause, status.dropped) = (None, cx.dropped);
    }

    /// Returns the followers, if this node is the master.
    pub fn followers(&self) -> Vec<FollowerStatus> {
        let Role::Master(master) = &self.role else { return Vec::new() };
        let status = |(&node, follower): (&NodeId, &Progress)| FollowerStatus {
            node,
            member: follower.joined,
            lag: follower.lag(&self.cx),
        };
        master.followers.iter().map(status).collect()
    }

    /// Returns what the log holds.
    pub fn log_status(&self) -> LogStatus {
        let log = &self.cx.log;
        let (bytes, age) = log.extent(self.cx.now);
        LogStatus { entries: log.last() - log.base(), bytes: bytes as u64, age }
    }
}
