//! The authenticator of a site that keeps its sessions in MySQL or MariaDB: the name of a cookie and an SQL query.
//! `cache` remembers answers, and `row` defines what a row means.

use std::{fmt, time::Duration};

use async_trait::async_trait;

use self::{
    cache::{Cached, SessionQuestion, Store},
    query::{Parameter, Query},
    store::MySqlSessions,
};
use super::{
    AuthenticationError, Authenticator, Credentials, Handshake, Identity, Revoked, session_cookie::session_ids,
};
use crate::mysql;

mod cache;
mod health;
mod query;
mod row;
mod store;

/// The reason why a [`SessionTable`] cannot be made. [`SessionTable::check`] finds the mistakes that only the database
/// can notice, such as an unknown table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionTableError {
    /// The URL cannot name a database.
    #[error("malformed database URL: {0}")]
    Url(String),
    /// No cookie can have this name.
    #[error("{0:?} cannot be the name of a cookie")]
    Cookie(String),
    /// The query does not use the session, so its answer would be the same for every client.
    #[error("the {query} query names no session: write ? where its id belongs")]
    NoParameter {
        /// The name of the query: `session` or `groups`.
        query: &'static str,
    },
    /// The query uses a parameter that does not exist.
    #[error(
        "the {query} query names an unknown parameter :{name}: there are :session, :ip, :ip6, :agent and, for groups, :user"
    )]
    UnknownParameter {
        /// Which query: `session` or `groups`.
        query: &'static str,
        /// The parameter.
        name: String,
    },
    /// The query has both `?` and named parameters.
    #[error("the {query} query mixes ? and named parameters: write :session (or :user) for ?")]
    MixedParameters {
        /// The name of the query: `session` or `groups`.
        query: &'static str,
    },
}

