//! Who a connection's client is: its authentication, how it gets to where all are, and the end of its session.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{
    Membership,
    call::{self, Call, Done},
    recovery::Arrival,
    task::{Connection, Phase},
    transport::Transport,
};
use crate::{AuthenticationError, auth::Identity, close::CloseCode};

/// The server's own actions.
pub(super) const AUTHENTICATION: &str = "Client/authentication";
pub(super) const DISCONNECTION: &str = "Client/disconnection";

/// The text of every 403.
pub(super) const FORBIDDEN: &str = "Forbidden";

/// Time between two questions to an authenticator that could not answer when a session's end had come, and how long
/// the connection is kept for it.
const RECHECK_INTERVAL: Duration = Duration::from_secs(5);
const RECHECK_TIMEOUT: Duration = Duration::from_secs(60);

/// The end of a session.
pub(super) struct Expiry {
    /// When to ask next whether it goes on.
    pub(super) at: Instant,
    /// Until when to go on without an answer, once the end has come.
    until: Option<Instant>,
    /// The question, while it is asked.
    pub(super) recheck: Option<Call<Result<Option<Identity>, AuthenticationError>>>,
}

impl<T: Transport> Connection<T> {
    /// `Client/authentication`: without credentials the handshake is looked at again, since its session may have got
    /// a user meanwhile.
    pub(super) fn authenticate(&mut self, credentials: Vec<serde_json::Value>) {
        if self.client().membership().user.is_some() {
            self.client().send(AUTHENTICATION, &["ok".into()]);
            return;
        }
        let (server, client) = (self.server.clone(), self.client().clone());
        self.work = Some(Box::pin(async move {
            let limit = server.config().connection.handshake_timeout;
            let answer = call::authenticate(server.authenticator(), &client.handshake, &credentials, limit).await;
            Done::Authenticated(answer, !credentials.is_empty())
        }));
    }

    pub(super) fn done(&mut self, done: Done) {
        self.work = None;
        if matches!(self.phase, Phase::Closing(_)) {
            return;
        }
        // While a handler ran nothing was read, so its time is no silence of the client's.
        self.hear();
        match done {
            Done::Handled => self.client().tell_changes(self.server.seals()),
            Done::Authenticated(Ok(Some(identity)), _) if identity.user.is_some() || self.server.guests() => {
                self.identify(identity);
            }
            Done::Authenticated(Ok(_), false) if !matches!(self.arrival, Arrival::Unwelcome(_)) => {
                self.client().send_error(AUTHENTICATION, 403, FORBIDDEN);
                self.recover();
            }
            Done::Authenticated(Ok(_), _) => self.refuse(),
            Done::Authenticated(Err(_), _) => {
                self.client().send_error(AUTHENTICATION, 503, "Service Unavailable");
                if matches!(self.arrival, Arrival::Undecided(_)) {
                    // As a guest it would lose its place in the order, for a fault that is not its own.
                    self.client().outbox.close(CloseCode::SessionUnknown, "nobody can say who this is");
                }
            }
        }
    }

    /// Makes the client who it turned out to be. It keeps groups and properties that handlers gave it as a guest.
    fn identify(&mut self, identity: Identity) {
        let user = identity.user.is_some();
        self.expire(identity.expires);
        let membership = Membership::of(identity);
        self.server.hub().change(self.client(), |own| own.identify(membership));
        if user {
            self.client().send(AUTHENTICATION, &["ok".into()]);
        } else {
            self.client().send_error(AUTHENTICATION, 403, FORBIDDEN);
        }
        if self.arrival.is_here() {
            self.client().tell_changes(self.server.seals());
            self.work = self.authenticated_handler();
        } else {
            self.recover();
        }
    }

    /// Lets a client that arrives have what is delivered, after what it missed where it keeps its position.
    pub(super) fn recover(&mut self) {
        let asked = match std::mem::replace(&mut self.arrival, Arrival::Here) {
            Arrival::Unwelcome(unwelcome) => unwelcome.asked,
            Arrival::Undecided(undecided) => Some(undecided.asked),
            arrival @ (Arrival::Recovering(_) | Arrival::Over | Arrival::Here) => return self.arrival = arrival,
        };
        match asked {
            Some(asked) => self.arrival = Arrival::recovering(&self.server, self.client(), asked),
            None => {
                self.server.hub().welcome(self.client());
                self.work = self.authenticated_handler();
            }
        }
    }

    /// The client has what it missed.
    pub(super) fn arrived(&mut self) {
        let arrival = std::mem::replace(&mut self.arrival, Arrival::Over);
        if self.client().outbox.is_sealed() {
            return;
        }
        self.arrival = Arrival::Here;
        self.hear();
        self.expect_word();
        self.work = self.authenticated_handler();
        if let Arrival::Recovering(recovering) = arrival
            && let Some(incoming) = recovering.deferred
        {
            // Of a guest, whom no handler is told of first.
            self.handle(incoming);
        }
    }

    /// Tells the application of a user.
    pub(super) fn authenticated_handler(&self) -> Option<Call<Done>> {
        self.client().membership().user.as_ref()?;
        let handler = self.server.handler(AUTHENTICATION)?;
        Some(call::handle(&self.server, self.client(), handler, AUTHENTICATION.to_owned(), Vec::new()))
    }

    /// Says that nobody may be here unauthenticated, and closes.
    pub(super) fn refuse(&mut self) {
        let action = format!("{AUTHENTICATION}:error");
        let details = [403.into(), FORBIDDEN.into()];
        self.client().close_after(&action, &details, CloseCode::Unauthenticated, FORBIDDEN);
        self.close();
    }

    pub(super) fn expire(&mut self, expires: Option<SystemTime>) {
        let left = expires.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        // A time that the clock cannot name never comes.
        let at = left.and_then(|left| Instant::now().checked_add(left));
        self.expiry = at.map(|at| Box::new(Expiry { at, until: None, recheck: None }));
    }

    /// Asks whether a session goes on whose end has come.
    pub(super) fn ask_again(&mut self, now: Instant) {
        let (server, client) = (self.server.clone(), self.client().clone());
        let Some(expiry) = &mut self.expiry else { return };
        expiry.until.get_or_insert(now + RECHECK_TIMEOUT);
        expiry.recheck = Some(Box::pin(async move {
            let limit = server.config().connection.handshake_timeout;
            call::authenticate(server.authenticator(), &client.handshake, &[], limit).await
        }));
    }

    pub(super) fn rechecked(&mut self, answer: Result<Option<Identity>, AuthenticationError>) {
        let client = self.registration.client();
        let Some(expiry) = &mut self.expiry else { return };
        expiry.recheck = None;
        let now = Instant::now();
        match answer {
            Ok(Some(identity)) if identity.user.as_deref() == client.membership().user.as_deref() => {
                self.expire(identity.expires);
            }
            Ok(_) => client.dismiss("the session ended"),
            Err(_) if expiry.until.is_some_and(|until| until <= now) => {
                client.outbox.close(CloseCode::SessionUnknown, "the session's end came, and nobody can say");
            }
            Err(_) => expiry.at = now + RECHECK_INTERVAL,
        }
    }
}
