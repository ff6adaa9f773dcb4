//! Questions about the connections of all nodes, and their answers.

use std::net::IpAddr;

use serde::{Serialize, Serializer, ser::SerializeSeq};
use ws_cluster_core::NodeId;

use super::text;
use crate::message::target::ConnectionId;

/// Largest [`ConnectionQuery::limit`].
pub(crate) const LIMIT: usize = 1000;

/// Most groups that a connection is listed with.
pub(crate) const GROUPS: usize = 20;

/// Which connections [`Server::list_connections`](crate::Server::list_connections) lists: those that match all that is
/// given.
///
/// ```
/// let query = ws_cluster::ConnectionQuery::default().user("ann").limit(10);
/// assert_eq!(query.user.as_deref(), Some("ann"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "a query is answered by `Server::list_connections`"]
pub struct ConnectionQuery {
    /// Connections of this user.
    pub user: Option<String>,
    /// Connections of this session.
    pub session: Option<String>,
    /// Connections in this group.
    pub group: Option<String>,
    /// Connections from this address.
    pub address: Option<IpAddr>,
    /// How many are listed at most; all that match are counted. Default: 100, at most 1,000.
    pub limit: usize,
}

impl Default for ConnectionQuery {
    fn default() -> Self {
        Self { user: None, session: None, group: None, address: None, limit: 100 }
    }
}

impl ConnectionQuery {
    /// Sets the user.
    pub fn user(mut self, id: impl Into<String>) -> Self {
        self.user = Some(id.into());
        self
    }

    /// Sets the session.
    pub fn session(mut self, id: impl Into<String>) -> Self {
        self.session = Some(id.into());
        self
    }

    /// Sets the group.
    pub fn group(mut self, name: impl Into<String>) -> Self {
        self.group = Some(name.into());
        self
    }

    /// Sets the address.
    pub fn address(mut self, address: IpAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// Sets how many connections are listed at most.
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }
}

/// The connections that match a [`ConnectionQuery`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConnectionList {
    /// Some of them, up to the limit, in the order of nodes and then of their connects.
    pub connections: Vec<ConnectionReport>,
    /// How many match on the nodes that answered.
    pub matching: u64,
    /// Nodes of the cluster that did not answer in time, or whose version does not know the question.
    #[serde(serialize_with = "texts")]
    pub silent: Vec<NodeId>,
}

/// One connection, as its node lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConnectionReport {
    /// Its id, as handlers and [`Target::connection`](crate::Target::connection) know it.
    pub id: ConnectionId,
    /// The node that serves it.
    #[serde(serialize_with = "text")]
    pub node: NodeId,
    /// Its user; `None` for a guest.
    pub user: Option<String>,
    /// The beginning of its session's id, which is a secret, and `…`.
    pub session: Option<String>,
    /// The client's address, if it is known.
    pub address: Option<IpAddr>,
    /// Its groups; 20 of them if there are more.
    pub groups: Vec<String>,
    /// How many groups are left out.
    pub more_groups: u64,
    /// When it connected, in seconds since 1970.
    pub since: u64,
    /// Bytes in its send queue, which its socket has not taken yet.
    pub waiting: u64,
}

/// Returns the beginning of a session's id. At least three quarters of it stay secret.
pub(crate) fn shortened_session(session: &str) -> String {
    const SHOWN: usize = 6;
    let shown: String = session.chars().take(SHOWN.min(session.chars().count() / 4)).collect();
    format!("{shown}…")
}

fn texts<S: Serializer>(nodes: &[NodeId], serializer: S) -> Result<S::Ok, S::Error> {
    let mut list = serializer.serialize_seq(Some(nodes.len()))?;
    nodes.iter().try_for_each(|node| list.serialize_element(&node.to_string()))?;
    list.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_a_session_is_not_shown() {
        assert_eq!(shortened_session("0123456789abcdef0123456789abcdef"), "012345…");
        assert_eq!(shortened_session("grüße dich"), "gr…");
        assert_eq!(shortened_session("abc"), "…");
    }
}
