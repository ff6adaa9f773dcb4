//! The origin of a web page, as browsers state it in `Origin` and operators in the allowed list. Pure.

use std::{fmt, str::FromStr};

use url::Url;

/// Where a page comes from: scheme, host and port, as in `https://example.org`. A default port may be left out or
/// written; `ws` and `wss` mean `http` and `https`. Applications outside the web have schemes of their own
/// (`capacitor://localhost`).
///
/// ```
/// use ws_cluster::Origin;
///
/// let origin: Origin = "https://Example.org:443/".parse().unwrap();
/// assert_eq!(origin, "wss://example.org".parse().unwrap());
/// assert_eq!(origin.to_string(), "https://example.org");
/// assert!("example.org".parse::<Origin>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    scheme: String,
    host: String,
    /// The scheme's default where none was written; `None` where the scheme has no default.
    port: Option<u16>,
}

impl Origin {
    /// Whether a request to `host` (a `Host` header: `HOST` or `HOST:PORT`) stays on this origin. The scheme of the
    /// request is unknown behind a proxy that ends TLS, so a host without a port has this origin's default one.
    pub(super) fn is_host(&self, host: &str) -> bool {
        self.is_web() && format!("{}://{host}", self.scheme).parse().is_ok_and(|own: Self| own == *self)
    }

    fn is_web(&self) -> bool {
        matches!(self.scheme.as_str(), "http" | "https")
    }
}

/// The text is no origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no origin: use SCHEME://HOST or SCHEME://HOST:PORT, like https://example.org")]
pub struct ParseOriginError(String);

impl FromStr for Origin {
    type Err = ParseOriginError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || ParseOriginError(text.to_owned());
        let url = Url::parse(text).map_err(|_| malformed())?;
        let bare = matches!(url.path(), "" | "/")
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        let scheme = match url.scheme() {
            "ws" => "http",
            "wss" => "https",
            scheme => scheme,
        };
        match url.host_str() {
            Some(host) if bare && !host.is_empty() => {
                Ok(Self { scheme: scheme.to_owned(), host: host.to_owned(), port: url.port_or_known_default() })
            }
            _ => Err(malformed()),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
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
    fn anything_but_scheme_host_and_port_is_refused() {
        for text in [
            "",
            "null",
            "*",
            "example.org",
            "localhost:8080",
            "https://",
            "https://example.org/app",
            "https://example.org/?a",
            "https://example.org/#a",
            "https://user@example.org",
            "https://*.example.org:port",
            "file:///etc",
        ] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_host_is_the_same_with_and_without_its_default_port() {
        assert!(origin("https://example.org").is_host("example.org"));
        assert!(origin("https://example.org").is_host("Example.org:443"));
        assert!(origin("http://example.org:8080").is_host("example.org:8080"));
        assert!(origin("http://[::1]:8080").is_host("[::1]:8080"));
        assert!(!origin("https://example.org").is_host("example.org:8080"));
        assert!(!origin("https://example.org:8080").is_host("example.org"));
        assert!(!origin("https://example.org").is_host("example.org.evil.example"));
        assert!(!origin("https://evil.example").is_host("example.org"));
        assert!(!origin("https://example.org").is_host("user@example.org"));
        assert!(!origin("https://example.org").is_host(""));
        assert!(!origin("capacitor://localhost").is_host("localhost"));
    }
}
