//! The requests that wait for their answers.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{SendError, Shared};
use crate::{ActionError, RawDetails};

/// The reason why a request has no answer with details.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The server answered with an error: the handler's own, or one of the server (unknown action, not for guests).
    #[error(transparent)]
    Action(#[from] ActionError),
    /// The request was not taken, or still waited when the client closed. It was not sent.
    #[error(transparent)]
    Unsent(#[from] SendError),
    /// There was no connection in time ([`Builder::request_timeout`](super::Builder::request_timeout)). The request was
    /// not sent.
    #[error("not connected in time")]
    NotConnected,
    /// The connection was lost before the answer. The outcome is unknown: the server may have carried out the request.
    #[error("the connection was lost, the outcome is unknown")]
    Lost,
    /// No answer came in time. The outcome is unknown: the server may carry out the request.
    #[error("no answer in time, the outcome is unknown")]
    NoAnswer,
}

impl RequestError {
    /// Returns the code, as in HTTP. It is that of the handler, or the one that the browser client uses: 413 for a
    /// request that is too large, 499 for a lost connection, 503 for a request that was not sent, 504 for no answer in
    /// time, and 400 for an action or details that no server takes.
    pub fn code(&self) -> u16 {
        match self {
            Self::Action(error) => error.code,
            Self::Unsent(SendError::TooLarge { .. }) => 413,
            Self::Unsent(SendError::Action | SendError::Details) => 400,
            Self::Unsent(_) | Self::NotConnected => 503,
            Self::Lost => 499,
            Self::NoAnswer => 504,
        }
    }

    /// Returns true if the server may have carried out the request although there is no answer.
    pub fn is_outcome_unknown(&self) -> bool {
        matches!(self, Self::Lost | Self::NoAnswer)
    }
}

/// The answer to a request.
pub(super) type Answer = Result<RawDetails, RequestError>;

/// The requests of a client without an answer. Ids are never used again.
#[derive(Default)]
pub(super) struct Requests {
    last: AtomicU64,
    /// A synchronous lock, held for a look-up.
    open: Mutex<HashMap<u64, OpenRequest>>,
}

struct OpenRequest {
    answer: oneshot::Sender<Answer>,
    /// True if the request was given to a connection.
    sent: bool,
}

impl Requests {
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.open.lock().is_empty()
    }

    /// Notes that a request is given to a connection. Returns false if the request has ended meanwhile.
    pub(super) fn send(&self, id: u64) -> bool {
        self.open.lock().get_mut(&id).map(|request| request.sent = true).is_some()
    }

    /// Passes on an answer. An answer to a request that has ended meanwhile is ignored.
    pub(super) fn answer(&self, id: u64, answer: Answer) {
        if let Some(request) = self.open.lock().remove(&id) {
            // An error means that the request ends just now.
            let _ = request.answer.send(answer);
        }
    }

    /// Ends the requests whose connection is lost.
    pub(super) fn lose_sent(&self) {
        for (_, lost) in self.open.lock().extract_if(|_, request| request.sent) {
            let _ = lost.answer.send(Err(RequestError::Lost));
        }
    }

    /// Ends the requests that a client that closes has not sent.
    pub(super) fn refuse_unsent(&self) {
        for (_, refused) in self.open.lock().extract_if(|_, request| !request.sent) {
            let _ = refused.answer.send(Err(SendError::Closed.into()));
        }
    }
}

/// A request until its end. Dropping it ends it: an answer is ignored, and if it still waits for a connection, it is
/// not sent.
pub(super) struct Request {
    pub(super) id: u64,
    shared: Arc<Shared>,
}

impl Request {
    /// Begins a request. The receiver gets its answer.
    pub(super) fn begin(shared: &Arc<Shared>) -> (Self, oneshot::Receiver<Answer>) {
        let id = shared.requests.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (answer, answered) = oneshot::channel();
        shared.requests.open.lock().insert(id, OpenRequest { answer, sent: false });
        (Self { id, shared: shared.clone() }, answered)
    }

    /// Ends a request whose time is over.
    pub(super) fn expire(self) -> RequestError {
        // From here on it is not sent, so the error stays true.
        if self.end().is_none_or(|ended| ended.sent) { RequestError::NoAnswer } else { RequestError::NotConnected }
    }

    /// Ends the request, and frees its place in the queue. Returns `None` if it has ended already.
    fn end(&self) -> Option<OpenRequest> {
        let ended = self.shared.requests.open.lock().remove(&self.id)?;
        if !ended.sent {
            self.shared.queue.remove(self.id);
        }
        Some(ended)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.end();
    }
}
