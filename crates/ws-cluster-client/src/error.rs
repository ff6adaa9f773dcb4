//! The error of an action, as handlers make it and clients get it.

/// The error with which an action is answered: the client gets `ACTION:error [code, "text"]`.
///
/// The text is for the client. The cause of a fault of the server belongs in the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code} {text}")]
#[non_exhaustive]
pub struct ActionError {
    /// The kind of error, as an HTTP status code.
    pub code: u16,
    /// The text for the client.
    pub text: String,
}

impl ActionError {
    /// Makes an error with any code.
    pub fn new(code: u16, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// Makes a 400: the details are not what the action takes.
    pub fn bad_request(text: impl Into<String>) -> Self {
        Self::new(400, text)
    }

    /// Makes a 403: this user may not do it.
    pub fn forbidden(text: impl Into<String>) -> Self {
        Self::new(403, text)
    }

    /// Makes a 404: what the details name does not exist.
    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(404, text)
    }

    /// Makes a 409: the present state does not allow it.
    pub fn conflict(text: impl Into<String>) -> Self {
        Self::new(409, text)
    }

    /// Makes a 429: the client does it too often.
    pub fn too_many_requests(text: impl Into<String>) -> Self {
        Self::new(429, text)
    }

    /// Makes a 500: a fault of the server.
    pub fn internal(text: impl Into<String>) -> Self {
        Self::new(500, text)
    }

    /// Makes a 503: it is not possible now, and the client may try again.
    pub fn unavailable(text: impl Into<String>) -> Self {
        Self::new(503, text)
    }

    /// Logs `cause` as an error and makes a 500 that does not show it to the client:
    /// `query.await.map_err(ActionError::log_internal)?`.
    pub fn log_internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "an action failed");
        Self::internal("Internal Server Error")
    }
}
