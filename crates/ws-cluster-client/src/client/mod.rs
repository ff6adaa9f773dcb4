//! A client of a cluster, for programs in Rust: it keeps one connection, comes back after a loss and goes on where
//! it was. The same behaviour as the browser client's, and like that one it knows nothing of how nodes work.
//!
//! [`Client`] sends, [`Events`] is what comes, [`Builder`] has the settings. What happens on a connection is
//! `task`'s, where the client stands in the cluster's order `message`'s.

mod backoff;
mod builder;
mod message;
mod renewal;
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
use tokio::sync::{Notify, mpsc, watch};
use url::Url;

pub use builder::{Builder, SetupError};
pub use message::Message;

use crate::{ACTION_SIZE, RawDetails};

/// A handle on a lasting connection to a cluster, cheap to clone. What comes is in the [`Events`] beside it.
///
/// It connects and authenticates by itself, and does so again whenever the connection is lost, each time after a
/// random part of a growing delay, for as long as it takes. It asks for what it missed meanwhile and hears of it:
/// [`Event::Recovered`] or [`Event::Reset`]. A server that hangs is given up after a while of silence. Credentials that
/// expire are renewed on the open connection. It ends on [`close`](Self::close), when its [`Events`] are dropped, on
/// `Server/close`, and on the close codes after which the same client would meet the same end
/// ([`CloseCode`](crate::CloseCode)).
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
///         Event::Reset(why) => println!("load anew what must be complete: {why}"),
///         Event::Closed { code, reason, retry_in: None } => println!("closed for good: {code} {reason}"),
///         _ => {}
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client(Arc<Shared>);

/// What the handles and the connection's task share.
struct Shared {
    /// Bounded by the queue size of the settings. When it is full a message is refused; the task closes it at its
    /// end.
    queue: mpsc::Sender<Outgoing>,
    /// Largest message in bytes.
    message_size: usize,
    /// Who the server says the client is.
    identity: Mutex<Identity>,
    /// Looked at for each attempt. A plain lock, since it is held to copy and replace only.
    urls: Mutex<Vec<Url>>,
    /// Holds one wish to reconnect until the task looks; more of them at once are the same wish.
    reconnect: Notify,
    /// Turns true once. A watch, so that it is seen wherever the task happens to wait.
    closed: watch::Sender<bool>,
}

/// Who the server says the client is, in its answer to `Client/authentication`.
#[derive(Clone, Debug, Default)]
struct Identity {
    connection: Option<String>,
    user: Option<String>,
}

/// A message on its way out, as it is written.
#[derive(Serialize)]
struct Outgoing {
    action: String,
    details: RawDetails,
}

impl Client {
    /// A client of the cluster at these URLs (`ws`, or with the feature `tls` also `wss`; `http` stands for `ws`).
    /// They are tried in turn, beginning with the first.
    pub fn builder<U: AsRef<str>>(urls: impl IntoIterator<Item = U>) -> Builder {
        Builder::new(urls)
    }

