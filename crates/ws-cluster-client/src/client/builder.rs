//! The settings of a client, which are checked before it starts.

use std::{error::Error, fmt, io, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, mpsc, watch},
};
use url::Url;

use super::{
    Client, Events, Shared,
    backoff::Backoff,
    queue::Queue,
    requests::Requests,
    task::{Dial, Over, Task, Tcp},
};
use crate::RawDetails;

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
    credentials: Result<Credentials, SetupError>,
    queue_size: usize,
    request_timeout: Duration,
    settings: Settings,
}

/// The settings that the task needs.
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

/// The details of `Client/authentication`.
#[derive(Clone)]
pub(super) enum Credentials {
    Fixed(RawDetails),
    /// Asked for on each connection.
    Asked(Ask),
}

impl Default for Credentials {
    /// None.
    fn default() -> Self {
        Self::Fixed(RawDetails::default())
    }
}

type Ask = Arc<dyn Fn() -> BoxFuture<'static, Result<RawDetails, Box<dyn Error + Send + Sync>>> + Send + Sync>;

/// The reason why a client cannot start, or why its URLs cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// There is no URL to connect to.
    #[error("no URL to connect to")]
    NoUrl,
    /// A text is not a URL of a WebSocket.
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
    /// A header's name or value has a character that is not allowed there. The value may be secret and is not shown.
    #[error("the header {0:?} is malformed")]
    Header(String),
    /// The credentials cannot be written as JSON, such as a map whose keys are not text.
    #[error("the credentials cannot be written as JSON")]
    Credentials,
}

impl Builder {
    pub(super) fn new<U: AsRef<str>>(urls: impl IntoIterator<Item = U>) -> Self {
        Self {
            urls: self::urls(urls),
            headers: Ok(HeaderMap::new()),
            credentials: Ok(Credentials::default()),
            queue_size: 100,
            request_timeout: Duration::from_secs(30),
            settings: Settings {
                headers: HeaderMap::new(),
                credentials: Credentials::default(),
                resume: true,
                connect_timeout: Duration::from_secs(10),
                silence_timeout: Duration::from_secs(50),
                message_size: MESSAGE_SIZE,
                backoff: Backoff { first: Duration::from_millis(500), most: Duration::from_secs(30) },
            },
        }
    }

    /// Adds a header to the upgrade request of each connection. A header that is added twice is sent twice.
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

    /// Adds a `Cookie` header: `NAME=VALUE`, or several separated by `; `. With the cookie of the site's session, the
    /// server authenticates the client at the upgrade.
    pub fn cookie(self, cookie: &str) -> Self {
        self.header(header::COOKIE.as_str(), cookie)
    }

    /// Adds an `Authorization: Bearer` header with this token.
    pub fn bearer(self, token: &str) -> Self {
        self.header(header::AUTHORIZATION.as_str(), &format!("Bearer {token}"))
    }

    /// Sets the credentials: the details of the `Client/authentication` that the client sends on every new connection.
    /// They are any serializable value, as for [`Client::send`]. Default: none, so that only the headers identify the
    /// client. If the server says when the credentials expire, the client sends them again before that.
    pub fn credentials(mut self, credentials: impl Serialize) -> Self {
        let details = RawDetails::from_serialize(&credentials);
        self.credentials = details.map(Credentials::Fixed).map_err(|_| SetupError::Credentials);
        self
    }

    /// Sets a function that returns the credentials, for credentials that change, such as tokens that expire. The
    /// client calls it on each new connection. The function must finish within the server's time for authentication (10
    /// s by default). If it takes longer, a server without guests closes the connection, and the client calls the
    /// function again on the next one. If it fails, the client gives up the connection and tries again.
    ///
    /// If the server says when the credentials expire, the client calls the function again before that, and sends the
    /// result on the open connection. Credentials that last less than 3 s may expire before. If the function fails or
    /// the server cannot check the credentials, the client tries again while time remains. If the server refuses them,
    /// the connection stays until they expire.
    ///
    /// ```no_run
    /// # async fn fresh_token() -> Result<String, std::io::Error> { Ok(String::new()) }
    /// let builder = ws_cluster_client::Client::builder(["ws://10.0.0.1:8080/WebSockets"])
    ///     .credentials_with(|| async { Ok(fresh_token().await?) });
    /// ```
    pub fn credentials_with<F, T>(mut self, ask: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<T, Box<dyn Error + Send + Sync>>> + Send + 'static,
        T: Serialize + 'static,
    {
        let ask = move || -> BoxFuture<'static, _> {
            let asking = ask();
            Box::pin(async move { Ok(RawDetails::from_serialize(&asking.await?)?) })
        };
        self.credentials = Ok(Credentials::Asked(Arc::new(ask)));
        self
    }

