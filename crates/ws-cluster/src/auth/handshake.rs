//! The upgrade request as an authenticator sees it, without its transport. A connection keeps what its authenticator
//! reads, because the authenticator is asked again when a session ends.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::{HeaderName, header, request::Parts};
use parking_lot::Mutex;

use super::{Origin, TrustedProxies};

/// The request with which a client connected. Its text is copied out of the request once, so that it does not hold the
/// buffer into which the request was read. Headers that only the transport needs (`Connection`, `Upgrade`,
/// `Sec-WebSocket-Key`, `-Version` and `-Extensions`) are left out. `Debug` shows neither headers nor the query.
///
/// At the upgrade the authenticator sees all headers. Afterwards the connection keeps these: `Accept-Language`,
/// `Authorization`, `Cookie`, `Host`, `Origin`, `Sec-WebSocket-Protocol`, `User-Agent`, those that the authenticator
/// read at the upgrade, and those that it [names](crate::Authenticator::headers). A handler finds only these in
/// [`Request::handshake`](crate::Request::handshake).
///
/// An application tests its own authenticator with a handshake that it makes from a request:
///
/// ```
/// use ws_cluster::{Handshake, TrustedProxies};
///
/// let request = http::Request::get("/WebSockets?room=7").header("cookie", "PHPSESSID=e4d909").body(()).unwrap();
/// let handshake = Handshake::new(&request.into_parts().0, None, &TrustedProxies::none());
/// assert_eq!(handshake.cookie("PHPSESSID"), Some("e4d909"));
/// assert_eq!(handshake.query("room").as_deref(), Some("7"));
/// ```
#[derive(Clone)]
pub struct Handshake {
    /// Lines: the path and query, the peer, the client's address, the scheme (empty if unknown), and each header as
    /// `name: value` in the order sent. It is one text, since every connection keeps it and reads most of it once or
    /// twice.
    text: Text,
}

/// The text of a handshake. As large as a `Box<str>`, since every connection has one.
#[derive(Clone)]
enum Text {
    Kept(Box<str>),
    /// The text until the upgrade is over, with the names of the headers that are read.
    Recording(Box<Recording>),
}

#[derive(Clone)]
struct Recording {
    text: Box<str>,
    /// The names of the headers that were read, in lower case. Clones share this list.
    asked: Arc<Mutex<Vec<Box<str>>>>,
}

/// Number of lines before the headers.
const HEAD_LINES: usize = 4;

/// The headers that a connection keeps besides those that its authenticator reads or names.
const KEPT_HEADERS: [&str; 7] =
    ["accept-language", "authorization", "cookie", "host", "origin", "sec-websocket-protocol", "user-agent"];

/// Maximum number of different headers that are noted as read. Others are not kept.
const MAX_READ: usize = 64;

/// Marks a request that came over TLS, among its extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encrypted;

impl Handshake {
    /// Returns the handshake of a request from `peer`, through `proxies`. `peer` is `None` if it is not an IP address
    /// or is unknown.
    pub fn new(request: &Parts, peer: Option<SocketAddr>, proxies: &TrustedProxies) -> Self {
        let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
        let ip = proxies.remote_ip(peer, &request.headers);
        let own = request.extensions.get().map(|Encrypted| "https");
        let scheme = proxies.scheme(peer, &request.headers).or(own).unwrap_or_default();
        let mut text = format!("{target}\n{}\n{}\n{scheme}", or_empty(peer), or_empty(ip));
        let mut add = |name: &HeaderName, value: &[u8]| {
            for part in ["\n", name.as_str(), ": "] {
                text.push_str(part);
            }
            for chunk in value.utf8_chunks() {
                text.push_str(chunk.valid());
                // One replacement character for a run of bytes. Otherwise a value could take three times its size.
                let continues = chunk.valid().is_empty() && text.ends_with('\u{fffd}');
                if !(chunk.invalid().is_empty() || continues) {
                    text.push('\u{fffd}');
                }
            }
        };
        let headers = request.headers.iter().filter(|(name, _)| !is_transport(name));
        // A header value contains no line break.
        headers.for_each(|(name, value)| add(name, value.as_bytes()));
        if let (None, Some(authority)) = (request.headers.get(header::HOST), request.uri.authority()) {
            add(&header::HOST, authority.as_str().as_bytes());
        }
        Self { text: Text::Recording(Box::new(Recording { text: text.into(), asked: Arc::default() })) }
    }

