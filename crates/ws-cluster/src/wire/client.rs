//! The JSON that clients see: messages `{"action": .., "details": [..]}` and, for existing clients,
//! `["action", details]`. What is sent to many is encoded once for each dialect.

use std::cell::OnceCell;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use crate::connection::frame;

/// Longest name of an action, in bytes.
pub(crate) const ACTION_SIZE: usize = 255;

/// In which of the two forms a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `{"action": .., "details": [..]}`: until the client's first message says otherwise.
    Object,
    /// `["action", [..]]`.
    Array,
}

/// A message of a client.
#[derive(Debug, PartialEq)]
pub(crate) struct Incoming {
    pub(crate) dialect: Dialect,
    pub(crate) action: String,
    pub(crate) details: Vec<Value>,
}

/// What a client sent is no message. The text goes into the close frame, so it stays below 123 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("not JSON")]
    NotJson,
    #[error("neither {{\"action\": .., \"details\": [..]}} nor [\"action\", details]")]
    NeitherForm,
    #[error("the action is empty")]
    Empty,
    #[error("the action is longer than 255 bytes")]
    TooLong,
    #[error("a binary frame")]
    Binary,
}

/// Reads a client's message. The details come out as one element for each argument.
pub(crate) fn parse(text: &str) -> Result<Incoming, Malformed> {
    /// Reads both forms: serde takes a structure from an array as well as from an object.
    #[derive(Deserialize)]
    struct Either {
        action: String,
        #[serde(default)]
        details: Value,
    }

    let Ok(Either { action, details }) = serde_json::from_str(text) else {
        let json = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
        return Err(if json { Malformed::NeitherForm } else { Malformed::NotJson });
    };
    match action.len() {
        0 => Err(Malformed::Empty),
        1..=ACTION_SIZE => {
            let dialect = if text.trim_start().starts_with('[') { Dialect::Array } else { Dialect::Object };
            Ok(Incoming { dialect, action, details: normalize(details) })
        }
        _ => Err(Malformed::TooLong),
    }
}

/// Details as one element for each argument of a callback: nothing is none, an array stays, anything else is one.
pub(crate) fn normalize(details: Value) -> Vec<Value> {
    match details {
        Value::Null => Vec::new(),
        Value::Array(details) => details,
        one => vec![one],
    }
}

/// The details as a JSON array.
pub(crate) fn encode(details: &[Value]) -> Bytes {
    // Values have text keys and finite numbers only, so writing them to memory cannot fail.
    serde_json::to_vec(details).expect("a JSON value can be written").into()
}

/// A message for clients: encoded when the first connection of a dialect wants it, shared by all of them.
///
/// A connection that asked for its position (`?resume=`) is to get a third form, the object with an `at` member; it
/// is one more cell here, since `at` depends on the message only.
pub(crate) struct Outgoing<'a> {
    action: &'a str,
    /// A JSON array.
    details: &'a [u8],
    object: OnceCell<Bytes>,
    array: OnceCell<Bytes>,
}

impl<'a> Outgoing<'a> {
    /// A message with details that are encoded already, as an array.
    pub(crate) fn new(action: &'a str, details: &'a [u8]) -> Self {
        Self { action, details, object: OnceCell::new(), array: OnceCell::new() }
    }

    /// The WebSocket frame with the message in a dialect.
    pub(crate) fn frame(&self, dialect: Dialect) -> Bytes {
        let (cell, before, between, after): (_, &[u8], &[u8], &[u8]) = match dialect {
            Dialect::Object => (&self.object, b"{\"action\":", b",\"details\":", b"}"),
            Dialect::Array => (&self.array, b"[", b",", b"]"),
        };
        cell.get_or_init(|| {
            let action = Value::from(self.action).to_string();
            frame::text(&[before, action.as_bytes(), between, self.details, after])
        })
        .clone()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn parsed(text: &str) -> (Dialect, String, Value) {
        let Incoming { dialect, action, details } = parse(text).unwrap();
        (dialect, action, details.into())
    }

    #[test]
    fn details_are_one_element_for_each_argument() {
        for (sent, normal) in [
            (r#"{"action":"a"}"#, json!([])),
            (r#"{"action":"a","details":null}"#, json!([])),
            (r#"{"action":"a","details":[]}"#, json!([])),
            (r#"{"action":"a","details":[1,[2]]}"#, json!([1, [2]])),
            (r#"{"action":"a","details":"x"}"#, json!(["x"])),
            (r#"{"action":"a","details":{"x":1}}"#, json!([{"x": 1}])),
            (r#"{"action":"a","details":false}"#, json!([false])),
            (r#" {"details": 0, "more": 1, "action": "a"} "#, json!([0])),
        ] {
            assert_eq!(parsed(sent), (Dialect::Object, "a".into(), normal), "{sent}");
        }
        for (sent, normal) in [
            (r#"["a"]"#, json!([])),
            (r#"["a",null]"#, json!([])),
            (r#"["a",[1,2]]"#, json!([1, 2])),
            (r#" ["a", {"x":1}]"#, json!([{"x": 1}])),
        ] {
            assert_eq!(parsed(sent), (Dialect::Array, "a".into(), normal), "{sent}");
        }
    }

    #[test]
    fn what_is_no_message_is_named() {
        let long = "x".repeat(256);
        for (sent, why) in [
            ("", Malformed::NotJson),
            ("hello", Malformed::NotJson),
            ("{\"action\":\"a\"", Malformed::NotJson),
            ("{\"action\":\"a\"} x", Malformed::NotJson),
            ("\"a\"", Malformed::NeitherForm),
            ("7", Malformed::NeitherForm),
            ("{}", Malformed::NeitherForm),
            ("[]", Malformed::NeitherForm),
            ("[1,2]", Malformed::NeitherForm),
            ("[\"a\",1,2]", Malformed::NeitherForm),
            ("{\"action\":7}", Malformed::NeitherForm),
            ("{\"action\":null,\"details\":[]}", Malformed::NeitherForm),
            ("{\"action\":\"\"}", Malformed::Empty),
            (&format!("[\"{long}\"]"), Malformed::TooLong),
        ] {
            assert_eq!(parse(sent), Err(why), "{sent}");
            assert!(why.to_string().len() <= 123);
        }
        assert!(parse(&format!("[\"{}\"]", &long[1..])).is_ok());
    }

    #[test]
    fn a_message_is_encoded_once_for_each_dialect() {
        let message = Outgoing::new("say \"x\"", b"[1]");
        let object = message.frame(Dialect::Object);
        assert_eq!(&object[2..], br#"{"action":"say \"x\"","details":[1]}"#);
        assert_eq!(object.as_ptr(), message.frame(Dialect::Object).as_ptr());
        assert_eq!(&message.frame(Dialect::Array)[2..], br#"["say \"x\"",[1]]"#);
    }
}
