//! Who a connection's client is: the boundary between the site's own sessions and a connection. Each ready-made
//! authenticator has its own file. [`connection`](crate::connection) uses the identity.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use serde_json::Value;

use crate::ConnectionId;

mod chain;
mod handshake;
#[cfg(feature = "jwt")]
mod jwt;
mod origin;
mod proxy;
mod session_cookie;
#[cfg(feature = "mysql")]
mod session_table;

pub use chain::AuthenticatorChain;
pub(crate) use handshake::Encrypted;
pub use handshake::Handshake;
#[cfg(feature = "jwt")]
pub use jwt::{JwtAuthenticator, JwtError};
pub use origin::{Origin, ParseOriginError};
pub use proxy::{ParseProxiesError, TrustedProxies};
pub use session_cookie::SessionCookie;
#[cfg(feature = "mysql")]
pub use session_table::{SessionTable, SessionTableError};

/// The identity of a connection's client. Ids are text: a number in JSON or SQL means its decimal text.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Identity {
    /// The user; `None` is a guest.
    pub user: Option<String>,
    /// The session, which [`close_session`](crate::Server::close_session) and session targets name.
    pub session: Option<String>,
    /// The time at which the session ends. If the handshake named it, the authenticator is asked again some time before
    /// that (see [`Authenticator::recheck`]), and when it has come. If the session was not renewed, the connection is
    /// closed with [`CloseCode::Expired`](crate::CloseCode::Expired), after which clients connect again.
    pub expires: Option<SystemTime>,
    /// The interval at which the authenticator is asked again about this user. Zero is never. Default: that of
    /// [`Authenticator::recheck_interval`]. An [`AuthenticatorChain`] sets the interval of the authenticator that knew
    /// the client, or zero if that one has none.
    pub recheck: Option<Duration>,
    /// The groups in which the client starts. Handlers can change them.
    pub groups: BTreeSet<String>,
    /// The properties with which the client starts. Handlers can change them.
    pub properties: BTreeMap<String, Value>,
}

impl Identity {
    /// Returns the identity of a guest, who gets the messages for all and may call the actions for guests.
    pub fn guest() -> Self {
        Self::default()
    }

    /// Returns the identity of a user.
    pub fn user(id: impl Into<String>) -> Self {
        Self { user: Some(id.into()), ..Self::default() }
    }

    /// Sets the session.
    #[must_use]
    pub fn session(mut self, id: impl Into<String>) -> Self {
        self.session = Some(id.into());
        self
    }

    /// Sets the time at which the session ends.
    #[must_use]
    pub fn expires(mut self, at: SystemTime) -> Self {
        self.expires = Some(at);
        self
    }

    /// Sets the interval at which the authenticator is asked again. Zero is never.
    #[must_use]
    pub fn recheck(mut self, interval: Duration) -> Self {
        self.recheck = Some(interval);
        self
    }

    /// Adds groups.
    #[must_use]
    pub fn groups(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.groups.extend(names.into_iter().map(Into::into));
        self
    }

    /// Adds a property.
    #[must_use]
    pub fn property(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.properties.insert(name.into(), value.into());
        self
    }

    pub(crate) fn validity(&self) -> Validity {
        Validity { expires: self.expires, recheck: self.recheck }
    }
}

/// For how long an identity counts, and how often it is rechecked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Validity {
    /// The time at which it ends.
    pub(crate) expires: Option<SystemTime>,
    /// The interval of rechecks, if it has one of its own.
    pub(crate) recheck: Option<Duration>,
}

/// The details of a client's `Client/authentication`. `Debug` does not show them.
#[derive(Clone, Copy)]
pub struct Credentials<'a>(pub(crate) &'a [Value]);

impl<'a> Credentials<'a> {
    /// Returns the details, one element for each argument. There is at least one.
    pub fn details(&self) -> &'a [Value] {
        self.0
    }
}

impl fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// A question about a client, with what is known of its connection.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Inquiry<'a> {
    /// The request with which the client connected.
    pub handshake: &'a Handshake,
    /// The id of the connection. A client that resumes gets the id of its earlier connection back when it has joined,
    /// which is after the question at the upgrade.
    pub connection: ConnectionId,
    /// The reason for the question.
    pub reason: InquiryReason<'a>,
}

