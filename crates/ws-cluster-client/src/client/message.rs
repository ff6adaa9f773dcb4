//! Reads the server's messages: messages for the application, and the client's log position. Pure.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::{Event, Identity, requests::Answer};
use crate::{ActionError, RawDetails};

/// The end of the action's name in an error.
const ERROR: &str = ":error";

/// A message of the server.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Message {
    /// The name of the action. The name of an error ends in `:error`.
    pub action: String,
    /// The arguments.
    pub details: RawDetails,
    /// The log position of this message, an opaque text that is the same for every client that gets the message. It is
    /// `None` if the message did not go through the cluster, or if the client does not resume. The client itself stores
    /// the position; this copy is for tests, and to tell messages apart.
    pub at: Option<String>,
}

impl Message {
    /// Returns the code, as in HTTP, and the text if this message says that an action failed. The name of that action
    /// is [`action`](Self::action) without `:error`.
    pub fn error(&self) -> Option<ActionError> {
        if !self.action.ends_with(ERROR) {
            return None;
        }
        let details = self.details.values();
        let code = details.first().and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
        let text = details.get(1).and_then(Value::as_str);
        Some(ActionError::new(code.unwrap_or(500), text.unwrap_or_default()))
    }

    /// Reads all arguments as a type of your own: a tuple or a list has one element for each argument. If there is one
    /// argument, it may also be the whole value, such as an object for a struct.
    ///
    /// ```
    /// # fn f(message: ws_cluster_client::Message) -> Result<(), serde_json::Error> {
    /// let (room, text): (u64, &str) = message.parse()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The arguments have another number or shape.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        self.details.parse()
    }
}

/// A server's text as it comes.
#[derive(Debug, Deserialize)]
pub(super) struct Incoming {
    pub(super) action: String,
    #[serde(default)]
    details: RawDetails,
    at: Option<String>,
    state: Option<String>,
    /// The id of the request that this message answers.
    id: Option<Value>,
    /// The code with which the server closes the connection after this message.
    close: Option<Value>,
}

impl Incoming {
    /// Returns the id of the request that this message answers. The client's own ids are integers, so any other id is
    /// of no request.
    pub(super) fn request(&self) -> Option<u64> {
        self.id.as_ref().map(|id| id.as_u64().unwrap_or_default())
    }

    /// Returns true if the server closes the connection after this message.
    pub(super) fn is_last(&self) -> bool {
        self.close.is_some()
    }

    /// Returns the answer to a request.
    pub(super) fn into_answer(self) -> Answer {
        let message = Message { action: self.action, details: self.details, at: None };
        message.error().map_or(Ok(message.details), |error| Err(error.into()))
    }

    /// Returns the client's ids in an answer to `Client/authentication`, and the time until the authentication ends. An
    /// answer of another version may have less.
    pub(super) fn authentication(&self) -> (Identity, Option<Duration>) {
        let member = |name| self.argument(1).and_then(|about| about.get(name));
        let text = |name| member(name).and_then(Value::as_str).map(str::to_owned);
        let expires_in = member("expires_in").and_then(Value::as_f64);
        let expires_in = expires_in.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        (Identity { connection: text("connection"), user: text("user") }, expires_in)
    }

    /// The code of an error.
    pub(super) fn code(&self) -> u16 {
        self.argument(0).and_then(Value::as_u64).and_then(|code| code.try_into().ok()).unwrap_or(500)
    }

    fn argument(&self, index: usize) -> Option<&Value> {
        self.details.values().get(index)
    }
}

/// The position that a client tells the server when it comes back.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Position {
    /// The log position; empty before the first.
    pub(super) at: String,
    /// The resume token.
    pub(super) state: Option<String>,
}

