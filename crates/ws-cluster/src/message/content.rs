//! The content of an entry: a message with its target, or a command about connections. The core never reads it. It is
//! Protocol Buffers, so that a later version can add fields that this one skips.

use bytes::Bytes;
use prost::Message;

use crate::message::{
    close::{Close, Subject},
    groups::GroupChange,
    target::{ConnectionId, Selection, Target},
};
use ws_cluster_core::NodeId;

/// The content of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A message for clients. `details` is an encoded JSON array. A volatile message reaches only clients
    /// that have taken everything sent to them, and is never replayed.
    Message { target: Target, action: String, details: Bytes, volatile: bool },
    /// A command to close connections.
    Close(Close),
    /// A command to ask the authenticator again about connections, at once.
    Refresh(Subject),
    /// A command to put connections into groups and to take them out of groups.
    Groups(GroupChange),
    /// Revokes the resume tokens of a connection below `version`, because something was taken away from it.
    TokenRevoked { connection: ConnectionId, version: u64 },
}

/// The error for a content that this version cannot read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentError {
    #[error("not a message of the cluster: {0}")]
    Malformed(#[from] prost::DecodeError),
    #[error("a message of a kind that this version does not know")]
    Unknown,
}

impl Content {
    pub(crate) fn encode(&self) -> Bytes {
        let kind = match self {
            Self::Message { target, action, details, volatile } => pb::Kind::Message(pb::Message {
                selection: Some((&target.selection).into()),
                except_connection: target.except_connection.map(Into::into),
                except_user: target.except_user.clone(),
                action: action.clone(),
                details: details.clone(),
                volatile: *volatile,
            }),
            Self::Close(close) => close.into(),
            Self::Refresh(subject) => pb::Kind::Refresh(subject.into()),
            Self::Groups(GroupChange { subject, join, leave }) => {
                pb::Kind::Groups(pb::Groups { subject: Some(subject.into()), join: join.clone(), leave: leave.clone() })
            }
            Self::TokenRevoked { connection, version } => {
                pb::Kind::Revoked(pb::Revoked { connection: Some((*connection).into()), version: *version })
            }
        };
        pb::Content { kind: Some(kind) }.encode_to_vec().into()
    }

    /// Returns about the number of bytes that the content takes on the wire to a client.
    pub(crate) fn size(&self) -> usize {
        const FRAME: usize = 96;
        match self {
            Self::Message { action, details, .. } => FRAME + action.len() + details.len(),
            Self::Close(_) | Self::Refresh(_) | Self::Groups(_) | Self::TokenRevoked { .. } => 0,
        }
    }

    /// Returns the session, user or connection that a command concerns. A message is no command.
    pub(crate) fn subject(&self) -> Option<&Subject> {
        match self {
            Self::Message { .. } | Self::TokenRevoked { .. } => None,
            Self::Close(close) => Some(&close.subject),
            Self::Refresh(subject) => Some(subject),
            Self::Groups(change) => Some(&change.subject),
        }
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, ContentError> {
        match pb::Content::decode(bytes)?.kind.ok_or(ContentError::Unknown)? {
            pb::Kind::CloseSession(id) => Ok(Self::Close(Close::session(id))),
            pb::Kind::CloseUser(id) => Ok(Self::Close(Close::user(id))),
            pb::Kind::Close(pb::Close { subject, reconnect }) => {
                let subject = subject.ok_or(ContentError::Unknown)?.try_into()?;
                Ok(Self::Close(Close { subject, reconnect }))
            }
            pb::Kind::Refresh(subject) => Ok(Self::Refresh(subject.try_into()?)),
            pb::Kind::Groups(pb::Groups { subject, join, leave }) => {
                let subject = subject.ok_or(ContentError::Unknown)?.try_into()?;
                Ok(Self::Groups(GroupChange { subject, join, leave }))
            }
            pb::Kind::Revoked(pb::Revoked { connection, version }) => {
                let connection = connection.ok_or(ContentError::Unknown)?.try_into()?;
                Ok(Self::TokenRevoked { connection, version })
            }
            pb::Kind::Message(message) => {
                let target = Target {
                    selection: message.selection.ok_or(ContentError::Unknown)?.try_into()?,
                    except_connection: message.except_connection.map(TryInto::try_into).transpose()?,
                    except_user: message.except_user,
                };
                let pb::Message { action, details, volatile, .. } = message;
                Ok(Self::Message { target, action, details, volatile })
            }
        }
    }
}

impl From<&Close> for pb::Kind {
    fn from(close: &Close) -> Self {
        match &close.subject {
            // The forms that every version understands are used if they suffice.
            Subject::Session(id) if !close.reconnect => Self::CloseSession(id.clone()),
            Subject::User { id, except_session: None } if !close.reconnect => Self::CloseUser(id.clone()),
            subject => Self::Close(pb::Close { subject: Some(subject.into()), reconnect: close.reconnect }),
        }
    }
}

impl From<&Subject> for pb::Subject {
    fn from(subject: &Subject) -> Self {
        let (whose, except_session) = match subject {
            Subject::Session(id) => (pb::Whose::Session(id.clone()), None),
            Subject::User { id, except_session } => (pb::Whose::User(id.clone()), except_session.clone()),
            Subject::Connection(id) => (pb::Whose::Connection((*id).into()), None),
        };
        Self { whose: Some(whose), except_session }
    }
}

impl TryFrom<pb::Subject> for Subject {
    type Error = ContentError;

