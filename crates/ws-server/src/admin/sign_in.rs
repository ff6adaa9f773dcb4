//! Decides who may use the page. A browser has a session in a cookie, with a token against forged requests; a script
//! sends the key itself.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use http::{Method, StatusCode, header, request::Parts};
use parking_lot::Mutex;
use serde_json::json;

use super::{Answer, answer, counted, key::Secret, slow_down::SlowDown};
use crate::random::{self, hex};

/// Lifetime of a session.
const SESSION: Duration = Duration::from_secs(12 * 3600);
/// Maximum number of sessions. If one more begins, the session that would end first is removed.
const SESSIONS: usize = 1_000;
/// The header with the token. Pages of other sites cannot add it to a request.
const TOKEN: &str = "x-csrf-token";
/// The session of every request if there is no key.
const OPEN: &str = "open";

/// What a refusal says if the key is missing.
const MISSING: &str = "sign in first, or send `Authorization: Bearer KEY`";

pub(super) struct SignIn {
    secret: Secret,
    /// The hash of the key. If there is none, everyone who reaches the listener may use the page.
    key: Option<[u8; 32]>,
    /// When each session ends, by the hash of its id.
    sessions: Mutex<HashMap<[u8; 32], Instant>>,
    slow_down: Mutex<SlowDown>,
    cookie: String,
}

/// The sender of a request.
pub(super) struct Sender {
    pub(super) address: IpAddr,
    /// True if the request came over TLS, at least as far as the proxy.
    pub(super) is_secure: bool,
}

impl SignIn {
    /// Makes the sessions of a listener. The cookie's name contains `port`, because all listeners of a host share its
    /// cookies.
    pub(super) fn new(key: Option<&str>, port: u16) -> io::Result<Self> {
        let secret = Secret::new()?;
        let key = key.map(|key| secret.hash("key", key));
        let cookie = format!("ws_server_admin_{port}");
        Ok(Self { secret, key, sessions: Mutex::default(), slow_down: Mutex::default(), cookie })
    }

    /// Refuses a request to another host's name if there is no key. It must be called for every request.
    ///
    /// Without a key, only the `Host` header reveals DNS rebinding.
    pub(super) fn check_host(&self, head: &Parts) -> Result<(), Box<Answer>> {
        if self.key.is_some() || is_local_host(head) {
            return Ok(());
        }
        let why = "without --admin-key, the page is at localhost and 127.0.0.1 only";
        Err(answer::error(StatusCode::FORBIDDEN, why).into())
    }

    /// Lets a request through, or returns the refusal.
    pub(super) fn authorize(&self, head: &Parts, sender: &Sender) -> Result<(), Box<Answer>> {
        if let Some(presented) = bearer(head) {
            return self.check_key(presented, sender);
        }
        let session = self.session(head).ok_or_else(|| unauthorized(MISSING))?;
        let is_read = matches!(head.method, Method::GET | Method::HEAD);
        let token = head.headers.get(TOKEN).and_then(|token| token.to_str().ok());
        if !is_read && !token.is_some_and(|token| self.is_token(token, &session)) {
            let why = format!("the header {TOKEN} is missing or wrong: GET /admin/api/session tells it");
            return Err(answer::error(StatusCode::FORBIDDEN, &why).into());
        }
        Ok(())
    }

    /// Begins a session if the key is right.
    pub(super) fn sign_in(&self, presented: &str, sender: &Sender) -> Result<Answer, Box<Answer>> {
        if self.key.is_none() {
            return Ok(self.tell(OPEN));
        }
        self.check_key(presented.trim(), sender)?;
        let id = random::bytes::<32>();
        let id = id.map_err(|why| answer::error(StatusCode::INTERNAL_SERVER_ERROR, &why.to_string()))?;
        let id = hex(&id);
        self.begin(&id, Instant::now());
        let mut answer = self.tell(&id);
        answer::set(&mut answer, header::SET_COOKIE, &self.cookie(&id, SESSION, sender));
        Ok(answer)
    }

    /// Ends the session of a request.
    pub(super) fn sign_out(&self, head: &Parts, sender: &Sender) -> Answer {
        if let Some(session) = self.session(head) {
            self.sessions.lock().remove(&self.secret.hash("session", &session));
        }
        let mut answer = answer::json(StatusCode::OK, &json!({}));
        answer::set(&mut answer, header::SET_COOKIE, &self.cookie("", Duration::ZERO, sender));
        answer
    }

