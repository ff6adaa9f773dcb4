//! Who a connection's client is: its authentication, its join, and the end of its session.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Application,
    closing::Phase,
    context::{Call, Done, asks_application},
    questions::{Answer, ask, reason},
    rate_limit::{Rate, RateLimiter},
    task::Connection,
    transport::Transport,
};
use crate::{
    CloseCode,
    auth::{AuthenticationError, InquiryReason, Validity},
    hub::{
        Membership, Stale,
        resume::{JoinPhase, ResumeRequest, Step},
    },
    message::request_id::AwaitedAnswer,
};

/// The actions that the server itself handles or starts.
pub(crate) const AUTHENTICATION: &str = "Client/authentication";
pub(crate) const DISCONNECTION: &str = "Client/disconnection";

/// The text of every 403.
pub(crate) const FORBIDDEN: &str = "Forbidden";

/// If a session has ended and the authenticator cannot answer: time until it is asked again, and time for which the
/// connection is kept. Before the end, that time is longer if there are many connections, and has a random part.
const RECHECK_INTERVAL: Duration = Duration::from_secs(5);
const RECHECK_TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum lead before an identity ends at which the server asks about it again. A random part of up to the same length
/// is added.
const REFRESH_LEAD: Duration = Duration::from_secs(60);

/// Shortest wait until that question. An identity that lasts less than 2 s may be asked about only when it ends.
const SOONEST_REFRESH: Duration = Duration::from_secs(1);

/// An identity whose end has moved by less than this was not extended. The two clocks may differ a little.
const EXTENDED_BY: Duration = Duration::from_secs(1);

/// Shortest time between two renewals that do not count as attempts to authenticate.
const SOONEST_RENEWAL: Duration = Duration::from_millis(500);

/// Number of attempts if a close or refresh invalidates each answer. After that, the client counts as unknown.
pub(crate) const ATTEMPTS: u32 = 3;

/// The end of the session, and the rechecks of the client. Boxed, since only some connections have it.
#[derive(Default)]
pub(super) struct Expiry {
    /// The time of the next recheck.
    pub(super) at: Option<Instant>,
    /// The time at which the session ends.
    ends: Option<Instant>,
    /// The time of the early question about the end.
    refresh: Option<Instant>,
    /// The time of the answer that set the end, or of the last attempt to renew it that did not count.
    begun: Option<Instant>,
    /// The interval of rechecks that came with the identity.
    interval: Option<Duration>,
    /// The recheck, while it runs.
    pub(super) recheck: Option<Call<Answer>>,
    /// The limit on how often the client may make the server ask the authenticator.
    asks: Option<RateLimiter>,
}

impl<T: Transport, A: Application> Connection<T, A> {
    /// Handles `Client/authentication`. Without credentials the handshake is checked again, because its session may
    /// have got a user meanwhile. If the client already has a user, it only gets the answer who it is. `is_fresh`: the
    /// authenticator has just been asked about the handshake, at the upgrade.
    pub(super) fn authenticate(&mut self, credentials: Vec<Value>, is_fresh: bool, awaited: AwaitedAnswer) {
        if credentials.is_empty() && self.is_known() {
            return self.confirm(&awaited);
        }
        if credentials.is_empty() && is_fresh {
            return self.stays_guest(&awaited);
        }
        let config = self.config();
        let rate = Rate { interval: config.authentication_interval, burst: config.authentication_burst };
        let now = Instant::now();
        let is_known = self.is_known();
        let expiry = self.expiry.get_or_insert_default();
        // Credentials that last a few seconds are renewed more often than strangers may try.
        let is_renewal = is_known && expiry.takes_renewal(now);
        let asks = expiry.asks.get_or_insert_with(|| RateLimiter::new(now));
        if !is_renewal && !asks.admit(rate, now) {
            return self.client().send_error(AUTHENTICATION, 429, "Too Many Requests", awaited.take());
        }
        self.ask(credentials, 1, awaited);
    }

    fn is_known(&self) -> bool {
        self.client().membership().user.is_some()
    }

