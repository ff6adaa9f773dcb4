//! Whom an order to close concerns, and every code with which this server closes a connection, in two ranges that tell
//! any client what to do.

/// Why the server closed a connection.
///
/// A client reconnects after every code, 1006 and 1011 included, **except** 1000, 1002, 1003, 1007–1010 and
/// 4400–4999: then the same client would meet the same end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
#[non_exhaustive]
pub enum CloseCode {
    /// The application closed the connection; `Server/close` came before it. Stay away.
    Normal = 1000,
    /// The client broke the WebSocket protocol. Stay away.
    Protocol = 1002,
    /// A text frame was not UTF-8. Stay away.
    NotUtf8 = 1007,
    /// A message was over the limit (64 KiB by default). Stay away.
    TooLarge = 1009,
    /// A fault of the server. Come again.
    Internal = 1011,
    /// The node shuts down. Come again: another node answers.
    Restart = 1012,
    /// The node lost its master while the others did not, or messages that the others have. Come again: another node
    /// answers.
    TryAgainLater = 1013,
    /// The client read too slowly and its queue was full (1 MiB by default). Come again.
    TooSlow = 4000,
    /// No answer to a ping. Come again.
    Silent = 4001,
    /// The session ran out while its store could not be asked. Come again.
    SessionUnknown = 4002,
    /// The session ran out or is no longer valid and nobody renewed it, or the application asked the client to come
    /// again ([`Close::reconnect`]). Come again and authenticate anew.
    Expired = 4003,
    /// A message was neither `{action, details}` nor `[action, details]`, or a binary frame. Stay away.
    Malformed = 4400,
    /// The credentials were wrong, or guests are not welcome. Stay away.
    Unauthenticated = 4401,
}

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
pub struct Close {
    pub(crate) subject: Subject,
    pub(crate) reconnect: bool,
}

impl Close {
    /// Every connection of this session.
    pub fn session(id: impl Into<String>) -> Self {
        Self { subject: Subject::session(id), reconnect: false }
    }

    /// Every connection of this user, in all sessions.
    pub fn user(id: impl Into<String>) -> Self {
        Self { subject: Subject::user(id), reconnect: false }
    }

    /// Spares the connections of this session. Connections of the user without a session are closed. Has no effect on
    /// [`Close::session`].
    pub fn except_session(mut self, id: impl Into<String>) -> Self {
        self.subject = self.subject.except(id);
        self
    }

    /// Closes softly: without `Server/close` and with [`CloseCode::Expired`], so that the clients come back at once and
    /// authenticate anew. By default they get `Server/close`, are closed with [`CloseCode::Normal`] and stay away.
    pub fn reconnect(mut self) -> Self {
        self.reconnect = true;
        self
    }
}

/// Whose connections an order concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Session(String),
    User {
        id: String,
        /// A session of the user that is spared.
        except_session: Option<String>,
    },
}

impl Subject {
    pub(crate) fn session(id: impl Into<String>) -> Self {
        Self::Session(id.into())
    }

    pub(crate) fn user(id: impl Into<String>) -> Self {
        Self::User { id: id.into(), except_session: None }
    }

    pub(crate) fn except(self, session: impl Into<String>) -> Self {
        match self {
            Self::Session(_) => self,
            Self::User { id, .. } => Self::User { id, except_session: Some(session.into()) },
        }
    }

    /// Returns true if a connection of this user and session is concerned.
    pub(crate) fn is(&self, user: Option<&str>, session: Option<&str>) -> bool {
        match self {
            Self::Session(id) => session == Some(id),
            Self::User { id, except_session } => {
                user == Some(id) && (except_session.is_none() || session != except_session.as_deref())
            }
        }
    }
}

impl CloseCode {
    /// Whether a client comes again after this code.
    pub fn reconnects(self) -> bool {
        reconnects(self as u16)
    }
}

/// Whether a client comes again after `code`, whoever sent it.
pub(crate) fn reconnects(code: u16) -> bool {
    !matches!(code, 1000 | 1002 | 1003 | 1007..=1010 | 4400..=4999)
}
