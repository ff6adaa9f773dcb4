//! A client of a cluster for programs in Rust. It behaves like the browser client, and knows nothing of how nodes work.
//!
//! [`Client`] sends, [`Events`] yields the events, [`Builder`] has the settings. `task` runs the connection, `message`
//! keeps the client's log position, `queue` the messages that wait for a connection, and `requests` those who wait for
//! an answer.

mod backoff;
mod builder;
mod message;
mod queue;
mod renewal;
mod requests;
mod task;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::timeout,
};
use url::Url;

pub use builder::{Builder, SetupError};
pub use message::Message;
pub use requests::RequestError;

use self::{
    queue::Queue,
    requests::{Request, Requests},
};
use crate::{ACTION_SIZE, RawDetails};

/// A handle on a lasting connection to a cluster. Clones are cheap and share the connection. The messages of the server
/// are in the [`Events`] that [`Builder::connect`] returns with it.
///
/// The client connects and authenticates by itself. If the connection is lost, it connects again after a random part of
/// a growing delay, as often as necessary. It asks for what it missed, and the outcome is an event:
/// [`Event::Recovered`] or [`Event::Reset`]. If a server is silent for too long, the client connects to the next URL.
/// Before credentials expire, it renews them on the open connection.
///
/// The client ends on [`close`](Self::close), when its [`Events`] are dropped, on `Server/close`, and on close codes
/// after which a new attempt would fail in the same way ([`CloseCode`](crate::CloseCode)).
///
/// ```no_run
/// use serde_json::json;
/// use ws_cluster_client::{Client, Event};
///
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// let (client, mut events) = Client::builder(["ws://10.0.0.1:8080/WebSockets", "ws://10.0.0.2:8080/WebSockets"])
///     .cookie("site_session=e4d909")
///     .connect()?;
/// client.send("hello", json!(["world"]))?;
/// while let Some(event) = events.next().await {
///     match event {
///         Event::Message(message) => match message.error() {
///             Some(error) => eprintln!("{}: {error}", message.action),
///             None => println!("{}: {:?}", message.action, message.details),
///         },
///         Event::Reset(why) => println!("load again what must be complete: {why}"),
///         Event::Closed { code, reason, retry_in: None } => println!("closed for good: {code} {reason}"),
///         _ => {}
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client(Arc<Shared>);

/// The state that the handles and the connection's task share.
struct Shared {
    /// Bounded by the queue size of the settings. If it is full, a message is refused. The task closes it at the end.
    queue: Queue,
    /// Largest message in bytes.
    message_size: usize,
    /// Longest wait for the answer to a request.
    request_timeout: Duration,
    requests: Requests,
    /// The client's ids, as the server gave them.
    identity: Mutex<Identity>,
    /// Read for each attempt. A synchronous lock, because it is held only to copy and replace.
    urls: Mutex<Vec<Url>>,
    /// Keeps one request to reconnect until the task sees it. Several at once are the same request.
    reconnect: Notify,
    /// Becomes true once. It is a watch channel, so that the task sees it during any wait.
    closed: watch::Sender<bool>,
}

/// The client's ids in the server's answer to `Client/authentication`.
#[derive(Clone, Debug, Default)]
struct Identity {
    connection: Option<String>,
    user: Option<String>,
}

/// A message to the server, as it is written.
#[derive(Serialize)]
struct Outgoing {
    action: String,
    details: RawDetails,
    /// The id of a request.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
}

impl Client {
    /// Returns the settings of a client of the cluster at these URLs (`ws:`, and with the feature `tls` also `wss:`;
    /// `http:` means `ws:`). The client tries the URLs in turn, beginning with the first.
    pub fn builder<U: AsRef<str>>(urls: impl IntoIterator<Item = U>) -> Builder {
        Builder::new(urls)
    }

