//! The JSON that a site posts, and a text for each mistake in it. Pure.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::{GroupChange, Message, PublishError, RawDetails, Target};

mod members;

use members::JsonKind;
#[cfg(feature = "backend")]
pub(crate) use members::text;
pub(crate) use members::{Member, Members, Why, value};

/// Maximum number of messages in one batch.
pub(crate) const BATCH: usize = 1000;

/// What a site posts to publish.
#[derive(Debug)]
pub(crate) enum Publish {
    One(Message),
    /// A batch of 1 to [`BATCH`] messages, each with the reason if it is refused.
    Batch(Vec<Result<Message, Why>>),
    /// A batch of more messages than that.
    TooMany(usize),
}

impl Publish {
    /// Reads a message, or an array of messages. A mistake in one message of an array is the outcome of that message.
    pub(crate) fn read(body: &[u8]) -> Result<Self, Why> {
        let value = value(body)?;
        if JsonKind::of(value.get()) != JsonKind::Array {
            return Ok(Self::One(message(Members::of_body(value)?)?));
        }
        let Batch { messages, count } = Batch::deserialize(value).map_err(|error| format!("the array: {error}"))?;
        match count {
            0 => Err("the array is empty: post at least one message".to_owned()),
            1..=BATCH => {
                Ok(Self::Batch(messages.into_iter().map(|value| message(Members::of_message(value)?)).collect()))
            }
            _ => Ok(Self::TooMany(count)),
        }
    }
}

impl Message {
    /// Reads a message from the JSON object that `POST /_publish` takes: `action`, `details`, `to`, `except`, `key` and
    /// `volatile`, as `docs/site.md` describes them.
    ///
    /// ```
    /// # fn main() -> Result<(), ws_cluster::PublishError> {
    /// let message = ws_cluster::Message::from_json(br#"{"action": "news/new", "details": [7], "to": "user:ann"}"#)?;
    /// assert!(ws_cluster::Message::from_json(b"{}").is_err());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`PublishError::Invalid`] with the mistake.
    pub fn from_json(json: &[u8]) -> Result<Self, PublishError> {
        let read = || message(Members::of_body(value(json)?)?);
        read().map_err(PublishError::invalid)
    }
}

/// Reads a message to publish.
fn message(members: Members<'_>) -> Result<Message, Why> {
    message_of(members.known(&["action", "details", "to", "except", "key", "volatile"])?)
}

/// Reads a message from the members of an object. Other members are ignored.
pub(crate) fn message_of(mut members: Members<'_>) -> Result<Message, Why> {
    let action = members.required("action")?.text()?;
    let details = match members.take("details") {
        Some(details) => details.details()?,
        None => RawDetails::default(),
    };
    let mut message = Message::raw(action, details).to(target(members.required("to")?, members.optional("except"))?);
    if let Some(key) = members.optional("key") {
        message = message.idempotency_key(key.id()?);
    }
    if let Some(volatile) = members.optional("volatile")
        && volatile.flag()?
    {
        message = message.volatile();
    }
    Ok(message)
}

/// Reads whose connections change their groups, and how.
pub(crate) fn groups(body: &[u8]) -> Result<GroupChange, Why> {
    let members = Members::of_body(value(body)?)?;
    let mut members = members.known(&["user", "session", "connection", "join", "leave"])?;
    let change = match (members.take("user"), members.take("session"), members.take("connection")) {
        (Some(user), None, None) => GroupChange::user(user.id()?),
        (None, Some(session), None) => GroupChange::session(session.id()?),
        (None, None, Some(connection)) => GroupChange::connection(connection.connection()?),
        _ => {
            let text = r#"say whose connections: {"user": ID}, {"session": ID} or {"connection": ID}"#;
            return Err(text.to_owned());
        }
    };
    let mut names = |name| members.optional(name).map_or(Ok(Vec::new()), |names| names.ids());
    let change = names("join")?.into_iter().fold(change, GroupChange::join);
    Ok(names("leave")?.into_iter().fold(change, GroupChange::leave))
}

/// Reads the target of a message: its text form, or JSON, which has no limits on ids.
fn target(to: Member<'_>, except: Option<Member<'_>>) -> Result<Target, Why> {
    let mut target = match to.kind() {
        JsonKind::Text => to.text()?.parse().map_err(|error| format!("`to`: {error}"))?,
        JsonKind::Object => selection(&to)?,
        _ => return Err(to.must_be("text or an object like {\"users\": [..]}")),
    };
    if let Some(except) = except {
        let mut members = except.members(&["connection", "user"])?;
        let (connection, user) = (members.take("connection"), members.take("user"));
        if connection.is_none() && user.is_none() {
            return Err("`except` names neither a connection nor a user: give {\"connection\": ID} or {\"user\": ID}"
                .to_owned());
        }
        if let Some(connection) = connection {
            target = target.except_connection(connection.connection()?);
        }
        if let Some(user) = user {
            target = target.except_user(user.id()?);
        }
    }
    Ok(target)
}

