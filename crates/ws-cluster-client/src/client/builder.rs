//! A client's settings, checked before it starts.

use std::{error::Error, fmt, io, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, mpsc, watch},
};
use url::Url;

use super::{
    Client, Events, Shared,
    backoff::Backoff,
    task::{Dial, Over, Task, Tcp},
};

/// Largest message that a server takes by default.
const MESSAGE_SIZE: usize = 64 * 1024;

/// Events that wait for the application: enough to keep it busy, few enough that a client's memory stays small.
const EVENTS: usize = 64;

/// The settings of a [`Client`], from [`Client::builder`].
#[derive(Clone)]
#[must_use = "a client connects when `connect` is called"]
pub struct Builder {
    urls: Result<Vec<Url>, SetupError>,
    headers: Result<HeaderMap, SetupError>,
    queue_size: usize,
    settings: Settings,
}

/// What the task needs of them.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) headers: HeaderMap,
    pub(super) credentials: Credentials,
    pub(super) resume: bool,
    pub(super) connect_timeout: Duration,
    pub(super) silence_timeout: Duration,
    pub(super) message_size: usize,
    pub(super) backoff: Backoff,
}

/// RawDetails of `Client/authentication`.
#[derive(Clone)]
pub(super) enum Credentials {
    Fixed(Value),
    /// Asked for each connection.
    Asked(Ask),
}

type Ask = Arc<dyn Fn() -> BoxFuture<'static, Result<Value, Box<dyn Error + Send + Sync>>> + Send + Sync>;

/// Why a client cannot start, or its URLs cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// There is no URL to connect to.
    #[error("no URL to connect to")]
    NoUrl,
    /// A text is no URL, or none of a WebSocket.
    #[error("{url:?} is no URL of a WebSocket: {why}")]
    Url {
        /// The text.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// A URL begins with `wss:`, but this build cannot speak TLS.
    #[error("{0:?} needs a build with the feature `tls`")]
    Tls(String),
    /// A header's name or value has characters that it may not have. The value, which may be secret, is not shown.
    #[error("the header {0:?} is malformed")]
    Header(String),
}

impl Builder {
    pub(super) fn new<U: AsRef<str>>(urls: impl IntoIterator<Item = U>) -> Self {
        Self {
            urls: self::urls(urls),
            headers: Ok(HeaderMap::new()),
            queue_size: 100,
            settings: Settings {
                headers: HeaderMap::new(),
                credentials: Credentials::Fixed(Value::Null),
                resume: true,
                connect_timeout: Duration::from_secs(10),
                silence_timeout: Duration::from_secs(50),
                message_size: MESSAGE_SIZE,
                backoff: Backoff { first: Duration::from_millis(500), most: Duration::from_secs(30) },
            },
        }
    }

