//! The links that have not proved the cluster's key yet: how many may exist at once, and which one is dropped for a new
//! one. Pure except for the channel that tells a link that it is dropped.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::address;

/// Maximum number of addresses that are remembered because they proved the key. A cluster has far fewer.
const MAX_PROVED: usize = 256;

/// Greets a bounded number of links. A node or publisher finishes its greeting within a few round trips, while a
/// stranger that wants to block the greetings stays silent. So the link that has waited longest is dropped for a new
/// one: a link of the same address if that address has too many, and otherwise any link. A link whose address the pool
/// lists, or which proved the key before, is never dropped for a stranger.
#[derive(Debug)]
pub(crate) struct Greetings {
    total: usize,
    per_ip: usize,
    /// A synchronous lock, held for a search in the few links.
    state: Mutex<Links>,
}

#[derive(Debug, Default)]
struct Links {
    next: u64,
    /// The links by age, the oldest first.
    waiting: BTreeMap<u64, PendingLink>,
    /// The addresses of nodes in the pool.
    listed: HashSet<IpAddr>,
    /// The addresses that proved the key, the latest last.
    proved: VecDeque<IpAddr>,
}

#[derive(Debug)]
struct PendingLink {
    /// `None` if several peers have this address, as behind a trusted proxy.
    ip: Option<IpAddr>,
    known: bool,
    /// Dropped when the link is dropped for another one.
    _drop_signal: oneshot::Sender<()>,
}

/// A link that is being greeted. It counts until this value is dropped.
#[derive(Debug)]
pub(crate) struct Greeting {
    greetings: Arc<Greetings>,
    number: u64,
    ip: Option<IpAddr>,
    dropped: oneshot::Receiver<()>,
}

impl Greetings {
    pub(crate) fn new(total: usize, per_ip: usize) -> Arc<Self> {
        Arc::new(Self { total, per_ip, state: Mutex::default() })
    }

    /// Begins to greet a link from an address. Also returns true if another link is dropped for it.
    pub(crate) fn begin(self: &Arc<Self>, ip: Option<IpAddr>) -> (Greeting, bool) {
        let mut state = self.state.lock();
        let ip = ip.map(|ip| ip.to_canonical());
        let known = ip.is_some_and(|ip| state.knows(ip));
        let counted = ip.map(address::counted);
        let of_address = |waiting: &PendingLink| !waiting.known && waiting.ip == counted;
        let oldest = if counted.is_some()
            && !known
            && state.waiting.values().filter(|waiting| of_address(waiting)).count() >= self.per_ip
        {
            state.waiting.iter().find(|(_, waiting)| of_address(waiting)).map(|(number, _)| *number)
        } else if state.waiting.len() >= self.total {
            let stranger = state.waiting.iter().find(|(_, waiting)| !waiting.known).map(|(number, _)| *number);
            // If all links are known and this one is not, this one is dropped itself.
            stranger.or_else(|| state.waiting.keys().next().copied().filter(|_| known)).or(Some(state.next))
        } else {
            None
        };
        let number = state.next;
        state.next += 1;
        let (drop_signal, dropped) = oneshot::channel();
        state.waiting.insert(number, PendingLink { ip: counted, known, _drop_signal: drop_signal });
        if let Some(oldest) = oldest {
            state.waiting.remove(&oldest);
        }
        drop(state);
        (Greeting { greetings: self.clone(), number, ip, dropped }, oldest.is_some())
    }

    /// Replaces the addresses that the pool lists. Host names are left out: their nodes become known when they prove
    /// the key.
    pub(crate) fn list<'a>(&self, addresses: impl Iterator<Item = &'a str>) {
        let listed = addresses.filter_map(host).collect();
        self.state.lock().listed = listed;
    }

    /// Remembers the address of a node that proved the key, on either side.
    pub(crate) fn remember(&self, ip: IpAddr) {
        let ip = ip.to_canonical();
        let mut state = self.state.lock();
        state.proved.retain(|known| *known != ip);
        state.proved.push_back(ip);
        if state.proved.len() > MAX_PROVED {
            state.proved.pop_front();
        }
    }
}

