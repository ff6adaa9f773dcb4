//! Whom a message is for, and whether a connection is one of them. Pure: the one definition that the Rust API, the
//! command line, HTTP and the links share. Finding the connections quickly is the hub's job.

use std::{borrow::Cow, fmt, str::FromStr};

use serde_json::Value;

use ws_cluster_core::NodeId;

/// One connection, unique in the cluster for as long as the node that serves it runs. Its text form
/// (`NODE-NUMBER`, hexadecimal) is stable while the connection lives, and can be parsed.
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

/// Whom a message is for. Several users or groups mean any of them, none means nobody; membership is looked at when
/// the message is delivered. Guests have no user; [`all`](Self::all) means them too, and so does a group or property
/// that they were given.
///
/// Its text form, for command lines and HTTP, is `all`, `registered`, `user:ID[,ID]`, `group:ID[,ID]`, `session:ID` or
/// `property:NAME=VALUE`. A comma separates ids of users and groups, and none begins or ends with a space. The text form
/// cannot express ids that contain a comma, exceptions or a connection; HTTP takes those
/// [as JSON](crate::ServerBuilder::publish_key).
///
/// ```
/// use ws_cluster::Target;
/// assert_eq!("group:editors,admins".parse::<Target>().unwrap(), Target::groups(["editors", "admins"]));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub(crate) selection: Selection,
    pub(crate) except_connection: Option<ConnectionId>,
    pub(crate) except_user: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
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

    /// Every connection, guests included.
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

    /// One connection. At most once: it is not sent again after a loss.
    pub fn connection(id: ConnectionId) -> Self {
        Self::of(Selection::Connection(id))
    }

    /// Every connection whose property `name` equals `value` as text: a JSON string without its quotes, anything else
    /// as compact JSON (`7`, `true`, `[1,2]`).
    pub fn property(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self::of(Selection::Property { name: name.into(), value: value.into() })
    }

    /// The same without one connection.
    pub fn except_connection(mut self, id: ConnectionId) -> Self {
        self.except_connection = Some(id);
        self
    }

    /// The same without the connections of one user.
    pub fn except_user(mut self, id: impl Into<String>) -> Self {
        self.except_user = Some(id.into());
        self
    }

    /// Whether who is found by its selection is meant for sure: no exception, and nothing else to look at.
    pub(crate) fn selects_exactly(&self) -> bool {
        let exactly = !matches!(self.selection, Selection::Registered | Selection::Connection(_));
        exactly && self.except_connection.is_none() && self.except_user.is_none()
    }

    /// Whether a connection is meant.
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

/// What a target looks at in a connection.
pub(crate) trait Candidate {
    fn id(&self) -> ConnectionId;
    fn user(&self) -> Option<&str>;
    fn session(&self) -> Option<&str>;
    fn in_group(&self, name: &str) -> bool;
    /// Whether the property, as text (a JSON string without its quotes, anything else as compact JSON), is `value`.
    fn property_is(&self, name: &str, value: &str) -> bool;
}

/// A property as targets compare it: a string as it is, anything else as compact JSON.
pub(crate) fn property_text(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => text.into(),
        other => other.to_string().into(),
    }
}

/// The text is none of the forms `all`, `registered`, `user:ID[,ID]`, `group:ID[,ID]`, `session:ID` and
/// `property:NAME=VALUE`; it shows the text and says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown target {text:?}: {why}")]
pub struct ParseTargetError {
    text: String,
    why: &'static str,
}

impl FromStr for Target {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORMS: &str = "use all, registered, user:ID[,ID], group:ID[,ID], session:ID or property:NAME=VALUE";
        let because = |why| ParseTargetError { text: text.to_owned(), why };
        let id = |id: &str| match id {
            "" => Err(because("an id is empty")),
            _ if id.trim() != id => Err(because("an id begins or ends with a space")),
            _ => Ok(id.to_owned()),
        };
        let list = |ids: &str| ids.split(',').map(id).collect::<Result<Vec<String>, _>>();
        match text.split_once(':') {
            None if text == "all" => Ok(Self::all()),
            None if text == "registered" => Ok(Self::registered()),
            None if text.is_empty() => Err(because("it is empty")),
            Some(("user", ids)) => Ok(Self::users(list(ids)?)),
            Some(("group", names)) => Ok(Self::groups(list(names)?)),
            Some(("session", text)) => Ok(Self::session(id(text)?)),
            Some(("property", pair)) => match pair.split_once('=') {
                Some((name, value)) => Ok(Self::property(id(name)?, value)),
                None => Err(because("a property is property:NAME=VALUE")),
            },
            Some(("users" | "groups", _)) => Err(because("several ids are user:ID,ID or group:ID,ID")),
            _ => Err(because(FORMS)),
        }
    }
}

/// The text is not the id of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a connection: 32 hexadecimal digits, a hyphen and a hexadecimal number")]
#[non_exhaustive]
pub struct ParseConnectionIdError;

impl FromStr for ConnectionId {
    type Err = ParseConnectionIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (node, local) = text.split_once('-').ok_or(ParseConnectionIdError)?;
        // `from_str_radix` takes a sign.
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
        ] {
            assert_eq!(text.parse(), Ok(target), "{text}");
        }
    }

    #[test]
    fn what_is_no_target_is_told_why() {
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
            ("connection:7", "use all"),
        ] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("unknown target {text:?}: ")) && error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_connection_is_found_again_by_its_text() {
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
