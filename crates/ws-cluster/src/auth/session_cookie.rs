//! The authenticator of an application that keeps its sessions in Rust: the name of a cookie and a look-up.
//! `session_table` handles sessions in the site's MySQL.

use std::{borrow::Cow, fmt, future::Future};

use async_trait::async_trait;
use percent_encoding::percent_decode_str;

use super::{AuthenticationError, Authenticator, Credentials, Handshake, Identity};

/// Maximum size of a session id that is looked up, in bytes. Every framework's ids are shorter (PHP allows 256).
const MAX_ID_SIZE: usize = 256;

/// Maximum number of cookies with one name that are looked at.
const MAX_COOKIES: usize = 3;

/// Maximum number of session ids that are looked up for one connection.
const MAX_LOOK_UPS: usize = 4;

/// Returns the session ids that the cookies of this name may mean, in the order of their look-ups: for each cookie the
/// value as it was sent, and the decoded value if that differs. There are at most 4, of the first 3 cookies, and each
/// consists of 1 to 256 bytes of ASCII without control characters.
pub(super) fn session_ids<'a>(handshake: &'a Handshake, cookie: &str) -> Vec<Cow<'a, str>> {
    let mut ids = Vec::new();
    for sent in handshake.cookies(cookie).take(MAX_COOKIES) {
        for id in [Some(Cow::Borrowed(sent)), decoded(sent)].into_iter().flatten() {
            let fit = (1..=MAX_ID_SIZE).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_control());
            if !fit {
                tracing::debug!(cookie, "the value of a session cookie is no session id");
            } else if ids.len() < MAX_LOOK_UPS && !ids.contains(&id) {
                ids.push(id);
            }
        }
    }
    ids
}

/// Returns the value without percent-encoding, or without Python's escapes such as `\054` for a comma. Returns `None`
/// if it has neither.
fn decoded(sent: &str) -> Option<Cow<'_, str>> {
    if sent.contains('\\') {
        return unescaped(sent).map(Cow::Owned);
    }
    let decoded = percent_decode_str(sent).decode_utf8().ok()?;
    (decoded != sent).then_some(decoded)
}

/// Undoes the escapes of Python's `http.cookies` in quoted values.
fn unescaped(sent: &str) -> Option<String> {
    let mut parts = sent.split('\\');
    let mut text = parts.next()?.to_owned();
    while let Some(part) = parts.next() {
        match (part.get(..3).map(|octal| u8::from_str_radix(octal, 8)), part) {
            // An escaped backslash.
            (_, "") => {
                text.push('\\');
                text.push_str(parts.next()?);
            }
            (Some(Ok(byte)), _) if byte.is_ascii() => {
                text.push(byte.into());
                text.push_str(&part[3..]);
            }
            _ => text.push_str(part),
        }
    }
    Some(text)
}

/// Identifies clients by a session cookie and the application's own look-up. The look-up returns the identity of a
/// session id, or `None` if there is no such session or it ran out. The identity's session is the cookie's value unless
/// the look-up sets another. Credentials that a client sends (`Client/authentication` with details) are always wrong.
///
/// The look-up is called at every upgrade and whenever an identity's `expires` has come, within the handshake's time
/// limit. It is called with the cookie's value as it was sent. If it knows no such session, it is called with the value
/// without percent-encoding, if that differs. Of several cookies of the name the first 3 are tried in the order sent,
/// with at most 4 look-ups in all. A value that is not 1 to 256 bytes of ASCII without control characters is no
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
    /// Returns an authenticator for the cookie of this name, with the look-up of its session id.
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
        if credentials.is_some() {
            return Ok(None);
        }
        for id in session_ids(handshake, &self.cookie) {
            if let Some(identity) = (self.look_up)(id.clone().into_owned()).await? {
                return Ok(Some(match identity.session {
                    Some(_) => identity,
                    None => identity.session(id),
                }));
            }
        }
        Ok(None)
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
    async fn a_value_that_is_no_id_is_not_looked_up() {
        assert!(ask(&format!("sid={}", "x".repeat(256)), None).await.is_some());
        assert!(ask(&format!("sid={}", "x".repeat(257)), None).await.is_none());
        assert!(ask("sid=", None).await.is_none());
        assert!(ask("sid=a\tb", None).await.is_none());
    }

    fn ids(cookie: &str) -> Vec<String> {
        session_ids(&handshake(cookie), "sid").into_iter().map(Cow::into_owned).collect()
    }

    #[test]
    fn a_cookie_is_asked_for_as_sent_and_then_decoded() {
        for (cookie, expected) in [
            ("sid=abc", &["abc"][..]),
            ("sid=e4%2Cd9", &["e4%2Cd9", "e4,d9"]),
            ("sid=q%2Bz/A%3D%3D", &["q%2Bz/A%3D%3D", "q+z/A=="]),
            ("sid=q+z/A==", &["q+z/A=="]),
            ("sid=\"e4d9\"", &["e4d9"]),
            (r#"sid="e4\054d9\"\\x""#, &[r#"e4\054d9\"\\x"#, r#"e4,d9"\x"#]),
            (" sid = e4 d9 ", &["e4 d9"]),
            ("sid=s%3Aid.signature", &["s%3Aid.signature", "s:id.signature"]),
            ("sid=100%", &["100%"]),
            ("sid=a%00b", &["a%00b"]),
            ("sid=%C3%A9", &["%C3%A9"]),
            ("sid=%FF", &["%FF"]),
            ("sid=", &[]),
        ] {
            assert_eq!(ids(cookie), expected, "{cookie}");
        }
    }

    #[test]
    fn the_first_of_repeated_cookies_are_asked_for_in_order() {
        assert_eq!(ids("sid=a; SID=x; sid=b; sid=a; sid=c"), ["a", "b"]);
        assert_eq!(ids("sid=a%2C; sid=b%2C; sid=c%2C; sid=d"), ["a%2C", "a,", "b%2C", "b,"]);
        assert_eq!(ids("sid=; sid=b"), ["b"]);
        assert_eq!(ids(&"sid=a; ".repeat(1_000)), ["a"]);
    }

    #[tokio::test]
    async fn a_later_cookie_counts_if_the_first_is_unknown() {
        assert_eq!(ask("sid=stale; sid=abc", None).await, Some(Identity::user("user of abc").session("abc")));
        assert_eq!(ask("sid=%73tale; sid=abc", None).await.unwrap().session.as_deref(), Some("%73tale"));
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
