//! The connections that a message is for, and the test whether a connection is one of them. Pure: the Rust API, the
//! command line, HTTP and the links share this definition. The hub finds the connections quickly.

use std::{borrow::Cow, fmt, str::FromStr};

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::Value;
use ws_cluster_core::NodeId;

/// Identifies one connection in the cluster for as long as the connection lives. Its text form is `NODE-NUMBER` in
/// hexadecimal, which can be parsed. Serde uses the text form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    /// The node that serves it.
    pub(crate) node: NodeId,
    /// Its number on that node.
    pub(crate) local: u64,
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}", self.node, self.local)
    }
}

impl Serialize for ConnectionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ConnectionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The connections that a message is for. A list of users or groups matches the connections of any of them; an empty
/// list matches none. The node looks at users, groups and properties when it delivers the message. Guests have no user.
/// They get messages to [`all`](Self::all), and to groups and properties that handlers gave them.
///
/// The text form of a target, for command lines and HTTP, is `all`, `registered`, `user:ID[,ID]`, `group:ID[,ID]`,
/// `session:ID`, `connection:ID` or `property:NAME=VALUE`. After it may follow ` except user:ID`,
/// ` except connection:ID` or both. A comma separates ids of users and groups. In an id, a name or a value, `%` with
/// two hexadecimal digits stands for a byte: `%2C` for a comma, `%20` for a space at the beginning or the end.
/// `Display` writes the text form. In serde, and in the [JSON](crate::ServerBuilder::publish_key) over HTTP, a target
/// is structured and needs no escapes.
///
/// ```
/// use ws_cluster::Target;
///
/// let target = Target::groups(["editors", "a, b"]).except_user("ann");
/// assert_eq!(target.to_string(), "group:editors,a%2C%20b except user:ann");
/// assert_eq!(target.to_string().parse(), Ok(target));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[must_use = "a target is given to `Message::to`"]
pub struct Target {
    #[serde(rename = "to")]
    pub(crate) selection: Selection,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) except_connection: Option<ConnectionId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) except_user: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Selection {
    All,
    Registered,
    Users(Vec<String>),
    Groups(Vec<String>),
    Session(String),
    Connection(ConnectionId),
    Property { name: String, value: String },
}

impl Target {
    fn of(selection: Selection) -> Self {
        Self { selection, except_connection: None, except_user: None }
    }

    /// Every connection, including guests.
    pub fn all() -> Self {
        Self::of(Selection::All)
    }

    /// Every connection that has a user.
    pub fn registered() -> Self {
        Self::of(Selection::Registered)
    }

    /// Every connection of this user.
    pub fn user(id: impl Into<String>) -> Self {
        Self::users([id])
    }

    /// Every connection of any of these users.
    pub fn users(ids: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::of(Selection::Users(ids.into_iter().map(Into::into).collect()))
    }

    /// Every connection in this group.
    pub fn group(name: impl Into<String>) -> Self {
        Self::groups([name])
    }

    /// Every connection in any of these groups.
    pub fn groups(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::of(Selection::Groups(names.into_iter().map(Into::into).collect()))
    }

    /// Every connection of this session.
    pub fn session(id: impl Into<String>) -> Self {
        Self::of(Selection::Session(id.into()))
    }

    /// One connection. The message is delivered at most once: it is not sent again if the connection is lost.
    pub fn connection(id: ConnectionId) -> Self {
        Self::of(Selection::Connection(id))
    }

    /// Every connection whose property `name` equals `value` as text: a JSON string without its quotes, anything else
    /// as compact JSON (`7`, `true`, `[1,2]`).
    pub fn property(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self::of(Selection::Property { name: name.into(), value: value.into() })
    }

    /// Excludes one connection.
    pub fn except_connection(mut self, id: ConnectionId) -> Self {
        self.except_connection = Some(id);
        self
    }

    /// Excludes the connections of one user.
    pub fn except_user(mut self, id: impl Into<String>) -> Self {
        self.except_user = Some(id.into());
        self
    }

    /// Returns true if every connection that the selection finds is meant: there is no exception, and nothing else to
    /// check.
    pub(crate) fn selects_exactly(&self) -> bool {
        let exactly = !matches!(self.selection, Selection::Registered | Selection::Connection(_));
        exactly && self.except_connection.is_none() && self.except_user.is_none()
    }

    /// Returns true if a connection is meant.
    pub(crate) fn matches(&self, candidate: &impl Candidate) -> bool {
        let chosen = match &self.selection {
            Selection::All => true,
            Selection::Registered => candidate.user().is_some(),
            Selection::Users(ids) => candidate.user().is_some_and(|user| ids.iter().any(|id| id == user)),
            Selection::Groups(names) => names.iter().any(|name| candidate.in_group(name)),
            Selection::Session(id) => candidate.session() == Some(id),
            Selection::Connection(id) => candidate.id() == *id,
            Selection::Property { name, value } => candidate.property_is(name, value),
        };
        chosen
            && self.except_connection != Some(candidate.id())
            && (self.except_user.is_none() || candidate.user() != self.except_user.as_deref())
    }
}