    fn try_from(subject: pb::Subject) -> Result<Self, ContentError> {
        Ok(match subject.whose.ok_or(ContentError::Unknown)? {
            pb::Whose::Session(id) => Self::Session(id),
            pb::Whose::User(id) => Self::User { id, except_session: subject.except_session },
            pb::Whose::Connection(id) => Self::Connection(id.try_into()?),
        })
    }
}

impl From<&Selection> for pb::Selection {
    fn from(selection: &Selection) -> Self {
        let to = match selection {
            Selection::All => pb::To::All(true),
            Selection::Registered => pb::To::Registered(true),
            Selection::Users(ids) => pb::To::Users(pb::Texts { texts: ids.clone() }),
            Selection::Groups(names) => pb::To::Groups(pb::Texts { texts: names.clone() }),
            Selection::Session(id) => pb::To::Session(id.clone()),
            Selection::Connection(id) => pb::To::Connection((*id).into()),
            Selection::Property { name, value } => {
                pb::To::Property(pb::Property { name: name.clone(), value: value.clone() })
            }
        };
        Self { to: Some(to) }
    }
}

impl TryFrom<pb::Selection> for Selection {
    type Error = ContentError;

    fn try_from(selection: pb::Selection) -> Result<Self, ContentError> {
        Ok(match selection.to.ok_or(ContentError::Unknown)? {
            pb::To::All(_) => Self::All,
            pb::To::Registered(_) => Self::Registered,
            pb::To::Users(ids) => Self::Users(ids.texts),
            pb::To::Groups(names) => Self::Groups(names.texts),
            pb::To::Session(id) => Self::Session(id),
            pb::To::Connection(id) => Self::Connection(id.try_into()?),
            pb::To::Property(pb::Property { name, value }) => Self::Property { name, value },
        })
    }
}

impl From<ConnectionId> for pb::Connection {
    fn from(id: ConnectionId) -> Self {
        Self { node: Bytes::copy_from_slice(id.node.as_bytes()), local: id.local }
    }
}

impl TryFrom<pb::Connection> for ConnectionId {
    type Error = ContentError;

