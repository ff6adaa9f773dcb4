//! The id of a request: a client's message that gets exactly one answer. Pure.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use ws_cluster_client::replace_lone_surrogates;

/// Largest id, in bytes: the text of a string, or the digits and the sign of an integer.
const SIZE: usize = 64;

/// The id of a request as its client wrote it: the JSON of an integer, or of a string of at most 64 bytes.
///
/// The server compares no ids. It only gives them back, and a client tells its own requests apart.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

/// The error for JSON that is no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id is an integer or a string, of at most {SIZE} bytes")]
pub(crate) struct BadRequestId;

impl RequestId {
    /// Reads an id. The JSON is kept as it is, but for half of a surrogate pair, which becomes U+FFFD as everywhere.
    pub(crate) fn from_raw(json: &RawValue) -> Result<Self, BadRequestId> {
        let json = replace_lone_surrogates(json.get());
        let fits = match json.as_bytes().first() {
            Some(b'"') => serde_json::from_str::<String>(&json).is_ok_and(|text| text.len() <= SIZE),
            Some(b'-' | b'0'..=b'9') => json.len() <= SIZE && !json.contains(['.', 'e', 'E']),
            _ => false,
        };
        if fits { Ok(Self(json.into())) } else { Err(BadRequestId) }
    }

    /// Returns the id as JSON: `7`, or `"seven"` with its quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Writes the id as JSON.
impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Writes the integer or the string.
impl Serialize for RequestId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::from_str::<&RawValue>(&self.0).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

/// The answer that a client waits for: it is marked with the id of the client's message. Only the first answer takes
/// the id. A message without an id has no such answer, and costs nothing here. Clones belong to the same message.
#[derive(Clone, Debug, Default)]
pub(crate) struct AwaitedAnswer(Option<Arc<(RequestId, AtomicBool)>>);

impl AwaitedAnswer {
    pub(crate) fn new(id: Option<RequestId>) -> Self {
        Self(id.map(|id| Arc::new((id, AtomicBool::new(false)))))
    }

    /// Returns the id of the message, whether or not it has been answered.
    pub(crate) fn id(&self) -> Option<&RequestId> {
        self.0.as_deref().map(|(id, _)| id)
    }

    /// Returns the id for an answer if this is the first one.
    pub(crate) fn take(&self) -> Option<&RequestId> {
        let (id, taken) = self.0.as_deref()?;
        (!taken.swap(true, Ordering::Relaxed)).then_some(id)
    }
}

impl PartialEq for AwaitedAnswer {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(json: &str) -> Option<String> {
        RequestId::from_raw(serde_json::from_str(json).unwrap()).ok().map(|id| id.to_string())
    }

    #[test]
    fn an_integer_or_a_short_string_is_an_id_and_keeps_its_form() {
        let long = |size: usize| format!("\"{}\"", "x".repeat(size));
        for json in ["0", "7", "-7", "18446744073709551616", "\"\"", "\"7\"", r#""\u00e9\"\\""#, "\"🎉\"", &long(64)]
        {
            assert_eq!(id(json).as_deref(), Some(json));
        }
        // 64 bytes as text, though more as JSON.
        let escaped = format!("\"{}\"", "\\u00e9".repeat(32));
        assert_eq!(id(&escaped), Some(escaped));
        assert_eq!(id(r#" "\ud83c" "#).as_deref(), Some("\"\u{fffd}\""));
        for json in ["1.0", "1e3", "1E3", "-0.5", "true", "null", "[1]", "{}", &long(65), &"9".repeat(65)] {
            assert_eq!(id(json), None, "{json}");
        }
        assert_eq!(id(&format!("\"{}\"", "\\u00e9".repeat(33))), None);
        assert_eq!(id(&format!("\"{}\"", "🎉".repeat(17))), None);
    }

    #[test]
    fn only_the_first_answer_takes_the_id() {
        let id = RequestId::from_raw(serde_json::from_str("7").unwrap()).unwrap();
        let answer = AwaitedAnswer::new(Some(id.clone()));
        let same = answer.clone();
        assert_eq!((same.take(), answer.take(), same.take()), (Some(&id), None, None));
        assert_eq!(answer.id(), Some(&id));
        assert_eq!(AwaitedAnswer::default().take(), None);
        assert_eq!(serde_json::to_string(&(id, 1)).unwrap(), "[7,1]");
    }
}
