//! Clients by a name that few of them share, such as the id of their user or session. The table holds no names, because
//! each client knows its own. With one name for nearly every client, names would be most of the index.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use hashbrown::HashTable;

use crate::hub::{Client, Membership};

pub(super) struct Table {
    clients: HashTable<Arc<Client>>,
    /// Reads the name from a membership. Every client in the table has one.
    name: fn(&Membership) -> Option<&Arc<str>>,
    hasher: RandomState,
}

impl Table {
    pub(super) fn new(name: fn(&Membership) -> Option<&Arc<str>>) -> Self {
        Self { clients: HashTable::new(), name, hasher: RandomState::new() }
    }

    /// Returns the clients with a name.
    pub(super) fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Arc<Client>> {
        let same = self.clients.iter_hash(self.hasher.hash_one(name));
        same.filter(move |client| (self.name)(&client.membership()).is_some_and(|own| **own == *name))
    }

    /// Adds a client under the name in its membership, which the caller has locked. The name is replaced by an equal
    /// text of another client, to share its memory.
    pub(super) fn add(&mut self, client: &Arc<Client>, name: &mut Arc<str>) {
        let known = self.of(name).find_map(|other| (self.name)(&other.membership()).cloned());
        if let Some(known) = known {
            *name = known;
        }
        let Self { clients, name: of, hasher } = self;
        let rehash = |other: &Arc<Client>| {
            let membership = other.membership();
            hasher.hash_one(of(&membership).map(|name| &**name).unwrap_or_default())
        };
        clients.insert_unique(hasher.hash_one(&**name), client.clone(), rehash);
    }

    /// Removes a client that has, or had, this name.
    pub(super) fn remove(&mut self, local: u64, name: &str) {
        let found = self.clients.find_entry(self.hasher.hash_one(name), |client| client.id.local == local);
        found.ok().into_iter().for_each(|entry| drop(entry.remove()));
    }

    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }
}
