//! The authenticator of an application that keeps its sessions in Rust: a cookie's name and a look-up. Sessions in
//! the site's MySQL are `session_table`'s.

use std::{fmt, future::Future};

use async_trait::async_trait;

use super::{AuthenticationError, Authenticator, Credentials, Handshake, Identity};

/// Longest session id that is looked up, in bytes: more than any framework makes (PHP allows 256).
const LONGEST_ID: usize = 256;

/// The session id in a cookie, where it is fit to be looked up: 1 to 256 bytes of ASCII without control characters.
pub(super) fn session_id<'a>(handshake: &'a Handshake, cookie: &str) -> Option<&'a str> {
    let id = handshake.cookie(cookie)?;
    let fit =
        (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_control());
    if !fit {
        tracing::debug!(cookie, "a session cookie whose value is no session id");
    }
    fit.then_some(id)
}

/// Tells who a connection is by a session cookie and the application's own look-up, which answers the identity of a
/// session id, or `None` where there is no such session (or it ran out). The identity's session is the cookie's
/// value unless the look-up sets another. Credentials that a client sends (`Client/authentication` with details) are
/// not known to it, and so wrong.
///
/// The look-up is asked at every upgrade and whenever an identity's `expires` has come, within the handshake's time
/// limit; the cookie's value is 1 to 256 bytes of ASCII without control characters, not decoded; other values are no
/// session.
///
/// ```
/// use ws_cluster::{Identity, SessionCookie};
///
/// let authenticator = SessionCookie::new("session", |id: String| async move {
///     Ok((id == "e4d909").then(|| Identity::user("alice").groups(["editors"])))
/// });
/// ```
#[derive(Clone)]
pub struct SessionCookie<L> {
    cookie: String,
    look_up: L,
}

impl<L, F> SessionCookie<L>
where
    L: Fn(String) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Option<Identity>, AuthenticationError>> + Send,
{
    /// With the cookie of this name, and the look-up of the session id in it.
    pub fn new(cookie: impl Into<String>, look_up: L) -> Self {
        Self { cookie: cookie.into(), look_up }
    }
}

#[async_trait]
impl<L, F> Authenticator for SessionCookie<L>
where
    L: Fn(String) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Option<Identity>, AuthenticationError>> + Send,
{
    async fn authenticate(
        &self,
        handshake: &Handshake,
        credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        let (Some(id), None) = (session_id(handshake, &self.cookie), credentials) else { return Ok(None) };
        let identity = (self.look_up)(id.to_owned()).await?;
        Ok(identity.map(|identity| match identity.session {
            Some(_) => identity,
            None => identity.session(id),
        }))
    }
}

impl<L> fmt::Debug for SessionCookie<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionCookie").field("cookie", &self.cookie).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::auth::TrustedProxies;

    fn handshake(cookie: &str) -> Handshake {
        let request = http::Request::get("/").header("cookie", cookie).body(()).unwrap();
        Handshake::new(&request.into_parts().0, None, &TrustedProxies::none())
    }

    async fn ask(cookie: &str, credentials: Option<Credentials<'_>>) -> Option<Identity> {
        let authenticator = SessionCookie::new("sid", |id: String| async move {
            assert!(!id.is_empty() && id.len() <= 256);
            Ok((id != "stale").then(|| Identity::user(format!("user of {id}"))))
        });
        authenticator.authenticate(&handshake(cookie), credentials).await.unwrap()
    }

    #[tokio::test]
    async fn a_known_session_names_its_user() {
        assert_eq!(ask("sid=abc", None).await, Some(Identity::user("user of abc").session("abc")));
        assert_eq!(ask("sid=stale", None).await, None);
        assert_eq!(ask("other=abc", None).await, None);
    }

    #[tokio::test]
    async fn what_is_no_id_is_not_looked_up() {
        assert!(ask(&format!("sid={}", "x".repeat(256)), None).await.is_some());
        assert!(ask(&format!("sid={}", "x".repeat(257)), None).await.is_none());
        assert!(ask("sid=", None).await.is_none());
        assert!(ask("sid=a\tb", None).await.is_none());
    }

    #[tokio::test]
    async fn credentials_are_unknown_to_it() {
        assert!(ask("sid=abc", Some(Credentials(&[json!("abc")]))).await.is_none());
    }

    #[tokio::test]
    async fn the_look_up_may_name_another_session() {
        let authenticator =
            SessionCookie::new("sid", |_: String| async { Ok(Some(Identity::user("7").session("inner"))) });
        let identity = authenticator.authenticate(&handshake("sid=abc"), None).await.unwrap().unwrap();
        assert_eq!(identity.session.as_deref(), Some("inner"));
    }
}
