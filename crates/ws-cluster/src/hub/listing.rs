//! The clients of this node as an administrator lists them.

use std::sync::Arc;

use super::{Client, Hub, index::Index};
use crate::report::{ConnectionQuery, ConnectionReport, GROUPS, LIMIT, shortened_session};

impl Hub {
    /// Returns how many clients with a user and how many guests are delivered to.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let index = self.index.read();
        let users = index.with_user();
        (users, index.clients.len() - users)
    }

    /// Returns how many bytes wait in the send queues of all clients. It takes a look at each of them.
    #[cfg(feature = "metrics")]
    pub(crate) fn waiting(&self) -> u64 {
        let index = self.index.read();
        let clients: Vec<_> = index.clients.iter().cloned().collect();
        // Deliveries must not wait for the sum.
        drop(index);
        clients.iter().map(|client| client.queue.waiting() as u64).sum()
    }

    /// Returns the clients that match, up to the limit, in the order in which they came, and how many match.
    pub(crate) fn list(&self, query: &ConnectionQuery) -> (Vec<ConnectionReport>, u64) {
        let index = self.index.read();
        let mut matching: Vec<_> = candidates(&index, query).filter(|client| matches(client, query)).cloned().collect();
        drop(index);
        matching.sort_unstable_by_key(|client| client.id.local);
        let listed = matching.iter().take(query.limit.min(LIMIT)).map(|client| self.describe(client));
        (listed.collect(), matching.len() as u64)
    }

    fn describe(&self, client: &Client) -> ConnectionReport {
        let membership = client.membership();
        let mut groups: Vec<String> = membership.groups.iter().map(ToString::to_string).collect();
        let more_groups = groups.len().saturating_sub(GROUPS) as u64;
        groups.sort_unstable();
        groups.truncate(GROUPS);
        let (user, session) = (membership.user.as_deref(), membership.session.as_deref());
        let (user, session) = (user.map(str::to_owned), session.map(shortened_session));
        drop(membership);
        ConnectionReport {
            id: client.known_as(),
            node: self.node,
            user,
            session,
            address: client.handshake.remote_ip(),
            groups,
            more_groups,
            since: client.connected_at(),
            waiting: client.queue.waiting() as u64,
        }
    }
}

/// Returns the clients among which those that match are, arriving ones included.
fn candidates<'a>(index: &'a Index, query: &'a ConnectionQuery) -> Box<dyn Iterator<Item = &'a Arc<Client>> + 'a> {
    let arriving = index.arriving.values();
    match (&query.user, &query.session, &query.group) {
        (Some(user), ..) => Box::new(index.of_user(user).chain(arriving)),
        (_, Some(session), _) => Box::new(index.of_session(session).chain(arriving)),
        (.., Some(group)) => Box::new(index.in_group(group).chain(arriving)),
        _ => Box::new(index.clients.iter().chain(arriving)),
    }
}

fn matches(client: &Client, query: &ConnectionQuery) -> bool {
    let membership = client.membership();
    let is = |own: Option<&str>, asked: &Option<String>| asked.is_none() || own == asked.as_deref();
    is(membership.user.as_deref(), &query.user)
        && is(membership.session.as_deref(), &query.session)
        && query.group.as_ref().is_none_or(|group| membership.groups.contains(group.as_str()))
        && query.address.is_none_or(|address| {
            client.handshake.remote_ip().map(|ip| ip.to_canonical()) == Some(address.to_canonical())
        })
}
