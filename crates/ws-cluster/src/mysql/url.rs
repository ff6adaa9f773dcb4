//! The URL of a database. The driver does not read it, because the driver's errors repeat parts of the URL, which may
//! be parts of a password, and some of its options cause a panic or do nothing.

use std::{borrow::Cow, fmt, time::Duration};

use mysql_async::{Compression, OptsBuilder};
use percent_encoding::percent_decode_str;
use url::{Host, Url};

/// The form of the URL, for errors.
pub(crate) const FORM: &str = "mysql://user:password@host:port/database";

/// The options that may follow `?`, for errors.
const OPTIONS: &str = "socket, require_ssl, ssl_ca, ssl_hostname, ssl_cert, ssl_key, built_in_roots, verify_ca, \
    verify_identity, enable_cleartext_plugin, compression, tcp_keepalive, tcp_nodelay, max_allowed_packet, \
    wait_timeout, stmt_cache_size and prefer_socket";

/// Time of silence after which TCP checks that the server is still there.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A database that a URL names.
pub(crate) struct Database {
    pub(crate) options: OptsBuilder,
    /// `host:port` or the socket's path, for errors.
    pub(crate) server: String,
}

/// Reads the URL of a database. It dials nothing, and reads no files except those with certificates.
///
/// The error says what is wrong and what to write instead. It repeats no value of the URL, only the names of options.
pub(crate) fn parse(text: &str) -> Result<Database, String> {
    read(text).map_err(|why| format!("{why}; give {FORM}"))
}

/// The text of a mistake.
type Wrong = Cow<'static, str>;

fn read(text: &str) -> Result<Database, Wrong> {
    let url = Url::parse(text).map_err(|error| match error {
        url::ParseError::EmptyHost => "no host is named (for a socket, write localhost)".into(),
        url::ParseError::InvalidPort => {
            Wrong::from("invalid port number (if it is part of a password, percent-encode that)")
        }
        url::ParseError::RelativeUrlWithoutBase => "no scheme".into(),
        error => error.to_string().into(),
    })?;
    if !matches!(url.scheme(), "mysql" | "mariadb") {
        // The text before the colon may be a user's name, but not a password.
        return Err(format!("unknown scheme `{}:`", shown(url.scheme())).into());
    }
    // An unencoded `/`, `?` or `#` in the password moves the rest of the URL into another part.
    let path = url.path().strip_prefix('/').unwrap_or_default();
    if url.fragment().is_some() || path.contains(['@', ':']) || url.query().is_some_and(|query| query.contains('@')) {
        return Err("percent-encode what is no letter or digit in user and password".into());
    }
    if url.cannot_be_a_base() {
        return Err("two slashes have to follow the scheme".into());
    }
    let database = match path.split_once('/') {
        None if path.is_empty() => return Err("no database is named".into()),
        None => path,
        Some(("", _)) => return Err("no database is named: only one slash may stand before it".into()),
        Some((_, "")) => return Err("a slash follows the database's name: remove the slash".into()),
        Some(_) => return Err("something follows the database's name: remove it, or percent-encode the slash".into()),
    };
    let options = Options::of(&url)?;
    let port = match url.port() {
        Some(0) => return Err("invalid port number: 0".into()),
        port => port.unwrap_or(3306),
    };
    let host = match url.host() {
        Some(Host::Ipv6(ip)) => ip.to_string(),
        Some(host) => decoded(&host.to_string(), "the host")?,
        None => String::new(),
    };
    if host.contains('/') {
        return Err("the host is a path: for a socket, write localhost and the option socket=PATH".into());
    }
    let host = match (host.is_empty(), &options.socket) {
        (true, None) => return Err("no host is named".into()),
        (true, Some(_)) => "localhost".to_owned(),
        (false, _) => host,
    };
    let server = match &options.socket {
        Some(path) => path.clone(),
        None if host.contains(':') => format!("[{host}]:{port}"),
        None => format!("{host}:{port}"),
    };
    let mut builder = OptsBuilder::default()
        // Given apart from the URL, the host is resolved without blocking the thread.
        .ip_or_hostname(host)
        .tcp_port(port)
        .db_name(Some(decoded(database, "the database's name")?))
        // A local address may be a tunnel or a container's port. The socket that its server names would then be another
        // server's.
        .prefer_socket(false)
        .tcp_keepalive(Some(options.keepalive.unwrap_or(KEEPALIVE)))
        .max_allowed_packet(options.max_allowed_packet)
        .wait_timeout(options.wait_timeout)
        .compression(options.compression)
        .tcp_nodelay(options.nodelay.unwrap_or(true))
        .enable_cleartext_plugin(options.cleartext.unwrap_or(false))
        .socket(options.socket.clone());
    if let Some(size) = options.statements {
        builder = builder.stmt_cache_size(Some(size));
    }
    if !url.username().is_empty() {
        builder = builder.user(Some(decoded(url.username(), "the user")?));
    }
    if let Some(password) = url.password() {
        builder = builder.pass(Some(decoded(password, "the password")?));
    }
    Ok(Database { options: options.secured(builder)?, server })
}

