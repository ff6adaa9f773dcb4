//! The site's own code as the authenticator and the handler of actions: signed requests over HTTP, and answers that
//! take effect. `handler` and `authenticator` are the two seams, `exchange` sends one request, `event` and `answer` know
//! its JSON, and `turns` and `breaker` keep a slow site from delaying more than its own clients.

use std::{fmt, sync::Arc, time::Duration};

use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use url::Url;

use self::{
    breaker::Breaker,
    exchange::{Exchange, Place},
    patterns::Patterns,
    signature::SigningKey,
    turns::Turns,
};
use crate::{
    ServerBuilder, http_client::HttpClient, log_limit::LogLimits, log_limit::Outage, secret::KeyError,
    stats::BackendStats,
};

mod answer;
mod authenticator;
mod breaker;
mod event;
mod exchange;
mod failure;
mod handler;
mod patterns;
mod signature;
mod turns;

/// The reason why a [`Backend`] cannot be made.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The URL names no place to which requests could be sent.
    #[error("malformed URL of a backend: {0}")]
    Url(String),
    /// The key cannot sign requests.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A setting cannot work. The text says why.
    #[error("{0}")]
    Setting(String),
    /// There can be no HTTPS client, because the system's certificates cannot be read.
    #[error("the system's certificates cannot be read ({0}): install the package ca-certificates")]
    Client(#[source] Arc<std::io::Error>),
}

/// The site's own code, in any language, behind a URL: it says who clients are, and handles their actions.
///
/// Each question is a `POST` of a JSON object, signed as the [Standard Webhooks](https://www.standardwebhooks.com)
/// specification says. `docs/site.md` has the events, their answers and what errors mean.
///
/// ```no_run
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// use ws_cluster::{Backend, MemoryPool, Server};
///
/// let backend = Backend::builder("http://127.0.0.1:8000/ws.php", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
///     .actions(["comment/*", "vote"])
///     .build()?;
/// let builder = backend.add_to(Server::builder(MemoryPool::default()));
/// let server = builder.authenticator(backend).start().await?;
/// # Ok(()) }
/// ```
///
/// It is three things, which an application may use alone:
///
/// - An [`Authenticator`](crate::Authenticator), which sends `connect` and `refresh`. It may be one of an
///   [`AuthenticatorChain`](crate::AuthenticatorChain), as the last.
/// - An [`ActionHandler`](crate::ActionHandler) for [`ServerBuilder::fallback`], which sends `action`. It handles only
///   the actions that match its [patterns](BackendBuilder::actions).
/// - An [`ActionHandler`](crate::ActionHandler) for [`ServerBuilder::on_disconnect`], which sends `disconnect`.
///
/// [`add_to`](Self::add_to) sets the last two, and the counts for the feature `metrics`.
///
/// **Limits.** At most [`concurrency`](BackendBuilder::concurrency) requests are under way at the same time. A quarter of
/// them is left for actions however many clients connect, and the other way around. At most
/// [`queue`](BackendBuilder::queue) of each kind wait. A request waits for its turn and for its answer at most
/// [`timeout`](BackendBuilder::timeout) each, and an answer has 1 MiB at most. The circuit
/// breaker opens after five requests in a row without an answer, if the first of them began at least one time limit ago,
/// or 5 s if the limit is longer. Requests then fail at once, except for one probe after 1 s, then after 2 s and so on up
/// to 5 s. The first answer ends that. A request does not count if another one was answered after its beginning.
///
/// **Repeats.** An action is sent once. It is sent on a second connection only if the first one ended before anything
/// was written. `connect` and `refresh` are sent again once if their connection is lost, and `disconnect` twice if it has
/// no answer, after 1 s and 3 s; they keep their `webhook-id`.
#[derive(Clone)]
pub struct Backend(Arc<Shared>);

struct Shared {
    exchange: Exchange,
    actions: Patterns,
    /// Number of events whose delivery is under way, including their pauses.
    events: crate::stats::Level,
}

/// The settings of a [`Backend`], made by [`Backend::builder`].
#[derive(Clone)]
#[must_use = "a backend is made by `build`"]
pub struct BackendBuilder {
    url: String,
    key: String,
    actions: Patterns,
    concurrency: usize,
    queue: usize,
    timeout: Duration,
}

impl Backend {
    /// Returns the settings of a backend.
    ///
    /// `url` is an `http:` or `https:` URL without user and fragment, or `unix:SOCKET:PATH` for HTTP over a Unix socket
    /// (`unix:/run/site.sock:/ws`). Redirects are not followed.
    ///
    /// `key` signs the requests: `whsec_` and Base64 as the specification says, or any other text, whose bytes are the
    /// key. It has at least 24 bytes. White space around it does not count.
    pub fn builder(url: impl Into<String>, key: impl Into<String>) -> BackendBuilder {
        BackendBuilder {
            url: url.into(),
            key: key.into(),
            actions: Patterns::all(),
            concurrency: 64,
            queue: 1_000,
            timeout: Duration::from_secs(5),
        }
    }

    /// Makes the backend the handler of the actions without a handler of their own ([`ServerBuilder::fallback`]) and of
    /// ended connections ([`ServerBuilder::on_disconnect`]), and lets the server record its counts (feature `metrics`).
    pub fn add_to(&self, builder: ServerBuilder) -> ServerBuilder {
        self.add_actions_to(builder).on_disconnect(self.clone())
    }

