//! The task of one connection. It alone reads and writes the socket; handlers run as its futures, so that they keep
//! the order of the client's messages and hold back nobody else.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    Client, Membership, Stream,
    call::{self, Call, wait},
    decoder::{Broken, Decoder, Event},
    frame,
    pace::Pace,
    recovery::{Arrival, Asked, recover},
    socket::{Progress, Socket},
};
use crate::{
    AuthenticationError, ConnectionConfig, Server,
    auth::Identity,
    close::CloseCode,
    hub::{Registration, Slot},
    wire::client::{Incoming, Malformed, parse},
};

/// The server's own actions.
const AUTHENTICATION: &str = "Client/authentication";
const DISCONNECTION: &str = "Client/disconnection";

/// The text of every 403.
const FORBIDDEN: &str = "Forbidden";

/// Time between two questions to an authenticator that could not answer when a session's end had come, and how long
/// the connection is kept for it.
const RECHECK_INTERVAL: Duration = Duration::from_secs(5);
const RECHECK_TIMEOUT: Duration = Duration::from_secs(60);

/// What the upgrade found out about a client.
pub(crate) struct Accepted {
    pub(crate) client: Arc<Client>,
    pub(crate) registration: Registration,
    pub(crate) expires: Option<SystemTime>,
    /// It may be here as who it is; otherwise it has to authenticate first.
    pub(crate) welcome: bool,
    /// What a client that keeps its position brings along.
    pub(crate) asked: Option<Asked>,
    /// The place among the allowed connections, given back at the very end.
    pub(crate) slot: Slot,
}

/// Serves a client from its first byte (`leftover` came with the upgrade request) until it is gone and its last
/// handler has ended.
pub(crate) async fn serve<S: Stream>(server: Server, accepted: Accepted, stream: S, leftover: Bytes) {
    let Accepted { client, registration, expires, welcome, asked, slot } = accepted;
    let arrival = Arrival::new(&server, &client, welcome, asked);
    let mut connection = Connection::new(server, client, registration, stream, arrival);
    connection.expire(expires);
    if !leftover.is_empty() {
        connection.decoder.feed(&leftover);
    }
    if let Err(error) = connection.run().await {
        tracing::debug!(connection = %connection.client.id, %error, "a client's socket failed");
    }
    connection.end().await;
    drop(slot);
}

struct Connection<S> {
    server: Server,
    client: Arc<Client>,
    registration: Registration,
    socket: Socket<S>,
    decoder: Decoder,
    pace: Pace,
    phase: Phase,
    /// What the client's last message set going. Nothing is read while there is one.
    work: Option<Call<Done>>,
    /// The question whether a session goes on.
    recheck: Option<Call<Result<Option<Identity>, AuthenticationError>>>,
    expiry: Option<Expiry>,
    /// The client has spoken, and so decided its dialect.
    spoke: bool,
    heard: Instant,
    /// When the ping went out that nothing has answered.
    pinged: Option<Instant>,
    /// Messages are too frequent: read on then.
    paused: Option<Instant>,
    arrival: Arrival,
    /// A message that came before its client was here, to be handled once it is.
    deferred: Option<Box<Incoming>>,
}

enum Phase {
    Open,
    /// A close frame is on its way or sent; what the client still sends is passed over.
    Closing {
        /// The socket is dropped then.
        until: Instant,
        /// The client's close frame came.
        answered: bool,
        /// Its bytes make no sense any more, so no close frame can come.
        broken: bool,
    },
}

/// What a client's message led to.
enum Done {
    Handled,
    Authenticated(Result<Option<Identity>, AuthenticationError>, /* with credentials */ bool),
}

struct Expiry {
    /// When to ask next.
    at: Instant,
    /// Until when to go on without an answer, once the session's end has come.
    until: Option<Instant>,
}

enum Wake {
    Socket(io::Result<Progress>),
    Done(Done),
    Rechecked(Result<Option<Identity>, AuthenticationError>),
    Recovered,
    Outbox,
    Timer,
}