    /// Keeps only what may be read from now on: the usual headers, those that were read until now, and `named` ones.
    pub(crate) fn keep(&mut self, named: &[&str]) {
        let asked = match &self.text {
            Text::Recording(recording) => std::mem::take(&mut *recording.asked.lock()),
            Text::Kept(_) => Vec::new(),
        };
        let kept = |name: &str| {
            KEPT_HEADERS.contains(&name)
                || asked.iter().any(|asked| **asked == *name)
                || named.iter().any(|named| named.eq_ignore_ascii_case(name))
        };
        let lines =
            self.text().split('\n').enumerate().filter(|(number, line)| {
                *number < HEAD_LINES || line.split_once(": ").is_some_and(|(name, _)| kept(name))
            });
        let lines: Vec<&str> = lines.map(|(_, line)| line).collect();
        self.text = Text::Kept(lines.join("\n").into());
    }

    /// Notes that headers of this name are read.
    fn record(&self, name: &str) {
        let Text::Recording(recording) = &self.text else { return };
        let mut asked = recording.asked.lock();
        if asked.len() < MAX_READ && !asked.iter().any(|asked| asked.eq_ignore_ascii_case(name)) {
            asked.push(name.to_ascii_lowercase().into());
        }
    }

    fn text(&self) -> &str {
        match &self.text {
            Text::Kept(text) => text,
            Text::Recording(recording) => &recording.text,
        }
    }

    fn line(&self, number: usize) -> &str {
        self.text().split('\n').nth(number).unwrap_or_default()
    }

    fn path_and_query(&self) -> &str {
        self.line(0)
    }

