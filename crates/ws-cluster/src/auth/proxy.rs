//! The proxies that may state a client's address, and the address of a client behind them. Pure. The limits for each
//! address and the session table's `:ip` use it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use http::HeaderMap;
use ipnet::IpNet;

/// The reverse proxies whose `X-Forwarded-For`, `X-Forwarded-Proto` and `Forwarded` are trusted. The default trusts
/// loopback only (127.0.0.0/8 and ::1): a proxy on the same machine.
///
/// It is parsed from a list of networks or single addresses with commas between them; `collect` joins lists. Names are
/// not resolved. IPv4 addresses that are mapped into IPv6 mean the IPv4 addresses:
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
    /// Returns an empty list: a client's address is always the peer's.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// Returns true if `address` is a trusted proxy. An IPv4 address that is mapped into IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Returns the client's address: the peer's own, or, if the peer is a trusted proxy, the rightmost entry of
    /// `X-Forwarded-For` that is not a trusted proxy. Several header lines count as one list. If an entry is no
    /// address, the result is the proxy that wrote it, since entries further left cannot be trusted. Returns `None`
    /// only if there is no peer, as on a Unix socket.
    pub fn remote_ip(&self, peer: Option<SocketAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        let mut address = peer?.ip().to_canonical();
        let entries = headers
            .get_all("x-forwarded-for")
            .iter()
            .rev()
            // A line that is not text counts as one entry that is no address.
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

impl TrustedProxies {
    /// Returns the scheme of the client's request, `http` or `https`, as a trusted proxy states it: the first entry of
    /// `X-Forwarded-Proto`, or else the `proto` of the first element of `Forwarded`. Returns `None` if the peer is not
    /// a trusted proxy or does not state it.
    pub(super) fn scheme(&self, peer: Option<SocketAddr>, headers: &HeaderMap) -> Option<&'static str> {
        if !self.contains(peer?.ip()) {
            return None;
        }
        let first = |name: &str| {
            // A line that is not text states nothing.
            let line = headers.get(name)?.to_str().unwrap_or_default();
            Some(line.split(',').next().unwrap_or_default().trim())
        };
        let stated = match first("x-forwarded-proto") {
            Some(stated) => stated,
            None => {
                let mut pairs = first("forwarded")?.split(';').filter_map(|pair| pair.split_once('='));
                let (_, stated) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("proto"))?;
                stated.trim().trim_matches('"')
            }
        };
        ["http", "https"]
            .into_iter()
            .zip(["ws", "wss"])
            .find(|(http, ws)| stated.eq_ignore_ascii_case(http) || stated.eq_ignore_ascii_case(ws))
            .map(|(http, _)| http)
    }
}

/// Returns the address in an entry of `X-Forwarded-For`, which proxies write with or without a port and brackets.
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

/// The error for a text that is no list of networks (`10.0.0.0/8`) and addresses (`192.0.2.7`). It says what to write
/// instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no network: {hint}")]
pub struct ParseProxiesError {
    text: String,
    hint: String,
}

impl FromStr for TrustedProxies {
    type Err = ParseProxiesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Templates may leave a comma at the end.
        let items = || text.split(',').map(str::trim).filter(|item| !item.is_empty());
        if items().next().is_none() {
            let hint = "the list is empty; leave the setting out to trust proxies on the same machine".to_owned();
            return Err(ParseProxiesError { text: text.to_owned(), hint });
        }
        items()
            .map(|item| network(item).map_err(|hint| ParseProxiesError { text: item.to_owned(), hint }))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// Parses one network. The error says what to write instead.
fn network(item: &str) -> Result<IpNet, String> {
    const USAGE: &str = "use ADDRESS or ADDRESS/BITS, like 192.0.2.7 or 10.0.0.0/8";
    let bare = item.strip_prefix('[').and_then(|item| item.strip_suffix(']')).unwrap_or(item);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(address.to_canonical().into());
    }
    if let Ok(network) = item.parse::<IpNet>() {
        if network.addr() != network.network() {
            let (written, all) = (network.addr(), network.trunc());
            return Err(format!("the address is not the network's first; write {all} for the network or {written}"));
        }
        return Ok(unmapped(network));
    }
    if item.parse::<SocketAddr>().is_ok() {
        return Err(format!("it has a port, which a proxy's address has not; {USAGE}"));
    }
    if matches!(item, "*" | "all" | "any") {
        return Err("any client could claim any address; name the proxies' networks, \
                    or 0.0.0.0/0,::/0 if no stranger can connect"
            .into());
    }
    if item.contains('%') {
        return Err(format!("leave out the zone behind `%`; {USAGE}"));
    }
    let is_name = item.bytes().any(|byte| byte.is_ascii_alphabetic()) && !item.contains([':', '/']);
    if item.eq_ignore_ascii_case("localhost") {
        return Err("names are not looked up; write 127.0.0.0/8,::1".into());
    }
    if is_name {
        return Err(format!("names are not looked up; {USAGE}"));
    }
    Err(USAGE.into())
}

