//! Who is connected to this node, found by user, session, group and property without looking at the rest; delivers
//! to them what the cluster hands over. How a client's socket takes it is in [`connection`](crate::connection).

use std::{
    borrow::{Borrow, Cow},
    collections::{HashMap, HashSet, hash_map::Entry},
    hash::Hash,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use tokio::sync::watch;

use crate::{
    auth::{Authenticator, Closed},
    close::CloseCode,
    cluster::{NodeId, Term},
    connection::{Client, Member, Membership, property_text},
    driver::{Deliver, Delivery},
    target::{ConnectionId, Selection, Target},
    wire::{client::Outgoing, content::Content},
};

/// What clients are told when the node shuts down.
const RESTART: &str = "the server restarts";

/// The clients of this node.
pub(crate) struct Hub {
    node: NodeId,
    /// Told of closed sessions before their connections are, so that none comes back on what it remembers.
    authenticator: Arc<dyn Authenticator>,
    next: AtomicU64,
    /// Many read (deliveries), few write (comings, goings and changes of membership). A synchronous lock, held for
    /// one pass over the clients a message is for and never across an await: whoever is welcomed during a pass
    /// waits for its end, and so sees every later entry and, in its queue, in their order.
    index: RwLock<Index>,
    /// The term of the last delivery, and the first connection that came in it.
    term: Mutex<(Term, u64)>,
    admission: Mutex<Admission>,
    /// Connections that are not over yet. A watch, since a shutdown waits for its zero.
    open: watch::Sender<usize>,
}

#[derive(Default)]
struct Index {
    clients: HashMap<u64, Arc<Client>>,
    /// Not welcome before they authenticate: nothing is delivered to them, but they are closed with the rest.
    arriving: HashMap<u64, Arc<Client>>,
    users: Groups<Arc<str>>,
    sessions: Groups<Arc<str>>,
    groups: Groups<Arc<str>>,
    properties: Groups<(Arc<str>, Arc<str>)>,
    /// Shut down: who still arrives is closed at once.
    closed: bool,
}

/// The connections under each key; no key without one.
type Groups<K> = HashMap<K, HashSet<u64>>;

#[derive(Default)]
struct Admission {
    closed: bool,
    by_ip: HashMap<IpAddr, usize>,
}

/// Why a client is refused before the upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Too many connections from its address: 429.
    Address,
    /// Too many connections on this node: 503.
    Node,
    /// The node shuts down: 503.
    ShuttingDown,
}

/// A place among the connections that are allowed; given back when dropped.
pub(crate) struct Slot {
    hub: Arc<Hub>,
    ip: Option<IpAddr>,
}

/// A client that the hub knows, until this is dropped.
pub(crate) struct Registration {
    hub: Arc<Hub>,
    client: Arc<Client>,
}

