//! The JSON that clients see: messages `{"action": .., "details": [..]}` and, for existing clients, `["action",
//! details]`. Requests and their answers have an id as well. A message to many clients is encoded once for each form.

use std::{borrow::Cow, cell::OnceCell, str::FromStr};

use bytes::Bytes;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, value::RawValue};

use super::{
    position::Position,
    request_id::{BadRequestId, RequestId},
};
use crate::{
    CloseCode, RawDetails,
    ws::{
        deflate::{Deflate, compress},
        frame,
    },
};
use ws_cluster_client::{ACTION_SIZE, replace_lone_surrogates};
use ws_cluster_core::Seq;

/// The form in which a connection speaks. A client is answered in the form of its first message. Before that the form
/// is the one that [`ServerBuilder::dialect`](crate::ServerBuilder::dialect) sets. Its text is `object` or `array`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dialect {
    /// `{"action": .., "details": [..]}`.
    #[default]
    Object,
    /// `["action", [..]]`.
    Array,
}

/// The error for a text that is neither `object` nor `array`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown dialect: use object or array")]
#[non_exhaustive]
pub struct ParseDialectError;

impl FromStr for Dialect {
    type Err = ParseDialectError;

    fn from_str(text: &str) -> Result<Self, ParseDialectError> {
        match text {
            "object" => Ok(Self::Object),
            "array" => Ok(Self::Array),
            _ => Err(ParseDialectError),
        }
    }
}

/// A message from a client.
#[derive(Debug, PartialEq)]
pub(crate) struct Incoming {
    pub(crate) dialect: Dialect,
    pub(crate) action: String,
    pub(crate) details: RawDetails,
    /// The id that the one answer to this message carries.
    pub(crate) id: Option<RequestId>,
}

/// The reason why a client's text is refused.
#[derive(Debug, PartialEq)]
pub(crate) enum Malformed {
    /// The text is no message, so the connection cannot continue.
    Frame(BadFrame),
    /// The action can be read, but the rest cannot. The action is answered with an error.
    Details { dialect: Dialect, action: String, id: Option<RequestId>, why: String },
}

/// The error for a frame that is no message. The text goes into the close frame, so it stays below 123 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadFrame {
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

/// Both forms: serde reads a structure from an array as well as from an object.
#[derive(Deserialize)]
struct Either<'a> {
    #[serde(borrow)]
    action: Cow<'a, str>,
    #[serde(borrow, default)]
    details: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
}

/// Reads a client's message.
pub(crate) fn parse(text: &str) -> Result<Incoming, Malformed> {
    let Ok(either) = serde_json::from_str::<Either<'_>>(text) else { return parse_leniently(text) };
    incoming(text, either)
}

fn incoming(text: &str, Either { action, details, id }: Either<'_>) -> Result<Incoming, Malformed> {
    let dialect = if text.trim_start().starts_with('[') { Dialect::Array } else { Dialect::Object };
    let action = check_action(action.into_owned())?;
    let id = match id.map(RequestId::from_raw).transpose() {
        Ok(id) => id,
        Err(bad @ BadRequestId) => return Err(Malformed::Details { dialect, action, id: None, why: bad.to_string() }),
    };
    match details.map(RawDetails::from_raw).transpose() {
        Ok(details) => Ok(Incoming { dialect, action, details: details.unwrap_or_default(), id }),
        Err(error) => Err(Malformed::Details { dialect, action, id, why: error.to_string() }),
    }
}

fn check_action(action: String) -> Result<String, Malformed> {
    match action.len() {
        0 => Err(Malformed::Frame(BadFrame::Empty)),
        1..=ACTION_SIZE => Ok(action),
        _ => Err(Malformed::Frame(BadFrame::TooLong)),
    }
}

