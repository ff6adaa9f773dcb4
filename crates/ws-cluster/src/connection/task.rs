//! The task of one connection. The task is the only reader of the socket, and it writes what the fan-out could not.
//! Handlers run as futures of the task: a client's messages keep their order, and its handlers delay no other client.
//! An idle connection costs as much memory as its task, so the task keeps little, and keeps rare things in boxes.
//! `auth` handles who the client is, and `timing` handles deadlines.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
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
    context::{Call, Done, asks_application},
    rate_limit::RateLimiter,
    transport::{OtherStream, Tcp, Transport},
};
use crate::{
    CloseCode, ConnectionConfig, RawDetails, RawMessage,
    auth::Validity,
    hub::{
        Client, ClientHandle,
        resume::{Arriving, JoinPhase, ResumeRequest, Resumption},
    },
    io::Stream,
    message::{
        client::{BadFrame, Dialect, Incoming, Malformed, parse},
        request_id::AwaitedAnswer,
    },
    send_queue::{End, SendQueue},
    ws::{
        decoder::{Broken, Decoded, Decoder, Event},
        frame,
    },
};

/// Size of one read. The buffer lies on the stack of the reading thread, so idle connections have none.
const READ_SIZE: usize = 16 * 1024;

/// Bytes of a compressed message, compressed or inflated, that the rate limit counts as one message. A few bytes on the
/// wire can be inflated to the largest message, and the largest message can be inflated to nothing. Both take time. Most
/// messages are smaller.
const INFLATING_PER_MESSAGE: usize = 4 * 1024;

/// The results of a client's upgrade.
pub(crate) struct Accepted {
    /// The client's place in the hub. The connection drops it last.
    pub(crate) handle: ClientHandle,
    pub(crate) validity: Validity,
    /// True if the client may join as who it is. Otherwise it has to authenticate first.
    pub(crate) may_join: bool,
    /// True if the client may not even authenticate.
    pub(crate) refused: bool,
    /// The resume parameters of a client that tracks its position.
    pub(crate) asked: Option<ResumeRequest>,
}

/// Serves a client on a TCP socket until the client is gone and its last handler has ended. `leftover` came together
/// with the upgrade request.
pub(crate) fn serve_tcp<A: Application>(
    application: A,
    accepted: Accepted,
    stream: TcpStream,
    leftover: &[u8],
) -> impl Future<Output = ()> + Send + use<A> {
    accepted.handle.client().queue.attach(stream);
    run(Box::new(Connection::new(application, accepted, Tcp, leftover)))
}

/// Serves a client on any other stream.
pub(crate) fn serve<S: Stream, A: Application>(
    application: A,
    accepted: Accepted,
    stream: S,
    leftover: &[u8],
) -> impl Future<Output = ()> + Send + use<S, A> {
    run(Box::new(Connection::new(application, accepted, OtherStream::new(stream), leftover)))
}

