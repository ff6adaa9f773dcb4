//! The limits on connections, in total and for each address.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::accept_rate::AcceptRate;
use crate::address;

/// Counts the connections of a node.
#[derive(Debug)]
pub(crate) struct Admission {
    /// A synchronous lock, held for a few instructions.
    counts: Mutex<Counts>,
    /// The number of open connections. A watch, because a shutdown waits until it is zero.
    open: watch::Sender<usize>,
    /// How many clients come per second.
    pub(crate) rate: AcceptRate,
}

#[derive(Debug, Default)]
struct Counts {
    closed: bool,
    by_ip: HashMap<IpAddr, usize>,
}

/// The reason to refuse a client before the upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// Too many connections from the client's address: 429.
    Address,
    /// Too many connections on this node: 503.
    Node,
    /// The node shuts down: 503.
    ShuttingDown,
}

/// A place among the allowed connections, which is given back when the slot is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    /// `None` once a handle has taken over the slot.
    admission: Option<Arc<Admission>>,
    ip: Option<IpAddr>,
}

impl Default for Admission {
    fn default() -> Self {
        Self { counts: Mutex::default(), open: watch::Sender::new(0), rate: AcceptRate::default() }
    }
}

impl Admission {
    /// Takes a slot for a connection if the limits leave one.
    pub(crate) fn admit(self: &Arc<Self>, ip: Option<IpAddr>, per_ip: usize, total: usize) -> Result<Slot, Refusal> {
        let mut counts = self.counts.lock();
        if counts.closed {
            return Err(Refusal::ShuttingDown);
        }
        if self.open() >= total {
            return Err(Refusal::Node);
        }
        if let Some(ip) = ip.map(address::counted) {
            match counts.by_ip.entry(ip) {
                Entry::Occupied(entry) if *entry.get() >= per_ip => return Err(Refusal::Address),
                entry => *entry.or_default() += 1,
            }
        }
        self.open.send_modify(|open| *open += 1);
        Ok(Slot { admission: Some(self.clone()), ip })
    }

    /// Gives back the slot of a connection from `ip`.
    pub(super) fn give_back(&self, ip: Option<IpAddr>) {
        let mut counts = self.counts.lock();
        if let Some(Entry::Occupied(mut entry)) = ip.map(|ip| counts.by_ip.entry(address::counted(ip))) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
        self.open.send_modify(|open| *open -= 1);
    }

    /// Refuses every connection from now on.
    pub(crate) fn stop(&self) {
        self.counts.lock().closed = true;
    }

    /// Returns true if every connection is refused.
    pub(crate) fn is_stopped(&self) -> bool {
        self.counts.lock().closed
    }

    /// Waits at most `limit` until every connection is over, including its handlers. Returns true if all are.
    pub(crate) async fn drained(&self, limit: Duration) -> bool {
        let mut open = self.open.subscribe();
        // The sender lives as long as `self`, so the wait ends only at zero.
        tokio::time::timeout(limit, open.wait_for(|open| *open == 0)).await.is_ok()
    }

    /// Returns the number of open connections.
    pub(crate) fn open(&self) -> usize {
        *self.open.borrow()
    }
}

impl Slot {
    /// Lets a handle, which knows the address too, give the slot back.
    pub(super) fn transfer(mut self) {
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
        assert!(admission.counts.lock().by_ip.is_empty());
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
        assert!(admission.counts.lock().by_ip.is_empty());
    }
}