/// Identifies clients by the sessions that a site already keeps in its MySQL or MariaDB. The users of a PHP site are
/// known here as soon as the site knows them.
///
/// ```no_run
/// # fn main() -> Result<(), ws_cluster::SessionTableError> {
/// use ws_cluster::SessionTable;
///
/// let sessions = SessionTable::new(
///     "mysql://site:password@localhost/site",
///     "PHPSESSID",
///     "SELECT user, expires FROM sessions WHERE id = ?",
/// )?
/// .groups_query("SELECT name FROM memberships WHERE user = ?")?;
/// # Ok(()) }
/// ```
///
/// # The queries
///
/// In the **session query**, `?` is the session id. Instead of `?` it may use `:session` (or `:id`), `:ip`, `:ip6` and
/// `:agent`, for sites that bind a session to the client's address (as text, through trusted proxies) or its
/// `User-Agent`. Each of these is NULL if it is unknown. The first row counts, and its columns count by their position:
///
/// 1. The user: text, or a number that stands for its decimal text. NULL, the empty text and no row mean that there
///    is no session, and so a guest. (A site that writes 0 for guests asks for `NULLIF(user, 0)`.)
/// 2. When the session ends, if the query has this column: a Unix time as number or text, or a DATETIME in UTC or a
///    TIMESTAMP. NULL means never. A time that has passed means that there is no session. (A site that writes 0 for
///    "never" asks for `NULLIF(expires, 0)`.)
///
/// In the **groups query**, `?` is the user's id; instead it may use `:user` (or `:id`), `:session`, `:ip`, `:ip6` and
/// `:agent`. Each row is the name of a group; NULL and the empty text name none.
///
/// | value | user or group | end of the session |
/// |---|---|---|
/// | NULL | none | never |
/// | empty text | none | left out |
/// | integer, unsigned integer, YEAR | its decimal text | seconds since 1970 up to the year 9999; a larger number counts milliseconds, micro- or nanoseconds; `9223372036854775807` and more mean never; 0 and less have passed |
/// | DECIMAL, FLOAT, DOUBLE | its decimal text (DECIMAL with all its digits) | as an integer, with fractions |
/// | text | as it is, at most 1,024 bytes of UTF-8 without control characters | a number as above, or a date and time as in `2026-03-01 12:00:00.5`, in UTC if no offset follows, or a date |
/// | BINARY | as text, without the NULs at its end | as text, without the NULs at its end |
/// | DATETIME, TIMESTAMP, DATE | left out | UTC; the last day of the year 9999 means never; years before 1970 have passed |
/// | `0000-00-00`, a day that does not exist | left out | left out |
/// | TIME, other text, bytes that are no UTF-8 | left out | left out |
///
/// A row that is "left out" counts as no row: there is no session, or the group is not joined. The same applies to a
/// row on which the database itself fails, for example with a number out of range. The log gives the reason, once a
/// minute with the number of such rows.
///
/// # Cookies and ids
///
/// The cookie's value is looked up as it was sent, without quotes around it. If there is no such session, it is looked
/// up without percent-encoding (or without Python's escapes in quoted values) if that differs. If a client sends
/// several cookies of the name, the first 3 are tried in the order sent, with at most 4 look-ups in all. The session's
/// id is the value that was found: [`Server::close_session`](crate::Server::close_session) needs that value.
///
/// A site that stores a digest of the id computes it in the query:
///
/// ```sql
/// SELECT user, expires FROM sessions WHERE id = SHA2(?, 256)
/// -- Drupal: base64 for URLs
/// SELECT NULLIF(uid, 0) FROM sessions WHERE sid =
///     REPLACE(REPLACE(TRIM(TRAILING '=' FROM TO_BASE64(UNHEX(SHA2(?, 256)))), '+', '-'), '/', '_')
/// ```
///
/// `:ip` is an IPv4 address in the common form (`192.0.2.1`). If no row is found with it, the query is executed once
/// more with `::ffff:192.0.2.1`, which a site stores if its server listens on IPv6 for both; `:ip6` has that form from
/// the start. For a client with IPv6, `:ip` and `:ip6` are both its address.
///
/// The connection's time zone is UTC, so `NOW()` is in UTC. A column of session ids should compare exactly (as
/// `ascii_bin` does). If `a` equals `A`, a session has more than one id, and a close by one of them does not close all.
/// A value that is no session id (longer than 256 bytes, control characters, not ASCII) is no session, and the database
/// is not asked. Credentials that a client sends (`Client/authentication` with details) are always wrong.
///
/// # What is cached
///
/// A valid session is cached for 30 s, so a session that was removed counts for up to 30 s more, unless its connections
/// are [closed](crate::Server::close_session) or [refreshed](crate::Server::refresh_session), which forgets it. Open
/// connections are checked again within [30 s](Self::recheck_time). A session that has run out or is unknown is looked
/// up each time, so a login counts at once. If it is unknown three times in a row, that is cached for 2 s, for as many
/// sessions as valid ones are cached. Callers that ask for the same session at the same time share one query.
///
/// # When the database fails
///
/// It fails with [`AuthenticationError::Unavailable`] if the database does not answer within 5 s or refuses more
/// connections, and with [`AuthenticationError::Misconfigured`] if the database refuses the password or the query, or
/// if the columns are wrong. The log says so once when it begins and once when it ends.
#[derive(Clone)]
pub struct SessionTable {
    cookie: String,
    sessions: Cached<MySqlSessions>,
    recheck_time: Option<Duration>,
}