    /// Adds a header to the request with which each connection begins. One that is given twice is sent twice.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let parsed = name.parse::<HeaderName>().ok().zip(value.parse::<HeaderValue>().ok());
        match (&mut self.headers, parsed) {
            (Ok(headers), Some((name, value))) => drop(headers.append(name, value)),
            (Ok(_), None) => self.headers = Err(SetupError::Header(name.to_owned())),
            // The first that is wrong is as good as the next.
            (Err(_), _) => {}
        }
        self
    }

    /// A `Cookie` header: `NAME=VALUE`, several with `; ` between. With the site's session a client is authenticated
    /// at once.
    pub fn cookie(self, cookie: &str) -> Self {
        self.header(header::COOKIE.as_str(), cookie)
    }

    /// An `Authorization: Bearer` header.
    pub fn bearer(self, token: &str) -> Self {
        self.header(header::AUTHORIZATION.as_str(), &format!("Bearer {token}"))
    }

    /// RawDetails of `Client/authentication`, which is sent on every new connection: an array, or one value. Default
    /// none: the headers say who this is. If the server says when they expire, they are sent again before that.
    pub fn credentials(mut self, credentials: impl Into<Value>) -> Self {
        self.settings.credentials = Credentials::Fixed(credentials.into());
        self
    }

    /// The same where they change, as tokens do that run out: asked for each new connection, once it is open, and
    /// within the server's time for authentication (10 s by default). Where this fails, the connection is given up
    /// and tried again.
    ///
    /// If the server says when they expire, they are asked for again before that, and sent on the open connection. If
    /// there are none then, or the server cannot look at them, that is tried again while time remains. If the server
    /// refuses them, the connection goes on until the expiry.
    ///
    /// ```no_run
    /// # async fn fresh_token() -> Result<String, std::io::Error> { Ok(String::new()) }
    /// let builder = ws_cluster_client::Client::builder(["ws://10.0.0.1:8080/WebSockets"])
    ///     .credentials_with(|| async { Ok(fresh_token().await?.into()) });
    /// ```
    pub fn credentials_with<F>(mut self, ask: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Value, Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        self.settings.credentials = Credentials::Asked(Arc::new(move || Box::pin(ask())));
        self
    }

    /// Whether to get what was missed when a connection is made again. Default true; servers may ignore it.
    pub fn resume(mut self, resume: bool) -> Self {
        self.settings.resume = resume;
        self
    }

    /// Messages that may wait for a connection; one more is refused. Default 100, at least 1.
    pub fn queue_size(mut self, queue_size: usize) -> Self {
        self.queue_size = queue_size.max(1);
        self
    }

    /// Largest message that the server takes, in bytes of its JSON. Default 64 KiB, as the server's. A larger one, for
    /// which the server would close the connection, is refused with [`SendError::TooLarge`](super::SendError::TooLarge).
    pub fn message_size(mut self, message_size: usize) -> Self {
        self.settings.message_size = message_size;
        self
    }

    /// Time for a connection to open; then the next URL gets its turn. Default 10 s.
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.settings.connect_timeout = connect_timeout;
        self
    }

    /// Time without a word of the server, pings and their answers included, after which a connection is given up.
    /// Default 50 s: twice the 25 s after which a server sends a ping. If more than half of it has passed, the client
    /// sends a ping itself, since a server that hears its client need not.
    pub fn silence_timeout(mut self, silence_timeout: Duration) -> Self {
        self.settings.silence_timeout = silence_timeout;
        self
    }

    /// Longest delay before the first new attempt; it doubles with each round of all URLs. Default 500 ms. A random
    /// part of it is taken.
    pub fn reconnect_delay(mut self, first: Duration) -> Self {
        self.settings.backoff.first = first;
        self
    }

    /// Longest delay before any new attempt. Default 30 s.
    pub fn reconnect_delay_max(mut self, most: Duration) -> Self {
        self.settings.backoff.most = most;
        self
    }

    /// Starts to connect, in a task of its own.
    ///
    /// # Errors
    /// A setting cannot work. That no server answers is none: the client goes on trying, and its events say so.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn connect(self) -> Result<(Client, Events), SetupError> {
        self.connect_by(Tcp)
    }

    /// Starts to connect over streams that `dial` opens: a Unix socket, a tunnel, or a server of the same process.
    ///
    /// `dial` is given the URL and is called for each attempt. What it returns carries HTTP and then WebSocket frames as
    /// they are: TLS is its own affair.
    ///
    /// ```
    /// # async fn f(path: &'static str) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::net::UnixStream;
    /// use ws_cluster_client::Client;
    ///
    /// let builder = Client::builder(["ws://localhost/WebSockets"]);
    /// let (client, events) = builder.connect_over(move |_url| UnixStream::connect(path))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A setting cannot work.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn connect_over<S, F, C>(self, dial: F) -> Result<(Client, Events), SetupError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        F: Fn(String) -> C + Send + Sync + 'static,
        C: Future<Output = io::Result<S>> + Send + 'static,
    {
        self.connect_by(Over(dial))
    }

    /// The same with any way of making connections.
    pub(super) fn connect_by(self, dial: impl Dial) -> Result<(Client, Events), SetupError> {
        let mut settings = self.settings;
        settings.headers = self.headers?;
        let (queue, waiting) = mpsc::channel(self.queue_size);
        let (events, received) = mpsc::channel(EVENTS);
        let client = Client(Arc::new(Shared {
            queue,
            message_size: settings.message_size,
            urls: Mutex::new(self.urls?),
            identity: Mutex::default(),
            reconnect: Notify::new(),
            closed: watch::Sender::new(false),
        }));
        tokio::spawn(Task::new(settings, dial, client.0.clone(), waiting, events).run());
        Ok((client, Events(received)))
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // URLs, headers and credentials may be secret.
        f.debug_struct("Builder").field("resume", &self.settings.resume).finish_non_exhaustive()
    }
}

/// URLs of WebSockets, each once; at least one.
pub(super) fn urls<U: AsRef<str>>(texts: impl IntoIterator<Item = U>) -> Result<Vec<Url>, SetupError> {
    let mut urls = Vec::new();
    for text in texts {
        let url = url(text.as_ref())?;
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    if urls.is_empty() { Err(SetupError::NoUrl) } else { Ok(urls) }
}

fn url(text: &str) -> Result<Url, SetupError> {
    let malformed = |why: String| SetupError::Url { url: text.to_owned(), why };
    let mut url = Url::parse(text).map_err(|error| malformed(error.to_string()))?;
    let scheme = match url.scheme() {
        "http" | "ws" => "ws",
        "https" | "wss" if cfg!(feature = "tls") => "wss",
        "https" | "wss" => return Err(SetupError::Tls(text.to_owned())),
        other => return Err(malformed(format!("it begins with {other:?}"))),
    };
    url.set_scheme(scheme).map_err(|()| malformed("it cannot be one".into()))?;
    url.set_fragment(None);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_url_of_a_websocket_is_named() {
        assert_eq!(urls::<&str>([]), Err(SetupError::NoUrl));
        assert!(matches!(urls(["ws://host", "/WebSockets"]), Err(SetupError::Url { url, .. }) if url == "/WebSockets"));
        assert!(matches!(urls(["ftp://host/"]), Err(SetupError::Url { .. })));
        if cfg!(not(feature = "tls")) {
            assert_eq!(urls(["https://host/"]), Err(SetupError::Tls("https://host/".into())));
        }
    }

    #[test]
    fn http_stands_for_ws_and_each_url_for_itself() {
        let urls = urls(["http://host:7/a?b=c#d", "ws://host:7/a?b=c", "ws://other/"]).unwrap();
        let texts: Vec<&str> = urls.iter().map(Url::as_str).collect();
        assert_eq!(texts, ["ws://host:7/a?b=c", "ws://other/"]);
    }

    #[tokio::test]
    async fn a_malformed_header_is_named_and_its_value_is_not() {
        let refused = Client::builder(["ws://host/"]).bearer("sec\nret").header("x", "y").connect().err().unwrap();
        assert_eq!(refused, SetupError::Header("authorization".into()));
        assert!(!refused.to_string().contains("sec"));
    }

    #[test]
    fn secrets_do_not_show() {
        let builder = Client::builder(["ws://host/?token=secret"]).bearer("secret").credentials("secret");
        assert!(!format!("{builder:?}").contains("secret"));
    }
}