/// Returns the host of a node's address if it is an IP address.
fn host(address: &str) -> Option<IpAddr> {
    match url::Url::parse(address).ok()?.host()? {
        url::Host::Ipv4(ip) => Some(ip.into()),
        url::Host::Ipv6(ip) => Some(IpAddr::from(ip).to_canonical()),
        url::Host::Domain(_) => None,
    }
}

impl Links {
    fn knows(&self, ip: IpAddr) -> bool {
        self.listed.contains(&ip) || self.proved.contains(&ip)
    }
}

impl Greeting {
    /// Resolves if the link is dropped for another one.
    pub(crate) async fn dropped(&mut self) {
        // The sender never sends.
        let _ = (&mut self.dropped).await;
    }

    /// Ends the greeting with a proof of the key.
    pub(crate) fn prove(self) {
        if let Some(ip) = self.ip {
            self.greetings.remember(ip);
        }
    }
}

impl Drop for Greeting {
    fn drop(&mut self) {
        self.greetings.state.lock().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_dropped(greeting: &mut Greeting) -> bool {
        greeting.dropped.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    fn begin(greetings: &Arc<Greetings>, ip: &str) -> Greeting {
        greetings.begin(Some(ip.parse().unwrap())).0
    }

    fn lost(greetings: &mut [Greeting]) -> Vec<usize> {
        let lost =
            greetings.iter_mut().enumerate().filter_map(|(index, greeting)| is_dropped(greeting).then_some(index));
        lost.collect()
    }

    #[test]
    fn an_address_with_too_many_links_drops_its_own() {
        let greetings = Greetings::new(100, 3);
        let mut other = begin(&greetings, "192.0.2.1");
        let mut flood: Vec<_> = (1..=5).map(|host| begin(&greetings, &format!("2001:db8::{host}"))).collect();
        assert_eq!(lost(&mut flood), [0, 1]);
        assert!(!is_dropped(&mut other));
        drop(flood);
        assert_eq!(greetings.state.lock().waiting.len(), 1);
    }

    #[test]
    fn the_oldest_stranger_is_dropped() {
        let greetings = Greetings::new(4, 3);
        let mut strangers: Vec<_> = (1..=6).map(|host| begin(&greetings, &format!("192.0.2.{host}"))).collect();
        assert_eq!(lost(&mut strangers), [0, 1]);
        // Behind a proxy that names no address, all links look the same, and a limit for each address would keep all of
        // them out.
        let mut proxied: Vec<_> = (0..8).map(|_| greetings.begin(None).0).collect();
        assert_eq!(lost(&mut proxied), [0, 1, 2, 3]);
    }

    #[test]
    fn known_links_are_not_dropped_for_strangers() {
        let greetings = Greetings::new(4, 2);
        greetings.list(["ws://192.0.2.1:8080", "wss://[2001:db8::1]", "ws://node.example:80"].into_iter());
        greetings.remember("::ffff:192.0.2.2".parse().unwrap());
        let ips = ["192.0.2.1", "192.0.2.1", "192.0.2.1", "2001:db8::1"];
        let mut known: Vec<_> = ips.iter().map(|ip| begin(&greetings, ip)).collect();
        let mut strangers: Vec<_> = (1..=50).map(|host| begin(&greetings, &format!("203.0.113.{host}"))).collect();
        assert_eq!(lost(&mut known), [0; 0]);
        assert_eq!(lost(&mut strangers).len(), 50);
        let mut one = begin(&greetings, "192.0.2.2");
        assert!(!is_dropped(&mut one));
        assert_eq!(lost(&mut known), [0], "the oldest, among themselves");
    }

    #[test]
    fn the_remembered_addresses_are_bounded() {
        let greetings = Greetings::new(4, 2);
        (0..10_000u32).for_each(|ip| greetings.remember(std::net::Ipv4Addr::from(ip).into()));
        assert_eq!(greetings.state.lock().proved.len(), MAX_PROVED);
    }
}