/// Reads a text that is no valid message. Half of a surrogate pair in the action is replaced. If the message is
/// malformed behind or around its action, the action is still found.
#[cold]
fn parse_leniently(text: &str) -> Result<Incoming, Malformed> {
    let mended = replace_lone_surrogates(text.trim_start_matches('\u{feff}'));
    let error = match serde_json::from_str::<Either<'_>>(&mended) {
        Ok(either) => return incoming(&mended, either),
        Err(error) => error,
    };
    let Some((dialect, action)) = find_action(&mended) else {
        let json = serde_json::from_str::<IgnoredAny>(&mended).is_ok();
        return Err(Malformed::Frame(if json { BadFrame::NeitherForm } else { BadFrame::NotJson }));
    };
    let action = check_action(action)?;
    let why = if error.is_data() { error.to_string() } else { format!("not JSON: {error}") };
    Err(Malformed::Details { dialect, action, id: find_id(&mended), why })
}

/// Returns the action of a message that is not JSON as a whole: the first element, or the first member `action` at the
/// top level.
fn find_action(text: &str) -> Option<(Dialect, String)> {
    let text = text.trim_ascii();
    match text.strip_prefix('[') {
        Some(elements) => Some((Dialect::Array, leading::<String>(elements)?.0)),
        None => Some((Dialect::Object, leading::<String>(find_member(text, "action")?)?.0)),
    }
}

/// Returns the id of such a message: the third element, or the first member `id` at the top level. An id behind a value
/// whose end cannot be told is not found.
fn find_id(text: &str) -> Option<RequestId> {
    let text = text.trim_ascii();
    let id = match text.strip_prefix('[') {
        Some(mut elements) => {
            for _ in 0..2 {
                elements = &elements[value_end(elements)? + 1..];
            }
            elements
        }
        None => find_member(text, "id")?,
    };
    RequestId::from_raw(leading::<&RawValue>(id)?.0).ok()
}

/// Returns the text from the value of the first member `name` at the top level on.
fn find_member<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = text.strip_prefix('{')?;
    loop {
        let (found, behind) = leading::<String>(rest)?;
        let value = behind.trim_ascii_start().strip_prefix(':')?;
        if found == name {
            return Some(value);
        }
        rest = &value[value_end(value)? + 1..];
    }
}

/// Reads the value at the beginning. Returns the rest behind it as well.
fn leading<'a, T: Deserialize<'a>>(json: &'a str) -> Option<(T, &'a str)> {
    let mut values = serde_json::Deserializer::from_str(json).into_iter();
    let value = values.next()?.ok()?;
    let behind = json.get(values.byte_offset()..)?;
    Some((value, behind))
}

/// Returns the index of the comma after a value, whatever the value contains in its quotes and brackets.
fn value_end(value: &str) -> Option<usize> {
    let (mut depth, mut text, mut escaped) = (0_usize, false, false);
    for (at, byte) in value.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => text = !text,
            _ if text => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.checked_sub(1)?,
            b',' if depth == 0 => return Some(at),
            _ => {}
        }
    }
    None
}

/// Encodes the server's own details as a JSON array.
pub(crate) fn encode(details: &[Value]) -> Bytes {
    // Values have only text keys and finite numbers, so writing them to memory cannot fail.
    serde_json::to_vec(details).expect("a JSON value can be written").into()
}

/// The form of the messages that a connection gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageForm {
    Object,
    Array,
    /// The object with a member `at`, the position, if the message has one. Used for clients that asked for it
    /// (`?resume=`).
    Positioned,
}

/// A message for clients. It is encoded when the first connection needs a form, and compressed when the first connection
/// needs a form compressed. All connections share the results.
pub(crate) struct OutgoingMessage<'a> {
    action: &'a str,
    /// A JSON array.
    details: &'a [u8],
    at: Option<Position>,
    /// The id of the request that this message answers.
    id: Option<&'a RequestId>,
    /// The code with which the server closes the connection after this message.
    close: Option<CloseCode>,
    /// By form.
    plain: [OnceCell<Bytes>; 3],
    /// The same frames compressed. A frame that does not shrink is the plain one.
    compressed: [OnceCell<Bytes>; 3],
}

