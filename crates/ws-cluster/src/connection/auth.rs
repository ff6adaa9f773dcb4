//! Who a connection's client is: its authentication, how it gets to where all are, and the end of its session.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Application,
    context::{Call, Done, greets},
    questions::{Answer, Question, ask},
    rate_limit::{Rate, RateLimiter},
    task::{Connection, Phase},
    transport::Transport,
};
use crate::{
    CloseCode, RawDetails,
    hub::{
        Membership, Stale,
        resume::{JoinPhase, Step},
    },
};

/// The server's own actions.
pub(crate) const AUTHENTICATION: &str = "Client/authentication";
pub(crate) const DISCONNECTION: &str = "Client/disconnection";

/// The text of every 403.
pub(crate) const FORBIDDEN: &str = "Forbidden";

/// Time between two questions to an authenticator that could not answer when a session's end had come, and how long
/// the connection is kept for it.
const RECHECK_INTERVAL: Duration = Duration::from_secs(5);
const RECHECK_TIMEOUT: Duration = Duration::from_secs(60);

/// Times that a question is put if each answer was overtaken by a close or a refresh. Beyond, nobody can say who the
/// client is.
pub(crate) const ATTEMPTS: u32 = 3;

/// What only some connections have: the end of their session, and questions about who they are.
#[derive(Default)]
pub(super) struct Expiry {
    /// When to ask next.
    pub(super) at: Option<Instant>,
    /// When the session ends.
    ends: Option<Instant>,
    /// The question, while it is asked.
    pub(super) recheck: Option<Call<Answer>>,
    /// How often the client had the authenticator asked by its messages.
    asks: Option<RateLimiter>,
}

impl<T: Transport, A: Application> Connection<T, A> {
    /// `Client/authentication`. Without credentials the handshake is looked at again, since its session may have got a
    /// user meanwhile; a client that is known already is told who it is, and nobody is asked.
    pub(super) fn authenticate(&mut self, credentials: Vec<Value>) {
        if self.is_known() && credentials.is_empty() {
            return self.confirm();
        }
        let config = self.config();
        let rate = Rate { interval: config.authentication_interval, burst: config.authentication_burst };
        let now = Instant::now();
        let asks = &mut self.expiry.get_or_insert_default().asks;
        if !asks.get_or_insert_with(|| RateLimiter::new(now)).admit(rate, now) {
            return self.client().send_error(AUTHENTICATION, 429, "Too Many Requests");
        }
        self.ask(credentials, 1);
    }

    fn is_known(&self) -> bool {
        self.client().membership().user.is_some()
    }

    fn ask(&mut self, credentials: Vec<Value>, attempt: u32) {
        let (application, client) = (self.application.clone(), self.client().clone());
        self.work = Some(Box::pin(async move {
            let answer = ask(application.context(), &client.handshake, Question::of(&credentials)).await;
            Done::Authenticated { answer, credentials, attempt }
        }));
    }

    pub(super) fn done(&mut self, done: Done) {
        self.work = None;
        if matches!(self.phase, Phase::Closing(_)) {
            if let Done::Greeted { refusal, .. } = done {
                self.join_phase = if refusal.is_some() { JoinPhase::Refused } else { JoinPhase::Here };
            }
            return;
        }
        // While a handler ran nothing was read, so its time is no silence of the client's.
        self.hear();
        match done {
            Done::Handled => self.resumption().tell_changes(self.client()),
            Done::Greeted { refusal: None, confirm } => self.agreed(confirm),
            Done::Greeted { refusal: Some(error), .. } => {
                self.join_phase = JoinPhase::Refused;
                // A fault of the server's is no verdict on the client.
                let code = if error.code < 500 { CloseCode::Unauthenticated } else { CloseCode::Internal };
                self.refuse(error.code, &error.text, code);
            }
            Done::Authenticated { answer, credentials, attempt } => {
                let by_credentials = !credentials.is_empty();
                let applied = match self.is_known() {
                    true => self.renewed(answer),
                    false => self.authenticated(answer, by_credentials),
                };
                match applied {
                    Ok(()) => {}
                    // What was read before a close or a refresh does not count.
                    Err(Stale) if attempt < ATTEMPTS => self.ask(credentials, attempt + 1),
                    Err(Stale) => self.unavailable(),
                }
            }
        }
    }