/// Why an authenticator is asked.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum InquiryReason<'a> {
    /// A client connects, or asks again who it is.
    Handshake,
    /// The client sent these credentials.
    Credentials(Credentials<'a>),
    /// An open connection is asked about again.
    #[non_exhaustive]
    Recheck {
        /// Its user.
        user: Option<&'a str>,
        /// Its session.
        session: Option<&'a str>,
    },
}

/// The reason why an authenticator cannot answer. Wrong credentials are no error but `Ok(None)`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthenticationError {
    /// The client may not connect, not even as a guest. It is told so on the WebSocket, and closed with
    /// [`CloseCode::Unauthenticated`](crate::CloseCode::Unauthenticated), after which clients do not connect again.
    #[error("the client is refused")]
    Refused,
    /// The session store does not answer, so nothing is known of the session. An upgrade is refused with 503. A client
    /// that sent credentials in a message is told 503, and closed with
    /// [`CloseCode::SessionUnknown`](crate::CloseCode::SessionUnknown). After both, clients try again. A connection
    /// that has a user stays open until the store answers.
    #[error("the session store does not answer: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store's answer is no session, as with a query of the wrong columns. This is a mistake in the configuration
    /// and is logged. For clients it is the same as [`Unavailable`](Self::Unavailable).
    #[error("the session store is misconfigured: {0}")]
    Misconfigured(String),
}

impl AuthenticationError {
    /// Returns true if the authenticator answers in a few seconds, so that this is no outage.
    pub(crate) fn is_short(&self) -> bool {
        match self {
            #[cfg(feature = "jwt")]
            Self::Unavailable(why) => why.is::<NotYet>(),
            _ => false,
        }
    }
}

/// What [`AuthenticationError::Unavailable`] holds.
#[cfg(feature = "jwt")]
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The reason why an authenticator cannot answer yet. Anyone can cause it, so the log does not tell of it.
#[cfg(feature = "jwt")]
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotYet(String);