impl<S: Stream> Connection<S> {
    fn new(server: Server, client: Arc<Client>, registration: Registration, stream: S, arrival: Arrival) -> Self {
        let now = Instant::now();
        let config = &server.config().connection;
        Self {
            decoder: Decoder::new(config.message_size),
            pace: Pace::new(config.messages_per_second, config.message_burst, now),
            server,
            client,
            registration,
            socket: Socket::new(stream),
            phase: Phase::Open,
            work: None,
            recheck: None,
            expiry: None,
            spoke: false,
            heard: now,
            pinged: None,
            paused: None,
            arrival,
            deferred: None,
        }
    }

    fn config(&self) -> &ConnectionConfig {
        &self.server.config().connection
    }

    /// Until the socket is done with.
    async fn run(&mut self) -> io::Result<()> {
        match self.arrival {
            Arrival::Here => self.work = self.authenticated_handler(),
            Arrival::Unwelcome { .. } if !self.server.authenticator().in_band() => self.refuse(),
            _ => {}
        }
        let mut timer = std::pin::pin!(sleep_until(self.deadline()));
        loop {
            self.read_messages();
            if matches!(self.phase, Phase::Open) && self.client.outbox.is_sealed() {
                self.close(false);
            }
            if let Phase::Closing { until, answered, broken } = self.phase
                && (answered || broken)
                && self.is_written()
            {
                // A failure leaves nothing to tell the client, and dropping the socket says the same.
                let _ = tokio::time::timeout_at(until, self.socket.shut_down()).await;
                if answered {
                    return Ok(());
                }
                // The client reads the end and answers with its own. Until then its bytes are read, since what is
                // left unread would reset the connection before the client has seen the close frame.
            }
            self.set(timer.as_mut());
            let reading = self.is_reading();
            let Self { socket, decoder, client, work, recheck, arrival, .. } = self;
            let wake = tokio::select! {
                progress = socket.progress(&client.outbox, decoder, reading) => Wake::Socket(progress),
                done = wait(work) => Wake::Done(done),
                answer = wait(recheck) => Wake::Rechecked(answer),
                () = arrival.recovered() => Wake::Recovered,
                () = client.outbox.changed() => Wake::Outbox,
                () = timer.as_mut() => Wake::Timer,
            };
            match wake {
                Wake::Socket(Ok(Progress::End)) => return Ok(()),
                Wake::Socket(Ok(Progress::Read)) => self.hear(),
                Wake::Socket(Ok(Progress::Written)) | Wake::Outbox => {}
                Wake::Socket(Err(error)) => return Err(error),
                Wake::Done(done) => self.done(done),
                Wake::Rechecked(answer) => self.rechecked(answer),
                Wake::Recovered => self.arrived(),
                Wake::Timer => {
                    if self.on_time() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// After the socket: the running handler ends, the connection leaves the hub, the application is told.
    async fn end(mut self) {
        self.client.outbox.abandon();
        let Self { socket, .. } = self;
        drop(socket);
        if let Some(work) = self.work.take() {
            work.await;
        }
        drop(self.registration);
        if !matches!(self.arrival, Arrival::Here) {
            return;
        }
        let Some(handler) = self.server.handler(DISCONNECTION) else { return };
        if self.client.membership().user.is_some() || handler.guests() {
            call::handle(&self.server, &self.client, handler, DISCONNECTION.to_owned(), Vec::new()).await;
        }
    }

    /// Whether bytes are wanted. A handler at work, or too many messages, leave them in the socket, where they hold
    /// the client back.
    fn is_reading(&self) -> bool {
        match self.phase {
            Phase::Open => self.takes_messages(),
            Phase::Closing { answered, .. } => !answered,
        }
    }

    fn takes_messages(&self) -> bool {
        self.work.is_none() && self.paused.is_none() && !self.arrival.is_recovering()
    }

    fn is_written(&self) -> bool {
        self.socket.is_flushed() && self.client.outbox.is_empty()
    }

    fn hear(&mut self) {
        self.heard = Instant::now();
        self.pinged = None;
    }

    /// Goes on to closing: the outbox ends with a close frame.
    fn close(&mut self, broken: bool) {
        let until = Instant::now() + self.config().close_timeout;
        self.phase = Phase::Closing { until, answered: false, broken };
    }

    /// Takes what came, message by message, until one sets something going.
    fn read_messages(&mut self) {
        while matches!(self.phase, Phase::Open) && self.takes_messages() {
            let event = match self.decoder.next() {
                Ok(None) => return,
                Ok(Some(event)) => event,
                Err(Broken { code, reason }) => {
                    self.client.outbox.close(code, &reason);
                    self.close(true);
                    return;
                }
            };
            let answer = self.decoder.take_answer();
            match event {
                Event::Close => {
                    if let Some(answer) = answer {
                        self.client.outbox.seal(answer);
                    }
                    self.close(false);
                    if let Phase::Closing { answered, .. } = &mut self.phase {
                        *answered = true;
                    }
                    return;
                }
                Event::Pong => continue,
                Event::Ping => {
                    if let Some(answer) = answer {
                        self.client.outbox.push(answer);
                    }
                }
                Event::Text(text) => match parse(&text) {
                    Ok(incoming) => self.handle(incoming),
                    Err(malformed) => self.malformed(malformed),
                },
                Event::Binary => self.malformed(Malformed::Binary),
            }
            self.paused = self.pace.count(Instant::now());
        }
        // Closing: only the client's close frame is of interest.
        while let Phase::Closing { answered: answered @ false, broken, .. } = &mut self.phase {
            let event = self.decoder.next();
            // After a close frame nothing may be sent.
            drop(self.decoder.take_answer());
            match event {
                Ok(Some(Event::Close)) => *answered = true,
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(_) => *broken = true,
            }
        }
    }

    fn malformed(&mut self, malformed: Malformed) {
        self.client.outbox.close(CloseCode::Malformed, &malformed.to_string());
        self.close(false);
    }

    fn handle(&mut self, incoming: Incoming) {
        let Incoming { dialect, action, details } = incoming;
        if !self.spoke {
            self.spoke = true;
            self.client.speak(dialect);
        }
        if action == AUTHENTICATION {
            self.authenticate(details);
        } else if action == DISCONNECTION || action.starts_with("Server/") || action.ends_with(":error") {
            self.client.send_error(&action, 400, "this action is not for clients to send");
        } else if matches!(self.arrival, Arrival::Unwelcome { .. }) {
            self.client.send_error(&action, 403, FORBIDDEN);
        } else if matches!(self.arrival, Arrival::Undecided { .. }) {
            // It does without authentication.
            self.deferred = Some(Box::new(Incoming { dialect, action, details }));
            self.recover();
        } else if let Some(handler) = self.server.handler(&action).or_else(|| self.server.fallback()) {
            if self.client.membership().user.is_some() || handler.guests() {
                let call = call::handle(&self.server, &self.client, handler, action, details);
                self.work = Some(handled(call));
            } else {
                self.client.send_error(&action, 403, FORBIDDEN);
            }
        } else {
            self.client.send_error(&action, 404, "Not Found");
        }
    }

    /// `Client/authentication`: without credentials the handshake is looked at again, since its session may have got
    /// a user meanwhile.
    fn authenticate(&mut self, credentials: Vec<serde_json::Value>) {
        if self.client.membership().user.is_some() {
            self.client.send(AUTHENTICATION, &["ok".into()]);
            return;
        }
        let (server, client) = (self.server.clone(), self.client.clone());
        self.work = Some(Box::pin(async move {
            let limit = server.config().connection.handshake_timeout;
            let answer = call::authenticate(server.authenticator(), &client.handshake, &credentials, limit).await;
            Done::Authenticated(answer, !credentials.is_empty())
        }));
    }

    fn done(&mut self, done: Done) {
        self.work = None;
        if matches!(self.phase, Phase::Closing { .. }) {
            return;
        }
        // While a handler ran nothing was read, so its time is no silence of the client's.
        self.hear();
        match done {
            Done::Handled => self.client.tell_changes(self.server.seals()),
            Done::Authenticated(Ok(Some(identity)), _) if identity.user.is_some() || self.server.guests() => {
                self.identify(identity);
            }
            Done::Authenticated(Ok(_), false) if !matches!(self.arrival, Arrival::Unwelcome { .. }) => {
                self.client.send_error(AUTHENTICATION, 403, FORBIDDEN);
                self.recover();
            }
            Done::Authenticated(Ok(_), _) => self.refuse(),
            Done::Authenticated(Err(_), _) => {
                self.client.send_error(AUTHENTICATION, 503, "Service Unavailable");
                if matches!(self.arrival, Arrival::Undecided { .. }) {
                    // As a guest it would lose its place in the order, for a fault that is not its own.
                    self.client.outbox.close(CloseCode::SessionUnknown, "nobody can say who this is");
                }
            }
        }
    }

    /// Makes the client who it turned out to be. It keeps groups and properties that handlers gave it as a guest.
    fn identify(&mut self, identity: Identity) {
        let user = identity.user.is_some();
        self.expire(identity.expires);
        let membership = Membership::of(identity);
        self.server.hub().change(&self.client, |own| {
            own.user = membership.user;
            own.session = membership.session;
            own.groups.extend(membership.groups);
            own.properties.extend(membership.properties);
            // What it carries is bound to its user.
            own.untold = true;
        });
        if user {
            self.client.send(AUTHENTICATION, &["ok".into()]);
        } else {
            self.client.send_error(AUTHENTICATION, 403, FORBIDDEN);
        }
        if matches!(self.arrival, Arrival::Here) {
            self.client.tell_changes(self.server.seals());
            self.work = self.authenticated_handler();
        } else {
            self.recover();
        }
    }

    /// Lets a client that arrives have what is delivered, after what it missed where it keeps its position.
    fn recover(&mut self) {
        let asked = match std::mem::replace(&mut self.arrival, Arrival::Here) {
            Arrival::Unwelcome { asked, .. } => asked,
            Arrival::Undecided { asked, .. } => Some(asked),
            arrival @ (Arrival::Recovering(_) | Arrival::Over | Arrival::Here) => return self.arrival = arrival,
        };
        match asked {
            Some(asked) => {
                self.arrival = Arrival::Recovering(Box::pin(recover(self.server.clone(), self.client.clone(), asked)));
            }
            None => {
                self.server.hub().welcome(&self.client);
                self.work = self.authenticated_handler();
            }
        }
    }

    /// The client has what it missed.
    fn arrived(&mut self) {
        if self.client.outbox.is_sealed() {
            return self.arrival = Arrival::Over;
        }
        self.arrival = Arrival::Here;
        self.hear();
        self.work = self.authenticated_handler();
        if let Some(incoming) = self.deferred.take() {
            // Of a guest, whom no handler is told of first.
            self.handle(*incoming);
        }
    }

    /// Tells the application of a user.
    fn authenticated_handler(&self) -> Option<Call<Done>> {
        self.client.membership().user.as_ref()?;
        let handler = self.server.handler(AUTHENTICATION)?;
        let call = call::handle(&self.server, &self.client, handler, AUTHENTICATION.to_owned(), Vec::new());
        Some(handled(call))
    }

    /// Says that nobody may be here unauthenticated, and closes.
    fn refuse(&mut self) {
        let action = format!("{AUTHENTICATION}:error");
        let details = [403.into(), FORBIDDEN.into()];
        self.client.close_after(&action, &details, CloseCode::Unauthenticated, FORBIDDEN);
        self.close(false);
    }

    fn expire(&mut self, expires: Option<SystemTime>) {
        let left = expires.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        // A time that the clock cannot name never comes.
        let at = left.and_then(|left| Instant::now().checked_add(left));
        self.expiry = at.map(|at| Expiry { at, until: None });
    }

    fn ask_again(&mut self, now: Instant) {
        let Some(expiry) = &mut self.expiry else { return };
        expiry.until.get_or_insert(now + RECHECK_TIMEOUT);
        let (server, client) = (self.server.clone(), self.client.clone());
        self.recheck = Some(Box::pin(async move {
            let limit = server.config().connection.handshake_timeout;
            call::authenticate(server.authenticator(), &client.handshake, &[], limit).await
        }));
    }

    fn rechecked(&mut self, answer: Result<Option<Identity>, AuthenticationError>) {
        self.recheck = None;
        let now = Instant::now();
        match answer {
            Ok(Some(identity)) if identity.user.as_deref() == self.client.membership().user.as_deref() => {
                self.expire(identity.expires);
            }
            Ok(_) => self.client.dismiss("the session ended"),
            Err(_) => match &mut self.expiry {
                Some(Expiry { until: Some(until), .. }) if *until <= now => {
                    self.client.outbox.close(CloseCode::SessionUnknown, "the session's end came, and nobody can say");
                }
                Some(expiry) => expiry.at = now + RECHECK_INTERVAL,
                None => {}
            },
        }
    }

    /// The next time at which something is due.
    fn deadline(&self) -> Instant {
        if let Phase::Closing { until, .. } = self.phase {
            return until;
        }
        let expiry = self.expiry.as_ref().filter(|_| self.recheck.is_none()).map(|expiry| expiry.at);
        let silence = self.is_reading().then(|| self.silent_at());
        // An authentication that is under way is waited for.
        let arrival = match self.arrival {
            Arrival::Unwelcome { until, .. } | Arrival::Undecided { until, .. } if self.work.is_none() => Some(until),
            _ => None,
        };
        let due = [silence, expiry, self.paused, arrival];
        // Far beyond any time-out: there is always something to wait for besides.
        due.into_iter().flatten().min().unwrap_or_else(|| Instant::now() + Duration::from_secs(24 * 3600))
    }

    fn silent_at(&self) -> Instant {
        match self.pinged {
            Some(pinged) => pinged + self.config().ping_timeout,
            None => self.heard + self.config().ping_interval,
        }
    }

    /// Sets the timer, if it would go off too late or has gone off: what was put off meanwhile is found out then.
    fn set(&self, mut timer: std::pin::Pin<&mut Sleep>) {
        let deadline = self.deadline();
        if deadline < timer.deadline() || timer.is_elapsed() {
            timer.as_mut().reset(deadline);
        }
    }

    /// Does what is due. Whether the connection is to be dropped.
    fn on_time(&mut self) -> bool {
        let now = Instant::now();
        if let Phase::Closing { until, .. } = self.phase {
            return until <= now;
        }
        if self.paused.is_some_and(|until| until <= now) {
            self.paused = None;
            self.hear();
        }
        if self.is_reading() && self.silent_at() <= now {
            match self.pinged {
                None => {
                    self.pinged = Some(now);
                    self.client.outbox.push(frame::ping());
                }
                Some(_) => self.client.outbox.close(CloseCode::Silent, "no answer to a ping"),
            }
        }
        if self.recheck.is_none() && self.expiry.as_ref().is_some_and(|expiry| expiry.at <= now) {
            self.ask_again(now);
        }
        match self.arrival {
            Arrival::Unwelcome { until, .. } if until <= now && self.work.is_none() => self.refuse(),
            Arrival::Undecided { until, .. } if until <= now && self.work.is_none() => self.recover(),
            _ => {}
        }
        false
    }
}

fn handled(call: Call<()>) -> Call<Done> {
    Box::pin(async move {
        call.await;
        Done::Handled
    })
}