impl Position {
    /// Updates the position with this message. Returns the event for the application.
    pub(super) fn take(&mut self, incoming: Incoming) -> Option<Event> {
        let Incoming { action, details, at, state, .. } = incoming;
        if action != "Server/position" {
            if let Some(at) = &at {
                self.at.clone_from(at);
            }
            return Some(Event::Message(Message { action, details, at }));
        }
        let details = details.values();
        let kind = details.first().and_then(Value::as_str).unwrap_or_default();
        let begins = matches!(kind, "new" | "reset");
        if begins {
            // The earlier position is no longer valid.
            self.at = at.unwrap_or_default();
        } else if let Some(at) = at {
            self.at = at;
        }
        self.state = state.or_else(|| self.state.take());
        match kind {
            "new" => Some(Event::New),
            "reset" => Some(Event::Reset(details.get(1).and_then(Value::as_str).unwrap_or_default().to_owned())),
            "recovered" => Some(Event::Recovered(details.get(1).and_then(Value::as_u64).unwrap_or_default())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn take(position: &mut Position, text: Value) -> Option<Event> {
        position.take(serde_json::from_value(text).unwrap())
    }

    fn position(kind: Value, at: Option<&str>, state: Option<&str>) -> Value {
        let mut message = json!({ "action": "Server/position", "details": kind });
        for (name, value) in [("at", at), ("state", state)] {
            if let Some(value) = value {
                message[name] = value.into();
            }
        }
        message
    }

    #[test]
    fn a_beginning_replaces_the_position_and_everything_what_it_has() {
        let mut now = Position::default();
        let mut expect = |kind: Value, given: (Option<&str>, Option<&str>), after: (&str, Option<&str>), event| {
            let told = take(&mut now, position(kind, given.0, given.1));
            assert_eq!((now.at.as_str(), now.state.as_deref(), told), (after.0, after.1, event));
        };
        expect(json!(["new"]), (Some("1"), Some("a")), ("1", Some("a")), Some(Event::New));
        expect(json!(["now"]), (Some("2"), None), ("2", Some("a")), None);
        expect(json!(["now"]), (None, Some("b")), ("2", Some("b")), None);
        expect(json!(["recovered", 3]), (None, None), ("2", Some("b")), Some(Event::Recovered(3)));
        expect(json!(["recovered", 0]), (Some("3"), Some("c")), ("3", Some("c")), Some(Event::Recovered(0)));
        // A reset in the middle of a connection: what belongs to the connection stays.
        expect(json!(["reset", "cut"]), (Some("9"), None), ("9", Some("c")), Some(Event::Reset("cut".into())));
        expect(json!(["new"]), (None, Some("")), ("", Some("")), Some(Event::New));
        expect(json!(["of a later version"]), (Some("10"), None), ("10", Some("")), None);
    }

    #[test]
    fn a_message_moves_the_position_where_it_has_one() {
        let mut now = Position { at: "1".into(), state: Some("a".into()) };
        let told = take(&mut now, json!({ "action": "a", "details": 7, "at": "2" }));
        let message = Message { action: "a".into(), details: json!([7]).into(), at: Some("2".into()) };
        assert_eq!((told, now.at.as_str()), (Some(Event::Message(message)), "2"));
        take(&mut now, json!({ "action": "a" }));
        assert_eq!(now, Position { at: "2".into(), state: Some("a".into()) });
    }

    #[test]
    fn an_error_has_a_code_and_a_text() {
        let message =
            |action: &str, details: Value| Message { action: action.into(), details: details.into(), at: None };
        let error = message("hello:error", json!([404, "Not Found"])).error();
        assert_eq!(error, Some(ActionError::not_found("Not Found")));
        assert_eq!(message("hello:error", json!([])).error(), Some(ActionError::internal("")));
        assert_eq!(message("hello", json!([404])).error(), None);
    }

    #[test]
    fn arguments_come_in_types_of_ones_own() {
        let message = Message { action: "a".into(), details: json!(["x", 7]).into(), at: None };
        assert_eq!(message.parse::<(&str, u8)>().unwrap(), ("x", 7));
        assert!(message.parse::<(&str,)>().is_err());
    }

    #[test]
    fn a_struct_that_the_server_sends_is_read_as_one() {
        #[derive(Debug, PartialEq, serde::Deserialize, serde::Serialize)]
        struct Article {
            id: u64,
            title: String,
        }
        let article = Article { id: 7, title: "Rust".into() };
        let details = RawDetails::from_serialize(&article).unwrap();
        let message = Message { action: "news/new".into(), details, at: None };
        assert_eq!(message.parse::<Article>().unwrap(), article);
        let message = Message { action: "news/new".into(), details: json!("Rust").into(), at: None };
        assert_eq!((message.parse::<&str>().unwrap(), message.parse::<(&str,)>().unwrap()), ("Rust", ("Rust",)));
    }
}
