//! Which connections a command to close concerns.

use crate::message::target::ConnectionId;

/// Which connections [`Server::close`](crate::Server::close) closes, and how.
///
/// ```
/// use ws_cluster::Close;
///
/// // Ann changed her password: all other devices are signed out for good.
/// let others = Close::user("ann").except_session("e4d909");
/// // Her session got a new id: her pages come back with the new cookie.
/// let renewed = Close::session("e4d909").reconnect();
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "connections are closed by `Server::close`"]
pub struct Close {
    pub(crate) subject: Subject,
    pub(crate) reconnect: bool,
}

impl Close {
    /// Closes every connection of this session.
    pub fn session(id: impl Into<String>) -> Self {
        Self { subject: Subject::session(id), reconnect: false }
    }

    /// Closes every connection of this user, in all sessions.
    pub fn user(id: impl Into<String>) -> Self {
        Self { subject: Subject::user(id), reconnect: false }
    }

    /// Closes one connection, under the id that handlers know. A node of an older version closes nothing.
    pub fn connection(id: ConnectionId) -> Self {
        Self { subject: Subject::Connection(id), reconnect: false }
    }

    /// Excludes the connections of this session. The user's connections without a session are closed. Has an effect on
    /// [`Close::user`] only.
    pub fn except_session(mut self, id: impl Into<String>) -> Self {
        self.subject = self.subject.except(id);
        self
    }

    /// Closes without `Server/close` and with [`CloseCode::Expired`](crate::CloseCode::Expired), so that the clients
    /// come back at once and authenticate again. By default they get `Server/close`, are closed with
    /// [`CloseCode::Normal`](crate::CloseCode::Normal) and stay away.
    pub fn reconnect(mut self) -> Self {
        self.reconnect = true;
        self
    }
}

/// The session or user whose connections a command concerns, or one connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Subject {
    Session(String),
    User {
        id: String,
        /// A session of the user that is excluded.
        except_session: Option<String>,
    },
    Connection(ConnectionId),
}

impl Subject {
    /// Returns the number of bytes in its ids of users and sessions.
    pub(crate) fn id_size(&self) -> usize {
        match self {
            Self::Session(id) => id.len(),
            Self::User { id, except_session } => id.len() + except_session.as_ref().map_or(0, String::len),
            Self::Connection(_) => 0,
        }
    }

    pub(crate) fn session(id: impl Into<String>) -> Self {
        Self::Session(id.into())
    }

    pub(crate) fn user(id: impl Into<String>) -> Self {
        Self::User { id: id.into(), except_session: None }
    }

    pub(crate) fn except(self, session: impl Into<String>) -> Self {
        match self {
            Self::Session(_) | Self::Connection(_) => self,
            Self::User { id, .. } => Self::User { id, except_session: Some(session.into()) },
        }
    }

    /// Returns true if every connection of this user and session is concerned.
    pub(crate) fn is(&self, user: Option<&str>, session: Option<&str>) -> bool {
        match self {
            Self::Session(id) => session == Some(id),
            Self::Connection(_) => false,
            Self::User { id, except_session } => {
                user == Some(id) && (except_session.is_none() || session != except_session.as_deref())
            }
        }
    }
}