/// Identifies the clients of connections.
///
/// The server asks it at the upgrade without credentials, on `Client/authentication` with the credentials that the
/// client sent, and [again](Self::recheck) before an identity's `expires` comes. It has to answer within the
/// handshake's time limit (10 s by default). Fresh credentials of the same user on an authenticated connection extend
/// it and replace its groups and properties. Credentials of another user are refused and change nothing.
///
/// ```
/// use async_trait::async_trait;
/// use ws_cluster::{AuthenticationError, Authenticator, Credentials, Handshake, Identity};
///
/// struct ByToken;
///
/// #[async_trait]
/// impl Authenticator for ByToken {
///     async fn authenticate(
///         &self,
///         handshake: &Handshake,
///         _credentials: Option<Credentials<'_>>,
///     ) -> Result<Option<Identity>, AuthenticationError> {
///         Ok(handshake.bearer_token().filter(|token| *token == "open sesame").map(|_| Identity::user("ali baba")))
///     }
/// }
/// ```
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// Returns the identity, or `None` if the handshake and the credentials name no valid session.
    ///
    /// # Errors
    /// [`AuthenticationError`] if the client is refused, or if it is not known whether the session is valid.
    async fn authenticate(
        &self,
        handshake: &Handshake,
        credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError>;

    /// Asks again about an open connection that was authenticated by its handshake: when
    /// [`recheck_interval`](Self::recheck_interval) is over, before its identity's `expires` comes, and when the
    /// application [refreshes](crate::Server::refresh_user) it. Fresh groups and properties replace those of the
    /// previous identity. `None` or another user ends the connection with
    /// [`CloseCode::Expired`](crate::CloseCode::Expired) at once, also before `expires`.
    ///
    /// The question before `expires` comes one or two minutes earlier, or in the last half of a time under four minutes,
    /// at a random moment, so that connections that end together are not asked about together. On a
    /// node with so many connections that [`rechecks_per_second`](crate::ConnectionConfig::rechecks_per_second) does not
    /// suffice for that, the question comes earlier. If the answer does not extend the identity, the next question comes
    /// at `expires`. If there is no answer, the server asks again after the interval of rechecks, or without an interval
    /// after 5 to 6 s, or later on such a node. An identity that lasts less than 2 s may be asked about only at
    /// `expires`.
    ///
    /// Default: [`authenticate`](Self::authenticate) without credentials. An authenticator with a cache overrides it to
    /// ask its store. Otherwise the age of a cached answer adds to the interval.
    ///
    /// # Errors
    /// As for [`authenticate`](Self::authenticate). [`Refused`](AuthenticationError::Refused) ends the connection.
    async fn recheck(&self, handshake: &Handshake) -> Result<Option<Identity>, AuthenticationError> {
        self.authenticate(handshake, None).await
    }

    /// Answers a question with what is known of the connection. The server calls this method, whose default calls
    /// [`authenticate`](Self::authenticate) or [`recheck`](Self::recheck). An authenticator overrides it if it needs the
    /// connection's id, or the user and the session that it gave earlier.
    ///
    /// # Errors
    /// As for [`authenticate`](Self::authenticate) and [`recheck`](Self::recheck).
    async fn identify(&self, inquiry: Inquiry<'_>) -> Result<Option<Identity>, AuthenticationError> {
        match inquiry.reason {
            InquiryReason::Handshake => self.authenticate(inquiry.handshake, None).await,
            InquiryReason::Credentials(credentials) => self.authenticate(inquiry.handshake, Some(credentials)).await,
            InquiryReason::Recheck { .. } => self.recheck(inquiry.handshake).await,
        }
    }

    /// Returns the interval at which it is asked again about an open connection whose handshake named a user. Rechecks
    /// end groups that the site revoked, and sessions that it removed without [closing](crate::Server::close_session)
    /// them. Default `None`: it is asked again only when the identity's `expires` has come or the application asks for
    /// it.
    ///
    /// The load is one [`recheck`](Self::recheck) for each connection and interval, spread evenly, and at most
    /// [`rechecks_per_second`](crate::ConnectionConfig::rechecks_per_second) on each node. With more connections the
    /// interval grows.
    fn recheck_interval(&self) -> Option<Duration> {
        None
    }

    /// Returns true if credentials come in cookies, which browsers send from any page. The `Origin` of an upgrade must
    /// then be the host's own or an allowed one.
    fn uses_cookies(&self) -> bool {
        true
    }

    /// Returns true if it takes credentials in `Client/authentication`. A client whose upgrade named no valid session
    /// then has the handshake's time to send them. If guests are not allowed, it is not refused before that. If it
    /// tracks its position, it is not sent what it missed as a guest before that.
    fn in_band(&self) -> bool {
        false
    }

    /// Returns the names, in any case, of the headers that it reads later than at the upgrade. A connection keeps the
    /// usual headers ([`Handshake`]) and those that were read at the upgrade anyway. Default: none.
    fn headers(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Returns true if it logs its own failures and recoveries. Otherwise the server logs them: once when a failure
    /// begins, at most once a minute while it lasts, and once when it is over. Default: false.
    fn logs_failures(&self) -> bool {
        false
    }

    /// Called on every node when the application closes or refreshes a session or a user's connections, or changes their
    /// groups. It must drop what it remembers of them, so that the next question reaches the store and does not join an
    /// earlier question. It must return at once. The server discards an answer to an earlier question and asks once more.
    fn forget(&self, _closed: Revoked<'_>) {}
}

/// The session or user whose connections the application closed, refreshed or put into other groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Revoked<'a> {
    /// The connections of this session.
    Session(&'a str),
    /// The connections of this user, in all sessions.
    User(&'a str),
}

impl Revoked<'_> {
    /// Returns true if the identity is of this session or user.
    pub fn is(&self, identity: &Identity) -> bool {
        match self {
            Self::Session(id) => identity.session.as_deref() == Some(id),
            Self::User(id) => identity.user.as_deref() == Some(id),
        }
    }
}

/// An authenticator for which every client is a guest. It is the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct GuestsOnly;

#[async_trait]
impl Authenticator for GuestsOnly {
    async fn authenticate(
        &self,
        _handshake: &Handshake,
        _credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        Ok(None)
    }

    fn uses_cookies(&self) -> bool {
        false
    }
}
