//! The links that have not proved the cluster's key yet: how many may be greeted at once, and which is given up for a
//! new one. Pure but for the channel that tells a link that it is given up.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::address;

/// Addresses that proved the key and are remembered for it: far more than a cluster has.
const PROVED: usize = 256;

/// Greets a bounded number of links. A node or publisher says what it has to say within a few round trips, and a stranger
/// that wants to take all places stays silent. So the one that waits longest makes room for the next: of those from its
/// own address if that has too many, and otherwise of all. Addresses that the pool lists, or that proved the key before,
/// make room for no stranger.
#[derive(Debug)]
pub(crate) struct Greetings {
    total: usize,
    per_ip: usize,
    /// A synchronous lock, held for a look through the few links.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// By age, the oldest first.
    waiting: BTreeMap<u64, Waiting>,
    /// Addresses of nodes in the pool.
    listed: HashSet<IpAddr>,
    /// Addresses that proved the key, the latest last.
    proved: VecDeque<IpAddr>,
}

#[derive(Debug)]
struct Waiting {
    /// `None` if it tells nothing, as that of a trusted proxy.
    ip: Option<IpAddr>,
    known: bool,
    /// Dropped when the link is given up.
    _kept: oneshot::Sender<()>,
}

/// A link that is being greeted. It stops counting when this is dropped.
#[derive(Debug)]
pub(crate) struct Greeting {
    greetings: Arc<Greetings>,
    number: u64,
    ip: Option<IpAddr>,
    given_up: oneshot::Receiver<()>,
}

impl Greetings {
    pub(crate) fn new(total: usize, per_ip: usize) -> Arc<Self> {
        Arc::new(Self { total, per_ip, state: Mutex::default() })
    }

    /// Begins to greet a link from an address. Returns as well whether another one is given up for it.
    pub(crate) fn begin(self: &Arc<Self>, ip: Option<IpAddr>) -> (Greeting, bool) {
        let mut state = self.state.lock();
        let ip = ip.map(|ip| ip.to_canonical());
        let known = ip.is_some_and(|ip| state.knows(ip));
        let counted = ip.map(address::counted);
        let of_address = |waiting: &Waiting| !waiting.known && waiting.ip == counted;
        let oldest = if counted.is_some()
            && !known
            && state.waiting.values().filter(|waiting| of_address(waiting)).count() >= self.per_ip
        {
            state.waiting.iter().find(|(_, waiting)| of_address(waiting)).map(|(number, _)| *number)
        } else if state.waiting.len() >= self.total {
            let stranger = state.waiting.iter().find(|(_, waiting)| !waiting.known).map(|(number, _)| *number);
            // If all are known and this one is not, it is given up itself.
            stranger.or_else(|| state.waiting.keys().next().copied().filter(|_| known)).or(Some(state.next))
        } else {
            None
        };
        let number = state.next;
        state.next += 1;
        let (kept, given_up) = oneshot::channel();
        state.waiting.insert(number, Waiting { ip: counted, known, _kept: kept });
        if let Some(oldest) = oldest {
            state.waiting.remove(&oldest);
        }
        drop(state);
        (Greeting { greetings: self.clone(), number, ip, given_up }, oldest.is_some())
    }

    /// Replaces the addresses that the pool lists. Hosts that are names are left out: their nodes are known once they have
    /// proved the key.
    pub(crate) fn list<'a>(&self, addresses: impl Iterator<Item = &'a str>) {
        let listed = addresses.filter_map(host).collect();
        self.state.lock().listed = listed;
    }

    /// Remembers the address of a node that proved the key, on whichever side.
    pub(crate) fn know(&self, ip: IpAddr) {
        let ip = ip.to_canonical();
        let mut state = self.state.lock();
        state.proved.retain(|known| *known != ip);
        state.proved.push_back(ip);
        if state.proved.len() > PROVED {
            state.proved.pop_front();
        }
    }
}

/// The host of a node's address, if it is an IP address.
fn host(address: &str) -> Option<IpAddr> {
    match url::Url::parse(address).ok()?.host()? {
        url::Host::Ipv4(ip) => Some(ip.into()),
        url::Host::Ipv6(ip) => Some(IpAddr::from(ip).to_canonical()),
        url::Host::Domain(_) => None,
    }
}

impl State {
    fn knows(&self, ip: IpAddr) -> bool {
        self.listed.contains(&ip) || self.proved.contains(&ip)
    }
}

impl Greeting {
    /// Resolves if the link is given up for another one.
    pub(crate) async fn given_up(&mut self) {
        // The sender never sends.
        let _ = (&mut self.given_up).await;
    }

    /// Ends with a proof of the key.
    pub(crate) fn prove(self) {
        if let Some(ip) = self.ip {
            self.greetings.know(ip);
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

    fn is_given_up(greeting: &mut Greeting) -> bool {
        greeting.given_up.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    fn begin(greetings: &Arc<Greetings>, ip: &str) -> Greeting {
        greetings.begin(Some(ip.parse().unwrap())).0
    }

    fn lost(greetings: &mut [Greeting]) -> Vec<usize> {
        let lost =
            greetings.iter_mut().enumerate().filter_map(|(index, greeting)| is_given_up(greeting).then_some(index));
        lost.collect()
    }

    #[test]
    fn an_address_with_too_many_makes_room_for_its_own() {
        let greetings = Greetings::new(100, 3);
        let mut other = begin(&greetings, "192.0.2.1");
        let mut flood: Vec<_> = (1..=5).map(|host| begin(&greetings, &format!("2001:db8::{host}"))).collect();
        assert_eq!(lost(&mut flood), [0, 1]);
        assert!(!is_given_up(&mut other));
        drop(flood);
        assert_eq!(greetings.state.lock().waiting.len(), 1);
    }

    #[test]
    fn the_oldest_of_strangers_makes_room() {
        let greetings = Greetings::new(4, 3);
        let mut strangers: Vec<_> = (1..=6).map(|host| begin(&greetings, &format!("192.0.2.{host}"))).collect();
        assert_eq!(lost(&mut strangers), [0, 1]);
        // Behind a proxy that names no address all look the same, and a limit per address would keep all of them out.
        let mut proxied: Vec<_> = (0..8).map(|_| greetings.begin(None).0).collect();
        assert_eq!(lost(&mut proxied), [0, 1, 2, 3]);
    }

    #[test]
    fn strangers_take_no_place_of_those_that_are_known() {
        let greetings = Greetings::new(4, 2);
        greetings.list(["ws://192.0.2.1:8080", "wss://[2001:db8::1]", "ws://node.example:80"].into_iter());
        greetings.know("::ffff:192.0.2.2".parse().unwrap());
        let ips = ["192.0.2.1", "192.0.2.1", "192.0.2.1", "2001:db8::1"];
        let mut known: Vec<_> = ips.iter().map(|ip| begin(&greetings, ip)).collect();
        let mut strangers: Vec<_> = (1..=50).map(|host| begin(&greetings, &format!("203.0.113.{host}"))).collect();
        assert_eq!(lost(&mut known), [0; 0]);
        assert_eq!(lost(&mut strangers).len(), 50);
        let mut one = begin(&greetings, "192.0.2.2");
        assert!(!is_given_up(&mut one));
        assert_eq!(lost(&mut known), [0], "the oldest, among themselves");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let greetings = Greetings::new(4, 2);
        (0..10_000u32).for_each(|ip| greetings.know(std::net::Ipv4Addr::from(ip).into()));
        assert_eq!(greetings.state.lock().proved.len(), PROVED);
    }
}