    /// Returns the name, in lower case, and the value of each header.
    fn all_headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.text().split('\n').skip(HEAD_LINES).filter_map(|line| line.split_once(": "))
    }

    /// Returns the first header of this name, in any case. Bytes that are not UTF-8 become U+FFFD, several in a row
    /// become one.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).next()
    }

    /// Returns all headers of this name, in the order sent.
    pub fn headers(&self, name: &str) -> impl Iterator<Item = &str> {
        self.record(name);
        self.all_headers().filter(move |(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Returns the first cookie of this name (case-sensitive), as it was sent. The value is not percent-decoded, since
    /// that is a convention of each site's framework. The ids of PHP's sessions are plain. If a framework signs or
    /// encodes its ids, the authenticator has to undo that.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.cookies(name).next()
    }

    /// Returns all cookies of this name, in the form of [`cookie`](Self::cookie). Browsers send the cookie with the
    /// longest path first, and of equal paths the oldest.
    pub fn cookies(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers("cookie")
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.split_once('='))
            .filter(move |(own, _)| own.trim() == name)
            .map(|(_, value)| {
                let value = value.trim();
                value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
            })
    }

    /// Returns the first parameter of this name in the URL's query, decoded. URLs end up in logs and histories, so they
    /// must not contain anything that opens a session.
    pub fn query(&self, name: &str) -> Option<Cow<'_, str>> {
        let (_, query) = self.path_and_query().split_once('?')?;
        form_urlencoded::parse(query.as_bytes()).find(|(own, _)| own == name).map(|(_, value)| value)
    }

    /// Returns the names and values of the URL's query, decoded, in the order sent.
    pub fn query_pairs(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        let query = self.path_and_query().split_once('?').map_or("", |(_, query)| query);
        form_urlencoded::parse(query.as_bytes())
    }

    /// Takes parameters out of the query and returns the first of each name, decoded. The rest stays as it was sent.
    pub(crate) fn take_query<const N: usize>(&mut self, names: [&str; N]) -> [Option<String>; N] {
        let Some((path, query)) = self.path_and_query().split_once('?') else { return [const { None }; N] };
        let name = |pair: &str| form_urlencoded::parse(pair.as_bytes()).next().map(|(name, _)| name.into_owned());
        let (taken, rest): (Vec<&str>, Vec<&str>) =
            query.split('&').partition(|pair| name(pair).is_some_and(|name| names.contains(&&*name)));
        if taken.is_empty() {
            return [const { None }; N];
        }
        let values = names.map(|name| {
            let pairs = taken.iter().flat_map(|pair| form_urlencoded::parse(pair.as_bytes()));
            pairs.into_iter().find(|(own, _)| own == name).map(|(_, value)| value.into_owned())
        });
        let rest = rest.join("&");
        let target = if rest.is_empty() { path.to_owned() } else { format!("{path}?{rest}") };
        let text = format!("{target}{}", &self.text()[self.path_and_query().len()..]).into();
        match &mut self.text {
            Text::Kept(kept) => *kept = text,
            Text::Recording(recording) => recording.text = text,
        }
        values
    }

    /// Returns the path of the URL, not decoded.
    pub fn path(&self) -> &str {
        let target = self.path_and_query();
        target.split_once('?').map_or(target, |(path, _)| path)
    }

    /// Returns the token of `Authorization: Bearer TOKEN`, or else of the subprotocol `bearer.TOKEN`, which is how a
    /// browser sends one: `new WebSocket(url, ["ws-cluster.v1", "bearer." + token])`. The server never selects that
    /// subprotocol, so the token is not sent back. Browsers allow letters, digits and ``!#$%&'*+-.^_`|~`` in it, which
    /// JWTs consist of.
    pub fn bearer_token(&self) -> Option<&str> {
        let authorization = self.headers("authorization").filter_map(|line| line.trim().split_once([' ', '\t']));
        let mut tokens = authorization.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let token = tokens.next().map(|(_, token)| token.trim()).filter(|token| !token.is_empty());
        token.or_else(|| {
            let protocols = self.headers("sec-websocket-protocol").flat_map(|line| line.split(','));
            protocols.filter_map(|protocol| protocol.trim().strip_prefix("bearer.")).find(|token| !token.is_empty())
        })
    }

    /// Returns the address of the other end of the socket: the client or the last proxy.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.line(1).parse().ok()
    }

    /// Returns the client's address, through trusted proxies ([`TrustedProxies::remote_ip`]). An IPv4 address that is
    /// mapped into IPv6 is returned as IPv4. Returns `None` if the peer has no IP address.
    pub fn remote_ip(&self) -> Option<IpAddr> {
        self.line(2).parse().ok()
    }

    /// Returns the scheme of the client's request, `https` or `http`, as a trusted proxy states it in
    /// `X-Forwarded-Proto` or `Forwarded`. Without such a statement, it is `https` if the server itself speaks TLS with
    /// the client, and `None` otherwise.
    pub fn scheme(&self) -> Option<&str> {
        Some(self.line(3)).filter(|scheme| !scheme.is_empty())
    }

    /// Returns the client's software, as the client names it.
    pub fn user_agent(&self) -> Option<&str> {
        self.header("user-agent")
    }

    /// Returns the language that the client prefers, as a tag such as `de-CH`. Of several that it prefers equally, this is
    /// the first. `*` ("any other") does not count.
    pub fn language(&self) -> Option<&str> {
        let accepted = self.headers("accept-language").flat_map(|line| line.split(',')).filter_map(|item| {
            let mut parts = item.split(';').map(str::trim);
            let tag = parts.next()?;
            let weight: f32 = match parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q="))) {
                Some(weight) => weight.parse().ok()?,
                None => 1.0,
            };
            (!tag.is_empty() && tag != "*" && weight > 0.0).then_some((tag, weight))
        });
        accepted.reduce(|best, other| if other.1 > best.1 { other } else { best }).map(|(tag, _)| tag)
    }

    /// Returns the host that the client asked for: `HOST` or `HOST:PORT`.
    pub fn host(&self) -> Option<&str> {
        self.header("host")
    }

    /// Returns the origin of the page that opened the connection, as the browser states it. Other clients than browsers
    /// send none.
    pub fn origin(&self) -> Option<&str> {
        self.header("origin")
    }

    /// Returns true if the page that opened the connection is one of the host's own, or of an allowed origin, so that
    /// its cookies may count.
    ///
    /// A client without an `Origin` is no browser and passes. Host and port must be those of the `Host` header; a
    /// default port may be written or left out. `X-Forwarded-Host` is ignored, so a proxy has to pass on `Host` with
    /// its port (nginx: `proxy_set_header Host $http_host`). If the [scheme](Self::scheme) is known, the page must have
    /// the same one (nginx: `proxy_set_header X-Forwarded-Proto $scheme`). Otherwise a page of `http://HOST` passes for
    /// `https://HOST` as well. The origin `null` of sandboxed pages is foreign.
    pub fn origin_allowed(&self, allowed: &[Origin]) -> bool {
        self.may_connect(allowed, true)
    }

    /// Returns true as [`origin_allowed`](Self::origin_allowed) does, but the host's own pages pass only if `own` is
    /// true.
    pub(crate) fn may_connect(&self, allowed: &[Origin], own: bool) -> bool {
        self.headers("origin").all(|origin| {
            origin.parse().is_ok_and(|origin: Origin| {
                allowed.iter().any(|allowed| allowed.covers(&origin))
                    || own && self.host().is_some_and(|host| origin.is_host(host, self.scheme()))
            })
        })
    }
}