impl<'a> OutgoingMessage<'a> {
    /// Returns a message with encoded details, which are a JSON array.
    pub(crate) fn new(action: &'a str, details: &'a [u8]) -> Self {
        let (plain, compressed) = Default::default();
        Self { action, details, at: None, id: None, close: None, plain, compressed }
    }

    /// Makes the message the answer to a request, if there is one.
    pub(crate) fn answers(self, id: Option<&'a RequestId>) -> Self {
        Self { id, ..self }
    }

    /// Says in the message that the server closes the connection after it. A client then sends nothing more on this
    /// connection, because it would be lost.
    pub(crate) fn closes(self, code: CloseCode) -> Self {
        Self { close: Some(code), ..self }
    }

    /// Sets the position of the message in the cluster's order.
    pub(crate) fn at(self, position: Position) -> Self {
        Self { at: Some(position), ..self }
    }

    /// Returns the sequence number of the message in the cluster's order, if it has one.
    pub(crate) fn seq(&self) -> Option<Seq> {
        self.at.map(|position| position.seq)
    }

    /// Returns the WebSocket frame with the message in a form, compressed if the connection takes it so.
    pub(crate) fn frame(&self, form: MessageForm, deflate: Option<Deflate>) -> Bytes {
        let mut unlimited = usize::MAX;
        self.frame_within(form, deflate, &mut unlimited)
    }

    /// Like [`frame`](Self::frame), but compresses at most `budget` bytes, and subtracts what it compresses. If the
    /// message is larger, the frame is plain.
    pub(crate) fn frame_within(&self, form: MessageForm, deflate: Option<Deflate>, budget: &mut usize) -> Bytes {
        let form = if self.at.is_none() && form == MessageForm::Positioned { MessageForm::Object } else { form };
        let plain = self.plain[form as usize].get_or_init(|| self.encode(form));
        let (size, compressed) = (frame::payload(plain).len(), &self.compressed[form as usize]);
        if !deflate.is_some_and(|deflate| deflate.takes(size)) {
            return plain.clone();
        }
        if compressed.get().is_none() {
            match budget.checked_sub(size) {
                Some(rest) => *budget = rest,
                None => return plain.clone(),
            }
        }
        compressed.get_or_init(|| compress(plain).unwrap_or_else(|| plain.clone())).clone()
    }

    fn encode(&self, form: MessageForm) -> Bytes {
        match (form, self.at) {
            (MessageForm::Array, _) => self.encode_array(),
            (MessageForm::Positioned, Some(at)) => self.encode_object(&format!(",\"at\":\"{at}\"")),
            (MessageForm::Object | MessageForm::Positioned, _) => self.encode_object(""),
        }
    }

    /// Encodes the object form, with this member for the position.
    fn encode_object(&self, at: &str) -> Bytes {
        let action = Value::from(self.action).to_string();
        let id = self.id.map(|id| format!(",\"id\":{id}")).unwrap_or_default();
        let close = self.close.map(|code| format!(",\"close\":{}", code as u16)).unwrap_or_default();
        let (action, at, id, close) = (action.as_bytes(), at.as_bytes(), id.as_bytes(), close.as_bytes());
        frame::text(&[b"{\"action\":", action, b",\"details\":", self.details, at, id, close, b"}"])
    }

    fn encode_array(&self) -> Bytes {
        let action = Value::from(self.action).to_string();
        let id = self.id.map(|id| format!(",{id}")).unwrap_or_default();
        frame::text(&[b"[", action.as_bytes(), b",", self.details, id.as_bytes(), b"]"])
    }
}

/// Returns the frame `Server/position`, which tells a client its position and its resume token if these are given.
pub(crate) fn position(details: &[Value], at: Option<Position>, state: Option<&str>) -> Bytes {
    let mut message = format!("{{\"action\":\"Server/position\",\"details\":{}", Value::from(details));
    at.iter().for_each(|at| message.push_str(&format!(",\"at\":\"{at}\"")));
    state.iter().for_each(|state| message.push_str(&format!(",\"state\":\"{state}\"")));
    message.push('}');
    frame::text(&[message.as_bytes()])
}

