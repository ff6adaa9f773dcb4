//! Messages to publish, the checks that every way of publishing shares, and the encoding of a publish's outcome.

use bytes::Bytes;
use serde::Serialize;
use ws_cluster_client::ACTION_SIZE;

use crate::{ConnectionId, PublishError, RawDetails, Target, message::content::Content};

/// Maximum size of a publish in bytes: action and encoded details.
pub(crate) const PUBLISH_SIZE: usize = 1024 * 1024;

/// Maximum size of an idempotency key in bytes.
pub(crate) const IDEMPOTENCY_KEY_SIZE: usize = 64;

/// The beginning of the idempotency keys of rows of an outbox. Each node remembers such keys for longer than others.
pub(crate) const OUTBOX_KEY: &[u8] = b"ws_outbox/";

/// Number of bytes that target and framing may add to a publish of the maximum size.
const ENVELOPE_SIZE: usize = 64 * 1024;

/// A message to publish: an action, its details, and the connections that get it.
///
/// ```
/// # async fn f(server: ws_cluster::Server, sender: ws_cluster::ConnectionId) -> Result<(), ws_cluster::PublishError> {
/// use ws_cluster::{Message, Target};
///
/// #[derive(serde::Serialize)]
/// struct Article { id: u64, title: String }
///
/// let article = Article { id: 7, title: "Rust".into() };
/// let message = Message::new("news/new", &article)?.to(Target::group("editors")).except_connection(sender);
/// server.publish(message.idempotency_key("article 7")).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a message is sent by `publish` or `deliver`"]
pub struct Message {
    action: String,
    details: RawDetails,
    target: Target,
    key: Option<String>,
    volatile: bool,
}

impl Message {
    /// Makes a message to every connection.
    ///
    /// The action has 1 to 255 bytes. It does not begin with `Server/` or `Client/`, which are the server's own, or
    /// with `Presence/`, which is reserved for later. Clients treat an action that ends in `:error` as an error. `null`
    /// and `()` become no argument, an array or a tuple becomes one argument for each element, and anything else
    /// becomes one argument. Action and details together may have 1 MiB. If they have more, escape sequences that JSON
    /// does not need (`\uXXXX`) are first replaced by what they stand for.
    ///
    /// # Errors
    /// [`PublishError::Details`] if the details cannot be written as JSON, such as a map whose keys are no text. An
    /// action that is too long or reserved, or a message that is too large, is refused when the message is published.
    pub fn new(action: impl Into<String>, details: impl Serialize) -> Result<Self, PublishError> {
        let details = RawDetails::from_serialize(&details);
        let details = details.map_err(|error| PublishError::Details { reason: error.to_string() })?;
        Ok(Self::raw(action, details))
    }

    /// Makes a message to every connection with details that are JSON already, as a client sent them or as
    /// [`str::parse`] reads them. The limits are those of [`new`](Self::new).
    ///
    /// ```
    /// let message = ws_cluster::Message::raw("news/new", r#"{"id": 7}"#.parse()?);
    /// assert_eq!(message.details().as_str(), r#"[{"id": 7}]"#);
    /// # Ok::<_, ws_cluster::ParseDetailsError>(())
    /// ```
    pub fn raw(action: impl Into<String>, details: RawDetails) -> Self {
        Self { action: action.into(), details, target: Target::all(), key: None, volatile: false }
    }

    /// Sets the connections that get the message. Default: all.
    pub fn to(mut self, target: Target) -> Self {
        self.target = target;
        self
    }

    /// Excludes one connection, such as the one that asked for the publish.
    pub fn except_connection(mut self, id: ConnectionId) -> Self {
        self.target = self.target.except_connection(id);
        self
    }

    /// Excludes the connections of one user.
    pub fn except_user(mut self, id: impl Into<String>) -> Self {
        self.target = self.target.except_user(id);
        self
    }

    /// Sets an idempotency key of 1 to 64 bytes: of several publishes with the same key, one is delivered. With a key,
    /// a publish whose outcome is [unknown](PublishError::OutcomeUnknown) can be repeated safely. The cluster remembers
    /// a key for as long as its messages ([`LogConfig::age`](crate::LogConfig::age)), and at least as long again.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Makes the message volatile, for what is outdated by the next one anyway, such as a position or a typing notice.
    /// It is delivered to the connections that have taken everything sent to them at that time, and is never replayed: a client that
    /// does not read or is away does not get it, and does not count it as missed. Everything else is as for other
    /// messages, its acceptance and its place in the order included. A node of an older version delivers and replays it
    /// like any other message.
    pub fn volatile(mut self) -> Self {
        self.volatile = true;
        self
    }

    /// Returns the action.
    pub fn action(&self) -> &str {
        &self.action
    }

    /// Returns the details.
    pub fn details(&self) -> &RawDetails {
        &self.details
    }

    /// Returns the connections that get the message.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Returns true if the message is volatile.
    pub fn is_volatile(&self) -> bool {
        self.volatile
    }