/// Reads a target without exceptions from its JSON form.
pub(crate) fn target_of_json(json: &str) -> Result<Target, Why> {
    let raw: &RawValue = serde_json::from_str(json).map_err(|error| format!("no JSON: {error}"))?;
    selection(&Member::new("to".to_owned(), raw))
}

fn selection(to: &Member<'_>) -> Result<Target, Why> {
    const KINDS: [&str; 7] = ["users", "user", "groups", "group", "session", "property", "connection"];
    let mut members = to.members(&KINDS)?;
    let mut given = KINDS.into_iter().filter_map(|name| members.take(name));
    let (Some(one), None) = (given.next(), given.next()) else {
        return Err(format!("`to` has one member: {}", KINDS.join(", ")));
    };
    Ok(match one.name.as_str() {
        "to.users" => Target::users(one.ids()?),
        "to.user" => Target::user(one.id()?),
        "to.groups" => Target::groups(one.ids()?),
        "to.group" => Target::group(one.id()?),
        "to.session" => Target::session(one.id()?),
        "to.connection" => Target::connection(one.connection()?),
        _ => {
            let mut property = one.members(&["name", "value"])?;
            let (name, value) = (property.required("name")?, property.required("value")?);
            Target::property(name.text()?, value.property()?)
        }
    })
}

/// The values of an array, and how many there are. Those beyond the limit are only counted.
struct Batch<'a> {
    messages: Vec<&'a RawValue>,
    count: usize,
}