fn decoded(text: &str, part: &str) -> Result<String, Wrong> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| format!("{part} is not UTF-8 when decoded"))?;
    if text.contains('\0') {
        return Err(format!("{part} has a NUL in it").into());
    }
    Ok(text.into_owned())
}

/// Returns a name from the URL as an error repeats it.
fn shown(name: &str) -> String {
    name.chars().take(40).collect()
}

/// The options after `?`.
#[derive(Default)]
struct Options {
    socket: Option<String>,
    require_ssl: Option<bool>,
    verify_ca: Option<bool>,
    verify_identity: Option<bool>,
    built_in_roots: Option<bool>,
    ca: Option<String>,
    hostname: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
    cleartext: Option<bool>,
    compression: Option<Compression>,
    keepalive: Option<Duration>,
    nodelay: Option<bool>,
    max_allowed_packet: Option<usize>,
    wait_timeout: Option<usize>,
    statements: Option<usize>,
}

impl Options {
    fn of(url: &Url) -> Result<Self, Wrong> {
        let mut options = Self::default();
        let mut seen = Vec::new();
        for (name, value) in url.query_pairs() {
            if name.is_empty() && value.is_empty() {
                continue;
            }
            let (name, value) = (&*name, &*value);
            if seen.contains(&name.to_owned()) {
                return Err(format!("the option {} is given twice", shown(name)).into());
            }
            let path = || match value {
                "" => Err(format!("the option {name} needs a path")),
                path => Ok(Some(path.to_owned())),
            };
            match name {
                "socket" if !value.starts_with('/') => return Err("the option socket needs an absolute path".into()),
                "socket" => options.socket = path()?,
                "require_ssl" => options.require_ssl = truth(name, value)?,
                "verify_ca" => options.verify_ca = truth(name, value)?,
                "verify_identity" => options.verify_identity = truth(name, value)?,
                "built_in_roots" => options.built_in_roots = truth(name, value)?,
                "ssl_ca" => options.ca = path()?,
                "ssl_cert" => options.certificate = path()?,
                "ssl_key" => options.key = path()?,
                "ssl_hostname" if value.is_empty() => return Err("the option ssl_hostname needs a name".into()),
                "ssl_hostname" => options.hostname = Some(value.to_owned()),
                "enable_cleartext_plugin" => options.cleartext = truth(name, value)?,
                "tcp_nodelay" => options.nodelay = truth(name, value)?,
                "tcp_keepalive" => {
                    // TCP counts whole seconds, and not zero.
                    let millis = number(name, value, 1_000..=86_400_000)?;
                    options.keepalive = Some(Duration::from_millis(millis as u64));
                }
                "max_allowed_packet" => options.max_allowed_packet = Some(number(name, value, 1_024..=1 << 30)?),
                "wait_timeout" => options.wait_timeout = Some(number(name, value, 1..=31_536_000)?),
                "stmt_cache_size" => options.statements = Some(number(name, value, 0..=100_000)?),
                "compression" => {
                    options.compression = match value {
                        "fast" => Some(Compression::fast()),
                        "on" | "true" => Some(Compression::default()),
                        "best" => Some(Compression::best()),
                        "off" | "false" => None,
                        _ => return Err("the option compression is fast, on, best or off".into()),
                    }
                }
                "prefer_socket" => {
                    if truth(name, value)? == Some(true) {
                        return Err(
                            "the option prefer_socket=true is not supported: name the socket, socket=PATH".into()
                        );
                    }
                }
                name => return Err(format!("unknown option {}: there are {OPTIONS}", shown(name)).into()),
            }
            seen.push(name.to_owned());
        }
        Ok(options)
    }