/// The properties of a connection that a target looks at.
pub(crate) trait Candidate {
    fn id(&self) -> ConnectionId;
    fn user(&self) -> Option<&str>;
    fn session(&self) -> Option<&str>;
    fn in_group(&self, name: &str) -> bool;
    /// Returns true if the property, as text (a JSON string without its quotes, anything else as compact JSON), is
    /// `value`.
    fn property_is(&self, name: &str, value: &str) -> bool;
}

/// Returns a property's value as targets compare it: a string without its quotes, anything else as compact JSON.
pub(crate) fn property_text(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => text.into(),
        other => other.to_string().into(),
    }
}

/// Writes a part of a target's text. A character that would end the part becomes `%` and two digits.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '%' | ',' | '=' => write!(f, "%{:02X}", u32::from(character)),
            _ if character.is_whitespace() || character.is_control() => {
                let mut bytes = [0; 4];
                character.encode_utf8(&mut bytes).bytes().try_for_each(|byte| write!(f, "%{byte:02X}"))
            }
            _ => write!(f, "{character}"),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, kind, ids: &[String]| {
            ids.iter().enumerate().try_for_each(|(index, id)| {
                let before = if index == 0 { kind } else { "," };
                write!(f, "{before}{}", Escaped(id))
            })
        };
        match &self.selection {
            Selection::All => f.write_str("all")?,
            Selection::Registered => f.write_str("registered")?,
            Selection::Users(ids) | Selection::Groups(ids) if ids.is_empty() => f.write_str("none")?,
            Selection::Users(ids) => list(f, "user:", ids)?,
            Selection::Groups(names) => list(f, "group:", names)?,
            Selection::Session(id) => write!(f, "session:{}", Escaped(id))?,
            Selection::Connection(id) => write!(f, "connection:{id}")?,
            Selection::Property { name, value } => write!(f, "property:{}={}", Escaped(name), Escaped(value))?,
        }
        if let Some(user) = &self.except_user {
            write!(f, "{EXCEPT}user:{}", Escaped(user))?;
        }
        self.except_connection.iter().try_for_each(|id| write!(f, "{EXCEPT}connection:{id}"))
    }
}

/// Separates the exceptions in a target's text.
const EXCEPT: &str = " except ";

/// The error for a text that is no [`Target`]. It shows the text and the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown target {text:?}: {why}")]
pub struct ParseTargetError {
    text: String,
    why: &'static str,
}

impl FromStr for Target {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(EXCEPT);
        let target = selection(parts.next().unwrap_or_default());
        let excepted = parts.try_fold(target, |target, part| Ok(target.and_then(|target| except(target, part))));
        excepted.and_then(|target| target).map_err(|why| ParseTargetError { text: text.to_owned(), why })
    }
}

fn selection(text: &str) -> Result<Target, &'static str> {
    const FORMS: &str =
        "use all, registered, user:ID[,ID], group:ID[,ID], session:ID, connection:ID or property:NAME=VALUE";
    let list = |ids: &str| ids.split(',').map(id).collect::<Result<Vec<String>, _>>();
    match text.split_once(':') {
        None if text == "all" => Ok(Target::all()),
        None if text == "registered" => Ok(Target::registered()),
        None if text == "none" => Ok(Target::users(Vec::<String>::new())),
        None if text.is_empty() => Err("it is empty"),
        Some(("user", ids)) => Ok(Target::users(list(ids)?)),
        Some(("group", names)) => Ok(Target::groups(list(names)?)),
        Some(("session", text)) => Ok(Target::session(id(text)?)),
        Some(("connection", text)) => Ok(Target::connection(connection(text)?)),
        Some(("property", pair)) => match pair.split_once('=') {
            Some((name, value)) => Ok(Target::property(id(name)?, unescaped(value)?)),
            None => Err("a property is property:NAME=VALUE"),
        },
        Some(("users" | "groups", _)) => Err("several ids are user:ID,ID or group:ID,ID"),
        _ => Err(FORMS),
    }
}

fn except(target: Target, text: &str) -> Result<Target, &'static str> {
    match text.split_once(':') {
        Some(("user", text)) if target.except_user.is_none() => Ok(target.except_user(id(text)?)),
        Some(("connection", text)) if target.except_connection.is_none() => {
            Ok(target.except_connection(connection(text)?))
        }
        _ => Err("an exception is ` except user:ID` or ` except connection:ID`, each once"),
    }
}

fn id(text: &str) -> Result<String, &'static str> {
    match text {
        "" => Err("an id is empty"),
        _ if text.trim() != text => Err("an id begins or ends with a space"),
        _ => unescaped(text),
    }
}

fn connection(text: &str) -> Result<ConnectionId, &'static str> {
    text.parse()
        .map_err(|ParseConnectionIdError| "the id of a connection is NODE-NUMBER, as in the client's connectionId")
}

