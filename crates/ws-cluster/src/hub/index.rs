//! The clients of a node by user, session, group and property, so that whom a message is for is found without looking
//! at the rest.

use std::{
    borrow::{Borrow, Cow},
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use crate::{
    auth::Closed,
    connection::{Client, Membership, property_text},
    target::{ConnectionId, Selection, Target},
};

#[derive(Default)]
pub(super) struct Index {
    pub(super) clients: HashMap<u64, Arc<Client>>,
    /// Nothing is delivered to them yet: they have to authenticate first, or are told what they missed. But they are
    /// closed with the rest.
    pub(super) arriving: HashMap<u64, Arc<Client>>,
    users: Groups<Arc<str>>,
    sessions: Groups<Arc<str>>,
    groups: Groups<Arc<str>>,
    properties: Groups<(Arc<str>, Arc<str>)>,
    /// Connections that are known by the id that their clients had before they came back.
    former: HashMap<ConnectionId, u64>,
    /// Shut down: who still arrives is closed at once.
    pub(super) closed: bool,
}

/// The connections under each key; no key without one.
type Groups<K> = HashMap<K, HashSet<u64>>;

impl Index {
    /// Calls `found` with the clients that a target selects; those it excepts may be among them.
    pub(super) fn select(&self, target: &Target, mut found: impl FnMut(&Arc<Client>)) {
        let mut all = |locals: Option<&HashSet<u64>>| {
            locals.into_iter().flatten().filter_map(|local| self.clients.get(local)).for_each(&mut found);
        };
        match &target.selection {
            Selection::All | Selection::Registered => self.clients.values().for_each(found),
            Selection::Users(ids) => self.any(&self.users, ids).iter().for_each(|locals| all(Some(locals))),
            Selection::Groups(names) => self.any(&self.groups, names).iter().for_each(|locals| all(Some(locals))),
            Selection::Session(id) => all(self.sessions.get(id.as_str())),
            Selection::Connection(id) => {
                // Where the number is another node's, the id of the client found is another one.
                let local = self.former.get(id).unwrap_or(&id.local);
                self.clients.get(local).into_iter().for_each(found);
            }
            Selection::Property { name, value } => {
                all(self.properties.get(&(name.as_str().into(), value.as_str().into())));
            }
        }
    }

    /// The clients, arriving ones included, of a session or a user.
    pub(super) fn of(&self, closed: Closed<'_>) -> impl Iterator<Item = &Arc<Client>> {
        let locals = match closed {
            Closed::Session(id) => self.sessions.get(id),
            Closed::User(id) => self.users.get(id),
        };
        let here = locals.into_iter().flatten().filter_map(|local| self.clients.get(local));
        let arriving = self.arriving.values().filter(move |client| {
            let membership = client.membership();
            match closed {
                Closed::Session(id) => membership.session.as_deref() == Some(id),
                Closed::User(id) => membership.user.as_deref() == Some(id),
            }
        });
        here.chain(arriving)
    }

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

    pub(super) fn join(&mut self, local: u64, group: Arc<str>) {
        self.groups.entry(group).or_default().insert(local);
    }

    pub(super) fn leave(&mut self, local: u64, group: &str) {
        remove(&mut self.groups, group, local);
    }

    pub(super) fn add(&mut self, local: u64, membership: &Membership) {
        if let Some(id) = membership.former {
            self.former.insert(id, local);
        }
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

    pub(super) fn remove(&mut self, local: u64, membership: &Membership) {
        if let Some(id) = &membership.former
            && self.former.get(id) == Some(&local)
        {
            self.former.remove(id);
        }
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

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let Self { clients, arriving, users, sessions, groups, properties, former, .. } = self;
        let keyed = users.is_empty() && sessions.is_empty() && groups.is_empty() && properties.is_empty();
        clients.is_empty() && arriving.is_empty() && former.is_empty() && keyed
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