    /// Sets whether the client gets the messages that it missed when it connects again. Default: true. Servers may
    /// ignore it.
    pub fn resume(mut self, resume: bool) -> Self {
        self.settings.resume = resume;
        self
    }

    /// Sets how many messages may wait for a connection. The next one is refused with
    /// [`SendError::Full`](super::SendError::Full). Default 100, at least 1.
    pub fn queue_size(mut self, queue_size: usize) -> Self {
        self.queue_size = queue_size.max(1);
        self
    }

    /// Sets the size of the largest message that the server accepts, in bytes of its JSON. A larger one is refused with
    /// [`SendError::TooLarge`](super::SendError::TooLarge), because the server would close the connection. Default 64
    /// KiB, as on the server.
    pub fn message_size(mut self, message_size: usize) -> Self {
        self.settings.message_size = message_size;
        self
    }

    /// Sets how long [`Client::request`] waits for its answer, the time without a connection included. Default 30 s.
    pub fn request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// Sets the time limit for a connection to open. After it the client tries the next URL. Default 10 s.
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.settings.connect_timeout = connect_timeout;
        self
    }

    /// Sets the time of silence after which the client gives up a connection. Pings and their answers end the silence
    /// as well. After three fifths of the time the client sends a ping, because a server that hears its client sends
    /// none. Default 50 s, twice the 25 s after which a server sends a ping.
    pub fn silence_timeout(mut self, silence_timeout: Duration) -> Self {
        self.settings.silence_timeout = silence_timeout;
        self
    }

    /// Sets the longest delay before the first new attempt. The delay doubles after each round of all URLs, and the
    /// client waits for a random part of it. Default 500 ms.
    pub fn reconnect_delay(mut self, first: Duration) -> Self {
        self.settings.backoff.first = first;
        self
    }

    /// Sets the longest delay before any new attempt. Default 30 s.
    pub fn reconnect_delay_max(mut self, most: Duration) -> Self {
        self.settings.backoff.most = most;
        self
    }

    /// Starts to connect, in a task of its own.
    ///
    /// # Errors
    /// [`SetupError`] if a setting cannot work. If no server answers, this is no error: the client goes on trying, and
    /// its events say so.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn connect(self) -> Result<(Client, Events), SetupError> {
        self.connect_by(Tcp)
    }

    /// Starts to connect over streams that `dial` opens: a Unix socket, a tunnel, or a server of the same process.
    ///
    /// The client calls `dial` with the URL for each attempt. The stream carries HTTP and then WebSocket frames; the
    /// client adds no TLS.
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

    /// Starts to connect in the way that `dial` makes connections.
    pub(super) fn connect_by(self, dial: impl Dial) -> Result<(Client, Events), SetupError> {
        let mut settings = self.settings;
        (settings.headers, settings.credentials) = (self.headers?, self.credentials?);
        let (events, received) = mpsc::channel(EVENTS);
        let client = Client(Arc::new(Shared {
            queue: Queue::new(self.queue_size),
            message_size: settings.message_size,
            request_timeout: self.request_timeout,
            requests: Requests::default(),
            urls: Mutex::new(self.urls?),
            identity: Mutex::default(),
            reconnect: Notify::new(),
            closed: watch::Sender::new(false),
        }));
        tokio::spawn(Task::new(settings, dial, client.0.clone(), events).run());
        Ok((client, Events(received)))
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // URLs, headers and credentials may be secret.
        f.debug_struct("Builder").field("resume", &self.settings.resume).finish_non_exhaustive()
    }
}

/// Reads the URLs of WebSockets. The result has each URL once, and at least one.
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
