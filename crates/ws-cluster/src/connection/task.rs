//! The task of one connection. The task is the only reader of the socket, and it writes what the fan-out could not.
//! Handlers run as futures of the task: a client's messages keep their order, and its handlers delay no other client.
//! An idle connection costs as much memory as its task, so the task keeps little, and keeps rare things in boxes.
//! `auth` handles who the client is, and `timing` handles deadlines.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::{Instant, Sleep};

use super::{
    Application, Context as Shared,
    auth::Expiry,
    closing::{ClientEnd, Phase},
    context::{Call, Done, asks_application},
    rate_limit::RateLimiter,
    run::Accepted,
    transport::Transport,
};
use crate::{
    ConnectionConfig,
    hub::{
        Client, ClientHandle,
        resume::{Arriving, JoinPhase, ResumeRequest, Resumption},
    },
    message::request_id::AwaitedAnswer,
    ws::decoder::Decoder,
};

pub(super) struct Connection<T, A> {
    pub(super) application: A,
    pub(super) handle: ClientHandle,
    pub(super) transport: T,
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

impl<T: Transport, A: Application> Connection<T, A> {
    pub(super) fn new(application: A, accepted: Accepted, transport: T, leftover: &[u8]) -> Self {
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
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
    pub(super) fn poll_calls(&mut self, cx: &mut Context<'_>) -> bool {
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

    pub(super) fn note_activity(&mut self) {
        self.last_activity = Instant::now();
        self.pinged = false;
    }
}