fn or_empty(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn is_transport(name: &HeaderName) -> bool {
    [
        header::CONNECTION,
        header::UPGRADE,
        header::SEC_WEBSOCKET_KEY,
        header::SEC_WEBSOCKET_VERSION,
        header::SEC_WEBSOCKET_EXTENSIONS,
    ]
    .contains(name)
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names only: besides cookies and authorization, any header of an application may hold a secret.
        f.debug_struct("Handshake")
            .field("path", &self.path())
            .field("peer", &self.peer())
            .field("remote_ip", &self.remote_ip())
            .field("headers", &self.all_headers().map(|(name, _)| name).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};

    use super::*;

    fn handshake(uri: &str, headers: &[(&str, &str)]) -> Handshake {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let peer = Some("127.0.0.1:4711".parse().unwrap());
        Handshake::new(&request.body(()).unwrap().into_parts().0, peer, &TrustedProxies::default())
    }

    #[test]
    fn headers_are_found_in_any_case() {
        let handshake = handshake("/", &[("X-Thing", "one"), ("x-thing", "two"), ("user-agent", "Nétscape/4")]);
        assert_eq!(handshake.header("x-THING"), Some("one"));
        assert_eq!(handshake.headers("X-Thing").collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(handshake.user_agent(), Some("Nétscape/4"));
        assert_eq!(handshake.header("x-other"), None);
    }

    #[test]
    fn a_connection_keeps_the_headers_that_an_authenticator_may_ask_for() {
        let sent =
            [("x-junk", "junk"), ("cookie", "sid=1"), ("x-user", "ann"), ("x-device", "7"), ("user-agent", "ua")];
        let mut handshake = handshake("/WebSockets?a=b", &sent);
        assert_eq!(handshake.header("X-User"), Some("ann"));
        handshake.keep(&["X-Device"]);
        let names: Vec<_> = handshake.all_headers().map(|(name, _)| name).collect();
        assert_eq!(names, ["cookie", "x-user", "x-device", "user-agent"]);
        assert_eq!(handshake.header("x-junk"), None);
        assert_eq!(handshake.query("a").as_deref(), Some("b"));
        assert_eq!(handshake.peer(), Some("127.0.0.1:4711".parse().unwrap()));
    }

    #[test]
    fn bytes_that_are_not_text_do_not_grow() {
        let value = HeaderValue::from_bytes(&[b"a".as_slice(), &[0xff; 4_000], b"b"].concat()).unwrap();
        let request = Request::get("/")
            .header("user-agent", value)
            .header("x-latin", HeaderValue::from_bytes(b"J\xf6rg").unwrap());
        let handshake = Handshake::new(&request.body(()).unwrap().into_parts().0, None, &TrustedProxies::default());
        assert_eq!(handshake.user_agent(), Some("a\u{fffd}b"));
        assert_eq!(handshake.header("x-latin"), Some("J\u{fffd}rg"));
    }

    #[test]
    fn the_transport_is_left_out() {
        let handshake =
            handshake("/", &[("sec-websocket-key", "x"), ("upgrade", "websocket"), ("connection", "upgrade")]);
        assert_eq!(handshake.all_headers().count(), 0);
    }

    #[test]
    fn the_first_cookie_of_a_name_counts_as_sent() {
        let lines = [("cookie", "a=1; sid=e4%2Cd9; sid=second;empty=; noise"), ("cookie", "b=\"quoted\"; a=2; c=x=y")];
        let handshake = handshake("/", &lines);
        assert_eq!(handshake.cookie("sid"), Some("e4%2Cd9"));
        assert_eq!(handshake.cookie("a"), Some("1"));
        assert_eq!(handshake.cookie("b"), Some("quoted"));
        assert_eq!(handshake.cookie("c"), Some("x=y"));
        assert_eq!(handshake.cookie("empty"), Some(""));
        assert_eq!(handshake.cookie("SID"), None);
        assert_eq!(handshake.cookie("noise"), None);
    }

    #[test]
    fn query_parameters_are_decoded() {
        let handshake = handshake("/WebSockets?user=J%C3%B6rg+M&x&user=second", &[]);
        assert_eq!(handshake.query("user").as_deref(), Some("Jörg M"));
        assert_eq!(handshake.query("x").as_deref(), Some(""));
        assert_eq!(handshake.query("y"), None);
        assert_eq!(handshake.path(), "/WebSockets");
    }

    #[test]
    fn parameters_taken_out_of_the_query_are_gone() {
        let mut whole = handshake("/WebSockets?resume=a%2Db&user=J%C3%B6rg&state=s&x&resume=second", &[]);
        assert_eq!(whole.take_query(["resume", "state"]), [Some("a-b".into()), Some("s".into())]);
        assert_eq!(whole.path_and_query(), "/WebSockets?user=J%C3%B6rg&x");
        assert_eq!(whole.take_query(["resume"]), [None]);
        let mut alone = handshake("/WebSockets?resume=", &[]);
        assert_eq!(alone.take_query(["resume", "state"]), [Some("".into()), None]);
        assert_eq!(alone.path_and_query(), "/WebSockets");
    }

    #[test]
    fn only_bearer_tokens_are_tokens() {
        let token = |value| handshake("/", &[("authorization", value)]).bearer_token().map(str::to_owned);
        assert_eq!(token("Bearer abc"), Some("abc".into()));
        assert_eq!(token("bearer  abc "), Some("abc".into()));
        assert_eq!(token("Bearer "), None);
        assert_eq!(token("Basic abc"), None);
        assert_eq!(token("abc"), None);
    }

    #[test]
    fn the_remote_address_is_looked_for_behind_proxies() {
        let forwarded = handshake("/", &[("x-forwarded-for", "1.2.3.4")]);
        assert_eq!(forwarded.remote_ip(), Some("1.2.3.4".parse().unwrap()));
        assert_eq!(forwarded.peer(), Some("127.0.0.1:4711".parse().unwrap()));
    }

    #[test]
    fn the_language_is_the_preferred_one_and_the_first_of_equals() {
        for (header, language) in [
            ("en;q=0.8, de-CH , fr;q=0, de;q=0.9, *;q=0.5", Some("de-CH")),
            ("en;q=0.8, fr;q=0, de;q=0.9, *;q=0.5", Some("de")),
            ("en;q=0.8, fr;q=0, *;q=0.5", Some("en")),
            ("fr;q=0, *;q=0.5", None),
            ("en, de", Some("en")),
            ("en;q=high, de;q=0.1", Some("de")),
            ("*", None),
            ("de-CH,de;q=0.9", Some("de-CH")),
        ] {
            assert_eq!(handshake("/", &[("accept-language", header)]).language(), language, "{header}");
        }
        assert_eq!(handshake("/", &[]).language(), None);
    }

    #[test]
    fn a_page_of_the_host_itself_is_allowed_and_a_foreign_one_is_not() {
        let allowed = |origin: &str, extra: &[&str]| {
            let extra: Vec<Origin> = extra.iter().map(|origin| origin.parse().unwrap()).collect();
            handshake("/", &[("host", "example.org"), ("origin", origin)]).origin_allowed(&extra)
        };
        assert!(allowed("https://example.org", &[]));
        assert!(allowed("http://example.org", &[]));
        assert!(!allowed("https://evil.example", &[]));
        assert!(!allowed("https://example.org:8443", &[]));
        assert!(!allowed("null", &[]));
        assert!(!allowed("", &[]));
        assert!(allowed("https://app.example", &["https://app.example"]));
        assert!(!allowed("http://app.example", &["https://app.example"]));
        assert!(allowed("capacitor://localhost", &["capacitor://localhost"]));
    }

    #[test]
    fn no_origin_passes_and_two_must_both() {
        assert!(handshake("/", &[("host", "example.org")]).origin_allowed(&[]));
        assert!(!handshake("/", &[("origin", "https://example.org")]).origin_allowed(&[]));
        let two = [("host", "a.example"), ("origin", "http://a.example"), ("origin", "http://b.example")];
        assert!(!handshake("/", &two).origin_allowed(&[]));
        let forwarded = [("host", "a.example"), ("x-forwarded-host", "b.example"), ("origin", "http://b.example")];
        assert!(!handshake("/", &forwarded).origin_allowed(&[]));
        assert!(handshake("http://a.example/", &[("origin", "http://a.example")]).origin_allowed(&[]));
    }

    #[test]
    fn a_page_of_the_other_scheme_is_foreign_if_the_scheme_is_known() {
        let allowed = |origin: &str, forwarded: &[(&str, &str)]| {
            let headers = [&[("host", "example.org"), ("origin", origin)], forwarded].concat();
            handshake("/", &headers).origin_allowed(&[])
        };
        for https in [("x-forwarded-proto", "https"), ("forwarded", "for=192.0.2.7;proto=https")] {
            assert!(allowed("https://example.org", &[https]));
            assert!(!allowed("http://example.org", &[https]));
        }
        assert!(allowed("http://example.org", &[("x-forwarded-proto", "http")]));
        assert!(!allowed("https://example.org", &[("x-forwarded-proto", "http")]));
        let request = Request::get("/").header("host", "example.org").header("origin", "http://example.org");
        let request = request.header("x-forwarded-proto", "https").body(()).unwrap().into_parts().0;
        let stranger = Some("198.51.100.1:4711".parse().unwrap());
        assert!(Handshake::new(&request, stranger, &TrustedProxies::default()).origin_allowed(&[]));
    }

    #[test]
    fn an_exclusive_list_and_wildcards_decide_about_pages() {
        let page = |origin| handshake("/", &[("host", "example.org"), ("origin", origin)]);
        let list = ["https://*.example.org".parse().unwrap()];
        assert!(page("https://a.example.org").may_connect(&list, false));
        assert!(!page("https://example.org").may_connect(&list, false));
        assert!(page("https://example.org").may_connect(&list, true));
        assert!(!page("https://*.example.org").may_connect(&list, true));
        assert!(!page("*").may_connect(&list, true));
    }

    #[test]
    fn a_token_comes_as_a_subprotocol_too() {
        let token = |lines: &[(&str, &str)]| handshake("/", lines).bearer_token().map(str::to_owned);
        let protocol = "sec-websocket-protocol";
        assert_eq!(token(&[(protocol, "ws-cluster.v1, bearer.a.b-c_d")]), Some("a.b-c_d".into()));
        assert_eq!(token(&[(protocol, "ws-cluster.v1"), (protocol, "\tbearer.abc")]), Some("abc".into()));
        assert_eq!(token(&[(protocol, "bearer.,json,bearer")]), None);
        assert_eq!(token(&[(protocol, "bearer.abc"), ("authorization", "Bearer def")]), Some("def".into()));
        assert_eq!(token(&[(protocol, "bearer.abc"), ("authorization", "Basic def")]), Some("abc".into()));
    }

    #[test]
    fn debug_shows_no_secret() {
        let secrets = [("cookie", "sid=SECRET"), ("authorization", "Bearer SECRET"), ("x-api-key", "SECRET")];
        let text = format!("{:?}", handshake("/path?token=SECRET", &secrets));
        assert!(!text.contains("SECRET"), "{text}");
        assert!(text.contains("/path") && text.contains("cookie") && text.contains("127.0.0.1"), "{text}");
    }
}