impl Hub {
    pub(crate) fn new(node: NodeId, authenticator: Arc<dyn Authenticator>) -> Self {
        Self {
            node,
            authenticator,
            next: AtomicU64::new(1),
            index: RwLock::default(),
            term: Mutex::new((0, 0)),
            admission: Mutex::default(),
            open: watch::Sender::new(0),
        }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// An id that no other connection has or had.
    pub(crate) fn next_id(&self) -> ConnectionId {
        ConnectionId { node: self.node, local: self.next.fetch_add(1, Ordering::Relaxed) }
    }

    /// Takes a place for a connection, where the limits leave one.
    pub(crate) fn admit(self: &Arc<Self>, ip: Option<IpAddr>, per_ip: usize, total: usize) -> Result<Slot, Refusal> {
        let mut admission = self.admission.lock();
        if admission.closed {
            return Err(Refusal::ShuttingDown);
        }
        if *self.open.borrow() >= total {
            return Err(Refusal::Node);
        }
        if let Some(ip) = ip {
            match admission.by_ip.entry(ip) {
                Entry::Occupied(entry) if *entry.get() >= per_ip => return Err(Refusal::Address),
                entry => *entry.or_default() += 1,
            }
        }
        self.open.send_modify(|open| *open += 1);
        Ok(Slot { hub: self.clone(), ip })
    }

    /// Knows the client from now on, without delivering to it yet.
    pub(crate) fn arrive(self: &Arc<Self>, client: Arc<Client>) -> Registration {
        let mut index = self.index.write();
        index.arriving.insert(client.id.local, client.clone());
        if index.closed {
            client.outbox.close(CloseCode::Restart, RESTART);
        }
        drop(index);
        Registration { hub: self.clone(), client }
    }

    /// Delivers to a client that has arrived from now on.
    pub(crate) fn welcome(&self, client: &Client, membership: Membership) {
        let mut index = self.index.write();
        let mut own = client.membership_lock().write();
        let Some(client) = index.arriving.remove(&client.id.local) else { return };
        *own = Membership { registered: true, ..membership };
        index.add_membership(client.id.local, &own);
        index.clients.insert(client.id.local, client);
    }

    /// Changes who a client is. One that is not registered keeps the change to itself.
    pub(crate) fn change<T>(&self, client: &Client, change: impl FnOnce(&mut Membership) -> T) -> T {
        let mut index = self.index.write();
        let mut own = client.membership_lock().write();
        if !own.registered {
            return change(&mut own);
        }
        let local = client.id.local;
        index.remove_membership(local, &own);
        let result = change(&mut own);
        index.add_membership(local, &own);
        result
    }

    pub(crate) fn join(&self, client: &Client, group: &str) -> bool {
        let mut index = self.index.write();
        let mut own = client.membership_lock().write();
        let group: Arc<str> = group.into();
        let new = own.groups.insert(group.clone());
        if new && own.registered {
            index.groups.entry(group).or_default().insert(client.id.local);
        }
        new
    }

    pub(crate) fn leave(&self, client: &Client, group: &str) -> bool {
        let mut index = self.index.write();
        let mut own = client.membership_lock().write();
        let old = own.groups.remove(group);
        if old && own.registered {
            remove(&mut index.groups, group, client.id.local);
        }
        old
    }

    /// Sets a property, or removes it where the value is null.
    pub(crate) fn set_property(&self, client: &Client, name: &str, value: Value) {
        self.change(client, |membership| match value {
            Value::Null => drop(membership.properties.remove(name)),
            value => drop(membership.properties.insert(name.into(), value)),
        });
    }

    /// Admits nobody from now on.
    pub(crate) fn stop(&self) {
        self.admission.lock().closed = true;
    }

    /// Closes every connection, those on the way in included.
    pub(crate) fn close(&self) {
        self.index.write().closed = true;
        self.close_all(CloseCode::Restart, RESTART);
    }

    fn close_all(&self, code: CloseCode, reason: &str) {
        let index = self.index.read();
        index.clients.values().chain(index.arriving.values()).for_each(|client| client.outbox.close(code, reason));
    }

    /// Waits until every connection is over, its handlers included, but not longer than `limit`. Whether they are.
    pub(crate) async fn drained(&self, limit: Duration) -> bool {
        let mut open = self.open.subscribe();
        // The sender lives as long as the hub, so waiting ends with zero only.
        tokio::time::timeout(limit, open.wait_for(|open| *open == 0)).await.is_ok()
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        *self.open.borrow()
    }

    /// Sends a message to those of the clients numbered `since` and up whom it is for.
    pub(crate) fn message(&self, target: &Target, message: &Outgoing<'_>, since: u64) {
        let index = self.index.read();
        let exceptions = target.except_connection.is_some() || target.except_user.is_some();
        let deliver = |client: &Arc<Client>, certain: bool| {
            let meant = certain || target.matches(&Member(client.id, &client.membership()));
            if meant && client.id.local >= since {
                client.deliver(message);
            }
        };
        let to = |locals: Option<&HashSet<u64>>| {
            for local in locals.into_iter().flatten() {
                if let Some(client) = index.clients.get(local) {
                    deliver(client, !exceptions);
                }
            }
        };
        match &target.selection {
            Selection::All => index.clients.values().for_each(|client| deliver(client, !exceptions)),
            Selection::Registered => index.clients.values().for_each(|client| deliver(client, false)),
            Selection::Users(ids) => index.any(&index.users, ids).iter().for_each(|locals| to(Some(locals))),
            Selection::Groups(names) => index.any(&index.groups, names).iter().for_each(|locals| to(Some(locals))),
            Selection::Session(id) => to(index.sessions.get(id.as_str())),
            Selection::Connection(id) if id.node == self.node => {
                index.clients.get(&id.local).into_iter().for_each(|client| deliver(client, false));
            }
            Selection::Connection(_) => {}
            Selection::Property { name, value } => {
                to(index.properties.get(&(name.as_str().into(), value.as_str().into())));
            }
        }
    }

    fn dismiss(&self, locals: impl FnOnce(&Index) -> Option<&HashSet<u64>>, reason: &str) {
        let index = self.index.read();
        for local in locals(&index).into_iter().flatten() {
            if let Some(client) = index.clients.get(local) {
                client.dismiss(reason);
            }
        }
    }
}

impl Deliver for Hub {
    fn deliver(&self, delivery: Delivery) {
        let newest = {
            let mut term = self.term.lock();
            if term.0 != delivery.term {
                *term = (delivery.term, self.next.load(Ordering::Relaxed));
            }
            term.1
        };
        match &delivery.content {
            Content::Message { target, action, details } => {
                // What was delivered before a takeover was so in an earlier term: only who came in this one surely
                // has not had it.
                let since = if delivery.repeated { newest } else { 0 };
                self.message(target, &Outgoing::new(action, details), since);
            }
            // Orders to close name who is connected when they come; never repeated.
            _ if delivery.repeated => {}
            Content::CloseSession(id) => {
                self.authenticator.forget(Closed::Session(id));
                self.dismiss(|index| index.sessions.get(id.as_str()), "the session ended");
            }
            Content::CloseUser(id) => {
                self.authenticator.forget(Closed::User(id));
                self.dismiss(|index| index.users.get(id.as_str()), "closed by the application");
            }
        }
    }

