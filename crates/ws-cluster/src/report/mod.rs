//! What nodes tell each other and an administrator about themselves: reports, and connections that match a question.
//! `note` is the form in which it travels over links. Pure.

use serde::{Serialize, Serializer};
use ws_cluster_core::{NodeId, Term};

mod connections;
pub(crate) mod note;

pub use connections::{ConnectionList, ConnectionQuery, ConnectionReport};
pub(crate) use connections::{GROUPS, LIMIT, shortened_session};

/// What a node tells about itself: [`Server::report`](crate::Server::report). Rates and times are those of the last
/// five seconds or so. In JSON, ids are text and members have the names of the fields.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct NodeReport {
    /// The node.
    #[serde(serialize_with = "text")]
    pub node: NodeId,
    /// Where other nodes reach it.
    pub address: String,
    /// Its role in the term.
    pub role: NodeRole,
    /// The highest term that the node has seen.
    pub term: Term,
    /// True if the node takes clients.
    pub ready: bool,
    /// What is wrong with the node or its outbox, with the database's own words if there are any; `None` if all is
    /// well.
    pub degraded: Option<String>,
    /// True if it has an [outbox](crate::ServerBuilder::outbox); `None` if a node of an older version does not say.
    pub outbox: Option<bool>,
    /// The version of the library that it runs.
    pub version: String,
    /// The time since the server was started, in seconds.
    pub uptime_seconds: u64,
    /// Open connections, those whose handlers still run included.
    pub connections: u64,
    /// Those of them that have a user and get messages.
    pub user_connections: u64,
    /// Those of them that are guests and get messages.
    pub guest_connections: u64,
    /// Messages that were queued for its clients, each counted for each client.
    pub deliveries_per_second: f64,
    /// Messages that came from its clients.
    pub messages_per_second: f64,
    /// Publishes of this node that were accepted.
    pub publishes_per_second: f64,
    /// The median time from a publish on this node to its acceptance, in milliseconds; `None` if there was none.
    pub publish_p50_ms: Option<f64>,
    /// The time that 99 of 100 publishes did not exceed. Both are exact to about a factor of two.
    pub publish_p99_ms: Option<f64>,
    /// The mean time in which the pool answered a query, in milliseconds; `None` if it answered none.
    pub pool_ms: Option<f64>,
    /// On a follower: how many entries of the log it had not acknowledged, as the master told last.
    pub lag: Option<u64>,
    /// On the master: its followers.
    pub followers: Vec<FollowerReport>,
    /// The links of the node to other nodes.
    pub links: Vec<LinkReport>,
    /// Entries in the log, which are kept for clients and nodes that come back.
    pub log_entries: u64,
    /// Bytes that the log counts for them.
    pub log_bytes: u64,
    /// The time for which the oldest of them has been in this node's log, in seconds.
    pub log_age_seconds: u64,
    /// How old the report is, in milliseconds: 0 for the node's own.
    pub age_ms: u64,
}

/// The role of a node in a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NodeRole {
    /// It gives every message its place in the order.
    Master,
    /// It has joined the master.
    Follower,
    /// It has joined no master: it starts, or there is none, or it has no link to it.
    Candidate,
}

impl NodeRole {
    /// Returns its name: `master`, `follower` or `candidate`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
        }
    }
}

/// What the master knows of a follower.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FollowerReport {
    /// The follower.
    #[serde(serialize_with = "text")]
    pub node: NodeId,
    /// True if it is a member. Others are still sent the log.
    pub member: bool,
    /// How many entries of the log it has not acknowledged.
    pub lag: u64,
}

/// A link between two nodes, as one of them sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LinkReport {
    /// The node at the other end.
    #[serde(serialize_with = "text")]
    pub peer: NodeId,
    /// True if this node dialled it.
    pub dialled: bool,
    /// Which way the order's messages go.
    pub relay: Relay,
}

/// Which way messages of the order go over a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Relay {
    /// From this node, which is the master, to the peer.
    To,
    /// From the peer, which is the master, to this node.
    From,
    /// Neither: the link is new, or no longer needed.
    None,
}

fn text<S: Serializer>(node: &NodeId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(node)
}