/// Runs a connection. The future also ends if the connection is parked, which then lies in its send queue.
pub(super) fn run<T: Transport, A: Application>(connection: Box<Connection<T, A>>) -> impl Future<Output = ()> + Send {
    enum RunPhase<T, A> {
        Serving(Box<Connection<T, A>>),
        Ending(Call<()>),
        Over,
    }
    let mut phase = RunPhase::Serving(connection);
    poll_fn(move |cx| {
        loop {
            let served = match &mut phase {
                RunPhase::Serving(connection) => connection.poll(cx),
                RunPhase::Ending(end) => return end.as_mut().poll(cx),
                RunPhase::Over => return Poll::Ready(()),
            };
            let idle = matches!(&phase, RunPhase::Serving(connection) if T::PARKS && connection.is_idle());
            if served.is_pending() && !idle {
                return Poll::Pending;
            }
            let RunPhase::Serving(connection) = std::mem::replace(&mut phase, RunPhase::Over) else { continue };
            match served {
                Poll::Pending => {
                    if let Some(connection) = T::park(connection) {
                        // There is something to do, but other tasks run first.
                        phase = RunPhase::Serving(connection);
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
                Poll::Ready(served) => {
                    if let Err(error) = served {
                        tracing::debug!(connection = %connection.client().id, %error, "a client's socket failed");
                    }
                    phase = RunPhase::Ending(Box::pin(connection.end()));
                }
            }
        }
    })
}

/// Reads from a client that has sent its close frame, until it has read ours and is gone.
async fn linger<T: Transport>(mut transport: T, queue: SendQueue, until: Instant) {
    let end = poll_fn(|cx| {
        let mut space = [MaybeUninit::uninit(); READ_SIZE];
        loop {
            let mut buffer = ReadBuf::uninit(&mut space);
            let read = ready!(transport.poll_read(cx, &mut buffer, &queue));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
        }
    });
    // A client that has not closed its side by then is dropped.
    let _ = timeout_at(until, end).await;
}

pub(super) struct Connection<T, A> {
    pub(super) application: A,
    pub(super) handle: ClientHandle,
    transport: T,
    pub(super) decoder: Decoder,
    pub(super) limiter: RateLimiter,
    /// The time at which the client was last heard or pinged.
    pub(super) last_activity: Instant,
    /// The handler or question that the client's last message started. Messages are not read until it is done.
    pub(super) work: Option<Call<Done>>,
    pub(super) phase: Phase,
    pub(super) join_phase: JoinPhase,
    pub(super) expiry: Option<Box<Expiry>>,
    /// The timer for deadlines that are met exactly.
    pub(super) sleep: Option<Pin<Box<Sleep>>>,
    /// The tick at which the hub's timer fires, 0 for never. It serves deadlines that may be met a little late.
    pub(super) timer: u32,
    /// The tick at which the server next sends its heartbeat, 0 for never.
    pub(super) heartbeat_tick: u32,
    /// The longest interval between two messages that the client asked for, in seconds; 0 for never.
    pub(super) heartbeat: u16,
    /// Number of heartbeats since the client got a resume token.
    pub(super) beats: u8,
    pub(super) first_message: FirstMessage,
    /// True if the client has not answered the ping.
    pub(super) pinged: bool,
    /// True if messages are too frequent.
    pub(super) paused: bool,
    /// True if the client has sent no message yet, or none for a while.
    pub(super) quiet: bool,
    pub(super) read_ahead: ReadAhead,
}

/// The client's first message, which decides its dialect.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FirstMessage {
    /// It has not come, and neither has anything else. The upgrade is not long ago.
    Soon,
    /// It has not come for a while, or something else came before it, or the client has a user.
    Late,
    /// It has come.
    Came,
}

/// The state of reading ahead. While messages have to wait, one message and a little more are read, so that pings are
/// answered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadAhead {
    /// Reads what comes.
    Reads,
    /// Reads nothing, because pings are too frequent.
    Held,
    /// Reads nothing, because the client sends no more.
    Ended,
}

pub(super) enum Phase {
    Open,
    Closing(Box<Closing>),
}

/// The state of a connection whose close frame is on its way or sent, or whose client sends no more.
pub(super) struct Closing {
    /// The time at which the socket is dropped.
    pub(super) until: Instant,
    client_end: ClientEnd,
    /// The content of the first close frame, if the queue does not know it.
    end: Option<End>,
}

/// The client's progress in ending the connection. Later bytes are read but ignored: unread bytes would
/// reset the connection, and the frames on their way to the client would be lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ClientEnd {
    /// The client has not sent its close frame.
    Open,
    /// The client's bytes are invalid, so no close frame can come.
    Broken,
    /// The client has sent its close frame.
    CloseFrame,
    /// The client has shut down its side.
    ShutDown,
}

impl<T: Transport, A: Application> Connection<T, A> {
    fn new(application: A, accepted: Accepted, transport: T, leftover: &[u8]) -> Self {
        let Accepted { handle, validity, may_join, refused, asked } = accepted;
        let now = Instant::now();
        let heartbeat = asked.as_ref().map_or(0, ResumeRequest::heartbeat);
        let (context, client) = (application.context(), handle.client());
        let in_band = context.authenticator.in_band() && !refused;
        let is_guest = client.membership().user.is_none();
        let arriving = Arriving { may_join, in_band, asks_application: asks_application(&application, client) };
        let mut connection = Self {
            join_phase: JoinPhase::new(&context.resumption, handle.client(), asked, arriving),
            application,
            handle,
            transport,
            decoder: Decoder::default(),
            limiter: RateLimiter::new(now),
            last_activity: now,
            work: None,
            phase: Phase::Open,
            expiry: None,
            sleep: None,
            timer: 0,
            heartbeat_tick: 0,
            heartbeat,
            beats: 0,
            first_message: if is_guest { FirstMessage::Soon } else { FirstMessage::Late },
            pinged: false,
            paused: false,
            // The timer then says if the first message is late.
            quiet: !is_guest,
            read_ahead: ReadAhead::Reads,
        };
        connection.decoder.keep(leftover);
        connection.expire(validity, false);
        match connection.join_phase {
            JoinPhase::Joined => connection.announce(None),
            JoinPhase::Unauthenticated(_) if !in_band => connection.forbid(&AwaitedAnswer::default()),
            _ => {}
        }
        connection
    }