    fn reset(&self) {
        // Clients that know no positions cannot be told that they missed something.
        tracing::warn!("messages were lost for this node's clients: it was away longer than the log reaches");
    }

    fn cut_off(&self) {
        tracing::warn!("no master is reached while there is one; clients are sent to other nodes");
        self.close_all(CloseCode::TryAgainLater, "this node lost its cluster");
    }
}

impl Index {
    /// The sets of connections under any of the keys, none of them twice in all.
    fn any<'a>(&'a self, groups: &'a Groups<Arc<str>>, keys: &[String]) -> Vec<Cow<'a, HashSet<u64>>> {
        match keys {
            [key] => groups.get(key.as_str()).map(Cow::Borrowed).into_iter().collect(),
            keys => {
                let union = keys.iter().filter_map(|key| groups.get(key.as_str())).flatten().copied().collect();
                vec![Cow::Owned(union)]
            }
        }
    }

    fn add_membership(&mut self, local: u64, membership: &Membership) {
        if let Some(user) = &membership.user {
            self.users.entry(user.clone()).or_default().insert(local);
        }
        if let Some(session) = &membership.session {
            self.sessions.entry(session.clone()).or_default().insert(local);
        }
        for group in &membership.groups {
            self.groups.entry(group.clone()).or_default().insert(local);
        }
        for (name, value) in &membership.properties {
            let key = (name.clone(), property_text(value).into());
            self.properties.entry(key).or_default().insert(local);
        }
    }

