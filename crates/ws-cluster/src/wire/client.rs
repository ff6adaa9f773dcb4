//! The JSON that clients see: messages `{"action": .., "details": [..]}` and, for existing clients,
//! `["action", details]`. What is sent to many is encoded once for each dialect.

use std::cell::OnceCell;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::position::Position;
use crate::{cluster::Seq, connection::frame};

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

/// In which form a connection is sent messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Object,
    Array,
    /// The object with a member `at`, the position, where the message has one: for who asked for it (`?resume=`).
    Positioned,
}

/// A message for clients: encoded when the first connection of a form wants it, shared by all of them.
pub(crate) struct Outgoing<'a> {
    action: &'a str,
    /// A JSON array.
    details: &'a [u8],
    at: Option<Position>,
    object: OnceCell<Bytes>,
    array: OnceCell<Bytes>,
    positioned: OnceCell<Bytes>,
}

impl<'a> Outgoing<'a> {
    /// A message with details that are encoded already, as an array.
    pub(crate) fn new(action: &'a str, details: &'a [u8]) -> Self {
        let (object, array, positioned) = Default::default();
        Self { action, details, at: None, object, array, positioned }
    }

    /// The same as an entry of the cluster's order, at its position.
    pub(crate) fn at(self, position: Position) -> Self {
        Self { at: Some(position), ..self }
    }

    /// Its place in the cluster's order, if it has one.
    pub(crate) fn seq(&self) -> Option<Seq> {
        self.at.map(|position| position.seq)
    }

    /// The WebSocket frame with the message in a form.
    pub(crate) fn frame(&self, form: Form) -> Bytes {
        let object = |after: &[u8]| self.encode(b"{\"action\":", b",\"details\":", after);
        match (form, self.at) {
            (Form::Array, _) => self.array.get_or_init(|| self.encode(b"[", b",", b"]")),
            (Form::Positioned, Some(at)) => {
                self.positioned.get_or_init(|| object(format!(",\"at\":\"{at}\"}}").as_bytes()))
            }
            (Form::Object | Form::Positioned, _) => self.object.get_or_init(|| object(b"}")),
        }
        .clone()
    }

    fn encode(&self, before: &[u8], between: &[u8], after: &[u8]) -> Bytes {
        let action = Value::from(self.action).to_string();
        frame::text(&[before, action.as_bytes(), between, self.details, after])
    }
}

/// The frame that tells a client where it is: `Server/position`, with its position and what belongs to its connection
/// where they are news.
pub(crate) fn position(details: &[Value], at: Option<Position>, state: Option<&str>) -> Bytes {
    let mut message = format!("{{\"action\":\"Server/position\",\"details\":{}", Value::from(details));
    at.iter().for_each(|at| message.push_str(&format!(",\"at\":\"{at}\"")));
    state.iter().for_each(|state| message.push_str(&format!(",\"state\":\"{state}\"")));
    message.push('}');
    frame::text(&[message.as_bytes()])
}

/// The first of these on a connection: it also grants the heartbeat that the client asked for, in seconds (0 for none).
pub(crate) fn beginning(details: &[Value], at: Position, state: &str, heartbeat: u16) -> Bytes {
    let details = Value::from(details);
    let mut message =
        format!("{{\"action\":\"Server/position\",\"details\":{details},\"at\":\"{at}\",\"state\":\"{state}\"");
    if heartbeat > 0 {
        message.push_str(&format!(",\"heartbeat\":{heartbeat}"));
    }
    message.push('}');
    frame::text(&[message.as_bytes()])
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
    fn a_message_is_encoded_once_for_each_form() {
        let message = Outgoing::new("say \"x\"", b"[1]");
        let object = message.frame(Form::Object);
        assert_eq!(&object[2..], br#"{"action":"say \"x\"","details":[1]}"#);
        assert_eq!(object.as_ptr(), message.frame(Form::Object).as_ptr());
        assert_eq!(object.as_ptr(), message.frame(Form::Positioned).as_ptr(), "it has no position");
        assert_eq!(&message.frame(Form::Array)[2..], br#"["say \"x\"",[1]]"#);
        let entry = Outgoing::new("a", b"[]").at(Position::START);
        let positioned = entry.frame(Form::Positioned);
        assert_eq!(&positioned[2..], br#"{"action":"a","details":[],"at":"AAAAAAAAAAAAAA"}"#);
        assert_eq!(positioned.as_ptr(), entry.frame(Form::Positioned).as_ptr());
        assert_eq!(&entry.frame(Form::Object)[2..], br#"{"action":"a","details":[]}"#);
    }

    #[test]
    fn a_position_says_what_is_news() {
        let now = position(&["now".into()], Some(Position::START), None);
        assert_eq!(&now[2..], br#"{"action":"Server/position","details":["now"],"at":"AAAAAAAAAAAAAA"}"#);
        let recovered = position(&["recovered".into(), 3.into()], None, Some("x"));
        assert_eq!(&recovered[2..], br#"{"action":"Server/position","details":["recovered",3],"state":"x"}"#);
    }
}