    pub(super) fn client(&self) -> &Arc<Client> {
        self.handle.client()
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

    /// Drives the connection. Ready once the socket is no longer needed.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.client().queue.note_awake() {
                self.timer = 0;
                self.on_time();
                self.client().send_new_token(&self.context().hub, &self.resumption().sealer);
            }
            self.read_kept();
            self.answer_pings();
            if matches!(self.phase, Phase::Open) && self.client().queue.is_sealed() {
                self.close();
            }
            let Self { transport, handle, .. } = self;
            let writing = match transport.poll_write(cx, &handle.client().queue) {
                Poll::Ready(written) => {
                    written?;
                    false
                }
                Poll::Pending => true,
            };
            if let Phase::Closing(closing) = &self.phase {
                // The client reads the end and then closes its own side.
                let client_end = closing.client_end;
                let Self { transport, handle, .. } = self;
                let queue = &handle.client().queue;
                if client_end > ClientEnd::Open && !writing && queue.is_empty() {
                    // An error can be ignored: dropping the socket tells the client the same.
                    let shut = transport.poll_shut_down(cx, queue);
                    if client_end >= ClientEnd::CloseFrame && shut.is_ready() {
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
                    // Messages that wait are handled first.
                    0 if !self.takes_input() => self.read_ahead = ReadAhead::Ended,
                    // The client may still read, so the frames that wait are sent.
                    0 => self.client_ended(ClientEnd::ShutDown),
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

    /// Polls the running work, the recheck and the join. Returns true if one of them is done.
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
            self.recheck_done(answer);
            return true;
        }
        // The application is asked about the client before the replay.
        if self.work.is_none()
            && let JoinPhase::Resuming(resuming) = &mut self.join_phase
            && let Poll::Ready(step) = resuming.call.as_mut().poll(cx)
        {
            self.step_done(step);
            return true;
        }
        false
    }

    /// Ends the connection after its socket: waits for the running handler, leaves the hub and tells the application.
    async fn end(mut self) {
        let queue = self.client().queue.abandon();
        let mut ended = queue.end();
        if let Phase::Closing(closing) = &mut self.phase {
            closing.end.take().into_iter().for_each(|end| ended = end);
        }
        let Self { transport, .. } = self;
        // Both sides have sent their close frames. Only the socket and the slot have to wait for the client.
        let lingering = match self.phase {
            Phase::Closing(closing) if closing.client_end == ClientEnd::CloseFrame => {
                Some(linger(transport, queue, closing.until))
            }
            _ => {
                drop((transport, queue));
                None
            }
        };
        let mut announced = self.join_phase.is_announced();
        if let Some(work) = self.work.take()
            && let Done::Announced { refusal, .. } = work.await
        {
            announced = refusal.is_none();
        }
        self.application.context().hub.stats().metered.note(|counts| counts.note_close(ended.code));
        self.application.context().hub.timers().cancel(self.handle.client().id.local, self.timer);
        self.handle.leave();
        let client = self.handle.client();
        if announced && self.application.handles(DISCONNECTION) {
            // A number and a text can always be encoded.
            let details = RawDetails::from_serialize(&(ended.code, &*ended.reason)).unwrap_or_default();
            if let Ok(handled) = self.application.dispatch(client, DISCONNECTION, details, AwaitedAnswer::default()) {
                // The client is gone, so an error has no recipient.
                let _ = handled.await;
            }
        }
        if let Some(lingering) = lingering {
            lingering.await;
        }
    }

    /// Returns true if bytes are read. While a handler runs or messages are too frequent, most bytes stay in the
    /// socket, which slows the client down.
    pub(super) fn is_reading(&self) -> bool {
        self.takes_input() || matches!(self.phase, Phase::Open) && self.reads_ahead()
    }

    fn reads_ahead(&self) -> bool {
        self.read_ahead == ReadAhead::Reads
            && self.decoder.kept() < self.config().message_size.saturating_add(READ_SIZE)
    }

    /// Returns true if messages are taken from what was read.
    fn takes_input(&self) -> bool {
        match &self.phase {
            Phase::Open => self.takes_messages(),
            Phase::Closing(closing) => closing.client_end < ClientEnd::ShutDown,
        }
    }

    fn takes_messages(&self) -> bool {
        self.work.is_none() && !self.paused && !self.join_phase.is_resuming()
    }

    pub(super) fn note_activity(&mut self) {
        self.last_activity = Instant::now();
        self.pinged = false;
    }

    /// Starts closing. The queue ends with a close frame.
    pub(super) fn close(&mut self) {
        let until = Instant::now() + self.context().close_timeout();
        self.phase = Phase::Closing(Box::new(Closing { until, client_end: ClientEnd::Open, end: None }));
    }

    /// Closes with an encoded close frame, unless the connection is closing already.
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

    /// Notes how far the client has ended the connection, on whichever side the close began.
    fn client_ended(&mut self, client_end: ClientEnd) {
        if matches!(self.phase, Phase::Open) {
            self.close();
        }
        if let Phase::Closing(closing) = &mut self.phase {
            closing.client_end = client_end;
        }
    }

    /// Reads from the socket. Returns the number of bytes, which is 0 at the end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [MaybeUninit::uninit(); READ_SIZE];
        let mut buffer = ReadBuf::uninit(&mut space);
        ready!(self.transport.poll_read(cx, &mut buffer, &self.handle.client().queue))?;
        let bytes = buffer.filled_mut();
        if !bytes.is_empty() {
            let size = bytes.len() as u64;
            self.note_activity();
            self.context().hub.stats().metered.note(|counts| counts.received_bytes.add(size));
        }
        if self.decoder.keeps() {
            // The next pass of the loop decodes them together.
            self.decoder.keep(bytes);
        } else {
            let read = self.read_messages(bytes);
            self.decoder.keep(&bytes[read..]);
        }
        // What the client sent first was no message, or only a part of one. The upgrade may be long ago when one comes.
        if self.first_message == FirstMessage::Soon && !bytes.is_empty() {
            self.first_message = FirstMessage::Late;
        }
        Poll::Ready(Ok(bytes.len()))
    }