    fn ask(&mut self, credentials: Vec<Value>, attempt: u32, awaited: AwaitedAnswer) {
        let (application, client) = (self.application.clone(), self.client().clone());
        self.work = Some(Box::pin(async move {
            let (handshake, connection) = (&client.handshake, client.known_as());
            let answer = ask(application.context(), handshake, connection, reason(&credentials)).await;
            Done::Authenticated { answer, credentials, attempt, awaited }
        }));
    }

    pub(super) fn done(&mut self, done: Done) {
        self.work = None;
        if matches!(self.phase, Phase::Closing(_)) {
            if let Done::Announced { refusal, .. } = done {
                self.join_phase = if refusal.is_some() { JoinPhase::Refused } else { JoinPhase::Joined };
            }
            return;
        }
        // Messages were not read while the handler ran, so the client was not silent.
        self.note_activity();
        match done {
            Done::Handled => self.resumption().send_new_token(self.client()),
            Done::Announced { refusal: None, confirm } => self.accepted_by_application(confirm),
            Done::Announced { refusal: Some(error), confirm } => {
                self.join_phase = JoinPhase::Refused;
                // An error of the server says nothing about the client.
                let close = if error.code < 500 { CloseCode::Unauthenticated } else { CloseCode::Internal };
                let reason = if error.code == 403 { FORBIDDEN } else { "refused by the application" };
                self.refuse((error.code, &error.text), (close, reason), &confirm.unwrap_or_default());
            }
            Done::Authenticated { answer, credentials, attempt, awaited } => {
                let by_credentials = !credentials.is_empty();
                let applied = match self.is_known() {
                    true => self.reauthenticated(answer, &awaited),
                    false => self.authenticated(answer, by_credentials, &awaited),
                };
                match applied {
                    Ok(()) => {}
                    // An answer from before a close or a refresh does not count.
                    Err(Stale) if attempt < ATTEMPTS => self.ask(credentials, attempt + 1, awaited),
                    Err(Stale) => self.unavailable(by_credentials, &awaited),
                }
            }
        }
    }

    /// Applies the authenticator's answer about a client without a user.
    fn authenticated(&mut self, answer: Answer, by_credentials: bool, awaited: &AwaitedAnswer) -> Result<(), Stale> {
        match answer.identity {
            Ok(Some(identity)) if identity.user.is_some() || self.context().guests => {
                let validity = identity.validity();
                let user = identity.user.is_some();
                let identity = Membership::of(identity);
                self.context().hub.identify(self.client(), identity, answer.asked_at, Membership::identify)?;
                self.expire(validity, by_credentials);
                self.identified(user, awaited);
            }
            Ok(_) if !by_credentials => self.stays_guest(awaited),
            Ok(_) | Err(AuthenticationError::Refused) => self.forbid(awaited),
            Err(_) => self.unavailable(by_credentials, awaited),
        }
        Ok(())
    }

    /// Tells a client without credentials that it is a guest. It is closed if guests are not welcome.
    fn stays_guest(&mut self, awaited: &AwaitedAnswer) {
        if matches!(self.join_phase, JoinPhase::Unauthenticated(_)) {
            return self.forbid(awaited);
        }
        self.client().send_error(AUTHENTICATION, 403, FORBIDDEN, awaited.take());
        self.join(None);
    }

    /// Applies the answer about fresh credentials of a client with a user. Credentials of another user change nothing.
    fn reauthenticated(&mut self, answer: Answer, awaited: &AwaitedAnswer) -> Result<(), Stale> {
        match answer.identity {
            Ok(Some(identity)) if identity.user.as_deref() == self.client().membership().user.as_deref() => {
                let validity = identity.validity();
                self.context().hub.refresh(self.client(), Membership::of(identity), answer.asked_at)?;
                self.expire(validity, true);
                self.confirm(awaited);
                self.resumption().send_new_token(self.client());
            }
            Ok(_) | Err(AuthenticationError::Refused) => {
                self.client().send_error(AUTHENTICATION, 403, FORBIDDEN, awaited.take());
            }
            Err(_) => self.unavailable(true, awaited),
        }
        Ok(())
    }

