//! The clients of a node by user, session, group and property, so that the recipients of a message are found without a
//! look at the other clients.

use std::{
    borrow::Borrow,
    collections::{BTreeSet, HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use super::{
    clients::{Clients, Place},
    table::Table,
};
use crate::{
    hub::{Client, Membership},
    message::{
        close::Subject,
        target::{ConnectionId, Selection, Target, property_text},
    },
};

pub(super) struct Index {
    pub(super) clients: Clients,
    /// Clients to which nothing is delivered yet: they have to authenticate first, or they are sent what they missed. A
    /// shutdown and commands close them like the others.
    pub(super) arriving: HashMap<u64, Arc<Client>>,
    users: Table,
    sessions: Table,
    groups: Groups<Arc<str>>,
    properties: Groups<(Arc<str>, Arc<str>)>,
    /// The local ids of clients that came back, by the id that they had before.
    former: HashMap<ConnectionId, u64>,
    /// True if the node shuts down. A client that arrives is closed at once.
    pub(super) closed: bool,
}

/// The connections under each key. A key without connections is removed.
type Groups<K> = HashMap<K, Places>;

/// The places of the connections under one key, in the order in which a fan-out visits them. Most properties and many
/// groups have one connection.
enum Places {
    One(Place),
    Many(BTreeSet<Place>),
}

impl Places {
    fn insert(&mut self, place: Place) {
        match self {
            Self::One(known) if *known == place => {}
            Self::One(known) => *self = Self::Many([*known, place].into()),
            Self::Many(places) => _ = places.insert(place),
        }
    }

    /// Removes a place. Returns true if none is left.
    fn remove(&mut self, place: Place) -> bool {
        match self {
            Self::One(known) => *known == place,
            Self::Many(places) => {
                places.remove(&place);
                places.is_empty()
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = Place> {
        let (one, many) = match self {
            Self::One(place) => (Some(*place), None),
            Self::Many(places) => (None, Some(places)),
        };
        one.into_iter().chain(many.into_iter().flatten().copied())
    }
}

impl Default for Index {
    fn default() -> Self {
        Self {
            clients: Clients::default(),
            arriving: HashMap::new(),
            users: Table::new(|membership| membership.user.as_ref()),
            sessions: Table::new(|membership| membership.session.as_ref()),
            groups: HashMap::new(),
            properties: HashMap::new(),
            former: HashMap::new(),
            closed: false,
        }
    }
}

impl Index {
    /// Calls `found` with the clients that a target selects. Clients that the target excepts may be among them.
    pub(super) fn select(&self, target: &Target, mut found: impl FnMut(&Arc<Client>)) {
        match &target.selection {
            Selection::All | Selection::Registered => self.clients.iter().for_each(found),
            Selection::Users(ids) => {
                // A client has one user.
                let ids: HashSet<_> = ids.iter().collect();
                ids.into_iter().for_each(|id| self.users.of(id).for_each(&mut found));
            }
            Selection::Groups(names) => self.any(names, found),
            Selection::Session(id) => self.sessions.of(id).for_each(found),
            Selection::Connection(id) => {
                // If the id is of another node, the client found may have a different id. The target is matched again
                // later.
                let local = self.former.get(id).unwrap_or(&id.local);
                self.clients.get(*local).into_iter().for_each(found);
            }
            Selection::Property { name, value } => {
                self.among(self.properties.get(&(name.as_str().into(), value.as_str().into()))).for_each(found);
            }
        }
    }

    /// Returns the clients that a command concerns, including arriving ones.
    pub(super) fn of<'a>(&'a self, subject: &'a Subject) -> impl Iterator<Item = &'a Arc<Client>> {
        let (named, one) = match subject {
            Subject::Session(id) => (Some(self.sessions.of(id)), None),
            Subject::User { id, .. } => (Some(self.users.of(id)), None),
            Subject::Connection(id) => (None, Some(self.known_as(*id))),
        };
        let arriving = named.is_some().then(|| self.arriving.values()).into_iter().flatten();
        let named = named.into_iter().flatten().chain(arriving).filter(move |client| {
            let membership = client.membership();
            subject.is(membership.user.as_deref(), membership.session.as_deref())
        });
        named.chain(one.into_iter().flatten())
    }

    /// Returns the clients that have an id, or had it before they came back, including arriving ones.
    pub(super) fn known_as(&self, id: ConnectionId) -> impl Iterator<Item = &Arc<Client>> {
        self.joined_as(id).chain(self.arriving.values().filter(move |client| client.known_as() == id))
    }

    /// Returns the clients to which the hub delivers and that have an id, or had it before they came back.
    fn joined_as(&self, id: ConnectionId) -> impl Iterator<Item = &Arc<Client>> {
        let here = [Some(id.local), self.former.get(&id).copied()].into_iter().flatten();
        here.filter_map(|local| self.clients.get(local)).filter(move |client| client.known_as() == id)
    }

    /// Returns the clients of a user to which the hub delivers.
    pub(super) fn of_user<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Arc<Client>> {
        self.users.of(id)
    }

    /// Returns the clients of a session to which the hub delivers.
    pub(super) fn of_session<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Arc<Client>> {
        self.sessions.of(id)
    }

    /// Returns the clients of a group to which the hub delivers.
    pub(super) fn in_group(&self, group: &str) -> impl Iterator<Item = &Arc<Client>> {
        self.among(self.groups.get(group))
    }

    /// Returns how many clients have a user.
    pub(super) fn with_user(&self) -> usize {
        self.users.len()
    }

    fn among(&self, places: Option<&Places>) -> impl Iterator<Item = &Arc<Client>> {
        places.into_iter().flat_map(Places::iter).filter_map(|place| self.clients.at(place))
    }

    /// Calls `found` once with each client in any of the groups.
    fn any(&self, names: &[String], found: impl FnMut(&Arc<Client>)) {
        match names {
            [name] => self.among(self.groups.get(name.as_str())).for_each(found),
            names => {
                let groups = names.iter().filter_map(|name| self.groups.get(name.as_str()));
                let union: BTreeSet<Place> = groups.flat_map(Places::iter).collect();
                union.into_iter().filter_map(|place| self.clients.at(place)).for_each(found);
            }
        }
    }

    pub(super) fn join(&mut self, local: u64, group: Arc<str>) {
        if let Some(place) = self.clients.place_of(local) {
            insert(&mut self.groups, group, place);
        }
    }

    pub(super) fn leave(&mut self, local: u64, group: &str) {
        if let Some(place) = self.clients.place_of(local) {
            remove(&mut self.groups, group, place);
        }
    }

    /// Adds the names of a client, which is among `clients`. Texts in its membership are replaced by equal texts of the
    /// index, to share their memory.
    pub(super) fn add(&mut self, client: &Arc<Client>, membership: &mut Membership) {
        let local = client.id.local;
        let Some(place) = self.clients.place_of(local) else { return };
        if let Some(id) = membership.former() {
            self.former.insert(id, local);
        }
        membership.user.iter_mut().for_each(|user| self.users.add(client, user));
        membership.session.iter_mut().for_each(|session| self.sessions.add(client, session));
        membership.groups.iter_mut().for_each(|group| share(&mut self.groups, group, place));
        for (name, value) in membership.properties() {
            let key = (name.clone(), property_text(value).into());
            insert(&mut self.properties, key, place);
        }
    }

    /// Removes a client, arriving or not. Returns true if the hub delivers to another connection of it, which has
    /// resumed.
    pub(super) fn forget(&mut self, client: &Client) -> bool {
        let local = client.id.local;
        self.arriving.remove(&local);
        if client.leave() {
            self.remove(local, &client.membership());
            self.clients.remove(local);
        }
        // An earlier connection is one whose end nobody has noticed yet.
        self.joined_as(client.known_as()).any(|other| other.id.local > local)
    }

    /// Removes the names of a client.
    pub(super) fn remove(&mut self, local: u64, membership: &Membership) {
        let Some(place) = self.clients.place_of(local) else { return };
        if let Some(id) = &membership.former()
            && self.former.get(id) == Some(&local)
        {
            self.former.remove(id);
        }
        membership.user.iter().for_each(|user| self.users.remove(local, user));
        membership.session.iter().for_each(|session| self.sessions.remove(local, session));
        membership.groups.iter().for_each(|group| remove(&mut self.groups, group, place));
        for (name, value) in membership.properties() {
            remove(&mut self.properties, &(name.clone(), property_text(value).into()), place);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let Self { clients, arriving, users, sessions, groups, properties, former, .. } = self;
        let keyed = users.is_empty() && sessions.is_empty() && groups.is_empty() && properties.is_empty();
        clients.len() == 0 && arriving.is_empty() && former.is_empty() && keyed
    }
}

/// Adds a connection under a name, which is replaced by the equal text of the index, if there is one.
fn share(groups: &mut Groups<Arc<str>>, name: &mut Arc<str>, place: Place) {
    if let Some((known, _)) = groups.get_key_value(name) {
        *name = known.clone();
    }
    insert(groups, name.clone(), place);
}

fn insert<K: Eq + Hash>(groups: &mut Groups<K>, key: K, place: Place) {
    groups.entry(key).or_insert(Places::One(place)).insert(place);
}

fn remove<K, Q>(groups: &mut Groups<K>, key: &Q, place: Place)
where
    K: Eq + Hash + Borrow<Q>,
    Q: Eq + Hash + ?Sized,
{
    if groups.get_mut(key).is_some_and(|places| places.remove(place)) {
        groups.remove(key);
    }
}
