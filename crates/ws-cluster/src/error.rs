//! Errors by cause: each variant says what remains true and what to do.

use crate::pool::PoolError;

/// Why a publish was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// Too much waits for a master already (16 MiB by default). This message was not taken; try again later.
    #[error("too many messages wait for the cluster's master; try again later")]
    Busy,
    /// The message is over the limit of 1 MiB. It was not taken.
    #[error("a message of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size in bytes, encoded.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The action, the details or the key are not fit to be sent. It was not taken.
    #[error("{0}")]
    Invalid(String),
    /// No answer in time (5 s by default). The outcome is unknown: it may still be delivered. To try again without
    /// a second delivery, publish with an idempotency key.
    #[error("no answer in time: the message may still be delivered")]
    Unknown,
    /// The node is shutting down. Unless it was accepted before, the message is not delivered; publish on another
    /// node.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// Why a server did not start. Nothing of it is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting cannot work; the text says which and what to give.
    #[error("{0}")]
    Config(String),
    /// The pool cannot exist as it is named. One that does not answer is tried again instead.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// Another server answers at our own address. Found once the server can be dialled, so it ends
    /// [`serve`](crate::Server::serve), inside its `io::Error`.
    #[error("the address {address} belongs to another node: give each node an address of its own")]
    AddressTaken {
        /// The address that was dialled.
        address: String,
    },
    /// The task that runs the cluster ended by a panic. The node takes part no more and its clients were sent to other
    /// nodes. Found while the server runs, so it ends [`serve`](crate::Server::serve), inside its `io::Error`.
    #[error("the task that runs the cluster ended by a panic: start the server again, and report what the log says")]
    Stopped,
}

impl PublishError {
    /// The status that HTTP and error answers give it.
    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Busy | Self::ShuttingDown => 503,
            Self::TooLarge { .. } => 413,
            Self::Invalid(_) => 400,
            Self::Unknown => 504,
        }
    }
}

/// The error with which an action is answered: `ACTION:error [code, "text"]`. Clients see the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code} {text}")]
#[non_exhaustive]
pub struct ActionError {
    /// What kind of error, as in HTTP.
    pub code: u16,
    /// What to tell the client.
    pub text: String,
}

impl ActionError {
    /// An error with any code.
    pub fn new(code: u16, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// 400: the details are not what the action takes.
    pub fn bad_request(text: impl Into<String>) -> Self {
        Self::new(400, text)
    }

    /// 403: this user may not.
    pub fn forbidden(text: impl Into<String>) -> Self {
        Self::new(403, text)
    }

    /// 404: what the details name does not exist.
    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(404, text)
    }

    /// 409: not as things stand.
    pub fn conflict(text: impl Into<String>) -> Self {
        Self::new(409, text)
    }

    /// 500: a fault of the server. The cause belongs in the log, not in the text.
    pub fn internal(text: impl Into<String>) -> Self {
        Self::new(500, text)
    }

    /// 503: not now; the client may try again.
    pub fn unavailable(text: impl Into<String>) -> Self {
        Self::new(503, text)
    }
}

impl From<PublishError> for ActionError {
    fn from(error: PublishError) -> Self {
        Self::new(error.status(), error.to_string())
    }
}