    /// Checks and encodes the message.
    pub(crate) fn encode(self) -> Result<(Content, Option<Bytes>), PublishError> {
        let Self { action, details: raw, target, key: text, volatile } = self;
        let key = text.as_deref().map(key).transpose()?;
        let details = details(&action, raw)?;
        Ok((Content::Message { target, action, details, volatile }, key))
    }
}

/// Actions that begin so are the server's own, or reserved for later. The clients would take such a message for one of
/// the server's.
const RESERVED: [&str; 3] = ["Server/", "Client/", RESERVED_FOR_LATER];

/// Actions that begin so are reserved for later.
pub(crate) const RESERVED_FOR_LATER: &str = "Presence/";

/// Checks a message and returns its encoded details. If escape sequences make the text too large, it is encoded without
/// them.
pub(crate) fn details(action: &str, details: RawDetails) -> Result<Bytes, PublishError> {
    if !(1..=ACTION_SIZE).contains(&action.len()) {
        return Err(PublishError::ActionSize { size: action.len() });
    }
    if let Some(prefix) = RESERVED.into_iter().find(|reserved| action.starts_with(reserved)) {
        return Err(PublishError::ReservedAction { prefix });
    }
    let size = |details: &RawDetails| action.len() + details.as_str().len();
    let details = if size(&details) > PUBLISH_SIZE { details.plain() } else { details };
    match size(&details) {
        ..=PUBLISH_SIZE => Ok(details.to_bytes()),
        size => Err(PublishError::TooLarge { size, limit: PUBLISH_SIZE }),
    }
}

/// Checks an idempotency key.
pub(crate) fn key(key: &str) -> Result<Bytes, PublishError> {
    check_key(key.as_bytes())?;
    Ok(Bytes::copy_from_slice(key.as_bytes()))
}

fn check_key(key: &[u8]) -> Result<(), PublishError> {
    if (1..=IDEMPOTENCY_KEY_SIZE).contains(&key.len()) {
        Ok(())
    } else {
        Err(PublishError::IdempotencyKeySize { size: key.len(), limit: IDEMPOTENCY_KEY_SIZE })
    }
}

/// Checks a publish that another process encoded.
pub(crate) fn check(content: &Bytes, idempotency_key: Option<&[u8]>) -> Result<(), PublishError> {
    idempotency_key.map_or(Ok(()), check_key)?;
    let limit = PUBLISH_SIZE + ENVELOPE_SIZE;
    if content.len() > limit {
        return Err(PublishError::TooLarge { size: content.len(), limit });
    }
    Content::decode(content.clone()).map(drop).map_err(|error| PublishError::invalid(error.to_string()))
}

/// Encodes an outcome as a number and a text. A number is never given another meaning.
pub(crate) fn encode_outcome(outcome: &Result<(), PublishError>) -> (u32, String) {
    match outcome {
        Ok(()) => (0, String::new()),
        Err(error) => {
            let number = match error {
                PublishError::Busy => 1,
                PublishError::OutcomeUnknown => 3,
                PublishError::ShuttingDown => 4,
                PublishError::TooLarge { .. }
                | PublishError::Details { .. }
                | PublishError::ActionSize { .. }
                | PublishError::ReservedAction { .. }
                | PublishError::IdempotencyKeySize { .. }
                | PublishError::Invalid { .. } => 2,
            };
            (number, error.to_string())
        }
    }
}

/// Decodes the outcome that [`encode_outcome`] wrote. A number of a later version counts as an unknown outcome.
pub(crate) fn outcome(number: u32, text: &str) -> Result<(), PublishError> {
    match number {
        0 => Ok(()),
        1 => Err(PublishError::Busy),
        2 => Err(PublishError::invalid(text.to_owned())),
        4 => Err(PublishError::ShuttingDown),
        _ => Err(PublishError::OutcomeUnknown),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_message_that_cannot_be_sent_names_its_mistake() {
        let refused = |action: &str| Message::new(action, 7).unwrap().encode().unwrap_err();
        assert_eq!(refused(""), PublishError::ActionSize { size: 0 });
        assert_eq!(refused(&"x".repeat(256)), PublishError::ActionSize { size: 256 });
        for prefix in ["Server/", "Client/", "Presence/"] {
            let error = refused(&format!("{prefix}x"));
            assert_eq!(error, PublishError::ReservedAction { prefix });
            assert_eq!((error.status_code(), error.is_retryable()), (400, false));
        }
        let error = Message::new("a", 7).unwrap().idempotency_key("x".repeat(65)).encode().unwrap_err();
        assert_eq!(error, PublishError::IdempotencyKeySize { size: 65, limit: 64 });
        assert_eq!(error.to_string(), "an idempotency key has 1 to 64 bytes");
        let no_text = BTreeMap::from([((1, 2), 3)]);
        assert!(matches!(Message::new("a", no_text), Err(PublishError::Details { .. })));
    }
}
