//! How many connections there may be, in all and from one address.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::address;

/// Counts the connections of a node.
#[derive(Debug)]
pub(crate) struct Admission {
    /// A synchronous lock, held for a few instructions.
    places: Mutex<Places>,
    /// Connections that are not over yet. A watch, since a shutdown waits for its zero.
    open: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Places {
    closed: bool,
    by_ip: HashMap<IpAddr, usize>,
}

/// Why a client is refused before the upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// Too many connections from its address: 429.
    Address,
    /// Too many connections on this node: 503.
    Node,
    /// The node shuts down: 503.
    ShuttingDown,
}

/// A place among the connections that are allowed; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    /// `None` once it is somebody else's to give back.
    admission: Option<Arc<Admission>>,
    ip: Option<IpAddr>,
}

impl Default for Admission {
    fn default() -> Self {
        Self { places: Mutex::default(), open: watch::Sender::new(0) }
    }
}

impl Admission {
    /// Takes a place for a connection, where the limits leave one.
    pub(crate) fn admit(self: &Arc<Self>, ip: Option<IpAddr>, per_ip: usize, total: usize) -> Result<Slot, Refusal> {
        let mut places = self.places.lock();
        if places.closed {
            return Err(Refusal::ShuttingDown);
        }
        if self.open() >= total {
            return Err(Refusal::Node);
        }
        if let Some(ip) = ip.map(address::counted) {
            match places.by_ip.entry(ip) {
                Entry::Occupied(entry) if *entry.get() >= per_ip => return Err(Refusal::Address),
                entry => *entry.or_default() += 1,
            }
        }
        self.open.send_modify(|open| *open += 1);
        Ok(Slot { admission: Some(self.clone()), ip })
    }

    /// Gives the place of a connection from an address back.
    pub(super) fn give_back(&self, ip: Option<IpAddr>) {
        let mut places = self.places.lock();
        if let Some(Entry::Occupied(mut entry)) = ip.map(|ip| places.by_ip.entry(address::counted(ip))) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
        self.open.send_modify(|open| *open -= 1);
    }

    /// Admits nobody from now on.
    pub(crate) fn stop(&self) {
        self.places.lock().closed = true;
    }

    /// Returns true if nobody is admitted any more.
    pub(crate) fn is_stopped(&self) -> bool {
        self.places.lock().closed
    }

    /// Waits until every connection is over, its handlers included, but not longer than `limit`. Whether they are.
    pub(crate) async fn drained(&self, limit: Duration) -> bool {
        let mut open = self.open.subscribe();
        // The sender lives as long as this, so waiting ends with zero only.
        tokio::time::timeout(limit, open.wait_for(|open| *open == 0)).await.is_ok()
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        *self.open.borrow()
    }
}

impl Slot {
    /// Leaves it to others to give the place back, who know the address as well.
    pub(super) fn hand_over(mut self) {
        self.admission = None;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.admission.iter().for_each(|admission| admission.give_back(self.ip));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back() {
        let admission = Arc::new(Admission::default());
        let ip = Some(IpAddr::from([127, 0, 0, 1]));
        let slots: Vec<_> = (0..2).map(|_| admission.admit(ip, 2, 3).unwrap()).collect();
        assert_eq!(admission.admit(ip, 2, 3).err(), Some(Refusal::Address));
        let other = admission.admit(None, 2, 3).unwrap();
        assert_eq!(admission.admit(None, 2, 3).err(), Some(Refusal::Node));
        drop((slots, other));
        assert!(admission.places.lock().by_ip.is_empty());
        assert_eq!(admission.open(), 0);
        admission.stop();
        assert_eq!(admission.admit(ip, 2, 3).err(), Some(Refusal::ShuttingDown));
    }

    #[test]
    fn addresses_of_one_ipv6_network_share_their_places() {
        let admission = Arc::new(Admission::default());
        let admit = |ip: &str| admission.admit(Some(ip.parse().unwrap()), 2, 100);
        let slots = [admit("2001:db8::1").unwrap(), admit("2001:db8::ffff:2").unwrap()];
        assert_eq!(admit("2001:db8::3").err(), Some(Refusal::Address));
        assert!(admit("2001:db8:0:1::3").is_ok(), "another /64");
        let mapped = [admit("::ffff:192.0.2.1").unwrap(), admit("192.0.2.1").unwrap()];
        assert_eq!(admit("192.0.2.1").err(), Some(Refusal::Address));
        drop((slots, mapped));
        assert!(admission.places.lock().by_ip.is_empty());
    }
}
