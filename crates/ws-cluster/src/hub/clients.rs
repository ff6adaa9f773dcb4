//! The clients to which the hub delivers. They lie side by side in the order in which they came, because a fan-out
//! visits them in this order: the memory of their connections, in this process and in the kernel, was mostly taken in
//! the same order, so the processor finds the next one before it is needed.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use hashbrown::HashTable;

use crate::hub::Client;

/// The place of a client among the clients. It is given to another client once this one is removed.
pub(super) type Place = u32;

#[derive(Default)]
pub(super) struct Clients {
    places: Vec<Option<Arc<Client>>>,
    /// The places that are free. The lowest is given away first, so that the clients stay close together. Some may be
    /// beyond the end of `places`.
    free: BinaryHeap<Reverse<Place>>,
    /// The places by the clients' local ids.
    by_id: HashTable<Place>,
    hasher: RandomState,
}

impl Clients {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Returns all clients.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Client>> {
        self.places.iter().flatten()
    }

    /// Returns the client with a local id.
    pub(super) fn get(&self, local: u64) -> Option<&Arc<Client>> {
        self.place_of(local).and_then(|place| self.at(place))
    }

    /// Returns the client at a place.
    pub(super) fn at(&self, place: Place) -> Option<&Arc<Client>> {
        self.places.get(place as usize)?.as_ref()
    }

    /// Returns the place of the client with a local id.
    pub(super) fn place_of(&self, local: u64) -> Option<Place> {
        let found = self.by_id.find(self.hasher.hash_one(local), |place| self.is_at(*place, local));
        found.copied()
    }

    fn is_at(&self, place: Place, local: u64) -> bool {
        self.at(place).is_some_and(|client| client.id.local == local)
    }

    /// Adds a client, which is not there yet. Returns its place.
    pub(super) fn insert(&mut self, client: Arc<Client>) -> Place {
        let hash = self.hasher.hash_one(client.id.local);
        let place = match self.free.pop() {
            Some(Reverse(place)) if (place as usize) < self.places.len() => {
                self.places[place as usize] = Some(client);
                place
            }
            // If the lowest free place is beyond the end, all are.
            _ => {
                self.free.clear();
                self.places.push(Some(client));
                // A process has far fewer connections than 2^32.
                (self.places.len() - 1) as Place
            }
        };
        let Self { places, by_id, hasher, .. } = self;
        by_id.insert_unique(hash, place, |place| hasher.hash_one(id_at(places, *place)));
        place
    }

    /// Removes the client with a local id.
    pub(super) fn remove(&mut self, local: u64) {
        let Self { places, free, by_id, hasher } = self;
        let is_at = |place: &Place| places[*place as usize].as_ref().is_some_and(|client| client.id.local == local);
        let Ok(entry) = by_id.find_entry(hasher.hash_one(local), is_at) else { return };
        let (place, _) = entry.remove();
        places[place as usize] = None;
        free.push(Reverse(place));
        while places.pop_if(|last| last.is_none()).is_some() {}
        if places.len() < places.capacity() / 4 {
            let size = places.len();
            places.shrink_to(size * 2);
            free.retain(|Reverse(place)| (*place as usize) < size);
            free.shrink_to(free.len() * 2);
            by_id.shrink_to(by_id.len() * 2, |place| hasher.hash_one(id_at(places, *place)));
        }
    }
}

/// Returns the local id of the client at a place.
fn id_at(places: &[Option<Arc<Client>>], place: Place) -> u64 {
    places[place as usize].as_ref().map_or(0, |client| client.id.local)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{Handshake, TrustedProxies, message::target::ConnectionId};
    use ws_cluster_core::{NodeId, simulator::Random};

    fn client(local: u64) -> Arc<Client> {
        let request = http::Request::new(()).into_parts().0;
        let handshake = Handshake::new(&request, None, &TrustedProxies::none());
        let id = ConnectionId { node: NodeId::from_bytes([7; 16]), local };
        Arc::new(Client::new(id, handshake, 1024, false))
    }

    #[test]
    fn a_client_keeps_its_place_until_it_is_removed() {
        for seed in 0..50 {
            let mut random = Random(seed);
            let (mut clients, mut places) = (Clients::default(), BTreeMap::new());
            for local in 1..200 {
                if random.below(2) == 0 {
                    places.insert(local, clients.insert(client(local)));
                } else if let Some(gone) = places.keys().nth(random.below(1 + places.len() as u64) as usize).copied() {
                    clients.remove(gone);
                    places.remove(&gone);
                    assert!(clients.get(gone).is_none(), "seed {seed}");
                }
                assert_eq!(clients.len(), places.len(), "seed {seed}");
                for (local, place) in &places {
                    assert_eq!(clients.place_of(*local), Some(*place), "seed {seed}");
                    assert_eq!(clients.at(*place).unwrap().id.local, *local, "seed {seed}");
                }
                assert_eq!(clients.iter().count(), places.len(), "seed {seed}");
            }
        }
    }

    #[test]
    fn clients_are_visited_in_the_order_in_which_they_came_and_the_lowest_free_place_is_used_first() {
        let mut clients = Clients::default();
        (1..=6).for_each(|local| _ = clients.insert(client(local)));
        [5, 2].into_iter().for_each(|local| clients.remove(local));
        clients.insert(client(7));
        let visited: Vec<_> = clients.iter().map(|client| client.id.local).collect();
        assert_eq!(visited, [1, 7, 3, 4, 6]);
    }

    #[test]
    fn the_memory_of_many_clients_is_not_kept_for_few() {
        let mut clients = Clients::default();
        (1..=10_000).for_each(|local| _ = clients.insert(client(local)));
        (11..=10_000).for_each(|local| clients.remove(local));
        assert_eq!((clients.len(), clients.places.len(), clients.free.len()), (10, 10, 0));
        assert!(clients.places.capacity() <= 40 && clients.free.capacity() <= 40 && clients.by_id.capacity() <= 60);
        assert!((1..=10).all(|local| clients.get(local).is_some()));
        clients.insert(client(10_001));
        assert_eq!(clients.place_of(10_001), Some(10));
    }
}