/// Converts a network of IPv4 addresses that are mapped into IPv6 to the IPv4 network that it means.
fn unmapped(network: IpNet) -> IpNet {
    match network {
        IpNet::V6(mapped) if mapped.prefix_len() >= 96 => match mapped.addr().to_ipv4_mapped() {
            Some(address) => IpNet::new_assert(address.into(), mapped.prefix_len() - 96),
            None => network,
        },
        network => network,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// Returns the client's address as text, for a peer and its lines of `X-Forwarded-For`.
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
    fn a_local_proxy_is_trusted_by_default() {
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
        // Every entry is trusted, so the leftmost is where the request began.
        assert_eq!(remote(&proxies, "127.0.0.1", &["10.0.0.1, 10.0.0.2"]), "10.0.0.1");
    }

    #[test]
    fn an_entry_that_is_no_address_ends_the_search() {
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
    fn without_a_peer_no_header_is_trusted() {
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", HeaderValue::from_static("1.2.3.4"));
        assert_eq!(TrustedProxies::default().remote_ip(None, &headers), None);
    }

    #[test]
    fn a_malformed_network_is_refused_with_a_hint() {
        for (text, item, hint) in [
            ("10.0.0.0/8,10.0.0.0/33", "10.0.0.0/33", "use ADDRESS or ADDRESS/BITS"),
            ("", "", "the list is empty"),
            (" , ", " , ", "the list is empty"),
            ("10.0.0.1/8", "10.0.0.1/8", "write 10.0.0.0/8 for the network or 10.0.0.1"),
            ("2001:db8::1/32", "2001:db8::1/32", "write 2001:db8::/32"),
            ("localhost", "localhost", "write 127.0.0.0/8,::1"),
            ("example.org", "example.org", "names are not looked up"),
            ("*", "*", "any client could"),
            ("10.0.0.1:8080", "10.0.0.1:8080", "it has a port"),
            ("[::1]:8080", "[::1]:8080", "it has a port"),
            ("fe80::1%eth0", "fe80::1%eth0", "zone"),
            ("10.0.0.0/255.0.0.0", "10.0.0.0/255.0.0.0", "use ADDRESS"),
            ("10.0.0.1-10.0.0.9", "10.0.0.1-10.0.0.9", "use ADDRESS"),
            ("10.0.0.0/", "10.0.0.0/", "use ADDRESS"),
            ("10.0.*.*", "10.0.*.*", "use ADDRESS"),
            ("010.0.0.1", "010.0.0.1", "use ADDRESS"),
        ] {
            let error = text.parse::<TrustedProxies>().expect_err(text).to_string();
            assert!(error.starts_with(&format!("{item:?} is no network: ")), "{error}");
            assert!(error.contains(hint), "{error}");
        }
    }

    #[test]
    fn common_ways_to_write_a_list_are_accepted() {
        let proxies: TrustedProxies =
            "10.0.0.0/8, [2001:db8::1] ,::ffff:192.0.2.7,::ffff:172.16.0.0/108,".parse().unwrap();
        for address in ["10.1.2.3", "2001:db8::1", "192.0.2.7", "::ffff:192.0.2.7", "172.31.255.255"] {
            assert!(proxies.contains(address.parse().unwrap()), "{address}");
        }
        for address in ["192.0.2.8", "172.32.0.0", "2001:db8::2", "::1"] {
            assert!(!proxies.contains(address.parse().unwrap()), "{address}");
        }
        let all: TrustedProxies = "0.0.0.0/0,::/0".parse().unwrap();
        assert!(all.contains("198.51.100.1".parse().unwrap()) && all.contains("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn only_a_trusted_proxy_tells_the_scheme() {
        let scheme = |peer: &str, lines: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, line) in lines {
                headers.append(*name, HeaderValue::from_str(line).unwrap());
            }
            TrustedProxies::default().scheme(Some(SocketAddr::new(peer.parse().unwrap(), 4711)), &headers)
        };
        let (https, http) = (Some("https"), Some("http"));
        assert_eq!(scheme("127.0.0.1", &[("x-forwarded-proto", "https")]), https);
        assert_eq!(scheme("::ffff:127.0.0.1", &[("x-forwarded-proto", " HTTPS ")]), https);
        assert_eq!(scheme("127.0.0.1", &[("x-forwarded-proto", "wss")]), https);
        assert_eq!(scheme("127.0.0.1", &[("x-forwarded-proto", "http")]), http);
        assert_eq!(scheme("127.0.0.1", &[("x-forwarded-proto", "https, http")]), https, "the client's is the first");
        assert_eq!(scheme("127.0.0.1", &[("forwarded", "for=192.0.2.7;Proto=https;by=10.0.0.1, proto=http")]), https);
        assert_eq!(scheme("127.0.0.1", &[("forwarded", "proto=\"http\"")]), http);
        assert_eq!(scheme("127.0.0.1", &[("forwarded", "for=192.0.2.7")]), None);
        assert_eq!(scheme("127.0.0.1", &[("forwarded", "proto=http"), ("x-forwarded-proto", "https")]), https);
        for nothing in ["", "ftp", "https http", ","] {
            assert_eq!(scheme("127.0.0.1", &[("x-forwarded-proto", nothing)]), None);
        }
        assert_eq!(scheme("127.0.0.1", &[]), None);
        assert_eq!(scheme("198.51.100.1", &[("x-forwarded-proto", "https")]), None, "a stranger");
    }
}
