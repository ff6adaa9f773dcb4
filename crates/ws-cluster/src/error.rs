//! Errors by cause: each variant says what remains true and what to do.

use ws_cluster_client::ActionError;

use crate::pool::PoolError;

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
    /// The message cannot be sent as it is. It was not taken.
    #[error("{reason}")]
    Invalid {
        /// The mistake in the action, the details or the idempotency key.
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
    /// A setting that cannot work.
    #[error("{reason}")]
    Config {
        /// The setting, and what to give instead.
        reason: String,
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
            Self::Invalid { .. } => 400,
            Self::OutcomeUnknown => 504,
        }
    }

    /// Returns true if the same publish may succeed later. After [`OutcomeUnknown`](Self::OutcomeUnknown), repeat it only
    /// with the same idempotency key, or it may be delivered twice.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Busy | Self::ShuttingDown | Self::OutcomeUnknown => true,
            Self::TooLarge { .. } | Self::Invalid { .. } => false,
        }
    }

    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid { reason: reason.into() }
    }
}

impl From<PublishError> for ActionError {
    fn from(error: PublishError) -> Self {
        Self::new(error.status_code(), error.to_string())
    }
}