impl SessionTable {
    /// Returns an authenticator for the sessions in the database of this URL
    /// (`mysql://user:password@host:port/database`; its options are those of
    /// [`MySqlPool::connect`](crate::pool::MySqlPool::connect)). The session's id is in the cookie of this name, and
    /// `query` finds the session. It connects when it is first asked.
    ///
    /// # Errors
    /// [`SessionTableError`] if the URL, the cookie's name or the query is malformed.
    pub fn new(url: &str, cookie: impl Into<String>, query: &str) -> Result<Self, SessionTableError> {
        let cookie = cookie.into();
        let database = mysql::parse(url).map_err(SessionTableError::Url)?;
        if cookie.is_empty() || cookie.bytes().any(|byte| !byte.is_ascii_graphic() || matches!(byte, b'=' | b';')) {
            return Err(SessionTableError::Cookie(cookie));
        }
        let store = MySqlSessions::new(database, 8, Query::session(query)?, Duration::from_secs(5));
        let sessions = Cached::new(store, Duration::from_secs(30), 10_000);
        Ok(Self { cookie, sessions, recheck_time: Some(Duration::from_secs(30)) })
    }

    /// Adds a query for the groups in which a user starts.
    ///
    /// # Errors
    /// [`SessionTableError`] if the query is malformed.
    pub fn groups_query(mut self, query: &str) -> Result<Self, SessionTableError> {
        self.sessions.store.groups = Some(Query::groups(query)?.into());
        Ok(self)
    }

    /// Sets how long a valid session is cached. Default 30 s: the longest time for which a session that was removed
    /// still opens connections. With zero, the database is asked every time.
    pub fn cache_time(mut self, time: Duration) -> Self {
        self.sessions.time = time;
        self
    }

    /// Sets the longest time after which an open connection loses the groups that the site revoked, or is closed
    /// because its session is gone. Default 30 s. With `None`, open connections are checked again only when their
    /// session ends.
    ///
    /// Each session is looked up again after two thirds of this time, less up to a fifth so that the look-ups spread.
    /// An answer that is not older than a third of this time counts for all connections of a session. So 1,000 sessions
    /// cost about 60 look-ups a second with the default, of one or two statements each. A node makes at most
    /// [`rechecks_per_second`](crate::ConnectionConfig::rechecks_per_second) (500) look-ups, and with more connections
    /// asks less often. [`Server::refresh_user`](crate::Server::refresh_user) asks at once.
    pub fn recheck_time(mut self, time: Option<Duration>) -> Self {
        self.recheck_time = time;
        self
    }

    /// Sets the number of cached sessions. Default 10,000, of less than a kilobyte each if groups are few.
    pub fn cache_size(mut self, sessions: usize) -> Self {
        self.sessions.size = sessions;
        self
    }

    /// Sets the time limit of one look-up, including the wait for a free connection. Default 5 s. It should be shorter
    /// than the handshake's time limit (10 s by default).
    pub fn query_timeout(mut self, timeout: Duration) -> Self {
        self.sessions.store.timeout = timeout;
        self
    }

    /// Sets the maximum number of connections to the database, and so of queries at once. Further look-ups wait.
    /// Default 8; at least 1.
    pub fn connections(mut self, connections: usize) -> Self {
        self.sessions.store.set_connections(connections);
        self
    }

    /// Checks that the database answers and accepts the queries, by asking for a session that does not exist. A program
    /// calls it at its start, where it can report a mistake better than a log.
    ///
    /// # Errors
    /// As for [`Authenticator::authenticate`].
    pub async fn check(&self) -> Result<(), AuthenticationError> {
        let nobody = SessionQuestion { session: String::new(), ip: None, agent: None };
        self.sessions.store.look_up(&nobody).await?;
        Ok(())
    }

    fn question(&self, session: &str, handshake: &Handshake) -> SessionQuestion {
        let MySqlSessions { session: query, groups, .. } = &self.sessions.store;
        let uses = |parameter| query.uses(parameter) || groups.as_ref().is_some_and(|query| query.uses(parameter));
        SessionQuestion {
            session: session.to_owned(),
            ip: handshake.remote_ip().filter(|_| uses(Parameter::Ip) || uses(Parameter::Ip6)),
            agent: handshake.user_agent().filter(|_| uses(Parameter::Agent)).map(str::to_owned),
        }
    }
}

