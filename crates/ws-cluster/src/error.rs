//! Errors by cause: each variant says what remains true and what to do.

use ws_cluster_client::{ACTION_SIZE, ActionError};

use crate::{pool::PoolError, secret::KeyError};

/// Why a publish was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// Too many messages wait for a master (16 MiB by default). This message was not taken; try again later.
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
    /// The details cannot be written as JSON. Nothing was sent.
    #[error("the details are no JSON: {reason}")]
    Details {
        /// What serde says about them.
        reason: String,
    },
    /// The action is empty or longer than 255 bytes. The message was not taken.
    #[error("an action has 1 to {ACTION_SIZE} bytes")]
    ActionSize {
        /// Its size in bytes.
        size: usize,
    },
    /// The action begins with `Server/`, `Client/` or `Presence/`. The message was not taken.
    #[error("the action begins with {prefix}, which is reserved for the server")]
    ReservedAction {
        /// The beginning of the action.
        prefix: &'static str,
    },
    /// The idempotency key is empty or longer than 64 bytes. The message was not taken.
    #[error("an idempotency key has 1 to {limit} bytes")]
    IdempotencyKeySize {
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A [`GroupChange`](crate::GroupChange) cannot work, or another node or process refuses what it was sent. It was
    /// not taken.
    #[error("{reason}")]
    Invalid {
        /// The mistake.
        reason: String,
    },
    /// There was no answer in time (5 s by default). The outcome is unknown: the message may still be delivered. To try
    /// again without a second delivery, publish with an idempotency key.
    #[error("no answer in time: the message may still be delivered")]
    OutcomeUnknown,
    /// The node is shutting down. The message is not delivered, unless it was accepted before. Publish on another node.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// Why a server did not start. Nothing of it is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// An interval or limit of [`Config`](crate::Config) that cannot work.
    #[error("{reason}")]
    Config {
        /// The setting, and what to give instead.
        reason: String,
    },
    /// A key of the cluster or the publish key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The pool is shared with other processes, and the cluster has no key.
    #[error("the cluster's key is not given")]
    NoKey,
    /// The pool is shared with other processes, and the node has no address.
    #[error("the address where other nodes reach this one is not given")]
    NoAddress,
    /// The node's address is malformed.
    #[error("the address {address:?} {reason}")]
    Address {
        /// The address.
        address: String,
        /// The mistake, as the end of a sentence.
        reason: String,
    },
    /// The name of the cluster is not 1 to 64 bytes of ASCII.
    #[error("the cluster's name {name:?} is not 1 to 64 bytes of ASCII")]
    ClusterName {
        /// The name.
        name: String,
    },
    /// No page may connect: pages of the own host may not, and no other origin is allowed.
    #[error("no page may connect: allow the origins of those that may")]
    NoOrigin,
    /// The path of clients or of a page has characters that a path of this server cannot have.
    #[error("the path {path:?} is not a plain one, like /WebSockets")]
    MalformedPath {
        /// The path.
        path: String,
    },
    /// The path of clients or of a page is one of the server's own.
    #[error("the path {path:?} is taken by the server itself")]
    ReservedPath {
        /// The path.
        path: String,
    },
    /// Two pages, or a page and the clients, have the same path.
    #[error("the path {path:?} is used twice")]
    DuplicatePath {
        /// The path.
        path: String,
    },
    /// The prefix of all paths is malformed.
    #[error("the prefix {prefix:?} is not a plain path without a slash at its end, like /app")]
    Prefix {
        /// The prefix.
        prefix: String,
    },
    /// The action of a handler is empty or longer than 255 bytes.
    #[error("the action {action:?} has not 1 to {ACTION_SIZE} bytes")]
    ActionSize {
        /// The action.
        action: String,
    },
    /// The action of a handler is one that clients do not send.
    #[error("{reason}")]
    ReservedAction {
        /// The action.
        action: String,
        /// The reason why clients do not send it.
        reason: String,
    },
    /// Two handlers have the same action.
    #[error("the action {action:?} has two handlers")]
    DuplicateAction {
        /// The action.
        action: String,
    },
    /// A handler takes a [`State`](crate::State) that the server does not have.
    #[error("the handler of {action:?} takes State<{state}>, which the server lacks: give it to ServerBuilder::state")]
    MissingState {
        /// The handler's action, or `fallback`.
        action: String,
        /// The type of the state.
        state: &'static str,
    },
    /// The operating system gives no random numbers.
    #[error("the system has no random numbers: {source}")]
    NoRandomNumbers {
        /// The system's error.
        source: std::io::Error,
    },
    /// The URL or path of the pool is malformed. If the pool does not answer, there is no error: the node tries again.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// Why a running server ended. Its clients were sent to other nodes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Another node answers at this node's own address. A node finds this out after its start, when it connects to its
    /// own address.
    #[error("the address {address} belongs to another node: give each node an address of its own")]
    AddressTaken {
        /// The address that was dialled.
        address: String,
    },
    /// The task that drives the cluster panicked. The node no longer takes part in the cluster.
    #[error("the task that runs the cluster ended by a panic: start the server again, and report what the log says")]
    Stopped,
}

impl PublishError {
    /// Returns the HTTP status for this error, which error answers to clients carry as well: 400, 413, 503 or 504.
    pub fn status_code(&self) -> u16 {
        match self {
            Self::Busy | Self::ShuttingDown => 503,
            Self::TooLarge { .. } => 413,
            Self::Details { .. }
            | Self::ActionSize { .. }
            | Self::ReservedAction { .. }
            | Self::IdempotencyKeySize { .. }
            | Self::Invalid { .. } => 400,
            Self::OutcomeUnknown => 504,
        }
    }

    /// Returns true if the same publish may succeed later. After [`OutcomeUnknown`](Self::OutcomeUnknown), repeat it
    /// only with the same idempotency key, or it may be delivered twice.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Busy | Self::ShuttingDown | Self::OutcomeUnknown => true,
            Self::TooLarge { .. }
            | Self::Details { .. }
            | Self::ActionSize { .. }
            | Self::ReservedAction { .. }
            | Self::IdempotencyKeySize { .. }
            | Self::Invalid { .. } => false,
        }
    }

    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid { reason: reason.into() }
    }
}

impl StartError {
    pub(crate) fn no_random_numbers(error: getrandom::Error) -> Self {
        let text = || std::io::Error::other(error.to_string());
        Self::NoRandomNumbers { source: error.raw_os_error().map_or_else(text, std::io::Error::from_raw_os_error) }
    }
}

impl From<PublishError> for ActionError {
    fn from(error: PublishError) -> Self {
        Self::new(error.status_code(), error.to_string())
    }
}
