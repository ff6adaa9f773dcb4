//! Limits the connections to the admin page. Connections that have not shown the key are strangers. They have half of
//! the places, and if another stranger comes, the oldest one is closed.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Maximum number of connections of each kind.
const PLACES: usize = 64;

#[derive(Default)]
pub(super) struct Places(Mutex<Taken>);

/// The connections by their numbers, which only grow. Each is told to close by its [`Notify`].
#[derive(Default)]
struct Taken {
    next: u64,
    strangers: BTreeMap<u64, Arc<Notify>>,
    known: BTreeMap<u64, Arc<Notify>>,
}

/// The place of a connection. Dropping it frees the place.
pub(super) struct Place {
    places: Arc<Places>,
    number: u64,
    leave: Arc<Notify>,
}

impl Places {
    /// Takes a place for a stranger.
    pub(super) fn take(self: &Arc<Self>) -> Arc<Place> {
        let mut taken = self.0.lock();
        let (number, leave) = (taken.next, Arc::<Notify>::default());
        taken.next += 1;
        insert(&mut taken.strangers, number, leave.clone());
        Arc::new(Place { places: self.clone(), number, leave })
    }
}

/// Adds a connection. If there are too many of its kind, the oldest is told to close.
fn insert(kind: &mut BTreeMap<u64, Arc<Notify>>, number: u64, leave: Arc<Notify>) {
    if kind.len() >= PLACES
        && let Some((_, oldest)) = kind.pop_first()
    {
        oldest.notify_one();
    }
    kind.insert(number, leave);
}

impl Place {
    /// Notes that the sender may use the page. A connection that was already told to close still closes.
    pub(super) fn admit(&self) {
        let mut taken = self.places.0.lock();
        if let Some(leave) = taken.strangers.remove(&self.number) {
            insert(&mut taken.known, self.number, leave);
        }
    }

    pub(super) fn is_known(&self) -> bool {
        self.places.0.lock().known.contains_key(&self.number)
    }

    /// Waits until another connection needs the place.
    pub(super) async fn is_needed(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock();
        taken.strangers.remove(&self.number);
        taken.known.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    fn has_to_leave(place: &Place) -> bool {
        pin!(place.is_needed()).poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    #[test]
    fn strangers_make_room_for_strangers_and_never_take_the_place_of_who_has_the_key() {
        let places = Arc::<Places>::default();
        let administrator = places.take();
        administrator.admit();
        let strangers: Vec<_> = (0..PLACES + 2).map(|_| places.take()).collect();
        let leaving: Vec<_> = strangers.iter().map(|place| has_to_leave(place)).collect();
        assert_eq!(leaving.iter().take_while(|leaves| **leaves).count(), 2, "the oldest ones");
        assert_eq!(leaving.iter().filter(|leaves| **leaves).count(), 2);
        assert!(administrator.is_known() && !has_to_leave(&administrator));
        strangers[0].admit();
        assert!(!strangers[0].is_known(), "it has to leave");
        strangers[2].admit();
        assert!(strangers[2].is_known());
        drop(strangers);
        let taken = places.0.lock();
        assert_eq!((taken.strangers.len(), taken.known.len()), (0, 1));
    }
}
