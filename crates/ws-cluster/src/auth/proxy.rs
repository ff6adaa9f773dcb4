//! Which peers may say on whose behalf they connect, and what address a client has behind them. Pure; the limits
//! for each address and the session table's `:ip` build on it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use http::HeaderMap;
use ipnet::IpNet;

/// The reverse proxies whose `X-Forwarded-For` is believed. The default trusts loopback only (127.0.0.0/8 and
/// ::1): a proxy on the same machine.
///
/// Read from text as a list of networks or single addresses with commas between; lists are joined by `collect`:
///
/// ```
/// use ws_cluster::TrustedProxies;
///
/// let given = ["10.0.0.0/8, 192.0.2.7", "2001:db8::/32"];
/// let proxies = given.iter().map(|list| list.parse()).collect::<Result<TrustedProxies, _>>().unwrap();
/// assert!(proxies.contains("10.1.2.3".parse().unwrap()));
/// assert!(!proxies.contains("127.0.0.1".parse().unwrap())); // a list of one's own replaces the default
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl Default for TrustedProxies {
    fn default() -> Self {
        let v4 = IpNet::new_assert(Ipv4Addr::new(127, 0, 0, 0).into(), 8);
        Self(vec![v4, IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST))])
    }
}

impl TrustedProxies {
    /// No proxy at all: a client's address is always the peer's.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// Whether `address` is a trusted proxy. An IPv4 address that is mapped into IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// The client's address: the peer's own, or, where the peer is a trusted proxy, the rightmost entry of
    /// `X-Forwarded-For` that is not a trusted proxy as well. Several header lines count as one list. An entry that
    /// is no address ends the walk at the proxy that wrote it, since what stands further left is not vouched for.
    /// `None` only where there is no peer, as on a Unix socket.
    pub fn remote_ip(&self, peer: Option<SocketAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        let mut address = peer?.ip().to_canonical();
        let entries = headers
            .get_all("x-forwarded-for")
            .iter()
            .rev()
            // A line that is not text reads as one entry that is no address.
            .flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
        for entry in entries {
            if !self.contains(address) {
                break;
            }
            let Some(next) = forwarded(entry.trim()) else { break };
            address = next;
        }
        Some(address)
    }
}

/// The address in an entry of `X-Forwarded-For`, which proxies write with or without a port and brackets.
fn forwarded(entry: &str) -> Option<IpAddr> {
    let bare = entry.strip_prefix('[').and_then(|entry| entry.strip_suffix(']')).unwrap_or(entry);
    bare.parse()
        .or_else(|_| entry.parse().map(|address: SocketAddr| address.ip()))
        .ok()
        .map(|address: IpAddr| address.to_canonical())
}

impl FromIterator<TrustedProxies> for TrustedProxies {
    fn from_iter<T: IntoIterator<Item = TrustedProxies>>(lists: T) -> Self {
        Self(lists.into_iter().flat_map(|list| list.0).collect())
    }
}

/// The text is no list of networks (`10.0.0.0/8`) and addresses (`192.0.2.7`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no network: use ADDRESS or ADDRESS/BITS, like 192.0.2.7 or 10.0.0.0/8")]
pub struct ParseProxiesError(String);

impl FromStr for TrustedProxies {
    type Err = ParseProxiesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split(',')
            .map(str::trim)
            .map(|network| {
                network
                    .parse()
                    .or_else(|_| network.parse().map(|address: IpAddr| IpNet::from(address)))
                    .map_err(|_| ParseProxiesError(network.to_owned()))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// The client's address as text, for a peer and the lines of `X-Forwarded-For` it sent.
    fn remote(proxies: &TrustedProxies, peer: &str, lines: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", HeaderValue::from_str(line).unwrap());
        }
        proxies.remote_ip(Some(SocketAddr::new(peer.parse().unwrap(), 4711)), &headers).unwrap().to_string()
    }

    #[test]
    fn a_stranger_cannot_forward() {
        let proxies = TrustedProxies::default();
        assert_eq!(remote(&proxies, "198.51.100.1", &["1.2.3.4"]), "198.51.100.1");
        assert_eq!(remote(&TrustedProxies::none(), "127.0.0.1", &["1.2.3.4"]), "127.0.0.1");
    }

    #[test]
    fn a_local_proxy_is_believed_by_default() {
        let proxies = TrustedProxies::default();
        assert_eq!(remote(&proxies, "127.0.0.9", &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(remote(&proxies, "::1", &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(remote(&proxies, "::ffff:127.0.0.1", &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(remote(&proxies, "127.0.0.1", &[]), "127.0.0.1");
    }

    #[test]
    fn the_list_is_read_from_the_right_through_trusted_proxies_only() {
        let proxies: TrustedProxies = "127.0.0.0/8,10.0.0.0/8".parse().unwrap();
        assert_eq!(remote(&proxies, "127.0.0.1", &["6.6.6.6, 1.2.3.4, 10.0.0.2"]), "1.2.3.4");
        assert_eq!(remote(&proxies, "127.0.0.1", &["6.6.6.6", "1.2.3.4", "10.0.0.2,10.0.0.3"]), "1.2.3.4");
        // All of them trusted: the leftmost is where the request began.
        assert_eq!(remote(&proxies, "127.0.0.1", &["10.0.0.1, 10.0.0.2"]), "10.0.0.1");
    }

    #[test]
    fn garbage_ends_the_walk() {
        let proxies: TrustedProxies = "127.0.0.0/8,10.0.0.0/8".parse().unwrap();
        for garbage in ["1.2.3.4, unknown, 10.0.0.2", "1.2.3.4,,10.0.0.2", "1.2.3.4, _hidden, 10.0.0.2"] {
            assert_eq!(remote(&proxies, "127.0.0.1", &[garbage]), "10.0.0.2");
        }
        assert_eq!(remote(&proxies, "127.0.0.1", &[""]), "127.0.0.1");
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", HeaderValue::from_static("1.2.3.4"));
        headers.append("x-forwarded-for", HeaderValue::from_bytes(b"\xff").unwrap());
        let peer = Some("127.0.0.1:1".parse().unwrap());
        assert_eq!(proxies.remote_ip(peer, &headers), Some("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn entries_may_carry_brackets_and_ports() {
        let proxies = TrustedProxies::default();
        for (entry, address) in [
            ("1.2.3.4:5678", "1.2.3.4"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:5678", "2001:db8::1"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
        ] {
            assert_eq!(remote(&proxies, "127.0.0.1", &[entry]), address);
        }
    }

    #[test]
    fn without_a_peer_nobody_is_believed() {
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", HeaderValue::from_static("1.2.3.4"));
        assert_eq!(TrustedProxies::default().remote_ip(None, &headers), None);
    }

    #[test]
    fn a_malformed_network_is_named() {
        let error = "10.0.0.0/8,10.0.0.0/33".parse::<TrustedProxies>().unwrap_err();
        assert!(error.to_string().starts_with("\"10.0.0.0/33\" is no network"), "{error}");
        assert!("".parse::<TrustedProxies>().is_err());
        assert!("example.org".parse::<TrustedProxies>().is_err());
    }
}