    fn remove_membership(&mut self, local: u64, membership: &Membership) {
        if let Some(user) = &membership.user {
            remove(&mut self.users, user, local);
        }
        if let Some(session) = &membership.session {
            remove(&mut self.sessions, session, local);
        }
        for group in &membership.groups {
            remove(&mut self.groups, group, local);
        }
        for (name, value) in &membership.properties {
            remove(&mut self.properties, &(name.clone(), property_text(value).into()), local);
        }
    }
}

fn remove<K, Q>(groups: &mut Groups<K>, key: &Q, local: u64)
where
    K: Eq + Hash + Borrow<Q>,
    Q: Eq + Hash + ?Sized,
{
    if let Some(locals) = groups.get_mut(key) {
        locals.remove(&local);
        if locals.is_empty() {
            groups.remove(key);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut admission = self.hub.admission.lock();
        if let Some(Entry::Occupied(mut entry)) = self.ip.map(|ip| admission.by_ip.entry(ip)) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
        self.hub.open.send_modify(|open| *open -= 1);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut index = self.hub.index.write();
        let mut own = self.client.membership_lock().write();
        let local = self.client.id.local;
        index.arriving.remove(&local);
        if std::mem::take(&mut own.registered) {
            index.remove_membership(local, &own);
            index.clients.remove(&local);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{GuestsOnly, Handshake, Identity, TrustedProxies};

    struct Node(Arc<Hub>);

    impl Node {
        fn new() -> Self {
            Self(Arc::new(Hub::new(NodeId::from_bytes([7; 16]), Arc::new(GuestsOnly))))
        }

        fn connect(&self, identity: Identity) -> (Arc<Client>, Registration) {
            let request = http::Request::new(()).into_parts().0;
            let handshake = Handshake::new(&request, None, &TrustedProxies::none());
            let client = Arc::new(Client::new(self.0.next_id(), handshake, 1024));
            let registration = self.0.arrive(client.clone());
            self.0.welcome(&client, Membership::of(identity));
            (client, registration)
        }

        fn deliver(&self, term: Term, repeated: bool, target: Target) {
            let content = Content::Message { target, action: "x".into(), details: "[]".into() };
            self.0.deliver(Delivery { term, repeated, content });
        }
    }

    /// How many messages wait.
    fn waiting(client: &Client) -> usize {
        client.outbox.take().len() / br#"..{"action":"x","details":[]}"#.len()
    }

    #[test]
    fn a_target_of_several_reaches_each_connection_once() {
        let node = Node::new();
        let (both, _both) = node.connect(Identity::user("ann").groups(["a", "b"]));
        let (one, _one) = node.connect(Identity::user("bob").groups(["b"]));
        let (guest, _guest) = node.connect(Identity::guest());
        node.deliver(1, false, Target::groups(["a", "b", "c", "b"]));
        assert_eq!([waiting(&both), waiting(&one), waiting(&guest)], [1, 1, 0]);
        node.deliver(1, false, Target::users(["ann", "ann", "carl"]));
        assert_eq!([waiting(&both), waiting(&one), waiting(&guest)], [1, 0, 0]);
        node.deliver(1, false, Target::groups(["a", "b"]).except_connection(both.id));
        assert_eq!([waiting(&both), waiting(&one), waiting(&guest)], [0, 1, 0]);
        node.deliver(1, false, Target::connection(guest.id).except_user("ann"));
        assert_eq!([waiting(&both), waiting(&one), waiting(&guest)], [0, 0, 1]);
        node.deliver(1, false, Target::registered());
        assert_eq!([waiting(&both), waiting(&one), waiting(&guest)], [1, 1, 0]);
    }

    #[test]
    fn the_index_follows_membership_and_keeps_nothing() {
        let node = Node::new();
        let hub = node.0.clone();
        let identity = Identity::user("ann").session("s").groups(["a"]).property("n", 1);
        let (client, registration) = node.connect(identity);
        assert!(hub.join(&client, "b"));
        assert!(!hub.join(&client, "b"));
        assert!(hub.leave(&client, "a"));
        hub.set_property(&client, "n", json!({"k": 2}));
        for target in [Target::group("a"), Target::property("n", "1")] {
            node.deliver(1, false, target);
        }
        assert_eq!(waiting(&client), 0);
        for target in [Target::group("b"), Target::property("n", "{\"k\":2}"), Target::session("s")] {
            node.deliver(1, false, target);
        }
        assert_eq!(waiting(&client), 3);
        drop(registration);
        node.deliver(1, false, Target::all());
        assert_eq!(waiting(&client), 0);
        let index = hub.index.read();
        assert!(index.clients.is_empty() && index.arriving.is_empty());
        assert!(index.users.is_empty() && index.sessions.is_empty());
        assert!(index.groups.is_empty() && index.properties.is_empty());
    }

    #[test]
    fn a_repeated_message_reaches_only_who_came_since_the_takeover() {
        let node = Node::new();
        let (old, _old) = node.connect(Identity::guest());
        node.deliver(1, false, Target::all());
        node.deliver(2, false, Target::all());
        assert_eq!(waiting(&old), 2);
        let (new, _new) = node.connect(Identity::guest());
        node.deliver(2, true, Target::all());
        assert_eq!([waiting(&old), waiting(&new)], [0, 1]);
    }

    #[test]
    fn places_are_given_back() {
        let hub = Node::new().0;
        let ip = Some(IpAddr::from([127, 0, 0, 1]));
        let slots: Vec<_> = (0..2).map(|_| hub.admit(ip, 2, 3).unwrap()).collect();
        assert_eq!(hub.admit(ip, 2, 3).err(), Some(Refusal::Address));
        let other = hub.admit(None, 2, 3).unwrap();
        assert_eq!(hub.admit(None, 2, 3).err(), Some(Refusal::Node));
        drop((slots, other));
        assert!(hub.admission.lock().by_ip.is_empty());
        assert_eq!(hub.open(), 0);
        hub.stop();
        assert_eq!(hub.admit(ip, 2, 3).err(), Some(Refusal::ShuttingDown));
    }
}
