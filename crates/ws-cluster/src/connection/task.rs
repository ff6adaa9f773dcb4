//! The task of one connection. It alone reads the socket, and writes what others could not; handlers run as its
//! futures, so that they keep the order of the client's messages and hold back nobody else. A task that sleeps is what
//! an idle connection costs, so it keeps little, and what is rare in a box. `auth` says who the client is, and
//! `timing` what time brings.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::SystemTime,
};

use bytes::Bytes;
use tokio::{
    io::ReadBuf,
    net::TcpStream,
    time::{Instant, Sleep, timeout_at},
};

use super::{
    Application, Context as Shared,
    auth::{AUTHENTICATION, DISCONNECTION, Expiry, FORBIDDEN},
    context::{Call, Done, greets},
    rate_limit::RateLimiter,
    transport::{Other, Tcp, Transport},
};
use crate::{
    CloseCode, ConnectionConfig, RawDetails, RawMessage,
    hub::{
        Client, Registration,
        resume::{Arriving, JoinPhase, ResumeRequest, Resumption},
    },
    io::Stream,
    message::client::{BadFrame, Dialect, Incoming, Malformed, parse},
    send_queue::{End, SendQueue},
    ws::{
        decoder::{Broken, Decoder, Event},
        frame,
    },
};

/// What is read at a time. It lies on the stack of the thread that reads, so that idle connections need none.
const READ: usize = 16 * 1024;

/// What the upgrade found out about a client.
pub(crate) struct Accepted {
    /// Given back at the very end.
    pub(crate) registration: Registration,
    pub(crate) expires: Option<SystemTime>,
    /// It may be here as who it is; otherwise it has to authenticate first.
    pub(crate) welcome: bool,
    /// What a client that keeps its position brings along.
    pub(crate) asked: Option<ResumeRequest>,
}

/// Serves a client on a TCP socket from its first byte (`leftover` came with the upgrade request) until it is gone and
/// its last handler has ended.
pub(crate) fn serve_tcp<A: Application>(
    application: A,
    accepted: Accepted,
    stream: TcpStream,
    leftover: &[u8],
) -> impl Future<Output = ()> + Send + use<A> {
    accepted.registration.client().queue.attach(stream);
    run(Box::new(Connection::new(application, accepted, Tcp, leftover)))
}

/// The same on any other stream.
pub(crate) fn serve<S: Stream, A: Application>(
    application: A,
    accepted: Accepted,
    stream: S,
    leftover: &[u8],
) -> impl Future<Output = ()> + Send + use<S, A> {
    run(Box::new(Connection::new(application, accepted, Other::new(stream), leftover)))
}