/// Returns the text with each `%` and two digits replaced by the byte that they stand for. Any other `%` stays.
fn unescaped(text: &str) -> Result<String, &'static str> {
    percent_decode_str(text).decode_utf8().map(Cow::into_owned).map_err(|_| "its percent-encoding is not UTF-8")
}

/// The error for a text that is not the id of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a connection: 32 hexadecimal digits, a hyphen and a hexadecimal number")]
#[non_exhaustive]
pub struct ParseConnectionIdError;

impl FromStr for ConnectionId {
    type Err = ParseConnectionIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (node, local) = text.split_once('-').ok_or(ParseConnectionIdError)?;
        // `from_str_radix` accepts a sign.
        if node.len() != 32 || !node.bytes().chain(local.bytes()).all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ParseConnectionIdError);
        }
        let node = u128::from_str_radix(node, 16).map_err(|_| ParseConnectionIdError)?;
        let local = u64::from_str_radix(local, 16).map_err(|_| ParseConnectionIdError)?;
        Ok(Self { node: NodeId::from_bytes(node.to_be_bytes()), local })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_a_target() {
        for (text, target) in [
            ("all", Target::all()),
            ("registered", Target::registered()),
            ("user:ann", Target::user("ann")),
            ("user:ann,7,a b", Target::users(["ann", "7", "a b"])),
            ("user:urn:x:7", Target::user("urn:x:7")),
            ("group:room/lobby", Target::group("room/lobby")),
            ("session:a,b", Target::session("a,b")),
            ("property:page=7", Target::property("page", "7")),
            ("property:a=", Target::property("a", "")),
            ("property:a=b= c ", Target::property("a", "b= c ")),
            ("user:doe%2Cjohn,50%,%20x", Target::users(["doe,john", "50%", " x"])),
            ("all except user:ann", Target::all().except_user("ann")),
            ("none", Target::users(Vec::<String>::new())),
        ] {
            assert_eq!(text.parse(), Ok(target), "{text}");
        }
    }

    #[test]
    fn a_target_survives_its_text_and_serde() {
        let id = ConnectionId { node: NodeId::from_bytes([0x0f; 16]), local: 7 };
        let odd = ["a,b", " a ", "50%", "%2C", "a except user:b", "x=y", "tab\t", "ü\u{a0}", "a:b", "\n", "100%20"];
        let mut targets: Vec<_> = odd
            .iter()
            .flat_map(|text| {
                [Target::user(*text), Target::group(*text), Target::session(*text), Target::property(*text, *text)]
            })
            .collect();
        targets.extend([Target::all(), Target::registered(), Target::connection(id), Target::users(odd)]);
        targets.extend([Target::property("a", ""), Target::users(Vec::<String>::new())]);
        for target in targets {
            for target in [
                target.clone(),
                target.clone().except_user(" a, b"),
                target.clone().except_connection(id),
                target.except_user("x except connection:y").except_connection(id),
            ] {
                let text = target.to_string();
                assert_eq!(text.parse().as_ref(), Ok(&target), "{text}");
                let json = serde_json::to_string(&target).unwrap();
                assert_eq!(serde_json::from_str::<Target>(&json).unwrap(), target, "{json}");
            }
        }
        let json = serde_json::to_value(Target::users(["a,b"]).except_connection(id)).unwrap();
        let expected = serde_json::json!({"to": {"users": ["a,b"]}, "except_connection": id.to_string()});
        assert_eq!(json, expected);
    }

    #[test]
    fn a_malformed_target_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "it is empty"),
            ("everyone", "use all, registered, user:ID"),
            ("ALL", "use all"),
            (" all", "use all"),
            ("user", "use all"),
            ("users:ann", "user:ID,ID"),
            ("user:", "an id is empty"),
            ("user:ann,", "an id is empty"),
            ("group:,", "an id is empty"),
            ("session:", "an id is empty"),
            ("user:ann, bob", "begins or ends with a space"),
            ("group: lobby", "begins or ends with a space"),
            ("session:x\n", "begins or ends with a space"),
            ("property:page", "NAME=VALUE"),
            ("property:=7", "an id is empty"),
            ("connection:7", "NODE-NUMBER"),
            ("all except", "use all"),
            ("all except all", "each once"),
            ("all except user:", "an id is empty"),
            ("all except user:a except user:b", "each once"),
            ("user:%FF", "not UTF-8"),
        ] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("unknown target {text:?}: ")) && error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_connection_id_survives_its_text() {
        for local in [0, 1, u64::MAX] {
            let id = ConnectionId { node: NodeId::from_bytes([0x0f; 16]), local };
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        let node = "0".repeat(32);
        for text in [
            "",
            "-",
            "7",
            "x-1",
            &node,
            &format!("{node}-"),
            &format!("{node}-+1"),
            &format!("{node}-g"),
            &format!("+{}-1", &node[1..]),
            &format!("{node}0-1"),
            &format!("{node}-1-1"),
            &format!("{node}-{}", "1".repeat(17)),
            &format!(" {node}-1"),
        ] {
            assert_eq!(text.parse::<ConnectionId>(), Err(ParseConnectionIdError), "{text}");
        }
    }
}