    /// Tells a page of a session the token that its orders need.
    pub(super) fn session_answer(&self, head: &Parts) -> Answer {
        match self.session(head) {
            Some(session) => self.tell(&session),
            None => answer::json(StatusCode::OK, &json!({ "csrf": null, "open": self.key.is_none() })),
        }
    }

    fn tell(&self, session: &str) -> Answer {
        let token = hex(&self.secret.hash("token", session));
        answer::json(StatusCode::OK, &json!({ "csrf": token, "open": self.key.is_none() }))
    }

    fn is_token(&self, presented: &str, session: &str) -> bool {
        let token = self.secret.hash("token", session);
        // Hashes are compared, so that the time reveals nothing about the token.
        self.secret.matches("compare", presented, &self.secret.hash("compare", &hex(&token)))
    }

    /// Returns the session that the request's cookie names, if it has not ended.
    fn session(&self, head: &Parts) -> Option<String> {
        if self.key.is_none() {
            return Some(OPEN.to_owned());
        }
        let cookies = head.headers.get_all(header::COOKIE).into_iter().filter_map(|line| line.to_str().ok());
        let pairs = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let mut ids = pairs.filter(|(name, _)| *name == self.cookie).map(|(_, id)| id);
        let (sessions, now) = (self.sessions.lock(), Instant::now());
        ids.find(|id| sessions.get(&self.secret.hash("session", id)).is_some_and(|end| *end > now)).map(str::to_owned)
    }

    fn begin(&self, id: &str, now: Instant) {
        let mut sessions = self.sessions.lock();
        sessions.retain(|_, end| *end > now);
        if sessions.len() >= SESSIONS {
            let first = sessions.iter().min_by_key(|(_, end)| **end).map(|(hash, _)| *hash);
            first.map(|first| sessions.remove(&first));
        }
        sessions.insert(self.secret.hash("session", id), now + SESSION);
    }

    /// Returns the header that sets the cookie, for the paths of the page only.
    fn cookie(&self, id: &str, life: Duration, sender: &Sender) -> String {
        let secure = if sender.is_secure { "; Secure" } else { "" };
        let (name, life) = (&self.cookie, life.as_secs());
        format!("{name}={id}; Path=/admin; Max-Age={life}; HttpOnly; SameSite=Strict{secure}")
    }

    fn check_key(&self, presented: &str, sender: &Sender) -> Result<(), Box<Answer>> {
        let Some(key) = &self.key else { return Ok(()) };
        let (address, now) = (counted(sender.address), Instant::now());
        // The lock is held until the key is compared, so that keys which arrive together are counted one by one.
        let mut slow_down = self.slow_down.lock();
        let wait = slow_down.wait(address, now);
        if (wait.is_none() || slow_down.look(address, now)) && self.secret.matches("key", presented, key) {
            slow_down.succeed(address, now);
            return Ok(());
        }
        if let Some(left_out) = slow_down.log(now) {
            let left_out = (left_out > 0).then_some(left_out);
            tracing::warn!(address = %sender.address, left_out, "the admin page was asked with a wrong key");
        }
        let Some(wait) = wait else {
            slow_down.fail(address, now);
            return Err(unauthorized("the key is wrong"));
        };
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let mut answer =
            answer::error(StatusCode::TOO_MANY_REQUESTS, &format!("too many wrong keys: try again in {seconds} s"));
        answer::set(&mut answer, header::RETRY_AFTER, &seconds.to_string());
        Err(answer.into())
    }
}

fn unauthorized(why: &str) -> Box<Answer> {
    let mut answer = answer::error(StatusCode::UNAUTHORIZED, why);
    answer::set(&mut answer, header::WWW_AUTHENTICATE, "Bearer");
    answer.into()
}

fn bearer(head: &Parts) -> Option<&str> {
    let (scheme, key) = head.headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
}