    /// The same without `disconnect` events.
    pub fn add_actions_to(&self, builder: ServerBuilder) -> ServerBuilder {
        let builder = builder.fallback(self.clone());
        #[cfg(feature = "metrics")]
        let builder = builder.backend_stats(self.0.exchange.stats.clone());
        builder
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("actions", &self.0.actions).finish_non_exhaustive()
    }
}

impl BackendBuilder {
    /// Sets which actions it handles: names, in which `*` stands for any text. Others are answered with
    /// `[404, "Not Found"]`. Actions that begin with `Client/` are the server's own and never match. Default: all.
    pub fn actions(mut self, patterns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.actions = Patterns::new(patterns);
        self
    }

    /// Sets how many requests of this process are under way at the same time. It should be less than the number of
    /// processes that the site has, so that its pages are answered as well. Default: 64.
    pub fn concurrency(mut self, count: usize) -> Self {
        self.concurrency = count;
        self
    }

    /// Sets how many requests of a kind (questions about clients, actions, events) wait for their turn. Default: 1,000.
    pub fn queue(mut self, count: usize) -> Self {
        self.queue = count;
        self
    }

    /// Sets for how long a request waits for its turn, and then for its answer. Default: 5 s.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Makes the backend. Nothing is sent yet.
    ///
    /// # Errors
    /// [`BackendError`] if a setting cannot work.
    pub fn build(self) -> Result<Backend, BackendError> {
        if self.concurrency == 0 || self.concurrency > tokio::sync::Semaphore::MAX_PERMITS {
            return Err(BackendError::Setting("the concurrency of a backend is 1 or more".to_owned()));
        }
        if self.timeout.is_zero() {
            return Err(BackendError::Setting("the time limit of a backend is more than 0".to_owned()));
        }
        let key = SigningKey::parse(&self.key)?;
        let exchange = Exchange {
            place: place(self.url.trim())?,
            key,
            turns: Turns::new(self.concurrency, self.queue),
            timeout: self.timeout,
            stats: Arc::new(BackendStats::default()),
            breaker: Mutex::new(Breaker::new(self.timeout)),
            outage: Outage::default(),
            logs: LogLimits::default(),
        };
        Ok(Backend(Arc::new(Shared { exchange, actions: self.actions, events: Default::default() })))
    }
}

impl fmt::Debug for BackendBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key is a secret, and the URL may have one in its query.
        f.debug_struct("BackendBuilder").field("actions", &self.actions).finish_non_exhaustive()
    }
}

/// Reads the place of the site's code.
fn place(text: &str) -> Result<Place, BackendError> {
    let malformed = |why: &str| BackendError::Url(format!("{why}: give http://HOST/PATH, or unix:SOCKET:PATH"));
    if let Some(rest) = text.strip_prefix("unix:") {
        let (socket, path) = rest.split_once(':').unwrap_or((rest, "/"));
        if !cfg!(unix) {
            return Err(malformed("this system has no Unix sockets"));
        }
        let is_plain = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if !socket.starts_with('/') || !is_plain {
            return Err(malformed("the socket and the path begin with /"));
        }
        return Ok(Place::Unix { socket: socket.into(), path: path.to_owned() });
    }
    // The URL may have a secret, so errors do not show it.
    let url = Url::parse(text).map_err(|error| malformed(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(malformed("it is neither http: nor https:"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(malformed("it has a user, although requests are signed"));
    }
    if url.fragment().is_some() {
        return Err(malformed("it has a fragment"));
    }
    let client = HttpClient::new().map_err(|error| BackendError::Client(Arc::new(error)))?;
    Ok(Place::Url { client, url: url.into() })
}

/// Returns the id of a new event.
fn event_id() -> String {
    // Without random numbers the server would not have started.
    let random: [u8; 16] = crate::random::bytes().unwrap_or_default();
    format!("msg_{}", HEXLOWER.encode(&random))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "a key of the tests of thirty-two bytes or more";

    #[test]
    fn a_place_is_a_url_or_a_socket() {
        for text in [
            "http://127.0.0.1:8000/ws.php?a=b",
            " https://example.org/ws\n",
            "unix:/run/site.sock:/ws.php?a=b",
            "unix:/run/site.sock",
        ] {
            assert!(Backend::builder(text, KEY).build().is_ok(), "{text}");
        }
        for (text, says) in [
            ("", "relative URL without a base"),
            ("127.0.0.1:8000", "relative URL"),
            ("ftp://example.org/", "neither http: nor https:"),
            ("http://ann:secret@example.org/", "it has a user"),
            ("http://example.org/#a", "it has a fragment"),
            ("unix:run/site.sock:/ws", "begin with /"),
            ("unix:/run/site.sock:ws", "begin with /"),
            ("unix:/run/site.sock:/a b", "begin with /"),
        ] {
            let error = Backend::builder(text, KEY).build().unwrap_err();
            assert!(error.to_string().contains(says) && !error.to_string().contains("secret"), "{text}: {error}");
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let builder = || Backend::builder("http://127.0.0.1/", KEY);
        assert!(matches!(builder().concurrency(0).build(), Err(BackendError::Setting(_))));
        assert!(matches!(builder().timeout(Duration::ZERO).build(), Err(BackendError::Setting(_))));
        let error = Backend::builder("http://127.0.0.1/", "short").build().unwrap_err();
        assert!(error.to_string().contains("this one has 5") && matches!(error, BackendError::Key(_)), "{error}");
        assert!(!format!("{:?}", builder()).contains(KEY));
    }
}