    /// The authenticator's answer about a client without a user.
    fn authenticated(&mut self, answer: Answer, by_credentials: bool) -> Result<(), Stale> {
        match answer.identity {
            Ok(Some(identity)) if identity.user.is_some() || self.context().guests => {
                let expires = identity.expires;
                let user = identity.user.is_some();
                let identity = Membership::of(identity);
                self.context().hub.identify(self.client(), identity, answer.asked, Membership::identify)?;
                self.expire(expires, by_credentials);
                self.identified(user);
            }
            Ok(_) if !by_credentials && !matches!(self.join_phase, JoinPhase::Unwelcome(_)) => {
                self.client().send_error(AUTHENTICATION, 403, FORBIDDEN);
                self.recover();
            }
            Ok(_) => self.forbid(),
            Err(_) => self.unavailable(),
        }
        Ok(())
    }

    /// The answer about the fresh credentials of a client that has a user already. Only the same user's change anything.
    fn renewed(&mut self, answer: Answer) -> Result<(), Stale> {
        match answer.identity {
            Ok(Some(identity)) if identity.user.as_deref() == self.client().membership().user.as_deref() => {
                let expires = identity.expires;
                self.context().hub.refresh(self.client(), Membership::of(identity), answer.asked)?;
                self.expire(expires, true);
                self.confirm();
                self.resumption().tell_changes(self.client());
            }
            Ok(_) => self.client().send_error(AUTHENTICATION, 403, FORBIDDEN),
            Err(_) => self.unavailable(),
        }
        Ok(())
    }

    /// Says that nobody can say now who the client is. It stays who it was.
    fn unavailable(&mut self) {
        self.client().send_error(AUTHENTICATION, 503, "Service Unavailable");
        if matches!(self.join_phase, JoinPhase::Undecided(_)) {
            // As a guest it would lose its place in the order, for a fault that is not its own.
            self.client().queue.close(CloseCode::SessionUnknown, "nobody can say who this is");
        }
    }

    /// Tells a client that has a user who it is, and how long that counts.
    fn confirm(&self) {
        let client = self.client();
        let mut facts = json!({ "connection": client.known_as().to_string() });
        if let Some(user) = &client.membership().user {
            facts["user"] = (**user).into();
        }
        if let Some(ends) = self.expiry.as_ref().and_then(|expiry| expiry.ends) {
            facts["expires_in"] = ends.saturating_duration_since(Instant::now()).as_secs().into();
        }
        client.send(AUTHENTICATION, &["ok".into(), facts]);
    }

    /// The client is who it turned out to be. It keeps groups and properties that handlers gave it as a guest.
    fn identified(&mut self, user: bool) {
        if !user {
            self.client().send_error(AUTHENTICATION, 403, FORBIDDEN);
        }
        if self.join_phase.is_here() {
            self.greet(user);
        } else {
            self.come_in(user);
        }
    }

    /// Lets a client that arrives, and has answered who it is or need not, have what is delivered.
    pub(super) fn recover(&mut self) {
        self.come_in(false);
    }

    fn come_in(&mut self, confirm: bool) {
        let asked = match std::mem::replace(&mut self.join_phase, JoinPhase::Here) {
            JoinPhase::Unwelcome(unwelcome) => unwelcome.asked,
            JoinPhase::Undecided(undecided) => Some(undecided.asked),
            join_phase @ (JoinPhase::Greeting(_) | JoinPhase::Recovering(_) | JoinPhase::Refused | JoinPhase::Here) => {
                return self.join_phase = join_phase;
            }
        };
        match asked {
            Some(asked) => {
                let greets = greets(&self.application, self.client());
                self.join_phase = JoinPhase::recovering(self.resumption(), self.client(), asked, confirm, greets);
            }
            None => {
                self.context().hub.welcome(self.client());
                self.greet(confirm);
            }
        }
    }

    /// Asks the application whether a user may be here. `confirm`: the client waits for an answer.
    pub(super) fn greet(&mut self, confirm: bool) {
        let asks = greets(&self.application, self.client());
        match asks.then(|| self.application.dispatch(self.client(), AUTHENTICATION, RawDetails::default())) {
            Some(Ok(handled)) => {
                self.work = Some(Box::pin(async move { Done::Greeted { refusal: handled.await.err(), confirm } }));
            }
            Some(Err(_)) | None => self.agreed(confirm),
        }
    }

    /// The client may be here. It is sent what it missed.
    fn agreed(&mut self, confirm: bool) {
        if confirm {
            self.confirm();
        }
        match std::mem::replace(&mut self.join_phase, JoinPhase::Here) {
            JoinPhase::Greeting(mut recovering) => {
                if let Some(back) = recovering.back.take() {
                    recovering.call = self.resumption().replay(self.client(), back);
                }
                recovering.announced = true;
                self.join_phase = JoinPhase::Recovering(recovering);
            }
            join_phase => {
                self.join_phase = join_phase;
                self.resumption().tell_changes(self.client());
            }
        }
    }