    /// Continues with bytes that were read but could not be handled then.
    fn read_kept(&mut self) {
        if self.decoder.keeps() && self.takes_input() {
            let mut kept = self.decoder.take_kept();
            let read = self.read_messages(&mut kept);
            self.decoder.put_back(kept, read);
        }
    }

    /// Answers the pings in the bytes that were read ahead, while messages have to wait.
    fn answer_pings(&mut self) {
        if !self.decoder.keeps() || self.takes_input() || self.read_ahead == ReadAhead::Held {
            return;
        }
        let (limit, rate, pings, now) = (self.config().message_size, self.rate(), self.ping_rate(), Instant::now());
        let Self { decoder, limiter, paused, read_ahead, handle, .. } = self;
        decoder.take_pings(limit, |pong| {
            if limiter.next(pings) > now {
                *read_ahead = ReadAhead::Held;
                return false;
            }
            *paused |= limiter.count(rate, now);
            handle.client().queue.push(pong);
            true
        });
    }

    /// Handles one message after another until one starts work. Returns the number of bytes that were used.
    fn read_messages(&mut self, bytes: &mut [u8]) -> usize {
        let mut read = 0;
        while self.takes_input() {
            if let Phase::Closing(closing) = &self.phase
                && closing.client_end > ClientEnd::Open
            {
                return bytes.len();
            }
            let (limit, deflate) = (self.config().message_size, self.client().deflate());
            let decoded = match &self.phase {
                Phase::Open => self.decoder.decode(&mut bytes[read..], limit, deflate),
                Phase::Closing(_) => self.decoder.decode_close(&mut bytes[read..], limit),
            };
            match decoded {
                Ok(Decoded { size: 0, .. }) => break,
                Ok(Decoded { size, event, inflating }) => {
                    read += size;
                    event.into_iter().for_each(|event| self.take(event, inflating));
                }
                Err(Broken { code, reason }) => {
                    self.close_with(frame::close(code, &reason));
                    self.client_ended(ClientEnd::Broken);
                    return bytes.len();
                }
            }
        }
        read
    }