    /// Returns the first option that has a meaning only with TLS.
    fn needs_tls(&self) -> Option<&'static str> {
        [
            ("ssl_ca", self.ca.is_some()),
            ("ssl_hostname", self.hostname.is_some()),
            ("ssl_cert", self.certificate.is_some()),
            ("ssl_key", self.key.is_some()),
            ("verify_ca", self.verify_ca == Some(true)),
            ("verify_identity", self.verify_identity == Some(true)),
            ("built_in_roots", self.built_in_roots == Some(true)),
        ]
        .into_iter()
        .find_map(|(name, given)| given.then_some(name))
    }

    /// Adds TLS to the builder if the URL asks for it. Any option that checks the server's certificate asks for TLS
    /// too.
    fn secured(&self, builder: OptsBuilder) -> Result<OptsBuilder, Wrong> {
        match (self.require_ssl, self.needs_tls()) {
            (None, None) | (Some(false), None) => return Ok(builder),
            (Some(false), Some(option)) => {
                return Err(format!("the option {option} contradicts require_ssl=false").into());
            }
            (Some(true), _) | (None, Some(_)) => {}
        }
        if self.socket.is_some() {
            return Err("TLS is not for sockets: leave out require_ssl and what belongs to it".into());
        }
        self.tls(builder)
    }

    #[cfg(not(feature = "mysql-tls"))]
    fn tls(&self, _: OptsBuilder) -> Result<OptsBuilder, Wrong> {
        Err("TLS (require_ssl and what belongs to it) needs a build with the feature `mysql-tls`".into())
    }

    #[cfg(feature = "mysql-tls")]
    fn tls(&self, builder: OptsBuilder) -> Result<OptsBuilder, Wrong> {
        use mysql_async::{ClientIdentity, SslOpts};
        use rustls::{
            crypto::{CryptoProvider, ring},
            pki_types::ServerName,
        };

        if self.verify_ca == Some(false) && (self.ca.is_some() || self.verify_identity == Some(true)) {
            return Err("the option verify_ca=false contradicts ssl_ca and verify_identity=true".into());
        }
        if self.verify_identity == Some(false) && self.verify_ca != Some(false) {
            // The driver accepts this option but checks the name anyway.
            return Err("the option verify_identity=false is not supported: give the name that the server's \
                        certificate has as ssl_hostname=NAME, or check nothing with verify_ca=false"
                .into());
        }
        // As with `mysql --ssl-ca`, a named authority replaces the built-in ones.
        let built_in_roots = self.built_in_roots.unwrap_or(self.ca.is_none());
        let mut tls = SslOpts::default()
            .with_danger_accept_invalid_certs(self.verify_ca == Some(false))
            .with_disable_built_in_roots(!built_in_roots);
        match &self.ca {
            Some(path) => tls = tls.with_root_certs(vec![pem("ssl_ca", path, holds_certificate)?.into()]),
            None if !built_in_roots => return Err("the option built_in_roots=false needs ssl_ca=PATH".into()),
            None => {}
        }
        match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let certificate = pem("ssl_cert", certificate, holds_certificate)?;
                let key = pem("ssl_key", key, holds_key)?;
                tls = tls.with_client_identity(Some(ClientIdentity::new(certificate.into(), key.into())));
            }
            (None, None) => {}
            _ => return Err("the options ssl_cert and ssl_key need each other".into()),
        }
        if let Some(name) = &self.hostname {
            if ServerName::try_from(name.as_str()).is_err() {
                return Err("the option ssl_hostname is neither a host's name nor an IP address".into());
            }
            tls = tls.with_danger_tls_hostname_override(Some(name.clone()));
        }
        // The driver panics if the program has two cryptography providers and has chosen none. An error means that
        // another thread has chosen one meanwhile.
        if CryptoProvider::get_default().is_none() {
            let _ = ring::default_provider().install_default();
        }
        Ok(builder.ssl_opts(Some(tls)))
    }
}

fn truth(name: &str, value: &str) -> Result<Option<bool>, Wrong> {
    match value {
        "true" => Ok(Some(true)),
        "false" => Ok(Some(false)),
        _ => Err(format!("the option {name} is true or false").into()),
    }
}

fn number(name: &str, value: &str, range: std::ops::RangeInclusive<usize>) -> Result<usize, Wrong> {
    let (least, most) = (range.start(), range.end());
    let number = value.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("the option {name} is a number from {least} to {most}").into())
}

/// Reads a file of certificates or keys. It is read together with the URL, so that a mistake is reported at the start.
#[cfg(feature = "mysql-tls")]
fn pem(option: &str, path: &str, holds: impl Fn(&[u8]) -> Result<(), &'static str>) -> Result<Vec<u8>, Wrong> {
    let content = std::fs::read(path).map_err(|error| format!("the file of {option} ({path}): {error}"))?;
    holds(&content).map_err(|what| format!("the file of {option} ({path}) holds no {what} in PEM"))?;
    Ok(content)
}

