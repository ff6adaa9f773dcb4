//! What may be published, in whichever way: by a server, by a [`Publisher`](crate::Publisher), over HTTP. And how the
//! outcome of a publish travels.

use bytes::Bytes;

use crate::{
    Details, PublishError, Target,
    message::{client::ACTION_SIZE, content::Content},
};

/// Largest publish in bytes: action and encoded details.
pub(crate) const PUBLISH_SIZE: usize = 1024 * 1024;

/// Longest idempotency key in bytes.
pub(crate) const IDEMPOTENCY_KEY_SIZE: usize = 64;

/// What target and framing may add to a publish of the largest size.
const ENVELOPE_SIZE: usize = 64 * 1024;

/// A message that is fit to be published.
pub(crate) fn message(action: &str, details: Details, target: Target) -> Result<Content, PublishError> {
    let details = self::details(action, details)?;
    Ok(Content::Message { target, action: action.to_owned(), details })
}

/// The encoded details of a message that is fit to be sent. Text counts as what it says: if its escape sequences make
/// it too large, it is written without them.
pub(crate) fn details(action: &str, details: Details) -> Result<Bytes, PublishError> {
    if !(1..=ACTION_SIZE).contains(&action.len()) {
        return Err(PublishError::Invalid(format!("an action has 1 to {ACTION_SIZE} bytes")));
    }
    let size = |details: &Details| action.len() + details.as_str().len();
    let details = if size(&details) > PUBLISH_SIZE { details.plain() } else { details };
    match size(&details) {
        ..=PUBLISH_SIZE => Ok(details.bytes()),
        size => Err(PublishError::TooLarge { size, limit: PUBLISH_SIZE }),
    }
}

/// An idempotency key that is fit to be used.
pub(crate) fn key(key: &str) -> Result<Bytes, PublishError> {
    check_key(key.as_bytes())?;
    Ok(Bytes::copy_from_slice(key.as_bytes()))
}

fn check_key(key: &[u8]) -> Result<(), PublishError> {
    if (1..=IDEMPOTENCY_KEY_SIZE).contains(&key.len()) {
        Ok(())
    } else {
        Err(PublishError::Invalid(format!("an idempotency key has 1 to {IDEMPOTENCY_KEY_SIZE} bytes")))
    }
}

/// What a node checks of a publish that another process encoded.
pub(crate) fn check(content: &Bytes, idempotency_key: Option<&[u8]>) -> Result<(), PublishError> {
    idempotency_key.map_or(Ok(()), check_key)?;
    let limit = PUBLISH_SIZE + ENVELOPE_SIZE;
    if content.len() > limit {
        return Err(PublishError::TooLarge { size: content.len(), limit });
    }
    Content::decode(content.clone()).map(drop).map_err(|error| PublishError::Invalid(error.to_string()))
}

/// An outcome as numbers; they are never given another meaning.
pub(crate) fn encode_outcome(outcome: &Result<(), PublishError>) -> (u32, String) {
    match outcome {
        Ok(()) => (0, String::new()),
        Err(error) => {
            let number = match error {
                PublishError::Busy => 1,
                PublishError::TooLarge { .. } | PublishError::Invalid(_) => 2,
                PublishError::Unknown => 3,
                PublishError::ShuttingDown => 4,
            };
            (number, error.to_string())
        }
    }
}

/// The outcome that [`encode_outcome`] wrote. A number of a later version means that nothing is known.
pub(crate) fn outcome(number: u32, text: &str) -> Result<(), PublishError> {
    match number {
        0 => Ok(()),
        1 => Err(PublishError::Busy),
        2 => Err(PublishError::Invalid(text.to_owned())),
        4 => Err(PublishError::ShuttingDown),
        _ => Err(PublishError::Unknown),
    }
}
