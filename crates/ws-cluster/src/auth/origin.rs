//! The origin of a web page, as browsers state it in `Origin` and operators in the list of allowed origins. Pure.

use std::{fmt, str::FromStr};

use url::{Host, Url};

/// The origin of a page: scheme, host and port, as in `https://example.org`. A default port may be left out or written;
/// `ws` and `wss` mean `http` and `https`. Applications outside the web have schemes of their own
/// (`capacitor://localhost`).
///
/// In a list of allowed origins, `https://*.example.org` means all subdomains of `example.org`, of any depth, but not
/// `example.org` itself. `*` has no other meaning: it cannot stand for every origin, or for a part of a label, a port
/// or a scheme.
///
/// ```
/// use ws_cluster::Origin;
///
/// let origin: Origin = "https://Example.org:443/".parse().unwrap();
/// assert_eq!(origin, "wss://example.org".parse().unwrap());
/// assert_eq!(origin.to_string(), "https://example.org");
/// assert!("https://*.example.org".parse::<Origin>().is_ok());
/// assert!("example.org".parse::<Origin>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    scheme: String,
    /// True if all subdomains of the host are meant instead of the host.
    subdomains: bool,
    host: String,
    /// The port, or the scheme's default if no port was written; `None` if the scheme has no default.
    port: Option<u16>,
}

/// Names below which only hosts of a private network exist, so that `*.NAME` does not cover half of the web.
const LOCAL: [&str; 4] = ["internal", "local", "localhost", "test"];

impl Origin {
    /// Returns true if the origin of a page is this one, or one that this one's `*` stands for.
    pub(super) fn covers(&self, page: &Self) -> bool {
        let is_host = if self.subdomains {
            page.host
                .strip_suffix(&*self.host)
                .and_then(|labels| labels.strip_suffix('.'))
                .is_some_and(|labels| !labels.is_empty())
        } else {
            page.host == self.host
        };
        is_host && !page.subdomains && page.scheme == self.scheme && page.port == self.port
    }

    /// Returns true if a request to `host` (a `Host` header: `HOST` or `HOST:PORT`) stays on this origin. `scheme` is
    /// the scheme of the request, if a proxy states it. Otherwise `http` and `https` both pass, and a host without a
    /// port has this origin's default port.
    pub(super) fn is_host(&self, host: &str, scheme: Option<&str>) -> bool {
        self.is_web()
            && !self.subdomains
            && scheme.is_none_or(|scheme| scheme == self.scheme)
            && format!("{}://{host}", self.scheme).parse().is_ok_and(|own: Self| own == *self)
    }

    fn is_web(&self) -> bool {
        matches!(self.scheme.as_str(), "http" | "https")
    }
}

/// The error for a text that is no origin. It says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no origin: {hint}")]
pub struct ParseOriginError {
    text: String,
    hint: String,
}

impl FromStr for Origin {
    type Err = ParseOriginError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text.trim()).map_err(|hint| ParseOriginError { text: text.to_owned(), hint })
    }
}