    /// Sends a message. The details are any serializable value: `null` and `()` become no argument, an array or a tuple
    /// becomes one argument for each element, and anything else becomes one argument.
    ///
    /// Until the connection is authenticated, messages wait in a queue (of 100 by default), and are then sent in order.
    /// A message is written to a connection once. If the connection is lost then, the message may be lost without
    /// notice. If that matters, use [`request`](Self::request). Messages that still wait when the client closes come
    /// back as [`Event::Unsent`].
    ///
    /// # Errors
    /// [`SendError`] if the message was not taken.
    pub fn send(&self, action: &str, details: impl Serialize) -> Result<(), SendError> {
        self.submit(action, encode(&details)?, None)
    }

    /// Sends a message, with details as for [`send`](Self::send), and waits for its one answer. Returns the details of
    /// the answer, which are empty if the handler gives no answer of its own.
    ///
    /// Until the connection is authenticated, requests wait in the same queue as the messages of [`send`](Self::send).
    /// A request is sent once. The wait ends after 30 s ([`Builder::request_timeout`]), the time without a connection
    /// included, and when the future is dropped. A request that still waits in the queue then leaves it and is not
    /// sent. The server may carry out one that was sent.
    ///
    /// The answer does not appear among the [`Events`]. Further messages of the handler, and what it publishes, do.
    /// Read the events meanwhile, in another task: if 64 of them wait, the client reads no further, and no answer
    /// comes.
    ///
    /// ```no_run
    /// use ws_cluster_client::{Client, RequestError};
    ///
    /// # async fn f(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// match client.request("comment/add", "Nice!").await {
    ///     Ok(answer) => println!("comment {}", answer.detail::<u64>(0)?),
    ///     Err(RequestError::Action(error)) => println!("refused: {error}"),
    ///     Err(error) if error.is_outcome_unknown() => println!("perhaps stored: {error}"),
    ///     Err(error) => println!("not stored: {error}"),
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`RequestError`] with the error of the action, or the reason why there is no answer.
    pub fn request(
        &self,
        action: &str,
        details: impl Serialize,
    ) -> impl Future<Output = Result<RawDetails, RequestError>> + Send {
        // The future has the encoded details, so that the value need not be `Send`.
        let details = encode(&details);
        async move { self.submit_request(action, details?).await }
    }

    async fn submit_request(&self, action: &str, details: RawDetails) -> Result<RawDetails, RequestError> {
        let (request, answered) = Request::begin(&self.0);
        self.submit(action, details, Some(request.id))?;
        match timeout(self.0.request_timeout, answered).await {
            Ok(Ok(answer)) => answer,
            // The sender lies in `requests`, so it is only dropped together with the request.
            Ok(Err(_)) => Err(RequestError::Lost),
            Err(_) => Err(request.expire()),
        }
    }

    /// Puts a message into the queue.
    fn submit(&self, action: &str, details: RawDetails, id: Option<u64>) -> Result<(), SendError> {
        if !(1..=ACTION_SIZE).contains(&action.len()) {
            return Err(SendError::Action);
        }
        if *self.0.closed.borrow() {
            return Err(SendError::Closed);
        }
        let message = Outgoing { action: action.to_owned(), details, id };
        let (size, limit) = (message.size(), self.0.message_size);
        if size > limit {
            return Err(SendError::TooLarge { size, limit });
        }
        self.0.queue.push(message)
    }

    /// Returns the connection's id, by which the server's handlers and exceptions of targets name it. The id is from
    /// the last answer to `Client/authentication`. It is `None` before the first answer, and if the answer had no id. A
    /// client that resumes keeps its id, also while the connection is lost.
    pub fn connection_id(&self) -> Option<String> {
        self.0.identity.lock().connection.clone()
    }

    /// Returns the user's id from the last answer to `Client/authentication`; `None` for a guest.
    pub fn user(&self) -> Option<String> {
        self.0.identity.lock().user.clone()
    }

    /// Closes the connection for good. The last event is [`Event::Closed`], with code 1000 unless the client ended for
    /// another reason before. To connect again, make a new client.
    pub fn close(&self) {
        self.0.closed.send_replace(true);
    }

    /// Gives up the present connection, attempt or wait, and connects to the next URL at once. Call it after a change
    /// of the network, or to move to another server. The client gets what it missed, as after any loss.
    pub fn reconnect(&self) {
        self.0.reconnect.notify_one();
    }

    /// Replaces the URLs. The present connection stays. The next attempt takes the URL after the present one, or the
    /// first URL if the present one is not in the new list.
    ///
    /// # Errors
    /// [`SetupError`] if a text is not a URL of a WebSocket, or if there is no URL. The earlier URLs then stay.
    pub fn set_urls<U: AsRef<str>>(&self, urls: impl IntoIterator<Item = U>) -> Result<(), SetupError> {
        *self.0.urls.lock() = builder::urls(urls)?;
        Ok(())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A URL may have a token in its query.
        f.debug_struct("Client").field("closed", &*self.0.closed.borrow()).finish_non_exhaustive()
    }
}