    /// Tells the client that the authenticator cannot answer now. A client with a user stays who it was, and so does a
    /// guest that has joined and sent no credentials. Any other client is closed and comes again: as a guest it would lose its place
    /// in the order and would act without its user, and a server without guests would dismiss it, although the fault
    /// is not its own.
    fn unavailable(&mut self, by_credentials: bool, awaited: &AwaitedAnswer) {
        let error = (503, "Service Unavailable");
        if self.is_known() || self.join_phase.is_joined() && !by_credentials {
            return self.client().send_error(AUTHENTICATION, error.0, error.1, awaited.take());
        }
        self.refuse(error, (CloseCode::SessionUnknown, "this client cannot be identified at present"), awaited);
    }

    /// Closes a client that has not authenticated in time. Its credentials may only be late, so it comes again.
    pub(super) fn too_late(&self) {
        self.client().queue.close(CloseCode::SessionUnknown, "no credentials in time");
    }

    /// Tells a client with a user who it is, and for how long.
    fn confirm(&self, awaited: &AwaitedAnswer) {
        let client = self.client();
        let mut facts = json!({ "connection": client.known_as().to_string() });
        if let Some(user) = &client.membership().user {
            facts["user"] = (**user).into();
        }
        if let Some(ends) = self.expiry.as_ref().and_then(|expiry| expiry.ends) {
            facts["expires_in"] = ends.saturating_duration_since(Instant::now()).as_secs().into();
        }
        client.answer(AUTHENTICATION, &["ok".into(), facts], awaited.take());
    }

    /// Continues after the client has been identified. The client keeps groups and properties that handlers gave it as
    /// a guest.
    fn identified(&mut self, user: bool, awaited: &AwaitedAnswer) {
        if !user {
            self.client().send_error(AUTHENTICATION, 403, FORBIDDEN, awaited.take());
        }
        let confirm = user.then(|| awaited.clone());
        if self.join_phase.is_joined() {
            self.announce(confirm);
        } else {
            self.join(confirm);
        }
    }

    /// Lets a client join, and replays what it missed if it resumes. `confirm`: the answer that the client waits for.
    pub(super) fn join(&mut self, confirm: Option<AwaitedAnswer>) {
        let asked = match std::mem::replace(&mut self.join_phase, JoinPhase::Joined) {
            JoinPhase::Unauthenticated(unauthenticated) => unauthenticated.asked,
            JoinPhase::Undecided(undecided) => Some(undecided.asked),
            join_phase @ (JoinPhase::Announcing(_)
            | JoinPhase::Resuming(_)
            | JoinPhase::Refused
            | JoinPhase::Joined) => {
                return self.join_phase = join_phase;
            }
        };
        let asks_application = asks_application(&self.application, self.client());
        let asked = match asked {
            // Nothing is delivered to it before the application agrees.
            None if asks_application => Some(ResumeRequest::untracked(self.context().hub.position())),
            asked => asked,
        };
        match asked {
            Some(asked) => {
                self.join_phase =
                    JoinPhase::resuming(self.resumption(), self.client(), asked, confirm, asks_application);
            }
            None => {
                self.context().hub.begin_delivery(self.client());
                self.announce(confirm);
            }
        }
    }

    /// Asks the application whether a user may join. `confirm`: the answer that the client waits for.
    pub(super) fn announce(&mut self, confirm: Option<AwaitedAnswer>) {
        let asks = asks_application(&self.application, self.client());
        let (details, awaited) = Default::default();
        match asks.then(|| self.application.dispatch(self.client(), AUTHENTICATION, details, awaited)) {
            Some(Ok(handled)) => {
                self.work = Some(Box::pin(async move { Done::Announced { refusal: handled.await.err(), confirm } }));
            }
            Some(Err(_)) | None => self.accepted_by_application(confirm),
        }
    }

    /// Continues after the application has accepted the client. The client is sent what it missed.
    fn accepted_by_application(&mut self, confirm: Option<AwaitedAnswer>) {
        if let Some(awaited) = &confirm {
            self.confirm(awaited);
        }
        match std::mem::replace(&mut self.join_phase, JoinPhase::Joined) {
            JoinPhase::Announcing(mut resuming) => {
                if let Some(back) = resuming.back.take() {
                    resuming.call = self.resumption().replay(self.client(), back);
                }
                resuming.announced = true;
                self.join_phase = JoinPhase::Resuming(resuming);
            }
            join_phase => {
                self.join_phase = join_phase;
                self.resumption().send_new_token(self.client());
            }
        }
    }