    /// Sends a message. RawDetails are normalised: `null` is no argument, an array is one argument for each element,
    /// anything else is one argument.
    ///
    /// Until the connection is authenticated, messages wait in a queue (of 100 by default) and go out in their order
    /// afterwards. A message is handed to a connection once: if that is lost on the way, so is the message,
    /// silently. Ask for an answer where it matters. What still waits when the client closes comes back as
    /// [`Event::Unsent`].
    ///
    /// # Errors
    /// The message was not taken, for a cause that [`SendError`] names.
    pub fn send(&self, action: &str, details: impl Into<RawDetails>) -> Result<(), SendError> {
        if !(1..=ACTION_SIZE).contains(&action.len()) {
            return Err(SendError::Action);
        }
        if *self.0.closed.borrow() {
            return Err(SendError::Closed);
        }
        let message = Outgoing { action: action.to_owned(), details: details.into() };
        let (size, limit) = (message.size(), self.0.message_size);
        if size > limit {
            return Err(SendError::TooLarge { size, limit });
        }
        self.0.queue.try_send(message).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SendError::Full,
            mpsc::error::TrySendError::Closed(_) => SendError::Closed,
        })
    }

    /// The connection's id, by which the server's handlers and `except` know it, in the last answer to
    /// `Client/authentication`; `None` if that had none, and before the first. A client that resumes keeps it. It stays
    /// while the connection is lost.
    pub fn connection_id(&self) -> Option<String> {
        self.0.identity.lock().connection.clone()
    }

    /// The user's id, likewise; `None` for a guest.
    pub fn user(&self) -> Option<String> {
        self.0.identity.lock().user.clone()
    }

    /// Ends the connection and its attempts for good. The last event is [`Event::Closed`], with code 1000 unless
    /// something else was quicker. To come back, make a new client.
    pub fn close(&self) {
        self.0.closed.send_replace(true);
    }

    /// Gives up the present connection, attempt or wait, and connects to the next URL at once. For when the network
    /// under it changed, and to go to another server. What was missed is asked for as after any loss.
    pub fn reconnect(&self) {
        self.0.reconnect.notify_one();
    }

    /// Replaces the URLs. The connection stays: the next attempt takes the URL behind the present one, or the first
    /// where that is no longer among them.
    ///
    /// # Errors
    /// One of them is none, or there are none; then those from before stay.
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

/// What happens to a [`Client`], in its order. Dropped, it ends the client.
///
/// Up to 64 events wait in here. An application that reads them more slowly than they come holds back the socket,
/// and so the server, which closes a connection that does not answer its ping (45 s by default); the client then
/// comes back and is told what became of the messages in between.
pub struct Events(mpsc::Receiver<Event>);

impl Events {
    /// The next event; `None` after the last one, an [`Event::Closed`] without a retry. It may be dropped while it
    /// waits, and nothing is lost.
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

/// Something that happened to a [`Client`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The connection is open; the client authenticates next. The message `Client/authentication ["ok", ..]` says that
    /// it succeeded; `Client/authentication:error` that it did not: a guest keeps the connection where guests are
    /// welcome.
    Open {
        /// The URL of the connection, as it was given.
        url: String,
    },
    /// A message of the server. Each is handed over once.
    Message(Message),
    /// On the cluster for the first time: from here on nothing is missed.
    New,
    /// Back on the cluster, nothing was missed: the next messages of the cluster, as many as this says, are those of
    /// the meantime.
    Recovered(u64),
    /// Messages may have been missed or may come twice, and why: load anew what must be complete. Nothing is missed
    /// from here on. Usually the first thing on a new connection, but faults of the cluster can bring it at any time.
    Reset(String),
    /// A message that still waited when the client closed. It was never handed to a connection.
    Unsent {
        /// Its action.
        action: String,
        /// Its details.
        details: RawDetails,
    },
    /// The connection is lost, an attempt failed, or the client is closed.
    Closed {
        /// The code of the WebSocket, 1006 where it had none.
        code: u16,
        /// The server's reason, or what failed.
        reason: String,
        /// Time until the next attempt; `None` where there will be none, and this is the last event.
        retry_in: Option<Duration>,
    },
}

/// Why a message was not taken. It was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// As many messages wait for a connection as may (100 by default). Try again when the connection is there.
    #[error("the queue is full")]
    Full,
    /// The client is closed and stays so.
    #[error("the client is closed")]
    Closed,
    /// The action is empty or longer than 255 bytes.
    #[error("an action has 1 to {ACTION_SIZE} bytes")]
    Action,
    /// The message has more bytes, as JSON, than the server takes; it would close the connection. Like an error with
    /// code 413.
    #[error("the message has {size} bytes, and the server takes {limit}")]
    TooLarge {
        /// Bytes of the message.
        size: usize,
        /// [`Builder::message_size`].
        limit: usize,
    },
}