#[cfg(feature = "mysql-tls")]
fn holds_certificate(content: &[u8]) -> Result<(), &'static str> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let mut certificates = CertificateDer::pem_slice_iter(content);
    certificates.next().is_some_and(|first| first.is_ok()).then_some(()).ok_or("certificate")
}

#[cfg(feature = "mysql-tls")]
fn holds_key(content: &[u8]) -> Result<(), &'static str> {
    use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
    PrivateKeyDer::from_pem_slice(content).map(|_| ()).map_err(|_| "private key")
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The `Debug` of the driver's options shows the password.
        f.debug_struct("Database").field("server", &self.server).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use mysql_async::Opts;

    use super::*;

    fn opts(url: &str) -> Opts {
        parse(url).unwrap_or_else(|why| panic!("{url}: {why}")).options.into()
    }

    fn wrong(url: &str) -> String {
        parse(url).expect_err(url)
    }

    #[test]
    fn a_url_names_user_host_and_database() {
        let all = opts("mariadb://us%40er:s%2Fcr%C3%A9t%25@db.example:3307/my%2Ddb");
        assert_eq!((all.ip_or_hostname(), all.tcp_port(), all.db_name()), ("db.example", 3307, Some("my-db")));
        assert_eq!((all.user(), all.pass()), (Some("us@er"), Some("s/crét%")));
        let least = opts("MySQL://localhost/site");
        assert_eq!((least.ip_or_hostname(), least.tcp_port(), least.db_name()), ("localhost", 3306, Some("site")));
        assert_eq!((least.user(), least.pass(), least.socket()), (None, None, None));
        assert!(!least.prefer_socket() && least.ssl_opts().is_none());
    }

    #[test]
    fn hosts_may_be_ipv6_and_servers_sockets() {
        for (url, host, server) in [
            ("mysql://u:p@[::1]/site", "::1", "[::1]:3306"),
            ("mysql://u:p@[2001:DB8::5]:3307/site", "2001:db8::5", "[2001:db8::5]:3307"),
            ("mysql://u:p@10.0.0.5/site", "10.0.0.5", "10.0.0.5:3306"),
            ("mysql://u@localhost/site?socket=/run/mysqld/mysqld.sock", "localhost", "/run/mysqld/mysqld.sock"),
            ("mysql:///site?socket=%2Frun%2Fa%20b.sock", "localhost", "/run/a b.sock"),
        ] {
            let database = parse(url).unwrap();
            assert_eq!(database.server, server);
            let opts: Opts = database.options.into();
            assert_eq!(opts.ip_or_hostname(), host);
            assert_eq!(opts.socket(), Some(server).filter(|server| server.starts_with('/')));
        }
    }

    #[test]
    fn each_option_has_its_effect() {
        let opts = opts(
            "mysql://h/d?compression=best&tcp_keepalive=5000&tcp_nodelay=false&max_allowed_packet=4096&wait_timeout=60\
             &stmt_cache_size=7&enable_cleartext_plugin=true&prefer_socket=false&require_ssl=false",
        );
        assert_eq!(opts.compression(), Some(Compression::best()));
        assert_eq!(opts.tcp_keepalive(), Some(Duration::from_secs(5)));
        assert_eq!((opts.tcp_nodelay(), opts.enable_cleartext_plugin()), (false, true));
        assert_eq!((opts.max_allowed_packet(), opts.wait_timeout()), (Some(4096), Some(60)));
        assert_eq!(opts.stmt_cache_size(), 7);
    }

    #[test]
    fn each_mistake_is_named_and_no_password_is_shown() {
        for (url, why) in [
            ("", "no scheme"),
            ("site", "no scheme"),
            ("postgres://u:SECRET@host/site", "unknown scheme `postgres:`"),
            ("mysql:site", "two slashes"),
            ("mysql://u:SECRET@/site", "no host"),
            ("mysql:///site", "no host"),
            ("mysql://u:SECRET@host", "no database"),
            ("mysql://u:SECRET@host/", "no database"),
            ("mysql://u:SECRET@host//site", "only one slash"),
            ("mysql://u:SECRET@host/site/", "a slash follows the database"),
            ("mysql://u:SECRET@host/site/more", "something follows the database"),
            ("mysql://u:SECRET@host:99999/site", "invalid port"),
            ("mysql://u:SECRET@host:0/site", "invalid port"),
            ("mysql://u:SECRET@host:port/site", "invalid port"),
            ("mysql://u:SECRET@[::1/site", "IPv6"),
            ("mysql://u:SECRET@%2Frun%2Fmysqld.sock/site", "socket=PATH"),
            ("mysql://u:SEC/SECRET@host/site", "invalid port"),
            ("mysql://u:12/SECRET@host/site", "percent-encode"),
            ("mysql://u:12?SECRET@host/site", "percent-encode"),
            ("mysql://u:12#SECRET@host/site", "percent-encode"),
            ("mysql://u:%FFSECRET@host/site", "the password is not UTF-8"),
            ("mysql://u:SECRET%00@host/site", "the password has a NUL"),
            ("mysql://u:SECRET@host/site?pace=SECRET", "unknown option pace: there are socket"),
            ("mysql://u:SECRET@host/site?ssl-mode=REQUIRED", "unknown option ssl-mode"),
            ("mysql://u:SECRET@host/site?pool_max=SECRET", "unknown option pool_max"),
            ("mysql://u:SECRET@host/site?require_ssl=SECRET", "require_ssl is true or false"),
            ("mysql://u:SECRET@host/site?require_ssl", "require_ssl is true or false"),
            ("mysql://u:SECRET@host/site?tcp_nodelay=true&tcp_nodelay=true", "tcp_nodelay is given twice"),
            ("mysql://u:SECRET@host/site?compression=SECRET", "compression is"),
            ("mysql://u:SECRET@host/site?tcp_keepalive=1", "tcp_keepalive is a number from 1000"),
            ("mysql://u:SECRET@host/site?max_allowed_packet=-1", "max_allowed_packet is a number"),
            ("mysql://u:SECRET@host/site?socket=mysqld.sock", "an absolute path"),
            ("mysql://u:SECRET@host/site?prefer_socket=true", "socket=PATH"),
            ("mysql://u:SECRET@host/site?socket=/s&require_ssl=true", "TLS is not for sockets"),
            ("mysql://u:SECRET@host/site?require_ssl=false&ssl_ca=/ca.pem", "ssl_ca contradicts require_ssl=false"),
        ] {
            let text = wrong(url);
            assert!(text.contains(why) && text.ends_with(FORM), "{url}: {text}");
            assert!(!text.contains("SECRET"), "{url}: {text}");
        }
    }

    #[cfg(feature = "mysql-tls")]
    #[test]
    fn each_mistake_about_tls_is_named() {
        for (options, why) in [
            ("require_ssl=true&built_in_roots=false", "needs ssl_ca"),
            ("ssl_ca=", "ssl_ca needs a path"),
            ("ssl_ca=/nowhere/ca.pem", "ssl_ca (/nowhere/ca.pem)"),
            ("ssl_ca=/dev/null", "holds no certificate"),
            ("ssl_cert=/dev/null", "need each other"),
            ("ssl_hostname=", "needs a name"),
            ("ssl_hostname=a%20b", "neither a host's name nor an IP address"),
            ("require_ssl=true&verify_identity=false", "ssl_hostname=NAME"),
            ("verify_ca=false&verify_identity=true", "contradicts"),
            ("require_ssl=true&verify_ca=false&ssl_ca=/dev/null", "contradicts"),
        ] {
            let text = wrong(&format!("mysql://h/d?{options}"));
            assert!(text.contains(why), "{options}: {text}");
        }
    }

    #[cfg(feature = "mysql-tls")]
    #[test]
    fn a_check_of_the_certificate_asks_for_tls() {
        for (options, checked) in [
            ("require_ssl=true", true),
            ("verify_ca=true", true),
            ("verify_identity=true", true),
            ("ssl_hostname=db.example", true),
            ("require_ssl=true&verify_ca=false", false),
            ("require_ssl=true&verify_ca=false&verify_identity=false", false),
        ] {
            let opts = opts(&format!("mysql://h/d?{options}"));
            let tls = opts.ssl_opts().unwrap_or_else(|| panic!("{options}"));
            assert_eq!(tls.accept_invalid_certs(), !checked, "{options}");
            assert!(!tls.skip_domain_validation(), "{options}");
        }
    }

    #[cfg(not(feature = "mysql-tls"))]
    #[test]
    fn tls_names_the_feature_that_it_needs() {
        assert!(wrong("mysql://h/d?require_ssl=true").contains("feature `mysql-tls`"));
    }
}
