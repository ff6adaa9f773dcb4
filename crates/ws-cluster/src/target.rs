//! Whom a message is for, and whether a connection is one of them. Pure: the one definition that the Rust API, the
//! command line, HTTP and the links share. Finding the connections quickly is the hub's job.

use std::{fmt, str::FromStr};

use crate::cluster::NodeId;

/// One connection, unique in the cluster for as long as the node that serves it runs. Its text form
/// (`NODE-NUMBER`, hexadecimal) is stable while the connection lives.
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
/// `property:NAME=VALUE`; what it cannot express are exceptions, a connection, and a comma in the id of a user or
/// group.
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

/// The text is none of the forms `all`, `registered`, `user:ID[,ID]`, `group:ID[,ID]`, `session:ID` and
/// `property:NAME=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown target {0:?}: use all, registered, user:ID[,ID], group:ID[,ID], session:ID or property:NAME=VALUE")]
pub struct ParseTargetError(String);

impl FromStr for Target {
    type Err = ParseTargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || ParseTargetError(text.to_owned());
        let list = |ids: &str| {
            let ids: Vec<String> = ids.split(',').map(str::to_owned).collect();
            if ids.iter().any(String::is_empty) { Err(unknown()) } else { Ok(ids) }
        };
        match text.split_once(':') {
            None if text == "all" => Ok(Self::all()),
            None if text == "registered" => Ok(Self::registered()),
            Some(("user", ids)) => Ok(Self::users(list(ids)?)),
            Some(("group", names)) => Ok(Self::groups(list(names)?)),
            Some(("session", id)) if !id.is_empty() => Ok(Self::session(id)),
            Some(("property", pair)) => match pair.split_once('=') {
                Some((name, value)) if !name.is_empty() => Ok(Self::property(name, value)),
                _ => Err(unknown()),
            },
            _ => Err(unknown()),
        }
    }
}