/// The events of a [`Client`], in order. The client ends when this is dropped.
///
/// Up to 64 events wait here. If the application reads them more slowly than they come, the client reads its socket
/// more slowly. If the client then does not answer a ping in time, the server closes the connection (after 45 s by
/// default). The client connects again, and an event says if it gets the messages in between.
pub struct Events(mpsc::Receiver<Event>);

impl Events {
    /// Returns the next event, or `None` after the last one, which is an [`Event::Closed`] without a retry. The future
    /// may be dropped while it waits; no event is lost.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

/// The events as a stream, for the combinators of `futures`. It ends after the last event.
impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.0.poll_recv(context)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("waiting", &self.0.len()).finish()
    }
}

/// An event of a [`Client`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The connection is open. The client authenticates next: the message `Client/authentication ["ok", ..]` says that
    /// this succeeded, and `Client/authentication:error` that it failed. A guest keeps the connection if guests are
    /// welcome.
    Open {
        /// The URL of the connection.
        url: String,
    },
    /// A message of the server. Each message comes once.
    Message(Message),
    /// The client is on the cluster for the first time. From here on it misses no message.
    New,
    /// The client is back on the cluster. It missed this many messages, which are the next ones to come from the
    /// cluster.
    Recovered(u64),
    /// Messages may be missing or may come twice; the text says why. Load again what must be complete. From here on the
    /// client misses no message. This is usually the first event on a new connection, but faults of the cluster can
    /// cause it at any time.
    Reset(String),
    /// A message that still waited when the client closed. It was never written to a connection.
    Unsent {
        /// Its action.
        action: String,
        /// Its details.
        details: RawDetails,
    },
    /// The connection is lost, an attempt failed, or the client is closed.
    Closed {
        /// The close code of the WebSocket, or 1006 if there was none.
        code: u16,
        /// The server's reason, or what failed.
        reason: String,
        /// Time until the next attempt. `None` means that there is no further attempt and that this is the last event.
        retry_in: Option<Duration>,
    },
}

/// Encodes the details of a message.
fn encode(details: &(impl Serialize + ?Sized)) -> Result<RawDetails, SendError> {
    RawDetails::from_serialize(details).map_err(|_| SendError::Details)
}

/// The reason why a message was not taken. It was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The queue of messages that wait for a connection is full (100 by default). Try again when there is a connection.
    #[error("the queue is full")]
    Full,
    /// The client is closed for good.
    #[error("the client is closed")]
    Closed,
    /// The action is empty or longer than 255 bytes.
    #[error("an action has 1 to {ACTION_SIZE} bytes")]
    Action,
    /// The details cannot be written as JSON, such as a map whose keys are not text.
    #[error("the details cannot be written as JSON")]
    Details,
    /// The message has more bytes, as JSON, than the server accepts. The server would close the connection.
    #[error("the message has {size} bytes, and the server takes {limit}")]
    TooLarge {
        /// Size of the message, in bytes.
        size: usize,
        /// The limit, from [`Builder::message_size`].
        limit: usize,
    },
}