impl<'de: 'a, 'a> Deserialize<'de> for Batch<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;

        impl<'de> Visitor<'de> for All {
            type Value = Batch<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
                let mut messages = Vec::new();
                while messages.len() < BATCH {
                    match array.next_element::<&'de RawValue>()? {
                        Some(message) => messages.push(message),
                        None => return Ok(Batch { count: messages.len(), messages }),
                    }
                }
                let mut count = messages.len();
                while array.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Batch { messages, count })
            }
        }

        deserializer.deserialize_seq(All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn read(body: &str) -> Message {
        match Publish::read(body.as_bytes()) {
            Ok(Publish::One(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn to(to: &str) -> Target {
        read(&format!(r#"{{"action":"x","to":{to}}}"#)).target().clone()
    }

    #[test]
    fn a_publish_is_read() {
        let publish = read(r#" {"to":"all","details":{"z":1.0, "a":1e400},"action":"x\ud83c","key":7} "#);
        assert_eq!(publish.details().as_str(), r#"[{"z":1.0, "a":1e400}]"#);
        let details: RawDetails = r#"[{"z":1.0, "a":1e400}]"#.parse().unwrap();
        assert_eq!(publish, Message::raw("x\u{fffd}", details).idempotency_key("7"));
        let publish = read("\u{feff}{\"action\":\"x\",\"to\":\"all\",\"key\":null,\"except\":null,\"details\":null}");
        assert_eq!(publish, Message::raw("x", RawDetails::default()));
        for (json, volatile) in [("true", true), ("false", false), ("null", false)] {
            assert_eq!(read(&format!(r#"{{"action":"x","to":"all","volatile":{json}}}"#)).is_volatile(), volatile);
        }
    }

    #[test]
    fn a_number_names_the_property_with_its_value_however_it_is_written() {
        for (written, text) in [
            ("1.0e+25", "1e+25"),
            ("10000000000000000000000000", "1e+25"),
            ("-1E25", "-1e+25"),
            ("1.0e+15", "1000000000000000.0"),
            ("10000000000000000.0", "1e+16"),
            ("1.0e-5", "0.00001"),
            ("0.000001", "1e-6"),
            ("123456789012345680.0", "1.2345678901234568e+17"),
            ("1.00", "1.0"),
            ("7", "7"),
        ] {
            let value: serde_json::Value = serde_json::from_str(written).unwrap();
            assert_eq!(crate::message::target::property_text(&value), text, "{written}");
            let target = to(&format!(r#"{{"property":{{"name":"a","value":{written}}}}}"#));
            assert_eq!(target, Target::property("a", text), "{written}");
        }
    }

    #[test]
    fn each_message_of_a_batch_has_its_own_mistake() {
        let body = r#" [ {"action":"a","to":"all"}, [], 7, [{"action":"a","to":"all"}], null, {"action":"b"} ,
            {"action":"c","to":"all","volatile":"yes"} ] "#;
        let Ok(Publish::Batch(messages)) = Publish::read(body.as_bytes()) else { panic!("no batch") };
        let told: Vec<_> = messages.iter().map(|message| message.as_ref().map(Message::action)).collect();
        let object = |what: &str| Err(format!("a message must be a JSON object, not {what}"));
        let told: Vec<_> = told.into_iter().map(|message| message.map_err(Clone::clone)).collect();
        assert_eq!(told[..5], [Ok("a"), object("an array"), object("a number"), object("an array"), object("null")]);
        assert_eq!(told[5], Err("`action` is missing".replace("action", "to")));
        assert_eq!(told[6], Err("`volatile` must be true or false, not text".to_owned()));
    }

    #[test]
    fn a_batch_has_a_limited_number_of_messages() {
        let batch = |count: usize| Publish::read(format!("[{}]", vec!["1"; count].join(",")).as_bytes());
        assert!(matches!(batch(1000), Ok(Publish::Batch(messages)) if messages.len() == 1000));
        assert!(matches!(batch(1001), Ok(Publish::TooMany(1001))));
        assert!(matches!(batch(1_000_000), Ok(Publish::TooMany(1_000_000))));
        assert!(batch(0).unwrap_err().contains("the array is empty"));
        for body in ["[1,", "[1 2]", "[1]]", "[[1]", "[{\"a\":}]", &"[".repeat(100_000)] {
            assert!(Publish::read(body.as_bytes()).unwrap_err().contains("JSON"), "{body:.20}");
        }
    }

    #[test]
    fn a_hostile_command_is_refused_with_a_reason_or_read() {
        let one =
            r#"{"action":"x","details":[1,{"a":"\u00e9"}],"to":{"users":["a,b",7]},"except":{"user":"ann"},"key":"k"}"#;
        let batch = format!(r#"[{one},{{"action":"y","to":"group:a,b","volatile":true}},7,[]]"#);
        let change = r#"{"session":"s","join":["a",7],"leave":["b"]}"#;
        crate::fuzz::search(&[one.as_bytes(), batch.as_bytes(), change.as_bytes(), b"[[[]]]"], |input| {
            let messages = match Publish::read(input) {
                Ok(Publish::One(message)) => vec![Ok(message)],
                Ok(Publish::Batch(messages)) if (1..=BATCH).contains(&messages.len()) => messages,
                Ok(other) => return Err(format!("{other:?}")),
                Err(why) => vec![Err(why)],
            };
            let changed = groups(input).map(|change| change.check().map_err(|error| error.to_string()));
            let reasons = messages.iter().map(|read| read.as_ref().err()).chain([changed.as_ref().err()]);
            match reasons.flatten().any(String::is_empty) {
                true => Err("a reason is empty".into()),
                false => Ok(()),
            }
        });
    }

    #[test]
    fn a_change_of_groups_is_read() {
        let id = "0123456789abcdef0123456789abcdef-7";
        for (body, change) in [
            (r#"{"user":7,"join":["a",8],"leave":["b"]}"#, GroupChange::user("7").join("a").join("8").leave("b")),
            (r#"{"session":"s","join":["a"],"leave":null}"#, GroupChange::session("s").join("a")),
            (
                &format!(r#"{{"connection":"{id}","leave":["a"]}}"#),
                GroupChange::connection(id.parse().unwrap()).leave("a"),
            ),
        ] {
            assert_eq!(groups(body.as_bytes()), Ok(change), "{body}");
        }
        for (body, why) in [
            ("{}", "say whose connections"),
            (r#"{"user":1,"session":2}"#, "say whose connections"),
            (r#"{"user":1,"join":"a"}"#, "`join` must be an array, not text"),
            (r#"{"user":1,"join":[""]}"#, "`join[0]` is empty"),
            (r#"{"user":1,"leave":[1,[]]}"#, "`leave[1]` must be text or a number, not an array"),
            (r#"{"user":1,"groups":["a"]}"#, "unknown member `groups`"),
            (r#"{"connection":"7","join":["a"]}"#, "`connection` is not the id of a connection"),
            ("[]", "the body must be a JSON object, not an array"),
        ] {
            let told = groups(body.as_bytes()).expect_err(body);
            assert!(told.contains(why), "{body}: {told}");
        }
    }

    #[test]
    fn a_target_is_text_or_json() {
        let id = "0123456789abcdef0123456789abcdef-7";
        let connection = id.parse().unwrap();
        for (json, target) in [
            (r#""all""#, Target::all()),
            (r#""user:doe,john""#, Target::users(["doe", "john"])),
            (r#"{"users":["doe,john"," ann ",7,-1]}"#, Target::users(["doe,john", " ann ", "7", "-1"])),
            (r#"{"users":[]}"#, Target::users(Vec::<String>::new())),
            (r#"{"user":123456789012345678901234567890}"#, Target::user("123456789012345678901234567890")),
            (r#"{"groups":["a","\u00e9"]}"#, Target::groups(["a", "\u{e9}"])),
            (r#"{"group":"a,b"}"#, Target::group("a,b")),
            (r#"{"session":"s"}"#, Target::session("s")),
            (r#"{"property":{"value":7.50,"name":"page"}}"#, Target::property("page", "7.5")),
            (r#"{"property":{"name":"","value":""}}"#, Target::property("", "")),
            (r#"{"property":{"name":"a","value":[1, "b c\" "]}}"#, Target::property("a", r#"[1,"b c\" "]"#)),
            (&format!(r#"{{"connection":"{id}"}}"#), Target::connection(connection)),
            (&format!(r#""all","except":{{"connection":"{id}"}}"#), Target::all().except_connection(connection)),
            (r#"{"group":1},"except":{"user":2}"#, Target::group("1").except_user("2")),
            (
                &format!(r#""all","except":{{"user":"a","connection":"{id}"}}"#),
                Target::all().except_user("a").except_connection(connection),
            ),
        ] {
            assert_eq!(to(json), target, "{json}");
        }
    }

    #[test]
    fn each_mistake_is_named() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        for (body, why) in [
            ("", "the body is empty"),
            (" \n", "the body is empty"),
            ("action=x&to=all", "the body is not JSON: expected value at line 1 column 1"),
            (r#"{"action":"x""#, "the body is not JSON: EOF"),
            (r#"{"action":"x","details":[NaN],"to":"all"}"#, "the body is not JSON: expected value"),
            ("[]", "the array is empty"),
            ("7", "the body must be a JSON object, not a number"),
            ("null", "the body must be a JSON object, not null"),
            (r#"{"action":"x","to":"all"}{}"#, "text follows the JSON"),
            (r#"{"action":"x","to":"all"}x"#, "text follows the JSON"),
            (r#"{"action":"x","to":"all"}[]"#, "text follows the JSON"),
            (
                r#"{"action":"x","to":"all","too":1}"#,
                "unknown member `too`: use action, details, to, except, key, volatile",
            ),
            (r#"{"action":"x","to":"all","to":"all"}"#, "`to` is there twice"),
            (r#"{"to":"all"}"#, "`action` is missing"),
            (r#"{"action":null,"to":"all"}"#, "`action` must be text, not null"),
            (r#"{"action":["x"],"to":"all"}"#, "`action` must be text, not an array"),
            (r#"{"action":"x"}"#, "`to` is missing"),
            (r#"{"action":"x","to":null}"#, r#"`to` must be text or an object like {"users": [..]}, not null"#),
            (r#"{"action":"x","to":["all"]}"#, "not an array"),
            (r#"{"action":"x","to":"user:"}"#, r#"`to`: unknown target "user:": an id is empty"#),
            (r#"{"action":"x","to":{}}"#, "`to` has one member: users, user"),
            (r#"{"action":"x","to":{"user":1,"group":2}}"#, "`to` has one member"),
            (r#"{"action":"x","to":{"all":true}}"#, "unknown member `to.all`: use users"),
            (r#"{"action":"x","to":{"user":null}}"#, "`to.user` must be text or a number, not null"),
            (r#"{"action":"x","to":{"user":1.5}}"#, "`to.user` must be text or a whole number, not 1.5"),
            (r#"{"action":"x","to":{"user":""}}"#, "`to.user` is empty"),
            (r#"{"action":"x","to":{"users":"ann"}}"#, "`to.users` must be an array, not text"),
            (
                r#"{"action":"x","to":{"users":["a",true]}}"#,
                "`to.users[1]` must be text or a number, not true or false",
            ),
            (r#"{"action":"x","to":{"property":"a=b"}}"#, "`to.property` must be an object, not text"),
            (r#"{"action":"x","to":{"property":{"name":"a"}}}"#, "`to.property.value` is missing"),
            (r#"{"action":"x","to":{"property":{"name":"a","value":null}}}"#, "`to.property.value` must be"),
            (r#"{"action":"x","to":{"connection":"7"}}"#, "`to.connection` is not the id of a connection"),
            (r#"{"action":"x","to":"all","except":"7"}"#, "`except` must be an object, not text"),
            (r#"{"action":"x","to":"all","except":{}}"#, "`except` names neither"),
            (r#"{"action":"x","to":"all","except":{"group":"a"}}"#, "unknown member `except.group`"),
            (
                r#"{"action":"x","to":"all","except":{"user":[]}}"#,
                "`except.user` must be text or a number, not an array",
            ),
            (r#"{"action":"x","to":"all","volatile":1}"#, "`volatile` must be true or false, not a number"),
            (r#"{"action":"x","to":"all","key":{}}"#, "`key` must be text or a number, not an object"),
            (&format!(r#"{{"action":"x","to":"all","details":{deep}}}"#), "`details` are nested more than 128 levels"),
        ] {
            let told = Publish::read(body.as_bytes()).expect_err(body);
            assert!(told.contains(why), "{body}: {told}");
        }
    }
}