    /// Continues after a step of a client that resumes.
    pub(super) fn step_done(&mut self, step: Step) {
        let join_phase = std::mem::replace(&mut self.join_phase, JoinPhase::Joined);
        let JoinPhase::Resuming(mut resuming) = join_phase else { return };
        match step {
            Step::Admitted(back) => {
                // The application may change the client's groups, and so what the client missed.
                let confirm = resuming.confirm.take();
                resuming.back = Some(back);
                self.join_phase = JoinPhase::Announcing(resuming);
                self.announce(confirm);
            }
            // The client is closed and does not join, but the application knows of it.
            Step::Over if self.client().queue.is_sealed() => {}
            Step::Over => {
                self.note_activity();
                self.schedule_heartbeat();
                if let Some(incoming) = resuming.deferred {
                    self.handle(incoming);
                }
            }
        }
    }

    /// Refuses an unauthenticated client and closes.
    pub(super) fn forbid(&mut self, awaited: &AwaitedAnswer) {
        self.refuse((403, FORBIDDEN), (CloseCode::Unauthenticated, FORBIDDEN), awaited);
    }

    /// Answers `Client/authentication` with an error, and closes.
    fn refuse(&mut self, (code, text): (u16, &str), close: (CloseCode, &'static str), awaited: &AwaitedAnswer) {
        let (action, (close, reason)) = (format!("{AUTHENTICATION}:error"), close);
        self.client().close_after(&action, &[code.into(), text.into()], awaited.take(), close, reason);
        self.close();
    }

    /// Notes until when the client's identity is valid, and when to recheck it. An identity from credentials cannot be
    /// rechecked before the session ends, because credentials are not kept.
    pub(super) fn expire(&mut self, Validity { expires, recheck: interval }: Validity, by_credentials: bool) {
        let now = Instant::now();
        let left = expires.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        // A time beyond the range of the clock never comes.
        let ends = left.and_then(|left| now.checked_add(left));
        let (recheck, refresh) = match by_credentials {
            true => (None, None),
            false => (self.next_recheck(interval, now), ends.and_then(|ends| self.next_refresh(ends, now))),
        };
        let at = ends.into_iter().chain(recheck).chain(refresh).min();
        let asks = self.expiry.as_mut().and_then(|expiry| expiry.asks.take());
        let needed = at.is_some() || asks.is_some();
        let before = self.expiry.as_ref().filter(|expiry| ends.is_some_and(|ends| !expiry.is_extended(ends)));
        let begun = before.and_then(|before| before.begun).or(Some(now));
        self.expiry = needed.then(|| Box::new(Expiry { at, ends, refresh, begun, interval, recheck: None, asks }));
    }

    /// Returns the time of the next recheck of a user. Rechecks of connections that came at the same time are spread
    /// over a fifth of the interval.
    fn next_recheck(&self, interval: Option<Duration>, now: Instant) -> Option<Instant> {
        if !self.is_known() {
            return None;
        }
        let interval = self.context().recheck_interval(interval)?;
        let spread = (interval / 5).mul_f64(self.fraction());
        now.checked_add(interval - spread)
    }

    /// Returns the time to ask about an identity before it ends, so that one that the site extends does not end. An answer
    /// that came earlier and did not extend it leaves that time. After it, the next question is at the end.
    fn next_refresh(&self, ends: Instant, now: Instant) -> Option<Instant> {
        if let Some(before) = self.expiry.as_ref().filter(|expiry| !expiry.is_extended(ends)) {
            let refresh = before.refresh.filter(|at| *at > now)?;
            if refresh < ends {
                return Some(refresh);
            }
        }
        // With many connections, the limit on questions per second needs a longer lead.
        let longest = REFRESH_LEAD.max(self.context().recheck_round());
        Some(now + refresh_wait(ends.saturating_duration_since(now), longest, self.fraction())?)
    }

    /// Returns the time to ask again after a question without an answer. Connections that failed together are not asked
    /// about together, and all of them no more often than the node may ask.
    fn next_attempt(&self, now: Instant) -> Instant {
        let wait = RECHECK_INTERVAL.max(self.context().recheck_round());
        now + wait + (wait / 5).mul_f64(self.fraction())
    }

    /// Returns a number from 0 to 1 that differs between connections and times.
    fn fraction(&self) -> f64 {
        let mixed = (self.client().id.local ^ u64::from(self.timer)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 48) as f64 / f64::from(1 << 16)
    }

    /// Asks the authenticator if the session is still valid, unless that question is under way.
    pub(super) fn recheck(&mut self) {
        let (application, client) = (self.application.clone(), self.client().clone());
        let expiry = self.expiry.get_or_insert_default();
        // If a close or a refresh comes meanwhile, the answer that is under way does not count.
        expiry.recheck.get_or_insert_with(|| {
            Box::pin(async move {
                let (user, session) = {
                    let membership = client.membership();
                    (membership.user.clone(), membership.session.clone())
                };
                let known = InquiryReason::Recheck { user: user.as_deref(), session: session.as_deref() };
                ask(application.context(), &client.handshake, client.known_as(), known).await
            })
        });
    }

    pub(super) fn recheck_done(&mut self, Answer { identity, asked_at }: Answer) {
        let Some(expiry) = &mut self.expiry else { return };
        expiry.recheck = None;
        let now = Instant::now();
        let client = self.handle.client().clone();
        match identity {
            Ok(Some(identity)) if identity.user.as_deref() == client.membership().user.as_deref() => {
                let validity = identity.validity();
                match self.context().hub.refresh(&client, Membership::of(identity), asked_at) {
                    Ok(()) => {
                        self.expire(validity, false);
                        self.resumption().send_new_token(&client);
                    }
                    Err(Stale) => self.recheck(),
                }
            }
            Ok(_) | Err(AuthenticationError::Refused) => client.queue.close(CloseCode::Expired, "the session ended"),
            // The session is valid as far as is known.
            Err(_) if expiry.ends.is_none_or(|ends| now < ends) => {
                let interval = expiry.interval;
                let next = self.next_recheck(interval, now).unwrap_or_else(|| self.next_attempt(now));
                let Some(expiry) = &mut self.expiry else { return };
                expiry.at = Some(expiry.ends.map_or(next, |ends| ends.min(next)));
            }
            Err(_) if expiry.ends.is_some_and(|ends| ends + RECHECK_TIMEOUT <= now) => {
                client.queue.close(CloseCode::SessionUnknown, "the session's end came, and it cannot be rechecked");
            }
            Err(_) => expiry.at = Some(now + RECHECK_INTERVAL),
        }
    }
}

impl Expiry {
    /// Returns true if an identity that lasts until `ends` lasts longer than before, or had no end.
    fn is_extended(&self, ends: Instant) -> bool {
        self.ends.is_none_or(|before| ends >= before + EXTENDED_BY)
    }

    /// Returns true if credentials that come now renew an identity in time: after a third of its time, or of the time
    /// that was left at the last such renewal. The clients send theirs in the second half.
    fn takes_renewal(&mut self, now: Instant) -> bool {
        let (Some(begun), Some(ends)) = (self.begun, self.ends) else { return false };
        let soonest = (ends.saturating_duration_since(begun) / 3).max(SOONEST_RENEWAL);
        let takes = now.saturating_duration_since(begun) >= soonest;
        if takes {
            self.begun = Some(now);
        }
        takes
    }
}

/// Returns the wait before the next question about an identity that lasts `left`. `fraction` (0 to 1) spreads clients.
/// The question comes early enough to be asked again. `None` if the wait would be too short.
pub(super) fn refresh_wait(left: Duration, longest: Duration, fraction: f64) -> Option<Duration> {
    let lead = (left / 4).min(longest).mul_f64(1.0 + fraction);
    Some(left.saturating_sub(lead)).filter(|wait| *wait >= SOONEST_REFRESH)
}