#[async_trait]
impl Authenticator for SessionTable {
    async fn authenticate(
        &self,
        handshake: &Handshake,
        credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        if credentials.is_some() {
            return Ok(None);
        }
        for session in session_ids(handshake, &self.cookie) {
            if let Some(identity) = self.sessions.look_up(self.question(&session, handshake)).await? {
                return Ok(Some(identity));
            }
        }
        Ok(None)
    }

    async fn recheck(&self, handshake: &Handshake) -> Result<Option<Identity>, AuthenticationError> {
        let age = self.recheck_time.map_or(self.sessions.time, |time| time / 3);
        for session in session_ids(handshake, &self.cookie) {
            if let Some(identity) = self.sessions.look_up_within(self.question(&session, handshake), age).await? {
                return Ok(Some(identity));
            }
        }
        Ok(None)
    }

    fn recheck_interval(&self) -> Option<Duration> {
        self.recheck_time.map(|time| time / 3 * 2)
    }

    fn logs_failures(&self) -> bool {
        true
    }

    fn forget(&self, closed: Revoked<'_>) {
        self.sessions.forget(closed);
    }
}

impl fmt::Debug for SessionTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The options of the database are left out, because they contain its password.
        f.debug_struct("SessionTable")
            .field("cookie", &self.cookie)
            .field("session_query", &self.sessions.store.session.sql)
            .field("groups_query", &self.sessions.store.groups.as_ref().map(|query| &query.sql))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::TrustedProxies;

    const URL: &str = "mysql://site:SECRET@127.0.0.1/site";
    const QUERY: &str = "SELECT user, expires FROM sessions WHERE id = ?";

    #[test]
    fn mistakes_are_named_before_the_database_is_asked() {
        let error = |url, cookie: &str, query| SessionTable::new(url, cookie, query).unwrap_err();
        assert!(matches!(error("postgres://localhost/site", "sid", QUERY), SessionTableError::Url(_)));
        assert!(matches!(error("site", "sid", QUERY), SessionTableError::Url(_)));
        assert!(matches!(error(URL, "", QUERY), SessionTableError::Cookie(_)));
        assert!(matches!(error(URL, "s id", QUERY), SessionTableError::Cookie(_)));
        assert!(matches!(error(URL, "sid", "SELECT 1"), SessionTableError::NoParameter { query: "session" }));
        let groups = SessionTable::new(URL, "sid", QUERY).unwrap().groups_query("SELECT 1").unwrap_err();
        assert_eq!(groups, SessionTableError::NoParameter { query: "groups" });
    }

    #[test]
    fn debug_and_errors_show_no_password() {
        let table = SessionTable::new(URL, "sid", QUERY).unwrap();
        assert!(!format!("{table:?}").contains("SECRET"));
        for url in ["mysql://site:SECRET@:x/", "mysql://site:SECRET@host/db?pool_min=SOME", "site:SECRET@host/db"] {
            let error = SessionTable::new(url, "sid", QUERY).unwrap_err();
            assert!(!error.to_string().contains("SECRET"), "{error}");
        }
    }

    #[test]
    fn only_what_a_query_names_is_asked_for() {
        let request = http::Request::get("/").header("user-agent", "Agent/1").body(()).unwrap();
        let peer = Some("192.0.2.1:1".parse().unwrap());
        let handshake = Handshake::new(&request.into_parts().0, peer, &TrustedProxies::none());
        let plain = SessionTable::new(URL, "sid", QUERY).unwrap();
        let question = plain.question("s", &handshake);
        assert!(question.ip.is_none() && question.agent.is_none());
        let bound = SessionTable::new(URL, "sid", "SELECT user FROM sessions WHERE id = :id AND ip = :ip").unwrap();
        let bound = bound.groups_query("SELECT name FROM m WHERE user = :user AND agent = :agent").unwrap();
        let question = bound.question("s", &handshake);
        assert_eq!(question.ip, Some("192.0.2.1".parse().unwrap()));
        assert_eq!(question.agent.as_deref(), Some("Agent/1"));
    }
}