    fn try_from(id: pb::Connection) -> Result<Self, ContentError> {
        let node = id.node.as_ref().try_into().map_err(|_| ContentError::Unknown)?;
        Ok(Self { node: NodeId::from_bytes(node), local: id.local })
    }
}

/// The schema. A tag is never given another meaning.
mod pb {
    use bytes::Bytes;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Content {
        #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6, 7")]
        pub(super) kind: Option<Kind>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Kind {
        #[prost(message, tag = "1")]
        Message(Message),
        #[prost(string, tag = "2")]
        CloseSession(String),
        #[prost(string, tag = "3")]
        CloseUser(String),
        #[prost(message, tag = "4")]
        Close(Close),
        #[prost(message, tag = "5")]
        Refresh(Subject),
        #[prost(message, tag = "6")]
        Revoked(Revoked),
        #[prost(message, tag = "7")]
        Groups(Groups),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Groups {
        #[prost(message, optional, tag = "1")]
        pub(super) subject: Option<Subject>,
        #[prost(string, repeated, tag = "2")]
        pub(super) join: Vec<String>,
        #[prost(string, repeated, tag = "3")]
        pub(super) leave: Vec<String>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Revoked {
        #[prost(message, optional, tag = "1")]
        pub(super) connection: Option<Connection>,
        #[prost(uint64, tag = "2")]
        pub(super) version: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Close {
        #[prost(message, optional, tag = "1")]
        pub(super) subject: Option<Subject>,
        #[prost(bool, tag = "2")]
        pub(super) reconnect: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Subject {
        #[prost(oneof = "Whose", tags = "1, 2, 4")]
        pub(super) whose: Option<Whose>,
        #[prost(string, optional, tag = "3")]
        pub(super) except_session: Option<String>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Whose {
        #[prost(string, tag = "1")]
        Session(String),
        #[prost(string, tag = "2")]
        User(String),
        #[prost(message, tag = "4")]
        Connection(Connection),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Message {
        #[prost(message, optional, tag = "1")]
        pub(super) selection: Option<Selection>,
        #[prost(message, optional, tag = "2")]
        pub(super) except_connection: Option<Connection>,
        #[prost(string, optional, tag = "3")]
        pub(super) except_user: Option<String>,
        #[prost(string, tag = "4")]
        pub(super) action: String,
        #[prost(bytes = "bytes", tag = "5")]
        pub(super) details: Bytes,
        /// A node of an older version does not know it, and handles the message as any other.
        #[prost(bool, tag = "6")]
        pub(super) volatile: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Selection {
        #[prost(oneof = "To", tags = "1, 2, 3, 4, 5, 6, 7")]
        pub(super) to: Option<To>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum To {
        #[prost(bool, tag = "1")]
        All(bool),
        #[prost(bool, tag = "2")]
        Registered(bool),
        #[prost(message, tag = "3")]
        Users(Texts),
        #[prost(message, tag = "4")]
        Groups(Texts),
        #[prost(string, tag = "5")]
        Session(String),
        #[prost(message, tag = "6")]
        Connection(Connection),
        #[prost(message, tag = "7")]
        Property(Property),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Texts {
        #[prost(string, repeated, tag = "1")]
        pub(super) texts: Vec<String>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Property {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, tag = "2")]
        pub(super) value: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Connection {
        #[prost(bytes = "bytes", tag = "1")]
        pub(super) node: Bytes,
        #[prost(uint64, tag = "2")]
        pub(super) local: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_content_comes_back_as_it_was() {
        let connection = ConnectionId { node: NodeId::from_bytes([9; 16]), local: 77 };
        let targets = [
            Target::all(),
            Target::registered().except_connection(connection),
            Target::users(["1", "zwei"]).except_user("3"),
            Target::groups(["editors"]),
            Target::session("s"),
            Target::connection(connection),
            Target::property("page", "7"),
        ];
        let details = Bytes::from_static(b"[1,\"\xc3\xbc\"]");
        let message = |(number, target)| Content::Message {
            target,
            action: "news/new".into(),
            details: details.clone(),
            volatile: number % 2 == 1,
        };
        let messages = targets.into_iter().enumerate().map(message);
        let subjects = [
            Subject::session("a"),
            Subject::user("b"),
            Subject::user("b").except("c"),
            Subject::Connection(connection),
        ];
        let commands = subjects.into_iter().flat_map(|subject| {
            let close = |reconnect| Content::Close(Close { subject: subject.clone(), reconnect });
            let groups = GroupChange { subject: subject.clone(), join: vec!["a".into()], leave: Vec::new() };
            [close(false), close(true), Content::Refresh(subject.clone()), Content::Groups(groups)]
        });
        let revoked = Content::TokenRevoked { connection, version: 3 };
        for content in messages.chain(commands).chain([revoked]) {
            assert_eq!(Content::decode(content.encode()).ok(), Some(content));
        }
    }

    /// Bytes that the first version wrote and reads.
    #[test]
    fn a_plain_close_is_one_that_every_version_understands() {
        for (close, bytes) in [(Close::session("a"), b"\x12\x01a"), (Close::user("b"), b"\x1a\x01b")] {
            assert_eq!(&Content::Close(close).encode()[..], bytes);
        }
    }

    /// Bytes that the first version wrote and reads, and what it does not know.
    #[test]
    fn a_message_of_an_older_version_is_not_volatile() {
        let message =
            |volatile| Content::Message { target: Target::all(), action: "a".into(), details: "[]".into(), volatile };
        let older = b"\x0a\x0b\x0a\x02\x08\x01\x22\x01a\x2a\x02[]";
        assert_eq!(&message(false).encode()[..], older);
        assert_eq!(Content::decode(Bytes::from_static(older)).ok(), Some(message(false)));
        assert_eq!(&message(true).encode()[..], b"\x0a\x0d\x0a\x02\x08\x01\x22\x01a\x2a\x02[]\x30\x01");
    }

    #[test]
    fn a_hostile_content_is_refused_or_means_one_thing() {
        let message = |target: Target| {
            Content::Message { target, action: "a".into(), details: "[1]".into(), volatile: true }.encode()
        };
        let connection = ConnectionId { node: NodeId::from_bytes([9; 16]), local: 77 };
        let corpus = [
            message(Target::users(["ann", "bob"]).except_user("ann")),
            message(Target::property("page", "7").except_connection(connection)),
            message(Target::connection(connection)),
            Content::Close(Close::session("s")).encode(),
            Content::Close(Close::connection(connection)).encode(),
            Content::Groups(GroupChange::user("ann").join("a").leave("b")).encode(),
        ];
        let corpus: Vec<&[u8]> = corpus.iter().map(|content| &content[..]).collect();
        crate::fuzz::search(&corpus, |input| {
            let Ok(content) = Content::decode(Bytes::copy_from_slice(input)) else { return Ok(()) };
            let again = Content::decode(content.encode()).ok();
            if again.as_ref() == Some(&content) { Ok(()) } else { Err(format!("{content:?} comes back as {again:?}")) }
        });
    }

    #[test]
    fn an_unknown_content_is_an_error_of_its_own() {
        let later = Bytes::from_static(b"\x72\x01x");
        assert!(matches!(Content::decode(later), Err(ContentError::Unknown)));
        assert!(matches!(Content::decode(Bytes::new()), Err(ContentError::Unknown)));
        assert!(matches!(Content::decode(Bytes::from_static(b"\xff")), Err(ContentError::Malformed(_))));
    }
}