fn is_local_host(head: &Parts) -> bool {
    let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    // The text before an `@` is not part of the host.
    let host: Option<http::uri::Authority> = (!host.contains('@')).then(|| host.parse().ok()).flatten();
    host.as_ref().is_some_and(|host| {
        let host = host.host().trim_start_matches('[').trim_end_matches(']');
        host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback())
    })
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const KEY: &str = "0123456789abcdef";

    fn head(method: &str, headers: &[(&str, &str)]) -> Parts {
        let request = Request::builder().method(method).uri("/admin/api/state");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).unwrap().into_parts().0
    }

    fn sender() -> Sender {
        Sender { address: "192.0.2.1".parse().unwrap(), is_secure: false }
    }

    fn status(outcome: Result<(), Box<Answer>>) -> u16 {
        outcome.map_or_else(|refusal| refusal.status().as_u16(), |()| 200)
    }

    #[test]
    fn sessions_end_and_their_number_is_bounded() {
        let sign_in = SignIn::new(Some(KEY), 9100).unwrap();
        let now = Instant::now();
        let cookie = |id: &str| head("GET", &[("cookie", &format!("a=b; ws_server_admin_9100={id}"))]);
        sign_in.begin("old", now.checked_sub(SESSION).unwrap());
        assert!(sign_in.session(&cookie("old")).is_none());
        for number in 0..2 * SESSIONS {
            sign_in.begin(&number.to_string(), now + Duration::from_millis(number as u64));
        }
        assert_eq!(sign_in.sessions.lock().len(), SESSIONS);
        assert!(sign_in.session(&cookie("0")).is_none());
        assert!(sign_in.session(&cookie("1999")).is_some());
        let other_port = head("GET", &[("cookie", "ws_server_admin_9101=1999")]);
        assert!(sign_in.session(&other_port).is_none());
    }

    #[test]
    fn an_order_of_a_session_needs_its_token_and_one_with_the_key_does_not() {
        let sign_in = SignIn::new(Some(KEY), 9100).unwrap();
        sign_in.begin("id", Instant::now());
        let cookie = ("cookie", "ws_server_admin_9100=id");
        let token = hex(&sign_in.secret.hash("token", "id"));
        let of_another = hex(&sign_in.secret.hash("token", "other"));
        let ask = |method, headers: &[(&str, &str)]| status(sign_in.authorize(&head(method, headers), &sender()));
        assert_eq!(ask("GET", &[]), 401);
        assert_eq!(ask("GET", &[cookie]), 200);
        assert_eq!(ask("POST", &[cookie]), 403);
        assert_eq!(ask("POST", &[cookie, (TOKEN, &of_another)]), 403);
        assert_eq!(ask("POST", &[cookie, (TOKEN, &token)]), 200);
        assert_eq!(ask("POST", &[("authorization", &format!("Bearer {KEY}"))]), 200);
        assert_eq!(ask("POST", &[("authorization", "Bearer wrong")]), 401);
    }

    #[test]
    fn without_a_key_only_pages_of_this_machine_are_let_in() {
        let sign_in = SignIn::new(None, 9100).unwrap();
        let token = hex(&sign_in.secret.hash("token", OPEN));
        let ask = |method, headers: &[(&str, &str)]| {
            let head = head(method, headers);
            status(sign_in.check_host(&head).and_then(|()| sign_in.authorize(&head, &sender())))
        };
        for host in ["localhost:9100", "127.0.0.1:9100", "[::1]:9100", "LOCALHOST"] {
            assert_eq!(ask("GET", &[("host", host)]), 200, "{host}");
            assert_eq!(ask("POST", &[("host", host)]), 403, "{host}");
            assert_eq!(ask("POST", &[("host", host), (TOKEN, &token)]), 200, "{host}");
        }
        for host in ["evil.example:9100", "localhost.evil.example", "10.0.0.1", "evil.example@localhost:9100", ""] {
            assert_eq!(ask("GET", &[("host", host)]), 403, "{host}");
        }
    }

    #[test]
    fn the_right_key_is_taken_during_the_pause_after_wrong_ones() {
        let sign_in = SignIn::new(Some(KEY), 9100).unwrap();
        let ask = |key: &str| {
            let head = head("GET", &[("authorization", &format!("Bearer {key}"))]);
            status(sign_in.authorize(&head, &sender()))
        };
        let told: Vec<_> = (0..6).map(|_| ask("wrong")).collect();
        assert_eq!(told, [401, 401, 401, 401, 429, 429]);
        assert_eq!(ask(KEY), 200);
    }
}
