//! Who a connection is: the seam between the site's own sessions and a connection. One file for each ready-made
//! authenticator; what a connection does with its identity is in [`connection`](crate::connection).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use serde_json::Value;

use crate::close::Subject;

mod handshake;
mod origin;
mod proxy;
mod session_cookie;
#[cfg(feature = "mysql")]
mod session_table;

pub use handshake::Handshake;
pub use origin::{Origin, ParseOriginError};
pub use proxy::{ParseProxiesError, TrustedProxies};
pub use session_cookie::SessionCookie;
#[cfg(feature = "mysql")]
pub use session_table::{SessionTable, SessionTableError};

/// Who a connection is. Ids are text: a number in JSON or SQL means its decimal text.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Identity {
    /// The user; `None` is a guest.
    pub user: Option<String>,
    /// The session, which [`close_session`](crate::Server::close_session) and session targets name.
    pub session: Option<String>,
    /// When the session ends. The authenticator is asked again then; if nobody renewed the session, the connection is
    /// closed with [`CloseCode::Expired`](crate::CloseCode::Expired), after which clients come again.
    pub expires: Option<SystemTime>,
    /// The groups it starts in; handlers can change them.
    pub groups: BTreeSet<String>,
    /// The properties it starts with; handlers can change them.
    pub properties: BTreeMap<String, Value>,
}

impl Identity {
    /// Nobody in particular: gets what goes to all, and may call the actions that guests may call.
    pub fn guest() -> Self {
        Self::default()
    }

    /// This user.
    pub fn user(id: impl Into<String>) -> Self {
        Self { user: Some(id.into()), ..Self::default() }
    }

    /// With this session.
    pub fn session(mut self, id: impl Into<String>) -> Self {
        self.session = Some(id.into());
        self
    }

    /// Until this time.
    pub fn expires(mut self, at: SystemTime) -> Self {
        self.expires = Some(at);
        self
    }

    /// In these groups.
    pub fn groups(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.groups.extend(names.into_iter().map(Into::into));
        self
    }

    /// With this property.
    pub fn property(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.properties.insert(name.into(), value.into());
        self
    }
}

/// What a client sends as the details of `Client/authentication`. Shows nothing of itself in `Debug`.
#[derive(Clone, Copy)]
pub struct Credentials<'a>(pub(crate) &'a [Value]);

impl<'a> Credentials<'a> {
    /// The details, one element for each argument; never empty.
    pub fn details(&self) -> &'a [Value] {
        self.0
    }
}

impl fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// Why nobody can say who a connection is. Not for wrong credentials: those are `Ok(None)`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthenticationError {
    /// The store of sessions does not answer. Nothing is known of the session; an upgrade is refused with 503, which
    /// clients answer by coming again, and an authenticated connection lives on until it can be asked.
    #[error("the session store does not answer: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store answered something that is no session, as with a query of the wrong columns: a fault of the
    /// configuration, logged; the upgrade is refused with 503 and an authenticated connection lives on as well.
    #[error("the session store is misconfigured: {0}")]
    Misconfigured(String),
}

/// Tells who a connection is.
///
/// The server asks it at the upgrade without credentials, on `Client/authentication` with those the client sent,
/// and [again](Self::recheck) when an identity's `expires` has come. It is asked within the handshake's time
/// limit (10 s by default). Fresh credentials of the same user on an authenticated connection extend it and replace its
/// groups and properties; those of another user are refused and change nothing.
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
    /// The identity, or `None` where the handshake and the credentials name no valid session.
    async fn authenticate(
        &self,
        handshake: &Handshake,
        credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError>;

    /// Asks again about an open connection that was authenticated by its handshake: when
    /// [`recheck_interval`](Self::recheck_interval) is over, when its identity's `expires` has come, and when the
    /// application [refreshes](crate::Server::refresh_user) it. Fresh groups and properties replace those of the identity
    /// before; `None` or another user ends the connection with [`CloseCode::Expired`](crate::CloseCode::Expired).
    ///
    /// Default: [`authenticate`](Self::authenticate) without credentials. An authenticator that remembers answers
    /// overrides it to ask its store, or the age of what it remembers adds to the interval.
    async fn recheck(&self, handshake: &Handshake) -> Result<Option<Identity>, AuthenticationError> {
        self.authenticate(handshake, None).await
    }

    /// How often it is asked again about an open connection whose handshake named a user, so that groups that the site
    /// revoked, and sessions that it removed without [closing](crate::Server::close_session) them, do not last. Default
    /// `None`: only when the identity's `expires` has come or the application asks for it.
    ///
    /// The load is one [`recheck`](Self::recheck) for each connection and interval, spread evenly, and at most
    /// [`rechecks_per_second`](crate::ConnectionConfig::rechecks_per_second) on each node: beyond, the interval grows.
    fn recheck_interval(&self) -> Option<Duration> {
        None
    }

    /// Whether the credentials come by cookie, which browsers send from any page: then the `Origin` of an upgrade
    /// must be the host's own or an allowed one.
    fn uses_cookies(&self) -> bool {
        true
    }

    /// Whether it takes credentials in `Client/authentication`. A client whose upgrade named no valid session then has
    /// the handshake's time to send them: where guests are not welcome, instead of being refused at once; where it keeps
    /// its position, before it is told what it missed as a guest.
    fn in_band(&self) -> bool {
        false
    }

    /// Names the headers that it asks for later than at the upgrade, in any case. A connection keeps the usual ones
    /// ([`Handshake`]) and those that were asked for at the upgrade anyway. Default: none.
    fn headers(&self) -> &[&str] {
        &[]
    }

    /// Returns true if it logs by itself that it cannot answer, and that it can again. The server logs it otherwise: once when
    /// it begins, at most once a minute while it goes on, and once when it is over. Default: false.
    fn logs_failures(&self) -> bool {
        false
    }

    /// Called on every node when the application closes or refreshes a session or a user's connections: whatever is
    /// remembered of them is to be forgotten, so that the next question reaches the store and does not join one that was
    /// put before. Must return at once. An answer to a question that was put before is not used: the server asks once more.
    fn forget(&self, _closed: Revoked<'_>) {}
}

/// Whose connections the application closed or refreshed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked<'a> {
    /// Those of this session.
    Session(&'a str),
    /// Those of this user, in all sessions.
    User(&'a str),
}

impl<'a> From<&'a Subject> for Revoked<'a> {
    /// A session that the order spares is among them, which costs a look-up.
    fn from(subject: &'a Subject) -> Self {
        match subject {
            Subject::Session(id) => Self::Session(id),
            Subject::User { id, .. } => Self::User(id),
        }
    }
}

impl Revoked<'_> {
    /// Whether they are this identity's.
    pub fn is(&self, identity: &Identity) -> bool {
        match self {
            Self::Session(id) => identity.session.as_deref() == Some(id),
            Self::User(id) => identity.user.as_deref() == Some(id),
        }
    }
}

/// Everybody is a guest: the default.
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