/// Returns the first `Server/position` of a connection. It also grants the heartbeat that the client asked for, in
/// seconds (0 for none).
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
        let Incoming { dialect, action, details, .. } = parse(text).unwrap();
        (dialect, action, details.values().to_vec().into())
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
    fn a_text_that_is_no_message_is_refused_with_the_reason() {
        let long = "x".repeat(256);
        for (sent, why) in [
            ("", BadFrame::NotJson),
            ("hello", BadFrame::NotJson),
            ("{\"action\":\"a", BadFrame::NotJson),
            ("{\"action\":\"a\\x\",\"details\":[]}", BadFrame::NotJson),
            ("{\"action\":\"a\0\"}", BadFrame::NotJson),
            ("{\"details\":[1,\"action\":\"a\"}", BadFrame::NotJson),
            ("{\"details\":[{\"action\":\"a\"}", BadFrame::NotJson),
            ("{'action':'a'}", BadFrame::NotJson),
            ("{\"x\"}", BadFrame::NotJson),
            ("[", BadFrame::NotJson),
            ("\"a\"", BadFrame::NeitherForm),
            ("7", BadFrame::NeitherForm),
            ("{}", BadFrame::NeitherForm),
            ("{\"details\":{\"action\":\"a\"}}", BadFrame::NeitherForm),
            ("[]", BadFrame::NeitherForm),
            ("[1,2]", BadFrame::NeitherForm),
            ("{\"action\":7}", BadFrame::NeitherForm),
            ("{\"action\":null,\"details\":[]}", BadFrame::NeitherForm),
            ("{\"action\":\"\"}", BadFrame::Empty),
            ("[\"\",nan]", BadFrame::Empty),
            (&format!("[\"{long}\"]"), BadFrame::TooLong),
            (&format!("[\"{}\"]", "\u{e9}".repeat(128)), BadFrame::TooLong),
            (&format!("[\"{long}\",nan]"), BadFrame::TooLong),
        ] {
            assert_eq!(parse(sent), Err(Malformed::Frame(why)), "{sent}");
            assert!(why.to_string().len() <= 123);
        }
        assert!(parse(&format!("[\"{}\"]", &long[1..])).is_ok());
    }

    #[test]
    fn a_message_that_is_malformed_but_for_its_action_is_answered() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        for (sent, dialect, why) in [
            (r#"{"action":"a""#, Dialect::Object, "not JSON"),
            (r#"{"action":"a"} x"#, Dialect::Object, "not JSON"),
            (r#"{"action":"a","details":[1"#, Dialect::Object, "not JSON"),
            (r#"{"action":"a","details":[NaN]}"#, Dialect::Object, "not JSON"),
            (r#"{"details":[NaN,"]"],"more":{},"action":"a"}"#, Dialect::Object, "not JSON"),
            (r#"{"details":"\"","d":[1],"action":"a",}"#, Dialect::Object, "not JSON"),
            ("{\"action\":\"a\",\"details\":\"a\nb\"}", Dialect::Object, "not JSON"),
            (r#"{"action":"a","details":["\x"]}"#, Dialect::Object, "not JSON"),
            (r#"{"action":"a","action":"b"}"#, Dialect::Object, "duplicate"),
            (r#"{"action":"a","details":1,"details":2}"#, Dialect::Object, "duplicate"),
            (r#" ["a",[1,]]"#, Dialect::Array, "not JSON"),
            (r#"["a",undefined]"#, Dialect::Array, "not JSON"),
            (r#"["a""#, Dialect::Array, "not JSON"),
            (r#"["a",1,2,3]"#, Dialect::Array, ""),
            (&format!(r#"["a",{deep}]"#), Dialect::Array, "nested"),
            (&format!(r#"{{"details":{deep},"action":"a"}}"#), Dialect::Object, "nested"),
            (&format!(r#"{{"action":"\u0061","details":{deep}}}"#), Dialect::Object, "nested"),
        ] {
            match parse(sent) {
                Err(Malformed::Details { dialect: spoken, action, why: text, .. }) => {
                    assert_eq!((spoken, &*action), (dialect, "a"), "{sent}");
                    assert!(text.contains(why), "{sent}: {text}");
                }
                other => panic!("{sent}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_request_has_an_id_in_both_forms() {
        let id = |sent: &str| parse(sent).unwrap().id.map(|id| id.to_string());
        for (sent, expected) in [
            (r#"{"action":"a","id":7}"#, Some("7")),
            (r#"{"id": "x\u0041" ,"details":[{"id":8}],"action":"a"}"#, Some(r#""x\u0041""#)),
            (r#"["a",1,7]"#, Some("7")),
            (r#" ["a" , null , "x" ] "#, Some("\"x\"")),
            (r#"{"action":"a","id":null}"#, None),
            (r#"["a",1,null]"#, None),
            (r#"{"action":"a","details":{"id":7}}"#, None),
        ] {
            assert_eq!(id(sent).as_deref(), expected, "{sent}");
        }
    }

    #[test]
    fn a_malformed_request_is_answered_with_its_id_if_that_can_be_read() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        for (sent, expected) in [
            (format!(r#"{{"action":"a","details":{deep},"id":7}}"#), Some("7")),
            (format!(r#"{{"id":"x","action":"a","details":{deep}}}"#), Some("\"x\"")),
            (format!(r#"["a",{deep},7]"#), Some("7")),
            (r#"["a",1,7,8]"#.into(), Some("7")),
            (r#"{"action":"a","id":7,"details":[NaN]}"#.into(), Some("7")),
            (r#"{"action":"a","details":[NaN],"id":7}"#.into(), Some("7")),
            (r#"{"action":"a","id":7,"id":7}"#.into(), Some("7")),
            (r#"{"action":"a","id":7,"details":"#.into(), Some("7")),
            (r#"{"action":"a","details":["x,"id":7}"#.into(), None),
            (r#"{"action":"a","id":7.5}"#.into(), None),
            (r#"["a",1,[]]"#.into(), None),
            (format!(r#"{{"action":"a","id":"{}"}}"#, "x".repeat(65)), None),
        ] {
            match parse(&sent) {
                Err(Malformed::Details { id, .. }) => {
                    assert_eq!(id.map(|id| id.to_string()).as_deref(), expected, "{sent}");
                }
                other => panic!("{sent}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_answer_has_the_id_as_it_came() {
        let id = parse(r#"["a",1,"\u0041"]"#).unwrap().id;
        let answer = OutgoingMessage::new("a", b"[1]").answers(id.as_ref());
        assert_eq!(&answer.frame(MessageForm::Object, None)[2..], br#"{"action":"a","details":[1],"id":"\u0041"}"#);
        assert_eq!(&answer.frame(MessageForm::Positioned, None)[2..], br#"{"action":"a","details":[1],"id":"\u0041"}"#);
        assert_eq!(&answer.frame(MessageForm::Array, None)[2..], br#"["a",[1],"\u0041"]"#);
    }

    #[test]
    fn details_pass_as_they_came() {
        let details = |sent: &str| parse(sent).unwrap().details.to_string();
        let sent = r#"[117.63331139400017, 1.0,1e400,18446744073709551616,{"z":1,"a":2,"z":"\u00e9"}]"#;
        assert_eq!(details(&format!(r#"{{"action":"a","details":{sent}}}"#)), sent);
        assert_eq!(details(&format!(r#"{{ "details" : {sent} , "action":"a"}}"#)), sent);
        assert_eq!(details(&format!(r#"["a",{sent}]"#)), sent);
        assert_eq!(details(r#"["a", 1e400 ]"#), "[1e400]");
    }

    #[test]
    fn half_of_a_surrogate_pair_is_replaced_everywhere() {
        for (sent, action, details) in [
            (r#"{"action":"a","details":["\ud83c"]}"#, "a", "[\"\u{fffd}\"]"),
            (r#"{"action":"\ud83c","details":["\ud83c\udf89"]}"#, "\u{fffd}", r#"["\ud83c\udf89"]"#),
            (r#"["a\udf89b",{"\ud83c":"\udf89"}]"#, "a\u{fffd}b", "[{\"\u{fffd}\":\"\u{fffd}\"}]"),
            (r#"{"\ud83c":1,"action":"a"}"#, "a", "[]"),
            ("\u{feff}[\"a\",1]", "a", "[1]"),
        ] {
            let incoming = parse(sent).unwrap();
            assert_eq!((&*incoming.action, incoming.details.as_str()), (action, details), "{sent}");
        }
    }

    #[test]
    fn a_message_is_encoded_once_for_each_form() {
        let message = OutgoingMessage::new("say \"x\"", b"[1]");
        let object = message.frame(MessageForm::Object, None);
        assert_eq!(&object[2..], br#"{"action":"say \"x\"","details":[1]}"#);
        assert_eq!(object.as_ptr(), message.frame(MessageForm::Object, None).as_ptr());
        assert_eq!(object.as_ptr(), message.frame(MessageForm::Positioned, None).as_ptr(), "it has no position");
        assert_eq!(&message.frame(MessageForm::Array, None)[2..], br#"["say \"x\"",[1]]"#);
        let entry = OutgoingMessage::new("a", b"[]").at(Position::START);
        let positioned = entry.frame(MessageForm::Positioned, None);
        assert_eq!(&positioned[2..], br#"{"action":"a","details":[],"at":"AAAAAAAAAAAAAA"}"#);
        assert_eq!(positioned.as_ptr(), entry.frame(MessageForm::Positioned, None).as_ptr());
        assert_eq!(&entry.frame(MessageForm::Object, None)[2..], br#"{"action":"a","details":[]}"#);
    }

    #[test]
    fn the_last_message_of_a_connection_says_with_which_code_the_server_closes() {
        let last = OutgoingMessage::new("a:error", b"[503]").closes(CloseCode::SessionUnknown);
        assert_eq!(
            &last.frame(MessageForm::Object, None)[2..],
            br#"{"action":"a:error","details":[503],"close":4002}"#
        );
        assert_eq!(&last.frame(MessageForm::Array, None)[2..], br#"["a:error",[503]]"#);
    }

    #[cfg(feature = "deflate")]
    #[test]
    fn a_message_is_compressed_once_for_each_form() {
        let (deflate, _) = crate::ws::deflate::answer([&b"permessage-deflate"[..]], 256).unwrap();
        let details = format!("[\"{}\"]", "x".repeat(300));
        let message = OutgoingMessage::new("a", details.as_bytes()).at(Position::START);
        for form in [MessageForm::Object, MessageForm::Array, MessageForm::Positioned] {
            let compressed = message.frame(form, Some(deflate));
            assert_eq!(compressed[0], 0xc1);
            assert!(frame::is_compressed(&compressed));
            assert_eq!(compressed.as_ptr(), message.frame(form, Some(deflate)).as_ptr());
            let plain = message.frame(form, None);
            assert!(!frame::is_compressed(&plain));
            assert_eq!(plain[0], 0x81, "another connection has not negotiated it");
            assert_eq!(deflate.inflate(frame::payload(&compressed), 1000).unwrap(), frame::payload(&plain));
        }
        let small = OutgoingMessage::new("a", b"[\"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"]");
        assert_eq!(small.frame(MessageForm::Object, Some(deflate)), small.frame(MessageForm::Object, None));
    }

    #[test]
    fn a_position_frame_has_only_what_is_given() {
        let now = position(&["now".into()], Some(Position::START), None);
        assert_eq!(&now[2..], br#"{"action":"Server/position","details":["now"],"at":"AAAAAAAAAAAAAA"}"#);
        let recovered = position(&["recovered".into(), 3.into()], None, Some("x"));
        assert_eq!(&recovered[2..], br#"{"action":"Server/position","details":["recovered",3],"state":"x"}"#);
    }
}