    /// A client that keeps its position has come a step further.
    pub(super) fn came(&mut self, step: Step) {
        let join_phase = std::mem::replace(&mut self.join_phase, JoinPhase::Here);
        let JoinPhase::Recovering(mut recovering) = join_phase else { return };
        match step {
            Step::Admitted(back) => {
                // The application decides what becomes of the client's groups, and so of what it missed.
                let confirm = recovering.confirm;
                recovering.back = Some(back);
                self.join_phase = JoinPhase::Greeting(recovering);
                self.greet(confirm);
            }
            // Closed, it is not here, but the application knows of it.
            Step::Over if self.client().queue.is_sealed() => {}
            Step::Over => {
                self.hear();
                self.expect_word();
                if let Some(incoming) = recovering.deferred {
                    self.handle(incoming);
                }
            }
        }
    }

    /// Says that nobody may be here unauthenticated, and closes.
    pub(super) fn forbid(&mut self) {
        self.refuse(403, FORBIDDEN, CloseCode::Unauthenticated);
    }

    /// Answers `Client/authentication` with an error, and closes.
    fn refuse(&mut self, code: u16, text: &str, close: CloseCode) {
        let action = format!("{AUTHENTICATION}:error");
        let reason = if code == 403 { FORBIDDEN } else { "refused by the application" };
        self.client().close_after(&action, &[code.into(), text.into()], close, reason);
        self.close();
    }

    /// Notes until when the client is who it is, and when to ask again. The authenticator cannot be asked again about
    /// credentials, which are not kept, before the session ends.
    pub(super) fn expire(&mut self, expires: Option<SystemTime>, by_credentials: bool) {
        let now = Instant::now();
        let left = expires.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        // A time that the clock cannot name never comes.
        let ends = left.and_then(|left| now.checked_add(left));
        let recheck = if by_credentials { None } else { self.recheck_at(now) };
        let at = ends.into_iter().chain(recheck).min();
        let asks = self.expiry.as_mut().and_then(|expiry| expiry.asks.take());
        let needed = at.is_some() || asks.is_some();
        self.expiry = needed.then(|| Box::new(Expiry { at, ends, recheck: None, asks }));
    }

    /// When to ask again about a user whose session goes on. Connections that came at the same time spread by up to a
    /// fifth of the interval.
    fn recheck_at(&self, now: Instant) -> Option<Instant> {
        if !self.is_known() {
            return None;
        }
        let interval = self.context().recheck_interval()?;
        let mixed = (self.client().id.local ^ u64::from(self.timer)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let spread = interval / 5 * (mixed >> 48) as u32 / (1 << 16);
        now.checked_add(interval - spread)
    }

    /// Asks whether a session goes on, unless that is being asked.
    pub(super) fn ask_again(&mut self) {
        let (application, client) = (self.application.clone(), self.client().clone());
        let expiry = self.expiry.get_or_insert_default();
        // An answer that is under way does not count if a close or a refresh came meanwhile.
        expiry.recheck.get_or_insert_with(|| {
            Box::pin(async move { ask(application.context(), &client.handshake, Question::Again).await })
        });
    }

    pub(super) fn rechecked(&mut self, Answer { identity, asked }: Answer) {
        let Some(expiry) = &mut self.expiry else { return };
        expiry.recheck = None;
        let now = Instant::now();
        let client = self.registration.client().clone();
        match identity {
            Ok(Some(identity)) if identity.user.as_deref() == client.membership().user.as_deref() => {
                let expires = identity.expires;
                match self.context().hub.refresh(&client, Membership::of(identity), asked) {
                    Ok(()) => {
                        self.expire(expires, false);
                        self.resumption().tell_changes(&client);
                    }
                    Err(Stale) => self.ask_again(),
                }
            }
            Ok(_) => client.queue.close(CloseCode::Expired, "the session ended"),
            // The session goes on as far as anybody knows.
            Err(_) if expiry.ends.is_none_or(|ends| now < ends) => {
                let next = self.recheck_at(now).unwrap_or(now + RECHECK_INTERVAL);
                let Some(expiry) = &mut self.expiry else { return };
                expiry.at = Some(expiry.ends.map_or(next, |ends| ends.min(next)));
            }
            Err(_) if expiry.ends.is_some_and(|ends| ends + RECHECK_TIMEOUT <= now) => {
                client.queue.close(CloseCode::SessionUnknown, "the session's end came, and nobody can say");
            }
            Err(_) => expiry.at = Some(now + RECHECK_INTERVAL),
        }
    }
}