/// What the task does; it ends as well when the connection is parked, which stays where it is.
pub(super) fn run<T: Transport, A: Application>(connection: Box<Connection<T, A>>) -> impl Future<Output = ()> + Send {
    enum Stage<T, A> {
        Serving(Box<Connection<T, A>>),
        Ending(Call<()>),
        Over,
    }
    let mut stage = Stage::Serving(connection);
    poll_fn(move |cx| {
        loop {
            let served = match &mut stage {
                Stage::Serving(connection) => connection.poll(cx),
                Stage::Ending(end) => return end.as_mut().poll(cx),
                Stage::Over => return Poll::Ready(()),
            };
            let idle = matches!(&stage, Stage::Serving(connection) if T::PARKS && connection.is_idle());
            if served.is_pending() && !idle {
                return Poll::Pending;
            }
            let Stage::Serving(connection) = std::mem::replace(&mut stage, Stage::Over) else { continue };
            match served {
                Poll::Pending => {
                    if let Some(connection) = T::park(connection) {
                        // Something is to be done, but others have their turn first.
                        stage = Stage::Serving(connection);
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
                Poll::Ready(served) => {
                    if let Err(error) = served {
                        tracing::debug!(connection = %connection.client().id, %error, "a client's socket failed");
                    }
                    stage = Stage::Ending(Box::pin(connection.end()));
                }
            }
        }
    })
}

/// Reads on from a client that has sent its close frame, until it has read ours and is gone.
async fn linger<T: Transport>(mut transport: T, queue: SendQueue, until: Instant) {
    let end = poll_fn(|cx| {
        let mut space = [MaybeUninit::uninit(); READ];
        loop {
            let mut buffer = ReadBuf::uninit(&mut space);
            let read = ready!(transport.poll_read(cx, &mut buffer, &queue));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
        }
    });
    // Whoever is still there then has had its time.
    let _ = timeout_at(until, end).await;
}

pub(super) struct Connection<T, A> {
    pub(super) application: A,
    pub(super) registration: Registration,
    transport: T,
    pub(super) decoder: Decoder,
    pub(super) limiter: RateLimiter,
    /// When the client was heard last, or pinged.
    pub(super) since: Instant,
    /// What the client's last message set going. Nothing is read while there is one.
    pub(super) work: Option<Call<Done>>,
    pub(super) phase: Phase,
    pub(super) join_phase: JoinPhase,
    pub(super) expiry: Option<Box<Expiry>>,
    /// Wakes at a time that has to be met.
    pub(super) sleep: Option<Pin<Box<Sleep>>>,
    /// When the hub's timer goes off, 0 for never: enough for what need not be met exactly.
    pub(super) timer: u32,
    /// When the client next has to hear something from the server, as the hub's timers count time; 0 for never.
    pub(super) word: u32,
    /// How often it wants to hear something at least, in seconds; 0 for never.
    pub(super) heartbeat: u16,
    /// How often it heard that since it was told what to carry.
    pub(super) beats: u8,
    /// The client has spoken, and so decided its dialect.
    spoke: bool,
    /// Nothing has answered the ping.
    pub(super) pinged: bool,
    /// Messages are too frequent.
    pub(super) paused: bool,
    /// It has got no message yet, or none for a while.
    pub(super) quiet: bool,
    pub(super) ahead: Ahead,
}

/// What is read while messages have to wait, so that pings are answered: up to one message and a little.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ahead {
    /// What comes.
    Reads,
    /// Nothing: pings are too frequent.
    Held,
    /// Nothing: the client sends no more.
    Ended,
}

pub(super) enum Phase {
    Open,
    Closing(Box<Closing>),
}

/// A close frame is on its way or sent, or the client sends no more.
pub(super) struct Closing {
    /// The socket is dropped then.
    pub(super) until: Instant,
    heard: Heard,
    /// What the first close frame says, if it is not the queue that knows.
    end: Option<End>,
}

/// How far a client has come with its own end. What comes after any of it is passed over, but read: what is left unread
/// would reset the connection, and take what is on its way to the client along.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Heard {
    /// Its close frame is still to come.
    Nothing,
    /// Its bytes make no sense any more, so no close frame can come.
    Broken,
    /// Its close frame.
    Close,
    /// The end of what it sends.
    End,
}

impl<T: Transport, A: Application> Connection<T, A> {
    fn new(application: A, accepted: Accepted, transport: T, leftover: &[u8]) -> Self {
        let Accepted { registration, expires, welcome, asked } = accepted;
        let now = Instant::now();
        let heartbeat = asked.as_ref().map_or(0, ResumeRequest::heartbeat);
        let (context, client) = (application.context(), registration.client());
        let in_band = context.authenticator.in_band();
        let arriving = Arriving { welcome, in_band, greets: greets(&application, client) };
        let mut connection = Self {
            join_phase: JoinPhase::new(&context.resumption, registration.client(), asked, arriving),
            application,
            registration,
            transport,
            decoder: Decoder::default(),
            limiter: RateLimiter::new(now),
            since: now,
            work: None,
            phase: Phase::Open,
            expiry: None,
            sleep: None,
            timer: 0,
            word: 0,
            heartbeat,
            beats: 0,
            spoke: false,
            pinged: false,
            paused: false,
            quiet: true,
            ahead: Ahead::Reads,
        };
        connection.decoder.keep(leftover);
        connection.expire(expires, false);
        match connection.join_phase {
            JoinPhase::Here => connection.greet(false),
            JoinPhase::Unwelcome(_) if !in_band => connection.forbid(),
            _ => {}
        }
        connection
    }