/// Parses an origin. The error says what to write instead.
fn parse(text: &str) -> Result<Origin, String> {
    const EVERY: &str = "every page of the web could act with its visitors' cookies; name each origin, like \
                         https://example.org or https://*.example.org";
    if text.bytes().any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control()) {
        return Err("it has white space in it; write one origin for each setting, or commas between them".into());
    }
    match text {
        "" => return Err("it is empty; use SCHEME://HOST or SCHEME://HOST:PORT, like https://example.org".into()),
        "null" => {
            return Err(
                "it is the origin of sandboxed pages and of files, so it names no site and cannot be allowed".into()
            );
        }
        "*" => return Err(EVERY.into()),
        _ => {}
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        let host = text.trim_start_matches('/').split('/').next().unwrap_or_default();
        return Err(format!("the scheme is missing; write https://{host}"));
    };
    if scheme.eq_ignore_ascii_case("file") {
        return Err("pages from files have the origin null, which names no site and cannot be allowed".into());
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if scheme.contains('*') {
        return Err(format!(
            "the scheme cannot be left open; write https://{authority}, and http://{authority} if needed"
        ));
    }
    // A parser of URLs passes over wrong slashes, and takes what follows the first of them for the host.
    let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    if !scheme.starts_with(|first: char| first.is_ascii_alphabetic()) || !scheme.bytes().all(is_scheme) {
        return Err(format!(
            "{scheme:?} is no scheme; use SCHEME://HOST or SCHEME://HOST:PORT, like https://example.org"
        ));
    }
    if authority == "*" || authority.starts_with("*:") {
        return Err(EVERY.into());
    }
    let subdomains = authority.starts_with("*.");
    let bare = authority.strip_prefix("*.").unwrap_or(authority);
    if let Some((host, port)) = bare.rsplit_once(':')
        && port.contains('*')
    {
        return Err(format!("a port cannot be left open; write each one, like {scheme}://{host}:8443"));
    }
    if bare.contains('*') {
        return Err("`*` stands for whole labels at the beginning only, like https://*.example.org".into());
    }
    if authority.contains('@') {
        return Err("an origin has no user in it".into());
    }
    if bare.matches(':').count() > 1 && !bare.starts_with('[') {
        return Err(format!("an IPv6 address stands in brackets, like {scheme}://[2001:db8::1]"));
    }
    if let Some((first, _)) = authority.split_once([',', ';']) {
        return Err(format!("it is more than one; write each by itself, like {scheme}://{first}"));
    }
    if !matches!(&rest[authority.len()..], "" | "/") {
        return Err(format!("an origin has no path; write {scheme}://{authority}"));
    }
    let malformed = || "use SCHEME://HOST or SCHEME://HOST:PORT, like https://example.org".to_owned();
    let url = Url::parse(&format!("{scheme}://{bare}")).map_err(|error| format!("{error}; {}", malformed()))?;
    let scheme = match url.scheme() {
        "ws" => "http",
        "wss" => "https",
        scheme => scheme,
    };
    // A dot at the end does not change the host.
    let host = url.host_str().map(|host| host.strip_suffix('.').unwrap_or(host)).filter(|host| !host.is_empty());
    // What is refused above may come back from a percent-encoded or a wide character.
    let host = host.filter(|host| !host.split('.').any(str::is_empty) && !host.contains(['*', ',', ';', '%']));
    let host = host.ok_or_else(malformed)?;
    if subdomains {
        if !matches!(url.host(), Some(Host::Domain(_))) || scheme != "http" && scheme != "https" {
            return Err("only a domain has subdomains, like https://*.example.org".into());
        }
        if !host.contains('.') && !LOCAL.contains(&host) {
            return Err(format!("all domains below {host:?} are too many; name a domain of your own"));
        }
    }
    Ok(Origin { scheme: scheme.to_owned(), subdomains, host: host.to_owned(), port: url.port_or_known_default() })
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wildcard = if self.subdomains { "*." } else { "" };
        write!(f, "{}://{wildcard}{}", self.scheme, self.host)?;
        match (self.scheme.as_str(), self.port) {
            (_, None) | ("http", Some(80)) | ("https", Some(443)) => Ok(()),
            (_, Some(port)) => write!(f, ":{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Origin {
        text.parse().unwrap()
    }

    #[test]
    fn default_ports_and_case_do_not_matter() {
        assert_eq!(origin("http://EXAMPLE.org"), origin("ws://example.org:80/"));
        assert_eq!(origin("https://[::1]"), origin("wss://[0:0::1]:443"));
        assert_ne!(origin("http://example.org"), origin("https://example.org"));
        assert_ne!(origin("http://example.org"), origin("http://example.org:8080"));
        assert_eq!(origin("http://example.org:8080").to_string(), "http://example.org:8080");
        assert_eq!(origin("capacitor://localhost").to_string(), "capacitor://localhost");
    }

    #[test]
    fn a_malformed_origin_is_refused_with_a_hint() {
        for (text, hint) in [
            ("", "it is empty"),
            (" ", "it is empty"),
            ("https://example.org..", "use SCHEME://HOST"),
            ("https://a..b.example", "use SCHEME://HOST"),
            ("null", "cannot be allowed"),
            ("*", "every page of the web"),
            ("https://*", "every page of the web"),
            ("https://*:8443", "every page of the web"),
            ("https://*/", "every page of the web"),
            ("capacitor://*", "every page of the web"),
            ("*://example.org", "write https://example.org"),
            ("example.org", "write https://example.org"),
            ("*.example.org", "write https://*.example.org"),
            ("//example.org", "write https://example.org"),
            ("example.org/app", "write https://example.org"),
            ("localhost:8080", "write https://localhost:8080"),
            ("https://", "use SCHEME://HOST"),
            ("https://*.exa%2ample.org", "use SCHEME://HOST"),
            ("https://%2a.example.org", "use SCHEME://HOST"),
            ("https://\u{ff0a}.example.org", "use SCHEME://HOST"),
            ("https://a.example%3bb.example", "use SCHEME://HOST"),
            ("https://a.example\u{ff0c}b.example", "use SCHEME://HOST"),
            ("capacitor://local%2ahost", "use SCHEME://HOST"),
            ("://example.org", "is no scheme"),
            ("1https://example.org", "is no scheme"),
            ("http:/;/ettps://example.org", "is no scheme"),
            ("http:/evil.example/https://example.org", "is no scheme"),
            ("https:\\evil.example\\x://example.org", "is no scheme"),
            ("https;://example.org", "is no scheme"),
            ("https://example.org/app", "no path; write https://example.org"),
            ("https://example.org/*", "no path; write https://example.org"),
            ("https://example.org//", "no path; write https://example.org"),
            ("https://example.org/?a", "no path; write https://example.org"),
            ("https://example.org#a", "no path; write https://example.org"),
            ("https://user@example.org", "no user"),
            ("https://example.*", "whole labels"),
            ("https://*example.org", "whole labels"),
            ("https://a*.example.org", "whole labels"),
            ("https://a.*.example.org", "whole labels"),
            ("https://*.*.example.org", "whole labels"),
            ("https://example.org:*", "a port cannot be left open"),
            ("https://*.example.org:*", "a port cannot be left open"),
            ("https://*.example.org:port", "invalid port"),
            ("https://example.org:70000", "invalid port"),
            ("https://*.", "use SCHEME://HOST"),
            ("https://*.com", "too many"),
            ("https://*.192.0.2.7", "only a domain"),
            ("https://*.[::1]", "only a domain"),
            ("capacitor://*.example.org", "only a domain"),
            ("https://::1", "brackets"),
            ("https://2001:db8::1", "brackets"),
            ("https://a.example,b.example", "more than one"),
            ("https://a.example,https://b.example", "more than one"),
            ("https://a.example;https://b.example", "more than one"),
            ("https://a.example https://b.example", "white space"),
            ("https://a.example\nhttps://b.example", "white space"),
            ("https://exa mple.org", "white space"),
            ("file:///etc", "cannot be allowed"),
            ("file://host", "cannot be allowed"),
        ] {
            let error = text.parse::<Origin>().expect_err(text).to_string();
            assert!(error.contains(hint), "{error}");
            assert!(error.starts_with(&format!("{text:?} is no origin: ")), "{error}");
        }
    }

    #[test]
    fn common_ways_to_write_an_origin_are_accepted() {
        for (text, shown) in [
            ("HTTPS://EXAMPLE.ORG", "https://example.org"),
            (" https://example.org\n", "https://example.org"),
            ("https://example.org./", "https://example.org"),
            ("https://b\u{fc}cher.example", "https://xn--bcher-kva.example"),
            ("https://*.B\u{fc}cher.example", "https://*.xn--bcher-kva.example"),
            ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
            ("http://[0:0::1]:8080", "http://[::1]:8080"),
            ("http://192.0.2.7:80", "http://192.0.2.7"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("http://intranet", "http://intranet"),
            ("http://*.localhost:3000", "http://*.localhost:3000"),
            ("wss://*.example.org:443/", "https://*.example.org"),
            ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ] {
            let origin = origin(text);
            assert_eq!(origin.to_string(), shown);
            assert_eq!(origin, shown.parse().unwrap());
        }
    }

    #[test]
    fn a_wildcard_stands_for_labels_before_the_domain() {
        let any = origin("https://*.example.org");
        for page in ["https://a.example.org", "https://A.b.example.org:443"] {
            assert!(any.covers(&origin(page)), "{page}");
        }
        for page in [
            "https://example.org",
            "https://evilexample.org",
            "https://a.example.org.evil.example",
            "https://a.example.org:8443",
            "http://a.example.org",
            "https://*.example.org",
            "https://*.a.example.org",
        ] {
            assert!(!any.covers(&origin(page)), "{page}");
        }
        assert!(origin("http://*.example.org:8080").covers(&origin("http://a.example.org:8080")));
        assert!(!origin("https://a.example.org").covers(&any));
    }

    #[test]
    fn a_host_is_the_same_with_and_without_its_default_port() {
        let is_host = |page: &str, host: &str| origin(page).is_host(host, None);
        assert!(is_host("https://example.org", "example.org"));
        assert!(is_host("https://example.org", "Example.org:443"));
        assert!(is_host("http://example.org:8080", "example.org:8080"));
        assert!(is_host("http://[::1]:8080", "[::1]:8080"));
        assert!(!is_host("https://example.org", "example.org:8080"));
        assert!(!is_host("https://example.org:8080", "example.org"));
        assert!(!is_host("https://example.org", "example.org.evil.example"));
        assert!(!is_host("https://evil.example", "example.org"));
        assert!(!is_host("https://example.org", "user@example.org"));
        assert!(!is_host("https://example.org", ""));
        assert!(!is_host("https://a.example.org", "*.example.org"));
        assert!(!is_host("capacitor://localhost", "localhost"));
    }

    #[test]
    fn a_host_whose_scheme_is_known_has_one_origin() {
        assert!(origin("https://example.org").is_host("example.org", Some("https")));
        assert!(!origin("http://example.org").is_host("example.org", Some("https")));
        assert!(origin("http://example.org").is_host("example.org", Some("http")));
        assert!(!origin("https://example.org").is_host("example.org", Some("http")));
        assert!(!origin("http://example.org:443").is_host("example.org:443", Some("https")));
    }
}