    /// Handles an event. `inflating`: the size of a message that came compressed ([`Decoded::inflating`]).
    fn take(&mut self, event: Event<'_>, inflating: usize) {
        match event {
            Event::Close(answer) => {
                self.close_with(answer);
                self.client_ended(ClientEnd::CloseFrame);
                return;
            }
            Event::Pong => return,
            Event::Ping(answer) => self.client().queue.push(answer),
            Event::Text(text) => {
                self.context().hub.stats().messages_in.add(1);
                match self.application.raw() {
                    Some(answer) => self.answer_raw(answer(RawMessage::Text(text.into_owned()))),
                    None => match parse(&text) {
                        Ok(incoming) => self.handle(incoming),
                        Err(Malformed::Frame(bad)) => self.bad_frame(bad),
                        Err(Malformed::Details { dialect, action, id, why }) => {
                            self.decide_dialect(dialect);
                            self.client().send_error(&action, 400, &why, id.as_ref());
                        }
                    },
                }
            }
            Event::Binary(bytes) => {
                self.context().hub.stats().messages_in.add(1);
                match self.application.raw() {
                    Some(answer) => self.answer_raw(answer(RawMessage::Binary(bytes.into_owned()))),
                    None => self.bad_frame(BadFrame::Binary),
                }
            }
        }
        self.quiet = false;
        // All messages of one read count as of the moment of the read.
        let rate = self.rate();
        let messages = inflating.div_ceil(INFLATING_PER_MESSAGE).max(1);
        self.paused = self.limiter.count_several(rate, messages, self.last_activity);
        if self.paused {
            self.context().hub.stats().metered.note(|counts| counts.rate_limited.add(1));
        }
    }

    fn answer_raw(&self, answer: Option<RawMessage>) {
        if let Some(answer) = answer {
            self.client().send_frame(match &answer {
                RawMessage::Text(text) => frame::text(&[text.as_bytes()]),
                RawMessage::Binary(bytes) => frame::binary(bytes),
            });
        }
    }

    fn bad_frame(&mut self, bad: BadFrame) {
        self.close_with(frame::close(CloseCode::Malformed, &bad.to_string()));
    }

    /// Sets the client's dialect at its first message.
    fn decide_dialect(&mut self, dialect: Dialect) {
        if self.first_message != FirstMessage::Came {
            self.first_message = FirstMessage::Came;
            self.client().set_dialect(dialect);
        }
    }

    pub(super) fn handle(&mut self, incoming: Incoming) {
        let Incoming { dialect, action, details, id } = incoming;
        let is_fresh = self.first_message == FirstMessage::Soon;
        self.decide_dialect(dialect);
        if action == AUTHENTICATION {
            self.authenticate(details.values().to_vec(), is_fresh, AwaitedAnswer::new(id));
        } else if action == DISCONNECTION || action.starts_with("Server/") || action.ends_with(":error") {
            self.client().send_error(&action, 400, "this action is not for clients to send", id.as_ref());
        } else if matches!(self.join_phase, JoinPhase::Unauthenticated(_)) {
            self.client().send_error(&action, 403, FORBIDDEN, id.as_ref());
        } else if matches!(self.join_phase, JoinPhase::Undecided(_)) {
            // The client has chosen to join without authentication.
            self.join(None);
            if let JoinPhase::Resuming(resuming) = &mut self.join_phase {
                resuming.deferred = Some(Incoming { dialect, action, details, id });
            }
        } else {
            let awaited = AwaitedAnswer::new(id);
            match self.application.dispatch(self.client(), &action, details, awaited.clone()) {
                Ok(handled) => {
                    let client = self.client().clone();
                    self.work = Some(Box::pin(async move {
                        if let Err(error) = handled.await {
                            client.send_error(&action, error.code, &error.text, awaited.take());
                        }
                        Done::Handled
                    }));
                }
                Err(error) => self.client().send_error(&action, error.code, &error.text, awaited.take()),
            }
        }
    }
}