    pub(super) fn client(&self) -> &Arc<Client> {
        self.registration.client()
    }

    /// Returns what all connections share.
    pub(super) fn context(&self) -> &Shared {
        self.application.context()
    }

    pub(super) fn resumption(&self) -> &Arc<Resumption> {
        &self.context().resumption
    }

    pub(super) fn config(&self) -> &ConnectionConfig {
        &self.context().config.connection
    }

    /// Until the socket is done with.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.client().queue.awake() {
                self.timer = 0;
                self.on_time();
                self.client().tell_changes(&self.context().hub, &self.resumption().sealer);
            }
            self.read_kept();
            self.answer_pings();
            if matches!(self.phase, Phase::Open) && self.client().queue.is_sealed() {
                self.close();
            }
            let Self { transport, registration, .. } = self;
            let writing = match transport.poll_write(cx, &registration.client().queue) {
                Poll::Ready(written) => {
                    written?;
                    false
                }
                Poll::Pending => true,
            };
            if let Phase::Closing(closing) = &self.phase {
                // The client reads the end and answers with its own.
                let heard = closing.heard;
                let Self { transport, registration, .. } = self;
                let queue = &registration.client().queue;
                if heard > Heard::Nothing && !writing && queue.is_empty() {
                    // A failure leaves nothing to tell the client, and dropping the socket says the same.
                    let shut = transport.poll_shut_down(cx, queue);
                    if heard >= Heard::Close && shut.is_ready() {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
            if self.poll_calls(cx) {
                continue;
            }
            if self.is_reading()
                && let Poll::Ready(read) = self.poll_read(cx)
            {
                match read? {
                    // Its messages that wait come first.
                    0 if !self.takes() => self.ahead = Ahead::Ended,
                    // It may still read, and what waits is for it.
                    0 => self.heard(Heard::End),
                    _ => {}
                }
                continue;
            }
            if self.poll_time(cx) {
                if let Phase::Closing(closing) = &self.phase
                    && closing.until <= Instant::now()
                {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            let closing = matches!(self.phase, Phase::Closing(_));
            if self.client().queue.sleep(cx, writing, closing) {
                return Poll::Pending;
            }
        }
    }

    /// Lets what was set going get on. Whether any of it has come to its end.
    fn poll_calls(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(work) = &mut self.work
            && let Poll::Ready(done) = work.as_mut().poll(cx)
        {
            self.done(done);
            return true;
        }
        if let Some(recheck) = self.expiry.as_mut().and_then(|expiry| expiry.recheck.as_mut())
            && let Poll::Ready(answer) = recheck.as_mut().poll(cx)
        {
            self.rechecked(answer);
            return true;
        }
        // The application is told of the client before it is sent what it missed.
        if self.work.is_none()
            && let JoinPhase::Recovering(recovering) = &mut self.join_phase
            && let Poll::Ready(step) = recovering.call.as_mut().poll(cx)
        {
            self.came(step);
            return true;
        }
        false
    }

    /// After the socket: the running handler ends, the connection leaves the hub, the application is told.
    async fn end(mut self) {
        let queue = self.client().queue.abandon();
        let mut ended = queue.end();
        if let Phase::Closing(closing) = &mut self.phase {
            closing.end.take().into_iter().for_each(|end| ended = end);
        }
        let Self { transport, .. } = self;
        // Both ends are told: nothing but the socket, and its place, has to wait for the client.
        let lingering = match self.phase {
            Phase::Closing(closing) if closing.heard == Heard::Close => Some(linger(transport, queue, closing.until)),
            _ => {
                drop((transport, queue));
                None
            }
        };
        let mut told = self.join_phase.is_announced();
        if let Some(work) = self.work.take()
            && let Done::Greeted { refusal, .. } = work.await
        {
            told = refusal.is_none();
        }
        self.application.context().hub.timers().cancel(self.registration.client().id.local, self.timer);
        self.registration.leave();
        let client = self.registration.client();
        if told && self.application.handles(DISCONNECTION) {
            // A number and a text can be written.
            let details = RawDetails::of(&(ended.code, &*ended.reason)).unwrap_or_default();
            if let Ok(handled) = self.application.dispatch(client, DISCONNECTION, details) {
                // Nobody is there who could be told of an error.
                let _ = handled.await;
            }
        }
        if let Some(lingering) = lingering {
            lingering.await;
        }
    }

    /// Whether bytes are wanted. A handler at work, or too many messages, leave most of them in the socket, where they hold
    /// the client back.
    pub(super) fn is_reading(&self) -> bool {
        self.takes() || matches!(self.phase, Phase::Open) && self.reads_ahead()
    }

    fn reads_ahead(&self) -> bool {
        self.ahead == Ahead::Reads && self.decoder.kept() < self.config().message_size.saturating_add(READ)
    }

    /// Whether what came is taken.
    fn takes(&self) -> bool {
        match &self.phase {
            Phase::Open => self.takes_messages(),
            Phase::Closing(closing) => closing.heard < Heard::End,
        }
    }

    fn takes_messages(&self) -> bool {
        self.work.is_none() && !self.paused && !self.join_phase.is_recovering()
    }

    pub(super) fn hear(&mut self) {
        self.since = Instant::now();
        self.pinged = false;
    }

    /// Goes on to closing: the queue ends with a close frame.
    pub(super) fn close(&mut self) {
        let until = Instant::now() + self.context().close_timeout();
        self.phase = Phase::Closing(Box::new(Closing { until, heard: Heard::Nothing, end: None }));
    }

    /// Closes with a close frame that is formatted, unless the connection is being closed.
    fn close_with(&mut self, close: Bytes) {
        let end = (!self.client().queue.is_sealed()).then(|| End::of(&close));
        self.client().queue.seal(close);
        if matches!(self.phase, Phase::Open) {
            self.close();
        }
        if let Phase::Closing(closing) = &mut self.phase
            && end.is_some()
        {
            closing.end = end;
        }
    }

    /// The client has come to an end of its own, whoever closed first.
    fn heard(&mut self, heard: Heard) {
        if matches!(self.phase, Phase::Open) {
            self.close();
        }
        if let Phase::Closing(closing) = &mut self.phase {
            closing.heard = heard;
        }
    }

    /// Reads what came: the number of bytes, 0 at the end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [MaybeUninit::uninit(); READ];
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(self.transport.poll_read(cx, &mut buffer, &self.registration.client().queue))?;
        let bytes = buffer.filled_mut();
        if !bytes.is_empty() {
            self.hear();
        }
        if self.decoder.keeps() {
            // The next turn reads them together.
            self.decoder.keep(bytes);
        } else {
            let read = self.read_messages(bytes);
            self.decoder.keep(&bytes[read..]);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    /// Goes on with what came and could not be read then.
    fn read_kept(&mut self) {
        if self.decoder.keeps() && self.takes() {
            let mut kept = self.decoder.take_kept();
            let read = self.read_messages(&mut kept);
            self.decoder.put_back(kept, read);
        }
    }

    /// Answers the pings among what came while messages have to wait.
    fn answer_pings(&mut self) {
        if !self.decoder.keeps() || self.takes() || self.ahead == Ahead::Held {
            return;
        }
        let (limit, rate, pings, now) = (self.config().message_size, self.rate(), self.ping_rate(), Instant::now());
        let Self { decoder, limiter, paused, ahead, registration, .. } = self;
        decoder.take_pings(limit, |pong| {
            if limiter.next(pings) > now {
                *ahead = Ahead::Held;
                return false;
            }
            *paused |= limiter.count(rate, now);
            registration.client().queue.push(pong);
            true
        });
    }

    /// Takes what came, message by message, until one sets something going. How many bytes that was.
    fn read_messages(&mut self, bytes: &mut [u8]) -> usize {
        let mut read = 0;
        while self.takes() {
            if let Phase::Closing(closing) = &self.phase
                && closing.heard > Heard::Nothing
            {
                return bytes.len();
            }
            let limit = self.config().message_size;
            match self.decoder.decode(&mut bytes[read..], limit) {
                Ok((0, _)) => break,
                Ok((size, event)) => {
                    read += size;
                    event.into_iter().for_each(|event| self.take(event));
                }
                Err(Broken { code, reason }) => {
                    self.close_with(frame::close(code, &reason));
                    self.heard(Heard::Broken);
                    return bytes.len();
                }
            }
        }
        read
    }

    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Close(answer) => {
                self.close_with(answer);
                self.heard(Heard::Close);
                return;
            }
            // While we close, only the client's close frame is of interest.
            _ if matches!(self.phase, Phase::Closing(_)) => return,
            Event::Pong => return,
            Event::Ping(answer) => self.client().queue.push(answer),
            Event::Text(text) => match self.application.raw() {
                Some(answer) => self.answer_raw(answer(RawMessage::Text(text.into_owned()))),
                None => match parse(&text) {
                    Ok(incoming) => self.handle(incoming),
                    Err(Malformed::Frame(bad)) => self.bad_frame(bad),
                    Err(Malformed::Details { dialect, action, why }) => {
                        self.spoken(dialect);
                        self.client().send_error(&action, 400, &why);
                    }
                },
            },
            Event::Binary(bytes) => match self.application.raw() {
                Some(answer) => self.answer_raw(answer(RawMessage::Binary(bytes.into_owned()))),
                None => self.bad_frame(BadFrame::Binary),
            },
        }
        self.quiet = false;
        // What came at once counts as of the moment in which it was read.
        let rate = self.rate();
        self.paused = self.limiter.count(rate, self.since);
    }

    fn answer_raw(&self, answer: Option<RawMessage>) {
        if let Some(answer) = answer {
            self.client().queue.push(match &answer {
                RawMessage::Text(text) => frame::text(&[text.as_bytes()]),
                RawMessage::Binary(bytes) => frame::binary(bytes),
            });
        }
    }

    fn bad_frame(&mut self, bad: BadFrame) {
        self.close_with(frame::close(CloseCode::Malformed, &bad.to_string()));
    }

    /// The client's first message decides its dialect.
    fn spoken(&mut self, dialect: Dialect) {
        if !self.spoke {
            self.spoke = true;
            self.client().speak(dialect);
        }
    }

    pub(super) fn handle(&mut self, incoming: Incoming) {
        let Incoming { dialect, action, details } = incoming;
        self.spoken(dialect);
        if action == AUTHENTICATION {
            self.authenticate(details.to_vec());
        } else if action == DISCONNECTION || action.starts_with("Server/") || action.ends_with(":error") {
            self.client().send_error(&action, 400, "this action is not for clients to send");
        } else if matches!(self.join_phase, JoinPhase::Unwelcome(_)) {
            self.client().send_error(&action, 403, FORBIDDEN);
        } else if matches!(self.join_phase, JoinPhase::Undecided(_)) {
            // It does without authentication.
            self.recover();
            if let JoinPhase::Recovering(recovering) = &mut self.join_phase {
                recovering.deferred = Some(Incoming { dialect, action, details });
            }
        } else {
            match self.application.dispatch(self.client(), &action, details) {
                Ok(handled) => {
                    let client = self.client().clone();
                    self.work = Some(Box::pin(async move {
                        if let Err(error) = handled.await {
                            client.send_error(&action, error.code, &error.text);
                        }
                        Done::Handled
                    }));
                }
                Err(error) => self.client().send_error(&action, error.code, &error.text),
            }
        }
    }
}
